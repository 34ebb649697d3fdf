package vault

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/vault/replication"
	"holdfast/internal/vault/shape"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/warm"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// itemInput is the input of all jobs of an item.
type itemInput struct {
	Item     dr.ItemID       `json:"item"`
	Kind     dr.FailoverKind `json:"kind,omitempty"`
	Point    string          `json:"point,omitempty"`
	Network  string          `json:"network,omitempty"`
	Offline  bool            `json:"offline,omitempty"` // all adapters disconnected
	Source   bool            `json:"source,omitempty"`  // unplanned: try to shut the source down first
	Serving  string          `json:"serving,omitempty"` // MakeLocal
	Purge    bool            `json:"purge,omitempty"`
	Was      dr.Protection   `json:"was,omitempty"` // before a disable
	Comments string          `json:"comments,omitempty"`
}

// Enable starts the protection of a VM.
func (v items) Enable(ctx context.Context, r EnableRequest) (dr.JobID, error) {
	const op = "vault.Enable"
	if err := site.CheckName(op, "protected item", r.Name); err != nil {
		return "", err
	}
	f, err := v.Fabric(ctx, r.Fabric)
	if err != nil {
		return "", err
	}
	p, err := v.Policy(ctx, r.Policy)
	if err != nil {
		return "", err
	}
	machine := dr.MachineID(state.NewID())
	if r.Seed != "" {
		vm, err := v.VM(ctx, f.ID, r.VM)
		if err != nil {
			return "", err
		}
		disks, err := shape.Choose(op, vm, r.Disks)
		if err != nil {
			return "", err
		}
		if err := v.CheckSeed(ctx, r.Seed, vm, disks); err != nil {
			return "", err
		}
		machine = r.Seed
	}
	jobID := state.Ordered()
	it := vaultdb.Item{ProtectedItem: dr.ProtectedItem{ID: dr.ItemID(state.NewID()), Name: r.Name, Fabric: f.ID, Policy: p.ID, Machine: machine,
		Protection: dr.Enabling, Failover: dr.FailoverNone, Test: dr.TestNone, Active: dr.AtPrimary, Health: dr.HealthNormal,
		Settings: r.Settings, Created: v.st.Now(), Job: dr.JobID(jobID)}}
	err = v.st.Tx(ctx, func(tx *sql.Tx) error {
		vm, err := vaultdb.VM(ctx, tx, f.ID, r.VM)
		if err != nil {
			return err
		}
		if vm.Gone {
			return dr.New(dr.KindPrecondition, dr.CodeVMNotFound, op, "the host of %s does not report it any more", vm.Name)
		}
		agent, err := vaultdb.ProviderByID(ctx, tx, vm.Agent)
		if err != nil {
			return err
		}
		if !agent.HasRole(dr.RoleSource) {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, op, "host %s of %s does not have the source role", agent.Host, vm.Name)
		}
		it.VM, it.VMName, it.SourceAgent = vm.ID, vm.Name, vm.Agent
		if it.Disks, err = shape.Choose(op, vm, r.Disks); err != nil {
			return err
		}
		it.More = vaultdb.More{Shaped: true, Excluded: shape.Others(vm, it.Disks), Seed: r.Seed != ""}
		// The recovery site may be registered later.
		it.RecoveryFabric, err = site.RecoveryFabric(ctx, tx, f.ID, vm.ID, p.ID, vm.Agent)
		if err != nil && dr.CodeOf(err) != dr.CodeNoRecoverySite {
			return err
		}
		if err := v.insertOrRetry(ctx, tx, &it); err != nil {
			return err
		}
		if err := v.SubmitItem(ctx, tx, jobID, "EnableDr", work.LockOf(it.ID), it, itemInput{Item: it.ID}, r.By); err != nil {
			return err
		}
		return v.st.Note(ctx, tx, vaultdb.Event{Kind: "EnableDr", Item: it.ID, By: r.By, Audit: true}, "protection of %s by policy %s was started: job %s", vm.Name, p.Name, jobID)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(jobID), nil
}

// insertOrRetry adds the item, or takes over the one of the same name and VM
// whose enabling has failed.
func (v items) insertOrRetry(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error {
	old, err := vaultdb.ItemByName(ctx, tx, it.Fabric, it.Name)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err != nil || old.Protection != dr.EnableFailed || old.VM != it.VM || old.Job != "" {
		if err := vaultdb.InsertItem(ctx, tx, *it); err != nil {
			return err
		}
		return warm.Sync(ctx, tx, *it)
	}
	if it.More.Seed && it.Machine != old.Machine {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "vault.Enable", "%s has a replica already that was begun without this seed", it.VMName).
			WithHint("disable its protection first, then enable it with the seed")
	}
	it.ID, it.Machine, it.Gen, it.Created, it.More.Seed = old.ID, old.Machine, old.Gen, old.Created, old.More.Seed
	return v.st.SaveItem(ctx, tx, *it)
}

// Item finds a protected item of a site by name.
func (v items) Item(ctx context.Context, f dr.FabricID, name string) (dr.ProtectedItem, error) {
	it, err := vaultdb.ItemByName(ctx, v.st.Q(), f, name)
	return it.ProtectedItem, state.Outward(err)
}

// ItemByID finds a protected item.
func (v items) ItemByID(ctx context.Context, id dr.ItemID) (dr.ProtectedItem, error) {
	it, err := vaultdb.ItemByID(ctx, v.st.Q(), id)
	return it.ProtectedItem, state.Outward(err)
}

// Items lists the protected items of a site, of all sites for "".
func (v items) Items(ctx context.Context, f dr.FabricID) ([]dr.ProtectedItem, error) {
	rows, err := vaultdb.Items(ctx, v.st.Q(), f)
	out := make([]dr.ProtectedItem, len(rows))
	for i, r := range rows {
		out[i] = r.ProtectedItem
	}
	return out, state.Outward(err)
}

// AllowedOperations lists what can be done with an item now, by ASR's names.
func (v items) AllowedOperations(ctx context.Context, id dr.ItemID) ([]string, error) {
	out := []string{}
	err := v.st.DB.View(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		f, err := factsOf(ctx, tx, it)
		for _, op := range allowed(it, f) {
			out = append(out, string(op))
		}
		return err
	})
	return out, state.Outward(err)
}

