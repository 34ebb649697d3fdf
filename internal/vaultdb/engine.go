package vaultdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// SaveDoc stores a document of an item under a kind: what one part of the vault
// knows of it. T is a durable form with JSON tags.
func SaveDoc[T any](ctx context.Context, q sqldb.Querier, id dr.ItemID, kind string, v T, at time.Time) error {
	text, err := json.Marshal(doc[T]{docVersion, v})
	if err != nil {
		return fmt.Errorf("encode %s of item %s: %w", kind, id, err)
	}
	_, err = exec(ctx, q, "store "+kind, `insert into item_doc (item, kind, doc, at) values ($1, $2, $3, $4)
		on conflict (item, kind) do update set doc = excluded.doc, at = excluded.at`, id, kind, string(text), sqldb.Micros(at))
	return err
}

// Doc reads an item's document of a kind; the zero value if there is none.
func Doc[T any](ctx context.Context, q sqldb.Querier, id dr.ItemID, kind string) (v T, err error) {
	var text string
	err = q.QueryRowContext(ctx, "select doc from item_doc where item = $1 and kind = $2", id, kind).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return v, nil
	}
	if err != nil {
		return v, fail("read "+kind, err)
	}
	return decode[T](text)
}

// Docs reads the documents of a kind of all items.
func Docs[T any](ctx context.Context, q sqldb.Querier, kind string) (map[dr.ItemID]T, error) {
	out := map[dr.ItemID]T{}
	_, err := list(ctx, q, "read "+kind, func(s scanner) (none struct{}, err error) {
		var id dr.ItemID
		var text string
		if err = s.Scan(&id, &text); err == nil {
			out[id], err = decode[T](text)
		}
		return none, err
	}, "select item, doc from item_doc where kind = $1", kind)
	return out, err
}

// ClaimDuty takes or renews a duty that only one process may have at a time:
// it succeeds if owner has it, nobody has it, or its time has run out. now is
// the time that all processes agree on (sqldb.Dialect.Now).
func ClaimDuty(ctx context.Context, q sqldb.Querier, name, owner string, now, until time.Time) (bool, error) {
	n, err := exec(ctx, q, "claim duty "+name, `insert into duty (name, owner, until) values ($1, $2, $3)
		on conflict (name) do update set owner = excluded.owner, until = excluded.until where duty.owner = excluded.owner or duty.until < $4`,
		name, owner, sqldb.Micros(until), sqldb.Micros(now))
	return n == 1, err
}

// ReleaseDuty gives a duty up if owner has it.
func ReleaseDuty(ctx context.Context, q sqldb.Querier, name, owner string) error {
	_, err := exec(ctx, q, "release duty "+name, "delete from duty where name = $1 and owner = $2", name, owner)
	return err
}

// InsertGroup adds a consistency group without members; KindConflict if the name is taken.
func InsertGroup(ctx context.Context, q sqldb.Querier, g dr.ConsistencyGroup, created time.Time) error {
	n, err := exec(ctx, q, "add consistency group "+g.Name, `insert into consistency_group (id, name, name_key, fabric, created)
		values ($1, $2, $3, $4, $5) on conflict (name_key) do nothing`, g.ID, g.Name, Key(g.Name), g.Fabric, sqldb.Micros(created))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertGroup", "consistency group", g.Name)
	}
	return err
}

// DeleteGroup removes a group; its members stay protected.
func DeleteGroup(ctx context.Context, q sqldb.Querier, id dr.GroupID) error {
	if _, err := exec(ctx, q, "remove consistency group", "delete from group_member where group_id = $1", id); err != nil {
		return err
	}
	n, err := exec(ctx, q, "remove consistency group", "delete from consistency_group where id = $1", id)
	if err == nil && n == 0 {
		return notFound("vaultdb.DeleteGroup", "consistency group", string(id))
	}
	return err
}

// SetGroupMembers replaces a group's members. A member of another group is KindConflict.
func SetGroupMembers(ctx context.Context, q sqldb.Querier, id dr.GroupID, items []dr.ItemID) error {
	if _, err := exec(ctx, q, "change consistency group", "delete from group_member where group_id = $1", id); err != nil {
		return err
	}
	for _, it := range items {
		n, err := exec(ctx, q, "change consistency group", "insert into group_member (item, group_id) values ($1, $2) on conflict do nothing", it, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "vaultdb.SetGroupMembers", "item %s is a member of another consistency group, or named twice", it).
				WithHint("an item belongs to one group: remove it from the other one first")
		}
	}
	return nil
}

// Groups lists all consistency groups by name.
func Groups(ctx context.Context, q sqldb.Querier) ([]dr.ConsistencyGroup, error) {
	groups, err := list(ctx, q, "list consistency groups", func(s scanner) (g dr.ConsistencyGroup, err error) {
		err = s.Scan(&g.ID, &g.Name, &g.Fabric)
		return g, err
	}, "select id, name, fabric from consistency_group order by name_key")
	if err != nil || len(groups) == 0 {
		return groups, err
	}
	at := map[dr.GroupID]int{}
	for i, g := range groups {
		at[g.ID] = i
	}
	_, err = list(ctx, q, "list members of consistency groups", func(s scanner) (none struct{}, err error) {
		var id dr.GroupID
		var it dr.ItemID
		if err = s.Scan(&id, &it); err != nil {
			return none, err
		}
		if i, ok := at[id]; ok {
			groups[i].Items = append(groups[i].Items, it)
		}
		return none, nil
	}, "select group_id, item from group_member order by group_id, item")
	return groups, err
}

// Group finds a consistency group.
func Group(ctx context.Context, q sqldb.Querier, id dr.GroupID) (dr.ConsistencyGroup, error) {
	all, err := Groups(ctx, q)
	if err != nil {
		return dr.ConsistencyGroup{}, err
	}
	for _, g := range all {
		if g.ID == id {
			return g, nil
		}
	}
	return dr.ConsistencyGroup{}, notFound("vaultdb.Group", "consistency group", string(id))
}
