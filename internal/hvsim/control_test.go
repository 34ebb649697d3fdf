package hvsim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/mshrl"
)

// TestHostCrash: the end of a host ends its VMs, and does to their tracking what is configured.
func TestHostCrash(t *testing.T) {
	t.Parallel()
	for mode, known := range map[string]bool{model.CrashLosesRCT: false, model.CrashNewer: false, model.CrashKeepsRCT: true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			cfg.CrashRCT = mode
			b := newBench(t, cfg)
			other, err := b.site.Host("HV2").AddVM(t.Context(), hvsim.VMSpec{Name: "elsewhere"})
			must(t, err)
			snap, err := b.snapshot()
			must(t, err)
			rp, err := b.convert(snap)
			must(t, err)
			b.settle()
			d := b.vm.Disk(rp.Strings("VirtualDiskIdentifiers")[0])
			must(t, d.Write(1<<20, bytes.Repeat([]byte{3}, 4096)))
			must(t, b.host.Crash())
			if b.vm.State().Power != model.Off || other.State().Power != model.On {
				t.Fatalf("after the crash: %s, on the other host %s", b.vm.State().Power, other.State().Power)
			}
			must(t, b.vm.Start(t.Context()))
			newer, latest := d.Tracking()
			if newer != (mode == model.CrashNewer) || (latest == "") != (mode == model.CrashLosesRCT) {
				t.Errorf("tracking after the crash: newer %v, latest %q", newer, latest)
			}
			snap, err = b.snapshot()
			must(t, err)
			list, err := b.changes(b.frozen(snap)[d.ID], rp.Strings("ResilientChangeTrackingIdentifiers")[0], 8<<20)
			if known && (err != nil || len(list) != 1 || list[0] != [2]uint64{1 << 20, 32 << 10}) {
				t.Errorf("changes: %v, %v", list, err)
			} else if !known && (err == nil || !strings.Contains(err.Error(), "0xC03A0029")) {
				t.Errorf("changes are known after a crash: %v, %v", list, err)
			}
			if newer, _ := d.Tracking(); newer {
				t.Error("the checkpoint did not begin tracking anew")
			}
		})
	}
}

// screen is a Runner whose guests show a picture.
type screen struct{ model.Running }

func (s screen) Start(context.Context, model.VMRun) (model.Running, error) {
	return &shown{done: make(chan struct{})}, nil
}

type shown struct {
	model.Running
	done chan struct{}
	dead bool
}

func (s *shown) Done() <-chan struct{} { return s.done }

func (s *shown) Kill() error {
	if !s.dead {
		s.dead = true
		close(s.done)
	}
	return nil
}

func (s *shown) Screenshot(context.Context) ([]byte, error) {
	img := image.NewRGBA(image.Rect(0, 0, 8, 4))
	for y := range 4 {
		for x := range 8 {
			c := color.RGBA{R: 255, A: 255}
			if x >= 4 {
				c = color.RGBA{G: 255, B: 8, A: 255}
			}
			img.Set(x, y, c)
		}
	}
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}

// TestThumbnail: two bytes for each pixel, RGB565.
func TestThumbnail(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Runner = screen{}
	b := newBench(t, cfg)
	set := cim.Path{Namespace: ns, Class: "Msvm_VirtualSystemSettingData", Keys: []cim.Key{{Name: "InstanceID", Value: "Microsoft:" + b.vm.ID()}}}
	svc := b.service("Msvm_VirtualSystemManagementService")
	out := b.invoke(svc, "GetVirtualSystemThumbnailImage", "TargetSystem", set, "WidthPixels", uint16(4), "HeightPixels", uint16(2))
	v, _ := out.Lookup("ImageData")
	row := []uint8{0x00, 0xf8, 0x00, 0xf8, 0xe1, 0x07, 0xe1, 0x07}
	if got, ok := v.([]uint8); !ok || out.Return != 0 || !bytes.Equal(got, append(row, row...)) {
		t.Errorf("returned %d with %v", out.Return, v)
	}
	if out := b.invoke(svc, "GetVirtualSystemThumbnailImage", "TargetSystem", set, "WidthPixels", uint16(0), "HeightPixels", uint16(2)); out.Return != 32773 {
		t.Errorf("a picture without width: %d", out.Return)
	}
	must(t, b.vm.PowerOff())
	if out := b.invoke(svc, "GetVirtualSystemThumbnailImage", "TargetSystem", set, "WidthPixels", uint16(4), "HeightPixels", uint16(2)); out.Return == 0 {
		t.Error("a VM that is off has a picture")
	}
}

