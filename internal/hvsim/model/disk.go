package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/extent"
	"holdfast/internal/hvsim/rct"
	"holdfast/internal/nbd"
	"holdfast/internal/vhdx"
)

// DiskKind is what a disk's file is.
type DiskKind string

// The kinds of disks. Only VHDX disks that are not shared can be frozen and tracked.
const (
	Dynamic     DiskKind = "dynamic"
	Fixed       DiskKind = "fixed"
	Child       DiskKind = "differencing" // on a parent that the VM's checkpoints did not make
	VHD         DiskKind = "vhd"          // the older format, fixed
	PassThrough DiskKind = "passthrough"
	Shared      DiskKind = "shared" // VHD Set
)

// DiskState is a disk in a VM's state.
type DiskState struct {
	ID         string // VirtualDiskId in upper case; of disks without one the simulator's own
	Kind       DiskKind
	Controller string
	Slot       int
	Size       int64
	Base       string // the disk's original file
	Leaf       string // the file that the VM writes: Base or one above it
	Files      []File // above Base, and Base, in the order of their making
	DataGUID   string // DataWriteGuid of Leaf when the VM last closed it; "" = not known
	Log        string // replica log that is being written
	Newer      bool   // changes are missing in the tracking (after a crash)
}

// File is a file of a disk's tree.
type File struct {
	Path, Parent string
	Frozen       uint64 // point at which the file ceased to be written, 0 = it is the leaf
}

// Snapshotable reports whether checkpoints can hold the disk.
func (d *DiskState) Snapshotable() bool {
	return d.Kind == Dynamic || d.Kind == Fixed || d.Kind == Child
}

func (d *DiskState) file(path string) *File {
	for i := range d.Files {
		if strings.EqualFold(d.Files[i].Path, path) {
			return &d.Files[i]
		}
	}
	return nil
}

func (d *DiskState) children(path string) (n int) {
	for _, f := range d.Files {
		if f.Parent != "" && strings.EqualFold(f.Parent, path) {
			n++
		}
	}
	return n
}

// Disk finds a disk of a state by its id, nil if there is none.
func (st *State) Disk(id string) *DiskState {
	for i := range st.Disks {
		if strings.EqualFold(st.Disks[i].ID, id) {
			return &st.Disks[i]
		}
	}
	return nil
}

// Disk is a disk of a VM. Its methods are the guest's own doings unless they say
// otherwise. Safe for concurrent use.
type Disk struct {
	vm *VM
	ID string
	// under vm.io
	vol volume
	trk *rct.Tracker
	log *logWriter
}

// volume is an open disk.
type volume interface {
	io.ReaderAt
	io.WriterAt
	Zero(off, n int64) error
	Flush() error
	Close() error
}

// Disk finds a disk by its id, nil if there is none.
func (vm *VM) Disk(id string) *Disk {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	for _, d := range vm.disks {
		if strings.EqualFold(d.ID, id) {
			return d
		}
	}
	return nil
}

// all returns the VM's disks.
func (vm *VM) all() []*Disk {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	return slices.Clone(vm.disks)
}

// State returns the disk's state; the zero state if it was removed.
func (d *Disk) State() DiskState {
	st := d.vm.State()
	if s := st.Disk(d.ID); s != nil {
		return *s
	}
	return DiskState{}
}

// running finds out whether the guest can do I/O.
func (d *Disk) ready() error {
	d.vm.site.mu.RLock()
	p, name := d.vm.st.Power, d.vm.st.Name
	d.vm.site.mu.RUnlock()
	if p != On || d.vol == nil {
		return fmt.Errorf("VM %s is %s: its guest does not write to disk %s: %w", name, p, d.ID, ErrState)
	}
	return nil
}

// Write is a write of the guest.
func (d *Disk) Write(off int64, p []byte) error {
	d.vm.io.RLock()
	defer d.vm.io.RUnlock()
	return d.put(off, int64(len(p)), p)
}

// Trim is a guest's unmap, or a write of zeroes: the range reads as zeroes afterwards.
func (d *Disk) Trim(off, n int64) error {
	d.vm.io.RLock()
	defer d.vm.io.RUnlock()
	return d.put(off, n, nil)
}

