package route

import "holdfast/internal/dr"

// Directory remembers, for the time of one request, the few small tables that
// ids and friendly names are built from.
type Directory struct {
	c         *Call
	fabrics   []dr.Fabric
	policies  []dr.Policy
	providers []dr.Provider
	mappings  []dr.ContainerMapping
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
			return f, nil
		}
	}
	return dr.Fabric{}, err
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
