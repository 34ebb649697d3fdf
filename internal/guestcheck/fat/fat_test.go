package fat

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

func files() map[string]string {
	return map[string]string{
		"EFI/BOOT/BOOTX64.EFI":                         strings.Repeat("MZ..", 5000),
		"EFI/debian/shimx64.efi":                       "MZ",
		"loader/entries/A long name with ünicode.conf": "title x\noptions root=UUID=1\n",
		"syslinux.cfg":                                 "DEFAULT linux\nLABEL linux\n  KERNEL /vmlinuz\n  APPEND root=/dev/sda2 quiet\n",
	}
}

var kinds = map[string]struct {
	mib  int64
	args []string
}{"12": {2, []string{"-F", "12", "-n", "ESP", "-i", "1234abcd"}}, "16": {32, []string{"-F", "16", "-n", "ESP", "-i", "1234abcd"}}, "32": {64, []string{"-F", "32", "-n", "ESP", "-i", "1234abcd"}}}

func open(t *testing.T, img string) *FS {
	t.Helper()
	r, size := imagetest.Open(t, img)
	f, err := Open(r, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func text(t *testing.T, f *FS, name string) string {
	t.Helper()
	r, err := f.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadsAndRewrites(t *testing.T) {
	t.Parallel()
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := imagetest.FAT(t, files(), k.mib, k.args...)
			f := open(t, img)
			if f.UUID() != "1234-ABCD" || f.Label() != "ESP" {
				t.Errorf("%s %s", f.UUID(), f.Label())
			}
			for n, want := range files() {
				if got := text(t, f, strings.ToUpper(n)); got != want {
					t.Errorf("%s: %d bytes, want %d", n, len(got), len(want))
				}
			}
			if names, err := f.ReadDir("/efi"); err != nil || len(names) != 2 {
				t.Errorf("%q, %v", names, err)
			}
			for _, n := range []string{"/none", "/EFI/none", "/syslinux.cfg/x"} {
				if _, err := f.Open(n); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", n, err)
				}
			}
			for _, want := range []string{files()["syslinux.cfg"] + "# more\n", "short\n"} {
				ws, err := f.Rewrite("/syslinux.cfg", []byte(want))
				if err != nil {
					t.Fatal(err)
				}
				w, err := os.OpenFile(img, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range ws {
					if _, err := w.WriteAt(x.Data, x.Off); err != nil {
						t.Fatal(err)
					}
				}
				w.Close()
				imagetest.Tool(t, "", "fsck.fat", "-n", img)
				if said := imagetest.Tool(t, "", "mtype", "-i", img, "::/syslinux.cfg"); said != want {
					t.Errorf("mtype reads %q, want %q", said, want)
				}
				f = open(t, img)
			}
			if _, err := f.Rewrite("/syslinux.cfg", make([]byte, 1<<20)); !errors.Is(err, ErrUnsafe) {
				t.Errorf("too long: %v", err)
			}
		})
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(imagetest.FAT(t, files(), 2, "-F", "12"))
	if err != nil {
		t.Fatal(err)
	}
	b[13] = 3
	if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	b, err := os.ReadFile(imagetest.FAT(f, map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ", "long file name.conf": strings.Repeat("x", 5000)}, 1, "-F", "12", "-f", "1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, b[:64])
	f.Add(512, []byte{0xff, 0x0f})
	f.Fuzz(func(t *testing.T, at int, with []byte) {
		c := bytes.Clone(b)
		at = max(0, at) % len(c)
		copy(c[at:], with)
		x, err := Open(bytes.NewReader(c), int64(len(c)))
		if err != nil {
			return
		}
		_, _ = x.ReadDir("/EFI/BOOT")
		_, _ = x.Rewrite("/long file name.conf", []byte("y"))
		if r, err := x.Open("/long file name.conf"); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		}
	})
}
