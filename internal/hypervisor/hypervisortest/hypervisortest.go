package hypervisortest

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// unknownVM is a well-formed id that no host knows.
const unknownVM = dr.VMID("00000000-dead-4bee-8fff-000000000000")

type test struct {
	name string
	fn   func(*testing.T, *Fixture)
}

// Run runs the suite; open makes a fixture for one test and cleans it up with it.
func Run(t *testing.T, open func(t *testing.T) *Fixture) {
	RunSource(t, open)
	for _, c := range []test{
		{"Group", testGroup},
		{"GroupAllOrNothing", testGroupAllOrNothing},
		{"GroupCausality", testGroupCausality},
		{"Power", testPower},
		{"Boot", testBoot},
		{"BootRefusals", testBootRefusals},
		{"MakeLocalResumes", testMakeLocalResumes},
		{"Patcher", testPatcher},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(t, open(t)) })
	}
}

// RunSource runs the part of the suite about cuts of single VMs. A cloud, whose
// recovery VMs have no local images and are not of any size, runs this part only.
func RunSource(t *testing.T, open func(t *testing.T) *Fixture) {
	for _, c := range []test{
		{"Inventory", testInventory},
		{"FullCut", testFullCut},
		{"Incremental", testIncremental},
		{"SomeDisks", testSomeDisks},
		{"Abort", testAbort},
		{"TwoCuts", testTwoCuts},
		{"Forget", testForget},
		{"StaleCut", testStaleCut},
		{"Refusals", testRefusals},
		{"PowerAndTokens", testPowerAndTokens},
		{"GrowAndTrim", testGrowAndTrim},
		{"QuiesceFallsBack", testQuiesceFallsBack},
		{"Shape", testShape},
		{"Estimate", testEstimate},
		{"ParallelReads", testParallelReads},
		{"Hang", testHang},
		{"Watch", testWatch},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(t, open(t)) })
	}
}

func testInventory(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	info, err := f.Host.Info(ctx)
	ok(t, err)
	if info.Name == "" || info.Hypervisor == "" || info.CPUs < 1 || info.MemoryMB < 1 {
		t.Errorf("host info %+v", info)
	}
	vms, err := f.Host.Inventory(ctx)
	ok(t, err)
	i := slices.IndexFunc(vms, func(v dr.VM) bool { return v.ID == f.VM })
	if i < 0 {
		t.Fatalf("the inventory lacks the VM: %+v", vms)
	}
	vm := vms[i]
	if !vm.Running || vm.Name == "" || vm.Generation < 1 || vm.Generation > 2 || vm.CPUs < 1 || vm.MemoryMB < 1 {
		t.Errorf("the VM is described as %+v", vm)
	}
	boot := 0
	for _, id := range f.Disks {
		k := slices.IndexFunc(vm.Disks, func(d dr.Disk) bool { return d.ID == id })
		if k < 0 {
			t.Fatalf("disk %s is missing in %+v", id, vm.Disks)
		}
		if d := vm.Disks[k]; d.Unreplicatable != "" || d.Shared || d.PassThru || d.Size < 4<<20 {
			t.Errorf("disk %+v", d)
		}
		if vm.Disks[k].Boot {
			boot++
		}
	}
	if boot != 1 {
		t.Errorf("%d boot disks, want 1", boot)
	}
	cfg, err := f.Host.Config(ctx, f.VM)
	ok(t, err)
	if cfg.VM.ID != f.VM || cfg.VM.Name != vm.Name {
		t.Errorf("the configuration is of %+v", cfg.VM)
	}
	_, err = f.Host.Config(ctx, unknownVM)
	wantCode(t, err, dr.CodeVMNotFound)
	_, err = f.Host.Networks(ctx)
	ok(t, err)
}

