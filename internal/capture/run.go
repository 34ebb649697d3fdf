package capture

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/retry"
)

// Run replicates until ctx ends, which is not an error. It may be called once.
func (r *Replicator) Run(ctx context.Context) error {
	defer close(r.ended)
	st, err := r.load()
	if err != nil {
		return err
	}
	r.state = st
	entries, err := r.spool.Open()
	if err != nil {
		return err
	}
	if entries, err = r.adopt(entries); err != nil {
		return err
	}
	now := time.Now()
	r.began = now
	r.pointAt.Store(now.UnixNano())
	if !st.CommittedTime.IsZero() {
		r.pointAt.Store(st.CommittedTime.UnixNano())
	}
	// What an operator has to settle is tried once: the assignment may be another one now.
	r.try(r.change(func(s *state) error {
		for _, x := range []*retry.State{&s.Retry, &s.Ship} {
			if x.Class() == retry.NonRecoverable {
				x.RetryNow(now)
			}
		}
		return nil
	}))
	r.set(func(s *Status) { s.Committed, s.LastCut, s.Gen, s.Epoch = st.Point, st.CommittedTime, st.Gen, st.Epoch })

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Before the loop: a takeover has to find them, to drop them.
	r.shipping.qmu.Lock()
	r.shipping.queue = entries
	r.shipping.qmu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.shipAll(ctx); err != nil {
			cancel(err)
		}
	})
	err = r.loop(ctx)
	cancel(err)
	wg.Wait()
	r.background.Wait()
	r.turn.put()
	if r.cfg.Group != nil {
		r.cfg.Group.Leave(r.cfg.Machine)
	}
	r.set(func(s *Status) { s.Phase = PhaseStopped })
	if cause := context.Cause(ctx); errors.Is(cause, errCrash) {
		return cause
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// adopt brings state and spool together after a crash at any step: entries
// that go on after the committed cut stay, whatever else is there is removed,
// and the tip is the last one that stays.
func (r *Replicator) adopt(entries []*spool.Entry) ([]*spool.Entry, error) {
	st := r.snapshot()
	tip := st.Committed.copy()
	var keep []*spool.Entry
	for _, e := range entries {
		if e.Prev == tip.Ref && e.Ref.Gen == st.Gen {
			p, err := tipOf(e)
			if err == nil {
				keep, tip = append(keep, e), p
				continue
			}
			r.cfg.Log.Error("a spooled cut is captured again", "err", err)
		}
		if err := r.spool.Remove(e); err != nil {
			return nil, err
		}
	}
	if tip.Ref == st.Tip.Ref {
		return keep, nil
	}
	// A tip behind the state's: the spool was lost, and changes since the
	// committed cut are captured again. A tip beyond: the crash came between the
	// entry and the state.
	r.cfg.Log.Info("spool and state differ after a crash", "tip", tip.Ref.N, "was", st.Tip.Ref.N, "entries", len(keep))
	behind := tip.Ref.N < st.Tip.Ref.N || tip.Ref.IsZero()
	return keep, r.change(func(s *state) error {
		scan := s.Tip.Scan
		s.setTip(tip)
		if behind {
			s.Tip.again(scan)
		}
		return nil
	})
}

// rhythm is the loop's memory between turns.
type rhythm struct {
	next    time.Time   // of the next cycle
	blocked *Assignment // a permanent error under this assignment
	last    Assignment
	off     bool    // the VM was found off: a hint that it was started is worth a look
	waiting bool    // for a window, a turn or the store: whatever happens is worth a look
	swept   dr.VMID // whose leftovers of an earlier process are removed
}

func (r *Replicator) loop(ctx context.Context) error {
	var p rhythm
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var d *drain
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.kick:
			if p.off || p.waiting || r.lookNow.Swap(false) {
				p.next = time.Time{}
			}
		case <-timer.C:
		case x := <-r.drains:
			d = &x
		}
		a, ok := r.assignment()
		if !ok {
			if d != nil {
				d.done <- drainResult{err: dr.Errorf(dr.KindPrecondition, "capture.Drain", "nothing is assigned")}
			}
			continue
		}
		wait, err := r.turnOnce(ctx, a, &p, d)
		if errors.Is(err, errCrash) || ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		timer.Reset(wait)
	}
}

func (r *Replicator) assignment() (Assignment, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want, r.wanted
}

