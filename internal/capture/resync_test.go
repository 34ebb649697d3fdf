package capture_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
)

// digests answers from the store, as a vault does.
type digests struct {
	w      *world
	roots  atomic.Int64
	blocks atomic.Int64
	err    atomic.Pointer[error]
}

func (d *digests) Roots(ctx context.Context, at cut.Ref, disk uint16, first, count uint32) ([]capture.TileRoot, error) {
	if p := d.err.Load(); p != nil {
		return nil, *p
	}
	d.roots.Add(int64(count))
	v, err := d.w.store().OpenPosition(ctx, d.w.machine, at.Gen, at.N)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	ts, err := v.TileRoots(ctx, disk, first, count)
	var out []capture.TileRoot
	for _, t := range ts {
		out = append(out, capture.TileRoot{Tile: t.Tile, Zero: t.Zero, Key: t.Key, Root: t.Root})
	}
	return out, err
}

func (d *digests) Blocks(ctx context.Context, at cut.Ref, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error) {
	d.blocks.Add(1)
	v, err := d.w.store().OpenPosition(ctx, d.w.machine, at.Gen, at.N)
	if err != nil {
		return cut.DigestKey{}, nil, err
	}
	defer v.Close()
	return v.TileBlocks(ctx, disk, tile)
}

// noise writes n bytes that do not compress.
func (w *world) noise(disk string, off, n int64) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rng.Uint32())
	}
	if err := w.vm.Write(disk, off, p); err != nil {
		w.t.Fatal(err)
	}
}

// chain returns what the commits of the history say, oldest first.
func (w *world) chain() []*cut.Commit {
	w.t.Helper()
	c, err := w.store().Chain(w.t.Context(), w.machine)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []*cut.Commit
	for _, x := range c.Path {
		out = append(out, x.Commit)
	}
	return out
}

// ref is the reference of the newest cut.
func (w *world) tip() (cut.Ref, []cut.Disk) {
	w.t.Helper()
	c, err := w.store().Chain(w.t.Context(), w.machine)
	if err != nil {
		w.t.Fatal(err)
	}
	x := c.Path[len(c.Path)-1]
	return x.Ref, x.Commit.Disks
}

// The agent was installed again, or the VM has moved: nothing of the old state
// is there, the history stays, and true differences only are sent.
func TestReinstalledComparesDigests(t *testing.T) {
	t.Parallel()
	for _, rounds := range []bool{false, true} {
		t.Run(fmt.Sprintf("rounds=%v", rounds), func(t *testing.T) {
			t.Parallel()
			const size = 3*cut.TileSize + 5<<20
			w := newWorld(t, 20, size)
			w.open(1, cut.Ref{})
			w.noise("vda", 0, 6<<20)
			w.noise("vda", cut.TileSize+100<<10, 1<<20)
			w.noise("vda", 3*cut.TileSize, 4<<20)
			r := w.start(w.assignment(), nil)
			w.drain(r)
			w.noise("vda", 20<<20, 100<<10) // over a tile image
			w.drain(r)
			r.stop(t)
			base, disks := w.tip()

			removeAll(t, w.dir)
			w.vm.LoseTracking()
			differ := int64(0)
			for _, off := range []int64{64 << 10, 5 << 20, cut.TileSize + 128<<10, 3*cut.TileSize + 4<<20, 21 << 20} {
				w.noise("vda", off, cut.Block)
				differ += cut.Block
			}
			if err := w.vm.Trim("vda", 128<<10, cut.Block); err != nil {
				t.Fatal(err)
			}
			w.open(2, base)
			a := w.assignment()
			a.Gen, a.Base, a.BaseDisks = 2, base, disks
			dg := &digests{w: w}
			_, before := w.stored("v1/m/")
			r = w.start(a, func(c *capture.Config) {
				c.Digests = dg
				if rounds {
					c.HoldLimit = time.Nanosecond
				}
			})
			w.drain(r)
			_, after := w.stored("v1/m/")
			if shipped := after - before; float64(shipped) > 1.05*float64(differ)+16<<10 {
				t.Errorf("shipped %d bytes for a difference of %d", shipped, differ)
			}
			if dg.roots.Load() == 0 || dg.blocks.Load() == 0 || dg.blocks.Load() > 3 {
				t.Errorf("%d roots and %d block lists were asked for", dg.roots.Load(), dg.blocks.Load())
			}
			w.noise("vda", 7<<20, 4096)
			w.drain(r)
			if c := w.chain(); c[len(c)-1].Stats.ChangedBytes != 4096 {
				t.Errorf("the filter was not filled: the next cut has %d changed bytes", c[len(c)-1].Stats.ChangedBytes)
			}
			r.stop(t)
			n := w.check()
			seeds := 0
			for _, c := range w.chain() {
				if c.Seed {
					seeds++
				}
			}
			if rounds != (seeds > 0) {
				t.Errorf("%d cuts of the comparison are no recovery points", seeds)
			}
			if n < 4 {
				t.Errorf("%d points", n)
			}
		})
	}
}

