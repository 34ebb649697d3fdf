package pagestore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// copyPiece is how much of an image is copied or compared at once.
const copyPiece = 1 << 20

// image is the content of one page blob or managed disk: a sparse file, and
// which of its pages count. Pages that are not written read as zeros, whatever
// the file has there. It is safe for concurrent use; one write is seen whole or
// not at all by one read.
type image struct {
	path string

	mu      sync.RWMutex
	f       *os.File
	size    int64
	written pageSet // written, and not cleared since
	touched pageSet // written or cleared since touched was taken
	version uint64  // counts changes
}

func newImage(path string, size int64) (*image, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return &image{path: path, f: f, size: size}, nil
}

// drop closes and removes the file. Whoever still reads gets os.ErrClosed.
func (im *image) drop() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.f == nil {
		return nil
	}
	err := errors.Join(im.f.Close(), os.Remove(im.path))
	im.f = nil
	return err
}

func (im *image) length() int64 {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.size
}

// changes counts the changes so far.
func (im *image) changes() uint64 {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.version
}

// inside says whether [off, off+n) is part of the image. The caller holds mu.
func (im *image) inside(off, n int64) error {
	if im.f == nil {
		return fmt.Errorf("the image is gone: %w", os.ErrClosed)
	}
	if off < 0 || n < 0 || off > im.size-n {
		return fmt.Errorf("[%d, %d) is outside of the image's %d bytes", off, off+n, im.size)
	}
	return nil
}

// readAt fills p, or fails.
func (im *image) readAt(p []byte, off int64) error {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.read(p, off)
}

func (im *image) read(p []byte, off int64) error {
	if err := im.inside(off, int64(len(p))); err != nil {
		return err
	}
	end := off + int64(len(p))
	for at := off; at < end; {
		page, limit := at/pageSize, (end+pageSize-1)/pageSize
		stop := min(end, im.written.next(page, limit, false)*pageSize)
		if stop <= at {
			stop = min(end, im.written.next(page, limit, true)*pageSize)
			clear(p[at-off : stop-off])
		} else if _, err := im.f.ReadAt(p[at-off:stop-off], at); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

// writeAt writes p; off may have any alignment.
func (im *image) writeAt(p []byte, off int64) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.write(p, off)
}

func (im *image) write(p []byte, off int64) error {
	if err := im.inside(off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	from, to := off/pageSize, (off+int64(len(p))+pageSize-1)/pageSize
	// The file may still have the old bytes of a page that was cleared.
	for _, edge := range [2]int64{from, to - 1} {
		if whole := edge*pageSize >= off && (edge+1)*pageSize <= off+int64(len(p)); whole || im.written.has(edge) {
			continue
		}
		if _, err := im.f.WriteAt(make([]byte, pageSize), edge*pageSize); err != nil {
			return err
		}
	}
	if _, err := im.f.WriteAt(p, off); err != nil {
		return err
	}
	im.written.set(from, to)
	im.touched.set(from, to)
	im.version++
	return nil
}

// clearAt makes [off, off+n) read as zeros. Whole pages stop being written;
// parts of pages are overwritten with zeros.
func (im *image) clearAt(off, n int64) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if err := im.inside(off, n); err != nil || n == 0 {
		return err
	}
	from, to := (off+pageSize-1)/pageSize, (off+n)/pageSize
	if from > to { // inside of one page
		return im.write(make([]byte, n), off)
	}
	if head := from*pageSize - off; head > 0 {
		if err := im.write(make([]byte, head), off); err != nil {
			return err
		}
	}
	if tail := off + n - to*pageSize; tail > 0 {
		if err := im.write(make([]byte, tail), to*pageSize); err != nil {
			return err
		}
	}
	im.written.unset(from, to)
	im.touched.set(from, to)
	im.version++
	return nil
}

// resize cuts or grows the image; what is new reads as zeros.
func (im *image) resize(size int64) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if err := im.inside(0, 0); err != nil {
		return err
	}
	if err := im.f.Truncate(size); err != nil {
		return err
	}
	if size < im.size {
		im.written.unset(size/pageSize, (im.size+pageSize-1)/pageSize)
		im.touched.set(size/pageSize, (im.size+pageSize-1)/pageSize)
	}
	im.size = size
	im.version++
	return nil
}

// sync makes the content durable.
func (im *image) sync() error {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if err := im.inside(0, 0); err != nil {
		return err
	}
	return im.f.Sync()
}

// spans returns the written runs within [from, to) pages.
func (im *image) spans(from, to int64) []span {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.written.spans(from, min(to, (im.size+pageSize-1)/pageSize))
}

// takeTouched returns what was touched and begins anew.
func (im *image) takeTouched() pageSet {
	im.mu.Lock()
	defer im.mu.Unlock()
	t := im.touched
	im.touched = pageSet{}
	return t
}

// clone copies the content as of now to a new file. Nothing counts as touched in it.
func (im *image) clone(path string) (_ *image, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if err := im.inside(0, 0); err != nil {
		return nil, err
	}
	out, err := newImage(path, im.size)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.drop())
		}
	}()
	out.written = im.written.clone()
	if reflink(out.f, im.f) {
		return out, nil
	}
	buf := make([]byte, copyPiece)
	for _, sp := range im.written.spans(0, (im.size+pageSize-1)/pageSize) {
		for at, end := sp.from*pageSize, min(sp.to*pageSize, im.size); at < end; at += copyPiece {
			piece := buf[:min(copyPiece, end-at)]
			if _, err := im.f.ReadAt(piece, at); err != nil {
				return nil, err
			}
			if _, err := out.f.WriteAt(piece, at); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// stream copies [off, off+n) to w.
func (im *image) stream(w io.Writer, off, n int64) error {
	buf := make([]byte, min(n, copyPiece))
	for n > 0 {
		piece := buf[:min(n, copyPiece)]
		if err := im.readAt(piece, off); err != nil {
			return err
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
		off, n = off+int64(len(piece)), n-int64(len(piece))
	}
	return nil
}

// addTouched counts more pages as touched.
func (im *image) addTouched(t *pageSet) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.touched.add(t)
}
