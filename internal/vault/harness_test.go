package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/agentgate"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

func TestMain(m *testing.M) { sqldbtest.Main(m) }

const vmUUID = "11111111-2222-3333-4444-555555555555"

// world is a vault with its store and HTTPS server, which can be stopped and
// started again between any two steps, and the agents around it.
type world struct {
	t      *testing.T
	dbURL  string
	bucket *mem.Bucket
	faults *faulty
	key    cut.VaultPrivateKey
	signer *httpstore.Signer
	srv    *httptest.Server
	clock  *clock

	mu      sync.Mutex
	v       *vault.Vault
	db      *sqldb.DB
	handler http.Handler
	boot    vault.Bootstrap
	log     *slog.Logger
}

// faulty is a bucket that can be down for the vault.
type faulty struct {
	*mem.Bucket
	down atomic.Bool
	hits atomic.Int64
}

func (f *faulty) fail(op, key string) error {
	if !f.down.Load() {
		return nil
	}
	f.hits.Add(1)
	return &objstore.Error{Op: op, Key: key, Kind: objstore.ErrUnavailable}
}

func (f *faulty) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	if err := f.fail("put", key); err != nil {
		return err
	}
	return f.Bucket.PutNew(ctx, key, r, size, sum)
}

// clock is real time plus an offset that a test moves.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

var sharedKey = sync.OnceValues(cut.GenerateVaultKey)

// each runs f on both engines.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	for name, url := range map[string]func(testing.TB) string{"sqlite": sqldbtest.SQLiteURL, "postgres": sqldbtest.PostgresURL} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "sqlite" {
				t.Skip("the quick run is on SQLite; the full one is on both")
			}
			t.Parallel()
			f(t, newWorld(t, url(t)))
		})
	}
}

func newWorld(t *testing.T, dbURL string) *world {
	key, err := sharedKey()
	if err != nil {
		t.Fatal(err)
	}
	bucket := mem.New()
	w := &world{t: t, dbURL: dbURL, bucket: bucket, faults: &faulty{Bucket: bucket}, key: key, clock: &clock{}, log: slog.New(slog.DiscardHandler)}
	if os.Getenv("HOLDFAST_TEST_LOG") != "" {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	w.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		h := w.handler
		w.mu.Unlock()
		if h == nil {
			http.Error(rw, "the vault is down", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(rw, r)
	}))
	w.srv.EnableHTTP2 = false
	w.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	url := "https://" + w.srv.Listener.Addr().String()
	if w.signer, err = httpstore.NewSigner(httpstore.SignerConfig{BaseURL: url, Key: bytes.Repeat([]byte{7}, 32), Now: w.clock.now}); err != nil {
		t.Fatal(err)
	}
	w.start(url)
	conf, err := w.v.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	// httptest would put its own certificate in for clients that send no name.
	cert, err := conf.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{*cert}
	w.srv.TLS = conf
	w.srv.StartTLS()
	t.Cleanup(func() {
		w.stop()
		w.srv.CloseClientConnections()
		w.srv.Close()
	})
	return w
}

func (w *world) url() string { return "https://" + w.srv.Listener.Addr().String() }

