package hyperv

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// GuestAddress is a static configuration of a network adapter in the guest.
type GuestAddress struct {
	IPs, Masks, Gateways, DNS []string // IPv4; all empty = DHCP
}

// InjectIP sets the guest's configuration of the adapter with the index nic, in the
// order of the VM's inventory. The guest needs running integration services.
func (h *Host) InjectIP(ctx context.Context, id dr.VMID, nic int, a GuestAddress) error {
	const op = "InjectIP"
	vm, _, err := h.load(ctx, op, id, msvm.All)
	if err != nil {
		return err
	}
	if nic < 0 || nic >= len(vm.Ports) {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "hyperv."+op, "VM %s has no network adapter %d", vm.Name, nic)
	}
	err = h.ms.SetGuestAddress(ctx, vm.ID, vm.Ports[nic], msvm.GuestAddress{DHCP: len(a.IPs) == 0, IPs: a.IPs, Masks: a.Masks, Gateways: a.Gateways, Names: a.DNS})
	return msvm.Wrap(op, "set the addresses of VM "+vm.Name, "", err)
}
