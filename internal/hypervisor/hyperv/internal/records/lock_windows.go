package records

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockHeld takes an exclusive lock of an open file, which ends with the process; held says that somebody has it.
func lockHeld(f *os.File) (held bool, err error) {
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	return errors.Is(err, windows.ERROR_LOCK_VIOLATION), err
}
