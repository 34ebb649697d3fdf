// Package pace decides, on one agent, how fast data flows and whose turn it is.
//
//   - Limiter: bytes a second, as a hierarchy (agent, policy, item) whose limits
//     change with the time of day and while in use.
//   - Turns: who may do a costly thing now (open a frozen image, send, read whole
//     disks): the one that is furthest behind its own copy frequency.
//   - Backlog: how far behind one machine is, and whether it gets better.
//
// It promises: a limit is kept in the long run and never exceeded by more than
// one slice and what Slack lets through; nobody who waits is starved; a waiter costs no CPU;
// whoever gives up (its context ends) leaves nothing behind. Nothing here is
// durable and nothing does I/O; there are no goroutines to stop.
package pace

import (
	"context"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Rule says how many bytes a second may pass at t, and until when that holds
// (the zero time: until another rule is set). 0 is unlimited; below 0 nothing
// passes. It is asked while the limiter is locked: it must be quick, and must not call the limiter.
type Rule func(t time.Time) (bytesPerSecond int64, until time.Time)

// Constant is the rule of a limit that does not depend on the time.
func Constant(bytesPerSecond int64) Rule {
	return func(time.Time) (int64, time.Time) { return bytesPerSecond, time.Time{} }
}

const (
	// Slice is the most that one waiter is granted before others come, bytes.
	Slice = 64 << 10
	// Slack is how much unused time a limit makes up for: it evens out timers
	// that fire late, and is the burst after idle time.
	Slack = 50 * time.Millisecond

	minSlice = 256
	quantum  = 50 * time.Millisecond // a slice of a slow limit lasts so long
	// recheck bounds a sleep, because a change of the clock wakes nobody.
	recheck = time.Minute
	// settled is the debt that counts as none, bytes: what remains after rounding. It is not forgiven.
	settled = 1e-3
)

// Limiter bounds what its waiters, and those of its children, send together. It
// is safe for concurrent use. A nil Limiter is unlimited. Limiters that are not used
// any more need not be closed.
//
// Fairness is by bytes: between the children of a limiter and its own waiters, so
// a child with many waiters gets no more than one with a single one. Order is that of
// self-clocked fair queueing: each slice has the virtual time at which it would
// be through if everybody got the same, and the smallest goes first.
type Limiter struct {
	tree   *tree
	parent *Limiter
	window atomic.Pointer[window] // what the rule said last

	// Guarded by tree.mu:
	rule    Rule
	debt    float64   // bytes granted that are not through yet at this rate; negative = unused time
	at      time.Time // of debt
	waiters []*waiter
	active  []*Limiter // children below which somebody waits
	start   int64      // virtual time of the parent at which the next slice starts
	served  int64      // own virtual time: when the newest slice granted here ends
}

// tree is what all limiters of a hierarchy share.
type tree struct {
	clock func() time.Time // what the rules are asked with
	mu    sync.Mutex
	root  *Limiter
	timer *time.Timer // nil before the first wait
}

// wall is the time of day: without its monotonic reading, which a change of the clock leaves alone.
func (t *tree) wall() time.Time { return t.clock().Round(0) }

// window is an answer of a rule.
type window struct {
	rate        int64
	from, until time.Time // until zero: for good
}

// holds is false if the clock has left the window, in either direction.
func (w *window) holds(t time.Time) bool {
	return w.until.IsZero() || !t.Before(w.from) && t.Before(w.until)
}

// waiter is one call of Wait.
type waiter struct {
	left  int
	start int64 // virtual time of its limiter
	done  chan struct{}
}

// NewLimiter returns the root of a hierarchy; a nil rule is unlimited. clock
// (nil: time.Now) is the time of day that rules are asked with; how long a byte takes is
// measured by the monotonic clock, so that setting the time neither stops nor floods anything.
func NewLimiter(rule Rule, clock func() time.Time) *Limiter {
	if clock == nil {
		clock = time.Now
	}
	t := &tree{clock: clock}
	t.root = &Limiter{tree: t}
	t.root.begin(rule)
	return t.root
}

// Child returns a limiter below l: what passes it passes l, too.
func (l *Limiter) Child(rule Rule) *Limiter {
	c := &Limiter{tree: l.tree, parent: l}
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	c.begin(rule)
	return c
}

func (l *Limiter) begin(rule Rule) {
	l.rule, l.at = rule, time.Now()
	l.ask(l.tree.wall())
}

// SetRule replaces the rule. It takes effect at once, for those who wait, too.
func (l *Limiter) SetRule(rule Rule) {
	t := l.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	now, wall := time.Now(), t.wall()
	l.advance(now, wall)
	l.rule = rule
	l.ask(wall)
	l.drain(0)
	t.dispatch(now, wall)
}

// Rate is the lowest limit on the way from l up, bytes/s: 0 = unlimited, below 0 = closed.
func (l *Limiter) Rate() int64 {
	if l == nil {
		return 0
	}
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	now, wall := time.Now(), l.tree.wall()
	var rate int64
	for ; l != nil; l = l.parent {
		l.advance(now, wall)
		rate = tighter(rate, l.window.Load().rate)
	}
	return rate
}

func tighter(a, b int64) int64 {
	switch {
	case a < 0 || b < 0:
		return -1
	case a == 0 || b == 0:
		return a + b
	}
	return min(a, b)
}

// Wait returns when n bytes may be sent, or ctx has ended (then with its cause).
// What was granted to a call that ctx ended is lost for the others, at most n bytes.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n <= 0 || l.unlimited() {
		return nil
	}
	t, w := l.tree, &waiter{left: n, done: make(chan struct{})}
	t.mu.Lock()
	l.add(w)
	t.dispatch(time.Now(), t.wall())
	t.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.left == 0 {
		return nil
	}
	l.remove(w)
	t.dispatch(time.Now(), t.wall())
	return context.Cause(ctx)
}