func (w *world) start(url string) {
	w.t.Helper()
	db, err := sqldb.Open(w.t.Context(), sqldb.Config{URL: w.dbURL})
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := vault.New(w.config(db, w.faults, url))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := v.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if b, ok := v.TakeBootstrap(); ok {
		w.boot = b
	}
	gate, err := agentgate.New(agentgate.Config{Vault: v, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	objects, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: w.bucket, Signer: w.signer})
	if err != nil {
		w.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/agent/v1/", gate)
	mux.Handle("/store/v1/", objects)
	w.mu.Lock()
	w.v, w.db, w.handler = v, db, mux
	w.mu.Unlock()
}

func (w *world) config(db *sqldb.DB, b objstore.Bucket, url string) vault.Config {
	return vault.Config{DB: db, Bucket: b, Signer: w.signer, Tickets: w.signer, VaultKey: w.key, PublicURL: url, Clock: w.clock.now,
		Identity:    vault.Identity{Name: "vault1", SubscriptionID: "5ab7cd1e-0000-4000-8000-000000000001", ResourceGroup: "rg", TenantID: "t", Location: "local"},
		HealthEvery: 50 * time.Millisecond, ReconcileEvery: 200 * time.Millisecond, VerifyTimeout: 5 * time.Second, ShutdownWait: 5 * time.Second,
		DrainWait: 3 * time.Second, PollWait: 2 * time.Second, Log: w.log, UpkeepEvery: 200 * time.Millisecond, ScrubRate: -1,
		Engine: job.Config{Owner: "vault", Poll: 200 * time.Millisecond, CancelBound: 3 * time.Second,
			Retry: job.Retry{Base: 30 * time.Millisecond, Cap: 200 * time.Millisecond}}}
}

// tryStart starts a vault over another bucket, and says why it does not.
func (w *world) tryStart(b objstore.Bucket) error {
	db, err := sqldb.Open(w.t.Context(), sqldb.Config{URL: w.dbURL})
	if err != nil {
		return err
	}
	defer db.Close()
	v, err := vault.New(w.config(db, b, w.url()))
	if err != nil {
		return err
	}
	defer v.Close()
	return v.Start(w.t.Context())
}

// stop ends the vault as a shutdown does; idempotent.
func (w *world) stop() {
	w.t.Helper()
	w.mu.Lock()
	v, db := w.v, w.db
	w.v, w.db, w.handler = nil, nil, nil
	w.mu.Unlock()
	if v == nil {
		return
	}
	if err := errors.Join(v.Close(), v.Close(), db.Close()); err != nil {
		w.t.Errorf("close the vault: %v", err)
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start(w.url())
}

func (w *world) vault() *vault.Vault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.v
}

// must unwraps a result and fails the test on an error.
func must[T any](t *testing.T) func(x T, err error) T {
	return func(x T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%v (code %s, hint %s)", err, dr.CodeOf(err), dr.HintOf(err))
		}
		return x
	}
}

func ok[T any](t *testing.T, x T, err error) T {
	t.Helper()
	return must[T](t)(x, err)
}

// wantCode checks an error's code.
func wantCode(t *testing.T, err error, kind dr.Kind, code dr.Code) {
	t.Helper()
	if dr.KindOf(err) != kind || dr.CodeOf(err) != code || err == nil {
		t.Fatalf("error %v (kind %v, code %q), want kind %v, code %q", err, dr.KindOf(err), dr.CodeOf(err), kind, code)
	}
}

