package vhdx

import (
	"slices"
)

const (
	logHeaderSize  = 64
	descriptorSize = 32
	maxZeroDescs   = 1 << 15 // in one active sequence; more is refused
	maxLogWork     = 1 << 30 // bytes checksummed in one search; more is refused
	maxEntryPages  = 100     // data sectors of an entry written here; its descriptors fit the first sector
	firstSector    = (pageSize - logHeaderSize) / descriptorSize
	sectorPayload  = pageSize - 12
)

// logEntry is a valid entry of the log, [MS-VHDX] 2.3.1.
type logEntry struct {
	off, length, tail int64 // in the ring
	sequence          uint64
	flushed, last     int64
	count             int
}

// update is what a descriptor demands, [MS-VHDX] 2.3.1.2, 2.3.1.3.
type update struct {
	off  int64
	zero int64  // length, if data is nil
	data []byte // one sector
}

// logRing reads the log of a file.
type logRing struct {
	r       readerAt
	at, len int64
	id      GUID
	work    int64
}

// read reads from a ring offset, around the end of the ring.
func (l *logRing) read(p []byte, off int64) error {
	off %= l.len
	n := min(int64(len(p)), l.len-off)
	if err := l.r.ReadAt(p[:n], l.at+off); err != nil || n == int64(len(p)) {
		return err
	}
	return l.r.ReadAt(p[n:], l.at)
}

// entry validates the entry at a ring offset. ok is false if there is none.
// Descriptors and data sectors are looked at before the checksum, so that a
// hostile log cannot make the search of the ring cost more than its length squared would.
func (l *logRing) entry(off int64) (e logEntry, ok bool, err error) {
	sector := make([]byte, pageSize)
	if err := l.read(sector, off); err != nil {
		return e, false, err
	}
	if string(sector[:4]) != "loge" || GUID(sector[32:48]) != l.id {
		return e, false, nil
	}
	want := le.Uint32(sector[4:])
	e = logEntry{off: off, length: int64(le.Uint32(sector[8:])), tail: int64(le.Uint32(sector[12:])), sequence: le.Uint64(sector[16:]),
		count: int(le.Uint32(sector[24:])), flushed: int64(le.Uint64(sector[48:])), last: int64(le.Uint64(sector[56:]))}
	if e.length == 0 || e.length%pageSize != 0 || e.length > l.len || e.tail%pageSize != 0 || e.tail >= l.len || e.sequence == 0 ||
		e.flushed < 0 || e.flushed > maxFile || e.last < 0 || e.last > maxFile ||
		logHeaderSize+int64(e.count)*descriptorSize > e.length {
		return e, false, nil
	}
	if ok, err := l.structure(e); !ok || err != nil {
		return e, false, err
	}
	if l.work += e.length; l.work > maxLogWork {
		return e, false, failure("log", l.at, ErrUnsupported, "the search for valid entries costs too much")
	}
	b := make([]byte, e.length)
	if err := l.read(b, off); err != nil {
		return e, false, err
	}
	return e, checksum(b) == want, nil
}

// structure checks signatures and sequence numbers of all descriptors and data sectors.
func (l *logRing) structure(e logEntry) (bool, error) {
	data := int64(0)
	sector := make([]byte, pageSize)
	heads := descriptorSectors(e.count)
	for i := range heads {
		if err := l.read(sector, e.off+i*pageSize); err != nil {
			return false, err
		}
		from, n := int64(0), pageSize/descriptorSize
		if i == 0 {
			from, n = logHeaderSize, firstSector
		}
		done := 0
		if i > 0 {
			done = firstSector + int(i-1)*pageSize/descriptorSize
		}
		for k := range min(n, e.count-done) {
			d := sector[from+int64(k)*descriptorSize:]
			if le.Uint64(d[24:]) != e.sequence {
				return false, nil
			}
			switch string(d[:4]) {
			case "desc":
				data++
			case "zero":
			default:
				return false, nil
			}
		}
	}
	if (heads+data)*pageSize > e.length {
		return false, nil
	}
	for i := range data {
		if err := l.read(sector, e.off+(heads+i)*pageSize); err != nil {
			return false, err
		}
		if string(sector[:4]) != "data" || le.Uint32(sector[4:]) != uint32(e.sequence>>32) || le.Uint32(sector[4092:]) != uint32(e.sequence) {
			return false, nil
		}
	}
	return true, nil
}

