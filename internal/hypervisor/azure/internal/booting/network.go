package booting

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/netres"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// vnet is a virtual network as Azure shows it.
type vnet struct {
	ID         string             `json:"id"`
	Name       string             `json:"name"`
	Location   string             `json:"location"`
	Tags       map[string]*string `json:"tags"`
	Properties netres.VNet        `json:"properties"`
}

// Networks lists the virtual networks of the region that the identity may see, the
// site's default first. Those that were made for isolated recovery VMs are left out.
func (h *Booter) Networks(ctx context.Context) ([]hypervisor.Network, error) {
	var all []vnet
	err := h.subscription(ctx, arm.TypeNetwork, func(v vnet) { all = append(all, v) })
	if err != nil {
		return nil, h.az.Say("Networks", "list the virtual networks", err)
	}
	var out []hypervisor.Network
	normal := func(ref string) string {
		if ref == "" {
			return ""
		}
		id, err := h.site.Reference(arm.TypeNetwork, ref)
		if err != nil {
			return ""
		}
		return id
	}
	first, test := normal(h.site.Network), normal(h.site.TestNetwork)
	slices.SortFunc(all, func(a, b vnet) int {
		return cmp.Or(rank(!arm.SameID(a.ID, first))-rank(!arm.SameID(b.ID, first)), strings.Compare(h.NetworkName(a.ID), h.NetworkName(b.ID)))
	})
	for _, v := range all {
		if site.Tag(v.Tags, arm.TagOwner) != "" || v.Location != "" && !sameRegion(v.Location, h.s.Location()) {
			continue
		}
		out = append(out, hypervisor.Network{Name: h.NetworkName(v.ID), Active: true, Isolated: arm.SameID(v.ID, test)})
	}
	return out, nil
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sameRegion compares names of regions, which come as "West Europe" too.
func sameRegion(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, " ", ""), strings.ReplaceAll(b, " ", ""))
}

// NetworkName is what the product calls a virtual network: its name in the site's group, else "group/name".
func (h *Booter) NetworkName(id string) string {
	p, ok := arm.ParseID(id)
	if !ok {
		return id
	}
	if strings.EqualFold(p.Group, h.site.ResourceGroup) && strings.EqualFold(p.Subscription, h.site.Subscription) {
		return p.Name
	}
	return p.Group + "/" + p.Name
}

// network finds the virtual network of a name. One that is in another region can't be used.
func (h *Booter) network(ctx context.Context, vm, ref string) (vnet, error) {
	const op = "azure.Boot"
	id, err := h.site.Reference(arm.TypeNetwork, ref)
	if err != nil {
		return vnet{}, err
	}
	var v vnet
	found, err := h.az.Get(ctx, arm.TypeNetwork, id, &v)
	switch {
	case err != nil:
		return vnet{}, h.az.Say("Boot", "look for virtual network "+ref+" of recovery VM "+vm, err)
	case !found:
		return vnet{}, dr.New(dr.KindNotFound, dr.CodeAzureNotFound, op, "virtual network %s for recovery VM %s does not exist", id, vm)
	case v.Location != "" && !sameRegion(v.Location, h.s.Location()):
		return vnet{}, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, "virtual network %s is in %s, and recovery VM %s is to be in %s", id, v.Location, vm, h.s.Location())
	}
	v.ID = id
	return v, nil
}

// reserved are subnets that VMs can't be put into, by names that Azure gives a meaning.
func reserved(name string) bool {
	switch strings.ToLower(name) {
	case "gatewaysubnet", "azurefirewallsubnet", "azurefirewallmanagementsubnet", "azurebastionsubnet", "routeserversubnet":
		return true
	}
	return false
}

