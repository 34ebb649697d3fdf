// Package site serves sites (fabrics), their protection containers, the agents
// of their hosts, the VMs that these have discovered, and registration keys.
package site

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/dr"
)

// Routes adds the operations on sites and on what lies in them.
func Routes(t route.Table) {
	const read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor
	t.Add("GET", read, listFabrics, "[]", route.TFabrics)
	t.Add("GET", read, getFabric, "", route.TFabrics)
	t.Add("PUT", configure, putFabric, "", route.TFabrics)
	t.Add("DELETE", configure, removeFabric, "", route.TFabrics)
	t.Add("POST", configure, removeFabric, ":remove", route.TFabrics)
	t.Add("POST", operate, checkConsistency, ":checkConsistency", route.TFabrics)

	providers := route.FabricPath(route.TProviders)
	t.Add("GET", read, listProviders, "[]", route.TProviders)
	t.Add("GET", read, listProviders, "[]", providers...)
	t.Add("GET", read, getProvider, "", providers...)
	t.Add("DELETE", configure, removeProvider, "", providers...)
	t.Add("POST", configure, removeProvider, ":remove", providers...)
	t.Add("POST", operate, refreshProvider, ":refreshProvider", providers...)

	t.Add("GET", read, listContainers, "[]", route.TContainers)
	t.Add("GET", read, listContainers, "[]", route.ContainerPath()...)
	t.Add("GET", read, getContainer, "", route.ContainerPath()...)
	t.Add("POST", operate, discover, ":discoverProtectableItem", route.ContainerPath()...)
	vms := route.ContainerPath(route.TVMs)
	t.Add("GET", read, listVMs, "[]", vms...)
	t.Add("GET", read, getVM, "", vms...)
}
