package job

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// run is one claim of a job by this process: the right to write it as long as
// owner and epoch in its row are ours.
type run struct {
	e      *Engine
	id     string
	epoch  int64
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	renewed time.Time // when the last successful renewal began
	step    int
	pct     float64
	note    string
	dirty   bool
}

func (r *run) age() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.renewed)
}

func (r *run) setRenewed(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed = t
}

// fenced runs fn in a transaction that has locked the job's row and proved that
// the job is ours. It renews the lease by the way.
func (r *run) fenced(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx, now time.Time) error) error {
	began := time.Now()
	err := r.e.db.Tx(ctx, func(tx *sql.Tx) error {
		now, err := r.e.db.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "update job set due=$1, updated=$2 where id=$3 and owner=$4 and epoch=$5 and state='running'",
			now.Add(r.e.cfg.Lease).UnixMicro(), now.UnixMicro(), r.id, r.e.owner, r.epoch)
		if err != nil {
			return fmt.Errorf("fence job %s: %w", r.id, err)
		}
		if n, err := res.RowsAffected(); err != nil {
			return fmt.Errorf("fence job %s: %w", r.id, err)
		} else if n == 0 {
			return errFenced
		}
		return fn(ctx, tx, now)
	})
	if err == nil {
		r.setRenewed(began)
	}
	return err
}

// write is fenced for the engine's own writes: they go through although the
// handler's context has ended.
func (r *run) write(fn func(ctx context.Context, tx *sql.Tx, now time.Time) error) error {
	return r.fenced(context.WithoutCancel(r.ctx), fn)
}

// loop runs steps until the job waits, ends, or is not ours any more.
func (r *run) loop() {
	log := r.e.log.With("job", r.id, "epoch", r.epoch)
	for {
		more, err := r.safely()
		switch {
		case err == nil && more:
			continue
		case err == nil:
			return
		case errors.Is(err, errFenced) || errors.Is(context.Cause(r.ctx), errLost):
			log.Info("job was taken over by another replica", "err", err)
			return
		case errors.Is(context.Cause(r.ctx), errShutdown):
			r.release(0)
			return
		case errors.Is(err, sqldb.ErrInfrastructure):
			log.Warn("database trouble: letting go of the job", "err", err)
			r.release(time.Second)
			return
		}
		log.Error("job cannot go on, trying again", "err", err)
		r.release(5 * time.Second)
		return
	}
}

// release gives the lease up early, as a favour: the state stays as it is, and if
// this fails the lease runs out.
func (r *run) release(after time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 2*time.Second)
	defer cancel()
	_ = r.fenced(ctx, func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		_, err := tx.ExecContext(ctx, "update job set due=$1 where id=$2", now.Add(after).UnixMicro(), r.id)
		r.e.changed(tx, r.id, true)
		return err
	})
}

// safely turns a panic of the engine's hooks (OnFinal, Done's change) into an error.
func (r *run) safely() (more bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = dr.Errorf(dr.KindInternal, "job.run", "panic: %v\n%s", p, debug.Stack())
		}
	}()
	return r.advance()
}

// advance does the next thing of the job.
func (r *run) advance() (more bool, err error) {
	if err := context.Cause(r.ctx); errors.Is(err, errShutdown) || errors.Is(err, errLost) {
		return false, err
	}
	ctx := context.WithoutCancel(r.ctx)
	j, err := loadJob(ctx, r.e.db.SQL(), r.id)
	if err != nil {
		return false, err
	}
	if j.Owner != r.e.owner || j.Epoch != r.epoch || j.State != Running {
		return false, errFenced
	}
	if j.cur >= len(j.Steps) {
		return false, dr.Errorf(dr.KindCorrupt, "job.run", "job %s has no step %d", j.ID, j.cur)
	}
	step := &j.Steps[j.cur]
	if !j.CancelRequested.IsZero() && j.Outcome == "" {
		return r.end(j, step, Cancelled, nil)
	}
	h := r.e.handler(j.Kind + "/" + step.Name)
	if h == nil {
		return r.unknown(ctx, j, step)
	}
	if err := r.begin(step); err != nil {
		return false, err
	}
	s, err := r.stepContext(ctx, j, step)
	if err != nil {
		return false, err
	}
	res, err := call(r.ctx, h, s)
	return r.settle(j, step, s, res, err)
}

