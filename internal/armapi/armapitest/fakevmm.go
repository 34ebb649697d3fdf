package armapitest

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// fabrics with networks: hosts' networks by default, VM networks after SetVMM.
type networks struct{ w *world }

// SetVMM makes a site the site of a VMM server, and gives its VMs to clouds. VMs
// of the snapshot that the fake does not know yet come into being on agent.
func (w *world) SetVMM(site string, s vmm.Snapshot, agent dr.AgentID) dr.Fabric {
	defer w.lock()()
	i := slices.IndexFunc(w.fabrics, func(f dr.Fabric) bool { return f.Name == site })
	w.fabrics[i].Type = dr.VMMSite
	f := w.fabrics[i]
	if w.vmm == nil {
		w.vmm = map[dr.FabricID]vmm.Snapshot{}
	}
	w.vmm[f.ID] = s
	for _, v := range s.VMs {
		if !slices.ContainsFunc(w.vms, func(x dr.VM) bool { return string(x.ID) == v.ID && x.Fabric == f.ID }) {
			w.vms = append(w.vms, dr.VM{ID: dr.VMID(v.ID), Name: v.Name, Fabric: f.ID, Agent: agent, Running: true, Generation: 2, CPUs: 2, MemoryMB: 4096, OSType: "Windows",
				Disks: []dr.Disk{{ID: "7f1c0e6c-0000-4000-8000-000000000001", Path: `C:\ClusterStorage\Volume1\` + v.Name + `.vhdx`, Format: "vhdx", Size: 64 << 30, Boot: true}}})
		}
	}
	return f
}

// VMM implements armapi.VMM.
func (n networks) VMM(_ context.Context, f dr.FabricID) (vmm.Snapshot, error) {
	defer n.w.lock()()
	return n.w.vmm[f], nil
}

// Clouds implements armapi.VMM.
func (n networks) Clouds(_ context.Context, f dr.FabricID) ([]vmm.Cloud, error) {
	defer n.w.lock()()
	return slices.Clone(n.w.vmm[f].Clouds), nil
}

// CloudsOfVMs implements armapi.VMM.
func (n networks) CloudsOfVMs(_ context.Context, f dr.FabricID) (map[dr.VMID]string, error) {
	defer n.w.lock()()
	out := map[dr.VMID]string{}
	for _, v := range n.w.vmm[f].VMs {
		out[dr.VMID(v.ID)] = v.Cloud
	}
	return out, nil
}

// Discover implements armapi.VMM.
func (n networks) Discover(_ context.Context, fabric, container, name, by string) (dr.JobID, error) {
	defer n.w.lock()()
	f, err := sites(n).fabric(fabric)
	if err != nil {
		return "", err
	}
	return n.w.start("DiscoverProtectableItem", "ProtectionContainer", string(f.ID), container+"/"+name, by, nil, []string{"AskHosts", "AwaitHosts", "FindVM"}, nil, nil), nil
}

// NetworksOf implements armapi.Networks.
func (n networks) NetworksOf(_ context.Context, f dr.FabricID) ([]vault.Network, error) {
	defer n.w.lock()()
	if s, ok := n.w.vmm[f]; ok {
		var out []vault.Network
		for _, x := range s.VMNetworks {
			out = append(out, vault.Network{Network: vmm.Network{ID: x.ID, Name: x.Name, LogicalNetwork: x.LogicalNetwork, Subnets: x.Subnets}, Fabric: f, Type: x.Isolation})
		}
		return out, nil
	}
	host := ""
	for _, p := range n.w.agents {
		if p.Fabric == f {
			host = p.Host
		}
	}
	return []vault.Network{{Network: vmm.Network{ID: "default", Name: "default"}, Fabric: f, Type: "NoIsolation", Hosts: []string{host}},
		{Network: vmm.Network{ID: "lab", Name: "lab"}, Fabric: f, Type: "Isolated", Hosts: []string{host}}}, nil
}

// CreateNetworkMapping implements armapi.Networks.
func (n networks) CreateNetworkMapping(_ context.Context, m vault.NetworkMapping, by string) (dr.JobID, error) {
	defer n.w.lock()()
	for _, x := range n.w.networkMaps {
		if x.Fabric == m.Fabric && strings.EqualFold(x.Network, m.Network) && (x.Name != m.Name || x.Target != m.Target) && (x.Name == m.Name || x.TargetFabric == m.TargetFabric) {
			return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapitest", "network mapping %q exists", x.Name)
		}
	}
	m.Created = n.w.now()
	return n.w.start("PairNetworks", "Network", string(m.Fabric), m.Name, by, nil, []string{"Apply"}, nil, func(j *dr.Job) {
		if j.State == dr.JobSucceeded {
			n.w.dropNetworkMapping(m)
			n.w.networkMaps = append(n.w.networkMaps, m)
		}
	}), nil
}

// UpdateNetworkMapping implements armapi.Networks.
func (n networks) UpdateNetworkMapping(_ context.Context, m vault.NetworkMapping, by string) (dr.JobID, error) {
	defer n.w.lock()()
	return n.w.start("UpdateNetworkPairing", "Network", string(m.Fabric), m.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		n.w.dropNetworkMapping(m)
		n.w.networkMaps = append(n.w.networkMaps, m)
	}), nil
}

func (w *world) dropNetworkMapping(m vault.NetworkMapping) {
	w.networkMaps = slices.DeleteFunc(w.networkMaps, func(x vault.NetworkMapping) bool {
		return x.Fabric == m.Fabric && strings.EqualFold(x.Network, m.Network) && strings.EqualFold(x.Name, m.Name)
	})
}

// NetworkMappings implements armapi.Networks.
func (n networks) NetworkMappings(_ context.Context, f dr.FabricID) ([]vault.NetworkMapping, error) {
	defer n.w.lock()()
	return slices.DeleteFunc(slices.Clone(n.w.networkMaps), func(m vault.NetworkMapping) bool { return f != "" && m.Fabric != f }), nil
}

// RemoveNetworkMapping implements armapi.Networks.
func (n networks) RemoveNetworkMapping(_ context.Context, f dr.FabricID, network, name, by string) (dr.JobID, error) {
	defer n.w.lock()()
	return n.w.start("UnpairNetworks", "Network", string(f), name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		n.w.dropNetworkMapping(vault.NetworkMapping{Fabric: f, Network: network, Name: name})
	}), nil
}

// CreateStorageMapping implements armapi.Storages.
func (n networks) CreateStorageMapping(_ context.Context, m vault.StorageMapping, by string) (dr.JobID, error) {
	defer n.w.lock()()
	return n.w.start("PairStorageClassifications", "StorageClassification", string(m.Fabric), m.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		n.w.storageMaps = append(n.w.storageMaps, m)
	}), nil
}

// StorageMappings implements armapi.Storages.
func (n networks) StorageMappings(_ context.Context, f dr.FabricID) ([]vault.StorageMapping, error) {
	defer n.w.lock()()
	return slices.DeleteFunc(slices.Clone(n.w.storageMaps), func(m vault.StorageMapping) bool { return f != "" && m.Fabric != f }), nil
}

// RemoveStorageMapping implements armapi.Storages.
func (n networks) RemoveStorageMapping(_ context.Context, f dr.FabricID, classification, name, by string) (dr.JobID, error) {
	defer n.w.lock()()
	return n.w.start("UnpairStorageClassifications", "StorageClassification", string(f), name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		n.w.storageMaps = slices.DeleteFunc(n.w.storageMaps, func(m vault.StorageMapping) bool {
			return m.Fabric == f && strings.EqualFold(m.Classification, classification) && strings.EqualFold(m.Name, name)
		})
	}), nil
}
