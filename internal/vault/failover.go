package vault

import (
	"context"
	"database/sql"
	"encoding/json"

	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/network"
	"holdfast/internal/vault/shape"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// askHosts is the step of DiscoverProtectableItem that begins the refreshes.
const askHosts = "AskHosts"

// scenarios are the kinds of jobs. The comments of the steps'
// functions say what each does and why it may run twice.
func (v *Vault) scenarios() map[string]work.Scenario {
	type steps = []work.Step
	p, r := protection{v.core}, recovery{v.core}
	shutdown := work.Step{Name: "ShutdownSource", Title: "Shut the source VM down", Attempts: 2, Run: r.shutdownStep()}
	probe := work.Step{Name: checkSource, Title: "Ask the source host", Attempts: 2, Run: r.checkSourceStep()}
	drain := work.Step{Name: "SynchronizeLatestChanges", Title: "Send the latest changes", Attempts: 4, Run: r.drainStep()}
	prepare := work.Step{Name: "PrepareRecoveryPoint", Title: "Prepare the recovery point", Run: r.prepareStep}
	boot := work.Step{Name: "StartRecoveryVM", Title: "Start the recovery VM", Attempts: 3, Run: r.bootStep()}
	bootTest := work.Step{Name: "CreateTestVM", Title: "Start the test VM", Attempts: 3, Run: r.bootStep()}
	verify := work.Step{Name: "VerifyBoot", Title: "Wait for a sign of life", Attempts: 2, Run: r.verifyStep()}
	remove := work.Step{Name: "RemoveRecoveryVM", Title: "Remove the recovery VM", Run: r.removeStep()}
	removeTest := work.Step{Name: "RemoveTestVM", Title: "Remove the test VM", Run: r.removeStep()}
	start := work.Step{Name: "StartSourceVM", Title: "Start the source VM", Attempts: 4, Run: r.startSourceStep()}
	resume := work.Step{Name: "ResumeReplication", Title: "Resume replication", Run: r.resumeStep}
	check := work.Step{Name: "PrerequisitesCheck", Title: "Check prerequisites", Attempts: 3, Run: r.failoverCheckStep}
	one := func(name, title string, run job.Handler) steps { return steps{{Name: name, Title: title, Run: run}} }
	undo := steps{remove, start, resume}
	quick := remove // a host that does not answer must not hold up the rest of the undoing
	quick.Attempts = 3
	full := steps{check, shutdown, drain, prepare, boot, verify}
	all := map[string]work.Scenario{
		"EnableDr": {Title: "Enable protection", Restartable: true, Steps: steps{
			{Name: "PrerequisitesCheck", Title: "Check prerequisites", Attempts: 2, Run: p.prerequisitesStep()},
			{Name: "CreateReplicationRelationship", Title: "Create the replication relationship", Run: p.relationshipStep},
			{Name: "StartReplication", Title: "Start replication", Attempts: 4, Run: p.startReplicationStep()},
		}},
		"IrCompletion": {Title: "Initial replication", Restartable: true, Steps: steps{
			{Name: "InitialReplication", Title: "Send the disks", Run: p.initialStep()},
			{Name: "FinalizeProtection", Title: "Finalize protection", Run: p.finalizeStep},
		}},
		"DisableDr": {Title: "Disable protection", Restartable: true, Steps: steps{
			{Name: "StopReplication", Title: "Stop replication at the source", Run: p.stopStep()},
			{Name: "RemoveReplicationRelationship", Title: "Remove the replication relationship", Run: p.forgetStep},
		}},
		"Resync":              {Title: "Resynchronize", Steps: steps{resume}}, // the request is stored with the job
		"TestFailover":        {Title: "Test failover", Steps: steps{check, prepare, bootTest, verify}, OnFail: steps{removeTest}},
		"TestFailoverCleanup": {Title: "Clean up test failover", Restartable: true, Steps: steps{removeTest}},
		"PlannedFailover":     {Title: "Planned failover", Steps: full, OnFail: steps{quick, start, resume}},
		"UnplannedFailover":   {Title: "Failover", Steps: steps{check, probe, shutdown, drain, prepare, boot, verify}, OnFail: steps{quick, start, resume}},
		shape.JobMove:         {Title: "Take the replication over", Restartable: true, Steps: one("TakeOver", "Give the replica to the host", p.moveStep)},
		"Maintain": {Title: "Maintain the replica", Steps: one("Maintain", "Apply retention", func(ctx context.Context, s *job.StepContext) (job.Result, error) {
			return v.Keeper.MaintainStep(ctx, s)
		})},
		"Scrub":          {Title: "Verify the replica", Steps: one("Scrub", "Read and verify every object", func(ctx context.Context, s *job.StepContext) (job.Result, error) { return v.Keeper.ScrubStep(ctx, s) })},
		"CommitFailover": {Title: "Commit failover"}, // the end of the job changes the item
		"CancelFailover": {Title: "Cancel failover", Restartable: true, Steps: undo},
		"ChangePit":      {Title: "Change recovery point", Steps: steps{prepare, remove, boot, verify}},
		"MakeLocal":      {Title: "Copy the recovery VM's disks to its host", Steps: one("MakeLocal", "Copy the disks", r.makeLocalStep)},
		"RefreshDra": {Title: "Refresh host", Restartable: true, Steps: steps{
			{Name: "RefreshInventory", Title: "Ask the host for its VMs", Attempts: 3, Run: p.refreshStep()}}},
		"DiscoverProtectableItem": {Title: "Look for VMs", Steps: steps{
			{Name: askHosts, Title: "Ask the hosts for their VMs", Attempts: 2, Run: p.askHostsStep},
			{Name: "AwaitHosts", Title: "Wait for the hosts", Run: p.awaitHostsStep},
			{Name: "FindVM", Title: "Find the VM", Attempts: 1, Run: p.findVMStep}}},
		"CheckConsistency": {Title: "Check consistency of the site", Restartable: true, Steps: one("ReconcileRecoveryPoints", "Compare the catalogue with the store", p.consistencyStep)},
	}
	for kind, title := range map[string]string{
		"CreateSite": "Create site", "DeleteSite": "Remove site", "RegisterDra": "Register host", "DeleteDra": "Remove host",
		"AddProtectionProfile": "Create replication policy", "UpdateProtectionProfile": "Change replication policy",
		"DeleteProtectionProfile": "Remove replication policy", "PairCloud": "Map protection container", "UnpairCloud": "Unmap protection container",
		network.JobPair: "Map network", network.JobUpdate: "Change network mapping", network.JobUnpair: "Remove network mapping",
		network.JobPairStorage: "Map storage classification", network.JobUnpairStorage: "Remove storage classification mapping",
		"UpdateVmProperties": "Change settings of the protected item", "ChangeDisks": "Change the replicated disks",
	} {
		all[kind] = work.Scenario{Title: title}
	}
	return all
}

func (v *Vault) finals() map[string]func(context.Context, *sql.Tx, *job.Job) error {
	p, e := protection{v.core}, endings{v.core}
	return map[string]func(context.Context, *sql.Tx, *job.Job) error{
		"EnableDr": p.enableFinal, "DisableDr": p.disableFinal, "Resync": e.plainFinal, shape.JobMove: e.plainFinal, "TestFailover": e.testFinal, "TestFailoverCleanup": e.cleanupFinal,
		"PlannedFailover": e.failoverFinal, "UnplannedFailover": e.failoverFinal, "CommitFailover": e.commitFinal,
		"CancelFailover": e.cancelFinal, "ChangePit": e.changeFinal,
	}
}

// StartFailover starts a test, planned or unplanned failover. A planned one
// always takes the newest point: it is made by the failover itself.
func (v failovers) StartFailover(ctx context.Context, r FailoverRequest) (dr.JobID, error) {
	in := itemInput{Item: r.Item, Kind: r.Kind, Point: r.Point, Network: r.Network, Offline: r.NoNetwork, Source: r.SourceAction}
	var op Operation
	var scenario string
	switch r.Kind {
	case dr.KindTestFailover:
		op, scenario = OpTestFailover, "TestFailover"
	case dr.KindPlannedFailover:
		op, scenario, in.Source, in.Point = OpPlannedFailover, "PlannedFailover", true, ""
	case dr.KindUnplannedFailover:
		op, scenario = OpUnplannedFailover, "UnplannedFailover"
	default:
		return "", dr.Errorf(dr.KindInvalid, "vault.StartFailover", "%q is not a kind of failover", r.Kind)
	}
	return v.startItem(ctx, r.Item, op, scenario, r.By, in, func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error {
		if _, err := v.Resolve(ctx, tx, *it, in.Point); err != nil {
			return err
		}
		if r.Kind == dr.KindTestFailover {
			it.Test, it.TestNetwork, it.LastTestReport = dr.TestRunning, r.Network, ""
			return nil
		}
		it.Failover = dr.FailoverInProgress
		return nil
	})
}

// CleanupTest removes the test VM of an item. It also works after a test that
// failed half-way and when the recovery host has restarted.
func (v failovers) CleanupTest(ctx context.Context, id dr.ItemID, comments, by string) (dr.JobID, error) {
	return v.startItem(ctx, id, OpTestFailoverCleanup, "TestFailoverCleanup", by, itemInput{Item: id, Kind: dr.KindTestFailover, Comments: comments},
		func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error {
			it.Test = dr.TestCleaning
			if comments == "" {
				return nil
			}
			return v.st.Note(ctx, tx, vaultdb.Event{Kind: "testNotes", Item: id, By: by}, "notes on the test failover of %s: %s", it.VMName, comments)
		})
}

// Commit makes a pending failover final: the recovery VM is the production VM
// and replication from the old source has ended.
func (v failovers) Commit(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return v.startItem(ctx, id, OpCommit, "CommitFailover", by, itemInput{Item: id}, func(context.Context, *sql.Tx, *vaultdb.Item) error { return nil })
}

// CancelFailover takes a pending failover back: the recovery VM is removed
// with what was written in it, the source VM is started again if the failover
// had shut it down, and replication goes on in a new generation from the last good cut.
func (v failovers) CancelFailover(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return v.startItem(ctx, id, OpCancelFailover, "CancelFailover", by, itemInput{Item: id, Kind: dr.KindUnplannedFailover},
		func(_ context.Context, _ *sql.Tx, it *vaultdb.Item) error {
			it.Failover = dr.FailoverCancelling
			return nil
		})
}

// ChangePoint replaces the recovery VM of a pending failover by one from
// another recovery point.
func (v failovers) ChangePoint(ctx context.Context, id dr.ItemID, point, by string) (dr.JobID, error) {
	in := itemInput{Item: id, Kind: dr.KindUnplannedFailover, Point: point}
	return v.startItem(ctx, id, OpChangePit, "ChangePit", by, in, func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error {
		_, err := v.Resolve(ctx, tx, *it, point)
		return err
	})
}

func decodeInput(j *job.Job, in *itemInput) error {
	if err := json.Unmarshal(j.Input, in); err != nil {
		return dr.Errorf(dr.KindCorrupt, "vault.decodeInput", "decode the input of job %s: %w", j.ID, err)
	}
	return nil
}

func (v endings) plainFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(*vaultdb.Item) error { return nil })
}

