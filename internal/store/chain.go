package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// CutName names a cut that is on a machine's live chain.
type CutName struct {
	Gen  dr.Generation
	N    uint64
	Size int64 // bytes of the cut object
}

// CutInfo is a cut as read from its tail.
type CutInfo struct {
	CutName
	Ref    cut.Ref
	Commit *cut.Commit
}

// Point is a recovery point of the store.
func (c CutInfo) Point(m dr.MachineID) dr.RecoveryPoint {
	return dr.RecoveryPoint{
		Machine: m, Gen: c.Gen, N: c.N, Time: c.Commit.Time, Consistency: c.Commit.Consistency, Resync: c.Commit.Resync,
		DirtyBytes: c.Commit.Stats.DirtyBytes, DataBytes: c.Commit.Stats.DataBytes, StoredBytes: c.Size + c.Commit.Stats.StoredBytes,
	}
}

// Refused says why the cuts from one on are no recovery points.
type Refused struct {
	CutName
	Err error // names the object
}

// Chain is what a machine's objects amount to.
type Chain struct {
	Points  []CutInfo // valid recovery points, oldest first
	Refused []Refused // cuts that are on the chain and do not verify, or build on one that does not
	Dead    []CutName // written by a fenced generation after it had been taken over
}

// Last returns the newest valid point, or false.
func (c *Chain) Last() (CutInfo, bool) {
	if len(c.Points) == 0 {
		return CutInfo{}, false
	}
	return c.Points[len(c.Points)-1], true
}

// Generations reads a machine's generation objects, ascending. Where one is
// damaged, its base is taken from the generation's own first cut, which repeats
// it; a damaged generation without cuts is left out, because nothing was ever
// committed in it.
func (s *Store) Generations(ctx context.Context, m dr.MachineID) ([]cut.GenInfo, error) {
	var names []cut.ObjectName
	err := s.cfg.Bucket.List(ctx, cut.GensPrefix(m), func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassGeneration {
			names = append(names, o)
		}
		return nil
	})
	if err != nil {
		return nil, storeError("store.Generations", cut.GensPrefix(m), err)
	}
	gens := make([]cut.GenInfo, 0, len(names))
	for _, name := range names {
		raw, err := s.readSmall(ctx, name.Key())
		var g cut.GenInfo
		if err == nil {
			g, err = cut.ParseGenInfo(name, raw)
		}
		if err != nil {
			if !isDamage(err) {
				return nil, err
			}
			var ok bool
			if g, ok, err = s.inferGeneration(ctx, m, name.Gen); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		gens = append(gens, g)
	}
	slices.SortFunc(gens, func(a, b cut.GenInfo) int { return cmp.Compare(a.Gen, b.Gen) })
	return gens, nil
}

