package pageblob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/dr"
)

// maxSkew is how far the clocks may differ; the service allows 15 minutes.
const maxSkew = 10 * time.Minute

// failure is what is known after an attempt that did not succeed.
type failure struct {
	err       *dr.Error
	retry     bool
	throttled bool
	after     time.Duration
}

// Fenced reports whether another writer has taken the blob over: its sequence
// number is not the one that was demanded.
func Fenced(err error) bool { return dr.KindOf(err) == dr.KindFenced }

// Absent reports whether the service said that the blob, or the snapshot, does not
// exist. That its container is missing is another error (dr.CodeAzureContainer).
func Absent(err error) bool {
	return dr.KindOf(err) == dr.KindNotFound && dr.CodeOf(err) == dr.CodeNotFound
}

// Changed reports whether a condition on the blob's ETag did not hold, or a blob that
// was to be created exists.
func Changed(err error) bool {
	code := dr.CodeOf(err)
	return dr.KindOf(err) == dr.KindConflict && (code == "" || code == dr.CodeAlreadyExists)
}

func attemptsText(n int) string { return fmt.Sprintf(" (%d attempts)", n) }

func (c *Client) canceled(op string, err error) error {
	kind := dr.KindCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		kind = dr.KindUnavailable
	}
	return dr.Errorf(kind, "pageblob."+op, "%s of blob %s was stopped: %w", op, c.name, err)
}

// judge turns what an attempt returned into a failure; nil stays nil.
func (c *Client) judge(op string, actx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	where := "pageblob." + op
	var known *dr.Error
	if errors.As(err, &known) {
		return &failure{err: known, retry: known.Kind == dr.KindUnavailable}
	}
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) {
		e := dr.New(dr.KindUnauthenticated, dr.CodeAzureSignIn, where, "%s of blob %s: the sign-in was refused: %.300s", op, c.name, strings.Join(strings.Fields(refused.Error()), " "))
		return &failure{err: e}
	}
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		return c.answered(op, answer)
	}
	var sign *url.Error
	if errors.As(err, &sign) {
		err = sign.Err // without the address
	}
	if errors.Is(actx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no complete answer within %v", c.cfg.Timeout)
	}
	return &failure{retry: true, err: dr.New(dr.KindUnavailable, dr.CodeAzureUnreachable, where, "%s of blob %s: %w", op, c.name, err)}
}

// answered classifies an answer of the service, or of what is in between. The text of
// the answer is left out: it quotes what was signed.
func (c *Client) answered(op string, a *azcore.ResponseError) *failure {
	var h http.Header
	if a.RawResponse != nil {
		h = a.RawResponse.Header
	}
	code := word(a.ErrorCode)
	text := "status " + strconv.Itoa(a.StatusCode)
	if code != "" {
		text += " " + code
	}
	if id := word(h.Get("X-Ms-Request-Id")); id != "" {
		text += " (request " + id + ")"
	}
	make := func(kind dr.Kind, dc dr.Code, more string) *failure {
		if more != "" {
			more = "; " + more
		}
		return &failure{err: dr.New(kind, dc, "pageblob."+op, "%s of blob %s: %s%s", op, c.name, text, more)}
	}
	again := func(kind dr.Kind, dc dr.Code, more string) *failure {
		f := make(kind, dc, more)
		f.retry, f.after = true, retryAfter(h)
		return f
	}
	switch bc := bloberror.Code(code); {
	case bc == bloberror.ContainerNotFound, bc == bloberror.ContainerBeingDeleted, bc == bloberror.ContainerDisabled:
		return make(dr.KindNotFound, dr.CodeAzureContainer, "")
	case a.StatusCode == http.StatusNotFound && bc == bloberror.BlobNotFound:
		return make(dr.KindNotFound, dr.CodeNotFound, "")
	case a.StatusCode == http.StatusNotFound:
		return make(dr.KindUnavailable, dr.CodeAzureUnreachable, "check account and endpoint of the address, and look for a proxy in between")
	case a.StatusCode == http.StatusTooManyRequests, a.StatusCode == http.StatusServiceUnavailable:
		f := again(dr.KindExhausted, dr.CodeAzureThrottled, "")
		f.throttled = true
		return f
	case a.StatusCode == http.StatusUnauthorized, a.StatusCode == http.StatusForbidden:
		return c.refused(code, h, make)
	case bc == bloberror.SequenceNumberConditionNotMet:
		return make(dr.KindFenced, dr.CodeWarmReplica, "another writer has taken the blob over")
	case strings.HasPrefix(code, "Lease"):
		return make(dr.KindConflict, dr.CodeAzureLocked, "somebody holds a lease on the blob")
	case a.StatusCode == http.StatusPreconditionFailed, a.StatusCode == http.StatusNotModified:
		return make(dr.KindConflict, "", "the blob was changed meanwhile")
	case bc == bloberror.BlobAlreadyExists:
		return make(dr.KindConflict, dr.CodeAlreadyExists, "")
	case bc == bloberror.MD5Mismatch:
		return again(dr.KindUnavailable, dr.CodeAzureUnreachable, "the bytes were damaged on the way")
	case bc == bloberror.SnapshotOperationRateExceeded:
		f := again(dr.KindExhausted, dr.CodeAzureThrottled, "")
		f.throttled = true
		return f
	case a.StatusCode == http.StatusConflict:
		return make(dr.KindConflict, dr.CodeAzureOperation, "")
	case a.StatusCode == http.StatusRequestTimeout, a.StatusCode >= 500:
		return again(dr.KindUnavailable, dr.CodeAzureOperation, "")
	case a.StatusCode < 400:
		return again(dr.KindUnavailable, dr.CodeAzureUnreachable, "the answer does not look like Azure's; look for a proxy or a login page in between")
	case bc == bloberror.InvalidHeaderValue && strings.HasPrefix(c.plain, "http:"):
		return make(dr.KindInvalid, dr.CodeAzureOperation, "start Azurite with --skipApiVersionCheck")
	}
	return make(dr.KindInvalid, dr.CodeAzureOperation, "")
}

