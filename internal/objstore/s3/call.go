package s3

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// S3's error codes that mean something here. The list is that of the API
// reference; the quota codes are those of Ceph, MinIO and others.
const (
	codeNoSuchKey    = "NoSuchKey"
	codeNoSuchBucket = "NoSuchBucket"
	codeNoLockConfig = "ObjectLockConfigurationNotFoundError"
	codeConflict     = "ConditionalRequestConflict"
	codeAborted      = "OperationAborted"
	codeBadDigest    = "BadDigest"
	codeSkewed       = "RequestTimeTooSkewed"
)

// failure is what is known after an attempt that did not succeed.
type failure struct {
	kind   error // sentinel of objstore, or nil
	err    error
	status int    // 0 if there was no answer
	code   string // S3's, or empty
	retry  bool   // another attempt may succeed
	after  time.Duration
	lost   bool // a write may have been carried out all the same
}

// fatal is a failure that no further attempt mends.
func fatal(kind, err error) *failure { return &failure{kind: kind, err: err} }

// again is a failure that another attempt may mend.
func again(err error) *failure {
	return &failure{kind: objstore.ErrUnavailable, err: err, retry: true}
}

// do makes attempts until one succeeds, fails for good, the attempts are used up,
// or the context ends.
func (b *Bucket) do(ctx context.Context, op, key string, try func() *failure) error {
	fail := func(kind, err error) error {
		return &objstore.Error{Op: op, Key: key, Kind: kind, Err: err}
	}
	for n := 1; ; n++ {
		f := try()
		if f == nil {
			return nil
		}
		if f.kind == objstore.ErrNotExist && op != "head" && op != "get" && op != "retain" {
			f.kind, f.err = objstore.ErrUnavailable, errors.New("the store says that the object does not exist, which is no answer to this")
		}
		switch {
		case ctx.Err() != nil:
			return fail(nil, ctx.Err())
		case !f.retry:
			return fail(f.kind, f.err)
		case n >= b.c.Attempts:
			return fail(f.kind, fmt.Errorf("after %d attempts: %w", n, f.err))
		}
		if err := b.wait(ctx, n, f.after); err != nil {
			return fail(nil, err)
		}
	}
}

// wait sleeps before attempt n+1: exponential with jitter, or longer if the
// store asks for it.
func (b *Bucket) wait(ctx context.Context, n int, after time.Duration) error {
	delay := b.c.MaxDelay
	if n < 30 {
		delay = min(b.c.BaseDelay<<(n-1), b.c.MaxDelay)
	}
	delay = delay/2 + rand.N(delay/2+1)
	timer := time.NewTimer(max(delay, min(after, b.c.MaxDelay)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// judge turns what the SDK returned into a failure; nil stays nil.
func (b *Bucket) judge(w *attempt.Watch, err error) *failure {
	if err == nil {
		return nil
	}
	var answer *awshttp.ResponseError
	if !errors.As(err, &answer) || answer.Response == nil || context.Cause(w.Ctx) != nil {
		f := again(w.Explain(err))
		var op *net.OpError
		f.lost = !errors.As(err, &op) || op.Op != "dial"
		return f
	}
	f := &failure{
		kind:   objstore.ErrUnavailable,
		status: answer.HTTPStatusCode(),
		after:  retryAfter(answer.Response.Header),
	}
	message := ""
	var api smithy.APIError
	if errors.As(err, &api) {
		f.code, message = word(api.ErrorCode()), api.ErrorMessage()
	}
	f.err = answered(f.status, f.code, message, answer.ServiceRequestID())
	b.classify(f, answer.Response.Header)
	return f
}

// answered words what the store said.
func answered(status int, code, message, request string) error {
	text := "status " + strconv.Itoa(status)
	if code != "" {
		text += " " + code
	}
	if request = word(request); request != "" {
		text += " (request " + request + ")"
	}
	if message != "" {
		text += fmt.Sprintf(": %.200q", message)
	}
	return errors.New(text)
}

// classify decides on kind, retry and lost by the status and the code.
func (b *Bucket) classify(f *failure, h http.Header) {
	hint := func(text string) { f.err = fmt.Errorf("%w; %s", f.err, text) }
	switch {
	case f.code == codeNoSuchBucket:
		hint(fmt.Sprintf("there is no bucket %q at this endpoint: create it, or correct the store's address", b.c.Bucket))
	case f.code == codeNoSuchKey && f.status == http.StatusNotFound:
		f.kind, f.err = objstore.ErrNotExist, nil
	case f.status == http.StatusInsufficientStorage, noSpace(f.code):
		f.kind = objstore.ErrNoSpace
	case f.code == "InvalidObjectState":
		hint("the object is in an archive class: restore it in the store first, and keep Holdfast's objects out of archive classes")
	case f.code == "EntityTooLarge", f.status == http.StatusRequestEntityTooLarge:
		f.kind = objstore.ErrTooLarge
	case f.code == codeConflict, f.code == codeAborted:
		f.retry = true
	case badDigest(f.code):
		// The bytes were right when they left: they were damaged on the way, or
		// changed in the source between hashing and sending.
		f.kind, f.retry = objstore.ErrMismatch, true
	case f.code == codeSkewed:
		// The SDK has learned the store's time from this answer.
		f.kind, f.retry = objstore.ErrDenied, true
		hint("compare the clock of this machine")
	case f.code == "RequestTimeout", f.code == "IncompleteBody":
		f.retry = true
	case f.status == http.StatusMovedPermanently, f.code == "AuthorizationHeaderMalformed", f.code == "PermanentRedirect":
		if region := word(h.Get("X-Amz-Bucket-Region")); region != "" {
			hint(fmt.Sprintf("the bucket is in region %s: correct the region in the store's address", region))
		} else {
			hint("check endpoint and region in the store's address")
		}
	case f.status == http.StatusUnauthorized, f.status == http.StatusForbidden, f.code == "ExpiredToken", f.code == "InvalidToken":
		f.kind = objstore.ErrDenied
	case f.status == http.StatusTemporaryRedirect, f.status == http.StatusRequestTimeout, f.status == http.StatusTooManyRequests:
		f.retry = true
	case f.status == http.StatusNotImplemented:
	case f.status >= 500:
		f.retry, f.lost = true, true
	case f.status < 300:
		// An answer that claims success and cannot be understood.
		f.retry, f.lost = true, true
		hint("the answer does not look like that of an S3 store; look for a proxy or a login page in between")
	}
}

// noSpace reports the codes for a full store or quota, which no published list
// unites.
func noSpace(code string) bool {
	switch code {
	case "QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull",
		"XMinioAdminBucketQuotaExceeded", "InsufficientCapacity", "NotEnoughSpace":
		return true
	}
	return false
}

func badDigest(code string) bool {
	switch code {
	case codeBadDigest, "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "ContentChecksumMismatch":
		return true
	}
	return false
}

// odd is a 2xx that no S3 store sends.
func odd(what string) *failure {
	f := again(fmt.Errorf("%s; the answer does not come from an S3 store; look for a proxy or a login page in between", what))
	f.lost = true
	return f
}

// word keeps a code or an identifier only if it looks like one.
func word(s string) string {
	if len(s) > 128 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./+=") != "" {
		return ""
	}
	return s
}

func retryAfter(h http.Header) time.Duration {
	s, err := strconv.ParseInt(h.Get("Retry-After"), 10, 64)
	if err != nil || s < 0 {
		return 0
	}
	return time.Duration(min(s, math.MaxInt32)) * time.Second
}
