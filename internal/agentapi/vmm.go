package agentapi

import "time"

// VMMVersion is the version of VMMRequest. A vault refuses others; the request is
// complete, so it is simply sent again after an upgrade.
const VMMVersion = 1

// VMMRequest is everything that a VMM server manages (vmm.Snapshot on the wire).
// It replaces what the vault knew. Ids are VMM's, lower case.
type VMMRequest struct {
	Version         int                 `json:"version"`
	Server          string              `json:"server"`
	Product         string              `json:"product,omitempty"`
	Taken           time.Time           `json:"taken,omitzero"`
	Clouds          []VMMCloud          `json:"clouds"`
	Hosts           []VMMHost           `json:"hosts"`
	LogicalNetworks []VMMLogicalNetwork `json:"logicalNetworks"`
	Networks        []VMMNetwork        `json:"networks"`
	Storage         []VMMStorage        `json:"storage"`
	VMs             []VMMVM             `json:"vms"`
	Warnings        []string            `json:"warnings,omitempty"`
}

// VMMCloud is a cloud.
type VMMCloud struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	HostGroups []string `json:"hostGroups,omitempty"`
}

// VMMHost is a Hyper-V host.
type VMMHost struct {
	ID        string      `json:"id"`
	Name      string      `json:"name"`
	Cluster   string      `json:"cluster,omitempty"`
	OS        string      `json:"os,omitempty"`
	HostGroup string      `json:"hostGroup,omitempty"`
	Clouds    []string    `json:"clouds,omitempty"`
	Switches  []VMMSwitch `json:"switches,omitempty"`
}

// VMMSwitch is a virtual switch of a host.
type VMMSwitch struct {
	Name            string   `json:"name"`
	LogicalNetworks []string `json:"logicalNetworks,omitempty"`
}

// VMMLogicalNetwork is a logical network with its network sites.
type VMMLogicalNetwork struct {
	ID          string          `json:"id"`
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Virtualized bool            `json:"virtualized,omitempty"`
	Isolated    bool            `json:"isolated,omitempty"`
	Definitions []VMMDefinition `json:"definitions,omitempty"`
}

// VMMDefinition is a network site.
type VMMDefinition struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Subnets    []VMMSubnetVLAN `json:"subnets,omitempty"`
	HostGroups []string        `json:"hostGroups,omitempty"`
}

// VMMSubnetVLAN is one pair of a network site.
type VMMSubnetVLAN struct {
	Subnet string `json:"subnet,omitempty"`
	VLAN   int    `json:"vlan,omitempty"`
}

// VMMNetwork is a VM network.
type VMMNetwork struct {
	ID             string      `json:"id"`
	Name           string      `json:"name"`
	LogicalNetwork string      `json:"logicalNetwork,omitempty"`
	Isolation      string      `json:"isolation,omitempty"`
	Subnets        []VMMSubnet `json:"subnets,omitempty"`
}

// VMMSubnet is a VM subnet.
type VMMSubnet struct {
	ID    string   `json:"id,omitempty"`
	Name  string   `json:"name"`
	CIDRs []string `json:"cidrs,omitempty"`
	VLAN  int      `json:"vlan,omitempty"`
}

// VMMStorage is a storage classification.
type VMMStorage struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// VMMVM is where VMM has a VM.
type VMMVM struct {
	ID       string   `json:"id"` // the hypervisor's, as in InventoryRequest
	VMMID    string   `json:"vmmId,omitempty"`
	Name     string   `json:"name"`
	Cloud    string   `json:"cloud,omitempty"`
	Host     string   `json:"host,omitempty"`
	Adapters []VMMNIC `json:"adapters,omitempty"`
}

// VMMNIC is an adapter as VMM has it.
type VMMNIC struct {
	ID        string `json:"id"`
	MAC       string `json:"mac,omitempty"`
	VMNetwork string `json:"vmNetwork,omitempty"`
	VMSubnet  string `json:"vmSubnet,omitempty"`
	VLAN      int    `json:"vlan,omitempty"`
}
