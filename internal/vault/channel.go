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
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// Poll gives an agent its work, waiting for some at most as long as it asks
// for. It is the agent's heartbeat.
func (v channel) Poll(ctx context.Context, agent dr.AgentID, r agentapi.PollRequest) (agentapi.PollResponse, error) {
	if err := v.st.Touch(ctx, agent, ""); err != nil {
		return agentapi.PollResponse{}, err
	}
	// Listening begins before the first look, so that no change falls between.
	l := v.st.DB.Listen(state.TopicAssign)
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
	out := agentapi.PollResponse{Cancels: cancels, AssignmentsVersion: version, ServerTime: v.st.Now(), StatusSeconds: int(max(v.cfg.StatusEvery/time.Second, 1)),
		WantInventory: !v.Sites.HasInventory(agent)}
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
func (v channel) pollCommands(ctx context.Context, agent dr.AgentID, r agentapi.PollRequest, wait time.Duration,
	woken <-chan struct{}, changed func() bool) (commands []job.Command, cancels []string, err error) {
	if wait <= 0 {
		return v.Engine.PollCommands(ctx, string(agent), r.Have, 0)
	}
	pctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		commands, cancels, err = v.Engine.PollCommands(pctx, string(agent), r.Have, wait)
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
			return v.Engine.PollCommands(ctx, string(agent), r.Have, 0)
		}
	}
}

// assignments is the complete list of what an agent replicates: the items
// whose current generation is its own and open. The version is a digest of the
// list, so every replica of the vault names it alike.
func (v channel) assignments(ctx context.Context, agent dr.AgentID) ([]agentapi.Assignment, string, error) {
	items, err := vaultdb.ItemsOfSource(ctx, v.st.Q(), agent)
	if err != nil {
		return nil, "", state.Outward(err)
	}
	list := []agentapi.Assignment{}
	policies := map[dr.PolicyID]dr.Policy{}
	if len(items) > 0 {
		all, err := vaultdb.Policies(ctx, v.st.Q())
		if err != nil {
			return nil, "", state.Outward(err)
		}
		for _, p := range all {
			policies[p.ID] = p
		}
	}
	for _, it := range items {
		gens, err := vaultdb.Generations(ctx, v.st.Q(), it.Machine)
		if err != nil {
			return nil, "", state.Outward(err)
		}
		g, ok := replica.Current(it, gens)
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

// Report takes an agent's report on a command. Reports that come twice, late,
// or for a command that no longer exists are accepted and ignored.
func (v channel) Report(ctx context.Context, agent dr.AgentID, r agentapi.ReportRequest) error {
	rep := job.Report{State: job.ReportState(r.State), Pct: min(max(r.Percent, 0), 100), Note: state.Clip(r.Note), Result: r.Result}
	switch r.State {
	case "failed":
		rep.Failure = job.FailureOf(agentError(r.Error))
	case "cancelled":
		rep.State = job.ReportFailed
		rep.Failure = job.FailureOf(dr.Errorf(dr.KindCanceled, "agent", "the agent stopped the command as asked"))
	}
	err := v.Engine.ReportCommand(ctx, string(agent), r.ID, rep)
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

// Status returns what an item's source agent last said, with the time of the
// newest recovery point.
func (v items) Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	return state.Get(vaultdb.Status(ctx, v.st.Q(), id))
}

// ReportStatus takes the state of an agent's replications. Lines for machines or
// generations that are not the agent's are ignored: they are late.
func (v channel) ReportStatus(ctx context.Context, agent dr.AgentID, r agentapi.StatusRequest) error {
	return v.st.Tx(ctx, func(tx *sql.Tx) error {
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
			if err := vaultdb.SaveStatus(ctx, tx, it.ID, toStatus(s, v.st.Now())); err != nil {
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
			v.st.Changed(tx, "item", string(it.ID))
		}
		return nil
	})
}

func (v channel) noteResync(ctx context.Context, tx *sql.Tx, it vaultdb.Item, reason string) error {
	if reason == "" {
		return v.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "resynchronization of %s is complete", it.VMName)
	}
	return v.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "%s needs a resynchronization: %s", it.VMName, state.Clip(reason))
}

func toStatus(s agentapi.ItemStatus, now time.Time) dr.ReplicationStatus {
	st := dr.ReplicationStatus{Phase: s.Phase, Percent: s.Percent, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal,
		ETA: time.Duration(s.ETASeconds * float64(time.Second)), BacklogBytes: s.BacklogBytes, Spooled: s.SpooledBytes,
		LastCut: s.LastCut, Missed: s.Missed, Cycles: s.Cycles, At: now}
	if s.Error != nil {
		e, _ := dr.Lookup(dr.Code(s.Error.Code))
		severity := dr.HealthWarning
		if e.Retry == dr.NonRecoverable || health.CannotSend(dr.Code(s.Error.Code)) {
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
