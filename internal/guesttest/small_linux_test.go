package guesttest_test

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"holdfast/internal/guesttest"
)

// What does not fit into a small directory is refused, and root's view of the machine does not change.
func TestSmallDir(t *testing.T) {
	dir := guesttest.SmallDir(t)
	f, err := os.Create(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Write(make([]byte, 2*guesttest.SmallSize))
	if !errors.Is(err, syscall.ENOSPC) || n > guesttest.SmallSize {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
}
