package cutting

import (
	"context"
	"errors"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/records"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// EndStale ends what an earlier process left open of a VM. With keep nil, cuts
// that may have been read in full become reference points; else that holds for tokens in keep only, and
// others are discarded. Checkpoints that this directory's stamp says to be its own and that have no
// record are destroyed, and those that an agent on another host had made before the VM was moved here. The
// caller holds the VM's lock, or nobody else knows the host yet.
func (h *Cutter) EndStale(ctx context.Context, op, vm string, keep []string) error {
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
	list, err := h.MS.Checkpoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the checkpoints of VM "+vm, "", err)
	}
	for _, s := range list {
		token, of, _ := records.ParseName(s.Name)
		if !s.Recovery() || !h.stamp.Owned(s.Name) || of.Dir == h.stamp.Dir && mine[token] {
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
func (h *Cutter) vanished(ctx context.Context, r *tokenRecord) bool {
	ok, err := h.MS.CheckpointExists(ctx, r.Checkpoint)
	return err == nil && !ok
}

// Forget deletes reference points and leftovers of Holdfast.
func (h *Cutter) Forget(ctx context.Context, id dr.VMID, keep []string) error {
	const op = "Forget"
	vm, err := vms.ID(op, id)
	if err != nil {
		return err
	}
	unlock, err := h.Lock(ctx, op, vm)
	if err != nil {
		return err
	}
	defer unlock()
	return h.ForgetHeld(ctx, op, id, keep)
}

// ForgetHeld is Forget for who holds the VM's lock.
func (h *Cutter) ForgetHeld(ctx context.Context, op string, id dr.VMID, keep []string) error {
	vm, err := vms.ID(op, id)
	if err != nil {
		return err
	}
	sys, _, err := h.Load(ctx, op, id, msvm.Systems)
	if err != nil {
		return err
	}
	if keep == nil {
		keep = []string{}
	}
	if err := h.EndStale(ctx, op, vm, keep); err != nil {
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
		if err := h.WaitIdle(ctx, op, sys); err != nil && dr.CodeOf(err) != dr.CodeMergeRunning {
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

// dropUnknown deletes reference points of this directory's, or of an agent on another host, that no record knows: nothing can be done with them.
func (h *Cutter) dropUnknown(ctx context.Context, op, vm string, stay map[string]bool) error {
	list, err := h.MS.ReferencePoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the reference points of VM "+vm, "", err)
	}
	for _, p := range list {
		if h.stamp.Owned(p.Name) && !stay[strings.ToLower(p.ID)] {
			if err := h.destroyPoint(ctx, op, vm, p.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Purge deletes all checkpoints and reference points of a VM that are named by Holdfast, also
// those of other directories on this host, whose agents lose their tokens by it.
func (h *Cutter) Purge(ctx context.Context, id dr.VMID) error {
	const op = "Purge"
	if err := h.Forget(ctx, id, nil); err != nil {
		return err
	}
	vm, err := vms.ID(op, id)
	if err != nil {
		return err
	}
	unlock, err := h.Lock(ctx, op, vm)
	if err != nil {
		return err
	}
	defer unlock()
	if h.IsOpen(vm) {
		return dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "hyperv."+op, "a cut of VM %s is open", vm)
	}
	list, err := h.MS.Checkpoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the checkpoints of VM "+vm, "", err)
	}
	for _, s := range list {
		if _, _, named := records.ParseName(s.Name); !named || !s.Recovery() {
			continue
		}
		if err := h.destroyCheckpoint(ctx, vm, s.ID); err != nil {
			return msvm.Wrap(op, "remove a checkpoint of VM "+vm, dr.CodeCheckpointFailed, err)
		}
	}
	points, err := h.MS.ReferencePoints(ctx, vm)
	if err != nil {
		return msvm.Wrap(op, "list the reference points of VM "+vm, "", err)
	}
	for _, p := range points {
		if _, _, named := records.ParseName(p.Name); !named {
			continue
		}
		if err := h.destroyPoint(ctx, op, vm, p.ID); err != nil {
			return err
		}
	}
	return nil
}
