package compact_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

func scribble(r *storetest.Replica, rng *rand.Rand, writes int) {
	for range writes {
		d := rng.IntN(len(r.Disks))
		units := (r.Disks[d].Size + cut.Unit - 1) / cut.Unit
		first := rng.Int64N(units)
		n := min((1+rng.Int64N(40))*cut.Unit, r.Disks[d].Size-first*cut.Unit)
		p := make([]byte, n)
		switch rng.IntN(4) {
		case 0: // zeroes
		case 1:
			for i := range p {
				p[i] = byte(i / 100)
			}
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
		r.Write(d, first*cut.Unit, p)
	}
}

// rig is a replica with a compactor whose grace has always passed.
type rig struct {
	*storetest.Replica
	cfg   compact.Config
	rules compact.Rules
}

func newRig(t *testing.T, b objstore.Bucket, sizes ...int64) *rig {
	r := &rig{Replica: storetest.New(t, b, sizes...)}
	r.cfg = compact.Config{Bucket: r.Bucket, Store: r.Store(), Keys: store.NewKeyring(r.Bucket, r.Private), Compactor: "one", Grace: 1, LeftoverGrace: 1, BaseEvery: 2, MapEvery: 5,
		SmallObject: 40 << 10, SegmentSize: 200 << 10, Now: func() time.Time { return time.Now().AddDate(100, 0, 0) }}
	return r
}

func (r *rig) maintain(t *testing.T) compact.Report {
	t.Helper()
	rep, err := compact.New(r.cfg).Maintain(t.Context(), r.Machine, r.rules)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// check compares every retained point with the oracle and returns how many there are.
func (r *rig) check(t *testing.T, what string) int {
	t.Helper()
	s := r.Store()
	chain, err := s.Chain(t.Context(), r.Machine)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if len(chain.Refused) > 0 {
		t.Fatalf("%s: refused %v", what, chain.Refused)
	}
	oracle := map[string]storetest.Point{}
	var all []dr.RecoveryPoint
	for _, p := range r.Points {
		oracle[dr.PointName(p.Ref.Gen, p.Ref.N)] = p
		all = append(all, dr.RecoveryPoint{Gen: p.Ref.Gen, N: p.Ref.N, Time: time.Unix(1e9+int64(p.Ref.N), 0).UTC(), Consistency: dr.CrashConsistent})
	}
	listed := map[string]bool{}
	for _, c := range chain.Points {
		name := dr.PointName(c.Gen, c.N)
		listed[name] = true
		p, ok := oracle[name]
		if !ok {
			t.Fatalf("%s: point %s is listed and was never made", what, name)
		}
		if c.Ref != p.Ref {
			t.Fatalf("%s: point %s has hash %s, want %s", what, name, c.Ref.Hash, p.Ref.Hash)
		}
		if err := r.Compare(t.Context(), s, p); err != nil {
			t.Fatalf("%s: point %s: %v", what, name, err)
		}
	}
	for i, why := range r.rules.Keep(all, time.Now()) {
		if why != "" && !listed[all[i].Name()] {
			t.Fatalf("%s: point %s is gone and should be kept (%s)", what, all[i].Name(), why)
		}
	}
	return len(chain.Points)
}

var errKilled = errors.New("killed")

// Promise: a retained point has the same bytes before, during and after any
// number of passes, wherever they are killed.
func TestRetainedPointsNeverChange(t *testing.T) {
	t.Parallel()
	seeds := uint64(8)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newRig(t, mem.New(), 1<<20, 300<<10+512)
			r.PartMax = []int{0, 64 << 10, 300 << 10}[seed%3]
			r.rules = compact.Rules{Fine: time.Duration(3+rng.IntN(12)) * time.Second, Held: map[string]string{}}
			scribble(r.Replica, rng, 20)
			r.Base()
			killed := map[string]int{}
			folded, deleted := 0, 0
			for i := range 70 {
				scribble(r.Replica, rng, rng.IntN(6))
				p := r.Cut()
				switch rng.IntN(12) {
				case 0:
					r.rules.Held[dr.PointName(p.Ref.Gen, p.Ref.N)] = "held"
				case 1:
					clear(r.rules.Held)
				case 2:
					r.Takeover(-1)
				}
				if rng.IntN(3) == 0 {
					continue
				}
				kill := rng.IntN(14)
				r.cfg.Step = func(label string) error {
					if kill--; kill == 0 {
						killed[label]++
						return errKilled
					}
					return nil
				}
				rep, err := compact.New(r.cfg).Maintain(t.Context(), r.Machine, r.rules)
				if err != nil && !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				folded += rep.Tiles
				deleted += rep.Deleted
				r.check(t, fmt.Sprintf("after cut %d", i))
			}
			r.cfg.Step = nil
			clear(r.rules.Held)
			for range 4 {
				r.maintain(t)
			}
			if n := r.check(t, "at the end"); n > int(r.rules.Fine/time.Second)+3 {
				t.Errorf("%d points are left of a retention of %v", n, r.rules.Fine)
			}
			if folded == 0 || deleted == 0 || len(killed) < 3 {
				t.Errorf("folded %d tiles, deleted %d objects, killed at %v: the attack did not happen", folded, deleted, killed)
			}
		})
	}
}

