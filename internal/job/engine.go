package job

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate makes or updates the engine's tables. Start does it too; callers whose
// own tables refer to jobs call it first.
func Migrate(ctx context.Context, db *sqldb.DB) error {
	if err := db.Migrate(ctx, "job", migrations); err != nil {
		return outward("job.Migrate", err)
	}
	return nil
}

// Config configures an engine. Zero values mean the defaults named here.
type Config struct {
	DB       *sqldb.DB
	Owner    string             // this host's name; every start makes a new incarnation of it
	Handlers map[string]Handler // by "kind/step"
	Old      map[string]Handler // retired ones, for jobs submitted by earlier versions
	// OnFinal runs by job kind in the transaction that makes a job final, so that the
	// item's state changes with it. The job passed has its final state. It must be
	// idempotent in nothing: it happens once. An error of it that is not the
	// database's keeps the job from ending and is tried again.
	OnFinal     map[string]func(ctx context.Context, tx *sql.Tx, j *Job) error
	Lease       time.Duration // 15 s; a dead replica's jobs are taken over after it
	Heartbeat   time.Duration // Lease/4
	Poll        time.Duration // 2.5 s; how late a lost notification is noticed
	CancelBound time.Duration // 2 min; how long a cancelled job waits for its agent
	Workers     int           // 32; steps that run at once in this replica
	Retry       Retry
	Log         *slog.Logger // nil discards
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	const op = "job.New"
	if c.DB == nil || c.Owner == "" {
		return dr.Errorf(dr.KindInvalid, op, "the job engine needs a database and an owner name")
	}
	for _, m := range []map[string]Handler{c.Handlers, c.Old} {
		for key, h := range m {
			if kind, step, ok := strings.Cut(key, "/"); !ok || !nameForm.MatchString(kind) || !nameForm.MatchString(step) || h == nil {
				return dr.Errorf(dr.KindInvalid, op, "handler key %q is not kind/step, or its handler is nil", key)
			}
		}
	}
	if c.Lease < 0 || c.Heartbeat < 0 || c.Poll < 0 || c.CancelBound < 0 || c.Workers < 0 ||
		c.Retry.Base < 0 || c.Retry.Cap < 0 || c.Retry.Attempts < 0 {
		return dr.Errorf(dr.KindInvalid, op, "durations and counts of the job engine must not be negative")
	}
	if c.Heartbeat > 0 && c.Lease > 0 && c.Heartbeat > c.Lease/2 {
		return dr.Errorf(dr.KindInvalid, op, "heartbeat %v must be at most half of the lease %v", c.Heartbeat, c.Lease)
	}
	return nil
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Lease, 15*time.Second)
	set(&c.Heartbeat, c.Lease/4)
	set(&c.Poll, 2500*time.Millisecond)
	set(&c.CancelBound, 2*time.Minute)
	set(&c.Retry.Base, 2*time.Second)
	set(&c.Retry.Cap, 5*time.Minute)
	if c.Retry.Attempts == 0 {
		c.Retry.Attempts = 8
	}
	if c.Workers == 0 {
		c.Workers = 32
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Engine runs jobs. Its methods are safe for concurrent use. All but Subscribe and
// the running itself work without Start, on a migrated database.
type Engine struct {
	cfg   Config
	db    *sqldb.DB
	log   *slog.Logger
	owner string // host and incarnation

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	claimKick, beatKick chan struct{}
	agents              parked
	subMu               sync.Mutex
	subs                map[chan string]struct{}

	mu      sync.Mutex
	started bool
	closed  bool
	runs    map[*run]struct{}

	hooks hooks
}

// hooks let the tests of this package stop the engine at a point.
type hooks struct {
	noBeat  func() bool // true: the heartbeat does not renew
	claimed func(job string)
}

var (
	errShutdown = errors.New("the vault shuts down")
	errLost     = errors.New("the lease is lost")
	errCancel   = errors.New("the job is cancelled")
)

// New makes an engine; it does no I/O.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	e := &Engine{cfg: cfg, db: cfg.DB, owner: cfg.Owner + "#" + rand.Text()[:12],
		claimKick: make(chan struct{}, 1), beatKick: make(chan struct{}, 1),
		agents: parked{polls: map[string]map[chan struct{}]struct{}{}, tells: map[string]time.Time{}},
		subs:   map[chan string]struct{}{}, runs: map[*run]struct{}{}}
	e.log = cfg.Log.With("owner", e.owner)
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	return e, nil
}

