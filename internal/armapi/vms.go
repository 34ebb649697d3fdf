package armapi

import (
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// vmEntry is a VM with the protected item made of it, if any.
type vmEntry struct {
	vm   dr.VM
	item string
}

func (e vmEntry) status() string {
	if e.item == "" {
		return "Unprotected"
	}
	return "Protected"
}

// protectedVMs maps the VMs of a fabric to the names of their protected items.
func (c *call) protectedVMs(f dr.Fabric) (map[dr.VMID]string, error) {
	items, err := c.svc().Items(c.ctx(), f.ID)
	if err != nil {
		return nil, err
	}
	by := make(map[dr.VMID]string, len(items))
	for _, it := range items {
		by[it.VM] = it.Name
	}
	return by, nil
}

func listVMs(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	vms, err := c.svc().VMs(c.ctx(), f.ID)
	if err != nil {
		return reply{}, err
	}
	by, err := c.protectedVMs(f)
	if err != nil {
		return reply{}, err
	}
	all := make([]vmEntry, 0, len(vms))
	for _, vm := range vms {
		if item := by[vm.ID]; !vm.Gone || item != "" { // a VM that is gone can't be protected any more
			all = append(all, vmEntry{vm, item})
		}
	}
	all, err = filtered(c, all, map[string]func(vmEntry) string{
		"protectionstatus": vmEntry.status,
		"friendlyname":     func(e vmEntry) string { return e.vm.Name },
		"name":             func(e vmEntry) string { return string(e.vm.ID) },
	})
	if err != nil {
		return reply{}, err
	}
	return page(c, all, func(e vmEntry) string { return string(e.vm.ID) }, func(e vmEntry) (armwire.Resource[armwire.ProtectableItem], error) {
		return c.vmResource(f, e), nil
	})
}

func getVM(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	vm, err := c.svc().VM(c.ctx(), f.ID, dr.VMID(strings.ToLower(c.name(tVMs))))
	if err != nil {
		return reply{}, err
	}
	by, err := c.protectedVMs(f)
	if err != nil {
		return reply{}, err
	}
	return ok(c.vmResource(f, vmEntry{vm, by[vm.ID]}))
}

func (c *call) vmID(f dr.Fabric, vm dr.VMID) string {
	return c.vaultID().ID(tFabrics, f.Name, tContainers, f.ContainerName(), tVMs, string(vm))
}

func (c *call) vmResource(f dr.Fabric, e vmEntry) armwire.Resource[armwire.ProtectableItem] {
	vm := e.vm
	disks := make([]armwire.DiskDetails, 0, len(vm.Disks))
	physical, shared := "NotPresent", "NotPresent"
	usable := 0
	readiness := []string{}
	for _, d := range vm.Disks {
		disks = append(disks, armwire.DiskDetails{MaxSizeMB: mebibytes(d.Size), VHDType: diskType(d), VHDID: d.ID, VHDName: baseName(d.Path),
			Format: d.Format, Unreplicatable: d.Unreplicatable})
		if d.PassThru {
			physical = "Present"
		}
		if d.Shared {
			shared = "Present"
		}
		if d.Unreplicatable == "" && !d.PassThru && !d.Shared {
			usable++
		}
	}
	if usable == 0 {
		readiness = append(readiness, string(dr.CodeNoDisks))
	}
	var item *string
	if e.item != "" {
		id := c.itemID(f, e.item)
		item = &id
	}
	return armwire.Resource[armwire.ProtectableItem]{
		ID: c.vmID(f, vm.ID), Name: string(vm.ID), Type: armwire.ResourceType(tFabrics, "", tContainers, "", tVMs, ""),
		Properties: armwire.ProtectableItem{
			FriendlyName: vm.Name, ProtectionStatus: e.status(), ReplicationProtectedItemID: item, RecoveryServicesProviderID: c.providerID(f, vm.Agent),
			ProtectionReadinessErrors: readiness, SupportedReplicationProviders: []string{armwire.HyperVReplicaAzure}, Running: vm.Running,
			CustomDetails: armwire.VMDetails{InstanceType: armwire.HyperVVirtualMachine, SourceItemID: string(vm.ID), Generation: strconv.Itoa(max(1, vm.Generation)),
				OSDetails: osDetails(vm), DiskDetails: disks, HasPhysicalDisk: physical, HasFibreChannelAdapter: "NotPresent", HasSharedVHD: shared, HyperVHostID: string(vm.Agent)},
		},
	}
}

// mebibytes rounds up.
func mebibytes(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

func diskType(d dr.Disk) string {
	if d.Boot {
		return "OperatingSystem"
	}
	return "Data"
}

// baseName is the last element of a Unix or Windows path.
func baseName(path string) string {
	if i := strings.LastIndexAny(path, `/\`); i >= 0 {
		return path[i+1:]
	}
	return path
}

func osDetails(vm dr.VM) armwire.OSDetails {
	return armwire.OSDetails{OSType: vm.OSType, ProductType: "UNKNOWN"}
}

// replicated are the disks of a VM that an item replicates, in the VM's order.
func replicated(vm dr.VM, ids []string) []dr.Disk {
	var out []dr.Disk
	for _, d := range vm.Disks {
		if len(ids) == 0 || slices.Contains(ids, d.ID) {
			out = append(out, d)
		}
	}
	return out
}
