package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// The objects with which the package tries what a store does. The first stays,
// so that a second Open needs one request; the second never comes to be.
const (
	probeCreateOnly = "probe/create-only"
	probeChecksum   = "probe/checksum"
)

// maxSigned is the longest life of a signed URL that S3 knows.
const maxSigned = 7 * 24 * time.Hour

// ready proves once that the store is fit to be written to.
func (b *Bucket) ready(ctx context.Context, op, key string) error {
	if b.writable.Load() {
		return nil
	}
	if err := b.lock(ctx); err != nil {
		return &objstore.Error{Op: op, Key: key, Err: err}
	}
	defer b.unlock()
	if b.writable.Load() {
		return nil
	}
	cl, err := b.sdkLocked(ctx)
	if err != nil {
		return b.openError(ctx, op, key, err)
	}
	// The first put creates the object, unless an earlier Open did.
	refused := false
	for n := 0; n < 2 && !refused; n++ {
		if err := b.do(ctx, op, key, func() (f *failure) {
			refused, f = b.probeOnce(ctx, cl)
			return f
		}); err != nil {
			return err
		}
	}
	if !refused {
		return &objstore.Error{Op: op, Key: key, Kind: objstore.ErrUnavailable, Err: fmt.Errorf(
			"the store ignores If-None-Match: it overwrote %q, which has to be refused, so recovery points could be overwritten; use a store, or a release of it, that has conditional writes",
			b.prefix+probeCreateOnly)}
	}
	if b.c.RetainMode != "" {
		if err := b.do(ctx, op, key, func() *failure { return b.probeLock(ctx, cl) }); err != nil {
			return err
		}
	}
	b.writable.Store(true)
	return nil
}

// probeOnce puts the probe object and reports whether the store refused it for
// being there.
func (b *Bucket) probeOnce(ctx context.Context, cl *sdk.Client) (refused bool, f *failure) {
	text := "Holdfast creates this object to see whether the store honours If-None-Match. It may be deleted.\n"
	sum := sha256.Sum256([]byte(text))
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.PutObject(w.Ctx, &sdk.PutObjectInput{
		Bucket: &b.c.Bucket, Key: b.at(probeCreateOnly), Body: strings.NewReader(text), ContentLength: aws.Int64(int64(len(text))),
		IfNoneMatch: aws.String("*"), ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}, signedPayload(sum))
	f = b.judge(w, err)
	switch {
	case f == nil && aws.ToString(out.ETag) == "":
		return false, odd("the put was answered without an ETag")
	case f == nil:
		return false, nil
	case f.status == http.StatusPreconditionFailed:
		return true, nil
	case f.status == http.StatusNotImplemented:
		f.err = fmt.Errorf("the store has no If-None-Match for puts (%w); use one, or a release of it, that has conditional writes", f.err)
	}
	return false, f
}

// probeLock sees whether the bucket can retain objects at all: some stores
// accept the headers and do nothing.
func (b *Bucket) probeLock(ctx context.Context, cl *sdk.Client) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.GetObjectLockConfiguration(w.Ctx, &sdk.GetObjectLockConfigurationInput{Bucket: &b.c.Bucket})
	f := b.judge(w, err)
	switch {
	case f == nil && out.ObjectLockConfiguration != nil && out.ObjectLockConfiguration.ObjectLockEnabled == types.ObjectLockEnabledEnabled:
		return nil
	case f == nil, f.code == codeNoLockConfig:
		return fatal(objstore.ErrUnavailable, fmt.Errorf(
			"bucket %q has no Object Lock, so nothing in it can be retained: use a bucket that was created with Object Lock, or switch retention off", b.c.Bucket))
	case f.kind == objstore.ErrDenied:
		f.err = fmt.Errorf("see whether the bucket has Object Lock: %w; grant s3:GetBucketObjectLockConfiguration", f.err)
	}
	return f
}

// SignPut signs the PUT that creates key with exactly these bytes; see
// objstore.Signer. Signed are the key, If-None-Match, the length, the SHA-256 and
// the retention if there is one, which then counts from expires on, so that it
// is never shorter than Config.RetainFor. expires is at most seven days ahead;
// with temporary credentials (of a role) a URL dies with them, however long it
// was signed for. The first call proves that the store refuses other bytes.
func (b *Bucket) SignPut(ctx context.Context, key string, size int64, sum [32]byte, expires time.Time) (objstore.SignedURL, error) {
	fail := func(kind, err error) (objstore.SignedURL, error) {
		return objstore.SignedURL{}, &objstore.Error{Op: "sign put of", Key: key, Kind: kind, Err: err}
	}
	cl, err := b.beginWrite(ctx, "sign put of", key)
	if err != nil {
		return objstore.SignedURL{}, err
	}
	lives := time.Until(expires).Truncate(time.Second)
	switch {
	case b.c.Anonymous:
		return fail(objstore.ErrDenied, errors.New("anonymous access cannot sign"))
	case size < 0:
		return fail(objstore.ErrMismatch, fmt.Errorf("size is %d", size))
	case size > MaxObject:
		return fail(objstore.ErrTooLarge, fmt.Errorf("%d bytes; S3 takes %d in one request", size, int64(MaxObject)))
	case lives < time.Second:
		return fail(nil, errors.New("it would have expired before it was issued"))
	case lives > maxSigned:
		return fail(nil, fmt.Errorf("S3 signs for %v at most, and %v were asked for", maxSigned, lives))
	}
	if err := b.readyToSign(ctx, cl, key); err != nil {
		return objstore.SignedURL{}, err
	}
	signed, err := b.sign(ctx, cl, key, size, sum, lives)
	if err != nil {
		return fail(objstore.ErrUnavailable, err)
	}
	return signed, nil
}

