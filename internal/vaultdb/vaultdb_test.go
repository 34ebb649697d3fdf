package vaultdb_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
	"holdfast/internal/vaultdb"
)

func TestMain(m *testing.M) { sqldbtest.Main(m) }

var t0 = time.Date(2026, 11, 22, 15, 0, 0, 123456000, time.UTC)

// each runs f on a migrated database of both engines.
func each(t *testing.T, f func(t *testing.T, ctx context.Context, db *sqldb.DB)) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for range 2 { // migrating again changes nothing
			if err := vaultdb.Migrate(t.Context(), db); err != nil {
				t.Fatal(err)
			}
		}
		f(t, t.Context(), db)
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, what string, err error, k dr.Kind) {
	t.Helper()
	if err == nil || dr.KindOf(err) != k || errors.Is(err, sqldb.ErrInfrastructure) {
		t.Errorf("%s: %v, want kind %v", what, err, k)
	}
}

// same compares everything that was stored.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func item() vaultdb.Item {
	return vaultdb.Item{ProtectedItem: dr.ProtectedItem{ID: "i1", Name: "Web", Fabric: "f1", VM: "vm1", VMName: "web1", Policy: "p1", Machine: "m1", Gen: 3,
		SourceAgent: "a1", RecoveryFabric: "f2", RecoveryAgent: "a2", Disks: []string{"vda", "vdb"}, Protection: dr.Protected, Failover: dr.FailoverNone,
		Test: dr.TestWaiting, Active: dr.AtPrimary, Resync: "why", Paused: true, Job: "j1", FailedOverTo: "x", RecoveryVM: "r", TestVM: "tv", TestNetwork: "tn",
		Health: dr.HealthWarning, HealthErrors: []dr.HealthError{{Code: "C", Severity: dr.HealthWarning, Message: "m", Cause: "c", Remedy: "r", Since: t0}},
		Settings: dr.ItemSettings{RecoveryVMName: "n", CPUs: 2, MemoryMB: 3, Network: "net", TestNetwork: "t", Raw: `{"a":1}`},
		Created:  t0, LastTest: t0, LastFailover: t0.Add(time.Second), LastTestReport: `{"ok":true}`}, ResyncRequest: "rr", SourceStopped: true,
		More: vaultdb.More{PauseReason: "patch day", ResumeAt: t0, RetryNow: "rn", Full: "fu", ResyncReason: dr.CodeHostCrash, ResyncFull: true, Shaped: true, Excluded: []string{"vdc"}, Missing: []string{"vdd"},
			Reopen: "why", Seed: true, Want: &vaultdb.Want{Code: dr.CodeLogSequence, Text: "t", At: t0, Full: true, Asked: true, Seen: true}}}
}

func seed(t *testing.T, ctx context.Context, db *sqldb.DB) {
	t.Helper()
	check(t, db.Tx(ctx, func(tx *sql.Tx) error {
		return errors.Join(
			vaultdb.InsertFabric(ctx, tx, dr.Fabric{ID: "f1", Name: "Primary", Type: dr.KVMSite, Created: t0}),
			vaultdb.InsertFabric(ctx, tx, dr.Fabric{ID: "f2", Name: "Recovery", Type: dr.KVMSite, Created: t0}),
			vaultdb.InsertPolicy(ctx, tx, dr.Policy{ID: "p1", Name: "Gold", CopyFrequency: 30 * time.Second, Retention: 24 * time.Hour, AppFrequency: time.Hour,
				StartTime: "22:00", Storage: "s", Created: t0}),
			vaultdb.InsertItem(ctx, tx, item()))
	}))
}

