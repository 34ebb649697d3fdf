// Package file keeps a bucket in a directory of a local or network file system.
//
// Layout of the directory (version 1, 2026):
//
//	bucket.json   {"format":"holdfast-file-bucket","version":1}; without it the
//	              directory is not a bucket, so that an unmounted disk is an
//	              error and never an empty store
//	objects/KEY   the objects, plain files under their keys
//	tmp/          bodies being received; deleted at Open when an hour old
//
// An object is written to tmp/, checked, synced, and then given its name with a
// hard link, which fails if the name is taken: that link is the whole commit. The
// directory, and every new directory above it, is synced before PutNew
// returns. A crash at any step leaves at most a file in tmp/.
//
// Several processes may share the directory. Within one process an object is
// never visible before it is durable; another process may see it for the
// moment between link and sync, but syncs it itself before Head vouches for it.
// Directories are never removed, because an empty one costs little and removing
// it would race with that sync.
//
// Symbolic links inside the bucket are not followed out of it, and files whose
// names are not keys are ignored. Files are created with mode 0600 and
// directories with 0700.
package file

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/objstore"
)

const (
	markerName = "bucket.json"
	objectsDir = "objects"
	tmpDir     = "tmp"

	markerFormat  = "holdfast-file-bucket"
	markerVersion = 1

	// staleAfter is how long a file in tmp/ must not have been written to
	// before Open takes it for the leftover of a crash.
	staleAfter = time.Hour

	copyBuffer   = 256 << 10
	maxIdleReads = 100 // reads in a row without bytes and without an error
)

// Config says where the bucket is and how it may be used.
type Config struct {
	Dir      string // directory of the bucket
	Create   bool   // make the bucket if Dir is missing, or is empty
	ReadOnly bool   // write nothing at all, not even clean tmp/
}

// Validate checks the configuration.
func (c Config) Validate() error {
	if c.Dir == "" {
		return errors.New("file bucket: no directory is configured")
	}
	if c.Create && c.ReadOnly {
		return errors.New("file bucket: cannot both create a bucket and treat it as read-only")
	}
	return nil
}

// Bucket is a bucket in a directory. It is safe for concurrent use.
type Bucket struct {
	dir      string
	readOnly bool
	root     *os.Root
	hooks    hooks

	settleMu sync.Mutex      // held while directories are made and synced
	settled  map[string]bool // directories whose entries are durable

	mu      sync.Mutex
	pending map[string]*publication // keys between link and sync
	broken  error                   // set when a directory could not be synced
}

// hooks are the places at which tests watch, fail or kill a write. Production
// leaves them nil.
type hooks struct {
	step func(label string) error // at each labelled step of PutNew
	sync func(path string) error  // before a file or directory is synced
}

// publication is one key on its way from linked to durable.
type publication struct {
	done chan struct{} // closed when decided; err is set before
	err  error         // non-nil: the key is visible but may not be durable
}

var (
	_ objstore.Bucket      = (*Bucket)(nil)
	_ objstore.AfterLister = (*Bucket)(nil)
)

// Open opens the bucket of c.Dir, creating it if that is allowed, and deletes
// the leftovers of crashed writers. On a read-only file system it succeeds, and
// PutNew and Delete answer ErrReadOnly. A directory that is not a bucket is
// ErrUnavailable, because its disk may just not be mounted. The context bounds
// only the start.
func Open(ctx context.Context, c Config) (*Bucket, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	fail := func(err error) error {
		var e *objstore.Error
		if errors.As(err, &e) {
			return err
		}
		return &objstore.Error{Op: "open", Key: c.Dir, Kind: kindOf(err, "open"), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return nil, &objstore.Error{Op: "open", Key: c.Dir, Err: err}
	}
	if c.Create {
		if err := makeRoot(c.Dir); err != nil {
			return nil, fail(err)
		}
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return nil, fail(err)
	}
	b := &Bucket{
		dir: c.Dir, readOnly: c.ReadOnly, root: root,
		settled: make(map[string]bool), pending: make(map[string]*publication),
	}
	if err := b.start(ctx, c.Create); err != nil {
		return nil, errors.Join(fail(err), root.Close())
	}
	return b, nil
}

// makeRoot creates dir and makes every directory that it had to create durable.
func makeRoot(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: fs.ErrNotExist}
	}
	if err := makeRoot(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

func (b *Bucket) start(ctx context.Context, create bool) error {
	err := b.readMarker()
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := b.create(ctx); err != nil {
			return err
		}
		err = b.readMarker()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &objstore.Error{Op: "open", Key: b.dir, Kind: objstore.ErrUnavailable,
			Err: fmt.Errorf("it has no %s: mount the disk that holds the bucket, or create a new bucket there", markerName)}
	}
	if err != nil {
		return err
	}
	if b.readOnly {
		return nil
	}
	b.removeStale(ctx)
	return ctx.Err()
}

