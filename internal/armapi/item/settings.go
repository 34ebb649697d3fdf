package item

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// targetSettings is what clients say about the recovery VM beyond what the
// domain knows. It is stored as JSON in dr.ItemSettings.Raw, so that it can be
// given back as it came.
//
// Version history of the stored form:
//
//	1  2026-11-22  first version
type targetSettings struct {
	Version           int                        `json:"v"`
	VMSize            string                     `json:"vmSize,omitempty"`
	StorageAccount    string                     `json:"storageAccount,omitempty"`
	LogStorageAccount string                     `json:"logStorageAccount,omitempty"`
	ResourceGroup     string                     `json:"resourceGroup,omitempty"`
	AvailabilitySet   string                     `json:"availabilitySet,omitempty"`
	Zone              string                     `json:"zone,omitempty"`
	PlacementGroup    string                     `json:"placementGroup,omitempty"`
	RDP               string                     `json:"rdp,omitempty"`
	ManagedDisks      string                     `json:"managedDisks,omitempty"`
	License           string                     `json:"license,omitempty"`
	LinuxLicense      string                     `json:"linuxLicense,omitempty"`
	SQLLicense        string                     `json:"sqlLicense,omitempty"`
	NetworkID         string                     `json:"networkId,omitempty"`
	TestNetworkID     string                     `json:"testNetworkId,omitempty"`
	SelectedNIC       string                     `json:"selectedNic,omitempty"`
	OSType            string                     `json:"osType,omitempty"`
	OSDisk            string                     `json:"osDisk,omitempty"`
	Tags              map[string]string          `json:"tags,omitempty"`
	NICs              map[string]json.RawMessage `json:"nics,omitempty"` // by NIC id, as the client sent them
}

const targetSettingsVersion = 1

// readSettings reads the stored form; what can't be read is treated as nothing,
// because it is only ever echoed.
func readSettings(raw string) targetSettings {
	var t targetSettings
	if raw == "" || json.Unmarshal([]byte(raw), &t) != nil || t.Version != targetSettingsVersion {
		return targetSettings{Version: targetSettingsVersion}
	}
	return t
}

func (t targetSettings) encode() string {
	t.Version = targetSettingsVersion
	b, err := json.Marshal(t)
	if err != nil {
		return "" // can't happen: strings, a map of strings, and JSON that was decoded before
	}
	return string(b)
}

// networkName is the name of a network given by id or by name. A virtual network
// of Azure is known by its id.
func networkName(id string) string {
	if !strings.Contains(id, "/") || strings.Contains(strings.ToLower(id), "/providers/microsoft.network/virtualnetworks/") {
		return id
	}
	return site.BaseName(strings.TrimRight(id, "/"))
}

// enableSettings turns the input of enabling protection into settings.
func enableSettings(in armwire.EnableDetails) dr.ItemSettings {
	t := targetSettings{
		VMSize: in.TargetVMSize, StorageAccount: in.TargetStorageAccountID, LogStorageAccount: in.LogStorageAccountID,
		ResourceGroup:   cmp.Or(in.TargetAzureV2ResourceGroupID, in.TargetAzureV1ResourceGroupID),
		AvailabilitySet: in.TargetAvailabilitySetID, Zone: in.TargetAvailabilityZone, PlacementGroup: in.TargetProximityPlacementGroup,
		RDP: in.EnableRDPOnTargetOption, ManagedDisks: in.UseManagedDisks, License: in.LicenseType, LinuxLicense: in.LinuxLicenseType, SQLLicense: in.SQLServerLicenseType,
		NetworkID: in.TargetAzureNetworkID, TestNetworkID: in.TestNetwork, OSType: in.OSType, OSDisk: in.VHDID, Tags: in.TargetVMTags,
	}
	return dr.ItemSettings{
		RecoveryVMName: in.TargetAzureVMName, CPUs: in.CPUs, MemoryMB: in.MemoryMB,
		Network: networkName(in.TargetAzureNetworkID), TestNetwork: networkName(in.TestNetwork), Raw: t.encode(),
		Cloud: dr.CloudSettings{DiskType: cmp.Or(in.DiskType, diskType(in.DisksToIncludeForManagedDisks)), SecurityGroup: in.SecurityGroup, PublicIP: in.PublicIP, Warm: in.WarmReplica, Repair: in.RepairGuest,
			Size: t.VMSize, ResourceGroup: t.ResourceGroup, AvailabilitySet: t.AvailabilitySet, Zone: t.Zone, ProximityGroup: t.PlacementGroup, License: licence(t), Tags: t.Tags},
	}
}

// diskType is the one that is asked for the disks; Holdfast has one for all disks of a VM.
func diskType(in []armwire.DiskInput) string {
	for _, d := range in {
		if d.DiskType != "" {
			return d.DiskType
		}
	}
	return ""
}

// licence is the one of Windows or of Linux; the words by which clients say "none" are none.
func licence(t targetSettings) string {
	for _, l := range []string{t.License, t.LinuxLicense} {
		switch strings.ToLower(l) {
		case "", "notspecified", "nolicensetype":
		case "windowsserver":
			return "Windows_Server" // as Azure's compute service says it
		default:
			return l
		}
	}
	return ""
}

