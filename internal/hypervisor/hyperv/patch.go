package hyperv

import (
	"context"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// OpenDisk opens the top file of a disk's chain for writing. Nobody can be sure
// that the host tracks what is written this way, so all tokens of the VM are
// forgotten before: no later cut can miss it.
func (h *Host) OpenDisk(ctx context.Context, id dr.VMID, disk string) (hypervisor.WritableDisk, error) {
	const op = "OpenDisk"
	s, err := vms.ID(op, id)
	if err != nil {
		return nil, err
	}
	unlock, err := h.vms.Lock(ctx, op, s)
	if err != nil {
		return nil, err
	}
	defer unlock()
	vm, _, err := h.load(ctx, op, id, msvm.Storage)
	if err != nil {
		return nil, err
	}
	if vm.State != msvm.Off {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotOff, "hyperv."+op, "VM %s is %s", vm.Name, vm.State)
	}
	if h.cutter.IsOpen(s) {
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "hyperv."+op, "a cut of VM %s is open", vm.Name)
	}
	if err := h.cutter.EndStale(ctx, op, s, nil); err != nil {
		return nil, err
	}
	if err := h.vms.WaitIdle(ctx, op, vm); err != nil {
		return nil, err
	}
	if vm, _, err = h.load(ctx, op, id, msvm.Storage); err != nil { // a merge has changed the files
		return nil, err
	}
	all, err := h.vms.DisksOf(ctx, op, vm)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(d vms.Disk) bool { return d.ID == disk })
	if i < 0 {
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "hyperv."+op, "VM %s has no disk %s", vm.Name, disk)
	}
	h.mu.Lock()
	_, held := h.held[s+" "+disk]
	h.mu.Unlock()
	if held {
		return nil, dr.New(dr.KindConflict, dr.CodeDiskFileInUse, "hyperv."+op, "disk %s of VM %s is open for writing already", disk, vm.Name)
	}
	if err := h.cutter.ForgetHeld(ctx, op, id, nil); err != nil {
		return nil, err
	}
	d, err := h.cfg.Disks.Open(ctx, all[i].Path, true)
	if err != nil {
		return nil, port.Error(op, "open disk "+all[i].Path+" of VM "+vm.Name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[s+" "+disk] = struct{}{}
	return &patched{host: h, vm: s, id: disk, disk: d}, nil
}

// patching reports whether a disk of a VM is open for writing.
func (h *Host) patching(vm string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.held {
		if strings.HasPrefix(k, vm+" ") {
			return true
		}
	}
	return false
}

// patched is an open disk of a VM that is off.
type patched struct {
	host   *Host
	vm, id string
	disk   Disk
	once   sync.Once
	err    error
}

func (p *patched) Size() int64 { return p.disk.Info().Size }

func (p *patched) ReadAt(ctx context.Context, b []byte, off int64) error {
	if err := p.check("ReadAt", off, int64(len(b))); err != nil {
		return err
	}
	return port.Error("ReadAt", "read disk "+p.id, p.disk.ReadAt(ctx, b, off))
}

func (p *patched) WriteAt(ctx context.Context, b []byte, off int64) error {
	if err := p.check("WriteAt", off, int64(len(b))); err != nil {
		return err
	}
	return port.Error("WriteAt", "write disk "+p.id, p.disk.WriteAt(ctx, b, off))
}

func (p *patched) check(op string, off, n int64) error {
	if size := p.Size(); off < 0 || off > size || n > size-off {
		return dr.Errorf(dr.KindInvalid, "hyperv."+op, "disk %s has %d bytes; %d+%d is not in it", p.id, size, off, n)
	}
	return nil
}

func (p *patched) Flush(ctx context.Context) error {
	return port.Error("Flush", "flush disk "+p.id, p.disk.Flush(ctx))
}

func (p *patched) Close() error {
	p.once.Do(func() {
		p.err = port.Error("Close", "close disk "+p.id, p.disk.Close())
		p.host.mu.Lock()
		defer p.host.mu.Unlock()
		delete(p.host.held, p.vm+" "+p.id)
	})
	return p.err
}
