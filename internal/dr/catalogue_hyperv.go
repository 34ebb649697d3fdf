package dr

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

// The order of an entry's values is in catalogue_control.go.
var hypervEntries = [...]Entry{
	{CodeCheckpointFailed, KindUnavailable, Recoverable, HealthCritical, "Checkpoint failed",
		"The host could not make, convert or remove a recovery checkpoint.",
		"The message has the host's own error; the event log Microsoft-Windows-Hyper-V-VMMS-Admin tells more.",
		"Follow the host's error. 'holdfast agent doctor' makes and removes one checkpoint and says what fails."},
	{CodeMergeRunning, KindConflict, Recoverable, HealthWarning, "Checkpoint merge is running",
		"The host still merges the disks of an earlier checkpoint, and a new one would make the chain longer.",
		"'Get-VM' shows the status \"Merging disks\"; the message names the VM.",
		"Wait until the merge has ended; the agent tries again by itself. A merge that never ends needs free space on the disk's volume."},
	{CodeCheckpointsOff, KindPrecondition, NonRecoverable, HealthCritical, "Checkpoints are disabled",
		"The VM's settings forbid checkpoints, which replication is made of.",
		"'Get-VM | Select CheckpointType' shows Disabled.",
		"Set-VM -Name NAME -CheckpointType Production."},
	{CodeConfigurationOld, KindUnsupported, NonRecoverable, HealthCritical, "Configuration version is too old",
		"Resilient change tracking needs a configuration of version 6.2 or newer.",
		"'Get-VM | Select Version' shows the version that the message names.",
		"Shut the VM down and run 'Update-VMVersion NAME' on a host of Windows Server 2016 or newer."},
	{CodeDiskFileDamaged, KindCorrupt, NonRecoverable, HealthCritical, "Disk file is damaged",
		"A VHDX file of the VM's disk does not follow its format, or its parent is not the one that it was made from.",
		"The message names the file, the structure and what is wrong with it; 'Test-VHD' tells too.",
		"Restore the disk from a recovery point, or repair the chain with 'Set-VHD -ParentPath'."},
	{CodeDiskFileInUse, KindConflict, Recoverable, HealthWarning, "Disk file is in use",
		"Another program of the host holds the disk's file: a merge, a backup, a virus scanner.",
		"The message names the file.",
		"Wait, or end the program; exclude the disks' folders from virus scanning. The agent tries again by itself and never forces."},
	{CodeDiskFormatVHD, KindUnsupported, NonRecoverable, HealthCritical, "Disk is a VHD",
		"Changes are tracked for disks of the format VHDX only.",
		"The message names the disk's file.",
		"Shut the VM down, run 'Convert-VHD OLD.vhd NEW.vhdx' and attach the new file, or exclude the disk."},
	{CodeShutdownNotOffered, KindPrecondition, Recoverable, HealthWarning, "Guest can't be asked to shut down",
		"The guest's shutdown integration service is off or does not answer.",
		"'Get-VMIntegrationService' shows Shutdown as not OK.",
		"Enable the service, or shut the guest down from inside; the power is cut only where the operation says so."},
	{CodeVSSFailed, KindUnavailable, Recoverable, HealthWarning, "Guest snapshot failed",
		"An application-consistent point was asked for, but the guest's Volume Shadow Copy service or file-system freeze failed.",
		"The recovery point says \"crash\" with this reason; the guest's event log has the writer's error.",
		"Run 'vssadmin list writers' in the guest and repair what is not stable, or set the policy's application-consistent frequency to 0."},
	{CodeHostAccess, KindForbidden, NonRecoverable, HealthCritical, "Access to Hyper-V denied",
		"The account signed in, but may not manage virtual machines or read their disks.",
		"The message names the call that was refused.",
		"Add the account to the groups 'Hyper-V Administrators' and 'Remote Management Users' of the host, or run the agent as LocalSystem."},
	{CodeHostQuota, KindExhausted, Recoverable, HealthWarning, "Quota of the Hyper-V host reached",
		"Windows Remote Management limits operations per user, and the limit is reached.",
		"The message has the host's fault; 'winrm get winrm/config' shows MaxConcurrentOperationsPerUser.",
		"The agent tries again by itself; raise the quota if it stays."},
	{CodeHostSignIn, KindUnauthenticated, NonRecoverable, HealthCritical, "Sign-in to the Hyper-V host failed",
		"Windows Remote Management refused the user name, the password or the way of signing in.",
		"The message names the host and what it offers.",
		"Check user and password file, that the account is not locked, and for HTTP that message encryption is not turned off. 'holdfast agent doctor' tries every way."},
	{CodeLogonAsService, KindPrecondition, NonRecoverable, HealthCritical, "Hyper-V may not log on as a service",
		"The group 'NT VIRTUAL MACHINE\\Virtual Machines' lacks the right \"Log on as a service\", which a group policy took away.",
		"The host's error is 0x8007052F or 0x80070569.",
		"Give the group the right \"Log on as a service\" in the policy that sets it, then run 'gpupdate /force' on the host."},
	{CodeVMMigrating, KindConflict, Recoverable, HealthWarning, "VM is being moved",
		"The VM migrates to another host, or its storage to another place.",
		"'Get-VM' shows the migration as Status.",
		"Wait until it has ended; replication goes on by itself on the host that has the VM then."},
	{CodeVMNotOff, KindPrecondition, Recoverable, HealthWarning, "VM is not off",
		"Blocks can be written into the disks of a VM only while it is off.",
		"The message names the VM and its state.",
		"Shut the VM down, then try again."},
	{CodeVMStarting, KindConflict, Recoverable, HealthWarning, "VM is between two states",
		"The VM is starting, stopping, saving, or another operation of the host works on it.",
		"The message names the state or operation; 'Get-VM' shows it as Status.",
		"Wait until it has ended; the agent tries again by itself."},
	{CodeSwitchMissing, KindPrecondition, RetryNone, "", "Virtual switch is missing",
		"The recovery VM is to be connected to a virtual switch that its host does not have.",
		"The message names the switch; 'Get-VMSwitch' lists those of the host.",
		"Create the switch, or choose another network in the item's settings or in the network mapping."},
}
