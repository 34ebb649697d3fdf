package azure_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// stage is a simulated cloud with a site in it.
type stage struct {
	t     *testing.T
	cloud *azsim.Cloud
	cfg   arm.Config
	log   *bytes.Buffer
	logMu sync.Mutex
}

func (s *stage) Write(p []byte) (int, error) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.log.Write(p)
}

func (s *stage) logged() string {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.log.String()
}

func newStage(t *testing.T, change ...func(*azsim.Config)) *stage {
	t.Helper()
	c := azsim.Config{Dir: t.TempDir()}
	for _, f := range change {
		f(&c)
	}
	cloud := azsim.New(c)
	ok(t, cloud.Start(t.Context()))
	t.Cleanup(func() { ok(t, cloud.Close()) })
	cloud.AddVNet("dr", "prod", "10.1.0.0/16", map[string]string{"web": "10.1.1.0/24", "db": "10.1.2.0/24", "GatewaySubnet": "10.1.0.0/27"})
	cloud.AddVNet("shared", "hub", "10.2.0.0/16", map[string]string{"apps": "10.2.1.0/24"})
	dir := t.TempDir()
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	ok(t, os.WriteFile(ca, cloud.CA(), 0o600))
	ok(t, os.WriteFile(secret, []byte(azsim.DefaultClientSecret), 0o600))
	s := &stage{t: t, cloud: cloud, log: &bytes.Buffer{}}
	s.cfg = arm.Config{Version: 1, Cloud: arm.CustomCloud, Authority: cloud.URL(), ResourceManager: cloud.URL(), StorageSuffix: cloud.URL() + "/storage/{account}", CAFile: ca,
		Tenant: azsim.DefaultTenant, Subscription: azsim.DefaultSubscription, ResourceGroup: "dr",
		Credential: arm.Credential{Kind: arm.CredentialSecret, ClientID: azsim.DefaultClientID, SecretFile: secret}}
	return s
}

// cord is a connection that can be cut for good: how a process that dies looks from Azure.
type cord struct {
	base  http.RoundTripper
	after atomic.Int64 // requests that may pass; below 0 = all
	count func(r *http.Request) bool
	cut   atomic.Bool
	died  func() // called when the cord is cut; may be nil
}

func (c *cord) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.cut.Load() {
		return nil, errors.New("the process is dead")
	}
	if c.count != nil && c.count(r) && c.after.Add(-1) == 0 {
		c.cut.Store(true)
		if c.died != nil {
			c.died()
		}
		return nil, errors.New("the process is dead")
	}
	return c.base.RoundTrip(r)
}

type hostOption func(*azure.Config, *arm.Options)

// host opens a session and a host as a new process would.
func (s *stage) host(opts ...hostOption) *azure.Host {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s, nil))
	ao := arm.Options{Log: log, PollEvery: time.Millisecond, RetryDelay: time.Millisecond, MaxRetryDelay: time.Second, Retries: 2}
	ac := azure.Config{Log: log, Poll: 2 * time.Millisecond, WatchEvery: 5 * time.Millisecond, UndoTimeout: 30 * time.Second, RetryDelay: time.Millisecond}
	for _, o := range opts {
		o(&ac, &ao)
	}
	session, err := arm.Open(s.t.Context(), s.cfg, ao)
	ok(s.t, err)
	s.t.Cleanup(func() { ok(s.t, session.Close()) })
	ac.Session = session
	h, err := azure.Open(s.t.Context(), ac)
	ok(s.t, err)
	s.t.Cleanup(func() { ok(s.t, h.Close()) })
	return h
}

// everything that exists, by id and state.
func (s *stage) resources() []string {
	var out []string
	for _, r := range s.cloud.Resources() {
		out = append(out, r.ID)
	}
	return out
}

// unchanged fails unless exactly what was there before is there.
func (s *stage) unchanged(t *testing.T, before []string) {
	t.Helper()
	ok(t, s.cloud.Settle(t.Context()))
	if now := s.resources(); !slices.Equal(before, now) {
		var more, less []string
		for _, r := range now {
			if !slices.Contains(before, r) {
				more = append(more, r)
			}
		}
		for _, r := range before {
			if !slices.Contains(now, r) {
				less = append(less, r)
			}
		}
		t.Errorf("resources left over: %v; missing: %v", more, less)
	}
}

func (s *stage) id(kind, name string) string { return s.cfg.ID(kind, name) }

// device serves bytes by NBD and knows which runs are zero.
type device struct {
	data  []byte
	fails atomic.Bool
	slow  time.Duration
	reads atomic.Int64
}

func (d *device) Size() int64 { return int64(len(d.data)) }

