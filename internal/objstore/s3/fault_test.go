package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/s3"
	"holdfast/internal/objstore/s3/s3test"
)

// TestTemporaryFaults: what S3 says should be tried again is tried again, for
// every operation, and the caller does not notice.
func TestTemporaryFaults(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]s3test.Fault{
		"503 SlowDown":      {Kind: s3test.Refuse, Status: 503, Code: "SlowDown", Header: map[string]string{"Retry-After": "1"}},
		"500":               {Kind: s3test.Refuse, Status: 500, Code: "InternalError"},
		"502 of a proxy":    {Kind: s3test.BareStatus, Status: 502},
		"429":               {Kind: s3test.BareStatus, Status: 429},
		"400 timeout":       {Kind: s3test.Refuse, Status: 400, Code: "RequestTimeout"},
		"connection closed": {Kind: s3test.DropRequest},
		"lost answer":       {Kind: s3test.LoseAnswer},
		"web page":          {Kind: s3test.Portal},
		"409 conflict":      {Kind: s3test.Refuse, Status: 409, Code: "ConditionalRequestConflict"},
		"409 aborted":       {Kind: s3test.Refuse, Status: 409, Code: "OperationAborted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := s3test.Start(t, s3test.Config{})
			b := open(t, srv)
			put(t, b, "v1/old", "old")
			spoil := func(op string) {
				g := f
				g.Op, g.Times = op, 2
				srv.Inject(t, g)
			}
			spoil(s3test.PutObject)
			put(t, b, "v1/new", "new")
			if f.Status/100 != 4 || f.Status == 429 { // HEAD has no body to carry a code
				spoil(s3test.HeadObject)
			}
			if _, err := b.Head(t.Context(), "v1/old"); err != nil {
				t.Error(err)
			}
			spoil(s3test.GetObject)
			if got, err := objstore.ReadAll(t.Context(), b, "v1/new", 9); err != nil || string(got) != "new" {
				t.Errorf("%q, %v", got, err)
			}
			spoil(s3test.ListObjectsV2)
			n := 0
			if err := b.List(t.Context(), "v1/", func(objstore.Info) error { n++; return nil }); err != nil || n != 2 {
				t.Errorf("%d objects, %v", n, err)
			}
			spoil(s3test.DeleteObject)
			if err := b.Delete(t.Context(), "v1/old"); err != nil {
				t.Error(err)
			}
			if err := objstore.DeletePrefix(t.Context(), b, "v1/"); err != nil || len(srv.Keys()) != 1 {
				t.Errorf("left: %q, %v", srv.Keys(), err)
			}
		})
	}
}

// TestLastingFaults: attempts end, and only absence is called absence.
func TestLastingFaults(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault s3test.Fault
		want  error
		tries int // puts
	}{
		"503":               {s3test.Fault{Kind: s3test.Refuse, Status: 503, Code: "SlowDown"}, objstore.ErrUnavailable, 4},
		"connection closed": {s3test.Fault{Kind: s3test.DropRequest}, objstore.ErrUnavailable, 4},
		"web page":          {s3test.Fault{Kind: s3test.Portal}, objstore.ErrUnavailable, 4},
		"409":               {s3test.Fault{Kind: s3test.Refuse, Status: 409, Code: "ConditionalRequestConflict"}, objstore.ErrUnavailable, 4},
		"403":               {s3test.Fault{Kind: s3test.Refuse, Status: 403, Code: "AccessDenied"}, objstore.ErrDenied, 1},
		"bare 403":          {s3test.Fault{Kind: s3test.BareStatus, Status: 403}, objstore.ErrDenied, 1},
		"expired token":     {s3test.Fault{Kind: s3test.Refuse, Status: 400, Code: "ExpiredToken"}, objstore.ErrDenied, 1},
		"404 of a bucket":   {s3test.Fault{Kind: s3test.Refuse, Status: 404, Code: "NoSuchBucket"}, objstore.ErrUnavailable, 1},
		"404 of a proxy":    {s3test.Fault{Kind: s3test.BareStatus, Status: 404}, objstore.ErrUnavailable, 1},
		"501":               {s3test.Fault{Kind: s3test.Refuse, Status: 501, Code: "NotImplemented"}, objstore.ErrUnavailable, 1},
		"507":               {s3test.Fault{Kind: s3test.Refuse, Status: 507, Code: "XMinioStorageFull"}, objstore.ErrNoSpace, 1},
		"quota":             {s3test.Fault{Kind: s3test.Refuse, Status: 403, Code: "QuotaExceeded"}, objstore.ErrNoSpace, 1},
		"archived":          {s3test.Fault{Kind: s3test.Refuse, Status: 403, Code: "InvalidObjectState"}, objstore.ErrUnavailable, 1},
		"moved": {s3test.Fault{Kind: s3test.Refuse, Status: 301, Code: "PermanentRedirect",
			Header: map[string]string{"X-Amz-Bucket-Region": "mars-north-1", "Location": "http://127.0.0.1:1/"}}, objstore.ErrUnavailable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := s3test.Start(t, s3test.Config{})
			b := open(t, srv, func(c *s3.Config) { c.Attempts = 4 })
			put(t, b, "v1/old", "old")
			for _, op := range []string{s3test.PutObject, s3test.HeadObject, s3test.GetObject, s3test.ListObjectsV2, s3test.DeleteObject} {
				f := tt.fault
				f.Op, f.Times = op, -1
				srv.Inject(t, f)
			}
			before := srv.Count(s3test.PutObject)
			err := b.PutNew(t.Context(), "v1/new", strings.NewReader("new"), 3, nil)
			if got := srv.Count(s3test.PutObject) - before; got != tt.tries {
				t.Errorf("%d puts, wanted %d", got, tt.tries)
			}
			_, headErr := b.Head(t.Context(), "v1/old")
			_, getErr := b.Get(t.Context(), "v1/old", 0, -1)
			_, emptyErr := b.Get(t.Context(), "v1/old", 0, 0)
			for op, err := range map[string]error{
				"put": err, "head": headErr, "get": getErr, "get of nothing": emptyErr, "delete": b.Delete(t.Context(), "v1/old"),
				"list": b.List(t.Context(), "v1/", func(objstore.Info) error { return nil }),
			} {
				if !errors.Is(err, tt.want) || errors.Is(err, objstore.ErrNotExist) {
					t.Errorf("%s: %v", op, err)
				}
			}
			if name == "moved" && !strings.Contains(headErr.Error(), "mars-north-1") {
				t.Errorf("no word of the region: %v", headErr)
			}
		})
	}
}

