package words

import (
	"testing"

	"holdfast/internal/dr"
)

func TestDisks(t *testing.T) {
	t.Parallel()
	const id = "7F1C0E6C-0000-4000-8000-000000000001"
	for _, c := range []struct {
		d            dr.Disk
		name, detail string
	}{
		{dr.Disk{ID: "vda", Path: "/x/web01.qcow2", Format: "qcow2"}, "vda", "qcow2"},
		{dr.Disk{ID: id, Path: `C:\ClusterStorage\Volume1\dc01.vhdx`, Format: "vhdx", Layout: "dynamic", Controller: "scsi", Slot: 3, Sector: 4096, Chain: 4, Allocated: 1 << 30}, "dc01.vhdx", "SCSI, slot 3 · VHDX dynamic · 4096-byte sectors · chain of 4 files · 1 GiB on the host"},
		{dr.Disk{ID: id, Path: "/srv/dc01.vhdx", Controller: "nvme", Chain: 1}, "dc01.vhdx", "NVMe, slot 0"},
		{dr.Disk{ID: id}, id, ""},
		{dr.Disk{ID: "vdb", Format: "raw", Controller: "virtio"}, "vdb", "virtio, slot 0 · raw"},
	} {
		if name, detail := DiskName(c.d), DiskDetail(c.d); name != c.name || detail != c.detail {
			t.Errorf("%q: %q %q, want %q %q", c.d.ID, name, detail, c.name, c.detail)
		}
	}
}

func TestPlatform(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		hypervisor     string
		role           dr.AgentRole
		site           dr.FabricType
		kind, versions string
	}{
		{"QEMU 7.2.22, libvirt 9.0.0", dr.RoleSource, dr.KVMSite, "KVM", "QEMU 7.2.22, libvirt 9.0.0"},
		{"QEMU 7.2.22, libvirt 9.0.0", dr.RoleRecovery, dr.HyperVSite, "KVM", "QEMU 7.2.22, libvirt 9.0.0"},
		{"Hyper-V, Windows Server 2022 10.0.20348", dr.RoleRecovery, dr.KVMSite, "Hyper-V", "Windows Server 2022 10.0.20348"},
		{"Virtual Machine Manager", dr.RoleVMM, dr.VMMSite, "VMM", "Virtual Machine Manager"},
		{"", dr.RoleSource, dr.VMMSite, "Hyper-V", ""},
		{"", dr.RoleSource, dr.KVMSite, "KVM", ""},
		{"simulator 1", dr.RoleSource, dr.KVMSite, "KVM", "simulator 1"},
	} {
		p := dr.Provider{Hypervisor: c.hypervisor, Roles: []dr.AgentRole{c.role}}
		if kind, v := Platform(p, c.site), HypervisorVersion(p, c.site); kind != c.kind || v != c.versions {
			t.Errorf("%q: %q %q", c.hypervisor, kind, v)
		}
	}
	if got := FileName("my site/ü\"1.x"); got != "my_site___1.x" {
		t.Error(got)
	}
}
