package vault

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/job"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/network"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

const (
	bootTimeout   = 15 * time.Minute
	removeTimeout = 2 * time.Minute
	startTimeout  = 10 * time.Minute
)

// failoverCheckStep chooses the recovery host and refuses what can't work,
// before anything is changed.
func (v recovery) failoverCheckStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	const op = "vault.PrerequisitesCheck"
	in, it, err := v.load(ctx, s)
	if err != nil {
		return job.Result{}, err
	}
	if _, err := v.Resolve(ctx, v.st.Q(), it, in.Point); err != nil {
		return job.Result{}, err
	}
	site, err := site.RecoveryFabric(ctx, v.st.Q(), it.Fabric, it.VM, it.Policy, it.SourceAgent)
	if err != nil {
		return job.Result{}, err
	}
	host, err := v.chooseHost(ctx, it, site)
	if err != nil {
		return job.Result{}, err
	}
	nets, err := vaultdb.Networks(ctx, v.st.Q(), site)
	if err != nil {
		return job.Result{}, err
	}
	for _, n := range nets {
		if in.Kind == dr.KindTestFailover && n.Agent == host.ID && n.Name == testNetwork(in, it) && !n.Isolated {
			return job.Result{}, dr.New(dr.KindPrecondition, dr.CodeNetworkNotIsolated, op, "network %q of host %s is not isolated", n.Name, host.Host)
		}
	}
	if in.Kind != dr.KindTestFailover && !in.Offline && chosenNetwork(in, it) == "" {
		dst, err := vaultdb.ProviderByID(ctx, v.st.Q(), host.ID)
		if err != nil {
			return job.Result{}, err
		}
		if _, err := network.Connect(ctx, v.st.Q(), it.ProtectedItem, dst); err != nil {
			return job.Result{}, err
		}
	}
	if in.Kind == dr.KindPlannedFailover {
		src, err := vaultdb.ProviderByID(ctx, v.st.Q(), it.SourceAgent)
		if err != nil {
			return job.Result{}, err
		}
		if !v.st.Connected(src.Provider) {
			return job.Result{}, v.absent(dr.New(dr.KindPrecondition, dr.CodeVaultUnreachable, op, "the source host %s is not connected: a planned failover needs it", src.Host).
				WithHint("start the agent on the source host, or use an unplanned failover if the host is lost"))
		}
	}
	if err := v.dropLeftover(ctx, s, in, it); err != nil {
		return job.Result{}, err
	}
	return job.Done(work.StepOut{Agent: host.ID, Outcome: map[string]string{"recoveryHost": host.Host}}, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, in.Item)
		if err != nil {
			return err
		}
		it.RecoveryFabric, it.RecoveryAgent = site, host.ID
		return v.st.SaveItem(ctx, tx, it)
	}), nil
}

// absent makes the error about an agent that is not heard of: final, or, right
// after a start of the vault, a reason to look again.
func (v recovery) absent(e *dr.Error) error {
	if v.st.Settling() {
		return &job.Error{Class: job.Wait, After: 2 * time.Second, Err: e}
	}
	return e
}

// chooseHost picks a connected recovery host: the one that the item had last,
// else the one that runs the fewest recovery VMs.
func (v recovery) chooseHost(ctx context.Context, it vaultdb.Item, site dr.FabricID) (dr.Provider, error) {
	const op = "vault.PrerequisitesCheck"
	agents, err := vaultdb.Providers(ctx, v.st.Q(), site)
	if err != nil {
		return dr.Provider{}, err
	}
	all, err := vaultdb.Servings(ctx, v.st.Q(), "")
	if err != nil {
		return dr.Provider{}, err
	}
	load := map[dr.AgentID]int{}
	for _, s := range all {
		load[s.Agent]++
	}
	var best dr.Provider
	known := 0
	for _, p := range agents {
		if !p.HasRole(dr.RoleRecovery) || p.ID == it.SourceAgent {
			continue
		}
		known++
		switch {
		case !v.st.Connected(p.Provider):
		case best.ID == "", p.ID == it.RecoveryAgent, best.ID != it.RecoveryAgent && load[p.ID] < load[best.ID]:
			best = p.Provider
		}
	}
	switch {
	case best.ID != "":
		return best, nil
	case known == 0:
		return best, dr.New(dr.KindPrecondition, dr.CodeNoRecoverySite, op, "the recovery site has no host with the recovery role")
	}
	return best, v.absent(dr.New(dr.KindUnavailable, dr.CodeRecoveryAgentDown, op, "none of the %d recovery hosts is connected", known))
}

