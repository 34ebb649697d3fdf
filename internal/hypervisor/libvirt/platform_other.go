//go:build !linux

package libvirt

import (
	"errors"
	"os"
)

var errLinuxOnly = errors.New("libvirt hosts are managed from Linux only")

func allocate(*os.File, int64) error { return errLinuxOnly }

func freeSpace(string) (int64, error) { return 0, errLinuxOnly }

func qemuOwner(Config) (int, int, error) { return -1, -1, errLinuxOnly }
