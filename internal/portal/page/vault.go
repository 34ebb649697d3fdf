package page

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

// What the portal needs of the vault, by noun. *vault.Vault satisfies all of them.

// Access is signing in and out.
type Access interface {
	Identity() vault.Identity
	Login(ctx context.Context, user, password string) (session string, p vault.Principal, err error)
	Session(ctx context.Context, session string) (vault.Principal, error)
	Logout(ctx context.Context, session string) error
}

// Sites are fabrics and what was discovered in them.
type Sites interface {
	CreateFabric(ctx context.Context, name string, t dr.FabricType, by string) (dr.JobID, error)
	Fabric(ctx context.Context, name string) (dr.Fabric, error)
	Fabrics(ctx context.Context) ([]dr.Fabric, error)
	RemoveFabric(ctx context.Context, name string, purge bool, by string) (dr.JobID, error)
	CheckConsistency(ctx context.Context, fabric, by string) (dr.JobID, error)
	VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error)
	VM(ctx context.Context, f dr.FabricID, vm dr.VMID) (dr.VM, error)
}

// Networks are the networks of sites and where they lead after a failover.
type Networks interface {
	NetworksOf(ctx context.Context, f dr.FabricID) ([]vault.Network, error)
	NetworkMappings(ctx context.Context, f dr.FabricID) ([]vault.NetworkMapping, error) // "" = all
	CreateNetworkMapping(ctx context.Context, m vault.NetworkMapping, by string) (dr.JobID, error)
	RemoveNetworkMapping(ctx context.Context, f dr.FabricID, network, name, by string) (dr.JobID, error)
	VMM(ctx context.Context, f dr.FabricID) (vmm.Snapshot, error) // without VMs; Version 0 = nothing yet
}

// Agents are the registered hosts and the keys by which they register.
type Agents interface {
	Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) // "" = all
	Connected(p dr.Provider) bool
	RemoveProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error)
	RefreshProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, by string) (dr.JobID, error)
	IssueKey(ctx context.Context, r vault.KeyRequest) (vault.RegistrationKey, error)
	Keys(ctx context.Context, fabric string) ([]vault.RegistrationKey, error) // without secrets
	RevokeKey(ctx context.Context, id, by string) error
}

// Policies are replication policies and where they let VMs recover.
type Policies interface {
	SavePolicy(ctx context.Context, p dr.Policy, create bool, by string) (dr.JobID, error)
	Policy(ctx context.Context, name string) (dr.Policy, error)
	Policies(ctx context.Context) ([]dr.Policy, error)
	RemovePolicy(ctx context.Context, name, by string) (dr.JobID, error)
	CreateMapping(ctx context.Context, m dr.ContainerMapping, by string) (dr.JobID, error)
	Mappings(ctx context.Context, f dr.FabricID) ([]dr.ContainerMapping, error)
}

// Items are protected items as they are.
type Items interface {
	ItemByID(ctx context.Context, id dr.ItemID) (dr.ProtectedItem, error)
	Items(ctx context.Context, f dr.FabricID) ([]dr.ProtectedItem, error) // "" = all
	Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error)
	Detail(ctx context.Context, id dr.ItemID) (vault.Detail, error)
	Events(ctx context.Context, id dr.ItemID, limit int) ([]vaultdb.Event, error) // newest first
	AllowedOperations(ctx context.Context, id dr.ItemID) ([]string, error)
	ComputeSizes(ctx context.Context, id dr.ItemID) ([]dr.ComputeSize, error) // of the recovery site's cloud
}

// Protections change how an item is protected.
type Protections interface {
	Enable(ctx context.Context, r vault.EnableRequest) (dr.JobID, error)
	Update(ctx context.Context, r vault.UpdateRequest) (dr.JobID, error)
	Disable(ctx context.Context, id dr.ItemID, purge bool, by string) (dr.JobID, error)
	ChangeDisks(ctx context.Context, id dr.ItemID, disks []string, by string) (dr.JobID, error)
}

// Replications steer running replications.
type Replications interface {
	ResyncWith(ctx context.Context, id dr.ItemID, o vault.ResyncOptions, by string) (dr.JobID, error)
	Pause(ctx context.Context, id dr.ItemID, r vault.PauseRequest) error
	RetryNow(ctx context.Context, id dr.ItemID, by string) error
	AcknowledgeAnomaly(ctx context.Context, id dr.ItemID, by string) error
}

// Points are recovery points, newest first.
type Points interface {
	Points(ctx context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error)
	PointDetails(ctx context.Context, id dr.ItemID) ([]vault.PointDetail, error)
	NamePoint(ctx context.Context, id dr.ItemID, point, name string, hold bool, by string) error
}

// Groups are consistency groups.
type Groups interface {
	CreateGroup(ctx context.Context, name string, items []dr.ItemID, by string) (dr.ConsistencyGroup, error)
	SetGroupMembers(ctx context.Context, id dr.GroupID, items []dr.ItemID, by string) error
	DeleteGroup(ctx context.Context, id dr.GroupID, by string) error
	Groups(ctx context.Context) ([]dr.ConsistencyGroup, error)
	GroupPoints(ctx context.Context, id dr.GroupID) ([]vault.GroupPoint, error) // newest first
}

// Upkeep is how replicas are looked after.
type Upkeep interface {
	UpkeepStatus(ctx context.Context, id dr.ItemID) (vault.UpkeepStatus, error)
	PlanMaintenance(ctx context.Context, id dr.ItemID) ([]vault.Planned, error)
	Maintain(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	Scrub(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
}

// Failovers are what an operator does with an item.
type Failovers interface {
	StartFailover(ctx context.Context, r vault.FailoverRequest) (dr.JobID, error)
	CleanupTest(ctx context.Context, id dr.ItemID, comments, by string) (dr.JobID, error)
	Commit(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	CancelFailover(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	ChangePoint(ctx context.Context, id dr.ItemID, point, by string) (dr.JobID, error)
}

// Jobs are the Jobs page and what changes.
type Jobs interface {
	Job(ctx context.Context, id dr.JobID) (dr.Job, error)
	Jobs(ctx context.Context, f vault.JobFilter) ([]dr.Job, error) // newest first, without tasks
	CancelJob(ctx context.Context, id dr.JobID, by string) error
	RestartJob(ctx context.Context, id dr.JobID, by string) error
	ResumeJob(ctx context.Context, id dr.JobID, comments, by string) error
	Screenshot(ctx context.Context, id dr.JobID) ([]byte, error) // PNG
	Subscribe(ctx context.Context) <-chan vault.Change
}

// Vault is everything.
type Vault interface {
	Access
	Sites
	Networks
	Agents
	Policies
	Items
	Protections
	Replications
	Points
	Groups
	Upkeep
	Failovers
	Jobs
}
