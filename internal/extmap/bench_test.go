package extmap

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"testing"
)

// evenly yields n data extents of 4 to 32 KiB, one per 64 KiB of the disk.
func evenly(n int64, seg int32) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for i := range n {
			e := Extent{Off: i * MaxData, Len: (i*7%8 + 1) * Unit, Seg: seg + int32(i%1000), Frame: uint32(i / 1000), FrameOff: uint32(i % 8 * Unit)}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// scattered yields n extents of one unit, in order, at random places of a disk.
func scattered(n, disk int64, seg int32, seed uint64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		rng := rand.New(rand.NewPCG(seed, 1))
		step := disk / n &^ (Unit - 1)
		for i := range n {
			e := Extent{Off: i*step + rng.Int64N(step/Unit)*Unit, Len: Unit, Seg: seg, Frame: uint32(i / 16), FrameOff: uint32(i % 16 * Unit)}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func benchMap(b *testing.B, n int64, cfg Config) *Map {
	b.Helper()
	cfg.Dir = b.TempDir()
	bld, err := NewBuilder(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer bld.Close()
	if err := bld.AddLayer(b.Context(), nil, evenly(n, 0)); err != nil {
		b.Fatal(err)
	}
	m, err := bld.Build(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	return m
}

const million = 1 << 20

func BenchmarkFind(b *testing.B) {
	for _, n := range []int64{1 << 15, 2 * million, 16 * million} {
		for _, noMap := range []bool{false, true} {
			b.Run(fmt.Sprintf("records=%dK/NoMap=%t", n>>10, noMap), func(b *testing.B) {
				m := benchMap(b, n, Config{NoMap: noMap})
				rng := rand.New(rand.NewPCG(1, 2))
				// Touch the pages: their first use is the system's cost.
				for i := int64(0); i < n; i += blockRecords {
					if _, err := m.Find(i * MaxData); err != nil {
						b.Fatal(err)
					}
				}
				for b.Loop() {
					if _, err := m.Find(rng.Int64N(n * MaxData)); err != nil {
						b.Fatal(err)
					}
				}
				memory, file := m.Footprint()
				b.ReportMetric(float64(memory)/float64(n), "B-RAM/rec")
				b.ReportMetric(float64(file)/float64(n), "B-file/rec")
			})
		}
	}
}

func BenchmarkWalk64K(b *testing.B) {
	const n = 16 * million
	m := benchMap(b, n, Config{})
	rng := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if err := m.Walk(rng.Int64N(n-1)*MaxData, MaxData, func(Extent) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAll(b *testing.B) {
	const n = 16 * million
	m := benchMap(b, n, Config{})
	for b.Loop() {
		for _, err := range m.All() {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrec/s")
}

// BenchmarkMerge lays a layer of 100,000 extents over 16 million.
func BenchmarkMerge(b *testing.B) {
	const n = 16 * million
	base := benchMap(b, n, Config{})
	dir := b.TempDir()
	var heap uint64
	for b.Loop() {
		bld, err := NewBuilder(Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := bld.AddMap(b.Context(), base); err != nil {
			b.Fatal(err)
		}
		if err := bld.AddLayer(b.Context(), nil, scattered(100_000, n*MaxData, 5000, 3)); err != nil {
			b.Fatal(err)
		}
		m, err := bld.Build(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		heap = max(heap, s.HeapSys)
		m.Close()
		bld.Close()
	}
	b.ReportMetric(float64(n+100_000)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrec/s")
	b.ReportMetric(float64(heap)/(1<<20), "MiB-heap")
}

// BenchmarkLayers builds a map from many layers: 500 of 20,000 extents.
func BenchmarkLayers(b *testing.B) {
	const layers, each = 500, 20_000
	dir := b.TempDir()
	var heap uint64
	for b.Loop() {
		bld, err := NewBuilder(Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		for i := range layers {
			if err := bld.AddLayer(b.Context(), nil, scattered(each, 4<<40, int32(i), uint64(i))); err != nil {
				b.Fatal(err)
			}
		}
		m, err := bld.Build(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		heap = max(heap, s.HeapSys)
		m.Close()
		bld.Close()
	}
	b.ReportMetric(layers*each*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrec/s")
	b.ReportMetric(float64(heap)/(1<<20), "MiB-heap")
}
