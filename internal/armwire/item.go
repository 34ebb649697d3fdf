package armwire

import "time"

// EnableInput protects a VM (PUT of a protected item).
type EnableInput struct {
	PolicyID                string  `json:"policyId"`
	ProtectableItemID       string  `json:"protectableItemId"`
	ProviderSpecificDetails Variant `json:"providerSpecificDetails"`
}

// EnableDetails is the HyperVReplicaAzure part of EnableInput, as far as the
// server uses or echoes it.
type EnableDetails struct {
	InstanceType                  string            `json:"instanceType"`
	HVHostVMID                    string            `json:"hvHostVmId,omitempty"`
	VMName                        string            `json:"vmName,omitempty"`
	OSType                        string            `json:"osType,omitempty"`
	VHDID                         string            `json:"vhdId,omitempty"`
	TargetStorageAccountID        string            `json:"targetStorageAccountId,omitempty"`
	LogStorageAccountID           string            `json:"logStorageAccountId,omitempty"`
	DisksToInclude                []string          `json:"disksToInclude,omitempty"`
	DisksToIncludeForManagedDisks []DiskInput       `json:"disksToIncludeForManagedDisks,omitempty"`
	TargetAzureVMName             string            `json:"targetAzureVmName,omitempty"`
	TargetVMSize                  string            `json:"targetVmSize,omitempty"`
	TargetAzureNetworkID          string            `json:"targetAzureNetworkId,omitempty"`
	TargetAzureSubnetID           string            `json:"targetAzureSubnetId,omitempty"`
	TargetAzureV1ResourceGroupID  string            `json:"targetAzureV1ResourceGroupId,omitempty"`
	TargetAzureV2ResourceGroupID  string            `json:"targetAzureV2ResourceGroupId,omitempty"`
	TargetAvailabilitySetID       string            `json:"targetAvailabilitySetId,omitempty"`
	TargetAvailabilityZone        string            `json:"targetAvailabilityZone,omitempty"`
	TargetProximityPlacementGroup string            `json:"targetProximityPlacementGroupId,omitempty"`
	EnableRDPOnTargetOption       string            `json:"enableRdpOnTargetOption,omitempty"`
	UseManagedDisks               string            `json:"useManagedDisks,omitempty"` // "true" or "false", as a string
	LicenseType                   string            `json:"licenseType,omitempty"`
	LinuxLicenseType              string            `json:"linuxLicenseType,omitempty"`
	SQLServerLicenseType          string            `json:"sqlServerLicenseType,omitempty"`
	TargetVMTags                  map[string]string `json:"targetVmTags,omitempty"`
	CPUs                          int               `json:"holdfastCpus,omitempty"`        // of the recovery VM; 0 = as the source
	MemoryMB                      int               `json:"holdfastMemoryMB,omitempty"`    // MiB of the recovery VM; 0 = as the source
	TestNetwork                   string            `json:"holdfastTestNetwork,omitempty"` // default network of test failovers
	Seed                          string            `json:"holdfastSeed,omitempty"`        // machine id of a seed in the store (GET …/holdfast/seeds)

	DiskType      string `json:"diskType,omitempty"`              // of managed disks; StandardSSD_LRS and the like
	SecurityGroup string `json:"holdfastSecurityGroup,omitempty"` // resource id of a network security group
	PublicIP      bool   `json:"holdfastPublicIp,omitempty"`
	WarmReplica   bool   `json:"holdfastWarmReplica,omitempty"` // the disks are kept ready in page blobs
	RepairGuest   bool   `json:"holdfastRepairGuest,omitempty"` // on a side layer, at failover
}

// DiskInput is one disk to include.
type DiskInput struct {
	DiskID   string `json:"diskId"`
	DiskType string `json:"diskType,omitempty"`
}

