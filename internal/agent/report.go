package agent

import (
	"context"
	"reflect"
	"time"

	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/managed"
	"holdfast/internal/agent/warming"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/store"
)

// statusLoop tells the vault how replication stands, when it has changed and from time to time.
func (a *Agent) statusLoop(ctx context.Context) {
	var last []agentapi.ItemStatus
	var sent time.Time
	for {
		a.mu.Lock()
		every := a.statusEvery
		a.mu.Unlock()
		if sleep(ctx, every) != nil {
			return
		}
		now := a.replicas.status()
		if len(now) == 0 && len(last) == 0 || reflect.DeepEqual(now, last) && time.Since(sent) < a.cfg.every.statusRefresh {
			continue
		}
		if err := a.client.Status(ctx, agentapi.StatusRequest{Items: now}); err != nil {
			a.log.Debug("status not sent", "err", err) // the poll loop reports trouble with the vault
			continue
		}
		last, sent = now, time.Now()
	}
}

// wantInventory asks for an inventory soon.
func (a *Agent) wantInventory() { wake(a.want) }

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// vmmLoop tells the vault what VMM manages: at the start, when it is wanted, and
// from time to time. The hypervisor's events do not count: VMM is slow to ask.
func (a *Agent) vmmLoop(ctx context.Context) {
	if a.cfg.VMM == nil {
		return
	}
	failed := false
	for ctx.Err() == nil {
		switch err := a.sendVMM(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil && !failed:
			failed = true
			a.log.Warn("what VMM manages was not sent; it is tried again", "err", err, "code", dr.CodeOf(err), "hint", dr.HintOf(err))
		case err == nil && failed:
			failed = false
			a.log.Info("what VMM manages is sent again")
		}
		t := time.NewTimer(a.cfg.every.inventory)
		select {
		case <-ctx.Done():
		case <-a.wantVMM:
		case <-t.C:
		}
		t.Stop()
	}
}

// sendVMM asks VMM and tells the vault. One at a time; VMM bounds itself.
func (a *Agent) sendVMM(ctx context.Context) error {
	if a.cfg.VMM == nil {
		return nil
	}
	a.vmmMu.Lock()
	defer a.vmmMu.Unlock()
	s, err := a.cfg.VMM.Snapshot(ctx)
	if err != nil {
		return err
	}
	return a.client.VMM(ctx, managed.Report(s))
}

// inventoryLoop sends the inventory when it is wanted and from time to time.
func (a *Agent) inventoryLoop(ctx context.Context) {
	var pause backoff
	wait := a.cfg.every.inventory
	for ctx.Err() == nil {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-a.want:
			t.Stop()
			if sleep(ctx, a.cfg.every.settle) != nil { // one event seldom comes alone
				return
			}
			select {
			case <-a.want:
			default:
			}
		case <-t.C:
		}
		if err := a.sendInventory(ctx); err != nil && ctx.Err() == nil {
			if pause.n == 0 {
				a.log.Warn("inventory not sent; it is tried again", "err", err, "hint", dr.HintOf(err))
			}
			wait = min(pause.next(), a.cfg.every.inventory)
			continue
		}
		wait, pause = a.cfg.every.inventory, backoff{}
	}
}

// warmLoop keeps warm replicas, on an agent that can.
func (a *Agent) warmLoop(ctx context.Context) {
	if a.cfg.Warm == nil {
		return
	}
	warming.New(warming.Config{Vault: a.client, Replicas: a.cfg.Warm, Dir: a.cfg.StateDir, Every: a.cfg.every.warm, Errors: channel.WireError, Log: a.log,
		Open: func(ctx context.Context, serving string) (*store.Store, func() error, error) {
			p, err := OpenPoint(ctx, a.cfg.StateDir, serving)
			if err != nil {
				return nil, nil, err
			}
			return p.Store(), p.Close, nil
		}}).Run(ctx)
}

// sizes are the VM sizes that a cloud offers; a host has none. Not knowing them
// keeps nothing else from being reported.
func (a *Agent) sizes(ctx context.Context) (out []agentapi.ComputeSize) {
	s, ok := a.cfg.Host.(hypervisor.Sizer)
	if !ok {
		return nil
	}
	all, err := s.Sizes(ctx)
	if err != nil {
		a.log.Warn("the sizes of VMs can't be listed", "err", err, "hint", dr.HintOf(err))
	}
	for _, x := range all {
		out = append(out, agentapi.ComputeSize{Name: x.Name, CPUs: x.CPUs, MemoryMB: x.MemoryMB, DataDisks: x.DataDisks, NICs: x.NICs, Generations: x.Generations, Premium: x.Premium, Problem: x.Problem})
	}
	return out
}

// hostTimeout bounds the questions to the hypervisor for one inventory.
const hostTimeout = 2 * time.Minute

func (a *Agent) sendInventory(ctx context.Context) error {
	a.inventoryMu.Lock()
	defer a.inventoryMu.Unlock()
	hctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	info, err := a.cfg.Host.Info(hctx)
	if err != nil {
		return err
	}
	vms, err := a.cfg.Host.Inventory(hctx)
	if err != nil {
		return err
	}
	networks, err := a.cfg.Host.Networks(hctx)
	if err != nil {
		return err
	}
	r := agentapi.InventoryRequest{Host: info.Name, Hypervisor: info.Hypervisor, VMs: []agentapi.VM{}}
	for _, vm := range vms {
		r.VMs = append(r.VMs, wireVM(vm))
	}
	for _, n := range networks {
		r.Networks = append(r.Networks, agentapi.Network{Name: n.Name, Isolated: n.Isolated, Active: n.Active})
	}
	r.Sizes = a.sizes(hctx)
	return a.client.Inventory(ctx, r)
}

func wireVM(vm dr.VM) agentapi.VM {
	out := agentapi.VM{ID: string(vm.ID), Name: vm.Name, Running: vm.Running, Generation: vm.Generation, CPUs: vm.CPUs, MemoryMB: vm.MemoryMB, OSType: vm.OSType, Disks: []agentapi.Disk{},
		Facts: agentapi.VMFacts(vm.Facts)}
	for _, d := range vm.Disks {
		out.Disks = append(out.Disks, agentapi.Disk(d))
	}
	for _, n := range vm.NICs {
		out.NICs = append(out.NICs, agentapi.NIC(n))
	}
	return out
}

// watchLoop turns the hypervisor's events into looks at what changed.
func (a *Agent) watchLoop(ctx context.Context) {
	var pause backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := a.cfg.Host.Watch(ctx, func(e hypervisor.Event) {
			switch e.Kind {
			case "job": // our own backup jobs, mostly
				return
			case "started", "stopped", "crashed", "reconnected":
				a.replicas.kick(e.VM)
			}
			a.wantInventory()
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			pause = backoff{}
		}
		a.log.Warn("the hypervisor's events are not heard; they are subscribed again", "err", err, "hint", dr.HintOf(err))
		a.wantInventory() // what happened meanwhile
		if sleep(ctx, pause.next()) != nil {
			return
		}
	}
}
