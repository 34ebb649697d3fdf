//go:build unix && !linux

package vhdx

import (
	"errors"
	"os"
)

// punchHole is left out: the caller writes zeros.
func punchHole(*os.File, int64, int64) error { return errors.ErrUnsupported }
