package guestimage

import (
	"fmt"
	"io"
	"path"
)

// archive writes a cpio archive in the "newc" format, which is what the kernel
// unpacks as initramfs (source: Documentation/driver-api/early-userspace/buffer-format.rst
// of the Linux kernel). Device nodes in it need no privileges. Errors stick until finish.
type archive struct {
	w    io.Writer
	ino  int
	made map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, made: map[string]bool{}} }

// dirs makes directories with their parents.
func (a *archive) dirs(names ...string) {
	for _, n := range names {
		if n == "." || n == "/" || a.made[n] {
			continue
		}
		a.dirs(path.Dir(n))
		a.made[n] = true
		a.entry(n, 0o040755, nil, 0, 0)
	}
}

func (a *archive) file(name string, b []byte, perm uint32) {
	a.dirs(path.Dir(name))
	a.entry(name, 0o100000|perm, b, 0, 0)
}

func (a *archive) link(name, target string) { a.entry(name, 0o120777, []byte(target), 0, 0) }

func (a *archive) device(name string, major, minor int) { a.entry(name, 0o020600, nil, major, minor) }

func (a *archive) finish() error {
	a.ino = -1
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}

func (a *archive) entry(name string, mode uint32, data []byte, major, minor int) {
	a.ino++
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	a.write([]byte(head))
	a.write(make([]byte, -len(head)&3))
	a.write(data)
	a.write(make([]byte, -len(data)&3))
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}
