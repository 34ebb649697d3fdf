package pageblob

import (
	"context"
	"errors"

	"holdfast/internal/nbd"
)

// Source is a disk that is read: any length, no footer. Its methods are called
// concurrently. Errors are returned to Upload's caller unchanged.
type Source interface {
	// Size is the disk's length in bytes.
	Size() int64
	// Extents reports [off, off+length) in ascending order without gaps. zero is a
	// promise that the range reads as zeroes. An error of fn is returned unchanged.
	Extents(ctx context.Context, off, length int64, fn func(off, n int64, zero bool) error) error
	// ReadAt fills p from off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// FromNBD is the export that c is connected to. If c was dialled with
// nbd.ContextAllocation, what the server knows to be zero is not read. The caller
// keeps c open, and closes it.
func FromNBD(c *nbd.Client) Source { return nbdSource{c} }

type nbdSource struct{ c *nbd.Client }

func (s nbdSource) Size() int64 { return s.c.Size() }

func (s nbdSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.c.ReadAt(ctx, p, off)
}

func (s nbdSource) Extents(ctx context.Context, off, length int64, fn func(off, n int64, zero bool) error) error {
	known := false
	err := s.c.Extents(ctx, off, length, func(name string, off, n int64, flags uint32) error {
		if name != nbd.ContextAllocation {
			return nil
		}
		known = true
		return fn(off, n, flags&nbd.StateZero != 0)
	})
	if !known && length > 0 && (err == nil || errors.Is(err, nbd.ErrContextNotGranted)) {
		return fn(off, length, false) // nothing is known to be zero
	}
	return err
}
