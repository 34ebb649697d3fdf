// Package manyitems measures a vault with many protected items: how long its API
// takes to answer while the agents of all of them report, as they do in five-minute
// cycles. It promises a real vault on its own SQLite database, and real HTTP requests.
package manyitems

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"database/sql"

	"github.com/google/uuid"

	"holdfast/bench/internal/meter"
	"holdfast/internal/agentapi"
	"holdfast/internal/armapi"
	"holdfast/internal/armwire"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/sqldb"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

// Result of Measure.
type Result struct {
	P50, P99, Max time.Duration // of API reads of one thing
	List          time.Duration // p50 of a page of 200 items
	Requests      int
	Commits       int           // recovery points that were listed meanwhile
	Statuses      int           // states of items that agents reported meanwhile
	Late          time.Duration // how far the agents' reports fell behind their schedule, at most
	CPU           float64       // cores in use, of the vault and of who asks it
}

const (
	perAgent = 100              // items of an agent
	cycle    = 5 * time.Minute  // of each item
	report   = 10 * time.Second // of each agent
	history  = 12               // points of each item at the start
)

type world struct {
	db     *sqldb.DB
	v      *vault.Vault
	fabric dr.Fabric
	items  []vaultdb.Item
	agents []dr.AgentID
	start  time.Time

	mu       sync.Mutex
	commits  int
	statuses int
	late     time.Duration
	err      error
}

// Measure runs a vault with so many items below dir for the given time.
func Measure(ctx context.Context, dir string, items int, took time.Duration, seed uint64) (r Result, err error) {
	w := &world{start: time.Now().UTC()}
	if w.db, err = sqldb.Open(ctx, sqldb.Config{URL: "sqlite:" + filepath.Join(dir, "vault.db")}); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.db.Close()) }()
	key, err := cut.GenerateVaultKey()
	if err != nil {
		return r, err
	}
	id := vault.Identity{Name: "bench", SubscriptionID: "5ab7cd1e-0000-4000-8000-000000000002", ResourceGroup: "rg", TenantID: "t", Location: "local"}
	w.v, err = vault.New(vault.Config{DB: w.db, Bucket: mem.New(), VaultKey: key, Identity: id, PublicURL: "https://bench.invalid", Engine: job.Config{Owner: "bench"},
		Log: slog.New(slog.DiscardHandler), ReconcileEvery: time.Hour, UpkeepEvery: -1})
	if err != nil {
		return r, err
	}
	if err := w.v.Start(ctx); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.v.Close()) }()
	boot, ok := w.v.TakeBootstrap()
	if !ok {
		return r, errors.New("a new vault has no first credentials")
	}
	if err := w.fill(ctx, items); err != nil {
		return r, err
	}
	srv, err := armapi.New(armapi.Config{Service: w.v, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return r, err
	}
	web := httptest.NewServer(srv)
	defer web.Close()
	token, _, err := w.v.IssueToken(ctx, boot.ClientID, boot.ClientSecret)
	if err != nil {
		return r, err
	}
	base := web.URL + armwire.VaultID{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name}.String() +
		"/replicationFabrics/" + w.fabric.Name + "/replicationProtectionContainers/" + w.fabric.ContainerName() + "/replicationProtectedItems"
	return w.measure(ctx, base, token, took, seed)
}

