package sim

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// State of a VM.
func (h *Host) State(ctx context.Context, id dr.VMID) (hypervisor.PowerState, error) {
	if _, err := h.enter(ctx, "State", id); err != nil {
		return "", err
	}
	v, err := h.world.find("State", id)
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.power, nil
}

// Start a VM; nothing if it runs, resumes it if it is paused.
func (h *Host) Start(ctx context.Context, id dr.VMID) (err error) {
	leave, err := h.enter(ctx, "Start", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	v, err := h.world.find("Start", id)
	if err != nil {
		return err
	}
	v.PowerOn()
	return nil
}

// Shutdown asks the guest.
func (h *Host) Shutdown(ctx context.Context, id dr.VMID) (err error) {
	leave, err := h.enter(ctx, "Shutdown", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	v, err := h.world.find("Shutdown", id)
	if err != nil {
		return err
	}
	v.mu.Lock()
	power, deaf := v.power, v.deaf
	v.mu.Unlock()
	switch {
	case power == hypervisor.PowerOff:
		return nil
	case power == hypervisor.PowerPaused:
		return dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "sim.Shutdown", "VM %s is paused and can't shut down", v.info.Name)
	case deaf:
		<-ctx.Done()
		return dr.New(dr.KindUnavailable, dr.CodeShutdownTimeout, "sim.Shutdown", "VM %s did not shut down in time: %w", v.info.Name, ctx.Err())
	}
	v.PowerOff()
	return nil
}

// Destroy cuts the power; tokens survive, as a hypervisor that ends orderly saves them.
func (h *Host) Destroy(ctx context.Context, id dr.VMID) (err error) {
	leave, err := h.enter(ctx, "Destroy", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	v, err := h.world.find("Destroy", id)
	if err != nil {
		return err
	}
	v.mu.Lock()
	off := v.power == hypervisor.PowerOff
	v.mu.Unlock()
	if !off {
		v.PowerOff()
	}
	return nil
}

func (w *world) byName(name string) *VM {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.vms {
		if v.info.Name == name {
			return v
		}
	}
	return nil
}

// Boot defines and starts a recovery VM on its NBD sockets.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (_ dr.VMID, err error) {
	leave, err := h.enter(ctx, "Boot", "")
	if err != nil {
		return "", err
	}
	defer leave(&err)
	const op = "sim.Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	h.world.boot.Lock()
	defer h.world.boot.Unlock()
	if old := h.world.byName(spec.Name); old != nil {
		if old.owner != spec.Owner {
			return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "host %s has a VM named %s that is not %s's", h.world.cfg.Name, spec.Name, spec.Owner)
		}
		old.PowerOn()
		return old.ID(), nil
	}
	id := newUUID()
	if spec.KeepUUID && spec.Config.VM.ID != "" {
		id = spec.Config.VM.ID
		if h.VM(id) != nil {
			return "", dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "host %s has a VM with UUID %s already", h.world.cfg.Name, id)
		}
	}
	nics, err := h.world.connectNICs(spec)
	if err != nil {
		return "", err
	}
	v := &VM{world: h.world, owner: spec.Owner, tokens: map[string]*token{}, power: hypervisor.PowerOn, info: spec.Config.VM}
	v.info.ID, v.info.Name, v.info.NICs, v.info.Disks, v.info.Gone = id, spec.Name, nics, nil, false
	if spec.CPUs > 0 {
		v.info.CPUs = spec.CPUs
	}
	if spec.MemoryMB > 0 {
		v.info.MemoryMB = spec.MemoryMB
	}
	if err := h.world.connectDisks(ctx, v, spec.Disks); err != nil {
		disconnect(v)
		return "", errors.Join(err, removeFiles(v.disks))
	}
	h.world.mu.Lock()
	h.world.vms[id] = v
	h.world.mu.Unlock()
	h.world.emit(id, "started")
	if f := h.world.cfg.OnBoot; f != nil {
		f(v)
	}
	return id, nil
}

