package libvirt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/cutting"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Host is a connection to a libvirt host.
type Host struct {
	cfg      Config
	log      *slog.Logger
	virt     *virt.Client
	cutter   *cutting.Cutter
	machines *machines

	ctx    context.Context // ends with Close; for background work only
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	leftovers map[dr.VMID]*leftover
}

var (
	_ hypervisor.Host        = (*Host)(nil)
	_ hypervisor.GroupSource = (*Host)(nil)
	_ hypervisor.Estimator   = (*Host)(nil)
)

// Open connects to the host, prepares the product directory, and sees to what
// an earlier process may have left: guests held for a group cut are resumed, and
// in the background frozen ones thawed, open backup jobs ended, and VMs that
// were started for their last cut destroyed.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "libvirt.Open", "configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	for _, d := range append([]string{cfg.Dir, filepath.Join(cfg.Dir, bootDir), filepath.Join(cfg.Dir, offlineDir)}, cutting.Dirs(cfg.Dir)...) {
		err := os.MkdirAll(d, 0o750)
		if err == nil {
			err = virt.Give(cfg.URI, cfg.QEMUUser, d)
		}
		if err != nil {
			return nil, dr.Errorf(dr.KindUnavailable, "libvirt.Open", "prepare directory %s: %w", d, err)
		}
	}
	client, err := virt.Open(ctx, virt.Config{URI: cfg.URI, Sockets: cfg.sockets(), CallTimeout: cfg.CallTimeout, QEMUUser: cfg.QEMUUser})
	if err != nil {
		return nil, err
	}
	cutter, err := cutting.Open(client, cutting.Config{Dir: cfg.Dir, ScratchReserve: cfg.ScratchReserve, MaxCutAge: cfg.MaxCutAge,
		CallTimeout: cfg.CallTimeout, AgentTimeout: cfg.AgentTimeout, FreezeLimit: cfg.FreezeLimit, GroupHold: cfg.GroupHold, Log: cfg.Log, Stage: cfg.stage})
	if err != nil {
		client.Close()
		return nil, err
	}
	h := &Host{cfg: cfg, log: cfg.Log, virt: client, cutter: cutter, machines: &machines{cfg: cfg, virt: client}, leftovers: map[dr.VMID]*leftover{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.findLeftovers(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close ends the backup jobs of open cuts, whose tokens stay, then background
// work and connections. Idempotent.
func (h *Host) Close() error {
	h.cancel()
	h.wg.Wait()
	err := h.cutter.Close()
	h.virt.Close()
	return err
}

// BeginCut starts a pull backup job.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	o, err := h.powerForCut(ctx, req)
	if err != nil {
		return nil, err
	}
	c, err := h.cutter.BeginCut(ctx, req)
	if err != nil {
		return nil, errors.Join(err, o.end(ctx))
	}
	return o.wrap(c), nil
}

// BeginGroup starts pull backup jobs of several VMs at one instant.
func (h *Host) BeginGroup(ctx context.Context, reqs []hypervisor.CutRequest) ([]hypervisor.Cut, error) {
	if err := hypervisor.ValidateGroup(reqs); err != nil {
		return nil, err
	}
	var on []*poweredOn
	off := func(err error) error {
		for _, o := range on {
			err = errors.Join(err, o.end(ctx))
		}
		return err
	}
	for _, req := range reqs {
		o, err := h.powerForCut(ctx, req)
		if err != nil {
			return nil, off(err)
		}
		on = append(on, o)
	}
	cuts, err := h.cutter.BeginGroup(ctx, reqs)
	if err != nil {
		return nil, off(err)
	}
	for i := range cuts {
		cuts[i] = on[i].wrap(cuts[i])
	}
	return cuts, nil
}

// Estimate asks libvirt for the size of a checkpoint.
func (h *Host) Estimate(ctx context.Context, id dr.VMID, base string) (int64, error) {
	return h.cutter.Estimate(ctx, id, base)
}

// Forget deletes checkpoints.
func (h *Host) Forget(ctx context.Context, id dr.VMID, keep []string) error {
	return h.cutter.Forget(ctx, id, keep)
}

// Boot defines and starts a recovery VM.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	return h.machines.Boot(ctx, spec)
}

// MakeLocal pulls each disk's backing image into its local one.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	return h.machines.MakeLocal(ctx, id, progress)
}

// Remove undoes Boot.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) error {
	return h.machines.Remove(ctx, id, owner)
}

// Info describes the host.
func (h *Host) Info(ctx context.Context) (hypervisor.HostInfo, error) {
	var i hypervisor.HostInfo
	err := h.virt.Call(ctx, "Info", "describe the host", func(c *virt.Conn) error {
		name, err := c.ConnectGetHostname()
		if err != nil {
			return err
		}
		_, mem, cpus, _, _, _, _, _, err := c.NodeGetInfo()
		if err != nil {
			return err
		}
		qemu, err := c.ConnectGetVersion()
		if err != nil {
			return err
		}
		lv, err := c.ConnectGetLibVersion()
		if err != nil {
			return err
		}
		i = hypervisor.HostInfo{Name: name, Hypervisor: fmt.Sprintf("QEMU %s, libvirt %s", version(qemu), version(lv)), CPUs: int(cpus), MemoryMB: int(mem >> 10)}
		return nil
	})
	return i, err
}

func version(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }
