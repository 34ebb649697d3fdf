package vaultdb

import (
	"context"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

const fabricColumns = "id, name, type, created"

func scanFabric(s scanner) (f dr.Fabric, err error) {
	var created int64
	err = s.Scan(&f.ID, &f.Name, &f.Type, &created)
	f.Created = sqldb.Time(created)
	return f, err
}

// InsertFabric adds a fabric; KindConflict if the name is taken.
func InsertFabric(ctx context.Context, q sqldb.Querier, f dr.Fabric) error {
	n, err := exec(ctx, q, "add fabric "+f.Name, `insert into fabric (id, name, name_key, type, created)
		values ($1, $2, $3, $4, $5) on conflict (name_key) do nothing`,
		f.ID, f.Name, Key(f.Name), f.Type, sqldb.Micros(f.Created))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertFabric", "fabric", f.Name)
	}
	return err
}

// FabricByName finds a fabric by its name, without case.
func FabricByName(ctx context.Context, q sqldb.Querier, name string) (dr.Fabric, error) {
	return one(ctx, q, "read fabric "+name, notFound("vaultdb.FabricByName", "fabric", name), scanFabric,
		"select "+fabricColumns+" from fabric where name_key = $1", Key(name))
}

// Fabric finds a fabric by id.
func Fabric(ctx context.Context, q sqldb.Querier, id dr.FabricID) (dr.Fabric, error) {
	return one(ctx, q, "read fabric", notFound("vaultdb.Fabric", "fabric", string(id)), scanFabric,
		"select "+fabricColumns+" from fabric where id = $1", id)
}

// Fabrics lists all fabrics by name.
func Fabrics(ctx context.Context, q sqldb.Querier) ([]dr.Fabric, error) {
	return list(ctx, q, "list fabrics", scanFabric, "select "+fabricColumns+" from fabric order by name_key")
}

// DeleteFabric removes a fabric and what was discovered in it. Items,
// unrevoked agents and mappings must be gone; the database refuses otherwise.
func DeleteFabric(ctx context.Context, q sqldb.Querier, id dr.FabricID) error {
	for _, s := range []string{
		"delete from group_member where group_id in (select id from consistency_group where fabric = $1)",
		"delete from consistency_group where fabric = $1",
		"delete from vm_seen where fabric = $1",
		"delete from vm where fabric = $1",
		"delete from registration_key where fabric = $1",
		"delete from network where agent in (select id from provider where fabric = $1)",
		"delete from compute_size where agent in (select id from provider where fabric = $1)",
		"delete from provider where fabric = $1 and revoked = 1",
		"delete from network_mapping where fabric = $1 or target_fabric = $1",
		"delete from storage_mapping where fabric = $1 or target_fabric = $1",
		"delete from managed where fabric = $1",
		"delete from fabric where id = $1",
	} {
		if _, err := exec(ctx, q, "remove fabric", s, id); err != nil {
			return err
		}
	}
	return nil
}

// Provider is a registered agent with what proves its identity.
type Provider struct {
	dr.Provider
	MachineID  string    // of the host's operating system
	CertSerial string    // of the current certificate, hex
	PrevSerial string    // of the one before a renewal, which stays good until its end; "" after a new registration
	KeyHash    string    // SHA-256 of the current certificate's public key, hex
	NotAfter   time.Time // end of the current certificate
}

const providerColumns = `id, fabric, host, machine_id, roles, version, hypervisor, registered, last_seen, revoked,
	cert_serial, prev_serial, key_hash, not_after`

func scanProvider(s scanner) (p Provider, err error) {
	var roles string
	var registered, seen, notAfter int64
	var revoked int
	err = s.Scan(&p.ID, &p.Fabric, &p.Host, &p.MachineID, &roles, &p.Version, &p.Hypervisor, &registered, &seen, &revoked,
		&p.CertSerial, &p.PrevSerial, &p.KeyHash, &notAfter)
	for r := range strings.FieldsSeq(roles) {
		p.Roles = append(p.Roles, dr.AgentRole(r))
	}
	p.Registered, p.LastSeen, p.NotAfter, p.Revoked = sqldb.Time(registered), sqldb.Time(seen), sqldb.Time(notAfter), revoked != 0
	return p, err
}