// servingOf finds the item's serving for a test or for a failover; ok is false if there is none.
func servingOf(ctx context.Context, q sqldb.Querier, item dr.ItemID, test bool, except string) (s vaultdb.Serving, ok bool, err error) {
	all, err := vaultdb.Servings(ctx, q, item)
	for _, x := range all {
		if (x.Kind == dr.KindTestFailover) == test && x.ID != except {
			return x, true, err
		}
	}
	return s, false, err
}

// testFinal: the test VM waits for its clean-up; after a failure it does so
// only if there is something to clean up.
func (v endings) testFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		_, left, err := servingOf(ctx, tx, it.ID, true, "")
		switch {
		case j.State == job.Succeeded:
			it.Test = dr.TestWaiting
		case left:
			it.Test = dr.TestFailed
		default:
			it.Test, it.TestVM, it.TestNetwork = dr.TestNone, "", ""
		}
		if j.State != job.Succeeded && it.LastTestReport == "" {
			it.LastTestReport = testReport{Job: j.ID, Reason: failureText(j)}.text()
		}
		return err
	})
}

func failureText(j *job.Job) string {
	if j.Failure != nil {
		return j.Failure.Message
	}
	return string(j.State)
}

// testReport is the JSON of ProtectedItem.LastTestReport.
type testReport struct {
	OK         bool    `json:"ok"`
	Job        string  `json:"job"`
	VM         string  `json:"vm,omitempty"`
	Point      string  `json:"recoveryPoint,omitempty"`
	BootSecs   float64 `json:"bootSeconds,omitempty"`
	RTOSecs    float64 `json:"rtoSeconds,omitempty"`
	Matched    string  `json:"matched,omitempty"`
	Console    string  `json:"console,omitempty"`
	Screenshot string  `json:"screenshot,omitempty"` // id of the job that has it
	Reason     string  `json:"reason,omitempty"`
	At         string  `json:"at,omitempty"`
}

