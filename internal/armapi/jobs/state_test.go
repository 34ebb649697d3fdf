package jobs

import (
	"testing"

	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

func TestJobStateTable(t *testing.T) {
	t.Parallel()
	want := map[dr.JobState][3]string{ // state, state when it waits for a person, operation
		dr.JobNotStarted: {"NotStarted", "NotStarted", "InProgress"}, dr.JobInProgress: {"InProgress", "InProgress", "InProgress"}, dr.JobWaiting: {"InProgress", "Suspended", "InProgress"},
		dr.JobSucceeded: {"Succeeded", "Succeeded", "Succeeded"}, dr.JobFailed: {"Failed", "Failed", "Failed"}, dr.JobCancelling: {"Cancelling", "Cancelling", "InProgress"},
		dr.JobCancelled: {"Cancelled", "Cancelled", "Canceled"}, dr.JobSkipped: {"Skipped", "Skipped", "Succeeded"},
	}
	for s, w := range want {
		a, _ := jobState(s, false)
		b, _ := jobState(s, true)
		op, failure := route.OperationState(dr.Job{ID: "j", State: s})
		if a != w[0] || b != w[1] || op != w[2] {
			t.Errorf("%s: %s, %s, %s, want %v", s, a, b, op, w)
		}
		if (failure != nil) != (op == "Failed" || op == "Canceled") {
			t.Errorf("%s: failure %v with operation %s", s, failure, op)
		}
		if s.Final() != (op != "InProgress") {
			t.Errorf("%s: final %v but operation %s", s, s.Final(), op)
		}
	}
}
