// Package fault is a decorator that makes a bucket fail on purpose, at an
// address: this operation, this key, the nth time. It is for tests and drills.
//
// A fault that never fired proves nothing, so a test ends with Verify (or
// Unfired), which names the faults that did not fire.
package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"holdfast/internal/objstore"
)

// Op names an operation of the bucket.
type Op string

// The operations of objstore.Bucket. List counts one call per listing.
const (
	Any    Op = "" // matches every operation
	Put    Op = "put"
	Get    Op = "get"
	Head   Op = "head"
	List   Op = "list"
	Delete Op = "delete"
)

// Kind is what goes wrong.
type Kind int

const (
	// ErrorBefore fails the call; the bucket below is not asked.
	ErrorBefore Kind = iota + 1
	// ErrorAfter performs the call and then fails it if it succeeded: a lost
	// response. A put is stored, an object is deleted, a listing is complete.
	ErrorAfter
	// Cut breaks the stream after At bytes (Put: the caller's body, Get: the
	// answer) or At entries (List) and fails the call.
	Cut
	// Torn makes a lying store: Put stores only the first At bytes and reports
	// success. Other operations: the call goes through unchanged.
	Torn
	// Flip inverts the lowest bit of the byte At, counted from the start of the
	// object: on Get in what is read, on Put in what is stored (success is
	// reported). If the body has no such byte the fault has not fired.
	Flip
	// Delay waits for Wait, or until the context ends, and goes on.
	Delay
	// Call runs Func and goes on; if Func fails the call fails with its error.
	Call
)

var kindNames = map[Kind]string{
	ErrorBefore: "error before", ErrorAfter: "error after", Cut: "cut", Torn: "torn", Flip: "flip", Delay: "delay", Call: "call",
}

func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Fault is one fault with its address.
type Fault struct {
	Op   Op     // Any, or the operation
	Key  string // pattern over the whole key (List: the prefix); "*" matches any run of characters, slashes too; "" matches all
	Nth  int    // fires first on the nth call that Op and Key match; 0 means 1
	More int    // and on so many matching calls after it; negative means for ever
	Kind Kind

	Err  error         // for ErrorBefore, ErrorAfter, Cut; nil means objstore.ErrUnavailable
	At   int64         // for Cut, Torn, Flip; see there
	Wait time.Duration // for Delay
	Func func(ctx context.Context, op Op, key string) error
}

func (f Fault) String() string {
	op, key := f.Op, f.Key
	if op == Any {
		op = "any"
	}
	if key == "" {
		key = "*"
	}
	return fmt.Sprintf("%v at call %d of %s %s", f.Kind, max(f.Nth, 1), op, key)
}

type armed struct {
	Fault
	seen  int // matching calls so far
	fired int
}

// Bucket is the decorator. It is safe for concurrent use; with concurrent
// callers, which of them is the nth is decided by arrival.
type Bucket struct {
	inner objstore.Bucket

	mu     sync.Mutex
	faults []*armed
	counts map[Op]int
}

var (
	_ objstore.Bucket      = (*Bucket)(nil)
	_ objstore.AfterLister = (*Bucket)(nil)
)

// New decorates inner with faults. Without faults it changes nothing.
func New(inner objstore.Bucket, faults ...Fault) *Bucket {
	b := &Bucket{inner: inner, counts: make(map[Op]int)}
	b.Add(faults...)
	return b
}

// Add arms more faults; their calls are counted from now on. It panics on a
// fault without a Kind, because that could never fire.
func (b *Bucket) Add(faults ...Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range faults {
		if _, ok := kindNames[f.Kind]; !ok || f.Kind == Call && f.Func == nil {
			panic(fmt.Sprintf("fault: %v cannot fire", f))
		}
		b.faults = append(b.faults, &armed{Fault: f})
	}
}

// Clear disarms all faults, fired or not, and forgets them.
func (b *Bucket) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = nil
}

// Unfired returns the faults that have not fired yet.
func (b *Bucket) Unfired() []Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Fault
	for _, a := range b.faults {
		if a.fired == 0 {
			list = append(list, a.Fault)
		}
	}
	return list
}

// Verify fails the test for each fault that has not fired.
func (b *Bucket) Verify(t interface {
	Helper()
	Errorf(format string, args ...any)
}) {
	t.Helper()
	for _, f := range b.Unfired() {
		t.Errorf("fault never fired: %v", f)
	}
}

// Counts returns how often each operation was called, failed calls included.
func (b *Bucket) Counts() map[Op]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts)
}

// take counts the call and returns the faults that are due for it, in the order
// in which they were added.
func (b *Bucket) take(op Op, key string) due {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[op]++
	var d due
	for _, a := range b.faults {
		if a.Op != Any && a.Op != op || a.Key != "" && !match(a.Key, key) {
			continue
		}
		a.seen++
		first := max(a.Nth, 1)
		if a.seen < first || a.More >= 0 && a.seen > first+a.More {
			continue
		}
		// A flip or a tear counts as fired when it has touched a byte.
		if a.Kind != Flip && a.Kind != Torn {
			a.fired++
		}
		d.faults = append(d.faults, a)
	}
	d.bucket, d.op, d.key = b, op, key
	return d
}

// due is the faults of one call.
type due struct {
	bucket *Bucket
	op     Op
	key    string
	faults []*armed
}

func (d due) fired(a *armed) {
	d.bucket.mu.Lock()
	a.fired++
	d.bucket.mu.Unlock()
}

