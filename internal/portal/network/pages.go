// Package network is the portal's pages of a site's networks, of where they lead
// after a failover, and of what a VMM server manages beside its VMs.
//
// It promises that a mapping is made between networks that the vault knows, and
// that one which leads to a network that is gone is shown as such.
package network

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// Pages are the networks of sites.
type Pages struct{ *page.Core }

// row is a network of the site.
type row struct {
	vault.Network
	Kind     string
	Logical  string // name of its logical network
	Mappings []mapping
}

// mapping is where a network leads.
type mapping struct {
	vault.NetworkMapping
	Nr     int // on the page
	Source string
	Site   string // the other one; empty = the cloud
	To     string
	Gone   bool // the target does not exist any more
}

// targets are the networks of one site that something can be mapped to.
type targets struct {
	Site     dr.Fabric
	Own      bool
	Networks []vault.Network
}

type body struct {
	Site     dr.Fabric
	VMM      bool
	Rows     []row
	Incoming []mapping
	Targets  []targets
	Ask      string
	Network  string // asked for, or as entered
	Where    string // site or cloud
	Target   string
	Cloud    string
}

// Mappings are all that lead from the site.
func (b body) Mappings() (out []mapping) {
	for _, r := range b.Rows {
		out = append(out, r.Mappings...)
	}
	return out
}

// Show lists the networks of a site.
func (p Pages) Show(w http.ResponseWriter, r *page.Request) error {
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	q := r.URL.Query()
	b := body{Site: f, VMM: f.Type == dr.VMMSite, Ask: q.Get("ask"), Network: q.Get("network"), Where: "site"}
	if err := p.fill(r.Context(), &b); err != nil {
		return err
	}
	if r.Problem != nil && r.PostForm.Get("mapping") == "" { // keep what was entered
		b.Ask, b.Network, b.Where, b.Target, b.Cloud = "map", r.PostForm.Get("network"), r.PostForm.Get("where"), r.PostForm.Get("target"), r.PostForm.Get("cloud")
	}
	at := address(f)
	return p.Render(w, r, "networks", page.View{Title: "Networks of " + f.Name, Kind: words.SiteType(f.Type), Section: "sites", Icon: "network",
		Crumbs: []page.Crumb{{Name: "Sites", URL: "/portal/sites"}, {Name: f.Name, URL: strings.TrimSuffix(at, "/networks")}}, URL: at, Topics: "site", Body: b})
}

func address(f dr.Fabric) string { return "/portal/sites/" + url.PathEscape(f.Name) + "/networks" }

// fill reads the networks of all sites and the mappings between them.
func (p Pages) fill(ctx context.Context, b *body) error {
	fabrics, err := p.V.Fabrics(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(fabrics, func(x, y dr.Fabric) int { return cmp.Compare(x.Name, y.Name) })
	names, networks := map[dr.FabricID]string{}, map[dr.FabricID][]vault.Network{}
	for _, f := range fabrics {
		names[f.ID] = f.Name
		if networks[f.ID], err = p.V.NetworksOf(ctx, f.ID); err != nil {
			return err
		}
		t := targets{Site: f, Own: f.ID == b.Site.ID}
		for _, n := range networks[f.ID] { // of a VM alone, no host has it to connect to
			if f.Type == dr.VMMSite || len(n.Hosts) > 0 {
				t.Networks = append(t.Networks, n)
			}
		}
		if len(t.Networks) > 0 {
			b.Targets = append(b.Targets, t)
		}
	}
	slices.SortStableFunc(b.Targets, func(x, y targets) int { // other sites first
		switch {
		case x.Own == y.Own:
			return 0
		case x.Own:
			return 1
		}
		return -1
	})
	logical := map[string]string{}
	if b.VMM {
		s, err := p.V.VMM(ctx, b.Site.ID)
		if err != nil {
			return err
		}
		for _, n := range s.LogicalNetworks {
			logical[n.ID] = n.Name
		}
	}
	all, err := p.V.NetworkMappings(ctx, "")
	if err != nil {
		return err
	}
	for _, n := range networks[b.Site.ID] {
		b.Rows = append(b.Rows, row{Network: n, Kind: kind(n.Type), Logical: cmp.Or(logical[n.LogicalNetwork], n.LogicalNetwork)})
	}
	for i, m := range all {
		x := mapping{NetworkMapping: m, Nr: i, Source: nameOf(networks[m.Fabric], m.Network), Site: names[m.TargetFabric], To: m.Target}
		if m.TargetFabric != "" {
			j := slices.IndexFunc(networks[m.TargetFabric], func(n vault.Network) bool { return strings.EqualFold(n.ID, m.Target) })
			if x.Gone = j < 0; !x.Gone {
				x.To = networks[m.TargetFabric][j].Name
			}
			x.Site = cmp.Or(x.Site, "a site that is gone")
		} else if i := strings.LastIndexByte(m.Target, '/'); i >= 0 {
			x.To = m.Target[i+1:]
		}
		if m.Fabric == b.Site.ID {
			b.attach(x)
		}
		if m.TargetFabric == b.Site.ID && m.Fabric != b.Site.ID {
			x.Site = names[m.Fabric]
			b.Incoming = append(b.Incoming, x)
		}
	}
	return nil
}

// attach adds a mapping to the row of its network. One whose network the site
// does not report any more gets a row of its own, so that it can be removed.
func (b *body) attach(m mapping) {
	i := slices.IndexFunc(b.Rows, func(r row) bool { return strings.EqualFold(r.ID, m.Network) })
	if i < 0 {
		i = len(b.Rows)
		b.Rows = append(b.Rows, row{Network: vault.Network{Network: vmm.Network{ID: m.Network, Name: m.Network}}, Kind: "Not reported any more"})
	}
	b.Rows[i].Mappings = append(b.Rows[i].Mappings, m)
}

func nameOf(list []vault.Network, id string) string {
	if i := slices.IndexFunc(list, func(n vault.Network) bool { return strings.EqualFold(n.ID, id) }); i >= 0 {
		return list[i].Name
	}
	return id
}

// kind puts an isolation into words.
func kind(isolation string) string {
	switch isolation {
	case "NoIsolation", "":
		return "Not isolated"
	case "Isolated":
		return "Isolated, no way out"
	case "VLANNetwork":
		return "Isolated by VLAN"
	case "WindowsNetworkVirtualization":
		return "Network virtualization"
	}
	return isolation
}

// Create maps a network.
func (p Pages) Create(w http.ResponseWriter, r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal.mapNetwork", "the form could not be read")
	}
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	job, err := p.create(r, f)
	if err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, address(f), job)
}

