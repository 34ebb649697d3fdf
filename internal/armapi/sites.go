package armapi

import (
	"net/http"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// directory remembers, for the time of one request, the few small tables that
// ids and friendly names are built from.
type directory struct {
	c         *call
	fabrics   []dr.Fabric
	policies  []dr.Policy
	providers []dr.Provider
	mappings  []dr.ContainerMapping
	counts    map[dr.FabricID]int
	byAgent   map[dr.AgentID]int
}

func (d *directory) allFabrics() (fs []dr.Fabric, err error) {
	if d.fabrics == nil {
		d.fabrics, err = d.c.svc().Fabrics(d.c.ctx())
	}
	return d.fabrics, err
}

func (d *directory) allPolicies() (ps []dr.Policy, err error) {
	if d.policies == nil {
		d.policies, err = d.c.svc().Policies(d.c.ctx())
	}
	return d.policies, err
}

func (d *directory) allProviders() (ps []dr.Provider, err error) {
	if d.providers == nil {
		d.providers, err = d.c.svc().Providers(d.c.ctx(), "")
	}
	return d.providers, err
}

func (d *directory) allMappings() (ms []dr.ContainerMapping, err error) {
	if d.mappings == nil {
		d.mappings, err = d.c.svc().Mappings(d.c.ctx(), "")
	}
	return d.mappings, err
}

// fabric finds a fabric by id; "" and an id that is gone give a zero Fabric.
func (d *directory) fabric(id dr.FabricID) (dr.Fabric, error) {
	fs, err := d.allFabrics()
	for _, f := range fs {
		if f.ID == id {
			return f, nil
		}
	}
	return dr.Fabric{}, err
}

func (d *directory) policy(id dr.PolicyID) (dr.Policy, error) {
	ps, err := d.allPolicies()
	for _, p := range ps {
		if p.ID == id {
			return p, nil
		}
	}
	return dr.Policy{}, err
}

// protected counts protected items by fabric and by source agent.
func (d *directory) protected() error {
	if d.counts != nil {
		return nil
	}
	items, err := d.c.svc().Items(d.c.ctx(), "")
	if err != nil {
		return err
	}
	d.counts, d.byAgent = map[dr.FabricID]int{}, map[dr.AgentID]int{}
	for _, it := range items {
		d.counts[it.Fabric]++
		d.byAgent[it.SourceAgent]++
	}
	return nil
}

// fabric returns the fabric that the path names, and checks the container if
// the path names one: a site has exactly one.
func (c *call) fabric() (dr.Fabric, error) {
	f, err := c.svc().Fabric(c.ctx(), c.name(tFabrics))
	if err != nil {
		return f, err
	}
	if name := c.name(tContainers); name != "" && !strings.EqualFold(name, f.ContainerName()) {
		return f, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "site %q has no protection container %q; its only one is %q", f.Name, clip(name), f.ContainerName())
	}
	return f, nil
}

func (c *call) fabricID(f dr.Fabric) string { return c.vaultID().ID(tFabrics, f.Name) }
func (c *call) containerID(f dr.Fabric) string {
	return c.vaultID().ID(tFabrics, f.Name, tContainers, f.ContainerName())
}

// shownType is the fabric type in the API's words: KVM sites appear as Hyper-V sites.
func shownType(t dr.FabricType) string {
	if t == dr.VMMSite {
		return string(dr.VMMSite)
	}
	return armwire.HyperVSite
}

func (c *call) connected(p dr.Provider) bool {
	return !p.Revoked && c.now().Sub(p.LastSeen) < c.s.cfg.DisconnectedAfter
}

func listFabrics(c *call) (reply, error) {
	fs, err := c.dir.allFabrics()
	if err != nil {
		return reply{}, err
	}
	return page(c, fs, func(f dr.Fabric) string { return f.Name }, c.fabricResource)
}

func getFabric(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	r, err := c.fabricResource(f)
	if err != nil {
		return reply{}, err
	}
	return ok(r)
}

