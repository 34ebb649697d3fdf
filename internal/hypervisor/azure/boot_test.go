package azure_test

import (
	"slices"
	"strings"
	"testing"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
)

func TestBootAndRemove(t *testing.T) {
	t.Parallel()
	s, p := newStage(t), twoDisks(t)
	before := s.resources()
	var done, total int64
	h := s.host(func(c *azure.Config, _ *arm.Options) {
		c.Progress = func(name string, d, n int64) {
			if name != "app-test" || d < done || d > n {
				t.Errorf("progress of %s: %d of %d after %d", name, d, n, done)
			}
			done, total = d, n
		}
	})
	ctx := t.Context()
	spec := p.spec("app-test")
	id, err := h.Boot(ctx, spec)
	ok(t, err)
	if total != spec.Disks[0].Size+spec.Disks[1].Size || done != total {
		t.Errorf("progress ended with %d of %d", done, total)
	}
	s.sameContent(t, "app-test", p)
	v, _ := s.cloud.VM(s.id(arm.TypeVM, "app-test"))
	if string(id) != v.VMID || v.Power != "running" || v.Machine.Generation != 2 || v.Starts != 1 {
		t.Errorf("VM %s: %+v", id, v)
	}
	if len(v.Machine.NICs) != 1 || v.Machine.NICs[0].Address != "10.1.2.4" { // db is before web
		t.Errorf("adapters %+v", v.Machine.NICs)
	}
	for _, r := range s.cloud.Resources() {
		if slices.Contains(before, r.ID) {
			continue
		}
		if r.Tags[arm.TagOwner] != spec.Owner || r.Tags[arm.TagVM] != spec.Name || r.Tags[arm.TagPurpose] != arm.PurposeTest {
			t.Errorf("%s has tags %v", r.ID, r.Tags)
		}
	}
	calls := len(s.cloud.Calls())
	again, err := h.Boot(ctx, spec)
	ok(t, err)
	if again != id {
		t.Errorf("a second Boot made %s, not %s", again, id)
	}
	for _, c := range s.cloud.Calls()[calls:] {
		if changing(c) {
			t.Errorf("a second Boot called %s", callText(c))
		}
	}
	inv, err := h.Inventory(ctx)
	ok(t, err)
	if len(inv) != 1 || inv[0].ID != id || inv[0].Name != spec.Name || !inv[0].Running || inv[0].Generation != 2 || inv[0].CPUs < 2 || inv[0].MemoryMB < 3000 || inv[0].OSType != "Linux" {
		t.Fatalf("inventory %+v", inv)
	}
	if d := inv[0].Disks; len(d) != 2 || d[0].ID != "vda" || !d[0].Boot || d[0].Size != 22*mib || d[1].ID != "vdb" || d[1].Boot || d[1].Unreplicatable != "" {
		t.Errorf("disks %+v", d)
	}
	if n := inv[0].NICs; len(n) != 1 || n[0].Network != "prod" || !slices.Equal(n[0].IPs, []string{"10.1.2.4"}) || len(n[0].MAC) != 17 {
		t.Errorf("adapters %+v", n)
	}
	var local [2]int64
	ok(t, h.MakeLocal(ctx, id, func(d, n int64) { local = [2]int64{d, n} }))
	if local != [2]int64{42 * mib, 42 * mib} {
		t.Errorf("MakeLocal told %v", local)
	}
	wantCode(t, h.Remove(ctx, id, "somebody"), dr.CodeOperationNotAllowed)
	ok(t, h.Remove(ctx, id, spec.Owner))
	s.unchanged(t, before)
	ok(t, h.Remove(ctx, id, spec.Owner))
	ok(t, h.Remove(ctx, "", spec.Owner))
	_, err = h.State(ctx, id)
	wantCode(t, err, dr.CodeVMNotFound)
	if strings.Contains(s.logged(), "sig=") {
		t.Error("a signature was logged")
	}
}

