package virt

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// Allocate reserves n bytes for a file from its beginning without changing its size.
func Allocate(f *os.File, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil // the watchdog's look at the free space is what remains
	}
	return err
}

// FreeSpace returns the bytes that an unprivileged writer can still take at path.
func FreeSpace(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// qemuOwner says whom to give directories to; -1 when they stay the agent's own:
// it is not root, or QEMU runs as the agent.
func qemuOwner(uri, qemuUser string) (uid, gid int, err error) {
	if os.Geteuid() != 0 || uri != URISystem {
		return -1, -1, nil
	}
	names := []string{"libvirt-qemu", "qemu"}
	if qemuUser != "" {
		names = []string{qemuUser}
	}
	for _, n := range names {
		u, lookupErr := user.Lookup(n)
		if lookupErr != nil {
			continue
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			return -1, -1, err
		}
		return uid, os.Getegid(), nil
	}
	return -1, -1, fmt.Errorf("no user of %v exists: set the user that QEMU runs as", names)
}
