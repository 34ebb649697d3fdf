package hvsim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/jobs"
)

func text(t testing.TB, class string, pairs ...any) string {
	t.Helper()
	s, err := cim.EncodeEmbedded(cim.NewInstance(class, pairs...))
	must(t, err)
	return s
}

func (b *bench) invoke(path cim.Path, method string, in ...any) cim.Out {
	b.t.Helper()
	out, err := b.host.Invoke(b.t.Context(), path, method, cim.Pairs(in...))
	must(b.t, err)
	return out
}

// TestReturnValues checks both families of return values.
func TestReturnValues(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	oldVM, err := b.host.AddVM(t.Context(), hvsim.VMSpec{Name: "old", Version: "5.0", Disks: []hvsim.DiskSpec{{Size: 4 << 20}}})
	must(t, err)
	user, err := b.host.UserCheckpoint(t.Context(), b.vm, "user")
	must(t, err)
	snapshots, images := b.service("Msvm_VirtualSystemSnapshotService"), b.service("Msvm_ImageManagementService")
	settings := b.settings(2)
	userPath := cim.Path{Namespace: ns, Class: "Msvm_VirtualSystemSettingData", Keys: []cim.Key{{Name: "InstanceID", Value: "Microsoft:" + user}}}
	leaf := b.vm.State().Disks[0].Leaf
	for _, c := range []struct {
		name   string
		path   cim.Path
		method string
		in     cim.Args
		want   uint32
	}{
		{"no VM", snapshots, "CreateSnapshot", cim.Pairs("SnapshotSettings", settings, "SnapshotType", uint16(32768)), 4},
		{"broken settings", snapshots, "CreateSnapshot", cim.Pairs("AffectedSystem", b.ref(b.vm), "SnapshotSettings", "<INSTANCE", "SnapshotType", uint16(32768)), 4},
		{"unknown type", snapshots, "CreateSnapshot", cim.Pairs("AffectedSystem", b.ref(b.vm), "SnapshotSettings", settings, "SnapshotType", uint16(77)), 4},
		{"old version", snapshots, "CreateSnapshot", cim.Pairs("AffectedSystem", b.ref(oldVM), "SnapshotSettings", settings, "SnapshotType", uint16(32768)), 1},
		{"convert a user's checkpoint", snapshots, "ConvertToReferencePoint", cim.Pairs("AffectedSnapshot", userPath), 5},
		{"apply while running", snapshots, "ApplySnapshot", cim.Pairs("Snapshot", userPath), 5},
		{"missing file", images, "GetVirtualHardDiskSettingData", cim.Pairs("Path", `C:\nothing.vhdx`), 32779},
		{"no path", images, "GetVirtualHardDiskSettingData", nil, 32773},
		{"path outside", images, "GetVirtualHardDiskSettingData", cim.Pairs("Path", `C:\..\..\etc\passwd`), 32773},
		{"range beyond the end", images, "GetVirtualDiskChanges", cim.Pairs("Path", leaf, "LimitId", "x", "ByteOffset", uint64(0), "ByteLength", uint64(9<<20)), 32773},
		{"no identifier", images, "GetVirtualDiskChanges", cim.Pairs("Path", leaf, "ByteOffset", uint64(0), "ByteLength", uint64(4096)), 32773},
		{"unknown identifier", images, "GetVirtualDiskChanges", cim.Pairs("Path", leaf, "LimitId", "rctX:none", "ByteOffset", uint64(0), "ByteLength", uint64(4096)), 4096},
		{"resize with checkpoints", images, "ResizeVirtualHardDisk", cim.Pairs("Path", leaf, "MaxInternalSize", uint64(16<<20)), 32775},
		{"start what runs", b.ref(b.vm), "RequestStateChange", cim.Pairs("RequestedState", uint16(2)), 32775},
		{"nonsensical state", b.ref(b.vm), "RequestStateChange", cim.Pairs("RequestedState", uint16(99)), 32773},
		{"not simulated", b.service("Msvm_VirtualSystemManagementService"), "GenerateWwpn", cim.Pairs("NumberOfWwpns", uint32(1)), 32770},
		{"destroy what runs", b.service("Msvm_VirtualSystemManagementService"), "DestroySystem", cim.Pairs("AffectedSystem", b.ref(b.vm)), 5},
	} {
		out, err := b.host.Invoke(t.Context(), c.path, c.method, c.in)
		if err != nil || out.Return != c.want {
			t.Errorf("%s: %s returned %d (%v), want %d", c.name, c.method, out.Return, err, c.want)
		}
	}
}

