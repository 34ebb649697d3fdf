package capture_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// stored sums the objects whose names contain part.
func (w *world) stored(part string) (n, bytes int64) {
	w.t.Helper()
	err := w.bucket.List(w.t.Context(), "", func(i objstore.Info) error {
		if strings.Contains(i.Key, part) {
			n++
			bytes += i.Size
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n, bytes
}

func TestIdleCycleIsOneSmallPut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 4<<20, 4<<20)
	w.open(1, cut.Ref{})
	r := w.start(w.assignment(), nil)
	w.drain(r)
	before, size := w.stored("v1/m/")
	w.drain(r)
	after, total := w.stored("v1/m/")
	if after-before != 1 || total-size > 16<<10 {
		t.Errorf("an idle cycle made %d objects of %d bytes", after-before, total-size)
	}
	r.stop(t)
	w.check()
}

// 16 MiB of random 4 KiB writes ship no more than 17 MiB, although the tracker is coarse.
func TestRandomWritesShipWhatChanged(t *testing.T) {
	t.Parallel()
	const size = 96 << 20
	w := newWorld(t, 2, size)
	w.open(1, cut.Ref{})
	r := w.start(w.assignment(), func(c *capture.Config) { c.PartSize = 32 << 20 })
	w.drain(r)
	p := make([]byte, 4096)
	seen := map[int64]bool{}
	for len(seen) < 4096 {
		off := w.rng.Int64N(size/4096) * 4096
		if seen[off] {
			continue
		}
		seen[off] = true
		for i := range p {
			p[i] = byte(w.rng.Uint32())
		}
		if err := w.vm.Write("vda", off, p); err != nil {
			t.Fatal(err)
		}
	}
	_, before := w.stored("v1/m/")
	w.drain(r)
	_, after := w.stored("v1/m/")
	s := r.Status()
	c := s.History[len(s.History)-1]
	t.Logf("dirty %d, shipped %d, took %v", c.Dirty, c.Shipped, c.Took)
	if after-before > 17<<20 || c.Shipped != after-before {
		t.Errorf("shipped %d bytes (reported %d)", after-before, c.Shipped)
	}
	if n, _ := w.stored("/part/"); n != 0 {
		t.Errorf("%d parts for a cut that fits one object", n)
	}
	commits := w.chain()
	if s := commits[len(commits)-1].Stats; s.ChangedBytes != 16<<20 || s.IncompressibleBytes < 15<<20 || s.DirtyBytes != c.Dirty {
		t.Errorf("figures of the cut: %+v", s)
	}
	if c.Dirty < 64<<20 {
		t.Errorf("the tracker was not coarse: %d dirty", c.Dirty)
	}
	r.stop(t)
	w.check()
}

// Losing change tracking ships the true difference, not the disk.
func TestTrackingLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 32<<20)
	w.open(1, cut.Ref{})
	for off := int64(0); off < 32<<20; off += 1 << 20 {
		p := make([]byte, 1<<20)
		for i := range p {
			p[i] = byte(w.rng.Uint32())
		}
		if err := w.vm.Write("vda", off, p); err != nil {
			t.Fatal(err)
		}
	}
	r := w.start(w.assignment(), nil)
	w.drain(r)
	w.write(3)
	w.drain(r)
	w.vm.Crash()
	w.vm.PowerOn()
	w.write(5)
	_, before := w.stored("v1/m/")
	w.drain(r)
	_, after := w.stored("v1/m/")
	if after-before > 1<<20 {
		t.Errorf("a resynchronization shipped %d bytes", after-before)
	}
	s := r.Status()
	if !s.History[len(s.History)-1].Resync || s.Resync == "" && s.Phase == capture.PhaseResync {
		t.Errorf("status %+v", s)
	}
	w.write(3)
	w.drain(r)
	if s := r.Status(); s.Phase != capture.PhaseDelta {
		t.Errorf("the resynchronization did not end in delta replication: %s", s.Phase)
	}
	r.stop(t)
	if n := w.check(); n < 4 {
		t.Errorf("%d points", n)
	}
	// The filter is lost as well: everything is sent, and the points are right.
	w.vm.LoseTracking()
	removeAll(t, w.dir+"/filter")
	w.write(2)
	r = w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	w.check()
}

