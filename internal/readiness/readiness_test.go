package readiness

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

var now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// good is a VM that every target takes.
func good() dr.VM {
	return dr.VM{ID: "v", Name: "web-1", Running: true, Generation: 1, OSType: "Linux", Facts: dr.VMFacts{Version: "9.0", GuestTools: "ok"},
		Disks: []dr.Disk{{ID: "a", Path: `C:\a.vhdx`, Format: "vhdx", Size: 40 << 30, Boot: true, Controller: "scsi", Sector: 512, Chain: 1}, {ID: "b", Path: `C:\b.vhdx`, Format: "vhdx", Size: 100 << 30, Controller: "scsi"}}}
}

func TestGoodVMHasNoFindings(t *testing.T) {
	t.Parallel()
	for _, p := range Profiles() {
		if f := CheckVM(good(), p, p.Name == "kvm"); len(f) > 0 {
			t.Errorf("%s: %+v", p.Name, f)
		}
	}
}

// TestRules breaks one rule at a time and wants exactly that finding.
func TestRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rule   string
		sev    Severity
		target string
		change func(vm *dr.VM)
	}{
		"pass-through":      {"pass-through", Blocks, "hyperv", func(vm *dr.VM) { vm.Disks[1].PassThru = true }},
		"shared":            {"shared-disk", Blocks, "azure", func(vm *dr.VM) { vm.Disks[1].Shared = true }},
		"vhd":               {"vhd", Blocks, "azure", func(vm *dr.VM) { vm.Disks[0].Format, vm.Disks[0].Unreplicatable = "vhd", "it is a VHD" }},
		"raw":               {"not-trackable", Blocks, "kvm", func(vm *dr.VM) { vm.Disks[0].Unreplicatable = "raw" }},
		"no size":           {"size-unknown", Blocks, "azure", func(vm *dr.VM) { vm.Disks[1].Size = 0 }},
		"big OS disk":       {"os-disk-size", Blocks, "azure", func(vm *dr.VM) { vm.Disks[0].Size = 2048 << 30 }},
		"big gen 2 OS disk": {"os-disk-size", Blocks, "azure", func(vm *dr.VM) { vm.Generation, vm.OSType, vm.Disks[0].Size = 2, "Windows", 301<<30 }},
		"big data disk":     {"data-disk-size", Blocks, "azure", func(vm *dr.VM) { vm.Disks[1].Size = 4096 << 30 }},
		"4K":                {"sector-4k", Blocks, "azure", func(vm *dr.VM) { vm.Disks[1].Sector = 4096 }},
		"chain":             {"chain", Warns, "azure", func(vm *dr.VM) { vm.Disks[1].Chain = 9 }},
		"no disks":          {"no-disk", Blocks, "kvm", func(vm *dr.VM) { vm.Disks = nil }},
		"no OS disk":        {"os-disk-count", Warns, "hyperv", func(vm *dr.VM) { vm.Disks[0].Boot = false }},
		"17 data disks": {"data-disk-count", Blocks, "azure", func(vm *dr.VM) {
			for range 16 {
				vm.Disks = append(vm.Disks, vm.Disks[1])
			}
		}},
		"name":          {"name", Warns, "azure", func(vm *dr.VM) { vm.Name = "Büro [1]" }},
		"gen 2 Linux":   {"gen2-linux", Warns, "azure", func(vm *dr.VM) { vm.Generation = 2 }},
		"version":       {"version", Blocks, "hyperv", func(vm *dr.VM) { vm.Facts.Version = "5.0" }},
		"replicated":    {"replicated", Blocks, "hyperv", func(vm *dr.VM) { vm.Facts.Replicated = "Hyper-V Replica" }},
		"VSS":           {"app-consistent", Warns, "hyperv", func(vm *dr.VM) { vm.Facts.AppConsistent = "no contact" }},
		"IDE only":      {"ide-only", Notes, "hyperv", func(vm *dr.VM) { vm.Disks[0].Controller, vm.Disks[1].Controller = "ide", "ide" }},
		"off":           {"off", Notes, "azure", func(vm *dr.VM) { vm.Running = false }},
		"IPv6":          {"ipv6", Notes, "azure", func(vm *dr.VM) { vm.NICs = []dr.NIC{{ID: "n", IPs: []string{"fe80::1", "2001:db8::1"}}} }},
		"checkpoints":   {"checkpoints", Notes, "azure", func(vm *dr.VM) { vm.Facts.Checkpoints = 2 }},
		"other drivers": {"drivers", Notes, "kvm", func(*dr.VM) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := ProfileByName(c.target)
			if err != nil {
				t.Fatal(err)
			}
			vm := good()
			kvm := p.Name == "kvm" && c.rule != "drivers"
			c.change(&vm)
			got := CheckVM(vm, p, kvm)
			if len(got) != 1 || got[0].Rule != c.rule || got[0].Severity != c.sev || got[0].Reason == "" || got[0].WayOut == "" {
				t.Fatalf("%+v", got)
			}
			if _, ok := dr.Lookup(got[0].Code); got[0].Code != "" && !ok {
				t.Errorf("code %s is none", got[0].Code)
			}
		})
	}
	if _, err := ProfileByName("moon"); dr.KindOf(err) != dr.KindInvalid {
		t.Error(err)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	azure := Profiles()[0]
	bad := good()
	bad.Name, bad.Agent, bad.Disks[0].Sector = "=evil()", "h1", 4096
	gone := good()
	gone.Gone = true
	r := CheckSite("Berlin", []dr.VM{bad, good(), gone}, azure, false, map[dr.AgentID]string{"h1": "hv1"}, now)
	if r.Ready != 1 || r.Blocked != 1 || len(r.VMs) != 2 || r.VMs[0].Host != "hv1" || r.VMs[1].Findings == nil || r.VMs[1].Size != 140<<30 {
		t.Fatalf("%+v", r)
	}
	r.Practices = Practices(Estate{}, now)
	var j, c, h bytes.Buffer
	if err := r.WriteJSON(&j); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(j.Bytes(), &back); err != nil || back.Version != 1 || len(back.VMs) != 2 {
		t.Fatalf("%+v %v", back, err)
	}
	if err := r.WriteCSV(&c); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&c).ReadAll()
	if err != nil || len(rows) != 4 || rows[1][0] != "'=evil()" || rows[1][5] != "false" || rows[3][5] != "true" {
		t.Fatalf("%q %v", rows, err)
	}
	r.VMs[0].Name = "<script>"
	if err := r.WriteHTML(&h); err != nil || strings.Contains(h.String(), "<script>") || !strings.Contains(h.String(), "Best practices") {
		t.Fatalf("%v %s", err, h.String())
	}
}

