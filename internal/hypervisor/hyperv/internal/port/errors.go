package port

import (
	"context"
	"errors"
	"io/fs"

	"holdfast/internal/dr"
)

// Error turns an error of Disks into a *dr.Error. A file that is missing is
// no "does not exist" of the object that the caller asked for.
func Error(op, what string, err error) error {
	var done *dr.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	kind, code := dr.KindUnavailable, dr.Code("")
	switch {
	case errors.Is(err, context.Canceled):
		kind = dr.KindCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = dr.CodeHypervisorTimeout
	case errors.Is(err, ErrInUse):
		kind, code = dr.KindConflict, dr.CodeDiskFileInUse
	case errors.Is(err, ErrDamaged):
		kind, code = dr.KindCorrupt, dr.CodeDiskFileDamaged
	case errors.Is(err, ErrTrackingLost):
		kind, code = dr.KindPrecondition, dr.CodeTrackingLost
	case errors.Is(err, ErrUnsupported):
		kind = dr.KindUnsupported
	case errors.Is(err, fs.ErrPermission):
		kind, code = dr.KindForbidden, dr.CodeHostAccess
	case errors.Is(err, fs.ErrExist):
		kind, code = dr.KindConflict, dr.CodeAlreadyExists
	}
	return dr.New(kind, code, "hyperv."+op, "%s: %w", what, err)
}
