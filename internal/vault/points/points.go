// Package points is what a vault knows of recovery points beyond the catalogue:
// which ones retention keeps and why, what people call them, which are held, and
// since when a machine's data looks encrypted.
//
// It promises that a point which it lists is one that the rules of retention
// keep, so that nobody chooses a point that maintenance is about to fold; that
// a named or held point, one that a serving reads, and the last good one before
// an open alarm are kept whatever their age. Names and holds are in the database
// only: the store alone does not know them, except that held points are not folded.
package points

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/store"
	"holdfast/internal/vault/anomaly"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

const docAnomaly = "anomaly"

// maxRanges is how many past alarms of an item are remembered.
const maxRanges = 16

// maxName is the greatest length of a point's name, bytes.
const maxName = 100

// Anomaly is an alarm: an item's data looks encrypted.
type Anomaly struct {
	Since     string    // first recovery point that does
	SinceTime time.Time // of its cut
	Good      string    // last one before it, held while the alarm is open; empty = none
	GoodTime  time.Time
	Why       string // figures
	Raised    time.Time
}

// anomalyDoc is the durable form of what is known of an item.
type anomalyDoc struct {
	State anomaly.State `json:"state"`
	Open  *alarmDoc     `json:"open,omitempty"`
	Past  []rangeDoc    `json:"past,omitempty"`
}

type alarmDoc struct {
	Since  anomaly.Mark `json:"since"`
	Good   anomaly.Mark `json:"good,omitzero"`
	Why    string       `json:"why"`
	Raised time.Time    `json:"raised"`
}

type rangeDoc struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

func (d anomalyDoc) alarm() *Anomaly {
	if d.Open == nil {
		return nil
	}
	return &Anomaly{Since: d.Open.Since.Point, SinceTime: d.Open.Since.Time, Good: d.Open.Good.Point, GoodTime: d.Open.Good.Time, Why: d.Open.Why, Raised: d.Open.Raised}
}

func (d anomalyDoc) suspect(n uint64) bool {
	return d.Open != nil && n >= d.Open.Since.N || slices.ContainsFunc(d.Past, func(r rangeDoc) bool { return r.From <= n && n <= r.To })
}

// Detail is a recovery point with what is known of it.
type Detail struct {
	dr.RecoveryPoint
	Label    string // what people call it
	Held     bool   // somebody wants it kept
	By       string // who named or held it
	Keep     string // why retention keeps it: newest, fine, hourly, daily, or the reason of a hold
	Suspect  bool   // looks encrypted: it was made while an alarm was open
	Group    dr.GroupID
	GroupSeq uint64
}

// Catalogue is the vault's view on recovery points. It is safe for concurrent use.
type Catalogue struct {
	st *state.State
}

// New makes a Catalogue; it does no I/O.
func New(st *state.State) *Catalogue { return &Catalogue{st: st} }

// Rules are the rules of retention of an item: its policy's, and what is held
// with the reason for it. Points of a consistency group's instants are chosen
// like all others: the members' points of an instant have the same time and
// usually the same consistency, so the same ones are kept, but nothing forces that.
func (c *Catalogue) Rules(ctx context.Context, q sqldb.Querier, it vaultdb.Item) (compact.Rules, error) {
	p, err := vaultdb.PolicyByID(ctx, q, it.Policy)
	if err != nil {
		return compact.Rules{}, err
	}
	rules := compact.RulesOf(p)
	rules.Held = map[string]string{}
	labels, err := vaultdb.Labels(ctx, q, it.Machine)
	if err != nil {
		return rules, err
	}
	for _, l := range labels {
		why := "held by " + l.By
		if !l.Held {
			why = "named by " + l.By
		}
		rules.Held[dr.PointName(l.Gen, l.N)] = why
	}
	d, err := vaultdb.Doc[anomalyDoc](ctx, q, it.ID, docAnomaly)
	if err != nil {
		return rules, err
	}
	if d.Open != nil && d.Open.Good.Point != "" {
		rules.Held[d.Open.Good.Point] = "last good point before the data looked encrypted"
	}
	servings, err := vaultdb.Servings(ctx, q, it.ID)
	if err != nil {
		return rules, err
	}
	for _, s := range servings {
		rules.Held[dr.PointName(s.Gen, s.N)] = "in use by a " + string(s.Kind) + " failover"
	}
	if it.FailedOverTo != "" {
		rules.Held[it.FailedOverTo] = "failed over to it"
	}
	return rules, nil
}

// kept reads an item's points that retention keeps, newest first, with the reasons.
func (c *Catalogue) kept(ctx context.Context, q sqldb.Querier, it vaultdb.Item) (kept []vaultdb.Point, why []string, rules compact.Rules, err error) {
	if rules, err = c.Rules(ctx, q, it); err != nil {
		return nil, nil, rules, err
	}
	rows, err := vaultdb.Points(ctx, q, it.Machine, 0)
	if err != nil {
		return nil, nil, rules, err
	}
	reasons := keep(rules, rows, c.st.Now())
	for i, r := range rows {
		if reasons[i] != "" {
			kept, why = append(kept, r), append(why, reasons[i])
		}
	}
	return kept, why, rules, nil
}

