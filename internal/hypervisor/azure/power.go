package azure

import (
	"context"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// view asks what a VM does now; false if it does not exist.
func (h *Host) view(ctx context.Context, op string, m site.Machine) (armcompute.VirtualMachineInstanceView, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	r, err := h.s.VMs.InstanceView(ctx, m.Place.Group, m.Name, nil)
	err = arm.Classify("azure."+op, m.Resource(), err)
	if arm.IsAbsent(err) {
		return armcompute.VirtualMachineInstanceView{}, false, nil
	}
	return r.VirtualMachineInstanceView, err == nil, err
}

// powerCode is the VM's power state as Azure words it: running, stopped, deallocated, …; "" if it has none.
func powerCode(v armcompute.VirtualMachineInstanceView) string {
	for _, s := range v.Statuses {
		if s == nil {
			continue
		}
		if state, ok := strings.CutPrefix(site.Lower(site.Str(s.Code)), "powerstate/"); ok {
			return state
		}
	}
	return ""
}

// power maps Azure's power states. A VM that is stopping still runs, and one that
// was never started has no state and is off.
func power(v armcompute.VirtualMachineInstanceView) hypervisor.PowerState {
	switch powerCode(v) {
	case "running", "starting", "stopping":
		return hypervisor.PowerOn
	}
	return hypervisor.PowerOff
}

// powerOf finds a VM and asks for its power state.
func (h *Host) powerOf(ctx context.Context, op string, id dr.VMID) (site.Machine, string, error) {
	m, err := h.az.Find(ctx, op, id)
	if err != nil {
		return m, "", err
	}
	v, found, err := h.view(ctx, op, m)
	if err != nil {
		return m, "", err
	}
	if !found {
		return m, "", gone(op, m)
	}
	if code := powerCode(v); code == "unknown" {
		return m, "", dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s: Azure does not know its power state", m.Resource())
	}
	return m, powerCode(v), nil
}

func on(code string) bool { return code == "running" || code == "starting" || code == "stopping" }

// State of a VM. Azure can't pause one.
func (h *Host) State(ctx context.Context, id dr.VMID) (hypervisor.PowerState, error) {
	_, code, err := h.powerOf(ctx, "State", id)
	switch {
	case err != nil:
		return "", err
	case on(code):
		return hypervisor.PowerOn, nil
	}
	return hypervisor.PowerOff, nil
}

// Start starts a VM; one that runs is left as it is.
func (h *Host) Start(ctx context.Context, id dr.VMID) error {
	const op = "Start"
	return h.inTurn(ctx, op, id, func(m site.Machine) error { return h.start(ctx, op, m) })
}

// inTurn runs fn for a VM when no other call changes it.
func (h *Host) inTurn(ctx context.Context, op string, id dr.VMID, fn func(site.Machine) error) error {
	unlock, err := h.az.Lock(ctx, op, "VM "+site.Lower(string(id)))
	if err != nil {
		return err
	}
	defer unlock()
	m, err := h.az.Find(ctx, op, id)
	if err != nil {
		return err
	}
	return fn(m)
}

func (h *Host) start(ctx context.Context, op string, m site.Machine) error {
	v, found, err := h.view(ctx, op, m)
	switch {
	case err != nil:
		return err
	case !found:
		return gone(op, m)
	case powerCode(v) == "running" || powerCode(v) == "starting":
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	p, err := h.s.VMs.BeginStart(ctx, m.Place.Group, m.Name, nil)
	_, err = arm.Wait(ctx, h.s, "azure."+op, m.Resource(), p, err)
	return absentVM(op, m, err)
}

// absentVM turns "the resource does not exist" into the contract's word for it.
func absentVM(op string, m site.Machine, err error) error {
	if arm.IsAbsent(err) {
		return gone(op, m)
	}
	return err
}

// Shutdown asks the guest to shut down and gives the VM's machine back, so that it
// costs nothing but its disks. Azure itself cuts the power of a guest that does not answer in its own time (some minutes), and
// does not tell; dr.CodeShutdownTimeout if ctx ends before.
func (h *Host) Shutdown(ctx context.Context, id dr.VMID) error {
	const op = "Shutdown"
	m, code, err := h.powerOf(ctx, op, id) // without the VM's turn: waiting may take long, and Destroy shall be possible
	if err != nil {
		return err
	}
	if on(code) {
		if err := h.powerOff(ctx, op, m, false); err != nil {
			if ctx.Err() == nil {
				return err
			}
			e := dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "azure."+op, "VM %s did not shut down in time: %w", m.Name, ctx.Err())
			if dr.KindOf(ctx.Err()) == dr.KindCanceled {
				e.Kind, e.Code = dr.KindCanceled, ""
			}
			return e
		}
	}
	if code == "deallocated" || code == "" {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	p, err := h.s.VMs.BeginDeallocate(bounded, m.Place.Group, m.Name, nil)
	_, err = arm.Wait(bounded, h.s, "azure."+op, m.Resource(), p, err)
	return absentVM(op, m, err)
}

func (h *Host) powerOff(ctx context.Context, op string, m site.Machine, cut bool) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	p, err := h.s.VMs.BeginPowerOff(ctx, m.Place.Group, m.Name, &armcompute.VirtualMachinesClientBeginPowerOffOptions{SkipShutdown: to.Ptr(cut)})
	_, err = arm.Wait(ctx, h.s, "azure."+op, m.Resource(), p, err)
	return absentVM(op, m, err)
}

// Destroy cuts the power. The VM keeps its machine, and is paid for, until Shutdown or Remove.
func (h *Host) Destroy(ctx context.Context, id dr.VMID) error {
	const op = "Destroy"
	return h.inTurn(ctx, op, id, func(m site.Machine) error {
		v, found, err := h.view(ctx, op, m)
		switch {
		case err != nil:
			return err
		case !found:
			return gone(op, m)
		case !on(powerCode(v)) && powerCode(v) != "unknown":
			return nil
		}
		return h.powerOff(ctx, op, m, true)
	})
}

// Pulse asks whether the VM agent in the guest reports that it is ready.
func (h *Host) Pulse(ctx context.Context, id dr.VMID) (sign string, alive bool, err error) {
	const op = "Pulse"
	m, err := h.az.Find(ctx, op, id)
	if err != nil {
		return "", false, err
	}
	v, found, err := h.view(ctx, op, m)
	if err != nil {
		return "", false, err
	}
	if !found {
		return "", false, gone(op, m)
	}
	if sign, alive = agentReady(v); !alive || powerCode(v) != "running" {
		return "", false, nil
	}
	return sign, true, nil
}

// agentReady reads what the VM agent reports; a sign without alive is an agent that is not ready.
func agentReady(v armcompute.VirtualMachineInstanceView) (sign string, alive bool) {
	if v.VMAgent == nil {
		return "", false
	}
	for _, s := range v.VMAgent.Statuses {
		if s == nil {
			continue
		}
		sign = "VM agent " + site.Str(v.VMAgent.VMAgentVersion)
		if strings.EqualFold(site.Str(s.Code), "ProvisioningState/site.Succeeded") && strings.EqualFold(site.Str(s.DisplayStatus), "Ready") {
			return sign, true
		}
	}
	return sign, false
}
