package hyperv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// Host is a Hyper-V host.
type Host struct {
	cfg   Config
	log   *slog.Logger
	ms    *msvm.Client
	store store
	locks keyed
	facts factCache

	mu    sync.Mutex
	open  map[string]*cut     // by VM
	held  map[string]struct{} // "VM disk" that are open for writing
	ended bool
}

var (
	_ hypervisor.Host        = (*Host)(nil)
	_ hypervisor.GroupSource = (*Host)(nil)
	_ hypervisor.Estimator   = (*Host)(nil)
	_ hypervisor.Patcher     = (*Host)(nil)
)

// Open prepares the product directory, asks the host for its name, and ends what
// an earlier process with the same directory left open: checkpoints of cuts
// become reference points (a cut may have been read in full), guests paused for
// a group are resumed. What can't be ended now is logged and tried again by the
// next operation on its VM. One process at a time may use a directory.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	const op = "Open"
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "hyperv.Open", "configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	for _, d := range []string{tokenDir, bootDir, holdDir} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o750); err != nil {
			return nil, dr.Errorf(dr.KindUnavailable, "hyperv.Open", "prepare directory %s: %w", cfg.Dir, err)
		}
	}
	h := &Host{cfg: cfg, log: cfg.Log, store: store{cfg.Dir}, open: map[string]*cut{}, held: map[string]struct{}{},
		ms: msvm.New(cfg.Session, msvm.Config{CallTimeout: cfg.CallTimeout, JobTimeout: cfg.JobTimeout, Poll: cfg.Poll})}
	if _, err := h.ms.Computer(ctx); err != nil {
		return nil, errors.Join(msvm.Wrap(op, "ask the host for its name", "", err), h.Close())
	}
	h.releaseHeld(ctx)
	vms, err := h.store.vms()
	if err != nil {
		return nil, errors.Join(dr.Errorf(dr.KindUnavailable, "hyperv.Open", "read the records: %w", err), h.Close())
	}
	for _, vm := range vms {
		if err := h.endStale(ctx, op, vm, nil); err != nil {
			h.log.Warn("what an earlier process left open of a VM is not ended yet; the next operation on the VM tries again", "vm", vm, "err", err)
		}
	}
	return h, nil
}

// Close closes the disks of open cuts, whose checkpoints stay and are ended by the
// next Open, then the session. Idempotent.
func (h *Host) Close() error {
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
	return errors.Join(err, h.ms.Close())
}

// vmID checks the id of a VM.
func vmID(op string, id dr.VMID) (string, error) {
	s := strings.ToLower(string(id))
	if !msvm.IsGUID(s) {
		return "", dr.New(dr.KindNotFound, dr.CodeVMNotFound, "hyperv."+op, "%q is not the id of a VM", string(id))
	}
	return s, nil
}

// load reads one VM.
func (h *Host) load(ctx context.Context, op string, id dr.VMID, depth msvm.Depth) (*msvm.VM, *msvm.World, error) {
	s, err := vmID(op, id)
	if err != nil {
		return nil, nil, err
	}
	w, err := h.ms.Load(ctx, s, depth)
	if err != nil {
		return nil, nil, msvm.Wrap(op, fmt.Sprintf("look up VM %s", s), "", err)
	}
	vm := w.VMs[s]
	if vm == nil {
		return nil, nil, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "hyperv."+op, "the host does not know VM %s", s)
	}
	return vm, w, nil
}

// undo returns a context for taking something back, which may have ended for the caller.
func (h *Host) undo(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), h.cfg.UndoTimeout)
}

// keyed are locks by name; waiting for one ends with the context.
type keyed struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

func (k *keyed) lock(ctx context.Context, op, name string) (func(), error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]chan struct{}{}
	}
	l := k.m[name]
	if l == nil {
		l = make(chan struct{}, 1)
		k.m[name] = l
	}
	k.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	default:
	}
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, msvm.Wrap(op, "wait for another operation on VM "+name, "", ctx.Err())
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
