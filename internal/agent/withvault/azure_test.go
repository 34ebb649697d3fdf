package withvault_test

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/vault"
)

// azGuest is a guest of the simulated cloud: it says that it is up, and ends when it is told to.
type azGuest struct {
	once sync.Once
	done chan struct{}
}

func (g *azGuest) Powerdown(context.Context) error { return g.Kill() }
func (g *azGuest) Done() <-chan struct{}           { return g.done }
func (g *azGuest) Kill() error                     { g.once.Do(func() { close(g.done) }); return nil }
func (g *azGuest) Screenshot(context.Context) ([]byte, error) {
	var b bytes.Buffer
	err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 8, 8)))
	return b.Bytes(), err
}

type azRunner struct{}

func (azRunner) Start(_ context.Context, m azsim.Machine) (azsim.Running, error) {
	return &azGuest{done: make(chan struct{})}, os.WriteFile(m.Serial, []byte(m.Name+" login: \n"), 0o600)
}

// azureSite starts a cloud and opens its resource group as a host.
func azureSite(t *testing.T) (*azsim.Cloud, *azure.Host) {
	t.Helper()
	dir := t.TempDir()
	cloud := azsim.New(azsim.Config{Dir: dir, Runner: azRunner{}})
	if err := cloud.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cloud.Close(); err != nil {
			t.Error(err)
		}
	})
	cloud.AddGroup("dr")
	cloud.AddVNet("dr", "lan", "10.0.0.0/16", map[string]string{"front": "10.0.1.0/24", "back": "10.0.2.0/24"})
	for name, text := range map[string]string{"ca.pem": string(cloud.CA()), "secret": azsim.DefaultClientSecret} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := arm.Open(t.Context(), arm.Config{Version: 1, Cloud: arm.CustomCloud, Authority: cloud.URL(), ResourceManager: cloud.URL(), StorageSuffix: cloud.URL() + "/storage/{account}",
		CAFile: filepath.Join(dir, "ca.pem"), Tenant: azsim.DefaultTenant, Subscription: azsim.DefaultSubscription, ResourceGroup: "dr", Network: "lan",
		Credential: arm.Credential{Kind: arm.CredentialSecret, ClientID: azsim.DefaultClientID, SecretFile: filepath.Join(dir, "secret")}},
		arm.Options{PollEvery: time.Millisecond, RetryDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	host, err := azure.Open(t.Context(), azure.Config{Session: s, WatchEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return cloud, host
}

// inAzure counts what exists by kind.
func inAzure(c *azsim.Cloud) map[string]int {
	out := map[string]int{}
	for _, r := range c.Resources() {
		out[r.Type]++
	}
	return out
}

// theVM is the one VM of the cloud.
func theVM(t *testing.T, c *azsim.Cloud) azsim.VM {
	t.Helper()
	var found []azsim.VM
	for _, r := range c.Resources() {
		if strings.EqualFold(r.Type, "Microsoft.Compute/virtualMachines") {
			vm, _ := c.VM(r.ID)
			found = append(found, vm)
		}
	}
	if len(found) != 1 {
		t.Fatalf("there are %d VMs", len(found))
	}
	return found[0]
}

// holds compares the disks of the cloud's VM with what a point has to hold.
func (p *protected) holds(c *azsim.Cloud, point dr.RecoveryPoint) {
	p.t.Helper()
	vm := theVM(p.t, c)
	if len(vm.Disks) != len(p.disks) {
		p.t.Fatalf("the VM has %d disks", len(vm.Disks))
	}
	for i, d := range p.disks {
		dev, err := c.Pages().Device(vm.Disks[i])
		if err != nil {
			p.t.Fatal(err)
		}
		want := p.want[point.Name()][d]
		got := make([]byte, len(want))
		if err := dev.ReadAt(p.t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			p.t.Errorf("disk %s in Azure is not what point %s holds (%v)", d, point.Name(), err)
		}
	}
}

// TestFailoversInAzure: every operation on a failover with a resource group as the
// recovery site, and after each exactly what should exist does.
func TestFailoversInAzure(t *testing.T) {
	s := newScene(t)
	ctx := t.Context()
	cloud, host := azureSite(t)
	s.recovers = dr.AzureSite
	s.src = sim.New(sim.Config{Name: "src"})
	s.siteOf(dr.KVMSite, s.src)
	s.host("az", "Recovery", dr.RoleRecovery, host)
	p := &protected{scene: s, disks: []string{"vda", "vdb"}, want: map[string]map[string][]byte{}, rnd: rand.New(rand.NewPCG(7, 8))}
	p.vm = s.src.AddVM(sim.VMSpec{Name: "web1", Disks: []sim.DiskSpec{{ID: "vda", Size: 24 << 20}, {ID: "vdb", Size: 30 << 20}}})
	p.noise("vda", 0, 3<<20)
	p.noise("vdb", 20<<20, 1<<20)
	p.enable("web1")
	s.until("the cloud's networks and sizes", func() bool {
		f, err := s.v.Fabric(ctx, "Recovery")
		if err != nil {
			return false
		}
		nets, err := s.v.Networks(ctx, f.ID)
		sizes, serr := s.v.ComputeSizes(ctx, p.id)
		return err == nil && serr == nil && len(nets) == 1 && len(sizes) > 5
	})
	empty := inAzure(cloud)
	same := func(what string) {
		t.Helper()
		if got := inAzure(cloud); fmt.Sprint(got) != fmt.Sprint(empty) {
			t.Errorf("after %s exists %v, before it was %v", what, got, empty)
		}
	}
	fail := func(kind dr.FailoverKind, point string) (dr.JobID, error) {
		return s.v.StartFailover(ctx, vault.FailoverRequest{Item: p.id, Kind: kind, Point: point, By: "test"})
	}
	item := func() dr.ProtectedItem {
		t.Helper()
		it, err := s.v.ItemByID(ctx, p.id)
		return ok(t, it, err)
	}

	first := p.point()
	s.run(fail(dr.KindTestFailover, first.Name()))
	p.holds(cloud, first)
	if got := inAzure(cloud); got["Microsoft.Network/publicIPAddresses"] != 0 || got["Microsoft.Network/virtualNetworks"] != empty["Microsoft.Network/virtualNetworks"]+1 {
		t.Errorf("the test's network: %v", got)
	}
	if it := item(); it.LastTestReport == "" || !strings.Contains(it.LastTestReport, `"ok":true`) || !strings.Contains(it.LastTestReport, "screenshot") {
		t.Errorf("the test's report: %s", it.LastTestReport)
	}
	s.run(s.v.CleanupTest(ctx, p.id, "fine", "test"))
	same("the clean-up of a test")

	p.noise("vda", 5<<20, 1<<20)
	p.want["last"] = map[string][]byte{}
	for _, d := range p.disks {
		b, err := p.vm.Content(d)
		p.want["last"][d] = ok(t, b, err)
	}
	s.run(fail(dr.KindPlannedFailover, ""))
	if got := s.running(s.src); len(got) != 0 {
		t.Errorf("at the source run %v", got)
	}
	list := p.points()
	p.want[list[0].Name()] = p.want["last"]
	delete(p.want, "last")
	p.holds(cloud, list[0])
	if vm := theVM(t, cloud); vm.Power != "running" || len(vm.Machine.NICs) != 1 || !strings.Contains(vm.Machine.NICs[0].Subnet, "/lan/subnets/back") { // the first by name
		t.Errorf("the recovery VM: %s, %+v", vm.Power, vm.Machine.NICs)
	}
	s.run(s.v.CancelFailover(ctx, p.id, "test"))
	same("a cancelled failover")
	s.until("the source runs again", func() bool { return len(s.running(s.src)) == 1 })

	// A quota stops the failover; everything is as before, and works when there is room.
	cloud.SetQuota("cores", 0)
	id, err := fail(dr.KindUnplannedFailover, "")
	if err != nil {
		t.Fatal(err)
	}
	var j dr.Job
	s.until("the failover to fail", func() bool {
		j, err = s.v.Job(ctx, id)
		return err == nil && j.State.Final()
	})
	if j.State != dr.JobFailed || !slices.ContainsFunc(j.Errors, func(e dr.JobError) bool { return e.Code == dr.CodeAzureQuota }) {
		t.Errorf("without quota: %s %+v", j.State, j.Errors)
	}
	same("a failover that failed")
	cloud.SetQuota("cores", 100)
	s.until("the item to be idle", func() bool { it := item(); return it.Job == "" && it.Active == dr.AtPrimary })

	p.noise("vdb", 0, 1<<20)
	second := p.point()
	s.run(fail(dr.KindUnplannedFailover, second.Name()))
	p.holds(cloud, second)
	one := inAzure(cloud)
	s.run(s.v.ChangePoint(ctx, p.id, first.Name(), "test"))
	p.holds(cloud, first)
	if got := inAzure(cloud); fmt.Sprint(got) != fmt.Sprint(one) {
		t.Errorf("after the change of the point exists %v, before it was %v", got, one)
	}
	s.run(s.v.Commit(ctx, p.id, "test"))
	if it := item(); it.Failover != dr.FailoverCommitted || theVM(t, cloud).Power != "running" {
		t.Errorf("committed: %s, the VM is %s", it.Failover, theVM(t, cloud).Power)
	}
	p.check()
}
