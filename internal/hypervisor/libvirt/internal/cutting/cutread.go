package cutting

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
	"holdfast/internal/nbd"
)

// extentWindow bounds the memory of Extents: at 64 KiB granularity a window has at most 65,536 ranges.
const extentWindow = 4 << 30

// reader returns a disk that can be read in the range.
func (c *cut) reader(op, id string, off, n int64) (*cutDisk, error) {
	d := c.disks[id]
	if d == nil {
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, op, "the cut of VM %s has no disk %q", c.dom.Name, id)
	}
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	switch {
	case broken != nil:
		return nil, broken
	case off < 0 || n < 0 || off > d.size || n > d.size-off:
		return nil, dr.Errorf(dr.KindInvalid, op, "range %d+%d is outside disk %s of %d bytes", off, n, id, d.size)
	}
	return d, nil
}

// ReadAt reads from the frozen image.
func (c *cut) ReadAt(ctx context.Context, id string, p []byte, off int64) error {
	d, err := c.reader("libvirt.ReadAt", id, off, int64(len(p)))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.host.cfg.CallTimeout)
	defer cancel()
	if err := d.client.ReadAt(ctx, p, off); err != nil {
		return c.readError(ctx, "ReadAt", id, err)
	}
	return nil
}

// Extents merges the dirty bitmap and the allocation map.
func (c *cut) Extents(ctx context.Context, id string, off, length int64, fn func(hypervisor.Range) error) error {
	d, err := c.reader("libvirt.Extents", id, off, 0)
	if dr.KindOf(err) == dr.KindInvalid && off >= 0 && length >= 0 {
		return nil // wholly behind the end: nothing is left after clipping
	}
	if err != nil {
		return err
	}
	if length < 0 {
		return dr.Errorf(dr.KindInvalid, "libvirt.Extents", "length %d is negative", length)
	}
	end := off + min(length, d.size-off)
	// Joining over windows keeps the promise of one range per property run cheap to use.
	var last hypervisor.Range
	emit := func(r hypervisor.Range) error {
		if last.Len > 0 && last.Changed == r.Changed && last.Zero == r.Zero {
			last.Len += r.Len
			return nil
		}
		prev := last
		last = r
		if prev.Len > 0 {
			return fn(prev)
		}
		return nil
	}
	for pos := off; pos < end; {
		n := min(end-pos, extentWindow)
		changed, zero, err := d.extents(ctx, c.host.cfg, pos, n)
		if err != nil {
			return c.readError(ctx, "Extents", id, err)
		}
		if err := hypervisor.Merge(pos, n, changed, zero, emit); err != nil {
			return err
		}
		pos += n
	}
	if last.Len > 0 {
		return fn(last)
	}
	return nil
}

// extents asks for one window.
func (d *cutDisk) extents(ctx context.Context, cfg Config, off, n int64) (changed, zero []extent.Extent, err error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.CallTimeout)
	defer cancel()
	err = d.client.Extents(ctx, off, n, func(name string, off, n int64, flags uint32) error {
		switch {
		case name == d.bitmap && flags&nbd.StateDirty != 0:
			changed = join(changed, off, n)
		case name == nbd.ContextAllocation && flags&nbd.StateZero != 0:
			zero = join(zero, off, n)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !d.tracked:
		changed = []extent.Extent{{Off: off, Len: n}}
	case off+n > d.oldSize:
		// The disk has grown: its bitmap shows the new range as clean.
		changed = append(changed, extent.Extent{Off: max(off, d.oldSize), Len: off + n - max(off, d.oldSize)})
		changed = extent.Normalize(changed)
	}
	return changed, zero, nil
}

func join(list []extent.Extent, off, n int64) []extent.Extent {
	if k := len(list); k > 0 && list[k-1].End() == off {
		list[k-1].Len += n
		return list
	}
	return append(list, extent.Extent{Off: off, Len: n})
}

// readError explains a failed read: the watchdog's reason, or a VM that stopped.
func (c *cut) readError(ctx context.Context, op, id string, err error) error {
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	if broken != nil {
		return broken
	}
	if ctx.Err() != nil {
		return virt.Wrap(op, "read disk "+id+" of VM "+c.dom.Name, context.Cause(ctx))
	}
	if s, serr := c.host.virt.State(ctx, op, c.dom); serr == nil && !virt.Active(s) || dr.CodeOf(serr) == dr.CodeVMNotFound {
		return dr.New(dr.KindUnavailable, dr.CodeVMNotRunning, "libvirt."+op, "the cut of VM %s broke because the VM stopped: %w", c.dom.Name, err)
	}
	return dr.New(dr.KindUnavailable, "", "libvirt."+op, "read disk %s of VM %s: %w", id, c.dom.Name, err)
}