// wait waits for a job's end.
func (w *world) wait(id dr.JobID) dr.Job {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		v := w.vault()
		if v != nil {
			j, err := v.Job(w.t.Context(), id)
			if err != nil {
				w.t.Fatal(err)
			}
			if j.State.Final() {
				return j
			}
			if time.Now().After(deadline) {
				w.t.Fatalf("job %s (%s) does not end: %+v", id, j.Scenario, j.Tasks)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// run waits for a job and expects its state.
func (w *world) run(id dr.JobID, err error) dr.Job { return w.expect(dr.JobSucceeded, id, err) }

func (w *world) expect(state dr.JobState, id dr.JobID, err error) dr.Job {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v (code %s)", err, dr.CodeOf(err))
	}
	j := w.wait(id)
	if j.State != state {
		w.t.Fatalf("%s: %s, want %s; errors %+v", j.Scenario, j.State, state, j.Errors)
	}
	return j
}

// until waits for a condition.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			jobs, _ := w.vault().Jobs(w.t.Context(), vault.JobFilter{})
			for _, j := range jobs {
				full, _ := w.vault().Job(w.t.Context(), j.ID)
				w.t.Logf("%s %s %s tasks %+v errors %+v", j.Scenario, j.Item, j.State, full.Tasks, full.Errors)
			}
			w.t.Fatalf("not reached: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// agent simulates a host: it polls over HTTPS, keeps a journal of commands, and
// replicates what it is assigned.
type agent struct {
	t      *testing.T
	w      *world
	id     string
	host   string
	roles  []string
	client *http.Client
	key    *ecdsa.PrivateKey

	mu       sync.Mutex
	vms      map[string]*agentapi.VM
	networks []agentapi.Network
	sizes    []agentapi.ComputeSize
	booted   agentapi.BootPayload // what it was told last, see site.boots
	journal  map[string]agentapi.ReportRequest
	counts   map[string]int                                                 // commands executed by kind
	hooks    map[agentapi.CommandKind]func(c agentapi.Command) (any, error) // instead of the usual
	assigned map[string]agentapi.Assignment                                 // by machine
	chains   map[string]*chain                                              // by machine
	served   map[string]string                                              // serving → VM
	opened   map[string]agentapi.OpenPointResponse                          // serving → what it took
	shape    func(*cut.Commit)                                              // changes what the next cuts say of themselves
	stopLoop context.CancelFunc
	done     chan struct{}
}

type chain struct {
	epoch cut.EpochKey
	gen   uint32
	prev  cut.Ref
	n     uint64
	begun bool
}

func (w *world) newAgent(host string, key vault.RegistrationKey, roles ...string) *agent {
	w.t.Helper()
	a := &agent{t: w.t, w: w, host: host, roles: roles, vms: map[string]*agentapi.VM{}, journal: map[string]agentapi.ReportRequest{}, counts: map[string]int{},
		hooks: map[agentapi.CommandKind]func(agentapi.Command) (any, error){}, assigned: map[string]agentapi.Assignment{}, chains: map[string]*chain{},
		served: map[string]string{}, opened: map[string]agentapi.OpenPointResponse{}}
	resp, err := a.enroll(key)
	if err != nil {
		w.t.Fatal(err)
	}
	a.id = resp.AgentID
	return a
}

func (a *agent) csr() string {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.key = key
	return a.csrOf(key)
}

func (a *agent) csrOf(key *ecdsa.PrivateKey) string {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (a *agent) enroll(key vault.RegistrationKey) (agentapi.EnrollResponse, error) {
	return a.enrollWith(agentapi.EnrollRequest{KeyID: key.ID, Secret: key.Secret, CSR: a.csr(), Host: a.host, MachineID: "machine-" + a.host,
		Roles: a.roles, Version: "test", Hypervisor: "sim"}, key.CAPin)
}

func (a *agent) enrollWith(r agentapi.EnrollRequest, pin string) (agentapi.EnrollResponse, error) {
	var resp agentapi.EnrollResponse
	// The first call knows the vault by the pin of its authority only.
	pinned := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		last := cs.PeerCertificates[len(cs.PeerCertificates)-1]
		sum := sha256.Sum256(last.RawSubjectPublicKeyInfo)
		if hex.EncodeToString(sum[:]) != pin {
			return errors.New("another authority")
		}
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool(last)})
		return err
	}}
	first := &http.Client{Transport: &http.Transport{TLSClientConfig: pinned, DisableKeepAlives: true}}
	if err := post(first, a.w.url()+agentapi.PathEnroll, r, &resp); err != nil {
		return resp, err
	}
	a.useCert(resp)
	return resp, nil
}

func pool(c *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c)
	return p
}

func (a *agent) useCert(resp agentapi.EnrollResponse) {
	block, _ := pem.Decode([]byte(resp.Certificate))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(resp.CA))
	a.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: a.key}}}}}
	a.t.Cleanup(a.client.CloseIdleConnections)
}

// withCert is the agent with the certificate that it has now.
func (a *agent) withCert() *agent {
	return &agent{t: a.t, w: a.w, id: a.id, host: a.host, roles: a.roles, client: a.client, key: a.key}
}

// post sends JSON and decodes the answer or the error.
func post(c *http.Client, url string, in, out any) error {
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set(agentapi.ProtocolHeader, fmt.Sprint(agentapi.Protocol))
	return send(c, req, out)
}

func send(c *http.Client, req *http.Request, out any) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		var e agentapi.ErrorBody
		if err := json.Unmarshal(body, &e); err != nil {
			return fmt.Errorf("status %d: %s", resp.StatusCode, body)
		}
		kind, _ := dr.ParseKind(e.Error.Kind)
		return dr.New(kind, dr.Code(e.Error.Code), "http", "%s", e.Error.Message)
	}
	if out == nil || len(body) == 0 {
		return nil
	}
	return json.Unmarshal(body, out)
}

func (a *agent) post(path string, in, out any) error { return post(a.client, a.w.url()+path, in, out) }

func (a *agent) addVM(vm agentapi.VM) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.vms[vm.ID] = &vm
}

func (a *agent) sendInventory() error {
	a.mu.Lock()
	r := agentapi.InventoryRequest{Host: a.host, Hypervisor: "sim 1.0", Networks: slices.Clone(a.networks), Sizes: slices.Clone(a.sizes)}
	for _, vm := range a.vms {
		r.VMs = append(r.VMs, *vm)
	}
	a.mu.Unlock()
	return a.post(agentapi.PathInventory, r, nil)
}