// put tracks a change and makes it. p is nil for zeroes.
func (d *Disk) put(off, n int64, p []byte) error {
	if err := d.ready(); err != nil {
		return err
	}
	return d.store(off, n, p)
}

func (d *Disk) store(off, n int64, p []byte) error {
	if n == 0 {
		return nil
	}
	if size := d.State().Size; off < 0 || n < 0 || off+n > size {
		return fmt.Errorf("disk %s has %d bytes: range %d+%d: %w", d.ID, size, off, n, ErrInvalid)
	}
	if err := d.trk.Mark(off, n); err != nil {
		return err
	}
	if d.log != nil {
		if err := d.log.append(off, n, p); err != nil {
			return err
		}
	}
	if p == nil {
		return d.vol.Zero(off, n)
	}
	_, err := d.vol.WriteAt(p, off)
	return err
}

// Read reads what the guest would read.
func (d *Disk) Read(off int64, p []byte) error {
	d.vm.io.RLock()
	defer d.vm.io.RUnlock()
	if d.vol == nil {
		return fmt.Errorf("disk %s is not open: %w", d.ID, ErrState)
	}
	_, err := d.vol.ReadAt(p, off)
	return err
}

// Flush makes the guest's writes durable.
func (d *Disk) Flush() error {
	d.vm.io.RLock()
	defer d.vm.io.RUnlock()
	if d.vol == nil {
		return nil
	}
	return d.vol.Flush()
}

// Content returns all bytes of the disk, whether the VM runs or not.
func (d *Disk) Content() ([]byte, error) {
	d.vm.op.Lock()
	defer d.vm.op.Unlock()
	d.vm.io.Lock()
	defer d.vm.io.Unlock()
	p := make([]byte, d.State().Size)
	if d.vol != nil {
		_, err := d.vol.ReadAt(p, 0)
		return p, err
	}
	v, err := d.openVolume(false)
	if err != nil {
		return nil, err
	}
	_, err = v.ReadAt(p, 0)
	return p, errors.Join(err, v.Close())
}

// Tracking describes the disk's change tracking as QueryChangesVirtualDisk's caller sees it: whether changes are
// missing, and the newest id.
func (d *Disk) Tracking() (newer bool, latest string) {
	st := d.State()
	if d.trk == nil {
		return st.Newer, ""
	}
	return st.Newer, d.trk.Latest()
}

// LoseRCT makes the disk's tracking forget everything, as a lost .rct file does.
func (d *Disk) LoseRCT() error { return d.trk.Lose() }

// EditOffline changes the file of a VM that is off, behind the host's back.
func (d *Disk) EditOffline(off int64, p []byte) error {
	d.vm.op.Lock()
	defer d.vm.op.Unlock()
	d.vm.io.Lock()
	defer d.vm.io.Unlock()
	if d.vol != nil {
		return fmt.Errorf("disk %s is open: %w", d.ID, ErrState)
	}
	v, err := d.openVolume(true)
	if err != nil {
		return err
	}
	_, err = v.WriteAt(p, off)
	return errors.Join(err, v.Flush(), v.Close())
}

// Writer is a deterministic workload: each Step makes some random writes and discards on all disks of a VM.
type Writer struct {
	vm  *VM
	rng *rand.Rand
}

// Workload returns a workload; the same seed writes the same.
func (vm *VM) Workload(seed uint64) *Writer {
	return &Writer{vm: vm, rng: rand.New(rand.NewPCG(seed, 7))}
}