// dropLeftover deals with what an earlier failover could not remove: while its
// host is connected that has to be removed first; a host that is lost keeps
// nobody from failing over to another one, its serving is ended.
func (v recovery) dropLeftover(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item) error {
	old, ok, err := servingOf(ctx, v.st.Q(), it.ID, in.Kind == dr.KindTestFailover, "")
	if err != nil || !ok {
		return err
	}
	p, err := vaultdb.ProviderByID(ctx, v.st.Q(), old.Agent)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err == nil && v.st.Connected(p.Provider) {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.PrerequisitesCheck", "host %s still has the recovery VM of an earlier failover of %s", p.Host, it.VMName).
			WithHint("cancel the failover (or clean up the test) first, which removes it")
	}
	return s.Commit(ctx, func(tx *sql.Tx) error {
		if err := v.st.Note(ctx, tx, vaultdb.Event{Kind: "leftover", Item: it.ID, Agent: old.Agent, By: s.Job().By, Audit: true},
			"the recovery VM %s of %s may still exist on host %s, which is not connected: it can't read the store any more", old.VM, it.VMName, p.Host); err != nil {
			return err
		}
		return vaultdb.DeleteServing(ctx, tx, old.ID)
	})
}

// sourceStep is a step at the source. In an unplanned failover it is best
// effort: not asked for, not reachable and failed are all reasons to go on.
func (v recovery) sourceStep(ask func(ctx context.Context, s *job.StepContext, it vaultdb.Item) (job.Command, error),
	done func(ctx context.Context, s *job.StepContext, it vaultdb.Item, r job.Reply) (job.Result, error)) job.Handler {
	return func(ctx context.Context, s *job.StepContext) (job.Result, error) {
		in, it, err := v.load(ctx, s)
		if err != nil {
			return job.Result{}, err
		}
		skip := func(why string) (job.Result, error) { return job.Done(work.StepOut{Skipped: why}, nil), nil }
		optional := in.Kind != dr.KindPlannedFailover
		if optional && !in.Source {
			return skip("not asked for")
		}
		var probe work.StepOut
		if ok, err := s.Output(checkSource, &probe); err != nil {
			return job.Result{}, err
		} else if ok && optional && probe.Skipped != "" {
			return skip(probe.Skipped)
		}
		r, answered := s.Reply()
		if answered && r.Err() == nil {
			return done(ctx, s, it, r)
		}
		if answered && !optional {
			return job.Result{}, r.Err()
		}
		if answered {
			s.Progress(100, state.Clip(r.Err().Error()))
			return skip(r.Err().Error())
		}
		src, err := vaultdb.ProviderByID(ctx, v.st.Q(), it.SourceAgent)
		if err != nil {
			return job.Result{}, err
		}
		if optional && !v.st.Connected(src.Provider) {
			return skip("the source host is not connected")
		}
		c, err := ask(ctx, s, it)
		if err != nil {
			return job.Result{}, err
		}
		return job.WaitCommand(c), nil
	}
}

// checkSource is the step whose answer, or silence, decides whether an
// unplanned failover asks anything more of the source.
const checkSource = "CheckSource"

// probeWait bounds how long a failover waits for the first word of a source
// host. One that has just died still counts as connected for a while, and
// nobody waits minutes for it on the bad day.
const probeWait = 10 * time.Second

// checkSourceStep asks the source host something small.
func (v recovery) checkSourceStep() job.Handler {
	return v.sourceStep(func(_ context.Context, _ *job.StepContext, it vaultdb.Item) (job.Command, error) {
		return command(it.SourceAgent, agentapi.CmdPowerState, agentapi.VMPayload{VM: string(it.VM)}, probeWait), nil
	}, func(context.Context, *job.StepContext, vaultdb.Item, job.Reply) (job.Result, error) {
		return job.Done(nil, nil), nil
	})
}

