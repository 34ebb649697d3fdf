package dr

import "fmt"

// State is kept on separate axes (protection, replication health, resync,
// failover, active location, test failover). The single "protection state" and
// the allowed operations that the REST API shows are derived from them
// (package armapi), never stored.

// Protection says how far a protected item's replication relationship has come.
type Protection string

// The protection states.
const (
	Enabling           Protection = "enabling"           // prerequisites and relationship are being set up; nothing replicates yet
	InitialReplication Protection = "initialReplication" // tiles are being sent; there is no recovery point yet
	Protected          Protection = "protected"          // at least one recovery point exists; deltas flow
	Disabling          Protection = "disabling"          // being removed
	EnableFailed       Protection = "enableFailed"       // enabling ended with an error; disable or retry
)

// Health is a protected item's replication health by Hyper-V Replica's rules.
type Health string

// The health values.
const (
	HealthNormal   Health = "Normal"
	HealthWarning  Health = "Warning"
	HealthCritical Health = "Critical"
)

// Failover is the failover axis of a protected item.
type Failover string

// The failover states. A test failover is not on this axis (TestFailover is).
const (
	FailoverNone          Failover = "none"
	FailoverInProgress    Failover = "inProgress"    // a planned or unplanned failover job runs
	FailoverCommitPending Failover = "commitPending" // the VM runs at the recovery site; change point, commit and cancel are possible
	FailoverCommitted     Failover = "committed"     // the recovery site's VM is the production VM; replication has stopped
	FailoverCancelling    Failover = "cancelling"    // the recovery VM is being removed and replication resumed
	FailoverFailed        Failover = "failed"        // the failover job failed; the item is as before, the failover may be repeated
)

// TestFailover is the test failover axis of a protected item.
type TestFailover string

// The test failover states.
const (
	TestNone     TestFailover = "none"
	TestRunning  TestFailover = "running"  // the job is bringing the test VM up
	TestWaiting  TestFailover = "waiting"  // the test VM is up, clean-up is due
	TestCleaning TestFailover = "cleaning" // clean-up runs
	TestFailed   TestFailover = "failed"   // the test VM did not come up; leftovers may need clean-up
)

// Location says where the production VM runs.
type Location string

// The locations.
const (
	AtPrimary  Location = "Primary"
	AtRecovery Location = "Recovery"
)

// FailoverKind is the kind of a failover operation.
type FailoverKind string

// The failover kinds.
const (
	KindTestFailover      FailoverKind = "test"
	KindPlannedFailover   FailoverKind = "planned"
	KindUnplannedFailover FailoverKind = "unplanned"
)

// Consistency is what a recovery point can promise about the guest.
type Consistency string

// The consistency levels, weakest first.
const (
	CrashConsistent      Consistency = "crash" // all disks at one instant, as after a power cut
	FileSystemConsistent Consistency = "fs"    // guest file systems were frozen
	AppConsistent        Consistency = "app"   // applications were quiesced too
)

// ParseConsistency accepts the stored names.
func ParseConsistency(s string) (Consistency, error) {
	switch c := Consistency(s); c {
	case CrashConsistent, FileSystemConsistent, AppConsistent:
		return c, nil
	}
	return "", fmt.Errorf("unknown consistency %q", s)
}

// AgentRole is what an agent does for its site. An agent may have several roles.
type AgentRole string

// The roles.
const (
	RoleSource   AgentRole = "source"   // captures VMs of its host
	RoleRecovery AgentRole = "recovery" // runs VMs from recovery points
	RoleVMM      AgentRole = "vmm"      // tells what a VMM server manages
)

// Role of an API caller.
type Role string

// The API roles, weakest first: Reader sees; Operator also runs failovers;
// Contributor also changes configuration; Owner also manages access.
const (
	RoleReader      Role = "Reader"
	RoleOperator    Role = "Operator"
	RoleContributor Role = "Contributor"
	RoleOwner       Role = "Owner"
)

// Includes reports whether r has the rights of want.
func (r Role) Includes(want Role) bool { return r.rank() > 0 && r.rank() >= want.rank() }

func (r Role) rank() int {
	switch r {
	case RoleReader:
		return 1
	case RoleOperator:
		return 2
	case RoleContributor:
		return 3
	case RoleOwner:
		return 4
	}
	return 0
}
