package s3_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/s3"
	"holdfast/internal/objstore/s3/s3test"
)

func TestSignedURLsOnModel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]s3test.Config{"plain": {}, "versioned": {Versioned: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			attackSigned(t, open(t, s3test.Start(t, c)), directTransport(t))
		})
	}
}

func directTransport(t *testing.T) *http.Transport {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func TestSignPutLimits(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := open(t, srv)
	ctx, later := t.Context(), time.Now().Add(time.Hour)
	for name, tt := range map[string]struct {
		key     string
		size    int64
		expires time.Time
		want    error
	}{
		"bad key":   {"A", 1, later, objstore.ErrInvalidKey},
		"negative":  {"a", -1, later, objstore.ErrMismatch},
		"too large": {"a", s3.MaxObject + 1, later, objstore.ErrTooLarge},
		"expired":   {"a", 1, time.Now(), nil},
		"too long":  {"a", 1, time.Now().Add(8 * 24 * time.Hour), nil},
	} {
		if _, err := b.SignPut(ctx, tt.key, tt.size, [32]byte{}, tt.expires); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := open(t, srv, func(c *s3.Config) { c.ReadOnly = true }).SignPut(ctx, "a", 1, [32]byte{}, later); !errors.Is(err, objstore.ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
	// The URL ends when it was asked to end.
	data := []byte("x")
	signed, err := b.SignPut(ctx, "v1/late", 1, sha(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(signed.String(), "Signature") {
		t.Errorf("shown as %s", signed)
	}
	srv.SetClock(2 * time.Minute)
	if status := rawRequest(t, &http.Client{Transport: directTransport(t)}, http.MethodPut, signed.URL, signed.Headers, data, func(http.Header) {}); status != http.StatusForbidden {
		t.Errorf("after its time: status %d", status)
	}
}

func TestRetentionOnModel(t *testing.T) {
	t.Parallel()
	for _, deny := range []bool{false, true} {
		for _, mode := range []string{s3.Governance, s3.Compliance} {
			t.Run(mode, func(t *testing.T) {
				t.Parallel()
				srv := s3test.Start(t, s3test.Config{ObjectLock: true, DenyLockedDelete: deny})
				b := open(t, srv, func(c *s3.Config) { c.RetainMode, c.RetainFor = mode, time.Hour })
				attackRetained(t, b, open(t, srv), directTransport(t))

				// Set at the put, never shorter than asked for.
				before := time.Now()
				put(t, b, "v1/fresh", "x")
				got, until := srv.Lock("Team_A/holdfast/v1/fresh")
				if got != mode || until.Before(before.Add(time.Hour)) || until.After(time.Now().Add(time.Hour+time.Second)) {
					t.Errorf("locked with %s until %v", got, until)
				}
			})
		}
	}
}

func TestRetain(t *testing.T) {
	t.Parallel()
	ctx, at := t.Context(), "Team_A/holdfast/v1/a"
	srv := s3test.Start(t, s3test.Config{ObjectLock: true})
	weak := open(t, srv, func(c *s3.Config) { c.RetainMode = s3.Governance })
	strong := open(t, srv, func(c *s3.Config) { c.RetainMode = s3.Compliance })
	put(t, weak, "v1/a", "x")
	if mode, _ := srv.Lock(at); mode != "" {
		t.Fatalf("a put without RetainFor locked with %s", mode)
	}
	step := func(b *s3.Bucket, until time.Time, wantMode string, wantUntil time.Time) {
		t.Helper()
		if err := b.Retain(ctx, "v1/a", until); err != nil {
			t.Error(err)
		}
		if mode, got := srv.Lock(at); mode != wantMode || got.Before(wantUntil) || got.After(wantUntil.Add(time.Second)) {
			t.Errorf("locked with %s until %v, wanted %s, %v", mode, got, wantMode, wantUntil)
		}
	}
	hour, day := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	step(weak, hour, s3.Governance, hour)
	step(weak, day, s3.Governance, day)
	step(weak, hour, s3.Governance, day)
	step(strong, hour, s3.Compliance, day) // stronger, and never shorter
	step(weak, hour, s3.Compliance, day)
	step(weak, day.Add(time.Hour), s3.Compliance, day.Add(time.Hour))

	// Somebody is faster between the look and the request.
	put(t, weak, "v1/b", "x")
	srv.Inject(t, s3test.Fault{Op: s3test.PutObjectRetention, Key: "v1/b", Kind: s3test.Refuse, Status: 403, Code: "AccessDenied"})
	if err := weak.Retain(ctx, "v1/b", hour); !errors.Is(err, objstore.ErrDenied) {
		t.Errorf("refused: %v", err)
	}
	srv.Inject(t, s3test.Fault{Op: s3test.PutObjectRetention, Key: "v1/b", Kind: s3test.LoseAnswer})
	if err := weak.Retain(ctx, "v1/b", hour); err != nil {
		t.Errorf("lost answer: %v", err)
	}
	if err := weak.Retain(ctx, "v1/b", time.Now().Add(-time.Hour)); err == nil {
		t.Error("retention in the past was taken")
	}
	if err := open(t, srv).Retain(ctx, "v1/b", hour); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("switched off: %v", err)
	}
	if err := weak.Delete(ctx, "v1/b"); !errors.Is(err, objstore.ErrDenied) {
		t.Errorf("delete: %v", err)
	}
	if err := weak.Delete(ctx, "v1/absent"); err != nil {
		t.Errorf("delete of what is absent: %v", err)
	}
}

// TestRetentionEnds: after its date an object can go.
func TestRetentionEnds(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{ObjectLock: true, DenyLockedDelete: true})
	b := open(t, srv, func(c *s3.Config) { c.RetainMode, c.RetainFor = s3.Compliance, 500*time.Millisecond })
	put(t, b, "v1/a", "x")
	_, until := srv.Lock("Team_A/holdfast/v1/a")
	err := b.Delete(t.Context(), "v1/a")
	for errors.Is(err, objstore.ErrDenied) && time.Now().Before(until.Add(5*time.Second)) {
		time.Sleep(time.Until(until))
		err = b.Delete(t.Context(), "v1/a")
	}
	if err != nil || time.Now().Before(until) {
		t.Errorf("deleted at %v, kept until %v: %v", time.Now(), until, err)
	}
}

// TestUnfitStores: Open names what is wrong with stores that are not what they
// should be, and nothing is written through them.
func TestUnfitStores(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		server s3test.Config
		change func(*s3.Config)
		kind   error
		say    string
		sign   bool // only signing is refused
	}{
		"ignores If-None-Match": {server: s3test.Config{IgnoreIfNoneMatch: true}, kind: objstore.ErrUnavailable, say: "ignores If-None-Match"},
		"has no If-None-Match":  {server: s3test.Config{RefuseIfNoneMatch: true}, kind: objstore.ErrUnavailable, say: "has no If-None-Match"},
		"ignores checksums":     {server: s3test.Config{IgnoreChecksum: true}, kind: objstore.ErrUnavailable, say: "does not check x-amz-checksum-sha256", sign: true},
		"has no Object Lock":    {server: s3test.Config{IgnoreObjectLock: true}, change: func(c *s3.Config) { c.RetainMode = s3.Governance }, kind: objstore.ErrUnavailable, say: "has no Object Lock"},
		"is another bucket":     {change: func(c *s3.Config) { c.Bucket = "other" }, kind: objstore.ErrUnavailable, say: `no bucket "other"`},
		"is in another region":  {change: func(c *s3.Config) { c.Region = "eu-test-2" }, kind: objstore.ErrUnavailable, say: "eu-test-1"},
		"knows another secret":  {change: func(c *s3.Config) { c.SecretAccessKey = "wrong" }, kind: objstore.ErrDenied, say: "SignatureDoesNotMatch"},
		"knows no such key":     {change: func(c *s3.Config) { c.AccessKeyID = "wrong" }, kind: objstore.ErrDenied, say: "InvalidAccessKeyId"},
		"wants signatures": {change: func(c *s3.Config) { c.Anonymous, c.AccessKeyID, c.SecretAccessKey = true, "", "" },
			kind: objstore.ErrDenied, say: "AccessDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := s3test.Start(t, tt.server)
			c := settings(srv)
			if tt.change != nil {
				tt.change(&c)
			}
			b := newBucket(t, c)
			check := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, tt.kind) || errors.Is(err, objstore.ErrNotExist) || !strings.Contains(err.Error(), tt.say) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if tt.sign {
				if err := b.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				check("open", b.Open(t.Context()))
				check("put", b.PutNew(t.Context(), "v1/a", strings.NewReader("x"), 1, nil))
			}
			for range 2 { // also when the traces of the first look are there
				_, err := b.SignPut(t.Context(), "v1/a", 1, sha([]byte("x")), time.Now().Add(time.Minute))
				check("sign", err)
			}
			for _, key := range srv.Keys() {
				if !strings.HasSuffix(key, "/probe/create-only") {
					t.Errorf("left behind: %s", key)
				}
			}
		})
	}
}

