package capture_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/pace"
)

// transcript notes what people see change, with the virtual time.
type transcript struct {
	start time.Time
	mu    sync.Mutex
	lines []string
	last  string
	done  chan struct{}
}

func record(ctx context.Context, r *capture.Replicator) *transcript {
	x := &transcript{start: time.Now(), done: make(chan struct{})}
	go func() {
		defer close(x.done)
		for {
			ch := r.Changed()
			x.note(r.Status())
			select {
			case <-ch:
			case <-ctx.Done():
				return
			}
		}
	}()
	return x
}

func (x *transcript) event(format string, args ...any) {
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lines = append(x.lines, x.at()+" -- "+fmt.Sprintf(format, args...))
}

func (x *transcript) at() string {
	d := time.Since(x.start).Round(time.Minute)
	return fmt.Sprintf("%d+%02d:%02d", d/(24*time.Hour), d%(24*time.Hour)/time.Hour, d%time.Hour/time.Minute)
}

func (x *transcript) note(s capture.Status) {
	x.mu.Lock()
	defer x.mu.Unlock()
	line := string(s.Phase)
	if s.Phase == capture.PhaseInitial {
		line += fmt.Sprintf(" %.0f%%", s.Percent)
	}
	if !s.Committed.IsZero() {
		line += fmt.Sprintf(" point %d", s.Committed.N)
	}
	if s.Resync != "" {
		line += " resync " + string(s.ResyncReason)
	}
	if !s.NextResync.IsZero() {
		line += " next " + s.NextResync.Format("15:04")
	}
	if !s.NextInitial.IsZero() {
		line += " next " + s.NextInitial.Format("15:04")
	}
	if s.PauseReason != "" {
		line += " (" + s.PauseReason + ")"
	}
	if s.Err != nil {
		line += " error " + string(dr.CodeOf(s.Err))
	}
	if s.Problem != nil {
		line += " problem " + string(dr.CodeOf(s.Problem))
	}
	if line == x.last {
		return
	}
	x.last = line
	line = x.at() + " " + line
	// What passes within a minute depends on the scheduler: where it ends counts.
	if n := len(x.lines); n > 0 && strings.HasPrefix(x.lines[n-1], x.at()+" ") && !strings.Contains(x.lines[n-1], " -- ") {
		x.lines[n-1] = line
		return
	}
	x.lines = append(x.lines, line)
}

// golden compares with testdata/name; HOLDFAST_UPDATE=1 writes it.
func (x *transcript) golden(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got := strings.Join(x.lines, "\n") + "\n"
	if os.Getenv("HOLDFAST_UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

func window(t *testing.T, text string) dr.Window {
	t.Helper()
	w, err := dr.ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// lean is a world without the oracle's copies, for large disks.
func (w *world) lean(c *capture.Config) { c.Source = flatless{w.host} }

// sameNoise compares the newest point with the VM where something was written.
func (w *world) sameNoise(disk string, offs ...int64) {
	w.t.Helper()
	ref, _ := w.tip()
	v, err := w.store().OpenPoint(w.t.Context(), w.machine, ref.Gen, ref.N)
	if err != nil {
		w.t.Fatal(err)
	}
	defer v.Close()
	for _, off := range offs {
		got, want := make([]byte, 64<<10), make([]byte, 64<<10)
		if err := v.ReadAt(w.t.Context(), disk, got, off); err != nil {
			w.t.Fatal(err)
		}
		if err := w.vm.Read(disk, off, want); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			w.t.Errorf("disk %s differs at %d", disk, off)
		}
	}
}

// The initial replication begins at its time, sends in its window only, stops
// at a tile for a pause, and sends nothing twice.
func TestInitialWindowPauseResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tiles = 8
		w := newWorld(t, 60, tiles*cut.TileSize)
		w.open(1, cut.Ref{})
		var offs []int64
		for i := range int64(tiles) {
			offs = append(offs, i*cut.TileSize+1<<20)
			w.noise("vda", offs[i], 64<<10)
		}
		var mu = make(chan struct{}, 1)
		w.putErr = func(name string) error {
			if strings.Contains(name, "/img/") {
				mu <- struct{}{} // one at a time, ten minutes each
				time.Sleep(10 * time.Minute)
				<-mu
			}
			return nil
		}
		a := w.assignment()
		a.InitialNotBefore = time.Now().Add(time.Hour)
		a.InitialWindow = window(t, "01:30-02:05 UTC")
		r := w.start(a, w.lean)
		ctx, cancel := context.WithCancel(t.Context())
		x := record(ctx, r.Replicator)
		time.Sleep(3 * time.Hour)
		w.noise("vda", offs[0]+64<<10, 64<<10) // a tile that is sent changes
		offs = append(offs, offs[0]+64<<10)
		time.Sleep(22*time.Hour + 45*time.Minute)
		a.Paused, a.PauseReason, a.ResumeAt = true, "maintenance", time.Now().Add(20*time.Minute)
		x.event("paused for 20 minutes")
		r.Assign(a)
		time.Sleep(25 * time.Minute)
		a.InitialWindow, a.Paused = dr.Window{}, false
		x.event("no window any more")
		r.Assign(a)
		time.Sleep(3 * time.Hour)
		cancel()
		<-x.done
		r.stop(t)
		x.golden(t, "initial.txt")
		for name, n := range w.puts {
			if n > 1 {
				t.Errorf("%s was sent %d times", name, n)
			}
		}
		if n, _ := w.stored("/img/"); n != tiles {
			t.Errorf("%d tile images", n)
		}
		w.sameNoise("vda", offs...)
	})
}

