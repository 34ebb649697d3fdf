package hyperv_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
	"holdfast/internal/hypervisor/hypervisortest"
)

const (
	diskA = "aaaaaaaa-0000-4000-8000-000000000001"
	diskB = "bbbbbbbb-0000-4000-8000-000000000002"
	diskC = "cccccccc-0000-4000-8000-000000000003"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (kind %v, code %q)", err, dr.KindOf(err), dr.CodeOf(err))
	}
}

// rig is a simulated site with one host and the adapter on it.
type rig struct {
	dir   string
	site  *hvsim.Site
	sim   *hvsim.Host
	vm    *model.VM
	other *model.VM
	cfg   hyperv.Config
	wrap  func(cim.Session) cim.Session
	hosts []*hyperv.Host // agents with cfg.Dir, the last one alive
}

type rigOption func(*hvsim.Config, *hvsim.VMSpec)

func newRig(t testing.TB, opts ...rigOption) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv") // short: holds sockets
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	cfg := hvsim.Config{Dir: dir, Seed: 1, Hosts: []hvsim.HostConfig{{Name: "H1", Switches: []hvsim.Switch{{Name: "External", Kind: "external"}}}}}
	spec := hvsim.VMSpec{Name: "web1", VSS: model.VSSAbsent, Disks: []hvsim.DiskSpec{{ID: diskA, Size: 8 << 20, BlockSize: 1 << 20}, {ID: diskB, Size: 5 << 20}},
		NICs: []hvsim.NICSpec{{Switch: "External"}}, OS: "Ubuntu", NoSecureBoot: true}
	for _, o := range opts {
		o(&cfg, &spec)
	}
	r := &rig{dir: dir}
	r.site, err = hvsim.New(cfg)
	must(t, err)
	must(t, r.site.Open(t.Context()))
	t.Cleanup(func() { must(t, r.site.Close()) })
	r.sim = r.site.Host("H1")
	r.vm, err = r.sim.AddVM(t.Context(), spec)
	must(t, err)
	r.other, err = r.sim.AddVM(t.Context(), hvsim.VMSpec{Name: "web2", Disks: []hvsim.DiskSpec{{ID: diskA, Size: 4 << 20}}})
	must(t, err)
	r.cfg = hyperv.Config{Dir: filepath.Join(dir, "agent"), Disks: vhdxfiles.New(vhdxfiles.Config{Root: filepath.Join(dir, "H1"), NoSync: true}),
		Poll: time.Millisecond, WatchEvery: 20 * time.Millisecond, VerifyEvery: time.Nanosecond}
	if testing.Verbose() && os.Getenv("HV_LOG") != "" {
		r.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return r
}

// open is a new agent process; those before it are dead.
func (r *rig) open(t testing.TB) *hyperv.Host {
	t.Helper()
	r.killed(r.hosts...)
	h := r.openOn(t, r.sim, r.cfg)
	r.hosts = []*hyperv.Host{h}
	return h
}

// killed frees the directories of agents as their ends would.
func (r *rig) killed(hosts ...*hyperv.Host) {
	for _, h := range hosts {
		if h != nil {
			h.Abandon()
		}
	}
}

