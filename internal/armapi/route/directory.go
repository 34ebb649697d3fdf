package route

import (
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// Directory remembers, for the time of one request, the few small tables that
// ids and friendly names are built from.
type Directory struct {
	c         *Call
	fabrics   []dr.Fabric
	policies  []dr.Policy
	providers []dr.Provider
	mappings  []dr.ContainerMapping
	clouds    map[dr.FabricID]map[dr.VMID]string
	inClouds  map[dr.FabricID]map[string]int
	networks  map[dr.FabricID][]vault.Network
	bySite    map[dr.FabricID]int
	byAgent   map[dr.AgentID]int
}

// Fabrics are all sites.
func (d *Directory) Fabrics() (fs []dr.Fabric, err error) {
	if d.fabrics == nil {
		d.fabrics, err = d.c.Svc().Fabrics(d.c.Ctx())
	}
	return d.fabrics, err
}

// Policies are all policies.
func (d *Directory) Policies() (ps []dr.Policy, err error) {
	if d.policies == nil {
		d.policies, err = d.c.Svc().Policies(d.c.Ctx())
	}
	return d.policies, err
}

// Providers are the agents of all sites.
func (d *Directory) Providers() (ps []dr.Provider, err error) {
	if d.providers == nil {
		d.providers, err = d.c.Svc().Providers(d.c.Ctx(), "")
	}
	return d.providers, err
}

// Mappings are the container mappings of all sites.
func (d *Directory) Mappings() (ms []dr.ContainerMapping, err error) {
	if d.mappings == nil {
		d.mappings, err = d.c.Svc().Mappings(d.c.Ctx(), "")
	}
	return d.mappings, err
}

// Fabric finds a fabric by id; "" and an id that is gone give a zero Fabric.
func (d *Directory) Fabric(id dr.FabricID) (dr.Fabric, error) {
	fs, err := d.Fabrics()
	for _, f := range fs {
		if f.ID == id {
			return f, d.readPlaces(f)
		}
	}
	return dr.Fabric{}, err
}

// readPlaces reads which clouds the VMs of a VMM server are in.
func (d *Directory) readPlaces(f dr.Fabric) error {
	if f.Type != dr.VMMSite || d.clouds[f.ID] != nil {
		return nil
	}
	m, err := d.c.Svc().CloudsOfVMs(d.c.Ctx(), f.ID)
	if err != nil {
		return err
	}
	if d.clouds == nil {
		d.clouds = map[dr.FabricID]map[dr.VMID]string{}
	}
	if m == nil {
		m = map[dr.VMID]string{}
	}
	d.clouds[f.ID] = m
	return nil
}

// Clouds are the clouds of a VMM server; none of other sites.
func (d *Directory) Clouds(f dr.Fabric) ([]vmm.Cloud, error) {
	if f.Type != dr.VMMSite {
		return nil, nil
	}
	return d.c.Svc().Clouds(d.c.Ctx(), f.ID)
}

// Networks are the networks of a site.
func (d *Directory) Networks(f dr.FabricID) ([]vault.Network, error) {
	if all, ok := d.networks[f]; ok {
		return all, nil
	}
	all, err := d.c.Svc().NetworksOf(d.c.Ctx(), f)
	if err != nil {
		return nil, err
	}
	if d.networks == nil {
		d.networks = map[dr.FabricID][]vault.Network{}
	}
	d.networks[f] = all
	return all, nil
}

// ContainerNamed finds a container of any site by its name; "" as cloud for a
// site's own container. KindNotFound if no site has it.
func (d *Directory) ContainerNamed(name string) (f dr.Fabric, cloud string, err error) {
	fs, err := d.Fabrics()
	if err != nil {
		return f, "", err
	}
	for _, f := range fs {
		if strings.EqualFold(f.ContainerName(), name) {
			return f, "", nil
		}
		clouds, err := d.Clouds(f)
		if err != nil {
			return f, "", err
		}
		for _, x := range clouds {
			if strings.EqualFold(f.ContainerOf(x.ID), name) {
				return f, x.ID, nil
			}
		}
	}
	return f, "", dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "protection container %q does not exist", Clip(name))
}

// Policy finds a policy by id; one that is gone gives a zero Policy.
func (d *Directory) Policy(id dr.PolicyID) (dr.Policy, error) {
	ps, err := d.Policies()
	for _, p := range ps {
		if p.ID == id {
			return p, nil
		}
	}
	return dr.Policy{}, err
}

// ProtectedIn counts the protected items of a site by container.
func (d *Directory) ProtectedIn(f dr.Fabric) (map[string]int, error) {
	if f.Type != dr.VMMSite {
		bySite, _, err := d.Protected()
		return map[string]int{f.ContainerName(): bySite[f.ID]}, err
	}
	if d.inClouds[f.ID] != nil {
		return d.inClouds[f.ID], nil
	}
	items, err := d.c.Svc().Items(d.c.Ctx(), f.ID)
	if err != nil {
		return nil, err
	}
	n := map[string]int{}
	for _, it := range items {
		n[d.c.ContainerOf(f, it.VM)]++
	}
	if d.inClouds == nil {
		d.inClouds = map[dr.FabricID]map[string]int{}
	}
	d.inClouds[f.ID] = n
	return n, nil
}

// Protected counts the protected items by site and by source agent.
func (d *Directory) Protected() (bySite map[dr.FabricID]int, byAgent map[dr.AgentID]int, err error) {
	if d.bySite != nil {
		return d.bySite, d.byAgent, nil
	}
	items, err := d.c.Svc().Items(d.c.Ctx(), "")
	if err != nil {
		return nil, nil, err
	}
	d.bySite, d.byAgent = map[dr.FabricID]int{}, map[dr.AgentID]int{}
	for _, it := range items {
		d.bySite[it.Fabric]++
		d.byAgent[it.SourceAgent]++
	}
	return d.bySite, d.byAgent, nil
}
