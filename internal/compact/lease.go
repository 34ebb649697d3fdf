package compact

import (
	"bytes"
	"context"
	"crypto/sha256"

	"holdfast/internal/cut"
	"holdfast/internal/objstore"
)

// PutLease makes a reader's lease known: until it expires nothing that its point
// may need is deleted. It is renewed by a further one with the same UID. Put the
// lease before the point is opened.
func PutLease(ctx context.Context, b objstore.Bucket, l cut.Lease) error {
	raw, err := l.Marshal()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	key := l.Name().Key()
	return storeError(key, b.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), &sum))
}
