package objstore

import (
	"context"
	"time"
)

// Retainer is an optional capability of a Bucket: objects that the store itself
// keeps from being deleted or altered until a date, whoever asks (immutability,
// WORM).
type Retainer interface {
	// Retain makes the store keep key at least until the given time. It only ever
	// extends: an object that is kept longer already stays as it is, and that is
	// no error. The time is rounded up to the store's resolution, a second at
	// most. Retain fails with ErrNotExist, ErrDenied, ErrUnavailable (outcome
	// unknown; asking again is safe), and with errors.ErrUnsupported if retention
	// is switched off in the configuration. While an object is kept, Delete of it
	// fails with ErrDenied, and the message tells the date.
	Retain(ctx context.Context, key string, until time.Time) error
}

// NewRetainer is an optional capability of a Bucket: objects that come by signed
// URLs do not have the retention that new objects are to have, and whoever
// verifies and lists them asks for it.
type NewRetainer interface {
	// RetainsNew reports whether RetainNew has to be called for every object that
	// came by a signed URL. It does not change while the Bucket is open.
	RetainsNew() bool
	// RetainNew makes the store keep key, from now on for the configured time; it
	// fails like Retain.
	RetainNew(ctx context.Context, key string) error
}