// openOn is an agent process beside others.
func (r *rig) openOn(t testing.TB, sim *hvsim.Host, cfg hyperv.Config) *hyperv.Host {
	t.Helper()
	cfg.Session = sim
	if r.wrap != nil {
		cfg.Session = r.wrap(cfg.Session)
	}
	h, err := hyperv.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

// eventually repeats what the host refuses while it merges.
func eventually(t testing.TB, fn func() error) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if !errors.Is(err, model.ErrState) && !errors.Is(err, model.ErrInUse) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func (r *rig) id() dr.VMID { return dr.VMID(strings.ToLower(r.vm.ID())) }

func (r *rig) fixture(t *testing.T) *hypervisortest.Fixture {
	h := r.open(t)
	dir := filepath.Join(r.dir, "H1", "C", "r")
	must(t, os.MkdirAll(dir, 0o755))
	write := func(t testing.TB, vm *model.VM, disk string, off int64, p []byte) {
		t.Helper()
		eventually(t, func() error { return vm.Disk(disk).Write(off, p) })
	}
	return &hypervisortest.Fixture{
		Host: h, VM: r.id(), Disks: []string{diskA, diskB}, Other: dr.VMID(strings.ToLower(r.other.ID())), Dir: dir, NewDisk: diskC,
		SurvivesStop: true, GrowIsWhole: true, BootCopies: true, NoConsole: true, Image: ".vhdx", TrimUnit: 2 << 20, Held: true,
		Write:      func(t testing.TB, disk string, off int64, p []byte) { write(t, r.vm, disk, off, p) },
		WriteOther: func(t testing.TB, off int64, p []byte) { write(t, r.other, diskA, off, p) },
		Trim: func(t testing.TB, disk string, off, n int64) {
			eventually(t, func() error { return r.vm.Disk(disk).Trim(off, n) })
		},
		Grow: func(t testing.TB, disk string, size int64) {
			eventually(t, func() error { return r.vm.Disk(disk).Resize(size) })
		},
		Shrink: func(t testing.TB, disk string, size int64) {
			eventually(t, func() error { return r.vm.Disk(disk).Resize(size) })
		},
		Pause: func(t testing.TB) { eventually(t, func() error { return r.vm.Pause(t.Context()) }) },
		Crash: func(t testing.TB) { must(t, r.vm.Crash()) },
		PowerOff: func(t testing.TB) {
			must(t, r.vm.PowerOff())
		},
		Successor: func(t testing.TB) hypervisor.Host { return r.open(t) },
		ForeignToken: func(t testing.TB) func() bool {
			_, exists, err := r.sim.ForeignReferencePoint(r.vm)
			must(t, err)
			return exists
		},
		Hang: func(t testing.TB) func() { return r.sim.Hang() },
		Content: func(t testing.TB, vm dr.VMID, _, path string) []byte {
			p, err := r.cfg.Disks.HostPath(path)
			must(t, err)
			d, err := r.cfg.Disks.Open(t.Context(), p, false)
			must(t, err)
			b := make([]byte, d.Info().Size)
			must(t, d.ReadAt(t.Context(), b, 0))
			must(t, d.Close())
			return b
		},
		AddDisk: func(t testing.TB, disk string, size int64) {
			_, err := r.vm.AddDisk(hvsim.DiskSpec{ID: disk, Size: size, Name: "added"})
			must(t, err)
		},
		RemoveDisk: func(t testing.TB, disk string) {
			eventually(t, func() error { return r.vm.RemoveDisk(disk, true) })
		},
		Replace: func(t testing.TB, disk string, size int64) {
			eventually(t, func() error { return r.vm.Disk(disk).Replace(size) })
		},
		Tracking: func(testing.TB) []string { return r.points() },
	}
}

// points lists the names of Holdfast's reference points that the host has.
func (r *rig) points() []string {
	var list []string
	for _, p := range r.vm.State().Points {
		if token, _, _ := strings.Cut(p.Name, "@"); strings.HasPrefix(token, "hf-") {
			list = append(list, token)
		}
	}
	slices.Sort(list)
	return list
}

// deaf is a host whose guests don't do what they are asked.
type deaf struct{ cim.Session }

func (d deaf) Invoke(ctx context.Context, path cim.Path, method string, in cim.Args) (cim.Out, error) {
	if method == "InitiateShutdown" {
		return cim.Out{}, nil
	}
	return d.Session.Invoke(ctx, path, method, in)
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]rigOption{
		"jobs": func(c *hvsim.Config, _ *hvsim.VMSpec) {
			c.JobTime, c.MergeTime = 2*time.Millisecond, 5*time.Millisecond
		},
		"inline": func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "jobs" && testing.Short() {
				t.Skip("slow")
			}
			hypervisortest.Run(t, func(t *testing.T) *hypervisortest.Fixture {
				r := newRig(t, o)
				r.wrap = func(s cim.Session) cim.Session { return deaf{s} }
				f := r.fixture(t)
				f.Limit = 4 * time.Minute // fifty group cuts with jobs and merges take long on a machine that is busy
				return f
			})
		})
	}
}