type marker struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

func (b *Bucket) readMarker() error {
	data, err := b.root.ReadFile(markerName)
	if err != nil {
		return err
	}
	var m marker
	if err := json.Unmarshal(data, &m); err != nil || m.Format != markerFormat {
		return fmt.Errorf("%s is not the marker of a bucket", markerName)
	}
	if m.Version != markerVersion {
		return fmt.Errorf("%s has version %d, this program knows version %d", markerName, m.Version, markerVersion)
	}
	return nil
}

// create makes a bucket of an empty directory. The marker comes last, so a
// crash leaves a directory that create accepts again.
func (b *Bucket) create(ctx context.Context) error {
	top, err := fs.ReadDir(b.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range top {
		switch e.Name() {
		case objectsDir, tmpDir, "lost+found":
		default:
			return fmt.Errorf("the directory is not empty: it holds %q", e.Name())
		}
	}
	for _, dir := range []string{tmpDir, objectsDir} {
		if err := b.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	data, err := json.Marshal(marker{markerFormat, markerVersion})
	if err != nil {
		return err
	}
	temp, err := b.receive(ctx, strings.NewReader(string(data)), int64(len(data)), nil)
	if err != nil {
		return err
	}
	// This link is also the proof that the file system can do what PutNew needs.
	err = b.root.Link(temp, markerName)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	} else if err != nil {
		err = fmt.Errorf("hard link on this file system (ext4, XFS, NTFS or NFS is needed): %w", err)
	}
	return errors.Join(err, b.root.Remove(temp), b.syncDir("."))
}

// removeStale deletes what crashed writers left. It is only housekeeping: what
// cannot be deleted now stays for the next Open.
func (b *Bucket) removeStale(ctx context.Context) {
	names, err := fs.ReadDir(b.root.FS(), tmpDir)
	if err != nil {
		return
	}
	for _, e := range names {
		if ctx.Err() != nil {
			return
		}
		name := path.Join(tmpDir, e.Name())
		info, err := b.root.Lstat(name)
		if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > staleAfter {
			_ = b.root.Remove(name)
		}
	}
}

// Close releases the directory. Bodies that are still open stay readable. Close
// is idempotent.
func (b *Bucket) Close() error { return b.root.Close() }

// PutNew creates an object; see objstore.Bucket. The context is looked at
// between reads of r and before the link; what follows the link takes no
// notice of it. When the directory could not be synced after the link, the
// name is taken back, and every later PutNew fails with ErrUnavailable until
// the bucket is opened again, because the kernel may have dropped the write.
func (b *Bucket) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	if err := objstore.ValidateKey(key); err != nil {
		return &objstore.Error{Op: "put", Key: key, Err: err}
	}
	if err := b.putNew(ctx, key, r, size, sum); err != nil {
		return wrap("put", key, err)
	}
	return nil
}

func (b *Bucket) putNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	if size < 0 {
		return fmt.Errorf("%w: announced size is %d", objstore.ErrMismatch, size)
	}
	if err := b.writable(ctx); err != nil {
		return err
	}
	// Asking first saves the body's way to the disk; the link decides.
	switch info, err := b.lstat(ctx, key); {
	case err == nil && info.IsDir():
		return fmt.Errorf("%w: other keys use it as a folder", objstore.ErrInvalidKey)
	case err == nil:
		return b.taken(key)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	temp, err := b.receive(ctx, r, size, sum)
	if err != nil {
		return err
	}
	err = b.publish(ctx, temp, key)
	// The object has its name, or never gets it: the temporary name goes. If
	// this fails, Open removes it later.
	_ = b.root.Remove(temp)
	if err != nil {
		return err
	}
	return b.step("done")
}

