package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/journal"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

// States of a report.
const (
	stateRunning   = "running"
	stateDone      = "done"
	stateFailed    = "failed"
	stateCancelled = "cancelled"
)

// vaultReports takes reports; *channel.Client does.
type vaultReports interface {
	Report(ctx context.Context, r agentapi.ReportRequest) error
}

// handler does what a command asks for. It is idempotent. progress may be
// called any number of times and does not block.
type handler func(ctx context.Context, payload json.RawMessage, progress func(percent float64, note string)) (any, error)

// commands carries out commands and reports on them.
type commands struct {
	journal  *journal.Journal
	reports  vaultReports
	handlers map[agentapi.CommandKind]handler
	log      *slog.Logger

	ctx context.Context
	wg  sync.WaitGroup

	mu     sync.Mutex
	active map[string]context.CancelCauseFunc // accepted, final report not acknowledged
}

var errCancelled = dr.Errorf(dr.KindCanceled, "agent.command", "the command was cancelled as asked")

// have lists the commands that need not be sent again.
func (c *commands) have() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]string, 0, len(c.active))
	for id := range c.active {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// accept starts a command, unless it is known.
func (c *commands) accept(cmd agentapi.Command) { c.begin(cmd, false) }

// cancel stops a command. One that is not known here is answered as cancelled
// and never started.
func (c *commands) cancel(id string) {
	c.mu.Lock()
	stop := c.active[id]
	c.mu.Unlock()
	if stop != nil {
		stop(errCancelled)
		return
	}
	c.begin(agentapi.Command{ID: id}, true)
}

func (c *commands) begin(cmd agentapi.Command, cancelled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.active[cmd.ID]; ok || c.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancelCause(c.ctx)
	c.active[cmd.ID] = stop
	if cancelled {
		stop(errCancelled)
	}
	c.wg.Go(func() {
		defer stop(nil)
		if report, ok := c.outcome(ctx, cmd); ok {
			c.deliver(report)
		}
		c.mu.Lock()
		delete(c.active, cmd.ID)
		c.mu.Unlock()
	})
}

// outcome is the final report of a command; false if the agent ends before there is one.
func (c *commands) outcome(ctx context.Context, cmd agentapi.Command) (agentapi.ReportRequest, bool) {
	report, err := c.journal.Find(cmd.ID)
	if err == nil {
		return report, true
	}
	if dr.KindOf(err) != dr.KindNotFound {
		// It may have been done; commands are idempotent, and the vault waits for an answer.
		c.log.Warn("the journal can't tell whether a command was done; it is done again", "command", cmd.ID, "err", err)
	}
	report = agentapi.ReportRequest{ID: cmd.ID, State: stateDone}
	result, err := c.run(ctx, cmd)
	switch {
	case err == nil:
		if result != nil {
			report.Result, err = json.Marshal(result)
		}
		if err == nil {
			break
		}
		fallthrough
	default:
		if c.ctx.Err() != nil {
			return report, false // begun again by the next process
		}
		report.State, report.Error, report.Result = stateFailed, channel.WireError(err), nil
		if ctx.Err() != nil {
			report.State, report.Error = stateCancelled, channel.WireError(errCancelled)
		}
		c.log.Warn("command failed", "command", cmd.ID, "kind", cmd.Kind, "state", report.State, "err", err, "hint", dr.HintOf(err))
	}
	if err := c.journal.Put(cmd.Kind, report); err != nil {
		c.log.Error("the result of a command is not in the journal", "command", cmd.ID, "err", err)
	}
	return report, true
}

func (c *commands) run(ctx context.Context, cmd agentapi.Command) (any, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	h := c.handlers[cmd.Kind]
	if h == nil {
		return nil, dr.Errorf(dr.KindUnsupported, "agent.command", "this agent can't do %q", cmd.Kind).
			WithHint("Upgrade the agent of this host, or see which roles it was registered with.")
	}
	c.log.Info("command begins", "command", cmd.ID, "kind", cmd.Kind)
	p := &pump{latest: make(chan agentapi.ReportRequest, 1)}
	pctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.run(pctx, c.reports) })
	result, err := h(ctx, cmd.Payload, func(percent float64, note string) {
		p.offer(agentapi.ReportRequest{ID: cmd.ID, State: stateRunning, Percent: percent, Note: note})
	})
	stop()
	wg.Wait()
	return result, err
}

// pump sends the latest progress, at most every progressEvery.
type pump struct {
	latest chan agentapi.ReportRequest
}

const progressEvery = 2 * time.Second

func (p *pump) offer(r agentapi.ReportRequest) {
	for {
		select {
		case p.latest <- r:
			return
		default:
		}
		select {
		case <-p.latest:
		default:
		}
	}
}

func (p *pump) run(ctx context.Context, to vaultReports) {
	var last agentapi.ReportRequest
	for {
		select {
		case r := <-p.latest:
			if r.Percent == last.Percent && r.Note == last.Note {
				continue
			}
			_ = to.Report(ctx, r) // the next one makes up for it
			last = r
			if sleep(ctx, progressEvery) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// deliver sends a final report until the vault has taken it.
func (c *commands) deliver(r agentapi.ReportRequest) {
	var pause backoff
	for {
		err := c.reports.Report(c.ctx, r)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		if !temporary(err) {
			c.log.Error("the vault does not take the report of a command", "command", r.ID, "err", err)
			return
		}
		if sleep(c.ctx, pause.next()) != nil {
			return
		}
	}
}
