package vault

import (
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// Operation is something that can be done with a protected item, by ASR's name.
type Operation string

// The operations.
const (
	OpTestFailover        Operation = "TestFailover"
	OpTestFailoverCleanup Operation = "TestFailoverCleanup"
	OpPlannedFailover     Operation = "PlannedFailover"
	OpUnplannedFailover   Operation = "UnplannedFailover"
	OpCommit              Operation = "Commit"
	OpCancelFailover      Operation = "CancelFailover"
	OpChangePit           Operation = "ChangePit"
	OpRepairReplication   Operation = "RepairReplication"
	OpDisableProtection   Operation = "DisableProtection"
)

// facts are what the axes do not say.
type facts struct {
	points   bool // there is a recovery point
	leftover bool // something of a failover may still be at a recovery host
}

// allowed is the one table of what an item's state allows; every operation is
// guarded by it, so what is listed works and what is not listed is refused.
//
//	a job runs                     nothing
//	initial replication, failed    disable
//	protected, at primary          planned, unplanned, resynchronize, disable; test if none is up
//	  a test VM is up or failed    clean up; no disable
//	failover commit pending        commit, change point, cancel
//	failover committed             disable
//	failover failed, VM left over  cancel too
func allowed(it vaultdb.Item, f facts) []Operation {
	var ops []Operation
	if it.Job != "" {
		return nil
	}
	test := it.Test == dr.TestWaiting || it.Test == dr.TestFailed
	switch it.Failover {
	case dr.FailoverCommitPending:
		ops = append(ops, OpCommit, OpChangePit, OpCancelFailover)
	case dr.FailoverCommitted:
		if !test {
			ops = append(ops, OpDisableProtection)
		}
	case dr.FailoverNone, dr.FailoverFailed:
		if it.Protection == dr.Protected && f.points {
			ops = append(ops, OpPlannedFailover, OpUnplannedFailover)
			if !test {
				ops = append(ops, OpTestFailover)
			}
			ops = append(ops, OpRepairReplication)
		}
		if it.Failover == dr.FailoverFailed && f.leftover {
			ops = append(ops, OpCancelFailover)
		}
		if !test {
			ops = append(ops, OpDisableProtection)
		}
	}
	if test {
		ops = append(ops, OpTestFailoverCleanup)
	}
	return ops
}

// check refuses what allowed does not list.
func check(it vaultdb.Item, f facts, op Operation) error {
	if slices.Contains(allowed(it, f), op) {
		return nil
	}
	if it.Protection == dr.Protected && !f.points || it.Protection == dr.InitialReplication && op != OpTestFailoverCleanup {
		return dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "vault."+string(op), "%s has no recovery point yet", it.VMName)
	}
	return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault."+string(op),
		"%s is not possible now for %s: protection %s, failover %s, test failover %s", op, it.VMName, it.Protection, it.Failover, it.Test)
}
