package capture_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// The disk of spool, filter and state is full: nothing is lost, and when there
// is room again everything arrives.
func TestLocalDiskFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 70, 16<<20)
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("tmpfs", w.dir, "tmpfs", 0, "size=2m")
	if errors.Is(err, unix.EPERM) {
		t.Skip("only root can mount a small file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w.open(1, cut.Ref{})
	w.noise("vda", 0, 64<<10)
	r := w.start(w.assignment(), nil)
	w.drain(r)
	w.noise("vda", 0, 8<<20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 3 {
		if _, _, err := r.Drain(ctx); dr.CodeOf(err) != dr.CodeNoSpace {
			t.Fatalf("drain: %v", err)
		}
	}
	if s := r.Status(); s.Class != "recoverable" || s.RetryAt.IsZero() || dr.CodeOf(s.Err) != dr.CodeNoSpace {
		t.Errorf("class %q, retry %v, error %v", s.Class, s.RetryAt, s.Err)
	}
	if w.vm.CutOpen() || len(w.vm.Tokens()) > 2 {
		t.Errorf("left at the host: %v", w.vm.Tokens())
	}
	if err := unix.Mount("tmpfs", w.dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	w.write(5)
	w.drain(r)
	r.stop(t)
	w.check()
}
