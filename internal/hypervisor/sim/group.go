package sim

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// BeginGroup freezes the disks of all VMs at one instant: all locks are held
// at once. A fault on "BeginGroup" strikes before the guests are held, one on
// "BeginGroup.Hold" while they would be.
func (h *Host) BeginGroup(ctx context.Context, reqs []hypervisor.CutRequest) (_ []hypervisor.Cut, err error) {
	const op = "BeginGroup"
	leave, err := h.enter(ctx, op, "")
	if err != nil {
		return nil, err
	}
	if err := hypervisor.ValidateGroup(reqs); err != nil {
		return nil, err
	}
	vms := make([]*VM, len(reqs))
	for i, r := range reqs {
		if vms[i], err = h.world.find(op, r.VM); err != nil {
			return nil, err
		}
	}
	if _, err := h.enter(ctx, "BeginGroup.Hold", ""); err != nil {
		return nil, err
	}
	cuts, err := h.takeAll(vms, reqs)
	if err != nil {
		return nil, err
	}
	list := make([]hypervisor.Cut, len(cuts))
	for i, c := range cuts {
		list[i] = c
	}
	if leave(&err); err != nil { // the reply is lost: the adapter undoes what it can't hand over
		for _, c := range cuts {
			c.drop()
		}
		return nil, err
	}
	return list, nil
}

func (h *Host) takeAll(vms []*VM, reqs []hypervisor.CutRequest) ([]*cut, error) {
	inOrder := slices.SortedFunc(slices.Values(vms), func(a, b *VM) int { return strings.Compare(string(a.info.ID), string(b.info.ID)) })
	for _, v := range inOrder {
		v.mu.Lock()
		defer v.mu.Unlock()
	}
	bases := make([]*token, len(reqs))
	for i, r := range reqs {
		var err error
		if bases[i], err = admit(vms[i], h, r); err != nil {
			return nil, err
		}
	}
	now := h.world.cfg.Now()
	cuts := make([]*cut, len(reqs))
	for i, r := range reqs {
		cuts[i] = take(vms[i], h, r, bases[i], now)
	}
	return cuts, nil
}

// Estimate counts what a cut would report.
func (h *Host) Estimate(ctx context.Context, id dr.VMID, base string) (_ int64, err error) {
	const op = "Estimate"
	leave, err := h.enter(ctx, op, id)
	if err != nil {
		return 0, err
	}
	defer leave(&err)
	v, err := h.world.find(op, id)
	if err != nil {
		return 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.power == hypervisor.PowerOff {
		return 0, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "sim."+op, "VM %s is not running", v.info.Name)
	}
	t := v.tokens[base]
	if t == nil {
		return 0, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "sim."+op, "tracking token %q of VM %s is missing", base, v.info.Name)
	}
	var total int64
	good := 0
	for _, d := range v.disks {
		if _, ok := t.sizes[d.id]; !ok {
			continue
		}
		old, why := t.covers(d)
		if why != "" {
			total += d.size
			continue
		}
		good++
		for _, e := range (&frozen{size: d.size, grain: d.grain, writes: d.writes}).changedSince(t.seq, old) {
			total += e.Len
		}
	}
	if good == 0 {
		return 0, dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "sim."+op, "tracking token %s of VM %s is of use for none of the disks", base, v.info.Name)
	}
	return total, nil
}
