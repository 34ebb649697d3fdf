package store

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// History is what the names of a machine's objects say about its history.
// Nothing is opened and no hash is checked.
type History struct {
	Path    []CutName // what a reader uses, oldest first: cuts, and runs in place of expired cuts
	Expired []CutName // cuts and runs that a run of the path stands for, or that nothing leads to
	Dead    []CutName // written by a fenced generation after it had been taken over
	Maps    []CutName // checkpoints on the live chain, ascending
}

// Names lists a machine's history by name.
//
// The highest generation is live; an older one is live up to the Base of the
// generation that continued it, and dead beyond. From the newest position down,
// at each position the run that ends there is preferred, the one that begins
// lowest first, else the cut.
func (s *Store) Names(ctx context.Context, m dr.MachineID) (*History, error) {
	n, err := s.listNames(ctx, m)
	if err != nil {
		return nil, err
	}
	return n.history(nil), nil
}

// names holds the elements of a machine by class.
type names struct {
	live, dead, maps []CutName // live: cuts and runs
}

func (s *Store) listNames(ctx context.Context, m dr.MachineID) (*names, error) {
	n := &names{}
	gens, err := s.Generations(ctx, m)
	if err != nil || len(gens) == 0 {
		return n, err
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
			return nil, dr.New(dr.KindCorrupt, dr.CodeObjectMissing, "store.Names", "object %s is missing: generation %d builds on it",
				cut.GenObject(m, g.Base.Gen), g.Gen)
		}
		limit[next.Gen] = g.Base.N
		g = next
	}
	for _, x := range gens {
		high, onChain := limit[x.Gen]
		for _, prefix := range []string{cut.CutPrefix(m, x.Gen), cut.RunPrefix(m, x.Gen), cut.MapPrefix(m, x.Gen)} {
			err := s.cfg.Bucket.List(ctx, prefix, func(i objstore.Info) error {
				o, err := cut.ParseObject(i.Key)
				if err != nil {
					return nil // not ours
				}
				name := CutName{Gen: o.Gen, N: o.N, Size: i.Size, From: o.From, UID: o.UID}
				live := onChain && o.N <= high && (x.Base.IsZero() || o.N > x.Base.N)
				switch {
				case o.Class == cut.ClassMap && live:
					n.maps = append(n.maps, name)
				case o.Class == cut.ClassMap:
				case live:
					n.live = append(n.live, name)
				default:
					n.dead = append(n.dead, name)
				}
				return nil
			})
			if err != nil {
				return nil, storeError("store.Names", prefix, err)
			}
		}
	}
	slices.SortFunc(n.maps, func(a, b CutName) int { return cmp.Or(cmp.Compare(a.N, b.N), strings.Compare(a.UID, b.UID)) })
	// Ascending by position; at one position the preferred element last.
	slices.SortFunc(n.live, func(a, b CutName) int {
		return cmp.Or(cmp.Compare(a.N, b.N), cmp.Compare(btoi(a.IsRun()), btoi(b.IsRun())), cmp.Compare(b.From, a.From), strings.Compare(b.UID, a.UID))
	})
	return n, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// history walks down from the newest position, leaving out the elements of skip.
func (n *names) history(skip map[CutName]bool) *History {
	h := &History{Dead: n.dead, Maps: n.maps}
	next := ^uint64(0) // the highest position that may come next
	exact := false     // a run said where it goes on from
	for i := len(n.live) - 1; i >= 0; i-- {
		c := n.live[i]
		switch {
		case skip[c]:
			continue
		case c.N > next || exact && c.N < next:
			h.Expired = append(h.Expired, c)
			continue
		}
		h.Path = append(h.Path, c)
		if exact = c.IsRun(); exact {
			next = c.From
		} else {
			next = c.N - 1
		}
		if c.N == 0 || c.IsRun() && c.From == 0 {
			for _, rest := range n.live[:i] {
				if !skip[rest] {
					h.Expired = append(h.Expired, rest)
				}
			}
			break
		}
	}
	slices.Reverse(h.Path)
	return h
}

