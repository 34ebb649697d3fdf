package hvsim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/model"
)

// GUIDs of devices that every VM has, as they appear in InstanceIDs.
const (
	processorID = "B637F346-6A0E-4DEC-AF52-BD70CB80A21D"
	memoryID    = "4764334D-E001-4176-82EE-5594EC9B530E"
	vlanID      = "952C5004-4465-451C-8CB8-FA9AB382B773"
)

func (h *Host) path(class string, keys ...string) cim.Path {
	p := cim.Path{Host: h.Conf.Name, Namespace: virt, Class: class}
	for i := 0; i < len(keys); i += 2 {
		p.Keys = append(p.Keys, cim.Key{Name: keys[i], Value: keys[i+1]})
	}
	return p
}

func (h *Host) byID(class, id string) cim.Path { return h.path(class, "InstanceID", id) }

func (h *Host) vmPath(st model.State) cim.Path {
	class := "Msvm_ComputerSystem"
	if st.Planned {
		class = "Msvm_PlannedComputerSystem"
	}
	return h.path(class, "CreationClassName", class, "Name", st.ID)
}

// setting is an instance whose only key is InstanceID.
func (h *Host) setting(class, id string, pairs ...any) *cim.Instance {
	in := cim.NewInstance(class, append([]any{"InstanceID", id}, pairs...)...)
	in.Path = h.byID(class, id)
	return in
}

func interval(d time.Duration) cim.DateTime {
	s := int64(d / time.Second)
	return cim.DateTime(fmt.Sprintf("%08d%02d%02d%02d.%06d:000", s/86400, s/3600%24, s/60%60, s%60, d%time.Second/time.Microsecond))
}

func enabled(p model.Power) uint16 {
	switch p {
	case model.On:
		return 2
	case model.Paused:
		return 9
	case model.Saved:
		return 6
	}
	return 3
}

func status(st model.State) []uint16 {
	if st.Status != 0 {
		return []uint16{2, st.Status}
	}
	return []uint16{2}
}

// render makes the objects of a VM.
func (h *Host) render(st model.State, up time.Duration) *graph {
	g := newGraph(h.Conf.Name, h.site.schema)
	vmPath := h.vmPath(st)
	vm := cim.NewInstance(vmPath.Class, "Caption", "Virtual Machine", "Description", "Microsoft Virtual Machine", "ElementName", st.Name,
		"CreationClassName", vmPath.Class, "Name", st.ID, "EnabledState", enabled(st.Power), "RequestedState", uint16(12), "EnabledDefault", uint16(3),
		"HealthState", uint16(5), "OperationalStatus", status(st), "StatusDescriptions", []string{"Operating normally"}, "Status", "OK",
		"InstallDate", cim.FormatTime(st.Created), "TimeOfLastStateChange", cim.FormatTime(st.LastChange), "TimeOfLastConfigurationChange", cim.FormatTime(st.Created),
		"OnTimeInMilliseconds", uint64(up/time.Millisecond), "ProcessID", uint32(0), "ResetCapability", uint16(1))
	if st.Power == model.On {
		vm.Set("ProcessID", uint32(1000+crc(st.ID)%30000))
	}
	if !st.Planned {
		for _, p := range cim.Pairs("NumberOfNumaNodes", uint16(1), "ReplicationState", st.Replication.State, "ReplicationHealth", st.Replication.Health,
			"ReplicationMode", st.Replication.Mode, "FailedOverReplicationType", uint16(0), "LastReplicationType", uint16(0), "EnhancedSessionModeState", uint16(3)) {
			vm.Set(p.Name, p.Value)
		}
	}
	vm.Path = vmPath
	g.add(vm)
	realized := h.settings(g, st, st.ID, nil)
	if st.Planned {
		g.link("Msvm_SettingsDefineState", "ManagedElement", vmPath, "SettingData", realized)
		return g
	}
	g.link("Msvm_SettingsDefineState", "ManagedElement", vmPath, "SettingData", realized)
	g.link("Msvm_HostedDependency", "Antecedent", h.computer(), "Dependent", vmPath)
	h.components(g, st, vmPath)
	for _, ds := range st.Disks {
		if ds.Kind == model.PassThrough {
			g.link("Msvm_SystemDevice", "GroupComponent", h.computer(), "PartComponent", g.add(h.drive(ds)))
		}
	}
	for i := range st.Checkpoints {
		cp := &st.Checkpoints[i]
		p := h.settings(g, cp.Generation, cp.ID, cp)
		g.link("Msvm_SnapshotOfVirtualSystem", "Antecedent", vmPath, "Dependent", p)
		if i == len(st.Checkpoints)-1 {
			g.link("Msvm_MostCurrentSnapshotInBranch", "Antecedent", vmPath, "Dependent", p)
		}
		if _, ok := st.Checkpoint(cp.Parent); ok {
			g.link("Msvm_ParentChildSettingData", "Antecedent", h.byID("Msvm_VirtualSystemSettingData", "Microsoft:"+cp.Parent), "Dependent", p)
		}
		if st.Last == cp.ID {
			g.link("Msvm_LastAppliedSnapshot", "Antecedent", p, "Dependent", vmPath)
		}
	}
	for _, p := range st.Points {
		g.link("Msvm_ReferencePointOfVirtualSystem", "Antecedent", vmPath, "Dependent", g.add(h.point(st, p)))
	}
	if r := st.Replication; r.Mode != 0 {
		rel := g.add(h.setting("Msvm_ReplicationRelationship", "Microsoft:"+st.ID+`\HVR\0`, "ReplicationState", r.State, "ReplicationHealth", r.Health,
			"FailedOverReplicationType", uint16(0), "LastReplicationType", uint16(1), "LastReplicationTime", cim.FormatTime(r.Since)))
		g.link("Msvm_SystemReplicationRelationship", "Antecedent", vmPath, "Dependent", rel)
		if in, err := cim.DecodeEmbedded(r.Settings); err == nil {
			in.Class = "Msvm_ReplicationSettingData"
			in.Set("InstanceID", "Microsoft:"+st.ID+`\HVR\Settings\0`)
			in.Path = h.byID(in.Class, in.String("InstanceID"))
			g.link("Msvm_ElementSettingData", "ManagedElement", rel, "SettingData", g.add(in))
		}
	}
	return g
}

