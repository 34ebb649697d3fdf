package azure

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/booting"
	"holdfast/internal/hypervisor/azure/internal/netres"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// nativeVM is the VM's resource as Azure shows it, in VMConfig.Native.
const nativeVM = "azure.vm.json"

// Info describes the site. CPUs is the subscription's quota of cores in the region;
// the memory is what the smallest of current sizes has for so many.
func (h *Host) Info(ctx context.Context) (hypervisor.HostInfo, error) {
	i := hypervisor.HostInfo{Name: h.site.ResourceGroup, Hypervisor: "Azure, " + h.s.Location()}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	for pages := h.s.Usages.NewListPager(h.s.Location(), nil); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return i, arm.Classify("azure.Info", "the quotas of "+h.s.Location(), err)
		}
		for _, u := range page.Value {
			if u != nil && u.Name != nil && u.Limit != nil && strings.EqualFold(site.Str(u.Name.Value), "cores") {
				i.CPUs = int(min(*u.Limit, 1<<20))
			}
		}
	}
	i.MemoryMB = 2048 * i.CPUs
	return i, nil
}

// diskRef is a disk as a VM names it.
type diskRef struct {
	id   string // of the managed disk; "" = of another kind
	name string // "os", "lun0", …
	lun  int    // -1 = the OS disk
}

// diskRefs are the disks of a VM, the OS disk first, then by LUN.
func diskRefs(m site.Machine) []diskRef {
	sp := m.Properties.StorageProfile
	if sp == nil {
		return nil
	}
	var out []diskRef
	id := func(p *armcompute.ManagedDiskParameters) string {
		if p == nil {
			return ""
		}
		return site.Str(p.ID)
	}
	if sp.OSDisk != nil {
		out = append(out, diskRef{id(sp.OSDisk.ManagedDisk), "os", -1})
	}
	for _, d := range sp.DataDisks {
		if d != nil && d.Lun != nil {
			out = append(out, diskRef{id(d.ManagedDisk), "lun" + strconv.Itoa(int(*d.Lun)), int(*d.Lun)})
		}
	}
	slices.SortStableFunc(out, func(a, b diskRef) int { return a.lun - b.lun })
	return out
}

func diskSize(d armcompute.Disk) int64 {
	switch {
	case d.Properties == nil:
	case d.Properties.DiskSizeBytes != nil:
		return *d.Properties.DiskSizeBytes
	case d.Properties.DiskSizeGB != nil:
		return int64(*d.Properties.DiskSizeGB) << 30
	}
	return 0
}

// world is what VMs are described from.
type world struct {
	disks  map[string]armcompute.Disk // by lower-case id
	nics   map[string]netres.NIC
	public map[string]string // address by id
	sizes  map[string]arm.Size
}

// world reads the disks and the network's resources of a group with one list each.
func (h *Host) world(ctx context.Context, p site.Place) (world, error) {
	w := world{map[string]armcompute.Disk{}, map[string]netres.NIC{}, map[string]string{}, map[string]arm.Size{}}
	type item[T any] struct {
		ID         string `json:"id"`
		Properties T      `json:"properties"`
	}
	sizes, err := h.az.Sizes(ctx)
	if err != nil {
		return w, err
	}
	for _, s := range sizes {
		w.sizes[site.Lower(s.Name)] = s
	}
	if err := site.List(ctx, h.az, p, arm.TypeDisk, func(d armcompute.Disk) { w.disks[site.Lower(site.Str(d.ID))] = d }); err != nil {
		return w, err
	}
	if err := site.List(ctx, h.az, p, arm.TypeNIC, func(n item[netres.NIC]) { w.nics[site.Lower(n.ID)] = n.Properties }); err != nil {
		return w, err
	}
	return w, site.List(ctx, h.az, p, arm.TypePublicIP, func(n item[netres.PublicIP]) { w.public[site.Lower(n.ID)] = n.Properties.Address })
}

