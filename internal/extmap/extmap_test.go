package extmap

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestFences(t *testing.T) {
	t.Parallel()
	for _, blocks := range []int{1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097, 5000} {
		var f fences
		for i := range blocks {
			f.add(appendRecord(nil, makeRun(kindZero, int64(i*10+5)*Unit, Unit)))
		}
		for lba := range uint64(blocks*10 + 20) {
			want := max(0, (int64(lba)-5)/10)
			if lba < 5 {
				want = 0
			}
			if got := f.find(lba); got != min(want, int64(blocks-1)) {
				t.Fatalf("%d blocks: unit %d is in block %d, want %d", blocks, lba, got, want)
			}
		}
		if got := f.find(math.MaxInt64 >> unitShift); got != int64(blocks-1) {
			t.Errorf("%d blocks: the end is in block %d", blocks, got)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	extents := []Extent{
		{Off: 0, Len: MaxDisk - MaxData, Seg: SegZero},
		{Off: MaxDisk - MaxData, Len: Unit, Seg: math.MaxInt32, Frame: math.MaxUint32, FrameOff: MaxData - Unit},
		{Off: MaxDisk - Unit, Len: 1, Seg: 0, Frame: 0, FrameOff: 0},
	}
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			b := newTestBuilder(t, shape)
			add(t, b, layer{extents: extents})
			m := build(t, b)
			if got, err := collect(m.All()); err != nil || !slices.Equal(got, extents) {
				t.Errorf("%v %v", got, err)
			}
			for off, want := range map[int64]int64{0: 0, MaxDisk - MaxData - 1: 0, MaxDisk - MaxData: 1, MaxDisk - Unit: 2, MaxDisk - Unit + 1: 3, MaxDisk: 3, math.MaxInt64: 3, -1: 0} {
				if got, err := m.Find(off); err != nil || got != want {
					t.Errorf("find %d: %d %v, want %d", off, got, err, want)
				}
			}
			got, err := walked(m, MaxDisk-Unit, Unit)
			if want := []Extent{{MaxDisk - Unit, 1, 0, 0, 0}, {Off: MaxDisk - Unit + 1, Len: Unit - 1, Seg: SegGap}}; err != nil || !slices.Equal(got, want) {
				t.Errorf("last unit: %v %v", got, err)
			}
			if got, err := walked(m, MaxDisk, 0); err != nil || got != nil {
				t.Errorf("empty window: %v %v", got, err)
			}
		})
	}
}

// TestOddEnd: what ends inside a unit hides the whole unit, whatever its length in bytes.
func TestOddEnd(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			b := newTestBuilder(t, shape)
			add(t, b, layer{extents: []Extent{{Off: 0, Len: MaxData, Seg: 1}, {Off: MaxData, Len: 4 * Unit, Seg: SegZero}}})
			add(t, b, layer{extents: []Extent{{Off: Unit, Len: Unit + 5, Seg: 2, Frame: 3}}})
			add(t, b, layer{extents: []Extent{{Off: MaxData + Unit, Len: 7, Seg: SegZero}}})
			want := []Extent{
				{Off: 0, Len: Unit, Seg: 1},
				{Off: Unit, Len: Unit + 5, Seg: 2, Frame: 3},
				{Off: 3 * Unit, Len: MaxData - 3*Unit, Seg: 1, FrameOff: 3 * Unit},
				{Off: MaxData, Len: Unit + 7, Seg: SegZero},
				{Off: MaxData + 2*Unit, Len: 2 * Unit, Seg: SegZero},
			}
			if got, err := collect(build(t, b).All()); err != nil || !slices.Equal(got, want) {
				t.Errorf("got  %v %v\nwant %v", got, err, want)
			}
		})
	}
}

func TestJoins(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want []Extent }{
		"data": {[]Extent{{0, Unit, 1, 2, 0}, {Unit, Unit, 1, 2, Unit}, {2 * Unit, 5, 1, 2, 2 * Unit}}, []Extent{{0, 2*Unit + 5, 1, 2, 0}}},
		"zero": {[]Extent{{Off: 0, Len: Unit, Seg: SegZero, Frame: 4, FrameOff: 9}, {Off: Unit, Len: 1, Seg: SegZero}}, []Extent{{Off: 0, Len: Unit + 1, Seg: SegZero}}},
		"not": {
			[]Extent{{0, Unit, 1, 2, 0}, {Unit, Unit, 1, 2, 2 * Unit}, {2 * Unit, Unit, 1, 3, 3 * Unit}, {3 * Unit, Unit, 2, 3, 4 * Unit}, {4 * Unit, Unit, SegZero, 0, 0}, {6 * Unit, Unit, SegZero, 0, 0}},
			[]Extent{{0, Unit, 1, 2, 0}, {Unit, Unit, 1, 2, 2 * Unit}, {2 * Unit, Unit, 1, 3, 3 * Unit}, {3 * Unit, Unit, 2, 3, 4 * Unit}, {4 * Unit, Unit, SegZero, 0, 0}, {6 * Unit, Unit, SegZero, 0, 0}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestBuilder(t, "memory")
			add(t, b, layer{extents: c.in})
			if got, err := collect(build(t, b).All()); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got  %v %v\nwant %v", got, err, c.want)
			}
			for _, e := range c.in { // the same in layers
				add(t, b, layer{extents: []Extent{e}})
			}
			if got, err := collect(build(t, b).All()); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("in layers: got  %v %v\nwant %v", got, err, c.want)
			}
		})
	}
}

