package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
)

// fast is a configuration with short times.
func fast(db *sqldb.DB, owner string, handlers map[string]Handler) Config {
	return Config{DB: db, Owner: owner, Handlers: handlers, Lease: 2 * time.Second, Poll: 100 * time.Millisecond,
		CancelBound: 300 * time.Millisecond, Retry: Retry{Base: time.Millisecond, Cap: 20 * time.Millisecond, Attempts: 4}}
}

func open(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func start(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e := open(t, cfg)
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

func submit(t *testing.T, e *Engine, s Spec) string {
	t.Helper()
	id, err := e.Submit(t.Context(), nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// until waits for a condition on the job.
func until(t *testing.T, e *Engine, id string, what string, ok func(*Job) bool) *Job {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		j, err := e.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if ok(j) {
			return j
		}
		if time.Now().After(deadline) {
			t.Fatalf("job %s never is %s: %+v", id, what, j)
		}
	}
}

func final(t *testing.T, e *Engine, id string, want State) *Job {
	t.Helper()
	j := until(t, e, id, "final", func(j *Job) bool { return j.State.Final() })
	if j.State != want {
		t.Fatalf("job %s is %s, want %s: %+v", id, j.State, want, j.Failure)
	}
	return j
}

func waiting(t *testing.T, e *Engine, id string) *Job {
	t.Helper()
	return until(t, e, id, "waiting", func(j *Job) bool { return j.State == Waiting })
}

func steps(names ...string) (out []StepSpec) {
	for _, n := range names {
		out = append(out, StepSpec{Name: n})
	}
	return out
}

func states(j *Job) string {
	var out []string
	for _, s := range j.Steps {
		out = append(out, s.Name+"="+string(s.State))
	}
	return strings.Join(out, " ")
}

func ok(context.Context, *StepContext) (Result, error) { return Done(nil, nil), nil }

// effects makes a table in which every exactly-once effect is a row.
func effects(t *testing.T, db *sqldb.DB) {
	t.Helper()
	if _, err := db.SQL().Exec("create table effect (what text not null)"); err != nil {
		t.Fatal(err)
	}
}

func effect(what string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec("insert into effect(what) values($1)", what)
		return err
	}
}

func effectsOf(t *testing.T, db *sqldb.DB) (out []string) {
	t.Helper()
	err := eachRow(t.Context(), db.SQL(), func(rows *sql.Rows) error {
		var s string
		err := rows.Scan(&s)
		out = append(out, s)
		return err
	}, "select what from effect order by what")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestStepsRunInOrderAndSeeEarlierOutputs(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		effects(t, db)
		cfg := fast(db, "h", map[string]Handler{
			"k/one": func(ctx context.Context, s *StepContext) (Result, error) {
				var in struct{ N int }
				if err := s.Input(&in); err != nil {
					return Result{}, err
				}
				s.Progress(50, "half")
				return Done(in.N*2, effect("one")), nil
			},
			"k/two": func(ctx context.Context, s *StepContext) (Result, error) {
				var n int
				if ok, err := s.Output("one", &n); !ok || err != nil {
					return Result{}, fmt.Errorf("output of one: %v %w", ok, err)
				}
				if ok, _ := s.Output("undo", new(int)); ok {
					t.Error("a step that has not run has an output")
				}
				return Done(map[string]int{"n": n + 1}, nil), s.Commit(ctx, effect("two"))
			},
			"k/undo": func(context.Context, *StepContext) (Result, error) { panic("must not run") },
		})
		cfg.OnFinal = map[string]func(context.Context, *sql.Tx, *Job) error{"k": func(ctx context.Context, tx *sql.Tx, j *Job) error {
			return effect("final " + string(j.State))(tx)
		}}
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", TargetType: "vm", TargetName: "db1\x00", By: "anna", Input: map[string]int{"N": 20},
			Steps: []StepSpec{{Name: "one", Title: "The first"}, {Name: "two"}}, OnFail: steps("undo"), Meta: map[string]string{"a": "b"}})
		j := final(t, e, id, Succeeded)
		if got := states(j); got != "one=succeeded two=succeeded undo=skipped" {
			t.Error(got)
		}
		if j.Steps[0].Title != "The first" || j.Steps[1].Title != "two" || string(j.Steps[1].Output) != `{"n":41}` || j.Steps[0].Attempt != 1 ||
			j.Steps[0].Pct != 100 || j.Steps[0].Started.IsZero() || j.Steps[1].Finished.IsZero() {
			t.Errorf("steps: %+v", j.Steps)
		}
		if j.TargetName != "db1\uFFFD" || j.By != "anna" || j.Meta["a"] != "b" || j.Created.After(j.Started) || j.Finished.Before(j.Started) || j.Epoch < 1 {
			t.Errorf("job: %+v", j)
		}
		if got := effectsOf(t, db); !slices.Equal(got, []string{"final succeeded", "one", "two"}) {
			t.Error(got)
		}
	})
}

