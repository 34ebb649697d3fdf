package item

import (
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

func listPoints(c *route.Call) (route.Reply, error) {
	f, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	ps, err := c.Svc().PointDetails(c.Ctx(), it.ID)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, ps, pointName, func(c *route.Call, p vault.PointDetail) (armwire.Resource[armwire.RecoveryPoint], error) {
		return pointResource(c, f, it, p), nil
	})
}

func pointName(p vault.PointDetail) string { return p.RecoveryPoint.Name() }

// point finds the recovery point that the path names.
func point(c *route.Call) (dr.Fabric, dr.ProtectedItem, vault.PointDetail, error) {
	f, it, err := item(c)
	if err != nil {
		return f, it, vault.PointDetail{}, err
	}
	ps, err := c.Svc().PointDetails(c.Ctx(), it.ID)
	if err != nil {
		return f, it, vault.PointDetail{}, err
	}
	name := c.NameOf(route.TPoints)
	for _, p := range ps {
		if strings.EqualFold(pointName(p), name) {
			return f, it, p, nil
		}
	}
	return f, it, vault.PointDetail{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi.point", "item %q has no recovery point %q", it.Name, route.Clip(name))
}

func getPoint(c *route.Call) (route.Reply, error) {
	f, it, p, err := point(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(pointResource(c, f, it, p))
}

// patchPoint names a recovery point, or holds it, so that retention leaves it alone.
func patchPoint(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.PointUpdate]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	_, it, p, err := point(c)
	if err != nil {
		return route.Reply{}, err
	}
	if u := in.Properties; u.Name != nil {
		p.Label = *u.Name
	}
	if u := in.Properties; u.Held != nil {
		p.Held = *u.Held
	}
	if err := c.Svc().NamePoint(c.Ctx(), it.ID, pointName(p), p.Label, p.Held, c.Who.Name); err != nil {
		return route.Reply{}, err
	}
	return getPoint(c)
}

// pointResource renders a recovery point. The API knows two types; a
// file-system-consistent point shows as the weaker one and says more in our own field.
func pointResource(c *route.Call, f dr.Fabric, it dr.ProtectedItem, p vault.PointDetail) armwire.Resource[armwire.RecoveryPoint] {
	kind := "CrashConsistent"
	if p.Consistency == dr.AppConsistent {
		kind = "ApplicationConsistent"
	}
	name := pointName(p)
	return armwire.Resource[armwire.RecoveryPoint]{
		ID: c.ItemID(f, it.VM, it.Name) + "/" + route.TPoints + "/" + name, Name: name, Type: armwire.ResourceType(route.TFabrics, "", route.TContainers, "", route.TItems, "", route.TPoints, ""),
		Properties: armwire.RecoveryPoint{RecoveryPointTime: armwire.Time(p.Time), RecoveryPointType: kind, Consistency: string(p.Consistency),
			DirtyBytes: p.DirtyBytes, DataBytes: p.DataBytes, StoredBytes: p.StoredBytes, Resync: p.Resync,
			Label: p.Label, Held: p.Held, LabelBy: p.By, Keep: p.Keep, Note: p.Note, Suspect: p.Suspect, Group: string(p.Group), GroupSeq: p.GroupSeq},
	}
}

// anomaly renders an alarm; nil if there is none.
func anomaly(a *vault.Anomaly) *armwire.Anomaly {
	if a == nil {
		return nil
	}
	return &armwire.Anomaly{Since: a.Since, SinceTime: armwire.Time(a.SinceTime), Good: a.Good, GoodTime: armwire.Time(a.GoodTime), Why: a.Why, Raised: armwire.Time(a.Raised)}
}