// Update changes an item's settings; they count from the next failover on.
func (v items) Update(ctx context.Context, r UpdateRequest) (dr.JobID, error) {
	row, err := vaultdb.ItemByID(ctx, v.st.Q(), r.Item)
	if err != nil {
		return "", state.Outward(err)
	}
	return v.Quick(ctx, work.Quick{Kind: "UpdateVmProperties", TargetType: "ProtectionEntity", Target: row.VMName, TargetID: string(row.ID), Item: row.ID, By: r.By}, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, r.Item)
		if err != nil || r.Settings == nil {
			return err
		}
		r.Settings(&it.Settings)
		if err := warm.Sync(ctx, tx, it); err != nil {
			return err
		}
		return v.st.SaveItem(ctx, tx, it)
	})
}

// Resync asks the source agent for a resynchronization now, and gives it the
// replica back if a failover that failed has left it fenced. Recovery points stay.
// The job ends when the request is stored; the item shows how far it is. Pause
// stops one that runs.
func (v items) Resync(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return v.ResyncWith(ctx, id, ResyncOptions{}, by)
}

// ResyncWith is Resync with options.
func (v items) ResyncWith(ctx context.Context, id dr.ItemID, o ResyncOptions, by string) (dr.JobID, error) {
	return v.startItem(ctx, id, OpRepairReplication, "Resync", by, itemInput{Item: id}, func(_ context.Context, _ *sql.Tx, it *vaultdb.Item) error {
		replication.Request(it, o)
		return nil
	})
}

