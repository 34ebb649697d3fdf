package armapitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

// SetDetail changes what the fake says of an item beside its axes.
func (w *world) SetDetail(id dr.ItemID, change func(*vault.Detail)) {
	defer w.lock()()
	change(w.detailOf(id))
}

func (w *world) detailOf(id dr.ItemID) *vault.Detail {
	if w.detail[id] == nil {
		w.detail[id] = &vault.Detail{}
	}
	return w.detail[id]
}

func (x engine) known(id dr.ItemID) (*dr.ProtectedItem, error) {
	if it := x.w.itemOf(id); it != nil {
		return it, nil
	}
	return nil, missing("protected item", string(id))
}

func (w *world) note(it *dr.ProtectedItem, kind, by, format string, a ...any) {
	w.events = append(w.events, vaultdb.Event{ID: w.uuid(), At: w.now(), Kind: kind, Item: it.ID, By: by, Audit: true, Text: fmt.Sprintf(format, a...)})
}

// ResyncWith implements route.Replications.
func (x engine) ResyncWith(_ context.Context, id dr.ItemID, o vault.ResyncOptions, by string) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := failovers(x).idle(id)
	if err != nil {
		return "", err
	}
	it.Resync = "asked for by " + by
	if o.Full {
		it.Resync += ", in full"
	}
	x.w.detailOf(id).ResyncCode = dr.CodeResyncRequested
	return x.w.start("Resynchronize", "ProtectionEntity", string(it.ID), it.VMName, by, it, []string{"Resynchronize"}, nil, func(*dr.Job) {
		it.Resync, x.w.detailOf(id).ResyncCode = "", ""
	}), nil
}

// Pause implements route.Replications.
func (x engine) Pause(_ context.Context, id dr.ItemID, r vault.PauseRequest) error {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return err
	}
	if r.Paused && !r.ResumeAt.IsZero() && !r.ResumeAt.After(x.w.now()) {
		return dr.Errorf(dr.KindInvalid, "armapitest", "the pause would end in the past")
	}
	d := x.w.detailOf(id)
	it.Paused, d.PauseReason, d.ResumeAt = r.Paused, r.Reason, r.ResumeAt
	x.w.note(it, "pause", r.By, "paused: %v %s", r.Paused, r.Reason)
	return nil
}

// RetryNow implements route.Replications.
func (x engine) RetryNow(_ context.Context, id dr.ItemID, by string) error {
	defer x.w.lock()()
	it, err := x.known(id)
	if err == nil && it.Paused {
		err = dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "armapitest", "replication of %s is paused", it.VMName)
	}
	if err == nil {
		x.w.note(it, "retryNow", by, "to be tried now")
	}
	return err
}

// ChangeDisks implements route.Replications.
func (x engine) ChangeDisks(_ context.Context, id dr.ItemID, disks []string, by string) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := failovers(x).idle(id)
	if err != nil {
		return "", err
	}
	return x.w.start("ChangeDisks", "ProtectionEntity", string(it.ID), it.VMName, by, it, []string{"ChangeDisks"}, nil, func(*dr.Job) { it.Disks = disks }), nil
}

// Points implements route.Points.
func (x engine) Points(_ context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error) {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return nil, err
	}
	return x.w.points(it), nil
}

// PointDetails implements route.Points.
func (x engine) PointDetails(_ context.Context, id dr.ItemID) ([]vault.PointDetail, error) {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return nil, err
	}
	var out []vault.PointDetail
	for _, p := range x.w.points(it) {
		d := x.w.labels[string(it.Machine)+p.Name()]
		d.RecoveryPoint, d.Keep = p, "fine"
		if a := x.w.detailOf(id).Anomaly; a != nil {
			d.Suspect = p.Name() >= a.Since
		}
		out = append(out, d)
	}
	return out, nil
}

// NamePoint implements route.Points.
func (x engine) NamePoint(_ context.Context, id dr.ItemID, point, name string, hold bool, by string) error {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return err
	}
	if len(name) > 100 {
		return dr.Errorf(dr.KindInvalid, "armapitest", "the name has %d bytes, at most 100 are kept", len(name))
	}
	x.w.labels[string(it.Machine)+point] = vault.PointDetail{Label: name, Held: hold, By: by}
	return nil
}

// Anomaly implements route.Points.
func (x engine) Anomaly(_ context.Context, id dr.ItemID) (*vault.Anomaly, error) {
	defer x.w.lock()()
	return x.w.detailOf(id).Anomaly, nil
}

// AcknowledgeAnomaly implements route.Points.
func (x engine) AcknowledgeAnomaly(_ context.Context, id dr.ItemID, by string) error {
	defer x.w.lock()()
	it, err := x.known(id)
	if err == nil {
		x.w.detailOf(id).Anomaly = nil
		x.w.note(it, "anomaly", by, "acknowledged")
	}
	return err
}

// CreateGroup implements route.Groups.
func (x engine) CreateGroup(_ context.Context, name string, items []dr.ItemID, _ string) (dr.ConsistencyGroup, error) {
	defer x.w.lock()()
	g := dr.ConsistencyGroup{ID: dr.GroupID(x.w.uuid()), Name: name, Items: items}
	if err := x.oneHost(&g, items); err != nil {
		return g, err
	}
	x.w.groups = append(x.w.groups, g)
	return g, nil
}

