// Package agent is the process on a hypervisor host: it registers the host,
// asks the vault for work over one outbound HTTPS channel, replicates the VMs
// that are assigned to it, and brings VMs up from recovery points.
//
// What it promises:
//
//   - Nothing listens on the host; the agent only calls the vault.
//   - Replication goes on while the vault is down, and after a restart without
//     it: assignments are on disk.
//   - The VMs of the host share its bandwidth and take turns at what is costly, the one
//     that is furthest behind first; an assignment that can't be used stops no other.
//   - What another host has taken over for certain is let go of: state, spool and tracking.
//   - A command is done at least once and answered until the vault has taken the
//     answer; one that is repeated after it was done is answered from the journal.
//   - The agent trusts the authority whose key the registration key names, and no other.
//     Its private key and data keys stay in the state directory, readable by its user only.
//   - One process at a time works on a state directory.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/agent/assignment"
	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/journal"
	"holdfast/internal/agent/managed"
	"holdfast/internal/agent/state"
	"holdfast/internal/agent/warming"
	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/pace"
	"holdfast/internal/upload"
	"holdfast/internal/vmm"
)

// RecoverySite runs VMs from recovery points. Every method is idempotent by the
// serving or VM that it names, and returns typed errors.
type RecoverySite interface {
	// Boot tells progress only where it copies the disks first; progress may be nil.
	Boot(ctx context.Context, p agentapi.BootPayload, progress func(done, total int64)) (agentapi.BootResult, error)
	Verify(ctx context.Context, p agentapi.VerifyPayload) (agentapi.VerifyResult, error)
	MakeLocal(ctx context.Context, p agentapi.VMPayload, progress func(done, total int64)) error
	Remove(ctx context.Context, p agentapi.RemovePayload) error
	State(ctx context.Context, p agentapi.VMPayload) (agentapi.PowerResult, error)
}

// The names under which programs use the parts below.
type (
	// RegisterConfig of Register.
	RegisterConfig = channel.RegisterConfig
	// RegistrationKey is what is needed of a registration key file.
	RegistrationKey = channel.RegistrationKey
	// WarmReplicas are disks that are kept ready in a cloud.
	WarmReplicas = warming.Replicas
	// Applied is what WarmReplicas has done.
	Applied = warming.Applied
	// Registration says who an agent is.
	Registration = channel.Registration
)

// Register registers this host with the vault; see channel.Register.
func Register(ctx context.Context, cfg RegisterConfig) (Registration, error) {
	return channel.Register(ctx, cfg)
}

// ServingRoot is where hydrate.Launcher keeps servings; see state.ServingRoot.
func ServingRoot(stateDir, runDir string) (string, error) { return state.ServingRoot(stateDir, runDir) }

// Config of an Agent.
type Config struct {
	StateDir string          // as given to Register
	RunDir   string          // for sockets of servings where StateDir's path is long; "" = StateDir
	Host     hypervisor.Host // closed by the caller, after Close; nil only with VMM: this machine has no hypervisor
	Recovery RecoverySite    // nil: this host runs no recovery VMs
	VMM      vmm.Inventory   // nil: this is not the agent of a VMM server
	Warm     WarmReplicas    // nil: this agent keeps no warm replicas
	Roles    []dr.AgentRole  // empty = those that were registered
	Version  string          // of the program
	// Bandwidth bounds all uploads together; the first rule whose window is open
	// counts, none = unlimited. Policies have limits of their own below it.
	Bandwidth []dr.BandwidthRule
	// SpoolLimit bounds the spool of each VM, bytes; 0 = 4 GiB.
	SpoolLimit int64
	// Cuts, Transfers and Scans bound how many VMs hold a frozen image, send, and
	// read whole disks at once; 0 = pace.DefaultSlots.
	Cuts, Transfers, Scans int
	Log                    *slog.Logger

	every         intervals                                // tests shorten it
	newReplicator func(capture.Config) (replicator, error) // tests replace it
}

