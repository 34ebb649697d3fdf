package hypervisor

import (
	"context"

	"holdfast/internal/dr"
)

// Capabilities that not every platform has. A caller asserts the interface on
// its Source and does without where it is missing; hypervisor/libvirt and
// hypervisor/sim have all of them.

// GroupSource cuts several VMs of one host at one instant (a consistency group).
type GroupSource interface {
	// BeginGroup freezes all disks of all requests at one instant: nothing that
	// a guest wrote because of what another guest of the group had written is in
	// a cut without its cause. The cuts come in the order of the requests, with
	// the same CutInfo.Time; from there on each lives for itself, like one of BeginCut.
	//
	// All or nothing: on an error no cut is open and no new token stays, every
	// base token is still good, and the error is the first request's that failed,
	// with the codes of BeginCut. Each VM may be named once. Disks whose tracking
	// was lost are Whole (see CutDisk), which is not a failure.
	//
	// The guests stand still together while the cuts begin, for a time that the
	// adapter bounds (libvirt.Config.GroupHold, 5 s): past it they are released
	// and the call fails with dr.CodeHypervisorTimeout. No guest stays paused or
	// frozen, whatever fails, except for as long as the platform itself does not
	// answer: then the adapter goes on asking. What a killed process held is
	// released when the adapter is opened again. A guest that was paused before is left paused.
	BeginGroup(ctx context.Context, reqs []CutRequest) ([]Cut, error)
}

// Estimator knows how much would be in a cut, without making it.
type Estimator interface {
	// Estimate returns how many bytes of vm's disks a cut since the token base
	// would report as changed at this moment, rounded up to the granularity of
	// tracking. It covers the disks that base covers; a disk whose tracking is
	// lost, or that was grown, counts with what a cut would report. It costs the
	// guest nothing and disturbs no open cut.
	//
	// dr.CodeTrackingLost, dr.CodeVMNotFound and dr.CodeVMNotRunning as with BeginCut.
	Estimate(ctx context.Context, vm dr.VMID, base string) (int64, error)
}

// Pulse hears from the guest without a console: Hyper-V's heartbeat.
type Pulse interface {
	// Pulse tells whether the guest itself gives a sign of life now, and what it
	// is. False means only that none has been seen. dr.CodeVMNotFound.
	Pulse(ctx context.Context, vm dr.VMID) (sign string, alive bool, err error)
}

// Sizer knows the sizes of VM that a cloud offers.
type Sizer interface {
	// Sizes lists all sizes of the region, those that can't be used with the reason.
	Sizes(ctx context.Context) ([]dr.ComputeSize, error)
}

// Patcher writes blocks into the existing disk of a VM that is off: what
// failback into the original VM needs.
type Patcher interface {
	// OpenDisk opens a disk of a VM that is off, for reading and writing, and
	// keeps the VM from being started by this adapter until it is closed.
	// dr.CodeVMNotFound; dr.CodeVMNotOff; dr.CodeDiskFileInUse if somebody has the
	// disk open. Once it is open the VM has no token of Holdfast's any more: a
	// later cut since one of before is refused with dr.CodeTrackingLost, so that none can miss what is written.
	OpenDisk(ctx context.Context, vm dr.VMID, disk string) (WritableDisk, error)
}

// WritableDisk is a disk that is open for writing. What was written is durable
// after Flush or Close returned nil; a crash before may leave any mix of old and new blocks.
type WritableDisk interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt stores p; offset and length are multiples of 4096, or reach the end of the disk.
	WriteAt(ctx context.Context, p []byte, off int64) error
	Flush(ctx context.Context) error
	Close() error // idempotent
}

// ValidateGroup checks what can be checked of a group without the host;
// adapters call it first.
func ValidateGroup(reqs []CutRequest) error {
	const op = "hypervisor.BeginGroup"
	if len(reqs) == 0 {
		return dr.Errorf(dr.KindInvalid, op, "a group cut names no VM")
	}
	seen := map[dr.VMID]bool{}
	for _, r := range reqs {
		if seen[r.VM] {
			return dr.Errorf(dr.KindInvalid, op, "a group cut names VM %s twice", r.VM)
		}
		seen[r.VM] = true
	}
	return nil
}
