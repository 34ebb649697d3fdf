package extent

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// disk is the size of the oracle: one bool per byte.
const disk = 512

type bitmap [disk]bool

func (b *bitmap) add(list []Extent) {
	for _, e := range list {
		for i := max(e.Off, 0); i < min(e.End(), disk); i++ {
			b[i] = true
		}
	}
}

func bitsOf(list []Extent) *bitmap {
	b := new(bitmap)
	b.add(list)
	return b
}

func combine(a, b *bitmap, f func(x, y bool) bool) *bitmap {
	out := new(bitmap)
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}

func (b *bitmap) count() (n int64) {
	for _, x := range b {
		if x {
			n++
		}
	}
	return n
}

func randomList(rng *rand.Rand) []Extent {
	list := make([]Extent, rng.IntN(12))
	for i := range list {
		off := rng.Int64N(disk)
		list[i] = Extent{off, rng.Int64N(min(disk-off, 1+rng.Int64N(80)) + 1)}
	}
	return list
}

// check compares a result with the oracle and checks the form of the set.
func check(t *testing.T, what string, got Set, want *bitmap) {
	t.Helper()
	if !got.IsNormal() {
		t.Fatalf("%s: %v is not normalised", what, got)
	}
	if *bitsOf(got) != *want {
		t.Fatalf("%s: %v covers other bytes than the oracle", what, got)
	}
	if got.Len() != want.count() {
		t.Fatalf("%s: Len = %d, oracle %d", what, got.Len(), want.count())
	}
}

func checkAll(t *testing.T, la, lb []Extent, window Extent, unit int64) {
	t.Helper()
	ca, cb := slices.Clone(la), slices.Clone(lb)
	a, b := Normalize(la), Normalize(lb)
	ba, bb := bitsOf(la), bitsOf(lb)
	check(t, "Normalize a", a, ba)
	check(t, "Normalize b", b, bb)
	sa, sb := slices.Clone(a), slices.Clone(b)

	check(t, "Union", a.Union(b), combine(ba, bb, func(x, y bool) bool { return x || y }))
	check(t, "Subtract", a.Subtract(b), combine(ba, bb, func(x, y bool) bool { return x && !y }))
	check(t, "Intersect", a.Intersect(b), combine(ba, bb, func(x, y bool) bool { return x && y }))
	bw := bitsOf([]Extent{window})
	inside := combine(ba, bw, func(x, y bool) bool { return x && y })
	check(t, "Clip", a.Clip(window), inside)
	if got, want := a.Contains(window), inside.count() == window.Len; got != want {
		t.Fatalf("%v.Contains(%v) = %v, oracle %v", a, window, got, want)
	}
	if got, want := a.Overlaps(window), inside.count() > 0; got != want {
		t.Fatalf("%v.Overlaps(%v) = %v, oracle %v", a, window, got, want)
	}

	size := window.End()
	aligned := new(bitmap)
	for i := range size {
		if ba[i] {
			lo := i - i%unit
			aligned.add([]Extent{{lo, min(unit, size-lo)}})
		}
	}
	check(t, "AlignOut", a.AlignOut(unit, size), aligned)

	for name, pieces := range map[string][]Extent{"Split": a.Split(unit), "SplitAligned": a.SplitAligned(unit)} {
		var last int64
		for _, p := range pieces {
			if !p.Valid() || p.Len > unit || p.Off < last {
				t.Fatalf("%s(%d): bad piece %v in %v", name, unit, p, pieces)
			}
			if name == "SplitAligned" && p.Off/unit != (p.End()-1)/unit {
				t.Fatalf("%s(%d): piece %v crosses a border", name, unit, p)
			}
			last = p.End()
		}
		check(t, name, Normalize(pieces), ba)
	}
	if !slices.Equal(la, ca) || !slices.Equal(lb, cb) || !slices.Equal(a, sa) || !slices.Equal(b, sb) {
		t.Fatal("an operation wrote to its operands")
	}
	if !a.Equal(sa) || a.Equal(b) != (*ba == *bb) {
		t.Fatal("Equal disagrees with the oracle")
	}
}

func TestAgainstBitmap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		off := rng.Int64N(disk)
		checkAll(t, randomList(rng), randomList(rng), Extent{off, rng.Int64N(disk-off) + 1}, rng.Int64N(70)+1)
	}
}

