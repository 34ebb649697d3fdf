package route

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// Sites are fabrics, their agents and what these discovered.
type Sites interface {
	CreateFabric(ctx context.Context, name string, t dr.FabricType, by string) (dr.JobID, error)
	Fabric(ctx context.Context, name string) (dr.Fabric, error)
	Fabrics(ctx context.Context) ([]dr.Fabric, error)
	RemoveFabric(ctx context.Context, name string, purge bool, by string) (dr.JobID, error)
	CheckConsistency(ctx context.Context, fabric, by string) (dr.JobID, error)
	VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error) // protectable and protected ones
	VM(ctx context.Context, f dr.FabricID, vm dr.VMID) (dr.VM, error)
}

// VMM is what is known of VMM servers; all lists of other sites are empty.
type VMM interface {
	VMM(ctx context.Context, f dr.FabricID) (vmm.Snapshot, error) // without VMs; Version 0 = nothing yet
	Clouds(ctx context.Context, f dr.FabricID) ([]vmm.Cloud, error)
	CloudsOfVMs(ctx context.Context, f dr.FabricID) (map[dr.VMID]string, error) // ids of clouds
	Discover(ctx context.Context, fabric, container, name, by string) (dr.JobID, error)
}

// Networks are the networks of sites and their mappings.
type Networks interface {
	NetworksOf(ctx context.Context, f dr.FabricID) ([]vault.Network, error)
	CreateNetworkMapping(ctx context.Context, m vault.NetworkMapping, by string) (dr.JobID, error)
	UpdateNetworkMapping(ctx context.Context, m vault.NetworkMapping, by string) (dr.JobID, error)
	NetworkMappings(ctx context.Context, f dr.FabricID) ([]vault.NetworkMapping, error) // "" = all
	RemoveNetworkMapping(ctx context.Context, f dr.FabricID, network, name, by string) (dr.JobID, error)
}

// Storages are mappings of storage classifications.
type Storages interface {
	CreateStorageMapping(ctx context.Context, m vault.StorageMapping, by string) (dr.JobID, error)
	StorageMappings(ctx context.Context, f dr.FabricID) ([]vault.StorageMapping, error) // "" = all
	RemoveStorageMapping(ctx context.Context, f dr.FabricID, classification, name, by string) (dr.JobID, error)
}

// Providers are registered agents.
type Providers interface {
	Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) // "" = all
	Provider(ctx context.Context, f dr.FabricID, id dr.AgentID) (dr.Provider, error)
	RemoveProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error)
	RefreshProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, by string) (dr.JobID, error)
	IssueKey(ctx context.Context, r vault.KeyRequest) (vault.RegistrationKey, error)
}

// Policies are replication policies and their container mappings.
type Policies interface {
	SavePolicy(ctx context.Context, p dr.Policy, create bool, by string) (dr.JobID, error)
	Policy(ctx context.Context, name string) (dr.Policy, error)
	Policies(ctx context.Context) ([]dr.Policy, error)
	RemovePolicy(ctx context.Context, name, by string) (dr.JobID, error)
}

// Mappings associate policies and recovery sites with containers.
type Mappings interface {
	CreateMapping(ctx context.Context, m dr.ContainerMapping, by string) (dr.JobID, error)
	Mapping(ctx context.Context, f dr.FabricID, name string) (dr.ContainerMapping, error)
	Mappings(ctx context.Context, f dr.FabricID) ([]dr.ContainerMapping, error) // "" = all
	RemoveMapping(ctx context.Context, f dr.FabricID, name, by string) (dr.JobID, error)
}

// Items are protected items.
type Items interface {
	Enable(ctx context.Context, r vault.EnableRequest) (dr.JobID, error)
	Item(ctx context.Context, f dr.FabricID, name string) (dr.ProtectedItem, error)
	Items(ctx context.Context, f dr.FabricID) ([]dr.ProtectedItem, error) // "" = all
	Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error)
	Update(ctx context.Context, r vault.UpdateRequest) (dr.JobID, error)
	Disable(ctx context.Context, id dr.ItemID, purge bool, by string) (dr.JobID, error)
	AllowedOperations(ctx context.Context, id dr.ItemID) ([]string, error) // ASR's names
	// ComputeSizes are the sizes of VM that the recovery site's cloud offers.
	ComputeSizes(ctx context.Context, id dr.ItemID) ([]dr.ComputeSize, error)
	// GuestCheck looks into the guest of a recovery point.
	GuestCheck(ctx context.Context, id dr.ItemID, point, target string) (guestcheck.Report, dr.RecoveryPoint, error)
}

