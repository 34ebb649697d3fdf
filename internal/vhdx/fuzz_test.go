package vhdx

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// sparseDisk is a file in memory that takes space only where it was written.
type sparseDisk struct {
	mu    sync.Mutex
	pages map[int64]*[pageSize]byte
	size  int64
}

var errFull = errors.New("the disk is full")

func sparse(b []byte) *sparseDisk {
	s := &sparseDisk{pages: map[int64]*[pageSize]byte{}}
	for off := 0; off < len(b); off += pageSize {
		p := b[off:min(off+pageSize, len(b))]
		for _, v := range p {
			if v != 0 {
				s.pages[int64(off)] = new([pageSize]byte)
				copy(s.pages[int64(off)][:], p)
				break
			}
		}
	}
	s.size = int64(len(b))
	return s
}

func (s *sparseDisk) clone() *sparseDisk {
	c := &sparseDisk{pages: make(map[int64]*[pageSize]byte, len(s.pages)), size: s.size}
	for off, p := range s.pages {
		q := *p
		c.pages[off] = &q
	}
	return c
}

func (s *sparseDisk) each(n, off int64, fn func(page *[pageSize]byte, at int64, in, from, to int64)) {
	for done := int64(0); done < n; {
		at := (off + done) &^ (pageSize - 1)
		in := off + done - at
		k := min(pageSize-in, n-done)
		fn(s.pages[at], at, in, done, done+k)
		done += k
	}
}

func (s *sparseDisk) ReadAt(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each(int64(len(p)), off, func(page *[pageSize]byte, _, in, from, to int64) {
		if page == nil {
			clear(p[from:to])
		} else {
			copy(p[from:to], page[in:])
		}
	})
	return nil
}

func (s *sparseDisk) WriteAt(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pages) > 1<<15 {
		return errFull
	}
	s.each(int64(len(p)), off, func(page *[pageSize]byte, at, in, from, to int64) {
		if page == nil {
			page = new([pageSize]byte)
			s.pages[at] = page
		}
		copy(page[in:], p[from:to])
	})
	s.size = max(s.size, off+int64(len(p)))
	return nil
}

func (s *sparseDisk) Zero(off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, page := range s.pages {
		if from, to := max(at, off), min(at+pageSize, off+n); from < to {
			clear(page[from-at : to-at])
		}
	}
	return nil
}

func (s *sparseDisk) Truncate(n int64) error { s.size = n; return nil }
func (s *sparseDisk) Size() (int64, error)   { return s.size, nil }
func (s *sparseDisk) Sync() error            { return nil }
func (s *sparseDisk) Close() error           { return nil }

// fuzzImages are a clean, a dirty and a differencing file with all kinds of blocks.
func fuzzImages(t testing.TB) [][]byte {
	image, parent, _ := crashStart(t, Differencing)
	d := newMemDisk(image)
	c, err := openMem(d, true, parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []action{{off: 0, n: 4096, fill: 1}, {off: mib, n: mib, fill: 2}, {off: 2 * mib, n: mib, zero: true}, {flush: true},
		{off: 3*mib + 512, n: 512, fill: 3}, {flush: true}} {
		if err := a.do(c); err != nil {
			t.Fatal(err)
		}
	}
	return [][]byte{memImage(t, CreateSpec{Size: 8 * mib, BlockSize: mib, Fixed: true}), dirtyImage(t), d.after(0, nil), parent}
}

// spots are where the structures of these images stand.
var spots = []int64{0, headerA, headerB, regionA, regionA + 16, regionB, mib, mib + 2*pageSize, 2 * mib, 2*mib + tableSize, 2*mib + tableSize + 64, 3 * mib, 4 * mib}

// FuzzOpen changes bytes of valid files, three input bytes for each: a place, an
// offset and a value. Checksums are put right, or nothing behind them would be reached.
func FuzzOpen(f *testing.F) {
	var disks []*sparseDisk
	for _, b := range fuzzImages(f) {
		disks = append(disks, sparse(b))
	}
	for i := range byte(4) {
		f.Add(i, true, []byte{})
		for s := range byte(len(spots)) {
			f.Add(i, true, []byte{s, 8, 1, s, 20, 0xff, s, 24, 0x80, s, 3, 7})
		}
	}
	f.Fuzz(func(t *testing.T, which byte, fixed bool, in []byte) {
		hostile(t, disks[int(which)%len(disks)].clone(), fixed, in)
	})
}

// TestHostile runs FuzzOpen's changes from a fixed seed.
func TestHostile(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(11, 11))
	var disks []*sparseDisk
	for _, b := range fuzzImages(t) {
		disks = append(disks, sparse(b))
	}
	n, opened := 1500, 0
	if testing.Short() {
		n = 300
	}
	for i := range n {
		in := make([]byte, 3*(1+rng.IntN(6)))
		for k := range in {
			in[k] = byte(rng.Uint32())
		}
		opened += hostile(t, disks[i%len(disks)].clone(), i%8 != 0, in)
	}
	t.Logf("%d of %d files could be opened", opened, 2*n)
	if opened < n/5 || opened > 2*n-n/60 {
		t.Fatal("the changes are too wild or too tame")
	}
}

