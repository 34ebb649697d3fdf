package agent

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

type progressFunc = func(percent float64, note string)

// handle decodes the payload of a command.
func handle[P any](do func(ctx context.Context, p P, progress progressFunc) (any, error)) handler {
	return func(ctx context.Context, raw json.RawMessage, progress func(float64, string)) (any, error) {
		var p P
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &p); err != nil {
				return nil, dr.Errorf(dr.KindInvalid, "agent.command", "read the command's payload: %w", err)
			}
		}
		return do(ctx, p, progress)
	}
}

// handlers is what this agent can do.
func (a *Agent) handlers() map[agentapi.CommandKind]handler {
	h := map[agentapi.CommandKind]handler{
		agentapi.CmdRefreshInventory: handle(func(ctx context.Context, _ struct{}, _ progressFunc) (any, error) {
			return nil, errors.Join(a.sendInventory(ctx), a.sendVMM(ctx))
		}),
		agentapi.CmdShutdownVM: handle(a.shutdownVM),
		agentapi.CmdStartVM: handle(func(ctx context.Context, p agentapi.VMPayload, _ progressFunc) (any, error) {
			return nil, a.cfg.Host.Start(ctx, dr.VMID(p.VM))
		}),
		agentapi.CmdPowerState: handle(a.powerState),
		// Also without the source role, so that a host that lost it can be cleaned up.
		agentapi.CmdStopReplication: handle(func(ctx context.Context, p agentapi.MachinePayload, _ progressFunc) (any, error) {
			return nil, a.replicas.remove(ctx, p.Machine, p.Generation)
		}),
	}
	if a.hasRole(dr.RoleSource) {
		h[agentapi.CmdCheckPrerequisites] = handle(a.checkPrerequisites)
		h[agentapi.CmdStartReplication] = handle(a.startReplication)
		h[agentapi.CmdAwaitInitial] = handle(a.awaitInitial)
		h[agentapi.CmdDrain] = handle(a.drain)
	}
	if site := a.cfg.Recovery; site != nil {
		h[agentapi.CmdBootPoint] = handle(func(ctx context.Context, p agentapi.BootPayload, progress progressFunc) (any, error) {
			a.wantInventory() // the event may come late
			return site.Boot(ctx, p, share(progress))
		})
		h[agentapi.CmdVerifyBoot] = handle(func(ctx context.Context, p agentapi.VerifyPayload, _ progressFunc) (any, error) {
			return site.Verify(ctx, p)
		})
		h[agentapi.CmdRemoveVM] = handle(func(ctx context.Context, p agentapi.RemovePayload, _ progressFunc) (any, error) {
			return nil, site.Remove(ctx, p)
		})
		h[agentapi.CmdMakeLocal] = handle(func(ctx context.Context, p agentapi.VMPayload, progress progressFunc) (any, error) {
			return nil, site.MakeLocal(ctx, p, share(progress))
		})
	}
	return h
}

// share tells progress in bytes as percent.
func share(progress progressFunc) func(done, total int64) {
	return func(done, total int64) {
		if total > 0 {
			progress(100*float64(done)/float64(total), "")
		}
	}
}

// defaultShutdown bounds a guest's shutdown where the command does not.
const defaultShutdown = 10 * time.Minute

func (a *Agent) shutdownVM(ctx context.Context, p agentapi.ShutdownPayload, _ progressFunc) (any, error) {
	timeout := time.Duration(p.TimeoutSeconds) * time.Second
	if timeout <= 0 {
		timeout = defaultShutdown
	}
	sctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := a.cfg.Host.Shutdown(sctx, dr.VMID(p.VM))
	if err == nil || !p.Force || ctx.Err() != nil || (dr.CodeOf(err) != dr.CodeShutdownTimeout && sctx.Err() == nil) {
		return nil, err
	}
	a.log.Warn("the guest does not shut down: its power is cut, as asked", "vm", p.VM, "err", err)
	return nil, a.cfg.Host.Destroy(ctx, dr.VMID(p.VM))
}

// absent is the power state of a VM that the host does not know.
const absent = "absent"

func (a *Agent) powerState(ctx context.Context, p agentapi.VMPayload, _ progressFunc) (any, error) {
	state, err := a.cfg.Host.State(ctx, dr.VMID(p.VM))
	switch {
	case err == nil:
		return agentapi.PowerResult{State: string(state)}, nil
	case dr.CodeOf(err) != dr.CodeVMNotFound:
		return nil, err
	case a.cfg.Recovery != nil:
		return a.cfg.Recovery.State(ctx, p)
	}
	return agentapi.PowerResult{State: absent}, nil
}

// replica finds the replica that a command is about. The returned context ends with it.
func (a *Agent) replica(ctx context.Context, p agentapi.MachinePayload) (*replica, context.Context, context.CancelFunc, error) {
	wctx, cancel := context.WithTimeout(ctx, a.cfg.every.assignment)
	defer cancel()
	rep, err := a.replicas.wait(wctx, p.Machine, p.Generation)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, nil, err
	}
	if _, err := rep.running(wctx); err != nil {
		return nil, nil, nil, err
	}
	rctx, stop := rep.attached(ctx)
	return rep, rctx, stop, nil
}

