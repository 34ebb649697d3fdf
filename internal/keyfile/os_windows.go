package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

func openFile(path string) (*os.File, error) { return os.Open(path) }

// exposed can't be told from the mode on Windows, where the access list of the
// folder decides: keep the key in a folder of the service's account.
func exposed(fs.FileInfo) bool { return false }

func writableByOthers(fs.FileInfo) bool { return false }

func executable(fs.FileInfo) bool { return true }

func noSpace(err error) bool {
	const diskFull, handleDiskFull = syscall.Errno(112), syscall.Errno(39)
	return errors.Is(err, diskFull) || errors.Is(err, handleDiskFull)
}

// syncDir does nothing: the file system's own log makes names durable.
func syncDir(string) error { return nil }

// killAll leaves the default: the program itself is killed when its time is over.
func killAll(*exec.Cmd) {}
