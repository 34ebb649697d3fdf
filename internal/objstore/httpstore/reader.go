package httpstore

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/objstore"
)

// TicketSource obtains a fresh read ticket.
type TicketSource func(ctx context.Context) (string, error)

// ReaderConfig configures a Reader.
type ReaderConfig struct {
	BaseURL   string            // as in SignerConfig
	Tickets   TicketSource      // asked at first use and whenever the ticket is refused
	Transport http.RoundTripper // decides on proxies and TLS; nil means http.DefaultTransport

	StallTimeout time.Duration // ends an attempt in which no byte moves; 0 means one minute
	Attempts     int           // attempts without progress before an operation fails; 0 means 6
	BaseDelay    time.Duration // before the second attempt, doubling; 0 means 200 ms
	MaxDelay     time.Duration // the longest wait between attempts; 0 means 10 s
}

// Validate checks the configuration.
func (c ReaderConfig) Validate() error {
	u, err := url.Parse(c.BaseURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" {
		return errors.New("store reader: the base URL must be an absolute http or https URL")
	}
	if c.Tickets == nil {
		return errors.New("store reader: a source of read tickets is needed")
	}
	if c.StallTimeout < 0 || c.Attempts < 0 || c.BaseDelay < 0 || c.MaxDelay < 0 {
		return errors.New("store reader: a limit is negative")
	}
	return nil
}

// Reader is the read half of a bucket over HTTP. It retries what is worth
// retrying, continues a broken body where it broke, and refreshes its ticket.
// Waiting ends with the context. It is safe for concurrent use.
type Reader struct {
	c      ReaderConfig
	client *http.Client

	turn   chan struct{} // holds one token: who has it may touch ticket
	ticket string
}

var (
	_ objstore.Reader      = (*Reader)(nil)
	_ objstore.AfterLister = (*Reader)(nil)
)

// NewReader returns a Reader; it does no I/O.
func NewReader(c ReaderConfig) (*Reader, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.BaseURL = strings.TrimSuffix(c.BaseURL, "/")
	c.StallTimeout = orDefault(c.StallTimeout, defaultStall)
	c.Attempts = orDefault(c.Attempts, 6)
	c.BaseDelay = orDefault(c.BaseDelay, 200*time.Millisecond)
	c.MaxDelay = orDefault(c.MaxDelay, 10*time.Second)
	return &Reader{c: c, client: newClient(c.Transport), turn: make(chan struct{}, 1)}, nil
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// call is one operation: what to ask, and for whom an error is worded.
type call struct {
	op, key string
	method  string
	path    string // with query
	ranged  string // Range header, or empty
}

func (c call) fail(kind, err error) error {
	return &objstore.Error{Op: c.op, Key: c.key, Kind: kind, Err: err}
}

// temporary marks a failure that another attempt may mend.
type temporary struct {
	err   error
	after time.Duration
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

// retry runs try until it succeeds, fails for good, has failed Attempts times,
// or the context ends.
func (r *Reader) retry(ctx context.Context, c call, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return c.fail(nil, ctx.Err())
		}
		var t *temporary
		if !errors.As(err, &t) {
			return err
		}
		if n >= r.c.Attempts {
			return c.fail(objstore.ErrUnavailable, fmt.Errorf("after %d attempts: %w", n, t.err))
		}
		if err := r.wait(ctx, n, t.after); err != nil {
			return c.fail(nil, err)
		}
	}
}

