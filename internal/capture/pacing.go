package capture

import (
	"context"
	"sync"
	"time"

	"holdfast/internal/capture/spool"
	"holdfast/internal/dr"
	"holdfast/internal/pace"
)

const (
	cutTurn      = pace.Cut
	transferTurn = pace.Transfer
	scanTurn     = pace.Scan
)

// debt is how urgent this machine is: the age of its newest point in copy
// frequencies, plus its priority. It takes no lock: see pace.Request.
func (r *Replicator) debt(a Assignment) func(time.Time) float64 {
	freq, prio := a.CopyFrequency, float64(a.Priority)
	return func(now time.Time) float64 { return pace.RPODebt(now, time.Unix(0, r.pointAt.Load()), freq, prio) }
}

// acquire waits for a turn.
func (r *Replicator) acquire(ctx context.Context, a Assignment, kind pace.Kind, bulk bool) (func(), error) {
	release, err := r.cfg.Turns.Acquire(ctx, pace.Request{Kind: kind, Owner: string(r.cfg.Machine), Debt: r.debt(a), Bulk: bulk})
	if err != nil {
		return nil, err
	}
	return release, nil
}

// bulkTurn is the turn to read whole disks. It is asked for in the background,
// because deltas go on while others have it.
type bulkTurn struct {
	mu      sync.Mutex
	release func() // not nil while it is held
	asked   bool
}

// get reports whether the turn is held, and asks for it if not. Only a drain waits.
func (t *bulkTurn) get(ctx context.Context, r *Replicator, a Assignment, wait bool) bool {
	if r.cfg.Turns == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.release != nil || wait {
		return true // a drain goes first: people wait for it
	}
	if t.asked {
		return false
	}
	t.asked = true
	r.background.Go(func() {
		release, err := r.acquire(ctx, a, scanTurn, true)
		t.mu.Lock()
		t.asked = false
		if err == nil {
			t.release = release
		}
		t.mu.Unlock()
		r.lookNow.Store(true)
		r.Kick()
	})
	return false
}

// put gives the turn back.
func (t *bulkTurn) put() {
	t.mu.Lock()
	release := t.release
	t.release = nil
	t.mu.Unlock()
	if release != nil {
		release()
	}
}

// backlogOf returns the estimator for the assignment's frequency.
func (r *Replicator) backlogOf(a Assignment) *pace.Backlog {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.backlog == nil || r.backlogFor != a.CopyFrequency {
		r.backlog, r.backlogFor = pace.NewBacklog(max(a.CopyFrequency, time.Second)), a.CopyFrequency
	}
	return r.backlog
}

// unsent is what is cut and not committed, in bytes as the tracker counts them.
func (r *Replicator) unsent() int64 {
	r.shipping.qmu.Lock()
	defer r.shipping.qmu.Unlock()
	var n int64
	for _, e := range r.shipping.queue {
		n += e.Dirty
	}
	return n
}

// showBacklog publishes how far behind the replica is.
func (r *Replicator) showBacklog(a Assignment) {
	p := r.backlogOf(a).Progress()
	r.set(func(s *Status) {
		s.Backlog, s.DirtyRate, s.ShipRate, s.Converging = p.Bytes, int64(p.DirtyRate), int64(p.ShipRate), dr.Convergence(p.Verdict)
		if s.BacklogSeconds = p.Drain; p.Drain == pace.Never {
			s.BacklogSeconds = 0
		}
	})
}

// sample tells the estimator what was cut, and what was committed in how long.
func (r *Replicator) sample(dirty, shipped int64, busy time.Duration) {
	a, _ := r.assignment()
	bl := r.backlogOf(a)
	bl.Add(pace.Sample{At: time.Now(), Dirty: dirty, Shipped: shipped, Busy: busy})
	bl.Correct(r.unsent()) // what changed since the newest cut is seen in the next one
	r.showBacklog(a)
}

// misses counts cycles that were not sent within their interval, as Hyper-V
// Replica does: a cycle that is due at t is missed when it is not committed at
// t plus the copy frequency, and so is each further one that could not even begin by then.
type misses struct {
	due time.Time // of the oldest cycle that is not committed; zero = none is due
	n   int       // that are counted for due already
}

// at counts up to now, and returns how many are new.
func (m *misses) at(now time.Time, every time.Duration) int {
	if m.due.IsZero() || every <= 0 {
		return 0
	}
	n := int(now.Sub(m.due) / every)
	fresh := max(n-m.n, 0)
	m.n = max(n, m.n)
	return fresh
}

// countMissed counts cycles that were due and not committed in time.
func (r *Replicator) countMissed(a Assignment) {
	r.set(func(s *Status) { s.Missed += r.missed.at(time.Now(), a.CopyFrequency) })
}

// cycleDue notes that a cycle is due now, unless an earlier one is not committed yet.
func (r *Replicator) cycleDue(at time.Time) {
	r.set(func(*Status) {
		if r.missed.due.IsZero() {
			r.missed = misses{due: at}
		}
	})
}

// cycleDone notes that everything cut up to an instant is committed.
func (r *Replicator) cycleDone(a Assignment, e *spool.Entry, last bool) {
	r.set(func(s *Status) {
		s.Missed += r.missed.at(time.Now(), a.CopyFrequency)
		if r.missed = (misses{}); !last {
			r.missed.due = e.Time
		}
	})
}
