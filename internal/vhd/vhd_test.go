package vhd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestFooterRoundTrip(t *testing.T) {
	t.Parallel()
	want := Footer{Size: 104857600, OriginalSize: 1 << 20, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Creator: [4]byte{'h', 'd', 'f', 's'},
		CreatorVersion: 0x10002, HostOS: [4]byte{'M', 'a', 'c', ' '}, ID: [16]byte{1, 2, 3}, Kind: Fixed, Saved: true}
	b, err := EncodeFooter(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeFooter(b)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i := range 85 {
		c := bytes.Clone(b)
		c[i] ^= 0x40
		if _, err := DecodeFooter(c); err == nil {
			t.Errorf("a flipped bit in byte %d went unnoticed", i)
		}
	}
}

func TestGeometry(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size int64
		c    uint16
		h, s uint8
	}{
		{512, 0, 4, 17},
		{100 << 20, 1003, 12, 17},
		{1 << 30, 2080, 16, 63},
		{127 << 30, 65278, 16, 255},
		{2040 << 30, 65535, 16, 255},
		{4095 << 30, 65535, 16, 255},
		{32 << 40, 65535, 16, 255},
	} {
		gc, gh, gs := Geometry(c.size)
		if gc != c.c || gh != c.h || gs != c.s {
			t.Errorf("%d: %d/%d/%d, want %d/%d/%d", c.size, gc, gh, gs, c.c, c.h, c.s)
		}
	}
}

func TestCreateAndOpen(t *testing.T) {
	t.Parallel()
	f := create(t, filepath.Join(t.TempDir(), "a.vhd"))
	w, err := Create(f, Footer{Size: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("end"), 3<<20-3); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("end!"), 3<<20-3); !errors.Is(err, ErrSize) {
		t.Fatalf("a write over the footer: %v", err)
	}
	d, err := Open(f, 3<<20+FooterSize)
	if err != nil || d.Size() != 3<<20 {
		t.Fatal(d, err)
	}
	p := make([]byte, 8)
	if n, err := d.ReadAt(p, 3<<20-3); n != 3 || err != io.EOF || string(p[:3]) != "end" {
		t.Fatal(n, err, p)
	}
	if _, err := Open(f, 3<<20); !errors.Is(err, ErrNotVHD) {
		t.Fatalf("without footer: %v", err)
	}
	if _, err := Open(bytes.NewReader(nil), 0); !errors.Is(err, ErrNotVHD) {
		t.Fatalf("empty: %v", err)
	}
	b, _ := EncodeFooter(Footer{Size: 1 << 20})
	if _, err := Open(bytes.NewReader(b), FooterSize); !errors.Is(err, ErrDamaged) {
		t.Fatalf("data missing: %v", err)
	}
}

func TestOtherKindsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for kind, want := range map[Kind]error{Dynamic: ErrDynamic, Differencing: ErrDifferencing} {
		b, _ := EncodeFooter(Footer{Size: 1 << 20})
		binary.BigEndian.PutUint32(b[60:], uint32(kind))
		binary.BigEndian.PutUint32(b[64:], checksum(b))
		if _, err := Open(bytes.NewReader(b), FooterSize); !errors.Is(err, want) {
			t.Errorf("kind %d: %v", kind, err)
		}
		if _, err := EncodeFooter(Footer{Size: 1 << 20, Kind: kind}); !errors.Is(err, want) {
			t.Errorf("encode kind %d: %v", kind, err)
		}
	}
	path := filepath.Join(t.TempDir(), "dyn.vhd")
	qemu(t, "create", "-f", "vpc", path, "10M")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	if _, err := Open(f, st.Size()); !errors.Is(err, ErrDynamic) {
		t.Errorf("a dynamic file of qemu-img: %v", err)
	}
}

