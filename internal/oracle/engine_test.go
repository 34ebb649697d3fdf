package oracle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/compact"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
)

// removeFilters deletes what the agent remembers of the blocks that it sent.
func removeFilters(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), "filter") && !d.IsDir() {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

var (
	engineOps  = flag.Int("engine.ops", 4000, "operations of TestEngine")
	engineSeed = flag.Int64("engine.seed", -1, "only this seed")
)

// TestEngine runs a VM's whole life under attack and compares everything that is
// listed with the truth after each round.
func TestEngine(t *testing.T) {
	const each = 250
	first, lives := uint64(0), *engineOps/each+1
	if testing.Short() {
		lives = min(lives, 3)
	}
	if *engineSeed >= 0 {
		first, lives = uint64(*engineSeed), 1
	}
	total := map[string]int{}
	for seed := first; seed < first+uint64(lives); seed++ {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			for k, n := range life(t, seed, each) {
				total[k] += n
			}
		})
		if !ok {
			t.Fatalf("repeat with -engine.seed %d", seed)
		}
	}
	t.Logf("%v", total)
	for _, must := range []string{"agent killed", "answer lost", "put failed", "pass killed", "run", "deleted", "state lost", "tracking lost", "crash", "disk added", "disk removed", "disk grown", "disk replaced", "edited offline", "asked", "everything again", "digests"} {
		if total[must] == 0 && *engineSeed < 0 && !testing.Short() {
			t.Errorf("the attack %q never happened", must)
		}
	}
}

func life(t *testing.T, seed uint64, ops int) map[string]int {
	rng := rand.New(rand.NewPCG(seed, 7))
	sizes := []int64{4096 * (100 + rng.Int64N(400))}
	if rng.IntN(2) == 0 {
		sizes = append(sizes, 1<<20+512*(1+rng.Int64N(7)))
	}
	w := newWorld(t, rng, sizes...)
	w.write(30)
	done := 0
	for round := 0; done < ops; round++ {
		done += w.round(round)
	}
	return w.saw
}

func (w *world) round(round int) int {
	ops := 0
	w.attack()
	kill := -1
	if w.rng.IntN(3) == 0 {
		kill = 1 + w.rng.IntN(25)
	}
	w.attackSink()
	w.start(func(string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if kill--; kill == 0 {
			w.saw["agent killed"]++
			return errKilled
		}
		return nil
	})
	for range 1 + w.rng.IntN(4) {
		n := w.rng.IntN(8)
		w.write(n)
		ops += n + 1
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		err := w.settled(ctx)
		cancel()
		if err != nil {
			break // killed, or the sink is broken: the next process goes on
		}
	}
	if err := w.stop(); err != nil && !errors.Is(err, errKilled) {
		w.t.Fatalf("round %d: Run: %v", round, err)
	}
	w.mu.Lock()
	w.fault = nil
	w.mu.Unlock()
	if w.rng.IntN(2) == 0 {
		ops += w.maintain()
	}
	points := w.check(fmt.Sprintf("round %d", round))
	w.saw["points compared"] += points
	return ops + points
}

// settled drains, giving up early when the process has ended.
func (w *world) settled(ctx context.Context) error {
	dctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res := make(chan error, 1)
	go func() { res <- w.drain(dctx) }()
	for {
		select {
		case err := <-res:
			return err
		case err := <-w.done:
			w.done <- err
			cancel()
			<-res
			return errKilled
		case <-w.run.Changed():
			// What waits for a retry of minutes is given up here.
			if s := w.run.Status(); s.Err != nil && time.Until(s.RetryAt) > time.Second || s.Phase == capture.PhaseError {
				cancel()
				<-res
				return s.Err
			}
		}
	}
}

// attack changes the world while no agent runs.
func (w *world) attack() {
	ids := w.disks()
	d := ids[w.rng.IntN(len(ids))]
	fatal := func(err error) {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	// shape does what a host refuses while a dead agent's job is still open.
	shape := func(what string, err error) {
		switch {
		case err == nil:
			w.saw[what]++
		case dr.CodeOf(err) != dr.CodeBackupJobBusy && !strings.Contains(err.Error(), "busy"):
			w.t.Fatalf("%s: %v", what, err)
		}
	}
	switch w.rng.IntN(22) {
	case 0:
		w.vm.LoseTracking()
		w.saw["tracking lost"]++
	case 1:
		w.vm.Crash()
		w.vm.PowerOn()
		w.saw["crash"]++
	case 2: // the agent is installed again, or another host has the VM
		fatal(os.RemoveAll(w.dir))
		w.takeover("takeover")
		w.saw["state lost"]++
	case 3:
		w.takeover("takeover")
		w.saw["takeover"]++
	case 4:
		if len(ids) < 4 {
			shape("disk added", w.vm.AddDisk(sim.DiskSpec{ID: fmt.Sprintf("vd%c", 'e'+rune(w.saw["disk added"])), Size: 4096 * (1 + w.rng.Int64N(200))}))
		}
	case 5:
		if len(ids) > 1 {
			shape("disk removed", w.vm.RemoveDisk(d))
		}
	case 6:
		shape("disk grown", w.vm.Grow(d, (w.vm.Size(d)/4096+1+w.rng.Int64N(40))*4096))
	case 7:
		shape("disk replaced", w.vm.ReplaceDisk(d, w.vm.Size(d)))
	case 8:
		w.vm.PowerOff()
		fatal(w.vm.EditOffline(d, 0, []byte("edited offline")))
		w.vm.PowerOn()
		w.saw["edited offline"]++
	case 9:
		w.asked++
		w.saw["asked"]++
		if w.full = w.rng.IntN(2) == 0; w.full {
			w.saw["everything again"]++
		}
	case 10: // the local filters are lost
		fatal(removeFilters(w.dir))
		w.saw["filter lost"]++
	}
}

// attackSink makes puts fail, or lose their answers.
func (w *world) attackSink() {
	if w.rng.IntN(3) > 0 {
		return
	}
	nth := 1 + w.rng.IntN(6)
	lost := w.rng.IntN(2) == 0
	gone := dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "oracle.Put", "injected")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = func(string) (error, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if nth--; nth != 0 {
			return nil, nil
		}
		if lost {
			w.saw["answer lost"]++
			return nil, gone
		}
		w.saw["put failed"]++
		return gone, nil
	}
}

func (w *world) maintain() int {
	kill := -1
	if w.rng.IntN(2) == 0 {
		kill = 1 + w.rng.IntN(10)
	}
	rules := compact.Rules{Fine: time.Duration(w.rng.IntN(3)) * time.Second, MinLive: 0.1 + 0.9*w.rng.Float64(), Fold: 0.1 + 0.9*w.rng.Float64()}
	rep, err := w.compactor(func(string) error {
		if kill--; kill == 0 {
			w.saw["pass killed"]++
			return errKilled
		}
		return nil
	}).Maintain(context.Background(), w.machine, rules)
	if err != nil && !errors.Is(err, errKilled) {
		w.t.Fatalf("maintain: %v", err)
	}
	w.saw["run"] += rep.Runs
	w.saw["tile"] += rep.Tiles
	w.saw["deleted"] += rep.Deleted
	return 1 + rep.Runs + rep.Tiles + rep.Deleted
}
