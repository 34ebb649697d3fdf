// Package replication is what the vault asks of source agents about running
// replications, and what they answer: pauses, requests to try or to
// resynchronize now, the state that they report, and the statistics of the
// monitoring interval.
//
// It promises that an item shows why a resynchronization is due from the
// moment that the agent or the vault itself finds out until it is done, that a
// pause with an end ends by itself, also when the agent does not know of it,
// and that every change somebody asked for is in the event log.
package replication

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/store"
	"holdfast/internal/vault/health"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// MaxReason is the greatest length of the reason of a pause, bytes.
const MaxReason = 500

// PauseRequest pauses an item's replication or lets it go on.
type PauseRequest struct {
	Paused   bool
	Reason   string    // for people; at most MaxReason bytes
	ResumeAt time.Time // when it goes on by itself; zero = when somebody says so
	By       string
}

// ResyncOptions says how a resynchronization is made.
type ResyncOptions struct {
	Full bool // send everything again instead of comparing with what is stored
}

// Control is the vault's side of running replications. It is safe for concurrent use.
type Control struct {
	st     *state.State
	reopen Reopen
}

// Reopen gives the writer of a locked item a new generation, soon.
type Reopen func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, why string) error

// New makes a Control; it does no I/O. reopen is called when an agent has lost
// its state of a machine.
func New(st *state.State, reopen Reopen) *Control { return &Control{st: st, reopen: reopen} }

// Pause stops the cycles of an item, a running resynchronization or initial
// replication too, or lets them go on where they were. Tracking goes on
// meanwhile. Pausing again changes reason and end.
func (c *Control) Pause(ctx context.Context, id dr.ItemID, r PauseRequest) error {
	const op = "vault.Pause"
	r.Reason = strings.TrimSpace(r.Reason)
	switch {
	case len(r.Reason) > MaxReason:
		return dr.Errorf(dr.KindInvalid, op, "the reason has %d bytes, at most %d are kept", len(r.Reason), MaxReason)
	case r.Paused && !r.ResumeAt.IsZero() && !r.ResumeAt.After(c.st.Now()):
		return dr.Errorf(dr.KindInvalid, op, "the pause would end at %s, which has passed", r.ResumeAt.Format(time.RFC3339)).
			WithHint("choose a later time, or none: then the pause lasts until somebody ends it")
	}
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		return c.pause(ctx, tx, it, r)
	})
}

func (c *Control) pause(ctx context.Context, tx *sql.Tx, it vaultdb.Item, r PauseRequest) error {
	if !r.Paused {
		r.Reason, r.ResumeAt = "", time.Time{}
	}
	if it.Paused == r.Paused && it.More.PauseReason == r.Reason && it.More.ResumeAt.Equal(r.ResumeAt) {
		return nil
	}
	it.Paused, it.More.PauseReason, it.More.ResumeAt = r.Paused, r.Reason, r.ResumeAt.UTC()
	if r.ResumeAt.IsZero() {
		it.More.ResumeAt = time.Time{}
	}
	if err := c.st.SaveItem(ctx, tx, it); err != nil {
		return err
	}
	text := "replication of " + it.VMName + " goes on"
	if r.Paused {
		text = "replication of " + it.VMName + " is paused"
		if !r.ResumeAt.IsZero() {
			text += " until " + r.ResumeAt.Format("2006-01-02 15:04 MST")
		}
		if r.Reason != "" {
			text += ": " + r.Reason
		}
	}
	return c.st.Note(ctx, tx, vaultdb.Event{Kind: "pause", Item: it.ID, By: r.By, Audit: true}, "%s", text)
}

// RetryNow lets the source agent try at once what waits to be tried again, and
// an initial replication or resynchronization begin outside its window.
func (c *Control) RetryNow(ctx context.Context, id dr.ItemID, by string) error {
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		if it.Paused {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.RetryNow", "replication of %s is paused", it.VMName).WithHint("resume it")
		}
		it.More.RetryNow = state.NewID()
		if err := c.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "retryNow", Item: id, By: by, Audit: true}, "what waits in the replication of %s is to be tried now", it.VMName)
	})
}

