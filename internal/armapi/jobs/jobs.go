package jobs

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// Screenshots is what a Service may offer beyond Service: the console pictures
// of failover jobs.
type Screenshots interface {
	// Screenshot returns a PNG, KindNotFound if the job has none.
	Screenshot(ctx context.Context, job dr.JobID) ([]byte, error)
}

// WriteScreenshot answers with the console picture that a failover job took.
func WriteScreenshot(c *route.Call, w http.ResponseWriter, job dr.JobID) error {
	shots, ok := c.Svc().(Screenshots)
	if !ok {
		return dr.Errorf(dr.KindUnsupported, "armapi.screenshot", "this vault keeps no screenshots")
	}
	png, err := shots.Screenshot(c.Ctx(), job)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Content-Length", strconv.Itoa(len(png)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(png) // the client is gone; there is nobody to tell
	return nil
}

// MaxJobs is how many of the newest jobs a list covers; older ones are found
// with a $filter on StartTime and EndTime.
const MaxJobs = 1000

// listJobs understands in $filter: JobStatus, JobName (the scenario), StartTime,
// EndTime, AffectedObjectTypes, FabricId (ignored: jobs are not kept by site) and
// ItemId (holdfast). Some clients write "StartTime eq" for "from" and "EndTime eq" for "until".
func listJobs(c *route.Call) (route.Reply, error) {
	terms, err := route.ParseFilter(route.QueryValue(c.R.URL.Query(), "$filter"))
	if err != nil {
		return route.Reply{}, err
	}
	f := vault.JobFilter{Limit: MaxJobs}
	var status, target string
	for _, t := range terms {
		switch {
		case t.Field == "jobstatus" && t.Op == "eq":
			for w := range strings.SplitSeq(t.Value, ",") {
				states := statesOf(strings.TrimSpace(w))
				if states == nil {
					return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidFilter, "armapi.jobs", "$filter: %q is not a job status", route.Clip(w))
				}
				f.States = append(f.States, states...)
			}
			status = t.Value
		case t.Field == "jobname" && t.Op == "eq":
			f.Scenario = t.Value
		case (t.Field == "itemid" || t.Field == "holdfastitemid") && t.Op == "eq":
			f.Item = dr.ItemID(strings.ToLower(t.Value))
		case t.Field == "starttime" && (t.Op == "eq" || t.Op == "ge" || t.Op == "gt"):
			f.Since, err = route.FilterTime(t.Value)
		case t.Field == "endtime" && (t.Op == "eq" || t.Op == "le" || t.Op == "lt"):
			f.Until, err = route.FilterTime(t.Value)
		case t.Field == "affectedobjecttypes" && t.Op == "eq":
			target = t.Value
		case t.Field == "fabricid" && t.Op == "eq":
		default:
			return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidFilter, "armapi.jobs", "$filter: field %q with operator %q is not understood for jobs", route.Clip(t.Field), t.Op)
		}
		if err != nil {
			return route.Reply{}, err
		}
	}
	jobs, err := c.Svc().Jobs(c.Ctx(), f)
	if err != nil {
		return route.Reply{}, err
	}
	kept := make([]dr.Job, 0, len(jobs))
	for _, j := range jobs {
		if word, _ := jobState(j.State, j.CanResume); status != "" && !statusMatches(status, word) {
			continue // waiting jobs are InProgress or Suspended, which the service can't tell apart
		}
		if target == "" || route.OneOf(target, j.TargetType) {
			kept = append(kept, j)
		}
	}
	return route.Page(c, kept, func(j dr.Job) string { return string(j.ID) }, func(c *route.Call, j dr.Job) (armwire.Resource[armwire.Job], error) {
		return jobResource(c, j), nil
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

func job(c *route.Call) (dr.Job, error) {
	return c.Svc().Job(c.Ctx(), dr.JobID(strings.ToLower(c.NameOf(route.TJobs))))
}

func getJob(c *route.Call) (route.Reply, error) {
	j, err := job(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(jobResource(c, j))
}

func jobResource(c *route.Call, j dr.Job) armwire.Resource[armwire.Job] {
	state, description := jobState(j.State, j.CanResume)
	p := armwire.Job{
		ActivityID: string(j.ID), ScenarioName: j.Scenario, FriendlyName: j.Title, State: state, StateDescription: description,
		Tasks: make([]armwire.Task, 0, len(j.Tasks)), Errors: []armwire.JobError{}, StartTime: armwire.Time(route.FirstTime(j.Started, j.Created)), EndTime: armwire.Time(j.Ended),
		AllowedActions: []string{}, TargetObjectID: j.TargetID, TargetObjectName: j.TargetName, TargetInstanceType: j.TargetType,
		RequestedBy: j.By, ItemID: string(j.Item), ProgressPercent: route.JobPercent(j),
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
			TaskID: t.Name, Name: t.Name, StartTime: armwire.Time(t.Started), EndTime: armwire.Time(t.Ended), AllowedActions: []string{}, FriendlyName: cmp.Or(t.Title, t.Name),
			State: state, StateDescription: description, TaskType: "TaskDetails", Errors: []armwire.JobError{}, ProgressPercent: route.TaskPercent(t),
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
	p.CustomDetails = jobDetails(c, j)
	return armwire.Resource[armwire.Job]{ID: c.JobID(j.ID), Name: string(j.ID), Type: armwire.ResourceType(route.TJobs, ""), Properties: p}
}

func jobError(e dr.JobError, job dr.JobID) armwire.JobError {
	entry, _ := dr.Lookup(e.Code)
	return armwire.JobError{
		ServiceErrorDetails: &armwire.ServiceError{Code: string(e.Code), Message: e.Message, PossibleCauses: entry.Cause,
			RecommendedAction: cmp.Or(e.Hint, entry.Remedy), ActivityID: string(job)},
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
func jobDetails(c *route.Call, j dr.Job) armwire.JobDetails {
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
		d.ScreenshotURL = c.Base + "/holdfast/v1/jobs/" + string(j.ID) + "/screenshot"
	}
	return d
}

// changeJob serves cancel, restart and resume: the answer is the job itself.
func changeJob(c *route.Call, do func(dr.JobID) error) (route.Reply, error) {
	j, err := job(c)
	if err != nil {
		return route.Reply{}, err
	}
	if err := do(j.ID); err != nil {
		return route.Reply{}, err
	}
	return getJob(c)
}

func cancelJob(c *route.Call) (route.Reply, error) {
	return changeJob(c, func(id dr.JobID) error { return c.Svc().CancelJob(c.Ctx(), id, c.Who.Name) })
}

func restartJob(c *route.Call) (route.Reply, error) {
	return changeJob(c, func(id dr.JobID) error { return c.Svc().RestartJob(c.Ctx(), id, c.Who.Name) })
}

func resumeJob(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.ResumeInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	return changeJob(c, func(id dr.JobID) error {
		return c.Svc().ResumeJob(c.Ctx(), id, in.Properties.Comments, c.Who.Name)
	})
}

// getOperation is what Azure-AsyncOperation points to.
func getOperation(c *route.Call) (route.Reply, error) {
	id := c.Path.Segments[len(c.Path.Segments)-1].Name
	j, err := c.Svc().Job(c.Ctx(), dr.JobID(strings.ToLower(id)))
	if err != nil {
		return route.Reply{}, err
	}
	status, failure := route.OperationState(j)
	percent := route.JobPercent(j)
	return route.Reply{Status: http.StatusOK, Body: armwire.OperationStatus{
		ID: c.VaultID.ID(route.TOperations, string(j.ID)), Name: string(j.ID), Status: status, Percent: &percent,
		StartTime: armwire.Time(route.FirstTime(j.Started, j.Created)), EndTime: armwire.Time(j.Ended), Error: failure,
	}}, nil
}