// cloudNICs reads what clients want of the adapters.
func cloudNICs(t targetSettings) (out []dr.CloudNIC) {
	for _, id := range slices.Sorted(maps.Keys(t.NICs)) {
		var in armwire.NICInput
		if json.Unmarshal(t.NICs[id], &in) != nil {
			continue
		}
		n := dr.CloudNIC{ID: id, Unused: strings.EqualFold(in.SelectionType, "NotSelected"), Primary: strings.EqualFold(t.SelectedNIC, id)}
		if len(in.IPConfigs) > 0 {
			w := in.IPConfigs[0]
			n.Subnet, n.IP, n.TestSubnet, n.TestIP = w.RecoverySubnetName, w.RecoveryStaticIPAddress, w.TFOSubnetName, w.TFOStaticIPAddress
		}
		out = append(out, n)
	}
	return out
}

// applyUpdate changes settings by what the client sent; absent fields stay.
func applyUpdate(s *dr.ItemSettings, in armwire.UpdateInput, more armwire.UpdateDetails) {
	t := readSettings(s.Raw)
	for _, f := range []struct {
		to   *string
		from *string
	}{
		{&s.RecoveryVMName, in.RecoveryAzureVMName}, {&t.VMSize, in.RecoveryAzureVMSize}, {&t.NetworkID, in.SelectedRecoveryAzureNetworkID},
		{&t.TestNetworkID, in.SelectedTFOAzureNetworkID}, {&t.SelectedNIC, in.SelectedSourceNICID}, {&t.RDP, in.EnableRDPOnTargetOption},
		{&t.License, in.LicenseType}, {&t.AvailabilitySet, in.RecoveryAvailabilitySetID},
		{&t.ResourceGroup, more.RecoveryAzureV2ResourceGroup}, {&t.ManagedDisks, more.UseManagedDisks}, {&t.Zone, more.TargetAvailabilityZone},
		{&t.PlacementGroup, more.TargetProximityPlacementGroup}, {&t.SQLLicense, more.SQLServerLicenseType}, {&t.LinuxLicense, more.LinuxLicenseType},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if more.TargetVMTags != nil {
		t.Tags = more.TargetVMTags
	}
	for _, nic := range in.VMNICs {
		if b, err := json.Marshal(nic); err == nil && nic.NICID != "" {
			if t.NICs == nil {
				t.NICs = map[string]json.RawMessage{}
			}
			t.NICs[nic.NICID] = b
		}
	}
	if in.SelectedRecoveryAzureNetworkID != nil {
		s.Network = networkName(t.NetworkID)
	}
	if in.SelectedTFOAzureNetworkID != nil {
		s.TestNetwork = networkName(t.TestNetworkID)
	}
	if more.CPUs != nil {
		s.CPUs = *more.CPUs
	}
	if more.MemoryMB != nil {
		s.MemoryMB = *more.MemoryMB
	}
	s.Raw = t.encode()
	c := &s.Cloud
	c.Size, c.ResourceGroup, c.AvailabilitySet, c.Zone, c.ProximityGroup, c.License, c.Tags = t.VMSize, t.ResourceGroup, t.AvailabilitySet, t.Zone, t.PlacementGroup, licence(t), t.Tags
	c.NICs = cloudNICs(t)
	for _, f := range []struct{ to, from *string }{{&c.DiskType, more.DiskType}, {&c.SecurityGroup, more.SecurityGroup}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	for _, f := range []struct{ to, from *bool }{{&c.PublicIP, more.PublicIP}, {&c.Warm, more.WarmReplica}, {&c.Repair, more.RepairGuest}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
}

// checkSize refuses sizes that no VM can have.
func checkSize(cpus, memoryMB int) error {
	const mostCPUs, mostMemory = 4096, 64 << 20
	if cpus < 0 || cpus > mostCPUs || memoryMB < 0 || memoryMB > mostMemory {
		return dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.body", "holdfastCpus %d or holdfastMemoryMB %d is out of range", cpus, memoryMB)
	}
	return nil
}

// nicDetails renders a VM's adapters with what the client wants of them.
func nicDetails(vm dr.VM, s dr.ItemSettings, t targetSettings) []armwire.NICDetails {
	out := make([]armwire.NICDetails, 0, len(vm.NICs))
	for i, n := range vm.NICs {
		d := armwire.NICDetails{NICID: n.ID, VMNetworkName: n.Network, MAC: n.MAC, SelectionType: "SelectedByDefault",
			RecoveryVMNetworkID: cmp.Or(t.NetworkID, s.Network), TFOVMNetworkID: cmp.Or(t.TestNetworkID, s.TestNetwork)}
		ip := armwire.IPConfigDetails{IsPrimary: i == 0, IsSelectedForFailover: i == 0, SubnetName: n.Network, IPAddressType: "Dynamic", RecoveryIPAddressType: "Dynamic"}
		if len(n.IPs) > 0 {
			ip.StaticIPAddress = n.IPs[0]
		}
		var want armwire.NICInput
		if raw, ok := t.NICs[n.ID]; ok && json.Unmarshal(raw, &want) == nil {
			d.SelectionType, d.RecoveryNICName, d.TargetNICName = cmp.Or(want.SelectionType, "SelectedByUser"), want.RecoveryNICName, want.TargetNICName
			if len(want.IPConfigs) > 0 {
				w := want.IPConfigs[0]
				ip.Name, ip.RecoverySubnetName, ip.RecoveryStaticIPAddress = w.IPConfigName, w.RecoverySubnetName, w.RecoveryStaticIPAddress
				ip.TFOSubnetName, ip.TFOStaticIPAddress = w.TFOSubnetName, w.TFOStaticIPAddress
				if w.RecoveryStaticIPAddress != "" {
					ip.RecoveryIPAddressType = "Static"
				}
			}
		}
		d.IPConfigs = []armwire.IPConfigDetails{ip}
		out = append(out, d)
	}
	return out
}
