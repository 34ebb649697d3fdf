package withvault_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// fakeVMM is a VMM server whose answer a test decides.
type fakeVMM struct {
	mu    sync.Mutex
	s     vmm.Snapshot
	err   error
	asked int
}

func (f *fakeVMM) Snapshot(context.Context) (vmm.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.s, f.err
}

func (f *fakeVMM) set(change func(*fakeVMM)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// The agent of a VMM server, which has no hypervisor, tells what VMM manages; the
// VMs of the hosts' agents are in its clouds.
func TestVMMServer(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	ctx := t.Context()
	run := func(id dr.JobID, err error) { s.run(id, err) }
	run(s.v.CreateFabric(ctx, "VMM", dr.VMMSite, "test"))
	f, err := s.v.Fabric(ctx, "VMM")
	f = ok(t, f, err)
	host := sim.New(sim.Config{Name: "hv1"})
	vm := host.AddVM(sim.VMSpec{Name: "web", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
	s.host("hv1", "VMM", dr.RoleSource, host)

	const cloud = "c1000000-0000-4000-8000-00000000000a"
	fake := &fakeVMM{s: vmm.Snapshot{Version: 1, Server: vmm.Server{Name: "vmm01.corp.example"}, Clouds: []vmm.Cloud{{ID: cloud, Name: "Gold"}},
		Hosts:      []vmm.Host{{ID: "h1", Name: "hv1.corp.example", Switches: []vmm.Switch{{Name: "sw", LogicalNetworks: []string{"l1"}}}}},
		VMNetworks: []vmm.VMNetwork{{ID: "n1", Name: "corp", LogicalNetwork: "l1", Subnets: []vmm.Subnet{{Name: "web", VLAN: 7}}}},
		VMs:        []vmm.VM{{ID: strings.ToUpper(string(vm.ID())), Name: "web", Cloud: cloud}}}}
	k, err := s.v.IssueKey(ctx, vault.KeyRequest{Fabric: "VMM", By: "test"})
	k = ok(t, k, err)
	dir := t.TempDir()
	if _, err := agent.Register(ctx, agent.RegisterConfig{Key: agent.RegistrationKey{VaultURL: k.VaultURL, CAPin: k.CAPin, KeyID: k.ID, Secret: k.Secret},
		StateDir: dir, HostName: "vmm01", Roles: []dr.AgentRole{dr.RoleVMM}, Version: "test", Log: s.log}); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(agent.Config{StateDir: dir}); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("an agent without host and VMM: %v", err)
	}
	a, err := agent.New(agent.Config{StateDir: dir, VMM: fake, Version: "test", Log: s.log.With("host", "vmm01")})
	a = ok(t, a, err)
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	cloudOf := func(want string) func() bool {
		return func() bool {
			x, err := s.v.VM(ctx, f.ID, vm.ID())
			return err == nil && x.Facts.Cloud == want
		}
	}
	s.until("the VM is in its cloud", cloudOf(cloud))
	got, err := s.v.VMM(ctx, f.ID)
	if got = ok(t, got, err); got.Server.Name != "vmm01.corp.example" || len(got.Hosts) != 1 || got.Hosts[0].Switches[0].Name != "sw" || got.VMNetworks[0].Subnets[0].VLAN != 7 {
		t.Errorf("the vault knows %+v", got)
	}

	// Looking for VMs asks VMM at once.
	fake.set(func(f *fakeVMM) { f.s.VMs[0].Cloud = "" })
	before := time.Now()
	run(s.v.Discover(ctx, "VMM", f.ContainerName(), "web", "test"))
	if !cloudOf("")() {
		t.Error("after looking for VMs the vault does not know of the move")
	}
	if d := time.Since(before); d > 20*time.Second {
		t.Errorf("looking took %v", d)
	}
	// VMM is down: what is known stays, and the job says which host did not tell.
	fake.set(func(f *fakeVMM) { f.err = dr.New(dr.KindPrecondition, dr.CodeVMMModuleMissing, "test", "no module") })
	id, err := s.v.Discover(ctx, "VMM", f.ContainerName(), "", "test")
	if err != nil {
		t.Fatal(err)
	}
	s.until("the job ends", func() bool {
		j, err := s.v.Job(ctx, id)
		return err == nil && j.State.Final()
	})
	j, err := s.v.Job(ctx, id)
	if j = ok(t, j, err); j.State != dr.JobSucceeded || j.Outcome["failedHosts"] != "vmm01" || j.Outcome["hosts"] != "1" {
		t.Errorf("with VMM down: %s %v %+v", j.State, j.Outcome, j.Errors)
	}
	if clouds, err := s.v.Clouds(ctx, f.ID); err != nil || len(clouds) != 1 {
		t.Errorf("clouds %v, %v", clouds, err)
	}
}