// TestLostPutAnswers: the object was created, and the answer was lost.
func TestLostPutAnswers(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("sealed ", 1000)
	for name, c := range map[string]s3test.Config{"metadata": {}, "no metadata": {DropMetadata: true}, "neither": {DropMetadata: true, IgnoreChecksum: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := s3test.Start(t, c)
			b := open(t, srv)
			srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.LoseAnswer, Key: "v1/mine"})
			if err := b.PutNew(t.Context(), "v1/mine", strings.NewReader(body), int64(len(body)), nil); err != nil {
				t.Errorf("the object is there, and PutNew says %v", err)
			}
			if got, err := objstore.ReadAll(t.Context(), b, "v1/mine", 1<<20); err != nil || string(got) != body {
				t.Errorf("%d bytes, %v", len(got), err)
			}

			// Somebody else created it, and the fate of the first attempt is unknown.
			srv.Set("Team_A/holdfast/v1/theirs", []byte(strings.Repeat("other! ", 1000)))
			srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.DropRequest, Key: "v1/theirs"})
			if err := b.PutNew(t.Context(), "v1/theirs", strings.NewReader(body), int64(len(body)), nil); !errors.Is(err, objstore.ErrExists) {
				t.Errorf("somebody else's object: %v", err)
			}
			srv.Set("Team_A/holdfast/v1/shorter", []byte("short"))
			srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.Refuse, Status: 500, Code: "InternalError", Key: "v1/shorter"})
			if err := b.PutNew(t.Context(), "v1/shorter", strings.NewReader(body), int64(len(body)), nil); !errors.Is(err, objstore.ErrExists) {
				t.Errorf("somebody else's shorter object: %v", err)
			}

			// The same content by an earlier call is no success of this one,
			// where the store keeps metadata to tell.
			srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.DropRequest, Key: "v1/mine"})
			err := b.PutNew(t.Context(), "v1/mine", strings.NewReader(body), int64(len(body)), nil)
			if want := name == "metadata"; errors.Is(err, objstore.ErrExists) != want {
				t.Errorf("equal content of an earlier put: %v", err)
			}
		})
	}
}

