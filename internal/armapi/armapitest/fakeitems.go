package armapitest

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck"
	"holdfast/internal/readiness"
	"holdfast/internal/vault"
)

func (p policies) find(name string) (dr.Policy, error) {
	for _, x := range p.w.policies {
		if strings.EqualFold(x.Name, name) {
			return x, nil
		}
	}
	return dr.Policy{}, missing("policy", name)
}

// SavePolicy implements armapi.Policies.
func (p policies) SavePolicy(_ context.Context, x dr.Policy, create bool, by string) (dr.JobID, error) {
	defer p.w.lock()()
	if err := x.Validate(); err != nil {
		return "", err
	}
	have, err := p.find(x.Name)
	switch {
	case create && err == nil:
		return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapitest", "policy %q exists", x.Name)
	case !create && err != nil:
		return "", err
	case create:
		x.ID, x.Created = dr.PolicyID(p.w.uuid()), p.w.now()
		return p.w.start("AddProtectionProfile", "ProtectionProfile", string(x.ID), x.Name, by, nil, []string{"Apply"}, nil, func(j *dr.Job) {
			if j.State == dr.JobSucceeded {
				p.w.policies = append(p.w.policies, x)
			}
		}), nil
	}
	x.ID = have.ID
	return p.w.start("UpdateProtectionProfile", "ProtectionProfile", string(x.ID), x.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		for i := range p.w.policies {
			if p.w.policies[i].ID == x.ID {
				p.w.policies[i] = x
			}
		}
	}), nil
}

// Policy implements armapi.Policies.
func (p policies) Policy(_ context.Context, name string) (dr.Policy, error) {
	defer p.w.lock()()
	return p.find(name)
}

// Policies implements armapi.Policies.
func (p policies) Policies(context.Context) ([]dr.Policy, error) {
	defer p.w.lock()()
	return slices.Clone(p.w.policies), nil
}

// RemovePolicy implements armapi.Policies.
func (p policies) RemovePolicy(_ context.Context, name, by string) (dr.JobID, error) {
	defer p.w.lock()()
	x, err := p.find(name)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(p.w.mappings, func(m dr.ContainerMapping) bool { return m.Policy == x.ID }) {
		return "", dr.New(dr.KindConflict, dr.CodePolicyInUse, "armapitest", "policy %q is in use", x.Name)
	}
	return p.w.start("DeleteProtectionProfile", "ProtectionProfile", string(x.ID), x.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		p.w.policies = slices.DeleteFunc(p.w.policies, func(y dr.Policy) bool { return y.ID == x.ID })
	}), nil
}

func (p policies) mapping(f dr.FabricID, name string) (dr.ContainerMapping, error) {
	for _, m := range p.w.mappings {
		if m.Fabric == f && strings.EqualFold(m.Name, name) {
			return m, nil
		}
	}
	return dr.ContainerMapping{}, missing("mapping", name)
}

// CreateMapping implements armapi.Mappings.
func (p policies) CreateMapping(_ context.Context, m dr.ContainerMapping, by string) (dr.JobID, error) {
	defer p.w.lock()()
	m.Created = p.w.now()
	return p.w.start("PairCloud", "Server", string(m.Fabric), m.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) { p.w.mappings = append(p.w.mappings, m) }), nil
}

// Mapping implements armapi.Mappings.
func (p policies) Mapping(_ context.Context, f dr.FabricID, name string) (dr.ContainerMapping, error) {
	defer p.w.lock()()
	return p.mapping(f, name)
}

// Mappings implements armapi.Mappings.
func (p policies) Mappings(_ context.Context, f dr.FabricID) ([]dr.ContainerMapping, error) {
	defer p.w.lock()()
	return slices.DeleteFunc(slices.Clone(p.w.mappings), func(m dr.ContainerMapping) bool { return f != "" && m.Fabric != f }), nil
}

// RemoveMapping implements armapi.Mappings.
func (p policies) RemoveMapping(_ context.Context, f dr.FabricID, name, by string) (dr.JobID, error) {
	defer p.w.lock()()
	m, err := p.mapping(f, name)
	if err != nil {
		return "", err
	}
	return p.w.start("UnpairCloud", "Server", string(f), name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		p.w.mappings = slices.DeleteFunc(p.w.mappings, func(x dr.ContainerMapping) bool { return x.Fabric == f && x.Name == m.Name })
	}), nil
}

