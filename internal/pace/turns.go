package pace

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Kind of a turn.
type Kind int

const (
	// Cut: holding a frozen image open.
	Cut Kind = iota
	// Transfer: sending to the store.
	Transfer
	// Scan: reading whole disks, for an initial replication or a resynchronization.
	Scan

	kinds = iota
)

func (k Kind) String() string {
	switch k {
	case Cut:
		return "cut"
	case Transfer:
		return "transfer"
	case Scan:
		return "scan"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// DefaultSlots is how many turns of a kind there are at once.
func DefaultSlots(k Kind) int { return [kinds]int{3, 4, 1}[k] }

const (
	// bulkShare is the least part of the turns' time that bulk gets while deltas wait.
	bulkShare = 0.1
	// maxCredit bounds what bulk can save up, in time of one turn.
	maxCredit = 10 * time.Minute
	// oldestEvery: one turn in so many goes to whoever has waited longest.
	oldestEvery = 8
)

// Turns gives out turns at costly things. The zero value is ready, with
// DefaultSlots; a nil *Turns gives every turn at once. It is safe for concurrent use.
//
// When a turn becomes free, the waiter with the greatest debt gets it. Every
// eighth goes to the one that has waited longest instead, so that nobody starves, whatever
// the debts say. Cut and Transfer have two classes: a delta goes before any
// bulk, and bulk never holds the last slot (if there are two or more), so a
// delta that is due never waits for bulk alone. While deltas wait all the time,
// bulk still gets a tenth of the turns' time.
type Turns struct {
	mu    sync.Mutex
	kinds [kinds]turns
}

// turns of one kind.
type turns struct {
	changed bool // slots was set
	slots   int
	holders []*turn
	waiters []*turn
	// contested counts, for deltas and bulk, the choices between several.
	contested [2]int
	credit    time.Duration // turn time that bulk has not had; at is when it was counted last
	at        time.Time
}

type turn struct {
	Request
	since   time.Time
	granted chan struct{}
}

// Request of a turn.
type Request struct {
	Kind  Kind
	Owner string // for people: the VM's name
	// Debt says how urgent it is at now; the greater, the earlier. See RPODebt.
	// Nil is 0, NaN is 0. It is called while Turns is locked, by any goroutine
	// that uses Turns, until the turn is released: it must be quick and safe for
	// concurrent use, must not call Turns, and whoever calls Turns (release, too) must not hold a
	// lock that it takes.
	Debt func(now time.Time) float64
	Bulk bool // initial replication and resynchronization; of no meaning for Scan
}

// RPODebt is the age of the newest committed point in copy frequencies, plus a
// priority: 1 is just due, and a priority of 1 is worth one missed cycle.
// Without a point, newest is when the protection began.
func RPODebt(now, newest time.Time, frequency time.Duration, priority float64) float64 {
	return float64(max(0, now.Sub(newest)))/float64(max(frequency, time.Second)) + priority
}

// Acquire waits for a turn. release gives it back; calling it again does
// nothing. The error is the cause of ctx's end.
func (t *Turns) Acquire(ctx context.Context, r Request) (release func(), err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if r.Kind < 0 || r.Kind >= kinds {
		return nil, fmt.Errorf("acquire turn: there is no %v", r.Kind)
	}
	if t == nil {
		return func() {}, nil
	}
	if r.Kind == Scan {
		r.Bulk = false
	}
	w := &turn{Request: r, since: time.Now(), granted: make(chan struct{})}
	k := &t.kinds[r.Kind]
	t.mu.Lock()
	k.tally(r.Kind, w.since)
	k.waiters = append(k.waiters, w)
	k.dispatch(r.Kind, w.since)
	t.mu.Unlock()
	select {
	case <-w.granted:
		return func() { t.release(w) }, nil
	case <-ctx.Done():
		t.release(w)
		return nil, context.Cause(ctx)
	}
}

// release takes w out, whether it holds a turn, waits for one, or neither (any more).
func (t *Turns) release(w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, now := &t.kinds[w.Kind], time.Now()
	k.tally(w.Kind, now)
	is := func(o *turn) bool { return o == w }
	k.holders, k.waiters = slices.DeleteFunc(k.holders, is), slices.DeleteFunc(k.waiters, is)
	k.dispatch(w.Kind, now)
}

// SetSlots changes how many turns of a kind there are at once; 0 stops giving
// any out. Turns that are held already are not taken away.
func (t *Turns) SetSlots(k Kind, n int) error {
	if k < 0 || k >= kinds || n < 0 {
		return fmt.Errorf("set slots of %v: %d is not a possible number", k, n)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.kinds[k].tally(k, now)
	t.kinds[k].changed, t.kinds[k].slots = true, n
	t.kinds[k].dispatch(k, now)
	return nil
}

// dispatch gives out what is free; the caller holds the lock and has called tally.
func (k *turns) dispatch(kind Kind, now time.Time) {
	for len(k.holders) < k.limit(kind) {
		w := k.next(kind, now)
		if w == nil {
			return
		}
		k.waiters = slices.DeleteFunc(k.waiters, func(o *turn) bool { return o == w })
		w.since = now
		k.holders = append(k.holders, w)
		close(w.granted)
	}
}

func (w *turn) debt(now time.Time) float64 {
	if w.Debt == nil {
		return 0
	}
	if d := w.Debt(now); !math.IsNaN(d) {
		return d
	}
	return 0
}

func (k *turns) limit(kind Kind) int {
	if k.changed {
		return k.slots
	}
	return DefaultSlots(kind)
}

func countBulk(list []*turn) (n int) {
	for _, w := range list {
		if w.Bulk {
			n++
		}
	}
	return n
}

// tally counts the time that bulk is owed; call it before holders or waiters change.
func (k *turns) tally(kind Kind, now time.Time) {
	dt := max(0, now.Sub(k.at))
	k.at = now
	holding, waiting := countBulk(k.holders), countBulk(k.waiters)
	switch {
	case holding+waiting == 0:
		k.credit = 0
	case waiting < len(k.waiters): // deltas wait
		owed := time.Duration(bulkShare * float64(k.limit(kind)) * float64(min(dt, maxCredit)))
		k.credit += owed - time.Duration(holding)*min(dt, maxCredit)
	}
	k.credit = min(max(k.credit, -maxCredit), maxCredit)
}

// next chooses who is to have a turn, or nobody.
func (k *turns) next(kind Kind, now time.Time) *turn {
	var class [2][]*turn // deltas, bulk; in the order of their coming
	for _, w := range k.waiters {
		if w.Bulk {
			class[1] = append(class[1], w)
		} else {
			class[0] = append(class[0], w)
		}
	}
	if n := k.limit(kind); n >= 2 && countBulk(k.holders) >= n-1 {
		class[1] = nil
	}
	c := 0
	if len(class[0]) == 0 || len(class[1]) > 0 && k.credit > 0 {
		c = 1
	}
	list := class[c]
	if len(list) == 0 {
		return nil
	}
	if len(list) > 1 {
		k.contested[c]++
		if k.contested[c]%oldestEvery == 0 {
			return list[0]
		}
	}
	var best *turn
	var most float64
	for _, w := range list {
		if d := w.debt(now); best == nil || d > most { // the first of equals
			best, most = w, d
		}
	}
	return best
}

// Turn is somebody who has a turn or waits for one.
type Turn struct {
	Kind  Kind
	Owner string
	Bulk  bool
	Holds bool      // false: waits
	Since time.Time // when it began to hold or to wait
	Debt  float64   // now
}

// Snapshot returns all turns: by kind, holders before waiters, holders by time
// and waiters by debt, the most urgent first.
func (t *Turns) Snapshot() []Turn {
	if t == nil {
		return nil
	}
	var out []Turn
	t.mu.Lock()
	now := time.Now()
	for kind := range t.kinds {
		k := &t.kinds[kind]
		for i, w := range slices.Concat(k.holders, k.waiters) {
			out = append(out, Turn{Kind: w.Kind, Owner: w.Owner, Bulk: w.Bulk, Holds: i < len(k.holders), Since: w.since, Debt: w.debt(now)})
		}
	}
	t.mu.Unlock()
	slices.SortStableFunc(out, func(a, b Turn) int {
		switch {
		case a.Kind != b.Kind:
			return cmp.Compare(a.Kind, b.Kind)
		case a.Holds != b.Holds:
			if a.Holds {
				return -1
			}
			return 1
		case a.Holds:
			return a.Since.Compare(b.Since)
		}
		return cmp.Compare(b.Debt, a.Debt)
	})
	return out
}
