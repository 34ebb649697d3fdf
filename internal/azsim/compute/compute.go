// Package compute is the simulated resource provider Microsoft.Compute: managed
// disks and snapshots with their signed addresses, restore points, virtual
// machines (which a Runner can really run), availability sets, VM sizes
// and quotas, with the refusals that Azure documents for them.
package compute

import (
	"net/http"
	"regexp"
	"strings"
	"time"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/sizes"
	"holdfast/internal/azsim/wire"
)

// Config describes the provider.
type Config struct {
	Dir      string // of the VMs' files
	Secret   string // signs the addresses of boot diagnostics
	Pages    *pagestore.Store
	Runner   Runner // nil: VMs are only states
	Shutdown time.Duration
}

// Compute is the provider.
type Compute struct {
	*plane.Plane
	cfg     Config
	pages   *pagestore.Store
	limited map[string]string // size, lower case → reason code of a restriction; guarded by the Plane's lock
}

// New makes the provider; see Provider.
func New(p *plane.Plane, cfg Config) *Compute {
	return &Compute{Plane: p, cfg: cfg, pages: cfg.Pages, limited: map[string]string{}}
}

var machineName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)

// Provider is what to register with the Plane.
func (c *Compute) Provider() plane.Provider {
	access := c.accessActions()
	return plane.Provider{
		Namespace: "Microsoft.Compute", Quotas: c.quotas, Exceeded: c.exceeded,
		Regional: map[string]func() []any{"vmsizes": classicSizes},
		Lists:    map[string]func(*plane.Call) (any, *wire.Error){"skus": c.skus},
		Kinds: []*plane.Kind{
			{Name: typDisk, Status: http.StatusAccepted, Put: c.putDisk, Remove: c.removeDisk, After: c.afterPages, View: c.viewDisk, Actions: access},
			{Name: typSnapshot, Status: http.StatusAccepted, Put: c.putSnapshot, Remove: c.removeSnapshot, After: c.afterPages, Actions: access},
			{Name: typCollection, Sync: true, Put: c.putCollection, View: c.viewCollection},
			{Name: typPoint, Put: c.putRestorePoint},
			{Name: typDiskPt, Put: plane.RefusePut, After: c.afterPages, Actions: access},
			{Name: typVM, Pattern: machineName, Put: c.putMachine, Remove: c.removeMachine, End: c.cutPower, View: c.viewMachine, Actions: c.machineActions(), Direct: c.machineQuestions()},
			{Name: typSet, Sync: true, Plain: true, Status: http.StatusOK, Put: c.putAvailability, Remove: c.removeAvailability, View: c.viewAvailability},
		},
	}
}

// Restrict makes a size one that the subscription may not use; "" as the reason lifts it.
func (c *Compute) Restrict(size, reason string) {
	c.Lock()
	defer c.Unlock()
	c.limited[plane.Lower(size)] = reason
}

func classicSizes() []any {
	items := []any{}
	for _, s := range sizes.All() {
		items = append(items, s.Classic())
	}
	return items
}

var locationFilter = regexp.MustCompile(`(?i)^\s*location\s+eq\s+'([^']*)'\s*$`)

// skus is "Resource Skus - List".
func (c *Compute) skus(q *plane.Call) (any, *wire.Error) {
	items := []any{}
	filter := q.R.URL.Query().Get("$filter")
	m := locationFilter.FindStringSubmatch(filter)
	switch {
	case filter != "" && m == nil:
		return nil, plane.BadRequest("InvalidParameter", "The filter '%s' is not supported; only location is.", filter)
	case m != nil && !strings.EqualFold(strings.ReplaceAll(m[1], " ", ""), c.Location()):
		return plane.Value(items...), nil
	}
	for _, s := range sizes.All() {
		var more []string
		if reason := c.limited[plane.Lower(s.Name)]; reason != "" {
			more = append(more, reason)
		}
		items = append(items, s.SKU(c.Location(), more...))
	}
	for _, d := range diskTypes {
		items = append(items, map[string]any{"resourceType": "disks", "name": d, "tier": strings.Split(d, "_")[0], "locations": []any{c.Location()},
			"locationInfo": []any{map[string]any{"location": c.Location(), "zones": []any{"1", "2", "3"}}}, "capabilities": []any{}, "restrictions": []any{}})
	}
	return plane.Value(items...), nil
}

// quotas counts what there is, with limits of a small subscription. A
// deallocated VM counts as a VM, not by its cores.
func (c *Compute) quotas() []plane.Quota {
	n, cores := map[string]int{}, map[string]int{}
	for _, r := range c.All() {
		n[r.Kind.Name]++
		if vm := vmOf(r); vm != nil && vm.power != deallocated {
			s, _ := sizes.Find(wire.Str(r.Doc, "properties", "hardwareProfile", "vmSize"))
			cores[s.Family] += s.VCPUs
			cores[""] += s.VCPUs
		}
	}
	out := []plane.Quota{
		{Name: "availabilitySets", Words: "Availability Sets", Used: n[typSet], Limit: 2500},
		{Name: "cores", Words: "Total Regional vCPUs", Used: cores[""], Limit: 100},
		{Name: "virtualMachines", Words: "Virtual Machines", Used: n[typVM], Limit: 25000},
	}
	for _, f := range sizes.Families() {
		out = append(out, plane.Quota{Name: f, Words: strings.TrimSuffix(f, "Family") + " Family vCPUs", Used: cores[f], Limit: 100})
	}
	return append(out, plane.Quota{Name: "PremiumDiskCount", Words: "Premium Storage Managed Disks", Used: n[typDisk], Limit: 50000})
}

func (c *Compute) exceeded(u plane.Quota, more int) *wire.Error {
	name := u.Name
	switch {
	case name == "cores":
		name = "Total Regional Cores"
	case strings.HasSuffix(name, "Family"):
		name += " Cores"
	}
	return plane.Conflict("Operation could not be completed as it results in exceeding approved %s quota. Additional details - Deployment Model: Resource Manager, Location: %s, Current Limit: %d, Current Usage: %d, Additional Required: %d, (Minimum) New Limit Required: %d. Setup Alerts when Quota reaches threshold. Learn more at https://aka.ms/quotamonitoringalerting .",
		name, c.Location(), u.Limit, u.Used, more, u.Used+more)
}