// Cancelled, it leaves no checkpoint at the host, and can begin again.
func TestInitialCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 61, 2*cut.TileSize)
		w.open(1, cut.Ref{})
		w.noise("vda", 0, 64<<10)
		w.noise("vda", cut.TileSize, 64<<10)
		w.putErr = func(string) error { time.Sleep(time.Minute); return nil }
		a := w.assignment()
		r := w.start(a, func(c *capture.Config) { w.lean(c); c.HoldLimit = time.Second })
		time.Sleep(30 * time.Second)
		a.InitialCancelled = true
		r.Assign(a)
		time.Sleep(10 * time.Minute)
		if n := w.vm.Tokens(); len(n) > 0 || w.vm.CutOpen() {
			t.Errorf("left at the host: %v", n)
		}
		if s := r.Status(); s.Phase != capture.PhaseWaiting || !s.Committed.IsZero() {
			t.Errorf("status %+v", s)
		}
		a.InitialCancelled = false
		r.Assign(a)
		r.RetryNow()
		time.Sleep(time.Hour)
		r.stop(t)
		w.sameNoise("vda", 0, cut.TileSize)
	})
}

// Tracking is lost in office hours: the points stay, the comparison waits for
// its window, is paused and goes on, and ends in deltas.
func TestResyncInWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tiles = 6
		w := newWorld(t, 62, tiles*cut.TileSize)
		w.open(1, cut.Ref{})
		var offs []int64
		for i := range int64(tiles) {
			offs = append(offs, i*cut.TileSize)
			w.noise("vda", offs[i], 64<<10)
		}
		a := w.assignment()
		a.ResyncWindow = window(t, "18:30-06:00 UTC")
		r := w.start(a, func(c *capture.Config) {
			w.lean(c)
			c.HoldLimit = time.Nanosecond
			c.Step = func(at string) error {
				if at == "scan.tile" {
					time.Sleep(10 * time.Minute)
				}
				return nil
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		x := record(ctx, r.Replicator)
		time.Sleep(10*time.Hour + 30*time.Minute)
		w.vm.LoseTracking()
		w.noise("vda", offs[1], 64<<10)
		w.noise("vda", offs[5], 4096)
		x.event("tracking is lost")
		time.Sleep(8*time.Hour + 25*time.Minute)
		a.Paused, a.PauseReason = true, "backup night"
		x.event("paused")
		r.Assign(a)
		time.Sleep(time.Hour)
		w.noise("vda", offs[0], 64<<10) // compared already
		a.Paused, a.PauseReason = false, ""
		x.event("resumed")
		r.Assign(a)
		time.Sleep(3 * time.Hour)
		cancel()
		<-x.done
		r.stop(t)
		x.golden(t, "resync.txt")
		w.sameNoise("vda", offs...)
	})
}

// The network is away for an hour: cutting goes on, the backlog is told, too much of it marks
// the item, and the mark is withdrawn when it has drained.
func TestNetworkAwayForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 63, 8<<20)
		w.open(1, cut.Ref{})
		w.noise("vda", 0, 1<<20)
		a := w.assignment()
		a.CopyFrequency = 5 * time.Minute
		a.ResyncWindow = window(t, "18:30-06:00 UTC")
		time.Sleep(10 * time.Hour)
		r := w.start(a, func(c *capture.Config) { w.lean(c); c.SpoolLimit = 1 << 20 })
		ctx, cancel := context.WithCancel(t.Context())
		x := record(ctx, r.Replicator)
		time.Sleep(11 * time.Minute)
		var away atomic.Bool
		away.Store(true)
		w.mu.Lock()
		w.putErr = func(string) error {
			if away.Load() {
				return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "away")
			}
			return nil
		}
		w.mu.Unlock()
		x.event("the store is away")
		for i := range int64(12) {
			w.noise("vda", i%8<<20, 1<<20)
			time.Sleep(5 * time.Minute)
		}
		s := r.Status()
		if s.Backlog < 4<<20 || s.Missed < 9 || s.ResyncReason != dr.CodeTrackingThreshold || s.Attempt == 0 {
			t.Errorf("after an hour: backlog %d, missed %d, resync %q, attempt %d", s.Backlog, s.Missed, s.ResyncReason, s.Attempt)
		}
		away.Store(false)
		x.event("the store is back, and somebody asks to try now")
		r.RetryNow()
		time.Sleep(20 * time.Minute)
		cancel()
		<-x.done
		if s := r.Status(); s.Err != nil || s.Resync != "" || s.Attempt != 0 {
			t.Errorf("status %+v", s)
		}
		r.stop(t)
		for _, c := range w.chain() {
			if c.Resync {
				t.Errorf("cut %d is a resynchronization", c.N)
			}
		}
		x.golden(t, "away.txt")
		w.sameNoise("vda", 0, 3<<20, 7<<20)
	})
}

