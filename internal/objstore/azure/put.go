package azure

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
	"holdfast/internal/objstore/azure/refusal"
)

const (
	// metaPut is the metadata that tells which call created the object. Azure
	// takes names that are identifiers only.
	metaPut = "holdfastput"

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
		return fail(objstore.ErrTooLarge, fmt.Errorf("%d bytes; Azure takes %d in one request", size, int64(MaxObject)))
	}
	cl, err := b.beginWrite(ctx, "put", key)
	if err != nil {
		return err
	}
	check := md5.New() // what Azure checks a body by
	src, err := attempt.Prepare(ctx, r, size, sum, check)
	if err != nil {
		return fail(nil, err)
	}
	defer src.Close()
	return b.put(ctx, cl, key, src, check.Sum(nil))
}

// put makes the attempts and settles what a lost answer left open.
func (b *Bucket) put(ctx context.Context, cl *client, key string, src *attempt.Source, check []byte) error {
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
		f := b.putOnce(ctx, cl, key, src, check, name, until)
		if f != nil && f.kind == objstore.ErrExists && lost {
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

func (b *Bucket) putOnce(ctx context.Context, cl *client, key string, src *attempt.Source, check []byte, name string, until time.Time) *failure {
	limit := 4*b.c.StallTimeout + time.Duration(src.Size/minRate)*time.Second
	w := attempt.NewWatch(ctx, b.c.StallTimeout, limit)
	defer w.Stop()
	body := attempt.Send(src, w)
	o := createOnly(check)
	o.Metadata = map[string]*string{metaPut: &name}
	if !until.IsZero() {
		mode := policyMode(b.c.RetainMode)
		o.ImmutabilityPolicyMode, o.ImmutabilityPolicyExpiryTime = &mode, &until
	}
	out, err := cl.blob(b.at(key)).Upload(w.Ctx, body, o)
	if srcErr := body.Finish(); srcErr != nil {
		return fatal(nil, fmt.Errorf("read body: %w", srcErr))
	}
	if f := b.judge(w, err); f != nil {
		if f.taken() {
			return &failure{kind: objstore.ErrExists, status: f.status, code: f.code}
		}
		return f
	}
	if out.ETag == nil || *out.ETag == "" {
		return odd("the put was answered without an ETag")
	}
	return nil
}

// createOnly are the conditions of every Put Blob of this package.
func createOnly(sum []byte) *blockblob.UploadOptions {
	all := azcore.ETagAny
	return &blockblob.UploadOptions{
		AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &all}},
		TransactionalValidation: blob.TransferValidationTypeMD5(sum),
	}
}

// taken reports an answer that only a blob that is there can cause. The service
// words a condition that was not met in more than one way, and may say first
// that the blob is kept.
func (f *failure) taken() bool {
	switch f.code {
	case "BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy", refusal.CodeLegalHold, "BlobArchived":
		return f.status == http.StatusConflict || f.status == http.StatusPreconditionFailed || f.status == http.StatusForbidden
	}
	return f.status == http.StatusPreconditionFailed && f.code == ""
}

// settle finds out whose object it is that an attempt met after the answer to an
// earlier one was lost.
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
	// Header names come back in the case of net/http.
	for k, v := range out.Metadata {
		if strings.EqualFold(k, metaPut) && v != nil {
			if *v == name {
				return nil
			}
			return fatal(objstore.ErrExists, nil)
		}
	}
	// It came by a signed URL, or the metadata was lost: then it is this one if
	// it has this content, which is all that anybody can see.
	if *out.ContentLength != src.Size {
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

// ceilSecond rounds up to the store's resolution, so that a retention is never
// shorter than asked for.
func ceilSecond(t time.Time) time.Time {
	t = t.UTC()
	if c := t.Truncate(time.Second); !c.Equal(t) {
		return c.Add(time.Second)
	}
	return t
}
