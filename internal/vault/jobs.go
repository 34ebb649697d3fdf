package vault

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/vaultdb"
)

// Keys of a job's meta data.
const (
	metaItem   = "item"   // id of the protected item
	metaTarget = "target" // domain id of the target
)

// scenario is what a kind of job is made of. The kind is the scenario's name on
// the Jobs page.
type scenario struct {
	title  string
	steps  []step
	onFail []step
}

// step is one named step; the key of its handler is kind/name.
type step struct {
	name, title string
	attempts    int // 0 = the engine's default
	run         job.Handler
}

func specs(steps []step) []job.StepSpec {
	out := make([]job.StepSpec, len(steps))
	for i, s := range steps {
		out[i] = job.StepSpec{Name: s.name, Title: s.title, MaxAttempts: s.attempts}
	}
	return out
}

// scenarios are all kinds of jobs of the vault.
func (v *Vault) scenarios() map[string]scenario {
	all := v.itemScenarios()
	for kind, title := range map[string]string{
		"CreateSite": "Create site", "DeleteSite": "Remove site", "RegisterDra": "Register host", "DeleteDra": "Remove host",
		"AddProtectionProfile": "Create replication policy", "UpdateProtectionProfile": "Change replication policy",
		"DeleteProtectionProfile": "Remove replication policy", "PairCloud": "Map protection container", "UnpairCloud": "Unmap protection container",
		"UpdateVmProperties": "Change settings of the protected item",
	} {
		all[kind] = scenario{title: title, steps: []step{{name: "Apply", title: title, run: func(context.Context, *job.StepContext) (job.Result, error) {
			return job.Done(nil, nil), nil // it was done when the job was submitted
		}}}}
	}
	all["RefreshDra"] = scenario{title: "Refresh host", steps: []step{{name: "RefreshInventory", title: "Ask the host for its VMs", attempts: 3, run: v.refreshStep()}}}
	all["CheckConsistency"] = scenario{title: "Check consistency of the site", steps: []step{{name: "ReconcileRecoveryPoints", title: "Compare the catalogue with the store", attempts: 4, run: v.consistencyStep}}}
	return all
}

func (v *Vault) handlers() map[string]job.Handler {
	out := map[string]job.Handler{}
	for kind, sc := range v.kinds {
		for _, s := range append(slices.Clone(sc.steps), sc.onFail...) {
			out[kind+"/"+s.name] = s.run
		}
	}
	return out
}

// quickJob describes work that is done in the transaction that submits its job.
type quickJob struct {
	kind, targetType, target, targetID, by string
	item                                   dr.ItemID
	audit                                  bool
}

