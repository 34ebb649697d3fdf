package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// errPower is what a memory disk answers after its power was cut.
var errPower = errors.New("the power is cut")

// memOp is something that a disk was told and that is not durable yet.
type memOp struct {
	off      int64
	data     []byte
	truncate bool
}

// memImage is the content of a file in memory. Clones share what neither of them
// changed since: a power cut test makes hundreds of them.
type memImage struct {
	base  []byte // never written
	size  int64
	pages map[int64]*memPage
	mark  *byte // of the pages that are this image's alone
}

type memPage struct {
	mark *byte
	data [pageSize]byte
}

func imageOf(b []byte) *memImage {
	return &memImage{base: b, size: int64(len(b)), pages: map[int64]*memPage{}, mark: new(byte)}
}

func (m *memImage) clone() *memImage {
	m.mark = new(byte)
	return &memImage{base: m.base, size: m.size, pages: maps.Clone(m.pages), mark: new(byte)}
}

// page returns a page to be changed.
func (m *memImage) page(at int64) *memPage {
	p := m.pages[at]
	if p == nil || p.mark != m.mark {
		q := &memPage{mark: m.mark}
		if p != nil {
			q.data = p.data
		} else if at < int64(len(m.base)) {
			copy(q.data[:], m.base[at:])
		}
		m.pages[at], p = q, q
	}
	return p
}

