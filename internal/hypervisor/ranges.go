package hypervisor

import "holdfast/internal/extent"

// Merge calls fn with the ranges of [off, off+length) in ascending order,
// without gaps or overlaps: Changed where changed covers, Zero where zero
// covers. Both sets must be sorted and free of overlaps; what lies outside the
// window is ignored. Neighbours with equal properties come as one range.
func Merge(off, length int64, changed, zero []extent.Extent, fn func(Range) error) error {
	end := off + length
	var pending Range
	for pos := off; pos < end; {
		isChanged, stop1 := covered(&changed, pos, end)
		isZero, stop2 := covered(&zero, pos, end)
		stop := min(stop1, stop2)
		if pending.Len > 0 && pending.Changed == isChanged && pending.Zero == isZero {
			pending.Len += stop - pos
		} else {
			if pending.Len > 0 {
				if err := fn(pending); err != nil {
					return err
				}
			}
			pending = Range{Off: pos, Len: stop - pos, Changed: isChanged, Zero: isZero}
		}
		pos = stop
	}
	if pending.Len > 0 {
		return fn(pending)
	}
	return nil
}

// covered reports whether pos lies in the set and how far that answer holds;
// it drops extents that end at or before pos.
func covered(set *[]extent.Extent, pos, end int64) (bool, int64) {
	s := *set
	for len(s) > 0 && s[0].End() <= pos {
		s = s[1:]
	}
	*set = s
	switch {
	case len(s) == 0 || s[0].Off >= end:
		return false, end
	case s[0].Off > pos:
		return false, s[0].Off
	}
	return true, min(s[0].End(), end)
}
