package route

import (
	"net/url"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// IDs builds the ids of the vault's resources.
type IDs struct{ armwire.VaultID }

// ItemID is the id of a protected item.
func (c IDs) ItemID(f dr.Fabric, name string) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, f.ContainerName(), TItems, name)
}

// JobID is the id of a job.
func (c IDs) JobID(id dr.JobID) string { return c.VaultID.ID(TJobs, string(id)) }

// PolicyID is the id of a policy.
func (c IDs) PolicyID(p dr.Policy) string { return c.VaultID.ID(TPolicies, p.Name) }

// Type segments of paths, spelled as they are sent out.
const (
	TFabrics    = "replicationFabrics"
	TProviders  = "replicationRecoveryServicesProviders"
	TContainers = "replicationProtectionContainers"
	TVMs        = "replicationProtectableItems"
	TItems      = "replicationProtectedItems"
	TPoints     = "recoveryPoints"
	TMappings   = "replicationProtectionContainerMappings"
	TPolicies   = "replicationPolicies"
	TJobs       = "replicationJobs"
	TOperations = "replicationOperationStatus"
	TResults    = "operationresults"
	TCerts      = "certificates"
	TExtended   = "extendedInformation"
	THealth     = "replicationVaultHealth"
)

// escapeID escapes the segments of an id for a URL.
func escapeID(id string) string {
	return (&url.URL{Path: id}).EscapedPath()
}

// FabricID is the id of a site.
func (c IDs) FabricID(f dr.Fabric) string { return c.VaultID.ID(TFabrics, f.Name) }

// ContainerID is the id of a site's one protection container.
func (c IDs) ContainerID(f dr.Fabric) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, f.ContainerName())
}

// ProviderID is the id of an agent.
func (c IDs) ProviderID(f dr.Fabric, id dr.AgentID) string {
	return c.VaultID.ID(TFabrics, f.Name, TProviders, string(id))
}

// VMID is the id of a protectable item.
func (c IDs) VMID(f dr.Fabric, vm dr.VMID) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, f.ContainerName(), TVMs, string(vm))
}
