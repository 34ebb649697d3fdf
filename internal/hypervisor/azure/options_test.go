package azure_test

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/nbd"
	"holdfast/internal/pageblob"
)

// Every setting of BootSpec and of the site arrives in Azure.
func TestOptions(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.cfg.Tags = map[string]string{"cost": "dr", "env": "site"}
	s.cloud.Add("dr", arm.TypeSecurityGroup, "nsg", map[string]any{"location": "westeurope", "properties": map[string]any{}})
	s.cloud.AddGroup("apps")
	before := s.resources()
	h := s.host()
	spec := empty("vm1")
	spec.KeepUUID = true
	spec.CPUs, spec.MemoryMB = 3, 9000
	spec.Config.VM.Generation, spec.Config.VM.OSType = 1, "Windows"
	spec.Config.VM.Disks = []dr.Disk{{ID: "vdb", Boot: true}, {ID: "vda"}}
	spec.Disks = append(spec.Disks, hypervisor.BootDisk{ID: "vdb", Size: 2 << 30, Path: "/y"}, hypervisor.BootDisk{ID: "vdc", Size: 5 << 30, Path: "/z"})
	spec.Cloud = hypervisor.CloudTarget{ResourceGroup: "apps", Zone: "2", DiskType: "Premium_LRS", LicenseType: "Windows_Server", SecurityGroup: "nsg", PublicIP: true,
		Tags: map[string]string{"env": "item"}}
	id, err := h.Boot(t.Context(), spec)
	ok(t, err)
	session, err := arm.Open(t.Context(), s.cfg, arm.Options{})
	ok(t, err)
	t.Cleanup(func() { ok(t, session.Close()) })
	v, err := session.VMs.Get(t.Context(), "apps", "vm1", nil)
	ok(t, err)
	p := v.Properties
	if *v.Zones[0] != "2" || *p.LicenseType != "Windows_Server" || *p.HardwareProfile.VMSize != "Standard_D4s_v5" || *v.Tags["env"] != "item" || *v.Tags["cost"] != "dr" ||
		*v.Tags[arm.TagPurpose] != arm.PurposeRecovery || !*p.DiagnosticsProfile.BootDiagnostics.Enabled || p.DiagnosticsProfile.BootDiagnostics.StorageURI != nil || p.SecurityProfile != nil {
		t.Errorf("VM %+v", v.VirtualMachine)
	}
	if o := p.StorageProfile.OSDisk; *o.OSType != armcompute.OperatingSystemTypesWindows || !strings.HasSuffix(*o.ManagedDisk.ID, "/vm1-os") || *o.CreateOption != armcompute.DiskCreateOptionTypesAttach {
		t.Errorf("OS disk %+v", o)
	}
	cfg, err := h.Config(t.Context(), id)
	ok(t, err)
	var disks []string
	for _, d := range cfg.VM.Disks {
		disks = append(disks, d.ID)
	}
	if !slices.Equal(disks, []string{"vdb", "vda", "vdc"}) || cfg.VM.Generation != 1 || cfg.VM.OSType != "Windows" || len(cfg.Native["azure.vm.json"]) == 0 || len(cfg.VM.NICs[0].IPs) != 2 {
		t.Errorf("configuration %+v", cfg.VM)
	}
	d, err := session.Disks.Get(t.Context(), "apps", "vm1-os", nil)
	ok(t, err)
	if *d.SKU.Name != armcompute.DiskStorageAccountTypesPremiumLRS || *d.Zones[0] != "2" || *d.Properties.HyperVGeneration != armcompute.HyperVGenerationV1 || *d.Properties.DiskSizeGB != 2 {
		t.Errorf("disk %+v", d.Disk)
	}
	// In another group, by a process that has never heard of it.
	next := s.host()
	if inv, err := next.Inventory(t.Context()); err != nil || len(inv) != 1 || inv[0].ID != id {
		t.Errorf("inventory %+v, %v", inv, err)
	}
	ok(t, next.Remove(t.Context(), id, "o"))
	s.unchanged(t, before)

	s.cloud.Add("dr", arm.TypeAvailabilitySet, "set", map[string]any{"location": "westeurope", "sku": map[string]any{"name": "Aligned"}, "properties": map[string]any{"platformFaultDomainCount": 2, "platformUpdateDomainCount": 5}})
	spec = empty("vm2")
	spec.Cloud.AvailabilitySet, spec.Cloud.Size = "set", "standard_b1s" // a smaller one than the source's is the operator's choice
	_, err = h.Boot(t.Context(), spec)
	ok(t, err)
	v, err = session.VMs.Get(t.Context(), "dr", "vm2", nil)
	ok(t, err)
	if !strings.HasSuffix(*v.Properties.AvailabilitySet.ID, "/set") || *v.Properties.HardwareProfile.VMSize != "Standard_B1s" {
		t.Errorf("VM %+v", v.Properties)
	}
	ok(t, h.Remove(t.Context(), "", "o"))
}

