package extmap

import "encoding/binary"

const (
	recordSize = 16

	kindData  = 0
	kindZero  = 1
	kindClear = 2

	lbaShift      = 26
	kindShift     = 24
	frameOffShift = 20
	unitShift     = 12
)

// record is one entry of a run as in the package comment. Records of a run
// are sorted, do not overlap and do not continue each other.
type record struct {
	w0, w1 uint64
}

func getRecord(b []byte) record {
	_ = b[recordSize-1]
	return record{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

func appendRecord(b []byte, r record) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.w0)
	return binary.LittleEndian.AppendUint64(b, r.w1)
}

func putRecord(b []byte, r record) {
	_ = b[recordSize-1]
	binary.LittleEndian.PutUint64(b, r.w0)
	binary.LittleEndian.PutUint64(b[8:], r.w1)
}

// lbaAt returns the offset, in units, of the record at the front of b.
func lbaAt(b []byte) uint64 { return binary.LittleEndian.Uint64(b) >> lbaShift }

func makeRun(kind uint64, off, length int64) record {
	return record{uint64(off)>>unitShift<<lbaShift | kind<<kindShift, uint64(length)}
}

// makeRecord needs a valid extent.
func makeRecord(e Extent) record {
	if e.Seg == SegZero {
		return makeRun(kindZero, e.Off, e.Len)
	}
	return record{
		uint64(e.Off)>>unitShift<<lbaShift | uint64(e.FrameOff)>>unitShift<<frameOffShift | uint64(e.Len-1),
		uint64(uint32(e.Seg))<<32 | uint64(e.Frame),
	}
}

func (r record) kind() uint64 { return r.w0 >> kindShift & 3 }
func (r record) lba() uint64  { return r.w0 >> lbaShift }
func (r record) off() int64   { return int64(r.w0 >> lbaShift << unitShift) }
func (r record) end() int64   { return r.off() + r.length() }

func (r record) length() int64 {
	if r.kind() == kindData {
		return int64(r.w0&(MaxData-1)) + 1
	}
	return int64(r.w1)
}

// roundUp returns the end of what a record that ends at n hides of older layers.
func roundUp(n int64) int64 { return (n + Unit - 1) &^ (Unit - 1) }

func (r record) frameOff() uint64 { return r.w0 >> frameOffShift & (MaxData/Unit - 1) }

// from returns the part of r that starts at off, a multiple of Unit inside r.
func (r record) from(off int64) record {
	d := off - r.off()
	if r.kind() != kindData {
		return makeRun(r.kind(), off, r.length()-d)
	}
	return record{
		uint64(off)>>unitShift<<lbaShift | (r.frameOff()+uint64(d)>>unitShift)<<frameOffShift | uint64(r.length()-d-1),
		r.w1,
	}
}

// until returns the part of r that ends at end, which is inside r.
func (r record) until(end int64) record {
	n := end - r.off()
	if r.kind() != kindData {
		return record{r.w0, uint64(n)}
	}
	return record{r.w0&^(MaxData-1) | uint64(n-1), r.w1}
}

// join returns a and b as one if b continues a.
func join(a, b record) (record, bool) {
	if a.kind() != b.kind() || a.end() != b.off() {
		return a, false
	}
	n := a.length() + b.length()
	if a.kind() != kindData {
		return record{a.w0, uint64(n)}, true
	}
	if a.w1 != b.w1 || a.frameOff()+uint64(a.length())>>unitShift != b.frameOff() {
		return a, false
	}
	return record{a.w0&^(MaxData-1) | uint64(n-1), a.w1}, true
}

func (r record) extent() Extent {
	if r.kind() != kindData {
		return Extent{Off: r.off(), Len: int64(r.w1), Seg: SegZero}
	}
	return Extent{
		Off: r.off(), Len: r.length(),
		Seg: int32(r.w1 >> 32), Frame: uint32(r.w1), FrameOff: uint32(r.frameOff() << unitShift),
	}
}