// stepContext reads what the handler may ask for.
func (r *run) stepContext(ctx context.Context, j *Job, step *Step) (*StepContext, error) {
	now, err := r.e.db.Dialect().Now(ctx, r.e.db.SQL())
	if err != nil {
		return nil, err
	}
	s := &StepContext{run: r, job: j, step: step, seen: map[string]int64{}}
	if s.signals, err = loadSignals(ctx, r.e.db.SQL(), j.ID); err != nil {
		return nil, err
	}
	if s.reply, err = loadReply(ctx, r.e.db.SQL(), commandID(j.ID, step.Name, step.Attempt), now); err != nil {
		return nil, err
	}
	s.timeout = j.WaitKind == "signal" && !j.WaitUntil.IsZero() && !now.Before(j.WaitUntil)
	return s, nil
}

// begin marks the step as running: a new attempt if it was pending.
func (r *run) begin(step *Step) error {
	if step.State == StepRunning {
		return nil
	}
	attempt := step.Attempt
	if step.State == StepPending {
		attempt++
	}
	err := r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		_, err := tx.ExecContext(ctx, `update job_step set state='running', attempt=$1,
			started=case when started=0 then $2 else started end where job=$3 and idx=$4`, attempt, now.UnixMicro(), r.id, step.Index)
		r.e.changed(tx, r.id, false)
		return err
	})
	if err == nil {
		step.State, step.Attempt = StepRunning, attempt
	}
	return err
}

// call runs the handler; a panic is a permanent failure with its stack in the message.
func call(ctx context.Context, h Handler, s *StepContext) (res Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &Error{Class: Permanent, Err: dr.Errorf(dr.KindInternal, "job.step", "step %s panicked: %v", s.Step(), p).
				WithHint("this is a defect of Holdfast: report it with the vault's log")}
			s.run.e.log.Error("step panicked", "job", s.job.ID, "step", s.Step(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return h(ctx, s)
}

// callChange makes a panic of Done's change the step's failure.
func callChange(change func(*sql.Tx) error, tx *sql.Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &Error{Class: Permanent, Err: dr.Errorf(dr.KindInternal, "job.step", "the state change panicked: %v", p)}
		}
	}()
	return change(tx)
}

// settle turns what the handler said into the job's next state.
func (r *run) settle(j *Job, step *Step, s *StepContext, res Result, err error) (more bool, _ error) {
	if err == nil {
		switch res.kind {
		case resultDone:
			more, err = r.done(j, step, s, res)
			if err == nil {
				return more, nil
			}
		case resultCommand:
			return false, r.waitCommand(j, step, s, res.command)
		case resultSignal:
			return r.waitSignal(step, s, res.signal, res.until)
		case resultRetry:
			return false, r.later(step, res.after)
		default:
			err = &Error{Class: Permanent, Err: dr.Errorf(dr.KindInternal, "job.step", "step %s returned nothing: neither a result nor an error", step.Name)}
		}
	}
	cause := context.Cause(r.ctx)
	switch {
	case errors.Is(err, sqldb.ErrInfrastructure), errors.Is(err, errFenced),
		errors.Is(cause, errShutdown), errors.Is(cause, errLost):
		return false, err
	case errors.Is(cause, errCancel) && j.Outcome == "":
		return r.end(j, step, Cancelled, nil)
	}
	return r.failed(j, step, err)
}

