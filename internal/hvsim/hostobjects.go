package hvsim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/jobs"
	"holdfast/internal/hvsim/model"
)

// The services of a host: class and name.
var services = [][2]string{
	{"Msvm_VirtualSystemManagementService", "vmms"},
	{"Msvm_VirtualSystemSnapshotService", "vmms"},
	{"Msvm_VirtualSystemReferencePointService", "vmms"},
	{"Msvm_ImageManagementService", "vhdsvc"},
	{"Msvm_ReplicationService", "vmms"},
	{"Msvm_VirtualSystemMigrationService", "vmms"},
	{"Msvm_SecurityService", "vmms"},
}

func (h *Host) computer() cim.Path {
	return h.path("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", h.Conf.Name)
}

func (h *Host) switchPath(s model.Switch) cim.Path {
	return h.path("Msvm_VirtualEthernetSwitch", "CreationClassName", "Msvm_VirtualEthernetSwitch", "Name", s.ID)
}

// renderHost makes the objects that a host has without any VM.
func (h *Host) renderHost() *graph {
	g := newGraph(h.Conf.Name, h.site.schema)
	pc := cim.NewInstance("Msvm_ComputerSystem", "Caption", "Hosting Computer System", "Description", "Microsoft Hosting Computer System", "ElementName", h.Conf.Name,
		"CreationClassName", "Msvm_ComputerSystem", "Name", h.Conf.Name, "EnabledState", uint16(2), "RequestedState", uint16(12), "HealthState", uint16(5), "OperationalStatus", []uint16{2},
		"InstallDate", cim.FormatTime(h.Booted()), "ResetCapability", uint16(1))
	pc.Path = h.computer()
	g.add(pc)
	for _, s := range services {
		in := cim.NewInstance(s[0], "Caption", s[0], "ElementName", "Hyper-V "+strings.TrimPrefix(s[0], "Msvm_"), "CreationClassName", s[0], "Name", s[1], "SystemCreationClassName", "Msvm_ComputerSystem",
			"SystemName", h.Conf.Name, "HealthState", uint16(5), "OperationalStatus", []uint16{2}, "Started", true, "StartMode", "Automatic", "RequestedState", uint16(12))
		if s[0] != "Msvm_VirtualSystemMigrationService" { // text there, says the reference
			in.Set("EnabledState", uint16(2))
		}
		in.Path = h.service(s[0])
		g.link("Msvm_HostedService", "Antecedent", pc.Path, "Dependent", g.add(in))
	}
	for _, s := range h.Conf.Switches {
		h.renderSwitch(g, s)
	}
	h.renderWindows(g)
	h.renderCluster(g)
	return g
}

func (h *Host) service(class string) cim.Path {
	name := "vmms"
	for _, s := range services {
		if s[0] == class {
			name = s[1]
		}
	}
	return h.path(class, "CreationClassName", class, "Name", name, "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", h.Conf.Name)
}

