package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/objstore"
)

var tctx = context.Background() // of the subprocesses, which have no test

// TestRealDisk runs onSmallDisk in a user and mount namespace of its own, so it
// needs no privilege and leaves no mount behind.
func TestRealDisk(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mountEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("this kernel gives no user namespace (%v); TestStepErrors and TestKinds cover the same errors injected", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// onSmallDisk fills a file system of 4 MiB and then makes it read-only. Each
// fault is real, and proved by what the kernel itself says.
func onSmallDisk(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=700"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	b, err := Open(tctx, Config{Dir: dir, Create: true})
	if err != nil {
		return err
	}
	const key, size = "v1/m/a/1/part/1.seg", 3 << 20
	if err := put(tctx, b, key, strings.Repeat("x", size)); err != nil {
		return fmt.Errorf("put that fits: %w", err)
	}
	err = put(tctx, b, "v1/m/a/1/part/2.seg", strings.Repeat("y", size))
	if !errors.Is(err, objstore.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "part/2.seg") {
		return fmt.Errorf("put on a full disk: got %v", err)
	}
	if err := expectOnly(b, key); err != nil {
		return err
	}
	if left, err := os.ReadDir(dir + "/tmp"); err != nil || len(left) != 0 {
		return fmt.Errorf("left in tmp: %v, %v", left, err)
	}
	if err := put(tctx, b, "v1/m/a/1/part/2.seg", strings.Repeat("y", 1<<19)); err != nil {
		return fmt.Errorf("smaller put after the full disk: %w", err)
	}
	if err := b.Delete(tctx, "v1/m/a/1/part/2.seg"); err != nil {
		return err
	}

	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount read-only: %w", err)
	}
	if err := os.WriteFile(dir+"/proof", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("the file system is not read-only: %v", err)
	}
	fresh, err := Open(tctx, Config{Dir: dir, Create: true})
	if err != nil {
		return fmt.Errorf("open on a read-only file system: %w", err)
	}
	for _, h := range []*Bucket{b, fresh} {
		for _, k := range []string{"v1/m/a/1/part/2.seg", "v9/new"} {
			if err := put(tctx, h, k, "x"); !errors.Is(err, objstore.ErrReadOnly) || !strings.Contains(err.Error(), k) {
				return fmt.Errorf("put on a read-only file system: got %v", err)
			}
		}
		if err := h.Delete(tctx, key); !errors.Is(err, objstore.ErrReadOnly) {
			return fmt.Errorf("delete on a read-only file system: got %v", err)
		}
		if err := expectOnly(h, key); err != nil {
			return err
		}
		if data, err := objstore.ReadAll(tctx, h, key, size); err != nil || len(data) != size {
			return fmt.Errorf("read on a read-only file system: %d bytes, %v", len(data), err)
		}
	}
	// Closed, so that nothing holds the mount when the namespace ends.
	return errors.Join(b.Close(), fresh.Close())
}

func expectOnly(b *Bucket, key string) error {
	var got []string
	err := b.List(tctx, "", func(i objstore.Info) error { got = append(got, i.Key); return nil })
	if err != nil || len(got) != 1 || got[0] != key {
		return fmt.Errorf("list shows %q, error %v; want only %q", got, err, key)
	}
	_, err = b.Head(tctx, key)
	return err
}