// Step makes n changes per disk.
func (w *Writer) Step(n int) error {
	for _, d := range w.vm.all() {
		size := d.State().Size
		for range n {
			l := min(int64(512*(1+w.rng.IntN(64))), size)
			off := w.rng.Int64N((size-l)/512+1) * 512
			if w.rng.IntN(8) == 0 {
				if err := d.Trim(off, l); err != nil {
					return err
				}
				continue
			}
			p := make([]byte, l)
			for i := range p {
				p[i] = byte(w.rng.Uint32())
			}
			if err := d.Write(off, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Opening and closing; callers hold vm.io.

func (vm *VM) openDisks() error {
	for _, d := range vm.all() {
		if err := d.open(); err != nil {
			return errors.Join(err, vm.closeDisks())
		}
	}
	return nil
}

func (vm *VM) closeDisks() error {
	var errs []error
	for _, d := range vm.all() {
		errs = append(errs, d.close())
	}
	return errors.Join(errs...)
}

func (d *Disk) open() error {
	if d.vol != nil {
		return nil
	}
	if err := d.checkIdle(); err != nil {
		return err
	}
	v, err := d.openVolume(true)
	if err != nil {
		return err
	}
	d.vol = v
	return nil
}

func (d *Disk) close() error {
	if d.vol == nil {
		return d.saveTracker()
	}
	err := errors.Join(d.vol.Flush(), d.vol.Close())
	d.vol = nil
	return errors.Join(err, d.saveTracker(), d.noteGUID())
}

// noteGUID remembers what the leaf's DataWriteGuid is, so that a change behind our back shows.
func (d *Disk) noteGUID() error {
	guid, err := d.leafGUID()
	if err != nil {
		return err
	}
	return d.edit(func(ds *DiskState) { ds.DataGUID = guid })
}

// edit changes the disk's state.
func (d *Disk) edit(fn func(*DiskState)) error {
	return d.vm.change(func(st *State) error {
		ds := st.Disk(d.ID)
		if ds == nil {
			return fmt.Errorf("disk %s: %w", d.ID, ErrNotFound)
		}
		fn(ds)
		return nil
	})
}

func (d *Disk) leafGUID() (string, error) {
	ds := d.State()
	if !ds.Snapshotable() {
		return "", nil
	}
	path, err := d.vm.Host().Local(ds.Leaf)
	if err != nil {
		return "", err
	}
	f, err := vhdx.Open(path, vhdx.OpenOptions{})
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", d.ID, err)
	}
	in, err := f.Info()
	return in.DataWrite.String(), errors.Join(err, f.Close())
}

// checkIdle makes tracking forget what it can't know: the file was changed while the VM did not have it open.
func (d *Disk) checkIdle() error {
	ds := d.State()
	if !ds.Snapshotable() || ds.DataGUID == "" || d.vol != nil {
		return nil
	}
	guid, err := d.leafGUID()
	if err != nil || guid == ds.DataGUID {
		return err
	}
	return errors.Join(d.trk.Lose(), d.edit(func(ds *DiskState) { ds.DataGUID = guid }))
}

// crash is what the end of the host does to the tracking.
func (d *Disk) crash() error {
	switch d.vm.site.cfg.CrashRCT {
	case CrashKeepsRCT:
		return nil
	case CrashNewer:
		return errors.Join(d.abandonLog(), d.edit(func(ds *DiskState) { ds.Newer = true }))
	}
	return errors.Join(d.abandonLog(), d.trk.Lose())
}

// renew begins tracking anew if changes are missing in it: what was remembered before is of no use.
func (d *Disk) renew() error {
	if ds := d.State(); !ds.Newer {
		return nil
	}
	return errors.Join(d.trk.Lose(), d.edit(func(ds *DiskState) { ds.Newer = false }))
}

func (d *Disk) trackerPath() (string, error) {
	ds := d.State()
	path, err := d.vm.Host().Local(ds.Base)
	if err != nil || !ds.Snapshotable() {
		return "", err
	}
	return path + ".rct", nil
}

func (d *Disk) loadTracker() error {
	path, err := d.trackerPath()
	if err != nil {
		return err
	}
	if path == "" {
		d.trk = rct.New("", d.State().Size, d.vm.site.cfg.Granularity)
		return nil
	}
	d.trk, err = rct.Load(path, d.State().Size, d.vm.site.cfg.Granularity)
	return err
}

func (d *Disk) saveTracker() error {
	if d.trk == nil {
		return nil
	}
	return d.trk.Save()
}

func (d *Disk) removeTracker() error {
	if d.trk == nil {
		return nil
	}
	return d.trk.Remove()
}

// openVolume opens the disk's present chain.
func (d *Disk) openVolume(write bool) (volume, error) {
	ds := d.State()
	h := d.vm.Host()
	path, err := h.Local(ds.Leaf)
	if err != nil {
		return nil, err
	}
	if !ds.Snapshotable() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.ID, err)
		}
		return &flat{File: f, size: ds.Size}, nil
	}
	c, err := vhdx.OpenChain(path, vhdx.ChainOptions{Write: write, NoSync: true, Resolve: h.resolve})
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.ID, err)
	}
	return c, nil
}