// connectNICs maps the NICs to the network asked for.
func (w *world) connectNICs(spec hypervisor.BootSpec) ([]dr.NIC, error) {
	nics := slices.Clone(spec.Config.VM.NICs)
	if len(spec.Adapters) > 0 {
		for i := range nics {
			n := spec.NIC(nics[i].MAC)
			if nics[i].Network, nics[i].Type, nics[i].VLAN = n.Network, "network", n.VLAN; n.Network == "" {
				nics[i].Type = "down"
			} else if !slices.ContainsFunc(w.cfg.Networks, func(x hypervisor.Network) bool { return x.Name == n.Network }) {
				return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "sim.Boot", "host %s has no network %q", w.cfg.Name, n.Network)
			}
		}
		return nics, nil
	}
	switch spec.Network {
	case "":
		for i := range nics {
			nics[i].Network, nics[i].Type = "", "down"
		}
		return nics, nil
	case hypervisor.IsolatedNetwork:
	default:
		if !slices.ContainsFunc(w.cfg.Networks, func(n hypervisor.Network) bool { return n.Name == spec.Network }) {
			return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "sim.Boot", "host %s has no network %q", w.cfg.Name, spec.Network)
		}
	}
	for i := range nics {
		nics[i].Network, nics[i].Type = spec.Network, "network"
	}
	return nics, nil
}

func (w *world) connectDisks(ctx context.Context, v *VM, disks []hypervisor.BootDisk) error {
	const op = "sim.Boot"
	for i, b := range disks {
		d := newDisk(b.ID, b.Path, b.Size, w.cfg.Granularity)
		if err := os.MkdirAll(filepath.Dir(b.Path), 0o750); err != nil {
			return dr.Errorf(dr.KindUnavailable, op, "create the directory of %s: %w", b.Path, err)
		}
		f, err := os.OpenFile(b.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return dr.Errorf(dr.KindUnavailable, op, "create the local image of disk %s: %w", b.ID, err)
		}
		if err := f.Close(); err != nil {
			return dr.Errorf(dr.KindUnavailable, op, "create the local image of disk %s: %w", b.ID, err)
		}
		v.disks = append(v.disks, d)
		v.info.Disks = append(v.info.Disks, dr.Disk{ID: b.ID, Path: b.Path, Format: "sim", Size: b.Size, Boot: i == 0})
		if w.cfg.NoNBD || b.Socket == "" {
			continue
		}
		if d.remote, err = w.cfg.Dial(ctx, b.Socket, b.Export); err != nil {
			return dr.New(dr.KindUnavailable, "", op, "connect disk %s to its recovery point at %s: %w", b.ID, b.Socket, err)
		}
		if d.remote.Size() > b.Size {
			return dr.Errorf(dr.KindInvalid, op, "disk %s is %d bytes but its recovery point has %d", b.ID, b.Size, d.remote.Size())
		}
		if err := v.pull(ctx, d, []int64{0}); err != nil { // the firmware reads the boot sector
			return dr.Errorf(dr.KindUnavailable, op, "read disk %s: %w", b.ID, err)
		}
	}
	return nil
}

// disconnect closes the connections to the recovery point.
func disconnect(v *VM) {
	v.mu.Lock()
	var open []Remote
	for _, d := range v.disks {
		if d.remote != nil {
			open = append(open, d.remote)
		}
	}
	v.mu.Unlock()
	for _, r := range open {
		_ = r.Close() // read-only: nothing to lose
	}
}