// TestUnfreezableDisks: pass-through, shared and VHD disks can't be frozen unless they are to be ignored.
func TestUnfreezableDisks(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"vhd", "passthrough", "shared"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, config(t))
			d, err := b.vm.AddDisk(hvsim.DiskSpec{Name: "extra", Size: 2 << 20, Kind: hvsim.DiskKind(kind)})
			must(t, err)
			must(t, d.Write(512, bytes.Repeat([]byte{3}, 512)))
			_, err = b.snapshot()
			var je *cim.JobError
			if !errors.As(err, &je) {
				t.Fatalf("checkpoint: %v", err)
			}
			if st := b.vm.State(); st.Status != 0 || len(st.Checkpoints) != 0 {
				t.Errorf("a checkpoint that failed left %d, %v", st.Status, st.Checkpoints)
			}
			_, err = b.call("Msvm_VirtualSystemSnapshotService", "CreateSnapshot", "", "AffectedSystem", b.ref(b.vm), "SnapshotType", uint16(32768),
				"SnapshotSettings", text(t, "Msvm_VirtualSystemSnapshotSettingData", "ConsistencyLevel", uint8(2), "IgnoreNonSnapshottableDisks", true))
			must(t, err)
			if cp := b.vm.State().Checkpoints; len(cp) != 1 || len(cp[0].Disks) != 2 {
				t.Errorf("checkpoint: %+v", cp)
			}
		})
	}
}

func TestApplicationConsistency(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.VSSTime = 10 * time.Millisecond
	b := newBench(t, cfg)
	for vss, works := range map[string]bool{"ok": true, "slow": true, "fail": false, "absent": false} {
		must(t, b.vm.SetVSS(vss))
		snap, err := b.call("Msvm_VirtualSystemSnapshotService", "CreateSnapshot", "Msvm_VirtualSystemSettingData", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(1), "SnapshotType", uint16(32768))
		if (err == nil) != works {
			t.Errorf("VSS %s: %v", vss, err)
		}
		if err == nil {
			_, err = b.call("Msvm_VirtualSystemSnapshotService", "DestroySnapshot", "", "AffectedSnapshot", snap)
			must(t, err)
			b.settle()
		}
	}
	if st := b.vm.State(); len(st.Checkpoints) != 0 || st.Status != 0 {
		t.Errorf("left behind: %+v", st.Checkpoints)
	}
}

