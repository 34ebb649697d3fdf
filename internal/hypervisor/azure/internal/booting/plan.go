package booting

import (
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/netres"
	"holdfast/internal/hypervisor/azure/internal/site"
	"holdfast/internal/vhd"
)

// Tags of this adapter beside those of package arm.
const (
	TagDisk   = "holdfast-disk"   // BootDisk.ID, which is the source's id of the disk
	tagFilled = "holdfast-filled" // on a disk that holds all of what it was made for: a digest of that
)

// plan is a recovery VM that is to be made.
type plan struct {
	spec  hypervisor.BootSpec
	place site.Place
	name  string

	size, diskType, zone string
	avSet, proximity     string // ids
	license              string
	windows              bool
	generation           int
	tags                 map[string]string

	nics     []nic
	isolated []netres.Subnet // of the network to be made; empty = none is made
	group    string          // id of the security group of every adapter; "" = none
	public   bool
	disks    []disk
}

// nic is an adapter to be made.
type nic struct {
	name, subnet string // subnet: id
	ip           netip.Addr
}

// disk is a managed disk to be made.
type disk struct {
	hypervisor.BootDisk
	name string
	lun  int32 // of a data disk; -1 = the OS disk
	size int64 // whole MiB, not smaller than the source's
}

// vmName is what both Azure and ASR take as the name of a VM.
var vmName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// Limits of managed disks (Azure, "Scalability targets for VM disks").
const (
	minDisk     = 20 << 20 // the smallest that can be uploaded (CreationData.uploadSizeBytes); what is beyond the source's end is zero
	maxOSDisk   = 4095 << 30
	maxDataDisk = 32767 << 30
	gen1OSDisk  = 2048 << 30 // firmware of generation 1 boots from MBR only
)

func invalid(format string, args ...any) error {
	return dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, "azure.Boot", format, args...)
}

// plan checks what can be checked of a recovery VM, by reading only.
func (h *Booter) plan(ctx context.Context, spec hypervisor.BootSpec) (*plan, error) {
	p := &plan{spec: spec, name: spec.Name, generation: 1, windows: strings.EqualFold(spec.Config.VM.OSType, "windows")}
	if spec.Config.VM.Generation == 2 {
		p.generation = 2
	}
	var err error
	if p.place, err = h.placeOf(spec); err != nil {
		return nil, err
	}
	if err := h.planCloud(ctx, p); err != nil {
		return nil, err
	}
	if err := p.planDisks(); err != nil {
		return nil, err
	}
	if err := h.planNetwork(ctx, p); err != nil {
		return nil, err
	}
	return p, h.planSize(ctx, p)
}

// placeOf is the resource group that a recovery VM is to be in. Only its name counts for a VM: there is one subscription.
func (h *Booter) placeOf(spec hypervisor.BootSpec) (site.Place, error) {
	if !vmName.MatchString(spec.Name) {
		return site.Place{}, invalid("%.100q can't be the name of a VM in Azure: 1 to 63 letters, digits and hyphens, the first and the last no hyphen", spec.Name)
	}
	if len(spec.Owner) > 256 {
		return site.Place{}, invalid("recovery VM %s: its owner %.40q… does not fit into a tag of Azure (256 characters)", spec.Name, spec.Owner)
	}
	home, want := h.az.Home(), spec.Cloud.ResourceGroup
	if want == "" {
		return home, nil
	}
	if strings.HasPrefix(want, "/") {
		parts := strings.Split(strings.Trim(want, "/"), "/")
		if len(parts) != 4 || !strings.EqualFold(parts[0], "subscriptions") || !strings.EqualFold(parts[2], "resourceGroups") {
			return site.Place{}, invalid("recovery VM %s: %.200q is not the id of a resource group", spec.Name, want)
		}
		if !strings.EqualFold(parts[1], home.Subscription) {
			return site.Place{}, invalid("recovery VM %s: resource group %.200q is not in the site's subscription %s", spec.Name, want, home.Subscription)
		}
		want = parts[3]
	}
	if strings.EqualFold(want, home.Group) {
		return home, nil
	}
	if !groupName.MatchString(want) {
		return site.Place{}, invalid("recovery VM %s: %.200q is not the name of a resource group", spec.Name, want)
	}
	return site.Place{Subscription: home.Subscription, Group: want}, nil
}