// loop is the agent's life until the test ends or halt is called.
func (a *agent) loop() {
	ctx, cancel := context.WithCancel(a.t.Context())
	a.stopLoop, a.done = cancel, make(chan struct{})
	a.t.Cleanup(a.halt)
	go func() {
		defer close(a.done)
		version := ""
		for ctx.Err() == nil {
			a.replicate(ctx)
			var resp agentapi.PollResponse
			text, _ := json.Marshal(agentapi.PollRequest{Assignments: version, WaitSeconds: 1})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, a.w.url()+agentapi.PathPoll, bytes.NewReader(text))
			if err := send(a.client, req, &resp); err != nil {
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
				continue
			}
			if resp.AssignmentsVersion != version {
				version = resp.AssignmentsVersion
				a.mu.Lock()
				a.assigned = map[string]agentapi.Assignment{}
				for _, x := range resp.Assignments {
					a.assigned[x.Machine] = x
				}
				a.mu.Unlock()
			}
			a.replicate(ctx)
			if resp.WantInventory {
				_ = a.sendInventory()
			}
			for _, c := range resp.Commands {
				a.execute(c)
			}
			for _, id := range resp.Cancels {
				_ = a.post(agentapi.PathReport, agentapi.ReportRequest{ID: id, State: "cancelled"}, nil)
			}
		}
	}()
}

func (a *agent) halt() {
	if a.stopLoop != nil {
		a.stopLoop()
		<-a.done
	}
}

// execute does a command once and reports it, from the journal when it comes again.
func (a *agent) execute(c agentapi.Command) {
	a.mu.Lock()
	rep, known := a.journal[c.ID]
	hook := a.hooks[c.Kind]
	a.mu.Unlock()
	if !known {
		var res any
		var err error
		if hook != nil {
			res, err = hook(c)
		} else {
			res, err = a.do(c)
		}
		rep = agentapi.ReportRequest{ID: c.ID, State: "done"}
		if err == errLater {
			return // neither done nor reported: it comes again
		}
		if err != nil {
			rep.State, rep.Error = "failed", &agentapi.Error{Kind: dr.KindOf(err).String(), Code: string(dr.CodeOf(err)), Message: err.Error()}
		} else if res != nil {
			rep.Result, _ = json.Marshal(res)
		}
		a.mu.Lock()
		a.journal[c.ID] = rep
		a.counts[string(c.Kind)]++
		a.mu.Unlock()
	}
	_ = a.post(agentapi.PathReport, agentapi.ReportRequest{ID: c.ID, State: "running", Percent: 50}, nil)
	_ = a.post(agentapi.PathReport, rep, nil)
	_ = a.post(agentapi.PathReport, rep, nil) // twice is once
}

var errLater = errors.New("later")

