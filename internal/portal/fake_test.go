package portal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

var _ Vault = (*fake)(nil)

// fake is a vault in memory. Jobs take `step` per task of the clock's time and
// items go through the states of a replication; nothing happens in the background.
type fake struct {
	mu       sync.Mutex
	now      func() time.Time
	step     time.Duration
	fabrics  []dr.Fabric
	hosts    []dr.Provider
	vms      []dr.VM
	policies []dr.Policy
	maps     []dr.ContainerMapping
	keys     []vault.RegistrationKey
	items    []*dr.ProtectedItem
	status   map[dr.ItemID]*dr.ReplicationStatus
	points   map[dr.ItemID][]dr.RecoveryPoint
	jobs     []*fakeJob
	sessions map[string]vault.Principal
	users    map[string]vault.Principal // password = "secret-" + name
	subs     map[chan vault.Change]bool
	calls    []string
	fail     map[string]error // by operation
	detail   map[dr.ItemID]*vault.Detail
	labels   map[string]vault.PointDetail // by item and name of the point
	upkeep   map[dr.ItemID]vault.UpkeepStatus
	groups   []dr.ConsistencyGroup
	events   []vaultdb.Event // oldest first
	nets     []vault.Network
	netMaps  []vault.NetworkMapping
	vmms     map[dr.FabricID]vmm.Snapshot
	serial   int
}

type fakeJob struct {
	dr.Job
	end func(f *fake, j *fakeJob)
}

func newFake(now func() time.Time) *fake {
	f := &fake{now: now, step: 150 * time.Millisecond, status: map[dr.ItemID]*dr.ReplicationStatus{}, points: map[dr.ItemID][]dr.RecoveryPoint{},
		sessions: map[string]vault.Principal{}, users: map[string]vault.Principal{}, subs: map[chan vault.Change]bool{}, fail: map[string]error{},
		detail: map[dr.ItemID]*vault.Detail{}, labels: map[string]vault.PointDetail{}, upkeep: map[dr.ItemID]vault.UpkeepStatus{}}
	for name, role := range map[string]dr.Role{"admin": dr.RoleOwner, "carla": dr.RoleContributor, "olaf": dr.RoleOperator, "rita": dr.RoleReader} {
		f.users[name] = vault.Principal{Name: name, Role: role}
	}
	return f
}

func (f *fake) id(kind string) string { f.serial++; return fmt.Sprintf("%08x-%s", f.serial, kind) }

// lock brings jobs to the present.
func (f *fake) lock() func() {
	f.mu.Lock()
	for range 4 {
		for _, j := range slices.Clone(f.jobs) {
			f.advance(j)
		}
	}
	return f.mu.Unlock
}

func (f *fake) advance(j *fakeJob) {
	if j.State.Final() || j.State == dr.JobWaiting {
		return
	}
	at := j.Started
	for i := range j.Tasks {
		t := &j.Tasks[i]
		d := f.step
		if t.Name == "InitialReplication" {
			d *= 4
		}
		if t.State.Final() {
			at = t.Ended
			continue
		}
		if f.now().Before(at) {
			return
		}
		t.State, t.Started, t.Attempt = dr.JobInProgress, at, 1
		if f.now().Before(at.Add(d)) {
			t.Percent, t.ETA = 100*float64(f.now().Sub(at))/float64(d), at.Add(d).Sub(f.now())
			if st := f.status[j.Item]; st != nil && t.Name == "InitialReplication" {
				st.Percent, st.BytesTotal, st.BytesDone, st.ETA, st.At = t.Percent, 40<<30, int64(t.Percent*float64(40<<30)/100), t.ETA*200, f.now()
			}
			return
		}
		t.State, t.Ended, t.Percent, t.ETA = dr.JobSucceeded, at.Add(d), 100, 0
		at = t.Ended
	}
	j.State, j.Ended, j.CanCancel = dr.JobSucceeded, at, false
	for _, it := range f.items {
		if it.Job == j.ID {
			it.Job = ""
		}
	}
	if j.end != nil {
		j.end(f, j)
	}
	f.tell("job", string(j.ID))
	f.tell("item", string(j.Item))
}