// fill makes the database of a vault that has protected its items for an hour.
func (w *world) fill(ctx context.Context, n int) error {
	w.fabric = dr.Fabric{ID: dr.FabricID(uuid.NewString()), Name: "site", Type: dr.KVMSite, Created: w.start}
	policy := dr.Policy{ID: dr.PolicyID(uuid.NewString()), Name: "bench", CopyFrequency: cycle, Retention: 24 * time.Hour, Created: w.start}
	for i := range (n + perAgent - 1) / perAgent {
		_ = i
		w.agents = append(w.agents, dr.AgentID(uuid.NewString()))
	}
	return w.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := errors.Join(vaultdb.InsertFabric(ctx, tx, w.fabric), vaultdb.InsertPolicy(ctx, tx, policy)); err != nil {
			return err
		}
		for i, a := range w.agents {
			p := vaultdb.Provider{Provider: dr.Provider{ID: a, Fabric: w.fabric.ID, Host: fmt.Sprintf("host%d", i), Roles: []dr.AgentRole{dr.RoleSource}, Registered: w.start, LastSeen: w.start},
				MachineID: fmt.Sprint(i), CertSerial: fmt.Sprintf("%x", i+1), NotAfter: w.start.AddDate(0, 1, 0)}
			if err := vaultdb.SaveProvider(ctx, tx, p); err != nil {
				return err
			}
		}
		for i := range n {
			if err := w.addItem(ctx, tx, i, policy.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *world) addItem(ctx context.Context, tx *sql.Tx, i int, policy dr.PolicyID) error {
	vm := dr.VM{ID: dr.VMID(uuid.NewString()), Name: fmt.Sprintf("vm%05d", i), Fabric: w.fabric.ID, Agent: w.agents[i/perAgent], Running: true, Generation: 1, CPUs: 2, MemoryMB: 4096,
		Disks: []dr.Disk{{ID: "vda", Path: "/vm/disk", Format: "qcow2", Size: 40 << 30, Boot: true}}, Seen: w.start}
	it := vaultdb.Item{ProtectedItem: dr.ProtectedItem{
		ID: dr.ItemID(uuid.NewString()), Name: string(vm.ID), Fabric: w.fabric.ID, VM: vm.ID, VMName: vm.Name, Policy: policy, Machine: dr.MachineID(uuid.NewString()), Gen: 1,
		SourceAgent: vm.Agent, Disks: []string{"vda"}, Protection: dr.Protected, Health: dr.HealthNormal, Created: w.start,
	}}
	w.items = append(w.items, it)
	gen := vaultdb.Generation{Machine: it.Machine, Gen: 1, Agent: vm.Agent, Reason: "protect", Written: true, Created: w.start}
	if err := errors.Join(vaultdb.SaveVM(ctx, tx, vm), vaultdb.InsertItem(ctx, tx, it), vaultdb.SaveGeneration(ctx, tx, gen)); err != nil {
		return err
	}
	for n := range history {
		if _, err := vaultdb.InsertPoint(ctx, tx, w.point(i, uint64(n), w.start.Add(time.Duration(n-history)*cycle))); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) point(i int, n uint64, at time.Time) vaultdb.Point {
	return vaultdb.Point{RecoveryPoint: dr.RecoveryPoint{Machine: w.items[i].Machine, Gen: 1, N: n, Time: at, Consistency: dr.CrashConsistent, DirtyBytes: 4 << 20, DataBytes: 4 << 20, StoredBytes: 2 << 20},
		Hash: fmt.Sprintf("%064x", n)}
}

// measure asks the API, one request after the other, while the agents report.
func (w *world) measure(ctx context.Context, base, token string, took time.Duration, seed uint64) (r Result, err error) {
	rng := rand.New(rand.NewPCG(seed, 11))
	ask := func(url string) (time.Duration, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"?api-version=2025-01-01", nil)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		start := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("the API answers %s: %.200s", resp.Status, body)
		}
		return time.Since(start), err
	}
	load, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.every(load, cycle/time.Duration(len(w.items)), w.commit) })
	wg.Go(func() { w.every(load, report/time.Duration(len(w.agents)), w.report) })
	var single, lists []time.Duration
	u, err := meter.Self(func() error {
		for i, end := 0, time.Now().Add(took); time.Now().Before(end); i++ {
			name := string(w.items[rng.IntN(len(w.items))].Name)
			url, into := base+"/"+name, &single
			switch i % 10 {
			case 3, 6:
				url += "/recoveryPoints"
			case 9:
				url, into = base, &lists
			}
			d, err := ask(url)
			if err != nil {
				return err
			}
			*into = append(*into, d)
		}
		return nil
	})
	stop()
	wg.Wait()
	if err := errors.Join(err, w.err); err != nil {
		return r, err
	}
	slices.Sort(single)
	slices.Sort(lists)
	return Result{P50: single[len(single)/2], P99: single[len(single)*99/100], Max: single[len(single)-1], List: lists[len(lists)/2], Requests: len(single) + len(lists),
		Commits: w.commits, Statuses: w.statuses, Late: w.late, CPU: u.CPU.Seconds() / u.Wall.Seconds()}, nil
}

// every calls fn for one item or agent after the other at even distances, and notes how late it gets.
func (w *world) every(ctx context.Context, pause time.Duration, fn func(context.Context, int) error) {
	start := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		due := start.Add(time.Duration(i) * pause)
		if d := time.Until(due); d > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(d):
			}
		}
		err := fn(ctx, i)
		w.mu.Lock()
		w.late = max(w.late, time.Since(due))
		if err != nil && ctx.Err() == nil {
			w.err = errors.Join(w.err, err)
		}
		failed := w.err != nil
		w.mu.Unlock()
		if failed {
			return
		}
	}
}

// commit lists a new point of an item, as the vault does when a cut is committed.
func (w *world) commit(ctx context.Context, i int) error {
	round, i := i/len(w.items), i%len(w.items)
	err := w.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := vaultdb.InsertPoint(ctx, tx, w.point(i, uint64(history+round), time.Now().UTC()))
		return err
	})
	w.mu.Lock()
	w.commits++
	w.mu.Unlock()
	return err
}

// report is an agent's word on all of its items.
func (w *world) report(ctx context.Context, i int) error {
	i %= len(w.agents)
	now := time.Now().UTC()
	var q agentapi.StatusRequest
	for _, it := range w.items[i*perAgent : min((i+1)*perAgent, len(w.items))] {
		q.Items = append(q.Items, agentapi.ItemStatus{Machine: string(it.Machine), Generation: 1, Phase: "delta", Percent: 100, LastCut: now, LastPoint: now, Cycles: 12, DirtyRate: 14000, ShipRate: 1e7, Verdict: "idle"})
	}
	w.mu.Lock()
	w.statuses += len(q.Items)
	w.mu.Unlock()
	return w.v.ReportStatus(ctx, w.agents[i], q)
}
