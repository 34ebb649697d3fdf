package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// resyncOpen says whether tiles may be compared now, when they may if not
// (zero: not by itself), and when that ends.
func (r *Replicator) resyncOpen(a Assignment, st state, now time.Time, drain bool) (open bool, next, closes time.Time) {
	sc := st.Tip.Scan
	switch {
	case drain && !sc.Exact:
		return true, time.Time{}, time.Time{}
	case st.Point.IsZero(): // a seed is compared: that is the initial replication
		return initialOpen(a, false, now)
	case sc.Now || a.ResyncMode == dr.ResyncNow:
		return true, time.Time{}, time.Time{}
	case a.ResyncMode == dr.ResyncManual:
		return false, time.Time{}, time.Time{}
	case sc.Code == dr.CodeTrackingThreshold && !sc.begun() && now.Before(sc.Since.Add(2*a.CopyFrequency)):
		// The deltas may drain the backlog by themselves.
		return false, a.ResyncWindow.Next(sc.Since.Add(2 * a.CopyFrequency)), time.Time{}
	case !a.ResyncWindow.Contains(now):
		return false, a.ResyncWindow.Next(now), time.Time{}
	}
	return true, time.Time{}, a.ResyncWindow.Closes(now)
}

// begun reports whether a tile was compared.
func (s *scan) begun() bool {
	for _, n := range s.Next {
		if n > 0 {
			return true
		}
	}
	return false
}

// demand makes disks be compared from their first tile, for a reason. A reason
// that is there already stays unless the new one is worse.
func (s *state) demand(code dr.Code, reason string, exact bool, disks []cut.Disk) {
	sc := s.Tip.Scan
	if sc == nil || sc.Exact && !exact {
		old := sc
		sc = &scan{Code: code, Reason: reason, Since: time.Now().UTC(), Exact: exact, Next: map[uint16]uint32{}}
		if old != nil {
			sc.Now, sc.Full, sc.Rebase, sc.At, sc.Next = old.Now, old.Full, old.Rebase, old.At, old.Next
		}
		s.Tip.Scan = sc
	}
	for _, d := range disks {
		sc.Next[d.Index] = 0
	}
}

// trackingLost notes that the host has no history since the tip for any disk.
func (r *Replicator) trackingLost(why error) error {
	return r.change(func(s *state) error {
		if len(s.Tip.Disks) == 0 || s.Tip.Token == "" {
			if s.Fill != nil {
				s.Fill.Token = ""
			}
			return nil
		}
		s.Tip.Token = ""
		s.demand(dr.CodeOf(why), why.Error(), false, s.Tip.Disks)
		return nil
	})
}

// disksLost notes that the host has no history since the tip for some disks.
func (r *Replicator) disksLost(why map[uint16]string) error {
	return r.change(func(s *state) error {
		for _, d := range s.Tip.Disks {
			if text, ok := why[d.Index]; ok {
				if text == "" {
					text = "the host has no record of its changes"
				}
				r.cfg.Log.Warn("change tracking of a disk was lost", "disk", d.ID, "why", text)
				s.demand(dr.CodeTrackingLost, fmt.Sprintf("change tracking of disk %s was lost: %s", d.ID, text), false, []cut.Disk{d})
			}
		}
		return nil
	})
}

// refuse leaves disks out until an operator asks for a resynchronization.
func (r *Replicator) refuse(disks map[string]refusal) error {
	return r.change(func(s *state) error {
		if s.Refused == nil {
			s.Refused = map[string]refusal{}
		}
		for id, why := range disks {
			s.Refused[id] = why
			r.cfg.Log.Error("a disk is left out of the recovery points", "disk", id, "why", why.Why)
		}
		return nil
	})
}

