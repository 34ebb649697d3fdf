package wsman

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
)

// pool keeps connections that are signed in. NTLM signs a connection in, not a
// request, and sealing numbers the messages of a connection: so one connection carries one
// request at a time.
type pool struct {
	cfg  Config
	url  *url.URL
	tls  *tls.Config // nil = no TLS
	slot chan struct{}

	mu     sync.Mutex
	idle   []*conn // the last one used is the first one taken
	closed bool
	// The password that was refused last, so as not to try it again at once.
	secret, refused []byte
	refusedAt       time.Time
}

func newPool(cfg Config, u *url.URL, conf *tls.Config) *pool {
	return &pool{cfg: cfg, url: u, tls: conf, slot: make(chan struct{}, cfg.Connections), secret: []byte(rand.Text())}
}

// tlsConfig is nil for an address without TLS.
func tlsConfig(cfg *Config, u *url.URL) (*tls.Config, error) {
	if u.Scheme != "https" {
		return nil, nil
	}
	conf := &tls.Config{}
	if cfg.TLS != nil {
		conf = cfg.TLS.Clone()
	}
	if conf.MinVersion < tls.VersionTLS12 {
		conf.MinVersion = tls.VersionTLS12
	}
	if conf.ServerName == "" {
		conf.ServerName = u.Hostname()
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("wsman: certificates of %s: %w", u.Host, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("wsman: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.Pin != "" {
		want, err := hex.DecodeString(strings.ReplaceAll(cfg.Pin, ":", ""))
		if err != nil || len(want) != sha256.Size {
			return nil, fmt.Errorf("wsman: pin %q is no SHA-256 of 64 hex digits", cfg.Pin)
		}
		conf.InsecureSkipVerify = true // the pin is checked instead
		next := conf.VerifyConnection
		conf.VerifyConnection = func(cs tls.ConnectionState) error {
			got := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], want) != 1 {
				return fmt.Errorf("the server's certificate has SHA-256 %x, not the pinned one", got)
			}
			if next != nil {
				return next(cs)
			}
			return nil
		}
	}
	return conf, nil
}

// exchange implements exchanger.
func (p *pool) exchange(ctx context.Context, r *request, envelope string) ([]byte, int, error) {
	select {
	case p.slot <- struct{}{}:
		defer func() { <-p.slot }()
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
	for attempt := 0; ; attempt++ {
		c, err := p.get(ctx, r.anon, attempt == 0)
		if err != nil {
			return nil, 0, err
		}
		answer, err := c.roundTrip(ctx, p, envelope)
		if err == nil {
			p.put(c, r.anon)
			return answer.body, answer.status, nil
		}
		c.close()
		// Only a connection that lay idle may have been broken through nobody's fault.
		again := attempt == 0 && c.used && ctx.Err() == nil && (errors.Is(err, errNotSent) || errors.Is(err, errSignInAgain) ||
			errors.Is(err, errBroken) && !r.unsafe)
		if again {
			continue
		}
		if errors.Is(err, errBroken) && r.unsafe {
			return nil, 0, &cim.Error{Code: cim.CodeUnavailable, Message: "the connection broke; whether the server did it is not known", Err: err}
		}
		if errors.Is(err, errSignInAgain) {
			return nil, 0, &cim.Error{Code: cim.CodeUnauthorized, Message: "the server refuses " + p.who()}
		}
		return nil, 0, err
	}
}

func (p *pool) who() string {
	if p.cfg.User == "" {
		return "this process's own identity"
	}
	return "user " + p.cfg.User
}

// get returns an idle connection that is still open, or a new one.
func (p *pool) get(ctx context.Context, anon, reuse bool) (*conn, error) {
	for !anon && reuse {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if p.cfg.Now().Sub(c.since) < p.cfg.IdleTimeout && c.alive() {
			return c, nil
		}
		c.close()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.DialTimeout, fmt.Errorf("connecting and signing in took longer than %v", p.cfg.DialTimeout))
	defer cancel()
	c, err := p.dial(ctx)
	if err == nil && !anon {
		if err = c.signIn(ctx, p); err != nil {
			c.close()
		}
	}
	if err != nil {
		var known *cim.Error
		if ctx.Err() != nil && !errors.As(err, &known) {
			err = &cim.Error{Code: cim.CodeUnavailable, Message: "cannot connect to " + p.url.Host, Err: context.Cause(ctx)}
		}
		return nil, err
	}
	return c, nil
}

func (p *pool) put(c *conn, anon bool) {
	c.since, c.used = p.cfg.Now(), true
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || anon || c.last {
		c.close()
		return
	}
	p.idle = append(p.idle, c)
}

// close closes idle connections; no exchange may be under way.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		c.close()
	}
	p.idle = nil
	return nil
}

