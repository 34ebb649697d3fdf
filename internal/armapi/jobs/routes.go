// Package jobs serves jobs, which are also the long-running operations of the API:
// a job's id is its operation's id.
package jobs

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

// Routes adds the operations on jobs.
func Routes(t route.Table) {
	const read, operate = dr.RoleReader, dr.RoleOperator
	t.Add("GET", read, listJobs, "[]", route.TJobs)
	t.Add("GET", read, getJob, "", route.TJobs)
	t.Add("POST", operate, cancelJob, ":cancel", route.TJobs)
	t.Add("POST", operate, restartJob, ":restart", route.TJobs)
	t.Add("POST", operate, resumeJob, ":resume", route.TJobs)
	t.Add("GET", read, getOperation, "", route.TOperations)
	t.Add("GET", read, getOperation, "", "operationStatus")
}
