package hvsim_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/vhdx"
)

const ns = schema.Virtualization

func config(t testing.TB) hvsim.Config {
	return hvsim.Config{Dir: t.TempDir(), Seed: 1, Hosts: []hvsim.HostConfig{{Name: "HV1", Switches: []hvsim.Switch{{Name: "External", Kind: "external"}, {Name: "Lab", Kind: "private"}}}, {Name: "HV2"}}}
}

func open(t testing.TB, cfg hvsim.Config) *hvsim.Site {
	t.Helper()
	s, err := hvsim.New(cfg)
	must(t, err)
	must(t, s.Open(t.Context()))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the site: %v", err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is one VM with two disks, driven as a backup product would.
type bench struct {
	t    testing.TB
	site *hvsim.Site
	host *hvsim.Host
	vm   *hvsim.VM
	ids  []string
}

func newBench(t testing.TB, cfg hvsim.Config) *bench {
	t.Helper()
	s := open(t, cfg)
	h := s.Host("HV1")
	vm, err := h.AddVM(t.Context(), hvsim.VMSpec{Name: "web", Clustered: true, OS: "Windows Server 2022", Disks: []hvsim.DiskSpec{{Size: 8 << 20}, {Size: 5 << 20}},
		NICs: []hvsim.NICSpec{{Switch: "External", VLAN: 7, IPs: []string{"10.0.0.4"}}}})
	must(t, err)
	b := &bench{t: t, site: s, host: h, vm: vm}
	for _, d := range vm.State().Disks {
		b.ids = append(b.ids, d.ID)
	}
	return b
}

func (b *bench) service(class string) cim.Path {
	b.t.Helper()
	list, err := b.host.Query(b.t.Context(), ns, "SELECT * FROM "+class)
	must(b.t, err)
	if len(list) != 1 {
		b.t.Fatalf("%d instances of %s", len(list), class)
	}
	return list[0].Path
}

func (b *bench) ref(vm *hvsim.VM) cim.Path {
	return cim.Path{Namespace: ns, Class: "Msvm_ComputerSystem", Keys: []cim.Key{{Name: "CreationClassName", Value: "Msvm_ComputerSystem"}, {Name: "Name", Value: vm.ID()}}}
}

// call invokes a method, waits for its job and returns what the job affected, of a class.
func (b *bench) call(service, method, result string, in ...any) (cim.Path, error) {
	b.t.Helper()
	s := b.service(service)
	out, job, err := cim.Call(b.t.Context(), b.host, s, method, cim.Pairs(in...), nil)
	if err != nil || result == "" {
		return cim.Path{}, err
	}
	if job == nil {
		for _, a := range out.Args {
			if p, ok := out.Ref(a.Name); ok && strings.HasPrefix(a.Name, "Result") {
				return p, nil
			}
		}
		b.t.Fatalf("%s answered without job and result", method)
	}
	list, err := b.host.Query(b.t.Context(), ns, cim.Associators(job.Path, "Msvm_AffectedJobElement", result))
	must(b.t, err)
	if len(list) != 1 {
		b.t.Fatalf("the job of %s affected %d instances of %s", method, len(list), result)
	}
	return list[0].Path, nil
}

func (b *bench) settings(level uint8) string {
	s, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_VirtualSystemSnapshotSettingData", "ConsistencyLevel", level, "GuestBackupType", uint8(2), "ElementName", "holdfast"))
	must(b.t, err)
	return s
}

func (b *bench) snapshot() (cim.Path, error) {
	b.t.Helper()
	return b.call("Msvm_VirtualSystemSnapshotService", "CreateSnapshot", "Msvm_VirtualSystemSettingData", "AffectedSystem", b.ref(b.vm), "SnapshotSettings", b.settings(2), "SnapshotType", uint16(32768))
}

func (b *bench) convert(snap cim.Path) (*cim.Instance, error) {
	b.t.Helper()
	p, err := b.call("Msvm_VirtualSystemSnapshotService", "ConvertToReferencePoint", "Msvm_VirtualSystemReferencePoint", "AffectedSnapshot", snap)
	if err != nil {
		return nil, err
	}
	in, err := b.host.Get(b.t.Context(), p)
	must(b.t, err)
	return in, nil
}

// frozen returns the frozen file of each disk by its id.
func (b *bench) frozen(snap cim.Path) map[string]string {
	b.t.Helper()
	list, err := b.host.Query(b.t.Context(), ns, cim.Associators(snap, "Msvm_VirtualSystemSettingDataComponent", "Msvm_StorageAllocationSettingData"))
	must(b.t, err)
	m := map[string]string{}
	for _, d := range list {
		path := d.Strings("HostResource")[0]
		out, err := b.host.Invoke(b.t.Context(), b.service("Msvm_ImageManagementService"), "GetVirtualHardDiskSettingData", cim.Pairs("Path", path))
		must(b.t, err)
		if out.Return != 0 {
			b.t.Fatalf("settings of %s: %d", path, out.Return)
		}
		in, err := cim.DecodeEmbedded(out.String("SettingData"))
		must(b.t, err)
		m[in.Args.String("VirtualDiskId")] = path
	}
	return m
}

// changes asks for all changed ranges, page by page.
func (b *bench) changes(path, limit string, size uint64) ([][2]uint64, error) {
	b.t.Helper()
	var list [][2]uint64
	svc := b.service("Msvm_ImageManagementService")
	for off := uint64(0); off < size; {
		out, _, err := cim.Call(b.t.Context(), b.host, svc, "GetVirtualDiskChanges", cim.Pairs("Path", path, "LimitId", limit, "ByteOffset", off, "ByteLength", min(size-off, 1<<20)), nil)
		if err != nil {
			return nil, err
		}
		offs, _ := out.Uints("ChangedByteOffsets")
		lens, _ := out.Uints("ChangedByteLengths")
		for i := range offs {
			list = append(list, [2]uint64{offs[i], lens[i]})
		}
		n, ok := out.Uint("ProcessedByteLength")
		if !ok || n == 0 {
			b.t.Fatal("nothing was processed")
		}
		off += n
	}
	return list, nil
}

// read reads a file's chain from the directory, as a program on the host would.
func (b *bench) read(path string) []byte {
	b.t.Helper()
	local, err := b.host.Local(path)
	must(b.t, err)
	c, err := vhdx.OpenChain(local, vhdx.ChainOptions{})
	must(b.t, err)
	defer c.Close()
	p := make([]byte, c.Size())
	_, err = c.ReadAt(p, 0)
	must(b.t, err)
	return p
}

// settle waits until no merge is going on.
func (b *bench) settle() {
	b.t.Helper()
	for range 500 {
		st := b.vm.State()
		files := 0
		for _, d := range st.Disks {
			files += len(d.Files) - 1
		}
		if st.Status == 0 && (files == 0 || len(st.Checkpoints) > 0) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatalf("VM does not settle: %+v", b.vm.State())
}

func TestEveryInstanceConforms(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	_, err := b.host.AddVM(t.Context(), hvsim.VMSpec{Name: "old", Generation: 1, Version: "5.0", Off: true, DynamicMemory: true, TPM: true,
		Disks: []hvsim.DiskSpec{{Size: 2 << 20, Kind: "vhd"}, {Size: 2 << 20, Kind: "passthrough"}, {Size: 2 << 20, Kind: "shared"}, {Size: 4 << 20, Kind: "fixed", Controller: "IDE", Number: 1}},
		NICs:  []hvsim.NICSpec{{Legacy: true, Switch: "Lab"}}})
	must(t, err)
	_, err = b.host.UserCheckpoint(t.Context(), b.vm, "before the update")
	must(t, err)
	snap, err := b.snapshot()
	must(t, err)
	_, err = b.convert(snap)
	must(t, err)
	b.settle()
	_, err = b.snapshot()
	must(t, err)
	set, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_ReplicationSettingData", "RecoveryConnectionPoint", "replica.example"))
	must(t, err)
	_, err = b.call("Msvm_ReplicationService", "CreateReplicationRelationship", "", "ComputerSystem", b.ref(b.vm), "ReplicationSettingData", set)
	must(t, err)
	_ = b.settings
	s := schema.Load()
	seen := map[string]int{}
	for _, space := range []string{schema.Virtualization, schema.CIMv2, schema.Cluster} {
		for _, c := range s.Classes(space) {
			list, err := b.host.Query(t.Context(), space, "SELECT * FROM "+c.Name)
			must(t, err)
			for _, in := range list {
				if err := s.Conform(in); err != nil {
					t.Errorf("%s: %v", in.Path, err)
				}
				if strings.EqualFold(in.Class, c.Name) {
					seen[c.Name]++
					got, err := b.host.Get(t.Context(), in.Path)
					if err != nil || !got.Path.Same(in.Path) {
						t.Errorf("get %s: %v", in.Path, err)
					}
				}
			}
		}
	}
	for _, want := range []string{"Msvm_ComputerSystem", "Msvm_VirtualSystemSettingData", "Msvm_StorageAllocationSettingData", "Msvm_ResourceAllocationSettingData", "Msvm_SyntheticEthernetPortSettingData",
		"Msvm_EmulatedEthernetPortSettingData", "Msvm_EthernetPortAllocationSettingData", "Msvm_EthernetSwitchPortVlanSettingData", "Msvm_GuestNetworkAdapterConfiguration", "Msvm_VirtualEthernetSwitch",
		"Msvm_KvpExchangeComponent", "Msvm_HeartbeatComponent", "Msvm_VssComponent", "Msvm_ShutdownComponent", "Msvm_VirtualSystemReferencePoint", "Msvm_ConcreteJob", "Msvm_SettingsDefineState",
		"Msvm_VirtualSystemSettingDataComponent", "Msvm_AffectedJobElement", "Msvm_SnapshotOfVirtualSystem", "Msvm_MostCurrentSnapshotInBranch", "Msvm_ReferencePointOfVirtualSystem", "Msvm_SystemDevice",
		"Msvm_ReplicationRelationship", "Msvm_ReplicationSettingData", "Win32_OperatingSystem", "Win32_ComputerSystem", "Win32_LogicalDisk", "Win32_Volume", "MSCluster_Node"} {
		if seen[want] == 0 {
			t.Errorf("there is no instance of %s", want)
		}
	}
}

func TestInventoryQueries(t *testing.T) {
	t.Parallel()
	b := newBench(t, config(t))
	query := func(q string) []*cim.Instance {
		t.Helper()
		list, err := b.host.Query(t.Context(), ns, q)
		must(t, err)
		return list
	}
	vms := query("SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER")
	if len(vms) != 1 || vms[0].Args.String("ElementName") != "web" {
		t.Fatalf("VMs: %v", vms)
	}
	set := query(cim.Associators(vms[0].Path, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData"))
	if len(set) != 1 || set[0].Args.String("VirtualSystemSubType") != "Microsoft:Hyper-V:SubType:2" {
		t.Fatalf("settings: %v", set)
	}
	disks := query(cim.Associators(set[0].Path, "Msvm_VirtualSystemSettingDataComponent", "Msvm_StorageAllocationSettingData"))
	if len(disks) != 2 {
		t.Fatalf("%d disks", len(disks))
	}
	drive, err := cim.ParsePath(disks[1].Args.String("Parent"))
	must(t, err)
	in, err := b.host.Get(t.Context(), drive)
	must(t, err)
	if in.Args.String("AddressOnParent") != "1" {
		t.Errorf("the second disk is in slot %q", in.Args.String("AddressOnParent"))
	}
	ports := query(cim.Associators(set[0].Path, "Msvm_VirtualSystemSettingDataComponent", "Msvm_EthernetPortAllocationSettingData"))
	if len(ports) != 1 || ports[0].Args.String("LastKnownSwitchName") != "External" {
		t.Fatalf("connections: %v", ports)
	}
	if v := query(cim.Associators(ports[0].Path, "Msvm_EthernetPortSettingDataComponent", "")); len(v) != 1 || v[0].Args.String("AccessVlanId") != "7" {
		t.Errorf("VLAN: %v", v)
	}
	if _, err := b.host.Query(t.Context(), ns, "SELECT * FROM Msvm_Nothing"); cim.CodeOf(err) != cim.CodeInvalidClass {
		t.Errorf("an unknown class: %v", err)
	}
	if _, err := b.host.Invoke(t.Context(), b.ref(b.vm), "NoMethod", nil); cim.CodeOf(err) != cim.CodeNoMethod {
		t.Errorf("an unknown method: %v", err)
	}
}

// TestChangedRangesRebuildTheDisk is the invariant of change tracking: what a replica takes over by ranges equals the frozen chain.
func TestChangedRangesRebuildTheDisk(t *testing.T) {
	t.Parallel()
	for _, checkpoints := range []bool{false, true} {
		t.Run(fmt.Sprintf("user checkpoints %v", checkpoints), func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			cfg.Granularity = 4096
			b := newBench(t, cfg)
			work := b.vm.Workload(5)
			replica := map[string][]byte{}
			last := map[string]string{}
			var oldPoint cim.Path
			rng := rand.New(rand.NewPCG(3, 3))
			for n := range 6 {
				must(t, work.Step(6))
				if checkpoints && n%3 == 1 {
					_, err := b.host.UserCheckpoint(t.Context(), b.vm, fmt.Sprintf("user %d", n))
					must(t, err)
					must(t, work.Step(3))
				}
				want := map[string][]byte{}
				for _, id := range b.ids {
					p, err := b.vm.Disk(id).Content()
					must(t, err)
					want[id] = p
				}
				snap, err := b.snapshot()
				must(t, err)
				must(t, work.Step(6)) // belongs to the next cycle
				files := b.frozen(snap)
				for _, id := range b.ids {
					data := b.read(files[id])
					if !bytes.Equal(data, want[id]) {
						t.Fatalf("cycle %d: the frozen file of disk %s is not the disk at the checkpoint", n, id)
					}
					if n == 0 {
						replica[id] = data
						continue
					}
					list, err := b.changes(files[id], last[id], uint64(len(data)))
					must(t, err)
					for _, r := range list {
						copy(replica[id][r[0]:r[0]+r[1]], data[r[0]:])
					}
					if !bytes.Equal(replica[id], want[id]) {
						t.Fatalf("cycle %d: the replica of disk %s made of changed ranges differs", n, id)
					}
				}
				if rng.IntN(4) == 0 && n > 0 { // a cycle that fails: the next one starts from the same point
					_, err := b.call("Msvm_VirtualSystemSnapshotService", "DestroySnapshot", "", "AffectedSnapshot", snap)
					must(t, err)
					b.settle()
					continue
				}
				rp, err := b.convert(snap)
				must(t, err)
				b.settle()
				ids, rcts := rp.Strings("VirtualDiskIdentifiers"), rp.Strings("ResilientChangeTrackingIdentifiers")
				if len(ids) != 2 || len(rcts) != 2 {
					t.Fatalf("reference point: %v %v", ids, rcts)
				}
				for i := range ids {
					last[ids[i]] = rcts[i]
				}
				if !oldPoint.IsZero() {
					_, err := b.call("Msvm_VirtualSystemReferencePointService", "DestroyReferencePoint", "", "AffectedReferencePoint", oldPoint)
					must(t, err)
				}
				oldPoint = rp.Path
			}
		})
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	var rct, id string
	want := map[string][]byte{}
	t.Run("first", func(t *testing.T) {
		b := newBench(t, cfg)
		must(t, b.vm.Workload(1).Step(4))
		snap, err := b.snapshot()
		must(t, err)
		rp, err := b.convert(snap)
		must(t, err)
		b.settle()
		rct = rp.Strings("ResilientChangeTrackingIdentifiers")[0]
		id = rp.Strings("VirtualDiskIdentifiers")[0]
		must(t, b.vm.Disk(id).Write(64<<10, bytes.Repeat([]byte{7}, 512)))
		for _, d := range b.ids {
			p, err := b.vm.Disk(d).Content()
			must(t, err)
			want[d] = p
		}
	})
	s := open(t, cfg)
	b := &bench{t: t, site: s, host: s.Host("HV1"), vm: s.Host("HV1").VM("web")}
	if b.vm == nil || b.vm.State().Power != "running" {
		t.Fatal("the VM is not there, or does not run")
	}
	for d, p := range want {
		got, err := b.vm.Disk(d).Content()
		must(t, err)
		if !bytes.Equal(got, p) {
			t.Errorf("disk %s has another content", d)
		}
	}
	snap, err := b.snapshot()
	must(t, err)
	list, err := b.changes(b.frozen(snap)[id], rct, uint64(len(want[id])))
	must(t, err)
	if len(list) != 1 || list[0] != [2]uint64{64 << 10, 32 << 10} {
		t.Errorf("changes since the point before the restart: %v", list)
	}
}

func TestTrackingIsLost(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(b *bench, d *hvsim.Disk) error{
		"lost":     func(_ *bench, d *hvsim.Disk) error { return d.LoseRCT() },
		"crash":    func(b *bench, _ *hvsim.Disk) error { return first(b.vm.Crash(), b.vm.Start(b.t.Context())) },
		"grown":    func(_ *bench, d *hvsim.Disk) error { return d.Resize(16 << 20) },
		"shrunk":   func(_ *bench, d *hvsim.Disk) error { return d.Resize(4 << 20) },
		"replaced": func(_ *bench, d *hvsim.Disk) error { return d.Replace(8 << 20) },
		"edited": func(b *bench, d *hvsim.Disk) error {
			return first(b.vm.PowerOff(), d.EditOffline(0, []byte(strings.Repeat("x", 512))), b.vm.Start(b.t.Context()))
		},
		"reverted": func(b *bench, d *hvsim.Disk) error {
			id, err := b.host.UserCheckpoint(b.t.Context(), b.vm, "u")
			return first(err, b.vm.PowerOff(), b.vm.ApplyCheckpoint(id), b.vm.Start(b.t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, config(t))
			snap, err := b.snapshot()
			must(t, err)
			rp, err := b.convert(snap)
			must(t, err)
			b.settle()
			id, rct := rp.Strings("VirtualDiskIdentifiers")[0], rp.Strings("ResilientChangeTrackingIdentifiers")[0]
			must(t, harm(b, b.vm.Disk(id)))
			snap, err = b.snapshot()
			must(t, err)
			_, err = b.changes(b.frozen(snap)[id], rct, uint64(b.vm.Disk(id).State().Size))
			var je *cim.JobError
			if !as(err, &je) || !strings.Contains(je.Job.Description, "0xC03A0029") {
				t.Fatalf("changes since a lost point: %v", err)
			}
			data := b.read(b.frozen(snap)[id])
			if now := b.vm.Disk(id); int64(len(data)) != now.State().Size {
				t.Errorf("the frozen file has %d bytes", len(data))
			}
		})
	}
}

func TestUnplannedEndOfTheProgramLosesTracking(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	b := newBench(t, cfg)
	snap, err := b.snapshot()
	must(t, err)
	rp, err := b.convert(snap)
	must(t, err)
	b.settle()
	must(t, b.vm.Disk(b.ids[0]).Write(0, make([]byte, 512)))
	// What a killed program leaves: the directory as it is now.
	other := config(t)
	copyTree(t, cfg.Dir, other.Dir)
	s := open(t, other)
	c := &bench{t: t, site: s, host: s.Host("HV1"), vm: s.Host("HV1").VM("web")}
	snap, err = c.snapshot()
	must(t, err)
	files := c.frozen(snap)
	for i, id := range rp.Strings("VirtualDiskIdentifiers") {
		_, err := c.changes(files[id], rp.Strings("ResilientChangeTrackingIdentifiers")[i], 4<<20)
		if written := id == b.ids[0]; written && err == nil {
			t.Error("marks that were lost with the program are not missed")
		} else if !written && err != nil {
			t.Errorf("a disk that was not written lost its history: %v", err)
		}
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func ctxOf(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
