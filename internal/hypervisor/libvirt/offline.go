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
// that a paused VM which a crash left behind is known as ours; the next process destroys it.

const offlineDir = "offline"

const (
	// destroyLimit bounds the destruction of a paused VM at the end of a cut.
	destroyLimit = time.Minute
	// lateStart is how long libvirt may take to execute a start whose client has gone.
	lateStart = 45 * time.Second
)

func (h *Host) offlineMark(id dr.VMID) string {
	return filepath.Join(h.cfg.Dir, offlineDir, string(id))
}

// poweredOn is a VM that runs, paused, for a cut only; nil: it does not.
type poweredOn struct {
	host *Host
	dom  golibvirt.Domain
	mark string

	mu  sync.Mutex
	off bool
}

// powerForCut starts a VM paused where the request asks for it and it is off,
// and destroys one that an earlier cut left behind where it does not.
func (h *Host) powerForCut(ctx context.Context, req hypervisor.CutRequest) (*poweredOn, error) {
	const op = "BeginCut"
	if !req.Offline {
		return nil, h.dropOffline(ctx, req.VM)
	}
	dom, err := h.virt.Find(ctx, op, req.VM)
	if err != nil {
		return nil, err
	}
	h.stopLeftover(req.VM) // from here on it is this cut's
	state, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return nil, err
	}
	o := &poweredOn{host: h, dom: dom, mark: h.offlineMark(req.VM)}
	if virt.Active(state) {
		if _, err := os.Stat(o.mark); err != nil || state != golibvirt.DomainPaused {
			return nil, nil // it runs: a cut like any other
		}
		return o, nil
	}
	if err := os.WriteFile(o.mark, nil, 0o600); err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "mark VM %s as started for its last cut: %w", dom.Name, err)
	}
	h.cutter.StartsPaused(dom)
	h.cfg.stage("starting")
	err = h.virt.Call(ctx, op, "start VM "+dom.Name+" paused", func(c *virt.Conn) error {
		_, err := c.DomainCreateWithFlags(dom, uint32(golibvirt.DomainStartPaused))
		return err
	})
	h.cfg.stage("started")
	if err == nil {
		return o, nil
	}
	if s, serr := h.virt.State(ctx, op, dom); serr == nil && s == golibvirt.DomainPaused {
		return o, nil // a start of an earlier process came through
	}
	if virt.Answered(err) {
		return nil, errors.Join(err, os.Remove(o.mark))
	}
	h.watchLeftover(req.VM) // it may start yet
	return nil, err
}

// end destroys the paused VM; persistent bitmaps are written by QEMU's orderly
// end. If it can't, the background goes on.
func (o *poweredOn) end(ctx context.Context) error {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.off {
		return nil
	}
	if err := o.host.endOffline(ctx, o.dom, o.mark); err != nil {
		o.host.watchLeftover(virt.ID(o.dom.UUID))
		return err
	}
	o.off = true
	return nil
}

// wrap makes the end of a cut that of its VM.
func (o *poweredOn) wrap(c hypervisor.Cut) hypervisor.Cut {
	if o == nil {
		return c
	}
	return &offlineCut{Cut: c, vm: o}
}

// offlineCut is a cut whose VM runs, paused, for the cut only.
type offlineCut struct {
	hypervisor.Cut
	vm *poweredOn
}

// End ends the cut and destroys the paused VM.
func (c *offlineCut) End(ctx context.Context) error {
	return errors.Join(c.Cut.End(ctx), c.vm.end(ctx))
}

// Abort ends the cut, deletes its token and destroys the paused VM.
func (c *offlineCut) Abort(ctx context.Context) error {
	return errors.Join(c.Cut.Abort(ctx), c.vm.end(ctx))
}

// endOffline destroys the paused VM. One that somebody has resumed meanwhile is theirs.
func (h *Host) endOffline(ctx context.Context, dom golibvirt.Domain, mark string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyLimit)
	defer cancel()
	state, err := h.virt.State(ctx, "EndCut", dom)
	if err == nil && state == golibvirt.DomainPaused {
		err = destroy(ctx, h.virt, "EndCut", dom)
	}
	if err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
		return err
	}
	return unmark(mark)
}

func unmark(mark string) error {
	if err := os.Remove(mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindUnavailable, "libvirt.EndCut", "delete the mark of a VM that was started for its last cut: %w", err)
	}
	return nil
}

// dropOffline destroys a VM that an earlier cut started paused and left behind.
func (h *Host) dropOffline(ctx context.Context, id dr.VMID) error {
	mark := h.offlineMark(id)
	if _, err := os.Stat(mark); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	dom, err := h.virt.Find(ctx, "BeginCut", id)
	if dr.CodeOf(err) == dr.CodeVMNotFound {
		return errors.Join(err, unmark(mark))
	}
	if err != nil {
		return err
	}
	state, err := h.virt.State(ctx, "BeginCut", dom)
	if err != nil {
		return err
	}
	switch state {
	case golibvirt.DomainPaused:
		return h.endOffline(ctx, dom, mark)
	case golibvirt.DomainShutoff: // its start may be under way
		return nil
	}
	return unmark(mark) // somebody has started it since
}

// leftover is a background loop that destroys a VM which an earlier process started paused.
type leftover struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// findLeftovers begins such a loop for every mark.
func (h *Host) findLeftovers() error {
	marks, err := os.ReadDir(filepath.Join(h.cfg.Dir, offlineDir))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Open", "look for VMs that an earlier process started for a cut: %w", err)
	}
	for _, m := range marks {
		if _, err := virt.ParseUUID(m.Name()); err == nil {
			h.watchLeftover(dr.VMID(m.Name()))
		}
	}
	return nil
}

// watchLeftover destroys the VM when it is found paused, and gives up when no
// start can be under way any more. An offline cut of the VM takes over from it.
func (h *Host) watchLeftover(id dr.VMID) {
	l := &leftover{done: make(chan struct{})}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(h.ctx)
	h.mu.Lock()
	already := h.leftovers[id] != nil
	if !already && ctx.Err() == nil {
		h.leftovers[id] = l
		h.wg.Add(1)
	}
	h.mu.Unlock()
	if already || ctx.Err() != nil {
		l.cancel()
		return
	}
	go func() {
		defer h.wg.Done()
		defer close(l.done)
		defer func() {
			l.cancel()
			h.mu.Lock()
			if h.leftovers[id] == l {
				delete(h.leftovers, id)
			}
			h.mu.Unlock()
		}()
		mark := h.offlineMark(id)
		for calm := time.Now(); ; {
			err := h.dropOffline(ctx, id)
			_, gone := os.Stat(mark)
			switch {
			case errors.Is(gone, os.ErrNotExist):
				return
			case err != nil:
				h.log.Warn("a VM that was started for its last cut can't be cleaned up yet", "vm", id, "err", err)
				calm = time.Now()
			case time.Since(calm) > lateStart:
				if err := unmark(mark); err != nil {
					h.log.Warn("clean up after an offline cut", "vm", id, "err", err)
				}
				return
			}
			if virt.Sleep(ctx, 500*time.Millisecond) != nil {
				return
			}
		}
	}()
}

func (h *Host) stopLeftover(id dr.VMID) {
	h.mu.Lock()
	l := h.leftovers[id]
	delete(h.leftovers, id)
	h.mu.Unlock()
	if l != nil {
		l.cancel()
		<-l.done
	}
}