// Validate checks what must be set.
func (c Config) Validate() error {
	const op = "agent.New"
	switch {
	case c.StateDir == "" || c.Host == nil && c.VMM == nil:
		return dr.Errorf(dr.KindInvalid, op, "state directory and host must be set")
	case c.SpoolLimit < 0:
		return dr.Errorf(dr.KindInvalid, op, "the spool limit is negative")
	case min(c.Cuts, c.Transfers, c.Scans) < 0:
		return dr.Errorf(dr.KindInvalid, op, "the number of cuts, transfers or scans at once is negative")
	}
	if err := assignment.CheckRules(c.Bandwidth); err != nil {
		return err
	}
	if c.Recovery != nil {
		if _, err := state.ServingRoot(c.StateDir, c.RunDir); err != nil {
			return err
		}
	}
	return nil
}

// intervals holds the agent's intervals.
type intervals struct {
	pollWait      time.Duration // longest long-poll
	inventory     time.Duration // between complete inventories
	settle        time.Duration // from an event to the inventory
	status        time.Duration // until the vault says otherwise
	statusRefresh time.Duration // unchanged status is sent again
	certificate   time.Duration // between looks at the certificate's age
	restart       time.Duration // before a failed replicator is run again
	assignment    time.Duration // how long a command waits for its assignment
	sweep         time.Duration // between looks for replicas that were taken over
	warm          time.Duration // between questions for warm replicas
}

func (p *intervals) defaults() {
	for _, x := range []struct {
		d *time.Duration
		v time.Duration
	}{
		{&p.pollWait, 25 * time.Second}, {&p.inventory, 5 * time.Minute}, {&p.settle, time.Second}, {&p.status, 10 * time.Second},
		{&p.statusRefresh, time.Minute}, {&p.certificate, 10 * time.Minute}, {&p.restart, 30 * time.Second}, {&p.assignment, 2 * time.Minute},
		{&p.sweep, 5 * time.Minute}, {&p.warm, 10 * time.Second},
	} {
		if *x.d <= 0 {
			*x.d = x.v
		}
	}
}

// Agent is a running agent. New, Start, Close.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	want chan struct{} // an inventory is wanted

	wantVMM chan struct{} // what VMM manages is wanted

	creds    *channel.Credentials
	client   *channel.Client
	data     *channel.Transport
	up       *upload.Uploader
	replicas *replicas
	commands *commands
	unlock   func() error

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	fresh atomic.Bool // the vault has said or confirmed the list of assignments since the start

	mu          sync.Mutex
	started     bool
	closed      bool
	statusEvery time.Duration
	inventoryMu sync.Mutex // one inventory at a time
	vmmMu       sync.Mutex // one question to VMM at a time
}

// New returns an Agent; it does no I/O.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.every.defaults()
	if cfg.Host == nil {
		cfg.Host = managed.None{}
	}
	if cfg.newReplicator == nil {
		cfg.newReplicator = func(c capture.Config) (replicator, error) { return capture.New(c) }
	}
	return &Agent{cfg: cfg, log: cfg.Log, want: make(chan struct{}, 1), wantVMM: make(chan struct{}, 1), statusEvery: cfg.every.status}, nil
}

