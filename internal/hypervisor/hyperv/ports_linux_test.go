package hyperv_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
)

var threeMACs = []string{"00155D010101", "00155D010102", "00155D010103"}

// withNICs is a host with these switches and a VM with three adapters.
func withNICs(switches ...hvsim.Switch) rigOption {
	return func(c *hvsim.Config, s *hvsim.VMSpec) {
		c.Inline = true
		c.Hosts[0].Switches = append(c.Hosts[0].Switches, switches...)
		s.NICs = nil
		for _, m := range threeMACs {
			s.NICs = append(s.NICs, hvsim.NICSpec{Switch: "External", MAC: m})
		}
	}
}

// boot boots a recovery VM on an empty disk and returns what the host and the inventory say of it.
func (r *rig) boot(t testing.TB, h *hyperv.Host, edit func(*hypervisor.BootSpec)) (model.State, dr.VM) {
	t.Helper()
	cfg, err := h.Config(t.Context(), r.id())
	must(t, err)
	spec := hypervisor.BootSpec{Name: "rec", Owner: "me", Config: cfg, Disks: []hypervisor.BootDisk{{ID: diskA, Size: 4 << 20, Path: filepath.Join(r.dir, "H1", "C", "rec", "a.vhdx")}}}
	edit(&spec)
	id, err := h.Boot(t.Context(), spec)
	must(t, err)
	list, err := h.Inventory(t.Context())
	must(t, err)
	i := slices.IndexFunc(list, func(v dr.VM) bool { return v.ID == id })
	if i < 0 {
		t.Fatalf("the inventory lacks the recovery VM %s", id)
	}
	return r.sim.VM(strings.ToUpper(string(id))).State(), list[i]
}

// TestBootAdapters: each adapter of a recovery VM is where the plan wants it.
func TestBootAdapters(t *testing.T) {
	t.Parallel()
	r := newRig(t, withNICs(hvsim.Switch{Name: "Test LAN", Kind: "external"}, hvsim.Switch{Name: "Other", Kind: "internal"}))
	h := r.open(t)
	_, vm := r.boot(t, h, func(s *hypervisor.BootSpec) {
		s.KeepUUID = false
		s.Network = "External" // does not count beside Adapters
		s.Adapters = []hypervisor.BootNIC{{MAC: "00-15-5d-01-01-01", Network: "Test LAN", VLAN: 42}, {MAC: "00:15:5D:01:01:03", Network: "Other"}}
	})
	want := []struct {
		network string
		vlan    int
	}{{"Test LAN", 42}, {"", 0}, {"Other", 0}}
	if len(vm.NICs) != len(want) {
		t.Fatalf("adapters %+v", vm.NICs)
	}
	for i, w := range want {
		if n := vm.NICs[i]; n.Network != w.network || n.VLAN != w.vlan {
			t.Errorf("adapter %d is in %q, VLAN %d; want %q, VLAN %d", i, n.Network, n.VLAN, w.network, w.vlan)
		}
	}
	must(t, h.Remove(t.Context(), vm.ID, "me"))

	cfg, err := h.Config(t.Context(), r.id())
	must(t, err)
	bad := hypervisor.BootSpec{Name: "rec", Owner: "me", Config: cfg, Disks: []hypervisor.BootDisk{{ID: diskA, Size: 4 << 20, Path: filepath.Join(r.dir, "H1", "C", "rec", "a.vhdx")}}}
	bad.Adapters = []hypervisor.BootNIC{{MAC: threeMACs[1], Network: "nowhere"}}
	_, err = h.Boot(t.Context(), bad)
	wantCode(t, err, dr.CodeSwitchMissing)
	bad.Adapters = []hypervisor.BootNIC{{MAC: threeMACs[1], Network: "Other", VLAN: 4095}}
	if _, err = h.Boot(t.Context(), bad); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("VLAN 4095: %v", err)
	}
}

// TestBootIsolation: nothing of a test failover can meet the original, whatever the isolated switch is.
func TestBootIsolation(t *testing.T) {
	t.Parallel()
	isolated := func(kind string) hvsim.Switch { return hvsim.Switch{Name: "holdfast-isolated", Kind: kind} }
	for name, c := range map[string]struct {
		switches []hvsim.Switch
		network  string
		keep     bool
		want     string
	}{
		"no network":                 {[]hvsim.Switch{isolated("private")}, "", false, ""},
		"private switch":             {[]hvsim.Switch{isolated("private")}, hypervisor.IsolatedNetwork, false, "holdfast-isolated"},
		"no switch":                  {nil, hypervisor.IsolatedNetwork, false, ""},
		"external switch":            {[]hvsim.Switch{isolated("external")}, hypervisor.IsolatedNetwork, false, ""},
		"internal switch":            {[]hvsim.Switch{isolated("internal")}, hypervisor.IsolatedNetwork, false, ""},
		"test network":               {nil, "External", false, "External"},
		"real failover":              {nil, "External", true, "External"},
		"real failover, unconnected": {nil, "", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, withNICs(c.switches...))
			h := r.open(t)
			if c.keep { // the original is gone
				cfg, err := h.Config(t.Context(), r.id())
				must(t, err)
				must(t, r.vm.PowerOff())
				must(t, r.vm.Delete())
				spec := hypervisor.BootSpec{Name: "rec", Owner: "me", Config: cfg, KeepUUID: true, Network: c.network,
					Disks: []hypervisor.BootDisk{{ID: diskA, Size: 4 << 20, Path: filepath.Join(r.dir, "H1", "C", "rec", "a.vhdx")}}}
				id, err := h.Boot(t.Context(), spec)
				must(t, err)
				for i, n := range r.sim.VM(strings.ToUpper(string(id))).State().NICs {
					if n.MAC != threeMACs[i] || !n.StaticMAC {
						t.Errorf("adapter %d has address %s (static %v), want the captured one", i, n.MAC, n.StaticMAC)
					}
				}
				return
			}
			st, vm := r.boot(t, h, func(s *hypervisor.BootSpec) { s.Network = c.network })
			for i, n := range st.NICs {
				if slices.Contains(threeMACs, n.MAC) || n.StaticMAC {
					t.Errorf("adapter %d of a test has the original's address %s (static %v)", i, n.MAC, n.StaticMAC)
				}
				if got := vm.NICs[i].Network; got != c.want {
					t.Errorf("adapter %d is in %q, want %q", i, got, c.want)
				}
			}
			list, err := h.Networks(t.Context())
			must(t, err)
			for _, n := range list {
				private := slices.ContainsFunc(c.switches, func(s hvsim.Switch) bool { return s.Name == n.Name && s.Kind == "private" })
				if n.Isolated != private {
					t.Errorf("network %+v", n)
				}
			}
		})
	}
}