func testHang(t *testing.T, f *Fixture) {
	m := newModel(t, f, 11)
	m.scribble(t, 2)
	c := f.begin(t, "", "h0")
	r := replica{}
	r.apply(t, f.limit(t), c)
	ok(t, c.End(f.limit(t)))
	base := c.Info().Token
	m.scribble(t, 2)

	release := f.Hang(t)
	calls := map[string]func(context.Context) error{
		"Inventory": func(ctx context.Context) error { _, err := f.Host.Inventory(ctx); return err },
		"State":     func(ctx context.Context) error { _, err := f.Host.State(ctx, f.VM); return err },
		"BeginCut": func(ctx context.Context) error {
			_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "h1"})
			return err
		},
		"Forget":  func(ctx context.Context) error { return f.Host.Forget(ctx, f.VM, []string{base}) },
		"Destroy": func(ctx context.Context) error { return f.Host.Destroy(ctx, f.Other) },
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := call(ctx)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("%s returned %v after its deadline", name, took)
			}
			if dr.KindOf(err) != dr.KindUnavailable {
				t.Errorf("%s on a platform that hangs: %v, want kind unavailable", name, err)
			}
			ctx, cancel = context.WithCancel(context.Background())
			cancel()
			if err := call(ctx); dr.KindOf(err) != dr.KindCanceled {
				t.Errorf("%s with a cancelled context: %v (kind %v)", name, err, dr.KindOf(err))
			}
		})
	}
	wg.Wait()
	release()

	// What hung may still take effect. The platform is usable again soon, and tracking is right.
	deadline := time.Now().Add(2 * time.Minute)
	for n := 0; ; n++ {
		c, err := f.Host.BeginCut(f.limit(t), hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: fmt.Sprintf("h2-%d", n)})
		if err == nil {
			r.apply(t, f.limit(t), c)
			r.mustEqual(t, m.now, "cut after a hang")
			ok(t, c.End(f.limit(t)))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the platform does not recover: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func testPower(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	state := func(want hypervisor.PowerState) {
		t.Helper()
		s, err := f.Host.State(ctx, f.VM)
		ok(t, err)
		if s != want {
			t.Fatalf("state %q, want %q", s, want)
		}
	}
	state(hypervisor.PowerOn)
	ok(t, f.Host.Start(ctx, f.VM))
	short, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	wantCode(t, f.Host.Shutdown(short, f.VM), dr.CodeShutdownTimeout)
	state(hypervisor.PowerOn)
	f.Pause(t)
	state(hypervisor.PowerPaused)
	ok(t, f.Host.Start(ctx, f.VM))
	state(hypervisor.PowerOn)
	ok(t, f.Host.Destroy(ctx, f.VM))
	ok(t, f.Host.Destroy(ctx, f.VM))
	state(hypervisor.PowerOff)
	ok(t, f.Host.Shutdown(ctx, f.VM)) // idempotent on a VM that is off
	_, err := f.Host.Screenshot(ctx, f.VM)
	wantCode(t, err, dr.CodeVMNotRunning)
	ok(t, f.Host.Start(ctx, f.VM))
	state(hypervisor.PowerOn)
	for name, err := range map[string]error{
		"Start": f.Host.Start(ctx, unknownVM), "Destroy": f.Host.Destroy(ctx, unknownVM), "Shutdown": f.Host.Shutdown(ctx, unknownVM),
		"MakeLocal": f.Host.MakeLocal(ctx, unknownVM, nil),
	} {
		if dr.CodeOf(err) != dr.CodeVMNotFound {
			t.Errorf("%s of an unknown VM: %v", name, err)
		}
	}
}

func testWatch(t *testing.T, f *Fixture) {
	ctx, cancel := context.WithCancel(f.limit(t))
	defer cancel()
	events := make(chan hypervisor.Event, 64)
	done := make(chan error, 1)
	go func() {
		done <- f.Host.Watch(ctx, func(e hypervisor.Event) {
			select {
			case events <- e:
			default:
			}
		})
	}()
	// A subscription takes a moment: change the state until its event comes.
	seen := func(kind string) bool {
		for {
			select {
			case e := <-events:
				if e.VM == f.VM && e.Kind == kind {
					return true
				}
			case <-time.After(500 * time.Millisecond):
				return false
			}
		}
	}
	stopped, started := false, false
	for i := 0; i < 20 && !(stopped && started); i++ {
		ok(t, f.Host.Destroy(f.limit(t), f.VM))
		stopped = seen("stopped") || stopped
		ok(t, f.Host.Start(f.limit(t), f.VM))
		started = seen("started") || started
	}
	if !stopped || !started {
		t.Errorf("events: stopped %v, started %v", stopped, started)
	}
	cancel()
	select {
	case err := <-done:
		ok(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("Watch goes on after its context has ended")
	}
}

// bootSpec asks for a recovery VM on devices with random content.
func (f *Fixture) bootSpec(t testing.TB, name string) (spec hypervisor.BootSpec, devices map[string]*memoryDevice, stop func()) {
	t.Helper()
	cfg, err := f.Host.Config(f.limit(t), f.VM)
	ok(t, err)
	rng := rand.NewChaCha8([32]byte{1})
	devices = map[string]*memoryDevice{}
	spec = hypervisor.BootSpec{Name: name, Owner: "suite", Config: cfg}
	for _, id := range f.Disks {
		d := &memoryDevice{data: make([]byte, 6<<20)}
		_, _ = rng.Read(d.data[1<<20 : 3<<20])
		devices["rp/"+id] = d
		spec.Disks = append(spec.Disks, hypervisor.BootDisk{ID: id, Size: int64(len(d.data)), Export: "rp/" + id, Path: filepath.Join(f.Dir, name, id+f.image())})
	}
	socket, stop := serve(t, f.Dir, devices)
	for i := range spec.Disks {
		spec.Disks[i].Socket = socket
	}
	return spec, devices, stop
}

func testBoot(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	spec, devices, stop := f.bootSpec(t, "replica-a")
	spec.CPUs, spec.MemoryMB = 2, 96
	id, err := f.Host.Boot(ctx, spec)
	ok(t, err)
	removed := false
	t.Cleanup(func() {
		if !removed {
			_ = f.Host.Remove(f.limit(t), id, spec.Owner)
		}
	})
	if id == f.VM {
		t.Fatal("a test failover took the source's UUID")
	}
	s, err := f.Host.State(ctx, id)
	ok(t, err)
	if s != hypervisor.PowerOn {
		t.Errorf("the recovery VM is %s", s)
	}
	cfg, err := f.Host.Config(ctx, id)
	ok(t, err)
	if cfg.VM.Name != spec.Name || cfg.VM.CPUs != 2 || cfg.VM.MemoryMB != 96 || len(cfg.VM.Disks) != len(spec.Disks) {
		t.Errorf("the recovery VM is %+v", cfg.VM)
	}
	again, err := f.Host.Boot(ctx, spec)
	ok(t, err)
	if again != id {
		t.Errorf("a second Boot made %s, want %s", again, id)
	}
	f.console(t, id)
	wantCode(t, f.Host.Remove(ctx, id, "somebody"), dr.CodeOperationNotAllowed)

	var last, total int64
	calls := 0
	ok(t, f.Host.MakeLocal(ctx, id, func(d, n int64) {
		calls++
		if d < last || d > n || (total != 0 && n != total) {
			t.Errorf("progress %d of %d after %d of %d", d, n, last, total)
		}
		last, total = d, n
	}))
	if calls == 0 || last != total || total != 12<<20 {
		t.Errorf("progress ended with %d of %d", last, total)
	}
	stop() // nothing depends on the sockets any more
	ok(t, f.Host.MakeLocal(ctx, id, nil))
	ok(t, f.Host.Destroy(ctx, id))
	for _, d := range spec.Disks {
		if got := f.Content(t, id, d.ID, d.Path); !bytes.Equal(got, devices[d.Export].data) {
			t.Errorf("disk %s of the recovery VM is not the recovery point", d.ID)
		}
	}
	ok(t, f.Host.Start(ctx, id)) // without the server
	ok(t, f.Host.Remove(ctx, id, spec.Owner))
	removed = true
	ok(t, f.Host.Remove(ctx, id, spec.Owner))
	for _, d := range spec.Disks {
		if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
			t.Errorf("%s is left over: %v", d.Path, err)
		}
	}
	_, err = f.Host.State(ctx, id)
	wantCode(t, err, dr.CodeVMNotFound)
}

// console looks at a running VM.
func (f *Fixture) console(t testing.TB, id dr.VMID) {
	t.Helper()
	shot, err := f.Host.Screenshot(f.limit(t), id)
	if f.NoConsole {
		wantKind(t, err, dr.KindUnsupported)
		_, err = f.Host.SerialLog(f.limit(t), id, 4096)
		wantKind(t, err, dr.KindUnsupported)
		return
	}
	ok(t, err)
	if img, err := png.Decode(bytes.NewReader(shot)); err != nil || img.Bounds().Dx() < 16 {
		t.Errorf("the screenshot is no picture: %v", err)
	}
	_, err = f.Host.SerialLog(f.limit(t), id, 4096)
	ok(t, err)
}

func testBootRefusals(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	spec, _, stop := f.bootSpec(t, "replica-b")
	cfg := spec.Config

	invalid := spec
	invalid.Owner = ""
	_, err := f.Host.Boot(ctx, invalid)
	wantKind(t, err, dr.KindInvalid)

	taken := spec
	taken.Name = cfg.VM.Name // the source's
	_, err = f.Host.Boot(ctx, taken)
	wantCode(t, err, dr.CodeAlreadyExists)

	same := spec
	same.KeepUUID = true // the source is defined on this host
	_, err = f.Host.Boot(ctx, same)
	wantCode(t, err, dr.CodeAlreadyExists)

	nowhere := spec
	nowhere.Network = "no-such-network"
	_, err = f.Host.Boot(ctx, nowhere)
	wantKind(t, err, dr.KindNotFound)

	wantCode(t, f.Host.Remove(ctx, f.VM, "suite"), dr.CodeOperationNotAllowed) // Boot did not make it
	s, err := f.Host.State(ctx, f.VM)
	ok(t, err)
	if s != hypervisor.PowerOn {
		t.Errorf("the source is %s after a refused Remove", s)
	}
	ok(t, f.Host.Remove(ctx, unknownVM, "suite"))

	// An image that Boot did not make is not touched.
	precious := spec.Disks[0].Path
	ok(t, os.MkdirAll(filepath.Dir(precious), 0o755))
	ok(t, os.WriteFile(precious, []byte("precious"), 0o600))
	if _, err = f.Host.Boot(ctx, spec); err == nil {
		t.Error("Boot used a file that it did not make")
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("a file that Boot did not make holds %q, %v", b, err)
	}
	ok(t, os.Remove(precious))

	stop() // no server: Boot fails and leaves nothing behind
	_, err = f.Host.Boot(ctx, spec)
	wantKind(t, err, dr.KindUnavailable)
	for _, d := range spec.Disks {
		if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
			t.Errorf("%s is left over: %v", d.Path, err)
		}
	}
	vms, err := f.Host.Inventory(ctx)
	ok(t, err)
	if slices.ContainsFunc(vms, func(v dr.VM) bool { return v.Name == spec.Name }) {
		t.Error("a VM that did not boot is still defined")
	}
}