func TestSubmit(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		if err := Migrate(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		e := open(t, fast(db, "h", nil))
		spec := Spec{Kind: "k", Item: "vm1", Steps: steps("a")}
		for _, bad := range []Spec{{}, {Kind: "k"}, {Kind: "k k", Steps: steps("a")}, {Kind: "k", Steps: steps("a", "a")},
			{Kind: "k", ID: "a/b", Steps: steps("a")}, {Kind: "k", Steps: steps("a"), OnFail: steps("a")},
			{Kind: "k", Steps: steps("a"), Input: func() {}}, {Kind: "k", Item: "\x00", Steps: steps("a")}} {
			if _, err := e.Submit(t.Context(), nil, bad); dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		var lost string
		_ = db.Tx(t.Context(), func(tx *sql.Tx) (err error) {
			if lost, err = e.Submit(t.Context(), tx, spec); err != nil {
				t.Error(err)
			}
			return errors.New("roll back")
		})
		if _, err := e.Get(t.Context(), lost); dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("job of a transaction that was rolled back: %v", err)
		}
		first := submit(t, e, spec)
		err := db.Tx(t.Context(), func(tx *sql.Tx) error { // the conflict leaves the caller's transaction usable
			_, err := e.Submit(t.Context(), tx, spec)
			if dr.KindOf(err) != dr.KindConflict || dr.CodeOf(err) != dr.CodeJobInProgress || !strings.Contains(err.Error(), first) {
				t.Errorf("second job of an item: %v", err)
			}
			_, err = e.Submit(t.Context(), tx, Spec{Kind: "k", ID: "child", Item: "vm2", Steps: steps("a")})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if id, err := e.Submit(t.Context(), nil, Spec{Kind: "k", ID: "child", Item: "vm2", Steps: steps("a")}); id != "child" || err != nil {
			t.Errorf("the same job again: %q, %v", id, err)
		}
		if _, err := e.Submit(t.Context(), nil, Spec{Kind: "other", ID: "child", Steps: steps("a")}); dr.CodeOf(err) != dr.CodeAlreadyExists {
			t.Errorf("another job of the same id: %v", err)
		}
		for range 2 {
			submit(t, e, Spec{Kind: "k", Steps: steps("a")}) // no item, no lock
		}
		var wg sync.WaitGroup
		var won atomic.Int32
		for range 8 {
			wg.Go(func() {
				_, err := e.Submit(t.Context(), nil, Spec{Kind: "k", Item: "race", Steps: steps("a")})
				switch {
				case err == nil:
					won.Add(1)
				case dr.KindOf(err) != dr.KindConflict:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d jobs of one item", won.Load())
		}
	})
}

func TestNotBefore(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		cfg := fast(db, "h", map[string]Handler{"k/a": ok})
		cfg.Poll = time.Minute // the due time must be enough
		e := start(t, cfg)
		later := submit(t, e, Spec{Kind: "k", Steps: steps("a"), NotBefore: time.Now().Add(time.Hour)})
		soon := time.Now().Add(300 * time.Millisecond)
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a"), NotBefore: soon})
		if j := final(t, e, id, Succeeded); j.Started.Before(soon.Add(-50 * time.Millisecond)) {
			t.Errorf("started at %v, not before %v", j.Started, soon)
		}
		if j, err := e.Get(t.Context(), later); err != nil || j.State != Ready || j.NotBefore.IsZero() {
			t.Errorf("%+v, %v", j, err)
		}
	})
}

func TestRetriesByClass(t *testing.T) {
	t.Parallel()
	fail := func(err error, times int) func() Handler { // each engine gets a counter of its own
		return func() Handler {
			var n atomic.Int32
			return func(ctx context.Context, s *StepContext) (Result, error) {
				if int(n.Add(1)) <= times {
					return Result{}, err
				}
				return Done(s.Attempt(), nil), nil
			}
		}
	}
	always := func(h Handler) func() Handler { return func() Handler { return h } }
	busy := dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "x", "store does not answer\x00").WithHint("look at it")
	cases := map[string]struct {
		h        func() Handler
		state    State
		failures int
		class    Class
	}{
		"transient": {fail(busy, 3), Succeeded, 3, Transient},
		"exhausted": {fail(busy, 99), Failed, 4, Transient},
		"permanent": {fail(dr.New(dr.KindForbidden, "", "x", "no"), 1), Failed, 1, Permanent},
		"chosen":    {fail(&Error{Class: Permanent, Err: busy}, 1), Failed, 1, Permanent},
		"wait":      {fail(&Error{Class: Wait, Err: busy}, 9), Succeeded, 9, Wait},
		"plain":     {fail(errors.New("who knows"), 1), Succeeded, 1, Transient},
		"nothing":   {always(func(context.Context, *StepContext) (Result, error) { return Result{}, nil }), Failed, 1, Permanent},
		"panic":     {always(func(context.Context, *StepContext) (Result, error) { panic("ouch") }), Failed, 1, Permanent},
		"panic-late": {always(func(context.Context, *StepContext) (Result, error) {
			return Done(nil, func(*sql.Tx) error { panic("ouch") }), nil
		}), Failed, 1, Permanent},
		"change": {always(func(context.Context, *StepContext) (Result, error) {
			return Done(nil, func(*sql.Tx) error { return busy }), nil
		}), Failed, 4, Transient},
		"no-json": {always(func(context.Context, *StepContext) (Result, error) { return Done(func() {}, nil), nil }), Failed, 1, Permanent},
	}
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		hs := map[string]Handler{}
		for name, c := range cases {
			hs[name+"/a"], hs[name+"/b"] = c.h(), ok
		}
		e := start(t, fast(db, "h", hs))
		for name, c := range cases {
			j := final(t, e, submit(t, e, Spec{Kind: name, Steps: steps("a", "b")}), c.state)
			got := j.Steps[0].Failures
			if len(got) != c.failures {
				t.Errorf("%s: %d failures: %+v", name, len(got), got)
				continue
			}
			if got[0].Class != c.class || got[0].Attempt != 1 || got[0].At.IsZero() || got[0].Message == "" {
				t.Errorf("%s: %+v", name, got[0])
			}
			if name == "exhausted" && (j.Failure.Code != dr.CodeStoreUnreachable || j.Failure.Hint != "look at it" || j.Failure.Kind != dr.KindUnavailable ||
				j.Failure.Step != "a" || j.Failure.Attempt != 4 || j.Steps[1].State != StepSkipped) {
				t.Errorf("%+v %s", j.Failure, states(j))
			}
			if c.state == Succeeded && string(j.Steps[0].Output) != fmt.Sprint(c.failures+1) {
				t.Errorf("%s: %s", name, j.Steps[0].Output)
			}
		}
	})
}