// Inventory lists the VMs of the site's resource group and the recovery VMs in others.
func (h *Host) Inventory(ctx context.Context) ([]dr.VM, error) {
	const op = "Inventory"
	places, err := h.az.AllPlaces(ctx, arm.TagPurpose, arm.PurposeRecovery, arm.PurposeTest)
	if err != nil {
		return nil, h.az.Say(op, "list the VMs", err)
	}
	var out []dr.VM
	for i, p := range places {
		vms, err := h.az.Machines(ctx, p)
		if err != nil {
			return nil, h.az.Say(op, "list the VMs of resource group "+p.Group, err)
		}
		vms = slices.DeleteFunc(vms, func(m site.Machine) bool { return i > 0 && m.Tag(arm.TagOwner) == "" })
		if len(vms) == 0 {
			continue
		}
		w, err := h.world(ctx, p)
		if err != nil {
			return nil, h.az.Say(op, "describe the VMs of resource group "+p.Group, err)
		}
		described := make([]*dr.VM, len(vms))
		err = site.EachOf(ctx, len(vms), inventoryParallel, func(ctx context.Context, i int) error {
			v, found, err := h.describe(ctx, op, vms[i], w)
			if err == nil && found {
				described[i] = &v
			}
			return err
		})
		if err != nil {
			return nil, h.az.Say(op, "describe the VMs of resource group "+p.Group, err)
		}
		for _, v := range described {
			if v != nil {
				out = append(out, *v)
			}
		}
	}
	return out, nil
}

// inventoryParallel is how many VMs are asked at a time what they do.
const inventoryParallel = 4

// describe makes the product's view of a VM; false if it is gone meanwhile.
func (h *Host) describe(ctx context.Context, op string, m site.Machine, w world) (dr.VM, bool, error) {
	view, found, err := h.view(ctx, op, m)
	if err != nil || !found {
		return dr.VM{}, false, err
	}
	v := dr.VM{ID: m.Key(), Name: m.Name, Running: power(view) != hypervisor.PowerOff, Generation: 1, Seen: time.Now()}
	if hp := m.Properties.HardwareProfile; hp != nil && hp.VMSize != nil {
		s := w.sizes[site.Lower(string(*hp.VMSize))]
		v.CPUs, v.MemoryMB, v.Facts.Version = s.VCPUs, int(s.MemoryMB), string(*hp.VMSize)
	}
	v.Facts.OSName, v.Facts.OSVersion = site.Str(view.OSName), site.Str(view.OSVersion)
	if sign, ok := agentReady(view); ok {
		v.Facts.GuestTools = "ok"
	} else if v.Facts.GuestTools = "absent"; sign != "" {
		v.Facts.GuestTools = "degraded"
	}
	if sp := m.Properties.StorageProfile; sp != nil && sp.OSDisk != nil && sp.OSDisk.OSType != nil {
		v.OSType = string(*sp.OSDisk.OSType)
	}
	ephemeral, _ := hostCaches(m)
	for _, r := range diskRefs(m) {
		d := dr.Disk{ID: r.name, Path: r.id, Format: "managed", Boot: r.lun < 0, Controller: "scsi", Slot: max(r.lun, 0), Layout: "fixed", Sector: 512}
		md, known := w.disks[site.Lower(r.id)]
		if !known && r.id != "" { // in another group
			if known, err = h.az.Get(ctx, arm.TypeDisk, r.id, &md); err != nil {
				return v, false, err
			}
		}
		if !known {
			d.Unreplicatable = "it is no managed disk"
			v.Disks = append(v.Disks, d)
			continue
		}
		if id := site.Tag(md.Tags, booting.TagDisk); id != "" && site.Tag(md.Tags, arm.TagOwner) != "" {
			d.ID = id
		}
		d.Size = diskSize(md)
		if p := md.Properties; p != nil {
			d.Shared = p.MaxShares != nil && *p.MaxShares > 1
			if d.Unreplicatable = uncuttable(md); d.Boot && ephemeral {
				d.Unreplicatable = onHost
			}
			if d.Boot && p.HyperVGeneration != nil && *p.HyperVGeneration == armcompute.HyperVGenerationV2 {
				v.Generation = 2
			}
			if p.CreationData != nil && p.CreationData.LogicalSectorSize != nil {
				d.Sector = int(*p.CreationData.LogicalSectorSize)
			}
		}
		v.Disks = append(v.Disks, d)
	}
	if view.HyperVGeneration != nil && *view.HyperVGeneration == armcompute.HyperVGenerationTypeV2 {
		v.Generation = 2
	}
	v.NICs, err = h.adapters(ctx, m, w)
	return v, true, err
}

