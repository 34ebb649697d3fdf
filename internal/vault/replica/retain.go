package replica

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// DocRetain is the kind of an item's document of the points whose objects are
// still to be retained by the store. It is a durable form.
const DocRetain = "retain"

// toRetain is kept until the store has taken the retention of every object: it is
// written in the transaction that lists a point, so no crash forgets one.
type toRetain struct {
	Spans  []span `json:"spans,omitempty"`  // oldest first
	Done   int    `json:"done,omitempty"`   // objects of the first cut that are retained
	Failed string `json:"failed,omitempty"` // why the last attempt failed
}

// span is cuts of one generation, From and To included.
type span struct {
	Gen  dr.Generation `json:"gen"`
	From uint64        `json:"from"`
	To   uint64        `json:"to"`
}

func (p *toRetain) add(gen dr.Generation, n uint64) {
	if i := len(p.Spans) - 1; i >= 0 && p.Spans[i].Gen == gen && p.Spans[i].To+1 == n {
		p.Spans[i].To = n
		return
	}
	p.Spans = append(p.Spans, span{gen, n, n})
}

// next takes the first cut off.
func (p *toRetain) next() {
	p.Done = 0
	if p.Spans[0].From++; p.Spans[0].From > p.Spans[0].To {
		p.Spans = slices.Delete(p.Spans, 0, 1)
	}
}

const (
	retainParallel = 8
	// retainAtOnce bounds what an agent waits for that announces a cut; the rest,
	// such as the tile images of an initial replication, is the reconciliation's.
	retainAtOnce     = 64
	retainAtOnceTime = 10 * time.Second
	retainPerRound   = 20_000 // objects of one item
	// keyRetainedFor is how long the retention of a key in use is not asked for
	// again: cuts of weeks may need the same key, which has to be kept as they are.
	keyRetainedFor = 24 * time.Hour
)

// retention is the vault's part in retaining new objects, if the store leaves it to the vault.
type retention struct {
	store objstore.NewRetainer // nil = nothing to do
	mu    sync.Mutex
	keys  map[string]time.Time // sealed keys → when their retention was asked for
}

func newRetention(b objstore.Bucket) retention {
	if s, ok := b.(objstore.NewRetainer); ok && s.RetainsNew() {
		return retention{store: s, keys: map[string]time.Time{}}
	}
	return retention{}
}

// owe notes in the transaction that lists a point that its objects are to be retained.
func (r *Replicas) owe(ctx context.Context, tx *sql.Tx, item dr.ItemID, gen dr.Generation, n uint64) error {
	if r.retain.store == nil {
		return nil
	}
	p, err := vaultdb.Doc[toRetain](ctx, tx, item, DocRetain)
	if err != nil {
		return err
	}
	p.add(gen, n)
	return vaultdb.SaveDoc(ctx, tx, item, DocRetain, p, r.st.Now())
}

// retainSoon retains what was just listed, while its writer waits. A failure does
// not concern the point: it is noted, and the reconciliation tries again.
func (r *Replicas) retainSoon(ctx context.Context, item dr.ItemID, m dr.MachineID) {
	if r.retain.store == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, retainAtOnceTime)
	defer cancel()
	_ = r.retainItem(ctx, item, m, retainAtOnce) // noted there
}

