package extmap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

const sector = 512

// cell is what a disk has in one sector.
type cell struct {
	seg   int32
	frame uint32
	off   int64 // in the frame
}

var gap = cell{seg: SegGap}

// model is a disk as a plain array of sectors: the oracle.
type model []cell

func newModel(units int) model {
	m := make(model, units*Unit/sector)
	for i := range m {
		m[i] = gap
	}
	return m
}

func (m model) fill(off, end int64, at func(d int64) cell) {
	for i := off / sector; i < end/sector; i++ {
		m[i] = at(i*sector - off)
	}
}

func (m model) apply(l layer) {
	for _, c := range l.clears {
		m.fill(c.Off, roundUp(c.Off+c.Len), func(int64) cell { return gap })
	}
	for _, e := range l.extents {
		m.fill(e.Off, e.End(), func(d int64) cell {
			if e.Seg == SegZero {
				return cell{seg: SegZero}
			}
			return cell{e.Seg, e.Frame, int64(e.FrameOff) + d}
		})
		m.fill(e.End(), roundUp(e.End()), func(int64) cell { return gap })
	}
}

// walk gives [off, end) as extents, each as long as it can be; gaps too.
func (m model) walk(off, end int64) []Extent {
	var out []Extent
	for off < end {
		c := m[off/sector]
		n := min(end, off/sector*sector+sector) - off
		e := Extent{Off: off, Len: n, Seg: c.seg}
		if c.seg >= 0 {
			e.Frame, e.FrameOff = c.frame, uint32(c.off+off%sector)
		}
		if k := len(out) - 1; k >= 0 && out[k].Seg == e.Seg && (e.Seg < 0 || out[k].Frame == e.Frame && int64(out[k].FrameOff)+out[k].Len == int64(e.FrameOff)) {
			out[k].Len += n
		} else {
			out = append(out, e)
		}
		off += n
	}
	return out
}

func (m model) extents() []Extent {
	return slices.DeleteFunc(m.walk(0, int64(len(m))*sector), func(e Extent) bool { return e.Seg == SegGap })
}

type layer struct {
	clears  []Range
	extents []Extent
}

func stream(es []Extent) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, e := range es {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// random makes a layer of a disk of so many units. pick returns 0 <= pick(n) < n.
func random(units int, seg int32, pick func(n int) int) layer {
	var l layer
	for range pick(4) {
		off := pick(units)
		l.clears = append(l.clears, Range{int64(off) * Unit, int64(pick(units-off+1)) * Unit})
	}
	dense := 1 + pick(40)
	frame, place := uint32(pick(3)), 0
	for at := pick(dense); at < units; at += pick(dense) {
		e := Extent{Off: int64(at) * Unit, Seg: seg}
		n := 1 + pick(16)
		if pick(4) == 0 {
			e.Seg = SegZero
			n = 1 + pick(dense*4)
		} else {
			if place+n > MaxData/Unit {
				frame, place = frame+1, 0
			}
			e.Frame, e.FrameOff = frame, uint32(place*Unit)
			place += n
		}
		n = min(n, units-at)
		e.Len = int64(n) * Unit
		at += n
		if at >= units-2 && pick(2) == 0 {
			e.Len -= int64(1+pick(Unit/sector-1)) * sector // the disk's odd end
			at = units
		}
		l.extents = append(l.extents, e)
	}
	return l
}

// shapes are the ways in which a map is kept.
var shapes = map[string]func(*Builder){
	"memory": func(*Builder) {},
	"mapped": func(b *Builder) { b.cfg.small, b.cfg.Memory = -1, 32<<10 },
	"file":   func(b *Builder) { b.cfg.small, b.cfg.Memory, b.cfg.NoMap = -1, 32<<10, true },
}

func newTestBuilder(t testing.TB, shape string) *Builder {
	t.Helper()
	b, err := NewBuilder(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	shapes[shape](b)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(b.cfg.Dir); len(left) != 0 {
			t.Errorf("files are left in the temporary directory: %v", left)
		}
	})
	return b
}

func add(t testing.TB, b *Builder, l layer) {
	t.Helper()
	if err := b.AddLayer(t.Context(), l.clears, stream(l.extents)); err != nil {
		t.Fatal(err)
	}
}

