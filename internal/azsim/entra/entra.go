// Package entra plays Microsoft Entra ID for one tenant and one client: the
// OpenID Connect discovery document and the token endpoint of the v2.0 client
// credentials flow (secret, certificate assertion, federated assertion), and the
// token endpoint of a machine's managed identity. Errors carry the published
// AADSTS codes ("Microsoft Entra authentication and authorization error codes").
//
// Assertions are read but their signatures are not checked: what is tested is
// the client, not the directory.
package entra

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/azsim/wire"
)

// Config describes the directory.
type Config struct {
	Tenant, ClientID, ObjectID, Secret string
	Base                               func() string    // URL of the authority, without a slash at its end
	Now                                func() time.Time // the directory's clock
}

// Directory issues and checks tokens. Safe for concurrent use.
type Directory struct {
	cfg Config

	mu         sync.Mutex
	lifetime   time.Duration
	expired    bool
	noIdentity bool
	subject    string // of federated assertions; "" = any
	tokens     map[string]token
}

type token struct{ until time.Time }

// New makes a directory whose tokens last an hour.
func New(cfg Config) *Directory {
	return &Directory{cfg: cfg, lifetime: time.Hour, tokens: map[string]token{}}
}

// SetLifetime sets how long tokens issued from now on last.
func (d *Directory) SetLifetime(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lifetime = t
}

// ExpireSecret makes the client's secret an expired one, or a good one again.
// Tokens stay good.
func (d *Directory) ExpireSecret(expired bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expired = expired
}

// SetManagedIdentity says whether the machine has a managed identity. It has at first.
func (d *Directory) SetManagedIdentity(has bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noIdentity = !has
}

// SetFederatedSubject says which subject federated assertions must have; "" = any.
func (d *Directory) SetFederatedSubject(subject string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subject = subject
}

// RevokeTokens makes every token issued so far invalid.
func (d *Directory) RevokeTokens() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.tokens)
}

