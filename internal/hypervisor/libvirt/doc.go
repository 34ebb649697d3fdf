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
// Crash behaviour: a cut that a dead agent left open is ended by the next
// BeginCut or Forget of that VM; recovery VMs are recorded before anything of
// them is created, so Boot and Remove find leftovers of a crash; a file-system
// freeze is recorded before it is asked for and thawed by Open.
package libvirt
