package replica_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store/storetest"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vaultdb"
)

// keeping is a bucket that leaves the retention of new objects to the vault.
type keeping struct {
	objstore.Bucket
	need bool

	mu    sync.Mutex
	fail  error
	asked int
	kept  []string
}

func (k *keeping) RetainsNew() bool { return k.need }

func (k *keeping) RetainNew(_ context.Context, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.fail != nil {
		return k.fail
	}
	k.kept = append(k.kept, key)
	return nil
}

func (k *keeping) set(fail error) (asked int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fail
	return k.asked
}

// missing is what an agent has written and nobody has retained.
func (k *keeping) missing(rep *storetest.Replica) (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range rep.Keys() {
		o, err := cut.ParseObject(key)
		if err == nil && (o.Class == cut.ClassCut || o.Class == cut.ClassPart || o.Class == cut.ClassTile || o.Class == cut.ClassKey) && !slices.Contains(k.kept, key) {
			out = append(out, key)
		}
	}
	return out
}

func events(t *testing.T, r *rig, kind string) (out []string) {
	t.Helper()
	rows, err := r.st.DB.SQL().QueryContext(t.Context(), "select text from event where kind = $1 order by id", kind)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		out = append(out, text)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRetainsNewObjects: what a listed cut consists of is retained, and the key
// that it needs; a store that fails costs no point, is told of once, and is asked
// again by the reconciliation, also after a restart.
func TestRetainsNewObjects(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	k := &keeping{Bucket: mem.New(), need: true}
	rep := storetest.New(t, k.Bucket, 1<<20)
	var mu sync.Mutex
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	r := newRig(t, rep.Machine, func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	x := r.replicas(t, k, func(c *replica.Config) { c.Key = rep.Private })
	write := func(off int64) { rep.Write(0, off, []byte(strings.Repeat("x", cut.Unit))) }
	commit := func(p storetest.Point) {
		t.Helper()
		if _, err := x.CommitCut(ctx, agent, agentapi.CommitRequest{Machine: string(rep.Machine), Generation: uint32(p.Ref.Gen), N: p.Ref.N}); err != nil {
			t.Fatalf("cut %d: %v", p.Ref.N, err)
		}
	}
	points := func(want int) {
		t.Helper()
		if have, err := vaultdb.Points(ctx, r.st.Q(), rep.Machine, 0); err != nil || len(have) != want {
			t.Errorf("%d points, wanted %d: %v", len(have), want, err)
		}
	}
	write(0)
	commit(rep.Base())
	write(8192)
	commit(rep.Cut())
	if left := k.missing(rep); len(left) > 0 {
		t.Errorf("not retained: %v", left)
	}

	// The store is away: points are listed all the same.
	k.set(&objstore.Error{Op: "retain", Key: "x", Kind: objstore.ErrUnavailable, Err: errors.New("injected")})
	for range 3 {
		write(0)
		commit(rep.Cut())
	}
	points(5)
	if err := x.ReconcileAll(ctx); err == nil {
		t.Error("the reconciliation does not tell of it")
	}
	if left := k.missing(rep); len(left) != 3 {
		t.Errorf("%d are not retained: %v", len(left), left)
	}
	if n := len(events(t, r, "notRetained")); n != 1 {
		t.Errorf("%d events", n)
	}
	if s := r.logs.String(); strings.Count(s, "does not retain") != 1 || !strings.Contains(s, "injected") {
		t.Errorf("log:\n%s", s)
	}
	k.set(nil)
	x = r.replicas(t, k, func(c *replica.Config) { c.Key = rep.Private }) // after a restart
	if err := x.ReconcileAll(ctx); err != nil {
		t.Fatal(err)
	}
	if left := k.missing(rep); len(left) > 0 {
		t.Errorf("still not retained: %v", left)
	}
	if n := len(events(t, r, "retained")); n != 1 {
		t.Errorf("%d events of the end", n)
	}
	before := k.set(nil)
	if err := x.ReconcileAll(ctx); err != nil || k.set(nil) != before {
		t.Errorf("asked %d times for nothing, %v", k.set(nil)-before, err)
	}
	// Cuts that nobody has announced are found by the reconciliation, and retained by it.
	write(0)
	rep.Cut()
	mu.Lock()
	now = now.Add(25 * time.Hour)
	mu.Unlock()
	if err := x.ReconcileAll(ctx); err != nil {
		t.Fatal(err)
	}
	points(6)
	if left := k.missing(rep); len(left) > 0 {
		t.Errorf("not announced, and not retained: %v", left)
	}
	k.mu.Lock()
	keys := 0
	for _, name := range k.kept {
		if name == cut.KeyObject(rep.Machine, 1) {
			keys++
		}
	}
	k.mu.Unlock()
	if keys < 3 { // at first, after the restart, and after a day
		t.Errorf("the key in use was retained %d times", keys)
	}
	if stuck, err := vaultdb.Docs[map[string]any](ctx, r.st.Q(), replica.DocRetain); err != nil || len(stuck["i1"]) != 0 {
		t.Errorf("left: %v, %v", stuck, err)
	}
}

// TestRetainsOnlyWhereAsked: a store that retains by itself is not bothered.
func TestRetainsOnlyWhereAsked(t *testing.T) {
	t.Parallel()
	k := &keeping{Bucket: mem.New()}
	rep := storetest.New(t, k.Bucket, 1<<20)
	r := newRig(t, rep.Machine, time.Now)
	x := r.replicas(t, k, func(c *replica.Config) { c.Key = rep.Private })
	rep.Base()
	if err := x.ReconcileAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have, err := vaultdb.Points(t.Context(), r.st.Q(), rep.Machine, 0); err != nil || len(have) != 1 || k.asked != 0 {
		t.Errorf("%d points, asked %d times, %v", len(have), k.asked, err)
	}
}

// TestRetainedInAzure: with retain-signed=vault what an agent has sent cannot be
// deleted any more once its cut is listed, not by the vault either.
func TestRetainedInAzure(t *testing.T) {
	t.Parallel()
	s := newAccount(t)
	if err := s.store.Configure("contoso", pagestore.AccountSettings{Immutable: true}); err != nil {
		t.Fatal(err)
	}
	agents := newBucket(t, s.settings(false)) // writes as signed URLs do: without retention
	c := s.settings(false)
	c.RetainMode, c.RetainFor, c.RetainSigned = azure.Locked, time.Hour, azure.ByVault
	b := newBucket(t, c)
	rep := storetest.New(t, agents, 1<<20)
	r := newRig(t, rep.Machine, time.Now)
	x := r.replicas(t, b, func(c *replica.Config) { c.Key = rep.Private })
	rep.Write(0, 0, []byte(strings.Repeat("x", cut.Unit)))
	p := rep.Base()
	refuse := s.store.Fault(pagestore.Fault{Operation: "SetBlobImmutabilityPolicy", Status: 503, Code: "ServerBusy"})
	if _, err := x.CommitCut(t.Context(), agent, agentapi.CommitRequest{Machine: string(rep.Machine), Generation: 1, N: p.Ref.N}); err != nil {
		t.Fatal(err)
	}
	if e := events(t, r, "notRetained"); refuse.Fired() == 0 || len(e) != 1 || !strings.Contains(e[0], dr.PointName(1, p.Ref.N)) {
		t.Errorf("fired %d times, events %q", refuse.Fired(), e)
	}
	refuse.Remove()
	if err := x.ReconcileAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, key := range rep.Keys() {
		o, err := cut.ParseObject(key)
		if err != nil || o.Class == cut.ClassGeneration {
			continue // written by the vault, in life with the retention from the start
		}
		if err := b.Delete(t.Context(), key); objstore.CauseOf(err) != objstore.CauseRetained {
			t.Errorf("delete %s: %v", key, err)
		}
	}
}
