package sim

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"holdfast/internal/extent"
)

const pageSize = 64 << 10

// untracked as a sequence number marks an edit from outside, which leaves no trace.
const untracked = 0

// page holds up to pageSize bytes; a nil page in the map reads as zeroes. A
// page is never changed in place once a frozen image may share it: epoch says
// in which epoch of its disk it was made.
type page struct {
	data  []byte
	epoch int
}

// disk is the content of one virtual disk with the history of its writes.
// It is guarded by the lock of its VM.
type disk struct {
	id     string
	path   string
	size   int64
	grain  int64            // granularity of tracking
	pages  map[int64]*page  // absent: zero, or the remote's content
	writes map[int64]uint64 // granule -> sequence number of its last write
	epoch  int
	remote Remote // base of a disk that is not local yet, or nil
}

// frozen is a disk's content and history at one instant.
type frozen struct {
	size   int64
	grain  int64
	pages  map[int64]*page
	writes map[int64]uint64
	remote Remote
}

func newDisk(id, path string, size, grain int64) *disk {
	return &disk{id: id, path: path, size: size, grain: grain, pages: map[int64]*page{}, writes: map[int64]uint64{}}
}

func (d *disk) freeze() *frozen {
	d.epoch++
	return &frozen{size: d.size, grain: d.grain, pages: maps.Clone(d.pages), writes: maps.Clone(d.writes), remote: d.remote}
}

func (d *disk) check(off int64, n int) error {
	if off < 0 || off+int64(n) > d.size {
		return fmt.Errorf("access %d+%d is outside disk %s of %d bytes", off, n, d.id, d.size)
	}
	return nil
}

// missing lists the pages in [off, off+n) that only the remote has; partial
// restricts it to pages that the range covers only partly.
func (d *disk) missing(off, n int64, partial bool) []int64 {
	if d.remote == nil || n == 0 {
		return nil
	}
	var idx []int64
	for i := off / pageSize; i*pageSize < off+n; i++ {
		if _, ok := d.pages[i]; ok {
			continue
		}
		whole := i*pageSize >= off && min((i+1)*pageSize, d.size) <= off+n
		if !partial || !whole {
			idx = append(idx, i)
		}
	}
	return idx
}

// write stores p; pages that are covered partly must be present or have no remote.
func (d *disk) write(off int64, p []byte, seq uint64) {
	d.touch(off, int64(len(p)), seq)
	for len(p) > 0 {
		i, in := off/pageSize, off%pageSize
		n := min(int64(len(p)), pageSize-in)
		pg := d.pages[i]
		if pg == nil || pg.epoch != d.epoch || pg.data == nil {
			fresh := &page{data: make([]byte, pageSize), epoch: d.epoch}
			if pg != nil {
				copy(fresh.data, pg.data)
			}
			pg, d.pages[i] = fresh, fresh
		}
		copy(pg.data[in:], p[:n])
		p, off = p[n:], off+n
	}
}

// trim makes [off, off+n) read as zeroes and frees whole pages.
func (d *disk) trim(off, n int64, seq uint64) {
	end := off + n
	for off < end {
		i := off / pageSize
		stop := min((i+1)*pageSize, end)
		if off == i*pageSize && stop == min((i+1)*pageSize, d.size) {
			d.touch(off, stop-off, seq)
			d.pages[i] = nil
			if d.remote == nil {
				delete(d.pages, i)
			}
		} else {
			d.write(off, make([]byte, stop-off), seq)
		}
		off = stop
	}
}

func (d *disk) touch(off, n int64, seq uint64) {
	if n == 0 || seq == untracked {
		return
	}
	for g := off / d.grain; g*d.grain < off+n; g++ {
		d.writes[g] = seq
	}
}

func (f *frozen) missing(off, n int64) []int64 {
	return (&disk{size: f.size, pages: f.pages, remote: f.remote}).missing(off, n, false)
}

// copyPages fills p from pages; absent and nil pages are zeroes.
func copyPages(pages map[int64]*page, p []byte, off int64) {
	for len(p) > 0 {
		i, in := off/pageSize, off%pageSize
		n := min(int64(len(p)), pageSize-in)
		if pg := pages[i]; pg != nil && pg.data != nil {
			copy(p[:n], pg.data[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// changedSince lists what was written after seq; what lies beyond oldSize
// has no history and counts as written.
func (f *frozen) changedSince(seq uint64, oldSize int64) []extent.Extent {
	var grains []int64
	for g, s := range f.writes {
		if s > seq {
			grains = append(grains, g)
		}
	}
	list := runs(grains, f.grain, min(oldSize, f.size))
	if f.size > oldSize {
		list = append(list, extent.Extent{Off: oldSize, Len: f.size - oldSize})
	}
	return list
}

// zeroes lists what certainly reads as zeroes.
func (f *frozen) zeroes() []extent.Extent {
	if f.remote != nil {
		var idx []int64
		for i, pg := range f.pages {
			if pg == nil {
				idx = append(idx, i)
			}
		}
		return runs(idx, pageSize, f.size)
	}
	var idx []int64
	for i, pg := range f.pages {
		if pg != nil {
			idx = append(idx, i)
		}
	}
	var zero []extent.Extent
	pos := int64(0)
	for _, e := range runs(idx, pageSize, f.size) {
		if e.Off > pos {
			zero = append(zero, extent.Extent{Off: pos, Len: e.Off - pos})
		}
		pos = e.End()
	}
	if pos < f.size {
		zero = append(zero, extent.Extent{Off: pos, Len: f.size - pos})
	}
	return zero
}

// runs turns unit numbers into sorted, joined extents clipped to size.
func runs(idx []int64, unit, size int64) []extent.Extent {
	slices.Sort(idx)
	var list []extent.Extent
	for _, i := range idx {
		off, end := i*unit, min((i+1)*unit, size)
		if end <= off {
			continue
		}
		if n := len(list); n > 0 && list[n-1].End() == off {
			list[n-1].Len = end - list[n-1].Off
		} else {
			list = append(list, extent.Extent{Off: off, Len: end - off})
		}
	}
	return list
}

// fetch reads page i from the remote base.
func fetch(ctx context.Context, r Remote, i, size int64) ([]byte, error) {
	data := make([]byte, pageSize)
	n := min(int64(pageSize), size-i*pageSize)
	if avail := r.Size() - i*pageSize; avail < n {
		n = max(avail, 0) // the local image may be larger than its base
	}
	if n == 0 {
		return data, nil
	}
	if err := r.ReadAt(ctx, data[:n], i*pageSize); err != nil {
		return nil, fmt.Errorf("read page %d from the recovery point: %w", i, err)
	}
	return data, nil
}
