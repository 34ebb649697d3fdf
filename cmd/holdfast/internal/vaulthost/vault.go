// Package vaulthost holds the commands of the vault's machine: making and
// running a vault, and the tools that read its store without any vault.
//
// It owns the vault's data directory and the wiring of the parts that a vault
// process is made of. It promises that 'vault init' never overwrites anything
// and can be repeated after an interruption, and that a vault that is told to
// stop lets requests that run come to their end.
package vaulthost

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/keytool"
	"holdfast/cmd/holdfast/internal/operate"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/keyfile"
	"holdfast/internal/store"
	"holdfast/internal/vault"
	"holdfast/internal/vault/access"
)

type app struct{ *console.Console }

// VaultCommand is 'holdfast vault'.
func VaultCommand(c *console.Console) *cobra.Command { return (&app{c}).vaultCommand() }

// Files of the data directory.
const (
	configName   = "config.json"
	keyName      = "vault.key"
	caName       = "ca.pem"
	databaseName = "vault.db"
	storeName    = "store"
)

// vaultConfig is config.json of the data directory. Relative paths are relative to it.
//
// History:
//
//	1  2026-11-22  first version
type vaultConfig struct {
	Version        int    `json:"version"`
	Name           string `json:"name"`
	Listen         string `json:"listen"`
	PublicURL      string `json:"publicUrl"` // as agents, people and clients reach the vault
	Store          string `json:"store"`     // address of the store: a directory, or a URL
	Database       string `json:"database"`  // SQLite file, or postgres:// URL
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroup"`
	TenantID       string `json:"tenantId"`
	Location       string `json:"location"`
	ResourceID     int64  `json:"resourceId"`
	Key            string `json:"key,omitempty"`            // where the private key is; empty = vault.key
	PassphraseFrom string `json:"passphraseFrom,omitempty"` // of a sealed key
}

const configVersion = 1

func (a *app) vaultCommand() *cobra.Command {
	c := &cobra.Command{Use: "vault", Short: "Make and run a vault"}
	c.AddCommand(a.vaultInitCommand(), a.vaultServeCommand(), a.vaultPasswordCommand(), keytool.Command(a.Console, keyVault()))
	return c
}

// initOptions are the flags of vault init.
type initOptions struct {
	data, store, name, listen, publicURL, db string
	key                                      storage.KeyFlags
}