func TestSites(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		q := db.SQL()
		f, err := vaultdb.FabricByName(ctx, q, "PRIMARY")
		check(t, err)
		same(t, "fabric", f, dr.Fabric{ID: "f1", Name: "Primary", Type: dr.KVMSite, Created: t0})
		_, err = vaultdb.FabricByName(ctx, q, "none")
		wantKind(t, "absent fabric", err, dr.KindNotFound)
		wantKind(t, "name taken", vaultdb.InsertFabric(ctx, q, dr.Fabric{ID: "f3", Name: "primary"}), dr.KindConflict)

		p := vaultdb.Provider{Provider: dr.Provider{ID: "a1", Fabric: "f1", Host: "h", Roles: []dr.AgentRole{dr.RoleSource, dr.RoleRecovery}, Version: "1",
			Hypervisor: "q", Registered: t0, LastSeen: t0}, MachineID: "mid", CertSerial: "s", PrevSerial: "ps", KeyHash: "kh", NotAfter: t0.Add(time.Hour)}
		check(t, vaultdb.SaveProvider(ctx, q, p))
		got, err := vaultdb.ProviderOfHost(ctx, q, "f1", "mid", "h")
		check(t, err)
		same(t, "provider", got, p)
		check(t, vaultdb.TouchProvider(ctx, q, "a1", t0.Add(time.Minute), "q2", ""))
		got, err = vaultdb.ProviderByID(ctx, q, "a1")
		check(t, err)
		p.LastSeen, p.Hypervisor = t0.Add(time.Minute), "q2"
		same(t, "touched provider", got, p)
		twin := p
		twin.ID = "a9"
		if err := vaultdb.SaveProvider(ctx, q, twin); err == nil {
			t.Error("one host has two registrations in a site")
		}
		check(t, vaultdb.ReplaceNetworks(ctx, q, "a1", []vaultdb.Network{{Name: "n", Isolated: true}, {Name: "b", Active: true}}))
		check(t, vaultdb.ReplaceNetworks(ctx, q, "a1", []vaultdb.Network{{Name: "n", Isolated: true}}))
		nets, err := vaultdb.Networks(ctx, q, "f1")
		check(t, err)
		same(t, "networks", nets, []vaultdb.Network{{Agent: "a1", Name: "n", Isolated: true}})
		p.Revoked = true
		check(t, vaultdb.SaveProvider(ctx, q, p))
		list, err := vaultdb.Providers(ctx, q, "")
		check(t, err)
		if len(list) != 0 {
			t.Errorf("a revoked agent is listed: %v", list)
		}
		check(t, vaultdb.SaveProvider(ctx, q, twin)) // the host registers again

		k := vaultdb.RegistrationKey{ID: "k", Fabric: "f1", Hash: []byte{0, 255, 1}, OneTime: true, Created: t0, Expires: t0.Add(time.Hour), CreatedBy: "me"}
		check(t, vaultdb.InsertKey(ctx, q, k))
		check(t, vaultdb.UseKey(ctx, q, "k", "a1"))
		check(t, vaultdb.RevokeKey(ctx, q, "k"))
		wantKind(t, "revoke an absent key", vaultdb.RevokeKey(ctx, q, "none"), dr.KindNotFound)
		k.Uses, k.UsedBy, k.Revoked = 1, "a1", true
		check(t, db.Tx(ctx, func(tx *sql.Tx) error {
			gotKey, err := vaultdb.LockKey(ctx, tx, "k")
			same(t, "key", gotKey, k)
			return err
		}))

		vm := dr.VM{ID: "vm1", Name: "web1", Fabric: "f1", Agent: "a9", Running: true, Generation: 2, CPUs: 2, MemoryMB: 4, OSType: "Linux", Seen: t0,
			Disks: []dr.Disk{{ID: "vda", Path: "/p", Format: "raw", Size: 1 << 40, Boot: true, Shared: true, PassThru: true, Unreplicatable: "raw"}},
			NICs:  []dr.NIC{{ID: "n", MAC: "m", Network: "net", Type: "bridge", IPs: []string{"10.0.0.1"}}}}
		check(t, vaultdb.SaveVM(ctx, q, vm))
		gotVM, err := vaultdb.VM(ctx, q, "f1", "VM1")
		check(t, err)
		same(t, "vm", gotVM, vm)
		for i, want := range []bool{true, false} {
			news, err := vaultdb.SeeVM(ctx, q, "f1", "vm1", "a2", t0)
			if err != nil || news != want {
				t.Errorf("sighting %d: %v %v", i, news, err)
			}
		}
		check(t, vaultdb.MarkGone(ctx, q, "f1", "vm1"))
		gotVM, err = vaultdb.VM(ctx, q, "f1", "vm1")
		if err != nil || !gotVM.Gone || gotVM.Running {
			t.Errorf("gone VM: %+v %v", gotVM, err)
		}
	})
}