// run calls a method of the management service and waits; the error is the job's or the returned code's.
func (b *bench) run(method string, in ...any) error {
	b.t.Helper()
	_, err := b.call("Msvm_VirtualSystemManagementService", method, "", in...)
	return err
}

func TestVLAN(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	vlan := func() int { return b.vm.State().NICs[0].VLAN }
	list, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_EthernetSwitchPortVlanSettingData")
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("%d VLAN settings", len(list))
	}
	feature := func(class string, pairs ...any) []string {
		return []string{text(t, class, append([]any{"InstanceID", list[0].Args.String("InstanceID")}, pairs...)...)}
	}
	must(t, b.run("ModifyFeatureSettings", "FeatureSettings", feature("Msvm_EthernetSwitchPortVlanSettingData", "OperationMode", uint32(1), "AccessVlanId", uint16(9))))
	if vlan() != 9 {
		t.Errorf("VLAN %d", vlan())
	}
	must(t, b.run("RemoveFeatureSettings", "FeatureSettings", []cim.Path{list[0].Path}))
	if got, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_EthernetSwitchPortVlanSettingData"); err != nil || len(got) != 0 || vlan() != 0 {
		t.Errorf("VLAN %d, %v, %v", vlan(), got, err)
	}
	ports, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_EthernetPortAllocationSettingData WHERE InstanceID LIKE '%"+b.vm.ID()+"%'")
	must(t, err)
	must(t, b.run("AddFeatureSettings", "AffectedConfiguration", ports[0].Path, "FeatureSettings", feature("Msvm_EthernetSwitchPortVlanSettingData", "AccessVlanId", uint16(4000))))
	if vlan() != 4000 {
		t.Errorf("VLAN %d", vlan())
	}
	svc := b.service("Msvm_VirtualSystemManagementService")
	if out := b.invoke(svc, "ModifyFeatureSettings", "FeatureSettings", feature("Msvm_EthernetSwitchPortVlanSettingData", "AccessVlanId", uint16(5000))); out.Return != 32773 {
		t.Errorf("VLAN 5000: %d", out.Return)
	}
	if out := b.invoke(svc, "ModifyFeatureSettings", "FeatureSettings", feature("Msvm_EthernetSwitchPortSecuritySettingData")); out.Return != 32770 {
		t.Errorf("another feature: %d", out.Return)
	}
}

