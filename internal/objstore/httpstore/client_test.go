package httpstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
)

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestLostResponse is the case for which MaybeExists exists.
func TestLostResponse(t *testing.T) {
	t.Parallel()
	var lost atomic.Int32
	s := newSite(t, mem.New(), func(rt http.RoundTripper) http.RoundTripper {
		return tripper(func(r *http.Request) (*http.Response, error) {
			resp, err := rt.RoundTrip(r)
			if err == nil && lost.Add(1) == 1 {
				_ = resp.Body.Close()
				return nil, errors.New("connection reset by peer")
			}
			return resp, err
		})
	})
	signed := s.sign(t, "k", "content", time.Minute)
	put := func() (httpstore.Outcome, error) {
		return s.uploader.Put(t.Context(), signed.URL, signed.Headers, strings.NewReader("content"), 7)
	}
	outcome, err := put()
	var ue *httpstore.UploadError
	if outcome != httpstore.Undecided || !errors.As(err, &ue) || !ue.Retryable || !errors.Is(err, objstore.ErrUnavailable) {
		t.Fatalf("lost response: %v, %v", outcome, err)
	}
	if outcome, err = put(); outcome != httpstore.MaybeExists || err != nil {
		t.Errorf("repeated put: %v, %v; want MaybeExists", outcome, err)
	}
	if outcome.String() != "maybe exists" || httpstore.Created.String() != "created" || httpstore.Undecided.String() != "undecided" {
		t.Error("outcomes have wrong names")
	}
}