// shutdownStep shuts the source VM down. That it may be down is noted before
// it is asked for, so that an undo starts it again whatever gets lost.
func (v recovery) shutdownStep() job.Handler {
	return v.sourceStep(func(ctx context.Context, s *job.StepContext, it vaultdb.Item) (job.Command, error) {
		err := s.Commit(ctx, func(tx *sql.Tx) error {
			it, err := vaultdb.LockItem(ctx, tx, it.ID)
			if err != nil {
				return err
			}
			it.SourceStopped = true
			return v.st.SaveItem(ctx, tx, it)
		})
		payload := agentapi.ShutdownPayload{VM: string(it.VM), TimeoutSeconds: int(v.cfg.ShutdownWait / time.Second)}
		return command(it.SourceAgent, agentapi.CmdShutdownVM, payload, v.cfg.ShutdownWait+time.Minute), err
	}, func(context.Context, *job.StepContext, vaultdb.Item, job.Reply) (job.Result, error) {
		return job.Done(nil, nil), nil
	})
}

// drainStep has the source commit everything that is pending as one last cut.
func (v recovery) drainStep() job.Handler {
	return v.sourceStep(func(_ context.Context, s *job.StepContext, it vaultdb.Item) (job.Command, error) {
		timeout := time.Duration(0) // of a planned failover nothing is left behind
		if s.Job().Kind != "PlannedFailover" {
			timeout = v.cfg.DrainWait
		}
		return command(it.SourceAgent, agentapi.CmdDrain, machineOf(it), timeout), nil
	}, func(ctx context.Context, _ *job.StepContext, it vaultdb.Item, r job.Reply) (job.Result, error) {
		var p agentapi.PointResult
		if err := r.Decode(&p); err != nil {
			return job.Result{}, err
		}
		if err := v.Replicas.Reconcile(ctx, it, false); err != nil {
			return job.Result{}, err
		}
		if _, err := vaultdb.PointByNumber(ctx, v.st.Q(), it.Machine, dr.Generation(p.Generation), p.N); err != nil {
			if dr.KindOf(err) == dr.KindNotFound {
				err = dr.New(dr.KindUnavailable, dr.CodeObjectMissing, "vault.Drain", "the source reports %s as committed, and the store does not list it: %w",
					dr.PointName(dr.Generation(p.Generation), p.N), err)
			}
			return job.Result{}, err
		}
		return job.Done(work.StepOut{Gen: dr.Generation(p.Generation), N: p.N}, nil), nil
	})
}

// prepareStep fixes the recovery point and allots the serving under which the
// recovery host may read it. A failover first fences the source: see replica.Replicas.OpenGeneration.
func (v recovery) prepareStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	const op = "vault.PrepareRecoveryPoint"
	in, it, err := v.load(ctx, s)
	if err != nil {
		return job.Result{}, err
	}
	failover := s.Job().Kind == "PlannedFailover" || s.Job().Kind == "UnplannedFailover"
	if failover {
		if _, err := v.Replicas.OpenGeneration(ctx, s, it.ID, "", "failover"); err != nil {
			return job.Result{}, err
		}
	} else if err := v.Replicas.Reconcile(ctx, it, false); err != nil {
		return job.Result{}, err
	}
	p, err := v.Resolve(ctx, v.st.Q(), it, in.Point)
	if err != nil {
		return job.Result{}, err
	}
	var drained work.StepOut
	if ok, err := s.Output("SynchronizeLatestChanges", &drained); err != nil {
		return job.Result{}, err
	} else if ok && in.Kind == dr.KindPlannedFailover && (p.Gen != drained.Gen || p.N != drained.N) {
		return job.Result{}, &job.Error{Class: job.Permanent, Err: dr.New(dr.KindConflict, dr.CodeObjectConflict, op, "the newest recovery point of %s is %s, not %s that the source sent last",
			it.VMName, p.Name(), dr.PointName(drained.Gen, drained.N))}
	}
	warn, err := v.CheckKeys(ctx, p.Machine, p.Gen, p.N, in.Kind == dr.KindTestFailover)
	if err != nil {
		return job.Result{}, err
	}
	serving := vaultdb.Serving{ID: state.NewID(), Item: it.ID, Machine: it.Machine, Gen: p.Gen, N: p.N, Agent: it.RecoveryAgent, Kind: in.Kind, Created: v.st.Now()}
	out := work.StepOut{Serving: serving.ID, Gen: p.Gen, N: p.N, Time: sqldb.Micros(p.Time), Agent: serving.Agent,
		Outcome: map[string]string{"recoveryPoint": p.Name(), "recoveryPointTime": p.Time.Format(time.RFC3339)}}
	if warn != nil {
		out.Outcome["keys"] = state.Clip(warn.Error())
	}
	// From here on nothing that the point needs is deleted, even if this vault dies.
	if err := v.Lease(ctx, replica.ServingLease(serving)); err != nil {
		return job.Result{}, err
	}
	return job.Done(out, func(tx *sql.Tx) error {
		if failover && !in.Source {
			if err := v.noteSplitBrain(ctx, tx, it, s.Job()); err != nil {
				return err
			}
		}
		return vaultdb.SaveServing(ctx, tx, serving)
	}), nil
}

