package armwire

import "time"

// FabricInput creates a site.
type FabricInput struct {
	CustomDetails Variant `json:"customDetails"`
	// FabricType chooses a KVM site for clients that can't set our instance type.
	FabricType string `json:"holdfastFabricType,omitempty"`
}

// FabricDetails is customDetails of a fabric: a site and its hosts.
type FabricDetails struct {
	InstanceType string       `json:"instanceType"`
	HyperVHosts  []FabricHost `json:"hyperVHosts,omitempty"`
}

// FabricHost is one host of a site.
type FabricHost struct {
	ID               string `json:"id"`
	Name             string `json:"name"`
	MARSAgentVersion string `json:"marsAgentVersion,omitempty"`
}

// EncryptionDetails is always "None": data is encrypted by the store.
type EncryptionDetails struct {
	KEKState string `json:"kekState"`
}

// Fabric is properties of a fabric.
type Fabric struct {
	FriendlyName              string            `json:"friendlyName"`
	EncryptionDetails         EncryptionDetails `json:"encryptionDetails"`
	RolloverEncryptionDetails EncryptionDetails `json:"rolloverEncryptionDetails"`
	InternalIdentifier        string            `json:"internalIdentifier"`
	BCDRState                 string            `json:"bcdrState"`
	CustomDetails             FabricDetails     `json:"customDetails"`
	HealthErrorDetails        []HealthError     `json:"healthErrorDetails"`
	Health                    string            `json:"health"`
	FabricType                string            `json:"holdfastFabricType"` // dr.FabricType
	VMM                       *VMMServer        `json:"holdfastVmm,omitempty"`
}

// IdentityProvider says how a provider authenticates; ours use certificates of the vault.
type IdentityProvider struct {
	TenantID      string `json:"tenantId,omitempty"`
	ApplicationID string `json:"applicationId,omitempty"`
	ObjectID      string `json:"objectId,omitempty"`
	Audience      string `json:"audience,omitempty"`
	AADAuthority  string `json:"aadAuthority,omitempty"`
}

// VersionDetails is a provider's version and whether it is supported.
type VersionDetails struct {
	Version string `json:"version"`
	Status  string `json:"status"`
}

// Provider is properties of a recovery services provider (an agent).
type Provider struct {
	FabricType                    string           `json:"fabricType"`
	FriendlyName                  string           `json:"friendlyName"`
	ProviderVersion               string           `json:"providerVersion"`
	ServerVersion                 string           `json:"serverVersion"`
	ProviderVersionState          string           `json:"providerVersionState"`
	ProviderVersionDetails        VersionDetails   `json:"providerVersionDetails"`
	FabricFriendlyName            string           `json:"fabricFriendlyName"`
	LastHeartBeat                 *time.Time       `json:"lastHeartBeat,omitempty"`
	ConnectionStatus              string           `json:"connectionStatus"` // Connected or Disconnected
	ProtectedItemCount            int32            `json:"protectedItemCount"`
	AllowedScenarios              []string         `json:"allowedScenarios"`
	HealthErrorDetails            []HealthError    `json:"healthErrorDetails"`
	DRAIdentifier                 string           `json:"draIdentifier"`
	MachineID                     string           `json:"machineId"`
	MachineName                   string           `json:"machineName"`
	AuthenticationIdentityDetails IdentityProvider `json:"authenticationIdentityDetails"`
	Roles                         []string         `json:"holdfastRoles"` // dr.AgentRole
	Hypervisor                    string           `json:"holdfastHypervisor,omitempty"`
}

// Container is properties of a protection container.
type Container struct {
	FabricFriendlyName    string `json:"fabricFriendlyName"`
	FriendlyName          string `json:"friendlyName"`
	FabricType            string `json:"fabricType"`
	ProtectedItemCount    int32  `json:"protectedItemCount"`
	PairingStatus         string `json:"pairingStatus"` // Paired or NotPaired
	Role                  string `json:"role"`          // Primary, Recovery or empty
	FabricSpecificDetails any    `json:"fabricSpecificDetails"`
}