func testMakeLocalResumes(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	spec, devices, stop := f.bootSpec(t, "replica-c")
	spec.Network = hypervisor.IsolatedNetwork
	if f.BootCopies {
		f.bootCopies(t, spec, devices, stop)
		return
	}
	id, err := f.Host.Boot(ctx, spec)
	ok(t, err)
	t.Cleanup(func() { ok(t, f.Host.Remove(f.limit(t), id, spec.Owner)) })
	for _, d := range devices {
		d.set(false, 50*time.Millisecond)
	}
	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := f.Host.MakeLocal(short, id, nil); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("MakeLocal past its deadline: %v", err)
	}
	for _, d := range devices {
		d.set(true, 0)
	}
	if err := f.Host.MakeLocal(ctx, id, nil); err == nil {
		t.Error("MakeLocal succeeded although the recovery point can't be read")
	}
	for _, d := range devices {
		d.set(false, 0)
	}
	ok(t, f.Host.MakeLocal(ctx, id, nil))
	stop()
	ok(t, f.Host.Destroy(ctx, id))
	for _, d := range spec.Disks {
		if got := f.Content(t, id, d.ID, d.Path); !bytes.Equal(got, devices[d.Export].data) {
			t.Errorf("disk %s of the recovery VM is not the recovery point", d.ID)
		}
	}
}

