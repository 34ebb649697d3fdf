package azure

import (
	"context"
	"sync"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// Watch polls every Config.WatchEvery: Resource Manager tells nothing by itself.
// What begins and ends between two polls is not noticed.
func (h *Host) Watch(ctx context.Context, fn func(hypervisor.Event)) error {
	var last map[dr.VMID]string
	lost := false
	for {
		now, err := h.powers(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !lost {
				h.cfg.Log.Warn("Azure does not tell the states of the VMs; asking again", "every", h.cfg.WatchEvery, "err", err)
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
		if site.Sleep(ctx, h.cfg.WatchEvery) != nil {
			return nil
		}
	}
}

// powers asks for the power states of all VMs of the site's group.
func (h *Host) powers(ctx context.Context) (map[dr.VMID]string, error) {
	vms, err := h.az.Machines(ctx, h.az.Home())
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	out := map[dr.VMID]string{}
	err = site.EachOf(ctx, len(vms), inventoryParallel, func(ctx context.Context, i int) error {
		v, found, err := h.view(ctx, "Watch", vms[i])
		if err != nil || !found {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		out[vms[i].Key()] = powerCode(v)
		return nil
	})
	return out, err
}

func differences(last, now map[dr.VMID]string, fn func(hypervisor.Event)) {
	for id, n := range now {
		o, known := last[id]
		switch {
		case !known:
			fn(hypervisor.Event{VM: id, Kind: "defined"})
			if on(n) {
				fn(hypervisor.Event{VM: id, Kind: "started"})
			}
		case on(o) && !on(n):
			fn(hypervisor.Event{VM: id, Kind: "stopped"})
		case !on(o) && on(n):
			fn(hypervisor.Event{VM: id, Kind: "started"})
		}
	}
	for id := range last {
		if _, still := now[id]; !still {
			fn(hypervisor.Event{VM: id, Kind: "undefined"})
		}
	}
}
