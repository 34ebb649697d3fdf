// Package armapitest is a vault for tests of the REST API: an in-memory Service
// whose jobs take time and whose items go through the states of a replication,
// and a started HTTPS server around it.
//
// Time is the fake's clock (Config.Now); nothing happens in the background:
// every call first brings the world to the present. So with a clock of its own
// a test decides what has happened, and with the real one a client sees jobs run.
package armapitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/armapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// Config of a Fake.
type Config struct {
	Now  func() time.Time // nil = time.Now
	Step time.Duration    // how long one task of a job takes; 0 = 50 ms
}

// Fake is the in-memory Service. Safe for concurrent use.
type Fake struct {
	sites
	networks
	policies
	items
	failovers
	engine
	jobs
	access
	*world
}

var (
	_ armapi.Service     = (*Fake)(nil)
	_ armapi.Screenshots = (*Fake)(nil)
)

type (
	sites     struct{ w *world }
	policies  struct{ w *world }
	items     struct{ w *world }
	failovers struct{ w *world }
	engine    struct{ w *world }
	jobs      struct{ w *world }
	access    struct{ w *world }
)

// Credentials of the fake's callers, by role.
const Secret = "not-a-secret"

// New makes a Fake with two sites, a host and two VMs in the first ("site-a"),
// and a recovery host in the second ("site-b").
func New(cfg Config) *Fake {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Step == 0 {
		cfg.Step = 50 * time.Millisecond
	}
	w := &world{now: cfg.Now, step: cfg.Step, settings: map[string]string{}, since: map[dr.ItemID]time.Time{}, failNext: map[string]dr.Code{}, detail: map[dr.ItemID]*vault.Detail{}, labels: map[string]vault.PointDetail{}, tokens: map[string]dr.Role{},
		ident: vault.Identity{Name: "vault1", SubscriptionID: "5b5dc3a4-0c8b-4a8e-9d43-2f6c6c7c9a11", ResourceGroup: "Group-One",
			TenantID: "9e0c2d7c-5f55-4c1b-8d5e-3a3c39a9c1f0", Location: "onprem", ResourceID: 4711}}
	f := &Fake{sites{w}, networks{w}, policies{w}, items{w}, failovers{w}, engine{w}, jobs{w}, access{w}, w}
	now := cfg.Now()
	a := dr.Fabric{ID: "0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a01", Name: "site-a", Type: dr.KVMSite, Created: now}
	b := dr.Fabric{ID: "0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a02", Name: "site-b", Type: dr.KVMSite, Created: now}
	w.fabrics = []dr.Fabric{a, b}
	w.agents = []dr.Provider{
		{ID: "7d3a1c11-1111-4111-8111-000000000001", Fabric: a.ID, Host: "host-a", Roles: []dr.AgentRole{dr.RoleSource}, Version: "1.0.0", Hypervisor: "QEMU 7.2", Registered: now, LastSeen: now},
		{ID: "7d3a1c11-1111-4111-8111-000000000002", Fabric: b.ID, Host: "host-b", Roles: []dr.AgentRole{dr.RoleRecovery}, Version: "1.0.0", Hypervisor: "QEMU 7.2", Registered: now, LastSeen: now},
	}
	for i, name := range []string{"web01", "db01"} {
		w.vms = append(w.vms, dr.VM{
			ID: dr.VMID(fmt.Sprintf("3f2b8a10-2222-4222-8222-00000000000%d", i+1)), Name: name, Fabric: a.ID, Agent: w.agents[0].ID, Running: true, Generation: 1, CPUs: 2, MemoryMB: 2048,
			OSType: "Linux", Disks: []dr.Disk{{ID: "vda", Path: "/var/lib/vm/" + name + ".qcow2", Format: "qcow2", Size: 8<<30 + 1, Boot: true}, {ID: "vdb", Path: "/var/lib/vm/" + name + "-data.qcow2", Format: "qcow2", Size: 1 << 30}},
			NICs: []dr.NIC{{ID: "52:54:00:00:00:01", MAC: "52:54:00:00:00:01", Network: "default", Type: "network", IPs: []string{"192.0.2.10"}}}, Seen: now,
		})
	}
	return f
}

// world is the state, behind one lock.
type world struct {
	mu       sync.Mutex
	now      func() time.Time
	step     time.Duration
	ident    vault.Identity
	serial   int
	fabrics  []dr.Fabric
	agents   []dr.Provider
	vms      []dr.VM
	policies []dr.Policy
	mappings []dr.ContainerMapping

	vmm         map[dr.FabricID]vmm.Snapshot
	networkMaps []vault.NetworkMapping
	storageMaps []vault.StorageMapping

	items    []*dr.ProtectedItem
	since    map[dr.ItemID]time.Time // when an item became protected
	jobs     []*work                 // oldest first
	settings map[string]string
	tokens   map[string]dr.Role
	failNext map[string]dr.Code
	detail   map[dr.ItemID]*vault.Detail
	labels   map[string]vault.PointDetail // by machine and name of the point
	groups   []dr.ConsistencyGroup
	events   []vaultdb.Event // oldest first
}

