//go:build unix

package extmap

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// createTemp makes a file without a name.
func createTemp(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "holdfast-extmap-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mapFile maps a file for reading.
func mapFile(f *os.File, size int64) ([]byte, error) {
	if int64(int(size)) != size {
		return nil, errors.ErrUnsupported
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	// A find wants one page; reading in order does not use the mapping.
	_ = unix.Madvise(p, unix.MADV_RANDOM)
	return p, nil
}

func unmapFile(p []byte) error { return unix.Munmap(p) }
