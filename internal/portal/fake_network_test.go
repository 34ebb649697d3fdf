package portal

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

func (f *fake) NetworksOf(_ context.Context, id dr.FabricID) ([]vault.Network, error) {
	defer f.lock()()
	return slices.DeleteFunc(slices.Clone(f.nets), func(n vault.Network) bool { return n.Fabric != id }), nil
}

func (f *fake) NetworkMappings(_ context.Context, id dr.FabricID) ([]vault.NetworkMapping, error) {
	defer f.lock()()
	return slices.DeleteFunc(slices.Clone(f.netMaps), func(m vault.NetworkMapping) bool { return id != "" && m.Fabric != id }), nil
}

func (f *fake) CreateNetworkMapping(_ context.Context, m vault.NetworkMapping, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("CreateNetworkMapping %s %s %s -> %s %s", m.Name, m.Fabric, m.Network, m.TargetFabric, m.Target); err != nil {
		return "", err
	}
	if m.TargetFabric == "" && !strings.HasPrefix(m.Target, "/subscriptions/") {
		return "", dr.Errorf(dr.KindInvalid, "fake", "%q is not the id of a virtual network of the cloud", m.Target)
	}
	f.netMaps = append(f.netMaps, m)
	return f.start("PairNetworks", "Map network", by, nil, m.Name, nil), nil
}

func (f *fake) RemoveNetworkMapping(_ context.Context, id dr.FabricID, network, name, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("RemoveNetworkMapping %s %s %s", id, network, name); err != nil {
		return "", err
	}
	n := len(f.netMaps)
	f.netMaps = slices.DeleteFunc(f.netMaps, func(m vault.NetworkMapping) bool {
		return m.Fabric == id && strings.EqualFold(m.Network, network) && m.Name == name
	})
	if len(f.netMaps) == n {
		return "", missing("network mapping " + name)
	}
	return f.start("UnpairNetworks", "Unmap network", by, nil, name, nil), nil
}

func (f *fake) VMM(_ context.Context, id dr.FabricID) (vmm.Snapshot, error) {
	defer f.lock()()
	return f.vmms[id], nil
}
