package azure

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/netres"
)

// Boot makes and starts a recovery VM. It takes as long as its disks take to be
// copied: give it a context accordingly. See the package's comment, and
// hypervisor.Machines for the contract; a name that is somebody else's is dr.CodeAzureNameTaken.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	const op = "Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	at, err := h.placeOf(spec)
	if err != nil {
		return "", err
	}
	for _, key := range []string{"owner " + spec.Owner, nameKey(at, spec.Name)} {
		unlock, err := h.lock(ctx, op, key)
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
		return m.id(), h.start(ctx, op, m)
	}
	p, err := h.plan(ctx, spec)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	h.groups[lower(at.group)] = at.group // Azure's index of tags may not know of it yet
	h.mu.Unlock()
	id, err := h.bring(ctx, p)
	if err == nil {
		return id, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.UndoTimeout)
	defer cancel()
	if uerr := h.demolish(undo, spec.Owner, belongsTo(spec.Name), []place{at}); uerr != nil {
		h.cfg.Log.Warn("what was made of a recovery VM is left over; the next Boot or Remove deletes it", "vm", spec.Name, "err", uerr)
	}
	if ctx.Err() != nil && dr.KindOf(err) != dr.KindOf(ctx.Err()) {
		err = dr.Errorf(dr.KindOf(ctx.Err()), "azure."+op, "recovery VM %s was not made in time: %w", spec.Name, err)
	}
	return "", err
}

func nameKey(p place, name string) string { return "VM " + lower(p.group) + "/" + lower(name) }

// bootedBefore finds the VM of an earlier call. One that Azure could not make is deleted.
func (h *Host) bootedBefore(ctx context.Context, at place, spec hypervisor.BootSpec) (machine, bool, error) {
	const op = "Boot"
	id := at.id(arm.TypeVM, spec.Name)
	m, found, err := h.settled(ctx, id)
	if err != nil {
		return machine{}, false, h.say(op, "look for recovery VM "+spec.Name, err)
	}
	if !found {
		return machine{}, false, nil
	}
	if !ours(m.Tags, spec.Owner, spec.Name) {
		return machine{}, false, taken(id, m.Tags)
	}
	if str(m.Properties.ProvisioningState) == succeeded {
		return m, true, nil
	}
	err = h.s.Remove(ctx, []arm.Resource{{ID: id, Name: spec.Name, Type: arm.TypeVM, Tags: map[string]string{arm.TagOwner: spec.Owner}}})
	return machine{}, false, h.say(op, "delete recovery VM "+spec.Name+", which Azure could not make before", err)
}

const succeeded = "Succeeded"

// settled reads a VM once nothing works on it any more.
func (h *Host) settled(ctx context.Context, id string) (machine, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	for pause := h.cfg.Poll; ; pause = min(2*pause, 10*h.cfg.Poll) {
		m, found, err := h.machineAt(ctx, id)
		if err != nil || !found {
			return m, found, err
		}
		switch str(m.Properties.ProvisioningState) {
		case "Creating", "Updating", "Deleting", "Migrating":
		default:
			return m, true, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return m, false, ended("Get", "wait until Azure is done with "+id, err)
		}
	}
}

// ours reports whether tags are those of what Boot makes for a VM.
func ours(tags map[string]*string, owner, vm string) bool {
	return tag(tags, arm.TagOwner) == owner && tag(tags, arm.TagVM) == vm
}

// taken is the error of a name that is somebody else's.
func taken(id string, tags map[string]*string) error {
	whose := "was not made by Holdfast"
	if o := tag(tags, arm.TagOwner); o != "" {
		whose = "belongs to " + o + ", VM " + tag(tags, arm.TagVM)
	}
	return dr.New(dr.KindConflict, dr.CodeAzureNameTaken, "azure.Boot", "%s exists and %s; it is left alone", id, whose)
}

