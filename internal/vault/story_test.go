package vault_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// transcript records the axes and the allowed operations after each operation.
type transcript struct {
	s *site
	b strings.Builder
}

func (tr *transcript) line(what string) {
	it := tr.s.it()
	vm := func(id dr.VMID) string {
		if id == "" {
			return "-"
		}
		return "up"
	}
	fmt.Fprintf(&tr.b, "%-34s protection=%s failover=%s test=%s active=%s testVM=%s recoveryVM=%s gen=%d\n%34s allowed=%s\n", what,
		it.Protection, it.Failover, it.Test, it.Active, vm(it.TestVM), vm(it.RecoveryVM), it.Gen, "", strings.Join(tr.s.ops(), ","))
}

// check compares with testdata; HOLDFAST_UPDATE=1 writes it.
func (tr *transcript) check(name string) {
	tr.s.t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("HOLDFAST_UPDATE") != "" {
		if err := os.WriteFile(path, []byte(tr.b.String()), 0o644); err != nil {
			tr.s.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		tr.s.t.Fatal(err)
	}
	if string(want) != tr.b.String() {
		tr.s.t.Errorf("transcript differs from %s:\n%s", path, tr.b.String())
	}
}

func TestStory(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) { story(t, w, func() {}) })
}

// TestStoryWithRestarts restarts the vault after every operation.
func TestStoryWithRestarts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) { story(t, w, w.restart) })
}

func story(t *testing.T, w *world, between func()) {
	ctx := t.Context()
	s := scene(t, w)
	between()
	s.protect()
	tr := &transcript{s: s}
	tr.line("protected")
	step := func(what string) { t.Helper(); tr.line(what); between() }

	first := s.points()[0]
	for range 3 {
		s.newCut()
	}
	if n := len(s.points()); n != 4 {
		t.Fatalf("%d recovery points, want 4", n)
	}
	step("three cuts")

	j := s.run(s.failover(dr.KindTestFailover))
	for _, k := range []string{"vm", "recoveryPoint", "rtoSeconds", "rpoSeconds", "console", "screenshot"} {
		if j.Outcome[k] == "" {
			t.Errorf("the outcome of the test failover has no %s: %v", k, j.Outcome)
		}
	}
	if png := must[[]byte](t)(s.vault().Screenshot(ctx, j.ID)); string(png) != "\x89PNG" {
		t.Errorf("screenshot %q", png)
	}
	if got := s.dst.running(); len(got) != 1 || got[0] != "web1-test" {
		t.Errorf("at the recovery site run %v", got)
	}
	if !s.it().LastTest.IsZero() {
		t.Error("a test that was not cleaned up counts")
	}
	step("test failover")
	s.run(s.vault().CleanupTest(ctx, s.item, "went well", "test"))
	if s.it().LastTest.IsZero() || len(s.dst.running()) != 0 {
		t.Error("the test does not count or its VM still runs")
	}
	step("test failover clean-up")

	before := s.points()[0]
	j = s.run(s.failover(dr.KindPlannedFailover))
	if got := s.src.running(); len(got) != 0 {
		t.Errorf("the source still runs %v", got)
	}
	if got := s.dst.running(); len(got) != 1 || got[0] != "web1" {
		t.Errorf("at the recovery site run %v", got)
	}
	latest := s.points()[0]
	if latest.N <= before.N || j.Outcome["recoveryPoint"] != latest.Name() {
		t.Errorf("planned failover runs %s, the drained point is %s", j.Outcome["recoveryPoint"], latest.Name())
	}
	step("planned failover")
	s.run(s.vault().ChangePoint(ctx, s.item, first.Name(), "test"))
	if s.it().FailedOverTo != first.Name() || len(s.dst.running()) != 1 {
		t.Errorf("after the change runs %s on %v", s.it().FailedOverTo, s.dst.running())
	}
	step("change recovery point")
	s.run(s.vault().CancelFailover(ctx, s.item, "test"))
	if len(s.dst.running()) != 0 || len(s.src.running()) != 1 {
		t.Errorf("after the cancel: source %v, recovery %v", s.src.running(), s.dst.running())
	}
	s.until("replication goes on in the new generation", func() bool { p := s.points(); return p[0].Gen == s.it().Gen && p[0].N > latest.N })
	step("cancel failover")

	j = s.run(s.failover(dr.KindUnplannedFailover))
	if j.Outcome["bootVerified"] != "true" || len(s.src.running()) != 1 {
		t.Errorf("unplanned failover: %v, source %v", j.Outcome, s.src.running())
	}
	fenced := false
	for _, e := range must2(s.vault().Events(ctx, s.item, 100)) {
		fenced = fenced || e.Kind == "sourceStillRunning"
	}
	if !fenced {
		t.Error("nothing says that the source still runs")
	}
	step("unplanned failover")
	s.run(s.vault().Commit(ctx, s.item, "test"))
	step("commit")
	s.until("recovery VM is local", func() bool { return s.dst.count(agentapi.CmdMakeLocal) > 0 })
	s.until("disable is possible", func() bool {
		id, err := s.vault().Disable(ctx, s.item, false, "test")
		if err != nil {
			return false
		}
		s.run(id, nil)
		return true
	})
	if items := must[[]dr.ProtectedItem](t)(s.vault().Items(ctx, "")); len(items) != 0 {
		t.Errorf("items after the disable: %v", items)
	}
	if len(s.dst.running()) != 1 {
		t.Error("disabling took the committed recovery VM away")
	}
	tr.check("story.txt")
}

