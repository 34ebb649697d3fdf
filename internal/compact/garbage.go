package compact

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// keptPlans is how many plans stay behind the newest one, for people.
const keptPlans = 16

// maxPlan bounds the bytes of a plan that is read; more than cut.Manifest ever has.
const maxPlan = 20 << 20

// doomed is an object that waits for its grace.
type doomed struct {
	Key   string
	Why   string
	Since time.Time // by the store's clock: the first plan that named it; zero in that plan itself
}

// planDetail is what a Compactor keeps in a manifest beside what everybody
// understands: version 1, 2026-11-22. Why and Since belong to the manifest's Delete, one by one.
type planDetail struct {
	Version   int         `json:"version"`
	Compactor string      `json:"compactor"`
	Why       []string    `json:"why,omitempty"`
	Since     []time.Time `json:"since,omitempty"`
}

// lastPlan reads the newest plan of a machine, or fails if another compactor
// has written it lately.
func (c *Compactor) lastPlan(ctx context.Context, m dr.MachineID) (lastPlan, error) {
	var newest objstore.Info
	prefix := cut.ManifestPrefix(m)
	err := c.cfg.Bucket.List(ctx, prefix, func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassManifest {
			newest = i
		}
		return nil
	})
	if err != nil || newest.Key == "" {
		return lastPlan{}, storeError(prefix, err)
	}
	name, _ := cut.ParseObject(newest.Key)
	l := lastPlan{seq: name.Seq, at: newest.ModTime}
	raw, err := objstore.ReadAll(ctx, c.cfg.Bucket, newest.Key, maxPlan)
	if err != nil {
		return l, storeError(newest.Key, err)
	}
	man, err := cut.ParseManifest(name, raw)
	var d planDetail
	if err == nil {
		err = json.Unmarshal(man.Detail, &d)
	}
	if err == nil && (d.Version != 1 || len(d.Why) != len(man.Delete) || len(d.Since) != len(man.Delete)) {
		err = errors.New("the plan is of another version")
	}
	if err != nil {
		// A plan that can't be read is as if it had not been written: what it would
		// have deleted waits for its grace again. Its number stays taken.
		c.cfg.Log.Warn("a maintenance plan can't be read", "object", newest.Key, "err", err)
		return l, nil
	}
	l.compactor = d.Compactor
	for i, key := range man.Delete {
		if d.Since[i].IsZero() {
			d.Since[i] = newest.ModTime
		}
		l.pending = append(l.pending, doomed{key, d.Why[i], d.Since[i]})
	}
	if age := c.cfg.Now().Sub(newest.ModTime); d.Compactor != c.cfg.Compactor && age < c.cfg.TakeOver {
		return l, conflict(m, d.Compactor, newest.ModTime)
	}
	return l, nil
}

func conflict(m dr.MachineID, other string, at time.Time) error {
	return dr.New(dr.KindConflict, dr.CodeCompactorConflict, "compact.Maintain", "machine %s is maintained by %s, whose last plan is of %s: two vaults must not work on one store",
		m, other, at.UTC().Format(time.RFC3339))
}

// lastPlan is the newest plan of a machine.
type lastPlan struct {
	seq       uint64    // 0 = there is none
	at        time.Time // by the store's clock
	compactor string
	pending   []doomed
}

// garbage is what no history leads to.
type garbage struct {
	pending []doomed
	size    map[string]int64
	leased  bool // a lease held something back
	objects int
	bytes   int64
}

// garbage lists the objects of a machine that no reader can come by, with the
// time at which a plan first said so.
func (c *Compactor) garbage(ctx context.Context, m dr.MachineID, chain *store.Chain, last lastPlan) (*garbage, error) {
	g := &garbage{size: map[string]int64{}}
	reachable := map[string]bool{}
	for _, x := range chain.Path {
		for _, key := range x.References(m) {
			reachable[key] = true
		}
	}
	for _, x := range chain.Refused {
		reachable[x.Object(m).Key()] = true
	}
	if len(chain.Refused) > 0 {
		return g, nil // nothing is deleted beside damage, so nothing is looked for
	}
	since := map[string]time.Time{}
	for _, d := range last.pending {
		since[d.Key] = d.Since
	}
	superseded, err := c.superseded(ctx, m, chain, last)
	if err != nil {
		return nil, err
	}
	maps := newestMaps(m, chain)
	tip := chain.Path[len(chain.Path)-1]
	leaseEnd := c.cfg.Now()
	protected, err := c.leases(ctx, m, leaseEnd)
	if err != nil {
		return nil, err
	}
	err = c.cfg.Bucket.List(ctx, cut.MachinePrefix(m), func(i objstore.Info) error {
		o, err := cut.ParseObject(i.Key)
		if err != nil {
			return nil // not ours
		}
		g.objects++
		g.bytes += i.Size
		why := doom(o, tip, last.seq, leaseEnd, superseded[i.Key])
		if why == "" || reachable[i.Key] || maps[i.Key] {
			return nil
		}
		if protected != nil && isSegment(o) && o.N <= *protected {
			g.leased = true
			return nil
		}
		g.size[i.Key] = i.Size
		g.pending = append(g.pending, doomed{Key: i.Key, Why: why, Since: since[i.Key]})
		return nil
	})
	return g, storeError(cut.MachinePrefix(m), err)
}

