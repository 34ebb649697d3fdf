package sim

import (
	"fmt"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// What an administrator does to a VM's disks. As with real platforms none of it
// is possible while a backup job is open.

// attach adds a disk; the VM's lock is held, or nobody knows the VM yet.
func attach(v *VM, d DiskSpec, boot bool) {
	path := fmt.Sprintf("/sim/%s/%s.img", v.info.Name, d.ID)
	v.disks = append(v.disks, newDisk(d.ID, path, d.Size, v.world.cfg.Granularity))
	v.info.Disks = append(v.info.Disks, dr.Disk{ID: d.ID, Path: path, Format: "sim", Size: d.Size, Boot: boot, Shared: d.Shared, Unreplicatable: d.Unreplicatable})
}

// reshape runs change with the VM's lock held, unless a backup job is open.
func (v *VM) reshape(change func() error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.job != nil || v.alien {
		return fmt.Errorf("VM %s is busy with a backup job", v.info.Name)
	}
	return change()
}

// AddDisk attaches an empty disk.
func (v *VM) AddDisk(d DiskSpec) error {
	return v.reshape(func() error {
		if _, err := findDisk(v, d.ID); err == nil {
			return fmt.Errorf("VM %s has a disk %s already", v.info.Name, d.ID)
		}
		loseDisk(v, d.ID, "it is another disk than before") // of a former one of the same name
		attach(v, d, false)
		return nil
	})
}

// RemoveDisk detaches a disk; its content is gone.
func (v *VM) RemoveDisk(diskID string) error {
	return v.reshape(func() error {
		if _, err := findDisk(v, diskID); err != nil {
			return err
		}
		v.disks = slices.DeleteFunc(v.disks, func(d *disk) bool { return d.id == diskID })
		v.info.Disks = slices.DeleteFunc(v.info.Disks, func(d dr.Disk) bool { return d.ID == diskID })
		loseDisk(v, diskID, "it is another disk than before")
		return nil
	})
}

// ReplaceDisk puts another, empty image of the given size under a disk's name.
func (v *VM) ReplaceDisk(diskID string, size int64) error {
	return v.reshape(func() error {
		for i, d := range v.disks {
			if d.id == diskID {
				v.disks[i] = newDisk(diskID, d.path+".new", size, d.grain)
				v.info.Disks[i].Path = d.path + ".new"
				loseDisk(v, diskID, "it is another disk than before")
				return nil
			}
		}
		return fmt.Errorf("VM %s has no disk %q", v.info.Name, diskID)
	})
}

// Grow enlarges a disk; the new range reads as zeroes.
func (v *VM) Grow(diskID string, size int64) error {
	if old := v.Size(diskID); old >= 0 && size < old {
		return fmt.Errorf("disk %s can't shrink from %d to %d", diskID, old, size)
	}
	return v.Resize(diskID, size)
}

// Resize changes a disk's size. What a shrunk disk loses is lost, and its tracking with it.
func (v *VM) Resize(diskID string, size int64) error {
	return v.reshape(func() error {
		d, err := findDisk(v, diskID)
		if err != nil {
			return err
		}
		if size < d.size {
			loseDisk(v, diskID, fmt.Sprintf("it has shrunk from %d to %d bytes", d.size, size))
			d.shrink(size)
		}
		d.size = size
		return nil
	})
}

// shrink drops what lies beyond size.
func (d *disk) shrink(size int64) {
	if in := size % pageSize; in > 0 {
		d.trim(size, min(pageSize-in, d.size-size), untracked)
	}
	for i := range d.pages {
		if i*pageSize >= size {
			delete(d.pages, i)
		}
	}
	for g := range d.writes {
		if g*d.grain >= size {
			delete(d.writes, g)
		}
	}
}

// Snapshot keeps the disks as they are; Revert takes the number it returns.
func (v *VM) Snapshot() (n int, err error) {
	err = v.reshape(func() error {
		snap := map[string]*frozen{}
		for _, d := range v.disks {
			if d.remote != nil {
				return fmt.Errorf("disk %s of VM %s is not local yet", d.id, v.info.Name)
			}
			snap[d.id] = d.freeze()
		}
		v.snaps = append(v.snaps, snap)
		n = len(v.snaps) - 1
		return nil
	})
	return n, err
}

// Revert takes the disks back to a snapshot, which tracking does not survive.
// Disks that were added since are left alone.
func (v *VM) Revert(n int) error {
	return v.reshape(func() error {
		if n < 0 || n >= len(v.snaps) {
			return fmt.Errorf("VM %s has no snapshot %d", v.info.Name, n)
		}
		for i, d := range v.disks {
			f := v.snaps[n][d.id]
			if f == nil {
				continue
			}
			// A frozen copy of the frozen image keeps the snapshot usable.
			back := &disk{id: d.id, path: d.path, size: f.size, grain: f.grain, pages: f.pages, writes: map[int64]uint64{}, epoch: d.epoch + 1}
			c := back.freeze()
			back.pages = c.pages
			v.disks[i] = back
			loseDisk(v, d.id, "it was reverted to a snapshot")
		}
		return nil
	})
}

// EditOffline stores p on a disk of a VM that is off with a tool that does not
// know of tracking; the platform notices and gives the disk's tracking up.
func (v *VM) EditOffline(diskID string, off int64, p []byte) error {
	v.mu.Lock()
	running := v.power != hypervisor.PowerOff
	v.mu.Unlock()
	if running {
		return fmt.Errorf("VM %s is not off", v.info.Name)
	}
	if err := v.Write(diskID, off, p); err != nil {
		return err
	}
	v.LoseTracking(diskID)
	return nil
}

// MoveTo moves the VM to another host with its disks and its power state, and
// returns it as that host knows it. Tracking tokens stay behind.
func (v *VM) MoveTo(dst *Host) (*VM, error) {
	if dst.world == v.world {
		return nil, fmt.Errorf("VM %s is on host %s already", v.info.Name, dst.world.cfg.Name)
	}
	if dst.VM(v.info.ID) != nil {
		return nil, fmt.Errorf("host %s has a VM with UUID %s", dst.world.cfg.Name, v.info.ID)
	}
	var n *VM
	err := v.reshape(func() error {
		n = &VM{world: dst.world, info: v.info, power: v.power, disks: v.disks, snaps: v.snaps, seq: v.seq, tokens: map[string]*token{}, agent: v.agent, mode: v.mode,
			deaf: v.deaf, serial: slices.Clone(v.serial), owner: v.owner}
		n.info.NICs, n.info.Disks = slices.Clone(v.info.NICs), slices.Clone(v.info.Disks)
		v.disks, v.info.Disks, v.power = nil, nil, hypervisor.PowerOff
		return nil
	})
	if err != nil {
		return nil, err
	}
	from := &Host{world: v.world}
	from.RemoveVM(v.info.ID)
	dst.world.mu.Lock()
	dst.world.vms[n.info.ID] = n
	dst.world.mu.Unlock()
	dst.world.emit(n.info.ID, "defined")
	return n, nil
}
