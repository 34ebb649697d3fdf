package upkeep

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// passDoc is the durable form of the last maintenance pass of an item.
type passDoc struct {
	At       time.Time `json:"at,omitzero"`       // of the last one that succeeded
	N        uint64    `json:"n,omitempty"`       // newest point then
	Rules    string    `json:"rules,omitempty"`   // digest of the rules then
	Request  string    `json:"request,omitempty"` // job that asked for it, answered
	Points   int       `json:"points,omitempty"`
	Expired  int       `json:"expired,omitempty"`
	Wrote    int64     `json:"wrote,omitempty"`
	Pending  int       `json:"pending,omitempty"`
	Deleted  int       `json:"deleted,omitempty"`
	Freed    int64     `json:"freed,omitempty"`
	Objects  int       `json:"objects,omitempty"`
	Bytes    int64     `json:"bytes,omitempty"`
	NotReady string    `json:"notReady,omitempty"`

	Failed    int       `json:"failed,omitempty"` // times in a row
	Code      dr.Code   `json:"code,omitempty"`
	Error     string    `json:"error,omitempty"`
	Hint      string    `json:"hint,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	NotBefore time.Time `json:"notBefore,omitzero"`
}

func (d passDoc) err() error {
	e := dr.New(dr.KindInternal, d.Code, "vault.Maintain", "%s", d.Error)
	e.Hint = d.Hint
	return e
}

// reason is why a failing pass matters to the item's health.
func (d passDoc) reason(vm string) *dr.HealthError {
	e, _ := dr.Lookup(d.Code)
	severity := dr.HealthWarning
	if d.Code == dr.CodeCompactorConflict {
		severity = e.Severity
	}
	remedy := d.Hint
	if remedy == "" {
		remedy = e.Remedy
	}
	cause := e.Cause
	if cause == "" {
		cause = "Expired recovery points stay in the store until maintenance succeeds; recovery points are not in danger."
	}
	return &dr.HealthError{Code: d.Code, Severity: severity, Message: fmt.Sprintf("Maintenance of the replica of %s fails: %s.", vm, strings.TrimSuffix(d.Error, ".")),
		Cause: cause, Remedy: remedy, Since: d.Since}
}

// digest names rules: what is kept, without why.
func digest(r compact.Rules) string {
	sum := sha256.Sum256(fmt.Append(nil, r.Fine, r.Hourly, r.Daily, slices.Sorted(maps.Keys(r.Held))))
	return hex.EncodeToString(sum[:8])
}

func (k *Keeper) maintainIfDue(ctx context.Context, it vaultdb.Item) error {
	last, err := vaultdb.Doc[passDoc](ctx, k.st.Q(), it.ID, docPass)
	if err != nil {
		return state.Outward(err)
	}
	req, err := vaultdb.Doc[requestDoc](ctx, k.st.Q(), it.ID, docRequest)
	if err != nil {
		return state.Outward(err)
	}
	rules, err := k.cfg.Rules(ctx, it)
	if err != nil {
		return state.Outward(err)
	}
	newer, _, _, err := vaultdb.CountPoints(ctx, k.st.Q(), it.Machine, last.N)
	if err != nil {
		return state.Outward(err)
	}
	now := k.st.Now()
	asked := req.Maintain != "" && req.Maintain != last.Request
	due := last.Rules != digest(rules) || newer >= newPoints || now.Sub(last.At) >= passEvery
	if !asked && (!due || last.Failed > 0 && now.Before(last.NotBefore)) {
		return nil
	}
	if !k.take(it.Machine, docPass) {
		return nil // a scrub reads it
	}
	defer k.give(it.Machine)
	ctx, cancel := context.WithTimeout(ctx, passBound)
	defer cancel()
	report, err := k.pass(ctx, it, rules)
	if ctx.Err() != nil {
		return ctx.Err() // the duty has ended, or the vault: nothing is known of the pass
	}
	if asked {
		last.Request = req.Maintain
	}
	return k.passDone(ctx, it, last, rules, report, err)
}

func (k *Keeper) pass(ctx context.Context, it vaultdb.Item, rules compact.Rules) (compact.Report, error) {
	name, err := k.cfg.Compactor(ctx)
	if err != nil {
		return compact.Report{}, err
	}
	c := compact.New(compact.Config{Bucket: k.cfg.Bucket, Store: k.cfg.Store, Keys: k.cfg.Keys, Compactor: name, Software: k.cfg.Software,
		Grace: k.cfg.Grace, LeftoverGrace: k.cfg.LeftoverGrace, TakeOver: takeOver, Now: k.st.Now, Log: k.st.Log})
	r, err := c.Maintain(ctx, it.Machine, rules)
	if err == nil && r.Expired > 0 {
		err = k.cfg.Reconcile(ctx, it, true)
	}
	return r, err
}

// passDone stores what became of a pass and tells of what changed.
func (k *Keeper) passDone(ctx context.Context, it vaultdb.Item, d passDoc, rules compact.Rules, r compact.Report, failure error) error {
	return k.st.Tx(ctx, func(tx *sql.Tx) error {
		now := k.st.Now()
		if _, err := vaultdb.LockItem(ctx, tx, it.ID); dr.KindOf(err) == dr.KindNotFound {
			return nil // unprotected meanwhile
		} else if err != nil {
			return err
		}
		k.st.Changed(tx, "item", string(it.ID))
		if failure != nil {
			if d.Failed == 0 || d.Code != dr.CodeOf(failure) {
				d.Failed, d.Since = 0, now
				if err := k.st.Note(ctx, tx, vaultdb.Event{Kind: "maintenance", Item: it.ID, By: "vault"}, "maintenance of the replica of %s failed: %v", it.VMName, failure); err != nil {
					return err
				}
			}
			d.Failed++
			d.Code, d.Error, d.Hint, d.NotBefore = dr.CodeOf(failure), failure.Error(), dr.HintOf(failure), now.Add(pause(d.Failed))
			return vaultdb.SaveDoc(ctx, tx, it.ID, docPass, d, now)
		}
		if d.Failed > 0 || r.Expired > 0 || r.Deleted > 0 {
			if err := k.st.Note(ctx, tx, vaultdb.Event{Kind: "maintenance", Item: it.ID, By: "vault"}, "maintenance of the replica of %s: %d points expired, %d kept, %d objects with %d bytes deleted, %d wait for their grace",
				it.VMName, r.Expired, r.Points, r.Deleted, r.Freed, r.Pending); err != nil {
				return err
			}
		}
		points, err := vaultdb.Points(ctx, tx, it.Machine, 1)
		if err != nil {
			return err
		}
		d = passDoc{At: now, Rules: digest(rules), Request: d.Request, Points: r.Points, Expired: r.Expired, Wrote: r.Wrote, Pending: r.Pending,
			Deleted: r.Deleted, Freed: r.Freed, Objects: r.Objects, Bytes: r.Bytes, NotReady: r.NotReady}
		if len(points) > 0 {
			d.N = points[0].N
		}
		return vaultdb.SaveDoc(ctx, tx, it.ID, docPass, d, now)
	})
}