// Why an object is no longer needed.
const (
	whySuperseded = "superseded" // a run stands for it
	whyLeftover   = "leftover"   // no history ever named it
	whyTile       = "tile"       // a tile image of the live generation that nothing names: perhaps not yet
	whyOver       = "over"       // an old plan, lease or checkpoint
)

func isSegment(o cut.ObjectName) bool {
	switch o.Class {
	case cut.ClassCut, cut.ClassPart, cut.ClassTile, cut.ClassRun, cut.ClassMap, cut.ClassData:
		return true
	}
	return false
}

// doom says why an object that is not reachable may go, or "" if it may not.
func doom(o cut.ObjectName, tip store.CutInfo, seq uint64, now time.Time, superseded bool) string {
	switch o.Class {
	case cut.ClassManifest:
		if o.Seq+keptPlans < seq {
			return whyOver
		}
	case cut.ClassLease:
		if time.Unix(o.Expires, 0).Before(now) {
			return whyOver
		}
	case cut.ClassMap:
		return whyOver
	case cut.ClassCut, cut.ClassRun, cut.ClassPart, cut.ClassData, cut.ClassTile:
		switch {
		case superseded:
			return whySuperseded
		case o.Gen > tip.Gen, o.N > tip.N && o.Gen == tip.Gen:
			return "" // being written
		case o.Class == cut.ClassTile && o.Gen == tip.Gen:
			return whyTile
		default:
			return whyLeftover
		}
	}
	return "" // keys, generations and what is not known
}

// superseded lists the objects that only expired elements name, and those
// elements themselves. What the last plan knew is not read again.
func (c *Compactor) superseded(ctx context.Context, m dr.MachineID, chain *store.Chain, last lastPlan) (map[string]bool, error) {
	out := map[string]bool{}
	for _, d := range last.pending {
		if d.Why == whySuperseded {
			out[d.Key] = true
		}
	}
	for _, name := range chain.Expired {
		key := name.Object(m).Key()
		if out[key] {
			continue
		}
		out[key] = true
		x, err := c.cfg.Store.ReadElement(ctx, m, name)
		switch {
		case err == nil:
			for _, ref := range x.References(m) {
				out[ref] = true
			}
		case dr.KindOf(err) == dr.KindCorrupt || dr.KindOf(err) == dr.KindNotFound:
			// What it named becomes a leftover, which waits longer.
		default:
			return nil, err
		}
	}
	return out, nil
}

// newestMaps are the checkpoints that stay: the newest.
func newestMaps(m dr.MachineID, chain *store.Chain) map[string]bool {
	keep := map[string]bool{}
	for _, x := range chain.Maps[max(0, len(chain.Maps)-1):] {
		keep[cut.MapObject(m, x.Gen, x.N, x.UID)] = true
	}
	return keep
}

// leases returns the highest position that an unexpired lease names, or nil.
func (c *Compactor) leases(ctx context.Context, m dr.MachineID, now time.Time) (*uint64, error) {
	var highest *uint64
	var keys []string
	err := c.cfg.Bucket.List(ctx, cut.LeasePrefix(m), func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassLease && !time.Unix(o.Expires, 0).Before(now) {
			keys = append(keys, i.Key)
		}
		return nil
	})
	if err != nil {
		return nil, storeError(cut.LeasePrefix(m), err)
	}
	for _, key := range keys {
		n := ^uint64(0) // a damaged lease protects everything
		raw, err := objstore.ReadAll(ctx, c.cfg.Bucket, key, 1<<16)
		if errors.Is(err, objstore.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, storeError(key, err)
		}
		name, _ := cut.ParseObject(key)
		if lease, err := cut.ParseLease(name, raw); err == nil {
			n = lease.N
		}
		if highest == nil || n > *highest {
			highest = &n
		}
	}
	return highest, nil
}

