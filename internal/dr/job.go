package dr

import "time"

// JobState is the state of a job or of one of its tasks.
type JobState string

// The job states.
const (
	JobNotStarted JobState = "notStarted"
	JobInProgress JobState = "inProgress"
	JobWaiting    JobState = "waiting" // for an agent, a time or a person
	JobSucceeded  JobState = "succeeded"
	JobFailed     JobState = "failed"
	JobCancelling JobState = "cancelling"
	JobCancelled  JobState = "cancelled"
	JobSkipped    JobState = "skipped" // tasks only
)

// Final reports whether the state does not change any more.
func (s JobState) Final() bool {
	return s == JobSucceeded || s == JobFailed || s == JobCancelled || s == JobSkipped
}

// Job is a piece of work that the vault carries out durably, as people see it.
type Job struct {
	ID         JobID
	Scenario   string // the field's name of the work, e.g. "TestFailover"
	Title      string // for people
	TargetType string // ProtectionEntity, Server, ProtectionProfile, ...
	TargetID   string // domain id of the target
	TargetName string
	Item       ItemID
	State      JobState
	By         string // who asked for it
	Created    time.Time
	Started    time.Time
	Ended      time.Time
	Tasks      []Task
	Errors     []JobError
	CanCancel  bool
	CanRestart bool
	CanResume  bool              // waits for a person
	Outcome    map[string]string // results worth showing: vm, recoveryPoint, seconds, screenshot id, ...
}

// Task is one named step of a job.
type Task struct {
	Name    string // stable, e.g. "PrerequisitesCheck"
	Title   string
	State   JobState
	Started time.Time
	Ended   time.Time
	Percent float64       // 0..100 while in progress
	ETA     time.Duration // 0 = unknown
	Note    string
	Attempt int
}

// JobError is one failed attempt of a task.
type JobError struct {
	Task    string
	Code    Code
	Message string
	Hint    string
	At      time.Time
}
