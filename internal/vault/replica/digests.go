package replica

import (
	"context"
	"slices"
	"sync"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/store"
)

const (
	maxTiles     = 256             // in one request
	maxDigesting = 2               // requests at once: what lies over tile images has to be read and hashed
	maxViews     = 4               // open at once
	viewIdle     = 2 * time.Minute // until an unused view is closed
)

// Digests answers a resynchronization that looks for the true differences: the
// digests of stored tiles as of a committed cut, or of a seed. It is granted to
// the agent that holds the machine's current generation. The answer carries
// secrets. When too many ask at once, a request waits as long as its context.
func (r *Replicas) Digests(ctx context.Context, agent dr.AgentID, req agentapi.DigestRequest) (out agentapi.DigestResponse, err error) {
	const op = "vault.Digests"
	defer func() { err = waits(op, err) }()
	it, err := r.writer(ctx, agent, req.Machine, req.Generation)
	if err != nil {
		return out, err
	}
	if !req.Blocks && (req.Count < 1 || req.Count > maxTiles) {
		return out, dr.Errorf(dr.KindInvalid, op, "%d tiles in one request, 1 to %d are allowed", req.Count, maxTiles)
	}
	select {
	case r.views.turns <- struct{}{}:
		defer func() { <-r.views.turns }()
	case <-ctx.Done():
		return out, dr.Errorf(dr.KindUnavailable, op, "other resynchronizations use the vault's readers: %w", context.Cause(ctx))
	}
	v, done, err := r.view(ctx, it.Machine, req.At, agent)
	if err != nil {
		return out, err
	}
	defer done()
	if req.Blocks {
		key, sums, err := v.TileBlocks(ctx, req.Disk, req.First)
		if err != nil {
			return out, err
		}
		out.Key = slices.Clone(key[:])
		out.Blocks = make([]byte, 0, len(sums)*16)
		for _, s := range sums {
			out.Blocks = append(out.Blocks, s[:]...)
		}
		return out, nil
	}
	roots, err := v.TileRoots(ctx, req.Disk, req.First, req.Count)
	if err != nil {
		return out, err
	}
	out.Roots = make([]agentapi.TileRoot, len(roots))
	for i, t := range roots {
		out.Roots[i] = agentapi.TileRoot{Tile: t.Tile, Zero: t.Zero}
		if !t.Zero {
			out.Roots[i].Key, out.Roots[i].Root = slices.Clone(t.Key[:]), slices.Clone(t.Root[:])
		}
	}
	return out, nil
}

// views are the open views that digests are made from.
type views struct {
	turns chan struct{}

	mu     sync.Mutex
	open   []*openView // least recently used first
	closed bool
}

type openView struct {
	at     Reader
	view   *store.View
	users  int
	last   time.Time
	remove bool // to be closed when nobody uses it any more
}

// view returns the view of a position, from the open ones or opened now. The
// lease is put first: from then on nothing that the view needs is deleted.
func (r *Replicas) view(ctx context.Context, m dr.MachineID, at agentapi.CutRef, agent dr.AgentID) (*store.View, func(), error) {
	const op = "vault.Digests"
	gen := dr.Generation(at.Generation)
	if o := r.views.take(m, gen, at.N, r.st.Now()); o != nil {
		if o.view.Info().Ref.Hash.String() != at.Hash {
			r.views.give(o, r.st.Now())
			return nil, nil, wrongCut(op, at)
		}
		return o.view, func() { r.views.give(o, r.st.Now()) }, nil
	}
	reader := Reader{UID: cut.NewUID(), Machine: m, Gen: gen, N: at.N, Holder: "digests for agent " + string(agent)}
	if gen == 0 {
		return nil, nil, dr.Errorf(dr.KindInvalid, op, "the request names no cut to compare with")
	}
	if err := r.Lease(ctx, reader); err != nil {
		return nil, nil, err
	}
	v, err := r.store.OpenPosition(ctx, m, gen, at.N)
	if err != nil {
		return nil, nil, err
	}
	if v.Info().Ref.Hash.String() != at.Hash {
		return nil, nil, closing(v, wrongCut(op, at))
	}
	o := &openView{at: reader, view: v, users: 1, last: r.st.Now()}
	if !r.views.add(o) {
		return nil, nil, closing(v, dr.Errorf(dr.KindUnavailable, op, "the vault is shutting down"))
	}
	return v, func() { r.views.give(o, r.st.Now()) }, nil
}

func wrongCut(op string, at agentapi.CutRef) error {
	return dr.New(dr.KindConflict, dr.CodeObjectConflict, op, "the store has another cut %s than the one that the agent goes on from", dr.PointName(dr.Generation(at.Generation), at.N))
}

// closing closes a view that is not wanted and returns why.
func closing(v *store.View, why error) error {
	_ = v.Close() // it only gives memory back
	return why
}

func (s *views) take(m dr.MachineID, gen dr.Generation, n uint64, now time.Time) *openView {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.open {
		if o.at.Machine == m && o.at.Gen == gen && o.at.N == n {
			o.users++
			o.last = now
			s.open = append(slices.Delete(s.open, i, i+1), o)
			return o
		}
	}
	return nil
}

// add keeps a view for others; false after close.
func (s *views) add(o *openView) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open = append(s.open, o)
	s.drop(func(x *openView) bool { return len(s.open) > maxViews && x != o })
	return true
}

func (s *views) give(o *openView, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.users--
	o.last = now
	if o.remove && o.users == 0 {
		_ = o.view.Close() // it only gives memory back
	}
}

// drop takes views out; those in use are closed when they are given back.
func (s *views) drop(gone func(*openView) bool) {
	for i := 0; i < len(s.open); {
		o := s.open[i]
		if !gone(o) {
			i++
			continue
		}
		s.open = slices.Delete(s.open, i, i+1)
		if o.remove = true; o.users == 0 {
			_ = o.view.Close()
		}
	}
}

func (s *views) readers() []Reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Reader, len(s.open))
	for i, o := range s.open {
		out[i] = o.at
	}
	return out
}

// CloseIdle closes the views that have not been used for a while.
func (r *Replicas) CloseIdle() {
	now := r.st.Now()
	r.views.mu.Lock()
	defer r.views.mu.Unlock()
	r.views.drop(func(o *openView) bool { return o.users == 0 && now.Sub(o.last) > viewIdle })
}

// Close closes all views; those in use when their request ends. Idempotent.
func (r *Replicas) Close() {
	r.views.mu.Lock()
	defer r.views.mu.Unlock()
	r.views.closed = true
	r.views.drop(func(*openView) bool { return true })
}
