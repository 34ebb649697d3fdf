package vault

import (
	"context"
	"database/sql"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
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

// startItem submits the job of an operation: the operation is checked, the
// item's axes are moved by begin, the event log is written, all in one transaction.
func (v *core) startItem(ctx context.Context, id dr.ItemID, op Operation, kind, by string, input any,
	begin func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error) (dr.JobID, error) {
	job := state.Ordered()
	err := v.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		// The job first: it says which other job is in the way, and everybody takes
		// the locks in the order job, item.
		if err := v.SubmitItem(ctx, tx, job, kind, work.LockOf(id), it, input, by); err != nil {
			return err
		}
		if it, err = vaultdb.LockItem(ctx, tx, id); err != nil {
			return err
		}
		f, err := factsOf(ctx, tx, it)
		if err != nil {
			return err
		}
		if err := check(it, f, op); err != nil {
			return err
		}
		if err := begin(ctx, tx, &it); err != nil {
			return err
		}
		it.Job = dr.JobID(job)
		if err := v.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return v.st.Note(ctx, tx, vaultdb.Event{Kind: kind, Item: id, By: by, Audit: true}, "%s of %s was started: job %s", kind, it.VMName, job)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(job), nil
}

// factsOf reads what allowed needs beside the axes.
func factsOf(ctx context.Context, tx *sql.Tx, it vaultdb.Item) (f facts, err error) {
	points, err := vaultdb.Points(ctx, tx, it.Machine, 1)
	if err != nil {
		return f, err
	}
	all, err := vaultdb.Servings(ctx, tx, it.ID)
	f.points = len(points) > 0
	f.leftover = slices.ContainsFunc(all, func(s vaultdb.Serving) bool { return s.Kind != dr.KindTestFailover })
	return f, err
}

// RestartJob runs a failed job again; the item must still allow its operation.
func (v items) RestartJob(ctx context.Context, id dr.JobID, by string) error {
	j, err := v.Engine.Get(ctx, string(id))
	if err != nil {
		return err
	}
	if !v.Restartable(j.Kind) {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.RestartJob", "a %s can't be restarted: start the operation again", j.Kind)
	}
	return v.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := v.Engine.Restart(ctx, tx, string(id)); err != nil {
			return err
		}
		item := dr.ItemID(j.Meta[work.MetaItem])
		if item == "" {
			return nil
		}
		it, err := vaultdb.LockItem(ctx, tx, item)
		if err != nil {
			return err
		}
		f, err := factsOf(ctx, tx, it)
		if err != nil {
			return err
		}
		if err := again(&it, f, j.Kind); err != nil {
			return err
		}
		if j.Item == work.LockOf(item) {
			it.Job = id
		}
		if err := v.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return v.st.Note(ctx, tx, vaultdb.Event{Kind: j.Kind, Item: item, By: by, Audit: true}, "job %s (%s of %s) was restarted", id, j.Kind, it.VMName)
	})
}

// again moves an item's axes as the start of its operation did, for a restart.
func again(it *vaultdb.Item, f facts, kind string) error {
	switch kind {
	case "EnableDr":
		if it.Protection != dr.EnableFailed {
			return check(*it, f, "EnableProtection")
		}
		it.Protection = dr.Enabling
	case "DisableDr":
		if err := check(*it, f, OpDisableProtection); err != nil {
			return err
		}
		it.Protection = dr.Disabling
	case "TestFailoverCleanup":
		if err := check(*it, f, OpTestFailoverCleanup); err != nil {
			return err
		}
		it.Test = dr.TestCleaning
	case "CancelFailover":
		if err := check(*it, f, OpCancelFailover); err != nil {
			return err
		}
		it.Failover = dr.FailoverCancelling
	}
	return nil
}
