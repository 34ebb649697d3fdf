package refusal

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"holdfast/internal/dr"
)

// answer makes the SDK's error of an answer.
func answer(status int, header http.Header, body string) error {
	if header == nil {
		header = http.Header{}
	}
	u, _ := url.Parse("https://acc.blob.example/box/blob?sv=1&sig=TOPSECRET%3D")
	return runtime.NewResponseError(&http.Response{StatusCode: status, Status: http.StatusText(status), Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: &http.Request{Method: "PUT", URL: u}})
}

func armError(status int, code, message string) error {
	return answer(status, http.Header{"X-Ms-Correlation-Request-Id": {"corr-1"}}, fmt.Sprintf(`{"error":{"code":%q,"message":%q}}`, code, message))
}

func TestClassify(t *testing.T) {
	t.Parallel()
	const object = "/subscriptions/s/resourceGroups/dr/providers/Microsoft.Compute/disks/d"
	for _, x := range []struct {
		status        int
		code, message string
		want          dr.Code
		kind          dr.Kind
	}{
		{403, "AuthorizationFailed", "The client 'x' does not have authorization to perform action 'Microsoft.Compute/disks/write'", dr.CodeAzureRole, dr.KindForbidden},
		{403, "LinkedAuthorizationFailed", "no join", dr.CodeAzureRole, dr.KindForbidden},
		{403, "RequestDisallowedByPolicy", "Resource 'd' was disallowed by policy 'only-westeurope'", dr.CodeAzurePolicy, dr.KindForbidden},
		{409, "OperationNotAllowed", "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.", dr.CodeAzureQuota, dr.KindExhausted},
		{409, "OperationNotAllowed", "The maximum number of data disks allowed to be attached to a VM of this size is 4.", dr.CodeAzureDisk, dr.KindUnsupported},
		{409, "OperationNotAllowed", "Disk is attached to VM", dr.CodeAzureOperation, dr.KindConflict},
		{429, "OperationNotAllowed", "too many requests, quota", dr.CodeAzureThrottled, dr.KindExhausted},
		{400, "QuotaExceeded", "…", dr.CodeAzureQuota, dr.KindExhausted},
		{400, "PublicIPCountLimitReached", "…", dr.CodeAzureQuota, dr.KindExhausted},
		{409, "SkuNotAvailable", "The requested size is currently not available in location 'westeurope'", dr.CodeAzureSize, dr.KindPrecondition},
		{200, "AllocationFailed", "Allocation failed. We do not have sufficient capacity", dr.CodeAzureCapacity, dr.KindExhausted},
		{200, "ZonalAllocationFailed", "…", dr.CodeAzureCapacity, dr.KindExhausted},
		{200, "OverconstrainedAllocationRequest", "…", dr.CodeAzureCapacity, dr.KindExhausted},
		{409, "ScopeLocked", "The scope cannot perform delete operation because following scope(s) are locked", dr.CodeAzureLocked, dr.KindConflict},
		{400, "SubnetIsFull", "…", dr.CodeAzureSubnet, dr.KindExhausted},
		{400, "PrivateIPAddressIsAllocated", "…", dr.CodeAzureAddress, dr.KindConflict},
		{400, "PrivateIPAddressNotInSubnet", "…", dr.CodeAzureAddress, dr.KindConflict},
		{409, "MissingSubscriptionRegistration", "The subscription is not registered to use namespace 'Microsoft.Compute'", dr.CodeAzureProvider, dr.KindPrecondition},
		{404, "ResourceGroupNotFound", "…", dr.CodeAzureNotFound, dr.KindNotFound},
		{404, "SubscriptionNotFound", "…", dr.CodeAzureNotFound, dr.KindNotFound},
		{400, "InvalidResourceReference", "…", dr.CodeAzureNotFound, dr.KindNotFound},
		{404, "VMNotFound", "…", dr.CodeAzureNotFound, dr.KindNotFound},
		{404, "", "", dr.CodeAzureOperation, dr.KindUnavailable}, // a proxy's 404 is no absence
		{401, "ExpiredAuthenticationToken", "…", dr.CodeAzureSignIn, dr.KindUnauthenticated},
		{401, "", "", dr.CodeAzureSignIn, dr.KindUnauthenticated},
		{429, "", "", dr.CodeAzureThrottled, dr.KindExhausted},
		{503, "ServerBusy", "…", dr.CodeAzureThrottled, dr.KindExhausted},
		{500, "InternalServerError", "…", dr.CodeAzureOperation, dr.KindUnavailable},
		{400, "InvalidParameter", "…", dr.CodeAzureOperation, dr.KindInvalid},
	} {
		err := Classify("azure.Put", object, armError(x.status, x.code, x.message))
		r := Of(err)
		if dr.CodeOf(err) != x.want || dr.KindOf(err) != x.kind || r == nil || r.Code != x.code || r.Correlation != "corr-1" || !strings.Contains(err.Error(), object) {
			t.Errorf("%d %s: %s %s: %v", x.status, x.code, dr.CodeOf(err), dr.KindOf(err), err)
		}
		if text := err.Error(); strings.Contains(text, "\n") || strings.Contains(text, "TOPSECRET") || x.message != "" && !strings.Contains(text, x.message) || !strings.Contains(text, "corr-1") {
			t.Errorf("%d %s: message %q", x.status, x.code, text)
		}
		if dr.HintOf(err) == "" {
			t.Errorf("%s has no remedy", x.code)
		}
		var sdk *azcore.ResponseError
		if !errors.As(err, &sdk) {
			t.Errorf("%s: the SDK's error is lost", x.code)
		}
		if again := Classify("other", "else", err); again != err { //nolint:errorlint // the same one
			t.Errorf("%s is classified twice", x.code)
		}
	}
	if Classify("op", "o", nil) != nil {
		t.Error("nil")
	}
}

