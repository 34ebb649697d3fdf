// Package vhdxfiles is hyperv.Disks in pure Go: VHDX files in a directory that
// stands for the drives of a host, C:\x\y being root/C/x/y. The simulator has
// such directories, and so has whoever mounted a host's share.
//
// It promises that what was read of a disk opened for reading did not change
// since it was opened: whoever writes a VHDX file gives it a new FileWriteGuid first
// ([MS-VHDX] 2.2.2), and a read that finds another one fails. It knows nothing of
// resilient change tracking; the host's management service is asked for changes.
package vhdxfiles

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/vhdx"
)

// Config of Disks.
type Config struct {
	Root   string // absolute directory whose entries are the drive letters
	NoSync bool   // leave out what makes writes durable: for tests
}

// Disks are the disk files below a directory.
type Disks struct{ cfg Config }

var (
	_ hyperv.Disks      = (*Disks)(nil)
	_ hyperv.Files      = (*Disks)(nil)
	_ hyperv.SerialLogs = (*Disks)(nil)
)

// New returns the disks below a directory.
func New(cfg Config) *Disks { return &Disks{cfg} }

// Local returns the file behind a host path.
func (d *Disks) Local(hostPath string) (string, error) {
	p := strings.ReplaceAll(hostPath, "/", `\`)
	if len(p) < 3 || p[1] != ':' || p[2] != '\\' || !letter(p[0]) {
		return "", fmt.Errorf("%q is not a path with a drive letter: %w", hostPath, fs.ErrInvalid)
	}
	parts := []string{d.cfg.Root, strings.ToUpper(p[:1])}
	for s := range strings.SplitSeq(p[3:], `\`) {
		switch {
		case s == "" || s == ".":
			continue
		case s == ".." || strings.ContainsAny(s, ":\x00"):
			return "", fmt.Errorf("%q leaves its drive: %w", hostPath, fs.ErrInvalid)
		}
		parts = append(parts, s)
	}
	return filepath.Join(parts...), nil
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// HostPath is the inverse of Local.
func (d *Disks) HostPath(local string) (string, error) {
	rel, err := filepath.Rel(d.cfg.Root, local)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", fmt.Errorf("%s is not below the host's drives in %s: %w", local, d.cfg.Root, fs.ErrInvalid)
	}
	drive, rest, _ := strings.Cut(filepath.ToSlash(rel), "/")
	if len(drive) != 1 || !letter(drive[0]) {
		return "", fmt.Errorf("%s is not on a drive below %s: %w", local, d.cfg.Root, fs.ErrInvalid)
	}
	return strings.ToUpper(drive) + `:\` + strings.ReplaceAll(rest, "/", `\`), nil
}

// Open opens a chain.
func (d *Disks) Open(ctx context.Context, hostPath string, write bool) (hyperv.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	local, err := d.Local(hostPath)
	if err != nil {
		return nil, err
	}
	c, err := vhdx.OpenChain(local, vhdx.ChainOptions{Write: write, NoSync: d.cfg.NoSync, Resolve: d.resolve})
	if err != nil {
		return nil, mapped(err, hostPath)
	}
	o, err := newDisk(c, hostPath, write)
	if err != nil {
		return nil, errors.Join(mapped(err, hostPath), c.Close())
	}
	return o, nil
}

// resolve finds a parent: beside its child, or by the host's path.
func (d *Disks) resolve(child string, l vhdx.Locator) (string, error) {
	if l.Relative != "" {
		p := filepath.Join(filepath.Dir(child), filepath.FromSlash(strings.ReplaceAll(l.Relative, `\`, "/")))
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	if l.Absolute != "" {
		p, err := d.Local(strings.TrimPrefix(l.Absolute, `\\?\`))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", vhdx.ErrParentNotFound
}

// Create makes a VHDX file.
func (d *Disks) Create(ctx context.Context, hostPath string, spec hyperv.CreateDisk) (hyperv.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	local, err := d.Local(hostPath)
	if err != nil {
		return nil, err
	}
	var id vhdx.GUID
	if spec.ID != "" {
		if id, err = vhdx.ParseGUID(spec.ID); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(local), 0o750); err != nil {
		return nil, err
	}
	f, err := vhdx.Create(local, vhdx.CreateSpec{Size: spec.Size, LogicalSector: int(spec.LogicalSector), PhysicalSector: int(spec.PhysicalSector), ID: id, Fixed: spec.Fixed, NoSync: d.cfg.NoSync})
	if err != nil {
		return nil, mapped(err, hostPath)
	}
	if err := f.Close(); err != nil {
		return nil, errors.Join(mapped(err, hostPath), os.Remove(local))
	}
	o, err := d.Open(ctx, hostPath, true)
	if err != nil {
		return nil, errors.Join(err, os.Remove(local))
	}
	return o, nil
}

// Remove deletes a file and what tracks its changes.
func (d *Disks) Remove(ctx context.Context, hostPath string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	local, err := d.Local(hostPath)
	if err != nil {
		return err
	}
	for _, p := range []string{local, local + ".rct", local + ".mrt"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ReadFile reads a small file.
func (d *Disks) ReadFile(ctx context.Context, hostPath string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	local, err := d.Local(hostPath)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(local)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", hostPath, limit)
	}
	return b, err
}

// SerialLog reads what a simulator's guest wrote to its serial port: the file
// run/<first 8 digits of the VM's id>/serial.log beside its hosts' directories.
func (d *Disks) SerialLog(ctx context.Context, vmID string, limit int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	const digits = 8
	if len(vmID) < digits || strings.Trim(vmID, "0123456789abcdefABCDEF-") != "" {
		return nil, fmt.Errorf("serial log of VM %q: %w", vmID, fs.ErrNotExist)
	}
	f, err := os.Open(filepath.Join(filepath.Dir(d.cfg.Root), "run", strings.ToLower(vmID[:digits]), "serial.log"))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	var b []byte
	if err == nil {
		n := min(st.Size(), int64(limit))
		b = make([]byte, n)
		_, err = io.ReadFull(io.NewSectionReader(f, st.Size()-n, n), b)
	}
	return b, errors.Join(err, f.Close())
}

// mapped wraps an error of the engine with what the port calls it.
func mapped(err error, hostPath string) error {
	is := func(list ...error) bool {
		for _, x := range list {
			if errors.Is(err, x) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return nil
	case is(vhdx.ErrInUse):
		return fmt.Errorf("%s: %w: %w", hostPath, hyperv.ErrInUse, err)
	case is(vhdx.ErrDamaged, vhdx.ErrNotVHDX, vhdx.ErrParentMismatch, vhdx.ErrParentNotFound):
		return fmt.Errorf("%s: %w: %w", hostPath, hyperv.ErrDamaged, err)
	case is(vhdx.ErrUnsupported):
		return fmt.Errorf("%s: %w: %w", hostPath, hyperv.ErrUnsupported, err)
	}
	return fmt.Errorf("%s: %w", hostPath, err)
}

// disk is an open chain.
type disk struct {
	c     *vhdx.Chain
	path  string
	info  hyperv.DiskInfo
	guard []guard // of all files, if it was opened for reading

	once sync.Once
	err  error
}

// guard notices that a file is written by somebody.
type guard struct {
	f    *os.File
	guid [16]byte
}

func newDisk(c *vhdx.Chain, path string, write bool) (*disk, error) {
	files, err := c.Files()
	if err != nil {
		return nil, err
	}
	top := files[0]
	d := &disk{c: c, path: path, info: hyperv.DiskInfo{Size: top.Size, ID: top.ID.String(), LogicalSector: int64(top.LogicalSector), PhysicalSector: int64(top.PhysicalSector)}}
	if write {
		return d, nil
	}
	for _, f := range files {
		h, err := os.Open(f.Path)
		if err != nil {
			return nil, errors.Join(err, d.closeGuards())
		}
		d.guard = append(d.guard, guard{h, f.FileWrite})
	}
	return d, d.check()
}

func (d *disk) closeGuards() error {
	var err error
	for _, g := range d.guard {
		err = errors.Join(err, g.f.Close())
	}
	return err
}

// The two headers of a file and their fields ([MS-VHDX] 2.2.2).
const (
	header1, header2 = 64 << 10, 128 << 10
	headerPart       = 32 // signature, checksum, SequenceNumber u64 at 8, FileWriteGuid at 16
)

// check fails if a file was opened for writing since. Of the two headers the one with the higher sequence number counts.
func (d *disk) check() error {
	for _, g := range d.guard {
		var best uint64
		var guid [16]byte
		for _, at := range []int64{header1, header2} {
			var b [headerPart]byte
			if _, err := g.f.ReadAt(b[:], at); err != nil {
				return fmt.Errorf("%s: %w", d.path, err)
			}
			if n := binary.LittleEndian.Uint64(b[8:]); string(b[:4]) == "head" && n >= best {
				best, guid = n, [16]byte(b[16:])
			}
		}
		if guid != g.guid {
			return fmt.Errorf("%s: %w: it is written by somebody since it was opened", d.path, hyperv.ErrInUse)
		}
	}
	return nil
}

func (d *disk) Info() hyperv.DiskInfo { return d.info }

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := d.c.ReadAt(p, off); err != nil {
		return mapped(err, d.path)
	}
	return d.check()
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := d.c.WriteAt(p, off)
	return mapped(err, d.path)
}

func (d *disk) Extents(ctx context.Context, off, n int64, fn func(off, n int64, zero bool) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	type extent struct {
		off, n int64
		zero   bool
	}
	var list []extent // fn is called once it is certain that they are right
	if err := d.c.Extents(off, n, func(off, n int64, zero bool) error {
		list = append(list, extent{off, n, zero})
		return ctx.Err()
	}); err != nil {
		return mapped(err, d.path)
	}
	if err := d.check(); err != nil {
		return err
	}
	for _, e := range list {
		if err := fn(e.off, e.n, e.zero); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return mapped(d.c.Flush(), d.path)
}

func (d *disk) Close() error {
	d.once.Do(func() { d.err = errors.Join(mapped(d.c.Close(), d.path), d.closeGuards()) })
	return d.err
}
