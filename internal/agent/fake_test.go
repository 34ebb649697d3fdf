package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/agentapi"
	"holdfast/internal/authn"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
)

func TestMain(m *testing.M) {
	warm()
	goleak.VerifyTestMain(m)
}

// warm makes the decoder that package cut shares, outside of any synctest bubble.
func warm() {
	var out bytes.Buffer
	key := cut.NewEpochKey()
	w, err := cut.NewWriter(&out, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: machineA, Gen: 1}, Key: key})
	if err != nil {
		panic(err)
	}
	if _, err := w.Close(&cut.Commit{Gen: 1, Base: true, Time: time.Unix(1, 0), Consistency: dr.CrashConsistent, Note: strings.Repeat("x", 1000), Disks: []cut.Disk{{ID: "a", Size: 4096}}}); err != nil {
		panic(err)
	}
	if _, err := cut.Open(context.Background(), cut.Bytes(out.Bytes()), w.Name(), store.StaticKeys{0: key}); err != nil {
		panic(err)
	}
}

const (
	keyID  = "key-1"
	secret = "hfk_secret-of-the-key"
)

// fakeVault answers the agent's channel over TLS, in memory.
type fakeVault struct {
	t       testing.TB
	ca      *authn.CA
	srv     *httptest.Server
	bucket  objstore.Bucket
	signer  *httpstore.Signer
	private cut.VaultPrivateKey

	mu          sync.Mutex
	wake        chan struct{}
	down        bool             // answers nothing: 503 of a proxy
	drop        map[string]int   // path → how many answers to lose after the work was done
	refuse      map[string]error // path → error to answer
	enrolled    []agentapi.EnrollRequest
	keyHash     string // of the one-time key's user
	serial      string
	renewals    int
	certLife    time.Duration // of issued certificates, 0 = the usual
	commands    map[string]agentapi.Command
	cancels     map[string]bool
	reports     map[string][]agentapi.ReportRequest // by command
	finals      map[string]agentapi.ReportRequest
	assignments []agentapi.Assignment
	version     int
	polls       []agentapi.PollRequest
	inventories []agentapi.InventoryRequest
	wantInv     bool
	statuses    []agentapi.StatusRequest
	commits     []agentapi.CommitRequest
	points      map[string]agentapi.OpenPointResponse
	asked       int // OpenPoint calls
	fenced      bool

	others  map[string][]agentapi.Assignment // lists of agents other than agent-1
	to      map[string]string                // command → agent; agent-1 if it is not there
	writes  map[string]uint32                // machine → generation that may write; any if it is not there
	granted int64                            // bytes that URLs were given out for
	digests []agentapi.DigestRequest
}

