// Package channel is the agent's one connection to the world: who the agent is
// (its key, certificate and registration) and the client of agentapi over mutual TLS.
//
// It promises that only the vault is talked to whose authority's public key the
// registration key names, that keys and secrets appear in no log, error or URL, and that
// the identity on disk is whole after a crash at any moment.
package channel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

// Deadlines of calls.
const (
	callTimeout      = 30 * time.Second
	inventoryTimeout = 2 * time.Minute
)

// PollGrace is how long beyond its wait a poll may take.
const PollGrace = 20 * time.Second

// maxAnswer bounds what is read of an answer, bytes.
const maxAnswer = 64 << 20

// Client speaks agentapi over mutual TLS. Every method makes one attempt
// within its own deadline: the loops above decide about the next one. A vault
// that can't be reached is dr.CodeVaultUnreachable, one that is not the right one
// dr.CodeVaultIdentity; errors that the vault sent keep kind, code and hint. It is safe for concurrent use.
type Client struct {
	base    string
	version string
	tls     *tls.Config
	proxy   func(*http.Request) (*url.URL, error)

	mu sync.Mutex
	hc *http.Client
}

// newClient returns a client of the vault that trust tells how to recognize.
func newClient(vaultURL string, trust *tls.Config, proxy func(*http.Request) (*url.URL, error), version string) *Client {
	c := &Client{base: strings.TrimSuffix(vaultURL, "/"), version: version, tls: trust, proxy: proxy}
	c.reset()
	return c
}

// reset makes the next calls use new connections, which show the current
// certificate. Calls that are on their way are not disturbed.
func (c *Client) reset() {
	tr := httpTransport(c.tls, c.proxy)
	tr.ForceAttemptHTTP2 = true
	tr.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second} // finds dead connections
	hc := &http.Client{Transport: tr, CheckRedirect: noRedirect}
	c.mu.Lock()
	old := c.hc
	c.hc = hc
	c.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
}

// Close drops idle connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hc.CloseIdleConnections()
	return nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// httpTransport returns an HTTP/1.1 transport.
func httpTransport(conf *tls.Config, proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   16,
	}
}

// proxyFunc returns how to find the proxy: a fixed one, or that of the environment (HTTPS_PROXY, NO_PROXY).
func proxyFunc(fixed string) (func(*http.Request) (*url.URL, error), error) {
	if fixed == "" {
		return http.ProxyFromEnvironment, nil
	}
	u, err := url.Parse(fixed)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, dr.Errorf(dr.KindInvalid, "channel.Proxy", "the proxy is not an http or https URL") // it may hold a password
	}
	return http.ProxyURL(u), nil
}

// trustCA is the TLS configuration that trusts the vault's authority only.
func trustCA(caPEM string, cert func() (*tls.Certificate, error)) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(caPEM)) {
		return nil, dr.Errorf(dr.KindCorrupt, "channel.Client", "the certificate of the vault's authority can't be read").
			WithHint("Register the host again with a new registration key.")
	}
	conf := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert() }
	}
	return conf, nil
}

var errPin = errors.New("no certificate in the server's chain has the public key that the registration key names")

// trustPin is the TLS configuration for the first contact: the server's chain
// must hold the authority whose public key has the SHA-256 pin (hex), and lead to it.
func trustPin(pin, host string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it: the authority is known by its hash only
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots, rest := x509.NewCertPool(), x509.NewCertPool()
			found := false
			for _, c := range cs.PeerCertificates[1:] {
				sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
				if c.IsCA && strings.EqualFold(hex.EncodeToString(sum[:]), pin) {
					roots.AddCert(c)
					found = true
					continue
				}
				rest.AddCert(c)
			}
			if !found {
				return errPin
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: rest, DNSName: host})
			return err
		},
	}
}

// call POSTs in and decodes the answer into out.
func (c *Client) call(ctx context.Context, path string, timeout time.Duration, in, out any) error {
	const op = "channel.Client"
	body, err := json.Marshal(in)
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode request to %s: %w", path, err)
	}
	cctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(cctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return dr.Errorf(dr.KindInvalid, op, "the vault's address %q is not a URL", c.base)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(agentapi.ProtocolHeader, strconv.Itoa(agentapi.Protocol))
	req.Header.Set(agentapi.VersionHeader, c.version)
	c.mu.Lock()
	hc := c.hc
	c.mu.Unlock()
	resp, err := hc.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.unreachable(err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return c.refused(resp, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return c.notVault(resp.StatusCode)
	}
	return nil
}

// unreachable classifies an error of the transport.
func (c *Client) unreachable(err error) error {
	const op = "channel.Client"
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return dr.New(dr.KindUnauthenticated, dr.CodeVaultIdentity, op, "check the certificate of %s: %w", c.base, err).
			WithHint("Compare the clocks of this host and the vault; the certificate is out of its time.")
	case errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid), errors.Is(err, errPin):
		return dr.New(dr.KindUnauthenticated, dr.CodeVaultIdentity, op, "check the certificate of %s: %w", c.base, err)
	case errors.As(err, &alert):
		return dr.Errorf(dr.KindUnauthenticated, op, "%s refused this host's certificate: %w", c.base, err).
			WithHint("Register the host again with a new registration key; if it is registered, see whether a proxy inspects TLS.")
	}
	return dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, op, "call %s: %w", c.base, err)
}

