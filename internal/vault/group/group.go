// Package group is the vault's consistency groups: items that are cut at
// one common instant, and the instants that all of them have.
//
// It promises that a group's members are replicated by one host when it is
// made or changed, because only one hypervisor can freeze VMs together, and
// that an instant counts as complete only if every member has a point of it.
package group

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// MaxMembers is the greatest number of a group's members: their guests are
// held together until the last one is frozen.
const MaxMembers = 32

// Point is an instant of a group.
type Point struct {
	Seq         uint64
	Time        time.Time      // of the latest member
	Consistency dr.Consistency // the weakest of the members
	Complete    bool           // every member of the group has a point of it
	Cut         int            // machines that were cut at it
	Points      map[dr.ItemID]dr.RecoveryPoint
	Missing     []dr.ItemID // members of the group without a cut of this instant
}

// Registry knows the groups. It is safe for concurrent use.
type Registry struct {
	st *state.State
}

// New makes a Registry; it does no I/O.
func New(st *state.State) *Registry { return &Registry{st: st} }

// CreateGroup makes a consistency group of items that one host replicates.
func (r *Registry) CreateGroup(ctx context.Context, name string, items []dr.ItemID, by string) (dr.ConsistencyGroup, error) {
	const op = "vault.CreateGroup"
	g := dr.ConsistencyGroup{ID: dr.GroupID(state.NewID()), Name: strings.TrimSpace(name), Items: items}
	if err := site.CheckName(op, "consistency group", g.Name); err != nil {
		return g, err
	}
	return g, r.st.Tx(ctx, func(tx *sql.Tx) error {
		members, err := r.members(ctx, tx, op, items)
		if err != nil {
			return err
		}
		g.Fabric = members[0].Fabric
		if err := vaultdb.InsertGroup(ctx, tx, g, r.st.Now()); err != nil {
			return err
		}
		return r.set(ctx, tx, g, members, nil, by, "was created")
	})
}

// SetGroupMembers replaces a group's members.
func (r *Registry) SetGroupMembers(ctx context.Context, id dr.GroupID, items []dr.ItemID, by string) error {
	return r.st.Tx(ctx, func(tx *sql.Tx) error {
		g, err := vaultdb.Group(ctx, tx, id)
		if err != nil {
			return err
		}
		members, err := r.members(ctx, tx, "vault.SetGroupMembers", items)
		if err != nil {
			return err
		}
		if members[0].Fabric != g.Fabric {
			return dr.New(dr.KindInvalid, dr.CodeOperationNotAllowed, "vault.SetGroupMembers", "%s is in another site than the consistency group %q", members[0].VMName, g.Name)
		}
		return r.set(ctx, tx, g, members, g.Items, by, "has new members")
	})
}

// members reads and checks the items of a group.
func (r *Registry) members(ctx context.Context, tx *sql.Tx, op string, items []dr.ItemID) ([]vaultdb.Item, error) {
	if len(items) == 0 || len(items) > MaxMembers {
		return nil, dr.Errorf(dr.KindInvalid, op, "a consistency group has 1 to %d members, not %d", MaxMembers, len(items))
	}
	var out []vaultdb.Item
	for _, id := range items {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		if len(out) > 0 && it.SourceAgent != out[0].SourceAgent {
			return nil, dr.New(dr.KindInvalid, dr.CodeOperationNotAllowed, op, "%s is replicated by host %s and %s by host %s: only the VMs of one host can be cut at one instant",
				out[0].VMName, r.host(ctx, tx, out[0]), it.VMName, r.host(ctx, tx, it)).
				WithHint("move the VMs to one host, or make a group for each host")
		}
		out = append(out, it)
	}
	return out, nil
}

func (r *Registry) host(ctx context.Context, tx *sql.Tx, it vaultdb.Item) string {
	p, err := vaultdb.ProviderByID(ctx, tx, it.SourceAgent)
	if err != nil {
		return string(it.SourceAgent) // only a name for people
	}
	return p.Host
}

func (r *Registry) set(ctx context.Context, tx *sql.Tx, g dr.ConsistencyGroup, members []vaultdb.Item, former []dr.ItemID, by, what string) error {
	ids := make([]dr.ItemID, len(members))
	names := make([]string, len(members))
	for i, it := range members {
		ids[i], names[i] = it.ID, it.VMName
		r.st.Assigned(tx, it.SourceAgent)
		r.st.Changed(tx, "item", string(it.ID))
	}
	if err := r.tell(ctx, tx, former); err != nil {
		return err
	}
	if err := vaultdb.SetGroupMembers(ctx, tx, g.ID, ids); err != nil {
		return err
	}
	return r.st.Note(ctx, tx, vaultdb.Event{Kind: "group", By: by, Audit: true}, "consistency group %s %s: %s", g.Name, what, strings.Join(names, ", "))
}

// tell lets the agents of items look at their assignments.
func (r *Registry) tell(ctx context.Context, tx *sql.Tx, items []dr.ItemID) error {
	for _, id := range items {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if dr.KindOf(err) == dr.KindNotFound {
			continue
		}
		if err != nil {
			return err
		}
		r.st.Assigned(tx, it.SourceAgent)
	}
	return nil
}