// keep is Rules.Keep for rows that are newest first.
func keep(rules compact.Rules, rows []vaultdb.Point, now time.Time) []string {
	all := make([]dr.RecoveryPoint, len(rows))
	for i, r := range rows {
		all[len(rows)-1-i] = r.RecoveryPoint
	}
	why := rules.Keep(all, now)
	slices.Reverse(why)
	return why
}

// Points lists an item's recovery points, newest first, without those that have expired.
func (c *Catalogue) Points(ctx context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error) {
	it, err := vaultdb.ItemByID(ctx, c.st.Q(), id)
	if err != nil {
		return nil, state.Outward(err)
	}
	rows, _, _, err := c.kept(ctx, c.st.Q(), it)
	out := make([]dr.RecoveryPoint, len(rows))
	for i, r := range rows {
		out[i] = r.RecoveryPoint
	}
	return out, state.Outward(err)
}

// PointDetails is Points with all that is known of them.
func (c *Catalogue) PointDetails(ctx context.Context, id dr.ItemID) ([]Detail, error) {
	it, err := vaultdb.ItemByID(ctx, c.st.Q(), id)
	if err != nil {
		return nil, state.Outward(err)
	}
	rows, why, _, err := c.kept(ctx, c.st.Q(), it)
	if err != nil {
		return nil, state.Outward(err)
	}
	labels, err := vaultdb.Labels(ctx, c.st.Q(), it.Machine)
	if err != nil {
		return nil, state.Outward(err)
	}
	d, err := vaultdb.Doc[anomalyDoc](ctx, c.st.Q(), id, docAnomaly)
	if err != nil {
		return nil, state.Outward(err)
	}
	named := map[string]vaultdb.Label{}
	for _, l := range labels {
		named[dr.PointName(l.Gen, l.N)] = l
	}
	out := make([]Detail, len(rows))
	for i, r := range rows {
		l := named[r.Name()]
		out[i] = Detail{RecoveryPoint: r.RecoveryPoint, Label: l.Name, Held: l.Held, By: l.By, Keep: why[i], Suspect: d.suspect(r.N), Group: r.Group, GroupSeq: r.GroupSeq}
	}
	return out, nil
}

// Resolve finds a recovery point by what a caller asks for: "" or "Latest" and
// "LatestProcessed" (the same here: a point that is listed needs no more
// processing), "LatestApplicationConsistent", "LatestCrashConsistent" (any), a
// name, or an id that ends in a name. A point that has expired is refused like
// one that does not exist.
func (c *Catalogue) Resolve(ctx context.Context, q sqldb.Querier, it vaultdb.Item, want string) (vaultdb.Point, error) {
	name := strings.ToLower(want[strings.LastIndexByte(want, '/')+1:])
	if name == "" || name == "latest" || name == "latestprocessed" || name == "latestcrashconsistent" {
		return vaultdb.LatestPoint(ctx, q, it.Machine, "")
	}
	rows, _, _, err := c.kept(ctx, q, it)
	if err != nil {
		return vaultdb.Point{}, err
	}
	if name == "latestapplicationconsistent" {
		for _, r := range rows {
			if r.Consistency == dr.AppConsistent {
				return r, nil
			}
		}
		return vaultdb.Point{}, dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "vault.Resolve", "%s has no application-consistent recovery point", it.VMName)
	}
	g, n, err := dr.ParsePointName(name)
	if err != nil {
		return vaultdb.Point{}, err
	}
	p, err := vaultdb.PointByNumber(ctx, q, it.Machine, g, n)
	if err != nil {
		return p, err
	}
	if !slices.ContainsFunc(rows, func(r vaultdb.Point) bool { return r.Gen == p.Gen && r.N == p.N }) {
		return p, dr.New(dr.KindNotFound, dr.CodeNotFound, "vault.Resolve", "recovery point %s of %s, of %s, is past its retention", p.Name(), it.VMName, p.Time.Format(time.RFC3339)).
			WithHint("choose a point that is listed; name or hold points that shall be kept longer")
	}
	return p, nil
}