// readyToSign proves once that the store checks x-amz-checksum-sha256: without
// that, the holder of a URL could store other bytes of the same length.
func (b *Bucket) readyToSign(ctx context.Context, cl *sdk.Client, key string) error {
	if b.signable.Load() {
		return nil
	}
	if err := b.lock(ctx); err != nil {
		return &objstore.Error{Op: "sign put of", Key: key, Err: err}
	}
	defer b.unlock()
	if b.signable.Load() {
		return nil
	}
	err := b.do(ctx, "sign put of", key, func() *failure { return b.probeSigned(ctx, cl) })
	if err == nil {
		b.signable.Store(true)
	}
	return err
}

// probeSigned does what a dishonest holder of a URL would do.
func (b *Bucket) probeSigned(ctx context.Context, cl *sdk.Client) *failure {
	promised, sent := "the bytes that were announced\n", "other bytes of the same size.\n"
	signed, err := b.sign(ctx, cl, probeChecksum, int64(len(promised)), sha256.Sum256([]byte(promised)), time.Minute)
	if err != nil {
		return fatal(objstore.ErrUnavailable, err)
	}
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	req, err := http.NewRequestWithContext(w.Ctx, http.MethodPut, signed.URL, strings.NewReader(sent))
	if err != nil {
		return fatal(objstore.ErrUnavailable, errors.New("the signed URL cannot be read"))
	}
	for name, value := range signed.Headers {
		if !strings.EqualFold(name, "host") && !strings.EqualFold(name, "content-length") {
			req.Header.Set(name, value)
		}
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return again(w.Explain(err))
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	code := errorCode(text)
	switch {
	case badDigest(code):
		return nil
	case resp.StatusCode/100 == 2 && resp.Header.Get("ETag") != "":
		_ = b.deleteOnce(ctx, cl, probeChecksum) // if it stays, the next probe meets 412
		fallthrough
	case resp.StatusCode == http.StatusPreconditionFailed:
		return fatal(objstore.ErrUnavailable, errors.New(
			"the store does not check x-amz-checksum-sha256: the holder of a signed URL could store other bytes; use a store, or a release of it, that checks it"))
	}
	f := &failure{kind: objstore.ErrUnavailable, status: resp.StatusCode, code: code, after: retryAfter(resp.Header)}
	f.err = fmt.Errorf("try a signed URL: %w", answered(f.status, code, "", resp.Header.Get("X-Amz-Request-Id")))
	b.classify(f, resp.Header)
	return f
}

// errorCode finds S3's error code in the body of an answer.
func errorCode(body []byte) string {
	_, rest, found := strings.Cut(string(body), "<Code>")
	code, _, ended := strings.Cut(rest, "</Code>")
	if !found || !ended {
		return ""
	}
	return word(code)
}

// sign makes a signed URL. What is signed stays in headers: S3 ignores a
// checksum that a signer has moved into the query.
func (b *Bucket) sign(ctx context.Context, cl *sdk.Client, key string, size int64, sum [32]byte, lives time.Duration) (objstore.SignedURL, error) {
	in := &sdk.PutObjectInput{
		Bucket:         &b.c.Bucket,
		Key:            b.at(key),
		ContentLength:  &size,
		IfNoneMatch:    aws.String("*"),
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}
	if b.c.RetainMode != "" && b.c.RetainFor > 0 {
		in.ObjectLockMode = types.ObjectLockMode(b.c.RetainMode)
		in.ObjectLockRetainUntilDate = aws.Time(ceilSecond(time.Now().Add(lives + b.c.RetainFor)))
	}
	presigner := sdk.NewPresignClient(cl, sdk.WithPresignExpires(lives), func(o *sdk.PresignOptions) {
		o.Presigner = v4.NewSigner(func(s *v4.SignerOptions) {
			s.DisableHeaderHoisting = true
			s.DisableURIPathEscaping = true // S3 signs the path as it is sent
		})
	})
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0) // credentials may have to be renewed
	defer w.Stop()
	req, err := presigner.PresignPutObject(w.Ctx, in)
	if err != nil {
		return objstore.SignedURL{}, fmt.Errorf("sign: %w", w.Explain(err))
	}
	signed := objstore.SignedURL{URL: req.URL, Headers: make(map[string]string)}
	for name, values := range req.SignedHeader {
		signed.Headers[name] = strings.Join(values, ",")
	}
	for _, need := range []string{"If-None-Match", "X-Amz-Checksum-Sha256", "Content-Length"} {
		if signed.Headers[need] == "" {
			return objstore.SignedURL{}, fmt.Errorf("sign: %s was not signed", need) // never by this SDK
		}
	}
	return signed, nil
}