// writePlan makes the plan durable and returns the store's time. Whoever
// writes the number first has it.
func (c *Compactor) writePlan(ctx context.Context, m dr.MachineID, last lastPlan, p plan, g *garbage) (time.Time, error) {
	tip := p.tip
	man := cut.Manifest{Machine: m, Seq: last.seq + 1, Gen: tip.Gen, Tip: tip.Ref, Time: c.cfg.Now(), Software: c.cfg.Software, Keep: p.keep, After: c.cfg.Now()}
	detail := planDetail{Version: 1, Compactor: c.cfg.Compactor}
	for _, x := range p.groups {
		first, to := x.elements[0], x.elements[len(x.elements)-1]
		run := cut.PlannedRun{From: first.Commit.Prev, To: to.Ref, UID: x.uid}
		if x.base {
			run.From = cut.Ref{}
		}
		man.Runs = append(man.Runs, run)
	}
	for _, d := range g.pending {
		man.Delete = append(man.Delete, d.Key)
		detail.Why = append(detail.Why, d.Why)
		detail.Since = append(detail.Since, d.Since)
	}
	var err error
	if man.Detail, err = json.Marshal(detail); err != nil {
		return time.Time{}, err
	}
	raw, err := man.Marshal()
	if err != nil {
		return time.Time{}, err
	}
	key := man.Name().Key()
	sum := sha256.Sum256(raw)
	err = c.cfg.Bucket.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), &sum)
	if errors.Is(err, objstore.ErrExists) {
		// Somebody was quicker, or an answer was lost.
		have, rerr := objstore.ReadAll(ctx, c.cfg.Bucket, key, maxPlan)
		if rerr != nil {
			return time.Time{}, storeError(key, rerr)
		}
		if !bytes.Equal(have, raw) {
			return time.Time{}, conflict(m, "another compactor", c.cfg.Now())
		}
	} else if err != nil {
		return time.Time{}, storeError(key, err)
	}
	info, err := c.cfg.Bucket.Head(ctx, key)
	return info.ModTime, storeError(key, err)
}

// deleteGarbage deletes what has waited long enough. What names others goes
// last, so that a pass that is killed leaves nothing that looks like damage.
func (c *Compactor) deleteGarbage(ctx context.Context, m dr.MachineID, chain *store.Chain, g *garbage, now time.Time, r *Report) error {
	var due []doomed
	for _, d := range g.pending {
		grace := c.cfg.Grace
		switch d.Why {
		case whyLeftover:
			grace = c.cfg.LeftoverGrace
		case whyTile:
			grace = 4 * c.cfg.LeftoverGrace
		}
		if !d.Since.IsZero() && now.Sub(d.Since) >= grace {
			due = append(due, d)
		}
	}
	if len(due) == 0 {
		return nil
	}
	// The history as it is now, without the help of anything that is about to go.
	if err := c.revalidate(ctx, m, chain, due); err != nil {
		return err
	}
	order := func(d doomed) int {
		o, _ := cut.ParseObject(d.Key)
		switch o.Class {
		case cut.ClassCut, cut.ClassRun:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(due, func(a, b doomed) int { return cmp.Or(order(a)-order(b), strings.Compare(a.Key, b.Key)) })
	limit := max(1000, int(c.cfg.MaxDelete*float64(g.objects)))
	for _, d := range due[:min(limit, len(due))] {
		if err := c.step("delete"); err != nil {
			return err
		}
		if err := c.cfg.Bucket.Delete(ctx, d.Key); err != nil {
			return storeError(d.Key, err)
		}
		r.Deleted++
		r.Freed += g.size[d.Key]
	}
	return c.step("deleted")
}

// revalidate reads the history again and makes sure that every retained point
// stands without what is due, and that nobody else has written a plan since.
func (c *Compactor) revalidate(ctx context.Context, m dr.MachineID, before *store.Chain, due []doomed) error {
	if last, err := c.lastPlan(ctx, m); err != nil {
		return err
	} else if last.compactor != c.cfg.Compactor {
		return conflict(m, last.compactor, last.at)
	}
	chain, err := c.cfg.Store.Chain(ctx, m)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return dr.New(dr.KindConflict, dr.CodeStoreDamaged, "compact.Maintain", "nothing is deleted of machine %s: %s", m, fmt.Sprintf(format, args...))
	}
	if len(chain.Refused) > 0 {
		return refuse("%v", chain.Refused[0].Err)
	}
	if a, b := before.Points[len(before.Points)-1], chain.Points; len(b) == 0 || b[len(b)-1].N < a.N {
		return refuse("the newest point %s is no longer found", dr.PointName(a.Gen, a.N))
	}
	doomed := map[string]bool{}
	for _, d := range due {
		doomed[d.Key] = true
	}
	for _, x := range chain.Path {
		for _, key := range x.References(m) {
			if doomed[key] {
				return refuse("%s is needed by %s", key, dr.PointName(x.Gen, x.N))
			}
		}
	}
	// Presence and size of everything that the oldest and the newest point name.
	for _, p := range []store.CutInfo{chain.Points[0], chain.Points[len(chain.Points)-1]} {
		v, err := c.cfg.Store.OpenPoint(ctx, m, p.Gen, p.N)
		if err != nil {
			return refuse("%v", err)
		}
		if err := v.Close(); err != nil {
			return err
		}
	}
	return nil
}

// storeError maps a bucket's error.
func storeError(key string, err error) error { return store.ObjectError("compact.Maintain", key, err) }
