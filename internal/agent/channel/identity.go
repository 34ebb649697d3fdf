package channel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

// RegistrationKey is what the agent needs of a registration key file. Secret is never logged.
type RegistrationKey struct {
	VaultURL string
	CAPin    string // SHA-256 of the public key of the vault's authority, hex
	KeyID    string
	Secret   string
}

// String keeps the secret out of texts.
func (k RegistrationKey) String() string { return "registration key " + k.KeyID }

// GoString keeps the secret out of %#v.
func (k RegistrationKey) GoString() string { return k.String() }

// LogValue keeps the secret out of logs.
func (k RegistrationKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// RegisterConfig of Register.
type RegisterConfig struct {
	Key        RegistrationKey
	StateDir   string
	HostName   string         // "" = the operating system's
	MachineID  string         // "" = the operating system's, or one kept in the state directory
	Roles      []dr.AgentRole // at least one
	Version    string
	Hypervisor string // hypervisor.HostInfo.Hypervisor
	Proxy      string // URL, may hold user and password; "" = HTTPS_PROXY and NO_PROXY of the environment
	Log        *slog.Logger
}

// Validate checks what must be set.
func (c RegisterConfig) Validate() error {
	const op = "channel.Register"
	u, err := url.Parse(c.Key.VaultURL)
	pin, perr := hex.DecodeString(c.Key.CAPin)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		return dr.New(dr.KindInvalid, dr.CodeRegistrationKeyInvalid, op, "the vault's address %q is not an https URL", c.Key.VaultURL)
	case perr != nil || len(pin) != sha256.Size:
		return dr.New(dr.KindInvalid, dr.CodeRegistrationKeyInvalid, op, "the registration key does not say how to recognize the vault")
	case c.Key.KeyID == "" || c.Key.Secret == "":
		return dr.New(dr.KindInvalid, dr.CodeRegistrationKeyInvalid, op, "the registration key has no id or no secret")
	case c.StateDir == "":
		return dr.Errorf(dr.KindInvalid, op, "the state directory must be set")
	case len(c.Roles) == 0:
		return dr.Errorf(dr.KindInvalid, op, "the agent needs a role: source, recovery or both")
	}
	return nil
}

// Registration says who an agent is.
type Registration struct {
	AgentID    dr.AgentID
	FabricID   dr.FabricID
	FabricName string
	VaultURL   string
	Host       string
	Roles      []dr.AgentRole
	NotAfter   time.Time // of the certificate, which is renewed by itself
}