func newVault(t testing.TB) *fakeVault {
	t.Helper()
	ca, err := authn.NewCA("test vault", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	v := &fakeVault{t: t, ca: ca, bucket: mem.New(), private: priv, wake: make(chan struct{}), drop: map[string]int{}, refuse: map[string]error{},
		commands: map[string]agentapi.Command{}, cancels: map[string]bool{}, reports: map[string][]agentapi.ReportRequest{},
		finals: map[string]agentapi.ReportRequest{}, points: map[string]agentapi.OpenPointResponse{},
		others: map[string][]agentapi.Assignment{}, to: map[string]string{}, writes: map[string]uint32{}}
	v.srv = httptest.NewUnstartedServer(v)
	cert, err := ca.IssueServer([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	v.srv.TLS = tlsServer(ca, cert)
	v.srv.EnableHTTP2 = true
	v.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	v.srv.StartTLS()
	t.Cleanup(v.srv.Close)
	if v.signer, err = httpstore.NewSigner(httpstore.SignerConfig{BaseURL: v.srv.URL, Key: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *fakeVault) key() RegistrationKey {
	return RegistrationKey{VaultURL: v.srv.URL, CAPin: v.ca.Pin(), KeyID: keyID, Secret: secret}
}

// change changes what the vault says and wakes parked polls.
func (v *fakeVault) change(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fn()
	close(v.wake)
	v.wake = make(chan struct{})
}

func (v *fakeVault) assign(list ...agentapi.Assignment) {
	v.change(func() { v.assignments = list; v.version++ })
}

func (v *fakeVault) assignTo(agent string, list ...agentapi.Assignment) {
	if agent == "agent-1" {
		v.assign(list...)
		return
	}
	v.change(func() { v.others[agent] = list; v.version++ })
}

func (v *fakeVault) command(id string, kind agentapi.CommandKind, payload any) {
	raw, err := json.Marshal(payload)
	if err != nil {
		v.t.Fatal(err)
	}
	v.change(func() { v.commands[id] = agentapi.Command{ID: id, Kind: kind, Payload: raw} })
}

// final waits for the final report of a command.
func (v *fakeVault) final(id string) agentapi.ReportRequest {
	v.t.Helper()
	var r agentapi.ReportRequest
	eventually(v.t, "report of "+id, func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		var ok bool
		r, ok = v.finals[id]
		return ok
	})
	return r
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("timed out: %s", what)
}

func fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(agentapi.ErrorBody{Error: agentapi.Error{Kind: dr.KindOf(err).String(), Code: string(dr.CodeOf(err)), Message: err.Error(), Hint: dr.HintOf(err)}})
}

func answer[In, Out any](w http.ResponseWriter, r *http.Request, f func(In) (Out, error)) {
	var in In
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, dr.Errorf(dr.KindInvalid, "vault", "body: %w", err))
		return
	}
	out, err := f(in)
	if err != nil {
		fail(w, err)
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (v *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/store/") {
		h, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: v.bucket, Signer: v.signer})
		if err != nil {
			v.t.Error(err)
		}
		v.mu.Lock()
		down := v.down
		v.mu.Unlock()
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
		return
	}
	v.mu.Lock()
	down, refuse := v.down, v.refuse[r.URL.Path]
	lose := v.drop[r.URL.Path] > 0
	if lose {
		v.drop[r.URL.Path]--
	}
	v.mu.Unlock()
	if down {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<html>proxy: no route</html>")
		return
	}
	if r.URL.Path != agentapi.PathEnroll {
		if len(r.TLS.PeerCertificates) == 0 {
			fail(w, dr.Errorf(dr.KindUnauthenticated, "vault", "no certificate"))
			return
		}
		if _, _, err := v.ca.AgentOf(r.TLS.PeerCertificates[0], time.Now()); err != nil {
			fail(w, err)
			return
		}
	}
	if refuse != nil {
		fail(w, refuse)
		return
	}
	if lose {
		rec := httptest.NewRecorder()
		v.route(rec, r)
		panic(http.ErrAbortHandler)
	}
	v.route(w, r)
}

type none struct{}

func (v *fakeVault) route(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case agentapi.PathEnroll:
		answer(w, r, v.enroll)
	case agentapi.PathRenew:
		answer(w, r, func(in agentapi.RenewRequest) (agentapi.EnrollResponse, error) {
			v.mu.Lock()
			v.renewals++
			v.certLife = 0
			v.mu.Unlock()
			return v.issue(in.CSR, "agent-1")
		})
	case agentapi.PathPoll:
		agent, _, err := v.ca.AgentOf(r.TLS.PeerCertificates[0], time.Now())
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, r, func(in agentapi.PollRequest) (agentapi.PollResponse, error) {
			return v.poll(r.Context(), string(agent), in)
		})
	case agentapi.PathReport:
		answer(w, r, v.report)
	case agentapi.PathInventory:
		answer(w, r, func(in agentapi.InventoryRequest) (none, error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.inventories, v.wantInv = append(v.inventories, in), false
			return none{}, nil
		})
	case agentapi.PathStatus:
		answer(w, r, func(in agentapi.StatusRequest) (none, error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.statuses = append(v.statuses, in)
			return none{}, nil
		})
	case agentapi.PathUploads:
		answer(w, r, v.uploads)
	case agentapi.PathHead:
		answer(w, r, v.head)
	case agentapi.PathCommits:
		answer(w, r, func(in agentapi.CommitRequest) (agentapi.CommitResponse, error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.commits = append(v.commits, in)
			return agentapi.CommitResponse{Point: dr.PointName(dr.Generation(in.Generation), in.N)}, nil
		})
	case agentapi.PathPoints:
		answer(w, r, v.openPoint)
	case agentapi.PathDigests:
		answer(w, r, v.digest)
	default:
		http.NotFound(w, r)
	}
}

func (v *fakeVault) enroll(in agentapi.EnrollRequest) (agentapi.EnrollResponse, error) {
	hash, err := authn.CSRKeyHash(in.CSR)
	if err != nil {
		return agentapi.EnrollResponse{}, err
	}
	v.mu.Lock()
	v.enrolled = append(v.enrolled, in)
	used := v.keyHash != "" && v.keyHash != hash
	if in.KeyID == keyID {
		v.keyHash = hash
	}
	v.mu.Unlock()
	if in.Secret != secret {
		return agentapi.EnrollResponse{}, dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyInvalid, "vault", "not one of this vault's keys")
	}
	if used {
		return agentapi.EnrollResponse{}, dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyUsed, "vault", "the key was used")
	}
	agent := "agent-1"
	if in.Host != "host" && in.Host != "" {
		agent = "agent-of-" + in.Host
	}
	return v.issue(in.CSR, agent)
}