func TestOperatorResync(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, 4<<20)
	w.open(1, cut.Ref{})
	w.write(20)
	a := w.assignment()
	r := w.start(a, nil)
	w.drain(r)
	a.ResyncRequest = "1"
	r.Assign(a)
	w.write(4)
	w.drain(r)
	count := func() (n int) {
		for _, c := range r.Status().History {
			if c.Resync {
				n++
			}
		}
		return n
	}
	if count() != 1 {
		t.Errorf("%d resynchronizations", count())
	}
	w.drain(r)
	if count() != 1 {
		t.Error("the request was carried out twice")
	}
	r.stop(t)
	w.check()
}

// A new generation on the committed cut goes on with deltas; what was in the
// spool for the old one is dropped and captured again.
func TestTakeoverGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 8<<20)
	w.open(1, cut.Ref{})
	w.write(30)
	a := w.assignment()
	r := w.start(a, nil)
	base := w.drain(r)
	var blocked atomic.Bool
	blocked.Store(true)
	w.mu.Lock()
	w.putErr = func(name string) error {
		if blocked.Load() && strings.Contains(name, "/00000001/cut/") {
			return dr.New(dr.KindFenced, dr.CodeGenerationFenced, "test", "fenced")
		}
		return nil
	}
	w.mu.Unlock()
	w.write(5)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := r.Drain(ctx); dr.CodeOf(err) != dr.CodeGenerationFenced {
		t.Fatalf("a fenced cut: %v", err)
	}
	if s := r.Status(); s.Phase != capture.PhaseError {
		t.Errorf("phase %s", s.Phase)
	}
	w.open(2, base)
	a.Gen, a.Base = 2, base
	r.Assign(a)
	w.write(5)
	if ref := w.drain(r); ref.Gen != 2 || ref.N != base.N+1 {
		t.Errorf("went on at %+v", ref)
	}
	s := r.Status()
	if s.History[len(s.History)-1].Resync {
		t.Error("a takeover at the known cut resynchronized")
	}
	r.stop(t)
	w.check()
	// A base that this host does not know: compared, and the chain is right.
	a.Gen = 3
	a.Base = base
	w.open(3, base)
	r = w.start(a, nil)
	w.write(3)
	w.drain(r)
	r.stop(t)
	w.check()
}

func TestSecondAgentConflicts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6, 2<<20)
	w.open(1, cut.Ref{})
	r := w.start(w.assignment(), nil)
	ref := w.drain(r)
	name := cut.CutObject(w.machine, 1, ref.N+1)
	if err := w.bucket.PutNew(t.Context(), name, strings.NewReader("somebody else's"), 15, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := r.Drain(ctx); dr.CodeOf(err) != dr.CodeObjectConflict {
		t.Fatalf("got %v", err)
	}
	r.stop(t)
}

// A lost response is not a lost cut, and nothing is sent twice under another name.
func TestLostResponses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 7, 4<<20)
	w.open(1, cut.Ref{})
	var lost atomic.Int64
	w.after = func(name string) error {
		if lost.Add(1)%3 == 0 {
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "lost response")
		}
		return nil
	}
	w.write(10)
	r := w.start(w.assignment(), nil)
	for range 6 {
		w.write(4)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, _, err := r.Drain(ctx)
		cancel()
		if err != nil { // the retry is a minute away: a restart tries again at once
			r.stop(t)
			r = w.start(w.assignment(), nil)
		}
	}
	w.mu.Lock()
	w.after = nil
	w.mu.Unlock()
	r.stop(t)
	r = w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	if lost.Load() < 3 {
		t.Error("the fault never fired")
	}
	if w.check() < 6 {
		t.Error("cuts were lost")
	}
}

