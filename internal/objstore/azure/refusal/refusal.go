// Package refusal reads what Azure Blob Storage answers when it does not do what
// it was asked for, and says what that means: which sentinel of objstore it is,
// whether another attempt may help, and what an operator has to mend.
//
// It promises that only the service's own "404 BlobNotFound" is an absence,
// that a container which is missing or being deleted never is, and that no text
// of the service is repeated: such texts quote the strings that were signed.
//
// Sources: Azure Storage REST "Status and error codes" and "Blob service error
// codes", and "Authorize requests to Azure Storage" (a request's date may be 15
// minutes off at most).
package refusal

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/objstore"
)

// Error codes that the SDK has no name for (Blob service error codes, and
// network rules).
const (
	CodeLegalHold      = "BlobImmutableDueToLegalHold"
	CodeKeyRefused     = "KeyBasedAuthenticationNotPermitted"
	CodeFullAccount    = "AccountStorageLimitExceeded"
	CodeNoFeature      = "FeatureNotSupportedForAccount"
	CodeNetworkDenied  = "NetworkAccessDenied"
	CodePublicRefused  = "PublicAccessNotPermitted"
	CodeTooManyRequest = "TooManyRequests"
)

// Ways of proving who asks, as far as refusals depend on it.
const (
	ByKey       = "key"
	ByToken     = "token"
	ByNobody    = "anonymous"
	BySignature = "signature"
)

// maxSkew is how far the clocks may differ; the service allows 15 minutes.
const maxSkew = 10 * time.Minute

// Place is what was asked, for the words of an error.
type Place struct {
	Account   string
	Container string
	Auth      string // ByKey, ByToken, ByNobody or BySignature
	Emulator  bool   // plain http: Azurite on this machine
}

// Answer is what came back instead of success.
type Answer struct {
	Status int
	Code   string      // of the header x-ms-error-code or of the body; may be empty
	Header http.Header // may be nil
	At     time.Time   // when it came, by this machine's clock
}

// Verdict is what an answer means.
type Verdict struct {
	Kind  error         // a sentinel of objstore, or nil
	Err   error         // *Error, or nil where Kind says all
	Code  string        // the service's, cleaned
	Retry bool          // another attempt may succeed
	Lost  bool          // a write may have been carried out all the same
	After time.Duration // how long the service asks to wait; 0 if it does not
}

// Error is a refusal in words.
type Error struct {
	Status int
	Code   string         // the service's; empty if it gave none
	Cause  objstore.Cause // empty if it is not known
	text   string
	is     error
}

func (e *Error) Error() string { return e.text }

// Unwrap gives errors.ErrUnsupported where the account lacks a feature.
func (e *Error) Unwrap() error { return e.is }

// StoreCause serves objstore.CauseOf.
func (e *Error) StoreCause() objstore.Cause { return e.Cause }

// Read judges an answer.
func Read(p Place, a Answer) Verdict {
	v := Verdict{Kind: objstore.ErrUnavailable, Code: Word(a.Code), After: after(a)}
	e := &Error{Status: a.Status, Code: v.Code, text: said(a.Status, v.Code, a.Header.Get("X-Ms-Request-Id"))}
	v.Err = e
	switch code := bloberror.Code(v.Code); {
	case code == bloberror.ContainerNotFound:
		e.because(objstore.CauseContainer, "there is no container %q in account %q: restore it if it was deleted (soft delete keeps it for some days), create it, or correct the store's address", p.Container, p.Account)
	case code == bloberror.ContainerBeingDeleted:
		v.Retry = true
		e.because(objstore.CauseContainer, "container %q of account %q is being deleted, which takes a minute or longer: restore it then (soft delete keeps it for some days)", p.Container, p.Account)
	case code == bloberror.ContainerDisabled:
		e.because(objstore.CauseContainer, "container %q of account %q is disabled: see the account in the portal", p.Container, p.Account)
	case code == bloberror.BlobNotFound && a.Status == http.StatusNotFound:
		v.Kind, v.Err = objstore.ErrNotExist, nil
	case a.Status == http.StatusNotFound:
		e.because("", "check account and endpoint in the store's address, and look for a proxy in between")
	case a.Status == http.StatusInsufficientStorage, v.Code == CodeFullAccount:
		v.Kind = objstore.ErrNoSpace
	case code == bloberror.BlobArchived, code == bloberror.BlobBeingRehydrated:
		e.because(objstore.CauseArchived, "the blob is in the archive tier: rehydrate it first, and keep Holdfast's blobs out of that tier")
	case code == bloberror.BlobImmutableDueToPolicy, v.Code == CodeLegalHold:
		v.Kind = objstore.ErrDenied
		e.because(objstore.CauseRetained, "the store keeps the blob")
	case code == bloberror.AccountBeingCreated:
		v.Retry = true
		e.because(objstore.CauseAccount, "account %q is still being created", p.Account)
	case a.Status == http.StatusRequestEntityTooLarge:
		v.Kind = objstore.ErrTooLarge
	case code == bloberror.MD5Mismatch:
		// The bytes were right when they left: they were damaged on the way, or
		// changed in the source between hashing and sending.
		v.Kind, v.Retry = objstore.ErrMismatch, true
	case a.Status == http.StatusTooManyRequests, code == bloberror.ServerBusy, v.Code == CodeTooManyRequest:
		v.Retry, v.Lost = true, a.Status >= 500
		e.because(objstore.CauseThrottled, "account %q is asked for too much at once", p.Account)
	case a.Status == http.StatusRequestTimeout:
		v.Retry = true
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden, v.Code == CodePublicRefused:
		v.Kind = objstore.ErrDenied
		e.denied(p, a)
	case a.Status == http.StatusBadRequest && e.skewed(a):
	case code == bloberror.InvalidHeaderValue && p.Emulator:
		e.because("", "start Azurite with --skipApiVersionCheck")
	case a.Status == http.StatusNotImplemented, v.Code == CodeNoFeature:
		v.Kind, e.is, e.text = nil, errors.ErrUnsupported, fmt.Sprintf("%v by this account: %s", errors.ErrUnsupported, e.text)
	case a.Status >= 500:
		v.Retry, v.Lost = true, true
	case a.Status < 300:
		// An answer that claims success and cannot be understood.
		v.Retry, v.Lost = true, true
		e.because("", "the answer does not look like that of Azure Blob Storage; look for a proxy or a login page in between")
	}
	return v
}

