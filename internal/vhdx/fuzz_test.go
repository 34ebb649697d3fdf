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

// sparseDisk is a file in memory that takes space only where it was written, and not much.
type sparseDisk struct {
	mu  sync.Mutex
	img *memImage
}

var errFull = errors.New("the disk is full")

func sparse(b []byte) *sparseDisk { return &sparseDisk{img: imageOf(b)} }

func (s *sparseDisk) clone() *sparseDisk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sparseDisk{img: s.img.clone()}
}

func (s *sparseDisk) ReadAt(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.img.readAt(p, off)
	return nil
}

func (s *sparseDisk) WriteAt(p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.img.pages) > 1<<14 {
		return errFull
	}
	s.img.do(memOp{off: off, data: p})
	return nil
}

func (s *sparseDisk) Zero(off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.img.zero(off, n)
	return nil
}

func (s *sparseDisk) Truncate(n int64) error { s.img.truncate(n); return nil }
func (s *sparseDisk) Size() (int64, error)   { return s.img.size, nil }
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
	return [][]byte{formatted(t, CreateSpec{Size: 8 * mib, BlockSize: mib, Fixed: true}), dirtyImage(t), d.after(0, nil).bytes(), parent.bytes()}
}

// field is a live number or GUID of an image; structures that stand twice have it at two places.
type field struct {
	at []int64
	n  int64
}

// liveFields finds the fields of an image that count when it is opened and used.
func liveFields(img []byte) []field {
	var out []field
	twice := func(a, b, n int64) { out = append(out, field{[]int64{a, b}, n}) }
	once := func(base int64, list ...int64) { // pairs of offset and length
		for i := 0; i < len(list); i += 2 {
			out = append(out, field{[]int64{base + list[i]}, list[i+1]})
		}
	}
	for _, f := range [][2]int64{{8, 8}, {32, 16}, {48, 16}, {64, 2}, {66, 2}, {68, 4}, {72, 8}} {
		twice(headerA+f[0], headerB+f[0], f[1])
	}
	twice(regionA+8, regionB+8, 4)
	var meta, bat int64
	for i := range int64(le.Uint32(img[regionA+8:])) {
		e := 16 + 32*i
		for _, f := range [][2]int64{{0, 16}, {16, 8}, {24, 4}, {28, 4}} {
			twice(regionA+e+f[0], regionB+e+f[0], f[1])
		}
		if off := int64(le.Uint64(img[regionA+e+16:])); GUID(img[regionA+e:regionA+e+16]) == regionBAT {
			bat = off
		} else {
			meta = off
		}
	}
	once(meta, 0, 8, 10, 2)
	for i := range int64(le.Uint16(img[meta+10:])) {
		e := meta + 32 + 32*i
		once(e, 0, 16, 16, 4, 20, 4, 24, 4)
		if n := int64(le.Uint32(img[e+20:])); n <= 16 {
			once(meta+int64(le.Uint32(img[e+16:])), 0, n)
		} else { // the parent locator: its head and first entries
			once(meta+int64(le.Uint32(img[e+16:])), 0, 16, 18, 2, 20, 4, 24, 4, 28, 2, 30, 2, 32, 4)
		}
	}
	for i := range int64(10) {
		once(bat, 8*i, 8)
	}
	for off := mib; off < 2*mib; off += pageSize {
		if string(img[off:off+4]) != "loge" {
			continue
		}
		once(off, 8, 4, 12, 4, 16, 8, 24, 4, 32, 16, 48, 8, 56, 8)
		for i := range int64(min(4, le.Uint32(img[off+24:]))) {
			once(off+logHeaderSize+descriptorSize*i, 0, 4, 8, 8, 16, 8, 24, 8)
		}
		once(off+pageSize, 0, 4, 4, 4, 4092, 4)
	}
	return out
}

// target is an image to be damaged.
type target struct {
	disk   *sparseDisk
	fields []field
}

func targets(t testing.TB) []target {
	var out []target
	for _, b := range fuzzImages(t) {
		out = append(out, target{sparse(b), liveFields(b)})
	}
	return out
}

// damage changes a field in one of eight ways.
func (g target) damage(s *sparseDisk, index, how, v byte) {
	f := g.fields[(int(index)+int(how>>3)*256)%len(g.fields)]
	b := make([]byte, max(8, f.n))
	s.ReadAt(b[:f.n], f.at[0])
	was := le.Uint64(b)
	switch how & 7 {
	case 0:
		clear(b)
	case 1:
		for i := range b {
			b[i] = 0xff
		}
	case 2:
		b[int64(v)/8%f.n] ^= 1 << (v % 8)
	case 3:
		le.PutUint64(b, was+uint64(v))
	case 4:
		le.PutUint64(b, was-uint64(v))
	case 5:
		le.PutUint64(b, uint64(v)<<20)
	case 6:
		le.PutUint64(b, uint64(v))
	case 7:
		le.PutUint64(b, was^uint64(v)<<20)
	}
	for _, at := range f.at {
		s.WriteAt(b[:f.n], at)
	}
}

// FuzzOpen changes live fields of valid files, three input bytes for each: which,
// how and a value. Checksums are put right, or nothing behind them would be reached.
func FuzzOpen(f *testing.F) {
	list := targets(f)
	for i := range byte(len(list)) {
		for how := range byte(8) {
			f.Add(i, true, []byte{how * 7, how, 1, 40 + how, how, 0x80})
		}
		f.Add(i, false, []byte{2, 2, 9})
	}
	f.Fuzz(func(t *testing.T, which byte, fixed bool, in []byte) {
		hostile(t, list[int(which)%len(list)], fixed, in)
	})
}

// TestHostile runs FuzzOpen's changes: each field in each way, and several at random.
func TestHostile(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(11, 11))
	tried, refused := 0, 0
	step := 1
	if testing.Short() {
		step = 5
	}
	for _, g := range targets(t) {
		for i := 0; i < 8*len(g.fields); i += step {
			in := []byte{byte(i / 8), byte(i%8) | byte(i/8/256)<<3, byte(rng.Uint32())}
			refused += 2 - hostile(t, g, true, in)
			tried += 2
		}
		for range 200 / step {
			in := make([]byte, 3*(2+rng.IntN(4)))
			for k := range in {
				in[k] = byte(rng.Uint32())
			}
			refused += 2 - hostile(t, g, true, in)
			tried += 2
		}
	}
	t.Logf("%d of %d files were refused", refused, tried)
	if refused < tried*35/100 || refused > tried*95/100 {
		t.Fatalf("%d of %d files were refused: the changes are too tame or too wild", refused, tried)
	}
}

// hostile damages a file, opens it for reading and for writing and uses it.
func hostile(t *testing.T, g target, fixed bool, in []byte) (opened int) {
	s := g.disk.clone()
	for ; len(in) >= 3 && len(in) < 300; in = in[3:] {
		g.damage(s, in[0], in[1], in[2])
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
	again := func(off, n int64) {
		b := make([]byte, n)
		s.ReadAt(b, off)
		putChecksum(b)
		s.WriteAt(b[4:8], off+4)
	}
	again(headerA, pageSize)
	again(headerB, pageSize)
	again(regionA, tableSize)
	again(regionB, tableSize)
	head := make([]byte, 12)
	for off := mib; off < 2*mib; off += pageSize {
		s.ReadAt(head, off)
		if n := int64(le.Uint32(head[8:])); string(head[:4]) == "loge" && n >= pageSize && off+n <= 2*mib {
			again(off, n)
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
	if f.meta.batEntries() < 1<<17 {
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