// upTo cuts the path after the position, or returns false.
func (h *History) upTo(gen dr.Generation, n uint64) ([]CutName, bool) {
	i := slices.IndexFunc(h.Path, func(c CutName) bool { return c.Gen == gen && c.N == n })
	if i < 0 {
		return nil, false
	}
	return h.Path[:i+1], true
}

// Chain lists a machine's recovery points straight from the objects. It fails
// only if the store could not be asked or the private key is wrong; damage is
// in the result.
func (s *Store) Chain(ctx context.Context, m dr.MachineID) (*Chain, error) {
	n, err := s.listNames(ctx, m)
	if err != nil {
		return nil, err
	}
	opened := map[CutName]*opened{}
	best, bad, err := s.chain(ctx, m, n.history(nil), opened)
	if err != nil {
		return nil, err
	}
	// A damaged run may have an alternative: another run, or the cuts that it
	// stands for, if they are still there.
	skip := map[CutName]bool{}
	for len(bad) > 0 {
		for _, run := range bad {
			skip[run] = true
		}
		var other *Chain
		if other, bad, err = s.chain(ctx, m, n.history(skip), opened); err != nil {
			return nil, err
		}
		if len(other.Refused) == 0 || len(other.Points) > len(best.Points) {
			best = other
		}
	}
	return best, nil
}

// opened is the outcome of opening an element, kept for a second walk.
type opened struct {
	seg *cutSegment
	err error
}