// Start migrates the tables and begins to run jobs, also those that a dead
// replica left. ctx bounds the start only. The caller closes the engine, and the
// database after it.
func (e *Engine) Start(ctx context.Context) error {
	if err := Migrate(ctx, e.db); err != nil {
		return err
	}
	if err := e.register(ctx); err != nil {
		return outward("job.Start", err)
	}
	if e.db.Dialect().Name() == "sqlite" { // the file lock proves that earlier incarnations of this host are dead
		err := e.db.Tx(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "update job set due=0 where state='running' and owner like $1 and owner<>$2", e.cfg.Owner+"#%", e.owner)
			return err
		})
		if err != nil {
			return outward("job.Start", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started || e.closed {
		return dr.Errorf(dr.KindPrecondition, "job.Start", "the job engine was started or closed before")
	}
	e.started = true
	e.wg.Go(e.watch)
	e.wg.Go(e.dispatch)
	e.wg.Go(e.beat)
	e.wg.Go(e.flushProgress)
	return nil
}

// Close stops claiming, ends the contexts of the running handlers, waits for them,
// and gives their leases up, so that another replica goes on at once. Idempotent.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	started := e.started
	e.mu.Unlock()
	e.cancel(errShutdown)
	e.wg.Wait()
	if !started {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := e.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "delete from job_replica where id=$1", e.owner)
		return err
	})
	if err != nil {
		e.log.Debug("replica row stays until it expires", "err", err)
	}
	return nil
}

// register writes what this replica can do; it is part of the heartbeat.
func (e *Engine) register(ctx context.Context) error {
	keys := slices.Sorted(maps.Keys(e.cfg.Handlers))
	for k := range e.cfg.Old {
		if _, ok := e.cfg.Handlers[k]; !ok {
			keys = append(keys, k)
		}
	}
	text, err := encode("handler names", keys)
	if err != nil {
		return err
	}
	return e.db.Tx(ctx, func(tx *sql.Tx) error {
		now, err := e.db.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `insert into job_replica(id, host, handlers, started, lease_until) values($1,$2,$3,$4,$5)
			on conflict (id) do update set lease_until=excluded.lease_until`,
			e.owner, e.cfg.Owner, text, now.UnixMicro(), now.Add(e.cfg.Lease).UnixMicro()); err != nil {
			return fmt.Errorf("register replica: %w", err)
		}
		_, err = tx.ExecContext(ctx, "delete from job_replica where lease_until<$1", now.Add(-time.Hour).UnixMicro())
		return err
	})
}

// knownElsewhere reports whether another live replica has the handler.
func (e *Engine) knownElsewhere(ctx context.Context, key string) (bool, error) {
	now, err := e.db.Dialect().Now(ctx, e.db.SQL())
	if err != nil {
		return false, err
	}
	known := false
	err = eachRow(ctx, e.db.SQL(), func(rows *sql.Rows) error {
		var text string
		var keys []string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &keys); err != nil {
			return err
		}
		known = known || slices.Contains(keys, key)
		return nil
	}, "select handlers from job_replica where lease_until>$1 and id<>$2", now.UnixMicro(), e.owner)
	return known, err
}

func (e *Engine) handler(key string) Handler {
	if h, ok := e.cfg.Handlers[key]; ok {
		return h
	}
	return e.cfg.Old[key]
}

// dispatch claims due jobs while there are free workers.
func (e *Engine) dispatch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.claimKick:
		case <-timer.C:
		}
		wait := e.cfg.Poll
		if free := e.free(); free > 0 {
			claimed, next, err := e.claim(e.ctx, free)
			switch {
			case err != nil && e.ctx.Err() != nil:
				return
			case err != nil:
				e.log.Warn("claiming jobs failed, trying again", "err", err)
				wait = min(wait, time.Second)
			case len(claimed) == min(free, claimBatch):
				wait = 0
			default:
				wait = max(min(wait, next), 0)
			}
			for _, r := range claimed {
				e.spawn(r)
			}
		} // with no free worker the next one that ends kicks
		timer.Reset(wait)
	}
}

func (e *Engine) free() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cfg.Workers - len(e.runs)
}

func (e *Engine) spawn(r *run) {
	e.mu.Lock()
	e.runs[r] = struct{}{}
	e.mu.Unlock()
	e.wg.Go(func() {
		defer func() {
			r.cancel(nil)
			e.mu.Lock()
			full := len(e.runs) == e.cfg.Workers
			delete(e.runs, r)
			e.mu.Unlock()
			if full {
				kick(e.claimKick)
			}
		}()
		r.loop()
	})
}

const (
	claimBatch  = 64                    // jobs claimed in one transaction
	lockedAgain = 25 * time.Millisecond // look again at due rows that another transaction had locked
)

