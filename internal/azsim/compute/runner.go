package compute

import (
	"context"

	"holdfast/internal/nbd"
)

// Runner runs guests for real.
type Runner interface {
	// Start starts a VM and returns once it runs. ctx bounds the start only.
	Start(ctx context.Context, m Machine) (Running, error)
}

// Running is a guest that a Runner started.
type Running interface {
	Powerdown(ctx context.Context) error // asks the guest to shut down; Done tells when it has
	Screenshot(ctx context.Context) ([]byte, error)
	Done() <-chan struct{} // closed when the guest has ended, in whatever way
	Kill() error           // cuts the power and waits until the guest has ended; idempotent
}

// Machine is what a Runner needs to know of a VM.
type Machine struct {
	ID, Name    string // GUID (vmId) and name of the resource
	Generation  int    // 1 or 2
	CPUs        int
	MemoryMB    int64
	Dir, Serial string // directory for sockets and the like; file for the serial console
	Disks       []MachineDisk
	NICs        []MachineNIC
}

// MachineDisk is a disk of a Machine: the OS disk first, then by LUN. What is
// written to Device is the guest's own writing.
type MachineDisk struct {
	Name   string // of the disk's resource
	LUN    int    // of a data disk
	OS     bool
	Device nbd.WritableDevice
}

// MachineNIC is a network interface of a Machine, the primary one first.
type MachineNIC struct {
	Name, MAC string // MAC: twelve hexadecimal digits
	Address   string // that Azure's DHCP gives to the guest
	Subnet    string // id
	Primary   bool
}
