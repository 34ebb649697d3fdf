package extmap

import "math"

// batchSize is how much one node of a merge works ahead, in bytes.
const batchSize = 1024 * recordSize

// overlay is the source that lays newer over older. Both are sorted and free of
// overlaps and of extents that continue each other, and so is the result. It is linear
// in the records that touch each other; the others are copied as they are.
type overlay struct {
	older, newer side
	// drop leaves clears out: older has the oldest layer, so there is nothing
	// that they hide any more. older has none itself.
	drop bool

	out  [batchSize + recordSize]byte
	n    int    // bytes in out
	last record // at the end of out; kept back from a batch, because the next record may continue it
	end  int64  // of last; -1 = there is none
}

func newOverlay(older, newer source, drop bool) *overlay {
	return &overlay{older: side{src: older}, newer: side{src: newer}, drop: drop, end: -1}
}

// side is one input: its first record, which may be what is left of one, and
// the records of the same batch behind it.
type side struct {
	src  source
	head record
	off  int64 // of head
	end  int64 // of head
	rest []byte
	on   bool // there is a head
	done bool
}

// load makes sure that there is a head unless the input has ended.
func (s *side) load() (err error) {
	if s.on || s.done {
		return nil
	}
	if s.rest, err = s.src.next(); err != nil {
		return err
	}
	s.done = len(s.rest) == 0
	s.advance()
	return nil
}

// advance drops the head and takes the next of the batch, if there is one.
func (s *side) advance() {
	if s.on = len(s.rest) > 0; s.on {
		s.set(getRecord(s.rest))
		s.rest = s.rest[recordSize:]
	}
}

func (s *side) set(r record) {
	s.head, s.off = r, r.off()
	s.end = s.off + r.length()
}

func (o *overlay) next() ([]byte, error) {
	o.n = 0
	if o.end >= 0 {
		putRecord(o.out[:], o.last)
		o.n = recordSize
	}
	for o.n < batchSize {
		if !o.older.on || !o.newer.on {
			if err := o.older.load(); err != nil {
				return nil, err
			}
			if err := o.newer.load(); err != nil {
				return nil, err
			}
		}
		switch {
		case o.older.on && o.newer.on:
			o.step()
		case o.older.on:
			o.take(&o.older, math.MaxInt64, false)
		case o.newer.on:
			o.take(&o.newer, math.MaxInt64, o.drop)
		default:
			o.end = -1
			return o.out[:o.n], nil
		}
	}
	o.last = getRecord(o.out[o.n-recordSize:])
	o.end = o.last.end()
	return o.out[:o.n-recordSize], nil
}

// step moves on by at least one record of one side.
func (o *overlay) step() {
	old, young := &o.older, &o.newer
	hidden := roundUp(young.end)
	switch {
	case old.end <= young.off:
		o.take(old, young.off, false)
	case hidden <= old.off:
		o.take(young, old.off, o.drop)
	default:
		if old.off < young.off {
			o.emit(old.head.until(young.off), old.off, young.off)
		}
		if old.end > hidden {
			old.set(old.head.from(hidden))
		} else {
			old.advance()
		}
	}
}

// take moves the head of s to the output, and with it those records of the batch
// that surely end before limit. With drop it leaves out clears.
func (o *overlay) take(s *side, limit int64, drop bool) {
	if !drop || s.head.kind() != kindClear {
		o.emit(s.head, s.off, s.end)
	}
	// The last record that starts before limit may end behind it.
	if b := s.rest; !drop && len(b) > recordSize && getRecord(b[recordSize:]).off() < limit {
		n := min(before(b, uint64(limit)>>unitShift)-recordSize, batchSize-o.n)
		if n > 0 {
			copy(o.out[o.n:], b[:n])
			o.n += n
			o.end = getRecord(b[n-recordSize:]).end()
			s.rest = b[n:]
		}
	}
	s.advance()
}

// emit adds a record, [off, end), to the output.
func (o *overlay) emit(r record, off, end int64) {
	if off == o.end {
		at := o.out[o.n-recordSize:]
		if j, ok := join(getRecord(at), r); ok {
			putRecord(at, j)
			o.end = end
			return
		}
	}
	putRecord(o.out[o.n:], r)
	o.n += recordSize
	o.end = end
}

// before returns the length in bytes of the records at the front of b that
// start before unit lba. All of these but the last end there as well.
func before(b []byte, lba uint64) int {
	n := len(b) / recordSize
	lo, hi := 0, 1 // records before lo start before lba
	for hi <= n && lbaAt(b[(hi-1)*recordSize:]) < lba {
		lo, hi = hi, hi*2
	}
	hi = min(hi-1, n)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if lbaAt(b[mid*recordSize:]) < lba {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo * recordSize
}

// merge returns the source that lays runs over each other, oldest first, in one
// pass: a tree of overlays that is balanced by the numbers of records. drop
// says that runs[0] is the oldest of all.
func merge(runs []*run, drop bool) source {
	if len(runs) == 1 {
		return &reader{run: runs[0]}
	}
	var total, left int64
	for _, r := range runs {
		total += r.n
	}
	split := 1
	for left = runs[0].n; split < len(runs)-1 && left+runs[split].n/2 < total/2; split++ {
		left += runs[split].n
	}
	return newOverlay(merge(runs[:split], drop), merge(runs[split:], false), drop)
}
