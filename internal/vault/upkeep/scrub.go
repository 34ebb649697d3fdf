package upkeep

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/pace"
	"holdfast/internal/store"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// maxDamage bounds how many damaged points are kept of a scrub.
const maxDamage = 100

// scrubDoc is the durable form of the last scrub of an item.
type scrubDoc struct {
	At       time.Time   `json:"at,omitzero"` // of the last complete one
	Request  string      `json:"request,omitempty"`
	Objects  int         `json:"objects,omitempty"`
	Bytes    int64       `json:"bytes,omitempty"`
	Points   int         `json:"points,omitempty"`
	Damaged  []damageDoc `json:"damaged,omitempty"` // oldest first, at most maxDamage
	Count    int         `json:"count,omitempty"`   // of all damaged points
	Newest   bool        `json:"newest,omitempty"`  // the newest point is damaged, and so will be the next ones
	Asked    string      `json:"asked,omitempty"`   // first damaged point for which a resynchronization was asked for
	Good     string      `json:"good,omitempty"`    // newest whole point older than all damage
	GoodTime time.Time   `json:"goodTime,omitzero"`

	Failed    int       `json:"failed,omitempty"`
	Code      dr.Code   `json:"code,omitempty"`
	Error     string    `json:"error,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
}

type damageDoc struct {
	Point string    `json:"point"`
	Time  time.Time `json:"time,omitzero"`
	Text  string    `json:"text"`
}

// advice is what to do about damage.
func (d scrubDoc) advice() string {
	if !d.Newest {
		return "The newest point and those that will follow are whole; the damaged ones can't be made good and expire in time. Look at the storage itself."
	}
	if d.Good == "" {
		return "No older point is whole. A resynchronization makes new good ones; look at the storage itself."
	}
	return fmt.Sprintf("Older points are whole up to %s of %s; a resynchronization makes new good ones. Look at the storage itself.", d.Good, d.GoodTime.Format("2006-01-02 15:04 MST"))
}

// reason is why damage matters to the item's health; nil without.
func (d scrubDoc) reason(vm string) *dr.HealthError {
	if d.Count == 0 {
		return nil
	}
	e, _ := dr.Lookup(dr.CodeStoreDamaged)
	severity := dr.HealthCritical
	if !d.Newest {
		severity = dr.HealthWarning
	}
	return &dr.HealthError{Code: dr.CodeStoreDamaged, Severity: severity,
		Message: fmt.Sprintf("A scrub of %s found %d of %d recovery points of %s damaged, first %s: %s.", d.At.Format("2006-01-02 15:04 MST"), d.Count, d.Points, vm, d.Damaged[0].Point, strings.TrimSuffix(d.Damaged[0].Text, ".")),
		Cause:   e.Cause, Remedy: d.advice(), Since: d.At}
}

func (k *Keeper) scrubIfDue(ctx context.Context, it vaultdb.Item) error {
	last, err := vaultdb.Doc[scrubDoc](ctx, k.st.Q(), it.ID, docScrub)
	if err != nil {
		return state.Outward(err)
	}
	req, err := vaultdb.Doc[requestDoc](ctx, k.st.Q(), it.ID, docRequest)
	if err != nil {
		return state.Outward(err)
	}
	now := k.st.Now()
	asked := req.Scrub != "" && req.Scrub != last.Request
	since := last.At
	if since.IsZero() {
		since = it.Created
	}
	due := now.Sub(since) >= scrubEvery
	if last.Count > 0 && it.More.Want == nil { // has the resynchronization made it good?
		points, err := vaultdb.Points(ctx, k.st.Q(), it.Machine, 1000)
		if err != nil {
			return state.Outward(err)
		}
		due = due || slices.ContainsFunc(points, func(p vaultdb.Point) bool { return p.Resync && p.Time.After(last.At) })
	}
	if !asked && (!due || last.Failed > 0 && now.Before(last.NotBefore)) {
		return nil
	}
	if !k.take(it.Machine, docScrub) {
		return nil
	}
	defer k.give(it.Machine)
	defer k.progress(it.ID, "")
	report, err := k.throttled().Verify(ctx, it.Machine, func(objects int, bytes int64) {
		k.progress(it.ID, fmt.Sprintf("%d objects, %d bytes", objects, bytes))
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if asked {
		last.Request = req.Scrub
	}
	return k.scrubDone(ctx, it, last, report, err)
}

func (k *Keeper) progress(id dr.ItemID, note string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if note == "" {
		delete(k.progs, id)
		return
	}
	k.progs[id] = note
}

// scrubDone stores what a scrub found; damage asks for a resynchronization.
func (k *Keeper) scrubDone(ctx context.Context, it vaultdb.Item, d scrubDoc, r *store.Report, failure error) error {
	now := k.st.Now()
	note, want := "", false
	switch {
	case failure != nil:
		if d.Failed == 0 {
			note = fmt.Sprintf("the scrub of the replica of %s failed: %v", it.VMName, failure)
		}
		d.Failed++
		d.Code, d.Error, d.NotBefore = dr.CodeOf(failure), failure.Error(), now.Add(pause(d.Failed))
	default:
		had, before := d.Count, d.Asked
		d = toScrubDoc(d.Request, now, r)
		if d.Newest {
			// Once for the same damage: if it did not help, it is for people to look.
			want, d.Asked = d.Damaged[0].Point != before, d.Damaged[0].Point
		}
		switch {
		case d.Count > 0:
			note = fmt.Sprintf("the scrub of the replica of %s found %d of %d recovery points damaged, first %s: %s. %s", it.VMName, d.Count, d.Points, d.Damaged[0].Point, d.Damaged[0].Text, d.advice())
		case had > 0:
			note = fmt.Sprintf("the scrub of the replica of %s found no damage any more", it.VMName)
		}
	}
	gone := false
	err := k.st.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := vaultdb.LockItem(ctx, tx, it.ID); err != nil {
			gone = dr.KindOf(err) == dr.KindNotFound
			if gone {
				return nil
			}
			return err
		}
		k.st.Changed(tx, "item", string(it.ID))
		if note != "" {
			if err := k.st.Note(ctx, tx, vaultdb.Event{Kind: "scrub", Item: it.ID, By: "vault"}, "%s", note); err != nil {
				return err
			}
		}
		return vaultdb.SaveDoc(ctx, tx, it.ID, docScrub, d, now)
	})
	if err != nil || gone || !want {
		return err
	}
	// What is stored can't be compared with: everything has to be sent again.
	return k.cfg.Want(ctx, it.ID, vaultdb.Want{Code: dr.CodeStoreDamaged, Text: "the store has damage: " + state.Clip(d.Damaged[0].Text), Full: true})
}

func toScrubDoc(request string, now time.Time, r *store.Report) scrubDoc {
	d := scrubDoc{At: now, Request: request, Objects: r.Objects, Bytes: r.Bytes, Points: len(r.Verdicts)}
	for _, v := range r.Verdicts {
		switch {
		case v.Err == nil && d.Count == 0:
			d.Good, d.GoodTime = v.Point.Name(), v.Point.Time
		case v.Err != nil:
			if d.Count++; len(d.Damaged) < maxDamage {
				d.Damaged = append(d.Damaged, damageDoc{v.Point.Name(), v.Point.Time, v.Err.Error()})
			}
		}
		d.Newest = v.Err != nil
	}
	return d
}

// throttled is the store, read no faster than the rate of scrubs.
func (k *Keeper) throttled() *store.Store {
	var b objstore.Reader = k.cfg.Bucket
	if k.cfg.ScrubRate > 0 {
		b = slow{k.cfg.Bucket, pace.NewLimiter(pace.Constant(k.cfg.ScrubRate), nil)}
	}
	return store.New(store.Config{Bucket: b, Keys: k.cfg.Keys, FrameCache: 1 << 20, ChunkCache: 1 << 20, Parallel: 2})
}

// slow is a bucket that is read at a limited rate.
type slow struct {
	objstore.Reader
	limit *pace.Limiter
}

func (s slow) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	body, err := s.Reader.Get(ctx, key, off, length)
	if err != nil {
		return nil, err
	}
	return throttledBody{s.limit.Reader(ctx, body), body}, nil
}

type throttledBody struct {
	io.Reader
	io.Closer
}
