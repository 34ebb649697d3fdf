// Package armtest makes a simulated cloud with an Azure recovery site in it, for
// the tests of package arm and of what works with its sessions.
package armtest

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/azsim"
	"holdfast/internal/hypervisor/azure/arm"
)

// ContainerName is the name of the container that World.Container makes.
const ContainerName = "replicas"

// World is a simulated cloud with a site in it: resource group "dr", network
// "prod" with the subnets "web" and "tiny" (three addresses), storage account
// "replicas1". Site and Options may be changed before Open.
type World struct {
	*azsim.Cloud
	Site    arm.Config
	Options arm.Options
	Key     string   // of the storage account
	Logged  *Capture // what sessions have logged
	dir     string
}

// Capture is a log that a test reads.
type Capture struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (c *Capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

// String is everything so far.
func (c *Capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// New starts a world, which ends with the test. At its end the log must hold no secret.
func New(t *testing.T) *World {
	t.Helper()
	dir := t.TempDir()
	w := &World{dir: dir, Logged: &Capture{}}
	w.Cloud = azsim.New(azsim.Config{Dir: dir})
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	w.AddGroup("dr")
	w.AddVNet("dr", "prod", "10.0.0.0/16", map[string]string{"web": "10.0.1.0/24", "tiny": "10.0.2.0/29"})
	w.Key = w.AddStorageAccount("dr", "replicas1")
	w.Site = arm.Config{Version: 1, Cloud: arm.CustomCloud, Authority: w.URL(), ResourceManager: w.URL(), StorageSuffix: w.URL() + "/storage/{account}",
		CAFile: w.File(t, "ca.pem", w.CA()), Tenant: azsim.DefaultTenant, Subscription: azsim.DefaultSubscription, ResourceGroup: "dr", Network: "prod", Subnet: "web",
		Credential:     arm.Credential{Kind: arm.CredentialSecret, ClientID: azsim.DefaultClientID, SecretFile: w.File(t, "secret", []byte(azsim.DefaultClientSecret+"\n"))},
		StorageAccount: "replicas1", Container: ContainerName, StorageKeyFile: w.File(t, "key", []byte(w.Key))}
	w.Options = arm.Options{Log: slog.New(slog.NewTextHandler(w.Logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		PollEvery: time.Millisecond, RetryDelay: time.Millisecond, Retries: 3, MaxRetryDelay: 5 * time.Second}
	t.Cleanup(func() {
		text := w.Logged.String()
		for _, secret := range []string{azsim.DefaultClientSecret, "eyJ", "sig=", "Bearer ", w.Key} {
			if strings.Contains(text, secret) {
				t.Errorf("the log has a secret (%s):\n%s", secret, text)
			}
		}
	})
	return w
}

func (w *World) File(t *testing.T, name string, content []byte) string {
	t.Helper()
	p := filepath.Join(w.dir, name)
	if err := os.WriteFile(p, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// Container makes the container of warm replicas.
func (w *World) Container(t *testing.T) {
	t.Helper()
	s := w.Open(t)
	c, err := s.Container()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func (w *World) Open(t *testing.T) *arm.Session {
	t.Helper()
	s, err := arm.Open(t.Context(), w.Site, w.Options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Client is an HTTP client that trusts the cloud and sends requests for a metadata
// service to it, too.
func (w *World) Client(t *testing.T) *http.Client {
	t.Helper()
	base := http.DefaultTransport.(*http.Transport).Clone()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.CA())
	base.TLSClientConfig.RootCAs = pool
	t.Cleanup(base.CloseIdleConnections)
	u, err := url.Parse(w.URL())
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: imds{base, u}}
}

type imds struct {
	http.RoundTripper
	to *url.URL
}

func (i imds) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() == "169.254.169.254" {
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = i.to.Scheme, i.to.Host
	}
	return i.RoundTripper.RoundTrip(r)
}
