// Package vault is the control plane of Holdfast.
package vault

import (
	"time"

	"holdfast/internal/dr"
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

// Principal is an authenticated caller.
type Principal struct {
	Name string
	Role dr.Role
}

// EnableRequest asks for the protection of a VM.
type EnableRequest struct {
	Fabric   string // fabric name
	Name     string // protected item name; by custom the VM's UUID
	VM       dr.VMID
	Policy   string   // policy name
	Disks    []string // disk ids to include; empty = all
	Settings dr.ItemSettings
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

// JobFilter selects jobs; zero fields do not restrict.
type JobFilter struct {
	Item     dr.ItemID
	Scenario string
	States   []dr.JobState
	Since    time.Time
	Until    time.Time
	Limit    int // 0 = 200
}

// RegistrationKey is what a key file is made of. Secret is shown once and never stored.
type RegistrationKey struct {
	ID        string
	Fabric    dr.FabricID
	Secret    string
	OneTime   bool
	Created   time.Time
	Expires   time.Time
	Revoked   bool
	Uses      int
	VaultURL  string
	CAPin     string // SHA-256 of the vault CA's public key, hex
	CreatedBy string
}

// KeyRequest asks for a registration key.
type KeyRequest struct {
	Fabric   string
	OneTime  bool
	Validity time.Duration // 0 = five days, the maximum
	By       string
}
