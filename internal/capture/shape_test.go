package capture_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
)

// addDisk attaches a disk with content and lets write use it.
func (w *world) addDisk(id string, size int64) {
	w.t.Helper()
	w.mu.Lock()
	err := w.vm.AddDisk(sim.DiskSpec{ID: id, Size: size})
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); {
		w.mu.Unlock() // a cut is open
		time.Sleep(time.Millisecond)
		w.mu.Lock()
		err = w.vm.AddDisk(sim.DiskSpec{ID: id, Size: size})
	}
	w.disks = append(slices.Clone(w.disks), id)
	w.mu.Unlock()
	if err != nil {
		w.t.Fatal(err)
	}
}

// settle waits until the newest cut lists exactly these disks.
func (w *world) settle(r *running, ids ...string) {
	w.t.Helper()
	for range 20 {
		w.drain(r)
		_, disks := w.tip()
		var have []string
		for _, d := range disks {
			have = append(have, d.ID)
		}
		slices.Sort(have)
		if slices.Equal(have, ids) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	st := r.Status()
	w.t.Fatalf("the cuts never listed %v: %s %s %v", ids, st.Phase, st.Note, st.Err)
}

// A disk is added: the others go on with recovery points while it is sent.
func TestDiskAdded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 40, 2<<20)
	w.open(1, cut.Ref{})
	w.write(20)
	a := w.assignment()
	var hold atomic.Bool
	gate := make(chan struct{})
	r := w.start(a, func(c *capture.Config) {
		c.Step = func(at string) error {
			if at == "initial.tile-sealed" && hold.Load() {
				<-gate
			}
			return nil
		}
		c.HoldLimit = time.Nanosecond
	})
	w.drain(r)
	w.addDisk("vdb", cut.TileSize+2<<20)
	w.noise("vdb", 0, 1<<20)
	w.noise("vdb", cut.TileSize, 1<<20)
	a.Disks = w.disks
	r.Assign(a)
	w.noise("vdb", 64<<10, 4096)
	w.settle(r, "vda", "vdb")
	w.write(10)
	w.drain(r)
	r.stop(t)
	before := 0
	for _, c := range w.chain() {
		if len(c.Disks) == 1 {
			before++
			if len(c.Tiles) > 0 && c.N > 1 {
				t.Errorf("cut %d lists tiles of a disk that it does not have", c.N)
			}
		} else if c.Disks[1].Index != 1 || c.Resync || c.Seed {
			t.Errorf("cut %+v", c)
		}
	}
	if before < 2 {
		t.Errorf("%d recovery points while the disk was sent", before)
	}
	w.check()
}

// Killed at every step while a disk is added, nothing is lost and tiles are sent once.
func TestCrashWhileDiskIsAdded(t *testing.T) {
	t.Parallel()
	for i, label := range []string{"initial.changes", "initial.tile-sealed", "initial.tile-put", "initial.tile-stored", "initial.tile-logged", "cut.begun", "cut.read", "spool.written", "spool.renamed", "tip.saved", "filter.applied"} {
		if i > 4 && testing.Short() {
			continue
		}
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, uint64(200+i), 1<<20)
			w.open(1, cut.Ref{})
			w.write(20)
			r := w.start(w.assignment(), nil)
			w.drain(r)
			r.stop(t)
			w.addDisk("vdb", cut.TileSize+1<<20)
			w.noise("vdb", 0, 1<<20)
			w.noise("vdb", cut.TileSize, 1<<20)
			var count atomic.Int64
			var fired atomic.Int64
			for life := range 5 {
				r := w.start(w.assignment(), func(c *capture.Config) {
					c.HoldLimit = time.Nanosecond
					c.Step = func(at string) error {
						if at == label && count.Add(1)%3 == 2 && life < 3 {
							fired.Add(1)
							return errors.New("crash at " + label)
						}
						return nil
					}
				})
				w.live(r, 4)
				if life == 2 && i%2 == 0 {
					w.vm.Crash() // tracking is lost as well
					w.vm.PowerOn()
				}
			}
			r = w.start(w.assignment(), nil)
			w.settle(r, "vda", "vdb")
			r.stop(t)
			if fired.Load() == 0 {
				t.Error("the crash never came")
			}
			w.check()
		})
	}
}

