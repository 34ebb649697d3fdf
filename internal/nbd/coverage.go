package nbd

import "slices"

// maxSpans bounds the disjoint pieces in which a read may arrive. Servers send
// them in order, which keeps it at one; the bound is against hostile ones.
const maxSpans = 4096

// coverage tells which bytes of a read have arrived.
type coverage struct {
	total int
	spans []span // sorted, disjoint, not adjacent
}

type span struct{ from, to int }

func (v *coverage) reset(total int) {
	v.total, v.spans = total, v.spans[:0]
}

// add marks n bytes at off; false if they are outside of the read, marked
// already, or make too many pieces. n must be positive.
func (v *coverage) add(off, n int) bool {
	if n <= 0 || off < 0 || off > v.total || n > v.total-off {
		return false
	}
	end := off + n
	i, _ := slices.BinarySearchFunc(v.spans, off, func(s span, off int) int { return s.from - off })
	// spans[i] is the first that begins at or after off.
	if i < len(v.spans) && v.spans[i].from < end || i > 0 && v.spans[i-1].to > off {
		return false
	}
	left := i > 0 && v.spans[i-1].to == off
	right := i < len(v.spans) && v.spans[i].from == end
	switch {
	case left && right:
		v.spans[i-1].to = v.spans[i].to
		v.spans = slices.Delete(v.spans, i, i+1)
	case left:
		v.spans[i-1].to = end
	case right:
		v.spans[i].from = off
	case len(v.spans) == maxSpans:
		return false
	default:
		v.spans = slices.Insert(v.spans, i, span{off, end})
	}
	return true
}

func (v *coverage) complete() bool {
	return v.total == 0 || len(v.spans) == 1 && v.spans[0] == span{0, v.total}
}
