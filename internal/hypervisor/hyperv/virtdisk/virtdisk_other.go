//go:build !windows

package virtdisk

import (
	"fmt"

	"holdfast/internal/hypervisor/hyperv"
)

// Disks exists on Windows only.
type Disks struct{ hyperv.Disks }

// New fails: virtdisk.dll is a part of Windows.
func New(Config) (*Disks, error) {
	return nil, fmt.Errorf("virtdisk: disks of a Hyper-V host are read by virtdisk.dll, only on Windows: %w", hyperv.ErrUnsupported)
}

// Close does nothing.
func (d *Disks) Close() error { return nil }