// Detail says of an item what dr.ProtectedItem and its status do not.
func (v items) Detail(ctx context.Context, id dr.ItemID) (Detail, error) {
	it, err := vaultdb.ItemByID(ctx, v.st.Q(), id)
	if err != nil {
		return Detail{}, state.Outward(err)
	}
	r, err := v.Report(ctx, id)
	if err != nil {
		return Detail{}, err
	}
	out := Detail{PauseReason: it.More.PauseReason, ResumeAt: it.More.ResumeAt, Excluded: it.More.Excluded, Seeded: it.More.Seed,
		NextInitial: r.NextInitial, Attempt: r.Attempt, RetryAt: r.RetryAt, SentBytes: r.SentBytes, CutDisks: r.CutDisks,
		ResyncCode: r.ResyncReason, ResyncText: it.Resync, NextResync: r.NextResync}
	if w, ok, err := v.Warmth.Of(ctx, id); err != nil {
		return Detail{}, err
	} else if ok {
		out.Warm = &w
	}
	vm, err := vaultdb.VM(ctx, v.st.Q(), it.Fabric, it.VM)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return out, state.Outward(err)
	}
	if err == nil {
		out.NewDisks = shape.NewDisks(it, vm)
	}
	if out.Statistics, err = v.Statistics(ctx, id); err != nil {
		return out, err
	}
	if out.Anomaly, err = v.Anomaly(ctx, id); err != nil {
		return out, err
	}
	groups, err := v.Registry.Groups(ctx)
	for _, g := range groups {
		if slices.Contains(g.Items, id) {
			out.Group = g.ID
		}
	}
	return out, err
}

// Disable ends the protection of an item: the source agent removes its
// tracking and spool, then the vault forgets the item. With purge the agent is
// not asked (it cleans up when it sees that the assignment is gone), and a test
// VM or a pending failover is no obstacle. The replica's objects stay in the
// store: deleting data is for retention, never for this call.
func (v items) Disable(ctx context.Context, id dr.ItemID, purge bool, by string) (dr.JobID, error) {
	jobID := state.Ordered()
	// The initial replication, which has a lock of its own, makes way; so does
	// copying the recovery VM's disks when nobody wants them any more.
	inTheWay := []string{work.LockInitial(id)}
	if purge {
		inTheWay = append(inTheWay, work.LockMakeLocal(id))
	}
	var cancel []string
	for _, lock := range inTheWay {
		active, err := v.Active(ctx, lock)
		if err != nil {
			return "", err
		}
		if active != "" {
			cancel = append(cancel, active)
		}
	}
	err := v.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		for _, active := range cancel {
			if err := v.Engine.Cancel(ctx, tx, active, by); err != nil && dr.KindOf(err) != dr.KindPrecondition {
				return err
			}
		}
		if err := v.SubmitItem(ctx, tx, jobID, "DisableDr", work.LockOf(id), it, itemInput{Item: id, Purge: purge, Was: it.Protection}, by); err != nil {
			return err
		}
		if it, err = vaultdb.LockItem(ctx, tx, id); err != nil {
			return err
		}
		f, err := factsOf(ctx, tx, it)
		if err != nil {
			return err
		}
		if !purge {
			if err := check(it, f, OpDisableProtection); err != nil {
				return err
			}
			all, err := vaultdb.Servings(ctx, tx, id)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(s vaultdb.Serving) bool { return !s.Local }) {
				return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.Disable", "the recovery VM of %s still reads from the store", it.VMName).
					WithHint("wait until the job MakeLocal has copied the VM's disks to its host, or remove with force if the VM is not needed")
			}
		}
		it.Protection, it.Job = dr.Disabling, dr.JobID(jobID)
		if err := v.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return v.st.Note(ctx, tx, vaultdb.Event{Kind: "DisableDr", Item: id, By: by, Audit: true}, "protection of %s is being disabled (purge=%v): job %s", it.VMName, purge, jobID)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(jobID), nil
}

// load reads a step's input and its item.
func (v *core) load(ctx context.Context, s *job.StepContext) (in itemInput, it vaultdb.Item, err error) {
	if err := s.Input(&in); err != nil {
		return in, it, err
	}
	it, err = vaultdb.ItemByID(ctx, v.st.Q(), in.Item)
	if dr.KindOf(err) == dr.KindNotFound {
		err = &job.Error{Class: job.Permanent, Err: err}
	}
	return in, it, err
}

