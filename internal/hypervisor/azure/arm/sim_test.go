package arm_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/arm/armtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certificate makes a PEM file with a self-signed certificate and its key.
func certificate(t *testing.T, key any, public any) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "holdfast"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "holdfast"}}, public, key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})...)
}

// TestCredentials: every kind signs in and reads the resource group.
func TestCredentials(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	jwt := "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiaG9sZGZhc3QifQ.c2ln"
	for name, k := range map[string]arm.Credential{
		"secret":        w.Site.Credential,
		"certificate":   {Kind: arm.CredentialCertificate, ClientID: azsim.DefaultClientID, CertificateFile: w.File(t, "cert.pem", certificate(t, rsaKey, rsaKey.Public()))},
		"chain":         {Kind: arm.CredentialCertificate, ClientID: azsim.DefaultClientID, CertificateFile: w.File(t, "cert2.pem", certificate(t, rsaKey, rsaKey.Public())), SendChain: true},
		"workload":      {Kind: arm.CredentialWorkload, ClientID: azsim.DefaultClientID, TokenFile: w.File(t, "token", []byte(jwt))},
		"managed":       {Kind: arm.CredentialManaged},
		"user-assigned": {Kind: arm.CredentialManaged, ClientID: azsim.DefaultClientID},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, o := w.Site, w.Options
			cfg.Credential, o.HTTP = k, w.Client(t)
			s, err := arm.Open(t.Context(), cfg, o)
			if err != nil {
				t.Fatal(err)
			}
			if s.Location() != azsim.DefaultLocation {
				t.Errorf("location %q", s.Location())
			}
			if err := s.Close(); err != nil || s.Close() != nil {
				t.Error("close")
			}
		})
	}
}

// TestBadCredentials: each comes as a typed error that names the remedy and tells no secret.
func TestBadCredentials(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const wrong = "wrong~hunter2"
	for name, x := range map[string]struct {
		change func(*arm.Config)
		code   dr.Code
		text   string
	}{
		"wrong secret":   {func(c *arm.Config) { c.Credential.SecretFile = w.File(t, "wrong", []byte(wrong)) }, dr.CodeAzureSignIn, "AADSTS7000215"},
		"wrong tenant":   {func(c *arm.Config) { c.Tenant = "0a5e0000-0000-4000-8000-00000000dead" }, dr.CodeAzureSignIn, "AADSTS90002"},
		"wrong client":   {func(c *arm.Config) { c.Credential.ClientID = "0a5e0000-0000-4000-8000-00000000beef" }, dr.CodeAzureSignIn, "AADSTS700016"},
		"no secret file": {func(c *arm.Config) { c.Credential.SecretFile = "/nonexistent/secret" }, dr.CodeAzureConfiguration, "secretFile"},
		"empty file":     {func(c *arm.Config) { c.Credential.SecretFile = w.File(t, "empty", []byte("\n")) }, dr.CodeAzureConfiguration, "empty"},
		"no certificate": {func(c *arm.Config) {
			c.Credential = arm.Credential{Kind: arm.CredentialCertificate, ClientID: azsim.DefaultClientID, CertificateFile: w.File(t, "bad.pem", []byte("x"))}
		}, dr.CodeAzureConfiguration, "certificate"},
		"wrong kind of key": {func(c *arm.Config) {
			c.Credential = arm.Credential{Kind: arm.CredentialCertificate, ClientID: azsim.DefaultClientID, CertificateFile: w.File(t, "ec.pem", certificate(t, ec, ec.Public()))}
		}, dr.CodeAzureConfiguration, "certificate"},
		"no CA":              {func(c *arm.Config) { c.CAFile = "" }, dr.CodeAzureUnreachable, "certificate"},
		"wrong subscription": {func(c *arm.Config) { c.Subscription = "0a5e0000-0000-4000-8000-00000000cafe" }, dr.CodeAzureNotFound, "SubscriptionNotFound"},
		"wrong group":        {func(c *arm.Config) { c.ResourceGroup = "nope" }, dr.CodeAzureNotFound, "nope"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := w.Site
			x.change(&cfg)
			s, err := arm.Open(t.Context(), cfg, w.Options)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if dr.CodeOf(err) != x.code || !strings.Contains(err.Error(), x.text) || dr.HintOf(err) == "" {
				t.Errorf("%s: %v (%s)", dr.CodeOf(err), err, dr.HintOf(err))
			}
			if strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "\n") {
				t.Errorf("message %q", err)
			}
		})
	}
}

