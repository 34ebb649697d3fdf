package dr

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

// Entry describes one code: what happened, the usual cause and the way out.
type Entry struct {
	Code   Code
	Kind   Kind
	Retry  Retry
	Title  string
	Cause  string
	Remedy string
}

// The codes.
const (
	CodeRegistrationKeyInvalid Code = "RegistrationKeyInvalid"
	CodeRegistrationKeyExpired Code = "RegistrationKeyExpired"
	CodeRegistrationKeyRevoked Code = "RegistrationKeyRevoked"
	CodeRegistrationKeyUsed    Code = "RegistrationKeyUsed"
	CodeAgentRevoked           Code = "AgentRevoked"
	CodeVaultUnreachable       Code = "VaultUnreachable"
	CodeVaultIdentity          Code = "VaultIdentityMismatch"
	CodePolicyInvalid          Code = "PolicyInvalid"
	CodePointNameInvalid       Code = "RecoveryPointNameInvalid"
	CodePolicyInUse            Code = "PolicyInUse"
	CodeFabricNotEmpty         Code = "FabricNotEmpty"
	CodeNameInvalid            Code = "NameInvalid"
	CodeNotFound               Code = "ResourceNotFound"
	CodeAlreadyExists          Code = "ResourceExists"
	CodeJobInProgress          Code = "JobInProgress"
	CodeOperationNotAllowed    Code = "OperationNotAllowed"
	CodeUnknownStep            Code = "UnknownStep"

	CodeDiskNotTrackable  Code = "DiskNotTrackable"
	CodeDiskShared        Code = "DiskShared"
	CodeDiskPassThrough   Code = "DiskPassThrough"
	CodeNoDisks           Code = "NoReplicatableDisk"
	CodeVMNotFound        Code = "VMNotFound"
	CodeVMNotRunning      Code = "VMNotRunning"
	CodeVMReplicated      Code = "VMReplicatedElsewhere"
	CodeHypervisorDown    Code = "HypervisorUnreachable"
	CodeHypervisorTimeout Code = "HypervisorTimeout"
	CodeBackupJobBusy     Code = "BackupJobBusy"
	CodeTrackingLost      Code = "ChangeTrackingLost"
	CodeScratchFull       Code = "ScratchFull"
	CodeSpoolFull         Code = "SpoolFull"
	CodeNoSpace           Code = "DiskFull"

	CodeStoreUnreachable  Code = "StoreUnreachable"
	CodeStoreReadOnly     Code = "StoreReadOnly"
	CodeStoreFull         Code = "StoreFull"
	CodeObjectCorrupt     Code = "ObjectCorrupt"
	CodeObjectMissing     Code = "ObjectMissing"
	CodeObjectConflict    Code = "ObjectConflict"
	CodeFormatUnsupported Code = "FormatUnsupported"
	CodeKeyMismatch       Code = "VaultKeyMismatch"
	CodeGenerationFenced  Code = "GenerationFenced"
	CodeNoRecoveryPoint   Code = "NoRecoveryPoint"
	CodePointRefused      Code = "RecoveryPointRefused"

	CodeNoRecoverySite     Code = "NoRecoverySite"
	CodeRecoveryAgentDown  Code = "RecoveryAgentUnreachable"
	CodeBootNotVerified    Code = "BootNotVerified"
	CodeShutdownTimeout    Code = "ShutdownTimeout"
	CodeSourceStillRunning Code = "SourceStillRunning"
	CodeNetworkNotIsolated Code = "NetworkNotIsolated"
)

// Lookup finds a catalogue entry.
func Lookup(c Code) (Entry, bool) {
	for _, e := range Catalogue() {
		if e.Code == c {
			return e, true
		}
	}
	return Entry{}, false
}

