package filter_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"holdfast/internal/capture/filter"
	"holdfast/internal/cut"
)

func open(t *testing.T, path string, size int64) *filter.Table {
	t.Helper()
	f, err := filter.Open(path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func load(t *testing.T, f *filter.Table, first int64, n int) []uint64 {
	t.Helper()
	out := make([]uint64, n)
	if err := f.Load(first, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "0")
	f := open(t, path, 1<<20)
	if got := load(t, f, 0, 3); !slices.Equal(got, []uint64{filter.Unknown, filter.Unknown, filter.Unknown}) {
		t.Errorf("a new table has %v", got)
	}
	if _, ok := f.At(); ok {
		t.Error("a new table has a position")
	}
	must(t, f.Reset(true))
	if got := load(t, f, 255, 1); got[0] != filter.Zero {
		t.Errorf("an empty replica's table has %v", got)
	}
	must(t, f.Begin())
	must(t, f.Store(3, []uint64{7, 8, filter.Zero}))
	ref := cut.Ref{Gen: 1, N: 2, Hash: cut.Hash{3}}
	must(t, f.Commit(ref))
	must(t, f.Close())
	f = open(t, path, 1<<20)
	if !f.Usable(ref) || f.Usable(cut.Ref{Gen: 1, N: 3}) {
		t.Error("the position is lost")
	}
	if got := load(t, f, 2, 4); !slices.Equal(got, []uint64{filter.Zero, 7, 8, filter.Zero}) {
		t.Errorf("got %v", got)
	}
	must(t, f.Begin())
	must(t, f.Close())
	if f = open(t, path, 1<<20); f.Usable(ref) {
		t.Error("a table that was being changed is at a position")
	}
}

func TestBlank(t *testing.T) {
	t.Parallel()
	f := open(t, filepath.Join(t.TempDir(), "0"), 1<<30)
	if f.Blank(0, 1000) {
		t.Error("an empty table that knows nothing is blank")
	}
	must(t, f.Reset(true))
	must(t, f.Store(100_000, []uint64{7}))
	if f.Blank(99_000, 2000) {
		t.Error("a stored entry is blank")
	}
	if runtime.GOOS == "linux" && !f.Blank(200_000, 60_000) {
		t.Error("what was never stored is not blank")
	}
}

// What was stored before a failed attempt must not stay behind zeroes.
func TestStaleEntriesAreZeroed(t *testing.T) {
	t.Parallel()
	f := open(t, filepath.Join(t.TempDir(), "0"), 1<<20)
	must(t, f.Reset(true))
	must(t, f.Store(1, []uint64{9}))
	f.Stale()
	must(t, f.StoreZero(0, 4))
	if got := load(t, f, 0, 4); !slices.Equal(got, []uint64{filter.Zero, filter.Zero, filter.Zero, filter.Zero}) {
		t.Errorf("got %v", got)
	}
}

func TestGrownAndDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "0")
	f := open(t, path, 10*cut.Unit+100)
	must(t, f.Store(9, []uint64{5, 6}))
	ref := cut.Ref{Gen: 1, N: 1, Hash: cut.Hash{1}}
	must(t, f.Commit(ref))
	must(t, f.Close())
	f = open(t, path, 20*cut.Unit)
	if got := load(t, f, 9, 3); !slices.Equal(got, []uint64{5, filter.Unknown, filter.Unknown}) || !f.Usable(ref) {
		t.Errorf("a grown table has %v", got)
	}
	must(t, f.Close())
	raw, err := os.ReadFile(path)
	must(t, err)
	for _, at := range []int{0, 8, 20, 30, 60, 101} {
		bad := slices.Clone(raw)
		bad[at] ^= 1
		must(t, os.WriteFile(path, bad, 0o600))
		f = open(t, path, 20*cut.Unit)
		if f.Usable(ref) || load(t, f, 9, 1)[0] != filter.Unknown {
			t.Errorf("damage at %d went unnoticed", at)
		}
		must(t, f.Close())
	}
}

func TestSum(t *testing.T) {
	t.Parallel()
	f := open(t, filepath.Join(t.TempDir(), "0"), 1<<20)
	g := open(t, filepath.Join(t.TempDir(), "0"), 1<<20)
	p := make([]byte, cut.Unit)
	if f.Sum(p) != filter.Zero || f.Sum(p[:17]) != filter.Zero {
		t.Error("zeroes are not zero")
	}
	seen := map[uint64]bool{}
	for i := range p {
		for _, bit := range []byte{1, 128} {
			p[i] = bit
			v := f.Sum(p)
			if v <= filter.Zero || seen[v] || f.Sum(p) != v || g.Sum(p) == v {
				t.Fatalf("byte %d has the entry %d", i, v)
			}
			seen[v] = true
			p[i] = 0
		}
	}
	if p[0] = 1; f.Sum(p[:100]) == f.Sum(p) {
		t.Error("the length does not count")
	}
}

func BenchmarkSum(b *testing.B) {
	f, err := filter.Open(filepath.Join(b.TempDir(), "0"), 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 256<<10)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	var sums []uint64
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		sums = f.Sums(sums[:0], p)
	}
}
