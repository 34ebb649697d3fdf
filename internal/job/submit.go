package job

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

const never = math.MaxInt64 // due of a job that nobody needs to look at

// within runs f in tx, or in a transaction of its own when tx is nil. Errors of a
// caller's transaction stay as they are, so that its Tx classifies them.
func (e *Engine) within(ctx context.Context, tx *sql.Tx, op string, f func(tx *sql.Tx, now time.Time) error) error {
	run := func(tx *sql.Tx) error {
		now, err := e.db.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		return f(tx, now)
	}
	if tx != nil {
		return run(tx)
	}
	return outward(op, e.db.Tx(ctx, run))
}

// Submit stores a job and returns its id. With a transaction of Config.DB's Tx the
// job exists exactly if that commits; with nil Submit commits by itself.
//
// dr.KindConflict with dr.CodeJobInProgress names the active job of the same item.
// Submitting an ID again with the same kind and item returns it and does nothing,
// so a step may submit its children in every run.
func (e *Engine) Submit(ctx context.Context, tx *sql.Tx, s Spec) (id string, err error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	input, err := encode("job input", s.Input)
	if err != nil {
		return "", err
	}
	meta, err := encode("job meta data", s.Meta)
	if err != nil {
		return "", err
	}
	if s.ID == "" {
		u, err := uuid.NewV7()
		if err != nil {
			return "", dr.Errorf(dr.KindInternal, "job.Submit", "make a job id: %w", err)
		}
		s.ID = u.String()
	}
	err = e.within(ctx, tx, "job.Submit", func(tx *sql.Tx, now time.Time) error {
		for range 10 {
			done, err := e.insert(ctx, tx, s, input, meta, now)
			if done || err != nil {
				return err
			}
		}
		return dr.New(dr.KindConflict, dr.CodeJobInProgress, "job.Submit", "jobs of %s keep coming and going", s.Item)
	})
	if err != nil {
		return "", err
	}
	return s.ID, nil
}

// insert returns false if the job in the way has vanished meanwhile.
func (e *Engine) insert(ctx context.Context, tx *sql.Tx, s Spec, input, meta string, now time.Time) (bool, error) {
	due := now.UnixMicro()
	if !s.NotBefore.IsZero() {
		due = s.NotBefore.UnixMicro()
	}
	res, err := tx.ExecContext(ctx, `insert into job(`+jobColumns+`) values($1,$2,$3,$4,$5,$6,$7,$8,'ready','',0,$9,'',0,
		'','',0,0,'','',$10,0,0,$10) on conflict do nothing`,
		s.ID, s.Kind, s.Item, clean(s.TargetType), clean(s.TargetName), input, meta, clean(s.By), due, now.UnixMicro())
	if err != nil {
		return false, fmt.Errorf("insert job: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err != nil {
			return false, fmt.Errorf("insert job: %w", err)
		}
		return e.inTheWay(ctx, tx, s)
	}
	idx := 0
	for i, list := range [][]StepSpec{s.Steps, s.OnFail} {
		for _, st := range list {
			title := st.Title
			if title == "" {
				title = st.Name
			}
			if _, err := tx.ExecContext(ctx, `insert into job_step(job, idx, name, title, on_fail, max_attempts, state, attempt, base,
				out, pct, note, started, finished) values($1,$2,$3,$4,$5,$6,'pending',0,0,'',0,'',0,0)`,
				s.ID, idx, st.Name, clean(title), i == 1, st.MaxAttempts); err != nil {
				return false, fmt.Errorf("insert job step: %w", err)
			}
			idx++
		}
	}
	e.changed(tx, s.ID, true)
	return true, nil
}

// inTheWay explains why the insert found a row.
func (e *Engine) inTheWay(ctx context.Context, tx *sql.Tx, s Spec) (bool, error) {
	var kind, item string
	err := tx.QueryRowContext(ctx, "select kind, item from job where id=$1", s.ID).Scan(&kind, &item)
	switch {
	case err == nil && kind == s.Kind && item == s.Item:
		return true, nil
	case err == nil:
		return false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "job.Submit", "job %s exists already: it is a %s of %q", s.ID, kind, item)
	case !errors.Is(err, sql.ErrNoRows):
		return false, fmt.Errorf("look for job %s: %w", s.ID, err)
	}
	var id, state string
	err = tx.QueryRowContext(ctx, "select id, kind, state from job where item=$1 and state in ('ready','running','waiting')", s.Item).
		Scan(&id, &kind, &state)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the job of %s: %w", s.Item, err)
	}
	return false, conflict(s.Item, id, kind, state)
}