func (d due) error(a *armed) error {
	err := a.Err
	if err == nil {
		err = objstore.ErrUnavailable
	}
	return &objstore.Error{Op: string(d.op), Key: d.key, Kind: err, Err: fmt.Errorf("injected fault: %v", a.Kind)}
}

// before runs what happens before the call.
func (d due) before(ctx context.Context) error {
	for _, a := range d.faults {
		switch a.Kind {
		case ErrorBefore:
			return d.error(a)
		case Delay:
			timer := time.NewTimer(a.Wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return &objstore.Error{Op: string(d.op), Key: d.key, Err: ctx.Err()}
			}
		case Call:
			if err := a.Func(ctx, d.op, d.key); err != nil {
				return &objstore.Error{Op: string(d.op), Key: d.key, Err: err}
			}
		}
	}
	return nil
}

// after replaces the success of the call by a lost response.
func (d due) after(err error) error {
	if err != nil {
		return err
	}
	for _, a := range d.faults {
		if a.Kind == ErrorAfter {
			return d.error(a)
		}
	}
	return nil
}

func (d due) has(kinds ...Kind) bool {
	for _, a := range d.faults {
		for _, k := range kinds {
			if a.Kind == k {
				return true
			}
		}
	}
	return false
}

// PutNew is objstore.Bucket's with the faults of Put.
func (b *Bucket) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	d := b.take(Put, key)
	if err := d.before(ctx); err != nil {
		return err
	}
	for _, a := range d.faults {
		if a.Kind == Cut {
			r = io.MultiReader(io.LimitReader(r, a.At), errReader{d.error(a)})
		}
	}
	var touched []*armed
	if d.has(Torn, Flip) {
		// The lying store has to know the true body before it spoils it.
		data, err := io.ReadAll(io.LimitReader(r, size+1))
		if err != nil {
			return &objstore.Error{Op: "put", Key: key, Err: fmt.Errorf("read body: %w", err)}
		}
		if int64(len(data)) == size {
			for _, a := range d.faults {
				switch {
				case a.At < 0 || a.At >= int64(len(data)):
				case a.Kind == Flip:
					data[a.At] ^= 1
					sum = nil
					touched = append(touched, a)
				case a.Kind == Torn:
					data = data[:a.At]
					size, sum = a.At, nil
					touched = append(touched, a)
				}
			}
		}
		r = bytes.NewReader(data)
	}
	err := b.inner.PutNew(ctx, key, r, size, sum)
	if err == nil {
		for _, a := range touched {
			d.fired(a)
		}
	}
	return d.after(err)
}

// Get is objstore.Reader's with the faults of Get.
func (b *Bucket) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	d := b.take(Get, key)
	if err := d.before(ctx); err != nil {
		return nil, err
	}
	body, err := b.inner.Get(ctx, key, off, length)
	if err := d.after(err); err != nil {
		if body != nil {
			err = errors.Join(err, body.Close())
		}
		return nil, err
	}
	if d.has(Cut, Flip) {
		body = &spoiled{ReadCloser: body, due: d, pos: off, start: off}
	}
	return body, nil
}

// Head is objstore.Reader's with the faults of Head.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	d := b.take(Head, key)
	if err := d.before(ctx); err != nil {
		return objstore.Info{}, err
	}
	info, err := b.inner.Head(ctx, key)
	if err := d.after(err); err != nil {
		return objstore.Info{}, err
	}
	return info, nil
}

// List is objstore.Reader's with the faults of List.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	return b.ListAfter(ctx, prefix, "", fn)
}

// ListAfter is objstore.AfterLister's with the faults of List.
func (b *Bucket) ListAfter(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	d := b.take(List, prefix)
	if err := d.before(ctx); err != nil {
		return err
	}
	var n int64
	err := objstore.ListAfter(ctx, b.inner, prefix, after, func(info objstore.Info) error {
		for _, a := range d.faults {
			if a.Kind == Cut && n >= a.At {
				return d.error(a)
			}
		}
		n++
		return fn(info)
	})
	if err == nil {
		// A listing shorter than At is cut at its end: it must not look complete.
		for _, a := range d.faults {
			if a.Kind == Cut {
				return d.error(a)
			}
		}
	}
	return d.after(err)
}

// Delete is objstore.Bucket's with the faults of Delete.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	d := b.take(Delete, key)
	if err := d.before(ctx); err != nil {
		return err
	}
	return d.after(b.inner.Delete(ctx, key))
}

// spoiled is a body that is cut or has a bit flipped.
type spoiled struct {
	io.ReadCloser
	due   due
	pos   int64 // offset in the object of the next byte
	start int64
}

func (s *spoiled) Read(p []byte) (int, error) {
	for _, a := range s.due.faults {
		if a.Kind == Cut {
			left := a.At - (s.pos - s.start)
			if left <= 0 {
				return 0, s.due.error(a)
			}
			p = p[:min(int64(len(p)), left)]
		}
	}
	n, err := s.ReadCloser.Read(p)
	for _, a := range s.due.faults {
		if i := a.At - s.pos; a.Kind == Flip && i >= 0 && i < int64(n) {
			p[i] ^= 1
			s.due.fired(a)
		}
	}
	s.pos += int64(n)
	if errors.Is(err, io.EOF) {
		// A body shorter than At is cut at its end.
		for _, a := range s.due.faults {
			if a.Kind == Cut {
				return n, s.due.error(a)
			}
		}
	}
	return n, err
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// match reports whether s matches pattern, in which "*" stands for any run of
// characters. It backtracks only to the last star, so it takes O(n·m).
func match(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
