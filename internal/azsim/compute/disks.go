package compute

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
	"holdfast/internal/dr"
)

const (
	typDisk       = "Microsoft.Compute/disks"
	typSnapshot   = "Microsoft.Compute/snapshots"
	typCollection = "Microsoft.Compute/restorePointCollections"
	typPoint      = typCollection + "/restorePoints"
	typDiskPt     = typPoint + "/diskRestorePoints"

	typSet = "Microsoft.Compute/availabilitySets"

	mib    = int64(1) << 20
	gib    = int64(1) << 30
	footer = 512 // of a fixed VHD

	// Limits of uploadSizeBytes (Compute REST, CreationData).
	minUpload = 20*mib + footer
	maxUpload = 32<<40 + footer
)

var diskTypes = []string{"Standard_LRS", "StandardSSD_LRS", "StandardSSD_ZRS", "Premium_LRS", "Premium_ZRS", "PremiumV2_LRS", "UltraSSD_LRS"}

func (c *Compute) putDisk(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if sku := wire.Str(r.Doc, "sku", "name"); sku == "" {
		wire.Set(r.Doc, "Standard_LRS", "sku", "name")
	} else if !slices.ContainsFunc(diskTypes, func(t string) bool { return strings.EqualFold(t, sku) }) {
		return nil, plane.BadRequest("InvalidParameter", "The value '%s' of parameter 'sku.name' is invalid.", sku)
	}
	if len(wire.List(r.Doc, "zones")) > 1 {
		return nil, plane.BadRequest("InvalidParameter", "A disk can be in one zone only.")
	}
	for _, z := range wire.List(r.Doc, "zones") {
		if s, _ := z.(string); s != "1" && s != "2" && s != "3" {
			return nil, plane.BadRequest("InvalidAvailabilityZone", "The zone(s) '%v' for resource '%s' is not supported. The supported zones for location '%s' are '1,2,3'.", z, r.ID, c.Location())
		}
	}
	if q.Old != nil {
		return c.updateDisk(q, r)
	}
	return c.createPages(r, true)
}

// updateDisk keeps what the service owns, and grows the disk.
func (c *Compute) updateDisk(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	was := q.Old["properties"].(map[string]any)
	now := r.Doc["properties"].(map[string]any)
	if a, b := wire.Str(was, "creationData", "createOption"), wire.Str(now, "creationData", "createOption"); b != "" && !strings.EqualFold(a, b) {
		return nil, plane.Conflict("Changing property 'creationData.createOption' is not allowed.")
	}
	size, given := wire.Num(now, "diskSizeGB")
	old, _ := wire.Num(was, "diskSizeGB")
	if given && size < old {
		return nil, plane.Conflict("Disk %s of size %d GB cannot be shrunk to %d GB.", r.Name, old, size)
	}
	for _, k := range []string{"creationData", "diskState", "timeCreated", "uniqueId", "diskSizeBytes", "diskSizeGB", "incrementalSnapshotFamilyId"} {
		if v, ok := was[k]; ok {
			now[k] = v
		}
	}
	if by := wire.Str(q.Old, "managedBy"); by != "" {
		r.Doc["managedBy"] = by
	}
	if !given || size == old {
		return nil, nil
	}
	now["diskSizeGB"], now["diskSizeBytes"] = size, size*gib
	page := r.Page
	return func(context.Context) (any, *wire.Error) { return nil, pageError(c.pages.Resize(page, size*gib), r) }, nil
}

