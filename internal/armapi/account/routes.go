// Package account serves the vault itself as a resource of the REST API: its tags
// and certificates, its usage and health, and what clients ask above it before
// they get to work (subscriptions, groups, provider registration).
package account

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Routes adds the operations on the vault.
func Routes(t route.Table) {
	const read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor
	t.Add("GET", read, getVault, "")
	t.Add("PUT", configure, putVault, "")
	t.Add("PATCH", configure, putVault, "")
	t.Add("PUT", configure, putCertificate, "", route.TCerts)
	t.Add("GET", operate, getExtendedInfo, "", route.TExtended) // it holds a key that readers have no use for
	t.Add("PUT", configure, putExtendedInfo, "", route.TExtended)
	t.Add("PATCH", configure, putExtendedInfo, "", route.TExtended)
	t.Add("GET", read, getUsages, "[]", "usages")
	t.Add("GET", read, getReplicationUsages, "[]", "replicationUsages")
	t.Add("GET", read, getVaultHealth, "[]", route.THealth)
	t.Add("GET", read, getVaultHealth, "", route.THealth)
	t.Add("POST", operate, getVaultHealth, ":refresh", route.THealth)
	t.Add("GET", read, listErrors, "[]", armwire.Extension+"/errors")
	t.Add("GET", read, listSeeds, "[]", armwire.Extension+"/seeds")
}
