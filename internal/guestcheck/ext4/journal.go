package ext4

import (
	"encoding/binary"
	"fmt"
)

// The journal's format (jbd2) is big-endian: Linux
// Documentation/filesystems/ext4/journal.rst.
const (
	jbdMagic = 0xC03B3998

	jbdDescriptor = 1
	jbdCommit     = 2
	jbdSuperV2    = 4
	jbdRevoke     = 5

	jbd64Bit      = 0x2
	jbdCsum2      = 0x8
	jbdCsum3      = 0x10
	jbdFastCommit = 0x20
	jbdKnown      = 0x1 | jbd64Bit | 0x4 | jbdCsum2 | jbdCsum3 | jbdFastCommit

	tagEscape = 1
	tagSame   = 2
	tagLast   = 8

	maxReplay = 1 << 21 // blocks
)

// replayed says where the journal keeps the newest version of a block.
type replayed struct {
	at     uint64 // physical block
	escape bool   // the block's first four bytes are the journal's magic number
}

func (f *FS) readReplayed(r replayed, p []byte) error {
	if err := readFull(f.dev, p, int64(r.at)*f.bs); err != nil {
		return err
	}
	if r.escape {
		binary.BigEndian.PutUint32(p, jbdMagic)
	}
	return nil
}

type journal struct {
	fs          *FS
	file        *file
	first, last uint64 // the log is [first, last)
	start       uint64
	seq         uint32
	incompat    uint32
	seed        uint32
	revoked     map[uint64]uint32 // block: newest transaction that revokes it
	fastCommits bool
}

type logged struct {
	block uint64
	r     replayed
	seq   uint32
}

// loadJournal finds the blocks that a mount would write back first.
func (f *FS) loadJournal() error {
	j, err := f.openJournal()
	if err != nil {
		return err
	}
	if f.journalSeq = j.seq; j.start == 0 {
		return nil
	}
	writes, err := j.scan()
	if err != nil {
		return err
	}
	f.replay = make(map[uint64]replayed, len(writes))
	for _, w := range writes {
		// Sequence numbers wrap; the difference tells which is newer.
		if seq, ok := j.revoked[w.block]; ok && int32(seq-w.seq) >= 0 {
			continue
		}
		if w.block >= f.blocks {
			return fmt.Errorf("%w: journal has block %d", ErrCorrupt, w.block)
		}
		f.replay[w.block] = w.r
	}
	return nil
}

func (f *FS) openJournal() (*journal, error) {
	num := binary.LittleEndian.Uint32(f.sb[0xE0:])
	if num == 0 {
		return nil, fmt.Errorf("%w: the journal is on another device", ErrUnsupported)
	}
	i, err := f.inode(num)
	if err != nil {
		return nil, err
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, err
	}
	j := &journal{fs: f, file: &file{f, runs, i.size}, revoked: map[uint64]uint32{}}
	b, at, err := j.block(0)
	if err != nil {
		return nil, err
	}
	f.journalSB, f.journalAt = b[:1024], int64(at)*f.bs
	be := binary.BigEndian
	if be.Uint32(b) != jbdMagic || be.Uint32(b[4:]) < 3 || be.Uint32(b[4:]) > jbdSuperV2 || int64(be.Uint32(b[12:])) != f.bs {
		return nil, fmt.Errorf("%w: superblock of the journal", ErrCorrupt)
	}
	if be.Uint32(b[4:]) == jbdSuperV2 {
		j.incompat = be.Uint32(b[0x28:])
	}
	if bad := j.incompat &^ jbdKnown; bad != 0 {
		return nil, fmt.Errorf("%w: journal features %#x", ErrUnsupported, bad)
	}
	j.last, j.first = uint64(be.Uint32(b[0x10:])), uint64(be.Uint32(b[0x14:]))
	j.seq, j.start = be.Uint32(b[0x18:]), uint64(be.Uint32(b[0x1C:]))
	j.seed = crc(^uint32(0), b[0x30:0x40])
	if j.last > uint64(i.size/f.bs) {
		return nil, fmt.Errorf("%w: journal of %d blocks in a file of %d bytes", ErrCorrupt, j.last, i.size)
	}
	if j.incompat&jbdFastCommit != 0 {
		n := uint64(be.Uint32(b[0x54:]))
		if n == 0 {
			n = 256
		}
		if n >= j.last {
			return nil, fmt.Errorf("%w: fast commit area of %d blocks", ErrCorrupt, n)
		}
		j.last -= n
		if j.start != 0 { // a fast commit would need the kernel's own logic
			fc, _, err := j.block(j.last)
			if err != nil {
				return nil, err
			}
			j.fastCommits = binary.LittleEndian.Uint16(fc) == 9 && binary.LittleEndian.Uint32(fc[8:]) >= j.seq // head tag, transaction
		}
	}
	if j.first == 0 || j.first >= j.last || j.start != 0 && (j.start < j.first || j.start >= j.last) {
		return nil, fmt.Errorf("%w: journal at block %d of %d", ErrCorrupt, j.start, j.last)
	}
	return j, nil
}

