package virtdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/windows"

	"holdfast/internal/hypervisor/hyperv"
)

// Disks satisfies hyperv.Disks and hyperv.Files on the host itself.
type Disks struct {
	cfg        Config
	lib        library
	privileges sync.Once
	background sync.WaitGroup // calls that can't be cut short

	mu     sync.Mutex
	closed bool
}

var (
	_ hyperv.Disks = (*Disks)(nil)
	_ hyperv.Files = (*Disks)(nil)
)

// New returns the data plane of this host. It does nothing yet; a host whose virtdisk.dll lacks a function says so at its first use.
func New(cfg Config) (*Disks, error) {
	return &Disks{cfg: cfg.withDefaults(), lib: newLibrary()}, nil
}

// Close waits until calls that outlived their contexts have ended, at most Config.CloseTimeout. Open disks are not
// touched; nothing can be opened any more. Idempotent.
func (d *Disks) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	done := make(chan struct{})
	go func() { d.background.Wait(); close(done) }() // ends with the last call
	select {
	case <-done:
		return nil
	case <-time.After(d.cfg.CloseTimeout):
		return fmt.Errorf("virtdisk: calls into virtdisk.dll still hang %v after the end was asked for", d.cfg.CloseTimeout)
	}
}

// start counts a call, unless the end has been asked for.
func (d *Disks) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("virtdisk: closed")
	}
	d.background.Add(1)
	return nil
}

// inTime runs a call that can't be cut short and returns by ctx at the latest. What a
// late call made is handed to undo, which may be nil.
func inTime[T any](ctx context.Context, d *Disks, what, path string, call func() (T, error), undo func(T)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("%s %s: %w", what, path, context.Cause(ctx))
	}
	if err := d.start(); err != nil {
		return none, err
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	var mu sync.Mutex
	abandoned := false
	go func() {
		defer d.background.Done()
		v, err := call()
		mu.Lock()
		defer mu.Unlock()
		if abandoned {
			if err == nil && undo != nil {
				undo(v)
			}
			return
		}
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case r := <-done: // came with the deadline
		return r.v, r.err
	default:
	}
	abandoned = true
	return none, fmt.Errorf("%s %s: no answer in time: %w", what, path, context.Cause(ctx))
}

// Open opens and attaches a disk.
func (d *Disks) Open(ctx context.Context, hostPath string, write bool) (hyperv.Disk, error) {
	if err := absolute(hostPath); err != nil {
		return nil, err
	}
	d.enable()
	k, err := inTime(ctx, d, "open", hostPath, func() (*disk, error) { return d.open(hostPath, write) },
		func(k *disk) { _ = k.Close() }) // nobody is there to be told
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Create makes a VHDX and opens it for writing.
func (d *Disks) Create(ctx context.Context, hostPath string, spec hyperv.CreateDisk) (hyperv.Disk, error) {
	if err := absolute(hostPath); err != nil {
		return nil, err
	}
	if spec.LogicalSector == 0 {
		spec.LogicalSector = 512
	}
	if spec.PhysicalSector == 0 {
		spec.PhysicalSector = 4096
	}
	if err := checkSpec(hostPath, spec); err != nil {
		return nil, err
	}
	var id guid
	if spec.ID != "" {
		var err error
		if id, err = parseGUID(spec.ID); err != nil {
			return nil, err
		}
	}
	d.enable()
	k, err := inTime(ctx, d, "create", hostPath, func() (*disk, error) { return d.create(hostPath, spec, id) },
		func(k *disk) {
			_ = k.Close()
			_ = os.Remove(hostPath)
		})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// create makes the file, opens it and gives it its id. After a failure the file is gone, unless it was there before.
func (d *Disks) create(path string, spec hyperv.CreateDisk, id guid) (k *disk, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, &Error{Op: "CreateVirtualDisk", Path: path, Code: errFileExists, System: windows.ERROR_FILE_EXISTS}
	}
	h, err := d.lib.create(path, spec, id)
	if err != nil {
		return nil, err // the system removes what it began
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if id != (guid{}) {
		// The id given at creation is documented as the object's, not as the VHDX's: see to it.
		if info, err := d.lib.info(h, path); err != nil || info.ID != id.String() {
			if err := d.lib.setID(h, path, id); err != nil {
				return nil, errors.Join(err, windows.CloseHandle(h))
			}
		}
	}
	if err := failed("CloseHandle", path, windows.CloseHandle(h)); err != nil {
		return nil, err
	}
	if k, err = d.open(path, true); err != nil {
		return nil, err
	}
	if k.info.Size != spec.Size || k.info.LogicalSector != spec.LogicalSector || id != (guid{}) && k.info.ID != id.String() {
		err := fmt.Errorf("virtdisk: %s was made with %d bytes, sectors of %d and id %s, not as asked for (%d, %d, %s)", path, k.info.Size,
			k.info.LogicalSector, k.info.ID, spec.Size, spec.LogicalSector, spec.ID)
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Remove deletes a disk file and its tracking files. The disk file goes last, so that a call after a crash finds the rest.
func (d *Disks) Remove(ctx context.Context, hostPath string) error {
	if err := absolute(hostPath); err != nil {
		return err
	}
	_, err := inTime(ctx, d, "remove", hostPath, func() (struct{}, error) {
		var errs []error
		for _, suffix := range []string{".rct", ".mrt", ""} {
			err := failed("DeleteFile", hostPath+suffix, removeFile(hostPath+suffix))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return struct{}{}, errors.Join(errs...)
	}, nil)
	return err
}

func removeFile(path string) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	return windows.DeleteFile(name)
}

// HostPath makes a path absolute: the agent runs on the host.
func (d *Disks) HostPath(local string) (string, error) { return filepath.Abs(local) }

// ReadFile reads a small file of the host.
func (d *Disks) ReadFile(ctx context.Context, hostPath string, max int64) ([]byte, error) {
	if err := absolute(hostPath); err != nil {
		return nil, err
	}
	return inTime(ctx, d, "read", hostPath, func() ([]byte, error) { return readFile(hostPath, max) }, nil)
}

// enable enables the privilege once. A failure shows at AttachVirtualDisk, with a hint.
func (d *Disks) enable() {
	d.privileges.Do(func() { _ = enablePrivilege("SeManageVolumePrivilege") })
}

// open opens a disk, asks for its facts and attaches it.
func (d *Disks) open(path string, write bool) (*disk, error) {
	h, err := d.lib.open(path, write)
	if err != nil {
		return nil, err
	}
	k := &disk{disks: d, path: path, write: write, handle: h, io: h, closed: make(chan struct{})}
	if k.info, err = d.lib.info(h, path); err == nil {
		err = k.attach()
	}
	if err == nil {
		err = k.makeSlots(d.cfg.Parallel)
	}
	if err != nil {
		return nil, errors.Join(err, k.release())
	}
	return k, nil
}

// absolute refuses paths that don't begin with a drive or a share: they would depend on the process's directory.
func absolute(path string) error {
	if !filepath.IsAbs(path) && !strings.HasPrefix(path, `\\`) {
		return &Error{Op: "open", Path: path, Code: errBadPathname, System: windows.ERROR_BAD_PATHNAME, Hint: "a path of the host begins with its drive or share"}
	}
	return nil
}
