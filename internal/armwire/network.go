package armwire

// VMMServer is what is known of the VMM server of a site (ours: the public
// specification has nothing of it).
type VMMServer struct {
	Server   string    `json:"server"`
	Product  string    `json:"product"`
	Clouds   []string  `json:"clouds"` // names
	Hosts    []VMMHost `json:"hosts"`
	Warnings []string  `json:"warnings"` // what could not be listed
}

// VMMHost is a host that the VMM server manages; AgentID is empty if it has no agent.
type VMMHost struct {
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	OS      string `json:"os"`
	AgentID string `json:"agentId"`
}

// Subnet of a network.
type Subnet struct {
	Name         string   `json:"name"`
	FriendlyName string   `json:"friendlyName"`
	AddressList  []string `json:"addressList"`
}

// Network is properties of a network.
type Network struct {
	FabricType   string   `json:"fabricType"`
	Subnets      []Subnet `json:"subnets"`
	FriendlyName string   `json:"friendlyName"`
	NetworkType  string   `json:"networkType"`
	Hosts        []string `json:"holdfastHosts,omitempty"` // that have it, on sites without VMM
}

// LogicalNetwork is properties of a logical network.
type LogicalNetwork struct {
	FriendlyName                    string `json:"friendlyName"`
	NetworkVirtualizationStatus     string `json:"networkVirtualizationStatus"`
	LogicalNetworkUsage             string `json:"logicalNetworkUsage"`
	LogicalNetworkDefinitionsStatus string `json:"logicalNetworkDefinitionsStatus"`
}

// NetworkMappingInput creates or changes a network mapping. Of a change absent
// fields stay.
type NetworkMappingInput struct {
	RecoveryFabricName    string  `json:"recoveryFabricName"` // a site's name, or Cloud
	RecoveryNetworkID     string  `json:"recoveryNetworkId"`
	FabricSpecificDetails Variant `json:"fabricSpecificDetails"`
}

// InstanceDetails is a polymorphic object that has nothing but its discriminator.
type InstanceDetails struct {
	InstanceType string `json:"instanceType"`
}

// NetworkMapping is properties of a network mapping.
type NetworkMapping struct {
	State                       string          `json:"state"` // Paired
	PrimaryNetworkFriendlyName  string          `json:"primaryNetworkFriendlyName"`
	PrimaryNetworkID            string          `json:"primaryNetworkId"`
	PrimaryFabricFriendlyName   string          `json:"primaryFabricFriendlyName"`
	RecoveryNetworkFriendlyName string          `json:"recoveryNetworkFriendlyName"`
	RecoveryNetworkID           string          `json:"recoveryNetworkId"`
	RecoveryFabricARMID         string          `json:"recoveryFabricArmId"`
	RecoveryFabricFriendlyName  string          `json:"recoveryFabricFriendlyName"`
	FabricSpecificSettings      InstanceDetails `json:"fabricSpecificSettings"`
}

// StorageClassification is properties of a storage classification.
type StorageClassification struct {
	FriendlyName string `json:"friendlyName"`
}

// StorageMapping is properties of a mapping of storage classifications, and its input.
type StorageMapping struct {
	TargetStorageClassificationID string `json:"targetStorageClassificationId"`
}

// DiscoverInput looks for a machine.
type DiscoverInput struct {
	FriendlyName string `json:"friendlyName"`
	IPAddress    string `json:"ipAddress"`
	OSType       string `json:"osType"`
}
