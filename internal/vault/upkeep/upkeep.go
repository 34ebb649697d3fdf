// Package upkeep keeps the vault's store within its retention and looks after
// its health: maintenance passes and scrubs of every machine, one at a time, in
// the background.
//
// It promises that one vault of a database does either at a time (a duty row
// with a lease), that a machine is not maintained while it is being scrubbed (a
// scrub would take what is deleted under it for damage), that errors are
// tried again with growing pauses and shown at the item, and that nothing of it
// runs on the path of a request. What a pass does, and why it can be killed at any
// step, is package compact's.
package upkeep

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

const (
	newPoints  = 16               // that make a pass due
	passEvery  = 30 * time.Minute // makes it due too
	scrubEvery = 7 * 24 * time.Hour

	takeOver   = time.Hour // until another host's maintenance of a machine is taken over
	dutyLease  = 2 * time.Minute
	passBound  = 12 * time.Hour
	duty       = "upkeep"
	docPass    = "maintenance"
	docScrub   = "scrub"
	docRequest = "upkeepRequest"
)

// Config of a Keeper. Everything but the durations and the rate is required.
type Config struct {
	State  *state.State
	Jobs   *work.Board
	Bucket objstore.Bucket
	Store  *store.Store
	Keys   *store.Keyring
	// Compactor names this vault in the store's plans: its vault id and host. It is
	// asked for when the first pass begins.
	Compactor func(ctx context.Context) (string, error)
	Software  string

	Rules     func(ctx context.Context, it vaultdb.Item) (compact.Rules, error)
	Reconcile func(ctx context.Context, it vaultdb.Item, full bool) error
	Want      func(ctx context.Context, id dr.ItemID, w vaultdb.Want) error // a resynchronization

	Tick      time.Duration // how often is looked for work; 0 = 30 s
	ScrubRate int64         // bytes a second that scrubs read; 0 = 64 MiB, below 0 = unlimited
	// Grace and LeftoverGrace are compact.Config's; 0 = its defaults.
	Grace, LeftoverGrace time.Duration
}

// Keeper does the upkeep. It is safe for concurrent use.
type Keeper struct {
	cfg   Config
	st    *state.State
	owner string // of duties: this process

	mu    sync.Mutex
	busy  map[dr.MachineID]string // what is being done with a machine in this process
	progs map[dr.ItemID]string    // of the scrub that runs here
}

// New makes a Keeper; it does no I/O.
func New(cfg Config) *Keeper {
	if cfg.Tick <= 0 {
		cfg.Tick = 30 * time.Second
	}
	if cfg.ScrubRate == 0 {
		cfg.ScrubRate = 64 << 20
	}
	return &Keeper{cfg: cfg, st: cfg.State, owner: state.NewID(), busy: map[dr.MachineID]string{}, progs: map[dr.ItemID]string{}}
}

// Run does what is due until ctx ends, as long as no other vault of the
// database does. One duty stands for passes and scrubs, so that both keep out of
// each other's way.
func (k *Keeper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		mine, err := k.claim(ctx, duty)
		if err != nil && ctx.Err() == nil {
			k.st.Log.Warn("upkeep of the store: trying again later", "err", err)
		}
		if err == nil && mine {
			k.onDuty(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(k.cfg.Tick):
		}
	}
}

// onDuty works until the duty is lost or ctx ends.
func (k *Keeper) onDuty(ctx context.Context) {
	held, lost := context.WithCancel(ctx)
	defer lost()
	var wg sync.WaitGroup
	wg.Go(func() { k.holdDuty(held, lost, duty) })
	wg.Go(func() { k.loop(held, docPass, k.maintainIfDue) })
	wg.Go(func() { k.loop(held, docScrub, k.scrubIfDue) })
	wg.Wait()
	// Another vault need not wait for the lease's end.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := k.st.Tx(rctx, func(tx *sql.Tx) error { return vaultdb.ReleaseDuty(rctx, tx, duty, k.owner) }); err != nil {
		k.st.Log.Warn("release the duty of upkeep: it ends by itself", "err", err)
	}
}