func (v *fakeVault) issue(csr, agent string) (agentapi.EnrollResponse, error) {
	v.mu.Lock()
	life := v.certLife
	v.mu.Unlock()
	now := time.Now()
	if life != 0 {
		now = now.Add(life - authn.AgentLifetime)
	}
	c, err := v.ca.IssueAgent(csr, dr.AgentID(agent), now)
	if err != nil {
		return agentapi.EnrollResponse{}, err
	}
	return agentapi.EnrollResponse{AgentID: agent, FabricID: "fabric-1", FabricName: "site", Certificate: c.PEM, CA: v.ca.PEM(), NotAfter: c.NotAfter}, nil
}

func (v *fakeVault) poll(ctx context.Context, agent string, in agentapi.PollRequest) (agentapi.PollResponse, error) {
	end := time.NewTimer(time.Duration(in.WaitSeconds) * time.Second)
	defer end.Stop()
	v.mu.Lock()
	v.polls = append(v.polls, in)
	v.mu.Unlock()
	for last := false; ; {
		v.mu.Lock()
		out := agentapi.PollResponse{AssignmentsVersion: strconv.Itoa(v.version), ServerTime: time.Now(), StatusSeconds: 1, WantInventory: v.wantInv}
		have := map[string]bool{}
		for _, id := range in.Have {
			have[id] = true
		}
		for id, c := range v.commands {
			if to, ok := v.to[id]; ok && to != agent || !ok && agent != "agent-1" {
				continue
			}
			if _, done := v.finals[id]; !done && !have[id] && !v.cancels[id] {
				out.Commands = append(out.Commands, c)
			}
		}
		for id := range v.cancels {
			if _, done := v.finals[id]; !done {
				out.Cancels = append(out.Cancels, id)
			}
		}
		if out.AssignmentsVersion != in.Assignments {
			list := v.assignments
			if agent != "agent-1" {
				list = v.others[agent]
			}
			out.Assignments = append([]agentapi.Assignment{}, list...)
		}
		wake := v.wake
		v.mu.Unlock()
		if last || len(out.Commands)+len(out.Cancels) > 0 || out.Assignments != nil {
			return out, nil
		}
		select {
		case <-wake:
		case <-end.C:
			last = true
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

func (v *fakeVault) report(in agentapi.ReportRequest) (none, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reports[in.ID] = append(v.reports[in.ID], in)
	if _, done := v.finals[in.ID]; !done && in.State != stateRunning {
		v.finals[in.ID] = in
	}
	return none{}, nil
}

func (v *fakeVault) uploads(in agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	v.mu.Lock()
	fenced := v.fenced
	if gen, ok := v.writes[in.Machine]; ok && gen != in.Generation {
		fenced = true
	}
	for _, o := range in.Objects {
		v.granted += o.Size
	}
	v.mu.Unlock()
	var out agentapi.UploadResponse
	if fenced {
		return out, dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	}
	for _, o := range in.Objects {
		sum, err := hex.DecodeString(o.SHA256)
		if err != nil {
			return out, err
		}
		u, err := v.signer.SignPut(context.Background(), o.Name, o.Size, [32]byte(sum), time.Now().Add(time.Hour))
		if err != nil {
			return out, err
		}
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: u.URL, Headers: u.Headers})
	}
	return out, nil
}

func (v *fakeVault) head(in agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	var out agentapi.HeadResponse
	for _, n := range in.Names {
		info, err := objstore.Digest(context.Background(), v.bucket, n)
		if errors.Is(err, objstore.ErrNotExist) {
			out.Objects = append(out.Objects, agentapi.HeadObject{})
			continue
		}
		if err != nil {
			return out, err
		}
		out.Objects = append(out.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
	}
	return out, nil
}

// store reads what is stored, as the vault does.
func (v *fakeVault) store() *store.Store {
	return store.New(store.Config{Bucket: v.bucket, Keys: store.NewKeyring(v.bucket, v.private)})
}

func (v *fakeVault) digest(in agentapi.DigestRequest) (agentapi.DigestResponse, error) {
	v.mu.Lock()
	v.digests = append(v.digests, in)
	gen, ok := v.writes[in.Machine]
	v.mu.Unlock()
	var out agentapi.DigestResponse
	if ok && gen != in.Generation {
		return out, dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	}
	view, err := v.store().OpenPosition(context.Background(), dr.MachineID(in.Machine), dr.Generation(in.At.Generation), in.At.N)
	if err != nil {
		return out, err
	}
	defer view.Close()
	if in.Blocks {
		key, sums, err := view.TileBlocks(context.Background(), in.Disk, in.First)
		if err != nil {
			return out, err
		}
		out.Key = key[:]
		for _, s := range sums {
			out.Blocks = append(out.Blocks, s[:]...)
		}
		return out, nil
	}
	roots, err := view.TileRoots(context.Background(), in.Disk, in.First, in.Count)
	for _, r := range roots {
		x := agentapi.TileRoot{Tile: r.Tile, Zero: r.Zero}
		if !r.Zero {
			x.Key, x.Root = r.Key.Bytes(), append([]byte(nil), r.Root[:]...)
		}
		out.Roots = append(out.Roots, x)
	}
	return out, err
}

// serving grants a point.
func (v *fakeVault) serving(id string, m dr.MachineID, ref cut.Ref) {
	keys := map[string][]byte{}
	ring := store.NewKeyring(v.bucket, v.private)
	epochs, err := store.New(store.Config{Bucket: v.bucket}).Epochs(context.Background(), m)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, e := range epochs {
		k, err := ring.EpochKey(context.Background(), m, e)
		if err != nil {
			v.t.Fatal(err)
		}
		keys[strconv.Itoa(int(e))] = k[:]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.points[id] = agentapi.OpenPointResponse{Machine: string(m), Generation: uint32(ref.Gen), N: ref.N, StoreURL: v.srv.URL, Keys: keys}
}

func (v *fakeVault) openPoint(in agentapi.OpenPointRequest) (agentapi.OpenPointResponse, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	p, ok := v.points[in.Serving]
	if !ok {
		return p, dr.Errorf(dr.KindForbidden, "vault", "serving %q is not this agent's", in.Serving)
	}
	expires := time.Now().Add(time.Hour)
	if v.asked == 1 {
		expires = time.Now().Add(-time.Hour) // the first ticket is no good: it must be renewed
	}
	var err error
	p.Ticket, err = v.signer.Ticket(cut.MachinePrefix(dr.MachineID(p.Machine)), expires)
	return p, err
}

// logs collects what is logged, to look for secrets.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is a registered host with its vault.
type rig struct {
	t     *testing.T
	vault *fakeVault
	host  *sim.Host
	dir   string
	logs  *logs
	cfg   Config
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return rigOf(t, newVault(t))
}

func rigOf(t *testing.T, v *fakeVault) *rig {
	t.Helper()
	r := &rig{t: t, vault: v, host: sim.New(sim.Config{NoNBD: true}), dir: t.TempDir(), logs: &logs{}}
	log := slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if _, err := Register(t.Context(), RegisterConfig{Key: r.vault.key(), StateDir: r.dir, HostName: "host", Roles: []dr.AgentRole{dr.RoleSource, dr.RoleRecovery}, Version: "test", Log: log}); err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{StateDir: r.dir, Host: r.host, Version: "test", Log: log,
		every: intervals{pollWait: 2 * time.Second, settle: 5 * time.Millisecond, status: 50 * time.Millisecond, restart: 20 * time.Millisecond, assignment: 300 * time.Millisecond}}
	t.Cleanup(func() {
		for _, bad := range []string{secret, "sig=", "PRIVATE KEY"} {
			if strings.Contains(r.logs.String(), bad) {
				t.Errorf("the log shows %q", bad)
			}
		}
		if t.Failed() {
			t.Log(r.logs.String())
		}
	})
	return r
}

// start runs an agent until the test ends or stop is called.
func (r *rig) start() (a *Agent, stop func()) {
	r.t.Helper()
	a, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := a.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			if err := a.Close(); err != nil {
				r.t.Error(err)
			}
		})
	}
	r.t.Cleanup(stop)
	return a, stop
}

