package extmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync/atomic"
)

const (
	blockRecords = 64 // records behind one fence and one checksum
	blockSize    = blockRecords * recordSize
	chunkRecords = 4096 // unit of writing, of reading in order, and of runs in memory
	chunkSize    = chunkRecords * recordSize
)

// backing is a temporary file.
type backing interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// run is an immutable sequence of records, in memory or in a file. It is
// counted: the last release gives the file back.
type run struct {
	n     int64 // records
	bytes int64 // sum of their lengths

	mem [][]byte // chunks of chunkRecords, the last may be shorter; nil if in a file

	file   backing
	mapped []byte // the file, mapped; nil = read it
	fences fences

	refs  atomic.Int32
	final bool // part of a Map: nothing but refs changes any more
}

// retain adds a reference unless the run is gone already.
func (r *run) retain() bool {
	for {
		n := r.refs.Load()
		if n <= 0 {
			return false
		}
		if r.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (r *run) release() error {
	if r.refs.Add(-1) != 0 || r.file == nil {
		return nil
	}
	var err error
	if r.mapped != nil {
		err = unmapFile(r.mapped)
		r.mapped = nil
	}
	return errors.Join(err, r.file.Close())
}

// memory returns the bytes of memory that the run takes.
func (r *run) memory() int64 {
	n := r.fences.memory()
	for _, c := range r.mem {
		n += int64(cap(c))
	}
	return n
}

// mapPages maps the file of a run that nobody else sees yet. Where that is not
// possible the file is read.
func (r *run) mapPages() {
	if f, ok := r.file.(*os.File); ok && r.n > 0 {
		if p, err := mapFile(f, r.n*recordSize); err == nil {
			r.mapped = p
		}
	}
}

// readBlock copies block b of a run in a file to dst and returns its length.
func (r *run) readBlock(b int64, dst *[blockSize]byte) (int, error) {
	n := int(min(blockSize, r.n*recordSize-b*blockSize))
	p := dst[:n]
	var err error
	if r.mapped != nil {
		err = copyMapped(p, r.mapped[b*blockSize:])
	} else {
		err = r.readFile(p, b*blockSize)
	}
	if err == nil {
		err = r.fences.check(b, p)
	}
	if err != nil {
		return 0, damaged(b, err)
	}
	return n, nil
}

// readBlocks fills p, which begins with block b and holds whole blocks (or the
// end of the run).
func (r *run) readBlocks(b int64, p []byte) error {
	if err := r.readFile(p, b*blockSize); err != nil {
		return damaged(b, err)
	}
	for ; len(p) > 0; b++ {
		n := min(len(p), blockSize)
		if err := r.fences.check(b, p[:n]); err != nil {
			return damaged(b, err)
		}
		p = p[n:]
	}
	return nil
}

func (r *run) readFile(p []byte, off int64) error {
	n, err := r.file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func damaged(block int64, err error) error {
	return fmt.Errorf("read extent map at byte %d: %w: %w", block*blockSize, ErrDamaged, err)
}

// copyMapped copies mapped memory. Reading a mapping faults where the file has
// become shorter or its page can't be read from disk; this makes it an error.
func copyMapped(dst, src []byte) (err error) {
	before := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("memory fault at %#x", fault.Addr())
		}
	}()
	copy(dst, src)
	return nil
}

// source gives records in batches.
type source interface {
	// next returns the next whole records; none at the end. The bytes belong to the
	// source, are not to be changed and are good until the next call.
	next() ([]byte, error)
}

// reader is a source that gives a run from the start.
type reader struct {
	run *run
	at  int64 // record
	buf []byte
}

func (s *reader) next() ([]byte, error) {
	left := s.run.n - s.at
	if left == 0 {
		return nil, nil
	}
	if s.run.mem != nil {
		c := s.run.mem[s.at/chunkRecords]
		s.at += int64(len(c) / recordSize)
		return c, nil
	}
	n := min(left, chunkRecords)
	if s.buf == nil {
		s.buf = make([]byte, n*recordSize)
	}
	p := s.buf[:n*recordSize]
	if err := s.run.readBlocks(s.at/blockRecords, p); err != nil {
		return nil, err
	}
	s.at += n
	return p, nil
}

// writer makes a run. It stays in memory up to limit bytes.
type writer struct {
	cfg   Config
	limit int64
	buf   []byte // less than a chunk
	run   *run
	kept  int64 // bytes in run.mem
}

func newWriter(cfg Config, limit int64) *writer {
	return &writer{cfg: cfg, limit: limit, run: &run{}}
}

// put adds one record.
func (w *writer) put(r record) error {
	w.grow(recordSize)
	w.buf = appendRecord(w.buf, r)
	if len(w.buf) < chunkSize {
		return nil
	}
	return w.flush()
}

// grow makes room for n bytes: for a whole chunk, unless the run may stay tiny.
func (w *writer) grow(n int) {
	if len(w.buf)+n > cap(w.buf) {
		size := chunkSize
		if len(w.buf)+n <= chunkSize/32 {
			size = chunkSize / 32
		}
		w.buf = append(make([]byte, 0, size), w.buf...)
	}
}

// write adds a batch.
func (w *writer) write(b []byte) error {
	for len(b) > 0 {
		if len(w.buf) == 0 && len(b) >= chunkSize && w.run.file != nil {
			if err := w.store(b[:chunkSize]); err != nil {
				return err
			}
			b = b[chunkSize:]
			continue
		}
		n := min(len(b), chunkSize-len(w.buf))
		w.grow(n)
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
		if len(w.buf) == chunkSize {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush moves the buffer to the run.
func (w *writer) flush() error {
	if w.run.file == nil && w.kept+int64(len(w.buf)) <= w.limit {
		w.count(w.buf)
		w.kept += int64(len(w.buf))
		w.run.mem = append(w.run.mem, w.buf)
		w.buf = nil
		return nil
	}
	if w.run.file == nil {
		if err := w.spill(); err != nil {
			return err
		}
	}
	err := w.store(w.buf)
	w.buf = w.buf[:0]
	return err
}

// spill moves what is in memory to a new file.
func (w *writer) spill() error {
	f, err := w.cfg.create(w.cfg.Dir)
	if err != nil {
		return fmt.Errorf("create temporary file of extent map in %s: %w", w.cfg.Dir, err)
	}
	w.run.file = f
	chunks := w.run.mem
	w.run.mem, w.run.n, w.run.bytes, w.kept = nil, 0, 0, 0
	for _, c := range chunks {
		if err := w.store(c); err != nil {
			return err
		}
	}
	return nil
}

// store writes whole blocks, or the end of the run, to the file.
func (w *writer) store(p []byte) error {
	for b := p; len(b) > 0; {
		n := min(len(b), blockSize)
		w.run.fences.add(b[:n])
		b = b[n:]
	}
	if _, err := w.run.file.Write(p); err != nil {
		return fmt.Errorf("write extent map to a temporary file in %s (free space there, or configure another directory): %w", w.cfg.Dir, err)
	}
	w.count(p)
	return nil
}

func (w *writer) count(p []byte) {
	w.run.n += int64(len(p) / recordSize)
	for ; len(p) > 0; p = p[recordSize:] {
		w.run.bytes += getRecord(p).length()
	}
}

// finish returns the run with one reference. It may be empty.
func (w *writer) finish() (*run, error) {
	if len(w.buf) > 0 {
		if cap(w.buf) > len(w.buf) && w.run.file == nil {
			w.buf = append(make([]byte, 0, len(w.buf)), w.buf...)
		}
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	r := w.run
	r.refs.Store(1)
	w.run = nil
	return r, nil
}

// abort gives back what a writer that was not finished holds.
func (w *writer) abort() {
	if w.run != nil && w.run.file != nil {
		_ = w.run.file.Close()
	}
	w.run = nil
}

// copyAll writes all of src.
func (w *writer) copyAll(ctx context.Context, src source) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("build extent map: %w", err)
		}
		b, err := src.next()
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return nil
		}
		if err := w.write(b); err != nil {
			return err
		}
	}
}
