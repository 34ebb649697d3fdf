// Package vault is the control plane: it knows the sites, their agents and VMs,
// the policies and the protected items, issues the generations under which
// agents write, lists recovery points, and carries out failovers as jobs.
//
// It promises:
//
//   - State changes together with the job that causes it, in one transaction:
//     a vault that is killed between any two steps goes on where it was.
//   - At most one generation of a machine may write at any time. A takeover
//     first closes the old generation in the database (no more upload is
//     authorised), then creates the new generation's object in the store, and
//     only then starts a VM or hands the generation to an agent.
//   - The catalogue of recovery points is a cache of the store: what was
//     committed while the vault was down, or lost with its database, appears
//     again by itself.
//   - A failover that fails or is cancelled leaves the item as it was before,
//     with replication going on.
//   - What somebody or something changes about a running replication (disks, host,
//     a reinstalled agent, a moved store) keeps its history: the next cut goes on
//     from the last good one.
//   - Retention is done in the background by one vault at a time; what is named,
//     held or being read is kept.
//   - Secrets (registration keys, tokens, passwords, data keys, signed URLs) are
//     stored as hashes or sealed, and never logged.
//
// The parts: site (sites, agents, policies), replica (generations, uploads,
// catalogue, digests), replication (pauses, resynchronizations, status,
// statistics), points (retention's view, names, alarms), group (consistency
// groups), network (networks and their mappings, VMM), shape (disks, moves), upkeep (maintenance, scrubs), assign (what agents
// are told), health, work (jobs), access, identity and state.
//
// Methods for the API use the nouns of package dr; methods for agents (Enroll,
// Poll, Report, …) use the messages of package agentapi, whose ids and rules
// they implement. All methods are safe for concurrent use, also by several
// vault processes on one PostgreSQL database.
package vault