// nicOf reads the network interface of a VM from the simulator.
func (s *stage) nicsOf(t *testing.T, vm string) []azsim.MachineNIC {
	t.Helper()
	v, found := s.cloud.VM(s.id(arm.TypeVM, vm))
	if !found {
		t.Fatalf("there is no VM %s", vm)
	}
	return v.Machine.NICs
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	nics := []dr.NIC{{MAC: "00:15:5d:00:00:01"}, {MAC: "00:15:5d:00:00:02"}}
	for _, c := range []struct {
		name   string
		site   func(*arm.Config)
		change func(*hypervisor.BootSpec)
		want   []string // "subnet address" of each adapter
		vnets  int      // that are made
		code   dr.Code
	}{
		{name: "by name", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod", Subnet: "WEB"}}
		}, want: []string{"web 10.1.1.4"}},
		{name: "first in order", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod", Subnet: "none"}, {MAC: "00-15-5d-00-00-02", Network: "dr/prod", Subnet: "web"}}
		}, want: []string{"db 10.1.2.4", "web 10.1.1.4"}},
		{name: "site's subnet", site: func(c *arm.Config) { c.Network, c.Subnet = "prod", "web" }, want: []string{"web 10.1.1.4", "web 10.1.1.5"}},
		{name: "static", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000002", Network: "prod", IP: "10.1.1.77"}}
		}, want: []string{"web 10.1.1.77"}},
		{name: "other group", change: func(b *hypervisor.BootSpec) { b.Network = "shared/hub" }, want: []string{"apps 10.2.1.4", "apps 10.2.1.5"}},
		{name: "link down", change: func(b *hypervisor.BootSpec) { b.Network = "" }, want: []string{"isolated-a 10.254.254.4", "isolated-a 10.254.254.5"}, vnets: 1},
		{name: "isolated", change: func(b *hypervisor.BootSpec) {
			b.Network = hypervisor.IsolatedNetwork
			b.Cloud.PublicIP = true
		}, want: []string{"isolated-a 10.254.254.4", "isolated-a 10.254.254.5"}, vnets: 1},
		{name: "isolated static", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: hypervisor.IsolatedNetwork, IP: "192.168.7.20"}, {MAC: "00155D000002", Network: hypervisor.IsolatedNetwork, IP: "172.16.0.2"}}
		}, code: dr.CodeAzureAddress},
		{name: "isolated static kept", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: hypervisor.IsolatedNetwork, IP: "192.168.7.20"}, {MAC: "00155D000002", Network: hypervisor.IsolatedNetwork, IP: "172.16.9.2"}}
		}, want: []string{"isolated-b 192.168.7.20", "isolated-a 172.16.9.2"}, vnets: 1},
		{name: "test network", site: func(c *arm.Config) { c.TestNetwork = "shared/hub" }, change: func(b *hypervisor.BootSpec) { b.Network = hypervisor.IsolatedNetwork },
			want: []string{"apps 10.2.1.4", "apps 10.2.1.5"}},
		{name: "no adapters", change: func(b *hypervisor.BootSpec) { b.Config.VM.NICs = nil }, want: []string{"db 10.1.2.4"}},
		{name: "two networks", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod"}, {MAC: "00155D000002", Network: "shared/hub"}}
		}, code: dr.CodeAzureConfiguration},
		{name: "isolated and not", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod"}, {MAC: "00155D000002", Network: hypervisor.IsolatedNetwork}}
		}, code: dr.CodeAzureConfiguration},
		{name: "no such network", change: func(b *hypervisor.BootSpec) { b.Network = "nowhere" }, code: dr.CodeAzureNotFound},
		{name: "address outside", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod", Subnet: "db", IP: "10.1.1.9"}}
		}, code: dr.CodeAzureAddress},
		{name: "same address", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod", IP: "10.1.1.9"}, {MAC: "00155D000002", Network: "prod", IP: "10.1.1.9"}}
		}, code: dr.CodeAzureAddress},
		{name: "no address", change: func(b *hypervisor.BootSpec) {
			b.Adapters = []hypervisor.BootNIC{{MAC: "00155D000001", Network: "prod", IP: "fe80::1"}}
		}, code: dr.CodeAzureAddress},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			if c.site != nil {
				c.site(&s.cfg)
			}
			before := s.resources()
			h := s.host()
			spec := hypervisor.BootSpec{Name: "vm1", Owner: "o", Network: "prod", Config: hypervisor.VMConfig{VM: dr.VM{NICs: nics}},
				Disks: []hypervisor.BootDisk{{ID: "vda", Size: 1 << 30, Path: "/x"}}} // empty disk
			if c.change != nil {
				c.change(&spec)
			}
			id, err := h.Boot(t.Context(), spec)
			if c.code != "" {
				wantCode(t, err, c.code, "vm1")
				s.unchanged(t, before)
				return
			}
			ok(t, err)
			var got []string
			for _, n := range s.nicsOf(t, "vm1") {
				got = append(got, n.Subnet[strings.LastIndexByte(n.Subnet, '/')+1:]+" "+n.Address)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("adapters are at %v, want %v", got, c.want)
			}
			vnets := 0
			for _, r := range s.cloud.Resources() {
				if r.Type == arm.TypeNetwork && r.Tags[arm.TagOwner] == "o" {
					vnets++
				}
				if r.Type == arm.TypePublicIP {
					t.Errorf("there is a public address %s", r.ID)
				}
			}
			if vnets != c.vnets {
				t.Errorf("%d networks were made, want %d", vnets, c.vnets)
			}
			ok(t, h.Remove(t.Context(), id, "o"))
			s.unchanged(t, before)
		})
	}
}
