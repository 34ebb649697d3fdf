// Package rawhost stands in for a hypervisor host: one VM with one disk, which
// is a raw, sparse file, and the change tracking that hypervisors have. It
// promises the contract of hypervisor.Source as far as package capture uses it.
package rawhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/hypervisor"
	"holdfast/internal/nbd"
)

// What the host has, and the granularity of its tracker in bytes.
const (
	DiskID = "vda"
	VMID   = "7d9c3a52-6c1e-4a86-9b1d-0f6d2c8e4b11"
	Grain  = 64 << 10 // of the tracker: the qcow2 cluster size, which libvirt uses
)

// Source is a host with one VM whose one disk is a raw, sparse file, with
// the tracking that a hypervisor has. The guest does not write while a cut is
// open, so that the file is the frozen image too.
type Source struct {
	File *os.File // the disk
	size int64

	mu     sync.Mutex
	read   func(ctx context.Context, p []byte, off int64) error
	tokens map[string]bitmap // changed since
}

// bitmap has a bit for each Grain.
type bitmap []uint64

func (m bitmap) mark(off, n int64) {
	for g := off / Grain; g*Grain < off+n; g++ {
		m[g/64] |= 1 << (g % 64)
	}
}

func (m bitmap) has(g int64) bool { return m[g/64]&(1<<(g%64)) != 0 }

// extents lists the marked ranges that begin in [off, end), off at a multiple of the Grain or inside a marked one.
func (m bitmap) extents(off, end int64) (out []extent.Extent) {
	for g := off / Grain; g*Grain < end; g++ {
		if g%64 == 0 && m[g/64] == 0 {
			g += 63
			continue
		}
		if !m.has(g) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == g*Grain {
			out[n-1].Len += Grain
		} else {
			out = append(out, extent.Extent{Off: g * Grain, Len: Grain})
		}
	}
	return out
}

// Open makes a host of the disk at path.
func Open(path string) (*Source, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &Source{File: f, size: st.Size(), tokens: map[string]bitmap{}}
	s.ReadVia(nil)
	return s, nil
}

// Close closes the disk.
func (s *Source) Close() error { return s.File.Close() }

// ReadVia makes cuts read by NBD, as an agent does, or the file itself where c is nil.
func (s *Source) ReadVia(c *nbd.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = func(_ context.Context, p []byte, off int64) error {
		_, err := s.File.ReadAt(p, off)
		return err
	}
	if c != nil {
		s.read = c.ReadAt
	}
}

// Write is the guest's.
func (s *Source) Write(p []byte, off int64) error {
	if _, err := s.File.WriteAt(p, off); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.tokens {
		m.mark(off, int64(len(p)))
	}
	return nil
}

// LoseTracking is a host crash.
func (s *Source) LoseTracking() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// BeginCut implements hypervisor.Source.
func (s *Source) BeginCut(_ context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	base, ok := s.tokens[req.Base]
	if req.Base != "" && !ok {
		return nil, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "bench.BeginCut", "there is no token %s", req.Base)
	}
	token := "bench-" + req.Tag
	c := &fileCut{s: s, read: s.read, info: hypervisor.CutInfo{
		Token: token, Time: time.Now(), Disks: []hypervisor.CutDisk{{ID: DiskID, Size: s.size, Granularity: Grain}},
		Consistency: dr.CrashConsistent, Incremental: ok,
	}}
	if ok {
		c.changed = append(bitmap(nil), base...)
	}
	s.tokens[token] = make(bitmap, (s.size+64*Grain-1)/(64*Grain))
	return c, nil
}

// Config implements hypervisor.Source.
func (s *Source) Config(context.Context, dr.VMID) (hypervisor.VMConfig, error) {
	return hypervisor.VMConfig{VM: dr.VM{
		ID: VMID, Name: "bench", Running: true, Generation: 1, CPUs: 2, MemoryMB: 1024, Disks: []dr.Disk{{ID: DiskID, Size: s.size, Boot: true}},
	}}, nil
}

// Forget implements hypervisor.Source.
func (s *Source) Forget(_ context.Context, _ dr.VMID, keep []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[string]bitmap{}
	for _, k := range keep {
		if m, ok := s.tokens[k]; ok {
			kept[k] = m
		}
	}
	s.tokens = kept
	return nil
}

type fileCut struct {
	s       *Source
	read    func(ctx context.Context, p []byte, off int64) error
	info    hypervisor.CutInfo
	changed bitmap // nil: everything
}

func (c *fileCut) Info() hypervisor.CutInfo { return c.info }

func (c *fileCut) Extents(_ context.Context, disk string, off, length int64, fn func(hypervisor.Range) error) error {
	if disk != DiskID {
		return fmt.Errorf("there is no disk %q", disk)
	}
	length = min(length, c.s.size-off)
	zero, err := holes(c.s.File, off, length)
	if err != nil {
		return err
	}
	changed := []extent.Extent{{Off: off, Len: length}}
	if c.changed != nil {
		changed = c.changed.extents(off, off+length)
	}
	return hypervisor.Merge(off, length, changed, zero, fn)
}

func (c *fileCut) ReadAt(ctx context.Context, _ string, p []byte, off int64) error {
	return c.read(ctx, p, off)
}

func (c *fileCut) End(context.Context) error { return nil }

func (c *fileCut) Abort(context.Context) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	delete(c.s.tokens, c.info.Token)
	return nil
}

// SinceLast is how much changed since the newest token, bytes.
func (s *Source) SinceLast() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := int64(-1)
	for _, m := range s.tokens {
		var n int64
		for _, x := range m.extents(0, s.size) {
			n += min(x.End(), s.size) - x.Off
		}
		if least < 0 || n < least {
			least = n
		}
	}
	return max(0, least)
}

// CreateSparse makes a file that is one hole of the given size; there must be none.
func CreateSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Size is the disk's size, bytes.
func (s *Source) Size() int64 { return s.size }
