//go:build !linux

package sqldbtest

import (
	"errors"
	"runtime"
	"syscall"
)

func serverAttr(string) (*syscall.SysProcAttr, error) {
	return nil, errors.New("the tests start PostgreSQL on linux only, not on " + runtime.GOOS)
}
