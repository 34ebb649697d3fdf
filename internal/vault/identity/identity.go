// Package identity is how a vault proves itself: its certificate authority,
// kept in the database and sealed with the vault's private key, and the server
// certificate that the authority issues.
package identity

import (
	"context"
	"crypto/tls"
	"database/sql"
	"net"
	"net/url"
	"os"
	"sync"

	"holdfast/internal/authn"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

const settingCA = "ca"

// Identity holds the vault's authority. It is safe for concurrent use.
type Identity struct {
	st        *state.State
	key       cut.VaultPrivateKey
	name      string
	publicURL string
	hosts     []string

	mu   sync.Mutex
	ca   *authn.CA
	cert *tls.Certificate
}

// New makes an Identity; it does no I/O. The server's certificate names
// publicURL's host, hosts, this host and the loopback.
func New(st *state.State, key cut.VaultPrivateKey, name, publicURL string, hosts []string) *Identity {
	return &Identity{st: st, key: key, name: name, publicURL: publicURL, hosts: hosts}
}

// DeriveKey derives a key for a purpose of the program around the vault, e.g.
// the key of the store's signer. It is the same in every replica and at every start.
func (i *Identity) DeriveKey(purpose string) ([32]byte, error) {
	text, err := i.key.Text()
	if err != nil {
		return [32]byte{}, err
	}
	return authn.DeriveKey(text, purpose)
}

// Load loads the certificate authority, making it at the first start.
// It is sealed with a key derived from the vault's private key.
func (i *Identity) Load(ctx context.Context) error {
	key, err := i.DeriveKey("database secrets")
	if err != nil {
		return err
	}
	sealed, err := vaultdb.Setting(ctx, i.st.Q(), settingCA)
	if err != nil {
		return state.Outward(err)
	}
	if sealed == "" {
		ca, err := authn.NewCA("Holdfast vault "+i.name, i.st.Now())
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
		err = i.st.Tx(ctx, func(tx *sql.Tx) error {
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
	i.mu.Lock()
	i.ca = ca
	i.mu.Unlock()
	return nil
}

// CA returns the certificate of the vault's authority (PEM) and the SHA-256 of
// its public key (hex). Only after Start.
func (i *Identity) CA() (pem, pin string) {
	ca := i.Authority()
	return ca.PEM(), ca.Pin()
}

// Authority is the vault's authority; nil before Load.
func (i *Identity) Authority() *authn.CA {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ca
}

// TLSConfig returns the server's side of TLS: a certificate of the vault's
// authority, renewed by itself, and client certificates asked for and checked
// against that authority when given. Only after Start.
func (i *Identity) TLSConfig() (*tls.Config, error) {
	if _, err := i.serverCert(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  i.Authority().Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return i.serverCert()
		},
	}, nil
}

func (i *Identity) serverCert() (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ca == nil {
		return nil, dr.Errorf(dr.KindPrecondition, "vault.TLSConfig", "the vault has not been started")
	}
	now := i.st.Now()
	if i.cert != nil && now.Before(i.cert.Leaf.NotAfter.Add(-authn.ServerLifetime/3)) {
		return i.cert, nil
	}
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, i.hosts...)
	if u, err := url.Parse(i.publicURL); err == nil && u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1" {
		hosts = append(hosts, u.Hostname())
	}
	if name, err := os.Hostname(); err == nil && net.ParseIP(name) == nil {
		hosts = append(hosts, name)
	}
	cert, err := i.ca.IssueServer(hosts, now)
	if err != nil {
		return nil, err
	}
	i.cert = cert
	return cert, nil
}
