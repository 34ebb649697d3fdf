package reach_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/reach"
)

// bin is a store that takes signed requests.
type bin struct {
	mu     sync.Mutex
	data   map[string][]byte
	status int
	url    string
	slow   time.Duration
}

func newBin(t *testing.T) *bin {
	t.Helper()
	b := &bin{data: map[string][]byte{}}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	b.url = s.URL
	return b
}

func (b *bin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	sum := fmt.Sprintf("%x", sha256.Sum256(raw))
	time.Sleep(b.slow)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status != 0 || err != nil || r.Method != http.MethodPut || r.Header.Get("X-Sum") != sum || r.URL.Query().Get("sig") != "geheim" {
		w.Header().Set("X-Ms-Error-Code", "AuthenticationFailed")
		w.WriteHeader(cmp.Or(b.status, 400))
		return
	}
	b.data[r.URL.Path] = raw
	w.WriteHeader(http.StatusCreated)
}

func (b *bin) load(t *testing.T) reach.Load {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return reach.Load{Transport: tr, Size: 1 << 20, Objects: 3, Parallel: 2,
		Sign: func(_ context.Context, n int, size int64, sum [32]byte) (objstore.SignedURL, error) {
			if size != 1<<20 {
				return objstore.SignedURL{}, errors.New("size")
			}
			return objstore.SignedURL{URL: fmt.Sprintf("%s/%d?sig=geheim", b.url, n), Headers: map[string]string{"X-Sum": fmt.Sprintf("%x", sum)}}, nil
		},
		Fetch: func(_ context.Context, n int) (io.ReadCloser, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return io.NopCloser(bytes.NewReader(b.data[fmt.Sprintf("/%d", n)])), nil
		}}
}

func TestThroughput(t *testing.T) {
	t.Parallel()
	t.Run("skipped", func(t *testing.T) {
		t.Parallel()
		if s := reach.Throughput(t.Context(), reach.Load{Why: "the store is the vault's own"}); s.Status != reach.Skipped || s.Detail != "the store is the vault's own" {
			t.Errorf("%+v", s)
		}
		if s := reach.Throughput(t.Context(), reach.Load{}); s.Status != reach.Skipped || !strings.Contains(s.Detail, "signed") {
			t.Errorf("%+v", s)
		}
	})
	t.Run("up and down", func(t *testing.T) {
		t.Parallel()
		b := newBin(t)
		s := reach.Throughput(t.Context(), b.load(t))
		if s.Status != reach.OK || s.Up <= 0 || s.Down <= 0 || s.Sent != 3 || len(b.data) != 3 || !strings.Contains(s.Detail, "MB/s down") {
			t.Errorf("%+v, %d objects", s, len(b.data))
		}
		if bytes.Equal(b.data["/0"], b.data["/1"]) {
			t.Error("objects are the same")
		}
		l := b.load(t)
		l.Fetch = nil
		if s := reach.Throughput(t.Context(), l); s.Status != reach.OK || s.Down != 0 || strings.Contains(s.Detail, "down") {
			t.Errorf("%+v", s)
		}
	})
	t.Run("need", func(t *testing.T) {
		t.Parallel()
		b := newBin(t)
		b.slow = 100 * time.Millisecond // 3 MiB take 200 ms at least
		for need, want := range map[int64]string{1: reach.OK, 1 << 40: reach.Failed} {
			l := b.load(t)
			l.Need = need
			if s := reach.Throughput(t.Context(), l); s.Status != want || !strings.Contains(s.Detail, "changes need") || (want == reach.Failed) != (s.Remedy != "") {
				t.Errorf("need %d: %+v", need, s)
			}
		}
	})
	for name, c := range map[string]struct {
		spoil func(*bin, *reach.Load)
		words []string
	}{
		"refused":    {func(b *bin, _ *reach.Load) { b.status = 403 }, []string{"403", "AuthenticationFailed"}},
		"redirected": {func(b *bin, _ *reach.Load) { b.status = 302 }, []string{"302"}},
		"no store": {func(_ *bin, l *reach.Load) {
			l.Sign = func(context.Context, int, int64, [32]byte) (objstore.SignedURL, error) {
				return objstore.SignedURL{URL: "http://127.0.0.1:1/x?sig=geheim"}, nil
			}
		}, []string{"refused"}},
		"no URL": {func(_ *bin, l *reach.Load) {
			l.Sign = func(context.Context, int, int64, [32]byte) (objstore.SignedURL, error) {
				return objstore.SignedURL{URL: "http://[geheim/x?sig=geheim"}, nil
			}
		}, []string{"no URL"}},
		"no signature": {func(_ *bin, l *reach.Load) {
			l.Sign = func(context.Context, int, int64, [32]byte) (objstore.SignedURL, error) {
				return objstore.SignedURL{}, dr.Errorf(dr.KindForbidden, "x", "may not").WithHint("Ask the owner.")
			}
		}, []string{"may not", "Ask the owner."}},
		"other bytes": {func(_ *bin, l *reach.Load) {
			l.Fetch = func(context.Context, int) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("no")), nil }
		}, []string{"not what was written"}},
		"can't be read": {func(_ *bin, l *reach.Load) {
			l.Fetch = func(context.Context, int) (io.ReadCloser, error) { return nil, errors.New("gone") }
		}, []string{"gone"}},
		"too slow": {func(b *bin, l *reach.Load) { b.slow, l.Timeout = time.Second, 100*time.Millisecond }, []string{"no answer in time"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBin(t)
			l := b.load(t)
			c.spoil(b, &l)
			s := reach.Throughput(t.Context(), l)
			if s.Status != reach.Failed || s.Remedy == "" || strings.Contains(fmt.Sprintf("%+v", s), "geheim") {
				t.Errorf("%+v", s)
			}
			for _, w := range c.words {
				if !strings.Contains(s.Detail+s.Remedy, w) {
					t.Errorf("it does not say %q: %+v", w, s)
				}
			}
		})
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		b := newBin(t)
		ctx, cancel := context.WithCancel(t.Context())
		l := b.load(t)
		sign := l.Sign
		l.Sign = func(ctx context.Context, n int, size int64, sum [32]byte) (objstore.SignedURL, error) {
			if n == 2 {
				cancel()
			}
			return sign(ctx, n, size, sum)
		}
		if s := reach.Throughput(ctx, l); s.Status != reach.Failed || len(b.data) != 0 || s.Sent != 3 {
			t.Errorf("%+v, %d objects", s, len(b.data))
		}
	})
}