func (a *app) vaultInitCommand() *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use: "init --data DIR", Short: "Make a vault: its keys, store, database and first user", Args: cobra.NoArgs,
		Long: "Make a vault in a data directory that is new or empty. Nothing is ever overwritten.\n" +
			"If it is interrupted, run it again with the same flags.\n\n" +
			"The private key (vault.key) opens every replica in the store: keep a copy of it away from\n" +
			"this machine. With --key a new vault takes over the store of one that was lost.",
		RunE: func(c *cobra.Command, _ []string) error { return a.vaultInit(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", "", "data directory to make")
	f.StringVar(&o.store, "store", "", "store: "+storage.Forms+" (default: a directory in the data directory)")
	f.StringVar(&o.name, "name", "vault1", "name of the vault")
	f.StringVar(&o.listen, "listen", ":8443", "address to listen on")
	f.StringVar(&o.publicURL, "public-url", "", "URL by which hosts and people reach the vault (default: this host's name)")
	f.StringVar(&o.db, "db", "", "database: an SQLite file or postgres:// URL without password (default: in the data directory)")
	o.key.Add(c, "the private key of an earlier vault, instead of a new one")
	console.Required(c, "data")
	return c
}

// made is what vault init says, once.
type made struct {
	Portal       string `json:"portal"`
	User         string `json:"user"`
	Password     string `json:"password"`
	EndpointFile string `json:"endpoint"`
	KeyFile      string `json:"keyFile"`
	KeyID        string `json:"keyId"`
	CAFile       string `json:"caFile"`
	Data         string `json:"data"`
	Store        string `json:"store"`
}

func (a *app) vaultInit(ctx context.Context, o initOptions) error {
	dir, err := filepath.Abs(o.data)
	if err != nil {
		return console.Usage("--data %s: %v", o.data, err)
	}
	cfg, err := newVaultConfig(o)
	if err != nil {
		return err
	}
	if err := prepareData(dir); err != nil {
		return err
	}
	key, err := a.initKey(ctx, dir, cfg, o.key)
	if err != nil {
		return err
	}
	p, err := openVault(ctx, dir, cfg, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	ep, m, err := firstAccess(ctx, p)
	if err = errors.Join(err, p.Close()); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(ep, "", "  ")
	if err == nil {
		err = console.ReplaceFile(filepath.Join(dir, operate.EndpointName), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "vault.init", "write %s: %w", operate.EndpointName, err)
	}
	if err := saveConfig(dir, cfg); err != nil { // last: with it the vault is made
		return err
	}
	at, err := cfg.store(dir)
	if err != nil {
		return err
	}
	m.Data, m.Store, m.KeyID = dir, at.String(), key.KeyID().String()
	a.Say("The vault is made. The password is shown only now.\n")
	err = a.Describe(m, console.F("portal", m.Portal), console.F("user", m.User), console.F("password", m.Password), console.F("endpoint file", m.EndpointFile),
		console.F("private key", m.KeyFile), console.F("key id", m.KeyID), console.F("store", m.Store))
	a.Say("\nKeep a copy of %s away from this machine: without it nobody can read the replicas.\n\nNext:\n  holdfast vault serve --data %s\n  holdfast login --endpoint %s",
		m.KeyFile, dir, m.EndpointFile)
	return err
}

func newVaultConfig(o initOptions) (*vaultConfig, error) {
	if i := strings.IndexFunc(o.name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}); o.name == "" || i >= 0 || len(o.name) > 50 {
		return nil, dr.New(dr.KindInvalid, dr.CodeNameInvalid, "vault.init", "--name %q is not a vault's name", o.name)
	}
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil || port == "" || port == "0" && o.publicURL == "" {
		return nil, console.Usage("--listen %q is not an address such as :8443 or 10.0.0.5:443", o.listen)
	}
	if o.publicURL == "" {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			if host, err = os.Hostname(); err != nil {
				return nil, console.Usage("this host has no name: %v", err).WithHint("Give --public-url.")
			}
		}
		o.publicURL = "https://" + net.JoinHostPort(host, port)
		if port == "443" {
			o.publicURL = "https://" + strings.TrimSuffix(net.JoinHostPort(host, ""), ":")
		}
	}
	u, err := url.Parse(o.publicURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, console.Usage("--public-url %q is not of the form https://name[:port]", o.publicURL)
	}
	cfg := &vaultConfig{Version: configVersion, Name: o.name, Listen: o.listen, PublicURL: strings.TrimSuffix(o.publicURL, "/"), Store: storeName, Database: databaseName,
		SubscriptionID: uuid.NewString(), ResourceGroup: "holdfast", TenantID: uuid.NewString(), Location: "onpremises"}
	n, err := rand.Int(rand.Reader, big.NewInt(1<<53)) // exact in every JSON reader
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "vault.init", "make a number: %w", err)
	}
	cfg.ResourceID = n.Int64()
	if o.store != "" {
		at, err := storage.Parse(o.store, ".")
		if err != nil {
			return nil, err
		}
		cfg.Store = at.String()
	}
	if o.db != "" {
		if cfg.Database = o.db; !strings.Contains(o.db, "://") {
			if cfg.Database, err = filepath.Abs(strings.TrimPrefix(o.db, "sqlite:")); err != nil {
				return nil, console.Usage("--db %s: %v", o.db, err)
			}
		} else if u, err := url.Parse(o.db); err != nil {
			return nil, console.Usage("--db is not a URL")
		} else if _, has := u.User.Password(); has || u.Query().Has("password") {
			return nil, console.Usage("--db must not hold a password, because command lines can be seen by others").
				WithHint("Put the password into ~/.pgpass or PGPASSWORD, or use a client certificate.")
		}
	}
	return cfg, nil
}