// noteSplitBrain records that the source VM may go on running beside the
// recovery VM. An unplanned failover is allowed to do that; what the source
// writes from now on is not replicated.
func (v recovery) noteSplitBrain(ctx context.Context, tx *sql.Tx, it vaultdb.Item, j *job.Job) error {
	vm, err := vaultdb.VM(ctx, tx, it.Fabric, it.VM)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	src, err2 := vaultdb.ProviderByID(ctx, tx, it.SourceAgent)
	if err2 != nil && dr.KindOf(err2) != dr.KindNotFound {
		return err2
	}
	if err != nil || err2 != nil || !vm.Running || !v.st.Connected(src.Provider) {
		return nil
	}
	return v.st.Note(ctx, tx, vaultdb.Event{Kind: "sourceStillRunning", Item: it.ID, Agent: it.SourceAgent, By: j.By, Audit: true},
		"%s still runs on host %s while it is failed over: its replication is fenced, what it writes there from now on is not replicated", it.VMName, src.Host)
}

// prepared returns the serving that prepareStep of this job allotted.
func (v recovery) prepared(ctx context.Context, s *job.StepContext) (vaultdb.Serving, work.StepOut, error) {
	var out work.StepOut
	if ok, err := s.Output("PrepareRecoveryPoint", &out); err != nil || !ok {
		return vaultdb.Serving{}, out, err
	}
	serving, err := vaultdb.ServingByID(ctx, v.st.Q(), out.Serving)
	if dr.KindOf(err) == dr.KindNotFound { // purged under the job
		err = &job.Error{Class: job.Permanent, Err: err}
	}
	return serving, out, err
}

// bootStep brings the prepared point up. The serving's id makes it
// repeatable: the same serving is the same VM.
func (v recovery) bootStep() job.Handler {
	return v.askAgent(func(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item) (job.Command, string, error) {
		serving, _, err := v.prepared(ctx, s)
		if err != nil {
			return job.Command{}, "", err
		}
		payload, err := v.bootPayload(ctx, in, it, serving)
		if err != nil {
			return job.Command{}, "", err
		}
		serving.Booted = true // from here on there may be something to remove
		patience, err := v.patience(ctx, it)
		if err != nil {
			return job.Command{}, "", err
		}
		err = s.Commit(ctx, func(tx *sql.Tx) error { return vaultdb.SaveServing(ctx, tx, serving) })
		return command(serving.Agent, agentapi.CmdBootPoint, payload, patience), "", err
	}, func(ctx context.Context, s *job.StepContext, in itemInput, _ vaultdb.Item, r job.Reply) (job.Result, error) {
		var res agentapi.BootResult
		if err := r.Decode(&res); err != nil {
			return job.Result{}, err
		}
		serving, out, err := v.prepared(ctx, s)
		if err != nil {
			return job.Result{}, err
		}
		o := work.StepOut{Serving: serving.ID, Outcome: map[string]string{"vm": res.VM, "prepareSeconds": seconds(res.PrepareSecs), "startSeconds": seconds(res.StartSecs)}}
		if len(res.Repaired) > 0 {
			o.Outcome["repaired"] = tail(strings.Join(res.Repaired, "; "), 1000)
		}
		return job.Done(o, func(tx *sql.Tx) error {
			serving.VM = dr.VMID(res.VM)
			if err := vaultdb.SaveServing(ctx, tx, serving); err != nil {
				return err
			}
			it, err := vaultdb.LockItem(ctx, tx, in.Item)
			if err != nil {
				return err
			}
			if in.Kind == dr.KindTestFailover {
				it.TestVM = serving.VM
			} else {
				it.RecoveryVM, it.FailedOverTo = serving.VM, dr.PointName(out.Gen, out.N)
			}
			return v.st.SaveItem(ctx, tx, it)
		}), nil
	})
}