// Enable implements armapi.Items: three tasks, after which there is a recovery point.
func (x items) Enable(_ context.Context, r vault.EnableRequest) (dr.JobID, error) {
	defer x.w.lock()()
	f, err := sites(x).fabric(r.Fabric)
	if err != nil {
		return "", err
	}
	p, err := policies(x).find(r.Policy)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(x.w.vms, func(v dr.VM) bool { return v.ID == r.VM && v.Fabric == f.ID })
	if i < 0 {
		return "", dr.New(dr.KindNotFound, dr.CodeVMNotFound, "armapitest", "VM %q does not exist", r.VM)
	}
	if slices.ContainsFunc(x.w.items, func(it *dr.ProtectedItem) bool { return it.VM == r.VM }) {
		return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapitest", "VM %q is protected", r.VM)
	}
	vm := x.w.vms[i]
	it := &dr.ProtectedItem{ID: dr.ItemID(x.w.uuid()), Name: r.Name, Fabric: f.ID, VM: vm.ID, VMName: vm.Name, Policy: p.ID, Machine: dr.MachineID(x.w.uuid()), Gen: 1,
		SourceAgent: vm.Agent, Disks: r.Disks, Protection: dr.Enabling, Failover: dr.FailoverNone, Test: dr.TestNone, Active: dr.AtPrimary, Health: dr.HealthNormal, Settings: r.Settings, Created: x.w.now()}
	for _, m := range x.w.mappings {
		if m.Fabric == f.ID && m.Policy == p.ID {
			it.RecoveryFabric = m.TargetFabric
		}
	}
	x.w.items = append(x.w.items, it)
	return x.w.start("EnableDR", "ProtectionEntity", string(it.ID), vm.Name, r.By, it, []string{"PrerequisitesCheck", "StartReplication", "InitialReplication"}, func(i int) {
		if i == 1 {
			it.Protection = dr.InitialReplication
		}
	}, func(j *dr.Job) {
		if j.State != dr.JobSucceeded {
			it.Protection = dr.EnableFailed
			return
		}
		it.Protection, x.w.since[it.ID] = dr.Protected, j.Ended
	}), nil
}

// Item implements armapi.Items.
func (x items) Item(_ context.Context, f dr.FabricID, name string) (dr.ProtectedItem, error) {
	defer x.w.lock()()
	for _, it := range x.w.items {
		if it.Fabric == f && strings.EqualFold(it.Name, name) {
			return *it, nil
		}
	}
	return dr.ProtectedItem{}, missing("protected item", name)
}

// Items implements armapi.Items.
func (x items) Items(_ context.Context, f dr.FabricID) ([]dr.ProtectedItem, error) {
	defer x.w.lock()()
	var out []dr.ProtectedItem
	for _, it := range x.w.items {
		if f == "" || it.Fabric == f {
			out = append(out, *it)
		}
	}
	return out, nil
}

// Status implements armapi.Items.
func (x items) Status(_ context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	defer x.w.lock()()
	it := x.w.itemOf(id)
	if it == nil {
		return dr.ReplicationStatus{}, missing("protected item", string(id))
	}
	s := dr.ReplicationStatus{Phase: "waiting", At: x.w.now()}
	switch it.Protection {
	case dr.InitialReplication:
		s = dr.ReplicationStatus{Phase: "initialReplication", Percent: 50, BytesDone: 512 << 20, BytesTotal: 1 << 30, ETA: 90 * time.Second, At: x.w.now()}
	case dr.Protected:
		s.Phase, s.BacklogBytes, s.Spooled, s.Cycles = "delta", 4096, 1024, 12
		ps := x.w.points(it)
		s.LastPoint, s.LastCut = ps[0].Time, ps[0].Time
	}
	return s, nil
}

// Update implements armapi.Items.
func (x items) Update(_ context.Context, r vault.UpdateRequest) (dr.JobID, error) {
	defer x.w.lock()()
	it := x.w.itemOf(r.Item)
	if it == nil {
		return "", missing("protected item", string(r.Item))
	}
	r.Settings(&it.Settings)
	return x.w.start("UpdateVmProperties", "ProtectionEntity", string(it.ID), it.VMName, r.By, nil, []string{"Apply"}, nil, nil), nil
}

