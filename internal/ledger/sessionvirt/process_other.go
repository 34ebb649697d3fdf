//go:build !linux

package sessionvirt

import (
	"context"
	"errors"
)

var errNotLinux = errors.New("libvirt session instances run on Linux only")

type daemon struct {
	done chan struct{}
	err  error
}

func startDaemon(*Instance) (*daemon, error) { return nil, errNotLinux }
func (d *daemon) stop()                      {}
func processIdentity(int) string             { return "" }
func isRunning(string) bool                  { return true }
func killAll(string) error                   { return errNotLinux }
func kill(func(string) bool) error           { return errNotLinux }
func processes(func(string) bool) []int      { return nil }
func isQEMU(string, string) bool             { return false }

func ownedByUs(string) bool { return false }

// DropRoot does nothing on this system.
func DropRoot(context.Context, []string) (code int, ran bool, err error) { return 0, false, nil }
