package sim_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// twoDisks is a VM with a cut of both of its disks behind it.
func twoDisks(t *testing.T) (*sim.Host, *sim.VM, string) {
	t.Helper()
	h := sim.New(sim.Config{})
	v := h.AddVM(sim.VMSpec{Name: "web", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}, {ID: "vdb", Size: 1 << 20}}})
	must(t, v.Write("vda", 0, []byte("first")))
	return h, v, endedCut(t, h, v, "", "base").Token
}

func endedCut(t *testing.T, h *sim.Host, v *sim.VM, base, tag string) hypervisor.CutInfo {
	t.Helper()
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda", "vdb"}, Base: base, Tag: tag})
	must(t, err)
	must(t, c.End(t.Context()))
	return c.Info()
}

func wholeDisks(i hypervisor.CutInfo) (names string) {
	for _, d := range i.Disks {
		if d.Whole {
			names += d.ID
		}
	}
	return names
}

func TestDisksLoseTrackingOneByOne(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(*testing.T, *sim.VM)
		want string
	}{
		"nothing": {func(*testing.T, *sim.VM) {}, ""},
		"lost":    {func(_ *testing.T, v *sim.VM) { v.LoseTracking("vdb") }, "vdb"},
		"grown":   {func(t *testing.T, v *sim.VM) { must(t, v.Resize("vdb", 2<<20)) }, ""},
		"shrunk":  {func(t *testing.T, v *sim.VM) { must(t, v.Resize("vdb", 1<<19)) }, "vdb"},
		"shrunk and grown": {func(t *testing.T, v *sim.VM) {
			must(t, v.Resize("vdb", 1<<19))
			must(t, v.Resize("vdb", 1<<20))
		}, "vdb"},
		"replaced": {func(t *testing.T, v *sim.VM) { must(t, v.ReplaceDisk("vdb", 1<<20)) }, "vdb"},
		"removed and added": {func(t *testing.T, v *sim.VM) {
			must(t, v.RemoveDisk("vdb"))
			must(t, v.AddDisk(sim.DiskSpec{ID: "vdb", Size: 1 << 20}))
		}, "vdb"},
		"edited": {func(t *testing.T, v *sim.VM) {
			v.PowerOff()
			must(t, v.EditOffline("vdb", 0, []byte("edited")))
			v.PowerOn()
		}, "vdb"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, v, base := twoDisks(t)
			c.do(t, v)
			i := endedCut(t, h, v, base, "next")
			if got := wholeDisks(i); got != c.want || !i.Incremental {
				t.Errorf("whole: %q, want %q; %+v", got, c.want, i)
			}
			if got := wholeDisks(endedCut(t, h, v, i.Token, "after")); got != "" {
				t.Errorf("whole in the cut after: %q", got)
			}
		})
	}
}

func TestRevert(t *testing.T) {
	t.Parallel()
	h, v, base := twoDisks(t)
	n, err := v.Snapshot()
	must(t, err)
	must(t, v.Write("vda", 0, []byte("later")))
	for range 2 { // a snapshot can be used again
		must(t, v.Revert(n))
		p := make([]byte, 5)
		if must(t, v.Read("vda", 0, p)); string(p) != "first" {
			t.Errorf("after the revert: %q", p)
		}
		must(t, v.Write("vda", 0, []byte("again")))
	}
	_, err = h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda", "vdb"}, Base: base, Tag: "x"})
	if dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("a cut since a token from before the revert: %v", err)
	}
	if v.Revert(7) == nil {
		t.Error("reverted to nothing")
	}
}

func TestShapeChangesWait(t *testing.T) {
	t.Parallel()
	h, v, base := twoDisks(t)
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda", "vdb"}, Base: base, Tag: "open"})
	must(t, err)
	_, serr := v.Snapshot()
	for name, err := range map[string]error{"add": v.AddDisk(sim.DiskSpec{ID: "vdc", Size: 1}), "remove": v.RemoveDisk("vda"), "replace": v.ReplaceDisk("vda", 1), "resize": v.Resize("vda", 1), "snapshot": serr} {
		if err == nil {
			t.Errorf("%s during a cut", name)
		}
	}
	if v.EditOffline("vda", 0, []byte("x")) == nil {
		t.Error("an offline edit of a running VM")
	}
	must(t, c.End(t.Context()))
}

