package item

import (
	"strconv"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/guestcheck"
)

// listSizes serves targetComputeSizes: what the cloud of the item's recovery site
// offers, with the reasons why the item can't have a size. Hosts offer none.
func listSizes(c *route.Call) (route.Reply, error) {
	f, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	sizes, err := c.Svc().ComputeSizes(c.Ctx(), it.ID)
	if err != nil {
		return route.Reply{}, err
	}
	base := c.ItemID(f, it.VM, it.Name) + "/" + route.TSizes + "/"
	return route.Page(c, sizes, func(s dr.ComputeSize) string { return s.Name }, func(_ *route.Call, s dr.ComputeSize) (armwire.Resource[armwire.ComputeSize], error) {
		out := armwire.Resource[armwire.ComputeSize]{ID: base + s.Name, Name: s.Name, Type: armwire.ResourceType(route.TFabrics, "", route.TContainers, "", route.TItems, "", route.TSizes, ""),
			Properties: armwire.ComputeSize{Name: s.Name, Friendly: s.Name, Cores: int32(s.CPUs), VCPUs: int32(s.CPUs), MemoryGB: float64(s.MemoryMB) / 1024, DataDisks: int32(s.DataDisks),
				NICs: int32(s.NICs), Errors: []armwire.ComputeSizeError{}, HighIOPS: "No", Generations: []string{}}}
		p := &out.Properties
		if s.Premium {
			p.HighIOPS = "Yes"
		}
		for _, g := range s.Generations {
			p.Generations = append(p.Generations, "V"+strconv.Itoa(g))
		}
		if s.Problem != "" {
			p.Errors = append(p.Errors, armwire.ComputeSizeError{Message: s.Problem, Severity: "Error"})
		}
		return out, nil
	})
}

// warm is an item's warm replica, whose lag is counted from the item's newest point.
func warm(w *dr.WarmReplica, newest time.Time) *armwire.WarmReplica {
	if w == nil {
		return nil
	}
	out := &armwire.WarmReplica{Busy: w.Busy, Bytes: w.Bytes, Requests: w.Requests, Problem: w.Problem, PointTime: armwire.Time(w.Time), ReportedAt: armwire.Time(w.At)}
	if w.Gen > 0 {
		out.Point = dr.PointName(w.Gen, w.N)
	}
	if !w.Time.IsZero() {
		lag := max(int64(newest.Sub(w.Time)/time.Second), 0)
		out.LagSeconds = &lag
	}
	return out
}

// guestCheck looks into the guest of a recovery point; the query has recoveryPoint
// (a name; default the latest) and target (azure, hyperv or kvm; default the recovery site's).
func guestCheck(c *route.Call) (route.Reply, error) {
	_, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	q := c.R.URL.Query()
	r, p, err := c.Svc().GuestCheck(c.Ctx(), it.ID, q.Get("recoveryPoint"), q.Get("target"))
	if err != nil {
		return route.Reply{}, err
	}
	out := armwire.GuestCheck{Version: 1, Point: p.Name(), PointTime: armwire.Time(p.Time), Target: r.Target, OS: r.Facts.Name, Findings: []armwire.GuestFinding{}, Checks: map[string]string{}}
	for _, x := range r.Results {
		out.Checks[string(x.Check)] = string(x.Status)
	}
	for _, f := range r.Findings {
		out.Findings = append(out.Findings, armwire.GuestFinding{Check: string(f.Check), Severity: string(f.Severity), Object: f.Object, Reason: f.Reason, WayOut: f.WayOut, NotChecked: f.NotChecked})
	}
	for _, f := range guestcheck.Plan(r) {
		w := armwire.GuestFix{Check: string(f.Check), Disk: f.Disk, File: f.File, What: f.What, Refused: f.Refused, Changes: []armwire.GuestChange{}}
		for _, x := range f.Changes {
			w.Changes = append(w.Changes, armwire.GuestChange(x))
		}
		out.Fixes = append(out.Fixes, w)
	}
	return route.OK(out)
}
