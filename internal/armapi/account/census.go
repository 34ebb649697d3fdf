package account

import (
	"cmp"
	"errors"
	"time"

	"holdfast/internal/armapi/jobs"
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// census is what the usage and health answers count.
type census struct {
	fabrics       []dr.Fabric
	providers     []dr.Provider
	items         []dr.ProtectedItem
	jobs          armwire.JobsSummary
	unhealthy     int32
	disconnected  int32
	itemsByHealth map[string]int32
}

func count(c *route.Call) (census, error) {
	var n census
	var err1, err2, err3 error
	n.fabrics, err1 = c.Dir.Fabrics()
	n.providers, err2 = c.Dir.Providers()
	n.items, err3 = c.Svc().Items(c.Ctx(), "")
	if err := errors.Join(err1, err2, err3); err != nil {
		return n, firstError(err1, err2, err3)
	}
	list, err := c.Svc().Jobs(c.Ctx(), vault.JobFilter{States: []dr.JobState{dr.JobInProgress, dr.JobWaiting, dr.JobFailed, dr.JobNotStarted},
		Since: c.Now().Add(-24 * time.Hour), Limit: jobs.MaxJobs})
	if err != nil {
		return n, err
	}
	for _, j := range list {
		switch {
		case j.State == dr.JobFailed:
			n.jobs.FailedJobs++
		case j.State == dr.JobWaiting && j.CanResume:
			n.jobs.SuspendedJobs++
		default:
			n.jobs.InProgressJobs++
		}
	}
	n.itemsByHealth = map[string]int32{}
	for _, it := range n.items {
		n.itemsByHealth[route.Health(it.Health)]++
		if it.Health != dr.HealthNormal {
			n.unhealthy++
		}
	}
	for _, p := range n.providers {
		if !c.Connected(p) {
			n.disconnected++
		}
	}
	return n, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func getUsages(c *route.Call) (route.Reply, error) {
	n, err := count(c)
	if err != nil {
		return route.Reply{}, err
	}
	usage := func(name, text string, v int) armwire.Usage {
		return armwire.Usage{Unit: "Count", CurrentValue: int64(v), Limit: -1, Name: armwire.UsageName{Value: name, LocalizedValue: text}}
	}
	return route.OK(armwire.List[armwire.Usage]{Value: []armwire.Usage{
		usage("ReplicationProtectedItems", "Protected items", len(n.items)),
		usage("ReplicationFabrics", "Sites", len(n.fabrics)),
		usage("ReplicationRecoveryServicesProviders", "Registered hosts", len(n.providers)),
	}})
}

func getReplicationUsages(c *route.Call) (route.Reply, error) {
	n, err := count(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(armwire.List[armwire.ReplicationUsage]{Value: []armwire.ReplicationUsage{{
		ProtectedItemCount: int32(len(n.items)), RegisteredServersCount: int32(len(n.providers)), JobsSummary: n.jobs,
		MonitoringSummary: armwire.MonitoringSummary{UnhealthyVMCount: n.unhealthy, UnhealthyProviderCount: n.disconnected,
			SupportedProviderCount: int32(len(n.providers))},
	}}})
}

func getVaultHealth(c *route.Call) (route.Reply, error) {
	n, err := count(c)
	if err != nil {
		return route.Reply{}, err
	}
	issues := map[dr.Code]*armwire.HealthIssue{}
	order := []dr.Code{}
	for _, it := range n.items {
		for _, e := range it.HealthErrors {
			is := issues[e.Code]
			if is == nil {
				entry, _ := dr.Lookup(e.Code)
				severity := "Warning"
				if e.Severity == dr.HealthCritical {
					severity = "Error"
				}
				is = &armwire.HealthIssue{SummaryCode: string(e.Code), Category: "Replication", Severity: severity,
					SummaryMessage: cmp.Or(entry.Title, e.Message), AffectedResourceType: route.TItems}
				issues[e.Code], order = is, append(order, e.Code)
			}
			is.AffectedResourceCorrelationIDs = append(is.AffectedResourceCorrelationIDs, it.Name)
		}
	}
	summary := func(total int, by map[string]int32) armwire.HealthSummary {
		return armwire.HealthSummary{ResourceCount: int32(total), CategorizedResourceCounts: by, Issues: []armwire.HealthIssue{}}
	}
	v := armwire.VaultHealth{
		VaultErrors:          []armwire.HealthError{},
		ProtectedItemsHealth: summary(len(n.items), n.itemsByHealth),
		FabricsHealth:        summary(len(n.fabrics), map[string]int32{}),
		ContainersHealth:     summary(len(n.fabrics), map[string]int32{}),
	}
	for _, code := range order {
		v.ProtectedItemsHealth.Issues = append(v.ProtectedItemsHealth.Issues, *issues[code])
	}
	return route.OK(armwire.Resource[armwire.VaultHealth]{ID: c.VaultID.ID(route.THealth, "default"), Name: "default", Type: armwire.ResourceType(route.THealth, ""), Properties: v})
}
