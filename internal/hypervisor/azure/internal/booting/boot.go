package booting

import (
	"context"
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/netres"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// Boot makes and starts a recovery VM. It takes as long as its disks take to be
// copied: give it a context accordingly. See the package's comment, and
// hypervisor.Machines for the contract; a name that is somebody else's is dr.CodeAzureNameTaken.
func (h *Booter) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	const op = "Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	spec = h.withNetwork(spec)
	at, err := h.placeOf(spec)
	if err != nil {
		return "", err
	}
	for _, key := range []string{"owner " + spec.Owner, nameKey(at, spec.Name)} {
		unlock, err := h.az.Lock(ctx, op, key)
		if err != nil {
			return "", err
		}
		defer unlock()
	}
	m, found, err := h.bootedBefore(ctx, at, spec)
	if err != nil {
		return "", err
	}
	if found {
		return m.Key(), h.cfg.Start(ctx, op, m)
	}
	p, err := h.plan(ctx, spec)
	if err != nil {
		return "", err
	}
	h.az.Uses(at.Group)
	id, err := h.bring(ctx, p)
	if err == nil {
		return id, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.UndoTimeout)
	defer cancel()
	if uerr := h.cfg.Demolish(undo, spec.Owner, spec.Name, at); uerr != nil {
		h.cfg.Log.Warn("what was made of a recovery VM is left over; the next Boot or Remove deletes it", "vm", spec.Name, "err", uerr)
	}
	if ctx.Err() != nil && dr.KindOf(err) != dr.KindOf(ctx.Err()) {
		err = dr.Errorf(dr.KindOf(ctx.Err()), "azure."+op, "recovery VM %s was not made in time: %w", spec.Name, err)
	}
	return "", err
}

func nameKey(p site.Place, name string) string {
	return "VM " + site.Lower(p.Group) + "/" + site.Lower(name)
}

// bootedBefore finds the VM of an earlier call. One that Azure could not make is deleted.
func (h *Booter) bootedBefore(ctx context.Context, at site.Place, spec hypervisor.BootSpec) (site.Machine, bool, error) {
	const op = "Boot"
	id := at.ID(arm.TypeVM, spec.Name)
	m, found, err := h.az.Settled(ctx, id)
	if err != nil {
		return site.Machine{}, false, h.az.Say(op, "look for recovery VM "+spec.Name, err)
	}
	if !found {
		return site.Machine{}, false, nil
	}
	if !ours(m.Tags, spec.Owner, spec.Name) {
		return site.Machine{}, false, taken(id, m.Tags)
	}
	if site.Str(m.Properties.ProvisioningState) == site.Succeeded {
		return m, true, nil
	}
	err = h.s.Remove(ctx, []arm.Resource{{ID: id, Name: spec.Name, Type: arm.TypeVM, Tags: map[string]string{arm.TagOwner: spec.Owner}}})
	return site.Machine{}, false, h.az.Say(op, "delete recovery VM "+spec.Name+", which Azure could not make before", err)
}

// ours reports whether tags are those of what Boot makes for a VM.
func ours(tags map[string]*string, owner, vm string) bool {
	return site.Tag(tags, arm.TagOwner) == owner && site.Tag(tags, arm.TagVM) == vm
}

// taken is the error of a name that is somebody else's.
func taken(id string, tags map[string]*string) error {
	whose := "was not made by Holdfast"
	if o := site.Tag(tags, arm.TagOwner); o != "" {
		whose = "belongs to " + o + ", VM " + site.Tag(tags, arm.TagVM)
	}
	return dr.New(dr.KindConflict, dr.CodeAzureNameTaken, "azure.Boot", "%s exists and %s; it is left alone", id, whose)
}

