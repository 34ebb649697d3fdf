package reach

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// Defaults of Throughput.
const (
	DefaultObject   = 64 << 20 // bytes; as the objects of a cut at most
	DefaultObjects  = 4
	defaultParallel = 4
	defaultTime     = 5 * time.Minute
)

// roomFor is how much faster than the changes a line has to be, so that a backlog drains.
const roomFor = 1.3

// Load says what Throughput sends and where.
type Load struct {
	// Sign gives a create-only request for the n-th object, from 0. nil: nothing is measured, and Why is told.
	Sign func(ctx context.Context, n int, size int64, sum [sha256.Size]byte) (objstore.SignedURL, error)
	// Fetch reads the n-th object back; nil = it can't be read here, as by agents.
	Fetch     func(ctx context.Context, n int) (io.ReadCloser, error)
	Why       string            // why Sign is nil
	Transport http.RoundTripper // with the proxy and trust that data takes
	Size      int64             // bytes of an object; 0 = 64 MiB
	Objects   int               // 0 = 4
	Parallel  int               // at once; 0 = 4
	Need      int64             // bytes per second that the VMs change; 0 = not known
	Timeout   time.Duration     // of everything; 0 = 5 minutes
}

// Speed is what Throughput measured, bytes per second over all connections.
type Speed struct {
	Status string  `json:"status"`
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy,omitempty"`
	Up     float64 `json:"up,omitempty"`
	Down   float64 `json:"down,omitempty"`
	Sent   int     `json:"-"` // objects that may exist now
}

// Throughput writes objects of random bytes to the store, and reads them back where
// that is possible. The caller removes what it wrote: Speed.Sent objects from 0 on, of which some may be missing. Errors hold
// no part of a signed address.
func Throughput(ctx context.Context, l Load) Speed {
	if l.Sign == nil {
		return Speed{Status: Skipped, Detail: cmp.Or(l.Why, "the vault gives signed addresses only for objects of VMs that are protected")}
	}
	l.Size, l.Objects, l.Parallel, l.Timeout = cmp.Or(l.Size, DefaultObject), cmp.Or(l.Objects, DefaultObjects), cmp.Or(l.Parallel, defaultParallel), cmp.Or(l.Timeout, defaultTime)
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	s := Speed{Sent: l.Objects}
	urls, err := l.sign(ctx)
	if err != nil {
		return Speed{Status: Failed, Detail: err.Error(), Remedy: cmp.Or(dr.HintOf(err), "See whether this machine may write to the store.")}
	}
	up, err := l.each(ctx, func(ctx context.Context, n int) error { return l.put(ctx, n, urls[n]) })
	if err != nil {
		s.Status, s.Detail, s.Remedy = Failed, "writing to the store: "+err.Error(), cmp.Or(dr.HintOf(err), "See the hops of the store above.")
		return s
	}
	s.Up = up
	s.Status, s.Detail = OK, fmt.Sprintf("%.1f MB/s up (%d × %d MiB)", up/1e6, l.Objects, l.Size>>20)
	if l.Fetch != nil {
		down, err := l.each(ctx, l.get)
		if err != nil {
			s.Status, s.Detail, s.Remedy = Failed, s.Detail+"; reading back: "+err.Error(), cmp.Or(dr.HintOf(err), "What was written can't be read: look at the store.")
			return s
		}
		s.Down = down
		s.Detail += fmt.Sprintf(", %.1f MB/s down", down/1e6)
	}
	if need := float64(l.Need); need > 0 {
		s.Detail += fmt.Sprintf("; changes need %.1f MB/s", need/1e6)
		switch {
		case up < need:
			s.Status, s.Remedy = Failed, "The line is slower than the VMs change: replication falls behind without end. Get more bandwidth, protect fewer VMs, or exclude disks that need no copy (swap, temporary files)."
		case up < need*roomFor:
			s.Status, s.Remedy = Warning, "There is hardly room for peaks and for what gathers while the line is down: get about a third more than the changes."
		}
	}
	return s
}

// sign prepares the requests, before the clock runs.
func (l Load) sign(ctx context.Context) ([]objstore.SignedURL, error) {
	urls := make([]objstore.SignedURL, l.Objects)
	for n := range urls {
		h := sha256.New()
		if _, err := io.Copy(h, l.noise(n)); err != nil {
			return nil, err
		}
		u, err := l.Sign(ctx, n, l.Size, [sha256.Size]byte(h.Sum(nil)))
		if err != nil {
			return nil, fmt.Errorf("get a signed address: %w", bare(err))
		}
		urls[n] = u
	}
	return urls, nil
}

// put writes one object.
func (l Load) put(ctx context.Context, n int, to objstore.SignedURL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.URL, io.NopCloser(l.noise(n)))
	if err != nil {
		return errors.New("the signed address is no URL")
	}
	req.ContentLength = l.Size
	for k, v := range to.Headers {
		req.Header.Set(k, v)
	}
	rt := l.Transport
	if rt == nil {
		rt = http.DefaultTransport
	}
	resp, err := (&http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		return bare(err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHeader)) // so that the connection is used again
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		code := ""
		if c := resp.Header.Get("X-Ms-Error-Code"); c != "" {
			code = " (" + shorten(c) + ")"
		}
		return fmt.Errorf("%s answers %d%s", req.URL.Host, resp.StatusCode, code)
	}
	return nil
}

// get reads one object back and compares it.
func (l Load) get(ctx context.Context, n int) error {
	body, err := l.Fetch(ctx, n)
	if err != nil {
		return bare(err)
	}
	h, want := sha256.New(), sha256.New()
	_, err = io.Copy(h, io.LimitReader(body, l.Size+1))
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		_, err = io.Copy(want, l.noise(n))
	}
	if err != nil {
		return bare(err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != [sha256.Size]byte(want.Sum(nil)) {
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "reach.Throughput", "what was read back is not what was written")
	}
	return nil
}

// bare takes a URL, which may be signed, off an error.
func bare(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	return errors.New(because(u.Err))
}

// each runs fn for all objects, some at once, and returns bytes per second.
func (l Load) each(ctx context.Context, fn func(ctx context.Context, n int) error) (float64, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(l.Parallel)
	began := time.Now()
	for n := range l.Objects {
		g.Go(func() error { return fn(ctx, n) })
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return float64(l.Size) * float64(l.Objects) / max(time.Since(began).Seconds(), 1e-6), nil
}

// noise is an object's content: the same for the same number, and nothing that compresses.
func (l Load) noise(n int) io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n)+1)
	return io.LimitReader(rand.NewChaCha8(seed), l.Size)
}
