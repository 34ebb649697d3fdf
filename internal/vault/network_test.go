package vault_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// boots records what a recovery host is told to boot.
func (s *site) boots() func() agentapi.BootPayload {
	var last agentapi.BootPayload
	s.dst.hook(agentapi.CmdBootPoint, func(c agentapi.Command) (any, error) {
		var p agentapi.BootPayload
		if err := json.Unmarshal(c.Payload, &p); err != nil {
			return nil, err
		}
		s.dst.mu.Lock()
		last, s.dst.booted = p, p
		s.dst.mu.Unlock()
		return s.dst.bootPoint(c)
	})
	return func() agentapi.BootPayload {
		s.t.Helper()
		s.run(s.failover(dr.KindUnplannedFailover))
		s.dst.mu.Lock()
		p := last
		s.dst.mu.Unlock()
		s.run(s.vault().CancelFailover(s.t.Context(), s.item, "test"))
		return p
	}
}

// lastBoot is what boots saw last.
func (s *site) lastBoot() agentapi.BootPayload {
	s.dst.mu.Lock()
	defer s.dst.mu.Unlock()
	return s.dst.booted
}

// A network mapping between sites without VMM decides where a VM is connected;
// without it the network of the same name does, as before.
func TestNetworkMappingOfSites(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		ctx := t.Context()
		v := s.vault()
		s.src.mu.Lock()
		for _, vm := range s.src.vms {
			vm.NICs = append(vm.NICs, agentapi.NIC{ID: "2", MAC: "52:54:00:00:00:02", Network: "other"})
		}
		s.src.networks = []agentapi.Network{{Name: "lan", Active: true}, {Name: "New Virtual Switch", Active: true}}
		s.src.mu.Unlock()
		if err := s.src.sendInventory(); err != nil {
			t.Fatal(err)
		}
		s.protect()
		boot := s.boots()
		if p := boot(); p.Network != "lan" || p.Adapters != nil {
			t.Errorf("without a mapping: network %q, adapters %+v", p.Network, p.Adapters)
		}

		nets := must[[]vault.Network](t)(v.NetworksOf(ctx, s.primary.ID))
		if len(nets) != 3 || nets[2].Name != "other" || nets[2].Hosts != nil || nets[1].ID != "lan" || !strings.HasPrefix(nets[0].ID, "net-") || nets[0].Name != "New Virtual Switch" || !slices.Equal(nets[1].Hosts, []string{"src1"}) {
			t.Fatalf("networks %+v", nets)
		}
		m := vault.NetworkMapping{Fabric: s.primary.ID, Network: "LAN", Name: "lan-to-lab", TargetFabric: s.recovery.ID, Target: "Lab"}
		s.run(v.CreateNetworkMapping(ctx, m, "test"))
		s.run(v.CreateNetworkMapping(ctx, m, "test")) // a lost answer
		want := []agentapi.BootAdapter{{MAC: "52:54:00:00:00:01", ID: "52:54:00:00:00:01", Network: "lab"}, {MAC: "52:54:00:00:00:02", ID: "2"}}
		if p := boot(); p.Network != "lab" || !slices.Equal(p.Adapters, want) {
			t.Errorf("mapped: network %q, adapters %+v", p.Network, p.Adapters)
		}

		// What somebody chose for the item counts more.
		s.run(v.Update(ctx, vault.UpdateRequest{Item: s.item, Settings: func(x *dr.ItemSettings) { x.Network = "lan" }, By: "test"}))
		if p := boot(); p.Network != "lan" || p.Adapters != nil {
			t.Errorf("the item's own network: %q, adapters %+v", p.Network, p.Adapters)
		}
		s.run(v.Update(ctx, vault.UpdateRequest{Item: s.item, Settings: func(x *dr.ItemSettings) { x.Network = "" }, By: "test"}))

		for name, bad := range map[string]struct {
			m    vault.NetworkMapping
			kind dr.Kind
			code dr.Code
		}{
			"the same name, another target": {vault.NetworkMapping{Name: "lan-to-lab", Network: "lan", TargetFabric: s.recovery.ID, Target: "lan"}, dr.KindConflict, dr.CodeAlreadyExists},
			"a second one to this site":     {vault.NetworkMapping{Name: "again", Network: "lan", TargetFabric: s.recovery.ID, Target: "lan"}, dr.KindConflict, dr.CodeAlreadyExists},
			"no such network":               {vault.NetworkMapping{Name: "x", Network: "nope", TargetFabric: s.recovery.ID, Target: "lan"}, dr.KindNotFound, dr.CodeNotFound},
			"no such target":                {vault.NetworkMapping{Name: "x", Network: "other", TargetFabric: s.recovery.ID, Target: "nope"}, dr.KindInvalid, dr.CodeNotFound},
			"itself":                        {vault.NetworkMapping{Name: "x", Network: "lan", TargetFabric: s.primary.ID, Target: "lan"}, dr.KindInvalid, ""},
			"a bridge that no host offers":  {vault.NetworkMapping{Name: "x", Network: "lan", TargetFabric: s.primary.ID, Target: "other"}, dr.KindInvalid, dr.CodeNotFound},
			"a name that is none":           {vault.NetworkMapping{Name: "a/b", Network: "other", TargetFabric: s.recovery.ID, Target: "lan"}, dr.KindInvalid, dr.CodeNameInvalid},
			"a cloud id that is none":       {vault.NetworkMapping{Name: "x", Network: "other", Target: "/subscriptions/x"}, dr.KindInvalid, ""},
		} {
			bad.m.Fabric = s.primary.ID
			if _, err := v.CreateNetworkMapping(ctx, bad.m, "test"); dr.KindOf(err) != bad.kind || dr.CodeOf(err) != bad.code {
				t.Errorf("%s: %v (kind %v, code %q)", name, err, dr.KindOf(err), dr.CodeOf(err))
			}
		}
		// Mapping to the cloud decides nothing here, and does not stand in the way.
		azure := vault.NetworkMapping{Fabric: s.primary.ID, Network: "lan", Name: "cloud", Target: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/vnet1"}
		s.run(v.CreateNetworkMapping(ctx, azure, "test"))
		m.Target = "lan"
		s.run(v.UpdateNetworkMapping(ctx, m, "test"))
		if p := boot(); p.Network != "lan" || len(p.Adapters) != 2 || p.Adapters[0].Network != "lan" {
			t.Errorf("changed: network %q, adapters %+v", p.Network, p.Adapters)
		}

		// A mapping to a network that is gone stops a failover before anything is changed.
		s.dst.mu.Lock()
		s.dst.networks = []agentapi.Network{{Name: "lab", Isolated: true, Active: true}, {Name: "lan"}}
		s.dst.mu.Unlock()
		if err := s.dst.sendInventory(); err != nil {
			t.Fatal(err)
		}
		before := s.it()
		id, err := s.failover(dr.KindUnplannedFailover)
		j := s.expect(dr.JobFailed, id, err)
		if e := j.Errors[len(j.Errors)-1]; e.Code != dr.CodeNetworkMapping || e.Task != "PrerequisitesCheck" || !strings.Contains(e.Message, "not active") {
			t.Errorf("failed with %+v", e)
		}
		if it := s.it(); it.Gen != before.Gen {
			t.Errorf("the source was fenced: generation %d, was %d", it.Gen, before.Gen)
		}
		s.run(v.RemoveNetworkMapping(ctx, s.primary.ID, "lan", "LAN-to-lab", "test"))
		if _, err := v.RemoveNetworkMapping(ctx, s.primary.ID, "lan", "lan-to-lab", "test"); dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("remove twice: %v", err)
		}
		s.dst.mu.Lock()
		s.dst.networks = []agentapi.Network{{Name: "lab", Isolated: true, Active: true}, {Name: "lan", Active: true}}
		s.dst.mu.Unlock()
		if err := s.dst.sendInventory(); err != nil {
			t.Fatal(err)
		}
		if p := boot(); p.Network != "lan" || p.Adapters != nil {
			t.Errorf("after removal: network %q, adapters %+v", p.Network, p.Adapters)
		}
		if all := must[[]vault.NetworkMapping](t)(v.NetworkMappings(ctx, "")); len(all) != 1 || all[0].Name != "cloud" {
			t.Errorf("left: %+v", all)
		}
	})
}

