package armclient_test

import (
	"testing"
	"time"

	"holdfast/internal/armapi"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// TestReplication drives everything that the public API does not have.
func TestReplication(t *testing.T) {
	t.Parallel()
	c, _ := start(t, armapi.Config{PageSize: 1})
	ctx := t.Context()
	daily, mode := int64(30*24*3600), string(dr.ResyncManual)
	var p armclient.Policy
	do(t, "policy", &p)(c.SavePolicy(ctx, "gold", armwire.PolicySettings{RetainDailySeconds: &daily, ResyncMode: &mode, Bandwidth: &[]armwire.BandwidthRule{{Window: "Mon-Fri 08:00-18:00", BytesPerSecond: 1 << 20}}}))
	if d := p.Properties.ProviderSpecificDetails; d.RetainDailySeconds != daily || d.ResyncMode != mode || len(d.Bandwidth) != 1 {
		t.Errorf("policy %+v", d)
	}
	a := must[armclient.Container](t)(c.Container(ctx, "site-a"))
	b := must[armclient.Container](t)(c.Container(ctx, "site-b"))
	do(t, "mapping", nil)(c.CreateMapping(ctx, a.ID, "map", "gold", b.ID))
	vms := must[[]armclient.ProtectableItem](t)(c.ProtectableItems(ctx, a.ID))
	var it armclient.ProtectedItem
	do(t, "enable", &it)(c.Items().Enable(ctx, a.ID, vms[0], "gold", armwire.EnableDetails{DisksToInclude: []string{"vda"}}))

	r := c.Replication()
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	if x := must[armclient.ProtectedItem](t)(r.Pause(ctx, it.ID, "moving", until)); !x.Properties.Paused || x.Properties.PauseReason != "moving" || !x.Properties.ResumeAt.Equal(until) {
		t.Errorf("paused %+v", x.Properties)
	}
	if _, err := r.RetryNow(ctx, it.ID); dr.KindOf(err) != dr.KindPrecondition && dr.KindOf(err) != dr.KindConflict {
		t.Errorf("retry of a paused item: %v", err)
	}
	if x := must[armclient.ProtectedItem](t)(r.Resume(ctx, it.ID)); x.Properties.Paused {
		t.Error("still paused")
	}
	must[armclient.ProtectedItem](t)(r.RetryNow(ctx, it.ID))
	do(t, "repair", nil)(r.Repair(ctx, it.ID, true))
	do(t, "add a disk", &it)(r.AddDisks(ctx, it.ID, "vdb"))
	do(t, "remove a disk", &it)(r.RemoveDisks(ctx, it.ID, "vda"))
	if d := it.Properties.Disks; len(d) != 2 || d[0].Replicated || !d[1].Replicated {
		t.Errorf("disks %+v", d)
	}
	if es := must[[]armwire.Event](t)(r.Events(ctx, it.ID)); len(es) != 3 || es[0].Kind != "retryNow" {
		t.Errorf("events %+v", es)
	}
	must[armclient.ProtectedItem](t)(r.AcknowledgeAnomaly(ctx, it.ID))

	ps := must[[]armclient.RecoveryPoint](t)(c.Items().Points(ctx, it.ID))
	name, yes := "before", true
	if x := must[armclient.RecoveryPoint](t)(r.UpdatePoint(ctx, ps[0].ID, armwire.PointUpdate{Name: &name, Held: &yes})); x.Properties.Label != name || !x.Properties.Held {
		t.Errorf("point %+v", x.Properties)
	}

	u := c.Upkeep()
	if s := must[armwire.Upkeep](t)(u.Status(ctx, it.ID)); s.Objects == 0 || s.NextScrub == nil {
		t.Errorf("upkeep %+v", s)
	}
	if plan := must[armwire.MaintenancePlan](t)(u.Plan(ctx, it.ID)); len(plan.Points) == 0 || plan.Expiring != 1 {
		t.Errorf("plan %+v", plan)
	}
	do(t, "maintain", nil)(u.Maintain(ctx, it.ID))
	do(t, "scrub", nil)(u.Scrub(ctx, it.ID))

	g := c.Groups()
	if x := must[armclient.Group](t)(g.Save(ctx, "web shop", []string{it.ID})); x.Name != "web shop" || len(x.Properties.Items) != 1 {
		t.Errorf("group %+v", x)
	}
	if all := must[[]armclient.Group](t)(g.List(ctx)); len(all) != 1 {
		t.Errorf("groups %+v", all)
	}
	must[armclient.Group](t)(g.Get(ctx, "Web Shop"))
	if x := must[[]armwire.GroupPoint](t)(g.Points(ctx, "web shop")); len(x) == 0 || !x[0].Complete {
		t.Errorf("points %+v", x)
	}
	for range 2 {
		if err := g.Remove(ctx, "web shop"); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if all := must[[]armwire.ErrorEntry](t)(c.Errors(ctx)); len(all) != len(dr.Catalogue()) {
		t.Errorf("%d errors", len(all))
	}
	if all := must[[]armwire.Seed](t)(c.Seeds(ctx)); len(all) != 1 {
		t.Errorf("seeds %+v", all)
	}
}
