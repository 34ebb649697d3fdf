package cutting

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/records"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// granularity is what changed ranges are rounded up to. The granularity of
// resilient change tracking is not documented; ranges come as the host tells them.
const granularity = 4096

// BeginCut makes a recovery checkpoint, whose disks are frozen.
func (h *Cutter) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	const op = "BeginCut"
	if err := validateCut(req); err != nil {
		return nil, err
	}
	id, err := vms.ID(op, req.VM)
	if err != nil {
		return nil, err
	}
	unlock, err := h.Lock(ctx, op, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := h.prepare(ctx, op, req)
	if err != nil {
		return nil, err
	}
	if err := h.freeze(ctx, p); err != nil {
		return nil, h.takeBack(ctx, p, err)
	}
	c, err := h.openCut(ctx, p)
	if err != nil {
		return nil, h.takeBack(ctx, p, err)
	}
	return c, nil
}

func validateCut(req hypervisor.CutRequest) error {
	const op = "hyperv.BeginCut"
	if len(req.Disks) == 0 {
		return dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "the cut of VM %s names no disk", req.VM)
	}
	for i, d := range req.Disks {
		if slices.Contains(req.Disks[:i], d) {
			return dr.Errorf(dr.KindInvalid, op, "the cut of VM %s names disk %s twice", req.VM, d)
		}
	}
	if !hypervisor.ValidTag(req.Tag) {
		return dr.Errorf(dr.KindInvalid, op, "%q can't be the tag of a cut: 1 to 64 letters, digits and hyphens", req.Tag)
	}
	return nil
}

// plan is a cut that is being begun. All checks that need no checkpoint are done.
type plan struct {
	op    string
	req   hypervisor.CutRequest
	vm    *msvm.VM
	disks map[string]vms.Disk // of the request
	base  *baseToken          // nil: everything counts as changed
	rec   *tokenRecord        // written once the checkpoint is asked for

	time        time.Time
	consistency dr.Consistency
	note        string
	held        time.Duration
}

// baseToken is a token that the host still has.
type baseToken struct {
	rec   *tokenRecord
	point msvm.ReferencePoint
}

// prepare checks everything and ends what an earlier process left open. It changes nothing of the VM else.
func (h *Cutter) prepare(ctx context.Context, op string, req hypervisor.CutRequest) (*plan, error) {
	id, err := vms.ID(op, req.VM)
	if err != nil {
		return nil, err
	}
	p := &plan{op: op, req: req, consistency: dr.CrashConsistent}
	if p.vm, _, err = h.Load(ctx, op, req.VM, msvm.Storage); err != nil {
		return nil, err
	}
	if h.IsOpen(id) {
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "hyperv."+op, "a cut of VM %s is open", p.vm.Name)
	}
	if err := h.EndStale(ctx, op, id, nil); err != nil {
		return nil, err
	}
	token := records.Prefix + req.Tag
	switch _, err := h.store.get(id, token); {
	case err == nil:
		return nil, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hyperv."+op, "VM %s has a cut with the tag %s", p.vm.Name, req.Tag)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the record of token %s: %w", token, err)
	}
	if err := h.gate(ctx, p); err != nil {
		return nil, err
	}
	if p.vm, _, err = h.Load(ctx, op, req.VM, msvm.Storage); err != nil { // a merge that was waited for has changed the files
		return nil, err
	}
	all, err := h.DisksOf(ctx, op, p.vm)
	if err != nil {
		return nil, err
	}
	if p.disks, err = requested(op, p.vm, all, req.Disks); err != nil {
		return nil, err
	}
	if req.Base != "" {
		if p.base, err = h.findBase(ctx, op, id, req.Base); err != nil {
			return nil, err
		}
	}
	p.rec = &tokenRecord{VM: id, Token: token, Phase: phaseCreating}
	return p, nil
}

// IsOpen reports whether a cut of a VM is open.
func (h *Cutter) IsOpen(vm string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[vm] != nil
}

// requested picks the disks that a request names.
func requested(op string, vm *msvm.VM, all []vms.Disk, ids []string) (map[string]vms.Disk, error) {
	out := map[string]vms.Disk{}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(d vms.Disk) bool { return d.ID == id })
		if i < 0 {
			return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "hyperv."+op, "VM %s has no disk %s", vm.Name, id)
		}
		d := all[i]
		if d.Unreplicatable != "" {
			return nil, dr.New(dr.KindUnsupported, d.Code, "hyperv."+op, "disk %s of VM %s (%s) can't be replicated: %s", id, vm.Name, d.Path, d.Unreplicatable)
		}
		out[id] = d
	}
	return out, nil
}