// Request fills in what makes the source agent resynchronize now.
func Request(it *vaultdb.Item, o ResyncOptions) {
	it.ResyncRequest, it.More.ResyncReason, it.More.ResyncFull = state.NewID(), "", o.Full
	if o.Full {
		it.More.Full = it.ResyncRequest
	}
	if it.More.Want != nil {
		w := *it.More.Want
		w.Asked = true
		it.More.Want = &w
	}
}

// Want records that the vault itself found a resynchronization to be due. It
// begins when the item's policy says, see Due. A reason that is known already
// stays, but becomes full if this one is.
func (c *Control) Want(ctx context.Context, id dr.ItemID, w vaultdb.Want) error {
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		if old := it.More.Want; old != nil && (old.Full || !w.Full) {
			return nil
		}
		w.At, w.Asked, w.Seen = c.st.Now(), false, false
		it.More.Want = &w
		if it.Resync == "" {
			it.Resync = w.Text
		}
		if err := c.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "vault"}, "%s needs a resynchronization: %s", it.VMName, w.Text)
	})
}

// Due ends pauses whose time has come and asks for the resynchronizations that
// the vault wants and that may begin now.
func (c *Control) Due(ctx context.Context, it vaultdb.Item, p dr.Policy) error {
	now := c.st.Now()
	resume := func(it vaultdb.Item) bool {
		return it.Paused && !it.More.ResumeAt.IsZero() && !it.More.ResumeAt.After(now)
	}
	ask := func(it vaultdb.Item) bool {
		w := it.More.Want
		return w != nil && !w.Asked && !it.Paused && it.Protection == dr.Protected && !opens(p, now).After(now) && p.ResyncAuto != dr.ResyncManual
	}
	if !resume(it) && !ask(it) {
		return nil
	}
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, it.ID)
		if err != nil {
			return err
		}
		if resume(it) {
			return c.pause(ctx, tx, it, PauseRequest{By: "vault"})
		}
		if !ask(it) {
			return nil
		}
		Request(&it, ResyncOptions{Full: it.More.Want.Full})
		it.More.ResyncReason = it.More.Want.Code
		if err := c.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "vault"}, "a resynchronization of %s was asked for: %s", it.VMName, it.More.Want.Text)
	})
}

// opens is when a policy lets a resynchronization begin by itself, now at the earliest.
func opens(p dr.Policy, now time.Time) time.Time {
	if p.ResyncAuto == dr.ResyncNow {
		return now
	}
	return p.ResyncWindow.Next(now.Local())
}

// Overlay adds to an agent's status what the vault itself wants.
func Overlay(st *dr.ReplicationStatus, it vaultdb.Item, p dr.Policy, now time.Time) {
	w := it.More.Want
	if w == nil || st.ResyncReason != "" {
		return
	}
	st.ResyncReason = w.Code
	if p.ResyncAuto != dr.ResyncManual && !w.Asked {
		if at := opens(p, now); at.After(now) {
			st.NextResync = at
		}
	}
}

// Status returns what an item's source agent last said, with the time of the
// newest recovery point and what the vault itself wants.
func (c *Control) Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error) {
	r, err := c.Report(ctx, id)
	return r.ReplicationStatus, err
}

// Report is Status with what the agent says beside it.
func (c *Control) Report(ctx context.Context, id dr.ItemID) (vaultdb.Report, error) {
	r, err := vaultdb.Status(ctx, c.st.Q(), id)
	if err != nil {
		return r, state.Outward(err)
	}
	it, err := vaultdb.ItemByID(ctx, c.st.Q(), id)
	if dr.KindOf(err) == dr.KindNotFound {
		return r, nil
	}
	if err != nil {
		return r, state.Outward(err)
	}
	p, err := vaultdb.PolicyByID(ctx, c.st.Q(), it.Policy)
	if err != nil {
		return r, state.Outward(err)
	}
	Overlay(&r.ReplicationStatus, it, p, c.st.Now())
	return r, nil
}