// The store is away: cutting goes on until the spool is full, then tracking
// goes on; when the store is back everything arrives.
func TestSpoolFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8, 8<<20)
	w.open(1, cut.Ref{})
	a := w.assignment()
	r := w.start(a, func(c *capture.Config) { c.SpoolLimit = 300 << 10 })
	w.drain(r)
	away := errors.New("away")
	w.mu.Lock()
	w.putErr = func(string) error {
		return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "put: %w", away)
	}
	w.mu.Unlock()
	full := false
	for range 200 {
		w.write(10)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, _, err := r.Drain(ctx)
		cancel()
		if dr.CodeOf(err) == dr.CodeSpoolFull {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the spool never became full")
	}
	w.write(20)
	w.mu.Lock()
	w.putErr = nil
	w.mu.Unlock()
	r.stop(t)
	r = w.start(a, func(c *capture.Config) { c.SpoolLimit = 300 << 10 })
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, _, err := r.Drain(ctx)
		cancel()
		if err == nil {
			break
		}
		if dr.CodeOf(err) != dr.CodeSpoolFull {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // the shipper is emptying it
	}
	r.stop(t)
	w.check()
}

func TestDiskGrows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 9, 2<<20+512)
	w.open(1, cut.Ref{})
	w.write(10)
	r := w.start(w.assignment(), nil)
	w.drain(r)
	if err := w.vm.Grow("vda", 3<<20); err != nil {
		t.Fatal(err)
	}
	w.write(20)
	w.drain(r)
	w.write(5)
	w.drain(r)
	r.stop(t)
	w.check()
}

func TestVMOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 10, 2<<20)
	w.open(1, cut.Ref{})
	a := w.assignment()
	a.CopyFrequency = 5 * time.Second
	r := w.start(a, nil)
	w.drain(r)
	w.write(3)
	w.vm.PowerOff()
	ref := w.drain(r) // the last delta of a planned failover
	s := r.Status()
	if s.Committed != ref || s.Err != nil {
		t.Errorf("status %+v", s)
	}
	r.stop(t)
	w.check()
}

// The schedule of DESIGN §4: 1, 2, 4, 8, 10 minutes after the first attempt,
// then every 30 minutes, and no attempt in between.
func TestRetrySchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 11, 1<<20)
		w.open(1, cut.Ref{})
		var at []time.Duration
		start := time.Now()
		w.putErr = func(string) error {
			at = append(at, time.Since(start).Round(time.Second))
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "away")
		}
		a := w.assignment()
		a.CopyFrequency = 1000 * time.Hour
		r := w.start(a, nil)
		time.Sleep(2*time.Hour + 20*time.Minute)
		r.stop(t)
		want := []time.Duration{0, 1, 2, 4, 8, 10, 40, 70, 100, 130}
		if len(at) != len(want) {
			t.Fatalf("attempts at %v", at)
		}
		prev := time.Duration(0)
		for i, m := range want {
			m *= time.Minute
			if at[i] < m || at[i] > m+(m-prev)/10+time.Second {
				t.Errorf("attempt %d at %v, want %v and at most a tenth of the pause later", i, at[i], m)
			}
			prev = m
		}
	})
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// What is in the spool when the process starts belongs to a generation that may be
// dead by then. It is dropped whichever comes first, the shipper's begin or the takeover.
func TestTakeoverBeforeTheShipperBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 8, 4<<20)
	w.open(1, cut.Ref{})
	w.write(30)
	a := w.assignment()
	r := w.start(a, nil)
	base := w.drain(r)
	w.mu.Lock()
	w.putErr = func(name string) error {
		if strings.Contains(name, "/00000001/cut/") {
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "the network is down")
		}
		return nil
	}
	w.mu.Unlock()
	w.write(5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	drained := make(chan error, 1)
	go func() {
		_, _, err := r.Drain(ctx)
		drained <- err
	}()
	for end := time.Now().Add(time.Minute); r.Status().Spooled == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was spooled")
		}
	}
	cancel()
	if err := <-drained; err == nil {
		t.Fatal("a cut was committed while the network was down")
	}
	r.stop(t)

	w.open(2, base)
	a.Gen, a.Base = 2, base
	var current atomic.Pointer[capture.Replicator]
	held := false
	r = w.start(a, func(cfg *capture.Config) {
		cfg.Step = func(label string) error {
			if label == "ship.begun" {
				for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					if x := current.Load(); x != nil && x.Status().Gen == 2 {
						held = true
						break
					}
				}
			}
			return nil
		}
	})
	current.Store(r.Replicator)
	if ref := w.drain(r); ref.Gen != 2 || ref.N <= base.N { // a cycle may have come before
		t.Errorf("went on at %+v", ref)
	}
	r.stop(t)
	if !held {
		t.Error("the shipper was not held back")
	}
	w.check()
}
