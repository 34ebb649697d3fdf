// Package warming keeps the warm replicas of an agent of a cloud: it asks the
// vault which there are to be, brings each to its point, and removes those that are no
// longer wanted.
//
// It promises: what was begun is recorded before the first byte is written, so that
// a replica that is no longer wanted is found and removed whatever happens in between; one
// replica is worked on by one goroutine; a vault that can't be asked changes nothing.
package warming

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// Replicas are the disks in the cloud. Every method is idempotent.
type Replicas interface {
	// Apply brings the machine's disks to a point.
	Apply(ctx context.Context, st *store.Store, m dr.MachineID, gen dr.Generation, n uint64) (Applied, error)
	// Prune keeps the newest points only.
	Prune(ctx context.Context, m dr.MachineID, keep int) error
	Remove(ctx context.Context, m dr.MachineID) error
}

// Applied is what an Apply has done.
type Applied struct {
	Bytes, Requests int64 // written
}

// Vault says what is to be kept.
type Vault interface {
	Warm(ctx context.Context, r agentapi.WarmRequest) (agentapi.WarmResponse, error)
}

// Config of a Keeper.
type Config struct {
	Vault    Vault
	Replicas Replicas
	// Open opens the point of a serving for reading.
	Open   func(ctx context.Context, serving string) (*store.Store, func() error, error)
	Errors func(error) *agentapi.Error
	Dir    string        // of the agent's state
	Every  time.Duration // between questions to the vault; 0 = 10 s
	AtOnce int           // machines worked on at the same time; 0 = 2
	Log    *slog.Logger
}

// recordName is the file with the machines that have a replica.
const recordName = "warm.json"

type record struct {
	state.Header
	Machines map[string]string `json:"machines"` // machine → item
}

// Keeper is the loop. Run it once.
type Keeper struct {
	cfg   Config
	slots chan struct{}
	wg    sync.WaitGroup

	mu   sync.Mutex
	rec  record
	work map[string]*replica // by machine
}

// replica is one machine's.
type replica struct {
	item         string
	order        agentapi.WarmOrder
	held         agentapi.WarmOrder // Generation 0 = nothing is known to be held
	busy         bool
	gone         bool // to be removed
	bytes, asked int64
	err          error
	failures     int
	notBefore    time.Time
}

