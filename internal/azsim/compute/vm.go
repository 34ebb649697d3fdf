package compute

import (
	"strings"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

// VM is a virtual machine as tests look at it.
type VM struct {
	ID, Name, VMID string
	Power          string   // "running", "stopped", "deallocated" …
	Disks          []string // names of the disks in the page store, the OS disk first, then by LUN
	Starts         int      // how often it was started
	Running        Running  // the guest; nil without Runner or guest
	Machine        Machine  // as a Runner has or would have it
}

// VM finds a virtual machine by its resource id.
func (c *Compute) VM(id string) (VM, bool) {
	c.Lock()
	defer c.Unlock()
	r := c.Find(id, typVM)
	if r == nil {
		return VM{}, false
	}
	v := VM{ID: r.ID, Name: r.Name, VMID: vmOf(r).id, Power: vmOf(r).power, Starts: vmOf(r).starts, Running: vmOf(r).guest}
	v.Machine, _ = c.describe(r) // a disk that is gone is seen by its absence
	for _, d := range v.Machine.Disks {
		for _, x := range c.All() {
			if x.Kind.Name == typDisk && x.Name == d.Name && strings.EqualFold(wire.Str(x.Doc, "managedBy"), r.ID) {
				v.Disks = append(v.Disks, x.Page)
			}
		}
	}
	return v, true
}

// Page is the name in the page store of a disk, snapshot or disk restore point; "" if there is none.
func (c *Compute) Page(id string) string {
	c.Lock()
	defer c.Unlock()
	if r := c.All()[plane.Lower(id)]; r != nil && !strings.HasPrefix(r.Kind.Name, "Microsoft.Storage/") {
		return r.Page
	}
	return ""
}