// bring makes the recovery VM. The names of all that is to be made are checked
// first, so that nothing of others is touched, and nothing is made in vain.
func (h *Host) bring(ctx context.Context, p *plan) (dr.VMID, error) {
	const op = "Boot"
	before, err := h.inspect(ctx, p)
	if err != nil {
		return "", err
	}
	if err := h.makeNetwork(ctx, p); err != nil {
		return "", h.say(op, "make the network of recovery VM "+p.name, err)
	}
	if err := h.fillAll(ctx, p, before); err != nil {
		return "", h.say(op, "make the disks of recovery VM "+p.name, err)
	}
	id := p.place.id(arm.TypeVM, p.name)
	err = h.createVM(ctx, p)
	if err != nil && ctx.Err() != nil {
		return "", h.say(op, "make recovery VM "+p.name, err)
	}
	// Also after an error: the answer to a request that Azure obeyed may have been lost.
	m, found, gerr := h.settled(ctx, id)
	switch {
	case gerr != nil:
		return "", h.say(op, "make recovery VM "+p.name, errors.Join(err, gerr))
	case err == nil && !found:
		return "", dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s does not exist although Azure has made it", id)
	case found && !ours(m.Tags, p.spec.Owner, p.name):
		return "", taken(id, m.Tags)
	case err != nil && (!found || str(m.Properties.ProvisioningState) != succeeded):
		return "", h.say(op, "make recovery VM "+p.name, err)
	case str(m.Properties.ProvisioningState) != succeeded:
		return "", dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure."+op, "%s was made and is in state %s", id, str(m.Properties.ProvisioningState))
	}
	h.mu.Lock()
	h.places[m.id()] = id
	h.mu.Unlock()
	if err := h.start(ctx, op, m); err != nil { // it runs, unless an earlier request was cut off
		return "", err
	}
	h.cfg.Log.Info("recovery VM made", "vm", p.name, "id", id, "size", p.size, "disks", len(p.disks), "adapters", len(p.nics), "isolated", len(p.isolated) > 0)
	return m.id(), nil
}

// inspect looks at everything that is to be made: what exists has to be ours. It
// returns the disks that exist, by name.
func (h *Host) inspect(ctx context.Context, p *plan) (map[string]armcompute.Disk, error) {
	type head struct {
		Tags map[string]*string `json:"tags"`
	}
	look := func(kind, name string) error {
		id := p.place.id(kind, name)
		var r head
		found, err := h.get(ctx, kind, id, &r)
		if err != nil {
			return h.say("Boot", "check the names for recovery VM "+p.name, err)
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
		id := p.place.id(arm.TypeDisk, d.name)
		found, err := h.get(ctx, arm.TypeDisk, id, &v)
		switch {
		case err != nil:
			return nil, h.say("Boot", "check the names for recovery VM "+p.name, err)
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
func (h *Host) put(ctx context.Context, p *plan, kind, name string, b body) error {
	b.Location, b.Tags = h.s.Location(), p.tags
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	return h.s.PutResource(ctx, p.place.id(kind, name), arm.APIVersion(kind), b, nil)
}

// makeNetwork makes the isolated network if there is to be one, the public address and the adapters.
func (h *Host) makeNetwork(ctx context.Context, p *plan) error {
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
			ip.PublicIP = &netres.Ref{ID: p.place.id(arm.TypePublicIP, p.publicName())}
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
func (h *Host) createVM(ctx context.Context, p *plan) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	sp := &armcompute.StorageProfile{}
	for _, d := range p.disks {
		managed := &armcompute.ManagedDiskParameters{ID: to.Ptr(p.place.id(arm.TypeDisk, d.name))}
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
		np.NetworkInterfaces = append(np.NetworkInterfaces, &armcompute.NetworkInterfaceReference{ID: to.Ptr(p.place.id(arm.TypeNIC, n.name)),
			Properties: &armcompute.NetworkInterfaceReferenceProperties{Primary: to.Ptr(i == 0), DeleteOption: to.Ptr(armcompute.DeleteOptionsDetach)}})
	}
	v := armcompute.VirtualMachine{Location: to.Ptr(h.s.Location()), Tags: pointers(p.tags), Properties: &armcompute.VirtualMachineProperties{
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
	poller, err := h.s.VMs.BeginCreateOrUpdate(ctx, p.place.group, p.name, v, &armcompute.VirtualMachinesClientBeginCreateOrUpdateOptions{IfNoneMatch: to.Ptr("*")})
	_, err = arm.Wait(ctx, h.s, "azure.Boot", p.place.id(arm.TypeVM, p.name), poller, err)
	return err
}

func (p *plan) osType() armcompute.OperatingSystemTypes {
	if p.windows {
		return armcompute.OperatingSystemTypesWindows
	}
	return armcompute.OperatingSystemTypesLinux
}

// MakeLocal reports that everything is local: Boot has copied it.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	const op = "MakeLocal"
	m, err := h.find(ctx, op, id)
	if err != nil || progress == nil {
		return err
	}
	var total int64
	for _, d := range diskRefs(m) {
		var v armcompute.Disk
		found, err := h.get(ctx, arm.TypeDisk, d.id, &v)
		if err != nil {
			return h.say(op, "ask for the disks of VM "+m.name, err)
		}
		if found && v.Properties != nil {
			total += diskSize(v)
		}
	}
	progress(total, total)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eachOf runs f for the numbers below n, at most limit at a time. The first error cancels the others.
func eachOf(ctx context.Context, n, limit int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	turn := make(chan struct{}, max(1, limit))
	errs := make([]error, n)
	var wg sync.WaitGroup
	var once sync.Once
	var cause error
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = f(ctx, i)
			}
			if errs[i] != nil {
				once.Do(func() { cause = errs[i] })
				cancel()
			}
		})
	}
	wg.Wait()
	return cause
}
