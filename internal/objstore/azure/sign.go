package azure

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
	"holdfast/internal/objstore/azure/grant"
)

// opSign is the verb of the errors of this file.
const opSign = "sign put of"

// AheadSigner is an optional capability of a bucket: create-only URLs for names
// whose contents are not known yet. With it a writer whose names are determined
// beforehand (cut N, its parts) can be given the URLs of its next hours, and
// goes on while nobody is there who signs.
//
// It is no weaker than SignPut in a store whose signatures do not bind the
// content anyway, as those of Azure. What it costs: a URL in advance for each
// name that may be needed, and as long as the URLs live, whoever has them can
// occupy those names, of that writer's generation, with anything. Names that are
// chosen by chance (tile images) have to be chosen before they are asked for.
type AheadSigner interface {
	// SignAhead returns a request for each key, in order, that creates it until
	// the given time. The holder can neither read, overwrite nor delete.
	SignAhead(ctx context.Context, keys []string, until time.Time) ([]objstore.SignedURL, error)
}

// PrefixSigner is an optional capability of a bucket: one signature that creates
// objects under a prefix, for names that cannot be told beforehand.
type PrefixSigner interface {
	// SignPrefix returns what the holder needs to create objects under prefix,
	// which ends in a slash, until the given time. He can neither read, list,
	// overwrite nor delete. It fails with errors.ErrUnsupported where the store
	// could only sign for more than the prefix.
	SignPrefix(ctx context.Context, prefix string, until time.Time) (SignedPrefix, error)
}

// SignedPrefix lets its holder create objects under a prefix; see package grant.
type SignedPrefix = grant.SignedPrefix

// SignPut signs a PUT that can create key and do nothing else; see
// objstore.Signer, and the package comment on what a SAS does not bind: size and
// sum go into the headers or into what the caller verifies, not into the
// signature. expires is at most seven days ahead.
//
// No signed URL sets a retention. With Config.RetainFor, SignPut therefore
// demands a default policy of the container, or that Config.RetainSigned leaves
// it to the vault, and fails with errors.ErrUnsupported otherwise: new objects
// would go without, and nobody would notice.
func (b *Bucket) SignPut(ctx context.Context, key string, size int64, _ [32]byte, expires time.Time) (objstore.SignedURL, error) {
	switch {
	case size < 0:
		return objstore.SignedURL{}, signError(key, objstore.ErrMismatch, fmt.Errorf("size is %d", size))
	case size > MaxObject:
		return objstore.SignedURL{}, signError(key, objstore.ErrTooLarge, fmt.Errorf("%d bytes; Azure takes %d in one request", size, int64(MaxObject)))
	}
	cl, err := b.beginSign(ctx, key)
	if err != nil {
		return objstore.SignedURL{}, err
	}
	u, err := b.signBlob(ctx, cl, key, expires)
	if err != nil {
		return objstore.SignedURL{}, err
	}
	u.Headers["Content-Length"] = strconv.FormatInt(size, 10)
	return u, nil
}

// SignAhead signs the creation of each key; see AheadSigner. until is at most
// seven days ahead, and what SignPut says of retention holds here, too. It asks
// the service once at most, so thousands of keys cost milliseconds.
func (b *Bucket) SignAhead(ctx context.Context, keys []string, until time.Time) ([]objstore.SignedURL, error) {
	urls := make([]objstore.SignedURL, 0, len(keys))
	for _, key := range keys {
		cl, err := b.beginSign(ctx, key)
		if err != nil {
			return nil, err
		}
		u, err := b.signBlob(ctx, cl, key, until)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// SignPrefix signs the creation of any key under prefix; see PrefixSigner.
//
// Azure signs for one blob, for a whole container, or for a directory. The
// directory needs a hierarchical namespace, which this package refuses (its
// listings have another order, and it has no version-level immutability). A
// signature for the container would let a captured host occupy the names of all
// other machines. So SignPrefix works in one form only: Config.Dedicated says
// that the container belongs to this one writer and its generation, and
// SignPrefix looks before it signs: if anything but the prefix is in the
// container, it refuses.
//
// What to know before using it: the holder may create any name in that
// container, so whoever takes objects out of it accepts only those under the
// prefix that the writer may write, and verifies them as after any upload; he
// may fill it up, which costs; and a signature by the shared key cannot be
// called back but by changing that key or deleting the container. until is at
// most seven days ahead; ask for no longer than an outage may last.
func (b *Bucket) SignPrefix(ctx context.Context, prefix string, until time.Time) (SignedPrefix, error) {
	folder, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return SignedPrefix{}, signError(prefix, objstore.ErrInvalidKey, errors.New("the prefix does not end in a slash"))
	}
	if !b.c.Dedicated {
		return SignedPrefix{}, signError(prefix, nil, fmt.Errorf(
			"%w: a signature for container %q would cover the objects of other machines, too; use a container for this writer alone (dedicated=true), or sign each name (SignAhead)", errors.ErrUnsupported, b.c.Container))
	}
	cl, err := b.beginSign(ctx, folder)
	if err != nil {
		return SignedPrefix{}, err
	}
	if err := b.do(ctx, opSign, prefix, func() *failure { return b.alone(ctx, cl, prefix) }); err != nil {
		return SignedPrefix{}, err
	}
	query, err := cl.grant.Container(ctx, until)
	if err != nil {
		return SignedPrefix{}, signFailed(ctx, prefix, err)
	}
	return SignedPrefix{Base: cl.container.URL() + "/", Query: query, Prefix: prefix, Headers: signedHeaders(), Expires: until.UTC().Truncate(time.Second)}, nil
}

// alone sees that the container holds nothing but what is under prefix, and this
// package's probe: one listing for each segment of the prefix.
func (b *Bucket) alone(ctx context.Context, cl *client, prefix string) *failure {
	for at := 0; at < len(prefix); {
		folder := prefix[:at]
		at += strings.IndexByte(prefix[at:], '/') + 1
		pages := cl.container.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &folder})
		for pages.More() {
			foreign, f := b.foreign(ctx, pages, prefix[:at])
			if f != nil {
				return f
			}
			if foreign != "" {
				return fatal(objstore.ErrDenied, fmt.Errorf("container %q is not this writer's alone: it holds %.200q besides %q", b.c.Container, foreign, prefix))
			}
		}
	}
	return nil
}

