package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"holdfast/internal/objstore"
)

// lstat describes the file or directory at key, once no write of this process
// is between the link and the sync of it. fs.ErrNotExist means that the bucket
// is there and the key is not.
func (b *Bucket) lstat(ctx context.Context, key string) (fs.FileInfo, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		info, err := b.root.Lstat(objectPath(key))
		// Asked afterwards: a link that Lstat has seen is registered.
		if p := b.publicationOf(key); p != nil {
			if err := p.wait(ctx); err != nil {
				return nil, err
			}
			continue
		}
		switch {
		case err != nil && (errors.Is(err, fs.ErrNotExist) || isNotDir(err)):
			return nil, b.aliveOr(fs.ErrNotExist)
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular() && !info.IsDir():
			return nil, fmt.Errorf("%w: its file is not a regular file", objstore.ErrUnavailable)
		}
		return info, nil
	}
}

// aliveOr returns err if the bucket is still in its directory, otherwise that it
// is not: absence can only be told by a bucket that is there.
func (b *Bucket) aliveOr(err error) error {
	for _, name := range []string{markerName, objectsDir} {
		if _, statErr := b.root.Lstat(name); statErr != nil {
			return fmt.Errorf("%w: the directory %s no longer holds the bucket: %w", objstore.ErrUnavailable, b.dir, hideNotExist{statErr})
		}
	}
	return err
}

// hideNotExist keeps the text of an error, but not its being ErrNotExist: the
// bucket is missing, which says nothing about the object.
type hideNotExist struct{ error }

// Head describes an object; see objstore.Reader. SHA256 is not recorded.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return objstore.Info{}, &objstore.Error{Op: "head", Key: key, Err: err}
	}
	info, err := b.lstat(ctx, key)
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err == nil && !b.readOnly {
		// Head is how a commit is confirmed: what it vouches for must survive
		// a power cut, even if its writer was killed before its sync.
		if syncErr := b.settle(path.Dir(objectPath(key)), false); syncErr != nil {
			err = fmt.Errorf("%w: sync its directory: %w", objstore.ErrUnavailable, hideNotExist{syncErr})
		}
	}
	if err != nil {
		return objstore.Info{}, wrap("head", key, err)
	}
	return objstore.Info{Key: key, Size: info.Size(), ModTime: info.ModTime()}, nil
}

// Get reads a range; see objstore.Reader.
func (b *Bucket) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return nil, &objstore.Error{Op: "get", Key: key, Err: err}
	}
	body, err := b.get(ctx, key, off, length)
	if err != nil {
		return nil, wrap("get", key, err)
	}
	return body, nil
}

func (b *Bucket) get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	// Looking before opening keeps a named pipe from blocking the open.
	info, err := b.lstat(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fs.ErrNotExist
	}
	f, err := b.root.Open(objectPath(key))
	if err != nil {
		return nil, err // ErrNotExist here: deleted since
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(info, opened) {
		// Deleted and created again, or replaced by hand, between the calls.
		err = fmt.Errorf("%w: the file was exchanged while it was opened", objstore.ErrUnavailable)
	}
	size := info.Size()
	if err == nil && (off < 0 || off > size) {
		err = fmt.Errorf("%w: offset %d of %d", objstore.ErrRange, off, size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if length < 0 || length > size-off {
		length = size - off
	}
	return &body{ctx: ctx, key: key, f: f, off: off, end: off + length}, nil
}

// body is an open range of an object.
type body struct {
	ctx      context.Context
	key      string
	f        *os.File
	off, end int64
	once     sync.Once
	closeErr error
}

func (r *body) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, wrap("get", r.key, err)
	}
	if r.off == r.end {
		return 0, io.EOF
	}
	if int64(len(p)) > r.end-r.off {
		p = p[:r.end-r.off]
	}
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	if n == len(p) {
		return n, nil // an EOF here is the end of the range at the end of the file
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: its file has become shorter: %w", objstore.ErrUnavailable, io.ErrUnexpectedEOF)
	}
	return n, wrap("get", r.key, err)
}

func (r *body) Close() error {
	r.once.Do(func() { r.closeErr = r.f.Close() })
	return r.closeErr
}

// List lists the objects under prefix; see objstore.Reader. It reads one
// directory at a time into memory.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	return b.ListAfter(ctx, prefix, "", fn)
}

