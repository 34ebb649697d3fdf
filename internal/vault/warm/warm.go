// Package warm decides which items have a warm replica, which agent keeps it, and
// which point it is to be brought to. The agent of a cloud asks in intervals, says how
// far it is, and does the work; the vault moves no data.
//
// It promises: a point that an agent was asked for is not deleted while it is being
// applied; an agent is asked for a newer point only when it has said that it holds
// the last one, or can't; an item that has failed over is left alone until it is
// clear what becomes of it; what is not listed in an answer the agent removes.
package warm

import (
	"context"
	"database/sql"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/planner"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// keep is how many points of an item stay ready, as snapshots.
const keep = planner.WarmPoints

// Keeper answers the agents. Safe for concurrent use.
type Keeper struct {
	st    *state.State
	lease func(context.Context, replica.Reader) error
}

// New returns a Keeper. lease keeps a point from being deleted.
func New(st *state.State, lease func(context.Context, replica.Reader) error) *Keeper {
	return &Keeper{st: st, lease: lease}
}

// Sync follows the item's setting; call it whenever that is stored.
func Sync(ctx context.Context, tx *sql.Tx, it vaultdb.Item) error {
	_, err := vaultdb.WarmOf(ctx, tx, it.ID)
	switch {
	case !it.Settings.Cloud.Warm:
		return vaultdb.DeleteWarm(ctx, tx, it.ID)
	case dr.KindOf(err) == dr.KindNotFound:
		return vaultdb.SaveWarm(ctx, tx, vaultdb.Warm{Item: it.ID})
	}
	return err
}

// Warm takes an agent's report and says what it is to keep.
func (k *Keeper) Warm(ctx context.Context, agent dr.AgentID, req agentapi.WarmRequest) (agentapi.WarmResponse, error) {
	out := agentapi.WarmResponse{Replicas: []agentapi.WarmOrder{}}
	if err := k.st.Touch(ctx, agent, ""); err != nil {
		return out, err
	}
	p, err := vaultdb.ProviderByID(ctx, k.st.Q(), agent)
	if err != nil {
		return out, state.Outward(err)
	}
	if !p.HasRole(dr.RoleRecovery) {
		return out, dr.Errorf(dr.KindForbidden, "vault.Warm", "host %s does not have the recovery role", p.Host)
	}
	told := map[dr.ItemID]agentapi.WarmStatus{}
	for _, s := range req.Replicas {
		told[dr.ItemID(s.Item)] = s
	}
	all, err := vaultdb.Warms(ctx, k.st.Q())
	if err != nil {
		return out, state.Outward(err)
	}
	for _, w := range all {
		status, has := told[w.Item]
		w, mine, err := k.next(ctx, p, w, status, has)
		if err != nil {
			return out, err
		}
		if mine && w.Gen > 0 {
			out.Replicas = append(out.Replicas, agentapi.WarmOrder{Item: string(w.Item), Machine: string(w.Machine), Serving: w.Serving, Generation: uint32(w.Gen), N: w.N, Keep: keep})
		}
	}
	return out, nil
}

// next stores what the agent says of a replica, and its next point. mine tells whether the agent is to keep it.
func (k *Keeper) next(ctx context.Context, p vaultdb.Provider, w vaultdb.Warm, told agentapi.WarmStatus, has bool) (_ vaultdb.Warm, mine bool, err error) {
	err = k.st.Tx(ctx, func(tx *sql.Tx) error {
		mine = false
		it, err := vaultdb.LockItem(ctx, tx, w.Item)
		if err == nil {
			w, err = vaultdb.WarmOf(ctx, tx, w.Item)
		}
		if dr.KindOf(err) == dr.KindNotFound {
			return nil // disabled meanwhile
		}
		if err != nil {
			return err
		}
		if w.Agent != p.ID {
			if mine, err = k.takes(ctx, tx, it, w, p); err != nil || !mine {
				return err
			}
			w.Agent, w.Serving, w.Held = p.ID, state.NewID(), dr.WarmReplica{Bytes: w.Held.Bytes, Requests: w.Held.Requests}
		}
		if it.Failover == dr.FailoverCommitted { // what it was kept ready for has happened
			return vaultdb.DeleteWarm(ctx, tx, it.ID)
		}
		mine = true
		if has {
			if err := k.report(ctx, tx, &w, told); err != nil {
				return err
			}
		}
		if err := k.order(ctx, tx, it, &w); err != nil {
			return err
		}
		k.st.Changed(tx, "item", string(it.ID))
		return vaultdb.SaveWarm(ctx, tx, w)
	})
	return w, mine, err
}

// takes decides whether an agent gets a replica that it does not have: it is of
// the site where the item recovers, and the agent that has it is gone.
func (k *Keeper) takes(ctx context.Context, q sqldb.Querier, it vaultdb.Item, w vaultdb.Warm, p vaultdb.Provider) (bool, error) {
	if it.SourceAgent == "" || it.Protection == dr.Disabling {
		return false, nil
	}
	at, err := site.RecoveryFabric(ctx, q, it.Fabric, it.VM, it.Policy, it.SourceAgent)
	if dr.CodeOf(err) == dr.CodeNoRecoverySite || err == nil && at != p.Fabric {
		return false, nil
	}
	if err != nil || w.Agent == "" {
		return err == nil, err
	}
	old, err := vaultdb.ProviderByID(ctx, q, w.Agent)
	if dr.KindOf(err) == dr.KindNotFound {
		return true, nil
	}
	return !k.st.Connected(old.Provider), err
}

// report stores what the agent says.
func (k *Keeper) report(ctx context.Context, q sqldb.Querier, w *vaultdb.Warm, told agentapi.WarmStatus) error {
	h := &w.Held
	h.At, h.Busy, h.Problem = k.st.Now(), told.Busy, ""
	h.Bytes += max(told.Bytes, 0)
	h.Requests += max(told.Requests, 0)
	if told.Error != nil {
		h.Problem = state.Clip(told.Error.Message)
	}
	if told.Generation == 0 || h.Gen == dr.Generation(told.Generation) && h.N == told.N {
		return nil
	}
	h.Gen, h.N = dr.Generation(told.Generation), told.N
	point, err := vaultdb.PointByNumber(ctx, q, w.Machine, h.Gen, h.N)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if err == nil { // else retention has dropped it meanwhile
		h.Time = point.Time
	}
	return nil
}

// order asks for the newest point, once the last one is held or can't be.
func (k *Keeper) order(ctx context.Context, q sqldb.Querier, it vaultdb.Item, w *vaultdb.Warm) error {
	held := w.Held.Gen == w.Gen && w.Held.N == w.N
	if it.Protection != dr.Protected || it.Active != dr.AtPrimary || w.Gen > 0 && !held && w.Held.Problem == "" {
		return nil
	}
	point, err := vaultdb.LatestPoint(ctx, q, it.Machine, "")
	if dr.CodeOf(err) == dr.CodeNoRecoveryPoint || err == nil && point.Gen == w.Gen && point.N == w.N {
		return nil
	}
	if err != nil {
		return err
	}
	w.Gen, w.N = point.Gen, point.N
	// Under the lease of the point before, what both need is kept already.
	return k.lease(ctx, replica.WarmLease(*w))
}

// Of tells of an item's warm replica; ok is false if it has none.
func (k *Keeper) Of(ctx context.Context, item dr.ItemID) (w dr.WarmReplica, ok bool, err error) {
	row, err := vaultdb.WarmOf(ctx, k.st.Q(), item)
	if dr.KindOf(err) == dr.KindNotFound {
		return w, false, nil
	}
	return row.Held, err == nil, state.Outward(err)
}
