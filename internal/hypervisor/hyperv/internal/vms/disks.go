package vms

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// OSType sorts the guest by what it tells of itself (KVP items OSName and OSPlatformId).
func OSType(kvp map[string]string) string {
	name := strings.ToLower(kvp["OSName"])
	switch {
	case strings.Contains(name, "windows"):
		return "Windows"
	case name != "":
		return "Linux" // integration services exist for Windows and Linux, and FreeBSD
	}
	return ""
}

// Disk is a disk with what the adapter needs beside.
type Disk struct {
	dr.Disk
	Instance string  // InstanceID of the setting data
	Code     dr.Code // why it can't be replicated
}

// DisksOf reads the disks of a VM afresh.
func (h *Host) DisksOf(ctx context.Context, op string, vm *msvm.VM) ([]Disk, error) {
	return h.Disks(ctx, op, vm, false)
}

// MaxReload is how often disks are looked at again because a merge replaced their files meanwhile.
const MaxReload = 8

// Disks describes the disks of a VM in the order of their places. With cached, what is known of their
// files from the last ten minutes counts. vm may be read again on the way.
func (h *Host) Disks(ctx context.Context, op string, vm *msvm.VM, cached bool) ([]Disk, error) {
	var list []Disk
	for try := 0; ; try++ {
		list = nil
		unreadable := false
		for _, d := range vm.Drives {
			v, err := h.disk(ctx, vm, d, cached)
			if err != nil {
				return nil, msvm.Wrap(op, fmt.Sprintf("ask for disk %s of VM %s", d.Path, vm.Name), "", err)
			}
			unreadable = unreadable || v.Code == dr.CodeDiskFileDamaged
			list = append(list, v)
		}
		if !unreadable || try == MaxReload {
			break
		}
		moved, err := h.Reload(ctx, op, vm)
		if err != nil {
			return nil, err
		}
		if !moved {
			break
		}
	}
	seen := map[string]int{}
	for _, d := range list {
		seen[d.ID]++
	}
	boot := false
	for i := range list {
		d := &list[i]
		if seen[d.ID] > 1 && d.Unreplicatable == "" {
			d.refuse(dr.CodeDiskNotTrackable, "another disk of the VM has the same virtual disk id; run 'Set-VHD -ResetDiskIdentifier' on one of the files while the VM is off")
			d.ID = d.Instance
		}
		if !boot && !d.PassThru && !d.Shared { // the first on the first controller is where firmware looks first
			d.Boot, boot = true, true
		}
	}
	return list, nil
}

// Reload reads the drives of a VM again and reports whether their files are others now.
func (h *Host) Reload(ctx context.Context, op string, vm *msvm.VM) (moved bool, err error) {
	now, _, err := h.Load(ctx, op, dr.VMID(vm.ID), msvm.Storage)
	if err != nil {
		return false, err
	}
	moved = !slices.Equal(now.Drives, vm.Drives)
	vm.System, vm.Drives = now.System, now.Drives
	return moved, nil
}

func (d *Disk) refuse(code dr.Code, why string) { d.Code, d.Unreplicatable = code, why }

