package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
)

// copyStep is one command for agent a1.
func copyStep(timeout time.Duration) Handler {
	return CommandStep(func(context.Context, *StepContext) (Command, error) {
		return Command{Agent: "a1", Kind: "copy", Timeout: timeout}, nil
	}, nil)
}

func poll(t *testing.T, e *Engine, have ...string) (ids, cancels []string) {
	t.Helper()
	cmds, cancels, err := e.PollCommands(t.Context(), "a1", have, 15*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cmds {
		ids = append(ids, c.ID)
	}
	return ids, cancels
}

func report(t *testing.T, e *Engine, id string, r Report) {
	t.Helper()
	if err := e.ReportCommand(t.Context(), "a1", id, r); err != nil {
		t.Fatal(err)
	}
}

func TestCommandReports(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		cfg := fast(db, "h", map[string]Handler{"k/a": copyStep(0)})
		cfg.Poll = time.Hour // wake-ups only
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a")})
		cmd := id + "/a/1"
		if ids, cancels := poll(t, e); !slices.Equal(ids, []string{cmd}) || len(cancels) != 0 {
			t.Fatalf("%v, %v", ids, cancels)
		}
		if ids, _ := poll(t, e); len(ids) != 1 { // the answer was lost: again
			t.Error("not delivered again")
		}
		if cmds, _, err := e.PollCommands(t.Context(), "a1", []string{cmd}, 0); err != nil || len(cmds) != 0 {
			t.Errorf("delivered although the agent has it: %v, %v", cmds, err)
		}
		if err := e.ReportCommand(t.Context(), "a2", cmd, Report{State: ReportDone}); dr.KindOf(err) != dr.KindForbidden {
			t.Errorf("report of another agent: %v", err)
		}
		if err := e.ReportCommand(t.Context(), "a1", "x", Report{State: ReportDone}); dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("report of nothing: %v", err)
		}
		for _, bad := range []Report{{}, {State: ReportFailed}, {State: ReportDone, Result: json.RawMessage("{")}} {
			if err := e.ReportCommand(t.Context(), "a1", cmd, bad); dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		report(t, e, cmd, Report{State: ReportRunning, Pct: math.NaN(), Note: "\x00\xff"})
		report(t, e, cmd, Report{State: ReportRunning, Pct: 30, Note: "copying"})
		if j := waiting(t, e, id); j.Steps[0].Pct != 30 || j.Steps[0].Note != "copying" || j.WaitFor != cmd || j.WaitKind != "command" {
			t.Errorf("%+v", j)
		}
		transient := FailureOf(dr.New(dr.KindUnavailable, "Odd\x00Code", "x", "net"))
		report(t, e, cmd, Report{State: ReportFailed, Failure: transient})
		report(t, e, cmd, Report{State: ReportDone, Result: json.RawMessage("1")}) // too late
		if ids, _ := poll(t, e); !slices.Equal(ids, []string{id + "/a/2"}) {
			t.Fatalf("second attempt: %v", ids)
		}
		report(t, e, cmd, Report{State: ReportDone})
		if j := waiting(t, e, id); len(j.Steps[0].Failures) != 1 || j.Steps[0].Failures[0].Kind != dr.KindUnavailable {
			t.Errorf("%+v", j.Steps[0])
		}
		for range 3 { // twice and more is once
			report(t, e, id+"/a/2", Report{State: ReportDone, Result: json.RawMessage(`{"n":1}`)})
		}
		if j := final(t, e, id, Succeeded); string(j.Steps[0].Output) != `{"n":1}` {
			t.Errorf("%s", j.Steps[0].Output)
		}
		report(t, e, id+"/a/2", Report{State: ReportDone, Result: json.RawMessage("3")})
		if _, cancels := poll(t, e, id+"/a/1"); !slices.Equal(cancels, []string{id + "/a/1"}) {
			t.Errorf("the agent is not told to drop a closed command: %v", cancels)
		}
	})
}