// DiskDetails is one disk of a protectable item. MaxSizeMB is in MiB, rounded up.
type DiskDetails struct {
	MaxSizeMB      int64  `json:"maxSizeMB"`
	VHDType        string `json:"vhdType"` // OperatingSystem or Data
	VHDID          string `json:"vhdId"`
	VHDName        string `json:"vhdName"`
	Format         string `json:"holdfastFormat,omitempty"`
	Unreplicatable string `json:"holdfastUnreplicatable,omitempty"` // why it can't be replicated
}

// OSDetails is the guest's operating system as far as known.
type OSDetails struct {
	OSType         string `json:"osType"`
	ProductType    string `json:"productType"`
	OSEdition      string `json:"osEdition"`
	OSVersion      string `json:"oSVersion"`
	OSMajorVersion string `json:"oSMajorVersion"`
	OSMinorVersion string `json:"oSMinorVersion"`
}

// VMDetails is customDetails of a protectable item.
type VMDetails struct {
	InstanceType           string        `json:"instanceType"`
	SourceItemID           string        `json:"sourceItemId"`
	Generation             string        `json:"generation"`
	OSDetails              OSDetails     `json:"osDetails"`
	DiskDetails            []DiskDetails `json:"diskDetails"`
	HasPhysicalDisk        string        `json:"hasPhysicalDisk"` // Present, NotPresent, Unknown
	HasFibreChannelAdapter string        `json:"hasFibreChannelAdapter"`
	HasSharedVHD           string        `json:"hasSharedVhd"`
	HyperVHostID           string        `json:"hyperVHostId,omitempty"`
}

// ProtectableItem is properties of a discovered VM.
type ProtectableItem struct {
	FriendlyName                  string    `json:"friendlyName"`
	ProtectionStatus              string    `json:"protectionStatus"` // Unprotected or Protected
	ReplicationProtectedItemID    *string   `json:"replicationProtectedItemId"`
	RecoveryServicesProviderID    string    `json:"recoveryServicesProviderId"`
	ProtectionReadinessErrors     []string  `json:"protectionReadinessErrors"`
	SupportedReplicationProviders []string  `json:"supportedReplicationProviders"`
	CustomDetails                 VMDetails `json:"customDetails"`
	Running                       bool      `json:"holdfastRunning"`
}

// PolicyInput creates a policy.
type PolicyInput struct {
	ProviderSpecificInput Variant `json:"providerSpecificInput"`
}

// PolicyUpdate changes a policy.
type PolicyUpdate struct {
	ReplicationProviderSettings Variant `json:"replicationProviderSettings"`
}

// PolicySettings is the HyperVReplicaAzure policy as clients send it; absent fields are nil.
type PolicySettings struct {
	InstanceType                 string   `json:"instanceType"`
	RecoveryPointHistoryDuration *int32   `json:"recoveryPointHistoryDuration,omitempty"`                  // hours
	AppConsistentFrequency       *int32   `json:"applicationConsistentSnapshotFrequencyInHours,omitempty"` // hours
	ReplicationInterval          *int32   `json:"replicationInterval,omitempty"`                           // seconds
	OnlineReplicationStartTime   *string  `json:"onlineReplicationStartTime,omitempty"`
	StorageAccounts              []string `json:"storageAccounts,omitempty"`
	RetentionSeconds             *int64   `json:"holdfastRetentionSeconds,omitempty"`    // instead of the hours
	AppFrequencySeconds          *int64   `json:"holdfastAppFrequencySeconds,omitempty"` // instead of the hours

	RetainHourlySeconds *int64   `json:"holdfastRetainHourlySeconds,omitempty"` // age until which one point an hour is kept; 0 = no such tier
	RetainDailySeconds  *int64   `json:"holdfastRetainDailySeconds,omitempty"`  // age until which one point a day is kept; 0 = no such tier
	ResyncMode          *string  `json:"holdfastResyncMode,omitempty"`          // dr.ResyncMode
	ResyncWindow        *string  `json:"holdfastResyncWindow,omitempty"`        // text of dr.Window; empty = always
	ResyncThreshold     *float64 `json:"holdfastResyncThreshold,omitempty"`     // share of the disks' size; 0 = the default, negative = off
	InitialMode         *string  `json:"holdfastInitialMode,omitempty"`         // dr.InitialMode
	InitialWindow       *string  `json:"holdfastInitialWindow,omitempty"`
	InitialPriority     *int     `json:"holdfastInitialPriority,omitempty"` // -10..10, higher goes first
	Compression         *string  `json:"holdfastCompression,omitempty"`     // dr.Compression
	// Bandwidth replaces all rules; an empty list takes them away.
	Bandwidth *[]BandwidthRule `json:"holdfastBandwidth,omitempty"`
}