// UpdateInput changes a protected item's settings; absent fields are nil and left alone.
type UpdateInput struct {
	RecoveryAzureVMName            *string    `json:"recoveryAzureVMName,omitempty"`
	RecoveryAzureVMSize            *string    `json:"recoveryAzureVMSize,omitempty"`
	SelectedRecoveryAzureNetworkID *string    `json:"selectedRecoveryAzureNetworkId,omitempty"`
	SelectedTFOAzureNetworkID      *string    `json:"selectedTfoAzureNetworkId,omitempty"`
	SelectedSourceNICID            *string    `json:"selectedSourceNicId,omitempty"`
	EnableRDPOnTargetOption        *string    `json:"enableRdpOnTargetOption,omitempty"`
	VMNICs                         []NICInput `json:"vmNics,omitempty"`
	LicenseType                    *string    `json:"licenseType,omitempty"`
	RecoveryAvailabilitySetID      *string    `json:"recoveryAvailabilitySetId,omitempty"`
	ProviderSpecificDetails        Variant    `json:"providerSpecificDetails"`
}

// UpdateDetails is the HyperVReplicaAzure part of UpdateInput.
type UpdateDetails struct {
	InstanceType                  string            `json:"instanceType"`
	RecoveryAzureV2ResourceGroup  *string           `json:"recoveryAzureV2ResourceGroupId,omitempty"`
	UseManagedDisks               *string           `json:"useManagedDisks,omitempty"`
	TargetAvailabilityZone        *string           `json:"targetAvailabilityZone,omitempty"`
	TargetProximityPlacementGroup *string           `json:"targetProximityPlacementGroupId,omitempty"`
	SQLServerLicenseType          *string           `json:"sqlServerLicenseType,omitempty"`
	LinuxLicenseType              *string           `json:"linuxLicenseType,omitempty"`
	TargetVMTags                  map[string]string `json:"targetVmTags,omitempty"`
	CPUs                          *int              `json:"holdfastCpus,omitempty"`
	MemoryMB                      *int              `json:"holdfastMemoryMB,omitempty"`
	DiskType                      *string           `json:"holdfastDiskType,omitempty"`
	SecurityGroup                 *string           `json:"holdfastSecurityGroup,omitempty"`
	PublicIP                      *bool             `json:"holdfastPublicIp,omitempty"`
	WarmReplica                   *bool             `json:"holdfastWarmReplica,omitempty"`
	RepairGuest                   *bool             `json:"holdfastRepairGuest,omitempty"`
}

// NICInput is what a client wants of one adapter.
type NICInput struct {
	NICID           string          `json:"nicId"`
	SelectionType   string          `json:"selectionType,omitempty"`
	RecoveryNICName string          `json:"recoveryNicName,omitempty"`
	TargetNICName   string          `json:"targetNicName,omitempty"`
	IPConfigs       []IPConfigInput `json:"ipConfigs,omitempty"`
}

// IPConfigInput is one address configuration of NICInput.
type IPConfigInput struct {
	IPConfigName            string `json:"ipConfigName,omitempty"`
	IsPrimary               bool   `json:"isPrimary"`
	IsSelectedForFailover   bool   `json:"isSeletedForFailover"` // sic
	RecoverySubnetName      string `json:"recoverySubnetName,omitempty"`
	RecoveryStaticIPAddress string `json:"recoveryStaticIPAddress,omitempty"`
	TFOSubnetName           string `json:"tfoSubnetName,omitempty"`
	TFOStaticIPAddress      string `json:"tfoStaticIPAddress,omitempty"`
}

// FailoverInput is the input of planned and unplanned failovers.
type FailoverInput struct {
	FailoverDirection       string  `json:"failoverDirection,omitempty"`
	SourceSiteOperations    string  `json:"sourceSiteOperations,omitempty"` // Required or NotRequired; unplanned only
	ProviderSpecificDetails Variant `json:"providerSpecificDetails"`
}

// FailoverDetails is the HyperVReplicaAzure part of every failover input.
type FailoverDetails struct {
	InstanceType    string  `json:"instanceType"`
	RecoveryPointID *string `json:"recoveryPointId,omitempty"` // null or empty = latest
}

// TestFailoverInput starts a test failover.
type TestFailoverInput struct {
	FailoverDirection       string  `json:"failoverDirection,omitempty"`
	NetworkType             string  `json:"networkType,omitempty"` // NetworkAsInput, NoNetworkAsInput, or empty = isolated
	NetworkID               string  `json:"networkId,omitempty"`   // id or name
	ProviderSpecificDetails Variant `json:"providerSpecificDetails"`
}

// CleanupInput ends a test failover.
type CleanupInput struct {
	Comments string `json:"comments,omitempty"`
}

