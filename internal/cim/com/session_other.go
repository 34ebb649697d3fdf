//go:build !windows

package com

import (
	"context"
	"errors"

	"holdfast/internal/cim"
)

// Session exists on Windows only.
type Session struct{ cim.Session }

// Open fails: COM is a part of Windows.
func Open(context.Context, Config) (*Session, error) {
	return nil, &cim.Error{Code: cim.CodeUnavailable, Op: "connect to WMI by COM", Err: errors.New("only on Windows; use WS-Man from elsewhere")}
}