func (c *call) fabricResource(f dr.Fabric) (armwire.Resource[armwire.Fabric], error) {
	ps, err := c.dir.allProviders()
	if err != nil {
		return armwire.Resource[armwire.Fabric]{}, err
	}
	h, hosts := dr.HealthNormal, []armwire.FabricHost{}
	errs := []dr.HealthError{}
	for _, p := range ps {
		if p.Fabric != f.ID {
			continue
		}
		hosts = append(hosts, armwire.FabricHost{ID: string(p.ID), Name: p.Host, MARSAgentVersion: p.Version})
		if e, bad := c.providerError(p); bad {
			h, errs = worst(h, e.Severity), append(errs, e)
		}
	}
	return armwire.Resource[armwire.Fabric]{
		ID: c.fabricID(f), Name: f.Name, Type: armwire.ResourceType(tFabrics, f.Name),
		Properties: armwire.Fabric{
			FriendlyName: f.Name, EncryptionDetails: armwire.EncryptionDetails{KEKState: "None"}, RolloverEncryptionDetails: armwire.EncryptionDetails{KEKState: "None"},
			InternalIdentifier: string(f.ID), BCDRState: "Valid", CustomDetails: armwire.FabricDetails{InstanceType: shownType(f.Type), HyperVHosts: hosts},
			HealthErrorDetails: healthErrors(errs, string(f.ID)), Health: health(h), FabricType: string(f.Type),
		},
	}, nil
}

// providerError says what is wrong with an agent, if anything.
func (c *call) providerError(p dr.Provider) (dr.HealthError, bool) {
	switch {
	case p.Revoked:
		return dr.HealthError{Code: dr.CodeAgentRevoked, Severity: dr.HealthCritical, Message: "host " + p.Host + " was removed from the vault", Since: p.LastSeen}, true
	case !c.connected(p):
		return dr.HealthError{Code: dr.CodeVaultUnreachable, Severity: dr.HealthWarning,
			Message: "host " + p.Host + " has not been heard of since " + p.LastSeen.UTC().Format("2006-01-02 15:04:05 UTC"), Since: p.LastSeen}, true
	}
	return dr.HealthError{}, false
}

// putFabric creates a site; for one that exists already and is of the same kind
// it answers what is there, so that a lost answer can be repeated.
func putFabric(c *call) (reply, error) {
	var in armwire.Input[armwire.FabricInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	t, err := fabricType(in.Properties)
	if err != nil {
		return reply{}, err
	}
	name := c.name(tFabrics)
	switch f, err := c.svc().Fabric(c.ctx(), name); {
	case err == nil && shownType(f.Type) == shownType(t):
		return getFabric(c)
	case err == nil:
		return reply{}, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapi.putFabric", "site %q exists and is of type %s", f.Name, f.Type)
	case dr.KindOf(err) != dr.KindNotFound:
		return reply{}, err
	}
	job, err := c.svc().CreateFabric(c.ctx(), name, t, c.who.Name)
	return started(job, err, c.vaultID().ID(tFabrics, name))
}

func fabricType(in armwire.FabricInput) (dr.FabricType, error) {
	t := firstNonEmpty(in.FabricType, in.CustomDetails.InstanceType())
	switch {
	case t == "" || strings.EqualFold(t, "FabricSpecificCreationInput") || strings.EqualFold(t, armwire.HyperVSite):
		return dr.HyperVSite, nil
	case strings.EqualFold(t, armwire.KVMSite):
		return dr.KVMSite, nil
	}
	return "", dr.New(dr.KindUnsupported, codeNotSupported, "armapi.putFabric", "sites of type %q can't be created; use %s or %s", clip(t), armwire.HyperVSite, armwire.KVMSite)
}

// removeFabric serves remove (POST) and purge (DELETE, also when hosts are gone).
func removeFabric(c *call) (reply, error) {
	name, purge := c.name(tFabrics), c.r.Method == http.MethodDelete
	job, err := c.svc().RemoveFabric(c.ctx(), name, purge, c.who.Name)
	return c.removed(job, err, c.vaultID().ID(tFabrics, name))
}

// removed answers a removal. DELETE of something that is gone is done.
func (c *call) removed(job dr.JobID, err error, target string) (reply, error) {
	if err != nil && c.r.Method == http.MethodDelete && dr.KindOf(err) == dr.KindNotFound {
		return reply{status: http.StatusNoContent}, nil
	}
	return started(job, err, target)
}

func checkConsistency(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	job, err := c.svc().CheckConsistency(c.ctx(), f.Name, c.who.Name)
	return started(job, err, c.fabricID(f))
}

func listProviders(c *call) (reply, error) {
	ps, err := c.dir.allProviders()
	if err != nil {
		return reply{}, err
	}
	if c.name(tFabrics) != "" {
		f, err := c.fabric()
		if err != nil {
			return reply{}, err
		}
		if ps, err = c.svc().Providers(c.ctx(), f.ID); err != nil {
			return reply{}, err
		}
	}
	return page(c, ps, func(p dr.Provider) string { return string(p.ID) }, c.providerResource)
}

// provider returns the fabric and provider that the path names.
func (c *call) provider() (dr.Fabric, dr.Provider, error) {
	f, err := c.fabric()
	if err != nil {
		return f, dr.Provider{}, err
	}
	p, err := c.svc().Provider(c.ctx(), f.ID, dr.AgentID(strings.ToLower(c.name(tProviders))))
	return f, p, err
}

func getProvider(c *call) (reply, error) {
	_, p, err := c.provider()
	if err != nil {
		return reply{}, err
	}
	r, err := c.providerResource(p)
	if err != nil {
		return reply{}, err
	}
	return ok(r)
}

func (c *call) providerID(f dr.Fabric, id dr.AgentID) string {
	return c.vaultID().ID(tFabrics, f.Name, tProviders, string(id))
}

func (c *call) providerResource(p dr.Provider) (armwire.Resource[armwire.Provider], error) {
	f, err := c.dir.fabric(p.Fabric)
	if err == nil {
		err = c.dir.protected()
	}
	if err != nil {
		return armwire.Resource[armwire.Provider]{}, err
	}
	status := "Disconnected"
	if c.connected(p) {
		status = "Connected"
	}
	errs := []dr.HealthError{}
	if e, bad := c.providerError(p); bad {
		errs = append(errs, e)
	}
	roles := []string{}
	for _, r := range p.Roles {
		roles = append(roles, string(r))
	}
	return armwire.Resource[armwire.Provider]{
		ID: c.providerID(f, p.ID), Name: string(p.ID), Type: armwire.ResourceType(tFabrics, f.Name, tProviders, string(p.ID)),
		Properties: armwire.Provider{
			FabricType: shownType(f.Type), FriendlyName: p.Host, ProviderVersion: p.Version, ServerVersion: p.Hypervisor, ProviderVersionState: "Latest",
			ProviderVersionDetails: armwire.VersionDetails{Version: p.Version, Status: "Supported"}, FabricFriendlyName: f.Name,
			LastHeartBeat: armwire.Time(p.LastSeen), ConnectionStatus: status, ProtectedItemCount: int32(c.dir.byAgent[p.ID]),
			AllowedScenarios: []string{"Refresh"}, HealthErrorDetails: healthErrors(errs, string(p.ID)), DRAIdentifier: string(p.ID), MachineID: string(p.ID), MachineName: p.Host,
			AuthenticationIdentityDetails: armwire.IdentityProvider{TenantID: c.ident.TenantID, ObjectID: string(p.ID)},
			Roles:                         roles, Hypervisor: p.Hypervisor,
		},
	}, nil
}

func removeProvider(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return c.removed("", err, "")
	}
	id := dr.AgentID(strings.ToLower(c.name(tProviders)))
	job, err := c.svc().RemoveProvider(c.ctx(), f.ID, id, c.r.Method == http.MethodDelete, c.who.Name)
	return c.removed(job, err, c.providerID(f, id))
}