// refused says what is behind a 401 or 403.
func (c *Client) refused(code string, h http.Header, make func(dr.Kind, dr.Code, string) *failure) *failure {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		if skew := c.cfg.Now().Sub(at).Round(time.Second); skew.Abs() > maxSkew {
			return make(dr.KindPrecondition, dr.CodeAzureClock, fmt.Sprintf("the clock of this machine differs from Azure's by %v", skew))
		}
	}
	switch bc := bloberror.Code(code); {
	case bc == bloberror.AuthorizationFailure, bc == bloberror.AuthorizationSourceIPMismatch, code == "NetworkAccessDenied", code == "PublicAccessNotPermitted":
		return make(dr.KindForbidden, dr.CodeAzureFirewall, "")
	case c.auth == authToken && (bc == bloberror.AuthenticationFailed || bc == bloberror.InvalidAuthenticationInfo || bc == bloberror.NoAuthenticationInformation):
		return make(dr.KindUnauthenticated, dr.CodeAzureSignIn, "the token was refused")
	case bc == bloberror.AuthorizationPermissionMismatch && c.auth == authToken, bc == bloberror.InsufficientAccountPermissions:
		return make(dr.KindForbidden, dr.CodeAzureRole, "the identity needs Storage Blob Data Contributor on the container, or Data Operator for Managed Disks on the disk")
	case bc == bloberror.AuthorizationPermissionMismatch:
		return make(dr.KindForbidden, dr.CodeAzureSignature, "the signed address does not allow it")
	case code == "KeyBasedAuthenticationNotPermitted":
		return make(dr.KindForbidden, dr.CodeAzureRole, "the account refuses shared keys: sign in by Entra ID")
	}
	return make(dr.KindForbidden, dr.CodeAzureSignature, c.ended())
}

// ended says when the signed address ended, if it tells.
func (c *Client) ended() string {
	if c.auth != authSigned {
		return "the account's key was refused"
	}
	if c.end.IsZero() {
		return "" // an address by a stored policy does not tell
	}
	end := c.end.UTC().Format(time.RFC3339)
	if c.cfg.Now().After(c.end) {
		return "the signed address ended at " + end
	}
	return "the signed address is good until " + end + ", so its key was changed or access was revoked"
}

// odd is an answer that claims success and is not one of Blob Storage.
func (c *Client) odd(op, what string) error {
	return dr.New(dr.KindUnavailable, dr.CodeAzureUnreachable, "pageblob."+op, "%s of blob %s: %s; the answer does not look like Azure's: look for a proxy or a login page in between", op, c.name, what)
}

// word keeps a code or an identifier only if it looks like one.
func word(s string) string {
	if len(s) > 128 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		return ""
	}
	return s
}

func retryAfter(h http.Header) time.Duration {
	s, err := strconv.ParseInt(h.Get("Retry-After"), 10, 32)
	if err != nil || s < 0 {
		return 0
	}
	return time.Duration(s) * time.Second
}