const (
	cloudA  = "c1000000-0000-4000-8000-00000000000a"
	cloudB  = "c1000000-0000-4000-8000-00000000000b"
	netCorp = "e2267b5c-2650-49bd-ab3f-d66aae694c06"
	netLab  = "93ce99d7-1219-4914-aa61-73fe5023988e"
	netProd = "77777777-1219-4914-aa61-73fe5023988e"
	logical = "10000000-0000-4000-8000-000000000001"
)

func primaryVMM() agentapi.VMMRequest {
	return agentapi.VMMRequest{Version: agentapi.VMMVersion, Server: "vmm01.corp.example", Product: "10.22", Clouds: []agentapi.VMMCloud{{ID: cloudA, Name: "Gold"}, {ID: cloudB, Name: "Silver"}, {ID: "../x", Name: "bad"}},
		Networks: []agentapi.VMMNetwork{{ID: netCorp, Name: "corp", Subnets: []agentapi.VMMSubnet{{Name: "web"}}}, {ID: netLab, Name: "lab"}},
		Storage:  []agentapi.VMMStorage{{ID: "8891569e-aaef-4a46-a4a0-78c14f2d7b09", Name: "fast"}},
		VMs: []agentapi.VMMVM{{ID: vmUUID, Name: "web1", Cloud: cloudA, Host: "src1", Adapters: []agentapi.VMMNIC{
			{ID: "b", MAC: "52:54:00:00:00:02", VMNetwork: netLab}, {ID: "a", MAC: "52:54:00:00:00:01", VMNetwork: netCorp, VMSubnet: "WEB"}}},
			{ID: "55555555-2222-3333-4444-555555555555", Name: "elsewhere", Cloud: "gone", Host: "no-agent"}}}
}

