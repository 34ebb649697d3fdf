package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// A backup job needs a running QEMU. For the last delta of a VM that is off,
// the VM is started paused: QEMU opens the disks, and with them the persistent
// bitmaps, and not one instruction of the guest is executed. The end of the cut
// destroys it again. A marker on disk, written before the start, makes sure
// that a paused VM which a crash left behind is known as ours.

const offlineDir = "offline"

// destroyLimit bounds the destruction of a paused VM at the end of a cut.
const destroyLimit = time.Minute

func (h *Host) offlineMark(id dr.VMID) string {
	return filepath.Join(h.cfg.Dir, offlineDir, string(id))
}

// beginOffline starts the VM paused where it is off and takes the cut.
func (h *Host) beginOffline(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	const op = "BeginCut"
	dom, err := h.virt.Find(ctx, op, req.VM)
	if err != nil {
		return nil, err
	}
	state, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return nil, err
	}
	mark := h.offlineMark(req.VM)
	if virt.Active(state) {
		if _, err := os.Stat(mark); err != nil || state != golibvirt.DomainPaused {
			return h.cutter.BeginCut(ctx, req) // it runs: a cut like any other
		}
	} else {
		err := os.MkdirAll(filepath.Dir(mark), 0o750)
		if err == nil {
			err = os.WriteFile(mark, nil, 0o600)
		}
		if err != nil {
			return nil, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "mark VM %s as started for its last cut: %w", dom.Name, err)
		}
		err = h.virt.Call(ctx, op, "start VM "+dom.Name+" paused", func(c *virt.Conn) error {
			_, err := c.DomainCreateWithFlags(dom, uint32(golibvirt.DomainStartPaused))
			return err
		})
		if err != nil {
			return nil, errors.Join(err, os.Remove(mark))
		}
	}
	c, err := h.cutter.BeginCut(ctx, req)
	if err != nil {
		return nil, errors.Join(err, h.endOffline(ctx, dom, mark))
	}
	return &offlineCut{Cut: c, host: h, dom: dom, mark: mark}, nil
}

// endOffline destroys the paused VM.
func (h *Host) endOffline(ctx context.Context, dom golibvirt.Domain, mark string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyLimit)
	defer cancel()
	if err := destroy(ctx, h.virt, "EndCut", dom); err != nil {
		return err
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindUnavailable, "libvirt.EndCut", "unmark VM %s: %w", dom.Name, err)
	}
	return nil
}

// dropOffline destroys a VM that an earlier process started paused and left behind.
func (h *Host) dropOffline(ctx context.Context, id dr.VMID) error {
	mark := h.offlineMark(id)
	if _, err := os.Stat(mark); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	dom, err := h.virt.Find(ctx, "BeginCut", id)
	if err != nil {
		return err
	}
	state, err := h.virt.State(ctx, "BeginCut", dom)
	if err != nil {
		return err
	}
	if state != golibvirt.DomainPaused {
		return os.Remove(mark) // somebody has started it since
	}
	return h.endOffline(ctx, dom, mark)
}

// offlineCut is a cut whose VM runs, paused, for the cut only.
type offlineCut struct {
	hypervisor.Cut
	host *Host
	dom  golibvirt.Domain
	mark string

	once sync.Once
	err  error
}

// End ends the cut and destroys the paused VM; persistent bitmaps are written by QEMU's orderly end.
func (c *offlineCut) End(ctx context.Context) error {
	return errors.Join(c.Cut.End(ctx), c.off(ctx))
}

// Abort ends the cut, deletes its token and destroys the paused VM.
func (c *offlineCut) Abort(ctx context.Context) error {
	return errors.Join(c.Cut.Abort(ctx), c.off(ctx))
}

func (c *offlineCut) off(ctx context.Context) error {
	c.once.Do(func() { c.err = c.host.endOffline(ctx, c.dom, c.mark) })
	return c.err
}