// TestUnknownPutOutcome: once an answer was lost, no error may claim that
// nothing became visible.
func TestUnknownPutOutcome(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv, func(c *s3.Config) { c.Attempts = 3 })
	lose := func(key string, then ...s3test.Fault) error {
		t.Helper()
		srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.LoseAnswer, Key: key})
		srv.Inject(t, then...)
		return b.PutNew(t.Context(), key, strings.NewReader("x"), 1, nil)
	}
	for name, err := range map[string]error{
		"then denied":    lose("v1/a", s3test.Fault{Op: s3test.PutObject, Kind: s3test.Refuse, Status: 403, Code: "AccessDenied", Key: "v1/a"}),
		"then no space":  lose("v1/b", s3test.Fault{Op: s3test.PutObject, Kind: s3test.Refuse, Status: 507, Key: "v1/b"}),
		"cannot look":    lose("v1/c", s3test.Fault{Op: s3test.HeadObject, Kind: s3test.Refuse, Status: 403, Key: "v1/c"}),
		"look goes on":   lose("v1/d", s3test.Fault{Op: s3test.HeadObject, Kind: s3test.Refuse, Status: 503, Times: -1, Key: "v1/d"}),
		"then corrupted": lose("v1/e", s3test.Fault{Op: s3test.PutObject, Kind: s3test.Refuse, Status: 400, Code: "BadDigest", Times: 2, Key: "v1/e"}),
	} {
		if !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		for _, no := range []error{objstore.ErrDenied, objstore.ErrNoSpace, objstore.ErrMismatch, objstore.ErrExists, objstore.ErrNotExist} {
			if errors.Is(err, no) {
				t.Errorf("%s: %v claims more than is known", name, err)
			}
		}
	}
	// A look that succeeds in the end settles it.
	if err := lose("v1/f", s3test.Fault{Op: s3test.HeadObject, Kind: s3test.Refuse, Status: 503, Key: "v1/f"}); err != nil {
		t.Errorf("settled at the second look: %v", err)
	}
}

// TestDamagedOnTheWay: bytes that change between here and the store are not
// stored, and sent again.
func TestDamagedOnTheWay(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	damaged := 0
	tr := directTransport(t)
	flip := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "v1/") && damaged < 1 {
			damaged++
			data, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			data[len(data)/2] ^= 1
			r = r.Clone(r.Context())
			r.Body = io.NopCloser(bytes.NewReader(data))
		}
		return tr.RoundTrip(r)
	})
	b := open(t, srv, func(c *s3.Config) { c.Transport = flip })
	put(t, b, "v1/a", strings.Repeat("x", 100_000))
	if got, err := objstore.ReadAll(t.Context(), b, "v1/a", 1<<20); err != nil || string(got) != strings.Repeat("x", 100_000) || damaged != 1 {
		t.Errorf("%d bytes, %v, damaged %d", len(got), err, damaged)
	}
	srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Key: "v1/b", Times: -1, Kind: s3test.Refuse, Status: 400, Code: "BadDigest"})
	if err := b.PutNew(t.Context(), "v1/b", strings.NewReader("x"), 1, nil); !errors.Is(err, objstore.ErrMismatch) {
		t.Errorf("always damaged: %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestBrokenBodies: a body that breaks off or stops is continued, and never ends
// early.
func TestBrokenBodies(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	for name, kind := range map[string]s3test.Kind{"cut": s3test.CutBody, "stalled": s3test.StallBody} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := s3test.Start(t, s3test.Config{})
			put(t, open(t, srv), "v1/a", string(data))
			c := settings(srv)
			c.StallTimeout, c.Attempts = 200*time.Millisecond, 6
			b := newBucket(t, c)
			srv.Inject(t,
				s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: kind, At: 40_000},
				s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: kind, At: 0},
				s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: s3test.Refuse, Status: 503},
				s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: kind, At: 1},
			)
			if got, err := objstore.ReadAll(t.Context(), b, "v1/a", 1<<20); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			// Without progress it fails, in a bounded time.
			start := time.Now()
			srv.Inject(t, s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: kind, At: 10}, s3test.Fault{Op: s3test.GetObject, Key: "v1/a", Kind: kind, Times: -1})
			got, err := objstore.ReadAll(t.Context(), b, "v1/a", 1<<20)
			if !errors.Is(err, objstore.ErrUnavailable) || got != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestReplacedWhileRead: a continued body never mixes two objects.
