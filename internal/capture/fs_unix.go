//go:build unix

package capture

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// syncDir makes creations and renames in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// mapFile maps a file for reading and writing.
func mapFile(f *os.File, size int64) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmapFile(b []byte) error { return unix.Munmap(b) }

// syncMap makes the mapping's changes durable.
func syncMap(b []byte, _ *os.File) error { return unix.Msync(b, unix.MS_SYNC) }

// dropPages tells the system that the mapping's pages may leave this process's memory.
func dropPages(b []byte) { _ = unix.Madvise(b, unix.MADV_DONTNEED) }
