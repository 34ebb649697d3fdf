package vault

import (
	"holdfast/internal/dr"
	"holdfast/internal/vault/access"
	"holdfast/internal/vault/site"
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
)

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