// loop looks after all items, one after the other, again and again.
func (k *Keeper) loop(ctx context.Context, name string, do func(context.Context, vaultdb.Item) error) {
	for {
		if err := k.round(ctx, do); err != nil && ctx.Err() == nil {
			k.st.Log.Warn(name+" failed, trying again later", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(k.cfg.Tick):
		}
	}
}

func (k *Keeper) round(ctx context.Context, do func(context.Context, vaultdb.Item) error) error {
	items, err := vaultdb.Items(ctx, k.st.Q(), "")
	if err != nil {
		return state.Outward(err)
	}
	var errs []error
	for _, it := range items {
		if ctx.Err() != nil {
			break
		}
		if it.Protection == dr.Enabling || it.Protection == dr.EnableFailed || it.Gen == 0 {
			continue
		}
		errs = append(errs, do(ctx, it))
	}
	return errors.Join(errs...)
}

// claim takes or renews a duty, by the clock that all processes agree on.
func (k *Keeper) claim(ctx context.Context, name string) (mine bool, err error) {
	err = k.st.Tx(ctx, func(tx *sql.Tx) error {
		now, err := k.st.DB.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		mine, err = vaultdb.ClaimDuty(ctx, tx, name, k.owner, now, now.Add(dutyLease))
		return err
	})
	return mine, err
}

// holdDuty renews a duty until ctx ends; lost is called if it can't be, in time
// before somebody else may take it.
func (k *Keeper) holdDuty(ctx context.Context, lost context.CancelFunc, name string) {
	good := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(dutyLease / 8):
		}
		began := time.Now()
		switch mine, err := k.claim(ctx, name); {
		case err == nil && mine:
			good = began
		case err == nil, time.Since(good) > dutyLease/2:
			lost()
			return
		}
	}
}

// take marks a machine as being worked on by this process; false if it is already.
func (k *Keeper) take(m dr.MachineID, what string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[m] != "" {
		return false
	}
	k.busy[m] = what
	return true
}

func (k *Keeper) give(m dr.MachineID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, m)
}

// requestDoc is what people asked for: the ids of the jobs that wait for it.
type requestDoc struct {
	Maintain string `json:"maintain,omitempty"`
	Scrub    string `json:"scrub,omitempty"`
}

// pause is how long after its n-th failure in a row something is tried again.
func pause(n int) time.Duration {
	steps := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour}
	return steps[min(max(n, 1), len(steps))-1]
}

// Maintain asks for a maintenance pass now. The job ends with it.
func (k *Keeper) Maintain(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return k.ask(ctx, id, "Maintain", work.LockMaintain(id), by, func(r *requestDoc, job string) { r.Maintain = job })
}

// Scrub asks for a scrub now: every object of the item's replica is read and
// verified. The job ends with it.
func (k *Keeper) Scrub(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error) {
	return k.ask(ctx, id, "Scrub", work.LockScrub(id), by, func(r *requestDoc, job string) { r.Scrub = job })
}

func (k *Keeper) ask(ctx context.Context, id dr.ItemID, kind, lock, by string, set func(*requestDoc, string)) (dr.JobID, error) {
	jobID := state.Ordered()
	err := k.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if it.Gen == 0 {
			return dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "vault."+kind, "%s has nothing in the store yet", it.VMName)
		}
		if err := k.cfg.Jobs.SubmitItem(ctx, tx, jobID, kind, lock, it, map[string]dr.ItemID{"item": id}, by); err != nil {
			return err
		}
		if it, err = vaultdb.LockItem(ctx, tx, id); err != nil {
			return err
		}
		r, err := vaultdb.Doc[requestDoc](ctx, tx, id, docRequest)
		if err != nil {
			return err
		}
		set(&r, jobID)
		if err := vaultdb.SaveDoc(ctx, tx, id, docRequest, r, k.st.Now()); err != nil {
			return err
		}
		return k.st.Note(ctx, tx, vaultdb.Event{Kind: kind, Item: id, By: by, Audit: true}, "%s of %s was asked for: job %s", kind, it.VMName, jobID)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(jobID), nil
}

// MaintainStep waits until the pass that the job asked for has been made.
func (k *Keeper) MaintainStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	id := dr.ItemID(s.Job().Meta[work.MetaItem])
	d, err := vaultdb.Doc[passDoc](ctx, k.st.Q(), id, docPass)
	if err != nil {
		return job.Result{}, err
	}
	if d.Request != s.Job().ID {
		return job.RetryAfter(k.cfg.Tick / 4), nil
	}
	if d.Failed > 0 {
		return job.Result{}, &job.Error{Class: job.Permanent, Err: d.err()}
	}
	return job.Done(work.StepOut{Outcome: map[string]string{"points": fmt.Sprint(d.Points), "expired": fmt.Sprint(d.Expired), "written": fmt.Sprint(d.Wrote),
		"deletedObjects": fmt.Sprint(d.Deleted), "freedBytes": fmt.Sprint(d.Freed), "pendingObjects": fmt.Sprint(d.Pending), "note": d.NotReady}}, nil), nil
}

