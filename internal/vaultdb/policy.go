package vaultdb

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

const policyColumns = "id, name, copy_us, retain_us, app_us, start_time, storage, created, settings"

// policyDoc is the durable form of a policy's settings that have no column of
// their own. Windows are their canonical texts.
type policyDoc struct {
	RetainHourly    int64     `json:"retainHourlyUs,omitempty"`
	RetainDaily     int64     `json:"retainDailyUs,omitempty"`
	ResyncMode      string    `json:"resyncMode,omitempty"`
	ResyncWindow    dr.Window `json:"resyncWindow,omitzero"`
	ResyncThreshold float64   `json:"resyncThreshold,omitempty"`
	InitialMode     string    `json:"initialMode,omitempty"`
	InitialWindow   dr.Window `json:"initialWindow,omitzero"`
	InitialPriority int       `json:"initialPriority,omitempty"`
	Compression     string    `json:"compression,omitempty"`
	Bandwidth       []rateDoc `json:"bandwidth,omitempty"`
}

type rateDoc struct {
	Window         dr.Window `json:"window,omitzero"`
	BytesPerSecond int64     `json:"bytesPerSecond"`
}

func toPolicyDoc(p dr.Policy) policyDoc {
	d := policyDoc{RetainHourly: us(p.RetainHourly), RetainDaily: us(p.RetainDaily), ResyncMode: string(p.ResyncAuto), ResyncWindow: p.ResyncWindow,
		ResyncThreshold: p.ResyncThreshold, InitialMode: string(p.InitialMode), InitialWindow: p.InitialWindow, InitialPriority: p.InitialPriority,
		Compression: string(p.Compression)}
	for _, r := range p.Bandwidth {
		d.Bandwidth = append(d.Bandwidth, rateDoc(r))
	}
	return d
}

func (d policyDoc) fill(p *dr.Policy) {
	p.RetainHourly, p.RetainDaily = dur(d.RetainHourly), dur(d.RetainDaily)
	p.ResyncAuto, p.ResyncWindow, p.ResyncThreshold = dr.ResyncMode(d.ResyncMode), d.ResyncWindow, d.ResyncThreshold
	p.InitialMode, p.InitialWindow, p.InitialPriority = dr.InitialMode(d.InitialMode), d.InitialWindow, d.InitialPriority
	p.Compression = dr.Compression(d.Compression)
	for _, r := range d.Bandwidth {
		p.Bandwidth = append(p.Bandwidth, dr.BandwidthRule(r))
	}
}

func scanPolicy(s scanner) (p dr.Policy, err error) {
	var copyUS, retainUS, appUS, created int64
	var settings string
	if err = s.Scan(&p.ID, &p.Name, &copyUS, &retainUS, &appUS, &p.StartTime, &p.Storage, &created, &settings); err != nil {
		return p, err
	}
	p.CopyFrequency, p.Retention, p.AppFrequency, p.Created = dur(copyUS), dur(retainUS), dur(appUS), sqldb.Time(created)
	d, err := decode[policyDoc](settings)
	d.fill(&p)
	return p, err
}

// InsertPolicy adds a policy; KindConflict if the name is taken.
func InsertPolicy(ctx context.Context, q sqldb.Querier, p dr.Policy) error {
	n, err := exec(ctx, q, "add policy "+p.Name, `insert into policy (id, name, name_key, copy_us, retain_us, app_us, start_time, storage, created, settings)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (name_key) do nothing`,
		p.ID, p.Name, Key(p.Name), us(p.CopyFrequency), us(p.Retention), us(p.AppFrequency), p.StartTime, p.Storage, sqldb.Micros(p.Created), encode(toPolicyDoc(p)))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertPolicy", "policy", p.Name)
	}
	return err
}

// UpdatePolicy changes the settings of the policy with p's id.
func UpdatePolicy(ctx context.Context, q sqldb.Querier, p dr.Policy) error {
	n, err := exec(ctx, q, "change policy "+p.Name, `update policy set copy_us = $2, retain_us = $3, app_us = $4, start_time = $5, storage = $6,
		settings = $7 where id = $1`, p.ID, us(p.CopyFrequency), us(p.Retention), us(p.AppFrequency), p.StartTime, p.Storage, encode(toPolicyDoc(p)))
	if err == nil && n == 0 {
		return notFound("vaultdb.UpdatePolicy", "policy", p.Name)
	}
	return err
}