// problem is the error that stands for refused and absent disks; nil if there are none.
func (r *Replicator) problem(a Assignment) error {
	st := r.snapshot()
	var all []error
	for _, id := range a.Disks {
		if why, ok := st.Refused[id]; ok {
			all = append(all, dr.New(dr.KindPrecondition, why.Code, "capture.disks", "%s: the recovery points from now on are without it", why.Why).
				WithHint("exclude the disk from replication, or ask for a resynchronization, which sends it as a new disk"))
		}
		if r.absent[id] {
			all = append(all, dr.New(dr.KindNotFound, dr.CodeNotFound, "capture.disks", "the VM has no disk %s any more: the recovery points from now on are without it", id))
		}
	}
	return errors.Join(all...)
}

// filterLost notes that a disk's filter knows nothing: digests have to be those of the tip.
func (im *image) filterLost(index uint16) error {
	if im.st.Tip.Scan == nil || im.st.Tip.Scan.At.IsZero() {
		return nil
	}
	im.st.Tip.Scan.At = cut.Ref{}
	return im.r.change(func(s *state) error {
		if s.Tip.Scan != nil {
			s.Tip.Scan.At = cut.Ref{}
		}
		return nil
	})
}

func (r *Replicator) tablePath(index uint16) string {
	return filepath.Join(r.path("filter"), strconv.Itoa(int(index)))
}

// dropFilters empties what is known of the disks of the chain.
func (r *Replicator) dropFilters() error {
	return os.RemoveAll(r.path("filter"))
}

// follow adopts a new generation or a new request of the assignment.
func (r *Replicator) follow(ctx context.Context, a Assignment) error {
	st := r.snapshot()
	if a.Gen < st.Gen {
		return dr.New(dr.KindFenced, dr.CodeGenerationFenced, "capture.follow", "the assignment has generation %d, this agent has seen %d", a.Gen, st.Gen)
	}
	if a.Gen > st.Gen {
		if err := r.takeover(ctx, a); err != nil {
			return err
		}
	}
	if a.InitialCancelled && st.Tip.Ref.IsZero() {
		if err := r.cancelInitial(ctx, a); err != nil {
			return err
		}
	}
	if a.ResyncRequest == st.Request {
		return nil
	}
	if a.ResyncRequest != "" && (a.ResyncFull || a.ResyncReason != "") {
		// What this host believes of the store is what is doubted.
		if err := r.dropFilters(); err != nil {
			return err
		}
	}
	return r.change(func(s *state) error {
		s.Request = a.ResyncRequest
		if a.ResyncRequest == "" {
			return nil
		}
		s.Refused = nil
		if s.Tip.Ref.IsZero() {
			return nil
		}
		code, reason := a.ResyncReason, "asked for by the vault"
		if code == "" {
			code, reason = dr.CodeResyncRequested, "asked for by an operator"
		} else if e, ok := dr.Lookup(code); ok {
			reason = e.Title
		}
		s.demand(code, reason, !a.ResyncFull, s.Tip.Disks)
		s.Tip.Scan.Now = s.Tip.Scan.Now || a.ResyncReason == "" || a.ResyncFull
		s.Tip.Scan.Full, s.Tip.Scan.Rebase = a.ResyncFull, a.ResyncFull
		if a.ResyncFull || a.ResyncReason != "" {
			s.Tip.Scan.At = cut.Ref{}
		}
		return nil
	})
}

