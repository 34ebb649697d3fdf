package site

import (
	"cmp"
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

// container is a protection container: a site's own, or a cloud of a VMM server.
type container struct {
	f     dr.Fabric
	cloud vmm.Cloud // zero = the site's own
}

func (x container) name() string { return x.f.ContainerOf(x.cloud.ID) }

// containers lists the containers of a site. A VMM server's own one, which holds
// the VMs that are in no cloud, is there while there are such VMs or no clouds.
func containers(c *route.Call, f dr.Fabric) ([]container, error) {
	clouds, err := c.Dir.Clouds(f)
	if err != nil {
		return nil, err
	}
	var out []container
	for _, x := range clouds {
		out = append(out, container{f, x})
	}
	if len(out) > 0 {
		if f, err = c.Dir.Fabric(f.ID); err != nil { // with the places of its VMs
			return nil, err
		}
		vms, err := c.Svc().VMs(c.Ctx(), f.ID)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(vms, func(vm dr.VM) bool { return !vm.Gone && c.ContainerOf(f, vm.ID) == f.ContainerName() }) {
			return out, nil
		}
	}
	return append(out, container{f: f}), nil
}

func listContainers(c *route.Call) (route.Reply, error) {
	var fs []dr.Fabric
	var err error
	if c.NameOf(route.TFabrics) == "" {
		fs, err = c.Dir.Fabrics()
	} else {
		var f dr.Fabric
		f, err = c.Fabric()
		fs = []dr.Fabric{f}
	}
	if err != nil {
		return route.Reply{}, err
	}
	var all []container
	for _, f := range fs {
		xs, err := containers(c, f)
		if err != nil {
			return route.Reply{}, err
		}
		all = append(all, xs...)
	}
	return route.Page(c, all, container.name, containerResource)
}

// pathContainer is the container that the path names.
func pathContainer(c *route.Call) (container, error) {
	f, err := c.Fabric()
	if err != nil {
		return container{}, err
	}
	clouds, err := c.Dir.Clouds(f)
	for _, x := range clouds {
		if strings.EqualFold(f.ContainerOf(x.ID), c.NameOf(route.TContainers)) {
			return container{f, x}, nil
		}
	}
	return container{f: f}, err
}

func getContainer(c *route.Call) (route.Reply, error) {
	x, err := pathContainer(c)
	if err != nil {
		return route.Reply{}, err
	}
	r, err := containerResource(c, x)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

func containerResource(c *route.Call, x container) (armwire.Resource[armwire.Container], error) {
	var out armwire.Resource[armwire.Container]
	f, err := c.Dir.Fabric(x.f.ID)
	if err != nil {
		return out, err
	}
	ms, err := c.Dir.Mappings()
	if err != nil {
		return out, err
	}
	counts, err := c.Dir.ProtectedIn(f)
	if err != nil {
		return out, err
	}
	paired, role := "NotPaired", ""
	for _, m := range ms {
		switch {
		case m.Fabric == f.ID && (m.Container == "" || m.Container == x.name()):
			paired, role = "Paired", "Primary"
		case m.TargetFabric == f.ID && (f.Type != dr.VMMSite || strings.HasSuffix(strings.ToLower(m.Target), "/"+x.name())):
			paired, role = "Paired", cmp.Or(role, "Recovery")
		}
	}
	return armwire.Resource[armwire.Container]{
		ID: c.VaultID.ID(route.TFabrics, f.Name, route.TContainers, x.name()), Name: x.name(), Type: armwire.ResourceType(route.TFabrics, f.Name, route.TContainers, ""),
		Properties: armwire.Container{FabricFriendlyName: f.Name, FriendlyName: cmp.Or(x.cloud.Name, f.Name), FabricType: shownType(f.Type),
			ProtectedItemCount: int32(counts[x.name()]), PairingStatus: paired, Role: role},
	}, nil
}

// discover asks the site's hosts for what they have now. Of the machine to look
// for only the name counts; a physical machine, which is found by its address,
// can't be protected.
func discover(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.DiscoverInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	x, err := pathContainer(c)
	if err != nil {
		return route.Reply{}, err
	}
	p := in.Properties
	if p.IPAddress != "" {
		return route.Reply{}, dr.New(dr.KindUnsupported, route.CodeNotSupported, "armapi.discover", "machine %q at %q can't be discovered by its address: only VMs that hosts of the site report can be protected",
			route.Clip(p.FriendlyName), route.Clip(p.IPAddress)).WithHint("leave ipAddress out to look for a VM by its name; install an agent on its host if it has none")
	}
	if len(p.FriendlyName) > 256 {
		return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.discover", "friendlyName has more than 256 bytes")
	}
	job, err := c.Svc().Discover(c.Ctx(), x.f.Name, x.name(), p.FriendlyName, c.Who.Name)
	return route.Started(job, err, c.VaultID.ID(route.TFabrics, x.f.Name, route.TContainers, x.name()))
}
