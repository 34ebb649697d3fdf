package vault

import (
	"context"
	"database/sql"
	"errors"

	"holdfast/internal/dr"
	"holdfast/internal/vault/group"
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/replication"
	"holdfast/internal/vault/shape"
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
	more, err := v.reasons(ctx, items)
	if err != nil {
		return err
	}
	policies, err := vaultdb.Policies(ctx, v.st.Q())
	if err != nil {
		return state.Outward(err)
	}
	stats, err := v.AllStatistics(ctx)
	if err != nil {
		return err
	}
	ruled := map[dr.PolicyID]dr.Policy{}
	for _, p := range policies {
		ruled[p.ID] = p
	}
	now := v.st.Now()
	var failed []error
	for _, it := range items {
		p, policy, st := known[it.SourceAgent], ruled[it.Policy], status[it.ID].ReplicationStatus
		failed = append(failed, v.Control.Due(ctx, it, policy), v.Watcher.Due(ctx, it))
		replication.Overlay(&st, it, policy, now)
		_, errs := health.Assess(health.Input{Item: it.ProtectedItem, Policy: policy, Status: st, Stats: stats[it.ID], Now: now, LastSeen: p.LastSeen,
			Connected: v.st.Connected(p) || p.ID != "" && v.st.Settling()})
		for i := range errs {
			if errs[i].Code == dr.CodePaused && it.More.PauseReason != "" {
				errs[i].Cause = "Somebody paused the replication: " + it.More.PauseReason + "."
			}
		}
		errs = append(errs, more[it.ID]...)
		h := worst(errs)
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
	return errors.Join(failed...)
}

// reasons gathers what the vault's parts add to the reasons for the items' health.
func (v *Vault) reasons(ctx context.Context, items []vaultdb.Item) (map[dr.ItemID][]dr.HealthError, error) {
	names := map[dr.ItemID]string{}
	for _, it := range items {
		names[it.ID] = it.VMName
	}
	out, err := v.Keeper.Reasons(ctx, names)
	if err != nil {
		return nil, err
	}
	alarms, err := v.Catalogue.Reasons(ctx, names)
	if err != nil {
		return nil, err
	}
	groups, err := vaultdb.Groups(ctx, v.st.Q())
	if err != nil {
		return nil, state.Outward(err)
	}
	for _, more := range []map[dr.ItemID][]dr.HealthError{alarms, group.Reasons(groups, items)} {
		for id, errs := range more {
			out[id] = append(out[id], errs...)
		}
	}
	vms := map[dr.FabricID]map[dr.VMID]dr.VM{}
	for _, it := range items {
		if vms[it.Fabric] == nil {
			list, err := vaultdb.VMs(ctx, v.st.Q(), it.Fabric)
			if err != nil {
				return nil, state.Outward(err)
			}
			vms[it.Fabric] = map[dr.VMID]dr.VM{}
			for _, vm := range list {
				vms[it.Fabric][vm.ID] = vm
			}
		}
		out[it.ID] = append(out[it.ID], shape.Reasons(it, vms[it.Fabric][it.VM])...)
	}
	return out, nil
}

func worst(errs []dr.HealthError) dr.Health {
	h := dr.HealthNormal
	for _, e := range errs {
		switch {
		case e.Severity == dr.HealthCritical:
			return dr.HealthCritical
		case e.Severity == dr.HealthWarning:
			h = dr.HealthWarning
		}
	}
	return h
}
