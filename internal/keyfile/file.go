package keyfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/dr"
)

// readPrivate reads a regular file of at most limit bytes. private refuses one
// that others can read. It is checked on the open file, so that nothing can be put in its place.
func readPrivate(op, what, path string, limit int64, private bool) ([]byte, error) {
	f, info, err := openRegular(op, what, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if private {
		if err := checkPrivate(op, what, path, info); err != nil {
			return nil, err
		}
	}
	return readLimited(op, what, f, path, limit)
}

func openRegular(op, what, path string) (*os.File, fs.FileInfo, error) {
	f, err := openFile(path) // does not wait for the writer of a pipe
	if err != nil {
		return nil, nil, pathError(op, what, path, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		f.Close()
		return nil, nil, invalid(op, "the %s %s is not a regular file", what, path)
	}
	if err != nil {
		f.Close()
		return nil, nil, pathError(op, what, path, err)
	}
	return f, info, nil
}

func checkPrivate(op, what, path string, info fs.FileInfo) error {
	if exposed(info) {
		return dr.New(dr.KindForbidden, dr.CodeKeyFileExposed, op, "others can read or change the %s %s (mode %04o)", what, path, info.Mode().Perm()).
			WithHint("Run: chmod 600 %s. Think about who may have read it.", path)
	}
	return nil
}

func readLimited(op, what string, f *os.File, path string, limit int64) ([]byte, error) {
	b := make([]byte, 0, limit+1) // of full size, so that no copies are left behind
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			wipe(b)
			return nil, invalid(op, "the %s %s has more than %d bytes", what, path, limit)
		case err == io.EOF:
			return b, nil
		case err != nil:
			wipe(b)
			return nil, pathError(op, what, path, err)
		}
	}
}

func pathError(op, what, path string, err error) error {
	kind, code := dr.KindUnavailable, dr.Code("")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = dr.KindNotFound
	case errors.Is(err, fs.ErrPermission):
		kind = dr.KindForbidden
	case errors.Is(err, fs.ErrExist):
		kind, code = dr.KindConflict, dr.CodeAlreadyExists
	case noSpace(err):
		kind, code = dr.KindExhausted, dr.CodeNoSpace
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path is in the message already
	}
	return dr.New(kind, code, op, "%s %s: %w", what, path, err)
}

// WriteNew writes a key or share to a new file with mode 0600, durably. It never
// replaces anything: a file that exists is dr.CodeAlreadyExists. A crash leaves
// either nothing under the name or the whole file, and perhaps a hidden file
// with mode 0600 beside it whose name begins with "." and ends in ".new".
func WriteNew(path string, text []byte) (err error) {
	const op, what = "keyfile.WriteNew", "file"
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.new") // made with mode 0600
	if err != nil {
		return pathError(op, what, path, err)
	}
	defer func() {
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, pathError(op, what, f.Name(), rerr))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return pathError(op, what, path, err)
	}
	err = os.Link(f.Name(), path) // fails if the name is taken
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// No links here, as on many memory sticks.
		if _, lerr := os.Lstat(path); errors.Is(lerr, fs.ErrNotExist) {
			err = os.Rename(f.Name(), path)
		} else {
			err = errors.Join(fs.ErrExist, lerr)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "%s exists already", path).WithHint("Choose another name: no key is ever overwritten.")
	}
	if err != nil {
		return pathError(op, what, path, err)
	}
	if err := syncDir(dir); err != nil {
		return pathError(op, what, dir, err)
	}
	return nil
}