// Check judges the Authorization header of a request to Resource Manager.
func (d *Directory) Check(header string) *wire.Error {
	refuse := func(code, message string) *wire.Error {
		e := wire.Errorf(http.StatusUnauthorized, code, "%s", message)
		e.Header = http.Header{"Www-Authenticate": {fmt.Sprintf(`Bearer authorization_uri="%s/%s", error="invalid_token", error_description="%s"`,
			d.cfg.Base(), d.cfg.Tenant, message)}}
		return e
	}
	tok, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return refuse("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.tokens[tok]
	switch {
	case !ok:
		return refuse("InvalidAuthenticationToken", "The access token is invalid.")
	case !d.cfg.Now().Before(t.until):
		return refuse("ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than the current UTC time.")
	}
	return nil
}

// Identify says whose a token is, as the data plane asks; ok is false for one
// that is unknown or over.
func (d *Directory) Identify(tok string) (oid, tid string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.tokens[tok]
	if !ok || !d.cfg.Now().Before(t.until) {
		return "", "", false
	}
	return d.cfg.ObjectID, d.cfg.Tenant, true
}

// Serve answers the requests that are the directory's; ok is false for others.
func (d *Directory) Serve(r *http.Request) (reply wire.Reply, ok bool) {
	path := strings.Trim(r.URL.Path, "/")
	switch {
	case path == "metadata/identity/oauth2/token":
		if r.Header.Get("Metadata") != "true" {
			return identityError(http.StatusBadRequest, "Required metadata header not specified"), true
		}
		return d.identity(r), true
	case path == "msi/token":
		if r.Header.Get("X-IDENTITY-HEADER") == "" {
			return identityError(http.StatusUnauthorized, "X-IDENTITY-HEADER is missing"), true
		}
		return d.identity(r), true
	}
	tenant, rest, _ := strings.Cut(path, "/")
	switch rest {
	case "v2.0/.well-known/openid-configuration":
		if !strings.EqualFold(tenant, d.cfg.Tenant) {
			return d.refuse(90002, "invalid_tenant", fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", tenant)), true
		}
		base := d.cfg.Base() + "/" + d.cfg.Tenant
		return wire.OK(map[string]any{
			"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token",
			"authorization_endpoint": base + "/oauth2/v2.0/authorize", "jwks_uri": base + "/discovery/v2.0/keys",
			"tenant_region_scope": "EU", "token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt"},
		}), true
	case "oauth2/v2.0/token":
		return d.token(r, tenant), true
	case "discovery/instance":
		if tenant == "common" {
			return wire.OK(map[string]any{"tenant_discovery_endpoint": d.cfg.Base() + "/" + d.cfg.Tenant + "/v2.0/.well-known/openid-configuration", "metadata": []any{}}), true
		}
	}
	return wire.Reply{}, false
}

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

func (d *Directory) token(r *http.Request, tenant string) wire.Reply {
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost {
		return d.refuse(900144, "invalid_request", "The request body must contain the following parameter: 'grant_type'.")
	}
	f := r.PostForm
	switch {
	case !strings.EqualFold(tenant, d.cfg.Tenant):
		return d.refuse(90002, "invalid_request", fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", tenant))
	case f.Get("grant_type") != "client_credentials":
		return d.refuse(70003, "unsupported_grant_type", "The app requested an unsupported grant type '"+f.Get("grant_type")+"'.")
	case !strings.EqualFold(f.Get("client_id"), d.cfg.ClientID):
		return d.refuse(700016, "unauthorized_client", fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'.", f.Get("client_id"), tenant))
	case !strings.HasSuffix(strings.Fields(f.Get("scope") + " -")[0], "/.default"):
		return d.refuse(1002012, "invalid_scope", "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.")
	}
	d.mu.Lock()
	expired, subject := d.expired, d.subject
	d.mu.Unlock()
	switch {
	case f.Get("client_assertion_type") == assertionType:
		if reply, bad := d.assertion(f.Get("client_assertion"), subject); bad {
			return reply
		}
	case f.Get("client_secret") == "":
		return d.refuse(7000218, "invalid_client", "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	case f.Get("client_secret") != d.cfg.Secret:
		return d.refuse(7000215, "invalid_client", fmt.Sprintf("Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", d.cfg.ClientID))
	case expired:
		return d.refuse(7000222, "invalid_client", fmt.Sprintf("The provided client secret keys for app '%s' are expired. Visit the Azure portal to create new keys for your app.", d.cfg.ClientID))
	}
	tok, life := d.issue(strings.TrimSuffix(strings.Fields(f.Get("scope"))[0], "/.default"))
	seconds := int(life / time.Second)
	return wire.OK(map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": tok})
}

// assertion reads a JWT: of the client itself (certificate) or of another
// issuer (workload identity federation).
func (d *Directory) assertion(jwt, subject string) (wire.Reply, bool) {
	var claims struct {
		Iss, Sub string
		Exp, Nbf int64
	}
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return d.refuse(50027, "invalid_request", "JWT token is invalid or malformed."), true
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil || json.Unmarshal(raw, &claims) != nil || claims.Sub == "" {
		return d.refuse(50027, "invalid_request", "JWT token is invalid or malformed."), true
	}
	own := strings.EqualFold(claims.Iss, d.cfg.ClientID)
	now := d.cfg.Now().Unix()
	switch {
	case own && !strings.EqualFold(claims.Sub, d.cfg.ClientID):
		return d.refuse(700021, "invalid_client", "Client assertion application identifier doesn't match 'client_id' parameter."), true
	case !own && subject != "" && claims.Sub != subject:
		return d.refuse(700213, "invalid_request", fmt.Sprintf("No matching federated identity record found for presented assertion subject '%s'.", claims.Sub)), true
	case claims.Exp != 0 && (now >= claims.Exp || now < claims.Nbf-300):
		return d.refuse(700024, "invalid_client", "Client assertion is not within its valid time range."), true
	}
	return wire.Reply{}, false
}

func (d *Directory) identity(r *http.Request) wire.Reply {
	d.mu.Lock()
	none := d.noIdentity
	d.mu.Unlock()
	q := r.URL.Query()
	if id := q.Get("client_id"); none || id != "" && !strings.EqualFold(id, d.cfg.ClientID) {
		return identityError(http.StatusBadRequest, "Identity not found")
	}
	tok, life := d.issue(q.Get("resource"))
	return wire.OK(map[string]any{"access_token": tok, "client_id": d.cfg.ClientID, "token_type": "Bearer", "resource": q.Get("resource"),
		"expires_in": strconv.Itoa(int(life / time.Second)), "expires_on": strconv.FormatInt(d.cfg.Now().Add(life).Unix(), 10)})
}

func identityError(status int, words string) wire.Reply {
	return wire.Reply{Status: status, Body: map[string]any{"error": "invalid_request", "error_description": words}}
}

func (d *Directory) issue(audience string) (string, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.cfg.Now()
	claims, _ := json.Marshal(map[string]any{"aud": audience, "iss": d.cfg.Base() + "/" + d.cfg.Tenant, "appid": d.cfg.ClientID,
		"oid": d.cfg.ObjectID, "tid": d.cfg.Tenant, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(d.lifetime).Unix()})
	var sig [24]byte
	_, _ = rand.Read(sig[:]) // never fails (crypto/rand)
	e := base64.RawURLEncoding
	tok := e.EncodeToString([]byte(`{"typ":"JWT","alg":"RS256"}`)) + "." + e.EncodeToString(claims) + "." + e.EncodeToString(sig[:])
	d.tokens[tok] = token{until: now.Add(d.lifetime)}
	return tok, d.lifetime
}

// refuse words an error of the token endpoint.
func (d *Directory) refuse(code int, name, words string) wire.Reply {
	status := http.StatusBadRequest
	if name == "invalid_client" {
		status = http.StatusUnauthorized
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	trace, now := hex.EncodeToString(id[:]), d.cfg.Now().UTC().Format("2006-01-02 15:04:05Z")
	return wire.Reply{Status: status, Body: map[string]any{
		"error": name, "error_codes": []int{code}, "timestamp": now, "trace_id": trace, "correlation_id": trace,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s", code, words, trace, trace, now),
	}}
}
