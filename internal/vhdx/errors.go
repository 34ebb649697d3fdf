package vhdx

import (
	"errors"
	"fmt"
)

var (
	// ErrDamaged: the file breaks a rule of the format.
	ErrDamaged = errors.New("the file is damaged")
	// ErrNotVHDX: the file does not begin as a VHDX file does.
	ErrNotVHDX = errors.New("not a VHDX file")
	// ErrUnsupported: the file demands what this package does not know or refuses to do.
	ErrUnsupported = errors.New("not supported")
	// ErrParentMismatch: the parent's data changed since the child was made, or it is another disk.
	ErrParentMismatch = errors.New("the parent is not the one the child was made from")
	// ErrParentNotFound: no path of the parent locator leads to a file.
	ErrParentNotFound = errors.New("the parent file was not found")
	// ErrHasParent: a differencing file cannot be read or written without its chain.
	ErrHasParent = errors.New("the file is a differencing disk: open it with OpenChain")
	// ErrInUse: another handle has the file open for writing.
	ErrInUse = errors.New("the file is open for writing elsewhere")
	// ErrReadOnly: the file was not opened for writing.
	ErrReadOnly = errors.New("the file is open for reading only")
	// ErrClosed: the file or chain was closed.
	ErrClosed = errors.New("the file is closed")
	// ErrRange: offset or length lies outside the disk or is not allowed.
	ErrRange = errors.New("outside the allowed range")
)

// Error tells what is wrong where. Err wraps one of the sentinels or a cause of the operating system.
type Error struct {
	File      string // path
	Structure string // "header", "log", "region table", "metadata", "BAT", "sector bitmap", …
	Offset    int64  // byte offset in the file, -1 if it has no place
	Reason    string // in words, may be empty
	Err       error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("vhdx: %s: %s", e.File, e.Structure)
	if e.Offset >= 0 {
		s += fmt.Sprintf(" at %d", e.Offset)
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// damaged says that a structure of the format breaks a rule.
func damaged(structure string, off int64, format string, args ...any) error {
	return &Error{Structure: structure, Offset: off, Reason: fmt.Sprintf(format, args...), Err: ErrDamaged}
}

func failure(structure string, off int64, err error, format string, args ...any) error {
	return &Error{Structure: structure, Offset: off, Reason: fmt.Sprintf(format, args...), Err: err}
}

// inFile names the file in an error of this package and wraps others.
func inFile(path string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.File == "" {
			e.File = path
		}
		return err
	}
	return &Error{File: path, Structure: "file", Offset: -1, Err: err}
}