func TestPolicies(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		q := db.SQL()
		p, err := vaultdb.PolicyByName(ctx, q, "gold")
		check(t, err)
		wantKind(t, "policy in use", vaultdb.DeletePolicy(ctx, q, p), dr.KindConflict)
		p.CopyFrequency = time.Minute
		check(t, vaultdb.UpdatePolicy(ctx, q, p))
		all, err := vaultdb.Policies(ctx, q)
		check(t, err)
		same(t, "policies", all, []dr.Policy{p})
		m := dr.ContainerMapping{Name: "M1", Fabric: "f1", Policy: "p1", Target: "Microsoft Azure", TargetFabric: "", Created: t0}
		check(t, vaultdb.InsertMapping(ctx, q, m))
		wantKind(t, "mapping taken", vaultdb.InsertMapping(ctx, q, dr.ContainerMapping{Name: "m1", Fabric: "f1", Policy: "p1"}), dr.KindConflict)
		got, err := vaultdb.Mapping(ctx, q, "f1", "m1")
		check(t, err)
		same(t, "mapping", got, m)
		check(t, vaultdb.DeleteMapping(ctx, q, "f1", "M1"))
		wantKind(t, "absent mapping", vaultdb.DeleteMapping(ctx, q, "f1", "M1"), dr.KindNotFound)
	})
}

func TestItems(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		q := db.SQL()
		got, err := vaultdb.ItemByName(ctx, q, "f1", "WEB")
		check(t, err)
		same(t, "item", got, item())
		twin := item()
		twin.ID, twin.Name, twin.Machine = "i2", "other", "m2"
		wantKind(t, "the VM is protected", vaultdb.InsertItem(ctx, q, twin), dr.KindConflict)
		check(t, db.Tx(ctx, func(tx *sql.Tx) error {
			it, err := vaultdb.LockItem(ctx, tx, "i1")
			if err != nil {
				return err
			}
			it.Protection, it.Failover, it.Test, it.Active = dr.Disabling, dr.FailoverCommitPending, dr.TestNone, dr.AtRecovery
			it.Gen, it.Job, it.Paused, it.SourceStopped, it.Settings.Raw = 9, "", false, false, ""
			got = it
			return vaultdb.UpdateItem(ctx, tx, it)
		}))
		back, err := vaultdb.ItemByMachine(ctx, q, "m1")
		check(t, err)
		same(t, "changed item", back, got)
		check(t, vaultdb.SetHealth(ctx, q, "i1", dr.HealthNormal, nil))
		wantKind(t, "update an absent item", vaultdb.UpdateItem(ctx, q, twin), dr.KindNotFound)
		_, err = vaultdb.LockItem(ctx, q, "none")
		wantKind(t, "lock an absent item", err, dr.KindNotFound)

		st := vaultdb.Report{ReplicationStatus: dr.ReplicationStatus{Phase: "delta", Percent: 50, BytesDone: 1, BytesTotal: 2, ETA: time.Minute, BacklogBytes: 3,
			Spooled: 4, LastCut: t0, Missed: 5, Cycles: 6, Err: &dr.HealthError{Code: "X", Severity: dr.HealthCritical, Since: t0}, At: t0,
			BacklogRate: 7, ShipRate: 8, Converging: dr.NotConverging, BacklogSeconds: time.Second, ResyncReason: dr.CodeHostCrash, NextResync: t0.Add(time.Hour),
			ConsistencyNote: "no guest agent"}, NextInitial: t0, Attempt: 2, RetryAt: t0, SentBytes: 9, CutDisks: []string{"vda"}}
		check(t, vaultdb.SaveStatus(ctx, q, "i1", st))
		check(t, vaultdb.SaveStatus(ctx, q, "i1", st))
		_, err = vaultdb.InsertPoint(ctx, q, vaultdb.Point{RecoveryPoint: dr.RecoveryPoint{Machine: "m1", Gen: 1, N: 4, Time: t0.Add(time.Minute), Consistency: dr.CrashConsistent}, Hash: "h"})
		check(t, err)
		st.LastPoint = t0.Add(time.Minute)
		gotSt, err := vaultdb.Status(ctx, q, "i1")
		check(t, err)
		same(t, "status", gotSt, st)
		check(t, vaultdb.SaveScreenshot(ctx, q, "j", "i1", []byte{0, 1, 255}, t0))
		png, err := vaultdb.Screenshot(ctx, q, "j")
		check(t, err)
		same(t, "screenshot", png, []byte{0, 1, 255})

		sv := vaultdb.Serving{ID: "s1", Item: "i1", Machine: "m1", Gen: 1, N: 4, Agent: "a2", Kind: dr.KindTestFailover, VM: "v", Booted: true, Local: true, Created: t0}
		check(t, vaultdb.SaveServing(ctx, q, sv))
		gotSv, err := vaultdb.Servings(ctx, q, "i1")
		check(t, err)
		same(t, "servings", gotSv, []vaultdb.Serving{sv})
		check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeleteItem(ctx, tx, back) }))
		for _, table := range []string{"item", "status", "serving", "point", "screenshot"} {
			var n int
			if err := q.QueryRowContext(ctx, "select count(*) from "+table).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows are left in %s (%v)", n, table, err)
			}
		}
	})
}

