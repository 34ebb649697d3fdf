package site

import (
	"context"
	"database/sql"
	"regexp"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// Profiles are replication policies and the container mappings that use them.
// It is safe for concurrent use.
type Profiles struct {
	st    *state.State
	jobs  *work.Board
	sites *Sites
}

// NewProfiles makes Profiles; it does no I/O.
func NewProfiles(s *Sites) *Profiles { return &Profiles{st: s.st, jobs: s.jobs, sites: s} }

// SavePolicy makes a policy, or changes the settings of one. Agents take the
// new settings at their next poll.
func (s *Profiles) SavePolicy(ctx context.Context, p dr.Policy, create bool, by string) (dr.JobID, error) {
	const op = "vault.SavePolicy"
	if err := CheckName(op, "policy", p.Name); err != nil {
		return "", err
	}
	if err := p.Validate(); err != nil {
		return "", err
	}
	kind := "UpdateProtectionProfile"
	if create {
		kind = "AddProtectionProfile"
		p.ID, p.Created = dr.PolicyID(state.NewID()), s.st.Now()
	} else {
		old, err := s.Policy(ctx, p.Name)
		if err != nil {
			return "", err
		}
		p.ID, p.Name, p.Created = old.ID, old.Name, old.Created
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: kind, TargetType: "ProtectionProfile", Target: p.Name, TargetID: string(p.ID), By: by}, func(tx *sql.Tx) error {
		if !create {
			if err := s.notifyAll(ctx, tx); err != nil {
				return err
			}
			return vaultdb.UpdatePolicy(ctx, tx, p)
		}
		have, err := vaultdb.PolicyByName(ctx, tx, p.Name)
		switch {
		case dr.KindOf(err) == dr.KindNotFound:
			return vaultdb.InsertPolicy(ctx, tx, p)
		case err != nil:
			return err
		}
		// A create that comes again with the same settings is the same policy.
		same := p
		same.ID, same.Name, same.Created = have.ID, have.Name, have.Created
		if !same.Equal(have) {
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "policy %q exists already with other settings", have.Name)
		}
		return nil
	})
}

// notifyAll lets every waiting agent look at its assignments.
func (s *Profiles) notifyAll(ctx context.Context, tx *sql.Tx) error {
	agents, err := vaultdb.Providers(ctx, tx, "")
	for _, p := range agents {
		s.st.Assigned(tx, p.ID)
	}
	return err
}

// Policy finds a policy by name.
func (s *Profiles) Policy(ctx context.Context, name string) (dr.Policy, error) {
	return state.Get(vaultdb.PolicyByName(ctx, s.st.Q(), name))
}

// Policies lists all policies.
func (s *Profiles) Policies(ctx context.Context) ([]dr.Policy, error) {
	return state.Get(vaultdb.Policies(ctx, s.st.Q()))
}

// RemovePolicy removes a policy that nothing uses.
func (s *Profiles) RemovePolicy(ctx context.Context, name, by string) (dr.JobID, error) {
	p, err := s.Policy(ctx, name)
	if err != nil {
		return "", err
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: "DeleteProtectionProfile", TargetType: "ProtectionProfile", Target: p.Name, TargetID: string(p.ID), By: by},
		func(tx *sql.Tx) error { return vaultdb.DeletePolicy(ctx, tx, p) })
}

var containerForm = regexp.MustCompile(`(?i)/replicationFabrics/([^/]+)/replicationProtectionContainers/([^/]+)/?$`)

// CreateMapping associates a policy and a target with a site's container. A
// target that is a container of another site names where items recover; any
// other target is the cloud, see RecoveryFabric.
func (s *Profiles) CreateMapping(ctx context.Context, m dr.ContainerMapping, by string) (dr.JobID, error) {
	const op = "vault.CreateMapping"
	if err := CheckName(op, "mapping", m.Name); err != nil {
		return "", err
	}
	m.Created, m.TargetFabric = s.st.Now(), ""
	if parts := containerForm.FindStringSubmatch(m.Target); parts != nil {
		f, err := s.sites.Fabric(ctx, parts[1])
		if err != nil {
			return "", err
		}
		if err := s.checkContainer(ctx, op, f, parts[2]); err != nil {
			return "", err
		}
		m.TargetFabric = f.ID
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: "PairCloud", TargetType: "ProtectionContainer", Target: m.Name, By: by}, func(tx *sql.Tx) error {
		have, err := vaultdb.Mapping(ctx, tx, m.Fabric, m.Name)
		switch {
		case dr.KindOf(err) == dr.KindNotFound:
			return vaultdb.InsertMapping(ctx, tx, m)
		case err != nil:
			return err
		case have.Policy != m.Policy || have.Target != m.Target || have.Container != m.Container:
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "mapping %q exists already with another policy or target", have.Name)
		}
		return nil
	})
}