// TestMergeShows: while files are merged the VM says so, its files are in use, and a checkpoint is refused.
func TestMergeShows(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	b.site.SetFaults(hvsim.Fault{Method: "Merge", JobState: 10, Count: 3})
	snap, err := b.snapshot()
	must(t, err)
	must(t, b.vm.Workload(2).Step(5))
	_, err = b.convert(snap)
	must(t, err)
	in, err := b.host.Get(t.Context(), b.ref(b.vm))
	must(t, err)
	if op, _ := in.Uints("OperationalStatus"); len(op) != 2 || op[1] != 32772 {
		t.Errorf("operational status %v", op)
	}
	out := b.invoke(b.service("Msvm_VirtualSystemSnapshotService"), "CreateSnapshot", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(2), "SnapshotType", uint16(32768))
	if out.Return != 5 {
		t.Errorf("a checkpoint during a merge returned %d", out.Return)
	}
	_, _, err = cim.Call(t.Context(), b.host, b.service("Msvm_ImageManagementService"), "GetVirtualHardDiskSettingData", cim.Pairs("Path", b.vm.State().Disks[0].Leaf), nil)
	if err == nil || !strings.Contains(err.Error(), "0x80070020") {
		t.Errorf("a file in merge: %v", err)
	}
	want, err := b.vm.Disk(b.ids[0]).Content()
	must(t, err)
	b.settle()
	got, err := b.vm.Disk(b.ids[0]).Content()
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the merge changed the disk")
	}
	if b.site.Fired()["Merge"] != 3 {
		t.Errorf("fired: %v", b.site.Fired())
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	create := func() error { _, err := b.snapshot(); return err }
	b.site.SetFaults(hvsim.Fault{Name: "busy", Method: "CreateSnapshot", Object: "web", Count: 1, Return: 5},
		hvsim.Fault{Name: "job", Method: "CreateSnapshot", Count: 1, JobState: 10, JobError: 32768, JobText: "Logon failure (0x80070569)"},
		hvsim.Fault{Name: "gone", Method: "CreateSnapshot", Count: 1, Err: cim.CodeUnavailable, After: true},
		hvsim.Fault{Name: "other", Object: "no such VM", Return: 2},
		hvsim.Fault{Name: "sweep", Method: "Query", Object: "Msvm_SummaryInformation", Err: cim.CodeQuota})
	var re *cim.ReturnError
	if err := create(); !errors.As(err, &re) || re.Value != 5 {
		t.Errorf("first: %v", err)
	}
	var je *cim.JobError
	if err := create(); !errors.As(err, &je) || !strings.Contains(je.Job.Description, "0x80070569") {
		t.Errorf("second: %v", err)
	}
	if err := create(); cim.CodeOf(err) != cim.CodeUnavailable {
		t.Errorf("third: %v", err)
	}
	for range 100 { // the answer was lost, the work was not
		if len(b.vm.State().Checkpoints) == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := len(b.vm.State().Checkpoints); n != 1 {
		t.Errorf("%d checkpoints", n)
	}
	if _, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_SummaryInformation"); cim.CodeOf(err) != cim.CodeQuota {
		t.Errorf("query: %v", err)
	}
	if f := fmt.Sprint(b.site.Fired()); f != "map[busy:1 gone:1 job:1 sweep:1]" {
		t.Errorf("fired: %s", f)
	}
	list, err := hvsim.ReadFaults(strings.NewReader(`[{"Method":"CreateSnapshot","Delay":"1.5s","JobState":32768,"JobText":"slow"}]`))
	if err != nil || len(list) != 1 || list[0].Delay != 1500*time.Millisecond || list[0].JobState != 32768 {
		t.Errorf("plan: %+v, %v", list, err)
	}
	if _, err := hvsim.ReadFaults(strings.NewReader(`[{"Methd":"x"}]`)); err == nil {
		t.Error("a misspelt plan is taken")
	}
}

// TestWarnings: a job that completes with warnings has done its work.
func TestWarnings(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	b.site.SetFaults(hvsim.Fault{Method: "CreateSnapshot", JobState: jobs.Warnings, JobText: "a writer was slow", After: true})
	_, err := b.snapshot()
	must(t, err)
	if len(b.vm.State().Checkpoints) != 1 {
		t.Error("no checkpoint")
	}
}

func TestInline(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Inline = true
	b := newBench(t, cfg)
	out := b.invoke(b.service("Msvm_VirtualSystemSnapshotService"), "CreateSnapshot", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(2), "SnapshotType", uint16(32768))
	p, ok := out.Ref("ResultingSnapshot")
	if out.Return != 0 || !ok {
		t.Fatalf("%+v", out)
	}
	_, err := b.host.Get(t.Context(), p)
	must(t, err)
	if b.vm.State().Status != 0 {
		t.Error("the VM stays busy")
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	release := b.host.Hang()
	_, err := b.host.Query(ctxOf(t, 20*time.Millisecond), ns, "SELECT * FROM Msvm_ComputerSystem")
	if cim.CodeOf(err) != cim.CodeTimeout {
		t.Errorf("a host that hangs answered %v", err)
	}
	release()
	if _, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_ComputerSystem"); err != nil {
		t.Error(err)
	}
}

