package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// maxDepth is the longest chain that is opened.
const maxDepth = 256

// ChainOptions says how to open a chain.
type ChainOptions struct {
	// Write opens the top file for writing. Parents are never written.
	Write bool
	// NoSync: see OpenOptions.
	NoSync bool
	// Resolve finds the parent of a child. Nil tries the relative path (backslashes
	// turned, from the child's directory), then the volume path, then the absolute path.
	Resolve func(child string, l Locator) (path string, err error)
}

// Chain is a disk: a file with all its parents. Offsets and lengths are bytes of
// the disk, without alignment. Overlapping concurrent writes leave one of both in each sector.
type Chain struct {
	files  []*File // top first
	closer sync.Once
	err    error
}

// OpenChain opens a file with all its parents. A parent whose DataWriteGuid is not
// the one the child names gives ErrParentMismatch.
func OpenChain(path string, opts ChainOptions) (*Chain, error) {
	c := &Chain{}
	top, err := Open(path, OpenOptions{Write: opts.Write, NoSync: opts.NoSync})
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, top)
	resolve := opts.Resolve
	if resolve == nil {
		resolve = resolveParent
	}
	for f := top; f.meta.hasParent; f = c.files[len(c.files)-1] {
		p, err := c.openParent(f, resolve)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.files = append(c.files, p)
	}
	return c, nil
}

func (c *Chain) openParent(f *File, resolve func(string, Locator) (string, error)) (*File, error) {
	if len(c.files) >= maxDepth {
		return nil, inFile(c.files[0].path, failure("chain", -1, ErrUnsupported, "more than %d files", maxDepth))
	}
	path, err := resolve(f.path, f.meta.parent)
	if err != nil {
		return nil, inFile(f.path, failure("parent locator", -1, err, "find the parent"))
	}
	p, err := Open(path, OpenOptions{})
	if err != nil {
		return nil, fmt.Errorf("parent of %s: %w", f.path, err)
	}
	if err := f.fits(p); err != nil {
		return nil, errors.Join(inFile(f.path, err), p.Close())
	}
	return p, nil
}

// fits checks that p is the parent f was made from.
func (f *File) fits(p *File) error {
	l := f.meta.parent
	if g := p.hdr.dataWrite; g != l.Linkage && (l.Linkage2.IsZero() || g != l.Linkage2) {
		return failure("parent locator", -1, ErrParentMismatch, "%s has DataWriteGuid %s, the child wants %s", p.path, g, l.Linkage)
	}
	if f.meta.logical != p.meta.logical {
		return failure("metadata", -1, ErrParentMismatch, "sectors of %d bytes, those of the parent %s have %d", f.meta.logical, p.path, p.meta.logical)
	}
	return nil
}

