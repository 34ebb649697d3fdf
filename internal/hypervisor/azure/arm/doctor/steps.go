package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
)

// grant is one entry of the list of permissions ("Permissions - List For Resource Group").
type grant struct {
	Actions    []string `json:"actions"`
	NotActions []string `json:"notActions"`
}

// allows tells whether a list of permissions allows an action: some entry does, and
// does not take it back.
func allows(list []grant, action string) bool {
	match := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return glob(strings.ToLower(p), strings.ToLower(action)) })
	}
	return slices.ContainsFunc(list, func(g grant) bool { return match(g.Actions) && !match(g.NotActions) })
}

// glob matches a pattern in which each * stands for anything, slashes included.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(s, first) || !strings.HasSuffix(s[len(first):], last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return true
}

func (d *doctor) permissions(ctx context.Context) {
	var list []grant
	err := d.s.List(ctx, d.s.GroupID()+"/providers/Microsoft.Authorization/permissions", arm.PermissionsAPI, func(raw json.RawMessage) error {
		var g grant
		if err := json.Unmarshal(raw, &g); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Doctor", "Azure's list of permissions is not understood: %w", err)
		}
		list = append(list, g)
		return nil
	})
	if err != nil {
		d.fail(CheckPermissions, err)
		return
	}
	need := arm.Actions()
	if d.cfg.StorageAccount != "" {
		need = append(need, arm.ImportActions()...)
	}
	var missing []string
	for _, a := range need {
		if !allows(list, a) {
			missing = append(missing, a)
		}
	}
	d.keeps = slices.Contains(missing, arm.TypeDisk+"/delete") && !slices.Contains(missing, arm.TypeDisk+"/write")
	if len(missing) > 0 {
		d.list = append(d.list, Finding{CheckPermissions, StatusFailed, fmt.Sprintf("%d of %d actions are not allowed in %s: %s", len(missing), len(need), d.cfg.ResourceGroup, strings.Join(missing, ", ")),
			"Assign the custom role of docs/azure.md to the identity at the resource group, and wait some minutes until it counts.", dr.CodeAzureRole})
		return
	}
	d.add(CheckPermissions, StatusOK, fmt.Sprintf("all %d actions are allowed in %s", len(need), d.cfg.ResourceGroup), "")
}

func (d *doctor) locks(ctx context.Context) {
	var found []string
	err := d.s.List(ctx, d.s.GroupID()+"/providers/Microsoft.Authorization/locks", arm.LocksAPI, func(raw json.RawMessage) error {
		var l struct {
			Name       string `json:"name"`
			Properties struct {
				Level string `json:"level"`
			} `json:"properties"`
		}
		if err := json.Unmarshal(raw, &l); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Doctor", "Azure's list of locks is not understood: %w", err)
		}
		found = append(found, fmt.Sprintf("%s (%s)", l.Name, l.Properties.Level))
		return nil
	})
	switch {
	case err != nil:
		d.warn(CheckLocks, err)
	case len(found) > 0:
		entry, _ := dr.Lookup(dr.CodeAzureLocked)
		d.list = append(d.list, Finding{CheckLocks, StatusFailed, d.cfg.ResourceGroup + " is locked: " + strings.Join(found, ", ") + "; tests could not be cleaned up", entry.Remedy, dr.CodeAzureLocked})
	default:
		d.add(CheckLocks, StatusOK, "none on "+d.cfg.ResourceGroup, "")
	}
}

// vnet is what is read of a virtual network.
type vnet struct {
	Location   string `json:"location"`
	Properties struct {
		Subnets []struct {
			Name       string `json:"name"`
			Properties struct {
				Prefix   string            `json:"addressPrefix"`
				Prefixes []string          `json:"addressPrefixes"`
				IPs      []json.RawMessage `json:"ipConfigurations"`
			} `json:"properties"`
		} `json:"subnets"`
	} `json:"properties"`
}

// reserved are the addresses of a subnet that Azure keeps for itself: the first
// four and the last.
const reserved = 5

// free counts the addresses of a subnet that are not used; -1 = not known.
func free(prefixes []string, used int) int64 {
	var n int64
	for _, p := range prefixes {
		x, err := netip.ParsePrefix(p)
		if err != nil || !x.Addr().Is4() {
			continue
		}
		n += int64(1)<<(32-x.Bits()) - reserved
	}
	if n == 0 {
		return -1
	}
	return max(n-int64(used), 0)
}

func (d *doctor) network(ctx context.Context) {
	checked := false
	for _, n := range []struct{ field, ref, subnet string }{{"network", d.cfg.Network, d.cfg.Subnet}, {"testNetwork", d.cfg.TestNetwork, ""}} {
		if n.ref != "" {
			checked = true
			d.oneNetwork(ctx, n.field, n.ref, n.subnet)
		}
	}
	for _, r := range []struct{ field, kind, ref string }{{"securityGroup", arm.TypeSecurityGroup, d.cfg.SecurityGroup}, {"availabilitySet", arm.TypeAvailabilitySet, d.cfg.AvailabilitySet}} {
		if r.ref == "" {
			continue
		}
		id, err := d.cfg.Reference(r.kind, r.ref)
		if err == nil {
			err = d.s.Resource(ctx, id, arm.APIVersion(r.kind), nil)
		}
		if err != nil {
			d.fail(CheckNetwork, err)
		} else {
			d.add(CheckNetwork, StatusOK, r.field+" "+r.ref+" is there", "")
		}
	}
	if !checked {
		d.add(CheckNetwork, StatusWarning, "no network is configured: every item must name one", "Set network (and subnet) in the configuration.")
	}
}

