package site

import (
	"cmp"
	"net/http"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

// shownType is the fabric type in the API's words: KVM sites appear as Hyper-V sites.
func shownType(t dr.FabricType) string {
	if t == dr.VMMSite || t == dr.AzureSite {
		return string(t)
	}
	return armwire.HyperVSite
}

func listFabrics(c *route.Call) (route.Reply, error) {
	fs, err := c.Dir.Fabrics()
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, fs, func(f dr.Fabric) string { return f.Name }, fabricResource)
}

func getFabric(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	r, err := fabricResource(c, f)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

func fabricResource(c *route.Call, f dr.Fabric) (armwire.Resource[armwire.Fabric], error) {
	ps, err := c.Dir.Providers()
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
		if e, bad := providerError(c, p); bad {
			h, errs = route.Worst(h, e.Severity), append(errs, e)
		}
	}
	if f.Type == dr.VMMSite {
		hosts = nil // the public shape of a VMM server has none
	}
	server, err := vmmServer(c, f, ps)
	if err != nil {
		return armwire.Resource[armwire.Fabric]{}, err
	}
	return armwire.Resource[armwire.Fabric]{
		ID: c.FabricID(f), Name: f.Name, Type: armwire.ResourceType(route.TFabrics, f.Name),
		Properties: armwire.Fabric{
			FriendlyName: f.Name, EncryptionDetails: armwire.EncryptionDetails{KEKState: "None"}, RolloverEncryptionDetails: armwire.EncryptionDetails{KEKState: "None"},
			InternalIdentifier: string(f.ID), BCDRState: "Valid", CustomDetails: armwire.FabricDetails{InstanceType: shownType(f.Type), HyperVHosts: hosts},
			HealthErrorDetails: route.HealthErrors(errs, string(f.ID)), Health: route.Health(h), FabricType: string(f.Type), VMM: server,
		},
	}, nil
}

// vmmServer is what the VMM server of a site has told; nil for other sites and
// before it has told anything.
func vmmServer(c *route.Call, f dr.Fabric, agents []dr.Provider) (*armwire.VMMServer, error) {
	if f.Type != dr.VMMSite {
		return nil, nil
	}
	s, err := c.Svc().VMM(c.Ctx(), f.ID)
	if err != nil || s.Version == 0 {
		return nil, err
	}
	out := &armwire.VMMServer{Server: s.Server.Name, Product: s.Server.Product, Clouds: []string{}, Hosts: []armwire.VMMHost{}, Warnings: append([]string{}, s.Warnings...)}
	for _, x := range s.Clouds {
		out.Clouds = append(out.Clouds, x.Name)
	}
	for _, h := range s.Hosts {
		w := armwire.VMMHost{Name: h.Name, Cluster: h.Cluster, OS: h.OS}
		for _, p := range agents {
			if _, same := vmm.HostNamed([]vmm.Host{h}, p.Host); same && p.Fabric == f.ID && !p.Revoked {
				w.AgentID = string(p.ID)
			}
		}
		out.Hosts = append(out.Hosts, w)
	}
	return out, nil
}

// providerError says what is wrong with an agent, if anything.
func providerError(c *route.Call, p dr.Provider) (dr.HealthError, bool) {
	switch {
	case p.Revoked:
		return dr.HealthError{Code: dr.CodeAgentRevoked, Severity: dr.HealthCritical, Message: "host " + p.Host + " was removed from the vault", Since: p.LastSeen}, true
	case !c.Connected(p):
		return dr.HealthError{Code: dr.CodeVaultUnreachable, Severity: dr.HealthWarning,
			Message: "host " + p.Host + " has not been heard of since " + p.LastSeen.UTC().Format("2006-01-02 15:04:05 UTC"), Since: p.LastSeen}, true
	}
	return dr.HealthError{}, false
}

// putFabric creates a site; for one that exists already and is of the same kind
// it answers what is there, so that a lost answer can be repeated.
func putFabric(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.FabricInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	t, err := fabricType(in.Properties)
	if err != nil {
		return route.Reply{}, err
	}
	name := c.NameOf(route.TFabrics)
	switch f, err := c.Svc().Fabric(c.Ctx(), name); {
	case err == nil && shownType(f.Type) == shownType(t):
		return getFabric(c)
	case err == nil:
		return route.Reply{}, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapi.putFabric", "site %q exists and is of type %s", f.Name, f.Type)
	case dr.KindOf(err) != dr.KindNotFound:
		return route.Reply{}, err
	}
	job, err := c.Svc().CreateFabric(c.Ctx(), name, t, c.Who.Name)
	return route.Started(job, err, c.VaultID.ID(route.TFabrics, name))
}

func fabricType(in armwire.FabricInput) (dr.FabricType, error) {
	t := cmp.Or(in.FabricType, in.CustomDetails.InstanceType())
	switch {
	case t == "" || strings.EqualFold(t, "FabricSpecificCreationInput") || strings.EqualFold(t, armwire.HyperVSite):
		return dr.HyperVSite, nil
	case strings.EqualFold(t, armwire.KVMSite):
		return dr.KVMSite, nil
	case strings.EqualFold(t, armwire.VMM):
		return dr.VMMSite, nil
	case strings.EqualFold(t, armwire.Azure):
		return dr.AzureSite, nil
	}
	return "", dr.New(dr.KindUnsupported, route.CodeNotSupported, "armapi.putFabric", "sites of type %q can't be created; use %s, %s, %s or %s", route.Clip(t), armwire.HyperVSite, armwire.KVMSite, armwire.VMM, armwire.Azure)
}

// removeFabric serves remove (POST) and purge (DELETE, also when hosts are gone).
func removeFabric(c *route.Call) (route.Reply, error) {
	name, purge := c.NameOf(route.TFabrics), c.R.Method == http.MethodDelete
	job, err := c.Svc().RemoveFabric(c.Ctx(), name, purge, c.Who.Name)
	return c.Removed(job, err, c.VaultID.ID(route.TFabrics, name))
}

func checkConsistency(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().CheckConsistency(c.Ctx(), f.Name, c.Who.Name)
	return route.Started(job, err, c.FabricID(f))
}
