package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Layout is how a file keeps its blocks.
type Layout int

// Layouts.
const (
	Fixed Layout = iota + 1
	Dynamic
	Differencing
)

func (l Layout) String() string {
	switch l {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Differencing:
		return "differencing"
	}
	return fmt.Sprintf("layout %d", int(l))
}

// Locator says where a differencing file's parent lies, in Windows paths, and which
// DataWriteGuid the parent must have.
type Locator struct {
	Linkage, Linkage2          GUID
	Relative, Volume, Absolute string
}

// Info describes one file. Sizes are bytes.
type Info struct {
	Path                          string
	Size, BlockSize               int64
	LogicalSector, PhysicalSector int
	ID                            GUID // virtual disk id: the same along a chain
	DataWrite, FileWrite          GUID
	Layout                        Layout
	Parent                        Locator // differencing only
	FileSize                      int64
	AllocatedBytes                int64 // of payload blocks that have space in this file
	LogDirty                      bool  // the log had to be replayed at opening
}

// OpenOptions says how to open a file.
type OpenOptions struct {
	Write bool
	// NoSync trusts the operating system to outlive the process: nothing is
	// forced to the medium. For simulators and tests.
	NoSync bool
}

// File is one open VHDX file. A differencing file gives its data only as part of a Chain.
type File struct {
	path  string
	s     storage
	write bool

	mu        sync.RWMutex // R: read, write in place; W: allocate, change structures, commit
	hdr       header
	hdrAt     int64 // where the valid header stands
	meta      metadata
	reg       regions
	pages     pageCache
	end       int64   // file size, whole MiB when writing
	free      []int64 // blocks to use again; they read as zeros
	freed     []int64 // blocks to be free after the next commit
	allocated int64   // bytes of allocated payload, -1 = not counted yet
	logDirty  bool
	logHead   int64 // ring offset of the next entry
	logSeq    uint64
	keepGUID  bool // merging: DataWriteGuid changes at the end only
	failed    error
	closed    bool

	unsynced  atomic.Bool // payload was written since the last Sync
	guidFresh atomic.Bool // DataWriteGuid is this session's own
}

// Open opens one file of a chain. For writing it takes the writer's lock, replays
// the log and gives the file a new FileWriteGuid.
func Open(path string, opts OpenOptions) (*File, error) {
	flag := os.O_RDONLY
	if opts.Write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, inFile(path, err)
	}
	s := newOSFile(f, opts.NoSync)
	if opts.Write {
		if err := s.lock(); err != nil {
			return nil, inFile(path, errors.Join(err, s.Close()))
		}
	}
	return openStorage(path, s, opts.Write)
}

// openStorage takes the storage over, also when it fails.
func openStorage(path string, s storage, write bool) (*File, error) {
	f := &File{path: path, s: s, write: write, allocated: -1}
	if err := f.load(); err != nil {
		return nil, inFile(path, errors.Join(err, s.Close()))
	}
	return f, nil
}

func (f *File) load() error {
	size, err := f.s.Size()
	if err != nil {
		return err
	}
	sig := make([]byte, 8)
	if err := f.s.ReadAt(sig, 0); err != nil {
		return err
	}
	if string(sig) != "vhdxfile" {
		return failure("file type identifier", 0, ErrNotVHDX, "")
	}
	if err := f.loadHeader(); err != nil {
		return err
	}
	if f.write {
		f.hdr.fileWrite = NewGUID()
		if f.hdr.log.IsZero() {
			if err := f.putHeader(); err != nil {
				return err
			}
		}
	}
	f.end = size
	if !f.hdr.log.IsZero() {
		f.logDirty = true
		p, err := planReplay(f.s, f.hdr, size)
		if err != nil {
			return err
		}
		if !f.write {
			o := p.overlay(f.s, size)
			f.s, f.end = o, o.size
		} else if err := f.replay(p); err != nil {
			return err
		} else {
			size = f.end
		}
	}
	if err := f.loadRegions(); err != nil {
		return err
	}
	if f.meta, err = readMetadata(f.s, f.reg.metadata); err != nil {
		return err
	}
	if need := f.meta.batEntries() * 8; need > f.reg.bat.length {
		return damaged("BAT", f.reg.bat.off, "%d bytes, the disk needs %d", f.reg.bat.length, need)
	}
	if f.reg.bat.off+f.meta.batEntries()*8 > f.end || f.reg.metadata.off+f.meta.free > f.end {
		return damaged("region table", regionA, "a region lies behind the end of the file (%d bytes)", f.end)
	}
	if f.write {
		// Whatever lies behind the last whole MiB belongs to nobody.
		f.end = roundUp(max(f.end, f.reg.bat.end(), f.reg.metadata.end(), f.hdr.logOffset+f.hdr.logLength), mib)
		if f.end > size {
			if err := f.s.Truncate(f.end); err != nil {
				return err
			}
		}
	}
	f.pages.init(f.s)
	return nil
}