// work is a job with what it does at its end.
type work struct {
	dr.Job
	due    []time.Time // end of each task
	onTask func(i int) // after task i
	onEnd  func(j *dr.Job)
}

// lock brings the world to the present and locks it.
func (w *world) lock() func() {
	w.mu.Lock()
	now := w.now()
	for _, j := range w.jobs {
		w.advance(j, now)
	}
	for i := range w.agents {
		if !w.agents[i].Revoked {
			w.agents[i].LastSeen = now
		}
	}
	return w.mu.Unlock
}

func (w *world) advance(j *work, now time.Time) {
	if j.State.Final() {
		return
	}
	if j.State == dr.JobCancelling {
		w.end(j, dr.JobCancelled, now)
		return
	}
	j.State = dr.JobInProgress
	start := j.Started
	for i := range j.Tasks {
		t := &j.Tasks[i]
		if !now.Before(j.due[i]) {
			if t.State != dr.JobSucceeded {
				*t = dr.Task{Name: t.Name, Title: t.Title, State: dr.JobSucceeded, Started: start, Ended: j.due[i], Percent: 100, Attempt: 1}
				if j.onTask != nil {
					j.onTask(i)
				}
			}
			start = j.due[i]
			continue
		}
		t.State, t.Started, t.Attempt = dr.JobInProgress, start, 1
		t.Percent = 100 * float64(now.Sub(start)) / float64(j.due[i].Sub(start))
		t.ETA = j.due[i].Sub(now)
		return
	}
	if code, fails := w.failNext[j.Scenario]; fails {
		delete(w.failNext, j.Scenario)
		last := &j.Tasks[len(j.Tasks)-1]
		last.State = dr.JobFailed
		j.Errors = append(j.Errors, dr.JobError{Task: last.Name, Code: code, Message: "made to fail by the test", At: now})
		w.end(j, dr.JobFailed, now)
		return
	}
	w.end(j, dr.JobSucceeded, start)
}

func (w *world) end(j *work, s dr.JobState, at time.Time) {
	j.State, j.Ended, j.CanCancel, j.CanRestart = s, at, false, s == dr.JobFailed
	if it := w.itemOf(j.Item); it != nil && it.Job == j.ID {
		it.Job = ""
	}
	if j.onEnd != nil {
		j.onEnd(&j.Job)
	}
}

// start submits a job with tasks that take one step each.
func (w *world) start(scenario, targetType, targetID, targetName, by string, item *dr.ProtectedItem, tasks []string, onTask func(int), onEnd func(*dr.Job)) dr.JobID {
	now := w.now()
	j := &work{onTask: onTask, onEnd: onEnd, Job: dr.Job{ID: dr.JobID(w.uuid()), Scenario: scenario, Title: scenario, TargetType: targetType, TargetID: targetID, TargetName: targetName,
		State: dr.JobNotStarted, By: by, Created: now, Started: now, CanCancel: true, Outcome: map[string]string{}}}
	for i, t := range tasks {
		j.Tasks = append(j.Tasks, dr.Task{Name: t, Title: t, State: dr.JobNotStarted})
		j.due = append(j.due, now.Add(w.step*time.Duration(i+1)))
	}
	if item != nil {
		j.Item, item.Job = item.ID, j.ID
	}
	w.jobs = append(w.jobs, j)
	return j.ID
}

// FailNext makes the next job of a scenario fail in its last task.
func (w *world) FailNext(scenario string, code dr.Code) {
	defer w.lock()()
	w.failNext[scenario] = code
}

// SetItem changes an item behind the API's back.
func (w *world) SetItem(id dr.ItemID, change func(*dr.ProtectedItem)) {
	defer w.lock()()
	if it := w.itemOf(id); it != nil {
		change(it)
	}
}

func (w *world) uuid() string {
	w.serial++
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", w.serial)
}

func (w *world) itemOf(id dr.ItemID) *dr.ProtectedItem {
	for _, it := range w.items {
		if it.ID == id && id != "" {
			return it
		}
	}
	return nil
}

func missing(what, name string) error {
	return dr.New(dr.KindNotFound, dr.CodeNotFound, "armapitest", "%s %q does not exist", what, name)
}

func (s sites) fabric(name string) (dr.Fabric, error) {
	for _, f := range s.w.fabrics {
		if strings.EqualFold(f.Name, name) {
			return f, nil
		}
	}
	return dr.Fabric{}, missing("site", name)
}

// CreateFabric implements armapi.Sites.
func (s sites) CreateFabric(_ context.Context, name string, t dr.FabricType, by string) (dr.JobID, error) {
	defer s.w.lock()()
	if _, err := s.fabric(name); err == nil {
		return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapitest", "site %q exists", name)
	}
	f := dr.Fabric{ID: dr.FabricID(s.w.uuid()), Name: name, Type: t, Created: s.w.now()}
	return s.w.start("CreateSite", "Server", string(f.ID), name, by, nil, []string{"Apply"}, nil, func(j *dr.Job) {
		if j.State == dr.JobSucceeded {
			s.w.fabrics = append(s.w.fabrics, f)
		}
	}), nil
}