// MakeLocal copies the rest of the disks from their sockets.
func (h *Host) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) (err error) {
	leave, err := h.enter(ctx, "MakeLocal", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	v, err := h.world.find("MakeLocal", id)
	if err != nil {
		return err
	}
	v.mu.Lock()
	disks, running := slices.Clone(v.disks), v.power != hypervisor.PowerOff
	v.mu.Unlock()
	var done, total int64
	for _, d := range disks {
		total += d.size
	}
	for _, d := range disks {
		v.mu.Lock()
		r, pages := d.remote, (d.size+pageSize-1)/pageSize
		v.mu.Unlock()
		if r != nil && !running {
			return dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "sim.MakeLocal", "VM %s is not running", v.info.Name)
		}
		for i := int64(0); r != nil && i < pages; i++ {
			if err := ctxErr(ctx, "MakeLocal"); err != nil {
				return err
			}
			if err := v.pull(ctx, d, []int64{i}); err != nil {
				return dr.Errorf(dr.KindUnavailable, "sim.MakeLocal", "make disk %s of VM %s local: %w", d.id, v.info.Name, err)
			}
			if progress != nil && i%16 == 0 {
				progress(done+i*pageSize, total)
			}
		}
		v.mu.Lock()
		d.remote = nil
		if v.job != nil && v.job.images[d.id] != nil {
			v.job.images[d.id].remote = nil // pull has completed it too
		}
		v.mu.Unlock()
		if r != nil {
			_ = r.Close() // read-only: nothing to lose
		}
		done += d.size
	}
	if progress != nil {
		progress(total, total)
	}
	return nil
}

// Local reports whether no disk depends on a socket any more.
func (v *VM) Local() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !slices.ContainsFunc(v.disks, func(d *disk) bool { return d.remote != nil })
}

// Remove undoes Boot.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) (err error) {
	leave, err := h.enter(ctx, "Remove", id)
	if err != nil {
		return err
	}
	defer leave(&err)
	h.world.boot.Lock()
	defer h.world.boot.Unlock()
	v := h.VM(id)
	if id == "" {
		if v = h.ownedBy(owner); v != nil {
			id = v.ID()
		}
	}
	if v == nil {
		return nil
	}
	if v.owner == "" || v.owner != owner {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "sim.Remove", "VM %s was not made by %s and is left alone", v.info.Name, owner)
	}
	stop(v, hypervisor.PowerOff, false)
	disconnect(v)
	if err := removeFiles(v.disks); err != nil {
		return dr.Errorf(dr.KindUnavailable, "sim.Remove", "delete the disks of VM %s: %w", v.info.Name, err)
	}
	h.world.mu.Lock()
	delete(h.world.vms, id)
	h.world.mu.Unlock()
	h.world.emit(id, "undefined")
	return nil
}

// Screenshot draws a small picture whose colour depends on the VM.
func (h *Host) Screenshot(ctx context.Context, id dr.VMID) ([]byte, error) {
	if _, err := h.enter(ctx, "Screenshot", id); err != nil {
		return nil, err
	}
	v, err := h.world.find("Screenshot", id)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	off := v.power == hypervisor.PowerOff
	v.mu.Unlock()
	if off {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "sim.Screenshot", "VM %s is not running", v.info.Name)
	}
	img := image.NewRGBA(image.Rect(0, 0, 64, 40))
	for i := 0; i < len(img.Pix); i += 4 {
		c := color.RGBA{R: id[0], G: 0x40, B: 0x80, A: 0xff}
		img.Pix[i], img.Pix[i+1], img.Pix[i+2], img.Pix[i+3] = c.R, c.G, c.B, c.A
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil, dr.Errorf(dr.KindInternal, "sim.Screenshot", "encode: %w", err)
	}
	return b.Bytes(), nil
}

// SerialLog returns the end of what Print wrote.
func (h *Host) SerialLog(ctx context.Context, id dr.VMID, limit int) ([]byte, error) {
	if _, err := h.enter(ctx, "SerialLog", id); err != nil {
		return nil, err
	}
	v, err := h.world.find("SerialLog", id)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.serial[max(len(v.serial)-max(limit, 0), 0):]), nil
}

// ownedBy finds the VM that Boot made for an owner.
func (h *Host) ownedBy(owner string) *VM {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	for _, v := range h.world.vms {
		if owner != "" && v.owner == owner {
			return v
		}
	}
	return nil
}
