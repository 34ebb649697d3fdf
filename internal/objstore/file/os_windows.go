package file

import (
	"errors"
	"os"
	"syscall"
)

// Error numbers of Windows (winerror.h).
const (
	errorWriteProtect   = syscall.Errno(19)
	errorHandleDiskFull = syscall.Errno(39)
	errorDiskFull       = syscall.Errno(112)
	errorDirectory      = syscall.Errno(267)
	errorDiskQuota      = syscall.Errno(1295)
)

func isNoSpace(err error) bool {
	return errors.Is(err, errorDiskFull) || errors.Is(err, errorHandleDiskFull) || errors.Is(err, errorDiskQuota) ||
		errors.Is(err, syscall.ENOSPC)
}

func isReadOnly(err error) bool { return errors.Is(err, errorWriteProtect) }

func isNotDir(err error) bool {
	return errors.Is(err, errorDirectory) || errors.Is(err, syscall.ENOTDIR)
}

// syncDir does nothing: Windows has no call for it, and NTFS journals its names.
func syncDir(*os.File) error { return nil }