func crc(s string) (n uint32) {
	for _, c := range []byte(s) {
		n = n*31 + uint32(c)
	}
	return n
}

func (h *Host) point(st model.State, p model.Point) *cim.Instance {
	var ids, rcts []string
	for _, d := range p.Disks {
		ids = append(ids, d.ID)
		if d.RCT != "" {
			rcts = append(rcts, d.RCT)
		}
	}
	kind := uint16(2)
	if p.Log {
		kind = 1
	}
	return h.setting("Msvm_VirtualSystemReferencePoint", "Microsoft:"+p.ID, "ElementName", p.Name, "Caption", "Reference Point", "ReferencePointType", kind,
		"ConsistencyLevel", uint16(p.Consistency), "VirtualSystemIdentifier", st.ID, "HasAssociatedData", len(p.Logs) > 0,
		"VirtualDiskIdentifiers", orNil(ids), "ResilientChangeTrackingIdentifiers", orNil(rcts))
}

func orNil(list []string) cim.Value {
	if len(list) == 0 {
		return nil
	}
	return list
}

// settings makes the setting data of a VM (cp nil) or of a checkpoint, with its resources.
func (h *Host) settings(g *graph, st model.State, id string, cp *model.Checkpoint) cim.Path {
	sub := fmt.Sprintf("Microsoft:Hyper-V:SubType:%d", st.Generation)
	notes := st.Notes
	if notes == nil {
		notes = []string{""}
	}
	in := h.setting("Msvm_VirtualSystemSettingData", "Microsoft:"+id, "Caption", "Virtual Machine Settings", "Description", "Active settings for the virtual machine.",
		"ElementName", st.Name, "VirtualSystemIdentifier", st.ID, "VirtualSystemType", "Microsoft:Hyper-V:System:Realized", "Notes", notes,
		"CreationTime", cim.FormatTime(st.Created), "ConfigurationID", id, "ConfigurationDataRoot", st.Dir, "ConfigurationFile", `Virtual Machines\`+id+".vmcx",
		"SnapshotDataRoot", st.Dir, "SuspendDataRoot", st.Dir, "SwapFileDataRoot", st.Dir, "GuestStateDataRoot", st.Dir, "GuestStateFile", `Virtual Machines\`+id+".vmgs",
		"AutomaticStartupAction", st.AutoStart, "AutomaticShutdownAction", uint16(3), "AutomaticRecoveryAction", uint16(3), "AutomaticStartupActionDelay", interval(0),
		"BIOSGUID", "{"+st.BIOSGUID+"}", "UserSnapshotType", st.UserSnapshotType, "IsSaved", st.Power == model.Saved, "Version", st.Version,
		"IncrementalBackupEnabled", true, "VirtualNumaEnabled", true, "VirtualSystemSubType", sub, "BIOSSerialNumber", serial(st.ID), "Architecture", "x64",
		"SecureBootEnabled", st.SecureBoot, "SecureBootTemplateId", st.SecureBootTemplate, "AutomaticSnapshotsEnabled", false, "IsAutomaticSnapshot", false,
		"LowMmioGapSize", uint64(128), "HighMmioGapSize", uint64(512), "ConsoleMode", uint16(0))
	if st.Generation == 1 {
		in.Set("BootOrder", []uint16{1, 2, 3, 0})
	}
	switch {
	case st.Planned:
		in.Set("VirtualSystemType", "Microsoft:Hyper-V:System:Planned")
	case cp != nil:
		in.Set("ElementName", cp.Name)
		in.Set("CreationTime", cim.FormatTime(cp.Created))
		in.Set("VirtualSystemType", "Microsoft:Hyper-V:Snapshot:Realized")
		in.Set("Description", "Checkpoint settings for the virtual machine.")
		if cp.Recovery {
			in.Set("VirtualSystemType", "Microsoft:Hyper-V:Snapshot:Recovery")
		}
		if cp.Parent != "" {
			in.Set("Parent", h.byID("Msvm_VirtualSystemSettingData", "Microsoft:"+cp.Parent).String())
		}
	case st.Last != "":
		in.Set("Parent", h.byID("Msvm_VirtualSystemSettingData", "Microsoft:"+st.Last).String())
	}
	set := g.add(in)
	part := func(in *cim.Instance) cim.Path {
		p := g.add(in)
		g.link("Msvm_VirtualSystemSettingDataComponent", "GroupComponent", set, "PartComponent", p)
		return p
	}
	pre := "Microsoft:" + id + `\`
	part(h.setting("Msvm_ProcessorSettingData", pre+processorID+`\0`, "Caption", "Processor", "ElementName", "Processor", "ResourceType", uint16(3),
		"ResourceSubType", "Microsoft:Hyper-V:Processor", "AllocationUnits", "percent / 1000", "VirtualQuantity", uint64(st.CPUs), "VirtualQuantityUnits", "count",
		"Limit", uint64(100000), "Reservation", uint64(0), "Weight", uint32(100), "HwThreadsPerCore", uint64(0), "ExposeVirtualizationExtensions", false, "LimitProcessorFeatures", false))
	part(h.setting("Msvm_MemorySettingData", pre+memoryID, "Caption", "Memory", "ElementName", "Memory", "ResourceType", uint16(4), "ResourceSubType", "Microsoft:Hyper-V:Memory",
		"AllocationUnits", "byte * 2^20", "VirtualQuantity", uint64(st.MemoryMB), "VirtualQuantityUnits", "byte * 2^20", "Reservation", uint64(st.MinMB), "Limit", uint64(st.MaxMB),
		"Weight", uint32(5000), "DynamicMemoryEnabled", st.DynamicMemory, "TargetMemoryBuffer", uint32(20), "IsVirtualized", true, "SwapFilesInUse", false))
	part(h.setting("Msvm_SecuritySettingData", pre+"SecuritySettings", "Caption", "Security Settings", "ElementName", "Security Settings", "TpmEnabled", st.TPM, "KsdEnabled", false,
		"ShieldingRequested", false, "DataProtectionRequested", false, "EncryptStateAndVmMigrationTraffic", false, "VirtualizationBasedSecurityOptOut", false))
	h.storage(st, pre, cp, part)
	h.network(g, st, pre, part)
	return set
}

func serial(id string) string {
	n := crc(id)
	return fmt.Sprintf("%04d-%04d-%04d-%04d-%04d-%04d-%02d", n%10000, n/7%10000, n/11%10000, n/13%10000, n/17%10000, n/19%10000, n%100)
}

// storage makes controllers, drives and disks.
func (h *Host) storage(st model.State, pre string, cp *model.Checkpoint, part func(*cim.Instance) cim.Path) {
	controllers := map[string]string{}
	for _, c := range st.Controllers {
		kind, sub, name := uint16(6), "Microsoft:Hyper-V:Synthetic SCSI Controller", "SCSI Controller"
		if c.Type == "IDE" {
			kind, sub, name = 5, "Microsoft:Hyper-V:Emulated IDE Controller", fmt.Sprintf("IDE Controller %d", c.Number)
		}
		in := h.setting("Msvm_ResourceAllocationSettingData", pre+c.ID+`\`+strconv.Itoa(c.Number), "Caption", name, "ElementName", name, "ResourceType", kind, "ResourceSubType", sub,
			"VirtualQuantity", uint64(1), "VirtualQuantityUnits", "count", "AutomaticAllocation", true, "AutomaticDeallocation", true)
		if c.Type == "IDE" {
			in.Set("Address", strconv.Itoa(c.Number))
		} else {
			in.Set("VirtualSystemIdentifiers", []string{"{" + c.ID + "}"})
		}
		controllers[c.ID] = part(in).String()
	}
	for _, d := range st.Drives {
		id, slot := pre+driveID(st, d), strconv.Itoa(d.Slot)
		ds := disk(st, d)
		sub, kind, name := "Microsoft:Hyper-V:Synthetic Disk Drive", uint16(17), "Hard Drive"
		switch {
		case d.DVD:
			sub, kind, name = "Microsoft:Hyper-V:Synthetic DVD Drive", 16, "DVD Drive"
		case ds != nil && ds.Kind == model.PassThrough:
			sub, name = "Microsoft:Hyper-V:Physical Disk Drive", "Physical Drive"
		}
		in := h.setting("Msvm_ResourceAllocationSettingData", id+`\D`, "Caption", name, "ElementName", name, "ResourceType", kind, "ResourceSubType", sub,
			"Parent", controllers[d.Controller], "AddressOnParent", slot, "VirtualQuantity", uint64(1), "VirtualQuantityUnits", "count", "AutomaticAllocation", true, "AutomaticDeallocation", true)
		if ds != nil && ds.Kind == model.PassThrough {
			in.Set("HostResource", []string{h.drivePath(ds.ID).String()})
			part(in)
			continue
		}
		drive := part(in).String()
		medium, sub := "", "Microsoft:Hyper-V:Virtual Hard Disk"
		shared := false
		switch {
		case d.DVD:
			medium, sub = d.Image, "Microsoft:Hyper-V:Virtual CD/DVD Disk"
		case ds != nil:
			medium, shared = ds.Leaf, ds.Kind == model.Shared
			if cp != nil {
				medium = ds.Leaf
				for _, f := range cp.Disks {
					if f.ID == ds.ID {
						medium = f.Path
					}
				}
			}
		}
		if medium == "" {
			continue
		}
		part(h.setting("Msvm_StorageAllocationSettingData", id+`\L`, "Caption", "Hard Disk Image", "ElementName", "Hard Disk Image", "ResourceType", uint16(31), "ResourceSubType", sub,
			"HostResource", []string{medium}, "Parent", drive, "VirtualQuantity", uint64(1), "VirtualQuantityUnits", "count", "AutomaticAllocation", true, "AutomaticDeallocation", true,
			"Access", uint16(3), "PersistentReservationsSupported", shared, "CachingMode", uint16(0), "IOPSLimit", uint64(0), "IOPSReservation", uint64(0), "IOPSAllocationUnits", "count of I/O per second",
			"IgnoreFlushes", false, "WriteHardeningMethod", uint16(0)))
	}
}

// driveID is the part of an InstanceID that names a drive: its controller, the controller's number and the slot.
func driveID(st model.State, d model.Drive) string {
	for _, c := range st.Controllers {
		if c.ID == d.Controller {
			return fmt.Sprintf(`%s\%d\%d`, c.ID, c.Number, d.Slot)
		}
	}
	return ""
}

func disk(st model.State, d model.Drive) *model.DiskState {
	for i := range st.Disks {
		if st.Disks[i].Controller == d.Controller && st.Disks[i].Slot == d.Slot {
			return &st.Disks[i]
		}
	}
	return nil
}

// network makes adapters, their connections and addresses.
func (h *Host) network(g *graph, st model.State, pre string, part func(*cim.Instance) cim.Path) {
	for _, n := range st.NICs {
		class, sub := "Msvm_SyntheticEthernetPortSettingData", "Microsoft:Hyper-V:Synthetic Ethernet Port"
		if n.Legacy {
			class, sub = "Msvm_EmulatedEthernetPortSettingData", "Microsoft:Hyper-V:Emulated Ethernet Port"
		}
		in := h.setting(class, pre+n.ID, "Caption", n.Name, "ElementName", n.Name, "ResourceType", uint16(10), "ResourceSubType", sub, "Address", n.MAC,
			"StaticMacAddress", n.StaticMAC, "VirtualQuantity", uint64(1), "VirtualQuantityUnits", "count", "AutomaticAllocation", true, "AutomaticDeallocation", true, "ClusterMonitored", true)
		if !n.Legacy {
			in.Set("VirtualSystemIdentifiers", []string{"{" + n.ID + "}"})
		}
		port := part(in)
		conf := g.add(h.setting("Msvm_GuestNetworkAdapterConfiguration", "Microsoft:GuestNetwork\\"+strings.TrimPrefix(pre, "Microsoft:")+n.ID,
			"ProtocolIFType", protocol(n.IPs), "DHCPEnabled", n.DHCP, "IPAddresses", list(n.IPs), "Subnets", list(n.Subnets), "DefaultGateways", list(n.Gateways), "DNSServers", list(n.DNS)))
		g.link("Msvm_SettingDataComponent", "GroupComponent", port, "PartComponent", conf)
		if !n.Connected {
			continue
		}
		con := h.setting("Msvm_EthernetPortAllocationSettingData", pre+n.ID+`\C`, "Caption", "Dynamic Ethernet Switch Port", "ElementName", "Dynamic Ethernet Switch Port",
			"ResourceType", uint16(33), "ResourceSubType", "Microsoft:Hyper-V:Ethernet Connection", "Parent", port.String(), "EnabledState", uint16(2),
			"VirtualQuantity", uint64(1), "VirtualQuantityUnits", "count", "AutomaticAllocation", true, "AutomaticDeallocation", true)
		if sw, ok := h.Switch(n.Switch); ok && n.Switch != "" {
			con.Set("HostResource", []string{h.switchPath(sw).String()})
			con.Set("LastKnownSwitchName", sw.Name)
		}
		c := part(con)
		if n.VLAN != 0 {
			v := g.add(h.setting("Msvm_EthernetSwitchPortVlanSettingData", pre+n.ID+`\C\8\`+vlanID, "Caption", "Ethernet Switch Port VLAN Settings", "ElementName", "Ethernet Switch Port VLAN Settings",
				"OperationMode", uint32(1), "AccessVlanId", uint16(n.VLAN)))
			g.link("Msvm_EthernetPortSettingDataComponent", "GroupComponent", c, "PartComponent", v)
		}
	}
}

func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func protocol(ips []string) uint16 {
	v4, v6 := false, false
	for _, ip := range ips {
		if strings.Contains(ip, ":") {
			v6 = true
		} else {
			v4 = true
		}
	}
	switch {
	case v4 && v6:
		return 4098
	case v6:
		return 4097
	case v4:
		return 4096
	}
	return 0
}

// components makes the integration services of a VM.
func (h *Host) components(g *graph, st model.State, vmPath cim.Path) {
	on := st.Power == model.On
	add := func(class, name, id string, op uint16, extra ...any) {
		dev := "Microsoft:" + st.ID + `\` + id
		in := cim.NewInstance(class, append([]any{"Caption", name, "ElementName", name, "CreationClassName", class, "DeviceID", dev, "SystemCreationClassName", "Msvm_ComputerSystem",
			"SystemName", st.ID, "EnabledState", uint16(2), "RequestedState", uint16(12), "HealthState", uint16(5), "OperationalStatus", []uint16{op}}, extra...)...)
		in.Path = h.path(class, "CreationClassName", class, "DeviceID", dev, "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", st.ID)
		g.link("Msvm_SystemDevice", "GroupComponent", vmPath, "PartComponent", g.add(in))
	}
	if !on { // the services of a VM that does not run are not there
		return
	}
	contact := func(ok bool, bad uint16) uint16 {
		if ok {
			return 2
		}
		return bad
	}
	add("Msvm_HeartbeatComponent", "Heartbeat", "84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47", st.Heartbeat)
	vss := map[string]uint16{model.VSSOk: 2, model.VSSSlow: 2, model.VSSFail: 3, model.VSSAbsent: 12}[st.VSS]
	add("Msvm_VssComponent", "VSS", "5CED1297-4598-4915-A5FC-AD21BB4D02A4", vss)
	add("Msvm_ShutdownComponent", "Shutdown", "9F8233AC-BE49-4C79-8EE3-E7E1985B2077", contact(!st.NoShutdown, 12))
	var items []string
	for _, kv := range [][2]string{{"OSName", st.OS}, {"OSVersion", st.OSVersion}, {"FullyQualifiedDomainName", st.FQDN}} {
		if kv[1] == "" {
			continue
		}
		if text, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_KvpExchangeDataItem", "Data", kv[1], "Name", kv[0], "Source", uint16(2))); err == nil {
			items = append(items, text)
		}
	}
	add("Msvm_KvpExchangeComponent", "Key-Value Pair Exchange", "2A34B1C2-FD73-4043-8A5B-DD2159BC743F", contact(len(items) > 0, 12),
		"GuestExchangeItems", []string{}, "GuestIntrinsicExchangeItems", list(items))
}
