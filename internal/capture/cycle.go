package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/capture/fill"
	"holdfast/internal/capture/filter"
	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// A cycle opens one frozen image and does with it what is due:
//
//   - of disks that are in the chain it takes what changed since the tip, and in
//     a resynchronization compares some more tiles: that is a cut (cut.go, scan.go);
//   - of disks that are not in the chain yet it notes what changed in tiles that
//     are sent, and sends some more (fill.go). When all are sent, the next cut takes the disks over.
//
// A replica without a chain is the special case in which all disks are new.

// plan is what a cycle is to do.
type plan struct {
	a     Assignment
	st    state
	live  []cut.Disk // of the chain, that go on
	fill  []cut.Disk // not of the chain yet
	cut   bool       // there is a cut to make
	scan  bool       // which compares tiles
	take  bool       // which takes the disks of fill over: all their tiles are sent
	send  bool       // tiles are sent
	drain bool
	began time.Time

	closes      time.Time // when the window of scan or send closes; zero = it does not
	nextResync  time.Time // when a waiting scan may go on; zero = it does not wait for a time
	nextInitial time.Time // same of sending
}

// idle reports whether there is nothing to do.
func (p *plan) idle() bool { return !p.cut && !p.send }

// chain reports whether tracking goes on from the chain's tip, and not from a round of sending.
func (p *plan) chain() bool { return len(p.live) > 0 }

// image is an open cut of the host with what belongs to it.
type image struct {
	*plan
	r      *Replicator
	c      hypervisor.Cut
	info   hypervisor.CutInfo
	group  *cut.Group
	tables map[uint16]*filter.Table
	log    *fill.Log // nil if there is no disk to fill
	until  time.Time // when the image has to be released
	kept   bool      // its token is relied on: it ends with End
	open   bool
	asked  bool // for a quiesced guest
}

// tag names a new tracking token: recognisable as this replica's, and random,
// because a token of an attempt that died may still be there.
func (r *Replicator) tag(n uint64) string {
	return fmt.Sprintf("%.8s-%d-%08x", r.cfg.Machine, n, rand.Uint32())
}

// reshape follows the list of disks: those that are assigned and not in the
// chain are to be filled, those that are not assigned any more are not.
func (r *Replicator) reshape(a Assignment) error {
	st := r.snapshot()
	want := map[string]bool{}
	for _, id := range a.Disks {
		if _, no := st.Refused[id]; !no && !r.absent[id] {
			want[id] = true
		}
	}
	var fresh []string
	for _, id := range a.Disks {
		in := func(d cut.Disk) bool { return d.ID == id }
		if want[id] && !slices.ContainsFunc(st.Tip.Disks, in) && (st.Fill == nil || !slices.ContainsFunc(st.Fill.Disks, in)) {
			fresh = append(fresh, id)
		}
	}
	gone := st.Fill != nil && slices.ContainsFunc(st.Fill.Disks, func(d cut.Disk) bool { return !want[d.ID] })
	if len(fresh) == 0 && !gone {
		return nil
	}
	if st.Fill == nil {
		if err := fill.Remove(r.path("fill")); err != nil {
			return err
		}
	}
	return r.change(func(s *state) error {
		if s.Fill == nil {
			s.Fill = &filling{Mark: cut.Ref{Gen: ^dr.Generation(0), N: rand.Uint64(), Hash: sum256([]byte(r.tag(0)))}, Eras: map[uint16]int{}}
		}
		s.Fill.Disks = slices.DeleteFunc(s.Fill.Disks, func(d cut.Disk) bool { return !want[d.ID] })
		s.Fill.Complete = s.Fill.Complete && len(fresh) == 0
		for _, id := range fresh {
			s.Fill.Disks = append(s.Fill.Disks, cut.Disk{Index: s.NextDisk, ID: id})
			s.Fill.Eras[s.NextDisk] = 1
			s.NextDisk++
		}
		slices.SortFunc(s.Fill.Disks, func(x, y cut.Disk) int { return slices.Index(a.Disks, x.ID) - slices.Index(a.Disks, y.ID) })
		if len(s.Fill.Disks) == 0 {
			s.Fill = nil
		}
		return nil
	})
}

