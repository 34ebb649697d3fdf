// Package port is what the adapter needs of a host's disk files: the interface that
// the drivers of package hyperv satisfy, under the names that hyperv gives them.
package port

import (
	"context"
	"errors"
)

// Disks is the data plane of a host: its disk files, named by the host's own
// (Windows) paths. Drivers: vhdxfiles (pure Go, a directory that stands for the
// host's drives) and virtdisk (virtdisk.dll on the host itself).
//
// Methods are safe for concurrent use and return by the context's deadline.
// Errors wrap fs.ErrNotExist, fs.ErrExist, fs.ErrPermission or one of the
// sentinels below where they apply, and name the file.
type Disks interface {
	// Open opens a disk with its whole chain of parents: read-only a frozen or
	// idle one, or with write the disk of a VM that is off.
	Open(ctx context.Context, hostPath string, write bool) (Disk, error)
	// Create makes a VHDX that reads as zeroes and opens it for writing, with the
	// directories above it. fs.ErrExist if the file exists; a failed call leaves no file.
	Create(ctx context.Context, hostPath string, spec CreateDisk) (Disk, error)
	// Remove deletes a disk file and the change tracking files beside it. Idempotent.
	Remove(ctx context.Context, hostPath string) error
	// HostPath returns a path of this machine as the host knows it: itself on the
	// host, C:\… for a directory that stands for the host's drives. An error means
	// that the host can't reach the path.
	HostPath(local string) (string, error)
}

// CreateDisk describes a disk to be made. Zero sectors are 512 and 4096 bytes.
type CreateDisk struct {
	Size           int64 // bytes, a multiple of the logical sector
	LogicalSector  int64
	PhysicalSector int64
	Fixed          bool   // allocated at once; else dynamic
	ID             string // virtual disk id to be given; empty = a new one
}

// Disk is an open disk. Methods are safe for concurrent use. Offsets and
// lengths of ReadAt and WriteAt may be any within the disk.
type Disk interface {
	Info() DiskInfo
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Extents reports [off, off+n) in ascending order without gaps or overlaps.
	// zero means that the range reads as zeroes; where that is not known it is false.
	Extents(ctx context.Context, off, n int64, fn func(off, n int64, zero bool) error) error
	Flush(ctx context.Context) error
	Close() error // idempotent; what was written is durable once it returned nil
}

// DiskInfo describes an open disk.
type DiskInfo struct {
	Size           int64  // bytes
	ID             string // virtual disk id, lower case without braces
	LogicalSector  int64
	PhysicalSector int64
	Tracking       Tracking
}

// Tracking is the state of resilient change tracking as the disk's file tells it
// (GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE). Known is false where the driver can't tell.
type Tracking struct {
	Known        bool
	Enabled      bool
	NewerChanges bool   // the file was changed without being tracked: no id is good any more
	MostRecentID string // the newest tracking id
}

// ChangeReader is a Disk whose driver can be asked for changes
// (QueryChangesVirtualDisk). Without it the host's management service is asked.
type ChangeReader interface {
	// Changes reports the ranges in [off, off+n) that were changed since the
	// tracking id, ascending. ErrTrackingLost if the disk does not know the id.
	Changes(ctx context.Context, rctID string, off, n int64, fn func(off, n int64) error) error
}

// SerialLogs is what Disks may offer beside: what guests wrote to a serial port that goes to a file.
type SerialLogs interface {
	// SerialLog returns at most max bytes from the end; fs.ErrNotExist if there is no such file.
	SerialLog(ctx context.Context, vmID string, max int) ([]byte, error)
}

// Files is what Disks may offer beside: reading small configuration files of the host.
type Files interface {
	// ReadFile returns a whole file of at most max bytes. fs.ErrNotExist if there is none.
	ReadFile(ctx context.Context, hostPath string, max int64) ([]byte, error)
}

// Errors of Disks, wrapped with the file and what was tried.
var (
	ErrInUse        = errors.New("the disk file is in use")                    // sharing violation
	ErrDamaged      = errors.New("the disk file is damaged")                   // or its parent is not the one that it was made from
	ErrTrackingLost = errors.New("the disk's change tracking is not complete") // id unknown, tracking off or broken
	ErrUnsupported  = errors.New("not supported for this disk")
)