// NamePoint gives a recovery point a name, or holds it, or both: then retention
// keeps it. Without name and hold it is an ordinary point again.
func (c *Catalogue) NamePoint(ctx context.Context, id dr.ItemID, point, name string, hold bool, by string) error {
	const op = "vault.NamePoint"
	name = strings.TrimSpace(name)
	if len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		return dr.New(dr.KindInvalid, dr.CodeNameInvalid, op, "the name of a recovery point is one line of at most %d bytes", maxName)
	}
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		p, err := c.Resolve(ctx, tx, it, point)
		if err != nil {
			return err
		}
		labels, err := vaultdb.Labels(ctx, tx, it.Machine)
		if err != nil {
			return err
		}
		for _, l := range labels {
			if name != "" && vaultdb.Key(l.Name) == vaultdb.Key(name) && (l.Gen != p.Gen || l.N != p.N) {
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "recovery point %s of %s has the name %q already", dr.PointName(l.Gen, l.N), it.VMName, l.Name)
			}
		}
		l := vaultdb.Label{Machine: it.Machine, Gen: p.Gen, N: p.N, Name: name, Held: hold, By: by, At: c.st.Now()}
		if err := vaultdb.SaveLabel(ctx, tx, l); err != nil {
			return err
		}
		c.st.Changed(tx, "item", string(id))
		what := "is an ordinary point again"
		switch {
		case name != "" && hold:
			what = "is held and named \"" + name + "\""
		case name != "":
			what = "is named \"" + name + "\""
		case hold:
			what = "is held"
		}
		return c.st.Note(ctx, tx, vaultdb.Event{Kind: "point", Item: id, By: by, Audit: true}, "recovery point %s of %s %s", p.Name(), it.VMName, what)
	})
}

// Listed looks at a point that has just been listed for signs of encryption.
func (c *Catalogue) Listed(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, cut store.CutInfo) error {
	m := cut.Commit
	if cut.IsRun() || m.Resync || m.Base || m.Seed {
		return nil
	}
	d, err := vaultdb.Doc[anomalyDoc](ctx, tx, it.ID, docAnomaly)
	if err != nil {
		return err
	}
	var f *anomaly.Finding
	d.State, f = d.State.Observe(anomaly.Sample{Point: dr.PointName(cut.Gen, cut.N), N: cut.N, Time: m.Time, Data: m.Stats.DataBytes, Incompressible: m.Stats.IncompressibleBytes})
	if f != nil && d.Open == nil {
		d.Open = &alarmDoc{Since: f.Since, Good: f.Good, Why: f.Why, Raised: c.st.Now()}
		c.st.Changed(tx, "item", string(it.ID))
		if err := c.st.Note(ctx, tx, vaultdb.Event{Kind: "anomaly", Item: it.ID, By: "vault"}, "%s", alarmText(it.VMName, d.alarm())); err != nil {
			return err
		}
	}
	return vaultdb.SaveDoc(ctx, tx, it.ID, docAnomaly, d, c.st.Now())
}

func alarmText(vm string, a *Anomaly) string {
	text := vm + " looks encrypted since recovery point " + a.Since + " of " + a.SinceTime.Format("2006-01-02 15:04:05 MST")
	if a.Good != "" {
		text += "; the last good point is " + a.Good + " of " + a.GoodTime.Format("2006-01-02 15:04:05 MST")
	}
	return text + ": " + a.Why + "."
}

// Anomaly returns an item's open alarm, nil if there is none.
func (c *Catalogue) Anomaly(ctx context.Context, id dr.ItemID) (*Anomaly, error) {
	d, err := vaultdb.Doc[anomalyDoc](ctx, c.st.Q(), id, docAnomaly)
	return d.alarm(), state.Outward(err)
}

// AcknowledgeAnomaly ends an item's alarm: somebody has looked, and what the
// guest does is all right or has been dealt with. What is usual is learned anew; the
// points since the alarm stay marked, the last good one before it is no longer held.
func (c *Catalogue) AcknowledgeAnomaly(ctx context.Context, id dr.ItemID, by string) error {
	return c.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		d, err := vaultdb.Doc[anomalyDoc](ctx, tx, id, docAnomaly)
		if err != nil {
			return err
		}
		if d.Open == nil {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "vault.AcknowledgeAnomaly", "%s has no alarm to acknowledge", it.VMName)
		}
		d.Past = append(d.Past, rangeDoc{d.Open.Since.N, d.State.Last.N})
		d.Past = d.Past[max(0, len(d.Past)-maxRanges):]
		d.State, d.Open = d.State.Accept(), nil
		c.st.Changed(tx, "item", string(id))
		if err := c.st.Note(ctx, tx, vaultdb.Event{Kind: "anomaly", Item: id, By: by, Audit: true}, "the alarm that %s looks encrypted was acknowledged", it.VMName); err != nil {
			return err
		}
		return vaultdb.SaveDoc(ctx, tx, id, docAnomaly, d, c.st.Now())
	})
}

// Reasons returns the reason for an item's health that each open alarm is.
func (c *Catalogue) Reasons(ctx context.Context, names map[dr.ItemID]string) (map[dr.ItemID][]dr.HealthError, error) {
	docs, err := vaultdb.Docs[anomalyDoc](ctx, c.st.Q(), docAnomaly)
	out := map[dr.ItemID][]dr.HealthError{}
	e, _ := dr.Lookup(dr.CodeAnomaly)
	for id, d := range docs {
		if a := d.alarm(); a != nil {
			out[id] = []dr.HealthError{{Code: dr.CodeAnomaly, Severity: e.Severity, Message: alarmText(names[id], a), Cause: e.Cause, Remedy: e.Remedy, Since: a.Raised}}
		}
	}
	return out, state.Outward(err)
}
