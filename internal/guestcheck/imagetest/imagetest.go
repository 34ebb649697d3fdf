// Package imagetest makes disk images for tests of guestcheck with the tools
// that Linux distributions make them with. None needs root. A tool that is
// missing fails the test. Debian packages: e2fsprogs, fdisk, dosfstools, mtools,
// cpio, gzip, xz-utils, zstd, lz4, lzop, bzip2, xfsprogs, ntfs-3g,
// libhivex-bin, libwin-hivex-perl, python3.
package imagetest

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Tool runs a program with input and returns what it prints.
func Tool(t testing.TB, in string, args ...string) string {
	t.Helper()
	out, err := Try(t, in, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Tool for programs that may fail. A program that is not there fails the test.
func Try(t testing.TB, in string, args ...string) (string, error) {
	t.Helper()
	name, err := exec.LookPath(args[0])
	if err != nil {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
			if _, e := os.Stat(dir + args[0]); e == nil {
				name, err = dir+args[0], nil
			}
		}
	}
	if err != nil {
		t.Fatalf("%s is needed: %v (see package imagetest for the Debian packages)", args[0], err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args[1:]...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader(in)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// Link as a file's content makes a symbolic link.
const Link = "\x00link:"

// Tree writes files, by path, below a new directory.
func Tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		if target, ok := strings.CutPrefix(body, Link); ok {
			must(t, os.Symlink(target, p))
			continue
		}
		must(t, os.WriteFile(p, []byte(body), 0o644))
	}
	return dir
}

// Ext makes an ext file system of so many MiB; args go to mke2fs.
func Ext(t testing.TB, files map[string]string, mib int64, args ...string) string {
	t.Helper()
	img := Blank(t, mib<<20)
	Tool(t, "", append(append([]string{"mke2fs", "-q", "-F", "-d", Tree(t, files)}, args...), img)...)
	return img
}

// FAT makes a FAT file system of so many MiB with files; args go to mkfs.fat.
func FAT(t testing.TB, files map[string]string, mib int64, args ...string) string {
	t.Helper()
	img := Blank(t, mib<<20)
	Tool(t, "", append(append([]string{"mkfs.fat"}, args...), img)...)
	dir := Tree(t, files)
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		Tool(t, "", "mcopy", "-i", img, "-s", filepath.Join(dir, e.Name()), "::")
	}
	return img
}

// XFS makes an XFS file system of 320 MiB with files, by a prototype file; args go to mkfs.xfs.
func XFS(t testing.TB, files map[string]string, args ...string) string {
	t.Helper()
	src := Tree(t, files)
	var p strings.Builder
	p.WriteString("/dev/null\n0 0\nd--755 0 0\n")
	var walk func(dir string)
	walk = func(dir string) {
		list, err := os.ReadDir(filepath.Join(src, dir))
		must(t, err)
		for _, e := range list {
			full := filepath.Join(dir, e.Name())
			switch {
			case e.IsDir():
				p.WriteString(e.Name() + " d--755 0 0\n")
				walk(full)
			case e.Type()&os.ModeSymlink != 0:
				p.WriteString(e.Name() + " l--777 0 0 " + strings.TrimPrefix(files[full], Link) + "\n")
			default:
				p.WriteString(e.Name() + " ---644 0 0 " + filepath.Join(src, full) + "\n")
			}
		}
		p.WriteString("$\n")
	}
	walk("")
	proto := Blank(t, 0)
	must(t, os.WriteFile(proto, []byte(p.String()), 0o600))
	img := Blank(t, 320<<20)
	Tool(t, "", append(append([]string{"mkfs.xfs", "-q", "-L", "label", "-p", proto}, args...), img)...)
	return img
}

// Blank makes a sparse file.
func Blank(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.img")
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	return f.Name()
}

// Put copies a volume's image into a disk at off.
func Put(t testing.TB, disk string, off int64, volume string) {
	t.Helper()
	b, err := os.ReadFile(volume)
	must(t, err)
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Seek(off, io.SeekStart)
	must(t, err)
	_, err = f.Write(b)
	must(t, err)
	must(t, f.Close())
}

// Get copies size bytes at off of a disk into a file.
func Get(t testing.TB, disk string, off, size int64) string {
	t.Helper()
	f, err := os.Open(disk)
	must(t, err)
	b := make([]byte, size)
	_, err = f.ReadAt(b, off)
	must(t, err)
	must(t, f.Close())
	out := Blank(t, size)
	must(t, os.WriteFile(out, b, 0o600))
	return out
}

// Copy copies a file.
func Copy(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	out := Blank(t, 0)
	must(t, os.WriteFile(out, b, 0o600))
	return out
}

// Open opens an image for reading until the test ends.
func Open(t testing.TB, name string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	must(t, err)
	return f, st.Size()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
