package azure

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
	"holdfast/internal/objstore/azure/refusal"
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
func (b *Bucket) judge(w *attempt.Watch, err error) *failure {
	if err == nil {
		return nil
	}
	var answer *azcore.ResponseError
	if context.Cause(w.Ctx) == nil {
		if f := b.signInFailed(err); f != nil {
			return f
		}
		errors.As(err, &answer)
	}
	if answer == nil {
		f := again(w.Explain(err))
		var op *net.OpError
		f.lost = !errors.As(err, &op) || op.Op != "dial"
		return f
	}
	var h http.Header
	if answer.RawResponse != nil {
		h = answer.RawResponse.Header
	}
	v := refusal.Read(b.place, refusal.Answer{Status: answer.StatusCode, Code: answer.ErrorCode, Header: h, At: time.Now()})
	return &failure{kind: v.Kind, err: v.Err, status: answer.StatusCode, code: v.Code, retry: v.Retry, after: v.After, lost: v.Lost}
}

// signInFailed words what Entra ID, or the search for somebody to sign in as,
// has refused. The SDK's texts hold no secret, but pages of advice.
func (b *Bucket) signInFailed(err error) *failure {
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) && refused.RawResponse != nil {
		f := fatal(objstore.ErrDenied, because(objstore.CauseSignIn, "Entra ID refused to sign in (status %d): %.300s", refused.RawResponse.StatusCode, oneLine(refused.Error())))
		if s := refused.RawResponse.StatusCode; s == http.StatusTooManyRequests || s >= 500 {
			f.kind, f.retry = objstore.ErrUnavailable, true
		}
		return f
	}
	// Not an error of the network or the store: nobody to sign in as was found.
	if text := oneLine(err.Error()); strings.HasPrefix(text, "DefaultAzureCredential") {
		return fatal(objstore.ErrUnavailable, because(objstore.CauseSignIn, "no credentials for the storage account: set %s or %s, or sign in by Entra ID: %.300s", KeyVariable, KeyFileVariable, text))
	}
	return nil
}

// because is an error with a cause that this package knows without an answer.
func because(c objstore.Cause, format string, args ...any) error {
	return &caused{error: fmt.Errorf(format, args...), cause: c}
}

type caused struct {
	error
	cause objstore.Cause
}

func (c *caused) Unwrap() error              { return c.error }
func (c *caused) StoreCause() objstore.Cause { return c.cause }

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// odd is a 2xx that Blob Storage does not send.
func odd(what string) *failure {
	f := again(fmt.Errorf("%s; the answer does not come from Azure Blob Storage; look for a proxy or a login page in between", what))
	f.lost = true
	return f
}
