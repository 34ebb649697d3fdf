package arm

import (
	"context"
	"errors"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

type fixedCredential string

func (f fixedCredential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if f == "expired" {
		return azcore.AccessToken{}, &azidentity.AuthenticationFailedError{}
	}
	if f == "offline" {
		return azcore.AccessToken{}, errors.New("offline")
	}
	return azcore.AccessToken{Token: string(f)}, nil
}

// TestRenewed: the file is read again when, and only when, the secret is refused.
func TestRenewed(t *testing.T) {
	t.Parallel()
	file, reads := "good", 0
	var unreadable error
	c, err := newRenewed(func() ([]byte, error) { reads++; return []byte(file), unreadable },
		func(b []byte) (azcore.TokenCredential, error) { return fixedCredential(b), nil })
	if err != nil {
		t.Fatal(err)
	}
	get := func() (string, error) {
		tok, err := c.GetToken(t.Context(), policy.TokenRequestOptions{})
		return tok.Token, err
	}
	if s, err := get(); s != "good" || err != nil || reads != 1 {
		t.Fatalf("%s %v, %d reads", s, err, reads)
	}
	r := c.(*renewed)
	r.used, r.cred = []byte("expired"), fixedCredential("expired")
	file = "expired"
	if _, err := get(); err == nil || reads != 2 {
		t.Fatalf("%v, %d reads", err, reads)
	}
	file = "renewed"
	if s, err := get(); s != "renewed" || err != nil {
		t.Fatalf("%s %v", s, err)
	}
	r.used, r.cred, unreadable = []byte("expired"), fixedCredential("expired"), errors.New("gone")
	var refused *azidentity.AuthenticationFailedError
	if _, err := get(); !errors.As(err, &refused) {
		t.Fatalf("the refusal is lost: %v", err)
	}
	r.cred, reads = fixedCredential("offline"), 0
	if _, err := get(); err == nil || reads != 0 {
		t.Fatalf("%v, %d reads", err, reads)
	}
}