// TestRefused: a layer that breaks a rule is an error and no part of the map.
func TestRefused(t *testing.T) {
	t.Parallel()
	good := Extent{Off: 2 * Unit, Len: Unit, Seg: 1}
	stop := errors.New("stop")
	for name, c := range map[string]struct {
		clears  []Range
		extents []Extent
		err     error
	}{
		"negative offset": {extents: []Extent{{Off: -Unit, Len: Unit}}},
		"odd offset":      {extents: []Extent{{Off: 512, Len: Unit}}},
		"no length":       {extents: []Extent{{Off: 0, Len: 0}}},
		"too long":        {extents: []Extent{{Off: 0, Len: MaxData + 1}}},
		"beyond frame":    {extents: []Extent{{Off: 0, Len: 2 * Unit, FrameOff: MaxData - Unit}}},
		"odd place":       {extents: []Extent{{Off: 0, Len: Unit, FrameOff: 1}}},
		"beyond disk":     {extents: []Extent{{Off: MaxDisk - Unit, Len: Unit + 1}}},
		"far beyond disk": {extents: []Extent{{Off: math.MaxInt64 &^ (Unit - 1), Len: Unit, Seg: SegZero}}},
		"overflow":        {extents: []Extent{{Off: Unit, Len: math.MaxInt64, Seg: SegZero}}},
		"gap":             {extents: []Extent{{Off: 0, Len: Unit, Seg: SegGap}}},
		"unknown segment": {extents: []Extent{{Off: 0, Len: Unit, Seg: math.MinInt32}}},
		"order":           {extents: []Extent{good, {Off: 0, Len: Unit}}},
		"same":            {extents: []Extent{good, good}},
		"overlap":         {extents: []Extent{{Off: 0, Len: 3 * Unit}, good}},
		"odd end inside":  {extents: []Extent{{Off: 0, Len: 5}, good}},
		"odd clear":       {clears: []Range{{1, Unit}}, extents: []Extent{good}},
		"negative clear":  {clears: []Range{{-Unit, Unit}}, extents: []Extent{good}},
		"clear length":    {clears: []Range{{0, -1}}, extents: []Extent{good}},
		"clear beyond":    {clears: []Range{{MaxDisk, 1}}, extents: []Extent{good}},
		"stream":          {extents: []Extent{good}, err: stop},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestBuilder(t, "mapped")
			base := []Extent{{Off: 0, Len: MaxData, Seg: 9}}
			add(t, b, layer{extents: base})
			want := c.err
			if want == nil {
				want = ErrInvalid
			}
			err := b.AddLayer(t.Context(), append(c.clears, Range{0, MaxData}), func(yield func(Extent, error) bool) {
				for _, e := range c.extents {
					if !yield(e, nil) {
						return
					}
				}
				if c.err != nil {
					yield(Extent{}, c.err)
				}
			})
			if !errors.Is(err, want) {
				t.Errorf("add: %v, want %v", err, want)
			}
			if got, err := collect(build(t, b).All()); err != nil || !slices.Equal(got, base) {
				t.Errorf("the map is %v %v", got, err)
			}
		})
	}
	m := build(t, newTestBuilder(t, "memory"))
	for _, w := range [][2]int64{{-1, 5}, {0, -1}, {MaxDisk, 1}, {math.MaxInt64, math.MaxInt64}} {
		if err := m.Walk(w[0], w[1], nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("walk %v: %v", w, err)
		}
	}
	if _, err := m.At(0); !errors.Is(err, ErrInvalid) {
		t.Errorf("at 0 of an empty map: %v", err)
	}
	if _, err := NewBuilder(Config{Memory: 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a byte of memory: %v", err)
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		b := newTestBuilder(t, shape)
		add(t, b, layer{})
		add(t, b, layer{clears: []Range{{0, Unit}, {Unit, 0}}})
		add(t, b, layer{extents: []Extent{{Off: 0, Len: Unit, Seg: 1}}})
		add(t, b, layer{clears: []Range{{0, 1}}})
		if err := b.AddLayer(t.Context(), nil, nil); err != nil {
			t.Error(err)
		}
		m := build(t, b)
		if err := check(m, newModel(8), rand.New(rand.NewPCG(1, 1)).IntN); err != nil {
			t.Errorf("%s: %v", shape, err)
		}
		if err := b.AddMap(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			b := newTestBuilder(t, shape)
			add(t, b, layer{extents: []Extent{{Off: 0, Len: Unit, Seg: 1}, {Off: MaxData, Len: Unit, Seg: 1}}})
			m := build(t, b)
			// A Close inside a walk waits for nothing, and the walk ends well.
			n := 0
			for e, err := range m.All() {
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Walk(0, MaxDisk, func(Extent) error { n++; return m.Close() }); (err != nil) != (e.Off > 0) {
					t.Errorf("walk: %v", err)
				}
			}
			if n != 4 {
				t.Errorf("the walk gave %d extents, want 4", n)
			}
			_, find := m.Find(0)
			_, at := m.At(0)
			_, all := collect(m.All())
			_, live := m.LiveBySegment(t.Context())
			for name, err := range map[string]error{"find": find, "at": at, "all": all, "live": live, "layer": b.AddMap(t.Context(), m), "walk": m.Walk(0, Unit, nil)} {
				if !errors.Is(err, ErrClosed) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := errors.Join(m.Close(), b.Close(), b.Close()); err != nil {
				t.Error(err)
			}
			_, err := b.Build(t.Context())
			if !errors.Is(err, ErrClosed) || !errors.Is(b.AddLayer(t.Context(), nil, nil), ErrClosed) {
				t.Errorf("closed builder: %v", err)
			}
		})
	}
}

