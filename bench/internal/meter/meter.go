// Package meter measures what work costs on this machine: CPU time of this and
// of other processes, memory, and what the machine is. It promises numbers of
// the kernel's own; where there are none it fails.
package meter

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Usage is what a piece of work cost.
type Usage struct {
	CPU  time.Duration // user and system
	Wall time.Duration
}

// Self measures fn in this process.
func Self(fn func() error) (Usage, error) {
	runtime.GC() // what came before is not fn's
	cpu, err := SelfCPU()
	if err != nil {
		return Usage{}, err
	}
	start := time.Now()
	if err := fn(); err != nil {
		return Usage{}, err
	}
	u := Usage{Wall: time.Since(start)}
	now, err := SelfCPU()
	u.CPU = now - cpu
	return u, err
}

// Command measures a program from its start to its end.
func Command(ctx context.Context, name string, args ...string) (Usage, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return Usage{}, fmt.Errorf("run %s: %w: %s", filepath.Base(name), err, strings.TrimSpace(string(out)))
	}
	return Usage{CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), Wall: time.Since(start)}, nil
}
