package item

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// maintain starts a maintenance pass now, scrub a verification of every stored object.
func maintain(c *route.Call) (route.Reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().Maintain(c.Ctx(), it.ID, c.Who.Name)
	})
}

func scrub(c *route.Call) (route.Reply, error) {
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().Scrub(c.Ctx(), it.ID, c.Who.Name)
	})
}

func getUpkeep(c *route.Call) (route.Reply, error) {
	_, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	s, err := c.Svc().UpkeepStatus(c.Ctx(), it.ID)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(upkeepOf(s))
}

func upkeepOf(s vault.UpkeepStatus) armwire.Upkeep {
	u := armwire.Upkeep{
		Points: s.Points, StoredBytes: s.StoredBytes, Objects: s.Objects, Bytes: s.Bytes, PendingObjects: s.Pending,
		LastPass: armwire.Time(s.LastPass), ExpiredPoints: s.Expired, FreedBytes: s.FreedBytes, Note: s.NotReady, NextAttempt: armwire.Time(s.NextAttempt), PassAsked: s.PassAsked,
		LastScrub: armwire.Time(s.LastScrub), ScrubObjects: s.ScrubObjects, ScrubBytes: s.ScrubBytes, Damaged: make([]armwire.Damage, 0, len(s.Damaged)),
		ScrubError: s.ScrubError, ScrubRunning: s.ScrubRunning, NextScrub: armwire.Time(s.NextScrub),
	}
	if s.PassError != nil {
		u.PassError = &route.HealthErrors([]dr.HealthError{*s.PassError}, "")[0]
	}
	for _, d := range s.Damaged {
		u.Damaged = append(u.Damaged, armwire.Damage{Point: d.Point, Time: armwire.Time(d.Time), Text: d.Text})
	}
	return u
}

// planMaintenance is a dry run: which points a pass would keep now, and why.
func planMaintenance(c *route.Call) (route.Reply, error) {
	_, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	plan, err := c.Svc().PlanMaintenance(c.Ctx(), it.ID)
	if err != nil {
		return route.Reply{}, err
	}
	out := armwire.MaintenancePlan{Points: make([]armwire.PlannedPoint, 0, len(plan))}
	for _, p := range plan {
		out.Points = append(out.Points, armwire.PlannedPoint{Name: p.Point.Name(), Time: armwire.Time(p.Point.Time), Keep: p.Keep, Expires: p.Keep == ""})
		if p.Keep == "" {
			out.Expiring++
		}
	}
	return route.OK(out)
}
