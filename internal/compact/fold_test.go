package compact_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/objstore/mem"
)

// A disk of several tiles: only the tile whose changes pay is folded, and the
// images of others stay.
func TestFoldOnlyWhatPays(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("works on 130 MiB")
	}
	rng := rand.New(rand.NewPCG(5, 5))
	r := newRig(t, mem.New(), 2*cut.TileSize+3*cut.Unit)
	r.Write(0, 0, random(rng, 1<<20))
	r.Write(0, cut.TileSize, random(rng, 1<<20))
	r.Write(0, 2*cut.TileSize, random(rng, cut.Unit))
	r.Base()
	r.rules = compact.Rules{Fine: time.Second, Fold: 0.5}
	for i := range 5 {
		r.Write(0, cut.TileSize+int64(i)*8<<20, random(rng, 8<<20)) // 40 of 64 MiB of the second tile
		r.Write(0, int64(i)*100*cut.Unit, random(rng, 5*cut.Unit))
		r.Cut()
	}
	rep := r.maintain(t)
	if rep.Tiles != 1 || rep.Runs != 1 {
		t.Fatalf("folded %d tiles in %d runs, want one of each", rep.Tiles, rep.Runs)
	}
	if n := r.check(t, "folded"); n != 2 {
		t.Errorf("%d points, want 2", n)
	}
	for range 3 {
		r.maintain(t)
	}
	r.check(t, "after deleting")
}

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// The store does not grow without bound, and what maintenance writes is bounded by
// what guests write: the model of the design says 2.8 times in all.
func TestAmplification(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("writes 600 cuts")
	}
	rng := rand.New(rand.NewPCG(6, 6))
	r := newRig(t, mem.New(), 24<<20)
	r.cfg.BaseEvery, r.cfg.MapEvery, r.cfg.SegmentSize, r.cfg.SmallObject = 32, 64, 4<<20, 64<<10
	r.rules = compact.Rules{Fine: 48 * time.Second}
	r.Write(0, 0, random(rng, 12<<20))
	r.Base()
	var wrote, shipped, most int64
	for i := range 600 {
		for range 12 { // 90 % of the writes go to a tenth of the disk
			off := rng.Int64N(24 << 20 / cut.Unit)
			if rng.IntN(10) > 0 {
				off /= 10
			}
			r.Write(0, off*cut.Unit, random(rng, cut.Unit))
			shipped += cut.Unit
		}
		p := r.Cut()
		if i%8 == 7 {
			rep := r.maintain(t)
			wrote += rep.Wrote
			if i > 100 {
				most = max(most, rep.Bytes)
			}
		}
		r.Points = r.Points[max(0, len(r.Points)-60):]
		_ = p
	}
	amplification := 1 + float64(wrote)/float64(shipped)
	t.Logf("shipped %d KiB, rewrote %d KiB: amplification %.2f; store at most %.1f times the disk's data", shipped>>10, wrote>>10, amplification, float64(most)/(12<<20))
	if amplification > 2.8 {
		t.Errorf("write amplification %.2f, want at most 2.8", amplification)
	}
	if most > 5*(12<<20) {
		t.Errorf("the store grew to %d bytes", most)
	}
	s := r.Store()
	chain, err := s.Chain(t.Context(), r.Machine)
	if err != nil || len(chain.Refused) > 0 {
		t.Fatal(err, chain)
	}
	last := r.Points[len(r.Points)-1]
	if err := r.Compare(t.Context(), s, last); err != nil {
		t.Error(err)
	}
}