func (m *memImage) readAt(p []byte, off int64) {
	for len(p) > 0 {
		at := off &^ (pageSize - 1)
		n := min(int64(len(p)), at+pageSize-off)
		switch q := m.pages[at]; {
		case off >= m.size:
			clear(p[:n])
		case q != nil:
			copy(p[:n], q.data[off-at:])
		case off < int64(len(m.base)):
			clear(p[copy(p[:n], m.base[off:]):n])
		default:
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (m *memImage) do(op memOp) {
	if op.truncate {
		m.truncate(op.off)
		return
	}
	p, off := op.data, op.off
	m.size = max(m.size, off+int64(len(p)))
	for len(p) > 0 {
		at := off &^ (pageSize - 1)
		n := copy(m.page(at).data[off-at:], p)
		p, off = p[n:], off+int64(n)
	}
}

func (m *memImage) truncate(size int64) {
	if size < m.size {
		for at := range m.pages {
			if at >= size {
				delete(m.pages, at)
			}
		}
		if at := size &^ (pageSize - 1); at < size {
			clear(m.page(at).data[size-at:])
		}
		m.base = m.base[:min(size, int64(len(m.base)))]
	}
	m.size = size
}

// zero takes no space for what was never written.
func (m *memImage) zero(off, n int64) {
	for at := off &^ (pageSize - 1); at < min(off+n, int64(len(m.base))); at += pageSize {
		m.page(at)
	}
	for at := range m.pages {
		if from, to := max(at, off), min(at+pageSize, off+n); from < to {
			clear(m.page(at).data[from-at : to-at])
		}
	}
}

// bytes returns the whole content.
func (m *memImage) bytes() []byte {
	b := make([]byte, m.size)
	m.readAt(b, 0)
	return b
}

// memDisk is a file in memory that loses what was not synced when its power is cut.
type memDisk struct {
	io      sync.Mutex
	durable *memImage
	now     *memImage
	pending []memOp
	*power
}

// power may feed several disks.
type power struct {
	mu   sync.Mutex
	left int // operations until the power is cut, -1 = never
	cut  bool
}

// newMemDisk makes a disk of bytes, which must not change from now on.
func newMemDisk(b []byte) *memDisk { return diskOf(imageOf(b)) }

func diskOf(m *memImage) *memDisk {
	return &memDisk{durable: m.clone(), now: m.clone(), power: &power{left: -1}}
}

// step counts an operation; last says that it is the one that meets the cut.
func (p *power) step() (last bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false, errPower
	}
	if p.left == 0 {
		p.cut = true
		return true, errPower
	}
	if p.left > 0 {
		p.left--
	}
	return false, nil
}

func (m *memDisk) ReadAt(p []byte, off int64) error {
	m.io.Lock()
	defer m.io.Unlock()
	m.now.readAt(p, off)
	return nil
}

func (m *memDisk) do(op memOp) error {
	m.io.Lock()
	defer m.io.Unlock()
	last, err := m.step()
	// The operation that meets the power cut may still reach the medium in part.
	if err == nil || !op.truncate && last {
		op.data = bytes.Clone(op.data)
		m.pending = append(m.pending, op)
	}
	if err != nil {
		return err
	}
	m.now.do(op)
	return nil
}

func (m *memDisk) WriteAt(p []byte, off int64) error { return m.do(memOp{off: off, data: p}) }
func (m *memDisk) Zero(off, n int64) error           { return m.do(memOp{off: off, data: make([]byte, n)}) }
func (m *memDisk) Truncate(n int64) error            { return m.do(memOp{off: n, truncate: true}) }

func (m *memDisk) Size() (int64, error) {
	m.io.Lock()
	defer m.io.Unlock()
	return m.now.size, nil
}

func (m *memDisk) Sync() error {
	m.io.Lock()
	defer m.io.Unlock()
	if _, err := m.step(); err != nil {
		return err
	}
	for _, op := range m.pending {
		m.durable.do(op)
	}
	m.pending = nil
	return nil
}

func (m *memDisk) Close() error { return nil }

// after is an image the medium may hold after the power cut: mode 0 without
// anything that was not synced, 1 with all of it, else with a random part, torn
// into sectors of 512 or 4096 bytes in any order.
func (m *memDisk) after(mode int, rng *rand.Rand) *memImage {
	b := m.durable.clone()
	switch mode {
	case 0:
		return b
	case 1:
		for _, op := range m.pending {
			b.do(op)
		}
		return b
	}
	sector := int64(512)
	if mode%2 == 0 {
		sector = 4096
	}
	for _, op := range m.pending {
		if op.truncate {
			if rng.IntN(3) > 0 && op.off > b.size {
				b.truncate(op.off)
			}
			continue
		}
		for k := int64(0); k < int64(len(op.data)); k += sector {
			if rng.IntN(2) == 0 {
				b.do(memOp{off: op.off + k, data: op.data[k:min(k+sector, int64(len(op.data)))]})
			}
		}
	}
	return b
}

// action is a step of a crash workload on whole sectors.
type action struct {
	flush, zero bool
	off, n      int64
	fill        byte
}

// sectorModel knows which contents a crash may leave in each sector.
type sectorModel struct {
	sure    []byte   // fill after the last flush
	allowed [][]byte // fills written since
}

func (m *sectorModel) note(a action) {
	if a.flush {
		for i, l := range m.allowed {
			if len(l) > 0 {
				m.sure[i], m.allowed[i] = l[len(l)-1], nil
			}
		}
		return
	}
	for s := a.off / 512; s < (a.off+a.n)/512; s++ {
		m.allowed[s] = append(m.allowed[s], a.fill)
	}
}

// check compares whole sectors of the disk from off on.
func (m *sectorModel) check(off int64, b []byte) error {
	for i := int(off / 512); len(b) > 0; i, b = i+1, b[512:] {
		if !bytes.Equal(b[1:512], b[:511]) {
			return fmt.Errorf("sector %d is mixed", i)
		}
		if b[0] != m.sure[i] && bytes.IndexByte(m.allowed[i], b[0]) < 0 {
			return fmt.Errorf("sector %d holds %d, not %d or one of %d", i, b[0], m.sure[i], m.allowed[i])
		}
	}
	return nil
}

// stride is how many operations lie between two power cuts that are tried: every
// one in a full run.
func stride() int {
	if testing.Short() {
		return 4
	}
	return 1
}

const crashSize = crashBlocks*mib + 4096

const crashBlocks = 4

// crashActions makes a workload that meets new blocks, old ones, freed ones and edges.
func crashActions(rng *rand.Rand, n int) []action {
	var out []action
	for i := range n {
		a := action{fill: byte(10 + i)}
		switch rng.IntN(8) {
		case 0, 1:
			a = action{flush: true}
		case 2:
			a.off, a.n = rng.Int64N(crashBlocks)*mib, mib // whole block
			a.zero, a.fill = true, 0
		case 3:
			a.off, a.n = rng.Int64N(crashBlocks)*mib, mib
		case 4:
			a.off = rng.Int64N(crashSize/512) * 512
			a.n = min(rng.Int64N(3000)*512+512, crashSize-a.off)
			a.zero, a.fill = true, 0
		default:
			a.off = rng.Int64N(crashSize/512) * 512
			a.n = min(rng.Int64N(40)*512+512, crashSize-a.off)
		}
		out = append(out, a)
	}
	return out
}

func (a action) do(c *Chain) error {
	switch {
	case a.flush:
		return c.Flush()
	case a.zero:
		return c.Zero(a.off, a.n)
	}
	_, err := c.WriteAt(bytes.Repeat([]byte{a.fill}, int(a.n)), a.off)
	return err
}

// formatted formats a disk in memory.
func formatted(t testing.TB, spec CreateSpec) []byte {
	t.Helper()
	m, err := spec.metadata()
	if err != nil {
		t.Fatal(err)
	}
	d := newMemDisk(nil)
	if err := format(d, m); err != nil {
		t.Fatal(err)
	}
	return d.now.bytes()
}

func openMem(d *memDisk, write bool, parent *memImage) (*Chain, error) {
	f, err := openStorage("mem", d, write)
	if err != nil {
		return nil, err
	}
	c := &Chain{files: []*File{f}}
	if f.meta.hasParent {
		p, err := openStorage("parent", diskOf(parent), false)
		if err != nil {
			return nil, err
		}
		if err := f.fits(p); err != nil {
			return nil, err
		}
		c.files = append(c.files, p)
	}
	return c, nil
}

func contents(c *Chain) ([]byte, error) {
	b := make([]byte, c.Size())
	_, err := c.ReadAt(b, 0)
	return b, err
}

// crashStart makes the image a workload starts from and the model of its content.
func crashStart(t testing.TB, kind Layout) (image []byte, parent *memImage, m *sectorModel) {
	spec := CreateSpec{Size: crashSize, BlockSize: mib, Fixed: kind == Fixed}
	m = &sectorModel{sure: make([]byte, crashSize/512), allowed: make([][]byte, crashSize/512)}
	if kind != Differencing {
		return formatted(t, spec), nil, m
	}
	d := newMemDisk(formatted(t, spec))
	c, err := openMem(d, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := action{off: mib / 2, n: 3 * mib, fill: 5}
	if err := errors.Join(a.do(c), c.Close()); err != nil {
		t.Fatal(err)
	}
	m.note(a)
	m.note(action{flush: true})
	spec.Parent = &Locator{Linkage: c.files[0].hdr.dataWrite, Relative: `.\p.vhdx`}
	spec.ID = c.files[0].meta.id
	return formatted(t, spec), d.now, m
}

// TestCrashPoints cuts the power after every operation of workloads and checks
// every image that may be left: it opens both ways, its structures are right, and
// it holds what was flushed.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	seeds := 2
	if testing.Short() {
		seeds = 1
	}
	for _, kind := range []Layout{Fixed, Dynamic, Differencing} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			dirty, cuts := 0, 0
			for seed := range seeds {
				rng := rand.New(rand.NewPCG(uint64(seed), uint64(kind)))
				actions := crashActions(rng, 20)
				image, parent, _ := crashStart(t, kind)
				for n := 0; ; n += stride() {
					_, _, m := crashStart0(kind)
					d := newMemDisk(image)
					d.left = n
					runCrash(d, parent, actions, m)
					if !d.cut {
						break
					}
					cuts++
					for mode := range 4 {
						was, err := checkCrash(d.after(mode, rng), parent, m)
						if err != nil {
							t.Fatalf("seed %d, cut after %d operations, mode %d: %v", seed, n, mode, err)
						}
						if was {
							dirty++
						}
					}
				}
			}
			t.Logf("%d cuts, %d images with a log to replay", cuts, dirty)
			if cuts*stride() < 15*seeds || kind != Fixed && dirty*stride() < 30*seeds {
				t.Fatalf("only %d cuts and %d logs to replay", cuts, dirty)
			}
		})
	}
}

