package vaultdb

import (
	"context"
	"math"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// Generation is one writer's turn at a machine's replica, as far as the vault
// has got with it.
type Generation struct {
	Machine  dr.MachineID
	Gen      dr.Generation
	Agent    dr.AgentID // the writer; empty when nobody may write
	Reason   string
	BaseGen  dr.Generation // last valid cut of older generations; all zero = none
	BaseN    uint64
	BaseHash string // hex
	Written  bool   // the generation object is in the store and Base is what it says
	Seeded   bool   // Base is a seed
	Disks    []Disk // all that the history up to Base ever listed
	Created  time.Time
}

// Disk is a disk as a machine's history knows it. It is a durable form.
type Disk struct {
	ID    string `json:"id"`
	Index uint16 `json:"index"`
	Size  int64  `json:"size,omitempty"` // 0 = no longer listed
}

const generationColumns = "machine, gen, agent, reason, base_gen, base_n, base_hash, written, created, seeded, base_disks"

func scanGeneration(s scanner) (g Generation, err error) {
	var written, seeded int
	var created, n int64
	var disks string
	err = s.Scan(&g.Machine, &g.Gen, &g.Agent, &g.Reason, &g.BaseGen, &n, &g.BaseHash, &written, &created, &seeded, &disks)
	g.BaseN, g.Written, g.Created, g.Seeded = uint64(n), written != 0, sqldb.Time(created), seeded != 0
	if err == nil {
		g.Disks, err = decode[[]Disk](disks)
	}
	return g, err
}

// SaveGeneration adds or replaces a generation. One that is written stays as it is.
func SaveGeneration(ctx context.Context, q sqldb.Querier, g Generation) error {
	_, err := exec(ctx, q, "store generation", `insert into generation (`+generationColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		on conflict (machine, gen) do update set agent = excluded.agent, reason = excluded.reason, base_gen = excluded.base_gen,
		base_n = excluded.base_n, base_hash = excluded.base_hash, written = excluded.written, seeded = excluded.seeded,
		base_disks = excluded.base_disks where generation.written = 0`,
		g.Machine, g.Gen, g.Agent, g.Reason, g.BaseGen, number(g.BaseN), g.BaseHash, flag(g.Written), sqldb.Micros(g.Created), flag(g.Seeded), encode(g.Disks))
	return err
}

// Generations lists a machine's generations, oldest first.
func Generations(ctx context.Context, q sqldb.Querier, m dr.MachineID) ([]Generation, error) {
	return list(ctx, q, "list generations", scanGeneration,
		"select "+generationColumns+" from generation where machine = $1 order by gen", m)
}

// Point is a recovery point with the chain hash of its cut.
type Point struct {
	dr.RecoveryPoint
	Hash      string     // hex
	Group     dr.GroupID // whose instant it belongs to; empty = none
	GroupSeq  uint64     // number of the instant
	GroupSize int        // members that were cut at it
}

const pointColumns = "machine, gen, n, hash, time, consistency, resync, dirty, data, stored, note, group_id, group_seq, group_size"

// number guards the one conversion that could wrap.
func number(n uint64) int64 {
	if n > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(n)
}

func scanPoint(s scanner) (p Point, err error) {
	var n, at, seq int64
	var resync int
	err = s.Scan(&p.Machine, &p.Gen, &n, &p.Hash, &at, &p.Consistency, &resync, &p.DirtyBytes, &p.DataBytes, &p.StoredBytes, &p.Note, &p.Group, &seq, &p.GroupSize)
	p.N, p.Time, p.Resync, p.GroupSeq = uint64(n), sqldb.Time(at), resync != 0, uint64(seq)
	return p, err
}

// InsertPoint lists a recovery point and reports whether it is new.
func InsertPoint(ctx context.Context, q sqldb.Querier, p Point) (bool, error) {
	n, err := exec(ctx, q, "list recovery point "+p.Name(), "insert into point ("+pointColumns+`)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict do nothing`,
		p.Machine, p.Gen, number(p.N), p.Hash, sqldb.Micros(p.Time), p.Consistency, flag(p.Resync), p.DirtyBytes, p.DataBytes, p.StoredBytes,
		p.Note, p.Group, number(p.GroupSeq), p.GroupSize)
	return n == 1, err
}

// Points lists a machine's recovery points, newest first; limit 0 = all.
func Points(ctx context.Context, q sqldb.Querier, m dr.MachineID, limit int) ([]Point, error) {
	if limit <= 0 {
		limit = math.MaxInt32
	}
	return list(ctx, q, "list recovery points", scanPoint,
		"select "+pointColumns+" from point where machine = $1 order by n desc limit $2", m, limit)
}

// CountPoints returns how many points a machine has beyond number after, and
// how many bytes all of its points have in the store.
func CountPoints(ctx context.Context, q sqldb.Querier, m dr.MachineID, after uint64) (newer, all int, stored int64, err error) {
	err = q.QueryRowContext(ctx, `select coalesce(sum(case when n > $2 then 1 else 0 end), 0), count(*), coalesce(sum(stored), 0)
		from point where machine = $1`, m, number(after)).Scan(&newer, &all, &stored)
	return newer, all, stored, fail("count recovery points", err)
}

// GroupPoints lists the points of a consistency group's instants, newest instant first.
func GroupPoints(ctx context.Context, q sqldb.Querier, g dr.GroupID) ([]Point, error) {
	return list(ctx, q, "list points of a consistency group", scanPoint,
		"select "+pointColumns+" from point where group_id = $1 order by group_seq desc, machine, n", g)
}

// Label is what people say of a recovery point. It is not part of the
// catalogue: it stays when that is made again from the store.
type Label struct {
	Machine dr.MachineID
	Gen     dr.Generation
	N       uint64
	Name    string
	Held    bool // retention keeps the point
	By      string
	At      time.Time
}

// SaveLabel adds or replaces a point's label; one without name and hold is removed.
func SaveLabel(ctx context.Context, q sqldb.Querier, l Label) error {
	if l.Name == "" && !l.Held {
		_, err := exec(ctx, q, "remove label", "delete from point_label where machine = $1 and gen = $2 and n = $3", l.Machine, l.Gen, number(l.N))
		return err
	}
	_, err := exec(ctx, q, "store label", `insert into point_label (machine, gen, n, name, held, by_who, at) values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (machine, gen, n) do update set name = excluded.name, held = excluded.held, by_who = excluded.by_who, at = excluded.at`,
		l.Machine, l.Gen, number(l.N), l.Name, flag(l.Held), l.By, sqldb.Micros(l.At))
	return err
}

// Labels lists the labels of a machine's points, oldest point first.
func Labels(ctx context.Context, q sqldb.Querier, m dr.MachineID) ([]Label, error) {
	return list(ctx, q, "list labels", func(s scanner) (l Label, err error) {
		var n, at int64
		var held int
		err = s.Scan(&l.Machine, &l.Gen, &n, &l.Name, &held, &l.By, &at)
		l.N, l.Held, l.At = uint64(n), held != 0, sqldb.Time(at)
		return l, err
	}, "select machine, gen, n, name, held, by_who, at from point_label where machine = $1 order by n", m)
}

// PointByNumber finds one point.
func PointByNumber(ctx context.Context, q sqldb.Querier, m dr.MachineID, g dr.Generation, n uint64) (Point, error) {
	return one(ctx, q, "read recovery point", notFound("vaultdb.PointByNumber", "recovery point", dr.PointName(g, n)), scanPoint,
		"select "+pointColumns+" from point where machine = $1 and gen = $2 and n = $3", m, g, number(n))
}

// LatestPoint finds the newest point, of a consistency unless that is "".
func LatestPoint(ctx context.Context, q sqldb.Querier, m dr.MachineID, c dr.Consistency) (Point, error) {
	return one(ctx, q, "read latest recovery point", dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "vaultdb.LatestPoint",
		"the item has no recovery point%s", map[bool]string{true: " of consistency " + string(c)}[c != ""]), scanPoint,
		"select "+pointColumns+" from point where machine = $1 and ($2 = '' or consistency = $2) order by n desc limit 1", m, string(c))
}

// DeletePoint takes a point whose objects are gone off the catalogue.
func DeletePoint(ctx context.Context, q sqldb.Querier, m dr.MachineID, g dr.Generation, n uint64) error {
	_, err := exec(ctx, q, "unlist recovery point", "delete from point where machine = $1 and gen = $2 and n = $3", m, g, number(n))
	return err
}

// Serving is a recovery point that a recovery agent has been told to run.
type Serving struct {
	ID      string
	Item    dr.ItemID
	Machine dr.MachineID
	Gen     dr.Generation
	N       uint64
	Agent   dr.AgentID
	Kind    dr.FailoverKind
	VM      dr.VMID // once booted
	Booted  bool    // the agent may have something of it: it was asked to boot
	Local   bool    // the VM no longer needs the store
	Created time.Time
}

const servingColumns = "id, item, machine, gen, n, agent, kind, vm, booted, local, created"

func scanServing(s scanner) (v Serving, err error) {
	var n, created int64
	var booted, local int
	err = s.Scan(&v.ID, &v.Item, &v.Machine, &v.Gen, &n, &v.Agent, &v.Kind, &v.VM, &booted, &local, &created)
	v.N, v.Created, v.Booted, v.Local = uint64(n), sqldb.Time(created), booted != 0, local != 0
	return v, err
}

// SaveServing adds or replaces a serving.
func SaveServing(ctx context.Context, q sqldb.Querier, v Serving) error {
	_, err := exec(ctx, q, "store serving", `insert into serving (`+servingColumns+`) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		on conflict (id) do update set gen = excluded.gen, n = excluded.n, agent = excluded.agent, vm = excluded.vm,
		booted = excluded.booted, local = excluded.local`,
		v.ID, v.Item, v.Machine, v.Gen, number(v.N), v.Agent, v.Kind, v.VM, flag(v.Booted), flag(v.Local), sqldb.Micros(v.Created))
	return err
}

// ServingByID finds a serving.
func ServingByID(ctx context.Context, q sqldb.Querier, id string) (Serving, error) {
	return one(ctx, q, "read serving", notFound("vaultdb.ServingByID", "serving", id), scanServing,
		"select "+servingColumns+" from serving where id = $1", id)
}

// Servings lists an item's servings, oldest first; of all items for "".
func Servings(ctx context.Context, q sqldb.Querier, item dr.ItemID) ([]Serving, error) {
	return list(ctx, q, "list servings", scanServing,
		"select "+servingColumns+" from serving where $1 = '' or item = $1 order by created, id", string(item))
}

// DeleteServing removes a serving; removing an absent one succeeds.
func DeleteServing(ctx context.Context, q sqldb.Querier, id string) error {
	_, err := exec(ctx, q, "remove serving", "delete from serving where id = $1", id)
	return err
}
