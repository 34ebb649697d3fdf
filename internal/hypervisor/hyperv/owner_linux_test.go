package hyperv_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
)

// TestOneProcess: a directory has one process at a time, and the refused one disturbs nothing.
func TestOneProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
	h := r.open(t)
	c, err := h.BeginCut(t.Context(), r.request("", "a"))
	must(t, err)
	cfg := r.cfg
	cfg.Session = r.sim
	if second, err := hyperv.Open(t.Context(), cfg); dr.KindOf(err) != dr.KindConflict {
		t.Fatalf("a second process got %v, %v", second, err)
	}
	must(t, c.ReadAt(t.Context(), diskA, make([]byte, 512), 0))
	must(t, c.Abort(t.Context()))
	must(t, h.Close())
	must(t, h.Close())
	next, err := hyperv.Open(t.Context(), cfg)
	must(t, err)
	must(t, next.Close())
}

// TestTwoDirectories: a doctor beside an agent neither ends the agent's cut nor deletes its tokens, and the other way round.
func TestTwoDirectories(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(1, 1))
	agent := r.open(t)
	cfg := r.cfg
	cfg.Dir = filepath.Join(r.dir, "doctor")
	doctor := r.openOn(t, r.sim, cfg)
	scribble(t, r.vm, rng)
	base, rep := r.full(t, agent, "a")
	scribble(t, r.vm, rng)

	c, err := agent.BeginCut(ctx, r.request(base, "b"))
	must(t, err)
	want := replica{}
	for id := range rep {
		p, err := r.vm.Disk(id).Content()
		must(t, err)
		want[id] = p
	}
	scribble(t, r.vm, rng)
	must(t, doctor.Forget(ctx, r.id(), nil))
	d, err := doctor.BeginCut(ctx, r.request("", "b")) // the same tag
	must(t, err)
	must(t, replica{}.apply(ctx, d))
	must(t, d.Abort(ctx))
	must(t, doctor.Forget(ctx, r.id(), nil))
	must(t, rep.apply(ctx, c))
	for id := range want {
		if string(rep[id]) != string(want[id]) {
			t.Errorf("the agent's cut of disk %s is wrong after the doctor's", id)
		}
	}
	must(t, c.End(ctx))
	base = c.Info().Token
	must(t, agent.Forget(ctx, r.id(), []string{base}))

	d, err = doctor.BeginCut(ctx, r.request("", "b"))
	must(t, err)
	scribble(t, r.vm, rng)
	c, err = agent.BeginCut(ctx, r.request(base, "c")) // a new agent process would do the same
	must(t, err)
	if !c.Info().Incremental {
		t.Error("the agent's token is lost")
	}
	must(t, rep.apply(ctx, c))
	rep.equal(t, r.vm, "the agent's next cut")
	must(t, c.End(ctx))
	must(t, agent.Forget(ctx, r.id(), []string{c.Info().Token}))
	heir := r.open(t)
	must(t, heir.Forget(ctx, r.id(), nil))
	if n := len(r.vm.State().Checkpoints); n != 1 {
		t.Errorf("%d checkpoints, want the doctor's", n)
	}
	must(t, d.Abort(ctx))
	if st := r.vm.State(); len(st.Checkpoints)+len(st.Points) != 0 {
		t.Errorf("left over: %d checkpoints, %d reference points", len(st.Checkpoints), len(st.Points))
	}
}