var groupName = regexp.MustCompile(`^[\p{L}\p{N}_().-]{1,90}$`)

// planCloud settles what a cloud's VM has beyond a host's.
func (h *Booter) planCloud(ctx context.Context, p *plan) error {
	c := p.spec.Cloud
	p.avSet, p.zone, p.proximity = c.AvailabilitySet, c.Zone, c.ProximityGroup
	switch {
	case c.AvailabilitySet != "" && c.Zone != "":
		return invalid("recovery VM %s can't be both in availability set %s and in zone %s", p.name, c.AvailabilitySet, c.Zone)
	case c.AvailabilitySet == "" && c.Zone == "":
		p.avSet, p.zone = h.site.AvailabilitySet, h.site.Zone
	}
	if p.zone != "" && !slices.Contains([]string{"1", "2", "3"}, p.zone) {
		return invalid("recovery VM %s: zone %.20q is none of 1, 2 and 3", p.name, p.zone)
	}
	p.diskType = site.First(c.DiskType, h.site.DiskType, arm.DefaultDiskType)
	if !slices.Contains(arm.DiskTypes(), p.diskType) {
		return dr.New(dr.KindUnsupported, dr.CodeAzureDisk, "azure.Boot", "recovery VM %s: disk type %.60q is none of %s", p.name, p.diskType, strings.Join(arm.DiskTypes(), ", "))
	}
	p.license = site.First(c.LicenseType, h.site.LicenseType)
	p.group = site.First(c.SecurityGroup, h.site.SecurityGroup)
	p.public = c.PublicIP || h.site.PublicIP
	for _, ref := range []struct {
		id   *string
		kind string
	}{{&p.avSet, arm.TypeAvailabilitySet}, {&p.proximity, "Microsoft.Compute/proximityPlacementGroups"}, {&p.group, arm.TypeSecurityGroup}} {
		if *ref.id == "" {
			continue
		}
		id, err := h.site.Reference(ref.kind, *ref.id)
		if err != nil {
			return err
		}
		found, err := h.az.Get(ctx, ref.kind, id, nil)
		if err != nil {
			return h.az.Say("Boot", "check what recovery VM "+p.name+" is to use", err)
		}
		if !found {
			return dr.New(dr.KindNotFound, dr.CodeAzureNotFound, "azure.Boot", "%s, which recovery VM %s is to use, does not exist", id, p.name)
		}
		*ref.id = id
	}
	return h.planTags(p)
}

// planTags are those of everything that is made for the VM.
func (h *Booter) planTags(p *plan) error {
	p.tags = map[string]string{}
	for _, tags := range []map[string]string{h.site.Tags, p.spec.Cloud.Tags} {
		for k, v := range tags {
			switch {
			case k == "" || len(k) > 512 || len(v) > 256 || strings.ContainsAny(k, `<>%&\?/`):
				return invalid("recovery VM %s: Azure does not take the tag %.60q", p.name, k)
			case strings.HasPrefix(strings.ToLower(k), "holdfast-"):
				return invalid("recovery VM %s: the tag %.60q is one of Holdfast's own", p.name, k)
			}
			p.tags[k] = v
		}
	}
	if len(p.tags) > 44 {
		return invalid("recovery VM %s has %d tags; Azure takes 50, and Holdfast needs 6 of them", p.name, len(p.tags))
	}
	p.tags[arm.TagOwner], p.tags[arm.TagVM], p.tags[arm.TagPurpose] = p.spec.Owner, p.name, arm.PurposeTest
	if p.spec.KeepUUID {
		p.tags[arm.TagPurpose] = arm.PurposeRecovery
	}
	return nil
}

