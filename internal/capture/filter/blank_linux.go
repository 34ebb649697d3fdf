package filter

import (
	"errors"

	"golang.org/x/sys/unix"
)

// hole reports whether [off, off+n) of the file is known to be a hole.
func (t *Table) hole(off, n int64) bool {
	data, err := unix.Seek(int(t.f.Fd()), off, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= off+n
}
