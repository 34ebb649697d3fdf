package azure_test

import (
	"net/http"
	"strings"
	"testing"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
)

// empty is a recovery VM of an empty disk, which is made quickly.
func empty(name string) hypervisor.BootSpec {
	return hypervisor.BootSpec{Name: name, Owner: "o", Network: "prod", Config: hypervisor.VMConfig{VM: dr.VM{Generation: 2, CPUs: 2, MemoryMB: 4096, NICs: []dr.NIC{{MAC: "00:15:5d:00:00:01"}}}},
		Disks: []hypervisor.BootDisk{{ID: "vda", Size: 1 << 30, Path: "/x"}}}
}

// What Azure or this package refuses comes with its code, and leaves the world as it was.
func TestRefusals(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range 45 {
		many["t"+strings.Repeat("x", i)] = "v"
	}
	nic := func(b *hypervisor.BootSpec, ip string) {
		b.Adapters = []hypervisor.BootNIC{{MAC: "00155d000001", Network: "prod", Subnet: "web", IP: ip}}
	}
	for _, c := range []struct {
		name  string
		world func(*stage)
		spec  func(*hypervisor.BootSpec)
		code  dr.Code
		words string
	}{
		{name: "name too long", spec: func(b *hypervisor.BootSpec) { b.Name = strings.Repeat("a", 64) }, code: dr.CodeAzureConfiguration},
		{name: "name with a dot", spec: func(b *hypervisor.BootSpec) { b.Name = "a.b" }, code: dr.CodeAzureConfiguration},
		{name: "name ends in hyphen", spec: func(b *hypervisor.BootSpec) { b.Name = "a-" }, code: dr.CodeAzureConfiguration},
		{name: "owner too long", spec: func(b *hypervisor.BootSpec) { b.Owner = strings.Repeat("o", 257) }, code: dr.CodeAzureConfiguration},
		{name: "VM is another's", world: func(s *stage) {
			spec := empty("vm1")
			spec.Owner = "somebody"
			_, err := s.host().Boot(s.t.Context(), spec)
			ok(s.t, err)
		}, code: dr.CodeAzureNameTaken, words: "somebody"},
		{name: "disk is not ours", world: func(s *stage) {
			s.cloud.Add("dr", arm.TypeDisk, "vm1-os", map[string]any{"location": "westeurope", "properties": map[string]any{"diskSizeGB": 4, "creationData": map[string]any{"createOption": "Empty"}}})
		}, code: dr.CodeAzureNameTaken, words: "vm1-os"},
		{name: "security group is not ours", world: func(s *stage) {
			s.cloud.Add("dr", arm.TypeSecurityGroup, "vm1-isolated-nsg", map[string]any{"location": "westeurope", "properties": map[string]any{}})
		}, spec: func(b *hypervisor.BootSpec) { b.Network = "" }, code: dr.CodeAzureNameTaken, words: "vm1-isolated-nsg"},
		{name: "generation 1 disk", spec: func(b *hypervisor.BootSpec) { b.Config.VM.Generation, b.Disks[0].Size = 1, 3<<40 }, code: dr.CodeAzureDisk, words: "vda"},
		{name: "data disk", spec: func(b *hypervisor.BootSpec) {
			b.Disks = append(b.Disks, hypervisor.BootDisk{ID: "vdb", Size: 33 << 40, Path: "/y"})
		}, code: dr.CodeAzureDisk, words: "vdb"},
		{name: "disk type", spec: func(b *hypervisor.BootSpec) { b.Cloud.DiskType = "Floppy_LRS" }, code: dr.CodeAzureDisk, words: "Floppy"},
		{name: "no such size", spec: func(b *hypervisor.BootSpec) { b.Cloud.Size = "Standard_Z1" }, code: dr.CodeAzureSize, words: "Standard_Z1"},
		{name: "size restricted", spec: func(b *hypervisor.BootSpec) { b.Cloud.Size = "Standard_D2s_v3" }, code: dr.CodeAzureSize},
		{name: "too large", spec: func(b *hypervisor.BootSpec) { b.CPUs = 1000 }, code: dr.CodeAzureSize},
		{name: "zone and set", spec: func(b *hypervisor.BootSpec) { b.Cloud.Zone, b.Cloud.AvailabilitySet = "1", "set" }, code: dr.CodeAzureConfiguration},
		{name: "no such zone", spec: func(b *hypervisor.BootSpec) { b.Cloud.Zone = "9" }, code: dr.CodeAzureConfiguration},
		{name: "no such set", spec: func(b *hypervisor.BootSpec) { b.Cloud.AvailabilitySet = "set" }, code: dr.CodeAzureNotFound, words: "set"},
		{name: "no such security group", spec: func(b *hypervisor.BootSpec) { b.Cloud.SecurityGroup = "nsg" }, code: dr.CodeAzureNotFound, words: "nsg"},
		{name: "own tag", spec: func(b *hypervisor.BootSpec) { b.Cloud.Tags = map[string]string{"Holdfast-Owner": "x"} }, code: dr.CodeAzureConfiguration},
		{name: "many tags", spec: func(b *hypervisor.BootSpec) { b.Cloud.Tags = many }, code: dr.CodeAzureConfiguration},
		{name: "other subscription", spec: func(b *hypervisor.BootSpec) {
			b.Cloud.ResourceGroup = "/subscriptions/99999999-0000-4000-8000-000000000001/resourceGroups/x"
		}, code: dr.CodeAzureConfiguration},
		{name: "no such group", spec: func(b *hypervisor.BootSpec) { b.Cloud.ResourceGroup = "nowhere" }, code: dr.CodeAzureNotFound, words: "nowhere"},
		{name: "quota", world: func(s *stage) { s.cloud.SetQuota("cores", 1) }, code: dr.CodeAzureQuota},
		{name: "policy", world: func(s *stage) {
			s.cloud.DenyPolicy(func(kind string, _ map[string]any) string {
				if strings.EqualFold(kind, arm.TypeVM) {
					return "no VMs on Sundays"
				}
				return ""
			})
		}, code: dr.CodeAzurePolicy},
		{name: "role", world: func(s *stage) { s.cloud.Deny("Microsoft.Compute/virtualMachines/write") }, code: dr.CodeAzureRole, words: "virtualMachines/write"},
		{name: "capacity", world: func(s *stage) {
			s.cloud.Fault(azsim.Fault{Method: http.MethodPut, Path: "/virtualMachines/", Operation: true, Code: "AllocationFailed", Times: -1})
		}, code: dr.CodeAzureCapacity},
		{name: "address taken", world: func(s *stage) {
			spec := empty("other")
			spec.Owner = "x"
			nic(&spec, "10.1.1.50")
			_, err := s.host().Boot(s.t.Context(), spec)
			ok(s.t, err)
		}, spec: func(b *hypervisor.BootSpec) { nic(b, "10.1.1.50") }, code: dr.CodeAzureAddress, words: "10.1.1.50"},
		{name: "subnet full", world: func(s *stage) {
			s.cloud.AddVNet("dr", "tiny", "10.9.0.0/29", map[string]string{"s": "10.9.0.0/29"})
			for _, n := range []string{"a", "b", "c"} {
				spec := empty(n)
				spec.Owner, spec.Network = "x", "tiny"
				_, err := s.host().Boot(s.t.Context(), spec)
				ok(s.t, err)
			}
		}, spec: func(b *hypervisor.BootSpec) { b.Network = "tiny" }, code: dr.CodeAzureSubnet},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			if c.world != nil {
				c.world(s)
			}
			before := s.resources()
			spec := empty("vm1")
			if c.spec != nil {
				c.spec(&spec)
			}
			h := s.host()
			_, err := h.Boot(t.Context(), spec)
			wantCode(t, err, c.code, c.words)
			if dr.HintOf(err) == "" {
				t.Error("the error says not what to do")
			}
			s.cloud.Allow()
			s.unchanged(t, before)
		})
	}
}