func recoveryVMM() agentapi.VMMRequest {
	return agentapi.VMMRequest{Version: agentapi.VMMVersion, Server: "vmm02.dr.example", Clouds: []agentapi.VMMCloud{{ID: "dddddddd-0000-4000-8000-000000000001", Name: "DR"}},
		Hosts: []agentapi.VMMHost{{ID: "h1", Name: "dst1.dr.example", Switches: []agentapi.VMMSwitch{{Name: "SETswitch", LogicalNetworks: []string{logical}}}}},
		Networks: []agentapi.VMMNetwork{{ID: netProd, Name: "prod", LogicalNetwork: logical, Isolation: "VLANNetwork",
			Subnets: []agentapi.VMMSubnet{{ID: "s2", Name: "web", CIDRs: []string{"192.0.2.0/24"}, VLAN: 20}, {ID: "s1", Name: "app", VLAN: 10}}}},
		Storage: []agentapi.VMMStorage{{ID: "11111111-aaef-4a46-a4a0-78c14f2d7b09", Name: "slow"}}}
}

// vmmScene is two VMM servers with a host each, and a recovery host of a third site.
func vmmScene(t *testing.T, w *world) (s *site, vmm1, vmm2 *agent) {
	t.Helper()
	ctx, v := t.Context(), w.vault()
	s = &site{world: w}
	key := func(site string) vault.RegistrationKey {
		return must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: site, By: "test"}))
	}
	for name, kind := range map[string]dr.FabricType{"Primary": dr.VMMSite, "Recovery": dr.VMMSite, "Other": dr.KVMSite} {
		w.run(v.CreateFabric(ctx, name, kind, "test"))
	}
	s.primary, s.recovery = ok(t, fst(v.Fabric(ctx, "Primary")), nil), ok(t, fst(v.Fabric(ctx, "Recovery")), nil)
	vmm1, vmm2 = w.newAgent("vmm01", key("Primary"), "vmm"), w.newAgent("vmm02", key("Recovery"), "vmm")
	s.src, s.dst = w.newAgent("src1", key("Primary"), "source"), w.newAgent("dst1", key("Recovery"), "recovery")
	other := w.newAgent("other1", key("Other"), "recovery")
	vm := testVM()
	vm.ID, vm.NICs[0].Network = vmUUID, "SETswitch"
	vm.NICs = append(vm.NICs, agentapi.NIC{ID: "2", MAC: "52-54-00-00-00-02", Network: "SETswitch"})
	s.src.addVM(vm)
	s.dst.networks = []agentapi.Network{{Name: "SETswitch", Active: true}}
	for _, a := range []*agent{s.src, s.dst, other} {
		a.loop()
	}
	for a, r := range map[*agent]agentapi.VMMRequest{vmm1: primaryVMM(), vmm2: recoveryVMM()} {
		if err := a.post(agentapi.PathVMM, r, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.until("inventory of both hosts", func() bool {
		vms, err := w.vault().VMs(ctx, s.primary.ID)
		nets, err2 := w.vault().Networks(ctx, s.recovery.ID)
		return err == nil && err2 == nil && len(vms) == 1 && len(nets) == 1
	})
	return s, vmm1, vmm2
}

// protectIn protects the VM by a mapping of its cloud to the recovery VMM server's.
func (s *site) protectIn(cloud string) {
	t, ctx, v := s.t, s.t.Context(), s.vault()
	t.Helper()
	s.run(v.SavePolicy(ctx, dr.Policy{Name: "gold", CopyFrequency: 30 * time.Second, Retention: time.Hour}, true, "test"))
	p := must[dr.Policy](t)(v.Policy(ctx, "gold"))
	target := "/x/replicationFabrics/recovery/replicationProtectionContainers/cloud_DDDDDDDD-0000-4000-8000-000000000001"
	s.run(v.CreateMapping(ctx, dr.ContainerMapping{Name: "a", Fabric: s.primary.ID, Container: s.primary.ContainerOf(cloud), Policy: p.ID, Target: target}, "test"))
	other := must[dr.Fabric](t)(v.Fabric(ctx, "Other"))
	s.run(v.CreateMapping(ctx, dr.ContainerMapping{Name: "b", Fabric: s.primary.ID, Container: s.primary.ContainerOf(cloudB), Policy: p.ID,
		Target: "/x/replicationFabrics/other/replicationProtectionContainers/" + other.ContainerName()}, "test"))
	if _, err := v.CreateMapping(ctx, dr.ContainerMapping{Name: "c", Fabric: s.primary.ID, Policy: p.ID, Target: strings.Replace(target, "DDDDDDDD", "eeeeeeee", 1)}, "test"); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a mapping to a cloud that does not exist: %v", err)
	}
	s.run(v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: vmUUID, VM: vmUUID, Policy: "gold", By: "test"}))
	it := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, vmUUID))
	s.item, s.machine = it.ID, string(it.Machine)
	s.until("protected", func() bool { return s.it().Protection == dr.Protected && s.it().Job == "" })
}

