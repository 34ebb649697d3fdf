package hyperv

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/booting"
	"holdfast/internal/hypervisor/hyperv/internal/cutting"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/records"
	"holdfast/internal/hypervisor/hyperv/internal/vms"
)

// Host is a Hyper-V host.
type Host struct {
	cfg    Config
	log    *slog.Logger
	ms     *msvm.Client
	vms    *vms.Host
	stamp  records.Stamp
	lock   *os.File // of Config.Dir
	cutter *cutting.Cutter
	booter *booting.Booter

	mu   sync.Mutex
	held map[string]struct{} // "VM disk" that are open for writing
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
// next operation on its VM. One process at a time may use a directory:
// to a second one Open is dr.KindConflict. Processes with other directories may use the same host.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	const op = "Open"
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "hyperv.Open", "configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	dir, lock, err := records.Directory(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ms := msvm.New(cfg.Session, msvm.Config{CallTimeout: cfg.CallTimeout, JobTimeout: cfg.JobTimeout, Poll: cfg.Poll})
	computer, err := ms.Computer(ctx)
	if err != nil {
		return nil, errors.Join(msvm.Wrap(op, "ask the host for its name", "", err), ms.Close(), lock.Close())
	}
	h := &Host{cfg: cfg, log: cfg.Log, ms: ms, lock: lock, stamp: records.StampOf(computer.Name, dir), held: map[string]struct{}{},
		vms: vms.New(ms, vms.Config{CallTimeout: cfg.CallTimeout, MergeWait: cfg.MergeWait, Poll: cfg.Poll})}
	h.cutter = cutting.New(h.vms, cutting.Config{Dir: cfg.Dir, Disks: cfg.Disks, Stamp: h.stamp, Poll: cfg.Poll, QuiesceLimit: cfg.QuiesceLimit,
		GroupHold: cfg.GroupHold, VerifyEvery: cfg.VerifyEvery, UndoTimeout: cfg.UndoTimeout, Log: cfg.Log})
	h.booter = booting.New(h.vms, booting.Config{Dir: cfg.Dir, Disks: cfg.Disks, CallTimeout: cfg.CallTimeout, Progress: cfg.Progress, Log: cfg.Log})
	if err := h.cutter.Adopt(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close closes the disks of open cuts, whose checkpoints stay and are ended by the
// next Open, then the session. Idempotent.
func (h *Host) Close() error {
	err := errors.Join(h.cutter.Close(), h.ms.Close())
	if lerr := h.lock.Close(); lerr != nil && !errors.Is(lerr, os.ErrClosed) {
		err = errors.Join(err, lerr)
	}
	return err
}

// load reads one VM.
func (h *Host) load(ctx context.Context, op string, id dr.VMID, depth msvm.Depth) (*msvm.VM, *msvm.World, error) {
	return h.vms.Load(ctx, op, id, depth)
}

// BeginCut makes a recovery checkpoint, whose disks are frozen.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	return h.cutter.BeginCut(ctx, req)
}

// BeginGroup pauses the guests, makes a checkpoint of each, and lets them go on.
func (h *Host) BeginGroup(ctx context.Context, reqs []hypervisor.CutRequest) ([]hypervisor.Cut, error) {
	return h.cutter.BeginGroup(ctx, reqs)
}

// Estimate asks for the changes of the VM's disks since a token, as they are now.
func (h *Host) Estimate(ctx context.Context, id dr.VMID, token string) (int64, error) {
	return h.cutter.Estimate(ctx, id, token)
}

// Forget deletes reference points and leftovers of Holdfast.
func (h *Host) Forget(ctx context.Context, id dr.VMID, keep []string) error {
	return h.cutter.Forget(ctx, id, keep)
}

// Purge deletes all checkpoints and reference points of a VM that are named by
// Holdfast, also those that the records of a lost directory knew, or a doctor that died had made.
// Use it only while no other agent works on the host: it takes the tokens of all.
// dr.KindConflict while a cut of the VM is open in this process.
func (h *Host) Purge(ctx context.Context, id dr.VMID) error { return h.cutter.Purge(ctx, id) }

// Boot defines and starts a recovery VM on disks that it fills first, which takes
// its time: give it a context accordingly. The image of a disk is BootDisk.Path
// with the extension .vhdx.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	return h.booter.Boot(ctx, spec)
}

// MakeLocal reports that everything is local: Boot has copied it.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	return h.booter.MakeLocal(ctx, id, progress)
}

// Remove deletes a recovery VM with its disks.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) error {
	return h.booter.Remove(ctx, id, owner)
}
