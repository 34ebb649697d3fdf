package pagestore

import "math/bits"

const (
	pageSize   = 512
	chunkPages = 1 << 15 // pages in one chunk of a pageSet, 16 MiB of a disk
)

type chunk [chunkPages / 64]uint64

// pageSet is a set of numbers of 512-byte pages. It takes memory only where
// something was ever set: 4 KiB for each 16 MiB. The zero value is empty. It is not
// safe for concurrent use.
type pageSet struct{ chunks map[int64]*chunk }

// span is the half-open range [from, to) of pages.
type span struct{ from, to int64 }

func (s *pageSet) has(p int64) bool {
	c := s.chunks[p/chunkPages]
	return c != nil && c[p%chunkPages/64]&(1<<(p%64)) != 0
}

// set adds the pages [from, to).
func (s *pageSet) set(from, to int64) {
	s.each(from, to, true, func(word *uint64, mask uint64) { *word |= mask })
}

// unset removes the pages [from, to).
func (s *pageSet) unset(from, to int64) {
	s.each(from, to, false, func(word *uint64, mask uint64) { *word &^= mask })
}

// each calls fn for every word that has pages of [from, to). Chunks which do not
// exist are made, or passed over.
func (s *pageSet) each(from, to int64, grow bool, fn func(word *uint64, mask uint64)) {
	for from < to {
		n, end := from/chunkPages, min(to, (from/chunkPages+1)*chunkPages)
		c := s.chunks[n]
		if c == nil {
			if !grow {
				from = end
				continue
			}
			if s.chunks == nil {
				s.chunks = map[int64]*chunk{}
			}
			c = new(chunk)
			s.chunks[n] = c
		}
		for from < end {
			stop := min(end, (from/64+1)*64)
			mask := ^uint64(0) << (from % 64)
			if stop%64 != 0 {
				mask &= 1<<(stop%64) - 1
			}
			fn(&c[from%chunkPages/64], mask)
			from = stop
		}
	}
}

// next finds the first page in [from, to) that is in the set (want) or is not.
// It is to if there is none.
func (s *pageSet) next(from, to int64, want bool) int64 {
	for from < to {
		c := s.chunks[from/chunkPages]
		if c == nil {
			if !want {
				return from
			}
			from = (from/chunkPages + 1) * chunkPages
			continue
		}
		word := c[from%chunkPages/64]
		if !want {
			word = ^word
		}
		if word &= ^uint64(0) << (from % 64); word != 0 {
			return min(to, from/64*64+int64(bits.TrailingZeros64(word)))
		}
		from = (from/64 + 1) * 64
	}
	return to
}

// spans returns the runs of the set within [from, to), in order.
func (s *pageSet) spans(from, to int64) []span {
	var out []span
	for p := s.next(from, to, true); p < to; p = s.next(p, to, true) {
		end := s.next(p, to, false)
		out = append(out, span{p, end})
		p = end
	}
	return out
}

func (s *pageSet) clone() pageSet {
	out := pageSet{chunks: make(map[int64]*chunk, len(s.chunks))}
	for n, c := range s.chunks {
		d := *c
		out.chunks[n] = &d
	}
	return out
}

// add adds all pages of t.
func (s *pageSet) add(t *pageSet) {
	for n, c := range t.chunks {
		d := s.chunks[n]
		if d == nil {
			if s.chunks == nil {
				s.chunks = map[int64]*chunk{}
			}
			d = new(chunk)
			s.chunks[n] = d
		}
		for i, w := range c {
			d[i] |= w
		}
	}
}

// coarse widens the spans to whole multiples of pages and joins what then touches.
func coarse(in []span, pages int64) []span {
	var out []span
	for _, sp := range in {
		sp.from, sp.to = sp.from/pages*pages, (sp.to+pages-1)/pages*pages
		if n := len(out); n > 0 && out[n-1].to >= sp.from {
			out[n-1].to = max(out[n-1].to, sp.to)
			continue
		}
		out = append(out, sp)
	}
	return out
}
