package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dirtyImage is a dynamic disk with an entry in its log that is not in its place.
func dirtyImage(t testing.TB) []byte {
	t.Helper()
	d := newMemDisk(formatted(t, CreateSpec{Size: 8 * mib, BlockSize: mib}))
	c, err := openMem(d, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte("first"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte("second"), 3*mib); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	b := d.after(0, nil).bytes() // the pages of the second entry were not synced
	if f, err := openStorage("mem", newMemDisk(b), false); err != nil || !f.logDirty {
		t.Fatal("the image is not dirty", err)
	}
	return b
}

// fix puts right all checksums of headers and region tables.
func fix(b []byte) {
	for _, at := range []int64{headerA, headerB} {
		putChecksum(b[at : at+pageSize])
	}
	for _, at := range []int64{regionA, regionB} {
		putChecksum(b[at : at+tableSize])
	}
}

// both applies a change to both copies of a structure and puts the checksums right.
func both(a, b int64, fn func(p []byte)) func([]byte) []byte {
	return func(img []byte) []byte {
		fn(img[a:])
		fn(img[b:])
		fix(img)
		return img
	}
}

func at(off int64, p ...byte) func([]byte) []byte {
	return func(img []byte) []byte {
		copy(img[off:], p)
		return img
	}
}

// TestRefusals breaks one rule at a time.
func TestRefusals(t *testing.T) {
	t.Parallel()
	const meta, bat = 2 * mib, 3 * mib
	size := meta + tableSize + 8
	u32 := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	child := formatted(t, CreateSpec{Size: 8 * mib, Parent: &Locator{Linkage: NewGUID(), Relative: `.\p.vhdx`}})
	clean := formatted(t, CreateSpec{Size: 8 * mib, BlockSize: mib})
	dirty := dirtyImage(t)
	for _, c := range []struct {
		name      string
		image     []byte
		change    func([]byte) []byte
		want      error
		structure string
	}{
		{"empty file", clean, func([]byte) []byte { return nil }, ErrNotVHDX, "file type identifier"},
		{"signature", clean, at(0, 'x'), ErrNotVHDX, "file type identifier"},
		{"both headers broken", clean, func(b []byte) []byte { b[headerA+100]++; b[headerB+100]++; return b }, ErrDamaged, "header"},
		{"equal sequence numbers", clean, func(b []byte) []byte { copy(b[headerA+8:], b[headerB+8:headerB+16]); b[headerA+16]++; fix(b); return b }, ErrDamaged, "header"},
		{"version", clean, both(headerA, headerB, func(p []byte) { p[66] = 2 }), ErrUnsupported, "header"},
		{"log version", dirty, both(headerA, headerB, func(p []byte) { p[64] = 1 }), ErrUnsupported, "header"},
		{"log offset", clean, both(headerA, headerB, func(p []byte) { p[72] = 1 }), ErrDamaged, "header"},
		{"log length", clean, both(headerA, headerB, func(p []byte) { copy(p[68:], u32(0)) }), ErrDamaged, "header"},
		{"huge log", clean, both(headerA, headerB, func(p []byte) { copy(p[68:], u32(1<<31)) }), ErrUnsupported, "header"},
		{"no log sequence", clean, both(headerA, headerB, func(p []byte) { p[50] = 9 }), ErrDamaged, "log"},
		{"a log entry rots", dirty, func(b []byte) []byte {
			for off := mib; off < 2*mib; off += pageSize {
				b[off+200] ^= 1
			}
			return b
		}, ErrDamaged, "log"},
		{"cut short", dirty, func(b []byte) []byte { return b[:len(b)-1] }, ErrDamaged, "log"},
		{"region tables broken", clean, func(b []byte) []byte { b[regionA+70]++; b[regionB+70]++; return b }, ErrDamaged, "region table"},
		{"region count", clean, both(regionA, regionB, func(p []byte) { copy(p[8:], u32(2048)) }), ErrDamaged, "region table"},
		{"region twice", clean, both(regionA, regionB, func(p []byte) { copy(p[48:], p[16:32]) }), ErrDamaged, "region table"},
		{"regions overlap", clean, both(regionA, regionB, func(p []byte) { copy(p[64:], p[32:40]) }), ErrDamaged, "region table"},
		{"region on the log", clean, both(regionA, regionB, func(p []byte) { copy(p[32:], u64(uint64(mib))) }), ErrDamaged, "region table"},
		{"region alignment", clean, both(regionA, regionB, func(p []byte) { p[33] = 0x10 }), ErrDamaged, "region table"},
		{"region missing", clean, both(regionA, regionB, func(p []byte) { copy(p[8:], u32(1)) }), ErrDamaged, "region table"},
		{"unknown required region", clean, both(regionA, regionB, func(p []byte) {
			copy(p[8:], u32(3))
			copy(p[80:], "unknown region..")
			copy(p[96:], u64(uint64(64*mib)))
			copy(p[104:], u32(uint32(mib)))
			p[108] = 1
		}), ErrUnsupported, "region table"},
		{"BAT behind the end", clean, both(regionA, regionB, func(p []byte) { copy(p[32:], u64(uint64(64*mib))) }), ErrDamaged, "region table"},
		{"BAT too small", clean, at(size, u64(uint64(8*tib))...), ErrDamaged, "BAT"},
		{"metadata signature", clean, at(meta, 'M'), ErrDamaged, "metadata"},
		{"metadata count", clean, at(meta+10, 0xff, 0xff), ErrDamaged, "metadata"},
		{"metadata item outside", clean, at(meta+32+16, u32(1)...), ErrDamaged, "metadata"},
		{"metadata item twice", clean, func(b []byte) []byte { copy(b[meta+64:], b[meta+32:meta+48]); return b }, ErrDamaged, "metadata"},
		{"metadata items overlap", clean, func(b []byte) []byte { copy(b[meta+64+16:], b[meta+32+16:meta+32+20]); return b }, ErrDamaged, "metadata"},
		{"unknown required item", clean, at(meta+32, 1, 2, 3), ErrUnsupported, "metadata"},
		{"item missing", clean, func(b []byte) []byte { b[meta+32]++; b[meta+32+24] = 0; return b }, ErrDamaged, "metadata"},
		{"item length", clean, at(meta+32+20, 7), ErrDamaged, "metadata"},
		{"block size", clean, at(meta+tableSize, u32(3<<20)...), ErrDamaged, "metadata"},
		{"size", clean, at(size, 1), ErrDamaged, "metadata"},
		{"parent without locator", clean, at(meta+tableSize+4, 2), ErrDamaged, "metadata"},
		{"locator type", child, at(meta+tableSize+8*5+16-8, 1), ErrUnsupported, "parent locator"},
		{"locator count", child, at(meta+tableSize+8*5+16-8+18, 0xff, 0xff), ErrDamaged, "parent locator"},
		{"BAT state", clean, at(bat, 5), ErrDamaged, "BAT"},
		{"partial block without parent", clean, at(bat, u64(4<<20|7)...), ErrDamaged, "BAT"},
		{"block behind the end", clean, at(bat, u64(4<<20|6)...), ErrDamaged, "BAT"},
		{"block on the metadata", clean, at(bat, u64(2<<20|6)...), ErrDamaged, "BAT"},
		{"block in the header", clean, at(bat, u64(6)...), ErrDamaged, "BAT"},
		{"partial block without bitmap", append(bytes.Clone(child), make([]byte, 4*mib)...), at(bat, u64(4<<20|7)...), ErrDamaged, "BAT"},
		{"blocks overlap", append(bytes.Clone(clean), make([]byte, 4*mib)...), at(bat, append(u64(4<<20|6), u64(4<<20|6)...)...), ErrDamaged, "BAT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image := c.change(bytes.Clone(c.image))
			for _, write := range []bool{false, true} {
				f, err := openStorage("some.vhdx", newMemDisk(image), write)
				if err == nil {
					err = f.Check()
				}
				var e *Error
				if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Structure != c.structure || !strings.Contains(err.Error(), "some.vhdx") {
					t.Fatalf("write %v: %v", write, err)
				}
			}
		})
	}
}

