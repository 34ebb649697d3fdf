// Package network serves the networks of sites, logical networks and storage
// classifications of VMM servers, and the mappings between those of two sites.
package network

import (
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// Routes adds the operations on networks and storage classifications.
func Routes(t route.Table) {
	const read, configure = dr.RoleReader, dr.RoleContributor
	nets := route.FabricPath(route.TNetworks)
	t.Add("GET", read, listNetworks, "[]", route.TNetworks)
	t.Add("GET", read, listNetworks, "[]", nets...)
	t.Add("GET", read, getNetwork, "", nets...)
	maps := route.FabricPath(route.TNetworks, route.TNetworkMappings)
	t.Add("GET", read, listMappings, "[]", route.TNetworkMappings)
	t.Add("GET", read, listMappings, "[]", maps...)
	t.Add("GET", read, getMapping, "", maps...)
	t.Add("PUT", configure, putMapping, "", maps...)
	t.Add("PATCH", configure, patchMapping, "", maps...)
	t.Add("DELETE", configure, removeMapping, "", maps...)

	logical := route.FabricPath(route.TLogicalNetworks)
	t.Add("GET", read, listLogical, "[]", logical...)
	t.Add("GET", read, getLogical, "", logical...)

	storage := route.FabricPath(route.TStorage)
	t.Add("GET", read, listStorage, "[]", route.TStorage)
	t.Add("GET", read, listStorage, "[]", storage...)
	t.Add("GET", read, getStorage, "", storage...)
	labels := route.FabricPath(route.TStorage, route.TStorageMappings)
	t.Add("GET", read, listStorageMappings, "[]", route.TStorageMappings)
	t.Add("GET", read, listStorageMappings, "[]", labels...)
	t.Add("GET", read, getStorageMapping, "", labels...)
	t.Add("PUT", configure, putStorageMapping, "", labels...)
	t.Add("DELETE", configure, removeStorageMapping, "", labels...)
}

// fabrics are the site that the path names, or all sites.
func fabrics(c *route.Call) ([]dr.Fabric, error) {
	if c.NameOf(route.TFabrics) == "" {
		return c.Dir.Fabrics()
	}
	f, err := c.Fabric()
	return []dr.Fabric{f}, err
}

// named finds the element that the path names.
func named[T any](c *route.Call, all []T, t, what string, key func(T) string) (T, error) {
	for _, x := range all {
		if strings.EqualFold(key(x), c.NameOf(t)) {
			return x, nil
		}
	}
	var none T
	return none, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "%s %q does not exist", what, route.Clip(c.NameOf(t)))
}

// entry is something of a site.
type entry[T any] struct {
	f dr.Fabric
	x T
}

// entries lists what each site of the path has.
func entries[T any](c *route.Call, of func(dr.Fabric) ([]T, error)) ([]entry[T], error) {
	fs, err := fabrics(c)
	if err != nil {
		return nil, err
	}
	var out []entry[T]
	for _, f := range fs {
		xs, err := of(f)
		if err != nil {
			return nil, err
		}
		for _, x := range xs {
			out = append(out, entry[T]{f, x})
		}
	}
	return out, nil
}

