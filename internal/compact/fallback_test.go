package compact_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/mem"
)

// A damaged run or checkpoint costs nothing while the cuts that it stands for
// are still there: readers go by them, and scrubbing says what is damaged.
func TestDamagedRunFallsBackToItsCuts(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]cut.Class{"run": cut.ClassRun, "checkpoint": cut.ClassMap} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(8, 8))
			r := newRig(t, mem.New(), 1<<20)
			r.cfg.Grace, r.cfg.LeftoverGrace = time.Hour, time.Hour
			r.rules.Fine = 8 * time.Second
			r.Base()
			for range 16 {
				scribble(r.Replica, rng, 3)
				r.Cut()
			}
			r.maintain(t)
			before := r.check(t, "maintained")
			damaged := 0
			for _, key := range r.Keys() {
				if o, err := cut.ParseObject(key); err == nil && o.Class == class {
					r.Replace(key, func(b []byte) []byte { b[len(b)/2] ^= 1; b[len(b)-200] ^= 1; return b })
					damaged++
				}
			}
			if damaged == 0 {
				t.Fatal("nothing was damaged")
			}
			if after := r.check(t, "damaged"); after < before {
				t.Errorf("%d points of %d are left", after, before)
			}
		})
	}
}

// Without the cuts a damaged run refuses the points that need it, by its own
// name, and nothing else.
func TestDamagedRunWithoutItsCuts(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(9, 9))
	r := newRig(t, mem.New(), 1<<20)
	r.rules.Fine = 8 * time.Second
	r.Base()
	for range 16 {
		scribble(r.Replica, rng, 3)
		r.Cut()
	}
	for range 4 {
		r.maintain(t)
	}
	for _, key := range r.Keys() {
		if o, err := cut.ParseObject(key); err == nil && (o.Class == cut.ClassRun || o.Class == cut.ClassMap) {
			r.Replace(key, func(b []byte) []byte { b[len(b)-200] ^= 1; return b })
		}
	}
	chain, err := r.Store().Chain(t.Context(), r.Machine)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain.Points) != 0 || len(chain.Refused) == 0 || dr.CodeOf(chain.Refused[0].Err) != dr.CodeObjectCorrupt || !chain.Refused[0].IsRun() {
		t.Errorf("%d points, refused %v", len(chain.Points), chain.Refused)
	}
}
