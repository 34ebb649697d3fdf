package portal

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
)

const drillEvery = 30 * 24 * time.Hour // a test failover is recommended monthly

// itemRow is a protected item as lists show it.
type itemRow struct {
	dr.ProtectedItem
	Status      dr.ReplicationStatus
	State       words.Pill
	Lag         time.Duration // valid if HasLag
	HasLag      bool
	LagTone     string
	Target      time.Duration
	Site        dr.Fabric
	Recovery    dr.Fabric
	PolicyName  string
	DrillTone   string // of LastTest
	DrillText   string
	Next        string // what to do next, for people
	NextDialog  string // the dialog on the item's page that does it
	NextUrgent  bool
	ProgressNow bool // initial replication or resynchronization runs
}

func (c *core) row(ctx context.Context, e *estate.Estate, it dr.ProtectedItem, all map[dr.ItemID]dr.ReplicationStatus) (itemRow, error) {
	st, ok := all[it.ID]
	if all == nil {
		var err error
		if st, err = c.V.Status(ctx, it.ID); err != nil && dr.KindOf(err) != dr.KindNotFound {
			return itemRow{}, err
		}
	} else if !ok {
		st = dr.ReplicationStatus{}
	}
	p := e.Policy[it.Policy]
	r := itemRow{ProtectedItem: it, Status: st, State: stateOf(it, st), Site: e.Fabric[it.Fabric], Recovery: e.Fabric[it.RecoveryFabric], PolicyName: p.Name, Target: p.CopyFrequency}
	if it.Active == dr.AtPrimary && it.Protection == dr.Protected && !st.LastPoint.IsZero() {
		r.Lag, r.HasLag = max(c.Now().Sub(st.LastPoint), 0), true
		r.LagTone = lagTone(r.Lag, r.Target)
	}
	r.ProgressNow = it.Protection == dr.InitialReplication || it.Resync != "" && st.Phase == "resync"
	switch age := c.Now().Sub(it.LastTest); {
	case it.Protection != dr.Protected:
		r.DrillTone, r.DrillText = "idle", "Not applicable"
	case it.LastTest.IsZero():
		r.DrillTone, r.DrillText = "warn", "Never tested"
	case age > drillEvery:
		r.DrillTone, r.DrillText = "warn", "Test recommended"
	default:
		r.DrillTone, r.DrillText = "good", "Tested"
	}
	r.Next, r.NextDialog, r.NextUrgent = nextOf(it, r)
	return r, nil
}

// lagTone compares a lag with the copy frequency: a cycle may take one more
// while it is sent; an hour is Hyper-V Replica's limit in any case.
func lagTone(lag, target time.Duration) string {
	switch {
	case lag > time.Hour && lag > 2*target:
		return "bad"
	case lag > max(3*target, 2*time.Minute):
		return "warn"
	}
	return "good"
}

// stateOf puts an item's axes into one line, the most important first.
func stateOf(it dr.ProtectedItem, st dr.ReplicationStatus) words.Pill {
	mk := func(tone, text string) words.Pill {
		return words.Pill{Tone: tone, Icon: words.ToneIcon(tone), Text: text}
	}
	switch {
	case it.Protection == dr.Disabling:
		return mk("busy", "Disabling protection")
	case it.Protection == dr.Enabling:
		return mk("busy", "Enabling protection")
	case it.Protection == dr.EnableFailed:
		return mk("bad", "Enabling failed")
	case it.Failover == dr.FailoverInProgress:
		return mk("busy", "Failover in progress")
	case it.Failover == dr.FailoverCancelling:
		return mk("busy", "Cancelling failover")
	case it.Failover == dr.FailoverCommitPending:
		return mk("wait", "Failed over, commit pending")
	case it.Failover == dr.FailoverCommitted:
		return mk("good", "Failover committed")
	case it.Test == dr.TestRunning:
		return mk("busy", "Test failover in progress")
	case it.Test == dr.TestWaiting:
		return mk("wait", "Test failover: clean-up pending")
	case it.Test == dr.TestCleaning:
		return mk("busy", "Cleaning up test failover")
	case it.Test == dr.TestFailed:
		return mk("bad", "Test failover failed")
	case it.Protection == dr.InitialReplication:
		return mk("busy", "Initial replication "+words.Percent(st.Percent))
	case it.Paused:
		return mk("warn", "Paused")
	case it.Resync != "" && st.Phase == "resync":
		return mk("busy", "Resynchronizing "+words.Percent(st.Percent))
	case it.Resync != "":
		return mk("bad", "Resynchronization required")
	case it.Failover == dr.FailoverFailed:
		return mk("warn", "Protected; last failover failed")
	}
	return mk("good", "Protected")
}

// nextOf says what the person in charge would do next.
func nextOf(it dr.ProtectedItem, r itemRow) (text, dialog string, urgent bool) {
	switch {
	case it.Job != "":
		return "", "", false
	case it.Protection == dr.EnableFailed:
		return "See why", "", true
	case it.Failover == dr.FailoverCommitPending:
		return "Commit or cancel", "commit", true
	case it.Test == dr.TestWaiting || it.Test == dr.TestFailed:
		return "Clean up test", "cleanup-test", true
	case it.Protection == dr.InitialReplication:
		return "", "", false
	case it.Health == dr.HealthCritical && it.Active == dr.AtPrimary:
		return "See the problem", "", true
	case it.Failover == dr.FailoverCommitted:
		return "Disable, then protect at the new site", "disable", false
	case it.Protection == dr.Protected && r.DrillTone == "warn":
		return "Test failover", "test-failover", false
	}
	return "", "", false
}

// rows makes the rows of items, asking for their status at once if the vault can.
func (c *core) rows(ctx context.Context, e *estate.Estate, items []dr.ProtectedItem) ([]itemRow, error) {
	var all map[dr.ItemID]dr.ReplicationStatus
	if s, ok := c.V.(statuses); ok && len(items) > 1 {
		var err error
		if all, err = s.Statuses(ctx); err != nil {
			return nil, err
		}
	}
	out := make([]itemRow, 0, len(items))
	for _, it := range items {
		r, err := c.row(ctx, e, it, all)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

type itemsBody struct {
	Rows                []itemRow
	Total, Shown        int
	Query, Site, Health string
	State               string
	Estate              *estate.Estate
	Pages               estate.Pages
}

func (p itemPages) list(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	b := itemsBody{Total: len(e.Items), Query: strings.TrimSpace(q.Get("q")), Site: q.Get("site"), Health: q.Get("health"), State: q.Get("state"), Estate: e}
	match := slices.DeleteFunc(slices.Clone(e.Items), func(it dr.ProtectedItem) bool {
		return b.Query != "" && !strings.Contains(strings.ToLower(it.VMName+" "+it.Name), strings.ToLower(b.Query)) ||
			b.Site != "" && e.Fabric[it.Fabric].Name != b.Site ||
			b.Health != "" && string(it.Health) != b.Health ||
			b.State == "failedover" && it.Active != dr.AtRecovery ||
			b.State == "drill" && (it.Protection != dr.Protected || p.Now().Sub(it.LastTest) <= drillEvery)
	})
	b.Shown = len(match)
	match, b.Pages = estate.Paged(r, match, estate.PageSize)
	if b.Rows, err = p.rows(r.Context(), e, match); err != nil {
		return err
	}
	return p.Render(w, r, "items", page.View{Title: "Protected items", Kind: "VMs under replication", Section: "items", Icon: "items", Topics: "item", Body: b})
}
