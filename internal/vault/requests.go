package vault

import (
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault/access"
	"holdfast/internal/vault/group"
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/network"
	"holdfast/internal/vault/points"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/replication"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/upkeep"
	"holdfast/internal/vault/work"
)

// Identity says which vault this is in the address space of the REST API.
type Identity struct {
	Name           string // vault name
	SubscriptionID string // UUID
	ResourceGroup  string
	TenantID       string // UUID; of the token routes
	Location       string
	ResourceID     int64 // numeric id that the key file carries
}

// The requests and answers of the vault's parts.
type (
	Principal       = access.Principal
	Bootstrap       = access.Bootstrap
	RegistrationKey = site.RegistrationKey
	KeyRequest      = site.KeyRequest
	JobFilter       = work.JobFilter

	PauseRequest  = replication.PauseRequest
	ResyncOptions = replication.ResyncOptions
	PointDetail   = points.Detail
	Anomaly       = points.Anomaly
	GroupPoint    = group.Point
	UpkeepStatus  = upkeep.Status
	StoreStatus   = upkeep.StoreStatus
	Damage        = upkeep.Damage
	Planned       = upkeep.Planned
	Seed          = replica.Seed
	Statistics    = health.Statistics
	Interval      = health.Interval

	Network        = network.Network
	NetworkMapping = network.Mapping
	StorageMapping = network.StorageMapping
)

// Detail says of an item what dr.ProtectedItem and dr.ReplicationStatus do not.
type Detail struct {
	PauseReason string
	ResumeAt    time.Time // when a pause ends by itself; zero = when somebody says so

	ResyncCode dr.Code   // why a resynchronization is due or runs; empty = none
	ResyncText string    // the same for people
	NextResync time.Time // when it begins by itself; zero = at once, or when somebody says so

	NextInitial time.Time // when the initial replication begins or goes on
	Attempt     int       // of what fails
	RetryAt     time.Time // when that is tried again
	SentBytes   int64     // since the agent's process started
	CutDisks    []string  // of the newest cut

	Excluded []string // disks that shall not be replicated
	NewDisks []string // disks that nobody has decided about
	Seeded   bool     // protection was begun with a seed
	Group    dr.GroupID

	Warm       *dr.WarmReplica // nil = the disks are not kept ready
	Statistics Statistics      // of the running monitoring interval
	Anomaly    *Anomaly        // open alarm; nil = none
}

// SessionLifetime is how long a session of the portal lasts.
const SessionLifetime = access.SessionLifetime

// EnableRequest asks for the protection of a VM.
type EnableRequest struct {
	Fabric   string // fabric name
	Name     string // protected item name; by custom the VM's UUID
	VM       dr.VMID
	Policy   string   // policy name
	Disks    []string // disk ids to include; empty = all
	Settings dr.ItemSettings
	Seed     dr.MachineID // machine of the store whose seed protection begins with; empty = none
	By       string
}

// FailoverRequest asks for a test, planned or unplanned failover, or for a
// change of the recovery point.
type FailoverRequest struct {
	Item         dr.ItemID
	Kind         dr.FailoverKind
	Point        string // recovery point name; "" or "Latest" = latest, also "LatestProcessed", "LatestApplicationConsistent"
	Network      string // test: network name at the recovery site; "" = isolated
	NoNetwork    bool   // all adapters disconnected
	SourceAction bool   // unplanned: try to shut the source down and send the last changes first
	By           string
}

// UpdateRequest changes an item's settings; nil = leave.
type UpdateRequest struct {
	Item     dr.ItemID
	Settings func(*dr.ItemSettings)
	By       string
}
