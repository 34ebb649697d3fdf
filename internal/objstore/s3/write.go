package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// Delete removes an object; see objstore.Bucket, and the package comment on
// versioned buckets. An object that is retained is ErrDenied, with the date in
// the message. S3 itself would hide it behind a delete marker; therefore Delete
// asks first if Config.RetainMode is set.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	cl, err := b.begin(ctx, "delete", key)
	if err != nil {
		return err
	}
	if b.c.ReadOnly {
		return &objstore.Error{Op: "delete", Key: key, Kind: objstore.ErrReadOnly, Err: errors.New("it was configured so")}
	}
	return b.do(ctx, "delete", key, func() *failure {
		if b.c.RetainMode != "" {
			until, f := b.retained(ctx, key)
			switch {
			case f != nil && f.kind == objstore.ErrNotExist:
				return nil
			case f != nil:
				return f
			case until.After(time.Now()):
				return fatal(objstore.ErrDenied, retainedError(until))
			}
		}
		f := b.deleteOnce(ctx, cl, key)
		switch {
		case f == nil || f.kind == objstore.ErrNotExist:
			return nil
		case f.kind == objstore.ErrDenied:
			// Perhaps for a reason that can be told.
			if until, no := b.retained(ctx, key); no == nil && until.After(time.Now()) {
				f.err = fmt.Errorf("%w: %w", retainedError(until), f.err)
			}
		}
		return f
	})
}

func (b *Bucket) deleteOnce(ctx context.Context, cl *sdk.Client, key string) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.DeleteObject(w.Ctx, &sdk.DeleteObjectInput{Bucket: &b.c.Bucket, Key: b.at(key)})
	if f := b.judge(w, err); f != nil {
		return f
	}
	raw, ok := awsmiddleware.GetRawResponse(out.ResultMetadata).(*smithyhttp.Response)
	if ok && raw.StatusCode != http.StatusNoContent && raw.Header.Get("X-Amz-Request-Id") == "" {
		return odd(fmt.Sprintf("the deletion was answered with status %d", raw.StatusCode))
	}
	return nil
}

func retainedError(until time.Time) error {
	return fmt.Errorf("the store keeps the object until %s", until.UTC().Format(time.RFC3339))
}

// retained returns until when the store keeps the object, or zero.
func (b *Bucket) retained(ctx context.Context, key string) (time.Time, *failure) {
	out, f := b.headOnce(ctx, key)
	if f != nil {
		return time.Time{}, f
	}
	return aws.ToTime(out.ObjectLockRetainUntilDate), nil
}

// Retain makes the store keep an object; see objstore.Retainer. The mode is
// Config.RetainMode; a stronger one that the object has already stays.
func (b *Bucket) Retain(ctx context.Context, key string, until time.Time) error {
	fail := func(kind, err error) error {
		return &objstore.Error{Op: "retain", Key: key, Kind: kind, Err: err}
	}
	cl, err := b.begin(ctx, "retain", key)
	if err != nil {
		return err
	}
	if b.c.RetainMode == "" {
		return fail(nil, fmt.Errorf("%w: retention is switched off; add retain-mode=… to the store's address", errors.ErrUnsupported))
	}
	until = ceilSecond(until)
	if !until.After(time.Now()) {
		return fail(nil, fmt.Errorf("%s has passed already", until.Format(time.RFC3339)))
	}
	return b.do(ctx, "retain", key, func() *failure {
		out, f := b.headOnce(ctx, key)
		if f != nil {
			return f
		}
		has, mode := aws.ToTime(out.ObjectLockRetainUntilDate), b.c.RetainMode
		if out.ObjectLockMode == types.ObjectLockModeCompliance {
			mode = Compliance // it cannot be weakened, only extended
		}
		target := until
		if !has.Before(until) {
			if string(out.ObjectLockMode) == mode {
				return nil
			}
			target = has
		}
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		_, err := cl.PutObjectRetention(w.Ctx, &sdk.PutObjectRetentionInput{
			Bucket: &b.c.Bucket, Key: b.at(key), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
			Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(mode), RetainUntilDate: &target},
		})
		f = b.judge(w, err)
		if f != nil && f.kind == objstore.ErrDenied {
			// Perhaps somebody else was faster and asked for more.
			if now, no := b.retained(ctx, key); no == nil && !now.Before(until) {
				return nil
			}
		}
		return f
	})
}
