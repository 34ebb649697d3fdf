// Package hyperv is the adapter between the hypervisor contract and Microsoft
// Hyper-V. It is pure Go on top of a cim.Session (the management classes of
// root/virtualization/v2) and a disk port (Disks): the same code speaks to a
// real host and to the simulator. It was never run against a real host; names and
// values are those of the public Hyper-V WMI provider (v2) reference.
//
// It owns one product directory (Config.Dir): a record of every token, of
// recovery VMs, and of guests that are paused for a group. On the host it owns the
// recovery checkpoints and reference points that its records know or that are named
// after it ("hf-TAG@HOST.DIRECTORY", digests of the host's name and an id of the directory),
// and the VMs that Boot made; it changes nothing else. What is named after a directory of another
// host came with a VM that was moved here, and nobody there can reach it: it is removed too.
//
// How a cut works: a recovery checkpoint (CreateSnapshot, type 32768) freezes the
// disks; what changed since the base comes from resilient change tracking by the
// tracking id that the base's reference point holds, found by virtual disk id. End
// converts the checkpoint to a reference point (ConvertToReferencePoint), Abort
// destroys it; the base's reference point stays until Forget. A cut that
// is open keeps a checkpoint: the guest writes to .avhdx files beside its disks, which
// take space and have to be merged afterwards. Nothing watches their size.
//
// A disk whose history is not known (resized, replaced, its tracking ids gone or
// their number not that of the disks) is Whole in the next cut. That a disk has grown
// is such a case: the host's tracking does not survive it. A cut stays readable when the VM stops.
//
// Crash behaviour: a record says what may exist before it is made. Open, and each
// cut and Forget, end what a dead process left: a cut that may have been read in
// full becomes a reference point, one that was being made is destroyed. Where the
// answer to a conversion was lost, the reference point is recognised by its name or by the
// disks' tracking ids, never by being the only new one. A host that does not take names
// from the settings and dies with the agent within CreateSnapshot may keep a
// checkpoint that is nobody's; it is left alone. A lost record is dr.CodeTrackingLost.
//
// Recovery VMs: Hyper-V can't run a VM from NBD, so Boot copies the recovery point
// into VHDX files first. BootSpec.KeepUUID keeps the machine id that the guest sees
// (BIOSGUID) and the MAC addresses; the VM's own id is asked for, but hosts may give another.
package hyperv