// askAgent is the usual step of one command about an item. ask returns no
// command to skip the step, saying why; done makes the step's result.
func (v *core) askAgent(ask func(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item) (job.Command, string, error),
	done func(ctx context.Context, s *job.StepContext, in itemInput, it vaultdb.Item, r job.Reply) (job.Result, error)) job.Handler {
	return func(ctx context.Context, s *job.StepContext) (job.Result, error) {
		in, it, err := v.load(ctx, s)
		if err != nil {
			return job.Result{}, err
		}
		if r, ok := s.Reply(); ok {
			if err := r.Err(); err != nil {
				return job.Result{}, err
			}
			if done == nil {
				return job.Done(nil, nil), nil
			}
			return done(ctx, s, in, it, r)
		}
		c, skip, err := ask(ctx, s, in, it)
		if err != nil {
			return job.Result{}, err
		}
		if skip != "" {
			return job.Done(work.StepOut{Skipped: skip}, nil), nil
		}
		return job.WaitCommand(c), nil
	}
}

func command(agent dr.AgentID, kind agentapi.CommandKind, payload any, timeout time.Duration) job.Command {
	return job.Command{Agent: string(agent), Kind: string(kind), Payload: payload, Timeout: timeout}
}

func machineOf(it vaultdb.Item) agentapi.MachinePayload {
	return agentapi.MachinePayload{Machine: string(it.Machine), Generation: uint32(it.Gen)}
}

// prerequisitesStep lets the source agent look for what stands in the way.
func (v protection) prerequisitesStep() job.Handler {
	return v.askAgent(func(_ context.Context, _ *job.StepContext, _ itemInput, it vaultdb.Item) (job.Command, string, error) {
		return command(it.SourceAgent, agentapi.CmdCheckPrerequisites, agentapi.VMPayload{VM: string(it.VM), Disks: it.Disks}, 5*time.Minute), "", nil
	}, func(_ context.Context, _ *job.StepContext, _ itemInput, it vaultdb.Item, r job.Reply) (job.Result, error) {
		var res agentapi.PrerequisitesResult
		if err := r.Decode(&res); err != nil {
			return job.Result{}, err
		}
		var bad, warn []string
		var first agentapi.Finding
		for _, f := range res.Findings {
			text := strings.TrimSpace(f.Object + ": " + f.Message)
			switch f.Severity {
			case "error":
				if len(bad) == 0 {
					first = f
				}
				bad = append(bad, text)
			case "warning":
				warn = append(warn, text)
			}
		}
		if len(bad) > 0 {
			e := dr.New(dr.KindPrecondition, dr.Code(first.Code), "vault.Enable", "%s can't be protected: %s", it.VMName, strings.Join(bad, "; "))
			e.Hint = first.Hint
			return job.Result{}, &job.Error{Class: job.Permanent, Err: e}
		}
		out := work.StepOut{}
		if len(warn) > 0 {
			out.Outcome = map[string]string{"warnings": strings.Join(warn, "; ")}
		}
		return job.Done(out, nil), nil
	})
}

// relationshipStep opens the first generation, which makes the item an assignment of its agent.
func (v protection) relationshipStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	in, it, err := v.load(ctx, s)
	if err != nil {
		return job.Result{}, err
	}
	g, err := v.Replicas.OpenGeneration(ctx, s, in.Item, it.SourceAgent, "protect")
	if err != nil {
		return job.Result{}, err
	}
	return job.Done(work.StepOut{Gen: g.Gen}, nil), nil
}

// moveStep gives the replica to the agent that takes it over.
func (v protection) moveStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var in shape.MoveInput
	if err := s.Input(&in); err != nil {
		return job.Result{}, err
	}
	err := s.Commit(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, in.Item)
		if err != nil || it.SourceAgent == in.Agent {
			return err
		}
		v.st.Assigned(tx, it.SourceAgent)
		it.SourceAgent = in.Agent
		return v.st.SaveItem(ctx, tx, it)
	})
	if err != nil {
		return job.Result{}, err
	}
	g, err := v.Replicas.OpenGeneration(ctx, s, in.Item, in.Agent, "take over")
	if err != nil {
		if notAsked(err) {
			err = &job.Error{Class: job.Wait, Err: err} // nothing else would let replication go on
		}
		return job.Result{}, err
	}
	return job.Done(work.StepOut{Gen: g.Gen}, nil), nil
}

