package capture

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"

	"github.com/zeebo/blake3"

	"holdfast/internal/cut"
)

// filter is a disk's local table of keyed hashes, 8 bytes for each 4 KiB
// block, as of one cut (the position). A block whose hash equals the table is
// not shipped. Losing a filter costs bytes, never correctness: an unknown entry
// equals nothing, and a filter whose position is not the chain's tip is emptied.
//
// Entries: 0 nothing was put (a block of zeroes, or unknown, as byte 101 of the
// header says: a replica begins with zeroes, so that sparse disks have sparse
// tables), 1 unknown, 2 a block of zeroes, else the keyed BLAKE3 of the block cut to 8 bytes.
//
// File: 4096-byte header, then entries.
//
//	0   8  magic "HFFILTER"
//	8   4  version, 1
//	12  4  CRC-32C of the header with this field zero
//	16  8  disk size, bytes
//	24  32 key
//	56  4  position: generation
//	60  8  position: cut number
//	68  32 position: chain hash
//	100 1  1 = at the position, 0 = being changed
//	101 1  meaning of entry 0: 0 = a block of zeroes, 1 = unknown
type filter struct {
	f     *os.File
	m     []byte
	size  int64 // of the disk
	hash  *blake3.Hasher
	clean bool
	at    cut.Ref
	fresh bool // of an initial replication's first round: every block is put at most once
	used  int  // touches of the table since its pages were dropped
}

const (
	filterHeader = 4096
	filterMagic  = "HFFILTER"
	headerEnd    = 102

	entryUnknown = 1
	entryZero    = 2
)

func filterFile(size int64) int64 { return filterHeader + 8*((size+cut.Unit-1)/cut.Unit) }

// openFilter opens or makes the filter of a disk. A damaged one is replaced by an empty one.
func openFilter(path string, size int64) (*filter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, diskError("capture.filter", path, err)
	}
	t := &filter{f: f, size: size}
	if err := t.load(); err != nil {
		t.close()
		return nil, diskError("capture.filter", path, err)
	}
	return t, nil
}

func (t *filter) load() error {
	head := make([]byte, filterHeader)
	_, rerr := t.f.ReadAt(head, 0)
	fresh := rerr != nil || !validFilter(head)
	if fresh {
		if err := t.f.Truncate(0); err != nil {
			return err
		}
		clear(head)
		copy(head, filterMagic)
		binary.LittleEndian.PutUint32(head[8:], 1)
		rand.Read(head[24:56])
	}
	// A disk that grew has unknown entries at its end; its last block was
	// perhaps cut short before and is unknown now.
	old := int64(binary.LittleEndian.Uint64(head[16:]))
	if err := t.f.Truncate(filterFile(t.size)); err != nil {
		return err
	}
	m, err := mapFile(t.f, filterFile(t.size))
	if err != nil {
		return err
	}
	t.m = m
	copy(t.m, head)
	if !fresh && old != t.size {
		last := min(old, t.size) / cut.Unit
		if last < (t.size+cut.Unit-1)/cut.Unit {
			t.put(last, entryUnknown)
		}
	}
	binary.LittleEndian.PutUint64(t.m[16:], uint64(t.size))
	if t.hash, err = blake3.NewKeyed(t.m[24:56]); err != nil {
		return err
	}
	t.clean = !fresh && t.m[100] == 1
	t.at.Gen = gen(binary.LittleEndian.Uint32(t.m[56:]))
	t.at.N = binary.LittleEndian.Uint64(t.m[60:])
	copy(t.at.Hash[:], t.m[68:100])
	t.seal()
	return nil
}