// wait sleeps before attempt n+1: exponential with jitter, or longer if the
// server asks for it.
func (r *Reader) wait(ctx context.Context, n int, after time.Duration) error {
	delay := r.c.MaxDelay
	if n < 30 {
		delay = min(r.c.BaseDelay<<(n-1), r.c.MaxDelay)
	}
	delay = delay/2 + rand.N(delay/2+1)
	timer := time.NewTimer(max(delay, min(after, r.c.MaxDelay)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// currentTicket returns the ticket, obtaining one if there is none or if the
// one that the caller used was refused.
func (r *Reader) currentTicket(ctx context.Context, refused string) (string, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if r.ticket != "" && r.ticket != refused {
		return r.ticket, nil
	}
	t, err := r.c.Tickets(ctx)
	if err != nil {
		return "", fmt.Errorf("obtain read ticket: %w", err)
	}
	if t == "" {
		return "", errors.New("obtain read ticket: it is empty")
	}
	r.ticket = t
	return t, nil
}

// answer is a response whose body is watched.
type answer struct {
	*http.Response
	watch *watch
}

// Close ends the request.
func (a *answer) Close() {
	_ = a.Body.Close()
	a.watch.stop()
}

// send makes one attempt. It returns only answers of a Holdfast store: 2xx, and
// 416 for a ranged call; everything else is an error.
func (r *Reader) send(ctx context.Context, c call) (*answer, error) {
	refused := ""
	for {
		ticket, err := r.currentTicket(ctx, refused)
		if err != nil {
			return nil, &temporary{err: err}
		}
		a, err := r.sendOnce(ctx, c, ticket)
		if err != nil {
			return nil, err
		}
		if a.StatusCode != http.StatusUnauthorized {
			return a, r.judge(c, a)
		}
		a.Close()
		if refused != "" {
			return nil, c.fail(objstore.ErrDenied, errors.New("a fresh read ticket was refused; compare the clocks of this machine and the vault"))
		}
		refused = ticket
	}
}

func (r *Reader) sendOnce(ctx context.Context, c call, ticket string) (*answer, error) {
	req, err := http.NewRequest(c.method, r.c.BaseURL+c.path, nil)
	if err != nil {
		return nil, c.fail(objstore.ErrUnavailable, err)
	}
	req.Header.Set(headerTicket, ticket)
	// Without this the transport asks for gzip and hides the length.
	req.Header.Set("Accept-Encoding", "identity")
	if c.ranged != "" {
		req.Header.Set("Range", c.ranged)
	}
	w := newWatch(ctx, r.c.StallTimeout)
	resp, err := r.client.Do(req.WithContext(w.ctx))
	if err != nil {
		err = w.explain(err)
		w.stop()
		return nil, &temporary{err: err}
	}
	w.pause()
	a := &answer{Response: resp, watch: w}
	if resp.Header.Get(headerStore) == "" {
		a.Close()
		return nil, &temporary{err: fmt.Errorf("the answer (status %d) does not come from a Holdfast store; look for a proxy or a login page in between", resp.StatusCode)}
	}
	return a, nil
}

// judge turns a refusal into an error and closes it.
func (r *Reader) judge(c call, a *answer) error {
	s, code := a.StatusCode, a.Header.Get(headerError)
	if s == http.StatusOK || s == http.StatusPartialContent || s == http.StatusRequestedRangeNotSatisfiable && c.ranged != "" {
		return nil
	}
	defer a.Close()
	what := fmt.Errorf("status %d (%s)", s, word(code))
	switch {
	case s == http.StatusNotFound && code == codeNotExist:
		return c.fail(objstore.ErrNotExist, nil)
	case s == http.StatusForbidden:
		return c.fail(objstore.ErrDenied, what)
	case s == http.StatusBadRequest && code == codeInvalidKey:
		return c.fail(objstore.ErrInvalidKey, what)
	case s >= 500, s == http.StatusRequestTimeout, s == http.StatusTooManyRequests:
		return &temporary{err: what, after: retryAfter(a.Header, r.c.MaxDelay)}
	}
	return c.fail(objstore.ErrUnavailable, what)
}

// Head describes an object; see objstore.Reader.
func (r *Reader) Head(ctx context.Context, key string) (objstore.Info, error) {
	c := call{op: "head", key: key, method: http.MethodHead, path: objectPath + key}
	if err := objstore.ValidateKey(key); err != nil {
		return objstore.Info{}, c.fail(nil, err)
	}
	info := objstore.Info{Key: key}
	err := r.retry(ctx, c, func() error {
		a, err := r.send(ctx, c)
		if err != nil {
			return err
		}
		defer a.Close()
		if a.ContentLength < 0 {
			return &temporary{err: errors.New("the answer has no Content-Length")}
		}
		info.Size = a.ContentLength
		if info.ModTime, err = http.ParseTime(a.Header.Get("Last-Modified")); err != nil {
			return &temporary{err: fmt.Errorf("the answer has no time: %w", err)}
		}
		info.SHA256, err = parseSum(a.Header.Get(headerSHA256))
		return err
	})
	if err != nil {
		return objstore.Info{}, err
	}
	return info, nil
}

func parseSum(text string) (sum [32]byte, err error) {
	if text == "" {
		return sum, nil
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(sum) {
		return sum, &temporary{err: errors.New("the answer has a SHA-256 that cannot be read")}
	}
	return [32]byte(raw), nil
}

// Get reads a range; see objstore.Reader. A body that breaks is continued where
// it broke, as often as there is progress in between.
func (r *Reader) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	c := call{op: "get", key: key, method: http.MethodGet, path: objectPath + key}
	if err := objstore.ValidateKey(key); err != nil {
		return nil, c.fail(nil, err)
	}
	if off < 0 {
		return nil, c.fail(objstore.ErrRange, fmt.Errorf("offset %d", off))
	}
	if length == 0 {
		// HTTP has no range of no bytes.
		info, err := r.Head(ctx, key)
		if err != nil {
			return nil, err
		}
		if off > info.Size {
			return nil, c.fail(objstore.ErrRange, fmt.Errorf("offset %d of %d", off, info.Size))
		}
		return emptyBody(), nil
	}
	b := &body{r: r, ctx: ctx, call: c, off: off, end: math.MaxInt64, size: -1}
	if length > 0 && length <= math.MaxInt64-off {
		b.end = off + length
	}
	if err := r.retry(ctx, c, b.open); err != nil {
		return nil, err
	}
	if b.current == nil {
		return emptyBody(), nil
	}
	return b, nil
}

// body is a range that is being read.
type body struct {
	r        *Reader
	ctx      context.Context
	call     call
	off, end int64 // what is still to be read; end is exact once size is known
	size     int64 // of the object, or -1
	current  *answer
	broken   int // attempts since the last progress
	closed   bool
}

// open asks for [off, end). It leaves current nil if there is nothing to read.
func (b *body) open() error {
	c := b.call
	c.ranged = "bytes=" + strconv.FormatInt(b.off, 10) + "-"
	if b.end != math.MaxInt64 {
		c.ranged += strconv.FormatInt(b.end-1, 10)
	}
	a, err := b.r.send(b.ctx, c)
	if err != nil {
		return err
	}
	first, last, size, ok := parseContentRange(a.Header.Get("Content-Range"))
	if a.StatusCode == http.StatusRequestedRangeNotSatisfiable && ok && first < 0 && b.size < 0 {
		a.Close()
		if b.off == size {
			return nil
		}
		return c.fail(objstore.ErrRange, fmt.Errorf("offset %d of %d", b.off, size))
	}
	end := min(b.end, size)
	if a.StatusCode != http.StatusPartialContent || !ok || first != b.off || last != end-1 || b.size >= 0 && size != b.size {
		a.Close()
		return &temporary{err: fmt.Errorf("asked for %s, got status %d with another range or size", c.ranged, a.StatusCode)}
	}
	b.size, b.end, b.current = size, end, a
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	for {
		switch {
		case b.closed:
			return 0, b.call.fail(nil, errors.New("read after close"))
		case b.ctx.Err() != nil:
			return 0, b.call.fail(nil, b.ctx.Err())
		case b.off == b.end:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		if b.current == nil {
			if err := b.r.retry(b.ctx, b.call, b.open); err != nil {
				return 0, err
			}
		}
		b.current.watch.moved()
		n, err := b.current.Body.Read(p[:min(int64(len(p)), b.end-b.off)])
		b.current.watch.pause()
		b.off += int64(n)
		if n > 0 {
			b.broken = 0
			if b.off == b.end && err == nil {
				// The transport reuses the connection only after its EOF.
				b.current.watch.moved()
				_, _ = io.CopyN(io.Discard, b.current.Body, 1)
				b.drop()
			} else if err != nil {
				b.drop()
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		err = b.current.watch.explain(err)
		b.drop()
		if b.ctx.Err() != nil {
			continue
		}
		b.broken++
		if b.broken >= b.r.c.Attempts {
			return 0, b.call.fail(objstore.ErrUnavailable, fmt.Errorf("the body broke off at %d: %w", b.off, err))
		}
		if err := b.r.wait(b.ctx, b.broken, 0); err != nil {
			return 0, b.call.fail(nil, err)
		}
	}
}

func (b *body) drop() {
	if b.current != nil {
		b.current.Close()
		b.current = nil
	}
}

// Close ends the request; it is idempotent.
func (b *body) Close() error {
	b.closed = true
	b.drop()
	return nil
}

// parseContentRange reads "bytes first-last/size", or "bytes */size", for which
// first and last are -1.
func parseContentRange(text string) (first, last, size int64, ok bool) {
	spec, found := strings.CutPrefix(text, "bytes ")
	span, total, slash := strings.Cut(spec, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if !found || !slash || err != nil || size < 0 {
		return 0, 0, 0, false
	}
	if span == "*" {
		return -1, -1, size, true
	}
	from, to, dash := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	if !dash || err1 != nil || err2 != nil || first < 0 || last < first || last >= size {
		return 0, 0, 0, false
	}
	return first, last, size, true
}

// List lists the objects under prefix; see objstore.Reader.
func (r *Reader) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	return r.ListAfter(ctx, prefix, "", fn)
}

// ListAfter lists the keys greater than after; see objstore.AfterLister. A page
// is checked completely before the first of its objects is shown.
func (r *Reader) ListAfter(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	c := call{op: "list", key: prefix, method: http.MethodGet}
	if err := objstore.ValidatePrefix(prefix); err != nil {
		return c.fail(nil, err)
	}
	for {
		c.path = listPath + "?" + url.Values{"prefix": {prefix}, "after": {after}}.Encode()
		var page []objstore.Info
		var next string
		err := r.retry(ctx, c, func() error {
			a, err := r.send(ctx, c)
			if err != nil {
				return err
			}
			defer a.Close()
			a.watch.moved()
			data, err := io.ReadAll(io.LimitReader(&movingReader{a.Body, a.watch}, maxPageBytes))
			if err != nil {
				return &temporary{err: a.watch.explain(err)}
			}
			if page, next, err = parsePage(data, prefix, after); err != nil {
				return &temporary{err: err}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, info := range page {
			if err := ctx.Err(); err != nil {
				return c.fail(nil, err)
			}
			if err := fn(info); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// maxPageBytes bounds a page: maxPage lines of the longest possible key.
const maxPageBytes = maxPage * (objstore.MaxKey + 200)

type movingReader struct {
	r io.Reader
	w *watch
}

func (m *movingReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.w.moved()
	return n, err
}

// parsePage decodes a page of a listing and checks that it can be one: complete,
// in order, of this prefix, and after the given key.
func parsePage(data []byte, prefix, after string) (page []objstore.Info, next string, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var line listLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, "", fmt.Errorf("line %d of the listing: %w", len(page)+1, err)
		}
		if line.End {
			if lines.Scan() || line.Next != "" && (len(page) == 0 || line.Next != page[len(page)-1].Key) {
				return nil, "", errors.New("the listing does not end at its last line")
			}
			return page, line.Next, nil
		}
		if err := objstore.ValidateKey(line.Key); err != nil {
			return nil, "", fmt.Errorf("line %d of the listing: %w", len(page)+1, err)
		}
		if !strings.HasPrefix(line.Key, prefix) || line.Key <= after || line.Size < 0 {
			return nil, "", fmt.Errorf("line %d of the listing does not belong there", len(page)+1)
		}
		sum, err := parseSum(line.SHA256)
		if err != nil {
			return nil, "", err
		}
		page = append(page, objstore.Info{Key: line.Key, Size: line.Size, ModTime: time.Unix(line.MTime, 0), SHA256: sum})
		after = line.Key
	}
	return nil, "", errors.New("the listing is cut off")
}
