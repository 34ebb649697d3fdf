package sim

import (
	"context"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
)

// tokenPrefix marks Holdfast's own tokens.
const tokenPrefix = "hf-"

// cut is an open (or ended) cut. Its fields below info are guarded by vm.mu.
type cut struct {
	host *Host
	vm   *VM
	info hypervisor.CutInfo
	base *token // nil: full

	images  map[string]*frozen
	broken  bool // the VM stopped or another agent ended it
	ended   bool
	aborted bool
}

// BeginCut freezes the disks.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (_ hypervisor.Cut, err error) {
	leave, err := h.enter(ctx, "BeginCut", req.VM)
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	v, err := h.world.find("BeginCut", req.VM)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	base, err := admit(v, h, req)
	if err != nil {
		return nil, err
	}
	return take(v, h, req, base, v.world.cfg.Now()), nil
}

// take makes the cut of an admitted request; the VM's lock is held.
func take(v *VM, h *Host, req hypervisor.CutRequest, base *token, now time.Time) *cut {
	if v.job != nil {
		endStale(v)
	}
	c := &cut{host: h, vm: v, base: base, images: map[string]*frozen{}, info: hypervisor.CutInfo{
		Token: tokenPrefix + req.Tag, Time: now, Consistency: dr.CrashConsistent, Incremental: base != nil}}
	if req.Quiesce {
		quiesce(v, c)
	}
	t := &token{seq: v.seq, sizes: map[string]int64{}}
	for _, id := range req.Disks {
		d, _ := findDisk(v, id)
		c.images[id] = d.freeze()
		t.sizes[id] = d.size
		info := hypervisor.CutDisk{ID: id, Size: d.size, Granularity: d.grain, Whole: true}
		if base != nil {
			_, info.Why = base.covers(d)
			info.Whole = info.Why != ""
		}
		c.info.Disks = append(c.info.Disks, info)
	}
	v.tokens[c.info.Token], v.job = t, c
	return c
}

// admit checks a request and returns its base, nil if it has none; the VM's lock is held.
func admit(v *VM, h *Host, req hypervisor.CutRequest) (*token, error) {
	const op = "sim.BeginCut"
	switch {
	case len(req.Disks) == 0:
		return nil, dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "the request for a cut of VM %s names no disk", v.info.Name)
	case !hypervisor.ValidTag(req.Tag):
		return nil, dr.Errorf(dr.KindInvalid, op, "%q is not a tag (letters, digits and hyphens)", req.Tag)
	case v.power == hypervisor.PowerOff && !req.Offline:
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, op, "VM %s is not running", v.info.Name)
	case v.alien:
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, op, "another product's backup job is open on VM %s", v.info.Name)
	case v.job != nil && v.job.host == h:
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, op, "a cut of VM %s is open already", v.info.Name)
	}
	for i, id := range req.Disks {
		if slices.Contains(req.Disks[:i], id) {
			return nil, dr.Errorf(dr.KindInvalid, op, "disk %s is named twice", id)
		}
		k := slices.IndexFunc(v.info.Disks, func(d dr.Disk) bool { return d.ID == id })
		if k < 0 {
			return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, op, "VM %s has no disk %s", v.info.Name, id)
		}
		d := v.info.Disks[k]
		if d.Shared {
			return nil, dr.New(dr.KindUnsupported, dr.CodeDiskShared, op, "disk %s of VM %s is shared", id, v.info.Name)
		}
		if d.Unreplicatable != "" {
			return nil, dr.New(dr.KindUnsupported, dr.CodeDiskNotTrackable, op, "disk %s of VM %s: %s", id, v.info.Name, d.Unreplicatable)
		}
	}
	if name := tokenPrefix + req.Tag; v.tokens[name] != nil {
		return nil, dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "VM %s has a tracking token %s already", v.info.Name, name)
	}
	if req.Base == "" {
		return nil, nil
	}
	t := v.tokens[req.Base]
	if t == nil {
		return nil, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, op, "tracking token %s of VM %s is missing", req.Base, v.info.Name)
	}
	why := ""
	for _, id := range req.Disks {
		d, err := findDisk(v, id)
		if err != nil {
			return nil, dr.Errorf(dr.KindInternal, op, "look at disk %s: %w", id, err)
		}
		if _, why = t.covers(d); why == "" {
			return t, nil
		}
	}
	return nil, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, op, "tracking token %s of VM %s is of use for none of the disks: disk %s: %s", req.Base, v.info.Name, req.Disks[len(req.Disks)-1], why)
}

// endStale ends an open job of an earlier agent process. Its token stays: the
// cut may have been spooled in full before the agent died.
func endStale(v *VM) {
	v.job.broken = true
	v.job = nil
}

func quiesce(v *VM, c *cut) {
	switch {
	case v.agent == "":
		c.info.Note = "the guest agent is not connected"
	case v.mode == AgentHangsOnFreeze:
		c.info.Note = "the guest agent did not answer in time"
	case v.mode == AgentFreezesNothing:
		c.info.Note = "the guest has no file system that can be frozen"
	case v.mode == AgentHangsOnThaw || v.frozen:
		v.frozen = true
		c.info.Note = "the guest has not confirmed in time that its file systems are thawed"
	default:
		c.info.Consistency = v.agent
	}
}