func build(t testing.TB, b *Builder) *Map {
	t.Helper()
	m, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// walked returns what Walk gives, neighbours joined as in model.walk where the
// window cut nothing; and checks that it covers the window exactly.
func walked(m *Map, off, length int64) ([]Extent, error) {
	var out []Extent
	at := off
	err := m.Walk(off, length, func(e Extent) error {
		if e.Off != at || e.Len <= 0 {
			return fmt.Errorf("extent at %d+%d, want it at %d", e.Off, e.Len, at)
		}
		at = e.End()
		out = append(out, e)
		return nil
	})
	if err == nil && at != off+length {
		err = fmt.Errorf("walk of %d+%d ends at %d", off, length, at)
	}
	return out, err
}

// check compares everything that a map says with the model.
func check(m *Map, want model, pick func(n int) int) error {
	all := want.extents()
	got, err := collect(m.All())
	if err != nil {
		return err
	}
	if !slices.Equal(got, all) {
		return fmt.Errorf("all extents:\n got %v\nwant %v", got, all)
	}
	bytes, live := int64(0), map[int32]int64{}
	for _, e := range all {
		bytes += e.Len
		if e.Seg >= 0 {
			live[e.Seg] += e.Len
		}
	}
	if m.Len() != int64(len(all)) || m.Bytes() != bytes {
		return fmt.Errorf("Len %d Bytes %d, want %d and %d", m.Len(), m.Bytes(), len(all), bytes)
	}
	usage, err := m.LiveBySegment(context.Background())
	if err != nil {
		return err
	}
	last := int32(-1)
	for seg, n := range usage {
		if seg <= last || live[seg] != n {
			return fmt.Errorf("live bytes of segment %d after %d: %d, want %d", seg, last, n, live[seg])
		}
		last = seg
		delete(live, seg)
	}
	if len(live) > 0 {
		return fmt.Errorf("no live bytes of segments %v", live)
	}
	disk := int64(len(want)) * sector
	for i := range 40 {
		off := int64(pick(int(disk)))
		n := int64(pick(int(disk - off + 1)))
		if i%4 != 0 {
			n = min(n, int64(1+pick(2*MaxData)))
		}
		got, err := walked(m, off, n)
		if err != nil {
			return err
		}
		if want := want.walk(off, off+n); !slices.Equal(got, want) {
			return fmt.Errorf("walk %d+%d:\n got %v\nwant %v", off, n, got, want)
		}
		pos, err := m.Find(off)
		if err != nil {
			return err
		}
		if w := slices.IndexFunc(all, func(e Extent) bool { return e.End() > off }); w != int(pos) && (w >= 0 || pos != m.Len()) {
			return fmt.Errorf("find %d: %d, want %d", off, pos, w)
		}
		if pos < m.Len() {
			e, err := m.At(pos)
			if err != nil {
				return err
			}
			if e != all[pos] {
				return fmt.Errorf("at %d: %v, want %v", pos, e, all[pos])
			}
		}
	}
	return nil
}

func collect(seq iter.Seq2[Extent, error]) ([]Extent, error) {
	var out []Extent
	for e, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

func TestAgainstModel(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		for seed := range uint64(60) {
			t.Run(fmt.Sprintf("%s/%d", shape, seed), func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(seed, 7))
				units := 1 + rng.IntN(1<<rng.IntN(13))
				b, want := newTestBuilder(t, shape), newModel(units)
				for i := range rng.IntN(80) {
					l := random(units, int32(rng.IntN(20)), rng.IntN)
					want.apply(l)
					add(t, b, l)
					if i%25 == 24 { // go on from a map, which is closed before it is used
						m, err := b.Build(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						if err := b.AddMap(t.Context(), m); err != nil {
							t.Fatal(err)
						}
						m.Close()
					}
				}
				m := build(t, b)
				if err := check(m, want, rng.IntN); err != nil {
					t.Fatal(err)
				}
				if _, file := m.Footprint(); (file > 0) != (shape != "memory" && m.Len() > 0) {
					t.Errorf("%d bytes of file", file)
				}
			})
		}
	}
}

