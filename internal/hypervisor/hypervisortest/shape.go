package hypervisortest

import (
	"context"
	"slices"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// whole fails unless exactly the named disks of a cut are Whole, with a reason
// in an incremental cut and with nothing unchanged in them.
func whole(t testing.TB, c hypervisor.Cut, want ...string) {
	t.Helper()
	i := c.Info()
	for _, d := range i.Disks {
		if d.Whole != slices.Contains(want, d.ID) || (d.Why != "") != (d.Whole && i.Incremental) {
			t.Errorf("disk %s of cut %s: whole %t, why %q; want whole: %v", d.ID, i.Token, d.Whole, d.Why, want)
		}
		if !d.Whole {
			continue
		}
		for _, r := range ranges(t, context.Background(), c, d.ID) {
			if !r.Changed {
				t.Errorf("range %d+%d of the whole disk %s is not changed", r.Off, r.Len, d.ID)
			}
		}
	}
}

// onlyTracks fails if the VM has tokens beside want, sound or broken.
func (f *Fixture) onlyTracks(t testing.TB, want ...string) {
	t.Helper()
	if f.Tracking == nil {
		return
	}
	if got := f.Tracking(t); !slices.Equal(got, want) {
		t.Errorf("the VM has the tracking tokens %v, want %v", got, want)
	}
}

// shaper takes cuts of a VM whose disks come and go.
type shaper struct {
	f     *Fixture
	m     *model
	r     replica
	disks []string
	base  string
	n     int
}

func (s *shaper) begin(t testing.TB, ctx context.Context) (hypervisor.Cut, error) {
	s.n++
	return s.f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: s.f.VM, Disks: s.disks, Base: s.base, Tag: "shape" + string(rune('a'+s.n))})
}

// cut takes a cut, whose disks in wantWhole have to be whole, and compares.
func (s *shaper) cut(t testing.TB, what string, wantWhole ...string) {
	t.Helper()
	ctx := s.f.limit(t)
	c, err := s.begin(t, ctx)
	ok(t, err)
	whole(t, c, wantWhole...)
	s.r.apply(t, ctx, c)
	s.r.mustEqual(t, s.m.now, what)
	ok(t, c.End(ctx))
	s.base = c.Info().Token
}

func testShape(t *testing.T, f *Fixture) {
	if f.AddDisk == nil {
		t.Fatal("the fixture can't change the disks of the VM")
	}
	s := &shaper{f: f, m: newModel(t, f, 12), r: replica{}, disks: slices.Clone(f.Disks)}
	s.m.scribble(t, 3)
	s.cut(t, "first cut", s.disks...)
	s.cut(t, "incremental cut")

	added := f.NewDisk
	if added == "" {
		added = "vdd"
	}
	f.AddDisk(t, added, 5<<20)
	s.disks = append(s.disks, added)
	s.m.now[added] = make([]byte, 5<<20)
	s.m.write(t, added, 1<<20, []byte{511: 1})
	s.m.scribble(t, 1)
	s.cut(t, "cut with a disk added", added)
	s.m.write(t, added, 2<<20, []byte{511: 2})
	s.cut(t, "cut after that")

	second := f.Disks[1]
	s.m.scribble(t, 1)
	f.Replace(t, second, 6<<20)
	s.m.now[second] = make([]byte, 6<<20)
	s.m.write(t, second, 5<<20, []byte{511: 3})
	s.cut(t, "cut with a disk replaced", second)
	s.m.scribble(t, 1)
	s.cut(t, "cut after that")
	ok(t, f.Host.Forget(f.limit(t), f.VM, []string{s.base}))
	f.onlyTracks(t, s.base)

	if f.Shrink != nil {
		f.Shrink(t, second, 4<<20)
		s.m.now[second] = s.m.now[second][:4<<20]
		s.m.write(t, f.Disks[0], 0, []byte{511: 4})
		s.cut(t, "cut with a disk shrunk", second)
	}

	f.RemoveDisk(t, added)
	_, err := s.begin(t, f.limit(t))
	wantCode(t, err, dr.CodeNotFound)
	s.disks = f.Disks
	delete(s.m.now, added)
	s.m.scribble(t, 1)
	s.cut(t, "cut with a disk removed")

	// A base that is of use for none of the disks is no base.
	for _, id := range f.Disks {
		f.Replace(t, id, 4<<20)
		s.m.now[id] = make([]byte, 4<<20)
	}
	_, err = s.begin(t, f.limit(t))
	wantCode(t, err, dr.CodeTrackingLost)
	s.base = ""
	s.m.scribble(t, 1)
	s.cut(t, "cut of new disks", f.Disks...)
	ok(t, f.Host.Forget(f.limit(t), f.VM, []string{s.base}))
	f.onlyTracks(t, s.base)
	s.m.scribble(t, 1)
	s.cut(t, "incremental cut of new disks")
}