// Disable implements armapi.Items.
func (x items) Disable(_ context.Context, id dr.ItemID, _ bool, by string) (dr.JobID, error) {
	defer x.w.lock()()
	it := x.w.itemOf(id)
	if it == nil {
		return "", missing("protected item", string(id))
	}
	it.Protection = dr.Disabling
	return x.w.start("DisableDR", "ProtectionEntity", string(it.ID), it.VMName, by, it, []string{"StopReplication", "Remove"}, nil, func(*dr.Job) {
		x.w.items = slices.DeleteFunc(x.w.items, func(y *dr.ProtectedItem) bool { return y.ID == id })
	}), nil
}

// AllowedOperations implements armapi.Items: everything while no job runs; the API
// narrows it down by the axes.
func (x items) AllowedOperations(_ context.Context, id dr.ItemID) ([]string, error) {
	defer x.w.lock()()
	it := x.w.itemOf(id)
	if it == nil {
		return nil, missing("protected item", string(id))
	}
	if it.Job != "" {
		return nil, nil
	}
	return []string{"PlannedFailover", "UnplannedFailover", "TestFailover", "TestFailoverCleanup", "Commit", "CancelFailover", "ChangePit", "RepairReplication", "DisableProtection"}, nil
}

// points makes the points that an item has by now, newest first, at most 50.
func (w *world) points(it *dr.ProtectedItem) []dr.RecoveryPoint {
	start, ok := w.since[it.ID]
	if !ok {
		return nil
	}
	every := 5 * time.Minute
	for _, p := range w.policies {
		if p.ID == it.Policy {
			every = p.CopyFrequency
		}
	}
	n := min(int(w.now().Sub(start)/every), 49)
	var out []dr.RecoveryPoint
	for i := n; i >= 0; i-- {
		c := dr.CrashConsistent
		if i%3 == 1 {
			c = dr.AppConsistent
		} else if i%3 == 2 {
			c = dr.FileSystemConsistent
		}
		out = append(out, dr.RecoveryPoint{Machine: it.Machine, Gen: it.Gen, N: uint64(i), Time: start.Add(time.Duration(i) * every), Consistency: c, DirtyBytes: 8192, DataBytes: 4096, StoredBytes: 2048})
	}
	return out
}

// ComputeSizes implements armapi.Items: two sizes, one of which is too small.
func (x items) ComputeSizes(_ context.Context, id dr.ItemID) ([]dr.ComputeSize, error) {
	defer x.w.lock()()
	if x.w.itemOf(id) == nil {
		return nil, missing("protected item", string(id))
	}
	return []dr.ComputeSize{{Name: "Standard_B1s", CPUs: 1, MemoryMB: 1024, DataDisks: 2, NICs: 2, Generations: []int{1, 2}, Problem: "it has 1024 MiB of memory, the VM has 2048"},
		{Name: "Standard_D2s_v5", CPUs: 2, MemoryMB: 8192, DataDisks: 4, NICs: 2, Generations: []int{1, 2}, Premium: true}}, nil
}

// GuestCheck implements armapi.Items: one finding.
func (x items) GuestCheck(_ context.Context, id dr.ItemID, point, target string) (guestcheck.Report, dr.RecoveryPoint, error) {
	defer x.w.lock()()
	it := x.w.itemOf(id)
	if it == nil {
		return guestcheck.Report{}, dr.RecoveryPoint{}, missing("protected item", string(id))
	}
	all := x.w.points(it)
	if len(all) == 0 {
		return guestcheck.Report{}, dr.RecoveryPoint{}, dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "fake", "no point")
	}
	return guestcheck.Report{Target: cmp.Or(target, "azure"), Results: []guestcheck.Result{{Check: guestcheck.CheckFstab, Status: readiness.NotMet}},
		Findings: []guestcheck.Finding{{Check: guestcheck.CheckFstab, Severity: readiness.Warns, Object: "/etc/fstab", Reason: "a device is named by its path", WayOut: "Name it by UUID."}}}, all[0], nil
}
