package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"sync"
	"time"

	"holdfast/internal/dr"
)

// Handler does one step. It runs at least once and must be idempotent: after a
// crash or a false take-over it runs again with the same attempt number, possibly
// while the first run still goes on somewhere. ctx ends when the job is
// cancelled, the lease is lost or the vault shuts down; context.Cause tells.
//
// A step that needs an agent or a person returns Wait…, forgets everything, and
// is called again when the answer is there:
//
//	if r, ok := s.Reply(); ok {
//		return job.Done(out, nil), r.Err()
//	}
//	return job.WaitCommand(job.Command{…}), nil
type Handler func(ctx context.Context, s *StepContext) (Result, error)

type resultKind uint8

const (
	resultNone resultKind = iota
	resultDone
	resultCommand
	resultSignal
	resultRetry
)

// Result is what a handler wants next. The zero Result with a nil error is a
// defect of the handler and fails the job.
type Result struct {
	kind    resultKind
	out     any
	change  func(*sql.Tx) error
	command Command
	signal  string
	until   time.Time
	after   time.Duration
}

// Done ends the step. out is stored as JSON for later steps and the Jobs page;
// change, if not nil, runs in the same transaction as the end of the step. An
// error of change is treated as the step's.
func Done(out any, change func(*sql.Tx) error) Result {
	return Result{kind: resultDone, out: out, change: change}
}

// WaitCommand gives an agent something to do and waits for its report. An
// attempt has one command; returning WaitCommand again changes nothing.
func WaitCommand(c Command) Result { return Result{kind: resultCommand, command: c} }

// WaitSignal waits for a signal of that name that the handler has not looked at
// in this run, or until the given time; zero means for ever.
func WaitSignal(name string, until time.Time) Result {
	return Result{kind: resultSignal, signal: name, until: until}
}

// RetryAfter calls the step again later, in the same attempt. It is not a failure.
func RetryAfter(d time.Duration) Result { return Result{kind: resultRetry, after: d} }

// Command is work for an agent.
type Command struct {
	ID      string          // job/step/attempt, set by the engine
	Agent   string          // who
	Kind    string          // what, in the words of the agent API
	Payload any             // JSON; carries the generation
	Raw     json.RawMessage // Payload as stored, set by the engine
	Timeout time.Duration   // 0: as long as it takes; else the step is called again with a reply that timed out
}

// Reply is the agent's answer to the command of this attempt.
type Reply struct {
	Command  string // id
	TimedOut bool   // the command's Timeout passed before a final report
	Result   json.RawMessage
	Failure  *Failure
}

// Err is nil if the agent did it, else the agent's failure in its class, or a
// transient "did not report in time".
func (r Reply) Err() error {
	switch {
	case r.TimedOut:
		return &Error{Class: Transient, Err: dr.Errorf(dr.KindUnavailable, "job.command", "the agent did not finish %s in time", r.Command).
			WithHint("see whether the agent is connected and what its log says about the command")}
	case r.Failure != nil:
		return r.Failure.Err()
	}
	return nil
}

// Decode reads the result into v.
func (r Reply) Decode(v any) error { return decode("result of "+r.Command, r.Result, v) }

// CommandStep makes a handler of the usual step that is one command: ask makes it,
// done (nil: keep the result as output) uses the reply of a success.
func CommandStep(ask func(ctx context.Context, s *StepContext) (Command, error),
	done func(ctx context.Context, s *StepContext, r Reply) (Result, error)) Handler {
	return func(ctx context.Context, s *StepContext) (Result, error) {
		if r, ok := s.Reply(); ok {
			if err := r.Err(); err != nil {
				return Result{}, err
			}
			if done == nil {
				return Done(r.Result, nil), nil
			}
			return done(ctx, s, r)
		}
		c, err := ask(ctx, s)
		if err != nil {
			return Result{}, err
		}
		return WaitCommand(c), nil
	}
}

// SignalStep makes a handler that waits for a signal as long as it takes.
func SignalStep(name string, done func(ctx context.Context, s *StepContext, sig Signal) (Result, error)) Handler {
	return func(ctx context.Context, s *StepContext) (Result, error) {
		if sig, ok := s.Signal(name); ok {
			return done(ctx, s, sig)
		}
		return WaitSignal(name, time.Time{}), nil
	}
}

// StepContext is what a handler sees of its step. It is valid until the handler
// returns and safe for concurrent use.
type StepContext struct {
	run     *run
	job     *Job
	step    *Step
	signals []Signal
	reply   *Reply
	timeout bool

	mu   sync.Mutex
	seen map[string]int64 // signal name → highest seq the handler has looked at
}

// Job returns the job as it was when this run of the step began.
func (s *StepContext) Job() *Job { return s.job }

// Step returns the step's name.
func (s *StepContext) Step() string { return s.step.Name }

// Attempt counts from 1. A run after a crash has the number of the run that died.
func (s *StepContext) Attempt() int { return s.step.Attempt }

// Engine returns the engine, to submit or signal other jobs.
func (s *StepContext) Engine() *Engine { return s.run.e }

// Input decodes the job's input into v.
func (s *StepContext) Input(v any) error { return decode("input of job "+s.job.ID, s.job.Input, v) }

// Output decodes the output of an earlier step into v; false if that step has not
// succeeded.
func (s *StepContext) Output(step string, v any) (bool, error) {
	for i := range s.job.Steps {
		if st := &s.job.Steps[i]; st.Name == step && st.State == StepSucceeded {
			return true, decode("output of step "+step, st.Output, v)
		}
	}
	return false, nil
}

// Progress shows people how far the step is, 0 to 100. It does not block; at most
// one value per second is written.
func (s *StepContext) Progress(pct float64, note string) { s.run.setProgress(s.step.Index, pct, note) }

// Commit runs fn in a transaction of which the first statement proves that this
// run still owns the job. After dr.KindFenced the handler should return.
func (s *StepContext) Commit(ctx context.Context, fn func(*sql.Tx) error) error {
	return s.run.fenced(ctx, func(ctx context.Context, tx *sql.Tx, _ time.Time) error { return fn(tx) })
}

// Reply returns the answer to this attempt's command; false if there is none yet.
func (s *StepContext) Reply() (Reply, bool) {
	if s.reply == nil {
		return Reply{}, false
	}
	return *s.reply, true
}

// Signals returns the signals of that name that no earlier step has taken,
// oldest first. They are taken when this step ends well.
func (s *StepContext) Signals(name string) []Signal {
	var out []Signal
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[name] = max(s.seen[name], 0)
	for _, sig := range s.signals {
		if sig.Name == name && !sig.taken {
			out = append(out, sig)
			s.seen[name] = max(s.seen[name], sig.Seq)
		}
	}
	return out
}

// Signal returns the newest of Signals(name).
func (s *StepContext) Signal(name string) (Signal, bool) {
	all := s.Signals(name)
	if len(all) == 0 {
		return Signal{}, false
	}
	return all[len(all)-1], true
}

// TimedOut reports that the time given to WaitSignal has passed.
func (s *StepContext) TimedOut() bool { return s.timeout }
