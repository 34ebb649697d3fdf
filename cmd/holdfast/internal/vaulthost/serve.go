package vaulthost

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/agentapi"
	"holdfast/internal/agentgate"
	"holdfast/internal/armapi"
	"holdfast/internal/authn"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/portal"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault"
)

// The vault satisfies what the packages above it ask for.
var (
	_ armapi.Service     = (*vault.Vault)(nil)
	_ armapi.Screenshots = (*vault.Vault)(nil)
	_ portal.Vault       = (*vault.Vault)(nil)
)

// Limits of the HTTP server.
const (
	headerTimeout  = 10 * time.Second
	requestTimeout = 2 * time.Minute // reading or answering one request; not for objects and streams
	idleTimeout    = 2 * time.Minute
	drainTimeout   = 15 * time.Second // for requests that run when the vault is told to stop
	maxHeader      = 64 << 10
)

// vaultParts is a vault with what it stands on.
type vaultParts struct {
	dir    string
	cfg    *vaultConfig
	db     *sqldb.DB
	bucket storage.Bucket
	signer *httpstore.Signer // of read tickets, and of uploads where the store signs none itself
	vault  *vault.Vault
}

// loadVault opens the vault of a data directory; it is not started. given is
// where its key is, if not where the configuration says.
func (a *app) loadVault(ctx context.Context, dir string, given storage.KeyFlags, log *slog.Logger) (*vaultParts, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, console.Usage("--data: %v", err)
	}
	cfg, err := loadConfig(dir)
	if err != nil {
		return nil, err
	}
	key, err := a.loadKey(ctx, dir, cfg, given)
	if err != nil {
		return nil, err
	}
	return openVault(ctx, dir, cfg, key, log)
}

// loadKey opens the private key of a vault that is to run.
func (a *app) loadKey(ctx context.Context, dir string, cfg *vaultConfig, given storage.KeyFlags) (cut.VaultPrivateKey, error) {
	from := given
	if from.Source == "" {
		from.Source = cfg.keySource(dir)
	}
	from.From = cmp.Or(from.From, cfg.PassphraseFrom)
	key, err := from.Load(ctx, a.Console)
	if err == nil || ctx.Err() != nil {
		return key, err
	}
	hint := dr.HintOf(err)
	switch {
	case strings.HasPrefix(from.Source, "exec:"):
		err = dr.New(dr.KindUnsupported, "", "vault.open", "a vault can't run with a key that another program keeps: its own secrets in the database and "+
			"the signatures of its addresses are derived from the private key itself")
		hint = "Let the program unwrap the text of the key to a credential of the service, and use credential:NAME. exec: works for 'recover', 'store' and 'vault key'."
	case dr.KindOf(err) == dr.KindNotFound:
		hint = "Copy the vault's private key back to " + from.Source + ", or say where it is with --key."
	}
	return key, &dr.Error{Kind: dr.KindOf(err), Code: dr.CodeOf(err), Op: "vault.open", Message: "the vault can't start without its private key", Err: err, Hint: hint}
}

// keySource is where the configuration says that the key is.
func (c *vaultConfig) keySource(dir string) string {
	switch {
	case c.Key == "":
		return filepath.Join(dir, keyName)
	case strings.HasPrefix(c.Key, "credential:"), strings.HasPrefix(c.Key, "exec:"), filepath.IsAbs(c.Key):
		return c.Key
	}
	return filepath.Join(dir, c.Key)
}

func openVault(ctx context.Context, dir string, cfg *vaultConfig, key cut.VaultPrivateKey, log *slog.Logger) (_ *vaultParts, err error) {
	p := &vaultParts{dir: dir, cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	at, err := cfg.store(dir)
	if err != nil {
		return nil, err
	}
	if p.bucket, err = at.Open(ctx, storage.Write); err != nil {
		return nil, &dr.Error{Kind: dr.KindOf(err), Code: dr.CodeOf(err), Op: "vault.open", Message: err.Error(), Hint: dr.HintOf(err) + " The address is in " + configName + "."}
	}
	if p.db, err = openDatabase(ctx, dir, cfg, log); err != nil {
		return nil, err
	}
	text, err := key.Text()
	if err != nil {
		return nil, err
	}
	signing, err := authn.DeriveKey(text, "store signer")
	if err != nil {
		return nil, err
	}
	if p.signer, err = httpstore.NewSigner(httpstore.SignerConfig{BaseURL: cfg.PublicURL, Key: signing[:]}); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "vault.open", "%w", err)
	}
	var hosts []string
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() {
		hosts = append(hosts, host)
	}
	uploads, ok := p.bucket.(objstore.Signer) // hosts send to the store itself
	if !ok {
		uploads = p.signer // hosts send to this vault
	}
	p.vault, err = vault.New(vault.Config{DB: p.db, Bucket: p.bucket, Signer: uploads, Tickets: p.signer, VaultKey: key, Identity: cfg.identity(), PublicURL: cfg.PublicURL,
		Hosts: hosts, Log: log, Version: console.Version()})
	return p, err
}

func openDatabase(ctx context.Context, dir string, cfg *vaultConfig, log *slog.Logger) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, sqldb.Config{URL: cfg.path(dir, cfg.Database), Log: log})
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "vault.open", "open the database: %w", err).
			WithHint("See whether another process (a running vault) uses it, or its server is down.")
	}
	return db, nil
}

