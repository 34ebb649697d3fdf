package refusal_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure/refusal"
)

var place = refusal.Place{Account: "contoso", Container: "replicas", Auth: refusal.ByKey}

// TestRead goes through what the service's documentation lists.
func TestRead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int
		code   string
		auth   string
		kind   error
		cause  objstore.Cause
		retry  bool
		lost   bool
		text   string
	}{
		{404, "BlobNotFound", "", objstore.ErrNotExist, "", false, false, ""},
		{404, "ContainerNotFound", "", objstore.ErrUnavailable, objstore.CauseContainer, false, false, `"replicas"`},
		{409, "ContainerBeingDeleted", "", objstore.ErrUnavailable, objstore.CauseContainer, true, false, "soft delete"},
		{409, "ContainerDisabled", "", objstore.ErrUnavailable, objstore.CauseContainer, false, false, "disabled"},
		{404, "", "", objstore.ErrUnavailable, "", false, false, "proxy"},
		{404, "ResourceNotFound", "", objstore.ErrUnavailable, "", false, false, "endpoint"},
		{200, "BlobNotFound", "", objstore.ErrUnavailable, "", true, true, "proxy"},
		{403, "AuthorizationFailure", "", objstore.ErrDenied, objstore.CauseFirewall, false, false, `firewall of account "contoso"`},
		{403, "NetworkAccessDenied", "", objstore.ErrDenied, objstore.CauseFirewall, false, false, "private endpoint"},
		{403, "AuthorizationSourceIPMismatch", "", objstore.ErrDenied, objstore.CauseFirewall, false, false, ""},
		{403, "AuthorizationPermissionMismatch", "", objstore.ErrDenied, objstore.CauseRole, false, false, "Storage Blob Data Contributor"},
		{403, "InsufficientAccountPermissions", "", objstore.ErrDenied, objstore.CauseRole, false, false, ""},
		{403, "AuthenticationFailed", refusal.ByKey, objstore.ErrDenied, objstore.CauseKey, false, false, "shared key"},
		{403, "AuthenticationFailed", refusal.ByToken, objstore.ErrDenied, objstore.CauseSignIn, false, false, "tenant"},
		{401, "InvalidAuthenticationInfo", refusal.ByToken, objstore.ErrDenied, objstore.CauseSignIn, false, false, "ended"},
		{401, "NoAuthenticationInformation", refusal.ByNobody, objstore.ErrDenied, objstore.CauseSignIn, false, false, "not public"},
		{409, "PublicAccessNotPermitted", refusal.ByNobody, objstore.ErrDenied, objstore.CauseSignIn, false, false, "not public"},
		{403, "KeyBasedAuthenticationNotPermitted", "", objstore.ErrDenied, objstore.CauseKey, false, false, "Entra ID"},
		{403, "AccountIsDisabled", "", objstore.ErrDenied, objstore.CauseAccount, false, false, "subscription"},
		{409, "AccountBeingCreated", "", objstore.ErrUnavailable, objstore.CauseAccount, true, false, ""},
		{403, "", "", objstore.ErrDenied, "", false, false, "proxy"},
		{503, "ServerBusy", "", objstore.ErrUnavailable, objstore.CauseThrottled, true, true, "too much"},
		{429, "", "", objstore.ErrUnavailable, objstore.CauseThrottled, true, false, ""},
		{500, "InternalError", "", objstore.ErrUnavailable, "", true, true, ""},
		{408, "", "", objstore.ErrUnavailable, "", true, false, ""},
		{409, "BlobImmutableDueToPolicy", "", objstore.ErrDenied, objstore.CauseRetained, false, false, ""},
		{409, "BlobImmutableDueToLegalHold", "", objstore.ErrDenied, objstore.CauseRetained, false, false, ""},
		{409, "BlobArchived", "", objstore.ErrUnavailable, objstore.CauseArchived, false, false, "archive"},
		{507, "", "", objstore.ErrNoSpace, "", false, false, ""},
		{413, "RequestBodyTooLarge", "", objstore.ErrTooLarge, "", false, false, ""},
		{400, "Md5Mismatch", "", objstore.ErrMismatch, "", true, false, ""},
		{400, "InvalidHeaderValue", "", objstore.ErrUnavailable, "", false, false, ""},
		{501, "NotImplemented", "", nil, "", false, false, "unsupported"},
		{409, "FeatureNotSupportedForAccount", "", nil, "", false, false, "unsupported"},
	} {
		p := place
		p.Auth = tt.auth
		v := refusal.Read(p, refusal.Answer{Status: tt.status, Code: tt.code, Header: http.Header{"X-Ms-Request-Id": {"r-1"}}, At: time.Now()})
		if v.Kind != tt.kind || v.Retry != tt.retry || v.Lost != tt.lost || objstore.CauseOf(v.Err) != tt.cause {
			t.Errorf("%d %s: %+v, cause %q", tt.status, tt.code, v, objstore.CauseOf(v.Err))
		}
		if tt.kind == objstore.ErrNotExist {
			continue
		}
		if text := v.Err.Error(); !strings.Contains(text, tt.text) || !strings.Contains(text, "r-1") || !strings.Contains(text, tt.code) {
			t.Errorf("%d %s: %s", tt.status, tt.code, text)
		}
		if errors.Is(v.Err, errors.ErrUnsupported) != (tt.kind == nil) {
			t.Errorf("%d %s: unsupported? %v", tt.status, tt.code, v.Err)
		}
	}
}