func TestModifySystem(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	id, err := b.host.UserCheckpoint(t.Context(), b.vm, "before")
	must(t, err)
	must(t, b.run("ModifySystemSettings", "SystemSettings", text(t, "Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+b.vm.ID(), "ElementName", "web2", "Notes", []string{"a", "b"}, "UserSnapshotType", uint16(5))))
	if st := b.vm.State(); st.Name != "web2" || strings.Join(st.Notes, " ") != "a b" || st.UserSnapshotType != 5 {
		t.Errorf("settings: %q %q %d", st.Name, st.Notes, st.UserSnapshotType)
	}
	must(t, b.run("ModifySystemSettings", "SystemSettings", text(t, "Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+id, "ElementName", "after")))
	st := b.vm.State()
	if cp, _ := st.Checkpoint(id); cp.Name != "after" || st.Name != "web2" {
		t.Errorf("checkpoint %q of %q", cp.Name, st.Name)
	}
	var je *cim.JobError
	boot := text(t, "Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+b.vm.ID(), "SecureBootEnabled", false)
	if err := b.run("ModifySystemSettings", "SystemSettings", boot); !errors.As(err, &je) || !b.vm.State().SecureBoot {
		t.Errorf("secure boot of a running VM: %v", err)
	}
	must(t, b.vm.PowerOff())
	must(t, b.run("ModifySystemSettings", "SystemSettings", boot))
	if b.vm.State().SecureBoot {
		t.Error("secure boot is still on")
	}
}

// TestMergeSettings: no merge begins while they are off, and all begin when they are on again.
func TestMergeSettings(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	set := func(v uint32) string {
		return text(t, "Msvm_DiskMergeSettingData", "InstanceID", "x", "EnabledState", v)
	}
	svc := b.service("Msvm_VirtualSystemManagementService")
	if out := b.invoke(svc, "ModifyDiskMergeSettings", "SettingData", set(7)); out.Return != 32773 {
		t.Errorf("state 7: %d", out.Return)
	}
	must(t, b.run("ModifyDiskMergeSettings", "SettingData", set(0)))
	snap, err := b.snapshot()
	must(t, err)
	_, err = b.convert(snap)
	must(t, err)
	if st := b.vm.State(); len(st.Disks[0].Files) != 2 || st.Status != 0 {
		t.Errorf("%d files, status %d", len(st.Disks[0].Files), st.Status)
	}
	must(t, b.run("ModifyDiskMergeSettings", "SettingData", set(1)))
	b.settle()
}

func TestResizeDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	svc := b.service("Msvm_ImageManagementService")
	disk := b.vm.State().Disks[0]
	resize := func(path string, size uint64) (uint32, error) {
		out, _, err := cim.Call(t.Context(), b.host, svc, "ResizeVirtualHardDisk", cim.Pairs("Path", path, "MaxInternalSize", size), nil)
		return out.Return, err
	}
	before, err := b.vm.Disk(disk.ID).Content()
	must(t, err)
	_, err = resize(disk.Base, 12<<20)
	must(t, err)
	now, err := b.vm.Disk(disk.ID).Content()
	must(t, err)
	if len(now) != 12<<20 || !bytes.Equal(now[:len(before)], before) {
		t.Errorf("%d bytes after growing", len(now))
	}
	must(t, b.vm.Disk(disk.ID).Write(11<<20, make([]byte, 512)))
	for _, c := range []struct {
		path string
		size uint64
		want uint32
	}{{disk.Base, 0, 32773}, {disk.Base, 1000, 32773}, {`C:\none.vhdx`, 1 << 20, 32779}} {
		if out := b.invoke(svc, "ResizeVirtualHardDisk", "Path", c.path, "MaxInternalSize", c.size); out.Return != c.want {
			t.Errorf("%s to %d: %d, not %d", c.path, c.size, out.Return, c.want)
		}
	}
	_, err = b.host.UserCheckpoint(t.Context(), b.vm, "user")
	must(t, err)
	if out := b.invoke(svc, "ResizeVirtualHardDisk", "Path", disk.Base, "MaxInternalSize", uint64(16<<20)); out.Return != 32775 {
		t.Errorf("a disk with checkpoints: %d", out.Return)
	}
	must(t, b.host.CreateImage(hvsim.DiskSpec{Path: `C:\images\free.vhdx`, Size: 1 << 20, Kind: model.Dynamic}))
	_, err = resize(`C:\images\free.vhdx`, 2<<20)
	must(t, err)
	if img, err := b.host.Image(`C:\images\free.vhdx`); err != nil || img.Size != 2<<20 {
		t.Errorf("%+v, %v", img, err)
	}
}

// TestPhysicalDrive: what a pass-through disk's drive refers to exists.
func TestPhysicalDrive(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	_, err := b.host.AddVM(t.Context(), hvsim.VMSpec{Name: "raw", Disks: []hvsim.DiskSpec{{Size: 6 << 20, Kind: model.PassThrough}}})
	must(t, err)
	list, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_ResourceAllocationSettingData WHERE ResourceSubType = 'Microsoft:Hyper-V:Physical Disk Drive'")
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("%d drives", len(list))
	}
	p, err := cim.ParsePath(list[0].Strings("HostResource")[0])
	must(t, err)
	in, err := b.host.Get(t.Context(), p)
	must(t, err)
	if kb, _ := in.Uint("MaxMediaSize"); kb != 6<<10 || in.Args.String("CreationClassName") != "Msvm_DiskDrive" {
		t.Errorf("drive: %v", in.Args)
	}
}

// TestClusterRoles: every node shows all roles; a migration changes the owner.
func TestClusterRoles(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	owner := func(host string) string {
		list, err := b.site.Host(host).Query(t.Context(), schema.Cluster, "SELECT * FROM MSCluster_ResourceGroup WHERE GroupType = 111")
		must(t, err)
		if len(list) != 1 || list[0].Args.String("Name") != "web" {
			t.Fatalf("roles that %s shows: %v", host, list)
		}
		if _, err := b.site.Host(host).Get(t.Context(), list[0].Path); err != nil {
			t.Error(err)
		}
		return list[0].Args.String("OwnerNode")
	}
	if owner("HV1") != "HV1" || owner("HV2") != "HV1" {
		t.Error("the VM is not on HV1")
	}
	must(t, b.host.MigrateVM(b.vm, b.site.Host("HV2")))
	if owner("HV1") != "HV2" || owner("HV2") != "HV2" {
		t.Error("the role did not move")
	}
}

// TestLogCutByTheEndOfTheProgram: what was written around a restart is in no whole log, and the log of that time says so.
func TestLogCutByTheEndOfTheProgram(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"restart", "kill", "crash of the host"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			s, err := hvsim.New(cfg)
			must(t, err)
			must(t, s.Open(t.Context()))
			vm, err := s.Host("HV1").AddVM(t.Context(), hvsim.VMSpec{Name: "web", Disks: []hvsim.DiskSpec{{Size: 4 << 20}}})
			must(t, err)
			base, err := vm.NewPoint("base", true, 2)
			must(t, err)
			must(t, vm.Workload(1).Step(5))
			switch how {
			case "restart":
				must(t, s.Close())
				s = open(t, cfg)
			case "kill":
				other := config(t)
				copyTree(t, cfg.Dir, other.Dir)
				must(t, s.Close())
				s = open(t, other)
			default:
				t.Cleanup(func() { must(t, s.Close()) })
				must(t, s.Host("HV1").Crash())
				must(t, vm.Start(t.Context()))
			}
			h := s.Host("HV1")
			vm = h.VM("web")
			must(t, vm.Workload(2).Step(5)) // nobody logs this
			var points []model.Point
			for i := range 2 {
				p, err := vm.NewPoint(fmt.Sprint(i), true, 2)
				must(t, err)
				points = append(points, p)
				must(t, vm.Workload(3).Step(5))
			}
			logs := func(point, base string) (errs []error) {
				must(t, vm.ExportPoint(point, base, `C:\export`, nil))
				for _, path := range vm.ExportPaths(point, base, `C:\export`, nil) {
					local, err := h.Local(path)
					must(t, err)
					l, err := mshrl.Open(local)
					if err == nil {
						must(t, l.Close())
					}
					errs = append(errs, err)
				}
				return errs
			}
			if got := logs(points[0].ID, base.ID); len(got) != 1 || !errors.Is(got[0], mshrl.ErrOpen) {
				t.Errorf("logs up to the first point afterwards: %v", got)
			}
			if got := logs(points[1].ID, base.ID); len(got) != 2 || !errors.Is(got[0], mshrl.ErrOpen) || got[1] != nil {
				t.Errorf("all logs: %v", got)
			}
			if got := logs(points[1].ID, points[0].ID); len(got) != 1 || got[0] != nil {
				t.Errorf("logs after the first point: %v", got)
			}
		})
	}
}