func (f *fake) tell(kind, id string) {
	for ch := range f.subs {
		select {
		case ch <- vault.Change{Kind: kind, ID: id}:
		default:
		}
	}
}

func (f *fake) start(kind, title, by string, it *dr.ProtectedItem, target string, end func(*fake, *fakeJob), tasks ...string) dr.JobID {
	j := &fakeJob{Job: dr.Job{ID: dr.JobID(f.id("job")), Scenario: kind, Title: title, TargetName: target, By: by, State: dr.JobInProgress, Created: f.now(), Started: f.now(),
		CanCancel: true, Outcome: map[string]string{}}, end: end}
	if it != nil {
		j.Item, j.TargetName, it.Job = it.ID, it.VMName, j.ID
	}
	for i := 0; i < len(tasks); i += 2 {
		j.Tasks = append(j.Tasks, dr.Task{Name: tasks[i], Title: tasks[i+1], State: dr.JobNotStarted})
	}
	if len(tasks) == 0 { // done at once
		j.State, j.Ended, j.CanCancel = dr.JobSucceeded, f.now(), false
	}
	f.jobs = append(f.jobs, j)
	f.tell("job", string(j.ID))
	return j.ID
}

// call notes an operation and answers with the error that was planted for it.
func (f *fake) call(format string, a ...any) error {
	s := fmt.Sprintf(format, a...)
	f.calls = append(f.calls, s)
	name, _, _ := strings.Cut(s, " ")
	return f.fail[name]
}