func (e *Error) because(c objstore.Cause, format string, args ...any) {
	e.Cause = c
	e.text += "; " + fmt.Sprintf(format, args...)
}

// skewed words a clock that differs, if it does. A Date without an error code of
// the service may be that of a cache or a proxy, and tells nothing.
func (e *Error) skewed(a Answer) bool {
	at, err := http.ParseTime(a.Header.Get("Date"))
	if err != nil || e.Code == "" {
		return false
	}
	skew := a.At.Sub(at).Round(time.Second)
	if skew.Abs() <= maxSkew {
		return false
	}
	way := "ahead of"
	if skew < 0 {
		way = "behind"
	}
	e.because(objstore.CauseClock, "the clock of this machine is %v %s the store's: set it", skew.Abs(), way)
	return true
}

// denied says what is behind a refusal. Only refusals of the proof itself can be
// the clock's fault; a firewall refuses whatever the time is.
func (e *Error) denied(p Place, a Answer) {
	switch code := bloberror.Code(e.Code); code {
	case bloberror.AuthorizationFailure, bloberror.AuthorizationSourceIPMismatch, CodeNetworkDenied:
		e.because(objstore.CauseFirewall, "the firewall of account %q does not admit this machine: admit its network, or use a private endpoint (if it does admit it, the key or signature lacks the right)", p.Account)
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions, bloberror.AuthorizationServiceMismatch,
		bloberror.AuthorizationResourceTypeMismatch, bloberror.AuthorizationProtocolMismatch:
		e.because(objstore.CauseRole, "grant the role Storage Blob Data Contributor on container %q, and Storage Blob Delegator on account %q for hosts that send directly; a new role takes some minutes", p.Container, p.Account)
	case CodeKeyRefused:
		e.because(objstore.CauseKey, "account %q refuses shared keys: unset them and sign in by Entra ID", p.Account)
	case bloberror.AccountIsDisabled:
		e.because(objstore.CauseAccount, "account %q is disabled: see its subscription", p.Account)
	case CodePublicRefused, bloberror.NoAuthenticationInformation:
		e.because(objstore.CauseSignIn, "container %q is not public: give a key or sign in by Entra ID", p.Container)
	case bloberror.AuthenticationFailed, bloberror.InvalidAuthenticationInfo:
		if e.skewed(a) {
			return
		}
		switch p.Auth {
		case ByKey:
			e.because(objstore.CauseKey, "the shared key is not, or no more, that of account %q: take one that the account shows now (keys are changed in the portal), and check the account's name", p.Account)
		case ByToken:
			e.because(objstore.CauseSignIn, "the token is of another tenant than account %q, or has ended: check the tenant, sign in anew, and check the clock of this machine", p.Account)
		default:
			e.because(objstore.CauseSignIn, "check account, key and the clock of this machine")
		}
	case "":
		e.because("", "the answer names no reason, so it may come from a proxy in between")
	default:
		e.skewed(a)
	}
}

// said words what the service answered, without its text.
func said(status int, code, request string) string {
	text := "status " + strconv.Itoa(status)
	if code != "" {
		text += " " + code
	}
	if request = Word(request); request != "" {
		text += " (request " + request + ")"
	}
	return text
}

// Word keeps a code or an identifier only if it looks like one.
func Word(s string) string {
	if len(s) > 128 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./+=") != "" {
		return ""
	}
	return s
}

// after reads Retry-After, which is in seconds or a date.
func after(a Answer) time.Duration {
	text := a.Header.Get("Retry-After")
	if s, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Duration(max(0, min(s, math.MaxInt32))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(a.At))
	}
	return 0
}
