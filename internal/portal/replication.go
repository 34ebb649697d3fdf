package portal

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/machine"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

// replicationBody is what an item's page shows of its running replication and of
// the upkeep of its replica.
type replicationBody struct {
	Detail  vault.Detail
	Resync  *resyncCard
	Verdict words.Pill
	Waits   bool // something waits to be tried again, or for a window
	Upkeep  vault.UpkeepStatus
	Plan    planned
	Disks   []diskRow
	Events  []vaultdb.Event
	Offered []command // of cards and tables
}

// planned is what a maintenance pass would do now.
type planned struct{ Expire, Keep int }

// resyncCard is a resynchronization that is required or runs.
type resyncCard struct {
	State   words.Pill
	Running bool
	Manual  bool      // an operator has to ask for it
	Reason  string    // what happened
	Cause   string    // of the catalogue
	Next    time.Time // when it begins by itself; zero = with the next cycle
}

// diskRow is a disk of the VM.
type diskRow struct {
	dr.Disk
	State      words.Pill
	Replicated bool
	Gone       bool // the host no longer reports it
}

// Offer returns a command that a card or a table offers, or one of the command
// bar; nil if the user or the state does not allow it.
func (b itemBody) Offer(name string) *command {
	for _, list := range [][]command{b.Offered, b.Commands} {
		for i := range list {
			if list[i].Name == name && list[i].Off == "" {
				return &list[i]
			}
		}
	}
	return nil
}

func (p itemPages) replication(ctx context.Context, r itemRow, pol dr.Policy, vm dr.VM) (b replicationBody, err error) {
	if b.Detail, err = p.V.Detail(ctx, r.ID); err != nil {
		return b, err
	}
	b.Resync, b.Verdict = resyncOf(r, pol, b.Detail), words.Convergence(r.Status.Converging)
	b.Waits = r.Status.Err != nil || !b.Detail.RetryAt.IsZero() || b.Resync != nil && !b.Resync.Running || !b.Detail.NextInitial.IsZero()
	if b.Upkeep, err = p.V.UpkeepStatus(ctx, r.ID); err != nil {
		return b, err
	}
	plan, err := p.V.PlanMaintenance(ctx, r.ID)
	if err != nil {
		return b, err
	}
	for _, x := range plan {
		if x.Keep == "" {
			b.Plan.Expire++
		} else {
			b.Plan.Keep++
		}
	}
	b.Disks = diskRows(vm, r.ProtectedItem, b.Detail)
	b.Events, err = p.V.Events(ctx, r.ID, 8)
	return b, err
}

// resyncOf says how it stands with a resynchronization; nil if none is required.
func resyncOf(r itemRow, pol dr.Policy, d vault.Detail) *resyncCard {
	if r.ProtectedItem.Resync == "" && d.ResyncCode == "" {
		return nil
	}
	e, _ := dr.Lookup(d.ResyncCode)
	c := &resyncCard{Reason: words.Sentence(firstOf(d.ResyncText, r.ProtectedItem.Resync, e.Title)), Cause: e.Cause, Next: d.NextResync}
	mk := func(tone, text string) words.Pill {
		return words.Pill{Tone: tone, Icon: words.ToneIcon(tone), Text: text}
	}
	switch {
	case r.Status.Phase == "resync":
		c.State, c.Running = mk("busy", "Running"), true
	case r.Paused:
		c.State = mk("warn", "Waits until replication is resumed")
	case !d.NextResync.IsZero():
		c.State = mk("wait", "Waits for its window")
	case pol.ResyncAuto == dr.ResyncManual:
		c.State, c.Manual = mk("bad", "Waits for you"), true
	default:
		c.State = mk("busy", "Begins with the next cycle")
	}
	return c
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func diskRows(vm dr.VM, it dr.ProtectedItem, d vault.Detail) []diskRow {
	mk := func(tone, text string) words.Pill {
		return words.Pill{Tone: tone, Icon: words.ToneIcon(tone), Text: text}
	}
	var out []diskRow
	for _, x := range vm.Disks {
		row := diskRow{Disk: x, Replicated: len(it.Disks) == 0 || slices.Contains(it.Disks, x.ID)}
		switch {
		case row.Replicated:
			row.State = mk("good", "Replicated")
		case !machine.Usable(x):
			row.State = mk("idle", "Can't be replicated")
		case slices.Contains(d.NewDisks, x.ID):
			row.State = mk("warn", "New: replicate or exclude it")
		default:
			row.State = mk("idle", "Excluded")
		}
		out = append(out, row)
	}
	for _, id := range it.Disks {
		if !slices.ContainsFunc(vm.Disks, func(x dr.Disk) bool { return x.ID == id }) {
			out = append(out, diskRow{Disk: dr.Disk{ID: id}, Replicated: true, Gone: true, State: mk("warn", "No longer at the VM")})
		}
	}
	return out
}

// pause pauses an item for the hours that the form names, or until somebody resumes it.
func pause(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string, now time.Time) (dr.JobID, error) {
	r := vault.PauseRequest{Paused: true, Reason: strings.TrimSpace(form("reason")), By: by}
	if h := form("hours"); h != "" {
		n, err := strconv.Atoi(h)
		if err != nil || n < 1 || n > 24*30 {
			return "", dr.Errorf(dr.KindInvalid, "portal.pause", "%q is not a number of hours from 1 to 720", h)
		}
		r.ResumeAt = now.Add(time.Duration(n) * time.Hour).Truncate(time.Second)
	}
	return "", v.Pause(ctx, it.ID, r)
}

func namePoint(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
	name := form("point")
	if _, _, err := dr.ParsePointName(name); err != nil {
		return "", err
	}
	return "", v.NamePoint(ctx, it.ID, name, strings.TrimSpace(form("label")), form("hold") != "", by)
}

func changeDisks(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
	disks := strings.Fields(form("disk"))
	if len(disks) == 0 {
		return "", dr.New(dr.KindInvalid, dr.CodeNoDisks, "portal.disks", "no disk of %s was chosen", it.VMName).WithHint("Choose at least one disk. To end the protection, use Disable replication.")
	}
	return v.ChangeDisks(ctx, it.ID, disks, by)
}

type eventsBody struct {
	Item   dr.ProtectedItem
	Events []vaultdb.Event
	Pages  estate.Pages
}

// events is the history of one item.
func (p itemPages) events(w http.ResponseWriter, r *page.Request) error {
	it, err := p.V.ItemByID(r.Context(), dr.ItemID(r.PathValue("id")))
	if err != nil {
		return err
	}
	list, err := p.V.Events(r.Context(), it.ID, 1000)
	if err != nil {
		return err
	}
	b := eventsBody{Item: it}
	b.Events, b.Pages = estate.Paged(r, list, estate.PageSize)
	u := "/portal/items/" + url.PathEscape(string(it.ID))
	return p.Render(w, r, "events", page.View{Title: "Event history", Kind: it.VMName, Section: "items", Icon: "history",
		Crumbs: []page.Crumb{{Name: "Protected items", URL: "/portal/items"}, {Name: it.VMName, URL: u}}, Topics: "item/" + string(it.ID) + " event", Body: b})
}