// refused makes the domain's error of an answer.
func (c *Client) refused(resp *http.Response, raw []byte) error {
	var b agentapi.ErrorBody
	if json.Unmarshal(raw, &b) != nil || b.Error.Kind == "" {
		return c.notVault(resp.StatusCode)
	}
	kind, _ := dr.ParseKind(b.Error.Kind)
	err := dr.New(kind, dr.Code(b.Error.Code), "vault", "%s", b.Error.Message)
	err.Hint = b.Error.Hint
	return err
}

func (c *Client) notVault(status int) error {
	hint := "Look for a proxy or a login page between this host and the vault."
	if status == http.StatusProxyAuthRequired {
		hint = "The proxy asks for a user name and password: put them into the proxy's URL."
	}
	return dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "channel.Client", "call %s: the answer (status %d) does not come from a Holdfast vault", c.base, status).WithHint("%s", hint)
}

// WireError is err as it is sent to the vault.
func WireError(err error) *agentapi.Error {
	return &agentapi.Error{Kind: dr.KindOf(err).String(), Code: string(dr.CodeOf(err)), Message: err.Error(), Hint: dr.HintOf(err)}
}

// Enroll registers the host; no certificate is needed.
func (c *Client) Enroll(ctx context.Context, r agentapi.EnrollRequest) (res agentapi.EnrollResponse, err error) {
	return res, c.call(ctx, agentapi.PathEnroll, callTimeout, r, &res)
}

// Renew asks for the next certificate.
func (c *Client) Renew(ctx context.Context, r agentapi.RenewRequest) (res agentapi.EnrollResponse, err error) {
	return res, c.call(ctx, agentapi.PathRenew, callTimeout, r, &res)
}

// Poll asks for work; it may be held for r.WaitSeconds.
func (c *Client) Poll(ctx context.Context, r agentapi.PollRequest) (res agentapi.PollResponse, err error) {
	return res, c.call(ctx, agentapi.PathPoll, time.Duration(r.WaitSeconds)*time.Second+PollGrace, r, &res)
}

// Report reports on a command.
func (c *Client) Report(ctx context.Context, r agentapi.ReportRequest) error {
	return c.call(ctx, agentapi.PathReport, callTimeout, r, nil)
}

// Inventory sends the host's VMs and networks.
func (c *Client) Inventory(ctx context.Context, r agentapi.InventoryRequest) error {
	return c.call(ctx, agentapi.PathInventory, inventoryTimeout, r, nil)
}

// VMM sends what a VMM server manages.
func (c *Client) VMM(ctx context.Context, r agentapi.VMMRequest) error {
	return c.call(ctx, agentapi.PathVMM, inventoryTimeout, r, nil)
}

// Warm tells how far warm replicas are, and asks which there are to be.
func (c *Client) Warm(ctx context.Context, r agentapi.WarmRequest) (res agentapi.WarmResponse, err error) {
	return res, c.call(ctx, agentapi.PathWarm, callTimeout, r, &res)
}

// Status sends the state of all replications.
func (c *Client) Status(ctx context.Context, r agentapi.StatusRequest) error {
	return c.call(ctx, agentapi.PathStatus, callTimeout, r, nil)
}

// Uploads asks for create-only URLs.
func (c *Client) Uploads(ctx context.Context, r agentapi.UploadRequest) (res agentapi.UploadResponse, err error) {
	return res, c.call(ctx, agentapi.PathUploads, callTimeout, r, &res)
}

// Head asks which objects are there.
func (c *Client) Head(ctx context.Context, r agentapi.HeadRequest) (res agentapi.HeadResponse, err error) {
	return res, c.call(ctx, agentapi.PathHead, callTimeout, r, &res)
}

// Commit announces a committed cut.
func (c *Client) Commit(ctx context.Context, r agentapi.CommitRequest) (res agentapi.CommitResponse, err error) {
	return res, c.call(ctx, agentapi.PathCommits, callTimeout, r, &res)
}

// OpenPoint asks for what it takes to read the recovery point of a serving.
func (c *Client) OpenPoint(ctx context.Context, r agentapi.OpenPointRequest) (res agentapi.OpenPointResponse, err error) {
	return res, c.call(ctx, agentapi.PathPoints, callTimeout, r, &res)
}

// Transport carries objects: to the vault's host it trusts the vault's
// authority, to other stores those of the system. It uses connections of its own and
// HTTP/1.1, so that bulk data neither delays the vault's channel nor waits for one window.
type Transport struct {
	vaultHost    string
	vault, other *http.Transport
}

func newTransport(vaultURL, caPEM string, proxy func(*http.Request) (*url.URL, error)) (*Transport, error) {
	conf, err := trustCA(caPEM, nil)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(vaultURL)
	if err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "channel.Client", "the vault's address %q is not a URL", vaultURL)
	}
	return &Transport{vaultHost: u.Hostname(), vault: httpTransport(conf, proxy), other: httpTransport(&tls.Config{MinVersion: tls.VersionTLS12}, proxy)}, nil
}

// RoundTrip implements http.RoundTripper.
func (d *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.EqualFold(r.URL.Hostname(), d.vaultHost) {
		return d.vault.RoundTrip(r)
	}
	return d.other.RoundTrip(r)
}

// CloseIdleConnections drops idle connections.
func (d *Transport) CloseIdleConnections() {
	d.vault.CloseIdleConnections()
	d.other.CloseIdleConnections()
}
