package azuritetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// attributes let the server die with the process that started it.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// install returns the path of the program, from the cache if it is there.
// Only one process installs, and half an installation is never used: it is made
// beside and renamed.
func install(ctx context.Context, base string) (program string, err error) {
	if base == "" {
		base = os.Getenv(CacheVariable)
	}
	if base == "" {
		base = "/var/tmp/holdfast-cache-azurite-" + strconv.Itoa(os.Getuid())
	}
	if !filepath.IsAbs(base) {
		return "", fmt.Errorf("the cache %q must be given with its whole path", base)
	}
	if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	// What is run must not have been put there by somebody else.
	info, err := os.Lstat(base)
	if err != nil {
		return "", err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not a directory that only this user can write to", base)
	}
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for another installation: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	dir := filepath.Join(base, strings.ReplaceAll(Version, "@", "-"))
	program = filepath.Join(dir, "node_modules", ".bin", "azurite-blob")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	half := dir + ".half"
	if err := errors.Join(os.RemoveAll(half), os.Mkdir(half, 0o700)); err != nil {
		return "", err
	}
	if err := npm(ctx, half); err != nil {
		return "", err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(half, dir)); err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("npm installed %s without its program: %w", Version, err)
	}
	return program, nil
}

// npm installs into dir.
func npm(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "npm", "install", "--prefix", dir, "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", Version)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install %s by npm (Debian: apt-get install nodejs npm): %w\n%s", Version, errors.Join(err, ctx.Err()), out)
	}
	return nil
}
