package site

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"database/sql"
	"slices"

	"holdfast/internal/agentapi"
	"holdfast/internal/authn"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

// Enroll registers a host with a registration key. The same host (machine id
// and name) registering in the same site again keeps its agent id, so that a
// reinstalled agent goes on with its items; its former certificate is refused
// from then on. A one-time key answers its own host again only for the same
// key pair, which is what a repeated request after a lost response has.
func (s *Sites) Enroll(ctx context.Context, r agentapi.EnrollRequest) (agentapi.EnrollResponse, error) {
	const op = "vault.Enroll"
	keyHash, err := authn.CSRKeyHash(r.CSR)
	if err != nil {
		return agentapi.EnrollResponse{}, err
	}
	roles, err := parseRoles(op, r.Roles)
	if err != nil {
		return agentapi.EnrollResponse{}, err
	}
	if r.Host == "" || r.MachineID == "" || len(r.Host) > 255 || len(r.MachineID) > 255 {
		return agentapi.EnrollResponse{}, dr.Errorf(dr.KindInvalid, op, "host name or machine id is missing or too long")
	}
	var p vaultdb.Provider
	var f dr.Fabric
	var cert authn.AgentCert
	err = s.st.Tx(ctx, func(tx *sql.Tx) error {
		now := s.st.Now()
		k, err := vaultdb.LockKey(ctx, tx, r.KeyID)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return err
		}
		if subtle.ConstantTimeCompare([]byte(authn.HashSecret(r.Secret)), k.Hash) != 1 || err != nil {
			return dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyInvalid, op, "the registration key is not one of this vault's")
		}
		if k.Revoked {
			return dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyRevoked, op, "registration key %s was revoked", k.ID)
		}
		if !now.Before(k.Expires) {
			return dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyExpired, op, "registration key %s expired at %s", k.ID, k.Expires.Format("2006-01-02 15:04 MST"))
		}
		if f, err = vaultdb.Fabric(ctx, tx, k.Fabric); err != nil {
			return err
		}
		if slices.Contains(roles, dr.RoleVMM) && f.Type != dr.VMMSite {
			return dr.Errorf(dr.KindInvalid, op, "the role vmm is for sites of the type VMM, and site %s is of type %s", f.Name, f.Type).
				WithHint("create a site of the type VMM and use a registration key of that site")
		}
		p, err = vaultdb.ProviderOfHost(ctx, tx, k.Fabric, r.MachineID, r.Host)
		known := err == nil
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return err
		}
		if k.OneTime && k.Uses > 0 && (!known || k.UsedBy != p.ID || p.KeyHash != keyHash) {
			return dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyUsed, op, "registration key %s is for one host and was used", k.ID)
		}
		if !known {
			p = vaultdb.Provider{Provider: dr.Provider{ID: dr.AgentID(state.NewID()), Fabric: k.Fabric, Host: r.Host}, MachineID: r.MachineID}
		}
		if cert, err = s.ca().IssueAgent(r.CSR, p.ID, now); err != nil {
			return err
		}
		p.Roles, p.Version, p.Hypervisor, p.Registered, p.LastSeen = roles, state.Clip(r.Version), state.Clip(r.Hypervisor), now, now
		p.CertSerial, p.PrevSerial, p.KeyHash, p.NotAfter = cert.Serial, "", cert.KeyHash, cert.NotAfter
		if err := vaultdb.SaveProvider(ctx, tx, p); err != nil {
			return err
		}
		if err := vaultdb.UseKey(ctx, tx, k.ID, p.ID); err != nil {
			return err
		}
		s.st.Changed(tx, "site", string(f.ID))
		what := "registered"
		if known {
			what = "registered again"
		}
		if err := s.st.Note(ctx, tx, vaultdb.Event{Kind: "agentRegistered", Agent: p.ID, By: "registration key " + k.ID, Audit: true},
			"host %s %s in site %s, certificate %s", p.Host, what, f.Name, cert.Serial); err != nil {
			return err
		}
		return s.jobs.QuickIn(ctx, tx, state.Ordered(), work.Quick{Kind: "RegisterDra", TargetType: "Server", Target: p.Host, TargetID: string(p.ID), By: "agent"})
	})
	if err != nil {
		s.st.Log.Warn("registration refused", "host", r.Host, "key", r.KeyID, "err", err)
		return agentapi.EnrollResponse{}, err
	}
	return s.enrolled(p, f, cert), nil
}