func (d *doctor) oneNetwork(ctx context.Context, field, ref, subnet string) {
	id, err := d.cfg.Reference(arm.TypeNetwork, ref)
	var v vnet
	if err == nil {
		err = d.s.Resource(ctx, id, arm.NetworkAPI, &v)
	}
	if err != nil {
		d.fail(CheckNetwork, err)
		return
	}
	if v.Location != "" && !strings.EqualFold(v.Location, d.s.Location()) {
		d.add(CheckNetwork, StatusFailed, fmt.Sprintf("%s %s is in %s, and VMs are made in %s", field, ref, v.Location, d.s.Location()), "Choose a virtual network of the VMs' region, or another location.")
		return
	}
	if len(v.Properties.Subnets) == 0 {
		d.list = append(d.list, Finding{CheckNetwork, StatusFailed, field + " " + ref + " has no subnet", "Add a subnet to it.", dr.CodeAzureNotFound})
		return
	}
	var room []string
	found, full := false, false
	for _, s := range v.Properties.Subnets {
		if subnet != "" && !strings.EqualFold(s.Name, subnet) {
			continue
		}
		found = true
		n := free(append(s.Properties.Prefixes, splitPrefix(s.Properties.Prefix)...), len(s.Properties.IPs))
		if n < 0 {
			room = append(room, s.Name)
			continue
		}
		full = full || n == 0
		room = append(room, fmt.Sprintf("%s: %d addresses free", s.Name, n))
	}
	detail := field + " " + ref + ": " + strings.Join(room, ", ")
	switch {
	case !found:
		d.list = append(d.list, Finding{CheckNetwork, StatusFailed, fmt.Sprintf("%s %s has no subnet %q", field, ref, subnet), "Correct subnet in the configuration, or add it to the network.", dr.CodeAzureNotFound})
	case full && subnet != "":
		entry, _ := dr.Lookup(dr.CodeAzureSubnet)
		d.list = append(d.list, Finding{CheckNetwork, StatusFailed, detail, entry.Remedy, dr.CodeAzureSubnet})
	case full:
		d.list = append(d.list, Finding{CheckNetwork, StatusWarning, detail, "Widen the subnet that is full, or choose others for the items.", dr.CodeAzureSubnet})
	default:
		d.add(CheckNetwork, StatusOK, detail, "")
	}
}

func splitPrefix(p string) []string {
	if p == "" {
		return nil
	}
	return []string{p}
}

func (d *doctor) sizes(ctx context.Context) {
	sizes, err := d.s.Sizes(ctx)
	if err != nil {
		d.fail(CheckSizes, err)
		return
	}
	best, no, err := arm.Fit(sizes, arm.Need{Name: d.cfg.Size, Zone: d.cfg.Zone, Premium: strings.HasPrefix(d.cfg.DiskType, "Premium")})
	if err != nil {
		d.fail(CheckSizes, err)
		return
	}
	detail := fmt.Sprintf("%d of %d sizes can be used in %s", len(sizes)-len(no), len(sizes), d.s.Location())
	if d.cfg.Size != "" {
		detail = fmt.Sprintf("%s: %d vCPUs, %d MB, %d data disks, %d adapters", best.Name, best.VCPUs, best.MemoryMB, best.MaxDisks, best.MaxNICs)
	}
	d.add(CheckSizes, StatusOK, detail, "")
}

// lowShare is the use of a quota from which the doctor warns.
const lowShare = 0.9

func (d *doctor) quota(ctx context.Context) {
	quotas, err := d.s.Quotas(ctx)
	if err != nil {
		d.fail(CheckQuota, err)
		return
	}
	if sizes, err := d.s.Sizes(ctx); err == nil { // its own step tells if not
		if z, _, err := arm.Fit(sizes, arm.Need{Name: d.cfg.Size, Zone: d.cfg.Zone}); err == nil {
			if err := arm.Room(quotas, z, 1); err != nil {
				d.fail(CheckQuota, err)
				return
			}
		}
	}
	var low, told []string
	for _, u := range quotas {
		if u.Limit > 0 && float64(u.Used) >= lowShare*float64(u.Limit) {
			low = append(low, fmt.Sprintf("%s %d of %d", u.Name, u.Used, u.Limit))
		}
		if u.Name == "cores" || u.Name == "virtualMachines" || u.Name == "NetworkInterfaces" {
			told = append(told, fmt.Sprintf("%s %d of %d", u.Name, u.Used, u.Limit))
		}
	}
	detail := "in use: " + strings.Join(told, ", ")
	if len(told) == 0 {
		detail = fmt.Sprintf("%d quotas read", len(quotas))
	}
	if len(low) > 0 {
		entry, _ := dr.Lookup(dr.CodeAzureQuota)
		d.list = append(d.list, Finding{CheckQuota, StatusWarning, "nearly used up: " + strings.Join(low, ", "), entry.Remedy, dr.CodeAzureQuota})
		return
	}
	d.add(CheckQuota, StatusOK, detail+"; a failover needs the cores of all VMs that come up together", "")
}
