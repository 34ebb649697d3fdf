package armapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// Limits of a request.
const (
	MaxBody         = 4 << 20 // bytes of a request body
	DefaultPageSize = 200     // resources on one page of a list
	maxEcho         = 256     // bytes of a client's request id that are echoed
)

// Config is what a Server needs.
type Config struct {
	Service Service
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
	routes map[string]route
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
	return &Server{cfg: cfg, routes: routes()}, nil
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

// call is one request on its way through the server.
type call struct {
	s       *Server
	r       *http.Request
	id      armwire.ResourceID // of the path, without action and operationresults
	action  string             // of a POST, as written
	result  dr.JobID           // of …/operationresults/{id}
	who     vault.Principal
	ident   vault.Identity
	base    string // public URL without a trailing slash
	version string // api-version
	dir     *directory
}

func (c *call) ctx() context.Context { return c.r.Context() }
func (c *call) svc() Service         { return c.s.cfg.Service }
func (c *call) now() time.Time       { return c.s.cfg.Now() }

// name returns the name in the path of the segment of type t.
func (c *call) name(t string) string { return c.id.NameOf(t) }

// vaultID is the vault's id as the vault spells it.
func (c *call) vaultID() armwire.VaultID {
	return armwire.VaultID{SubscriptionID: c.ident.SubscriptionID, ResourceGroup: c.ident.ResourceGroup, Vault: c.ident.Name}
}

// body decodes the request's JSON. No body at all is fine: v stays as it is.
func (c *call) body(v any) error {
	b, err := readBody(c.r)
	if err != nil || len(b) == 0 {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "the request body is not valid: %s", jsonTrouble(err))
	}
	return nil
}

var versionPattern = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2})(-[A-Za-z]+)?$`)

// apiVersion returns the api-version of the request; every dated one is fine,
// because one superset of fields serves them all.
func apiVersion(q url.Values) (string, error) {
	v := queryValue(q, "api-version")
	if v == "" {
		return "", dr.New(dr.KindInvalid, codeMissingAPIVersion, "armapi", "the query parameter api-version is missing; use ?api-version=%s", armwire.APIVersion)
	}
	m := versionPattern.FindStringSubmatch(v)
	if m == nil {
		return "", dr.New(dr.KindInvalid, codeInvalidAPIVersion, "armapi", "api-version %q is not a date such as %s", clip(v), armwire.APIVersion)
	}
	if _, err := time.Parse(time.DateOnly, m[1]); err != nil {
		return "", dr.New(dr.KindInvalid, codeInvalidAPIVersion, "armapi", "api-version %q is not a date such as %s", clip(v), armwire.APIVersion)
	}
	return v, nil
}

// queryValue finds a query parameter without regard to the case of its name.
func queryValue(q url.Values, name string) string {
	for k, vs := range q {
		if strings.EqualFold(k, name) && len(vs) > 0 {
			return vs[0]
		}
	}
	return ""
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
	h.Set("x-ms-correlation-request-id", firstNonEmpty(echo(r.Header.Get("x-ms-correlation-request-id")), id))
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
				writeError(rec, dr.Errorf(dr.KindInternal, "armapi", "the request met a defect of the vault; its log has the details under request %s", id))
			}
		}
		log.Debug("request", "status", rec.status, "took", s.cfg.Now().Sub(started))
	}()
	r.Body = http.MaxBytesReader(rec, r.Body, MaxBody)
	if err := s.serve(rec, r); err != nil {
		if statusOf(dr.KindOf(err)) >= 500 {
			log.Error("request failed", "err", err)
		}
		s.fail(rec, r, err)
	}
}

// serve finds out which family of routes the request belongs to.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	parts, err := armwire.SplitPath(r.URL.EscapedPath())
	if err != nil {
		return dr.New(dr.KindInvalid, codeInvalidPath, "armapi", "%v", err)
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
	c := s.newCall(r, who)
	c.version = version
	if len(parts) < 8 {
		return s.serveScope(w, c, parts)
	}
	return s.serveVault(w, c)
}

func (s *Server) newCall(r *http.Request, who vault.Principal) *call {
	c := &call{s: s, r: r, who: who, ident: s.cfg.Service.Identity(), base: s.publicURL(r), version: armwire.APIVersion}
	c.dir = &directory{c: c}
	return c
}

// publicURL is the base of absolute links.
func (s *Server) publicURL(r *http.Request) string {
	if s.cfg.PublicURL != "" {
		return s.cfg.PublicURL
	}
	if r.TLS == nil {
		return "http://" + r.Host
	}
	return "https://" + r.Host
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

// allow checks the caller's role.
func allow(who vault.Principal, want dr.Role) error {
	if who.Role.Includes(want) {
		return nil
	}
	return dr.Errorf(dr.KindForbidden, "armapi", "%s has the role %s; this needs %s", who.Name, who.Role, want).
		WithHint("Ask an Owner of the vault for the role %s.", want)
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

func firstNonEmpty(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

func clip(s string) string {
	const most = 100
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