// ApplyPointInput changes the recovery point of a failover that awaits its commit.
type ApplyPointInput struct {
	RecoveryPointID         *string `json:"recoveryPointId"`
	ProviderSpecificDetails Variant `json:"providerSpecificDetails"`
}

// DisableInput ends protection.
type DisableInput struct {
	DisableProtectionReason  string  `json:"disableProtectionReason,omitempty"`
	ReplicationProviderInput Variant `json:"replicationProviderInput"`
}

// ResolveHealthInput names health errors that the operator has dealt with.
type ResolveHealthInput struct {
	HealthErrors []struct {
		HealthErrorID string `json:"healthErrorId"`
	} `json:"healthErrors"`
}

// CurrentScenario is the job that an item is busy with.
type CurrentScenario struct {
	ScenarioName string     `json:"scenarioName"` // "None" if idle
	JobID        string     `json:"jobId"`
	StartTime    *time.Time `json:"startTime"`
}

// InitialReplication is the progress of the initial replication.
type InitialReplication struct {
	Type       string `json:"initialReplicationType"`
	Percentage string `json:"initialReplicationProgressPercentage"` // "0".."100", as a string
}

// RecoveryDisk is one replicated disk (azureVmDiskDetails).
type RecoveryDisk struct {
	VHDType   string `json:"vhdType"`
	VHDID     string `json:"vhdId"`
	DiskID    string `json:"diskId"`
	VHDName   string `json:"vhdName"`
	MaxSizeMB string `json:"maxSizeMB"` // a string here, a number in DiskDetails
	LUNID     string `json:"lunId"`
}

// NICDetails is one adapter of a protected item.
type NICDetails struct {
	NICID               string            `json:"nicId"`
	VMNetworkName       string            `json:"vMNetworkName"`
	RecoveryVMNetworkID string            `json:"recoveryVMNetworkId,omitempty"`
	TFOVMNetworkID      string            `json:"tfoVMNetworkId,omitempty"`
	RecoveryNICName     string            `json:"recoveryNicName,omitempty"`
	TargetNICName       string            `json:"targetNicName,omitempty"`
	SelectionType       string            `json:"selectionType"`
	IPConfigs           []IPConfigDetails `json:"ipConfigs"`
	MAC                 string            `json:"holdfastMac,omitempty"`
}

// IPConfigDetails is one address configuration of NICDetails.
type IPConfigDetails struct {
	Name                    string `json:"name,omitempty"`
	IsPrimary               bool   `json:"isPrimary"`
	IsSelectedForFailover   bool   `json:"isSeletedForFailover"` // sic
	SubnetName              string `json:"subnetName,omitempty"`
	StaticIPAddress         string `json:"staticIPAddress,omitempty"`
	IPAddressType           string `json:"ipAddressType"`
	RecoverySubnetName      string `json:"recoverySubnetName,omitempty"`
	RecoveryStaticIPAddress string `json:"recoveryStaticIPAddress,omitempty"`
	RecoveryIPAddressType   string `json:"recoveryIPAddressType"`
	TFOSubnetName           string `json:"tfoSubnetName,omitempty"`
	TFOStaticIPAddress      string `json:"tfoStaticIPAddress,omitempty"`
}

