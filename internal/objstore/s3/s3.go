// Package s3 keeps a bucket in Amazon S3 or a store that speaks its REST API
// (version 2006-03-01, the API reference of 2026).
//
// What the contract of objstore rests on here:
//
//   - An object is created by one PutObject with If-None-Match: * and the SHA-256
//     of its body in x-amz-checksum-sha256 and in the signature. 412 is
//     ErrExists; 409 ConditionalRequestConflict and OperationAborted are tried
//     again, as S3 prescribes. A store that does not honour the condition
//     would overwrite: Open, or the first write, proves that it does and
//     refuses to work otherwise.
//   - Each put carries a name of its own in the metadata (holdfast-put). If the
//     answer to an attempt was lost and the next one meets 412, that name tells
//     whether the object is this put's or somebody else's. Where a store
//     loses metadata, size and SHA-256 decide.
//   - A 404 means absence only with S3's own code NoSuchKey. HEAD has no body to
//     carry a code, so a 404 of HEAD is confirmed by a GET.
//
// Every attempt ends when no byte moves for Config.StallTimeout and has a bound
// in all; temporary failures are repeated with jitter, and nothing else is.
//
// Objects of other programs under the prefix whose names are not keys are
// ignored. Under Config.Prefix the package keeps one object of its own,
// "probe/create-only" (and never deletes it, so that append-only credentials do).
//
// Versioned buckets: Delete leaves a delete marker, so the key is absent and may
// be created again while the former version stays, and costs, until a lifecycle
// rule expires noncurrent versions (and markers without versions). A bucket
// with Object Lock is always versioned.
//
// Rights needed: s3:ListBucket (without it S3 answers 403 for absent objects,
// which is ErrDenied here), s3:GetObject, s3:PutObject, s3:DeleteObject, and for
// retention s3:GetBucketObjectLockConfiguration, s3:GetObjectRetention and
// s3:PutObjectRetention. A deployment that trusts the vault less than the store
// adds a bucket policy demanding s3:if-none-match on s3:PutObject.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// MaxObject is the greatest size of an object in bytes: what S3 takes in one
// request.
const MaxObject = 5 << 30

// Bucket is a store in S3. It is safe for concurrent use, and several processes
// may share one place.
type Bucket struct {
	c      Config
	prefix string // in front of every key; empty or ending in a slash
	http   *http.Client

	turn     chan struct{} // holds one token: who has it may open or probe
	client   atomic.Pointer[sdk.Client]
	writable atomic.Bool // the store was seen to honour If-None-Match
	signable atomic.Bool // the store was seen to refuse a wrong checksum
}