// bring makes the recovery VM. The names of all that is to be made are checked
// first, so that nothing of others is touched, and nothing is made in vain.
func (h *Booter) bring(ctx context.Context, p *plan) (dr.VMID, error) {
	const op = "Boot"
	before, err := h.inspect(ctx, p)
	if err != nil {
		return "", err
	}
	if err := h.makeNetwork(ctx, p); err != nil {
		return "", h.az.Say(op, "make the network of recovery VM "+p.name, err)
	}
	if err := h.fillAll(ctx, p, before); err != nil {
		return "", h.az.Say(op, "make the disks of recovery VM "+p.name, err)
	}
	id := p.place.ID(arm.TypeVM, p.name)
	err = h.createVM(ctx, p)
	if err != nil && ctx.Err() != nil {
		return "", h.az.Say(op, "make recovery VM "+p.name, err)
	}
	// Also after an error: the answer to a request that Azure obeyed may have been lost.
	m, found, gerr := h.az.Settled(ctx, id)
	switch {
	case gerr != nil:
		return "", h.az.Say(op, "make recovery VM "+p.name, errors.Join(err, gerr))
	case err == nil && !found:
		return "", dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s does not exist although Azure has made it", id)
	case found && !ours(m.Tags, p.spec.Owner, p.name):
		return "", taken(id, m.Tags)
	case err != nil && (!found || site.Str(m.Properties.ProvisioningState) != site.Succeeded):
		return "", h.az.Say(op, "make recovery VM "+p.name, err)
	case site.Str(m.Properties.ProvisioningState) != site.Succeeded:
		return "", dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s was made and is in state %s", id, site.Str(m.Properties.ProvisioningState))
	}
	h.az.Seen(m.Key(), id)
	if err := h.cfg.Start(ctx, op, m); err != nil { // it runs, unless an earlier request was cut off
		return "", err
	}
	h.cfg.Log.Info("recovery VM made", "vm", p.name, "id", id, "size", p.size, "disks", len(p.disks), "adapters", len(p.nics), "isolated", len(p.isolated) > 0)
	return m.Key(), nil
}

// inspect looks at everything that is to be made: what exists has to be ours. It
// returns the disks that exist, by name.
func (h *Booter) inspect(ctx context.Context, p *plan) (map[string]armcompute.Disk, error) {
	type head struct {
		Tags map[string]*string `json:"tags"`
	}
	look := func(kind, name string) error {
		id := p.place.ID(kind, name)
		var r head
		found, err := h.az.Get(ctx, kind, id, &r)
		if err != nil {
			return h.az.Say("Boot", "check the names for recovery VM "+p.name, err)
		}
		if found && !ours(r.Tags, p.spec.Owner, p.name) {
			return taken(id, r.Tags)
		}
		return nil
	}
	if len(p.isolated) > 0 {
		if err := look(arm.TypeSecurityGroup, p.isolatedGroup()); err != nil {
			return nil, err
		}
		if err := look(arm.TypeNetwork, p.isolatedNet()); err != nil {
			return nil, err
		}
	}
	if p.public {
		if err := look(arm.TypePublicIP, p.publicName()); err != nil {
			return nil, err
		}
	}
	for _, n := range p.nics {
		if err := look(arm.TypeNIC, n.name); err != nil {
			return nil, err
		}
	}
	disks := map[string]armcompute.Disk{}
	for _, d := range p.disks {
		var v armcompute.Disk
		id := p.place.ID(arm.TypeDisk, d.name)
		found, err := h.az.Get(ctx, arm.TypeDisk, id, &v)
		switch {
		case err != nil:
			return nil, h.az.Say("Boot", "check the names for recovery VM "+p.name, err)
		case found && !ours(v.Tags, p.spec.Owner, p.name):
			return nil, taken(id, v.Tags)
		case found && v.Properties != nil:
			disks[d.name] = v
		}
	}
	return disks, nil
}

// body is a resource to be made.
type body struct {
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags,omitempty"`
	SKU        *sku              `json:"sku,omitempty"`
	Properties any               `json:"properties"`
}

type sku struct {
	Name string `json:"name"`
}

// put makes a resource, or brings an existing one of ours to what is asked for.
func (h *Booter) put(ctx context.Context, p *plan, kind, name string, b body) error {
	b.Location, b.Tags = h.s.Location(), p.tags
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	return h.s.PutResource(ctx, p.place.ID(kind, name), arm.APIVersion(kind), b, nil)
}

