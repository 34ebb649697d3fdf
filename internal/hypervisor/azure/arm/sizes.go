package arm

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
)

// Size is a VM size as the region offers it to the subscription.
type Size struct {
	Name       string   `json:"name"`   // Standard_D2s_v5
	Family     string   `json:"family"` // standardDSv5Family: the name of its quota
	VCPUs      int      `json:"vcpus"`  // that the guest sees
	Cores      int      `json:"cores"`  // that are paid and count for the quota
	MemoryMB   int64    `json:"memoryMB"`
	MaxDisks   int      `json:"maxDisks"` // data disks
	MaxNICs    int      `json:"maxNics"`
	Generation []int    `json:"generations"` // 1, 2
	Premium    bool     `json:"premium"`     // takes premium disks
	Arch       string   `json:"arch"`        // x64, Arm64
	Zones      []string `json:"zones,omitempty"`
	// Restricted says why the subscription may not use it here; "" = it may.
	Restricted      string   `json:"restricted,omitempty"`
	RestrictedZones []string `json:"restrictedZones,omitempty"`

	confidential bool // boots confidential VMs only
}

// Need is what a VM needs of a size. Zero values need nothing.
type Need struct {
	Name       string // this size and no other
	VCPUs      int
	MemoryMB   int64
	Disks      int // data disks, without the one that it boots from
	NICs       int
	Generation int // 1 or 2
	Premium    bool
	Zone       string
	Names      []string // only one of these, if there are any
}

// Rejected is a size that does not do, and why.
type Rejected struct {
	Size   string `json:"size"`
	Reason string `json:"reason"`
}

// Sizes lists the VM sizes of the session's location, by name.
func (s *Session) Sizes(ctx context.Context) ([]Size, error) {
	const op = "azure.Sizes"
	filter := fmt.Sprintf("location eq '%s'", s.location)
	pager := s.SKUs.NewListPager(&armcompute.ResourceSKUsClientListOptions{Filter: &filter})
	var out []Size
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, Classify(op, "the list of VM sizes in "+s.location, err)
		}
		for _, sku := range page.Value {
			if sku != nil && strings.EqualFold(deref(sku.ResourceType), "virtualMachines") && here(s.location, sku) {
				out = append(out, size(sku))
			}
		}
	}
	slices.SortFunc(out, func(a, b Size) int { return cmp.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b Size) bool { return a.Name == b.Name }), nil
}

func here(location string, sku *armcompute.ResourceSKU) bool {
	return slices.ContainsFunc(sku.Locations, func(l *string) bool { return strings.EqualFold(deref(l), location) })
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// size reads the capabilities of a SKU ("Resource Skus - List").
func size(sku *armcompute.ResourceSKU) Size {
	z := Size{Name: deref(sku.Name), Family: deref(sku.Family), Arch: "x64", Generation: []int{1}, MaxNICs: 1}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n } // what is no number is not promised
	for _, c := range sku.Capabilities {
		if c == nil {
			continue
		}
		v := deref(c.Value)
		switch deref(c.Name) {
		case "vCPUs":
			z.Cores = number(v)
		case "vCPUsAvailable":
			z.VCPUs = number(v)
		case "MemoryGB":
			if f, err := strconv.ParseFloat(v, 64); err == nil && f > 0 && f < 1<<20 {
				z.MemoryMB = int64(f * 1024)
			}
		case "MaxDataDiskCount":
			z.MaxDisks = number(v)
		case "MaxNetworkInterfaces":
			z.MaxNICs = number(v)
		case "HyperVGenerations":
			z.Generation = nil
			for g := range strings.SplitSeq(v, ",") {
				if n := number(strings.TrimPrefix(strings.TrimSpace(strings.ToUpper(g)), "V")); n > 0 {
					z.Generation = append(z.Generation, n)
				}
			}
		case "PremiumIO":
			z.Premium = strings.EqualFold(v, "true")
		case "CpuArchitectureType":
			z.Arch = v
		case "ConfidentialComputingType":
			z.confidential = v != ""
		}
	}
	if z.VCPUs == 0 {
		z.VCPUs = z.Cores
	}
	for _, l := range sku.LocationInfo {
		if l != nil {
			for _, zone := range l.Zones {
				z.Zones = append(z.Zones, deref(zone))
			}
		}
	}
	slices.Sort(z.Zones)
	for _, r := range sku.Restrictions {
		if r == nil {
			continue
		}
		switch deref(r.Type) {
		case armcompute.ResourceSKURestrictionsTypeLocation:
			z.Restricted = cmp.Or(string(deref(r.ReasonCode)), "restricted")
		case armcompute.ResourceSKURestrictionsTypeZone:
			if r.RestrictionInfo != nil {
				for _, zone := range r.RestrictionInfo.Zones {
					z.RestrictedZones = append(z.RestrictedZones, deref(zone))
				}
			}
		}
	}
	return z
}