// takeover begins a generation. What is in the spool belongs to the old one
// and is dead; changes since the base are captured again.
func (r *Replicator) takeover(ctx context.Context, a Assignment) error {
	// The shipper must not hold an entry of the old generation.
	if err := r.dropSpool(ctx); err != nil {
		return err
	}
	st := r.snapshot()
	fresh := a.Base.IsZero()
	if fresh && !st.Tip.Ref.IsZero() {
		if err := r.dropFilters(); err != nil {
			return err
		}
	}
	err := r.change(func(s *state) error {
		s.Gen = a.Gen
		s.Retry.Succeeded()
		s.Ship.Succeeded()
		for _, d := range a.BaseDisks {
			s.NextDisk = max(s.NextDisk, d.Index+1)
		}
		switch {
		case !fresh && a.Base == s.Committed.Ref:
			scan := s.Tip.Scan
			s.Tip = s.Committed.copy()
			s.Tip.again(scan)
		case fresh:
			if !st.Tip.Ref.IsZero() {
				s.Fill = nil
			}
			s.Tip, s.Committed, s.Point, s.Refused = position{}, position{}, cut.Ref{}, nil
		default:
			// The replica stands at a cut whose content this agent can't tell from
			// its own history: the difference is found by comparing.
			p := position{Ref: a.Base}
			for _, d := range a.BaseDisks {
				if d.Size > 0 {
					p.Disks = append(p.Disks, d)
				}
			}
			if len(a.BaseDisks) == 0 {
				p.Disks = s.Tip.Disks
			}
			if len(p.Disks) == 0 {
				for i, id := range a.Disks {
					p.Disks = append(p.Disks, cut.Disk{Index: uint16(i), ID: id})
				}
				s.NextDisk = max(s.NextDisk, uint16(len(p.Disks)))
			}
			s.Tip, s.Fill, s.Refused = p, nil, nil
			reason := "the replica goes on from a recovery point that this host does not know"
			if a.Seeded {
				reason = "the replica begins with a seed"
			}
			s.demand(dr.CodeResyncRequired, reason, false, p.Disks)
			s.Committed, s.Point = s.Tip.copy(), a.Base
			if a.Seeded {
				s.Point = cut.Ref{}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	st = r.snapshot()
	r.set(func(s *Status) {
		if s.Gen = a.Gen; s.Committed != st.Point {
			s.Committed, s.LastCut = st.Point, time.Time{}
		}
	})
	return nil
}

// again takes over a resynchronization that was due or ran at a later position:
// what it had compared there is not in this one.
func (p *position) again(later *scan) {
	if p.Scan != nil || later == nil {
		return
	}
	p.Scan = later.clone()
	p.Scan.At = cut.Ref{}
	for _, d := range p.Disks {
		if _, ok := p.Scan.Next[d.Index]; ok {
			p.Scan.Next[d.Index] = 0
		}
	}
}

// look learns how much is pending, marks the item for a resynchronization when
// that is too much, and withdraws the mark when it has drained.
func (r *Replicator) look(ctx context.Context, a Assignment, estimate bool) {
	st := r.snapshot()
	if st.Tip.Ref.IsZero() {
		return
	}
	var total int64
	for _, d := range st.Tip.Disks {
		total += d.Size
	}
	bl := r.backlogOf(a)
	if est, ok := r.cfg.Source.(hypervisor.Estimator); ok && estimate && st.Tip.Token != "" {
		if n, err := est.Estimate(ctx, a.VM, st.Tip.Token); err == nil {
			bl.Correct(n + r.unsent())
		}
	}
	pending := bl.Progress().Bytes
	share := a.ResyncThreshold
	if share == 0 {
		share = dr.DefaultResyncThreshold
	}
	limit := int64(share * float64(total))
	sc := st.Tip.Scan
	switch {
	case total == 0:
	case share > 0 && sc == nil && pending >= limit:
		r.cfg.Log.Warn("too much is pending: a resynchronization is due unless it drains", "pending", pending, "limit", limit)
		r.try(r.change(func(s *state) error {
			if s.Tip.Scan == nil {
				s.demand(dr.CodeTrackingThreshold, fmt.Sprintf("%d bytes of changes are pending, the limit is %.0f %% of %d", pending, share*100, total), true, s.Tip.Disks)
			}
			return nil
		}))
	case sc != nil && sc.Code == dr.CodeTrackingThreshold && !sc.begun() && (share < 0 || pending < limit/2):
		r.cfg.Log.Info("the backlog has drained: no resynchronization is needed")
		r.try(r.change(func(s *state) error {
			if x := s.Tip.Scan; x != nil && x.Code == dr.CodeTrackingThreshold && !x.begun() {
				s.Tip.Scan = nil
			}
			return nil
		}))
	}
}

// try logs an error of something that is tried again anyway.
func (r *Replicator) try(err error) {
	if err != nil {
		r.cfg.Log.Warn("not stored", "err", err)
	}
}