// New returns a Keeper; it does no I/O.
func New(cfg Config) *Keeper {
	if cfg.Every <= 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.AtOnce <= 0 {
		cfg.AtOnce = 2
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{cfg: cfg, slots: make(chan struct{}, cfg.AtOnce), work: map[string]*replica{}}
}

// Run keeps the replicas until ctx ends, and returns when all work has stopped.
func (k *Keeper) Run(ctx context.Context) {
	defer k.wg.Wait()
	if err := state.Load(filepath.Join(k.cfg.Dir, recordName), &k.rec); err != nil && dr.KindOf(err) != dr.KindNotFound {
		k.cfg.Log.Error("the record of warm replicas can't be read; those that are no longer wanted may stay", "err", err, "hint", dr.HintOf(err))
	}
	if k.rec.Machines == nil {
		k.rec.Machines = map[string]string{}
	}
	for ctx.Err() == nil {
		k.round(ctx)
		t := time.NewTimer(k.cfg.Every)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// round asks the vault and begins what is to be done.
func (k *Keeper) round(ctx context.Context) {
	res, err := k.cfg.Vault.Warm(ctx, agentapi.WarmRequest{Replicas: k.report()})
	if err != nil {
		k.cfg.Log.Debug("warm replicas not reported", "err", err) // the poll loop reports trouble with the vault
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	wanted := map[string]bool{}
	for _, o := range res.Replicas {
		wanted[o.Machine] = true
		r := k.work[o.Machine]
		if r == nil {
			r = &replica{}
			k.work[o.Machine] = r
		}
		if r.order.Generation != o.Generation || r.order.N != o.N || r.order.Serving != o.Serving {
			r.failures, r.notBefore, r.err = 0, time.Time{}, nil // another point may do
		}
		r.item, r.order, r.gone = o.Item, o, false
	}
	for m := range k.rec.Machines {
		if !wanted[m] && k.work[m] == nil {
			k.work[m] = &replica{item: k.rec.Machines[m]}
		}
	}
	for _, m := range slices.Sorted(maps.Keys(k.work)) {
		r := k.work[m]
		r.gone = !wanted[m]
		if r.busy || time.Now().Before(r.notBefore) || !r.gone && r.held.Generation == r.order.Generation && r.held.N == r.order.N {
			continue
		}
		if !k.note(m, r) {
			continue
		}
		r.busy = true
		o, gone := r.order, r.gone
		k.wg.Go(func() { k.one(ctx, dr.MachineID(m), r, o, gone) })
	}
}

// note records a machine before anything is written for it.
func (k *Keeper) note(m string, r *replica) bool {
	if _, ok := k.rec.Machines[m]; ok || r.gone {
		return true
	}
	k.rec.Machines[m] = r.item
	if err := k.save(); err != nil {
		delete(k.rec.Machines, m)
		k.cfg.Log.Error("a warm replica is not begun: it can't be recorded", "machine", m, "err", err)
		return false
	}
	return true
}

func (k *Keeper) save() error {
	k.rec.Header = state.Current()
	return state.Save(filepath.Join(k.cfg.Dir, recordName), &k.rec)
}

// report is what the vault is told. What was counted is told once.
func (k *Keeper) report() []agentapi.WarmStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []agentapi.WarmStatus
	for _, m := range slices.Sorted(maps.Keys(k.work)) {
		r := k.work[m]
		if r.gone {
			continue
		}
		s := agentapi.WarmStatus{Item: r.item, Machine: m, Generation: r.held.Generation, N: r.held.N, Busy: r.busy, Bytes: r.bytes, Requests: r.asked}
		if r.err != nil {
			s.Error = k.cfg.Errors(r.err)
		}
		r.bytes, r.asked = 0, 0
		out = append(out, s)
	}
	return out
}

// one does one thing for a machine: brings its replica to a point, or removes it.
func (k *Keeper) one(ctx context.Context, m dr.MachineID, r *replica, o agentapi.WarmOrder, remove bool) {
	var done Applied
	var err error
	select {
	case k.slots <- struct{}{}:
		if remove {
			err = k.cfg.Replicas.Remove(ctx, m)
		} else {
			done, err = k.apply(ctx, m, o)
		}
		<-k.slots
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r.busy = false
	r.bytes += done.Bytes
	r.asked += done.Requests
	if ctx.Err() != nil {
		return
	}
	first := r.err == nil
	r.err = err
	switch {
	case err != nil:
		r.failures = min(r.failures+1, 6)
		r.notBefore = time.Now().Add(k.cfg.Every << r.failures)
		if first {
			k.cfg.Log.Warn("a warm replica is not up to date; it is tried again", "machine", m, "remove", remove, "err", err, "code", dr.CodeOf(err), "hint", dr.HintOf(err))
		}
	case remove:
		delete(k.rec.Machines, string(m))
		if err := k.save(); err != nil { // then it is removed once more
			k.cfg.Log.Warn("the removal of a warm replica was not recorded", "machine", m, "err", err)
		}
		delete(k.work, string(m))
	default:
		if r.failures > 0 {
			k.cfg.Log.Info("a warm replica is up to date again", "machine", m)
		}
		r.failures, r.held = 0, o
	}
}

// apply opens the point and brings the replica to it.
func (k *Keeper) apply(ctx context.Context, m dr.MachineID, o agentapi.WarmOrder) (done Applied, err error) {
	st, end, err := k.cfg.Open(ctx, o.Serving)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, end()) }()
	if done, err = k.cfg.Replicas.Apply(ctx, st, m, dr.Generation(o.Generation), o.N); err != nil || o.Keep <= 0 {
		return done, err
	}
	if err := k.cfg.Replicas.Prune(ctx, m, o.Keep); err != nil { // the point is held all the same
		k.cfg.Log.Warn("older points of a warm replica were not removed", "machine", m, "err", err)
	}
	return done, nil
}