// chain opens and links the elements of a path. bad lists the runs that do not verify.
func (s *Store) chain(ctx context.Context, m dr.MachineID, h *History, have map[CutName]*opened) (_ *Chain, bad []CutName, _ error) {
	got := make([]*opened, len(h.Path))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(s.cfg.Parallel)
	for i, name := range h.Path {
		if got[i] = have[name]; got[i] != nil {
			continue
		}
		eg.Go(func() error {
			seg, err := s.openCut(ectx, m, name)
			if err != nil && !isDamage(err) {
				return err
			}
			if seg != nil {
				seg.seg = nil // only what it says is needed here
			}
			got[i] = &opened{seg, err}
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, nil, err
	}
	chain := &Chain{Dead: h.Dead, Expired: h.Expired, Maps: h.Maps}
	var prev *CutInfo
	var broken error
	for i, name := range h.Path {
		have[name] = got[i]
		err := got[i].err
		if err == nil {
			info := &got[i].seg.info
			err = linkError(m, prev, info)
			if err == nil && broken != nil && !info.Commit.Base {
				err = broken
			}
		}
		if err != nil {
			if name.IsRun() {
				bad = append(bad, name)
			}
			chain.Refused = append(chain.Refused, Refused{name, err})
			broken, prev = err, nil
			continue
		}
		broken = nil
		prev = &got[i].seg.info
		chain.Path = append(chain.Path, *prev)
		if !prev.Commit.Seed {
			chain.Points = append(chain.Points, *prev)
		}
	}
	return chain, bad, nil
}

// pointCuts opens the elements that the position needs, oldest (complete by
// itself) first. Checkpoints are used if useMaps is set.
func (s *Store) pointCuts(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64, useMaps bool) ([]*cutSegment, error) {
	all, err := s.listNames(ctx, m)
	if err != nil {
		return nil, err
	}
	skip := map[CutName]bool{}
	var first error
	for {
		h := all.history(skip)
		path, ok := h.upTo(gen, n)
		if !ok {
			// A run stands for it. If that is damaged the cut counts again, as it does
			// for Chain.
			if run, err := s.damagedRun(ctx, m, h, n); err != nil {
				return nil, err
			} else if run != nil {
				skip[*run] = true
				continue
			}
			if first != nil {
				return nil, first
			}
			return nil, dr.New(dr.KindNotFound, dr.CodeNoRecoveryPoint, "store.OpenPoint", "machine %s has no recovery point %s", m, dr.PointName(gen, n))
		}
		if !useMaps {
			h.Maps = nil
		}
		cuts, bad, err := s.openPath(ctx, m, path, h.Maps)
		if err == nil || !isDamage(err) {
			return cuts, err
		}
		if first == nil {
			first = refusePoint(gen, n, err)
		}
		if bad == nil {
			return nil, first
		}
		skip[*bad] = true
	}
}

// damagedRun returns the run of the path that a position lies inside of, if that
// run does not verify.
func (s *Store) damagedRun(ctx context.Context, m dr.MachineID, h *History, n uint64) (*CutName, error) {
	for _, c := range h.Path {
		if !c.IsRun() || n <= c.From && c.From > 0 || n >= c.N {
			continue
		}
		if _, err := s.openCut(ctx, m, c); err == nil || !isDamage(err) {
			return nil, err
		}
		return &c, nil
	}
	return nil, nil
}

// openPath opens a path from its end down to the nearest element that is
// complete by itself: a base, or a checkpoint. bad is the run that could be
// left out, if one is to blame.
func (s *Store) openPath(ctx context.Context, m dr.MachineID, path, maps []CutName) (_ []*cutSegment, bad *CutName, _ error) {
	blame := func(c CutName, err error) ([]*cutSegment, *CutName, error) {
		if c.IsRun() && isDamage(err) {
			return nil, &c, err
		}
		return nil, nil, err
	}
	end := len(path) - 1
	cuts := make([]*cutSegment, len(path))
	for hi := len(path); hi > 0; {
		lo := max(0, hi-4*s.cfg.Parallel)
		for i := hi - 1; i >= lo; i-- {
			if at(maps, path[i]) >= 0 {
				lo = i // a checkpoint saves what is below it
			}
		}
		eg, ectx := errgroup.WithContext(ctx)
		eg.SetLimit(s.cfg.Parallel)
		for i := lo; i < hi; i++ {
			eg.Go(func() (err error) {
				cuts[i], err = s.openCut(ectx, m, path[i])
				return err
			})
		}
		// Damage before the newest base does not matter, so the walk goes on to
		// find out which element failed and whether it is needed.
		err := eg.Wait()
		if err != nil && !isDamage(err) {
			return nil, nil, err
		}
		for i := hi - 1; i >= lo; i-- {
			if cuts[i] == nil {
				if cuts[i], err = s.openCut(ctx, m, path[i]); err != nil {
					return blame(path[i], err)
				}
			}
			if i < end {
				if err := linkError(m, &cuts[i].info, &cuts[i+1].info); err != nil {
					return blame(path[i], err)
				}
			}
			if cuts[i].info.Commit.Base {
				return cuts[i:], nil, nil
			}
			if seg := s.checkpoint(ctx, m, cuts[i].info, maps); seg != nil {
				cuts[i].seg = seg
				return cuts[i:], nil, nil
			}
		}
		hi = lo
	}
	c := cuts[0].info
	return blame(c.CutName, linkError(m, nil, &c))
}

func at(maps []CutName, c CutName) int {
	return slices.IndexFunc(maps, func(x CutName) bool { return x.Gen == c.Gen && x.N == c.N })
}

// checkpoint opens a map that says what everything up to the element amounts
// to. It is a shortcut only: one that is missing, damaged or of another history
// is as if it were not there.
func (s *Store) checkpoint(ctx context.Context, m dr.MachineID, c CutInfo, maps []CutName) *cut.Segment {
	for _, x := range maps {
		if x.Gen != c.Gen || x.N != c.N {
			continue
		}
		name := cut.ObjectName{Class: cut.ClassMap, Machine: m, Gen: x.Gen, N: x.N, UID: x.UID}
		seg, err := cut.Open(ctx, &source{s.cfg.Bucket, name.Key(), x.Size}, name, s.cfg.Keys)
		if err == nil && seg.Ref() == c.Ref {
			return seg
		}
	}
	return nil
}
