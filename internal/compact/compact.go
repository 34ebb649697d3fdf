// Package compact keeps a replica's history within its retention, so that a store
// does not grow for ever: it decides which recovery points have expired, folds
// what they leave behind into runs and new tile images, writes checkpoints for
// quick opening, deletes what nobody can need any more, and scrubs.
//
// What it promises:
//
//   - A retained point has the same bytes before, during and after a pass,
//     whatever step the pass is killed at, and however many compactors there are.
//   - Nothing is deleted before a plan that names it is durable in the store, its
//     grace has passed by the store's own clock, no lease covers it, and the
//     history has been found whole without it.
//   - While replication stands still nothing expires; a clock that lies can't
//     expire anything early (see Rules.Keep).
//   - Only one compactor works on a machine: plans are numbered, and each number is
//     given once.
//   - Memory: one tile (64 MiB), one data segment and the map of one run.
//
// It runs beside the vault and needs the vault's private key. It knows no
// database: its only state is the plans in the store.
package compact

import (
	"context"
	"log/slog"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// Config of a Compactor.
type Config struct {
	Bucket objstore.Bucket
	Store  *store.Store
	Keys   cut.Keyring
	// Compactor names this vault instance in plans; two instances have different names.
	Compactor string
	Software  string
	// Grace is how long an object stays after it has become unreachable (default
	// 24 h). It has to be longer than a reader without a lease reads.
	Grace time.Duration
	// LeftoverGrace is the same for what no history ever referred to: leftovers of
	// failed attempts and cuts of fenced agents (default 7 days). Tile images of
	// the live generation, which an initial replication may be about to list, get
	// four times that.
	LeftoverGrace time.Duration
	// TakeOver is how long another compactor must not have written a plan before
	// this one takes the machine over (default 1 h).
	TakeOver time.Duration
	// MaxDelete bounds the share of a machine's objects that one pass deletes
	// (default 0.5; at least 1000 objects may always go).
	MaxDelete float64
	// SegmentSize is how much data goes into a data segment, bytes before compression (default 32 MiB).
	SegmentSize int64
	// SmallObject is the size below which an object's data is gathered into
	// larger segments when its cut expires, bytes (default 1 MiB).
	SmallObject int64
	// BaseEvery is how many expired elements gather at the old end before they are folded (default 32).
	BaseEvery int
	// MapEvery is how many elements a reader may have to open before a checkpoint is written (default 64).
	MapEvery int
	Now      func() time.Time // default time.Now
	Log      *slog.Logger
	// Step is called at every labelled step of Steps; an error stops the pass there
	// as a crash would. For tests; nil in production.
	Step func(label string) error
}

// Steps lists every label that Config.Step is called with.
func Steps() []string {
	return []string{"plan", "planned", "tile", "data", "run", "published", "map", "delete", "deleted"}
}

// Compactor maintains the machines of one store. It is safe for concurrent use
// on different machines.
type Compactor struct {
	cfg Config
}

// New returns a Compactor; it does no I/O.
func New(cfg Config) *Compactor {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.Grace, 24*time.Hour)
	def(&cfg.LeftoverGrace, 7*24*time.Hour)
	def(&cfg.TakeOver, time.Hour)
	if cfg.MaxDelete <= 0 {
		cfg.MaxDelete = 0.5
	}
	if cfg.SegmentSize <= 0 {
		cfg.SegmentSize = 32 << 20
	}
	if cfg.SmallObject <= 0 {
		cfg.SmallObject = 1 << 20
	}
	if cfg.BaseEvery <= 0 {
		cfg.BaseEvery = 32
	}
	if cfg.MapEvery <= 0 {
		cfg.MapEvery = 64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Compactor{cfg: cfg}
}

// Report is what a pass has found and done.
type Report struct {
	Machine  dr.MachineID
	Points   int // retained
	Expired  int // points that this pass has expired
	Runs     int // written
	Tiles    int // folded
	Rewrote  int64
	Wrote    int64 // bytes stored by this pass
	Pending  int   // objects that wait for their grace
	Deleted  int
	Freed    int64 // bytes
	Objects  int   // before the pass
	Bytes    int64
	Refused  []store.Refused // damage that was seen: nothing is deleted while there is any
	NotReady string          // why nothing was done
}

func (c *Compactor) step(label string) error {
	if c.cfg.Step == nil {
		return nil
	}
	return c.cfg.Step(label)
}

// Maintain makes one pass over a machine: plan, persist the plan, execute. A pass
// that was interrupted is repeated by the next one, which finds what is done.
//
// Errors: dr.CodeCompactorConflict when another compactor is at work on the
// machine; those of the store.
func (c *Compactor) Maintain(ctx context.Context, m dr.MachineID, rules Rules) (Report, error) {
	r := Report{Machine: m}
	rules = rules.withDefaults()
	last, err := c.lastPlan(ctx, m)
	if err != nil {
		return r, err
	}
	chain, err := c.cfg.Store.Chain(ctx, m)
	if err != nil {
		return r, err
	}
	if len(chain.Points) == 0 {
		r.NotReady = "there is no recovery point yet"
		return r, nil
	}
	p, err := c.plan(ctx, m, chain, rules)
	if err != nil {
		return r, err
	}
	r.Points, r.Expired, r.Refused = len(chain.Points)-p.expired, p.expired, chain.Refused
	g, err := c.garbage(ctx, m, chain, last)
	if err != nil {
		return r, err
	}
	r.Objects, r.Bytes = g.objects, g.bytes
	if len(p.groups) == 0 && !p.checkpoint && len(g.pending) == 0 {
		return r, nil
	}
	if err := c.step("plan"); err != nil {
		return r, err
	}
	now, err := c.writePlan(ctx, m, last, p, g)
	if err != nil {
		return r, err
	}
	if err := c.step("planned"); err != nil {
		return r, err
	}
	for _, group := range p.groups {
		if err := c.fold(ctx, m, group, rules, &r); err != nil {
			return r, err
		}
	}
	if p.checkpoint {
		if err := c.writeMap(ctx, m, &r); err != nil {
			return r, err
		}
	}
	r.Pending = len(g.pending)
	if len(chain.Refused) > 0 {
		return r, nil
	}
	return r, c.deleteGarbage(ctx, m, chain, g, now, &r)
}

// group is consecutive elements of the path that become one run.
type group struct {
	elements []store.CutInfo
	base     bool // begins at the old end: the run is complete
	uid      string
}

type plan struct {
	tip        store.CutInfo
	keep       []cut.Ref
	groups     []group
	expired    int
	checkpoint bool
}

// plan finds the groups of elements that no retained point separates.
func (c *Compactor) plan(_ context.Context, m dr.MachineID, chain *store.Chain, rules Rules) (plan, error) {
	p := plan{tip: chain.Path[len(chain.Path)-1]}
	points := make([]dr.RecoveryPoint, len(chain.Points))
	for i, x := range chain.Points {
		points[i] = x.Point(m)
	}
	keep := map[string]bool{}
	for i, why := range rules.Keep(points, c.cfg.Now()) {
		if why != "" {
			keep[points[i].Name()] = true
			p.keep = append(p.keep, chain.Points[i].Ref)
		} else {
			p.expired++
		}
	}
	var cur []store.CutInfo // the group being gathered
	complete, forced, retained := false, false, false
	flush := func() {
		switch {
		case len(cur) == 0:
		case complete && (forced || len(cur) > 1 && (len(cur) > c.cfg.BaseEvery || aged(cur))):
			p.groups = append(p.groups, group{elements: cur, base: true, uid: cut.NewUID()})
		case !complete && len(cur) > 1 && cur[0].Commit.Prev.N > 0: // position 0 can't be said to be the start of a run
			p.groups = append(p.groups, group{elements: cur, uid: cut.NewUID()})
		}
		cur, complete, forced = nil, false, false
	}
	var prev *store.CutInfo
	for i := range chain.Path {
		x := &chain.Path[i]
		switch {
		case x.Commit.Base && !retained:
			// Nothing before it is retained: the run says so, even if it stands for one element.
			cur, complete, forced = nil, true, i > 0
		case x.Commit.Base:
			flush()
		case prev == nil || x.Commit.Prev != prev.Ref:
			cur, complete, forced = nil, false, false // a gap: nothing is folded over it
		}
		if x.Commit.Base && retained {
			cur = nil // it stands alone: a run that holds it would hide what is older
		} else {
			cur = append(cur, *x)
		}
		if keep[dr.PointName(x.Gen, x.N)] {
			flush()
			retained = true
		}
		prev = x
	}
	p.checkpoint = c.wantsMap(chain)
	return p, nil
}

// aged reports whether something of the group has been expired for a quarter of
// a day, by the time of the points.
func aged(g []store.CutInfo) bool {
	return g[len(g)-1].Commit.Time.Sub(g[0].Commit.Time) > 6*time.Hour
}

// wantsMap reports whether a reader of the newest point would have to open many elements.
func (c *Compactor) wantsMap(chain *store.Chain) bool {
	n := 0
	for i := len(chain.Path) - 1; i >= 0; i-- {
		x := chain.Path[i]
		if x.Commit.Base {
			break
		}
		for _, m := range chain.Maps {
			if m.Gen == x.Gen && m.N == x.N {
				return n >= c.cfg.MapEvery
			}
		}
		n++
	}
	return n >= c.cfg.MapEvery
}