// Failovers are what is done with protected items.
type Failovers interface {
	StartFailover(ctx context.Context, r vault.FailoverRequest) (dr.JobID, error)
	CleanupTest(ctx context.Context, id dr.ItemID, comments, by string) (dr.JobID, error)
	Commit(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	CancelFailover(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	ChangePoint(ctx context.Context, id dr.ItemID, point, by string) (dr.JobID, error)
}

// Replications are what is done with running replications.
type Replications interface {
	ResyncWith(ctx context.Context, id dr.ItemID, o vault.ResyncOptions, by string) (dr.JobID, error)
	Pause(ctx context.Context, id dr.ItemID, r vault.PauseRequest) error
	RetryNow(ctx context.Context, id dr.ItemID, by string) error
	ChangeDisks(ctx context.Context, id dr.ItemID, disks []string, by string) (dr.JobID, error)
}

// Points are recovery points, newest first, and what is known of them.
type Points interface {
	Points(ctx context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error)
	PointDetails(ctx context.Context, id dr.ItemID) ([]vault.PointDetail, error)
	NamePoint(ctx context.Context, id dr.ItemID, point, name string, hold bool, by string) error
	Anomaly(ctx context.Context, id dr.ItemID) (*vault.Anomaly, error) // nil = none
	AcknowledgeAnomaly(ctx context.Context, id dr.ItemID, by string) error
}

// Groups are consistency groups.
type Groups interface {
	CreateGroup(ctx context.Context, name string, items []dr.ItemID, by string) (dr.ConsistencyGroup, error)
	SetGroupMembers(ctx context.Context, id dr.GroupID, items []dr.ItemID, by string) error
	DeleteGroup(ctx context.Context, id dr.GroupID, by string) error
	Groups(ctx context.Context) ([]dr.ConsistencyGroup, error)
	GroupPoints(ctx context.Context, id dr.GroupID) ([]vault.GroupPoint, error) // newest first
}

// Upkeep is how replicas are looked after, and where they can begin.
type Upkeep interface {
	UpkeepStatus(ctx context.Context, id dr.ItemID) (vault.UpkeepStatus, error)
	PlanMaintenance(ctx context.Context, id dr.ItemID) ([]vault.Planned, error)
	Maintain(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	Scrub(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	Seeds(ctx context.Context) ([]vault.Seed, error) // replicas that protection can begin with
}

// History is what happened, and what is known of an item beside its axes.
type History interface {
	Detail(ctx context.Context, id dr.ItemID) (vault.Detail, error)
	Events(ctx context.Context, id dr.ItemID, limit int) ([]vaultdb.Event, error) // newest first
}

// Jobs are the Jobs page and the long-running operations.
type Jobs interface {
	Job(ctx context.Context, id dr.JobID) (dr.Job, error)
	Jobs(ctx context.Context, f vault.JobFilter) ([]dr.Job, error) // newest first
	CancelJob(ctx context.Context, id dr.JobID, by string) error
	RestartJob(ctx context.Context, id dr.JobID, by string) error
	ResumeJob(ctx context.Context, id dr.JobID, comments, by string) error
}

// Access answers who is calling.
type Access interface {
	Identity() vault.Identity
	// Authenticate checks a bearer token.
	Authenticate(ctx context.Context, bearer string) (vault.Principal, error)
	// IssueToken is the client-credentials grant.
	IssueToken(ctx context.Context, clientID, secret string) (token string, expiresIn int, err error)
	// Setting and SetSetting keep small named documents (extended information).
	Setting(ctx context.Context, name string) (string, error)
	SetSetting(ctx context.Context, name, value string) error
}

// Service is everything.
type Service interface {
	Sites
	VMM
	Networks
	Storages
	Providers
	Policies
	Mappings
	Items
	Failovers
	Replications
	Points
	Groups
	Upkeep
	History
	Jobs
	Access
}