func refreshProvider(c *call) (reply, error) {
	f, p, err := c.provider()
	if err != nil {
		return reply{}, err
	}
	job, err := c.svc().RefreshProvider(c.ctx(), f.ID, p.ID, c.who.Name)
	return started(job, err, c.providerID(f, p.ID))
}

func listContainers(c *call) (reply, error) {
	var fs []dr.Fabric
	var err error
	if c.name(tFabrics) == "" {
		fs, err = c.dir.allFabrics()
	} else {
		var f dr.Fabric
		f, err = c.fabric()
		fs = []dr.Fabric{f}
	}
	if err != nil {
		return reply{}, err
	}
	return page(c, fs, func(f dr.Fabric) string { return f.ContainerName() }, c.containerResource)
}

func getContainer(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	r, err := c.containerResource(f)
	if err != nil {
		return reply{}, err
	}
	return ok(r)
}

func (c *call) containerResource(f dr.Fabric) (armwire.Resource[armwire.Container], error) {
	ms, err := c.dir.allMappings()
	if err == nil {
		err = c.dir.protected()
	}
	if err != nil {
		return armwire.Resource[armwire.Container]{}, err
	}
	paired, role := "NotPaired", ""
	for _, m := range ms {
		switch f.ID {
		case m.Fabric:
			paired, role = "Paired", "Primary"
		case m.TargetFabric:
			paired, role = "Paired", firstNonEmpty(role, "Recovery")
		}
	}
	return armwire.Resource[armwire.Container]{
		ID: c.containerID(f), Name: f.ContainerName(), Type: armwire.ResourceType(tFabrics, f.Name, tContainers, ""),
		Properties: armwire.Container{FabricFriendlyName: f.Name, FriendlyName: f.Name, FabricType: shownType(f.Type),
			ProtectedItemCount: int32(c.dir.counts[f.ID]), PairingStatus: paired, Role: role},
	}, nil
}
