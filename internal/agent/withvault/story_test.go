// Package withvault_test runs agents against the real vault: over TLS, with a
// simulated hypervisor on both sides and everything between them as it ships.
package withvault_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/agentgate"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/job"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/recovery/hostsite"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault"
)

// scene is a vault, a source host and a recovery host.
type scene struct {
	t       *testing.T
	v       *vault.Vault
	url     string
	log     *slog.Logger
	src     *sim.Host
	dst     *sim.Host
	srcDir  string
	primary dr.Fabric
	item    dr.ItemID
	bucket  objstore.Bucket
	key     cut.VaultPrivateKey
	stops   map[string]func() // host name → stop its agent

	recovers dr.FabricType // of the recovery site; "" = KVM
}

type logWriter struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func ok[T any](t *testing.T, x T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func newScene(t *testing.T) *scene {
	t.Helper()
	out := &logWriter{}
	s := &scene{t: t, log: slog.New(slog.NewTextHandler(out, nil)), stops: map[string]func(){}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(out.b.String())
		}
		if strings.Contains(out.b.String(), "sig=") || strings.Contains(out.b.String(), "hfk_") {
			t.Error("the log shows a secret")
		}
	})
	db := ok(t, sqldbOpen(t), nil)
	bucket := mem.New()
	s.bucket = bucket
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.url = "https://" + srv.Listener.Addr().String()
	signer, err := httpstore.NewSigner(httpstore.SignerConfig{BaseURL: s.url, Key: bytes.Repeat([]byte{7}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	s.key = key
	s.v, err = vault.New(vault.Config{DB: db, Bucket: bucket, Signer: signer, Tickets: signer, VaultKey: key, PublicURL: s.url,
		Identity: vault.Identity{Name: "vault1", SubscriptionID: "5ab7cd1e-0000-4000-8000-000000000001", ResourceGroup: "rg", TenantID: "t", Location: "local"},
		PollWait: 2 * time.Second, StatusEvery: time.Second, VerifyTimeout: 10 * time.Second, ShutdownWait: 10 * time.Second, Log: s.log,
		Engine: job.Config{Owner: "vault", Poll: 200 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate, err := agentgate.New(agentgate.Config{Vault: s.v, Log: s.log})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: bucket, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/agent/v1/", gate)
	mux.Handle("/store/v1/", objects)
	srv.Config.Handler = mux
	conf, err := s.v.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := conf.GetCertificate(nil) // httptest would put its own in
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{*cert}
	srv.TLS, srv.EnableHTTP2 = conf, true
	srv.StartTLS()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		if err := errors.Join(s.v.Close(), db.Close()); err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	return s
}

func sqldbOpen(t *testing.T) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldb.Config{URL: "sqlite://" + filepath.Join(t.TempDir(), "vault.db")})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// run waits for a job and fails the test unless it succeeds.
func (s *scene) run(id dr.JobID, err error) dr.Job {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	var j dr.Job
	s.until("job "+string(id), func() bool {
		if j, err = s.v.Job(s.t.Context(), id); err != nil {
			s.t.Fatal(err)
		}
		return j.State.Final()
	})
	if j.State != dr.JobSucceeded {
		s.t.Fatalf("job %s is %s: %+v", j.Scenario, j.State, j.Errors)
	}
	return j
}

func (s *scene) until(what string, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	s.t.Fatalf("timed out: %s", what)
}

// servings runs serving processes as goroutines.
type servings struct {
	hydrate.Launcher
	t     *testing.T
	state string

	mu   sync.Mutex
	stop map[string]func()
}

func (l *servings) Ensure(ctx context.Context, id string) (hydrate.Status, error) {
	if st, ok := l.Running(ctx, id); ok {
		return st, nil
	}
	sctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- agent.ServePoint(sctx, l.state, id, l.Dir(id)) }()
	l.mu.Lock()
	l.stop[id] = func() { cancel(); <-ended }
	l.mu.Unlock()
	for {
		if st, ok := l.Running(ctx, id); ok {
			return st, nil
		}
		select {
		case err := <-ended:
			ended <- err
			return hydrate.Status{}, err
		case <-ctx.Done():
			return hydrate.Status{}, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (l *servings) Stop(ctx context.Context, id string) error {
	l.mu.Lock()
	stop := l.stop[id]
	delete(l.stop, id)
	l.mu.Unlock()
	if stop != nil {
		stop()
	}
	return l.Launcher.Stop(ctx, id)
}

// host registers a host of a site and starts its agent.
func (s *scene) host(name, fabric string, role dr.AgentRole, h hypervisor.Host) (dir string) {
	t := s.t
	t.Helper()
	dir = t.TempDir()
	s.install(name, fabric, role, h, dir)
	return dir
}

// install registers a host with an (empty) state directory and starts its agent.
func (s *scene) install(name, fabric string, role dr.AgentRole, h hypervisor.Host, dir string) {
	t := s.t
	t.Helper()
	k, err := s.v.IssueKey(t.Context(), vault.KeyRequest{Fabric: fabric, OneTime: true, By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Register(t.Context(), agent.RegisterConfig{Key: agent.RegistrationKey{VaultURL: k.VaultURL, CAPin: k.CAPin, KeyID: k.ID, Secret: k.Secret},
		StateDir: dir, HostName: name, Roles: []dr.AgentRole{role}, Version: "test", Log: s.log}); err != nil {
		t.Fatal(err)
	}
	cfg := agent.Config{StateDir: dir, Host: h, Version: "test", Log: s.log.With("host", name)}
	if role == dr.RoleRecovery {
		run, err := os.MkdirTemp("/tmp", "hfw")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(run) })
		root, err := agent.ServingRoot(dir, run)
		if err != nil {
			t.Fatal(err)
		}
		l := &servings{Launcher: hydrate.Launcher{Root: root}, t: t, state: dir, stop: map[string]func(){}}
		cfg.RunDir = run
		cfg.Recovery = hostsite.New(hostsite.Config{Host: h, Servings: l, Dir: filepath.Join(run, "recovery"), Log: s.log})
	}
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	s.stops[name] = func() {
		once.Do(func() {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(s.stops[name])
}

func (s *scene) running(h *sim.Host) []string {
	s.t.Helper()
	vms, err := h.Inventory(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, vm := range vms {
		if vm.Running {
			names = append(names, vm.Name)
		}
	}
	return names
}

// content of the disk of the one VM that runs on a host.
func (s *scene) content(h *sim.Host) []byte {
	s.t.Helper()
	vms, err := h.Inventory(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(vms, func(vm dr.VM) bool { return vm.Running })
	if i < 0 {
		s.t.Fatal("no VM runs")
	}
	// The simulator fails a read that is under way when MakeLocal drops the base.
	b, err := h.VM(vms[i].ID).Content("vda")
	if err != nil {
		b, err = h.VM(vms[i].ID).Content("vda")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func TestProtectTestFailOverAndBack(t *testing.T) {
	s := newScene(t)
	ctx := t.Context()
	s.src = sim.New(sim.Config{Name: "src"})
	alive := func(vm *sim.VM) { vm.Print("web1 login: \n") }
	s.dst = sim.New(sim.Config{Name: "dst", OnBoot: alive})
	vm := s.src.AddVM(sim.VMSpec{Name: "web1", Disks: []sim.DiskSpec{{ID: "vda", Size: 4 << 20}}})
	rnd := rand.New(rand.NewPCG(3, 4))
	write := func() {
		t.Helper()
		p := make([]byte, 8192)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if err := vm.Write("vda", 4096*rnd.Int64N(1000), p); err != nil {
			t.Fatal(err)
		}
	}
	for range 30 {
		write()
	}
	s.run(s.v.CreateFabric(ctx, "Primary", dr.KVMSite, "test"))
	s.run(s.v.CreateFabric(ctx, "Recovery", dr.KVMSite, "test"))
	s.srcDir = s.host("src", "Primary", dr.RoleSource, s.src)
	s.host("dst", "Recovery", dr.RoleRecovery, s.dst)
	primary, err := s.v.Fabric(ctx, "Primary")
	s.primary = ok(t, primary, err)
	recovery, err := s.v.Fabric(ctx, "Recovery")
	ok(t, recovery, err)
	s.until("inventories", func() bool {
		vms, err := s.v.VMs(ctx, s.primary.ID)
		nets, nerr := s.v.Networks(ctx, recovery.ID)
		return err == nil && nerr == nil && len(vms) == 1 && len(nets) == 2
	})

	// Protection.
	s.run(s.v.SavePolicy(ctx, dr.Policy{Name: "gold", CopyFrequency: 5 * time.Second, Retention: time.Hour}, true, "test"))
	policy, err := s.v.Policy(ctx, "gold")
	ok(t, policy, err)
	s.run(s.v.CreateMapping(ctx, dr.ContainerMapping{Name: "map", Fabric: s.primary.ID, Policy: policy.ID,
		Target: "/x/replicationFabrics/Recovery/replicationProtectionContainers/" + recovery.ContainerName()}, "test"))
	s.run(s.v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: string(vm.ID()), VM: vm.ID(), Policy: "gold", By: "test"}))
	it, err := s.v.Item(ctx, s.primary.ID, string(vm.ID()))
	s.item = ok(t, it, err).ID
	points := func() []dr.RecoveryPoint {
		t.Helper()
		p, err := s.v.Points(ctx, s.item)
		return ok(t, p, err)
	}
	s.until("the first recovery point", func() bool { return len(points()) > 0 })
	s.until("protected", func() bool {
		it, err := s.v.ItemByID(ctx, s.item)
		return err == nil && it.Protection == dr.Protected && it.Job == ""
	})

	// A drill, while the source runs on.
	before := s.content(s.src)
	s.until("a point with everything", func() bool { return time.Since(points()[0].Time) < 3*time.Second && len(points()) > 1 })
	s.run(s.v.StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, By: "test"}))
	if got := s.content(s.dst); !bytes.Equal(got, before) {
		t.Error("the test VM's disk differs from the source's")
	}
	s.run(s.v.CleanupTest(ctx, s.item, "fine", "test"))
	if got := s.running(s.dst); len(got) != 0 {
		t.Errorf("after the clean-up run %v", got)
	}

	// Planned failover: nothing is lost, whatever was written last.
	for range 10 {
		write()
	}
	last := s.content(s.src)
	s.run(s.v.StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindPlannedFailover, By: "test"}))
	if got := s.running(s.src); len(got) != 0 {
		t.Errorf("on the source run %v", got)
	}
	if got := s.content(s.dst); !bytes.Equal(got, last) {
		t.Error("the recovery VM's disk differs from the source's at its shutdown")
	}

	// Cancelled: the source runs again and replication goes on in a new generation.
	n := points()[0].N
	s.run(s.v.CancelFailover(ctx, s.item, "test"))
	if got := s.running(s.src); len(got) != 1 {
		t.Errorf("on the source run %v", got)
	}
	s.until("a point of the next generation", func() bool { p := points()[0]; return p.N > n && p.Gen > 1 })

	// Disabled: nothing stays at the source.
	s.run(s.v.Disable(ctx, s.item, false, "test"))
	entries, err := os.ReadDir(filepath.Join(s.srcDir, "replicas"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left of the replica: %v %v", entries, err)
	}
}