// Start locks the state directory, begins to replicate what is assigned, and
// calls the vault in the background; it does not wait for the vault. ctx bounds
// the start only. dr.KindPrecondition if the host is not registered, dr.KindConflict
// if another process holds the state directory.
func (a *Agent) Start(ctx context.Context) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.started || a.closed {
		return dr.Errorf(dr.KindPrecondition, "agent.Start", "the agent was started before")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	id, err := channel.Load(a.cfg.StateDir)
	if err != nil {
		return err
	}
	if err := state.Make(a.cfg.StateDir); err != nil {
		return err
	}
	if a.unlock, err = state.Lock(a.cfg.StateDir); err != nil {
		return err
	}
	a.ctx, a.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			a.cancel(err)
			err = errors.Join(err, a.unlock())
		}
	}()
	if len(a.cfg.Roles) == 0 {
		a.cfg.Roles = id.Registration().Roles
	}
	a.creds = channel.NewCredentials(a.cfg.StateDir, id)
	if a.client, err = id.Open(a.creds.Keypair, a.cfg.Version); err != nil {
		return err
	}
	if a.data, err = id.Transport(); err != nil {
		return err
	}
	limit := pace.NewLimiter(assignment.Rule(a.cfg.Bandwidth), nil)
	a.up, err = upload.New(upload.Config{Vault: a.client, Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: a.data}), Limit: limit,
		AheadDir: filepath.Join(a.cfg.StateDir, state.Ahead), Log: a.log})
	if err != nil {
		return err
	}
	turns, err := a.turns()
	if err != nil {
		return errors.Join(err, a.up.Close())
	}
	a.replicas = &replicas{dir: a.cfg.StateDir, make: a.cfg.newReplicator, up: a.up, commits: a.client, digests: a.client, log: a.log, restart: a.cfg.every.restart,
		limits: assignment.NewLimits(limit), groups: assignment.NewGroups(a.cfg.Host),
		base: capture.Config{Source: a.cfg.Host, SpoolLimit: a.cfg.SpoolLimit, Turns: turns}}
	if err := a.replicas.open(a.ctx, id.AgentID); err != nil {
		return errors.Join(err, a.up.Close())
	}
	a.commands = &commands{journal: journal.New(filepath.Join(a.cfg.StateDir, state.Journal)), reports: a.client, handlers: a.handlers(), log: a.log,
		ctx: a.ctx, active: map[string]context.CancelCauseFunc{}}
	if err := a.commands.journal.Prune(); err != nil {
		a.log.Warn("the journal was not cleaned up", "err", err)
	}
	a.started = true
	a.wantInventory()
	for _, loop := range []func(context.Context){a.pollLoop, a.statusLoop, a.inventoryLoop, a.watchLoop, a.certificateLoop, a.sweepLoop, a.vmmLoop, a.warmLoop} {
		a.wg.Go(func() { loop(a.ctx) })
	}
	a.log.Info("agent started", "agent", id.AgentID, "vault", id.VaultURL, "site", id.FabricName)
	return nil
}

// turns is what VMs of this host take turns at.
func (a *Agent) turns() (*pace.Turns, error) {
	t := &pace.Turns{}
	for _, x := range []struct {
		kind pace.Kind
		n    int
	}{{pace.Cut, a.cfg.Cuts}, {pace.Transfer, a.cfg.Transfers}, {pace.Scan, a.cfg.Scans}} {
		if x.n == 0 {
			continue
		}
		if err := t.SetSlots(x.kind, x.n); err != nil {
			return nil, dr.Errorf(dr.KindInvalid, "agent.Start", "allow %d %s turns at once: %w", x.n, x.kind, err)
		}
	}
	return t, nil
}

