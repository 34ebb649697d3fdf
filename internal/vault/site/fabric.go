// Package site is what a vault knows of its sites: fabrics, registration keys,
// enrolled agents with their certificates and VMs, replication policies and
// container mappings. Names are compared without case.
//
// It promises that a registration key's secret is never stored, that a revoked
// or replaced certificate is refused from the next request on, and that a VM
// belongs to one agent at a time.
package site

import (
	"context"
	"database/sql"
	"regexp"
	"sync"
	"time"

	"holdfast/internal/authn"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// MaxKeyValidity is how long a registration key is good at most.
const MaxKeyValidity = 5 * 24 * time.Hour

// Sites knows the sites. It is safe for concurrent use.
type Sites struct {
	st        *state.State
	jobs      *work.Board
	ca        func() *authn.CA
	publicURL string

	mu        sync.Mutex
	inventory map[dr.AgentID]bool // sent one since this process started
}

// New makes Sites; it does no I/O. ca is asked for the vault's authority, which
// is known from the start on; publicURL goes into registration keys.
func New(st *state.State, jobs *work.Board, ca func() *authn.CA, publicURL string) *Sites {
	return &Sites{st: st, jobs: jobs, ca: ca, publicURL: publicURL, inventory: map[dr.AgentID]bool{}}
}

// RegistrationKey is what a key file is made of. Secret is shown once and never stored.
type RegistrationKey struct {
	ID        string
	Fabric    dr.FabricID
	Secret    string
	OneTime   bool
	Created   time.Time
	Expires   time.Time
	Revoked   bool
	Uses      int
	VaultURL  string
	CAPin     string // SHA-256 of the vault CA's public key, hex
	CreatedBy string
}

// KeyRequest asks for a registration key.
type KeyRequest struct {
	Fabric   string
	OneTime  bool
	Validity time.Duration // 0 = five days, the maximum
	By       string
}

// Names as in resource paths.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._ -]{0,61}[A-Za-z0-9])?$`)

// CheckName refuses what can't be a segment of a resource path.
func CheckName(op, what, name string) error {
	if !nameForm.MatchString(name) {
		return dr.New(dr.KindInvalid, dr.CodeNameInvalid, op, "%q is not a name for a %s: use 1 to 63 letters, digits, hyphens, dots and underscores", name, what)
	}
	return nil
}

// CreateFabric makes a site. Making it again with the same type is the same site.
func (s *Sites) CreateFabric(ctx context.Context, name string, t dr.FabricType, by string) (dr.JobID, error) {
	const op = "vault.CreateFabric"
	if err := CheckName(op, "site", name); err != nil {
		return "", err
	}
	switch t {
	case dr.HyperVSite, dr.KVMSite, dr.VMMSite, dr.AzureSite:
	default:
		return "", dr.Errorf(dr.KindInvalid, op, "%q is not a type of site", t)
	}
	f := dr.Fabric{ID: dr.FabricID(state.NewID()), Name: name, Type: t, Created: s.st.Now()}
	return s.jobs.Quick(ctx, work.Quick{Kind: "CreateSite", TargetType: "Server", Target: name, TargetID: string(f.ID), By: by}, func(tx *sql.Tx) error {
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
func (s *Sites) Fabric(ctx context.Context, name string) (dr.Fabric, error) {
	return state.Get(vaultdb.FabricByName(ctx, s.st.Q(), name))
}

// Fabrics lists all sites.
func (s *Sites) Fabrics(ctx context.Context) ([]dr.Fabric, error) {
	return state.Get(vaultdb.Fabrics(ctx, s.st.Q()))
}

// RemoveFabric removes a site that has no protected items and no hosts. With
// purge its hosts are revoked and its items forgotten first, without asking
// any agent; replicas stay in the store.
func (s *Sites) RemoveFabric(ctx context.Context, name string, purge bool, by string) (dr.JobID, error) {
	const op = "vault.RemoveFabric"
	f, err := s.Fabric(ctx, name)
	if err != nil {
		return "", err
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: "DeleteSite", TargetType: "Server", Target: f.Name, TargetID: string(f.ID), By: by, Audit: true}, func(tx *sql.Tx) error {
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
			if err := s.revoke(ctx, tx, p); err != nil {
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
func (s *Sites) VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error) {
	return state.Get(vaultdb.VMs(ctx, s.st.Q(), f))
}

// VM finds a discovered VM.
func (s *Sites) VM(ctx context.Context, f dr.FabricID, vm dr.VMID) (dr.VM, error) {
	return state.Get(vaultdb.VM(ctx, s.st.Q(), f, vm))
}

// Networks lists the networks of a site's hosts.
func (s *Sites) Networks(ctx context.Context, f dr.FabricID) ([]vaultdb.Network, error) {
	return state.Get(vaultdb.Networks(ctx, s.st.Q(), f))
}

// Providers lists the registered agents of a site, of all sites for "".
func (s *Sites) Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) {
	rows, err := vaultdb.Providers(ctx, s.st.Q(), f)
	out := make([]dr.Provider, len(rows))
	for i, r := range rows {
		out[i] = r.Provider
	}
	return out, state.Outward(err)
}

// Provider finds a registered agent of a site.
func (s *Sites) Provider(ctx context.Context, f dr.FabricID, id dr.AgentID) (dr.Provider, error) {
	p, err := s.provider(ctx, f, id)
	return p.Provider, err
}

func (s *Sites) provider(ctx context.Context, f dr.FabricID, id dr.AgentID) (vaultdb.Provider, error) {
	p, err := vaultdb.ProviderByID(ctx, s.st.Q(), dr.AgentID(vaultdb.Key(string(id))))
	if err == nil && (p.Revoked || f != "" && p.Fabric != f) {
		err = dr.New(dr.KindNotFound, dr.CodeNotFound, "vault.Provider", "agent %q does not exist in this site", id)
	}
	return p, state.Outward(err)
}

// RemoveProvider revokes an agent: its certificate is refused from now on and
// its VMs are forgotten. While it protects items or runs recovery VMs, purge is needed.
func (s *Sites) RemoveProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error) {
	p, err := s.provider(ctx, f, id)
	if err != nil {
		return "", err
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: "DeleteDra", TargetType: "Server", Target: p.Host, TargetID: string(p.ID), By: by, Audit: true}, func(tx *sql.Tx) error {
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
		return s.revoke(ctx, tx, p)
	})
}

func (s *Sites) revoke(ctx context.Context, tx *sql.Tx, p vaultdb.Provider) error {
	p.Revoked = true
	if err := vaultdb.SaveProvider(ctx, tx, p); err != nil {
		return err
	}
	s.st.Assigned(tx, p.ID)
	s.st.Changed(tx, "site", string(p.Fabric))
	return vaultdb.DeleteVMsOfAgent(ctx, tx, p.ID)
}

// IssueKey makes a registration key of a site. Its secret is in the answer and nowhere else.
func (s *Sites) IssueKey(ctx context.Context, r KeyRequest) (RegistrationKey, error) {
	const op = "vault.IssueKey"
	if r.Validity <= 0 {
		r.Validity = MaxKeyValidity
	}
	if r.Validity > MaxKeyValidity {
		return RegistrationKey{}, dr.Errorf(dr.KindInvalid, op, "a registration key is good for at most %v, not %v", MaxKeyValidity, r.Validity)
	}
	f, err := s.Fabric(ctx, r.Fabric)
	if err != nil {
		return RegistrationKey{}, err
	}
	now := s.st.Now()
	k := RegistrationKey{ID: state.NewID(), Fabric: f.ID, Secret: authn.NewSecret("hfk_"), OneTime: r.OneTime, Created: now, Expires: now.Add(r.Validity),
		VaultURL: s.publicURL, CAPin: s.ca().Pin(), CreatedBy: r.By}
	return k, s.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.InsertKey(ctx, tx, vaultdb.RegistrationKey{ID: k.ID, Fabric: f.ID, Hash: []byte(authn.HashSecret(k.Secret)),
			OneTime: k.OneTime, Created: k.Created, Expires: k.Expires, CreatedBy: r.By}); err != nil {
			return err
		}
		return s.st.Note(ctx, tx, vaultdb.Event{Kind: "registrationKey", By: r.By, Audit: true}, "registration key %s of site %s was issued", k.ID, f.Name)
	})
}

// Keys lists the registration keys of a site, without their secrets.
func (s *Sites) Keys(ctx context.Context, fabric string) ([]RegistrationKey, error) {
	f, err := s.Fabric(ctx, fabric)
	if err != nil {
		return nil, err
	}
	rows, err := vaultdb.Keys(ctx, s.st.Q(), f.ID)
	out := make([]RegistrationKey, len(rows))
	for i, k := range rows {
		out[i] = RegistrationKey{ID: k.ID, Fabric: k.Fabric, OneTime: k.OneTime, Created: k.Created, Expires: k.Expires, Revoked: k.Revoked, Uses: k.Uses, CreatedBy: k.CreatedBy}
	}
	return out, state.Outward(err)
}

// RevokeKey makes a registration key useless. Hosts that used it stay registered.
func (s *Sites) RevokeKey(ctx context.Context, id, by string) error {
	return s.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.RevokeKey(ctx, tx, id); err != nil {
			return err
		}
		return s.st.Note(ctx, tx, vaultdb.Event{Kind: "registrationKey", By: by, Audit: true}, "registration key %s was revoked", id)
	})
}