// A disk that was excluded and comes back is a new one: nothing of the old shows through.
func TestDiskExcludedAndBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 41, 1<<20, 1<<20)
	w.open(1, cut.Ref{})
	w.noise("vdb", 0, 1<<20)
	a := w.assignment()
	r := w.start(a, nil)
	w.drain(r)
	a.Disks = []string{"vda"}
	r.Assign(a)
	w.settle(r, "vda")
	if err := w.vm.Trim("vdb", 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	w.noise("vdb", 512<<10, 4096)
	a.Disks = []string{"vda", "vdb"}
	r.Assign(a)
	w.settle(r, "vda", "vdb")
	if _, disks := w.tip(); disks[1].Index != 2 {
		t.Errorf("the index was given twice: %+v", disks)
	}
	// The disk is taken out of the VM while it is assigned.
	for err := w.vm.RemoveDisk("vdb"); err != nil; err = w.vm.RemoveDisk("vdb") {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	w.disks = []string{"vda"}
	w.mu.Unlock()
	w.settle(r, "vda")
	if s := r.Status(); dr.CodeOf(s.Problem) != dr.CodeNotFound {
		t.Errorf("problem: %v", s.Problem)
	}
	r.stop(t)
	w.check()
}

// A disk that became smaller is refused and named; the others go on. An
// operator's resynchronization sends it as a new disk.
func TestDiskShrunk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 42, 1<<20, 2<<20)
	w.open(1, cut.Ref{})
	w.write(20)
	a := w.assignment()
	r := w.start(a, nil)
	w.drain(r)
	for err := w.vm.Resize("vdb", 1<<20); err != nil; err = w.vm.Resize("vdb", 1<<20) {
		time.Sleep(time.Millisecond)
	}
	w.settle(r, "vda")
	s := r.Status()
	if dr.CodeOf(s.Problem) != dr.CodeDiskShrunk || s.Err != nil {
		t.Errorf("status %+v", s)
	}
	r.stop(t)
	r = w.start(a, nil)
	w.drain(r)
	if s := r.Status(); dr.CodeOf(s.Problem) != dr.CodeDiskShrunk {
		t.Errorf("after a restart: %v", s.Problem)
	}
	a.ResyncRequest = "1"
	r.Assign(a)
	w.settle(r, "vda", "vdb")
	if s := r.Status(); s.Problem != nil {
		t.Errorf("problem: %v", s.Problem)
	}
	r.stop(t)
	w.check()
	// Alone it stops everything, and loses nothing.
	w = newWorld(t, 43, 2<<20)
	w.open(1, cut.Ref{})
	r = w.start(w.assignment(), nil)
	w.drain(r)
	for err := w.vm.Resize("vda", 1<<20); err != nil; err = w.vm.Resize("vda", 1<<20) {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := r.Drain(ctx); dr.CodeOf(err) != dr.CodeDiskShrunk {
		t.Errorf("drain: %v", err)
	}
	r.stop(t)
	w.check()
}

// The VM moves to another host, with the agent there knowing nothing of it.
func TestVMMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 44, 4<<20)
	w.open(1, cut.Ref{})
	w.noise("vda", 0, 3<<20)
	r := w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	base, disks := w.tip()
	other := sim.New(sim.Config{Name: "second"})
	t.Cleanup(func() { other.Close() })
	vm, err := w.vm.MoveTo(other)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.host, w.vm, w.dir = other, vm, w.dir+"-second"
	w.mu.Unlock()
	w.noise("vda", 1<<20, 64<<10)
	w.open(2, base)
	a := w.assignment()
	a.Gen, a.Base, a.BaseDisks = 2, base, disks
	_, before := w.stored("v1/m/")
	r = w.start(a, func(c *capture.Config) { c.Digests = &digests{w: w} })
	w.drain(r)
	if _, after := w.stored("v1/m/"); after-before > 96<<10 {
		t.Errorf("shipped %d bytes", after-before)
	}
	r.stop(t)
	if w.check() < 2 {
		t.Error("the history is gone")
	}
}

// Members of a group are cut at one instant; with one that is late there is no
// group instant, and everybody's own points are made all the same.
func TestGroup(t *testing.T) {
	t.Parallel()
	host := sim.New(sim.Config{})
	t.Cleanup(func() { host.Close() })
	g := capture.NewGroup("g", host, 300*time.Millisecond)
	var ws []*world
	var rs []*running
	for i := range 3 {
		w := newWorld(t, uint64(50+i), 1<<20)
		w.host.Close()
		w.mu.Lock()
		w.host = host
		w.vm = host.AddVM(sim.VMSpec{Name: w.disks[0] + string(rune('0'+i)), Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
		w.mu.Unlock()
		w.open(1, cut.Ref{})
		ws = append(ws, w)
	}
	var slow atomic.Bool
	for i, w := range ws {
		a := w.assignment()
		a.CopyFrequency = time.Second
		rs = append(rs, w.start(a, func(c *capture.Config) {
			c.Group = g
			c.Source = flatless{host.Restart()}
			c.Step = func(at string) error {
				if i == 0 && at == "cut.begun" && slow.Load() {
					time.Sleep(1500 * time.Millisecond)
				}
				return nil
			}
		}))
	}
	stamps := func(w *world) (out []uint64, plain int) {
		for _, c := range w.chain() {
			if c.Group != nil && len(c.Group.Members) == 3 {
				out = append(out, c.Group.Seq)
			} else {
				plain++
			}
		}
		return out, plain
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		a, _ := stamps(ws[0])
		b, _ := stamps(ws[1])
		c, _ := stamps(ws[2])
		if len(a) > 1 && len(b) > 1 && len(c) > 1 && a[0] == b[0] && b[0] == c[0] && a[1] == b[1] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no group instants: %v %v %v", a, b, c)
		}
		time.Sleep(100 * time.Millisecond)
	}
	slow.Store(true)
	_, plain := stamps(ws[1])
	for deadline := time.Now().Add(30 * time.Second); ; {
		if _, now := stamps(ws[1]); now > plain {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a slow member kept the others from making points")
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, r := range rs {
		r.stop(t)
	}
}

// flatless is a host without the oracle.
type flatless struct{ *sim.Host }

var _ capture.Source = flatless{}
var _ hypervisor.GroupSource = (*sim.Host)(nil)
