package seed

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dataOf asks the file system where a file has data.
func dataOf(f *os.File, off, n int64, fn func(off, n int64) error) error {
	end := off + n
	for off < end {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return fn(off, end-off) // a file system or device that does not know
		}
		if data >= end {
			return nil
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			hole = end
		}
		if err := fn(data, min(hole, end)-data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}
