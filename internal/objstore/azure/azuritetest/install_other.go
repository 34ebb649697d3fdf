//go:build !linux

package azuritetest

import (
	"context"
	"errors"
	"syscall"
)

func attributes() *syscall.SysProcAttr { return nil }

func install(context.Context, string) (string, error) {
	return "", errors.New("the emulator is started on Linux only")
}