// unlimited decides without a lock whether nothing on the way up limits.
func (l *Limiter) unlimited() bool {
	for ; l != nil; l = l.parent {
		w := l.window.Load()
		if w.rate != 0 || !w.until.IsZero() && !w.holds(l.tree.wall()) {
			return false
		}
	}
	return true
}

// Reader returns a reader of r at the speed of l. It reads pieces that take
// about 50 ms, so that a slow body still moves all the time; bytes read are counted before they are returned.
func (l *Limiter) Reader(ctx context.Context, r io.Reader) io.Reader {
	return &reader{ctx: ctx, l: l, r: r}
}

type reader struct {
	ctx context.Context
	l   *Limiter
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if rate := r.l.Rate(); rate != 0 {
		p = p[:min(len(p), sliceOf(rate))]
	}
	n, err := r.r.Read(p)
	if werr := r.l.Wait(r.ctx, n); werr != nil {
		return 0, werr
	}
	return n, err
}

// sliceOf is how much is granted at once where the lowest limit is rate.
func sliceOf(rate int64) int {
	if rate == 0 {
		return Slice
	}
	return int(min(max(float64(rate)*quantum.Seconds(), minSlice), Slice))
}

// add queues a waiter; the caller holds the lock, as for all below.
func (l *Limiter) add(w *waiter) {
	w.start = l.served
	idle := len(l.waiters)+len(l.active) == 0
	l.waiters = append(l.waiters, w)
	for ; idle && l.parent != nil; l = l.parent {
		p := l.parent
		idle = len(p.waiters)+len(p.active) == 0
		p.active = append(p.active, l)
	}
}

func (l *Limiter) remove(w *waiter) {
	i := slices.Index(l.waiters, w)
	l.waiters = slices.Delete(l.waiters, i, i+1)
	for ; len(l.waiters)+len(l.active) == 0 && l.parent != nil; l = l.parent {
		i := slices.Index(l.parent.active, l)
		l.parent.active = slices.Delete(l.parent.active, i, i+1)
	}
}

// ask takes over the rule's answer for t.
func (l *Limiter) ask(t time.Time) {
	w := &window{from: t}
	if l.rule != nil {
		w.rate, w.until = l.rule(t)
	}
	if !w.until.IsZero() && !w.until.After(t) {
		w.until = t.Add(time.Second) // a rule that contradicts itself must not make us spin
	}
	if old := l.window.Swap(w); old != nil && old.rate > w.rate && w.rate > 0 && l.debt > 0 {
		// What was granted at the old rate is through when it would have been then.
		l.debt *= float64(w.rate) / float64(old.rate)
	}
}

