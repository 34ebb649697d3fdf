// Package ext4 reads ext2, ext3 and ext4 file systems and rewrites small files
// in place. It owns the on-disk format as documented in the Linux kernel's
// Documentation/filesystems/ext4.
//
// It promises: what is read is what a mount would show, the journal included,
// without writing anything (Open keeps the replayed blocks' places in memory);
// damaged and hostile images end in an error, in bounded time and memory; an
// absent name is fs.ErrNotExist and nothing else is. An FS is safe for
// concurrent use when its device is; Rewrite is not.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
)

// The errors. All but fs.ErrNotExist mean that nothing is known about the name.
var (
	ErrNotExt4     = errors.New("no ext2, ext3 or ext4 file system")
	ErrCorrupt     = errors.New("ext4 file system is damaged")
	ErrUnsupported = errors.New("ext4 feature is not supported")
)

const (
	incompatRecover  = 0x4
	incompatMetaBG   = 0x10
	incompat64Bit    = 0x80
	incompatCsumSeed = 0x2000
	incompatKnown    = 0x2 | incompatRecover | incompatMetaBG | 0x40 | incompat64Bit | 0x100 | 0x200 | 0x400 | incompatCsumSeed | 0x4000 | 0x8000 | 0x10000 | 0x20000

	compatSparse2 = 0x200

	roSparse       = 0x1
	roBigalloc     = 0x200
	roMetadataCsum = 0x400

	flagEncrypted  = 0x800
	flagExtents    = 0x80000
	flagVerity     = 0x100000
	flagInlineData = 0x10000000
	flagCompressed = 0x4

	rootInode = 2

	maxDir      = 16 << 20 // bytes of one directory
	maxRuns     = 1 << 20  // of one file
	maxNodes    = 1 << 14  // extent blocks of one file
	maxSymlinks = 40
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc is crc32c as the kernel chains it, without the inversions at the ends.
func crc(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// FS is an open file system.
type FS struct {
	dev  io.ReaderAt
	size int64

	sb         [1024]byte
	bs         int64
	blocks     uint64
	first      uint64 // first data block
	perGroup   uint64
	inodes     uint32
	inoPerGrp  uint32
	inodeSize  int64
	descSize   int64
	compat     uint32
	incompat   uint32
	rocompat   uint32
	seed       uint32
	replay     map[uint64]replayed // by block: what the journal has newer
	journalSB  []byte              // first KiB of the journal, where it must be replayed
	journalAt  int64               // on the device
	journalSeq uint32              // of the transaction after the last one
}

// Open reads the superblock and, where the file system was not unmounted
// cleanly, the journal. size bounds the device in bytes.
func Open(dev io.ReaderAt, size int64) (*FS, error) {
	f := &FS{dev: dev, size: size}
	if size < 2048 {
		return nil, ErrNotExt4
	}
	if _, err := dev.ReadAt(f.sb[:], 1024); err != nil {
		return nil, fmt.Errorf("read the superblock: %w", err)
	}
	if err := f.parse(); err != nil {
		return nil, err
	}
	if f.incompat&incompatRecover != 0 {
		if err := f.loadJournal(); err != nil {
			return nil, fmt.Errorf("replay the journal: %w", err)
		}
		if r, ok := f.replay[uint64(1024/f.bs)]; ok { // the superblock itself may be newer there
			b := make([]byte, f.bs)
			if err := f.readReplayed(r, b); err != nil {
				return nil, err
			}
			copy(f.sb[:], b[1024%f.bs:])
			if err := f.parse(); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func (f *FS) parse() error {
	le := binary.LittleEndian
	sb := f.sb[:]
	if le.Uint16(sb[0x38:]) != 0xEF53 {
		return ErrNotExt4
	}
	f.compat, f.incompat, f.rocompat = le.Uint32(sb[0x5C:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	if bad := f.incompat &^ incompatKnown; bad != 0 {
		return fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, bad)
	}
	log := le.Uint32(sb[0x18:])
	if log > 6 {
		return fmt.Errorf("%w: block size 2^%d KiB", ErrCorrupt, log)
	}
	f.bs = 1024 << log
	f.inodes, f.inoPerGrp = le.Uint32(sb[0:]), le.Uint32(sb[0x28:])
	f.blocks = uint64(le.Uint32(sb[4:]))
	f.first, f.perGroup = uint64(le.Uint32(sb[0x14:])), uint64(le.Uint32(sb[0x20:]))
	f.inodeSize, f.descSize = 128, 32
	if le.Uint32(sb[0x4C:]) > 0 {
		f.inodeSize = int64(le.Uint16(sb[0x58:]))
	}
	if f.incompat&incompat64Bit != 0 {
		f.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		f.descSize = int64(le.Uint16(sb[0xFE:]))
	}
	switch {
	case f.inodeSize < 128 || f.inodeSize > f.bs || f.inodeSize&(f.inodeSize-1) != 0:
		return fmt.Errorf("%w: inode size %d", ErrCorrupt, f.inodeSize)
	case f.descSize < 32 || f.descSize > f.bs || f.descSize&(f.descSize-1) != 0:
		return fmt.Errorf("%w: group descriptor size %d", ErrCorrupt, f.descSize)
	case f.perGroup == 0 || f.inoPerGrp == 0 || f.inodes == 0:
		return fmt.Errorf("%w: empty groups", ErrCorrupt)
	case f.blocks == 0 || f.blocks > uint64(f.size/f.bs):
		return fmt.Errorf("%w: %d blocks of %d bytes do not fit into %d bytes", ErrCorrupt, f.blocks, f.bs, f.size)
	}
	if f.rocompat&roMetadataCsum != 0 {
		f.seed = crc(^uint32(0), sb[0x68:0x78])
		if f.incompat&incompatCsumSeed != 0 {
			f.seed = le.Uint32(sb[0x270:])
		}
		if crc(^uint32(0), sb[:0x3FC]) != le.Uint32(sb[0x3FC:]) {
			return fmt.Errorf("%w: checksum of the superblock", ErrCorrupt)
		}
	}
	return nil
}

// UUID is the file system's UUID as blkid shows it.
func (f *FS) UUID() string {
	u := f.sb[0x68:0x78]
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Label is the volume's name; it may be empty.
func (f *FS) Label() string { return cString(f.sb[0x78:0x88]) }

// Dirty tells that the journal holds changes that a mount would replay.
func (f *FS) Dirty() bool { return f.incompat&incompatRecover != 0 }

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// readBlock fills p, one block, with block n as the journal leaves it.
func (f *FS) readBlock(n uint64, p []byte) error {
	if n >= f.blocks {
		return fmt.Errorf("%w: block %d of %d", ErrCorrupt, n, f.blocks)
	}
	if r, ok := f.replay[n]; ok {
		return f.readReplayed(r, p)
	}
	return readFull(f.dev, p, int64(n)*f.bs)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (f *FS) hasSuper(g uint64) bool {
	if f.compat&compatSparse2 != 0 {
		le := binary.LittleEndian
		return g == 0 || g == uint64(le.Uint32(f.sb[0x24C:])) || g == uint64(le.Uint32(f.sb[0x250:]))
	}
	if g <= 1 || f.rocompat&roSparse == 0 {
		return true
	}
	for _, b := range []uint64{3, 5, 7} {
		for p := b; p <= g; p *= b {
			if p == g {
				return true
			}
		}
	}
	return false
}

// inodePlace returns the block and the offset in it of an inode.
func (f *FS) inodePlace(ino uint32) (block uint64, off int64, err error) {
	if ino == 0 || ino > f.inodes {
		return 0, 0, fmt.Errorf("%w: inode %d of %d", ErrCorrupt, ino, f.inodes)
	}
	g := uint64((ino - 1) / f.inoPerGrp)
	perBlock := uint64(f.bs / f.descSize)
	at := uint64(1024/f.bs) + 1 + g/perBlock // the superblock is 1 KiB from the start, wherever the first group begins
	if m := g / perBlock; f.incompat&incompatMetaBG != 0 && m >= uint64(binary.LittleEndian.Uint32(f.sb[0x104:])) {
		at = f.first + m*perBlock*f.perGroup
		if f.hasSuper(m * perBlock) {
			at++
		}
		if m == 0 && f.bs == 1024 && f.first == 0 {
			at++
		}
	}
	b := make([]byte, f.bs)
	if err := f.readBlock(at, b); err != nil {
		return 0, 0, err
	}
	d := b[int64(g%perBlock)*f.descSize:]
	table := uint64(binary.LittleEndian.Uint32(d[8:]))
	if f.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	o := int64((ino-1)%f.inoPerGrp) * f.inodeSize
	return table + uint64(o/f.bs), o % f.bs, nil
}

type inode struct {
	n     uint32
	raw   []byte
	mode  uint16
	flags uint32
	size  int64
}

func (i *inode) dir() bool     { return i.mode&0xF000 == 0x4000 }
func (i *inode) regular() bool { return i.mode&0xF000 == 0x8000 }
func (i *inode) link() bool    { return i.mode&0xF000 == 0xA000 }

func (f *FS) inode(n uint32) (*inode, error) {
	block, off, err := f.inodePlace(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, f.bs)
	if err := f.readBlock(block, b); err != nil {
		return nil, err
	}
	i := &inode{n: n, raw: b[off : off+f.inodeSize : off+f.inodeSize]}
	le := binary.LittleEndian
	i.mode, i.flags = le.Uint16(i.raw), le.Uint32(i.raw[0x20:])
	i.size = int64(le.Uint32(i.raw[4:]))
	if i.regular() || i.dir() {
		i.size |= int64(le.Uint32(i.raw[0x6C:])) << 32
	}
	if i.size < 0 {
		return nil, fmt.Errorf("%w: size of inode %d", ErrCorrupt, n)
	}
	if f.rocompat&roMetadataCsum != 0 {
		lo, hi, wide := f.inodeCsum(i)
		if lo != le.Uint16(i.raw[0x7C:]) || wide && hi != le.Uint16(i.raw[0x82:]) {
			return nil, fmt.Errorf("%w: checksum of inode %d", ErrCorrupt, n)
		}
	}
	return i, nil
}

// inodeCsum returns the checksum an inode must have; wide says that it has the upper half too.
func (f *FS) inodeCsum(i *inode) (lo, hi uint16, wide bool) {
	raw := append([]byte(nil), i.raw...)
	le := binary.LittleEndian
	le.PutUint16(raw[0x7C:], 0)
	if wide = len(raw) > 0x84 && le.Uint16(raw[0x80:]) >= 4; wide {
		le.PutUint16(raw[0x82:], 0)
	}
	s := crc(f.seed, le.AppendUint32(nil, i.n))
	s = crc(crc(s, raw[0x64:0x68]), raw)
	return uint16(s), uint16(s >> 16), wide
}

// run is a piece of a file that lies together; hole means it reads as zeros.
type run struct {
	logical, physical, count uint64
	hole                     bool
}

// runs returns where a file's blocks are, in order.
func (f *FS) runs(i *inode) ([]run, error) {
	if i.flags&(flagEncrypted|flagCompressed) != 0 {
		return nil, fmt.Errorf("%w: inode %d is encrypted or compressed", ErrUnsupported, i.n)
	}
	w := &mapWalk{fs: f, nodes: maxNodes}
	var err error
	if i.flags&flagExtents != 0 {
		err = w.extents(i.raw[0x28:0x28+60], -1)
	} else {
		err = w.legacy(i)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.n, err)
	}
	return w.out, nil
}

type mapWalk struct {
	fs    *FS
	nodes int // that may still be visited
	out   []run
	next  uint64 // the lowest logical block that may come
}

func (w *mapWalk) add(r run) error {
	switch {
	case r.logical < w.next:
		return fmt.Errorf("%w: extents overlap", ErrCorrupt)
	case !r.hole && (r.physical >= w.fs.blocks || r.count > w.fs.blocks-r.physical):
		return fmt.Errorf("%w: extent at block %d", ErrCorrupt, r.physical)
	case len(w.out) >= maxRuns:
		return fmt.Errorf("%w: too many extents", ErrUnsupported)
	}
	w.next = r.logical + r.count
	if n := len(w.out); n > 0 && !r.hole {
		if l := &w.out[n-1]; !l.hole && l.logical+l.count == r.logical && l.physical+l.count == r.physical {
			l.count += r.count
			return nil
		}
	}
	w.out = append(w.out, r)
	return nil
}

// extents walks one node of the extent tree; depth -1 is the root, whose own depth counts.
func (w *mapWalk) extents(node []byte, depth int) error {
	le := binary.LittleEndian
	n, d := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != 0xF30A || d > 5 || depth >= 0 && d != depth || 12+12*n > len(node) {
		return fmt.Errorf("%w: node of the extent tree", ErrCorrupt)
	}
	for e := node[12 : 12+12*n]; len(e) > 0; e = e[12:] {
		logical := uint64(le.Uint32(e))
		if d == 0 {
			count := uint64(le.Uint16(e[4:]))
			r := run{logical: logical, count: count, physical: uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:]))}
			if count > 32768 {
				r.count, r.hole = count-32768, true
			}
			if err := w.add(r); err != nil {
				return err
			}
			continue
		}
		if w.nodes--; w.nodes < 0 {
			return fmt.Errorf("%w: extent tree is too large", ErrUnsupported)
		}
		b := make([]byte, w.fs.bs)
		if err := w.fs.readBlock(uint64(le.Uint16(e[8:]))<<32|uint64(le.Uint32(e[4:])), b); err != nil {
			return err
		}
		if err := w.extents(b, d-1); err != nil {
			return err
		}
	}
	return nil
}

// legacy walks the block map of ext2 and ext3.
func (w *mapWalk) legacy(i *inode) error {
	left := (uint64(i.size) + uint64(w.fs.bs) - 1) / uint64(w.fs.bs)
	logical := uint64(0)
	for k := range 15 {
		if logical >= left {
			return nil
		}
		p := uint64(binary.LittleEndian.Uint32(i.raw[0x28+4*k:]))
		if err := w.indirect(p, max(0, k-11), &logical, left); err != nil {
			return err
		}
	}
	return nil
}

func (w *mapWalk) indirect(p uint64, level int, logical *uint64, left uint64) error {
	per := uint64(w.fs.bs / 4)
	if p == 0 {
		n := uint64(1)
		for range level {
			n *= per
		}
		*logical += n
		return nil
	}
	if level == 0 {
		*logical++
		return w.add(run{logical: *logical - 1, physical: p, count: 1})
	}
	if w.nodes--; w.nodes < 0 {
		return fmt.Errorf("%w: block map is too large", ErrUnsupported)
	}
	b := make([]byte, w.fs.bs)
	if err := w.fs.readBlock(p, b); err != nil {
		return err
	}
	for ; len(b) > 0 && *logical < left; b = b[4:] {
		if err := w.indirect(uint64(binary.LittleEndian.Uint32(b)), level-1, logical, left); err != nil {
			return err
		}
	}
	return nil
}

// file is a file's content.
type file struct {
	fs   *FS
	runs []run
	size int64
}

// ReadAt reads file content; holes are zeros.
func (c *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	if off >= c.size {
		return 0, io.EOF
	}
	if int64(len(p)) > c.size-off {
		p, err = p[:c.size-off], io.EOF
	}
	bs := c.fs.bs
	block := make([]byte, 0, bs)
	for n < len(p) {
		at := off + int64(n)
		r, in := c.find(uint64(at / bs))
		room := min(int64(len(p)-n), int64(in)*bs-at%bs)
		switch {
		case r == nil || r.hole:
			clear(p[n : n+int(room)])
		case len(c.fs.replay) == 0:
			phys := int64(r.physical+uint64(at/bs)-r.logical)*bs + at%bs
			if e := readFull(c.fs.dev, p[n:n+int(room)], phys); e != nil {
				return n, e
			}
		default:
			room = min(room, bs-at%bs)
			block = block[:bs]
			if e := c.fs.readBlock(r.physical+uint64(at/bs)-r.logical, block); e != nil {
				return n, e
			}
			copy(p[n:n+int(room)], block[at%bs:])
		}
		n += int(room)
	}
	return n, err
}

// find returns the run with a block and how many blocks from there on are alike.
func (c *file) find(b uint64) (*run, uint64) {
	lo, hi := 0, len(c.runs)
	for lo < hi {
		m := (lo + hi) / 2
		if c.runs[m].logical+c.runs[m].count <= b {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == len(c.runs) {
		return nil, 1 << 32
	}
	if r := &c.runs[lo]; r.logical <= b {
		return r, r.logical + r.count - b
	}
	return nil, c.runs[lo].logical - b
}

func (f *FS) content(i *inode) (io.ReaderAt, error) {
	if i.flags&flagInlineData != 0 {
		b, err := inlineData(i)
		return strings.NewReader(string(b)), err
	}
	if i.link() && i.size < 60 && i.flags&flagExtents == 0 {
		return strings.NewReader(string(i.raw[0x28 : 0x28+i.size])), nil
	}
	runs, err := f.runs(i)
	return &file{f, runs, i.size}, err
}

// inlineData joins the two places of small content: the block map's and the attribute system.data.
func inlineData(i *inode) ([]byte, error) {
	le := binary.LittleEndian
	b := append([]byte(nil), i.raw[0x28:0x28+60]...)
	if i.size <= 60 {
		return b[:i.size], nil
	}
	bad := fmt.Errorf("%w: inline data of inode %d", ErrCorrupt, i.n)
	if len(i.raw) < 0x84 {
		return nil, bad
	}
	at := 0x80 + int(le.Uint16(i.raw[0x80:]))
	if at+4 > len(i.raw) || le.Uint32(i.raw[at:]) != 0xEA020000 {
		return nil, bad
	}
	base := i.raw[at+4:]
	for e := base; len(e) >= 16 && le.Uint32(e) != 0; {
		nameLen := int(e[0])
		if 16+nameLen > len(e) {
			return nil, bad
		}
		if e[1] == 7 && string(e[16:16+nameLen]) == "data" {
			off, n := int(le.Uint16(e[2:])), int(le.Uint32(e[8:]))
			if n < 0 || off > len(base) || n > len(base)-off || int64(60+n) < i.size {
				return nil, bad
			}
			return append(b, base[off:off+n]...)[:i.size], nil
		}
		step := (16 + nameLen + 3) &^ 3
		if step > len(e) {
			return nil, bad
		}
		e = e[step:]
	}
	return nil, bad
}

// walkDir calls visit for each entry until it returns false.
func (f *FS) walkDir(i *inode, visit func(name string, ino uint32) bool) error {
	if !i.dir() {
		return fmt.Errorf("inode %d: %w", i.n, errNotDir)
	}
	if i.size > maxDir {
		return fmt.Errorf("%w: directory of %d bytes", ErrUnsupported, i.size)
	}
	c, err := f.content(i)
	if err != nil {
		return err
	}
	if i.flags&flagInlineData != 0 {
		b := make([]byte, i.size)
		if err := readFull(c, b, 0); err != nil {
			return err
		}
		if len(b) < 60 {
			return fmt.Errorf("%w: inline directory", ErrCorrupt)
		}
		if more, err := entries(b[4:60], visit); err != nil || !more {
			return err
		}
		_, err = entries(b[60:], visit)
		return err
	}
	b := make([]byte, f.bs)
	for off := int64(0); off < i.size; off += f.bs {
		if err := readFull(c, b, off); err != nil {
			return err
		}
		if more, err := entries(b, visit); err != nil || !more {
			return err
		}
	}
	return nil
}

var errNotDir = errors.New("not a directory")

func entries(b []byte, visit func(string, uint32) bool) (more bool, err error) {
	le := binary.LittleEndian
	for len(b) >= 8 {
		ino, n, nameLen := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if len(b) >= 65536 && (n == 0 || n == 65535) {
			n = 65536
		}
		if n < 8 || n > len(b) || 8+nameLen > n {
			return false, fmt.Errorf("%w: directory entry", ErrCorrupt)
		}
		if ino != 0 && nameLen > 0 && !visit(string(b[8:8+nameLen]), ino) {
			return false, nil
		}
		b = b[n:]
	}
	return true, nil
}

// lookup resolves a name, which counts from the root, through symbolic links.
func (f *FS) lookup(name string) (*inode, error) {
	cur, err := f.inode(rootInode)
	if err != nil {
		return nil, err
	}
	todo := split(name)
	at, links := "/", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if part == ".." { // by name: symbolic links in at are resolved already
			at = path.Dir(at)
			todo, at = append(split(at), todo...), "/"
			if cur, err = f.inode(rootInode); err != nil {
				return nil, err
			}
			if links++; links > maxSymlinks {
				return nil, fmt.Errorf("%s: too many levels of symbolic links", name)
			}
			continue
		}
		if !cur.dir() {
			return nil, fmt.Errorf("%s: %w", at, fs.ErrNotExist)
		}
		ino := uint32(0)
		err := f.walkDir(cur, func(n string, i uint32) bool {
			if n == part {
				ino = i
			}
			return ino == 0
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		if ino == 0 {
			return nil, fmt.Errorf("%s: %w", path.Join(at, part), fs.ErrNotExist)
		}
		next, err := f.inode(ino)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(at, part), err)
		}
		if !next.link() {
			cur, at = next, path.Join(at, part)
			continue
		}
		if links++; links > maxSymlinks || next.size > 4096 {
			return nil, fmt.Errorf("%s: too many levels of symbolic links", name)
		}
		c, err := f.content(next)
		if err != nil {
			return nil, err
		}
		target := make([]byte, next.size)
		if err := readFull(c, target, 0); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(string(target), "/") {
			todo = append(split(at), append(split(string(target)), todo...)...)
		} else {
			todo = append(split(string(target)), todo...)
		}
		at = "/"
		if cur, err = f.inode(rootInode); err != nil {
			return nil, err
		}
	}
	return cur, nil
}

func split(name string) []string {
	var out []string
	for s := range strings.SplitSeq(name, "/") {
		if s != "" && s != "." {
			out = append(out, s)
		}
	}
	return out
}

// Open returns a regular file's content.
func (f *FS) Open(name string) (*io.SectionReader, error) {
	i, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if !i.regular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	c, err := f.content(i)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return io.NewSectionReader(c, 0, i.size), nil
}

// ReadDir returns the names in a directory, in the order on disk, without "." and "..".
func (f *FS) ReadDir(name string) ([]string, error) {
	i, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	var out []string
	err = f.walkDir(i, func(n string, _ uint32) bool {
		if n != "." && n != ".." {
			out = append(out, n)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}
