// Package wsman drives a CIM server over WS-Management ([DSP0226], [DSP0227],
// [MS-WSMV]), the protocol of Windows Remote Management: a cim.Session on
// HTTP or HTTPS with NTLM, the service's own Windows identity, or Basic.
//
// It promises: over plain HTTP every message is sealed in both directions, and
// an answer that is not is refused; a credential never travels in the clear
// unless AllowPlain says so. Every call ends by its deadline whatever the server
// does, and takes a bounded amount of memory. A query, a read or an identification is
// sent again once when an idle connection turns out to be broken; a method call
// is sent again only when it is certain that the server did not see it, and
// fails with cim.CodeUnavailable, outcome unknown, otherwise. A password that the
// server refused is not tried again for a while, so a loop cannot lock the account.
package wsman

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
)

// Auth is a way to sign in.
type Auth string

// Ways to sign in.
const (
	// AuthNegotiate signs in as the process itself (Windows only) when Config.User is empty, else by NTLM.
	AuthNegotiate Auth = "negotiate"
	AuthNTLM      Auth = "ntlm"
	// AuthBasic sends the password itself; only over TLS, unless Config.AllowPlain.
	AuthBasic Auth = "basic"
)

// Config describes a server and how to talk to it. Only URL is required, and User and Password unless
// the process's own identity is used.
type Config struct {
	URL  string // http://host:5985/wsman or https://host:5986/wsman
	Auth Auth   // empty = AuthNegotiate
	User string // name, DOMAIN\name or name@domain
	// Password is asked for when a connection signs in, so a changed one is taken up.
	Password   func(ctx context.Context) (string, error)
	AllowPlain bool // Basic over HTTP without TLS: for tests on one machine only

	TLS    *tls.Config // base; nil = the system's roots
	CAFile string      // PEM certificates that replace the system's roots
	// Pin is the SHA-256 of the server's certificate as 64 hex digits, colons allowed: then neither its issuer
	// nor its name is checked.
	Pin string
	// Proxy is an HTTP proxy that tunnels by CONNECT, with its user and password if it wants them; nil = none.
	Proxy *url.URL
	// Dial replaces net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Mechanism replaces the choice between NTLM and the process's identity. binding is the TLS channel
	// binding, nil without TLS.
	Mechanism func(ctx context.Context, host string, binding []byte) (Mechanism, error)

	Timeout     time.Duration // of one request; 0 = 60 s
	DialTimeout time.Duration // 0 = 15 s, to sign in included
	IdleTimeout time.Duration // after which a connection is not used again; 0 = 60 s
	Connections int           // at most, = requests under way; 0 = 4
	MaxEnvelope int           // bytes of one message either way; 0 = 512000, Windows' default
	MaxElements int           // instances in one page; 0 = 256
	MaxResult   int64         // bytes of all pages of one query; 0 = 256 MiB
	Locale      string        // of texts; "" = en-US
	Recorder    Recorder      // may be nil
	Now         func() time.Time
}

// Session is a cim.Session over WS-Man.
type Session struct {
	cfg  Config
	pool exchanger

	mu      sync.Mutex
	noRefs  bool // the server takes no EnumerateObjectAndEPR
	closed  bool
	cancel  context.CancelCauseFunc
	base    context.Context
	running sync.WaitGroup
}

// exchanger carries one envelope to the server and the answer back: the connection pool, or a recording.
type exchanger interface {
	exchange(ctx context.Context, r *request, envelope string) (response []byte, status int, err error)
	close() error
}

var errClosed = errors.New("the session is closed")

