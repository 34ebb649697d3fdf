package upload_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/pace"
	"holdfast/internal/upload"
)

// strict is a store that looks at the URL's age at the end of the body, too,
// and at its silence on the way.
type strict struct {
	v       *vault
	stall   time.Duration
	refused int // URLs that were too old at the end
	silent  time.Duration
	most    int64 // bytes in any one second
}

func (s *strict) Put(_ context.Context, _ string, _ map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, error) {
	expires := time.Now().Add(s.v.life)
	r, buf, last, got := io.NewSectionReader(body, 0, size), make([]byte, 512<<10), time.Now(), int64(0)
	second, inIt := time.Now(), int64(0)
	for got < size {
		n, err := r.Read(buf)
		got += int64(n)
		s.silent, last = max(s.silent, time.Since(last)), time.Now()
		if time.Since(second) >= time.Second {
			second, inIt = time.Now(), 0
		}
		inIt += int64(n)
		s.most = max(s.most, inIt)
		if err != nil && got < size {
			return httpstore.Undecided, &httpstore.UploadError{Err: err}
		}
		if s.stall > 0 && s.silent > s.stall {
			return httpstore.Undecided, &httpstore.UploadError{Retryable: true, Err: objstore.ErrUnavailable}
		}
	}
	if time.Now().After(expires) {
		s.refused++
		return httpstore.MaybeExists, nil
	}
	return httpstore.Created, nil
}

// only hides the rate of a limiter.
type only struct{ l *pace.Limiter }

func (o only) Wait(ctx context.Context, n int) error { return o.l.Wait(ctx, n) }

// TestURLOutlivesBody: a body that takes longer than a URL lives is paid for
// ahead, gets a new URL, and is sent within its life.
func TestURLOutlivesBody(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("RateKnown=%v", known), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := new(strict)
				e := setup(t, func(c *upload.Config) {
					c.Transfer, c.Limit = s, only{pace.NewLimiter(pace.Constant(10_000), nil)}
					if known {
						c.Limit = pace.NewLimiter(pace.Constant(10_000), nil)
					}
				})
				s.v, e.life = e.vault, time.Minute
				start := time.Now()
				if err := e.put(t, name, make([]byte, 2_000_000)); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start).Seconds()
				if known {
					if s.refused != 0 || len(e.batches) != 2 || took < 190 || took > 210 {
						t.Errorf("%d refusals, %d URLs, %.0f s for 200 s", s.refused, len(e.batches), took)
					}
				} else if s.refused != 1 { // the first body shows how slow it is
					t.Errorf("%d refusals", s.refused)
				}
				if s.silent > time.Second {
					t.Errorf("nothing was sent for %v", s.silent)
				}
				// What was paid ahead goes out evenly: 2 MB in 42 s, not in one burst.
				if s.most > 80_000 {
					t.Errorf("%d bytes in one second", s.most)
				}
				refused := s.refused
				if err := e.put(t, cut.CutObject(machine, 1, 8), make([]byte, 2_000_000)); err != nil {
					t.Fatal(err)
				}
				if s.refused != refused {
					t.Error("the second body outlived its URL, too")
				}
			})
		})
	}
	t.Run("LongEnough", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := new(strict)
			e := setup(t, func(c *upload.Config) { c.Transfer, c.Limit = s, pace.NewLimiter(pace.Constant(1<<20), nil) })
			s.v, e.life = e.vault, time.Minute
			if err := e.put(t, name, make([]byte, 20<<20)); err != nil {
				t.Fatal(err)
			}
			if len(e.batches) != 1 {
				t.Errorf("%d URLs for a body of 20 s", len(e.batches))
			}
		})
	})
	t.Run("ClocksDiffer", func(t *testing.T) {
		// The vault's clock is an hour behind: nothing can be said about the URL, so it is used.
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := setup(t, func(c *upload.Config) {
				c.Transfer, c.Limit = &gate{read: true}, pace.NewLimiter(pace.Constant(1000), nil)
			})
			e.life = -time.Hour
			if err := e.put(t, name, make([]byte, 100_000)); err != nil || len(e.batches) != 1 {
				t.Errorf("put: %v, %d URLs", err, len(e.batches))
			}
		})
	})
}

