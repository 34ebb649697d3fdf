package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var errLocked = errors.New("another hvsim works there")

// entry is what a client needs to come in. All of it is the same after a restart.
type entry struct {
	password     string
	passwordFile string
	tls          *tls.Config // nil = plain HTTP
	pin          string
}

func openEntry(o options) (e entry, err error) {
	e.passwordFile = o.password
	if e.passwordFile == "" {
		e.passwordFile = filepath.Join(o.dir, "password")
		if err := makePassword(e.passwordFile); err != nil {
			return e, err
		}
	}
	raw, err := os.ReadFile(e.passwordFile)
	if err != nil {
		return e, fmt.Errorf("read the password: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	if e.password = strings.TrimSuffix(line, "\r"); e.password == "" {
		return e, fmt.Errorf("the password file %s is empty", e.passwordFile)
	}
	if e.passwordFile, err = filepath.Abs(e.passwordFile); err != nil {
		return e, err
	}
	if o.tls {
		if e.tls, e.pin, err = certificate(o.dir, o.listen); err != nil {
			return e, fmt.Errorf("certificate for --tls: %w", err)
		}
	}
	return e, writeSamples(o.dir)
}

// makePassword makes a password unless there is one.
func makePassword(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b := make([]byte, 15)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	return replace(path, []byte(base32.StdEncoding.EncodeToString(b)+"\n"), 0o600)
}

// replace writes a file that is there in full or not at all.
func replace(path string, b []byte, mode os.FileMode) error {
	if err := os.WriteFile(path+".new", b, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// certificate returns the directory's certificate, which nobody vouches for, and its
// fingerprint. A new one is made if there is none that fits.
func certificate(dir, listen string) (*tls.Config, string, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, "", fmt.Errorf("--listen %s: %w", listen, err)
	}
	if host == "" {
		host = "localhost"
	}
	certFile, keyFile := filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "certificate.key")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil || pair.Leaf.VerifyHostname(host) != nil || time.Until(pair.Leaf.NotAfter) < 24*time.Hour {
		if err := makeCertificate(host, certFile, keyFile); err != nil {
			return nil, "", err
		}
		if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
			return nil, "", err
		}
	}
	sum := sha256.Sum256(pair.Certificate[0])
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, hex.EncodeToString(sum[:]), nil
}

func makeCertificate(host, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "hvsim"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = append(t.IPAddresses, ip)
	} else {
		t.DNSNames = append(t.DNSNames, host)
	}
	if name, err := os.Hostname(); err == nil {
		t.DNSNames = append(t.DNSNames, name)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := replace(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return err
	}
	return replace(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// samples are files for the commands that welcome shows: they are put into the directory.
//
//go:embed samples
var samples embed.FS

func writeSamples(dir string) error {
	list, err := samples.ReadDir("samples")
	if err != nil {
		return err
	}
	for _, f := range list {
		b, err := samples.ReadFile("samples/" + f.Name())
		if err == nil {
			err = replace(filepath.Join(dir, f.Name()), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// welcome is what is printed when all hosts are served: enough to connect.
func welcome(o options, e entry, list []served) string {
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "%-5s %s  %d VMs, drives in %s\n", s.Host, s.URL, s.VMs, s.Files)
	}
	if e.pin != "" {
		fmt.Fprintf(&b, "certificate, SHA-256 %s\n", e.pin)
	}
	fmt.Fprintf(&b, "user %s, password in %s\n\n", o.user, e.passwordFile)
	at := func(name string) string { return quote(filepath.Join(o.dir, name)) }
	sign, file := fmt.Sprintf(" --ntlm -u %s:\"$(cat %s)\"", quote(o.user), quote(e.passwordFile)), "vms.xml"
	switch {
	case e.tls != nil:
		sign += " \\\n  --cacert " + at("certificate.pem")
	case !o.basic: // curl can't seal messages
		sign, file = " -H 'WSMANIDENTIFY: unauthenticated'", "identify.xml"
	}
	fmt.Fprintf(&b, "curl -sS%s \\\n  -H 'Content-Type: application/soap+xml' -d @%s \\\n  %s\n\n", sign, at(file), list[0].URL)
	fmt.Fprintf(&b, "/usr/bin/python3 %s \\\n  %s %s \\\n  %s", at("vms.py"), list[0].URL, quote(o.user), quote(e.passwordFile))
	if e.tls != nil {
		b.WriteString(" " + at("certificate.pem"))
	}
	b.WriteString("\n\n")
	if e.tls == nil && !o.basic {
		b.WriteString("Messages must be sealed by NTLM, which curl can't do; --tls or --basic lets it\nsign in. ")
	}
	b.WriteString("Ctrl-C ends it.\n")
	return b.String()
}

// quote makes a word of a shell.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// counts is a list of how often each thing was.
func counts(m map[string]int) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s was used %d times", name, m[name]))
	}
	return out
}
