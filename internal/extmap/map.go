package extmap

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Map is the finished map of a disk. All methods are safe for concurrent use,
// Close included: what has begun before a Close ends as if it had not happened.
type Map struct {
	run     *run
	closed  atomic.Bool
	cursors sync.Pool // of *cursor
}

// Close gives back the file and its mapping, when the last reader is done.
// Idempotent.
func (m *Map) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	return m.run.release()
}

// acquire returns the run with a reference for the caller.
func (m *Map) acquire() (*run, error) {
	if m.closed.Load() || !m.run.retain() {
		return nil, ErrClosed
	}
	return m.run, nil
}

// Len returns the number of extents.
func (m *Map) Len() int64 { return m.run.n }

// Bytes returns how many bytes of the disk the extents cover, zeroes included.
func (m *Map) Bytes() int64 { return m.run.bytes }

// Footprint returns the bytes of memory and of temporary file that the map takes.
func (m *Map) Footprint() (memory, file int64) {
	if m.run.file != nil {
		file = m.run.n * recordSize
	}
	return m.run.memory(), file
}

// Find returns the position of the first extent that ends after byte off; Len()
// if there is none.
func (m *Map) Find(off int64) (int64, error) {
	if off < 0 {
		off = 0
	}
	r, err := m.acquire()
	if err != nil {
		return 0, err
	}
	defer r.release()
	c := m.cursor()
	defer m.cursors.Put(c)
	return c.find(off)
}

// At returns the extent at a position from 0 to Len()-1.
func (m *Map) At(pos int64) (Extent, error) {
	r, err := m.acquire()
	if err != nil {
		return Extent{}, err
	}
	defer r.release()
	if pos < 0 || pos >= r.n {
		return Extent{}, fmt.Errorf("extent %d of %d: %w", pos, r.n, ErrInvalid)
	}
	c := m.cursor()
	defer m.cursors.Put(c)
	rec, err := c.record(pos)
	return rec.extent(), err
}

// Walk calls fn for consecutive extents that make up [off, off+length) exactly, in
// ascending order: extents of the map, clipped to the window, and between them
// gaps (SegGap), of which the map says nothing. The window need not be aligned. It
// ends with the first error of fn, which it returns as it is.
func (m *Map) Walk(off, length int64, fn func(Extent) error) error {
	if off < 0 || length < 0 || off > MaxDisk || length > MaxDisk-off {
		return fmt.Errorf("walk %d+%d: %w", off, length, ErrInvalid)
	}
	r, err := m.acquire()
	if err != nil {
		return err
	}
	defer r.release()
	if length == 0 {
		return nil
	}
	c := m.cursor()
	defer m.cursors.Put(c)
	pos, err := c.find(off)
	if err != nil {
		return err
	}
	for end := off + length; off < end; {
		e := Extent{Off: end, Len: 0}
		if pos < r.n {
			rec, err := c.record(pos)
			if err != nil {
				return err
			}
			e = rec.extent()
		}
		if e.Off > off {
			gap := Extent{Off: off, Len: min(e.Off, end) - off, Seg: SegGap}
			if err := fn(gap); err != nil {
				return err
			}
			off = gap.End()
			continue
		}
		e = e.clip(off, end)
		if err := fn(e); err != nil {
			return err
		}
		off = e.End()
		pos++
	}
	return nil
}

// clip returns the part of e inside [off, end), which is not empty.
func (e Extent) clip(off, end int64) Extent {
	if d := off - e.Off; d > 0 {
		e.Off, e.Len = off, e.Len-d
		if e.Seg >= 0 {
			e.FrameOff += uint32(d)
		}
	}
	e.Len = min(e.Len, end-e.Off)
	return e
}

// All yields all extents in ascending order. An error, if any, is the last.
func (m *Map) All() iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		r, err := m.acquire()
		if err != nil {
			yield(Extent{}, err)
			return
		}
		defer r.release()
		for src := (&reader{run: r}); ; {
			b, err := src.next()
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if len(b) == 0 {
				return
			}
			for ; len(b) > 0; b = b[recordSize:] {
				if !yield(getRecord(b).extent(), nil) {
					return
				}
			}
		}
	}
}

// LiveBySegment returns, in ascending order of segments, how many bytes of each the
// map refers to. Segments that it does not refer to are not among them. It
// reads the whole map and takes memory by the number of segments.
func (m *Map) LiveBySegment(ctx context.Context) (iter.Seq2[int32, int64], error) {
	r, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer r.release()
	live := map[int32]int64{}
	seg, sum := SegGap, int64(0)
	for src := (&reader{run: r}); ; {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("count live bytes: %w", err)
		}
		b, err := src.next()
		if err != nil {
			return nil, err
		}
		if len(b) == 0 {
			break
		}
		for ; len(b) > 0; b = b[recordSize:] {
			rec := getRecord(b)
			if rec.kind() != kindData {
				continue
			}
			// Neighbours are often of one segment.
			if s := int32(rec.w1 >> 32); s != seg {
				live[seg] += sum
				seg, sum = s, 0
			}
			sum += rec.length()
		}
	}
	live[seg] += sum
	delete(live, SegGap)
	segs := slices.Sorted(maps.Keys(live))
	return func(yield func(int32, int64) bool) {
		for _, s := range segs {
			if !yield(s, live[s]) {
				return
			}
		}
	}, nil
}

// cursor reads single records. It keeps the block that it read last.
type cursor struct {
	run   *run
	block int64 // in buf; -1 = none
	buf   [blockSize]byte
}

func (m *Map) cursor() *cursor {
	if c, ok := m.cursors.Get().(*cursor); ok {
		return c
	}
	return &cursor{run: m.run, block: -1}
}

func (c *cursor) load(block int64) error {
	if c.block == block {
		return nil
	}
	c.block = -1 // buf is undefined if the read fails
	if _, err := c.run.readBlock(block, &c.buf); err != nil {
		return err
	}
	c.block = block
	return nil
}

func (c *cursor) record(pos int64) (record, error) {
	if c.run.mem != nil {
		return getRecord(c.run.mem[pos/chunkRecords][pos%chunkRecords*recordSize:]), nil
	}
	if err := c.load(pos / blockRecords); err != nil {
		return record{}, err
	}
	return getRecord(c.buf[pos%blockRecords*recordSize:]), nil
}

// find is Map.Find for off >= 0.
func (c *cursor) find(off int64) (int64, error) {
	r := c.run
	if r.n == 0 {
		return 0, nil
	}
	lba := uint64(off) >> unitShift
	var first int64
	var b []byte // records first... that hold the last one which starts at or before lba, if there is one
	if r.mem != nil {
		chunk := 0
		for n := len(r.mem); n > 1; {
			half := n / 2
			if lbaAt(r.mem[chunk+half]) <= lba {
				chunk += half
			}
			n -= half
		}
		first, b = int64(chunk)*chunkRecords, r.mem[chunk]
	} else {
		block := r.fences.find(lba)
		if err := c.load(block); err != nil {
			return 0, err
		}
		first = block * blockRecords
		b = c.buf[:min(blockSize, (r.n-first)*recordSize)]
	}
	// Only the last record that starts at or before lba can end after off.
	i, n := 0, len(b)/recordSize
	for n > 1 {
		half := n / 2
		if lbaAt(b[(i+half)*recordSize:]) <= lba {
			i += half
		}
		n -= half
	}
	if getRecord(b[i*recordSize:]).end() <= off {
		i++
	}
	return first + int64(i), nil
}