// findBase finds the token that changes are asked since.
func (h *Cutter) findBase(ctx context.Context, op, vm, token string) (*baseToken, error) {
	lost := func(why string) error {
		return dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "hyperv."+op, "changes of VM %s since %s are not known: %s", vm, token, why)
	}
	rec, err := h.store.get(vm, token)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, lost("there is no record of it")
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the record of token %s: %w", token, err)
	}
	if rec.Phase != phaseEnded || rec.Point == "" {
		return nil, lost("its cut was not ended")
	}
	points, err := h.MS.ReferencePoints(ctx, vm)
	if err != nil {
		return nil, msvm.Wrap(op, "list the reference points of VM "+vm, "", err)
	}
	for _, r := range points {
		if !strings.EqualFold(r.ID, rec.Point) {
			continue
		}
		if len(r.Disks) != len(r.RCT) {
			return nil, lost(fmt.Sprintf("its reference point has %d disks but %d tracking ids", len(r.Disks), len(r.RCT)))
		}
		return &baseToken{rec, r}, nil
	}
	return nil, lost("its reference point is gone")
}

// minMajor and minMinor are the first configuration version with resilient change tracking.
const minMajor, minMinor = 6, 2

// gate refuses VMs that no checkpoint can be made of now, and waits a little for those where it soon can.
func (h *Cutter) gate(ctx context.Context, p *plan) error {
	op, vm := "hyperv."+p.op, p.vm
	if tooOld(vm.Settings.Version) {
		return dr.New(dr.KindUnsupported, dr.CodeConfigurationOld, op, "VM %s has configuration version %s; change tracking needs %d.%d", vm.Name, vm.Settings.Version, minMajor, minMinor)
	}
	if vm.Settings.NoCheckpoints() {
		return dr.New(dr.KindPrecondition, dr.CodeCheckpointsOff, op, "the settings of VM %s forbid checkpoints", vm.Name)
	}
	if vm.State == msvm.Off && !p.req.Offline {
		return dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, op, "VM %s is off", vm.Name)
	}
	return h.WaitIdle(ctx, p.op, vm)
}

func tooOld(version string) bool {
	major, minor, _ := strings.Cut(version, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if err1 != nil || version == "" {
		return false // not known: the host will say
	}
	return a < minMajor || a == minMajor && err2 == nil && b < minMinor
}

// freeze makes the checkpoint: application-consistent if that was asked for and can be, else crash-consistent.
func (h *Cutter) freeze(ctx context.Context, p *plan) error {
	p.time = time.Now()
	p.rec.Made = p.time
	if err := h.putRecord(p.op, p.rec); err != nil {
		return err
	}
	if p.req.Quiesce && p.vm.State != msvm.Off {
		done, err := h.freezeQuiesced(ctx, p)
		if err != nil || done {
			return err
		}
		p.time = time.Now()
	}
	_, err := h.checkpoint(ctx, p, msvm.CrashConsistent)
	if err != nil && msvm.Refused(err) && p.vm.State == msvm.Off {
		// An idle chain stands still by itself; only the new token is not to be had.
		h.log.Info("the host makes no checkpoint of a VM that is off; its disk files are read as they are", "vm", p.vm.Name, "err", err)
		p.rec.Direct = true
		return nil
	}
	return msvm.Wrap(p.op, "make a recovery checkpoint of VM "+p.vm.Name, dr.CodeCheckpointFailed, err)
}

// freezeQuiesced tries an application-consistent checkpoint. done is false where
// a crash-consistent one is due; p.note says why.
func (h *Cutter) freezeQuiesced(ctx context.Context, p *plan) (done bool, err error) {
	vss, err := h.MS.Component(ctx, p.vm.ID, "Msvm_VssComponent")
	if err != nil {
		return false, msvm.Wrap(p.op, "ask for the backup service in VM "+p.vm.Name, "", err)
	}
	if !vss.OK() {
		p.note = "the guest's backup integration service is not available: " + vss.Text()
		return false, nil
	}
	limit, cancel := context.WithTimeout(ctx, h.cfg.QuiesceLimit)
	defer cancel()
	warned, err := h.checkpoint(limit, p, msvm.ApplicationConsistent)
	switch {
	case err == nil && warned:
		p.note = "the host made the application-consistent checkpoint with warnings"
		return true, nil
	case err == nil:
		p.consistency = h.quiesced(ctx, p.vm)
		return true, nil
	case ctx.Err() != nil:
		return false, msvm.Wrap(p.op, "make an application-consistent checkpoint of VM "+p.vm.Name, "", err)
	}
	p.note = "the guest's snapshot failed: " + err.Error()
	if !msvm.Refused(err) {
		p.note = fmt.Sprintf("the guest's snapshot did not end within %s", h.cfg.QuiesceLimit)
	}
	h.log.Warn("application-consistent checkpoint failed; making a crash-consistent one", "vm", p.vm.Name, "code", string(dr.CodeVSSFailed), "err", err)
	if err := h.destroyNamed(ctx, p.rec); err != nil { // it may be there although its call failed
		return false, msvm.Wrap(p.op, "remove a failed checkpoint of VM "+p.vm.Name, dr.CodeCheckpointFailed, err)
	}
	if vm, _, err := h.Load(ctx, p.op, dr.VMID(p.vm.ID), msvm.Systems); err != nil {
		return false, err
	} else {
		p.vm.System = vm.System
	}
	return false, h.WaitIdle(ctx, p.op, p.vm)
}

// quiesced is what a production checkpoint means for the guest: VSS in Windows, file-system freeze in Linux.
func (h *Cutter) quiesced(ctx context.Context, vm *msvm.VM) dr.Consistency {
	w, err := h.MS.Load(ctx, vm.ID, msvm.All)
	if err == nil && w.VMs[vm.ID] != nil && vms.OSType(w.VMs[vm.ID].KVP) == "Windows" {
		return dr.AppConsistent
	}
	return dr.FileSystemConsistent
}

// checkpoint makes a recovery checkpoint and writes down which one it is.
func (h *Cutter) checkpoint(ctx context.Context, p *plan, level uint8) (warned bool, err error) {
	var id string
	if err := h.Patiently(ctx, p.op, p.vm.ID, func() (err error) { // a merge may have begun since the gate
		id, warned, err = h.MS.CreateRecoveryCheckpoint(ctx, p.vm.ID, h.stamp.Name(p.rec.Token), level)
		return err
	}); err != nil {
		return warned, err
	}
	list, err := h.MS.Checkpoints(ctx, p.vm.ID)
	if err != nil {
		return warned, err
	}
	for _, s := range list {
		switch {
		case id == "" && s.Recovery() && h.stamp.Is(s.Name, p.rec.Token):
			id = s.ID
		case id != "" && strings.EqualFold(s.ID, id) && !h.stamp.Is(s.Name, p.rec.Token):
			if err := h.MS.RenameCheckpoint(ctx, id, h.stamp.Name(p.rec.Token)); err != nil {
				h.log.Warn("a recovery checkpoint could not be given its name", "vm", p.vm.Name, "checkpoint", id, "err", err)
			}
		}
	}
	if id == "" {
		return warned, dr.New(dr.KindUnavailable, dr.CodeCheckpointFailed, "hyperv."+p.op, "the host made a checkpoint of VM %s but does not say which one", p.vm.Name)
	}
	p.rec.Checkpoint = id
	return warned, h.putRecord(p.op, p.rec)
}

func (h *Cutter) putRecord(op string, r *tokenRecord) error {
	if err := h.store.put(r); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "write the record of token %s: %w", r.Token, err)
	}
	return nil
}

