package dr

import (
	"cmp"
	"slices"
)

// Code names an entry of the error catalogue. Codes are stable: they appear in
// the API, in logs and in the documentation.
type Code string

// Retry says what replication does about an error by itself.
type Retry uint8

// The retry classes (DESIGN §4): recoverable errors are retried 1, 2, 4, 8, 10
// minutes after the first attempt and then every 30 minutes; non-recoverable
// ones wait for an operator.
const (
	RetryNone Retry = iota // not an error of replication
	Recoverable
	NonRecoverable
)

// String returns the class as people read it.
func (r Retry) String() string {
	switch r {
	case Recoverable:
		return "recoverable"
	case NonRecoverable:
		return "non-recoverable"
	}
	return "none"
}

// Entry describes one code: what happened, the usual cause, how it shows and the way out.
type Entry struct {
	Code     Code
	Kind     Kind   // of an error with this code, unless the place where it happens knows better
	Retry    Retry  // what replication does
	Severity Health // of an item's health while this is the matter; Normal = only told, empty = never a matter of health
	Title    string
	Cause    string
	Evidence string // what the message or the log shows
	Remedy   string // an action
}

// Group is a chapter of the catalogue.
type Group struct {
	Title   string
	Intro   string
	Entries []Entry // ordered by code
}

// The codes of connections, requests and jobs.
const (
	CodeRegistrationKeyInvalid Code = "RegistrationKeyInvalid"
	CodeRegistrationKeyExpired Code = "RegistrationKeyExpired"
	CodeRegistrationKeyRevoked Code = "RegistrationKeyRevoked"
	CodeRegistrationKeyUsed    Code = "RegistrationKeyUsed"
	CodeAgentRevoked           Code = "AgentRevoked"
	CodeVaultUnreachable       Code = "VaultUnreachable"
	CodeVaultIdentity          Code = "VaultIdentityMismatch"
	CodePolicyInvalid          Code = "PolicyInvalid"
	CodeWindowInvalid          Code = "WindowInvalid"
	CodePointNameInvalid       Code = "RecoveryPointNameInvalid"
	CodePolicyInUse            Code = "PolicyInUse"
	CodeFabricNotEmpty         Code = "FabricNotEmpty"
	CodeNameInvalid            Code = "NameInvalid"
	CodeNotFound               Code = "ResourceNotFound"
	CodeAlreadyExists          Code = "ResourceExists"
	CodeJobInProgress          Code = "JobInProgress"
	CodeOperationNotAllowed    Code = "OperationNotAllowed"
	CodeUnknownStep            Code = "UnknownStep"
)

// The codes of VMs and their hosts.
const (
	CodeDiskNotTrackable  Code = "DiskNotTrackable"
	CodeDiskShared        Code = "DiskShared"
	CodeDiskPassThrough   Code = "DiskPassThrough"
	CodeDiskNotReplicated Code = "DiskNotReplicated"
	CodeDiskShrunk        Code = "DiskShrunk"
	CodeNoDisks           Code = "NoReplicatableDisk"
	CodeVMNotFound        Code = "VMNotFound"
	CodeVMNotRunning      Code = "VMNotRunning"
	CodeVMReplicated      Code = "VMReplicatedElsewhere"
	CodeHypervisorDown    Code = "HypervisorUnreachable"
	CodeHypervisorTimeout Code = "HypervisorTimeout"
	CodeBackupJobBusy     Code = "BackupJobBusy"
	CodeScratchFull       Code = "ScratchFull"
	CodeSpoolFull         Code = "SpoolFull"
	CodeNoSpace           Code = "DiskFull"
	CodeGuestAgentMissing Code = "GuestAgentMissing"
	CodeGuestAgentTimeout Code = "GuestAgentTimeout" // on freeze or thaw
	CodeThawUnconfirmed   Code = "ThawUnconfirmed"
)

// The codes of Hyper-V hosts and their VMs.
const (
	CodeVMNotOff           Code = "VMNotOff"
	CodeVMStarting         Code = "VMStateUnstable"
	CodeMergeRunning       Code = "CheckpointMergeRunning"
	CodeCheckpointFailed   Code = "CheckpointFailed"
	CodeCheckpointsOff     Code = "CheckpointsDisabled"
	CodeConfigurationOld   Code = "ConfigurationVersionTooOld"
	CodeDiskFormatVHD      Code = "DiskFormatVHD"
	CodeLogonAsService     Code = "LogOnAsServiceMissing"
	CodeHostSignIn         Code = "HostSignInFailed"
	CodeHostAccess         Code = "HostAccessDenied"
	CodeHostQuota          Code = "HostQuotaReached"
	CodeVSSFailed          Code = "GuestSnapshotFailed"
	CodeVMMigrating        Code = "VMMigrating"
	CodeDiskFileInUse      Code = "DiskFileInUse"
	CodeDiskFileDamaged    Code = "DiskFileDamaged"
	CodeSwitchMissing      Code = "VirtualSwitchMissing"
	CodeShutdownNotOffered Code = "GuestShutdownNotOffered"
)

