package site

import (
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/armapi/route"
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
func protectedVMs(c *route.Call, f dr.Fabric) (map[dr.VMID]string, error) {
	items, err := c.Svc().Items(c.Ctx(), f.ID)
	if err != nil {
		return nil, err
	}
	by := make(map[dr.VMID]string, len(items))
	for _, it := range items {
		by[it.VM] = it.Name
	}
	return by, nil
}

func listVMs(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	vms, err := c.Svc().VMs(c.Ctx(), f.ID)
	if err != nil {
		return route.Reply{}, err
	}
	by, err := protectedVMs(c, f)
	if err != nil {
		return route.Reply{}, err
	}
	all := make([]vmEntry, 0, len(vms))
	for _, vm := range vms {
		if item := by[vm.ID]; c.InContainer(f, vm.ID) && (!vm.Gone || item != "") { // a VM that is gone can't be protected any more
			all = append(all, vmEntry{vm, item})
		}
	}
	all, err = route.Filtered(c, all, map[string]func(vmEntry) string{
		"protectionstatus": vmEntry.status,
		"friendlyname":     func(e vmEntry) string { return e.vm.Name },
		"name":             func(e vmEntry) string { return string(e.vm.ID) },
	})
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, all, func(e vmEntry) string { return string(e.vm.ID) }, func(c *route.Call, e vmEntry) (armwire.Resource[armwire.ProtectableItem], error) {
		return vmResource(c, f, e), nil
	})
}

func getVM(c *route.Call) (route.Reply, error) {
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	vm, err := c.Svc().VM(c.Ctx(), f.ID, dr.VMID(strings.ToLower(c.NameOf(route.TVMs))))
	if err != nil {
		return route.Reply{}, err
	}
	by, err := protectedVMs(c, f)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(vmResource(c, f, vmEntry{vm, by[vm.ID]}))
}

func vmResource(c *route.Call, f dr.Fabric, e vmEntry) armwire.Resource[armwire.ProtectableItem] {
	vm := e.vm
	disks := make([]armwire.DiskDetails, 0, len(vm.Disks))
	physical, shared := "NotPresent", "NotPresent"
	usable := 0
	readiness := []string{}
	for _, d := range vm.Disks {
		disks = append(disks, armwire.DiskDetails{MaxSizeMB: MiB(d.Size), VHDType: DiskType(d), VHDID: d.ID, VHDName: BaseName(d.Path),
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
		id := c.ItemID(f, vm.ID, e.item)
		item = &id
	}
	instance := armwire.HyperVVirtualMachine
	if f.Type == dr.VMMSite {
		instance = armwire.VMMVirtualMachine
	}
	return armwire.Resource[armwire.ProtectableItem]{
		ID: c.VMID(f, vm.ID), Name: string(vm.ID), Type: armwire.ResourceType(route.TFabrics, "", route.TContainers, "", route.TVMs, ""),
		Properties: armwire.ProtectableItem{
			FriendlyName: vm.Name, ProtectionStatus: e.status(), ReplicationProtectedItemID: item, RecoveryServicesProviderID: c.ProviderID(f, vm.Agent),
			ProtectionReadinessErrors: readiness, SupportedReplicationProviders: []string{armwire.HyperVReplicaAzure}, Running: vm.Running,
			CustomDetails: armwire.VMDetails{InstanceType: instance, SourceItemID: string(vm.ID), Generation: strconv.Itoa(max(1, vm.Generation)),
				OSDetails: OSDetails(vm), DiskDetails: disks, HasPhysicalDisk: physical, HasFibreChannelAdapter: "NotPresent", HasSharedVHD: shared, HyperVHostID: string(vm.Agent)},
		},
	}
}

// MiB rounds bytes up to mebibytes.
func MiB(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// DiskType is the API's word for what a disk holds.
func DiskType(d dr.Disk) string {
	if d.Boot {
		return "OperatingSystem"
	}
	return "Data"
}

// BaseName is the last element of a Unix or Windows path.
func BaseName(path string) string {
	if i := strings.LastIndexAny(path, `/\`); i >= 0 {
		return path[i+1:]
	}
	return path
}

// OSDetails is what is known of a guest's operating system.
func OSDetails(vm dr.VM) armwire.OSDetails {
	return armwire.OSDetails{OSType: vm.OSType, ProductType: "UNKNOWN"}
}

// Replicated are the disks of a VM that an item replicates, in the VM's order.
func Replicated(vm dr.VM, ids []string) []dr.Disk {
	var out []dr.Disk
	for _, d := range vm.Disks {
		if len(ids) == 0 || slices.Contains(ids, d.ID) {
			out = append(out, d)
		}
	}
	return out
}
