// Package azure keeps a bucket in a container of Azure Blob Storage, by
// Microsoft's SDK and the published REST contract (Blob service REST API).
//
// What the contract of objstore rests on here:
//
//   - An object is a block blob made by one Put Blob with If-None-Match: * and
//     the MD5 of its body, which the service checks. 409 BlobAlreadyExists and
//     412 are ErrExists. Open, or the first write, proves that the condition is
//     honoured and refuses to work otherwise.
//   - Each put carries a name of its own in the metadata (holdfastput). If the
//     answer to an attempt was lost and the next one meets an object, that name
//     tells whether it is this put's or somebody else's. Without the name, size
//     and SHA-256 of what is stored decide.
//   - Only a 404 with the service's own code BlobNotFound means absence.
//   - Blob Storage records no SHA-256. Metadata could hold one, but whoever has a
//     signed URL may write any metadata, so Head never reports a digest and
//     objstore.Digest reads the object.
//
// Every attempt ends when no byte moves for Config.StallTimeout and has a bound
// in all; temporary failures (503 and 429 among them) are repeated with jitter,
// and nothing else is.
//
// Signed URLs are service SAS of one blob with the permission create (sp=c) and
// nothing else: the holder cannot list, read, overwrite or delete (package
// grant). By Entra ID they are signed with a user delegation key. What a SAS
// cannot bind, in contrast to S3's signatures, is the content: the holder may
// create his one object with other bytes, as another type of blob or in the
// archive tier, and may take snapshots of it. So what was uploaded has to be
// verified before it is relied on, as the vault does when it lists a cut. After a
// lost answer a second PUT meets 403, which neither means that the object is
// there nor that it is not.
//
// For the time when nobody is there to sign there are two capabilities.
// AheadSigner signs names whose contents are not known yet, one URL for each, and
// grants no more than SignPut does. PrefixSigner signs for all names at once, and
// only in a container that belongs to one writer (Config.Dedicated), because a
// signature for a container of many would let a captured host occupy the names
// of the others.
//
// Retention: PutNew sends it with the object. The holder of a signed URL cannot,
// because the permission for it (i) would also let him lift it or lock his blobs
// for ever; so what comes by signed URLs is retained by a default policy of the
// container, or by whoever lists it (RetainNew): see Config.RetainSigned.
//
// Errors that say what an operator has to mend carry an objstore.Cause (package
// refusal). Package meter counts the requests by billing class: Bucket.Stats.
//
// Blobs of other programs under the prefix whose names are not keys are ignored.
// Under Config.Prefix the package keeps one object of its own,
// "probe/create-only". Accounts with a hierarchical namespace are refused: they
// show folders as blobs, list in another order, and have no version-level
// immutability.
//
// With versioning (which version-level immutability demands) Delete leaves the
// former version behind: it costs until a lifecycle rule removes it (an action on
// versions, some days after they stopped being current).
//
// Tiers: new objects go into the account's default tier, which has to be Hot.
// Cuts and their parts are read again and deleted within days, so in Cool (30
// days at least are billed) or Cold (90) they cost more than they save. What has
// outlived the fine-grained recovery points is folded data that is seldom read:
// a lifecycle rule may move it to Cool, or to Cold if recovery points are kept
// for more than 90 days, by the age since creation, with an age above that of the
// oldest point that is not yet folded. Both can be read at once, for a price by
// the GiB, which a failover pays. Rules go by a name's beginning only, so one for
// "container/prefix/v1/m/" with that age is all that can be said. Archive is
// never right: such blobs cannot be read for hours, and a restore fails. No rule
// may delete current blobs: what is needed only Holdfast knows.
//
// Rights needed with Entra ID: the role Storage Blob Data Contributor on the
// container (Reader suffices for Config.ReadOnly), for signed URLs Storage Blob
// Delegator on the account, and for retention Storage Blob Data Owner.
package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure/grant"
	"holdfast/internal/objstore/azure/meter"
	"holdfast/internal/objstore/azure/refusal"
)

// MaxObject is the greatest size of an object in bytes: what one Put Blob takes.
const MaxObject = 5000 << 20

// Bucket is a store in Azure Blob Storage. It is safe for concurrent use, and
// several processes may share one place.
type Bucket struct {
	c      Config
	prefix string // in front of every key; empty or ending in a slash
	http   *http.Client
	meter  *meter.Meter
	place  refusal.Place

	turn     chan struct{} // holds one token: who has it may open or probe
	client   atomic.Pointer[client]
	writable atomic.Bool // the store was seen to honour If-None-Match
	defaults atomic.Bool // the container was seen to have a default retention
}

