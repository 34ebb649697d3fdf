package item

import (
	"cmp"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

func summary(c *route.Call, it dr.ProtectedItem) (armwire.ItemSummary, error) {
	x, err := lookUp(c, it)
	if err != nil {
		return armwire.ItemSummary{}, err
	}
	points, err := c.Svc().Points(c.Ctx(), it.ID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return armwire.ItemSummary{}, err
	}
	state, _ := protectionState(it.Protection, it.Failover)
	test, _ := testFailoverState(it.Test)
	s := armwire.ItemSummary{
		ID: string(it.ID), Name: it.Name, VMName: it.VMName, ResourceID: c.ItemID(x.fabric, it.VM, it.Name), ProtectionState: state, Health: route.Health(it.Health),
		ActiveLocation: cmp.Or(string(it.Active), string(dr.AtPrimary)), TestFailoverState: test, AllowedOperations: x.allowed, CurrentJob: string(it.Job), ResyncReason: it.Resync,
		Replication: replication(c, it, x.status, x.detail), Points: len(points), LastTest: armwire.Time(it.LastTest), LastTestReport: report(it.LastTestReport),
	}
	for _, e := range it.HealthErrors {
		s.HealthMessages = append(s.HealthMessages, e.Message)
	}
	for _, p := range points {
		s.StoredBytes += p.StoredBytes
	}
	if n := len(points); n > 0 {
		s.NewestPoint, s.OldestPoint, s.NewestPointTime = points[0].Name(), points[n-1].Name(), armwire.Time(points[0].Time)
	}
	return s, nil
}

// Summaries lists all items in short.
func Summaries(c *route.Call) (route.Reply, error) {
	items, err := c.Svc().Items(c.Ctx(), "")
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, items, func(it dr.ProtectedItem) string { return string(it.ID) }, summary)
}

// Summary finds an item by its id or, if that is unambiguous, by its name or its VM's name.
func Summary(c *route.Call, ref string) (route.Reply, error) {
	items, err := c.Svc().Items(c.Ctx(), "")
	if err != nil {
		return route.Reply{}, err
	}
	var found []dr.ProtectedItem
	for _, it := range items {
		if strings.EqualFold(string(it.ID), ref) {
			found = []dr.ProtectedItem{it}
			break
		}
		if strings.EqualFold(it.Name, ref) || strings.EqualFold(it.VMName, ref) {
			found = append(found, it)
		}
	}
	switch len(found) {
	case 0:
		return route.Reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi.summary", "protected item %q does not exist", route.Clip(ref))
	case 1:
	default:
		return route.Reply{}, dr.Errorf(dr.KindInvalid, "armapi.summary", "%d protected items are called %q; use the item's id", len(found), route.Clip(ref))
	}
	s, err := summary(c, found[0])
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(s)
}