func (s *Sites) enrolled(p vaultdb.Provider, f dr.Fabric, cert authn.AgentCert) agentapi.EnrollResponse {
	return agentapi.EnrollResponse{AgentID: string(p.ID), FabricID: string(f.ID), FabricName: f.Name, Certificate: cert.PEM,
		CA: s.ca().PEM(), NotAfter: cert.NotAfter}
}

// Renew gives an agent its next certificate. The one it shows now stays good
// until its own end, for the case that the response is lost.
func (s *Sites) Renew(ctx context.Context, agent dr.AgentID, serial string, r agentapi.RenewRequest) (agentapi.EnrollResponse, error) {
	var out agentapi.EnrollResponse
	err := s.st.Tx(ctx, func(tx *sql.Tx) error {
		p, err := vaultdb.ProviderByID(ctx, tx, agent)
		if err != nil {
			return err
		}
		f, err := vaultdb.Fabric(ctx, tx, p.Fabric)
		if err != nil {
			return err
		}
		cert, err := s.ca().IssueAgent(r.CSR, agent, s.st.Now())
		if err != nil {
			return err
		}
		p.PrevSerial, p.CertSerial, p.KeyHash, p.NotAfter, p.LastSeen = serial, cert.Serial, cert.KeyHash, cert.NotAfter, s.st.Now()
		if err := vaultdb.SaveProvider(ctx, tx, p); err != nil {
			return err
		}
		out = s.enrolled(p, f, cert)
		return s.st.Note(ctx, tx, vaultdb.Event{Kind: "certificate", Agent: agent, By: "agent"}, "certificate of host %s was renewed: %s", p.Host, cert.Serial)
	})
	return out, err
}

// AgentByCert says which agent shows a certificate. It checks the authority,
// the time, and that the certificate is the agent's current one (or the one
// before a renewal) and not revoked.
func (s *Sites) AgentByCert(ctx context.Context, cert *x509.Certificate) (dr.Provider, string, error) {
	const op = "vault.AgentByCert"
	id, serial, err := s.ca().AgentOf(cert, s.st.Now())
	if err != nil {
		return dr.Provider{}, "", err
	}
	p, err := vaultdb.ProviderByID(ctx, s.st.Q(), id)
	switch {
	case dr.KindOf(err) == dr.KindNotFound:
		return dr.Provider{}, "", dr.New(dr.KindForbidden, dr.CodeAgentRevoked, op, "this vault does not know agent %s", id)
	case err != nil:
		return dr.Provider{}, "", state.Outward(err)
	case p.Revoked:
		return dr.Provider{}, "", dr.New(dr.KindForbidden, dr.CodeAgentRevoked, op, "host %s was removed from the vault", p.Host)
	case serial != p.CertSerial && serial != p.PrevSerial:
		return dr.Provider{}, "", dr.New(dr.KindForbidden, dr.CodeAgentRevoked, op, "host %s has registered again: this certificate was replaced", p.Host)
	}
	return p.Provider, serial, nil
}

func parseRoles(op string, names []string) ([]dr.AgentRole, error) {
	var roles []dr.AgentRole
	for _, n := range names {
		r := dr.AgentRole(n)
		if r != dr.RoleSource && r != dr.RoleRecovery && r != dr.RoleVMM {
			return nil, dr.Errorf(dr.KindInvalid, op, "%q is not a role of an agent", n)
		}
		if !slices.Contains(roles, r) {
			roles = append(roles, r)
		}
	}
	if len(roles) == 0 {
		return nil, dr.Errorf(dr.KindInvalid, op, "the agent has no role")
	}
	return roles, nil
}
