package store

import (
	"math/rand/v2"
	"testing"
)

// flatten writes a run's origins into a byte-per-unit oracle.
func flatten(run []record, size int64) []record {
	out := make([]record, size)
	for _, r := range run {
		for i := range r.len {
			out[r.off+i] = r.from(r.off + i).until(r.off + i + 1)
		}
	}
	return out
}

func randomRun(rng *rand.Rand, seg int32, size int64) []record {
	var run []record
	for off := rng.Int64N(8); off < size; {
		n := min(1+rng.Int64N(9), size-off)
		r := record{off: off, len: n, seg: seg, frame: uint32(rng.IntN(5)), frameOff: uint32(rng.IntN(100))}
		if rng.IntN(4) == 0 {
			r = record{off: off, len: n, seg: segZero}
		}
		run = append(run, r)
		off += n + rng.Int64N(12)
	}
	return run
}

func TestOverlayAgainstOracle(t *testing.T) {
	t.Parallel()
	const size = 96
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		runs := make([][]record, 1+rng.IntN(7))
		want := make([]record, size)
		for i := range runs {
			runs[i] = randomRun(rng, int32(i), size)
			if rng.IntN(5) == 0 { // a tile image hides what is below it
				off, end := int64(16), int64(48)
				for j := range i {
					runs[j] = drop(runs[j], off, end)
				}
				for p := off; p < end; p++ {
					want[p] = record{}
				}
			}
			for p, r := range flatten(runs[i], size) {
				if r.len > 0 {
					want[p] = r
				}
			}
		}
		got := overlayAll(runs)
		if overlaps(got) {
			t.Fatalf("seed %d: the result overlaps", seed)
		}
		for p, r := range flatten(got, size) {
			if r != want[p] {
				t.Fatalf("seed %d: at %d got %+v, want %+v", seed, p, r, want[p])
			}
		}
	}
}

func TestNormaliseLaterWins(t *testing.T) {
	t.Parallel()
	run := normalise([]record{{off: 8, len: 8, seg: 1, frame: 1}, {off: 0, len: 12, seg: 1, frame: 2}})
	if len(run) != 2 || run[0] != (record{off: 0, len: 12, seg: 1, frame: 2}) || run[1] != (record{off: 12, len: 4, seg: 1, frame: 1, frameOff: 4}) {
		t.Fatalf("got %+v", run)
	}
}

func BenchmarkOverlay(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	base := randomRun(rng, 0, 16<<20)
	top := randomRun(rng, 1, 1<<20)
	b.ReportMetric(float64(len(base)), "records")
	for b.Loop() {
		overlay(base, top)
	}
	b.ReportMetric(float64(len(base))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrec/s")
}
