package cutting

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/port"
)

// cut is an open recovery checkpoint with its disks.
type cut struct {
	host *Cutter
	vm   string
	name string
	info hypervisor.CutInfo
	rec  *tokenRecord

	mu       sync.RWMutex // reads hold it shared, closing the disks takes it
	disks    map[string]*cutDisk
	closed   bool
	checkMu  sync.Mutex
	verified time.Time // when the checkpoint was last seen
}

type cutDisk struct {
	path    string // of the frozen file
	disk    port.Disk
	info    port.DiskInfo
	changed extent.Set
	whole   bool
	why     string
}

func (c *cut) Info() hypervisor.CutInfo { return c.info }

// use takes a disk for reading a range; the returned function gives it back.
func (c *cut) use(ctx context.Context, op, id string, off, n int64) (*cutDisk, func(), error) {
	c.mu.RLock()
	d, err := c.disks[id], error(nil)
	switch {
	case c.closed:
		err = dr.Errorf(dr.KindPrecondition, "hyperv."+op, "the cut %s of VM %s has ended", c.info.Token, c.name)
	case d == nil:
		err = dr.New(dr.KindNotFound, dr.CodeNotFound, "hyperv."+op, "the cut %s of VM %s has no disk %s", c.info.Token, c.name, id)
	case off < 0 || n < 0 || off > d.info.Size || n > d.info.Size-off:
		err = dr.Errorf(dr.KindInvalid, "hyperv."+op, "disk %s of VM %s has %d bytes; %d+%d is not in it", id, c.name, d.info.Size, off, n)
	default:
		err = c.verify(ctx, op)
	}
	if err != nil {
		c.mu.RUnlock()
		return nil, nil, err
	}
	return d, c.mu.RUnlock, nil
}

// verify makes sure every now and then that the checkpoint is there: without it
// the files that are read belong to the running VM again.
func (c *cut) verify(ctx context.Context, op string) error {
	if c.rec.Direct {
		return nil
	}
	c.checkMu.Lock()
	defer c.checkMu.Unlock()
	if time.Since(c.verified) < c.host.cfg.VerifyEvery {
		return nil
	}
	ok, err := c.host.MS.CheckpointExists(ctx, c.rec.Checkpoint)
	if err != nil {
		return msvm.Wrap(op, "look up the checkpoint of VM "+c.name, dr.CodeCheckpointFailed, err)
	}
	if !ok {
		return dr.New(dr.KindUnavailable, dr.CodeCheckpointFailed, "hyperv."+op, "the checkpoint of cut %s of VM %s is gone", c.info.Token, c.name)
	}
	c.verified = time.Now()
	return nil
}

// Extents joins the changed ranges with what is known to be zero.
func (c *cut) Extents(ctx context.Context, disk string, off, length int64, fn func(hypervisor.Range) error) error {
	const op = "Extents"
	d, done, err := c.use(ctx, op, disk, off, length)
	if err != nil {
		return err
	}
	defer done()
	var zeroes []extent.Extent
	err = d.disk.Extents(ctx, off, length, func(o, n int64, zero bool) error {
		if zero {
			zeroes = append(zeroes, extent.Extent{Off: o, Len: n})
		}
		return nil
	})
	if err != nil {
		return port.Error(op, "list the extents of disk "+disk+" of VM "+c.name, err)
	}
	window := extent.Extent{Off: off, Len: length}
	changed := d.changed.Clip(window)
	if d.whole {
		changed = extent.Set{window}
	}
	return hypervisor.Merge(off, length, changed, extent.Normalize(zeroes), fn)
}

func (c *cut) ReadAt(ctx context.Context, disk string, p []byte, off int64) error {
	const op = "ReadAt"
	d, done, err := c.use(ctx, op, disk, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer done()
	if err := d.disk.ReadAt(ctx, p, off); err != nil {
		return port.Error(op, "read disk "+disk+" of VM "+c.name, err)
	}
	return nil
}

// closeDisks closes the frozen files; the host can't merge them before.
func (c *cut) closeDisks() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var err error
	for _, d := range c.disks {
		if d.disk != nil {
			err = errors.Join(err, d.disk.Close())
		}
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv.Close", "close the frozen disks of VM %s: %w", c.name, err)
	}
	return nil
}

