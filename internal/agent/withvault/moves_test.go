package withvault_test

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
	"holdfast/internal/vault"
)

// protected is a VM under replication, and what its recovery points have to hold.
type protected struct {
	*scene
	vm    machine
	id    dr.ItemID
	rnd   *rand.Rand
	disks []string
	want  map[string]map[string][]byte // name of a point → disk → content
}

// machine is a VM as its guest sees it.
type machine interface {
	ID() dr.VMID
	Write(disk string, off int64, p []byte) error
	Content(disk string) ([]byte, error)
}

// site makes the primary site with one host, and a policy that resynchronizes at once.
func (s *scene) site() {
	s.t.Helper()
	s.src = sim.New(sim.Config{Name: "src"})
	s.siteOf(dr.KVMSite, s.src)
}

// siteOf is site with a host of any hypervisor.
func (s *scene) siteOf(kind dr.FabricType, h hypervisor.Host) {
	s.t.Helper()
	ctx := s.t.Context()
	s.run(s.v.CreateFabric(ctx, "Primary", kind, "test"))
	s.run(s.v.CreateFabric(ctx, "Recovery", cmp.Or(s.recovers, dr.KVMSite), "test"))
	s.srcDir = s.host("src", "Primary", dr.RoleSource, h)
	primary, err := s.v.Fabric(ctx, "Primary")
	s.primary = ok(s.t, primary, err)
	recovery, err := s.v.Fabric(ctx, "Recovery")
	ok(s.t, recovery, err)
	s.run(s.v.SavePolicy(ctx, dr.Policy{Name: "gold", CopyFrequency: 5 * time.Second, Retention: time.Hour, ResyncAuto: dr.ResyncNow}, true, "test"))
	policy, err := s.v.Policy(ctx, "gold")
	ok(s.t, policy, err)
	s.run(s.v.CreateMapping(ctx, dr.ContainerMapping{Name: "map", Fabric: s.primary.ID, Policy: policy.ID,
		Target: "/x/replicationFabrics/Recovery/replicationProtectionContainers/" + recovery.ContainerName()}, "test"))
}

// protect adds a VM with content and waits until it is protected.
func (s *scene) protect(name string, size int64) *protected {
	s.t.Helper()
	p := &protected{scene: s, rnd: rand.New(rand.NewPCG(1, uint64(size))), disks: []string{"vda"}, want: map[string]map[string][]byte{}}
	p.vm = s.src.AddVM(sim.VMSpec{Name: name, Disks: []sim.DiskSpec{{ID: "vda", Size: size}}})
	p.noise("vda", 0, size-1<<20)
	p.enable(name)
	return p
}

// enable waits until the VM is discovered, and then until it is protected.
func (p *protected) enable(name string) {
	p.t.Helper()
	s, ctx := p.scene, p.t.Context()
	s.until("the inventory", func() bool {
		vms, err := s.v.VMs(ctx, s.primary.ID)
		for _, vm := range vms {
			if err == nil && vm.Name == name {
				return true
			}
		}
		return false
	})
	s.run(s.v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: string(p.vm.ID()), VM: p.vm.ID(), Policy: "gold", By: "test"}))
	it, err := s.v.Item(ctx, s.primary.ID, string(p.vm.ID()))
	p.id = ok(s.t, it, err).ID
	s.until("protected", func() bool {
		it, err := s.v.ItemByID(ctx, p.id)
		return err == nil && it.Protection == dr.Protected && it.Job == ""
	})
}

func (p *protected) noise(disk string, off, n int64) {
	p.t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.rnd.Uint32())
	}
	if err := p.vm.Write(disk, off, b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *protected) points() []dr.RecoveryPoint {
	p.t.Helper()
	list, err := p.v.Points(p.t.Context(), p.id)
	return ok(p.t, list, err)
}