func resolveParent(child string, l Locator) (string, error) {
	var tried []string
	for _, p := range []string{l.Relative, l.Volume, l.Absolute} {
		if p == "" {
			continue
		}
		local := p
		if filepath.Separator == '/' {
			local = strings.ReplaceAll(strings.TrimPrefix(p, `\\?\`), `\`, "/")
		}
		if p == l.Relative {
			local = filepath.Join(filepath.Dir(child), local)
		}
		if _, err := os.Stat(local); err == nil {
			return local, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		tried = append(tried, local)
	}
	return "", fmt.Errorf("tried %q: %w", tried, ErrParentNotFound)
}

// Info describes the top file; Size is the disk's size.
func (c *Chain) Info() (Info, error) { return c.files[0].Info() }

// Files describes all files, top first.
func (c *Chain) Files() ([]Info, error) {
	out := make([]Info, len(c.files))
	for i, f := range c.files {
		in, err := f.Info()
		if err != nil {
			return nil, err
		}
		out[i] = in
	}
	return out, nil
}

// Size is the size of the disk in bytes.
func (c *Chain) Size() int64 { return c.files[0].Size() }

// Flush makes everything written before durable.
func (c *Chain) Flush() error { return c.files[0].Flush() }

// Close closes all files. Idempotent.
func (c *Chain) Close() error {
	c.closer.Do(func() {
		for _, f := range c.files {
			c.err = errors.Join(c.err, f.Close())
		}
	})
	return c.err
}

// span checks a range of the disk. f.mu of the top must be held.
func (f *File) span(off, n int64) error {
	if f.closed {
		return ErrClosed
	}
	if off < 0 || n < 0 || off > f.meta.size || n > f.meta.size-off {
		return failure("disk", -1, ErrRange, "%d bytes at %d of %d", n, off, f.meta.size)
	}
	return nil
}

// ReadAt fills p with the disk's bytes from off on. It reads all of p or fails.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	top := c.files[0]
	top.mu.RLock()
	defer top.mu.RUnlock()
	err := top.span(off, int64(len(p)))
	if err == nil {
		err = c.read(0, p, off)
	}
	if err != nil {
		return 0, inFile(top.path, err)
	}
	return len(p), nil
}

// read reads from the chain below and with files[level], whose lock is held.
func (c *Chain) read(level int, p []byte, off int64) error {
	f := c.files[level]
	if rest := f.meta.size - off; rest < int64(len(p)) { // a child may be larger than its parent
		clear(p[max(rest, 0):])
		p = p[:max(rest, 0)]
	}
	for len(p) > 0 {
		block, in := off/f.meta.blockSize, off%f.meta.blockSize
		n := min(int64(len(p)), f.meta.blockSize-in)
		err := f.runs(block, in, in+n, func(r run) error {
			part := p[r.from-in : r.to-in]
			switch r.src {
			case fromFile:
				return f.s.ReadAt(part, r.off)
			case fromParent:
				return c.below(level, func() error { return c.read(level+1, part, off+r.from-in) })
			}
			clear(part)
			return nil
		})
		if err != nil {
			return inFile(f.path, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// below runs fn with the lock of the next file held.
func (c *Chain) below(level int, fn func() error) error {
	if level+1 >= len(c.files) {
		return inFile(c.files[level].path, ErrHasParent)
	}
	f := c.files[level+1]
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return inFile(f.path, ErrClosed)
	}
	return fn()
}

// WriteAt writes p to the top file at the disk's offset off. It is durable after Flush.
func (c *Chain) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.writeBlock(p[done:], off+int64(done))
		if err != nil {
			return done, inFile(c.files[0].path, err)
		}
		done += n
	}
	if len(p) == 0 {
		return 0, inFile(c.files[0].path, c.files[0].checkSpan(off, 0))
	}
	return done, nil
}

func (f *File) checkSpan(off, n int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.span(off, n)
}

// writeBlock writes the part of p that lies in the first block.
func (c *Chain) writeBlock(p []byte, off int64) (int, error) {
	f := c.files[0]
	if err := f.checkSpan(off, int64(len(p))); err != nil {
		return 0, err
	}
	block, in := off/f.meta.blockSize, off%f.meta.blockSize
	p = p[:min(int64(len(p)), f.meta.blockSize-in)]
	if done, err := f.writeInPlace(block, in, p); done || err != nil {
		return len(p), err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.writable(); err != nil {
		return 0, err
	}
	if err := f.touch(); err != nil {
		return 0, err
	}
	return len(p), c.put(block, in, p)
}

// writeInPlace serves the usual case, a block that stands fully in the file, with
// the lock shared.
func (f *File) writeInPlace(block, in int64, p []byte) (bool, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.writable(); err != nil {
		return false, err
	}
	if !f.guidFresh.Load() && !f.keepGUID {
		return false, nil
	}
	e, err := f.payload(block)
	if err != nil || e.state != stateFull {
		return false, err
	}
	f.unsynced.Store(true)
	return true, f.s.WriteAt(p, e.off+in)
}

// put widens a write to whole sectors where the parent shows through.
// The top's lock must be held for writing.
func (c *Chain) put(block, in int64, p []byte) error {
	f := c.files[0]
	sector := int64(f.meta.logical)
	end := in + int64(len(p))
	from, to := in/sector*sector, roundUp(end, sector)
	if !f.meta.hasParent || from == in && to == end {
		return f.put(block, in, p)
	}
	e, err := f.payload(block)
	if err != nil {
		return err
	}
	if e.state != statePartial && e.state != stateNotPresent {
		return f.put(block, in, p)
	}
	buf := make([]byte, to-from)
	base := block * f.meta.blockSize
	if err := c.read(0, buf[:sector], base+from); err != nil {
		return err
	}
	if err := c.read(0, buf[int64(len(buf))-sector:], base+to-sector); err != nil {
		return err
	}
	copy(buf[in-from:], p)
	return f.put(block, from, buf)
}

// Zero makes a range read as zeros. Whole blocks give their space back, except in a fixed file.
func (c *Chain) Zero(off, n int64) error {
	f := c.files[0]
	if err := f.checkSpan(off, n); err != nil {
		return inFile(f.path, err)
	}
	for n > 0 {
		k, err := c.zeroBlock(off, n)
		if err != nil {
			return inFile(f.path, err)
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *Chain) zeroBlock(off, n int64) (int64, error) {
	f := c.files[0]
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.writable(); err != nil {
		return 0, err
	}
	if err := f.span(off, n); err != nil {
		return 0, err
	}
	if err := f.touch(); err != nil {
		return 0, err
	}
	block, in := off/f.meta.blockSize, off%f.meta.blockSize
	n = min(n, f.meta.blockSize-in)
	if in == 0 && n == min(f.meta.blockSize, f.meta.size-block*f.meta.blockSize) {
		return n, f.drop(block)
	}
	e, err := f.payload(block)
	switch {
	case err != nil:
		return 0, err
	case e.state == stateFull:
		f.unsynced.Store(true)
		return n, f.s.Zero(e.off+in, n)
	case !e.hasSpace() && (e.state != stateNotPresent || !f.meta.hasParent):
		return n, nil
	}
	buf := make([]byte, min(n, mib))
	for k := int64(0); k < n; k += int64(len(buf)) {
		if err := c.put(block, in+k, buf[:min(int64(len(buf)), n-k)]); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// extentWindow is how much of the disk Extents looks at under one hold of the lock.
const extentWindow = gib

type extent struct {
	off, n int64
	zero   bool
}

// Extents tells in order which parts of a range hold data and which read as zeros
// because no file of the chain has data there. Neighbours differ, data may be zeros
// all the same. fn may use the chain; its error ends the walk and is returned.
// The parts are those of a moment that may differ along the range.
func (c *Chain) Extents(off, n int64, fn func(off, n int64, zero bool) error) error {
	top := c.files[0]
	if err := top.checkSpan(off, n); err != nil {
		return inFile(top.path, err)
	}
	var last extent
	emit := func(e extent) error {
		if last.n > 0 && last.zero == e.zero {
			last.n += e.n
			return nil
		}
		done := last
		last = e
		if done.n == 0 {
			return nil
		}
		return fn(done.off, done.n, done.zero)
	}
	for n > 0 {
		k := min(n, extentWindow)
		list, err := c.window(off, k)
		if err != nil {
			return inFile(top.path, err)
		}
		for _, e := range list {
			if err := emit(e); err != nil {
				return err
			}
		}
		off, n = off+k, n-k
	}
	if last.n > 0 {
		return fn(last.off, last.n, last.zero)
	}
	return nil
}

func (c *Chain) window(off, n int64) ([]extent, error) {
	top := c.files[0]
	top.mu.RLock()
	defer top.mu.RUnlock()
	if err := top.span(off, n); err != nil {
		return nil, err
	}
	var out []extent
	err := c.extents(0, off, n, func(off, n int64, zero bool) {
		if k := len(out); k > 0 && out[k-1].zero == zero {
			out[k-1].n += n
			return
		}
		out = append(out, extent{off, n, zero})
	})
	return out, err
}

// extents is read without bytes.
func (c *Chain) extents(level int, off, n int64, fn func(off, n int64, zero bool)) error {
	f := c.files[level]
	size := min(n, max(f.meta.size-off, 0))
	tail := n - size
	for n = size; n > 0; {
		block, in := off/f.meta.blockSize, off%f.meta.blockSize
		k := min(n, f.meta.blockSize-in)
		err := f.runs(block, in, in+k, func(r run) error {
			at := off + r.from - in
			if r.src == fromParent {
				return c.below(level, func() error { return c.extents(level+1, at, r.to-r.from, fn) })
			}
			fn(at, r.to-r.from, r.src == zeros)
			return nil
		})
		if err != nil {
			return inFile(f.path, err)
		}
		off, n = off+k, n-k
	}
	if tail > 0 {
		fn(off, tail, true)
	}
	return nil
}

// Size is the size of the disk in bytes.
func (f *File) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.meta.size
}

// alone is the chain of a file without parents.
func (f *File) alone() (*Chain, error) {
	if f.meta.hasParent {
		return nil, inFile(f.path, ErrHasParent)
	}
	return &Chain{files: []*File{f}}, nil
}

// ReadAt reads as Chain.ReadAt does. A differencing file gives ErrHasParent.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	c, err := f.alone()
	if err != nil {
		return 0, err
	}
	return c.ReadAt(p, off)
}

// WriteAt writes as Chain.WriteAt does. A differencing file gives ErrHasParent.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	c, err := f.alone()
	if err != nil {
		return 0, err
	}
	return c.WriteAt(p, off)
}

// Zero zeroes as Chain.Zero does. A differencing file gives ErrHasParent.
func (f *File) Zero(off, n int64) error {
	c, err := f.alone()
	if err != nil {
		return err
	}
	return c.Zero(off, n)
}
