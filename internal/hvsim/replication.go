package hvsim

import (
	"context"
	"fmt"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/model"
)

// States of Msvm_ComputerSystem.ReplicationState that the simulator goes through.
const (
	replDisabled    = 0
	replReady       = 1
	replInitial     = 2
	replReplicating = 3
	replSuspended   = 7
	replCritical    = 8
	replWaitResync  = 9
	replResync      = 10
)

// replicate makes one step of the state machine of Hyper-V Replica on the primary
// side. No data is replicated: the states are there for programs that read them.
func (c *call) replicate(vm *VM, jobType uint16, from []uint16, edit func(*model.Replication)) cim.Out {
	allowed := func(st model.State) bool {
		for _, s := range from {
			if st.Replication.State == s {
				return true
			}
		}
		return false
	}
	if vm == nil {
		return c.invalid()
	}
	if !allowed(vm.State()) {
		return cim.Out{Return: c.family.state}
	}
	return c.work(jobType, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		return result{}, vm.Change(func(st *model.State) error {
			if !allowed(*st) {
				return fmt.Errorf("replication of VM %s is in state %d: %w", st.Name, st.Replication.State, model.ErrState)
			}
			edit(&st.Replication)
			st.Replication.Since = time.Now()
			return nil
		})
	})
}

func createReplication(c *call) cim.Out {
	set, ok := c.embedded("ReplicationSettingData")
	if !ok || set == nil || set.Args.String("RecoveryConnectionPoint") == "" && set.Args.String("ReplicationProvider") == "" {
		return c.invalid()
	}
	if n, given := set.Uint("ReplicationInterval"); given && n != 30 && n != 300 && n != 900 {
		return c.invalid()
	}
	if set.Null("ReplicationInterval") {
		set.Set("ReplicationInterval", uint16(300))
	}
	text := settingText(set)
	return c.replicate(c.vm("ComputerSystem"), 91, []uint16{replDisabled}, func(r *model.Replication) {
		*r = model.Replication{State: replReady, Health: 1, Mode: 1, Settings: text}
	})
}

func removeReplication(c *call) cim.Out {
	all := []uint16{replReady, replInitial, replReplicating, replSuspended, replCritical, replWaitResync, replResync}
	return c.replicate(c.vm("ComputerSystem"), 93, all, func(r *model.Replication) { *r = model.Replication{} })
}

func startReplication(c *call) cim.Out {
	kind, ok := c.in.Uint("InitialReplicationType")
	if !ok || kind < 1 || kind > 3 {
		return c.invalid()
	}
	return c.replicate(c.vm("ComputerSystem"), 94, []uint16{replReady}, func(r *model.Replication) {
		r.State = replReplicating
		if kind == 2 { // exported: somebody has to carry it over
			r.State = replInitial
		}
	})
}

func resynchronize(c *call) cim.Out {
	return c.replicate(c.vm("ComputerSystem"), 96, []uint16{replWaitResync, replCritical, replReplicating, replSuspended}, func(r *model.Replication) { r.State, r.Health = replReplicating, 1 })
}

func modifyReplication(c *call) cim.Out {
	set, ok := c.embedded("ReplicationSettingData")
	if !ok || set == nil {
		return c.invalid()
	}
	text := settingText(set)
	return c.replicate(c.vm("ComputerSystem"), 92, []uint16{replReady, replReplicating, replSuspended}, func(r *model.Replication) { r.Settings = text })
}

// replicationState is Msvm_ComputerSystem.RequestReplicationStateChange(Ex): 7 suspends, 3 resumes, 9 cancels a resynchronization.
func replicationState(c *call) cim.Out {
	vm := c.VM(c.path.Key("Name"))
	want, _ := c.in.Uint("RequestedState")
	switch want {
	case 7:
		return c.replicate(vm, 97, []uint16{replReplicating, replInitial, replReady}, func(r *model.Replication) { r.State, r.Health = replSuspended, 2 })
	case 1, 2, 3, 4:
		return c.replicate(vm, 98, []uint16{replSuspended, replReplicating, replCritical}, func(r *model.Replication) { r.State, r.Health = replReplicating, 1 })
	case 9:
		return c.replicate(vm, 99, []uint16{replResync, replWaitResync}, func(r *model.Replication) { r.State, r.Health = replWaitResync, 3 })
	}
	return c.invalid()
}

func replicationStatistics(c *call) cim.Out {
	vm := c.vm("ComputerSystem")
	if vm == nil {
		return c.invalid()
	}
	r := vm.State().Replication
	if r.Mode == 0 {
		return cim.Out{Return: c.family.state}
	}
	in := cim.NewInstance("Msvm_ReplicationStatistics", "InstanceID", "Microsoft:"+vm.ID(), "StartStatisticTime", cim.FormatTime(r.Since), "EndStatisticTime", cim.FormatTime(time.Now()),
		"ReplicationSuccessCount", uint32(0), "ReplicationMissCount", uint32(0), "ReplicationFailureCount", uint32(0), "NetworkFailureCount", uint32(0), "ReplicationSize", uint64(0),
		"MaxReplicationSize", uint64(0), "ReplicationLatency", uint32(0), "MaxReplicationLatency", uint32(0), "PendingReplicationSize", uint64(0),
		"ApplicationConsistentSnapshotFailureCount", uint32(0), "ReplicationHealth", uint32(r.Health))
	var out cim.Out
	out.Set("ReplicationStatistics", []string{settingText(in)})
	out.Set("ReplicationHealthIssues", []string{})
	return out
}
