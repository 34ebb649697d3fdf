// Package fat reads FAT12, FAT16 and FAT32 file systems, as found on EFI system
// partitions (Microsoft, "FAT: General Overview of On-Disk Format", 1.03).
//
// It promises: hostile images end in an error, in bounded time and memory; an
// absent name is fs.ErrNotExist and nothing else is; names compare without case.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf16"
)

// ErrCorrupt says that there is no FAT file system, or a damaged one.
var ErrCorrupt = errors.New("FAT file system is damaged")

const (
	maxFAT = 64 << 20 // bytes of the table
	maxDir = 8 << 20  // bytes of a directory

	maxRewrite = 16 << 20 // bytes of a file
)

// FS is an open file system, safe for concurrent use when its device is.
type FS struct {
	dev      io.ReaderAt
	bits     int
	cluster  int64 // bytes
	data     int64 // where cluster 2 is
	clusters uint32
	table    []byte
	rootAt   int64  // FAT12/16
	rootSize int64  // bytes, FAT12/16
	root     uint32 // cluster, FAT32
	serial   uint32
	label    string
}

// Open reads the boot sector and the allocation table.
func Open(dev io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if err := read(dev, b, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, roots := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, fatSize := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	wide := fatSize == 0
	if wide {
		fatSize = int64(le.Uint32(b[36:]))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || reserved == 0 || fats == 0 || fats > 4 || fatSize == 0 ||
		total*sector > size || fatSize*sector > maxFAT {
		return nil, fmt.Errorf("%w: boot sector", ErrCorrupt)
	}
	f := &FS{dev: dev, cluster: per * sector, rootAt: (reserved + fats*fatSize) * sector, rootSize: roots * 32}
	rootSectors := (roots*32 + sector - 1) / sector
	f.data = f.rootAt + rootSectors*sector
	n := (total - reserved - fats*fatSize - rootSectors) / per
	if n <= 0 {
		return nil, fmt.Errorf("%w: no clusters", ErrCorrupt)
	}
	f.clusters = uint32(n)
	tail := b[38:]
	switch {
	case wide:
		f.bits, f.root, tail = 32, le.Uint32(b[44:]), b[66:]
	case n < 4085:
		f.bits = 12
	default:
		f.bits = 16
	}
	if tail[0] == 0x29 {
		f.serial, f.label = le.Uint32(tail[1:]), strings.TrimRight(string(tail[5:16]), " ")
	}
	f.table = make([]byte, min(fatSize*sector, (n+2)*int64(f.bits)/8+8))
	if err := read(dev, f.table, reserved*sector); err != nil {
		return nil, err
	}
	return f, nil
}

// UUID is the volume's serial number as blkid shows it.
func (f *FS) UUID() string { return fmt.Sprintf("%04X-%04X", f.serial>>16, f.serial&0xFFFF) }

// Label is the volume's name of the boot sector.
func (f *FS) Label() string { return f.label }

func (f *FS) next(c uint32) uint32 {
	le := binary.LittleEndian
	switch at := int(c) * f.bits / 8; {
	case at+4 > len(f.table) && at+f.bits/8 > len(f.table):
		return 0
	case f.bits == 32:
		v := le.Uint32(f.table[at:]) & 0x0FFFFFFF
		if v >= 0x0FFFFFF8 {
			return ^uint32(0)
		}
		return v
	case f.bits == 16:
		v := le.Uint16(f.table[at:])
		if v >= 0xFFF8 {
			return ^uint32(0)
		}
		return uint32(v)
	default:
		if at+2 > len(f.table) {
			return 0
		}
		v := uint32(le.Uint16(f.table[at:])) >> (4 * (c & 1)) & 0xFFF
		if v >= 0xFF8 {
			return ^uint32(0)
		}
		return v
	}
}

// chain returns the places of a file's clusters; limit bounds its bytes.
func (f *FS) chain(c uint32, limit int64) ([]int64, error) {
	var out []int64
	for ; c != ^uint32(0); c = f.next(c) {
		if c < 2 || c-2 >= f.clusters || int64(len(out)) > int64(f.clusters) {
			return nil, fmt.Errorf("%w: cluster %d", ErrCorrupt, c)
		}
		out = append(out, f.data+int64(c-2)*f.cluster)
		if int64(len(out))*f.cluster >= limit {
			break
		}
	}
	return out, nil
}

type entry struct {
	name    string
	dir     bool
	cluster uint32
	size    int64
	at      int64 // of the entry on the device
}

func (f *FS) readDir(c uint32) ([]entry, error) {
	var b []byte
	place := func(off int64) int64 { return f.rootAt + off }
	if c == 0 && f.bits != 32 {
		b = make([]byte, f.rootSize)
		if err := read(f.dev, b, f.rootAt); err != nil {
			return nil, err
		}
	} else {
		if c == 0 {
			c = f.root
		}
		at, err := f.chain(c, maxDir)
		if err != nil {
			return nil, err
		}
		b = make([]byte, int64(len(at))*f.cluster)
		place = func(off int64) int64 { return at[off/f.cluster] + off%f.cluster }
		for k, off := range at {
			if err := read(f.dev, b[int64(k)*f.cluster:int64(k+1)*f.cluster], off); err != nil {
				return nil, err
			}
		}
	}
	out := entries(b)
	for k := range out {
		out[k].at = place(out[k].at)
	}
	return out, nil
}

// entries reads a directory; at counts from its start.
func entries(b []byte) []entry {
	var out []entry
	var long []uint16
	le := binary.LittleEndian
	for start := len(b); len(b) >= 32 && b[0] != 0; b = b[32:] {
		attr := b[11]
		if b[0] == 0xE5 {
			long = nil
			continue
		}
		if attr&0x3F == 0x0F { // a piece of a long name, last piece first
			if b[0]&0x40 != 0 {
				long = nil
			}
			piece := make([]uint16, 0, 13)
			for _, o := range [...]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
				if u := le.Uint16(b[o:]); u != 0 && u != 0xFFFF {
					piece = append(piece, u)
				}
			}
			long = append(piece, long...)
			continue
		}
		if attr&8 == 0 {
			e := entry{name: string(utf16.Decode(long)), dir: attr&0x10 != 0, cluster: uint32(le.Uint16(b[20:]))<<16 | uint32(le.Uint16(b[26:])), size: int64(le.Uint32(b[28:])), at: int64(start - len(b))}
			if len(long) == 0 {
				e.name = strings.TrimRight(string(b[:8]), " ")
				if ext := strings.TrimRight(string(b[8:11]), " "); ext != "" {
					e.name += "." + ext
				}
				if b[12]&8 != 0 {
					e.name = strings.ToLower(e.name)
				}
			}
			if e.name != "." && e.name != ".." {
				out = append(out, e)
			}
		}
		long = nil
	}
	return out
}

func (f *FS) lookup(name string) (entry, error) {
	cur := entry{dir: true}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if !cur.dir {
			return entry{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		list, err := f.readDir(cur.cluster)
		if err != nil {
			return entry{}, fmt.Errorf("%s: %w", name, err)
		}
		found := false
		for _, e := range list {
			if strings.EqualFold(e.name, part) {
				cur, found = e, true
				break
			}
		}
		if !found {
			return entry{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
	}
	return cur, nil
}

// ReadDir returns the names in a directory.
func (f *FS) ReadDir(name string) ([]string, error) {
	e, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if !e.dir {
		return nil, fmt.Errorf("%s is not a directory", name)
	}
	list, err := f.readDir(e.cluster)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	out := make([]string, len(list))
	for k, e := range list {
		out[k] = e.name
	}
	return out, nil
}

// Open returns a file's content.
func (f *FS) Open(name string) (*io.SectionReader, error) {
	e, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if e.dir {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	c := &content{fs: f, size: e.size}
	if e.size > 0 {
		if c.at, err = f.chain(e.cluster, e.size); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if int64(len(c.at))*f.cluster < e.size {
		return nil, fmt.Errorf("%s: %w: %d bytes in %d clusters", name, ErrCorrupt, e.size, len(c.at))
	}
	return io.NewSectionReader(c, 0, e.size), nil
}

type content struct {
	fs   *FS
	at   []int64
	size int64
}

// ReadAt reads file content.
func (c *content) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= c.size {
		return 0, io.EOF
	}
	if int64(len(p)) > c.size-off {
		p, err = p[:c.size-off], io.EOF
	}
	for n < len(p) {
		o := off + int64(n)
		room := min(int64(len(p)-n), c.fs.cluster-o%c.fs.cluster)
		if e := read(c.fs.dev, p[n:n+int(room)], c.at[o/c.fs.cluster]+o%c.fs.cluster); e != nil {
			return n, e
		}
		n += int(room)
	}
	return n, err
}

// Write is a change of the device.
type Write struct {
	Off  int64
	Data []byte
}

// ErrUnsafe says that a file can't be rewritten in place; the text says why.
var ErrUnsafe = errors.New("can't be rewritten in place")

// Rewrite returns the writes, in order, that give a file another content.
// Nothing is allocated: the new content must end in the cluster that the old
// one ended in; one that is shorter is filled up with newlines to reach it.
func (f *FS) Rewrite(name string, content []byte) ([]Write, error) {
	e, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if e.dir || e.size == 0 || e.size > maxRewrite {
		return nil, fmt.Errorf("%s %w: it is no file, empty, or has over %d bytes", name, ErrUnsafe, maxRewrite)
	}
	list, err := f.chain(e.cluster, e.size)
	if err != nil {
		return nil, err
	}
	room := int64(len(list)) * f.cluster
	if int64(len(content)) > room || e.size > room {
		return nil, fmt.Errorf("%s %w: %d bytes do not fit into its %d", name, ErrUnsafe, len(content), room)
	}
	content = slices.Clone(content)
	for int64(len(content)) <= room-f.cluster {
		content = append(content, '\n')
	}
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(content)))
	content = append(content, make([]byte, room-int64(len(content)))...)
	var out []Write
	for k, at := range list {
		out = append(out, Write{at, content[int64(k)*f.cluster : int64(k+1)*f.cluster]})
	}
	return append(out, Write{e.at + 28, size}), nil
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
