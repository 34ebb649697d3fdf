package replica

import (
	"context"
	"database/sql"
	"slices"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/store"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// OpenGeneration gives an item its next generation, written by agent ("" =
// nobody: the item is fenced), based on the newest recovery point. purpose is
// what it is for; together with the job it makes the call repeatable: called
// again by the same step of the same job it finds its generation and goes on.
//
// The order is what keeps a stale writer out: first the old generation is
// closed in the database, so that nothing is authorised any more; then what it
// has committed is taken from the store, and the base is fixed; then the
// object is created in the store; only then the generation counts as written
// and is handed to its agent.
func (r *Replicas) OpenGeneration(ctx context.Context, s *job.StepContext, item dr.ItemID, agent dr.AgentID, purpose string) (vaultdb.Generation, error) {
	const op = "vault.OpenGeneration"
	reason := purpose + ": job " + s.Job().ID
	var it vaultdb.Item
	var g vaultdb.Generation
	read := func() error {
		var err error
		it, err = vaultdb.ItemByID(ctx, r.st.Q(), item)
		return state.Outward(err)
	}
	if err := read(); err != nil {
		return g, err
	}
	stored, err := r.store.Generations(ctx, it.Machine) // of an older copy of the database there may be more
	if err != nil {
		return g, err
	}
	var seed *cut.Ref
	if it.More.Seed {
		if seed, err = r.seedOf(ctx, it.Machine); err != nil {
			return g, err
		}
	}
	err = s.Commit(ctx, func(tx *sql.Tx) error {
		if it, err = vaultdb.LockItem(ctx, tx, item); err != nil {
			return err
		}
		gens, err := vaultdb.Generations(ctx, tx, it.Machine)
		if err != nil {
			return err
		}
		if have, ok := Current(it, gens); ok && have.Reason == reason && have.Agent == agent && !foreign(have, stored) {
			g = have
			return nil
		}
		next := it.Gen
		for _, x := range stored {
			next = max(next, x.Gen)
		}
		g = vaultdb.Generation{Machine: it.Machine, Gen: next + 1, Agent: agent, Reason: reason, Created: r.st.Now()}
		it.Gen = g.Gen
		if err := vaultdb.SaveGeneration(ctx, tx, g); err != nil {
			return err
		}
		return r.st.SaveItem(ctx, tx, it)
	})
	if err != nil || g.Written {
		return g, err
	}
	if err := r.Reconcile(ctx, it, false); err != nil {
		return g, err
	}
	err = s.Commit(ctx, func(tx *sql.Tx) error {
		if it, err = vaultdb.LockItem(ctx, tx, item); err != nil {
			return err
		}
		if g.BaseGen == 0 { // an earlier run may have fixed it, and its object may be in the store
			p, err := vaultdb.LatestPoint(ctx, tx, it.Machine, "")
			switch {
			case err == nil:
				g.BaseGen, g.BaseN, g.BaseHash = p.Gen, p.N, p.Hash
			case dr.CodeOf(err) != dr.CodeNoRecoveryPoint:
				return err
			case seed != nil:
				g.BaseGen, g.BaseN, g.BaseHash, g.Seeded = seed.Gen, seed.N, seed.Hash.String(), true
			}
		}
		return vaultdb.SaveGeneration(ctx, tx, g)
	})
	if err != nil {
		return g, err
	}
	if g.Disks, err = r.baseDisks(ctx, it, g); err != nil {
		return g, err
	}
	info := cut.GenInfo{Machine: g.Machine, Gen: g.Gen, Agent: g.Agent, Reason: g.Reason, Time: g.Created}
	if g.BaseGen != 0 {
		info.Base = cut.Ref{Gen: g.BaseGen, N: g.BaseN}
		if err := info.Base.Hash.UnmarshalText([]byte(g.BaseHash)); err != nil {
			return g, dr.Errorf(dr.KindCorrupt, op, "the catalogue's hash of %s is damaged: %w", dr.PointName(g.BaseGen, g.BaseN), err)
		}
	}
	if err := store.WriteGeneration(ctx, r.cfg.Bucket, info); err != nil {
		return g, err
	}
	g.Written = true
	return g, s.Commit(ctx, func(tx *sql.Tx) error {
		if it, err = vaultdb.LockItem(ctx, tx, item); err != nil {
			return err
		}
		if err := vaultdb.SaveGeneration(ctx, tx, g); err != nil {
			return err
		}
		return r.st.SaveItem(ctx, tx, it)
	})
}

// DocDisks is the kind of an item's document of all disks that its history ever listed.
const DocDisks = "disks"

// MergeDisks returns what a history knows of its disks after a cut with these.
func MergeDisks(have []vaultdb.Disk, now []cut.Disk) []vaultdb.Disk {
	out := slices.Clone(have)
	for i := range out {
		out[i].Size = 0
	}
	for _, d := range now {
		x := vaultdb.Disk{ID: d.ID, Index: d.Index, Size: d.Size}
		if i := slices.IndexFunc(out, func(o vaultdb.Disk) bool { return o.Index == d.Index }); i >= 0 {
			out[i] = x
		} else {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b vaultdb.Disk) int { return int(a.Index) - int(b.Index) })
	return out
}

// baseDisks are all disks that the history up to a generation's base ever
// listed. Those of the base come from the store; if that can't be read now, the
// vault's own note of them has to do: a failover does not wait for it.
func (r *Replicas) baseDisks(ctx context.Context, it vaultdb.Item, g vaultdb.Generation) ([]vaultdb.Disk, error) {
	have, err := vaultdb.Doc[[]vaultdb.Disk](ctx, r.st.Q(), it.ID, DocDisks)
	if err != nil || g.BaseGen == 0 {
		return nil, state.Outward(err)
	}
	h, err := r.store.Names(ctx, it.Machine)
	if err == nil {
		for _, c := range h.Path {
			if c.Gen != g.BaseGen || c.N != g.BaseN {
				continue
			}
			var base store.CutInfo
			if base, err = r.store.ReadElement(ctx, it.Machine, c); err == nil {
				return MergeDisks(have, base.Commit.Disks), nil
			}
		}
	}
	if err != nil && g.Agent != "" && dr.KindOf(err) == dr.KindUnavailable {
		return nil, err
	}
	r.st.Log.Warn("the disks of a generation's base could not be read", "vm", it.VMName, "machine", it.Machine, "base", dr.PointName(g.BaseGen, g.BaseN), "err", err)
	return have, nil
}

// foreign reports that the store has another generation under g's number.
func foreign(g vaultdb.Generation, stored []cut.GenInfo) bool {
	for _, x := range stored {
		if x.Gen == g.Gen {
			return x.Reason != g.Reason || x.Agent != g.Agent
		}
	}
	return false
}

// SourceWrites reports whether the item's source agent holds the current
// generation: nothing has been fenced.
func (r *Replicas) SourceWrites(ctx context.Context, it vaultdb.Item) (bool, error) {
	gens, err := vaultdb.Generations(ctx, r.st.Q(), it.Machine)
	if err != nil {
		return false, state.Outward(err)
	}
	g, ok := Current(it, gens)
	return ok && g.Written && g.Agent == it.SourceAgent, nil
}
