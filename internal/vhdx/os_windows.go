package vhdx

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// punchHole is left out: the caller writes zeros.
func punchHole(*os.File, int64, int64) error { return errors.ErrUnsupported }

// lockFile takes the writer's lock of a file; it ends with the handle. The locked
// byte lies far behind the end of the file, so readers are not hindered.
func lockFile(f *os.File) error {
	at := windows.Overlapped{OffsetHigh: 1 << 30}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrInUse
	}
	return err
}

// unlockFile has nothing to do: closing the handle gives the lock back.
func unlockFile(*os.File) error { return nil }

// syncDir has no counterpart: NTFS journals names.
func syncDir(string) error { return nil }
