package vault

import (
	"context"
	"database/sql"
	"regexp"
	"time"

	"holdfast/internal/authn"
	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// MaxKeyValidity is how long a registration key is good at most.
const MaxKeyValidity = 5 * 24 * time.Hour

// Names as in resource paths.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._ -]{0,61}[A-Za-z0-9])?$`)

func checkName(op, what, name string) error {
	if !nameForm.MatchString(name) {
		return dr.New(dr.KindInvalid, dr.CodeNameInvalid, op, "%q is not a name for a %s: use 1 to 63 letters, digits, hyphens, dots and underscores", name, what)
	}
	return nil
}

// CreateFabric makes a site. Making it again with the same type is the same site.
func (v *Vault) CreateFabric(ctx context.Context, name string, t dr.FabricType, by string) (dr.JobID, error) {
	const op = "vault.CreateFabric"
	if err := checkName(op, "site", name); err != nil {
		return "", err
	}
	switch t {
	case dr.HyperVSite, dr.KVMSite, dr.VMMSite:
	default:
		return "", dr.Errorf(dr.KindInvalid, op, "%q is not a type of site", t)
	}
	f := dr.Fabric{ID: dr.FabricID(newID()), Name: name, Type: t, Created: v.now()}
	return v.quick(ctx, quickJob{kind: "CreateSite", targetType: "Server", target: name, targetID: string(f.ID), by: by}, func(tx *sql.Tx) error {
		have, err := vaultdb.FabricByName(ctx, tx, name)
		switch {
		case err == nil && have.Type == t:
			return nil
		case err != nil && dr.KindOf(err) != dr.KindNotFound:
			return err
		}
		return vaultdb.InsertFabric(ctx, tx, f)
	})
}

// Fabric finds a site by name.
func (v *Vault) Fabric(ctx context.Context, name string) (dr.Fabric, error) {
	return get(vaultdb.FabricByName(ctx, v.q(), name))
}

// Fabrics lists all sites.
func (v *Vault) Fabrics(ctx context.Context) ([]dr.Fabric, error) {
	return get(vaultdb.Fabrics(ctx, v.q()))
}

// RemoveFabric removes a site that has no protected items and no hosts. With
// purge its hosts are revoked and its items forgotten first, without asking
// any agent; replicas stay in the store.
func (v *Vault) RemoveFabric(ctx context.Context, name string, purge bool, by string) (dr.JobID, error) {
	const op = "vault.RemoveFabric"
	f, err := v.Fabric(ctx, name)
	if err != nil {
		return "", err
	}
	return v.quick(ctx, quickJob{kind: "DeleteSite", targetType: "Server", target: f.Name, targetID: string(f.ID), by: by, audit: true}, func(tx *sql.Tx) error {
		items, err := vaultdb.Items(ctx, tx, f.ID)
		if err != nil {
			return err
		}
		agents, err := vaultdb.Providers(ctx, tx, f.ID)
		if err != nil {
			return err
		}
		if !purge && len(items)+len(agents) > 0 {
			return dr.New(dr.KindConflict, dr.CodeFabricNotEmpty, op, "site %q has %d protected items and %d registered hosts", f.Name, len(items), len(agents))
		}
		for _, it := range items {
			if it.Job != "" {
				return dr.New(dr.KindConflict, dr.CodeJobInProgress, op, "job %s of %s is running", it.Job, it.VMName)
			}
			if err := vaultdb.DeleteItem(ctx, tx, it); err != nil {
				return err
			}
		}
		for _, p := range agents {
			if err := v.revoke(ctx, tx, p); err != nil {
				return err
			}
		}
		maps, err := vaultdb.Mappings(ctx, tx, f.ID)
		if err != nil {
			return err
		}
		for _, m := range maps {
			if err := vaultdb.DeleteMapping(ctx, tx, f.ID, m.Name); err != nil {
				return err
			}
		}
		return vaultdb.DeleteFabric(ctx, tx, f.ID)
	})
}

// VMs lists the discovered VMs of a site, protected or not.
func (v *Vault) VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error) {
	return get(vaultdb.VMs(ctx, v.q(), f))
}

// VM finds a discovered VM.
func (v *Vault) VM(ctx context.Context, f dr.FabricID, vm dr.VMID) (dr.VM, error) {
	return get(vaultdb.VM(ctx, v.q(), f, vm))
}

// Networks lists the networks of a site's hosts.
func (v *Vault) Networks(ctx context.Context, f dr.FabricID) ([]vaultdb.Network, error) {
	return get(vaultdb.Networks(ctx, v.q(), f))
}

// Providers lists the registered agents of a site, of all sites for "".
func (v *Vault) Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) {
	rows, err := vaultdb.Providers(ctx, v.q(), f)
	out := make([]dr.Provider, len(rows))
	for i, r := range rows {
		out[i] = r.Provider
	}
	return out, outward(err)
}

// Provider finds a registered agent of a site.
func (v *Vault) Provider(ctx context.Context, f dr.FabricID, id dr.AgentID) (dr.Provider, error) {
	p, err := v.provider(ctx, f, id)
	return p.Provider, err
}