// Killed at every step of a comparison in rounds, with and without the filter,
// it goes on, and every recovery point is the source.
func TestCrashWhileComparing(t *testing.T) {
	t.Parallel()
	labels := []string{"scan.tile", "cut.begun", "cut.read", "cut.ended", "spool.written", "spool.renamed", "tip.saved", "filter.applied", "ship.cut", "ship.put", "ship.saved", "ship.removed"}
	if testing.Short() {
		labels = labels[:4]
	}
	for i, label := range labels {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, uint64(100+i), cut.TileSize+3<<20, 1<<20)
			w.open(1, cut.Ref{})
			w.write(60)
			r := w.start(w.assignment(), nil)
			w.drain(r)
			w.write(10)
			w.drain(r)
			r.stop(t)
			base, disks := w.tip()
			a := w.assignment()
			if i%2 == 0 {
				removeAll(t, w.dir)
				w.open(2, base)
				a.Gen, a.Base, a.BaseDisks = 2, base, disks
			}
			w.vm.LoseTracking()
			fired := 0
			var count atomic.Int64
			for life := range 6 {
				step := func(at string) error {
					if at == label && count.Add(1) == 2 {
						fired++
						return errors.New("crash at " + label)
					}
					return nil
				}
				if life > 3 {
					step = nil
				} else {
					count.Store(0)
				}
				r := w.start(a, func(c *capture.Config) {
					c.Step, c.HoldLimit, c.Digests, c.PartSize = step, time.Nanosecond, &digests{w: w}, 64<<10
				})
				if life == 2 && i%3 == 0 { // the spool and the filters are lost as well
					r.cancel()
					<-r.done
					removeAll(t, w.dir+"/spool")
					removeAll(t, w.dir+"/filter")
					continue
				}
				w.live(r, 2)
			}
			if fired == 0 {
				t.Error("the crash never came")
			}
			if n := w.check(); n < 3 {
				t.Errorf("%d points", n)
			}
		})
	}
}

func TestDigestsUnavailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 21, 4<<20)
	w.open(1, cut.Ref{})
	w.write(20)
	r := w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	base, disks := w.tip()
	removeAll(t, w.dir)
	w.vm.LoseTracking()
	w.open(2, base)
	a := w.assignment()
	a.Gen, a.Base, a.BaseDisks = 2, base, disks
	dg := &digests{w: w}
	away := error(dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "test", "away"))
	dg.err.Store(&away)
	r = w.start(a, func(c *capture.Config) { c.Digests = dg })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := r.Drain(ctx); dr.CodeOf(err) != dr.CodeDigestsUnavailable {
		t.Fatalf("drain: %v", err)
	}
	if s := r.Status(); s.Phase != capture.PhaseResync || s.Class != "recoverable" || s.RetryAt.IsZero() || s.ResyncReason != dr.CodeResyncRequired {
		t.Errorf("status %+v", s)
	}
	// Nothing else helps: the operator has everything sent.
	a.ResyncRequest, a.ResyncFull = "1", true
	r.Assign(a)
	w.drain(r)
	r.stop(t)
	w.check()
}

// An operator's resynchronization while tracking is unbroken: every cut of it is a recovery point.
func TestExactRounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 22, 2*cut.TileSize+1<<20)
	w.open(1, cut.Ref{})
	w.write(30)
	a := w.assignment()
	r := w.start(a, func(c *capture.Config) { c.HoldLimit = time.Nanosecond })
	w.drain(r)
	a.ResyncRequest = "1"
	r.Assign(a)
	for range 4 {
		w.write(5)
		w.drain(r)
	}
	r.stop(t)
	resyncs := 0
	for _, c := range w.chain() {
		if c.Seed {
			t.Errorf("cut %d is no recovery point", c.N)
		}
		if c.Resync {
			resyncs++
		}
	}
	if resyncs != 3 {
		t.Errorf("%d cuts of the resynchronization", resyncs)
	}
	w.check()
}

