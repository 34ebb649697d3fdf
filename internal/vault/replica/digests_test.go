package replica

import (
	"log/slog"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store/storetest"
	"holdfast/internal/vault/state"
)

// TestViewsAreBounded: few are open, those in use stay readable, unused ones are
// closed after a while, and none is opened after Close.
func TestViewsAreBounded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := mem.New()
	rep := storetest.New(t, b, 1<<20)
	points := []storetest.Point{rep.Base()}
	for range maxViews + 2 {
		points = append(points, rep.Cut())
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	r := New(Config{Bucket: b, Key: rep.Private, State: &state.State{Clock: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}})
	ref := func(p storetest.Point) agentapi.CutRef {
		return agentapi.CutRef{Generation: uint32(p.Ref.Gen), N: p.Ref.N, Hash: p.Ref.Hash.String()}
	}
	first, done, err := r.view(ctx, rep.Machine, ref(points[0]), "a")
	if err != nil {
		t.Fatal(err)
	}
	again, done2, err := r.view(ctx, rep.Machine, ref(points[0]), "a")
	if err != nil || again != first {
		t.Fatalf("the open view was not used again: %v", err)
	}
	done2()
	for _, p := range points[1:] {
		_, give, err := r.view(ctx, rep.Machine, ref(p), "a")
		if err != nil {
			t.Fatal(err)
		}
		give()
	}
	if n := len(r.views.open); n != maxViews {
		t.Errorf("%d views are open, want %d", n, maxViews)
	}
	// The first one was dropped while it is in use.
	if _, err := first.TileRoots(ctx, 0, 0, 1); err != nil {
		t.Errorf("a view in use was closed: %v", err)
	}
	done()
	now = now.Add(viewIdle / 2)
	r.CloseIdle()
	if n := len(r.views.open); n != maxViews {
		t.Errorf("%d views after half of the time", n)
	}
	now = now.Add(viewIdle)
	r.CloseIdle()
	if n := len(r.views.open); n != 0 {
		t.Errorf("%d views are idle and open", n)
	}
	r.Close()
	r.Close()
	if _, _, err := r.view(ctx, rep.Machine, ref(points[0]), "a"); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("a view after Close: %v", err)
	}
}

// TestLeaseIsRenewedInTime: while somebody reads there is always a lease with
// half of its life before it, and no more objects than that takes.
func TestLeaseIsRenewedInTime(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := mem.New()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	r := New(Config{Bucket: b, State: &state.State{Clock: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}})
	const m = dr.MachineID("11111111-2222-3333-4444-555555555555")
	var ends time.Time
	objects := 0
	for range 24 * 6 { // a day, every ten minutes
		if err := r.Lease(ctx, Reader{UID: "u", Machine: m, Gen: 1, N: 7, Holder: "test"}); err != nil {
			t.Fatal(err)
		}
		objects = 0
		if err := b.List(ctx, cut.LeasePrefix(m), func(i objstore.Info) error {
			o, err := cut.ParseObject(i.Key)
			ends, objects = time.Unix(o.Expires, 0), objects+1
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if left := ends.Sub(now); left < leaseLifetime/2 {
			t.Fatalf("%v are left at %v", left, now)
		}
		now = now.Add(10 * time.Minute)
	}
	if objects > 25 {
		t.Errorf("%d lease objects for a day", objects)
	}
}
