package assess

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/readiness"
	"holdfast/internal/vault/network"
	"holdfast/internal/vmm"
)

// estate is a source in memory; fail is the question that can't be answered.
type estate struct {
	hosts    []dr.Provider
	vms      []dr.VM
	items    []dr.ProtectedItem
	policies []dr.Policy
	status   map[dr.ItemID]dr.ReplicationStatus
	nets     map[dr.FabricID][]network.Network
	maps     []network.Mapping
	fail     string
}

func (e *estate) ask(what string) error {
	if e.fail == what {
		return dr.Errorf(dr.KindUnavailable, "test", "%s: the database did not answer", what)
	}
	return nil
}

func (e *estate) Providers(context.Context, dr.FabricID) ([]dr.Provider, error) {
	return e.hosts, e.ask("Providers")
}
func (e *estate) VMs(context.Context, dr.FabricID) ([]dr.VM, error) { return e.vms, e.ask("VMs") }
func (e *estate) Items(context.Context, dr.FabricID) ([]dr.ProtectedItem, error) {
	return e.items, e.ask("Items")
}
func (e *estate) Policies(context.Context) ([]dr.Policy, error) {
	return e.policies, e.ask("Policies")
}
func (e *estate) Status(_ context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	st, ok := e.status[id]
	if err := e.ask("Status"); err != nil || ok {
		return st, err
	}
	return st, dr.New(dr.KindNotFound, dr.CodeNotFound, "test", "no status yet")
}
func (e *estate) NetworksOf(_ context.Context, f dr.FabricID) ([]network.Network, error) {
	if err := e.ask("NetworksOf"); err != nil {
		return nil, err
	}
	n, ok := e.nets[f]
	if !ok {
		return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "test", "the site is gone")
	}
	return n, nil
}
func (e *estate) NetworkMappings(context.Context, dr.FabricID) ([]network.Mapping, error) {
	return e.maps, e.ask("NetworkMappings")
}

func net(id string, hosts ...string) network.Network {
	return network.Network{Network: vmm.Network{ID: id, Name: id}, Hosts: hosts}
}

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func example() *estate {
	return &estate{
		hosts: []dr.Provider{{ID: "s", Fabric: "here", Host: "src", Roles: []dr.AgentRole{dr.RoleSource}}, {ID: "r", Fabric: "there", Host: "rec", Roles: []dr.AgentRole{dr.RoleRecovery}},
			{ID: "old", Fabric: "here", Host: "old", Roles: []dr.AgentRole{dr.RoleSource}, Revoked: true}, {ID: "x", Fabric: "elsewhere", Host: "other", Roles: []dr.AgentRole{dr.RoleSource}}},
		vms: []dr.VM{{ID: "a", Name: "a", Agent: "s", Fabric: "here", Running: true, Generation: 2, NICs: []dr.NIC{{ID: "1", Network: "LAN"}, {ID: "2"}},
			Disks: []dr.Disk{{ID: "os", Path: `C:\a.vhdx`, Format: "vhdx", Size: 1 << 30, Boot: true}, {ID: "swap", Path: `D:\pagefile.vhdx`, Format: "vhdx", Size: 1 << 30}}}},
		items:    []dr.ProtectedItem{{ID: "i", VM: "a", VMName: "a", Policy: "p", RecoveryFabric: "there", Disks: []string{"os"}}},
		policies: []dr.Policy{{ID: "p", Name: "gold"}},
		status:   map[dr.ItemID]dr.ReplicationStatus{},
		nets:     map[dr.FabricID][]network.Network{"here": {net("LAN", "src")}, "there": {net("prod", "rec")}},
	}
}

