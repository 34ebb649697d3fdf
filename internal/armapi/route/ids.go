package route

import (
	"net/url"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// IDs builds the ids of the vault's resources.
type IDs struct{ armwire.VaultID }

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
	TSizes      = "targetComputeSizes"
	TMappings   = "replicationProtectionContainerMappings"
	TPolicies   = "replicationPolicies"
	TJobs       = "replicationJobs"
	TOperations = "replicationOperationStatus"
	TResults    = "operationresults"
	TCerts      = "certificates"
	TExtended   = "extendedInformation"
	THealth     = "replicationVaultHealth"

	TNetworks        = "replicationNetworks"
	TNetworkMappings = "replicationNetworkMappings"
	TLogicalNetworks = "replicationLogicalNetworks"
	TStorage         = "replicationStorageClassifications"
	TStorageMappings = "replicationStorageClassificationMappings"
)

// escapeID escapes the segments of an id for a URL.
func escapeID(id string) string {
	return (&url.URL{Path: id}).EscapedPath()
}

// FabricID is the id of a site.
func (c IDs) FabricID(f dr.Fabric) string { return c.VaultID.ID(TFabrics, f.Name) }

// ContainerID is the id of a site's own protection container: its only one without VMM.
func (c IDs) ContainerID(f dr.Fabric) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, f.ContainerName())
}

// ProviderID is the id of an agent.
func (c IDs) ProviderID(f dr.Fabric, id dr.AgentID) string {
	return c.VaultID.ID(TFabrics, f.Name, TProviders, string(id))
}

// NetworkID is the id of a network of a site.
func (c IDs) NetworkID(f dr.Fabric, network string) string {
	return c.VaultID.ID(TFabrics, f.Name, TNetworks, network)
}

// StorageID is the id of a storage classification of a site.
func (c IDs) StorageID(f dr.Fabric, classification string) string {
	return c.VaultID.ID(TFabrics, f.Name, TStorage, classification)
}

// ItemID is the id of the protected item of a VM, in the container that the VM is in now.
func (c *Call) ItemID(f dr.Fabric, vm dr.VMID, name string) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, c.ContainerOf(f, vm), TItems, name)
}

// VMID is the id of a protectable item.
func (c *Call) VMID(f dr.Fabric, vm dr.VMID) string {
	return c.VaultID.ID(TFabrics, f.Name, TContainers, c.ContainerOf(f, vm), TVMs, string(vm))
}

// ContainerOf is the name of the container that a VM is in now. f is of Fabric or
// the Directory, which have read the places of its VMs.
func (c *Call) ContainerOf(f dr.Fabric, vm dr.VMID) string {
	return f.ContainerOf(c.Dir.clouds[f.ID][vm])
}

// InContainer reports whether a VM is in the container that the path names, which
// may name none.
func (c *Call) InContainer(f dr.Fabric, vm dr.VMID) bool {
	name := c.NameOf(TContainers)
	return name == "" || strings.EqualFold(name, c.ContainerOf(f, vm))
}
