package authn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"holdfast/internal/authn"
	"holdfast/internal/dr"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func csr(t testing.TB, curve elliptic.Curve) (string, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), key
}

func newCA(t testing.TB) *authn.CA {
	t.Helper()
	ca, err := authn.NewCA("test", now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func parse(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode([]byte(text))
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAgentCertificates(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	text, err := ca.Text()
	if err != nil {
		t.Fatal(err)
	}
	again, err := authn.ParseCA(text)
	if err != nil || again.Pin() != ca.Pin() || again.PEM() != ca.PEM() {
		t.Fatalf("the authority does not survive its text: %v", err)
	}
	req, _ := csr(t, elliptic.P256())
	c, err := again.IssueAgent(req, "agent-1", now)
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, c.PEM)
	id, serial, err := ca.AgentOf(cert, now)
	if err != nil || id != "agent-1" || serial != c.Serial || cert.URIs[0].String() != "spiffe://holdfast/agent/agent-1" || cert.IsCA {
		t.Errorf("agent %q serial %q: %v", id, serial, err)
	}
	if hash, err := authn.CSRKeyHash(req); err != nil || hash != c.KeyHash {
		t.Errorf("key hash %q, want %q: %v", hash, c.KeyHash, err)
	}
	server, err := ca.IssueServer([]string{"localhost"}, now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newCA(t).IssueAgent(req, "agent-1", now)
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"none":                func() error { return third(ca.AgentOf(nil, now)) },
		"after its end":       func() error { return third(ca.AgentOf(cert, now.Add(authn.AgentLifetime+time.Hour))) },
		"of another vault":    func() error { return third(ca.AgentOf(parse(t, other.PEM), now)) },
		"a server's":          func() error { return third(ca.AgentOf(server.Leaf, now)) },
		"the authority's own": func() error { return third(ca.AgentOf(parse(t, ca.PEM()), now)) },
	} {
		if err := try(); dr.KindOf(err) != dr.KindUnauthenticated {
			t.Errorf("%s certificate: %v", what, err)
		}
	}
}

func third[A, B any](_ A, _ B, err error) error { return err }

func TestBadRequests(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	weak, _ := csr(t, elliptic.P224())
	good, _ := csr(t, elliptic.P256())
	b, _ := pem.Decode([]byte(good))
	forged := append([]byte(nil), b.Bytes...)
	forged[len(forged)-1] ^= 1
	for what, text := range map[string]string{"empty": "", "no PEM": "x", "another curve": weak,
		"another type": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes})),
		"forged":       string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}))} {
		if _, err := ca.IssueAgent(text, "a", now); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	text, err := ca.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ca.PEM(), text[:len(text)/2], ca.PEM() + strings.SplitAfter(must(newCA(t).Text()), "-----END CERTIFICATE-----\n")[1]} {
		if _, err := authn.ParseCA(bad); dr.KindOf(err) != dr.KindCorrupt {
			t.Errorf("ParseCA of a damaged text: %v", err)
		}
	}
}

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// TestHandshake: server and agent accept each other over real TLS.
func TestHandshake(t *testing.T) {
	t.Parallel()
	at := time.Now()
	ca, err := authn.NewCA("test", at)
	if err != nil {
		t.Fatal(err)
	}
	server := must(ca.IssueServer([]string{"vault.example", "127.0.0.1"}, at))
	req, key := csr(t, elliptic.P256())
	agent := must(ca.IssueAgent(req, "a1", at))
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool()})
	c := tls.Client(b, &tls.Config{RootCAs: ca.Pool(), ServerName: "vault.example",
		Certificates: []tls.Certificate{{Certificate: [][]byte{parse(t, agent.PEM).Raw}, PrivateKey: key}}})
	errs := make(chan error, 1)
	go func() { errs <- c.Handshake() }()
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if chain := c.ConnectionState().PeerCertificates; len(chain) != 2 {
		t.Errorf("the server shows %d certificates; an agent that pins the authority needs both", len(chain))
	}
	if id, _, err := ca.AgentOf(s.ConnectionState().PeerCertificates[0], at); err != nil || id != "a1" {
		t.Errorf("agent %q: %v", id, err)
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := authn.NewHasher(1)
	stored := must(h.Hash(ctx, "correct horse"))
	for pass, want := range map[string]bool{"correct horse": true, "correct horsf": false, "": false} {
		if got, err := h.Verify(ctx, pass, stored); err != nil || got != want {
			t.Errorf("Verify(%q) = %v, %v", pass, got, err)
		}
	}
	for _, bad := range []string{"", "x", strings.Replace(stored, "m=65536", "m=99999999", 1), stored[:len(stored)-4], strings.Replace(stored, "argon2id", "argon2i", 1)} {
		if got, err := h.Verify(ctx, "correct horse", bad); err != nil || got {
			t.Errorf("Verify against %q = %v, %v", bad, got, err)
		}
	}
	if again := must(h.Hash(ctx, "correct horse")); again == stored {
		t.Error("two hashes of one password are equal: no salt")
	}
}

func TestSecretsAndSeal(t *testing.T) {
	t.Parallel()
	s := authn.NewSecret("hfk_")
	if !strings.HasPrefix(s, "hfk_") || len(s) < 44 || s == authn.NewSecret("hfk_") {
		t.Errorf("secret %q", s)
	}
	if !authn.SameSecret(s, authn.HashSecret(s)) || authn.SameSecret(s+"x", authn.HashSecret(s)) || authn.SameSecret("", "") {
		t.Error("SameSecret")
	}
	k1, k2 := must(authn.DeriveKey("secret", "one")), must(authn.DeriveKey("secret", "two"))
	if k1 == k2 || k1 != must(authn.DeriveKey("secret", "one")) {
		t.Error("DeriveKey")
	}
	sealed := must(authn.Seal(k1, "ca", "text"))
	if got, err := authn.Unseal(k1, "ca", sealed); err != nil || got != "text" {
		t.Errorf("Unseal = %q, %v", got, err)
	}
	for what, err := range map[string]error{"key": snd(authn.Unseal(k2, "ca", sealed)), "purpose": snd(authn.Unseal(k1, "cb", sealed)),
		"text": snd(authn.Unseal(k1, "ca", sealed[1:])), "nothing": snd(authn.Unseal(k1, "ca", ""))} {
		if dr.CodeOf(err) != dr.CodeKeyMismatch || strings.Contains(fmt.Sprint(err), sealed) {
			t.Errorf("another %s: %v", what, err)
		}
	}
}

func snd[A, B any](_ A, b B) B { return b }

// FuzzCSR: whatever a host sends, it is refused or a P-256 key.
func FuzzCSR(f *testing.F) {
	good, _ := csr(f, elliptic.P256())
	f.Add(good)
	f.Add("")
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := authn.CSRKeyHash(text); err != nil && dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%v", err)
		}
	})
}