import (
	"context"
	"crypto/tls"
	"database/sql"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/objstore"
	"holdfast/internal/sqldb"
	"holdfast/internal/store"
	"holdfast/internal/vault/access"
	"holdfast/internal/vault/group"
	"holdfast/internal/vault/identity"
	"holdfast/internal/vault/network"
	"holdfast/internal/vault/points"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/replication"
	"holdfast/internal/vault/shape"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/upkeep"
	"holdfast/internal/vault/warm"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// Config configures a vault. DB, Bucket, VaultKey, Identity and PublicURL are
// required, Signer and Tickets for anything that agents do with data.
type Config struct {
	DB       *sqldb.DB // opened and closed by the caller
	Bucket   objstore.Bucket
	Signer   objstore.Signer // create-only upload URLs
	Tickets  replica.Tickets // read tickets for recovery agents
	StoreURL string          // base URL under which tickets are honoured; empty = PublicURL

	VaultKey  cut.VaultPrivateKey // opens every replica, and seals the vault's own secrets in the database
	Identity  Identity
	PublicURL string   // https URL under which agents and people reach the vault
	Hosts     []string // further names and addresses for the server's certificate

	Engine         job.Config    // DB, Handlers, OnFinal and Log are set by the vault
	PollWait       time.Duration // longest long-poll; 0 = 25 s. An agent is disconnected after three of them
	ReconcileEvery time.Duration // 0 = 5 min
	HealthEvery    time.Duration // 0 = 15 s
	StatusEvery    time.Duration // how often agents send status; 0 = 10 s
	VerifyTimeout  time.Duration // how long a booted VM may take for a sign of life; 0 = 3 min
	ShutdownWait   time.Duration // how long a guest may take to shut down; 0 = 10 min
	DrainWait      time.Duration // how long an unplanned failover waits for the source's last changes; 0 = 10 min
	UpkeepEvery    time.Duration // how often is looked for due maintenance and scrubs; 0 = 30 s, below 0 = never
	ScrubRate      int64         // bytes a second that scrubs read; 0 = 64 MiB, below 0 = unlimited
	Grace          time.Duration // how long unreachable objects stay in the store; 0 = 24 h
	LeftoverGrace  time.Duration // the same for what was never part of a history; 0 = 7 days
	Clock          func() time.Time
	Log            *slog.Logger
	Version        string
}

// Validate reports what is missing.
func (c Config) Validate() error {
	const op = "vault.New"
	switch u, err := url.Parse(c.PublicURL); {
	case c.DB == nil || c.Bucket == nil || c.VaultKey.IsZero():
		return dr.Errorf(dr.KindInvalid, op, "the vault needs a database, a bucket and its private key")
	case c.Identity.Name == "" || c.Identity.SubscriptionID == "" || c.Identity.ResourceGroup == "":
		return dr.Errorf(dr.KindInvalid, op, "the vault needs a name, a subscription id and a resource group")
	case err != nil || u.Scheme != "https" || u.Host == "":
		return dr.Errorf(dr.KindInvalid, op, "the public URL %q is not an https URL", c.PublicURL)
	}
	return nil
}

func (c *Config) defaults() {
	for _, x := range []struct {
		d *time.Duration
		v time.Duration
	}{
		{&c.PollWait, 25 * time.Second}, {&c.ReconcileEvery, 5 * time.Minute}, {&c.HealthEvery, 15 * time.Second},
		{&c.StatusEvery, 10 * time.Second}, {&c.VerifyTimeout, 3 * time.Minute}, {&c.ShutdownWait, 10 * time.Minute}, {&c.DrainWait, 10 * time.Minute},
	} {
		if *x.d <= 0 {
			*x.d = x.v
		}
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.StoreURL == "" {
		c.StoreURL = c.PublicURL
	}
	if c.Engine.Owner == "" {
		if c.Engine.Owner, _ = os.Hostname(); c.Engine.Owner == "" {
			c.Engine.Owner = "vault"
		}
	}
}

// core is what all operations on items work with.
type core struct {
	*site.Sites
	*site.Profiles
	*replica.Replicas
	*replication.Control
	*points.Catalogue
	*group.Registry
	*shape.Watcher
	*network.Directory
	*upkeep.Keeper
	*work.Board
	Warmth *warm.Keeper // warm replicas

	cfg Config
	st  *state.State
	ctx context.Context // ends with Close
}

// The vault's operations by noun; each adds methods to core.
type (
	items      struct{ *core } // protected items, for the API
	failovers  struct{ *core } // failovers, for the API
	channel    struct{ *core } // what agents call
	protection struct{ *core } // steps and ends of the jobs that protect
	recovery   struct{ *core } // steps of the jobs that fail over and back
	endings    struct{ *core } // ends of the jobs that fail over and back
)

// Vault is the control plane. Make it with New, run it with Start, end it with
// Close. Its parts each own a noun; what they have in common is in package state.
type Vault struct {
	*core
	*access.Access
	items
	failovers
	channel

	ident  *identity.Identity
	cancel context.CancelFunc
	mu     sync.Mutex // orders the begin of goroutines and Close
	wg     sync.WaitGroup
}

// New checks the configuration and makes a vault; it does no I/O.
func New(cfg Config) (*Vault, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	st := &state.State{DB: cfg.DB, Clock: cfg.Clock, PollWait: cfg.PollWait, Log: cfg.Log}
	c := &core{cfg: cfg, st: st, Catalogue: points.New(st), Registry: group.New(st)}
	c.Control = replication.New(st, func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, why string) error {
		return c.Watcher.Reopen(ctx, tx, it, why)
	})
	c.Replicas = replica.New(replica.Config{State: st, Bucket: cfg.Bucket, Signer: cfg.Signer, Tickets: cfg.Tickets, StoreURL: cfg.StoreURL, Key: cfg.VaultKey,
		Listed: c.listed, OutOfSequence: c.outOfSequence})
	v := &Vault{core: c, items: items{c}, failovers: failovers{c}, channel: channel{c}, Access: access.New(st),
		ident: identity.New(st, cfg.VaultKey, cfg.Identity.Name, cfg.PublicURL, cfg.Hosts)}
	c.ctx, v.cancel = context.WithCancel(context.Background())
	var err error
	if c.Board, err = work.New(st, cfg.Engine, v.scenarios(), v.finals()); err != nil {
		return nil, err
	}
	c.Sites = site.New(st, c.Board, v.ident.Authority, cfg.PublicURL)
	c.Profiles = site.NewProfiles(c.Sites)
	c.Watcher = shape.New(st, c.Board)
	c.Warmth = warm.New(st, c.Replicas.Lease)
	c.Directory = network.New(st, c.Board, c.Sites)
	c.Keeper = upkeep.New(upkeep.Config{State: st, Jobs: c.Board, Bucket: cfg.Bucket, Store: c.Replicas.Reader(), Keys: c.Replicas.Keyring(), Compactor: c.compactor,
		Software: cfg.Version, Want: c.Control.Want, Reconcile: c.Replicas.Reconcile, Tick: cfg.UpkeepEvery, ScrubRate: cfg.ScrubRate,
		Grace: cfg.Grace, LeftoverGrace: cfg.LeftoverGrace,
		Rules: func(ctx context.Context, it vaultdb.Item) (compact.Rules, error) {
			return c.Catalogue.Rules(ctx, st.Q(), it)
		}})
	return v, nil
}

// listed is what happens with every point that comes on the catalogue.
func (c *core) listed(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, p store.CutInfo, announced bool) error {
	if err := c.Control.Committed(ctx, tx, it, p, announced); err != nil {
		return err
	}
	return c.Catalogue.Listed(ctx, tx, it, p)
}

// outOfSequence deals with a writer that goes on from another history than the
// store's: it gets a new generation, whose base is the last good cut. A writer
// that makes nothing of a new generation gets the next one after ten minutes only.
func (c *core) outOfSequence(ctx context.Context, it vaultdb.Item, what error) error {
	if err := c.Control.Want(ctx, it.ID, vaultdb.Want{Code: dr.CodeLogSequence, Text: state.Clip(what.Error())}); err != nil {
		return err
	}
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, it.ID)
		if err != nil {
			return err
		}
		gens, err := vaultdb.Generations(ctx, tx, it.Machine)
		if err != nil {
			return err
		}
		last, err := vaultdb.LatestPoint(ctx, tx, it.Machine, "")
		if err != nil && dr.CodeOf(err) != dr.CodeNoRecoveryPoint {
			return err
		}
		if g, ok := replica.Current(it, gens); !ok || last.Gen != g.Gen && c.st.Now().Sub(g.Created) < 10*time.Minute {
			return nil
		}
		return c.Watcher.Reopen(ctx, tx, &it, "its cuts do not continue the history")
	})
}

