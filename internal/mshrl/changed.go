package mshrl

import (
	"cmp"
	"fmt"
	"slices"
)

// Range is the half-open range [Off, Off+Len) of a disk, in bytes. It converts to extent.Extent.
type Range struct{ Off, Len int64 }

// maxRanges bounds what Changed returns (256 MiB).
const maxRanges = 16 << 20

// Changed returns the ranges that the log writes: sorted, neither overlapping nor
// touching. A log of more than 16 Mi separate ranges is ErrTooRagged.
func (l *Log) Changed() ([]Range, error) {
	var m merger
	err := l.Entries(func(e Entry) error {
		if !m.add(Range{e.Off, e.Len}, maxRanges) {
			return l.fail(fmt.Errorf("%w: more than %d", ErrTooRagged, maxRanges))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.merge()
	return m.done, nil
}

// merger collects ranges; it sorts only now and then.
type merger struct{ done, fresh []Range }

// add takes a range; false means that there are more than limit.
func (m *merger) add(r Range, limit int) bool {
	// Sequential writes are the usual case.
	if n := len(m.fresh); n > 0 && m.fresh[n-1].Off+m.fresh[n-1].Len == r.Off {
		m.fresh[n-1].Len += r.Len
		return true
	}
	m.fresh = append(m.fresh, r)
	// Merging when as much is new as is done keeps the work at n log n.
	if len(m.fresh) >= max(1<<16, len(m.done)) || len(m.fresh) > limit {
		m.merge()
	}
	return len(m.done) <= limit
}

// merge brings all into done.
func (m *merger) merge() {
	all := append(m.done, m.fresh...)
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len >= r.Off {
			out[n-1].Len = max(out[n-1].Len, r.Off+r.Len-out[n-1].Off)
			continue
		}
		out = append(out, r)
	}
	m.done, m.fresh = out, m.fresh[:0]
}
