package vault

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/vaultdb"
)

// Poll gives an agent its work, waiting for some at most as long as it asks
// for. It is the agent's heartbeat.
func (v *Vault) Poll(ctx context.Context, agent dr.AgentID, r agentapi.PollRequest) (agentapi.PollResponse, error) {
	if err := v.touch(ctx, agent, ""); err != nil {
		return agentapi.PollResponse{}, err
	}
	// Listening begins before the first look, so that no change falls between.
	l := v.db.Listen(topicAssign)
	defer l.Close()
	list, version, err := v.assignments(ctx, agent)
	if err != nil {
		return agentapi.PollResponse{}, err
	}
	wait := min(time.Duration(max(r.WaitSeconds, 0))*time.Second, v.cfg.PollWait)
	if version != r.Assignments {
		wait = 0
	}
	commands, cancels, err := v.pollCommands(ctx, agent, r, wait, l.C(), func() bool {
		keys, all := l.Take()
		mine := all
		for _, k := range keys {
			mine = mine || k == string(agent)
		}
		if !mine {
			return false
		}
		now, changed, err := v.assignments(ctx, agent)
		if err != nil {
			return true // the poll's own next read says why
		}
		list, version = now, changed
		return version != r.Assignments
	})
	if err != nil {
		return agentapi.PollResponse{}, err
	}
	out := agentapi.PollResponse{Cancels: cancels, AssignmentsVersion: version, ServerTime: v.now(), StatusSeconds: int(max(v.cfg.StatusEvery/time.Second, 1)),
		WantInventory: !v.hasInventory(agent)}
	for _, c := range commands {
		out.Commands = append(out.Commands, agentapi.Command{ID: c.ID, Kind: agentapi.CommandKind(c.Kind), Payload: c.Raw})
	}
	if version != r.Assignments {
		out.Assignments = list
	}
	return out, nil
}

// pollCommands waits for commands; changed, called after each wake-up of the
// channel, ends the wait early.
func (v *Vault) pollCommands(ctx context.Context, agent dr.AgentID, r agentapi.PollRequest, wait time.Duration,
	woken <-chan struct{}, changed func() bool) (commands []job.Command, cancels []string, err error) {
	if wait <= 0 {
		return v.engine.PollCommands(ctx, string(agent), r.Have, 0)
	}
	pctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		commands, cancels, err = v.engine.PollCommands(pctx, string(agent), r.Have, wait)
	}()
	for {
		select {
		case <-done:
			return commands, cancels, err
		case <-v.ctx.Done(): // the agent asks another replica, or again
			stop()
			<-done
			return nil, nil, nil
		case <-woken:
			if !changed() {
				continue
			}
			stop()
			<-done
			if ctx.Err() != nil {
				return nil, nil, err
			}
			return v.engine.PollCommands(ctx, string(agent), r.Have, 0)
		}
	}
}

// touch records a heartbeat, at most every few seconds.
func (v *Vault) touch(ctx context.Context, agent dr.AgentID, hypervisor string) error {
	p, err := vaultdb.ProviderByID(ctx, v.q(), agent)
	if err != nil {
		return outward(err)
	}
	back := !v.Connected(p.Provider)
	if v.now().Sub(p.LastSeen) < v.cfg.PollWait/5 && (hypervisor == "" || hypervisor == p.Hypervisor) {
		return nil
	}
	return v.tx(ctx, func(tx *sql.Tx) error {
		if back {
			v.db.NotifyTx(tx, topicChange, "site/"+string(p.Fabric))
			if err := v.note(ctx, tx, vaultdb.Event{Kind: "agentConnected", Agent: agent, By: "agent"}, "host %s is connected again", p.Host); err != nil {
				return err
			}
		}
		return vaultdb.TouchProvider(ctx, tx, agent, v.now(), clip(hypervisor), "")
	})
}

func (v *Vault) hasInventory(agent dr.AgentID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.inventory[agent]
}