// paused reports whether a pause is in force.
func (r *Replicator) paused(a Assignment, now time.Time) bool {
	return a.Paused && (a.ResumeAt.IsZero() || now.Before(a.ResumeAt))
}

const idle = time.Hour

// turnOnce does what is due and says when to look again.
func (r *Replicator) turnOnce(ctx context.Context, a Assignment, p *rhythm, d *drain) (time.Duration, error) {
	now := time.Now()
	r.forgetKey()
	asked := p.last.ResyncRequest != a.ResyncRequest && p.last.VM != ""
	if asked || !slices.Equal(p.last.Disks, a.Disks) {
		p.waiting = true
	}
	p.last = a
	if r.retryNow.Swap(false) || asked || p.blocked != nil && !reflect.DeepEqual(*p.blocked, a) {
		p.blocked, p.next = nil, time.Time{}
		r.try(r.change(func(s *state) error { s.Retry.RetryNow(now); return nil }))
		r.set(func(s *Status) { s.Err, s.RetryAt = nil, time.Time{} })
	}
	switch {
	case p.blocked != nil:
		if d != nil {
			d.done <- drainResult{err: r.Status().Err}
		}
		return idle, nil
	case r.paused(a, now) && d == nil:
		r.rest(a)
		r.set(func(s *Status) { s.Phase, s.PauseReason, s.ResumeAt = PhasePaused, a.PauseReason, a.ResumeAt })
		p.waiting = true
		if a.ResumeAt.IsZero() {
			return idle, nil
		}
		return min(a.ResumeAt.Sub(now), idle), nil
	}
	r.set(func(s *Status) { s.PauseReason, s.ResumeAt = "", time.Time{} })
	if p.waiting {
		p.next = time.Time{}
	}
	if st := r.snapshot(); p.next.IsZero() && d == nil {
		// The retry schedule outlives a restart.
		if wait, ok := st.Retry.Wait(now); ok && wait > 0 {
			p.next = now.Add(wait)
		}
	}
	if wait := p.next.Sub(now); wait > 0 && d == nil {
		r.countMissed(a)
		return wait, nil
	}
	p.off, p.waiting = false, false
	r.countMissed(a)
	if !r.snapshot().Tip.Ref.IsZero() {
		r.cycleDue(now)
	}
	more, wait, err := r.work(ctx, a, p, d)
	switch {
	case err == nil && d == nil && wait >= 0:
		p.waiting = true
		r.succeeded(a)
		r.rest(a)
		return wait, nil
	case err == nil:
		r.succeeded(a)
		if p.next = r.following(now, a); more {
			p.next = time.Now()
		}
		return time.Until(p.next), nil
	}
	if d != nil {
		// The status says what happened before whoever waits is told.
		defer func() { d.done <- drainResult{err: err} }()
	}
	if errors.Is(err, errCrash) || ctx.Err() != nil {
		return 0, err
	}
	wait = r.failed(a, p, now, err)
	r.countMissed(a)
	r.look(ctx, a, true)
	r.showBacklog(a)
	return wait, nil
}

// rest notes that no cycle is due: a pause or a window is not a missed cycle.
func (r *Replicator) rest(Assignment) {
	r.turn.put()
	if r.cfg.Group != nil {
		r.cfg.Group.Leave(r.cfg.Machine)
	}
	r.set(func(*Status) { r.missed = misses{} })
}

// following is when the next cycle is due after one that was due at now.
// Members of a group keep to the clock, so that they meet.
func (r *Replicator) following(now time.Time, a Assignment) time.Time {
	next := now.Add(a.CopyFrequency)
	if r.cfg.Group != nil && a.CopyFrequency > 0 {
		next = now.Truncate(a.CopyFrequency).Add(a.CopyFrequency)
	}
	if late := time.Now(); late.After(next) {
		return late
	}
	return next
}

// succeeded clears the trouble of the cycles before.
func (r *Replicator) succeeded(a Assignment) {
	if st := r.snapshot(); st.Retry.Class() != retry.Healthy {
		r.try(r.change(func(s *state) error { s.Retry.Succeeded(); return nil }))
	}
	problem := r.problem(a)
	r.set(func(s *Status) { s.Err, s.Attempt, s.Class, s.RetryAt, s.Problem = nil, 0, "", time.Time{}, problem })
}