// BandwidthRule limits what the items of a policy send together while its window is open.
type BandwidthRule struct {
	Window         string `json:"window"`         // text of dr.Window; empty = always
	BytesPerSecond int64  `json:"bytesPerSecond"` // 0 = unlimited
}

// PolicyDetails is providerSpecificDetails of a policy. It has other names than the input.
type PolicyDetails struct {
	InstanceType               string  `json:"instanceType"`
	RecoveryPointHistoryHours  int32   `json:"recoveryPointHistoryDurationInHours"`
	AppConsistentFrequency     int32   `json:"applicationConsistentSnapshotFrequencyInHours"`
	ReplicationInterval        int32   `json:"replicationInterval"` // seconds
	OnlineReplicationStartTime *string `json:"onlineReplicationStartTime"`
	Encryption                 string  `json:"encryption"`
	ActiveStorageAccountID     string  `json:"activeStorageAccountId,omitempty"`
	RetentionSeconds           int64   `json:"holdfastRetentionSeconds"`    // exact; the hours are rounded up
	AppFrequencySeconds        int64   `json:"holdfastAppFrequencySeconds"` // exact

	RetainHourlySeconds int64           `json:"holdfastRetainHourlySeconds"`
	RetainDailySeconds  int64           `json:"holdfastRetainDailySeconds"`
	ResyncMode          string          `json:"holdfastResyncMode"`
	ResyncWindow        string          `json:"holdfastResyncWindow"`
	ResyncThreshold     float64         `json:"holdfastResyncThreshold"` // in effect; -1 = off
	InitialMode         string          `json:"holdfastInitialMode"`
	InitialWindow       string          `json:"holdfastInitialWindow"`
	InitialPriority     int             `json:"holdfastInitialPriority"`
	Compression         string          `json:"holdfastCompression"`
	Bandwidth           []BandwidthRule `json:"holdfastBandwidth"`
}

// Policy is properties of a replication policy.
type Policy struct {
	FriendlyName            string        `json:"friendlyName"`
	ProviderSpecificDetails PolicyDetails `json:"providerSpecificDetails"`
}

// MappingInput creates a container mapping.
type MappingInput struct {
	TargetProtectionContainerID string  `json:"targetProtectionContainerId"` // Cloud, or the id of a container of a recovery fabric
	PolicyID                    string  `json:"policyId"`
	ProviderSpecificInput       Variant `json:"providerSpecificInput"`
}

// Mapping is properties of a container mapping.
type Mapping struct {
	TargetProtectionContainerID           string        `json:"targetProtectionContainerId"`
	TargetProtectionContainerFriendlyName string        `json:"targetProtectionContainerFriendlyName"`
	ProviderSpecificDetails               any           `json:"providerSpecificDetails"`
	Health                                string        `json:"health"`
	HealthErrorDetails                    []HealthError `json:"healthErrorDetails"`
	PolicyID                              string        `json:"policyId"`
	State                                 string        `json:"state"` // Paired
	SourceProtectionContainerFriendlyName string        `json:"sourceProtectionContainerFriendlyName"`
	SourceFabricFriendlyName              string        `json:"sourceFabricFriendlyName"`
	TargetFabricFriendlyName              string        `json:"targetFabricFriendlyName"`
	PolicyFriendlyName                    string        `json:"policyFriendlyName"`
}
