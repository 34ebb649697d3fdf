package store

import (
	"context"
	"errors"
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
	if !o.hash.IsZero() {
		if err := v.checkHash(ctx, o); err != nil {
			return err
		}
	}
	seg, err := cut.Open(ctx, &source{v.store.cfg.Bucket, o.key, o.size}, o.name, v.store.cfg.Keys)
	if err != nil {
		return err
	}
	return seg.Verify(ctx)
}

func (v *View) checkHash(ctx context.Context, o *object) error {
	h := blake3.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < o.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), o.size-off)]
		if err := readRange(ctx, v.store.cfg.Bucket, o.key, p, off); err != nil {
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
	Objects  int
	Bytes    int64
}

// OK reports whether every point verified.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.Err != nil })
}

// Verify reads every object of every recovery point of a machine once and says
// for each point whether it can be trusted.
func (s *Store) Verify(ctx context.Context, m dr.MachineID, progress func(doneObjects int, bytes int64)) (*Report, error) {
	chain, err := s.Chain(ctx, m)
	if err != nil {
		return nil, err
	}
	report := &Report{Machine: m, Dead: chain.Dead}
	checked := map[string]error{} // object → verdict, each object is read once
	for _, c := range chain.Points {
		err := s.verifyPoint(ctx, m, c, checked, func(size int64) {
			report.Objects++
			report.Bytes += size
			if progress != nil {
				progress(report.Objects, report.Bytes)
			}
		})
		if err != nil && !isDamage(err) {
			return nil, err
		}
		report.Verdicts = append(report.Verdicts, Verdict{c.Point(m), err})
	}
	for _, r := range chain.Refused {
		report.Verdicts = append(report.Verdicts, Verdict{dr.RecoveryPoint{Machine: m, Gen: r.Gen, N: r.N}, refusePoint(r.Gen, r.N, r.Err)})
	}
	slices.SortFunc(report.Verdicts, func(a, b Verdict) int {
		switch {
		case a.Point.N < b.Point.N:
			return -1
		case a.Point.N > b.Point.N:
			return 1
		}
		return 0
	})
	return report, nil
}

func (s *Store) verifyPoint(ctx context.Context, m dr.MachineID, c CutInfo, checked map[string]error, read func(int64)) error {
	v, err := s.OpenPoint(ctx, m, c.Gen, c.N)
	if err != nil {
		return err
	}
	defer v.Close()
	var first error
	for _, o := range v.needed() {
		verdict, seen := checked[o.key]
		if !seen {
			verdict = v.checkObject(ctx, o)
			if verdict != nil && !isDamage(verdict) {
				return verdict
			}
			checked[o.key] = verdict
			read(o.size)
		}
		first = errors.Join(first, verdict)
	}
	return refusePoint(c.Gen, c.N, first)
}