func TestVMMStory(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s, vmm1, vmm2 := vmmScene(t, w)
		ctx, v := t.Context(), s.vault()
		if clouds := must[[]string](t)(cloudNames(s)); !slices.Equal(clouds, []string{"Gold", "Silver"}) {
			t.Errorf("clouds %v", clouds)
		}
		if vm := must[dr.VM](t)(v.VM(ctx, s.primary.ID, vmUUID)); vm.Facts.Cloud != cloudA {
			t.Errorf("the VM is in cloud %q", vm.Facts.Cloud)
		}
		s.protectIn(cloudA)
		if it := s.it(); it.RecoveryFabric != s.recovery.ID {
			t.Errorf("recovers in %s: the mapping of another cloud was taken", it.RecoveryFabric)
		}

		boot := s.boots()
		if p := boot(); p.Network != "" || p.Adapters != nil {
			t.Errorf("not mapped: network %q, adapters %+v; want it disconnected", p.Network, p.Adapters)
		}
		m := vault.NetworkMapping{Fabric: s.primary.ID, Network: netCorp, Name: "corp", TargetFabric: s.recovery.ID, Target: netProd}
		s.run(v.CreateNetworkMapping(ctx, m, "test"))
		mac1, mac2 := "52:54:00:00:00:01", "52-54-00-00-00-02"
		if p := boot(); p.Network != "SETswitch" || !slices.Equal(p.Adapters, []agentapi.BootAdapter{
			{MAC: mac1, ID: mac1, Network: "SETswitch", Subnet: "web", VLAN: 20}, {MAC: mac2, ID: "2"}}) {
			t.Errorf("mapped: network %q, adapters %+v", p.Network, p.Adapters)
		}
		// A subnet of another name: the first one.
		r := primaryVMM()
		r.VMs[0].Adapters[1].VMSubnet = "dmz"
		if err := vmm1.post(agentapi.PathVMM, r, nil); err != nil {
			t.Fatal(err)
		}
		if p := boot(); len(p.Adapters) != 2 || p.Adapters[0].Subnet != "app" || p.Adapters[0].VLAN != 10 {
			t.Errorf("another subnet: %+v", p.Adapters)
		}
		// The target network goes away at the other VMM server.
		gone := recoveryVMM()
		gone.Networks = nil
		if err := vmm2.post(agentapi.PathVMM, gone, nil); err != nil {
			t.Fatal(err)
		}
		id, err := s.failover(dr.KindUnplannedFailover)
		if e := s.expect(dr.JobFailed, id, err).Errors; e[len(e)-1].Code != dr.CodeNetworkMapping {
			t.Errorf("a mapping to nowhere: %+v", e)
		}
		back := recoveryVMM()
		back.Hosts[0].Switches = nil
		if err := vmm2.post(agentapi.PathVMM, back, nil); err != nil {
			t.Fatal(err)
		}
		id, err = s.failover(dr.KindUnplannedFailover)
		if e := s.expect(dr.JobFailed, id, err).Errors; !strings.Contains(e[len(e)-1].Message, "no switch") {
			t.Errorf("a host without the network's switch: %+v", e)
		}
		s.run(v.RemoveNetworkMapping(ctx, s.primary.ID, netCorp, "corp", "test"))
		if p := boot(); p.Network != "" || p.Adapters != nil {
			t.Errorf("mapping removed: network %q, adapters %+v", p.Network, p.Adapters)
		}

		// Storage classifications are labels.
		sm := vault.StorageMapping{Fabric: s.primary.ID, Classification: "8891569E-aaef-4a46-a4a0-78c14f2d7b09", Name: "fast", TargetFabric: s.recovery.ID, Target: "11111111-aaef-4a46-a4a0-78c14f2d7b09"}
		s.run(v.CreateStorageMapping(ctx, sm, "test"))
		s.run(v.CreateStorageMapping(ctx, sm, "test"))
		sm.Target = "nope"
		if _, err := v.CreateStorageMapping(ctx, sm, "test"); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("a classification that does not exist: %v", err)
		}
		s.run(v.RemoveStorageMapping(ctx, s.primary.ID, sm.Classification, "FAST", "test"))

		// The VM moves to another cloud, and keeps its item and its protection.
		r.VMs[0].Cloud = cloudB
		for range 2 { // the same report again is no news
			if err := vmm1.post(agentapi.PathVMM, r, nil); err != nil {
				t.Fatal(err)
			}
		}
		moves := 0
		for _, e := range must[[]eventRow](t)(v.Events(ctx, "", 1000)) {
			if e.Kind == "vmCloud" && strings.Contains(e.Text, `from cloud "Gold" to cloud "Silver"`) {
				moves++
			}
		}
		if vm := must[dr.VM](t)(v.VM(ctx, s.primary.ID, vmUUID)); moves != 1 || vm.Facts.Cloud != cloudB {
			t.Errorf("%d moves are recorded, the VM is in %q", moves, vm.Facts.Cloud)
		}
		if it := s.it(); it.Protection != dr.Protected || it.ID != s.item {
			t.Errorf("after the move: %+v", it)
		}
		// The item's next failover goes where its new cloud's mapping leads.
		s.run(s.failover(dr.KindUnplannedFailover))
		if it := s.it(); it.RecoveryFabric == s.recovery.ID {
			t.Error("the mapping of the former cloud still decides")
		}
	})
}