func descriptorSectors(count int) int64 {
	return (logHeaderSize + int64(count)*descriptorSize + pageSize - 1) / pageSize
}

// active finds the active sequence, oldest entry first, [MS-VHDX] 2.3.2: of all
// runs of valid entries with consecutive numbers whose last one's tail lies in
// the run, the one with the highest number; it begins at that tail.
func (l *logRing) active() ([]logEntry, error) {
	valid := map[int64]logEntry{}
	var starts []int64
	for off := int64(0); off < l.len; off += pageSize {
		e, ok, err := l.entry(off)
		if err != nil {
			return nil, err
		}
		if ok {
			valid[off] = e
			starts = append(starts, off)
		}
	}
	// Newest entries first: the first one whose run back to its tail is whole wins.
	slices.SortFunc(starts, func(a, b int64) int {
		x, y := valid[a], valid[b]
		switch {
		case x.sequence > y.sequence:
			return -1
		case x.sequence < y.sequence:
			return 1
		}
		return 0
	})
	for _, off := range starts {
		if run := l.run(valid, valid[off]); run != nil {
			return run, nil
		}
	}
	return nil, damaged("log", l.at, "the header names log %s, but the log has no valid sequence of entries", l.id)
}

// run walks from an entry's tail to the entry itself.
func (l *logRing) run(valid map[int64]logEntry, head logEntry) []logEntry {
	var out []logEntry
	total := int64(0)
	at := head.tail
	for {
		e, ok := valid[at]
		if !ok || len(out) > 0 && e.sequence != out[len(out)-1].sequence+1 {
			return nil
		}
		if total += e.length; total > l.len {
			return nil
		}
		out = append(out, e)
		if e.off == head.off {
			return out
		}
		at = (at + e.length) % l.len
	}
}

// updates reads what an entry wants to be written.
func (l *logRing) updates(e logEntry) ([]update, error) {
	b := make([]byte, e.length)
	if err := l.read(b, e.off); err != nil {
		return nil, err
	}
	next := descriptorSectors(e.count) * pageSize
	var out []update
	for i := range e.count {
		d := b[logHeaderSize+i*descriptorSize:]
		u := update{off: int64(le.Uint64(d[16:]))}
		place := l.at + e.off + logHeaderSize + int64(i)*descriptorSize
		n := int64(pageSize)
		if string(d[:4]) == "zero" {
			u.zero = int64(le.Uint64(d[8:]))
			n = u.zero
		} else {
			s := b[next : next+pageSize]
			next += pageSize
			u.data = make([]byte, pageSize)
			copy(u.data, d[8:16])
			copy(u.data[8:], s[8:4092])
			copy(u.data[4092:], d[4:8])
		}
		if u.off < regionA || u.off%pageSize != 0 || n < 0 || n%pageSize != 0 || u.off > maxFile || n > maxFile ||
			(region{l.at, l.len}).overlaps(u.off, n) {
			return nil, damaged("log", place, "a descriptor writes %d bytes at %d", n, u.off)
		}
		out = append(out, u)
	}
	return out, nil
}

// plan is what a replay does, in order.
type plan struct {
	updates []update
	last    int64 // least size of the file afterwards
}

