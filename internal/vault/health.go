package vault

import (
	"context"
	"database/sql"

	"holdfast/internal/dr"
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// assessAll brings the health of all items up to date.
func (v *Vault) assessAll(ctx context.Context) error {
	items, err := vaultdb.Items(ctx, v.st.Q(), "")
	if err != nil {
		return state.Outward(err)
	}
	status, err := vaultdb.Statuses(ctx, v.st.Q())
	if err != nil {
		return state.Outward(err)
	}
	agents, err := vaultdb.Providers(ctx, v.st.Q(), "")
	if err != nil {
		return state.Outward(err)
	}
	known := map[dr.AgentID]dr.Provider{}
	for _, p := range agents {
		known[p.ID] = p.Provider
	}
	now := v.st.Now()
	for _, it := range items {
		p := known[it.SourceAgent]
		h, errs := health.Assess(health.Input{Item: it.ProtectedItem, Status: status[it.ID], Now: now, LastSeen: p.LastSeen,
			Connected: v.st.Connected(p) || p.ID != "" && v.st.Settling()})
		health.KeepSince(errs, it.HealthErrors, now)
		if h == it.Health && health.SameReasons(errs, it.HealthErrors) {
			continue
		}
		err := v.st.Tx(ctx, func(tx *sql.Tx) error {
			v.st.Changed(tx, "item", string(it.ID))
			if h != it.Health {
				if err := v.st.Note(ctx, tx, vaultdb.Event{Kind: "health", Item: it.ID, By: "vault"}, "health of %s: %s → %s%s", it.VMName, it.Health, h, health.FirstReason(errs)); err != nil {
					return err
				}
			}
			return vaultdb.SetHealth(ctx, tx, it.ID, h, errs)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