// TestProbeOnce: what was proved is not asked again.
func TestProbeOnce(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	b := newBucket(t, settings(srv))
	put(t, b, "v1/a", "x") // without Open: does it on its own
	if n := srv.Count(s3test.PutObject); n != 3 {
		t.Errorf("%d puts for a new place, wanted two of the probe and one", n)
	}
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, b, "v1/b", "x")
	if n := srv.Count(s3test.PutObject); n != 4 {
		t.Errorf("%d puts, wanted one more", n)
	}
	open(t, srv)
	if n := srv.Count(s3test.PutObject); n != 5 {
		t.Errorf("%d puts: a known place needs one probe", n)
	}
	// A failed proof is asked again.
	c := settings(srv)
	c.Attempts = 1
	b = newBucket(t, c)
	srv.Inject(t, s3test.Fault{Op: s3test.PutObject, Kind: s3test.Refuse, Status: 503, Code: "SlowDown"})
	if err := b.Open(t.Context()); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	if err := b.Open(t.Context()); err != nil {
		t.Errorf("open again: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	put(t, open(t, srv), "v1/a", "x")
	srv.Deny(s3test.PutObject, true)
	srv.Deny(s3test.DeleteObject, true)
	b := open(t, srv, func(c *s3.Config) { c.ReadOnly = true })
	if got, err := objstore.ReadAll(t.Context(), b, "v1/a", 9); err != nil || string(got) != "x" {
		t.Errorf("read: %q, %v", got, err)
	}
	puts := srv.Count(s3test.PutObject)
	for what, err := range map[string]error{
		"put":    b.PutNew(t.Context(), "v1/b", strings.NewReader("x"), 1, nil),
		"delete": b.Delete(t.Context(), "v1/a"),
	} {
		if !errors.Is(err, objstore.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if srv.Count(s3test.PutObject) != puts {
		t.Error("a read-only store was written to")
	}
	c := settings(srv)
	c.Bucket, c.ReadOnly = "other", true
	if err := newBucket(t, c).Open(t.Context()); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("open of a missing bucket: %v", err)
	}
}

// TestVirtualHosted: the bucket in the name of the host, as with AWS.
func TestVirtualHosted(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{})
	tr := directTransport(t)
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(srv.URL(), "http://"))
	}
	b := open(t, srv, func(c *s3.Config) { c.PathStyle, c.Endpoint, c.Transport = false, "http://s3.example.test", tr })
	attackSigned(t, b, tr)
}

