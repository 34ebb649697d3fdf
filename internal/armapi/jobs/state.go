package jobs

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

// jobState renders a job's or task's state; a job that waits for a person is Suspended.
func jobState(s dr.JobState, person bool) (state, description string) {
	switch s {
	case dr.JobNotStarted:
		return "NotStarted", "NotStarted"
	case dr.JobInProgress:
		return "InProgress", "InProgress"
	case dr.JobWaiting:
		if person {
			return "Suspended", "WaitingForInput"
		}
		return "InProgress", "Waiting"
	case dr.JobSucceeded:
		return "Succeeded", "Completed"
	case dr.JobFailed:
		return "Failed", "Failed"
	case dr.JobCancelling:
		return "Cancelling", "Cancelling"
	case dr.JobCancelled:
		return "Cancelled", "Cancelled"
	case dr.JobSkipped:
		return "Skipped", "Skipped"
	}
	return "Other", "Other"
}

// statesOf is the inverse of jobState for filters; several domain states can share one word.
func statesOf(word string) []dr.JobState {
	switch {
	case route.OneOf("NotStarted", word):
		return []dr.JobState{dr.JobNotStarted}
	case route.OneOf("InProgress", word):
		return []dr.JobState{dr.JobInProgress, dr.JobWaiting}
	case route.OneOf("Suspended", word):
		return []dr.JobState{dr.JobWaiting}
	case route.OneOf("Succeeded,Completed", word):
		return []dr.JobState{dr.JobSucceeded}
	case route.OneOf("Failed", word):
		return []dr.JobState{dr.JobFailed}
	case route.OneOf("Cancelling", word):
		return []dr.JobState{dr.JobCancelling}
	case route.OneOf("Cancelled,Canceled", word):
		return []dr.JobState{dr.JobCancelled}
	}
	return nil
}
