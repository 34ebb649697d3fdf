package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// Lifetimes of certificates. A certificate begins an hour early, for hosts
// whose clocks are late.
const (
	CALifetime     = 20 * 365 * 24 * time.Hour
	ServerLifetime = 90 * 24 * time.Hour
	AgentLifetime  = 30 * 24 * time.Hour
	backdate       = time.Hour
)

const agentURI = "/agent/"

// CA is a vault's certificate authority. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a P-256 authority.
func NewCA(name string, now time.Time) (*CA, error) {
	const op = "authn.NewCA"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "make the key of the vault's authority: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: []string{"Holdfast"}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(CALifetime), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "sign the certificate of the vault's authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "parse the certificate of the vault's authority: %w", err)
	}
	return &CA{cert, key}, nil
}

// ParseCA is the inverse of Text. Errors never show the text.
func ParseCA(text string) (*CA, error) {
	const op = "authn.ParseCA"
	var ca CA
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch b.Type {
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, dr.Errorf(dr.KindCorrupt, op, "parse the certificate of the vault's authority: %w", err)
			}
			ca.cert = cert
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			key, ok := k.(*ecdsa.PrivateKey)
			if err != nil || !ok {
				return nil, dr.Errorf(dr.KindCorrupt, op, "the key of the vault's authority is not an ECDSA key")
			}
			ca.key = key
		}
	}
	if ca.cert == nil || ca.key == nil || !ca.key.PublicKey.Equal(ca.cert.PublicKey) {
		return nil, dr.Errorf(dr.KindCorrupt, op, "the vault's authority lacks its certificate or its key, or they do not belong together")
	}
	return &ca, nil
}

// Text returns certificate and private key as PEM: a secret.
func (ca *CA) Text() (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, "authn.CA", "encode the key of the vault's authority: %w", err)
	}
	return ca.PEM() + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// PEM returns the authority's certificate.
func (ca *CA) PEM() string { return certPEM(ca.cert.Raw) }

// Pin is the SHA-256 of the authority's public key (SubjectPublicKeyInfo), hex.
func (ca *CA) Pin() string {
	sum := sha256.Sum256(ca.cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Pool returns a pool that trusts this authority only.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// IssueServer makes the server's key and certificate for host names and IP
// addresses. The chain ends with the authority's certificate, so that an agent
// can pin it before it has it.
func (ca *CA) IssueServer(hosts []string, now time.Time) (*tls.Certificate, error) {
	const op = "authn.IssueServer"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "make the server's key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Holdfast vault"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ServerLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(strings.Trim(h, "[]")); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "sign the server's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "parse the server's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// AgentCert is an issued agent certificate.
type AgentCert struct {
	PEM      string
	Serial   string // hex
	KeyHash  string // SHA-256 of the public key, hex
	NotAfter time.Time
}

// CSRKeyHash checks a certificate request (PEM, P-256, signed by its key) and
// returns the SHA-256 of its public key, hex. Everything else in it is ignored.
func CSRKeyHash(csrPEM string) (string, error) {
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	return keyHash(csr.RawSubjectPublicKeyInfo), nil
}

func parseCSR(csrPEM string) (*x509.CertificateRequest, error) {
	const op = "authn.parseCSR"
	b, _ := pem.Decode([]byte(csrPEM))
	if b == nil || b.Type != "CERTIFICATE REQUEST" {
		return nil, dr.Errorf(dr.KindInvalid, op, "the certificate request is not in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "parse the certificate request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, dr.Errorf(dr.KindInvalid, op, "the key of the certificate request is not a P-256 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "the certificate request is not signed by its own key: %w", err)
	}
	return csr, nil
}

// IssueAgent signs the key of a certificate request for an agent. Only the
// public key is taken from the request.
func (ca *CA) IssueAgent(csrPEM string, id dr.AgentID, now time.Time) (AgentCert, error) {
	const op = "authn.IssueAgent"
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return AgentCert{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "agent " + string(id)},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(AgentLifetime).Truncate(time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "holdfast", Path: agentURI + string(id)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return AgentCert{}, dr.Errorf(dr.KindInternal, op, "sign the agent's certificate: %w", err)
	}
	return AgentCert{PEM: certPEM(der), Serial: t.SerialNumber.Text(16), KeyHash: keyHash(csr.RawSubjectPublicKeyInfo), NotAfter: t.NotAfter.UTC()}, nil
}

// AgentOf checks that this authority issued a certificate to an agent and that it is
// valid now, and returns the agent's id and the certificate's serial, hex.
func (ca *CA) AgentOf(cert *x509.Certificate, now time.Time) (dr.AgentID, string, error) {
	const op = "authn.AgentOf"
	if cert == nil {
		return "", "", dr.Errorf(dr.KindUnauthenticated, op, "the agent shows no certificate").
			WithHint("register the host; if it is registered, see whether a proxy between it and the vault inspects TLS")
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return "", "", dr.Errorf(dr.KindUnauthenticated, op, "the agent's certificate is not valid: %w", err).
			WithHint("register the host again with a new registration key")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].Host != "holdfast" || !strings.HasPrefix(cert.URIs[0].Path, agentURI) {
		return "", "", dr.Errorf(dr.KindUnauthenticated, op, "the certificate names no agent")
	}
	return dr.AgentID(strings.TrimPrefix(cert.URIs[0].Path, agentURI)), cert.SerialNumber.Text(16), nil
}

func keyHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive and of one length
	return new(big.Int).SetBytes(b)
}
