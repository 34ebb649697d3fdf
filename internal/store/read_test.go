package store_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store/storetest"
)

// Reading once is reading, whatever was read before and wherever a range begins.
func TestReadOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 21))
		r := storetest.New(t, mem.New(), 5<<20+512)
		scribble(r, rng, 60)
		r.Base()
		scribble(r, rng, 30)
		p := r.Cut()
		v, err := r.Store().OpenPoint(t.Context(), r.Machine, p.Ref.Gen, p.Ref.N)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		flat, id := p.Flat[0], v.Disks()[0].ID
		for range 300 {
			off := rng.Int64N(int64(len(flat)))
			if rng.IntN(2) == 0 {
				off &^= cut.Block - 1
			}
			got := make([]byte, 1+rng.Int64N(min(400<<10, int64(len(flat))-off)))
			read := v.ReadAt
			if rng.IntN(3) > 0 {
				read = v.ReadOnce
			}
			if err := read(t.Context(), id, got, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, flat[off:][:len(got)]) {
				t.Fatalf("seed %d: %d bytes at %d differ", seed, len(got), off)
			}
		}
	}
}
