package site

import (
	"context"
	"database/sql"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// Inventory takes the complete list of a host's VMs. A VM belongs to the agent
// that reported it first, until that one no longer does or is not connected:
// another agent's report of it is recorded, and moves nothing.
func (s *Sites) Inventory(ctx context.Context, agent dr.AgentID, r agentapi.InventoryRequest) error {
	if err := s.st.Touch(ctx, agent, r.Hypervisor); err != nil {
		return err
	}
	err := s.st.Tx(ctx, func(tx *sql.Tx) error {
		p, err := vaultdb.ProviderByID(ctx, tx, agent)
		if err != nil {
			return err
		}
		now := s.st.Now()
		reported := map[dr.VMID]bool{}
		for _, w := range r.VMs {
			vm := toVM(w, p, now)
			reported[vm.ID] = true
			if err := s.discover(ctx, tx, p, vm); err != nil {
				return err
			}
		}
		mine, err := vaultdb.VMsOfAgent(ctx, tx, agent)
		if err != nil {
			return err
		}
		for _, vm := range mine {
			if !reported[vm.ID] && !vm.Gone {
				if err := vaultdb.MarkGone(ctx, tx, vm.Fabric, vm.ID); err != nil {
					return err
				}
			}
		}
		if err := vaultdb.UnseeVMs(ctx, tx, agent, now); err != nil {
			return err
		}
		nets := make([]vaultdb.Network, len(r.Networks))
		for i, n := range r.Networks {
			nets[i] = vaultdb.Network{Agent: agent, Name: n.Name, Isolated: n.Isolated, Active: n.Active}
		}
		s.st.Changed(tx, "site", string(p.Fabric))
		if len(r.Sizes) > 0 { // a cloud that could not be asked keeps those that it had
			sizes := make([]dr.ComputeSize, len(r.Sizes))
			for i, x := range r.Sizes {
				sizes[i] = dr.ComputeSize{Name: x.Name, CPUs: x.CPUs, MemoryMB: x.MemoryMB, DataDisks: x.DataDisks, NICs: x.NICs, Generations: x.Generations, Premium: x.Premium, Problem: x.Problem}
			}
			if err := vaultdb.SaveSizes(ctx, tx, agent, sizes); err != nil {
				return err
			}
		}
		return vaultdb.ReplaceNetworks(ctx, tx, agent, nets)
	})
	if err == nil {
		s.mu.Lock()
		s.inventory[agent] = true
		s.mu.Unlock()
	}
	return err
}

func (s *Sites) discover(ctx context.Context, tx *sql.Tx, p vaultdb.Provider, vm dr.VM) error {
	have, err := vaultdb.VM(ctx, tx, p.Fabric, vm.ID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err != nil || have.Agent == p.ID || have.Gone {
		return vaultdb.SaveVM(ctx, tx, vm)
	}
	owner, err := vaultdb.ProviderByID(ctx, tx, have.Agent)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err != nil || !s.st.Connected(owner.Provider) && !s.st.Settling() {
		if err := s.st.Note(ctx, tx, vaultdb.Event{Kind: "vmMoved", Agent: p.ID, By: "agent"}, "VM %s is now on host %s: host %s is not connected", vm.Name, p.Host, owner.Host); err != nil {
			return err
		}
		return vaultdb.SaveVM(ctx, tx, vm)
	}
	news, err := vaultdb.SeeVM(ctx, tx, p.Fabric, vm.ID, p.ID, vm.Seen)
	if err != nil || !news {
		return err
	}
	return s.st.Note(ctx, tx, vaultdb.Event{Kind: "vmSeenTwice", Agent: p.ID, By: "agent"}, "VM %s is reported by host %s and by host %s; it stays with %s", vm.Name, owner.Host, p.Host, owner.Host)
}

func toVM(w agentapi.VM, p vaultdb.Provider, now time.Time) dr.VM {
	vm := dr.VM{ID: dr.VMID(vaultdb.Key(w.ID)), Name: w.Name, Fabric: p.Fabric, Agent: p.ID, Running: w.Running, Generation: w.Generation,
		CPUs: w.CPUs, MemoryMB: w.MemoryMB, OSType: w.OSType, Facts: dr.VMFacts(w.Facts), Seen: now}
	for _, d := range w.Disks {
		vm.Disks = append(vm.Disks, dr.Disk(d))
	}
	for _, n := range w.NICs {
		vm.NICs = append(vm.NICs, dr.NIC(n))
	}
	return vm
}

// HasInventory reports whether an agent has sent its inventory since this
// process started.
func (s *Sites) HasInventory(agent dr.AgentID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inventory[agent]
}