// Close stops everything and waits. What was under way goes on after the next
// Start; recovery VMs and their servings are not touched. Idempotent.
func (a *Agent) Close() error {
	a.mu.Lock()
	if a.closed || !a.started {
		a.closed = true
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	a.mu.Unlock()
	a.cancel(dr.Errorf(dr.KindCanceled, "agent.Close", "the agent stops"))
	a.wg.Wait()
	a.commands.wg.Wait()
	a.replicas.wg.Wait()
	err := errors.Join(a.up.Close(), a.client.Close())
	a.data.CloseIdleConnections()
	return errors.Join(err, a.unlock())
}

// Status is the state of all replications, as it is told to the vault.
func (a *Agent) Status() []agentapi.ItemStatus {
	a.mu.Lock()
	started := a.started
	a.mu.Unlock()
	if !started {
		return nil
	}
	return a.replicas.status()
}

func (a *Agent) hasRole(r dr.AgentRole) bool { return slices.Contains(a.cfg.Roles, r) }

// backoff gives growing pauses, 1 s to 30 s, with jitter.
type backoff struct{ n int }

func (b *backoff) next() time.Duration {
	d := min(time.Second<<b.n, 30*time.Second)
	b.n = min(b.n+1, 5)
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// temporary reports whether the same call to the vault may succeed later.
func temporary(err error) bool {
	switch dr.KindOf(err) {
	case dr.KindUnavailable, dr.KindExhausted, dr.KindInternal, dr.KindUnauthenticated, dr.KindCanceled:
		return true
	}
	return false
}

// polling is the poll loop's memory.
type polling struct {
	wait  time.Duration // that the next poll asks for
	good  int           // polls in a row that were held to their end
	down  bool
	since time.Time
	pause backoff
}

// waits bound the long-poll where something on the way cuts quiet connections.
const (
	minPollWait = 2 * time.Second
	regain      = 20 // polls in a row before a longer wait is tried
)

// adapt learns how long a quiet request may last here.
func (c *polling) adapt(held time.Duration, broken bool, longest time.Duration) {
	switch {
	case broken && held > minPollWait && held < c.wait+channel.PollGrace:
		// It was held and then cut: by something that does not like silence.
		c.wait, c.good = max(min(held, c.wait)*2/3, minPollWait), 0
	case broken:
	case held >= c.wait*9/10:
		if c.good++; c.good >= regain && c.wait < longest {
			c.wait, c.good = min(c.wait*5/4, longest), 0
		}
	}
}

// pollLoop asks the vault for work. It is the agent's heartbeat.
func (a *Agent) pollLoop(ctx context.Context) {
	ch := polling{wait: a.cfg.every.pollWait}
	var skewed time.Time
	for ctx.Err() == nil {
		began := time.Now()
		req := agentapi.PollRequest{Have: a.commands.have(), Assignments: a.replicas.known(), WaitSeconds: int(ch.wait / time.Second)}
		res, err := a.client.Poll(ctx, req)
		if ctx.Err() != nil {
			return
		}
		held := time.Since(began)
		ch.adapt(held, dr.CodeOf(err) == dr.CodeVaultUnreachable, a.cfg.every.pollWait)
		if err != nil {
			if pause := a.pollFailed(&ch, err); sleep(ctx, pause) != nil {
				return
			}
			continue
		}
		if ch.down {
			a.log.Info("the vault answers again", "after", time.Since(ch.since).Round(time.Second))
			a.wantInventory()
			wake(a.wantVMM)
		}
		ch.down, ch.pause = false, backoff{}
		if skew := time.Until(res.ServerTime) + held/2; !res.ServerTime.IsZero() && (skew > time.Minute || skew < -time.Minute) && time.Since(skewed) > time.Hour {
			skewed = time.Now()
			a.log.Warn("the clocks of this host and the vault differ", "by", skew.Round(time.Second))
		}
		news := a.work(res)
		if held < time.Second && !news && len(res.Cancels) == 0 && req.WaitSeconds > 0 {
			_ = sleep(ctx, time.Second) // a vault that stops answers at once
		}
	}
}

// pollFailed says how long to wait after a failed poll, and logs it the first time.
func (a *Agent) pollFailed(ch *polling, err error) time.Duration {
	if !ch.down {
		ch.down, ch.since = true, time.Now()
		a.log.Warn("the vault can't be asked for work; replication goes on", "err", err, "hint", dr.HintOf(err))
	}
	pause := ch.pause.next()
	if dr.CodeOf(err) == dr.CodeAgentRevoked {
		return max(pause, time.Minute)
	}
	return pause
}

// work takes over what a poll brought. False if it was nothing.
func (a *Agent) work(res agentapi.PollResponse) bool {
	news := len(res.Commands) > 0 || res.WantInventory
	// Assignments first: commands refer to them.
	if res.Assignments != nil && res.AssignmentsVersion != a.replicas.known() {
		a.replicas.apply(res.AssignmentsVersion, res.Assignments)
		news = true
	}
	if res.AssignmentsVersion == a.replicas.known() {
		a.fresh.Store(true)
	}
	for _, id := range res.Cancels {
		a.commands.cancel(id)
	}
	for _, c := range res.Commands {
		if !slices.Contains(res.Cancels, c.ID) {
			a.commands.accept(c)
		}
	}
	if res.WantInventory {
		a.wantInventory()
		wake(a.wantVMM)
	}
	if res.StatusSeconds > 0 {
		a.mu.Lock()
		a.statusEvery = time.Duration(res.StatusSeconds) * time.Second
		a.mu.Unlock()
	}
	return news
}

// certificateLoop renews the agent's certificate in time.
func (a *Agent) certificateLoop(ctx context.Context) {
	for ctx.Err() == nil {
		id := a.creds.Get()
		if time.Now().After(id.Due()) {
			err := a.creds.Renew(ctx, a.client)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				a.log.Info("certificate renewed", "until", a.creds.Get().NotAfter)
			case time.Now().After(id.NotAfter):
				a.log.Error("the agent's certificate has expired: register the host again with a new registration key", "since", id.NotAfter, "err", err)
			default:
				a.log.Warn("the certificate was not renewed; it is tried again", "until", id.NotAfter, "err", err)
			}
		}
		if sleep(ctx, a.cfg.every.certificate) != nil {
			return
		}
	}
}
