package machine

import (
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
)

func vm(change func(v *dr.VM)) dr.VM {
	v := dr.VM{ID: "v", Name: "db01", Fabric: "s", Agent: "h", Running: true, Generation: 2, CPUs: 2, MemoryMB: 4096, Disks: []dr.Disk{{ID: "os", Path: `C:\os.vhdx`, Format: "vhdx", Size: 1 << 30, Boot: true}},
		Facts: dr.VMFacts{Version: "9.0", GuestTools: "ok", SecureBoot: true}}
	if change != nil {
		change(&v)
	}
	return v
}

func TestJudge(t *testing.T) {
	t.Parallel()
	host := dr.Provider{ID: "h", Host: "hv1", Roles: []dr.AgentRole{dr.RoleSource}}
	shared := dr.Disk{ID: "q", Path: `C:\q.vhds`, Format: "vhdx", Size: 1 << 30, Shared: true}
	for _, c := range []struct {
		what   string
		change func(v *dr.VM)
		site   dr.FabricType
		host   dr.Provider
		state  string
		say    string // in a stop or a note
		way    string
	}{
		{"ready", nil, dr.HyperVSite, host, "Ready", "", ""},
		{"old configuration", func(v *dr.VM) { v.Facts.Version = "5.0" }, dr.HyperVSite, host, "Not ready", "change tracking needs 6.2", "Update-VMVersion"},
		{"a machine type is no configuration version", func(v *dr.VM) { v.Facts.Version = "5.0" }, dr.KVMSite, host, "Ready", "", ""},
		{"replicated", func(v *dr.VM) { v.Facts.Replicated = "Hyper-V Replica" }, dr.HyperVSite, host, "Not ready", "already replicated by Hyper-V Replica", "Remove that replication"},
		{"a shared disk beside a good one", func(v *dr.VM) { v.Disks = append(v.Disks, shared) }, dr.HyperVSite, host, "Ready with notes", "is shared with other VMs", "Exclude the disk"},
		{"only a shared disk", func(v *dr.VM) { v.Disks = []dr.Disk{shared} }, dr.HyperVSite, host, "Not ready", "no disk that can be replicated", ""},
		{"no disk", func(v *dr.VM) { v.Disks = nil }, dr.HyperVSite, host, "Not ready", "no disk that can be replicated", ""},
		{"off", func(v *dr.VM) { v.Running = false }, dr.HyperVSite, host, "Ready with notes", "begins when it runs", ""},
		{"gone", func(v *dr.VM) { v.Gone = true }, dr.HyperVSite, host, "Not ready", "does not report it any more", "Start discovery"},
		{"no host", nil, dr.HyperVSite, dr.Provider{}, "Not ready", "not registered any more", "Register"},
		{"not a source", nil, dr.HyperVSite, dr.Provider{ID: "h", Host: "hv1"}, "Not ready", "source role", "--role source"},
		{"a guest without VSS can be protected", func(v *dr.VM) { v.Facts.AppConsistent = "no contact" }, dr.HyperVSite, host, "Ready", "", ""},
	} {
		e := &estate.Estate{Fabric: map[dr.FabricID]dr.Fabric{"s": {ID: "s", Type: c.site}}, Host: map[dr.AgentID]dr.Provider{}}
		if c.host.ID != "" {
			e.Host["h"] = c.host
		}
		r := Judge(vm(c.change), e, func(dr.Provider) bool { return true })
		if r.State.Text != c.state || r.Ready() != (c.state != "Not ready") {
			t.Errorf("%s: %s (%v %v), want %s", c.what, r.State.Text, r.Stops, r.Notes, c.state)
		}
		all := append(slices.Clone(r.Stops), r.Notes...)
		if c.say == "" && len(all) > 0 || c.say != "" && !slices.ContainsFunc(all, func(x Reason) bool { return strings.Contains(x.Text, c.say) && strings.Contains(x.WayOut, c.way) }) {
			t.Errorf("%s: %q, want %q and %q", c.what, all, c.say, c.way)
		}
	}
	e := &estate.Estate{Fabric: map[dr.FabricID]dr.Fabric{}, Host: map[dr.AgentID]dr.Provider{"h": host}, Items: []dr.ProtectedItem{{ID: "i", Fabric: "s", VM: "v", Protection: dr.Protected}}}
	if r := Judge(vm(nil), e, func(dr.Provider) bool { return false }); r.Item != "i" || r.Ready() || r.State.Text != "Protected" || len(r.Notes) != 1 {
		t.Errorf("protected: %+v", r)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what   string
		change func(v *dr.VM)
		site   dr.FabricType
		fact   string
		want   string // state, text and sub in one; "-" = the fact is not there
	}{
		{"generation", nil, dr.HyperVSite, "Generation", "2 UEFI, secure boot on"},
		{"secure boot off", func(v *dr.VM) { v.Facts.SecureBoot = false }, dr.HyperVSite, "Generation", "2 UEFI, secure boot off"},
		{"secure boot not told", func(v *dr.VM) { v.Facts = dr.VMFacts{Cloud: "c"} }, dr.HyperVSite, "Generation", "2 UEFI"},
		{"BIOS", func(v *dr.VM) { v.Generation = 1 }, dr.HyperVSite, "Generation", "1 BIOS, no secure boot"},
		{"services", nil, dr.HyperVSite, "Integration services", "OK"},
		{"services degraded", func(v *dr.VM) { v.Facts.GuestTools = "degraded" }, dr.HyperVSite, "Integration services", "Degraded"},
		{"guest agent", nil, dr.KVMSite, "Guest agent", "OK"},
		{"guest agent not told", func(v *dr.VM) { v.Facts = dr.VMFacts{} }, dr.KVMSite, "Guest agent", "not known"},
		{"version", nil, dr.HyperVSite, "Configuration version", "9.0"},
		{"version not told", func(v *dr.VM) { v.Facts.Version = "" }, dr.HyperVSite, "Configuration version", "not known"},
		{"machine type", nil, dr.KVMSite, "Machine type", "9.0"},
		{"consistency", nil, dr.HyperVSite, "App-consistent points", "Possible"},
		{"consistency refused", func(v *dr.VM) { v.Facts.AppConsistent = "no contact" }, dr.HyperVSite, "App-consistent points", "Not possible now No contact. Repair the guest's snapshot service or guest agent; crash-consistent points work without."},
		{"consistency not told", func(v *dr.VM) { v.Facts = dr.VMFacts{Cloud: "c"} }, dr.VMMSite, "App-consistent points", "not known"},
		{"consistency of a VM that is off", func(v *dr.VM) { v.Running = false }, dr.HyperVSite, "App-consistent points", "not known while it is off"},
		{"consistency without services", func(v *dr.VM) { v.Facts.GuestTools = "absent" }, dr.HyperVSite, "App-consistent points", "not known"},
		{"checkpoints", func(v *dr.VM) { v.Facts.Checkpoints = 3 }, dr.HyperVSite, "Checkpoints", "3 the replica has the current state, not them"},
		{"no checkpoints", nil, dr.HyperVSite, "Checkpoints", "None"},
		{"checkpoints not told", func(v *dr.VM) { v.Facts = dr.VMFacts{} }, dr.KVMSite, "Checkpoints", "not known"},
		{"clustered", func(v *dr.VM) { v.Facts.Clustered = true }, dr.HyperVSite, "Clustered", "Yes a role of a failover cluster: it may move by itself"},
		{"not clustered, or not told", nil, dr.HyperVSite, "Clustered", "-"},
		{"cloud", nil, dr.VMMSite, "Cloud", "Gold"},
		{"no cloud without VMM", nil, dr.HyperVSite, "Cloud", "-"},
		{"system", func(v *dr.VM) { v.OSType, v.Facts.OSName, v.Facts.OSVersion = "Windows", "Windows Server 2022", "10.0" }, dr.HyperVSite, "Operating system", "Windows Server 2022 10.0"},
		{"system by type", func(v *dr.VM) { v.OSType = "Linux" }, dr.HyperVSite, "Operating system", "Linux"},
		{"memory", func(v *dr.VM) { v.Facts.DynamicMemory = true }, dr.HyperVSite, "Machine", "2 vCPU, 4096 MiB dynamic memory"},
	} {
		got := "-"
		for _, f := range Describe(vm(c.change), c.site, "Gold").List {
			if f.Name == c.fact {
				var parts []string
				if f.State != nil {
					parts = append(parts, f.State.Text)
				}
				got = strings.Join(slices.DeleteFunc(append(parts, f.Text, f.Sub), func(s string) bool { return s == "" }), " ")
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	f := Describe(vm(func(v *dr.VM) {
		v.Disks = append(v.Disks, dr.Disk{ID: "raw", Path: "/dev/sdb", Format: "raw", Size: 1, PassThru: true}, dr.Disk{ID: "b", Path: `D:\b.vhd`, Format: "vhd", Size: 1, Unreplicatable: "VHD"})
	}), dr.HyperVSite, "")
	if len(f.Disks) != 3 || f.Disk("os").Problem != "" || !strings.Contains(f.Disk("raw").WayOut, "exclude the disk") || !strings.Contains(f.Disk("b").WayOut, "Convert-VHD") || f.Disk("none") != nil {
		t.Errorf("%+v", f.Disks)
	}
}