// planReplay finds and checks the active sequence of a log that is not empty.
func planReplay(r readerAt, h header, fileSize int64) (plan, error) {
	var p plan
	ring := logRing{r: r, at: h.logOffset, len: h.logLength, id: h.log}
	entries, err := ring.active()
	if err != nil {
		return p, err
	}
	head := entries[len(entries)-1]
	if fileSize < head.flushed {
		return p, damaged("log", ring.at+head.off, "the file has %d bytes, it was flushed with %d: it was cut short", fileSize, head.flushed)
	}
	p.last = head.last
	zeros := 0
	for _, e := range entries {
		u, err := ring.updates(e)
		if err != nil {
			return p, err
		}
		for _, x := range u {
			if x.data == nil {
				zeros++
			}
		}
		if zeros > maxZeroDescs {
			return p, failure("log", ring.at+e.off, ErrUnsupported, "more than %d zero descriptors", maxZeroDescs)
		}
		p.updates = append(p.updates, u...)
	}
	return p, nil
}

// overlay shows the file as if the plan had been carried out.
func (p plan) overlay(s storage, fileSize int64) *replayed {
	r := &replayed{storage: s, size: max(fileSize, p.last), pages: map[int64][]byte{}}
	for _, u := range p.updates {
		if u.data != nil {
			r.pages[u.off] = u.data
			r.size = max(r.size, u.off+pageSize)
			continue
		}
		z := region{u.off, u.zero}
		r.zero = append(r.zero, z)
		if z.length/pageSize < int64(len(r.pages)) {
			for off := z.off; off < z.end(); off += pageSize {
				delete(r.pages, off)
			}
			continue
		}
		for off := range r.pages {
			if off >= z.off && off < z.end() {
				delete(r.pages, off)
			}
		}
	}
	return r
}

// apply carries the plan out and makes it durable. It can be repeated.
func (p plan) apply(s storage) error {
	size, err := s.Size()
	if err != nil {
		return err
	}
	if size < p.last {
		if err := s.Truncate(p.last); err != nil {
			return err
		}
		size = p.last
	}
	for _, u := range p.updates {
		if u.data != nil {
			if err := s.WriteAt(u.data, u.off); err != nil {
				return err
			}
			size = max(size, u.off+pageSize)
		} else if n := min(u.zero, size-u.off); n > 0 {
			// What lies behind the end of the file is zero when it comes to be.
			if err := s.Zero(u.off, n); err != nil {
				return err
			}
		}
	}
	return s.Sync()
}

// encodeEntry makes a log entry that writes the given pages. Its tail is the entry
// itself: everything before it is durable in its place.
func encodeEntry(id GUID, sequence uint64, at int64, fileSize int64, pages []update) []byte {
	heads := descriptorSectors(len(pages)) * pageSize
	b := make([]byte, heads+int64(len(pages))*pageSize)
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(at))
	le.PutUint64(b[16:], sequence)
	le.PutUint32(b[24:], uint32(len(pages)))
	copy(b[32:], id[:])
	le.PutUint64(b[48:], uint64(fileSize))
	le.PutUint64(b[56:], uint64(fileSize))
	for i, u := range pages {
		d := b[logHeaderSize+i*descriptorSize:]
		copy(d, "desc")
		copy(d[4:8], u.data[4092:])
		copy(d[8:16], u.data[:8])
		le.PutUint64(d[16:], uint64(u.off))
		le.PutUint64(d[24:], sequence)
		s := b[heads+int64(i)*pageSize:]
		copy(s, "data")
		le.PutUint32(s[4:], uint32(sequence>>32))
		copy(s[8:4092], u.data[8:4092])
		le.PutUint32(s[4092:], uint32(sequence))
	}
	putChecksum(b)
	return b
}

// writeRing writes to a ring offset, around the end of the ring.
func writeRing(s storage, at, length int64, b []byte, off int64) error {
	n := min(int64(len(b)), length-off)
	if err := s.WriteAt(b[:n], at+off); err != nil || n == int64(len(b)) {
		return err
	}
	return s.WriteAt(b[n:], at)
}