// The codes of an item's replication.
const (
	CodeEnableFailed        Code = "EnableProtectionFailed"
	CodeInitialIncomplete   Code = "InitialReplicationNotComplete"
	CodeCyclesMissed        Code = "ReplicationCyclesMissed"
	CodeReplicationLag      Code = "ReplicationLag"
	CodeLatencyHigh         Code = "ReplicationLatencyHigh"
	CodeBandwidthLow        Code = "ReplicationNotConverging"
	CodePaused              Code = "ReplicationPaused"
	CodeWindowClosed        Code = "WindowClosed"
	CodeSourceDisconnected  Code = "SourceHostNotConnected"
	CodeFailoverFailed      Code = "FailoverFailed"
	CodeFailoverNotReversed Code = "FailoverNotReversed"
	CodeGroupIncomplete     Code = "GroupIncomplete"
	CodeSeedMismatch        Code = "SeedMismatch"
	CodeAnomaly             Code = "LooksEncrypted"
)

// The codes of resynchronization: that one is due, and why.
const (
	CodeResyncRequired     Code = "ResynchronizationRequired"
	CodeResyncWindow       Code = "ResynchronizationWaiting" // told only
	CodeResyncRequested    Code = "ResynchronizationRequested"
	CodeTrackingLost       Code = "ChangeTrackingLost"
	CodeTrackingThreshold  Code = "TrackingThresholdExceeded"
	CodeDiskChangedOffline Code = "DiskChangedOffline"
	CodeDiskReplaced       Code = "DiskReplaced"
	CodeVMReverted         Code = "VMReverted"
	CodeHostCrash          Code = "TrackerNotClosed"
	CodeLogSequence        Code = "CutOutOfSequence"
	CodeGenerationChanged  Code = "GenerationChanged"
	CodeDigestsUnavailable Code = "DigestsUnavailable"
)

// The codes of the store.
const (
	CodeStoreUnreachable    Code = "StoreUnreachable"
	CodeStoreReadOnly       Code = "StoreReadOnly"
	CodeStoreFull           Code = "StoreFull"
	CodeStoreNotConditional Code = "StoreNotConditional"
	CodeStoreDamaged        Code = "StoreDamaged" // found by a scrub
	CodeObjectCorrupt       Code = "ObjectCorrupt"
	CodeObjectMissing       Code = "ObjectMissing"
	CodeObjectConflict      Code = "ObjectConflict"
	CodeFormatUnsupported   Code = "FormatUnsupported"
	CodeGenerationFenced    Code = "GenerationFenced"
	CodeNoRecoveryPoint     Code = "NoRecoveryPoint"
	CodePointRefused        Code = "RecoveryPointRefused"
	CodeCompactorConflict   Code = "CompactorConflict"
	CodeRetentionHeld       Code = "RetentionHeld"
)

// The codes of the vault's keys.
const (
	CodeKeyMismatch      Code = "VaultKeyMismatch"
	CodeKeySealed        Code = "KeySealed" // a passphrase is needed and there is none
	CodePassphraseWrong  Code = "PassphraseWrong"
	CodeKeyFileDamaged   Code = "KeyFileDamaged"
	CodeKeyFileExposed   Code = "KeyFileExposed"
	CodeKeyStoreFailed   Code = "KeyStoreFailed"
	CodeKeyShareDamaged  Code = "KeyShareDamaged"
	CodeKeyShareRepeated Code = "KeyShareRepeated"
	CodeKeyShareWrong    Code = "KeyShareWrong"
	CodeKeySharesMixed   Code = "KeySharesMixed"
	CodeKeySharesTooFew  Code = "KeySharesTooFew"
	CodeKeyRotation      Code = "KeyRotationOpen"
	CodeKeysLeft         Code = "KeyRotationLeft"
	CodeKeyOpensNotAll   Code = "KeyOpensNotAll"
)

