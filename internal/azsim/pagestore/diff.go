package pagestore

import "bytes"

// change is a run of pages that differ: written in the newer state, or not any more.
type change struct {
	span
	cleared bool
}

// managedPages is the granularity of ranges of managed disks, in pages: 4 KiB.
const managedPages = 8

// compareImages finds by content what a managed snapshot has that an older one has
// not, exact to 4 KiB. It reads only what is written in one of the two.
func compareImages(older, newer *image) ([]change, error) {
	size, oldSize := newer.length(), older.length()
	now := newer.allocated()
	ow := older.allocated()
	union := now.clone()
	union.add(&ow)
	var out []change
	put := func(p int64, cleared bool) {
		sp := span{p, min(p+managedPages, (size+pageSize-1)/pageSize)}
		if n := len(out); n > 0 && out[n-1].to == sp.from && out[n-1].cleared == cleared {
			out[n-1].to = sp.to
			return
		}
		out = append(out, change{sp, cleared})
	}
	a, b := make([]byte, copyPiece), make([]byte, copyPiece)
	for _, sp := range coarse(union.spans(0, (size+pageSize-1)/pageSize), managedPages) {
		for at, end := sp.from*pageSize, min(sp.to*pageSize, size); at < end; at += copyPiece {
			n := min(copyPiece, end-at)
			if err := newer.readAt(a[:n], at); err != nil {
				return nil, err
			}
			clear(b[:n])
			if m := min(n, oldSize-at); m > 0 {
				if err := older.readAt(b[:m], at); err != nil {
					return nil, err
				}
			}
			for i := int64(0); i < n; i += managedPages * pageSize {
				j := min(n, i+managedPages*pageSize)
				if !bytes.Equal(a[i:j], b[i:j]) {
					p := (at + i) / pageSize
					put(p, now.next(p, p+managedPages, true) == p+managedPages)
				}
			}
		}
	}
	return out, nil
}

// allocated is a copy of the set of written pages.
func (im *image) allocated() pageSet {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.written.clone()
}

// trackedChanges is what a page blob's touched pages mean for a reader who has
// the older state: a page that was never written and then cleared is no change.
func trackedChanges(touched *pageSet, older, newer *image) []change {
	size := newer.length()
	now, before := newer.allocated(), older.allocated()
	var out []change
	for _, sp := range touched.spans(0, (size+pageSize-1)/pageSize) {
		for p := sp.from; p < sp.to; {
			if now.has(p) {
				end := now.next(p, sp.to, false)
				out = append(out, change{span{p, end}, false})
				p = end
				continue
			}
			end := now.next(p, sp.to, true)
			for _, was := range before.spans(p, end) {
				out = append(out, change{was, true})
			}
			p = end
		}
	}
	return out
}