// ReplicationDetails is providerSpecificDetails of a protected item.
type ReplicationDetails struct {
	InstanceType                   string             `json:"instanceType"`
	AzureVMDiskDetails             []RecoveryDisk     `json:"azureVmDiskDetails"`
	RecoveryAzureVMName            string             `json:"recoveryAzureVmName"`
	RecoveryAzureVMSize            string             `json:"recoveryAzureVMSize,omitempty"`
	RecoveryAzureStorageAccount    string             `json:"recoveryAzureStorageAccount,omitempty"`
	RecoveryAzureLogStorageAccount string             `json:"recoveryAzureLogStorageAccountId,omitempty"`
	LastReplicatedTime             *time.Time         `json:"lastReplicatedTime,omitempty"`
	RPOInSeconds                   *int64             `json:"rpoInSeconds,omitempty"`
	LastRPOCalculatedTime          *time.Time         `json:"lastRpoCalculatedTime,omitempty"`
	LastRecoveryPointReceived      *time.Time         `json:"lastRecoveryPointReceived,omitempty"`
	VMID                           string             `json:"vmId"`
	VMProtectionState              string             `json:"vmProtectionState"`
	VMProtectionStateDescription   string             `json:"vmProtectionStateDescription"`
	InitialReplicationDetails      InitialReplication `json:"initialReplicationDetails"`
	VMNICs                         []NICDetails       `json:"vmNics"`
	SelectedRecoveryAzureNetworkID string             `json:"selectedRecoveryAzureNetworkId,omitempty"`
	SelectedSourceNICID            string             `json:"selectedSourceNicId,omitempty"`
	Encryption                     string             `json:"encryption"`
	OSDetails                      *OSDetails         `json:"oSDetails,omitempty"`
	SourceVMRAMSizeInMB            int32              `json:"sourceVmRamSizeInMB"`
	SourceVMCPUCount               int32              `json:"sourceVmCpuCount"`
	EnableRDPOnTargetOption        string             `json:"enableRdpOnTargetOption,omitempty"`
	RecoveryAzureResourceGroupID   string             `json:"recoveryAzureResourceGroupId,omitempty"`
	RecoveryAvailabilitySetID      string             `json:"recoveryAvailabilitySetId,omitempty"`
	TargetAvailabilityZone         string             `json:"targetAvailabilityZone,omitempty"`
	TargetProximityPlacementGroup  string             `json:"targetProximityPlacementGroupId,omitempty"`
	UseManagedDisks                string             `json:"useManagedDisks,omitempty"`
	LicenseType                    string             `json:"licenseType,omitempty"`
	LinuxLicenseType               string             `json:"linuxLicenseType,omitempty"`
	SQLServerLicenseType           string             `json:"sqlServerLicenseType,omitempty"`
	TargetVMTags                   map[string]string  `json:"targetVmTags,omitempty"`
}

// ProtectedItem is properties of a VM under replication. The fields from
// ItemID on are ours.
type ProtectedItem struct {
	FriendlyName                            string             `json:"friendlyName"`
	ProtectedItemType                       string             `json:"protectedItemType"`
	ProtectableItemID                       string             `json:"protectableItemId"`
	RecoveryServicesProviderID              string             `json:"recoveryServicesProviderId"`
	PrimaryFabricFriendlyName               string             `json:"primaryFabricFriendlyName"`
	PrimaryFabricProvider                   string             `json:"primaryFabricProvider"`
	RecoveryFabricFriendlyName              string             `json:"recoveryFabricFriendlyName"`
	RecoveryFabricID                        string             `json:"recoveryFabricId"`
	PrimaryProtectionContainerFriendlyName  string             `json:"primaryProtectionContainerFriendlyName"`
	RecoveryProtectionContainerFriendlyName string             `json:"recoveryProtectionContainerFriendlyName"`
	RecoveryContainerID                     string             `json:"recoveryContainerId"`
	ProtectionState                         string             `json:"protectionState"`
	ProtectionStateDescription              string             `json:"protectionStateDescription"`
	ActiveLocation                          string             `json:"activeLocation"`
	TestFailoverState                       string             `json:"testFailoverState"`
	TestFailoverStateDescription            string             `json:"testFailoverStateDescription"`
	AllowedOperations                       []string           `json:"allowedOperations"`
	ReplicationHealth                       string             `json:"replicationHealth"`
	FailoverHealth                          string             `json:"failoverHealth"`
	HealthErrors                            []HealthError      `json:"healthErrors"`
	PolicyID                                string             `json:"policyId"`
	PolicyFriendlyName                      string             `json:"policyFriendlyName"`
	LastSuccessfulFailoverTime              *time.Time         `json:"lastSuccessfulFailoverTime,omitempty"`
	LastSuccessfulTestFailoverTime          *time.Time         `json:"lastSuccessfulTestFailoverTime,omitempty"`
	CurrentScenario                         CurrentScenario    `json:"currentScenario"`
	FailoverRecoveryPointID                 *string            `json:"failoverRecoveryPointId"`
	ProviderSpecificDetails                 ReplicationDetails `json:"providerSpecificDetails"`
	EventCorrelationID                      string             `json:"eventCorrelationId"`

	ItemID        string      `json:"holdfastItemId"`
	Replication   Replication `json:"holdfastReplication"`
	ResyncReason  string      `json:"holdfastResyncReason,omitempty"` // non-empty: a resynchronization is required or runs
	Paused        bool        `json:"holdfastPaused"`
	RecoveryVM    string      `json:"holdfastRecoveryVm,omitempty"`
	TestVM        string      `json:"holdfastTestVm,omitempty"`
	TestNetwork   string      `json:"holdfastTestNetwork,omitempty"`
	LastTestProof Variant     `json:"holdfastLastTestReport"` // report of the last drill, null if there was none

	PauseReason string     `json:"holdfastPauseReason,omitempty"`
	ResumeAt    *time.Time `json:"holdfastResumeAt,omitempty"` // when a pause ends by itself
	Resync      *Resync    `json:"holdfastResync"`             // null = none is required
	Anomaly     *Anomaly   `json:"holdfastAnomaly"`            // null = nothing looks wrong
	Disks       []Disk     `json:"holdfastDisks"`
	Group       string     `json:"holdfastGroupId,omitempty"` // consistency group
	Seeded      bool       `json:"holdfastSeeded,omitempty"`  // protection was begun with a seed
	Statistics  Statistics `json:"holdfastStatistics"`

	DiskType string       `json:"holdfastDiskType,omitempty"`
	PublicIP bool         `json:"holdfastPublicIp,omitempty"`
	Repair   bool         `json:"holdfastRepairGuest,omitempty"`
	Warm     *WarmReplica `json:"holdfastWarmReplica"` // null = the disks are not kept ready
}