// quick does the work and records it as a job, in one transaction.
func (v *Vault) quick(ctx context.Context, q quickJob, work func(*sql.Tx) error) (dr.JobID, error) {
	id := ordered()
	err := v.tx(ctx, func(tx *sql.Tx) error {
		if err := work(tx); err != nil {
			return err
		}
		v.db.NotifyTx(tx, topicChange, "site/"+q.targetID)
		return v.quickIn(ctx, tx, id, q)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(id), nil
}

func (v *Vault) quickIn(ctx context.Context, tx *sql.Tx, id string, q quickJob) error {
	if q.audit {
		if err := v.note(ctx, tx, vaultdb.Event{Kind: q.kind, Item: q.item, By: q.by, Audit: true}, "%s: %s", q.kind, q.target); err != nil {
			return err
		}
	}
	_, err := v.engine.Submit(ctx, tx, job.Spec{ID: id, Kind: q.kind, TargetType: q.targetType, TargetName: q.target, By: q.by,
		Steps: specs(v.kinds[q.kind].steps), Meta: map[string]string{metaTarget: q.targetID, metaItem: string(q.item)}})
	return err
}

// Lock keys of jobs: one job of each may be active.
func lockOf(it dr.ItemID) string        { return string(it) }
func lockInitial(it dr.ItemID) string   { return "initial:" + string(it) }
func lockMakeLocal(it dr.ItemID) string { return "local:" + string(it) }

// submitItem submits a job of an item under a lock key.
func (v *Vault) submitItem(ctx context.Context, tx *sql.Tx, id, kind, lock string, it vaultdb.Item, input any, by string) error {
	sc := v.kinds[kind]
	_, err := v.engine.Submit(ctx, tx, job.Spec{ID: id, Kind: kind, Item: lock, TargetType: "ProtectionEntity", TargetName: it.VMName, By: by,
		Input: input, Steps: specs(sc.steps), OnFail: specs(sc.onFail), Meta: map[string]string{metaTarget: string(it.ID), metaItem: string(it.ID)}})
	return err
}

// startItem submits the job of an operation: the operation is checked, the
// item's axes are moved by begin, the event log is written, all in one transaction.
func (v *Vault) startItem(ctx context.Context, id dr.ItemID, op Operation, kind, by string, input any,
	begin func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item) error) (dr.JobID, error) {
	job := ordered()
	err := v.tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		// The job first: it says which other job is in the way, and everybody takes
		// the locks in the order job, item.
		if err := v.submitItem(ctx, tx, job, kind, lockOf(id), it, input, by); err != nil {
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
		if err := v.saveItem(ctx, tx, it); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: kind, Item: id, By: by, Audit: true}, "%s of %s was started: job %s", kind, it.VMName, job)
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

// saveItem stores an item and tells the portal and the source agent.
func (v *Vault) saveItem(ctx context.Context, tx *sql.Tx, it vaultdb.Item) error {
	v.db.NotifyTx(tx, topicChange, "item/"+string(it.ID))
	v.db.NotifyTx(tx, topicAssign, string(it.SourceAgent))
	return vaultdb.UpdateItem(ctx, tx, it)
}

// stepOut is what the vault's steps leave as output.
type stepOut struct {
	Outcome map[string]string `json:"outcome,omitempty"` // shown to people
	Agent   dr.AgentID        `json:"agent,omitempty"`
	Serving string            `json:"serving,omitempty"`
	Gen     dr.Generation     `json:"gen,omitempty"`
	N       uint64            `json:"n,omitempty"`
	Time    int64             `json:"time,omitempty"` // Unix µs, of the recovery point
	Skipped string            `json:"skipped,omitempty"`
}

// Job finds a job with its tasks.
func (v *Vault) Job(ctx context.Context, id dr.JobID) (dr.Job, error) {
	j, err := v.engine.Get(ctx, string(id))
	if err != nil {
		return dr.Job{}, err
	}
	out := v.view(j)
	if _, err := vaultdb.Screenshot(ctx, v.q(), id); err == nil {
		out.Outcome["screenshot"] = string(id)
	}
	return out, nil
}

// Screenshot returns the console picture that a job took of its VM, a PNG.
func (v *Vault) Screenshot(ctx context.Context, id dr.JobID) ([]byte, error) {
	return get(vaultdb.Screenshot(ctx, v.q(), id))
}

// Jobs lists jobs, newest first, without their tasks.
func (v *Vault) Jobs(ctx context.Context, f JobFilter) ([]dr.Job, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 200
	}
	filters := []job.Filter{{Since: f.Since, Until: f.Until, Limit: min(limit, 1000)}}
	if f.Scenario != "" {
		filters[0].Kinds = []string{f.Scenario}
	}
	if f.Item != "" { // an item's jobs are kept under three lock keys
		base := filters[0]
		filters = nil
		for _, lock := range []string{lockOf(f.Item), lockInitial(f.Item), lockMakeLocal(f.Item)} {
			base.Item = lock
			filters = append(filters, base)
		}
	}
	var out []dr.Job
	for _, q := range filters {
		for n := 0; n < limit; {
			page, next, err := v.engine.List(ctx, q)
			if err != nil {
				return nil, err
			}
			for _, j := range page {
				if x := v.view(j); len(f.States) == 0 || slices.Contains(f.States, x.State) {
					out = append(out, x)
					n++
				}
			}
			if q.After = next; next == "" {
				break
			}
		}
	}
	slices.SortStableFunc(out, func(a, b dr.Job) int { return b.Created.Compare(a.Created) })
	return out[:min(len(out), limit)], nil
}