// render answers a single resource.
func render[T, P any](c *route.Call, x T, err error, f func(*route.Call, T) (armwire.Resource[P], error)) (route.Reply, error) {
	if err != nil {
		return route.Reply{}, err
	}
	r, err := f(c, x)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

type networkEntry = entry[vault.Network]

func networks(c *route.Call) ([]networkEntry, error) {
	return entries(c, func(f dr.Fabric) ([]vault.Network, error) { return c.Dir.Networks(f.ID) })
}

func listNetworks(c *route.Call) (route.Reply, error) {
	all, err := networks(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(n networkEntry) string { return string(n.f.ID) + "/" + n.x.ID }, networkResource)
}

func network(c *route.Call) (networkEntry, error) {
	all, err := networks(c)
	if err != nil {
		return networkEntry{}, err
	}
	return named(c, all, route.TNetworks, "network", func(n networkEntry) string { return n.x.ID })
}

func getNetwork(c *route.Call) (route.Reply, error) {
	n, err := network(c)
	return render(c, n, err, networkResource)
}

// siteType is the type of a site as networks tell it.
func siteType(f dr.Fabric) string {
	if f.Type == dr.VMMSite {
		return armwire.VMM
	}
	return armwire.HyperVSite
}

func networkResource(c *route.Call, n networkEntry) (armwire.Resource[armwire.Network], error) {
	subnets := []armwire.Subnet{}
	for _, s := range n.x.Subnets {
		subnets = append(subnets, armwire.Subnet{Name: s.Name, FriendlyName: s.Name, AddressList: append([]string{}, s.CIDRs...)})
	}
	return armwire.Resource[armwire.Network]{ID: c.NetworkID(n.f, n.x.ID), Name: n.x.ID, Type: armwire.ResourceType(route.TFabrics, "", route.TNetworks, ""),
		Properties: armwire.Network{FabricType: siteType(n.f), Subnets: subnets, FriendlyName: n.x.Name, NetworkType: n.x.Type, Hosts: n.x.Hosts}}, nil
}

type logicalEntry = entry[vmm.LogicalNetwork]

func logicals(c *route.Call) ([]logicalEntry, error) {
	return entries(c, func(f dr.Fabric) ([]vmm.LogicalNetwork, error) {
		s, err := c.Svc().VMM(c.Ctx(), f.ID)
		return s.LogicalNetworks, err
	})
}

func listLogical(c *route.Call) (route.Reply, error) {
	all, err := logicals(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(n logicalEntry) string { return n.x.ID }, logicalResource)
}

func getLogical(c *route.Call) (route.Reply, error) {
	all, err := logicals(c)
	if err != nil {
		return route.Reply{}, err
	}
	n, err := named(c, all, route.TLogicalNetworks, "logical network", func(n logicalEntry) string { return n.x.ID })
	return render(c, n, err, logicalResource)
}

func logicalResource(c *route.Call, n logicalEntry) (armwire.Resource[armwire.LogicalNetwork], error) {
	p := armwire.LogicalNetwork{FriendlyName: n.x.Name, NetworkVirtualizationStatus: "NetworkVirtualizationNotEnabled", LogicalNetworkUsage: "NotUsedAsPrivateNetworkForTestFailover",
		LogicalNetworkDefinitionsStatus: "LogicalNetworkDefinitionsNotIsolated"}
	if n.x.Virtualized {
		p.NetworkVirtualizationStatus = "NetworkVirtualizationEnabled"
	}
	if n.x.Isolated {
		p.LogicalNetworkDefinitionsStatus = "LogicalNetworkDefinitionsIsolated"
	}
	return armwire.Resource[armwire.LogicalNetwork]{ID: c.VaultID.ID(route.TFabrics, n.f.Name, route.TLogicalNetworks, n.x.ID), Name: n.x.ID,
		Type: armwire.ResourceType(route.TFabrics, "", route.TLogicalNetworks, ""), Properties: p}, nil
}

type storageEntry = entry[vmm.StorageClassification]

func storages(c *route.Call) ([]storageEntry, error) {
	return entries(c, func(f dr.Fabric) ([]vmm.StorageClassification, error) {
		s, err := c.Svc().VMM(c.Ctx(), f.ID)
		return s.StorageClassifications, err
	})
}

func listStorage(c *route.Call) (route.Reply, error) {
	all, err := storages(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(s storageEntry) string { return string(s.f.ID) + "/" + s.x.ID }, storageResource)
}

func storage(c *route.Call) (storageEntry, error) {
	all, err := storages(c)
	if err != nil {
		return storageEntry{}, err
	}
	return named(c, all, route.TStorage, "storage classification", func(s storageEntry) string { return s.x.ID })
}

func getStorage(c *route.Call) (route.Reply, error) {
	s, err := storage(c)
	return render(c, s, err, storageResource)
}

func storageResource(c *route.Call, s storageEntry) (armwire.Resource[armwire.StorageClassification], error) {
	return armwire.Resource[armwire.StorageClassification]{ID: c.StorageID(s.f, s.x.ID), Name: s.x.ID, Type: armwire.ResourceType(route.TFabrics, "", route.TStorage, ""),
		Properties: armwire.StorageClassification{FriendlyName: s.x.Name}}, nil
}

// storageMappings lists the mappings of the path: of a classification, or all.
func storageMappings(c *route.Call) ([]vault.StorageMapping, error) {
	var id dr.FabricID
	of := c.NameOf(route.TStorage)
	if of != "" {
		s, err := storage(c)
		if err != nil {
			return nil, err
		}
		id = s.f.ID
	}
	all, err := c.Svc().StorageMappings(c.Ctx(), id)
	return slices.DeleteFunc(slices.Clone(all), func(m vault.StorageMapping) bool { return of != "" && !strings.EqualFold(m.Classification, of) }), err
}

func listStorageMappings(c *route.Call) (route.Reply, error) {
	all, err := storageMappings(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(m vault.StorageMapping) string { return string(m.Fabric) + "/" + m.Classification + "/" + m.Name }, storageMappingResource)
}

func storageMapping(c *route.Call) (vault.StorageMapping, error) {
	all, err := storageMappings(c)
	if err != nil {
		return vault.StorageMapping{}, err
	}
	return named(c, all, route.TStorageMappings, "storage classification mapping", func(m vault.StorageMapping) string { return m.Name })
}

func getStorageMapping(c *route.Call) (route.Reply, error) {
	m, err := storageMapping(c)
	return render(c, m, err, storageMappingResource)
}

func storageMappingID(c *route.Call, f dr.Fabric, m vault.StorageMapping) string {
	return c.StorageID(f, m.Classification) + "/" + route.TStorageMappings + "/" + m.Name
}

func storageMappingResource(c *route.Call, m vault.StorageMapping) (armwire.Resource[armwire.StorageMapping], error) {
	var out armwire.Resource[armwire.StorageMapping]
	f, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return out, err
	}
	target, err := c.Dir.Fabric(m.TargetFabric)
	if err != nil {
		return out, err
	}
	return armwire.Resource[armwire.StorageMapping]{ID: storageMappingID(c, f, m), Name: m.Name, Type: armwire.ResourceType(route.TFabrics, "", route.TStorage, "", route.TStorageMappings, ""),
		Properties: armwire.StorageMapping{TargetStorageClassificationID: c.StorageID(target, m.Target)}}, nil
}

