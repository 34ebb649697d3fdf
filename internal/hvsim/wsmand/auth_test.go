package wsmand_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/ntlm"
	"holdfast/internal/hvsim/wsmand"
)

// certificate makes one for this machine and returns the file that holds it.
func certificate(t *testing.T) (*tls.Config, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hvsim"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, file
}

// sealed is a client that signs in by NTLM and seals, on one connection.
type sealed struct {
	t      *testing.T
	url    string
	http   *http.Client
	client *ntlm.Client
	spnego bool
}

func newSealed(t *testing.T, addr, password string, spnego bool) *sealed {
	tr := &http.Transport{MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	return &sealed{t: t, url: "http://" + addr + "/wsman", http: &http.Client{Transport: tr, Timeout: 20 * time.Second}, spnego: spnego,
		client: ntlm.NewClient(ntlm.ClientConfig{User: user, Domain: "LAB", Password: password})}
}

func (c *sealed) send(body []byte, contentType, auth string) (*http.Response, []byte) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), "POST", c.url, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	a, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return a, b
}

func tlv(tag byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	out := []byte{tag}
	switch n := len(body); {
	case n < 128:
		out = append(out, byte(n))
	case n < 256:
		out = append(out, 0x81, byte(n))
	default:
		out = append(out, 0x82, byte(n>>8), byte(n))
	}
	return append(out, body...)
}

var (
	oidSPNEGO   = []byte{6, 6, 0x2b, 6, 1, 5, 5, 2}
	oidNTLM     = []byte{6, 10, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 10}
	oidKerberos = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 1, 2, 2}
)

// token finds the answer's token; of SPNEGO it is the longest octet string in it.
func (c *sealed) token(a *http.Response) []byte {
	c.t.Helper()
	scheme, v, _ := strings.Cut(a.Header.Get("WWW-Authenticate"), " ")
	data, err := base64.StdEncoding.DecodeString(v)
	if err != nil || scheme != "Negotiate" {
		c.t.Fatalf("answer %s: %q", a.Status, a.Header)
	}
	if !c.spnego {
		return data
	}
	var resp, seq asn1.RawValue
	if _, err := asn1.Unmarshal(data, &resp); err != nil || resp.Class != asn1.ClassContextSpecific || resp.Tag != 1 {
		c.t.Fatalf("no NegTokenResp: %x", data)
	}
	if _, err := asn1.Unmarshal(resp.Bytes, &seq); err != nil || seq.Tag != asn1.TagSequence {
		c.t.Fatalf("no sequence: %x", data)
	}
	for rest := seq.Bytes; len(rest) > 0; {
		var field asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			c.t.Fatal(err)
		}
		if field.Tag == 2 {
			var token []byte
			if _, err := asn1.Unmarshal(field.Bytes, &token); err != nil {
				c.t.Fatal(err)
			}
			return token
		}
	}
	return nil
}

// signIn makes the two steps and returns the last status.
func (c *sealed) signIn() int {
	c.t.Helper()
	msg, err := c.client.Negotiate()
	if err != nil {
		c.t.Fatal(err)
	}
	if c.spnego {
		mechs := tlv(0xa0, tlv(0x30, oidNTLM, oidKerberos))
		msg = tlv(0x60, oidSPNEGO, tlv(0xa0, tlv(0x30, mechs, tlv(0xa2, tlv(0x04, msg)))))
	}
	a, _ := c.send(nil, "", "Negotiate "+base64.StdEncoding.EncodeToString(msg))
	if a.StatusCode != 401 {
		c.t.Fatalf("first step: %s", a.Status)
	}
	return c.finish(c.token(a))
}

func (c *sealed) finish(challenge []byte) int {
	c.t.Helper()
	msg, err := c.client.Authenticate(challenge)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.spnego {
		msg = tlv(0xa1, tlv(0x30, tlv(0xa2, tlv(0x04, msg))))
	}
	a, _ := c.send(nil, "", "Negotiate "+base64.StdEncoding.EncodeToString(msg))
	if c.spnego && a.StatusCode == 200 {
		// accept-completed is a state that must be there, although it is zero.
		if v := a.Header.Get("WWW-Authenticate"); v != "Negotiate "+base64.StdEncoding.EncodeToString(tlv(0xa1, tlv(0x30, tlv(0xa0, []byte{0x0a, 1, 0})))) {
			c.t.Errorf("last step: %q", v)
		}
	}
	return a.StatusCode
}