func (f *fake) called(prefix string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.calls, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

func missing(what string) error {
	return dr.New(dr.KindNotFound, dr.CodeNotFound, "fake", "%s does not exist", what)
}

func find[T any](list []T, what string, ok func(T) bool) (T, error) {
	for _, x := range list {
		if ok(x) {
			return x, nil
		}
	}
	var zero T
	return zero, missing(what)
}

func (f *fake) Identity() vault.Identity {
	return vault.Identity{Name: "contoso-vault", SubscriptionID: "5b5dc3a4-0c8b-4a8e-9d43-2f6c6c7c9a11", ResourceGroup: "rg-dr", TenantID: "t", Location: "onprem", ResourceID: 4711}
}

func (f *fake) Login(_ context.Context, user, password string) (string, vault.Principal, error) {
	defer f.lock()()
	p, ok := f.users[user]
	if !ok || password != "secret-"+user {
		return "", vault.Principal{}, dr.Errorf(dr.KindUnauthenticated, "fake", "the name or the secret is wrong")
	}
	s := "hfp_" + f.id(user)
	f.sessions[s] = p
	return s, p, nil
}

func (f *fake) Session(_ context.Context, s string) (vault.Principal, error) {
	defer f.lock()()
	if err := f.fail["Session"]; err != nil {
		return vault.Principal{}, err
	}
	p, ok := f.sessions[s]
	if !ok {
		return p, dr.Errorf(dr.KindUnauthenticated, "fake", "the session is over")
	}
	return p, nil
}

func (f *fake) Logout(_ context.Context, s string) error {
	defer f.lock()()
	delete(f.sessions, s)
	return nil
}

func (f *fake) CreateFabric(_ context.Context, name string, t dr.FabricType, by string) (dr.JobID, error) {
	defer f.lock()()
	if name == "" || strings.ContainsAny(name, "<>/") {
		return "", dr.New(dr.KindInvalid, dr.CodeNameInvalid, "fake", "%q is not a name for a site", name)
	}
	if err := f.call("CreateFabric %s %s", name, t); err != nil {
		return "", err
	}
	f.fabrics = append(f.fabrics, dr.Fabric{ID: dr.FabricID(f.id("fabric")), Name: name, Type: t, Created: f.now()})
	return f.start("CreateSite", "Create site", by, nil, name, nil), nil
}

func (f *fake) Fabric(_ context.Context, name string) (dr.Fabric, error) {
	defer f.lock()()
	return find(f.fabrics, "site "+name, func(x dr.Fabric) bool { return x.Name == name })
}

func (f *fake) Fabrics(context.Context) ([]dr.Fabric, error) {
	defer f.lock()()
	return slices.Clone(f.fabrics), f.fail["Fabrics"]
}

func (f *fake) RemoveFabric(_ context.Context, name string, purge bool, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("RemoveFabric %s %v", name, purge); err != nil {
		return "", err
	}
	f.fabrics = slices.DeleteFunc(f.fabrics, func(x dr.Fabric) bool { return x.Name == name })
	return f.start("DeleteSite", "Remove site", by, nil, name, nil), nil
}

func (f *fake) CheckConsistency(_ context.Context, name, by string) (dr.JobID, error) {
	defer f.lock()()
	return f.start("CheckConsistency", "Check consistency of the site", by, nil, name, nil, "Reconcile", "Compare the catalogue with the store"), f.call("CheckConsistency %s", name)
}

func (f *fake) VMs(_ context.Context, id dr.FabricID) ([]dr.VM, error) {
	defer f.lock()()
	return slices.DeleteFunc(slices.Clone(f.vms), func(v dr.VM) bool { return v.Fabric != id }), nil
}

func (f *fake) VM(_ context.Context, id dr.FabricID, vm dr.VMID) (dr.VM, error) {
	defer f.lock()()
	return find(f.vms, "VM "+string(vm), func(v dr.VM) bool { return v.Fabric == id && v.ID == vm })
}

func (f *fake) Providers(_ context.Context, id dr.FabricID) ([]dr.Provider, error) {
	defer f.lock()()
	return slices.DeleteFunc(slices.Clone(f.hosts), func(p dr.Provider) bool { return id != "" && p.Fabric != id }), nil
}

func (f *fake) Connected(p dr.Provider) bool { return f.now().Sub(p.LastSeen) < 75*time.Second }

func (f *fake) RemoveProvider(_ context.Context, _ dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error) {
	defer f.lock()()
	return f.start("DeleteDra", "Remove host", by, nil, string(id), nil), f.call("RemoveProvider %s %v", id, purge)
}

func (f *fake) RefreshProvider(_ context.Context, _ dr.FabricID, id dr.AgentID, by string) (dr.JobID, error) {
	defer f.lock()()
	return f.start("RefreshDra", "Refresh host", by, nil, string(id), nil), f.call("RefreshProvider %s", id)
}

func (f *fake) IssueKey(_ context.Context, r vault.KeyRequest) (vault.RegistrationKey, error) {
	defer f.lock()()
	k := vault.RegistrationKey{ID: f.id("key"), Secret: "hfk_top-secret", OneTime: r.OneTime, Created: f.now(), Expires: f.now().Add(5 * 24 * time.Hour), VaultURL: "https://vault.example", CAPin: "ab", CreatedBy: r.By}
	for _, x := range f.fabrics {
		if x.Name == r.Fabric {
			k.Fabric = x.ID
		}
	}
	f.keys = append(f.keys, k)
	return k, f.call("IssueKey %s %v", r.Fabric, r.OneTime)
}

func (f *fake) Keys(_ context.Context, name string) (out []vault.RegistrationKey, _ error) {
	defer f.lock()()
	for _, k := range f.keys {
		for _, x := range f.fabrics {
			if x.Name == name && x.ID == k.Fabric {
				k.Secret = ""
				out = append(out, k)
			}
		}
	}
	return out, nil
}

func (f *fake) RevokeKey(_ context.Context, id, _ string) error {
	defer f.lock()()
	for i := range f.keys {
		f.keys[i].Revoked = f.keys[i].Revoked || f.keys[i].ID == id
	}
	return f.call("RevokeKey %s", id)
}

func (f *fake) SavePolicy(_ context.Context, p dr.Policy, create bool, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("SavePolicy %s %v %v %v create=%v", p.Name, p.CopyFrequency, p.Retention, p.AppFrequency, create); err != nil {
		return "", err
	}
	if create {
		p.ID, p.Created = dr.PolicyID(f.id("policy")), f.now()
		f.policies = append(f.policies, p)
	} else {
		for i := range f.policies {
			if f.policies[i].Name == p.Name {
				f.policies[i] = p
			}
		}
	}
	return f.start("AddProtectionProfile", "Create replication policy", by, nil, p.Name, nil), nil
}

func (f *fake) Policy(_ context.Context, name string) (dr.Policy, error) {
	defer f.lock()()
	return find(f.policies, "policy "+name, func(x dr.Policy) bool { return x.Name == name })
}

func (f *fake) Policies(context.Context) ([]dr.Policy, error) {
	defer f.lock()()
	return slices.Clone(f.policies), nil
}

func (f *fake) RemovePolicy(_ context.Context, name, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("RemovePolicy %s", name); err != nil {
		return "", err
	}
	f.policies = slices.DeleteFunc(f.policies, func(x dr.Policy) bool { return x.Name == name })
	return f.start("DeleteProtectionProfile", "Remove replication policy", by, nil, name, nil), nil
}

func (f *fake) CreateMapping(_ context.Context, m dr.ContainerMapping, by string) (dr.JobID, error) {
	defer f.lock()()
	for _, x := range f.fabrics {
		if strings.HasSuffix(m.Target, "/replicationFabrics/"+x.Name+"/replicationProtectionContainers/"+x.ContainerName()) {
			m.TargetFabric = x.ID
		}
	}
	f.maps = append(f.maps, m)
	return f.start("PairCloud", "Map protection container", by, nil, m.Name, nil), f.call("CreateMapping %s", m.Name)
}

func (f *fake) Mappings(_ context.Context, id dr.FabricID) ([]dr.ContainerMapping, error) {
	defer f.lock()()
	return slices.DeleteFunc(slices.Clone(f.maps), func(m dr.ContainerMapping) bool { return id != "" && m.Fabric != id }), nil
}

func (f *fake) item(id dr.ItemID) (*dr.ProtectedItem, error) {
	return find(f.items, "item "+string(id), func(x *dr.ProtectedItem) bool { return x.ID == id })
}

func (f *fake) ItemByID(_ context.Context, id dr.ItemID) (dr.ProtectedItem, error) {
	defer f.lock()()
	it, err := f.item(id)
	if err != nil {
		return dr.ProtectedItem{}, err
	}
	return *it, nil
}

func (f *fake) Items(_ context.Context, id dr.FabricID) (out []dr.ProtectedItem, _ error) {
	defer f.lock()()
	for _, it := range f.items {
		if id == "" || it.Fabric == id {
			out = append(out, *it)
		}
	}
	return out, nil
}

func (f *fake) Status(_ context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	defer f.lock()()
	if st := f.status[id]; st != nil {
		return *st, nil
	}
	return dr.ReplicationStatus{}, nil
}

func (f *fake) AllowedOperations(_ context.Context, id dr.ItemID) ([]string, error) {
	defer f.lock()()
	it, err := f.item(id)
	switch {
	case err != nil:
		return nil, err
	case it.Job != "":
		return nil, nil
	case it.Failover == dr.FailoverCommitPending:
		return []string{"Commit", "ChangePit", "CancelFailover"}, nil
	case it.Test == dr.TestWaiting || it.Test == dr.TestFailed:
		return []string{"TestFailoverCleanup", "PlannedFailover", "UnplannedFailover", "RepairReplication"}, nil
	case it.Failover == dr.FailoverCommitted || it.Protection != dr.Protected:
		return []string{"DisableProtection"}, nil
	}
	return []string{"TestFailover", "PlannedFailover", "UnplannedFailover", "RepairReplication", "DisableProtection"}, nil
}

func (f *fake) Enable(_ context.Context, r vault.EnableRequest) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("Enable %s policy=%s disks=%v", r.VM, r.Policy, r.Disks); err != nil {
		return "", err
	}
	vm, err := find(f.vms, "VM", func(v dr.VM) bool { return v.ID == r.VM })
	if err != nil {
		return "", err
	}
	it := &dr.ProtectedItem{ID: dr.ItemID(f.id("item")), Name: r.Name, Fabric: vm.Fabric, VM: vm.ID, VMName: vm.Name, Machine: "m", SourceAgent: vm.Agent, Protection: dr.Enabling,
		Failover: dr.FailoverNone, Test: dr.TestNone, Active: dr.AtPrimary, Health: dr.HealthNormal, Created: f.now(), Settings: r.Settings}
	for _, d := range vm.Disks {
		it.Disks = append(it.Disks, d.ID)
	}
	for _, p := range f.policies {
		if p.Name == r.Policy {
			it.Policy = p.ID
		}
	}
	for _, m := range f.maps {
		if m.Policy == it.Policy && m.Fabric == it.Fabric {
			it.RecoveryFabric = m.TargetFabric
		}
	}
	f.items = append(f.items, it)
	f.status[it.ID] = &dr.ReplicationStatus{Phase: "waiting"}
	return f.start("EnableDr", "Enable protection", r.By, it, "", func(f *fake, j *fakeJob) {
		it.Protection, it.Health = dr.InitialReplication, dr.HealthWarning
		it.HealthErrors = []dr.HealthError{{Code: "InitialReplicationNotComplete", Severity: dr.HealthWarning, Message: "Initial replication of " + it.VMName + " is not complete.",
			Cause: "The disks are being sent for the first time.", Remedy: "Wait until the initial replication is complete.", Since: f.now()}}
		f.status[it.ID] = &dr.ReplicationStatus{Phase: "initialReplication", At: f.now()}
		f.start("IrCompletion", "Initial replication", j.By, it, "", func(f *fake, _ *fakeJob) {
			it.Protection, it.Health, it.HealthErrors = dr.Protected, dr.HealthNormal, nil
			f.points[it.ID] = somePoints(f.now(), time.Minute, 1)
			f.status[it.ID] = &dr.ReplicationStatus{Phase: "delta", LastPoint: f.points[it.ID][0].Time, LastCut: f.now(), At: f.now()}
		}, "InitialReplication", "Send the disks", "FinalizeProtection", "Finalize protection")
		it.Job = "" // it has a lock of its own
	}, "PrerequisitesCheck", "Check prerequisites", "CreateReplicationRelationship", "Create the replication relationship", "StartReplication", "Start replication"), nil
}