// client is what the SDK needs to be asked by.
type client struct {
	container *container.Client
	service   *service.Client // nil unless by Entra ID
	grant     *grant.Signer   // nil if nobody can sign
}

func (c *client) blob(name string) *blockblob.Client { return c.container.NewBlockBlobClient(name) }

var (
	_ objstore.Bucket      = (*Bucket)(nil)
	_ objstore.AfterLister = (*Bucket)(nil)
	_ objstore.Signer      = (*Bucket)(nil)
	_ objstore.Retainer    = (*Bucket)(nil)
	_ objstore.NewRetainer = (*Bucket)(nil)
	_ objstore.AheadSigner = (*Bucket)(nil)
	_ PrefixSigner         = (*Bucket)(nil)
	_ AheadSigner          = (*Bucket)(nil)
)

// New returns the bucket; it does no I/O.
func New(c Config) (*Bucket, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.StallTimeout = orDefault(c.StallTimeout, defaultStall)
	c.Attempts = orDefault(c.Attempts, defaultAttempts)
	c.BaseDelay = orDefault(c.BaseDelay, defaultBase)
	c.MaxDelay = orDefault(c.MaxDelay, defaultMax)
	if c.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 64  // the default of 2 would dial anew all the time
		t.DisableCompression = true // sizes and ranges are those of the object
		c.Transport = t
	}
	b := &Bucket{c: c, turn: make(chan struct{}, 1)}
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		b.prefix = p + "/"
	}
	b.meter = meter.New(c.endpointURL().Host, c.Transport)
	b.place = refusal.Place{Account: c.account(), Container: c.Container, Auth: refusal.ByToken, Emulator: c.plain()}
	b.http = &http.Client{
		Transport: b.meter,
		// A signed request goes where it was signed for, or nowhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return b, nil
}

func orDefault[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Open finds credentials and proves that the store can be used: that the
// container is there, that it honours If-None-Match, and has version-level
// immutability if retention was asked for. What was proved once is not asked
// again; after an error Open may be called again. Calls on a Bucket that is not
// open do the same on their own, reads without the proof.
func (b *Bucket) Open(ctx context.Context) error {
	if !b.c.ReadOnly {
		return b.ready(ctx, "open", b.c.String())
	}
	cl, err := b.sdk(ctx)
	if err != nil {
		return b.openError(ctx, "open", b.c.String(), err)
	}
	if err := b.flat(ctx, cl, "open", b.c.String()); err != nil {
		return err
	}
	return b.do(ctx, "open", b.c.String(), func() *failure {
		one := int32(1)
		_, f := b.pageOnce(ctx, cl, &container.ListBlobsFlatOptions{Prefix: &b.prefix, MaxResults: &one}, "", "")
		return f
	})
}

// Close lets idle connections go. It is idempotent, and the Bucket can be used on.
func (b *Bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// Stats tells what this Bucket has asked of the service so far, by billing
// class; see package meter. Uploads by signed URLs are not in it: they go from
// their holder to the service.
func (b *Bucket) Stats() meter.Stats { return b.meter.Stats() }

// sdk returns the client, making it at first use.
func (b *Bucket) sdk(ctx context.Context) (*client, error) {
	if cl := b.client.Load(); cl != nil {
		return cl, nil
	}
	if err := b.lock(ctx); err != nil {
		return nil, err
	}
	defer b.unlock()
	return b.sdkLocked()
}

func (b *Bucket) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case b.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Bucket) unlock() { <-b.turn }

func (b *Bucket) sdkLocked() (*client, error) {
	if cl := b.client.Load(); cl != nil {
		return cl, nil
	}
	key, err := b.c.findKey()
	if err != nil {
		return nil, err
	}
	base := b.c.endpointURL()
	where := base.JoinPath(b.c.Container).String()
	options := b.options()
	cl := &client{}
	sign := grant.Config{Container: b.c.Container, Plain: b.c.plain()}
	switch {
	case b.c.Auth == AuthAnonymous:
		if cl.container, err = container.NewClientWithNoCredential(where, &container.ClientOptions{ClientOptions: options}); err != nil {
			return nil, errors.New("the endpoint cannot be used")
		}
	case key != "":
		if sign.Shared, err = azblob.NewSharedKeyCredential(b.c.account(), key); err != nil {
			return nil, errors.New("the shared key is not one: it must be the base64 text that Azure shows") // err could show it
		}
		if cl.container, err = container.NewClientWithSharedKeyCredential(where, sign.Shared, &container.ClientOptions{ClientOptions: options}); err != nil {
			return nil, errors.New("the endpoint cannot be used with a shared key")
		}
		cl.grant = grant.New(sign)
	default:
		token := b.c.Credential
		if token == nil {
			if token, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: options}); err != nil {
				return nil, fmt.Errorf("prepare to sign in by Entra ID: %w", err)
			}
		}
		if cl.container, err = container.NewClient(where, token, &container.ClientOptions{ClientOptions: options}); err != nil {
			return nil, fmt.Errorf("prepare to sign in by Entra ID: %w", err)
		}
		// The SDK signs for the account that the first part of the host is called,
		// which in https://host/ACCOUNT and with a name of one's own it is not.
		keys := options
		named := *base
		if first, _, _ := strings.Cut(base.Hostname(), "."); first != b.c.account() {
			named.Host, named.Path = b.c.account()+".blob.invalid", ""
			keys.Transport = &redirected{to: base, http: b.http}
		}
		if cl.service, err = service.NewClient(named.String()+"/", token, &service.ClientOptions{ClientOptions: keys}); err != nil {
			return nil, fmt.Errorf("prepare to sign in by Entra ID: %w", err)
		}
		sign.Fetch = func(ctx context.Context, start, expiry time.Time) (*service.UserDelegationCredential, error) {
			return b.delegation(ctx, cl, start, expiry)
		}
		cl.grant = grant.New(sign)
	}
	switch { // before anybody can be refused
	case b.c.Auth == AuthAnonymous:
		b.place.Auth = refusal.ByNobody
	case sign.Shared != nil:
		b.place.Auth = refusal.ByKey
	}
	b.client.Store(cl)
	return cl, nil
}