// Identity is identity.json. It holds the private key: it is never logged or sent.
type Identity struct {
	state.Header
	AgentID     string    `json:"agentId"`
	FabricID    string    `json:"fabricId"`
	FabricName  string    `json:"fabricName"`
	VaultURL    string    `json:"vaultUrl"`
	CAPin       string    `json:"caPin"`
	Host        string    `json:"host"`
	Roles       []string  `json:"roles"`
	Proxy       string    `json:"proxy,omitempty"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	CA          string    `json:"ca"`
	Certificate string    `json:"certificate"`
	Key         string    `json:"key"` // PKCS #8, PEM
}

// Registration is the public part.
func (i *Identity) Registration() Registration {
	r := Registration{AgentID: dr.AgentID(i.AgentID), FabricID: dr.FabricID(i.FabricID), FabricName: i.FabricName, VaultURL: i.VaultURL, Host: i.Host, NotAfter: i.NotAfter}
	for _, role := range i.Roles {
		r.Roles = append(r.Roles, dr.AgentRole(role))
	}
	return r
}

// LoadRegistration tells who the agent of a state directory is. dr.KindPrecondition if it is not registered.
func LoadRegistration(stateDir string) (Registration, error) {
	id, err := Load(stateDir)
	if err != nil {
		return Registration{}, err
	}
	return id.Registration(), nil
}

// Load reads the identity of a state directory. dr.KindPrecondition if the host is not registered.
func Load(stateDir string) (*Identity, error) {
	var id Identity
	err := state.Load(filepath.Join(stateDir, state.Identity), &id)
	if dr.KindOf(err) == dr.KindNotFound {
		return nil, dr.Errorf(dr.KindPrecondition, "channel.Identity", "this host is not registered (%s)", stateDir).
			WithHint("Download a registration key of the site from the vault and register the host with it.")
	}
	if err != nil {
		return nil, err
	}
	return &id, nil
}

// Keypair is the agent's TLS certificate.
func (i *Identity) Keypair() (*tls.Certificate, error) {
	c, err := tls.X509KeyPair([]byte(i.Certificate), []byte(i.Key))
	if err != nil {
		return nil, dr.Errorf(dr.KindCorrupt, "channel.Identity", "read the agent's certificate and key: %w", err)
	}
	return &c, nil
}

// accept takes the vault's answer over, if it is what was asked for.
func (i *Identity) accept(res agentapi.EnrollResponse, keyPEM string) error {
	const op = "channel.Identity"
	ca, err := parseCert(res.CA)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "read the certificate of the vault's authority: %w", err)
	}
	if sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo); !strings.EqualFold(hex.EncodeToString(sum[:]), i.CAPin) {
		return dr.New(dr.KindUnauthenticated, dr.CodeVaultIdentity, op, "the authority that the vault sent is not the one that the registration key names")
	}
	pair, err := tls.X509KeyPair([]byte(res.Certificate), []byte(keyPEM))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "the certificate that the vault sent does not fit: %w", err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err == nil {
		err = leaf.CheckSignatureFrom(ca)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "check the certificate that the vault sent: %w", err)
	}
	i.Header, i.AgentID, i.FabricID, i.FabricName = state.Current(), res.AgentID, res.FabricID, res.FabricName
	i.CA, i.Certificate, i.Key = res.CA, res.Certificate, keyPEM
	i.NotBefore, i.NotAfter = leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
	return nil
}

func parseCert(text string) (*x509.Certificate, error) {
	b, _ := pem.Decode([]byte(text))
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, errors.New("it is not in PEM form")
	}
	return x509.ParseCertificate(b.Bytes)
}

// newKey makes a P-256 key, as PEM.
func newKey() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, "channel.Identity", "make the agent's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, "channel.Identity", "encode the agent's key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// newCSR makes a certificate request for a key of newKey.
func newCSR(keyPEM, host string) (string, error) {
	const op = "channel.Identity"
	b, _ := pem.Decode([]byte(keyPEM))
	if b == nil {
		return "", dr.Errorf(dr.KindCorrupt, op, "the agent's key can't be read")
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return "", dr.Errorf(dr.KindCorrupt, op, "the agent's key can't be read")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: host}}, key)
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, op, "make certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// pending is pending.json: a one-time key answers a repeated registration only for the same key pair.
type pending struct {
	state.Header
	KeyID string `json:"keyId"`
	Key   string `json:"key"`
}

// Register registers this host with the vault and stores the agent's identity
// in the state directory. It may be repeated, also with another key: the host
// then keeps its agent id if the site is the same. No agent may run on the state directory meanwhile.
func Register(ctx context.Context, cfg RegisterConfig) (Registration, error) {
	if err := cfg.Validate(); err != nil {
		return Registration{}, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	proxy, err := proxyFunc(cfg.Proxy)
	if err != nil {
		return Registration{}, err
	}
	if err := state.Make(cfg.StateDir); err != nil {
		return Registration{}, err
	}
	unlock, err := state.Lock(cfg.StateDir)
	if err != nil {
		return Registration{}, err
	}
	defer unlock()
	req, key, err := enrollRequest(cfg)
	if err != nil {
		return Registration{}, err
	}
	u, _ := url.Parse(cfg.Key.VaultURL) // Validate has parsed it
	client := newClient(cfg.Key.VaultURL, trustPin(cfg.Key.CAPin, u.Hostname()), proxy, cfg.Version)
	defer client.Close()
	var res agentapi.EnrollResponse
	for n := 1; ; n++ {
		if res, err = client.Enroll(ctx, req); err == nil {
			break
		}
		if n == 3 || dr.KindOf(err) != dr.KindUnavailable {
			return Registration{}, err
		}
		cfg.Log.Warn("registration is tried again", "vault", cfg.Key.VaultURL, "err", err)
		select {
		case <-time.After(time.Duration(n) * time.Second):
		case <-ctx.Done():
			return Registration{}, context.Cause(ctx)
		}
	}
	id := Identity{VaultURL: strings.TrimSuffix(cfg.Key.VaultURL, "/"), CAPin: cfg.Key.CAPin, Host: req.Host, Roles: req.Roles, Proxy: cfg.Proxy}
	if err := id.accept(res, key); err != nil {
		return Registration{}, err
	}
	if err := state.Save(filepath.Join(cfg.StateDir, state.Identity), &id); err != nil {
		return Registration{}, err
	}
	_ = os.Remove(filepath.Join(cfg.StateDir, state.Pending)) // harmless if it stays: it is of this key only
	cfg.Log.Info("host is registered", "vault", id.VaultURL, "site", id.FabricName, "agent", id.AgentID)
	return id.Registration(), nil
}

// enrollRequest makes the request and the key that it is for, which is stored before it is used.
func enrollRequest(cfg RegisterConfig) (agentapi.EnrollRequest, string, error) {
	req := agentapi.EnrollRequest{KeyID: cfg.Key.KeyID, Secret: cfg.Key.Secret, Host: cfg.HostName, MachineID: cfg.MachineID,
		Version: cfg.Version, Hypervisor: cfg.Hypervisor}
	for _, r := range cfg.Roles {
		req.Roles = append(req.Roles, string(r))
	}
	var err error
	if req.Host == "" {
		if req.Host, err = os.Hostname(); err != nil {
			return req, "", dr.Errorf(dr.KindInternal, "channel.Register", "find the host's name: %w", err)
		}
	}
	if req.MachineID == "" {
		if req.MachineID, err = state.MachineID(cfg.StateDir); err != nil {
			return req, "", err
		}
	}
	path := filepath.Join(cfg.StateDir, state.Pending)
	var p pending
	if err := state.Load(path, &p); err != nil || p.KeyID != cfg.Key.KeyID {
		if p.Key, err = newKey(); err != nil {
			return req, "", err
		}
		p.Header, p.KeyID = state.Current(), cfg.Key.KeyID
		if err := state.Save(path, &p); err != nil {
			return req, "", err
		}
	}
	req.CSR, err = newCSR(p.Key, req.Host)
	return req, p.Key, err
}

// NewCredentials returns the credentials of an agent that starts with id.
func NewCredentials(stateDir string, id *Identity) *Credentials {
	return &Credentials{stateDir: stateDir, id: id}
}

// Credentials are the identity of a running agent, renewed in time. They are safe for concurrent use.
type Credentials struct {
	stateDir string

	mu sync.Mutex
	id *Identity
}

// Get returns the current identity.
func (c *Credentials) Get() *Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// Keypair is the current certificate.
func (c *Credentials) Keypair() (*tls.Certificate, error) { return c.Get().Keypair() }

// Due is when to renew: after two thirds of the certificate's life.
func (i *Identity) Due() time.Time { return i.NotBefore.Add(i.NotAfter.Sub(i.NotBefore) * 2 / 3) }

// Renew gets and stores the next certificate, with a new key. The old one
// stays good until it is known that the new one is stored.
func (c *Credentials) Renew(ctx context.Context, client *Client) error {
	next := *c.Get()
	key, err := newKey()
	if err != nil {
		return err
	}
	csr, err := newCSR(key, next.Host)
	if err != nil {
		return err
	}
	res, err := client.Renew(ctx, agentapi.RenewRequest{CSR: csr})
	if err != nil {
		return err
	}
	if err := next.accept(res, key); err != nil {
		return err
	}
	if err := state.Save(filepath.Join(c.stateDir, state.Identity), &next); err != nil {
		return err
	}
	c.mu.Lock()
	c.id = &next
	c.mu.Unlock()
	client.reset()
	return nil
}

// Open returns a client of the identity; cert says which certificate to show at
// each handshake, and version is the program's. It does no I/O.
func (i *Identity) Open(cert func() (*tls.Certificate, error), version string) (*Client, error) {
	proxy, err := proxyFunc(i.Proxy)
	if err != nil {
		return nil, err
	}
	trust, err := trustCA(i.CA, cert)
	if err != nil {
		return nil, err
	}
	return newClient(i.VaultURL, trust, proxy, version), nil
}

// Transport returns what carries objects to and from the store.
func (i *Identity) Transport() (*Transport, error) {
	proxy, err := proxyFunc(i.Proxy)
	if err != nil {
		return nil, err
	}
	return newTransport(i.VaultURL, i.CA, proxy)
}