func testEstimate(t *testing.T, f *Fixture) {
	e, has := f.Host.(hypervisor.Estimator)
	if !has {
		t.Fatal("the host can't estimate")
	}
	ctx := f.limit(t)
	m := newModel(t, f, 13)
	m.scribble(t, 4)
	c := f.begin(t, "", "e0")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	base := c.Info().Token
	estimate := func() int64 {
		t.Helper()
		n, err := e.Estimate(ctx, f.VM, base)
		ok(t, err)
		return n
	}
	if n := estimate(); n != 0 {
		t.Errorf("nothing was written, but %d bytes are estimated", n)
	}
	m.scribble(t, 3)
	want := estimate()
	c = f.begin(t, base, "e1")
	if n := estimate(); n != want { // an open cut is not disturbed
		t.Errorf("%d bytes are estimated while a cut is open, %d before", n, want)
	}
	m.scribble(t, 2)
	if changed := r.apply(t, ctx, c); changed != want {
		t.Errorf("%d bytes were estimated, %d changed", want, changed)
	}
	ok(t, c.End(ctx))
	if n := estimate(); n < want {
		t.Errorf("%d bytes are estimated since the old token, %d before", n, want)
	}
	old := int64(len(m.now[f.Disks[0]]))
	base = c.Info().Token
	before := estimate()
	f.Grow(t, f.Disks[0], old+2<<20)
	grown := before + 2<<20
	if f.GrowIsWhole { // what the other disks change, and all of this one
		c, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "grown"})
		ok(t, err)
		grown = 0
		for _, d := range c.Info().Disks {
			for _, x := range ranges(t, ctx, c, d.ID) {
				if x.Changed {
					grown += x.Len
				}
			}
		}
		ok(t, c.Abort(ctx))
		if grown < old+2<<20 {
			t.Errorf("%d bytes of a cut with a grown disk of %d are changed", grown, old+2<<20)
		}
	}
	if n := estimate(); n != grown {
		t.Errorf("%d bytes are estimated of a disk grown by 2 MiB, %d before", n, before)
	}
	_, err := e.Estimate(ctx, f.VM, "hf-never")
	wantCode(t, err, dr.CodeTrackingLost)
	_, err = e.Estimate(ctx, unknownVM, base)
	wantCode(t, err, dr.CodeVMNotFound)
	f.PowerOff(t)
	_, err = e.Estimate(ctx, f.VM, base)
	wantCode(t, err, dr.CodeVMNotRunning)
	ok(t, f.Host.Start(ctx, f.VM))
	if n := estimate(); n != grown {
		t.Errorf("%d bytes are estimated after stop and start, %d before", n, grown)
	}
	f.Crash(t)
	ok(t, f.Host.Start(ctx, f.VM))
	if n, err := e.Estimate(ctx, f.VM, base); !f.KeepsOnCrash {
		wantCode(t, err, dr.CodeTrackingLost)
	} else if ok(t, err); n != grown {
		t.Errorf("%d bytes are estimated after a crash, %d before", n, grown)
	}
}