// TestConcurrent reads a map from many goroutines while it is closed.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			b, want := newTestBuilder(t, shape), newModel(3000)
			rng := rand.New(rand.NewPCG(2, 2))
			for i := range 20 {
				l := random(3000, int32(i), rng.IntN)
				want.apply(l)
				add(t, b, l)
			}
			m := build(t, b)
			var wg sync.WaitGroup
			var good atomic.Int64
			ready := make(chan struct{}, 8)
			for g := range uint64(8) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(g, 2))
					for i := 0; ; i++ {
						err := check(m, want, rng.IntN)
						if i == 0 {
							ready <- struct{}{}
						}
						if errors.Is(err, ErrClosed) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
						good.Add(1)
					}
				})
			}
			for range 8 {
				<-ready
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			wg.Wait()
			if good.Load() < 8 {
				t.Errorf("only %d checks were made", good.Load())
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t, "mapped")
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := b.AddLayer(ctx, nil, func(yield func(Extent, error) bool) {
		for i := range int64(math.MaxInt64) {
			if i == 10_000 {
				cancel(cause)
			}
			if !yield(Extent{Off: i * 2 * Unit, Len: Unit, Seg: SegZero}, nil) {
				return
			}
		}
	})
	if !errors.Is(err, cause) {
		t.Errorf("add: %v", err)
	}
	if _, err := b.Build(t.Context()); !errors.Is(err, cause) {
		t.Errorf("build after it: %v", err)
	}
	b = newTestBuilder(t, "mapped")
	add(t, b, layer{extents: []Extent{{Off: 0, Len: 1, Seg: 1}}})
	add(t, b, layer{extents: []Extent{{Off: 0, Len: 1, Seg: 1}}})
	if _, err := b.Build(ctx); !errors.Is(err, cause) {
		t.Errorf("build: %v", err)
	}
}

