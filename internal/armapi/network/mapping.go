package network

import (
	"cmp"
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// mappings lists the mappings of the path: of a network, or all.
func mappings(c *route.Call) ([]vault.NetworkMapping, error) {
	var id dr.FabricID
	of := c.NameOf(route.TNetworks)
	if of != "" {
		f, err := c.Fabric()
		if err != nil {
			return nil, err
		}
		id = f.ID
	}
	all, err := c.Svc().NetworkMappings(c.Ctx(), id)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(m vault.NetworkMapping) bool { return of != "" && !strings.EqualFold(m.Network, of) })
	if of != "" && len(all) == 0 { // of a network that exists; mappings outlive networks
		_, err = network(c)
	}
	return all, err
}

func listMappings(c *route.Call) (route.Reply, error) {
	all, err := mappings(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(m vault.NetworkMapping) string { return string(m.Fabric) + "/" + m.Network + "/" + m.Name }, mappingResource)
}

func mapping(c *route.Call) (vault.NetworkMapping, error) {
	all, err := mappings(c)
	if err != nil {
		return vault.NetworkMapping{}, err
	}
	return named(c, all, route.TNetworkMappings, "network mapping", func(m vault.NetworkMapping) string { return m.Name })
}

func getMapping(c *route.Call) (route.Reply, error) {
	m, err := mapping(c)
	return render(c, m, err, mappingResource)
}

// nameOf is the friendly name of a site's network; its id where the network is gone.
func nameOf(c *route.Call, f dr.Fabric, id string) (dr.Fabric, string, string, error) {
	if f.ID == "" {
		return f, id, id, nil
	}
	all, err := c.Dir.Networks(f.ID)
	for _, n := range all {
		if strings.EqualFold(n.ID, id) {
			return f, n.ID, n.Name, nil
		}
	}
	return f, id, id, err
}

func mappingID(c *route.Call, f dr.Fabric, network, name string) string {
	return c.NetworkID(f, network) + "/" + route.TNetworkMappings + "/" + name
}

func mappingResource(c *route.Call, m vault.NetworkMapping) (armwire.Resource[armwire.NetworkMapping], error) {
	var out armwire.Resource[armwire.NetworkMapping]
	source, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return out, err
	}
	source, from, fromName, err := nameOf(c, source, m.Network)
	if err != nil {
		return out, err
	}
	p := armwire.NetworkMapping{State: "Paired", PrimaryNetworkFriendlyName: fromName, PrimaryNetworkID: c.NetworkID(source, from), PrimaryFabricFriendlyName: source.Name}
	if m.TargetFabric == "" {
		p.RecoveryNetworkFriendlyName, p.RecoveryNetworkID = m.Target[strings.LastIndexByte(m.Target, '/')+1:], m.Target
		p.RecoveryFabricARMID, p.RecoveryFabricFriendlyName, p.FabricSpecificSettings.InstanceType = c.FabricID(source), armwire.Cloud, armwire.VMMToAzure
	} else {
		target, err := c.Dir.Fabric(m.TargetFabric)
		if err != nil {
			return out, err
		}
		target, to, toName, err := nameOf(c, target, m.Target)
		if err != nil {
			return out, err
		}
		p.RecoveryNetworkFriendlyName, p.RecoveryNetworkID, p.RecoveryFabricARMID = toName, c.NetworkID(target, to), c.FabricID(target)
		p.RecoveryFabricFriendlyName, p.FabricSpecificSettings.InstanceType = target.Name, armwire.VMMToVMM
	}
	return armwire.Resource[armwire.NetworkMapping]{ID: mappingID(c, source, from, m.Name), Name: m.Name,
		Type: armwire.ResourceType(route.TFabrics, "", route.TNetworks, "", route.TNetworkMappings, ""), Properties: p}, nil
}

// target sets where a mapping leads: a network of this vault by its id, or, with
// the site's name, by the network's own; or a network of the cloud.
func target(c *route.Call, in armwire.NetworkMappingInput, m *vault.NetworkMapping) error {
	if err := route.InstanceType(in.FabricSpecificDetails, armwire.VMMToAzure, armwire.VMMToVMM); err != nil {
		return err
	}
	const field = "recoveryNetworkId"
	ref, fabric := in.RecoveryNetworkID, in.RecoveryFabricName
	id, err := armwire.ParseID(ref)
	ours := err == nil && id.NameOf(route.TNetworks) != ""
	switch {
	case ref == "":
		return dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.networkMapping", "%s is missing", field)
	case strings.EqualFold(fabric, armwire.Cloud), fabric == "" && !ours && strings.Contains(ref, "/"):
		m.TargetFabric, m.Target = "", ref
		return nil
	case ours:
		f, name, err := reference(c, field, ref, route.TNetworks)
		if err == nil && fabric != "" && !strings.EqualFold(fabric, f.Name) {
			err = dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.networkMapping", "%s is of site %q, recoveryFabricName names %q", field, f.Name, route.Clip(fabric))
		}
		m.TargetFabric, m.Target = f.ID, name
		return err
	case fabric == "":
		return dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.networkMapping", "recoveryFabricName is missing and %s %q is no id", field, route.Clip(ref))
	}
	f, err := c.Svc().Fabric(c.Ctx(), fabric)
	if err != nil {
		return route.Named(err, "recoveryFabricName")
	}
	all, err := c.Dir.Networks(f.ID)
	if err != nil {
		return err
	}
	for _, n := range all {
		if strings.EqualFold(n.ID, ref) || n.Name == ref {
			m.TargetFabric, m.Target = f.ID, n.ID
			return nil
		}
	}
	return dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.networkMapping", "%s: site %q has no network %q", field, f.Name, route.Clip(ref))
}

func putMapping(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.NetworkMappingInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	n, err := network(c)
	if err != nil {
		return route.Reply{}, err
	}
	m := vault.NetworkMapping{Fabric: n.f.ID, Network: n.x.ID, Name: c.NameOf(route.TNetworkMappings)}
	if err := target(c, in.Properties, &m); err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().CreateNetworkMapping(c.Ctx(), m, c.Who.Name)
	return route.Started(job, err, mappingID(c, n.f, n.x.ID, m.Name))
}

func patchMapping(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.NetworkMappingInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	m, err := mapping(c)
	if err != nil {
		return route.Reply{}, err
	}
	f, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return route.Reply{}, err
	}
	p := in.Properties
	if p.RecoveryFabricName == "" && p.RecoveryNetworkID != "" && !strings.Contains(p.RecoveryNetworkID, "/") {
		old, err := c.Dir.Fabric(m.TargetFabric)
		if err != nil {
			return route.Reply{}, err
		}
		p.RecoveryFabricName = cmp.Or(old.Name, armwire.Cloud)
	}
	if p.RecoveryNetworkID != "" || p.RecoveryFabricName != "" {
		if err := target(c, p, &m); err != nil {
			return route.Reply{}, err
		}
	}
	job, err := c.Svc().UpdateNetworkMapping(c.Ctx(), m, c.Who.Name)
	return route.Started(job, err, mappingID(c, f, m.Network, m.Name))
}

func removeMapping(c *route.Call) (route.Reply, error) {
	m, err := mapping(c)
	if err != nil {
		return c.Removed("", err, "")
	}
	f, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().RemoveNetworkMapping(c.Ctx(), m.Fabric, m.Network, m.Name, c.Who.Name)
	return c.Removed(job, err, mappingID(c, f, m.Network, m.Name))
}