// inferGeneration rebuilds what a damaged generation object said from the
// first cut of the generation.
func (s *Store) inferGeneration(ctx context.Context, m dr.MachineID, gen dr.Generation) (cut.GenInfo, bool, error) {
	var first *CutName
	prefix := cut.CutPrefix(m, gen)
	err := s.cfg.Bucket.List(ctx, prefix, func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassCut {
			first = &CutName{o.Gen, o.N, i.Size}
			return errStop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return cut.GenInfo{}, false, storeError("store.Generations", prefix, err)
	}
	if first == nil {
		return cut.GenInfo{}, false, nil
	}
	c, err := s.openCut(ctx, m, *first)
	if err != nil {
		return cut.GenInfo{}, false, err
	}
	return cut.GenInfo{Machine: m, Gen: gen, Base: c.info.Commit.Prev, Reason: "taken from the first cut: the generation object is damaged", Time: c.info.Commit.Time}, true, nil
}

// Names lists the cuts that the generation objects put on the live chain, in
// order, and the dead ones. Nothing is opened and no hash is checked.
//
// The highest generation is live; an older one is live up to the Base of the
// generation that continued it, and dead beyond.
func (s *Store) Names(ctx context.Context, m dr.MachineID) (live, dead []CutName, err error) {
	gens, err := s.Generations(ctx, m)
	if err != nil || len(gens) == 0 {
		return nil, nil, err
	}
	limit := map[dr.Generation]uint64{} // generation → highest live N
	g := gens[len(gens)-1]
	limit[g.Gen] = ^uint64(0)
	byGen := map[dr.Generation]cut.GenInfo{}
	for _, x := range gens {
		byGen[x.Gen] = x
	}
	for !g.Base.IsZero() {
		next, ok := byGen[g.Base.Gen]
		if !ok || next.Gen >= g.Gen {
			return nil, nil, dr.New(dr.KindCorrupt, dr.CodeObjectMissing, "store.Names", "object %s is missing: generation %d builds on it",
				cut.GenObject(m, g.Base.Gen), g.Gen)
		}
		limit[next.Gen] = g.Base.N
		g = next
	}
	for _, x := range gens {
		high, onChain := limit[x.Gen]
		err := s.cfg.Bucket.List(ctx, cut.CutPrefix(m, x.Gen), func(i objstore.Info) error {
			o, err := cut.ParseObject(i.Key)
			if err != nil || o.Class != cut.ClassCut {
				return nil
			}
			name := CutName{Gen: o.Gen, N: o.N, Size: i.Size}
			if onChain && o.N <= high && (x.Base.IsZero() || o.N > x.Base.N) {
				live = append(live, name)
			} else {
				dead = append(dead, name)
			}
			return nil
		})
		if err != nil {
			return nil, nil, storeError("store.Names", cut.CutPrefix(m, x.Gen), err)
		}
	}
	sort.Slice(live, func(i, j int) bool { return live[i].N < live[j].N })
	return live, dead, nil
}

// ReadCut opens one cut's tail.
func (s *Store) ReadCut(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) (CutInfo, error) {
	key := cut.CutObject(m, gen, n)
	info, err := s.cfg.Bucket.Head(ctx, key)
	if errors.Is(err, objstore.ErrNotExist) {
		return CutInfo{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.ReadCut", "there is no object %s", key)
	}
	if err != nil {
		return CutInfo{}, storeError("store.ReadCut", key, err)
	}
	seg, err := s.openCut(ctx, m, CutName{gen, n, info.Size})
	if err != nil {
		return CutInfo{}, err
	}
	return seg.info, nil
}

type cutSegment struct {
	info CutInfo
	seg  *cut.Segment
}

func (s *Store) openCut(ctx context.Context, m dr.MachineID, c CutName) (*cutSegment, error) {
	name := cut.CutName(m, c.Gen, c.N)
	seg, err := cut.Open(ctx, &source{s.cfg.Bucket, name.Key(), c.Size}, name, s.cfg.Keys)
	if err != nil {
		return nil, err
	}
	commit := seg.Commit()
	return &cutSegment{info: CutInfo{CutName: c, Ref: commit.Ref(seg.ChainHash()), Commit: commit}, seg: seg}, nil
}

// Chain lists a machine's recovery points straight from the objects. It fails
// only if the store could not be asked or the private key is wrong; damage is
// in the result.
func (s *Store) Chain(ctx context.Context, m dr.MachineID) (*Chain, error) {
	live, dead, err := s.Names(ctx, m)
	if err != nil {
		return nil, err
	}
	infos := make([]CutInfo, len(live))
	errs := make([]error, len(live))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(s.cfg.Parallel)
	for i, name := range live {
		eg.Go(func() error {
			seg, err := s.openCut(ectx, m, name)
			if err == nil {
				infos[i] = seg.info
				return nil
			}
			if !isDamage(err) {
				return err
			}
			errs[i] = err
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	chain := &Chain{Dead: dead}
	var prev *CutInfo
	var broken error
	for i, name := range live {
		err := errs[i]
		if err == nil {
			err = linkError(m, prev, &infos[i])
			if err == nil && broken != nil && !infos[i].Commit.Base {
				err = broken
			}
		}
		if err != nil {
			chain.Refused = append(chain.Refused, Refused{name, err})
			broken, prev = err, nil
			continue
		}
		broken = nil
		prev = &infos[i]
		chain.Points = append(chain.Points, infos[i])
	}
	return chain, nil
}

// isDamage tells a refusal of bytes from a question that could not be asked.
func isDamage(err error) bool {
	switch dr.KindOf(err) {
	case dr.KindCorrupt, dr.KindUnsupported:
		return true
	}
	return false
}

// linkError says why c may not follow prev, or nil. A base needs nothing
// before it; after damage prev is nil and only a base can start again.
func linkError(m dr.MachineID, prev, c *CutInfo) error {
	switch {
	case prev == nil && c.Commit.Base, prev != nil && c.Commit.Prev == prev.Ref:
		return nil
	case prev == nil && c.Commit.Prev.IsZero():
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Chain", "object %s starts a chain and is not a base", cut.CutObject(m, c.Gen, c.N))
	case prev == nil || c.Commit.Prev.N != prev.N || c.Commit.Prev.Gen != prev.Gen:
		return dr.New(dr.KindCorrupt, dr.CodeObjectMissing, "store.Chain", "object %s is missing or damaged: object %s builds on it",
			cut.CutObject(m, c.Commit.Prev.Gen, c.Commit.Prev.N), cut.CutObject(m, c.Gen, c.N))
	}
	return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Chain", "object %s is not the one that object %s builds on: chain hash %s, want %s",
		cut.CutObject(m, prev.Gen, prev.N), cut.CutObject(m, c.Gen, c.N), prev.Ref.Hash, c.Commit.Prev.Hash)
}

// pointCuts opens the cuts that the point needs, oldest (a base) first.
func (s *Store) pointCuts(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) ([]*cutSegment, error) {
	live, _, err := s.Names(ctx, m)
	if err != nil {
		return nil, err
	}
	end := slices.IndexFunc(live, func(c CutName) bool { return c.Gen == gen && c.N == n })
	if end < 0 {
		return nil, dr.New(dr.KindNotFound, dr.CodeNoRecoveryPoint, "store.OpenPoint", "machine %s has no recovery point %s", m, dr.PointName(gen, n))
	}
	cuts := make([]*cutSegment, end+1)
	for hi := end + 1; hi > 0; {
		lo := max(0, hi-4*s.cfg.Parallel)
		eg, ectx := errgroup.WithContext(ctx)
		eg.SetLimit(s.cfg.Parallel)
		for i := lo; i < hi; i++ {
			eg.Go(func() (err error) {
				cuts[i], err = s.openCut(ectx, m, live[i])
				return err
			})
		}
		// Damage before the newest base does not matter, so the walk goes on to
		// find out which cut failed and whether it is needed.
		err := eg.Wait()
		if err != nil && !isDamage(err) {
			return nil, err
		}
		for i := hi - 1; i >= lo; i-- {
			if cuts[i] == nil {
				if cuts[i], err = s.openCut(ctx, m, live[i]); err != nil {
					return nil, refusePoint(gen, n, err)
				}
			}
			if i < end {
				if err := linkError(m, &cuts[i].info, &cuts[i+1].info); err != nil {
					return nil, refusePoint(gen, n, err)
				}
			}
			if cuts[i].info.Commit.Base {
				return cuts[i : end+1], nil
			}
		}
		hi = lo
	}
	return nil, refusePoint(gen, n, linkError(m, nil, &cuts[0].info))
}

func refusePoint(gen dr.Generation, n uint64, err error) error {
	if !isDamage(err) {
		return err
	}
	return dr.New(dr.KindCorrupt, dr.CodePointRefused, "store.OpenPoint", "recovery point %s is refused: %w", dr.PointName(gen, n), err)
}