// redirected sends what the SDK addresses to the account's name to where the
// account is.
type redirected struct {
	to   *url.URL
	http *http.Client
}

func (d *redirected) Do(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.Host = d.to.Scheme, d.to.Host, d.to.Host
	r.URL.Path, r.URL.RawPath = d.to.Path+r.URL.Path, ""
	return d.http.Do(r)
}

// options are those of every client of the SDK: do decides on repetition,
// because PutNew must know of every attempt.
func (b *Bucket) options() azcore.ClientOptions {
	o := azcore.ClientOptions{
		Transport: b.http,
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Telemetry: policy.TelemetryOptions{ApplicationID: "holdfast"},
	}
	// Tokens for another cloud come from another authority; by itself the SDK
	// takes the commercial one, or AZURE_AUTHORITY_HOST.
	switch host := b.c.endpointURL().Hostname(); {
	case strings.HasSuffix(host, ".usgovcloudapi.net"):
		o.Cloud = cloud.AzureGovernment
	case strings.HasSuffix(host, ".chinacloudapi.cn"):
		o.Cloud = cloud.AzureChina
	}
	return o
}

// openError words a failure that came before the store was asked.
func (b *Bucket) openError(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return &objstore.Error{Op: op, Key: key, Err: ctx.Err()}
	}
	return &objstore.Error{Op: op, Key: key, Kind: objstore.ErrUnavailable, Err: err}
}

// begin is what every call starts with: a valid key, a living context, a client.
func (b *Bucket) begin(ctx context.Context, op, key string) (*client, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return nil, &objstore.Error{Op: op, Key: key, Err: err}
	}
	if strings.Count(key, "/") >= keySegments {
		return nil, &objstore.Error{Op: op, Key: key, Kind: objstore.ErrInvalidKey, Err: fmt.Errorf("more than %d segments", keySegments)}
	}
	if err := ctx.Err(); err != nil {
		return nil, &objstore.Error{Op: op, Key: key, Err: err}
	}
	cl, err := b.sdk(ctx)
	if err != nil {
		return nil, b.openError(ctx, op, key, err)
	}
	return cl, nil
}

// beginWrite is begin for calls that write: the store must be fit for it.
func (b *Bucket) beginWrite(ctx context.Context, op, key string) (*client, error) {
	cl, err := b.begin(ctx, op, key)
	if err != nil {
		return nil, err
	}
	if b.c.ReadOnly {
		return nil, &objstore.Error{Op: op, Key: key, Kind: objstore.ErrReadOnly, Err: errors.New("it was configured so")}
	}
	return cl, b.ready(ctx, op, key)
}

// at is the name of a key inside the container.
func (b *Bucket) at(key string) string { return b.prefix + key }
