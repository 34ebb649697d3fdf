package vaultdb_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vaultdb"
)

func window(t *testing.T, text string) dr.Window {
	t.Helper()
	w, err := dr.ParseWindow(text)
	check(t, err)
	return w
}

func TestPolicySettings(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		q := db.SQL()
		p := dr.Policy{ID: "p9", Name: "Full", CopyFrequency: 30 * time.Second, Retention: time.Hour, Created: t0, RetainHourly: 24 * time.Hour, RetainDaily: 720 * time.Hour,
			ResyncAuto: dr.ResyncManual, ResyncWindow: window(t, "Mon-Fri 18:30-06:00"), ResyncThreshold: -1, InitialMode: dr.InitialSerial,
			InitialWindow: window(t, "22:00-04:00 Europe/Berlin"), InitialPriority: -10, Compression: dr.CompressionFast,
			Bandwidth: []dr.BandwidthRule{{Window: window(t, "08:00-18:00"), BytesPerSecond: 1 << 20}, {BytesPerSecond: 0}}}
		check(t, p.Validate())
		check(t, vaultdb.InsertPolicy(ctx, q, p))
		got, err := vaultdb.PolicyByID(ctx, q, "p9")
		check(t, err)
		if !got.Equal(p) {
			t.Errorf("stored policy\n got %+v\nwant %+v", got, p)
		}
		plain := dr.Policy{ID: p.ID, Name: p.Name, CopyFrequency: p.CopyFrequency, Created: t0}
		check(t, vaultdb.UpdatePolicy(ctx, q, plain))
		got, err = vaultdb.PolicyByName(ctx, q, "full")
		if check(t, err); !got.Equal(plain) {
			t.Errorf("changed policy %+v", got)
		}
		// A row from before the settings existed.
		if _, err := q.ExecContext(ctx, "update policy set settings = ''"); err != nil {
			t.Fatal(err)
		}
		got, err = vaultdb.PolicyByID(ctx, q, "p9")
		if check(t, err); !got.Equal(plain) {
			t.Errorf("old policy %+v", got)
		}
		_, err = vaultdb.PolicyByID(ctx, q, "none")
		wantKind(t, "absent policy", err, dr.KindNotFound)
	})
}

func TestLabelsAndCounts(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		q := db.SQL()
		for n := range uint64(4) {
			_, err := vaultdb.InsertPoint(ctx, q, vaultdb.Point{RecoveryPoint: dr.RecoveryPoint{Machine: "m", Gen: 1, N: n, Time: t0, StoredBytes: 10, Consistency: dr.CrashConsistent}, Group: "g", GroupSeq: n / 2})
			check(t, err)
		}
		newer, all, stored, err := vaultdb.CountPoints(ctx, q, "m", 1)
		if check(t, err); newer != 2 || all != 4 || stored != 40 {
			t.Errorf("%d newer, %d, %d bytes", newer, all, stored)
		}
		_, all, _, err = vaultdb.CountPoints(ctx, q, "none", 0)
		if check(t, err); all != 0 {
			t.Errorf("%d points of nothing", all)
		}
		ps, err := vaultdb.GroupPoints(ctx, q, "g")
		if check(t, err); len(ps) != 4 || ps[0].GroupSeq != 1 || ps[3].GroupSeq != 0 {
			t.Errorf("group points %+v", ps)
		}
		l := vaultdb.Label{Machine: "m", Gen: 1, N: 2, Name: "before upgrade", By: "me", At: t0}
		check(t, vaultdb.SaveLabel(ctx, q, l))
		l.Held, l.Name = true, "x"
		check(t, vaultdb.SaveLabel(ctx, q, l))
		got, err := vaultdb.Labels(ctx, q, "m")
		check(t, err)
		same(t, "labels", got, []vaultdb.Label{l})
		l.Held, l.Name = false, ""
		check(t, vaultdb.SaveLabel(ctx, q, l))
		if got, err = vaultdb.Labels(ctx, q, "m"); err != nil || len(got) != 0 {
			t.Errorf("labels %v %v", got, err)
		}
	})
}

type note struct {
	A int       `json:"a"`
	T time.Time `json:"t,omitzero"`
}

