// Package network is the simulated resource provider Microsoft.Network: virtual
// networks with their subnets, network security groups, public addresses and
// network interfaces, with the allocation of addresses and the refusals that
// Azure documents for them.
package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

const (
	typNSG    = "Microsoft.Network/networkSecurityGroups"
	typIP     = "Microsoft.Network/publicIPAddresses"
	typVNet   = "Microsoft.Network/virtualNetworks"
	typSubnet = "Microsoft.Network/virtualNetworks/subnets"
)

// Network is the provider.
type Network struct{ *plane.Plane }

// Provider is what to register with p.
func Provider(p *plane.Plane) plane.Provider {
	c := &Network{p}
	return plane.Provider{Namespace: "Microsoft.Network", Quotas: c.quotas, Exceeded: exceeded, Kinds: []*plane.Kind{
		{Name: typVNet, Put: c.putNetwork, Remove: c.removeNetwork, View: c.viewNetwork},
		{Name: typSubnet, Put: c.putSubnet, Remove: c.removeSubnet, View: c.viewSubnet},
		{Name: typNSG, Put: c.putSecurityGroup, Remove: c.removeSecurityGroup},
		{Name: typIP, Put: c.putPublicIP, Remove: c.removePublicIP},
		{Name: plane.TypNIC, Put: c.putInterface, Remove: c.removeInterface, After: c.releasePublic},
	}}
}

// quotas counts what there is, with Azure's default limits.
func (c *Network) quotas() []plane.Quota {
	n := map[string]int{}
	for _, r := range c.All() {
		n[r.Kind.Name]++
	}
	return []plane.Quota{
		{Name: "VirtualNetworks", Words: "Virtual Networks", Used: n[typVNet], Limit: 1000},
		{Name: "NetworkInterfaces", Words: "Network Interfaces", Used: n[plane.TypNIC], Limit: 65536},
		{Name: "NetworkSecurityGroups", Words: "Network Security Groups", Used: n[typNSG], Limit: 5000},
		{Name: "PublicIPAddresses", Words: "Public IP Addresses", Used: n[typIP], Limit: 1000},
	}
}

func exceeded(u plane.Quota, _ int) *wire.Error {
	if u.Name == "PublicIPAddresses" {
		return plane.BadRequest("PublicIPCountLimitReached", "Cannot create more than %d public IP addresses for this subscription in this region.", u.Limit)
	}
	return plane.BadRequest(strings.TrimSuffix(u.Name, "s")+"CountLimitReached", "Cannot create more than %d %s for this subscription in this region.", u.Limit, strings.ToLower(u.Words))
}