func TestBackoff(t *testing.T) {
	r := Retry{Base: time.Second, Cap: time.Minute}
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 7: time.Minute, 200: time.Minute} {
		seen := map[time.Duration]bool{}
		for range 50 {
			d := r.delay(n, 0)
			if d < want*79/100 || d > want*121/100 {
				t.Errorf("delay %d = %v, want about %v", n, d, want)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Error("no jitter")
		}
	}
	if d := r.delay(1, time.Hour); d != time.Hour {
		t.Error(d)
	}
}

func TestOnFailRunsBeforeTheEndAndRestartRunsAllAgain(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		effects(t, db)
		var broken atomic.Bool
		broken.Store(true)
		mark := func(ctx context.Context, s *StepContext) (Result, error) {
			if err := ctx.Err(); err != nil {
				return Result{}, err
			}
			return Done(nil, effect(s.Step())), nil
		}
		cfg := fast(db, "h", map[string]Handler{"k/a": mark, "k/c": mark, "k/undo2": mark,
			"k/b": func(ctx context.Context, s *StepContext) (Result, error) {
				if broken.Load() {
					return Result{}, dr.New(dr.KindPrecondition, dr.CodeVMNotFound, "x", "gone")
				}
				return mark(ctx, s)
			},
			"k/undo1": func(ctx context.Context, s *StepContext) (Result, error) {
				if s.Job().Outcome != Failed {
					t.Errorf("outcome %q while compensating", s.Job().Outcome)
				}
				return Result{}, dr.New(dr.KindPrecondition, "", "x", "can't undo")
			}})
		cfg.OnFinal = map[string]func(context.Context, *sql.Tx, *Job) error{"k": func(_ context.Context, tx *sql.Tx, j *Job) error {
			return effect("final-" + string(j.State))(tx)
		}}
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", Item: "vm", Steps: steps("a", "b", "c"), OnFail: steps("undo1", "undo2")})
		j := final(t, e, id, Failed)
		if got := states(j); got != "a=succeeded b=failed c=skipped undo1=failed undo2=succeeded" {
			t.Error(got)
		}
		if j.Failure.Code != dr.CodeVMNotFound || len(j.Steps[3].Failures) != 1 {
			t.Errorf("%+v", j)
		}
		if got := effectsOf(t, db); !slices.Equal(got, []string{"a", "final-failed", "undo2"}) {
			t.Error(got)
		}
		broken.Store(false)
		other := submit(t, e, Spec{Kind: "k2", Item: "vm", Steps: steps("x"), NotBefore: time.Now().Add(time.Hour)})
		if err := e.Restart(t.Context(), nil, id); dr.KindOf(err) != dr.KindConflict || !strings.Contains(err.Error(), other) {
			t.Errorf("restart while the item is busy: %v", err)
		}
		if err := e.Cancel(t.Context(), nil, other, "x"); err != nil {
			t.Fatal(err)
		}
		final(t, e, other, Cancelled)
		if err := e.Restart(t.Context(), nil, id); err != nil {
			t.Fatal(err)
		}
		j = final(t, e, id, Succeeded)
		if got := states(j); got != "a=succeeded b=succeeded c=succeeded undo1=skipped undo2=skipped" || j.Failure != nil || j.Steps[1].Attempt != 2 {
			t.Errorf("%s %+v", got, j)
		}
		if err := e.Restart(t.Context(), nil, id); dr.KindOf(err) != dr.KindPrecondition {
			t.Errorf("restart of a succeeded job: %v", err)
		}
	})
}

