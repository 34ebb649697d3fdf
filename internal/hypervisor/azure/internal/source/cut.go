package source

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/pageblob"
)

// cut is a restore point that is being read.
type cut struct {
	s      *Source
	vm     string
	col    collection
	point  string
	info   hypervisor.CutInfo
	disks  map[string]*disk
	egress int64 // predicted bytes

	mu      sync.Mutex
	ended   bool
	aborted bool
}

// disk of a cut.
type disk struct {
	hypervisor.CutDisk
	all, allocated, zero extent.Set
	changed              extent.Set // superset of what differs from the base
	wanted               extent.Set // of that, what has to be read
	access               access
	ahead                ahead
}

// access is the signed address of a frozen disk.
type access struct {
	s     *Source
	col   collection
	point string
	name  string // of the disk restore point

	mu    sync.Mutex
	c     *pageblob.Client
	until time.Time
	read  int64 // by clients that were replaced
}

// client is good for a while: the address is renewed when a quarter of its time is left.
func (a *access) client(ctx context.Context) (*pageblob.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.s.cfg.Now()
	if a.c != nil && a.until.Sub(now) > a.s.cfg.Access/4 {
		return a.c, nil
	}
	c, _, until, err := a.s.grant(ctx, a.col, a.point, a.name)
	if err != nil {
		if a.c != nil && now.Before(a.until) { // still good; the next call asks again
			return a.c, nil
		}
		return nil, err
	}
	if a.c != nil {
		a.read += a.c.Count().Received
	}
	a.c, a.until = c, until
	return c, nil
}

func (a *access) received() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.c == nil {
		return a.read
	}
	return a.read + a.c.Count().Received
}

// Info of the cut.
func (c *cut) Info() hypervisor.CutInfo { return c.info }

// disk finds a disk of the cut while it is open.
func (c *cut) disk(op, id string, off, n int64) (*disk, error) {
	c.mu.Lock()
	ended := c.ended || c.aborted
	c.mu.Unlock()
	d := c.disks[id]
	switch {
	case ended:
		return nil, dr.Errorf(dr.KindPrecondition, "azure."+op, "cut %s of VM %s has ended", c.point, c.vm)
	case d == nil:
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "azure."+op, "cut %s has no disk %s", c.point, id)
	case off < 0 || n < 0 || off > d.Size-n:
		return nil, dr.Errorf(dr.KindInvalid, "azure."+op, "%d bytes at %d are outside of disk %s, which has %d", n, off, id, d.Size)
	}
	return d, nil
}

// Extents of a disk; see hypervisor.Cut.
func (c *cut) Extents(ctx context.Context, id string, off, length int64, fn func(hypervisor.Range) error) error {
	const op = "Extents"
	if err := ctx.Err(); err != nil {
		return dr.Errorf(dr.KindOf(err), "azure."+op, "extents of disk %s: %w", id, err)
	}
	if known := c.disks[id]; known != nil && off >= 0 && off < known.Size {
		length = min(length, known.Size-off) // clipped
	}
	d, err := c.disk(op, id, off, length)
	if err != nil {
		return err
	}
	return hypervisor.Merge(off, length, d.changed, d.zero, fn)
}

// ReadAt reads from the frozen disk; ranges that are not allocated cost no request.
func (c *cut) ReadAt(ctx context.Context, id string, p []byte, off int64) error {
	d, err := c.disk("ReadAt", id, off, int64(len(p)))
	if err != nil {
		return err
	}
	clear(p)
	for _, e := range d.allocated.Clip(extent.Extent{Off: off, Len: int64(len(p))}) {
		if err := d.read(ctx, p[e.Off-off:e.End()-off], e.Off); err != nil {
			return err
		}
	}
	return nil
}

// End gives the addresses back and keeps the restore point. What can't be given back
// ends by itself, and the mark of the open cut with the next one.
func (c *cut) End(ctx context.Context) error {
	c.mu.Lock()
	first := !c.ended && !c.aborted
	c.ended = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	defer c.s.release(c.vm, c.point)
	err := c.finish(ctx)
	var read int64
	for _, d := range c.disks {
		read += d.access.received()
	}
	c.s.cfg.Log.Info("cut ended", "point", c.s.id(c.col, c.point), "egress", read, "predicted", c.egress)
	if err != nil {
		c.s.cfg.Log.Warn("the signed addresses of a cut are left to end by themselves", "point", c.s.id(c.col, c.point), "err", err)
	}
	return nil
}

// finish revokes the addresses and takes the mark away.
func (c *cut) finish(ctx context.Context) error {
	done, err := c.s.turn(ctx, "End", c.vm)
	if err != nil {
		return err
	}
	defer done()
	var errs []error
	for _, d := range c.disks {
		errs = append(errs, c.s.revoke(ctx, c.col, c.point, d.access.name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.s.tidy(ctx, c.col, "")
}

// Abort deletes the restore point; see hypervisor.Cut. It may be called again after an error.
func (c *cut) Abort(ctx context.Context) error {
	c.mu.Lock()
	again := c.aborted
	c.ended = true // not readable from here on
	c.mu.Unlock()
	if again {
		return nil
	}
	c.s.doom(c.vm, c.point, true)
	defer c.s.release(c.vm, c.point)
	done, err := c.s.turn(ctx, "Abort", c.vm)
	if err != nil {
		return err
	}
	defer done()
	if err := c.s.deletePoint(ctx, c.col, c.point); err != nil {
		return err
	}
	c.mu.Lock()
	c.aborted = true
	c.mu.Unlock()
	c.s.doom(c.vm, c.point, false)
	return c.s.tidy(ctx, c.col, "")
}