func TestUploadAnswers(t *testing.T) {
	t.Parallel()
	type want struct {
		outcome httpstore.Outcome
		kind    error
		retry   bool
		code    string
		after   time.Duration
	}
	for _, tt := range []struct {
		name   string
		status int
		header map[string]string
		body   string
		want   want
	}{
		{"S3", 200, map[string]string{"ETag": `"x"`}, "", want{outcome: httpstore.Created}},
		{"Azure", 201, map[string]string{"ETag": "0x8D"}, "", want{outcome: httpstore.Created}},
		{"login page", 200, nil, "<html>", want{kind: objstore.ErrUnavailable, retry: true}},
		{"login page elsewhere", 302, map[string]string{"Location": "http://login/"}, "", want{kind: objstore.ErrUnavailable, retry: true}},
		{"create-only refused", 403, nil, "", want{outcome: httpstore.MaybeExists}},
		{"exists", 409, nil, "", want{outcome: httpstore.MaybeExists}},
		{"precondition", 412, nil, "", want{outcome: httpstore.MaybeExists}},
		{"throttled", 429, map[string]string{"Retry-After": "7"}, "", want{kind: objstore.ErrUnavailable, retry: true, after: 7 * time.Second}},
		{"busy", 503, map[string]string{"Retry-After": "999999999999"}, "", want{kind: objstore.ErrUnavailable, retry: true}},
		{"busy for years", 503, map[string]string{"Retry-After": "99999999"}, "", want{kind: objstore.ErrUnavailable, retry: true, after: time.Hour}},
		{"proxy wants a password", 407, nil, "", want{kind: objstore.ErrDenied}},
		{"bad digest at S3", 400, nil, "<Error><Code>BadDigest</Code><Message>secret", want{kind: objstore.ErrMismatch, code: "BadDigest"}},
		{"bad request at Azure", 400, map[string]string{"x-ms-error-code": "InvalidHeaderValue"}, "", want{code: "InvalidHeaderValue"}},
		{"hostile code", 500, map[string]string{"x-ms-error-code": "sig=abc def"}, "", want{kind: objstore.ErrUnavailable, retry: true}},
		{"no container", 404, nil, "", want{kind: objstore.ErrUnavailable, retry: true}},
		{"too large", 413, nil, "", want{kind: objstore.ErrTooLarge}},
		{"full", 507, nil, "", want{kind: objstore.ErrNoSpace, retry: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := httpstore.NewUploader(httpstore.UploaderConfig{Transport: tripper(func(r *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(r.Body)
				if err != nil || string(body) != "content" || r.ContentLength != 7 || r.Header.Get("X-Ms-Blob-Type") != "BlockBlob" ||
					r.Header.Get("Content-Digest") == "" || r.Host != "bucket.example" {
					t.Errorf("request: %q, %v, %v, length %d, host %s", body, err, r.Header, r.ContentLength, r.Host)
				}
				h := make(http.Header)
				for k, v := range tt.header {
					h.Set(k, v)
				}
				return &http.Response{StatusCode: tt.status, Header: h, Body: io.NopCloser(strings.NewReader(tt.body)), Request: r}, nil
			})})
			outcome, err := u.Put(t.Context(), "https://store.example/c/k?sig=secret", map[string]string{
				"x-ms-blob-type": "BlockBlob", "Host": "bucket.example", "Content-Length": "7"}, strings.NewReader("content"), 7)
			if outcome != tt.want.outcome || (err == nil) != (outcome != httpstore.Undecided) {
				t.Fatalf("outcome %v, error %v; want %v", outcome, err, tt.want.outcome)
			}
			if err == nil {
				return
			}
			var ue *httpstore.UploadError
			if !errors.As(err, &ue) || ue.Retryable != tt.want.retry || ue.Code != tt.want.code || ue.Status != tt.status ||
				tt.want.kind != nil && !errors.Is(err, tt.want.kind) || tt.want.after != 0 && ue.RetryAfter != tt.want.after || ue.RetryAfter > time.Hour {
				t.Errorf("error %+v; want %+v", ue, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
}

func TestUploadHeadersKept(t *testing.T) {
	t.Parallel()
	u := httpstore.NewUploader(httpstore.UploaderConfig{Transport: tripper(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Content-Digest") != "" || r.Header.Get("Content-Md5") != "abc" {
			t.Errorf("headers: %v", r.Header)
		}
		return &http.Response{StatusCode: 201, Header: http.Header{"Etag": {"x"}}, Body: http.NoBody, Request: r}, nil
	})})
	if o, err := u.Put(t.Context(), "https://h/k", map[string]string{"Content-MD5": "abc"}, strings.NewReader(""), 0); o != httpstore.Created {
		t.Error(o, err)
	}
	_, err := u.Put(t.Context(), "https://h/k", map[string]string{"Content-Length": "5"}, strings.NewReader("xx"), 2)
	if !errors.Is(err, objstore.ErrMismatch) {
		t.Errorf("signed for another length: %v", err)
	}
	_, err = u.Put(t.Context(), "https://h/%zz?sig=secret", nil, strings.NewReader(""), 0)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("unreadable URL: %v", err)
	}
	_, err = u.Put(t.Context(), "https://h/k", nil, strings.NewReader("xx"), 3)
	if !errors.Is(err, objstore.ErrMismatch) {
		t.Errorf("body shorter than its size: %v", err)
	}
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestUploadBodyFaults uses real connections: the body fails, ends early or is
// cancelled in the middle, and nothing may become visible.
func TestUploadBodyFaults(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	broken := errors.New("spool disk broke")
	for _, tt := range []struct {
		name string
		at   func(cancel func()) error
		want error
	}{
		{"broken", func(func()) error { return broken }, broken},
		{"short", func(func()) error { return io.EOF }, objstore.ErrMismatch},
		{"cancelled", func(cancel func()) error { cancel(); return nil }, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, mem.New(), nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var fired atomic.Bool
			src := readerAt(func(p []byte, off int64) (int, error) {
				if off >= 500_000 {
					fired.Store(true)
					if err := tt.at(cancel); err != nil {
						return 0, err
					}
				}
				return bytes.NewReader(content).ReadAt(p, off)
			})
			signed := s.sign(t, "k", string(content), time.Minute)
			outcome, err := s.uploader.Put(ctx, signed.URL, signed.Headers, src, int64(len(content)))
			var ue *httpstore.UploadError
			if outcome != httpstore.Undecided || !errors.Is(err, tt.want) || !errors.As(err, &ue) || ue.Retryable {
				t.Errorf("%v, %v; want %v, not retryable", outcome, err, tt.want)
			}
			if !fired.Load() {
				t.Error("fault never fired")
			}
			// A cancelled upload may have been complete on the wire: then the
			// object is there, but whole.
			if _, err := s.Head(t.Context(), "k"); tt.name != "cancelled" && !errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("head afterwards: %v", err)
			}
			signed = s.sign(t, "k", string(content), time.Minute)
			outcome, err = s.uploader.Put(t.Context(), signed.URL, signed.Headers, bytes.NewReader(content), int64(len(content)))
			if err != nil || outcome != httpstore.Created && tt.name != "cancelled" {
				t.Errorf("second try: %v, %v", outcome, err)
			}
			if got, err := objstore.ReadAll(t.Context(), s, "k", 1<<20); err != nil || !bytes.Equal(got, content) {
				t.Errorf("content after the second try: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestStalls(t *testing.T) {
	t.Parallel()
	hang := tripper(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	})
	u := httpstore.NewUploader(httpstore.UploaderConfig{Transport: hang, StallTimeout: 20 * time.Millisecond})
	_, err := u.Put(t.Context(), "https://h/k?sig=s", nil, strings.NewReader("x"), 1)
	var ue *httpstore.UploadError
	if !errors.As(err, &ue) || !ue.Retryable || !strings.Contains(err.Error(), "no byte moved") {
		t.Errorf("stalled upload: %v", err)
	}
	r, err := httpstore.NewReader(httpstore.ReaderConfig{
		BaseURL: "https://h", Transport: hang, StallTimeout: 10 * time.Millisecond, Attempts: 2, BaseDelay: time.Millisecond,
		Tickets: func(context.Context) (string, error) { return "t", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "after 2 attempts") {
		t.Errorf("stalled head: %v", err)
	}
}

// TestServerStall: a client that stops sending does not hold the handler.
func TestServerStall(t *testing.T) {
	t.Parallel()
	s := newStallingSite(t, mem.New(), nil, 100*time.Millisecond)
	signed := s.sign(t, "k", "0123456789", time.Minute)
	pr, pw := io.Pipe()
	defer pw.Close()
	go func() { _, _ = pw.Write([]byte("01234")) }()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", signed.URL, pr)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 10
	resp, err := s.server.Client().Transport.RoundTrip(req)
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestTimeout {
			t.Errorf("status %d, want 408", resp.StatusCode)
		}
	}
	if _, err := s.bucket.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("head: %v", err)
	}
}

// TestReaderResumes breaks every answer after a few bytes.
func TestReaderResumes(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("resume me, please. "), 20_000)
	for _, tt := range []struct{ off, length int64 }{{0, -1}, {5, 200_000}, {1000, -1}} {
		b := fault.New(mem.New(), fault.Fault{Op: fault.Get, Kind: fault.Cut, At: 70_000, More: -1})
		s := newSite(t, b, nil)
		s.put(t, "k", string(content))
		body, err := s.Get(t.Context(), "k", tt.off, tt.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		end := int64(len(content))
		if tt.length >= 0 {
			end = tt.off + tt.length
		}
		if err != nil || !bytes.Equal(got, content[tt.off:end]) {
			t.Errorf("range %v: %d bytes, %v", tt, len(got), err)
		}
		if err := errors.Join(body.Close(), body.Close()); err != nil {
			t.Error(err)
		}
		b.Verify(t)
	}
}

func TestReaderGivesUp(t *testing.T) {
	t.Parallel()
	b := fault.New(mem.New(), fault.Fault{Op: fault.Get, Kind: fault.Cut, At: 100, Nth: 1}, fault.Fault{Op: fault.Get, Kind: fault.Cut, At: 0, Nth: 2, More: -1})
	s := newSite(t, b, nil)
	s.put(t, "k", strings.Repeat("x", 1000))
	got, err := objstore.ReadAll(t.Context(), s, "k", 1000)
	if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v; want ErrUnavailable", len(got), err)
	}
	if !strings.Contains(err.Error(), "k") {
		t.Errorf("error does not name the object: %v", err)
	}
	b.Verify(t)
}

func TestReaderRetriesAndLies(t *testing.T) {
	t.Parallel()
	answer := func(status int, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	tests := []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		final  error // of an endless fault
		once   bool  // a single one is retried away
	}{
		{"busy", answer(503, "Holdfast-Store", "1", "Retry-After", "3600"), objstore.ErrUnavailable, true},
		{"broken", answer(500, "Holdfast-Store", "1"), objstore.ErrUnavailable, true},
		{"login page", answer(200), objstore.ErrUnavailable, true},
		{"absence told by a stranger", answer(404), objstore.ErrUnavailable, true},
		{"absence of a route", answer(404, "Holdfast-Store", "1", "Holdfast-Error", "no-route"), objstore.ErrUnavailable, false},
		{"redirect", answer(302, "Location", "/elsewhere"), objstore.ErrUnavailable, true},
		{"denied", answer(403, "Holdfast-Store", "1"), objstore.ErrDenied, false},
		{"ticket refused", answer(401, "Holdfast-Store", "1"), objstore.ErrDenied, true},
		{"hang up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, objstore.ErrUnavailable, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, mem.New(), nil)
			s.put(t, "k", "content")
			ops := map[string]func() error{
				"head": func() error { _, err := s.Head(t.Context(), "k"); return err },
				"get":  func() error { _, err := objstore.ReadAll(t.Context(), s, "k", 10); return err },
				"list": func() error { return s.List(t.Context(), "", func(objstore.Info) error { return nil }) },
			}
			for name, op := range ops {
				for _, endless := range []bool{false, true} {
					var calls atomic.Int32
					f := func(w http.ResponseWriter, r *http.Request) bool {
						if calls.Add(1) > 1 && !endless {
							return false
						}
						tt.answer(w, r)
						return true
					}
					s.failing.Store(&f)
					err := op()
					switch {
					case !endless && tt.once && err != nil:
						t.Errorf("%s: one fault was not retried: %v", name, err)
					case endless && (!errors.Is(err, tt.final) || errors.Is(err, objstore.ErrNotExist)):
						t.Errorf("%s: %v, want %v", name, err, tt.final)
					case calls.Load() == 0:
						t.Errorf("%s: fault never fired", name)
					}
				}
			}
		})
	}
}

func TestReaderRefreshesTicket(t *testing.T) {
	t.Parallel()
	s := newSite(t, mem.New(), nil)
	s.put(t, "k", "content")
	for _, later := range []int64{0, 0, 7200, 7200} {
		s.clock.Store(later)
		if _, err := s.Head(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.tickets.Load(); n != 2 {
		t.Errorf("%d tickets were asked for, want 2", n)
	}
}

func TestReaderConfig(t *testing.T) {
	t.Parallel()
	source := func(context.Context) (string, error) { return "", errors.New("vault is down") }
	for _, c := range []httpstore.ReaderConfig{{BaseURL: "https://h"}, {Tickets: source}, {BaseURL: "https://h", Tickets: source, Attempts: -1}} {
		if _, err := httpstore.NewReader(c); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
	r, err := httpstore.NewReader(httpstore.ReaderConfig{BaseURL: "https://h", Tickets: source, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "vault is down") {
		t.Errorf("head without a ticket: %v", err)
	}
	for _, c := range []httpstore.HandlerConfig{{}, {Bucket: mem.New()}} {
		if _, err := httpstore.NewHandler(c); err == nil {
			t.Error("handler without bucket or signer")
		}
	}
}
