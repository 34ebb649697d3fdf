package hyperv

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/booting"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
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
		OSType: vms.OSType(vm.KVP), Seen: time.Now()}
	v.Facts = facts(vm)
	disks, err := h.vms.Disks(ctx, op, vm, cached)
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

// Names in VMConfig.Native.
const (
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
	c.Native[booting.NativeSettings] = []byte(text)
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
		private, err := h.ms.Private(ctx, s)
		if err != nil {
			return nil, msvm.Wrap("Networks", "ask what virtual switch "+s.Name+" is connected to", "", err)
		}
		out = append(out, hypervisor.Network{Name: s.Name, Active: true, Isolated: private})
	}
	return out, nil
}