func TestMoveTo(t *testing.T) {
	t.Parallel()
	h, v, base := twoDisks(t)
	dst := sim.New(sim.Config{Name: "dst"})
	if _, err := v.MoveTo(h); err == nil {
		t.Error("moved to where it is")
	}
	m, err := v.MoveTo(dst)
	must(t, err)
	if _, err := h.State(t.Context(), v.ID()); dr.CodeOf(err) != dr.CodeVMNotFound {
		t.Errorf("the old host: %v", err)
	}
	if s, err := dst.State(t.Context(), v.ID()); err != nil || s != hypervisor.PowerOn {
		t.Errorf("the new host: %s, %v", s, err)
	}
	if b, err := m.Content("vda"); err != nil || !bytes.HasPrefix(b, []byte("first")) {
		t.Errorf("content %q, %v", b[:5], err)
	}
	_, err = dst.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Base: base, Tag: "x"})
	if dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("the old token at the new host: %v", err)
	}
	endedCut(t, dst, m, "", "new")
	back, err := m.MoveTo(h)
	must(t, err)
	endedCut(t, h, back, "", "home")
}

func TestAgentModes(t *testing.T) {
	t.Parallel()
	h, v, _ := twoDisks(t)
	for _, c := range []struct {
		mode   sim.AgentMode
		want   dr.Consistency
		frozen bool
	}{{sim.AgentAnswers, dr.AppConsistent, false}, {sim.AgentHangsOnFreeze, dr.CrashConsistent, false}, {sim.AgentFreezesNothing, dr.CrashConsistent, false},
		{sim.AgentHangsOnThaw, dr.CrashConsistent, true}, {sim.AgentAnswers, dr.AppConsistent, false}} {
		v.SetAgentMode(dr.AppConsistent, c.mode)
		cut, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: v.ID(), Disks: []string{"vda"}, Tag: "q", Quiesce: true})
		must(t, err)
		if i := cut.Info(); i.Consistency != c.want || (i.Note == "") != (c.want == dr.AppConsistent) || v.Frozen() != c.frozen {
			t.Errorf("mode %d: %s, %q, frozen %t", c.mode, i.Consistency, i.Note, v.Frozen())
		}
		must(t, cut.Abort(t.Context()))
	}
}

// TestGroupFaults: whatever fails, no cut is open and the bases are good.
func TestGroupFaults(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, f := range map[string]sim.Fault{
		"before":     {Method: "BeginGroup", Err: boom},
		"held":       {Method: "BeginGroup.Hold", Err: boom},
		"hangs":      {Method: "BeginGroup.Hold", Hang: true},
		"lost reply": {Method: "BeginGroup", Err: boom, Late: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, one, base := twoDisks(t)
			two := h.AddVM(sim.VMSpec{Name: "db", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
			reqs := []hypervisor.CutRequest{{VM: one.ID(), Disks: []string{"vda"}, Base: base, Tag: "g"}, {VM: two.ID(), Disks: []string{"vda"}, Tag: "g"}}
			i := h.Inject(f)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := h.BeginGroup(ctx, reqs); err == nil || i.Fired() != 1 {
				t.Errorf("%v, fired %d", err, i.Fired())
			}
			i.Remove()
			if one.CutOpen() || two.CutOpen() || len(one.Tokens()) != 1 || len(two.Tokens()) != 0 {
				t.Errorf("left: open %t %t, tokens %v %v", one.CutOpen(), two.CutOpen(), one.Tokens(), two.Tokens())
			}
			cuts, err := h.BeginGroup(t.Context(), reqs)
			must(t, err)
			if !cuts[0].Info().Incremental || cuts[1].Info().Incremental {
				t.Errorf("%+v, %+v", cuts[0].Info(), cuts[1].Info())
			}
		})
	}
}
