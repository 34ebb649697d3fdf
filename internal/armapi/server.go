package armapi

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"holdfast/internal/armapi/account"
	"holdfast/internal/armapi/assess"
	"holdfast/internal/armapi/group"
	"holdfast/internal/armapi/item"
	"holdfast/internal/armapi/jobs"
	"holdfast/internal/armapi/network"
	"holdfast/internal/armapi/policy"
	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// fail writes err with the headers that its status asks for.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch k := dr.KindOf(err); k {
	case dr.KindUnauthenticated:
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer authorization_uri=%q, error=\"invalid_token\"",
			s.env.BaseURL(r)+"/"+s.cfg.Service.Identity().TenantID))
	case dr.KindUnavailable, dr.KindExhausted:
		w.Header().Set("Retry-After", "5")
	}
	route.WriteError(w, err)
}

// Limits of a request.
const (
	MaxBody         = route.MaxBody // bytes of a request body
	DefaultPageSize = 200           // resources on one page of a list
	maxEcho         = 256           // bytes of a client's request id that are echoed
)

// Config is what a Server needs.
type Config struct {
	Service route.Service
	// PublicURL is the base of the absolute links in answers (https://host[:port],
	// no path). Empty: scheme and host of each request, which is wrong behind most proxies.
	PublicURL string
	Log       *slog.Logger
	Now       func() time.Time // nil = time.Now
	// RetryAfter is what clients are told to wait between polls; 0 = 1 s. Whole seconds are sent.
	RetryAfter time.Duration
	PageSize   int // 0 = DefaultPageSize
	// DisconnectedAfter is the silence after which an agent shows as disconnected; 0 = 3 min.
	DisconnectedAfter time.Duration
	Version           string // of the vault, shown by /holdfast/v1/health
}

// Validate checks the configuration.
func (c Config) Validate() error {
	if c.Service == nil {
		return dr.Errorf(dr.KindInvalid, "armapi.Config", "no service")
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || strings.Trim(u.Path, "/") != "" {
			return dr.Errorf(dr.KindInvalid, "armapi.Config", "public URL %q is not scheme://host[:port]", c.PublicURL)
		}
	}
	if c.PageSize < 0 || c.RetryAfter < 0 || c.DisconnectedAfter < 0 {
		return dr.Errorf(dr.KindInvalid, "armapi.Config", "page size, retry-after and disconnected-after must not be negative")
	}
	return nil
}

// Server answers the REST API. It keeps no state between requests and is safe
// for concurrent use; several of them can stand behind one load balancer.
type Server struct {
	cfg    Config
	env    route.Env
	routes route.Table
}

var _ http.Handler = (*Server)(nil)

// New makes a Server. It does no I/O.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.PublicURL = strings.TrimRight(cfg.PublicURL, "/")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = time.Second
	}
	if cfg.PageSize == 0 {
		cfg.PageSize = DefaultPageSize
	}
	if cfg.DisconnectedAfter == 0 {
		cfg.DisconnectedAfter = 3 * time.Minute
	}
	s := &Server{cfg: cfg, routes: route.Table{}, env: route.Env{Service: cfg.Service, PublicURL: cfg.PublicURL, Now: cfg.Now,
		RetryAfter: cfg.RetryAfter, PageSize: cfg.PageSize, DisconnectedAfter: cfg.DisconnectedAfter}}
	for _, add := range []func(route.Table){account.Routes, site.Routes, network.Routes, policy.Routes, item.Routes, group.Routes, jobs.Routes, assess.Routes} {
		add(s.routes)
	}
	return s, nil
}

// Match reports whether a request path belongs to this server; the vault's
// front asks it before the portal, the agents' channel and the store.
func (s *Server) Match(path string) bool {
	parts := strings.Split(strings.ToLower(strings.Trim(path, "/")), "/")
	switch parts[0] {
	case "subscriptions", "tenants", "providers":
		return true
	case "metadata":
		return len(parts) == 2 && parts[1] == "endpoints"
	case "holdfast":
		return len(parts) >= 2 && parts[1] == "v1"
	}
	return tokenRoute(parts) != ""
}