func (h *Host) renderSwitch(g *graph, s model.Switch) {
	in := cim.NewInstance("Msvm_VirtualEthernetSwitch", "Caption", "Virtual Switch", "ElementName", s.Name, "CreationClassName", "Msvm_VirtualEthernetSwitch", "Name", s.ID,
		"EnabledState", uint16(5), "RequestedState", uint16(12), "HealthState", uint16(5), "OperationalStatus", []uint16{2}, "MaxVMQOffloads", uint32(0), "MaxIOVOffloads", uint32(0))
	in.Path = h.switchPath(s)
	sw := g.add(in)
	set := g.add(h.setting("Msvm_VirtualEthernetSwitchSettingData", "Microsoft:"+s.ID, "Caption", "Virtual Switch Settings", "ElementName", s.Name, "VirtualSystemIdentifier", s.ID,
		"VirtualSystemType", "Microsoft:Hyper-V:System:Realized", "Notes", []string{""}))
	g.link("Msvm_SettingsDefineState", "ManagedElement", sw, "SettingData", set)
	g.link("Msvm_HostedDependency", "Antecedent", h.computer(), "Dependent", sw)
	if s.Kind == "private" {
		return
	}
	// What a switch is connected to: a network card of the host, or the host itself.
	to := h.computer()
	if s.Kind == "external" {
		card := cim.NewInstance("Msvm_ExternalEthernetPort", "Caption", "Ethernet", "ElementName", "Ethernet", "CreationClassName", "Msvm_ExternalEthernetPort",
			"DeviceID", "Microsoft:"+s.ID+":NIC", "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", h.Conf.Name, "EnabledState", uint16(2), "IsBound", true)
		card.Path = h.path("Msvm_ExternalEthernetPort", "CreationClassName", "Msvm_ExternalEthernetPort", "DeviceID", "Microsoft:"+s.ID+":NIC",
			"SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", h.Conf.Name)
		to = g.add(card)
		g.link("Msvm_SystemDevice", "GroupComponent", h.computer(), "PartComponent", to)
	}
	p := g.add(h.setting("Msvm_EthernetPortAllocationSettingData", "Microsoft:"+s.ID+`\UPLINK`, "Caption", "Ethernet Switch Port Settings", "ElementName", s.Name, "ResourceType", uint16(33),
		"ResourceSubType", "Microsoft:Hyper-V:Ethernet Connection", "HostResource", []string{to.String()}, "EnabledState", uint16(2)))
	g.link("Msvm_VirtualSystemSettingDataComponent", "GroupComponent", set, "PartComponent", p)
}

func (h *Host) drivePath(disk string) cim.Path {
	return h.path("Msvm_DiskDrive", "CreationClassName", "Msvm_DiskDrive", "DeviceID", "Microsoft:"+disk, "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", h.Conf.Name)
}

// drive is the host's physical disk that a VM has to itself.
func (h *Host) drive(ds model.DiskState) *cim.Instance {
	n := 1 + crc(ds.ID)%1000
	in := cim.NewInstance("Msvm_DiskDrive", "Caption", "Disk drive", "ElementName", fmt.Sprintf("Disk %d %.2f GB Bus 0 Lun 0 Target %d", n, float64(ds.Size)/(1<<30), n),
		"CreationClassName", "Msvm_DiskDrive", "DeviceID", "Microsoft:"+ds.ID, "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", h.Conf.Name, "DriveNumber", n,
		"EnabledState", uint16(2), "HealthState", uint16(5), "OperationalStatus", []uint16{2}, "MaxMediaSize", uint64(ds.Size>>10), "DefaultBlockSize", uint64(512))
	in.Path = h.drivePath(ds.ID)
	return in
}

