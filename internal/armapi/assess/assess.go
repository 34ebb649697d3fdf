// Package assess serves the readiness report of a site: which of its VMs can be
// protected and recovered at a target, why not, and how the site stands to the
// best practices. The public API has no such thing; it lies under holdfast/readiness.
package assess

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault/assess"
)

// TReadiness is the type segment of reports, which are named like their sites.
const TReadiness = armwire.Extension + "/readiness"

// Routes adds the operation on reports.
func Routes(t route.Table) { t.Add("GET", dr.RoleReader, get, "", TReadiness) }

// get makes the report of a site; ?target= is one of readiness.Profiles.
func get(c *route.Call) (route.Reply, error) {
	f, err := c.Svc().Fabric(c.Ctx(), c.NameOf(TReadiness))
	if err != nil {
		return route.Reply{}, err
	}
	r, err := assess.Report(c.Ctx(), c.Svc(), assess.Question{Site: f, Target: route.QueryValue(c.R.URL.Query(), "target"), Connected: c.Connected, Now: c.Now()})
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}
