package hyperv

import (
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"holdfast/internal/cim"
)

// Config of a Host. Zero durations are the defaults.
type Config struct {
	Session cim.Session // to the host; Close closes it
	Disks   Disks       // the host's disk files
	Dir     string      // product directory, absolute: records of cuts and recovery VMs. Losing it costs a resynchronization
	Log     *slog.Logger

	CallTimeout  time.Duration // of one round trip; 60 s
	JobTimeout   time.Duration // of a management operation with its job; 10 min
	Poll         time.Duration // first interval of asking for a job's state; 100 ms
	MergeWait    time.Duration // how long a cut waits for an earlier merge to end; 30 s
	QuiesceLimit time.Duration // of an application-consistent checkpoint; 4 min
	GroupHold    time.Duration // how long the guests of a group may be paused; 30 s
	VerifyEvery  time.Duration // how often an open cut makes sure that its checkpoint exists; 5 s
	WatchEvery   time.Duration // polling interval of Watch; 5 s
	UndoTimeout  time.Duration // of taking back a failed operation; 5 s. What it does not manage, the next operation on the VM does

	Tracker Tracker // what changes are learnt from

	// Progress is told how much of a recovery VM's disks has been copied; may be nil.
	Progress func(name string, done, total int64)
}

// Tracker is a source of changed ranges.
type Tracker string

// The trackers.
const (
	TrackerRCT Tracker = "" // resilient change tracking
	// TrackerHRL is Hyper-V Replica's log files ([MS-HRL]), which Open refuses: a log
	// names the DataWriteGuid of the file that it began with ([MS-HRL] 2.2), and the checkpoint that a
	// cut reads from, and the merge after it, give the disk other files. So it can't be
	// proved that nothing was written beside the log, and no cut could be incremental.
	TrackerHRL Tracker = "hrl"
)

// Validate reports the first setting that can't be used.
func (c Config) Validate() error {
	switch {
	case c.Session == nil:
		return errors.New("no session")
	case c.Disks == nil:
		return errors.New("no disks")
	case !filepath.IsAbs(c.Dir):
		return errors.New("the product directory is not absolute")
	case c.Tracker == TrackerHRL:
		return errors.New("tracking by Hyper-V Replica's log files is not possible: after a checkpoint their DataWriteGuid is not the disk's any more, so that a change beside the log would go unnoticed; use resilient change tracking (rct)")
	case c.Tracker != TrackerRCT:
		return errors.New("unknown tracker " + string(c.Tracker))
	}
	for _, d := range []time.Duration{c.CallTimeout, c.JobTimeout, c.Poll, c.MergeWait, c.QuiesceLimit, c.GroupHold, c.VerifyEvery, c.WatchEvery, c.UndoTimeout} {
		if d < 0 {
			return errors.New("a duration is negative")
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	for p, d := range map[*time.Duration]time.Duration{&c.CallTimeout: time.Minute, &c.JobTimeout: 10 * time.Minute, &c.Poll: 100 * time.Millisecond,
		&c.MergeWait: 30 * time.Second, &c.QuiesceLimit: 4 * time.Minute, &c.GroupHold: 30 * time.Second,
		&c.VerifyEvery: 5 * time.Second, &c.WatchEvery: 5 * time.Second, &c.UndoTimeout: 5 * time.Second} {
		if *p == 0 {
			*p = d
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