// A lock keeps Remove from deleting; it says so at once, and succeeds without it.
func TestLock(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	before := s.resources()
	h := s.host()
	id, err := h.Boot(t.Context(), empty("vm1"))
	ok(t, err)
	scope := s.id(arm.TypeDisk, "vm1-os")
	s.cloud.AddLock(scope)
	wantCode(t, h.Remove(t.Context(), id, "o"), dr.CodeAzureLocked, "vm1-os")
	s.cloud.RemoveLock(scope)
	ok(t, h.Remove(t.Context(), id, "o"))
	s.unchanged(t, before)
}

// What is not Holdfast's is not changed, with whatever Remove is called.
func TestForeignVMs(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	h := s.host()
	mine, err := h.Boot(t.Context(), empty("vm1"))
	ok(t, err)
	spec := empty("vm2")
	spec.Owner = "somebody"
	other, err := h.Boot(t.Context(), spec)
	ok(t, err)
	third := empty("vm3") // the same owner as vm1
	_, err = h.Boot(t.Context(), third)
	ok(t, err)
	before := s.resources()
	wantCode(t, h.Remove(t.Context(), other, "o"), dr.CodeOperationNotAllowed)
	ok(t, h.Remove(t.Context(), "00000000-dead-4bee-8fff-000000000000", "o"))
	if h.Remove(t.Context(), mine, "") == nil {
		t.Error("Remove without owner succeeded")
	}
	s.unchanged(t, before)
	ok(t, h.Remove(t.Context(), mine, "o"))
	if _, found := s.cloud.VM(s.id(arm.TypeVM, "vm3")); !found {
		t.Error("removing vm1 removed vm3")
	}
	ok(t, h.Remove(t.Context(), "", "o"))
	ok(t, h.Remove(t.Context(), "", "somebody"))
}
