//go:build linux

package azure_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/azure/meter"
	"holdfast/internal/objstore/httpstore"
)

// TestOutage is about writers that go on while nobody is there who signs, and
// about what they can do with what they were given for that.
func TestOutage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
	e := startAzurite(t, false)
	t.Run("names signed ahead", func(t *testing.T) { testAhead(t, e) })
	t.Run("a prefix", func(t *testing.T) { testPrefix(t, e) })
	t.Run("a prefix is refused", func(t *testing.T) { testPrefixRefused(t, e) })
	t.Run("a container is deleted", func(t *testing.T) { testDeleted(t, e) })
	t.Run("stats", func(t *testing.T) { testStats(t, e) })
}

// testAhead commits cuts by URLs that were signed before their contents existed.
func testAhead(t *testing.T, e *emulator) {
	b := newBucket(t, e.settings())
	var names []string
	for n := range uint64(5) {
		names = append(names, cut.PartObject(machine, 1, n, 1, 0), cut.CutObject(machine, 1, n))
	}
	urls, err := b.SignAhead(t.Context(), names, time.Now().Add(12*time.Hour))
	if err != nil || len(urls) != len(names) {
		t.Fatalf("%d URLs, %v", len(urls), err)
	}
	up := httpstore.NewUploader(httpstore.UploaderConfig{Transport: e.transport})
	for i, name := range names[:4] {
		if q := query(t, urls[i].URL); q.Get("sp") != "c" || q.Get("sr") != "b" {
			t.Errorf("signed with %v", q)
		}
		data := bytes.Repeat([]byte(name), i*1000+1)
		for _, want := range []httpstore.Outcome{httpstore.Created, httpstore.MaybeExists} {
			if got, err := up.Put(t.Context(), urls[i].URL, urls[i].Headers, bytes.NewReader(data), int64(len(data))); err != nil || got != want {
				t.Errorf("%s: %v, %v; wanted %v", name, got, err, want)
			}
		}
		if got, err := objstore.ReadAll(t.Context(), b, name, 1<<20); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	// A URL is for its own name.
	other := strings.Replace(urls[5].URL, "part", "cut", 1)
	if other == urls[5].URL {
		other = strings.Replace(urls[5].URL, "cut", "part", 1)
	}
	if status := rawRequest(t, e.transport, http.MethodPut, other, urls[5].Headers, []byte("x"), nil); status != http.StatusForbidden {
		t.Errorf("another name: status %d", status)
	}
	for _, bad := range [][]string{{"v1/ok", "../x"}, {""}} {
		if urls, err := b.SignAhead(t.Context(), bad, time.Now().Add(time.Hour)); !errors.Is(err, objstore.ErrInvalidKey) || urls != nil {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := b.SignAhead(t.Context(), []string{"v1/x"}, time.Now().Add(8*24*time.Hour)); err == nil {
		t.Error("signed for eight days")
	}
}

// testPrefix is a holder of a signature for a prefix who wants more than that.
func testPrefix(t *testing.T, e *emulator) {
	e.NewContainer(t, "inbox")
	c := e.settings()
	c.Container, c.Prefix, c.Dedicated = "inbox", "", true
	b := newBucket(t, c)
	ctx, prefix := t.Context(), cut.GenPrefix(machine, 1)
	key := cut.CutObject(machine, 1, 7)
	put(t, b, cut.CutObject(machine, 1, 0), "history")
	put(t, newBucket(t, e.settings()), "v1/elsewhere", "another store")
	signed, err := b.SignPrefix(ctx, prefix, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("signed", "prefix", signed)
	if text := fmt.Sprintf("%v %+v %#v %s", signed, signed, signed, log.String()); strings.Contains(text, "sig=") || !strings.Contains(text, prefix) {
		t.Errorf("shown as %s", text)
	}
	for _, bad := range []string{"v1/m/other/1/cut/x", strings.TrimSuffix(prefix, "/"), prefix, prefix + "../x", ""} {
		if _, err := signed.Put(bad, 1); !errors.Is(err, objstore.ErrInvalidKey) {
			t.Errorf("put of %q: %v", bad, err)
		}
	}
	u, err := signed.Put(key, 4)
	if err != nil {
		t.Fatal(err)
	}
	if q := query(t, u.URL); q.Get("sp") != "c" || q.Get("sr") != "c" {
		t.Errorf("signed with %v", q)
	}
	up := httpstore.NewUploader(httpstore.UploaderConfig{Transport: e.transport})
	for _, want := range []httpstore.Outcome{httpstore.Created, httpstore.MaybeExists} {
		if got, err := up.Put(ctx, u.URL, u.Headers, strings.NewReader("data"), 4); err != nil || got != want {
			t.Fatalf("%v, %v; wanted %v", got, err, want)
		}
	}

	refused := func(what, method, url, body string, change func(http.Header)) {
		t.Helper()
		if status := rawRequest(t, e.transport, method, url, u.Headers, []byte(body), change); status/100 == 2 {
			t.Errorf("%s: status %d", what, status)
		}
	}
	at := func(key, params string) string { return signed.Base + key + "?" + params + signed.Query }
	whole := strings.TrimSuffix(signed.Base, "/")
	root := strings.TrimSuffix(whole, "inbox")
	history := cut.CutObject(machine, 1, 0)
	for _, k := range []string{key, history} {
		refused("read", http.MethodGet, at(k, ""), "", nil)
		refused("head", http.MethodHead, at(k, ""), "", nil)
		refused("delete", http.MethodDelete, at(k, ""), "", nil)
		refused("overwrite", http.MethodPut, at(k, ""), "other", nil)
		refused("overwrite without the condition", http.MethodPut, at(k, ""), "other", func(h http.Header) { h.Del("If-None-Match") })
		refused("overwrite by an append blob", http.MethodPut, at(k, ""), "", func(h http.Header) { h.Del("If-None-Match"); h.Set("X-Ms-Blob-Type", "AppendBlob") })
		refused("a block", http.MethodPut, at(k, "comp=block&blockid=AAAA&"), "x", nil)
		refused("a block list", http.MethodPut, at(k, "comp=blocklist&"), `<?xml version="1.0"?><BlockList></BlockList>`, nil)
		refused("metadata", http.MethodPut, at(k, "comp=metadata&"), "", func(h http.Header) { h.Set("X-Ms-Meta-A", "x") })
		refused("properties", http.MethodPut, at(k, "comp=properties&"), "", nil)
		refused("tier", http.MethodPut, at(k, "comp=tier&"), "", func(h http.Header) { h.Set("X-Ms-Access-Tier", "Archive") })
		refused("lease", http.MethodPut, at(k, "comp=lease&"), "", func(h http.Header) {
			h.Set("X-Ms-Lease-Action", "acquire")
			h.Set("X-Ms-Lease-Duration", "-1")
		})
		refused("retention", http.MethodPut, at(k, "comp=immutabilityPolicies&"), "", func(h http.Header) {
			h.Set("X-Ms-Immutability-Policy-Until-Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		})
		refused("legal hold", http.MethodPut, at(k, "comp=legalhold&"), "", func(h http.Header) { h.Set("X-Ms-Legal-Hold", "true") })
	}
	refused("list", http.MethodGet, whole+"?restype=container&comp=list&"+signed.Query, "", nil)
	refused("container properties", http.MethodGet, whole+"?restype=container&"+signed.Query, "", nil)
	refused("container metadata", http.MethodPut, whole+"?restype=container&comp=metadata&"+signed.Query, "", nil)
	refused("container policies", http.MethodPut, whole+"?restype=container&comp=acl&"+signed.Query, "", nil)
	refused("delete the container", http.MethodDelete, whole+"?restype=container&"+signed.Query, "", nil)
	refused("list containers", http.MethodGet, root+"?comp=list&"+signed.Query, "", nil)
	refused("another container", http.MethodPut, root+"replicas/"+key+"?"+signed.Query, "x", nil)
	refused("read another container", http.MethodGet, root+"replicas/Team_A/holdfast/v1/elsewhere?"+signed.Query, "", nil)
	refused("more rights", http.MethodGet, strings.Replace(at(key, ""), "sp=c", "sp=rc", 1), "", nil)
	refused("a longer life", http.MethodPut, strings.Replace(at(prefix+"cut/late", ""), "se=2", "se=3", 1), "x", nil)
	refused("as one of a blob", http.MethodPut, strings.Replace(at(prefix+"cut/late", ""), "sr=c", "sr=b", 1), "x", nil)

	// The service lets a blob be the source of a copy only to who may read it; the
	// emulator is not that strict. Either way the copy cannot be read.
	copied := at(prefix+"cut/copy", "")
	if status := rawRequest(t, e.transport, http.MethodPut, copied, nil, nil, func(h http.Header) { h.Set("X-Ms-Copy-Source", signed.Base+history) }); status/100 == 2 {
		t.Log("a copy was made by a signature for creating; the service refuses that")
	}
	refused("read a copy", http.MethodGet, copied, "", nil)

	for k, want := range map[string]string{key: "data", history: "history"} {
		if got, err := objstore.ReadAll(ctx, b, k, 100); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", k, got, err)
		}
	}
	// What the signature does allow, and why whoever takes the objects out looks at
	// their names: any name in the container. It does not go unnoticed.
	if status := rawRequest(t, e.transport, http.MethodPut, at("v1/m/another-machine/1/cut/x", ""), u.Headers, []byte("x"), nil); status != http.StatusCreated {
		t.Errorf("status %d", status)
	}
	if _, err := b.SignPrefix(ctx, prefix, time.Now().Add(time.Hour)); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "another-machine") {
		t.Errorf("with a foreign object: %v", err)
	}
}

func testPrefixRefused(t *testing.T, e *emulator) {
	prefix, until := cut.GenPrefix(machine, 1), time.Now().Add(time.Hour)
	if _, err := newBucket(t, e.settings()).SignPrefix(t.Context(), prefix, until); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a container of many: %v", err)
	}
	c := e.settings()
	c.Container, c.Prefix, c.Dedicated = "shared", "", true
	e.NewContainer(t, c.Container)
	b := newBucket(t, c)
	for _, bad := range []string{"", "/", "v1/m", "v1//", "V1/", "../"} {
		if _, err := b.SignPrefix(t.Context(), bad, until); !errors.Is(err, objstore.ErrInvalidKey) {
			t.Errorf("prefix %q: %v", bad, err)
		}
	}
	for _, at := range []time.Time{time.Now().Add(-time.Minute), time.Now().Add(8 * 24 * time.Hour)} {
		if _, err := b.SignPrefix(t.Context(), prefix, at); err == nil {
			t.Errorf("signed until %v", at)
		}
	}
	// A foreign object at any level of the prefix is found, and not only among the first.
	if _, err := b.SignPrefix(t.Context(), prefix, until); err != nil {
		t.Errorf("an empty container: %v", err)
	}
	for _, foreign := range []string{"a", "zz/y", "v1/vault.json", "v1/g/1.pt", "v1/m/zzzz/1/cut/1", "v1/m/" + string(machine) + "/zz/1", "probe2/x"} {
		put(t, b, foreign, "x")
		if _, err := b.SignPrefix(t.Context(), prefix, until); !errors.Is(err, objstore.ErrDenied) || !strings.Contains(err.Error(), "alone") {
			t.Errorf("with %s: %v", foreign, err)
		}
		if err := b.Delete(t.Context(), foreign); err != nil {
			t.Error(err)
		}
	}
	if _, err := azure.New(azure.Config{Container: "replicas", Account: account, Prefix: "p", Dedicated: true}); err == nil {
		t.Error("a dedicated container with a prefix was taken")
	}
}

// testDeleted deletes the container under way: nothing of it looks like an
// absence or a success.
func testDeleted(t *testing.T, e *emulator) {
	e.NewContainer(t, "doomed")
	c := e.settings()
	c.Container = "doomed"
	b := newBucket(t, c)
	put(t, b, "v1/here", "x")
	if err := e.DeleteContainer(t.Context(), "doomed"); err != nil {
		t.Fatal(err)
	}
	_, headErr := b.Head(t.Context(), "v1/here")
	_, getErr := objstore.ReadAll(t.Context(), b, "v1/here", 10)
	for what, err := range map[string]error{
		"head": headErr, "get": getErr, "delete": b.Delete(t.Context(), "v1/here"), "delete of what never was": b.Delete(t.Context(), "v1/never"),
		"put":  b.PutNew(t.Context(), "v1/new", strings.NewReader("x"), 1, nil),
		"list": b.List(t.Context(), "", func(objstore.Info) error { return nil }),
	} {
		if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) || what != "head" && objstore.CauseOf(err) != objstore.CauseContainer {
			t.Errorf("%s: %v (cause %q)", what, err, objstore.CauseOf(err))
		}
	}
}

// testStats compares the counters with what was done.
func testStats(t *testing.T, e *emulator) {
	c := e.settings()
	c.Prefix = "stats"
	var lost bool
	c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := e.transport.RoundTrip(r)
		if err == nil && !lost && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "v1/a") {
			lost = true
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			return nil, errors.New("the connection broke")
		}
		return resp, err
	})
	b := newBucket(t, c)
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	opened := b.Stats()
	if opened.Writes != 2 || opened.Others == 0 {
		t.Errorf("to open: %+v", opened)
	}
	put(t, b, "v1/a", "0123456789")
	if err := b.PutNew(t.Context(), "v1/a", strings.NewReader("0123456789"), 10, nil); !errors.Is(err, objstore.ErrExists) {
		t.Error(err)
	}
	if _, err := objstore.ReadAll(t.Context(), b, "v1/a", 100); err != nil {
		t.Error(err)
	}
	if _, err := b.Head(t.Context(), "v1/a"); err != nil {
		t.Error(err)
	}
	if err := b.List(t.Context(), "", func(objstore.Info) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := b.Delete(t.Context(), "v1/a"); err != nil {
		t.Error(err)
	}
	// Signing asks for nothing, and what others upload is not seen.
	u, err := b.SignPut(t.Context(), "v1/signed", 1, sha256.Sum256([]byte("x")), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if status := rawRequest(t, e.transport, http.MethodPut, u.URL, u.Headers, []byte("x"), nil); status != http.StatusCreated {
		t.Errorf("status %d", status)
	}
	got := b.Stats().Sub(opened)
	if !lost || got.BytesSent != 20 || got.BytesReceived < 10 {
		t.Errorf("%+v", got)
	}
	got.BytesSent, got.BytesReceived = 0, 0
	if want := (meter.Stats{Writes: 2, Lists: 1, Reads: 1, Others: 1, Deletes: 1, Unbilled: 1}); got != want {
		t.Errorf("%+v, wanted %+v", got, want)
	}
}