// Failing attempts and the schedule outlive a restart.
func TestRetryOutlivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 64, 1<<20)
		w.open(1, cut.Ref{})
		var at []time.Duration
		start := time.Now()
		w.putErr = func(string) error {
			at = append(at, time.Since(start).Round(time.Minute))
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "away")
		}
		a := w.assignment()
		r := w.start(a, nil)
		time.Sleep(5 * time.Minute)
		r.stop(t)
		r = w.start(a, nil)
		time.Sleep(6 * time.Minute)
		if s := r.Status(); s.Attempt < 4 || s.Class != "recoverable" || !s.RetryAt.After(time.Now()) {
			t.Errorf("attempt %d, class %q, next %v", s.Attempt, s.Class, s.RetryAt)
		}
		r.stop(t)
		want := []time.Duration{0, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute}
		if !slices.Equal(at, want) {
			t.Errorf("attempts at %v", at)
		}
	})
}

// A data key is used for a day and forgotten when its day is over.
func TestKeyRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 65, 1<<20)
		w.open(1, cut.Ref{})
		a := w.assignment()
		a.CopyFrequency = 6 * time.Hour
		r := w.start(a, w.lean)
		epochs := map[uint32]bool{}
		for range 16 {
			time.Sleep(6*time.Hour + time.Minute)
			epochs[r.Status().Epoch] = true
			keys, err := filepath.Glob(w.dir + "/key-*")
			if err != nil {
				t.Fatal(err)
			}
			secret := 0
			for _, k := range keys {
				if !strings.HasSuffix(k, ".wrap") {
					secret++
				}
			}
			if secret > 1 {
				t.Errorf("keys %v", keys)
			}
		}
		if len(epochs) < 4 {
			t.Errorf("epochs %v in four days", epochs)
		}
		// The VM is off: there is nothing to seal, and the key goes all the same.
		w.vm.PowerOff()
		time.Sleep(31 * time.Hour)
		if keys, _ := filepath.Glob(w.dir + "/key-*[0-9]"); len(keys) != 0 {
			t.Errorf("a key outlived its day: %v", keys)
		}
		r.stop(t)
		if n, _ := w.stored("/key/"); n != int64(len(epochs)) && n != int64(len(epochs))+1 {
			t.Errorf("%d sealed keys for %v", n, epochs)
		}
	})
}

// With all turns for reading whole disks taken deltas go on, and what was
// waiting goes on when a turn is free.
func TestTurns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 66, 1<<20)
	w.open(1, cut.Ref{})
	turns := &pace.Turns{}
	release, err := turns.Acquire(t.Context(), pace.Request{Kind: pace.Scan, Owner: "other"})
	if err != nil {
		t.Fatal(err)
	}
	w.write(10)
	a := w.assignment()
	a.CopyFrequency = 50 * time.Millisecond
	r := w.start(a, func(c *capture.Config) { c.Turns = turns })
	time.Sleep(200 * time.Millisecond)
	if s := r.Status(); !s.Committed.IsZero() {
		t.Error("it did not wait for its turn")
	}
	release()
	waitFor(t, r, func(s capture.Status) bool { return !s.Committed.IsZero() })
	release, err = turns.Acquire(t.Context(), pace.Request{Kind: pace.Scan, Owner: "other"})
	if err != nil {
		t.Fatal(err)
	}
	a.ResyncRequest = "1"
	r.Assign(a)
	n := r.Status().Cycles
	waitFor(t, r, func(s capture.Status) bool { return s.Cycles > n+3 && s.ResyncReason == dr.CodeResyncRequested })
	release()
	waitFor(t, r, func(s capture.Status) bool { return s.Resync == "" && s.Cycles > n+3 })
	r.stop(t)
	if x := turns.Snapshot(); len(x) != 0 {
		t.Errorf("turns are held after the end: %+v", x)
	}
	w.check()
}