func (v protection) startReplicationStep() job.Handler {
	return v.askAgent(func(_ context.Context, _ *job.StepContext, _ itemInput, it vaultdb.Item) (job.Command, string, error) {
		return command(it.SourceAgent, agentapi.CmdStartReplication, machineOf(it), 10*time.Minute), "", nil
	}, nil)
}

// enableFinal moves the item on when its EnableDr job has ended.
func (v protection) enableFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		if j.State != job.Succeeded {
			it.Protection = dr.EnableFailed
			return nil
		}
		it.Protection = dr.InitialReplication
		points, err := vaultdb.Points(ctx, tx, it.Machine, 1)
		if err != nil {
			return err
		}
		if len(points) > 0 { // the agent was quick, or the job was restarted
			it.Protection = dr.Protected
		}
		return v.SubmitItem(ctx, tx, j.ID+"-initial", "IrCompletion", work.LockInitial(it.ID), *it, itemInput{Item: it.ID}, j.By)
	})
}

// finish is the end of an item's job: change moves the axes, and the item has
// no job any more. An item that is gone is no error.
func (v *core) finish(ctx context.Context, tx *sql.Tx, j *job.Job, change func(it *vaultdb.Item) error) error {
	it, err := vaultdb.LockItem(ctx, tx, dr.ItemID(j.Meta[work.MetaItem]))
	if dr.KindOf(err) == dr.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if err := change(&it); err != nil {
		return err
	}
	if it.Job == dr.JobID(j.ID) {
		it.Job = ""
	}
	if err := v.st.SaveItem(ctx, tx, it); err != nil {
		return err
	}
	text := ""
	if j.Failure != nil {
		text = ": " + j.Failure.Message
	}
	return v.st.Note(ctx, tx, vaultdb.Event{Kind: j.Kind, Item: it.ID, By: j.By}, "%s of %s %s%s", j.Kind, it.VMName, j.State, text)
}

// initialStep waits for the first recovery point. The agent's word is not
// taken for it: the point has to be on the catalogue.
func (v protection) initialStep() job.Handler {
	return v.askAgent(func(_ context.Context, _ *job.StepContext, _ itemInput, it vaultdb.Item) (job.Command, string, error) {
		return command(it.SourceAgent, agentapi.CmdAwaitInitial, machineOf(it), 0), "", nil
	}, func(ctx context.Context, _ *job.StepContext, _ itemInput, it vaultdb.Item, _ job.Reply) (job.Result, error) {
		if err := v.Replicas.Reconcile(ctx, it, false); err != nil {
			return job.Result{}, err
		}
		p, err := vaultdb.LatestPoint(ctx, v.st.Q(), it.Machine, "")
		if dr.CodeOf(err) == dr.CodeNoRecoveryPoint {
			return job.Result{}, dr.New(dr.KindUnavailable, dr.CodeObjectMissing, "vault.IrCompletion", "the agent reports %s as replicated, and the store has no recovery point of it", it.VMName)
		}
		if err != nil {
			return job.Result{}, err
		}
		return job.Done(work.StepOut{Gen: p.Gen, N: p.N, Outcome: map[string]string{"recoveryPoint": p.Name(), "bytes": fmt.Sprint(p.StoredBytes)}}, nil), nil
	})
}

func (v protection) finalizeStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	in, _, err := v.load(ctx, s)
	if err != nil {
		return job.Result{}, err
	}
	return job.Done(nil, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, in.Item)
		if err != nil || it.Protection != dr.InitialReplication {
			return err
		}
		it.Protection = dr.Protected
		return v.st.SaveItem(ctx, tx, it)
	}), nil
}

