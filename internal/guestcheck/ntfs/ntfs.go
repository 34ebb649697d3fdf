// Package ntfs reads NTFS volumes, versions 1.2 to 3.1, without ever writing
// (structures as described by the Linux-NTFS project's documentation and by
// Microsoft's "How NTFS Works"; compression: [MS-XCA] section 2.5, LZNT1).
//
// It promises: hostile images end in an error, in bounded time and memory; an
// absent name is fs.ErrNotExist and nothing else is; names compare without case
// by the volume's own table. Reparse points (links, mount points, files that are
// compressed by WOF or deduplicated) and encrypted files are refused by name. The
// journal ($LogFile) is not replayed; its state is told.
package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"unicode/utf16"
)

// ErrCorrupt says that there is no NTFS volume, or a damaged one.
var ErrCorrupt = errors.New("NTFS volume is damaged")

// ErrEncrypted says that a file is encrypted (EFS).
var ErrEncrypted = errors.New("the file is encrypted (EFS)")

// ReparseError says that a name is a reparse point, which is not followed.
type ReparseError struct {
	Name string
	Tag  uint32
}

func (e *ReparseError) Error() string {
	what, ok := map[uint32]string{0xA000000C: "a symbolic link", 0xA0000003: "a mount point", 0x80000017: "compressed by WOF", 0x80000013: "deduplicated"}[e.Tag]
	if !ok {
		what = fmt.Sprintf("a reparse point of type %08X", e.Tag)
	}
	return fmt.Sprintf("%s is %s, which is not followed", e.Name, what)
}

const (
	recordMFT, recordLog, recordVolume, recordRoot, recordUpcase = 0, 2, 3, 5, 10
	firstUser                                                    = 16 // records below are the file system's own
)

// Attribute types.
const (
	attrList       = 0x20
	attrName       = 0x30
	attrLabel      = 0x60
	attrVolume     = 0x70
	attrData       = 0x80
	attrIndexRoot  = 0x90
	attrIndexAlloc = 0xA0
	attrReparse    = 0xC0
)

// FS is an open volume, safe for concurrent use when its device is.
type FS struct {
	dev      io.ReaderAt
	cluster  int64 // bytes
	clusters int64 // of the volume
	record   int64 // bytes of a file record
	serial   uint64
	label    string
	flags    uint16
	mft      *stream
	upcase   []uint16

	mu   sync.Mutex
	dirs map[uint64][]entry // some directories: the same ones are asked again and again
	kept int                // entries in dirs
}