// renderWindows makes the objects of root\cimv2.
func (h *Host) renderWindows(g *graph) {
	add := func(class, key, value string, pairs ...any) {
		in := cim.NewInstance(class, pairs...)
		in.Set("CreationClassName", class)
		in.Set(key, value)
		in.Path = cim.Path{Host: h.Conf.Name, Namespace: cimv2, Class: class, Keys: []cim.Key{{Name: key, Value: value}}}
		g.add(in)
	}
	mem := uint64(h.Conf.MemoryMB)
	build := h.Conf.Version[strings.LastIndexByte(h.Conf.Version, '.')+1:]
	add("Win32_OperatingSystem", "Name", h.Conf.OS+`|C:\Windows|\Device\Harddisk0\Partition3`, "Caption", h.Conf.OS, "Version", h.Conf.Version, "BuildNumber", build, "CSName", h.Conf.Name,
		"CSCreationClassName", "Win32_ComputerSystem", "LastBootUpTime", cim.FormatTime(h.Booted()), "LocalDateTime", cim.FormatTime(time.Now()), "TotalVisibleMemorySize", mem<<10, "FreePhysicalMemory", mem<<9,
		"ProductType", uint32(3), "OSArchitecture", "64-bit", "OSLanguage", uint32(1033), "Status", "OK", "SystemDrive", "C:", "WindowsDirectory", `C:\Windows`)
	add("Win32_ComputerSystem", "Name", h.Conf.Name, "Caption", h.Conf.Name, "DNSHostName", strings.ToLower(h.Conf.Name), "Domain", "sim.example", "PartOfDomain", true, "HypervisorPresent", true,
		"Manufacturer", "Holdfast", "Model", "Simulated host", "NumberOfLogicalProcessors", uint32(h.Conf.CPUs), "NumberOfProcessors", uint32(1), "TotalPhysicalMemory", mem<<20, "Status", "OK")
	const size, free = uint64(4) << 40, uint64(3) << 40
	add("Win32_LogicalDisk", "DeviceID", "C:", "Caption", "C:", "Name", "C:", "DriveType", uint32(3), "FileSystem", "NTFS", "Size", size, "FreeSpace", free,
		"SystemCreationClassName", "Win32_ComputerSystem", "SystemName", h.Conf.Name, "VolumeName", "System")
	add("Win32_Volume", "DeviceID", `\\?\Volume{`+strings.ToLower(volumeID(h.Conf.Name))+`}\`, "Name", `C:\`, "Caption", `C:\`, "DriveLetter", "C:", "DriveType", uint32(3), "FileSystem", "NTFS",
		"Capacity", size, "FreeSpace", free, "Label", "System", "SystemVolume", true, "BootVolume", true, "SystemName", h.Conf.Name)
	add("Win32_Volume", "DeviceID", `\\?\Volume{`+strings.ToLower(volumeID("Volume1"))+`}\`, "Name", `C:\ClusterStorage\Volume1\`, "Caption", `C:\ClusterStorage\Volume1\`, "DriveType", uint32(3),
		"FileSystem", "CSVFS", "Capacity", size, "FreeSpace", free, "Label", "Volume1", "SystemName", h.Conf.Name)
	for name, shown := range map[string]string{"vmms": "Hyper-V Virtual Machine Management", "vmcompute": "Hyper-V Host Compute Service", "WinRM": "Windows Remote Management (WS-Management)"} {
		add("Win32_Service", "Name", name, "Caption", shown, "DisplayName", shown, "State", "Running", "Started", true, "StartMode", "Auto", "Status", "OK", "StartName", "LocalSystem",
			"SystemCreationClassName", "Win32_ComputerSystem", "SystemName", h.Conf.Name)
	}
}

func volumeID(name string) string {
	n := strconv.FormatUint(uint64(crc(name)), 16)
	return ("00000000" + n)[len(n):] + "-0000-4000-8000-000000000001"
}

// renderCluster makes the objects of root\MSCluster: one cluster of all hosts of the site.
func (h *Host) renderCluster(g *graph) {
	add := func(class, name string, pairs ...any) {
		in := cim.NewInstance(class, append(pairs, "Name", name)...)
		in.Path = cim.Path{Host: h.Conf.Name, Namespace: cluster, Class: class, Keys: []cim.Key{{Name: "Name", Value: name}}}
		g.add(in)
	}
	if len(h.site.hosts) < 2 {
		return
	}
	add("MSCluster_Cluster", "SIMCLUSTER", "Fqdn", "simcluster.sim.example", "SharedVolumesRoot", `C:\ClusterStorage`)
	for _, o := range h.site.hosts {
		add("MSCluster_Node", o.Conf.Name, "State", uint32(0))
	}
}

// groups makes the cluster's roles: every clustered VM of the site is one, and every node shows all of them.
func (h *Host) groups() *graph {
	g := newGraph(h.Conf.Name, h.site.schema)
	if len(h.site.hosts) < 2 {
		return g
	}
	for _, o := range h.site.hosts {
		for _, vm := range o.VMs() {
			st := vm.State()
			if !st.Clustered || st.Planned {
				continue
			}
			state := uint32(0) // online
			if st.Power == model.Off || st.Power == model.Saved {
				state = 1
			}
			in := cim.NewInstance("MSCluster_ResourceGroup", "Name", st.Name, "Caption", st.Name, "GroupType", uint32(groupVM), "Id", strings.ToLower(st.ID),
				"OwnerNode", o.Conf.Name, "State", state, "PersistentState", 1-state, "Priority", uint32(2000))
			in.Path = cim.Path{Host: h.Conf.Name, Namespace: cluster, Class: in.Class, Keys: []cim.Key{{Name: "Name", Value: st.Name}}}
			node := cim.Path{Host: h.Conf.Name, Namespace: cluster, Class: "MSCluster_Node", Keys: []cim.Key{{Name: "Name", Value: o.Conf.Name}}}
			g.link("MSCluster_NodeToActiveGroup", "GroupComponent", node, "PartComponent", g.add(in))
		}
	}
	return g
}

// groupVM is MSCluster_ResourceGroup.GroupType of a virtual machine.
const groupVM = 111

// jobGraph makes the objects of the host's jobs, as they are now.
func (h *Host) jobGraph() *graph {
	g := newGraph(h.Conf.Name, h.site.schema)
	for _, j := range h.jobs.List() {
		p := g.add(h.job(j))
		affected := j.Affected
		if d, ok := j.Spec.Data.(*jobData); ok && !d.target.IsZero() {
			affected = append([]any{d.target}, affected...)
		}
		for _, a := range affected {
			if to, ok := a.(cim.Path); ok {
				g.link("Msvm_AffectedJobElement", "AffectedElement", to, "AffectingElement", p, "ElementEffects", []uint16{5})
			}
		}
	}
	return g
}

// jobData is what this package notes at a job.
type jobData struct {
	target cim.Path
	extra  []any // properties of the job's class
}

func (h *Host) jobPath(j jobs.Job) cim.Path { return h.byID(j.Spec.Class, j.ID) }

// job renders a job.
func (h *Host) job(j jobs.Job) *cim.Instance {
	status, text := []uint16{2}, "Job is running."
	state := j.State
	since := j.Started
	if j.Done() {
		since = j.Ended
		switch {
		case j.Failure == nil:
			text = "The job completed."
		case j.State == jobs.Warnings:
			status, text = []uint16{3}, "Job completed with warnings."
		default:
			status, text = []uint16{6}, "Job failed."
		}
	}
	elapsed := time.Since(j.Started)
	if j.Done() {
		elapsed = j.Ended.Sub(j.Started)
	}
	in := h.setting(j.Spec.Class, j.ID, "Caption", j.Spec.Caption, "Description", j.Spec.Caption, "ElementName", j.Spec.Caption, "Name", "Msvm_ConcreteJob", "JobState", state, "JobStatus", text,
		"OperationalStatus", status, "HealthState", uint16(5), "PercentComplete", j.Percent, "TimeSubmitted", cim.FormatTime(j.Started), "StartTime", cim.FormatTime(j.Started),
		"ElapsedTime", interval(elapsed), "TimeOfLastStateChange", cim.FormatTime(since), "TimeBeforeRemoval", interval(jobs.Keep), "DeleteOnCompletion", true, "ErrorCode", uint16(0))
	switch j.Spec.Class {
	case "Msvm_ConcreteJob", "Msvm_StorageJob":
		in.Set("JobType", j.Spec.Type)
	}
	in.Set("Cancellable", true)
	if d, ok := j.Spec.Data.(*jobData); ok {
		for i := 0; i+1 < len(d.extra); i += 2 {
			in.Set(d.extra[i].(string), d.extra[i+1])
		}
	}
	if f := j.Failure; f != nil {
		in.Set("ErrorCode", f.Code)
		in.Set("ErrorDescription", f.Text)
		if j.Spec.Class != "Msvm_StorageJob" {
			in.Set("ErrorSummaryDescription", f.Text)
		} else if f.Status != 0 {
			in.Set("JobCompletionStatusCode", f.Status)
		}
	}
	return in
}
