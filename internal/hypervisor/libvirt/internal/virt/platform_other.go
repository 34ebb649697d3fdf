//go:build !linux

package virt

import (
	"errors"
	"os"
)

var errLinuxOnly = errors.New("libvirt hosts are managed from Linux only")

func Allocate(*os.File, int64) error { return errLinuxOnly }

func FreeSpace(string) (int64, error) { return 0, errLinuxOnly }

func qemuOwner(string, string) (int, int, error) { return -1, -1, errLinuxOnly }