// planDisks gives the disks names and places. The OS disk is the one that the
// captured VM boots from, else the first.
func (p *plan) planDisks() error {
	boot := p.spec.Disks[0].ID
	for _, d := range p.spec.Config.VM.Disks {
		if d.Boot && slices.ContainsFunc(p.spec.Disks, func(b hypervisor.BootDisk) bool { return b.ID == d.ID }) {
			boot = d.ID
			break
		}
	}
	var lun int32
	for _, b := range p.spec.Disks {
		d := disk{BootDisk: b, lun: -1, name: p.name + "-os", size: max(vhd.RoundAzure(b.Size), minDisk)}
		limit := int64(maxDataDisk)
		if b.ID == boot {
			if limit = maxOSDisk; p.generation == 1 {
				limit = gen1OSDisk
			}
		} else {
			d.lun, d.name = lun, p.name+"-data-"+strconv.Itoa(int(lun))
			lun++
		}
		if d.size > limit {
			return dr.New(dr.KindUnsupported, dr.CodeAzureDisk, "azure.Boot", "disk %s of recovery VM %s has %d GiB; Azure takes at most %d GiB there", b.ID, p.name, (d.size+1<<30-1)>>30, limit>>30)
		}
		if len(b.ID) > 256 {
			return invalid("recovery VM %s: the id of disk %.40q… does not fit into a tag of Azure (256 characters)", p.name, b.ID)
		}
		p.disks = append(p.disks, d)
	}
	return nil
}

// planNetwork settles the adapters: see the package's comment.
func (h *Booter) planNetwork(ctx context.Context, p *plan) error {
	var wanted []hypervisor.BootNIC // those that are connected
	var ips []netip.Addr            // of all, in the order of the source
	isolated := 0
	for _, n := range p.spec.Config.VM.NICs {
		want := p.spec.NIC(n.MAC)
		ip, err := address(p.name, want)
		if err != nil {
			return err
		}
		ips = append(ips, ip)
		if want.Network == hypervisor.IsolatedNetwork {
			if h.site.TestNetwork == "" {
				isolated++
				want.Network = ""
			} else {
				want.Network = h.site.TestNetwork
			}
		}
		if want.Network != "" {
			wanted = append(wanted, want)
		}
	}
	if isolated > 0 && len(wanted) > 0 {
		return invalid("recovery VM %s: its adapters are to be in an isolated network and in %s, and Azure puts all adapters of a VM into one virtual network", p.name, wanted[0].Network)
	}
	if len(p.spec.Config.VM.NICs) == 0 && p.spec.Network != "" { // Azure has no VM without adapter
		network := p.spec.Network
		if network == hypervisor.IsolatedNetwork {
			network = h.site.TestNetwork
		}
		if network != "" {
			wanted = append(wanted, hypervisor.BootNIC{Network: network})
		}
	}
	if len(wanted) == 0 {
		return p.isolate(ips)
	}
	return h.connect(ctx, p, wanted)
}

// address reads the static address of an adapter; the zero Addr is none.
func address(vm string, n hypervisor.BootNIC) (netip.Addr, error) {
	if n.IP == "" {
		return netip.Addr{}, nil
	}
	ip, err := netip.ParseAddr(n.IP)
	if err != nil || !ip.Is4() {
		return ip, dr.New(dr.KindInvalid, dr.CodeAzureAddress, "azure.Boot", "recovery VM %s: %.60q is no IPv4 address for adapter %s", vm, n.IP, n.MAC)
	}
	return ip, nil
}

// isolate plans a network of the VM's own.
func (p *plan) isolate(ips []netip.Addr) (err error) {
	if p.isolated, err = isolatedSubnets(p.name, ips); err != nil {
		return err
	}
	if len(ips) == 0 {
		ips = []netip.Addr{{}}
	}
	net := p.place.ID(arm.TypeNetwork, p.isolatedNet())
	for i, ip := range ips {
		in := p.isolated[0]
		for _, s := range p.isolated {
			if ip.IsValid() && contains(s, ip) {
				in = s
			}
		}
		p.nics = append(p.nics, nic{p.nicName(i), net + "/subnets/" + in.Name, ip})
	}
	p.public, p.group = false, p.place.ID(arm.TypeSecurityGroup, p.isolatedGroup())
	return p.sameAddress()
}