// createPages checks creationData of a new disk or snapshot; the work makes the content.
func (c *Compute) createPages(r *plane.Resource, disk bool) (plane.Work, *wire.Error) {
	props := r.Doc["properties"].(map[string]any)
	option := plane.Lower(wire.Str(props, "creationData", "createOption"))
	source := wire.Str(props, "creationData", "sourceResourceId")
	gb, given := wire.Num(props, "diskSizeGB")
	if given && (gb < 1 || gb > 65536) {
		return nil, plane.BadRequest("InvalidParameter", "The value '%d' of parameter 'diskSizeGB' is out of range. Value must be between '1' and '65536', inclusive.", gb)
	}
	c.Sequence++
	r.Page = fmt.Sprintf("%s-%d-%s", map[bool]string{true: "d", false: "s"}[disk], c.Sequence, plane.NewGUID()[:8])
	page, state := r.Page, "Unattached"
	var job func() error
	size := gb * gib
	switch {
	case option == "empty" && disk:
		if !given {
			return nil, plane.BadRequest("InvalidParameter", "Required parameter 'disk.properties.diskSizeGB' is missing (null).")
		}
		job = func() error { return c.pages.Create(page, size) }
	case option == "upload" && disk:
		up, ok := wire.Num(props, "creationData", "uploadSizeBytes")
		if !ok || up < minUpload || up > maxUpload || (up-footer)%mib != 0 {
			return nil, plane.BadRequest("InvalidParameter", "The value '%d' of parameter 'creationData.uploadSizeBytes' is invalid: it must be between %d and %d and be whole MiB and the footer's %d bytes.", up, int64(minUpload), int64(maxUpload), footer)
		}
		size, state = up-footer, "ReadyToUpload"
		job = func() error { return c.pages.Create(page, up) }
	case option == "import":
		uri := wire.Str(props, "creationData", "sourceUri")
		account := c.Find(wire.Str(props, "creationData", "storageAccountId"), "Microsoft.Storage/storageAccounts")
		if uri == "" || account == nil {
			return nil, plane.BadRequest("InvalidParameter", "Required parameter 'creationData.storageAccountId' or 'sourceUri' is missing or names nothing.")
		}
		if !strings.Contains(uri, "/storage/"+account.Name+"/") && !strings.Contains(uri, "//"+account.Name+".") {
			return nil, plane.BadRequest("InvalidParameter", "The blob %s is not in the storage account %s.", uri, account.Name)
		}
		job = func() error { return c.pages.Import(page, uri) }
	case option == "copy" || option == "copystart" || option == "restore" && disk:
		from := c.All()[plane.Lower(source)]
		if from == nil || from.Page == "" || option == "restore" && from.Kind.Name != typDiskPt || option != "restore" && from.Kind.Name == typDiskPt {
			return nil, wire.Errorf(http.StatusNotFound, "NotFound", "Resource %s to create %s from is not found.", source, r.Name)
		}
		if st := wire.Str(from.Doc, "properties", "diskState"); st == "ReadyToUpload" || st == "ActiveUpload" {
			return nil, plane.Conflict("Disk %s is in state %s and can't be copied.", from.Name, st)
		}
		c.inherit(props, from)
		if disk {
			job = func() error { return c.pages.Copy(page, from.Page) }
			break
		}
		// The content of a snapshot is that of the moment in which it is asked for.
		if err := c.pages.Copy(page, from.Page); err != nil {
			return nil, pageError(err, r)
		}
		job = func() error { return nil }
		fam := wire.Str(from.Doc, "properties", "uniqueId")
		wire.Set(props, fam, "creationData", "sourceUniqueId")
		if wire.Bool(props, "incremental") {
			props["incrementalSnapshotFamilyId"] = fam
		}
	default:
		return nil, plane.BadRequest("InvalidParameter", "The value '%s' of parameter 'creationData.createOption' is invalid.", option)
	}
	props["diskState"], props["timeCreated"], props["uniqueId"] = state, c.Stamp(), plane.NewGUID()
	return func(context.Context) (any, *wire.Error) {
		if err := job(); err != nil {
			return nil, pageError(err, r)
		}
		return nil, c.settleSize(r, gb)
	}, nil
}

// settleSize says a new disk's size, and grows it where more was asked for.
func (c *Compute) settleSize(r *plane.Resource, gb int64) *wire.Error {
	has, err := c.pages.Size(r.Page)
	if err != nil {
		return pageError(err, r)
	}
	c.Lock()
	defer c.Unlock()
	props := r.Doc["properties"].(map[string]any)
	switch want := gb * gib; {
	case wire.Str(props, "diskState") == "ReadyToUpload" || want == 0:
	case want < has && r.Kind.Name == typDisk:
		return plane.BadRequest("InvalidParameter", "The disk size %d GB is smaller than the source's %d bytes.", gb, has)
	case want > has && r.Kind.Name == typDisk:
		if err := c.pages.Resize(r.Page, want); err != nil {
			return pageError(err, r)
		}
		has = want
	}
	props["diskSizeBytes"], props["diskSizeGB"] = has, (has+gib-1)/gib
	return nil
}

// inherit takes from a source what a copy has too, unless it says otherwise.
func (c *Compute) inherit(props map[string]any, from *plane.Resource) {
	for _, k := range []string{"osType", "hyperVGeneration"} {
		if v := wire.Get(from.Doc, "properties", k); v != nil && props[k] == nil {
			props[k] = v
		}
	}
}

// pageError words an error of the page store as the disk provider does.
func pageError(err error, r *plane.Resource) *wire.Error {
	if err == nil {
		return nil
	}
	switch dr.KindOf(err) {
	case dr.KindNotFound:
		return wire.Errorf(http.StatusNotFound, "NotFound", "The content of %s was not found: %v", r.ID, err)
	case dr.KindInvalid, dr.KindCorrupt:
		return plane.BadRequest("InvalidVhd", "The source of %s is not a valid VHD: %v", r.ID, err)
	}
	return wire.Errorf(http.StatusInternalServerError, "InternalServerError", "%s: %v", r.ID, err)
}

