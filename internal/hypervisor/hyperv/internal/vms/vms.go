// Package vms looks after a host's VMs one by one: finds them, waits until the host has
// ended what it does with them, starts and stops them, and describes their disks. It decides
// nothing about replication. Methods are safe for concurrent use.
package vms

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// Config of a Host; all fields are needed. They mean what the fields of hyperv.Config of the same names say.
type Config struct {
	CallTimeout time.Duration
	MergeWait   time.Duration
	Poll        time.Duration
}

// Host is a host's VMs.
type Host struct {
	MS    *msvm.Client
	cfg   Config
	locks keyed
	facts factCache
}

// New makes a Host on a client, which stays the caller's.
func New(ms *msvm.Client, cfg Config) *Host { return &Host{MS: ms, cfg: cfg} }

// Lock takes the lock of a VM's id, or of another name; waiting for it ends with the context.
func (h *Host) Lock(ctx context.Context, op, name string) (unlock func(), err error) {
	return h.locks.lock(ctx, op, name)
}

// busy says why no operation can be begun on a VM now; nil if one can.
func busy(op string, s msvm.System) error {
	op = "hyperv." + op
	switch {
	case s.Operation == msvm.Migrating:
		return dr.New(dr.KindConflict, dr.CodeVMMigrating, op, "VM %s is being moved", s.Name)
	case s.Operation == msvm.Merging || s.Operation == msvm.Deleting:
		return dr.New(dr.KindConflict, dr.CodeMergeRunning, op, "the disks of VM %s are being merged", s.Name)
	case s.Operation != msvm.Idle:
		return dr.New(dr.KindConflict, dr.CodeVMStarting, op, "the host works on VM %s: %s", s.Name, s.Operation)
	case s.State == msvm.Changing:
		return dr.New(dr.KindConflict, dr.CodeVMStarting, op, "VM %s is between two states", s.Name)
	}
	return nil
}

// WaitIdle waits until the host has ended what it does with a VM, for Config.MergeWait at most.
func (h *Host) WaitIdle(ctx context.Context, op string, vm *msvm.VM) error {
	deadline := time.Now().Add(h.cfg.MergeWait)
	pause := h.cfg.Poll
	for {
		err := busy(op, vm.System)
		if err == nil || !time.Now().Before(deadline) || dr.CodeOf(err) == dr.CodeVMMigrating {
			return err
		}
		if serr := Sleep(ctx, min(pause, time.Until(deadline)+time.Millisecond)); serr != nil {
			return msvm.Wrap(op, err.Error(), "", serr)
		}
		pause = min(2*pause, 2*time.Second)
		now, _, err := h.Load(ctx, op, dr.VMID(vm.ID), msvm.Systems)
		if err != nil {
			return err
		}
		vm.System = now.System
	}
}

// Patiently calls fn, and once more after waiting where the host refused because
// it is at work on the VM (a merge, another product's backup).
func (h *Host) Patiently(ctx context.Context, op, vm string, fn func() error) error {
	err := fn()
	if !msvm.BadState(err) {
		return err
	}
	s, _, lerr := h.Load(ctx, op, dr.VMID(vm), msvm.Systems)
	if lerr != nil || h.WaitIdle(ctx, op, s) != nil {
		return err
	}
	return fn()
}

// ID checks the id of a VM.
func ID(op string, id dr.VMID) (string, error) {
	s := strings.ToLower(string(id))
	if !msvm.IsGUID(s) {
		return "", dr.New(dr.KindNotFound, dr.CodeVMNotFound, "hyperv."+op, "%q is not the id of a VM", string(id))
	}
	return s, nil
}

// Load reads one VM.
func (h *Host) Load(ctx context.Context, op string, id dr.VMID, depth msvm.Depth) (*msvm.VM, *msvm.World, error) {
	s, err := ID(op, id)
	if err != nil {
		return nil, nil, err
	}
	w, err := h.MS.Load(ctx, s, depth)
	if err != nil {
		return nil, nil, msvm.Wrap(op, fmt.Sprintf("look up VM %s", s), "", err)
	}
	vm := w.VMs[s]
	if vm == nil {
		return nil, nil, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "hyperv."+op, "the host does not know VM %s", s)
	}
	return vm, w, nil
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

// Sleep waits for d, or until the context ends, whose error it returns then.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Start starts a VM, or lets a paused or saved one go on, and waits until it runs.
func (h *Host) Start(ctx context.Context, op string, vm *msvm.VM) error {
	if vm.State == msvm.Running {
		return nil
	}
	if err := h.MS.RequestState(ctx, vm.ID, msvm.StateStart); err != nil {
		return msvm.Wrap(op, "start VM "+vm.Name, "", err)
	}
	return h.waitState(ctx, op, vm, func(s msvm.State) bool { return s == msvm.Running })
}

// waitState polls until the VM is in the state that a finished job promised.
func (h *Host) waitState(ctx context.Context, op string, vm *msvm.VM, good func(msvm.State) bool) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	for pause := h.cfg.Poll; ; pause = min(2*pause, 2*time.Second) {
		now, _, err := h.Load(ctx, op, dr.VMID(vm.ID), msvm.Systems)
		if err != nil {
			return err
		}
		if good(now.State) {
			return nil
		}
		if err := Sleep(ctx, pause); err != nil {
			return msvm.Wrap(op, "wait for VM "+vm.Name+", which is "+string(now.State), "", err)
		}
	}
}

// TurnOff cuts the power of a VM and waits until it is off. Idempotent.
func (h *Host) TurnOff(ctx context.Context, op string, vm *msvm.VM) error {
	if vm.State == msvm.Off {
		return nil
	}
	if err := h.MS.RequestState(ctx, vm.ID, msvm.StateTurnOff); err != nil {
		return msvm.Wrap(op, "turn VM "+vm.Name+" off", "", err)
	}
	return h.waitState(ctx, op, vm, func(s msvm.State) bool { return s == msvm.Off })
}