// The codes of failover.
const (
	CodeNoRecoverySite     Code = "NoRecoverySite"
	CodeRecoveryAgentDown  Code = "RecoveryAgentUnreachable"
	CodeBootNotVerified    Code = "BootNotVerified"
	CodeShutdownTimeout    Code = "ShutdownTimeout"
	CodeSourceStillRunning Code = "SourceStillRunning"
	CodeNetworkNotIsolated Code = "NetworkNotIsolated"
	CodeNetworkMapping     Code = "NetworkMappingBroken"
)

// The codes of Azure as a recovery site and as a store.
const (
	CodeAzureSignIn        Code = "AzureSignInFailed"
	CodeAzureClock         Code = "AzureClockSkew"
	CodeAzureRole          Code = "AzureRoleMissing"
	CodeAzureProvider      Code = "AzureProviderNotRegistered"
	CodeAzureQuota         Code = "AzureQuotaReached"
	CodeAzurePolicy        Code = "AzurePolicyDenied"
	CodeAzureLocked        Code = "AzureResourceLocked"
	CodeAzureNotFound      Code = "AzureResourceMissing"
	CodeAzureNameTaken     Code = "AzureNameTaken"
	CodeAzureSize          Code = "AzureSizeNotAvailable"
	CodeAzureCapacity      Code = "AzureNoCapacity"
	CodeAzureSubnet        Code = "AzureSubnetFull"
	CodeAzureAddress       Code = "AzureAddressTaken"
	CodeAzureThrottled     Code = "AzureThrottled"
	CodeAzureOperation     Code = "AzureOperationFailed"
	CodeAzureUnreachable   Code = "AzureUnreachable"
	CodeAzureFirewall      Code = "AzureStorageFirewall"
	CodeAzureContainer     Code = "AzureContainerMissing"
	CodeAzureSignature     Code = "AzureSignatureRefused"
	CodeAzureDisk          Code = "AzureDiskNotPossible"
	CodeAzureConfiguration Code = "AzureConfigurationInvalid"
	CodeWarmReplica        Code = "WarmReplicaFailed"
)

// The codes of Virtual Machine Manager servers.
const (
	CodeVMMModuleMissing Code = "VmmModuleMissing"
	CodeVMMOutput        Code = "VmmOutputInvalid"
	CodeVMMUnreachable   Code = "VmmUnreachable"
)

// tables lists the chapters' entries, each ordered by code. The entries are
// constants in the program's data and never written.
func tables() [10][]Entry {
	return [...][]Entry{connectionEntries[:], requestEntries[:], hostEntries[:], hypervEntries[:], replicationEntries[:], resyncEntries[:], storeEntries[:], keyEntries[:], failoverEntries[:], azureEntries[:]}
}

// Lookup finds a catalogue entry, without allocating.
func Lookup(c Code) (Entry, bool) {
	for _, t := range tables() {
		if i, ok := slices.BinarySearchFunc(t, c, func(e Entry, c Code) int { return cmp.Compare(e.Code, c) }); ok {
			return t[i], true
		}
	}
	return Entry{}, false
}

// Groups returns the chapters of the catalogue, in the order of the documentation page.
func Groups() []Group {
	groups := []Group{
		{Title: "Registration and connection", Intro: "Between a host, the vault and each other's identity."},
		{Title: "Requests and jobs", Intro: "What the vault answers to somebody who asks for something. Replication is not touched."},
		{Title: "VMs and hosts", Intro: "What the source host, its hypervisor and the guest can do to a cut."},
		{Title: "Hyper-V hosts", Intro: "What a Hyper-V host, its checkpoints and Windows Remote Management can do to a cut."},
		{Title: "Replication", Intro: "The reasons of an item's health, by the rules of Hyper-V Replica and a few more."},
		{Title: "Resynchronization", Intro: "Why the replica has to be compared with the source. Tracking goes on and recovery points stay usable meanwhile."},
		{Title: "Store", Intro: "The objects in which the replicas are kept."},
		{Title: "Keys", Intro: "The vault's private key, without which nobody reads a store."},
		{Title: "Failover", Intro: "Bringing a VM up at the recovery site."},
		{Title: "Azure", Intro: "What a subscription, its storage account and its network can do to a replica or a failover. 'holdfast azure doctor' checks all of it step by step."},
	}
	for i, t := range tables() {
		groups[i].Entries = slices.Clone(t)
	}
	return groups
}

// Catalogue returns every entry, in the order of the documentation page.
func Catalogue() []Entry {
	var all []Entry
	for _, t := range tables() {
		all = append(all, t...)
	}
	return all
}
