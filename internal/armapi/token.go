package armapi

import (
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

// adfsTenant is the tenant name that one client uses to avoid asking the public
// cloud which instances exist.
const adfsTenant = "adfs"

// tokenRoute recognizes the routes of the token service from the lower-case
// path segments: "openid", "token", or "" if it is none of them. They sit at the
// root because credential classes drop any path of the authority's address.
func tokenRoute(parts []string) string {
	if len(parts) < 3 || len(parts) > 4 {
		return ""
	}
	switch strings.Join(parts[1:], "/") {
	case ".well-known/openid-configuration", "v2.0/.well-known/openid-configuration":
		return "openid"
	case "oauth2/token", "oauth2/v2.0/token":
		return "token"
	}
	return ""
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, kind string, parts []string) error {
	tenant := parts[0]
	if id := s.cfg.Service.Identity(); !strings.EqualFold(tenant, id.TenantID) && !strings.EqualFold(tenant, adfsTenant) {
		tokenError(w, http.StatusBadRequest, "invalid_tenant", "the tenant in the address is not this vault's")
		return nil
	}
	if kind == "openid" {
		return s.serveOpenID(w, r, tenant, strings.EqualFold(parts[1], "v2.0"))
	}
	return s.serveClientCredentials(w, r)
}

// serveOpenID is the discovery document: only what a client-credentials login reads.
func (s *Server) serveOpenID(w http.ResponseWriter, r *http.Request, tenant string, v2 bool) error {
	if r.Method != http.MethodGet {
		tokenError(w, http.StatusMethodNotAllowed, "invalid_request", "use GET")
		return nil
	}
	base := s.env.BaseURL(r) + "/" + url.PathEscape(tenant)
	issuer, token := base, base+"/oauth2/token"
	if v2 {
		issuer, token = base+"/v2.0", base+"/oauth2/v2.0/token"
	}
	route.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                issuer,
		"token_endpoint":                        token,
		"authorization_endpoint":                strings.TrimSuffix(token, "token") + "authorize",
		"jwks_uri":                              base + "/discovery/keys",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic"},
		"grant_types_supported":                 []string{"client_credentials"},
		"response_types_supported":              []string{"token"},
		"subject_types_supported":               []string{"pairwise"},
		"tenant_region_scope":                   nil,
	})
	return nil
}

// serveClientCredentials is the OAuth 2.0 client-credentials grant (RFC 6749 §4.4).
func (s *Server) serveClientCredentials(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodPost {
		tokenError(w, http.StatusMethodNotAllowed, "invalid_request", "use POST")
		return nil
	}
	b, err := route.ReadBody(r)
	if err != nil {
		return err
	}
	if ct, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); ct != "" && ct != "application/x-www-form-urlencoded" {
		tokenError(w, http.StatusBadRequest, "invalid_request", "the body must be application/x-www-form-urlencoded")
		return nil
	}
	form, err := url.ParseQuery(string(b)) // secrets are read from the body only, never from the URL
	if err != nil {
		tokenError(w, http.StatusBadRequest, "invalid_request", "the body is not a form")
		return nil
	}
	if g := form.Get("grant_type"); g != "client_credentials" {
		tokenError(w, http.StatusBadRequest, "unsupported_grant_type", "only the client_credentials grant is supported")
		return nil
	}
	id, secret := form.Get("client_id"), form.Get("client_secret")
	if u, p, ok := r.BasicAuth(); ok {
		id, secret = unescapeForm(u), unescapeForm(p)
	}
	if id == "" || secret == "" {
		tokenError(w, http.StatusBadRequest, "invalid_request", "client_id or client_secret is missing")
		return nil
	}
	token, expires, err := s.cfg.Service.IssueToken(r.Context(), id, secret)
	switch kind := dr.KindOf(err); {
	case err == nil:
	case kind == dr.KindUnauthenticated || kind == dr.KindForbidden || kind == dr.KindNotFound:
		// One answer for unknown clients and wrong secrets.
		w.Header().Set("WWW-Authenticate", "Basic")
		tokenError(w, http.StatusUnauthorized, "invalid_client", "the client id or secret is not accepted")
		return nil
	default:
		return err
	}
	now := s.cfg.Now()
	w.Header().Set("Pragma", "no-cache")
	route.WriteJSON(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "access_token": token, "resource": form.Get("resource"),
		"expires_in": expires, "ext_expires_in": expires,
		"not_before": now.Unix(), "expires_on": now.Add(time.Duration(expires) * time.Second).Unix(),
	})
	return nil
}

// unescapeForm undoes the form encoding that RFC 6749 §2.3.1 asks of Basic
// credentials; clients that skip it are taken at their word.
func unescapeForm(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

func tokenError(w http.ResponseWriter, status int, code, description string) {
	route.WriteJSON(w, status, map[string]any{"error": code, "error_description": description, "error_codes": []int{}})
}

// serveMetadata describes the endpoints for clients that discover them. Three
// shapes exist, by api-version; only the newest is an object with a name.
func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request) error {
	base, version := s.env.BaseURL(r), route.QueryValue(r.URL.Query(), "api-version")
	id := s.cfg.Service.Identity()
	auth := map[string]any{"loginEndpoint": base, "audiences": []string{base}, "tenant": id.TenantID, "identityProvider": "AAD"}
	if version != "" && version < "2018" {
		route.WriteJSON(w, http.StatusOK, map[string]any{"galleryEndpoint": base, "graphEndpoint": base, "portalEndpoint": base, "authentication": auth})
		return nil
	}
	doc := map[string]any{
		"name": "Holdfast", "portal": base, "authentication": auth, "resourceManager": base + "/",
		"graph": base, "graphAudience": base, "microsoftGraphResourceId": base, "activeDirectoryDataLake": base, "batch": base,
		"media": base, "sqlManagement": base, "vmImageAliasDoc": base, "gallery": base,
		"suffixes": map[string]any{"storage": "invalid", "keyVaultDns": "invalid"},
	}
	if version != "" && version < "2020" {
		route.WriteJSON(w, http.StatusOK, []any{doc})
		return nil
	}
	route.WriteJSON(w, http.StatusOK, doc)
	return nil
}
