package account

import (
	"encoding/json"
	"net/http"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// ServeScope answers the few things above the vault that clients ask before
// they get to work: subscriptions, tenants, groups, provider registration and
// the lists of vaults.
func ServeScope(w http.ResponseWriter, c *route.Call, parts []string) error {
	if err := route.Allow(c.Who, dr.RoleReader); err != nil {
		return err
	}
	lower := make([]string, len(parts))
	for i, p := range parts {
		lower[i] = strings.ToLower(p)
	}
	if lower[0] == "subscriptions" && len(parts) > 1 && !strings.EqualFold(parts[1], c.Ident.SubscriptionID) {
		return dr.New(dr.KindNotFound, route.CodeNoSubscription, "armapi", "subscription %q does not exist here", route.Clip(parts[1]))
	}
	if len(parts) > 3 && lower[2] == "resourcegroups" && !strings.EqualFold(parts[3], c.Ident.ResourceGroup) {
		return dr.New(dr.KindNotFound, route.CodeNoGroup, "armapi", "resource group %q does not exist here", route.Clip(parts[3]))
	}
	body := scopeBody(c, strings.Join(mask(lower), "/"))
	if body == nil {
		return dr.New(dr.KindNotFound, route.CodeUnknownType, "armapi", "%s %s does not exist", c.R.Method, route.Clip(c.R.URL.Path))
	}
	v, err := body()
	if err != nil {
		return err
	}
	route.WriteJSON(w, http.StatusOK, v)
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

func scopeBody(c *route.Call, scope string) func() (any, error) {
	sub := "/subscriptions/" + c.Ident.SubscriptionID
	subscription := map[string]any{"id": sub, "subscriptionId": c.Ident.SubscriptionID, "tenantId": c.Ident.TenantID,
		"displayName": c.Ident.Name, "state": "Enabled", "subscriptionPolicies": map[string]any{}, "authorizationSource": "RoleBased"}
	group := map[string]any{"id": sub + "/resourceGroups/" + c.Ident.ResourceGroup, "name": c.Ident.ResourceGroup, "type": "Microsoft.Resources/resourceGroups",
		"location": c.Ident.Location, "properties": map[string]any{"provisioningState": "Succeeded"}}
	ns := strings.ToLower(armwire.Namespace)
	provider := map[string]any{"id": sub + "/providers/" + armwire.Namespace, "namespace": armwire.Namespace, "registrationState": "Registered",
		"resourceTypes": []any{map[string]any{"resourceType": "vaults", "locations": []string{c.Ident.Location}, "apiVersions": []string{armwire.APIVersion}}}}
	is := func(v any) func() (any, error) { return func() (any, error) { return v, nil } }
	list := func(v ...any) func() (any, error) {
		return is(map[string]any{"value": v, "nextLink": nil})
	}
	switch c.R.Method + " " + scope {
	case "GET subscriptions":
		return list(subscription)
	case "GET subscriptions/*":
		return is(subscription)
	case "GET tenants":
		return list(map[string]any{"id": "/tenants/" + c.Ident.TenantID, "tenantId": c.Ident.TenantID, "displayName": c.Ident.Name})
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
			v, err := vaultResource(c)
			return armwire.List[armwire.Vault]{Value: []armwire.Vault{v}}, err
		}
	case "GET providers/" + ns + "/operations", "GET subscriptions/*/resourcegroups/*/providers/" + ns + "/operations":
		return is(armwire.List[json.RawMessage]{Value: []json.RawMessage{}})
	}
	return nil
}