func (f *fake) Update(_ context.Context, r vault.UpdateRequest) (dr.JobID, error) {
	defer f.lock()()
	it, err := f.item(r.Item)
	if err != nil {
		return "", err
	}
	r.Settings(&it.Settings)
	return f.start("UpdateVmProperties", "Change settings of the protected item", r.By, nil, it.VMName, nil), f.call("Update %+v", it.Settings)
}

func (f *fake) Disable(_ context.Context, id dr.ItemID, purge bool, by string) (dr.JobID, error) {
	return f.operate(id, by, "DisableDr", "Disable protection", fmt.Sprintf("Disable %s %v", id, purge), func(*dr.ProtectedItem) {}, func(it *dr.ProtectedItem, _ *fakeJob) {
		f.items = slices.DeleteFunc(f.items, func(x *dr.ProtectedItem) bool { return x == it })
	}, "StopReplication", "Stop replication at the source")
}

// operate starts a job of an item.
func (f *fake) operate(id dr.ItemID, by, kind, title, call string, begin func(*dr.ProtectedItem), end func(*dr.ProtectedItem, *fakeJob), tasks ...string) (dr.JobID, error) {
	defer f.lock()()
	it, err := f.item(id)
	if err != nil {
		return "", err
	}
	if err := f.call("%s", call); err != nil {
		return "", err
	}
	if it.Job != "" {
		return "", dr.New(dr.KindConflict, dr.CodeJobInProgress, "fake", "job %s of %s is running", it.Job, it.VMName)
	}
	begin(it)
	return f.start(kind, title, by, it, "", func(_ *fake, j *fakeJob) { end(it, j) }, tasks...), nil
}

