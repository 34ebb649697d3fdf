package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// State of a VM. A guest that crashed and whose process was kept for a look
// counts as paused.
func (h *Host) State(ctx context.Context, id dr.VMID) (hypervisor.PowerState, error) {
	dom, err := h.virt.Find(ctx, "State", id)
	if err != nil {
		return "", err
	}
	s, err := h.virt.State(ctx, "State", dom)
	if err != nil {
		return "", err
	}
	switch s {
	case golibvirt.DomainShutoff:
		return hypervisor.PowerOff, nil
	case golibvirt.DomainPaused, golibvirt.DomainPmsuspended, golibvirt.DomainCrashed:
		return hypervisor.PowerPaused, nil
	}
	return hypervisor.PowerOn, nil
}

// Start a VM, or resume it if it is paused. Idempotent.
func (h *Host) Start(ctx context.Context, id dr.VMID) error {
	const op = "Start"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return err
	}
	unlock, err := h.virt.Lock(ctx, op, id)
	if err != nil {
		return err
	}
	defer unlock()
	return start(ctx, h.virt, op, dom)
}

// start starts or resumes a domain; nothing if it runs.
func start(ctx context.Context, c *virt.Client, op string, dom golibvirt.Domain) error {
	s, err := c.State(ctx, op, dom)
	if err != nil {
		return err
	}
	switch s {
	case golibvirt.DomainShutoff:
		err = c.Call(ctx, op, "start VM "+dom.Name, func(l *virt.Conn) error { return l.DomainCreate(dom) })
		if err != nil && virt.Answered(err) {
			if now, serr := c.State(ctx, op, dom); serr == nil && virt.Active(now) {
				return nil // somebody else was faster
			}
		}
		return err
	case golibvirt.DomainPaused:
		return c.Call(ctx, op, "resume VM "+dom.Name, func(l *virt.Conn) error { return l.DomainResume(dom) })
	}
	return nil
}

// Shutdown asks the guest again every few seconds: a guest that is still
// booting misses the first request.
func (h *Host) Shutdown(ctx context.Context, id dr.VMID) error {
	const op = "Shutdown"
	const again = 10 * time.Second
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return err
	}
	var asked time.Time
	for {
		s, err := h.virt.State(ctx, op, dom)
		if dr.CodeOf(err) == dr.CodeVMNotFound {
			return nil // a transient VM is gone once it is off
		}
		if err == nil {
			switch s {
			case golibvirt.DomainShutoff:
				return nil
			case golibvirt.DomainPaused, golibvirt.DomainCrashed, golibvirt.DomainPmsuspended:
				return dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "libvirt."+op, "VM %s is paused or crashed and can't shut down", dom.Name)
			}
			if time.Since(asked) > again {
				err = h.virt.Call(ctx, op, "ask VM "+dom.Name+" to shut down", func(c *virt.Conn) error { return c.DomainShutdownFlags(dom, 0) })
				if err == nil {
					asked = time.Now()
				}
			}
		}
		if err != nil && ctx.Err() == nil && dr.CodeOf(err) != dr.CodeVMNotRunning {
			return err
		}
		if err := virt.Sleep(ctx, 200*time.Millisecond); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "libvirt."+op, "VM %s did not shut down in time: %w", dom.Name, err)
		}
	}
}

// Destroy cuts the power. QEMU is ended so that it can save its dirty bitmaps;
// it is killed only if it does not end.
func (h *Host) Destroy(ctx context.Context, id dr.VMID) error {
	const op = "Destroy"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return err
	}
	unlock, err := h.virt.Lock(ctx, op, id)
	if err != nil {
		return err
	}
	defer unlock()
	return destroy(ctx, h.virt, op, dom)
}

// destroy cuts a domain's power; nothing if it is off.
func destroy(ctx context.Context, c *virt.Client, op string, dom golibvirt.Domain) error {
	s, err := c.State(ctx, op, dom)
	if err != nil || !virt.Active(s) {
		return err
	}
	if err := awaitStart(ctx, c, op, dom); err != nil {
		return err
	}
	err = c.Call(ctx, op, "cut the power of VM "+dom.Name, func(l *virt.Conn) error {
		err := l.DomainDestroyFlags(dom, golibvirt.DomainDestroyGraceful)
		if virt.Answered(err) && !virt.IsCode(err, golibvirt.ErrNoDomain, golibvirt.ErrOperationInvalid) {
			err = l.DomainDestroyFlags(dom, 0)
		}
		return err
	})
	if virt.Answered(err) {
		if now, serr := c.State(ctx, op, dom); serr == nil && !virt.Active(now) || dr.CodeOf(serr) == dr.CodeVMNotFound {
			return nil
		}
	}
	return err
}

// startLimit is how long a start that is under way may take before the VM is destroyed in the midst of it.
const startLimit = 30 * time.Second

// awaitStart waits for a start that is under way: a QEMU that is ended after it
// has opened its disks and before it handles signals leaves the bitmaps in the
// disks marked as in use, and tracking is lost.
func awaitStart(ctx context.Context, c *virt.Client, op string, dom golibvirt.Domain) error {
	for end := time.Now().Add(startLimit); ; {
		starting, err := c.StartingUp(ctx, op, dom)
		if err != nil || !starting || time.Now().After(end) {
			return err
		}
		if err := virt.Sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