// guest is a guest that a test plays.
type guest struct {
	m    azsim.Machine
	done chan struct{}
	end  func()
	deaf bool
}

func (g *guest) Powerdown(context.Context) error {
	if !g.deaf {
		g.end()
	}
	return nil
}

func (g *guest) Screenshot(context.Context) ([]byte, error) {
	img := image.NewRGBA(image.Rect(0, 0, 32, 16))
	img.Set(1, 1, color.White)
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}

func (g *guest) Done() <-chan struct{} { return g.done }
func (g *guest) Kill() error           { g.end(); return nil }

type guests struct {
	mu   sync.Mutex
	all  []*guest
	deaf bool
}

func (r *guests) Start(_ context.Context, m azsim.Machine) (azsim.Running, error) {
	if err := os.WriteFile(m.Serial, []byte("Linux version 6\nlogin: "), 0o600); err != nil {
		return nil, err
	}
	g := &guest{m: m, done: make(chan struct{}), deaf: r.deaf}
	g.end = sync.OnceFunc(func() { close(g.done) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, g)
	return g, nil
}

func TestPowerAndConsole(t *testing.T) {
	t.Parallel()
	run := &guests{}
	s := newStage(t, func(c *azsim.Config) { c.Runner, c.Shutdown = run, 100*time.Millisecond })
	h := s.host()
	ctx := t.Context()
	events := make(chan hypervisor.Event, 100)
	watching, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- h.Watch(watching, func(e hypervisor.Event) {
			select {
			case events <- e:
			default:
			}
		})
	}()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // what comes before the first look is no event
		lists := 0
		for _, c := range s.cloud.Calls() {
			if strings.HasSuffix(c.Path, "/virtualMachines") {
				lists++
			}
		}
		if lists > 1 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("Watch does not look")
		}
	}
	id, err := h.Boot(ctx, empty("vm1"))
	ok(t, err)
	state := func(want hypervisor.PowerState) {
		t.Helper()
		got, err := h.State(ctx, id)
		ok(t, err)
		if got != want {
			t.Fatalf("state %s, want %s", got, want)
		}
	}
	seen := func(kind string) {
		t.Helper()
		for limit := time.After(30 * time.Second); ; {
			select {
			case e := <-events:
				if e.VM == id && e.Kind == kind {
					return
				}
			case <-limit:
				t.Fatalf("no event %q", kind)
			}
		}
	}
	state(hypervisor.PowerOn)
	seen("started")
	log, err := h.SerialLog(ctx, id, 7)
	ok(t, err)
	if string(log) != "login: " {
		t.Errorf("serial log %q", log)
	}
	shot, err := h.Screenshot(ctx, id)
	ok(t, err)
	if img, err := png.Decode(bytes.NewReader(shot)); err != nil || img.Bounds().Dx() != 32 {
		t.Errorf("screenshot: %v", err)
	}
	_, _, err = h.Pulse(ctx, id)
	ok(t, err)
	ok(t, h.Start(ctx, id))
	ok(t, h.Destroy(ctx, id))
	ok(t, h.Destroy(ctx, id))
	state(hypervisor.PowerOff)
	seen("stopped")
	_, err = h.Screenshot(ctx, id)
	wantCode(t, err, dr.CodeVMNotRunning)
	ok(t, h.Start(ctx, id))
	state(hypervisor.PowerOn)
	ok(t, h.Shutdown(ctx, id))
	state(hypervisor.PowerOff)
	if v, _ := s.cloud.VM(s.id(arm.TypeVM, "vm1")); v.Power != "deallocated" {
		t.Errorf("after Shutdown the VM is %s and is paid for", v.Power)
	}
	ok(t, h.Shutdown(ctx, id))
	again, err := h.Boot(ctx, empty("vm1"))
	ok(t, err)
	if again != id {
		t.Errorf("Boot of a VM that is off made %s", again)
	}
	state(hypervisor.PowerOn)
	in := s.cloud.Fault(azsim.Fault{Method: "POST", Path: "/poweroff$", Delay: 20 * time.Second})
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	wantCode(t, h.Shutdown(short, id), dr.CodeShutdownTimeout)
	if in.Fired() != 1 {
		t.Error("the fault did not fire")
	}
	const unknown = "00000000-dead-4bee-8fff-000000000000"
	for name, err := range map[string]error{"Start": h.Start(ctx, unknown), "Destroy": h.Destroy(ctx, unknown), "Shutdown": h.Shutdown(ctx, unknown), "MakeLocal": h.MakeLocal(ctx, unknown, nil)} {
		if dr.CodeOf(err) != dr.CodeVMNotFound {
			t.Errorf("%s of an unknown VM: %v", name, err)
		}
	}
	ok(t, h.Remove(ctx, id, "o"))
	seen("undefined")
	stop()
	ok(t, <-done)
	if strings.Contains(s.logged(), "sig=") {
		t.Error("a signature was logged")
	}
}

