package portal

import (
	"fmt"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// hyperv adds to a scene a Hyper-V site, and a VMM server whose VMs recover there:
// clouds, networks and mappings, and VMs with all that a host can tell.
func (f *fake) hyperv() *fake {
	now := f.now()
	hv := dr.Fabric{ID: "0c6b7a52-cccc", Name: "munich", Type: dr.HyperVSite, Created: now.Add(-9 * 24 * time.Hour)}
	scvmm := dr.Fabric{ID: "0c6b7a52-dddd", Name: "vmm01.contoso.com", Type: dr.VMMSite, Created: now.Add(-8 * 24 * time.Hour)}
	f.fabrics = append(f.fabrics, hv, scvmm)
	host := func(id, name string, site dr.FabricID, role dr.AgentRole, hypervisor string) {
		f.hosts = append(f.hosts, dr.Provider{ID: dr.AgentID(id), Fabric: site, Host: name, Roles: []dr.AgentRole{role}, Version: "1.0.0", Hypervisor: hypervisor, Registered: now.Add(-8 * 24 * time.Hour), LastSeen: now.Add(3 * time.Hour)})
	}
	const server = "Hyper-V, Windows Server 2022 Datacenter 10.0.20348"
	host("v1", "hv-munich-01", hv.ID, dr.RoleRecovery, server)
	host("v2", "hv-berlin-01", scvmm.ID, dr.RoleSource, server)
	host("v3", "vmm01", scvmm.ID, dr.RoleVMM, "Virtual Machine Manager 10.22.1287.0")
	const gold, bronze = "8d2c0000-0000-4000-8000-00000000c001", "8d2c0000-0000-4000-8000-00000000c002"
	const corp, lab, logical = "8d2c0000-0000-4000-8000-00000000a001", "8d2c0000-0000-4000-8000-00000000a002", "8d2c0000-0000-4000-8000-00000000b001"
	f.vmms = map[dr.FabricID]vmm.Snapshot{scvmm.ID: {Version: 1, Server: vmm.Server{Name: "vmm01.contoso.com", Product: "10.22.1287.0"}, Taken: now.Add(-2 * time.Minute),
		Clouds:                 []vmm.Cloud{{ID: bronze, Name: "Bronze"}, {ID: gold, Name: "Gold", HostGroups: []string{`All Hosts\Berlin`, `All Hosts\Berlin\Cluster 1`}}},
		Hosts:                  []vmm.Host{{ID: "h", Name: "hv-berlin-01.contoso.com", Clouds: []string{gold}}},
		LogicalNetworks:        []vmm.LogicalNetwork{{ID: logical, Name: "Datacenter"}},
		StorageClassifications: []vmm.StorageClassification{{ID: "s1", Name: "SSD mirrored"}, {ID: "s2", Name: "Capacity"}},
		Warnings:               []string{"the list of hosts: access is denied"}}}
	f.nets = append(f.nets,
		vault.Network{Network: vmm.Network{ID: "net-5f2b", Name: "Prod switch"}, Fabric: hv.ID, Type: "NoIsolation", Hosts: []string{"hv-munich-01"}},
		vault.Network{Network: vmm.Network{ID: corp, Name: "corp", LogicalNetwork: logical, Subnets: []vmm.Subnet{{ID: "1", Name: "servers", CIDRs: []string{"10.1.0.0/16", "fd00:1::/64"}, VLAN: 110}, {ID: "2", Name: "clients", CIDRs: []string{"10.2.0.0/16"}}}}, Fabric: scvmm.ID, Type: "WindowsNetworkVirtualization"},
		vault.Network{Network: vmm.Network{ID: lab, Name: "lab", LogicalNetwork: logical}, Fabric: scvmm.ID, Type: "NoIsolation"})
	f.netMaps = append(f.netMaps,
		vault.NetworkMapping{Fabric: scvmm.ID, Network: corp, Name: "corp-to-munich", TargetFabric: hv.ID, Target: "net-5f2b"},
		vault.NetworkMapping{Fabric: scvmm.ID, Network: corp, Name: "corp-to-vnet", Target: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/dr-vnet"},
		vault.NetworkMapping{Fabric: scvmm.ID, Network: lab, Name: "lab-to-munich", TargetFabric: hv.ID, Target: "net-gone"})
	f.maps = append(f.maps, dr.ContainerMapping{Name: "m2", Fabric: scvmm.ID, Policy: "4be1-pol", TargetFabric: hv.ID})
	disk := func(n int, path string) dr.Disk {
		return dr.Disk{ID: fmt.Sprintf("7f1c0e6c-0000-4000-8000-%012d", n), Path: path, Format: "vhdx", Size: 127 << 30, Allocated: 41 << 30, Controller: "scsi", Slot: n % 10, Layout: "dynamic", Sector: 512, Chain: 1}
	}
	vm := func(n int, name string, change func(v *dr.VM)) {
		v := dr.VM{ID: dr.VMID(fmt.Sprintf("5d0a7c11-%04d", n)), Name: name, Fabric: scvmm.ID, Agent: "v2", Running: true, Generation: 2, CPUs: 4, MemoryMB: 8192, OSType: "Windows", Seen: now.Add(-40 * time.Second),
			Disks: []dr.Disk{disk(10*n, `C:\ClusterStorage\Volume1\`+name+`\`+name+`.vhdx`)},
			NICs:  []dr.NIC{{ID: "n", MAC: "00:15:5D:01:02:03", Network: "Datacenter switch", VLAN: 110, IPs: []string{"10.1.4.17", "fe80::215:5dff:fe01:203"}}},
			Facts: dr.VMFacts{Version: "10.0", SecureBoot: true, OSName: "Windows Server 2022 Datacenter", OSVersion: "10.0.20348", GuestTools: "ok", Clustered: true, DynamicMemory: true, Cloud: gold}}
		v.Disks[0].Boot = true
		change(&v)
		f.vms = append(f.vms, v)
	}
	vm(0, "dc01", func(*dr.VM) {})
	vm(1, "sql01", func(v *dr.VM) {
		shared, vhd := disk(11, `C:\ClusterStorage\Volume2\sql\quorum.vhds`), disk(12, `C:\ClusterStorage\Volume2\sql\archive.vhd`)
		shared.Shared, vhd.Format, vhd.Unreplicatable = true, "vhd", "changes of VHDs can't be tracked"
		v.Disks[0].Chain, v.Disks[0].Layout = 3, "differencing"
		v.Disks = append(v.Disks, shared, vhd)
		v.Facts.GuestTools, v.Facts.AppConsistent, v.Facts.Checkpoints = "degraded", "the backup integration service is not available: no contact", 2
	})
	vm(2, "legacy03", func(v *dr.VM) {
		v.Generation, v.Running = 1, false
		v.Facts = dr.VMFacts{Version: "5.0", OSName: "Windows Server 2008 R2", GuestTools: "absent", Replicated: "Hyper-V Replica"}
		v.Disks[0].Controller = "ide"
	})
	vm(3, "app02", func(v *dr.VM) {
		v.Facts.GuestTools, v.Facts.AppConsistent, v.Facts.Cloud = "absent", "the backup integration service is not available: no contact", bronze
	})
	return f
}

// hostileNetworks names all that VMM and hosts name with an attack.
func (f *fake) hostileNetworks() {
	for i := range f.nets {
		f.nets[i].Name, f.nets[i].Type, f.nets[i].LogicalNetwork = evil, evil, evil
		f.nets[i].Hosts = append(f.nets[i].Hosts, evil)
		f.nets[i].Subnets = []vmm.Subnet{{Name: evil, CIDRs: []string{evil}}}
	}
	for i := range f.netMaps {
		f.netMaps[i].Name, f.netMaps[i].Target = evil, evil
	}
	for id, s := range f.vmms {
		s.Server, s.Warnings = vmm.Server{Name: evil, Product: evil}, []string{evil}
		s.Clouds[0].Name, s.Clouds[1].HostGroups, s.StorageClassifications[0].Name, s.LogicalNetworks[0].Name = evil, []string{evil}, evil, evil
		f.vmms[id] = s
	}
}
