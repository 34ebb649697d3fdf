//go:build unix

package vhdx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile takes the writer's lock of a file; it ends with unlockFile or the process.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}

// unlockFile gives the lock back at once. Closing alone would not: a child process
// that is being started holds a copy of the descriptor until it executes its program.
func unlockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }

// syncDir makes a new name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