// ReportStatus takes the state of an agent's replications. Lines for machines or
// generations that are not the agent's are ignored: they are late.
func (c *Control) ReportStatus(ctx context.Context, agent dr.AgentID, r agentapi.StatusRequest) error {
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		for _, s := range r.Items {
			it, err := vaultdb.ItemByMachine(ctx, tx, dr.MachineID(s.Machine))
			if dr.KindOf(err) == dr.KindNotFound {
				continue
			}
			if err != nil {
				return err
			}
			if it.SourceAgent != agent || it.Gen != dr.Generation(s.Generation) {
				continue
			}
			if err := c.take(ctx, tx, it, s); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Control) take(ctx context.Context, tx *sql.Tx, it vaultdb.Item, s agentapi.ItemStatus) error {
	now := c.st.Now()
	old, err := vaultdb.Status(ctx, tx, it.ID)
	if err != nil {
		return err
	}
	st := toReport(s, now)
	if err := vaultdb.SaveStatus(ctx, tx, it.ID, st); err != nil {
		return err
	}
	if err := c.countReport(ctx, tx, it.ID, old, st); err != nil {
		return err
	}
	c.st.Changed(tx, "item", string(it.ID))
	if err := c.lost(ctx, tx, it, s); err != nil {
		return err
	}
	reason, want := resyncOf(it, s)
	if reason == it.Resync && want == it.More.Want {
		return nil
	}
	if it, err = vaultdb.LockItem(ctx, tx, it.ID); err != nil {
		return err
	}
	reason, it.More.Want = resyncOf(it, s)
	if reason != it.Resync {
		if err := c.noteResync(ctx, tx, it, reason); err != nil {
			return err
		}
	}
	it.Resync = reason
	return vaultdb.UpdateItem(ctx, tx, it)
}

// lost notices an agent that begins from nothing in a generation that has points
// already: it has lost its state of the machine. In a new generation it goes on
// from the last point, and what it finds to be the same is not sent again.
func (c *Control) lost(ctx context.Context, tx *sql.Tx, it vaultdb.Item, s agentapi.ItemStatus) error {
	if s.Phase != "initialReplication" || !s.LastPoint.IsZero() || it.Protection != dr.Protected || it.More.Reopen != "" || it.Job != "" {
		return nil
	}
	p, err := vaultdb.LatestPoint(ctx, tx, it.Machine, "")
	if dr.CodeOf(err) == dr.CodeNoRecoveryPoint {
		return nil
	}
	if err != nil || p.Gen != it.Gen {
		return err
	}
	if it, err = vaultdb.LockItem(ctx, tx, it.ID); err != nil {
		return err
	}
	return c.reopen(ctx, tx, &it, "its agent has lost its state of the machine")
}

// resyncOf is the reason that the item shows, and what the vault wants on,
// after the agent has said what it is at.
func resyncOf(it vaultdb.Item, s agentapi.ItemStatus) (reason string, want *vaultdb.Want) {
	reason, want = s.Resync, it.More.Want
	if reason == "" && s.ResyncCode != "" {
		e, ok := dr.Lookup(dr.Code(s.ResyncCode))
		if reason = e.Title; !ok {
			reason = state.Clip(s.ResyncCode)
		}
	}
	switch {
	case want == nil:
	case reason != "" && !want.Seen && want.Asked:
		w := *want
		w.Seen = true
		want = &w
	case reason == "" && want.Seen:
		want = nil
	case reason == "":
		reason = want.Text
	}
	return reason, want
}

func (c *Control) noteResync(ctx context.Context, tx *sql.Tx, it vaultdb.Item, reason string) error {
	if reason == "" {
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "resynchronization of %s is complete", it.VMName)
	}
	return c.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "%s needs a resynchronization: %s", it.VMName, state.Clip(reason))
}