// crashStart0 is the model alone.
func crashStart0(kind Layout) (_, _ []byte, m *sectorModel) {
	m = &sectorModel{sure: make([]byte, crashSize/512), allowed: make([][]byte, crashSize/512)}
	if kind == Differencing {
		m.note(action{off: mib / 2, n: 3 * mib, fill: 5})
		m.note(action{flush: true})
	}
	return nil, nil, m
}

// runCrash runs actions until one fails. Actions that failed may have had effect.
func runCrash(d *memDisk, parent *memImage, actions []action, m *sectorModel) {
	c, err := openMem(d, true, parent)
	if err != nil {
		return
	}
	for _, a := range actions {
		if !a.flush {
			m.note(a)
		}
		if a.do(c) != nil {
			return
		}
		if a.flush {
			m.note(a)
		}
	}
	c.Close()
}

// checkCrash opens an image for reading and for writing and reports whether its log was dirty.
func checkCrash(image, parent *memImage, m *sectorModel) (dirty bool, err error) {
	r, err := openMem(diskOf(image), false, parent)
	if err != nil {
		return false, fmt.Errorf("open for reading: %w", err)
	}
	if err := r.files[0].Check(); err != nil {
		return false, err
	}
	w, err := openMem(diskOf(image), true, parent)
	if err != nil {
		return false, fmt.Errorf("open for writing: %w", err)
	}
	got, again := make([]byte, 256*kib), make([]byte, 256*kib)
	for off, size := int64(0), r.Size(); off < size; off += int64(len(got)) {
		n := min(int64(len(got)), size-off)
		if _, err := r.ReadAt(got[:n], off); err != nil {
			return false, err
		}
		if err := m.check(off, got[:n]); err != nil {
			return false, err
		}
		if _, err := w.ReadAt(again[:n], off); err != nil || !bytes.Equal(got[:n], again[:n]) {
			return false, fmt.Errorf("reading and writing see different disks at %d (%v)", off, err)
		}
	}
	return r.files[0].logDirty, errors.Join(w.files[0].Check(), w.Close())
}