// planCycle decides what is to be done now.
func (r *Replicator) planCycle(ctx context.Context, a Assignment, drain bool) (*plan, error) {
	if err := r.reshape(a); err != nil {
		return nil, err
	}
	p := &plan{a: a, st: r.snapshot(), drain: drain, began: time.Now()}
	for _, d := range p.st.Tip.Disks {
		if _, no := p.st.Refused[d.ID]; !no && !r.absent[d.ID] && slices.Contains(a.Disks, d.ID) {
			p.live = append(p.live, d)
		}
	}
	p.cut = p.chain()
	if sc := p.st.Tip.Scan; p.cut && sc != nil {
		p.scan, p.nextResync, p.closes = r.resyncOpen(a, p.st, p.began, drain)
		p.cut = sc.Exact || p.scan
	}
	if p.st.Fill != nil && (p.cut || !p.chain()) {
		p.fill = p.st.Fill.Disks
		if p.take = p.st.Fill.Complete; p.take {
			p.cut = true
		} else if !drain || !p.chain() {
			var closes time.Time
			p.send, p.nextInitial, closes = initialOpen(a, !p.st.Tip.Ref.IsZero(), p.began)
			if p.send && !closes.IsZero() && (p.closes.IsZero() || closes.Before(p.closes)) {
				p.closes = closes
			}
		}
	}
	if (p.scan || p.send) && !r.turn.get(ctx, r, a, drain) {
		// Whole disks are read one VM at a time; deltas do not wait for that.
		p.cut = p.chain() && (p.st.Tip.Scan == nil || p.st.Tip.Scan.Exact) || p.take
		p.scan, p.send = false, false
	}
	return p, nil
}

// initialOpen says whether tiles may be sent, when they may if not, and when that ends.
func initialOpen(a Assignment, chain bool, now time.Time) (open bool, next, closes time.Time) {
	if a.InitialNotBefore.After(now) && !chain {
		return false, a.InitialWindow.Next(a.InitialNotBefore), time.Time{}
	}
	if !a.InitialWindow.Contains(now) {
		return false, a.InitialWindow.Next(now), time.Time{}
	}
	return true, time.Time{}, a.InitialWindow.Closes(now)
}

// cycle does what is due, and reports whether there is more to do at once.
func (r *Replicator) cycle(ctx context.Context, p *plan) (more bool, err error) {
	r.cutting.Lock()
	defer r.cutting.Unlock()
	im, err := r.begin(ctx, p)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, im.release(ctx, err)) }()
	if err := r.step("cut.begun"); err != nil {
		return false, err
	}
	if err := im.adjust(); err != nil {
		return false, err
	}
	if err := im.prepare(ctx); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, im.close()) }()
	if p.cut {
		more, err = im.makeCut(ctx)
	} else {
		err = im.keepToken()
	}
	if err != nil {
		return false, err
	}
	if p.send {
		return true, im.sendTiles(ctx)
	}
	return more, nil
}

// begin opens the frozen image.
func (r *Replicator) begin(ctx context.Context, p *plan) (*image, error) {
	req := hypervisor.CutRequest{VM: p.a.VM, Base: p.st.Tip.Token, Tag: r.tag(p.st.nextN()), Offline: p.drain}
	if !p.chain() {
		req.Base = p.st.Fill.Token
	}
	for _, d := range slices.Concat(p.live, p.fill) {
		req.Disks = append(req.Disks, d.ID)
	}
	im := &image{plan: p, r: r, tables: map[uint16]*filter.Table{}}
	if p.cut && !p.drain && (p.st.Tip.Scan == nil || p.st.Tip.Scan.Exact) {
		req.Quiesce = p.a.AppFrequency > 0 && time.Since(p.st.LastApp) >= p.a.AppFrequency
	}
	im.asked = req.Quiesce
	if r.cfg.Group != nil && p.chain() && p.cut && !p.drain && !p.scan {
		im.c, im.group = r.cfg.Group.meet(ctx, r.cfg.Machine, req)
	}
	var err error
	if im.c == nil {
		im.c, err = r.cfg.Source.BeginCut(ctx, req)
	}
	if lost(err) && req.Base != "" {
		r.cfg.Log.Warn("change tracking was lost", "err", err)
		if err := r.trackingLost(err); err != nil {
			return nil, err
		}
		return nil, errReplan
	}
	if dr.CodeOf(err) == dr.CodeNotFound {
		if again, cerr := r.findAbsent(ctx, p.a); cerr != nil {
			return nil, cerr
		} else if again {
			return nil, errReplan
		}
	}
	if err != nil {
		return nil, err
	}
	im.info, im.open = im.c.Info(), true
	im.until = p.began.Add(r.cfg.HoldLimit)
	if p.chain() && (p.st.Tip.Scan == nil || p.st.Tip.Scan.Exact) {
		// Deltas go on meanwhile: half of a cycle is theirs.
		im.until = p.began.Add(min(r.cfg.HoldLimit, max(p.a.CopyFrequency/2, 2*time.Second)))
	}
	return im, nil
}

