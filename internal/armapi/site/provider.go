package site

import (
	"net/http"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

func listProviders(c *route.Call) (route.Reply, error) {
	ps, err := c.Dir.Providers()
	if err != nil {
		return route.Reply{}, err
	}
	if c.NameOf(route.TFabrics) != "" {
		f, err := c.Fabric()
		if err != nil {
			return route.Reply{}, err
		}
		if ps, err = c.Svc().Providers(c.Ctx(), f.ID); err != nil {
			return route.Reply{}, err
		}
	}
	return route.Page(c, ps, func(p dr.Provider) string { return string(p.ID) }, providerResource)
}

// provider returns the fabric and provider that the path names.
func provider(c *route.Call) (dr.Fabric, dr.Provider, error) {
	f, err := c.Fabric()
	if err != nil {
		return f, dr.Provider{}, err
	}
	p, err := c.Svc().Provider(c.Ctx(), f.ID, dr.AgentID(strings.ToLower(c.NameOf(route.TProviders))))
	return f, p, err
}

func getProvider(c *route.Call) (route.Reply, error) {
	_, p, err := provider(c)
	if err != nil {
		return route.Reply{}, err
	}
	r, err := providerResource(c, p)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

func providerResource(c *route.Call, p dr.Provider) (armwire.Resource[armwire.Provider], error) {
	f, err := c.Dir.Fabric(p.Fabric)
	if err != nil {
		return armwire.Resource[armwire.Provider]{}, err
	}
	_, counts, err := c.Dir.Protected()
	if err != nil {
		return armwire.Resource[armwire.Provider]{}, err
	}
	status := "Disconnected"
	if c.Connected(p) {
		status = "Connected"
	}
	errs := []dr.HealthError{}
	if e, bad := providerError(c, p); bad {
		errs = append(errs, e)
	}
	roles := []string{}
	for _, r := range p.Roles {
		roles = append(roles, string(r))
	}
	return armwire.Resource[armwire.Provider]{
		ID: c.ProviderID(f, p.ID), Name: string(p.ID), Type: armwire.ResourceType(route.TFabrics, f.Name, route.TProviders, string(p.ID)),
		Properties: armwire.Provider{
			FabricType: shownType(f.Type), FriendlyName: p.Host, ProviderVersion: p.Version, ServerVersion: p.Hypervisor, ProviderVersionState: "Latest",
			ProviderVersionDetails: armwire.VersionDetails{Version: p.Version, Status: "Supported"}, FabricFriendlyName: f.Name,
			LastHeartBeat: armwire.Time(p.LastSeen), ConnectionStatus: status, ProtectedItemCount: int32(counts[p.ID]),
			AllowedScenarios: []string{"Refresh"}, HealthErrorDetails: route.HealthErrors(errs, string(p.ID)), DRAIdentifier: string(p.ID), MachineID: string(p.ID), MachineName: p.Host,
			AuthenticationIdentityDetails: armwire.IdentityProvider{TenantID: c.Ident.TenantID, ObjectID: string(p.ID)},
			Roles:                         roles, Hypervisor: p.Hypervisor,
		},
	}, nil
}

func removeProvider(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return c.Removed("", err, "")
	}
	id := dr.AgentID(strings.ToLower(c.NameOf(route.TProviders)))
	job, err := c.Svc().RemoveProvider(c.Ctx(), f.ID, id, c.R.Method == http.MethodDelete, c.Who.Name)
	return c.Removed(job, err, c.ProviderID(f, id))
}

func refreshProvider(c *route.Call) (route.Reply, error) {
	f, p, err := provider(c)
	if err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().RefreshProvider(c.Ctx(), f.ID, p.ID, c.Who.Name)
	return route.Started(job, err, c.ProviderID(f, p.ID))
}