func TestPoints(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		q := db.SQL()
		_, err := vaultdb.LatestPoint(ctx, q, "m", "")
		wantKind(t, "no point", err, dr.KindPrecondition)
		point := func(g dr.Generation, n uint64, c dr.Consistency) vaultdb.Point {
			return vaultdb.Point{RecoveryPoint: dr.RecoveryPoint{Machine: "m", Gen: g, N: n, Time: t0.Add(time.Duration(n%1000) * time.Second), Consistency: c, Resync: true,
				DirtyBytes: 1, DataBytes: 2, StoredBytes: 3, Note: "no agent"}, Hash: "hash", Group: "g", GroupSeq: n / 2, GroupSize: 3}
		}
		for _, p := range []vaultdb.Point{point(1, 1, dr.AppConsistent), point(1, 2, dr.CrashConsistent), point(2, 10, dr.CrashConsistent)} {
			for i, want := range []bool{true, false} {
				if news, err := vaultdb.InsertPoint(ctx, q, p); err != nil || news != want {
					t.Errorf("insert %d of %s: %v %v", i, p.Name(), news, err)
				}
			}
		}
		all, err := vaultdb.Points(ctx, q, "m", 0)
		check(t, err)
		same(t, "points", all, []vaultdb.Point{point(2, 10, dr.CrashConsistent), point(1, 2, dr.CrashConsistent), point(1, 1, dr.AppConsistent)})
		last, err := vaultdb.LatestPoint(ctx, q, "m", dr.AppConsistent)
		if err != nil || last.N != 1 {
			t.Errorf("latest application-consistent point: %v %v", last, err)
		}
		_, err = vaultdb.PointByNumber(ctx, q, "m", 2, 2)
		wantKind(t, "a point of another generation", err, dr.KindNotFound)
		_, err = vaultdb.PointByNumber(ctx, q, "m", 2, math.MaxUint64)
		wantKind(t, "a number beyond the column", err, dr.KindNotFound)

		g := vaultdb.Generation{Machine: "m", Gen: 2, Agent: "a", Reason: "r", Created: t0}
		check(t, vaultdb.SaveGeneration(ctx, q, g))
		g.BaseGen, g.BaseN, g.BaseHash, g.Written, g.Seeded = 1, 2, "h", true, true
		g.Disks = []vaultdb.Disk{{ID: "vda", Index: 1}, {ID: "vdb", Index: 3, Size: 9}}
		check(t, vaultdb.SaveGeneration(ctx, q, g))
		late := g
		late.BaseN, late.Agent = 99, "zombie"
		check(t, vaultdb.SaveGeneration(ctx, q, late))
		gens, err := vaultdb.Generations(ctx, q, "m")
		check(t, err)
		same(t, "a written generation stays", gens, []vaultdb.Generation{g})
	})
}

