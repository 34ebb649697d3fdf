package vhdx

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
)

// readerAt reads all of p; what lies behind the end of the file reads as zeros.
type readerAt interface {
	ReadAt(p []byte, off int64) error
}

// storage is the file below: the seam where tests let it fail or lose power.
type storage interface {
	readerAt
	WriteAt(p []byte, off int64) error
	// Zero makes a range inside the file read as zeros, giving its space back where that can be done.
	Zero(off, n int64) error
	Truncate(size int64) error
	Size() (int64, error)
	// Sync makes everything written before durable.
	Sync() error
	Close() error
}

// osFile is a file of the operating system.
type osFile struct {
	f      *os.File
	noSync bool
	locked bool
	punch  atomic.Bool // hole punching did not fail yet
}

func newOSFile(f *os.File, noSync bool) *osFile {
	o := &osFile{f: f, noSync: noSync}
	o.punch.Store(true)
	return o
}

func (o *osFile) ReadAt(p []byte, off int64) error {
	n, err := o.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

func (o *osFile) WriteAt(p []byte, off int64) error {
	_, err := o.f.WriteAt(p, off)
	return err
}

func (o *osFile) Zero(off, n int64) error {
	if o.punch.Load() {
		if err := punchHole(o.f, off, n); err == nil {
			return nil
		}
		o.punch.Store(false)
	}
	return writeZeros(o, off, n)
}

func (o *osFile) Truncate(size int64) error { return o.f.Truncate(size) }

func (o *osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o *osFile) Sync() error {
	if o.noSync {
		return nil
	}
	return o.f.Sync()
}

// lock takes the writer's lock until Close.
func (o *osFile) lock() error {
	err := lockFile(o.f)
	o.locked = err == nil
	return err
}

func (o *osFile) Close() error {
	var err error
	if o.locked {
		err = unlockFile(o.f)
	}
	return errors.Join(err, o.f.Close())
}

// writeZeros is the slow way to zero a range.
func writeZeros(s storage, off, n int64) error {
	buf := make([]byte, min(n, mib))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if err := s.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// replayed is a file as it looks after its log was applied, without applying it.
// It is read only.
type replayed struct {
	storage
	size  int64
	zero  []region
	pages map[int64][]byte // by offset; they count more than zero
}

func (r *replayed) Size() (int64, error) { return r.size, nil }

func (r *replayed) ReadAt(p []byte, off int64) error {
	if err := r.storage.ReadAt(p, off); err != nil {
		return err
	}
	end := off + int64(len(p))
	for _, z := range r.zero {
		if z.overlaps(off, int64(len(p))) {
			clear(p[max(z.off, off)-off : min(z.end(), end)-off])
		}
	}
	for at := off &^ (pageSize - 1); at < end; at += pageSize {
		if page, ok := r.pages[at]; ok {
			from, to := max(at, off), min(at+pageSize, end)
			copy(p[from-off:to-off], page[from-at:to-at])
		}
	}
	return nil
}

func (r *replayed) WriteAt([]byte, int64) error { return ErrReadOnly }
func (r *replayed) Zero(int64, int64) error     { return ErrReadOnly }
func (r *replayed) Truncate(int64) error        { return ErrReadOnly }
