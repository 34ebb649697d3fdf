package capture

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// shipping is the queue between the cutter and the store. An entry leaves it
// when it is committed, or when its generation is dead.
type shipping struct {
	mu     sync.Mutex // held while an entry is on its way
	qmu    sync.Mutex
	queue  []*entry
	cancel context.CancelFunc // of the attempt under way
}

// shipAll sends entries in order for as long as ctx lives. It returns only crashes.
func (r *Replicator) shipAll(ctx context.Context, entries []*entry) error {
	r.shipping.qmu.Lock()
	r.shipping.queue = append(entries, r.shipping.queue...)
	r.shipping.qmu.Unlock()
	var first time.Time
	failures := 0
	for ctx.Err() == nil {
		e := r.head()
		if e == nil {
			select {
			case <-ctx.Done():
			case <-r.ship:
			}
			continue
		}
		select {
		case <-r.reship: // asked for before this attempt
		default:
		}
		err := r.shipOne(ctx, e)
		switch {
		case err == nil:
			failures = 0
			continue
		case errors.Is(err, errCrash):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errDropped):
			continue
		}
		if failures == 0 {
			first = time.Now()
		}
		failures++
		next := retryAt(first, failures, jitter())
		stop := permanent(err)
		r.cfg.Log.Warn("a cut can't be committed", "n", e.Ref.N, "err", err, "hint", dr.HintOf(err), "failures", failures)
		r.setTrouble(err, next, stop)
		wait := time.Until(next)
		if stop {
			wait = time.Hour
		}
		t := time.NewTimer(max(wait, time.Second))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-r.reship:
			failures = 0
		}
		t.Stop()
	}
	return nil
}

// errDropped ends the attempt of an entry whose generation is dead.
var errDropped = errors.New("the entry belongs to a dead generation")

func (r *Replicator) head() *entry {
	r.shipping.qmu.Lock()
	defer r.shipping.qmu.Unlock()
	if len(r.shipping.queue) == 0 {
		return nil
	}
	return r.shipping.queue[0]
}

func (r *Replicator) enqueue(e *entry) {
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
		if err := r.spool.remove(e); err != nil {
			return err
		}
	}
	r.setTrouble(nil, time.Time{}, false)
	select {
	case r.reship <- struct{}{}:
	default:
	}
	return ctx.Err()
}

// shipOne commits one entry: the data key, the parts, then the cut, whose
// creation is the commit.
func (r *Replicator) shipOne(ctx context.Context, e *entry) error {
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
	if err := r.sendEntry(actx, e); err != nil {
		if actx.Err() != nil && ctx.Err() == nil {
			return errDropped
		}
		return err
	}
	return r.committed(ctx, e)
}

func (r *Replicator) sendEntry(ctx context.Context, e *entry) error {
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

func (r *Replicator) send(ctx context.Context, e *entry, o object) error {
	f, err := os.Open(filepath.Join(e.dir, o.File))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "capture.ship", "open spooled object: %w", err)
	}
	defer f.Close()
	return r.cfg.Sink.Put(ctx, o.Name, f, o.Size, o.SHA256)
}

// committed records that the entry's cut is in the store.
func (r *Replicator) committed(ctx context.Context, e *entry) error {
	var vm dr.VMID
	var keep []string
	err := r.change(func(s *state) error {
		s.Committed, s.CommittedToken, s.CommittedTime = e.Ref, e.Token, e.Time
		vm = r.want.VM
		keep = []string{e.Token}
		if s.TipToken != "" && s.TipToken != e.Token {
			keep = append(keep, s.TipToken)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.shipping.qmu.Lock()
	if len(r.shipping.queue) > 0 && r.shipping.queue[0] == e {
		r.shipping.queue = r.shipping.queue[1:]
	}
	r.shipping.qmu.Unlock()
	if err := r.step("ship.saved"); err != nil {
		return err
	}
	if r.cfg.Committed != nil {
		r.cfg.Committed(e.Ref)
	}
	// Tokens in between are not needed: both that are kept record everything since.
	// A failure leaves a token too many, which the next commit removes.
	r.forget(ctx, vm, keep)
	if err := r.step("ship.forgot"); err != nil {
		return err
	}
	c := Cycle{Ref: e.Ref, Time: e.Time, Dirty: e.Dirty, Shipped: e.bytes(), Took: time.Since(e.Time), Cut: time.Duration(e.CutNS), Resync: e.Resync}
	if err := r.spool.remove(e); err != nil {
		return err
	}
	r.setTrouble(nil, time.Time{}, false)
	r.set(func(s *Status) {
		s.Committed, s.LastCut = e.Ref, e.Time
		s.History = append(s.History, c)
		if n := len(s.History); n > 64 {
			s.History = append([]Cycle(nil), s.History[n-64:]...)
		}
	})
	return r.step("ship.removed")
}

// forget removes tokens that no cut will need. It shares the VM with the
// cutter: the adapter ends stale cuts in Forget, so it runs only between cuts.
func (r *Replicator) forget(ctx context.Context, vm dr.VMID, keep []string) {
	if !r.cutting.TryLock() {
		return // a cut is open; the next commit does it
	}
	defer r.cutting.Unlock()
	st := r.snapshot()
	for _, t := range []string{st.TipToken, st.CommittedToken} {
		if t != "" {
			keep = append(keep, t)
		}
	}
	if st.Initial != nil && st.Initial.Token != "" {
		keep = append(keep, st.Initial.Token)
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