func FuzzAgainstBitmap(f *testing.F) {
	f.Add([]byte{0, 10, 10, 5, 3, 4}, []byte{2, 200}, uint16(3), uint16(60), uint8(16))
	f.Add([]byte{}, []byte{255, 255}, uint16(0), uint16(511), uint8(1))
	f.Fuzz(func(t *testing.T, x, y []byte, off, length uint16, unit uint8) {
		o := int64(off) % disk
		n := int64(length)%(disk-o) + 1
		checkAll(t, fromBytes(x), fromBytes(y), Extent{o, n}, int64(unit)+1)
	})
}

func fromBytes(b []byte) []Extent {
	var list []Extent
	for i := 0; i+1 < len(b) && len(list) < 64; i += 2 {
		list = append(list, Extent{int64(b[i]), int64(b[i+1])})
	}
	return list
}

func TestNormalizeExtremes(t *testing.T) {
	t.Parallel()
	const top = math.MaxInt64
	tests := []struct {
		name string
		in   []Extent
		want Set
	}{
		{"nil", nil, nil},
		{"empty extents", []Extent{{5, 0}, {9, -3}}, nil},
		{"touching", []Extent{{4, 4}, {0, 4}}, Set{{0, 8}}},
		{"same start", []Extent{{4, 1}, {4, 9}, {4, 2}}, Set{{4, 9}}},
		{"below zero", []Extent{{-10, 15}}, Set{{0, 5}}},
		{"wholly below zero", []Extent{{-10, 10}, {math.MinInt64, top}}, nil},
		{"end overflows", []Extent{{top - 3, 100}, {1, top}}, Set{{1, top - 1}}},
		{"whole line", []Extent{{0, top}}, Set{{0, top}}},
		{"at the very end", []Extent{{top, 5}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Normalize(tt.in)
			if !got.Equal(tt.want) || !got.IsNormal() {
				t.Errorf("Normalize(%v) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestLargeOffsets(t *testing.T) {
	t.Parallel()
	const top = math.MaxInt64
	s := Set{{0, 1}, {top - 10, 10}}
	if got, want := s.AlignOut(4096, top), (Set{{0, 4096}, {top - 4095, 4095}}); !got.Equal(want) {
		t.Errorf("AlignOut = %v, want %v", got, want)
	}
	if got, want := s.AlignOut(top, top), (Set{{0, top}}); !got.Equal(want) {
		t.Errorf("AlignOut by the whole line = %v, want %v", got, want)
	}
	if got := s.AlignOut(4096, 0); len(got) != 0 {
		t.Errorf("AlignOut on an empty disk = %v", got)
	}
	if s.Contains(Extent{top - 1, 5}) || !s.Contains(Extent{top - 1, 1}) || s.Contains(Extent{-1, 2}) || !s.Contains(Extent{77, 0}) {
		t.Error("Contains is wrong at the borders")
	}
	if got := s.Clip(Extent{-5, top}); !got.Equal(Set{{0, 1}, {top - 10, 5}}) {
		t.Errorf("Clip = %v", got)
	}
	if got := (Set{{0, top}}).Subtract(s); !got.Equal(Set{{1, top - 11}}) {
		t.Errorf("Subtract = %v", got)
	}
}

func TestPanics(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(){
		"AlignOut":     func() { Set{{0, 1}}.AlignOut(0, 10) },
		"Split":        func() { Set{{0, 1}}.Split(0) },
		"SplitAligned": func() { Set{{0, 1}}.SplitAligned(-1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func ExampleSet_AlignOut() {
	dirty := Normalize([]Extent{{5000, 100}, {4096, 10}, {20000, 1}})
	fmt.Println(dirty.AlignOut(4096, 20001))
	// Output: [[4096,+4096) [16384,+3617)]
}

// BenchmarkSet measures the merges on two sets of a million extents each.
func BenchmarkSet(b *testing.B) {
	const n = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() Set {
		list := make([]Extent, n)
		for i := range list {
			list[i] = Extent{int64(i)*65536 + rng.Int64N(8)*4096, 4096 * (1 + rng.Int64N(8))}
		}
		return Normalize(list)
	}
	s, t := random(), random()
	shuffled := slices.Clone(s)
	rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for name, f := range map[string]func(){
		"Union":             func() { s.Union(t) },
		"Subtract":          func() { s.Subtract(t) },
		"Intersect":         func() { s.Intersect(t) },
		"AlignOut":          func() { s.AlignOut(65536, n*65536) },
		"NormalizeSorted":   func() { Normalize(s) },
		"NormalizeShuffled": func() { Normalize(shuffled) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/extent")
		})
	}
}