// resolve finds the parent of a differencing file: beside it, or by its absolute path on the host.
func (h *Host) resolve(child string, l vhdx.Locator) (string, error) {
	if l.Relative != "" {
		p := filepath.Join(filepath.Dir(child), filepath.FromSlash(strings.ReplaceAll(l.Relative, `\`, "/")))
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return h.Local(l.Absolute)
}

// flat is a disk whose file is its content, perhaps with something behind it.
type flat struct {
	*os.File
	size int64
}

func (f *flat) Flush() error { return f.Sync() }

func (f *flat) Zero(off, n int64) error {
	z := make([]byte, min(n, 1<<20))
	for n > 0 {
		k := min(n, int64(len(z)))
		if _, err := f.WriteAt(z[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// device is a disk as a Runner sees it.
type device struct {
	disk *Disk
	size int64
}

var _ nbd.WritableDevice = (*device)(nil)

func (d *device) Size() int64 { return d.size }

func (d *device) ReadAt(_ context.Context, p []byte, off int64) error { return d.disk.Read(off, p) }

func (d *device) Extents(_ context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	return []nbd.AllocationExtent{{Off: off, Len: length}}, nil
}

func (d *device) WriteAt(_ context.Context, p []byte, off int64) error {
	return d.change(off, int64(len(p)), p)
}

func (d *device) Flush(context.Context) error { return d.disk.Flush() }

func (d *device) Trim(_ context.Context, off, length int64) error { return d.change(off, length, nil) }

func (d *device) WriteZeroes(_ context.Context, off, length int64, _ bool) error {
	return d.change(off, length, nil)
}

// change writes whatever the VM's state says: a guest that is being started or paused still has writes in flight.
func (d *device) change(off, n int64, p []byte) error {
	d.disk.vm.io.RLock()
	defer d.disk.vm.io.RUnlock()
	if d.disk.vol == nil {
		return fmt.Errorf("disk %s is not open: %w", d.disk.ID, ErrState)
	}
	return d.disk.store(off, n, p)
}

// Changes returns what the tracking knows of a file of the disk: the ranges of [off, off+n) that were
// written between the named point and the moment that the file holds, or the moment of the checkpoint target.
func (d *Disk) Changes(path, since, target string, off, n int64, limit int) ([]extent.Extent, int64, error) {
	d.vm.io.RLock()
	defer d.vm.io.RUnlock()
	if err := d.checkIdle(); err != nil {
		return nil, 0, err
	}
	st := d.vm.State()
	ds := st.Disk(d.ID)
	if ds == nil {
		return nil, 0, fmt.Errorf("disk %s: %w", d.ID, ErrNotFound)
	}
	if ds.Newer {
		return nil, 0, fmt.Errorf("changes of disk %s are missing in its tracking (0xC03A0030): %w", d.ID, rct.ErrUnknown)
	}
	from, ok := d.trk.Seq(since)
	if !ok {
		return nil, 0, fmt.Errorf("disk %s, identifier %q: %w", d.ID, since, rct.ErrUnknown)
	}
	f := ds.file(path)
	if f == nil {
		return nil, 0, fmt.Errorf("disk %s has no file %s: %w", d.ID, path, ErrNotFound)
	}
	to := f.Frozen
	if target != "" {
		cp, ok := st.Checkpoint(strings.ToUpper(strings.Trim(strings.TrimPrefix(target, "Microsoft:"), "{}")))
		if !ok {
			return nil, 0, fmt.Errorf("checkpoint %q: %w", target, ErrInvalid)
		}
		to = cp.seq(d.ID)
	}
	if to != 0 && from > to {
		return nil, 0, fmt.Errorf("identifier %q is newer than %s: %w", since, path, ErrInvalid)
	}
	return d.trk.Changes(from, to, off, n, limit)
}