// assignments is the complete list of what an agent replicates: the items
// whose current generation is its own and open. The version is a digest of the
// list, so every replica of the vault names it alike.
func (v *Vault) assignments(ctx context.Context, agent dr.AgentID) ([]agentapi.Assignment, string, error) {
	items, err := vaultdb.ItemsOfSource(ctx, v.q(), agent)
	if err != nil {
		return nil, "", outward(err)
	}
	list := []agentapi.Assignment{}
	policies := map[dr.PolicyID]dr.Policy{}
	if len(items) > 0 {
		all, err := vaultdb.Policies(ctx, v.q())
		if err != nil {
			return nil, "", outward(err)
		}
		for _, p := range all {
			policies[p.ID] = p
		}
	}
	for _, it := range items {
		gens, err := vaultdb.Generations(ctx, v.q(), it.Machine)
		if err != nil {
			return nil, "", outward(err)
		}
		g, ok := current(it, gens)
		if !ok || !g.Written || g.Agent != agent {
			continue
		}
		p := policies[it.Policy]
		a := agentapi.Assignment{Item: string(it.ID), Machine: string(it.Machine), VM: string(it.VM), VMName: it.VMName, Disks: it.Disks,
			Generation: uint32(g.Gen), CopyFrequencySeconds: int(p.CopyFrequency / time.Second), AppFrequencySeconds: int(p.AppFrequency / time.Second),
			Paused: it.Paused, ResyncRequest: it.ResyncRequest, VaultPublicKey: v.cfg.VaultKey.Public().Text()}
		if g.BaseGen != 0 {
			a.Base = &agentapi.CutRef{Generation: uint32(g.BaseGen), N: g.BaseN, Hash: g.BaseHash}
		}
		list = append(list, a)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return nil, "", dr.Errorf(dr.KindInternal, "vault.assignments", "encode the assignments: %w", err)
	}
	sum := sha256.Sum256(text)
	return list, hex.EncodeToString(sum[:8]), nil
}

// current picks the generation that the item says is the newest.
func current(it vaultdb.Item, gens []vaultdb.Generation) (vaultdb.Generation, bool) {
	for _, g := range gens {
		if g.Gen == it.Gen {
			return g, true
		}
	}
	return vaultdb.Generation{}, false
}

// Report takes an agent's report on a command. Reports that come twice, late,
// or for a command that no longer exists are accepted and ignored.
func (v *Vault) Report(ctx context.Context, agent dr.AgentID, r agentapi.ReportRequest) error {
	rep := job.Report{State: job.ReportState(r.State), Pct: min(max(r.Percent, 0), 100), Note: clip(r.Note), Result: r.Result}
	switch r.State {
	case "failed":
		rep.Failure = job.FailureOf(agentError(r.Error))
	case "cancelled":
		rep.State = job.ReportFailed
		rep.Failure = job.FailureOf(dr.Errorf(dr.KindCanceled, "agent", "the agent stopped the command as asked"))
	}
	err := v.engine.ReportCommand(ctx, string(agent), r.ID, rep)
	if dr.KindOf(err) == dr.KindNotFound {
		return nil // the job was removed: the agent may drop the report
	}
	return err
}

// agentError makes the domain's error of the wire's.
func agentError(e *agentapi.Error) error {
	if e == nil {
		return dr.Errorf(dr.KindInternal, "agent", "the agent failed without saying why")
	}
	kind, _ := dr.ParseKind(e.Kind)
	out := dr.New(kind, dr.Code(e.Code), "agent", "%s", e.Message)
	out.Hint = e.Hint
	return out
}

// Inventory takes the complete list of a host's VMs. A VM belongs to the agent
// that reported it first, until that one no longer does or is not connected:
// another agent's report of it is recorded, and moves nothing.
func (v *Vault) Inventory(ctx context.Context, agent dr.AgentID, r agentapi.InventoryRequest) error {
	if err := v.touch(ctx, agent, r.Hypervisor); err != nil {
		return err
	}
	err := v.tx(ctx, func(tx *sql.Tx) error {
		p, err := vaultdb.ProviderByID(ctx, tx, agent)
		if err != nil {
			return err
		}
		now := v.now()
		reported := map[dr.VMID]bool{}
		for _, w := range r.VMs {
			vm := toVM(w, p, now)
			reported[vm.ID] = true
			if err := v.discover(ctx, tx, p, vm); err != nil {
				return err
			}
		}
		mine, err := vaultdb.VMsOfAgent(ctx, tx, agent)
		if err != nil {
			return err
		}
		for _, vm := range mine {
			if !reported[vm.ID] && !vm.Gone {
				if err := vaultdb.MarkGone(ctx, tx, vm.Fabric, vm.ID); err != nil {
					return err
				}
			}
		}
		if err := vaultdb.UnseeVMs(ctx, tx, agent, now); err != nil {
			return err
		}
		nets := make([]vaultdb.Network, len(r.Networks))
		for i, n := range r.Networks {
			nets[i] = vaultdb.Network{Agent: agent, Name: n.Name, Isolated: n.Isolated, Active: n.Active}
		}
		v.db.NotifyTx(tx, topicChange, "site/"+string(p.Fabric))
		return vaultdb.ReplaceNetworks(ctx, tx, agent, nets)
	})
	if err == nil {
		v.mu.Lock()
		v.inventory[agent] = true
		v.mu.Unlock()
	}
	return err
}