func (r testReport) text() string {
	b, err := json.Marshal(r)
	if err != nil { // only strings and finite numbers go in
		return "{}"
	}
	return string(b)
}

// cleanupFinal: a test counts when both it and its clean-up succeeded.
func (v endings) cleanupFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		_, left, err := servingOf(ctx, tx, it.ID, true, "")
		if err != nil {
			return err
		}
		if left {
			it.Test = dr.TestFailed
			return nil
		}
		var r testReport
		if json.Unmarshal([]byte(it.LastTestReport), &r) == nil && r.OK {
			it.LastTest = v.st.Now()
		}
		it.Test, it.TestVM, it.TestNetwork = dr.TestNone, "", ""
		return nil
	})
}

// failoverFinal: the VM runs at the recovery site, or everything is as before.
func (v endings) failoverFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		s, left, err := servingOf(ctx, tx, it.ID, false, "")
		if err != nil {
			return err
		}
		if j.State == job.Succeeded {
			it.Failover, it.Active, it.LastFailover = dr.FailoverCommitPending, dr.AtRecovery, v.st.Now()
			return v.startMakeLocal(ctx, tx, *it, s, j)
		}
		it.Failover, it.Active, it.FailedOverTo = dr.FailoverFailed, dr.AtPrimary, ""
		if j.State == job.Cancelled && !left {
			it.Failover = dr.FailoverNone
		}
		if !left {
			it.RecoveryVM = ""
		}
		return nil
	})
}