// copyRate is below what any platform copies disks at before a VM starts, bytes a second.
const copyRate = 8 << 20

// patience is how long a boot may take: Hyper-V hosts and clouds copy the disks first.
func (v recovery) patience(ctx context.Context, it vaultdb.Item) (time.Duration, error) {
	vm, err := vaultdb.VM(ctx, v.st.Q(), it.Fabric, it.VM)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return 0, err
	}
	total := int64(1) << 40 // of a VM that nobody knows any more
	if err == nil {
		total = 0
		for _, d := range vm.Disks {
			total += d.Size
		}
	}
	return bootTimeout + time.Duration(total/copyRate)*time.Second, nil
}

func testNetwork(in itemInput, it vaultdb.Item) string {
	for _, n := range []string{in.Network, it.Settings.TestNetwork} {
		if n != "" {
			return n
		}
	}
	return hypervisor.IsolatedNetwork
}

func (v recovery) bootPayload(ctx context.Context, in itemInput, it vaultdb.Item, s vaultdb.Serving) (agentapi.BootPayload, error) {
	p := agentapi.BootPayload{Machine: string(s.Machine), Generation: uint32(s.Gen), N: s.N, Serving: s.ID, VMName: it.Settings.RecoveryVMName,
		CPUs: it.Settings.CPUs, MemoryMB: it.Settings.MemoryMB}
	if p.VMName == "" {
		p.VMName = it.VMName
	}
	if in.Kind == dr.KindTestFailover {
		p.VMName += "-test"
		if !in.Offline {
			p.Network = testNetwork(in, it)
		}
		return p, v.cloud(ctx, &p, it, true)
	}
	// The recovery VM is the same machine for everybody who knows its identity,
	// unless both agents work on one host, which can't have it twice.
	src, err := vaultdb.ProviderByID(ctx, v.st.Q(), it.SourceAgent)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return p, err
	}
	dst, err := vaultdb.ProviderByID(ctx, v.st.Q(), s.Agent)
	if err != nil {
		return p, err
	}
	p.KeepUUID = src.MachineID != dst.MachineID
	if !in.Offline {
		if err := v.realNetwork(ctx, &p, in, it, dst); err != nil {
			return p, err
		}
		f, err := vaultdb.Fabric(ctx, v.st.Q(), dst.Fabric)
		if err != nil {
			return p, err
		}
		if p.Network == "" && f.Type == dr.AzureSite { // nobody has chosen one
			p.Network = hypervisor.DefaultNetwork
		}
	}
	return p, v.cloud(ctx, &p, it, false)
}

// cloud adds what somebody has set for the recovery VM in a cloud. What is set for
// an adapter goes before what a network mapping says of its subnet.
func (v recovery) cloud(ctx context.Context, p *agentapi.BootPayload, it vaultdb.Item, test bool) error {
	c := it.Settings.Cloud
	repair, err := replica.Repairs(ctx, v.st.Q(), it)
	if err != nil {
		return err
	}
	p.Repair = repair
	p.Cloud = &agentapi.CloudTarget{Size: c.Size, ResourceGroup: c.ResourceGroup, AvailabilitySet: c.AvailabilitySet, Zone: c.Zone, ProximityGroup: c.ProximityGroup, DiskType: c.DiskType,
		License: c.License, SecurityGroup: c.SecurityGroup, PublicIP: c.PublicIP && !test, Tags: c.Tags}
	if len(c.NICs) == 0 || p.Network == "" {
		return nil
	}
	vm, err := vaultdb.VM(ctx, v.st.Q(), it.Fabric, it.VM)
	if dr.KindOf(err) == dr.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if len(p.Adapters) == 0 {
		for _, n := range vm.NICs {
			p.Adapters = append(p.Adapters, agentapi.BootAdapter{MAC: n.MAC, ID: n.ID, Network: p.Network})
		}
	}
	for _, want := range c.NICs {
		i := slices.IndexFunc(p.Adapters, func(a agentapi.BootAdapter) bool { return a.ID == want.ID })
		if i < 0 {
			continue // the VM has lost the adapter
		}
		a := &p.Adapters[i]
		switch {
		case want.Unused:
			a.Network, a.Subnet, a.VLAN = "", "", 0
		case test:
			a.Subnet, a.IP = cmp.Or(want.TestSubnet, a.Subnet), want.TestIP
		default:
			a.Subnet, a.IP = cmp.Or(want.Subnet, a.Subnet), want.IP
		}
	}
	for i, a := range p.Adapters { // the primary adapter is the first
		if slices.ContainsFunc(c.NICs, func(n dr.CloudNIC) bool { return n.Primary && n.ID == a.ID }) {
			p.Adapters = slices.Insert(slices.Delete(slices.Clone(p.Adapters), i, i+1), 0, a)
			break
		}
	}
	return nil
}

