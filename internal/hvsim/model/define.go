package model

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// RenameCheckpoint gives a checkpoint another name.
func (vm *VM) RenameCheckpoint(id, name string) error {
	return vm.change(func(st *State) error {
		i := st.checkpoint(id)
		if i < 0 {
			return fmt.Errorf("checkpoint %s of VM %s: %w", id, st.Name, ErrNotFound)
		}
		st.Checkpoints[i].Name = name
		return nil
	})
}

// InsertImage puts an image into a DVD drive, "" takes it out.
func (vm *VM) InsertImage(controller string, slot int, path string) error {
	if path != "" {
		local, err := vm.Host().Local(path)
		if err != nil {
			return fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if _, err := os.Stat(local); err != nil {
			return err
		}
	}
	return vm.Change(func(st *State) error {
		for i, d := range st.Drives {
			if d.DVD && strings.EqualFold(d.Controller, controller) && d.Slot == slot {
				st.Drives[i].Image = path
				return nil
			}
		}
		return fmt.Errorf("DVD drive in slot %d of VM %s: %w", slot, st.Name, ErrNotFound)
	})
}

// RemoveDevice removes an empty drive, a controller without drives, or a network adapter.
func (vm *VM) RemoveDevice(id string, slot int) error {
	return vm.Change(func(st *State) error {
		before := len(st.NICs) + len(st.Drives) + len(st.Controllers)
		if slot >= 0 {
			for _, d := range st.Disks {
				if strings.EqualFold(d.Controller, id) && d.Slot == slot {
					return fmt.Errorf("the drive in slot %d of VM %s has a disk: %w", slot, st.Name, ErrState)
				}
			}
			st.Drives = slices.DeleteFunc(st.Drives, func(d Drive) bool { return strings.EqualFold(d.Controller, id) && d.Slot == slot })
		} else {
			st.NICs = slices.DeleteFunc(st.NICs, func(n NIC) bool { return strings.EqualFold(n.ID, id) })
			if slices.ContainsFunc(st.Drives, func(d Drive) bool { return strings.EqualFold(d.Controller, id) }) {
				return fmt.Errorf("controller %s of VM %s has drives: %w", id, st.Name, ErrState)
			}
			st.Controllers = slices.DeleteFunc(st.Controllers, func(c Controller) bool { return strings.EqualFold(c.ID, id) && c.Type != "IDE" })
		}
		if len(st.NICs)+len(st.Drives)+len(st.Controllers) == before {
			return fmt.Errorf("device %s of VM %s: %w", id, st.Name, ErrNotFound)
		}
		return nil
	})
}

// Rewire puts another file into the drive of a disk of a VM that is off or planned.
func (vm *VM) Rewire(controller string, slot int, path string) error {
	st := vm.State()
	if st.Power != Off {
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	for _, d := range st.Disks {
		if strings.EqualFold(d.Controller, controller) && d.Slot == slot {
			if strings.EqualFold(d.Leaf, path) {
				return nil
			}
			if err := vm.RemoveDisk(d.ID, false); err != nil {
				return err
			}
			break
		}
	}
	_, err := vm.Attach(controller, slot, path, "", "")
	return err
}

// Import makes a planned VM of a configuration that was read from a file. Its checkpoints,
// reference points and change tracking stay behind.
func (h *Host) Import(st State, freshID bool) (*VM, error) {
	if freshID || st.ID == "" {
		st.ID = h.site.NewGUID()
	}
	vm := &VM{site: h.site, host: h, id: st.ID, changed: time.Now()}
	st.Host, st.Planned, st.Power, st.Status, st.Last = h.Conf.Name, true, Off, 0, ""
	st.Checkpoints, st.Points, st.Replication = nil, nil, Replication{}
	for i := range st.Disks {
		d := &st.Disks[i]
		d.Base, d.Files, d.DataGUID, d.Newer = d.Leaf, []File{{Path: d.Leaf}}, "", false
		vm.disks = append(vm.disks, &Disk{vm: vm, ID: d.ID})
	}
	for i, n := range st.NICs {
		if _, ok := h.Switch(n.Switch); !ok {
			st.NICs[i].Switch = ""
		}
	}
	h.site.mu.Lock()
	if h.site.vms[st.ID] != nil {
		h.site.mu.Unlock()
		return nil, fmt.Errorf("a VM with id %s exists: %w", st.ID, ErrInvalid)
	}
	h.site.vms[st.ID] = vm
	h.site.mu.Unlock()
	if err := vm.change(func(v *State) error { *v = st; return nil }); err != nil {
		return nil, err
	}
	for _, d := range vm.all() {
		if err := d.loadTracker(); err != nil {
			return nil, errors.Join(err, vm.Delete())
		}
		if err := d.trk.Lose(); err != nil {
			return nil, errors.Join(err, vm.Delete())
		}
	}
	return vm, nil
}

// Validate checks that a planned VM can be realized on its host: its disks are there.
func (vm *VM) Validate() error {
	for _, d := range vm.State().Disks {
		img, err := vm.Host().Image(d.Leaf)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Leaf, err)
		}
		if owner, _ := vm.Host().FindFile(d.Leaf); owner != nil && owner != vm && owner.State().Power != Off {
			return fmt.Errorf("disk %s belongs to VM %s: %w", d.Leaf, owner.id, ErrInUse)
		}
		if d.Snapshotable() && img.Size != d.Size {
			if err := vm.Disk(d.ID).edit(func(ds *DiskState) { ds.Size = img.Size }); err != nil {
				return err
			}
		}
	}
	return nil
}

// Realize makes a planned VM an ordinary one.
func (vm *VM) Realize() error {
	if err := vm.Validate(); err != nil {
		return err
	}
	return vm.Change(func(st *State) error { st.Planned = false; return nil })
}
