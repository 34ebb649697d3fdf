package hyperv

import (
	"context"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// State of a VM. A saved VM counts as paused: its guest does not run, but goes on from its memory.
func (h *Host) State(ctx context.Context, id dr.VMID) (hypervisor.PowerState, error) {
	vm, _, err := h.load(ctx, "State", id, msvm.Systems)
	if err != nil {
		return "", err
	}
	return powerOf(vm.State), nil
}

func powerOf(s msvm.State) hypervisor.PowerState {
	switch s {
	case msvm.Off:
		return hypervisor.PowerOff
	case msvm.Paused, msvm.Saved:
		return hypervisor.PowerPaused
	}
	return hypervisor.PowerOn
}

// Start a VM, or let a paused or saved one go on.
func (h *Host) Start(ctx context.Context, id dr.VMID) error {
	const op = "Start"
	return h.locked(ctx, op, id, func(vm *msvm.VM) error {
		if h.patching(vm.ID) {
			return dr.New(dr.KindPrecondition, dr.CodeVMNotOff, "hyperv."+op, "a disk of VM %s is open for writing", vm.Name)
		}
		return h.vms.Start(ctx, op, vm)
	})
}

// locked runs fn for a VM in its turn.
func (h *Host) locked(ctx context.Context, op string, id dr.VMID, fn func(*msvm.VM) error) error {
	s, err := vms.ID(op, id)
	if err != nil {
		return err
	}
	unlock, err := h.vms.Lock(ctx, op, s)
	if err != nil {
		return err
	}
	defer unlock()
	vm, _, err := h.load(ctx, op, id, msvm.Systems)
	if err != nil {
		return err
	}
	return fn(vm)
}

// Shutdown asks the guest through its shutdown integration service.
func (h *Host) Shutdown(ctx context.Context, id dr.VMID) error {
	const op = "Shutdown"
	vm, _, err := h.load(ctx, op, id, msvm.Systems) // without the VM's lock: waiting may take long, and Destroy shall be possible
	if err != nil {
		return err
	}
	switch vm.State {
	case msvm.Off:
		return nil
	case msvm.Paused, msvm.Saved:
		return dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "hyperv."+op, "VM %s is %s and can't shut down", vm.Name, vm.State)
	}
	k, err := h.ms.Component(ctx, vm.ID, "Msvm_ShutdownComponent")
	if err != nil {
		return msvm.Wrap(op, "ask for the shutdown service in VM "+vm.Name, "", err)
	}
	if !k.OK() {
		return dr.New(dr.KindPrecondition, dr.CodeShutdownNotOffered, "hyperv."+op, "VM %s can't be asked to shut down; its shutdown integration service: %s", vm.Name, k.Text())
	}
	timeout := func(cause error) error {
		e := dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "hyperv."+op, "VM %s did not shut down in time: %w", vm.Name, cause)
		if dr.KindOf(cause) == dr.KindCanceled {
			e.Kind, e.Code = dr.KindCanceled, ""
		}
		return e
	}
	asked := false
	for pause := h.cfg.Poll; ; pause = min(2*pause, 2*time.Second) {
		if !asked {
			switch err := h.ms.InitiateShutdown(ctx, k, "Holdfast"); {
			case err == nil:
				asked = true
			case ctx.Err() != nil:
				return timeout(ctx.Err())
			case !msvm.NotReady(err):
				return msvm.Wrap(op, "ask VM "+vm.Name+" to shut down", dr.CodeShutdownNotOffered, err)
			}
		}
		if err := vms.Sleep(ctx, pause); err != nil {
			return timeout(err)
		}
		now, _, err := h.load(ctx, op, id, msvm.Systems)
		switch {
		case ctx.Err() != nil:
			return timeout(ctx.Err())
		case err != nil:
			return err
		case now.State == msvm.Off:
			return nil
		}
	}
}

// Destroy turns a VM off.
func (h *Host) Destroy(ctx context.Context, id dr.VMID) error {
	const op = "Destroy"
	return h.locked(ctx, op, id, func(vm *msvm.VM) error { return h.vms.TurnOff(ctx, op, vm) })
}