// TestSecondCopies loses one copy of what stands twice.
func TestSecondCopies(t *testing.T) {
	t.Parallel()
	for _, off := range []int64{headerA, headerB, regionA, regionB} {
		image := dirtyImage(t)
		for i := range int64(64) {
			image[off+i] = 0xee
		}
		c, err := openMem(newMemDisk(image), false, nil)
		if err != nil {
			t.Fatal(off, err)
		}
		b, err := contents(c)
		if err != nil || string(b[:5]) != "first" || string(b[3*mib:3*mib+6]) != "second" {
			t.Fatal(off, err)
		}
	}
}

// TestReadingChangesNothing opens a dirty file for reading only.
func TestReadingChangesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.vhdx")
	image := dirtyImage(t)
	if err := os.WriteFile(path, image, 0o444); err != nil {
		t.Fatal(err)
	}
	c, err := OpenChain(path, ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := contents(c)
	if err != nil || string(b[3*mib:3*mib+6]) != "second" {
		t.Fatal("the log was not replayed in memory", err)
	}
	in, err := c.Info()
	if err != nil || !in.LogDirty {
		t.Fatal(in, err)
	}
	if _, err := c.WriteAt([]byte("x"), 0); !errors.Is(err, ErrReadOnly) {
		t.Fatal(err)
	}
	if err := c.Zero(0, mib); !errors.Is(err, ErrReadOnly) {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(b[:1], 0); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(after, image) {
		t.Fatal("the file changed", err)
	}
}

// TestZeroDescriptors replays a log that zeroes ranges, as Windows writes them.
func TestZeroDescriptors(t *testing.T) {
	t.Parallel()
	base := dirtyImage(t)
	f, err := openStorage("mem", newMemDisk(base), false)
	if err != nil {
		t.Fatal(err)
	}
	h := f.hdr
	e, err := f.payload(0)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{0xab}, pageSize)
	for _, order := range []string{"zero then data", "data then zero"} {
		image := bytes.Clone(base)
		entry := encodeEntry(h.log, 100, 0, int64(len(image)), []update{{off: e.off, data: page}, {off: e.off, data: page}})
		zero := entry[logHeaderSize:][:descriptorSize]
		if order == "data then zero" {
			zero = entry[logHeaderSize+descriptorSize:][:descriptorSize]
		}
		clear(zero)
		copy(zero, "zero")
		le.PutUint64(zero[8:], 2*pageSize)
		le.PutUint64(zero[16:], uint64(e.off))
		le.PutUint64(zero[24:], 100)
		entry = entry[:2*pageSize]
		le.PutUint32(entry[8:], 2*pageSize)
		putChecksum(entry)
		clear(image[mib : 2*mib])
		copy(image[mib:], entry)
		want := bytes.Repeat([]byte{0xab}, pageSize)
		if order == "data then zero" {
			clear(want)
		}
		for _, write := range []bool{false, true} {
			c, err := openMem(newMemDisk(image), write, nil)
			if err != nil {
				t.Fatal(order, err)
			}
			got := make([]byte, 2*pageSize)
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got[:pageSize], want) || !bytes.Equal(got[pageSize:], make([]byte, pageSize)) {
				t.Fatal(order, write, err, got[:8])
			}
		}
	}
}

