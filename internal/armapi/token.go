package armapi

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/armwire"
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
	base := s.publicURL(r) + "/" + url.PathEscape(tenant)
	issuer, token := base, base+"/oauth2/token"
	if v2 {
		issuer, token = base+"/v2.0", base+"/oauth2/v2.0/token"
	}
	writeJSON(w, http.StatusOK, map[string]any{
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
	b, err := readBody(r)
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
	writeJSON(w, http.StatusOK, map[string]any{
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
	writeJSON(w, status, map[string]any{"error": code, "error_description": description, "error_codes": []int{}})
}

// serveMetadata describes the endpoints for clients that discover them. Three
// shapes exist, by api-version; only the newest is an object with a name.
func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request) error {
	base, version := s.publicURL(r), queryValue(r.URL.Query(), "api-version")
	id := s.cfg.Service.Identity()
	auth := map[string]any{"loginEndpoint": base, "audiences": []string{base}, "tenant": id.TenantID, "identityProvider": "AAD"}
	if version != "" && version < "2018" {
		writeJSON(w, http.StatusOK, map[string]any{"galleryEndpoint": base, "graphEndpoint": base, "portalEndpoint": base, "authentication": auth})
		return nil
	}
	doc := map[string]any{
		"name": "Holdfast", "portal": base, "authentication": auth, "resourceManager": base + "/",
		"graph": base, "graphAudience": base, "microsoftGraphResourceId": base, "activeDirectoryDataLake": base, "batch": base,
		"media": base, "sqlManagement": base, "vmImageAliasDoc": base, "gallery": base,
		"suffixes": map[string]any{"storage": "invalid", "keyVaultDns": "invalid"},
	}
	if version != "" && version < "2020" {
		writeJSON(w, http.StatusOK, []any{doc})
		return nil
	}
	writeJSON(w, http.StatusOK, doc)
	return nil
}

// serveScope answers the few things above the vault that clients ask before
// they get to work: subscriptions, tenants, groups, provider registration and
// the lists of vaults.
func (s *Server) serveScope(w http.ResponseWriter, c *call, parts []string) error {
	if err := allow(c.who, dr.RoleReader); err != nil {
		return err
	}
	lower := make([]string, len(parts))
	for i, p := range parts {
		lower[i] = strings.ToLower(p)
	}
	if lower[0] == "subscriptions" && len(parts) > 1 && !strings.EqualFold(parts[1], c.ident.SubscriptionID) {
		return dr.New(dr.KindNotFound, codeNoSubscription, "armapi", "subscription %q does not exist here", clip(parts[1]))
	}
	if len(parts) > 3 && lower[2] == "resourcegroups" && !strings.EqualFold(parts[3], c.ident.ResourceGroup) {
		return dr.New(dr.KindNotFound, codeNoGroup, "armapi", "resource group %q does not exist here", clip(parts[3]))
	}
	body := c.scopeBody(strings.Join(mask(lower), "/"))
	if body == nil {
		return dr.New(dr.KindNotFound, codeUnknownType, "armapi", "%s %s does not exist", c.r.Method, clip(c.r.URL.Path))
	}
	v, err := body()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

// mask replaces names by "*" so that scopes can be compared.
func mask(lower []string) []string {
	out := append([]string(nil), lower...)
	for i := 1; i < len(out); i++ {
		if out[i-1] == "subscriptions" || out[i-1] == "resourcegroups" {
			out[i] = "*"
		}
	}
	return out
}

func (c *call) scopeBody(scope string) func() (any, error) {
	sub := "/subscriptions/" + c.ident.SubscriptionID
	subscription := map[string]any{"id": sub, "subscriptionId": c.ident.SubscriptionID, "tenantId": c.ident.TenantID,
		"displayName": c.ident.Name, "state": "Enabled", "subscriptionPolicies": map[string]any{}, "authorizationSource": "RoleBased"}
	group := map[string]any{"id": sub + "/resourceGroups/" + c.ident.ResourceGroup, "name": c.ident.ResourceGroup, "type": "Microsoft.Resources/resourceGroups",
		"location": c.ident.Location, "properties": map[string]any{"provisioningState": "Succeeded"}}
	ns := strings.ToLower(armwire.Namespace)
	provider := map[string]any{"id": sub + "/providers/" + armwire.Namespace, "namespace": armwire.Namespace, "registrationState": "Registered",
		"resourceTypes": []any{map[string]any{"resourceType": "vaults", "locations": []string{c.ident.Location}, "apiVersions": []string{armwire.APIVersion}}}}
	is := func(v any) func() (any, error) { return func() (any, error) { return v, nil } }
	list := func(v ...any) func() (any, error) {
		return is(map[string]any{"value": v, "nextLink": nil})
	}
	switch c.r.Method + " " + scope {
	case "GET subscriptions":
		return list(subscription)
	case "GET subscriptions/*":
		return is(subscription)
	case "GET tenants":
		return list(map[string]any{"id": "/tenants/" + c.ident.TenantID, "tenantId": c.ident.TenantID, "displayName": c.ident.Name})
	case "GET subscriptions/*/resourcegroups":
		return list(group)
	case "GET subscriptions/*/resourcegroups/*":
		return is(group)
	case "GET subscriptions/*/providers":
		return list(provider)
	case "GET subscriptions/*/providers/" + ns, "POST subscriptions/*/providers/" + ns + "/register":
		return is(provider)
	case "GET subscriptions/*/providers/" + ns + "/vaults", "GET subscriptions/*/resourcegroups/*/providers/" + ns + "/vaults":
		return func() (any, error) {
			v, err := c.vaultResource()
			return armwire.List[armwire.Vault]{Value: []armwire.Vault{v}}, err
		}
	case "GET providers/" + ns + "/operations", "GET subscriptions/*/resourcegroups/*/providers/" + ns + "/operations":
		return is(armwire.List[json.RawMessage]{Value: []json.RawMessage{}})
	}
	return nil
}
