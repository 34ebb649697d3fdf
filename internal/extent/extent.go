// Package extent is arithmetic over byte ranges of a disk: sorted sets of
// half-open ranges, their union, difference and intersection, and alignment
// to a granularity.
//
// All values are immutable in use: functions return new slices and never write
// to their arguments, so sets may be shared between goroutines. Offsets and
// lengths are bytes in int64. Set operations take time linear in the number of
// extents of their operands; only Normalize sorts.
package extent

import (
	"fmt"
	"math"
	"slices"
	"sort"
)

// Extent is the half-open byte range [Off, Off+Len) of a disk.
type Extent struct {
	Off, Len int64
}

// End returns Off+Len.
func (e Extent) End() int64 { return e.Off + e.Len }

// Valid reports whether e is a non-empty range of non-negative offsets whose
// end fits in an int64.
func (e Extent) Valid() bool {
	return e.Off >= 0 && e.Len > 0 && e.Len <= math.MaxInt64-e.Off
}

// String returns the range in the half-open notation, for messages.
func (e Extent) String() string { return fmt.Sprintf("[%d,+%d)", e.Off, e.Len) }

// Set is a normalised list of extents: every extent is Valid, they are sorted
// by offset, and they neither overlap nor touch. The nil Set is the empty set.
// Methods require normalised operands; Normalize makes them.
type Set []Extent

// Normalize returns the set of all bytes covered by list, which may be in any
// order and may overlap. Extents with Len <= 0 are dropped. Bytes at negative
// offsets, and bytes at or after math.MaxInt64, cannot exist on a disk and are
// cut off; no byte that can exist is ever lost.
func Normalize(list []Extent) Set {
	work := make([]Extent, 0, len(list))
	sorted := true
	for _, e := range list {
		e = e.saturate()
		if e.Len <= 0 {
			continue
		}
		if n := len(work); n > 0 && work[n-1].Off > e.Off {
			sorted = false
		}
		work = append(work, e)
	}
	if !sorted {
		slices.SortFunc(work, func(a, b Extent) int {
			switch {
			case a.Off < b.Off:
				return -1
			case a.Off > b.Off:
				return 1
			}
			return 0
		})
	}
	// Merging in place is safe: work is ours and is written behind the reader.
	out := work[:0]
	for _, e := range work {
		out = appendMerged(out, e.Off, e.End())
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// saturate cuts e to the offsets [0, MaxInt64).
func (e Extent) saturate() Extent {
	if e.Len <= 0 {
		return Extent{}
	}
	if e.Off < 0 {
		// Off+Len cannot overflow here: the signs differ.
		return Extent{0, e.Off + e.Len}
	}
	if e.Len > math.MaxInt64-e.Off {
		e.Len = math.MaxInt64 - e.Off
	}
	return e
}

// appendMerged adds [off,end) to a normalised list whose last extent does not
// start after off.
func appendMerged(out []Extent, off, end int64) []Extent {
	if n := len(out); n > 0 && out[n-1].End() >= off {
		if end > out[n-1].End() {
			out[n-1].Len = end - out[n-1].Off
		}
		return out
	}
	return append(out, Extent{off, end - off})
}

// IsNormal reports whether s keeps the promises of Set.
func (s Set) IsNormal() bool {
	for i, e := range s {
		if !e.Valid() || i > 0 && s[i-1].End() >= e.Off {
			return false
		}
	}
	return true
}

// Len returns the number of bytes in s. The number of extents is len(s).
func (s Set) Len() int64 {
	var n int64
	for _, e := range s {
		n += e.Len
	}
	return n
}

// Equal reports whether s and t hold the same bytes.
func (s Set) Equal(t Set) bool { return slices.Equal(s, t) }

// Union returns the bytes that are in s or in t.
func (s Set) Union(t Set) Set {
	if len(s) == 0 {
		return slices.Clone(t)
	}
	if len(t) == 0 {
		return slices.Clone(s)
	}
	out := make([]Extent, 0, len(s)+len(t))
	i, j := 0, 0
	for i < len(s) || j < len(t) {
		var e Extent
		if j == len(t) || i < len(s) && s[i].Off <= t[j].Off {
			e = s[i]
			i++
		} else {
			e = t[j]
			j++
		}
		out = appendMerged(out, e.Off, e.End())
	}
	return out
}

// Subtract returns the bytes of s that are not in t.
func (s Set) Subtract(t Set) Set {
	var out Set
	j := 0
	for _, e := range s {
		off, end := e.Off, e.End()
		for j < len(t) && t[j].End() <= off {
			j++
		}
		// The last hole of this extent may reach into the next one, so j only
		// moves past holes that end inside e.
		for j < len(t) && t[j].Off < end {
			if t[j].Off > off {
				out = append(out, Extent{off, t[j].Off - off})
			}
			off = t[j].End()
			if off >= end {
				break
			}
			j++
		}
		if off < end {
			out = append(out, Extent{off, end - off})
		}
	}
	return out
}

// Intersect returns the bytes that are in both s and t.
func (s Set) Intersect(t Set) Set {
	var out Set
	i, j := 0, 0
	for i < len(s) && j < len(t) {
		off := max(s[i].Off, t[j].Off)
		end := min(s[i].End(), t[j].End())
		if off < end {
			out = append(out, Extent{off, end - off})
		}
		if s[i].End() < t[j].End() {
			i++
		} else {
			j++
		}
	}
	return out
}

// Clip returns the bytes of s that lie inside window. It costs O(log len(s))
// plus the size of the answer. An empty or invalid window gives the empty set.
func (s Set) Clip(window Extent) Set {
	window = window.saturate()
	if window.Len <= 0 {
		return nil
	}
	var out Set
	for _, e := range s[s.search(window.Off):] {
		off, end := max(e.Off, window.Off), min(e.End(), window.End())
		if off >= end {
			break
		}
		out = append(out, Extent{off, end - off})
	}
	return out
}

// Contains reports whether every byte of e is in s, in O(log len(s)). Every
// set contains an empty extent; none contains a byte that cannot exist (see
// Normalize).
func (s Set) Contains(e Extent) bool {
	if e.Len <= 0 {
		return true
	}
	if !e.Valid() {
		return false
	}
	i := s.search(e.Off)
	return i < len(s) && s[i].Off <= e.Off && e.End() <= s[i].End()
}

// Overlaps reports whether any byte of e is in s, in O(log len(s)).
func (s Set) Overlaps(e Extent) bool {
	e = e.saturate()
	if e.Len <= 0 {
		return false
	}
	i := s.search(e.Off)
	return i < len(s) && s[i].Off < e.End()
}

// search returns the index of the first extent that ends after off.
func (s Set) search(off int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].End() > off })
}

