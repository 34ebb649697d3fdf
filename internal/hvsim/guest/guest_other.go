//go:build !linux

// Package guest runs the VMs of the Hyper-V simulator in QEMU, on Linux only.
package guest

import (
	"context"
	"errors"
	"log/slog"

	"holdfast/internal/hvsim/model"
)

// Config says how guests run.
type Config struct {
	QEMU  string
	Accel string
	Log   *slog.Logger
}

// Runner runs no guests here.
type Runner struct{}

// New returns a Runner that can't start anything.
func New(Config) *Runner { return &Runner{} }

// Start fails.
func (*Runner) Start(context.Context, model.VMRun) (model.Running, error) {
	return nil, errors.New("hvsim: guests run on Linux only")
}
