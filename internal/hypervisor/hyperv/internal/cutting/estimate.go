package cutting

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// Estimate asks for the changes of the VM's disks since a token, as they are now.
func (h *Cutter) Estimate(ctx context.Context, id dr.VMID, token string) (int64, error) {
	const op = "Estimate"
	vm, _, err := h.Load(ctx, op, id, msvm.Storage)
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
		if lost != "" && try < vms.MaxReload {
			if moved, err := h.Reload(ctx, op, vm); err != nil || moved {
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
func (h *Cutter) estimate(ctx context.Context, op string, vm *msvm.VM, base *baseToken) (total int64, known int, lost string, err error) {
	disks, err := h.DisksOf(ctx, op, vm)
	if err != nil {
		return 0, 0, "", err
	}
	for _, d := range disks {
		if _, ok := base.rec.disk(d.ID); !ok {
			continue
		}
		set, why, err := h.changedSince(ctx, op, vm.Name, base, d, d.Path, nil, port.DiskInfo{Size: d.Size})
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