// stopStep has the agent remove tracking and spool; best effort where the
// agent is gone or was not to be asked.
func (v protection) stopStep() job.Handler {
	return v.askAgent(func(ctx context.Context, _ *job.StepContext, in itemInput, it vaultdb.Item) (job.Command, string, error) {
		switch p, err := vaultdb.ProviderByID(ctx, v.st.Q(), it.SourceAgent); {
		case err != nil && dr.KindOf(err) != dr.KindNotFound:
			return job.Command{}, "", err
		case in.Purge:
			return job.Command{}, "purge: the agent is not asked", nil
		case err != nil || p.Revoked:
			return job.Command{}, "the host was removed from the vault", nil
		case it.Active == dr.AtRecovery && !v.st.Connected(p.Provider):
			return job.Command{}, "the host is not connected; it cleans up when it sees that it has no assignment", nil
		}
		return command(it.SourceAgent, agentapi.CmdStopReplication, machineOf(it), 0), "", nil
	}, nil)
}

func (v protection) forgetStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var in itemInput
	if err := s.Input(&in); err != nil {
		return job.Result{}, err
	}
	return job.Done(work.StepOut{Outcome: map[string]string{"store": "the replica's objects stay in the store"}}, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, in.Item)
		if dr.KindOf(err) == dr.KindNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		v.st.Assigned(tx, it.SourceAgent)
		v.st.Changed(tx, "item", string(it.ID))
		if err := v.st.Note(ctx, tx, vaultdb.Event{Kind: "DisableDr", Item: it.ID, By: s.Job().By, Audit: true}, "protection of %s is disabled; machine %s stays in the store", it.VMName, it.Machine); err != nil {
			return err
		}
		return vaultdb.DeleteItem(ctx, tx, it)
	}), nil
}

func (v protection) disableFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		var in itemInput
		if err := decodeInput(j, &in); err != nil {
			return err
		}
		it.Protection = in.Was
		if in.Was == dr.InitialReplication || in.Was == dr.Enabling { // its own job was cancelled
			it.Protection = dr.EnableFailed
		}
		return nil
	})
}

// refreshStep asks a host for its inventory.
func (v protection) refreshStep() job.Handler {
	return job.CommandStep(func(_ context.Context, s *job.StepContext) (job.Command, error) {
		return command(dr.AgentID(s.Job().Meta[work.MetaTarget]), agentapi.CmdRefreshInventory, struct{}{}, 2*time.Minute), nil
	}, nil)
}

// RefreshProvider asks a host for its VMs now.
func (v items) RefreshProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, by string) (dr.JobID, error) {
	p, err := v.Provider(ctx, f, id)
	if err != nil {
		return "", err
	}
	return v.Submit(ctx, "RefreshDra", "Server", p.Host, string(p.ID), by)
}

// discoverInput is the input of DiscoverProtectableItem.
type discoverInput struct {
	Fabric    dr.FabricID `json:"fabric"`
	Container string      `json:"container"`
	Name      string      `json:"name,omitempty"`
}

// Discover asks all connected hosts of a site, and its VMM server, for what they
// have now. With a name the job fails unless a VM of that name is in the container
// (a container's name as in the API) then.
func (v items) Discover(ctx context.Context, fabric, container, name, by string) (dr.JobID, error) {
	f, err := v.Fabric(ctx, fabric)
	if err != nil {
		return "", err
	}
	return v.SubmitInput(ctx, "DiscoverProtectableItem", "ProtectionContainer", cmp.Or(name, f.Name), string(f.ID), by,
		discoverInput{Fabric: f.ID, Container: vaultdb.Key(container), Name: name})
}

// refreshed is what askHostsStep leaves: the jobs that ask the hosts.
type refreshed struct {
	Jobs  []string `json:"jobs"`
	Hosts []string `json:"hosts"`
}

// askHostsStep begins a refresh of every connected host, with the end of the step
// in one transaction.
func (v protection) askHostsStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var in discoverInput
	if err := s.Input(&in); err != nil {
		return job.Result{}, err
	}
	agents, err := vaultdb.Providers(ctx, v.st.Q(), in.Fabric)
	if err != nil {
		return job.Result{}, err
	}
	agents = slices.DeleteFunc(agents, func(p vaultdb.Provider) bool { return !v.st.Connected(p.Provider) })
	if len(agents) == 0 {
		return job.Result{}, dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "vault.Discover", "no host of the site is connected").
			WithHint("start the agents of the site's hosts")
	}
	var out refreshed
	for _, p := range agents {
		out.Jobs, out.Hosts = append(out.Jobs, state.Ordered()), append(out.Hosts, p.Host)
	}
	return job.Done(out, func(tx *sql.Tx) error {
		for i, p := range agents {
			if err := v.QuickIn(ctx, tx, out.Jobs[i], work.Quick{Kind: "RefreshDra", TargetType: "Server", Target: p.Host, TargetID: string(p.ID), By: s.Job().By}); err != nil {
				return err
			}
		}
		return nil
	}), nil
}

