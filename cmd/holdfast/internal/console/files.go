package console

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"holdfast/internal/dr"
)

// ClassifyAs says what was tried and keeps the cause.
func ClassifyAs(err error, what string) error {
	kind := dr.KindUnavailable
	if errors.Is(err, os.ErrNotExist) {
		kind = dr.KindNotFound
	} else if errors.Is(err, os.ErrPermission) {
		kind = dr.KindForbidden
	}
	return &dr.Error{Kind: kind, Op: "holdfast", Message: what, Err: err}
}

// ReadSmall reads a file of at most 1 MiB.
func ReadSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// ReplaceFile writes a file durably and in one step.
func ReplaceFile(path string, raw []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// CreateFile makes a new file that only its owner can read, and fills it. It is
// made before fill is called: what fill produces may exist only once. It is removed if fill fails.
func CreateFile(path string, fill func() ([]byte, error)) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "holdfast", "%s exists already", path).WithHint("Choose another file; nothing is overwritten.")
	}
	if err != nil {
		return ClassifyAs(err, "make "+path)
	}
	raw, err := fill()
	if err == nil {
		if _, werr := f.Write(raw); werr != nil {
			err = ClassifyAs(werr, "write "+path)
		} else if serr := f.Sync(); serr != nil {
			err = ClassifyAs(serr, "write "+path)
		}
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = ClassifyAs(cerr, "write "+path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