// done ends the step well and goes to the next one or ends the job.
func (r *run) done(j *Job, step *Step, s *StepContext, res Result) (more bool, err error) {
	out, err := encode("output of step "+step.Name, res.out)
	if err != nil {
		return false, &Error{Class: Permanent, Err: err}
	}
	err = r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		if res.change != nil {
			if err := callChange(res.change, tx); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `update job_step set state='succeeded', out=$1, pct=100, finished=$2 where job=$3 and idx=$4`,
			out, now.UnixMicro(), r.id, step.Index); err != nil {
			return err
		}
		for name, seq := range s.seen {
			if _, err := tx.ExecContext(ctx, "update job_signal set taken=true where job=$1 and name=$2 and seq<=$3", r.id, name, seq); err != nil {
				return err
			}
		}
		if err := r.closeCommands(ctx, tx, step, now); err != nil {
			return err
		}
		more, err = r.next(ctx, tx, j, step.Index+1, j.Outcome, now)
		return err
	})
	return more, err
}

// next makes the step idx the current one, or the job final when its list is
// through. outcome is empty in the main list, else we are in the OnFail list.
func (r *run) next(ctx context.Context, tx *sql.Tx, j *Job, idx int, outcome State, now time.Time) (more bool, err error) {
	for idx < len(j.Steps) && j.Steps[idx].OnFail != (outcome != "") {
		idx++
	}
	r.e.changed(tx, r.id, false)
	if idx < len(j.Steps) {
		_, err := tx.ExecContext(ctx, "update job set cur=$1, wait_kind='', wait_for='', wait_until=0 where id=$2", idx, r.id)
		return true, err
	}
	final := outcome
	if final == "" {
		final = Succeeded
	}
	if _, err := tx.ExecContext(ctx, "update job_step set state='skipped' where job=$1 and state='pending'", r.id); err != nil {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, `update job set state=$1, finished=$2, due=$3, wait_kind='', wait_for='', wait_until=0
		where id=$4`, string(final), now.UnixMicro(), int64(never), r.id); err != nil {
		return false, err
	}
	if hook := r.e.cfg.OnFinal[j.Kind]; hook != nil {
		ended, err := loadJob(ctx, tx, r.id)
		if err != nil {
			return false, err
		}
		if err := hook(ctx, tx, ended); err != nil {
			return false, fmt.Errorf("end job %s: %w", r.id, err)
		}
	}
	return false, nil
}

// failed records the attempt's error and tries again later or ends the main list.
func (r *run) failed(j *Job, step *Step, cause error) (more bool, err error) {
	f := FailureOf(cause)
	f.Step, f.Attempt = step.Name, step.Attempt
	limit := step.maxAttempts
	if limit == 0 {
		limit = r.e.cfg.Retry.Attempts
	}
	tries := step.Attempt - step.base
	if f.Class == Permanent || (f.Class == Transient && tries >= limit) {
		r.e.log.Warn("step failed", "job", j.ID, "kind", j.Kind, "step", step.Name, "attempt", step.Attempt, "class", f.Class, "err", cause)
		return r.end(j, step, Failed, f)
	}
	var own *Error
	var atLeast time.Duration
	if errors.As(cause, &own) {
		atLeast = own.After
	}
	delay, base := r.e.cfg.Retry.delay(max(tries, 1), atLeast), step.base
	if f.Class == Wait {
		base++ // does not count
	}
	r.e.log.Info("step will be tried again", "job", j.ID, "kind", j.Kind, "step", step.Name, "attempt", step.Attempt, "in", delay, "err", cause)
	return false, r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		if err := r.record(ctx, tx, step, f, now); err != nil {
			return err
		}
		if err := r.closeCommands(ctx, tx, step, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "update job_step set state='pending', base=$1, pct=0, note='' where job=$2 and idx=$3",
			base, r.id, step.Index); err != nil {
			return err
		}
		return r.park(ctx, tx, Ready, now.Add(delay).UnixMicro(), "", "", 0)
	})
}

