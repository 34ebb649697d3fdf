package azsim

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/azsim/compute"
	"holdfast/internal/azsim/entra"
	"holdfast/internal/azsim/network"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
	"holdfast/internal/dr"
)

// What New takes for empty fields of Config.
const (
	DefaultSubscription = "0a5e0000-0000-4000-8000-000000000001"
	DefaultTenant       = "0a5e0000-0000-4000-8000-000000000002"
	DefaultClientID     = "0a5e0000-0000-4000-8000-000000000003"
	DefaultClientSecret = "simulated~client.secret"
	DefaultLocation     = "westeurope"

	objectID = "0a5e0000-0000-4000-8000-000000000004" // of the client's service principal
)

// Config describes the simulated cloud.
type Config struct {
	Dir string // disks, serial logs; must exist

	Subscription, Tenant, ClientID, ClientSecret string // "" = the defaults above
	Location                                     string // "" = DefaultLocation

	Runner Runner       // nil: VMs are only states
	Log    *slog.Logger // nil = silent

	// Pace is how long an operation takes at least. With 0 it is over as soon as
	// its work is done, but is told as Succeeded at the second poll at the earliest.
	Pace time.Duration
	// Shutdown bounds how long a guest is waited for that was asked to shut down; 0 = 60 s.
	Shutdown time.Duration
}

// What subpackages have, by the names that tests use.
type (
	Fault    = wire.Fault
	Injected = wire.Injected
	Call     = wire.Call

	Runner      = compute.Runner
	Running     = compute.Running
	Machine     = compute.Machine
	MachineDisk = compute.MachineDisk
	MachineNIC  = compute.MachineNIC
	VM          = compute.VM
)

// Cloud is the simulated cloud. Its methods are safe for concurrent use.
type Cloud struct {
	cfg     Config
	log     *slog.Logger
	pages   *pagestore.Store
	dir     *entra.Directory
	plane   *plane.Plane
	compute *compute.Compute
	faults  wire.Faults
	calls   wire.Transcript

	skew atomic.Int64           // nanoseconds; without the lock: the data plane asks with its own held
	url  atomic.Pointer[string] // nil before Start; likewise

	mu     sync.Mutex
	ca     *authority
	server *http.Server
	served chan struct{}
	closed bool
}

// New makes a cloud; it does no I/O.
func New(cfg Config) *Cloud {
	for _, d := range []struct {
		field *string
		value string
	}{{&cfg.Subscription, DefaultSubscription}, {&cfg.Tenant, DefaultTenant}, {&cfg.ClientID, DefaultClientID},
		{&cfg.ClientSecret, DefaultClientSecret}, {&cfg.Location, DefaultLocation}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Shutdown <= 0 {
		cfg.Shutdown = time.Minute
	}
	c := &Cloud{cfg: cfg, log: cfg.Log}
	c.dir = entra.New(entra.Config{Tenant: cfg.Tenant, ClientID: cfg.ClientID, ObjectID: objectID, Secret: cfg.ClientSecret, Base: c.URL, Now: c.now})
	c.pages = pagestore.New(pagestore.Config{Dir: filepath.Join(cfg.Dir, "pages"), Base: c.URL, Now: c.now, Log: cfg.Log, Token: c.dir.Identify})
	c.plane = plane.New(plane.Config{Subscription: cfg.Subscription, Tenant: cfg.Tenant, ClientID: cfg.ClientID, ObjectID: objectID, Location: cfg.Location,
		URL: c.URL, Now: c.now, Check: c.dir.Check, Pace: cfg.Pace, Log: cfg.Log})
	c.compute = compute.New(c.plane, compute.Config{Dir: filepath.Join(cfg.Dir, "machines"), Secret: cfg.ClientSecret, Pages: c.pages, Runner: cfg.Runner, Shutdown: cfg.Shutdown})
	c.plane.Register(c.compute.Provider())
	c.plane.Register(network.Provider(c.plane))
	c.plane.Register(c.storage())
	c.plane.Register(plane.Provider{Namespace: "Microsoft.Resources"})
	c.plane.Register(plane.Provider{Namespace: "Microsoft.Authorization"})
	return c
}

// Start listens on a port of 127.0.0.1 and returns once requests are answered.
func (c *Cloud) Start(ctx context.Context) error {
	const op = "azsim.Start"
	for _, sub := range []string{"pages", "machines"} {
		if err := os.MkdirAll(filepath.Join(c.cfg.Dir, sub), 0o700); err != nil {
			return dr.Errorf(dr.KindUnavailable, op, "make the simulator's directory: %w", err)
		}
	}
	ca, err := newAuthority()
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "make the simulator's certificate authority: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "listen on 127.0.0.1: %w", err)
	}
	server := &http.Server{
		Handler: c.Handler(), TLSConfig: ca.serverConfig(), ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		// HTTP/1.1 only: a lost answer is then a cut connection, as clients meet it.
		Protocols: new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.server != nil {
		_ = ln.Close() // never used
		return dr.Errorf(dr.KindPrecondition, op, "the simulator was started or closed before")
	}
	base := "https://" + ln.Addr().String()
	c.url.Store(&base)
	c.server, c.ca, c.served = server, ca, make(chan struct{})
	go func() {
		defer close(c.served)
		_ = server.ServeTLS(ln, "", "") // always ends with an error: Close closes it
	}()
	return nil
}

// Close cuts connections, ends operations, kills guests and waits for all of it.
func (c *Cloud) Close() error {
	c.mu.Lock()
	first, server, served := !c.closed, c.server, c.served
	c.closed = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	var errs []error
	if server != nil {
		errs = append(errs, server.Close())
		<-served
	}
	c.plane.Close()
	return errors.Join(append(errs, c.pages.Close())...)
}

// URL is the base of everything: Resource Manager's endpoint, and with a slash
// the authority's; "" before Start.
func (c *Cloud) URL() string {
	if base := c.url.Load(); base != nil {
		return *base
	}
	return ""
}

// CA is the certificate that clients have to trust, as PEM; nil before Start.
func (c *Cloud) CA() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ca == nil {
		return nil
	}
	return c.ca.pem
}

// Pages is the data plane.
func (c *Cloud) Pages() *pagestore.Store { return c.pages }

// Directory is the simulated Microsoft Entra ID: token lifetime, expired secret and so on.
func (c *Cloud) Directory() *entra.Directory { return c.dir }

// SkewClock makes the cloud's clock differ from the machine's: the Date header,
// tokens, signatures.
func (c *Cloud) SkewClock(by time.Duration) {
	c.skew.Store(int64(by))
}

func (c *Cloud) now() time.Time { return time.Now().Add(time.Duration(c.skew.Load())) }

// Fault puts a fault in force, for all requests: Entra ID, Resource Manager and
// data plane (see also Pages().Fault).
func (c *Cloud) Fault(f Fault) *Injected { return c.faults.Add(f) }

// Calls is the transcript.
func (c *Cloud) Calls() []Call { return c.calls.Calls() }

// Settle waits until no operation is under way.
func (c *Cloud) Settle(ctx context.Context) error { return c.plane.Settle(ctx) }