// Catalogue returns every entry, in the order of the documentation page.
func Catalogue() []Entry {
	return []Entry{
		{CodeRegistrationKeyInvalid, KindUnauthenticated, RetryNone, "Registration key not accepted", "The key file is not from this vault or was altered.", "Download a new registration key for the site from the vault and run the registration again."},
		{CodeRegistrationKeyExpired, KindUnauthenticated, RetryNone, "Registration key expired", "Registration keys are valid for five days.", "Download a new registration key for the site from the vault."},
		{CodeRegistrationKeyRevoked, KindUnauthenticated, RetryNone, "Registration key revoked", "Somebody revoked this key in the vault.", "Ask the vault's administrator, or download a new registration key."},
		{CodeRegistrationKeyUsed, KindUnauthenticated, RetryNone, "One-time registration key already used", "The key was issued for one host and a host has registered with it.", "Download a new registration key for this host."},
		{CodeAgentRevoked, KindForbidden, NonRecoverable, "Agent removed from the vault", "The provider was removed or its certificate revoked.", "Register the host again with a new registration key if it should replicate."},
		{CodeVaultUnreachable, KindUnavailable, Recoverable, "Vault unreachable", "The host can't reach the vault over HTTPS.", "Check DNS, proxy and firewall from the host to the vault's address; replication continues into the spool meanwhile."},
		{CodeVaultIdentity, KindUnauthenticated, NonRecoverable, "Vault identity does not match", "The server's certificate is not signed by the vault whose key file was used.", "Check that the address is the vault's and that no proxy inspects TLS."},
		{CodePolicyInvalid, KindInvalid, RetryNone, "Policy not valid", "A setting of the replication policy is outside its range.", "Correct the setting named in the message."},
		{CodePointNameInvalid, KindInvalid, RetryNone, "Not a recovery point", "The name given is not the name of a recovery point.", "List the item's recovery points and use one of their names or ids."},
		{CodePolicyInUse, KindConflict, RetryNone, "Policy in use", "Containers or protected items still use the policy.", "Remove the container mappings and protected items first."},
		{CodeFabricNotEmpty, KindConflict, RetryNone, "Site not empty", "The site still has protected items or registered hosts.", "Disable protection of its items and remove its hosts first."},
		{CodeNameInvalid, KindInvalid, RetryNone, "Name not valid", "The name contains characters that are not allowed, or is too long.", "Use letters, digits and hyphens, starting and ending with a letter or digit."},
		{CodeNotFound, KindNotFound, RetryNone, "Not found", "No object of that name exists in the vault.", "Check the name; list the parent to see what exists."},
		{CodeAlreadyExists, KindConflict, RetryNone, "Exists already", "An object of that name exists already.", "Choose another name, or change the existing object."},
		{CodeJobInProgress, KindConflict, RetryNone, "Another job is running", "The item is busy with another job.", "Wait for the job or cancel it, then try again."},
		{CodeOperationNotAllowed, KindPrecondition, RetryNone, "Not possible now", "The item's state does not allow the operation.", "The item's allowed operations list what can be done now."},
		{CodeUnknownStep, KindInternal, RetryNone, "Job step unknown", "This version of the vault does not know a step of the job.", "Restart the job with the vault version that made it, or cancel it and start again."},

		{CodeDiskNotTrackable, KindUnsupported, NonRecoverable, "Disk can't be tracked", "The disk's format has no persistent change tracking (raw, or another format than qcow2).", "Shut the VM down and convert the disk with 'qemu-img convert -O qcow2', or exclude the disk from replication."},
		{CodeDiskShared, KindUnsupported, NonRecoverable, "Shared disk", "The disk is shared between VMs.", "Exclude the disk from replication, or replicate inside the guests."},
		{CodeDiskPassThrough, KindUnsupported, NonRecoverable, "Pass-through disk", "The disk is a physical device handed to the VM.", "Move the data to a qcow2 disk, or exclude the disk from replication."},
		{CodeNoDisks, KindUnsupported, NonRecoverable, "Nothing to replicate", "The VM has no disk that can be replicated.", "Add a qcow2 disk or change the list of included disks."},
		{CodeVMNotFound, KindNotFound, NonRecoverable, "VM not found", "The host no longer knows the VM.", "Start discovery again; if the VM was deleted, disable its protection."},
		{CodeVMNotRunning, KindPrecondition, Recoverable, "VM is not running", "Changes of a VM that is shut off can't be captured through its hypervisor.", "Nothing to do: replication goes on when the VM starts. Recovery points already made stay valid."},
		{CodeVMReplicated, KindConflict, NonRecoverable, "Replicated by another agent", "Another agent holds the current generation of this VM's replica.", "Disable protection on the other side, or let this host take the VM over in the vault."},
		{CodeHypervisorDown, KindUnavailable, Recoverable, "Hypervisor unreachable", "The management service of the host does not answer.", "Start libvirtd on the host and check the agent's rights to its socket."},
		{CodeHypervisorTimeout, KindUnavailable, Recoverable, "Hypervisor did not answer in time", "A management call took too long; often another operation holds the VM.", "See what runs on the VM (virsh domjobinfo); the agent tries again by itself."},
		{CodeBackupJobBusy, KindConflict, Recoverable, "Another backup is running", "Another product's backup job is open on the VM.", "Wait until it has ended; the agent tries again by itself."},
		{CodeTrackingLost, KindPrecondition, Recoverable, "Change tracking was lost", "The VM's dirty bitmap is missing or inconsistent, usually after a host crash.", "A resynchronization finds the differences; existing recovery points stay usable."},
		{CodeScratchFull, KindExhausted, Recoverable, "Scratch space used up", "The guest overwrote more data during the cut than the scratch reserve holds.", "Give the agent's scratch directory more space or raise the reserve."},
		{CodeSpoolFull, KindExhausted, Recoverable, "Spool full", "The network or store is slower than the guest writes, and the local spool has reached its limit.", "Nothing is lost: changes go on being tracked. Raise the spool limit or the bandwidth if it does not converge."},
		{CodeNoSpace, KindExhausted, Recoverable, "Disk full", "A file system on the host has no space left.", "Free space at the path named in the message."},

		{CodeStoreUnreachable, KindUnavailable, Recoverable, "Store unreachable", "The object store does not answer.", "Check the network path to the store; the agent tries again by itself."},
		{CodeStoreReadOnly, KindForbidden, Recoverable, "Store is read-only", "The store refuses writes.", "Make the store's directory or bucket writable again; nothing committed is lost."},
		{CodeStoreFull, KindExhausted, Recoverable, "Store is full", "The store has no space left.", "Add space to the store; replication goes on by itself and nothing committed is lost."},
		{CodeObjectCorrupt, KindCorrupt, NonRecoverable, "Stored object damaged", "The bytes of an object do not verify.", "Fail over to an older recovery point that does not need the object, and resynchronize the item."},
		{CodeObjectMissing, KindCorrupt, NonRecoverable, "Stored object missing", "An object that a recovery point needs is not in the store.", "Restore the object from a copy of the store, or resynchronize the item; older points may be whole."},
		{CodeObjectConflict, KindConflict, NonRecoverable, "Object exists with other content", "Another writer has put a different object under this name.", "The agent stops and asks for a new generation; check that only one agent protects the VM."},
		{CodeFormatUnsupported, KindUnsupported, NonRecoverable, "Format version not supported", "The object was written by a newer version of Holdfast.", "Upgrade this program to at least the version that wrote the object."},
		{CodeKeyMismatch, KindForbidden, NonRecoverable, "Wrong vault key", "The private key does not belong to this store.", "Use the private key of the vault that wrote the store."},
		{CodeGenerationFenced, KindFenced, NonRecoverable, "Fenced", "A newer generation has taken over this VM's replica.", "Nothing on this host: the VM is replicated or runs elsewhere now."},
		{CodeNoRecoveryPoint, KindPrecondition, RetryNone, "No recovery point", "The item has no recovery point yet.", "Wait until the initial replication is complete."},
		{CodePointRefused, KindCorrupt, RetryNone, "Recovery point refused", "An object of the point's chain is damaged or missing.", "Choose an older recovery point; resynchronize the item to get good new ones."},

		{CodeNoRecoverySite, KindPrecondition, RetryNone, "No recovery site", "The item's container mapping names no recovery site with a registered recovery host.", "Register a host with the recovery role and map the container to its site."},
		{CodeRecoveryAgentDown, KindUnavailable, RetryNone, "Recovery host unreachable", "No agent with the recovery role of the site is connected.", "Start the agent on a recovery host."},
		{CodeBootNotVerified, KindUnavailable, RetryNone, "Boot not verified", "The VM was started but did not show the expected sign of life in time.", "Look at the console screenshot of the job; try an older recovery point."},
		{CodeShutdownTimeout, KindUnavailable, RetryNone, "Guest did not shut down", "The guest ignored the shutdown request.", "Shut the guest down by hand and start the planned failover again; replication has gone on."},
		{CodeSourceStillRunning, KindPrecondition, RetryNone, "The source VM is running", "Bringing the replica up now would make two running originals.", "Use a planned failover, shut the source down, or ask for the failover without source-side operations."},
		{CodeNetworkNotIsolated, KindPrecondition, RetryNone, "Test network is not isolated", "The network chosen for the test failover can reach others.", "Choose no network or one without a forward mode."},
	}
}