// work makes the cycle that is due; for a drain as many as it takes. wait >= 0
// says that there is nothing to do, and when to look again.
func (r *Replicator) work(ctx context.Context, a Assignment, p *rhythm, d *drain) (more bool, wait time.Duration, err error) {
	if err := r.follow(ctx, a); err != nil {
		return false, -1, err
	}
	if p.swept != a.VM {
		r.forget(ctx, a.VM, nil)
		p.swept = a.VM
	}
	if a.InitialCancelled && r.snapshot().Tip.Ref.IsZero() {
		if d != nil {
			return false, -1, dr.Errorf(dr.KindPrecondition, "capture.Drain", "the initial replication was cancelled")
		}
		r.set(func(s *Status) { s.Phase, s.Note, s.Percent = PhaseWaiting, "the initial replication was cancelled", 0 })
		return false, idle, nil
	}
	r.look(ctx, a, false)
	for replans := 0; ; {
		plan, err := r.planCycle(ctx, a, d != nil)
		if err != nil {
			return false, -1, err
		}
		r.showPlan(plan)
		if plan.idle() {
			if len(plan.live)+len(plan.fill) == 0 && plan.st.Fill == nil {
				return false, -1, errors.Join(r.problem(a), dr.New(dr.KindUnsupported, dr.CodeNoDisks, "capture.cycle", "VM %s has no disk that can be replicated", a.VM))
			}
			if d != nil {
				return false, -1, dr.New(dr.KindPrecondition, dr.CodeWindowClosed, "capture.Drain", "there is no recovery point yet, and the initial replication waits for its window")
			}
			return false, plan.untilNext(), nil
		}
		if plan.cut && r.spool.Full() {
			return false, -1, dr.New(dr.KindExhausted, dr.CodeSpoolFull, "capture.cycle", "the spool holds %d bytes, its limit is %d: cutting waits, changes go on being tracked", r.spool.Size(), r.spool.Limit())
		}
		more, err = r.oneCycle(ctx, plan)
		switch {
		case errors.Is(err, errReplan) && !errors.Is(err, errCrash):
			if replans++; replans > 8 {
				return false, -1, dr.Errorf(dr.KindInternal, "capture.cycle", "the host reports other disks each time: %w", err)
			}
			continue
		case errors.Is(err, errShipFirst) && !errors.Is(err, errCrash) && d != nil:
			if err := r.awaitShipped(ctx); err != nil {
				return false, -1, err
			}
			continue
		case errors.Is(err, errShipFirst) && !errors.Is(err, errCrash):
			r.set(func(s *Status) { s.Note = "the spool has to be sent before digests can be compared" })
			return false, idle, nil // a commit is worth a look
		case err != nil:
			return false, -1, err
		case d == nil:
			return more, -1, nil
		}
		st := r.snapshot()
		if st.Tip.Ref.IsZero() || st.Tip.Scan != nil && !st.Tip.Scan.Exact || more && plan.chain() {
			if ctx.Err() != nil {
				return false, -1, context.Cause(ctx)
			}
			replans = 0
			continue
		}
		d.done <- drainResult{ref: st.Tip.Ref, at: r.tipAt}
		return more || st.Fill != nil, -1, nil // a drain sends no new disks
	}
}

// oneCycle runs one cycle with the turn that it needs.
func (r *Replicator) oneCycle(ctx context.Context, plan *plan) (more bool, err error) {
	bulk := plan.scan || plan.send
	if bulk {
		defer r.turn.put()
	}
	if r.cfg.Group != nil {
		if plan.chain() && !bulk {
			r.cfg.Group.Join(r.cfg.Machine)
		} else {
			r.cfg.Group.Leave(r.cfg.Machine)
		}
	}
	if r.cfg.Group == nil { // a group's cut is one, and waits for all members
		release, err := r.acquire(ctx, plan.a, cutTurn, bulk && !plan.cut)
		if err != nil {
			return false, err
		}
		defer release()
	}
	more, err = r.cycle(ctx, plan)
	if err == nil && !plan.chain() {
		st := r.snapshot()
		r.forgetDue.Store(true) // the token of the round before
		more = more || st.Fill != nil
	}
	if err == nil && r.forgetDue.Load() {
		r.forget(ctx, plan.a.VM, nil)
	}
	return more, err
}

// untilNext is how long there is nothing to do.
func (p *plan) untilNext() time.Duration {
	wait := idle
	for _, t := range []time.Time{p.nextResync, p.nextInitial} {
		if !t.IsZero() {
			wait = min(wait, time.Until(t))
		}
	}
	return max(wait, 0)
}