// chosenNetwork is the network that somebody chose for a real failover of the
// item; "" if nobody did.
func chosenNetwork(in itemInput, it vaultdb.Item) string {
	return cmp.Or(in.Network, it.Settings.Network)
}

// realNetwork sets the networks of a real failover: as asked, as set for the
// item, as the network mappings say for each adapter, or the recovery host's
// network of the same name as the source VM's first. Without any of these the VM
// comes up with its links down.
func (v recovery) realNetwork(ctx context.Context, p *agentapi.BootPayload, in itemInput, it vaultdb.Item, host vaultdb.Provider) error {
	if p.Network = chosenNetwork(in, it); p.Network != "" {
		return nil
	}
	c, err := network.Connect(ctx, v.st.Q(), it.ProtectedItem, host)
	if err != nil {
		return err
	}
	if c.Mapped {
		p.Network = c.Network()
		if p.Network != "" { // with none connected every agent leaves all links down
			p.Adapters = c.Adapters
		}
		return nil
	}
	vm, err := vaultdb.VM(ctx, v.st.Q(), it.Fabric, it.VM)
	if dr.KindOf(err) == dr.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	nets, err := vaultdb.Networks(ctx, v.st.Q(), host.Fabric)
	for _, nic := range vm.NICs {
		for _, n := range nets {
			if nic.Network != "" && n.Name == nic.Network && n.Agent == host.ID && n.Active {
				p.Network = n.Name
				return err
			}
		}
	}
	return err
}

// consolePattern is the item's own proof of life, from the settings as the
// client sent them ("holdfastConsolePattern", RE2 on the serial console).
func consolePattern(it vaultdb.Item) string {
	var raw struct {
		Pattern string `json:"holdfastConsolePattern"`
	}
	if json.Unmarshal([]byte(it.Settings.Raw), &raw) != nil {
		return ""
	}
	return raw.Pattern
}

// verifyStep waits for the VM's sign of life and keeps the proof. A test or a
// planned failover without it fails. An unplanned failover, or a change of its
// point, does not: the source may be lost, and a VM that is slow to come up
// (a file system check) must not be taken away; the job says that it is not proved.
func (v recovery) verifyStep() job.Handler {
	return v.askAgent(func(ctx context.Context, s *job.StepContext, _ itemInput, it vaultdb.Item) (job.Command, string, error) {
		serving, _, err := v.prepared(ctx, s)
		payload := agentapi.VerifyPayload{VM: string(serving.VM), ConsolePattern: consolePattern(it), TimeoutSeconds: int(v.cfg.VerifyTimeout / time.Second)}
		return command(serving.Agent, agentapi.CmdVerifyBoot, payload, v.cfg.VerifyTimeout+time.Minute), "", err
	}, func(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item, r job.Reply) (job.Result, error) {
		var res agentapi.VerifyResult
		if err := r.Decode(&res); err != nil {
			return job.Result{}, err
		}
		_, out, err := v.prepared(ctx, s)
		if err != nil {
			return job.Result{}, err
		}
		began, now := s.Job().Created, v.st.Now()
		rto, point := now.Sub(began), sqldb.Time(out.Time)
		rpo := max(began.Sub(point), 0)
		o := work.StepOut{Outcome: map[string]string{"rtoSeconds": seconds(rto.Seconds()), "rpoSeconds": seconds(rpo.Seconds()),
			"bootSeconds": seconds(res.Seconds), "bootVerified": strconv.FormatBool(res.OK)}}
		for k, text := range map[string]string{"console": tail(res.Console, 4000), "matched": state.Clip(res.Matched), "bootProblem": state.Clip(res.Reason)} {
			if text != "" {
				o.Outcome[k] = text
			}
		}
		report := testReport{OK: res.OK, Job: s.Job().ID, VM: string(it.TestVM), Point: dr.PointName(out.Gen, out.N), BootSecs: res.Seconds,
			RTOSecs: rto.Seconds(), Matched: state.Clip(res.Matched), Console: tail(res.Console, 4000), Reason: state.Clip(res.Reason), At: now.Format(time.RFC3339)}
		keep := func(tx *sql.Tx) error {
			if len(res.Screenshot) > 0 {
				report.Screenshot = s.Job().ID
				if err := vaultdb.SaveScreenshot(ctx, tx, dr.JobID(s.Job().ID), in.Item, res.Screenshot, now); err != nil {
					return err
				}
			}
			if in.Kind != dr.KindTestFailover {
				return nil
			}
			it, err := vaultdb.LockItem(ctx, tx, in.Item)
			if err != nil {
				return err
			}
			it.LastTestReport = report.text()
			return v.st.SaveItem(ctx, tx, it)
		}
		if !res.OK && in.Kind != dr.KindUnplannedFailover {
			if err := s.Commit(ctx, keep); err != nil {
				return job.Result{}, err
			}
			return job.Result{}, &job.Error{Class: job.Permanent, Err: dr.New(dr.KindUnavailable, dr.CodeBootNotVerified, "vault.VerifyBoot",
				"%s was started from %s and gave no sign of life: %s", it.VMName, report.Point, state.Clip(res.Reason))}
		}
		return job.Done(o, keep), nil
	})
}

