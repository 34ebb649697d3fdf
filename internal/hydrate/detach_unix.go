//go:build unix

package hydrate

import (
	"errors"
	"os/exec"
	"syscall"
)

// detach gives the process its own session, so that it outlives the agent and its terminal.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

func terminate(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