// bootCopies: Boot itself fails where the recovery point can't be read or time is
// up, leaves nothing, and succeeds when called again; then all is local.
func (f *Fixture) bootCopies(t *testing.T, spec hypervisor.BootSpec, devices map[string]*memoryDevice, stop func()) {
	ctx := f.limit(t)
	gone := func(after string) {
		t.Helper()
		for _, d := range spec.Disks {
			if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
				t.Errorf("%s is left over after %s: %v", d.Path, after, err)
			}
		}
		vms, err := f.Host.Inventory(ctx)
		ok(t, err)
		if slices.ContainsFunc(vms, func(v dr.VM) bool { return v.Name == spec.Name }) {
			t.Errorf("the VM is left over after %s", after)
		}
	}
	for _, d := range devices {
		d.set(false, 300*time.Millisecond)
	}
	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := f.Host.Boot(short, spec); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("Boot past its deadline: %v", err)
	}
	gone("a deadline")
	for _, d := range devices {
		d.set(true, 0)
	}
	_, err := f.Host.Boot(ctx, spec)
	wantKind(t, err, dr.KindUnavailable)
	gone("an error")
	for _, d := range devices {
		d.set(false, 0)
	}
	id, err := f.Host.Boot(ctx, spec)
	ok(t, err)
	t.Cleanup(func() { ok(t, f.Host.Remove(f.limit(t), id, spec.Owner)) })
	stop()
	ok(t, f.Host.MakeLocal(ctx, id, nil))
	ok(t, f.Host.Destroy(ctx, id))
	for _, d := range spec.Disks {
		if got := f.Content(t, id, d.ID, d.Path); !bytes.Equal(got, devices[d.Export].data) {
			t.Errorf("disk %s of the recovery VM is not the recovery point", d.ID)
		}
	}
}

