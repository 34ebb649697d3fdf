package cutting

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/holding"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// BeginGroup starts pull backup jobs of several VMs at one instant.
func (h *Cutter) BeginGroup(ctx context.Context, reqs []hypervisor.CutRequest) (_ []hypervisor.Cut, err error) {
	const op = "BeginGroup"
	ctx, leave, err := h.enter(ctx, op)
	if err != nil {
		return nil, err
	}
	defer leave()
	doms := make([]golibvirt.Domain, len(reqs))
	for i, req := range reqs {
		if err := check(req); err != nil {
			return nil, err
		}
		if doms[i], err = h.virt.Find(ctx, op, req.VM); err != nil {
			return nil, err
		}
	}
	// One order for everybody, or two groups would wait for each other.
	for _, req := range slices.SortedFunc(slices.Values(reqs), func(a, b hypervisor.CutRequest) int { return strings.Compare(string(a.VM), string(b.VM)) }) {
		unlock, err := h.virt.Lock(ctx, op, req.VM)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	cuts := make([]*cut, 0, len(reqs))
	begun := map[*cut]bool{}
	defer func() {
		if err == nil {
			return
		}
		for _, c := range cuts {
			if begun[c] {
				_ = c.giveUp(err)
			} else if c.job == jobNotAsked {
				c.removeDir()
			}
		}
	}()
	for i, req := range reqs {
		c, err := h.prepare(ctx, doms[i], req)
		if err != nil {
			return nil, err
		}
		cuts = append(cuts, c)
	}
	errs := h.beginHeld(ctx, cuts, reqs)
	for i, c := range cuts {
		begun[c] = errs[i] == nil && c.job == jobRuns
	}
	if err := firstOf(errs); err != nil {
		return nil, err
	}
	for _, c := range cuts {
		if err := c.connect(ctx); err != nil {
			return nil, err
		}
	}
	if !h.register(cuts) {
		return nil, virt.Wrap(op, "begin a group cut", virt.ErrClosed)
	}
	list := make([]hypervisor.Cut, len(cuts))
	for i, c := range cuts {
		list[i] = c
	}
	return list, nil
}

// beginHeld begins the jobs of all cuts while their guests stand still. The
// errors are per cut; jobs that have begun are the caller's to end if any failed.
func (h *Cutter) beginHeld(ctx context.Context, cuts []*cut, reqs []hypervisor.CutRequest) []error {
	frosts, errs := make([]*holding.Frost, len(cuts)), make([]error, len(cuts))
	each := func(fn func(i int, c *cut)) {
		var wg sync.WaitGroup
		for i, c := range cuts {
			wg.Go(func() { fn(i, c) })
		}
		wg.Wait()
	}
	each(func(i int, c *cut) {
		if reqs[i].Quiesce {
			frosts[i] = h.keep.Freeze(ctx, c.dom)
		}
	})
	doms := make([]golibvirt.Domain, len(cuts))
	for i, c := range cuts {
		doms[i] = c.dom
	}
	limit, cancel := context.WithTimeout(ctx, h.cfg.GroupHold)
	defer cancel()
	g, err := h.keep.Hold(limit, doms)
	if err == nil {
		now := time.Now()
		each(func(i int, c *cut) {
			c.info.Time = now
			errs[i] = c.start(limit)
		})
		if firstOf(errs) == nil {
			err = g.Intact(limit)
		}
		held := g.Release()
		for _, c := range cuts {
			c.info.Held = held
		}
	}
	each(func(i int, c *cut) {
		level, note, frozen := frosts[i].Finish()
		c.info.Consistency, c.info.Note, c.info.Held = level, note, max(c.info.Held, frozen)
	})
	if err != nil && firstOf(errs) == nil {
		if limit.Err() != nil && ctx.Err() == nil && dr.CodeOf(err) != dr.CodeHypervisorTimeout {
			err = dr.New(dr.KindUnavailable, dr.CodeHypervisorTimeout, "libvirt.BeginGroup", "hold %d VMs together: %w", len(cuts), err)
		}
		errs = append(errs, err)
	}
	return errs
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