// TestSlowIsNotStalled: however low the limit and whatever is read at once, something moves
// all the time; and the limit is kept.
func TestSlowIsNotStalled(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{1000, 20_000, 500_000} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &strict{stall: 10 * time.Second}
				e := setup(t, func(c *upload.Config) { c.Transfer, c.Limit = s, pace.NewLimiter(pace.Constant(rate), nil) })
				s.v = e.vault
				e.life = 24 * time.Hour
				start := time.Now()
				if err := e.put(t, name, make([]byte, 100*rate)); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start).Seconds(); took < 98 || took > 102 {
					t.Errorf("took %.1f s for 100 s", took)
				}
				if s := e.u.Stats(); s.Retries != 0 || s.Bytes != 100*rate {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
	t.Run("LoweredMeanwhile", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &strict{stall: 50 * time.Second}
			l := pace.NewLimiter(pace.Constant(32<<20), nil)
			e := setup(t, func(c *upload.Config) { c.Transfer, c.Limit = s, l })
			s.v = e.vault
			e.life = 24 * time.Hour
			time.AfterFunc(time.Second, func() { l.SetRule(pace.Constant(200)) })
			time.AfterFunc(time.Hour, func() { l.SetRule(nil) })
			if err := e.put(t, name, make([]byte, 64<<20)); err != nil {
				t.Fatal(err)
			}
			if s := e.u.Stats(); s.Retries != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	})
}

// TestLimitsOfSinks: a sink's own limit counts instead of the common one, and can be taken away.
func TestLimitsOfSinks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := pace.NewLimiter(pace.Constant(1_000_000), nil)
		e := setup(t, func(c *upload.Config) { c.Transfer, c.Limit = &gate{read: true}, root })
		item := root.Child(pace.Constant(100_000))
		e.sink.SetLimit(item)
		n := uint64(0)
		timed := func(want float64) {
			t.Helper()
			start := time.Now()
			n++
			if err := e.put(t, cut.CutObject(machine, 1, n), make([]byte, 2_000_000)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start).Seconds(); took < want*0.95 || took > want*1.05 {
				t.Errorf("took %.2f s, want %.0f", took, want)
			}
		}
		timed(20)
		e.sink.SetLimit(nil)
		timed(2)
		e.sink.SetLimit(item)
		item.SetRule(nil)
		timed(2)
	})
}

// TestClosedLimit: while nothing may pass, no URL is asked for; a Put that is cancelled then ends at once.
func TestClosedLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := pace.NewLimiter(pace.Constant(-1), nil)
		e := setup(t, func(c *upload.Config) { c.Transfer, c.Limit = &gate{read: true}, l })
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		data := []byte("x")
		if err := e.sink.Put(ctx, name, bytes.NewReader(data), 1, sha256.Sum256(data)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("put: %v", err)
		}
		time.AfterFunc(time.Hour, func() { l.SetRule(nil) })
		if err := e.put(t, name, data); err != nil || len(e.batches) != 1 {
			t.Errorf("put: %v, %d URL requests", err, len(e.batches))
		}
	})
	t.Run("LimitFails", func(t *testing.T) {
		t.Parallel()
		e := setup(t, func(c *upload.Config) { c.Limit = broken{} })
		if err := e.put(t, name, []byte("x")); dr.KindOf(err) != dr.KindUnavailable || !errors.Is(err, errBroken) {
			t.Errorf("put: %v", err)
		}
	})
}

var errBroken = errors.New("broken limit")

type broken struct{}

func (broken) Wait(context.Context, int) error { return errBroken }

// link is a TCP proxy with a speed, bytes/s, and a delay, in the direction of the server.
type link struct {
	net.Listener
	wg    sync.WaitGroup
	bytes atomic.Int64

	mu   sync.Mutex
	free time.Time // when the line has sent what it was given
}

func newLink(t *testing.T, target string, rate float64, delay time.Duration) *link {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &link{Listener: ln}
	p.wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			p.wg.Go(func() { p.send(out, in, rate, delay) })
			p.wg.Go(func() { p.send(in, out, 1e12, delay) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.wg.Wait()
	})
	return p
}