// removeStep removes the item's recovery VM: the test's, or the failover's
// (in a change of the point the old one only). A host that was removed from the
// vault is not waited for. A test VM that came up and was not verified stays for a look.
func (v recovery) removeStep() job.Handler {
	find := func(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item) (vaultdb.Serving, bool, error) {
		except := ""
		if s.Job().Kind == "ChangePit" {
			_, out, err := v.prepared(ctx, s)
			if err != nil {
				return vaultdb.Serving{}, false, err
			}
			except = out.Serving
		}
		return servingOf(ctx, v.st.Q(), it.ID, in.Kind == dr.KindTestFailover, except)
	}
	drop := func(ctx context.Context, old vaultdb.Serving, skipped string) job.Result {
		return job.Done(work.StepOut{Skipped: skipped}, func(tx *sql.Tx) error { return vaultdb.DeleteServing(ctx, tx, old.ID) })
	}
	return func(ctx context.Context, s *job.StepContext) (job.Result, error) {
		in, it, err := v.load(ctx, s)
		if err != nil {
			return job.Result{}, err
		}
		old, ok, err := find(ctx, s, in, it)
		if err != nil {
			return job.Result{}, err
		}
		if r, answered := s.Reply(); answered {
			if r.Err() != nil {
				return job.Result{}, r.Err()
			}
			return drop(ctx, old, ""), nil
		}
		if !ok {
			return job.Done(work.StepOut{Skipped: "there is nothing to remove"}, nil), nil
		}
		if s.Job().Kind == "TestFailover" && s.Job().Outcome == job.Failed && old.VM != "" {
			return job.Done(work.StepOut{Skipped: "the test VM stays for a look, until it is cleaned up"}, nil), nil
		}
		if !old.Booted {
			return drop(ctx, old, "it was never started"), nil
		}
		p, err := vaultdb.ProviderByID(ctx, v.st.Q(), old.Agent)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return job.Result{}, err
		}
		if err != nil || p.Revoked {
			return drop(ctx, old, "its host was removed from the vault"), nil
		}
		if in.Kind != dr.KindTestFailover { // copying its disks must have ended before they are removed
			active, err := v.Active(ctx, work.LockMakeLocal(it.ID))
			if err != nil {
				return job.Result{}, err
			}
			if active != "" {
				if err := v.Engine.Cancel(ctx, nil, active, s.Job().By); err != nil && dr.KindOf(err) != dr.KindPrecondition {
					return job.Result{}, err
				}
				return job.RetryAfter(250 * time.Millisecond), nil
			}
		}
		return job.WaitCommand(command(old.Agent, agentapi.CmdRemoveVM, agentapi.RemovePayload{VM: string(old.VM), Serving: old.ID}, removeTimeout)), nil
	}
}