// TestForeignObjects: names of other programs are passed over, in and around the
// prefix.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{PageSize: 3})
	b := open(t, srv)
	for _, key := range []string{
		"Team_A/holdfastx/v1/a", "Team_A/other", "Team_A/holdfast/v1/", "Team_A/holdfast/V1/UPPER", "Team_A/holdfast/v1/a b", "Team_A/holdfast/v1/a%2fb",
		"Team_A/holdfast/v1/a+b", "Team_A/holdfast/v1/\x01", "Team_A/holdfast/v1/é", "Team_A/holdfast/v1/a//b",
	} {
		srv.Set(key, []byte("foreign"))
	}
	put(t, b, "v1/a", "x")
	put(t, b, "v1/z", "x")
	var got []string
	err := b.List(t.Context(), "v1/", func(i objstore.Info) error { got = append(got, i.Key); return nil })
	if err != nil || strings.Join(got, " ") != "v1/a v1/z" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestListOutOfOrder(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{ReverseOrder: true})
	b := open(t, srv)
	put(t, b, "v1/a", "x")
	put(t, b, "v1/b", "x")
	err := b.List(t.Context(), "v1/", func(objstore.Info) error { return nil })
	if !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "in order") {
		t.Errorf("%v", err)
	}
}

// TestVersionedDelete: a delete marker makes a key absent and free again, and the
// former version stays.
func TestVersionedDelete(t *testing.T) {
	t.Parallel()
	srv := s3test.Start(t, s3test.Config{Versioned: true})
	b := open(t, srv)
	put(t, b, "v1/a", "first")
	if err := b.Delete(t.Context(), "v1/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Head(t.Context(), "v1/a"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("head: %v", err)
	}
	put(t, b, "v1/a", "second")
	if n := srv.Versions("Team_A/holdfast/v1/a"); n != 3 {
		t.Errorf("%d versions, wanted the first, the marker and the second", n)
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	b := newBucket(t, s3.Config{Bucket: "bucket"})
	if err := b.PutNew(t.Context(), "a", strings.NewReader("x"), s3.MaxObject+1, nil); !errors.Is(err, objstore.ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

// TestEnvironment finds credentials, region and endpoint where the SDK looks, and
// says so when there are none.
func TestEnvironment(t *testing.T) {
	srv := s3test.Start(t, s3test.Config{})
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "credentials"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	c := s3.Config{Bucket: srv.Bucket(), Endpoint: srv.URL(), Region: srv.Region(), PathStyle: true}

	b := newBucket(t, c)
	err := b.Open(t.Context())
	if !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
	if _, err := b.Head(t.Context(), "v1/a"); !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("head without credentials: %v", err)
	}
	text := "[default]\naws_access_key_id = " + s3test.AccessKey + "\naws_secret_access_key = " + s3test.SecretKey + "\n"
	if err := os.WriteFile(filepath.Join(dir, "credentials"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Open(t.Context()); err != nil {
		t.Errorf("credentials from the file, the same Bucket: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "credentials")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	t.Setenv("AWS_ENDPOINT_URL_S3", srv.URL())
	c.Endpoint, c.Region = "", ""
	err = newBucket(t, c).Open(t.Context())
	if !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "no region") {
		t.Errorf("without region: %v", err)
	}
	t.Setenv("AWS_REGION", srv.Region())
	if err := newBucket(t, c).Open(t.Context()); err != nil {
		t.Errorf("all from the environment: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte("[default\nnonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newBucket(t, c).Open(t.Context()); err != nil && !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("unreadable configuration: %v", err)
	}
}