const consoleText = "[    0.000000] Linux version 6.1.0-28-amd64\n[    2.214310] EXT4-fs (vda1): mounted filesystem with ordered data mode\n[  OK  ] Reached target Multi-User System.\n\nDebian GNU/Linux 12 web01 ttyS0\n\nweb01 login: "

func (f *fake) StartFailover(_ context.Context, r vault.FailoverRequest) (dr.JobID, error) {
	call := fmt.Sprintf("StartFailover %s point=%q network=%q offline=%v source=%v", r.Kind, r.Point, r.Network, r.NoNetwork, r.SourceAction)
	tasks := []string{"PrerequisitesCheck", "Check prerequisites", "PrepareRecoveryPoint", "Prepare the recovery point", "StartVM", "Start the recovery VM", "VerifyBoot", "Wait for a sign of life"}
	outcome := func(it *dr.ProtectedItem, j *fakeJob) string {
		name := f.points[it.ID][0].Name()
		j.Outcome = map[string]string{"recoveryPoint": name, "recoveryPointTime": f.now().Add(-time.Minute).Format(time.RFC3339), "recoveryHost": "kvm-recovery-01", "bootVerified": "true",
			"rtoSeconds": "19.4", "rpoSeconds": "61.0", "bootSeconds": "11.2", "console": consoleText, "matched": "login:", "screenshot": string(j.ID)}
		return name
	}
	if r.Kind == dr.KindTestFailover {
		return f.operate(r.Item, r.By, "TestFailover", "Test failover", call, func(it *dr.ProtectedItem) { it.Test = dr.TestRunning }, func(it *dr.ProtectedItem, j *fakeJob) {
			name := outcome(it, j)
			it.Test, it.TestVM = dr.TestWaiting, "6f1f5f0e-test"
			b, _ := json.Marshal(drill{OK: true, Job: j.ID, VM: "6f1f5f0e-test", Point: name, BootSecs: 11.2, RTOSecs: 19.4, Matched: "login:", Console: consoleText, Screenshot: string(j.ID), At: f.now()})
			it.LastTestReport = string(b)
		}, tasks...)
	}
	title := "Failover"
	if r.Kind == dr.KindPlannedFailover {
		title = "Planned failover"
	}
	return f.operate(r.Item, r.By, "UnplannedFailover", title, call, func(it *dr.ProtectedItem) { it.Failover = dr.FailoverInProgress }, func(it *dr.ProtectedItem, j *fakeJob) {
		it.FailedOverTo = outcome(it, j)
		it.Failover, it.Active, it.RecoveryVM, it.LastFailover, it.Health = dr.FailoverCommitPending, dr.AtRecovery, "6f1f5f0e-recovery", f.now(), dr.HealthWarning
	}, tasks...)
}

