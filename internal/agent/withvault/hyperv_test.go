package withvault_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
)

// hvVM is a VM of a simulated Hyper-V host.
type hvVM struct{ *hvsim.VM }

func (v hvVM) ID() dr.VMID { return dr.VMID(strings.ToLower(v.VM.ID())) }

func (v hvVM) Write(disk string, off int64, p []byte) error {
	return v.Disk(strings.ToUpper(disk)).Write(off, p)
}

func (v hvVM) Content(disk string) ([]byte, error) { return v.Disk(strings.ToUpper(disk)).Content() }

// hypervSite makes a site of simulated Hyper-V hosts with a protected VM of two disks on the first one.
func (s *scene) hypervSite(hosts ...string) (*hvsim.Site, *protected) {
	t := s.t
	t.Helper()
	cfg := hvsim.Config{Dir: t.TempDir(), MergeTime: 20 * time.Millisecond, JobTime: 5 * time.Millisecond}
	for _, h := range hosts {
		cfg.Hosts = append(cfg.Hosts, hvsim.HostConfig{Name: h})
	}
	site, err := hvsim.New(cfg)
	ok(t, site, err)
	if err := site.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	})
	vm, err := site.Host(hosts[0]).AddVM(t.Context(), hvsim.VMSpec{Name: "db", OS: "Windows Server 2022", Dir: `C:\ClusterStorage\Volume1\db`, Clustered: true,
		Disks: []hvsim.DiskSpec{{Size: 8 << 20}, {Size: 16 << 20}}})
	ok(t, vm, err)
	s.siteOf(dr.HyperVSite, s.hyperv(site.Host(hosts[0])))
	p := &protected{scene: s, vm: hvVM{vm}, rnd: rand.New(rand.NewPCG(1, 2)), want: map[string]map[string][]byte{}}
	for _, d := range vm.State().Disks {
		p.disks = append(p.disks, strings.ToLower(d.ID))
		p.noise(p.disks[len(p.disks)-1], 0, 2<<20)
	}
	p.enable("db")
	return site, p
}

// hyperv is the adapter of a simulated host.
func (s *scene) hyperv(h *hvsim.Host) *hyperv.Host {
	s.t.Helper()
	host, err := hyperv.Open(s.t.Context(), hyperv.Config{Session: h, Disks: vhdxfiles.New(vhdxfiles.Config{Root: h.Dir(), NoSync: true}), Dir: filepath.Join(h.Dir(), "C", "Holdfast"), Log: s.log})
	ok(s.t, host, err)
	s.t.Cleanup(func() {
		if err := host.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return host
}

// Whatever happens to a VM on Hyper-V: the next points are right, all earlier
// ones stay, and only true differences travel.
func TestHyperVTraps(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	ctx := context.Background()
	off := func(vm *hvsim.VM, do func() error) error {
		if err := vm.PowerOff(); err != nil {
			return err
		}
		if err := do(); err != nil {
			return err
		}
		return vm.Start(ctx)
	}
	for name, trap := range map[string]struct {
		blocks int64 // that truly differ afterwards
		spring func(p *protected, h *hvsim.Host, vm *hvsim.VM) error
	}{
		"nothing": {3, func(*protected, *hvsim.Host, *hvsim.VM) error { return nil }},
		"RCT lost": {3, func(p *protected, _ *hvsim.Host, vm *hvsim.VM) error {
			return vm.Disk(strings.ToUpper(p.disks[0])).LoseRCT()
		}},
		"power cycle": {3, func(_ *protected, _ *hvsim.Host, vm *hvsim.VM) error { return off(vm, func() error { return nil }) }},
		"crash": {3, func(_ *protected, _ *hvsim.Host, vm *hvsim.VM) error {
			if err := vm.Crash(); err != nil {
				return err
			}
			return vm.Start(ctx)
		}},
		"edited offline": {4, func(p *protected, _ *hvsim.Host, vm *hvsim.VM) error {
			return off(vm, func() error { return vm.Disk(strings.ToUpper(p.disks[1])).EditOffline(4<<20, make([]byte, cut.Block)) })
		}},
		"disk replaced": {3 + 2<<20/cut.Block, func(p *protected, _ *hvsim.Host, vm *hvsim.VM) error {
			return off(vm, func() error { return vm.Disk(strings.ToUpper(p.disks[0])).Replace(8 << 20) })
		}},
		"reverted": {5, func(p *protected, h *hvsim.Host, vm *hvsim.VM) error {
			id, err := h.UserCheckpoint(ctx, vm, "before the update")
			if err != nil {
				return err
			}
			p.noise(p.disks[0], 1<<20, 2*cut.Block)
			p.point()
			return off(vm, func() error { return vm.ApplyCheckpoint(id) })
		}},
		"user checkpoint": {3, func(_ *protected, h *hvsim.Host, vm *hvsim.VM) error {
			_, err := h.UserCheckpoint(ctx, vm, "kept")
			return err
		}},
		"disk grown": {3, func(p *protected, _ *hvsim.Host, vm *hvsim.VM) error {
			return vm.Disk(strings.ToUpper(p.disks[1])).Resize(24 << 20)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			site, p := s.hypervSite("HV1")
			vm := p.vm.(hvVM).VM
			p.point()
			p.noise(p.disks[1], 1<<20, cut.Block)
			p.point()
			before := s.sent()
			if err := trap.spring(p, site.Host("HV1"), vm); err != nil {
				t.Fatal(err)
			}
			p.noise(p.disks[0], 512<<10, 2*cut.Block)
			p.noise(p.disks[1], 3<<20, cut.Block)
			p.point()
			p.travelled(before, trap.blocks)
			p.noise(p.disks[1], 5<<20, cut.Block)
			p.point()
			p.check()
			if n := len(slices.Collect(maps.Keys(p.want))); n < 4 {
				t.Errorf("only %d points were compared", n)
			}
		})
	}
}

// A VM of a cluster moves to another host: that host's agent goes on with the
// history, ships true differences only, and leaves nothing behind on the way.
func TestHyperVMigrates(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some copy cycles")
	}
	t.Parallel()
	s := newScene(t)
	site, p := s.hypervSite("HV1", "HV2")
	s.host("two", "Primary", dr.RoleSource, s.hyperv(site.Host("HV2")))
	last := p.point()
	vm := p.vm.(hvVM).VM
	if err := site.Host("HV1").MigrateVM(vm, site.Host("HV2")); err != nil {
		t.Fatal(err)
	}
	p.noise(p.disks[0], 1<<20, cut.Block)
	before := s.sent()
	s.until("a point of the new host", func() bool {
		s.refresh()
		x := p.points()[0]
		return x.Gen > last.Gen && x.N > last.N
	})
	p.travelled(before, 1)
	p.noise(p.disks[1], 3<<20, cut.Block)
	p.point()
	p.check()
}