func TestRestartWithoutOnFailRunsTheFailedStepWithAFreshBudget(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var a, b atomic.Int32
		e := start(t, fast(db, "h", map[string]Handler{
			"k/a": func(context.Context, *StepContext) (Result, error) { a.Add(1); return Done(nil, nil), nil },
			"k/b": func(context.Context, *StepContext) (Result, error) {
				if b.Add(1) <= 7 {
					return Result{}, errors.New("hiccup")
				}
				return Done(nil, nil), nil
			}}))
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a", "b")})
		final(t, e, id, Failed)
		if err := e.Restart(t.Context(), nil, id); err != nil {
			t.Fatal(err)
		}
		j := final(t, e, id, Succeeded)
		if a.Load() != 1 || b.Load() != 8 || j.Steps[1].Attempt != 8 || len(j.Steps[1].Failures) != 7 {
			t.Errorf("a ran %d times, b %d: %+v", a.Load(), b.Load(), j.Steps[1])
		}
	})
}

// Every step's first run is overtaken between the handler's return and the commit.
func TestEachStepRunTwiceHasItsEffectOnce(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		effects(t, db)
		var mu sync.Mutex
		runs := map[string]int{}
		twice := func(h Handler) Handler {
			return func(ctx context.Context, s *StepContext) (Result, error) {
				res, err := h(ctx, s)
				_, replied := s.Reply()
				key := fmt.Sprint(s.Job().ID, s.Step(), s.Attempt(), replied)
				mu.Lock()
				runs[key]++
				n := runs[key]
				mu.Unlock()
				if n == 1 {
					if _, err := db.SQL().Exec("update job set epoch=epoch+1, due=0 where id=$1", s.Job().ID); err != nil {
						t.Error(err)
					}
					if err := s.Commit(ctx, effect("zombie")); dr.KindOf(err) != dr.KindFenced {
						t.Errorf("commit of a run that was overtaken: %v", err)
					}
				}
				return res, err
			}
		}
		e := start(t, fast(db, "h", map[string]Handler{
			"k/local": twice(func(ctx context.Context, s *StepContext) (Result, error) { return Done(nil, effect("local")), nil }),
			"k/agent": twice(CommandStep(func(context.Context, *StepContext) (Command, error) {
				return Command{Agent: "a1", Kind: "copy", Payload: map[string]int{"generation": 1}}, nil
			}, func(ctx context.Context, s *StepContext, r Reply) (Result, error) {
				return Done(r.Result, effect("agent "+string(r.Result))), nil
			}))}))
		id := submit(t, e, Spec{Kind: "k", Steps: steps("local", "agent")})
		cmds, _, err := e.PollCommands(t.Context(), "a1", nil, 10*time.Second)
		if err != nil || len(cmds) != 1 || cmds[0].ID != id+"/agent/1" || string(cmds[0].Raw) != `{"generation":1}` {
			t.Fatalf("%+v, %v", cmds, err)
		}
		if err := e.ReportCommand(t.Context(), "a1", cmds[0].ID, Report{State: ReportDone, Result: json.RawMessage("7")}); err != nil {
			t.Fatal(err)
		}
		final(t, e, id, Succeeded)
		if got := effectsOf(t, db); !slices.Equal(got, []string{"agent 7", "local"}) {
			t.Error(got)
		}
		for k, n := range runs {
			if n != 2 {
				t.Errorf("%s ran %d times", k, n)
			}
		}
	})
}