func conflict(item, id, kind, state string) error {
	return dr.New(dr.KindConflict, dr.CodeJobInProgress, "job.Submit", "job %s (%s) of %s is %s", id, kind, item, state).
		WithHint("wait for job %s or cancel it, then try again", id)
}

// changed queues the notifications for the commit.
func (e *Engine) changed(tx *sql.Tx, id string, claimable bool) {
	e.db.NotifyTx(tx, topicJob, id)
	if claimable {
		e.db.NotifyTx(tx, topicReady, "")
	}
}

// locked is the part of a job row that outside calls decide by.
type locked struct {
	state               State
	kind, item          string
	waitKind, waitFor   string
	due, cancelAt, step int64
	outcome             State
}

// lockJob takes the row lock that every transaction on a job takes first.
func lockJob(ctx context.Context, tx *sql.Tx, id string, now time.Time) (l locked, err error) {
	err = tx.QueryRowContext(ctx, `update job set updated=$1 where id=$2
		returning state, kind, item, wait_kind, wait_for, due, cancel_at, cur, outcome`, now.UnixMicro(), id).
		Scan(&l.state, &l.kind, &l.item, &l.waitKind, &l.waitFor, &l.due, &l.cancelAt, &l.step, &l.outcome)
	if errors.Is(err, sql.ErrNoRows) {
		return l, dr.New(dr.KindNotFound, dr.CodeNotFound, "job", "job %s does not exist", id)
	}
	if err != nil {
		return l, fmt.Errorf("lock job %s: %w", id, err)
	}
	return l, nil
}

// wake makes a waiting job claimable now. The row is locked.
func (e *Engine) wake(ctx context.Context, tx *sql.Tx, id string, now time.Time) error {
	if _, err := tx.ExecContext(ctx, "update job set state='ready', due=$1 where id=$2 and state in ('waiting','ready')",
		now.UnixMicro(), id); err != nil {
		return fmt.Errorf("wake job %s: %w", id, err)
	}
	e.changed(tx, id, true)
	return nil
}

// Signal sends a message to an active job; tx as in Submit. It is kept until a
// step takes it, also when no vault runs. dr.KindPrecondition: the job has ended.
func (e *Engine) Signal(ctx context.Context, tx *sql.Tx, id, name string, payload any, by string) error {
	if !nameForm.MatchString(name) {
		return dr.Errorf(dr.KindInvalid, "job.Signal", "a signal to job %s: %q is not a plain name", id, name)
	}
	text, err := encode("signal payload", payload)
	if err != nil {
		return err
	}
	return e.within(ctx, tx, "job.Signal", func(tx *sql.Tx, now time.Time) error {
		l, err := lockJob(ctx, tx, id, now)
		if err != nil {
			return err
		}
		if l.state.Final() {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "job.Signal", "job %s is %s and takes no signal %s", id, l.state, name)
		}
		var seq int64 // the job's row is locked: nobody else takes the next number
		if err := tx.QueryRowContext(ctx, "select coalesce(max(seq),0)+1 from job_signal where job=$1", id).Scan(&seq); err != nil {
			return fmt.Errorf("number signal %s of job %s: %w", name, id, err)
		}
		if _, err := tx.ExecContext(ctx, `insert into job_signal(job, seq, name, payload, by_whom, at, taken)
			values($1,$2,$3,$4,$5,$6,false)`, id, seq, name, text, clean(by), now.UnixMicro()); err != nil {
			return fmt.Errorf("insert signal %s of job %s: %w", name, id, err)
		}
		if l.state == Waiting && l.waitKind == "signal" && l.waitFor == name {
			return e.wake(ctx, tx, id, now)
		}
		e.changed(tx, id, false)
		return nil
	})
}