// block reads block n of the journal and tells where it lies.
func (j *journal) block(n uint64) ([]byte, uint64, error) {
	r, _ := j.file.find(n)
	if r == nil || r.hole {
		return nil, 0, fmt.Errorf("%w: journal block %d is not there", ErrCorrupt, n)
	}
	b := make([]byte, j.fs.bs)
	at := r.physical + n - r.logical
	return b, at, readFull(j.fs.dev, b, int64(at)*j.fs.bs)
}

// scan collects the blocks of the transactions that were committed.
func (j *journal) scan() ([]logged, error) {
	var done, open []logged
	revokes := map[uint64]uint32{}
	at, seq := j.start, j.seq
	step := func() {
		if at++; at == j.last {
			at = j.first
		}
	}
	for visited := uint64(0); visited < j.last; visited++ {
		b, _, err := j.block(at)
		if err != nil {
			return nil, err
		}
		be := binary.BigEndian
		if be.Uint32(b) != jbdMagic || be.Uint32(b[8:]) != seq {
			break
		}
		step()
		kind := be.Uint32(b[4:])
		if !j.intact(kind, b) {
			break // a transaction that was being written
		}
		switch kind {
		case jbdDescriptor:
			tags, err := j.tags(b, seq)
			if err != nil {
				return nil, err
			}
			for k := range tags {
				r, _ := j.file.find(at)
				if r == nil || r.hole {
					return nil, fmt.Errorf("%w: journal block %d is not there", ErrCorrupt, at)
				}
				tags[k].r.at = r.physical + at - r.logical
				step()
				visited++
			}
			if open = append(open, tags...); len(open)+len(done) > maxReplay {
				return nil, fmt.Errorf("%w: journal is too large", ErrUnsupported)
			}
		case jbdRevoke:
			if err := j.revokes(b, seq, revokes); err != nil {
				return nil, err
			}
		case jbdCommit:
			done = append(done, open...)
			open = open[:0:0]
			for n, s := range revokes {
				j.revoked[n] = s
			}
			clear(revokes)
			seq++
			j.fs.journalSeq = seq
		default:
			return done, j.refuseFast()
		}
	}
	return done, j.refuseFast()
}

func (j *journal) refuseFast() error {
	if j.fastCommits {
		return fmt.Errorf("%w: the journal holds fast commits", ErrUnsupported)
	}
	return nil
}

// intact checks the checksum of a block that is the journal's own.
func (j *journal) intact(kind uint32, b []byte) bool {
	if j.incompat&(jbdCsum2|jbdCsum3) == 0 {
		return true
	}
	at := len(b) - 4
	if kind == jbdCommit {
		at = 16
	}
	want := binary.BigEndian.Uint32(b[at:])
	c := append([]byte(nil), b...)
	clear(c[at : at+4])
	return crc(j.seed, c) == want
}

func (j *journal) tags(b []byte, seq uint32) ([]logged, error) {
	be := binary.BigEndian
	size, end := 8, len(b)
	switch {
	case j.incompat&jbdCsum3 != 0:
		size, end = 16, end-4
	case j.incompat&jbdCsum2 != 0:
		size, end = 10, end-4
	}
	if j.incompat&(jbd64Bit|jbdCsum3) == jbd64Bit {
		size += 4
	}
	var out []logged
	for at := 12; at+size <= end; {
		t := b[at:]
		n, flags := uint64(be.Uint32(t)), uint32(be.Uint16(t[6:]))
		if j.incompat&jbdCsum3 != 0 {
			flags = be.Uint32(t[4:])
		}
		if j.incompat&jbd64Bit != 0 {
			n |= uint64(be.Uint32(t[8:])) << 32
		}
		out = append(out, logged{block: n, seq: seq, r: replayed{escape: flags&tagEscape != 0}})
		at += size
		if flags&tagSame == 0 {
			at += 16
		}
		if flags&tagLast != 0 {
			return out, nil
		}
	}
	if uint64(len(out)) > j.last {
		return nil, fmt.Errorf("%w: descriptor of the journal", ErrCorrupt)
	}
	return out, nil
}

func (j *journal) revokes(b []byte, seq uint32, into map[uint64]uint32) error {
	be := binary.BigEndian
	n, size := int(be.Uint32(b[12:])), 4
	if j.incompat&jbd64Bit != 0 {
		size = 8
	}
	if n < 16 || n > len(b) {
		return fmt.Errorf("%w: revocations of the journal", ErrCorrupt)
	}
	for p := b[16:n]; len(p) >= size; p = p[size:] {
		block := uint64(be.Uint32(p))
		if size == 8 {
			block = be.Uint64(p)
		}
		into[block] = seq
		if len(into)+len(j.revoked) > maxReplay {
			return fmt.Errorf("%w: journal is too large", ErrUnsupported)
		}
	}
	return nil
}
