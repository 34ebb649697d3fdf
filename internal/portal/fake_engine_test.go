package portal

import (
	"context"
	"slices"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

func (f *fake) detailOf(id dr.ItemID) *vault.Detail {
	if f.detail[id] == nil {
		f.detail[id] = &vault.Detail{}
	}
	return f.detail[id]
}

func (f *fake) happened(id dr.ItemID, kind, by, text string, at time.Time) {
	f.events = append(f.events, vaultdb.Event{ID: f.id("event"), At: at, Kind: kind, Item: id, By: by, Text: text})
}

func (f *fake) Pause(_ context.Context, id dr.ItemID, r vault.PauseRequest) error {
	defer f.lock()()
	it, err := f.item(id)
	if err == nil {
		err = f.call("Pause %s %v %q", id, r.Paused, r.Reason)
	}
	if err == nil {
		it.Paused, f.detailOf(id).PauseReason, f.detailOf(id).ResumeAt = r.Paused, r.Reason, r.ResumeAt
		f.happened(id, "pause", r.By, it.VMName+": paused or resumed", f.now())
	}
	return err
}

func (f *fake) RetryNow(_ context.Context, id dr.ItemID, _ string) error {
	defer f.lock()()
	return f.call("RetryNow %s", id)
}

func (f *fake) AcknowledgeAnomaly(_ context.Context, id dr.ItemID, _ string) error {
	defer f.lock()()
	f.detailOf(id).Anomaly = nil
	return f.call("AcknowledgeAnomaly %s", id)
}

func (f *fake) ChangeDisks(_ context.Context, id dr.ItemID, disks []string, by string) (dr.JobID, error) {
	defer f.lock()()
	if err := f.call("ChangeDisks %s %v", id, disks); err != nil {
		return "", err
	}
	it, err := f.item(id)
	if err != nil {
		return "", err
	}
	it.Disks, f.detailOf(id).NewDisks = disks, nil
	return f.start("ChangeDisks", "Change the replicated disks", by, nil, it.VMName, nil), nil
}

func (f *fake) Points(_ context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error) {
	defer f.lock()()
	return slices.Clone(f.points[id]), nil
}

func (f *fake) PointDetails(_ context.Context, id dr.ItemID) ([]vault.PointDetail, error) {
	defer f.lock()()
	var out []vault.PointDetail
	for _, p := range f.points[id] {
		d := f.labels[string(id)+p.Name()]
		d.RecoveryPoint, d.Keep = p, "fine"
		switch age := f.now().Sub(p.Time); {
		case age > 72*time.Hour:
			d.Keep = "daily"
		case age > 25*time.Hour:
			d.Keep = "hourly"
		}
		if a := f.detailOf(id).Anomaly; a != nil {
			d.Suspect = p.Name() >= a.Since
		}
		out = append(out, d)
	}
	return out, nil
}

func (f *fake) NamePoint(_ context.Context, id dr.ItemID, point, name string, hold bool, by string) error {
	defer f.lock()()
	f.labels[string(id)+point] = vault.PointDetail{Label: name, Held: hold, By: by}
	return f.call("NamePoint %s %s %q %v", id, point, name, hold)
}

func (f *fake) Detail(_ context.Context, id dr.ItemID) (vault.Detail, error) {
	defer f.lock()()
	d := *f.detailOf(id)
	for _, g := range f.groups {
		if slices.Contains(g.Items, id) {
			d.Group = g.ID
		}
	}
	return d, nil
}

func (f *fake) Events(_ context.Context, id dr.ItemID, limit int) (out []vaultdb.Event, _ error) {
	defer f.lock()()
	for _, e := range slices.Backward(f.events) {
		if e.Item == id && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (f *fake) CreateGroup(_ context.Context, name string, items []dr.ItemID, _ string) (dr.ConsistencyGroup, error) {
	defer f.lock()()
	g := dr.ConsistencyGroup{ID: dr.GroupID(f.id("group")), Name: name, Fabric: f.fabrics[0].ID, Items: items}
	if err := f.call("CreateGroup %s %v", name, items); err != nil {
		return g, err
	}
	f.groups = append(f.groups, g)
	return g, nil
}

func (f *fake) SetGroupMembers(_ context.Context, id dr.GroupID, items []dr.ItemID, _ string) error {
	defer f.lock()()
	for i := range f.groups {
		if f.groups[i].ID == id {
			f.groups[i].Items = items
		}
	}
	return f.call("SetGroupMembers %s %v", id, items)
}

func (f *fake) DeleteGroup(_ context.Context, id dr.GroupID, _ string) error {
	defer f.lock()()
	f.groups = slices.DeleteFunc(f.groups, func(g dr.ConsistencyGroup) bool { return g.ID == id })
	return f.call("DeleteGroup %s", id)
}

func (f *fake) Groups(context.Context) ([]dr.ConsistencyGroup, error) {
	defer f.lock()()
	return slices.Clone(f.groups), nil
}

func (f *fake) GroupPoints(_ context.Context, id dr.GroupID) (out []vault.GroupPoint, _ error) {
	defer f.lock()()
	for _, g := range f.groups {
		if g.ID != id || len(g.Items) == 0 {
			continue
		}
		for i, p := range f.points[g.Items[0]][:min(30, len(f.points[g.Items[0]]))] {
			x := vault.GroupPoint{Seq: p.N, Time: p.Time, Consistency: p.Consistency, Complete: i != 3, Points: map[dr.ItemID]dr.RecoveryPoint{}}
			for j, m := range g.Items {
				if i == 3 && j > 0 {
					x.Missing = append(x.Missing, m)
				} else if i < len(f.points[m]) {
					x.Points[m] = f.points[m][i]
				}
			}
			out = append(out, x)
		}
	}
	return out, nil
}

func (f *fake) UpkeepStatus(_ context.Context, id dr.ItemID) (vault.UpkeepStatus, error) {
	defer f.lock()()
	return f.upkeep[id], f.fail["UpkeepStatus"]
}

func (f *fake) PlanMaintenance(_ context.Context, id dr.ItemID) (out []vault.Planned, _ error) {
	defer f.lock()()
	for i, p := range f.points[id] {
		keep := "fine"
		if i > len(f.points[id])-4 {
			keep = ""
		}
		out = append(out, vault.Planned{Point: p, Keep: keep})
	}
	return out, nil
}

func (f *fake) Maintain(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	defer f.lock()()
	return f.start("Maintain", "Maintenance", by, nil, string(id), nil), f.call("Maintain %s", id)
}

func (f *fake) Scrub(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	defer f.lock()()
	return f.start("Scrub", "Scrub", by, nil, string(id), nil), f.call("Scrub %s", id)
}