func (v *Vault) provider(ctx context.Context, f dr.FabricID, id dr.AgentID) (vaultdb.Provider, error) {
	p, err := vaultdb.ProviderByID(ctx, v.q(), dr.AgentID(vaultdb.Key(string(id))))
	if err == nil && (p.Revoked || f != "" && p.Fabric != f) {
		err = dr.New(dr.KindNotFound, dr.CodeNotFound, "vault.Provider", "agent %q does not exist in this site", id)
	}
	return p, outward(err)
}

// Connected reports whether an agent has been heard of within three long polls.
func (v *Vault) Connected(p dr.Provider) bool {
	return !p.Revoked && v.now().Sub(p.LastSeen) <= 3*v.cfg.PollWait
}

// settling reports that the vault started so recently that an agent which is
// not heard of may just not have polled yet.
func (v *Vault) settling() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.began.IsZero() || v.now().Sub(v.began) <= 2*v.cfg.PollWait
}

// RemoveProvider revokes an agent: its certificate is refused from now on and
// its VMs are forgotten. While it protects items or runs recovery VMs, purge is needed.
func (v *Vault) RemoveProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error) {
	p, err := v.provider(ctx, f, id)
	if err != nil {
		return "", err
	}
	return v.quick(ctx, quickJob{kind: "DeleteDra", targetType: "Server", target: p.Host, targetID: string(p.ID), by: by, audit: true}, func(tx *sql.Tx) error {
		items, err := vaultdb.ItemsOfSource(ctx, tx, p.ID)
		if err != nil {
			return err
		}
		all, err := vaultdb.Servings(ctx, tx, "")
		if err != nil {
			return err
		}
		runs := 0
		for _, s := range all {
			if s.Agent == p.ID {
				runs++
			}
		}
		if !purge && len(items)+runs > 0 {
			return dr.New(dr.KindConflict, dr.CodeFabricNotEmpty, "vault.RemoveProvider", "host %s still protects %d items and runs %d recovery VMs", p.Host, len(items), runs)
		}
		return v.revoke(ctx, tx, p)
	})
}

func (v *Vault) revoke(ctx context.Context, tx *sql.Tx, p vaultdb.Provider) error {
	p.Revoked = true
	if err := vaultdb.SaveProvider(ctx, tx, p); err != nil {
		return err
	}
	v.db.NotifyTx(tx, topicAssign, string(p.ID))
	v.db.NotifyTx(tx, topicChange, "site/"+string(p.Fabric))
	return vaultdb.DeleteVMsOfAgent(ctx, tx, p.ID)
}

// IssueKey makes a registration key of a site. Its secret is in the answer and nowhere else.
func (v *Vault) IssueKey(ctx context.Context, r KeyRequest) (RegistrationKey, error) {
	const op = "vault.IssueKey"
	if r.Validity <= 0 {
		r.Validity = MaxKeyValidity
	}
	if r.Validity > MaxKeyValidity {
		return RegistrationKey{}, dr.Errorf(dr.KindInvalid, op, "a registration key is good for at most %v, not %v", MaxKeyValidity, r.Validity)
	}
	f, err := v.Fabric(ctx, r.Fabric)
	if err != nil {
		return RegistrationKey{}, err
	}
	_, pin := v.CA()
	now := v.now()
	k := RegistrationKey{ID: newID(), Fabric: f.ID, Secret: authn.NewSecret("hfk_"), OneTime: r.OneTime, Created: now, Expires: now.Add(r.Validity),
		VaultURL: v.cfg.PublicURL, CAPin: pin, CreatedBy: r.By}
	return k, v.tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.InsertKey(ctx, tx, vaultdb.RegistrationKey{ID: k.ID, Fabric: f.ID, Hash: []byte(authn.HashSecret(k.Secret)),
			OneTime: k.OneTime, Created: k.Created, Expires: k.Expires, CreatedBy: r.By}); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: "registrationKey", By: r.By, Audit: true}, "registration key %s of site %s was issued", k.ID, f.Name)
	})
}

// Keys lists the registration keys of a site, without their secrets.
func (v *Vault) Keys(ctx context.Context, fabric string) ([]RegistrationKey, error) {
	f, err := v.Fabric(ctx, fabric)
	if err != nil {
		return nil, err
	}
	rows, err := vaultdb.Keys(ctx, v.q(), f.ID)
	out := make([]RegistrationKey, len(rows))
	for i, k := range rows {
		out[i] = RegistrationKey{ID: k.ID, Fabric: k.Fabric, OneTime: k.OneTime, Created: k.Created, Expires: k.Expires, Revoked: k.Revoked, Uses: k.Uses, CreatedBy: k.CreatedBy}
	}
	return out, outward(err)
}

// RevokeKey makes a registration key useless. Hosts that used it stay registered.
func (v *Vault) RevokeKey(ctx context.Context, id, by string) error {
	return v.tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.RevokeKey(ctx, tx, id); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: "registrationKey", By: by, Audit: true}, "registration key %s was revoked", id)
	})
}