// path resolves a path of the configuration.
func (c *vaultConfig) path(dir, p string) string {
	if filepath.IsAbs(p) || strings.Contains(p, "://") {
		return p
	}
	return filepath.Join(dir, p)
}

// store is where the store is.
func (c *vaultConfig) store(dir string) (storage.Address, error) { return storage.Parse(c.Store, dir) }

func (c *vaultConfig) identity() vault.Identity {
	return vault.Identity{Name: c.Name, SubscriptionID: c.SubscriptionID, ResourceGroup: c.ResourceGroup, TenantID: c.TenantID, Location: c.Location, ResourceID: c.ResourceID}
}

// prepareData makes the data directory, or finds it empty or left by an init that did not end.
func prepareData(dir string) error {
	const op = "vault.init"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return console.ClassifyAs(err, "make the data directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return console.ClassifyAs(err, "read the data directory")
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	switch {
	case have[configName]:
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "there is a vault in %s already", dir).
			WithHint("Start it with 'holdfast vault serve --data %s', or choose another directory.", dir)
	case len(have) > 0 && !have[keyName] && (len(have) > 1 || !have[storeName]):
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "the data directory %s is not empty", dir).WithHint("Choose a new or empty directory.")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return console.ClassifyAs(err, "keep others out of the data directory")
	}
	return nil
}

// initKey makes the vault's key pair, or takes the one that the store belongs to.
func (a *app) initKey(ctx context.Context, dir string, cfg *vaultConfig, earlier storage.KeyFlags) (key cut.VaultPrivateKey, err error) {
	const op = "vault.init"
	path := filepath.Join(dir, keyName)
	at, err := cfg.store(dir)
	if err != nil {
		return key, err
	}
	bucket, err := at.Open(ctx, storage.Create)
	if err != nil {
		return key, err
	}
	defer console.Closing(&err, bucket.Close)
	owner, err := store.New(store.Config{Bucket: bucket}).VaultInfo(ctx)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return key, err
	}
	owned := err == nil
	if key, err = keyfile.Load(ctx, path, keyfile.Options{}); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return key, err
	}
	if earlier.Source != "" {
		k, err := earlier.Load(ctx, a.Console)
		if err != nil {
			return key, err
		}
		if !key.IsZero() && k.KeyID() != key.KeyID() {
			return key, dr.New(dr.KindConflict, dr.CodeKeyMismatch, op, "%s and %s are different keys", path, earlier.Source)
		}
		key = k
	}
	if owned && (key.IsZero() || key.KeyID() != owner.KeyID) {
		return key, dr.New(dr.KindConflict, dr.CodeKeyMismatch, op, "the store %s belongs to the vault %q with the key %s", at, owner.Name, owner.KeyID).
			WithHint("Give that vault's private key with --key, or choose another place for the store.")
	}
	if key.IsZero() {
		if key, err = cut.GenerateVaultKey(); err != nil {
			return key, err
		}
	}
	if earlier.Source != "" && !plainKey(earlier.Source) { // it is not to lie about in the clear
		cfg.Key, err = keytool.Absolute(earlier.Source)
		cfg.PassphraseFrom = earlier.From
		return key, err
	}
	text, err := key.Text()
	if err != nil {
		return key, err
	}
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := console.ReplaceFile(path, []byte(text), 0o600); err != nil {
			return key, dr.Errorf(dr.KindUnavailable, op, "write the private key: %w", err)
		}
	}
	return key, nil
}

// plainKey reports whether a key is a plain file.
func plainKey(source string) bool {
	if strings.HasPrefix(source, "credential:") {
		return false
	}
	text, err := console.ReadSmall(source)
	if err != nil {
		return false
	}
	defer clear(text)
	_, err = keyfile.Inspect(text)
	return err != nil
}

