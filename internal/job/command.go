package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// ReportState is how far an agent is with a command.
type ReportState string

// The states that an agent reports.
const (
	ReportRunning ReportState = "running" // progress
	ReportDone    ReportState = "done"
	ReportFailed  ReportState = "failed" // also: cancelled as asked
)

// Report is what an agent says about a command.
type Report struct {
	State   ReportState
	Pct     float64
	Note    string
	Result  json.RawMessage // of done; nil is null
	Failure *Failure        // of failed
}

// retell is how long a poll that would carry nothing but cancels already told
// waits before it tells them again.
const retell = 5 * time.Second

// PollCommands returns what the agent has to do and what it has to stop. have are
// the ids of all commands that it has accepted and whose final report has not been
// acknowledged; they are not delivered again. It returns as soon as there is
// something, at the latest after wait (0: at once).
//
// Delivery is at least once: the agent keeps a journal of ids and answers a
// command that it has done with the same report. A cancel may name a command that
// the agent has never seen: it then reports it as failed and never starts it.
// Cancels also name ids in have that the engine has closed.
func (e *Engine) PollCommands(ctx context.Context, agent string, have []string, wait time.Duration) (commands []Command, cancels []string, err error) {
	woken, leave := e.agents.join(agent)
	defer leave()
	end := time.NewTimer(wait)
	defer end.Stop()
	for last := wait <= 0; ; {
		var fresh bool
		commands, cancels, fresh, err = e.pollOnce(ctx, agent, have)
		if err != nil || last || len(commands) > 0 || fresh {
			if err == nil {
				e.agents.told(cancels, time.Now())
			}
			return commands, cancels, outward("job.PollCommands", err)
		}
		net := time.NewTimer(e.pollNet())
		select {
		case <-woken:
		case <-net.C:
		case <-end.C:
			last = true
		case <-ctx.Done():
			net.Stop()
			return nil, nil, outward("job.PollCommands", ctx.Err())
		case <-e.ctx.Done(): // the agent asks another replica
			net.Stop()
			return nil, nil, nil
		}
		net.Stop()
	}
}

// pollNet is how often a parked poll looks without having been woken. In one
// process no wake-up gets lost.
func (e *Engine) pollNet() time.Duration {
	if e.db.Dialect().Name() == "sqlite" {
		return 15 * time.Second
	}
	return e.cfg.Poll + e.cfg.Poll/2
}

func (e *Engine) pollOnce(ctx context.Context, agent string, have []string) (commands []Command, cancels []string, fresh bool, err error) {
	open := map[string]bool{}
	err = eachRow(ctx, e.db.SQL(), func(rows *sql.Rows) error {
		var c Command
		var payload string
		var cancelAt int64
		if err := rows.Scan(&c.ID, &c.Kind, &payload, &cancelAt); err != nil {
			return err
		}
		open[c.ID] = true
		switch {
		case cancelAt != 0:
			cancels = append(cancels, c.ID)
		case !slices.Contains(have, c.ID):
			c.Agent, c.Raw = agent, json.RawMessage(payload)
			commands = append(commands, c)
		}
		return nil
	}, "select id, kind, payload, cancel_at from job_command where agent=$1 and state in ('open','running') order by created, id", agent)
	if err != nil {
		return nil, nil, false, err
	}
	for _, id := range have {
		if !open[id] {
			cancels = append(cancels, id)
		}
	}
	return commands, cancels, e.agents.anyNew(cancels, time.Now()), nil
}

// ReportCommand takes an agent's report. A final report stores the result and
// makes the job ready in one transaction. It is idempotent: reports that come
// twice or after the command was closed are accepted and ignored. After an error
// the agent reports again. dr.KindNotFound: there is no such command, drop it.
func (e *Engine) ReportCommand(ctx context.Context, agent, id string, r Report) error {
	const op = "job.ReportCommand"
	if r.State != ReportRunning && r.State != ReportDone && r.State != ReportFailed {
		return dr.Errorf(dr.KindInvalid, op, "report of command %s: unknown state %q", id, r.State)
	}
	if r.State == ReportFailed && r.Failure == nil {
		return dr.Errorf(dr.KindInvalid, op, "report of command %s: failed without a failure", id)
	}
	result, err := encode("result of "+id, r.Result)
	if err != nil {
		return err
	}
	var failure string
	if r.State == ReportFailed {
		if failure, err = storeFailure(r.Failure); err != nil {
			return err
		}
	}
	return e.within(ctx, nil, op, func(tx *sql.Tx, now time.Time) error {
		var job, owner string
		var idx, attempt int
		err := tx.QueryRowContext(ctx, "select job, idx, attempt, agent from job_command where id=$1", id).Scan(&job, &idx, &attempt, &owner)
		if errors.Is(err, sql.ErrNoRows) {
			return dr.New(dr.KindNotFound, dr.CodeNotFound, op, "command %s does not exist", id)
		}
		if err != nil {
			return fmt.Errorf("read command %s: %w", id, err)
		}
		if owner != agent {
			return dr.Errorf(dr.KindForbidden, op, "command %s is not agent %s's", id, agent)
		}
		l, err := lockJob(ctx, tx, job, now)
		if err != nil {
			return err
		}
		state, done := string(r.State), r.State != ReportRunning
		if !done {
			result = ""
		}
		res, err := tx.ExecContext(ctx, `update job_command set state=$1, pct=$2, note=$3, result=$4, err=$5, updated=$6
			where id=$7 and state in ('open','running')`, state, percent(r.Pct), clean(r.Note), result, failure, now.UnixMicro(), id)
		if err != nil {
			return fmt.Errorf("store the report of %s: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err // closed before: late or twice
		}
		if _, err := tx.ExecContext(ctx, "update job_step set pct=$1, note=$2 where job=$3 and idx=$4 and attempt=$5 and state='waiting'",
			percent(r.Pct), clean(r.Note), job, idx, attempt); err != nil {
			return fmt.Errorf("store the progress of %s: %w", id, err)
		}
		if done && l.state == Waiting && l.waitKind == "command" && l.waitFor == id {
			return e.wake(ctx, tx, job, now)
		}
		e.changed(tx, job, false)
		return nil
	})
}

// loadReply reads the reply to the command of an attempt; nil if there is none.
func loadReply(ctx context.Context, q sqldb.Querier, id string, now time.Time) (*Reply, error) {
	var state, result, failure string
	var deadline int64
	err := q.QueryRowContext(ctx, "select state, result, err, deadline from job_command where id=$1", id).
		Scan(&state, &result, &failure, &deadline)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, sqldb.Classify(fmt.Errorf("read command %s: %w", id, err))
	}
	r := &Reply{Command: id}
	switch state {
	case string(ReportDone):
		r.Result = json.RawMessage(result)
	case string(ReportFailed):
		if r.Failure, err = loadFailure(failure); err != nil {
			return nil, err
		}
	default:
		if deadline == 0 || now.UnixMicro() < deadline {
			return nil, nil
		}
		r.TimedOut = true
	}
	return r, nil
}

func commandID(job, step string, attempt int) string {
	return fmt.Sprintf("%s/%s/%d", job, step, attempt)
}