func (p Pages) create(r *page.Request, f dr.Fabric) (dr.JobID, error) {
	const op = "portal.mapNetwork"
	m := vault.NetworkMapping{Fabric: f.ID, Network: r.PostForm.Get("network")}
	if m.Network == "" {
		return "", dr.Errorf(dr.KindInvalid, op, "no network of site %s was chosen", f.Name)
	}
	all, err := p.V.NetworksOf(r.Context(), f.ID)
	if err != nil {
		return "", err
	}
	from, to := nameOf(all, m.Network), ""
	if r.PostForm.Get("where") == "cloud" {
		m.Target = strings.TrimSpace(r.PostForm.Get("cloud"))
		if m.Target == "" {
			return "", dr.Errorf(dr.KindInvalid, op, "no virtual network was named").WithHint("Enter the resource id of a virtual network, as the Azure portal shows it under Properties.")
		}
		to = m.Target[strings.LastIndexByte(m.Target, '/')+1:]
	} else {
		site, network, ok := strings.Cut(r.PostForm.Get("target"), "/")
		if !ok {
			return "", dr.Errorf(dr.KindInvalid, op, "no network to map to was chosen").WithHint("Choose a network of the site where the VMs recover.")
		}
		m.TargetFabric, m.Target = dr.FabricID(site), network
		fabrics, err := p.V.Fabrics(r.Context())
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(fabrics, func(x dr.Fabric) bool { return x.ID == m.TargetFabric })
		if i < 0 {
			return "", dr.New(dr.KindInvalid, dr.CodeNotFound, op, "the site of the network to map to does not exist any more")
		}
		to = fabrics[i].Name
	}
	m.Name = mappingName(from, to)
	return p.V.CreateNetworkMapping(r.Context(), m, r.Who.Name)
}

// mappingName is a name by which the API knows the mapping; a network has one
// mapping to a site, so that it need not say more.
func mappingName(from, to string) string {
	clip := func(s string) string {
		s = strings.Trim(strings.Map(func(c rune) rune {
			if c == ' ' {
				return '-'
			}
			if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
				return c
			}
			return -1
		}, s), "-.")
		s = strings.Trim(s[:min(len(s), 28)], "-.")
		return cmp.Or(s, "network")
	}
	return clip(from) + "-to-" + clip(to)
}

// Remove removes a mapping.
func (p Pages) Remove(w http.ResponseWriter, r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal.unmapNetwork", "the form could not be read")
	}
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	job, err := p.V.RemoveNetworkMapping(r.Context(), f.ID, r.PostForm.Get("network"), r.PostForm.Get("mapping"), r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, address(f), job)
}
