package main

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

const (
	diskID = "vda"
	vmID   = "7d9c3a52-6c1e-4a86-9b1d-0f6d2c8e4b11"
	grain  = 64 << 10 // of the tracker: the qcow2 cluster size, which libvirt uses
)

// fileSource is a host with one VM whose one disk is a raw, sparse file, with
// the tracking that a hypervisor has. The guest does not write while a cut is
// open, so that the file is the frozen image too.
type fileSource struct {
	f    *os.File
	size int64

	mu     sync.Mutex
	read   func(ctx context.Context, p []byte, off int64) error
	tokens map[string]bitmap // changed since
}

// bitmap has a bit for each grain.
type bitmap []uint64

func (m bitmap) mark(off, n int64) {
	for g := off / grain; g*grain < off+n; g++ {
		m[g/64] |= 1 << (g % 64)
	}
}

func (m bitmap) has(g int64) bool { return m[g/64]&(1<<(g%64)) != 0 }

// extents lists the marked ranges that begin in [off, end), off at a multiple of the grain or inside a marked one.
func (m bitmap) extents(off, end int64) (out []extent.Extent) {
	for g := off / grain; g*grain < end; g++ {
		if g%64 == 0 && m[g/64] == 0 {
			g += 63
			continue
		}
		if !m.has(g) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == g*grain {
			out[n-1].Len += grain
		} else {
			out = append(out, extent.Extent{Off: g * grain, Len: grain})
		}
	}
	return out
}

func newSource(path string) (*fileSource, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &fileSource{f: f, size: st.Size(), tokens: map[string]bitmap{}}
	s.readVia(nil)
	return s, nil
}

func (s *fileSource) Close() error { return s.f.Close() }

// readVia makes cuts read by NBD, as an agent does, or the file itself where c is nil.
func (s *fileSource) readVia(c *nbd.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = func(_ context.Context, p []byte, off int64) error {
		_, err := s.f.ReadAt(p, off)
		return err
	}
	if c != nil {
		s.read = c.ReadAt
	}
}

// write is the guest's.
func (s *fileSource) write(p []byte, off int64) error {
	if _, err := s.f.WriteAt(p, off); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.tokens {
		m.mark(off, int64(len(p)))
	}
	return nil
}

// loseTracking is a host crash.
func (s *fileSource) loseTracking() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

func (s *fileSource) BeginCut(_ context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	base, ok := s.tokens[req.Base]
	if req.Base != "" && !ok {
		return nil, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "bench.BeginCut", "there is no token %s", req.Base)
	}
	token := "bench-" + req.Tag
	c := &fileCut{s: s, read: s.read, info: hypervisor.CutInfo{
		Token: token, Time: time.Now(), Disks: []hypervisor.CutDisk{{ID: diskID, Size: s.size, Granularity: grain}},
		Consistency: dr.CrashConsistent, Incremental: ok,
	}}
	if ok {
		c.changed = append(bitmap(nil), base...)
	}
	s.tokens[token] = make(bitmap, (s.size+64*grain-1)/(64*grain))
	return c, nil
}

func (s *fileSource) Config(context.Context, dr.VMID) (hypervisor.VMConfig, error) {
	return hypervisor.VMConfig{VM: dr.VM{
		ID: vmID, Name: "bench", Running: true, Generation: 1, CPUs: 2, MemoryMB: 1024, Disks: []dr.Disk{{ID: diskID, Size: s.size, Boot: true}},
	}}, nil
}

func (s *fileSource) Forget(_ context.Context, _ dr.VMID, keep []string) error {
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
	s       *fileSource
	read    func(ctx context.Context, p []byte, off int64) error
	info    hypervisor.CutInfo
	changed bitmap // nil: everything
}

func (c *fileCut) Info() hypervisor.CutInfo { return c.info }

func (c *fileCut) Extents(_ context.Context, disk string, off, length int64, fn func(hypervisor.Range) error) error {
	if disk != diskID {
		return fmt.Errorf("there is no disk %q", disk)
	}
	length = min(length, c.s.size-off)
	zero, err := holes(c.s.f, off, length)
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