func (a *agent) hook(kind agentapi.CommandKind, f func(c agentapi.Command) (any, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f == nil {
		delete(a.hooks, kind)
		return
	}
	a.hooks[kind] = f
}

func (a *agent) count(kind agentapi.CommandKind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts[string(kind)]
}

func (a *agent) do(c agentapi.Command) (any, error) {
	switch c.Kind {
	case agentapi.CmdCheckPrerequisites:
		return agentapi.PrerequisitesResult{}, nil
	case agentapi.CmdStartReplication, agentapi.CmdStopReplication, agentapi.CmdMakeLocal:
		return nil, nil
	case agentapi.CmdAwaitInitial, agentapi.CmdDrain:
		var p agentapi.MachinePayload
		if err := json.Unmarshal(c.Payload, &p); err != nil {
			return nil, err
		}
		if c.Kind == agentapi.CmdDrain {
			return a.cut(p.Machine, dr.CrashConsistent)
		}
		a.mu.Lock()
		ch := a.chains[p.Machine]
		a.mu.Unlock()
		if ch == nil || !ch.begun {
			return nil, errLater
		}
		return agentapi.PointResult{Generation: uint32(ch.prev.Gen), N: ch.prev.N, Hash: ch.prev.Hash.String()}, nil
	case agentapi.CmdShutdownVM, agentapi.CmdStartVM:
		var p agentapi.VMPayload
		if err := json.Unmarshal(c.Payload, &p); err != nil {
			return nil, err
		}
		a.mu.Lock()
		if vm := a.vms[p.VM]; vm != nil {
			vm.Running = c.Kind == agentapi.CmdStartVM
		}
		a.mu.Unlock()
		return nil, a.sendInventory()
	case agentapi.CmdBootPoint:
		return a.bootPoint(c)
	case agentapi.CmdVerifyBoot:
		return agentapi.VerifyResult{OK: true, Seconds: 1.5, Matched: "login:", Console: "boot\nlogin:", Screenshot: []byte("\x89PNG")}, nil
	case agentapi.CmdRemoveVM:
		var p agentapi.RemovePayload
		if err := json.Unmarshal(c.Payload, &p); err != nil {
			return nil, err
		}
		a.mu.Lock()
		delete(a.vms, a.served[p.Serving])
		delete(a.served, p.Serving)
		a.mu.Unlock()
		return nil, a.sendInventory()
	case agentapi.CmdRefreshInventory:
		return nil, a.sendInventory()
	}
	return nil, dr.Errorf(dr.KindUnsupported, "sim", "no command %s", c.Kind)
}

func (a *agent) bootPoint(c agentapi.Command) (any, error) {
	var p agentapi.BootPayload
	if err := json.Unmarshal(c.Payload, &p); err != nil {
		return nil, err
	}
	var open agentapi.OpenPointResponse
	if err := a.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: p.Serving}, &open); err != nil {
		return nil, err
	}
	if open.Machine != p.Machine || open.N != p.N || len(open.Keys) == 0 || open.Ticket == "" {
		return nil, fmt.Errorf("opened %s/%d, want %s/%d", open.Machine, open.N, p.Machine, p.N)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	vm := a.served[p.Serving]
	if vm == "" {
		vm = vmUUID
		if !p.KeepUUID {
			vm = "aaaaaaaa-" + p.Serving[9:]
		}
	}
	a.served[p.Serving], a.opened[p.Serving] = vm, open
	a.vms[vm] = &agentapi.VM{ID: vm, Name: p.VMName, Running: true}
	return agentapi.BootResult{VM: vm, PrepareSecs: 0.1, StartSecs: 0.2}, nil
}

// running lists the VMs of this host that run, by name.
func (a *agent) running() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, vm := range a.vms {
		if vm.Running {
			out = append(out, vm.Name)
		}
	}
	slices.Sort(out)
	return out
}

// replicate makes the first cut of every new assignment and generation.
func (a *agent) replicate(context.Context) {
	a.mu.Lock()
	var todo []agentapi.Assignment
	for _, x := range a.assigned {
		if ch := a.chains[x.Machine]; ch == nil || ch.gen != x.Generation || !ch.begun {
			todo = append(todo, x)
		}
	}
	a.mu.Unlock()
	for _, x := range todo {
		_, _ = a.cut(x.Machine, dr.CrashConsistent)
	}
}

// cut commits one more cut of a machine in its assigned generation.
func (a *agent) cut(machine string, c dr.Consistency) (agentapi.PointResult, error) {
	res, err := a.writeCut(machine, c)
	if err != nil {
		return res, err
	}
	return res, a.post(agentapi.PathCommits, agentapi.CommitRequest{Machine: machine, Generation: res.Generation, N: res.N}, nil)
}

