package compact_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// The long run: go test ./internal/compact -run TestOracle -oracle.ops 1000000 -timeout 12h
// A failure prints its seed; -oracle.seed repeats it alone.
var (
	oracleOps  = flag.Int("oracle.ops", 6000, "operations of TestOracle: writes, cuts, reads and maintenance steps")
	oracleSeed = flag.Int64("oracle.seed", -1, "only this seed")
)

// TestOracle attacks everything at once: random writes, disks that come, go and
// grow, takeovers that leave fenced cuts behind, lost and failed answers of the store,
// passes killed at any step, compactors that see each other, clocks that lie,
// and rewriting under all kinds of settings. After each round every listed point
// equals its flat copy and every point that the rules keep is listed.
func TestOracle(t *testing.T) {
	t.Parallel()
	first, rounds := uint64(0), *oracleOps/400+1
	if testing.Short() {
		rounds = min(rounds, 2) // under the race detector; all of them run without
	}
	if *oracleSeed >= 0 {
		first, rounds = uint64(*oracleSeed), 1
	}
	total := map[string]int{}
	for seed := first; seed < first+uint64(rounds); seed++ {
		o := newOracle(t, seed)
		for o.ops < 400 {
			o.round()
		}
		o.settle()
		for k, v := range o.saw {
			total[k] += v
		}
		total["operations"] += o.ops
		if t.Failed() {
			return
		}
	}
	t.Logf("%v", total)
	for _, must := range []string{"killed", "answer lost", "call failed", "run", "tile", "deleted", "takeover", "disk added", "disk removed", "disk grown", "conflict", "clock"} {
		if total[must] == 0 && *oracleSeed < 0 && !testing.Short() {
			t.Errorf("the attack %q never happened", must)
		}
	}
}

type oracle struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	r     *storetest.Replica
	inner *mem.Bucket
	rules compact.Rules
	live  []storetest.Point // of the history, oldest first
	ops   int
	saw   map[string]int
}

func newOracle(t *testing.T, seed uint64) *oracle {
	o := &oracle{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 99)), inner: mem.New(), saw: map[string]int{}}
	sizes := []int64{cut.Unit * (50 + o.rng.Int64N(500))}
	if o.rng.IntN(2) == 0 {
		sizes = append(sizes, 1<<20+512*(1+o.rng.Int64N(7)))
	}
	o.r = storetest.New(t, o.inner, sizes...)
	o.r.PartMax = []int{0, 32 << 10, 200 << 10}[o.rng.IntN(3)]
	o.rules = compact.Rules{Fine: time.Duration(o.rng.IntN(12)) * time.Second, Held: map[string]string{}, MinLive: 0.1 + 0.9*o.rng.Float64(), Fold: 0.1 + 0.9*o.rng.Float64()}
	scribble(o.r, o.rng, 20)
	o.live = append(o.live, o.r.Base())
	return o
}

func (o *oracle) fail(format string, args ...any) {
	o.t.Helper()
	o.t.Fatalf("seed %d: %s (repeat with -oracle.seed %d)", o.seed, fmt.Sprintf(format, args...), o.seed)
}

func (o *oracle) round() {
	for range 1 + o.rng.IntN(6) {
		n := o.rng.IntN(5)
		scribble(o.r, o.rng, n)
		o.ops += n + 1
		o.shape()
		p := o.r.Cut()
		o.live = append(o.live, p)
		switch o.rng.IntN(15) {
		case 0:
			o.rules.Held[dr.PointName(p.Ref.Gen, p.Ref.N)] = "held"
		case 1:
			clear(o.rules.Held)
		case 2:
			o.takeover()
		}
	}
	o.maintain()
	o.check()
}

func (o *oracle) shape() {
	switch o.rng.IntN(25) {
	case 0:
		if len(o.r.Disks) < 4 {
			o.r.AddDisk(cut.Unit * (1 + o.rng.Int64N(200)))
			o.saw["disk added"]++
		}
	case 1:
		if len(o.r.Disks) > 1 {
			o.r.RemoveDisk(o.rng.IntN(len(o.r.Disks)))
			o.saw["disk removed"]++
		}
	case 2:
		i := o.rng.IntN(len(o.r.Disks))
		o.r.GrowDisk(i, (o.r.Disks[i].Size+cut.Unit*(1+o.rng.Int64N(40)))/512*512)
		o.saw["disk grown"]++
	}
}

// takeover goes on from the newest point or, as after a failover that was
// undone, from one before it; what came after is dead.
func (o *oracle) takeover() {
	back := o.rng.IntN(3)
	if s := o.chain().Points; back >= len(s) || s[len(s)-1-back].N != o.live[max(0, len(o.live)-1-back)].Ref.N {
		back = 0 // the point has expired
	}
	keep := o.live[:len(o.live)-back]
	at := slices.IndexFunc(o.r.Points, func(p storetest.Point) bool { return p.Ref == keep[len(keep)-1].Ref })
	o.r.Takeover(at)
	o.live = slices.Clone(keep)
	o.saw["takeover"]++
}

func (o *oracle) chain() *store.Chain {
	chain, err := o.r.Store().Chain(o.t.Context(), o.r.Machine)
	if err != nil {
		o.fail("%v", err)
	}
	if len(chain.Refused) > 0 {
		o.fail("refused: %v", chain.Refused)
	}
	return chain
}