func TestClassifyStorage(t *testing.T) {
	t.Parallel()
	body := func(code, message, detail string) string {
		return "\ufeff<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>" + code + "</Code><Message>" + message + "\nRequestId:1\nTime:2</Message><AuthenticationErrorDetail>" + detail + "</AuthenticationErrorDetail></Error>"
	}
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		status               int
		code, detail, inText string
		skew                 time.Duration
		want                 dr.Code
	}{
		{403, "AuthenticationFailed", "Signature not valid in the specified time frame: Start [a] - Expiry [b] - Current [c]", "has ended", 0, dr.CodeAzureSignature},
		{403, "AuthenticationFailed", "The MAC signature found in the HTTP request 'c2VjcmV0' is not the same", "", 0, dr.CodeAzureSignature},
		{403, "AuthenticationFailed", "Request date header too old: 'Mon'", "", 0, dr.CodeAzureClock},
		{403, "AuthenticationFailed", "", "20m0s ahead", 20 * time.Minute, dr.CodeAzureClock},
		{403, "AuthorizationFailure", "", "network", 0, dr.CodeAzureFirewall},
		{403, "AuthorizationPermissionMismatch", "", "role", 0, dr.CodeAzureRole},
		{404, "ContainerNotFound", "", "", 0, dr.CodeAzureContainer},
		{409, "ContainerBeingDeleted", "", "", 0, dr.CodeAzureContainer},
		{503, "ServerBusy", "", "", 0, dr.CodeAzureThrottled},
		{403, "KeyBasedAuthenticationNotPermitted", "", "", 0, dr.CodeAzureRole},
	} {
		e := answer(x.status, http.Header{"X-Ms-Error-Code": {x.code}, "Date": {now.Add(-x.skew).Format(http.TimeFormat)}}, body(x.code, "Words of Azure.", x.detail))
		err := classify("azure.Doctor", "blob b", e, now)
		if dr.CodeOf(err) != x.want || !strings.Contains(err.Error(), x.inText) || !strings.Contains(err.Error(), "Words of Azure.") {
			t.Errorf("%s %s: %s: %v", x.code, x.detail, dr.CodeOf(err), err)
		}
		if strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "RequestId") {
			t.Errorf("%s: %v", x.code, err)
		}
	}
	if code, _ := refusalBody(&http.Response{Body: io.NopCloser(strings.NewReader(body("X", "y", ""))), Header: http.Header{}}); code != "X" {
		t.Errorf("XML with a byte order mark: code %q", code)
	}
}