func TestReplacedWhileRead(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv)
	put(t, b, "v1/a", strings.Repeat("a", 1000))
	srv.Inject(t, s3test.Fault{Op: s3test.GetObject, Kind: s3test.CutBody, At: 400})
	body, err := b.Get(t.Context(), "v1/a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	srv.Set("Team_A/holdfast/v1/a", bytes.Repeat([]byte("b"), 1000))
	got, err := io.ReadAll(body)
	if !errors.Is(err, objstore.ErrUnavailable) || strings.Contains(string(got), "b") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestIgnoredRange(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{IgnoreRange: true})
	b := open(t, srv)
	put(t, b, "v1/a", "0123456789")
	if _, err := b.Get(t.Context(), "v1/a", 2, 3); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// TestSilence: a store that does not answer ends a call in a bounded time, and
// the caller's context ends it at once.
func TestSilence(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	patient := open(t, srv)
	put(t, patient, "v1/a", "x")
	c := settings(srv)
	c.StallTimeout, c.Attempts = 50*time.Millisecond, 2
	quick := newBucket(t, c)
	calls := map[string]func(ctx context.Context, b *s3.Bucket) error{
		s3test.PutObject: func(ctx context.Context, b *s3.Bucket) error {
			return b.PutNew(ctx, "v1/b", strings.NewReader("x"), 1, nil)
		},
		s3test.HeadObject:   func(ctx context.Context, b *s3.Bucket) error { _, err := b.Head(ctx, "v1/a"); return err },
		s3test.GetObject:    func(ctx context.Context, b *s3.Bucket) error { _, err := b.Get(ctx, "v1/a", 0, -1); return err },
		s3test.DeleteObject: func(ctx context.Context, b *s3.Bucket) error { return b.Delete(ctx, "v1/a") },
		s3test.ListObjectsV2: func(ctx context.Context, b *s3.Bucket) error {
			return b.List(ctx, "", func(objstore.Info) error { return nil })
		},
	}
	for op, call := range calls {
		srv.Inject(t, s3test.Fault{Op: op, Kind: s3test.StallAnswer, Times: -1})
		start := time.Now()
		if err := call(t.Context(), quick); !errors.Is(err, objstore.ErrUnavailable) || time.Since(start) > 10*time.Second {
			t.Errorf("%s: %v after %v", op, err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := call(ctx, patient); !errors.Is(err, context.Canceled) || errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%s, cancelled: %v", op, err)
		}
		cancel()
	}
}

// TestClock: the SDK learns the store's clock from a refusal.
func TestClock(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	srv.SetClock(40 * time.Minute)
	b := open(t, srv)
	put(t, b, "v1/a", "x")
}

// TestNoDuplicateRequests: what succeeds at once costs one request.
func TestNoDuplicateRequests(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv)
	puts, heads, gets := srv.Count(s3test.PutObject), srv.Count(s3test.HeadObject), srv.Count(s3test.GetObject)
	put(t, b, "v1/a", strings.Repeat("x", 3<<20))
	if _, err := b.Head(t.Context(), "v1/a"); err != nil {
		t.Error(err)
	}
	if _, err := objstore.ReadAll(t.Context(), b, "v1/a", 4<<20); err != nil {
		t.Error(err)
	}
	if p, h, g := srv.Count(s3test.PutObject)-puts, srv.Count(s3test.HeadObject)-heads, srv.Count(s3test.GetObject)-gets; p != 1 || h != 1 || g != 1 {
		t.Errorf("%d puts, %d heads, %d gets", p, h, g)
	}
}

// TestSpooledBody: a body that cannot be read twice and is too large for memory
// is repeated all the same, and leaves no file.
func TestSpooledBody(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir)
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv)
	data := bytes.Repeat([]byte("spool"), 4<<20)
	srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Key: "v1/a", Kind: s3test.Refuse, Status: 503})
	if err := b.PutNew(t.Context(), "v1/a", io.MultiReader(bytes.NewReader(data)), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := objstore.ReadAll(t.Context(), b, "v1/a", 1<<30); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if left := filesIn(t, dir); left != 0 {
		t.Errorf("%d files left", left)
	}
}

// TestSeekerFromItsPosition: what a seeker has been read of already is not put.
func TestSeekerFromItsPosition(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv)
	r := strings.NewReader("headbody")
	if _, err := r.Seek(4, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Key: "v1/a", Kind: s3test.Refuse, Status: 503})
	if err := b.PutNew(t.Context(), "v1/a", r, 4, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := objstore.ReadAll(t.Context(), b, "v1/a", 9); err != nil || string(got) != "body" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestChangedSource: a file that is altered between hashing and sending is an
// error, never an object.
func TestChangedSource(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv, func(c *s3.Config) { c.Attempts = 2 })
	for name, r := range map[string]io.ReadSeeker{"other": &changing{data: "aaaa", then: "bbbb"}, "shorter": &changing{data: "aaaa", then: "a"}} {
		if err := b.PutNew(t.Context(), "v1/"+name, r, 4, nil); !errors.Is(err, objstore.ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Head(t.Context(), "v1/"+name); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%s: head: %v", name, err)
		}
	}
}

// changing has other content once it was read to its end.
type changing struct {
	data, then string
	pos        int64
}

func (c *changing) Read(p []byte) (int, error) {
	if c.pos >= int64(len(c.data)) {
		c.data = c.then
		return 0, io.EOF
	}
	n := copy(p, c.data[c.pos:])
	c.pos += int64(n)
	return n, nil
}

func (c *changing) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekCurrent {
		offset += c.pos
	}
	c.pos = offset
	return offset, nil
}

func filesIn(t *testing.T, dir string) int {
	t.Helper()
	entries, err := readDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}
