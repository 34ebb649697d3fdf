package vmm

import (
	"cmp"
	"slices"
	"strings"
)

// Network is a network as mapping sees it: a VM network, or a network of a host.
type Network struct {
	ID, Name       string
	LogicalNetwork string // id; empty on sites without VMM
	Subnets        []Subnet
}

// Adapter is an adapter of a VM that is to be connected at the recovery site.
type Adapter struct {
	ID, MAC string
	Network string // id of its network at the source; empty = not connected there
	Subnet  string // name of its subnet there; may be empty
}

// Rule says why an adapter is connected as it is.
type Rule string

// The rules.
const (
	SameSubnet    Rule = "sameSubnet"    // the target has a subnet of the same name
	FirstSubnet   Rule = "firstSubnet"   // it has not: the first one by name
	NoSubnets     Rule = "noSubnets"     // the target network has no subnets
	NotMapped     Rule = "notMapped"     // the source network is not mapped: not connected
	NoSource      Rule = "noSource"      // not connected at the source either
	TargetMissing Rule = "targetMissing" // mapped to a network that does not exist any more: not connected
)

// Connection is how one adapter is connected at the recovery site.
type Connection struct {
	Adapter, MAC string
	Network      string // id of the target network; empty = not connected
	Name         string // of the target network
	Subnet       string // name; empty = none
	VLAN         int    // of the subnet; 0 = untagged
	Rule         Rule
}

// Connected reports whether the adapter is connected to anything.
func (c Connection) Connected() bool { return c.Network != "" }

// Connect applies network mappings (source network id → target network id) to the
// adapters of a VM, in their order. The target subnet is the one with the name of
// the source subnet, compared without case, else the first by name; an adapter
// whose network is not mapped is not connected. Ids are compared without case.
func Connect(adapters []Adapter, mappings map[string]string, targets []Network) []Connection {
	to := make(map[string]string, len(mappings))
	for from, target := range mappings {
		to[strings.ToLower(from)] = strings.ToLower(target)
	}
	byID := make(map[string]Network, len(targets))
	for _, n := range targets {
		byID[strings.ToLower(n.ID)] = n
	}
	out := make([]Connection, len(adapters))
	for i, a := range adapters {
		c := Connection{Adapter: a.ID, MAC: a.MAC}
		target, mapped := to[strings.ToLower(a.Network)]
		n, exists := byID[target]
		switch {
		case a.Network == "":
			c.Rule = NoSource
		case !mapped:
			c.Rule = NotMapped
		case !exists:
			c.Rule = TargetMissing
		default:
			c.Network, c.Name = n.ID, n.Name
			s, rule := chooseSubnet(n.Subnets, a.Subnet)
			c.Subnet, c.VLAN, c.Rule = s.Name, s.VLAN, rule
		}
		out[i] = c
	}
	return out
}

func chooseSubnet(subnets []Subnet, name string) (Subnet, Rule) {
	if len(subnets) == 0 {
		return Subnet{}, NoSubnets
	}
	for _, s := range subnets {
		if name != "" && strings.EqualFold(s.Name, name) {
			return s, SameSubnet
		}
	}
	return slices.MinFunc(subnets, func(a, b Subnet) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	}), FirstSubnet
}

// SwitchOf finds the switch of a host by which a VM network is reached: one that
// carries its logical network, else one that has the network's own name. Several
// candidates are settled by name, so that the answer is always the same.
func SwitchOf(n Network, host Host) (string, bool) {
	var found []string
	for _, s := range host.Switches {
		if n.LogicalNetwork != "" && slices.ContainsFunc(s.LogicalNetworks, func(id string) bool { return strings.EqualFold(id, n.LogicalNetwork) }) {
			found = append(found, s.Name)
		}
	}
	if len(found) == 0 {
		for _, s := range host.Switches {
			if strings.EqualFold(s.Name, n.Name) {
				found = append(found, s.Name)
			}
		}
	}
	if len(found) == 0 {
		return "", false
	}
	return slices.Min(found), true
}

// HostNamed finds a host by name: the full name, or the part before the first dot
// where only one of the two is qualified.
func HostNamed(hosts []Host, name string) (Host, bool) {
	short := func(s string) string { s, _, _ = strings.Cut(s, "."); return s }
	for _, h := range hosts {
		if strings.EqualFold(h.Name, name) {
			return h, true
		}
	}
	for _, h := range hosts {
		if (!strings.Contains(h.Name, ".") || !strings.Contains(name, ".")) && strings.EqualFold(short(h.Name), short(name)) {
			return h, true
		}
	}
	return Host{}, false
}