// TestClock is about clocks: only what a wrong clock can cause is blamed on it.
func TestClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		status int
		code   string
		skew   time.Duration // this machine's clock is ahead
		want   objstore.Cause
		text   string
	}{
		{403, "AuthenticationFailed", 20 * time.Minute, objstore.CauseClock, "20m0s ahead of"},
		{403, "AuthenticationFailed", -20 * time.Minute, objstore.CauseClock, "20m0s behind"},
		{403, "AuthenticationFailed", 9 * time.Minute, objstore.CauseKey, "shared key"},
		{401, "InvalidAuthenticationInfo", time.Hour, objstore.CauseClock, ""},
		{400, "InvalidXmlNodeValue", 20 * time.Minute, objstore.CauseClock, ""},
		{400, "InvalidXmlNodeValue", 0, "", ""},
		{403, "AuthorizationFailure", 20 * time.Minute, objstore.CauseFirewall, ""},
		{403, "AuthorizationPermissionMismatch", 20 * time.Minute, objstore.CauseRole, ""},
		{403, "", 20 * time.Minute, "", "proxy"}, // not the service's Date
	} {
		v := refusal.Read(place, refusal.Answer{Status: tt.status, Code: tt.code, At: now, Header: http.Header{"Date": {now.Add(-tt.skew).Format(http.TimeFormat)}}})
		if got := objstore.CauseOf(v.Err); got != tt.want || !strings.Contains(v.Err.Error(), tt.text) {
			t.Errorf("%d %s, %v: %q, %v", tt.status, tt.code, tt.skew, got, v.Err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999": (1<<31 - 1) * time.Second,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0} {
		if v := refusal.Read(place, refusal.Answer{Status: 503, Code: "ServerBusy", At: now, Header: http.Header{"Retry-After": {text}}}); v.After != want {
			t.Errorf("%q: %v", text, v.After)
		}
	}
}

// FuzzRead looks for an absence that is none, and for text of the service.
func FuzzRead(f *testing.F) {
	f.Add(404, "BlobNotFound", "r")
	f.Add(404, "ContainerNotFound", "<html>")
	f.Add(403, "AuthenticationFailed", "sig=\nsecret")
	f.Fuzz(func(t *testing.T, status int, code, request string) {
		v := refusal.Read(place, refusal.Answer{Status: status, Code: code, Header: http.Header{"X-Ms-Request-Id": {request}}, At: time.Now()})
		if (v.Kind == objstore.ErrNotExist) != (status == 404 && code == "BlobNotFound") {
			t.Errorf("%d %q is %v", status, code, v.Kind)
		}
		if v.Err == nil {
			return
		}
		for _, s := range []string{code, request} {
			if strings.ContainsAny(s, "<>\n&%") && strings.Contains(v.Err.Error(), s) && len(s) > 1 {
				t.Errorf("repeats %q", s)
			}
		}
	})
}
