// Package source makes a VM that runs in Azure one to replicate from: the cuts of
// hypervisor.Source. Package azure has it behind its Host.
//
// A cut is a VM restore point (Compute REST "Restore Points - Create", consistencyMode
// CrashConsistent), which freezes all disks of the VM at one instant, running or not
// ("Overview of VM restore points"). It lies in a restore point collection
// of Holdfast's own, one per VM and owner, next to the VM. Its disks are read at the addresses that Azure signs
// ("Disk Restore Point - Grant Access"), as fixed VHDs.
//
// What changed is asked for by Get Page Ranges with x-ms-previous-snapshot-url, between
// the disk restore points of two cuts. Azure documents that for incremental snapshots of one
// disk ("Create an incremental snapshot for managed disks"), and that a disk restore point is one
// (DiskRestorePointProperties.familyId); it does not promise the combination. So where Azure refuses it,
// and where the disk was replaced or has another size, the disk is Whole: its allocated
// ranges are what is to be read, and the receiver finds the changes by its digests.
//
// What it promises: nothing is read from Azure (which costs egress) that can't have
// changed or is not allocated; a token is the name of a restore point and good as long as that exists;
// restore points that are no tokens any more go with Forget, and the collection with the last
// of them; nothing without the owner's tag is touched, and never the VM or its disks. All state is in
// Azure: the tag holdfast-open names the cut that is open, so that a later process ends it.
package source
