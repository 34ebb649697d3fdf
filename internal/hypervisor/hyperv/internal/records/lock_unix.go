//go:build unix

package records

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockHeld takes an exclusive lock of an open file, which ends with the process; held says that somebody has it.
func lockHeld(f *os.File) (held bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK), err
}