// makeNetwork makes the isolated network if there is to be one, the public address and the adapters.
func (h *Booter) makeNetwork(ctx context.Context, p *plan) error {
	if len(p.isolated) > 0 {
		if err := h.put(ctx, p, arm.TypeSecurityGroup, p.isolatedGroup(), body{Properties: netres.DenyAll()}); err != nil {
			return err
		}
		var net netres.VNet
		for _, s := range p.isolated {
			s.Properties.NetworkSecurityGroup = &netres.Ref{ID: p.group}
			s.Properties.DefaultOutbound = to.Ptr(false)
			net.AddressSpace.AddressPrefixes = append(net.AddressSpace.AddressPrefixes, s.Properties.AddressPrefix)
			net.Subnets = append(net.Subnets, s)
		}
		if err := h.put(ctx, p, arm.TypeNetwork, p.isolatedNet(), body{Properties: net}); err != nil {
			return err
		}
	}
	if p.public {
		if err := h.put(ctx, p, arm.TypePublicIP, p.publicName(), body{SKU: &sku{"Standard"}, Properties: netres.PublicIP{Method: "Static", Version: "IPv4"}}); err != nil {
			return err
		}
	}
	for i, n := range p.nics {
		ip := netres.IPProperties{Method: "Dynamic", Version: "IPv4", Primary: true, Subnet: &netres.Ref{ID: n.subnet}}
		if n.ip.IsValid() {
			ip.Method, ip.Address = "Static", n.ip.String()
		}
		if i == 0 && p.public {
			ip.PublicIP = &netres.Ref{ID: p.place.ID(arm.TypePublicIP, p.publicName())}
		}
		props := netres.NIC{IPConfigurations: []netres.IPConfiguration{{Name: "ipconfig1", Properties: ip}}}
		if p.group != "" {
			props.NetworkSecurityGroup = &netres.Ref{ID: p.group}
		}
		if err := h.put(ctx, p, arm.TypeNIC, n.name, body{Properties: props}); err != nil {
			return err
		}
	}
	return nil
}

// createVM makes the VM, which Azure starts. One that exists is not changed: If-None-Match.
func (h *Booter) createVM(ctx context.Context, p *plan) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	sp := &armcompute.StorageProfile{}
	for _, d := range p.disks {
		managed := &armcompute.ManagedDiskParameters{ID: to.Ptr(p.place.ID(arm.TypeDisk, d.name))}
		if d.lun < 0 {
			sp.OSDisk = &armcompute.OSDisk{CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), ManagedDisk: managed, OSType: to.Ptr(p.osType()),
				Caching: to.Ptr(armcompute.CachingTypesReadWrite), DeleteOption: to.Ptr(armcompute.DiskDeleteOptionTypesDetach)}
			continue
		}
		// No cache: its writes come later than what the guest was told, and data disks of databases are on it.
		sp.DataDisks = append(sp.DataDisks, &armcompute.DataDisk{CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), Lun: to.Ptr(d.lun), ManagedDisk: managed,
			Caching: to.Ptr(armcompute.CachingTypesNone), DeleteOption: to.Ptr(armcompute.DiskDeleteOptionTypesDetach)})
	}
	np := &armcompute.NetworkProfile{}
	for i, n := range p.nics {
		np.NetworkInterfaces = append(np.NetworkInterfaces, &armcompute.NetworkInterfaceReference{ID: to.Ptr(p.place.ID(arm.TypeNIC, n.name)),
			Properties: &armcompute.NetworkInterfaceReferenceProperties{Primary: to.Ptr(i == 0), DeleteOption: to.Ptr(armcompute.DeleteOptionsDetach)}})
	}
	v := armcompute.VirtualMachine{Location: to.Ptr(h.s.Location()), Tags: site.Pointers(p.tags), Properties: &armcompute.VirtualMachineProperties{
		HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypes(p.size))},
		StorageProfile:  sp, NetworkProfile: np,
		DiagnosticsProfile: &armcompute.DiagnosticsProfile{BootDiagnostics: &armcompute.BootDiagnostics{Enabled: to.Ptr(true)}}, // in a storage account of Azure's own
	}}
	if p.license != "" {
		v.Properties.LicenseType = &p.license
	}
	if p.avSet != "" {
		v.Properties.AvailabilitySet = &armcompute.SubResource{ID: &p.avSet}
	}
	if p.proximity != "" {
		v.Properties.ProximityPlacementGroup = &armcompute.SubResource{ID: &p.proximity}
	}
	if p.zone != "" {
		v.Zones = []*string{&p.zone}
	}
	poller, err := h.s.VMs.BeginCreateOrUpdate(ctx, p.place.Group, p.name, v, &armcompute.VirtualMachinesClientBeginCreateOrUpdateOptions{IfNoneMatch: to.Ptr("*")})
	_, err = arm.Wait(ctx, h.s, "azure.Boot", p.place.ID(arm.TypeVM, p.name), poller, err)
	return err
}

func (p *plan) osType() armcompute.OperatingSystemTypes {
	if p.windows {
		return armcompute.OperatingSystemTypesWindows
	}
	return armcompute.OperatingSystemTypesLinux
}
