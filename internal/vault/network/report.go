package network

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// maxManaged bounds the objects of one report; a VMM server manages at most 25,000 VMs.
const maxManaged = 100_000

// objectID is what ids of VMM look like; they become names in paths.
var objectID = regexp.MustCompile(`^[0-9a-z]([0-9a-z-]{0,62}[0-9a-z])?$`)

// ReportVMM takes the complete state of a VMM server from its agent. Objects whose
// id can't be one are left out.
func (d *Directory) ReportVMM(ctx context.Context, agent dr.AgentID, r agentapi.VMMRequest) error {
	const op = "vault.ReportVMM"
	if r.Version != agentapi.VMMVersion {
		return dr.Errorf(dr.KindUnsupported, op, "the agent sent version %d of VMM's state, this vault takes version %d", r.Version, agentapi.VMMVersion).
			WithHint("upgrade the vault before its agents")
	}
	if n := len(r.Clouds) + len(r.Hosts) + len(r.LogicalNetworks) + len(r.Networks) + len(r.Storage) + len(r.VMs); n > maxManaged {
		return dr.Errorf(dr.KindInvalid, op, "a report of %d objects is more than the %d that a VMM server may have", n, maxManaged)
	}
	if err := d.st.Touch(ctx, agent, ""); err != nil {
		return err
	}
	return d.st.Tx(ctx, func(tx *sql.Tx) error {
		p, err := vaultdb.ProviderByID(ctx, tx, agent)
		if err != nil {
			return err
		}
		f, err := vaultdb.Fabric(ctx, tx, p.Fabric)
		if err != nil {
			return err
		}
		if f.Type != dr.VMMSite || !p.HasRole(dr.RoleVMM) {
			return dr.Errorf(dr.KindForbidden, op, "host %s is not registered as the VMM server of its site %s", p.Host, f.Name).
				WithHint("register the agent with the role vmm in a site of the type VMM")
		}
		s := snapshot(r)
		changed, moved, err := vaultdb.SaveVMM(ctx, tx, f.ID, s)
		if err != nil || !changed {
			return err
		}
		d.st.Changed(tx, "site", string(f.ID))
		return d.noteMoves(ctx, tx, p, s, moved)
	})
}

// noteMoves records the VMs that are in another cloud now.
func (d *Directory) noteMoves(ctx context.Context, tx *sql.Tx, p vaultdb.Provider, s vmm.Snapshot, moved map[dr.VMID][2]string) error {
	names := map[string]string{"": "no cloud"}
	for _, c := range s.Clouds {
		names[c.ID] = fmt.Sprintf("cloud %q", c.Name)
	}
	in := func(id string) string {
		if n := names[id]; n != "" {
			return n
		}
		return "a cloud that is gone"
	}
	vms := map[dr.VMID]string{}
	for _, v := range s.VMs {
		vms[dr.VMID(vaultdb.Key(v.ID))] = v.Name
	}
	for _, id := range slices.Sorted(maps.Keys(moved)) {
		m := moved[id]
		if err := d.st.Note(ctx, tx, vaultdb.Event{Kind: "vmCloud", Agent: p.ID, By: "agent"}, "VM %s moved from %s to %s", vms[id], in(m[0]), in(m[1])); err != nil {
			return err
		}
	}
	return nil
}

func valid[T any](in []T, id func(T) string) []T {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(in), func(x T) bool {
		bad := !objectID.MatchString(id(x)) || seen[id(x)]
		seen[id(x)] = true
		return bad
	})
}

// snapshot makes the domain's form of a report.
func snapshot(r agentapi.VMMRequest) vmm.Snapshot {
	s := vmm.Snapshot{Version: vmm.Version, Server: vmm.Server{Name: state.Clip(r.Server), Product: state.Clip(r.Product)}, Taken: r.Taken}
	for _, w := range r.Warnings[:min(len(r.Warnings), 100)] {
		s.Warnings = append(s.Warnings, state.Clip(w))
	}
	for _, c := range valid(r.Clouds, func(c agentapi.VMMCloud) string { return c.ID }) {
		s.Clouds = append(s.Clouds, vmm.Cloud(c))
	}
	for _, h := range valid(r.Hosts, func(h agentapi.VMMHost) string { return h.ID }) {
		x := vmm.Host{ID: h.ID, Name: h.Name, Cluster: h.Cluster, OS: h.OS, HostGroup: h.HostGroup, Clouds: h.Clouds}
		for _, w := range h.Switches {
			x.Switches = append(x.Switches, vmm.Switch(w))
		}
		s.Hosts = append(s.Hosts, x)
	}
	for _, n := range valid(r.LogicalNetworks, func(n agentapi.VMMLogicalNetwork) string { return n.ID }) {
		x := vmm.LogicalNetwork{ID: n.ID, Name: n.Name, Description: n.Description, Virtualized: n.Virtualized, Isolated: n.Isolated}
		for _, d := range n.Definitions {
			y := vmm.Definition{ID: d.ID, Name: d.Name, HostGroups: d.HostGroups}
			for _, v := range d.Subnets {
				y.Subnets = append(y.Subnets, vmm.SubnetVLAN(v))
			}
			x.Definitions = append(x.Definitions, y)
		}
		s.LogicalNetworks = append(s.LogicalNetworks, x)
	}
	for _, n := range valid(r.Networks, func(n agentapi.VMMNetwork) string { return n.ID }) {
		x := vmm.VMNetwork{ID: n.ID, Name: n.Name, LogicalNetwork: n.LogicalNetwork, Isolation: n.Isolation}
		for _, v := range n.Subnets {
			x.Subnets = append(x.Subnets, vmm.Subnet(v))
		}
		s.VMNetworks = append(s.VMNetworks, x)
	}
	for _, c := range valid(r.Storage, func(c agentapi.VMMStorage) string { return c.ID }) {
		s.StorageClassifications = append(s.StorageClassifications, vmm.StorageClassification(c))
	}
	clouds := map[string]bool{}
	for _, c := range s.Clouds {
		clouds[c.ID] = true
	}
	for _, v := range valid(r.VMs, func(v agentapi.VMMVM) string { return vaultdb.Key(v.ID) }) {
		x := vmm.VM{ID: v.ID, VMMID: v.VMMID, Name: v.Name, Cloud: v.Cloud, Host: v.Host}
		if !clouds[x.Cloud] { // a cloud that is not listed is no container
			x.Cloud = ""
		}
		for _, n := range v.Adapters {
			x.Adapters = append(x.Adapters, vmm.NIC(n))
		}
		s.VMs = append(s.VMs, x)
	}
	return s
}
