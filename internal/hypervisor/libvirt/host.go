package libvirt

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

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
}

var _ hypervisor.Host = (*Host)(nil)

// Open connects to the host, prepares the product directory, and thaws guests
// that an earlier process may have left frozen (in the background).
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "libvirt.Open", "configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	for _, d := range append([]string{cfg.Dir, filepath.Join(cfg.Dir, bootDir)}, cutting.Dirs(cfg.Dir)...) {
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
		CallTimeout: cfg.CallTimeout, AgentTimeout: cfg.AgentTimeout, FreezeLimit: cfg.FreezeLimit, Log: cfg.Log})
	if err != nil {
		client.Close()
		return nil, err
	}
	return &Host{cfg: cfg, log: cfg.Log, virt: client, cutter: cutter, machines: &machines{cfg: cfg, virt: client}}, nil
}

// Close ends the backup jobs of open cuts, whose tokens stay, then background
// work and connections. Idempotent.
func (h *Host) Close() error {
	err := h.cutter.Close()
	h.virt.Close()
	return err
}

// BeginCut starts a pull backup job.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	if req.Offline {
		return h.beginOffline(ctx, req)
	}
	if err := h.dropOffline(ctx, req.VM); err != nil {
		return nil, err
	}
	return h.cutter.BeginCut(ctx, req)
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
