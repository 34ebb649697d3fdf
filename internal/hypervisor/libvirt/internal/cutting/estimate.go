package cutting

import (
	"context"
	"fmt"
	"strconv"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Estimate asks libvirt for the size of a checkpoint: it merges the dirty
// bitmaps since then into a temporary one and counts. A disk without a usable
// bitmap gets no size.
func (h *Cutter) Estimate(ctx context.Context, id dr.VMID, base string) (int64, error) {
	const op = "Estimate"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return 0, err
	}
	s, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return 0, err
	}
	if !virt.Active(s) {
		return 0, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "libvirt."+op, "VM %s is not running", dom.Name)
	}
	var doc string
	err = h.virt.Call(ctx, op, fmt.Sprintf("measure checkpoint %s of VM %s", base, dom.Name), func(l *virt.Conn) error {
		cp, err := l.DomainCheckpointLookupByName(dom, base, 0)
		if err != nil {
			return err
		}
		doc, err = l.DomainCheckpointGetXMLDesc(cp, uint32(golibvirt.DomainCheckpointXMLNoDomain|golibvirt.DomainCheckpointXMLSize))
		return err
	})
	if err != nil {
		return 0, err
	}
	cp, err := domxml.Parse([]byte(doc))
	if err != nil {
		return 0, dr.Errorf(dr.KindInternal, "libvirt."+op, "checkpoint %s of VM %s: %w", base, dom.Name, err)
	}
	root, err := h.virt.Tree(ctx, op, dom, virt.Live)
	if err != nil {
		return 0, err
	}
	sizes := parseSizes(cp.At("description").Trimmed())
	dirty := map[string]string{}
	for _, d := range cp.At("disks").All("disk") {
		if d.Get("checkpoint") == "bitmap" {
			dirty[d.Get("name")] = d.Get("size")
		}
	}
	var total int64
	good := 0
	for _, d := range domxml.Read(root).Disks {
		text, covered := dirty[d.ID]
		if !covered {
			continue
		}
		if err := h.virt.Measure(ctx, op, dom, &d); err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		old, known := sizes[d.ID]
		if err != nil || !known || old > d.Size {
			total += d.Size
			continue
		}
		good++
		total += min(n+d.Size-old, d.Size)
	}
	if good == 0 {
		return 0, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "libvirt."+op, "checkpoint %s of VM %s is of use for none of the disks", base, dom.Name)
	}
	return total, nil
}