// awaitHostsStep waits for the answers. Hosts that fail do not hold up the others.
func (v protection) awaitHostsStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var asked refreshed
	if _, err := s.Output(askHosts, &asked); err != nil {
		return job.Result{}, err
	}
	failed := []string{}
	var last error
	for i, id := range asked.Jobs {
		j, err := v.Engine.Get(ctx, id)
		switch {
		case err != nil && dr.KindOf(err) != dr.KindNotFound:
			return job.Result{}, err
		case err == nil && !j.State.Final():
			s.Progress(float64(i)*100/float64(len(asked.Jobs)), asked.Hosts[i])
			return job.RetryAfter(time.Second), nil
		case err != nil || j.State != job.Succeeded:
			failed = append(failed, asked.Hosts[i])
			if err == nil && j.Failure != nil {
				last = j.Failure.Err()
			}
		}
	}
	if len(failed) == len(asked.Jobs) {
		return job.Result{}, &job.Error{Class: job.Permanent, Err: dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "vault.Discover", "none of the hosts %s told what it has: %w", strings.Join(failed, ", "), last)}
	}
	out := work.StepOut{Outcome: map[string]string{"hosts": fmt.Sprint(len(asked.Jobs) - len(failed))}}
	if len(failed) > 0 {
		out.Outcome["failedHosts"] = strings.Join(failed, ", ")
	}
	return job.Done(out, nil), nil
}

// findVMStep looks for the VM that was asked for.
func (v protection) findVMStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	var in discoverInput
	if err := s.Input(&in); err != nil {
		return job.Result{}, err
	}
	if in.Name == "" {
		return job.Done(work.StepOut{Skipped: "no VM was named"}, nil), nil
	}
	vms, err := vaultdb.VMs(ctx, v.st.Q(), in.Fabric)
	if err != nil {
		return job.Result{}, err
	}
	where := ""
	for _, vm := range vms {
		if vm.Gone || !strings.EqualFold(vm.Name, in.Name) {
			continue
		}
		at, err := site.ContainerOf(ctx, v.st.Q(), in.Fabric, vm.ID)
		if err != nil {
			return job.Result{}, err
		}
		if at == in.Container {
			return job.Done(work.StepOut{Outcome: map[string]string{"vm": string(vm.ID)}}, nil), nil
		}
		where = "; it is in container " + at
	}
	return job.Result{}, &job.Error{Class: job.Permanent, Err: dr.New(dr.KindNotFound, dr.CodeVMNotFound, "vault.Discover", "no host reports a VM named %q in this container%s", in.Name, where)}
}

// CheckConsistency compares the catalogue of a site's items with the store.
func (v items) CheckConsistency(ctx context.Context, fabric, by string) (dr.JobID, error) {
	f, err := v.Fabric(ctx, fabric)
	if err != nil {
		return "", err
	}
	return v.Submit(ctx, "CheckConsistency", "Server", f.Name, string(f.ID), by)
}

func (v protection) consistencyStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	items, err := vaultdb.Items(ctx, v.st.Q(), dr.FabricID(s.Job().Meta[work.MetaTarget]))
	if err != nil {
		return job.Result{}, err
	}
	for i, it := range items {
		s.Progress(float64(i)*100/float64(len(items)), it.VMName)
		if err := v.Replicas.Reconcile(ctx, it, true); err != nil {
			return job.Result{}, err
		}
	}
	return job.Done(work.StepOut{Outcome: map[string]string{"items": fmt.Sprint(len(items))}}, nil), nil
}