// ScrubStep waits until the scrub that the job asked for has been made.
func (k *Keeper) ScrubStep(ctx context.Context, s *job.StepContext) (job.Result, error) {
	id := dr.ItemID(s.Job().Meta[work.MetaItem])
	d, err := vaultdb.Doc[scrubDoc](ctx, k.st.Q(), id, docScrub)
	if err != nil {
		return job.Result{}, err
	}
	if d.Request != s.Job().ID {
		k.mu.Lock()
		note := k.progs[id]
		k.mu.Unlock()
		if note != "" {
			s.Progress(0, note)
		}
		return job.RetryAfter(k.cfg.Tick / 4), nil
	}
	if d.Failed > 0 {
		return job.Result{}, &job.Error{Class: job.Permanent, Err: dr.New(dr.KindInternal, d.Code, "vault.Scrub", "%s", d.Error)}
	}
	return job.Done(work.StepOut{Outcome: map[string]string{"objects": fmt.Sprint(d.Objects), "bytes": fmt.Sprint(d.Bytes), "damagedPoints": fmt.Sprint(len(d.Damaged))}}, nil), nil
}

// Planned is what maintenance thinks of a point.
type Planned struct {
	Point dr.RecoveryPoint
	Keep  string // why it is kept; empty = it expires
}

// PlanMaintenance says which of an item's points a pass would keep now, and why,
// oldest first. It changes nothing.
func (k *Keeper) PlanMaintenance(ctx context.Context, id dr.ItemID) ([]Planned, error) {
	it, err := vaultdb.ItemByID(ctx, k.st.Q(), id)
	if err != nil {
		return nil, state.Outward(err)
	}
	rules, err := k.cfg.Rules(ctx, it)
	if err != nil {
		return nil, err
	}
	rows, err := vaultdb.Points(ctx, k.st.Q(), it.Machine, 0)
	if err != nil {
		return nil, state.Outward(err)
	}
	slices.Reverse(rows)
	all := make([]dr.RecoveryPoint, len(rows))
	for i, r := range rows {
		all[i] = r.RecoveryPoint
	}
	out := make([]Planned, len(all))
	for i, why := range rules.Keep(all, k.st.Now()) {
		out[i] = Planned{all[i], why}
	}
	return out, nil
}

// Status is how an item's replica is looked after.
type Status struct {
	Points      int   // listed
	StoredBytes int64 // of them, as they were committed
	Objects     int   // in the store, as the last pass found
	Bytes       int64 // of these
	Pending     int   // objects that wait for the end of their grace to be deleted

	LastPass    time.Time // that succeeded; zero = none yet
	Expired     int       // points that it expired
	FreedBytes  int64
	NotReady    string // why it did nothing
	PassError   *dr.HealthError
	NextAttempt time.Time // after PassError
	PassAsked   bool      // a pass was asked for and has not been made yet

	LastScrub    time.Time // that was complete; zero = none yet
	ScrubObjects int
	ScrubBytes   int64
	Damaged      []Damage // that it found
	ScrubError   string   // of the last attempt, if it failed
	ScrubRunning string   // how far a scrub in this process is; empty = none runs here
	NextScrub    time.Time
}

// Damage is a recovery point that a scrub found to be unusable.
type Damage struct {
	Point string // name
	Time  time.Time
	Text  string // names the object
}