func TestZombieIsRefused(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		effects(t, db)
		inside, resume, refused := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		cfg := fast(db, "zombie", map[string]Handler{"k/a": func(ctx context.Context, s *StepContext) (Result, error) {
			close(inside)
			<-resume // deaf to its context, as a stopped process is
			refused <- s.Commit(context.WithoutCancel(ctx), effect("zombie"))
			return Done("zombie", effect("zombie")), nil
		}})
		cfg.Lease = 500 * time.Millisecond
		z, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		z.hooks.noBeat = func() bool { return true }
		if err := z.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		id := submit(t, z, Spec{Kind: "k", Steps: steps("a")})
		<-inside
		e := start(t, fast(db, "other", map[string]Handler{"k/a": func(ctx context.Context, s *StepContext) (Result, error) {
			return Done("other", effect("other")), nil
		}}))
		claimed := time.Now()
		_ = z.closeClaims() // the zombie process is stopped: it claims nothing either
		j := final(t, e, id, Succeeded)
		if d := time.Since(claimed); d > 2*time.Second {
			t.Errorf("take-over after %v with a lease of 500 ms", d)
		}
		close(resume)
		if err := <-refused; dr.KindOf(err) != dr.KindFenced {
			t.Errorf("the zombie's write: %v", err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = e.Get(t.Context(), id); err != nil || string(j.Steps[0].Output) != `"other"` || j.Steps[0].Attempt != 1 {
			t.Errorf("%+v, %v", j, err)
		}
		if got := effectsOf(t, db); !slices.Equal(got, []string{"other"}) {
			t.Error(got)
		}
	})
}

// closeClaims makes every worker of e busy.
func (e *Engine) closeClaims() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cfg.Workers = 0
	return nil
}

func TestLeaseIsRenewedWhileAStepIsLong(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var runs atomic.Int32
		h := map[string]Handler{"k/a": func(ctx context.Context, s *StepContext) (Result, error) {
			runs.Add(1)
			s.Progress(42, "copying")
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
				return Result{}, ctx.Err()
			}
			return Done(nil, nil), nil
		}}
		cfg := fast(db, "a", h)
		cfg.Lease = 1500 * time.Millisecond
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a")})
		until(t, e, id, "running", func(j *Job) bool { return j.State == Running })
		cfg.Owner = "b"
		start(t, cfg)
		until(t, e, id, "at 42 %", func(j *Job) bool { return j.Steps[0].Pct == 42 && j.Steps[0].Note == "copying" })
		if j := final(t, e, id, Succeeded); j.Epoch != 1 || runs.Load() != 1 {
			t.Errorf("epoch %d, %d runs", j.Epoch, runs.Load())
		}
	})
}

func TestShutdownHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var first atomic.Bool
		h := map[string]Handler{"k/a": func(ctx context.Context, s *StepContext) (Result, error) {
			if first.CompareAndSwap(false, true) {
				<-ctx.Done()
				return Result{}, ctx.Err()
			}
			return Done(nil, nil), nil
		}}
		cfg := fast(db, "a", h)
		cfg.Lease = time.Hour
		a := start(t, cfg)
		id := submit(t, a, Spec{Kind: "k", Steps: steps("a")})
		until(t, a, id, "running", func(j *Job) bool { return first.Load() })
		cfg.Owner = "b"
		b := start(t, cfg)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if j := final(t, b, id, Succeeded); len(j.Steps[0].Failures) != 0 || j.Steps[0].Attempt != 1 {
			t.Errorf("a shutdown counted as a failure: %+v", j.Steps[0])
		}
	})
}

func TestDatabaseErrorsNeverMoveAJob(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var n atomic.Int32
		e := start(t, fast(db, "h", map[string]Handler{"k/a": func(context.Context, *StepContext) (Result, error) {
			if n.Add(1) <= 2 {
				return Result{}, &Error{Class: Permanent, Err: &sqldb.InfraError{Op: "test", Err: errors.New("gone")}}
			}
			return Done(nil, nil), nil
		}}))
		j := final(t, e, submit(t, e, Spec{Kind: "k", Steps: steps("a")}), Succeeded)
		if len(j.Steps[0].Failures) != 0 || j.Steps[0].Attempt != 1 || n.Load() != 3 {
			t.Errorf("%d runs: %+v", n.Load(), j.Steps[0])
		}
	})
}

func TestSignals(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		three := func(ctx context.Context, s *StepContext) (Result, error) {
			if len(s.Signals("child")) < 3 {
				return WaitSignal("child", time.Time{}), nil
			}
			return Done(len(s.Signals("child")), nil), nil
		}
		h := map[string]Handler{
			"k/go": SignalStep("go", func(ctx context.Context, s *StepContext, sig Signal) (Result, error) { return Done(sig.By, nil), nil }),
			"k/go2": SignalStep("go", func(ctx context.Context, s *StepContext, sig Signal) (Result, error) {
				return Done(sig.Payload, nil), nil
			}),
			"k/kids": three,
			"k/late": func(ctx context.Context, s *StepContext) (Result, error) {
				if s.TimedOut() {
					return Done("late", nil), nil
				}
				return WaitSignal("never", time.Now().Add(200*time.Millisecond)), nil
			},
			"k/poll": func(ctx context.Context, s *StepContext) (Result, error) {
				if s.Attempt() != 1 {
					t.Error("RetryAfter counts as an attempt")
				}
				if time.Since(s.Job().Steps[0].Started) < 100*time.Millisecond {
					return RetryAfter(50 * time.Millisecond), nil
				}
				return Done(nil, nil), nil
			},
		}
		cfg := fast(db, "h", h)
		cfg.Poll = time.Minute
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", Steps: steps("go", "go2"), NotBefore: time.Now().Add(200 * time.Millisecond)})
		if err := e.Signal(t.Context(), nil, id, "go", 1, "anna"); err != nil { // before anybody waits
			t.Fatal(err)
		}
		j := waiting(t, e, id) // for the second: the first signal was taken
		if string(j.Steps[0].Output) != `"anna"` || j.WaitFor != "go" || j.Current().Name != "go2" || j.Steps[1].State != StepWaiting {
			t.Errorf("%+v", j)
		}
		if err := e.Close(); err != nil { // no vault runs
			t.Fatal(err)
		}
		if err := open(t, cfg).Signal(t.Context(), nil, id, "go", map[string]bool{"sure": true}, "bert"); err != nil {
			t.Fatal(err)
		}
		e = start(t, cfg)
		if j := final(t, e, id, Succeeded); string(j.Steps[1].Output) != `{"sure":true}` {
			t.Errorf("%s", j.Steps[1].Output)
		}
		if err := e.Signal(t.Context(), nil, id, "go", nil, ""); dr.KindOf(err) != dr.KindPrecondition {
			t.Errorf("signal to a job that has ended: %v", err)
		}
		if err := e.Signal(t.Context(), nil, "nobody", "go", nil, ""); dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("signal to nobody: %v", err)
		}

		kids := submit(t, e, Spec{Kind: "k", Steps: steps("kids")})
		for range 3 {
			if err := e.Signal(t.Context(), nil, kids, "child", nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		final(t, e, kids, Succeeded)
		if j := final(t, e, submit(t, e, Spec{Kind: "k", Steps: steps("late")}), Succeeded); string(j.Steps[0].Output) != `"late"` {
			t.Errorf("%+v", j)
		}
		final(t, e, submit(t, e, Spec{Kind: "k", Steps: steps("poll")}), Succeeded)
	})
}

