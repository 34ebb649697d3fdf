package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is a chain on disk beside the flat bytes it must hold.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	dir   string
	paths []string // base first
	flat  []byte
	chain *Chain
	n     int
}

func (w *world) open() {
	w.t.Helper()
	c, err := OpenChain(w.paths[len(w.paths)-1], ChainOptions{Write: true, NoSync: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.chain = c
}

func (w *world) close() {
	w.t.Helper()
	if err := w.chain.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) span() (off, n int64) {
	size := int64(len(w.flat))
	off = w.rng.Int64N(size)
	n = w.rng.Int64N(1 << w.rng.IntN(22))
	if w.rng.IntN(3) == 0 {
		off = off / mib * mib
		n = w.rng.Int64N(4) * mib
	}
	return off, min(n, size-off)
}

// fill writes the same to chain and bytes.
func (w *world) fill() {
	off, n := w.span()
	p := noise(w.rng, n)
	if k, err := w.chain.WriteAt(p, off); err != nil || k != len(p) {
		w.t.Fatal(k, err)
	}
	copy(w.flat[off:], p)
}

// noise is n bytes of a pattern that begins anywhere and repeats at no power of two.
func noise(rng *rand.Rand, n int64) []byte {
	var unit [4099]byte
	for i := 0; i+8 <= len(unit); i += 8 {
		le.PutUint64(unit[i:], rng.Uint64())
	}
	p := make([]byte, n)
	for off := 0; off < len(p); {
		off += copy(p[off:], unit[:])
	}
	return p
}

func (w *world) zero() {
	off, n := w.span()
	if err := w.chain.Zero(off, n); err != nil {
		w.t.Fatal(err)
	}
	clear(w.flat[off : off+n])
}

// child puts a differencing file on top.
func (w *world) child(block int64) {
	w.t.Helper()
	w.close()
	w.n++
	path := filepath.Join(w.dir, fmt.Sprintf("child%d.avhdx", w.n))
	f, err := CreateChild(path, w.paths[len(w.paths)-1], CreateSpec{BlockSize: block, NoSync: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.paths = append(w.paths, path)
	w.open()
}

// merge folds the file at level i into the one below, with interruptions.
func (w *world) merge(i int) {
	w.t.Helper()
	w.close()
	calls, stop := 0, w.rng.IntN(3)
	for ; ; stop++ {
		ctx, cancel := context.WithCancel(w.t.Context())
		k := 0
		err := Merge(ctx, w.paths[i], w.paths[i-1], func(int64, int64) {
			if k++; k > stop {
				cancel()
			}
		})
		cancel()
		calls++
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			w.t.Fatal(err)
		}
		if calls%2 == 1 {
			w.verify() // the chain through the child is as good as before
		}
	}
	if err := Merge(w.t.Context(), w.paths[i], w.paths[i-1], nil); err != nil {
		w.t.Fatal("a finished merge again:", err)
	}
	if err := os.Remove(w.paths[i]); err != nil {
		w.t.Fatal(err)
	}
	w.paths = append(w.paths[:i], w.paths[i+1:]...)
	if i < len(w.paths) {
		rel := relativePath(w.paths[i], w.paths[i-1])
		if err := Reparent(w.paths[i], Locator{Relative: rel, Absolute: `C:\` + fmt.Sprintf("%0*d", w.rng.IntN(3000), 7)}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.open()
}

func (w *world) grow() {
	w.t.Helper()
	w.close()
	n := w.rng.Int64N(2*mib) / 4096 * 4096
	w.flat = append(w.flat, make([]byte, n)...)
	if err := Resize(w.paths[len(w.paths)-1], int64(len(w.flat))); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

// verify compares a fresh reader with the flat bytes, whole and by extents.
func (w *world) verify() {
	w.t.Helper()
	c, err := OpenChain(w.paths[len(w.paths)-1], ChainOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	compare(w.t, c, w.flat)
	for _, f := range c.files {
		if err := f.Check(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func compare(t *testing.T, c *Chain, want []byte) {
	t.Helper()
	got, err := contents(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d (sector %d) is %d, not %d", i, i/512, got[i], want[i])
			}
		}
		t.Fatal("sizes differ")
	}
	at, before := int64(0), -1
	err = c.Extents(0, int64(len(want)), func(off, n int64, zero bool) error {
		kind := 0
		if zero {
			kind = 1
			if !bytes.Equal(want[off:off+n], make([]byte, n)) {
				t.Fatalf("the extent at %d of %d bytes is called zero", off, n)
			}
		}
		if off != at || n <= 0 || kind == before {
			t.Fatalf("extent %d+%d (%v) after %d", off, n, zero, at)
		}
		at, before = off+n, kind
		return nil
	})
	if err != nil || at != int64(len(want)) {
		t.Fatal(at, err)
	}
}

// TestModel runs random writes, zeroes, children, merges and growth against flat bytes.
func TestModel(t *testing.T) {
	t.Parallel()
	seeds, steps := 6, 120
	if testing.Short() {
		seeds, steps = 4, 50
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(seed), 99))
			sector := []int{512, 4096}[seed%2]
			w := &world{t: t, rng: rng, dir: t.TempDir(), flat: make([]byte, 7*mib+4096)}
			base := filepath.Join(w.dir, "base.vhdx")
			f, err := Create(base, CreateSpec{Size: int64(len(w.flat)), BlockSize: mib << (seed % 3), LogicalSector: sector, Fixed: seed == 3, NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			w.paths = []string{base}
			w.open()
			for i := range steps {
				switch k := rng.IntN(30); {
				case k < 16:
					w.fill()
				case k < 21:
					w.zero()
				case k < 23 && len(w.paths) < 5:
					w.child(mib << rng.IntN(3))
				case k < 25 && len(w.paths) > 1:
					w.merge(1 + rng.IntN(len(w.paths)-1))
				case k == 25 && i%2 == 0:
					w.grow()
				case k == 26:
					compare(t, w.chain, w.flat)
				}
			}
			w.close()
			w.verify()
			if seed%2 == 0 && len(w.paths) == 1 {
				w.open()
				w.child(0)
				w.fill()
				w.close()
			}
			pyvhdi(t, w.paths, w.flat)
			for len(w.paths) > 1 {
				w.open()
				w.merge(len(w.paths) - 1)
				w.close()
			}
			w.verify()
			raw := filepath.Join(w.dir, "flat.raw")
			if err := os.WriteFile(raw, w.flat, 0o600); err != nil {
				t.Fatal(err)
			}
			if sector == 4096 {
				return // qemu-img opens only disks with sectors of 512 bytes
			}
			qemuImg(t, "check", "-f", "vhdx", base)
			qemuImg(t, "compare", "-f", "vhdx", "-F", "raw", base, raw)
		})
	}
}

// pyvhdi reads a chain with libvhdi and compares it. Blocks that a differencing file
// says are zero are left out: this libvhdi (20210425) reads the parent for them. So are blocks that a
// file does not have where it has no sector bitmap either: libvhdi takes the file's first bytes for the
// bitmap. Neither can it read a child that is larger than its parent: it is not asked about such a chain.
func pyvhdi(t *testing.T, paths []string, want []byte) {
	t.Helper()
	const script = `
import sys, pyvhdi
files = []
skip = [tuple(map(int, r.split('-'))) for r in sys.argv[2].split(',') if r]
for p in sys.argv[3:]:
    f = pyvhdi.file(); f.open(p)
    if files: f.set_parent(files[-1])
    files.append(f)
top = files[-1]
want = open(sys.argv[1], 'rb').read()
size = top.get_media_size()
if size != len(want): sys.exit('size %d instead of %d' % (size, len(want)))
off = 0
while off < size:
    n = min(1 << 20, size - off)
    top.seek(off)
    got = top.read(n)
    if got != want[off:off+n]:
        for i in range(n):
            if any(a <= off+i < b for a, b in skip): continue
            if i >= len(got) or got[i] != want[off+i]: sys.exit('byte %d differs: %r' % (off+i, got[i:i+1]))
    off += n
`
	raw := filepath.Join(t.TempDir(), "want.raw")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	mask, parentSize := []string{}, int64(0)
	for _, p := range paths {
		f, err := Open(p, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if f.meta.hasParent && f.Size() > parentSize {
			t.Logf("libvhdi is not asked: %s has %d bytes, its parent %d", filepath.Base(p), f.Size(), parentSize)
			f.Close()
			return
		}
		parentSize = f.Size()
		for b := range f.meta.blocks() {
			e, _ := f.payload(b)
			bits, _ := f.bat(f.bitmapIndex(b), bitmapBlock, true)
			if f.meta.hasParent && (e.state != stateNotPresent && !e.hasSpace() || e.state == stateNotPresent && !bits.hasSpace()) {
				mask = append(mask, fmt.Sprintf("%d-%d", b*f.meta.blockSize, (b+1)*f.meta.blockSize))
			}
		}
		f.Close()
	}
	out, err := exec.CommandContext(t.Context(), "/usr/bin/python3", append([]string{"-c", script, raw, strings.Join(mask, ",")}, paths...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("pyvhdi (package python3-libvhdi) on %d files: %v: %s", len(paths), err, out)
	}
}

// TestLibvhdiChains lets libvhdi read chains of several files with all block states but the zeroed ones.
func TestLibvhdiChains(t *testing.T) {
	t.Parallel()
	for _, depth := range []int{1, 3, 5} {
		rng := rand.New(rand.NewPCG(uint64(depth), 5))
		w := &world{t: t, rng: rng, dir: t.TempDir(), flat: make([]byte, 17*mib)}
		w.paths = []string{filepath.Join(w.dir, "base.vhdx")}
		f, err := Create(w.paths[0], CreateSpec{Size: 17 * mib, BlockSize: 2 * mib, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		w.open()
		for range depth {
			w.child(0)
			for range 6 {
				w.fill()
			}
		}
		w.close()
		w.verify()
		pyvhdi(t, w.paths, w.flat)
	}
}

// TestReadsWhatQemuWrites converts the other way.
func TestReadsWhatQemuWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw := filepath.Join(dir, "a.raw")
	rng := rand.New(rand.NewPCG(1, 1))
	flat := make([]byte, 40*mib)
	for range 30 {
		off := rng.IntN(len(flat) - 70000)
		copy(flat[off:], noise(rng, 1+rng.Int64N(70000)))
	}
	if err := os.WriteFile(raw, flat, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,block_size=1M,log_size=2M", "subformat=dynamic,block_state_zero=off,block_size=256M"} {
		path := filepath.Join(dir, "q.vhdx")
		os.Remove(path)
		qemuImg(t, "convert", "-f", "raw", "-O", "vhdx", "-o", o, raw, path)
		c, err := OpenChain(path, ChainOptions{})
		if err != nil {
			t.Fatal(o, err)
		}
		compare(t, c, flat)
		if err := errors.Join(c.files[0].Check(), c.Close()); err != nil {
			t.Fatal(o, err)
		}
		// And we write into theirs.
		c, err = OpenChain(path, ChainOptions{Write: true})
		if err != nil {
			t.Fatal(o, err)
		}
		ours := bytes.Clone(flat)
		copy(ours[11*mib-5:], "written by us")
		clear(ours[16*mib : 32*mib])
		if _, err := c.WriteAt([]byte("written by us"), 11*mib-5); err != nil {
			t.Fatal(o, err)
		}
		if err := errors.Join(c.Zero(16*mib, 16*mib), c.Close()); err != nil {
			t.Fatal(o, err)
		}
		mine := filepath.Join(dir, "ours.raw")
		if err := os.WriteFile(mine, ours, 0o600); err != nil {
			t.Fatal(err)
		}
		qemuImg(t, "check", "-f", "vhdx", path)
		qemuImg(t, "compare", "-f", "vhdx", "-F", "raw", path, mine)
	}
}

// TestConcurrency lets writers, readers and flushes meet; the race detector watches.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base := filepath.Join(dir, "b.vhdx")
	f, err := Create(base, CreateSpec{Size: 64 * mib, BlockSize: 2 * mib, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	top := filepath.Join(dir, "t.avhdx")
	if f, err = CreateChild(top, base, CreateSpec{NoSync: true}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c, err := OpenChain(top, ChainOptions{Write: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	flat := make([]byte, 64*mib)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			mine := flat[int64(g)*8*mib : int64(g+1)*8*mib]
			for i := range 60 {
				off := rng.IntN(len(mine) - 30000)
				p := bytes.Repeat([]byte{byte(g*16 + i)}, 1+rng.IntN(30000))
				copy(mine[off:], p)
				if _, err := c.WriteAt(p, int64(g)*8*mib+int64(off)); err != nil {
					t.Error(err)
				}
				got := make([]byte, len(p))
				if _, err := c.ReadAt(got, int64(g)*8*mib+int64(off)); err != nil || !bytes.Equal(got, p) {
					t.Error("read back differs", err)
				}
				if i%20 == 0 {
					if err := c.Flush(); err != nil {
						t.Error(err)
					}
					if err := c.Extents(0, 64*mib, func(int64, int64, bool) error { return nil }); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	compare(t, c, flat)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = OpenChain(top, ChainOptions{}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	compare(t, c, flat)
}

// TestReadsWhileMerging reads chains that are open, and opens new ones, while the file in the
// middle is merged: every answer is the disk as it was.
func TestReadsWhileMerging(t *testing.T) {
	t.Parallel()
	for seed, fixed := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(uint64(seed), 21))
		w := &world{t: t, rng: rng, dir: t.TempDir(), flat: make([]byte, 24*mib)}
		w.paths = []string{filepath.Join(w.dir, "base.vhdx")}
		f, err := Create(w.paths[0], CreateSpec{Size: 24 * mib, BlockSize: mib, Fixed: fixed, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		w.open()
		for range 6 {
			w.fill()
		}
		w.child(mib)
		for b := range int64(24) { // a part of each block: the rest shows the base
			p, off := noise(rng, 4096+rng.Int64N(8)*512), b*mib+rng.Int64N(200)*512
			if _, err := w.chain.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(w.flat[off:], p)
		}
		w.close()
		c, err := OpenChain(w.paths[1], ChainOptions{}) // before the merge, nothing read yet
		if err != nil {
			t.Fatal(err)
		}
		late, err := OpenChain(w.paths[1], ChainOptions{}) // it reads for the first time when the base has grown and says so
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		reads := make([]int, 3)
		for g := range reads {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(g), 22))
				got := make([]byte, 100_000)
				for {
					off := rng.Int64N(int64(len(w.flat) - len(got)))
					if _, err := c.ReadAt(got, off); err != nil {
						t.Errorf("read in mid-merge: %v", err)
						return
					}
					if !bytes.Equal(got, w.flat[off:off+int64(len(got))]) {
						t.Errorf("%d bytes at %d read otherwise in mid-merge", len(got), off)
						return
					}
					reads[g]++
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		during := 0
		err = Merge(t.Context(), w.paths[1], w.paths[0], func(done, total int64) {
			if during++; during%4 == 0 {
				for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
					runtime.Gosched() // lets the readers meet this state
				}
			}
		})
		close(stop)
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		compare(t, c, w.flat)
		compare(t, late, w.flat)
		if err := errors.Join(c.Close(), late.Close()); err != nil {
			t.Fatal(err)
		}
		if during < 20 || reads[0] == 0 {
			t.Fatalf("%d steps, %d reads", during, reads)
		}
		w.paths = w.paths[:1]
		w.verify()
	}
}