// TestMapsAsLayers lays maps over maps: their gaps show what is below.
func TestMapsAsLayers(t *testing.T) {
	t.Parallel()
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(3, 7))
			const units = 500
			b, want := newTestBuilder(t, shape), newModel(units)
			var parts []*Map
			for i := range 40 {
				l := random(units, int32(i), rng.IntN)
				if i > 0 {
					l.clears = nil // a map alone says nothing of what it cleared
				}
				want.apply(l)
				add(t, b, l)
				parts = append(parts, build(t, b))
			}
			for _, m := range parts {
				if err := b.AddMap(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			if err := check(build(t, b), want, rng.IntN); err != nil {
				t.Fatal(err)
			}
			for i, m := range parts {
				if _, err := collect(m.All()); err != nil {
					t.Errorf("map %d after it was a layer: %v", i, err)
				}
			}
		})
	}
}

// FuzzLayers takes choices from the input.
func FuzzLayers(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x40\x05\x03\x00\x10\x02\x20\x07\x01\x02\x03\x04\x05\x06\x07\x08\x09"))
	rng := rand.New(rand.NewPCG(5, 5))
	for range 4 {
		seed := make([]byte, 400)
		for i := range seed {
			seed[i] = byte(rng.Uint32())
		}
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		pick := func(n int) int {
			v := 0
			for k := n; k > 0 && len(in) > 0; k >>= 8 {
				v, in = v<<8|int(in[0]), in[1:]
			}
			return v % max(n, 1)
		}
		units := 1 + pick(300)
		want := newModel(units)
		var layers []layer
		for range 60 {
			if len(in) == 0 {
				break
			}
			l := random(units, int32(pick(5)), func(n int) int {
				if len(in) == 0 {
					return n - 1 // steps stay long, so that it ends
				}
				return pick(n)
			})
			want.apply(l)
			layers = append(layers, l)
		}
		for _, shape := range []string{"memory", "mapped"} {
			b, err := NewBuilder(Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			shapes[shape](b)
			for _, l := range layers {
				add(t, b, l)
			}
			m, err := b.Build(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			err = check(m, want, func(n int) int { return (n * 7 / 11) % max(n, 1) })
			if err := errors.Join(err, m.Close(), b.Close()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzExtent checks that every valid extent comes back as it was given, and
// that the others are refused.
func FuzzExtent(f *testing.F) {
	f.Add(int64(0), int64(1), int32(0), uint32(0), uint32(0))
	f.Add(MaxDisk-Unit, int64(Unit), int32(1<<31-1), uint32(1<<32-1), uint32(MaxData-Unit))
	f.Add(int64(Unit), int64(MaxData), int32(5), uint32(7), uint32(0))
	f.Add(int64(0), MaxDisk, SegZero, uint32(9), uint32(9))
	f.Add(int64(-Unit), int64(1<<62), int32(-2), uint32(0), uint32(1))
	f.Fuzz(func(t *testing.T, off, length int64, seg int32, frame, frameOff uint32) {
		e := Extent{off, length, seg, frame, frameOff}
		err := e.validate()
		if err != nil {
			return
		}
		if e.Off < 0 || e.Len < 1 || e.Off+e.Len > MaxDisk || e.Off%Unit != 0 || e.Seg < SegZero {
			t.Fatalf("%v is taken for valid", e)
		}
		if e.Seg == SegZero {
			e.Frame, e.FrameOff = 0, 0
		}
		r := makeRecord(e)
		if got := r.extent(); got != e {
			t.Fatalf("%v became %v", e, got)
		}
		for cut := int64(Unit); cut < e.Len && cut < 1<<20; cut += Unit {
			a, b := r.until(e.Off+cut), r.from(e.Off+cut)
			if a.extent() != e.clip(e.Off, e.Off+cut) || b.extent() != e.clip(e.Off+cut, e.End()) {
				t.Fatalf("%v cut at %d is %v and %v", e, cut, a.extent(), b.extent())
			}
			if j, ok := join(a, b); !ok || j != r {
				t.Fatalf("%v cut at %d does not join: %v", e, cut, j.extent())
			}
		}
	})
}