// startSourceStep starts the source VM again if the failover has shut it down,
// but never beside a recovery VM that could not be removed.
func (v recovery) startSourceStep() job.Handler {
	return v.askAgent(func(ctx context.Context, s *job.StepContext, _ itemInput, it vaultdb.Item) (job.Command, string, error) {
		if !it.SourceStopped {
			return job.Command{}, "it was not shut down", nil
		}
		left, ok, err := servingOf(ctx, v.st.Q(), it.ID, false, "")
		if err != nil {
			return job.Command{}, "", err
		}
		if ok && left.Booted {
			err := s.Commit(ctx, func(tx *sql.Tx) error {
				return v.st.Note(ctx, tx, vaultdb.Event{Kind: "sourceNotStarted", Item: it.ID, Agent: left.Agent, By: s.Job().By},
					"the source VM %s stays off: the recovery VM %s could not be removed and may run", it.VMName, left.VM)
			})
			return job.Command{}, "the recovery VM may still run", err
		}
		p, err := vaultdb.ProviderByID(ctx, v.st.Q(), it.SourceAgent)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return job.Command{}, "", err
		}
		if err != nil || p.Revoked {
			return job.Command{}, "the source host was removed from the vault", nil
		}
		return command(it.SourceAgent, agentapi.CmdStartVM, agentapi.VMPayload{VM: string(it.VM)}, startTimeout), "", nil
	}, func(ctx context.Context, _ *job.StepContext, in itemInput, _ vaultdb.Item, _ job.Reply) (job.Result, error) {
		return job.Done(nil, func(tx *sql.Tx) error {
			it, err := vaultdb.LockItem(ctx, tx, in.Item)
			if err != nil {
				return err
			}
			it.SourceStopped = false
			return v.st.SaveItem(ctx, tx, it)
		}), nil
	})
}

// resumeStep hands the replica back to the source in a new generation, if the
// failover had fenced it. It does not give up while the store can't be asked:
// nothing else would let replication go on.
func (v recovery) resumeStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	in, it, err := v.load(ctx, s)
	if err != nil {
		return job.Result{}, err
	}
	if ok, err := v.Replicas.SourceWrites(ctx, it); err != nil || ok {
		return job.Done(work.StepOut{Skipped: "it was not stopped"}, nil), err
	}
	g, err := v.Replicas.OpenGeneration(ctx, s, in.Item, it.SourceAgent, "resume")
	if err != nil {
		if notAsked(err) {
			err = &job.Error{Class: job.Wait, Err: err}
		}
		return job.Result{}, err
	}
	return job.Done(work.StepOut{Gen: g.Gen}, nil), nil
}

// notAsked reports that something could not be asked or refused this vault, whatever
// an operator has to do about it: it is asked again until it answers. The database's own failures are the engine's matter.
func notAsked(err error) bool {
	var known *job.Error
	switch {
	case errors.Is(err, sqldb.ErrInfrastructure):
		return false
	case errors.As(err, &known) && known.Class != "":
		return known.Class == job.Transient
	}
	switch dr.KindOf(err) {
	case dr.KindUnavailable, dr.KindExhausted, dr.KindConflict, dr.KindInternal:
		return true
	}
	return false
}

// makeLocalStep frees the recovery VM from the store. It is tried until it is
// done, or until there is no such VM any more.
func (v recovery) makeLocalStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var in itemInput
	if err := s.Input(&in); err != nil {
		return job.Result{}, err
	}
	serving, err := vaultdb.ServingByID(ctx, v.st.Q(), in.Serving)
	if dr.KindOf(err) == dr.KindNotFound {
		return job.Done(work.StepOut{Skipped: "the recovery VM was removed"}, nil), nil
	}
	if err != nil {
		return job.Result{}, err
	}
	r, answered := s.Reply()
	if !answered {
		return job.WaitCommand(command(serving.Agent, agentapi.CmdMakeLocal, agentapi.VMPayload{VM: string(serving.VM)}, 0)), nil
	}
	if err := r.Err(); err != nil {
		return job.Result{}, &job.Error{Class: job.Wait, After: 10 * time.Second, Err: err}
	}
	return job.Done(nil, func(tx *sql.Tx) error {
		v.st.Changed(tx, "item", string(in.Item))
		serving.Local = true
		return vaultdb.SaveServing(ctx, tx, serving)
	}), nil
}

func seconds(s float64) string { return fmt.Sprintf("%.1f", s) }

// tail is the end of a console's text, whole lines where that fits.
func tail(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	s = s[len(s)-limit:]
	if i := strings.IndexByte(s, '\n'); i >= 0 && i < limit/2 {
		s = s[i+1:]
	}
	return strings.ToValidUTF8(s, "?")
}
