package hyperv

import (
	"context"
	"errors"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// endStale ends what an earlier process left open of a VM. With keep nil, cuts
// that may have been read in full become reference points; else that holds for tokens in keep only, and
// others are discarded. Checkpoints with Holdfast's name and no record are destroyed. The
// caller holds the VM's lock, or nobody else knows the host yet.
func (h *Host) endStale(ctx context.Context, op, vm string, keep []string) error {
	h.mu.Lock()
	own := h.open[vm]
	h.mu.Unlock()
	recs, err := h.store.tokens(vm)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the records of VM %s: %w", vm, err)
	}
	mine := map[string]bool{}
	for _, r := range recs {
		mine[r.Token] = true
		if r.Phase == phaseEnded || own != nil && own.info.Token == r.Token {
			continue
		}
		if r.Phase == phaseCreating || keep != nil && !slices.Contains(keep, r.Token) {
			err = h.discard(ctx, op, r)
		} else if err = h.convert(ctx, op, r); err != nil && h.vanished(ctx, r) {
			h.log.Warn("the checkpoint of a cut that an earlier process left open is gone; its token is lost", "vm", vm, "token", r.Token, "err", err)
			err = h.discard(ctx, op, r)
		}
		if err != nil {
			return err
		}
		h.log.Info("ended a cut that an earlier process left open", "vm", vm, "token", r.Token)
	}
	list, err := h.ms.Checkpoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the checkpoints of VM "+vm, "", err)
	}
	for _, s := range list {
		if !s.Recovery() || !strings.HasPrefix(s.Name, tokenPrefix) || mine[s.Name] {
			continue
		}
		if err := h.destroyCheckpoint(ctx, vm, s.ID); err != nil {
			return msvm.Wrap(op, "remove a checkpoint that was left over of VM "+vm, dr.CodeCheckpointFailed, err)
		}
		h.log.Info("removed a recovery checkpoint that nobody knows", "vm", vm, "name", s.Name)
	}
	return nil
}

// vanished reports whether a cut's checkpoint is surely gone.
func (h *Host) vanished(ctx context.Context, r *tokenRecord) bool {
	ok, err := h.ms.CheckpointExists(ctx, r.Checkpoint)
	return err == nil && !ok
}

// Forget deletes reference points and leftovers of Holdfast.
func (h *Host) Forget(ctx context.Context, id dr.VMID, keep []string) error {
	const op = "Forget"
	vm, err := vmID(op, id)
	if err != nil {
		return err
	}
	unlock, err := h.locks.lock(ctx, op, vm)
	if err != nil {
		return err
	}
	defer unlock()
	sys, _, err := h.load(ctx, op, id, msvm.Systems)
	if err != nil {
		return err
	}
	if keep == nil {
		keep = []string{}
	}
	if err := h.endStale(ctx, op, vm, keep); err != nil {
		return err
	}
	recs, err := h.store.tokens(vm)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the records of VM %s: %w", vm, err)
	}
	points := map[string]bool{} // reference points that stay
	var drop []*tokenRecord
	for _, r := range recs {
		if r.Phase == phaseEnded && !slices.Contains(keep, r.Token) {
			drop = append(drop, r)
		} else if r.Point != "" {
			points[strings.ToLower(r.Point)] = true
		}
	}
	if len(drop) > 0 {
		if err := h.waitIdle(ctx, op, sys); err != nil && dr.CodeOf(err) != dr.CodeMergeRunning {
			return err
		}
	}
	var errs error
	for _, r := range drop {
		errs = errors.Join(errs, h.discard(ctx, op, r))
	}
	if errs != nil {
		return errs
	}
	return h.dropUnknown(ctx, op, vm, points)
}

// dropUnknown deletes reference points with Holdfast's name that no record knows: nothing can be done with them.
func (h *Host) dropUnknown(ctx context.Context, op, vm string, stay map[string]bool) error {
	list, err := h.ms.ReferencePoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the reference points of VM "+vm, "", err)
	}
	for _, p := range list {
		if strings.HasPrefix(p.Name, tokenPrefix) && !stay[strings.ToLower(p.ID)] {
			if err := h.destroyPoint(ctx, op, vm, p.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
