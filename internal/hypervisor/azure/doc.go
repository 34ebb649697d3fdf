// Package azure is the adapter that makes a resource group of Azure a host of
// recovery VMs and a source of its VMs (hypervisor.Host). It is written to the published REST interfaces
// (Microsoft.Compute 2025-04-01 and 2025-01-02, Microsoft.Network 2024-05-01) on
// Microsoft's SDK, and was never run against the real cloud.
//
// A VM's id (dr.VMID) is its vmId, the GUID that Azure gives to a VM for its
// life, in lower case: it is short, and unlike the resource's name no later VM gets it
// again. Disk ids are those of the source VM for recovery VMs (tag
// holdfast-disk), else "os" and "lun0", "lun1", ….
//
// What it owns is what carries its tags: holdfast-owner with BootSpec.Owner and
// holdfast-vm with BootSpec.Name. Everything else is read at most: a name that is taken is
// dr.CodeAzureNameTaken. There is no record outside of Azure, so that any process that can sign in
// finds and removes what a dead one left.
//
// How Boot works: it checks what can be checked, makes the network's parts
// (quick, and refused more often than disks), then the managed disks, all at the same
// time, then the VM, which Azure starts. A disk comes from a page blob
// (BootDisk.Image, copied by Azure), or is written at the address that Azure grants for upload from the served point, or is empty.
// A Boot that fails removes what it made. After a crash the next Boot of the same name
// and owner takes disks over that were filled, goes on with those that were
// being filled, and Remove deletes all of it, in the order of dependence, until lists show nothing more.
//
// Networks: a name is "vnet" in the site's resource group, "group/vnet", or an
// id. Within it ASR's rule counts: the subnet of the name that is asked for, else the first in
// order of names (those of gateways and delegated ones left out), except that a static
// address chooses the subnet that it lies in. All adapters of a VM in Azure are in one virtual network:
// asking for two is refused. An Azure adapter has no link that could be down:
// where one adapter is connected, those that are not are left out; where none is
// (BootSpec.Network ""), and for hypervisor.IsolatedNetwork unless the site names a test network,
// the VM gets a virtual network of its own, whose security group lets nothing in or out,
// and which Remove deletes. An isolated VM never gets a public address.
//
// VMs of the site's group, recovery VMs among them, are also a source of replication: the way back. See
// package source. Cuts are crash-consistent VM restore points, in a collection of Holdfast's own per VM;
// what a cut reads leaves Azure and is paid for, so it is logged before ("egress") and after.
//
// What Azure can't do: the VM's id and MAC addresses are Azure's own also with
// BootSpec.KeepUUID, and a VM can't be paused. Sizes: CPUs and memory are those of
// the smallest VM size that has at least what is asked for.
package azure