// claim takes up to n due jobs; next is the time until the next one is due.
func (e *Engine) claim(ctx context.Context, n int) (claimed []*run, next time.Duration, err error) {
	n = min(n, claimBatch)
	err = e.db.Tx(ctx, func(tx *sql.Tx) error {
		claimed = nil
		now, err := e.db.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		var ids []string
		err = eachRow(ctx, tx, func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		}, `select id from job where state in ('ready','running','waiting') and due<=$1 order by due limit $2`+e.db.Dialect().LockClause(),
			now.UnixMicro(), n)
		if err != nil {
			return err
		}
		for _, id := range ids {
			r := &run{e: e, id: id, renewed: time.Now()}
			if err := tx.QueryRowContext(ctx, `update job set state='running', owner=$1, epoch=epoch+1, due=$2, updated=$3,
				started=case when started=0 then $3 else started end where id=$4 returning epoch`,
				e.owner, now.Add(e.cfg.Lease).UnixMicro(), now.UnixMicro(), id).Scan(&r.epoch); err != nil {
				return fmt.Errorf("claim job %s: %w", id, err)
			}
			e.changed(tx, id, false)
			claimed = append(claimed, r)
		}
		var due sql.NullInt64
		if err := tx.QueryRowContext(ctx, "select min(due) from job where state in ('ready','running','waiting')").Scan(&due); err != nil {
			return fmt.Errorf("look for the next job: %w", err)
		}
		next = time.Hour
		if due.Valid && due.Int64-now.UnixMicro() < next.Microseconds() {
			next = time.Duration(due.Int64-now.UnixMicro())*time.Microsecond + time.Millisecond
			// What is due and was not claimed is locked by another transaction just
			// now, or over the limit of this one: nobody will tell us when it is free.
			next = max(next, lockedAgain)
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	for _, r := range claimed {
		r.ctx, r.cancel = context.WithCancelCause(e.ctx)
		if e.hooks.claimed != nil {
			e.hooks.claimed(r.id)
		}
	}
	return claimed, next, nil
}

// beat renews the leases of the runs that live in this process, and only of
// those: a run that gave up must expire.
func (e *Engine) beat() {
	tick := time.NewTicker(e.cfg.Heartbeat)
	defer tick.Stop()
	registered := time.Now()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.beatKick:
		case <-tick.C:
		}
		if e.hooks.noBeat != nil && e.hooks.noBeat() {
			continue
		}
		ctx, cancel := context.WithTimeout(e.ctx, max(e.cfg.Heartbeat, time.Second))
		if err := e.renew(ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("renewing leases failed", "err", err)
		}
		if time.Since(registered) >= e.cfg.Lease/3 {
			if err := e.register(ctx); err == nil {
				registered = time.Now()
			}
		}
		cancel()
		for _, r := range e.snapshot() { // somebody else may run it by now
			if r.age() > e.cfg.Lease {
				r.cancel(errLost)
			}
		}
	}
}

func (e *Engine) snapshot() []*run {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.runs))
}

// renew extends the leases and learns of cancels and lost jobs. Rows that another
// transaction holds are skipped; whoever holds one of ours renews it or wins it.
func (e *Engine) renew(ctx context.Context) error {
	runs := e.snapshot()
	if len(runs) == 0 {
		return nil
	}
	ids := make([]any, len(runs))
	holders := make([]string, len(runs))
	for i, r := range runs {
		ids[i], holders[i] = r.id, fmt.Sprintf("$%d", i+1)
	}
	in := strings.Join(holders, ",")
	type row struct {
		epoch, cancelAt int64
		mine            bool
		outcome         State
	}
	rows := map[string]row{}
	renewed := map[string]bool{}
	began := time.Now()
	err := e.db.Tx(ctx, func(tx *sql.Tx) error {
		clear(rows)
		clear(renewed)
		now, err := e.db.Dialect().Now(ctx, tx)
		if err != nil {
			return err
		}
		n := len(ids)
		args := append(slices.Clone(ids), e.owner, now.Add(e.cfg.Lease).UnixMicro())
		err = eachRow(ctx, tx, func(rs *sql.Rows) error {
			var id string
			err := rs.Scan(&id)
			renewed[id] = true
			return err
		}, fmt.Sprintf(`update job set due=$%d where id in (select id from job where id in (%s) and owner=$%d and state='running'
			order by id%s) returning id`, n+2, in, n+1, e.db.Dialect().LockClause()), args...)
		if err != nil {
			return err
		}
		return eachRow(ctx, tx, func(rs *sql.Rows) error {
			var id, owner, state string
			var x row
			err := rs.Scan(&id, &owner, &x.epoch, &state, &x.cancelAt, &x.outcome)
			x.mine = owner == e.owner && state == string(Running)
			rows[id] = x
			return err
		}, "select id, owner, epoch, state, cancel_at, outcome from job where id in ("+in+")", ids...)
	})
	if err != nil {
		return err
	}
	for _, r := range runs {
		x, ok := rows[r.id]
		switch {
		case !ok, x.epoch != r.epoch:
			r.cancel(errLost)
		case !x.mine: // between the end of its last write and its removal from the map
		case x.cancelAt != 0 && x.outcome == "":
			r.cancel(errCancel)
			fallthrough
		default:
			if renewed[r.id] {
				r.setRenewed(began)
			}
		}
	}
	return nil
}
