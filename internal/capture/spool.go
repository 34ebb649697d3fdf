package capture

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

func gen(v uint32) dr.Generation { return dr.Generation(v) }

// spool is the directory of sealed cuts on their way to the store. An entry is
// complete or absent: it is built under a temporary name and renamed.
type spool struct {
	dir   string
	limit int64
	used  atomic.Int64
}

// entryVersion of entry.json.
//
//	1  2026-11-22  first version
const entryVersion = 1

// entry is one sealed cut.
type entry struct {
	Version int       `json:"version"`
	Ref     cut.Ref   `json:"ref"`
	Prev    cut.Ref   `json:"prev"`
	Token   string    `json:"token"`
	Epoch   uint32    `json:"epoch"`
	Time    time.Time `json:"time"`
	Objects []object  `json:"objects"` // in the order of sending; the cut is last
	Dirty   int64     `json:"dirty"`
	CutNS   int64     `json:"cutNs"`
	Resync  bool      `json:"resync"`
	Updates bool      `json:"updates"` // the entry has filter.upd

	dir string
}

type object struct {
	Name   string   `json:"name"` // in the store
	File   string   `json:"file"` // in the entry
	Size   int64    `json:"size"`
	SHA256 cut.Hash `json:"sha256"`
}

const (
	entryFile   = "entry.json"
	updatesFile = "filter.upd"
	tempPrefix  = ".tmp-"
)

func (e *entry) bytes() int64 {
	var n int64
	for _, o := range e.Objects {
		n += o.Size
	}
	return n
}

// open lists the entries in the order of their cuts and removes what a crash left half made.
func (s *spool) open() ([]*entry, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, diskError("capture.spool", s.dir, err)
	}
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "capture.spool", "list spool: %w", err)
	}
	var entries []*entry
	var used int64
	for _, n := range names {
		path := filepath.Join(s.dir, n.Name())
		e, err := readEntry(path)
		if errors.Is(err, errTorn) {
			if err := os.RemoveAll(path); err != nil {
				return nil, diskError("capture.spool", path, err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		used += e.bytes()
	}
	s.used.Store(used)
	slices.SortFunc(entries, func(a, b *entry) int {
		if c := int64(a.Ref.Gen) - int64(b.Ref.Gen); c != 0 {
			return int(c)
		}
		return int(int64(a.Ref.N) - int64(b.Ref.N))
	})
	return entries, nil
}

// list reads the entries that are there now, in their order; a torn one, or one
// that is being removed, is left out.
func (s *spool) list() ([]*entry, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "capture.spool", "list spool: %w", err)
	}
	var entries []*entry
	for _, n := range names { // sorted by name: by generation and number
		e, err := readEntry(filepath.Join(s.dir, n.Name()))
		if errors.Is(err, errTorn) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

var errTorn = errors.New("the spool entry is not complete")

// readEntry reads an entry. It is errTorn unless every file is there in full.
func readEntry(path string) (*entry, error) {
	if strings.HasPrefix(filepath.Base(path), tempPrefix) {
		return nil, errTorn
	}
	raw, err := os.ReadFile(filepath.Join(path, entryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errTorn
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "capture.spool", "read entry: %w", err)
	}
	e := &entry{dir: path}
	if json.Unmarshal(raw, e) != nil || len(e.Objects) == 0 {
		return nil, errTorn
	}
	if e.Version != entryVersion {
		return nil, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, "capture.spool", "spool entry %s has version %d, want %d", path, e.Version, entryVersion)
	}
	for _, o := range e.Objects {
		info, err := os.Stat(filepath.Join(path, o.File))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, dr.Errorf(dr.KindUnavailable, "capture.spool", "look at entry: %w", err)
		}
		if err != nil || info.Size() != o.Size {
			return nil, errTorn
		}
	}
	return e, nil
}

func (s *spool) size() int64 { return s.used.Load() }

// full reports whether no further cut may be begun.
func (s *spool) full() bool { return s.used.Load() >= s.limit }

// draft makes an empty entry that is to be filled.
func (s *spool) draft() (string, error) {
	dir, err := os.MkdirTemp(s.dir, tempPrefix)
	return dir, diskError("capture.spool", s.dir, err)
}