func must2[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// TestRestartBetweenSteps restarts the vault while a command of each step is
// out, so that every step of a failover is cut in half once.
func TestRestartBetweenSteps(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		s.protect()
		for _, kind := range []agentapi.CommandKind{agentapi.CmdShutdownVM, agentapi.CmdDrain, agentapi.CmdBootPoint, agentapi.CmdVerifyBoot, agentapi.CmdRemoveVM, agentapi.CmdStartVM} {
			restarted := make(chan struct{})
			for _, a := range []*agent{s.src, s.dst} {
				a.hook(kind, func(c agentapi.Command) (any, error) {
					select {
					case <-restarted:
						return a.do(c)
					default:
						s.restart()
						close(restarted)
						return a.do(c)
					}
				})
			}
			s.run(s.failover(dr.KindPlannedFailover))
			s.run(s.vault().CancelFailover(t.Context(), s.item, "test"))
			select {
			case <-restarted:
			default:
				t.Errorf("the vault was not restarted within %s", kind)
			}
			s.src.hook(kind, nil)
			s.dst.hook(kind, nil)
			s.until("replication resumed", func() bool { return s.points()[0].Gen == s.it().Gen })
			if len(s.src.running()) != 1 || len(s.dst.running()) != 0 {
				t.Fatalf("after %s: source %v, recovery %v", kind, s.src.running(), s.dst.running())
			}
		}
	})
}

func TestFailedFailoverIsUndone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		tr := &transcript{s: s}
		tr.line("protected")
		unproved := func(agentapi.Command) (any, error) {
			return agentapi.VerifyResult{OK: false, Reason: "no output", Console: "...", Screenshot: []byte("\x89PNG")}, nil
		}
		s.dst.hook(agentapi.CmdVerifyBoot, unproved)
		j := s.expect(dr.JobFailed, fst(s.failover(dr.KindTestFailover)), nil)
		if j.Outcome["screenshot"] == "" || len(j.Errors) != 1 || j.Errors[0].Code != dr.CodeBootNotVerified {
			t.Errorf("outcome %v, errors %+v", j.Outcome, j.Errors)
		}
		tr.line("test failover not verified")
		s.run(s.vault().CleanupTest(ctx, s.item, "", "test"))
		if !s.it().LastTest.IsZero() {
			t.Error("a failed test counts")
		}
		tr.line("clean-up")

		gen := s.it().Gen
		s.expect(dr.JobFailed, fst(s.failover(dr.KindPlannedFailover)), nil)
		if len(s.src.running()) != 1 || len(s.dst.running()) != 0 || s.it().Gen <= gen {
			t.Errorf("source %v, recovery %v, generation %d → %d", s.src.running(), s.dst.running(), gen, s.it().Gen)
		}
		s.until("replication resumed", func() bool { return s.points()[0].Gen == s.it().Gen })
		tr.line("planned failover not verified")

		j = s.run(s.failover(dr.KindUnplannedFailover))
		if j.Outcome["bootVerified"] != "false" || len(s.dst.running()) != 1 {
			t.Errorf("an unproved VM of an unplanned failover: %v, running %v", j.Outcome, s.dst.running())
		}
		tr.line("unplanned failover not verified")
		s.run(s.vault().CancelFailover(ctx, s.item, "test"))
		s.dst.hook(agentapi.CmdVerifyBoot, nil)
		s.until("replication resumed", func() bool { return s.points()[0].Gen == s.it().Gen })
		tr.line("cancel failover")

		// The boot itself fails: nothing may be left.
		s.dst.hook(agentapi.CmdBootPoint, func(agentapi.Command) (any, error) {
			return nil, dr.New(dr.KindCorrupt, dr.CodePointRefused, "sim", "an object is damaged")
		})
		s.expect(dr.JobFailed, fst(s.failover(dr.KindUnplannedFailover)), nil)
		s.until("replication resumed", func() bool { return s.points()[0].Gen == s.it().Gen })
		tr.line("unplanned failover not booted")
		s.dst.hook(agentapi.CmdBootPoint, nil)

		// A guest that ignores the shutdown stops a planned failover.
		s.src.hook(agentapi.CmdShutdownVM, func(agentapi.Command) (any, error) {
			return nil, dr.New(dr.KindPrecondition, dr.CodeShutdownTimeout, "sim", "the guest ignored it")
		})
		gen = s.it().Gen
		s.expect(dr.JobFailed, fst(s.failover(dr.KindPlannedFailover)), nil)
		if s.it().Gen != gen || len(s.src.running()) != 1 {
			t.Errorf("generation %d → %d, source %v", gen, s.it().Gen, s.src.running())
		}
		tr.line("planned failover, no shutdown")
		// An unplanned one with the source's help goes on without it.
		s.run(s.vault().StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindUnplannedFailover, SourceAction: true, By: "test"}))
		tr.line("unplanned failover, no shutdown")
		tr.check("failures.txt")
	})
}