func TestClassifyNetwork(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error {
		return &url.Error{Op: "Put", URL: "https://acc.blob.example/box?sig=TOPSECRET", Err: err}
	}
	for name, x := range map[string]struct {
		err  error
		code dr.Code
		kind dr.Kind
		text string
	}{
		"refused":  {wrap(&net.OpError{Op: "dial", Err: errors.New("connection refused")}), dr.CodeAzureUnreachable, dr.KindUnavailable, "no answer from acc.blob.example"},
		"dns":      {wrap(&net.DNSError{Err: "no such host", Name: "acc.blob.example", IsNotFound: true}), dr.CodeAzureUnreachable, dr.KindUnavailable, "no such host"},
		"ca":       {wrap(x509.UnknownAuthorityError{}), dr.CodeAzureUnreachable, dr.KindUnavailable, "unknown authority"},
		"deadline": {fmt.Errorf("x: %w", context.DeadlineExceeded), dr.CodeAzureUnreachable, dr.KindUnavailable, "deadline"},
		"canceled": {wrap(context.Canceled), "", dr.KindCanceled, "cancelled"},
		"eof":      {wrap(io.ErrUnexpectedEOF), dr.CodeAzureUnreachable, dr.KindUnavailable, "EOF"},
	} {
		err := Classify("op", "thing", x.err)
		if dr.CodeOf(err) != x.code || dr.KindOf(err) != x.kind || !strings.Contains(err.Error(), x.text) || strings.Contains(err.Error(), "TOPSECRET") {
			t.Errorf("%s: %s %s %v", name, dr.CodeOf(err), dr.KindOf(err), err)
		}
		if IsAbsent(err) {
			t.Errorf("%s counts as absent", name)
		}
	}
	if hint := dr.HintOf(Classify("op", "thing", wrap(x509.UnknownAuthorityError{}))); !strings.Contains(hint, "caFile") {
		t.Errorf("hint %q", hint)
	}
}

func TestIsAbsent(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		status int
		code   string
		want   bool
	}{{404, "ResourceNotFound", true}, {404, "ResourceGroupNotFound", true}, {404, "NotFound", true}, {404, "SubscriptionNotFound", false}, {404, "", false},
		{400, "InvalidResourceReference", false}, {403, "AuthorizationFailed", false}, {404, "ContainerNotFound", false}} {
		if got := IsAbsent(Classify("op", "o", armError(x.status, x.code, ""))); got != x.want {
			t.Errorf("%d %q: %v", x.status, x.code, got)
		}
	}
}

func TestScrub(t *testing.T) {
	t.Parallel()
	for in, bad := range map[string]string{
		"https://a/b?sv=2&sig=abc%2Bdef&x=1":                      "abc",
		"Authorization: Bearer abc.def":                           "abc.def",
		"token eyJ0eXAiOiJKV1Qi.eyJhdWQi.c2ln":                    "eyJ0",
		"client_secret=hunter2&grant_type=client_credentials":     "hunter2",
		"Authorization: SharedKey acc:dGhlc2lnbmF0dXJlaXNoZXJl==": "dGhlc2ln",
	} {
		if got := Scrub(in); strings.Contains(got, bad) || !strings.Contains(got, "REDACTED") {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(409, `{"error":{"code":"QuotaExceeded","message":"m","details":[{"message":"d"}]}}`)
	f.Add(403, "<Error><Code>AuthenticationFailed</Code><Message>m</Message></Error>")
	f.Add(404, `{"error":"x"}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		err := Classify("op", "o", answer(status, nil, body))
		var e *dr.Error
		if !errors.As(err, &e) || e.Code == "" || strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 2500 {
			t.Errorf("%d %q: %v", status, body, err)
		}
	})
}
