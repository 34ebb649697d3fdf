//go:build !linux

package rawhost

import (
	"errors"
	"fmt"
	"os"

	"holdfast/internal/extent"
)

func holes(f *os.File, _, _ int64) ([]extent.Extent, error) {
	return nil, fmt.Errorf("holes of %s can be found on Linux only: %w", f.Name(), errors.ErrUnsupported)
}