// startMakeLocal submits the job that frees the recovery VM from the store. It
// has a lock of its own: it never stands in the way of a commit.
func (v endings) startMakeLocal(ctx context.Context, tx *sql.Tx, it vaultdb.Item, s vaultdb.Serving, j *job.Job) error {
	if s.ID == "" || s.Local {
		return nil
	}
	return v.SubmitItem(ctx, tx, j.ID+"-local", "MakeLocal", work.LockMakeLocal(it.ID), it, itemInput{Item: it.ID, Serving: s.ID}, j.By)
}

func (v endings) commitFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		if j.State == job.Succeeded {
			it.Failover = dr.FailoverCommitted
		}
		return nil
	})
}

// cancelFinal: back at the primary site, unless the recovery VM could not be removed.
func (v endings) cancelFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		_, left, err := servingOf(ctx, tx, it.ID, false, "")
		switch {
		case err != nil:
			return err
		case left && it.FailedOverTo != "" && it.Active == dr.AtRecovery:
			it.Failover = dr.FailoverCommitPending
			return nil
		case left || j.State != job.Succeeded:
			it.Failover = dr.FailoverFailed
		default:
			it.Failover = dr.FailoverNone
		}
		it.Active = dr.AtPrimary
		if !left {
			it.RecoveryVM, it.FailedOverTo = "", ""
		}
		return nil
	})
}

// changeFinal: the failover stays pending, whichever point runs.
func (v endings) changeFinal(ctx context.Context, tx *sql.Tx, j *job.Job) error {
	return v.finish(ctx, tx, j, func(it *vaultdb.Item) error {
		s, left, err := servingOf(ctx, tx, it.ID, false, "")
		if err != nil {
			return err
		}
		if !left {
			it.RecoveryVM = ""
		}
		if s.VM == "" {
			return nil
		}
		return v.startMakeLocal(ctx, tx, *it, s, j)
	})
}
