package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/objstore"
)

// Error codes that the SDK has no name for (Blob service error codes, and
// network rules).
const (
	codeLegalHold   = "BlobImmutableDueToLegalHold"
	codeKeyRefused  = "KeyBasedAuthenticationNotPermitted"
	codeFullAccount = "AccountStorageLimitExceeded"
	codeNoFeature   = "FeatureNotSupportedForAccount"
)

// failure is what is known after an attempt that did not succeed.
type failure struct {
	kind   error // sentinel of objstore, or nil
	err    error
	status int    // 0 if there was no answer
	code   string // the service's, or empty
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
func (b *Bucket) do(ctx context.Context, op, key string, attempt func() *failure) error {
	fail := func(kind, err error) error {
		return &objstore.Error{Op: op, Key: key, Kind: kind, Err: err}
	}
	for n := 1; ; n++ {
		f := attempt()
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
func (b *Bucket) judge(w *watch, err error) *failure {
	if err == nil {
		return nil
	}
	var answer *azcore.ResponseError
	if context.Cause(w.ctx) == nil {
		if f := b.signInFailed(err); f != nil {
			return f
		}
		errors.As(err, &answer)
	}
	if answer == nil {
		f := again(w.explain(err))
		var op *net.OpError
		f.lost = !errors.As(err, &op) || op.Op != "dial"
		return f
	}
	f := &failure{kind: objstore.ErrUnavailable, status: answer.StatusCode, code: word(answer.ErrorCode)}
	var h http.Header
	if answer.RawResponse != nil {
		h = answer.RawResponse.Header
	}
	f.after = retryAfter(h)
	f.err = answered(f.status, f.code, h.Get("X-Ms-Request-Id"))
	b.classify(f, h)
	return f
}

// signInFailed words what Entra ID, or the search for somebody to sign in as,
// has refused. The SDK's texts hold no secret, but pages of advice.
func (b *Bucket) signInFailed(err error) *failure {
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) && refused.RawResponse != nil {
		f := fatal(objstore.ErrDenied, fmt.Errorf("Entra ID refused to sign in (status %d): %.300s", refused.RawResponse.StatusCode, oneLine(refused.Error())))
		if s := refused.RawResponse.StatusCode; s == http.StatusTooManyRequests || s >= 500 {
			f.kind, f.retry = objstore.ErrUnavailable, true
		}
		return f
	}
	// Not an error of the network or the store: nobody to sign in as was found.
	if text := oneLine(err.Error()); strings.HasPrefix(text, "DefaultAzureCredential") {
		return fatal(objstore.ErrUnavailable, fmt.Errorf("no credentials for the storage account: set %s or %s, or sign in by Entra ID: %.300s", KeyVariable, KeyFileVariable, text))
	}
	return nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// answered words what the store said. Its text is left out: it quotes the
// strings that were signed.
func answered(status int, code, request string) error {
	text := "status " + strconv.Itoa(status)
	if code != "" {
		text += " " + code
	}
	if request = word(request); request != "" {
		text += " (request " + request + ")"
	}
	return errors.New(text)
}

// classify decides on kind, retry and lost by the status and the code.
func (b *Bucket) classify(f *failure, h http.Header) {
	hint := func(format string, args ...any) { f.err = fmt.Errorf("%w; %s", f.err, fmt.Sprintf(format, args...)) }
	switch code := bloberror.Code(f.code); {
	case code == bloberror.ContainerNotFound:
		hint("there is no container %q in this account: create it, or correct the store's address", b.c.Container)
	case code == bloberror.BlobNotFound && f.status == http.StatusNotFound:
		f.kind, f.err = objstore.ErrNotExist, nil
	case f.status == http.StatusNotFound:
		hint("check account and endpoint in the store's address, and look for a proxy in between")
	case f.status == http.StatusInsufficientStorage, f.code == codeFullAccount:
		f.kind = objstore.ErrNoSpace
	case code == bloberror.BlobArchived, code == bloberror.BlobBeingRehydrated:
		hint("the blob is in the archive tier: rehydrate it first, and keep Holdfast's blobs out of that tier")
	case code == bloberror.BlobImmutableDueToPolicy, f.code == codeLegalHold:
		f.kind = objstore.ErrDenied
		hint("the store keeps the blob")
	case f.status == http.StatusRequestEntityTooLarge:
		f.kind = objstore.ErrTooLarge
	case code == bloberror.MD5Mismatch:
		// The bytes were right when they left: they were damaged on the way, or
		// changed in the source between hashing and sending.
		f.kind, f.retry = objstore.ErrMismatch, true
	case code == bloberror.ContainerBeingDeleted, f.status == http.StatusRequestTimeout, f.status == http.StatusTooManyRequests:
		f.retry = true
	case f.status == http.StatusUnauthorized, f.status == http.StatusForbidden:
		f.kind = objstore.ErrDenied
		b.whyDenied(f.code, h, hint)
	case code == bloberror.InvalidHeaderValue && b.c.endpointURL().Scheme == "http":
		hint("start Azurite with --skipApiVersionCheck")
	case f.status == http.StatusNotImplemented, f.code == codeNoFeature:
		f.kind, f.err = nil, fmt.Errorf("%w by this account: %w", errors.ErrUnsupported, f.err)
	case f.status >= 500:
		f.retry, f.lost = true, true
	case f.status < 300:
		// An answer that claims success and cannot be understood.
		f.retry, f.lost = true, true
		hint("the answer does not look like that of Azure Blob Storage; look for a proxy or a login page in between")
	}
}

// maxSkew is how far the clocks may differ; the service allows 15 minutes.
const maxSkew = 10 * time.Minute

// whyDenied says what is behind the usual refusals.
func (b *Bucket) whyDenied(code string, h http.Header, hint func(string, ...any)) {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		if skew := time.Since(at).Round(time.Second); skew.Abs() > maxSkew {
			hint("the clock of this machine differs from the store's by %v: set it", skew)
			return
		}
	}
	switch bloberror.Code(code) {
	case bloberror.AuthorizationFailure, bloberror.AuthorizationSourceIPMismatch:
		hint("the account's firewall does not admit this machine (admit its network, or use a private endpoint), or the key is wrong")
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions:
		hint("grant the role Storage Blob Data Contributor on the container, and Storage Blob Delegator on the account for hosts that send directly; a new role takes some minutes")
	case bloberror.AuthenticationFailed, bloberror.InvalidAuthenticationInfo:
		hint("check account, key and the clock of this machine")
	case codeKeyRefused:
		hint("the account refuses shared keys: unset them and sign in by Entra ID")
	case bloberror.AccountIsDisabled:
		hint("the account is disabled: see its subscription")
	}
}

// odd is a 2xx that Blob Storage does not send.
func odd(what string) *failure {
	f := again(fmt.Errorf("%s; the answer does not come from Azure Blob Storage; look for a proxy or a login page in between", what))
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

// watch ends an attempt in which nothing moves for the stall time, or which
// takes longer than its limit in all.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	quiet  *time.Timer
	whole  *time.Timer
	stall  time.Duration
}

// newWatch starts the clocks. limit 0 means four times the stall time, which is
// what a request without a body of size may take; below 0 there is none.
func newWatch(ctx context.Context, stall, limit time.Duration) *watch {
	w := &watch{stall: stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.quiet = time.AfterFunc(stall, func() { w.cancel(&timeoutError{"no byte moved", stall}) })
	if limit == 0 {
		limit = 4 * stall
	}
	if limit > 0 {
		w.whole = time.AfterFunc(limit, func() { w.cancel(&timeoutError{"the request was not done", limit}) })
	}
	return w
}

type timeoutError struct {
	what  string
	after time.Duration
}

func (e *timeoutError) Error() string { return fmt.Sprintf("%s for %v", e.what, e.after) }

func (w *watch) moved() { w.quiet.Reset(w.stall) }

// sent gives the store, and what is buffered on the way to it, more time for
// the answer to a body.
func (w *watch) sent() { w.quiet.Reset(4 * w.stall) }

// pause stops the clock while it is the caller who takes his time.
func (w *watch) pause() { w.quiet.Stop() }

func (w *watch) stop() {
	w.quiet.Stop()
	if w.whole != nil {
		w.whole.Stop()
	}
	w.cancel(nil)
}

// explain returns what to say about an error without an answer: the timeout if
// that was the reason, and never a URL, which net/http puts into its errors.
func (w *watch) explain(err error) error {
	var late *timeoutError
	if errors.As(context.Cause(w.ctx), &late) {
		return late
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // io.EOF would look like a proper end
	}
	return err
}