// chooseSubnet chooses by ASR's rule: the subnet of the name, else the one that
// the static address is in, else the first in order of names.
func chooseSubnet(vm string, v vnet, name string, ip netip.Addr) (netres.Subnet, error) {
	const op = "azure.Boot"
	var fit []netres.Subnet
	for _, s := range v.Properties.Subnets {
		if !reserved(s.Name) && len(s.Properties.Delegations) == 0 {
			fit = append(fit, s)
		}
	}
	if len(fit) == 0 {
		return netres.Subnet{}, dr.New(dr.KindNotFound, dr.CodeAzureNotFound, op, "recovery VM %s: virtual network %s has no subnet that VMs can be put into", vm, v.ID)
	}
	slices.SortFunc(fit, func(a, b netres.Subnet) int {
		return cmp.Or(strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), strings.Compare(a.Name, b.Name))
	})
	chosen := fit[0]
	i := slices.IndexFunc(fit, func(s netres.Subnet) bool { return strings.EqualFold(s.Name, name) })
	if i < 0 && ip.IsValid() {
		i = slices.IndexFunc(fit, func(s netres.Subnet) bool { return contains(s, ip) })
	}
	if i >= 0 {
		chosen = fit[i]
	}
	if ip.IsValid() && !contains(chosen, ip) {
		return netres.Subnet{}, dr.New(dr.KindConflict, dr.CodeAzureAddress, op, "recovery VM %s: address %s lies outside of subnet %s (%s) of virtual network %s", vm, ip, chosen.Name, strings.Join(prefixes(chosen), ", "), v.ID)
	}
	if chosen.ID == "" {
		chosen.ID = v.ID + "/subnets/" + chosen.Name
	}
	return chosen, nil
}

func prefixes(s netres.Subnet) []string {
	if s.Properties.AddressPrefix != "" {
		return []string{s.Properties.AddressPrefix}
	}
	return s.Properties.AddressPrefixes
}

func contains(s netres.Subnet, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes(s), func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(ip)
	})
}

// defaultIsolated is the range of an isolated network where no static address asks for another.
const defaultIsolated = "10.254.254.0/24"

// isolatedSubnets lays an isolated network out so that every static address has a
// subnet: its /24, or its /16 where Azure keeps the address of a /24 for itself (the first four and the last).
func isolatedSubnets(vm string, ips []netip.Addr) ([]netres.Subnet, error) {
	var all []netip.Prefix
	for _, ip := range ips {
		if !ip.IsValid() {
			continue
		}
		p := netip.PrefixFrom(ip, 24).Masked()
		if kept(p, ip) {
			p = netip.PrefixFrom(ip, 16).Masked()
		}
		if kept(p, ip) {
			return nil, dr.New(dr.KindConflict, dr.CodeAzureAddress, "azure.Boot", "recovery VM %s can't have address %s in an isolated network: Azure keeps it for itself", vm, ip)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		all = append(all, netip.MustParsePrefix(defaultIsolated))
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr())) })
	var out []netres.Subnet
	var taken []netip.Prefix
	for _, p := range all {
		if slices.ContainsFunc(taken, func(q netip.Prefix) bool { return q.Overlaps(p) }) {
			continue
		}
		taken = append(taken, p)
		out = append(out, netres.Subnet{Name: "isolated-" + string(rune('a'+len(out)%26)), Properties: netres.SubnetProperties{AddressPrefix: p.String()}})
	}
	return out, nil
}

// kept reports whether Azure uses an address of a subnet itself.
func kept(p netip.Prefix, ip netip.Addr) bool {
	a := p.Addr()
	for range 4 {
		if a == ip {
			return true
		}
		a = a.Next()
	}
	return !p.Contains(ip.Next())
}

// withNetwork puts the site's default network in where nobody has chosen one.
func (h *Booter) withNetwork(spec hypervisor.BootSpec) hypervisor.BootSpec {
	if spec.Network == hypervisor.DefaultNetwork {
		spec.Network = h.site.Network
	}
	spec.Adapters = slices.Clone(spec.Adapters)
	for i := range spec.Adapters {
		if spec.Adapters[i].Network == hypervisor.DefaultNetwork {
			spec.Adapters[i].Network = h.site.Network
		}
	}
	return spec
}

// subscription lists the resources of a kind of the whole subscription, with their properties.
func (h *Booter) subscription(ctx context.Context, kind string, each func(vnet)) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	return h.s.List(ctx, "/subscriptions/"+h.site.Subscription+"/providers/"+kind, arm.APIVersion(kind), func(raw json.RawMessage) error {
		var v vnet
		if err := json.Unmarshal(raw, &v); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.List", "an element of the list of %s is not understood: %w", kind, err)
		}
		each(v)
		return nil
	})
}
