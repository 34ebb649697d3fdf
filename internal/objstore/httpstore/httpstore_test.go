package httpstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/file"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/objstore/objstoretest"
)

var testKey = bytes.Repeat([]byte{7}, 32)

// site is a served bucket with its clients.
type site struct {
	*httpstore.Reader
	bucket   objstore.Bucket
	server   *httptest.Server
	signer   *httpstore.Signer
	uploader *httpstore.Uploader
	clock    atomic.Int64  // seconds that the signer's clock is ahead
	tickets  atomic.Int64  // tickets issued
	log      *bytes.Buffer // of the handler; read it after the server is closed
	failing  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func (s *site) now() time.Time { return time.Now().Add(time.Duration(s.clock.Load()) * time.Second) }

func newSite(t *testing.T, bucket objstore.Bucket, rt func(http.RoundTripper) http.RoundTripper) *site {
	t.Helper()
	return newStallingSite(t, bucket, rt, 0)
}

func newStallingSite(t *testing.T, bucket objstore.Bucket, rt func(http.RoundTripper) http.RoundTripper, serverStall time.Duration) *site {
	t.Helper()
	s := &site{bucket: bucket, log: new(bytes.Buffer)}
	mux := http.NewServeMux()
	s.server = httptest.NewUnstartedServer(mux)
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	var err error
	if s.signer, err = httpstore.NewSigner(httpstore.SignerConfig{BaseURL: s.server.URL, Key: testKey, Now: s.now}); err != nil {
		t.Fatal(err)
	}
	var logMu sync.Mutex
	h, err := httpstore.NewHandler(httpstore.HandlerConfig{
		Bucket: bucket, Signer: s.signer, StallTimeout: serverStall,
		Log: slog.New(slog.NewTextHandler(lockedWriter{&logMu, s.log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if f := s.failing.Load(); f != nil && (*f)(w, r) {
			return
		}
		h.ServeHTTP(w, r)
	})
	base := s.server.Client().Transport.(*http.Transport)
	base.MaxIdleConnsPerHost = 32 // the default of 2 means a handshake for nearly every object
	var transport http.RoundTripper = base
	if rt != nil {
		transport = rt(transport)
	}
	s.uploader = httpstore.NewUploader(httpstore.UploaderConfig{Transport: transport})
	s.Reader, err = httpstore.NewReader(httpstore.ReaderConfig{
		BaseURL: s.server.URL, Transport: transport, BaseDelay: time.Millisecond, MaxDelay: 4 * time.Millisecond,
		Tickets: func(context.Context) (string, error) {
			s.tickets.Add(1)
			return s.signer.Ticket("", s.now().Add(time.Hour))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// PutNew puts by a signed URL; what the client may only guess is asked of the
// bucket, as the vault would.
func (s *site) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	if err := objstore.ValidateKey(key); err != nil {
		return err
	}
	if size < 0 {
		return objstore.ErrMismatch
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(data)
	if sum != nil {
		digest = *sum
	}
	signed, err := s.signer.SignPut(ctx, key, size, digest, s.now().Add(time.Minute))
	if err != nil {
		return err
	}
	outcome, err := s.uploader.Put(ctx, signed.URL, signed.Headers, bytes.NewReader(data), int64(len(data)))
	var ue *httpstore.UploadError
	switch {
	case errors.As(err, &ue) && ue.Status == http.StatusRequestEntityTooLarge:
		return errors.Join(err, objstore.ErrMismatch)
	case err != nil:
		return err
	case outcome == httpstore.Created:
		return nil
	}
	if _, err := s.bucket.Head(ctx, key); err != nil {
		return fmt.Errorf("outcome %v, but: %w", outcome, err)
	}
	return objstore.ErrExists
}

func (s *site) Delete(ctx context.Context, key string) error { return s.bucket.Delete(ctx, key) }

func (s *site) put(t *testing.T, key, content string) {
	t.Helper()
	if err := s.bucket.PutNew(t.Context(), key, strings.NewReader(content), int64(len(content)), nil); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("mem", func(t *testing.T) {
		objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return newSite(t, mem.New(), nil) })
	})
	t.Run("file", func(t *testing.T) {
		objstoretest.Run(t, func(t *testing.T) objstore.Bucket {
			b, err := file.Open(t.Context(), file.Config{Dir: t.TempDir(), Create: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			return newSite(t, b, nil)
		})
	})
}

// request sends a PUT as no proper client would.
func (s *site) request(t *testing.T, method, url string, header map[string]string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := s.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp
}

func (s *site) sign(t *testing.T, key, content string, valid time.Duration) objstore.SignedURL {
	t.Helper()
	signed, err := s.signer.SignPut(t.Context(), key, int64(len(content)), sha256.Sum256([]byte(content)), s.now().Add(valid))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestPutStatus(t *testing.T) {
	t.Parallel()
	const content = "twelve bytes"
	sub := func(old, new string) func(string) string {
		return func(u string) string {
			out := strings.Replace(u, old, new, 1)
			if out == u {
				panic("nothing replaced in " + u)
			}
			return out
		}
	}
	tests := []struct {
		name   string
		url    func(string) string
		header map[string]string
		body   io.Reader
		later  int64
		want   int
		code   string
	}{
		{name: "good", want: 201},
		{name: "without optional headers", want: 201},
		{name: "expired within the skew", later: 60 + 240, want: 201},
		{name: "expired", later: 60 + 320, want: 403, code: "expired"},
		{name: "other key", url: sub("/o/k/a", "/o/k/b"), want: 403, code: "bad-signature"},
		{name: "other size", url: sub("size=12", "size=13"), want: 403, code: "bad-signature"},
		{name: "other digest", url: sub("sha256=", "sha256=00"), want: 403, code: "bad-signature"},
		{name: "other version", url: sub("v=1", "v=2"), want: 403, code: "bad-signature"},
		{name: "later expiry", url: sub("exp=", "exp=9"), want: 403, code: "bad-signature"},
		{name: "no signature", url: sub("sig=", "sog="), want: 403, code: "bad-signature"},
		{name: "doubled field", url: sub("size=12", "size=12&size=12"), want: 403, code: "bad-signature"},
		{name: "no length", body: io.MultiReader(strings.NewReader(content)), want: 411, code: "length-required"},
		{name: "too long", body: strings.NewReader(content + "!"), want: 413, code: "too-large"},
		{name: "too short", body: strings.NewReader(content[1:]), want: 400, code: "mismatch"},
		{name: "other content", body: strings.NewReader("Twelve bytes"), want: 400, code: "mismatch"},
		{name: "other digest header", header: map[string]string{"Content-Digest": "sha-256=:AAAA:"}, want: 400, code: "mismatch"},
		{name: "unknown digest header", header: map[string]string{"Content-Digest": "crc32=:AAAA:"}, want: 201},
		{name: "no such route", url: sub("/store/v1/o/", "/store/v2/o/"), want: 404, code: "no-route"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, mem.New(), nil)
			signed := s.sign(t, "k/a", content, time.Minute)
			u := signed.URL
			if tt.url != nil {
				u = tt.url(u)
			}
			if tt.body == nil {
				tt.body = strings.NewReader(content)
			}
			s.clock.Store(tt.later)
			resp := s.request(t, "PUT", u, tt.header, tt.body)
			if resp.StatusCode != tt.want || resp.Header.Get("Holdfast-Error") != tt.code || resp.Header.Get("Holdfast-Store") != "1" {
				t.Errorf("status %d, code %q, want %d, %q", resp.StatusCode, resp.Header.Get("Holdfast-Error"), tt.want, tt.code)
			}
			_, err := s.bucket.Head(t.Context(), "k/a")
			if (err == nil) != (tt.want == 201) {
				t.Errorf("head after status %d: %v", tt.want, err)
			}
			if tt.want == 201 {
				resp = s.request(t, "PUT", u, nil, strings.NewReader(content))
				if resp.StatusCode != 409 {
					t.Errorf("second put: status %d, want 409", resp.StatusCode)
				}
			}
		})
	}
}

func TestPutStoreFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		err     error
		want    int
		kind    error
		outcome httpstore.Outcome
	}{
		{"no space", objstore.ErrNoSpace, 507, objstore.ErrNoSpace, httpstore.Undecided},
		{"read-only", objstore.ErrReadOnly, 503, objstore.ErrReadOnly, httpstore.Undecided},
		{"unavailable", objstore.ErrUnavailable, 503, objstore.ErrUnavailable, httpstore.Undecided},
		{"exists", objstore.ErrExists, 409, nil, httpstore.MaybeExists},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := fault.New(mem.New(), fault.Fault{Op: fault.Put, Kind: fault.ErrorBefore, Err: tt.err, More: 1})
			s := newSite(t, b, nil)
			content := strings.Repeat("x", 3<<20) // more than the server drains by itself
			signed := s.sign(t, "k", content, time.Minute)
			resp := s.request(t, "PUT", signed.URL, nil, strings.NewReader(content))
			if resp.StatusCode != tt.want || tt.want == 503 && resp.Header.Get("Retry-After") == "" {
				t.Errorf("status %d, Retry-After %q, want %d", resp.StatusCode, resp.Header.Get("Retry-After"), tt.want)
			}
			outcome, err := s.uploader.Put(t.Context(), signed.URL, signed.Headers, strings.NewReader(content), int64(len(content)))
			if outcome != tt.outcome || !errors.Is(err, tt.kind) {
				t.Errorf("upload: %v, %v; want %v, %v", outcome, err, tt.outcome, tt.kind)
			}
			var ue *httpstore.UploadError
			if err != nil && (!errors.As(err, &ue) || !ue.Retryable || strings.Contains(err.Error(), "sig=")) {
				t.Errorf("upload error %v is not a retryable one without secrets", err)
			}
			b.Verify(t)
		})
	}
}

func TestTickets(t *testing.T) {
	t.Parallel()
	s := newSite(t, mem.New(), nil)
	s.put(t, "m/a/x", "one")
	s.put(t, "m/ab/x", "two")
	ticket := func(prefix string, valid time.Duration) string {
		text, err := s.signer.Ticket(prefix, s.now().Add(valid))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	other, err := httpstore.NewSigner(httpstore.SignerConfig{BaseURL: s.server.URL, Key: bytes.Repeat([]byte{8}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := other.Ticket("m/a/", time.Now().Add(time.Hour))
	mine := ticket("m/a/", time.Minute)
	for _, tt := range []struct {
		name, ticket, path string
		want               int
	}{
		{"own folder", mine, "o/m/a/x", 200},
		{"own list", mine, "l?prefix=m/a/", 200},
		{"own list below", mine, "l?prefix=m/a/x", 200},
		{"neighbour with a longer name", mine, "o/m/ab/x", 403},
		{"list above", mine, "l?prefix=m/a", 403},
		{"list of all", mine, "l", 403},
		{"list escaping", mine, "l?prefix=m/a/../", 400},
		{"absent", mine, "o/m/a/y", 404},
		{"climbing", mine, "o/m/a/%2e%2e/ab/x", 400},
		{"none", "", "o/m/a/x", 401},
		{"garbage", "x.y", "o/m/a/x", 401},
		{"expired", ticket("m/a/", -6*time.Minute), "o/m/a/x", 401},
		{"expired within the skew", ticket("m/a/", -4*time.Minute), "o/m/a/x", 200},
		{"of another store", foreign, "o/m/a/x", 401},
		{"claims of one, signature of another", strings.Split(ticket("", time.Minute), ".")[0] + "." + strings.Split(mine, ".")[1], "o/m/a/x", 401},
		{"bad limit", mine, "l?prefix=m/a/&limit=x", 400},
	} {
		resp := s.request(t, "GET", s.server.URL+"/store/v1/"+tt.path, map[string]string{"Holdfast-Read-Ticket": tt.ticket}, nil)
		if resp.StatusCode != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, resp.StatusCode, tt.want)
		}
	}
	for _, prefix := range []string{"m/a", "/", "M/", "m//"} {
		if _, err := s.signer.Ticket(prefix, time.Now()); !errors.Is(err, objstore.ErrInvalidKey) {
			t.Errorf("ticket for %q: %v", prefix, err)
		}
	}
	// A put signature is no ticket, and a ticket opens no PUT.
	signed := s.sign(t, "m/a/new", "x", time.Minute)
	resp := s.request(t, "GET", signed.URL, nil, nil)
	if resp.StatusCode != 401 {
		t.Errorf("GET with a put signature: status %d", resp.StatusCode)
	}
	resp = s.request(t, "PUT", s.server.URL+"/store/v1/o/m/a/new", map[string]string{"Holdfast-Read-Ticket": mine}, strings.NewReader("x"))
	if resp.StatusCode != 403 {
		t.Errorf("PUT with a ticket: status %d", resp.StatusCode)
	}
	resp = s.request(t, "DELETE", s.server.URL+"/store/v1/o/m/a/x", map[string]string{"Holdfast-Read-Ticket": ticket("", time.Hour)}, nil)
	if resp.StatusCode != 405 {
		t.Errorf("DELETE: status %d", resp.StatusCode)
	}
}

func TestPreviousKey(t *testing.T) {
	t.Parallel()
	s := newSite(t, mem.New(), nil)
	signed := s.sign(t, "k", "x", time.Minute)
	renewed, err := httpstore.NewSigner(httpstore.SignerConfig{BaseURL: s.server.URL, Key: bytes.Repeat([]byte{9}, 32), Previous: [][]byte{testKey}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: s.bucket, Signer: renewed})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("PUT", signed.URL, strings.NewReader("x")))
	if w.Code != 201 {
		t.Errorf("put signed with the previous key: status %d", w.Code)
	}
	for _, c := range []httpstore.SignerConfig{
		{BaseURL: s.server.URL, Key: testKey[1:]}, {BaseURL: "vault:8443", Key: testKey}, {BaseURL: "https://u:p@h", Key: testKey},
		{BaseURL: s.server.URL, Key: testKey, Previous: [][]byte{nil}},
	} {
		if _, err := httpstore.NewSigner(c); err == nil {
			t.Errorf("signer accepts %q with a key of %d bytes", c.BaseURL, len(c.Key))
		}
	}
}

func TestRangeHeaders(t *testing.T) {
	t.Parallel()
	s := newSite(t, mem.New(), nil)
	s.put(t, "k", "0123456789")
	ticket, _ := s.signer.Ticket("", s.now().Add(time.Hour))
	for _, tt := range []struct {
		header string
		status int
		ranged string
		length int64
	}{
		{"", 200, "", 10},
		{"bytes=0-", 206, "bytes 0-9/10", 10},
		{"bytes=3-5", 206, "bytes 3-5/10", 3},
		{"bytes=3-99999999999999999999", 206, "bytes 3-9/10", 7},
		{"bytes=-4", 206, "bytes 6-9/10", 4},
		{"bytes=-400", 206, "bytes 0-9/10", 10},
		{"bytes=-0", 416, "bytes */10", -1},
		{"bytes=10-", 416, "bytes */10", -1},
		{"bytes=99999999999999999999-", 416, "bytes */10", -1},
		{"bytes=5-3", 200, "", 10},
		{"bytes=0-1,3-4", 200, "", 10},
		{"lines=1-2", 200, "", 10},
		{"bytes=-", 200, "", 10},
		{"bytes=a-b", 200, "", 10},
		{"bytes=+1-2", 200, "", 10},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			resp := s.request(t, method, s.server.URL+"/store/v1/o/k", map[string]string{"Holdfast-Read-Ticket": ticket, "Range": tt.header}, nil)
			if resp.StatusCode != tt.status || resp.Header.Get("Content-Range") != tt.ranged || tt.length >= 0 && resp.ContentLength != tt.length {
				t.Errorf("%s %q: status %d, range %q, length %d; want %d, %q, %d", method, tt.header, resp.StatusCode,
					resp.Header.Get("Content-Range"), resp.ContentLength, tt.status, tt.ranged, tt.length)
			}
		}
	}
}

func TestNothingSecretInTheLog(t *testing.T) {
	t.Parallel()
	b := fault.New(mem.New(), fault.Fault{Op: fault.Put, Kind: fault.ErrorBefore}, fault.Fault{Op: fault.Head, Kind: fault.ErrorBefore})
	s := newSite(t, b, nil)
	signed := s.sign(t, "k", "x", time.Minute)
	_, err := s.uploader.Put(t.Context(), signed.URL, signed.Headers, strings.NewReader("x"), 1)
	if err == nil || strings.Contains(err.Error(), "sig=") {
		t.Errorf("upload error: %v", err)
	}
	if _, err := s.Head(t.Context(), "k"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("head, second attempt: %v", err)
	}
	dead := strings.Replace(signed.URL, s.server.URL, "https://127.0.0.1:1", 1)
	_, err = s.uploader.Put(t.Context(), dead, signed.Headers, strings.NewReader("x"), 1)
	if !errors.Is(err, objstore.ErrUnavailable) || strings.Contains(err.Error(), "sig=") {
		t.Errorf("upload to a dead host: %v", err)
	}
	s.server.Close()
	log := s.log.String()
	if !strings.Contains(log, "level=ERROR") || strings.Contains(log, "sig=") || strings.Contains(log, "icket") {
		t.Errorf("log: %s", log)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", signed, signed, signed, signed.LogValue()); strings.Contains(text, "sig=") {
		t.Errorf("a signed URL prints its signature: %s", text)
	}
	b.Verify(t)
}
