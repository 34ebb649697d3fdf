package model

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/vhdx"
)

// NewCheckpoint says what checkpoint to make.
type NewCheckpoint struct {
	Name            string
	Recovery        bool
	Consistency     uint8 // 1 application, 2 crash; 0 counts as crash
	SkipUnfreezable bool  // IgnoreNonSnapshottableDisks
}

// Checkpoint freezes all disks at one instant; the VM goes on in new files. The
// caller has set the operational status. VSS is asked before.
func (vm *VM) Checkpoint(ctx context.Context, spec NewCheckpoint) (Checkpoint, error) {
	st := vm.State()
	if spec.Consistency == 1 && st.Power == On {
		if err := vm.quiesce(ctx, st); err != nil {
			return Checkpoint{}, err
		}
	}
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	st = vm.State()
	cp := Checkpoint{ID: vm.site.NewGUID(), Name: spec.Name, Recovery: spec.Recovery, Parent: st.Last, Created: time.Now(), Consistency: max(spec.Consistency, 1)}
	if spec.Consistency != 1 {
		cp.Consistency = 2
	}
	for _, ds := range st.Disks {
		if !ds.Snapshotable() && !spec.SkipUnfreezable {
			return Checkpoint{}, fmt.Errorf("disk %s of VM %s is %s and can't be part of a checkpoint: %w", ds.Base, st.Name, ds.Kind, ErrMissing)
		}
	}
	hw := st.clone()
	hw.Checkpoints, hw.Points = nil, nil
	cp.Generation = hw
	if cp.Name == "" {
		cp.Name = st.Name + " - (" + cp.Created.Format("1/2/2006 - 3:04:05 PM") + ")"
	}
	wasOpen := vm.isOpen()
	leaves, err := vm.freeze(&cp)
	if err == nil {
		err = vm.change(func(st *State) error {
			for id, leaf := range leaves {
				ds := st.Disk(id)
				ds.file(ds.Leaf).Frozen = cp.seq(id)
				ds.Files = append(ds.Files, File{Path: leaf, Parent: ds.Leaf})
				ds.Leaf, ds.DataGUID = leaf, ""
			}
			st.Checkpoints = append(st.Checkpoints, cp)
			if !spec.Recovery {
				st.Last = cp.ID
			}
			return nil
		})
	}
	if err != nil {
		for _, leaf := range leaves {
			if p, lerr := vm.Host().Local(leaf); lerr == nil {
				err = errors.Join(err, removeFile(p))
			}
		}
	}
	if wasOpen {
		return cp, errors.Join(err, vm.openDisks())
	}
	if err == nil {
		for id := range leaves {
			err = errors.Join(err, vm.Disk(id).noteGUID())
		}
	}
	return cp, err
}

func (cp *Checkpoint) seq(disk string) uint64 {
	for _, d := range cp.Disks {
		if d.ID == disk {
			return d.Seq
		}
	}
	return 0
}

// isOpen reports whether the VM has its disks open.
func (vm *VM) isOpen() bool {
	for _, d := range vm.all() {
		if d.vol != nil {
			return true
		}
	}
	return false
}