// New checks a configuration and returns a session that has not connected yet.
func New(cfg Config) (*Session, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("wsman: address %q is none like https://host:5986/wsman", redact(cfg.URL))
	}
	if u.User != nil {
		return nil, fmt.Errorf("wsman: address %q holds a user: set Config.User and Password", u.Redacted())
	}
	defaults(&cfg)
	if cfg.MaxEnvelope < 8192 {
		return nil, fmt.Errorf("wsman: MaxEnvelope of %d bytes; [DSP0226] demands at least 8192", cfg.MaxEnvelope)
	}
	switch cfg.Auth {
	case AuthBasic:
		if u.Scheme != "https" && !cfg.AllowPlain {
			return nil, fmt.Errorf("wsman: basic authentication to %s would send the password in the clear: use https", u.Host)
		}
	case AuthNegotiate, AuthNTLM:
	default:
		return nil, fmt.Errorf("wsman: unknown authentication %q (negotiate, ntlm or basic)", cfg.Auth)
	}
	own := cfg.Auth == AuthNegotiate && cfg.User == ""
	if cfg.Mechanism == nil && !own && (cfg.User == "" || cfg.Password == nil) {
		return nil, fmt.Errorf("wsman: %s authentication to %s needs a user and a password", cfg.Auth, u.Host)
	}
	if cfg.Proxy != nil && cfg.Proxy.Scheme != "http" {
		return nil, fmt.Errorf("wsman: proxy %s is no http:// address", cfg.Proxy.Redacted())
	}
	conf, err := tlsConfig(&cfg, u)
	if err != nil {
		return nil, err
	}
	return newSession(cfg, newPool(cfg, u, conf)), nil
}

func newSession(cfg Config, x exchanger) *Session {
	s := &Session{cfg: cfg, pool: x}
	s.base, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Dial returns a session whose server answers and takes the credentials.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	s, err := New(cfg)
	if err != nil {
		return nil, err
	}
	if _, err := s.Identify(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func defaults(c *Config) {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.Timeout, time.Minute)
	set(&c.DialTimeout, 15*time.Second)
	set(&c.IdleTimeout, time.Minute)
	if c.Auth == "" {
		c.Auth = AuthNegotiate
	}
	if c.Connections <= 0 {
		c.Connections = 4
	}
	if c.MaxEnvelope <= 0 {
		c.MaxEnvelope = 512000
	}
	if c.MaxElements <= 0 {
		c.MaxElements = 256
	}
	if c.MaxResult <= 0 {
		c.MaxResult = 256 << 20
	}
	if c.Locale == "" {
		c.Locale = "en-US"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
}

func redact(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return "(unreadable)"
}

// Close cancels what is under way, waits for it and closes the connections. Idempotent.
func (s *Session) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel(errClosed)
	s.running.Wait()
	if closed {
		return nil
	}
	return s.pool.close()
}

// begin starts an operation; end must be called when it is over.
func (s *Session) begin(ctx context.Context, op string) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, &cim.Error{Code: cim.CodeUnavailable, Op: op, Message: errClosed.Error()}
	}
	s.running.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.base, func() { cancel(context.Cause(s.base)) })
	return ctx, func() { stop(); cancel(nil); s.running.Done() }, nil
}

// Identity is what a server says of itself.
type Identity struct {
	Protocol string // version of WS-Man as its namespace
	Vendor   string // such as Microsoft Corporation
	Version  string // such as OS: 10.0.20348 SP: 0.0 Stack: 3.0
}

// Identify asks the server who it is, signed in.
func (s *Session) Identify(ctx context.Context) (Identity, error) { return s.identify(ctx, false) }

// IdentifyAnonymous asks without signing in, to tell a server that does not answer from one
// that refuses the credentials. Servers may keep parts of their identity back.
func (s *Session) IdentifyAnonymous(ctx context.Context) (Identity, error) {
	return s.identify(ctx, true)
}

func (s *Session) identify(ctx context.Context, anon bool) (Identity, error) {
	r := &request{op: "identify " + s.cfg.URL, body: `<i:Identify xmlns:i="` + nsIdentity + `"/>`, anon: anon}
	ctx, end, err := s.begin(ctx, r.op)
	if err != nil {
		return Identity{}, err
	}
	defer end()
	body, _, err := s.do(ctx, r)
	if err != nil {
		return Identity{}, err
	}
	n := body.child(nsIdentity, "IdentifyResponse")
	if n == nil {
		return Identity{}, protocolError(r.op, errors.New("the answer holds no IdentifyResponse"))
	}
	return Identity{
		Protocol: n.child("", "ProtocolVersion").trimmed(), Vendor: n.child("", "ProductVendor").trimmed(),
		Version: n.child("", "ProductVersion").trimmed(),
	}, nil
}

// Get implements cim.Session.
func (s *Session) Get(ctx context.Context, path cim.Path) (*cim.Instance, error) {
	r := &request{op: "get " + path.String(), action: actionGet, resource: resource(path.Namespace, path.Class), path: path}
	ctx, end, err := s.begin(ctx, r.op)
	if err != nil {
		return nil, err
	}
	defer end()
	body, _, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(body.kids) != 1 {
		return nil, protocolError(r.op, fmt.Errorf("the answer holds %d instances", len(body.kids)))
	}
	in := instance(body.kids[0], path.Namespace)
	in.Path = path
	return in, nil
}

