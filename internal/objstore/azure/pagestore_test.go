package azure_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/objstoretest"
)

// simulator is an account of the simulator of the storage service, which was
// written to the published contract by somebody else. It has what Azurite lacks,
// and proves as little about Azure itself.
type simulator struct {
	store     *pagestore.Store
	account   string
	key       string
	endpoint  string
	transport *http.Transport
	ahead     atomic.Int64 // how much the service's clock is ahead, in ns
	barred    atomic.Bool  // tokens are refused
}

const machine = dr.MachineID("00000000-0000-4000-8000-000000000001")

const goodToken = "a-token-that-is-good"

func startSimulator(t *testing.T) *simulator {
	t.Helper()
	s := &simulator{account: "contoso"}
	s.store = pagestore.New(pagestore.Config{Dir: t.TempDir(), Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) },
		Token: func(token string) (oid, tid string, ok bool) {
			return "66666666-7777-8888-9999-000000000000", "11111111-2222-3333-4444-555555555555", token == goodToken && !s.barred.Load()
		}})
	server := httptest.NewTLSServer(s.store.Handler())
	s.transport = server.Client().Transport.(*http.Transport)
	t.Cleanup(func() {
		server.Close()
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	s.key = s.store.AddAccount(s.account)
	s.endpoint = server.URL + "/" + s.account
	s.create(t, "replicas")
	return s
}

func (s *simulator) create(t *testing.T, name string) {
	t.Helper()
	cred, err := azblob.NewSharedKeyCredential(s.account, s.key)
	if err != nil {
		t.Fatal(err)
	}
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: s.transport}
	cl, err := container.NewClientWithSharedKeyCredential(s.endpoint+"/"+name, cred, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func (s *simulator) configure(t *testing.T, a pagestore.AccountSettings) {
	t.Helper()
	if err := s.store.Configure(s.account, a); err != nil {
		t.Fatal(err)
	}
}

func (s *simulator) settings() azure.Config {
	return azure.Config{Container: "replicas", Account: s.account, Endpoint: s.endpoint, AccountKey: s.key, Prefix: "holdfast", Transport: s.transport,
		Attempts: 2, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond}
}

// byToken are settings for signing in.
func (s *simulator) byToken() azure.Config {
	c := s.settings()
	c.AccountKey, c.Auth, c.Credential = "", azure.AuthEntra, staticToken{}
	return c
}

type staticToken struct{}

func (staticToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: goodToken, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func TestSimulatorConformance(t *testing.T) {
	t.Parallel()
	s := startSimulator(t)
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return newBucket(t, s.settings()) })
}

// TestDelegatedSignatures has signatures by a user delegation key verified: by
// whoever wrote the simulator, from the published string-to-sign. The endpoint is
// not called as the account is.
func TestDelegatedSignatures(t *testing.T) {
	t.Parallel()
	s := startSimulator(t)
	b := newBucket(t, s.byToken())
	data := []byte("the sealed cut")
	signed, err := b.SignPut(t.Context(), "v1/m/cut-1", int64(len(data)), sha256.Sum256(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	send := func(url string, headers map[string]string, want int) {
		t.Helper()
		if status := rawRequest(t, s.transport, http.MethodPut, url, headers, data, nil); status != want {
			t.Errorf("status %d, wanted %d", status, want)
		}
	}
	send(strings.Replace(signed.URL, "cut-1", "cut-2", 1), signed.Headers, http.StatusForbidden)
	send(signed.URL, signed.Headers, http.StatusCreated)
	if got, err := objstore.ReadAll(t.Context(), b, "v1/m/cut-1", 100); err != nil || string(got) != string(data) {
		t.Errorf("%q, %v", got, err)
	}
	if status := rawRequest(t, s.transport, http.MethodGet, signed.URL, nil, nil, nil); status != http.StatusForbidden {
		t.Errorf("read: status %d", status)
	}

	s.create(t, "inbox")
	c := s.byToken()
	c.Container, c.Prefix, c.Dedicated = "inbox", "", true
	prefix := cut.GenPrefix(machine, 3)
	p, err := newBucket(t, c).SignPrefix(t.Context(), prefix, time.Now().Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(3) {
		u, err := p.Put(cut.CutObject(machine, 3, n), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		send(u.URL, u.Headers, http.StatusCreated)
	}
	// A day later it is over, and the service says so.
	late, err := p.Put(cut.CutObject(machine, 3, 9), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	s.ahead.Store(int64(25 * time.Hour))
	send(late.URL, late.Headers, http.StatusForbidden)
}

// TestSimulatedRetention is retention as the published contract has it, with an
// account whose container has version-level immutability.
func TestSimulatedRetention(t *testing.T) {
	t.Parallel()
	s := startSimulator(t)
	s.configure(t, pagestore.AccountSettings{Immutable: true})
	c := s.settings()
	c.RetainMode, c.RetainFor, c.RetainSigned = azure.Locked, time.Hour, azure.ByVault
	b := newBucket(t, c)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := func(key, text string) {
		t.Helper()
		if err := b.Delete(t.Context(), key); !errors.Is(err, objstore.ErrDenied) || objstore.CauseOf(err) != objstore.CauseRetained || !strings.Contains(err.Error(), text) {
			t.Errorf("delete of %s: %v", key, err)
		}
	}
	put(t, b, "v1/put", "contents")
	kept("v1/put", "keeps the object until")
	if err := b.Retain(t.Context(), "v1/put", time.Now().Add(time.Minute)); err != nil { // not shortened
		t.Error(err)
	}
	s.ahead.Store(int64(10 * time.Minute))
	kept("v1/put", "keeps the object until")
	s.ahead.Store(0)

	// What comes by a signed URL is not kept until the vault has seen it, and its
	// holder has no say in it.
	data := []byte("data")
	signed, err := b.SignPut(t.Context(), "v1/signed", 4, sha256.Sum256(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(1000 * time.Hour).UTC().Format(http.TimeFormat)
	abuse := func(what, params string, body []byte, change func(http.Header)) {
		t.Helper()
		if status := rawRequest(t, s.transport, http.MethodPut, signed.URL+params, signed.Headers, body, change); status/100 == 2 {
			t.Errorf("%s: status %d", what, status)
		}
	}
	policyHeaders := func(h http.Header) {
		h.Set("X-Ms-Immutability-Policy-Until-Date", until)
		h.Set("X-Ms-Immutability-Policy-Mode", "Locked")
	}
	hold := func(h http.Header) { h.Set("X-Ms-Legal-Hold", "true") }
	abuse("create retained", "", data, policyHeaders)
	abuse("create on hold", "", data, hold)
	if status := rawRequest(t, s.transport, http.MethodPut, signed.URL, signed.Headers, data, nil); status != http.StatusCreated {
		t.Fatalf("status %d", status)
	}
	abuse("retain", "&comp=immutabilityPolicies", nil, policyHeaders)
	abuse("hold", "&comp=legalhold", nil, hold)
	if err := b.RetainNew(t.Context(), "v1/signed"); err != nil {
		t.Fatal(err)
	}
	kept("v1/signed", "keeps the object until")
	if status := rawRequest(t, s.transport, http.MethodDelete, signed.URL+"&comp=immutabilityPolicies", nil, nil, nil); status/100 == 2 {
		t.Errorf("the holder lifted the retention: status %d", status)
	}
	if err := b.RetainNew(t.Context(), "v1/absent"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("retain what is absent: %v", err)
	}

	// The service itself refuses, too, whoever asks.
	plain := newBucket(t, s.settings())
	if err := plain.Delete(t.Context(), "v1/signed"); err != nil && objstore.CauseOf(err) != objstore.CauseRetained {
		t.Errorf("delete without the setting: %v (cause %q)", err, objstore.CauseOf(err))
	}
	if err := plain.RetainNew(t.Context(), "v1/signed"); err != nil {
		t.Errorf("without a retention there is nothing to do: %v", err)
	}
}

// TestSignedAndRetained: signing is refused where new objects would go without
// the retention that was asked for.
func TestSignedAndRetained(t *testing.T) {
	t.Parallel()
	s := startSimulator(t)
	s.configure(t, pagestore.AccountSettings{Immutable: true})
	var policy atomic.Bool // the container has a default policy, which the simulator lacks
	var asked atomic.Int64
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := s.transport.RoundTrip(r)
		if err == nil && r.URL.Query().Get("restype") == "container" && r.URL.Query().Get("comp") == "" {
			asked.Add(1)
			resp.Header.Set("X-Ms-Has-Immutability-Policy", fmt.Sprint(policy.Load()))
		}
		return resp, err
	})
	c := s.settings()
	c.RetainMode, c.RetainFor, c.Transport = azure.Locked, time.Hour, transport
	b := newBucket(t, c)
	sign := func(b *azure.Bucket) error {
		_, err := b.SignPut(t.Context(), "v1/x", 1, [32]byte{}, time.Now().Add(time.Minute))
		_, ahead := b.SignAhead(t.Context(), []string{"v1/x"}, time.Now().Add(time.Minute))
		if (err == nil) != (ahead == nil) {
			t.Errorf("SignPut: %v, SignAhead: %v", err, ahead)
		}
		return err
	}
	if err := sign(b); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "retain-signed=vault") {
		t.Errorf("without a default policy: %v", err)
	}
	policy.Store(true)
	if err := sign(b); err != nil {
		t.Errorf("with a default policy: %v", err)
	}
	before := asked.Load()
	if err := sign(b); err != nil || asked.Load() != before {
		t.Errorf("%v; asked again %d times", err, asked.Load()-before)
	}
	policy.Store(false)
	c.RetainSigned = azure.ByVault
	if err := sign(newBucket(t, c)); err != nil {
		t.Errorf("left to the vault: %v", err)
	}
	c.RetainSigned, c.RetainFor = "", 0
	if err := sign(newBucket(t, c)); err != nil {
		t.Errorf("without a time: %v", err)
	}
}

// TestCauses looks at what an operator is told when the account refuses.
func TestCauses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		token  bool
		change func(t *testing.T, s *simulator)
		want   objstore.Cause
		text   string
	}{
		"firewall": {false, func(t *testing.T, s *simulator) { s.configure(t, pagestore.AccountSettings{Firewall: true}) }, objstore.CauseFirewall, "private endpoint"},
		"no keys":  {false, func(t *testing.T, s *simulator) { s.configure(t, pagestore.AccountSettings{NoKeys: true}) }, objstore.CauseKey, "Entra ID"},
		"another key": {false, func(t *testing.T, s *simulator) {
			if _, err := s.store.RotateKey(s.account); err != nil {
				t.Fatal(err)
			}
		}, objstore.CauseKey, "shared key"},
		"clock behind":       {false, func(_ *testing.T, s *simulator) { s.ahead.Store(int64(20 * time.Minute)) }, objstore.CauseClock, "behind"},
		"clock ahead":        {false, func(_ *testing.T, s *simulator) { s.ahead.Store(-int64(20 * time.Minute)) }, objstore.CauseClock, "ahead"},
		"token":              {true, func(_ *testing.T, s *simulator) { s.barred.Store(true) }, objstore.CauseSignIn, "tenant"},
		"firewall, by token": {true, func(t *testing.T, s *simulator) { s.configure(t, pagestore.AccountSettings{Firewall: true}) }, objstore.CauseFirewall, "firewall"},
		"firewall and skewed": {false, func(t *testing.T, s *simulator) {
			s.ahead.Store(int64(time.Hour))
			s.configure(t, pagestore.AccountSettings{Firewall: true})
		}, objstore.CauseFirewall, "firewall"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSimulator(t)
			c := s.settings()
			if tt.token {
				c = s.byToken()
			}
			b := newBucket(t, c)
			put(t, b, "v1/x", "x")
			tt.change(t, s)
			_, getErr := objstore.ReadAll(t.Context(), b, "v1/x", 10)
			for what, err := range map[string]error{
				"get": getErr, "put": b.PutNew(t.Context(), "v1/y", strings.NewReader("y"), 1, nil), "delete": b.Delete(t.Context(), "v1/x"),
				"list": b.List(t.Context(), "", func(objstore.Info) error { return nil }), "open": newBucket(t, c).Open(t.Context()),
			} {
				if !errors.Is(err, objstore.ErrDenied) || objstore.CauseOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) || errors.Is(err, objstore.ErrNotExist) {
					t.Errorf("%s: %v (cause %q)", what, err, objstore.CauseOf(err))
				}
			}
			// As soon as it is mended, everything goes on with the same Bucket.
			s.ahead.Store(0)
			s.barred.Store(false)
			s.configure(t, pagestore.AccountSettings{})
			if name == "another key" {
				return
			}
			if got, err := objstore.ReadAll(t.Context(), b, "v1/x", 10); err != nil || string(got) != "x" {
				t.Errorf("when it is mended: %q, %v", got, err)
			}
		})
	}
}
