package hyperv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// Info describes the host.
func (h *Host) Info(ctx context.Context) (hypervisor.HostInfo, error) {
	const op = "Info"
	c, err := h.ms.Computer(ctx)
	if err != nil {
		return hypervisor.HostInfo{}, msvm.Wrap(op, "describe the host", "", err)
	}
	vols, err := h.ms.Volumes(ctx)
	if err != nil {
		return hypervisor.HostInfo{}, msvm.Wrap(op, "list the volumes of host "+c.Name, "", err)
	}
	i := hypervisor.HostInfo{Name: c.Name, Hypervisor: strings.TrimSpace("Hyper-V, " + strings.TrimPrefix(c.Windows, "Microsoft ") + " " + c.Version), CPUs: c.CPUs, MemoryMB: c.MemoryMB}
	for _, v := range vols {
		i.Volumes = append(i.Volumes, hypervisor.Volume{Path: v.Path, Size: v.Size, Free: v.Free})
	}
	return i, nil
}

// Inventory lists all VMs with a fixed number of queries and one or two calls
// for each disk file that is not known from the last ten minutes.
func (h *Host) Inventory(ctx context.Context) ([]dr.VM, error) {
	const op = "Inventory"
	w, err := h.ms.Load(ctx, "", msvm.All)
	if err != nil {
		return nil, msvm.Wrap(op, "list the VMs", "", err)
	}
	clustered, err := h.ms.Clustered(ctx)
	if err != nil {
		h.log.Warn("the cluster does not say which VMs are its roles", "err", err)
	}
	var ids []string
	for id := range w.VMs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	list := make([]dr.VM, len(ids))
	errs := make([]error, len(ids))
	turn := make(chan struct{}, inventoryParallel)
	var wg sync.WaitGroup
	for i, id := range ids {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			list[i], errs[i] = h.describe(ctx, op, w.VMs[id], true)
			list[i].Facts.Clustered = clustered[w.VMs[id].Name]
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return list, nil
}

// inventoryParallel is how many VMs' disks are asked for at a time; the host's quota is some tens of operations.
const inventoryParallel = 4

// describe makes the product's view of a VM.
func (h *Host) describe(ctx context.Context, op string, vm *msvm.VM, cached bool) (dr.VM, error) {
	v := dr.VM{ID: dr.VMID(vm.ID), Name: vm.Name, Running: vm.State != msvm.Off, Generation: vm.Settings.Generation, CPUs: vm.CPUs, MemoryMB: vm.MemoryMB,
		OSType: osType(vm.KVP), Seen: time.Now()}
	v.Facts = facts(vm)
	disks, err := h.disks(ctx, op, vm, cached)
	if err != nil {
		return dr.VM{}, err
	}
	for _, d := range disks {
		v.Disks = append(v.Disks, d.Disk)
	}
	for _, p := range vm.Ports {
		n := dr.NIC{ID: p.ID, MAC: colons(p.MAC), Network: p.Switch, Type: "synthetic", IPs: p.IPs, VLAN: p.VLAN}
		if p.Legacy {
			n.Type = "legacy"
		}
		v.NICs = append(v.NICs, n)
	}
	return v, nil
}

func facts(vm *msvm.VM) dr.VMFacts {
	f := dr.VMFacts{Version: vm.Settings.Version, DynamicMemory: vm.Dynamic}
	f.SecureBoot, _ = vm.Settings.Bool("SecureBootEnabled")
	f.OSName, f.OSVersion = vm.KVP["OSName"], vm.KVP["OSVersion"]
	if f.GuestTools = vm.Heartbeat.Text(); f.GuestTools == "" {
		f.GuestTools = "ok"
	}
	if !vm.VSS.OK() {
		f.AppConsistent = "the backup integration service is not available: " + vm.VSS.Text()
	}
	for _, c := range vm.Checkpoints {
		if !c.Recovery() {
			f.Checkpoints++
		}
	}
	if vm.Replication != 0 {
		f.Replicated = "Hyper-V Replica"
	}
	return f
}

// osType sorts the guest by what it tells of itself (KVP items OSName and OSPlatformId).
func osType(kvp map[string]string) string {
	name := strings.ToLower(kvp["OSName"])
	switch {
	case strings.Contains(name, "windows"):
		return "Windows"
	case name != "":
		return "Linux" // integration services exist for Windows and Linux, and FreeBSD
	}
	return ""
}

// colons renders 00155D010203 as 00:15:5d:01:02:03.
func colons(mac string) string {
	if len(mac) != 12 {
		return mac
	}
	mac = strings.ToLower(mac)
	var parts []string
	for i := 0; i < 12; i += 2 {
		parts = append(parts, mac[i:i+2])
	}
	return strings.Join(parts, ":")
}

// vmDisk is a disk with what the adapter needs beside.
type vmDisk struct {
	dr.Disk
	Instance string  // InstanceID of the setting data
	code     dr.Code // why it can't be replicated
}

// disksOf reads the disks of a VM afresh.
func (h *Host) disksOf(ctx context.Context, op string, vm *msvm.VM) ([]vmDisk, error) {
	return h.disks(ctx, op, vm, false)
}

// maxReload is how often disks are looked at again because a merge replaced their files meanwhile.
const maxReload = 8

func (h *Host) disks(ctx context.Context, op string, vm *msvm.VM, cached bool) ([]vmDisk, error) {
	var list []vmDisk
	for try := 0; ; try++ {
		list = nil
		unreadable := false
		for _, d := range vm.Drives {
			v, err := h.disk(ctx, vm, d, cached)
			if err != nil {
				return nil, msvm.Wrap(op, fmt.Sprintf("ask for disk %s of VM %s", d.Path, vm.Name), "", err)
			}
			unreadable = unreadable || v.code == dr.CodeDiskFileDamaged
			list = append(list, v)
		}
		if !unreadable || try == maxReload {
			break
		}
		moved, err := h.reload(ctx, op, vm)
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

// reload reads the drives of a VM again and reports whether their files are others now.
func (h *Host) reload(ctx context.Context, op string, vm *msvm.VM) (moved bool, err error) {
	now, _, err := h.load(ctx, op, dr.VMID(vm.ID), msvm.Storage)
	if err != nil {
		return false, err
	}
	moved = !slices.Equal(now.Drives, vm.Drives)
	vm.System, vm.Drives = now.System, now.Drives
	return moved, nil
}

func (d *vmDisk) refuse(code dr.Code, why string) { d.code, d.Unreplicatable = code, why }

// disk describes one disk. A file that the host can't read is described as such: the VM is shown all the same.
func (h *Host) disk(ctx context.Context, vm *msvm.VM, d msvm.Drive, cached bool) (vmDisk, error) {
	v := vmDisk{Disk: dr.Disk{ID: d.Instance, Path: d.Path, Controller: d.Controller, Slot: d.Slot, Shared: d.Shared, PassThru: d.Physical}, Instance: d.Instance}
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
		f, err := h.facts.get(ctx, h.ms, d.Path, cached)
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
		if serr := sleep(ctx, pause); serr != nil {
			return f, errors.Join(serr, err)
		}
	}
}

func isVHDX(p string) bool {
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

// Names in VMConfig.Native.
const (
	nativeSettings  = "hyperv.settings"  // embedded Msvm_VirtualSystemSettingData
	nativeResources = "hyperv.resources" // embedded setting data of resources, one a line
	nativeFiles     = "hyperv.file."     // configuration files, by extension
)

// maxConfigFile bounds a configuration file that is captured.
const maxConfigFile = 16 << 20

// Config returns a VM's description and, as Native, the settings of the VM and
// its resources as CIM XML, and the configuration files where they can be read.
func (h *Host) Config(ctx context.Context, id dr.VMID) (hypervisor.VMConfig, error) {
	const op = "Config"
	vm, _, err := h.load(ctx, op, id, msvm.All)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	c := hypervisor.VMConfig{Native: map[string][]byte{}}
	if c.VM, err = h.describe(ctx, op, vm, false); err != nil {
		return c, err
	}
	text, err := cim.EncodeEmbedded(vm.Settings.Instance)
	if err != nil {
		return c, dr.Errorf(dr.KindInternal, "hyperv."+op, "settings of VM %s: %w", vm.Name, err)
	}
	c.Native[nativeSettings] = []byte(text)
	var lines []string
	for _, r := range vm.Resources {
		text, err := cim.EncodeEmbedded(r)
		if err != nil {
			return c, dr.Errorf(dr.KindInternal, "hyperv."+op, "a resource of VM %s: %w", vm.Name, err)
		}
		lines = append(lines, strings.ReplaceAll(strings.ReplaceAll(text, "\r", "&#xD;"), "\n", "&#xA;"))
	}
	c.Native[nativeResources] = []byte(strings.Join(lines, "\n"))
	h.configFiles(ctx, vm, c.Native)
	return c, nil
}

// configFiles adds the files of <ConfigurationDataRoot>\<ConfigurationFile stem>.*
// (vmcx, vmgs; VMRS is the running state and of no use elsewhere). A running VM's can often not be read.
func (h *Host) configFiles(ctx context.Context, vm *msvm.VM, native map[string][]byte) {
	files, ok := h.cfg.Disks.(Files)
	root, file := vm.Settings.String("ConfigurationDataRoot"), vm.Settings.String("ConfigurationFile")
	if !ok || root == "" || file == "" {
		return
	}
	stem := strings.TrimRight(root, `\`) + `\` + strings.TrimSuffix(file, path.Ext(file))
	for _, ext := range []string{"vmcx", "vmgs"} {
		b, err := files.ReadFile(ctx, stem+"."+ext, maxConfigFile)
		switch {
		case err == nil:
			native[nativeFiles+ext] = b
		case !errors.Is(err, fs.ErrNotExist):
			h.log.Debug("a configuration file can't be read", "vm", vm.Name, "file", stem+"."+ext, "err", err)
		}
	}
}

// Networks lists the virtual switches.
func (h *Host) Networks(ctx context.Context) ([]hypervisor.Network, error) {
	list, err := h.ms.Switches(ctx)
	if err != nil {
		return nil, msvm.Wrap("Networks", "list the virtual switches", "", err)
	}
	var out []hypervisor.Network
	for _, s := range list {
		out = append(out, hypervisor.Network{Name: s.Name, Active: true, Isolated: s.Name == isolatedSwitch})
	}
	return out, nil
}

// Estimate asks for the changes of the VM's disks since a token, as they are now.
func (h *Host) Estimate(ctx context.Context, id dr.VMID, token string) (int64, error) {
	const op = "Estimate"
	vm, _, err := h.load(ctx, op, id, msvm.Storage)
	if err != nil {
		return 0, err
	}
	if vm.State == msvm.Off {
		return 0, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "hyperv."+op, "VM %s is off", vm.Name)
	}
	base, err := h.findBase(ctx, op, vm.ID, token)
	if err != nil {
		return 0, err
	}
	for try := 0; ; try++ {
		total, known, lost, err := h.estimate(ctx, op, vm, base)
		if err != nil {
			return 0, err
		}
		if lost != "" && try < maxReload {
			if moved, err := h.reload(ctx, op, vm); err != nil || moved {
				if err != nil {
					return 0, err
				}
				continue
			}
		}
		if known == 0 {
			return 0, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "hyperv."+op, "changes of VM %s since %s are not known for any disk: %s", vm.Name, token, lost)
		}
		return total, nil
	}
}

// estimate adds up the disks that base covers. known counts those with history;
// lost says why one has none.
func (h *Host) estimate(ctx context.Context, op string, vm *msvm.VM, base *baseToken) (total int64, known int, lost string, err error) {
	disks, err := h.disksOf(ctx, op, vm)
	if err != nil {
		return 0, 0, "", err
	}
	for _, d := range disks {
		if _, ok := base.rec.disk(d.ID); !ok {
			continue
		}
		set, why, err := h.changedSince(ctx, op, vm.Name, base, d, d.Path, nil, DiskInfo{Size: d.Size})
		if err != nil {
			return 0, 0, "", err
		}
		if why != "" {
			lost, total = why, total+d.Size
			continue
		}
		known++
		total += set.Len()
	}
	if known == 0 && lost == "" {
		lost = "the VM has none of its disks any more"
	}
	return total, known, lost, nil
}