// foreign finds a name in a page of a listing that is neither own nor the probe's.
func (b *Bucket) foreign(ctx context.Context, pages *runtime.Pager[container.ListBlobsHierarchyResponse], own string) (string, *failure) {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := pages.NextPage(w.Ctx)
	if f := b.judge(w, err); f != nil {
		return "", f
	}
	if out.ContainerName == nil && out.ServiceEndpoint == nil || out.Segment == nil {
		return "", odd("a listing was asked for and something else answered")
	}
	for _, o := range out.Segment.BlobItems {
		if o != nil && o.Name != nil {
			return *o.Name, nil
		}
	}
	for _, p := range out.Segment.BlobPrefixes {
		if p != nil && p.Name != nil && *p.Name != own && *p.Name != probeFolder {
			return *p.Name, nil
		}
	}
	return "", nil
}

func signError(key string, kind, err error) error {
	return &objstore.Error{Op: opSign, Key: key, Kind: kind, Err: err}
}

// signFailed words what grant returned.
func signFailed(ctx context.Context, key string, err error) error {
	var known *objstore.Error
	switch {
	case errors.As(err, &known):
		return &objstore.Error{Op: opSign, Key: key, Kind: known.Kind, Err: known.Err}
	case ctx.Err() != nil:
		return signError(key, nil, ctx.Err())
	case errors.Is(err, grant.ErrOver), errors.Is(err, grant.ErrTooLong):
		return signError(key, nil, err)
	}
	return signError(key, objstore.ErrUnavailable, err)
}

// signedHeaders are those of every PUT by a signed URL.
func signedHeaders() map[string]string {
	return map[string]string{"X-Ms-Blob-Type": "BlockBlob", "If-None-Match": "*"}
}

// beginSign is what every signature starts with: a fit store, somebody who
// signs, and somebody who retains.
func (b *Bucket) beginSign(ctx context.Context, key string) (*client, error) {
	cl, err := b.beginWrite(ctx, opSign, key)
	if err != nil {
		return nil, err
	}
	if cl.grant == nil {
		return nil, signError(key, objstore.ErrDenied, errors.New("anonymous access cannot sign"))
	}
	if b.c.RetainFor > 0 && b.c.RetainSigned != ByVault && !b.defaults.Load() {
		if err := b.do(ctx, opSign, key, func() *failure { return b.probeDefault(ctx, cl) }); err != nil {
			return nil, err
		}
		b.defaults.Store(true)
	}
	return cl, nil
}

func (b *Bucket) signBlob(ctx context.Context, cl *client, key string, expires time.Time) (objstore.SignedURL, error) {
	query, err := cl.grant.Blob(ctx, b.at(key), expires)
	if err != nil {
		return objstore.SignedURL{}, signFailed(ctx, key, err)
	}
	return objstore.SignedURL{URL: cl.blob(b.at(key)).URL() + "?" + query, Headers: signedHeaders()}, nil
}

// delegation asks for a user delegation key.
func (b *Bucket) delegation(ctx context.Context, cl *client, start, expiry time.Time) (got *service.UserDelegationCredential, err error) {
	err = b.do(ctx, opSign, b.c.String(), func() *failure {
		from, to := start.Format(sas.TimeFormat), expiry.Format(sas.TimeFormat)
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		var err error
		got, err = cl.service.GetUserDelegationCredential(w.Ctx, service.KeyInfo{Start: &from, Expiry: &to}, nil)
		f := b.judge(w, err)
		if f != nil && f.kind == objstore.ErrDenied {
			f.err = fmt.Errorf("ask for a user delegation key: %w; grant the role Storage Blob Delegator on the account", f.err)
		}
		return f
	})
	return got, err
}
