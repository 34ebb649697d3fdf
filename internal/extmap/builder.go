package extmap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

const (
	// fanIn is how many runs of one level make one of the next. Every record is
	// written once per level, so total work is n log n.
	fanIn = 16
	// smallMap is the number of records up to which a map has no file.
	smallMap = 64 << 10
)

// Builder lays layers over each other. Its memory is bounded by Config.Memory;
// what is more goes to temporary files. It is for one goroutine.
//
// Layers are kept as a stack of runs. When fanIn of about the same size are on top
// they are merged to one, as in a log-structured merge tree; when those in
// memory take too much, neighbours are merged into files.
type Builder struct {
	cfg    Config
	runs   []*run // oldest first
	failed error  // of a merge: runs are no longer to be trusted to fit the budget
	closed bool
}

// NewBuilder returns a Builder without layers. Close it.
func NewBuilder(cfg Config) (*Builder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Builder{cfg: cfg.withDefaults()}, nil
}

// AddLayer lays a layer over all before it: first everything in the ranges of
// clears becomes a gap, then extents are laid over what is left. clears may be in any
// order and overlap, their offsets and ends are multiples of Unit (an end
// between two is rounded up). Extents must be valid, in ascending order and free of overlaps; only
// the last may end between units.
//
// A layer whose stream yields an error, or breaks these rules (ErrInvalid), is
// not added and the Builder stays as it was. After any other error (a full
// disk, a cancelled context) it can only be closed.
func (b *Builder) AddLayer(ctx context.Context, clears []Range, extents iter.Seq2[Extent, error]) error {
	if err := b.usable(); err != nil {
		return err
	}
	clearRun, err := b.clearRun(clears)
	if err != nil {
		return err
	}
	w := newWriter(b.cfg, b.share())
	defer w.abort()
	if extents != nil {
		if err := b.layer(ctx, w, extents); err != nil {
			return err
		}
	}
	r, err := w.finish()
	if err != nil {
		return b.fail(err)
	}
	if clearRun != nil && len(b.runs) > 0 {
		b.runs = append(b.runs, clearRun)
	}
	if r.n > 0 {
		b.runs = append(b.runs, r)
	}
	return b.compact(ctx)
}

// layer writes the extents of a stream, joined.
func (b *Builder) layer(ctx context.Context, w *writer, extents iter.Seq2[Extent, error]) error {
	var last record
	any := false
	count := 0
	for e, err := range extents {
		if err != nil {
			return err
		}
		if count++; count%chunkRecords == 0 && ctx.Err() != nil {
			return b.fail(fmt.Errorf("build extent map: %w", context.Cause(ctx)))
		}
		if err := e.validate(); err != nil {
			return err
		}
		r := makeRecord(e)
		if !any {
			last, any = r, true
			continue
		}
		if end := last.end(); e.Off < end || end%Unit != 0 {
			return fmt.Errorf("extent at %d behind the one that ends at %d is out of order: %w", e.Off, end, ErrInvalid)
		}
		joined, ok := join(last, r)
		if ok {
			last = joined
			continue
		}
		if err := w.put(last); err != nil {
			return b.fail(err)
		}
		last = r
	}
	if any {
		if err := w.put(last); err != nil {
			return b.fail(err)
		}
	}
	return nil
}

// clearRun returns the run of clears; nil if there are none.
func (b *Builder) clearRun(clears []Range) (*run, error) {
	if len(clears) == 0 {
		return nil, nil
	}
	clears = slices.Clone(clears)
	for _, c := range clears {
		if c.Off < 0 || c.Off%Unit != 0 || c.Len < 0 || c.Off > MaxDisk || c.Len > MaxDisk-c.Off {
			return nil, fmt.Errorf("range %d+%d to clear: %w", c.Off, c.Len, ErrInvalid)
		}
	}
	slices.SortFunc(clears, func(x, y Range) int {
		if x.Off < y.Off {
			return -1
		}
		if x.Off > y.Off {
			return 1
		}
		return 0
	})
	w := newWriter(b.cfg, MaxDisk) // it is no longer than the argument
	var off, end int64
	for _, c := range append(clears, Range{Off: MaxDisk}) {
		stop := roundUp(c.Off + c.Len)
		if c.Off <= end && c.Off != MaxDisk {
			end = max(end, stop)
			continue
		}
		if end > off {
			if err := w.put(makeRun(kindClear, off, end-off)); err != nil {
				return nil, err
			}
		}
		off, end = c.Off, stop
	}
	r, err := w.finish()
	if err != nil || r.n == 0 {
		return nil, err
	}
	return r, nil
}

