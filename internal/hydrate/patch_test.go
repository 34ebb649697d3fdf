package hydrate

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"holdfast/internal/nbd"
)

// flat is a device in memory whose zero blocks of 8 bytes are holes.
type flat []byte

func (f flat) Size() int64 { return int64(len(f)) }
func (f flat) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, f[off:])
	return nil
}
func (f flat) Extents(_ context.Context, off, length int64) (out []nbd.AllocationExtent, err error) {
	for pos := off; pos < off+length; {
		n := min(8-pos%8, off+length-pos)
		zero := bytes.Count(f[pos:pos+n], []byte{0}) == int(n)
		out = append(out, nbd.AllocationExtent{Off: pos, Len: n, Hole: zero, Zero: zero})
		pos += n
	}
	return out, nil
}

// TestPatched compares with a plain copy that has the patches in it.
func TestPatched(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		base := make(flat, 200)
		for i := range base {
			if rng.IntN(3) == 0 && i/8%2 == 0 {
				base[i] = byte(rng.IntN(256))
			}
		}
		want := bytes.Clone(base)
		var patches []Patch
		for pos := int64(rng.IntN(40)); pos < 190; pos += int64(1 + rng.IntN(60)) {
			n := min(int64(1+rng.IntN(20)), 200-pos)
			p := Patch{Off: pos, Data: make([]byte, n)}
			for i := range p.Data {
				p.Data[i] = byte(1 + rng.IntN(255))
			}
			copy(want[pos:], p.Data)
			patches = append([]Patch{p}, patches...)
			pos += n
		}
		d := newPatched(base, patches)
		off := rng.Int64N(199)
		got := make([]byte, 1+rng.Int64N(200-off))
		if err := d.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, want[off:off+int64(len(got))]) {
			t.Fatalf("read at %d: %v\n got %v\nwant %v", off, err, got, want[off:off+int64(len(got))])
		}
		ext, err := d.Extents(t.Context(), off, int64(len(got)))
		if err != nil {
			t.Fatal(err)
		}
		pos := off
		for _, e := range ext {
			if e.Off != pos || e.Len <= 0 {
				t.Fatalf("extent %+v, want it to begin at %d", e, pos)
			}
			if e.Zero && bytes.Count(want[e.Off:e.Off+e.Len], []byte{0}) != int(e.Len) {
				t.Fatalf("%+v is said to be zero and is %v", e, want[e.Off:e.Off+e.Len])
			}
			pos += e.Len
		}
		if pos != off+int64(len(got)) {
			t.Fatalf("extents end at %d", pos)
		}
	}
	if d := newPatched(flat{1}, nil); d.Size() != 1 {
		t.Error("no patches")
	}
}
