package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Watch reports the life of domains. It connects by itself again and again;
// whatever was missed meanwhile is announced by "reconnected".
func (h *Host) Watch(ctx context.Context, fn func(hypervisor.Event)) error {
	const longest = 15 * time.Second
	pause := 100 * time.Millisecond
	for first := true; ; first = false {
		began := time.Now()
		err := h.watchOnce(ctx, fn, !first)
		if ctx.Err() != nil {
			return nil
		}
		h.log.Warn("lost the connection to libvirt's events; connecting again", "err", err)
		if time.Since(began) > longest {
			pause = 100 * time.Millisecond
		}
		if virt.Sleep(ctx, pause) != nil {
			return nil
		}
		pause = min(2*pause, longest)
	}
}

// watchOnce reports events until the connection or ctx ends.
func (h *Host) watchOnce(ctx context.Context, fn func(hypervisor.Event), again bool) error {
	c, err := h.virt.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events <-chan golibvirt.DomainEventLifecycleMsg
	limit, stop := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer stop()
	if err := c.Guard(limit, func() (err error) {
		events, err = c.LifecycleEvents(ctx)
		return err
	}); err != nil {
		return err
	}
	if again {
		fn(hypervisor.Event{Kind: "reconnected"})
	}
	for {
		select {
		case <-ctx.Done():
			c.Close()
			for range events { // its goroutine blocks if nobody reads
			}
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				return golibvirt.ErrInterrupted
			}
			if kind := eventKind(e); kind != "" {
				fn(hypervisor.Event{VM: virt.ID(e.Dom.UUID), Kind: kind})
			}
		}
	}
}

func eventKind(e golibvirt.DomainEventLifecycleMsg) string {
	switch golibvirt.DomainEventType(e.Event) {
	case golibvirt.DomainEventDefined:
		return "defined"
	case golibvirt.DomainEventUndefined:
		return "undefined"
	case golibvirt.DomainEventStarted, golibvirt.DomainEventResumed:
		return "started"
	case golibvirt.DomainEventStopped:
		switch golibvirt.DomainEventStoppedDetailType(e.Detail) {
		case golibvirt.DomainEventStoppedCrashed, golibvirt.DomainEventStoppedFailed:
			return "crashed"
		}
		return "stopped"
	case golibvirt.DomainEventCrashed:
		return "crashed"
	}
	return ""
}