// freeze closes all files, begins a new period of tracking and makes new leaves.
func (vm *VM) freeze(cp *Checkpoint) (leaves map[string]string, err error) {
	leaves = map[string]string{}
	h := vm.Host()
	for _, d := range vm.all() {
		ds := d.State()
		if !ds.Snapshotable() {
			continue
		}
		if err := errors.Join(d.checkIdle(), d.close(), d.renew()); err != nil {
			return leaves, err
		}
		rctID := ""
		if cp.Recovery {
			rctID = vm.site.newRCT()
		}
		seq, err := d.trk.Freeze(rctID)
		if err != nil {
			return leaves, err
		}
		if err := d.trk.Save(); err != nil {
			return leaves, err
		}
		stem := strings.TrimSuffix(ds.Base, ds.Base[strings.LastIndexByte(ds.Base, '.'):])
		leaf := stem + "_" + vm.site.NewGUID() + ".avhdx"
		parent, err := h.Local(ds.Leaf)
		if err != nil {
			return leaves, err
		}
		child, err := h.Local(leaf)
		if err != nil {
			return leaves, err
		}
		f, err := vhdx.CreateChild(child, parent, vhdx.CreateSpec{NoSync: true, Parent: &vhdx.Locator{Absolute: ds.Leaf, Relative: `.\` + filepath.Base(parent)}})
		if err != nil {
			return leaves, fmt.Errorf("freeze disk %s: %w", ds.ID, err)
		}
		leaves[ds.ID] = leaf
		if err := f.Close(); err != nil {
			return leaves, err
		}
		cp.Disks = append(cp.Disks, FrozenDisk{ID: ds.ID, Path: ds.Leaf, RCT: rctID, Seq: seq})
	}
	return leaves, nil
}

// newRCT makes an id in the form that Windows' own have.
func (s *Site) newRCT() string {
	return "rctX:" + strings.ToLower(strings.ReplaceAll(s.NewGUID(), "-", ":")) + ":00000001"
}

// quiesce asks the guest's VSS.
func (vm *VM) quiesce(ctx context.Context, st State) error {
	switch st.VSS {
	case VSSFail:
		return fmt.Errorf("the volume shadow copy service in VM %s failed: the writers timed out (0x80042319)", st.Name)
	case VSSAbsent:
		return fmt.Errorf("VM %s does not offer the backup integration service", st.Name)
	case VSSSlow:
		t := time.NewTimer(vm.site.cfg.VSSTime)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// checkpoint finds a checkpoint by its id.
func (st *State) checkpoint(id string) int {
	return slices.IndexFunc(st.Checkpoints, func(c Checkpoint) bool { return strings.EqualFold(c.ID, id) })
}

// Checkpoint finds a checkpoint of a state.
func (st *State) Checkpoint(id string) (Checkpoint, bool) {
	if i := st.checkpoint(id); i >= 0 {
		return st.Checkpoints[i], true
	}
	return Checkpoint{}, false
}

// DeleteCheckpoint removes a checkpoint; its files are merged in the background.
func (vm *VM) DeleteCheckpoint(id string) error {
	err := vm.change(func(st *State) error {
		i := st.checkpoint(id)
		if i < 0 {
			return fmt.Errorf("checkpoint %s of VM %s: %w", id, st.Name, ErrNotFound)
		}
		st.drop(i)
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(vm.trim(), vm.merge())
}

func (st *State) drop(i int) {
	id, parent := st.Checkpoints[i].ID, st.Checkpoints[i].Parent
	st.Checkpoints = slices.Delete(st.Checkpoints, i, i+1)
	for k := range st.Checkpoints {
		if st.Checkpoints[k].Parent == id {
			st.Checkpoints[k].Parent = parent
		}
	}
	if st.Last == id {
		st.Last = parent
	}
}

// Convert turns a recovery checkpoint into a reference point.
func (vm *VM) Convert(id, name string) (Point, error) {
	var p Point
	pid := vm.site.NewGUID()
	err := vm.change(func(st *State) error {
		i := st.checkpoint(id)
		if i < 0 {
			return fmt.Errorf("checkpoint %s of VM %s: %w", id, st.Name, ErrNotFound)
		}
		cp := st.Checkpoints[i]
		if !cp.Recovery {
			return fmt.Errorf("checkpoint %s is no recovery checkpoint: %w", id, ErrState)
		}
		p = Point{ID: pid, Name: name, Consistency: cp.Consistency, Created: cp.Created}
		if name == "" {
			p.Name = cp.Name
		}
		for _, d := range cp.Disks {
			d.Path = ""
			p.Disks = append(p.Disks, d)
		}
		st.Points = append(st.Points, p)
		st.drop(i)
		return nil
	})
	if err != nil {
		return p, err
	}
	return p, errors.Join(vm.trim(), vm.merge())
}

// NewPoint makes a reference point without a checkpoint.
func (vm *VM) NewPoint(name string, log bool, consistency uint8) (Point, error) {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	p := Point{ID: vm.site.NewGUID(), Name: name, Log: log, Consistency: consistency, Created: time.Now()}
	for _, d := range vm.all() {
		if ds := d.State(); !ds.Snapshotable() {
			continue
		}
		if err := errors.Join(d.checkIdle(), d.renew()); err != nil {
			return p, err
		}
		f := FrozenDisk{ID: d.ID}
		if log {
			file, err := d.turnLog()
			if err != nil {
				return p, err
			}
			if file != "" {
				p.Logs = append(p.Logs, Log{Disk: d.ID, Path: file})
			}
		} else {
			f.RCT = vm.site.newRCT()
		}
		seq, err := d.trk.Freeze(f.RCT)
		if err != nil {
			return p, err
		}
		f.Seq = seq
		p.Disks = append(p.Disks, f)
	}
	return p, vm.change(func(st *State) error { st.Points = append(st.Points, p); return nil })
}

// DeletePoint removes a reference point and its logs.
func (vm *VM) DeletePoint(id string) error {
	if err := vm.DropLogs(id); err != nil {
		return err
	}
	last := false
	err := vm.change(func(st *State) error {
		i := slices.IndexFunc(st.Points, func(p Point) bool { return strings.EqualFold(p.ID, id) })
		if i < 0 {
			return fmt.Errorf("reference point %s of VM %s: %w", id, st.Name, ErrNotFound)
		}
		st.Points = slices.Delete(st.Points, i, i+1)
		last = !slices.ContainsFunc(st.Points, func(p Point) bool { return p.Log })
		return nil
	})
	if err != nil {
		return err
	}
	if last {
		err = vm.endLogs()
	}
	return errors.Join(err, vm.trim())
}

// Point finds a reference point of a state.
func (st *State) Point(id string) (Point, bool) {
	for _, p := range st.Points {
		if strings.EqualFold(p.ID, id) {
			return p, true
		}
	}
	return Point{}, false
}

// trim lets the tracking forget points that nobody has any more.
func (vm *VM) trim() error {
	st := vm.State()
	var errs []error
	for _, d := range vm.all() {
		keep := map[uint64]bool{}
		for _, c := range st.Checkpoints {
			for _, f := range c.Disks {
				if f.ID == d.ID {
					keep[f.Seq] = true
				}
			}
		}
		for _, p := range st.Points {
			for _, f := range p.Disks {
				if f.ID == d.ID {
					keep[f.Seq] = true
				}
			}
		}
		errs = append(errs, d.trk.Keep(keep))
	}
	return errors.Join(errs...)
}

// ApplyCheckpoint brings the VM back to a checkpoint. The VM must be off. What was written since is gone,
// and tracking knows nothing of before.
func (vm *VM) ApplyCheckpoint(id string) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	st := vm.State()
	cp, ok := st.Checkpoint(id)
	switch {
	case !ok:
		return fmt.Errorf("checkpoint %s of VM %s: %w", id, st.Name, ErrNotFound)
	case cp.Recovery:
		return fmt.Errorf("a recovery checkpoint can't be applied here: %w", ErrState)
	case st.Power != Off && st.Power != Saved:
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	h := vm.Host()
	var old []string
	for _, f := range cp.Disks {
		d, ds := vm.Disk(f.ID), st.Disk(f.ID)
		if d == nil || ds == nil {
			continue
		}
		leaf := strings.TrimSuffix(ds.Base, ds.Base[strings.LastIndexByte(ds.Base, '.'):]) + "_" + vm.site.NewGUID() + ".avhdx"
		parent, err := h.Local(f.Path)
		if err != nil {
			return err
		}
		child, err := h.Local(leaf)
		if err != nil {
			return err
		}
		file, err := vhdx.CreateChild(child, parent, vhdx.CreateSpec{NoSync: true, Parent: &vhdx.Locator{Absolute: f.Path, Relative: `.\` + filepath.Base(parent)}})
		if err != nil {
			return err
		}
		if err := errors.Join(file.Close(), d.abandonLog(), d.trk.Lose()); err != nil {
			return err
		}
		if !strings.EqualFold(ds.Leaf, ds.Base) && ds.children(ds.Leaf) == 0 {
			old = append(old, ds.Leaf)
		}
		if err := d.edit(func(ds *DiskState) {
			if gone := ds.Leaf; slices.Contains(old, gone) {
				ds.Files = slices.DeleteFunc(ds.Files, func(f File) bool { return f.Path == gone })
			}
			ds.Files = append(ds.Files, File{Path: leaf, Parent: f.Path})
			ds.Leaf, ds.DataGUID = leaf, ""
		}); err != nil {
			return err
		}
	}
	err := vm.change(func(st *State) error {
		st.Last = cp.ID
		g := cp.Generation
		st.CPUs, st.MemoryMB, st.NICs, st.Notes = g.CPUs, g.MemoryMB, g.NICs, g.Notes
		st.Power = Off
		return nil
	})
	for _, p := range old {
		if local, lerr := h.Local(p); lerr == nil {
			err = errors.Join(err, removeFile(local))
		}
	}
	return err
}

// mergeable finds a disk whose leaf can be merged into its parent: no checkpoint
// holds the parent and it has no other child.
func (st *State) mergeable() *DiskState {
	for i := range st.Disks {
		ds := &st.Disks[i]
		f := ds.file(ds.Leaf)
		if f == nil || f.Parent == "" || ds.children(f.Parent) != 1 || ds.children(ds.Leaf) != 0 {
			continue
		}
		if !st.holds(ds.ID, f.Parent) {
			return ds
		}
	}
	return nil
}

// holds reports whether a checkpoint needs a file.
func (st *State) holds(disk, path string) bool {
	for _, c := range st.Checkpoints {
		for _, f := range c.Disks {
			if f.ID == disk && strings.EqualFold(f.Path, path) {
				return true
			}
		}
	}
	return false
}

// unused finds a file that nothing needs: a leaf that is no VM's, and no checkpoint's.
func (st *State) unused() (*DiskState, string) {
	for i := range st.Disks {
		ds := &st.Disks[i]
		for _, f := range ds.Files {
			if f.Parent != "" && !strings.EqualFold(f.Path, ds.Leaf) && ds.children(f.Path) == 0 && !st.holds(ds.ID, f.Path) {
				return ds, f.Path
			}
		}
	}
	return nil, ""
}

// merge begins to merge files that are not needed any more, in the background.
func (vm *VM) merge() error {
	if st := vm.State(); st.mergeable() == nil {
		vm.op.Lock()
		defer vm.op.Unlock()
		return vm.collect()
	}
	vm.site.mu.Lock()
	defer vm.site.mu.Unlock()
	if vm.merging || vm.host.noMerge || vm.site.ctx.Err() != nil {
		return nil
	}
	vm.merging = true
	vm.site.wg.Go(vm.mergeLoop)
	return nil
}

// mergeLoop merges until nothing is left; a failure (a reader has a file open) is tried again.
func (vm *VM) mergeLoop() {
	wait := vm.site.cfg.MergeTime
	for {
		err := vm.setMerging(true)
		if err == nil && vm.site.BeforeMerge != nil {
			err = vm.site.BeforeMerge(vm.site.ctx, vm.Host().Conf.Name, vm.State())
		}
		t := time.NewTimer(wait)
		select {
		case <-vm.site.ctx.Done():
			t.Stop()
			return // the next program goes on with it
		case <-t.C:
		}
		if err == nil {
			err = vm.mergeNow(vm.site.ctx)
		}
		vm.site.mu.Lock()
		done := vm.gone || vm.host.noMerge || vm.st.mergeable() == nil
		if done {
			vm.merging = false
		}
		vm.site.mu.Unlock()
		if done {
			if err := vm.setMerging(false); err != nil && !errors.Is(err, ErrNotFound) {
				vm.site.log.Error("end of a merge can't be stored", "vm", vm.id, "error", err)
			}
			return
		}
		if err != nil {
			vm.site.log.Warn("merge of a checkpoint's files is tried again", "vm", vm.id, "error", err)
			wait = min(max(2*wait, 20*time.Millisecond), time.Second)
		}
	}
}

// setMerging shows or hides a merge in the operational status, unless something else shows.
func (vm *VM) setMerging(on bool) error {
	return vm.change(func(st *State) error {
		if on && st.Status == 0 {
			st.Status = Merging
		} else if !on && st.Status == Merging {
			st.Status = 0
		}
		return nil
	})
}

// mergeNow merges all that can be merged.
func (vm *VM) mergeNow(ctx context.Context) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	h := vm.Host()
	for {
		st := vm.State()
		ds := st.mergeable()
		if ds == nil {
			return vm.collect()
		}
		d := vm.Disk(ds.ID)
		wasOpen := d.vol != nil
		if err := d.checkIdle(); err != nil {
			// a merge that a program did not finish has changed the parent: the chain can't be opened before it is merged
			vm.site.log.Info("disk is merged without a look at it", "disk", ds.ID, "error", err)
		}
		if err := d.close(); err != nil {
			return err
		}
		leaf, parent := ds.Leaf, ds.file(ds.Leaf).Parent
		child, err := h.Local(leaf)
		if err != nil {
			return err
		}
		into, err := h.Local(parent)
		if err != nil {
			return err
		}
		if err := vhdx.Merge(ctx, child, into, nil); err != nil {
			if wasOpen {
				err = errors.Join(err, d.open())
			}
			return fmt.Errorf("merge %s into %s: %w", leaf, parent, err)
		}
		err = d.edit(func(ds *DiskState) {
			ds.Files = slices.DeleteFunc(ds.Files, func(f File) bool { return f.Path == leaf })
			ds.file(parent).Frozen = 0
			ds.Leaf, ds.DataGUID = parent, ""
		})
		if err != nil {
			return err
		}
		if err := errors.Join(removeFile(child), d.noteGUID()); err != nil {
			return err
		}
		if wasOpen {
			if err := d.open(); err != nil {
				return err
			}
		}
	}
}

// collect removes files of branches that nothing needs any more. The caller holds op.
func (vm *VM) collect() error {
	for {
		st := vm.State()
		ds, path := st.unused()
		if ds == nil {
			return nil
		}
		local, err := vm.Host().Local(path)
		if err != nil {
			return err
		}
		if err := vm.Disk(ds.ID).edit(func(ds *DiskState) {
			ds.Files = slices.DeleteFunc(ds.Files, func(f File) bool { return f.Path == path })
		}); err != nil {
			return err
		}
		if err := removeFile(local); err != nil {
			return err
		}
	}
}

// settle ends what a program left half done: merges are done before anything is opened.
func (vm *VM) settle(ctx context.Context) error {
	for _, d := range vm.all() {
		if err := d.loadTracker(); err != nil {
			return err
		}
	}
	st := vm.State()
	if st.mergeable() == nil || vm.host.noMerge {
		return nil
	}
	return vm.mergeNow(ctx)
}