// replay carries the log out and empties it.
func (f *File) replay(p plan) error {
	if err := f.putHeader(); err != nil {
		return err
	}
	if err := p.apply(f.s); err != nil {
		return err
	}
	if err := f.emptyLog(); err != nil {
		return err
	}
	var err error
	f.end, err = f.s.Size()
	return err
}

// loadHeader chooses the valid header with the higher sequence number and checks it.
func (f *File) loadHeader() error {
	b := make([]byte, pageSize)
	var found bool
	for _, at := range []int64{headerA, headerB} {
		if err := f.s.ReadAt(b, at); err != nil {
			return err
		}
		h, ok := decodeHeader(b)
		if !ok {
			continue
		}
		if found && h.sequence == f.hdr.sequence && h != f.hdr {
			return damaged("header", at, "both headers are valid, have the same sequence number and differ")
		}
		if !found || h.sequence > f.hdr.sequence {
			f.hdr, f.hdrAt, found = h, at, true
		}
	}
	if !found {
		return damaged("header", headerA, "no valid header")
	}
	h := f.hdr
	log := region{h.logOffset, h.logLength}
	switch {
	case h.version != 1:
		return failure("header", f.hdrAt, ErrUnsupported, "version %d", h.version)
	case !h.log.IsZero() && h.logVersion != 0:
		return failure("header", f.hdrAt, ErrUnsupported, "log version %d", h.logVersion)
	case !log.aligned():
		return damaged("header", f.hdrAt, "the log lies at %d with length %d", h.logOffset, h.logLength)
	case h.logLength > maxLog:
		return failure("header", f.hdrAt, ErrUnsupported, "a log of %d bytes", h.logLength)
	}
	return nil
}

func (f *File) loadRegions() error {
	b := make([]byte, tableSize)
	for _, at := range []int64{regionA, regionB} {
		if err := f.s.ReadAt(b, at); err != nil {
			return err
		}
		if string(b[:4]) == "regi" && le.Uint32(b[4:]) == checksum(b) {
			var err error
			f.reg, err = decodeRegions(b, at, region{f.hdr.logOffset, f.hdr.logLength})
			return err
		}
	}
	return damaged("region table", regionA, "no valid region table")
}

// putHeader makes both headers say the same, so that no old truth (an emptied log, an
// earlier DataWriteGuid) comes back should one of them rot later, [MS-VHDX] 2.2.2.1.
func (f *File) putHeader() error {
	if err := f.putOneHeader(); err != nil {
		return err
	}
	return f.putOneHeader()
}

// putOneHeader writes the header to the place of the one that does not count and
// makes it durable: at any moment one of both is whole.
func (f *File) putOneHeader() error {
	at := headerA
	if f.hdrAt == headerA {
		at = headerB
	}
	h := f.hdr
	h.sequence++
	if err := f.s.WriteAt(h.encode(), at); err != nil {
		return err
	}
	if err := f.s.Sync(); err != nil {
		return err
	}
	f.hdr, f.hdrAt = h, at
	return nil
}

// Path returns the path the file was opened by.
func (f *File) Path() string { return f.path }

// Info describes the file. The first call reads the whole BAT (8 bytes per block).
func (f *File) Info() (Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.brief()
	if f.closed {
		return in, inFile(f.path, ErrClosed)
	}
	if f.allocated < 0 {
		n, err := f.countAllocated()
		if err != nil {
			return in, inFile(f.path, err)
		}
		f.allocated = n
	}
	in.AllocatedBytes = f.allocated
	return in, nil
}

func (f *File) brief() Info {
	return Info{Path: f.path, Size: f.meta.size, BlockSize: f.meta.blockSize, LogicalSector: f.meta.logical, PhysicalSector: f.meta.physic,
		ID: f.meta.id, DataWrite: f.hdr.dataWrite, FileWrite: f.hdr.fileWrite, Layout: f.meta.layout(), Parent: f.meta.parent,
		FileSize: f.end, LogDirty: f.logDirty}
}