// Close ends the vault and closes what it stands on. Idempotent.
func (p *vaultParts) Close() error {
	var errs []error
	for _, c := range []func() error{
		func() error { return closeIf(p.vault != nil, p.vault) }, func() error { return closeIf(p.db != nil, p.db) }, func() error { return closeIf(p.bucket != nil, p.bucket) },
	} {
		errs = append(errs, c())
	}
	p.vault, p.db, p.bucket = nil, nil, nil
	return errors.Join(errs...)
}

func closeIf(open bool, c io.Closer) error {
	if !open {
		return nil
	}
	return c.Close()
}

func (a *app) vaultServeCommand() *cobra.Command {
	var data string
	var key storage.KeyFlags
	var logs console.LogFlags
	c := &cobra.Command{
		Use: "serve --data DIR", Short: "Run the vault until SIGTERM or Ctrl-C", Args: cobra.NoArgs,
		Long: "Run the vault: the REST API, the portal, the agents' channel and the store's signed URLs, all on\n" +
			"one HTTPS address. Also /healthz, and /metrics for Prometheus with a bearer token.",
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logs.Open(a.Err)
			if err != nil {
				return err
			}
			return a.vaultServe(c.Context(), data, key, log)
		},
	}
	c.Flags().StringVar(&data, "data", "", "data directory of the vault")
	key.Add(c, "the vault's private key, instead of what config.json says")
	logs.Add(c)
	console.Required(c, "data")
	return c
}

func (a *app) vaultServe(ctx context.Context, data string, key storage.KeyFlags, log *slog.Logger) (err error) {
	p, err := a.loadVault(ctx, data, key, log)
	if err != nil {
		return err
	}
	defer console.Closing(&err, p.Close)
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", p.cfg.Listen)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "vault.serve", "listen on %s: %w", p.cfg.Listen, err).
			WithHint("See which process has the address, or change \"listen\" in %s.", filepath.Join(p.dir, configName))
	}
	defer ln.Close() // the server closes it too
	if err := p.vault.Start(ctx); err != nil {
		return err
	}
	tls, err := p.vault.TLSConfig()
	if err != nil {
		return err
	}
	stopping, stop := context.WithCancel(context.Background())
	defer stop()
	h, err := newFront(p, stopping, log)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, TLSConfig: tls, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.With("from", "http").Handler(), slog.LevelInfo)}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }() // ends with Shutdown or Close below
	log.Info("the vault is serving", "portal", p.cfg.PublicURL+"/portal", "listen", ln.Addr().String(), "version", console.Version())
	select {
	case err := <-served:
		return dr.Errorf(dr.KindUnavailable, "vault.serve", "serve: %w", err)
	case <-ctx.Done():
	}
	log.Info("the vault is stopping")
	stop() // long polls and streams end now
	dctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(dctx); err != nil {
		log.Warn("requests were cut off", "err", err)
		_ = srv.Close() // what is left is cut off
	}
	<-served
	return nil
}

// front sends each request to the part of the vault that it is for.
type front struct {
	p       *vaultParts
	stop    context.Context
	gate    http.Handler
	api     *armapi.Server
	store   http.Handler
	portal  http.Handler
	metrics http.Handler
}

func newFront(p *vaultParts, stop context.Context, log *slog.Logger) (_ *front, err error) {
	f := &front{p: p, stop: stop, metrics: newMetrics(p.vault, log)}
	if f.gate, err = agentgate.New(agentgate.Config{Vault: p.vault, Log: log}); err != nil {
		return nil, err
	}
	if f.api, err = armapi.New(armapi.Config{Service: p.vault, PublicURL: p.cfg.PublicURL, Log: log, Version: console.Version()}); err != nil {
		return nil, err
	}
	if f.store, err = httpstore.NewHandler(httpstore.HandlerConfig{Bucket: p.bucket, Signer: p.signer, Log: log}); err != nil {
		return nil, dr.Errorf(dr.KindInternal, "vault.serve", "%w", err)
	}
	if f.portal, err = portal.New(portal.Config{Vault: p.vault, Log: log}); err != nil {
		return nil, dr.Errorf(dr.KindInternal, "vault.serve", "%w", err)
	}
	return f, nil
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const stream = "/portal/events"
	h, path := f.portal, r.URL.Path
	switch {
	case strings.HasPrefix(path, "/agent/v1/"):
		h = f.gate
	case strings.HasPrefix(path, "/store/v1/"):
		f.store.ServeHTTP(w, r) // watches over its transfers itself
		return
	case path == "/healthz":
		h = http.HandlerFunc(f.health)
	case path == "/metrics":
		h = f.metrics
	case f.api.Match(path):
		h = f.api
	}
	ctl, end := http.NewResponseController(w), time.Now().Add(requestTimeout)
	_ = ctl.SetReadDeadline(end) // what does not support it has no connection that could hang
	if path != stream {
		_ = ctl.SetWriteDeadline(end)
	}
	if path == stream || path == agentapi.PathPoll {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(f.stop, cancel)()
		r = r.WithContext(ctx)
	}
	h.ServeHTTP(w, r)
}

// health answers load balancers: 200 if the database answers.
func (f *front) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if f.stop.Err() != nil || f.p.db.SQL().PingContext(ctx) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "unavailable\n") // nobody to tell
		return
	}
	_, _ = io.WriteString(w, "ok\n") // nobody to tell
}