// advance lets the time since the last call pass. That its window may have ended
// meanwhile matters only if nobody waited (the timer fires at its end), and then a slice at most.
func (l *Limiter) advance(now, wall time.Time) {
	l.drain(max(0, now.Sub(l.at)))
	l.at = now
	if !l.window.Load().holds(wall) {
		l.ask(wall)
		l.drain(0)
	}
}

// drain lets d pass at the present rate.
func (l *Limiter) drain(d time.Duration) {
	switch rate := l.window.Load().rate; {
	case rate == 0:
		l.debt = 0
	case rate > 0:
		l.debt = max(l.debt-float64(rate)*d.Seconds(), -float64(rate)*Slack.Seconds())
	}
}

// delay is how long until l lets somebody pass, if its rate stays.
func (l *Limiter) delay() time.Duration {
	switch rate := l.window.Load().rate; {
	case rate < 0:
		return math.MaxInt64
	case rate == 0 || l.debt <= settled:
		return 0
	default:
		return time.Duration(min(math.Ceil(l.debt/float64(rate)*1e9), float64(recheck)))
	}
}

// dispatch grants what may pass now and sets the timer for the rest.
func (t *tree) dispatch(now, wall time.Time) {
	t.root.refresh(now, wall)
	for {
		leaf, w, n := t.root.pick(0)
		if w == nil {
			break
		}
		leaf.grant(w, n)
	}
	d, waiting := t.root.wake(0, wall)
	switch {
	case !waiting && t.timer != nil:
		t.timer.Stop()
	case waiting && t.timer == nil:
		t.timer = time.AfterFunc(d, t.fire)
	case waiting:
		t.timer.Reset(d)
	}
}

func (t *tree) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dispatch(time.Now(), t.wall())
}

// refresh brings l and all below which somebody waits up to now.
func (l *Limiter) refresh(now, wall time.Time) {
	l.advance(now, wall)
	for _, c := range l.active {
		c.refresh(now, wall)
	}
}

// pick finds who is next below l, where it waits, and how much it gets; nil if nobody may pass.
func (l *Limiter) pick(above int64) (leaf *Limiter, w *waiter, n int) {
	if l.delay() > 0 {
		return nil, nil, 0
	}
	rate := tighter(above, l.window.Load().rate)
	// Who did not want to pass, or could not because of its own limit, gets
	// credit for a slice at most.
	oldest := l.served - Slice
	var first int64
	better := func(start int64, n int) bool {
		end := max(start, oldest) + int64(n)
		if w != nil && end >= first {
			return false
		}
		first = end
		return true
	}
	for _, c := range l.waiters {
		if m := min(c.left, sliceOf(rate)); better(c.start, m) {
			leaf, w, n = l, c, m
		}
	}
	for _, c := range l.active {
		if cl, cw, m := c.pick(rate); cw != nil && better(c.start, m) {
			leaf, w, n = cl, cw, m
		}
	}
	return leaf, w, n
}

// grant gives n bytes to a waiter of l.
func (l *Limiter) grant(w *waiter, n int) {
	w.start = max(w.start, l.served-Slice) + int64(n)
	l.served = max(l.served, w.start)
	for c := l; c != nil; c = c.parent {
		c.debt += float64(n)
		if p := c.parent; p != nil {
			c.start = max(c.start, p.served-Slice) + int64(n)
			p.served = max(p.served, c.start)
		}
	}
	if w.left -= n; w.left == 0 {
		l.remove(w)
		close(w.done)
	}
}

// wake is how long nothing can happen below l, and whether anybody waits there at all.
func (l *Limiter) wake(above time.Duration, wall time.Time) (d time.Duration, waiting bool) {
	own := max(above, l.delay())
	d = recheck
	if len(l.waiters) > 0 {
		d, waiting = min(d, own), true
	}
	for _, c := range l.active {
		cd, cw := c.wake(own, wall)
		d, waiting = min(d, cd), waiting || cw
	}
	if w := l.window.Load(); waiting && !w.until.IsZero() {
		d = min(d, max(w.until.Sub(wall), time.Millisecond))
	}
	return d, waiting
}