// TestGUIDs: when which GUID changes, [MS-VHDX] 2.2.2.
func TestGUIDs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.vhdx")
	f, err := Create(path, CreateSpec{Size: 10 * mib})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := f.Info()
	f.Close()
	f, err = Open(path, OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	opened, _ := f.Info()
	if opened.FileWrite == first.FileWrite || opened.DataWrite != first.DataWrite || opened.ID != first.ID {
		t.Fatal("opening for writing changes FileWriteGuid alone")
	}
	if _, err := Open(path, OpenOptions{Write: true}); !errors.Is(err, ErrInUse) {
		t.Fatal("a second writer:", err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	written, _ := f.Info()
	if _, err := f.WriteAt([]byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	again, _ := f.Info()
	if written.DataWrite == first.DataWrite || again.DataWrite != written.DataWrite || again.AllocatedBytes != 32*mib {
		t.Fatal("the first write changes DataWriteGuid", again)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f, err = Open(path, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if read, _ := f.Info(); read.DataWrite != written.DataWrite || read.FileWrite != opened.FileWrite || read.LogDirty {
		t.Fatal(read)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken.vhdx")
	if err := os.WriteFile(taken, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(taken, CreateSpec{Size: mib}); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(taken); string(b) != "precious" {
		t.Fatal("an existing file was touched")
	}
	path := filepath.Join(dir, "a.vhdx")
	for _, s := range []CreateSpec{{}, {Size: -512}, {Size: 100}, {Size: MaxSize + 512}, {Size: mib, BlockSize: 3 * mib}, {Size: mib, BlockSize: 512 * mib},
		{Size: mib, LogicalSector: 520}, {Size: 512, LogicalSector: 4096}, {Size: mib, Parent: &Locator{}},
		{Size: mib, Parent: &Locator{Linkage: NewGUID(), Relative: strings.Repeat("x", 40000)}}} {
		if _, err := Create(path, s); !errors.Is(err, ErrRange) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a refused Create left a file", err)
	}
	if _, err := Open(path, OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestParents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, sub := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := Create(base, CreateSpec{Size: 5 * mib})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	child := filepath.Join(sub, "child.avhdx")
	f, err = CreateChild(child, base, CreateSpec{})
	if err != nil {
		t.Fatal(err)
	}
	in, _ := f.Info()
	if in.Parent.Relative != `..\base.vhdx` || in.BlockSize != 2*mib || in.Layout != Differencing || in.Size != 5*mib {
		t.Fatalf("%+v", in)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrHasParent) {
		t.Fatal(err)
	}
	f.Close()
	open := func() error {
		c, err := OpenChain(child, ChainOptions{})
		if err != nil {
			return err
		}
		list, err := c.Files()
		if err != nil || len(list) != 2 || list[0].ID != list[1].ID {
			t.Error(list, err)
		}
		return c.Close()
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(dir, "moved.vhdx")
	if err := os.Rename(base, moved); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, ErrParentNotFound) {
		t.Fatal(err)
	}
	if err := Reparent(child, Locator{Relative: `..\nowhere.vhdx`, Absolute: `\\?\` + strings.ReplaceAll(moved, "/", `\`)}); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	if f, err = Open(moved, OpenOptions{Write: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("behind the child's back"), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := open(); !errors.Is(err, ErrParentMismatch) {
		t.Fatal(err)
	}
	if err := Merge(context.Background(), child, moved, nil); !errors.Is(err, ErrParentMismatch) {
		t.Fatal(err)
	}
	if err := Merge(context.Background(), moved, child, nil); !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	// A file that is its own parent.
	if err := Reparent(child, Locator{Relative: `.\child.avhdx`}); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, ErrParentMismatch) {
		t.Fatal(err)
	}
}

// TestStaleBits: bits of a block that is not present count for nothing, also later.
func TestStaleBits(t *testing.T) {
	t.Parallel()
	image, parent, _ := crashStart(t, Differencing)
	d := newMemDisk(image)
	c, err := openMem(d, true, parent)
	if err != nil {
		t.Fatal(err)
	}
	f := c.files[0]
	if _, err := c.WriteAt(bytes.Repeat([]byte{9}, 512), 0); err != nil { // allocates the bitmap
		t.Fatal(err)
	}
	base, err := f.bitmapAt(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.setBits(base+f.bitmapBytes(), 0, mib/512); err != nil { // block 1
		t.Fatal(err)
	}
	if _, err := c.WriteAt(bytes.Repeat([]byte{8}, 512), mib+4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 512)
	if _, err := c.ReadAt(got, mib); err != nil || got[0] != 5 {
		t.Fatalf("the parent's 5 reads as %d (%v)", got[0], err)
	}
}

// TestSpaceIsUsedAgain zeroes and rewrites blocks: the file does not grow.
func TestSpaceIsUsedAgain(t *testing.T) {
	t.Parallel()
	d := newMemDisk(formatted(t, CreateSpec{Size: 8 * mib, BlockSize: mib}))
	c, err := openMem(d, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		off := int64(i%8) * mib
		if _, err := c.WriteAt([]byte{1, 2, 3}, off+77); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, mib)
		if _, err := c.ReadAt(got, off); err != nil || !bytes.Equal(got[77:80], []byte{1, 2, 3}) || bytes.Count(got, []byte{0}) != int(mib)-3 {
			t.Fatal("used space does not read as zeros", err)
		}
		if err := errors.Join(c.Zero(off, mib), c.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	in, err := c.Info()
	if err != nil || in.FileSize > 6*mib || in.AllocatedBytes != 0 {
		t.Fatalf("%d bytes, %d allocated (%v)", in.FileSize, in.AllocatedBytes, err)
	}
}

// TestResizeCrashPoints grows a disk so that the BAT has to move, with power cuts.
func TestResizeCrashPoints(t *testing.T) {
	t.Parallel()
	const before, after = 120 * gib, 300 * gib // 1 MiB of BAT serves 128 GiB of 1 MiB blocks
	d := newMemDisk(formatted(t, CreateSpec{Size: before + 4096, BlockSize: mib}))
	c, err := openMem(d, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	mark := []byte("to be found again")
	for _, off := range []int64{0, 77 * gib, before} {
		if _, err := c.WriteAt(mark, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(8, 8))
	old, grown := 0, 0
	for n := 0; ; n += stride() {
		e := diskOf(d.now)
		e.left = n
		f, err := openStorage("mem", e, true)
		if err == nil {
			err = errors.Join(f.Resize(after), f.Close())
		}
		for mode := range 4 {
			g, err := openMem(diskOf(e.after(mode, rng)), mode%2 == 0, nil)
			if err != nil {
				t.Fatal(n, mode, err)
			}
			switch g.Size() {
			case before + 4096:
				old++
			case after:
				grown++
				got := make([]byte, 1000)
				if _, err := g.ReadAt(got, before+4096); err != nil || !bytes.Equal(got, make([]byte, 1000)) {
					t.Fatal("the new part is not zero", err)
				}
				if _, err := g.ReadAt(got, after-1000); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatal("size", g.Size())
			}
			for _, off := range []int64{0, 77 * gib, before} {
				got := make([]byte, len(mark))
				if _, err := g.ReadAt(got, off); err != nil || !bytes.Equal(got, mark) {
					t.Fatal(n, mode, off, err)
				}
			}
			if err := g.files[0].Check(); err != nil {
				t.Fatal(err)
			}
		}
		if err == nil {
			break
		}
	}
	if old*stride() < 10 || grown*stride() < 10 {
		t.Fatal(old, grown)
	}
	if err := Resize(filepath.Join(t.TempDir(), "none"), gib); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestResizeFiles grows fixed and dynamic files for qemu-img to check.
func TestResizeFiles(t *testing.T) {
	t.Parallel()
	for _, fixed := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "a.vhdx")
		f, err := Create(path, CreateSpec{Size: 3*mib + 512, Fixed: fixed, BlockSize: mib})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("end"), 3*mib+509); err != nil {
			t.Fatal(err)
		}
		if err := f.Resize(2 * mib); !errors.Is(err, ErrRange) {
			t.Fatal(err)
		}
		f.Close()
		if err := Resize(path, 40*mib); err != nil {
			t.Fatal(err)
		}
		qemuImg(t, "check", "-f", "vhdx", path)
		raw := filepath.Join(t.TempDir(), "a.raw")
		qemuImg(t, "convert", "-f", "vhdx", "-O", "raw", path, raw)
		b, err := os.ReadFile(raw)
		if err != nil || len(b) != int(40*mib) || string(b[3*mib+509:3*mib+512]) != "end" || bytes.Count(b, []byte{0}) != len(b)-3 {
			t.Fatal("qemu-img reads another disk", len(b), err)
		}
	}
}

// TestLargestDisk: 64 TiB cost little.
func TestLargestDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.vhdx")
	f, err := Create(path, CreateSpec{Size: MaxSize, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 9))
	for range 60 {
		off := rng.Int64N(MaxSize/4096) * 4096
		p := fmt.Appendf(nil, "at %d", off)
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(p))
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
			t.Fatal(err)
		}
	}
	if n := len(f.pages.pages); n > maxPages {
		t.Fatalf("%d pages", n)
	}
	c, _ := f.alone()
	data := int64(0)
	if err := c.Extents(0, MaxSize, func(_, n int64, zero bool) error {
		if !zero {
			data += n
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if in, err := f.Info(); err != nil || in.AllocatedBytes != data || data < 50*32*mib {
		t.Fatal(in, data, err)
	}
	if _, err := f.WriteAt([]byte("xx"), MaxSize-1); !errors.Is(err, ErrRange) {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); !errors.Is(err, ErrRange) {
		t.Fatal(err)
	}
}

func TestGUIDText(t *testing.T) {
	t.Parallel()
	const s = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	g, err := ParseGUID("{" + strings.ToUpper(s) + "}")
	if err != nil || g.String() != s || g[0] != 0x66 || g[8] != 0x9d {
		t.Fatal(g, err)
	}
	for _, bad := range []string{"", "{}", s[1:], s + "0", strings.Replace(s, "-", "x", 1), "{" + s, strings.Replace(s, "2", "g", 1)} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if a, b := NewGUID(), NewGUID(); a == b || a.IsZero() {
		t.Error(a, b)
	}
}