// writeCut puts a cut into the store without announcing it.
func (a *agent) writeCut(machine string, c dr.Consistency) (res agentapi.PointResult, err error) {
	a.mu.Lock()
	x, okay := a.assigned[machine]
	ch := a.chains[machine]
	if okay && (ch == nil || ch.gen != x.Generation) {
		fresh := &chain{epoch: cut.NewEpochKey(), gen: x.Generation}
		if x.Base != nil {
			fresh.prev = cut.Ref{Gen: dr.Generation(x.Base.Generation), N: x.Base.N}
			_ = fresh.prev.Hash.UnmarshalText([]byte(x.Base.Hash))
			fresh.n = x.Base.N + 1
		}
		a.chains[machine] = fresh
		ch = fresh
	}
	a.mu.Unlock()
	if ch == nil {
		return res, dr.Errorf(dr.KindPrecondition, "sim", "machine %s is not assigned", machine)
	}
	m := dr.MachineID(machine)
	epoch := ch.gen << 12
	if !ch.begun {
		pub, err := cut.ParseVaultPublicKey(x.VaultPublicKey)
		if err != nil {
			return res, err
		}
		wrap, err := cut.SealEpochKey(pub, m, epoch, ch.epoch)
		if err != nil {
			return res, err
		}
		if err := a.put(machine, ch.gen, cut.KeyObject(m, epoch), wrap); err != nil {
			return res, err
		}
	}
	var buf bytes.Buffer
	wr, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: m, Gen: dr.Generation(ch.gen), N: ch.n, KeyEpoch: epoch}, Key: ch.epoch})
	if err != nil {
		return res, err
	}
	block := make([]byte, cut.Unit)
	rand.Read(block)
	if err := wr.Data(context.Background(), 0, 0, block); err != nil {
		return res, err
	}
	now := a.w.clock.now().UTC().Truncate(time.Microsecond)
	commit := &cut.Commit{Gen: dr.Generation(ch.gen), N: ch.n, Prev: ch.prev, Time: now, Consistency: c, Base: ch.prev.IsZero(),
		Disks: []cut.Disk{{Index: 0, ID: "vda", Size: 1 << 30}}, VM: cut.VMRecord{Name: "web1", UUID: vmUUID}}
	a.mu.Lock()
	if a.shape != nil {
		a.shape(commit)
	}
	a.mu.Unlock()
	sealed, err := wr.Close(commit)
	if err != nil {
		return res, err
	}
	if err := a.put(machine, ch.gen, cut.CutObject(m, dr.Generation(ch.gen), ch.n), buf.Bytes()); err != nil {
		return res, err
	}
	ch.prev = cut.Ref{Gen: dr.Generation(ch.gen), N: ch.n, Hash: sealed.ChainHash}
	res = agentapi.PointResult{Generation: ch.gen, N: ch.n, Hash: sealed.ChainHash.String(), Time: now}
	ch.n++
	a.mu.Lock() // replicate looks at it
	ch.begun = true
	a.mu.Unlock()
	return res, nil
}

// signedPut is an upload that was authorised and not yet made.
type signedPut struct{ put func() error }

// writeCutSigned makes the next cut and gets its URL, without sending it.
func (a *agent) writeCutSigned(machine string) (signedPut, error) {
	var out signedPut
	a.mu.Lock()
	ch := *a.chains[machine]
	a.mu.Unlock()
	m := dr.MachineID(machine)
	var buf bytes.Buffer
	wr, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: m, Gen: dr.Generation(ch.gen), N: ch.n, KeyEpoch: ch.gen << 12}, Key: ch.epoch})
	if err != nil {
		return out, err
	}
	_, err = wr.Close(&cut.Commit{Gen: dr.Generation(ch.gen), N: ch.n, Prev: ch.prev, Time: a.w.clock.now(), Consistency: dr.CrashConsistent,
		Disks: []cut.Disk{{Index: 0, ID: "vda", Size: 1 << 30}}, VM: cut.VMRecord{Name: "web1", UUID: vmUUID}})
	if err != nil {
		return out, err
	}
	put, err := a.sign(machine, ch.gen, cut.CutObject(m, dr.Generation(ch.gen), ch.n), buf.Bytes())
	return signedPut{put}, err
}

