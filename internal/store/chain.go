package store

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// CutName names an element of a machine's history: a cut, or a run that stands
// for several.
type CutName struct {
	Gen  dr.Generation
	N    uint64 // the position that it reaches
	Size int64  // bytes of the object
	From uint64 // of a run: the position that it goes on from; 0 = it is complete
	UID  string // of a run; empty = a cut
}

// IsRun reports whether the element stands for more than one cut.
func (c CutName) IsRun() bool { return c.UID != "" }

// Object is the name of the element's object.
func (c CutName) Object(m dr.MachineID) cut.ObjectName {
	if c.IsRun() {
		return cut.ObjectName{Class: cut.ClassRun, Machine: m, Gen: c.Gen, N: c.N, From: c.From, UID: c.UID}
	}
	return cut.CutName(m, c.Gen, c.N)
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
	Path    []CutInfo // what verifies of the history, oldest first: the points and a seed, if there is one
	Points  []CutInfo // valid recovery points, oldest first
	Refused []Refused // cuts that are on the chain and do not verify, or build on one that does not
	Dead    []CutName // written by a fenced generation after it had been taken over
	Expired []CutName // cuts and runs that a run stands for
	Maps    []CutName // checkpoints, ascending
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
			first = &CutName{Gen: o.Gen, N: o.N, Size: i.Size}
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
	return s.ReadElement(ctx, m, CutName{Gen: gen, N: n, Size: info.Size})
}

// ReadElement opens the tail of a cut or run whose name and size are known.
func (s *Store) ReadElement(ctx context.Context, m dr.MachineID, c CutName) (CutInfo, error) {
	seg, err := s.openCut(ctx, m, c)
	if err != nil {
		return CutInfo{}, err
	}
	return seg.info, nil
}

// cutSegment is an opened element of a history. seg says what it amounts to: the
// element itself, or a checkpoint that says so for everything up to it.
type cutSegment struct {
	info CutInfo
	seg  *cut.Segment
}

func (s *Store) openCut(ctx context.Context, m dr.MachineID, c CutName) (*cutSegment, error) {
	name := c.Object(m)
	seg, err := cut.Open(ctx, &source{s.cfg.Bucket, name.Key(), c.Size}, name, s.cfg.Keys)
	if err != nil {
		return nil, err
	}
	return &cutSegment{info: CutInfo{CutName: c, Ref: seg.Ref(), Commit: seg.Commit()}, seg: seg}, nil
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
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Chain", "object %s starts a chain and is not a base", c.Object(m))
	case prev == nil || c.Commit.Prev.N != prev.N || c.Commit.Prev.Gen != prev.Gen:
		return dr.New(dr.KindCorrupt, dr.CodeObjectMissing, "store.Chain", "object %s is missing or damaged: object %s builds on it",
			cut.CutObject(m, c.Commit.Prev.Gen, c.Commit.Prev.N), c.Object(m))
	}
	return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Chain", "object %s is not the one that object %s builds on: chain hash %s, want %s",
		prev.Object(m), c.Object(m), prev.Ref.Hash, c.Commit.Prev.Hash)
}

func refusePoint(gen dr.Generation, n uint64, err error) error {
	if !isDamage(err) {
		return err
	}
	return dr.New(dr.KindCorrupt, dr.CodePointRefused, "store.OpenPoint", "recovery point %s is refused: %w", dr.PointName(gen, n), err)
}