// Invoke implements cim.Session. A context without deadline ends it after Config.Timeout.
func (s *Session) Invoke(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	uri := resource(path.Namespace, path.Class)
	r := &request{op: "call " + method + " of " + path.String(), action: uri + "/" + method, resource: uri, path: path, unsafe: true}
	ctx, end, err := s.begin(ctx, r.op)
	if err != nil {
		return cim.Out{}, err
	}
	defer end()
	if r.body, err = invokeBody(uri, method, in, path.Namespace); err != nil {
		return cim.Out{}, &cim.Error{Code: cim.CodeNoMethod, Op: r.op, Message: "cannot be sent", Err: err}
	}
	body, _, err := s.do(ctx, r)
	if err != nil {
		return cim.Out{}, err
	}
	out, err := parseOutput(body, method, path.Namespace)
	if err != nil {
		return cim.Out{}, protocolError(r.op, err)
	}
	return out, nil
}

// Query implements cim.Session. Instances carry the path that the server sends with them; where it sends
// none, one by the keys that the CIM schema gives to systems, devices, services and settings. Windows does not
// always tell an unknown class from a bad query: where it sends no WMI status, both are CodeInvalidQuery.
func (s *Session) Query(ctx context.Context, namespace, wql string) ([]*cim.Instance, error) {
	op := fmt.Sprintf("query %s in %s", clip(wql), namespace)
	ctx, end, err := s.begin(ctx, op)
	if err != nil {
		return nil, err
	}
	defer end()
	s.mu.Lock()
	refs := !s.noRefs && !projection(wql)
	s.mu.Unlock()
	list, err := s.enumerate(ctx, op, namespace, wql, refs)
	if err == nil || !refs {
		return list, err
	}
	switch cim.CodeOf(err) {
	case cim.CodeFailed, cim.CodeInvalidQuery:
	default:
		return nil, err
	}
	// A server that cannot send references says so in more than one way.
	unsupported := errors.Is(err, errUnsupported)
	if list, err = s.enumerate(ctx, op, namespace, wql, false); err != nil {
		return nil, err
	}
	if unsupported {
		s.mu.Lock()
		s.noRefs = true
		s.mu.Unlock()
	}
	return list, nil
}

// projection reports whether a query selects single properties: its instances are none that can be referred to.
func projection(wql string) bool {
	words := strings.Fields(wql)
	return len(words) > 1 && strings.EqualFold(words[0], "SELECT") && words[1] != "*"
}

// maxEmpty bounds pages without instances in a row.
const maxEmpty = 100

func (s *Session) enumerate(ctx context.Context, op, namespace, wql string, refs bool) ([]*cim.Instance, error) {
	uri := resource(namespace, "*")
	body, err := enumerateBody(wql, s.cfg.MaxElements, refs)
	if err != nil {
		return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: op, Message: "cannot be sent", Err: err}
	}
	r := &request{op: op, action: actionEnumerate, resource: uri, body: body}
	var list []*cim.Instance
	var total int64
	for empty := 0; ; {
		answer, size, err := s.do(ctx, r)
		if err != nil {
			return nil, s.releaseAfter(r, err)
		}
		p, err := parsePage(answer, namespace)
		if err != nil {
			return nil, s.releaseAfter(r, protocolError(op, err))
		}
		list = append(list, p.items...)
		if p.end {
			return list, nil
		}
		if empty++; len(p.items) > 0 {
			empty = 0
		}
		if r.body, err = pullBody(p.context, s.cfg.MaxElements); err != nil {
			return nil, protocolError(op, err)
		}
		// A page that is lost cannot be asked for again: the context moved on.
		r = &request{op: op, action: actionPull, resource: uri, body: r.body, path: cim.Path{}, unsafe: true, context: p.context}
		switch total += size; {
		case total > s.cfg.MaxResult:
			return nil, s.releaseAfter(r, &cim.Error{Code: cim.CodeQuota, Op: op, Message: fmt.Sprintf("the result is larger than %d bytes", s.cfg.MaxResult)})
		case empty > maxEmpty:
			return nil, s.releaseAfter(r, protocolError(op, fmt.Errorf("%d pages in a row were empty", empty)))
		}
	}
}

