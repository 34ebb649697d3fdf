package azsim_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/azsim"
)

func types(rs []azsim.Resource) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Type[strings.LastIndex(r.Type, "/")+1:]+":"+r.Name)
	}
	return out
}

// TestLife is the way of a recovery: a disk by upload, an interface, a VM, its
// states, and back to nothing.
func TestLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	before := w.Resources()
	content := bytes.Repeat([]byte("holdfast"), 1<<10)
	if err := w.upload("os", 32<<20, content); err != nil {
		t.Fatal(err)
	}
	got := must(w.disks.Get(w.ctx(), group, "os", nil))(t)
	p := got.Properties
	if *p.DiskState != armcompute.DiskStateUnattached || *p.DiskSizeBytes != 32<<20 || *p.DiskSizeGB != 1 || *p.ProvisioningState != "Succeeded" {
		t.Errorf("disk: state %s, %d bytes, %d GB, %s", *p.DiskState, *p.DiskSizeBytes, *p.DiskSizeGB, *p.ProvisioningState)
	}
	nic := must(w.put("Microsoft.Network/networkInterfaces", "nic", nicProps(w.subnet, "10.0.1.20")))(t)
	vm := must(w.vm("vm", vmSpec(id("Microsoft.Compute/disks", "os"), nic)))(t)
	if vm.Properties.VMID == nil || *vm.Properties.ProvisioningState != "Succeeded" {
		t.Fatalf("VM: %+v", vm.Properties)
	}
	v, ok := w.VM(*vm.ID)
	if !ok || v.Power != "running" || v.Machine.Generation != 2 || v.Machine.CPUs != 2 || v.Machine.NICs[0].Address != "10.0.1.20" || len(v.Disks) != 1 {
		t.Fatalf("VM: %+v", v)
	}
	head := make([]byte, len(content))
	if err := v.Machine.Disks[0].Device.ReadAt(t.Context(), head, 0); err != nil || !bytes.Equal(head, content) {
		t.Errorf("the guest reads something else than was uploaded: %v", err)
	}
	if size := v.Machine.Disks[0].Device.Size(); size != 32<<20 {
		t.Errorf("the guest's disk has %d bytes", size)
	}

	power := func(want string) {
		t.Helper()
		view := must(w.vms.InstanceView(w.ctx(), group, "vm", nil))(t)
		if !slices.ContainsFunc(view.Statuses, func(s *armcompute.InstanceViewStatus) bool { return *s.Code == "PowerState/"+want }) {
			t.Errorf("not %s: %v", want, *view.Statuses[len(view.Statuses)-1].Code)
		}
	}
	power("running")
	po, err := w.vms.BeginPowerOff(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), po, err))(t)
	power("stopped")
	st, err := w.vms.BeginStart(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), st, err))(t)
	power("running")
	if _, err := w.access("os", armcompute.AccessLevelRead); code(t, err) != "Conflict" {
		t.Errorf("read access beside a running VM: %v", err)
	}
	de, err := w.vms.BeginDeallocate(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), de, err))(t)
	power("deallocated")
	if d := must(w.disks.Get(w.ctx(), group, "os", nil))(t); *d.Properties.DiskState != armcompute.DiskStateReserved || *d.ManagedBy != *vm.ID {
		t.Errorf("disk of a deallocated VM: %s, %s", *d.Properties.DiskState, *d.ManagedBy)
	}

	want(t, w.remove(id("Microsoft.Compute/disks", "os")), 409, "OperationNotAllowed")
	want(t, w.remove(nic), 400, "NicInUse")
	want(t, w.remove(w.subnet), 400, "InUseSubnetCannotBeDeleted")
	del, err := w.vms.BeginDelete(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), del, err))(t)
	for _, at := range []string{nic, id("Microsoft.Compute/disks", "os"), id("Microsoft.Compute/disks", "never")} {
		if err := w.remove(at); err != nil {
			t.Error(err)
		}
	}
	if after := w.Resources(); !slices.Equal(types(before), types(after)) {
		t.Errorf("left behind: %v\nbefore: %v", types(after), types(before))
	}
	if names := w.Pages().Names(); len(names) != 0 {
		t.Errorf("content left behind: %v", names)
	}
}