// ListAfter lists the keys greater than after; see objstore.AfterLister.
func (b *Bucket) ListAfter(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	if err := objstore.ValidatePrefix(prefix); err != nil {
		return &objstore.Error{Op: "list", Key: prefix, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return &objstore.Error{Op: "list", Key: prefix, Err: err}
	}
	w := &walk{ctx: ctx, b: b, prefix: prefix, after: after, fn: fn}
	folder := prefix[:strings.LastIndexByte(prefix, '/')+1]
	err := w.start(folder)
	if w.stop != nil {
		return w.stop
	}
	if err != nil {
		return wrap("list", prefix, err)
	}
	return nil
}

// walk is one listing.
type walk struct {
	ctx           context.Context
	b             *Bucket
	prefix, after string
	fn            func(objstore.Info) error
	stop          error // what fn returned
}

var errStop = errors.New("listing was stopped by its caller")

// start lists the directory of folder, if there is one.
func (w *walk) start(folder string) error {
	name := strings.TrimSuffix(objectPath(folder), "/")
	info, err := w.b.root.Lstat(name)
	if err == nil && !info.IsDir() || errors.Is(err, fs.ErrNotExist) || err != nil && isNotDir(err) {
		return w.b.aliveOr(nil)
	}
	if err != nil {
		return err
	}
	d, err := w.b.root.OpenRoot(name)
	if err != nil {
		return err
	}
	return errors.Join(w.dir(d, folder), d.Close())
}

// dir lists the directory d, whose keys start with folder (empty, or ending in
// a slash).
func (w *walk) dir(d *os.Root, folder string) error {
	entries, err := fs.ReadDir(d.FS(), ".")
	if err != nil {
		return err
	}
	// Keys are sorted as whole strings, so a directory sorts as "name/": after
	// "name-x" and "name.x", which sort after "name".
	keys := make([]string, 0, len(entries))
	for _, e := range entries {
		key := folder + e.Name()
		if !strings.HasPrefix(key, w.prefix) || objstore.ValidateKey(key) != nil {
			continue
		}
		switch {
		case e.IsDir():
			key += "/"
			if key < w.after && !strings.HasPrefix(w.after, key) {
				continue
			}
		case !e.Type().IsRegular() || key <= w.after:
			continue
		}
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		name := strings.TrimPrefix(key, folder)
		if strings.HasSuffix(name, "/") {
			sub, err := d.OpenRoot(strings.TrimSuffix(name, "/"))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := errors.Join(w.dir(sub, key), sub.Close()); err != nil {
				return err
			}
			continue
		}
		if err := w.object(d, name, key); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) object(d *os.Root, name, key string) error {
	info, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted since
	}
	if err != nil {
		return err
	}
	if p := w.b.publicationOf(key); p != nil {
		select {
		case <-p.done:
			if err := p.wait(w.ctx); err != nil {
				return err
			}
		default:
			return nil // not yet durable, so not yet there
		}
	}
	if err := w.fn(objstore.Info{Key: key, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		w.stop = err
		return errStop
	}
	return nil
}

// bodyError is a failure of the caller's body, not of the disk.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// wrap names the object and the kind of err, which may already carry a kind.
func wrap(op, key string, err error) error {
	var own *bodyError
	switch {
	case errors.As(err, &own), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &objstore.Error{Op: op, Key: key, Err: err}
	}
	for _, kind := range []error{
		objstore.ErrNotExist, objstore.ErrExists, objstore.ErrMismatch, objstore.ErrInvalidKey, objstore.ErrRange,
		objstore.ErrReadOnly, objstore.ErrNoSpace, objstore.ErrDenied, objstore.ErrUnavailable,
	} {
		if errors.Is(err, kind) {
			return &objstore.Error{Op: op, Key: key, Err: err}
		}
	}
	return &objstore.Error{Op: op, Key: key, Kind: kindOf(err, op), Err: err}
}

// kindOf finds the sentinel for an error of the operating system.
func kindOf(err error, op string) error {
	writing := op == "put" || op == "delete"
	switch {
	case errors.Is(err, fs.ErrNotExist) && (op == "get" || op == "head"):
		return objstore.ErrNotExist
	case isNoSpace(err):
		return objstore.ErrNoSpace
	case isReadOnly(err), writing && errors.Is(err, fs.ErrPermission):
		return objstore.ErrReadOnly
	case errors.Is(err, fs.ErrPermission):
		return objstore.ErrDenied
	}
	return objstore.ErrUnavailable
}
