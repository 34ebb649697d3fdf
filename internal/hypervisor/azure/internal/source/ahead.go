package source

import (
	"context"
	"sync"

	"holdfast/internal/extent"
)

const (
	window  = 1 << 20 // bytes that are asked for together
	windows = 16      // that a disk keeps
)

// ahead keeps the surroundings of small reads, as far as they have to be read anyway: a
// round trip to Azure takes longer than a MiB.
type ahead struct {
	mu    sync.Mutex
	kept  map[int64]*piece
	order []int64
}

// piece is what is to be read of one window.
type piece struct {
	done chan struct{}
	data []byte
	err  error
}

// read fills p, which is allocated.
func (d *disk) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		at := off / window * window
		n := min(int64(len(p)), at+window-off)
		whole := off == at && n == window || off == at && off+n == d.Size
		if !whole && d.wanted.Contains(extent.Extent{Off: off, Len: n}) {
			if err := d.readAhead(ctx, p[:n], off, at); err != nil {
				return err
			}
		} else {
			if whole { // as many whole windows as there are
				n = max(n, int64(len(p))/window*window)
			}
			if err := d.direct(ctx, p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (d *disk) direct(ctx context.Context, p []byte, off int64) error {
	c, err := d.access.client(ctx)
	if err != nil {
		return err
	}
	return c.ReadAt(ctx, p, off)
}

// readAhead takes p from the window at, which one of several readers fetches.
func (d *disk) readAhead(ctx context.Context, p []byte, off, at int64) error {
	a := &d.ahead
	a.mu.Lock()
	x, there := a.kept[at]
	if !there {
		x = &piece{done: make(chan struct{})}
		if a.kept == nil {
			a.kept = map[int64]*piece{}
		}
		a.kept[at] = x
		if a.order = append(a.order, at); len(a.order) > windows {
			delete(a.kept, a.order[0])
			a.order = a.order[1:]
		}
	}
	a.mu.Unlock()
	if !there {
		x.data = make([]byte, min(window, d.Size-at))
		for _, e := range d.wanted.Clip(extent.Extent{Off: at, Len: int64(len(x.data))}) {
			if x.err = d.direct(ctx, x.data[e.Off-at:e.End()-at], e.Off); x.err != nil {
				break
			}
		}
		if x.err != nil {
			a.mu.Lock()
			if a.kept[at] == x {
				delete(a.kept, at)
			}
			a.mu.Unlock()
		}
		close(x.done)
	}
	select {
	case <-x.done:
	case <-ctx.Done():
		return d.direct(ctx, p, off) // says that the time is up
	}
	if x.err != nil {
		if !there {
			return x.err
		}
		return d.direct(ctx, p, off) // another reader's time may have been up
	}
	copy(p, x.data[off-at:])
	return nil
}
