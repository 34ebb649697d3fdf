package grant_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

// delegated makes what the SDK makes of the service's answer (Get User
// Delegation Key), which nobody else can.
func delegated(t *testing.T, start, expiry time.Time) *service.UserDelegationCredential {
	t.Helper()
	const layout = "2006-01-02T15:04:05Z"
	from, to := start.UTC().Format(layout), expiry.UTC().Format(layout)
	answer := doer(func(r *http.Request) (*http.Response, error) {
		text := fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>%s</SignedOid><SignedTid>%s</SignedTid><SignedStart>%s</SignedStart>`+
			`<SignedExpiry>%s</SignedExpiry><SignedService>b</SignedService><SignedVersion>2026-12-06</SignedVersion><Value>%s</Value></UserDelegationKey>`,
			oid, tid, from, to, base64.StdEncoding.EncodeToString(delegationKey))
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
	})
	cl, err := service.NewClient("https://"+account+".blob.core.windows.net/", token{}, &service.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: answer}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := cl.GetUserDelegationCredential(t.Context(), service.KeyInfo{Start: &from, Expiry: &to}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

type doer func(*http.Request) (*http.Response, error)

func (f doer) Do(r *http.Request) (*http.Response, error) { return f(r) }

type token struct{}

func (token) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, nil
}
