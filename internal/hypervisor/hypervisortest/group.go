package hypervisortest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// group is the fixture's two VMs cut together.
func (f *Fixture) group(t testing.TB) hypervisor.GroupSource {
	t.Helper()
	g, has := f.Host.(hypervisor.GroupSource)
	if !has || f.Other == "" || f.WriteOther == nil {
		t.Fatal("the fixture has no two VMs that can be cut together")
	}
	return g
}

func (f *Fixture) requests(tag string, bases ...string) []hypervisor.CutRequest {
	reqs := []hypervisor.CutRequest{{VM: f.VM, Disks: f.Disks, Tag: tag}, {VM: f.Other, Disks: f.Disks[:1], Tag: tag}}
	for i := range bases {
		reqs[i].Base = bases[i]
	}
	return reqs
}

func (f *Fixture) wantRunning(t testing.TB) {
	t.Helper()
	for _, id := range []dr.VMID{f.VM, f.Other} {
		if s, err := f.Host.State(f.limit(t), id); err != nil || s != hypervisor.PowerOn {
			t.Errorf("VM %s is %s, %v after a group cut", id, s, err)
		}
	}
}

func testGroup(t *testing.T, f *Fixture) {
	g, ctx := f.group(t), f.limit(t)
	m := newModel(t, f, 14)
	cfg, err := f.Host.Config(ctx, f.Other)
	ok(t, err)
	other := make([]byte, cfg.VM.Disks[slices.IndexFunc(cfg.VM.Disks, func(d dr.Disk) bool { return d.ID == f.Disks[0] })].Size)
	r, ro := replica{}, replica{}
	var bases []string
	for n := range 3 {
		m.scribble(t, 2)
		p := bytes.Repeat([]byte{byte(n + 1)}, 4096)
		f.WriteOther(t, int64(n)<<20, p)
		copy(other[n<<20:], p)
		want, wantOther := m.frozen(), bytes.Clone(other)
		cuts, err := g.BeginGroup(ctx, f.requests(fmt.Sprintf("g%d", n), bases...))
		ok(t, err)
		f.wantRunning(t)
		if len(cuts) != 2 {
			t.Fatalf("%d cuts", len(cuts))
		}
		a, b := cuts[0].Info(), cuts[1].Info()
		if !a.Time.Equal(b.Time) || a.Incremental != (n > 0) || b.Incremental != (n > 0) || len(a.Disks) != len(f.Disks) || len(b.Disks) != 1 {
			t.Errorf("cuts of a group: %+v and %+v", a, b)
		}
		t.Logf("held for %v and %v", a.Held, b.Held)
		m.scribble(t, 1)
		f.WriteOther(t, int64(n)<<20, make([]byte, 512)) // after the instant
		clear(other[n<<20 : n<<20+512])
		r.apply(t, ctx, cuts[0])
		ro.apply(t, ctx, cuts[1])
		r.mustEqual(t, want, "first VM of a group")
		ro.mustEqual(t, map[string][]byte{f.Disks[0]: wantOther}, "second VM of a group")
		if n == 1 { // each cut lives for itself
			ok(t, cuts[0].Abort(ctx))
			ok(t, cuts[1].End(ctx))
			bases[1] = b.Token
			continue
		}
		ok(t, cuts[0].End(ctx))
		ok(t, cuts[1].End(ctx))
		bases = []string{a.Token, b.Token}
	}
	// A guest that somebody has paused stays paused.
	f.Pause(t)
	cuts, err := g.BeginGroup(ctx, f.requests("paused", bases...))
	ok(t, err)
	if s, err := f.Host.State(ctx, f.VM); err != nil || s != hypervisor.PowerPaused {
		t.Errorf("a paused VM is %s after a group cut, %v", s, err)
	}
	for _, c := range cuts {
		ok(t, c.Abort(ctx))
	}
}

