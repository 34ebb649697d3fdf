// Package frozen reads a frozen image of a VM's disks: which ranges it has, and
// their content in order, several requests under way at a time. Memory is
// bounded by the reader's buffers and by the ranges of the window asked for.
package frozen

import (
	"context"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/hypervisor"
)

const (
	// Piece is the greatest range of data that Read hands over at a time, bytes.
	Piece = 256 << 10
	// Window is how much of a disk's ranges is asked for at a time.
	Window = 1 << 30

	depth      = 8 // batches under way: more and smaller ones cost no more CPU by NBD, and less memory
	batchSize  = 512 << 10
	batchItems = 32
)

// Ranges lists [off, off+length) of a disk as far as keep wants it, neighbours joined.
func Ranges(ctx context.Context, c hypervisor.Cut, disk string, off, length int64, keep func(hypervisor.Range) bool) ([]hypervisor.Range, error) {
	var out []hypervisor.Range
	err := c.Extents(ctx, disk, off, length, func(r hypervisor.Range) error {
		if !keep(r) {
			return nil
		}
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len == r.Off && out[n-1].Zero == r.Zero && out[n-1].Changed == r.Changed {
			out[n-1].Len += r.Len
		} else {
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// All keeps every range.
func All(hypervisor.Range) bool { return true }

// Changed keeps the ranges that the tracker calls changed.
func Changed(r hypervisor.Range) bool { return r.Changed }

// Clip cuts ranges to [off, end).
func Clip(rs []hypervisor.Range, off, end int64) []hypervisor.Range {
	var out []hypervisor.Range
	for _, x := range rs {
		from, to := max(x.Off, off), min(x.Off+x.Len, end)
		if from < to {
			x.Off, x.Len = from, to-from
			out = append(out, x)
		}
	}
	return out
}

// Widen aligns ranges to the unit of the format, in place: a tracker may be finer.
func Widen(rs []hypervisor.Range, size int64) []hypervisor.Range {
	const mask = cut.Unit - 1
	out := rs[:0]
	for _, x := range rs {
		if x.Off&mask != 0 || ((x.Off+x.Len)&mask != 0 && x.Off+x.Len != size) {
			end := min((x.Off+x.Len+mask)&^mask, size)
			x.Off &^= mask
			x.Len, x.Zero = end-x.Off, false // the neighbours inside the unit may be data
		}
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len > x.Off {
			overlap := out[n-1].Off + out[n-1].Len - x.Off
			if overlap >= x.Len {
				out[n-1].Zero = out[n-1].Zero && x.Zero
				continue
			}
			if out[n-1].Zero && !x.Zero {
				out[n-1].Len -= overlap
				if out[n-1].Len == 0 {
					out = out[:n-1]
				}
			} else {
				x.Off += overlap
				x.Len -= overlap
			}
		}
		out = append(out, x)
	}
	return out
}

// Reader reads one image with buffers of its own, which it keeps. It is for one goroutine.
type Reader struct {
	c    hypervisor.Cut
	free chan []byte
}

// NewReader returns a reader of c.
func NewReader(c hypervisor.Cut) *Reader {
	r := &Reader{c: c, free: make(chan []byte, depth+1)}
	for range cap(r.free) {
		r.free <- nil
	}
	return r
}

// batch is what one goroutine reads before it hands over: ranges that lie
// scattered come many at a time, because each hand-over costs more than their hashes.
type batch struct {
	buf   []byte
	used  int
	items []item
	ready chan error
}

type item struct {
	off, n int64
	p      []byte // nil for zeroes
}

// Read reads the ranges that are not zero and calls fn for all ranges in order:
// with data, at most Piece bytes and not across a multiple of Piece, or with p nil for a
// range of zeroes of any length. fn must not keep p.
func (r *Reader) Read(ctx context.Context, disk string, rs []hypervisor.Range, fn func(off, n int64, p []byte) error) error {
	if len(rs) == 0 {
		return nil
	}
	eg, ctx := errgroup.WithContext(ctx)
	queue := make(chan *batch, depth) // in order
	work := make(chan *batch, depth)
	eg.Go(func() error {
		defer close(queue)
		defer close(work)
		return r.split(ctx, rs, queue, work)
	})
	for range depth {
		eg.Go(func() error {
			for b := range work {
				b.ready <- r.readBatch(ctx, disk, b)
			}
			return nil
		})
	}
	eg.Go(func() error {
		for b := range queue {
			err := <-b.ready
			if err == nil {
				err = ctx.Err()
			}
			for i := 0; err == nil && i < len(b.items); i++ {
				err = hand(b.items[i], fn)
			}
			if err != nil {
				return err // the others end with the context
			}
			r.free <- b.buf
		}
		return nil
	})
	err := eg.Wait()
	for len(r.free) < cap(r.free) { // buffers that an error left behind
		r.free <- nil
	}
	return err
}

func (r *Reader) readBatch(ctx context.Context, disk string, b *batch) error {
	for _, x := range b.items {
		if x.p == nil {
			continue
		}
		if err := r.c.ReadAt(ctx, disk, x.p, x.off); err != nil {
			return err
		}
	}
	return nil
}

// hand calls fn for an item, in pieces.
func hand(x item, fn func(off, n int64, p []byte) error) error {
	if x.p == nil {
		return fn(x.off, x.n, nil)
	}
	for off, p := x.off, x.p; len(p) > 0; {
		n := min(int64(len(p)), Piece-off%Piece)
		if err := fn(off, n, p[:n]); err != nil {
			return err
		}
		off, p = off+n, p[n:]
	}
	return nil
}

// split makes batches of the ranges.
func (r *Reader) split(ctx context.Context, rs []hypervisor.Range, queue, work chan<- *batch) error {
	var b *batch
	begin := func() error {
		select {
		case buf := <-r.free:
			if buf == nil {
				buf = make([]byte, batchSize)
			}
			b = &batch{buf: buf, ready: make(chan error, 1)}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	send := func() error {
		for _, ch := range []chan<- *batch{work, queue} {
			select {
			case ch <- b:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		b = nil
		return nil
	}
	for _, x := range rs {
		for off, end := x.Off, x.Off+x.Len; off < end; {
			if b == nil {
				if err := begin(); err != nil {
					return err
				}
			}
			y := item{off: off, n: end - off}
			if !x.Zero {
				y.n = min(y.n, int64(len(b.buf)-b.used))
				y.p = b.buf[b.used : b.used+int(y.n)]
				b.used += int(y.n)
			}
			b.items = append(b.items, y)
			off += y.n
			if b.used == len(b.buf) || len(b.items) >= batchItems {
				if err := send(); err != nil {
					return err
				}
			}
		}
	}
	if b != nil {
		return send()
	}
	return nil
}