// TestLarge: a footer says 64 bits of size, a file is what Hyper-V opens.
func TestLarge(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{MaxSize + 1<<20, 4095 << 30, MaxPageBlob, MaxFixed} {
		b, err := EncodeFooter(Footer{Size: size, ID: [16]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		if c := [4]byte(b[56:60]); c != [4]byte{0xff, 0xff, 16, 255} {
			t.Errorf("%d: the geometry is % x", size, c)
		}
		if got, err := DecodeFooter(b); err != nil || got.Size != size || got.OriginalSize != size {
			t.Errorf("%d: %+v, %v", size, got, err)
		}
		f, err := Open(tail{b, size}, size+FooterSize)
		if err != nil || f.Size() != size {
			t.Errorf("%d: open: %v", size, err)
		}
	}
	if _, err := EncodeFooter(Footer{Size: MaxFixed + 512}); !errors.Is(err, ErrSize) {
		t.Errorf("too large: %v", err)
	}
	b, err := EncodeFooter(Footer{Size: MaxFixed})
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(b[48:], uint64(MaxFixed)+512)
	binary.BigEndian.PutUint32(b[64:], checksum(b))
	if _, err := DecodeFooter(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("too large: %v", err)
	}
	path := filepath.Join(t.TempDir(), "large.vhd")
	f := create(t, path)
	if _, err := Create(f, Footer{Size: MaxSize + 1<<20}); !errors.Is(err, ErrSize) {
		t.Errorf("a file that is too large: %v", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("the file was written: %v, %v", st, err)
	}
	if _, err := Create(f, Footer{Size: MaxSize}); err != nil {
		t.Fatal(err)
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(qemu(t, "info", "-f", "vpc", "--output=json", path), &info); err != nil || info.Size != MaxSize {
		t.Errorf("qemu-img sees %d bytes (%v), want %d", info.Size, err, MaxSize)
	}
}

// tail is a file of which only the footer is read.
type tail struct {
	b  []byte
	at int64
}

func (r tail) ReadAt(p []byte, off int64) (int, error) { return copy(p, r.b[off-r.at:]), nil }

func TestAzure(t *testing.T) {
	t.Parallel()
	const mib, tib = int64(1) << 20, int64(1) << 40
	for _, c := range []struct {
		size       int64
		blob, disk bool
	}{
		{0, false, false},
		{-5, false, false},
		{mib, true, true},
		{mib + 512, false, false},
		{MaxSize + mib, true, true},
		{4095 << 30, true, true},
		{8*tib - mib, true, true}, // with the footer within the 8 TiB of a page blob
		{8*tib - 512, false, false},
		{8 * tib, false, true},
		{32 * tib, false, true},
		{32*tib + mib, false, false},
		{1<<63 - 1, false, false},
	} {
		for name, x := range map[string]struct {
			err error
			ok  bool
		}{"page blob": {CheckAzure(c.size), c.blob}, "managed disk": {CheckAzureDisk(c.size), c.disk}} {
			if (x.err == nil) != x.ok || x.err != nil && !errors.Is(x.err, ErrSize) {
				t.Errorf("%s of %d: %v", name, c.size, x.err)
			}
		}
	}
	if RoundAzure(0) != 1<<20 || RoundAzure(1<<20) != 1<<20 || RoundAzure(1<<20+1) != 2<<20 || CheckAzureDisk(RoundAzure(1<<63-1)) == nil {
		t.Error("RoundAzure")
	}
}

// TestQemu lets qemu-img read what Create wrote, and Open read what qemu-img wrote.
func TestQemu(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, mb := range []int64{1, 7, 100, 513} {
		size := mb << 20
		path, raw := filepath.Join(dir, fmt.Sprint(mb, ".vhd")), filepath.Join(dir, fmt.Sprint(mb, ".raw"))
		data := make([]byte, 100_000)
		rng := rand.NewChaCha8([32]byte{byte(mb)})
		rng.Read(data)
		f := create(t, path)
		w, err := Create(f, Footer{Size: size, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		r := create(t, raw)
		if err := r.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, size / 2, size - int64(len(data))} {
			if _, err := w.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
			if _, err := r.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
		}
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err := json.Unmarshal(qemu(t, "info", "-f", "vpc", "--output=json", path), &info); err != nil || info.Size != size {
			t.Fatalf("qemu-img sees %d bytes (%v), want %d", info.Size, err, size)
		}
		qemu(t, "compare", "-f", "vpc", "-F", "raw", path, raw)
		theirs := filepath.Join(dir, fmt.Sprint(mb, "-theirs.vhd"))
		qemu(t, "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, theirs)
		g, err := os.Open(theirs)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		st, _ := g.Stat()
		d, err := Open(g, st.Size())
		if err != nil || d.Size() != size || d.Footer().Creator != [4]byte{'q', 'e', 'm', '2'} {
			t.Fatal(d, err)
		}
		got, want := make([]byte, size), make([]byte, size)
		if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(want, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatal("the bytes differ", err)
		}
	}
}

func FuzzDecodeFooter(f *testing.F) {
	b, _ := EncodeFooter(Footer{Size: 1 << 20})
	f.Add(b)
	f.Add([]byte("conectix"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= FooterSize {
			b = bytes.Clone(b)
			binary.BigEndian.PutUint32(b[64:], checksum(b[:FooterSize]))
		}
		got, err := DecodeFooter(b)
		if err != nil || got.Kind != Fixed {
			return
		}
		if _, err := EncodeFooter(got); err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", got, err)
		}
	})
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func qemu(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).Output()
	if err != nil {
		t.Fatalf("qemu-img %v (package qemu-utils): %v: %s", args, err, out)
	}
	return out
}
