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
//   - Secrets (registration keys, tokens, passwords, data keys, signed URLs) are
//     stored as hashes or sealed, and never logged.
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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/authn"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/objstore"
	"holdfast/internal/sqldb"
	"holdfast/internal/store"
	"holdfast/internal/vaultdb"
)

// Tickets issues read tickets for everything under a prefix of the bucket
// (httpstore.Signer does).
type Tickets interface {
	Ticket(prefix string, expires time.Time) (string, error)
}

// Config configures a vault. DB, Bucket, VaultKey, Identity and PublicURL are
// required, Signer and Tickets for anything that agents do with data.
type Config struct {
	DB       *sqldb.DB // opened and closed by the caller
	Bucket   objstore.Bucket
	Signer   objstore.Signer // create-only upload URLs
	Tickets  Tickets         // read tickets for recovery agents
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

// Vault is the control plane. Make it with New, run it with Start, end it with Close.
type Vault struct {
	cfg    Config
	db     *sqldb.DB
	log    *slog.Logger
	engine *job.Engine
	store  *store.Store
	keys   *store.Keyring
	hasher *authn.Hasher
	kinds  map[string]scenario

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	ca        *authn.CA
	cert      *tls.Certificate
	bootstrap *Bootstrap
	began     time.Time           // when Start ended
	inventory map[dr.AgentID]bool // sent one since this process started
	full      time.Time           // last complete reconciliation
}

// New checks the configuration and makes a vault; it does no I/O.
func New(cfg Config) (*Vault, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	keys := store.NewKeyring(cfg.Bucket, cfg.VaultKey)
	v := &Vault{cfg: cfg, db: cfg.DB, log: cfg.Log, keys: keys, store: store.New(store.Config{Bucket: cfg.Bucket, Keys: keys}),
		hasher: authn.NewHasher(2), inventory: map[dr.AgentID]bool{}}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.kinds = v.scenarios()
	ec := cfg.Engine
	ec.DB, ec.Log, ec.Handlers, ec.OnFinal = cfg.DB, cfg.Log, v.handlers(), v.finals()
	engine, err := job.New(ec)
	if err != nil {
		return nil, err
	}
	v.engine = engine
	return v, nil
}

// Start migrates the database, loads or makes the vault's authority, claims
// the store, and begins to run jobs and the vault's loops. ctx bounds the
// start only.
func (v *Vault) Start(ctx context.Context) error {
	if err := job.Migrate(ctx, v.db); err != nil {
		return err
	}
	if err := vaultdb.Migrate(ctx, v.db); err != nil {
		return outward(err)
	}
	if err := v.loadIdentity(ctx); err != nil {
		return err
	}
	if err := v.claimStore(ctx); err != nil {
		return err
	}
	if err := v.bootstrapAccess(ctx); err != nil {
		return err
	}
	if err := v.engine.Start(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	v.began = v.now()
	v.mu.Unlock()
	v.wg.Go(func() { v.every("reconcile recovery points", v.cfg.ReconcileEvery, v.reconcileAll) })
	v.wg.Go(func() { v.every("assess health", v.cfg.HealthEvery, v.assessAll) })
	return nil
}

// Close ends the loops and the running steps and waits for them. Jobs go on
// when a vault starts again. Idempotent. The database stays open.
func (v *Vault) Close() error {
	v.cancel()
	v.wg.Wait()
	return v.engine.Close()
}

// every runs f at once and then after each interval, until Close.
func (v *Vault) every(what string, d time.Duration, f func(context.Context) error) {
	for {
		ctx, cancel := context.WithTimeout(v.ctx, max(d, time.Minute))
		err := f(ctx)
		cancel()
		if err != nil && v.ctx.Err() == nil {
			v.log.Warn(what+" failed, trying again later", "err", err)
		}
		select {
		case <-v.ctx.Done():
			return
		case <-time.After(d):
		}
	}
}

// Names of the vault's own settings. Those of API callers have a prefix.
const (
	settingCA      = "ca"
	settingVaultID = "vaultId"
	settingUser    = "user/"
)

func (v *Vault) sealKey() ([32]byte, error) { return v.DeriveKey("database secrets") }

// DeriveKey derives a key for a purpose of the program around the vault, e.g.
// the key of the store's signer. It is the same in every replica and at every start.
func (v *Vault) DeriveKey(purpose string) ([32]byte, error) {
	text, err := v.cfg.VaultKey.Text()
	if err != nil {
		return [32]byte{}, err
	}
	return authn.DeriveKey(text, purpose)
}

// loadIdentity loads the certificate authority, making it at the first start.
// It is sealed with a key derived from the vault's private key.
func (v *Vault) loadIdentity(ctx context.Context) error {
	key, err := v.sealKey()
	if err != nil {
		return err
	}
	sealed, err := vaultdb.Setting(ctx, v.db.SQL(), settingCA)
	if err != nil {
		return outward(err)
	}
	if sealed == "" {
		ca, err := authn.NewCA("Holdfast vault "+v.cfg.Identity.Name, v.now())
		if err != nil {
			return err
		}
		text, err := ca.Text()
		if err != nil {
			return err
		}
		if sealed, err = authn.Seal(key, settingCA, text); err != nil {
			return err
		}
		// Of replicas that start together, all take what the first one stored.
		err = v.tx(ctx, func(tx *sql.Tx) error {
			sealed, err = vaultdb.InitSetting(ctx, tx, settingCA, sealed)
			return err
		})
		if err != nil {
			return err
		}
	}
	text, err := authn.Unseal(key, settingCA, sealed)
	if err != nil {
		return err
	}
	ca, err := authn.ParseCA(text)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.ca = ca
	v.mu.Unlock()
	return nil
}

// claimStore writes vault.json, or checks that the store is this vault's.
func (v *Vault) claimStore(ctx context.Context) error {
	var id string
	err := v.tx(ctx, func(tx *sql.Tx) (err error) {
		id, err = vaultdb.InitSetting(ctx, tx, settingVaultID, uuid.NewString())
		return err
	})
	if err != nil {
		return err
	}
	// A store that outlived the database belongs to the holder of the private key.
	have, err := v.store.VaultInfo(ctx)
	switch {
	case err == nil && have.KeyID == v.cfg.VaultKey.KeyID():
		if have.VaultID != id {
			v.log.Warn("the store was made by an earlier database of this vault", "storeVault", have.VaultID, "vault", id)
		}
		return nil
	case err == nil:
		return dr.New(dr.KindConflict, dr.CodeKeyMismatch, "vault.Start", "the store belongs to vault %s with key %s, this vault has key %s",
			have.VaultID, have.KeyID, v.cfg.VaultKey.KeyID())
	case dr.KindOf(err) != dr.KindNotFound:
		return err
	}
	return store.InitVault(ctx, v.cfg.Bucket, cut.VaultInfo{VaultID: id, Name: v.cfg.Identity.Name,
		PublicKey: v.cfg.VaultKey.Public().Text(), Created: v.now(), Software: v.cfg.Version})
}

// Identity implements the API's access interface.
func (v *Vault) Identity() Identity { return v.cfg.Identity }

// CA returns the certificate of the vault's authority (PEM) and the SHA-256 of
// its public key (hex). Only after Start.
func (v *Vault) CA() (pem, pin string) {
	ca := v.authority()
	return ca.PEM(), ca.Pin()
}

func (v *Vault) authority() *authn.CA {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ca
}

// TLSConfig returns the server's side of TLS: a certificate of the vault's
// authority, renewed by itself, and client certificates asked for and checked
// against that authority when given. Only after Start.
func (v *Vault) TLSConfig() (*tls.Config, error) {
	if _, err := v.serverCert(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  v.authority().Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return v.serverCert()
		},
	}, nil
}

func (v *Vault) serverCert() (*tls.Certificate, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ca == nil {
		return nil, dr.Errorf(dr.KindPrecondition, "vault.TLSConfig", "the vault has not been started")
	}
	now := v.now()
	if v.cert != nil && now.Before(v.cert.Leaf.NotAfter.Add(-authn.ServerLifetime/3)) {
		return v.cert, nil
	}
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, v.cfg.Hosts...)
	if u, err := url.Parse(v.cfg.PublicURL); err == nil && u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1" {
		hosts = append(hosts, u.Hostname())
	}
	if name, err := os.Hostname(); err == nil && net.ParseIP(name) == nil {
		hosts = append(hosts, name)
	}
	cert, err := v.ca.IssueServer(hosts, now)
	if err != nil {
		return nil, err
	}
	v.cert = cert
	return cert, nil
}