func TestCancelWhileTheVMBoots(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		s.protect()
		began := make(chan struct{}, 100)
		s.dst.hook(agentapi.CmdBootPoint, func(c agentapi.Command) (any, error) {
			select {
			case began <- struct{}{}:
			default:
			}
			if _, err := s.dst.do(c); err != nil { // it comes up, and the report never arrives
				return nil, err
			}
			return nil, errLater
		})
		id := ok(t, fst(s.failover(dr.KindPlannedFailover)), nil)
		<-began
		if ops := s.ops(); len(ops) != 0 {
			t.Errorf("while the failover runs %v is allowed", ops)
		}
		_, err := s.failover(dr.KindTestFailover)
		wantCode(t, err, dr.KindConflict, dr.CodeJobInProgress)
		if err := s.vault().CancelJob(t.Context(), id, "test"); err != nil {
			t.Fatal(err)
		}
		if j := s.wait(id); j.State != dr.JobCancelled {
			t.Fatalf("job %s: %+v", j.State, j.Tasks)
		}
		s.until("as before", func() bool { return len(s.dst.running()) == 0 && len(s.src.running()) == 1 })
		if it := s.it(); it.Failover != dr.FailoverNone || it.Active != dr.AtPrimary || it.RecoveryVM != "" || it.Job != "" {
			t.Errorf("item after the cancel: %+v", it)
		}
	})
}

func TestDisableDuringInitialReplication(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.src.hook(agentapi.CmdAwaitInitial, func(agentapi.Command) (any, error) { return nil, errLater })
		v := s.vault()
		s.run(v.SavePolicy(ctx, dr.Policy{Name: "p", CopyFrequency: time.Minute}, true, "test"))
		// No first cut: the agent has no assignments to work on.
		s.src.mu.Lock()
		s.src.chains["*"] = nil
		s.src.mu.Unlock()
		s.run(v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: "web", VM: vmUUID, Policy: "p", By: "test"}))
		it := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, "web"))
		s.item = it.ID
		if it.RecoveryFabric != s.recovery.ID {
			t.Errorf("the only recovery site was not chosen: %q", it.RecoveryFabric)
		}
		s.run(v.Disable(ctx, it.ID, false, "test"))
		if s.src.count(agentapi.CmdStopReplication) != 1 {
			t.Error("the agent was not told to stop")
		}
		s.until("no job is left", func() bool {
			jobs, err := v.Jobs(ctx, vault.JobFilter{Item: it.ID, States: []dr.JobState{dr.JobInProgress, dr.JobCancelling, dr.JobNotStarted}})
			return err == nil && len(jobs) == 0
		})
	})
}
