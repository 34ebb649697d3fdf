package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// tools are the programs that are compared with or needed.
type tools struct{ qemuImg, qemuNBD, nbdcopy, mkfs string }

// all are the programs by name, for their versions.
func (t tools) all() map[string]string {
	return map[string]string{"qemu-img": t.qemuImg, "nbdcopy": t.nbdcopy, "rsync": "rsync", "borg": "borg", "virtnbdbackup": "virtnbdbackup"}
}

func findTools() (tools, error) {
	var t tools
	var errs []error
	for name, p := range map[string]*string{"qemu-img": &t.qemuImg, "qemu-nbd": &t.qemuNBD, "nbdcopy": &t.nbdcopy, "mkfs.ext4": &t.mkfs} {
		path, err := exec.LookPath(name)
		if err != nil { // not in the path of ordinary users
			path = filepath.Join("/usr/sbin", name)
			if _, serr := os.Stat(path); serr != nil {
				errs = append(errs, fmt.Errorf("find %s: %w (scripts/packages.sh test installs it)", name, err))
			}
		}
		*p = path
	}
	return t, errors.Join(errs...)
}

// fileSize is the length of a file, bytes.
func fileSize(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