func (v *Vault) now() time.Time { return v.cfg.Clock().UTC().Truncate(time.Microsecond) }

// tx runs fn in a transaction, again when the database asks for it (deadlock,
// serialization): fn must be repeatable. Errors of the database come out as
// dr.KindUnavailable.
func (v *Vault) tx(ctx context.Context, fn func(*sql.Tx) error) error {
	for try := 0; ; try++ {
		err := v.db.Tx(ctx, fn)
		var infra *sqldb.InfraError
		if err == nil || !errors.As(err, &infra) || infra.Unknown || try == 3 || ctx.Err() != nil {
			return outward(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20<<try) * time.Millisecond):
		}
	}
}

// outward gives errors of the database their kind.
func outward(err error) error {
	var known *dr.Error
	if err == nil || !errors.Is(err, sqldb.ErrInfrastructure) || errors.As(err, &known) {
		return err
	}
	return dr.Errorf(dr.KindUnavailable, "vault", "the vault's database did not answer: %w", err).
		WithHint("try again; if it lasts, look at the database's log and disk space")
}

// get passes a read's result on with its error made fit for callers.
func get[T any](x T, err error) (T, error) { return x, outward(err) }

func (v *Vault) q() sqldb.Querier { return v.db.SQL() }

func newID() string { return uuid.NewString() }