// TestMigration: the VM's jobs are lost, its checkpoint and tracking are not.
func TestMigration(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	must(t, b.vm.Workload(4).Step(3))
	snap, err := b.snapshot()
	must(t, err)
	rp, err := b.convert(snap)
	must(t, err)
	b.settle()
	must(t, b.vm.Disk(b.ids[0]).Write(1<<20, bytes.Repeat([]byte{9}, 512)))
	_, err = b.call("Msvm_VirtualSystemMigrationService", "MigrateVirtualSystemToHost", "", "ComputerSystem", b.ref(b.vm), "DestinationHost", "HV2")
	must(t, err)
	if _, err := b.host.Get(t.Context(), b.ref(b.vm)); cim.CodeOf(err) != cim.CodeNotFound {
		t.Errorf("the old host still has the VM: %v", err)
	}
	b.host = b.site.Host("HV2")
	snap, err = b.snapshot()
	must(t, err)
	files := b.frozen(snap)
	for i, id := range rp.Strings("VirtualDiskIdentifiers") {
		list, err := b.changes(files[id], rp.Strings("ResilientChangeTrackingIdentifiers")[i], 4<<20)
		must(t, err)
		if id == b.ids[0] && (len(list) != 1 || list[0] != [2]uint64{1 << 20, 32 << 10}) {
			t.Errorf("changes after the migration: %v", list)
		}
	}
}