func (c *Compute) viewDisk(_ *plane.Call, r *plane.Resource, doc map[string]any) {
	if r.Until.IsZero() && r.Doc["managedBy"] != nil {
		state := "Attached"
		if id, _ := r.Doc["managedBy"].(string); c.All()[plane.Lower(id)] != nil && !c.powered(id) {
			state = "Reserved"
		}
		wire.Set(doc, state, "properties", "diskState")
	}
}

func (c *Compute) removeDisk(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if by, _ := r.Doc["managedBy"].(string); by != "" {
		return nil, plane.Conflict("Disk %s is attached to VM %s.", r.Name, by)
	}
	return c.removeSnapshot(nil, r)
}

func (c *Compute) removeSnapshot(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if c.Now().Before(r.Until) {
		return nil, plane.Conflict("There is an active shared access signature outstanding for disk %s. Call EndGetAccess on this disk before making this call.", r.Name)
	}
	return nil, nil
}

// afterPages removes the content of what is gone.
func (c *Compute) afterPages(r *plane.Resource) {
	if err := c.pages.Delete(r.Page); err != nil && dr.KindOf(err) != dr.KindNotFound {
		c.Log().Error("remove the content of a simulated disk", "id", r.ID, "err", err)
	}
}

func (c *Compute) putSnapshot(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	if q.Old != nil {
		return c.updateDisk(q, r)
	}
	return c.createPages(r, false)
}

// accessActions are beginGetAccess and endGetAccess, of disks, snapshots and disk restore points.
func (c *Compute) accessActions() map[string]func(*plane.Call, *plane.Resource) (plane.Work, *wire.Error) {
	return map[string]func(*plane.Call, *plane.Resource) (plane.Work, *wire.Error){"begingetaccess": c.beginAccess, "endgetaccess": c.endAccess}
}

func (c *Compute) beginAccess(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	access := plane.Lower(wire.Str(q.Body, "access"))
	seconds, ok := wire.Num(q.Body, "durationInSeconds")
	state := wire.Str(r.Doc, "properties", "diskState")
	upload := state == "ReadyToUpload" || state == "ActiveUpload"
	switch {
	case access != "read" && access != "write" || !ok || seconds < 60 || seconds > 4294967295:
		return nil, plane.BadRequest("InvalidParameter", "Access '%s' for %d seconds is not possible.", access, seconds)
	case access == "write" && !upload:
		return nil, plane.Conflict("Write access to %s is possible only in state ReadyToUpload; it is in state %s.", r.Name, state)
	case access == "read" && upload:
		return nil, plane.Conflict("Read access to %s is not possible in state %s.", r.Name, state)
	case r.Doc["managedBy"] != nil && c.powered(r.Doc["managedBy"]):
		return nil, wire.Errorf(http.StatusConflict, "Conflict", "Access not permitted because disk %s is currently attached to running VM %v.", r.Name, r.Doc["managedBy"])
	}
	return func(context.Context) (any, *wire.Error) {
		c.Lock()
		defer c.Unlock()
		until := c.Now().Add(time.Duration(seconds) * time.Second)
		query, err := c.pages.Grant(r.Page, access == "write", until)
		if err != nil {
			return nil, pageError(err, r)
		}
		r.Until = until
		switch {
		case access == "write":
			wire.Set(r.Doc, "ActiveUpload", "properties", "diskState")
		case r.Kind.Name != typDiskPt:
			wire.Set(r.Doc, "ActiveSAS", "properties", "diskState")
		}
		return map[string]any{"accessSAS": c.URL() + "/md/" + r.Page + "/abcd?" + query}, nil
	}, nil
}

// powered tells whether the VM with an id holds its disks open.
func (c *Compute) powered(id any) bool {
	s, _ := id.(string)
	r := c.All()[plane.Lower(s)]
	return r != nil && vmOf(r) != nil && vmOf(r).power != deallocated
}

func (c *Compute) endAccess(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	return func(context.Context) (any, *wire.Error) {
		err := c.pages.Revoke(r.Page)
		c.Lock()
		defer c.Unlock()
		r.Until = time.Time{}
		switch wire.Str(r.Doc, "properties", "diskState") {
		case "ActiveUpload":
			if foot := c.pages.CheckFooter(r.Page); foot != nil {
				err = errors.Join(err, foot)
				break
			}
			wire.Set(r.Doc, "Unattached", "properties", "diskState")
		case "ActiveSAS":
			wire.Set(r.Doc, "Unattached", "properties", "diskState")
		}
		return nil, pageError(err, r)
	}, nil
}
