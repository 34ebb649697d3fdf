// Package libvirt is the adapter between the hypervisor contract and KVM/QEMU
// hosts managed by libvirt: control by libvirt's RPC, data by NBD over unix sockets.
//
// It owns one product directory on the host (Config.Dir): sockets and scratch
// files of open cuts, serial logs, NVRAM files and records of recovery VMs.
// In libvirt it owns the checkpoints named "hf-…", the backup jobs whose
// socket lies in its directory, and the domains that carry its metadata
// element; it changes nothing else.
//
// How a cut works: a pull-mode backup job exports every disk at one instant
// over NBD and makes a new checkpoint, whose dirty bitmap records from that
// instant on. Checkpoints record independently of each other, so a failed cut
// costs nothing: the base's bitmap goes on. Bitmaps live in the qcow2 images
// and survive everything but a killed QEMU process or a host that lost power;
// then the base is refused with dr.CodeTrackingLost.
//
// Scratch files take the old content of blocks that the guest overwrites while
// a cut is open. QEMU pauses the guest if such a write fails, so scratch is
// allocated in advance, and a watchdog ends the cut before space runs out.
//
// libvirt calls know neither contexts nor deadlines. Each call here has a
// connection for itself; when its deadline passes the connection is closed and
// the call is left to the daemon. A backup job that such a call may still
// begin is watched for and ended.
//
// The guests of a group cut are suspended together, for Config.GroupHold at most.
//
// Crash behaviour: Open resumes the guests that a dead process held for a group,
// thaws those that it had asked to freeze, ends the cuts that it left open, and destroys VMs that
// it had started, paused, for their last cut; all of that is written down before
// it is done. Recovery VMs are recorded before anything of them is created, so
// Boot and Remove find leftovers of a crash.
//
// What happens to tracking (QEMU 7.2, libvirt 9.0): it survives growth, hot-plug
// of other disks, external snapshots, stop and start. A replaced or shrunk disk,
// or one whose bitmap is broken, is Whole in the next cut. An image that carries
// bitmaps can't be taken back to an internal snapshot ("Device has active dirty
// bitmaps"), and libvirt ends a running VM before it finds that out: Forget all
// tokens first. A disk that is shrunk and grown again between two
// cuts shows nothing of it, and what it lost is not noticed.
package libvirt