func TestInfoAndNetworks(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.cfg.Network = "shared/hub"
	h := s.host()
	i, err := h.Info(t.Context())
	ok(t, err)
	if i.Name != "dr" || !strings.Contains(i.Hypervisor, "westeurope") || i.CPUs < 1 || i.MemoryMB < 1 {
		t.Errorf("info %+v", i)
	}
	spec := empty("vm1")
	spec.Network = ""
	_, err = h.Boot(t.Context(), spec) // its network is not offered
	ok(t, err)
	list, err := h.Networks(t.Context())
	ok(t, err)
	if want := []hypervisor.Network{{Name: "shared/hub", Active: true}, {Name: "prod", Active: true}}; !slices.Equal(list, want) {
		t.Errorf("networks %+v", list)
	}
	ok(t, h.Remove(t.Context(), "", "o"))
}

// A disk comes from a page blob where there is one, and the served point is not read.
func TestBootFromImage(t *testing.T) {
	t.Parallel()
	s, p := newStage(t), newPoint(t, map[string]int{"vda": 21 * mib})
	s.cloud.AddStorageAccount("dr", "warmacct")
	s.cfg.StorageAccount, s.cfg.Container = "warmacct", "warm"
	before := s.resources()
	h := s.host()
	session, err := arm.Open(t.Context(), s.cfg, arm.Options{})
	ok(t, err)
	t.Cleanup(func() { ok(t, session.Close()) })
	box := s.cloud.URL() + "/storage/warmacct/warm"
	cc, err := container.NewClient(box, session.Credential(), &container.ClientOptions{ClientOptions: session.ClientOptions()})
	ok(t, err)
	_, err = cc.Create(t.Context(), nil)
	ok(t, err)
	blob, err := pageblob.Open(box+"/app.vhd", pageblob.Config{Token: session.Credential(), Transport: session.HTTP().Transport})
	ok(t, err)
	t.Cleanup(func() { ok(t, blob.Close()) })
	_, err = blob.Create(t.Context(), 21*mib+512, 0, nil, pageblob.If{})
	ok(t, err)
	from, err := nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: p.socket, Export: "rp/vda", Contexts: []string{nbd.ContextAllocation}})
	ok(t, err)
	_, err = pageblob.Upload(t.Context(), blob, pageblob.FromNBD(from), pageblob.Options{})
	ok(t, errors.Join(err, from.Close()))
	snap, err := blob.Snapshot(t.Context(), nil, pageblob.If{})
	ok(t, err)
	p.devices["vda"].reads.Store(0)
	spec := p.spec("app")
	spec.Disks[0].Image = pageblob.SnapshotURL(blob.URL(), snap)
	id, err := h.Boot(t.Context(), spec)
	ok(t, err)
	if p.devices["vda"].reads.Load() != 0 {
		t.Error("the served point was read")
	}
	s.sameContent(t, "app", p)
	ok(t, h.Remove(t.Context(), id, spec.Owner))
	s.unchanged(t, before)
}