// TestPractices wants each rule met, not met and named by what does not meet it.
func TestPractices(t *testing.T) {
	t.Parallel()
	window, err := dr.ParseWindow(dr.DefaultResyncWindow)
	if err != nil {
		t.Fatal(err)
	}
	item := func() Item {
		return Item{Name: "web", VM: good(), Initial: true, LastTest: now.Add(-time.Hour), Network: "prod", Failover: dr.FailoverNone, Test: dr.TestNone,
			Policy: dr.Policy{AppFrequency: time.Hour, ResyncAuto: dr.ResyncInWindow, ResyncWindow: window}, StaticIP: true}
	}
	estate := func() Estate {
		return Estate{Hosts: []Host{{Name: "hv1", Connected: true, Roles: []dr.AgentRole{dr.RoleSource}, Limited: true, CertExpires: now.Add(720 * time.Hour)},
			{Name: "dr1", Connected: true, Roles: []dr.AgentRole{dr.RoleRecovery}}}, Items: []Item{item()}}
	}
	for _, p := range Practices(estate(), now) {
		if p.Status != Met || p.Detail == "" {
			t.Errorf("%s: %+v", p.Rule, p)
		}
	}
	for rule, change := range map[string]func(e *Estate){
		"recovery-host":        func(e *Estate) { e.Hosts = e.Hosts[:1] },
		"agents-everywhere":    func(e *Estate) { e.Hosts[0].Connected = false },
		"certificates":         func(e *Estate) { e.Hosts[0].CertExpires = now.Add(time.Hour) },
		"throttle":             func(e *Estate) { e.Hosts[0].Limited = false },
		"vss":                  func(e *Estate) { e.Items[0].VM.Facts.AppConsistent = "lost" },
		"integration-services": func(e *Estate) { e.Items[0].VM.Facts.GuestTools = "absent" },
		"vhdx":                 func(e *Estate) { e.Items[0].VM.Disks[1].Format = "vhd" },
		"paging-disks":         func(e *Estate) { e.Items[0].VM.Disks[1].Path = `C:\vm\PageFile.vhdx` },
		"paused":               func(e *Estate) { e.Items[0].Paused = true },
		"tested":               func(e *Estate) { e.Items[0].LastTest = time.Time{} },
		"tested-monthly":       func(e *Estate) { e.Items[0].LastTest = now.Add(-40 * 24 * time.Hour) },
		"resync-window":        func(e *Estate) { e.Items[0].Policy.ResyncAuto = dr.ResyncNow },
		"failover-network":     func(e *Estate) { e.Items[0].Network = "" },
		"finish-failovers":     func(e *Estate) { e.Items[0].Failover = dr.FailoverCommitPending },
		"clean-tests":          func(e *Estate) { e.Items[0].Test = dr.TestWaiting },
	} {
		e := estate()
		change(&e)
		all := Practices(e, now)
		i := slices.IndexFunc(all, func(p Practice) bool { return p.Rule == rule })
		if i < 0 || all[i].Status != NotMet || all[i].Remedy == "" || rule != "recovery-host" && len(all[i].Objects) != 1 {
			t.Errorf("%s: %+v", rule, all)
		}
		for _, p := range all {
			if p.Rule != rule && p.Status == NotMet {
				t.Errorf("%s also breaks %s", rule, p.Rule)
			}
		}
	}
	for _, p := range Practices(Estate{}, now) {
		if p.Status == NotMet && p.Rule != "recovery-host" {
			t.Errorf("of an empty estate %s is not met", p.Rule)
		}
	}
}