func (w *world) healthOf(id dr.ItemID) dr.Health {
	it, err := w.vault().ItemByID(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return it.Health
}

type eventRow = vaultdb.Event

func events(w *world, id dr.ItemID) ([]eventRow, error) {
	return w.vault().Events(w.t.Context(), id, 1000)
}

// put uploads an object by a signed URL.
func (a *agent) put(machine string, gen uint32, name string, data []byte) error {
	put, err := a.sign(machine, gen, name, data)
	if err != nil {
		return err
	}
	return put()
}

// sign gets a URL for an object and returns its use.
func (a *agent) sign(machine string, gen uint32, name string, data []byte) (func() error, error) {
	sum := sha256.Sum256(data)
	var up agentapi.UploadResponse
	if err := a.post(agentapi.PathUploads, agentapi.UploadRequest{Machine: machine, Generation: gen, Objects: []agentapi.UploadObject{
		{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}}}, &up); err != nil {
		return nil, err
	}
	return func() error { return a.upload(up.URLs[0], name, data) }, nil
}

func (a *agent) upload(url agentapi.SignedURL, name string, data []byte) error {
	req, err := http.NewRequest(http.MethodPut, url.URL, bytes.NewReader(data))
	if err != nil {
		return err
	}
	for k, v := range url.Headers {
		req.Header.Set(k, v)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusConflict {
		return fmt.Errorf("put %s: status %d", name, resp.StatusCode)
	}
	return nil
}

// site is the usual scene: a source host with one VM and a recovery host.
type site struct {
	*world
	src, dst *agent
	primary  dr.Fabric
	recovery dr.Fabric
	item     dr.ItemID
	machine  string
}

func testVM() agentapi.VM {
	return agentapi.VM{ID: strings.ToUpper(vmUUID), Name: "web1", Running: true, Generation: 1, CPUs: 2, MemoryMB: 1024,
		Disks: []agentapi.Disk{{ID: "vda", Path: "/vm/web1.qcow2", Format: "qcow2", Size: 1 << 30, Boot: true}},
		NICs:  []agentapi.NIC{{ID: "52:54:00:00:00:01", MAC: "52:54:00:00:00:01", Network: "lan"}}}
}

// scene registers the hosts and starts their agents.
func scene(t *testing.T, w *world) *site {
	t.Helper()
	ctx := t.Context()
	v := w.vault()
	w.run(v.CreateFabric(ctx, "Primary", dr.HyperVSite, "test"))
	w.run(v.CreateFabric(ctx, "Recovery", dr.KVMSite, "test"))
	s := &site{world: w}
	s.primary = ok(t, fst(v.Fabric(ctx, "primary")), snd(v.Fabric(ctx, "PRIMARY")))
	s.recovery = ok(t, fst(v.Fabric(ctx, "Recovery")), nil)
	key := must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "Primary", By: "test"}))
	s.src = w.newAgent("src1", key, "source")
	vm := testVM()
	vm.ID = vmUUID
	s.src.addVM(vm)
	key = must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "Recovery", By: "test"}))
	s.dst = w.newAgent("dst1", key, "recovery")
	s.dst.networks = []agentapi.Network{{Name: "lan", Active: true}, {Name: "lab", Isolated: true, Active: true}}
	s.src.loop()
	s.dst.loop()
	w.until("inventory of both hosts", func() bool {
		vms, err := w.vault().VMs(ctx, s.primary.ID)
		nets, err2 := w.vault().Networks(ctx, s.recovery.ID)
		return err == nil && err2 == nil && len(vms) == 1 && len(nets) == 2
	})
	return s
}

func fst[A, B any](a A, _ B) A { return a }
func snd[A, B any](_ A, b B) B { return b }

// protect enables the VM and waits for its first recovery point.
func (s *site) protect() {
	t := s.t
	t.Helper()
	ctx := t.Context()
	v := s.vault()
	s.run(v.SavePolicy(ctx, dr.Policy{Name: "gold", CopyFrequency: 30 * time.Second, Retention: time.Hour}, true, "test"))
	p := must[dr.Policy](t)(v.Policy(ctx, "GOLD"))
	s.run(v.CreateMapping(ctx, dr.ContainerMapping{Name: "map1", Fabric: s.primary.ID, Policy: p.ID,
		Target: "/x/replicationFabrics/recovery/replicationProtectionContainers/" + s.recovery.ContainerName()}, "test"))
	s.run(v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: vmUUID, VM: vmUUID, Policy: "gold", By: "test"}))
	it := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, strings.ToUpper(vmUUID)))
	s.item, s.machine = it.ID, string(it.Machine)
	s.until("protected", func() bool { return s.it().Protection == dr.Protected })
	s.until("initial replication job done", func() bool {
		jobs, err := s.vault().Jobs(ctx, vault.JobFilter{Item: s.item, Scenario: "IrCompletion", States: []dr.JobState{dr.JobSucceeded}})
		return err == nil && len(jobs) == 1
	})
}

func (s *site) it() dr.ProtectedItem {
	s.t.Helper()
	return must[dr.ProtectedItem](s.t)(s.vault().ItemByID(s.t.Context(), s.item))
}

func (s *site) points() []dr.RecoveryPoint {
	s.t.Helper()
	return must[[]dr.RecoveryPoint](s.t)(s.vault().Points(s.t.Context(), s.item))
}

func (s *site) ops() []string {
	s.t.Helper()
	return must[[]string](s.t)(s.vault().AllowedOperations(s.t.Context(), s.item))
}

func (s *site) newCut() agentapi.PointResult {
	s.t.Helper()
	return must[agentapi.PointResult](s.t)(s.src.cut(s.machine, dr.CrashConsistent))
}

func (s *site) failover(kind dr.FailoverKind) (dr.JobID, error) {
	return s.vault().StartFailover(s.t.Context(), vault.FailoverRequest{Item: s.item, Kind: kind, By: "test"})
}