func (f *fake) CleanupTest(_ context.Context, id dr.ItemID, comments, by string) (dr.JobID, error) {
	return f.operate(id, by, "TestFailoverCleanup", "Clean up test failover", "CleanupTest "+comments, func(it *dr.ProtectedItem) { it.Test = dr.TestCleaning },
		func(it *dr.ProtectedItem, _ *fakeJob) { it.Test, it.TestVM, it.LastTest = dr.TestNone, "", f.now() }, "RemoveTestVM", "Remove the test VM")
}

func (f *fake) Commit(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return f.operate(id, by, "CommitFailover", "Commit failover", "Commit "+string(id), func(*dr.ProtectedItem) {}, func(it *dr.ProtectedItem, _ *fakeJob) { it.Failover = dr.FailoverCommitted }, "Commit", "Commit the failover")
}

func (f *fake) CancelFailover(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return f.operate(id, by, "CancelFailover", "Cancel failover", "CancelFailover "+string(id), func(it *dr.ProtectedItem) { it.Failover = dr.FailoverCancelling },
		func(it *dr.ProtectedItem, _ *fakeJob) {
			it.Failover, it.Active, it.FailedOverTo, it.RecoveryVM = dr.FailoverNone, dr.AtPrimary, "", ""
		}, "RemoveRecoveryVM", "Remove the recovery VM")
}

func (f *fake) ChangePoint(_ context.Context, id dr.ItemID, point, by string) (dr.JobID, error) {
	return f.operate(id, by, "ChangePit", "Change recovery point", "ChangePoint "+point, func(*dr.ProtectedItem) {}, func(it *dr.ProtectedItem, _ *fakeJob) { it.FailedOverTo = point }, "PrepareRecoveryPoint", "Prepare the recovery point")
}

