// Package netres has the properties of network resources as the Microsoft.Network REST
// interface (2024-05-01) writes them, as far as the Azure adapter needs them. It
// owns the rules of an isolated network's security group, and asks nobody.
package netres

// Ref names another resource.
type Ref struct {
	ID string `json:"id"`
}

// VNet is the properties of a virtual network.
type VNet struct {
	AddressSpace struct {
		AddressPrefixes []string `json:"addressPrefixes"`
	} `json:"addressSpace"`
	Subnets []Subnet `json:"subnets"`
}

// Subnet of a virtual network.
type Subnet struct {
	ID         string           `json:"id,omitempty"`
	Name       string           `json:"name"`
	Properties SubnetProperties `json:"properties"`
}

// SubnetProperties of a Subnet. A subnet has one prefix or several.
type SubnetProperties struct {
	AddressPrefix        string   `json:"addressPrefix,omitempty"`
	AddressPrefixes      []string `json:"addressPrefixes,omitempty"`
	Delegations          []any    `json:"delegations,omitempty"` // to services: VMs can't be in it
	NetworkSecurityGroup *Ref     `json:"networkSecurityGroup,omitempty"`
	DefaultOutbound      *bool    `json:"defaultOutboundAccess,omitempty"`
}

// NIC is the properties of a network interface.
type NIC struct {
	IPConfigurations     []IPConfiguration `json:"ipConfigurations"`
	NetworkSecurityGroup *Ref              `json:"networkSecurityGroup,omitempty"`
	MACAddress           string            `json:"macAddress,omitempty"` // as Azure gave it: 00-0D-3A-…
	VirtualMachine       *Ref              `json:"virtualMachine,omitempty"`
}

// IPConfiguration of a NIC.
type IPConfiguration struct {
	Name       string       `json:"name"`
	Properties IPProperties `json:"properties"`
}

// IPProperties of an IPConfiguration.
type IPProperties struct {
	Method   string `json:"privateIPAllocationMethod"` // Dynamic or Static
	Address  string `json:"privateIPAddress,omitempty"`
	Version  string `json:"privateIPAddressVersion,omitempty"`
	Primary  bool   `json:"primary,omitempty"`
	Subnet   *Ref   `json:"subnet,omitempty"`
	PublicIP *Ref   `json:"publicIPAddress,omitempty"`
}

// PublicIP is the properties of a public address.
type PublicIP struct {
	Method  string `json:"publicIPAllocationMethod"`
	Version string `json:"publicIPAddressVersion,omitempty"`
	Address string `json:"ipAddress,omitempty"`
}

// NSG is the properties of a network security group.
type NSG struct {
	Rules []Rule `json:"securityRules"`
}

// Rule of a NSG.
type Rule struct {
	Name       string         `json:"name"`
	Properties RuleProperties `json:"properties"`
}

// RuleProperties of a Rule.
type RuleProperties struct {
	Description     string `json:"description,omitempty"`
	Protocol        string `json:"protocol"`
	SourcePort      string `json:"sourcePortRange"`
	DestinationPort string `json:"destinationPortRange"`
	Source          string `json:"sourceAddressPrefix"`
	Destination     string `json:"destinationAddressPrefix"`
	Access          string `json:"access"`
	Priority        int    `json:"priority"`
	Direction       string `json:"direction"`
}

// DenyAll is a group of rules that lets nothing in or out, not even to other
// members of the network, nor questions to Azure's own name server, which is reachable in spite of
// rules that don't name it. DHCP goes on: no rule governs it.
func DenyAll() NSG {
	rule := func(name, direction, to string, priority int) Rule {
		return Rule{name, RuleProperties{Description: "Holdfast: an isolated recovery VM reaches nobody", Protocol: "*", SourcePort: "*", DestinationPort: "*",
			Source: "*", Destination: to, Access: "Deny", Priority: priority, Direction: direction}}
	}
	return NSG{Rules: []Rule{rule("deny-in", "Inbound", "*", 100), rule("deny-names", "Outbound", "AzurePlatformDNS", 100), rule("deny-out", "Outbound", "*", 110)}}
}