// TestExpiredSecret: the secret expires while the session works; a new one in the
// file is taken without a restart.
func TestExpiredSecret(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	w.Directory().SetLifetime(time.Second) // the SDK asks anew at once
	s := w.Open(t)
	id := w.Site.ID(arm.TypeNetwork, "prod")
	if err := s.Resource(t.Context(), id, arm.NetworkAPI, nil); err != nil {
		t.Fatal(err)
	}
	w.Directory().ExpireSecret(true)
	w.Directory().RevokeTokens()
	var err error
	for deadline := time.Now().Add(time.Minute); err == nil && time.Now().Before(deadline); { // until the SDK's cache gives the token up
		err = s.Resource(t.Context(), id, arm.NetworkAPI, nil)
	}
	if dr.CodeOf(err) != dr.CodeAzureSignIn {
		t.Fatalf("%s: %v", dr.CodeOf(err), err)
	}
	w.Directory().ExpireSecret(false)
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); {
		err = s.Resource(t.Context(), id, arm.NetworkAPI, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func nsg(owner string) map[string]any {
	return map[string]any{"location": azsim.DefaultLocation, "tags": map[string]string{arm.TagOwner: owner, arm.TagPurpose: arm.PurposeTest}, "properties": map[string]any{"securityRules": []any{}}}
}

func TestResources(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	ctx := t.Context()
	before := len(w.Resources())
	id := w.Site.ID(arm.TypeSecurityGroup, "deny")
	if err := s.Resource(ctx, id, arm.NetworkAPI, nil); !arm.IsAbsent(err) {
		t.Fatalf("absent: %v", err)
	}
	var out struct{ ID string }
	if err := s.PutResource(ctx, id, arm.NetworkAPI, nsg("site-1"), &out); err != nil || !arm.SameID(out.ID, id) {
		t.Fatalf("%v %v", out, err)
	}
	list, err := s.ListByTag(ctx, arm.TagOwner, "site-1")
	if err != nil || len(list) != 1 || !arm.SameID(list[0].ID, id) || list[0].Tag("HOLDFAST-PURPOSE") != arm.PurposeTest {
		t.Fatalf("%+v %v", list, err)
	}
	if list, err := s.ListByTag(ctx, arm.TagOwner, "site-2"); err != nil || len(list) != 0 {
		t.Fatalf("%+v %v", list, err)
	}
	// What is another's by now is not removed.
	stranger := list[0]
	stranger.Tags = map[string]string{arm.TagOwner: "site-2"}
	if err := s.Remove(ctx, []arm.Resource{stranger}); dr.CodeOf(err) != dr.CodeAzureNameTaken {
		t.Fatalf("another's: %v", err)
	}
	if err := s.Remove(ctx, list); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, list); err != nil { // twice is no error
		t.Fatal(err)
	}
	if err := s.DeleteResource(ctx, id, arm.NetworkAPI); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Resources()); n != before {
		t.Errorf("%d resources, before %d", n, before)
	}
}

// TestFaults: whatever happens to the calls of a put and a delete, the end is what was asked.
func TestFaults(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	id := w.Site.ID(arm.TypeSecurityGroup, "deny")
	for name, f := range map[string]azsim.Fault{
		"put throttled":     {Method: "PUT", Path: "networkSecurityGroups", Status: 429, Code: "TooManyRequests", RetryAfter: time.Second},
		"put unavailable":   {Method: "PUT", Path: "networkSecurityGroups", Status: 503, Code: "ServiceUnavailable", Times: 2},
		"put lost":          {Method: "PUT", Path: "networkSecurityGroups", Lost: true},
		"put lost for good": {Method: "PUT", Path: "networkSecurityGroups", Lost: true, Times: -1},
		"put never sent":    {Method: "PUT", Path: "networkSecurityGroups", Unsent: true},
		"busy":              {Method: "PUT", Path: "networkSecurityGroups", Status: 409, Code: "AnotherOperationInProgress"},
		"poll lost":         {Method: "GET", Path: "operation", Lost: true},
		"delete lost":       {Method: "DELETE", Path: "networkSecurityGroups", Lost: true, Times: -1},
		"delete throttled":  {Method: "DELETE", Path: "networkSecurityGroups", Status: 429, RetryAfter: -1},
		"NIC reserved":      {Method: "DELETE", Path: "networkSecurityGroups", Status: 400, Code: "NicReservedForAnotherVm", Times: 3},
	} {
		t.Run(name, func(t *testing.T) {
			hit := w.Fault(f)
			defer hit.Remove()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := s.PutResource(ctx, id, arm.NetworkAPI, nsg("site-1"), nil); err != nil {
				t.Errorf("put: %v", err)
			}
			if err := s.Resource(ctx, id, arm.NetworkAPI, nil); err != nil {
				t.Errorf("get: %v", err)
			}
			if err := s.DeleteResource(ctx, id, arm.NetworkAPI); err != nil {
				t.Errorf("delete: %v", err)
			}
			if err := s.Resource(ctx, id, arm.NetworkAPI, nil); !arm.IsAbsent(err) {
				t.Errorf("get after delete: %v", err)
			}
			if hit.Fired() == 0 {
				t.Error("the fault did not fire")
			}
		})
	}
	if text := w.Logged.String(); !strings.Contains(text, "Azure asks to wait") || !strings.Contains(text, "got no answer") {
		t.Errorf("waiting is not told:\n%s", text)
	}
}