func (f *fake) ResyncWith(_ context.Context, id dr.ItemID, o vault.ResyncOptions, by string) (dr.JobID, error) {
	return f.operate(id, by, "Resync", "Resynchronize", fmt.Sprintf("Resync %s full=%v", id, o.Full), func(*dr.ProtectedItem) {}, func(*dr.ProtectedItem, *fakeJob) {}, "RequestResynchronization", "Ask the source")
}

func (f *fake) Job(_ context.Context, id dr.JobID) (dr.Job, error) {
	defer f.lock()()
	j, err := find(f.jobs, "job "+string(id), func(x *fakeJob) bool { return x.ID == id })
	if err != nil {
		return dr.Job{}, err
	}
	out := j.Job
	out.Tasks = slices.Clone(j.Tasks)
	return out, nil
}

func (f *fake) Jobs(_ context.Context, q vault.JobFilter) (out []dr.Job, _ error) {
	defer f.lock()()
	for _, j := range slices.Backward(f.jobs) {
		if (q.Item == "" || q.Item == j.Item) && (q.Scenario == "" || q.Scenario == j.Scenario) && (len(q.States) == 0 || slices.Contains(q.States, j.State)) {
			x := j.Job
			x.Tasks = nil
			out = append(out, x)
		}
	}
	return out[:min(len(out), max(q.Limit, 1))], nil
}

func (f *fake) CancelJob(_ context.Context, id dr.JobID, _ string) error {
	defer f.lock()()
	return f.call("CancelJob %s", id)
}

func (f *fake) RestartJob(_ context.Context, id dr.JobID, _ string) error {
	defer f.lock()()
	return f.call("RestartJob %s", id)
}

func (f *fake) ResumeJob(_ context.Context, id dr.JobID, comments, _ string) error {
	defer f.lock()()
	return f.call("ResumeJob %s %s", id, comments)
}

// Screenshot draws something like a text console.
func (f *fake) Screenshot(_ context.Context, id dr.JobID) ([]byte, error) {
	defer f.lock()()
	j, err := find(f.jobs, "job", func(x *fakeJob) bool { return x.ID == id })
	if err != nil || j.Outcome["screenshot"] == "" {
		return nil, missing("screenshot")
	}
	img := image.NewRGBA(image.Rect(0, 0, 720, 400))
	for y := range 400 {
		for x := range 720 {
			img.Set(x, y, color.Black)
			if row, col := y/16, x/9; row < 19 && y%16 > 4 && y%16 < 13 && col > 0 && col < 20+(row*37)%50 && (col*7+row*3)%6 != 0 && x%9 < 7 && (x*3+y*5)%4 < 2 {
				img.Set(x, y, color.Gray{190})
			}
		}
	}
	var b bytes.Buffer
	err = png.Encode(&b, img)
	return b.Bytes(), err
}

func (f *fake) Subscribe(ctx context.Context) <-chan vault.Change {
	ch, out := make(chan vault.Change, 64), make(chan vault.Change)
	unlock := f.lock()
	f.subs[ch] = true
	unlock()
	go func() {
		defer close(out)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				f.mu.Lock()
				delete(f.subs, ch)
				f.mu.Unlock()
				return
			case c := <-ch:
				select {
				case out <- c:
				case <-ctx.Done():
				}
			case <-t.C:
				unlock := f.lock()
				for _, j := range f.jobs {
					if !j.State.Final() {
						f.tell("job", string(j.ID))
						f.tell("item", string(j.Item))
					}
				}
				unlock()
			}
		}
	}()
	return out
}

func (f *fake) ComputeSizes(context.Context, dr.ItemID) ([]dr.ComputeSize, error) {
	return []dr.ComputeSize{{Name: "Standard_B1s", CPUs: 1, MemoryMB: 1024, Problem: "it has 1024 MiB of memory, the VM has 4096"}, {Name: "Standard_D2s_v5", CPUs: 2, MemoryMB: 8192}}, nil
}