// Fabric implements armapi.Sites.
func (s sites) Fabric(_ context.Context, name string) (dr.Fabric, error) {
	defer s.w.lock()()
	return s.fabric(name)
}

// Fabrics implements armapi.Sites.
func (s sites) Fabrics(context.Context) ([]dr.Fabric, error) {
	defer s.w.lock()()
	return slices.Clone(s.w.fabrics), nil
}

// RemoveFabric implements armapi.Sites.
func (s sites) RemoveFabric(_ context.Context, name string, purge bool, by string) (dr.JobID, error) {
	defer s.w.lock()()
	f, err := s.fabric(name)
	if err != nil {
		return "", err
	}
	used := slices.ContainsFunc(s.w.agents, func(p dr.Provider) bool { return p.Fabric == f.ID })
	if used && !purge {
		return "", dr.New(dr.KindConflict, dr.CodeFabricNotEmpty, "armapitest", "site %q has hosts", f.Name)
	}
	return s.w.start("DeleteSite", "Server", string(f.ID), f.Name, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		s.w.fabrics = slices.DeleteFunc(s.w.fabrics, func(x dr.Fabric) bool { return x.ID == f.ID })
	}), nil
}

// CheckConsistency implements armapi.Sites.
func (s sites) CheckConsistency(_ context.Context, fabric, by string) (dr.JobID, error) {
	defer s.w.lock()()
	f, err := s.fabric(fabric)
	if err != nil {
		return "", err
	}
	return s.w.start("CheckConsistency", "Server", string(f.ID), f.Name, by, nil, []string{"Check"}, nil, nil), nil
}

// VMs implements armapi.Sites.
func (s sites) VMs(_ context.Context, f dr.FabricID) ([]dr.VM, error) {
	defer s.w.lock()()
	return slices.DeleteFunc(slices.Clone(s.w.vms), func(v dr.VM) bool { return v.Fabric != f }), nil
}

// VM implements armapi.Sites.
func (s sites) VM(_ context.Context, f dr.FabricID, id dr.VMID) (dr.VM, error) {
	defer s.w.lock()()
	for _, v := range s.w.vms {
		if v.Fabric == f && v.ID == id {
			return v, nil
		}
	}
	return dr.VM{}, missing("VM", string(id))
}

// Providers implements armapi.Providers.
func (s sites) Providers(_ context.Context, f dr.FabricID) ([]dr.Provider, error) {
	defer s.w.lock()()
	return slices.DeleteFunc(slices.Clone(s.w.agents), func(p dr.Provider) bool { return f != "" && p.Fabric != f }), nil
}

func (s sites) agent(f dr.FabricID, id dr.AgentID) (dr.Provider, error) {
	for _, p := range s.w.agents {
		if p.Fabric == f && p.ID == id {
			return p, nil
		}
	}
	return dr.Provider{}, missing("provider", string(id))
}

// Provider implements armapi.Providers.
func (s sites) Provider(_ context.Context, f dr.FabricID, id dr.AgentID) (dr.Provider, error) {
	defer s.w.lock()()
	return s.agent(f, id)
}

// RemoveProvider implements armapi.Providers.
func (s sites) RemoveProvider(_ context.Context, f dr.FabricID, id dr.AgentID, _ bool, by string) (dr.JobID, error) {
	defer s.w.lock()()
	p, err := s.agent(f, id)
	if err != nil {
		return "", err
	}
	return s.w.start("DeleteDra", "Server", string(id), p.Host, by, nil, []string{"Apply"}, nil, func(*dr.Job) {
		s.w.agents = slices.DeleteFunc(s.w.agents, func(x dr.Provider) bool { return x.ID == id })
	}), nil
}

// RefreshProvider implements armapi.Providers.
func (s sites) RefreshProvider(_ context.Context, f dr.FabricID, id dr.AgentID, by string) (dr.JobID, error) {
	defer s.w.lock()()
	p, err := s.agent(f, id)
	if err != nil {
		return "", err
	}
	return s.w.start("RefreshDra", "Server", string(id), p.Host, by, nil, []string{"RefreshInventory"}, nil, nil), nil
}

// IssueKey implements armapi.Providers.
func (s sites) IssueKey(_ context.Context, r vault.KeyRequest) (vault.RegistrationKey, error) {
	defer s.w.lock()()
	f, err := s.fabric(r.Fabric)
	if err != nil {
		return vault.RegistrationKey{}, err
	}
	if r.Validity == 0 {
		r.Validity = 5 * 24 * time.Hour
	}
	now := s.w.now()
	return vault.RegistrationKey{ID: s.w.uuid(), Fabric: f.ID, Secret: "hfk_" + Secret, OneTime: r.OneTime, Created: now, Expires: now.Add(r.Validity), CAPin: strings.Repeat("ab", 32), CreatedBy: r.By}, nil
}