func putStorageMapping(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.StorageMapping]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	s, err := storage(c)
	if err != nil {
		return route.Reply{}, err
	}
	target, name, err := reference(c, "targetStorageClassificationId", in.Properties.TargetStorageClassificationID, route.TStorage)
	if err != nil {
		return route.Reply{}, err
	}
	m := vault.StorageMapping{Fabric: s.f.ID, Classification: s.x.ID, Name: c.NameOf(route.TStorageMappings), TargetFabric: target.ID, Target: strings.ToLower(name)}
	job, err := c.Svc().CreateStorageMapping(c.Ctx(), m, c.Who.Name)
	return route.Started(job, err, storageMappingID(c, s.f, m))
}

func removeStorageMapping(c *route.Call) (route.Reply, error) {
	m, err := storageMapping(c)
	if err != nil {
		return c.Removed("", err, "")
	}
	f, err := c.Dir.Fabric(m.Fabric)
	if err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().RemoveStorageMapping(c.Ctx(), m.Fabric, m.Classification, m.Name, c.Who.Name)
	return c.Removed(job, err, storageMappingID(c, f, m))
}

// reference finds the site and the name of a resource that a body refers to by id.
func reference(c *route.Call, field, ref, t string) (dr.Fabric, string, error) {
	name, err := c.NameIn(field, ref, t)
	if err != nil {
		return dr.Fabric{}, "", err
	}
	id, err := armwire.ParseID(ref)
	if err != nil {
		return dr.Fabric{}, "", dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.body", "%s: %v", field, err)
	}
	f, err := c.Svc().Fabric(c.Ctx(), id.NameOf(route.TFabrics))
	return f, name, route.Named(err, field)
}