// takeBack undoes a cut that could not be begun, within Config.UndoTimeout; the
// next operation on the VM does what is left.
func (h *Cutter) takeBack(ctx context.Context, p *plan, cause error) error {
	ctx, cancel := h.undo(ctx)
	defer cancel()
	err := h.destroyNamed(ctx, p.rec)
	if err == nil {
		err = h.store.drop(p.rec)
	}
	if err != nil {
		h.log.Warn("a cut that failed is not taken back yet; the next operation on the VM tries again", "vm", p.vm.Name, "token", p.rec.Token, "err", err)
	}
	return cause
}

// openCut opens the frozen disks, learns what has changed in them and registers the cut.
func (h *Cutter) openCut(ctx context.Context, p *plan) (_ *cut, err error) {
	c := &cut{host: h, vm: p.vm.ID, name: p.vm.Name, rec: p.rec, disks: map[string]*cutDisk{}, verified: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.closeDisks())
		}
	}()
	if err := h.openFrozen(ctx, p, c); err != nil {
		return nil, err
	}
	c.info = hypervisor.CutInfo{Token: p.rec.Token, Time: p.time, Consistency: p.consistency, Note: p.note, Held: p.held}
	for _, id := range p.req.Disks {
		d := c.disks[id]
		if err := h.changes(ctx, p.op, p.vm.Name, p.base, p.disks[id], d); err != nil {
			return nil, err
		}
		c.info.Incremental = c.info.Incremental || !d.whole
	}
	if p.base != nil && !c.info.Incremental {
		return nil, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "hyperv."+p.op, "changes of VM %s since %s are not known for any disk: %s", p.vm.Name, p.req.Base, c.disks[p.req.Disks[0]].why)
	}
	for _, id := range p.req.Disks {
		d := c.disks[id]
		cd := hypervisor.CutDisk{ID: id, Size: d.info.Size, Granularity: granularity, Whole: d.whole}
		if c.info.Incremental {
			cd.Why = d.why
		}
		c.info.Disks = append(c.info.Disks, cd)
		p.rec.Disks = append(p.rec.Disks, diskRecord{ID: id, Instance: p.disks[id].Instance, Size: d.info.Size, Recent: d.info.Tracking.MostRecentID})
	}
	p.rec.Phase = phaseOpen
	if err := h.putRecord(p.op, p.rec); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return nil, dr.Errorf(dr.KindCanceled, "hyperv."+p.op, "the connection to the host is closed")
	}
	h.open[c.vm] = c
	return c, nil
}

