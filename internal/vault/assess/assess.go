// Package assess puts together what a readiness report says of a site: the
// vault's knowledge in, the rules of package readiness applied, the report out.
//
// It owns which facts of the vault the rules see. It promises that it changes
// nothing, that what could not be asked is an error, and that a rule about
// something which the vault does not know is not checked, and never passes.
package assess

import (
	"context"
	"fmt"
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
	var untold []string
	if e.Items, untold, err = items(ctx, v, q.Site, vms); err != nil {
		return readiness.Report{}, err
	}
	r.Practices = readiness.Practices(e, q.Now)
	for i := range r.Practices {
		doubt(&r.Practices[i], untold)
	}
	return r, nil
}

// doubt takes back a verdict that rests on what is not known here. untold are the
// VMs of which nobody can tell how they are connected after a failover.
func doubt(p *readiness.Practice, untold []string) {
	open := func(detail string) {
		p.Status, p.Detail, p.Objects, p.Remedy = readiness.NotChecked, detail, nil, ""
	}
	switch {
	case p.Rule == "certificates" && p.Status != readiness.NotMet:
		open("When the agents' certificates end is not looked at here; agents renew them while they reach the vault.")
	case p.Rule == "throttle" && p.Status == readiness.NotMet:
		open("No policy limits uploads. A limit that is set on a host itself is not known to the vault.")
	case p.Rule == "failover-network" && p.Status == readiness.Met && len(untold) > 0:
		open(fmt.Sprintf("It can't be told for %d VMs which of the site's networks they are in, and not all of these are mapped.", len(untold)))
		p.Objects, p.Remedy = untold, "Map all networks of the site, or set the VMs' networks."
	}
}

// items describes the protected items of a site as best practices see them, and
// names the VMs whose network after a failover can't be told.
func items(ctx context.Context, v Source, f dr.Fabric, vms []dr.VM) (out []readiness.Item, untold []string, err error) {
	all, err := v.Items(ctx, f.ID)
	if err != nil {
		return nil, nil, err
	}
	list, err := v.Policies(ctx)
	if err != nil {
		return nil, nil, err
	}
	policies := map[dr.PolicyID]dr.Policy{}
	for _, p := range list {
		policies[p.ID] = p
	}
	byID := map[dr.VMID]dr.VM{}
	for _, vm := range vms {
		byID[vm.ID] = vm
	}
	w, err := waysOf(ctx, v, f)
	if err != nil {
		return nil, nil, err
	}
	for _, it := range all {
		vm, known := byID[it.VM]
		x := readiness.Item{Name: it.VMName, VM: vm, Policy: policies[it.Policy], Paused: it.Paused, Failover: it.Failover, Test: it.Test, LastTest: it.LastTest, Network: it.Settings.Network}
		x.Limited = len(x.Policy.Bandwidth) > 0
		x.VM.Disks = slices.DeleteFunc(slices.Clone(vm.Disks), func(d dr.Disk) bool { return len(it.Disks) > 0 && !slices.Contains(it.Disks, d.ID) })
		if x.Network == "" {
			to, err := w.lead(ctx, it, vm, known)
			if err != nil {
				return nil, nil, err
			}
			if to == unknown {
				untold = append(untold, it.VMName)
			}
			if to != nowhere {
				x.Network = string(to)
			}
		}
		st, err := v.Status(ctx, it.ID)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return nil, nil, err
		}
		x.Initial = !st.LastPoint.IsZero()
		out = append(out, x)
	}
	return out, untold, nil
}

// outcome is how the adapters of a VM are connected after a failover when no
// network is set for its item.
type outcome string

const (
	connected outcome = "connected" // all that are connected at the source
	nowhere   outcome = "nowhere"   // one at least is not
	unknown   outcome = "unknown"
)

// ways tells where the networks of a site lead after a failover.
type ways struct {
	v      Source
	vmm    bool                                       // VMM alone knows which network an adapter is in
	source map[string]network.Network                 // networks of the site by id, lower case
	mapped map[dr.FabricID]map[string]string          // recovery site ("" = the cloud) → id of a network, lower case → id of its target
	there  map[dr.FabricID]map[string]network.Network // networks of a site by id, lower case
}

func waysOf(ctx context.Context, v Source, f dr.Fabric) (*ways, error) {
	w := &ways{v: v, vmm: f.Type == dr.VMMSite, mapped: map[dr.FabricID]map[string]string{}, there: map[dr.FabricID]map[string]network.Network{}}
	maps, err := v.NetworkMappings(ctx, f.ID)
	if err != nil {
		return nil, err
	}
	for _, m := range maps {
		if w.mapped[m.TargetFabric] == nil {
			w.mapped[m.TargetFabric] = map[string]string{}
		}
		w.mapped[m.TargetFabric][strings.ToLower(m.Network)] = m.Target
	}
	w.source, err = w.networksOf(ctx, f.ID)
	return w, err
}

// lead follows the rules of package network: adapters whose network is mapped are
// connected, if the target still exists; if none is mapped, and the site has no
// VMM, those are whose network has one of the same name at the recovery site.
func (w *ways) lead(ctx context.Context, it dr.ProtectedItem, vm dr.VM, known bool) (outcome, error) {
	used := map[string]bool{} // ids in lower case
	if known && !w.vmm {
		for _, n := range vm.NICs {
			if n.Network != "" {
				used[strings.ToLower(network.ID(n.Network))] = true
			}
		}
	} else { // it may be in any of them
		for id := range w.source {
			used[id] = true
		}
	}
	targets, err := w.networksOf(ctx, it.RecoveryFabric)
	if err != nil {
		return "", err
	}
	maps, mapped, good := w.mapped[it.RecoveryFabric], 0, 0
	for id := range used {
		to, ok := maps[id]
		if !ok {
			continue
		}
		mapped++
		if _, exists := targets[strings.ToLower(to)]; exists || it.RecoveryFabric == "" {
			good++
		}
	}
	switch {
	case good == len(used) && (len(used) > 0 || known && !w.vmm):
		return connected, nil
	case !known || w.vmm && good > 0:
		return unknown, nil
	case w.vmm || mapped > 0:
		return nowhere, nil
	}
	for id := range used { // ids follow from names
		if n, ok := targets[id]; !ok || len(n.Hosts) == 0 {
			return nowhere, nil
		}
	}
	return connected, nil
}

func (w *ways) networksOf(ctx context.Context, f dr.FabricID) (map[string]network.Network, error) {
	if have, ok := w.there[f]; ok || f == "" {
		return have, nil
	}
	all, err := w.v.NetworksOf(ctx, f)
	if err != nil && dr.KindOf(err) != dr.KindNotFound { // a site that is gone has no networks
		return nil, err
	}
	byID := map[string]network.Network{}
	for _, n := range all {
		byID[strings.ToLower(n.ID)] = n
	}
	w.there[f] = byID
	return byID, nil
}
