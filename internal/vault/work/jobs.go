// Package work turns what a vault does into jobs: it knows the kinds of jobs
// with their steps, submits them together with the change that they carry out,
// and shows the engine's rows as the jobs of package dr.
package work

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// Keys of a job's meta data.
const (
	MetaItem   = "item"   // id of the protected item
	MetaTarget = "target" // domain id of the target
)

// Scenario is what a kind of job is made of. The kind is the scenario's name on
// the Jobs page.
type Scenario struct {
	Title       string
	Steps       []Step
	OnFail      []Step
	Restartable bool // a failed job may run again; else its operation is started again
}

// Step is one named step; the key of its handler is kind/name.
type Step struct {
	Name, Title string
	Attempts    int // 0 = the engine's default
	Run         job.Handler
}

func specs(steps []Step) []job.StepSpec {
	out := make([]job.StepSpec, len(steps))
	for i, s := range steps {
		out[i] = job.StepSpec{Name: s.Name, Title: s.Title, MaxAttempts: s.Attempts}
	}
	return out
}

// JobFilter selects jobs; zero fields do not restrict.
type JobFilter struct {
	Item     dr.ItemID
	Scenario string
	States   []dr.JobState
	Since    time.Time
	Until    time.Time
	Limit    int // 0 = 200
}

// Board is the jobs of a vault. It is safe for concurrent use.
type Board struct {
	Engine *job.Engine
	st     *state.State
	kinds  map[string]Scenario
}

// New makes the board and its engine; it does no I/O. Of the engine's
// configuration the board sets database, handlers, ends and log. Kinds without
// steps are work that is done when its job is submitted (Quick).
func New(st *state.State, cfg job.Config, kinds map[string]Scenario, finals map[string]func(context.Context, *sql.Tx, *job.Job) error) (*Board, error) {
	w := &Board{st: st, kinds: map[string]Scenario{}}
	cfg.DB, cfg.Log, cfg.OnFinal, cfg.Handlers = st.DB, st.Log, finals, map[string]job.Handler{}
	for kind, sc := range kinds {
		if len(sc.Steps) == 0 {
			sc.Steps = []Step{{Name: "Apply", Title: sc.Title, Run: func(context.Context, *job.StepContext) (job.Result, error) { return job.Done(nil, nil), nil }}}
		}
		w.kinds[kind] = sc
		for _, s := range append(slices.Clone(sc.Steps), sc.OnFail...) {
			cfg.Handlers[kind+"/"+s.Name] = s.Run
		}
	}
	engine, err := job.New(cfg)
	w.Engine = engine
	return w, err
}

// Quick describes work that is done in the transaction that submits its job.
type Quick struct {
	Kind, TargetType, Target, TargetID, By string
	Item                                   dr.ItemID
	Audit                                  bool // to be found in the audit log
}

// Quick does the work and records it as a job, in one transaction.
func (w *Board) Quick(ctx context.Context, q Quick, work func(*sql.Tx) error) (dr.JobID, error) {
	id := state.Ordered()
	err := w.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := work(tx); err != nil {
			return err
		}
		w.st.Changed(tx, "site", q.TargetID)
		return w.QuickIn(ctx, tx, id, q)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(id), nil
}

func (w *Board) QuickIn(ctx context.Context, tx *sql.Tx, id string, q Quick) error {
	if q.Audit {
		if err := w.st.Note(ctx, tx, vaultdb.Event{Kind: q.Kind, Item: q.Item, By: q.By, Audit: true}, "%s: %s", q.Kind, q.Target); err != nil {
			return err
		}
	}
	_, err := w.Engine.Submit(ctx, tx, job.Spec{ID: id, Kind: q.Kind, TargetType: q.TargetType, TargetName: q.Target, By: q.By,
		Steps: specs(w.kinds[q.Kind].Steps), Meta: map[string]string{MetaTarget: q.TargetID, MetaItem: string(q.Item)}})
	return err
}

// LockOf is the lock key of an item's operations: one job of a key may be active.
func LockOf(it dr.ItemID) string { return string(it) }

