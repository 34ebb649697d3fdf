// Package item serves protected items: protecting VMs, what is done with them
// (failovers, resynchronization, upkeep) and their recovery points.
//
// The API knows one protection state per item where the domain has independent
// axes; derive.go has the tables.
package item

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Routes adds the operations on protected items.
func Routes(t route.Table) {
	const read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor
	items := route.ContainerPath(route.TItems)
	t.Add("GET", read, listItems, "[]", route.TItems)
	t.Add("GET", read, listItems, "[]", items...)
	t.Add("GET", read, getItem, "", items...)
	t.Add("PUT", configure, enableItem, "", items...)
	t.Add("PATCH", configure, updateItem, "", items...)
	t.Add("DELETE", configure, disableItem, "", items...)
	t.Add("POST", configure, disableItem, ":remove", items...)
	t.Add("POST", operate, testFailover, ":testFailover", items...)
	t.Add("POST", operate, cleanupTest, ":testFailoverCleanup", items...)
	t.Add("POST", operate, plannedFailover, ":plannedFailover", items...)
	t.Add("POST", operate, unplannedFailover, ":unplannedFailover", items...)
	t.Add("POST", operate, commitFailover, ":failoverCommit", items...)
	t.Add("POST", operate, cancelFailover, ":failoverCancel", items...)
	t.Add("POST", operate, applyPoint, ":applyRecoveryPoint", items...)
	t.Add("POST", operate, repairReplication, ":repairReplication", items...)
	t.Add("POST", operate, resolveHealthErrors, ":resolveHealthErrors", items...)
	t.Add("POST", operate, reprotect, ":reProtect", items...)
	t.Add("POST", configure, addDisks, ":addDisks", items...)
	t.Add("POST", configure, removeDisks, ":removeDisks", items...)
	t.Add("POST", configure, atOnce(pause), ":holdfast/pause", items...)
	t.Add("POST", configure, atOnce(resume), ":holdfast/resume", items...)
	t.Add("POST", operate, atOnce(retryNow), ":holdfast/retryNow", items...)
	t.Add("POST", operate, atOnce(acknowledgeAnomaly), ":holdfast/acknowledgeAnomaly", items...)
	t.Add("POST", operate, maintain, ":holdfast/maintain", items...)
	t.Add("POST", operate, scrub, ":holdfast/scrub", items...)
	own := func(name string) []string { return route.ContainerPath(route.TItems, armwire.Extension+"/"+name) }
	t.Add("GET", read, getUpkeep, "[]", own("maintenance")...)
	t.Add("GET", read, planMaintenance, "[]", own("maintenancePlan")...)
	t.Add("GET", read, listEvents, "[]", own("events")...)

	t.Add("GET", read, guestCheck, "[]", own("guestCheck")...)
	t.Add("GET", read, listSizes, "[]", route.ContainerPath(route.TItems, route.TSizes)...)
	points := route.ContainerPath(route.TItems, route.TPoints)
	t.Add("GET", read, listPoints, "[]", points...)
	t.Add("GET", read, getPoint, "", points...)
	t.Add("PATCH", operate, patchPoint, "", points...)
}