// Deleting waits for the grace, by the store's clock.
func TestGrace(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	r := newRig(t, mem.New(), 1<<20)
	r.cfg.Grace = time.Hour
	r.Base()
	for range 12 {
		scribble(r.Replica, rng, 3)
		r.Cut()
	}
	before := r.Keys()
	for range 3 {
		r.maintain(t)
	}
	have := map[string]bool{}
	for _, k := range r.Keys() {
		have[k] = true
	}
	for _, k := range before {
		if !have[k] {
			t.Errorf("%s was deleted within its grace", k)
		}
	}
	if n := r.check(t, "within the grace"); n != 1 {
		t.Errorf("%d points are listed, want the newest only", n)
	}
	r.cfg.Grace = 1
	if rep := r.maintain(t); rep.Deleted == 0 {
		t.Errorf("nothing was deleted after the grace: %+v", rep)
	}
	r.check(t, "after the grace")
}

func TestLeaseHoldsWhatAReaderNeeds(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(2, 1))
	r := newRig(t, mem.New(), 1<<20)
	r.cfg.Now = time.Now
	r.Base()
	for range 8 {
		scribble(r.Replica, rng, 3)
		r.Cut()
	}
	at := r.Points[4]
	v, err := r.Store().OpenPoint(t.Context(), r.Machine, at.Ref.Gen, at.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := compact.PutLease(t.Context(), r.Bucket, cut.Lease{Machine: r.Machine, UID: cut.NewUID(), Gen: at.Ref.Gen, N: at.Ref.N, Holder: "test", Time: time.Now(), Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		r.maintain(t)
	}
	got := make([]byte, 1<<20)
	if err := v.ReadAt(t.Context(), "vda", got, 0); err != nil {
		t.Fatalf("a leased point can't be read any more: %v", err)
	}
	if string(got) != string(at.Flat[0]) {
		t.Error("a leased point reads other bytes")
	}
}

func TestTwoCompactors(t *testing.T) {
	t.Parallel()
	r := newRig(t, mem.New(), 1<<20)
	r.cfg.Now = time.Now
	r.Base()
	for range 6 {
		r.Cut()
	}
	r.maintain(t)
	other := r.cfg
	other.Compactor = "two"
	if _, err := compact.New(other).Maintain(t.Context(), r.Machine, r.rules); dr.CodeOf(err) != dr.CodeCompactorConflict {
		t.Fatalf("a second compactor got %v", err)
	}
	r.Cut()
	// Both at once, the first past its look at the plans: the number decides.
	mine := r.cfg
	mine.Step = func(label string) error {
		if label != "plan" {
			return nil
		}
		other.TakeOver = 1
		_, err := compact.New(other).Maintain(context.Background(), r.Machine, r.rules)
		return err
	}
	if _, err := compact.New(mine).Maintain(t.Context(), r.Machine, r.rules); dr.CodeOf(err) != dr.CodeCompactorConflict {
		t.Fatalf("two plans of one number: %v", err)
	}
	r.check(t, "after both")
}

// Nothing is deleted while the history has damage.
func TestDamageStopsDeleting(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 1))
	r := newRig(t, mem.New(), 1<<20)
	r.rules.Fine = 4 * time.Second
	r.Base()
	for range 12 {
		scribble(r.Replica, rng, 3)
		r.Cut()
	}
	r.maintain(t)
	p := r.Points[len(r.Points)-2]
	r.Replace(cut.CutObject(r.Machine, p.Ref.Gen, p.Ref.N), func(b []byte) []byte { b[len(b)-200] ^= 1; return b })
	for range 3 {
		rep := r.maintain(t)
		if rep.Deleted != 0 || len(rep.Refused) == 0 {
			t.Fatalf("beside damage %d objects were deleted, refused %v", rep.Deleted, rep.Refused)
		}
	}
}