// openFrozen opens the requested disks of the checkpoint, found by their virtual disk ids.
func (h *Cutter) openFrozen(ctx context.Context, p *plan, c *cut) error {
	paths := []string{}
	if p.rec.Direct {
		for _, d := range p.disks {
			paths = append(paths, d.Path)
		}
	} else {
		drives, err := h.MS.CheckpointDrives(ctx, p.rec.Checkpoint)
		if err != nil {
			return msvm.Wrap(p.op, "list the disks of the checkpoint of VM "+p.vm.Name, dr.CodeCheckpointFailed, err)
		}
		for _, d := range drives {
			if !d.Physical && !d.Shared && vms.IsVHDX(d.Path) {
				paths = append(paths, d.Path)
			}
		}
	}
	for _, path := range paths {
		d, err := h.cfg.Disks.Open(ctx, path, false)
		if err != nil {
			return port.Error(p.op, "open the frozen disk "+path, err)
		}
		info := d.Info()
		if _, wanted := p.disks[info.ID]; !wanted {
			if err := d.Close(); err != nil {
				h.log.Warn("close a disk that is not replicated", "path", path, "err", err)
			}
			continue
		}
		if c.disks[info.ID] != nil {
			return errors.Join(dr.New(dr.KindPrecondition, dr.CodeDiskNotTrackable, "hyperv."+p.op, "two disks of VM %s have the virtual disk id %s", p.vm.Name, info.ID), d.Close())
		}
		c.disks[info.ID] = &cutDisk{path: path, disk: d, info: info}
	}
	for id, d := range p.disks {
		if c.disks[id] == nil {
			return dr.New(dr.KindUnavailable, dr.CodeCheckpointFailed, "hyperv."+p.op, "the checkpoint of VM %s lacks disk %s (%s)", p.vm.Name, id, d.Path)
		}
	}
	return nil
}

// changes learns what has changed in a frozen disk since the base, or why that is not known.
func (h *Cutter) changes(ctx context.Context, op, vmName string, base *baseToken, vd vms.Disk, d *cutDisk) error {
	if base == nil {
		d.whole = true
		return nil
	}
	set, why, err := h.changedSince(ctx, op, vmName, base, vd, d.path, d.disk, d.info)
	if err != nil {
		return err
	}
	d.changed, d.why, d.whole = set, why, why != ""
	return nil
}

// changedSince returns the changed ranges of a disk, or why they are not known.
// disk may be nil: then only the host's management service is asked.
func (h *Cutter) changedSince(ctx context.Context, op, vmName string, base *baseToken, vd vms.Disk, path string, disk port.Disk, info port.DiskInfo) (set extent.Set, why string, err error) {
	old, ok := base.rec.disk(vd.ID)
	if !ok {
		return nil, "the base has no such disk: it was added or replaced", nil
	}
	if old.Size != info.Size {
		return nil, fmt.Sprintf("the disk was resized from %d to %d bytes, which ends change tracking", old.Size, info.Size), nil
	}
	rct, ok := base.point.RCTOf(vd.ID, old.Instance)
	if !ok {
		return nil, "the base's reference point has no tracking id of the disk", nil
	}
	if t := info.Tracking; t.Known && !t.Enabled {
		return nil, "change tracking of the disk is off", nil
	} else if t.Known && t.NewerChanges {
		return nil, "the disk was changed while it was not tracked", nil
	}
	var list []extent.Extent
	add := func(off, n int64) error {
		list = append(list, extent.Extent{Off: off, Len: n})
		return nil
	}
	if r, ok := disk.(port.ChangeReader); ok {
		err = r.Changes(ctx, rct, 0, info.Size, add)
	} else {
		err = h.MS.VirtualDiskChanges(ctx, path, rct, info.Size, add)
	}
	what := fmt.Sprintf("ask for the changes of disk %s of VM %s", vd.ID, vmName)
	switch {
	case errors.Is(err, port.ErrTrackingLost), err != nil && disk == nil && msvm.Lost(err), err != nil && !isReader(disk) && msvm.Lost(err):
		return nil, "the host does not know the changes since the base: " + err.Error(), nil
	case err != nil && isReader(disk):
		return nil, "", port.Error(op, what, err)
	case err != nil:
		return nil, "", msvm.Wrap(op, what, "", err)
	}
	return extent.Normalize(list).AlignOut(granularity, info.Size), "", nil
}

func isReader(d port.Disk) bool { _, ok := d.(port.ChangeReader); return ok }