// awaitShipped waits until the spool is empty.
func (r *Replicator) awaitShipped(ctx context.Context) error {
	for {
		changed := r.Changed()
		if r.head() == nil {
			return nil
		}
		if s := r.Status(); s.Phase == PhaseError {
			return s.Err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// showPlan publishes what a cycle is about to do, or to wait for.
func (r *Replicator) showPlan(p *plan) {
	r.set(func(s *Status) {
		s.Resync, s.ResyncReason, s.NextResync, s.NextInitial, s.Note = "", "", p.nextResync, p.nextInitial, ""
		sc := p.st.Tip.Scan
		if sc != nil {
			s.Resync, s.ResyncReason = sc.Reason, sc.Code
		}
		switch {
		case p.st.Tip.Ref.IsZero():
			s.Phase = PhaseInitial
			if !p.nextInitial.IsZero() {
				s.Phase, s.Note = PhaseWaiting, "the initial replication waits until "+p.nextInitial.Format(time.RFC3339)
			}
		case sc != nil && (p.scan || !sc.Exact):
			s.Phase = PhaseResync
			if !p.nextResync.IsZero() {
				s.Note = "the resynchronization waits until " + p.nextResync.Format(time.RFC3339)
			}
		default:
			s.Phase = PhaseDelta
		}
	})
}

// showCut publishes what a cut amounted to.
func (r *Replicator) showCut(im *image, e *spool.Entry) {
	note := ""
	if im.asked {
		note = im.info.Note
	}
	epoch := r.snapshot().Epoch
	r.set(func(s *Status) {
		if s.Epoch = epoch; im.asked {
			s.Consistency, s.ConsistencyNote = im.info.Consistency, note
		}
		if st := r.state; st.Tip.Scan == nil && st.Fill == nil {
			s.Percent, s.ETA = 100, 0
		}
		if r.state.Tip.Scan == nil && s.Phase == PhaseInitial {
			s.Phase = PhaseDelta
		}
	})
	r.sample(e.Dirty, 0, 0)
}

// failed decides when to try again after an error.
func (r *Replicator) failed(a Assignment, p *rhythm, now time.Time, err error) time.Duration {
	switch code := dr.CodeOf(err); code {
	case dr.CodeVMNotRunning:
		// Not an error of replication: tracking persists on disk, and the next cycle looks again.
		r.rest(a)
		r.set(func(s *Status) { s.Note, s.Err = "the VM is not running", nil })
		p.next, p.off = now.Add(a.CopyFrequency), true
		return a.CopyFrequency
	case dr.CodeSpoolFull:
		r.set(func(s *Status) { r.setErr(s, err) })
		p.next, p.waiting = now.Add(a.CopyFrequency), true
		return a.CopyFrequency
	}
	var next retry.Decision
	late := time.Now()
	serr := r.change(func(s *state) error {
		next = s.Retry.Failed(late, err, rand.Float64())
		return nil
	})
	if serr != nil { // the state can't be stored: what matters is not to hammer
		next = retry.Decision{Class: retry.Classify(err), Attempt: 1, At: late.Add(time.Minute)}
	}
	r.set(func(s *Status) {
		r.setErr(s, err)
		s.Attempt, s.Class, s.RetryAt = next.Attempt, string(next.Class), next.At
	})
	if next.Class == retry.NonRecoverable {
		r.cfg.Log.Error("replication stopped: an operator has to act", "err", err, "hint", dr.HintOf(err))
		p.blocked = &a
		r.rest(a)
		r.set(func(s *Status) { s.Phase = PhaseError })
		return idle
	}
	p.next = next.At
	r.cfg.Log.Warn("cycle failed", "err", err, "failures", next.Attempt, "retry", p.next)
	return time.Until(p.next)
}

// setErr keeps when the present trouble began.
func (r *Replicator) setErr(s *Status, err error) {
	if s.Err == nil {
		s.Since = time.Now()
	}
	s.Err = err
}

// compared publishes how far a resynchronization has come.
func (r *Replicator) compared(b *build, d cut.Disk, tile uint32, n int64) {
	left, total := b.after.Scan.left(b.live)
	if next, ok := b.after.Scan.next(d.Index); ok { // of this disk's tiles Next knows only those before the cut
		left -= int64(tile+1-next) * cut.TileSize
	}
	b.meter.show(n, total-max(left, 0), total)
}