// end closes the step as failed or cancelled and turns to the OnFail list, or, when
// already there, goes on with it: each of its steps stands for itself.
func (r *run) end(j *Job, step *Step, as State, f *Failure) (more bool, err error) {
	err = r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		if f != nil {
			if err := r.record(ctx, tx, step, f, now); err != nil {
				return err
			}
		}
		if err := r.closeCommands(ctx, tx, step, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "update job_step set state=$1, finished=$2 where job=$3 and idx=$4",
			string(as), now.UnixMicro(), r.id, step.Index); err != nil {
			return err
		}
		outcome := j.Outcome
		if outcome == "" {
			outcome = as
			text, err := storeFailure(f)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "update job set outcome=$1, err=$2 where id=$3", string(as), text, r.id); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "update job_step set state='skipped' where job=$1 and on_fail=$2 and state='pending'", r.id, false); err != nil {
				return err
			}
		}
		more, err = r.next(ctx, tx, j, step.Index+1, outcome, now)
		return err
	})
	if err == nil && more && j.Outcome == "" {
		// A cancel may have ended, or be about to end, this run's context. The OnFail
		// steps run under a new claim, whose context it does not reach.
		r.release(0)
		more = false
	}
	return more, err
}

func (r *run) record(ctx context.Context, tx *sql.Tx, step *Step, f *Failure, now time.Time) error {
	f.At = now
	_, err := tx.ExecContext(ctx, "insert into job_failure(job, idx, attempt, class, kind, code, message, hint, at) values($1,$2,$3,$4,$5,$6,$7,$8,$9)",
		r.id, step.Index, f.Attempt, string(f.Class), f.Kind.String(), clean(string(f.Code)), f.Message, f.Hint, now.UnixMicro())
	if err != nil {
		return fmt.Errorf("record the failure of job %s: %w", r.id, err)
	}
	return nil
}

// closeCommands closes what is still open of the step's commands; the agent is
// told at its next poll.
func (r *run) closeCommands(ctx context.Context, tx *sql.Tx, step *Step, now time.Time) error {
	return eachRow(ctx, tx, func(rows *sql.Rows) error {
		var agent string
		err := rows.Scan(&agent)
		r.e.db.NotifyTx(tx, topicAgent, agent)
		return err
	}, "update job_command set state='cancelled', updated=$1 where job=$2 and idx=$3 and state in ('open','running') returning agent",
		now.UnixMicro(), r.id, step.Index)
}

// park writes the state in which the job leaves this run.
func (r *run) park(ctx context.Context, tx *sql.Tx, state State, due int64, kind, what string, until int64) error {
	_, err := tx.ExecContext(ctx, "update job set state=$1, due=$2, wait_kind=$3, wait_for=$4, wait_until=$5 where id=$6",
		string(state), due, kind, what, until, r.id)
	r.e.changed(tx, r.id, true)
	return err
}