// connect plans adapters in a network that there is.
func (h *Booter) connect(ctx context.Context, p *plan, wanted []hypervisor.BootNIC) error {
	var v vnet
	for i, want := range wanted {
		if i == 0 {
			var err error
			if v, err = h.network(ctx, p.name, want.Network); err != nil {
				return err
			}
		} else if id, err := h.site.Reference(arm.TypeNetwork, want.Network); err != nil {
			return err
		} else if !arm.SameID(id, v.ID) {
			return invalid("recovery VM %s: its adapters are to be in %s and in %s, and Azure puts all adapters of a VM into one virtual network", p.name, wanted[0].Network, want.Network)
		}
		name := want.Subnet
		if name == "" && h.site.Network != "" {
			if id, err := h.site.Reference(arm.TypeNetwork, h.site.Network); err == nil && arm.SameID(id, v.ID) {
				name = h.site.Subnet
			}
		}
		ip, err := address(p.name, want)
		if err != nil {
			return err
		}
		s, err := chooseSubnet(p.name, v, name, ip)
		if err != nil {
			return err
		}
		p.nics = append(p.nics, nic{p.nicName(i), s.ID, ip})
	}
	return p.sameAddress()
}

func (p *plan) sameAddress() error {
	for i, a := range p.nics {
		for _, b := range p.nics[:i] {
			if a.ip.IsValid() && a.ip == b.ip {
				return dr.New(dr.KindConflict, dr.CodeAzureAddress, "azure.Boot", "recovery VM %s: two adapters are to have address %s", p.name, a.ip)
			}
		}
	}
	return nil
}

func (p *plan) nicName(i int) string  { return p.name + "-nic-" + strconv.Itoa(i) }
func (p *plan) publicName() string    { return p.name + "-ip" }
func (p *plan) isolatedNet() string   { return p.name + "-isolated" }
func (p *plan) isolatedGroup() string { return p.name + "-isolated-nsg" }

// planSize chooses the VM size, or checks the one that is chosen.
func (h *Booter) planSize(ctx context.Context, p *plan) error {
	sizes, err := h.az.Sizes(ctx)
	if err != nil {
		return h.az.Say("Boot", "choose a size for recovery VM "+p.name, err)
	}
	vm := p.spec.Config.VM
	need := arm.Need{Name: site.First(p.spec.Cloud.Size, h.site.Size), VCPUs: vm.CPUs, MemoryMB: int64(vm.MemoryMB), Disks: len(p.disks) - 1, NICs: len(p.nics),
		Generation: p.generation, Premium: strings.HasPrefix(p.diskType, "Premium"), Zone: p.zone}
	if p.spec.CPUs > 0 {
		need.VCPUs = p.spec.CPUs
	}
	if p.spec.MemoryMB > 0 {
		need.MemoryMB = int64(p.spec.MemoryMB)
	}
	if need.Name != "" { // who names a size may choose a smaller one
		need.VCPUs, need.MemoryMB = 0, 0
	}
	s, _, err := arm.Fit(sizes, need)
	if err != nil {
		return h.az.Say("Boot", "choose a size for recovery VM "+p.name, err)
	}
	p.size = s.Name
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	quotas, err := h.s.Quotas(ctx)
	if err != nil && ctx.Err() == nil {
		// No reason not to try: Azure checks them itself.
		h.cfg.Log.Warn("the quotas are not known before a recovery VM is made", "vm", p.name, "err", err)
		return nil
	}
	if err == nil {
		err = arm.Room(quotas, s, len(p.nics))
	}
	return h.az.Say("Boot", "check the quotas for recovery VM "+p.name, err)
}
