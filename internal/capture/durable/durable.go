// Package durable replaces small files in one step that survives a power cut,
// and names the errors of the local file system in the product's words.
package durable

import (
	"errors"
	"os"
	"path/filepath"

	"holdfast/internal/dr"
)

// Replace replaces a file: after a crash at any moment it has the old or the new content.
func Replace(path string, raw []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err == nil {
		_, err = f.Write(raw)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	return Error("capture.save", path, err)
}

// Error maps an error of the local file system; nil stays nil.
func Error(op, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case isNoSpace(err):
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "write %s: %w", path, err)
	}
	return dr.Errorf(dr.KindUnavailable, op, "write %s: %w", path, err)
}