// sizeName takes Standard_E8-2s_v5 apart: family letters, cores, features, version.
var sizeName = regexp.MustCompile(`^(Standard|Basic)_([A-Z]+)(\d+)(?:-\d+)?([a-z]*)(?:_[A-Z0-9]+)?(?:_v(\d+))?(_Promo)?$`)

// rank orders sizes by how suited they are to a VM of unknown work: 0 = current
// general families, 1 = older or other general ones, 2 = those for special work
// (graphics, storage, very large memory), which cost much for what they hold.
func (z Size) rank() (class, version int) {
	m := sizeName.FindStringSubmatch(z.Name)
	if m == nil {
		return 2, 0
	}
	version = 1
	if m[5] != "" {
		version, _ = strconv.Atoi(m[5]) // digits
	}
	switch m[2] {
	case "D", "E":
		if version >= 4 {
			return 0, version
		}
		return 1, version
	case "B":
		return 0, version
	case "DS", "F", "A", "FS", "GS":
		if m[1] == "Basic" {
			return 2, version
		}
		return 1, version
	}
	return 2, version
}

// Fit chooses the smallest size that fits, by cores and then memory, current
// general families first; the rest are returned with the reasons. The error is
// CodeAzureSize if none fits.
func Fit(sizes []Size, n Need) (Size, []Rejected, error) {
	var fit []Size
	var no []Rejected
	for _, z := range sizes {
		if why := z.Unfit(n); why != "" {
			no = append(no, Rejected{z.Name, why})
		} else {
			fit = append(fit, z)
		}
	}
	if len(fit) == 0 {
		return Size{}, no, noFit(n, no)
	}
	best := slices.MinFunc(fit, func(a, b Size) int {
		ca, va := a.rank()
		cb, vb := b.rank()
		return cmp.Or(cmp.Compare(ca, cb), cmp.Compare(a.Cores, b.Cores), cmp.Compare(a.MemoryMB, b.MemoryMB), cmp.Compare(vb, va), cmp.Compare(a.Name, b.Name))
	})
	return best, no, nil
}

func noFit(n Need, no []Rejected) error {
	const op = "azure.Fit"
	if n.Name != "" {
		why := "the region does not offer it"
		for _, r := range no {
			if strings.EqualFold(r.Size, n.Name) {
				why = r.Reason
			}
		}
		return dr.New(dr.KindPrecondition, dr.CodeAzureSize, op, "the VM size %s does not fit: %s", n.Name, why)
	}
	count := map[string]int{}
	for _, r := range no {
		count[r.Reason]++
	}
	reasons := slices.SortedFunc(func(yield func(string) bool) {
		for r := range count {
			if !yield(r) {
				return
			}
		}
	}, func(a, b string) int { return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b)) })
	text := fmt.Sprintf("none of %d VM sizes takes %s", len(no), n)
	if len(reasons) > 0 {
		text += "; most often: " + strings.Join(reasons[:min(3, len(reasons))], "; ")
	}
	return dr.New(dr.KindPrecondition, dr.CodeAzureSize, op, "%s", text)
}

// String says what is needed.
func (n Need) String() string {
	var p []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			p = append(p, fmt.Sprintf(format, args...))
		}
	}
	add(n.Name != "", "size %s", n.Name)
	add(n.VCPUs > 0, "%d vCPUs", n.VCPUs)
	add(n.MemoryMB > 0, "%d MB of memory", n.MemoryMB)
	add(n.Disks > 0, "%d data disks", n.Disks)
	add(n.NICs > 0, "%d network adapters", n.NICs)
	add(n.Generation > 0, "generation %d", n.Generation)
	add(n.Premium, "premium disks")
	add(n.Zone != "", "zone %s", n.Zone)
	if len(p) == 0 {
		return "any VM"
	}
	return strings.Join(p, ", ")
}

// Unfit says why the size does not do; "" = it does.
func (z Size) Unfit(n Need) string {
	switch {
	case n.Name != "" && !strings.EqualFold(n.Name, z.Name):
		return "another size was chosen"
	case len(n.Names) > 0 && !slices.ContainsFunc(n.Names, func(s string) bool { return strings.EqualFold(s, z.Name) }):
		return "not one of the sizes that may be used"
	case z.Restricted != "":
		return "not for this subscription (" + z.Restricted + ")"
	case !strings.EqualFold(z.Arch, "x64"):
		return "its processors are " + z.Arch
	case z.confidential:
		return "for confidential VMs only"
	case z.VCPUs < max(n.VCPUs, 1):
		return "too few vCPUs"
	case z.MemoryMB < n.MemoryMB:
		return "too little memory"
	case z.MaxDisks < n.Disks:
		return "takes too few data disks"
	case z.MaxNICs < n.NICs:
		return "takes too few network adapters"
	case n.Generation > 0 && !slices.Contains(z.Generation, n.Generation):
		return fmt.Sprintf("does not boot generation %d", n.Generation)
	case n.Premium && !z.Premium:
		return "takes no premium disks"
	case n.Zone != "" && (!slices.Contains(z.Zones, n.Zone) || slices.Contains(z.RestrictedZones, n.Zone)):
		return "not in zone " + n.Zone
	}
	return ""
}