func TestAccess(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		q := db.SQL()
		check(t, vaultdb.SavePrincipal(ctx, q, vaultdb.Principal{Name: "Admin", Kind: vaultdb.KindUser, Role: dr.RoleOwner, Hash: "h", Created: t0}))
		check(t, vaultdb.InsertToken(ctx, q, vaultdb.Token{Hash: "t1", Principal: "ADMIN", Kind: vaultdb.KindToken, Created: t0, Expires: t0.Add(time.Hour)}))
		who, err := vaultdb.TokenPrincipal(ctx, q, "t1", vaultdb.KindToken, t0)
		if err != nil || who.Name != "admin" || who.Role != dr.RoleOwner {
			t.Errorf("principal %+v %v", who, err)
		}
		for what, err := range map[string]error{
			"expired":    second(vaultdb.TokenPrincipal(ctx, q, "t1", vaultdb.KindToken, t0.Add(time.Hour))),
			"other kind": second(vaultdb.TokenPrincipal(ctx, q, "t1", vaultdb.KindSession, t0)),
			"unknown":    second(vaultdb.TokenPrincipal(ctx, q, "t2", vaultdb.KindToken, t0)),
		} {
			wantKind(t, what, err, dr.KindUnauthenticated)
		}
		check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeletePrincipal(ctx, tx, "admin") }))
		wantKind(t, "token of a removed principal", second(vaultdb.TokenPrincipal(ctx, q, "t1", vaultdb.KindToken, t0)), dr.KindUnauthenticated)

		for i, want := range []string{"a", "a"} {
			if got, err := vaultdb.InitSetting(ctx, q, "x", []string{"a", "b"}[i]); err != nil || got != want {
				t.Errorf("init %d: %q %v", i, got, err)
			}
		}
		check(t, vaultdb.SetSetting(ctx, q, "x", "c"))
		if got, err := vaultdb.Setting(ctx, q, "x"); err != nil || got != "c" {
			t.Errorf("setting %q %v", got, err)
		}
		for _, e := range []vaultdb.Event{{ID: "1", At: t0, Kind: "k", Item: "i1", By: "b", Audit: true, Text: "one"}, {ID: "2", At: t0, Kind: "k", Text: "two"}} {
			check(t, vaultdb.AddEvent(ctx, q, e))
		}
		ev, err := vaultdb.Events(ctx, q, "", 10)
		if err != nil || len(ev) != 2 || ev[0].Text != "two" || !ev[1].Audit {
			t.Errorf("events %+v %v", ev, err)
		}
	})
}

func second[A, B any](_ A, b B) B { return b }

// TestUnknownDocumentVersion: a document of a newer program is refused, not guessed at.
func TestUnknownDocumentVersion(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		if _, err := db.SQL().ExecContext(ctx, `update item set settings = '{"v":2,"d":{}}'`); err != nil {
			t.Fatal(err)
		}
		_, err := vaultdb.ItemByID(ctx, db.SQL(), "i1")
		if dr.CodeOf(err) != dr.CodeFormatUnsupported {
			t.Errorf("version 2: %v", err)
		}
	})
}

// TestDatabaseFaultsAreNotAnswers: could not ask is never "does not exist".
func TestDatabaseFaultsAreNotAnswers(t *testing.T) {
	each(t, func(t *testing.T, _ context.Context, db *sqldb.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := vaultdb.ItemByID(ctx, db.SQL(), "i1")
		if !errors.Is(err, sqldb.ErrInfrastructure) || dr.KindOf(err) == dr.KindNotFound {
			t.Errorf("a cancelled read: %v", err)
		}
	})
}