// testPatcher writes into the disk of a VM that is off. Hosts that can't are skipped.
func testPatcher(t *testing.T, f *Fixture) {
	p, has := f.Host.(hypervisor.Patcher)
	if !has {
		t.Skip("the host can't patch disks")
	}
	ctx := f.limit(t)
	m := newModel(t, f, 16)
	m.scribble(t, 3)
	id := f.Disks[0]
	_, err := p.OpenDisk(ctx, f.VM, id)
	wantCode(t, err, dr.CodeVMNotOff)
	_, err = p.OpenDisk(ctx, unknownVM, id)
	wantCode(t, err, dr.CodeVMNotFound)
	c := f.begin(t, "", "patch0")
	ok(t, c.End(ctx))
	base := c.Info().Token

	f.PowerOff(t)
	_, err = p.OpenDisk(ctx, f.VM, "nodisk")
	wantCode(t, err, dr.CodeNotFound)
	d, err := p.OpenDisk(ctx, f.VM, id)
	ok(t, err)
	if d.Size() != int64(len(m.now[id])) {
		t.Errorf("the open disk has %d bytes, want %d", d.Size(), len(m.now[id]))
	}
	if _, err := p.OpenDisk(ctx, f.VM, id); err == nil {
		t.Error("a disk was opened twice")
	}
	if err := f.Host.Start(ctx, f.VM); err == nil {
		t.Error("the VM was started while its disk is open")
	}
	got := make([]byte, d.Size())
	ok(t, d.ReadAt(ctx, got, 0))
	if !bytes.Equal(got, m.now[id]) {
		t.Error("the open disk is not the guest's")
	}
	wantKind(t, d.WriteAt(ctx, make([]byte, 4096), d.Size()), dr.KindInvalid)
	for _, off := range []int64{0, 1 << 20, d.Size() - 4096} {
		b := bytes.Repeat([]byte{byte(off>>16) + 7}, 4096)
		ok(t, d.WriteAt(ctx, b, off))
		copy(m.now[id][off:], b)
	}
	ok(t, d.Flush(ctx))
	ok(t, d.Close())
	ok(t, d.Close())
	ok(t, f.Host.Start(ctx, f.VM))

	// Nothing may be taken since a token of before: trackers need not see the patch.
	_, err = f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "patch"})
	wantCode(t, err, dr.CodeTrackingLost)
	c, err = f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: "patch1"})
	ok(t, err)
	r := replica{}
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut after a patch")
	ok(t, c.End(ctx))
	ok(t, f.Host.Forget(ctx, f.VM, nil))
	_, err = f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "patch2"})
	wantCode(t, err, dr.CodeTrackingLost)
}