// TestDefineAndRemove builds a VM as a recovery would, starts it and removes it.
func TestDefineAndRemove(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	const svc = "Msvm_VirtualSystemManagementService"
	_, err := b.call("Msvm_ImageManagementService", "CreateVirtualHardDisk", "", "VirtualDiskSettingData",
		text(t, "Msvm_VirtualHardDiskSettingData", "Type", uint16(3), "Format", uint16(3), "Path", `C:\Recovered\a.vhdx`, "MaxInternalSize", uint64(16<<20)))
	must(t, err)
	vmPath, err := b.call(svc, "DefineSystem", "Msvm_ComputerSystem", "SystemSettings", text(t, "Msvm_VirtualSystemSettingData", "ElementName", "recovered",
		"VirtualSystemSubType", "Microsoft:Hyper-V:SubType:2", "Notes", []string{"owner"}, "SecureBootEnabled", false))
	must(t, err)
	set, err := b.host.Query(t.Context(), ns, cim.Associators(vmPath, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData"))
	must(t, err)
	conf := set[0].Path
	sw, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_VirtualEthernetSwitch WHERE ElementName='Lab'")
	must(t, err)
	add := func(class, result string, pairs ...any) cim.Path {
		t.Helper()
		p, err := b.call(svc, "AddResourceSettings", result, "AffectedConfiguration", conf, "ResourceSettings", []string{text(t, class, pairs...)})
		must(t, err)
		return p
	}
	const rasd, sasd = "Msvm_ResourceAllocationSettingData", "Msvm_StorageAllocationSettingData"
	ctl := add(rasd, rasd, "ResourceType", uint16(6), "ResourceSubType", "Microsoft:Hyper-V:Synthetic SCSI Controller")
	drive := add(rasd, rasd, "ResourceType", uint16(17), "ResourceSubType", "Microsoft:Hyper-V:Synthetic Disk Drive", "Parent", ctl.String(), "AddressOnParent", "3")
	disk := add(sasd, sasd, "ResourceType", uint16(31), "ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk", "Parent", drive.String(), "HostResource", []string{`C:\Recovered\a.vhdx`})
	nic := add("Msvm_SyntheticEthernetPortSettingData", "Msvm_SyntheticEthernetPortSettingData", "ResourceSubType", "Microsoft:Hyper-V:Synthetic Ethernet Port", "Address", "00155D000001", "StaticMacAddress", true)
	add("Msvm_EthernetPortAllocationSettingData", "Msvm_EthernetPortAllocationSettingData", "ResourceSubType", "Microsoft:Hyper-V:Ethernet Connection", "Parent", nic.String(), "HostResource", []string{sw[0].Path.String()})
	cpu, err := b.host.Query(t.Context(), ns, cim.Associators(conf, "Msvm_VirtualSystemSettingDataComponent", "Msvm_ProcessorSettingData"))
	must(t, err)
	_, err = b.call(svc, "ModifyResourceSettings", "", "ResourceSettings", []string{text(t, "Msvm_ProcessorSettingData", "InstanceID", cpu[0].Args.String("InstanceID"), "VirtualQuantity", uint64(4))})
	must(t, err)
	vm := b.host.VM("recovered")
	st := vm.State()
	if st.CPUs != 4 || st.Generation != 2 || st.SecureBoot || len(st.Disks) != 1 || st.Disks[0].Slot != 3 || st.NICs[0].MAC != "00155D000001" || st.NICs[0].Switch == "" {
		t.Errorf("defined: %+v", st)
	}
	start := func(state uint16) {
		t.Helper()
		_, _, err := cim.Call(t.Context(), b.host, vmPath, "RequestStateChange", cim.Pairs("RequestedState", state), nil)
		must(t, err)
	}
	start(2)
	_, err = b.call(svc, "SetGuestNetworkAdapterConfiguration", "", "ComputerSystem", vmPath, "NetworkConfiguration", []string{text(t, "Msvm_GuestNetworkAdapterConfiguration",
		"InstanceID", `Microsoft:GuestNetwork\`+strings.TrimPrefix(nic.Key("InstanceID"), "Microsoft:"), "DHCPEnabled", false, "IPAddresses", []string{"10.1.1.1"})})
	must(t, err)
	if ips := vm.State().NICs[0].IPs; len(ips) != 1 || ips[0] != "10.1.1.1" {
		t.Errorf("addresses %v", ips)
	}
	shut, err := b.host.Query(t.Context(), ns, cim.Associators(vmPath, "Msvm_SystemDevice", "Msvm_ShutdownComponent"))
	must(t, err)
	if out := b.invoke(shut[0].Path, "InitiateShutdown", "Force", true, "Reason", "test"); out.Return != 0 || vm.State().Power != "off" {
		t.Errorf("shutdown returned %d, the VM is %s", out.Return, vm.State().Power)
	}
	_, err = b.call(svc, "RemoveResourceSettings", "", "ResourceSettings", []cim.Path{disk})
	must(t, err)
	_, err = b.call(svc, "DestroySystem", "", "AffectedSystem", vmPath)
	must(t, err)
	if b.host.VM("recovered") != nil {
		t.Error("the VM is still there")
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	st := b.vm.State()
	const svc = "Msvm_VirtualSystemManagementService"
	must(t, b.vm.PowerOff())
	p, err := b.call(svc, "ImportSystemDefinition", "Msvm_PlannedComputerSystem", "SystemDefinitionFile", st.ConfigFile(), "GenerateNewSystemIdentifier", true)
	must(t, err)
	_, err = b.call(svc, "ValidatePlannedSystem", "", "PlannedSystem", p)
	must(t, err)
	r, err := b.call(svc, "RealizePlannedSystem", "Msvm_ComputerSystem", "PlannedSystem", p)
	must(t, err)
	if r.Key("Name") == st.ID || b.host.VM(r.Key("Name")).State().CPUs != st.CPUs {
		t.Errorf("imported %s", r)
	}
}

// TestRace: two backup products at one VM. Whatever happens, the VM keeps its data and becomes idle.
func TestRace(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	stop := make(chan struct{})
	var writer, clients sync.WaitGroup
	shadow := make([]byte, 8<<20)
	writer.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			p := binary.LittleEndian.AppendUint64(bytes.Repeat([]byte{byte(n)}, 504), uint64(n))
			off := int64(n*7919%16384) * 512
			if err := b.vm.Disk(b.ids[0]).Write(off, p); err != nil {
				t.Error(err)
				return
			}
			copy(shadow[off:], p)
			time.Sleep(time.Millisecond)
		}
	})
	done := make([]int, 2)
	for c := range done {
		clients.Go(func() {
			for range 200 {
				snap, err := cycle(t.Context(), b, c)
				if err == nil && !snap.IsZero() {
					if done[c]++; done[c] == 3 {
						return
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	clients.Wait()
	close(stop)
	writer.Wait()
	if done[0] == 0 || done[1] == 0 {
		t.Errorf("cycles: %v", done)
	}
	for _, cp := range b.vm.State().Checkpoints {
		for range 300 {
			if b.vm.DeleteCheckpoint(cp.ID) == nil {
				break
			}
		}
	}
	b.settle()
	got, err := b.vm.Disk(b.ids[0]).Content()
	must(t, err)
	if !bytes.Equal(got, shadow) {
		t.Error("the disk is not what the guest wrote")
	}
}

// cycle is a checkpoint and its conversion, without failing the test.
func cycle(ctx context.Context, b *bench, n int) (cim.Path, error) {
	svc := cim.Path{Namespace: ns, Class: "Msvm_VirtualSystemSnapshotService", Keys: []cim.Key{{Name: "CreationClassName", Value: "Msvm_VirtualSystemSnapshotService"}, {Name: "Name", Value: "vmms"},
		{Name: "SystemCreationClassName", Value: "Msvm_ComputerSystem"}, {Name: "SystemName", Value: "HV1"}}}
	set, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_VirtualSystemSnapshotSettingData", "ConsistencyLevel", uint8(2), "ElementName", fmt.Sprint("client ", n)))
	if err != nil {
		return cim.Path{}, err
	}
	_, job, err := cim.Call(ctx, b.host, svc, "CreateSnapshot", cim.Pairs("AffectedSystem", b.ref(b.vm), "SnapshotSettings", set, "SnapshotType", uint16(32768)), nil)
	if err != nil {
		return cim.Path{}, err
	}
	list, err := b.host.Query(ctx, ns, cim.Associators(job.Path, "Msvm_AffectedJobElement", "Msvm_VirtualSystemSettingData"))
	if err != nil || len(list) != 1 {
		return cim.Path{}, fmt.Errorf("%d snapshots: %w", len(list), err)
	}
	for range 200 { // the other one may be at the VM
		if _, _, err = cim.Call(ctx, b.host, svc, "ConvertToReferencePoint", cim.Pairs("AffectedSnapshot", list[0].Path), nil); err == nil {
			return list[0].Path, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return cim.Path{}, err
}

// TestJobsTakeTime: percent grows, and a job that has ended can be asked for during five minutes.
func TestJobsTakeTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t)
		cfg.Dir, cfg.JobTime = dir, 10*time.Second
		b := newBench(t, cfg)
		svc := b.service("Msvm_VirtualSystemSnapshotService")
		out := b.invoke(svc, "CreateSnapshot", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(2), "SnapshotType", uint16(32768))
		if !out.Null("ResultingSnapshot") {
			t.Error("the result is there before the job's end")
		}
		ref, _ := out.Ref("Job")
		time.Sleep(5 * time.Second)
		j, err := cim.GetJob(t.Context(), b.host, ref)
		must(t, err)
		if j.State != 4 || j.Percent < 45 || j.Percent > 55 || j.Type != 70 {
			t.Errorf("half-way: %+v", j)
		}
		if got := b.invoke(svc, "CreateSnapshot", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(2), "SnapshotType", uint16(32768)); got.Return != 5 {
			t.Errorf("a second checkpoint meanwhile returned %d", got.Return)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		j, err = cim.GetJob(t.Context(), b.host, ref)
		must(t, err)
		if j.State != 7 || j.Percent != 100 {
			t.Errorf("at the end: %+v", j)
		}
		time.Sleep(5 * time.Minute)
		if _, err := cim.GetJob(t.Context(), b.host, ref); cim.CodeOf(err) != cim.CodeNotFound {
			t.Errorf("five minutes after its end: %v", err)
		}
		// A job that is cancelled has done nothing and leaves the VM idle.
		out = b.invoke(b.ref(b.vm), "RequestStateChange", "RequestedState", uint16(3))
		ref, _ = out.Ref("Job")
		ref.Namespace = ns
		if got := b.invoke(ref, "RequestStateChange", "RequestedState", uint16(4)); got.Return != 0 {
			t.Errorf("cancel returned %d", got.Return)
		}
		synctest.Wait()
		if j, _ := cim.GetJob(t.Context(), b.host, ref); j.State != 8 || b.vm.State().Power != "running" {
			t.Errorf("cancelled: %+v", j)
		}
		if e := b.invoke(ref, "GetErrorEx"); len(e.Strings("Errors")) != 1 {
			t.Errorf("error: %+v", e)
		}
		must(t, b.site.Close())
	})
}

func TestReplicationStates(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	const svc = "Msvm_ReplicationService"
	state := func() uint64 {
		in, err := b.host.Get(t.Context(), b.ref(b.vm))
		must(t, err)
		n, _ := in.Uint("ReplicationState")
		return n
	}
	vm := b.ref(b.vm)
	step := func(want uint64, svcOrVM cim.Path, method string, in ...any) {
		t.Helper()
		_, _, err := cim.Call(t.Context(), b.host, svcOrVM, method, cim.Pairs(in...), nil)
		must(t, err)
		if got := state(); got != want {
			t.Errorf("after %s: state %d, want %d", method, got, want)
		}
	}
	r := b.service(svc)
	step(1, r, "CreateReplicationRelationship", "ComputerSystem", vm, "ReplicationSettingData", text(t, "Msvm_ReplicationSettingData", "RecoveryConnectionPoint", "x", "ReplicationInterval", uint16(30)))
	step(3, r, "StartReplication", "ComputerSystem", vm, "InitialReplicationType", uint16(1))
	step(7, vm, "RequestReplicationStateChange", "RequestedState", uint16(7))
	step(3, vm, "RequestReplicationStateChange", "RequestedState", uint16(2))
	sum := b.invoke(b.service("Msvm_VirtualSystemManagementService"), "GetSummaryInformation", "RequestedInformation", []uint32{112, 113, 114, 115, 116, 117, 120, 121, 122, 123})
	v, _ := sum.Lookup("SummaryInformation")
	if in := v.([]*cim.Instance)[0]; in.Args.String("ReplicationState") != "3" || in.Args.String("ReplicationMode") != "1" {
		t.Errorf("summary: %v", in.Args)
	}
	if out := b.invoke(r, "GetReplicationStatisticsEx", "ComputerSystem", vm); out.Return != 0 || len(out.Strings("ReplicationStatistics")) != 1 {
		t.Errorf("statistics: %+v", out)
	}
	step(0, r, "RemoveReplicationRelationship", "ComputerSystem", vm)
}

// TestManyVMs: a large site is there soon, and a query renders only what changed.
func TestManyVMs(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	h := s.Host("HV1")
	begin := time.Now()
	for i := range 200 {
		_, err := h.AddVM(t.Context(), hvsim.VMSpec{Name: fmt.Sprintf("vm%03d", i), Disks: []hvsim.DiskSpec{{Size: 40 << 30}, {Size: 100 << 30}}, NICs: []hvsim.NICSpec{{Switch: "External"}}})
		must(t, err)
	}
	t.Logf("200 VMs in %v", time.Since(begin))
	vm := h.VMs()[77]
	one := cim.Associators(cim.Path{Class: "Msvm_VirtualSystemSettingData", Keys: []cim.Key{{Name: "InstanceID", Value: "Microsoft:" + vm.ID()}}}, "Msvm_VirtualSystemSettingDataComponent", "")
	query := func(q string, renders int64) {
		t.Helper()
		before, begin := hvsim.Renders(h), time.Now()
		list, err := h.Query(t.Context(), ns, q)
		must(t, err)
		if n := hvsim.Renders(h) - before; n != renders || len(list) == 0 {
			t.Errorf("%d VMs were rendered, not %d, for %d instances: %s", n, renders, len(list), q)
		}
		t.Logf("%d instances in %v: %s", len(list), time.Since(begin), q)
	}
	query(one, 1) // the others are not looked at
	query("SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER", 199)
	for _, q := range []string{"SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER", "SELECT * FROM Msvm_StorageAllocationSettingData", "SELECT * FROM Msvm_VirtualSystemSettingDataComponent", one} {
		query(q, 0)
	}
	must(t, vm.PowerOff())
	query("SELECT * FROM Msvm_StorageAllocationSettingData", 1)
	must(t, vm.Start(t.Context()))
	for i := range 800 {
		_, err := h.AddVM(t.Context(), hvsim.VMSpec{Name: fmt.Sprintf("small%03d", i)})
		must(t, err)
	}
	b := &bench{t: t, site: s, host: h}
	svc, before := b.service("Msvm_VirtualSystemManagementService"), hvsim.Renders(h)
	begin = time.Now()
	out := b.invoke(svc, "GetSummaryInformation", "RequestedInformation", []uint32{1, 100, 104, 107, 110, 118})
	v, _ := out.Lookup("SummaryInformation")
	list := v.([]*cim.Instance)
	t.Logf("summary of %d VMs in %v", len(list), time.Since(begin))
	if first := list[0]; len(list) != 1000 || first.Args.String("EnabledState") != "2" || first.Null("OperationalStatus") || first.Null("ReplicationStateEx") || !first.Null("Notes") {
		t.Errorf("%d summaries, the first: %v", len(list), first.Args)
	}
	if n := hvsim.Renders(h) - before; n != 0 {
		t.Errorf("the summary rendered %d VMs", n)
	}
}
