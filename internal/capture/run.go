package capture

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// Run replicates until ctx ends, which is not an error. It may be called once.
func (r *Replicator) Run(ctx context.Context) error {
	defer close(r.ended)
	st, err := r.load()
	if err != nil {
		return err
	}
	r.state = st
	entries, err := r.spool.open()
	if err != nil {
		return err
	}
	if entries, err = r.adopt(entries); err != nil {
		return err
	}
	r.set(func(s *Status) { s.Committed, s.LastCut, s.Gen = st.Committed, st.CommittedTime, st.Gen })

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.shipAll(ctx, entries); err != nil {
			cancel(err)
		}
	})
	err = r.loop(ctx)
	cancel(err)
	wg.Wait()
	r.set(func(s *Status) { s.Phase = PhaseStopped })
	if cause := context.Cause(ctx); errors.Is(cause, errCrash) {
		return cause
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// change changes the state durably; on an error the memory is as before.
func (r *Replicator) change(fn func(*state) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.state
	next.Disks = append([]cut.Disk(nil), r.state.Disks...)
	if err := fn(&next); err != nil {
		return err
	}
	if err := r.save(&next); err != nil {
		return err
	}
	*r.state = next
	return nil
}

// snapshot is a copy of the state.
func (r *Replicator) snapshot() state {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := *r.state
	s.Disks = append([]cut.Disk(nil), r.state.Disks...)
	return s
}

// adopt brings state and spool together after a crash at any step: entries
// that go on after the committed cut stay, whatever else is there is removed,
// and the tip is the last one that stays.
func (r *Replicator) adopt(entries []*entry) ([]*entry, error) {
	st := r.snapshot()
	tip, token, at := st.Committed, st.CommittedToken, st.Committed
	var keep []*entry
	for _, e := range entries {
		if e.Prev == at && e.Ref.Gen == st.Gen {
			keep = append(keep, e)
			tip, token, at = e.Ref, e.Token, e.Ref
			continue
		}
		if err := r.spool.remove(e); err != nil {
			return nil, err
		}
	}
	if tip == st.Tip {
		return keep, nil
	}
	// A tip behind the state's: the spool was lost, and changes since the
	// committed cut are captured again. A tip beyond: the crash came between the
	// entry and the state.
	r.cfg.Log.Info("spool and state differ after a crash", "tip", tip.N, "was", st.Tip.N, "entries", len(keep))
	return keep, r.change(func(s *state) error {
		s.Tip, s.TipToken = tip, token
		if !tip.IsZero() {
			s.Initial = nil
		}
		return nil
	})
}

// pace is the loop's memory between turns.
type pace struct {
	next     time.Time // of the next cycle
	first    time.Time // of the first failure in a row
	failures int
	blocked  *Assignment // a permanent error under this assignment
	lastApp  time.Time
	off      bool    // the VM was found off: a hint that it was started is worth a look
	swept    dr.VMID // whose leftovers of an earlier process are removed
}

func (r *Replicator) loop(ctx context.Context) error {
	var p pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var d *drain
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.kick:
			if p.off {
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
		wait, err := r.turn(ctx, a, &p, d)
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

func sameAssignment(a, b Assignment) bool {
	if len(a.Disks) != len(b.Disks) {
		return false
	}
	for i := range a.Disks {
		if a.Disks[i] != b.Disks[i] {
			return false
		}
	}
	return a.VM == b.VM && a.Gen == b.Gen && a.Base == b.Base && a.CopyFrequency == b.CopyFrequency && a.Paused == b.Paused && a.ResyncRequest == b.ResyncRequest
}

// turn does what is due and says when to look again.
func (r *Replicator) turn(ctx context.Context, a Assignment, p *pace, d *drain) (time.Duration, error) {
	const idle = time.Hour
	if p.blocked != nil && !sameAssignment(*p.blocked, a) {
		p.blocked, p.failures, p.next = nil, 0, time.Time{}
		r.set(func(s *Status) { s.Err = nil })
	}
	switch {
	case p.blocked != nil:
		if d != nil {
			d.done <- drainResult{err: r.Status().Err}
		}
		return idle, nil
	case a.Paused && d == nil:
		r.set(func(s *Status) { s.Phase = PhasePaused })
		return idle, nil
	}
	now := time.Now()
	if wait := p.next.Sub(now); wait > 0 && d == nil {
		return wait, nil
	}
	p.off = false
	err := r.follow(ctx, a)
	if err == nil && p.swept != a.VM {
		r.forget(ctx, a.VM, nil)
		p.swept = a.VM
	}
	if err == nil {
		err = r.cycle(ctx, a, p, d)
	}
	if err == nil {
		p.failures = 0
		missed := 0
		if p.next = now.Add(a.CopyFrequency); time.Now().After(p.next) {
			missed = int(time.Since(p.next)/a.CopyFrequency) + 1
			p.next = time.Now()
		}
		r.set(func(s *Status) { s.Err, s.Missed = nil, s.Missed+missed })
		return time.Until(p.next), nil
	}
	if d != nil {
		d.done <- drainResult{err: err}
	}
	if errors.Is(err, errCrash) || ctx.Err() != nil {
		return 0, err
	}
	return r.failed(a, p, now, err), nil
}

// failed decides when to try again after an error.
func (r *Replicator) failed(a Assignment, p *pace, now time.Time, err error) time.Duration {
	switch code := dr.CodeOf(err); {
	case code == dr.CodeVMNotRunning:
		// Not an error of replication: tracking persists on disk, and the next cycle looks again.
		r.set(func(s *Status) { s.Note, s.Err = "the VM is not running", nil })
		p.next, p.off = now.Add(a.CopyFrequency), true
		return a.CopyFrequency
	case code == dr.CodeSpoolFull:
		r.set(func(s *Status) { r.setErr(s, err); s.Missed++ })
		p.next = now.Add(a.CopyFrequency)
		return a.CopyFrequency
	case permanent(err):
		r.cfg.Log.Error("replication stopped: an operator has to act", "err", err, "hint", dr.HintOf(err))
		p.blocked = &a
		r.set(func(s *Status) { r.setErr(s, err); s.Phase, s.RetryAt = PhaseError, time.Time{} })
		return time.Hour
	}
	if p.failures == 0 {
		p.first = now
	}
	p.failures++
	p.next = retryAt(p.first, p.failures, jitter())
	if past := time.Now(); p.next.Before(past) {
		p.next = past.Add(time.Minute)
	}
	r.cfg.Log.Warn("cycle failed", "err", err, "failures", p.failures, "retry", p.next)
	r.set(func(s *Status) { r.setErr(s, err); s.Missed++; s.RetryAt = p.next })
	return time.Until(p.next)
}

// setErr keeps when the present trouble began.
func (r *Replicator) setErr(s *Status, err error) {
	if s.Err == nil {
		s.Since = time.Now()
	}
	s.Err = err
}

// follow adopts a new generation or a new request of the assignment.
func (r *Replicator) follow(ctx context.Context, a Assignment) error {
	st := r.snapshot()
	if a.Gen < st.Gen {
		return dr.New(dr.KindFenced, dr.CodeGenerationFenced, "capture.follow", "the assignment has generation %d, this agent has seen %d", a.Gen, st.Gen)
	}
	if a.Gen > st.Gen {
		if err := r.takeover(ctx, a, st); err != nil {
			return err
		}
	}
	if a.ResyncRequest != st.Request {
		reason := "asked for by an operator"
		return r.change(func(s *state) error {
			if !s.Tip.IsZero() && a.ResyncRequest != "" {
				s.Resync = reason
			}
			s.Request = a.ResyncRequest
			return nil
		})
	}
	return nil
}

// takeover begins a generation. What is in the spool belongs to the old one
// and is dead; changes since the base are captured again.
func (r *Replicator) takeover(ctx context.Context, a Assignment, st state) error {
	// The shipper must not hold an entry of the old generation.
	if err := r.dropSpool(ctx); err != nil {
		return err
	}
	st = r.snapshot()
	return r.change(func(s *state) error {
		s.Gen = a.Gen
		switch {
		case a.Base == st.Committed && !a.Base.IsZero():
			s.Tip, s.TipToken = st.Committed, st.CommittedToken
		case a.Base.IsZero():
			s.Tip, s.TipToken, s.Committed, s.CommittedToken, s.Resync = cut.Ref{}, "", cut.Ref{}, "", ""
			s.Disks = nil
			if st.Gen != 0 && !st.Tip.IsZero() {
				s.Initial = nil
			}
			if err := os.RemoveAll(r.path("filter")); err != nil {
				return diskError("capture.takeover", r.path("filter"), err)
			}
		default:
			// The replica stands at a cut whose content this agent can't tell from
			// its own history: the difference is found by comparing.
			s.Tip, s.TipToken, s.Committed, s.CommittedToken = a.Base, "", a.Base, ""
			s.Resync = "the replica goes on from another recovery point than the one this host knows"
			s.Initial = nil
		}
		return nil
	})
}

// cycle makes one cut of the kind that is due.
func (r *Replicator) cycle(ctx context.Context, a Assignment, p *pace, d *drain) error {
	st := r.snapshot()
	if r.spool.full() {
		return dr.New(dr.KindExhausted, dr.CodeSpoolFull, "capture.cycle", "the spool holds %d bytes, its limit is %d: cutting waits, changes go on being tracked", r.spool.size(), r.cfg.SpoolLimit)
	}
	if st.Tip.IsZero() {
		if err := r.initial(ctx, a); err != nil {
			return err
		}
	} else {
		quiesce := a.AppFrequency > 0 && time.Since(p.lastApp) >= a.AppFrequency && d == nil
		began := time.Now()
		err := r.delta(ctx, a, st, quiesce, d != nil)
		if dr.CodeOf(err) == dr.CodeTrackingLost && st.TipToken != "" {
			r.cfg.Log.Warn("change tracking was lost: resynchronizing", "err", err)
			if cerr := r.change(func(s *state) error { s.Resync, s.TipToken = err.Error(), ""; return nil }); cerr != nil {
				return cerr
			}
			err = r.delta(ctx, a, r.snapshot(), false, d != nil)
		}
		if err != nil {
			return err
		}
		if quiesce {
			p.lastApp = began
		}
	}
	if d != nil {
		st = r.snapshot()
		d.done <- drainResult{ref: st.Tip, at: r.tipAt}
	}
	return nil
}