// Application-consistent cuts come at their own frequency, and say what was achieved.
func TestAppConsistency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 67, 1<<20)
		w.open(1, cut.Ref{})
		w.vm.SetAgent(dr.AppConsistent, false)
		a := w.assignment()
		a.CopyFrequency, a.AppFrequency = 10*time.Minute, time.Hour
		r := w.start(a, w.lean)
		time.Sleep(3*time.Hour + 5*time.Minute)
		app := 0
		for _, c := range w.chain() {
			if c.Consistency == dr.AppConsistent {
				app++
			}
		}
		if app < 3 || app > 4 {
			t.Errorf("%d application-consistent cuts in three hours", app)
		}
		w.vm.SetAgent("", false)
		time.Sleep(time.Hour)
		if s := r.Status(); s.ConsistencyNote == "" || s.Consistency != dr.CrashConsistent {
			t.Errorf("consistency %q, note %q", s.Consistency, s.ConsistencyNote)
		}
		r.stop(t)
	})
}

// A sparse disk of 4 TiB costs neither memory nor objects.
func TestSparseGiant(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	const size = 4 << 40
	w := newWorld(t, 68, size)
	w.open(1, cut.Ref{})
	offs := []int64{0, 1 << 40, size - 64<<10}
	for _, off := range offs {
		w.noise("vda", off, 64<<10)
	}
	runtime.GC()
	var base, now runtime.MemStats
	runtime.ReadMemStats(&base)
	var peak atomic.Uint64
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				runtime.ReadMemStats(&now)
				peak.Store(max(peak.Load(), now.HeapInuse))
			}
		}
	}()
	a := w.assignment()
	r := w.start(a, w.lean)
	w.drain(r)
	w.noise("vda", 2<<40, 64<<10)
	w.vm.LoseTracking()
	w.drain(r)
	r.stop(t)
	close(stop)
	<-done
	if used := int64(peak.Load()) - int64(base.HeapInuse); used > 128<<20 {
		t.Errorf("%d MiB were in use", used>>20)
	} else {
		t.Logf("%d MiB were in use", used>>20)
	}
	if n, _ := w.stored("/img/"); n != int64(len(offs)) {
		t.Errorf("%d tile images", n)
	}
	w.sameNoise("vda", append(offs, 2<<40)...)
}

// Disks are sent one by one, or together.
func TestInitialOrder(t *testing.T) {
	t.Parallel()
	for _, serial := range []bool{true, false} {
		w := newWorld(t, 69, 3*cut.TileSize, 3*cut.TileSize)
		w.open(1, cut.Ref{})
		for i := range int64(3) {
			w.noise("vda", i*cut.TileSize, 4096)
			w.noise("vdb", i*cut.TileSize, 4096)
		}
		// The first two tiles wait for each other on their way, so that neither overtakes.
		var order []uint16
		both := make(chan struct{})
		w.putErr = func(name string) error {
			o, err := cut.ParseObject(name)
			if err != nil || o.Class != cut.ClassTile {
				return nil
			}
			w.mu.Lock()
			order = append(order, o.Disk)
			n := len(order)
			w.mu.Unlock()
			if n == 2 {
				close(both)
			}
			select {
			case <-both:
			case <-time.After(30 * time.Second):
			}
			return nil
		}
		a := w.assignment()
		a.InitialSerial = serial
		r := w.start(a, w.lean)
		w.drain(r)
		r.stop(t)
		w.mu.Lock()
		if len(order) != 6 || serial != (order[0]+order[1] == 0) {
			t.Errorf("serial %v: the tiles' disks in order are %v", serial, order)
		}
		w.mu.Unlock()
	}
}

// Cutting into a spool that has room is not sending: the cycles are missed while
// the store is away, not only when it is back.
func TestMissedWhileTheSpoolHasRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 64, 4<<20)
		w.open(1, cut.Ref{})
		w.noise("vda", 0, 1<<20)
		a := w.assignment()
		a.CopyFrequency = 5 * time.Minute
		r := w.start(a, w.lean)
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.putErr = func(string) error {
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "away")
		}
		w.mu.Unlock()
		for i := range int64(12) {
			w.noise("vda", i%4<<20, 4096)
			time.Sleep(5 * time.Minute)
		}
		if s := r.Status(); s.Missed < 9 || s.Missed > 12 {
			t.Errorf("after an hour without a store %d cycles of 12 count as missed", s.Missed)
		}
		r.stop(t)
	})
}

// A killed process leaves tiles that it was writing; the next one clears them.
func TestTilesOfADeadProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 65, 1<<20)
	w.open(1, cut.Ref{})
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(w.dir, "tile-123.tmp")
	if err := os.WriteFile(left, []byte("half a tile"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.start(w.assignment(), nil)
	w.drain(r)
	r.stop(t)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dead process's tile stays: %v", err)
	}
}
