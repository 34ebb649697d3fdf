//go:build linux

package azure_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/objstoretest"
)

// TestAzurite runs the contract, signed URLs and faults on Microsoft's emulator.
func TestAzurite(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
	e := startAzurite(t, false)
	b := newBucket(t, e.settings())
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("conformance", func(t *testing.T) {
		objstoretest.Run(t, func(*testing.T) objstore.Bucket { return b })
	})
	t.Run("signed URLs", func(t *testing.T) { attackSigned(t, b, e.transport) })
	t.Run("signed URLs die", func(t *testing.T) {
		signed, err := b.SignPut(t.Context(), "v1/m/late", 4, sha256.Sum256([]byte("late")), time.Now().Add(2*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if status := rawRequest(t, e.transport, http.MethodPut, signed.URL, signed.Headers, []byte("late"), nil); status != http.StatusForbidden {
			t.Errorf("status %d", status)
		}
		if _, err := b.Head(t.Context(), "v1/m/late"); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("head: %v", err)
		}
	})
	t.Run("faults", func(t *testing.T) { testFaults(t, e) })
	t.Run("open", func(t *testing.T) { testOpen(t, e) })
	t.Run("retention, on a model", func(t *testing.T) { testRetention(t, e) })
	t.Run("retention is not supported", func(t *testing.T) {
		c := e.settings()
		c.RetainMode = azure.Locked
		r := newBucket(t, c)
		if err := r.Open(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("open: %v", err)
		}
		put(t, b, "v1/kept", "x")
		for what, err := range map[string]error{
			"retain":               r.Retain(t.Context(), "v1/kept", time.Now().Add(time.Hour)),
			"hold":                 r.Hold(t.Context(), "v1/kept", true),
			"retain, switched off": b.Retain(t.Context(), "v1/kept", time.Now().Add(time.Hour)),
			"hold, switched off":   b.Hold(t.Context(), "v1/kept", true),
		} {
			if !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// entra is what Azurite takes for a sign-in: it looks into the token, but does
// not check its signature.
type entra struct{}

func (entra) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	now := time.Now()
	part := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	const tenant = "11111111-2222-3333-4444-555555555555"
	token := part(map[string]string{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/" + tenant + "/", "tid": tenant, "oid": "66666666-7777-8888-9999-000000000000",
		"iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(), "ver": "1.0",
	}) + ".c2lnbmF0dXJl"
	return azcore.AccessToken{Token: token, ExpiresOn: now.Add(time.Hour)}, nil
}

// TestEntra signs in and lets the store sign by a user delegation key.
func TestEntra(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
	e := startAzurite(t, true)
	c := e.settings()
	c.AccountKey, c.Auth, c.Credential = "", azure.AuthEntra, entra{}
	var keys atomic.Int64
	c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Get("comp") == "userdelegationkey" {
			keys.Add(1)
		}
		return e.transport.RoundTrip(r)
	})
	b := newBucket(t, c)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, b, "v1/by-entra", "contents")
	if got, err := objstore.ReadAll(t.Context(), b, "v1/by-entra", 100); err != nil || string(got) != "contents" {
		t.Errorf("%q, %v", got, err)
	}
	if err := b.Delete(t.Context(), "v1/by-entra"); err != nil {
		t.Error(err)
	}
	// The emulator knows how delegated signatures are made up to version
	// 2025-07-05 only, and the SDK makes newer ones: so what is signed is looked
	// at, but the emulator cannot verify it.
	for i := range 3 {
		signed, err := b.SignPut(t.Context(), "v1/m/cut-"+strconv.Itoa(i), 1, [32]byte{}, time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if q := query(t, signed.URL); q.Get("spr") != "https" || q.Get("sp") != "c" || q.Get("sr") != "b" || q.Get("skoid") == "" || q.Get("sig") == "" ||
			!strings.Contains(signed.URL, "/replicas/Team_A%2Fholdfast%2Fv1%2Fm%2Fcut-") {
			t.Errorf("signed %v", signed)
		}
	}
	if n := keys.Load(); n != 1 {
		t.Errorf("%d user delegation keys were asked for; one serves for hours", n)
	}
	if _, err := b.SignPut(t.Context(), "v1/m/cut-9", 1, [32]byte{}, time.Now().Add(7*24*time.Hour-time.Minute)); err != nil || keys.Load() != 2 {
		t.Errorf("a longer life: %v, %d keys", err, keys.Load())
	}
}

// attackSigned is a holder of a signed URL who wants more than was granted.
func attackSigned(t *testing.T, b *azure.Bucket, transport http.RoundTripper) {
	t.Helper()
	ctx := t.Context()
	data := []byte("the sealed cut")
	put(t, b, "v1/m/other", "somebody else's")
	signed, err := b.SignPut(ctx, "v1/m/cut-1", int64(len(data)), sha256.Sum256(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if q := query(t, signed.URL); q.Get("sp") != "c" || q.Get("sr") != "b" || q.Get("se") == "" {
		t.Errorf("signed with %v", q)
	}
	refused := func(what, method, url string, body []byte, change func(http.Header)) {
		t.Helper()
		if status := rawRequest(t, transport, method, url, signed.Headers, body, change); status/100 == 2 {
			t.Errorf("%s: status %d", what, status)
		}
	}
	other := func(name string) string {
		u := strings.Replace(signed.URL, "cut-1", name, 1)
		if u == signed.URL {
			t.Fatal("the URL does not name the key")
		}
		return u
	}
	here, params, _ := strings.Cut(signed.URL, "?")
	folder := here[:strings.Index(here, "/Team_A")]
	refused("another key", http.MethodPut, other("cut-2"), data, nil)
	refused("list", http.MethodGet, folder+"?restype=container&comp=list&"+params, nil, nil)
	refused("delete the container", http.MethodDelete, folder+"?restype=container&"+params, nil, nil)
	refused("a block", http.MethodPut, signed.URL+"&comp=block&blockid=AAAA", data, nil)
	refused("more rights", http.MethodPut, strings.Replace(signed.URL, "sp=c", "sp=cw", 1), data, nil)
	refused("a longer life", http.MethodPut, strings.Replace(signed.URL, "se=2", "se=3", 1), data, nil)
	for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodHead} {
		refused(method+" of another", method, other("other"), nil, nil)
		refused(method+" before", method, signed.URL, nil, nil)
	}
	for _, key := range []string{"v1/m/cut-1", "v1/m/cut-2"} {
		if _, err := b.Head(ctx, key); !errors.Is(err, objstore.ErrNotExist) {
			t.Fatalf("%s: %v", key, err)
		}
	}

	up := httpstore.NewUploader(httpstore.UploaderConfig{Transport: transport})
	upload := func(want httpstore.Outcome) {
		t.Helper()
		if got, err := up.Put(ctx, signed.URL, signed.Headers, bytes.NewReader(data), int64(len(data))); err != nil || got != want {
			t.Fatalf("upload: %v, %v; wanted %v", got, err, want)
		}
	}
	upload(httpstore.Created)
	upload(httpstore.MaybeExists) // as after a lost answer
	for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodHead} {
		refused(method+" of the stored object", method, signed.URL, nil, nil)
	}
	refused("overwrite", http.MethodPut, signed.URL, []byte("other contents"), nil)
	refused("overwrite without the condition", http.MethodPut, signed.URL, []byte("other contents"), func(h http.Header) { h.Del("If-None-Match") })
	refused("overwrite by an append blob", http.MethodPut, signed.URL, nil, func(h http.Header) { h.Del("If-None-Match"); h.Set("X-Ms-Blob-Type", "AppendBlob") })
	refused("overwrite by a block list", http.MethodPut, signed.URL+"&comp=blocklist", []byte(`<?xml version="1.0"?><BlockList></BlockList>`), nil)
	refused("metadata", http.MethodPut, signed.URL+"&comp=metadata", nil, func(h http.Header) { h.Set("X-Ms-Meta-Holdfastput", "x") })
	refused("tier", http.MethodPut, signed.URL+"&comp=tier", nil, func(h http.Header) { h.Set("X-Ms-Access-Tier", "Archive") })
	refused("lease", http.MethodPut, signed.URL+"&comp=lease", nil, func(h http.Header) {
		h.Set("X-Ms-Lease-Action", "acquire")
		h.Set("X-Ms-Lease-Duration", "-1")
	})
	if info, err := objstore.Digest(ctx, b, "v1/m/cut-1"); err != nil || info.SHA256 != sha256.Sum256(data) || info.Size != int64(len(data)) {
		t.Errorf("digest: %+v, %v", info, err)
	}
	// The right to create covers snapshots. They must not keep the vault from deleting.
	if status := rawRequest(t, transport, http.MethodPut, signed.URL+"&comp=snapshot", nil, nil, nil); status/100 == 2 {
		t.Log("a snapshot was taken by a signed URL, as the service's documentation says")
	}
	if err := b.Delete(ctx, "v1/m/cut-1"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := b.Head(ctx, "v1/m/cut-1"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("head: %v", err)
	}
	if got, err := objstore.ReadAll(ctx, b, "v1/m/other", 100); err != nil || string(got) != "somebody else's" {
		t.Errorf("%q, %v", got, err)
	}
}

// testFaults puts a proxy with a fault in front of the emulator.
func testFaults(t *testing.T, e *emulator) {
	// breaks returns a bucket whose requests with the given method for the key
	// meet the fault the first n times; fired counts them.
	breaks := func(t *testing.T, method, key string, n int64, fault roundTripper) (b *azure.Bucket, fired *atomic.Int64) {
		c, fired := e.settings(), new(atomic.Int64)
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == method && strings.Contains(r.URL.Path, key) && fired.Add(1) <= n {
				return fault(r)
			}
			return e.transport.RoundTrip(r)
		})
		return newBucket(t, c), fired
	}
	lose := func(r *http.Request) (*http.Response, error) {
		resp, err := e.transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errors.New("the connection broke")
	}
	answer := func(status int, code string) roundTripper {
		return func(r *http.Request) (*http.Response, error) {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			h := http.Header{"X-Ms-Error-Code": {code}, "X-Ms-Request-Id": {"r1"}, "Retry-After": {"0"}}
			return &http.Response{StatusCode: status, Status: strconv.Itoa(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h,
				Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
		}
	}
	t.Run("lost answer", func(t *testing.T) {
		b, fired := breaks(t, http.MethodPut, "v1/lost", 1, lose)
		put(t, b, "v1/lost", "contents")
		if fired.Load() != 2 {
			t.Errorf("%d puts", fired.Load())
		}
		if err := b.PutNew(t.Context(), "v1/lost", strings.NewReader("contents"), 8, nil); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("a second put: %v", err)
		}
	})
	t.Run("lost answer about another's object", func(t *testing.T) {
		put(t, newBucket(t, e.settings()), "v1/taken", "contents")
		b, fired := breaks(t, http.MethodPut, "v1/taken", 1, lose)
		if err := b.PutNew(t.Context(), "v1/taken", strings.NewReader("contents"), 8, nil); !errors.Is(err, objstore.ErrExists) || fired.Load() != 2 {
			t.Errorf("%v; %d puts", err, fired.Load())
		}
	})
	t.Run("all answers lost", func(t *testing.T) {
		b, _ := breaks(t, http.MethodPut, "v1/dark", 1000, lose)
		err := b.PutNew(t.Context(), "v1/dark", strings.NewReader("contents"), 8, nil)
		if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrExists) {
			t.Errorf("%v", err)
		}
	})
	for name, fault := range map[string]roundTripper{"throttled 503": answer(503, "ServerBusy"), "throttled 429": answer(429, "TooManyRequests"), "timed out 500": answer(500, "OperationTimedOut"),
		"damaged on the way": answer(400, "Md5Mismatch")} {
		t.Run(name, func(t *testing.T) {
			key := "v1/throttled-" + strings.ToLower(strings.ReplaceAll(name, " ", "-"))
			b, fired := breaks(t, http.MethodPut, key, 2, fault)
			put(t, b, key, "contents")
			if fired.Load() != 3 {
				t.Errorf("%d puts", fired.Load())
			}
			b, fired = breaks(t, http.MethodGet, key, 2, fault)
			if got, err := objstore.ReadAll(t.Context(), b, key, 100); err != nil || string(got) != "contents" || fired.Load() != 3 {
				t.Errorf("%q, %v; %d gets", got, err, fired.Load())
			}
		})
	}
	t.Run("throttled until the context ends", func(t *testing.T) {
		b, fired := breaks(t, http.MethodHead, "v1/busy", 1000, answer(503, "ServerBusy"))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		for ctx.Err() == nil {
			if _, err := b.Head(ctx, "v1/busy"); err == nil || errors.Is(err, objstore.ErrNotExist) {
				t.Fatalf("head: %v", err)
			}
		}
		if _, err := b.Head(ctx, "v1/busy"); !errors.Is(err, context.DeadlineExceeded) || fired.Load() < 2 {
			t.Errorf("head: %v; %d requests", err, fired.Load())
		}
	})
	t.Run("answers that are no absence", func(t *testing.T) {
		for _, f := range []roundTripper{answer(404, ""), answer(404, "ResourceNotFound"), answer(404, "ContainerNotFound"), answer(403, "AuthorizationFailure"), answer(409, "AccountBeingCreated")} {
			b, _ := breaks(t, http.MethodHead, "v1/nowhere", 1000, f)
			if _, err := b.Head(t.Context(), "v1/nowhere"); err == nil || errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("head: %v", err)
			}
		}
	})
	t.Run("what a refusal says", func(t *testing.T) {
		for code, want := range map[string]string{"AuthorizationFailure": "firewall", "AuthorizationPermissionMismatch": "Storage Blob Data Contributor", "KeyBasedAuthenticationNotPermitted": "Entra ID"} {
			b, _ := breaks(t, http.MethodHead, "v1/denied", 1000, answer(403, code))
			if _, err := b.Head(t.Context(), "v1/denied"); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", code, err)
			}
		}
		skewed := func(r *http.Request) (*http.Response, error) {
			resp, err := answer(403, "AuthenticationFailed")(r)
			resp.Header.Set("Date", time.Now().Add(-20*time.Minute).UTC().Format(http.TimeFormat))
			return resp, err
		}
		b, _ := breaks(t, http.MethodHead, "v1/denied", 1000, skewed)
		if _, err := b.Head(t.Context(), "v1/denied"); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "clock") {
			t.Errorf("%v", err)
		}
	})
	t.Run("broken body", func(t *testing.T) {
		text := strings.Repeat("0123456789", 5000)
		put(t, newBucket(t, e.settings()), "v1/long", text)
		b, fired := breaks(t, http.MethodGet, "v1/long", 3, func(r *http.Request) (*http.Response, error) {
			resp, err := e.transport.RoundTrip(r)
			if err == nil {
				resp.Body = cutBody{io.LimitReader(resp.Body, 7001), resp.Body}
			}
			return resp, err
		})
		if got, err := objstore.ReadAll(t.Context(), b, "v1/long", 1<<20); err != nil || string(got) != text || fired.Load() != 4 {
			t.Errorf("%d bytes, %v; %d gets", len(got), err, fired.Load())
		}
	})
	t.Run("If-None-Match is ignored", func(t *testing.T) {
		c := e.settings()
		c.Prefix = "ignored"
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.Contains(r.URL.Path, "probe/create-only") {
				// The signature covers the header, so the answer is made up.
				resp, err := answer(201, "")(r)
				resp.Header.Set("ETag", `"0x1"`)
				return resp, err
			}
			return e.transport.RoundTrip(r)
		})
		if err := newBucket(t, c).Open(t.Context()); !errors.Is(err, objstore.ErrUnavailable) || !strings.Contains(err.Error(), "If-None-Match") {
			t.Errorf("open: %v", err)
		}
	})
}

