package guesttest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallSize is the size of the file system of SmallDir, in bytes.
const SmallSize = 40 << 20

// smallEnv names the variable that tells the unprivileged program where the file system is.
const smallEnv = "HOLDFAST_SMALL_DIR"

// mountSmall mounts a small file system that everything this thread starts can
// see, and nobody else: it is in a mount namespace of its own and goes with its
// last process. Without the privilege to do so there is none.
func mountSmall() (remove func() error, err error) {
	none := func() error { return nil }
	if os.Geteuid() != 0 {
		return none, nil
	}
	runtime.LockOSThread() // for good: the program is started from this thread
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return none, nil // e.g. a container: SmallDir says so
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return none, fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := os.MkdirTemp("/tmp", "hfs-") // short: holds sockets
	if err != nil {
		return none, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0777", SmallSize)); err != nil {
		return none, errors.Join(fmt.Errorf("mount %s: %w", dir, err), os.Remove(dir))
	}
	if err := os.Setenv(smallEnv, dir); err != nil {
		return none, err
	}
	return func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }, nil
}

// SmallDir returns an empty directory on a file system of SmallSize bytes, for
// tests of what happens when space runs out. It is one per test program, so
// tests that use it don't run in parallel. The test is skipped, and says so, where
// nobody could mount one: that takes root, or a container with its capabilities.
func SmallDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(smallEnv)
	if dir == "" {
		t.Skip("needs a small file system: run the tests as root where mounting is allowed")
	}
	sub, err := os.MkdirTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(sub); err != nil {
			t.Error(err)
		}
	})
	return sub
}
