// Package group serves consistency groups: items that are also cut at one common
// instant, so that they can be failed over together to it. The public API has no
// such thing; it lies under holdfast/consistencyGroups.
package group

import (
	"slices"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// TGroups is the type segment of consistency groups.
const TGroups = armwire.Extension + "/consistencyGroups"

// Routes adds the operations on consistency groups.
func Routes(t route.Table) {
	const read, configure = dr.RoleReader, dr.RoleContributor
	t.Add("GET", read, list, "[]", TGroups)
	t.Add("GET", read, get, "", TGroups)
	t.Add("PUT", configure, put, "", TGroups)
	t.Add("DELETE", configure, remove, "", TGroups)
	t.Add("GET", read, points, "[]", TGroups, "points")
}

// named finds a group by its name; false if there is none.
func named(c *route.Call) (dr.ConsistencyGroup, bool, error) {
	gs, err := c.Svc().Groups(c.Ctx())
	if err != nil {
		return dr.ConsistencyGroup{}, false, err
	}
	i := slices.IndexFunc(gs, func(g dr.ConsistencyGroup) bool { return strings.EqualFold(g.Name, c.NameOf(TGroups)) })
	if i < 0 {
		return dr.ConsistencyGroup{}, false, nil
	}
	return gs[i], true, nil
}

// find is named; a group that does not exist is KindNotFound.
func find(c *route.Call) (dr.ConsistencyGroup, error) {
	g, found, err := named(c)
	if err == nil && !found {
		err = dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi.group", "consistency group %q does not exist", route.Clip(c.NameOf(TGroups)))
	}
	return g, err
}

func list(c *route.Call) (route.Reply, error) {
	gs, err := c.Svc().Groups(c.Ctx())
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, gs, func(g dr.ConsistencyGroup) string { return g.Name }, resource)
}

func get(c *route.Call) (route.Reply, error) {
	g, err := find(c)
	if err != nil {
		return route.Reply{}, err
	}
	r, err := resource(c, g)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

func resource(c *route.Call, g dr.ConsistencyGroup) (armwire.Resource[armwire.Group], error) {
	out := armwire.Resource[armwire.Group]{ID: c.VaultID.ID(TGroups, g.Name), Name: g.Name, Type: armwire.ResourceType(TGroups, "")}
	f, err := c.Dir.Fabric(g.Fabric)
	if err != nil {
		return out, err
	}
	items, err := c.Svc().Items(c.Ctx(), g.Fabric)
	if err != nil {
		return out, err
	}
	out.Properties = armwire.Group{GroupID: string(g.ID), Items: []string{}}
	if f.ID != "" {
		out.Properties.Fabric = c.FabricID(f)
	}
	for _, it := range items {
		if slices.Contains(g.Items, it.ID) {
			out.Properties.Items = append(out.Properties.Items, c.ItemID(f, it.VM, it.Name))
		}
	}
	return out, nil
}

// put creates a group, or replaces the members of one that exists.
func put(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.GroupInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	items, err := members(c, in.Properties.Items)
	if err != nil {
		return route.Reply{}, err
	}
	g, found, err := named(c)
	switch {
	case err != nil:
		return route.Reply{}, err
	case !found:
		_, err = c.Svc().CreateGroup(c.Ctx(), c.NameOf(TGroups), items, c.Who.Name)
	default:
		err = c.Svc().SetGroupMembers(c.Ctx(), g.ID, items, c.Who.Name)
	}
	if err != nil {
		return route.Reply{}, err
	}
	return get(c)
}

// members finds items by resource id, by the id of the item, or by name.
func members(c *route.Call, refs []string) ([]dr.ItemID, error) {
	all, err := c.Svc().Items(c.Ctx(), "")
	if err != nil {
		return nil, err
	}
	out := make([]dr.ItemID, 0, len(refs))
	for _, ref := range refs {
		name, err := c.NameIn("items", ref, route.TItems)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(it dr.ProtectedItem) bool {
			return strings.EqualFold(string(it.ID), name) || strings.EqualFold(it.Name, name)
		})
		if i < 0 {
			return nil, dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.group", "items: protected item %q does not exist", route.Clip(name))
		}
		out = append(out, all[i].ID)
	}
	return out, nil
}

func remove(c *route.Call) (route.Reply, error) {
	g, err := find(c)
	if err == nil {
		err = c.Svc().DeleteGroup(c.Ctx(), g.ID, c.Who.Name)
	}
	return c.Removed("", err, "")
}

// points are the instants of a group, newest first.
func points(c *route.Call) (route.Reply, error) {
	g, err := find(c)
	if err != nil {
		return route.Reply{}, err
	}
	ps, err := c.Svc().GroupPoints(c.Ctx(), g.ID)
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, ps, func(p vault.GroupPoint) string { return p.Time.String() }, func(_ *route.Call, p vault.GroupPoint) (armwire.GroupPoint, error) {
		out := armwire.GroupPoint{Seq: p.Seq, Time: armwire.Time(p.Time), Consistency: string(p.Consistency), Complete: p.Complete, Points: map[string]string{}, Missing: []string{}}
		for id, x := range p.Points {
			out.Points[string(id)] = x.Name()
		}
		for _, id := range p.Missing {
			out.Missing = append(out.Missing, string(id))
		}
		return out, nil
	})
}
