package job

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// State of a job.
type State string

// The states of a job. The last three are final.
const (
	Ready     State = "ready"   // may be claimed from NotBefore on
	Running   State = "running" // a replica owns it
	Waiting   State = "waiting" // for a command's report or a signal
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports that the job will not run any more.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// StepState is the state of one step.
type StepState string

// The states of a step.
const (
	StepPending   StepState = "pending"
	StepRunning   StepState = "running"
	StepWaiting   StepState = "waiting"
	StepSucceeded StepState = "succeeded"
	StepFailed    StepState = "failed"
	StepSkipped   StepState = "skipped" // never run: the job ended before it
	StepCancelled StepState = "cancelled"
)

// Spec says what to do. It is stored at Submit and never looked at in code again.
type Spec struct {
	ID         string // empty: a new UUID, ordered by time. Submitting the same ID, kind and item again is no error and does nothing
	Kind       string // first half of the handler keys; letters, digits, '-', '_', '.'
	Item       string // at most one active job per non-empty item
	TargetType string // what the Jobs page shows
	TargetName string
	Input      any        // stored as JSON, nil is null
	Steps      []StepSpec // at least one
	OnFail     []StepSpec // run in order before the job becomes failed or cancelled
	NotBefore  time.Time  // zero: at once
	By         string     // who asked
	Meta       map[string]string
}

// StepSpec is one step. Name is unique within the job.
type StepSpec struct {
	Name        string // handler key is "kind/name"
	Title       string // for people; empty means Name
	MaxAttempts int    // 0: Config.Retry.Attempts
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Validate reports what is wrong with s.
func (s Spec) Validate() error {
	const op = "job.Submit"
	if !nameForm.MatchString(s.Kind) {
		return dr.Errorf(dr.KindInvalid, op, "job kind %q is not a plain name", s.Kind)
	}
	if len(s.Item) > maxText || clean(s.Item) != s.Item {
		return dr.Errorf(dr.KindInvalid, op, "item %q is not a plain text", s.Item)
	}
	if s.ID != "" && !nameForm.MatchString(s.ID) {
		return dr.Errorf(dr.KindInvalid, op, "job id %q is not a plain name", s.ID)
	}
	if len(s.Steps) == 0 {
		return dr.Errorf(dr.KindInvalid, op, "a job of kind %s has no steps", s.Kind)
	}
	seen := map[string]bool{}
	for _, list := range [][]StepSpec{s.Steps, s.OnFail} {
		for _, st := range list {
			if !nameForm.MatchString(st.Name) || seen[st.Name] || st.MaxAttempts < 0 {
				return dr.Errorf(dr.KindInvalid, op, "step %q of a job of kind %s: names are plain and unique, attempts not negative", st.Name, s.Kind)
			}
			seen[st.Name] = true
		}
	}
	return nil
}

// Job is a snapshot of a job. Changing it changes nothing.
type Job struct {
	ID, Kind, Item         string
	TargetType, TargetName string
	Input                  json.RawMessage
	Meta                   map[string]string
	By                     string
	State                  State
	Outcome                State     // failed or cancelled from the moment that it is decided, before the OnFail steps
	NotBefore              time.Time // while ready: not claimed earlier
	WaitKind               string    // while waiting: "command" or "signal"
	WaitFor                string    // command id or signal name
	WaitUntil              time.Time // zero: no bound
	CancelRequested        time.Time // zero: nobody did
	CancelBy               string
	Failure                *Failure // why Outcome is failed
	Owner                  string   // while running
	Epoch                  int64    // counts the claims
	Created, Started       time.Time
	Finished, Updated      time.Time
	Steps                  []Step // Get only; in order, OnFail steps last

	cur int
}

// Current returns the step that runs or waits or comes next, nil if there is none.
func (j *Job) Current() *Step {
	if j.State.Final() || j.cur >= len(j.Steps) {
		return nil
	}
	return &j.Steps[j.cur]
}

// Step is a snapshot of one step.
type Step struct {
	Index             int
	Name, Title       string
	OnFail            bool
	State             StepState
	Attempt           int // 0 before the first
	Output            json.RawMessage
	Pct               float64 // 0 to 100
	Note              string
	Started, Finished time.Time
	Failures          []Failure // one per failed attempt, oldest first

	base, maxAttempts int
}

// Signal is a message to a job from a person, a child job or the API.
type Signal struct {
	Seq     int64
	Name    string
	Payload json.RawMessage
	By      string
	At      time.Time

	taken bool
}

// Decode reads the payload into v.
func (s Signal) Decode(v any) error { return decode("signal "+s.Name, s.Payload, v) }

func decode(what string, data json.RawMessage, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return &Error{Class: Permanent, Err: dr.Errorf(dr.KindInvalid, "job.decode", "decode %s: %w", what, err)}
	}
	return nil
}

// encode is JSON for a column; raw messages and nil pass.
func encode(what string, v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", dr.Errorf(dr.KindInvalid, "job.encode", "encode %s: %w", what, err)
	}
	return string(b), nil
}

const maxText = 8 << 10 // bytes of one free text in a row

// clean makes a text that both engines store: a report must not be refused, for
// ever, because of a byte in a message.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// percent keeps NaN and nonsense out of the row.
func percent(p float64) float64 {
	if !(p > 0) {
		return 0
	}
	return min(p, 100)
}
