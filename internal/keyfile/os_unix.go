//go:build unix

package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// exposed reports whether anybody but the owner can do something with the file.
func exposed(i fs.FileInfo) bool { return i.Mode().Perm()&0o077 != 0 }

// writableByOthers reports whether anybody but the owner can change the file.
func writableByOthers(i fs.FileInfo) bool { return i.Mode().Perm()&0o022 != 0 }

func executable(i fs.FileInfo) bool { return i.Mode().Perm()&0o111 != 0 }

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// syncDir makes a new name durable. File systems that can't do it for
// directories say EINVAL or ENOTSUP, and there is nothing more to be done there.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// killAll puts the program into a process group of its own, and has all of it
// killed when its time is over.
func killAll(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
}