// WarmReplica is how ready the disks of an item are kept in a cloud.
type WarmReplica struct {
	Point      string     `json:"recoveryPoint,omitempty"` // that they hold; empty = none yet
	PointTime  *time.Time `json:"recoveryPointTime,omitempty"`
	LagSeconds *int64     `json:"lagSeconds"` // from that point to the newest; null = none yet
	Busy       bool       `json:"busy"`
	Bytes      int64      `json:"bytesWritten"`
	Requests   int64      `json:"requests"`
	Problem    string     `json:"problem,omitempty"`
	ReportedAt *time.Time `json:"reportedAt,omitempty"`
}

// ComputeSize is properties of a size that a recovery VM can have (targetComputeSizes).
type ComputeSize struct {
	Name        string             `json:"name"`
	Friendly    string             `json:"friendlyName"`
	Cores       int32              `json:"cpuCoresCount"`
	VCPUs       int32              `json:"vCPUsAvailable"`
	MemoryGB    float64            `json:"memoryInGB"`
	DataDisks   int32              `json:"maxDataDiskCount"`
	NICs        int32              `json:"maxNicsCount"`
	Errors      []ComputeSizeError `json:"errors"` // why the item can't have it; empty = it can
	HighIOPS    string             `json:"highIopsSupported"`
	Generations []string           `json:"hyperVGenerations"`
}

// ComputeSizeError says why an item can't have a size.
type ComputeSizeError struct {
	Message  string `json:"message"`
	Severity string `json:"severity"`
}

// Replication is the agent's word on an item, and what follows from it.
type Replication struct {
	Phase           string     `json:"phase,omitempty"` // waiting, initialReplication, delta, resync, paused, stopped, error
	ProgressPercent float64    `json:"progressPercent"` // of initial replication or resync, 0..100
	BytesDone       int64      `json:"bytesDone"`
	BytesTotal      int64      `json:"bytesTotal"`
	ETASeconds      int64      `json:"etaSeconds"`    // 0 = unknown
	RPOLagSeconds   *int64     `json:"rpoLagSeconds"` // null = no recovery point yet, or the VM runs at the recovery site
	BacklogBytes    int64      `json:"backlogBytes"`
	SpooledBytes    int64      `json:"spooledBytes"`
	MissedCycles    int        `json:"missedCycles"`
	Cycles          int        `json:"cycles"`
	LastCut         *time.Time `json:"lastCut,omitempty"`
	LastPoint       *time.Time `json:"lastPoint,omitempty"`
	ReportedAt      *time.Time `json:"reportedAt,omitempty"` // when the agent said so
	Error           string     `json:"error,omitempty"`

	ChangeBytesPerSecond int64      `json:"changeBytesPerSecond"`      // what the guest changes, averaged over recent cycles
	ShipBytesPerSecond   int64      `json:"shipBytesPerSecond"`        // what reaches the store while there is something to send
	Convergence          string     `json:"convergence"`               // dr.Convergence; empty = not told yet
	BacklogSeconds       int64      `json:"backlogSeconds"`            // until the backlog is drained at these rates; 0 = nothing to drain, or unknown
	SentBytes            int64      `json:"sentBytes"`                 // since the agent's process started
	NextInitial          *time.Time `json:"nextInitial,omitempty"`     // when the initial replication begins or goes on
	Attempt              int        `json:"attempt,omitempty"`         // of what fails with error
	RetryAt              *time.Time `json:"retryAt,omitempty"`         // when it is tried again
	ErrorCode            string     `json:"errorCode,omitempty"`       // dr.Code of error
	ConsistencyNote      string     `json:"consistencyNote,omitempty"` // why the newest point is less consistent than the policy asks for
}