func (r *rig) assignment(machine string, vm dr.VMID, gen uint32) agentapi.Assignment {
	return agentapi.Assignment{Item: "item", Machine: machine, VM: string(vm), VMName: "vm", Disks: []string{"vda"}, Generation: gen,
		CopyFrequencySeconds: 5, VaultPublicKey: r.vault.private.Public().Text()}
}

// fakeReplicator records what is asked of it.
type fakeReplicator struct {
	cfg capture.Config
	log *fakeReplicators

	over    chan struct{} // closed when Run ends
	mu      sync.Mutex
	got     []capture.Assignment
	kicks   int
	retries int
	status  capture.Status
}

// fakeReplicators makes them.
type fakeReplicators struct {
	mu      sync.Mutex
	made    []*fakeReplicator
	running map[dr.MachineID]int
	most    int
	removed []dr.MachineID
	runErr  error         // of the next Run
	slow    time.Duration // how long Run takes to end
	initial chan struct{} // AwaitInitial waits for it
	ends    bool          // AwaitInitial ends with Run, as capture's does
}

func (f *fakeReplicators) make(c capture.Config) (replicator, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &fakeReplicator{cfg: c, log: f, over: make(chan struct{}), status: capture.Status{Phase: capture.PhaseWaiting}}
	f.made = append(f.made, r)
	return r, nil
}

