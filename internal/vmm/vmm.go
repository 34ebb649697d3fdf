// Package vmm knows what a System Center Virtual Machine Manager server manages:
// clouds, hosts, logical networks, VM networks, storage classifications and the
// place of every VM. It also has the rules by which a VM's adapters are connected
// after a failover (network mapping), for VMM and for sites without it.
//
// It promises that VMM is only ever read: the adapter PowerShell runs one fixed
// script whose only commands are those that list objects; that output of another
// version of the script is refused; and that the rules (Connect, SwitchOf) are pure
// functions of what they are given. The script is written to the published
// reference of the module virtualmachinemanager and was not executed on Windows.
package vmm

import (
	"context"
	"time"
)

// Version is the version of the script's output that this package reads.
const Version = 1

// Inventory reads what a VMM server manages. Snapshot is safe for concurrent use;
// its errors are *dr.Error.
type Inventory interface {
	Snapshot(ctx context.Context) (Snapshot, error)
}

// Snapshot is everything at one time. Ids are lower case GUIDs as VMM gives them;
// lists are sorted by name, then id, so that equal states compare equal.
type Snapshot struct {
	Version                int
	Server                 Server
	Taken                  time.Time // by the VMM server's clock; zero = not told
	Clouds                 []Cloud
	Hosts                  []Host
	LogicalNetworks        []LogicalNetwork
	VMNetworks             []VMNetwork
	StorageClassifications []StorageClassification
	VMs                    []VM
	Warnings               []string // what could not be listed, in words
}

// Server is the VMM server itself.
type Server struct {
	Name    string // FQDN
	Product string // version: "10.22.1287.0"
}

// Cloud is delegated capacity over host groups; VMs are placed in clouds.
type Cloud struct {
	ID, Name   string
	HostGroups []string // paths: `All Hosts\Berlin`
}

// Host is a Hyper-V host that VMM manages.
type Host struct {
	ID, Name  string // Name is the FQDN
	Cluster   string // name; empty = none
	OS        string
	HostGroup string   // path
	Clouds    []string // ids of the clouds over its host group
	Switches  []Switch
}

// Switch is a virtual switch of a host with the logical networks that it reaches.
type Switch struct {
	Name            string
	LogicalNetworks []string // ids
}

// LogicalNetwork is a named set of network sites.
type LogicalNetwork struct {
	ID, Name, Description string
	Virtualized           bool // network virtualization is enabled
	Isolated              bool // its definitions (sites) do not reach each other
	Definitions           []Definition
}

// Definition is a network site: subnets and VLANs on some host groups.
type Definition struct {
	ID, Name   string
	Subnets    []SubnetVLAN
	HostGroups []string
}

// SubnetVLAN is one pair of a definition.
type SubnetVLAN struct {
	Subnet string // CIDR; empty = VLAN only
	VLAN   int    // 0 = untagged
}

// VMNetwork is what a virtual adapter is attached to.
type VMNetwork struct {
	ID, Name       string
	LogicalNetwork string // id
	Isolation      string // as VMM calls it: NoIsolation, VLANNetwork, WindowsNetworkVirtualization, …
	Subnets        []Subnet
}

// Subnet is a VM subnet.
type Subnet struct {
	ID, Name string
	CIDRs    []string
	VLAN     int // 0 = untagged or not known
}

// StorageClassification is a label of storage.
type StorageClassification struct{ ID, Name string }

// VM is where VMM has a VM.
type VM struct {
	ID       string // the hypervisor's id of the VM, which its host's agent reports too
	VMMID    string // VMM's own
	Name     string
	Cloud    string // id; empty = in no cloud
	Host     string // FQDN
	Adapters []NIC
}

// NIC is an adapter of a VM as VMM has it.
type NIC struct {
	ID        string
	MAC       string // 00:15:5D:01:02:03, upper case; empty while a dynamic address has not been given
	VMNetwork string // id; empty = not connected
	VMSubnet  string // name
	VLAN      int
}