// compactor names this vault in the store's plans.
func (c *core) compactor(ctx context.Context) (string, error) {
	id, err := vaultdb.Setting(ctx, c.st.Q(), "vaultId")
	return id + "/" + c.cfg.Engine.Owner, state.Outward(err)
}

// leaseEvery is how often leases are looked after; they last far longer.
const leaseEvery = 30 * time.Second

// readers renews the leases of those who read the store, and closes views that nobody uses.
func (v *Vault) readers(ctx context.Context) error {
	v.Replicas.CloseIdle()
	return v.Replicas.RenewLeases(ctx)
}

// Start migrates the database, loads or makes the vault's authority, claims
// the store, and begins to run jobs and the vault's loops. ctx bounds the
// start only.
func (v *Vault) Start(ctx context.Context) error {
	if err := job.Migrate(ctx, v.st.DB); err != nil {
		return err
	}
	if err := vaultdb.Migrate(ctx, v.st.DB); err != nil {
		return state.Outward(err)
	}
	if err := v.ident.Load(ctx); err != nil {
		return err
	}
	if err := v.Claim(ctx, v.cfg.Identity.Name, v.cfg.Version); err != nil {
		return err
	}
	if err := v.Access.Open(ctx); err != nil {
		return err
	}
	if err := v.Engine.Start(ctx); err != nil {
		return err
	}
	v.st.Began()
	v.spawn(func() { v.every("reconcile recovery points", v.cfg.ReconcileEvery, v.ReconcileAll) })
	v.spawn(func() { v.every("assess health", v.cfg.HealthEvery, v.assessAll) })
	v.spawn(func() { v.every("renew leases", leaseEvery, v.readers) })
	if v.cfg.UpkeepEvery >= 0 {
		v.spawn(func() { v.Keeper.Run(v.ctx) })
	}
	return nil
}

