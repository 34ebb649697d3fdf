package policy

import (
	"cmp"
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

func listMappings(c *route.Call) (route.Reply, error) {
	var id dr.FabricID
	if c.NameOf(route.TFabrics) != "" {
		f, err := c.Fabric()
		if err != nil {
			return route.Reply{}, err
		}
		id = f.ID
	}
	ms, err := c.Svc().Mappings(c.Ctx(), id)
	if err != nil {
		return route.Reply{}, err
	}
	if c.NameOf(route.TContainers) != "" {
		f, err := c.Fabric()
		if err != nil {
			return route.Reply{}, err
		}
		ms = slices.DeleteFunc(slices.Clone(ms), func(m dr.ContainerMapping) bool {
			return !strings.EqualFold(containerOf(f, m), c.NameOf(route.TContainers))
		})
	}
	return route.Page(c, ms, func(m dr.ContainerMapping) string { return string(m.Fabric) + "/" + m.Name }, mappingResource)
}

func getMapping(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	m, err := mapping(c, f)
	if err != nil {
		return route.Reply{}, err
	}
	r, err := mappingResource(c, m)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

// containerOf is the name of the container that a mapping is of.
func containerOf(f dr.Fabric, m dr.ContainerMapping) string {
	return cmp.Or(m.Container, f.ContainerName())
}

func mappingID(c *route.Call, f dr.Fabric, m dr.ContainerMapping) string {
	return c.VaultID.ID(route.TFabrics, f.Name, route.TContainers, containerOf(f, m), route.TMappings, m.Name)
}

// mapping finds the mapping that the path names, in the container that it names.
func mapping(c *route.Call, f dr.Fabric) (dr.ContainerMapping, error) {
	m, err := c.Svc().Mapping(c.Ctx(), f.ID, c.NameOf(route.TMappings))
	if err == nil && !strings.EqualFold(containerOf(f, m), c.NameOf(route.TContainers)) {
		err = dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "container mapping %q is of another container, %q", m.Name, containerOf(f, m))
	}
	return m, err
}

func mappingResource(c *route.Call, m dr.ContainerMapping) (armwire.Resource[armwire.Mapping], error) {
	var out armwire.Resource[armwire.Mapping]
	f, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return out, err
	}
	p, err := c.Dir.Policy(m.Policy)
	if err != nil {
		return out, err
	}
	_, container, name, err := c.Target(m.TargetFabric)
	if err != nil {
		return out, err
	}
	out = armwire.Resource[armwire.Mapping]{
		ID: mappingID(c, f, m), Name: m.Name, Type: armwire.ResourceType(route.TFabrics, "", route.TContainers, "", route.TMappings, ""),
		Properties: armwire.Mapping{
			TargetProtectionContainerID: container, TargetProtectionContainerFriendlyName: name, Health: string(dr.HealthNormal), HealthErrorDetails: []armwire.HealthError{},
			PolicyID: c.PolicyID(p), State: "Paired", SourceProtectionContainerFriendlyName: f.Name, SourceFabricFriendlyName: f.Name,
			TargetFabricFriendlyName: name, PolicyFriendlyName: p.Name,
		},
	}
	return out, nil
}

// putMapping associates a policy and a recovery site with a container.
func putMapping(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.MappingInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	policyName, err := c.NameIn("policyId", in.Properties.PolicyID, route.TPolicies)
	if err != nil {
		return route.Reply{}, err
	}
	p, err := c.Svc().Policy(c.Ctx(), policyName)
	if err != nil {
		return route.Reply{}, route.Named(err, "policyId")
	}
	m := dr.ContainerMapping{Name: c.NameOf(route.TMappings), Fabric: f.ID, Policy: p.ID, Target: in.Properties.TargetProtectionContainerID}
	if t := m.Target; t != "" && !strings.EqualFold(t, armwire.Cloud) {
		container, err := c.NameIn("targetProtectionContainerId", t, route.TContainers)
		if err != nil {
			return route.Reply{}, err
		}
		target, _, err := c.Dir.ContainerNamed(container)
		if err != nil {
			return route.Reply{}, route.Named(err, "targetProtectionContainerId")
		}
		m.TargetFabric = target.ID
	}
	if f.Type == dr.VMMSite {
		m.Container = strings.ToLower(c.NameOf(route.TContainers))
	}
	switch have, err := c.Svc().Mapping(c.Ctx(), f.ID, m.Name); {
	case err == nil && have.Policy == m.Policy && have.TargetFabric == m.TargetFabric && have.Container == m.Container:
		return getMapping(c)
	case err == nil:
		return route.Reply{}, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapi.putMapping", "container mapping %q exists with another policy, target or container", have.Name)
	case dr.KindOf(err) != dr.KindNotFound:
		return route.Reply{}, err
	}
	job, err := c.Svc().CreateMapping(c.Ctx(), m, c.Who.Name)
	return route.Started(job, err, mappingID(c, f, m))
}

func removeMapping(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return c.Removed("", err, "")
	}
	m, err := mapping(c, f)
	if err != nil {
		return c.Removed("", err, "")
	}
	job, err := c.Svc().RemoveMapping(c.Ctx(), f.ID, m.Name, c.Who.Name)
	return c.Removed(job, err, mappingID(c, f, m))
}
