package guestcheck

import (
	"context"
	"errors"
	"io"
	"sync"
)

// errBudget ends a run that would read without end.
var errBudget = errors.New("more would have to be read than the check may read")

type budget struct{ left int64 }

const (
	pageSize = 64 << 10
	maxPages = 512
)

// device gives a disk the shape that readers of formats want. It keeps some
// pages: file systems ask for the same directories again and again. The context
// is that of the one call it serves.
type device struct {
	ctx    context.Context
	disk   Disk
	budget *budget
	mu     sync.Mutex
	pages  map[int64][]byte
}

func newDevice(ctx context.Context, d Disk, b *budget) *device {
	return &device{ctx: ctx, disk: d, budget: b, pages: map[int64][]byte{}}
}

// ReadAt reads; at the disk's end it returns io.EOF.
func (d *device) ReadAt(p []byte, off int64) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n < len(p) {
		b, err := d.page((off + int64(n)) / pageSize)
		if err != nil {
			return n, err
		}
		at := (off + int64(n)) % pageSize
		if off < 0 || at >= int64(len(b)) {
			return n, io.EOF
		}
		n += copy(p[n:], b[at:])
	}
	return n, nil
}

func (d *device) page(k int64) ([]byte, error) {
	if b, ok := d.pages[k]; ok {
		return b, nil
	}
	if err := d.ctx.Err(); err != nil {
		return nil, err
	}
	n := min(pageSize, d.disk.Size()-k*pageSize)
	if k < 0 || n <= 0 {
		return nil, io.EOF
	}
	if d.budget.left -= n; d.budget.left < 0 {
		return nil, errBudget
	}
	b := make([]byte, n)
	if err := d.disk.ReadAt(d.ctx, b, k*pageSize); err != nil {
		return nil, err
	}
	if len(d.pages) >= maxPages {
		clear(d.pages)
	}
	d.pages[k] = b
	return b, nil
}

// section is a part of a device, such as a partition.
func section(r io.ReaderAt, start, size int64) io.ReaderAt {
	return io.NewSectionReader(r, start, size)
}