// Close ends the loops and the running steps and waits for them. Jobs go on
// when a vault starts again. Idempotent. The database stays open.
func (v *Vault) Close() error {
	v.mu.Lock()
	v.cancel()
	v.mu.Unlock()
	v.wg.Wait()
	v.Replicas.Close()
	return v.Engine.Close()
}

// spawn runs f until it returns; false, and f does not run, after Close.
func (v *Vault) spawn(f func()) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ctx.Err() != nil {
		return false
	}
	v.wg.Go(f)
	return true
}

// every runs f at once and then after each interval, until Close.
func (v *Vault) every(what string, d time.Duration, f func(context.Context) error) {
	for {
		ctx, cancel := context.WithTimeout(v.ctx, max(d, time.Minute))
		err := f(ctx)
		cancel()
		if err != nil && v.ctx.Err() == nil {
			v.st.Log.Warn(what+" failed, trying again later", "err", err)
		}
		select {
		case <-v.ctx.Done():
			return
		case <-time.After(d):
		}
	}
}

// Identity says which vault this is.
func (v *Vault) Identity() Identity { return v.cfg.Identity }

// CA returns the certificate of the vault's authority (PEM) and the SHA-256 of
// its public key (hex). Only after Start.
func (v *Vault) CA() (pem, pin string) {
	ca := v.ident.Authority()
	return ca.PEM(), ca.Pin()
}

// TLSConfig returns the server's side of TLS, see identity.Identity. Only after Start.
func (v *Vault) TLSConfig() (*tls.Config, error) { return v.ident.TLSConfig() }

// DeriveKey derives a key for a purpose of the program around the vault, e.g.
// the key of the store's signer. It is the same in every replica and at every start.
func (v *Vault) DeriveKey(purpose string) ([32]byte, error) { return v.ident.DeriveKey(purpose) }

// Connected reports whether an agent has been heard of within three long polls.
func (v *Vault) Connected(p dr.Provider) bool { return v.st.Connected(p) }

// Setting returns a named document of an API caller; "" if there is none.
func (v *Vault) Setting(ctx context.Context, name string) (string, error) {
	return state.Get(vaultdb.Setting(ctx, v.st.Q(), settingUser+name))
}

// settingUser keeps the documents of API callers apart from the vault's own settings.
const settingUser = "user/"

// SetSetting stores a named document of an API caller, at most 256 KiB.
func (v *Vault) SetSetting(ctx context.Context, name, value string) error {
	if name == "" || len(name) > 200 || len(value) > 256<<10 {
		return dr.Errorf(dr.KindInvalid, "vault.SetSetting", "the setting's name or value is empty or too long")
	}
	return v.st.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.SetSetting(ctx, tx, settingUser+name, value) })
}

// Change says that something changed: Kind is job, item, site, event.
type Change struct{ Kind, ID string }

// Subscribe returns changes until ctx ends or the vault closes; then the
// channel is closed. A slow reader loses some: it looks again now and then.
func (v *Vault) Subscribe(ctx context.Context) <-chan Change {
	out := make(chan Change, 256)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.ctx, cancel)
	l := v.st.DB.Listen(state.TopicChange)
	jobs := v.Engine.Subscribe(ctx)
	send := func(kind, id string) {
		select {
		case out <- Change{kind, id}:
		default:
		}
	}
	started := v.spawn(func() {
		defer close(out)
		defer l.Close()
		defer stop()
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case id, ok := <-jobs:
				if !ok {
					return
				}
				send("job", id)
			case <-l.C():
				keys, all := l.Take()
				if all {
					send("item", "")
				}
				for _, k := range keys {
					if kind, id, ok := strings.Cut(k, "/"); ok {
						send(kind, id)
					}
				}
			}
		}
	})
	if !started {
		stop()
		cancel()
		l.Close()
		close(out)
	}
	return out
}

// Events returns the newest entries of the log, of one item unless id is "".
func (v *Vault) Events(ctx context.Context, id dr.ItemID, limit int) ([]vaultdb.Event, error) {
	return state.Get(vaultdb.Events(ctx, v.st.Q(), id, limit))
}