// putNetwork makes a virtual network. Subnets inside of the document become
// resources; a replacement that leaves one out deletes it, as Azure does.
func (c *Network) putNetwork(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	var spaces []netip.Prefix
	for _, p := range wire.List(r.Doc, "properties", "addressSpace", "addressPrefixes") {
		s, _ := p.(string)
		pre, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, plane.BadRequest("InvalidAddressPrefixFormat", "Address prefix %s of resource %s is not formatted correctly. It should follow CIDR notation, for example 10.0.0.0/24.", s, r.ID)
		}
		spaces = append(spaces, pre)
	}
	if len(spaces) == 0 {
		return nil, plane.BadRequest("InvalidRequestFormat", "Resource %s has no address space.", r.ID)
	}
	list, given := wire.Get(r.Doc, "properties", "subnets").([]any)
	delete(r.Doc["properties"].(map[string]any), "subnets") // they are resources of their own
	keep := map[string]bool{}
	var made []*plane.Resource
	for _, item := range list {
		name := wire.Str(item, "name")
		sub := &plane.Resource{Kind: c.Kind(typSubnet), Group: r.Group, Name: name, ID: r.ID + "/subnets/" + name}
		if old := c.All()[plane.Lower(sub.ID)]; old != nil {
			keep[plane.Lower(sub.ID)] = true
			continue
		}
		m, _ := item.(map[string]any)
		sub.Doc = wire.Clone(m)
		sub.Doc["id"], sub.Doc["name"], sub.Doc["type"] = sub.ID, name, sub.Kind.Name
		if err := c.checkSubnet(sub, spaces, made); err != nil {
			return nil, err
		}
		made = append(made, sub)
		keep[plane.Lower(sub.ID)] = true
	}
	if given {
		for _, sub := range c.Children(r.ID) {
			if keep[plane.Lower(sub.ID)] {
				continue
			}
			if err := c.subnetInUse(sub); err != nil {
				return nil, err
			}
			c.Drop(sub)
		}
	}
	for _, sub := range made {
		sub.SetState("Succeeded")
		c.All()[plane.Lower(sub.ID)] = sub
	}
	if q.Old == nil {
		if err := c.NeedQuota("Microsoft.Network", map[string]int{"VirtualNetworks": 1}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// checkSubnet checks a subnet's prefix against the network and its other subnets.
func (c *Network) checkSubnet(sub *plane.Resource, spaces []netip.Prefix, more []*plane.Resource) *wire.Error {
	text := wire.Str(sub.Doc, "properties", "addressPrefix")
	if text == "" {
		if l := wire.List(sub.Doc, "properties", "addressPrefixes"); len(l) > 0 {
			text, _ = l[0].(string)
		}
	}
	pre, err := netip.ParsePrefix(text)
	if err != nil || pre.Addr().Is4() && pre.Bits() > 29 {
		return plane.BadRequest("InvalidCIDRNotation", "The address prefix %s in resource %s has an invalid CIDR notation.", text, sub.ID)
	}
	wire.Set(sub.Doc, text, "properties", "addressPrefix")
	inside := false
	for _, s := range spaces {
		inside = inside || s.Contains(pre.Addr()) && s.Bits() <= pre.Bits()
	}
	vnet := sub.ID[:strings.LastIndex(sub.ID, "/subnets/")]
	if !inside {
		return plane.BadRequest("NetcfgSubnetRangeOutsideVnet", "Subnet '%s' is not valid because its IP address range is outside the IP address range of virtual network '%s'.", sub.Name, vnet[strings.LastIndex(vnet, "/")+1:])
	}
	for _, other := range append(c.Children(vnet), more...) {
		if p, err := netip.ParsePrefix(wire.Str(other.Doc, "properties", "addressPrefix")); err == nil && !strings.EqualFold(other.ID, sub.ID) && p.Overlaps(pre) {
			return plane.BadRequest("NetcfgSubnetRangesOverlap", "Subnet '%s' is not valid because its IP address range overlaps with that of an existing subnet in virtual network '%s'.", sub.Name, vnet[strings.LastIndex(vnet, "/")+1:])
		}
	}
	if id := wire.Str(sub.Doc, "properties", "networkSecurityGroup", "id"); id != "" && c.Find(id, typNSG) == nil {
		return plane.InvalidReference(id, sub)
	}
	return nil
}

func (c *Network) putSubnet(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	vnet := c.All()[plane.Lower(q.At.Parent)]
	var spaces []netip.Prefix
	for _, p := range wire.List(vnet.Doc, "properties", "addressSpace", "addressPrefixes") {
		s, _ := p.(string)
		pre, _ := netip.ParsePrefix(s) // checked when the network was made
		spaces = append(spaces, pre)
	}
	return nil, c.checkSubnet(r, spaces, nil)
}

func (c *Network) viewNetwork(q *plane.Call, r *plane.Resource, doc map[string]any) {
	list := []any{}
	for _, sub := range c.Children(r.ID) {
		list = append(list, c.Render(q, sub))
	}
	wire.Set(doc, list, "properties", "subnets")
}

func (c *Network) viewSubnet(_ *plane.Call, r *plane.Resource, doc map[string]any) {
	list := []any{}
	for _, n := range c.interfacesOf(r) {
		list = append(list, plane.Ref(n.ID+"/ipConfigurations/"+wire.Str(wire.List(n.Doc, "properties", "ipConfigurations")[0], "name")))
	}
	if len(list) > 0 {
		wire.Set(doc, list, "properties", "ipConfigurations")
	}
}

// interfacesOf lists the network interfaces with an address of a subnet.
func (c *Network) interfacesOf(sub *plane.Resource) []*plane.Resource {
	var out []*plane.Resource
	for _, r := range c.All() {
		if r.Kind.Name != plane.TypNIC {
			continue
		}
		for _, cfg := range wire.List(r.Doc, "properties", "ipConfigurations") {
			if strings.EqualFold(wire.Str(cfg, "properties", "subnet", "id"), sub.ID) {
				out = append(out, r)
				break
			}
		}
	}
	return out
}

func (c *Network) subnetInUse(sub *plane.Resource) *wire.Error {
	if users := c.interfacesOf(sub); len(users) > 0 {
		return plane.BadRequest("InUseSubnetCannotBeDeleted", "Subnet %s is in use by %s and cannot be deleted. In order to delete the subnet, delete all the resources within the subnet. See aka.ms/deletesubnet.", sub.Name, users[0].ID)
	}
	return nil
}

func (c *Network) removeNetwork(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	for _, sub := range c.Children(r.ID) {
		if err := c.subnetInUse(sub); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (c *Network) removeSubnet(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	return nil, c.subnetInUse(r)
}

func (c *Network) putSecurityGroup(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	seen := map[string]string{}
	for i, rule := range wire.List(r.Doc, "properties", "securityRules") {
		m, ok := rule.(map[string]any)
		name := wire.Str(rule, "name")
		if !ok || name == "" {
			return nil, plane.BadRequest("InvalidRequestFormat", "Security rule %d of %s has no name.", i, r.ID)
		}
		prio, ok := wire.Num(rule, "properties", "priority")
		dir := wire.Str(rule, "properties", "direction")
		if !ok || prio < 100 || prio > 4096 {
			return nil, plane.BadRequest("SecurityRuleInvalidPriority", "Security rule has invalid priority. Value provided: %d Allowed range 100-4096.", prio)
		}
		key := fmt.Sprint(plane.Lower(dir), prio)
		if seen[key] != "" {
			return nil, plane.BadRequest("SecurityRuleConflict", "Security rule %s conflicts with rule %s. Rules cannot have the same Priority and Direction.", name, seen[key])
		}
		seen[key] = name
		for _, field := range []string{"protocol", "access", "direction"} {
			if wire.Str(rule, "properties", field) == "" {
				return nil, plane.BadRequest("SecurityRuleParameterRequired", "Security rule %s of %s has no %s.", name, r.ID, field)
			}
		}
		m["id"] = r.ID + "/securityRules/" + name
	}
	if q.Old == nil {
		return nil, c.NeedQuota("Microsoft.Network", map[string]int{"NetworkSecurityGroups": 1})
	}
	return nil, nil
}

func (c *Network) removeSecurityGroup(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	for _, user := range c.All() {
		if strings.EqualFold(wire.Str(user.Doc, "properties", "networkSecurityGroup", "id"), r.ID) {
			return nil, plane.BadRequest("InUseNetworkSecurityGroupCannotBeDeleted", "Network security group %s cannot be deleted because it is in use by the following resources: %s. In order to delete the Network security group, remove the association with the resource(s). To learn how to do this, see aka.ms/deletensg.", r.ID, user.ID)
		}
	}
	return nil, nil
}

func (c *Network) putPublicIP(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	method := wire.Str(r.Doc, "properties", "publicIPAllocationMethod")
	sku := wire.Str(r.Doc, "sku", "name")
	if strings.EqualFold(sku, "Standard") && !strings.EqualFold(method, "Static") {
		return nil, plane.BadRequest("StandardSkuPublicIPAddressesMustBeStatic", "Standard sku publicIp %s must have AllocationMethod set to Static.", r.ID)
	}
	if !strings.EqualFold(sku, "Standard") { // Basic is retired
		return nil, plane.BadRequest("IPv4BasicSkuPublicIpCountLimitReached", "Cannot create more than 0 IPv4 Basic SKU public IP addresses for this subscription in this region.")
	}
	if q.Old == nil {
		if err := c.NeedQuota("Microsoft.Network", map[string]int{"PublicIPAddresses": 1}); err != nil {
			return nil, err
		}
		c.Sequence++
		wire.Set(r.Doc, fmt.Sprintf("203.0.113.%d", c.Sequence%254+1), "properties", "ipAddress")
		return nil, nil
	}
	wire.Set(r.Doc, wire.Get(q.Old, "properties", "ipAddress"), "properties", "ipAddress")
	if cfg := wire.Get(q.Old, "properties", "ipConfiguration"); cfg != nil {
		wire.Set(r.Doc, cfg, "properties", "ipConfiguration")
	}
	return nil, nil
}

func (c *Network) removePublicIP(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if user := wire.Str(r.Doc, "properties", "ipConfiguration", "id"); user != "" {
		return nil, plane.BadRequest("PublicIPAddressCannotBeDeleted", "Public IP address %s can not be deleted since it is still allocated to resource %s. In order to delete the public IP, disassociate/detach the Public IP address from the resource. To learn how to do this, see aka.ms/deletepublicip.", r.ID, user)
	}
	return nil, nil
}

func (c *Network) putInterface(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	configs := wire.List(r.Doc, "properties", "ipConfigurations")
	if len(configs) == 0 {
		return nil, plane.BadRequest("NetworkInterfaceMustHaveAtLeastOneIpConfiguration", "Network interface %s must have one or more IP configurations.", r.ID)
	}
	if q.Old == nil {
		if err := c.NeedQuota("Microsoft.Network", map[string]int{"NetworkInterfaces": 1}); err != nil {
			return nil, err
		}
		c.Sequence++
	}
	if id := wire.Str(r.Doc, "properties", "networkSecurityGroup", "id"); id != "" && c.Find(id, typNSG) == nil {
		return nil, plane.InvalidReference(id, r)
	}
	var addresses []string
	for i, cfg := range configs {
		m, ok := cfg.(map[string]any)
		name := wire.Str(cfg, "name")
		if !ok || name == "" {
			return nil, plane.BadRequest("InvalidRequestFormat", "IP configuration %d of %s has no name.", i, r.ID)
		}
		address, err := c.configure(r, m, addresses, q.Old)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
		m["id"] = r.ID + "/ipConfigurations/" + name
		wire.Set(m, address, "properties", "privateIPAddress")
		wire.Set(m, "Succeeded", "properties", "provisioningState")
		if _, ok := wire.Get(m, "properties", "primary").(bool); !ok {
			wire.Set(m, i == 0, "properties", "primary")
		}
	}
	c.releasePublic(r) // what the old document had
	for _, cfg := range configs {
		if ip := c.Find(wire.Str(cfg, "properties", "publicIPAddress", "id"), typIP); ip != nil {
			wire.Set(ip.Doc, plane.Ref(wire.Str(cfg, "id")), "properties", "ipConfiguration")
		}
	}
	for _, keep := range []string{"virtualMachine", "macAddress", "primary"} {
		if v := wire.Get(q.Old, "properties", keep); v != nil {
			wire.Set(r.Doc, v, "properties", keep)
		}
	}
	return func(context.Context) (any, *wire.Error) { return nil, nil }, nil
}

// configure checks one IP configuration and finds its address. taken are the
// addresses of the interface's other configurations.
func (c *Network) configure(r *plane.Resource, cfg map[string]any, taken []string, old map[string]any) (string, *wire.Error) {
	id := wire.Str(cfg, "properties", "subnet", "id")
	sub := c.Find(id, typSubnet)
	if sub == nil {
		return "", plane.InvalidReference(id, r)
	}
	if id := wire.Str(cfg, "properties", "publicIPAddress", "id"); id != "" {
		ip := c.Find(id, typIP)
		if ip == nil {
			return "", plane.InvalidReference(id, r)
		}
		if user := wire.Str(ip.Doc, "properties", "ipConfiguration", "id"); user != "" && !plane.Within(user, r.ID) {
			return "", plane.BadRequest("PublicIPAddressInUse", "Resource %s is referencing public IP address %s that is already allocated to resource %s.", r.ID, id, user)
		}
	}
	pre, _ := netip.ParsePrefix(wire.Str(sub.Doc, "properties", "addressPrefix")) // checked when the subnet was made
	used := map[string]string{}
	for _, t := range taken {
		used[t] = r.ID
	}
	for _, n := range c.interfacesOf(sub) {
		for _, x := range wire.List(n.Doc, "properties", "ipConfigurations") {
			if n != r {
				used[wire.Str(x, "properties", "privateIPAddress")] = n.ID
			}
		}
	}
	want := wire.Str(cfg, "properties", "privateIPAddress")
	static := strings.EqualFold(wire.Str(cfg, "properties", "privateIPAllocationMethod"), "Static")
	if !static {
		wire.Set(cfg, "Dynamic", "properties", "privateIPAllocationMethod")
		want = ""
		for _, x := range wire.List(old, "properties", "ipConfigurations") { // an update keeps the address
			if wire.Str(x, "name") == wire.Str(cfg, "name") && strings.EqualFold(wire.Str(x, "properties", "subnet", "id"), id) {
				return wire.Str(x, "properties", "privateIPAddress"), nil
			}
		}
	}
	if static {
		a, err := netip.ParseAddr(want)
		switch {
		case err != nil:
			return "", plane.BadRequest("StaticPrivateIPAddressMissing", "IP configuration of %s has allocation method Static and no valid address ('%s').", r.ID, want)
		case !pre.Contains(a):
			return "", plane.BadRequest("PrivateIPAddressNotInSubnet", "Private static IP address %s does not belong to the range of subnet prefix %s.", want, pre)
		case reserved(pre, a):
			return "", plane.BadRequest("PrivateIPAddressInReservedRange", "Private static IP address %s falls within reserved IP range of subnet prefix %s.", want, pre)
		case used[a.String()] != "":
			return "", plane.BadRequest("PrivateIPAddressIsAllocated", "IP configuration %s/ipConfigurations/%s is using the private IP address %s which is already allocated to resource %s.", r.ID, wire.Str(cfg, "name"), want, used[a.String()])
		}
		return a.String(), nil
	}
	for a := pre.Masked().Addr(); pre.Contains(a); a = a.Next() {
		if !reserved(pre, a) && used[a.String()] == "" {
			return a.String(), nil
		}
	}
	return "", plane.BadRequest("SubnetIsFull", "Subnet %s with address prefix %s does not have enough capacity for 1 IP addresses.", sub.Name, pre)
}

// reserved tells whether Azure keeps an address of a subnet to itself: the first
// four and the last.
func reserved(pre netip.Prefix, a netip.Addr) bool {
	first := pre.Masked().Addr()
	for range 4 {
		if a == first {
			return true
		}
		first = first.Next()
	}
	return !pre.Contains(a.Next())
}

// releasePublic lets go of the public addresses that are associated with r.
func (c *Network) releasePublic(r *plane.Resource) {
	for _, ip := range c.All() {
		if user := wire.Str(ip.Doc, "properties", "ipConfiguration", "id"); ip.Kind.Name == typIP && user != "" && plane.Within(user, r.ID) {
			delete(ip.Doc["properties"].(map[string]any), "ipConfiguration")
		}
	}
}

func (c *Network) removeInterface(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if vm := wire.Str(r.Doc, "properties", "virtualMachine", "id"); vm != "" {
		return nil, plane.BadRequest("NicInUse", "Network Interface %s is used by existing resource %s. In order to delete the network interface, it must be dissociated from the resource. To learn more, see aka.ms/deletenic.", r.ID, vm)
	}
	return nil, nil
}