// maintain makes a pass under attack, perhaps by another compactor.
func (o *oracle) maintain() {
	bucket := objstore.Bucket(o.inner)
	if o.rng.IntN(3) == 0 {
		f := fault.Fault{Op: []fault.Op{fault.Put, fault.Delete, fault.Get, fault.List, fault.Head}[o.rng.IntN(5)], Nth: 1 + o.rng.IntN(12), Kind: fault.ErrorBefore, More: o.rng.IntN(3)}
		if o.rng.IntN(2) == 0 && f.Op == fault.Put {
			f.Kind = fault.ErrorAfter
		}
		fb := fault.New(o.inner, f)
		defer func() {
			switch {
			case len(fb.Unfired()) > 0:
			case f.Kind == fault.ErrorAfter:
				o.saw["answer lost"]++
			default:
				o.saw["call failed"]++
			}
		}()
		bucket = fb
	}
	keys := store.NewKeyring(bucket, o.r.Private)
	cfg := compact.Config{Bucket: bucket, Store: store.New(store.Config{Bucket: bucket, Keys: keys}), Keys: keys, Compactor: "one", Grace: 1, LeftoverGrace: 1, TakeOver: time.Hour,
		BaseEvery: 1 + o.rng.IntN(6), MapEvery: 1 + o.rng.IntN(9), SmallObject: 1 + o.rng.Int64N(100<<10), SegmentSize: 4096 * (1 + o.rng.Int64N(100)),
		Now: func() time.Time { return time.Now().AddDate(50, 0, 0) }}
	if o.rng.IntN(8) == 0 {
		cfg.Now = func() time.Time { return time.Unix(1e9-1e6, 0) } // a clock that stands in the past: nobody takes over, nothing expires
		o.saw["clock"]++
	}
	if o.rng.IntN(4) == 0 {
		cfg.Compactor = "two"
	}
	if o.rng.IntN(2) == 0 {
		kill := 1 + o.rng.IntN(10)
		cfg.Step = func(string) error {
			if kill--; kill == 0 {
				o.saw["killed"]++
				return errKilled
			}
			return nil
		}
	}
	rep, err := compact.New(cfg).Maintain(o.t.Context(), o.r.Machine, o.rules)
	switch {
	case err == nil, errors.Is(err, errKilled), errors.Is(err, objstore.ErrUnavailable):
	case dr.CodeOf(err) == dr.CodeCompactorConflict:
		o.saw["conflict"]++
	default:
		o.fail("maintain: %v", err)
	}
	o.saw["run"] += rep.Runs
	o.saw["tile"] += rep.Tiles
	o.saw["deleted"] += rep.Deleted
	o.ops += 1 + rep.Runs + rep.Tiles + rep.Deleted
}

// check compares every listed point with its flat copy, and the list with the rules.
func (o *oracle) check() {
	chain := o.chain()
	s := o.r.Store()
	want := map[string]storetest.Point{}
	var all []dr.RecoveryPoint
	for _, p := range o.live {
		want[dr.PointName(p.Ref.Gen, p.Ref.N)] = p
		all = append(all, dr.RecoveryPoint{Gen: p.Ref.Gen, N: p.Ref.N, Time: time.Unix(1e9+int64(p.Ref.N), 0).UTC(), Consistency: dr.CrashConsistent})
	}
	listed := map[string]bool{}
	for _, c := range chain.Points {
		name := dr.PointName(c.Gen, c.N)
		p, ok := want[name]
		if !ok {
			o.fail("point %s is listed and is not of the history", name)
		}
		listed[name] = true
		if err := o.r.Compare(o.t.Context(), s, p); err != nil {
			o.fail("point %s: %v", name, err)
		}
		o.ops++
	}
	for i, why := range o.rules.Keep(all, time.Now()) {
		if why != "" && !listed[all[i].Name()] && o.rules.Held[all[i].Name()] == "" {
			o.fail("point %s is gone and should be kept (%s)", all[i].Name(), why)
		}
	}
	// What is listed is what may be asked for later.
	o.live = slices.DeleteFunc(o.live, func(p storetest.Point) bool { return !listed[dr.PointName(p.Ref.Gen, p.Ref.N)] })
}

// settle lets passes run undisturbed: the store ends up with what the rules want.
func (o *oracle) settle() {
	clear(o.rules.Held)
	keys := store.NewKeyring(o.inner, o.r.Private)
	c := compact.New(compact.Config{Bucket: o.inner, Store: store.New(store.Config{Bucket: o.inner, Keys: keys}), Keys: keys, Compactor: "last", Grace: 1, LeftoverGrace: 1, TakeOver: 1, BaseEvery: 1,
		Now: func() time.Time { return time.Now().AddDate(50, 0, 0) }})
	for range 5 {
		if _, err := c.Maintain(o.t.Context(), o.r.Machine, o.rules); err != nil {
			o.fail("settle: %v", err)
		}
	}
	o.check()
	report, err := o.r.Store().Verify(o.t.Context(), o.r.Machine, nil)
	if err != nil || !report.OK() {
		o.fail("verify: %v %+v", err, report)
	}
	if n, most := len(o.live), int(o.rules.Fine/time.Second)+2; n > most {
		o.fail("%d points are left, want at most %d", n, most)
	}
}