func (v *Vault) discover(ctx context.Context, tx *sql.Tx, p vaultdb.Provider, vm dr.VM) error {
	have, err := vaultdb.VM(ctx, tx, p.Fabric, vm.ID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err != nil || have.Agent == p.ID || have.Gone {
		return vaultdb.SaveVM(ctx, tx, vm)
	}
	owner, err := vaultdb.ProviderByID(ctx, tx, have.Agent)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err != nil || !v.Connected(owner.Provider) && !v.settling() {
		if err := v.note(ctx, tx, vaultdb.Event{Kind: "vmMoved", Agent: p.ID, By: "agent"}, "VM %s is now on host %s: host %s is not connected", vm.Name, p.Host, owner.Host); err != nil {
			return err
		}
		return vaultdb.SaveVM(ctx, tx, vm)
	}
	news, err := vaultdb.SeeVM(ctx, tx, p.Fabric, vm.ID, p.ID, vm.Seen)
	if err != nil || !news {
		return err
	}
	return v.note(ctx, tx, vaultdb.Event{Kind: "vmSeenTwice", Agent: p.ID, By: "agent"}, "VM %s is reported by host %s and by host %s; it stays with %s", vm.Name, owner.Host, p.Host, owner.Host)
}

func toVM(w agentapi.VM, p vaultdb.Provider, now time.Time) dr.VM {
	vm := dr.VM{ID: dr.VMID(vaultdb.Key(w.ID)), Name: w.Name, Fabric: p.Fabric, Agent: p.ID, Running: w.Running, Generation: w.Generation,
		CPUs: w.CPUs, MemoryMB: w.MemoryMB, OSType: w.OSType, Seen: now}
	for _, d := range w.Disks {
		vm.Disks = append(vm.Disks, dr.Disk{ID: d.ID, Path: d.Path, Format: d.Format, Size: d.Size, Boot: d.Boot, Shared: d.Shared,
			PassThru: d.PassThru, Unreplicatable: d.Unreplicatable})
	}
	for _, n := range w.NICs {
		vm.NICs = append(vm.NICs, dr.NIC{ID: n.ID, MAC: n.MAC, Network: n.Network, Type: n.Type, IPs: n.IPs})
	}
	return vm
}

// Status returns what an item's source agent last said, with the time of the
// newest recovery point.
func (v *Vault) Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	return get(vaultdb.Status(ctx, v.q(), id))
}

// ReportStatus takes the state of an agent's replications. Lines for machines or
// generations that are not the agent's are ignored: they are late.
func (v *Vault) ReportStatus(ctx context.Context, agent dr.AgentID, r agentapi.StatusRequest) error {
	return v.tx(ctx, func(tx *sql.Tx) error {
		for _, s := range r.Items {
			it, err := vaultdb.ItemByMachine(ctx, tx, dr.MachineID(s.Machine))
			if dr.KindOf(err) == dr.KindNotFound {
				continue
			}
			if err != nil {
				return err
			}
			if it.SourceAgent != agent || it.Gen != dr.Generation(s.Generation) {
				continue
			}
			if err := vaultdb.SaveStatus(ctx, tx, it.ID, toStatus(s, v.now())); err != nil {
				return err
			}
			if it.Resync != s.Resync {
				if it, err = vaultdb.LockItem(ctx, tx, it.ID); err != nil {
					return err
				}
				if err := v.noteResync(ctx, tx, it, s.Resync); err != nil {
					return err
				}
				it.Resync = s.Resync
				if err := vaultdb.UpdateItem(ctx, tx, it); err != nil {
					return err
				}
			}
			v.db.NotifyTx(tx, topicChange, "item/"+string(it.ID))
		}
		return nil
	})
}

func (v *Vault) noteResync(ctx context.Context, tx *sql.Tx, it vaultdb.Item, reason string) error {
	if reason == "" {
		return v.note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "resynchronization of %s is complete", it.VMName)
	}
	return v.note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "%s needs a resynchronization: %s", it.VMName, clip(reason))
}

func toStatus(s agentapi.ItemStatus, now time.Time) dr.ReplicationStatus {
	st := dr.ReplicationStatus{Phase: s.Phase, Percent: s.Percent, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal,
		ETA: time.Duration(s.ETASeconds * float64(time.Second)), BacklogBytes: s.BacklogBytes, Spooled: s.SpooledBytes,
		LastCut: s.LastCut, Missed: s.Missed, Cycles: s.Cycles, At: now}
	if s.Error != nil {
		e, _ := dr.Lookup(dr.Code(s.Error.Code))
		severity := dr.HealthWarning
		if e.Retry == dr.NonRecoverable || cannotSend(dr.Code(s.Error.Code)) {
			severity = dr.HealthCritical
		}
		remedy := s.Error.Hint
		if remedy == "" {
			remedy = e.Remedy
		}
		st.Err = &dr.HealthError{Code: dr.Code(s.Error.Code), Severity: severity, Message: s.Error.Message, Cause: e.Cause, Remedy: remedy, Since: s.Since}
	}
	return st
}