// Resync is a resynchronization that is required or runs.
type Resync struct {
	State      string     `json:"state"`                // ResyncRequired, ResyncWaiting or ResyncRunning
	Code       string     `json:"code,omitempty"`       // dr.Code: why
	Reason     string     `json:"reason"`               // the same in words
	Remedy     string     `json:"remedy,omitempty"`     // what an operator can do
	NextWindow *time.Time `json:"nextWindow,omitempty"` // when it begins by itself; null = not by itself, or it runs
	Percent    float64    `json:"progressPercent"`      // while it runs
	BytesDone  int64      `json:"bytesDone"`
	BytesTotal int64      `json:"bytesTotal"`
	ETASeconds int64      `json:"etaSeconds"` // 0 = unknown
}

// The states of a resynchronization.
const (
	ResyncRequired = "required" // an operator has to ask for it
	ResyncWaiting  = "waiting"  // it begins by itself, see NextWindow
	ResyncRunning  = "running"
)

// Disk is a disk of a protected VM, replicated or not.
type Disk struct {
	ID             string `json:"diskId"`
	Name           string `json:"name"`
	Bytes          int64  `json:"bytes"` // virtual size; 0 = the host no longer reports it
	Boot           bool   `json:"boot,omitempty"`
	Replicated     bool   `json:"replicated"`
	Excluded       bool   `json:"excluded,omitempty"`       // somebody wants it so
	Undecided      bool   `json:"undecided,omitempty"`      // new: nobody has decided about it
	Unreplicatable string `json:"unreplicatable,omitempty"` // why it can't be replicated
}

// DisksInput adds or removes disks (addDisks, removeDisks).
type DisksInput struct {
	ProviderSpecificDetails Variant `json:"providerSpecificDetails"`
}

// DisksDetails is the part of DisksInput for Hyper-V and KVM, which the public
// specification has no type for.
type DisksDetails struct {
	InstanceType string   `json:"instanceType"`
	Disks        []string `json:"holdfastDisks"` // disk ids
}

// RepairInput is the optional body of repairReplication.
type RepairInput struct {
	Full bool `json:"holdfastFull,omitempty"` // send everything again instead of only what differs
}

// PauseInput pauses an item.
type PauseInput struct {
	Reason   string     `json:"reason,omitempty"`
	ResumeAt *time.Time `json:"resumeAt,omitempty"` // null = when somebody says so
}

// PointUpdate names a recovery point or holds it; absent fields are left alone.
type PointUpdate struct {
	Name *string `json:"holdfastName,omitempty"`
	Held *bool   `json:"holdfastHeld,omitempty"`
}

// Anomaly says that a VM's data looks encrypted.
type Anomaly struct {
	Since     string     `json:"since"` // name of the first recovery point that does
	SinceTime *time.Time `json:"sinceTime,omitempty"`
	Good      string     `json:"lastGood,omitempty"` // name of the last one before it; it is held
	GoodTime  *time.Time `json:"lastGoodTime,omitempty"`
	Why       string     `json:"why"` // figures
	Raised    *time.Time `json:"raised,omitempty"`
}

// Event is an entry of the vault's log.
type Event struct {
	ID     string     `json:"id"`
	Time   *time.Time `json:"time"`
	Kind   string     `json:"kind"`
	ItemID string     `json:"itemId,omitempty"`
	Agent  string     `json:"agent,omitempty"`
	By     string     `json:"by,omitempty"` // who did it; empty = the vault or a host
	Audit  bool       `json:"audit"`        // somebody did something that has consequences
	Text   string     `json:"text"`
}

