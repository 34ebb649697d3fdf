package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
)

// fleet is the WS-Man servers of all hosts.
type fleet struct {
	list   []*wsmand.Server
	failed chan error
}

func (f *fleet) close() error {
	var errs []error
	for _, s := range f.list {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// serve starts one server per host.
func serve(o options, site *hvsim.Site, password string, log *slog.Logger) (*fleet, []served, error) {
	f := &fleet{failed: make(chan error, len(site.Hosts()))}
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return f, nil, fmt.Errorf("--listen: %w", err)
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return f, nil, fmt.Errorf("--listen: port %q is no number", port)
	}
	var list []served
	for i, h := range site.Hosts() {
		at := first
		if first != 0 {
			at += i
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(at)))
		if err != nil {
			return f, nil, fmt.Errorf("listen for host %s: %w", h.Conf.Name, err)
		}
		s := served{Host: h.Conf.Name, URL: "http://" + ln.Addr().String() + "/wsman", Files: h.Dir(), VMs: len(h.VMs())}
		cfg := wsmand.Config{Session: func(string) (cim.Session, error) { return h, nil }, Schema: wsmand.Tables(schema.Load()), Computer: h.Conf.Name, Basic: o.basic, AllowUnencrypted: o.basic, Log: log,
			Password: func(user, _ string) (string, bool) { return password, strings.EqualFold(user, o.user) }}
		if o.tls {
			if cfg.TLS, s.Pin, err = certificate(host); err != nil {
				return f, nil, errors.Join(err, ln.Close())
			}
			s.URL = "https://" + ln.Addr().String() + "/wsman"
		}
		server := wsmand.New(cfg)
		f.list = append(f.list, server)
		list = append(list, s)
		go func() { // ends with server.Close
			if err := server.Serve(ln); err != nil {
				f.failed <- fmt.Errorf("serve host %s: %w", h.Conf.Name, err)
			}
		}()
	}
	return f, list, nil
}

// certificate makes a certificate that nobody vouches for, and its fingerprint.
func certificate(host string) (*tls.Config, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "hvsim"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"}}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else if host != "" {
		t.DNSNames = append(t.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(der)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, hex.EncodeToString(sum[:]), nil
}
