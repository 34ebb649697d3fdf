//go:build unix

package hydrate

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"holdfast/internal/dr"
)

// lockFile takes an exclusive lock that ends with the process.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, dr.Errorf(dr.KindConflict, "hydrate.Serve", "lock %s: %w", path, ErrServed)
		}
		return nil, dr.Errorf(dr.KindUnavailable, "hydrate.Serve", "lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