const sealedType = `multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";boundary="Encrypted Boundary"`

func (c *sealed) seal(text string) []byte {
	c.t.Helper()
	data, signature, err := c.client.Session().Seal([]byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=%d\r\n", len(text))
	b.WriteString("--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n")
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(signature))))
	b.Write(append(signature, data...))
	b.WriteString("--Encrypted Boundary--\r\n")
	return b.Bytes()
}

func (c *sealed) ask(text string) (int, string) {
	c.t.Helper()
	a, body := c.send(c.seal(text), sealedType, "")
	if a.Header.Get("Content-Type") != sealedType {
		return a.StatusCode, string(body)
	}
	_, rest, _ := bytes.Cut(body, []byte("\tContent-Type: application/octet-stream\r\n"))
	rest = bytes.TrimSuffix(rest, []byte("--Encrypted Boundary--\r\n"))
	n := binary.LittleEndian.Uint32(rest)
	plain, err := c.client.Session().Unseal(rest[4+n:], rest[4:4+n])
	if err != nil {
		c.t.Fatal(err)
	}
	return a.StatusCode, string(plain)
}

// strict is a server as Windows is set up: nothing unencrypted.
func strict(t *testing.T, s cim.Session) (*wsmand.Server, string) {
	cfg := config(s)
	cfg.AllowUnencrypted, cfg.Computer, cfg.Domain = false, "HV1", "LAB"
	srv := newServer(t, cfg)
	return srv, listen(t, srv)
}

func TestSealing(t *testing.T) {
	t.Parallel()
	for _, spnego := range []bool{false, true} {
		t.Run(fmt.Sprintf("spnego %v", spnego), func(t *testing.T) {
			t.Parallel()
			_, addr := strict(t, newSession())
			c := newSealed(t, addr, password, spnego)
			if status := c.signIn(); status != 200 {
				t.Fatalf("sign-in: %d", status)
			}
			job := envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")
			for range 3 {
				if status, body := c.ask(job); status != 200 || !strings.Contains(body, "<p:JobState>7</p:JobState>") {
					t.Fatalf("get: %d %s", status, body)
				}
			}
			if status, body := c.ask(envelope("urn:x", "", "", "")); status != 500 || !strings.Contains(body, "ActionNotSupported") {
				t.Errorf("a fault is not sealed: %d %s", status, body)
			}
			// The same, not sealed, on the connection that is signed in.
			if a, body := c.send([]byte(job), "application/soap+xml;charset=UTF-8", ""); a.StatusCode != 500 || strings.Contains(string(body), "Envelope") {
				t.Errorf("unencrypted: %s %s", a.Status, body)
			}
			if status, _ := c.ask(job); status != 200 {
				t.Errorf("after the refusal: %d", status)
			}
		})
	}
}

func TestSealedMessagesAreChecked(t *testing.T) {
	t.Parallel()
	job := envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")
	for name, damage := range map[string]func([]byte) []byte{
		"changed":      func(b []byte) []byte { b[len(b)-40] ^= 1; return b },
		"signature":    func(b []byte) []byte { i := bytes.Index(b, []byte("octet-stream\r\n")) + 22; b[i] ^= 1; return b },
		"cut":          func(b []byte) []byte { return b[:len(b)-30] },
		"length":       func(b []byte) []byte { return bytes.Replace(b, []byte("Length="), []byte("Length=1"), 1) },
		"no length":    func(b []byte) []byte { return bytes.Replace(b, []byte("Length="), []byte("L="), 1) },
		"no part":      func(b []byte) []byte { return bytes.Replace(b, []byte("octet-stream"), []byte("nothing"), 1) },
		"huge sig":     func(b []byte) []byte { i := bytes.Index(b, []byte("octet-stream\r\n")) + 14; b[i+3] = 0xff; return b },
		"only an end":  func([]byte) []byte { return []byte("--Encrypted Boundary--\r\n") },
		"nothing else": func([]byte) []byte { return []byte("x") },
	} {
		_, addr := strict(t, newSession())
		c := newSealed(t, addr, password, false)
		if status := c.signIn(); status != 200 {
			t.Fatal(status)
		}
		if a, body := c.send(damage(c.seal(job)), sealedType, ""); a.StatusCode != 400 {
			t.Errorf("%s: %s %s", name, a.Status, body)
		}
		// Neither the connection nor the session may be used further.
		if a, _ := c.send(c.seal(job), sealedType, ""); a.StatusCode != 401 {
			t.Errorf("%s: then %s", name, a.Status)
		}
	}
	// A message that was recorded can't be sent again.
	_, addr := strict(t, newSession())
	c := newSealed(t, addr, password, false)
	c.signIn()
	msg := c.seal(job)
	if a, _ := c.send(msg, sealedType, ""); a.StatusCode != 200 {
		t.Fatal(a.Status)
	}
	if a, _ := c.send(msg, sealedType, ""); a.StatusCode != 400 {
		t.Errorf("replay: %s", a.Status)
	}
}