// hostile changes a file, opens it for reading and for writing and uses it.
func hostile(t *testing.T, s *sparseDisk, fixed bool, in []byte) (opened int) {
	for ; len(in) >= 3 && len(in) < 300; in = in[3:] {
		off := spots[int(in[0])%len(spots)] + int64(in[1]) + int64(in[0]/16)*256
		if err := s.WriteAt(in[2:3], off); err != nil {
			return 0
		}
	}
	if fixed {
		fixSparse(s)
	}
	for _, write := range []bool{false, true} {
		if exercise(t, s, write) {
			opened++
		}
	}
	return opened
}

// fixSparse puts the checksums of headers, tables and log entries right.
func fixSparse(s *sparseDisk) {
	b := make([]byte, 2*mib)
	s.ReadAt(b, 0)
	fix(b)
	for off := mib; off < 2*mib; off += pageSize {
		if string(b[off:off+4]) == "loge" {
			if n := int64(le.Uint32(b[off+8:])); n >= pageSize && off+n <= 2*mib {
				putChecksum(b[off : off+n])
			}
		}
	}
	for off := int64(0); off < 2*mib; off += pageSize {
		if s.pages[off] != nil {
			s.WriteAt(b[off:off+pageSize], off)
		}
	}
}

// exercise opens a file that may be anything, uses it in all ways and reports whether it opened.
func exercise(t *testing.T, s *sparseDisk, write bool) (opened bool) {
	f, err := openStorage("fuzz", s, write)
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrNotVHDX) && !errors.Is(err, errFull) {
			t.Fatalf("an unnamed error: %v", err)
		}
		return false
	}
	defer f.Close()
	if f.meta.batEntries() < 1<<20 {
		f.Check()
		f.Info()
	}
	c := &Chain{files: []*File{f}}
	buf := make([]byte, 64*kib)
	for _, off := range []int64{0, mib, 3 * mib, f.meta.size - int64(len(buf))} {
		if off < 0 {
			continue
		}
		c.ReadAt(buf, off)
		c.Extents(off, int64(len(buf)), func(int64, int64, bool) error { return nil })
		if write {
			c.WriteAt(buf[:1000], off+100)
			c.Zero(off, int64(len(buf)))
		}
	}
	if write {
		f.Flush()
		if f.meta.size < tib {
			f.Resize(f.meta.size + mib)
		}
		f.SetParent(Locator{Relative: `.\x`})
	}
	return true
}

// FuzzLocator reads parent locators of any kind.
func FuzzLocator(f *testing.F) {
	f.Add(Locator{Linkage: NewGUID(), Relative: `..\a.vhdx`, Absolute: `\\?\C:\a.vhdx`}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLocator(b, 0)
		if err != nil || l.check() != nil {
			return
		}
		if again, err := decodeLocator(l.encode(), 0); err != nil || again != l {
			t.Fatalf("%+v became %+v, %v", l, again, err)
		}
	})
}

// BenchmarkRead reads a dynamic disk of 256 MiB; BenchmarkQemuConvert lets qemu-img read the same.
func BenchmarkRead(b *testing.B) {
	path := benchDisk(b)
	b.SetBytes(256 * mib)
	for b.Loop() {
		c, err := OpenChain(path, ChainOptions{})
		if err != nil {
			b.Fatal(err)
		}
		out, err := os.Create(filepath.Join(b.TempDir(), "out.raw"))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.NewSectionReader(c, 0, c.Size()), make([]byte, 4*mib))
		if err != nil || n != 256*mib {
			b.Fatal(n, err)
		}
		out.Close()
		c.Close()
		os.Remove(out.Name())
	}
}

// BenchmarkQemuConvert is the yardstick of BenchmarkRead.
func BenchmarkQemuConvert(b *testing.B) {
	path := benchDisk(b)
	b.SetBytes(256 * mib)
	for b.Loop() {
		out := filepath.Join(b.TempDir(), "out.raw")
		qemuImg(b, "convert", "-f", "vhdx", "-O", "raw", path, out)
		os.Remove(out)
	}
}

// BenchmarkWriteChild writes 4 KiB pieces to random places of a differencing disk and flushes now and then.
func BenchmarkWriteChild(b *testing.B) {
	base := benchDisk(b)
	path := filepath.Join(b.TempDir(), "c.avhdx")
	f, err := CreateChild(path, base, CreateSpec{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	f.Close()
	c, err := OpenChain(path, ChainOptions{Write: true, NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for i := int64(0); b.Loop(); i++ {
		if _, err := c.WriteAt(p, i*7919%(256*mib/4096)*4096); err != nil {
			b.Fatal(err)
		}
		if i%100 == 0 {
			c.Flush()
		}
	}
}

func benchDisk(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "a.vhdx")
	f, err := Create(path, CreateSpec{Size: 256 * mib, NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, mib)
	for i := range p {
		p[i] = byte(i*i>>7) | 1
	}
	for off := int64(0); off < 256*mib; off += mib {
		if _, err := f.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}
