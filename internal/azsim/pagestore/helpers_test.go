package pagestore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"go.uber.org/goleak"

	"holdfast/internal/azsim/pagestore"
)

const mib = int64(1) << 20

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is the service's clock; tests may move it.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// world is a store with one account that Microsoft's clients talk to over TLS.
type world struct {
	t     *testing.T
	ctx   context.Context
	s     *pagestore.Store
	clock *clock
	url   string
	http  *http.Client
	key   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), clock: &clock{}}
	w.s = pagestore.New(pagestore.Config{Dir: t.TempDir(), Now: w.clock.now, Base: func() string { return w.url },
		Token: func(token string) (string, string, bool) { return "oid-1", "tid-1", token == "good-token" }})
	srv := httptest.NewTLSServer(w.s.Handler())
	w.url, w.http = srv.URL, srv.Client()
	w.key = w.s.AddAccount("acct")
	t.Cleanup(func() {
		w.http.CloseIdleConnections()
		srv.Close()
		if err := w.s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := w.s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	return w
}

func (w *world) options() policy.ClientOptions {
	return policy.ClientOptions{Transport: w.http, Retry: policy.RetryOptions{MaxRetries: -1}}
}

func (w *world) credential() *service.SharedKeyCredential {
	w.t.Helper()
	cred, err := service.NewSharedKeyCredential("acct", w.key)
	w.must(err)
	return cred
}

func (w *world) service() *service.Client {
	w.t.Helper()
	cl, err := service.NewClientWithSharedKeyCredential(w.url+"/storage/acct", w.credential(), &service.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	return cl
}

// box makes a container.
func (w *world) box(name string) *container.Client {
	w.t.Helper()
	cl := w.service().NewContainerClient(name)
	_, err := cl.Create(w.ctx, nil)
	w.must(err)
	return cl
}

// page makes a page blob.
func (w *world) page(box *container.Client, name string, size int64) *pageblob.Client {
	w.t.Helper()
	cl := box.NewPageBlobClient(name)
	_, err := cl.Create(w.ctx, size, nil)
	w.must(err)
	return cl
}

// disk opens a managed disk by a signed address.
func (w *world) disk(name string, write bool) *pageblob.Client {
	w.t.Helper()
	return w.open(w.address(name, write))
}

func (w *world) address(name string, write bool) string {
	w.t.Helper()
	q, err := w.s.Grant(name, write, w.clock.now().Add(time.Hour))
	w.must(err)
	return w.url + "/md/" + name + "/abcd?" + q
}

func (w *world) open(url string) *pageblob.Client {
	w.t.Helper()
	cl, err := pageblob.NewClientWithNoCredential(url, &pageblob.ClientOptions{ClientOptions: w.options()})
	w.must(err)
	return cl
}

// sas signs a service SAS of a container or blob.
func (w *world) sas(box, name, perms string, life time.Duration) string {
	w.t.Helper()
	v := sas.BlobSignatureValues{ContainerName: box, BlobName: name, Permissions: perms, ExpiryTime: w.clock.now().Add(life).UTC()}
	q, err := v.SignWithSharedKey(w.credential())
	w.must(err)
	path := w.url + "/storage/acct/" + box
	if name != "" {
		path += "/" + name
	}
	return path + "?" + q.Encode()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// refused checks that a call was refused with a status and code.
func (w *world) refused(err error, status int, code string) {
	w.t.Helper()
	var re *azcore.ResponseError
	if !errors.As(err, &re) {
		w.t.Fatalf("got %v, want %d %s", err, status, code)
	}
	if re.StatusCode != status || re.ErrorCode != code {
		w.t.Fatalf("got %d %s, want %d %s", re.StatusCode, re.ErrorCode, status, code)
	}
}

func body(p []byte) io.ReadSeekCloser { return streaming.NopCloser(bytes.NewReader(p)) }

func (w *world) put(cl *pageblob.Client, off int64, p []byte) {
	w.t.Helper()
	_, err := cl.UploadPages(w.ctx, body(p), blob.HTTPRange{Offset: off, Count: int64(len(p))}, nil)
	w.must(err)
}

type downloader interface {
	DownloadStream(context.Context, *blob.DownloadStreamOptions) (blob.DownloadStreamResponse, error)
}

func (w *world) get(cl downloader, off, n int64) []byte {
	w.t.Helper()
	out, err := cl.DownloadStream(w.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: n}})
	w.must(err)
	p, err := io.ReadAll(out.Body)
	w.must(errors.Join(err, out.Body.Close()))
	return p
}

// noise is n random bytes, none of them zero.
func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + r.IntN(255))
	}
	return p
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

func ptr[T any](v T) *T { return &v }

// rewrite sends requests for names of Azure to the simulator.
type rewrite struct{ w *world }

func (r rewrite) Do(req *http.Request) (*http.Response, error) {
	u, err := url.Parse(r.w.url)
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Host = req.URL.Host
	req.URL.Host = u.Host
	return r.w.http.Do(req)
}

func permissions(letters string) sas.BlobPermissions {
	return sas.BlobPermissions{Read: strings.Contains(letters, "r"), Write: strings.Contains(letters, "w"), Create: strings.Contains(letters, "c"), Delete: strings.Contains(letters, "d")}
}