// DeleteGroup removes a group. Its members stay protected, and their points
// stay what they are.
func (r *Registry) DeleteGroup(ctx context.Context, id dr.GroupID, by string) error {
	return r.st.Tx(ctx, func(tx *sql.Tx) error {
		g, err := vaultdb.Group(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := r.tell(ctx, tx, g.Items); err != nil {
			return err
		}
		if err := vaultdb.DeleteGroup(ctx, tx, id); err != nil {
			return err
		}
		return r.st.Note(ctx, tx, vaultdb.Event{Kind: "group", By: by, Audit: true}, "consistency group %s was removed", g.Name)
	})
}

// Groups lists the consistency groups by name.
func (r *Registry) Groups(ctx context.Context) ([]dr.ConsistencyGroup, error) {
	return state.Get(vaultdb.Groups(ctx, r.st.Q()))
}

// Group finds a consistency group.
func (r *Registry) Group(ctx context.Context, id dr.GroupID) (dr.ConsistencyGroup, error) {
	return state.Get(vaultdb.Group(ctx, r.st.Q(), id))
}

// GroupPoints lists the instants of a group that at least one member still has
// a point of, newest first.
func (r *Registry) GroupPoints(ctx context.Context, id dr.GroupID) ([]Point, error) {
	var out []Point
	err := r.st.DB.View(ctx, func(tx *sql.Tx) error {
		g, err := vaultdb.Group(ctx, tx, id)
		if err != nil {
			return err
		}
		items := map[dr.MachineID]dr.ItemID{}
		for _, m := range g.Items {
			it, err := vaultdb.ItemByID(ctx, tx, m)
			if err != nil {
				return err
			}
			items[it.Machine] = m
		}
		rows, err := vaultdb.GroupPoints(ctx, tx, id)
		if err != nil {
			return err
		}
		for len(rows) > 0 {
			n := 1
			for n < len(rows) && rows[n].GroupSeq == rows[0].GroupSeq {
				n++
			}
			if p := instant(g, items, rows[:n]); len(p.Points) > 0 {
				out = append(out, p)
			}
			rows = rows[n:]
		}
		return nil
	})
	return out, state.Outward(err)
}

// instant is what the points of one number amount to.
func instant(g dr.ConsistencyGroup, items map[dr.MachineID]dr.ItemID, rows []vaultdb.Point) Point {
	p := Point{Seq: rows[0].GroupSeq, Points: map[dr.ItemID]dr.RecoveryPoint{}, Consistency: dr.AppConsistent}
	order := map[dr.Consistency]int{dr.CrashConsistent: 0, dr.FileSystemConsistent: 1, dr.AppConsistent: 2}
	for _, r := range rows {
		p.Cut = max(p.Cut, r.GroupSize)
		id, ok := items[r.Machine]
		if !ok {
			continue // no longer a member
		}
		p.Points[id] = r.RecoveryPoint
		if r.Time.After(p.Time) {
			p.Time = r.Time
		}
		if order[r.Consistency] < order[p.Consistency] {
			p.Consistency = r.Consistency
		}
	}
	for _, id := range g.Items {
		if _, ok := p.Points[id]; !ok {
			p.Missing = append(p.Missing, id)
		}
	}
	p.Complete = len(p.Missing) == 0
	return p
}

// Reasons returns the reason for an item's health that it is where its group is not.
func Reasons(groups []dr.ConsistencyGroup, items []vaultdb.Item) map[dr.ItemID][]dr.HealthError {
	by := map[dr.ItemID]vaultdb.Item{}
	for _, it := range items {
		by[it.ID] = it
	}
	out := map[dr.ItemID][]dr.HealthError{}
	e, _ := dr.Lookup(dr.CodeGroupIncomplete)
	for _, g := range groups {
		for _, id := range g.Items {
			if a, b := by[g.Items[0]], by[id]; a.SourceAgent != b.SourceAgent {
				text := "The VMs " + a.VMName + " and " + b.VMName + " of consistency group " + g.Name + " are on different hosts: they can't be cut at one instant."
				out[id] = append(out[id], dr.HealthError{Code: e.Code, Severity: e.Severity, Message: text, Cause: text, Remedy: "Move the VM back, or remove it from the group."})
			}
		}
	}
	return out
}

// Assignments returns the groups of the items that an agent replicates, as
// the agent is told of them.
func Assignments(groups []dr.ConsistencyGroup, items []vaultdb.Item) map[dr.ItemID]*agentapi.Group {
	machines := map[dr.ItemID]dr.MachineID{}
	for _, it := range items {
		machines[it.ID] = it.Machine
	}
	out := map[dr.ItemID]*agentapi.Group{}
	for _, g := range groups {
		w := &agentapi.Group{ID: string(g.ID)}
		for _, id := range g.Items {
			if m, ok := machines[id]; ok {
				w.Members = append(w.Members, string(m))
				out[id] = w
			}
		}
	}
	return out
}