func TestSignInIsPerConnection(t *testing.T) {
	t.Parallel()
	_, addr := strict(t, newSession())
	c := newSealed(t, addr, password, false)
	if status := c.signIn(); status != 200 {
		t.Fatal(status)
	}
	c.http.CloseIdleConnections()
	if a, _ := c.send(c.seal(envelope("", "", "", identify)), sealedType, ""); a.StatusCode != 401 {
		t.Errorf("on another connection: %s", a.Status)
	}
	bad := newSealed(t, addr, "wrong", false)
	if status := bad.signIn(); status != 401 {
		t.Errorf("wrong password: %d", status)
	}
	for _, token := range []string{"", "AAAA", "!", base64.StdEncoding.EncodeToString([]byte("NTLMSSP\x00\x03\x00\x00\x00")), "YAA=", "oQA="} {
		if a, _ := bad.send(nil, "", "Negotiate "+token); a.StatusCode != 401 || a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("token %q: %s %v", token, a.Status, a.Header)
		}
	}
}

func TestSPNEGOWithKerberosFirst(t *testing.T) {
	t.Parallel()
	_, addr := strict(t, newSession())
	c := newSealed(t, addr, password, true)
	first := tlv(0x60, oidSPNEGO, tlv(0xa0, tlv(0x30, tlv(0xa0, tlv(0x30, oidKerberos, oidNTLM)), tlv(0xa2, tlv(0x04, []byte("a ticket"))))))
	a, _ := c.send(nil, "", "Negotiate "+base64.StdEncoding.EncodeToString(first))
	if a.StatusCode != 401 || c.token(a) != nil {
		t.Fatalf("%s %q", a.Status, a.Header)
	}
	msg, err := c.client.Negotiate()
	if err != nil {
		t.Fatal(err)
	}
	a, _ = c.send(nil, "", "Negotiate "+base64.StdEncoding.EncodeToString(tlv(0xa1, tlv(0x30, tlv(0xa2, tlv(0x04, msg))))))
	if status := c.finish(c.token(a)); status != 200 {
		t.Errorf("sign-in: %d", status)
	}
	only := tlv(0x60, oidSPNEGO, tlv(0xa0, tlv(0x30, tlv(0xa0, tlv(0x30, oidKerberos)))))
	if a, _ := c.send(nil, "", "Negotiate "+base64.StdEncoding.EncodeToString(only)); a.StatusCode != 401 {
		t.Errorf("Kerberos only: %s", a.Status)
	}
}

// The channel binding of another TLS connection is refused: somebody stands between.
func TestChannelBinding(t *testing.T) {
	t.Parallel()
	conf, _ := certificate(t)
	cert, err := x509.ParseCertificate(conf.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(newSession())
	cfg.TLS, cfg.Basic = conf, false
	addr := listen(t, newServer(t, cfg))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	for name, c := range map[string]struct {
		binding []byte
		status  int
	}{"this": {ntlm.TLSServerEndPoint(cert), 200}, "none": {nil, 200}, "other": {[]byte("tls-server-end-point:other"), 401}} {
		tr := &http.Transport{MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
		s := &sealed{t: t, url: "https://" + addr + "/wsman", http: &http.Client{Transport: tr, Timeout: 20 * time.Second},
			client: ntlm.NewClient(ntlm.ClientConfig{User: user, Domain: "LAB", Password: password, ChannelBinding: c.binding})}
		if status := s.signIn(); status != c.status {
			t.Errorf("%s: %d", name, status)
		}
		if c.status == 200 {
			if status, body := s.ask(envelope("", "", "", identify)); status != 200 || !strings.Contains(body, "IdentifyResponse") {
				t.Errorf("%s: sealed over TLS: %d %s", name, status, body)
			}
		}
		tr.CloseIdleConnections()
	}
}