func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	if d.slow > 0 {
		select {
		case <-time.After(d.slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.fails.Load() {
		return errors.New("the recovery point can't be read")
	}
	copy(p, d.data[off:])
	return nil
}

func (d *device) Extents(_ context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	return []nbd.AllocationExtent{{Off: off, Len: length}}, nil
}

// point is a served recovery point.
type point struct {
	devices map[string]*device
	socket  string
	stop    func()
}

func newPoint(t *testing.T, sizes map[string]int) *point {
	t.Helper()
	p := &point{devices: map[string]*device{}}
	exports := nbd.ExportMap{}
	rng := rand.NewChaCha8([32]byte{7})
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		d := &device{data: make([]byte, sizes[name])}
		_, _ = rng.Read(d.data[:64<<10])
		_, _ = rng.Read(d.data[5*mib : 6*mib+512])
		_, _ = rng.Read(d.data[len(d.data)-4096:])
		p.devices[name], exports["rp/"+name] = d, d
	}
	server, err := nbd.NewServer(nbd.ServerConfig{Exports: exports})
	ok(t, err)
	dir, err := os.MkdirTemp("/tmp", "hfaz")
	ok(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.socket = filepath.Join(dir, "rp.sock")
	ln, err := net.Listen("unix", p.socket)
	ok(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), ln) }()
	for name := range exports { // a server that answers is one that can be stopped
		c, err := nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: p.socket, Export: name})
		ok(t, err)
		ok(t, c.Close())
	}
	p.stop = sync.OnceFunc(func() { ok(t, errors.Join(server.Close(), <-done)) })
	t.Cleanup(p.stop)
	return p
}

// spec is a recovery VM of two disks and one adapter in network prod.
func (p *point) spec(name string) hypervisor.BootSpec {
	s := hypervisor.BootSpec{Name: name, Owner: "holdfast:" + name, Network: "prod", Config: hypervisor.VMConfig{VM: dr.VM{ID: "11111111-2222-4333-8444-555555555555", Name: "app",
		Generation: 2, CPUs: 2, MemoryMB: 3000, OSType: "Linux", NICs: []dr.NIC{{ID: "n1", MAC: "00:15:5d:00:00:01"}}}}}
	for _, id := range slices.Sorted(maps.Keys(p.devices)) {
		s.Disks = append(s.Disks, hypervisor.BootDisk{ID: id, Size: p.devices[id].Size(), Socket: p.socket, Export: "rp/" + id, Path: "/images/" + name + "/" + id + ".vhd"})
	}
	return s
}

func twoDisks(t *testing.T) *point {
	return newPoint(t, map[string]int{"vda": 21*mib + 512, "vdb": 8 * mib})
}

// content reads a disk of a VM, as its guest sees it.
func (s *stage) content(t *testing.T, vm string, n int) []byte {
	t.Helper()
	v, found := s.cloud.VM(s.id(arm.TypeVM, vm))
	if !found || len(v.Machine.Disks) <= n {
		t.Fatalf("VM %s has not %d disks", vm, n+1)
	}
	d := v.Machine.Disks[n].Device
	b := make([]byte, d.Size())
	ok(t, d.ReadAt(t.Context(), b, 0))
	return b
}

// sameContent compares a VM's disks with the recovery point; beyond its end a disk is zero.
func (s *stage) sameContent(t *testing.T, vm string, p *point) {
	t.Helper()
	for i, id := range slices.Sorted(maps.Keys(p.devices)) {
		want, got := p.devices[id].data, s.content(t, vm, i)
		if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || strings.Trim(string(got[len(want):]), "\x00") != "" {
			t.Errorf("disk %s of %s is not the recovery point (%d bytes, %d in the point)", id, vm, len(got), len(want))
		}
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (kind %v, code %q)", err, dr.KindOf(err), dr.CodeOf(err))
	}
}

func wantCode(t testing.TB, err error, code dr.Code, words ...string) {
	t.Helper()
	var e *dr.Error
	if err == nil || dr.CodeOf(err) != code || !errors.As(err, &e) {
		t.Fatalf("error %v (kind %v, code %q), want code %q", err, dr.KindOf(err), dr.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q does not name %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "sig=") {
		t.Errorf("the error has a signature in it: %s", err)
	}
}

// changing reports whether a call of the transcript changes something.
func changing(c azsim.Call) bool {
	return c.Method != http.MethodGet && c.Method != http.MethodHead && !strings.Contains(c.Path, "/oauth2/")
}

func callText(c azsim.Call) string { return fmt.Sprintf("%s %s %s", c.Method, c.Path, c.Comp) }

// wrap makes all requests of a host go through the cord.
func (c *cord) wrap(t *testing.T, s *stage, ac *azure.Config, ao *arm.Options) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.cloud.CA())
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 8}
	t.Cleanup(base.CloseIdleConnections)
	c.base = base
	ao.HTTP = &http.Client{Transport: c}
	ao.Retries = -1
	ac.Transport = c
	ac.UndoTimeout = 20 * time.Millisecond
}

func (c *cord) wrapOption(t *testing.T, s *stage) hostOption {
	return func(ac *azure.Config, ao *arm.Options) { c.wrap(t, s, ac, ao) }
}
