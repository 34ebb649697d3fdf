// Package assess puts together what a readiness report says of a site: the
// vault's knowledge in, the rules of package readiness applied, the report out.
//
// It owns which facts of the vault the rules see. It promises that the report is
// made from one question of each kind, that it changes nothing, and that what
// could not be asked is an error, never a rule that passes.
package assess

import (
	"context"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/readiness"
	"holdfast/internal/vault/network"
)

// DefaultTarget is the target of a report that names none.
const DefaultTarget = "azure"

// Source is what is asked. The vault satisfies it.
type Source interface {
	Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) // "" = all
	VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error)
	Items(ctx context.Context, f dr.FabricID) ([]dr.ProtectedItem, error)
	Policies(ctx context.Context) ([]dr.Policy, error)
	Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error)
	NetworksOf(ctx context.Context, f dr.FabricID) ([]network.Network, error)
	NetworkMappings(ctx context.Context, f dr.FabricID) ([]network.Mapping, error)
}

// Question names a report.
type Question struct {
	Site      dr.Fabric
	Target    string // a name of readiness.Profiles; empty = DefaultTarget
	Connected func(dr.Provider) bool
	Now       time.Time
}

// Report makes the report. dr.KindInvalid if there is no such target.
func Report(ctx context.Context, v Source, q Question) (readiness.Report, error) {
	if q.Target == "" {
		q.Target = DefaultTarget
	}
	profile, err := readiness.ProfileByName(q.Target)
	if err != nil {
		return readiness.Report{}, err
	}
	vms, err := v.VMs(ctx, q.Site.ID)
	if err != nil {
		return readiness.Report{}, err
	}
	agents, err := v.Providers(ctx, "")
	if err != nil {
		return readiness.Report{}, err
	}
	hosts := map[dr.AgentID]string{}
	var e readiness.Estate
	for _, p := range agents {
		hosts[p.ID] = p.Host
		if !p.Revoked && (p.Fabric == q.Site.ID || p.HasRole(dr.RoleRecovery)) {
			e.Hosts = append(e.Hosts, readiness.Host{Name: p.Host, Roles: p.Roles, Connected: q.Connected(p)})
		}
	}
	r := readiness.CheckSite(q.Site.Name, vms, profile, q.Site.Type == dr.KVMSite, hosts, q.Now)
	if e.Items, err = items(ctx, v, q.Site, vms); err != nil {
		return readiness.Report{}, err
	}
	r.Practices = readiness.Practices(e, q.Now)
	return r, nil
}

// items describes the protected items of a site as best practices see them.
func items(ctx context.Context, v Source, f dr.Fabric, vms []dr.VM) ([]readiness.Item, error) {
	all, err := v.Items(ctx, f.ID)
	if err != nil {
		return nil, err
	}
	list, err := v.Policies(ctx)
	if err != nil {
		return nil, err
	}
	policies := map[dr.PolicyID]dr.Policy{}
	for _, p := range list {
		policies[p.ID] = p
	}
	byID := map[dr.VMID]dr.VM{}
	for _, vm := range vms {
		byID[vm.ID] = vm
	}
	w, err := wayOf(ctx, v, f)
	if err != nil {
		return nil, err
	}
	var out []readiness.Item
	for _, it := range all {
		x := readiness.Item{Name: it.VMName, Policy: policies[it.Policy], Paused: it.Paused, Failover: it.Failover, Test: it.Test, LastTest: it.LastTest, Network: it.Settings.Network}
		x.Limited = len(x.Policy.Bandwidth) > 0
		vm, known := byID[it.VM]
		if x.Network == "" {
			if x.Network, err = w.network(ctx, it, vm, known); err != nil {
				return nil, err
			}
		}
		x.VM = vm
		x.VM.Disks = slices.DeleteFunc(slices.Clone(vm.Disks), func(d dr.Disk) bool { return len(it.Disks) > 0 && !slices.Contains(it.Disks, d.ID) })
		st, err := v.Status(ctx, it.ID)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return nil, err
		}
		x.Initial = !st.LastPoint.IsZero()
		out = append(out, x)
	}
	return out, nil
}

// way tells where the adapters of a site's VMs lead after a failover.
type way struct {
	v      Source
	vmm    bool                                // the adapters' networks are known to VMM only
	mapped map[dr.FabricID]map[string]string   // recovery site ("" = the cloud) → id of the network, lower case → target
	there  map[dr.FabricID]map[string]struct{} // names of the networks that hosts of a site have
}

func wayOf(ctx context.Context, v Source, f dr.Fabric) (*way, error) {
	maps, err := v.NetworkMappings(ctx, f.ID)
	if err != nil {
		return nil, err
	}
	w := &way{v: v, vmm: f.Type == dr.VMMSite, mapped: map[dr.FabricID]map[string]string{}, there: map[dr.FabricID]map[string]struct{}{}}
	for _, m := range maps {
		if w.mapped[m.TargetFabric] == nil {
			w.mapped[m.TargetFabric] = map[string]string{}
		}
		w.mapped[m.TargetFabric][strings.ToLower(m.Network)] = m.Target
	}
	return w, nil
}

// network names a network that the VM is connected to after a failover when
// nothing is set for its item, by the rules of package network: every adapter's
// network is mapped; or none is, and the recovery site has one of the same name.
// It is empty if an adapter comes up without connection.
func (w *way) network(ctx context.Context, it dr.ProtectedItem, vm dr.VM, known bool) (string, error) {
	maps := w.mapped[it.RecoveryFabric]
	if w.vmm || !known { // which network an adapter is in can't be told: any mapping counts
		for _, target := range maps {
			return target, nil
		}
		return "", nil
	}
	var found string
	mapped, used := 0, []string{}
	for _, n := range vm.NICs {
		if n.Network == "" {
			continue
		}
		used = append(used, n.Network)
		if target, ok := maps[strings.ToLower(network.ID(n.Network))]; ok {
			mapped, found = mapped+1, target
		}
	}
	switch {
	case len(used) == 0:
		return "none", nil // connected to nothing at the source either
	case mapped == len(used):
		return found, nil
	case mapped > 0 || it.RecoveryFabric == "":
		return "", nil
	}
	has, err := w.networksOf(ctx, it.RecoveryFabric)
	if err != nil {
		return "", err
	}
	for _, name := range used {
		if _, ok := has[name]; ok {
			return name, nil
		}
	}
	return "", nil
}

func (w *way) networksOf(ctx context.Context, f dr.FabricID) (map[string]struct{}, error) {
	if have, ok := w.there[f]; ok {
		return have, nil
	}
	all, err := w.v.NetworksOf(ctx, f)
	if err != nil && dr.KindOf(err) != dr.KindNotFound { // a site that is gone has no networks
		return nil, err
	}
	names := map[string]struct{}{}
	for _, n := range all {
		if len(n.Hosts) > 0 {
			names[n.Name] = struct{}{}
		}
	}
	w.there[f] = names
	return names, nil
}