// Forget deletes Holdfast's tokens that are not in keep.
func (h *Host) Forget(ctx context.Context, id dr.VMID, keep []string) (err error) {
	leave, err := h.enter(ctx, "Forget", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	v, err := h.world.find("Forget", id)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.job != nil && v.job.host != h {
		endStale(v)
	}
	for n, t := range v.tokens {
		if strings.HasPrefix(n, tokenPrefix) && !t.alien && !slices.Contains(keep, n) && (v.job == nil || v.job.info.Token != n) {
			delete(v.tokens, n)
		}
	}
	return nil
}

func (c *cut) Info() hypervisor.CutInfo {
	i := c.info
	i.Disks = slices.Clone(i.Disks)
	return i
}

// image checks that the frozen image can be read.
func (c *cut) image(op, id string, off, n int64) (*frozen, error) {
	f := c.images[id]
	switch {
	case f == nil:
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, op, "the cut of VM %s has no disk %q", c.vm.info.Name, id)
	case c.broken:
		return nil, dr.New(dr.KindUnavailable, dr.CodeVMNotRunning, op, "the cut of VM %s broke: the VM stopped or the cut was ended from outside", c.vm.info.Name)
	case c.ended || c.aborted:
		return nil, dr.Errorf(dr.KindPrecondition, op, "the cut of VM %s has ended", c.vm.info.Name)
	case off < 0 || n < 0 || off > f.size || n > f.size-off:
		return nil, dr.Errorf(dr.KindInvalid, op, "range %d+%d is outside disk %s of %d bytes", off, n, id, f.size)
	}
	return f, nil
}

func (c *cut) Extents(ctx context.Context, id string, off, length int64, fn func(hypervisor.Range) error) (err error) {
	leave, err := c.host.enter(ctx, "Cut.Extents", c.vm.info.ID)
	if err != nil {
		return err
	}
	defer leave(&err)
	c.vm.mu.Lock()
	f, err := c.image("sim.Extents", id, min(off, c.sizeOf(id)), 0)
	if err != nil {
		c.vm.mu.Unlock()
		return err
	}
	if off < 0 || length < 0 {
		c.vm.mu.Unlock()
		return dr.Errorf(dr.KindInvalid, "sim.Extents", "range %d+%d is not valid", off, length)
	}
	length = max(min(length, f.size-off), 0)
	changed := []extent.Extent{{Off: 0, Len: f.size}}
	if c.base != nil {
		if i := slices.IndexFunc(c.info.Disks, func(d hypervisor.CutDisk) bool { return d.ID == id }); !c.info.Disks[i].Whole {
			changed = f.changedSince(c.base.seq, c.base.sizes[id])
		}
	}
	zero := f.zeroes()
	c.vm.mu.Unlock()
	return hypervisor.Merge(off, length, changed, zero, func(r hypervisor.Range) error {
		if err := ctxErr(ctx, "Cut.Extents"); err != nil {
			return err
		}
		return fn(r)
	})
}

func (c *cut) sizeOf(id string) int64 {
	if f := c.images[id]; f != nil {
		return f.size
	}
	return 0
}

func (c *cut) ReadAt(ctx context.Context, id string, p []byte, off int64) (err error) {
	leave, err := c.host.enter(ctx, "Cut.ReadAt", c.vm.info.ID)
	if err != nil {
		return err
	}
	defer leave(&err)
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	f, err := c.image("sim.ReadAt", id, off, int64(len(p)))
	if err != nil {
		return err
	}
	for _, i := range f.missing(off, int64(len(p))) {
		r := f.remote
		if _, have := f.pages[i]; have || r == nil {
			continue
		}
		c.vm.mu.Unlock()
		data, err := fetch(ctx, r, i, f.size)
		c.vm.mu.Lock()
		if _, have := f.pages[i]; have || f.remote == nil {
			continue // MakeLocal was faster
		}
		if err != nil {
			return dr.Errorf(dr.KindUnavailable, "sim.ReadAt", "read disk %s of VM %s: %w", id, c.vm.info.Name, err)
		}
		f.pages[i] = &page{data: data, epoch: -1}
	}
	copyPages(f.pages, p, off)
	return nil
}

func (c *cut) End(ctx context.Context) (err error) {
	leave, err := c.host.enter(ctx, "Cut.End", c.vm.info.ID)
	if err != nil {
		return err
	}
	defer leave(&err)
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	if c.ended || c.aborted {
		return nil
	}
	if c.broken {
		// The frozen image is gone; nobody can have read all of it for sure,
		// but the token is still exact if the VM did not crash.
		c.ended = true
		return nil
	}
	c.ended = true
	c.vm.job = nil
	return nil
}

func (c *cut) Abort(ctx context.Context) (err error) {
	leave, err := c.host.enter(ctx, "Cut.Abort", c.vm.info.ID)
	if err != nil {
		return err
	}
	defer leave(&err)
	c.drop()
	return nil
}

// drop ends the cut and deletes its token.
func (c *cut) drop() {
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	if c.aborted {
		return
	}
	c.aborted = true
	if c.vm.job == c {
		c.vm.job = nil
	}
	delete(c.vm.tokens, c.info.Token)
}
