package hyperv

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

var _ hypervisor.Pulse = (*Host)(nil)

// Pulse asks for the heartbeat of the guest's integration services. A guest
// without them, or one that is starting or paused, gives none.
func (h *Host) Pulse(ctx context.Context, id dr.VMID) (sign string, alive bool, err error) {
	const op = "Pulse"
	vm, _, err := h.load(ctx, op, id, msvm.Systems)
	if err != nil || vm.State != msvm.Running {
		return "", false, err
	}
	k, err := h.ms.Component(ctx, vm.ID, "Msvm_HeartbeatComponent")
	if err != nil {
		return "", false, msvm.Wrap(op, "ask for the heartbeat of VM "+vm.Name, "", err)
	}
	if !k.Beats() {
		return "", false, nil
	}
	return "heartbeat of the integration services", true, nil
}
