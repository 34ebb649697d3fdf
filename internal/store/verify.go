package store

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/zeebo/blake3"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// CheckResult says how far Check came.
type CheckResult struct {
	Objects, ObjectsLeft int
	Bytes, BytesLeft     int64
}

// Check reads every object that the point needs, in full, newest first, and
// verifies every byte. It ends early without error when the budget's context
// ends (whole objects only; the rest is counted in the result), and with
// dr.CodePointRefused naming the object at the first damage. Cancelling ctx is an error.
func (v *View) Check(ctx context.Context, budget context.Context, progress func(done, total int64)) (CheckResult, error) {
	needed := v.needed()
	slices.Reverse(needed)
	var total int64
	for _, o := range needed {
		total += o.size
	}
	var mu sync.Mutex
	var r CheckResult
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(2) // verification is bound by the CPU
	for _, o := range needed {
		if budget.Err() != nil || ectx.Err() != nil {
			break
		}
		eg.Go(func() error {
			if budget.Err() != nil {
				return nil
			}
			if err := v.checkObject(ectx, o); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			r.Objects++
			r.Bytes += o.size
			if progress != nil {
				progress(r.Bytes, total)
			}
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return r, refusePoint(v.info.Gen, v.info.N, err)
	}
	r.ObjectsLeft, r.BytesLeft = len(needed)-r.Objects, total-r.Bytes
	return r, ctx.Err()
}

// needed lists the objects that the point's content depends on, oldest first:
// all cuts and parts, and the tile images that are in effect.
func (v *View) needed() []*object {
	inEffect := map[int32]bool{}
	for _, d := range v.disks {
		for _, id := range d.tiles {
			inEffect[id] = true
		}
	}
	var out []*object
	for i, o := range v.objects {
		if o.name.Class != cut.ClassTile || inEffect[int32(i)] {
			out = append(out, o)
		}
	}
	return out
}

// checkObject verifies one object: the digest its referrer knows, and every frame.
func (v *View) checkObject(ctx context.Context, o *object) error {
	return v.store.check(ctx, o)
}

func (s *Store) check(ctx context.Context, o *object) error {
	if !o.hash.IsZero() {
		if err := s.checkHash(ctx, o); err != nil {
			return err
		}
	}
	seg, err := cut.Open(ctx, &source{s.cfg.Bucket, o.key, o.size}, o.name, s.cfg.Keys)
	if err != nil {
		return err
	}
	if err := o.expect(seg); err != nil {
		return err
	}
	return seg.Verify(ctx)
}

func (s *Store) checkHash(ctx context.Context, o *object) error {
	h := blake3.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < o.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), o.size-off)]
		if err := readRange(ctx, s.cfg.Bucket, o.key, p, off); err != nil {
			return err
		}
		h.Write(p)
	}
	if got := cut.Hash(h.Sum(nil)); got != o.hash {
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Check", "object %s has digest %s, want %s", o.key, got, o.hash)
	}
	return nil
}

// Verdict is what Verify says about one recovery point.
type Verdict struct {
	Point dr.RecoveryPoint
	Err   error // nil = every byte verified
}

// Report is the result of Verify.
type Report struct {
	Machine  dr.MachineID
	Verdicts []Verdict // oldest first
	Dead     []CutName
	Expired  []CutName
	Objects  int
	Bytes    int64
}

// OK reports whether every point verified.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.Err != nil })
}

// Verify reads every object of a machine's history once and says for each
// recovery point whether it can be trusted.
func (s *Store) Verify(ctx context.Context, m dr.MachineID, progress func(doneObjects int, bytes int64)) (*Report, error) {
	chain, err := s.Chain(ctx, m)
	if err != nil {
		return nil, err
	}
	report := &Report{Machine: m, Dead: chain.Dead, Expired: chain.Expired}
	verdicts, err := s.checkAll(ctx, m, chain.Path, report, progress)
	if err != nil {
		return nil, err
	}
	type tileID struct {
		disk uint16
		tile uint32
	}
	// What the point that is being looked at builds on: the ranges of all elements
	// since the last complete one, and the newest image of each tile.
	var ranges error
	tiles := map[tileID]error{}
	for _, c := range chain.Path {
		if c.Commit.Base {
			ranges = nil
			clear(tiles)
		}
		for _, t := range c.Commit.Tiles {
			id := tileID{t.Disk, t.Tile}
			delete(tiles, id)
			if err := verdicts[cut.TileName(m, t).Key()]; err != nil {
				tiles[id] = err
			}
		}
		for _, key := range c.References(m) {
			if o, err := cut.ParseObject(key); err == nil && o.Class != cut.ClassTile {
				ranges = errors.Join(ranges, verdicts[key])
			}
		}
		if c.Commit.Seed {
			continue
		}
		bad := ranges
		for _, err := range tiles {
			bad = errors.Join(bad, err)
		}
		report.Verdicts = append(report.Verdicts, Verdict{c.Point(m), refusePoint(c.Gen, c.N, bad)})
	}
	for _, r := range chain.Refused {
		report.Verdicts = append(report.Verdicts, Verdict{dr.RecoveryPoint{Machine: m, Gen: r.Gen, N: r.N}, refusePoint(r.Gen, r.N, r.Err)})
	}
	slices.SortFunc(report.Verdicts, func(a, b Verdict) int { return cmp.Compare(a.Point.N, b.Point.N) })
	return report, nil
}

// checkAll verifies every object that the path refers to; the result has the damaged ones.
func (s *Store) checkAll(ctx context.Context, m dr.MachineID, path []CutInfo, report *Report, progress func(int, int64)) (map[string]error, error) {
	objects := map[string]*object{}
	add := func(name cut.ObjectName, size int64, hash, chain cut.Hash) {
		objects[name.Key()] = &object{name: name, key: name.Key(), size: size, hash: hash, chain: chain}
	}
	for _, c := range path {
		add(c.Object(m), c.Size, cut.Hash{}, cut.Hash{})
		for _, p := range c.Commit.Parts {
			add(cut.PartName(m, c.Gen, c.N, p), p.Size, p.BLAKE3, cut.Hash{})
		}
		for _, t := range c.Commit.Tiles {
			add(cut.TileName(m, t), t.Size, t.BLAKE3, cut.Hash{})
		}
		for _, r := range c.Commit.Segments {
			if r.Class == cut.ClassCut {
				add(cut.SegmentName(m, r), r.Size, cut.Hash{}, r.Hash)
			} else {
				add(cut.SegmentName(m, r), r.Size, r.Hash, cut.Hash{})
			}
		}
	}
	var mu sync.Mutex
	verdicts := map[string]error{}
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(2) // bound by the CPU
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		o := objects[key]
		eg.Go(func() error {
			err := s.check(ectx, o)
			if err != nil && !isDamage(err) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				verdicts[o.key] = err
			}
			report.Objects++
			report.Bytes += o.size
			if progress != nil {
				progress(report.Objects, report.Bytes)
			}
			return nil
		})
	}
	return verdicts, eg.Wait()
}