// cutBody ends early, with the error of a connection that broke.
type cutBody struct {
	io.Reader
	io.Closer
}

func (c cutBody) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func testOpen(t *testing.T, e *emulator) {
	for name, tt := range map[string]struct {
		change func(*azure.Config)
		want   error
		text   string
	}{
		"missing container": {func(c *azure.Config) { c.Container = "nowhere" }, objstore.ErrUnavailable, "nowhere"},
		"wrong key":         {func(c *azure.Config) { c.AccountKey = base64.StdEncoding.EncodeToString([]byte("hunter2")) }, objstore.ErrDenied, "key"},
		"no key":            {func(c *azure.Config) { c.AccountKey = "hunter2!" }, objstore.ErrUnavailable, "base64"},
		"anonymous":         {func(c *azure.Config) { c.AccountKey, c.Auth = "", azure.AuthAnonymous }, objstore.ErrDenied, ""},
		"nobody listens":    {func(c *azure.Config) { c.Endpoint, c.Attempts = "http://127.0.0.1:1/"+account, 2 }, objstore.ErrUnavailable, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, readOnly := range []bool{false, true} {
				c := e.settings()
				tt.change(&c)
				c.ReadOnly = readOnly
				err := newBucket(t, c).Open(t.Context())
				if !errors.Is(err, tt.want) || errors.Is(err, objstore.ErrNotExist) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("open: %v", err)
				}
			}
		})
	}
	t.Run("read-only", func(t *testing.T) {
		put(t, newBucket(t, e.settings()), "v1/ro", "x")
		c := e.settings()
		c.ReadOnly = true
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				t.Errorf("%s %s", r.Method, r.URL.Path)
			}
			return e.transport.RoundTrip(r)
		})
		b := newBucket(t, c)
		if err := b.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Head(t.Context(), "v1/ro"); err != nil {
			t.Error(err)
		}
		_, signErr := b.SignPut(t.Context(), "v1/y", 1, [32]byte{}, time.Now().Add(time.Minute))
		for what, err := range map[string]error{"put": b.PutNew(t.Context(), "v1/y", strings.NewReader("y"), 1, nil), "delete": b.Delete(t.Context(), "v1/ro"), "sign": signErr} {
			if !errors.Is(err, objstore.ErrReadOnly) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("emulator", func(t *testing.T) {
		c := e.settings()
		c.AccountKey, c.Account, c.Auth = "", "", azure.AuthEmulator
		if err := newBucket(t, c).Open(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("sign for too long", func(t *testing.T) {
		b := newBucket(t, e.settings())
		for _, at := range []time.Time{time.Now().Add(-time.Minute), time.Now().Add(8 * 24 * time.Hour)} {
			if _, err := b.SignPut(t.Context(), "v1/y", 1, [32]byte{}, at); err == nil {
				t.Errorf("signed until %v", at)
			}
		}
	})
}

// immutable stands in front of the emulator, which has no immutability, and
// keeps blobs as the published contract says (Set Blob Immutability Policy, Set
// Blob Legal Hold). It is a model and proves nothing about Azure itself.
type immutable struct {
	next  http.RoundTripper
	until map[string]time.Time
	mode  map[string]string
	held  map[string]bool
	puts  []string // the headers with which blobs were created
}

func (m *immutable) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := func(status int, code string) (*http.Response, error) {
		return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, Body: io.NopCloser(strings.NewReader("")),
			Header: http.Header{"X-Ms-Error-Code": {code}, "X-Ms-Request-Id": {"r1"}}}, nil
	}
	header := func(name string) string { // the SDK writes names in lower case
		for k, v := range r.Header {
			if strings.EqualFold(k, name) {
				return v[0]
			}
		}
		return ""
	}
	path, q := r.URL.Path, r.URL.Query()
	switch {
	case q.Get("comp") == "immutabilityPolicies":
		until, err := http.ParseTime(header("x-ms-immutability-policy-until-date"))
		if err != nil {
			return answer(400, "InvalidHeaderValue")
		}
		if m.mode[path] == "locked" && (until.Before(m.until[path]) || !strings.EqualFold(header("x-ms-immutability-policy-mode"), "locked")) {
			return answer(409, "BlobImmutableDueToPolicy")
		}
		m.until[path], m.mode[path] = until, strings.ToLower(header("x-ms-immutability-policy-mode"))
		return answer(200, "")
	case q.Get("comp") == "legalhold":
		m.held[path] = header("x-ms-legal-hold") == "true"
		return answer(200, "")
	case r.Method == http.MethodDelete && m.until[path].After(time.Now()):
		return answer(409, "BlobImmutableDueToPolicy")
	case r.Method == http.MethodDelete && m.held[path]:
		return answer(409, "BlobImmutableDueToLegalHold")
	case r.Method == http.MethodPut && header("x-ms-immutability-policy-mode") != "":
		m.puts = append(m.puts, header("x-ms-immutability-policy-mode")+" "+header("x-ms-immutability-policy-until-date"))
	}
	resp, err := m.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if q.Get("restype") == "container" && q.Get("comp") == "" {
		resp.Header.Set("X-Ms-Immutable-Storage-With-Versioning-Enabled", "true")
	}
	if until, ok := m.until[path]; ok {
		resp.Header.Set("X-Ms-Immutability-Policy-Until-Date", until.UTC().Format(http.TimeFormat))
		resp.Header.Set("X-Ms-Immutability-Policy-Mode", m.mode[path])
	}
	if m.held[path] {
		resp.Header.Set("X-Ms-Legal-Hold", "true")
	}
	return resp, nil
}

func testRetention(t *testing.T, e *emulator) {
	m := &immutable{next: e.transport, until: map[string]time.Time{}, mode: map[string]string{}, held: map[string]bool{}}
	c := e.settings()
	c.RetainMode, c.Transport, c.Prefix = azure.Unlocked, m, "kept"
	b := newBucket(t, c)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, b, "v1/cut", "contents")
	at, until := "/"+account+"/replicas/kept/v1/cut", time.Now().Add(time.Hour)
	retain := func(b *azure.Bucket, d time.Duration, want time.Time, mode string) {
		t.Helper()
		if err := b.Retain(t.Context(), "v1/cut", until.Add(d)); err != nil {
			t.Errorf("retain: %v", err)
		}
		if got := m.until[at]; got.Before(want) || got.Sub(want) > time.Second || m.mode[at] != mode {
			t.Errorf("kept until %v, %s; wanted %v, %s", got, m.mode[at], want, mode)
		}
	}
	retain(b, 0, until, "unlocked")
	retain(b, -30*time.Minute, until, "unlocked") // only ever longer
	retain(b, time.Hour, until.Add(time.Hour), "unlocked")
	c.RetainMode = azure.Locked
	locked := newBucket(t, c)
	retain(locked, 0, until.Add(time.Hour), "locked")        // locked, and not shortened by it
	retain(b, 2*time.Hour, until.Add(2*time.Hour), "locked") // stays locked
	err := b.Delete(t.Context(), "v1/cut")
	if !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), until.Add(2*time.Hour).UTC().Format("2006-01-02T15:")) {
		t.Errorf("delete: %v", err)
	}
	c.RetainMode = ""
	if err := newBucket(t, c).Delete(t.Context(), "v1/cut"); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "keeps the object until") {
		t.Errorf("delete without the setting: %v", err)
	}
	if err := b.Retain(t.Context(), "v1/absent", until); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("retain what is absent: %v", err)
	}
	put(t, b, "v1/held", "contents")
	if err := b.Hold(t.Context(), "v1/held", true); err != nil {
		t.Error(err)
	}
	if err := b.Delete(t.Context(), "v1/held"); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "legal hold") {
		t.Errorf("delete: %v", err)
	}
	if err := errors.Join(b.Hold(t.Context(), "v1/held", false), b.Delete(t.Context(), "v1/held")); err != nil {
		t.Error(err)
	}
	c.RetainMode, c.RetainFor = azure.Locked, time.Hour
	timed := newBucket(t, c)
	put(t, timed, "v1/timed", "contents")
	if len(m.puts) != 1 || !strings.HasPrefix(strings.ToLower(m.puts[0]), "locked ") {
		t.Errorf("created with %q", m.puts)
	}
	if _, err := timed.SignPut(t.Context(), "v1/m/x", 1, [32]byte{}, time.Now().Add(time.Minute)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("sign: %v", err)
	}
}