// SaveProvider adds or replaces an agent.
func SaveProvider(ctx context.Context, q sqldb.Querier, p Provider) error {
	roles := make([]string, len(p.Roles))
	for i, r := range p.Roles {
		roles[i] = string(r)
	}
	_, err := exec(ctx, q, "store agent "+string(p.ID), `insert into provider (`+providerColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		on conflict (id) do update set fabric = excluded.fabric, host = excluded.host, machine_id = excluded.machine_id,
		roles = excluded.roles, version = excluded.version, hypervisor = excluded.hypervisor, registered = excluded.registered,
		last_seen = excluded.last_seen, revoked = excluded.revoked, cert_serial = excluded.cert_serial,
		prev_serial = excluded.prev_serial, key_hash = excluded.key_hash, not_after = excluded.not_after`,
		p.ID, p.Fabric, p.Host, p.MachineID, strings.Join(roles, " "), p.Version, p.Hypervisor, sqldb.Micros(p.Registered),
		sqldb.Micros(p.LastSeen), flag(p.Revoked), p.CertSerial, p.PrevSerial, p.KeyHash, sqldb.Micros(p.NotAfter))
	return err
}

// ProviderByID finds an agent, also a revoked one.
func ProviderByID(ctx context.Context, q sqldb.Querier, id dr.AgentID) (Provider, error) {
	return one(ctx, q, "read agent", notFound("vaultdb.ProviderByID", "agent", string(id)), scanProvider,
		"select "+providerColumns+" from provider where id = $1", id)
}

// ProviderOfHost finds the unrevoked registration of a host in a fabric.
func ProviderOfHost(ctx context.Context, q sqldb.Querier, f dr.FabricID, machineID, host string) (Provider, error) {
	return one(ctx, q, "read agent of host "+host, notFound("vaultdb.ProviderOfHost", "registration of host", host), scanProvider,
		"select "+providerColumns+" from provider where fabric = $1 and machine_id = $2 and host = $3 and revoked = 0", f, machineID, host)
}

// Providers lists the unrevoked agents of a fabric, of all fabrics for "".
func Providers(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]Provider, error) {
	return list(ctx, q, "list agents", scanProvider,
		"select "+providerColumns+" from provider where revoked = 0 and ($1 = '' or fabric = $1) order by host, id", string(f))
}

// TouchProvider records a heartbeat and, where they are not empty, what the agent runs on.
func TouchProvider(ctx context.Context, q sqldb.Querier, id dr.AgentID, at time.Time, hypervisor, version string) error {
	_, err := exec(ctx, q, "record heartbeat", `update provider set last_seen = $2,
		hypervisor = case when $3 = '' then hypervisor else $3 end,
		version = case when $4 = '' then version else $4 end where id = $1`, id, sqldb.Micros(at), hypervisor, version)
	return err
}

// RegistrationKey is a stored registration key: the hash of its secret only.
type RegistrationKey struct {
	ID        string
	Fabric    dr.FabricID
	Hash      []byte // SHA-256 of the secret
	OneTime   bool
	Created   time.Time
	Expires   time.Time
	Revoked   bool
	Uses      int
	UsedBy    dr.AgentID // of the last use
	CreatedBy string
}

const keyColumns = "id, fabric, hash, one_time, created, expires, revoked, uses, used_by, created_by"

func scanKey(s scanner) (k RegistrationKey, err error) {
	var oneTime, revoked int
	var created, expires int64
	err = s.Scan(&k.ID, &k.Fabric, &k.Hash, &oneTime, &created, &expires, &revoked, &k.Uses, &k.UsedBy, &k.CreatedBy)
	k.OneTime, k.Revoked, k.Created, k.Expires = oneTime != 0, revoked != 0, sqldb.Time(created), sqldb.Time(expires)
	return k, err
}

// InsertKey adds a registration key.
func InsertKey(ctx context.Context, q sqldb.Querier, k RegistrationKey) error {
	_, err := exec(ctx, q, "add registration key", "insert into registration_key ("+keyColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, k.ID, k.Fabric, k.Hash, flag(k.OneTime), sqldb.Micros(k.Created),
		sqldb.Micros(k.Expires), flag(k.Revoked), k.Uses, k.UsedBy, k.CreatedBy)
	return err
}

// LockKey finds a registration key and holds its row until the transaction
// ends, so that a one-time key is used by one host only.
func LockKey(ctx context.Context, q sqldb.Querier, id string) (RegistrationKey, error) {
	if _, err := exec(ctx, q, "lock registration key", "update registration_key set uses = uses where id = $1", id); err != nil {
		return RegistrationKey{}, err
	}
	return one(ctx, q, "read registration key", notFound("vaultdb.LockKey", "registration key", id), scanKey,
		"select "+keyColumns+" from registration_key where id = $1", id)
}

// Keys lists the registration keys of a fabric, of all fabrics for "", newest first.
func Keys(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]RegistrationKey, error) {
	return list(ctx, q, "list registration keys", scanKey,
		"select "+keyColumns+" from registration_key where $1 = '' or fabric = $1 order by created desc, id", string(f))
}

// UseKey counts a use.
func UseKey(ctx context.Context, q sqldb.Querier, id string, by dr.AgentID) error {
	_, err := exec(ctx, q, "use registration key", "update registration_key set uses = uses + 1, used_by = $2 where id = $1", id, by)
	return err
}

// RevokeKey revokes a key; KindNotFound if there is none.
func RevokeKey(ctx context.Context, q sqldb.Querier, id string) error {
	n, err := exec(ctx, q, "revoke registration key", "update registration_key set revoked = 1 where id = $1", id)
	if err == nil && n == 0 {
		return notFound("vaultdb.RevokeKey", "registration key", id)
	}
	return err
}

// Network is a network of a host.
type Network struct {
	Agent            dr.AgentID
	Name             string
	Isolated, Active bool
}

// ReplaceNetworks stores the complete list of an agent's networks.
func ReplaceNetworks(ctx context.Context, q sqldb.Querier, agent dr.AgentID, nets []Network) error {
	if _, err := exec(ctx, q, "store networks", "delete from network where agent = $1", agent); err != nil {
		return err
	}
	for _, n := range nets {
		if _, err := exec(ctx, q, fmt.Sprintf("store network %q", n.Name), `insert into network (agent, name, isolated, active)
			values ($1, $2, $3, $4) on conflict (agent, name) do nothing`, agent, n.Name, flag(n.Isolated), flag(n.Active)); err != nil {
			return err
		}
	}
	return nil
}

// Networks lists the networks that the unrevoked agents of a fabric reported.
func Networks(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]Network, error) {
	return list(ctx, q, "list networks", func(s scanner) (n Network, err error) {
		var isolated, active int
		err = s.Scan(&n.Agent, &n.Name, &isolated, &active)
		n.Isolated, n.Active = isolated != 0, active != 0
		return n, err
	}, `select n.agent, n.name, n.isolated, n.active from network n join provider p on p.id = n.agent
		where p.revoked = 0 and p.fabric = $1 order by n.name, n.agent`, f)
}
