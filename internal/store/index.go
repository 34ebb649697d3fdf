package store

import (
	"math"
	"sort"
)

// record maps a run of a disk to a frame. Runs of one disk never overlap.
type record struct {
	off, len int64
	seg      int32 // index into the view's objects; segZero for a run of zeroes
	frame    uint32
	frameOff uint32
}

const segZero int32 = -1

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

// overlay lays newer over older; both are sorted and free of overlaps, and so
// is the result. Linear in the sum of both.
func overlay(older, newer []record) []record {
	if len(older) == 0 {
		return newer
	}
	if len(newer) == 0 {
		return older
	}
	out := make([]record, 0, len(older)+len(newer))
	i := 0
	var rest record // what is left of older[i] when a newer run cut its front off
	haveRest := false
	next := func() (record, bool) {
		if haveRest {
			return rest, true
		}
		if i < len(older) {
			return older[i], true
		}
		return record{}, false
	}
	advance := func() { i++; haveRest = false }
	for _, n := range newer {
		for {
			o, ok := next()
			if !ok || o.off >= n.end() {
				break
			}
			if o.off < n.off {
				out = append(out, o.until(min(o.end(), n.off)))
			}
			if o.end() > n.end() {
				rest, haveRest = o.from(n.end()), true
				break
			}
			advance()
		}
		out = append(out, n)
	}
	if haveRest {
		out = append(out, rest)
		i++
	}
	return append(out, older[i:]...)
}

// overlayAll lays runs over each other, oldest first, by halves, so that many
// small cuts cost n log n and not n squared.
func overlayAll(runs [][]record) []record {
	switch len(runs) {
	case 0:
		return nil
	case 1:
		return runs[0]
	}
	mid := len(runs) / 2
	return overlay(overlayAll(runs[:mid]), overlayAll(runs[mid:]))
}

// drop removes [off, end) from a run.
func drop(run []record, off, end int64) []record {
	out := run[:0:0]
	for _, r := range run {
		if r.end() <= off || r.off >= end {
			out = append(out, r)
			continue
		}
		if r.off < off {
			out = append(out, r.until(off))
		}
		if r.end() > end {
			out = append(out, r.from(end))
		}
	}
	return out
}

// normalise sorts the records of one object. Within an object a later record
// of the same range wins; writers do not produce overlaps.
func normalise(run []record) []record {
	if sort.SliceIsSorted(run, func(i, j int) bool { return run[i].off < run[j].off }) && !overlaps(run) {
		return run
	}
	runs := make([][]record, len(run))
	for i := range run {
		runs[i] = run[i : i+1 : i+1]
	}
	return overlayAll(runs)
}

func overlaps(run []record) bool {
	end := int64(math.MinInt64)
	for _, r := range run {
		if r.off < end {
			return true
		}
		end = r.end()
	}
	return false
}

// find returns the index of the first record that ends after off.
func find(run []record, off int64) int {
	return sort.Search(len(run), func(i int) bool { return run[i].end() > off })
}
