package hydrate

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"

	"holdfast/internal/dr"
)

// lockFile takes an exclusive lock that ends with the process.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "open lock: %w", err)
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, dr.Errorf(dr.KindConflict, "hydrate.Serve", "lock %s: %w", path, ErrServed)
		}
		return nil, dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
