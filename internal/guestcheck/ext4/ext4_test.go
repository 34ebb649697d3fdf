package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
)

func tree() map[string]string {
	files := map[string]string{
		"etc/fstab":       "/dev/sda1 / ext4 defaults 0 1\n",
		"etc/tiny":        "x",
		"etc/inline":      strings.Repeat("inline ", 15),
		"boot/big":        strings.Repeat("0123456789abcdef", 1<<16) + "end",
		"usr/lib/os":      "NAME=test\n",
		"lib":             imagetest.Link + "usr/lib",
		"abs":             imagetest.Link + "/etc/fstab",
		"up":              imagetest.Link + "usr/../etc/./tiny",
		"loop":            imagetest.Link + "loop",
		"a/long":          imagetest.Link + strings.Repeat("./", 40) + "../etc/tiny",
		"etc/dangling":    imagetest.Link + "nowhere",
		"journalled/data": strings.Repeat("old ", 1024),
	}
	for k := range 400 {
		files[fmt.Sprintf("many/a-file-with-a-long-name-%04d", k)] = fmt.Sprint(k)
	}
	return files
}

func read(t *testing.T, f *FS, name string) string {
	t.Helper()
	r, err := f.Open(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(b)
}

func open(t *testing.T, img string) *FS {
	t.Helper()
	r, size := imagetest.Open(t, img)
	f, err := Open(r, size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var flavours = map[string][]string{
	"ext2":     {"-t", "ext2", "-b", "1024"},
	"ext3":     {"-t", "ext3"},
	"ext4":     {"-t", "ext4"},
	"ext4-1k":  {"-t", "ext4", "-b", "1024"},
	"nocsum":   {"-t", "ext4", "-O", "^metadata_csum,^64bit"},
	"gdt_csum": {"-t", "ext4", "-O", "^metadata_csum,uninit_bg"},
	"inline":   {"-t", "ext4", "-O", "inline_data", "-I", "256"},
	"meta_bg":  {"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"},
	"bigalloc": {"-t", "ext4", "-O", "bigalloc"},
	"seed":     {"-t", "ext4", "-O", "metadata_csum_seed"},
	"sparse2":  {"-t", "ext4", "-O", "sparse_super2"},
	"small":    {"-t", "ext4", "-I", "128"},
}

func TestReadsWhatMke2fsWrites(t *testing.T) {
	t.Parallel()
	files := tree()
	for name, args := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := imagetest.Ext(t, files, 48, append(args, "-L", "label", "-U", "01234567-89ab-cdef-0123-456789abcdef")...)
			f := open(t, img)
			if f.UUID() != "01234567-89ab-cdef-0123-456789abcdef" || f.Label() != "label" || f.Dirty() {
				t.Errorf("uuid %s, label %s, dirty %v", f.UUID(), f.Label(), f.Dirty())
			}
			for n, want := range files {
				if strings.HasPrefix(want, imagetest.Link) {
					continue
				}
				if got := read(t, f, n); got != want {
					t.Errorf("%s: got %d bytes, want %d", n, len(got), len(want))
				}
			}
			for n, want := range map[string]string{"/lib/os": "usr/lib/os", "abs": "etc/fstab", "up": "etc/tiny", "a/long": "etc/tiny", "/etc/../etc/./tiny": "etc/tiny"} {
				if got := read(t, f, n); got != files[want] {
					t.Errorf("%s: %q", n, got)
				}
			}
			names, err := f.ReadDir("/many")
			if err != nil || len(names) != 400 {
				t.Errorf("%d names, %v", len(names), err)
			}
			for _, n := range []string{"/none", "/etc/none", "/etc/fstab/x", "/etc/dangling"} {
				if _, err := f.Open(n); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v, want not exist", n, err)
				}
			}
			if _, err := f.Open("/loop"); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("loop: %v", err)
			}
			if _, err := f.ReadDir("/etc/fstab"); err == nil {
				t.Error("a file was read as a directory")
			}
		})
	}
}