// Cancel asks a job to stop; tx as in Submit. A running handler's context ends at
// whichever replica it is; an agent is told, and the job moves when the agent
// reports or Config.CancelBound has passed. Then the OnFail steps run. Asking again
// changes nothing, a job that compensates already goes on, and
// dr.KindPrecondition says that the job has ended.
func (e *Engine) Cancel(ctx context.Context, tx *sql.Tx, id, by string) error {
	return e.within(ctx, tx, "job.Cancel", func(tx *sql.Tx, now time.Time) error {
		l, err := lockJob(ctx, tx, id, now)
		if err != nil {
			return err
		}
		if l.state.Final() {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "job.Cancel", "job %s is %s already", id, l.state)
		}
		if l.cancelAt != 0 || l.outcome != "" {
			return nil
		}
		if _, err := tx.ExecContext(ctx, "update job set cancel_at=$1, cancel_by=$2 where id=$3", now.UnixMicro(), clean(by), id); err != nil {
			return fmt.Errorf("cancel job %s: %w", id, err)
		}
		switch {
		case l.state == Running:
			e.changed(tx, id, false)
			e.db.NotifyTx(tx, topicCancel, id)
			return nil
		case l.state == Waiting && l.waitKind == "command":
			var agent string
			err := tx.QueryRowContext(ctx, "update job_command set cancel_at=$1, updated=$1 where id=$2 returning agent",
				now.UnixMicro(), l.waitFor).Scan(&agent)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return fmt.Errorf("cancel command %s: %w", l.waitFor, err)
			}
			bound := min(l.due, now.Add(e.cfg.CancelBound).UnixMicro())
			if _, err := tx.ExecContext(ctx, "update job set due=$1 where id=$2", bound, id); err != nil {
				return fmt.Errorf("cancel job %s: %w", id, err)
			}
			e.changed(tx, id, true) // claimers learn of the new due time
			e.db.NotifyTx(tx, topicAgent, agent)
			return nil
		}
		return e.wake(ctx, tx, id, now)
	})
}

// Restart makes a failed job ready again: its failed step runs with a fresh budget
// of attempts. If the job has OnFail steps, which have undone its work, it starts
// again at its first step. tx as in Submit.
//
// dr.KindPrecondition: the job has not failed. dr.KindConflict: another job of the
// same item is active.
func (e *Engine) Restart(ctx context.Context, tx *sql.Tx, id string) error {
	return e.within(ctx, tx, "job.Restart", func(tx *sql.Tx, now time.Time) error {
		l, err := lockJob(ctx, tx, id, now)
		if err != nil {
			return err
		}
		if l.state != Failed {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "job.Restart", "job %s is %s: only a failed job can be restarted", id, l.state)
		}
		if l.item != "" {
			var other, kind, state string
			err := tx.QueryRowContext(ctx, "select id, kind, state from job where item=$1 and state in ('ready','running','waiting')", l.item).
				Scan(&other, &kind, &state)
			if err == nil {
				return conflict(l.item, other, kind, state)
			} else if !errors.Is(err, sql.ErrNoRows) {
				return fmt.Errorf("look for the job of %s: %w", l.item, err)
			}
		}
		var first sql.NullInt64
		if err := tx.QueryRowContext(ctx, `select case when max(case when on_fail then 1 else 0 end) = 1 then 0
			else min(case when state='failed' then idx end) end from job_step where job=$1`, id).Scan(&first); err != nil {
			return fmt.Errorf("find the failed step of job %s: %w", id, err)
		}
		if _, err := tx.ExecContext(ctx, `update job_step set state='pending', base=attempt, out='', pct=0, note='', started=0, finished=0
			where job=$1 and idx>=$2`, id, first.Int64); err != nil {
			return fmt.Errorf("reset the steps of job %s: %w", id, err)
		}
		_, err = tx.ExecContext(ctx, `update job set state='ready', outcome='', err='', cur=$1, due=$2, finished=0, owner='',
			wait_kind='', wait_for='', wait_until=0, cancel_at=0, cancel_by='' where id=$3`, first.Int64, now.UnixMicro(), id)
		if sqldb.UniqueViolation(err) { // another job came between the look and the update
			return conflict(l.item, "", "another job", "active")
		}
		if err != nil {
			return fmt.Errorf("restart job %s: %w", id, err)
		}
		e.changed(tx, id, true)
		return nil
	})
}