// The write skew of rule 3: a signal that comes while the job goes to wait.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		var e *Engine
		cfg := fast(db, "h", nil)
		cfg.Poll, cfg.Lease = time.Hour, time.Hour // nothing but the wake-up helps
		cfg.Handlers = map[string]Handler{"k/a": func(ctx context.Context, s *StepContext) (Result, error) {
			if _, ok := s.Signal("go"); ok {
				return Done(nil, nil), nil
			}
			go func() {
				if err := e.Signal(context.Background(), nil, s.Job().ID, "go", nil, ""); err != nil && dr.KindOf(err) != dr.KindPrecondition {
					t.Error(err)
				}
			}()
			return WaitSignal("go", time.Time{}), nil
		}}
		e = start(t, cfg)
		var ids []string
		for range 100 {
			ids = append(ids, submit(t, e, Spec{Kind: "k", Steps: steps("a")}))
		}
		for _, id := range ids {
			final(t, e, id, Succeeded)
		}
	})
}

func TestUnknownStepStopsTheJob(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		wait := SignalStep("go", func(context.Context, *StepContext, Signal) (Result, error) { return Done(nil, nil), nil })
		old := start(t, fast(db, "old", map[string]Handler{"k/ask": wait, "k/then": ok}))
		id := submit(t, old, Spec{Kind: "k", Steps: steps("ask", "then")})
		kept := submit(t, old, Spec{Kind: "k", Steps: steps("ask")})
		waiting(t, old, id)
		waiting(t, old, kept)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		cfg := fast(db, "new", map[string]Handler{"k/renamed": ok, "k/ask": ok})
		cfg.Old = map[string]Handler{"k/ask": wait}
		e := start(t, cfg)
		for _, id := range []string{id, kept} {
			if err := e.Signal(t.Context(), nil, id, "go", nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		final(t, e, kept, Succeeded)
		j := final(t, e, id, Failed)
		if j.Failure.Code != dr.CodeUnknownStep || states(j) != "ask=succeeded then=failed" {
			t.Errorf("%s %+v", states(j), j.Failure)
		}
		// A replica that knows the step is running: wait for it instead.
		if err := e.Restart(t.Context(), nil, id); err != nil {
			t.Fatal(err)
		}
		final(t, e, id, Failed)
		know := fast(db, "know", map[string]Handler{"k/then": ok})
		know.Workers = 1
		knows := start(t, know)
		if err := e.Restart(t.Context(), nil, id); err != nil {
			t.Fatal(err)
		}
		final(t, knows, id, Succeeded)
	})
}

func TestParkedJobsHoldNoGoroutine(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		e := start(t, fast(db, "h", map[string]Handler{
			"k/go": SignalStep("go", func(context.Context, *StepContext, Signal) (Result, error) { return Done(nil, nil), nil })}))
		count := func(s State) (n int) {
			if err := db.SQL().QueryRow("select count(*) from job where state=$1", string(s)).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		var ids []string
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			for range 1000 {
				id, err := e.Submit(t.Context(), tx, Spec{Kind: "k", Steps: steps("go")})
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(60 * time.Second); count(Waiting) < 1000; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of 1000 wait", count(Waiting))
			}
		}
		for deadline := time.Now().Add(5 * time.Second); len(e.snapshot()) > 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		}
		if n := len(e.snapshot()); n != 0 {
			t.Errorf("%d runs while all jobs wait", n)
		}
		if n := runtime.NumGoroutine(); n > 150 {
			t.Errorf("%d goroutines with 1000 parked jobs", n)
		}
		for _, id := range ids[:50] {
			if err := e.Signal(t.Context(), nil, id, "go", nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range ids[:50] {
			final(t, e, id, Succeeded)
		}
	})
}

