package capture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/retry"
)

// shipping is the queue between the cutter and the store. An entry leaves it
// when it is committed, or when its generation is dead.
type shipping struct {
	mu     sync.Mutex // held while an entry is on its way
	qmu    sync.Mutex
	queue  []*spool.Entry
	cancel context.CancelFunc // of the attempt under way
}

// shipAll sends what is in the queue in order for as long as ctx lives. It returns only crashes.
func (r *Replicator) shipAll(ctx context.Context) error {
	if err := r.step("ship.begun"); err != nil {
		return err
	}
	if st := r.snapshot(); st.Ship.Class() != retry.Healthy && r.head() != nil {
		r.setTrouble(errBefore, retry.Decision{Class: st.Ship.Class(), Attempt: st.Ship.Attempt(), At: st.Ship.Next()})
	}
	for ctx.Err() == nil {
		e := r.head()
		if e == nil {
			select {
			case <-ctx.Done():
			case <-r.ship:
			}
			continue
		}
		asked := false
		select {
		case <-r.reship:
			asked = true
		default:
		}
		if st := r.snapshot(); st.Ship.Class() != retry.Healthy && asked {
			r.try(r.change(func(s *state) error { s.Ship.RetryNow(time.Now()); return nil }))
		} else if st.Ship.Class() != retry.Healthy {
			if !r.shipWait(ctx) {
				continue
			}
		}
		err := r.shipOne(ctx, e)
		switch {
		case err == nil:
			continue
		case errors.Is(err, errCrash):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errDropped):
			continue
		}
	}
	return nil
}

// notSent records that an entry could not be sent, unless its generation is
// dead. The caller holds shipping.mu, so a takeover clears what is recorded here.
func (r *Replicator) notSent(ctx context.Context, e *spool.Entry, err error) {
	var next retry.Decision
	now := time.Now()
	if serr := r.change(func(s *state) error { next = s.Ship.Failed(now, err, rand.Float64()); return nil }); serr != nil {
		next = retry.Decision{Class: retry.Classify(err), Attempt: 1, At: now.Add(time.Minute)}
		sleep(ctx, time.Minute)
	}
	r.cfg.Log.Warn("a cut can't be committed", "n", e.Ref.N, "err", err, "hint", dr.HintOf(err), "failures", next.Attempt)
	r.setTrouble(err, next)
}

// errBefore stands for an error of an earlier process, of which only the schedule is known.
var errBefore error = dr.Errorf(dr.KindUnavailable, "capture.ship", "cuts could not be sent before the agent was restarted")