// LockInitial is the lock key of an item's initial replication.
func LockInitial(it dr.ItemID) string { return "initial:" + string(it) }

// LockMakeLocal is the lock key of copying an item's recovery VM.
func LockMakeLocal(it dr.ItemID) string { return "local:" + string(it) }

// LockMaintain is the lock key of an item's maintenance on demand.
func LockMaintain(it dr.ItemID) string { return "maintain:" + string(it) }

// LockScrub is the lock key of an item's scrub on demand.
func LockScrub(it dr.ItemID) string { return "scrub:" + string(it) }

// SubmitItem submits a job of an item under a lock key.
func (w *Board) SubmitItem(ctx context.Context, tx *sql.Tx, id, kind, lock string, it vaultdb.Item, input any, by string) error {
	sc := w.kinds[kind]
	_, err := w.Engine.Submit(ctx, tx, job.Spec{ID: id, Kind: kind, Item: lock, TargetType: "ProtectionEntity", TargetName: it.VMName, By: by,
		Input: input, Steps: specs(sc.Steps), OnFail: specs(sc.OnFail), Meta: map[string]string{MetaTarget: string(it.ID), MetaItem: string(it.ID)}})
	return err
}

// StepOut is what the vault's steps leave as output.
type StepOut struct {
	Outcome map[string]string `json:"outcome,omitempty"` // shown to people
	Agent   dr.AgentID        `json:"agent,omitempty"`
	Serving string            `json:"serving,omitempty"`
	Gen     dr.Generation     `json:"gen,omitempty"`
	N       uint64            `json:"n,omitempty"`
	Time    int64             `json:"time,omitempty"` // Unix µs, of the recovery point
	Skipped string            `json:"skipped,omitempty"`
}

// Job finds a job with its tasks.
func (w *Board) Job(ctx context.Context, id dr.JobID) (dr.Job, error) {
	j, err := w.Engine.Get(ctx, string(id))
	if err != nil {
		return dr.Job{}, err
	}
	out := w.view(j)
	if _, err := vaultdb.Screenshot(ctx, w.st.Q(), id); err == nil {
		out.Outcome["screenshot"] = string(id)
	}
	return out, nil
}

// Screenshot returns the console picture that a job took of its VM, a PNG.
func (w *Board) Screenshot(ctx context.Context, id dr.JobID) ([]byte, error) {
	return state.Get(vaultdb.Screenshot(ctx, w.st.Q(), id))
}

