package store

import (
	"sort"

	"holdfast/internal/extmap"
)

// record maps a run of a disk to a frame. Runs of one disk never overlap.
type record struct {
	off, len int64
	seg      int32 // index into the view's objects; segZero for a run of zeroes
	frame    uint32
	frameOff uint32
}

const segZero = extmap.SegZero

func recordOf(e extmap.Extent) record { return record{e.Off, e.Len, e.Seg, e.Frame, e.FrameOff} }

func (r record) end() int64 { return r.off + r.len }

// from returns the part of r that starts at off.
func (r record) from(off int64) record {
	d := off - r.off
	r.off, r.len = off, r.len-d
	if r.seg != segZero {
		r.frameOff += uint32(d)
	}
	return r
}

// until returns the part of r that ends at end.
func (r record) until(end int64) record {
	r.len = end - r.off
	return r
}

// find returns the index of the first record that ends after off.
func find(run []record, off int64) int {
	return sort.Search(len(run), func(i int) bool { return run[i].end() > off })
}