// view maps the engine's job to the domain's.
func (v *Vault) view(j *job.Job) dr.Job {
	out := dr.Job{ID: dr.JobID(j.ID), Scenario: j.Kind, Title: j.Kind, TargetType: j.TargetType, TargetID: j.Meta[metaTarget], TargetName: j.TargetName,
		Item: dr.ItemID(j.Meta[metaItem]), State: jobState(j), By: j.By, Created: j.Created, Started: j.Started, Ended: j.Finished, Outcome: map[string]string{}}
	if sc, ok := titles[j.Kind]; ok {
		out.Title = sc
	}
	out.CanCancel = !j.State.Final() && j.CancelRequested.IsZero() && j.Outcome == ""
	out.CanRestart = j.State == job.Failed && restartable[j.Kind]
	out.CanResume = j.State == job.Waiting && j.WaitKind == "signal"
	for _, s := range j.Steps {
		if s.OnFail && s.State == job.StepSkipped && j.Outcome == "" {
			continue // compensation that was not needed
		}
		out.Tasks = append(out.Tasks, dr.Task{Name: s.Name, Title: s.Title, State: taskStates[s.State], Started: s.Started, Ended: s.Finished,
			Percent: s.Pct, Note: s.Note, Attempt: s.Attempt})
		for _, f := range s.Failures {
			out.Errors = append(out.Errors, dr.JobError{Task: s.Name, Code: f.Code, Message: f.Message, Hint: f.Hint, At: f.At})
		}
		var o stepOut
		if s.State == job.StepSucceeded && json.Unmarshal(s.Output, &o) == nil {
			maps.Copy(out.Outcome, o.Outcome)
		}
	}
	if len(j.Steps) == 0 && j.Failure != nil {
		out.Errors = []dr.JobError{{Task: j.Failure.Step, Code: j.Failure.Code, Message: j.Failure.Message, Hint: j.Failure.Hint, At: j.Failure.At}}
	}
	return out
}

var taskStates = map[job.StepState]dr.JobState{job.StepPending: dr.JobNotStarted, job.StepRunning: dr.JobInProgress, job.StepWaiting: dr.JobInProgress,
	job.StepSucceeded: dr.JobSucceeded, job.StepFailed: dr.JobFailed, job.StepSkipped: dr.JobSkipped, job.StepCancelled: dr.JobCancelled}

func jobState(j *job.Job) dr.JobState {
	switch j.State {
	case job.Succeeded:
		return dr.JobSucceeded
	case job.Failed:
		return dr.JobFailed
	case job.Cancelled:
		return dr.JobCancelled
	}
	switch {
	case !j.CancelRequested.IsZero() || j.Outcome == job.Cancelled:
		return dr.JobCancelling
	case j.Started.IsZero():
		return dr.JobNotStarted
	case j.State == job.Waiting && j.WaitKind == "signal":
		return dr.JobWaiting
	}
	return dr.JobInProgress
}

// CancelJob asks a job to stop. What it did so far is undone by its own steps.
func (v *Vault) CancelJob(ctx context.Context, id dr.JobID, by string) error {
	return v.engine.Cancel(ctx, nil, string(id), by)
}

// RestartJob runs a failed job again; the item must still allow its operation.
func (v *Vault) RestartJob(ctx context.Context, id dr.JobID, by string) error {
	j, err := v.engine.Get(ctx, string(id))
	if err != nil {
		return err
	}
	if !restartable[j.Kind] {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.RestartJob", "a %s can't be restarted: start the operation again", j.Kind)
	}
	return v.tx(ctx, func(tx *sql.Tx) error {
		if err := v.engine.Restart(ctx, tx, string(id)); err != nil {
			return err
		}
		item := dr.ItemID(j.Meta[metaItem])
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
		if j.Item == lockOf(item) {
			it.Job = id
		}
		if err := v.saveItem(ctx, tx, it); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: j.Kind, Item: item, By: by, Audit: true}, "job %s (%s of %s) was restarted", id, j.Kind, it.VMName)
	})
}

// ResumeJob lets a job that waits for a person go on.
func (v *Vault) ResumeJob(ctx context.Context, id dr.JobID, comments, by string) error {
	j, err := v.engine.Get(ctx, string(id))
	if err != nil {
		return err
	}
	if j.State != job.Waiting || j.WaitKind != "signal" {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.ResumeJob", "job %s does not wait for anybody", id)
	}
	return v.engine.Signal(ctx, nil, string(id), j.WaitFor, map[string]string{"comments": comments}, by)
}