func (p *link) send(to, from net.Conn, rate float64, delay time.Duration) {
	type packet struct {
		at   time.Time
		data []byte
	}
	line := make(chan packet, 256) // at most 4 MiB on their way
	defer close(line)
	p.wg.Go(func() {
		defer to.Close()
		for k := range line {
			time.Sleep(time.Until(k.at))
			if _, err := to.Write(k.data); err != nil {
				from.Close()
			}
		}
	})
	for {
		buf := make([]byte, 16<<10)
		n, err := from.Read(buf)
		if n > 0 && rate < 1e12 {
			p.bytes.Add(int64(n))
			p.mu.Lock()
			if now := time.Now(); p.free.Before(now) {
				p.free = now
			}
			p.free = p.free.Add(time.Duration(float64(n) / rate * 1e9))
			at := p.free
			p.mu.Unlock()
			time.Sleep(time.Until(at)) // a full line takes no more
			line <- packet{at.Add(delay), buf[:n]}
		} else if n > 0 {
			line <- packet{time.Now().Add(delay), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}

// TestThrottledLink sends over sockets and a line of 100 Mbit/s and 20 ms, with
// silence deadlines on both sides that are shorter than what one large read of a body takes.
func TestThrottledLink(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		limit       int64 // bytes/s, 0 = only the line limits
		objects     int
		size        int
		least, most time.Duration
		stall       time.Duration
	}{
		{"LineOnly", 0, 4, 2 << 20, 650 * time.Millisecond, 6 * time.Second, time.Minute},
		{"Limited", 2 << 20, 4, 512 << 10, 900 * time.Millisecond, 6 * time.Second, 2 * time.Second},
		// Three bodies share 96 KiB/s: the 32 KiB that net/http reads at once take a second.
		{"VerySlow", 96 << 10, 3, 48 << 10, 1300 * time.Millisecond, 6 * time.Second, 700 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			bucket := mem.New()
			e := setup(t, nil)
			var handler atomic.Pointer[httpstore.Handler]
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.Load().ServeHTTP(w, r) }))
			t.Cleanup(srv.Close)
			line := newLink(t, strings.TrimPrefix(srv.URL, "http://"), 100e6/8, 20*time.Millisecond)
			e.vault.bucket, e.vault.life = bucket, time.Minute
			e.vault.signer = newSigner("http://"+line.Addr().String(), nil)
			h, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: bucket, Signer: e.vault.signer, StallTimeout: c.stall})
			if err != nil {
				t.Fatal(err)
			}
			handler.Store(h)
			transport := &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }}
			t.Cleanup(transport.CloseIdleConnections)
			cfg := upload.Config{Vault: e.vault, Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: transport, StallTimeout: c.stall})}
			if c.limit > 0 {
				cfg.Limit = pace.NewLimiter(pace.Constant(c.limit), nil)
			}
			u, err := upload.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.Close() })
			sink := u.Sink(machine, 1)
			start := time.Now()
			var wg sync.WaitGroup
			for i := range c.objects {
				data := make([]byte, c.size)
				_, _ = rand.Read(data)
				wg.Go(func() {
					key := cut.CutObject(machine, 1, uint64(i))
					if err := sink.Put(t.Context(), key, bytes.NewReader(data), int64(c.size), sha256.Sum256(data)); err != nil {
						t.Error(err)
						return
					}
					if got, err := objstore.ReadAll(t.Context(), bucket, key, 1<<30); err != nil || !bytes.Equal(got, data) {
						t.Errorf("object %d: other bytes, %v", i, err)
					}
				})
			}
			wg.Wait()
			took := time.Since(start)
			t.Logf("%d × %d bytes in %v", c.objects, c.size, took)
			if took < c.least || took > c.most {
				t.Errorf("took %v, want %v to %v", took, c.least, c.most)
			}
			if s := u.Stats(); s.Retries != 0 || s.Bytes != int64(c.objects*c.size) {
				t.Errorf("stats %+v", s)
			}
			if n := line.bytes.Load(); n < int64(c.objects*c.size) {
				t.Errorf("only %d bytes went over the line", n)
			}
		})
	}
}