// Jobs lists jobs, newest first, without their tasks.
func (w *Board) Jobs(ctx context.Context, f JobFilter) ([]dr.Job, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 200
	}
	filters := []job.Filter{{Since: f.Since, Until: f.Until, Limit: min(limit, 1000)}}
	if f.Scenario != "" {
		filters[0].Kinds = []string{f.Scenario}
	}
	if f.Item != "" { // an item's jobs are kept under several lock keys
		base := filters[0]
		filters = nil
		for _, lock := range []string{LockOf(f.Item), LockInitial(f.Item), LockMakeLocal(f.Item), LockMaintain(f.Item), LockScrub(f.Item)} {
			base.Item = lock
			filters = append(filters, base)
		}
	}
	var out []dr.Job
	for _, q := range filters {
		for n := 0; n < limit; {
			page, next, err := w.Engine.List(ctx, q)
			if err != nil {
				return nil, err
			}
			for _, j := range page {
				if x := w.view(j); len(f.States) == 0 || slices.Contains(f.States, x.State) {
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
func (w *Board) view(j *job.Job) dr.Job {
	out := dr.Job{ID: dr.JobID(j.ID), Scenario: j.Kind, Title: j.Kind, TargetType: j.TargetType, TargetID: j.Meta[MetaTarget], TargetName: j.TargetName,
		Item: dr.ItemID(j.Meta[MetaItem]), State: jobState(j), By: j.By, Created: j.Created, Started: j.Started, Ended: j.Finished, Outcome: map[string]string{}}
	sc, ok := w.kinds[j.Kind]
	if ok {
		out.Title = sc.Title
	}
	out.CanCancel = !j.State.Final() && j.CancelRequested.IsZero() && j.Outcome == ""
	out.CanRestart = j.State == job.Failed && sc.Restartable
	out.CanResume = j.State == job.Waiting && j.WaitKind == "signal"
	for _, s := range j.Steps {
		if s.OnFail && s.State == job.StepSkipped && j.Outcome == "" {
			continue // compensation that was not needed
		}
		out.Tasks = append(out.Tasks, dr.Task{Name: s.Name, Title: s.Title, State: taskStates[s.State], Started: s.Started, Ended: s.Finished,
			Percent: s.Pct, ETA: eta(s.Started, s.Pct, s.Finished), Note: s.Note, Attempt: s.Attempt})
		for _, f := range s.Failures {
			out.Errors = append(out.Errors, dr.JobError{Task: s.Name, Code: f.Code, Message: f.Message, Hint: f.Hint, At: f.At})
		}
		var o StepOut
		if s.State == job.StepSucceeded && json.Unmarshal(s.Output, &o) == nil {
			maps.Copy(out.Outcome, o.Outcome)
			if t := &out.Tasks[len(out.Tasks)-1]; o.Skipped != "" {
				t.State, t.Note = dr.JobSkipped, o.Skipped
			}
		}
	}
	if len(j.Steps) == 0 && j.Failure != nil {
		out.Errors = []dr.JobError{{Task: j.Failure.Step, Code: j.Failure.Code, Message: j.Failure.Message, Hint: j.Failure.Hint, At: j.Failure.At}}
	}
	return out
}

// eta is how long a task will still take at the pace so far; 0 = unknown.
func eta(started time.Time, percent float64, finished time.Time) time.Duration {
	spent := time.Since(started)
	if started.IsZero() || !finished.IsZero() || percent < 1 || percent >= 100 || spent < 2*time.Second {
		return 0
	}
	return time.Duration(float64(spent) * (100 - percent) / percent).Round(time.Second)
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
func (w *Board) CancelJob(ctx context.Context, id dr.JobID, by string) error {
	return w.Engine.Cancel(ctx, nil, string(id), by)
}

// Restartable reports whether failed jobs of a kind may run again.
func (w *Board) Restartable(kind string) bool { return w.kinds[kind].Restartable }

// Submit submits a job of a kind that is about a target, outside of any item's lock.
func (w *Board) Submit(ctx context.Context, kind, targetType, target, targetID, by string) (dr.JobID, error) {
	id, err := w.Engine.Submit(ctx, nil, job.Spec{Kind: kind, TargetType: targetType, TargetName: target, By: by,
		Steps: specs(w.kinds[kind].Steps), Meta: map[string]string{MetaTarget: targetID}})
	return dr.JobID(id), err
}

// SubmitInput is Submit with an input of the job's own.
func (w *Board) SubmitInput(ctx context.Context, kind, targetType, target, targetID, by string, input any) (dr.JobID, error) {
	id, err := w.Engine.Submit(ctx, nil, job.Spec{Kind: kind, TargetType: targetType, TargetName: target, By: by, Input: input,
		Steps: specs(w.kinds[kind].Steps), Meta: map[string]string{MetaTarget: targetID}})
	return dr.JobID(id), err
}

// Active finds the job that holds a lock key; "" if none does.
func (w *Board) Active(ctx context.Context, lock string) (string, error) {
	jobs, _, err := w.Engine.List(ctx, job.Filter{Item: lock, States: []job.State{job.Ready, job.Running, job.Waiting}, Limit: 1})
	if err != nil || len(jobs) == 0 {
		return "", err
	}
	return jobs[0].ID, nil
}

// ResumeJob lets a job that waits for a person go on.
func (w *Board) ResumeJob(ctx context.Context, id dr.JobID, comments, by string) error {
	j, err := w.Engine.Get(ctx, string(id))
	if err != nil {
		return err
	}
	if j.State != job.Waiting || j.WaitKind != "signal" {
		return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.ResumeJob", "job %s does not wait for anybody", id)
	}
	return w.Engine.Signal(ctx, nil, string(id), j.WaitFor, map[string]string{"comments": comments}, by)
}