// release takes the cut off the host's list.
func (c *cut) release() {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.host.open[c.vm] == c {
		delete(c.host.open, c.vm)
	}
}

// End converts the checkpoint to a reference point. After an error it can be called again.
func (c *cut) End(ctx context.Context) error {
	const op = "End"
	unlock, err := c.host.Lock(ctx, op, c.vm)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.current(op)
	if err != nil || rec == nil || rec.Phase == phaseEnded {
		c.release() // ended, or aborted, or by another process
		return errors.Join(err, c.closeDisks())
	}
	if err := c.closeDisks(); err != nil {
		return err
	}
	if err := c.host.convert(ctx, op, rec); err != nil {
		return err
	}
	c.release()
	return nil
}

// current reads the record again: a successor process may have ended the cut. nil: there is none any more.
func (c *cut) current(op string) (*tokenRecord, error) {
	rec, err := c.host.store.get(c.vm, c.info.Token)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !rec.Made.Equal(c.rec.Made) { // another cut with the same tag
		return nil, nil
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the record of token %s: %w", c.info.Token, err)
	}
	return rec, nil
}

// Abort destroys the checkpoint, or the reference point if the cut has ended.
func (c *cut) Abort(ctx context.Context) error {
	const op = "Abort"
	unlock, err := c.host.Lock(ctx, op, c.vm)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.closeDisks(); err != nil {
		return err
	}
	rec, err := c.current(op)
	if err != nil {
		return err
	}
	if rec != nil {
		if err := c.host.discard(ctx, op, rec); err != nil {
			return err
		}
	}
	c.release()
	return nil
}

// convert turns a cut's checkpoint into a reference point and writes down which
// one. It may be called again after a crash or an error in any place.
func (h *Cutter) convert(ctx context.Context, op string, rec *tokenRecord) error {
	what := "convert the checkpoint of VM " + rec.VM
	if rec.Direct {
		rec.Phase = phaseEnded
		return h.putRecord(op, rec)
	}
	points, err := h.MS.ReferencePoints(ctx, rec.VM)
	if err != nil {
		return msvm.Wrap(op, what, "", err)
	}
	if rec.Phase == phaseConverting { // an earlier call may have had effect
		if p, ok := h.ownPoint(rec, points); ok {
			return h.converted(op, rec, p)
		}
	}
	if rec.Phase != phaseConverting {
		rec.Phase, rec.Known = phaseConverting, nil
		for _, p := range points {
			rec.Known = append(rec.Known, p.ID)
		}
		if err := h.putRecord(op, rec); err != nil {
			return err
		}
	}
	var id string
	if err := h.Patiently(ctx, op, rec.VM, func() (err error) {
		id, err = h.MS.ConvertToReferencePoint(ctx, rec.Checkpoint, h.stamp.Name(rec.Token))
		return err
	}); err != nil {
		return msvm.Wrap(op, what, dr.CodeCheckpointFailed, err)
	}
	if points, err = h.MS.ReferencePoints(ctx, rec.VM); err != nil {
		return msvm.Wrap(op, what, "", err)
	}
	for _, p := range points {
		if id != "" && strings.EqualFold(p.ID, id) {
			return h.converted(op, rec, p)
		}
	}
	if p, ok := h.ownPoint(rec, points); ok {
		return h.converted(op, rec, p)
	}
	return dr.New(dr.KindUnavailable, dr.CodeCheckpointFailed, "hyperv."+op, "%s: the host made a reference point but does not say which one", what)
}