func (x engine) oneHost(g *dr.ConsistencyGroup, items []dr.ItemID) error {
	var agent dr.AgentID
	for _, id := range items {
		it, err := x.known(id)
		if err != nil {
			return err
		}
		if agent != "" && agent != it.SourceAgent {
			return dr.Errorf(dr.KindInvalid, "armapitest", "the members of a group are on one host")
		}
		agent, g.Fabric = it.SourceAgent, it.Fabric
	}
	return nil
}

func (x engine) group(id dr.GroupID) int {
	return slices.IndexFunc(x.w.groups, func(g dr.ConsistencyGroup) bool { return g.ID == id })
}

// SetGroupMembers implements route.Groups.
func (x engine) SetGroupMembers(_ context.Context, id dr.GroupID, items []dr.ItemID, _ string) error {
	defer x.w.lock()()
	i := x.group(id)
	if i < 0 {
		return missing("consistency group", string(id))
	}
	if err := x.oneHost(&x.w.groups[i], items); err != nil {
		return err
	}
	x.w.groups[i].Items = items
	return nil
}

// DeleteGroup implements route.Groups.
func (x engine) DeleteGroup(_ context.Context, id dr.GroupID, _ string) error {
	defer x.w.lock()()
	i := x.group(id)
	if i < 0 {
		return missing("consistency group", string(id))
	}
	x.w.groups = slices.Delete(x.w.groups, i, i+1)
	return nil
}

// Groups implements route.Groups.
func (x engine) Groups(context.Context) ([]dr.ConsistencyGroup, error) {
	defer x.w.lock()()
	return slices.Clone(x.w.groups), nil
}

// GroupPoints implements route.Groups: every point of the first member is an instant.
func (x engine) GroupPoints(_ context.Context, id dr.GroupID) ([]vault.GroupPoint, error) {
	defer x.w.lock()()
	i := x.group(id)
	if i < 0 {
		return nil, missing("consistency group", string(id))
	}
	g := x.w.groups[i]
	var out []vault.GroupPoint
	if len(g.Items) == 0 {
		return nil, nil
	}
	for _, p := range x.w.points(x.w.itemOf(g.Items[0])) {
		out = append(out, vault.GroupPoint{Seq: p.N, Time: p.Time, Consistency: p.Consistency, Complete: len(g.Items) == 1,
			Points: map[dr.ItemID]dr.RecoveryPoint{g.Items[0]: p}, Missing: g.Items[1:]})
	}
	return out, nil
}

// UpkeepStatus implements route.Upkeep.
func (x engine) UpkeepStatus(_ context.Context, id dr.ItemID) (vault.UpkeepStatus, error) {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return vault.UpkeepStatus{}, err
	}
	now := x.w.now()
	return vault.UpkeepStatus{Points: len(x.w.points(it)), StoredBytes: 1 << 20, Objects: 40, Bytes: 2 << 20, Pending: 3, LastPass: now.Add(-time.Hour), Expired: 2, FreedBytes: 4096,
		LastScrub: now.Add(-24 * time.Hour), ScrubObjects: 40, ScrubBytes: 2 << 20, NextScrub: now.Add(6 * 24 * time.Hour),
		PassError: &dr.HealthError{Code: dr.CodeCompactorConflict, Severity: dr.HealthWarning, Message: "another vault is at work", Since: now},
		Damaged:   []vault.Damage{{Point: dr.PointName(1, 0), Time: now, Text: "object x is not whole"}}}, nil
}

// PlanMaintenance implements route.Upkeep: the oldest point would expire.
func (x engine) PlanMaintenance(_ context.Context, id dr.ItemID) ([]vault.Planned, error) {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return nil, err
	}
	var out []vault.Planned
	for i, p := range slices.Backward(x.w.points(it)) {
		keep := "fine"
		if i == len(x.w.points(it))-1 {
			keep = ""
		}
		out = append(out, vault.Planned{Point: p, Keep: keep})
	}
	return out, nil
}

// Maintain implements route.Upkeep.
func (x engine) Maintain(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return x.job(id, "Maintain", by)
}

// Scrub implements route.Upkeep.
func (x engine) Scrub(_ context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return x.job(id, "Scrub", by)
}

func (x engine) job(id dr.ItemID, scenario, by string) (dr.JobID, error) {
	defer x.w.lock()()
	it, err := x.known(id)
	if err != nil {
		return "", err
	}
	return x.w.start(scenario, "ProtectionEntity", string(it.ID), it.VMName, by, nil, []string{scenario}, nil, nil), nil
}

// Seeds implements route.Upkeep.
func (x engine) Seeds(context.Context) ([]vault.Seed, error) {
	return []vault.Seed{{Machine: "5eed0000-0000-4000-8000-000000000001", VMName: "web01", Disks: []dr.Disk{{ID: "vda", Size: 8 << 30, Boot: true}}, Bytes: 1 << 30}}, nil
}

// Detail implements route.History.
func (x engine) Detail(_ context.Context, id dr.ItemID) (vault.Detail, error) {
	defer x.w.lock()()
	if _, err := x.known(id); err != nil {
		return vault.Detail{}, err
	}
	d := *x.w.detailOf(id)
	for _, g := range x.w.groups {
		if slices.Contains(g.Items, id) {
			d.Group = g.ID
		}
	}
	return d, nil
}

// Events implements route.History.
func (x engine) Events(_ context.Context, id dr.ItemID, limit int) ([]vaultdb.Event, error) {
	defer x.w.lock()()
	var out []vaultdb.Event
	for _, e := range slices.Backward(x.w.events) {
		if (id == "" || strings.EqualFold(string(e.Item), string(id))) && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, nil
}