func TestListAndSubscribe(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		e := start(t, fast(db, "h", map[string]Handler{"k/a": ok}))
		ctx, cancel := context.WithCancel(t.Context())
		sub := e.Subscribe(ctx)
		var ids []string
		for i := range 7 {
			ids = append(ids, submit(t, e, Spec{Kind: "k", Item: fmt.Sprint("vm", i), Steps: steps("a")}))
		}
		held := submit(t, e, Spec{Kind: "other", Item: "vm0x", Steps: steps("a"), NotBefore: time.Now().Add(time.Hour)})
		for _, id := range ids {
			final(t, e, id, Succeeded)
		}
		slices.Reverse(ids)
		var got []string
		after := ""
		for {
			page, next, err := e.List(t.Context(), Filter{Kinds: []string{"k"}, States: []State{Succeeded, Failed}, Limit: 3, After: after})
			if err != nil {
				t.Fatal(err)
			}
			for _, j := range page {
				got = append(got, j.ID)
			}
			if after = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("pages %v\nwant  %v", got, ids)
		}
		for _, f := range []Filter{{Item: "vm0x"}, {States: []State{Ready}}, {Kinds: []string{"other"}, Since: time.Now().Add(-time.Hour), Until: time.Now().Add(time.Minute)}} {
			if page, _, err := e.List(t.Context(), f); err != nil || len(page) != 1 || page[0].ID != held {
				t.Errorf("%+v: %v, %v", f, page, err)
			}
		}
		if page, _, err := e.List(t.Context(), Filter{Until: time.Now().Add(-time.Hour)}); err != nil || len(page) != 0 {
			t.Errorf("%v, %v", page, err)
		}
		if _, _, err := e.List(t.Context(), Filter{After: "x"}); dr.KindOf(err) != dr.KindInvalid {
			t.Error(err)
		}
		heard := map[string]bool{}
		for deadline := time.After(10 * time.Second); len(heard) < 8 && !heard[""]; { // "": anything may have changed
			select {
			case id := <-sub:
				heard[id] = true
			case <-deadline:
				t.Fatalf("heard of %d jobs", len(heard))
			}
		}
		cancel()
		for range sub { // closed
		}
	})
}

func TestReplicasStartingAtOnceOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	url := sqldbtest.PostgresURL(t)
	var wg sync.WaitGroup
	for i := range 3 {
		e := open(t, fast(sqldbtest.Open(t, sqldb.Config{URL: url}), fmt.Sprint("r", i), nil))
		wg.Go(func() {
			if err := e.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestConfigValidate(t *testing.T) {
	db := &sqldb.DB{}
	for _, c := range []Config{{}, {DB: db}, {DB: db, Owner: "h", Handlers: map[string]Handler{"x": ok}},
		{DB: db, Owner: "h", Handlers: map[string]Handler{"x/y": nil}}, {DB: db, Owner: "h", Lease: -1},
		{DB: db, Owner: "h", Lease: time.Second, Heartbeat: time.Second}} {
		if _, err := New(c); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A claim skips a row that another transaction holds, and nobody wakes it when
// that one ends without a change: it must look again by itself.
func TestALockedJobIsClaimedWhenItIsFree(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		cfg := fast(db, "h", map[string]Handler{"k/a": ok})
		cfg.Poll, cfg.Lease = time.Hour, time.Hour
		e := start(t, cfg)
		id := submit(t, e, Spec{Kind: "k", Steps: steps("a"), NotBefore: time.Now().Add(time.Second)})
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			if _, err := lockJob(t.Context(), tx, id, time.Now()); err != nil {
				return err
			}
			time.Sleep(1500 * time.Millisecond) // it becomes due meanwhile
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		final(t, e, id, Succeeded)
	})
}

func TestSubscribersLearnThatNotificationsWereLost(t *testing.T) {
	t.Parallel()
	e := open(t, fast(sqldbtest.Open(t, sqldb.Config{URL: sqldbtest.PostgresURL(t)}), "h", nil))
	sub := e.Subscribe(t.Context())
	if err := e.Start(t.Context()); err != nil { // connects the listener, as after a crash of the server
		t.Fatal(err)
	}
	select {
	case id := <-sub:
		if id != "" {
			t.Errorf("heard of %q", id)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody says that notifications were lost")
	}
}
