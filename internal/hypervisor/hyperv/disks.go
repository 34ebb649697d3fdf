package hyperv

import "holdfast/internal/hypervisor/hyperv/internal/port"

// The data plane of a host: its disk files, named by the host's own (Windows)
// paths. Drivers: vhdxfiles (pure Go) and virtdisk (virtdisk.dll on the host itself).
type (
	Disks        = port.Disks        // all disk files of a host
	CreateDisk   = port.CreateDisk   // a disk to be made
	Disk         = port.Disk         // an open disk
	DiskInfo     = port.DiskInfo     // what it is
	Tracking     = port.Tracking     // what its file tells of change tracking
	ChangeReader = port.ChangeReader // a Disk that may be asked for changes
	SerialLogs   = port.SerialLogs   // Disks that know serial logs
	Files        = port.Files        // Disks that read configuration files
)

// Errors of Disks, wrapped with the file and what was tried.
var (
	ErrInUse        = port.ErrInUse        // sharing violation
	ErrDamaged      = port.ErrDamaged      // or its parent is not the one that it was made from
	ErrTrackingLost = port.ErrTrackingLost // id unknown, tracking off or broken
	ErrUnsupported  = port.ErrUnsupported  // not supported for this disk
)