// PolicyByID finds a policy.
func PolicyByID(ctx context.Context, q sqldb.Querier, id dr.PolicyID) (dr.Policy, error) {
	return one(ctx, q, "read policy", notFound("vaultdb.PolicyByID", "policy", string(id)), scanPolicy,
		"select "+policyColumns+" from policy where id = $1", id)
}

// PolicyByName finds a policy by its name, without case.
func PolicyByName(ctx context.Context, q sqldb.Querier, name string) (dr.Policy, error) {
	return one(ctx, q, "read policy "+name, notFound("vaultdb.PolicyByName", "policy", name), scanPolicy,
		"select "+policyColumns+" from policy where name_key = $1", Key(name))
}

// Policies lists all policies by name.
func Policies(ctx context.Context, q sqldb.Querier) ([]dr.Policy, error) {
	return list(ctx, q, "list policies", scanPolicy, "select "+policyColumns+" from policy order by name_key")
}

// DeletePolicy removes a policy; dr.CodePolicyInUse while a mapping or an item uses it.
func DeletePolicy(ctx context.Context, q sqldb.Querier, p dr.Policy) error {
	n, err := exec(ctx, q, "remove policy "+p.Name, `delete from policy where id = $1
		and not exists (select 1 from mapping where policy = $1) and not exists (select 1 from item where policy = $1)`, p.ID)
	if err == nil && n == 0 {
		return dr.New(dr.KindConflict, dr.CodePolicyInUse, "vaultdb.DeletePolicy", "policy %q is in use", p.Name)
	}
	return err
}

const mappingColumns = "name, fabric, policy, target, target_fabric, created, container"

func scanMapping(s scanner) (m dr.ContainerMapping, err error) {
	var created int64
	err = s.Scan(&m.Name, &m.Fabric, &m.Policy, &m.Target, &m.TargetFabric, &created, &m.Container)
	m.Created = sqldb.Time(created)
	return m, err
}

// InsertMapping adds a container mapping; KindConflict if the name is taken in the fabric.
func InsertMapping(ctx context.Context, q sqldb.Querier, m dr.ContainerMapping) error {
	n, err := exec(ctx, q, "add mapping "+m.Name, `insert into mapping (fabric, name, name_key, policy, target, target_fabric, created, container)
		values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (fabric, name_key) do nothing`,
		m.Fabric, m.Name, Key(m.Name), m.Policy, m.Target, m.TargetFabric, sqldb.Micros(m.Created), m.Container)
	if err == nil && n == 0 {
		return exists("vaultdb.InsertMapping", "mapping", m.Name)
	}
	return err
}

// Mapping finds a mapping of a fabric by its name, without case.
func Mapping(ctx context.Context, q sqldb.Querier, f dr.FabricID, name string) (dr.ContainerMapping, error) {
	return one(ctx, q, "read mapping "+name, notFound("vaultdb.Mapping", "mapping", name), scanMapping,
		"select "+mappingColumns+" from mapping where fabric = $1 and name_key = $2", f, Key(name))
}

// Mappings lists the mappings of a fabric, of all fabrics for "".
func Mappings(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]dr.ContainerMapping, error) {
	return list(ctx, q, "list mappings", scanMapping,
		"select "+mappingColumns+" from mapping where $1 = '' or fabric = $1 order by fabric, name_key", string(f))
}

// DeleteMapping removes a mapping; KindNotFound if there is none.
func DeleteMapping(ctx context.Context, q sqldb.Querier, f dr.FabricID, name string) error {
	n, err := exec(ctx, q, "remove mapping "+name, "delete from mapping where fabric = $1 and name_key = $2", f, Key(name))
	if err == nil && n == 0 {
		return notFound("vaultdb.DeleteMapping", "mapping", name)
	}
	return err
}
