// Package xfs reads XFS file systems, versions 4 and 5 (the kernel's "XFS
// Filesystem Structure" document). Numbers are big-endian.
//
// It promises: hostile images end in an error, in bounded time and memory; an
// absent name is fs.ErrNotExist and nothing else is. The log is not replayed:
// what was written in the seconds before the point may be missing.
package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// The errors. All but fs.ErrNotExist mean that nothing is known about the name.
var (
	ErrCorrupt     = errors.New("XFS file system is damaged")
	ErrUnsupported = errors.New("XFS feature is not supported")
)

const (
	maxExtents  = 1 << 20
	maxNodes    = 1 << 14
	maxDir      = 16 << 20
	maxSymlinks = 40

	incompatFtype  = 0x1
	incompatKnown  = 0xFF
	needsRepair    = 0x10
	flag2NRExt     = 0x10
	leafOffset     = 32 << 30 // bytes of a directory where its index begins
	versionMore    = 0x8000
	features2Ftype = 0x200
)

var be = binary.BigEndian

// FS is an open file system, safe for concurrent use when its device is.
type FS struct {
	dev           io.ReaderAt
	size, bs      int64
	sb            []byte
	root          uint64
	agBlocks      uint64
	agCount       uint64
	agLog, inoLog uint
	inodeSize     int64
	dirBlock      int64
	v5, ftype     bool
}

// Open reads the superblock. size bounds the device in bytes.
func Open(dev io.ReaderAt, size int64) (*FS, error) {
	f := &FS{dev: dev, size: size, sb: make([]byte, 512)}
	if err := read(dev, f.sb, 0); err != nil {
		return nil, err
	}
	sb := f.sb
	if string(sb[:4]) != "XFSB" {
		return nil, fmt.Errorf("%w: no superblock", ErrCorrupt)
	}
	f.bs, f.root = int64(be.Uint32(sb[4:])), be.Uint64(sb[56:])
	f.agBlocks, f.agCount = uint64(be.Uint32(sb[84:])), uint64(be.Uint32(sb[88:]))
	f.inodeSize, f.inoLog, f.agLog = int64(be.Uint16(sb[104:])), uint(sb[123]), uint(sb[124])
	version := be.Uint16(sb[100:])
	f.v5 = version&0xF == 5
	if f.v5 {
		in := be.Uint32(sb[216:])
		if in&^incompatKnown != 0 || in&needsRepair != 0 {
			return nil, fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, in)
		}
		f.ftype = in&incompatFtype != 0
	} else if version&0xF != 4 {
		return nil, fmt.Errorf("%w: version %d", ErrUnsupported, version&0xF)
	} else {
		f.ftype = version&versionMore != 0 && be.Uint32(sb[200:])&features2Ftype != 0
	}
	if f.bs < 512 || f.bs > 65536 || f.bs&(f.bs-1) != 0 || sb[192] > 7 || f.inodeSize < 256 || f.inodeSize > 2048 || f.inodeSize > f.bs || f.agLog > 31 || f.inoLog > 8 ||
		f.agBlocks == 0 || f.agBlocks > 1<<f.agLog || f.inodeSize<<f.inoLog != f.bs || int64(be.Uint64(sb[8:])) > size/f.bs {
		return nil, fmt.Errorf("%w: superblock", ErrCorrupt)
	}
	f.dirBlock = f.bs << sb[192]
	if f.dirBlock > 65536 {
		return nil, fmt.Errorf("%w: directory blocks of %d bytes", ErrCorrupt, f.dirBlock)
	}
	return f, nil
}

