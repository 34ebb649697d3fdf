package mshrl

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
)

// file is what a Writer writes to.
type file interface {
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
	Close() error
}

// Writer writes a log. Methods are safe for concurrent use; writes are logged in
// the order in which Append gets them.
//
// Until Close has succeeded the file's header says that it is not closed: after
// a crash, an error or Abandon it reads as ErrOpen. A crash within Close
// leaves either that or the complete log.
type Writer struct {
	mu      sync.Mutex
	name    string
	f       file
	h       Header
	pos     int64 // where the next data goes
	prev    int64 // the last metadata block, 0 = none
	pending []Entry
	err     error // the first failure: the log stays open
	closed  bool
}

var errWriterClosed = errors.New("the log's writer is closed")

// Create makes a log file, which must not exist. Of h, UniqueID must be set.
func Create(path string, h Header) (*Writer, error) {
	if err := h.prepare(); err != nil {
		return nil, fmt.Errorf("mshrl: create %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mshrl: %w", err)
	}
	w, err := newWriter(f, path, h)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return w, nil
}

// prepare checks and completes a header for a new log.
func (h *Header) prepare() error {
	if h.UniqueID == (GUID{}) {
		return errors.New("a log needs an id")
	}
	if len(h.Creator) > 4 {
		return fmt.Errorf("creator %q has more than 4 bytes", h.Creator)
	}
	if h.MetadataSize == 0 {
		h.MetadataSize = DefaultMetadataSize
	}
	if h.Created.IsZero() {
		h.Created = time.Now()
	}
	h.LastModified = h.Created
	h.OriginalSize, h.CurrentSize, h.EOL, h.Entries, h.ErrorCode = 0, 0, 0, 0, 0
	return checkMetadataSize(h.MetadataSize)
}

// newWriter writes the header, marked as open, and the empty metadata block that logs begin with.
func newWriter(f file, name string, h Header) (*Writer, error) {
	w := &Writer{name: name, f: f, h: h, pos: headerSize}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, fmt.Errorf("mshrl: write header of %s: %w", name, err)
	}
	if err := w.flush(); err != nil {
		return nil, fmt.Errorf("mshrl: write %s: %w", name, err)
	}
	return w, nil
}

// Append logs a write of p at byte off of the disk. A time before the last one's is
// logged as that one: times never go backwards in a log. After an error the log stays open for good.
func (w *Writer) Append(off int64, p []byte, t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usable(); err != nil {
		return err
	}
	if off < 0 || int64(len(p)) > math.MaxInt64-off {
		return fmt.Errorf("mshrl: append to %s: %d bytes at %d are none of a disk", w.name, len(p), off)
	}
	if t.After(w.h.LastModified) {
		w.h.LastModified = t
	}
	const most = 1 << 30 // of one entry, whose length has 32 bits
	for len(p) > 0 {
		part := p[:min(len(p), most)]
		if _, err := w.f.WriteAt(part, w.pos); err != nil {
			return w.fail(fmt.Errorf("mshrl: append to %s: %w", w.name, err))
		}
		w.pending = append(w.pending, Entry{Off: off, Len: int64(len(part)), Time: w.h.LastModified, Location: w.pos, sum: ^sum(part)})
		w.pos += int64(len(part))
		w.h.Entries++
		if len(w.pending) == int(w.h.MetadataSize-blockHeaderSize)/entrySize {
			if err := w.flush(); err != nil {
				return w.fail(fmt.Errorf("mshrl: append to %s: %w", w.name, err))
			}
		}
		off, p = off+int64(len(part)), p[len(part):]
	}
	return nil
}

func (w *Writer) usable() error {
	if w.err == nil && w.closed {
		return fmt.Errorf("mshrl: %s: %w", w.name, errWriterClosed)
	}
	return w.err
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}

// flush writes the metadata block of what is pending.
func (w *Writer) flush() error {
	p := make([]byte, w.h.MetadataSize)
	b := blockHeader{valid: uint32(len(w.pending))}
	if w.prev != 0 {
		b.back = w.pos - w.prev
	}
	b.encode(p)
	for i, e := range w.pending {
		e.encode(p[blockHeaderSize+i*entrySize:])
	}
	if _, err := w.f.WriteAt(p, w.pos); err != nil {
		return err
	}
	w.prev, w.pos, w.pending = w.pos, w.pos+int64(len(p)), w.pending[:0]
	return nil
}

// Size returns the bytes written so far.
func (w *Writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pos
}

// ResyncDue reports whether the log has become too long for its disk.
func (w *Writer) ResyncDue(diskBytes int64) bool { return ResyncDue(w.Size(), diskBytes) }

// Close completes the log: all data and metadata are on stable storage before
// the header says that it is closed. Idempotent; a log that failed before stays open, and Close says why.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.err
	}
	w.closed = true
	if w.err == nil {
		if err := w.finish(); err != nil {
			w.err = fmt.Errorf("mshrl: close %s: %w", w.name, err)
		}
	}
	if err := w.f.Close(); err != nil && w.err == nil {
		w.err = fmt.Errorf("mshrl: close %s: %w", w.name, err)
	}
	return w.err
}

func (w *Writer) finish() error {
	if len(w.pending) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.h.EOL, w.h.CurrentSize = w.pos, uint64(w.pos)
	// All that changes lies in the first sector, so the write is not torn.
	if _, err := w.f.WriteAt(w.h.encode()[:512], 0); err != nil {
		return err
	}
	return w.f.Sync()
}

// Abandon closes the file and leaves the log open: reading it is ErrOpen. Idempotent, and nothing after Close.
func (w *Writer) Abandon() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if err := w.f.Close(); err != nil {
		return fmt.Errorf("mshrl: abandon %s: %w", w.name, err)
	}
	return nil
}