func testGroupAllOrNothing(t *testing.T, f *Fixture) {
	g, ctx := f.group(t), f.limit(t)
	m := newModel(t, f, 15)
	m.scribble(t, 2)
	cuts, err := g.BeginGroup(ctx, f.requests("base"))
	ok(t, err)
	r := replica{}
	r.apply(t, ctx, cuts[0])
	bases := []string{cuts[0].Info().Token, cuts[1].Info().Token}
	for _, c := range cuts {
		ok(t, c.End(ctx))
	}
	_, err = g.BeginGroup(ctx, nil)
	wantKind(t, err, dr.KindInvalid)
	twice := f.requests("x")
	twice[1].VM = f.VM
	_, err = g.BeginGroup(ctx, twice)
	wantKind(t, err, dr.KindInvalid)
	unknown := f.requests("x")
	unknown[1].VM = unknownVM
	_, err = g.BeginGroup(ctx, unknown)
	wantCode(t, err, dr.CodeVMNotFound)
	_, err = g.BeginGroup(ctx, f.requests("x", bases[0], "hf-never"))
	wantCode(t, err, dr.CodeTrackingLost)
	f.wantRunning(t)

	// The second VM is busy: the first is not concerned.
	busy, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.Other, Disks: f.Disks[:1], Tag: "busy"})
	ok(t, err)
	_, err = g.BeginGroup(ctx, f.requests("x", bases...))
	wantCode(t, err, dr.CodeBackupJobBusy)
	f.wantRunning(t)
	m.scribble(t, 2)
	ok(t, busy.ReadAt(ctx, f.Disks[0], make([]byte, 512), 0))
	ok(t, busy.Abort(ctx))
	// The second VM's token exists, which the platform itself refuses when all are held.
	clash := f.requests("clash", bases...)
	clash[1].Tag = "base"
	_, err = g.BeginGroup(ctx, clash)
	wantCode(t, err, dr.CodeAlreadyExists)
	f.wantRunning(t)

	// No cut is open, no token is left, the bases are good.
	for i, tag := range []string{"x", "clash"} {
		cuts, err = g.BeginGroup(ctx, f.requests(tag, bases...))
		ok(t, err)
		if i == 0 {
			for _, c := range cuts {
				ok(t, c.Abort(ctx))
			}
		}
	}
	r.apply(t, ctx, cuts[0])
	r.mustEqual(t, m.now, "group cut after refused ones")
	for _, c := range cuts {
		ok(t, c.End(ctx))
	}

	// Together with single cuts and another order of the same VMs nothing locks up.
	var wg sync.WaitGroup
	opened := make(chan hypervisor.Cut, 16)
	for i := range 4 {
		wg.Go(func() {
			reqs := f.requests(fmt.Sprintf("par%d", i))
			if i%2 == 1 {
				slices.Reverse(reqs)
			}
			got, err := g.BeginGroup(ctx, reqs)
			if err != nil && dr.CodeOf(err) != dr.CodeBackupJobBusy {
				t.Errorf("parallel group: %v", err)
			}
			for _, c := range got {
				opened <- c
			}
		})
	}
	wg.Wait()
	close(opened)
	if len(opened) != 2 {
		t.Errorf("%d cuts are open after parallel groups, want 2", len(opened))
	}
	for c := range opened {
		ok(t, c.Abort(ctx))
	}
	f.wantRunning(t)
}

// testGroupCausality: one guest records what the other has acknowledged, in
// both directions. In no cut is a record without its cause.
func testGroupCausality(t *testing.T, f *Fixture) {
	if !f.Held {
		t.Skip("the fixture's writes are not the guest's own")
	}
	g, ctx := f.group(t), f.limit(t)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			p := binary.BigEndian.AppendUint64(make([]byte, 0, 512), n)[:512]
			f.Write(t, f.Disks[1], 0, p)
			f.WriteOther(t, 0, p)
			f.Write(t, f.Disks[0], 0, p)
		}
	})
	defer writer.Wait()
	defer close(stop)
	value := func(c hypervisor.Cut, disk string) uint64 {
		p := make([]byte, 512)
		ok(t, c.ReadAt(ctx, disk, p, 0))
		return binary.BigEndian.Uint64(p)
	}
	var first, last uint64
	for n := range 50 {
		cuts, err := g.BeginGroup(ctx, f.requests(fmt.Sprintf("c%d", n)))
		ok(t, err)
		a, b, c := value(cuts[0], f.Disks[1]), value(cuts[1], f.Disks[0]), value(cuts[0], f.Disks[0])
		if a < b || b < c || a-c > 1 {
			t.Errorf("cut %d holds %d, %d, %d: not one instant", n, a, b, c)
		}
		if n == 0 {
			first = a
		}
		last = a
		for _, c := range cuts {
			ok(t, c.Abort(ctx))
		}
		time.Sleep(time.Millisecond)
	}
	if last == first {
		t.Error("the writer did not write")
	}
}
