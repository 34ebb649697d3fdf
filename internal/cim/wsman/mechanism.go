package wsman

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/ntlm"
)

// Mechanism signs one connection in under HTTP's Negotiate scheme ([RFC 4559]) and seals what follows.
// It is used by one goroutine at a time.
type Mechanism interface {
	// Step takes the server's token, nil at first, and returns the next one for it. done tells that the server's
	// answer decides.
	Step(in []byte) (out []byte, done bool, err error)
	// CanSeal reports whether messages can be sealed, once Step has been done.
	CanSeal() bool
	// Seal encrypts the next message to the server.
	Seal(plain []byte) (sealed, signature []byte, err error)
	// Unseal decrypts the next message of the server and fails if it was tampered with.
	Unseal(sealed, signature []byte) ([]byte, error)
	Close() error
}

// mechanism chooses how a new connection signs in.
func (p *pool) mechanism(ctx context.Context, c *conn, binding []byte) (Mechanism, error) {
	if p.cfg.Mechanism != nil {
		return p.cfg.Mechanism(ctx, p.url.Hostname(), binding)
	}
	if p.cfg.Auth == AuthNegotiate && p.cfg.User == "" {
		return ownIdentity(p.url.Hostname(), binding)
	}
	password, err := p.password(ctx, c)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // information only
	host, _, _ = strings.Cut(host, ".")
	user, domain := splitUser(p.cfg.User)
	return &ntlmMechanism{client: ntlm.NewClient(ntlm.ClientConfig{
		User: user, Domain: domain, Workstation: host, Password: password,
		ChannelBinding: binding, TargetName: "HTTP/" + p.url.Hostname(), Now: p.cfg.Now,
	})}, nil
}

// password asks for the password that a connection signs in with.
func (p *pool) password(ctx context.Context, c *conn) (string, error) {
	password, err := p.cfg.Password(ctx)
	if err != nil {
		return "", &cim.Error{Code: cim.CodeUnauthorized, Message: "the password of " + p.cfg.User + " cannot be had", Err: err}
	}
	c.tried = p.fingerprint(password)
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := lockoutPause - p.cfg.Now().Sub(p.refusedAt); wait > 0 && hmac.Equal(p.refused, c.tried) {
		return "", &cim.Error{Code: cim.CodeUnauthorized, Message: fmt.Sprintf(
			"the server refused this password of %s; so as not to lock the account it is not tried again for %v", p.cfg.User, wait.Round(time.Second))}
	}
	return password, nil
}

// lockoutPause is how long a refused password is not tried again: every try counts towards the lock of the account.
const lockoutPause = 30 * time.Second

// remember notes that the server refused what a connection signed in with.
func (p *pool) remember(c *conn) {
	if c.tried == nil {
		return // not a password
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused, p.refusedAt = c.tried, p.cfg.Now()
}

// fingerprint tells passwords apart without keeping them; its key is the pool's own.
func (p *pool) fingerprint(password string) []byte {
	h := hmac.New(sha256.New, p.secret)
	h.Write([]byte(password))
	return h.Sum(nil)
}

// splitUser takes DOMAIN\name apart; a principal name stays whole and has no domain.
func splitUser(s string) (user, domain string) {
	if d, u, ok := strings.Cut(s, `\`); ok {
		if d == "." {
			d = ""
		}
		return u, d
	}
	return s, ""
}

type ntlmMechanism struct {
	client  *ntlm.Client
	started bool
}

// Step sends bare NTLM messages, which Windows takes in place of SPNEGO ([MS-SPNG]), and answers in kind
// when the server wraps its own.
func (m *ntlmMechanism) Step(in []byte) ([]byte, bool, error) {
	if !m.started {
		m.started = true
		out, err := m.client.Negotiate()
		return out, false, err
	}
	inner, wrapped, err := unwrapToken(in)
	if err != nil {
		return nil, false, err
	}
	out, err := m.client.Authenticate(inner)
	if err == nil && wrapped {
		out, err = wrapToken(out)
	}
	return out, true, err
}

func (m *ntlmMechanism) CanSeal() bool { return m.client.Session() != nil }
func (m *ntlmMechanism) Close() error  { return nil }

func (m *ntlmMechanism) Seal(plain []byte) (sealed, signature []byte, err error) {
	return m.client.Session().Seal(plain)
}

func (m *ntlmMechanism) Unseal(sealed, signature []byte) ([]byte, error) {
	return m.client.Session().Unseal(sealed, signature)
}

var errToken = errors.New("the server's sign-in token is neither NTLM nor SPNEGO")

// unwrapToken returns the NTLM message of a token: the token itself, or the responseToken of SPNEGO's
// negTokenResp ([RFC 4178] 4.2.2).
func unwrapToken(b []byte) (inner []byte, wrapped bool, err error) {
	if bytes.HasPrefix(b, []byte("NTLMSSP\x00")) {
		return b, false, nil
	}
	var choice, seq asn1.RawValue
	if _, err := asn1.Unmarshal(b, &choice); err != nil || choice.Class != asn1.ClassContextSpecific || choice.Tag != 1 {
		return nil, false, errToken
	}
	if _, err := asn1.Unmarshal(choice.Bytes, &seq); err != nil || seq.Tag != asn1.TagSequence {
		return nil, false, errToken
	}
	for rest := seq.Bytes; len(rest) > 0; {
		var f asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &f); err != nil {
			return nil, false, fmt.Errorf("%w: %w", errToken, err)
		}
		if f.Class == asn1.ClassContextSpecific && f.Tag == 2 {
			if _, err := asn1.Unmarshal(f.Bytes, &inner); err != nil {
				return nil, false, fmt.Errorf("%w: %w", errToken, err)
			}
			return inner, true, nil
		}
	}
	return nil, false, fmt.Errorf("%w: it holds no message", errToken)
}

// wrapToken puts a message into a negTokenResp with nothing else.
func wrapToken(msg []byte) ([]byte, error) {
	octets, err := asn1.Marshal(msg)
	for _, v := range []asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 2, IsCompound: true},
		{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true},
		{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true},
	} {
		if err != nil {
			return nil, err
		}
		v.Bytes = octets
		octets, err = asn1.Marshal(v)
	}
	return octets, err
}