func TestPollIsWokenAndDoesNotSpin(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		cfg := fast(db, "h", map[string]Handler{"k/a": copyStep(0)})
		cfg.Poll = time.Hour
		e := start(t, cfg)
		got := make(chan time.Time, 1)
		go func() {
			poll(t, e)
			got <- time.Now()
		}()
		time.Sleep(100 * time.Millisecond)
		asked := time.Now()
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a")})
		if d := (<-got).Sub(asked); d > 3*time.Second {
			t.Errorf("the parked agent heard of its command after %v", d)
		}
		cmd := id + "/a/1"
		waiting(t, e, id)
		cfgBound := time.Now()
		if err := e.Cancel(t.Context(), nil, id, "anna"); err != nil {
			t.Fatal(err)
		}
		if _, cancels := poll(t, e, cmd); !slices.Equal(cancels, []string{cmd}) || time.Since(cfgBound) > 3*time.Second {
			t.Errorf("cancels %v after %v", cancels, time.Since(cfgBound))
		}
		began := time.Now()
		if _, cancels, err := e.PollCommands(t.Context(), "a1", []string{cmd}, 300*time.Millisecond); err != nil ||
			len(cancels) != 1 || time.Since(began) < 250*time.Millisecond {
			t.Errorf("told again %v after %v, %v", cancels, time.Since(began), err)
		}
		if _, _, err := e.PollCommands(t.Context(), "nobody", nil, 0); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := e.PollCommands(ctx, "nobody", nil, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("poll whose client went away: %v", err)
		}
	})
}

func TestCommandTimeout(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		e := start(t, fast(db, "h", map[string]Handler{"k/a": copyStep(150 * time.Millisecond)}))
		id := submit(t, e, Spec{Kind: "k", Steps: []StepSpec{{Name: "a", MaxAttempts: 2}}})
		j := final(t, e, id, Failed)
		if len(j.Steps[0].Failures) != 2 || j.Failure.Kind != dr.KindUnavailable {
			t.Errorf("%+v", j.Steps[0])
		}
		if cmds, cancels := poll(t, e, id+"/a/1"); len(cmds) != 0 || !slices.Equal(cancels, []string{id + "/a/1"}) {
			t.Errorf("%v %v", cmds, cancels)
		}
	})
}