func TestSmallMapsHaveNoFile(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{smallMap, smallMap + 1} {
		var files atomic.Int64
		b, err := NewBuilder(Config{create: func(string) (backing, error) { files.Add(1); return nil, syscall.EROFS }})
		if err != nil {
			t.Fatal(err)
		}
		for part := range int64(4) { // in turns, so that they are merged
			err := b.AddLayer(t.Context(), nil, func(yield func(Extent, error) bool) {
				for i := part; i < n; i += 4 {
					if !yield(Extent{Off: i * Unit, Len: Unit, Seg: 1, Frame: uint32(i % 7)}, nil) {
						return
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		m, err := b.Build(t.Context())
		if n == smallMap {
			if err != nil || files.Load() != 0 || m.Len() != n {
				t.Errorf("%d extents: %d files, %v", n, files.Load(), err)
			}
		} else if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%d extents: %v", n, err)
		}
		b.Close()
	}
}

// disk is a file system with little room, that knows what is open.
type disk struct {
	room, written atomic.Int64
	open          atomic.Int64
}

type diskFile struct {
	*os.File
	disk *disk
}

func (d *disk) create(dir string) (backing, error) {
	if d.room.Load() <= 0 {
		return nil, syscall.ENOSPC
	}
	f, err := createTemp(dir)
	if err != nil {
		return nil, err
	}
	d.open.Add(1)
	return &diskFile{f, d}, nil
}

func (f *diskFile) Write(p []byte) (int, error) {
	if f.disk.room.Add(-int64(len(p))) < 0 {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, syscall.ENOSPC
	}
	f.disk.written.Add(int64(len(p)))
	return f.File.Write(p)
}

func (f *diskFile) Close() error {
	f.disk.open.Add(-1)
	return f.File.Close()
}

// TestDiskFull lets the disk be full at every possible moment.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	run := func(room int64) (*disk, error) {
		d := &disk{}
		d.room.Store(room)
		b := newTestBuilder(t, "file")
		b.cfg.create = d.create
		var err error
		for i := 0; i < 40 && err == nil; i++ {
			err = b.AddLayer(t.Context(), nil, scattered(700, 1<<30, int32(i), uint64(i)))
		}
		var m *Map
		if err == nil {
			m, err = b.Build(t.Context())
		}
		if err != nil {
			if _, again := b.Build(t.Context()); !errors.Is(again, syscall.ENOSPC) {
				t.Errorf("the builder goes on after %v: %v", err, again)
			}
		}
		if b.Close() != nil || m != nil && m.Close() != nil {
			t.Error("close failed")
		}
		return d, err
	}
	d, err := run(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	all := d.written.Load()
	if all < 500_000 {
		t.Fatalf("only %d bytes were written", all)
	}
	for room := int64(0); room < all; room += all / 25 {
		d, err := run(room)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("room for %d of %d bytes: %v", room, all, err)
		}
		if n := d.open.Load(); n != 0 {
			t.Errorf("room for %d of %d bytes: %d files stay open", room, all, n)
		}
	}
	if d, err := run(all); err != nil || d.open.Load() != 0 {
		t.Errorf("just enough room: %v, %d files open", err, d.open.Load())
	}
}

// TestManyLayers: thousands of small layers cost n log n writing, few runs and
// bounded memory.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	const layers, each = 3000, 100
	d := &disk{}
	d.room.Store(1 << 40)
	b := newTestBuilder(t, "file")
	b.cfg.create = d.create
	for i := range layers {
		if err := b.AddLayer(t.Context(), nil, scattered(each, 1<<40, int32(i), uint64(i))); err != nil {
			t.Fatal(err)
		}
		var memory int64
		for _, r := range b.runs {
			if r.mem != nil {
				memory += r.memory()
			}
		}
		if memory > b.cfg.Memory/4 || len(b.runs) > 4*fanIn {
			t.Fatalf("after %d layers: %d bytes in memory, %d runs", i+1, memory, len(b.runs))
		}
	}
	m := build(t, b)
	if m.Len() > layers*each || m.Len() < layers*each*9/10 {
		t.Errorf("%d extents", m.Len())
	}
	if per := float64(d.written.Load()) / (layers * each * recordSize); per > 8 {
		t.Errorf("every record was written %.1f times", per)
	}
	if d.open.Load() != 1 {
		t.Errorf("%d files are open", d.open.Load())
	}
}

// TestLarge is a map of more than two levels of fences, by all layers' sizes.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	const n = 2 * million
	b, err := NewBuilder(Config{Dir: t.TempDir(), Memory: MinMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.AddLayer(t.Context(), nil, evenly(n, 0)); err != nil {
		t.Fatal(err)
	}
	if err := b.AddLayer(t.Context(), []Range{{1 << 30, 1 << 30}}, scattered(50_000, n*MaxData, 7777, 1)); err != nil {
		t.Fatal(err)
	}
	m := build(t, b)
	memory, file := m.Footprint()
	if file != m.Len()*recordSize || memory > m.Len()/5 {
		t.Errorf("%d extents take %d bytes of memory and %d of file", m.Len(), memory, file)
	}
	var last Extent
	pos := int64(0)
	for e, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		if pos > 0 && e.Off < last.End() {
			t.Fatalf("%v follows %v", e, last)
		}
		if pos%997 == 0 {
			if got, err := m.Find(e.Off); err != nil || got != pos {
				t.Fatalf("find %d: %d %v, want %d", e.Off, got, err, pos)
			}
			if got, err := m.Find(e.End() - 1); err != nil || got != pos {
				t.Fatalf("find %d: %d %v, want %d", e.End()-1, got, err, pos)
			}
		}
		last, pos = e, pos+1
	}
	live, err := m.LiveBySegment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	segs, sum := 0, int64(0)
	for _, n := range live {
		segs++
		sum += n
	}
	if segs != 1001 || sum != m.Bytes() {
		t.Errorf("%d segments with %d live bytes of %d", segs, sum, m.Bytes())
	}
	for range 3 {
		if got := fmt.Sprint(b.Close(), m.Close()); got != "<nil> <nil>" {
			t.Error(got)
		}
	}
}
