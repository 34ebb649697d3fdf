package armclient

import (
	"context"
	"net/http"
	"time"

	"holdfast/internal/armwire"
)

// Group is a consistency group.
type Group = armwire.Resource[armwire.Group]

// Replication is the client's part about running replications.
func (c *Client) Replication() ReplicationClient { return ReplicationClient{c} }

// ReplicationClient steers running replications of items, which are given by
// their resource ids.
type ReplicationClient struct{ c *Client }

// own changes something at once; the answer is the item after it.
func (r ReplicationClient) own(ctx context.Context, item, verb string, in any) (ProtectedItem, error) {
	var it ProtectedItem
	op, err := r.c.Change(ctx, http.MethodPost, item+"/"+armwire.Extension+"/"+verb, in)
	if err != nil {
		return it, err
	}
	return it, op.Wait(ctx, &it, nil)
}

// Repair resynchronizes now; full sends everything again instead of only what differs.
func (r ReplicationClient) Repair(ctx context.Context, item string, full bool) (*Operation, error) {
	return r.c.Change(ctx, http.MethodPost, item+"/repairReplication", armwire.Input[armwire.RepairInput]{Properties: armwire.RepairInput{Full: full}})
}

// Pause pauses an item until resumeAt; the zero time is until somebody resumes it.
func (r ReplicationClient) Pause(ctx context.Context, item, reason string, resumeAt time.Time) (ProtectedItem, error) {
	return r.own(ctx, item, "pause", armwire.Input[armwire.PauseInput]{Properties: armwire.PauseInput{Reason: reason, ResumeAt: armwire.Time(resumeAt)}})
}

// Resume ends a pause.
func (r ReplicationClient) Resume(ctx context.Context, item string) (ProtectedItem, error) {
	return r.own(ctx, item, "resume", nil)
}

// RetryNow lets the host try at once what waits to be tried again.
func (r ReplicationClient) RetryNow(ctx context.Context, item string) (ProtectedItem, error) {
	return r.own(ctx, item, "retryNow", nil)
}

// AcknowledgeAnomaly says that data which looks encrypted is as it should be.
func (r ReplicationClient) AcknowledgeAnomaly(ctx context.Context, item string) (ProtectedItem, error) {
	return r.own(ctx, item, "acknowledgeAnomaly", nil)
}

// AddDisks replicates more disks of the VM, given by their ids.
func (r ReplicationClient) AddDisks(ctx context.Context, item string, disks ...string) (*Operation, error) {
	return r.changeDisks(ctx, item, "addDisks", disks)
}

// RemoveDisks excludes disks from replication.
func (r ReplicationClient) RemoveDisks(ctx context.Context, item string, disks ...string) (*Operation, error) {
	return r.changeDisks(ctx, item, "removeDisks", disks)
}

func (r ReplicationClient) changeDisks(ctx context.Context, item, action string, disks []string) (*Operation, error) {
	d := armwire.NewVariant(armwire.DisksDetails{InstanceType: armwire.HyperVReplicaAzure, Disks: disks})
	return r.c.Change(ctx, http.MethodPost, item+"/"+action, armwire.Input[armwire.DisksInput]{Properties: armwire.DisksInput{ProviderSpecificDetails: d}})
}

// UpdatePoint names a recovery point, given by its resource id, or holds it.
func (r ReplicationClient) UpdatePoint(ctx context.Context, point string, u armwire.PointUpdate) (RecoveryPoint, error) {
	var p RecoveryPoint
	op, err := r.c.Change(ctx, http.MethodPatch, point, armwire.Input[armwire.PointUpdate]{Properties: u})
	if err != nil {
		return p, err
	}
	return p, op.Wait(ctx, &p, nil)
}

// Events is what happened with an item, newest first.
func (r ReplicationClient) Events(ctx context.Context, item string) ([]armwire.Event, error) {
	return pages[armwire.Event](ctx, r.c, item+"/"+armwire.Extension+"/events")
}

// Upkeep is the client's part about maintenance and scrubs.
func (c *Client) Upkeep() UpkeepClient { return UpkeepClient{c} }

// UpkeepClient looks after the replicas of items, which are given by their resource ids.
type UpkeepClient struct{ c *Client }

// Status says how an item's replica is looked after.
func (u UpkeepClient) Status(ctx context.Context, item string) (armwire.Upkeep, error) {
	var s armwire.Upkeep
	return s, u.c.Get(ctx, item+"/"+armwire.Extension+"/maintenance", &s)
}

// Plan says which recovery points a maintenance pass would expire now.
func (u UpkeepClient) Plan(ctx context.Context, item string) (armwire.MaintenancePlan, error) {
	var p armwire.MaintenancePlan
	return p, u.c.Get(ctx, item+"/"+armwire.Extension+"/maintenancePlan", &p)
}

// Maintain makes a maintenance pass now.
func (u UpkeepClient) Maintain(ctx context.Context, item string) (*Operation, error) {
	return u.c.Change(ctx, http.MethodPost, item+"/"+armwire.Extension+"/maintain", nil)
}

// Scrub verifies every stored object of an item now.
func (u UpkeepClient) Scrub(ctx context.Context, item string) (*Operation, error) {
	return u.c.Change(ctx, http.MethodPost, item+"/"+armwire.Extension+"/scrub", nil)
}

// Groups is the client's part about consistency groups.
func (c *Client) Groups() GroupsClient { return GroupsClient{c} }

// GroupsClient works with consistency groups, which are given by their names.
type GroupsClient struct{ c *Client }

func (g GroupsClient) id(names ...string) string {
	return g.c.ID(append([]string{armwire.Extension, "consistencyGroups"}, names...)...)
}

// List lists the groups.
func (g GroupsClient) List(ctx context.Context) ([]Group, error) {
	return All[armwire.Group](ctx, g.c, g.id())
}

// Get reads a group.
func (g GroupsClient) Get(ctx context.Context, name string) (Group, error) {
	return one[armwire.Group](ctx, g.c, g.id(name))
}

// Save creates a group, or replaces its members: resource ids of items, their ids or names.
func (g GroupsClient) Save(ctx context.Context, name string, items []string) (Group, error) {
	var out Group
	op, err := g.c.Change(ctx, http.MethodPut, g.id(name), armwire.Input[armwire.GroupInput]{Properties: armwire.GroupInput{Items: items}})
	if err != nil {
		return out, err
	}
	return out, op.Wait(ctx, &out, nil)
}

// Remove removes a group; its members stay protected.
func (g GroupsClient) Remove(ctx context.Context, name string) error {
	op, err := g.c.Change(ctx, http.MethodDelete, g.id(name), nil)
	if err != nil {
		return err
	}
	return op.Wait(ctx, nil, nil)
}

// Points are the instants of a group, newest first.
func (g GroupsClient) Points(ctx context.Context, name string) ([]armwire.GroupPoint, error) {
	return pages[armwire.GroupPoint](ctx, g.c, g.id(name, "points"))
}

// Errors is the catalogue of errors, in the order of the documentation.
func (c *Client) Errors(ctx context.Context) ([]armwire.ErrorEntry, error) {
	return pages[armwire.ErrorEntry](ctx, c, c.ID(armwire.Extension, "errors"))
}

// Seeds are the replicas in the store that protection can begin with.
func (c *Client) Seeds(ctx context.Context) ([]armwire.Seed, error) {
	return pages[armwire.Seed](ctx, c, c.ID(armwire.Extension, "seeds"))
}
