package vault

import (
	"context"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/vault/assign"
	"holdfast/internal/vault/state"
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

func (v channel) assignments(ctx context.Context, agent dr.AgentID) ([]agentapi.Assignment, string, error) {
	list, version, err := assign.To(ctx, v.st.Q(), agent, v.cfg.VaultKey.Public().Text())
	return list, version, state.Outward(err)
}

// Inventory takes the complete list of a host's VMs, see site.Sites.Inventory,
// and looks at what it means to protected items.
func (v channel) Inventory(ctx context.Context, agent dr.AgentID, r agentapi.InventoryRequest) error {
	if err := v.Sites.Inventory(ctx, agent, r); err != nil {
		return err
	}
	if err := v.Watcher.Seen(ctx, agent, r); err != nil {
		v.st.Log.Warn("look at an inventory for changes of protected items", "agent", agent, "err", err) // the next one tells it again
	}
	return nil
}

// Enroll registers a host, see site.Sites.Enroll. Replicas of a host that was
// registered before go on in new generations.
func (v channel) Enroll(ctx context.Context, r agentapi.EnrollRequest) (agentapi.EnrollResponse, error) {
	out, err := v.Sites.Enroll(ctx, r)
	if err != nil {
		return out, err
	}
	if err := v.Watcher.Registered(ctx, dr.AgentID(out.AgentID)); err != nil {
		v.st.Log.Warn("renew the replications of a host that registered again", "agent", out.AgentID, "err", err)
	}
	return out, nil
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

// Warm takes what an agent says of its warm replicas, and tells it what to keep.
func (v channel) Warm(ctx context.Context, agent dr.AgentID, r agentapi.WarmRequest) (agentapi.WarmResponse, error) {
	return v.Warmth.Warm(ctx, agent, r)
}
