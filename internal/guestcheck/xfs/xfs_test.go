package xfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

// image makes a file system with mkfs.xfs from a prototype file.
func image(t testing.TB, args ...string) (string, map[string]string) {
	t.Helper()
	files := map[string]string{"etc/fstab": "UUID=x / xfs defaults 0 0\n", "boot/big": strings.Repeat("0123456789abcdef", 1<<15) + "end", "usr/lib/os": "NAME=x\n"}
	for k := range 600 {
		files[fmt.Sprintf("many/a-file-with-a-long-name-%04d", k)] = fmt.Sprint(k)
	}
	for k := range 40 {
		files[fmt.Sprintf("block/file-%02d", k)] = fmt.Sprint(k)
	}
	files["lib"], files["abs"], files["up"], files["loop"] = imagetest.Link+"usr/lib", imagetest.Link+"/etc/fstab", imagetest.Link+"usr/../etc/fstab", imagetest.Link+"loop"
	files["long"] = imagetest.Link + strings.Repeat("./", 250) + "etc/fstab"
	img := imagetest.XFS(t, files, args...)
	for _, n := range []string{"lib", "abs", "up", "loop", "long"} {
		delete(files, n)
	}
	return img, files
}

func TestReadsWhatMkfsWrites(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"v5":      {"-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"},
		"v4":      {"-m", "crc=0,uuid=01234567-89ab-cdef-0123-456789abcdef"},
		"1k":      {"-b", "size=1024", "-n", "size=4096", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"},
		"nrext64": {"-i", "nrext64=1", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, files := image(t, args...)
			r, size := imagetest.Open(t, img)
			f, err := Open(r, size)
			if err != nil {
				t.Fatal(err)
			}
			if f.UUID() != "01234567-89ab-cdef-0123-456789abcdef" || f.Label() != "label" {
				t.Errorf("%s %s", f.UUID(), f.Label())
			}
			files["lib/os"], files["abs"], files["up"], files["long"] = files["usr/lib/os"], files["etc/fstab"], files["etc/fstab"], files["etc/fstab"]
			for n, want := range files {
				c, err := f.Open(n)
				if err != nil {
					t.Errorf("%s: %v", n, err)
					continue
				}
				if got, err := io.ReadAll(c); err != nil || string(got) != want {
					t.Errorf("%s: %d bytes, want %d, %v", n, len(got), len(want), err)
				}
			}
			for d, want := range map[string]int{"/many": 600, "/block": 40, "/usr": 1, "/": 10} {
				if names, err := f.ReadDir(d); err != nil || len(names) != want {
					t.Errorf("%s: %d names, want %d, %v", d, len(names), want, err)
				}
			}
			for _, n := range []string{"/none", "/many/none", "/etc/fstab/x"} {
				if _, err := f.Open(n); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", n, err)
				}
			}
			if _, err := f.Open("/loop"); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("loop: %v", err)
			}
		})
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	b := make([]byte, 512)
	if _, err := Open(bytes.NewReader(b), 512); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	copy(b, "XFSB")
	b[101] = 5
	if _, err := Open(bytes.NewReader(b), 512); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	b[219], b[217] = 0, 1
	if _, err := Open(bytes.NewReader(b), 512); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

// patched is an image with bytes replaced.
type patched struct {
	base io.ReaderAt
	at   int64
	with []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.base.ReadAt(b, off)
	for k := range p.with {
		if i := p.at + int64(k) - off; i >= 0 && i < int64(n) {
			b[i] = p.with[k]
		}
	}
	return n, err
}

func FuzzRead(f *testing.F) {
	img, _ := image(f)
	r, size := imagetest.Open(f, img)
	sb, err := Open(r, size)
	if err != nil {
		f.Fatal(err)
	}
	root, err := sb.place(sb.root >> sb.inoLog)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int64(4), []byte{0})
	f.Add(root+56, []byte{0xff})
	f.Add(root+176, []byte{9, 9, 9})
	f.Fuzz(func(t *testing.T, at int64, with []byte) {
		at = (at%size + size) % size
		x, err := Open(patched{r, at, with}, size)
		if err != nil {
			return
		}
		for _, d := range []string{"/", "/many", "/block", "/lib"} {
			_, _ = x.ReadDir(d)
		}
		if c, err := x.Open("/boot/big"); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20))
		}
	})
}
