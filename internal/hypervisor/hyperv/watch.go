package hyperv

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// Watch polls every Config.WatchEvery: the management interface has no other way
// over a network. What begins and ends between two polls is not noticed.
func (h *Host) Watch(ctx context.Context, fn func(hypervisor.Event)) error {
	var last map[string]msvm.System
	lost := false
	for {
		now, err := h.ms.Summaries(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !lost {
				h.log.Warn("lost the host's management service; asking again", "every", h.cfg.WatchEvery, "err", err)
			}
			lost = true
		default:
			if lost {
				fn(hypervisor.Event{Kind: "reconnected"})
				lost = false
			}
			if last != nil {
				differences(last, now, fn)
			}
			last = now
		}
		if vms.Sleep(ctx, h.cfg.WatchEvery) != nil {
			return nil
		}
	}
}

func differences(last, now map[string]msvm.System, fn func(hypervisor.Event)) {
	tell := func(id, kind string) { fn(hypervisor.Event{VM: dr.VMID(id), Kind: kind}) }
	for id, n := range now {
		o, known := last[id]
		switch {
		case !known:
			tell(id, "defined")
		case o.State == n.State:
		case n.State == msvm.Off:
			tell(id, "stopped")
		case o.State == msvm.Off && n.State == msvm.Running, o.State == msvm.Changing && n.State == msvm.Running:
			tell(id, "started")
		}
		if known && (o.Operation != n.Operation || o.Name != n.Name) {
			tell(id, "job")
		}
	}
	for id := range last {
		if _, still := now[id]; !still {
			tell(id, "undefined")
		}
	}
}