// shipWait waits until the schedule allows another attempt; false if something happened that is worth a look first.
func (r *Replicator) shipWait(ctx context.Context) bool {
	st := r.snapshot()
	wait, ok := st.Ship.Wait(time.Now())
	if !ok {
		wait = idle
	}
	if wait == 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ok
	case <-r.reship:
		r.try(r.change(func(s *state) error { s.Ship.RetryNow(time.Now()); return nil }))
		return false
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// errDropped ends the attempt of an entry whose generation is dead.
var errDropped = errors.New("the entry belongs to a dead generation")

func (r *Replicator) head() *spool.Entry {
	r.shipping.qmu.Lock()
	defer r.shipping.qmu.Unlock()
	if len(r.shipping.queue) == 0 {
		return nil
	}
	return r.shipping.queue[0]
}

func (r *Replicator) enqueue(e *spool.Entry) {
	r.shipping.qmu.Lock()
	r.shipping.queue = append(r.shipping.queue, e)
	r.shipping.qmu.Unlock()
	select {
	case r.ship <- struct{}{}:
	default:
	}
}

// dropSpool empties the spool: what is in it belongs to a dead generation.
func (r *Replicator) dropSpool(ctx context.Context) error {
	r.shipping.qmu.Lock()
	queue := r.shipping.queue
	r.shipping.queue = nil
	if r.shipping.cancel != nil {
		r.shipping.cancel()
	}
	r.shipping.qmu.Unlock()
	r.shipping.mu.Lock() // the attempt has ended
	defer r.shipping.mu.Unlock()
	for _, e := range queue {
		if err := r.spool.Remove(e); err != nil {
			return err
		}
	}
	r.setTrouble(nil, retry.Decision{})
	select {
	case r.reship <- struct{}{}:
	default:
	}
	return ctx.Err()
}

// shipOne commits one entry: the data key, the parts, then the cut, whose
// creation is the commit.
func (r *Replicator) shipOne(ctx context.Context, e *spool.Entry) error {
	r.shipping.mu.Lock()
	defer r.shipping.mu.Unlock()
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.shipping.qmu.Lock()
	dropped := len(r.shipping.queue) == 0 || r.shipping.queue[0] != e
	r.shipping.cancel = cancel
	r.shipping.qmu.Unlock()
	if dropped {
		return errDropped
	}
	began := time.Now()
	err := r.sendEntry(actx, e)
	switch {
	case err == nil:
		err = r.committed(ctx, e, time.Since(began))
	case r.head() != e || actx.Err() != nil && ctx.Err() == nil:
		return errDropped
	}
	if err != nil && !errors.Is(err, errCrash) && ctx.Err() == nil {
		r.notSent(ctx, e, err)
	}
	return err
}

func (r *Replicator) sendEntry(ctx context.Context, e *spool.Entry) error {
	a, _ := r.assignment()
	release, err := r.acquire(ctx, a, transferTurn, false)
	if err != nil {
		return err
	}
	defer release()
	if err := r.sendKey(ctx, e.Epoch); err != nil {
		return err
	}
	if err := r.step("ship.key"); err != nil {
		return err
	}
	eg, gctx := errgroup.WithContext(ctx)
	eg.SetLimit(3)
	last := len(e.Objects) - 1
	for _, o := range e.Objects[:last] {
		eg.Go(func() error {
			if err := r.send(gctx, e, o); err != nil {
				return err
			}
			return r.step("ship.part")
		})
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	if err := r.step("ship.cut"); err != nil {
		return err
	}
	if err := r.send(ctx, e, e.Objects[last]); err != nil {
		return err
	}
	return r.step("ship.put")
}

func (r *Replicator) send(ctx context.Context, e *spool.Entry, o spool.Object) error {
	f, err := e.Open(o)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.cfg.Sink.Put(ctx, o.Name, f, o.Size, o.SHA256)
}

// committed records that the entry's cut is in the store.
func (r *Replicator) committed(ctx context.Context, e *spool.Entry, busy time.Duration) error {
	p, err := tipOf(e)
	if err != nil {
		return err
	}
	var a Assignment
	err = r.change(func(s *state) error {
		s.Committed = p
		if !e.Seed {
			s.Point, s.CommittedTime = e.Ref, e.Time
		}
		s.Ship.Succeeded()
		a = r.want
		return nil
	})
	if err != nil {
		return err
	}
	r.shipping.qmu.Lock()
	if len(r.shipping.queue) > 0 && r.shipping.queue[0] == e {
		r.shipping.queue = r.shipping.queue[1:]
	}
	last := len(r.shipping.queue) == 0
	r.shipping.qmu.Unlock()
	if !e.Seed {
		r.pointAt.Store(e.Time.UnixNano())
	}
	if err := r.step("ship.saved"); err != nil {
		return err
	}
	if r.cfg.Committed != nil {
		r.cfg.Committed(e.Ref)
	}
	// Tokens in between are not needed: both that are kept record everything since.
	// A failure leaves a token too many, which the next commit removes.
	r.forget(ctx, a.VM, []string{p.Token})
	if err := r.step("ship.forgot"); err != nil {
		return err
	}
	c := Cycle{Ref: e.Ref, Time: e.Time, Dirty: e.Dirty, Shipped: e.Bytes(), Took: time.Since(e.Time), Cut: time.Duration(e.CutNS), Resync: e.Resync}
	if err := r.spool.Remove(e); err != nil {
		return err
	}
	if e.Epoch > 0 {
		os.Remove(r.path(wrapName(e.Epoch - 1))) // nothing needs it any more
	}
	r.setTrouble(nil, retry.Decision{})
	r.sample(0, e.Dirty, busy)
	r.cycleDone(a, e, last)
	r.set(func(s *Status) {
		if !e.Seed {
			s.Committed, s.LastCut = e.Ref, e.Time
		}
		s.History = append(s.History, c)
		if n := len(s.History); n > 64 {
			s.History = append([]Cycle(nil), s.History[n-64:]...)
		}
	})
	if last { // who waits for an empty spool, or for room in it
		r.Kick()
	}
	return r.step("ship.removed")
}

// forget removes tokens that no cut will need. It shares the VM with the
// cutter: the adapter ends stale cuts in Forget, so it runs only between cuts.
func (r *Replicator) forget(ctx context.Context, vm dr.VMID, keep []string) {
	r.forgetDue.Store(true)
	if !r.cutting.TryLock() {
		return // a cut is open; who has opened it does this after it
	}
	defer r.cutting.Unlock()
	r.forgetDue.Store(false)
	st := r.snapshot()
	for _, t := range []string{st.Tip.Token, st.Committed.Token} {
		if t != "" {
			keep = append(keep, t)
		}
	}
	if st.Fill != nil && st.Fill.Token != "" {
		keep = append(keep, st.Fill.Token)
	}
	if err := r.cfg.Source.Forget(ctx, vm, keep); err != nil {
		r.cfg.Log.Warn("old tracking tokens stay for now", "err", err)
	}
}

// sendKey stores the sealed data key of an epoch, once per process and epoch.
// Sealing is random, so the sealed bytes were kept when the key was made: a lost
// response is answered by sending the same bytes again.
func (r *Replicator) sendKey(ctx context.Context, epoch uint32) error {
	r.mu.Lock()
	done := r.sealed[epoch]
	r.mu.Unlock()
	if done {
		return nil
	}
	wrap, err := os.ReadFile(r.path(wrapName(epoch)))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "capture.ship", "read sealed data key: %w", err)
	}
	if err := r.cfg.Sink.Put(ctx, cut.KeyObject(r.cfg.Machine, epoch), readerAt(wrap), int64(len(wrap)), sum256(wrap)); err != nil {
		return err
	}
	r.mu.Lock()
	r.sealed[epoch] = true
	r.mu.Unlock()
	return nil
}

func readerAt(b []byte) io.ReaderAt { return bytes.NewReader(b) }
func sum256(b []byte) [32]byte      { return sha256.Sum256(b) }