// AddMap lays a finished map over all before it, without copying it; through its
// gaps shows what is below. m may be closed at any time afterwards.
func (b *Builder) AddMap(ctx context.Context, m *Map) error {
	if err := b.usable(); err != nil {
		return err
	}
	r, err := m.acquire()
	if err != nil {
		return err
	}
	if r.n == 0 {
		return r.release()
	}
	b.runs = append(b.runs, r)
	return b.compact(ctx)
}

// Build returns the map of all layers and leaves the Builder without layers; it
// may be used again. After an error it can only be closed.
func (b *Builder) Build(ctx context.Context) (*Map, error) {
	if err := b.usable(); err != nil {
		return nil, err
	}
	if len(b.runs) != 1 || !b.runs[0].final && (b.runs[0].file != nil) != (b.runs[0].n > b.cfg.small) {
		if err := b.mergeRuns(ctx, 0, len(b.runs), b.cfg.small*recordSize); err != nil {
			return nil, b.fail(err)
		}
	}
	r := b.runs[0]
	b.runs = nil
	if !r.final {
		r.final = true
		if !b.cfg.NoMap {
			r.mapPages()
		}
	}
	return &Map{run: r}, nil
}

// Close gives back memory and files. Maps that were built stay. Idempotent.
func (b *Builder) Close() error {
	b.closed = true
	var errs []error
	for _, r := range b.runs {
		errs = append(errs, r.release())
	}
	b.runs = nil
	return errors.Join(errs...)
}

func (b *Builder) usable() error {
	if b.closed {
		return ErrClosed
	}
	return b.failed
}

func (b *Builder) fail(err error) error {
	b.failed = err
	return err
}

// share is how much memory all runs may take together, and how much one that
// is being written. With as much again for the garbage collector this makes the budget.
func (b *Builder) share() int64 { return b.cfg.Memory / 4 }

// level is the size class of a run.
func (r *run) level() int { return bits.Len64(uint64(r.n/1024)) / 4 }

// compact keeps the number of runs and their memory bounded.
func (b *Builder) compact(ctx context.Context) error {
	for len(b.runs) >= fanIn {
		level, from := b.runs[len(b.runs)-1].level(), len(b.runs)
		for from > 0 && b.runs[from-1].level() <= level {
			from--
		}
		if len(b.runs)-from < fanIn {
			break
		}
		if err := b.mergeRuns(ctx, from, len(b.runs), b.share()); err != nil {
			return b.fail(err)
		}
	}
	var memory int64
	for _, r := range b.runs {
		if r.mem != nil {
			memory += r.memory()
		}
	}
	if memory <= b.share() {
		return nil
	}
	for i := 0; i < len(b.runs); i++ {
		end := i
		for end < len(b.runs) && b.runs[end].mem != nil {
			end++
		}
		if end == i {
			continue
		}
		if err := b.mergeRuns(ctx, i, end, 0); err != nil {
			return b.fail(err)
		}
	}
	return nil
}

// mergeRuns replaces runs[from:to] by one that is in memory up to limit bytes.
// On error nothing has changed.
func (b *Builder) mergeRuns(ctx context.Context, from, to int, limit int64) error {
	w := newWriter(b.cfg, limit)
	defer w.abort()
	if from < to {
		if err := w.copyAll(ctx, merge(b.runs[from:to], from == 0)); err != nil {
			return err
		}
	}
	r, err := w.finish()
	if err != nil {
		return err
	}
	var errs []error
	for _, old := range b.runs[from:to] {
		errs = append(errs, old.release())
	}
	b.runs = slices.Replace(b.runs, from, to, r)
	return errors.Join(errs...)
}