var (
	_ objstore.Bucket      = (*Bucket)(nil)
	_ objstore.AfterLister = (*Bucket)(nil)
	_ objstore.Signer      = (*Bucket)(nil)
	_ objstore.Retainer    = (*Bucket)(nil)
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
	b.http = &http.Client{
		Transport: c.Transport,
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

// Open finds credentials and proves that the store can be used: that the bucket
// is there, that it honours If-None-Match, and has Object Lock if retention was
// asked for. What was proved once is not asked again; after an error Open may be
// called again. Calls on a Bucket that is not open do the same on their own,
// reads without the proof.
func (b *Bucket) Open(ctx context.Context) error {
	if !b.c.ReadOnly {
		return b.ready(ctx, "open", b.c.String())
	}
	cl, err := b.sdk(ctx)
	if err != nil {
		return b.openError(ctx, "open", b.c.String(), err)
	}
	return b.do(ctx, "open", b.c.String(), func() *failure {
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		out, err := cl.ListObjectsV2(w.Ctx, &sdk.ListObjectsV2Input{Bucket: &b.c.Bucket, Prefix: &b.prefix, MaxKeys: aws.Int32(1)})
		if f := b.judge(w, err); f != nil {
			return f
		}
		if _, err := b.page(out, "", ""); err != nil {
			return again(err)
		}
		return nil
	})
}

// Close lets idle connections go. It is idempotent, and the Bucket can be used
// on.
func (b *Bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// sdk returns the client, making it at first use.
func (b *Bucket) sdk(ctx context.Context) (*sdk.Client, error) {
	if cl := b.client.Load(); cl != nil {
		return cl, nil
	}
	if err := b.lock(ctx); err != nil {
		return nil, err
	}
	defer b.unlock()
	return b.sdkLocked(ctx)
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

func (b *Bucket) sdkLocked(ctx context.Context) (*sdk.Client, error) {
	if cl := b.client.Load(); cl != nil {
		return cl, nil
	}
	var cfg aws.Config
	switch {
	case b.c.Anonymous:
		cfg.Credentials = aws.AnonymousCredentials{}
	case b.c.AccessKeyID != "":
		cfg.Credentials = credentials.NewStaticCredentialsProvider(b.c.AccessKeyID, b.c.SecretAccessKey, b.c.SessionToken)
	default:
		var err error
		if cfg, err = b.discover(ctx); err != nil {
			return nil, err
		}
	}
	if b.c.Region != "" {
		cfg.Region = b.c.Region
	} else if cfg.Region == "" && b.c.Endpoint != "" {
		cfg.Region = "us-east-1" // what nearly every other store calls its only region
	}
	if cfg.Region == "" {
		return nil, errors.New("no region is known; add region=… to the store's address or set AWS_REGION")
	}
	cl := sdk.NewFromConfig(cfg, func(o *sdk.Options) {
		o.UsePathStyle = b.c.PathStyle
		o.HTTPClient = b.http
		o.Retryer = aws.NopRetryer{} // do decides, because PutNew must know of every attempt
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableS3ExpressSessionAuth = aws.Bool(true)
		o.Logger = logging.Nop{}
		if b.c.Endpoint != "" {
			o.BaseEndpoint = aws.String(strings.TrimSuffix(b.c.Endpoint, "/"))
		}
	})
	b.client.Store(cl)
	return cl, nil
}

// discover reads what the environment, the shared configuration files or the
// machine's role say.
func (b *Bucket) discover(ctx context.Context) (aws.Config, error) {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	cfg, err := config.LoadDefaultConfig(w.Ctx, config.WithLogger(logging.Nop{}))
	if err != nil {
		return aws.Config{}, fmt.Errorf("read the AWS configuration of this machine: %w", w.Explain(err))
	}
	// Asked now, so that missing credentials are told as that, and not as a
	// store that cannot be reached.
	if _, err := cfg.Credentials.Retrieve(w.Ctx); err != nil {
		return aws.Config{}, fmt.Errorf("no usable credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the shared configuration files or a role: %w", w.Explain(err))
	}
	return cfg, nil
}

// openError words a failure that came before the store was asked.
func (b *Bucket) openError(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return &objstore.Error{Op: op, Key: key, Err: ctx.Err()}
	}
	return &objstore.Error{Op: op, Key: key, Kind: objstore.ErrUnavailable, Err: err}
}

// begin is what every call starts with: a valid key, a living context, a client.
func (b *Bucket) begin(ctx context.Context, op, key string) (*sdk.Client, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return nil, &objstore.Error{Op: op, Key: key, Err: err}
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
func (b *Bucket) beginWrite(ctx context.Context, op, key string) (*sdk.Client, error) {
	cl, err := b.begin(ctx, op, key)
	if err != nil {
		return nil, err
	}
	if b.c.ReadOnly {
		return nil, &objstore.Error{Op: op, Key: key, Kind: objstore.ErrReadOnly, Err: errors.New("it was configured so")}
	}
	return cl, b.ready(ctx, op, key)
}

// at is the name of a key inside the S3 bucket.
func (b *Bucket) at(key string) *string { return aws.String(b.prefix + key) }