// ordered makes an id that sorts by time.
func ordered() string {
	if u, err := uuid.NewV7(); err == nil {
		return u.String()
	}
	return uuid.NewString()
}

// note appends to the event log in tx.
func (v *Vault) note(ctx context.Context, tx *sql.Tx, e vaultdb.Event, format string, args ...any) error {
	e.ID, e.At, e.Text = ordered(), v.now(), fmt.Sprintf(format, args...)
	v.db.NotifyTx(tx, topicChange, "event/"+string(e.Item))
	return vaultdb.AddEvent(ctx, tx, e)
}

// Topics of change notification.
const (
	topicAssign = "vault.assign" // key: agent id
	topicChange = "vault.change" // key: kind/id
)

// Change says that something changed: Kind is job, item, site, event.
type Change struct{ Kind, ID string }

// Subscribe returns changes until ctx ends or the vault closes; then the
// channel is closed. A slow reader loses some: it looks again now and then.
func (v *Vault) Subscribe(ctx context.Context) <-chan Change {
	out := make(chan Change, 256)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.ctx, cancel)
	l := v.db.Listen(topicChange)
	jobs := v.engine.Subscribe(ctx)
	send := func(kind, id string) {
		select {
		case out <- Change{kind, id}:
		default:
		}
	}
	v.wg.Go(func() {
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
					for i := range k {
						if k[i] == '/' {
							send(k[:i], k[i+1:])
							break
						}
					}
				}
			}
		}
	})
	return out
}

// Events returns the newest entries of the log, of one item unless id is "".
func (v *Vault) Events(ctx context.Context, id dr.ItemID, limit int) ([]vaultdb.Event, error) {
	return get(vaultdb.Events(ctx, v.q(), id, limit))
}