var le = binary.LittleEndian

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Open reads the boot sector and the file table's own record. size is that of
// the partition, in bytes.
func Open(dev io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if err := read(dev, b, 0); err != nil {
		return nil, err
	}
	if string(b[3:11]) != "NTFS    " {
		return nil, corrupt("no NTFS boot sector")
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	if per > 0x80 { // 64 KiB and more are written as a power of two
		per = 1 << min(63-32, 256-per)
	}
	total := int64(le.Uint64(b[40:]))
	if sector < 256 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || sector*per > 2<<20 || total <= 0 || total > size/sector {
		return nil, corrupt("boot sector, or the partition is shorter than the volume")
	}
	f := &FS{dev: dev, cluster: sector * per, clusters: total / per, serial: le.Uint64(b[72:]), dirs: map[uint64][]entry{}}
	if f.record = f.sized(b[64]); f.record < 512 || f.record > 64<<10 || f.record&(f.record-1) != 0 {
		return nil, corrupt("records of %d bytes", f.record)
	}
	if err := f.bootstrap(int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:]))); err != nil {
		return nil, err
	}
	up, err := f.whole(recordUpcase, attrData, 128<<10)
	if err != nil || len(up) != 128<<10 {
		return nil, corrupt("the table of capital letters: %v", err)
	}
	f.upcase = make([]uint16, 1<<16)
	for k := range f.upcase {
		f.upcase[k] = le.Uint16(up[2*k:])
	}
	v, err := f.whole(recordVolume, attrVolume, 64<<10)
	if err != nil || len(v) < 12 {
		return nil, corrupt("the volume's information: %v", err)
	}
	f.flags = le.Uint16(v[10:])
	if l, err := f.whole(recordVolume, attrLabel, 64<<10); err == nil {
		f.label = string(utf16.Decode(units(l)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return f, nil
}

// sized is how the boot sector writes sizes: clusters, or a negative power of two.
func (f *FS) sized(b byte) int64 {
	if n := int8(b); n < 0 {
		return 1 << min(62, -int(n))
	}
	return int64(b) * f.cluster
}

// bootstrap finds the file table: by its first record, or the mirror's.
func (f *FS) bootstrap(mft, mirror int64) error {
	var first error
	for _, lcn := range []int64{mft, mirror} {
		err := corrupt("the file table lies at cluster %d", lcn)
		if lcn > 0 && lcn < f.clusters {
			f.mft = &stream{f: f, runs: []run{{0, lcn, (f.record + f.cluster - 1) / f.cluster}}, size: f.record, init: f.record}
			if err = f.loadMFT(); err == nil {
				return nil
			}
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (f *FS) loadMFT() error {
	_, err := f.file(recordMFT, 0)
	return err
}

// UUID is the volume's serial number as blkid shows it.
func (f *FS) UUID() string { return fmt.Sprintf("%016X", f.serial) }

// Label is the volume's name.
func (f *FS) Label() string { return f.label }

// Dirty tells whether the volume is marked for a check of the file system at the next start.
func (f *FS) Dirty() bool { return f.flags&1 != 0 }

// Info is what is known of a name.
type Info struct {
	Dir     bool
	Size    int64  // bytes; of reparse points as stored
	Reparse uint32 // tag; 0 = none
}

// Stat looks a name up. A reparse point at its end is described, one on the way refused.
func (f *FS) Stat(name string) (Info, error) {
	n, err := f.lookup(name)
	if err != nil {
		return Info{}, err
	}
	i := Info{Dir: n.dir, Reparse: n.tag()}
	if s := n.find(attrData, ""); s != nil {
		i.Size = s.length()
	}
	return i, nil
}

// Open opens a file's content. Names count from the volume's root, with slashes.
func (f *FS) Open(name string) (*io.SectionReader, error) {
	n, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if t := n.tag(); t != 0 {
		return nil, &ReparseError{name, t}
	}
	if n.dir {
		return nil, fmt.Errorf("%s is a directory", name)
	}
	a := n.find(attrData, "")
	if a == nil {
		return nil, corrupt("%s has no data", name)
	}
	r, err := f.reader(a)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return io.NewSectionReader(r, 0, a.length()), nil
}

// ReadDir returns the names in a directory, without the file system's own files and short names.
func (f *FS) ReadDir(name string) ([]string, error) {
	n, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if t := n.tag(); t != 0 {
		return nil, &ReparseError{name, t}
	}
	es, err := f.entries(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var out []string
	for _, e := range es {
		if !e.short && e.number >= firstUser {
			out = append(out, string(utf16.Decode(e.name)))
		}
	}
	return out, nil
}

const maxDepth = 256

// lookup finds the file of a name.
func (f *FS) lookup(name string) (*node, error) {
	n, err := f.file(recordRoot, 0)
	if err != nil {
		return nil, err
	}
	at, depth := "", 0
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if t := n.tag(); t != 0 {
			return nil, &ReparseError{at, t}
		}
		if depth++; depth > maxDepth || !n.dir {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		es, err := f.entries(n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		want := utf16.Encode([]rune(part))
		k := slices.IndexFunc(es, func(e entry) bool { return slices.Equal(e.name, want) })
		if k < 0 {
			k = slices.IndexFunc(es, func(e entry) bool { return f.same(e.name, want) })
		}
		if k < 0 {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		at += "/" + part
		if n, err = f.file(es[k].number, es[k].sequence); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	return n, nil
}

func (f *FS) same(a, b []uint16) bool {
	return slices.EqualFunc(a, b, func(x, y uint16) bool { return f.upcase[x] == f.upcase[y] })
}

// whole reads a small attribute of a record.
func (f *FS) whole(record uint64, kind uint32, limit int64) ([]byte, error) {
	n, err := f.file(record, 0)
	if err != nil {
		return nil, err
	}
	a := n.find(kind, "")
	if a == nil {
		return nil, fs.ErrNotExist
	}
	return f.content(a, limit)
}

func (f *FS) content(a *attr, limit int64) ([]byte, error) {
	if a.length() > limit {
		return nil, corrupt("an attribute of type %X has %d bytes", a.kind, a.length())
	}
	r, err := f.reader(a)
	if err != nil {
		return nil, err
	}
	b := make([]byte, a.length())
	return b, read(r, b, 0)
}

// Log is the state of the journal.
type Log string

// The states of the journal.
const (
	LogClean Log = "clean"   // unmounted, or emptied: all changes are in place
	LogOpen  Log = "open"    // the volume was in use; Windows replays the journal when it starts
	LogBad   Log = "unknown" // its first pages can't be understood
)

// Log tells whether the journal holds changes that are not in place yet.
func (f *FS) Log() (Log, error) {
	n, err := f.file(recordLog, 0)
	if err != nil {
		return "", err
	}
	a := n.find(attrData, "")
	if a == nil {
		return LogBad, nil
	}
	r, err := f.reader(a)
	if err != nil {
		return "", err
	}
	state, newest, at := LogBad, uint64(0), int64(0)
	for range 2 { // two restart pages; the newer counts
		b := make([]byte, 4096)
		if at+int64(len(b)) > a.length() {
			break
		}
		if err := read(r, b, at); err != nil {
			return "", err
		}
		if at == 0 && !slices.ContainsFunc(b, func(x byte) bool { return x != 0xFF }) {
			return LogClean, nil
		}
		page, area := int64(le.Uint32(b[16:])), int(le.Uint16(b[24:]))
		if string(b[:4]) != "RSTR" || fixup(b, 4096) != nil || area < 30 || area > 4096-48 {
			at += 4096
			continue
		}
		if lsn := le.Uint64(b[area:]); state == LogBad || lsn > newest {
			state, newest = LogOpen, lsn
			if le.Uint16(b[area+12:]) == 0xFFFF || le.Uint16(b[area+14:])&2 != 0 {
				state = LogClean
			}
		}
		if page < 512 || page > 64<<10 {
			break
		}
		at += page
	}
	return state, nil
}

// Hibernated tells whether Windows was hibernated, or shut down with fast
// startup: the volume's state is then partly in /hiberfil.sys.
func (f *FS) Hibernated() (bool, error) {
	r, err := f.Open("/hiberfil.sys")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b := make([]byte, 4)
	if r.Size() < 4096 {
		return false, nil
	}
	if err := read(r, b, 0); err != nil {
		return false, err
	}
	return strings.EqualFold(string(b), "hibr"), nil
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

func units(b []byte) []uint16 {
	out := make([]uint16, len(b)/2)
	for k := range out {
		out[k] = le.Uint16(b[2*k:])
	}
	return out
}