// disk describes one disk. A file that the host can't read is described as such: the VM is shown all the same.
func (h *Host) disk(ctx context.Context, vm *msvm.VM, d msvm.Drive, cached bool) (Disk, error) {
	v := Disk{Disk: dr.Disk{ID: d.Instance, Path: d.Path, Controller: d.Controller, Slot: d.Slot, Shared: d.Shared, PassThru: d.Physical}, Instance: d.Instance}
	switch ext := strings.ToLower(path.Ext(strings.ReplaceAll(d.Path, `\`, "/"))); {
	case d.Physical:
		v.refuse(dr.CodeDiskPassThrough, "it is a physical disk of the host; move its data to a VHDX file, or exclude it")
		return v, nil
	case d.Path == "":
		v.refuse(dr.CodeDiskNotTrackable, "it has no file")
		return v, nil
	case ext == ".vhds" || ext == ".vhdpmem" || d.Shared:
		v.Shared = ext != ".vhdpmem"
		v.Format = strings.TrimPrefix(ext, ".")
		v.refuse(dr.CodeDiskShared, "it can be shared between VMs; exclude it, or replicate inside the guests")
	}
	f, err := h.factsOf(ctx, d, cached)
	if err != nil {
		if !msvm.Refused(err) || msvm.FileInUse(err) && !cached {
			return v, err
		}
		if v.Unreplicatable == "" {
			v.refuse(dr.CodeDiskFileDamaged, "the host can't read its file: "+err.Error())
		}
		return v, nil
	}
	if f.ID != "" && v.Unreplicatable == "" {
		v.ID = f.ID
	}
	v.Format, v.Size, v.Layout, v.Sector, v.Allocated, v.Chain = f.Format, f.Size, f.Layout, f.LogicalSector, f.allocated, f.chain
	if f.Format == "vhd" {
		v.refuse(dr.CodeDiskFormatVHD, "changes are tracked for VHDX only; shut the VM down, run 'Convert-VHD' and attach the new file, or exclude it")
	} else if f.Format == "vhdset" && v.Unreplicatable == "" {
		v.refuse(dr.CodeDiskShared, "it is a VHD set; exclude it, or replicate inside the guests")
	}
	return v, nil
}

// factsOf reads the facts of a disk. While the host merges files it may refuse to
// tell: then it is asked again for Config.MergeWait, or, for the inventory, what was known last counts.
func (h *Host) factsOf(ctx context.Context, d msvm.Drive, cached bool) (diskFacts, error) {
	end := time.Now().Add(h.cfg.MergeWait)
	for pause := h.cfg.Poll; ; pause = min(2*pause, time.Second) {
		f, err := h.facts.get(ctx, h.MS, d.Path, cached)
		if err == nil {
			h.facts.remember(d.Instance, f)
		}
		if !msvm.FileInUse(err) {
			return f, err
		}
		if cached {
			if f, ok := h.facts.last(d.Instance); ok {
				return f, nil
			}
			return f, err
		}
		if !time.Now().Before(end) {
			return f, err
		}
		if serr := Sleep(ctx, pause); serr != nil {
			return f, errors.Join(serr, err)
		}
	}
}

// IsVHDX reports whether a path names a VHDX file or one of its children.
func IsVHDX(p string) bool {
	ext := strings.ToLower(path.Ext(strings.ReplaceAll(p, `\`, "/")))
	return ext == ".vhdx" || ext == ".avhdx"
}

// diskFacts are what a disk's files say.
type diskFacts struct {
	msvm.HardDisk
	allocated int64 // of all files of the chain
	chain     int
	at        time.Time
}

// factCache keeps the facts of disk files for the inventory.
type factCache struct {
	mu    sync.Mutex
	m     map[string]diskFacts
	drive map[string]diskFacts // by InstanceID of the drive's setting data: files change with every checkpoint
}

func (c *factCache) remember(instance string, f diskFacts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drive == nil || len(c.drive) > maxFacts {
		c.drive = map[string]diskFacts{}
	}
	c.drive[instance] = f
}

func (c *factCache) last(instance string) (diskFacts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.drive[instance]
	return f, ok
}

const (
	factsAge = 10 * time.Minute
	maxChain = 64 // files; a longer chain is a circle or beyond help
	maxFacts = 1 << 14
)

func (c *factCache) get(ctx context.Context, ms *msvm.Client, p string, cached bool) (diskFacts, error) {
	key := strings.ToLower(p)
	c.mu.Lock()
	f, ok := c.m[key]
	c.mu.Unlock()
	if ok && cached && time.Since(f.at) < factsAge {
		return f, nil
	}
	d, err := ms.HardDisk(ctx, p)
	if err != nil {
		return f, err
	}
	f = diskFacts{HardDisk: d, chain: 1, at: time.Now()}
	if f.allocated, err = ms.FileSize(ctx, p); err != nil && !msvm.Refused(err) {
		return f, err
	}
	if d.Parent != "" && cached { // only reports want to know it
		seen := map[string]bool{key: true}
		for next := d.Parent; next != "" && !seen[strings.ToLower(next)] && f.chain < maxChain; {
			seen[strings.ToLower(next)] = true
			f.chain++
			up, err := ms.HardDisk(ctx, next)
			if err != nil {
				if !msvm.Refused(err) {
					return f, err
				}
				break
			}
			if n, err := ms.FileSize(ctx, next); err == nil {
				f.allocated += n
			}
			next = up.Parent
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) > maxFacts {
		c.m = map[string]diskFacts{}
	}
	c.m[key] = f
	return f, nil
}
