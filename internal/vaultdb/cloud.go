package vaultdb

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// sizeDoc is the durable form of a size of VM.
type sizeDoc struct {
	Name        string `json:"name"`
	CPUs        int    `json:"cpus"`
	MemoryMB    int    `json:"memoryMb"`
	DataDisks   int    `json:"dataDisks"`
	NICs        int    `json:"nics"`
	Generations []int  `json:"generations,omitempty"`
	Premium     bool   `json:"premium,omitempty"`
	Problem     string `json:"problem,omitempty"`
}

// SaveSizes replaces what sizes of VM an agent's cloud offers.
func SaveSizes(ctx context.Context, q sqldb.Querier, agent dr.AgentID, sizes []dr.ComputeSize) error {
	docs := make([]sizeDoc, len(sizes))
	for i, s := range sizes {
		docs[i] = sizeDoc(s)
	}
	_, err := exec(ctx, q, "store sizes", "insert into compute_size (agent, doc) values ($1, $2) on conflict (agent) do update set doc = excluded.doc", agent, encode(docs))
	return err
}

// Sizes lists the sizes of VM that an agent's cloud offers; none if it has told none.
func Sizes(ctx context.Context, q sqldb.Querier, agent dr.AgentID) ([]dr.ComputeSize, error) {
	rows, err := list(ctx, q, "list sizes", func(s scanner) (docs []sizeDoc, err error) {
		var doc string
		if err := s.Scan(&doc); err != nil {
			return nil, err
		}
		return decode[[]sizeDoc](doc)
	}, "select doc from compute_size where agent = $1", agent)
	var out []dr.ComputeSize
	for _, r := range rows {
		for _, d := range r {
			out = append(out, dr.ComputeSize(d))
		}
	}
	return out, err
}

// Warm is an item's warm replica: the point that an agent was asked to bring it
// to, under a serving of its own, and the one that it last said it holds.
type Warm struct {
	Item    dr.ItemID
	Machine dr.MachineID // of the item
	Agent   dr.AgentID
	Serving string
	Gen     dr.Generation
	N       uint64
	Held    dr.WarmReplica
}

const warmColumns = "w.item, i.machine, w.agent, w.serving, w.gen, w.n, w.held_gen, w.held_n, w.held_at, w.told_at, w.bytes, w.requests, w.busy, w.problem from warm w join item i on i.id = w.item"

func scanWarm(s scanner) (w Warm, err error) {
	var n, heldN, heldAt, told int64
	var busy int
	err = s.Scan(&w.Item, &w.Machine, &w.Agent, &w.Serving, &w.Gen, &n, &w.Held.Gen, &heldN, &heldAt, &told, &w.Held.Bytes, &w.Held.Requests, &busy, &w.Held.Problem)
	w.N, w.Held.N, w.Held.Time, w.Held.At, w.Held.Busy = uint64(n), uint64(heldN), sqldb.Time(heldAt), sqldb.Time(told), busy != 0
	return w, err
}

// SaveWarm adds or replaces an item's warm replica.
func SaveWarm(ctx context.Context, q sqldb.Querier, w Warm) error {
	_, err := exec(ctx, q, "store warm replica", `insert into warm (item, agent, serving, gen, n, held_gen, held_n, held_at, told_at, bytes, requests, busy, problem)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		on conflict (item) do update set agent = excluded.agent, serving = excluded.serving, gen = excluded.gen, n = excluded.n, held_gen = excluded.held_gen, held_n = excluded.held_n,
		held_at = excluded.held_at, told_at = excluded.told_at, bytes = excluded.bytes, requests = excluded.requests, busy = excluded.busy, problem = excluded.problem`,
		w.Item, w.Agent, w.Serving, w.Gen, number(w.N), w.Held.Gen, number(w.Held.N), sqldb.Micros(w.Held.Time), sqldb.Micros(w.Held.At), w.Held.Bytes, w.Held.Requests, flag(w.Held.Busy), w.Held.Problem)
	return err
}

// DeleteWarm removes an item's warm replica; removing an absent one succeeds.
func DeleteWarm(ctx context.Context, q sqldb.Querier, item dr.ItemID) error {
	_, err := exec(ctx, q, "remove warm replica", "delete from warm where item = $1", item)
	return err
}

// WarmOf finds an item's warm replica.
func WarmOf(ctx context.Context, q sqldb.Querier, item dr.ItemID) (Warm, error) {
	return one(ctx, q, "read warm replica", notFound("vaultdb.WarmOf", "warm replica of item", string(item)), scanWarm, "select "+warmColumns+" where w.item = $1", item)
}

// WarmByServing finds the warm replica that has a serving.
func WarmByServing(ctx context.Context, q sqldb.Querier, serving string) (Warm, error) {
	return one(ctx, q, "read warm replica", notFound("vaultdb.WarmByServing", "serving", serving), scanWarm, "select "+warmColumns+" where w.serving = $1", serving)
}

// Warms lists all warm replicas.
func Warms(ctx context.Context, q sqldb.Querier) ([]Warm, error) {
	return list(ctx, q, "list warm replicas", scanWarm, "select "+warmColumns+" order by w.item")
}