// One disk is another one, has lost its tracking, or was reverted: the other
// is not compared.
func TestOneDiskOnly(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(*sim.VM) error{
		"replaced": func(v *sim.VM) error { return v.ReplaceDisk("vdb", 2<<20) },
		"lost":     func(v *sim.VM) error { v.LoseTracking("vdb"); return nil },
		"edited": func(v *sim.VM) error {
			v.PowerOff()
			err := v.EditOffline("vdb", 4096, []byte("from outside"))
			v.PowerOn()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 23, 8<<20, 2<<20)
			w.open(1, cut.Ref{})
			w.noise("vda", 0, 8<<20)
			w.noise("vdb", 0, 1<<20)
			var read atomic.Int64
			r := w.start(w.assignment(), func(c *capture.Config) { c.Source = &counting{world: w, disk: "vda", n: &read} })
			w.drain(r)
			if err := act(w.vm); err != nil {
				t.Fatal(err)
			}
			read.Store(0)
			w.noise("vda", 1<<20, 4096)
			w.drain(r)
			if n := read.Load(); n > 128<<10 {
				t.Errorf("%d bytes of the other disk were read", n)
			}
			s := r.Status()
			if !s.History[len(s.History)-1].Resync {
				t.Error("no resynchronization")
			}
			w.drain(r)
			if s := r.Status(); s.Resync != "" || s.History[len(s.History)-1].Resync {
				t.Errorf("it does not end: %q", s.Resync)
			}
			r.stop(t)
			if n := w.check(); n < 3 {
				t.Errorf("%d points", n)
			}
		})
	}
}

// counting counts the bytes that are read of one disk.
type counting struct {
	*world
	disk string
	n    *atomic.Int64
}

func (c *counting) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	x, err := c.world.BeginCut(ctx, req)
	if err != nil {
		return nil, err
	}
	return &countingCut{x, c}, nil
}

type countingCut struct {
	hypervisor.Cut
	c *counting
}

func (x *countingCut) ReadAt(ctx context.Context, disk string, p []byte, off int64) error {
	if disk == x.c.disk {
		x.c.n.Add(int64(len(p)))
	}
	return x.Cut.ReadAt(ctx, disk, p, off)
}

// A seed was brought to the store by other means: only what differs from it travels.
func TestSeeded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 24, 6<<20)
	w.open(1, cut.Ref{})
	w.noise("vda", 0, 5<<20)
	r := w.start(w.assignment(), nil) // stands for who loads the seed
	w.drain(r)
	r.stop(t)
	seed, disks := w.tip()
	removeAll(t, w.dir)
	w.vm.LoseTracking()
	w.noise("vda", 1<<20, cut.Block)
	w.open(2, seed)
	a := w.assignment()
	a.Gen, a.Base, a.BaseDisks, a.Seeded = 2, seed, disks, true
	a.InitialNotBefore = time.Now().Add(time.Hour)
	r = w.start(a, func(c *capture.Config) { c.Digests = &digests{w: w} })
	waitFor(t, r, func(s capture.Status) bool { return !s.NextResync.IsZero() })
	if s := r.Status(); !s.Committed.IsZero() {
		t.Errorf("a seed counts as a recovery point: %+v", s.Committed)
	}
	a.InitialNotBefore = time.Time{}
	r.Assign(a)
	_, before := w.stored("v1/m/")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref, _, err := r.AwaitInitial(ctx)
	if err != nil || ref.N != seed.N+1 {
		t.Fatalf("first point %+v: %v", ref, err)
	}
	if _, after := w.stored("v1/m/"); after-before > cut.Block+16<<10 {
		t.Errorf("shipped %d bytes", after-before)
	}
	r.stop(t)
	w.check()
}

func waitFor(t testing.TB, r *running, ok func(capture.Status) bool) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		ch := r.Changed()
		if ok(r.Status()) {
			return
		}
		select {
		case <-ch:
		case <-limit:
			t.Fatalf("it never came: %s %s %v", r.Status().Phase, r.Status().Note, r.Status().Err)
		}
	}
}

// The copy target has moved: the new one has the same objects, and nothing is sent again.
func TestTargetMoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 25, 4<<20)
	w.open(1, cut.Ref{})
	w.write(20)
	r := w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	n := len(w.puts)
	w.write(2)
	r = w.start(w.assignment(), nil) // the sink answers for whatever is there
	w.drain(r)
	r.stop(t)
	for name, k := range w.puts {
		if k > 1 {
			t.Errorf("%s was sent %d times", name, k)
		}
	}
	if len(w.puts) > n+2 {
		t.Errorf("%d objects more", len(w.puts)-n)
	}
	w.check()
}

var _ = strings.Contains
