package planner

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
)

// TestProfile measures a simulated host for an hour of virtual time: what was
// written is what the profile says, and no token of the profiler's stays.
func TestProfile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "profile.jsonl")
	synctest.Test(t, func(t *testing.T) {
		h := sim.New(sim.Config{Name: "h1"})
		vm := h.AddVM(sim.VMSpec{Name: "busy", Disks: []sim.DiskSpec{{ID: "a", Size: 64 << 20}, {ID: "x", Size: 8 << 20, Unreplicatable: "raw"}}})
		skipped := h.AddVM(sim.VMSpec{Name: "protected", Disks: []sim.DiskSpec{{ID: "a", Size: 8 << 20}}})
		fault := h.Inject(sim.Fault{Method: "BeginCut", VM: vm.ID(), After: 5, Times: 1, Err: dr.Errorf(dr.KindUnavailable, "test", "the host is busy")})
		done := make(chan error)
		n := 0
		go func() {
			done <- Run(t.Context(), Config{Source: h, Path: path, Interval: 5 * time.Minute, Length: time.Hour, Skip: map[dr.VMID]bool{skipped.ID(): true},
				Progress: func(p Progress) { n = p.Intervals }})
		}()
		for k := range 12 {
			time.Sleep(5*time.Minute - time.Second)
			if err := vm.Write("a", int64(k)<<20, make([]byte, (k+1)<<16)); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
		}
		if err := <-done; err != nil || n != 13 {
			t.Fatal(err, n)
		}
		if fault.Fired() != 1 {
			t.Error("the fault did not strike")
		}
		if tokens := vm.Tokens(); len(tokens) > 0 {
			t.Errorf("tokens stay: %v", tokens)
		}
	})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if p.Host != "h1" || len(p.VMs) != 1 || p.VMs[0].Errors != 1 || len(p.VMs[0].Disks) != 1 || len(p.VMs[0].Samples) != 11 {
		t.Fatalf("%+v", p)
	}
	total := int64(0)
	for _, s := range p.VMs[0].Samples {
		total += s.Changed
	}
	if total != 78<<16 || p.VMs[0].Disks[0].Total != total || p.VMs[0].Disks[0].Peak != 12<<16 {
		t.Errorf("%d bytes changed, want %d; %+v", total, 78<<16, p.VMs[0].Disks)
	}
}

// TestProfileGoesOn: a file whose profiler was killed is continued.
func TestProfileGoesOn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "profile.jsonl")
	run := func() {
		synctest.Test(t, func(t *testing.T) {
			h := sim.New(sim.Config{Name: "h1"})
			h.AddVM(sim.VMSpec{ID: "00000000-0000-4000-8000-000000000001", Name: "v", Disks: []sim.DiskSpec{{ID: "a", Size: 8 << 20}}})
			if err := Run(t.Context(), Config{Source: h, Path: path, Interval: time.Minute, Length: 5 * time.Minute}); err != nil {
				t.Fatal(err)
			}
		})
	}
	run()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)-7], 0o600); err != nil {
		t.Fatal(err)
	}
	run()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Read(f)
	if err != nil || p.Torn || len(p.VMs) != 1 || len(p.VMs[0].Samples) != 9 {
		t.Fatalf("%v %+v", err, p)
	}
}

func TestProfileRefuses(t *testing.T) {
	t.Parallel()
	h := sim.New(sim.Config{Name: "h1"})
	path := filepath.Join(t.TempDir(), "p")
	if err := Run(context.Background(), Config{Source: h, Path: path, Interval: time.Second}); dr.KindOf(err) != dr.KindInvalid {
		t.Error(err)
	}
	if err := Run(context.Background(), Config{Source: h, Path: path, Interval: time.Minute, Only: []string{"nobody"}}); dr.KindOf(err) != dr.KindNotFound {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was made for nothing")
	}
}
