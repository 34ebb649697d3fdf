// Package wsmand serves WS-Management, the protocol of Windows Remote
// Management, on top of any cim.Session: Identify, Enumerate, Pull, Release, Get,
// Put and Invoke, as [DSP0226], [DSP0227] and [MS-WSMV] publish them and in the
// shapes that Windows gives them. The Hyper-V simulator is behind it, but
// nothing here knows Hyper-V.
//
// It promises: programs that others wrote can use it; what Windows refuses is
// refused with the fault that Windows sends; over plain HTTP nothing but sealed
// messages passes unless AllowUnencrypted says so; what a client sends is
// bounded in size, depth and time; enumerations belong to their user, end by
// themselves and are limited in number; Close ends everything that was started.
//
// It does not serve shells, event subscriptions, fragments of resources,
// Create and Delete. It signs users in by NTLM (as such or inside SPNEGO) and
// Basic; Kerberos, CredSSP and client certificates are not there.
package wsmand

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/ntlm"
	"holdfast/internal/hvsim/wsmand/negotiate"
)

// Config describes a server. Session and Password are required.
type Config struct {
	// Session returns what serves a user: domain\user, or the name alone. The
	// server does not close it. A cim.Session that is a Putter can Put, too. Its
	// errors become faults, but when the way to it fails, so does the client's:
	// CodeUnavailable cuts the connection, CodeUnauthorized answers 401, CodeProtocol with what is no envelope.
	Session func(user string) (cim.Session, error)
	// Schema gives the types of parameters and properties; nil: all is text.
	Schema Schema
	// Password returns a user's password; domain is what the client sent, perhaps empty.
	Password func(user, domain string) (password string, ok bool)

	Computer string // NetBIOS name, also in faults and as host of references in keys; empty = HVSIM
	Domain   string // NetBIOS name; empty = Computer
	Vendor   string // in Identify; empty = Holdfast
	Version  string // in Identify; empty = that of a Windows Server 2022

	Basic            bool        // offer Basic: over TLS, and over plain HTTP if AllowUnencrypted
	AllowUnencrypted bool        // take messages over plain HTTP that are not sealed
	TLS              *tls.Config // for Serve: nil = plain HTTP

	Quotas Quotas
	Log    *slog.Logger // nil = discard
	// Fault is asked once per request, after the sign-in; nil or a nil answer: no fault. It may be called concurrently.
	Fault func(Call) *Fault
}

// Quotas are the limits of winrm/config; zero values are the defaults of Windows.
type Quotas struct {
	MaxEnvelopeKB      int           // of requests and answers; 500
	MaxOperations      int           // concurrent ones per user, open enumerations count; 1500
	MaxEnumerations    int           // open ones per user; 100
	EnumerationTimeout time.Duration // between two Pulls; 1 min
	MaxTimeout         time.Duration // of an operation, whatever the client asks for; 1 min
	MaxItems           int           // per Pull; 32000
	ReadTimeout        time.Duration // for a request to arrive, for an answer to leave; 1 min
}

// Call is a request as the fault plan sees it.
type Call struct {
	Operation string // Identify, Enumerate, Pull, Release, Get, Put or Invoke; empty for what is none of these
	Resource  string // URI
	Method    string // of Invoke
	User      string
}

// Fault is what goes wrong with one request, in the order of the fields.
type Fault struct {
	Delay      time.Duration // before anything else; ends early when the client goes away
	DropBefore bool          // cut the connection, the operation is not executed
	Status     int           // answer with this HTTP status, the operation is not executed
	Quota      bool          // answer with the fault of a user's quota, the operation is not executed
	DropAfter  bool          // execute the operation, then cut the connection
	Truncate   bool          // execute the operation, cut the connection in the middle of the answer
}

// Putter is a session that can change an instance. The properties that in
// holds are set, others keep their values; the changed instance is returned.
type Putter interface {
	Put(ctx context.Context, path cim.Path, in *cim.Instance) (*cim.Instance, error)
}

// Server is the server. It is safe for concurrent use.
type Server struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ops    sync.WaitGroup

	binding []byte // of TLS connections, if the certificate is known

	mu     sync.Mutex
	closed bool
	inUse  map[string]int // operations by user, lower case
	enums  map[string]*enumeration
	https  []*http.Server
}

// New returns a server. It starts nothing: serve it with Serve, or as a handler
// of an HTTP/1.1 server whose ConnContext is this one's.
func New(cfg Config) *Server {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	defTime := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	defText := func(v *string, d string) {
		if *v == "" {
			*v = d
		}
	}
	q := &cfg.Quotas
	def(&q.MaxEnvelopeKB, 500)
	def(&q.MaxOperations, 1500)
	def(&q.MaxEnumerations, 100)
	def(&q.MaxItems, 32000)
	defTime(&q.EnumerationTimeout, time.Minute)
	defTime(&q.MaxTimeout, time.Minute)
	defTime(&q.ReadTimeout, time.Minute)
	defText(&cfg.Computer, "HVSIM")
	defText(&cfg.Domain, cfg.Computer)
	defText(&cfg.Vendor, "Holdfast")
	defText(&cfg.Version, "OS: 10.0.20348 SP: 0.0 Stack: 3.0")
	s := &Server{cfg: cfg, log: cfg.Log, inUse: map[string]int{}, enums: map[string]*enumeration{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.TLS != nil && len(cfg.TLS.Certificates) == 1 && len(cfg.TLS.Certificates[0].Certificate) > 0 {
		if cert, err := x509.ParseCertificate(cfg.TLS.Certificates[0].Certificate[0]); err == nil { // else TLS itself fails
			s.binding = ntlm.TLSServerEndPoint(cert)
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve answers on a listener until Close, by TLS if the configuration says so.
// It owns the listener. After Close it returns nil.
func (s *Server) Serve(l net.Listener) error {
	h := &http.Server{
		Handler: s, ConnContext: s.ConnContext, MaxHeaderBytes: 64 << 10,
		ReadHeaderTimeout: s.cfg.Quotas.ReadTimeout, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if s.cfg.TLS != nil {
		// NTLM signs in connections, which HTTP/2 shares among requests.
		h.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		conf := s.cfg.TLS.Clone()
		conf.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, conf)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.https = append(s.https, h)
	s.mu.Unlock()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends all connections and operations and waits for them. Idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	https := s.https
	s.https = nil
	for _, e := range s.enums {
		e.timer.Stop()
	}
	clear(s.enums)
	s.mu.Unlock()
	s.cancel()
	var errs []error
	for _, h := range https {
		errs = append(errs, h.Close())
	}
	s.ops.Wait()
	return errors.Join(errs...)
}

// begin counts an operation of a user; end must be called unless ok is false.
func (s *Server) begin(user string) (end func(), ok bool) {
	user = strings.ToLower(user)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[user]+s.enumsOf(user) >= s.cfg.Quotas.MaxOperations {
		return nil, false
	}
	s.inUse[user]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inUse[user]--; s.inUse[user] == 0 {
			delete(s.inUse, user)
		}
	}, true
}

// enumsOf counts the enumerations of a user; the caller holds the lock.
func (s *Server) enumsOf(user string) int {
	n := 0
	for _, e := range s.enums {
		if e.user == user {
			n++
		}
	}
	return n
}

type connKey struct{}

// conn is the sign-in of one connection. Requests of a connection come one by
// one, the lock only keeps a broken server from harm.
type conn struct {
	mu sync.Mutex
	negotiate.Conn
}

// ConnContext prepares a connection for NTLM, which signs in connections. It is
// for http.Server.ConnContext; without it only Basic works.
func (s *Server) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{})
}