// adapters are the VM's, the primary one first as Azure lists them.
func (h *Host) adapters(ctx context.Context, m site.Machine, w world) ([]dr.NIC, error) {
	np := m.Properties.NetworkProfile
	if np == nil {
		return nil, nil
	}
	var out []dr.NIC
	for _, ref := range np.NetworkInterfaces {
		if ref == nil || ref.ID == nil {
			continue
		}
		n, known := w.nics[site.Lower(*ref.ID)]
		if !known {
			var r struct {
				Properties netres.NIC `json:"properties"`
			}
			found, err := h.az.Get(ctx, arm.TypeNIC, *ref.ID, &r)
			if err != nil {
				return nil, err
			}
			if !found {
				continue
			}
			n = r.Properties
		}
		d := dr.NIC{ID: *ref.ID, MAC: site.Lower(strings.ReplaceAll(n.MACAddress, "-", ":")), Type: "synthetic"}
		for _, c := range n.IPConfigurations {
			if c.Properties.Address != "" {
				d.IPs = append(d.IPs, c.Properties.Address)
			}
			if p := c.Properties.PublicIP; p != nil && w.public[site.Lower(p.ID)] != "" {
				d.IPs = append(d.IPs, w.public[site.Lower(p.ID)])
			}
			if s := c.Properties.Subnet; s != nil && d.Network == "" {
				if i := strings.LastIndex(site.Lower(s.ID), "/subnets/"); i > 0 {
					d.Network = h.booter.NetworkName(s.ID[:i])
				}
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// Config returns a VM's description and, as Native, its resource as Azure shows it.
func (h *Host) Config(ctx context.Context, id dr.VMID) (hypervisor.VMConfig, error) {
	const op = "Config"
	m, err := h.az.Find(ctx, op, id)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	w, err := h.world(ctx, m.Place)
	if err != nil {
		return hypervisor.VMConfig{}, h.az.Say(op, "describe VM "+m.Name, err)
	}
	v, found, err := h.describe(ctx, op, m, w)
	if err != nil {
		return hypervisor.VMConfig{}, h.az.Say(op, "describe VM "+m.Name, err)
	}
	if !found {
		return hypervisor.VMConfig{}, gone(op, m)
	}
	text, err := json.Marshal(m.VirtualMachine)
	if err != nil {
		return hypervisor.VMConfig{}, dr.Errorf(dr.KindInternal, "azure."+op, "keep the resource of VM %s: %w", m.Name, err)
	}
	return hypervisor.VMConfig{VM: v, Native: map[string][]byte{nativeVM: text}}, nil
}

// gone is the error of a VM that was deleted while it was asked about.
func gone(op string, m site.Machine) error {
	return dr.New(dr.KindNotFound, dr.CodeVMNotFound, "azure."+op, "%s does not exist any more", m.Resource())
}

// MakeLocal reports that everything is local: Boot has copied it.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	const op = "MakeLocal"
	m, err := h.az.Find(ctx, op, id)
	if err != nil || progress == nil {
		return err
	}
	var total int64
	for _, d := range diskRefs(m) {
		var v armcompute.Disk
		found, err := h.az.Get(ctx, arm.TypeDisk, d.id, &v)
		if err != nil {
			return h.az.Say(op, "ask for the disks of VM "+m.Name, err)
		}
		if found && v.Properties != nil {
			total += diskSize(v)
		}
	}
	progress(total, total)
	return nil
}