// Committed counts a point that has just been listed, and ends what the vault
// wanted if the point fulfils it. The disks that the history has listed are kept
// note of, for who takes it over. announced says that its agent has just told of
// it: then the time until now is how long sending took.
func (c *Control) Committed(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, cut store.CutInfo, announced bool) error {
	if w := it.More.Want; w != nil && w.Asked && (cut.Commit.Resync || cut.Commit.Base) && (!w.Full || cut.Commit.Base) && cut.Commit.Time.After(w.At) {
		if it.Resync == w.Text {
			it.Resync = ""
		}
		it.More.Want = nil
		if err := c.st.Note(ctx, tx, vaultdb.Event{Kind: "resync", Item: it.ID, By: "agent"}, "resynchronization of %s is complete: %s", it.VMName, dr.PointName(cut.Gen, cut.N)); err != nil {
			return err
		}
		if err := c.st.SaveItem(ctx, tx, *it); err != nil {
			return err
		}
	}
	if err := noteDisks(ctx, tx, it, cut, c.st.Now()); err != nil {
		return err
	}
	return c.countPoint(ctx, tx, it, cut, announced)
}

// noteDisks keeps the list of all disks that an item's history ever listed: the
// number of one is never given to another.
func noteDisks(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, cut store.CutInfo, now time.Time) error {
	have, err := vaultdb.Doc[[]vaultdb.Disk](ctx, tx, it.ID, replica.DocDisks)
	if err != nil {
		return err
	}
	if next := replica.MergeDisks(have, cut.Commit.Disks); !slices.Equal(next, have) {
		return vaultdb.SaveDoc(ctx, tx, it.ID, replica.DocDisks, next, now)
	}
	return nil
}

func toReport(s agentapi.ItemStatus, now time.Time) vaultdb.Report {
	r := vaultdb.Report{NextInitial: s.NextInitial, Attempt: s.Attempt, RetryAt: s.RetryAt, SentBytes: s.SentBytes, CutDisks: s.Disks}
	r.ReplicationStatus = dr.ReplicationStatus{Phase: s.Phase, Percent: s.Percent, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal,
		ETA: span(s.ETASeconds), BacklogBytes: s.BacklogBytes, Spooled: s.SpooledBytes, LastCut: s.LastCut, Missed: s.Missed, Cycles: s.Cycles, At: now,
		BacklogRate: rate(s.DirtyRate), ShipRate: rate(s.ShipRate), Converging: dr.Convergence(s.Verdict), BacklogSeconds: span(s.BacklogSeconds),
		ResyncReason: dr.Code(s.ResyncCode), NextResync: s.NextResync, ConsistencyNote: state.Clip(s.ConsistencyNote)}
	if s.Error != nil {
		code := dr.Code(s.Error.Code)
		e, _ := dr.Lookup(code)
		severity := health.Severity(code)
		if e.Retry == dr.NonRecoverable {
			severity = dr.HealthCritical
		}
		remedy := s.Error.Hint
		if remedy == "" {
			remedy = e.Remedy
		}
		r.Err = &dr.HealthError{Code: code, Severity: severity, Message: s.Error.Message, Cause: e.Cause, Remedy: remedy, Since: s.Since}
	}
	return r
}

// span and rate take an agent's figures, which may be anything.
func span(seconds float64) time.Duration {
	const limit = 10 * 366 * 24 * 3600
	if !(seconds > 0) {
		return 0
	}
	return time.Duration(min(seconds, limit) * float64(time.Second))
}

func rate(perSecond float64) int64 {
	if !(perSecond > 0) {
		return 0
	}
	return int64(min(perSecond, 1<<60))
}