func (r *run) waitCommand(j *Job, step *Step, s *StepContext, c Command) error {
	payload, err := encode("payload of a command", c.Payload)
	switch {
	case err != nil:
	case s.reply != nil:
		err = dr.Errorf(dr.KindInternal, "job.step", "step %s asks for a second command in one attempt", step.Name)
	case c.Agent == "" || c.Kind == "":
		err = dr.Errorf(dr.KindInvalid, "job.step", "step %s made a command without agent or kind", step.Name)
	}
	if err != nil {
		_, err = r.failed(j, step, &Error{Class: Permanent, Err: err})
		return err
	}
	id := commandID(r.id, step.Name, step.Attempt)
	return r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		deadline := int64(0)
		if c.Timeout > 0 {
			deadline = now.Add(c.Timeout).UnixMicro()
		}
		if _, err := tx.ExecContext(ctx, `insert into job_command(id, agent, job, idx, attempt, kind, payload, state, deadline, cancel_at,
			pct, note, result, err, created, updated) values($1,$2,$3,$4,$5,$6,$7,'open',$8,0,0,'','','',$9,$9) on conflict (id) do nothing`,
			id, c.Agent, r.id, step.Index, step.Attempt, c.Kind, payload, deadline, now.UnixMicro()); err != nil {
			return fmt.Errorf("insert command %s: %w", id, err)
		}
		var state, agent string
		var cancelAt int64
		if err := tx.QueryRowContext(ctx, "select c.state, c.agent, c.deadline, j.cancel_at from job_command c join job j on j.id=c.job where c.id=$1", id).
			Scan(&state, &agent, &deadline, &cancelAt); err != nil {
			return fmt.Errorf("read command %s: %w", id, err)
		}
		r.e.db.NotifyTx(tx, topicAgent, agent)
		if state != "open" && state != "running" || cancelAt != 0 && j.Outcome == "" {
			// Its report came in between, or the job was cancelled while the handler ran.
			if _, err := tx.ExecContext(ctx, "update job_step set state='waiting' where job=$1 and idx=$2", r.id, step.Index); err != nil {
				return err
			}
			return r.park(ctx, tx, Ready, now.UnixMicro(), "command", id, deadline)
		}
		if _, err := tx.ExecContext(ctx, "update job_step set state='waiting' where job=$1 and idx=$2", r.id, step.Index); err != nil {
			return err
		}
		due := deadline
		if due == 0 {
			due = never
		}
		return r.park(ctx, tx, Waiting, due, "command", id, deadline)
	})
}

func (r *run) waitSignal(step *Step, s *StepContext, name string, until time.Time) (more bool, err error) {
	s.mu.Lock()
	seen := s.seen[name]
	s.mu.Unlock()
	err = r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		var n, cancelAt int64
		// The job's row is locked: a signal is either here or will find us waiting.
		if err := tx.QueryRowContext(ctx, "select count(*) from job_signal where job=$1 and name=$2 and seq>$3 and taken=$4", r.id, name, seen, false).
			Scan(&n); err != nil {
			return fmt.Errorf("look for signal %s: %w", name, err)
		}
		if err := tx.QueryRowContext(ctx, "select cancel_at from job where id=$1", r.id).Scan(&cancelAt); err != nil {
			return fmt.Errorf("look for a cancel: %w", err)
		}
		if more = n > 0 || cancelAt != 0 && s.job.Outcome == ""; more {
			return nil
		}
		if _, err := tx.ExecContext(ctx, "update job_step set state='waiting' where job=$1 and idx=$2", r.id, step.Index); err != nil {
			return err
		}
		due := int64(never)
		if !until.IsZero() {
			due = until.UnixMicro()
		}
		return r.park(ctx, tx, Waiting, due, "signal", name, sqldb.Micros(until))
	})
	return more && err == nil, err
}

func (r *run) later(step *Step, after time.Duration) error {
	return r.write(func(ctx context.Context, tx *sql.Tx, now time.Time) error {
		if _, err := tx.ExecContext(ctx, "update job_step set state='waiting' where job=$1 and idx=$2", r.id, step.Index); err != nil {
			return err
		}
		return r.park(ctx, tx, Ready, now.Add(max(after, 0)).UnixMicro(), "", "", 0)
	})
}

// unknown handles a step that this program has no handler for: another replica
// may (a newer one, during an upgrade); if none does the job stops.
func (r *run) unknown(ctx context.Context, j *Job, step *Step) (more bool, err error) {
	key := j.Kind + "/" + step.Name
	known, err := r.e.knownElsewhere(ctx, key)
	if err != nil {
		return false, err
	}
	if known {
		r.release(r.e.cfg.Poll)
		return false, nil
	}
	f := FailureOf(&Error{Class: Permanent, Err: dr.New(dr.KindInternal, dr.CodeUnknownStep, "job.run",
		"no running vault knows step %s of job %s", key, j.ID)})
	f.Step, f.Attempt = step.Name, step.Attempt
	r.e.log.Error("unknown step: the job stops", "job", j.ID, "step", key)
	return r.end(j, step, Failed, f)
}