// writable must be called with f.mu held.
func (f *File) writable() error {
	switch {
	case f.closed:
		return ErrClosed
	case !f.write:
		return ErrReadOnly
	}
	return f.failed
}

// touch gives the file a new DataWriteGuid before the session's first write of data.
// f.mu must be held for writing.
func (f *File) touch() error {
	if f.guidFresh.Load() || f.keepGUID {
		return nil
	}
	old := f.hdr.dataWrite
	f.hdr.dataWrite = NewGUID()
	if err := f.putHeader(); err != nil {
		f.hdr.dataWrite = old
		return f.fail(err)
	}
	f.guidFresh.Store(true)
	return nil
}

// fail remembers that memory and file may differ: nothing is written any more.
func (f *File) fail(err error) error {
	if f.failed == nil {
		f.failed = fmt.Errorf("an earlier write failed: %w", err)
	}
	return err
}

// Flush makes everything written before durable.
func (f *File) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.writable(); err != nil {
		return inFile(f.path, err)
	}
	return inFile(f.path, f.flush())
}

func (f *File) flush() error {
	if err := f.commit(); err != nil {
		return err
	}
	if f.unsynced.Swap(false) {
		if err := f.s.Sync(); err != nil {
			return f.fail(err)
		}
	}
	return nil
}

// commit makes the payload written so far durable and then the changed pages of
// BAT and bitmaps, all as one log entry. f.mu must be held for writing.
func (f *File) commit() error {
	pages := f.pages.changed()
	if len(pages) == 0 {
		return nil
	}
	if err := f.writable(); err != nil {
		return err
	}
	if err := f.commitPages(pages); err != nil {
		return f.fail(err)
	}
	f.pages.clean()
	for _, off := range f.freed {
		if err := f.s.Zero(off, f.meta.blockSize); err != nil {
			return f.fail(err)
		}
	}
	f.free, f.freed = append(f.free, f.freed...), nil
	return nil
}

// commitPages logs the pages and writes them to their places. The Sync in front
// makes also the previous entry's pages durable, so the new entry's tail is
// itself. It never lies on the previous entry, which counts until this one is whole.
func (f *File) commitPages(pages []update) error {
	f.unsynced.Store(false)
	if err := f.s.Sync(); err != nil {
		return err
	}
	fresh := f.hdr.log.IsZero()
	id := f.hdr.log
	if fresh {
		id, f.logHead, f.logSeq = NewGUID(), 0, 0
	}
	f.logSeq++
	b := encodeEntry(id, f.logSeq, f.logHead, f.end, pages)
	if int64(len(b)) > f.hdr.logLength/2 {
		return fmt.Errorf("a log entry of %d bytes in a log of %d: %w", len(b), f.hdr.logLength, ErrRange)
	}
	if err := writeRing(f.s, f.hdr.logOffset, f.hdr.logLength, b, f.logHead); err != nil {
		return err
	}
	if err := f.s.Sync(); err != nil {
		return err
	}
	f.logHead = (f.logHead + int64(len(b))) % f.hdr.logLength
	if fresh {
		f.hdr.log = id
		if err := f.putHeader(); err != nil {
			return err
		}
	}
	for _, p := range pages {
		if err := f.s.WriteAt(p.data, p.off); err != nil {
			return err
		}
	}
	return nil
}

// Close flushes, empties the log and releases the file. Idempotent. After a failed
// write the log is left as it is: the next opening for writing replays it.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	var err error
	if f.write && f.failed == nil {
		err = f.settle()
	}
	f.closed = true
	return inFile(f.path, errors.Join(err, f.s.Close()))
}

// settle flushes and empties the log.
func (f *File) settle() error {
	if err := f.flush(); err != nil {
		return err
	}
	if f.hdr.log.IsZero() {
		return nil
	}
	if err := f.s.Sync(); err != nil {
		return f.fail(err)
	}
	if err := f.emptyLog(); err != nil {
		return f.fail(err)
	}
	return nil
}

// emptyLog says that there is nothing to replay.
func (f *File) emptyLog() error {
	f.hdr.log = GUID{}
	return f.putHeader()
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// absolute names a file for people and for locators.
func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		path = a
	}
	if len(filepath.VolumeName(path)) == 2 { // a drive letter of Windows
		return `\\?\` + path
	}
	return path
}
