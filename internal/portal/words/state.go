package words

import (
	"time"

	"holdfast/internal/dr"
)

// Pill is a state with an icon: never by its colour alone.
type Pill struct{ Tone, Icon, Text string }

func ToneIcon(tone string) string {
	switch tone {
	case "good":
		return "ok"
	case "warn":
		return "warning"
	case "bad":
		return "error"
	case "busy":
		return "sync"
	case "wait":
		return "person"
	}
	return "dot"
}

func Health(h dr.Health) Pill {
	tone, text := "idle", string(h)
	switch h {
	case dr.HealthNormal:
		tone, text = "good", "Healthy"
	case dr.HealthWarning:
		tone = "warn"
	case dr.HealthCritical:
		tone = "bad"
	case "":
		text = "Not assessed"
	}
	return Pill{tone, ToneIcon(tone), text}
}

func Job(s dr.JobState) Pill {
	tone, text := "idle", string(s)
	switch s {
	case dr.JobSucceeded:
		tone, text = "good", "Successful"
	case dr.JobFailed:
		tone, text = "bad", "Failed"
	case dr.JobInProgress:
		tone, text = "busy", "In progress"
	case dr.JobCancelling:
		tone, text = "busy", "Cancelling"
	case dr.JobWaiting:
		tone, text = "wait", "Waiting for input"
	case dr.JobNotStarted:
		text = "Not started"
	case dr.JobCancelled:
		text = "Cancelled"
	case dr.JobSkipped:
		text = "Skipped"
	}
	return Pill{tone, ToneIcon(tone), text}
}

// JobPercentOf is jobPercent for a job or a pointer to one.
func JobPercentOf(j any) float64 {
	switch j := j.(type) {
	case dr.Job:
		return JobPercent(j)
	case *dr.Job:
		return JobPercent(*j)
	}
	return 0
}

// jobDuration says how long a job or task took or has taken so far.
func Duration(now func() time.Time) func(started, ended time.Time) string {
	return func(started, ended time.Time) string {
		switch {
		case started.IsZero():
			return "–"
		case ended.IsZero():
			ended = now()
		}
		return Span(ended.Sub(started).Truncate(100 * time.Millisecond))
	}
}

// Convergence is the verdict on a backlog.
func Convergence(c dr.Convergence) Pill {
	tone, text := "idle", "Too few cycles to tell"
	switch c {
	case dr.Converging:
		tone, text = "good", "Catching up"
	case dr.NotConverging:
		tone, text = "bad", "Falling behind"
	case dr.BacklogIdle:
		tone, text = "good", "Nothing waits"
	}
	return Pill{tone, ToneIcon(tone), text}
}

func Consistency(c dr.Consistency) string {
	switch c {
	case dr.AppConsistent:
		return "App-consistent"
	case dr.FileSystemConsistent:
		return "File-system-consistent"
	}
	return "Crash-consistent"
}

// JobPercent is a job's progress by its tasks; skipped ones count as done.
func JobPercent(j dr.Job) float64 {
	if j.State == dr.JobSucceeded {
		return 100
	}
	if len(j.Tasks) == 0 {
		return 0
	}
	done := 0.0
	for _, t := range j.Tasks {
		if t.State.Final() {
			done += 100
		} else {
			done += min(max(t.Percent, 0), 100)
		}
	}
	return done / float64(len(j.Tasks))
}
