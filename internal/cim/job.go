package cim

import (
	"context"
	"fmt"
	"time"
)

// Return values of methods. Services of Hyper-V answer with one of two families,
// which share 0 and 4096.
const (
	ReturnOK         uint32 = 0
	ReturnJobStarted uint32 = 4096
)

// Out is what a method returned.
type Out struct {
	Return uint32
	Args   // out parameters
}

// ReturnError is a return value that tells of a failure.
type ReturnError struct {
	Method string
	Value  uint32
}

func (e *ReturnError) Error() string {
	return fmt.Sprintf("%s returned %d (%s)", e.Method, e.Value, ReturnText(e.Value))
}

// ReturnText names a return value ([CIM] 0–6 and Hyper-V's 32768–32789).
func ReturnText(v uint32) string {
	switch v {
	case 0:
		return "completed"
	case 1, 32770:
		return "not supported"
	case 2, 32768:
		return "failed"
	case 3, 32772:
		return "timeout"
	case 4, 32773:
		return "invalid parameter"
	case 5, 32775:
		return "invalid state"
	case 6, 32776:
		return "invalid type"
	case 4096:
		return "job started"
	case 32769:
		return "access denied"
	case 32771:
		return "status unknown"
	case 32774:
		return "in use"
	case 32777:
		return "system not available"
	case 32778:
		return "out of memory"
	case 32779:
		return "file not found"
	case 32780:
		return "not ready"
	case 32781:
		return "locked"
	case 32782:
		return "shutdown in progress"
	case 32787:
		return "circular chain of disks"
	case 32789:
		return "object not found"
	}
	return "unknown"
}

// Job states of CIM_ConcreteJob.
const (
	JobCompleted    = 7
	JobTerminated   = 8
	JobKilled       = 9
	JobException    = 10
	JobWithWarnings = 32768 // completed with warnings; in Microsoft's code, not in its reference
)

// Job is the state of an asynchronous method call.
type Job struct {
	Path        Path
	State       uint64
	Type        uint64
	Percent     int
	ErrorCode   uint64
	Description string // of the error
	Warning     bool   // done, with warnings
	Instance    *Instance
}

// Done reports whether the job has ended, in whatever way.
func (j Job) Done() bool { return j.State >= JobCompleted && j.State <= JobException || j.Warning }

// JobError is a job that ended without success.
type JobError struct {
	Job Job
	Op  string
}

func (e *JobError) Error() string {
	return fmt.Sprintf("%s: job ended in state %d with error %d: %s", e.Op, e.Job.State, e.Job.ErrorCode, e.Job.Description)
}

// JobLostError is a job that its server no longer knows: it ended more than five
// minutes ago, or its host did. Whether it succeeded must be seen from its effects.
type JobLostError struct {
	Op   string
	Path Path
}

func (e *JobLostError) Error() string {
	return fmt.Sprintf("%s: job %s is gone; its outcome is not known", e.Op, e.Path.Key("InstanceID"))
}

// maxPoll keeps the poller well below the five minutes after which a job that has ended is removed.
const maxPoll = 10 * time.Second

// GetJob reads a job.
func GetJob(ctx context.Context, s Session, path Path) (Job, error) {
	in, err := s.Get(ctx, path)
	if err != nil {
		return Job{Path: path}, err
	}
	j := Job{Path: path, Instance: in}
	j.State, _ = in.Uint("JobState")
	j.Type, _ = in.Uint("JobType")
	j.ErrorCode, _ = in.Uint("ErrorCode")
	j.Description = in.String("ErrorDescription")
	if p, ok := in.Uint("PercentComplete"); ok {
		j.Percent = int(min(p, 100))
	}
	j.Warning = j.State == JobWithWarnings
	return j, nil
}

// Wait polls a job until it has ended or ctx has; poll is the first interval
// (0 = 100 ms), which grows to ten seconds at most. progress may be nil. A failed
// poll is not the end of the job: it is tried again until ctx ends. A job
// that ended without success is *JobError, one that vanished *JobLostError.
func Wait(ctx context.Context, s Session, op string, path Path, poll time.Duration, progress func(Job)) (Job, error) {
	if poll <= 0 {
		poll = 100 * time.Millisecond
	}
	var last error
	for {
		j, err := GetJob(ctx, s, path)
		switch {
		case err == nil:
			last = nil
			if progress != nil {
				progress(j)
			}
			if j.State == JobCompleted || j.Warning {
				return j, nil
			}
			if j.Done() {
				return j, &JobError{Job: j, Op: op}
			}
		case CodeOf(err) == CodeNotFound:
			return j, &JobLostError{Op: op, Path: path}
		case CodeOf(err) == CodeAccessDenied, CodeOf(err) == CodeUnauthorized, CodeOf(err) == CodeInvalidClass:
			return j, err
		default:
			last = err
		}
		select {
		case <-ctx.Done():
			if last != nil {
				return j, fmt.Errorf("%s: wait for job: %w (last answer: %w)", op, context.Cause(ctx), last)
			}
			return j, &Error{Code: CodeTimeout, Op: op, Message: fmt.Sprintf("the job was at %d %% when the wait ended", j.Percent), Err: context.Cause(ctx)}
		case <-time.After(poll):
		}
		poll = min(poll*3/2, maxPoll)
	}
}

// Call invokes a method and waits for its job, if it starts one. Return values other than
// 0 and 4096 are *ReturnError.
func Call(ctx context.Context, s Session, path Path, method string, in Args, progress func(Job)) (Out, *Job, error) {
	out, err := s.Invoke(ctx, path, method, in)
	if err != nil {
		return out, nil, err
	}
	switch out.Return {
	case ReturnOK:
		return out, nil, nil
	case ReturnJobStarted:
		ref, ok := out.Ref("Job")
		if !ok {
			return out, nil, &Error{Code: CodeProtocol, Op: method, Message: "a job was started but not named"}
		}
		if ref.Namespace == "" {
			ref.Namespace = path.Namespace
		}
		j, err := Wait(ctx, s, method, ref, 0, progress)
		return out, &j, err
	}
	return out, nil, &ReturnError{Method: method, Value: out.Return}
}
