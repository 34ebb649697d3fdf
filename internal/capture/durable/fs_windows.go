package durable

import (
	"errors"

	"golang.org/x/sys/windows"
)

// SyncDir does nothing: directories can't be synced on Windows, where NTFS journals renames.
func SyncDir(string) error { return nil }

func isNoSpace(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}
