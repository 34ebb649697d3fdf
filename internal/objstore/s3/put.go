package s3

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

const (
	metaPut = "holdfast-put" // metadata: which call created the object

	// minRate is the slowest upload that is waited for, in bytes a second.
	minRate = 16 << 10
)

// PutNew creates an object; see objstore.Bucket. r is read twice or more if it
// is an io.Seeker, and otherwise kept in memory or, above 16 MiB, in a temporary
// file, because the digest goes before the body and attempts are repeated.
// Objects above MaxObject fail with ErrTooLarge.
func (b *Bucket) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	fail := func(kind, cause error) error {
		return &objstore.Error{Op: "put", Key: key, Kind: kind, Err: cause}
	}
	if err := objstore.ValidateKey(key); err != nil {
		return fail(nil, err)
	}
	if size < 0 {
		return fail(objstore.ErrMismatch, fmt.Errorf("announced size is %d", size))
	}
	if size > MaxObject {
		return fail(objstore.ErrTooLarge, fmt.Errorf("%d bytes; S3 takes %d in one request", size, int64(MaxObject)))
	}
	cl, err := b.beginWrite(ctx, "put", key)
	if err != nil {
		return err
	}
	src, err := attempt.Prepare(ctx, r, size, sum)
	if err != nil {
		return fail(nil, err)
	}
	defer src.Close()
	return b.put(ctx, cl, key, src)
}

// put makes the attempts and settles what a lost answer left open.
func (b *Bucket) put(ctx context.Context, cl *sdk.Client, key string, src *attempt.Source) error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	name := hex.EncodeToString(id[:])
	var until time.Time
	if b.c.RetainMode != "" && b.c.RetainFor > 0 {
		until = ceilSecond(time.Now().Add(b.c.RetainFor))
	}
	lost := false // an earlier attempt may have created the object
	return b.do(ctx, "put", key, func() *failure {
		f := b.putOnce(ctx, cl, key, src, name, until)
		if f != nil && f.status == http.StatusPreconditionFailed {
			if !lost {
				return fatal(objstore.ErrExists, nil)
			}
			f = b.settle(ctx, key, src, name)
		}
		if f == nil {
			return nil
		}
		if lost && f.kind != objstore.ErrExists && f.kind != objstore.ErrUnavailable {
			// Any other kind would say that nothing became visible.
			f.kind, f.err = objstore.ErrUnavailable, fmt.Errorf("the answer to an earlier attempt was lost, and then: %v", f.err)
		}
		lost = lost || f.lost
		return f
	})
}

func (b *Bucket) putOnce(ctx context.Context, cl *sdk.Client, key string, src *attempt.Source, name string, until time.Time) *failure {
	limit := 4*b.c.StallTimeout + time.Duration(src.Size/minRate)*time.Second
	w := attempt.NewWatch(ctx, b.c.StallTimeout, limit)
	defer w.Stop()
	body := attempt.Send(src, w)
	in := &sdk.PutObjectInput{
		Bucket:         &b.c.Bucket,
		Key:            b.at(key),
		Body:           body,
		ContentLength:  &src.Size,
		IfNoneMatch:    aws.String("*"),
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(src.SHA256[:])),
		Metadata:       map[string]string{metaPut: name},
	}
	if !until.IsZero() {
		in.ObjectLockMode = types.ObjectLockMode(b.c.RetainMode)
		in.ObjectLockRetainUntilDate = &until
	}
	out, err := cl.PutObject(w.Ctx, in, signedPayload(src.SHA256))
	if srcErr := body.Finish(); srcErr != nil {
		return fatal(nil, fmt.Errorf("read body: %w", srcErr))
	}
	if f := b.judge(w, err); f != nil {
		return f
	}
	if aws.ToString(out.ETag) == "" {
		return odd("the put was answered without an ETag")
	}
	return nil
}

// signedPayload spares the SDK from reading the body once more to hash it.
func signedPayload(sum [32]byte) func(*sdk.Options) {
	return func(o *sdk.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("holdfastPayloadHash",
				func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
					return next.HandleInitialize(v4.SetPayloadHash(ctx, hex.EncodeToString(sum[:])), in)
				}), middleware.Before)
		})
	}
}

// settle finds out whose object it is that made an attempt meet 412 after the
// answer to an earlier one was lost.
func (b *Bucket) settle(ctx context.Context, key string, src *attempt.Source, name string) *failure {
	out, f := b.headOnce(ctx, key)
	if f != nil {
		if f.kind == objstore.ErrNotExist {
			return again(errors.New("the object was there and is gone: something deletes under this key"))
		}
		if !f.retry {
			f = fatal(objstore.ErrUnavailable, fmt.Errorf("the answer to an earlier attempt was lost, and the object cannot be asked for: %v", f.err))
		}
		return f
	}
	if put := out.Metadata[metaPut]; put != "" {
		if put == name {
			return nil
		}
		return fatal(objstore.ErrExists, nil)
	}
	// The store keeps no metadata, or the object came by a signed URL: then it
	// is this one if it has this content, which is all that anybody can see.
	if aws.ToInt64(out.ContentLength) != src.Size {
		return fatal(objstore.ErrExists, nil)
	}
	info, err := objstore.Digest(ctx, b, key)
	if err != nil {
		return again(fmt.Errorf("compare the object with the body: %w", err))
	}
	if info.SHA256 != src.SHA256 || info.Size != src.Size {
		return fatal(objstore.ErrExists, nil)
	}
	return nil
}

// ceilSecond rounds up to S3's resolution, so that a retention is never
// shorter than asked for.
func ceilSecond(t time.Time) time.Time {
	t = t.UTC()
	if c := t.Truncate(time.Second); !c.Equal(t) {
		return c.Add(time.Second)
	}
	return t
}
