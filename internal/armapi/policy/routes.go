// Package policy serves replication policies with all their settings, and the
// container mappings that say where a policy lets VMs recover.
package policy

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

// Routes adds the operations on policies and mappings.
func Routes(t route.Table) {
	const read, configure = dr.RoleReader, dr.RoleContributor
	t.Add("GET", read, listPolicies, "[]", route.TPolicies)
	t.Add("GET", read, getPolicy, "", route.TPolicies)
	t.Add("PUT", configure, putPolicy, "", route.TPolicies)
	t.Add("PATCH", configure, patchPolicy, "", route.TPolicies)
	t.Add("DELETE", configure, removePolicy, "", route.TPolicies)

	mappings := route.ContainerPath(route.TMappings)
	t.Add("GET", read, listMappings, "[]", route.TMappings)
	t.Add("GET", read, listMappings, "[]", mappings...)
	t.Add("GET", read, getMapping, "", mappings...)
	t.Add("PUT", configure, putMapping, "", mappings...)
	t.Add("DELETE", configure, removeMapping, "", mappings...)
	t.Add("POST", configure, removeMapping, ":remove", mappings...)
}
