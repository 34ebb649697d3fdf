package armapi

import (
	"net/http"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// maxJobs is how many of the newest jobs a list covers; older ones are found
// with a $filter on StartTime and EndTime.
const maxJobs = 1000

// listJobs understands in $filter: JobStatus, JobName (the scenario), StartTime,
// EndTime, AffectedObjectTypes, FabricId (ignored: jobs are not kept by site) and
// ItemId (holdfast). Some clients write "StartTime eq" for "from" and "EndTime eq" for "until".
func listJobs(c *call) (reply, error) {
	terms, err := parseFilter(queryValue(c.r.URL.Query(), "$filter"))
	if err != nil {
		return reply{}, err
	}
	f := vault.JobFilter{Limit: maxJobs}
	var status, target string
	for _, t := range terms {
		switch {
		case t.field == "jobstatus" && t.op == "eq":
			for w := range strings.SplitSeq(t.value, ",") {
				states := statesOf(strings.TrimSpace(w))
				if states == nil {
					return reply{}, dr.New(dr.KindInvalid, codeInvalidFilter, "armapi.jobs", "$filter: %q is not a job status", clip(w))
				}
				f.States = append(f.States, states...)
			}
			status = t.value
		case t.field == "jobname" && t.op == "eq":
			f.Scenario = t.value
		case (t.field == "itemid" || t.field == "holdfastitemid") && t.op == "eq":
			f.Item = dr.ItemID(strings.ToLower(t.value))
		case t.field == "starttime" && (t.op == "eq" || t.op == "ge" || t.op == "gt"):
			f.Since, err = filterTime(t.value)
		case t.field == "endtime" && (t.op == "eq" || t.op == "le" || t.op == "lt"):
			f.Until, err = filterTime(t.value)
		case t.field == "affectedobjecttypes" && t.op == "eq":
			target = t.value
		case t.field == "fabricid" && t.op == "eq":
		default:
			return reply{}, dr.New(dr.KindInvalid, codeInvalidFilter, "armapi.jobs", "$filter: field %q with operator %q is not understood for jobs", clip(t.field), t.op)
		}
		if err != nil {
			return reply{}, err
		}
	}
	jobs, err := c.svc().Jobs(c.ctx(), f)
	if err != nil {
		return reply{}, err
	}
	kept := make([]dr.Job, 0, len(jobs))
	for _, j := range jobs {
		if word, _ := jobState(j.State, j.CanResume); status != "" && !statusMatches(status, word) {
			continue // waiting jobs are InProgress or Suspended, which the service can't tell apart
		}
		if target == "" || oneOf(target, j.TargetType) {
			kept = append(kept, j)
		}
	}
	return page(c, kept, func(j dr.Job) string { return string(j.ID) }, func(j dr.Job) (armwire.Resource[armwire.Job], error) {
		return c.jobResource(j), nil
	})
}

// statusMatches compares a job's word with those of a filter, allowing both spellings.
func statusMatches(filter, word string) bool {
	for w := range strings.SplitSeq(filter, ",") {
		w = strings.TrimSpace(w)
		switch {
		case strings.EqualFold(w, "Canceled"):
			w = "Cancelled"
		case strings.EqualFold(w, "Completed"):
			w = "Succeeded"
		}
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

func (c *call) job() (dr.Job, error) {
	return c.svc().Job(c.ctx(), dr.JobID(strings.ToLower(c.name(tJobs))))
}

func getJob(c *call) (reply, error) {
	j, err := c.job()
	if err != nil {
		return reply{}, err
	}
	return ok(c.jobResource(j))
}

func (c *call) jobID(id dr.JobID) string { return c.vaultID().ID(tJobs, string(id)) }

func (c *call) jobResource(j dr.Job) armwire.Resource[armwire.Job] {
	state, description := jobState(j.State, j.CanResume)
	p := armwire.Job{
		ActivityID: string(j.ID), ScenarioName: j.Scenario, FriendlyName: j.Title, State: state, StateDescription: description,
		Tasks: make([]armwire.Task, 0, len(j.Tasks)), Errors: []armwire.JobError{}, StartTime: armwire.Time(firstTime(j.Started, j.Created)), EndTime: armwire.Time(j.Ended),
		AllowedActions: []string{}, TargetObjectID: j.TargetID, TargetObjectName: j.TargetName, TargetInstanceType: j.TargetType,
		RequestedBy: j.By, ItemID: string(j.Item), ProgressPercent: jobPercent(j),
	}
	for _, a := range []struct {
		can  bool
		name string
	}{{j.CanCancel, "Cancel"}, {j.CanRestart, "Restart"}, {j.CanResume, "Resume"}} {
		if a.can {
			p.AllowedActions = append(p.AllowedActions, a.name)
		}
	}
	for _, t := range j.Tasks {
		state, description := jobState(t.State, j.CanResume)
		wire := armwire.Task{
			TaskID: t.Name, Name: t.Name, StartTime: armwire.Time(t.Started), EndTime: armwire.Time(t.Ended), AllowedActions: []string{}, FriendlyName: firstNonEmpty(t.Title, t.Name),
			State: state, StateDescription: description, TaskType: "TaskDetails", Errors: []armwire.JobError{}, ProgressPercent: taskPercent(t),
			ETASeconds: int64(t.ETA / time.Second), Note: t.Note, Attempt: t.Attempt,
		}
		for _, e := range j.Errors {
			if e.Task == t.Name {
				wire.Errors = append(wire.Errors, jobError(e, j.ID))
			}
		}
		p.Tasks = append(p.Tasks, wire)
	}
	for _, e := range j.Errors {
		p.Errors = append(p.Errors, jobError(e, j.ID))
	}
	p.CustomDetails = c.jobDetails(j)
	return armwire.Resource[armwire.Job]{ID: c.jobID(j.ID), Name: string(j.ID), Type: armwire.ResourceType(tJobs, ""), Properties: p}
}

func firstTime(ts ...time.Time) time.Time {
	for _, t := range ts {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

func taskPercent(t dr.Task) float64 {
	switch {
	case t.State == dr.JobSucceeded || t.State == dr.JobSkipped:
		return 100
	case t.Percent < 0:
		return 0
	}
	return min(t.Percent, 100)
}

// jobPercent is the mean over the tasks.
func jobPercent(j dr.Job) float64 {
	if j.State == dr.JobSucceeded {
		return 100
	}
	if len(j.Tasks) == 0 {
		return 0
	}
	sum := 0.0
	for _, t := range j.Tasks {
		sum += taskPercent(t)
	}
	return sum / float64(len(j.Tasks))
}

func jobError(e dr.JobError, job dr.JobID) armwire.JobError {
	entry, _ := dr.Lookup(e.Code)
	return armwire.JobError{
		ServiceErrorDetails: &armwire.ServiceError{Code: string(e.Code), Message: e.Message, PossibleCauses: entry.Cause,
			RecommendedAction: firstNonEmpty(e.Hint, entry.Remedy), ActivityID: string(job)},
		ErrorLevel: "Error", CreationTime: armwire.Time(e.At), TaskID: e.Task,
	}
}

// Keys of dr.Job.Outcome that the API gives a meaning; all others are passed on as they are.
const (
	outcomeVM         = "vm"
	outcomePoint      = "recoveryPoint"
	outcomePointTime  = "recoveryPointTime" // RFC 3339
	outcomeSeconds    = "bootSeconds"
	outcomeScreenshot = "screenshot"
	outcomeNetwork    = "network"
	outcomeVerified   = "bootVerified" // "true" or "false"
	outcomeMatched    = "matched"
)

// jobDetails chooses the kind of details by the scenario.
func (c *call) jobDetails(j dr.Job) armwire.JobDetails {
	d := armwire.JobDetails{InstanceType: armwire.AsrJobDetails, AffectedObjectDetails: map[string]string{}, Outcome: j.Outcome}
	switch j.Scenario {
	case "TestFailover":
		d.InstanceType = armwire.TestFailoverJobDetails
		d.NetworkName, d.NetworkFriendlyName = j.Outcome[outcomeNetwork], j.Outcome[outcomeNetwork]
		switch {
		case j.State == dr.JobSucceeded:
			d.TestFailoverStatus = "Completed"
		case j.State.Final():
			d.TestFailoverStatus = "Failed"
		default:
			d.TestFailoverStatus = "Active"
		}
	case "PlannedFailover", "UnplannedFailover":
		d.InstanceType = armwire.FailoverJobDetails
	default:
		return d
	}
	item := armwire.FailoverItem{Name: j.TargetID, FriendlyName: j.TargetName, NetworkFriendlyName: j.Outcome[outcomeNetwork], RecoveryPointID: j.Outcome[outcomePoint]}
	if at, err := time.Parse(time.RFC3339, j.Outcome[outcomePointTime]); err == nil {
		item.RecoveryPointTime = &at
	}
	if d.InstanceType == armwire.TestFailoverJobDetails {
		item.TestVMName, item.TestVMFriendlyName = j.Outcome[outcomeVM], j.Outcome[outcomeVM]
	}
	d.ProtectedItemDetails = []armwire.FailoverItem{item}
	if j.Outcome[outcomeVM] != "" || j.Outcome[outcomeVerified] != "" {
		d.BootProof = &armwire.BootProof{VM: j.Outcome[outcomeVM], RecoveryPoint: j.Outcome[outcomePoint], Seconds: j.Outcome[outcomeSeconds],
			Verified: j.Outcome[outcomeVerified] == "true", Matched: j.Outcome[outcomeMatched]}
	}
	if j.Outcome[outcomeScreenshot] != "" {
		d.ScreenshotURL = c.base + "/holdfast/v1/jobs/" + string(j.ID) + "/screenshot"
	}
	return d
}

// changeJob serves cancel, restart and resume: the answer is the job itself.
func (c *call) changeJob(do func(dr.JobID) error) (reply, error) {
	j, err := c.job()
	if err != nil {
		return reply{}, err
	}
	if err := do(j.ID); err != nil {
		return reply{}, err
	}
	return getJob(c)
}

func cancelJob(c *call) (reply, error) {
	return c.changeJob(func(id dr.JobID) error { return c.svc().CancelJob(c.ctx(), id, c.who.Name) })
}

func restartJob(c *call) (reply, error) {
	return c.changeJob(func(id dr.JobID) error { return c.svc().RestartJob(c.ctx(), id, c.who.Name) })
}

func resumeJob(c *call) (reply, error) {
	var in armwire.Input[armwire.ResumeInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	return c.changeJob(func(id dr.JobID) error {
		return c.svc().ResumeJob(c.ctx(), id, in.Properties.Comments, c.who.Name)
	})
}

// operationState renders a job as a long-running operation; failure is not nil
// for the states Failed and Canceled.
func operationState(j dr.Job) (status string, failure *armwire.Error) {
	switch j.State {
	case dr.JobSucceeded, dr.JobSkipped:
		return armwire.OperationSucceeded, nil
	case dr.JobCancelled:
		return armwire.OperationCanceled, &armwire.Error{Code: "OperationCanceled", Message: "job " + string(j.ID) + " was cancelled", Kind: dr.KindCanceled.String()}
	case dr.JobFailed:
	default:
		return armwire.OperationInProgress, nil
	}
	e := &armwire.Error{Code: "JobFailed", Message: "job " + string(j.ID) + " failed", Kind: dr.KindInternal.String()}
	if n := len(j.Errors); n > 0 {
		last := j.Errors[n-1]
		entry, known := dr.Lookup(last.Code)
		e.Message, e.Hint = last.Message, firstNonEmpty(last.Hint, entry.Remedy)
		e.Code = firstNonEmpty(string(last.Code), e.Code)
		if known {
			e.Kind = entry.Kind.String()
		}
	}
	if e.Hint != "" {
		e.Details = []armwire.ErrorDetail{{Code: "RecommendedAction", Message: e.Hint}}
	}
	return armwire.OperationFailed, e
}

// getOperation is what Azure-AsyncOperation points to.
func getOperation(c *call) (reply, error) {
	id := c.id.Segments[len(c.id.Segments)-1].Name
	j, err := c.svc().Job(c.ctx(), dr.JobID(strings.ToLower(id)))
	if err != nil {
		return reply{}, err
	}
	status, failure := operationState(j)
	percent := jobPercent(j)
	return reply{status: http.StatusOK, body: armwire.OperationStatus{
		ID: c.vaultID().ID(tOperations, string(j.ID)), Name: string(j.ID), Status: status, Percent: &percent,
		StartTime: armwire.Time(firstTime(j.Started, j.Created)), EndTime: armwire.Time(j.Ended), Error: failure,
	}}, nil
}
