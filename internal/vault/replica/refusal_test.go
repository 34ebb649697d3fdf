package replica_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/agentapi"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/retry"
	"holdfast/internal/sqldb"
	"holdfast/internal/upload"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

const (
	machine = dr.MachineID("00000000-0000-4000-8000-000000000001")
	agent   = dr.AgentID("agent-1")
	token   = "a-token-that-is-good"
)

// account is a simulated storage account with a container "replicas".
type account struct {
	store     *pagestore.Store
	key       string
	endpoint  string
	transport http.RoundTripper
	ahead     atomic.Int64 // how much the service's clock is ahead, ns
	barred    atomic.Bool  // tokens are refused
}

func newAccount(t *testing.T) *account {
	t.Helper()
	s := &account{}
	s.store = pagestore.New(pagestore.Config{Dir: t.TempDir(), Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) },
		Token: func(tok string) (oid, tid string, ok bool) {
			return "66666666-7777-8888-9999-000000000000", "11111111-2222-3333-4444-555555555555", tok == token && !s.barred.Load()
		}})
	server := httptest.NewTLSServer(s.store.Handler())
	s.transport = server.Client().Transport
	t.Cleanup(func() {
		server.Close()
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	s.key = s.store.AddAccount("contoso")
	s.endpoint = server.URL + "/contoso"
	if _, err := s.container(t).Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *account) container(t *testing.T) *container.Client {
	t.Helper()
	cred, err := azblob.NewSharedKeyCredential("contoso", s.key)
	if err != nil {
		t.Fatal(err)
	}
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: s.transport}
	cl, err := container.NewClientWithSharedKeyCredential(s.endpoint+"/replicas", cred, o)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func (s *account) settings(byToken bool) azure.Config {
	c := azure.Config{Container: "replicas", Account: "contoso", Endpoint: s.endpoint, AccountKey: s.key, Prefix: "holdfast", Transport: s.transport,
		Attempts: 2, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond}
	if byToken {
		c.AccountKey, c.Auth, c.Credential = "", azure.AuthEntra, staticToken{}
	}
	return c
}

type staticToken struct{}

func (staticToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func newBucket(t *testing.T, c azure.Config) *azure.Bucket {
	t.Helper()
	b, err := azure.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// rig is a vault's replicas of one protected item.
type rig struct {
	st   *state.State
	logs *logged
}

// logged is a log that tests read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T, m dr.MachineID, clock func() time.Time) *rig {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldb.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "vault.db")})
	if err != nil {
		t.Fatal(err)
	}
	if err := vaultdb.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{logs: &logged{}}
	r.st = &state.State{DB: db, Clock: clock, PollWait: time.Second, Log: slog.New(slog.NewTextHandler(r.logs, nil))}
	now := r.st.Now()
	if err := db.Tx(t.Context(), func(tx *sql.Tx) error {
		return errors.Join(
			vaultdb.InsertFabric(t.Context(), tx, dr.Fabric{ID: "f1", Name: "Primary", Type: dr.KVMSite, Created: now}),
			vaultdb.InsertPolicy(t.Context(), tx, dr.Policy{ID: "p1", Name: "Gold", CopyFrequency: 5 * time.Minute, Retention: 24 * time.Hour, Created: now}),
			vaultdb.InsertItem(t.Context(), tx, vaultdb.Item{ProtectedItem: dr.ProtectedItem{ID: "i1", Name: "db", VMName: "db", VM: "vm1", Fabric: "f1", Policy: "p1",
				Machine: m, Gen: 1, Protection: dr.Protected, SourceAgent: agent, Created: now}}),
			vaultdb.SaveGeneration(t.Context(), tx, vaultdb.Generation{Machine: m, Gen: 1, Agent: agent, Reason: "test", Created: now, Written: true}))
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) replicas(t *testing.T, b objstore.Bucket, change func(*replica.Config)) *replica.Replicas {
	t.Helper()
	c := replica.Config{State: r.st, Bucket: b}
	c.Signer, _ = b.(objstore.Signer)
	if change != nil {
		change(&c)
	}
	x := replica.New(c)
	t.Cleanup(x.Close)
	return x
}

// asAgent is the vault as the agent sees it.
type asAgent struct {
	replicas atomic.Pointer[replica.Replicas]
}

func (a *asAgent) Uploads(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	return a.replicas.Load().Uploads(ctx, agent, r)
}

func (a *asAgent) Head(ctx context.Context, r agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	return a.replicas.Load().Head(ctx, agent, r)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// uploader is an agent's, whose every request passes by way.
func uploader(t *testing.T, v upload.Vault, way roundTripper) *upload.Uploader {
	t.Helper()
	u, err := upload.New(upload.Config{Vault: v, Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: way}), Attempts: 2, BaseDelay: time.Millisecond, MaxDelay: 4 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

// TestStoreRefuses: whatever an account refuses an agent or the vault for, the
// agent is told what to mend, waits, and goes on as soon as it is mended; what it
// had to send is there then, and nothing was ever taken for absent.
func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	refuse := func(status int, code string) func(*testing.T, *account) func() {
		return func(t *testing.T, s *account) func() {
			f := s.store.Fault(pagestore.Fault{Method: http.MethodPut, Status: status, Code: code})
			return func() {
				if f.Fired() == 0 {
					t.Error("the fault did not fire")
				}
				f.Remove()
			}
		}
	}
	clock := func(d time.Duration) func(*testing.T, *account) func() {
		return func(_ *testing.T, s *account) func() {
			s.ahead.Store(int64(d))
			return func() { s.ahead.Store(0) }
		}
	}
	deleted := func(t *testing.T, s *account) func() {
		if _, err := s.container(t).Delete(t.Context(), nil); err != nil {
			t.Error(err)
		}
		return func() {
			s.ahead.Store(int64(10 * time.Minute)) // the deletion takes its time
			defer s.ahead.Store(0)
			if _, err := s.container(t).Create(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
	}
	firewall := func(t *testing.T, s *account) func() {
		if err := s.store.Configure("contoso", pagestore.AccountSettings{Firewall: true}); err != nil {
			t.Error(err)
		}
		return func() {
			if err := s.store.Configure("contoso", pagestore.AccountSettings{}); err != nil {
				t.Error(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		token bool
		fail  func(*testing.T, *account) (mend func())
		early bool // before the agent asks for a URL, not when it sends
		want  dr.Code
		text  string
	}{
		"container deleted under way":   {false, deleted, false, dr.CodeAzureContainer, "replicas"},
		"container deleted before":      {false, deleted, true, dr.CodeAzureContainer, "replicas"},
		"container deleted, by token":   {true, deleted, false, dr.CodeAzureContainer, "replicas"},
		"firewall":                      {false, firewall, false, dr.CodeAzureFirewall, "contoso"},
		"firewall before":               {true, firewall, true, dr.CodeAzureFirewall, "contoso"},
		"firewall for the agent only":   {false, refuse(http.StatusForbidden, "AuthorizationFailure"), false, dr.CodeAzureFirewall, "this host's network"},
		"clock of the vault":            {false, clock(40 * time.Minute), false, dr.CodeAzureClock, "behind"},
		"clock of the vault, by token":  {true, clock(40 * time.Minute), false, dr.CodeAzureClock, "past its end"},
		"signature refused":             {false, refuse(http.StatusForbidden, "AuthenticationFailed"), false, dr.CodeAzureSignature, "signed address"},
		"throttled":                     {false, refuse(http.StatusServiceUnavailable, "ServerBusy"), false, dr.CodeAzureThrottled, "too much"},
		"throttled by another status":   {false, refuse(http.StatusTooManyRequests, "TooManyRequests"), false, dr.CodeAzureThrottled, "too much"},
		"being deleted":                 {false, refuse(http.StatusConflict, "ContainerBeingDeleted"), false, dr.CodeAzureContainer, "container"},
		"the signer's role was removed": {false, refuse(http.StatusForbidden, "AuthorizationPermissionMismatch"), false, dr.CodeStoreUnreachable, "role"},
		"sign-in refused": {true, func(_ *testing.T, s *account) func() {
			s.barred.Store(true)
			return func() { s.barred.Store(false) }
		}, true, dr.CodeStoreUnreachable, "vault"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newAccount(t)
			b := newBucket(t, s.settings(tt.token))
			if err := b.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			v := &asAgent{}
			v.replicas.Store(newRig(t, machine, time.Now).replicas(t, b, nil))
			var mend func()
			var once sync.Once
			fail := func() { once.Do(func() { mend = tt.fail(t, s) }) }
			sink := uploader(t, v, func(r *http.Request) (*http.Response, error) {
				fail()
				return s.transport.RoundTrip(r)
			}).Sink(machine, 1)
			if tt.early {
				fail()
			}
			send := func() error {
				data := []byte("the sealed cut")
				return sink.Put(t.Context(), cut.CutObject(machine, 1, 7), bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
			}
			err := send()
			if dr.CodeOf(err) != tt.want || retry.Classify(err) != retry.Recoverable || dr.HintOf(err) == "" || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v (code %q, %s, hint %q)", err, dr.CodeOf(err), retry.Classify(err), dr.HintOf(err))
			}
			if errors.Is(err, objstore.ErrNotExist) || dr.KindOf(err) == dr.KindNotFound || err != nil && strings.Contains(err.Error(), "sig=") {
				t.Errorf("%v", err)
			}
			mend()
			if err := send(); err != nil {
				t.Errorf("after it was mended: %v", err)
			}
			if got, err := objstore.ReadAll(t.Context(), b, cut.CutObject(machine, 1, 7), 100); err != nil || string(got) != "the sealed cut" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestKeyRotated: the account's key is changed while an object is on its way.
// The vault says so, and goes on with the new key.
func TestKeyRotated(t *testing.T) {
	t.Parallel()
	s := newAccount(t)
	rig := newRig(t, machine, time.Now)
	v := &asAgent{}
	v.replicas.Store(rig.replicas(t, newBucket(t, s.settings(false)), nil))
	rotate := sync.OnceFunc(func() {
		var err error
		if s.key, err = s.store.RotateKey("contoso"); err != nil {
			t.Error(err)
		}
	})
	sink := uploader(t, v, func(r *http.Request) (*http.Response, error) {
		rotate()
		return s.transport.RoundTrip(r)
	}).Sink(machine, 1)
	data := []byte("the sealed cut")
	send := func() error {
		return sink.Put(t.Context(), cut.CutObject(machine, 1, 7), bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
	}
	if err := send(); dr.CodeOf(err) != dr.CodeAzureSignature || retry.Classify(err) != retry.Recoverable || !strings.Contains(err.Error(), "contoso") {
		t.Errorf("%v (code %q)", err, dr.CodeOf(err))
	}
	b := newBucket(t, s.settings(false)) // with the new key, as after a restart of the vault
	v.replicas.Store(rig.replicas(t, b, nil))
	if err := send(); err != nil {
		t.Error(err)
	}
	if got, err := objstore.ReadAll(t.Context(), b, cut.CutObject(machine, 1, 7), 100); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%q, %v", got, err)
	}
}