// AlignOut grows every extent of s to whole units of granularity and cuts the
// result at size, the length of the disk: the last unit of a disk may be short.
// Bytes of s at or after size are dropped. It panics if granularity is not
// positive.
func (s Set) AlignOut(granularity, size int64) Set {
	if granularity <= 0 {
		panic(fmt.Sprintf("extent: AlignOut with granularity %d", granularity))
	}
	var out []Extent
	for _, e := range s {
		if e.Off >= size {
			break
		}
		off := e.Off - e.Off%granularity
		end := min(e.End(), size)
		if rest := end % granularity; rest != 0 {
			// Compared by subtraction, because end+granularity may overflow.
			if granularity-rest >= size-end {
				end = size
			} else {
				end += granularity - rest
			}
		}
		out = appendMerged(out, off, end)
	}
	return out
}

// Split returns the extents of s in order, cut into pieces of at most limit
// bytes; each extent is cut from its own start. Pieces touch, so the answer is
// not a Set. It panics if limit is not positive.
func (s Set) Split(limit int64) []Extent {
	if limit <= 0 {
		panic(fmt.Sprintf("extent: Split with limit %d", limit))
	}
	out := make([]Extent, 0, len(s))
	for _, e := range s {
		for e.Len > limit {
			out = append(out, Extent{e.Off, limit})
			e.Off += limit
			e.Len -= limit
		}
		out = append(out, e)
	}
	return out
}

// SplitAligned is Split with cuts at the multiples of unit, so that no piece
// crosses a unit's border (a frame, a tile). It panics if unit is not positive.
func (s Set) SplitAligned(unit int64) []Extent {
	if unit <= 0 {
		panic(fmt.Sprintf("extent: SplitAligned with unit %d", unit))
	}
	out := make([]Extent, 0, len(s))
	for _, e := range s {
		for e.Len > 0 {
			n := min(e.Len, unit-e.Off%unit)
			out = append(out, Extent{e.Off, n})
			e.Off += n
			e.Len -= n
		}
	}
	return out
}