// Calls on an Azure that does not answer end with their contexts.
func TestHang(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	h := s.host()
	id, err := h.Boot(t.Context(), empty("vm1"))
	ok(t, err)
	in := s.cloud.Fault(azsim.Fault{Path: "/providers/", Delay: time.Minute, Times: -1})
	for name, call := range map[string]func(context.Context) error{
		"Inventory": func(ctx context.Context) error { _, err := h.Inventory(ctx); return err },
		"State":     func(ctx context.Context) error { _, err := h.State(ctx, id); return err },
		"Networks":  func(ctx context.Context) error { _, err := h.Networks(ctx); return err },
		"Start":     func(ctx context.Context) error { return h.Start(ctx, id) },
		"Destroy":   func(ctx context.Context) error { return h.Destroy(ctx, id) },
		"Remove":    func(ctx context.Context) error { return h.Remove(ctx, id, "o") },
		"SerialLog": func(ctx context.Context) error { _, err := h.SerialLog(ctx, id, 10); return err },
		"Boot":      func(ctx context.Context) error { _, err := h.Boot(ctx, empty("vm1")); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := call(ctx); dr.KindOf(err) != dr.KindUnavailable {
			t.Errorf("%s past its deadline: %v (kind %v)", name, err, dr.KindOf(err))
		}
		cancel()
		if err := call(ctx); dr.KindOf(err) == dr.KindInternal || dr.KindOf(err) == dr.KindNotFound || err == nil {
			t.Errorf("%s with a context that is over: %v (kind %v)", name, err, dr.KindOf(err))
		}
	}
	if in.Fired() == 0 {
		t.Error("the fault did not fire")
	}
	in.Remove()
	ok(t, h.Remove(t.Context(), id, "o"))
}

// A Boot that goes on where another process died does not send what is there already.
func TestBootGoesOn(t *testing.T) {
	t.Parallel()
	s, p := newStage(t), twoDisks(t)
	before := s.resources()
	c := &cord{}
	h := s.host(c.wrapOption(t, s))
	in := s.cloud.Fault(azsim.Fault{Method: "PUT", Path: "/virtualMachines/app$", Unsent: true, Hook: func() { c.cut.Store(true) }})
	spec := p.spec("app")
	if _, err := h.Boot(t.Context(), spec); err == nil || in.Fired() != 1 {
		t.Fatalf("the process did not die: %v", err)
	}
	for _, d := range p.devices {
		d.reads.Store(0)
	}
	next := s.host()
	id, err := next.Boot(t.Context(), spec)
	ok(t, err)
	for n, d := range p.devices {
		if d.reads.Load() != 0 {
			t.Errorf("disk %s was read again", n)
		}
	}
	s.sameContent(t, "app", p)
	ok(t, next.Remove(t.Context(), id, spec.Owner))
	s.unchanged(t, before)
}