func (b *Bucket) writable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.readOnly {
		return fmt.Errorf("%w: the bucket was opened read-only", objstore.ErrReadOnly)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return fmt.Errorf("%w: an earlier write could not be made durable, check the disk and open the bucket again: %w",
			objstore.ErrUnavailable, b.broken)
	}
	return nil
}

// taken makes the object durable that has the key already: the caller may well
// be the retry of the writer that was killed after its link.
func (b *Bucket) taken(key string) error {
	if err := b.syncDir(path.Dir(objectPath(key))); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return objstore.ErrExists
}

// receive writes a body to a new file in tmp/, checks and syncs it, and returns
// its name. On failure the file is gone.
func (b *Bucket) receive(ctx context.Context, r io.Reader, size int64, sum *[32]byte) (_ string, err error) {
	temp := path.Join(tmpDir, strings.ToLower(rand.Text()))
	f, err := b.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", b.aliveOr(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = b.root.Remove(temp)
		}
	}()
	if err := b.step("created"); err != nil {
		return "", err
	}
	if err := b.copyBody(ctx, f, r, size, sum); err != nil {
		return "", err
	}
	if err := b.step("written"); err != nil {
		return "", err
	}
	if err := b.syncHook(temp); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return temp, b.step("synced")
}

// copyBody copies exactly size bytes of r to f.
func (b *Bucket) copyBody(ctx context.Context, f *os.File, r io.Reader, size int64, sum *[32]byte) error {
	h := sha256.New()
	buf := make([]byte, min(copyBuffer, max(size, 1)))
	var n int64
	for idle := 0; idle < maxIdleReads; idle++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		// At the announced end one more byte is asked for, to see the end.
		want := min(int64(len(buf)), max(size-n, 1))
		got, err := r.Read(buf[:want])
		if got > 0 {
			if n+int64(got) > size {
				return fmt.Errorf("%w: body has more than the announced %d bytes", objstore.ErrMismatch, size)
			}
			if _, err := f.Write(buf[:got]); err != nil {
				return err
			}
			if sum != nil {
				h.Write(buf[:got])
			}
			n += int64(got)
			idle = 0
			if err := b.step("writing"); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			if n != size {
				return fmt.Errorf("%w: body has %d bytes, announced were %d", objstore.ErrMismatch, n, size)
			}
			if got := [32]byte(h.Sum(nil)); sum != nil && got != *sum {
				return fmt.Errorf("%w: body has SHA-256 %x, announced was %x", objstore.ErrMismatch, got, *sum)
			}
			return nil
		}
		if err != nil {
			return &bodyError{err}
		}
	}
	return &bodyError{io.ErrNoProgress}
}

// publish gives the temporary file its name and makes that durable.
func (b *Bucket) publish(ctx context.Context, temp, key string) error {
	p := &publication{done: make(chan struct{})}
	if err := b.register(ctx, key, p); err != nil {
		return err
	}
	defer b.unregister(key, p)

	name := objectPath(key)
	dir := path.Dir(name)
	if err := b.link(temp, name); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		info, statErr := b.root.Lstat(name)
		if statErr != nil {
			return statErr
		}
		if info.IsDir() {
			return fmt.Errorf("%w: other keys use it as a folder", objstore.ErrInvalidKey)
		}
		// Over NFS a repeated request can report the success of the first one
		// as "exists": if it is our file, we won.
		own, statErr := b.root.Lstat(temp)
		if statErr != nil || !os.SameFile(own, info) {
			return b.taken(key)
		}
	}
	err := b.step("linked")
	if err == nil {
		err = b.syncDir(dir)
	}
	if err == nil {
		return nil
	}
	undo := b.root.Remove(name)
	b.mu.Lock()
	b.broken = err
	if undo != nil {
		p.err = err
	}
	b.mu.Unlock()
	return fmt.Errorf("%w: sync directory after the link: %w", objstore.ErrUnavailable, errors.Join(err, undo))
}