func TestDocsAndDuties(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		q := db.SQL()
		if d, err := vaultdb.Doc[note](ctx, q, "i1", "k"); err != nil || d != (note{}) {
			t.Errorf("no document: %v %v", d, err)
		}
		for i := range 2 {
			check(t, vaultdb.SaveDoc(ctx, q, "i1", "k", note{i, t0}, t0))
		}
		all, err := vaultdb.Docs[note](ctx, q, "k")
		check(t, err)
		same(t, "documents", all, map[dr.ItemID]note{"i1": {1, t0}})
		if _, err := q.ExecContext(ctx, `update item_doc set doc = '{"v":9,"d":{}}'`); err != nil {
			t.Fatal(err)
		}
		if _, err := vaultdb.Doc[note](ctx, q, "i1", "k"); dr.CodeOf(err) != dr.CodeFormatUnsupported {
			t.Errorf("a newer document: %v", err)
		}
		claim := func(owner string, now, until time.Duration, want bool) {
			t.Helper()
			check(t, db.Tx(ctx, func(tx *sql.Tx) error {
				got, err := vaultdb.ClaimDuty(ctx, tx, "d", owner, t0.Add(now), t0.Add(until))
				if err == nil && got != want {
					t.Errorf("%s at %v: %v", owner, now, got)
				}
				return err
			}))
		}
		claim("a", 0, time.Minute, true)
		claim("b", 30*time.Second, 2*time.Minute, false)
		claim("a", 30*time.Second, 90*time.Second, true)
		claim("b", 90*time.Second, 3*time.Minute, false) // the end itself is still inside
		claim("b", 91*time.Second, 3*time.Minute, true)
		claim("a", 92*time.Second, 3*time.Minute, false)
		check(t, vaultdb.ReleaseDuty(ctx, q, "d", "a")) // not its own any more
		claim("a", 93*time.Second, 3*time.Minute, false)
		check(t, vaultdb.ReleaseDuty(ctx, q, "d", "b"))
		claim("a", 94*time.Second, 3*time.Minute, true)
		check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeleteItem(ctx, tx, item()) }))
		if all, err = vaultdb.Docs[note](ctx, q, "k"); err != nil || len(all) != 0 {
			t.Errorf("documents of a removed item: %v %v", all, err)
		}
	})
}

func TestGroups(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		q := db.SQL()
		second := item()
		second.ID, second.Name, second.Machine, second.VM = "i2", "other", "m2", "vm2"
		check(t, vaultdb.InsertItem(ctx, q, second))
		g := dr.ConsistencyGroup{ID: "g1", Name: "Shop", Fabric: "f1", Items: []dr.ItemID{"i1", "i2"}}
		check(t, vaultdb.InsertGroup(ctx, q, g, t0))
		wantKind(t, "name taken", vaultdb.InsertGroup(ctx, q, dr.ConsistencyGroup{ID: "g2", Name: "SHOP", Fabric: "f1"}, t0), dr.KindConflict)
		check(t, vaultdb.InsertGroup(ctx, q, dr.ConsistencyGroup{ID: "g2", Name: "b", Fabric: "f1"}, t0))
		check(t, vaultdb.SetGroupMembers(ctx, q, "g1", g.Items))
		wantKind(t, "member of another group", db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.SetGroupMembers(ctx, tx, "g2", []dr.ItemID{"i2"}) }), dr.KindConflict)
		got, err := vaultdb.Group(ctx, q, "g1")
		check(t, err)
		same(t, "group", got, g)
		check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeleteItem(ctx, tx, second) }))
		all, err := vaultdb.Groups(ctx, q)
		check(t, err)
		g.Items = g.Items[:1]
		same(t, "groups", all, []dr.ConsistencyGroup{{ID: "g2", Name: "b", Fabric: "f1"}, g})
		check(t, errors.Join(vaultdb.DeleteGroup(ctx, q, "g1"), vaultdb.DeleteGroup(ctx, q, "g2")))
		wantKind(t, "absent group", vaultdb.DeleteGroup(ctx, q, "g1"), dr.KindNotFound)
		_, err = vaultdb.Group(ctx, q, "g1")
		wantKind(t, "absent group", err, dr.KindNotFound)
	})
}
