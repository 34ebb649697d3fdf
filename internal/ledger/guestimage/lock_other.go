//go:build !unix

package guestimage

import (
	"context"
	"errors"
)

func lock(context.Context, string) (func(), error) {
	return nil, errors.New("the guest image can be built on Linux only")
}
