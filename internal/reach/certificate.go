package reach

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// expiresSoon is when a certificate's end is worth a word.
const expiresSoon = 14 * 24 * time.Hour

// verdict is what a certificate chain is worth.
type verdict struct {
	status, detail, remedy string
}

const interceptRemedy = "Exempt this address from TLS inspection in the proxy or firewall."

// judge verifies what a server showed. now is this machine's clock.
func judge(e Endpoint, chain []*x509.Certificate, roots *x509.CertPool, now time.Time) verdict {
	if len(chain) == 0 {
		return verdict{Failed, "the server showed no certificate", "Look what answers there instead."}
	}
	leaf := chain[0]
	if e.Trust != nil {
		roots = e.Trust
	}
	rest := x509.NewCertPool()
	for _, c := range chain[1:] {
		rest.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: rest, DNSName: e.Host, CurrentTime: now}
	paths, err := leaf.Verify(opts)
	if err == nil {
		return known(e, leaf, paths, now)
	}
	signer := signedBy(chain)
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if now.Before(leaf.NotBefore) {
			return verdict{Failed, fmt.Sprintf("the certificate is good from %s on, this machine's clock says %s", day(leaf.NotBefore), day(now)), "Check this machine's clock first, then the server's certificate."}
		}
		return verdict{Failed, fmt.Sprintf("a certificate of the chain is out of its time; the server's ends %s, this machine's clock says %s", day(leaf.NotAfter), day(now)),
			"Check this machine's clock first; if it is right, the server's certificate has to be renewed."}
	case errors.As(err, &host):
		return verdict{Failed, fmt.Sprintf("the certificate is not for %s but for %s; signed by %s", e.Host, names(leaf), signer), "Something else answers: look at DNS, the hosts file, and a proxy or load balancer on the way."}
	case errors.As(err, &authority) && e.Trust != nil:
		return verdict{Failed, fmt.Sprintf("the certificate is signed by %s, not by the vault's authority: TLS is intercepted on the way, or another vault answers", signer),
			interceptRemedy + " An agent trusts nothing but its vault's authority."}
	case errors.As(err, &authority) && len(e.Signers) > 0:
		return verdict{Failed, fmt.Sprintf("the certificate is signed by %s, which this machine does not trust and %s does not use: TLS is intercepted on the way", signer, operator(e)),
			interceptRemedy + " If that can't be, install the inspecting authority's certificate on this machine."}
	case errors.As(err, &authority):
		return verdict{Failed, fmt.Sprintf("the certificate is signed by %s, which this machine does not trust", signer),
			"If that is a proxy that inspects TLS, exempt this address from it; if it is the server's own authority, install its certificate on this machine."}
	}
	return verdict{Failed, "the certificate does not verify: " + err.Error(), "Have the server's certificate replaced, or look what answers there instead."}
}

// known judges a chain that verifies.
func known(e Endpoint, leaf *x509.Certificate, paths [][]*x509.Certificate, now time.Time) verdict {
	root := paths[0][len(paths[0])-1]
	by := organization(root)
	expected := len(e.Signers) == 0
	for _, path := range paths {
		for _, s := range e.Signers {
			if o := organization(path[len(path)-1]); strings.Contains(strings.ToLower(o), strings.ToLower(s)) {
				expected, by = true, o
			}
		}
	}
	if !expected {
		return verdict{Warning, fmt.Sprintf("TLS is intercepted: this machine trusts the certificate, but it is signed by %s, which %s does not use", by, operator(e)),
			interceptRemedy + " It works as long as this machine trusts that authority, and whoever holds it can read requests and use the addresses signed for them."}
	}
	left := leaf.NotAfter.Sub(now)
	if left < expiresSoon {
		return verdict{Warning, fmt.Sprintf("the certificate, signed by %s, ends %s", by, day(leaf.NotAfter)), "Have it renewed; see that the time is not this machine's clock's fault."}
	}
	return verdict{OK, fmt.Sprintf("signed by %s, until %s", by, leaf.NotAfter.UTC().Format(time.DateOnly)), ""}
}

// operator is who runs an endpoint whose signers are known.
func operator(e Endpoint) string {
	if e.Azure {
		return "Azure"
	}
	return "the operator of " + e.Host
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// signedBy names the last issuer that the server shows.
func signedBy(chain []*x509.Certificate) string {
	last := chain[len(chain)-1]
	name := last.Issuer.CommonName
	if len(last.Issuer.Organization) > 0 && last.Issuer.Organization[0] != name {
		name = strings.TrimPrefix(name+" of "+last.Issuer.Organization[0], " of ")
	}
	if name == "" {
		sum := sha256.Sum256(last.RawSubjectPublicKeyInfo)
		name = "an authority without a name (key " + hex.EncodeToString(sum[:4]) + "…)"
	}
	return "\"" + shorten(name) + "\""
}

func organization(c *x509.Certificate) string {
	if len(c.Subject.Organization) > 0 {
		return shorten(c.Subject.Organization[0])
	}
	if c.Subject.CommonName == "" {
		return "an authority without a name"
	}
	return shorten(c.Subject.CommonName)
}

func names(c *x509.Certificate) string {
	list := c.DNSNames
	for _, ip := range c.IPAddresses {
		list = append(list[:len(list):len(list)], ip.String())
	}
	if len(list) == 0 {
		return "no name"
	}
	if len(list) > 3 {
		return shorten(strings.Join(list[:3], ", ")) + ", …"
	}
	return shorten(strings.Join(list, ", "))
}

// shorten keeps what a stranger wrote to one short line of letters.
func shorten(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