// checkContainer refuses a container that a site does not have.
func (s *Profiles) checkContainer(ctx context.Context, op string, f dr.Fabric, name string) error {
	if f.ContainerName() == vaultdb.Key(name) {
		return nil
	}
	clouds, err := state.Get(vaultdb.Clouds(ctx, s.st.Q(), f.ID))
	if err != nil {
		return err
	}
	for _, c := range clouds {
		if f.ContainerOf(c.ID) == vaultdb.Key(name) {
			return nil
		}
	}
	return dr.New(dr.KindNotFound, dr.CodeNotFound, op, "site %q has no protection container %q", f.Name, name)
}

// Mapping finds a mapping of a site by name.
func (s *Profiles) Mapping(ctx context.Context, f dr.FabricID, name string) (dr.ContainerMapping, error) {
	return state.Get(vaultdb.Mapping(ctx, s.st.Q(), f, name))
}

// Mappings lists the mappings of a site, of all sites for "".
func (s *Profiles) Mappings(ctx context.Context, f dr.FabricID) ([]dr.ContainerMapping, error) {
	return state.Get(vaultdb.Mappings(ctx, s.st.Q(), f))
}

// RemoveMapping removes a mapping whose policy no item of the site uses.
func (s *Profiles) RemoveMapping(ctx context.Context, f dr.FabricID, name, by string) (dr.JobID, error) {
	m, err := s.Mapping(ctx, f, name)
	if err != nil {
		return "", err
	}
	return s.jobs.Quick(ctx, work.Quick{Kind: "UnpairCloud", TargetType: "ProtectionContainer", Target: m.Name, By: by}, func(tx *sql.Tx) error {
		items, err := vaultdb.Items(ctx, tx, f)
		if err != nil {
			return err
		}
		for _, it := range items {
			in, err := ContainerOf(ctx, tx, f, it.VM)
			if err != nil {
				return err
			}
			if it.Policy == m.Policy && (m.Container == "" || m.Container == in) {
				return dr.New(dr.KindConflict, dr.CodePolicyInUse, "vault.RemoveMapping", "mapping %q is used by %s", m.Name, it.VMName)
			}
		}
		return vaultdb.DeleteMapping(ctx, tx, f, m.Name)
	})
}

// ContainerOf is the name of the protection container that a VM is in now: the one
// of its cloud, or the one of its site.
func ContainerOf(ctx context.Context, q sqldb.Querier, f dr.FabricID, vm dr.VMID) (string, error) {
	fabric, err := vaultdb.Fabric(ctx, q, f)
	if err != nil || fabric.Type != dr.VMMSite {
		return fabric.ContainerName(), err
	}
	place, err := vaultdb.Place(ctx, q, f, vm)
	if dr.KindOf(err) == dr.KindNotFound {
		err = nil
	}
	return fabric.ContainerOf(place.Cloud), err
}

// RecoveryFabric finds where an item recovers: the site that the mapping of its
// VM's container, else of all the site, names. Where the mapping names none (the cloud, which is no target
// yet), it is the only other site that has a host with the recovery role, or,
// if no other site has one, the item's own site when another of its hosts has
// the role. Several candidates are an error that asks for a mapping.
func RecoveryFabric(ctx context.Context, q sqldb.Querier, source dr.FabricID, vm dr.VMID, policy dr.PolicyID, sourceAgent dr.AgentID) (dr.FabricID, error) {
	const op = "vault.RecoveryFabric"
	maps, err := vaultdb.Mappings(ctx, q, source)
	if err != nil {
		return "", err
	}
	in, err := ContainerOf(ctx, q, source, vm)
	if err != nil {
		return "", err
	}
	for _, container := range []string{in, ""} {
		for _, m := range maps {
			if m.Policy == policy && m.TargetFabric != "" && m.Container == container {
				return m.TargetFabric, nil
			}
		}
	}
	agents, err := vaultdb.Providers(ctx, q, "")
	if err != nil {
		return "", err
	}
	others, own := map[dr.FabricID]bool{}, false
	for _, p := range agents {
		switch {
		case !p.HasRole(dr.RoleRecovery) || p.ID == sourceAgent:
		case p.Fabric == source:
			own = true
		default:
			others[p.Fabric] = true
		}
	}
	switch {
	case len(others) == 1:
		for f := range others {
			return f, nil
		}
	case len(others) == 0 && own:
		return source, nil
	case len(others) > 1:
		return "", dr.New(dr.KindPrecondition, dr.CodeNoRecoverySite, op, "%d sites have recovery hosts and the container mapping names none of them", len(others)).
			WithHint("map the container to the container of the site where its VMs shall recover")
	}
	return "", dr.New(dr.KindPrecondition, dr.CodeNoRecoverySite, op, "no site has a host with the recovery role")
}