// UpkeepStatus says how an item's replica is looked after.
func (k *Keeper) UpkeepStatus(ctx context.Context, id dr.ItemID) (Status, error) {
	it, err := vaultdb.ItemByID(ctx, k.st.Q(), id)
	if err != nil {
		return Status{}, state.Outward(err)
	}
	p, err := vaultdb.Doc[passDoc](ctx, k.st.Q(), id, docPass)
	if err != nil {
		return Status{}, state.Outward(err)
	}
	s, err := vaultdb.Doc[scrubDoc](ctx, k.st.Q(), id, docScrub)
	if err != nil {
		return Status{}, state.Outward(err)
	}
	r, err := vaultdb.Doc[requestDoc](ctx, k.st.Q(), id, docRequest)
	if err != nil {
		return Status{}, state.Outward(err)
	}
	out := Status{Objects: p.Objects, Bytes: p.Bytes, Pending: p.Pending, LastPass: p.At, Expired: p.Expired, FreedBytes: p.Freed, NotReady: p.NotReady,
		PassAsked: r.Maintain != "" && r.Maintain != p.Request, LastScrub: s.At, ScrubObjects: s.Objects, ScrubBytes: s.Bytes, ScrubError: s.Error}
	if p.Failed > 0 {
		out.PassError, out.NextAttempt = p.reason(it.VMName), p.NotBefore
	}
	for _, d := range s.Damaged {
		out.Damaged = append(out.Damaged, Damage(d))
	}
	out.NextScrub = s.At.Add(scrubEvery)
	if s.At.IsZero() {
		out.NextScrub = it.Created.Add(scrubEvery)
	}
	k.mu.Lock()
	out.ScrubRunning = k.progs[id]
	k.mu.Unlock()
	_, out.Points, out.StoredBytes, err = vaultdb.CountPoints(ctx, k.st.Q(), it.Machine, 0)
	return out, state.Outward(err)
}

// StoreStatus sums up how the replicas of all items are looked after.
type StoreStatus struct {
	Items       int
	Points      int
	StoredBytes int64 // of the points, as they were committed
	Objects     int   // as the last passes found
	Bytes       int64
	Pending     int       // objects that wait for the end of their grace
	LastPass    time.Time // of the item that waits longest; zero = one has had none
	LastScrub   time.Time // the same for scrubs
	Damaged     int       // recovery points that the last scrubs found unusable
}

// StoreStatus sums up how the replicas of all items are looked after.
func (k *Keeper) StoreStatus(ctx context.Context) (StoreStatus, error) {
	var out StoreStatus
	items, err := vaultdb.Items(ctx, k.st.Q(), "")
	if err != nil {
		return out, state.Outward(err)
	}
	for i, it := range items {
		s, err := k.UpkeepStatus(ctx, it.ID)
		if dr.KindOf(err) == dr.KindNotFound {
			continue
		}
		if err != nil {
			return out, err
		}
		out.Items++
		out.Points, out.StoredBytes = out.Points+s.Points, out.StoredBytes+s.StoredBytes
		out.Objects, out.Bytes, out.Pending, out.Damaged = out.Objects+s.Objects, out.Bytes+s.Bytes, out.Pending+s.Pending, out.Damaged+len(s.Damaged)
		if i == 0 || s.LastPass.Before(out.LastPass) {
			out.LastPass = s.LastPass
		}
		if i == 0 || s.LastScrub.Before(out.LastScrub) {
			out.LastScrub = s.LastScrub
		}
	}
	return out, nil
}

// Reasons returns what upkeep adds to the reasons for the items' health.
func (k *Keeper) Reasons(ctx context.Context, names map[dr.ItemID]string) (map[dr.ItemID][]dr.HealthError, error) {
	passes, err := vaultdb.Docs[passDoc](ctx, k.st.Q(), docPass)
	if err != nil {
		return nil, state.Outward(err)
	}
	scrubs, err := vaultdb.Docs[scrubDoc](ctx, k.st.Q(), docScrub)
	if err != nil {
		return nil, state.Outward(err)
	}
	own, err := k.cfg.Compactor(ctx)
	if err != nil {
		return nil, err
	}
	vault, _, _ := strings.Cut(own, "/")
	out := map[dr.ItemID][]dr.HealthError{}
	for id, p := range passes {
		// This vault on its former host has to be waited for. A copy of it that works on
		// shows when it is still there after that.
		moved := p.Code == dr.CodeCompactorConflict && strings.Contains(p.Error, vault+"/") && k.st.Now().Sub(p.Since) < takeOver+passEvery
		if !moved && (p.Failed > 2 || p.Failed > 0 && p.Code == dr.CodeCompactorConflict) {
			out[id] = append(out[id], *p.reason(names[id]))
		}
	}
	for id, s := range scrubs {
		if e := s.reason(names[id]); e != nil {
			out[id] = append(out[id], *e)
		}
	}
	return out, nil
}
