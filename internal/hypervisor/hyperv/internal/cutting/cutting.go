// Package cutting makes cuts of a host's VMs: recovery checkpoints that are read and
// then become reference points. What it promises is said by package hyperv.
//
// It owns the records of tokens and of paused guests in the product directory, and
// the checkpoints and reference points on the host that are recorded or named after it.
package cutting

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/records"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// Config of a Cutter; all fields are needed. They mean what the fields of hyperv.Config of the same names say.
type Config struct {
	Dir          string
	Disks        port.Disks
	Stamp        records.Stamp // how things on the host are named
	Poll         time.Duration
	QuiesceLimit time.Duration
	GroupHold    time.Duration
	VerifyEvery  time.Duration
	UndoTimeout  time.Duration
	Log          *slog.Logger
}

// Cutter makes cuts of a host's VMs. Methods are safe for concurrent use.
type Cutter struct {
	*vms.Host
	cfg   Config
	log   *slog.Logger
	store store
	stamp records.Stamp

	mu    sync.Mutex
	open  map[string]*cut // by VM
	ended bool
}

// New makes a Cutter.
func New(host *vms.Host, cfg Config) *Cutter {
	return &Cutter{Host: host, cfg: cfg, log: cfg.Log, store: store{cfg.Dir}, stamp: cfg.Stamp, open: map[string]*cut{}}
}

// Adopt ends what an earlier process with the same directory left open: guests that
// were paused for a group go on, checkpoints of cuts become reference points. What can't be ended now is logged
// and tried again by the next operation on its VM; an error means that the records can't be read.
func (h *Cutter) Adopt(ctx context.Context) error {
	const op = "Open"
	h.releaseHeld(ctx)
	list, err := h.store.vms()
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the records: %w", err)
	}
	for _, vm := range list {
		if err := h.EndStale(ctx, op, vm, nil); err != nil {
			h.log.Warn("what an earlier process left open of a VM is not ended yet; the next operation on the VM tries again", "vm", vm, "err", err)
		}
	}
	return nil
}

// Close closes the disks of open cuts, whose checkpoints stay and are ended by the next Adopt. Idempotent.
func (h *Cutter) Close() error {
	h.mu.Lock()
	var cuts []*cut
	for _, c := range h.open {
		cuts = append(cuts, c)
	}
	h.ended = true
	h.mu.Unlock()
	var err error
	for _, c := range cuts {
		err = errors.Join(err, c.closeDisks())
	}
	return err
}

// undo returns a context for taking something back, which may have ended for the caller.
func (h *Cutter) undo(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), h.cfg.UndoTimeout)
}