// TestDisks are the ways to make a disk, with what comes out.
func TestDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	content := bytes.Repeat([]byte{7}, 4096)
	if err := w.upload("src", 20<<20, content); err != nil {
		t.Fatal(err)
	}
	source := id("Microsoft.Compute/disks", "src")
	sp, err := w.snaps.BeginCreateOrUpdate(w.ctx(), group, "snap", armcompute.Snapshot{Location: to.Ptr("westeurope"), Properties: &armcompute.SnapshotProperties{
		Incremental: to.Ptr(true), CreationData: &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionCopy), SourceResourceID: &source}}}, nil)
	snap := must(wait(w.ctx(), sp, err))(t)
	if *snap.Properties.DiskSizeBytes != 20<<20 || *snap.Properties.HyperVGeneration != armcompute.HyperVGenerationV2 || !*snap.Properties.Incremental {
		t.Errorf("snapshot: %+v", snap.Properties)
	}
	if _, err := w.disk("copy", func(d *armcompute.Disk) {
		d.Properties.DiskSizeGB = to.Ptr(int32(2))
		d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionCopy), SourceResourceID: snap.ID}
	}); err != nil {
		t.Fatal(err)
	}
	sas := must(w.access("copy", armcompute.AccessLevelRead))(t)
	if d := must(w.disks.Get(w.ctx(), group, "copy", nil))(t); *d.Properties.DiskState != armcompute.DiskStateActiveSAS || *d.Properties.DiskSizeBytes != 2<<30 {
		t.Errorf("copy: %s, %d bytes", *d.Properties.DiskState, *d.Properties.DiskSizeBytes)
	}
	if got := must(w.download(sas, 0, 8192))(t); !bytes.Equal(got[:4096], content) || !bytes.Equal(got[4096:], make([]byte, 4096)) {
		t.Error("the copy has other content than its source")
	}
	want(t, w.remove(id("Microsoft.Compute/disks", "copy")), 409, "OperationNotAllowed") // access is outstanding
	if err := w.revoke("copy"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.download(sas, 0, 512); code(t, err) != "AuthenticationFailed" {
		t.Errorf("a revoked address answers %v", err)
	}

	upload := func(size int64) func(*armcompute.Disk) {
		return func(d *armcompute.Disk) {
			d.Properties.DiskSizeGB = nil
			d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: &size}
		}
	}
	for name, mod := range map[string]func(*armcompute.Disk){
		"no footer":    upload(32 << 20),
		"below 20 MiB": upload(4<<20 + 512),
		"no size":      func(d *armcompute.Disk) { d.Properties.DiskSizeGB = nil },
		"unknown SKU":  func(d *armcompute.Disk) { d.SKU.Name = to.Ptr(armcompute.DiskStorageAccountTypes("Fast_LRS")) },
		"no such image": func(d *armcompute.Disk) {
			d.Properties.CreationData.CreateOption = to.Ptr(armcompute.DiskCreateOptionFromImage)
		},
		"no account": func(d *armcompute.Disk) {
			d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionImport), SourceURI: to.Ptr("https://x/y/z")}
		},
	} {
		if _, err := w.disk("bad", mod); code(t, err) != "InvalidParameter" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.disk("up", upload(20<<20+512)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.access("up", armcompute.AccessLevelRead); code(t, err) != "OperationNotAllowed" {
		t.Errorf("read access to a disk that waits for its upload: %v", err)
	}
	must(w.access("up", armcompute.AccessLevelWrite))(t)
	if err := w.revoke("up"); code(t, err) != "InvalidVhd" {
		t.Errorf("the end of an upload without footer: %v", err)
	}
	if _, err := w.access("src", armcompute.AccessLevelWrite); code(t, err) != "OperationNotAllowed" {
		t.Errorf("write access to a finished disk: %v", err)
	}
	grow := armcompute.DiskUpdate{Properties: &armcompute.DiskUpdateProperties{DiskSizeGB: to.Ptr(int32(4))}}
	up, err := w.disks.BeginUpdate(w.ctx(), group, "src", grow, nil)
	if d := must(wait(w.ctx(), up, err))(t); *d.Properties.DiskSizeBytes != 4<<30 || *d.SKU.Name != armcompute.DiskStorageAccountTypesStandardSSDLRS {
		t.Errorf("grown: %+v", d.Properties)
	}
	grow.Properties.DiskSizeGB = to.Ptr(int32(3))
	if up, err = w.disks.BeginUpdate(w.ctx(), group, "src", grow, nil); code(t, err) != "OperationNotAllowed" {
		t.Errorf("shrinking: %v", err)
	}
}