var versionPattern = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2})(-[A-Za-z]+)?$`)

// apiVersion returns the api-version of the request; every dated one is fine,
// because one superset of fields serves them all.
func apiVersion(q url.Values) (string, error) {
	v := route.QueryValue(q, "api-version")
	if v == "" {
		return "", dr.New(dr.KindInvalid, route.CodeMissingAPIVersion, "armapi", "the query parameter api-version is missing; use ?api-version=%s", armwire.APIVersion)
	}
	m := versionPattern.FindStringSubmatch(v)
	if m == nil {
		return "", dr.New(dr.KindInvalid, route.CodeInvalidAPIVersion, "armapi", "api-version %q is not a date such as %s", route.Clip(v), armwire.APIVersion)
	}
	if _, err := time.Parse(time.DateOnly, m[1]); err != nil {
		return "", dr.New(dr.KindInvalid, route.CodeInvalidAPIVersion, "armapi", "api-version %q is not a date such as %s", route.Clip(v), armwire.APIVersion)
	}
	return v, nil
}

// recorder remembers whether an answer has begun, and its status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// ServeHTTP answers one request; a panic in a handler becomes a 500 of the usual shape.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec, started, id := &recorder{ResponseWriter: w}, s.cfg.Now(), newUUID()
	h := rec.Header()
	h.Set("x-ms-request-id", id)
	h.Set("x-ms-correlation-request-id", cmp.Or(echo(r.Header.Get("x-ms-correlation-request-id")), id))
	if v := echo(r.Header.Get("x-ms-client-request-id")); v != "" {
		h.Set("x-ms-client-request-id", v)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	log := s.cfg.Log.With("request", id, "method", r.Method, "path", r.URL.Path)
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			log.Error("request panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if rec.status == 0 {
				route.WriteError(rec, dr.Errorf(dr.KindInternal, "armapi", "the request met a defect of the vault; its log has the details under request %s", id))
			}
		}
		log.Debug("request", "status", rec.status, "took", s.cfg.Now().Sub(started))
	}()
	r.Body = http.MaxBytesReader(rec, r.Body, MaxBody)
	if err := s.serve(rec, r); err != nil {
		if route.StatusOf(dr.KindOf(err)) >= 500 {
			log.Error("request failed", "err", err)
		}
		s.fail(rec, r, err)
	}
}

// serve finds out which family of routes the request belongs to.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	parts, err := armwire.SplitPath(r.URL.EscapedPath())
	if err != nil {
		return dr.New(dr.KindInvalid, route.CodeInvalidPath, "armapi", "%v", err)
	}
	lower := strings.Split(strings.ToLower(strings.Trim(r.URL.Path, "/")), "/")
	switch kind := tokenRoute(lower); {
	case kind != "":
		return s.serveToken(w, r, kind, parts)
	case lower[0] == "metadata":
		return s.serveMetadata(w, r)
	case lower[0] == "holdfast":
		return s.serveExtension(w, r, parts)
	}
	who, err := s.authenticate(r)
	if err != nil {
		return err
	}
	version, err := apiVersion(r.URL.Query())
	if err != nil {
		return err
	}
	c := route.NewCall(&s.env, r, who, version)
	if len(parts) < 8 {
		return account.ServeScope(w, c, parts)
	}
	return s.routes.Serve(w, c)
}

// authenticate says who calls.
func (s *Server) authenticate(r *http.Request) (vault.Principal, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return vault.Principal{}, dr.Errorf(dr.KindUnauthenticated, "armapi", "the request has no bearer token in its Authorization header").
			WithHint("Log in first: POST client credentials to /{tenant}/oauth2/v2.0/token.")
	}
	who, err := s.cfg.Service.Authenticate(r.Context(), token)
	if err != nil && dr.KindOf(err) == dr.KindNotFound { // a token that nobody knows is no missing resource
		return who, dr.Errorf(dr.KindUnauthenticated, "armapi", "the bearer token is not known").WithHint("Log in again.")
	}
	return who, err
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// echo cleans an id that a client sent for its own use.
func echo(s string) string {
	if len(s) > maxEcho {
		return ""
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return s
}