func (h *Cutter) converted(op string, rec *tokenRecord, p msvm.ReferencePoint) error {
	rec.Phase, rec.Point, rec.Checkpoint, rec.Known = phaseEnded, p.ID, "", nil
	return h.putRecord(op, rec)
}

// ownPoint finds the reference point that a conversion made whose answer was
// lost. Its name tells, or that it has exactly the tracking ids that the frozen
// disks had. Being the only new one proves nothing: it may be another product's.
func (h *Cutter) ownPoint(rec *tokenRecord, points []msvm.ReferencePoint) (msvm.ReferencePoint, bool) {
	known := func(id string) bool {
		for _, k := range rec.Known {
			if strings.EqualFold(k, id) {
				return true
			}
		}
		return false
	}
	for _, p := range points {
		if known(p.ID) {
			continue
		}
		if h.stamp.Is(p.Name, rec.Token) {
			return p, true
		}
		same := len(rec.Disks) > 0
		for _, d := range rec.Disks {
			id, ok := p.RCTOf(d.ID, d.Instance)
			same = same && ok && d.Recent != "" && strings.EqualFold(id, d.Recent)
		}
		if same {
			return p, true
		}
	}
	return msvm.ReferencePoint{}, false
}

// discard deletes whatever a token consists of, its record last.
func (h *Cutter) discard(ctx context.Context, op string, rec *tokenRecord) error {
	if rec.Phase == phaseConverting {
		points, err := h.MS.ReferencePoints(ctx, rec.VM)
		if err != nil {
			return msvm.Wrap(op, "list the reference points of VM "+rec.VM, "", err)
		}
		if p, ok := h.ownPoint(rec, points); ok {
			rec.Point = p.ID
		}
	}
	if rec.Point != "" {
		if err := h.destroyPoint(ctx, op, rec.VM, rec.Point); err != nil {
			return err
		}
	}
	if err := h.destroyNamed(ctx, rec); err != nil {
		return msvm.Wrap(op, "remove the checkpoint of VM "+rec.VM, dr.CodeCheckpointFailed, err)
	}
	if err := h.store.drop(rec); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "delete the record of token %s: %w", rec.Token, err)
	}
	return nil
}

func (h *Cutter) destroyPoint(ctx context.Context, op, vm, id string) error {
	err := h.Patiently(ctx, op, vm, func() error { return h.MS.DestroyReferencePoint(ctx, id) })
	if err == nil || msvm.Missing(err) {
		return nil
	}
	points, lerr := h.MS.ReferencePoints(ctx, vm) // gone all the same?
	if lerr == nil {
		gone := true
		for _, p := range points {
			gone = gone && !strings.EqualFold(p.ID, id)
		}
		if gone {
			return nil
		}
	}
	return msvm.Wrap(op, "delete a reference point of VM "+vm, dr.CodeCheckpointFailed, err)
}

// destroyNamed removes the checkpoint of a token, known by its id or its name. One that is gone is fine.
func (h *Cutter) destroyNamed(ctx context.Context, rec *tokenRecord) error {
	if rec.Direct && rec.Checkpoint == "" {
		return nil
	}
	list, err := h.MS.Checkpoints(ctx, rec.VM)
	if err != nil {
		return err
	}
	for _, s := range list {
		if !s.Recovery() || !h.stamp.Is(s.Name, rec.Token) && !strings.EqualFold(s.ID, rec.Checkpoint) {
			continue
		}
		if err := h.destroyCheckpoint(ctx, rec.VM, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// destroyCheckpoint removes a checkpoint; one that is gone is fine.
func (h *Cutter) destroyCheckpoint(ctx context.Context, vm, id string) error {
	err := h.Patiently(ctx, "Abort", vm, func() error { return h.MS.DestroyCheckpoint(ctx, id) })
	if err == nil || msvm.Missing(err) {
		return nil
	}
	if ok, gerr := h.MS.CheckpointExists(ctx, id); gerr == nil && !ok {
		return nil // another process, or a call of ours whose answer was lost
	}
	return err
}