// firstAccess starts the vault for a moment, so that it makes its authority,
// claims the store and makes the first user and API client.
func firstAccess(ctx context.Context, p *vaultParts) (operate.Endpoint, made, error) {
	fail := func(err error) (operate.Endpoint, made, error) { return operate.Endpoint{}, made{}, err }
	if err := p.vault.Start(ctx); err != nil {
		return fail(err)
	}
	b, fresh := p.vault.TakeBootstrap()
	if !fresh { // an earlier init ended before it could tell
		var err error
		b.User = access.AdminName
		if b.Password, err = p.vault.ResetPassword(ctx, b.User); err != nil {
			return fail(err)
		}
		if b.ClientID, b.ClientSecret, err = p.vault.CreateClient(ctx, dr.RoleOwner, "holdfast vault init"); err != nil {
			return fail(err)
		}
	}
	pem, _ := p.vault.CA()
	ca := filepath.Join(p.dir, caName)
	if err := console.ReplaceFile(ca, []byte(pem), 0o644); err != nil {
		return fail(dr.Errorf(dr.KindUnavailable, "vault.init", "write %s: %w", caName, err))
	}
	c := p.cfg
	ep := operate.Endpoint{URL: c.PublicURL, CAFile: ca, TenantID: c.TenantID, ClientID: b.ClientID, ClientSecret: b.ClientSecret, SubscriptionID: c.SubscriptionID,
		ResourceGroup: c.ResourceGroup, VaultName: c.Name}
	return ep, made{Portal: c.PublicURL + "/portal", User: b.User, Password: b.Password, EndpointFile: filepath.Join(p.dir, operate.EndpointName),
		KeyFile: c.keySource(p.dir), CAFile: ca}, nil
}

func (a *app) vaultPasswordCommand() *cobra.Command {
	var data, user string
	var key storage.KeyFlags
	c := &cobra.Command{
		Use: "reset-password --data DIR", Short: "Give a portal user a new password, on the vault's machine", Args: cobra.NoArgs,
		Long: "Give a portal user a new random password and end its sessions. A user that does not exist is\n" +
			"made, as owner. With SQLite the vault must be stopped meanwhile.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx, cancel := context.WithTimeout(c.Context(), 5*time.Minute)
			defer cancel()
			p, err := a.loadVault(ctx, data, key, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			defer console.Closing(&err, p.Close)
			password, err := p.vault.ResetPassword(ctx, user)
			if err != nil {
				return err
			}
			return a.Describe(map[string]string{"user": user, "password": password}, console.F("user", user), console.F("password", password))
		},
	}
	c.Flags().StringVar(&data, "data", "", "data directory of the vault")
	c.Flags().StringVar(&user, "user", access.AdminName, "name of the user")
	key.Add(c, "the vault's private key, instead of what config.json says")
	console.Required(c, "data")
	return c
}

// loadConfig reads config.json of a data directory.
func loadConfig(dir string) (*vaultConfig, error) {
	const op = "vault.config"
	path := filepath.Join(dir, configName)
	raw, err := console.ReadSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, dr.Errorf(dr.KindNotFound, op, "there is no vault in %s", dir).WithHint("Make one with 'holdfast vault init --data %s'.", dir)
	}
	if err != nil {
		return nil, console.ClassifyAs(err, "read the configuration")
	}
	var cfg vaultConfig
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "%s is not valid JSON: %w", path, err)
	}
	if cfg.Version != configVersion {
		return nil, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "%s has version %d, this program knows %d", path, cfg.Version, configVersion)
	}
	if cfg.Listen == "" || cfg.Store == "" || cfg.Database == "" {
		return nil, dr.Errorf(dr.KindInvalid, op, "%s lacks listen, store or database", path)
	}
	return &cfg, nil
}

// saveConfig replaces config.json.
func saveConfig(dir string, cfg *vaultConfig) error {
	raw, err := json.MarshalIndent(cfg, "", "  ")
	if err == nil {
		err = console.ReplaceFile(filepath.Join(dir, configName), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "vault.config", "write %s: %w", configName, err)
	}
	return nil
}