func validFilter(head []byte) bool {
	crc := binary.LittleEndian.Uint32(head[12:])
	h := bytes.Clone(head[:headerEnd])
	clear(h[12:16])
	return string(head[:8]) == filterMagic && binary.LittleEndian.Uint32(head[8:]) == 1 && crc32.Checksum(h, castagnoli()) == crc
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// seal recomputes the header's checksum.
func (t *filter) seal() {
	clear(t.m[12:16])
	binary.LittleEndian.PutUint32(t.m[12:], crc32.Checksum(t.m[:headerEnd], castagnoli()))
}

// usable reports whether the table describes exactly the cut ref.
func (t *filter) usable(ref cut.Ref) bool { return t.clean && !ref.IsZero() && t.at == ref }

// reset empties the table: every block is unknown, or, for a replica that has
// nothing yet, zero.
func (t *filter) reset(zero bool) error {
	path := t.f.Name()
	if err := errors.Join(t.close(), os.Remove(path)); err != nil {
		return diskError("capture.filter", path, err)
	}
	n, err := openFilter(path, t.size)
	if err != nil {
		return err
	}
	*t = *n
	t.m[101] = 1
	if t.fresh = zero; zero {
		t.m[101] = 0
	}
	t.seal()
	return nil
}

// sum is the entry of a block that is not longer than cut.Unit.
func (t *filter) sum(block []byte) uint64 {
	if isZero(block) {
		return entryZero
	}
	var out [8]byte
	t.hash.Reset()
	t.hash.Write(block)
	t.hash.Digest().Read(out[:])
	return max(binary.LittleEndian.Uint64(out[:]), entryZero+1)
}

func isZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// same reports whether the block is known to have the entry v already.
func (t *filter) same(block int64, v uint64) bool {
	t.touch()
	have := binary.LittleEndian.Uint64(t.m[filterHeader+8*block:])
	if have == 0 {
		return v == entryZero && t.m[101] == 0
	}
	return have == v && v != entryUnknown
}

func (t *filter) put(block int64, v uint64) {
	if v == entryZero && t.same(block, v) {
		return // keeps the table of a sparse disk sparse
	}
	t.touch()
	binary.LittleEndian.PutUint64(t.m[filterHeader+8*block:], v)
}

// touch lets go of the table's pages now and then: a mapped page counts as the
// agent's memory, and the kernel maps sixteen around each that is touched.
func (t *filter) touch() {
	if t.used++; t.used >= 1<<14 {
		t.used = 0
		dropPages(t.m)
	}
}

// putZeroes puts a range of zeroes.
func (t *filter) putZeroes(off, n int64) {
	if t.fresh {
		return // nothing was put, and nothing means zero
	}
	for b := off / cut.Unit; b*cut.Unit < off+n; b++ {
		t.put(b, entryZero)
	}
}

// begin marks the table as being changed: from here until commit it is at no position.
func (t *filter) begin() error {
	t.clean = false
	t.m[100] = 0
	t.seal()
	return syncMap(t.m[:filterHeader], t.f)
}

// commit makes the changes durable and sets the position.
func (t *filter) commit(ref cut.Ref) error {
	if err := syncMap(t.m, t.f); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(t.m[56:], uint32(ref.Gen))
	binary.LittleEndian.PutUint64(t.m[60:], ref.N)
	copy(t.m[68:100], ref.Hash[:])
	t.m[100] = 1
	t.seal()
	if err := syncMap(t.m[:filterHeader], t.f); err != nil {
		return err
	}
	t.clean, t.at = true, ref
	dropPages(t.m)
	return nil
}

func (t *filter) close() error {
	var err error
	if t.m != nil {
		err = unmapFile(t.m)
		t.m = nil
	}
	return errors.Join(err, t.f.Close())
}

// filters are the tables of all disks of a cut, by disk index.
type filters map[uint16]*filter

func (r *Replicator) openFilters(disks []cut.Disk) (filters, error) {
	fs := filters{}
	for _, d := range disks {
		if err := os.MkdirAll(r.path("filter"), 0o700); err != nil {
			return nil, diskError("capture.filter", r.path("filter"), err)
		}
		f, err := openFilter(filepath.Join(r.path("filter"), strconv.Itoa(int(d.Index))), d.Size)
		if err != nil {
			return nil, errors.Join(err, fs.close())
		}
		fs[d.Index] = f
	}
	return fs, nil
}

func (fs filters) close() error {
	var err error
	for _, f := range fs {
		err = errors.Join(err, f.close())
	}
	return err
}

// align brings every table to the tip: one that is at an older position of the
// spool gets the updates that it missed, and what can't be brought there is emptied.
func (fs filters) align(tip cut.Ref, missed []*entry) error {
	for index, f := range fs {
		for _, e := range missed {
			if f.clean && f.at == e.Prev {
				if err := e.apply(index, f); err != nil {
					return err
				}
			}
		}
		if !f.usable(tip) {
			if err := f.reset(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// update is one run of blocks whose entries a cut changes.
type update struct {
	disk  uint16
	block int64
	zero  int64    // > 0: that many blocks of zeroes
	sums  []uint64 // else their entries
}
