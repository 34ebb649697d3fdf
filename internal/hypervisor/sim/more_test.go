package sim_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
)

func oneVM(t *testing.T, cfg sim.Config) (*sim.Host, *sim.VM) {
	h := sim.New(cfg)
	t.Cleanup(func() { _ = h.Close() })
	return h, h.AddVM(sim.VMSpec{Name: "web1", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	h, v := oneVM(t, sim.Config{})
	boom := errors.New("boom")
	i := h.Inject(sim.Fault{Method: "State", After: 1, Times: 2, Err: boom})
	var got []bool
	for range 5 {
		_, err := h.State(t.Context(), v.ID())
		got = append(got, errors.Is(err, boom))
	}
	for k, want := range []bool{false, true, true, false, false} {
		if got[k] != want {
			t.Errorf("call %d failed: %v, want %v", k, got[k], want)
		}
	}
	if i.Fired() != 2 {
		t.Errorf("fired %d times, want 2", i.Fired())
	}
	other := h.Inject(sim.Fault{Method: "State", VM: "another", Err: boom})
	if _, err := h.State(t.Context(), v.ID()); err != nil || other.Fired() != 0 {
		t.Errorf("a fault of another VM: %v, fired %d", err, other.Fired())
	}

	// A lost reply: the call has taken effect.
	late := h.Inject(sim.Fault{Method: "Cut.End", Err: boom, Late: true, Times: 1})
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.End(t.Context()); !errors.Is(err, boom) || late.Fired() != 1 {
		t.Errorf("end: %v, fired %d", err, late.Fired())
	}
	if v.CutOpen() {
		t.Error("the cut is open although only the reply was lost")
	}
	if err := c.End(t.Context()); err != nil {
		t.Errorf("repeated end: %v", err)
	}

	slow := h.Inject(sim.Fault{Method: "Info", Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.Info(ctx); dr.CodeOf(err) != dr.CodeHypervisorTimeout || slow.Fired() != 1 {
		t.Errorf("slow: %v", err)
	}
	slow.Remove()
	if _, err := h.Info(t.Context()); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Info(t.Context()); dr.CodeOf(err) != dr.CodeHypervisorDown {
		t.Errorf("after close: %v", err)
	}
}

func TestQuiesce(t *testing.T) {
	t.Parallel()
	h, v := oneVM(t, sim.Config{})
	for i, c := range []struct {
		level dr.Consistency
		hangs bool
		want  dr.Consistency
	}{{dr.AppConsistent, false, dr.AppConsistent}, {dr.FileSystemConsistent, false, dr.FileSystemConsistent}, {dr.AppConsistent, true, dr.CrashConsistent}, {"", false, dr.CrashConsistent}} {
		v.SetAgent(c.level, c.hangs)
		cut, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: string(rune('a' + i)), Quiesce: true})
		if err != nil {
			t.Fatal(err)
		}
		if info := cut.Info(); info.Consistency != c.want || (info.Note == "") != (c.want == c.level) {
			t.Errorf("agent %q, hangs %v: %q, note %q", c.level, c.hangs, info.Consistency, info.Note)
		}
		if v.Frozen() {
			t.Error("the guest is frozen after BeginCut")
		}
		if err := cut.End(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOutsideEdit: what is written while the VM is off leaves no trace, as
// with a real tracker, and does not erase the trace of earlier writes.
func TestOutsideEdit(t *testing.T) {
	t.Parallel()
	h, v := oneVM(t, sim.Config{Granularity: 4096})
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: "a"})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.End(t.Context())
	if err := v.Write("vda", 0, make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	v.PowerOff()
	for _, off := range []int64{0, 512 << 10} {
		if err := v.Write("vda", off, []byte("edited")); err != nil {
			t.Fatal(err)
		}
	}
	v.PowerOn()
	c, err = h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: "b", Base: c.Info().Token})
	if err != nil {
		t.Fatal(err)
	}
	var changed []hypervisor.Range
	_ = c.Extents(t.Context(), "vda", 0, 1<<20, func(r hypervisor.Range) error {
		if r.Changed {
			changed = append(changed, r)
		}
		return nil
	})
	if len(changed) != 1 || changed[0].Off != 0 || changed[0].Len != 4096 {
		t.Errorf("changed: %+v", changed)
	}
}

func TestLoseTracking(t *testing.T) {
	t.Parallel()
	h, v := oneVM(t, sim.Config{})
	req := hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: "a"}
	c, err := h.BeginCut(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.End(t.Context())
	v.LoseTracking()
	req.Base, req.Tag = c.Info().Token, "b"
	if _, err := h.BeginCut(t.Context(), req); dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("after lost tracking: %v", err)
	}
	v.ForeignJob(true)
	req.Base = ""
	if _, err := h.BeginCut(t.Context(), req); dr.CodeOf(err) != dr.CodeBackupJobBusy {
		t.Errorf("during a foreign job: %v", err)
	}
}

func TestBootWithoutNBD(t *testing.T) {
	t.Parallel()
	h, v := oneVM(t, sim.Config{NoNBD: true, OnBoot: func(v *sim.VM) { v.Print("hello from " + v.Name() + "\n") }})
	cfg, err := h.Config(t.Context(), v.ID())
	if err != nil {
		t.Fatal(err)
	}
	spec := hypervisor.BootSpec{Name: "r", Owner: "o", Config: cfg, Disks: []hypervisor.BootDisk{{ID: "vda", Size: 1 << 20, Socket: "/nowhere", Path: filepath.Join(t.TempDir(), "d", "vda")}}}
	id, err := h.Boot(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if log, err := h.SerialLog(t.Context(), id, 7); err != nil || string(log) != "from r\n" {
		t.Errorf("serial log %q, %v", log, err)
	}
	r := h.VM(id)
	if err := r.Write("vda", 100, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if b, err := r.Content("vda"); err != nil || !bytes.Equal(b[99:102], []byte("\x00x\x00")) || !r.Local() {
		t.Errorf("content %q, %v, local %v", b[99:102], err, r.Local())
	}
	if err := h.Remove(t.Context(), id, "o"); err != nil {
		t.Error(err)
	}
	h.RemoveVM(v.ID())
	if _, err := h.State(t.Context(), v.ID()); dr.CodeOf(err) != dr.CodeVMNotFound {
		t.Errorf("a removed VM: %v", err)
	}
}