// TestThrottledForGood: waiting ends with the context, and says why.
func TestThrottledForGood(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	hit := w.Fault(azsim.Fault{Method: "GET", Path: "virtualNetworks", Status: 429, Code: "TooManyRequests", RetryAfter: time.Hour, Times: -1})
	err := s.Resource(t.Context(), w.Site.ID(arm.TypeNetwork, "prod"), arm.NetworkAPI, nil) // an hour is more than MaxRetryDelay
	if dr.CodeOf(err) != dr.CodeAzureThrottled || dr.KindOf(err) != dr.KindExhausted || hit.Fired() != 1 {
		t.Errorf("fired %d: %v", hit.Fired(), err)
	}
	hit.Remove()
	w.Fault(azsim.Fault{Method: "GET", Path: "virtualNetworks", Status: 429, Code: "TooManyRequests", RetryAfter: 4 * time.Second, Times: -1})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.Resource(ctx, w.Site.ID(arm.TypeNetwork, "prod"), arm.NetworkAPI, nil); err == nil || arm.IsAbsent(err) || time.Since(began) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

// TestFailedOperation: what Azure accepted and then failed keeps Azure's words, and is the right class.
func TestFailedOperation(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	hit := w.Fault(azsim.Fault{Method: "PUT", Path: "networkSecurityGroups", Operation: true, Code: "InternalServerError", Message: "An error occurred."})
	err := s.PutResource(t.Context(), w.Site.ID(arm.TypeSecurityGroup, "deny"), arm.NetworkAPI, nsg("site-1"), nil)
	if hit.Fired() != 1 || dr.CodeOf(err) != dr.CodeAzureOperation || !strings.Contains(err.Error(), "An error occurred.") {
		t.Errorf("fired %d, %s: %v", hit.Fired(), dr.CodeOf(err), err)
	}
	if r := arm.RefusalOf(err); r == nil || r.Correlation == "" || r.Code != "InternalServerError" {
		t.Errorf("refusal %+v", r)
	}
}

func TestSkewedClock(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	w.SkewClock(20 * time.Minute)
	w.Directory().RevokeTokens()
	err := s.Resource(t.Context(), w.Site.ID(arm.TypeNetwork, "prod"), arm.NetworkAPI, nil)
	if dr.CodeOf(err) != dr.CodeAzureClock || !strings.Contains(err.Error(), "behind Azure's") {
		t.Errorf("%s: %v", dr.CodeOf(err), err)
	}
}

func TestSizesAndQuotas(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	s := w.Open(t)
	sizes, err := s.Sizes(t.Context())
	if err != nil || len(sizes) < 5 {
		t.Fatalf("%d sizes, %v", len(sizes), err)
	}
	for _, z := range sizes {
		if z.VCPUs <= 0 || z.MemoryMB <= 0 || z.MaxDisks <= 0 || z.MaxNICs <= 0 || len(z.Generation) == 0 || z.Family == "" {
			t.Errorf("size %+v", z)
		}
	}
	best, _, err := arm.Fit(sizes, arm.Need{VCPUs: 2, MemoryMB: 4096, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	w.Restrict(best.Name, "NotAvailableForSubscription")
	if sizes, err = s.Sizes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := arm.Fit(sizes, arm.Need{Name: best.Name}); dr.CodeOf(err) != dr.CodeAzureSize || !strings.Contains(err.Error(), "NotAvailableForSubscription") {
		t.Errorf("restricted: %v", err)
	}
	w.SetQuota("cores", 1)
	quotas, err := s.Quotas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := arm.Room(quotas, best, 1); dr.CodeOf(err) != dr.CodeAzureQuota {
		t.Errorf("room: %v", err)
	}
}

// TestListElsewhere: the token does not go to another host, whatever a list says.
func TestListElsewhere(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	evil := w.Client(t)
	inner := evil.Transport
	asked := false
	evil.Transport = trip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "evil.example" {
			asked = true
			return nil, fmt.Errorf("asked")
		}
		resp, err := inner.RoundTrip(r)
		if err == nil && strings.HasSuffix(r.URL.Path, "/disks") {
			b, _ := json.Marshal(map[string]any{"value": []any{}, "nextLink": "https://evil.example/next"})
			_ = resp.Body.Close()
			resp.Body, resp.ContentLength = http.NoBody, 0
			resp.Body = readCloser{bytes.NewReader(b)}
			resp.Header.Del("Content-Length")
			resp.ContentLength = int64(len(b))
		}
		return resp, err
	})
	w.Options.HTTP = evil
	s := w.Open(t)
	if _, err := s.ListByTag(t.Context(), arm.TagOwner, ""); err == nil || asked {
		t.Errorf("asked %v, %v", asked, err)
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
