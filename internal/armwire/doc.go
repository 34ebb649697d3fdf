// Package armwire owns the JSON shapes of the Site Recovery compatible REST API
// (api-version 2025-01-01, a superset of 2018-01-10 and later), its resource ids,
// and the registration key file.
//
// It promises the exact spelling of every field as the published specification
// has it (decoders of several clients compare names with case; odd spellings such
// as oSDetails, vMNetworkName and isSeletedForFailover are right as written).
// Everything that the specification does not know has a name starting with
// "holdfast". Unknown fields are ignored when decoding. The package holds no
// behaviour beyond encoding and decoding; values are safe for concurrent reading.
package armwire

// Versions of the API.
const (
	// APIVersion is what our own client sends. The server accepts every dated version.
	APIVersion = "2025-01-01"
	// Namespace is the resource provider.
	Namespace = "Microsoft.RecoveryServices"
	// Cloud is the literal that stands for the cloud as a recovery fabric and container.
	Cloud = "Microsoft Azure"
)

// Instance types (discriminators) that occur for Hyper-V and KVM sites.
const (
	HyperVReplicaAzure         = "HyperVReplicaAzure"
	HyperVReplicaAzureFailback = "HyperVReplicaAzureFailback"
	HyperVSite                 = "HyperVSite"
	Azure                      = "Azure"
	KVMSite                    = "KVMSite" // ours; accepted as input, shown as HyperVSite
	HyperVVirtualMachine       = "HyperVVirtualMachine"
	VMM                        = "VMM"
	VMMVirtualMachine          = "VmmVirtualMachine"
	VMMToAzure                 = "VmmToAzure"
	VMMToVMM                   = "VmmToVmm"
)

// Directions of a failover.
const (
	PrimaryToRecovery = "PrimaryToRecovery"
	RecoveryToPrimary = "RecoveryToPrimary"
)

// Network types of a test failover.
const (
	NetworkAsInput   = "VmNetworkAsInput"
	NoNetworkAsInput = "NoNetworkAttachAsInput"
)
