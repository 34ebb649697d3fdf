package msvm

import (
	"strings"

	"holdfast/internal/cim"
)

// State is a VM's state, normalised.
type State string

// The states.
const (
	Running  State = "running"
	Off      State = "off"
	Paused   State = "paused"
	Saved    State = "saved"
	Changing State = "changing" // starting, stopping, saving, pausing, resuming …
)

// stateOf reads Msvm_ComputerSystem.EnabledState: its table has 2, 3, 4, 6, 9 and
// 10, its remarks and older hosts 32768 and up.
func stateOf(v uint64) State {
	switch v {
	case 2:
		return Running
	case 3:
		return Off
	case 9, 32768:
		return Paused
	case 6, 32769:
		return Saved
	}
	return Changing
}

// Operation is what the host does with a VM, from the second element of OperationalStatus.
type Operation string

// The operations.
const (
	Idle          Operation = ""
	Checkpointing Operation = "creating a checkpoint"
	Applying      Operation = "applying a checkpoint"
	Deleting      Operation = "deleting a checkpoint"
	Merging       Operation = "merging disks"
	Exporting     Operation = "exporting"
	Migrating     Operation = "migrating"
	Busy          Operation = "busy"
)

func operationOf(status []uint64) Operation {
	for _, v := range status {
		switch v {
		case 32768:
			return Checkpointing
		case 32769:
			return Applying
		case 32770:
			return Deleting
		case 32772:
			return Merging
		case 32773:
			return Exporting
		case 32774:
			return Migrating
		}
	}
	if len(status) > 0 && status[0] == 11 { // in service
		return Busy
	}
	return Idle
}

// System is a VM as Msvm_ComputerSystem shows it.
type System struct {
	ID          string // lower-case GUID
	Name        string
	Path        cim.Path
	State       State
	Operation   Operation
	Replication uint64 // ReplicationMode: 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica
}

func systemOf(in *cim.Instance) System {
	s := System{ID: strings.ToLower(in.String("Name")), Name: in.String("ElementName"), Path: in.Path}
	if s.Path.IsZero() {
		s.Path = systemPath(s.ID)
	}
	n, _ := in.Uint("EnabledState")
	s.State = stateOf(n)
	status, _ := in.Uints("OperationalStatus") // one that is no number is none that is known
	s.Operation = operationOf(status)
	s.Replication, _ = in.Uint("ReplicationMode")
	return s
}

// guidLen is the length of 01234567-89ab-cdef-0123-456789abcdef.
const guidLen = 36

// IsGUID reports whether s is a GUID without braces.
func IsGUID(s string) bool {
	if len(s) != guidLen {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'):
			return false
		}
	}
	return true
}

// hostGUID is a GUID as hosts write it.
func hostGUID(id string) string { return strings.ToUpper(id) }

// owner is the GUID of the settings that an InstanceID belongs to: that of the VM or of a checkpoint
// ("Microsoft:GUID\…"), lower case; "" if there is none (definitions, pools).
func owner(instanceID string) string {
	_, rest, ok := strings.Cut(instanceID, ":")
	if !ok || len(rest) < guidLen || !IsGUID(rest[:guidLen]) {
		return ""
	}
	if len(rest) > guidLen && rest[guidLen] != '\\' {
		return ""
	}
	return strings.ToLower(rest[:guidLen])
}
