package network

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// Connections are how the adapters of a VM are connected by network mappings.
type Connections struct {
	// Mapped says that the mappings decide. Otherwise nothing is mapped, and
	// other rules of the caller apply.
	Mapped   bool
	Adapters []agentapi.BootAdapter // of all adapters, in the VM's order
}

// Network is the first network that an adapter is connected to; "" = none.
func (c Connections) Network() string {
	for _, a := range c.Adapters {
		if a.Network != "" {
			return a.Network
		}
	}
	return ""
}

// Connect applies the network mappings of an item's site to its VM, which is to
// run on a recovery host. Adapters whose network is not mapped are not connected,
// unless nothing of the VM is mapped on a site without VMM: then mappings decide
// nothing. dr.CodeNetworkMapping if a mapping leads to a network that the host
// does not have. A VM that its site has forgotten has no adapters.
func Connect(ctx context.Context, q sqldb.Querier, it dr.ProtectedItem, host vaultdb.Provider) (Connections, error) {
	source, err := vaultdb.Fabric(ctx, q, it.Fabric)
	if err != nil {
		return Connections{}, err
	}
	nics, adapters, err := adaptersOf(ctx, q, source, it.VM)
	if err != nil {
		return Connections{}, err
	}
	rows, err := vaultdb.NetworkMappings(ctx, q, it.Fabric)
	if err != nil {
		return Connections{}, err
	}
	mappings := map[string]string{}
	for _, m := range rows {
		if m.TargetFabric == host.Fabric {
			mappings[m.Network] = m.Target
		}
	}
	target, err := vaultdb.Fabric(ctx, q, host.Fabric)
	if err != nil {
		return Connections{}, err
	}
	d, err := destinationOf(ctx, q, target, host)
	if err != nil {
		return Connections{}, err
	}
	out := Connections{Mapped: source.Type == dr.VMMSite}
	for i, c := range vmm.Connect(adapters, mappings, d.networks) {
		b := agentapi.BootAdapter{MAC: nics[i].MAC, ID: nics[i].ID}
		switch {
		case c.Rule == vmm.TargetMissing:
			return out, broken(nics[i], mappings[strings.ToLower(adapters[i].Network)], host, "the network does not exist any more")
		case c.Connected():
			out.Mapped = true
			name, why := d.attach(c)
			if why != "" {
				return out, broken(nics[i], c.Name, host, why)
			}
			b.Network, b.Subnet, b.VLAN = name, c.Subnet, c.VLAN
		}
		out.Adapters = append(out.Adapters, b)
	}
	return out, nil
}

func broken(n dr.NIC, target string, host vaultdb.Provider, why string) error {
	return dr.New(dr.KindPrecondition, dr.CodeNetworkMapping, "vault.PrerequisitesCheck", "the network of adapter %s is mapped to %q, which host %s can't connect to: %s", n.MAC, target, host.Host, why)
}

// adaptersOf lists the adapters of a VM as its host reports them and, in the same
// order, their networks by id.
func adaptersOf(ctx context.Context, q sqldb.Querier, f dr.Fabric, id dr.VMID) ([]dr.NIC, []vmm.Adapter, error) {
	vm, err := vaultdb.VM(ctx, q, f.ID, id)
	if dr.KindOf(err) == dr.KindNotFound {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	out := make([]vmm.Adapter, len(vm.NICs))
	for i, n := range vm.NICs {
		out[i] = vmm.Adapter{ID: n.ID, MAC: n.MAC, Network: strings.ToLower(ID(n.Network))}
	}
	if f.Type != dr.VMMSite {
		return vm.NICs, out, nil
	}
	// The host knows switches; what VM network an adapter is in knows VMM.
	place, err := vaultdb.Place(ctx, q, f.ID, id)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return nil, nil, err
	}
	for i := range out {
		out[i].Network = ""
		if n, ok := nicOf(place.Adapters, vm.NICs, i); ok {
			out[i].Network, out[i].Subnet = n.VMNetwork, n.VMSubnet
		}
	}
	return vm.NICs, out, nil
}

// nicOf finds VMM's record of the adapter that a host reports as number i: by
// address; else, where addresses are given only when the VM starts, by place.
func nicOf(known []vmm.NIC, nics []dr.NIC, i int) (vmm.NIC, bool) {
	mac := vmm.NormalMAC(nics[i].MAC)
	if j := slices.IndexFunc(known, func(n vmm.NIC) bool { return mac != "" && n.MAC == mac }); j >= 0 {
		return known[j], true
	}
	if len(known) == len(nics) && known[i].MAC == "" {
		return known[i], true
	}
	return vmm.NIC{}, false
}

// destination is where adapters are connected.
type destination struct {
	fabric   dr.Fabric
	host     vaultdb.Provider
	networks []vmm.Network
	has      []vaultdb.Network // of the host
	record   vmm.Host          // of the host at VMM
	known    bool
}

func destinationOf(ctx context.Context, q sqldb.Querier, f dr.Fabric, host vaultdb.Provider) (destination, error) {
	d := destination{fabric: f, host: host}
	all, err := networks(ctx, q, f)
	if err != nil {
		return d, err
	}
	for _, n := range all {
		d.networks = append(d.networks, n.Network)
	}
	rows, err := vaultdb.Networks(ctx, q, f.ID)
	if err != nil {
		return d, err
	}
	d.has = slices.DeleteFunc(rows, func(n vaultdb.Network) bool { return n.Agent != host.ID })
	if f.Type == dr.VMMSite {
		s, err := vaultdb.VMM(ctx, q, f.ID)
		if err != nil {
			return d, err
		}
		d.record, d.known = vmm.HostNamed(s.Hosts, host.Host)
	}
	return d, nil
}

// attach is the name by which the host connects to a network, or why it can't.
func (d destination) attach(c vmm.Connection) (name, why string) {
	name = c.Name
	if d.fabric.Type == dr.VMMSite {
		if !d.known {
			return "", "VMM does not list this host"
		}
		i := slices.IndexFunc(d.networks, func(n vmm.Network) bool { return n.ID == c.Network })
		var ok bool
		if name, ok = vmm.SwitchOf(d.networks[i], d.record); !ok {
			return "", "no switch of the host carries its logical network"
		}
	}
	for _, n := range d.has {
		switch {
		case n.Name != name:
		case !n.Active:
			return "", "network " + name + " is not active there"
		default:
			return name, ""
		}
	}
	return "", "the host has no network " + name
}