// releaseAfter tells the server that an enumeration is given up, behind the caller's back because its
// context may be over, and returns err. Servers drop contexts in time by themselves, so a failure is ignored.
func (s *Session) releaseAfter(r *request, err error) error {
	if r.context == "" || cim.CodeOf(err) == cim.CodeUnavailable {
		return err
	}
	body, berr := releaseBody(r.context)
	if berr != nil {
		return err
	}
	release := &request{op: "release " + r.op, action: actionRelease, resource: r.resource, body: body}
	ctx, end, closed := s.begin(context.Background(), release.op)
	if closed != nil {
		return err
	}
	go func() {
		defer end()
		ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		defer cancel()
		_, _, _ = s.do(ctx, release)
	}()
	return err
}

const (
	releaseTimeout = 5 * time.Second
	// grace is what the server gets to report a timeout by itself before the connection is dropped.
	grace = 3 * time.Second
)

// do sends one request and returns the body of the answer and its size.
func (s *Session) do(ctx context.Context, r *request) (*node, int64, error) {
	timeout := s.cfg.Timeout
	limit := timeout + grace
	if d, ok := ctx.Deadline(); ok {
		left := time.Until(d)
		if left <= 0 {
			return nil, 0, contextError(ctx, r.op)
		}
		timeout = min(timeout, max(left-left/8, 500*time.Millisecond)) // Windows takes no less
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	envelope, id, err := s.cfg.envelope(r, timeout)
	if err != nil {
		return nil, 0, &cim.Error{Code: cim.CodeFailed, Op: r.op, Message: "cannot be sent", Err: err}
	}
	if len(envelope) > s.cfg.MaxEnvelope {
		return nil, 0, &cim.Error{Code: cim.CodeQuota, Op: r.op, Message: fmt.Sprintf("the message of %d bytes is larger than %d", len(envelope), s.cfg.MaxEnvelope)}
	}
	raw, code, err := s.pool.exchange(ctx, r, envelope)
	if err != nil {
		if ctx.Err() != nil {
			return nil, 0, contextError(ctx, r.op)
		}
		var known *cim.Error
		if errors.As(err, &known) {
			known.Op = r.op
			return nil, 0, known
		}
		return nil, 0, &cim.Error{Code: cim.CodeUnavailable, Op: r.op, Message: "no answer from " + s.cfg.URL, Err: err}
	}
	if s.cfg.Recorder != nil {
		s.cfg.Recorder.Record(Exchange{Op: r.op, Request: envelope, Status: code, Response: string(raw)})
	}
	body, err := openAnswer(r.op, raw, code, id)
	return body, int64(len(raw)), err
}

// openAnswer finds the body of an answer, or the fault that it tells of.
func openAnswer(op string, raw []byte, code int, id string) (*node, error) {
	root, err := parseXML(raw)
	if err != nil || root.name.Local != "Envelope" || root.name.Space != nsSOAP {
		if code != 200 {
			return nil, httpError(op, code)
		}
		if err == nil {
			err = fmt.Errorf("the answer is %q, not a SOAP 1.2 envelope", root.name.Local)
		}
		return nil, protocolError(op, err)
	}
	body := root.child(nsSOAP, "Body")
	if body == nil {
		return nil, protocolError(op, errors.New("the answer has no body"))
	}
	if fault := body.child(nsSOAP, "Fault"); fault != nil {
		return nil, parseFault(op, fault)
	}
	if code != 200 {
		return nil, httpError(op, code)
	}
	relates := root.child(nsSOAP, "Header").child(nsAddress, "RelatesTo").trimmed()
	if id != "" && relates != "" && !strings.EqualFold(relates, id) {
		return nil, protocolError(op, errors.New("the answer belongs to another message"))
	}
	return body, nil
}

func protocolError(op string, err error) *cim.Error {
	return &cim.Error{Code: cim.CodeProtocol, Op: op, Message: "unexpected answer", Err: err}
}

func contextError(ctx context.Context, op string) *cim.Error {
	cause := context.Cause(ctx)
	e := &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "the server did not answer in time", Err: cause}
	switch {
	case errors.Is(cause, errClosed):
		e.Code, e.Message = cim.CodeUnavailable, "given up"
	case !errors.Is(cause, context.DeadlineExceeded) && !errors.Is(cause, os.ErrDeadlineExceeded):
		e.Message = "given up"
	}
	return e
}