// errReplan says that what was found out makes another plan necessary.
var errReplan = errors.New("the plan has to be made again")

// lost reports whether an error says that the base token is of no use.
func lost(err error) bool {
	switch dr.CodeOf(err) {
	case dr.CodeTrackingLost, dr.CodeDiskChangedOffline, dr.CodeVMReverted, dr.CodeDiskReplaced, dr.CodeHostCrash:
		return true
	}
	return false
}

// findAbsent notes which assigned disks the VM does not have, and reports whether that is news.
func (r *Replicator) findAbsent(ctx context.Context, a Assignment) (bool, error) {
	c, err := r.cfg.Source.Config(ctx, a.VM)
	if err != nil {
		return false, err
	}
	return r.noteAbsent(c, a), nil
}

func (r *Replicator) noteAbsent(c hypervisor.VMConfig, a Assignment) (news bool) {
	if len(c.VM.Disks) == 0 {
		return false
	}
	absent := map[string]bool{}
	for _, id := range a.Disks {
		if !slices.ContainsFunc(c.VM.Disks, func(d dr.Disk) bool { return d.ID == id }) {
			absent[id] = true
			news = news || !r.absent[id]
		}
	}
	r.absent = absent
	return news
}

// disk returns what the image says of a disk.
func (im *image) disk(id string) hypervisor.CutDisk {
	for _, d := range im.info.Disks {
		if d.ID == id {
			return d
		}
	}
	return hypervisor.CutDisk{}
}

// adjust takes in what the image says of the disks: sizes, and whose history is lost.
func (im *image) adjust() error {
	r := im.r
	refused := map[string]refusal{}
	whole := map[uint16]string{} // disks of the chain that have to be compared
	for i := range im.live {
		d := &im.live[i]
		x := im.disk(d.ID)
		if x.Size < d.Size {
			refused[d.ID] = refusal{dr.CodeDiskShrunk, fmt.Sprintf("disk %s has shrunk from %d to %d bytes", d.ID, d.Size, x.Size)}
			continue
		}
		if sc := im.st.Tip.Scan; x.Whole || !im.info.Incremental {
			if next, ok := sc.next(d.Index); !ok || next > 0 || sc.Exact {
				whole[d.Index] = x.Why
			}
		}
		d.Size = x.Size
	}
	switch {
	case len(refused) > 0:
		return errors.Join(r.refuse(refused), errReplan)
	case len(whole) > 0:
		return errors.Join(r.disksLost(whole), errReplan)
	}
	return im.adjustFill()
}

// prepare opens the filters, and the log of disks being filled, and notes what
// changed in tiles that are sent.
func (im *image) prepare(ctx context.Context) error {
	r := im.r
	entries, err := r.spool.List()
	if err != nil {
		return err
	}
	for _, d := range im.live {
		t, err := r.table(d)
		if err != nil {
			return err
		}
		im.tables[d.Index] = t
		if err := align(d.Index, t, im.st.Tip.Ref, entries); err != nil {
			return err
		}
		if !t.Usable(im.st.Tip.Ref) {
			if err := t.Reset(false); err != nil {
				return err
			}
			if err := im.filterLost(d.Index); err != nil {
				return err
			}
		}
	}
	if len(im.fill) == 0 {
		return nil
	}
	return im.prepareFill(ctx)
}

// table opens the filter of a disk.
func (r *Replicator) table(d cut.Disk) (*filter.Table, error) {
	dir := r.path("filter")
	if err := mkdir(dir); err != nil {
		return nil, err
	}
	return filter.Open(filepath.Join(dir, strconv.Itoa(int(d.Index))), d.Size)
}