func TestASecondCommandInOneAttemptIsADefect(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		e := start(t, fast(db, "h", map[string]Handler{"k/a": func(context.Context, *StepContext) (Result, error) {
			return WaitCommand(Command{Agent: "a1", Kind: "x"}), nil
		}, "bad/a": func(context.Context, *StepContext) (Result, error) { return WaitCommand(Command{}), nil }}))
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a")})
		waiting(t, e, id)
		report(t, e, id+"/a/1", Report{State: ReportDone})
		final(t, e, id, Failed)
		final(t, e, submit(t, e, Spec{Kind: "bad", Steps: steps("a")}), Failed)
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		effects(t, db)
		undo := func(ctx context.Context, s *StepContext) (Result, error) {
			time.Sleep(100 * time.Millisecond) // a heartbeat sees the cancel again meanwhile
			return Done(nil, effect("undo "+s.Job().Item)), ctx.Err()
		}
		hs := map[string]Handler{"k/undo": undo, "k/agent": copyStep(0),
			"k/undo-agent": copyStep(0),
			"k/signal":     SignalStep("go", func(context.Context, *StepContext, Signal) (Result, error) { return Done(nil, nil), nil }),
			"k/long": func(ctx context.Context, s *StepContext) (Result, error) {
				<-ctx.Done()
				return Result{}, ctx.Err()
			}}
		cfg := fast(db, "a", hs)
		cfg.Heartbeat = 30 * time.Millisecond
		cfg.OnFinal = map[string]func(context.Context, *sql.Tx, *Job) error{"k": func(_ context.Context, tx *sql.Tx, j *Job) error {
			return effect("final " + j.Item + " " + string(j.State))(tx)
		}}
		e := start(t, cfg)
		other := open(t, fast(db, "b", nil)) // another replica, which only takes the request

		job := func(item, step string) string {
			return submit(t, e, Spec{Kind: "k", Item: item, Steps: steps(step, "never"), OnFail: steps("undo")})
		}
		cancel := func(id string) *Job {
			t.Helper()
			began := time.Now()
			for range 2 {
				if err := other.Cancel(t.Context(), nil, id, "anna"); err != nil && dr.KindOf(err) != dr.KindPrecondition {
					t.Fatal(err)
				}
			}
			j := final(t, e, id, Cancelled)
			if d := time.Since(began); d > 10*time.Second { // far below the bound of an hour, far above a busy machine
				t.Errorf("%s cancelled after %v", j.Item, d)
			}
			if j.CancelBy != "anna" || j.Steps[0].State != StepCancelled && j.Steps[0].State != StepSkipped || j.Steps[1].State != StepSkipped ||
				j.Steps[2].State != StepSucceeded || j.Failure != nil {
				t.Errorf("%s: %s %+v", j.Item, states(j), j.Failure)
			}
			return j
		}
		long := job("long", "long")
		until(t, e, long, "running", func(j *Job) bool { return j.State == Running && j.Steps[0].State == StepRunning })
		cancel(long)

		sig := job("signal", "signal")
		waiting(t, e, sig)
		cancel(sig)

		cancel(submit(t, e, Spec{Kind: "k", Item: "future", Steps: steps("long", "never"), OnFail: steps("undo"), NotBefore: time.Now().Add(time.Hour)}))

		deaf := job("deaf", "agent") // the agent never answers: the bound
		waiting(t, e, deaf)
		cancel(deaf)
		report(t, e, deaf+"/agent/1", Report{State: ReportDone}) // late

		heard := job("heard", "agent") // the agent stops as asked
		waiting(t, e, heard)
		e.cfg.CancelBound, other.cfg.CancelBound = time.Hour, time.Hour
		go func() {
			for {
				cmds, cancels, err := e.PollCommands(context.Background(), "a1", nil, time.Second)
				switch {
				case err != nil || e.ctx.Err() != nil:
					return
				case len(cancels) > 0:
					_ = e.ReportCommand(context.Background(), "a1", cancels[0], Report{State: ReportFailed, Failure: FailureOf(context.Canceled)})
					return
				case len(cmds) > 0:
					time.Sleep(10 * time.Millisecond)
				}
			}
		}()
		cancel(heard)

		// A cancelled job whose compensation needs the agent.
		id := submit(t, e, Spec{Kind: "k", Item: "comp", Steps: steps("signal"), OnFail: steps("undo-agent")})
		waiting(t, e, id)
		if err := other.Cancel(t.Context(), nil, id, "anna"); err != nil {
			t.Fatal(err)
		}
		until(t, e, id, "compensating", func(j *Job) bool { return j.State == Waiting && j.Outcome == Cancelled })
		if err := other.Cancel(t.Context(), nil, id, "anna"); err != nil { // the compensation is not cancelled
			t.Fatal(err)
		}
		report(t, e, id+"/undo-agent/1", Report{State: ReportDone})
		final(t, e, id, Cancelled)

		if err := e.Cancel(t.Context(), nil, id, "anna"); dr.KindOf(err) != dr.KindPrecondition {
			t.Errorf("cancel of a job that has ended: %v", err)
		}
		want := []string{"final comp cancelled", "final deaf cancelled", "final future cancelled", "final heard cancelled", "final long cancelled", "final signal cancelled",
			"undo deaf", "undo future", "undo heard", "undo long", "undo signal"}
		if got := effectsOf(t, db); !slices.Equal(got, want) {
			t.Errorf("effects %v", got)
		}
	})
}