// link links temp to name, creating the directories above name.
func (b *Bucket) link(temp, name string) error {
	dir := path.Dir(name)
	var err error
	// A directory can vanish only by an operator's hand; then what is known
	// about it is forgotten and it is made once more.
	for range 2 {
		if err = b.settle(dir, true); err == nil {
			if err = b.step("settled"); err != nil {
				return err
			}
			err = b.root.Link(temp, name)
		}
		if err != nil && isNotDir(err) {
			return fmt.Errorf("%w: a leading part of it is an object: %w", objstore.ErrInvalidKey, err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		b.settleMu.Lock()
		clear(b.settled)
		b.settleMu.Unlock()
	}
	return b.aliveOr(fmt.Errorf("%w: link: %w", objstore.ErrUnavailable, err))
}

// settle makes dir and its entries durable: those that this process creates,
// and those that a killed process may have left unsynced. Later calls for the
// same directory are free.
func (b *Bucket) settle(dir string, create bool) error {
	b.settleMu.Lock()
	defer b.settleMu.Unlock()
	return b.settleLocked(dir, create)
}

func (b *Bucket) settleLocked(dir string, create bool) error {
	if b.settled[dir] {
		return nil
	}
	if dir != "." {
		parent := path.Dir(dir)
		if err := b.settleLocked(parent, create); err != nil {
			return err
		}
		if create {
			if err := b.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return b.aliveOr(err)
			}
		}
		// Even if dir was there: another process may have made it a moment ago.
		if err := b.syncDir(parent); err != nil {
			return err
		}
	}
	if err := b.syncDir(dir); err != nil {
		return err
	}
	b.settled[dir] = true
	return nil
}

func (b *Bucket) syncDir(dir string) error {
	if err := b.syncHook(dir); err != nil {
		return err
	}
	f, err := b.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

// register makes p the one publication of key, waiting for an earlier one.
func (b *Bucket) register(ctx context.Context, key string, p *publication) error {
	for {
		b.mu.Lock()
		other := b.pending[key]
		if other == nil {
			b.pending[key] = p
			b.mu.Unlock()
			return nil
		}
		b.mu.Unlock()
		if err := other.wait(ctx); err != nil {
			return err
		}
	}
}

func (b *Bucket) unregister(key string, p *publication) {
	b.mu.Lock()
	if p.err == nil {
		delete(b.pending, key)
	}
	b.mu.Unlock()
	close(p.done)
}

func (b *Bucket) publicationOf(key string) *publication {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pending[key]
}

func (p *publication) wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.err != nil {
		return fmt.Errorf("%w: the object may not be durable: %w", objstore.ErrUnavailable, p.err)
	}
	return nil
}

// Delete removes an object durably; see objstore.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := objstore.ValidateKey(key); err != nil {
		return &objstore.Error{Op: "delete", Key: key, Err: err}
	}
	if err := b.remove(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrap("delete", key, err)
	}
	return nil
}

func (b *Bucket) remove(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.readOnly {
		return fmt.Errorf("%w: the bucket was opened read-only", objstore.ErrReadOnly)
	}
	info, err := b.lstat(ctx, key)
	if err != nil || info.IsDir() {
		return err
	}
	if err := b.root.Remove(objectPath(key)); err != nil {
		return err
	}
	return b.syncDir(path.Dir(objectPath(key)))
}

func (b *Bucket) step(label string) error {
	if b.hooks.step == nil {
		return nil
	}
	return b.hooks.step(label)
}

func (b *Bucket) syncHook(name string) error {
	if b.hooks.sync == nil {
		return nil
	}
	return b.hooks.sync(name)
}

// objectPath is the place of key below the root. A key that is a device name or
// leaves the root cannot pass ValidateKey.
func objectPath(key string) string { return objectsDir + "/" + key }
