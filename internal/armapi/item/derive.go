package item

import (
	"slices"

	"holdfast/internal/dr"
)

// The API knows one protection state per item where the domain has independent
// axes. This file derives the API's words. The tables are total: every
// combination of axes has an answer.
//
// protectionState, first line that fits:
//
//	protection           failover        protectionState
//	disabling            any             DisablingProtection
//	any                  inProgress      FailoverInProgress
//	any                  commitPending   FailoverCommitPending
//	any                  committed       FailoverCommitted
//	any                  cancelling      CancelFailoverInProgress
//	enabling             none, failed    EnablingProtection
//	initialReplication   none, failed    InitialReplicationInProgress
//	enableFailed         none, failed    EnablingFailed
//	protected            none, failed    Protected
//
// A failed failover leaves the item as it was, so it shows as Protected; the job
// and the description say what happened.
func protectionState(p dr.Protection, f dr.Failover) (state, description string) {
	if p == dr.Disabling {
		return "DisablingProtection", "Protection is being removed"
	}
	switch f {
	case dr.FailoverInProgress:
		return "FailoverInProgress", "A failover is in progress"
	case dr.FailoverCommitPending:
		return "FailoverCommitPending", "Failed over; commit, change the recovery point or cancel"
	case dr.FailoverCommitted:
		return "FailoverCommitted", "Failed over and committed; replication has stopped"
	case dr.FailoverCancelling:
		return "CancelFailoverInProgress", "The failover is being cancelled"
	}
	switch p {
	case dr.Enabling:
		return "EnablingProtection", "Protection is being enabled"
	case dr.InitialReplication:
		return "InitialReplicationInProgress", "Initial replication is in progress; there is no recovery point yet"
	case dr.EnableFailed:
		return "EnablingFailed", "Protection could not be enabled"
	case dr.Protected:
		if f == dr.FailoverFailed {
			return "Protected", "Protected; the last failover failed and may be repeated"
		}
		return "Protected", "Protected"
	}
	return "Unknown", "Unknown"
}

// testFailoverState derives the test failover's word.
//
//	none NotStarted… → None, running → InProgress, waiting → WaitingForCompletion,
//	cleaning → MarkedForDeletion, failed → Failed
func testFailoverState(t dr.TestFailover) (state, description string) {
	switch t {
	case dr.TestRunning:
		return "InProgress", "The test VM is being brought up"
	case dr.TestWaiting:
		return "WaitingForCompletion", "The test VM is up; clean up when the test is done"
	case dr.TestCleaning:
		return "MarkedForDeletion", "The test VM is being removed"
	case dr.TestFailed:
		return "Failed", "The test VM did not come up; clean up and try again"
	}
	return "None", "None"
}

// The API's names of operations on protected items.
const (
	opPlanned   = "PlannedFailover"
	opUnplanned = "UnplannedFailover"
	opTest      = "TestFailover"
	opCleanup   = "TestFailoverCleanup"
	opCommit    = "Commit"
	opCancel    = "CancelFailover"
	opChange    = "ChangePit"
	opRepair    = "RepairReplication"
	opDisable   = "DisableProtection"
)

// AllowedOperations is what the axes of an item can allow at most, first line that fits:
//
//	protection disabling                       DisableProtection (again, if the job failed)
//	failover inProgress                        CancelFailover
//	failover cancelling                        nothing
//	failover commitPending                     Commit, ChangePit, CancelFailover, DisableProtection
//	failover committed                         DisableProtection
//	enabling, initialReplication, enableFailed DisableProtection
//	protected, test running or cleaning        PlannedFailover, UnplannedFailover
//	protected, test none                       PlannedFailover, UnplannedFailover, TestFailover, RepairReplication, DisableProtection
//	protected, test waiting or failed          PlannedFailover, UnplannedFailover, RepairReplication, DisableProtection
//
// To these are added CancelFailover where a failover has failed (it may have
// left something behind) unless protection is being removed, and
// TestFailoverCleanup wherever a test waits or has failed, whatever the other
// axes say. A real failover never has to wait for a forgotten test.
//
// The vault may withhold an operation for reasons that are not on the axes (a
// running job, no recovery point, nothing left behind); what the API shows is
// what both allow.
func AllowedOperations(p dr.Protection, f dr.Failover, t dr.TestFailover) []string {
	leftover := t == dr.TestWaiting || t == dr.TestFailed
	var ops []string
	switch {
	case p == dr.Disabling:
		ops = []string{opDisable}
	case f == dr.FailoverInProgress:
		ops = []string{opCancel}
	case f == dr.FailoverCancelling:
	case f == dr.FailoverCommitPending:
		ops = []string{opCommit, opChange, opCancel, opDisable}
	case f == dr.FailoverCommitted, p != dr.Protected:
		ops = []string{opDisable}
	case t == dr.TestRunning, t == dr.TestCleaning:
		ops = []string{opPlanned, opUnplanned}
	case leftover:
		ops = []string{opPlanned, opUnplanned, opRepair, opDisable}
	default:
		ops = []string{opPlanned, opUnplanned, opTest, opRepair, opDisable}
	}
	if f == dr.FailoverFailed && p != dr.Disabling {
		ops = append(ops, opCancel)
	}
	if leftover {
		ops = append(ops, opCleanup)
	}
	return ops
}

// shownOperations is what both the axes and the vault allow.
func shownOperations(item dr.ProtectedItem, vaultAllows []string) []string {
	out := []string{}
	for _, op := range AllowedOperations(item.Protection, item.Failover, item.Test) {
		if slices.Contains(vaultAllows, op) {
			out = append(out, op)
		}
	}
	return out
}
