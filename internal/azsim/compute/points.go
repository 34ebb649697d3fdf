package compute

import (
	"context"
	"net/http"
	"strings"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

// putCollection makes a restore point collection of a VM.
func (c *Compute) putCollection(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	id := wire.Str(r.Doc, "properties", "source", "id")
	vm := c.Find(id, typVM)
	switch {
	case q.Old != nil && !strings.EqualFold(id, wire.Str(q.Old, "properties", "source", "id")):
		return nil, plane.Conflict("Changing property 'source.id' is not allowed.")
	case q.Old != nil:
		return nil, nil
	case vm == nil:
		return nil, wire.Errorf(http.StatusNotFound, "NotFound", "The virtual machine %s of the restore point collection was not found.", id)
	}
	wire.Set(r.Doc, c.Location(), "properties", "source", "location")
	wire.Set(r.Doc, plane.NewGUID(), "properties", "restorePointCollectionId")
	return nil, nil
}

func (c *Compute) viewCollection(q *plane.Call, r *plane.Resource, doc map[string]any) {
	if q.R == nil || !strings.EqualFold(q.R.URL.Query().Get("$expand"), "restorePoints") {
		return
	}
	list := []any{}
	for _, p := range c.Children(r.ID) {
		if p.Kind.Name == typPoint {
			list = append(list, c.Render(q, p))
		}
	}
	wire.Set(doc, list, "properties", "restorePoints")
}

// putRestorePoint copies all disks of the collection's VM at one moment.
func (c *Compute) putRestorePoint(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if q.Old != nil {
		return nil, plane.Conflict("A restore point can't be changed.")
	}
	mode := wire.Str(r.Doc, "properties", "consistencyMode")
	coll := c.All()[plane.Lower(q.At.Parent)]
	vm := c.Find(wire.Str(coll.Doc, "properties", "source", "id"), typVM)
	switch {
	case vm == nil:
		return nil, wire.Errorf(http.StatusNotFound, "NotFound", "The source virtual machine of %s was not found.", coll.Name)
	case mode != "" && !strings.EqualFold(mode, "CrashConsistent"):
		return nil, wire.Errorf(http.StatusConflict, "SimulatorUnsupported", "The simulator makes restore points with consistencyMode CrashConsistent only, not %s.", mode)
	}
	wire.Set(r.Doc, "CrashConsistent", "properties", "consistencyMode")
	skip := map[string]bool{}
	for _, x := range wire.List(r.Doc, "properties", "excludeDisks") {
		skip[plane.Lower(wire.Str(x, "id"))] = true
	}
	var points []*plane.Resource
	copyDisk := func(entry any) (map[string]any, *wire.Error) {
		m, _ := entry.(map[string]any)
		out := wire.Clone(m)
		delete(out, "createOption")
		delete(out, "deleteOption")
		disk := c.Find(wire.Str(entry, "managedDisk", "id"), typDisk)
		if disk == nil || skip[plane.Lower(disk.ID)] {
			return nil, nil
		}
		name := disk.Name + "_" + plane.NewGUID()
		p := &plane.Resource{Kind: c.Kind(typDiskPt), Group: r.Group, Name: name, ID: r.ID + "/diskRestorePoints/" + name, Page: "r-" + plane.NewGUID()}
		p.Doc = map[string]any{"id": p.ID, "name": name, "type": typDiskPt, "properties": map[string]any{
			"timeCreated": c.Stamp(), "sourceResourceId": disk.ID, "sourceUniqueId": wire.Str(disk.Doc, "properties", "uniqueId"),
			"familyId": wire.Str(disk.Doc, "properties", "uniqueId"), "sourceResourceLocation": c.Location(), "replicationState": "Succeeded"}}
		c.inherit(p.Doc["properties"].(map[string]any), disk)
		if err := c.pages.Copy(p.Page, disk.Page); err != nil {
			return nil, pageError(err, disk)
		}
		points = append(points, p)
		out["diskRestorePoint"] = plane.Ref(p.ID)
		return out, nil
	}
	undo := func() {
		for _, p := range points {
			c.afterPages(p)
		}
	}
	osDisk, err := copyDisk(wire.Get(vm.Doc, "properties", "storageProfile", "osDisk"))
	if err != nil {
		undo()
		return nil, err
	}
	profile, data := map[string]any{}, []any{}
	if osDisk != nil {
		profile["osDisk"] = osDisk
	}
	for _, d := range wire.List(vm.Doc, "properties", "storageProfile", "dataDisks") {
		out, err := copyDisk(d)
		if err != nil {
			undo()
			return nil, err
		}
		if out != nil {
			data = append(data, out)
		}
	}
	profile["dataDisks"] = data
	for _, p := range points {
		c.Insert(p)
	}
	wire.Set(r.Doc, map[string]any{"storageProfile": profile, "vmId": vmOf(vm).id, "location": c.Location(),
		"hardwareProfile": wire.Get(vm.Doc, "properties", "hardwareProfile")}, "properties", "sourceMetadata")
	wire.Set(r.Doc, c.Stamp(), "properties", "timeCreated")
	return func(context.Context) (any, *wire.Error) { return nil, nil }, nil
}

// putAvailability makes an availability set.
func (c *Compute) putAvailability(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	for _, f := range [][2]any{{"platformFaultDomainCount", int64(3)}, {"platformUpdateDomainCount", int64(20)}} {
		name, most := f[0].(string), f[1].(int64)
		if n, ok := wire.Num(r.Doc, "properties", name); ok && (n < 1 || n > most) {
			return nil, plane.BadRequest("InvalidParameter", "The specified %s %d is out of range: it must be 1 to %d.", name, n, most)
		} else if !ok {
			wire.Set(r.Doc, map[bool]int{true: 2, false: 5}[most == 3], "properties", name)
		}
	}
	if q.Old == nil {
		return nil, c.NeedQuota("Microsoft.Compute", map[string]int{"availabilitySets": 1})
	}
	return nil, nil
}

// membersOf lists the VMs of an availability set.
func (c *Compute) membersOf(r *plane.Resource) []any {
	list := []any{}
	for _, vm := range c.All() {
		if strings.EqualFold(wire.Str(vm.Doc, "properties", "availabilitySet", "id"), r.ID) {
			list = append(list, plane.Ref(vm.ID))
		}
	}
	return list
}

func (c *Compute) viewAvailability(_ *plane.Call, r *plane.Resource, doc map[string]any) {
	wire.Set(doc, c.membersOf(r), "properties", "virtualMachines")
}

func (c *Compute) removeAvailability(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if len(c.membersOf(r)) > 0 {
		return nil, plane.Conflict("Availability Set %s cannot be deleted before all its VMs are deleted.", r.Name)
	}
	return nil, nil
}