// align brings a table at an older position of the spool to the tip by the updates that it missed.
func align(index uint16, t *filter.Table, tip cut.Ref, entries []*spool.Entry) error {
	for _, e := range entries {
		if t.Usable(tip) {
			return nil
		}
		if t.Usable(e.From(index)) {
			if err := e.Apply(index, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepToken makes the image's token the one that the next round goes on from,
// while no disk is in the chain. Changes before it are noted.
func (im *image) keepToken() error {
	err := im.r.change(func(s *state) error {
		if s.Fill != nil {
			s.Fill.Token = im.info.Token
		}
		return nil
	})
	if err != nil {
		return err
	}
	im.kept = true
	return im.r.step("initial.begun")
}

// release ends the frozen image. A crash ends nothing.
func (im *image) release(ctx context.Context, failed error) error {
	if !im.open || errors.Is(failed, errCrash) {
		return nil
	}
	im.open = false
	if im.kept {
		return im.c.End(context.WithoutCancel(ctx))
	}
	// The base token stays good, so a failed cut costs nothing.
	return im.c.Abort(context.WithoutCancel(ctx))
}

// close closes the filters and the log.
func (im *image) close() error {
	var err error
	for _, t := range im.tables {
		err = errors.Join(err, t.Close())
	}
	if im.log != nil {
		err = errors.Join(err, im.log.Close())
	}
	return err
}

// stopBulk reports whether comparing or sending has to stop at this tile:
// the window closed, the image was held long enough, or people want something else.
func (im *image) stopBulk(held bool) bool {
	now := time.Now()
	if !im.closes.IsZero() && !now.Before(im.closes) && !im.drain {
		return true
	}
	if held && now.After(im.until) {
		return true
	}
	a, _ := im.r.assignment()
	return im.r.paused(a, now) && !im.drain || a.Gen != im.a.Gen || a.InitialCancelled && im.st.Tip.Ref.IsZero() || a.ResyncRequest != im.a.ResyncRequest
}

// makeCut seals what changed, and compares tiles of a resynchronization. It
// reports whether another cut is due at once.
func (im *image) makeCut(ctx context.Context) (more bool, err error) {
	r := im.r
	config, err := r.cfg.Source.Config(ctx, im.a.VM)
	if err != nil {
		return false, err
	}
	b, err := im.newBuild()
	if err != nil {
		return false, err
	}
	sealed := false
	defer func() {
		if !sealed {
			b.s.Abandon(errors.Is(err, errCrash))
		}
	}()
	for _, d := range im.live {
		if err := b.readDisk(ctx, d); err != nil {
			return false, err
		}
	}
	for _, d := range b.taken {
		if err := b.takeOver(ctx, d); err != nil {
			return false, err
		}
	}
	if err := r.step("cut.read"); err != nil {
		return false, err
	}
	held := time.Since(im.began)
	if !im.send {
		// The frozen image is not needed any more; its token is, once the entry is durable.
		if err := im.c.End(ctx); err != nil {
			return false, err
		}
		held = time.Since(im.began)
		if err := r.step("cut.ended"); err != nil {
			return false, err
		}
	}
	e, after, err := b.seal(config, held)
	if err != nil {
		return false, err
	}
	sealed, im.kept = true, true
	if err := r.advance(e, after, im.tables, im.asked); err != nil {
		return false, err
	}
	r.noteAbsent(config, im.a)
	r.showCut(im, e)
	return e.Seed || im.scan && after.Scan != nil, nil
}

// advance makes the entry the chain's tip, brings the filters there and wakes the shipper.
func (r *Replicator) advance(e *spool.Entry, after position, tables map[uint16]*filter.Table, quiesced bool) error {
	err := r.change(func(s *state) error {
		s.setTip(after)
		if quiesced {
			s.LastApp = e.Time
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.step("tip.saved"); err != nil {
		return err
	}
	for _, d := range after.Disks {
		if t := tables[d.Index]; t != nil {
			// A table that knows nothing is at no position and gets there all the same.
			if err := e.Apply(d.Index, t); err != nil {
				return err
			}
		}
	}
	if err := r.step("filter.applied"); err != nil {
		return err
	}
	r.set(func(s *Status) { s.Cycles++ })
	r.tipAt = e.Time
	r.enqueue(e)
	return nil
}

// tipOf reads the position that an entry leads to.
func tipOf(e *spool.Entry) (position, error) {
	var p position
	if err := json.Unmarshal(e.After, &p); err != nil || p.Ref != e.Ref {
		return p, dr.Errorf(dr.KindCorrupt, "capture.spool", "spool entry of cut %d has no position: %w", e.Ref.N, err)
	}
	return p, nil
}