func cloudNames(s *site) (names []string, err error) {
	clouds, err := s.vault().Clouds(s.t.Context(), s.primary.ID)
	for _, c := range clouds {
		names = append(names, c.Name)
	}
	return names, err
}

func TestVMMReportRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx, v := t.Context(), w.vault()
		w.run(v.CreateFabric(ctx, "vmm", dr.VMMSite, "test"))
		w.run(v.CreateFabric(ctx, "kvm", dr.KVMSite, "test"))
		key := must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "vmm", By: "test"}))
		kvmKey := must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "kvm", By: "test"}))
		a, host, foreign := w.newAgent("vmm01", key, "vmm"), w.newAgent("hv1", key, "source"), w.newAgent("k1", kvmKey, "source")
		newer := primaryVMM()
		newer.Version++
		for name, c := range map[string]struct {
			a    *agent
			r    agentapi.VMMRequest
			kind dr.Kind
		}{
			"a newer version":  {a, newer, dr.KindUnsupported},
			"a host":           {host, primaryVMM(), dr.KindForbidden},
			"of another site":  {foreign, primaryVMM(), dr.KindForbidden},
			"too many objects": {a, agentapi.VMMRequest{Version: 1, Storage: make([]agentapi.VMMStorage, 100_001)}, dr.KindInvalid},
		} {
			if err := c.a.post(agentapi.PathVMM, c.r, nil); dr.KindOf(err) != c.kind {
				t.Errorf("%s: %v", name, err)
			}
		}
		f := must[dr.Fabric](t)(v.Fabric(ctx, "vmm"))
		if s, err := v.VMM(ctx, f.ID); err != nil || s.Version != 0 {
			t.Errorf("a refused report was taken: %+v, %v", s, err)
		}
		b := &agent{t: t, w: w, host: "k2", roles: []string{"vmm"}}
		if _, err := b.enroll(kvmKey); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("the role vmm in a KVM site: %v", err)
		}
		if err := a.post(agentapi.PathVMM, primaryVMM(), nil); err != nil {
			t.Fatal(err)
		}
		w.run(v.RemoveFabric(ctx, "vmm", true, "test"))
	})
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		ctx, v := t.Context(), s.vault()
		asked := s.src.count(agentapi.CmdRefreshInventory)
		j := s.run(v.Discover(ctx, "primary", s.primary.ContainerName(), "WEB1", "test"))
		if j.Outcome["vm"] != vmUUID || j.Outcome["hosts"] != "1" {
			t.Errorf("outcome %v", j.Outcome)
		}
		if n := s.src.count(agentapi.CmdRefreshInventory); n != asked+1 {
			t.Errorf("the host was asked %d times", n-asked)
		}
		s.run(v.Discover(ctx, "Primary", s.primary.ContainerName(), "", "test"))
		id, err := v.Discover(ctx, "Primary", s.primary.ContainerName(), "nobody", "test")
		if j := s.expect(dr.JobFailed, id, err); j.Errors[len(j.Errors)-1].Code != dr.CodeVMNotFound {
			t.Errorf("a VM that is not there: %+v", j.Errors)
		}
		// A new VM is there after the job, not only at the next inventory.
		s.src.addVM(agentapi.VM{ID: "22222222-2222-3333-4444-555555555555", Name: "fresh"})
		s.run(v.Discover(ctx, "Primary", s.primary.ContainerName(), "fresh", "test"))
		// The only host fails.
		s.src.hook(agentapi.CmdRefreshInventory, func(agentapi.Command) (any, error) {
			return nil, dr.New(dr.KindPrecondition, dr.CodeVMMModuleMissing, "sim", "no module")
		})
		id, err = v.Discover(ctx, "Primary", s.primary.ContainerName(), "", "test")
		if j := s.expect(dr.JobFailed, id, err); !strings.Contains(j.Errors[len(j.Errors)-1].Message, "no module") {
			t.Errorf("no host answers: %+v", j.Errors)
		}
	})
}
