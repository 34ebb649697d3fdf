package cutting

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/records"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// A group is cut while all its guests are paused: a paused guest causes nothing,
// so no cut holds an effect without its cause. Which VMs are paused is written
// down before, so that a successor of a process that died lets them go on.

type holdRecord struct {
	Version int      `json:"version"` // 1
	VMs     []string `json:"vms"`     // that were running
}

func (h *Cutter) holdPath(vms []string) string {
	return filepath.Join(h.cfg.Dir, holdDir, vms[0]+".json")
}

// BeginGroup pauses the guests, makes a checkpoint of each, and lets them go on.
func (h *Cutter) BeginGroup(ctx context.Context, reqs []hypervisor.CutRequest) (_ []hypervisor.Cut, err error) {
	const op = "BeginGroup"
	if err := hypervisor.ValidateGroup(reqs); err != nil {
		return nil, err
	}
	var ids []string
	for _, r := range reqs {
		if err := validateCut(r); err != nil {
			return nil, err
		}
		id, err := vms.ID(op, r.VM)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids) // one order for all groups: no two wait for each other
	for _, id := range ids {
		unlock, err := h.Lock(ctx, op, id)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	plans := make([]*plan, len(reqs))
	for i, r := range reqs {
		if plans[i], err = h.prepare(ctx, op, r); err != nil {
			return nil, err
		}
	}
	if err := h.freezeGroup(ctx, op, plans); err != nil {
		for _, p := range plans {
			err = h.takeBack(ctx, p, err)
		}
		return nil, err
	}
	var cuts []hypervisor.Cut
	for _, p := range plans {
		c, err := h.openCut(ctx, p)
		if err != nil {
			for _, open := range cuts {
				o := open.(*cut)
				err = errors.Join(err, o.closeDisks())
				o.release()
			}
			for _, p := range plans {
				err = h.takeBack(ctx, p, err)
			}
			return nil, err
		}
		cuts = append(cuts, c)
	}
	return cuts, nil
}

// freezeGroup makes the checkpoints of all plans while their guests are paused.
func (h *Cutter) freezeGroup(ctx context.Context, op string, plans []*plan) (err error) {
	var running []string
	for _, p := range plans {
		if p.vm.State == msvm.Running {
			running = append(running, p.vm.ID)
		}
	}
	limit, cancel := context.WithTimeout(ctx, h.cfg.GroupHold)
	defer cancel()
	began := time.Now()
	if len(running) > 0 {
		path := h.holdPath(running)
		if err := records.Write(path, holdRecord{1, running}); err != nil {
			return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "write down which guests are paused: %w", err)
		}
		defer func() {
			rerr := h.resume(ctx, op, running)
			if rerr == nil {
				rerr = records.Remove(path)
			}
			held := time.Since(began)
			for _, p := range plans {
				p.held = held
			}
			if err == nil {
				err = rerr
			}
		}()
	}
	if err := h.each(running, func(id string) error {
		return msvm.Wrap(op, "pause VM "+id, "", h.MS.RequestState(limit, id, msvm.StatePause))
	}); err != nil {
		return err
	}
	now := time.Now() // all stand still
	errs := make([]error, len(plans))
	var wg sync.WaitGroup
	for i, p := range plans {
		wg.Go(func() {
			p.time, p.rec.Made = now, now
			if p.req.Quiesce {
				p.note = "the guests of a group are paused, not asked to freeze"
			}
			if errs[i] = h.putRecord(op, p.rec); errs[i] != nil {
				return
			}
			if _, err := h.checkpoint(limit, p, msvm.CrashConsistent); err != nil {
				errs[i] = msvm.Wrap(op, "make a recovery checkpoint of VM "+p.vm.Name, dr.CodeCheckpointFailed, err)
			}
		})
	}
	wg.Wait()
	if limit.Err() != nil && ctx.Err() == nil {
		return dr.New(dr.KindUnavailable, dr.CodeHypervisorTimeout, "hyperv."+op, "the checkpoints of the group took longer than the %s that its guests may be paused", h.cfg.GroupHold)
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// each runs fn for all VMs at the same time and returns the first error in their order.
func (h *Cutter) each(ids []string, fn func(id string) error) error {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { errs[i] = fn(id) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// resumeLimit is how long the host is asked again and again to let a guest go on.
const resumeLimit = 2 * time.Minute

// resume lets guests go on, also when the caller's context has ended.
func (h *Cutter) resume(ctx context.Context, op string, ids []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeLimit)
	defer cancel()
	return h.each(ids, func(id string) error {
		for pause := h.cfg.Poll; ; pause = min(2*pause, 2*time.Second) {
			vm, _, err := h.Load(ctx, op, dr.VMID(id), msvm.Systems)
			switch {
			case dr.CodeOf(err) == dr.CodeVMNotFound:
				return nil
			case err == nil && vm.State != msvm.Paused && vm.State != msvm.Changing:
				return nil
			case err == nil && vm.State == msvm.Paused:
				err = h.MS.RequestState(ctx, id, msvm.StateStart)
			}
			if serr := vms.Sleep(ctx, pause); serr != nil {
				return msvm.Wrap(op, "let VM "+id+" go on after it was paused", "", errors.Join(err, serr))
			}
		}
	})
}

// releaseHeld lets guests go on that a dead process had paused for a group.
func (h *Cutter) releaseHeld(ctx context.Context) {
	list, err := filepath.Glob(filepath.Join(h.cfg.Dir, holdDir, "*.json"))
	if err != nil {
		return // the pattern is constant
	}
	for _, path := range list {
		var r holdRecord
		if err := records.Read(path, &r); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				h.log.Warn("can't read which guests were paused", "file", path, "err", err)
			}
			continue
		}
		if err := h.resume(ctx, "Open", r.VMs); err != nil {
			h.log.Error("guests that were paused for a group cut stay paused", "vms", r.VMs, "err", err)
			continue
		}
		if err := os.Remove(path); err != nil {
			h.log.Warn("delete a record of paused guests", "file", path, "err", err)
		}
	}
}
