package rotation

import (
	"context"
	"errors"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

func invalid(op, format string, args ...any) *dr.Error {
	return dr.Errorf(dr.KindInvalid, op, format, args...)
}

// storeError classifies an error of the bucket; key is the object or prefix.
// Only "does not exist" means absent.
func storeError(op, key string, err error) error {
	var known *dr.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, objstore.ErrNotExist):
		return dr.New(dr.KindNotFound, dr.CodeObjectMissing, op, "object %q is missing: %w", key, err)
	case errors.Is(err, objstore.ErrRange), errors.Is(err, objstore.ErrTooLarge), errors.Is(err, objstore.ErrMismatch):
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, op, "object %q has another size than it should: %w", key, err)
	case errors.Is(err, objstore.ErrReadOnly):
		return dr.New(dr.KindForbidden, dr.CodeStoreReadOnly, op, "object %q: %w", key, err)
	case errors.Is(err, objstore.ErrNoSpace):
		return dr.New(dr.KindExhausted, dr.CodeStoreFull, op, "object %q: %w", key, err)
	case errors.Is(err, objstore.ErrDenied):
		return dr.New(dr.KindForbidden, dr.CodeStoreUnreachable, op, "object %q: %w", key, err)
	}
	return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "object %q: %w", key, err)
}