// add makes a filled draft an entry: everything in it is synced, then it is renamed.
func (s *spool) add(draft string, e *entry, step func(string) error) error {
	const op = "capture.spool"
	e.Version = entryVersion
	raw, err := json.MarshalIndent(e, "", " ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode entry: %w", err)
	}
	if err := replaceFile(filepath.Join(draft, entryFile), raw, 0o600); err != nil {
		return err
	}
	if err := step("spool.written"); err != nil {
		return err
	}
	path := filepath.Join(s.dir, fmt.Sprintf("%08x-%016x", uint32(e.Ref.Gen), e.Ref.N))
	if err := os.RemoveAll(path); err != nil { // of an attempt that the state does not know
		return diskError(op, path, err)
	}
	if err := os.Rename(draft, path); err != nil {
		return diskError(op, path, err)
	}
	if err := syncDir(s.dir); err != nil {
		return diskError(op, s.dir, err)
	}
	e.dir = path
	s.used.Add(e.bytes())
	return step("spool.renamed")
}

// remove deletes an entry. Idempotent.
func (s *spool) remove(e *entry) error {
	// The entry file goes first: what is left without it is torn, and cleaned up at the next start.
	if err := os.Remove(filepath.Join(e.dir, entryFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return diskError("capture.spool", e.dir, err)
	}
	s.used.Add(-e.bytes())
	return diskError("capture.spool", e.dir, os.RemoveAll(e.dir))
}

// updatesWriter writes the filter updates of a cut into its draft as they come:
// a resynchronization may have hundreds of millions of them.
//
// Records: disk u16, kind u8 (0 sums, 1 zeroes), block u64, count u32, then
// count sums u64 for kind 0. Little endian. The file lives as long as the entry.
type updatesWriter struct {
	f *os.File
	w *bufio.Writer
}

func newUpdatesWriter(draft string) (*updatesWriter, error) {
	path := filepath.Join(draft, updatesFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, diskError("capture.spool", path, err)
	}
	return &updatesWriter{f: f, w: bufio.NewWriterSize(f, 64<<10)}, nil
}

// add writes one update; bufio keeps the first error for finish.
func (u *updatesWriter) add(x update) {
	var head [15]byte
	for count := max(x.zero, int64(len(x.sums))); count > 0; {
		n := min(count, 1<<30)
		binary.LittleEndian.PutUint16(head[0:], x.disk)
		head[2] = 0
		if x.zero > 0 {
			head[2] = 1
		}
		binary.LittleEndian.PutUint64(head[3:], uint64(x.block))
		binary.LittleEndian.PutUint32(head[11:], uint32(n))
		u.w.Write(head[:])
		if x.zero == 0 {
			for _, v := range x.sums[:n] {
				var b [8]byte
				binary.LittleEndian.PutUint64(b[:], v)
				u.w.Write(b[:])
			}
			x.sums = x.sums[n:]
		}
		x.block += n
		count -= n
	}
}

// finish makes the file durable and closes it.
func (u *updatesWriter) finish() error {
	return diskError("capture.spool", u.f.Name(), errors.Join(u.w.Flush(), u.f.Sync(), u.f.Close()))
}

// apply brings a disk's filter from the entry's predecessor to the entry.
func (e *entry) apply(disk uint16, t *filter) error {
	if err := t.begin(); err != nil {
		return diskError("capture.filter", t.f.Name(), err)
	}
	if e.Updates {
		if err := e.readUpdates(disk, t); err != nil {
			return err
		}
	}
	return diskError("capture.filter", t.f.Name(), t.commit(e.Ref))
}

func (e *entry) readUpdates(disk uint16, t *filter) error {
	path := filepath.Join(e.dir, updatesFile)
	f, err := os.Open(path)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "capture.filter", "read updates: %w", err)
	}
	defer f.Close()
	br := bufio.NewReaderSize(f, 64<<10)
	blocks := (t.size + cut.Unit - 1) / cut.Unit
	var head [15]byte
	for {
		if _, err := io.ReadFull(br, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return dr.Errorf(dr.KindCorrupt, "capture.filter", "read %s: %w", path, err)
		}
		block := int64(binary.LittleEndian.Uint64(head[3:]))
		count := int64(binary.LittleEndian.Uint32(head[11:]))
		mine := binary.LittleEndian.Uint16(head[0:]) == disk
		if block < 0 || (mine && block+count > blocks) {
			return dr.Errorf(dr.KindCorrupt, "capture.filter", "%s names block %d of %d", path, block+count, blocks)
		}
		for i := range count {
			v := uint64(entryZero)
			if head[2] == 0 {
				var b [8]byte
				if _, err := io.ReadFull(br, b[:]); err != nil {
					return dr.Errorf(dr.KindCorrupt, "capture.filter", "read %s: %w", path, err)
				}
				v = binary.LittleEndian.Uint64(b[:])
			}
			if mine {
				t.put(block+i, v)
			}
		}
	}
}