// point waits for a recovery point of what the VM, which does not write now, holds.
func (p *protected) point() dr.RecoveryPoint {
	p.t.Helper()
	now := time.Now()
	var at dr.RecoveryPoint
	p.until("a recovery point with everything", func() bool {
		list := p.points()
		if len(list) == 0 || !list[0].Time.After(now) {
			return false
		}
		at = list[0]
		return true
	})
	p.want[at.Name()] = map[string][]byte{}
	for _, d := range p.disks {
		b, err := p.vm.Content(d)
		p.want[at.Name()][d] = ok(p.t, b, err)
	}
	return at
}

// sent counts the bytes that agents have stored.
func (s *scene) sent() (n int64) {
	s.t.Helper()
	if err := s.bucket.List(s.t.Context(), "", func(i objstore.Info) error {
		switch o, err := cut.ParseObject(i.Key); {
		case err != nil:
		case o.Class == cut.ClassCut, o.Class == cut.ClassPart, o.Class == cut.ClassTile:
			n += i.Size
		}
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// check compares all points that are known with what they have to hold; none may be gone.
func (p *protected) check() {
	p.t.Helper()
	st := store.New(store.Config{Bucket: p.bucket, Keys: store.NewKeyring(p.bucket, p.key)})
	listed := map[string]dr.RecoveryPoint{}
	for _, x := range p.points() {
		listed[x.Name()] = x
	}
	for name, disks := range p.want {
		x, ok := listed[name]
		if !ok {
			p.t.Errorf("recovery point %s is not listed any more", name)
			continue
		}
		view, err := st.OpenPoint(p.t.Context(), x.Machine, x.Gen, x.N)
		if err != nil {
			p.t.Errorf("recovery point %s: %v", name, err)
			continue
		}
		for d, want := range disks {
			got := make([]byte, len(want))
			if err := view.ReadAt(p.t.Context(), d, got, 0); err != nil || !bytes.Equal(got, want) {
				p.t.Errorf("recovery point %s, disk %s: not what the VM had (%v)", name, d, err)
			}
		}
		if err := view.Close(); err != nil {
			p.t.Error(err)
		}
	}
}

// same fails unless about as many bytes travelled as so many changed blocks take.
func (p *protected) travelled(before int64, blocks int64) {
	p.t.Helper()
	// An empty cut has some KiB, and there is one every five seconds.
	if got := p.sent() - before; got > blocks*cut.Block+256<<10 {
		p.t.Errorf("%d bytes travelled for %d changed blocks", got, blocks)
	}
}

// refresh asks the hosts for inventories, which come every five minutes otherwise.
func (s *scene) refresh() {
	s.t.Helper()
	providers, err := s.v.Providers(s.t.Context(), s.primary.ID)
	for _, x := range ok(s.t, providers, err) {
		_, _ = s.v.RefreshProvider(s.t.Context(), s.primary.ID, x.ID, "test")
	}
	time.Sleep(300 * time.Millisecond)
}

// The agent's host is installed again and registers again: the history is kept,
// and only true differences travel.
func TestHostInstalledAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	s.site()
	p := s.protect("db", 8<<20)
	p.point()
	p.noise("vda", 1<<20, 4096)
	last := p.point()
	s.stops["src"]()
	if err := os.RemoveAll(s.srcDir); err != nil {
		t.Fatal(err)
	}
	p.noise("vda", 2<<20, 4096)
	p.noise("vda", 5<<20, 4096)
	before := s.sent()
	dir := t.TempDir()
	s.install("src", "Primary", dr.RoleSource, s.src, dir)
	s.until("a point of the new generation", func() bool { x := p.points()[0]; return x.Gen > last.Gen && x.N > last.N })
	p.travelled(before, 2)
	p.point()
	p.noise("vda", 3<<20, 4096)
	p.point()
	p.check()
}

// The VM moves to another host of the site: its agent takes over by itself.
func TestVMMoves(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	s.site()
	p := s.protect("db", 8<<20)
	last := p.point()
	two := sim.New(sim.Config{Name: "two"})
	s.host("two", "Primary", dr.RoleSource, two)
	vm, err := p.vm.(*sim.VM).MoveTo(two)
	p.vm = ok(t, vm, err)
	p.noise("vda", 2<<20, 4096)
	before := s.sent()
	s.until("a point of the new host", func() bool {
		s.refresh()
		x := p.points()[0]
		return x.Gen > last.Gen && x.N > last.N
	})
	p.travelled(before, 1)
	p.noise("vda", 3<<20, 4096)
	p.point()
	p.check()
	if _, err := os.Stat(filepath.Join(s.srcDir, "replicas")); err != nil {
		t.Error(err)
	}
}

// shape changes the VM's disks and waits for points with them.
func (p *protected) shape(do func() error, disks ...string) {
	p.t.Helper()
	p.until("the host changes the disks", func() bool { return do() == nil }) // not while a cut is open
	if len(p.disks) != len(disks) {
		p.until("the inventory has the disk", func() bool {
			p.refresh()
			_, err := p.v.ChangeDisks(p.t.Context(), p.id, disks, "test")
			return err == nil
		})
	}
	p.disks = disks
	st := store.New(store.Config{Bucket: p.bucket, Keys: store.NewKeyring(p.bucket, p.key)})
	p.until("points with the disks", func() bool {
		x := p.points()[0]
		c, err := st.ReadCut(p.t.Context(), x.Machine, x.Gen, x.N)
		return err == nil && len(c.Commit.Disks) == len(disks)
	})
	p.point()
}

// A disk is added, one grows and one is removed; the history goes on.
func TestDisksOfAnItemChange(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	s.site()
	p := s.protect("db", 4<<20)
	p.point()
	p.shape(func() error { return p.vm.(*sim.VM).AddDisk(sim.DiskSpec{ID: "vdb", Size: 2 << 20}) }, "vda", "vdb")
	p.noise("vdb", 0, 1<<20)
	p.point()
	p.shape(func() error { return p.vm.(*sim.VM).Grow("vdb", 3<<20) }, "vda", "vdb")
	p.noise("vdb", 2<<20+512<<10, 4096)
	p.point()
	p.shape(func() error { return p.vm.(*sim.VM).RemoveDisk("vda") }, "vdb")
	p.check()
}

// The host is installed again after its first disk went: the right disk is
// compared with the right history.
func TestHostInstalledAgainWithOtherDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	s.site()
	p := s.protect("db", 4<<20)
	p.point()
	p.shape(func() error { return p.vm.(*sim.VM).AddDisk(sim.DiskSpec{ID: "vdb", Size: 2 << 20}) }, "vda", "vdb")
	p.noise("vdb", 0, 1<<20)
	p.point()
	p.shape(func() error { return p.vm.(*sim.VM).RemoveDisk("vda") }, "vdb")
	s.stops["src"]()
	last := p.points()[0]
	before := s.sent()
	s.install("src", "Primary", dr.RoleSource, s.src, t.TempDir())
	s.until("a point of the new generation", func() bool { x := p.points()[0]; return x.Gen > last.Gen })
	p.travelled(before, 0)
	p.point()
	p.check()
}

// Two VMs of a consistency group: instants of which both have a point.
func TestGroupOfTwo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	s.site()
	a, b := s.protect("web", 2<<20), s.protect("db", 2<<20)
	g, err := s.v.CreateGroup(t.Context(), "shop", []dr.ItemID{a.id, b.id}, "test")
	ok(t, g, err)
	s.until("instants of the group", func() bool {
		points, err := s.v.GroupPoints(t.Context(), g.ID)
		n := 0
		for _, x := range ok(t, points, err) {
			if x.Complete {
				n++
			}
		}
		return n >= 2
	})
	a.point()
	b.point()
	a.check()
	b.check()
}
