// Package winservice is the Windows service around the agent: installing and
// controlling it, running under the service control manager, the event log, and the
// machine's proxy.
//
// It promises: a stop asked for by Windows ends the service's context, and progress is told
// to Windows until the work has ended or StopTimeout is over; a service that fails is
// restarted by Windows after 5, 30, and then every 60 seconds; installing again updates; removing what
// is not there is no error. On other platforms everything but the pure parts fails with dr.KindUnsupported.
package winservice

import (
	"context"
	"log/slog"
	"time"

	"holdfast/internal/dr"
)

// Config describes a service to be installed. The account is LocalSystem, which may manage Hyper-V and its disks.
type Config struct {
	Name        string   // of the service and its event source, e.g. "HoldfastAgent"
	Display     string   // as the list of services shows it
	Description string   // one sentence
	Exe         string   // absolute path of the program
	Args        []string // no secrets: every user of the host can read them
}

// check refuses what Windows would take and then fail to start.
func (c Config) check() error {
	const op = "winservice.Install"
	if err := checkName(op, c.Name); err != nil {
		return err
	}
	if !absoluteExe(c.Exe) {
		return dr.Errorf(dr.KindInvalid, op, "install service %s: the program %q is no absolute path", c.Name, c.Exe)
	}
	return nil
}

func checkName(op, name string) error {
	if name == "" || len(name) > 80 {
		return dr.Errorf(dr.KindInvalid, op, "a service's name has 1 to 80 characters, not %q", name)
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '/' || r == '\\' {
			return dr.Errorf(dr.KindInvalid, op, "the service name %q holds %q; take letters, digits and hyphens", name, r)
		}
	}
	return nil
}

func absoluteExe(path string) bool {
	return len(path) > 3 && path[1] == ':' && path[2] == '\\' || len(path) > 3 && path[:2] == `\\`
}

// State of a service.
type State string

// The states.
const (
	Absent   State = "absent"
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
	Paused   State = "paused"
)

// Status of a service.
type Status struct {
	State    State
	PID      uint32 // 0 = no process
	ExitCode uint32 // of Windows, of the last run
}

// RunConfig of Run.
type RunConfig struct {
	Name        string
	StopTimeout time.Duration // how long the work may take to end; 0 = 60 s
	Log         *slog.Logger  // nil = none
}

// Delays of the restarts after a failure; the last one repeats. The count starts again after a day without failure.
var restartDelays = [...]time.Duration{5 * time.Second, 30 * time.Second, 60 * time.Second}

const restartReset = 24 * time.Hour

// Work is what a service does until ctx ends.
type Work func(ctx context.Context) error