func report(t *testing.T, e *estate, site dr.FabricType) readiness.Report {
	t.Helper()
	r, err := Report(t.Context(), e, Question{Site: dr.Fabric{ID: "here", Name: "here", Type: site}, Connected: func(p dr.Provider) bool { return !p.Revoked }, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func practice(t *testing.T, r readiness.Report, rule string) readiness.Practice {
	t.Helper()
	i := slices.IndexFunc(r.Practices, func(p readiness.Practice) bool { return p.Rule == rule })
	if i < 0 {
		t.Fatalf("the report has no rule %s", rule)
	}
	return r.Practices[i]
}

func TestReport(t *testing.T) {
	t.Parallel()
	e := example()
	r := report(t, e, dr.HyperVSite)
	if r.Target != DefaultTarget || r.Site != "here" || !r.Taken.Equal(now) || len(r.VMs) != 1 || r.VMs[0].Host != "src" || r.Ready != 1 {
		t.Errorf("%+v", r)
	}
	for rule, want := range map[string]readiness.Status{
		"agents-everywhere": readiness.Met,        // a revoked host and a host of another site do not count
		"paging-disks":      readiness.Met,        // it is excluded
		"tested":            readiness.NotChecked, // no point yet
		"certificates":      readiness.NotChecked, // nobody knows
		"throttle":          readiness.NotChecked,
		"recovery-host":     readiness.Met,
	} {
		if p := practice(t, r, rule); p.Status != want {
			t.Errorf("%s is %s, want %s: %s", rule, p.Status, want, p.Detail)
		}
	}
	e.status["i"] = dr.ReplicationStatus{LastPoint: now}
	e.policies[0].Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 1}}
	e.items[0].Disks = nil // all
	r = report(t, e, dr.HyperVSite)
	for rule, want := range map[string]readiness.Status{"tested": readiness.NotMet, "throttle": readiness.Met, "paging-disks": readiness.NotMet} {
		if p := practice(t, r, rule); p.Status != want {
			t.Errorf("%s is %s, want %s: %s", rule, p.Status, want, p.Detail)
		}
	}
	// The type of the site says which rules apply.
	e.vms[0].Facts.Version = "5.0"
	if r := report(t, e, dr.HyperVSite); r.Blocked != 1 {
		t.Error("an old configuration version is ready")
	}
	if r := report(t, e, dr.KVMSite); r.Blocked != 0 {
		t.Error("a machine type is taken for a configuration version")
	}
}

// TestNetworkAfterFailover: the verdict is what a failover would do.
func TestNetworkAfterFailover(t *testing.T) {
	t.Parallel()
	mapTo := func(site dr.FabricID, pairs ...string) (out []network.Mapping) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, network.Mapping{Fabric: "here", Network: pairs[i], TargetFabric: site, Target: pairs[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		what   string
		site   dr.FabricType
		change func(e *estate)
		want   readiness.Status
	}{
		{"nothing is mapped", dr.HyperVSite, func(*estate) {}, readiness.NotMet},
		{"set for the VM", dr.HyperVSite, func(e *estate) { e.items[0].Settings.Network = "prod" }, readiness.Met},
		{"mapped", dr.HyperVSite, func(e *estate) { e.maps = mapTo("there", "lan", "PROD") }, readiness.Met},
		{"mapped to what is gone", dr.HyperVSite, func(e *estate) { e.maps = mapTo("there", "lan", "gone") }, readiness.NotMet},
		{"mapped to another site", dr.HyperVSite, func(e *estate) { e.maps = mapTo("elsewhere", "lan", "prod") }, readiness.NotMet},
		{"mapped for the cloud alone", dr.HyperVSite, func(e *estate) { e.maps = mapTo("", "lan", "/vnet") }, readiness.NotMet},
		{"recovered in the cloud", dr.HyperVSite, func(e *estate) { e.items[0].RecoveryFabric, e.maps = "", mapTo("", "lan", "/vnet") }, readiness.Met},
		{"one of two is mapped", dr.HyperVSite, func(e *estate) {
			e.vms[0].NICs[1].Network, e.maps = "backup", mapTo("there", "lan", "prod")
		}, readiness.NotMet},
		{"the same name", dr.KVMSite, func(e *estate) { e.nets["there"] = []network.Network{net("LAN", "rec")} }, readiness.Met},
		{"the same name, but no host has it", dr.KVMSite, func(e *estate) { e.nets["there"] = []network.Network{net("LAN")} }, readiness.NotMet},
		{"connected to nothing at the source", dr.KVMSite, func(e *estate) { e.vms[0].NICs[0].Network = "" }, readiness.Met},
		{"the recovery site is gone", dr.KVMSite, func(e *estate) { delete(e.nets, "there") }, readiness.NotMet},
		{"the VM is gone", dr.KVMSite, func(e *estate) { e.vms = nil }, readiness.NotChecked},
		{"VMM, all mapped", dr.VMMSite, func(e *estate) { e.maps = mapTo("there", "lan", "prod") }, readiness.Met},
		{"VMM, some mapped", dr.VMMSite, func(e *estate) {
			e.nets["here"] = append(e.nets["here"], net("dmz"))
			e.maps = mapTo("there", "lan", "prod")
		}, readiness.NotChecked},
		{"VMM, none mapped, the same name", dr.VMMSite, func(e *estate) { e.nets["there"] = []network.Network{net("LAN", "rec")} }, readiness.NotMet},
		{"VMM has not reported", dr.VMMSite, func(e *estate) { e.nets["here"] = nil }, readiness.NotMet},
	} {
		e := example()
		c.change(e)
		if p := practice(t, report(t, e, c.site), "failover-network"); p.Status != c.want {
			t.Errorf("%s: %s, want %s: %s", c.what, p.Status, c.want, p.Detail)
		}
	}
}

// TestUnanswered: what can't be asked is an error, never a rule that passes.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"Providers", "VMs", "Items", "Policies", "Status", "NetworksOf", "NetworkMappings"} {
		e := example()
		e.fail = what
		_, err := Report(t.Context(), e, Question{Site: dr.Fabric{ID: "here"}, Connected: func(dr.Provider) bool { return true }, Now: now})
		if dr.KindOf(err) != dr.KindUnavailable || !strings.Contains(err.Error(), what) {
			t.Errorf("%s could not be asked: %v", what, err)
		}
	}
	if _, err := Report(t.Context(), example(), Question{Target: "moon", Connected: func(dr.Provider) bool { return true }}); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("an unknown target: %v", err)
	}
}