// each calls do with the replica's replicator, again with the next one if it was
// made again meanwhile, as when the VM joined a group, and again if what it says is
// about an earlier generation than gen.
func (rep *replica) each(ctx context.Context, gen uint32, do func(replicator) (cut.Ref, time.Time, error)) (any, error) {
	for {
		x, err := rep.running(ctx)
		if err != nil {
			return nil, err
		}
		ref, at, err := do(x)
		late := err != nil && (rep.current() != x || x.Status().Gen < dr.Generation(gen)) || err == nil && ref.IsZero()
		if !late || ctx.Err() != nil {
			return point(ref, at, err)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// troubled is how long a replication may have been in trouble before a command gives up on it.
const troubled = time.Minute

// startReplication waits until the replicator is at work. A VM that is off does
// not keep it: it begins when the VM starts.
func (a *Agent) startReplication(ctx context.Context, p agentapi.MachinePayload, _ progressFunc) (any, error) {
	rep, ctx, stop, err := a.replica(ctx, p)
	if err != nil {
		return nil, err
	}
	defer stop()
	for began := time.Now(); ; {
		x, err := rep.running(ctx)
		if err != nil {
			return nil, err
		}
		if err := rep.unusable(); err != nil {
			return nil, err
		}
		s := x.Status()
		switch s.Phase {
		case capture.PhaseInitial, capture.PhaseDelta, capture.PhaseResync, capture.PhasePaused:
			return nil, nil
		case capture.PhaseError:
			if s.Err != nil && s.Gen >= dr.Generation(p.Generation) { // else it is about the assignment before
				return nil, s.Err
			}
		case capture.PhaseWaiting:
			if s.Err == nil && s.Note != "" {
				return nil, nil
			}
		}
		if s.Err != nil && time.Since(s.Since) > troubled && (s.Gen >= dr.Generation(p.Generation) || time.Since(began) > troubled) {
			return nil, s.Err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (a *Agent) awaitInitial(ctx context.Context, p agentapi.MachinePayload, progress progressFunc) (any, error) {
	rep, ctx, stop, err := a.replica(ctx, p)
	if err != nil {
		return nil, err
	}
	defer stop()
	pctx, done := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for {
			if x := rep.current(); x != nil {
				s := x.Status()
				note := s.Note
				if s.Err != nil {
					note = s.Err.Error()
				}
				progress(s.Percent, note)
			}
			if sleep(pctx, progressEvery) != nil {
				return
			}
		}
	}()
	result, err := rep.each(ctx, p.Generation, func(x replicator) (cut.Ref, time.Time, error) { return x.AwaitInitial(ctx) })
	done()
	<-told
	return result, err
}

func (a *Agent) drain(ctx context.Context, p agentapi.MachinePayload, _ progressFunc) (any, error) {
	rep, ctx, stop, err := a.replica(ctx, p)
	if err != nil {
		return nil, err
	}
	defer stop()
	return rep.each(ctx, p.Generation, func(x replicator) (cut.Ref, time.Time, error) { return x.Drain(ctx) })
}

func point(ref cut.Ref, at time.Time, err error) (any, error) {
	if err == nil && ref.IsZero() {
		err = dr.Errorf(dr.KindInternal, "agent.replica", "the replicator named no recovery point")
	}
	if err != nil {
		return nil, err
	}
	return agentapi.PointResult{Generation: uint32(ref.Gen), N: ref.N, Hash: ref.Hash.String(), Time: at}, nil
}

// Severities of findings.
const (
	severityError   = "error"
	severityWarning = "warning"
	severityInfo    = "info"
)

// checkPrerequisites looks for what stands in the way of protecting a VM.
// Without a list of disks all of them are meant. Only a host that can't be asked is an error.
func (a *Agent) checkPrerequisites(ctx context.Context, p agentapi.VMPayload, _ progressFunc) (any, error) {
	vms, err := a.cfg.Host.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	return agentapi.PrerequisitesResult{Findings: findings(vms, p)}, nil
}

func findings(vms []dr.VM, p agentapi.VMPayload) []agentapi.Finding {
	out := []agentapi.Finding{}
	add := func(severity string, code dr.Code, object, message string) {
		entry, _ := dr.Lookup(code)
		out = append(out, agentapi.Finding{Severity: severity, Code: string(code), Object: object, Message: message, Hint: entry.Remedy})
	}
	i := slices.IndexFunc(vms, func(vm dr.VM) bool { return string(vm.ID) == p.VM })
	if i < 0 {
		add(severityError, dr.CodeVMNotFound, p.VM, "the host does not know VM "+p.VM)
		return out
	}
	vm := vms[i]
	included := 0
	for _, d := range vm.Disks {
		if len(p.Disks) > 0 && !slices.Contains(p.Disks, d.ID) {
			add(severityInfo, "", d.ID, "disk "+d.ID+" is excluded: the recovery VM will not have it")
			continue
		}
		included++
		switch {
		case d.PassThru:
			add(severityError, dr.CodeDiskPassThrough, d.ID, "disk "+d.ID+" ("+d.Path+") is a physical device handed to the VM")
		case d.Shared:
			add(severityError, dr.CodeDiskShared, d.ID, "disk "+d.ID+" ("+d.Path+") is shared with other VMs")
		case d.Unreplicatable != "":
			add(severityError, dr.CodeDiskNotTrackable, d.ID, "changes of disk "+d.ID+" ("+d.Path+") can't be tracked: "+d.Unreplicatable)
		case d.Size <= 0:
			add(severityError, dr.CodeDiskNotTrackable, d.ID, "the size of disk "+d.ID+" ("+d.Path+") is not known: its image may be missing")
		}
	}
	for _, id := range p.Disks {
		if !slices.ContainsFunc(vm.Disks, func(d dr.Disk) bool { return d.ID == id }) {
			add(severityError, dr.CodeNotFound, id, "VM "+vm.Name+" has no disk "+id)
		}
	}
	if included == 0 {
		add(severityError, dr.CodeNoDisks, vm.Name, "VM "+vm.Name+" has no disk to replicate")
	}
	if !vm.Running {
		add(severityWarning, dr.CodeVMNotRunning, vm.Name, "VM "+vm.Name+" is off: the initial replication begins when it is started")
	}
	return out
}

var _ capture.Source = hypervisor.Host(nil)