// TestMigrationInMidCycle: the VM is moved while its agent has a cut open. The
// old owner's cut fails; the new owner cleans up by the names, and its cuts are right.
func TestMigrationInMidCycle(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *hvsim.Config, s *hvsim.VMSpec) {
		c.Inline = true
		c.Hosts = append(c.Hosts, hvsim.HostConfig{Name: "H2", Switches: []hvsim.Switch{{Name: "External", Kind: "external"}}})
		s.Dir, s.Clustered = `C:\ClusterStorage\Volume1\web1`, true
	})
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(2, 2))
	h1 := r.open(t)
	scribble(t, r.vm, rng)
	base, _ := r.full(t, h1, "a")
	scribble(t, r.vm, rng)
	c, err := h1.BeginCut(ctx, r.request(base, "b"))
	must(t, err)
	must(t, c.ReadAt(ctx, diskA, make([]byte, 4096), 0))

	h2sim := r.site.Host("H2")
	must(t, r.sim.MigrateVM(r.vm, h2sim))
	scribble(t, r.vm, rng)
	if err := c.ReadAt(ctx, diskA, make([]byte, 4096), 0); err == nil {
		t.Error("the old owner can still read its cut")
	}
	if err := c.End(ctx); err == nil {
		t.Error("the old owner could end its cut")
	}
	cfg := r.cfg
	cfg.Dir = filepath.Join(r.dir, "agent2")
	cfg.Disks = vhdxfiles.New(vhdxfiles.Config{Root: filepath.Join(r.dir, "H2"), NoSync: true})
	h2 := r.openOn(t, h2sim, cfg)
	_, err = h2.BeginCut(ctx, r.request(base, "b")) // its token is the old host's
	wantCode(t, err, dr.CodeTrackingLost)
	rep := replica{}
	token := ""
	for i := range 3 {
		scribble(t, r.vm, rng)
		c := begin(t, h2, r.request(token, fmt.Sprintf("n%d", i)))
		if (token != "") != c.Info().Incremental {
			t.Errorf("cut %d: incremental %v", i, c.Info().Incremental)
		}
		must(t, rep.apply(ctx, c))
		rep.equal(t, r.vm, fmt.Sprintf("cut %d of the new owner", i))
		must(t, c.End(ctx))
		token = c.Info().Token
		must(t, h2.Forget(ctx, r.id(), []string{token}))
	}
	st := r.vm.State()
	if len(st.Checkpoints) != 0 || len(st.Points) != 1 || st.Points[0].Name != h2.Named(token) {
		t.Errorf("left over: checkpoints %v, reference points %v", st.Checkpoints, st.Points)
	}
	wantCode(t, h1.Forget(ctx, r.id(), nil), dr.CodeVMNotFound)
}

// begin waits for what the host still does with the VM.
func begin(t testing.TB, h *hyperv.Host, req hypervisor.CutRequest) hypervisor.Cut {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := h.BeginCut(t.Context(), req)
		if err == nil {
			return c
		}
		if !strings.Contains(string(dr.CodeOf(err)), string(dr.CodeMergeRunning)) || time.Now().After(end) {
			must(t, err)
		}
	}
}

// TestPurge: what a lost directory knew can be removed, and nothing else is.
func TestPurge(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
	ctx := t.Context()
	lost := r.open(t)
	base, _ := r.full(t, lost, "a")
	_, err := lost.BeginCut(ctx, r.request(base, "b"))
	must(t, err)
	_, foreign, err := r.sim.ForeignReferencePoint(r.vm)
	must(t, err)
	cfg := r.cfg
	cfg.Dir = filepath.Join(r.dir, "new")
	h := r.openOn(t, r.sim, cfg)
	must(t, h.Forget(ctx, r.id(), nil))
	if st := r.vm.State(); len(st.Checkpoints) != 1 || len(st.Points) != 2 {
		t.Fatalf("Forget of another directory left %d checkpoints and %d reference points", len(st.Checkpoints), len(st.Points))
	}
	c, err := h.BeginCut(ctx, r.request("", "c"))
	must(t, err)
	if err := h.Purge(ctx, r.id()); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("Purge with an open cut: %v", err)
	}
	must(t, c.Abort(ctx))
	eventually(t, func() error {
		if err := h.Purge(ctx, r.id()); dr.CodeOf(err) == dr.CodeMergeRunning {
			return model.ErrState
		} else if err != nil {
			return err
		}
		return nil
	})
	if st := r.vm.State(); len(st.Checkpoints) != 0 || len(st.Points) != 1 || !foreign() {
		t.Errorf("Purge left %d checkpoints and %d reference points", len(st.Checkpoints), len(st.Points))
	}
	wantCode(t, h.Purge(ctx, "00000000-dead-4bee-8fff-000000000000"), dr.CodeVMNotFound)
}
