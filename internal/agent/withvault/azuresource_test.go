package withvault_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// azVM is a VM that runs in the simulated cloud.
type azVM struct {
	cloud *azsim.Cloud
	id    dr.VMID
	pages map[string]string // disk as the host names it → name in the page store
}

func (v azVM) ID() dr.VMID { return v.id }

func (v azVM) Write(disk string, off int64, p []byte) error {
	d, err := v.cloud.Pages().Device(v.pages[disk])
	if err != nil {
		return err
	}
	return d.WriteAt(context.Background(), p, off)
}

// Content is the beginning of a disk: those of Azure have whole GiB.
func (v azVM) Content(disk string) ([]byte, error) {
	d, err := v.cloud.Pages().Device(v.pages[disk])
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(d.Size(), 40<<20))
	return b, d.ReadAt(context.Background(), b, 0)
}

// TestReplicatesFromAzure: a VM that runs in Azure is protected like any other, by
// restore points of which only the pages that differ are read; the way home begins here.
func TestReplicatesFromAzure(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	s := newScene(t)
	ctx := t.Context()
	cloud, host := azureSite(t)
	id, err := host.Boot(ctx, hypervisor.BootSpec{Name: "web1", Owner: "somebody", Network: "lan",
		Config: hypervisor.VMConfig{VM: dr.VM{Name: "web1", Generation: 1, CPUs: 1, MemoryMB: 1024, OSType: "Linux"}},
		Disks:  []hypervisor.BootDisk{{ID: "a", Size: 24 << 20, Path: "/a"}, {ID: "b", Size: 40 << 20, Path: "/b"}}})
	ok(t, id, err)
	s.siteOf(dr.AzureSite, host)
	p := &protected{scene: s, want: map[string]map[string][]byte{}, rnd: rand.New(rand.NewPCG(9, 9))}
	vm := azVM{cloud: cloud, id: id, pages: map[string]string{}}
	var found dr.VM
	s.until("the VM to be discovered", func() bool {
		found, err = s.v.VM(ctx, s.primary.ID, id)
		return err == nil && len(found.Disks) == 2
	})
	for i, d := range found.Disks {
		p.disks = append(p.disks, d.ID)
		vm.pages[d.ID] = theVM(t, cloud).Disks[i]
	}
	p.vm = vm
	p.noise(p.disks[0], 0, 2<<20)
	p.noise(p.disks[1], 30<<20, 1<<20)
	p.enable("web1")
	p.point()
	read := func() (n int64) { // bytes that have left the cloud
		for op, c := range cloud.Pages().Counts() {
			if strings.Contains(strings.ToLower(op), "get blob") || strings.Contains(strings.ToLower(op), "getblob") {
				n += c.Out
			}
		}
		return n
	}
	before := read()
	p.noise(p.disks[1], 8<<20, 64<<10)
	p.noise(p.disks[0], 1<<20, 4096)
	p.point()
	p.point() // of a cycle in which nothing was written
	egress := read() - before
	t.Logf("%d bytes were read for %d changed ones", egress, 64<<10+4096)
	if before == 0 || egress == 0 || egress > 1<<20 {
		t.Errorf("egress %d, before %d: %v", egress, before, cloud.Pages().Counts())
	}
	p.check()
	points := 0
	for _, r := range cloud.Resources() {
		if strings.HasSuffix(strings.ToLower(r.Type), "/restorepoints") {
			points++
		}
	}
	if points == 0 || points > 3 {
		t.Errorf("%d restore points", points)
	}
	s.run(s.v.Disable(ctx, p.id, false, "test"))
	if left := fmt.Sprint(inAzure(cloud)); strings.Contains(strings.ToLower(left), "restorepoint") {
		t.Errorf("left after the end of protection: %s", left)
	}
}