func (f *fakeReplicators) last() *fakeReplicator {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.made) == 0 {
		return nil
	}
	return f.made[len(f.made)-1]
}

func (f *fakeReplicators) count(m dr.MachineID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running[m]
}

func (r *fakeReplicator) Assign(a capture.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, a)
}

func (r *fakeReplicator) assigned() []capture.Assignment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]capture.Assignment(nil), r.got...)
}

func (r *fakeReplicator) Kick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kicks++
}

func (r *fakeReplicator) RetryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retries++
}

func (r *fakeReplicator) set(s capture.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = s
}

func (r *fakeReplicator) Run(ctx context.Context) error {
	defer close(r.over)
	f := r.log
	f.mu.Lock()
	if f.running == nil {
		f.running = map[dr.MachineID]int{}
	}
	f.running[r.cfg.Machine]++
	f.most = max(f.most, f.running[r.cfg.Machine])
	err, slow := f.runErr, f.slow
	f.runErr = nil
	f.mu.Unlock()
	if err == nil {
		r.set(capture.Status{Phase: capture.PhaseInitial, Percent: 10})
		<-ctx.Done()
		time.Sleep(slow)
	}
	f.mu.Lock()
	f.running[r.cfg.Machine]--
	f.mu.Unlock()
	return err
}

func (r *fakeReplicator) Status() capture.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

var fakeRef = cut.Ref{Gen: 1, N: 3, Hash: cut.Hash(sha256.Sum256([]byte("x")))}

func (r *fakeReplicator) AwaitInitial(ctx context.Context) (cut.Ref, time.Time, error) {
	var over chan struct{}
	if r.log.ends {
		over = r.over
	}
	select {
	case <-over:
		return cut.Ref{}, time.Time{}, dr.Errorf(dr.KindUnavailable, "capture", "the replicator has been stopped")
	case <-r.log.initial:
		return fakeRef, time.Unix(1e9, 0).UTC(), nil
	case <-ctx.Done():
		return cut.Ref{}, time.Time{}, context.Cause(ctx)
	}
}

func (r *fakeReplicator) Drain(ctx context.Context) (cut.Ref, time.Time, error) {
	return fakeRef, time.Unix(1e9, 0).UTC(), nil
}

func (r *fakeReplicator) Remove(ctx context.Context, vm dr.VMID) error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if r.log.running[r.cfg.Machine] > 0 {
		return errors.New("removed while it runs")
	}
	r.log.removed = append(r.log.removed, r.cfg.Machine)
	return nil
}

// fakeSite counts calls.
type fakeSite struct {
	mu    sync.Mutex
	calls map[string]int
	hang  chan struct{} // Boot waits for it or the end of its context
}

func (s *fakeSite) call(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[string]int{}
	}
	s.calls[name]++
}

func (s *fakeSite) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[name]
}

func (s *fakeSite) Boot(ctx context.Context, p agentapi.BootPayload, _ func(done, total int64)) (agentapi.BootResult, error) {
	s.call("boot " + p.Serving)
	if s.hang != nil {
		select {
		case <-s.hang:
		case <-ctx.Done():
			return agentapi.BootResult{}, context.Cause(ctx)
		}
	}
	return agentapi.BootResult{VM: "vm-of-" + p.Serving, StartSecs: 1}, nil
}

func (s *fakeSite) Verify(ctx context.Context, p agentapi.VerifyPayload) (agentapi.VerifyResult, error) {
	s.call("verify")
	return agentapi.VerifyResult{OK: true, Screenshot: []byte{1, 2}}, nil
}

func (s *fakeSite) MakeLocal(ctx context.Context, p agentapi.VMPayload, progress func(done, total int64)) error {
	s.call("makeLocal")
	progress(1, 4)
	time.Sleep(20 * time.Millisecond)
	return nil
}

func (s *fakeSite) Remove(ctx context.Context, p agentapi.RemovePayload) error {
	s.call("remove")
	return nil
}

func (s *fakeSite) State(ctx context.Context, p agentapi.VMPayload) (agentapi.PowerResult, error) {
	s.call("state")
	return agentapi.PowerResult{State: "absent"}, nil
}

var _ RecoverySite = (*fakeSite)(nil)