// retainAll goes on with what is still to be retained, of all items.
func (r *Replicas) retainAll(ctx context.Context) error {
	if r.retain.store == nil {
		return nil
	}
	all, err := vaultdb.Docs[toRetain](ctx, r.st.Q(), DocRetain)
	if err != nil {
		return state.Outward(err)
	}
	var errs []error
	for id, p := range all {
		if len(p.Spans) == 0 {
			continue
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		it, err := vaultdb.ItemByID(ctx, r.st.Q(), id)
		if dr.KindOf(err) == dr.KindNotFound {
			continue
		}
		if err == nil {
			err = r.retainItem(ctx, id, it.Machine, retainPerRound)
		}
		errs = append(errs, state.Outward(err))
	}
	return errors.Join(errs...)
}

// retainItem retains up to limit objects of an item, oldest first.
func (r *Replicas) retainItem(ctx context.Context, item dr.ItemID, m dr.MachineID, limit int) error {
	for limit > 0 {
		p, err := vaultdb.Doc[toRetain](ctx, r.st.Q(), item, DocRetain)
		if err != nil {
			return state.Outward(err)
		}
		if len(p.Spans) == 0 {
			return nil
		}
		at := p.Spans[0]
		names, err := r.objectsOf(ctx, m, at.Gen, at.From)
		if err != nil {
			return r.notRetained(ctx, item, dr.PointName(at.Gen, at.From), err)
		}
		from := min(p.Done, len(names))
		to := min(len(names), from+limit)
		limit -= max(to-from, 1)
		if err := r.retainObjects(ctx, names[from:to]); err != nil {
			return r.notRetained(ctx, item, dr.PointName(at.Gen, at.From), err)
		}
		if to == len(names) {
			if err := r.retainKeys(ctx, m); err != nil {
				return r.notRetained(ctx, item, dr.PointName(at.Gen, at.From), err)
			}
		}
		if err := r.retained(ctx, item, at, p.Done, to, to == len(names)); err != nil {
			return err
		}
	}
	return nil
}

// objectsOf names the objects that a cut brought: tile images and parts before
// the cut itself. None if there is nothing to retain any more: it was folded, or is damaged.
func (r *Replicas) objectsOf(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) ([]string, error) {
	c, err := r.store.ReadCut(ctx, m, gen, n)
	switch dr.KindOf(err) {
	case dr.KindNotFound, dr.KindCorrupt, dr.KindUnsupported:
		if err != nil {
			r.st.Log.Warn("a listed cut can't be retained", "machine", m, "cut", dr.PointName(gen, n), "err", err)
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(c.Commit.Tiles)+len(c.Commit.Parts)+1)
	for _, t := range c.Commit.Tiles {
		names = append(names, cut.TileObject(m, t.Gen, t.Disk, t.Tile, t.N, t.UID))
	}
	for _, p := range c.Commit.Parts {
		names = append(names, cut.PartObject(m, gen, n, p.Attempt, p.K))
	}
	return append(names, cut.CutObject(m, gen, n)), nil
}

func (r *Replicas) retainObjects(ctx context.Context, names []string) error {
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(retainParallel)
	for _, name := range names {
		if ectx.Err() != nil {
			break
		}
		eg.Go(func() error {
			err := r.retain.store.RetainNew(ectx, name)
			if errors.Is(err, objstore.ErrNotExist) {
				r.st.Log.Warn("an object of a listed cut is missing, and can't be retained", "object", name)
				return nil // the scrub says what that means
			}
			if err != nil {
				return refused("vault.retain", name, err)
			}
			return nil
		})
	}
	return eg.Wait()
}

// retainKeys retains the machine's sealed keys, and extends the newest ones' retention every day.
func (r *Replicas) retainKeys(ctx context.Context, m dr.MachineID) error {
	epochs, err := r.store.Epochs(ctx, m)
	if err != nil {
		return err
	}
	var due []string
	now := r.st.Now()
	r.retain.mu.Lock()
	for i, e := range epochs {
		name := cut.KeyObject(m, e)
		if at, ok := r.retain.keys[name]; !ok || i >= len(epochs)-2 && now.Sub(at) >= keyRetainedFor {
			due = append(due, name)
		}
	}
	r.retain.mu.Unlock()
	if err := r.retainObjects(ctx, due); err != nil {
		return err
	}
	r.retain.mu.Lock()
	defer r.retain.mu.Unlock()
	for _, name := range due {
		r.retain.keys[name] = now
	}
	return nil
}

// retained notes how far an item is, unless another vault was as quick.
func (r *Replicas) retained(ctx context.Context, item dr.ItemID, at span, before, done int, whole bool) error {
	return r.st.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := vaultdb.LockItem(ctx, tx, item); err != nil {
			return err
		}
		p, err := vaultdb.Doc[toRetain](ctx, tx, item, DocRetain)
		if err != nil || len(p.Spans) == 0 || p.Spans[0].Gen != at.Gen || p.Spans[0].From != at.From || p.Done != before {
			return err
		}
		p.Done = done
		if whole {
			p.next()
		}
		if p.Failed != "" && len(p.Spans) == 0 {
			p.Failed = ""
			if err := r.st.Note(ctx, tx, vaultdb.Event{Kind: "retained", Item: item}, "the store retains all new objects again"); err != nil {
				return err
			}
		}
		return vaultdb.SaveDoc(ctx, tx, item, DocRetain, p, r.st.Now())
	})
}

// notRetained tells of a failure, once for each reason, and returns it.
func (r *Replicas) notRetained(ctx context.Context, item dr.ItemID, point string, failed error) error {
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retainAtOnceTime)
	defer cancel()
	why := string(dr.CodeOf(failed))
	if why == "" {
		why = dr.KindOf(failed).String()
	}
	err := r.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, item)
		if err != nil {
			return err
		}
		p, err := vaultdb.Doc[toRetain](ctx, tx, item, DocRetain)
		if err != nil || p.Failed == why {
			return err
		}
		p.Failed = why
		r.st.Log.Warn("the store does not retain the objects of a new point; trying again", "vm", it.VMName, "point", point, "err", failed, "hint", dr.HintOf(failed))
		if err := r.st.Note(ctx, tx, vaultdb.Event{Kind: "notRetained", Item: item}, "%s", state.Clip("the objects of "+point+" are not retained by the store yet, it is tried again: "+failed.Error())); err != nil {
			return err
		}
		return vaultdb.SaveDoc(ctx, tx, item, DocRetain, p, r.st.Now())
	})
	return errors.Join(failed, err)
}