// RecoveryPoint is properties of a recovery point. The fields from Consistency on are ours.
type RecoveryPoint struct {
	RecoveryPointTime       *time.Time `json:"recoveryPointTime"`
	RecoveryPointType       string     `json:"recoveryPointType"` // CrashConsistent or ApplicationConsistent
	ProviderSpecificDetails any        `json:"providerSpecificDetails"`
	Consistency             string     `json:"holdfastConsistency"` // dr.Consistency, which also knows fs
	DirtyBytes              int64      `json:"holdfastDirtyBytes"`
	DataBytes               int64      `json:"holdfastDataBytes"`
	StoredBytes             int64      `json:"holdfastStoredBytes"`
	Resync                  bool       `json:"holdfastResync,omitempty"`
	Label                   string     `json:"holdfastName,omitempty"` // what people call it
	Held                    bool       `json:"holdfastHeld"`           // kept whatever retention says
	LabelBy                 string     `json:"holdfastNamedBy,omitempty"`
	Keep                    string     `json:"holdfastKeptBy,omitempty"`  // why it is kept: newest, fine, hourly, daily, or the reason of a hold
	Note                    string     `json:"holdfastNote,omitempty"`    // e.g. why it is only crash-consistent
	Suspect                 bool       `json:"holdfastSuspect,omitempty"` // looks encrypted
	Group                   string     `json:"holdfastGroupId,omitempty"` // consistency group that it is an instant of
	GroupSeq                uint64     `json:"holdfastGroupSeq,omitempty"`
}

// ItemSummary is the body of GET /holdfast/v1/items/{id}.
type ItemSummary struct {
	ID                string      `json:"id"`
	Name              string      `json:"name"`
	VMName            string      `json:"vmName"`
	ResourceID        string      `json:"resourceId"`
	ProtectionState   string      `json:"protectionState"`
	Health            string      `json:"health"`
	HealthMessages    []string    `json:"healthMessages,omitempty"`
	ActiveLocation    string      `json:"activeLocation"`
	TestFailoverState string      `json:"testFailoverState"`
	AllowedOperations []string    `json:"allowedOperations"`
	CurrentJob        string      `json:"currentJob,omitempty"`
	ResyncReason      string      `json:"resyncReason,omitempty"`
	Replication       Replication `json:"replication"`
	Points            int         `json:"points"`
	OldestPoint       string      `json:"oldestPoint,omitempty"`
	NewestPoint       string      `json:"newestPoint,omitempty"`
	NewestPointTime   *time.Time  `json:"newestPointTime,omitempty"`
	StoredBytes       int64       `json:"storedBytes"` // by all listed points
	LastTest          *time.Time  `json:"lastTest,omitempty"`
	LastTestReport    Variant     `json:"lastTestReport"`
}

// GuestCheck is what was found in the guest of a recovery point (…/holdfast/guestCheck).
type GuestCheck struct {
	Version   int               `json:"version"` // 1
	Point     string            `json:"recoveryPoint"`
	PointTime *time.Time        `json:"recoveryPointTime,omitempty"`
	Target    string            `json:"target"`       // azure, hyperv or kvm
	OS        string            `json:"os,omitempty"` // as the guest says
	Checks    map[string]string `json:"checks"`       // check → met, notMet, notChecked, notApplicable
	Findings  []GuestFinding    `json:"findings"`     // worst first
	Fixes     []GuestFix        `json:"fixes,omitempty"`
}

// GuestFinding is one thing to know before the VM is started at the target.
type GuestFinding struct {
	Check      string `json:"check"`
	Severity   string `json:"severity"` // error, warning, info
	Object     string `json:"object,omitempty"`
	Reason     string `json:"reason"`
	WayOut     string `json:"wayOut,omitempty"`
	NotChecked bool   `json:"notChecked,omitempty"`
}

// GuestFix is what a repair on a side layer would change.
type GuestFix struct {
	Check   string        `json:"check"`
	Disk    string        `json:"disk"`
	File    string        `json:"file"`
	What    string        `json:"what"`
	Changes []GuestChange `json:"changes"`
	Refused string        `json:"refused,omitempty"` // why it is not done
}

// GuestChange is a line before and after.
type GuestChange struct {
	Line   int    `json:"line"`
	Before string `json:"before"`
	After  string `json:"after"`
}