// UUID is the file system's UUID as blkid shows it.
func (f *FS) UUID() string {
	u := f.sb[32:48]
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Label is the volume's name; it may be empty.
func (f *FS) Label() string {
	s, _, _ := strings.Cut(string(f.sb[108:120]), "\x00")
	return s
}

// place returns where a block of the file system lies.
func (f *FS) place(block uint64) (int64, error) {
	ag, in := block>>f.agLog, block&(1<<f.agLog-1)
	off := int64(ag*f.agBlocks+in) * f.bs
	if ag >= f.agCount || in >= f.agBlocks || off < 0 || off > f.size-f.bs {
		return 0, fmt.Errorf("%w: block %d", ErrCorrupt, block)
	}
	return off, nil
}

type inode struct {
	n      uint64
	raw    []byte
	fork   []byte // of data
	mode   uint16
	format byte
	size   int64
}

func (i *inode) is(kind uint16) bool { return i.mode&0xF000 == kind }

const (
	dirMode  = 0x4000
	fileMode = 0x8000
	linkMode = 0xA000
)

func (f *FS) inode(n uint64) (*inode, error) {
	off, err := f.place(n >> f.inoLog)
	if err != nil {
		return nil, err
	}
	b := make([]byte, f.inodeSize)
	if err := read(f.dev, b, off+int64(n&(1<<f.inoLog-1))*f.inodeSize); err != nil {
		return nil, err
	}
	i := &inode{n: n, raw: b, mode: be.Uint16(b[2:]), format: b[5], size: int64(be.Uint64(b[56:]))}
	start := 100
	if b[4] == 3 {
		start = 176
		if be.Uint64(b[152:]) != n {
			return nil, fmt.Errorf("%w: inode %d says it is another", ErrCorrupt, n)
		}
	}
	end := len(b)
	if b[82] != 0 {
		end = start + int(b[82])*8
	}
	if string(b[:2]) != "IN" || i.size < 0 || end > len(b) {
		return nil, fmt.Errorf("%w: inode %d", ErrCorrupt, n)
	}
	i.fork = b[start:end]
	return i, nil
}

type extent struct {
	logical, block, count uint64
	unwritten             bool
}

func (f *FS) extents(i *inode) ([]extent, error) {
	w := &walk{f: f, nodes: maxNodes}
	switch i.format {
	case 2:
		n := uint64(be.Uint32(i.raw[76:]))
		if i.raw[4] == 3 && be.Uint64(i.raw[120:])&flag2NRExt != 0 {
			n = be.Uint64(i.raw[24:])
		}
		if n > uint64(len(i.fork)/16) {
			return nil, fmt.Errorf("%w: %d extents in inode %d", ErrCorrupt, n, i.n)
		}
		err := w.leaf(i.fork[:n*16])
		return w.out, err
	case 3:
		if len(i.fork) < 4 {
			break
		}
		level, n, room := int(be.Uint16(i.fork)), int(be.Uint16(i.fork[2:])), (len(i.fork)-4)/16
		if level < 1 || level > 8 || n > room {
			break
		}
		err := w.pointers(i.fork[4+8*room:4+8*room+8*n], level-1)
		return w.out, err
	}
	return nil, fmt.Errorf("%w: data fork of inode %d", ErrCorrupt, i.n)
}

type walk struct {
	f     *FS
	nodes int
	out   []extent
}

func (w *walk) leaf(b []byte) error {
	for ; len(b) >= 16; b = b[16:] {
		l0, l1 := be.Uint64(b), be.Uint64(b[8:])
		e := extent{logical: l0 >> 9 & (1<<54 - 1), block: l0&0x1FF<<43 | l1>>21, count: l1 & (1<<21 - 1), unwritten: l0>>63 != 0}
		if n := len(w.out); n > 0 && w.out[n-1].logical+w.out[n-1].count > e.logical || n >= maxExtents || e.count == 0 {
			return fmt.Errorf("%w: extents", ErrCorrupt)
		}
		w.out = append(w.out, e)
	}
	return nil
}

func (w *walk) pointers(p []byte, level int) error {
	for ; len(p) >= 8; p = p[8:] {
		if w.nodes--; w.nodes < 0 {
			return fmt.Errorf("%w: extent tree is too large", ErrUnsupported)
		}
		off, err := w.f.place(be.Uint64(p))
		if err != nil {
			return err
		}
		b := make([]byte, w.f.bs)
		if err := read(w.f.dev, b, off); err != nil {
			return err
		}
		head := 24
		if w.f.v5 {
			head = 72
		}
		n, room := int(be.Uint16(b[6:])), (len(b)-head)/16
		if m := string(b[:4]); m != "BMAP" && m != "BMA3" || int(be.Uint16(b[4:])) != level || n > room {
			return fmt.Errorf("%w: extent tree", ErrCorrupt)
		}
		if level == 0 {
			err = w.leaf(b[head : head+16*n])
		} else {
			err = w.pointers(b[head+8*room:head+8*room+8*n], level-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type file struct {
	f    *FS
	ext  []extent
	size int64
}

// ReadAt reads file content; holes are zeros.
func (c *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= c.size {
		return 0, io.EOF
	}
	if int64(len(p)) > c.size-off {
		p, err = p[:c.size-off], io.EOF
	}
	bs := c.f.bs
	for n < len(p) {
		at := off + int64(n)
		b := uint64(at / bs)
		lo, hi := 0, len(c.ext)
		for lo < hi {
			if m := (lo + hi) / 2; c.ext[m].logical+c.ext[m].count <= b {
				lo = m + 1
			} else {
				hi = m
			}
		}
		room := min(int64(len(p)-n), bs-at%bs)
		if lo == len(c.ext) || c.ext[lo].logical > b || c.ext[lo].unwritten {
			clear(p[n : n+int(room)])
		} else {
			place, e := c.f.place(c.ext[lo].block + b - c.ext[lo].logical)
			if e == nil {
				e = read(c.f.dev, p[n:n+int(room)], place+at%bs)
			}
			if e != nil {
				return n, e
			}
		}
		n += int(room)
	}
	return n, err
}

func (f *FS) content(i *inode) (io.ReaderAt, error) {
	if i.format == 1 {
		if i.size > int64(len(i.fork)) {
			return nil, fmt.Errorf("%w: inode %d", ErrCorrupt, i.n)
		}
		return strings.NewReader(string(i.fork[:i.size])), nil
	}
	ext, err := f.extents(i)
	return &file{f, ext, i.size}, err
}

func (f *FS) walkDir(i *inode, visit func(name string, ino uint64) bool) error {
	if !i.is(dirMode) {
		return fmt.Errorf("inode %d is not a directory", i.n)
	}
	if i.format == 1 {
		return f.short(i, visit)
	}
	if i.size > maxDir {
		return fmt.Errorf("%w: directory of %d bytes", ErrUnsupported, i.size)
	}
	ext, err := f.extents(i)
	if err != nil {
		return err
	}
	c := &file{f, ext, leafOffset}
	left := int64(maxDir)
	for _, e := range ext { // what lies past leafOffset is an index
		start, end := int64(e.logical)*f.bs, int64(e.logical+e.count)*f.bs
		for off := start / f.dirBlock * f.dirBlock; off < min(end, leafOffset); off += f.dirBlock {
			if off < start {
				continue // it began in the extent before
			}
			if left -= f.dirBlock; left < 0 {
				return fmt.Errorf("%w: directory is too large", ErrUnsupported)
			}
			b := make([]byte, f.dirBlock)
			if err := read(c, b, off); err != nil {
				return err
			}
			if more, err := f.entries(b, visit); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// short reads a directory that lies in its inode.
func (f *FS) short(i *inode, visit func(string, uint64) bool) error {
	bad := fmt.Errorf("%w: directory in inode %d", ErrCorrupt, i.n)
	b := i.fork
	if len(b) < 6 {
		return bad
	}
	n, wide := int(b[0]), 4
	if b[1] != 0 {
		wide = 8
	}
	b = b[2+min(wide, len(b)-2):]
	for range n {
		if len(b) < 3 {
			return bad
		}
		nameLen := int(b[0])
		tail := nameLen + 3
		if f.ftype {
			tail++
		}
		if len(b) < tail+wide {
			return bad
		}
		ino := uint64(be.Uint32(b[tail:]))
		if wide == 8 {
			ino = be.Uint64(b[tail:])
		}
		if !visit(string(b[3:3+nameLen]), ino) {
			return nil
		}
		b = b[tail+wide:]
	}
	return nil
}

func (f *FS) entries(b []byte, visit func(string, uint64) bool) (more bool, err error) {
	bad := fmt.Errorf("%w: directory block", ErrCorrupt)
	at, end := 16, len(b)
	switch string(b[:4]) {
	case "XDB3", "XDD3":
		at = 64
	case "XD2B", "XD2D":
	default:
		return false, bad
	}
	if m := string(b[:4]); m == "XD2B" || m == "XDB3" {
		n := int64(be.Uint32(b[end-8:]))
		if n*8 > int64(end-8-at) {
			return false, bad
		}
		end -= 8 + int(n)*8
	}
	for at+8 <= end {
		if be.Uint16(b[at:]) == 0xFFFF {
			n := int(be.Uint16(b[at+2:]))
			if n < 8 || n%8 != 0 {
				return false, bad
			}
			at += n
			continue
		}
		if at+9 > end {
			return false, bad
		}
		nameLen := int(b[at+8])
		n := 8 + 1 + nameLen + 2
		if f.ftype {
			n++
		}
		if n = (n + 7) &^ 7; at+n > end {
			return false, bad
		}
		if name := string(b[at+9 : at+9+nameLen]); name != "." && name != ".." && !visit(name, be.Uint64(b[at:])) {
			return false, nil
		}
		at += n
	}
	return true, nil
}

// target reads a symbolic link.
func (f *FS) target(i *inode) (string, error) {
	if i.size > 1024 {
		return "", fmt.Errorf("%w: symbolic link of %d bytes", ErrCorrupt, i.size)
	}
	c, err := f.content(i)
	if err != nil {
		return "", err
	}
	b := make([]byte, i.size)
	if err := read(c, b, 0); err != nil {
		return "", err
	}
	if x, ok := c.(*file); ok && strings.HasPrefix(string(b), "XSLM") { // version 5 puts a header before the text; mkfs.xfs did not always
		err = read(&file{f, x.ext, i.size + 56}, b, 56)
	}
	return string(b), err
}

// lookup resolves a name, which counts from the root, through symbolic links.
func (f *FS) lookup(name string) (*inode, error) {
	cur, err := f.inode(f.root)
	if err != nil {
		return nil, err
	}
	todo, at, steps := split(name), "/", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		again := "" // path to start over with
		if part == ".." {
			again = path.Dir(at)
		} else {
			if !cur.is(dirMode) {
				return nil, fmt.Errorf("%s: %w", at, fs.ErrNotExist)
			}
			ino := uint64(0)
			if err := f.walkDir(cur, func(n string, i uint64) bool {
				if n == part {
					ino = i
				}
				return ino == 0
			}); err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			if ino == 0 {
				return nil, fmt.Errorf("%s: %w", path.Join(at, part), fs.ErrNotExist)
			}
			next, err := f.inode(ino)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path.Join(at, part), err)
			}
			if !next.is(linkMode) {
				cur, at = next, path.Join(at, part)
				continue
			}
			to, err := f.target(next)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path.Join(at, part), err)
			}
			if again = to; !strings.HasPrefix(to, "/") {
				again = at + "/" + to
			}
		}
		if steps++; steps > maxSymlinks {
			return nil, fmt.Errorf("%s: too many levels of symbolic links", name)
		}
		todo, at = append(split(again), todo...), "/"
		if cur, err = f.inode(f.root); err != nil {
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
	if !i.is(fileMode) {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	c, err := f.content(i)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return io.NewSectionReader(c, 0, i.size), nil
}

// ReadDir returns the names in a directory.
func (f *FS) ReadDir(name string) ([]string, error) {
	i, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	var out []string
	if err := f.walkDir(i, func(n string, _ uint64) bool { out = append(out, n); return true }); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

func read(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