// dial connects, through the proxy if there is one, and starts TLS.
func (p *pool) dial(ctx context.Context) (*conn, error) {
	target := p.url.Host
	if p.url.Port() == "" {
		target = net.JoinHostPort(p.url.Hostname(), map[string]string{"http": "80", "https": "443"}[p.url.Scheme])
	}
	address := target
	if p.cfg.Proxy != nil {
		address = p.cfg.Proxy.Host
		if p.cfg.Proxy.Port() == "" {
			address = net.JoinHostPort(p.cfg.Proxy.Hostname(), "80")
		}
	}
	nc, err := p.cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, &cim.Error{Code: cim.CodeUnavailable, Message: "cannot connect to " + address, Err: err}
	}
	c := &conn{raw: nc}
	release := c.bind(ctx)
	defer release()
	c.use(nc)
	if p.cfg.Proxy != nil {
		if err := c.tunnel(p.cfg.Proxy, target); err != nil {
			c.close()
			return nil, err
		}
	}
	if p.tls != nil {
		// The bound on what the peer may send before it is known is lifted after the handshake.
		below := c.limit
		t := tls.Client(readFrom{nc, c.br}, p.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			c.close()
			return nil, &cim.Error{Code: cim.CodeUnavailable, Message: "TLS with " + target + " failed", Err: err}
		}
		below.left = math.MaxInt64
		c.certificate = t.ConnectionState().PeerCertificates[0]
		c.use(t)
	}
	return c, nil
}

// readFrom reads through a buffer that may hold bytes already.
type readFrom struct {
	net.Conn
	r *bufio.Reader
}

func (c readFrom) Read(b []byte) (int, error) { return c.r.Read(b) }

// tunnel asks a proxy for a connection ([RFC 9110] 9.3.6).
func (c *conn) tunnel(proxy *url.URL, target string) error {
	head := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := c.rw.Write([]byte(head + "\r\n")); err != nil {
		return &cim.Error{Code: cim.CodeUnavailable, Message: "the proxy " + proxy.Host + " does not answer", Err: err}
	}
	c.limit.left = maxHead
	resp, err := http.ReadResponse(c.br, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return &cim.Error{Code: cim.CodeUnavailable, Message: "the proxy " + proxy.Host + " does not answer", Err: err}
	}
	// The body is not closed: that would read what belongs to the tunnel, or wait for it.
	if resp.StatusCode != http.StatusOK {
		e := httpError("", resp.StatusCode)
		if e.Code == cim.CodeProtocol {
			e.Code = cim.CodeUnavailable
		}
		e.Message = fmt.Sprintf("the proxy %s refuses a tunnel to %s: %s", proxy.Host, target, e.Message)
		return e
	}
	c.limit.left = maxHandshake
	return nil
}

const (
	maxHead      = 64 << 10 // bytes of an HTTP head, or of an answer that only signs in
	maxHandshake = 1 << 20
)

// drop is when a connection's deadline has passed for sure.
var drop = time.Unix(1, 0)
