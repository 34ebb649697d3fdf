package azure

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"holdfast/internal/objstore"
)

const (
	// maxSigned is the longest life of a user delegation key, and so of a URL.
	maxSigned = 7 * 24 * time.Hour

	// delegationLife is how long a user delegation key is asked for: a few a day
	// are enough, and one that leaks does not serve for long.
	delegationLife = 6 * time.Hour

	// delegationPast is how much earlier than now a key begins, for clocks that
	// differ.
	delegationPast = 10 * time.Minute
)

// delegation is a user delegation key with its life.
type delegation struct {
	key     *service.UserDelegationCredential
	expires time.Time
}

// SignPut signs a PUT that can create key and do nothing else; see
// objstore.Signer, and the package comment on what a SAS does not bind: size and
// sum go into the headers or into what the caller verifies, not into the
// signature. expires is at most seven days ahead. With Config.RetainFor it fails
// with errors.ErrUnsupported: who may create a blob may not set its retention
// by a signed URL, so new blobs would go without. A default policy of the
// container retains them, whoever creates them.
func (b *Bucket) SignPut(ctx context.Context, key string, size int64, _ [32]byte, expires time.Time) (objstore.SignedURL, error) {
	fail := func(kind, err error) (objstore.SignedURL, error) {
		return objstore.SignedURL{}, &objstore.Error{Op: "sign put of", Key: key, Kind: kind, Err: err}
	}
	cl, err := b.beginWrite(ctx, "sign put of", key)
	if err != nil {
		return objstore.SignedURL{}, err
	}
	lives := time.Until(expires).Truncate(time.Second)
	switch {
	case cl.shared == nil && !cl.signs:
		return fail(objstore.ErrDenied, errors.New("anonymous access cannot sign"))
	case b.c.RetainFor > 0:
		return fail(nil, fmt.Errorf("%w: the holder of a signed URL cannot set a retention; leave retain-for out of the store's address and give the container a default time-based retention policy", errors.ErrUnsupported))
	case size < 0:
		return fail(objstore.ErrMismatch, fmt.Errorf("size is %d", size))
	case size > MaxObject:
		return fail(objstore.ErrTooLarge, fmt.Errorf("%d bytes; Azure takes %d in one request", size, int64(MaxObject)))
	case lives < time.Second:
		return fail(nil, errors.New("it would have expired before it was issued"))
	case lives > maxSigned:
		return fail(nil, fmt.Errorf("Azure signs for %v at most, and %v were asked for", maxSigned, lives))
	}
	values := sas.BlobSignatureValues{
		Protocol:      sas.ProtocolHTTPS,
		ExpiryTime:    expires.UTC().Truncate(time.Second), // no start: clocks differ
		Permissions:   (&sas.BlobPermissions{Create: true}).String(),
		ContainerName: b.c.Container,
		BlobName:      b.at(key),
	}
	if b.c.endpointURL().Scheme == "http" { // this machine itself: see Validate
		values.Protocol = sas.ProtocolHTTPSandHTTP
	}
	var query sas.QueryParameters
	if cl.shared != nil {
		query, err = values.SignWithSharedKey(cl.shared)
	} else {
		var d *delegation
		if d, err = b.delegation(ctx, cl, key, values.ExpiryTime); err != nil {
			return objstore.SignedURL{}, err
		}
		query, err = values.SignWithUserDelegation(d.key)
	}
	if err != nil {
		return fail(objstore.ErrUnavailable, fmt.Errorf("sign: %w", err))
	}
	return objstore.SignedURL{
		URL: cl.blob(b.at(key)).URL() + "?" + query.Encode(),
		Headers: map[string]string{
			"X-Ms-Blob-Type": "BlockBlob",
			"If-None-Match":  "*",
			"Content-Length": strconv.FormatInt(size, 10),
		},
	}, nil
}

// delegation returns a user delegation key that lives until the given time at
// least. With it the store signs for whoever is signed in by Entra ID.
func (b *Bucket) delegation(ctx context.Context, cl *client, key string, until time.Time) (*delegation, error) {
	if d := b.delegate.Load(); d != nil && !d.expires.Before(until) {
		return d, nil
	}
	if err := b.lock(ctx); err != nil {
		return nil, &objstore.Error{Op: "sign put of", Key: key, Err: err}
	}
	defer b.unlock()
	if d := b.delegate.Load(); d != nil && !d.expires.Before(until) {
		return d, nil
	}
	var d *delegation
	err := b.do(ctx, "sign put of", key, func() *failure {
		now := time.Now().UTC().Truncate(time.Second)
		end := until
		if later := now.Add(delegationLife); later.After(end) {
			end = later
		}
		// The service counts seven days from the beginning of the key.
		begin := now.Add(-delegationPast)
		if end.Sub(begin) > maxSigned {
			begin = end.Add(-maxSigned)
		}
		start, expiry := begin.Format(sas.TimeFormat), end.Format(sas.TimeFormat)
		w := newWatch(ctx, b.c.StallTimeout, 0)
		defer w.stop()
		got, err := cl.service.GetUserDelegationCredential(w.ctx, service.KeyInfo{Start: &start, Expiry: &expiry}, nil)
		if f := b.judge(w, err); f != nil {
			if f.kind == objstore.ErrDenied {
				f.err = fmt.Errorf("ask for a user delegation key: %w; grant the role Storage Blob Delegator on the account", f.err)
			}
			return f
		}
		d = &delegation{key: got, expires: end}
		return nil
	})
	if err != nil {
		return nil, err
	}
	b.delegate.Store(d)
	return d, nil
}
