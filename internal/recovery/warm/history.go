package warm

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// history finds what changed between positions of a machine's live path.
type history struct {
	st     *store.Store
	m      dr.MachineID
	target store.CutInfo

	mu    sync.Mutex
	asked bool
	path  []store.CutName
	spans map[[2]cut.Ref]*span
	why   string
}

// span is what changed from low to high, one of which may be the target, or both.
type span struct {
	low, high cut.Ref
	view      *store.View // nil = nothing
	cuts      int
}

func (h *history) close() {
	if h == nil {
		return
	}
	for _, s := range h.spans {
		if s != nil && s.view != nil {
			s.view.Close()
		}
	}
}

// reason is why span last returned nil.
func (h *history) reason() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.why
}

// span returns what changed between the lowest and the highest of low, high and the
// target, or nil if that can't be told: then everything has to be compared. Its
// error is that the store could not be asked.
func (h *history) span(ctx context.Context, low, high cut.Ref) (*span, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.spans[[2]cut.Ref{low, high}]; ok {
		return s, nil
	}
	if !h.asked {
		names, err := h.st.Names(ctx, h.m)
		if err != nil {
			return nil, err
		}
		h.path, h.asked, h.spans = names.Path, true, map[[2]cut.Ref]*span{}
	}
	s, err := h.find(ctx, low, high)
	if err != nil {
		switch dr.KindOf(err) {
		case dr.KindCorrupt, dr.KindUnsupported, dr.KindNotFound:
			// The point itself could be opened, so what is damaged is on the way only, or was
			// folded away meanwhile.
			s, h.why = nil, err.Error()
		default:
			return nil, err
		}
	}
	h.spans[[2]cut.Ref{low, high}] = s
	return s, nil
}

func (h *history) find(ctx context.Context, low, high cut.Ref) (_ *span, err error) {
	type place struct {
		ref cut.Ref
		at  int
	}
	places := []place{{low, 0}, {high, 0}, {h.target.Ref, 0}}
	for i, p := range places {
		at := slices.IndexFunc(h.path, func(c store.CutName) bool { return c.Gen == p.ref.Gen && c.N == p.ref.N })
		if at < 0 {
			return nil, dr.Errorf(dr.KindNotFound, "warm.history", "%s is not on the live path", dr.PointName(p.ref.Gen, p.ref.N))
		}
		places[i].at = at
	}
	lo := slices.MinFunc(places, func(a, b place) int { return a.at - b.at })
	hi := slices.MaxFunc(places, func(a, b place) int { return a.at - b.at })
	for _, p := range places {
		if p.at == lo.at && p.ref != lo.ref || p.at == hi.at && p.ref != hi.ref {
			return nil, dr.Errorf(dr.KindNotFound, "warm.history", "%s is another cut of that name", dr.PointName(p.ref.Gen, p.ref.N))
		}
	}
	s := &span{low: lo.ref, high: hi.ref, cuts: hi.at - lo.at}
	if s.cuts == 0 {
		return s, nil
	}
	path := h.path[lo.at+1 : hi.at+1]
	if err := h.noBase(ctx, path); err != nil {
		return nil, err
	}
	v, err := h.st.OpenSpan(ctx, h.m, path)
	if err != nil {
		return nil, err
	}
	// By the hashes the span begins and ends at the very cuts that are meant.
	if first, last := v.First(), v.Info(); first.Commit.Prev != lo.ref || last.Ref != hi.ref {
		v.Close()
		return nil, dr.Errorf(dr.KindNotFound, "warm.history", "the path from %s to %s is another one", dr.PointName(lo.ref.Gen, lo.ref.N), dr.PointName(hi.ref.Gen, hi.ref.N))
	}
	s.view = v
	return s, nil
}

// noBase makes sure that no element stands alone: what such a one does not carry is
// zero, and not as before.
func (h *history) noBase(ctx context.Context, path []store.CutName) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(16)
	for _, c := range path {
		eg.Go(func() error {
			info, err := h.st.ReadElement(ctx, h.m, c)
			if err == nil && (info.Commit.Base || c.IsRun() && c.From == 0) {
				err = dr.Errorf(dr.KindNotFound, "warm.history", "%s is complete by itself", dr.PointName(c.Gen, c.N))
			}
			return err
		})
	}
	return eg.Wait()
}
