package job

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// Class says what an error means for the step.
type Class string

// The classes.
const (
	Transient Class = "transient" // run again after a back-off, up to the limit of attempts
	Permanent Class = "permanent" // the job fails
	Wait      Class = "wait"      // run again later, as often as it takes: an agent is offline, a window is closed
)

// Error is how a handler chooses the class itself. Without it the kind of the
// *dr.Error decides: see ClassOf.
type Error struct {
	Class Class
	After time.Duration // at least this long before the next attempt; 0: the back-off
	Err   error
}

// Error renders the cause.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf classifies an error that is not the database's. Could-not-ask, full,
// conflict and unclassified errors are transient, because giving up wrongly costs
// more at night than trying again; what will not change by itself is permanent.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		switch e.Class {
		case Transient, Permanent, Wait:
			return e.Class
		}
	}
	if e, ok := dr.Lookup(dr.CodeOf(err)); ok && e.Retry == dr.NonRecoverable {
		return Permanent // somebody has to do something first
	}
	switch dr.KindOf(err) {
	case dr.KindUnavailable, dr.KindExhausted, dr.KindConflict, dr.KindInternal:
		return Transient
	}
	return Permanent
}

// Failure is the error of one attempt, as the Jobs page shows it.
type Failure struct {
	Class   Class
	Kind    dr.Kind
	Code    dr.Code
	Message string
	Hint    string
	Step    string
	Attempt int
	At      time.Time
}

// Error renders the message.
func (f *Failure) Error() string { return f.Message }

// Err returns the failure as an error of its class and kind.
func (f *Failure) Err() error {
	e := dr.New(f.Kind, f.Code, "job.step", "%s", f.Message)
	e.Hint = f.Hint
	return &Error{Class: f.Class, Err: e}
}

// FailureOf makes a Failure of an error, for an agent's report.
func FailureOf(err error) *Failure {
	return &Failure{Class: ClassOf(err), Kind: dr.KindOf(err), Code: dr.CodeOf(err), Message: clean(err.Error()), Hint: clean(dr.HintOf(err))}
}

// storedFailure is the JSON form in the columns job.err and job_command.err.
type storedFailure struct {
	Class   Class  `json:"class"`
	Kind    string `json:"kind"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Step    string `json:"step,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	At      int64  `json:"at,omitempty"` // Unix microseconds
}

func storeFailure(f *Failure) (string, error) {
	if f == nil {
		return "", nil
	}
	return encode("failure", storedFailure{f.Class, f.Kind.String(), string(f.Code), clean(f.Message), clean(f.Hint), f.Step, f.Attempt, sqldb.Micros(f.At)})
}

func loadFailure(s string) (*Failure, error) {
	if s == "" {
		return nil, nil
	}
	var x storedFailure
	if err := json.Unmarshal([]byte(s), &x); err != nil {
		return nil, dr.Errorf(dr.KindCorrupt, "job.load", "decode the stored failure: %w", err)
	}
	kind, _ := dr.ParseKind(x.Kind)
	return &Failure{x.Class, kind, dr.Code(x.Code), x.Message, x.Hint, x.Step, x.Attempt, sqldb.Time(x.At)}, nil
}

// Retry bounds the attempts of a step.
type Retry struct {
	Base     time.Duration // before the second attempt; doubles each time; 0 means 2 s
	Cap      time.Duration // longest back-off; 0 means 5 min
	Attempts int           // of one step; 0 means 8
}

// delay is the back-off after the n-th failed attempt (from 1): Base·2^(n-1),
// capped, ±20 %.
func (r Retry) delay(n int, atLeast time.Duration) time.Duration {
	d := r.Cap
	if n < 30 && r.Base<<(n-1) < r.Cap {
		d = r.Base << (n - 1)
	}
	d += time.Duration((rand.Float64()*0.4 - 0.2) * float64(d))
	return max(d, atLeast)
}

// errFenced says that another run has taken over the job.
var errFenced = dr.New(dr.KindFenced, dr.CodeGenerationFenced, "job", "another replica has taken over the job")
