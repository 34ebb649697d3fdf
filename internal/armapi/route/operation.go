package route

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// FirstTime is the first time that is set.
func FirstTime(ts ...time.Time) time.Time {
	for _, t := range ts {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// TaskPercent is a task's progress, 0..100.
func TaskPercent(t dr.Task) float64 {
	switch {
	case t.State == dr.JobSucceeded || t.State == dr.JobSkipped:
		return 100
	case t.Percent < 0:
		return 0
	}
	return min(t.Percent, 100)
}

// JobPercent is the mean over the tasks.
func JobPercent(j dr.Job) float64 {
	if j.State == dr.JobSucceeded {
		return 100
	}
	if len(j.Tasks) == 0 {
		return 0
	}
	sum := 0.0
	for _, t := range j.Tasks {
		sum += TaskPercent(t)
	}
	return sum / float64(len(j.Tasks))
}

// OperationState renders a job as a long-running operation; failure is not nil
// for the states Failed and Canceled.
func OperationState(j dr.Job) (status string, failure *armwire.Error) {
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
		e.Message, e.Hint = last.Message, cmp.Or(last.Hint, entry.Remedy)
		e.Code = cmp.Or(string(last.Code), e.Code)
		if known {
			e.Kind = entry.Kind.String()
		}
	}
	if e.Hint != "" {
		e.Details = []armwire.ErrorDetail{{Code: "RecommendedAction", Message: e.Hint}}
	}
	return armwire.OperationFailed, e
}

// finish writes a reply: a body, or 202 with both headers of a long-running operation.
func (t Table) finish(w http.ResponseWriter, c *Call, rep Reply) error {
	switch {
	case rep.Status == http.StatusNoContent:
		w.WriteHeader(rep.Status)
	case rep.Status != 0:
		WriteJSON(w, rep.Status, rep.Body)
	case rep.Job == "": // done at once, without a job
		return t.finishNow(w, c)
	default:
		t.accepted(w, c, rep.Job, rep.Target)
	}
	return nil
}

// finishNow answers a change that needed no job with the state after it.
func (t Table) finishNow(w http.ResponseWriter, c *Call) error {
	rt, found := t["GET "+c.Path.Types()]
	if !found || c.R.Method == http.MethodDelete || strings.EqualFold(c.Action, "remove") {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	after := *c
	after.Dir = &Directory{c: &after}
	rep, err := rt.Handle(&after)
	if err != nil {
		return err
	}
	return t.finish(w, c, rep)
}

// accepted sends 202. Clients differ in which of the two headers they poll, and
// one cuts the job id out of Location between "operationresults/" and "?".
func (t Table) accepted(w http.ResponseWriter, c *Call, job dr.JobID, target string) {
	query := "?api-version=" + c.Version
	h := w.Header()
	h.Set("Location", c.Base+escapeID(target)+"/"+TResults+"/"+string(job)+query)
	h.Set("Azure-AsyncOperation", c.Base+escapeID(c.VaultID.ID(TOperations, string(job)))+query)
	t.retryAfter(c, h)
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
}

func (t Table) retryAfter(c *Call, h http.Header) {
	h.Set("Retry-After", strconv.Itoa(max(1, int(c.Env.RetryAfter.Seconds()))))
}

// operationResult answers {resource}/operationresults/{job}: 202 while the job
// runs, then the resource, or 204 if it is gone. A failed job is always a 400
// with the job's error, never a status that makes clients try again.
func (t Table) operationResult(w http.ResponseWriter, c *Call, rt Route) error {
	job, err := c.Svc().Job(c.Ctx(), c.Result)
	if err != nil {
		return err
	}
	switch status, failure := OperationState(job); status {
	case armwire.OperationInProgress:
		t.accepted(w, c, job.ID, c.pathID())
		return nil
	case armwire.OperationSucceeded:
	default:
		w.Header().Set("x-ms-error-code", failure.Code)
		WriteJSON(w, http.StatusBadRequest, armwire.ErrorBody{Error: *failure})
		return nil
	}
	rep, err := rt.Handle(c)
	if err != nil && dr.KindOf(err) == dr.KindNotFound {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err != nil {
		return err
	}
	return t.finish(w, c, rep)
}

// pathID is the id of the path's resource, as the client wrote it.
func (c *Call) pathID() string {
	segs := make([]string, 0, 2*len(c.Path.Segments))
	for _, s := range c.Path.Segments {
		segs = append(segs, s.Type)
		if s.Name != "" {
			segs = append(segs, s.Name)
		}
	}
	if len(segs) == 0 {
		return c.VaultID.String()
	}
	return c.VaultID.ID(segs...)
}
