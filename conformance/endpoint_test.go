package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	armrs "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/recoveryservices/armrecoveryservices"
	armsr "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/recoveryservices/armrecoveryservicessiterecovery/v2"
)

// endpoint says which vault the tests talk to.
type endpoint struct {
	URL            string `json:"url"`
	CAFile         string `json:"caFile"`
	TenantID       string `json:"tenantId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroup"`
	VaultName      string `json:"vaultName"`
}

var (
	target endpoint
	own    bool // the vault is the in-memory one that the tests started
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	stop, err := findVault()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 1
	}
	defer stop()
	return m.Run()
}

// findVault reads the endpoint or starts a vault.
func findVault() (stop func(), err error) {
	stop = func() {}
	file := os.Getenv("HOLDFAST_ENDPOINT_FILE")
	if file == "" && os.Getenv("HOLDFAST_URL") == "" {
		own = true
		if file, stop, err = startVault(); err != nil {
			return stop, err
		}
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return stop, err
		}
		if err := json.Unmarshal(b, &target); err != nil {
			return stop, fmt.Errorf("%s: %w", file, err)
		}
	}
	for name, to := range map[string]*string{"URL": &target.URL, "CA_FILE": &target.CAFile, "TENANT_ID": &target.TenantID, "CLIENT_ID": &target.ClientID, "CLIENT_SECRET": &target.ClientSecret,
		"SUBSCRIPTION_ID": &target.SubscriptionID, "RESOURCE_GROUP": &target.ResourceGroup, "VAULT_NAME": &target.VaultName} {
		if v := os.Getenv("HOLDFAST_" + name); v != "" {
			*to = v
		}
	}
	target.URL = strings.TrimRight(target.URL, "/")
	return stop, nil
}

// startVault builds and starts the in-memory vault; it ends when its input is closed.
func startVault() (file string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "holdfast-conformance-")
	if err != nil {
		return "", func() {}, err
	}
	stop = func() { _ = os.RemoveAll(dir) }
	bin := filepath.Join(dir, "serve")
	build := exec.Command("go", "build", "-o", bin, "./internal/armapi/armapitest/serve")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", stop, fmt.Errorf("build the in-memory vault: %w\n%s", err, out)
	}
	cmd := exec.Command(bin, "-dir", dir, "-step", "100ms", "-page-size", "2")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", stop, err
	}
	if err := cmd.Start(); err != nil {
		return "", stop, err
	}
	stop = func() { _ = stdin.Close(); _ = cmd.Wait(); _ = os.RemoveAll(dir) }
	file = filepath.Join(dir, "endpoint.json")
	for range 200 {
		if _, err := os.Stat(file); err == nil {
			return file, stop, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", stop, fmt.Errorf("the in-memory vault did not start")
}

// recorder is a pipeline policy that keeps the bodies of all GETs.
type recorder struct {
	mu     sync.Mutex
	bodies map[string][]byte // by path
}

func (r *recorder) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if err != nil || req.Raw().Method != http.MethodGet {
		return resp, err
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(b))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bodies == nil {
		r.bodies = map[string][]byte{}
	}
	r.bodies[req.Raw().URL.Path] = b
	return resp, err
}

func httpClient(t *testing.T) *http.Client {
	t.Helper()
	tr := http.DefaultTransport.(*http.Transport).Clone()
	if target.CAFile != "" {
		pem, err := os.ReadFile(target.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			t.Fatalf("%s holds no certificate", target.CAFile)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func cloudConfig() cloud.Configuration {
	return cloud.Configuration{ActiveDirectoryAuthorityHost: target.URL + "/", Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
		cloud.ResourceManager: {Endpoint: target.URL, Audience: target.URL}}}
}

func credential(t *testing.T, secret string) azcore.TokenCredential {
	t.Helper()
	cred, err := azidentity.NewClientSecretCredential(target.TenantID, target.ClientID, secret, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: azcore.ClientOptions{Cloud: cloudConfig(), Transport: httpClient(t)}, DisableInstanceDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// client is the SDK's client factories, and what they received.
type client struct {
	*armsr.ClientFactory
	vaults *armrs.ClientFactory
	seen   *recorder
}

func newClient(t *testing.T) client {
	t.Helper()
	rec := &recorder{}
	opts := &arm.ClientOptions{ClientOptions: azcore.ClientOptions{Cloud: cloudConfig(), Transport: httpClient(t), PerCallPolicies: []policy.Policy{rec},
		Retry: policy.RetryOptions{MaxRetries: 2, RetryDelay: 200 * time.Millisecond}}, DisableRPRegistration: true}
	cred := credential(t, target.ClientSecret)
	sr, err := armsr.NewClientFactory(target.SubscriptionID, cred, opts)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := armrs.NewClientFactory(target.SubscriptionID, cred, opts)
	if err != nil {
		t.Fatal(err)
	}
	return client{sr, rs, rec}
}

// done polls an operation to its end as users of the SDK do.
func done[T any](t *testing.T, what string) func(*runtime.Poller[T], error) T {
	t.Helper()
	return func(p *runtime.Poller[T], err error) T {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), stepTimeout())
		defer cancel()
		var out T
		if err == nil {
			out, err = p.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: time.Second})
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return out
	}
}

func stepTimeout() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("HOLDFAST_STORY_TIMEOUT")); err == nil {
		return d
	}
	return 10 * time.Minute
}

// all reads every page.
func all[T, E any](t *testing.T, pager *runtime.Pager[T], elements func(T) []*E) (out []*E, pages int) {
	t.Helper()
	for pager.More() {
		p, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pages++
		out = append(out, elements(p)...)
	}
	return out, pages
}

func val[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// unique is a name that no other run uses.
func unique(prefix string) string {
	return fmt.Sprintf("%s-%x", prefix, time.Now().UnixNano()&0xffffffff)
}