func TestReadsHolesAndUnwrittenExtents(t *testing.T) {
	t.Parallel()
	img := imagetest.Ext(t, map[string]string{"f": strings.Repeat("x", 40960)}, 16, "-t", "ext4", "-b", "4096")
	imagetest.Tool(t, "punch /f 3 5\nfallocate /f 20 30\nset_inode_field /f size 126976\n", "debugfs", "-w", img)
	want := strings.Repeat("x", 12288) + strings.Repeat("\x00", 12288) + strings.Repeat("x", 16384) + strings.Repeat("\x00", 126976-40960)
	if got := read(t, open(t, img), "f"); got != want {
		t.Errorf("%d bytes, want %d, or other content", len(got), len(want))
	}
}

func apply(t *testing.T, img string, ws []Write) {
	t.Helper()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, w := range ws {
		if _, err := f.WriteAt(w.Data, w.Off); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRewrite(t *testing.T) {
	t.Parallel()
	files := map[string]string{"etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n", "etc/two": strings.Repeat("line of text\n", 400), "empty": ""}
	for name, args := range flavours {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := imagetest.Ext(t, files, 32, args...)
			f := open(t, img)
			for _, c := range []struct{ file, content string }{
				{"/etc/fstab", "UUID=aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee / ext4 defaults 0 1\n"},
				{"/etc/fstab", "#\n"},
				{"/etc/two", "short\n"},
			} {
				ws, err := f.Rewrite(c.file, []byte(c.content))
				if name == "inline" && c.file == "/etc/fstab" {
					if !errors.Is(err, ErrUnsafe) {
						t.Errorf("inline data: %v", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				apply(t, img, ws)
				imagetest.Tool(t, "", "e2fsck", "-fn", img)
				got := read(t, open(t, img), c.file)
				if strings.TrimRight(got, "\n") != strings.TrimRight(c.content, "\n") {
					t.Errorf("%s: %q", c.file, got)
				}
				if said := imagetest.Tool(t, "", "debugfs", "-R", "cat "+c.file, img); !strings.HasSuffix(said, got) {
					t.Errorf("debugfs reads %q", said)
				}
				f = open(t, img)
			}
			for _, c := range []struct{ file, content string }{{"/etc/fstab", strings.Repeat("x", 70000)}, {"/empty", "x"}, {"/etc", "x"}} {
				if _, err := f.Rewrite(c.file, []byte(c.content)); !errors.Is(err, ErrUnsafe) {
					t.Errorf("%s: %v, want it refused", c.file, err)
				}
			}
			f.rocompat |= 0x4000 // shared blocks
			if _, err := f.Rewrite("/etc/two", []byte("x")); !errors.Is(err, ErrUnsafe) {
				t.Errorf("shared blocks: %v", err)
			}
			if _, err := f.Rewrite("/none", nil); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("absent file: %v", err)
			}
		})
	}
}

// dirty returns an image whose journal holds a newer version of a file's first
// block, and one of a second file that begins with the journal's magic number;
// a third write is revoked.
func dirty(t *testing.T, args ...string) (img string, first, second string) {
	t.Helper()
	bs := 4096
	old := strings.Repeat("old.", bs/4)
	img = imagetest.Ext(t, map[string]string{"one": old, "two": old, "three": old, "etc/fstab": "before\n"}, 32, append([]string{"-b", "4096"}, args...)...)
	first = strings.Repeat("new!", bs/4)
	second = "\xC0\x3B\x39\x98" + strings.Repeat("esc!", bs/4-1)
	put := func(s string) string {
		p := imagetest.Blank(t, 0)
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	find := func(n string) string {
		out := imagetest.Tool(t, "", "debugfs", "-R", "blocks "+n, img)
		f := strings.Fields(out)
		return f[len(f)-1]
	}
	script := fmt.Sprintf("jo\njw -b %s %s\njw -b %s %s\njw -b %s %s\njw -r %s\njc\n", find("/one"), put(first), find("/two"), put(second), find("/three"), put(first), find("/three"))
	if out := imagetest.Tool(t, script, "debugfs", "-w", img); strings.Contains(out, "rror") {
		t.Fatal(out)
	}
	return img, first, second
}

func TestReplaysTheJournal(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"ext3": {"-t", "ext3"}, "ext4": {"-t", "ext4"}, "no64": {"-t", "ext4", "-O", "^64bit"}, "nocsum": {"-t", "ext4", "-O", "^metadata_csum,^64bit"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, first, second := dirty(t, args...)
			f := open(t, img)
			if !f.Dirty() {
				t.Fatal("the image is clean")
			}
			repaired := imagetest.Copy(t, img)
			imagetest.Try(t, "", "e2fsck", "-fy", repaired) // exits 1: it repaired something
			g := open(t, repaired)
			if g.Dirty() {
				t.Fatal("e2fsck did not replay")
			}
			for n, want := range map[string]string{"one": first, "two": second, "three": strings.Repeat("old.", 1024)} {
				if got, said := read(t, f, n), read(t, g, n); got != want || said != want {
					t.Errorf("%s: read %.8q, after e2fsck %.8q, want %.8q", n, got, said, want)
				}
			}
			ws, err := f.Rewrite("/etc/fstab", []byte("after\n"))
			if err != nil {
				t.Fatal(err)
			}
			apply(t, img, ws)
			if out := imagetest.Tool(t, "", "e2fsck", "-fn", img); strings.Contains(out, "recover") {
				t.Error(out)
			}
			f = open(t, img)
			if f.Dirty() || read(t, f, "/etc/fstab") != "after\n" || read(t, f, "one") != first || read(t, f, "two") != second {
				t.Error("the journal was lost, or the change")
			}
		})
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	img := imagetest.Ext(t, map[string]string{"f": "content\n"}, 16, "-t", "ext4")
	good, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		at   int
		want error
	}{{"magic", 1024 + 0x38, ErrNotExt4}, {"superblock", 1024 + 0x10, ErrCorrupt}, {"feature", 1024 + 0x60 + 3, ErrUnsupported}} {
		b := slices.Clone(good)
		b[c.at] ^= 0xFF
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	f, err := Open(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	block, off, err := f.inodePlace(rootInode)
	if err != nil {
		t.Fatal(err)
	}
	b := slices.Clone(good)
	b[int64(block)*f.bs+off+0x20] ^= 1
	if f, err = Open(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open("/f"); !errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("damaged inode: %v", err)
	}
	if _, err := Open(bytes.NewReader(good[:1<<20]), 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut off: %v", err)
	}
}

// patched is an image with bytes of its metadata replaced.
type patched struct {
	base []byte
	at   int64
	with []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for k := range p.with {
		if i := p.at + int64(k) - off; i >= 0 && i < int64(n) {
			b[i] = p.with[k]
		}
	}
	return n, err
}

func FuzzRead(f *testing.F) {
	img := imagetest.Ext(f, map[string]string{"etc/fstab": "x\n", "l": imagetest.Link + "etc/fstab", "d/e": strings.Repeat("y", 9000)}, 2, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data")
	base, err := os.ReadFile(img)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(int64(1024), []byte("\x00"))
	f.Add(int64(1024+0x60), []byte("\x06"))
	f.Add(int64(2048+8), []byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, at int64, with []byte) {
		at = (at%int64(len(base)) + int64(len(base))) % int64(len(base))
		fsys, err := Open(patched{base, at, with}, int64(len(base)))
		if err != nil {
			return
		}
		for _, n := range []string{"/etc/fstab", "/l", "/d/e"} {
			if r, err := fsys.Open(n); err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			}
			_, _ = fsys.Rewrite(n, []byte("z"))
		}
		_, _ = fsys.ReadDir("/")
	})
}