// TestCrashDuringReplay cuts the power at each operation of a replay, and of the
// replay after that.
func TestCrashDuringReplay(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 7))
	image, parent, _ := crashStart(t, Differencing)
	tried := 0
	for n := 14; n < 60; n += 9 {
		_, _, m := crashStart0(Differencing)
		d := newMemDisk(image)
		d.left = n
		runCrash(d, parent, crashActions(rand.New(rand.NewPCG(0, 3)), 24), m)
		left := d.after(2, rng)
		for k := 0; ; k += stride() {
			e := diskOf(left)
			e.left = k
			_, err := openMem(e, true, parent)
			if !e.cut {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			for mode := range 4 {
				if _, err := checkCrash(e.after(mode, rng), parent, m); err != nil {
					t.Fatalf("cut %d, replay cut %d, mode %d: %v", n, k, mode, err)
				}
				tried++
			}
		}
	}
	if tried*stride() < 100 {
		t.Fatalf("only %d images", tried)
	}
}

// TestQemuAfterCrash lets qemu-img repair what power cuts left and compares the disks.
func TestQemuAfterCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 3))
	image, _, _ := crashStart(t, Dynamic)
	replayed := 0
	for n := 8; n < 90 && replayed < 24/(1+stride())+2; n += 3 {
		_, _, m := crashStart0(Dynamic)
		d := newMemDisk(image)
		d.left = n
		runCrash(d, nil, crashActions(rand.New(rand.NewPCG(1, 2)), 24), m)
		left := d.after(2+n%2, rng)
		c, err := openMem(diskOf(left), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		want, err := contents(c)
		if err != nil {
			t.Fatal(err)
		}
		if !c.files[0].logDirty {
			continue
		}
		replayed++
		path, raw := filepath.Join(dir, fmt.Sprint(n, ".vhdx")), filepath.Join(dir, fmt.Sprint(n, ".raw"))
		if err := errors.Join(os.WriteFile(path, left.bytes(), 0o600), os.WriteFile(raw, want, 0o600)); err != nil {
			t.Fatal(err)
		}
		qemuImg(t, "check", "-f", "vhdx", "-r", "all", path)
		qemuImg(t, "check", "-f", "vhdx", path)
		qemuImg(t, "compare", "-f", "vhdx", "-F", "raw", path, raw)
		// And what qemu-img left is a clean file for us.
		f, err := Open(path, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if f.logDirty || f.Check() != nil {
			t.Fatal("not clean after qemu-img check")
		}
		f.Close()
	}
	if replayed < 5 {
		t.Fatalf("only %d logs were replayed by qemu-img", replayed)
	}
}

// TestMergeCrashPoints cuts the power of child and parent at every operation of a
// merge: the chain still reads the same, and a second merge comes to the end.
func TestMergeCrashPoints(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(4, 4))
	image, parent, _ := crashStart(t, Differencing)
	d := newMemDisk(image)
	_, _, m := crashStart0(Differencing)
	runCrash(d, parent, crashActions(rng, 14), m)
	child := d.now
	want := chainContents(t, child, parent)
	linkage := func(b *memImage) (dataWrite GUID, l Locator) {
		f, err := openStorage("mem", diskOf(b), false)
		if err != nil {
			t.Fatal(err)
		}
		return f.hdr.dataWrite, f.meta.parent
	}
	was, _ := linkage(parent)
	middle := 0
	for n := 0; ; n += stride() {
		c, p := diskOf(child), diskOf(parent)
		p.power = c.power
		c.left = n
		if err := mergeMem(t, c, p); err == nil {
			break
		}
		for mode := range 3 {
			left, half := c.after(mode, rng), p.after(mode, rng)
			now, _ := linkage(half)
			if id, _ := linkage(left); now != was && now != id {
				middle++
			}
			if now != was {
				if id, l := linkage(left); now != id && now != l.Linkage2 {
					t.Fatalf("cut %d: the parent has a GUID the child does not know", n)
				} else if now == id { // finished: the parent alone is the disk
					left = half
				}
			}
			if got := chainContents(t, left, half); !bytes.Equal(got, want) {
				t.Fatalf("cut %d, mode %d: the chain reads otherwise", n, mode)
			}
			if left == half {
				continue
			}
			q := diskOf(half)
			if err := mergeMem(t, diskOf(left), q); err != nil {
				t.Fatalf("cut %d, mode %d: merge again: %v", n, mode, err)
			}
			if got := chainContents(t, q.now, nil); !bytes.Equal(got, want) {
				t.Fatalf("cut %d, mode %d: the merged disk is another one", n, mode)
			}
		}
	}
	if middle < 5 {
		t.Fatalf("only %d images in mid-merge", middle)
	}
}

func mergeMem(t *testing.T, c, p *memDisk) error {
	cf, err := openStorage("child", c, true)
	if err != nil {
		return err
	}
	pf, err := openStorage("parent", p, true)
	if err != nil {
		return err
	}
	return errors.Join(merge(t.Context(), cf, pf, nil), pf.Close(), cf.Close())
}

func chainContents(t *testing.T, image, parent *memImage) []byte {
	t.Helper()
	c, err := openMem(diskOf(image), false, parent)
	if err != nil {
		t.Fatal(err)
	}
	b, err := contents(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
