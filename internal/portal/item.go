package portal

import (
	"cmp"
	"context"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/planner"
	"holdfast/internal/portal/chart"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/machine"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// itemPages are the protected items.
type itemPages struct{ *core }

// verb is a command of the item page.
type verb struct {
	Name, Title, Icon string
	Op                string // must be among the allowed operations; empty = always
	Role              dr.Role
	Danger            bool
	Dialog            bool // asks first; else the button acts at once
	Group             int  // command bar groups
	Hidden            bool // not in the command bar: a card or a table offers it
	run               func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error)
}

// verbs is the command bar, in its order, and what cards and tables offer.
func verbs(now func() time.Time) []verb {
	const op, cfg = dr.RoleOperator, dr.RoleContributor
	failover := func(kind dr.FailoverKind) func(context.Context, Vault, dr.ProtectedItem, func(string) string, string) (dr.JobID, error) {
		return func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
			r := vault.FailoverRequest{Item: it.ID, Kind: kind, Point: form("point"), By: by}
			if kind == dr.KindTestFailover {
				r.Network, r.NoNetwork = strings.TrimSpace(form("network")), form("attach") == "none"
				if form("attach") != "network" {
					r.Network = ""
				} else if r.Network == "" {
					return "", dr.Errorf(dr.KindInvalid, "portal.testFailover", "no network was named").WithHint("Enter the name of a network of the recovery host, or choose the isolated network.")
				}
			}
			r.SourceAction = kind == dr.KindUnplannedFailover && form("shutdown") != ""
			return v.StartFailover(ctx, r)
		}
	}
	return []verb{
		{"test-failover", "Test failover", "test", "TestFailover", op, false, true, 0, false, failover(dr.KindTestFailover)},
		{"cleanup-test", "Cleanup test failover", "broom", "TestFailoverCleanup", op, false, true, 0, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
				return v.CleanupTest(ctx, it.ID, strings.TrimSpace(form("comments")), by)
			}},
		{"planned-failover", "Planned failover", "planned", "PlannedFailover", op, true, true, 1, false, failover(dr.KindPlannedFailover)},
		{"failover", "Failover", "bolt", "UnplannedFailover", op, true, true, 1, false, failover(dr.KindUnplannedFailover)},
		{"change-point", "Change recovery point", "history", "ChangePit", op, true, true, 1, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
				return v.ChangePoint(ctx, it.ID, form("point"), by)
			}},
		{"commit", "Commit", "commit", "Commit", op, true, true, 1, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return v.Commit(ctx, it.ID, by)
			}},
		{"cancel-failover", "Cancel failover", "undo", "CancelFailover", op, true, true, 1, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return v.CancelFailover(ctx, it.ID, by)
			}},
		{"resync", "Resynchronize", "resync", "RepairReplication", op, false, true, 2, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
				return v.ResyncWith(ctx, it.ID, vault.ResyncOptions{Full: form("full") != ""}, by)
			}},
		{"pause", "Pause", "pause", "", cfg, false, true, 2, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
				return pause(ctx, v, it, form, by, now())
			}},
		{"resume", "Resume", "play", "", cfg, false, false, 2, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return "", v.Pause(ctx, it.ID, vault.PauseRequest{By: by})
			}},
		{"retry", "Retry now", "refresh", "", op, false, false, 2, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return "", v.RetryNow(ctx, it.ID, by)
			}},
		{"settings", "Properties", "settings", "", cfg, false, true, 2, false, changeSettings},
		{"disable", "Disable replication", "delete", "DisableProtection", cfg, true, true, 3, false,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
				if form("confirm") != it.VMName {
					return "", dr.Errorf(dr.KindInvalid, "portal.disable", "the name entered is not %q: nothing was changed", it.VMName).
						WithHint("Type the VM's name exactly to confirm that its protection shall end.")
				}
				return v.Disable(ctx, it.ID, form("force") != "", by)
			}},
		{"point", "Name or hold", "key", "", op, false, true, 4, true, namePoint},
		{"disks", "Choose disks", "settings", "", cfg, false, true, 4, true, changeDisks},
		{"acknowledge", "It is meant to be so", "check", "", op, false, false, 4, true,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return "", v.AcknowledgeAnomaly(ctx, it.ID, by)
			}},
		{"maintain", "Maintain now", "broom", "", op, false, true, 4, true,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return v.Maintain(ctx, it.ID, by)
			}},
		{"scrub", "Scrub now", "check", "", op, false, true, 4, true,
			func(ctx context.Context, v Vault, it dr.ProtectedItem, _ func(string) string, by string) (dr.JobID, error) {
				return v.Scrub(ctx, it.ID, by)
			}},
	}
}

func changeSettings(ctx context.Context, v Vault, it dr.ProtectedItem, form func(string) string, by string) (dr.JobID, error) {
	number := func(name string, most int) (int, error) {
		s := strings.TrimSpace(form(name))
		if s == "" {
			return 0, nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > most {
			return 0, dr.Errorf(dr.KindInvalid, "portal.settings", "%s is not a number from 0 to %d: %q", name, most, s)
		}
		return n, nil
	}
	cpus, err := number("cpus", 1024)
	if err != nil {
		return "", err
	}
	memory, err := number("memory", 64<<20)
	if err != nil {
		return "", err
	}
	return v.Update(ctx, vault.UpdateRequest{Item: it.ID, By: by, Settings: func(s *dr.ItemSettings) {
		s.RecoveryVMName, s.CPUs, s.MemoryMB = strings.TrimSpace(form("name")), cpus, memory
		s.Network, s.TestNetwork = strings.TrimSpace(form("network")), strings.TrimSpace(form("testNetwork"))
		if form("cloud") != "" { // the form had these fields
			c := &s.Cloud
			c.Size, c.DiskType, c.Zone, c.ResourceGroup = form("size"), form("diskType"), strings.TrimSpace(form("zone")), strings.TrimSpace(form("resourceGroup"))
			c.PublicIP, c.Warm, c.Repair = form("publicIp") != "", form("warm") != "", form("repair") != ""
		}
	}})
}

// act carries a command out.
func (p itemPages) act(w http.ResponseWriter, r *page.Request) error {
	i := slices.IndexFunc(verbs(p.Now), func(v verb) bool { return v.Name == r.PathValue("verb") })
	if i < 0 {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "there is no operation %q", r.PathValue("verb"))
	}
	do := verbs(p.Now)[i]
	if err := page.Allow(r.Who, do.Role); err != nil {
		return err
	}
	it, err := p.V.ItemByID(r.Context(), dr.ItemID(r.PathValue("id")))
	if err != nil {
		return err
	}
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal", "the form could not be read")
	}
	form := r.PostForm.Get
	if do.Name == "disks" {
		form = func(name string) string { return strings.Join(r.PostForm[name], "\n") }
	}
	job, err := do.run(r.Context(), p.V, it, form, r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/items/"+string(it.ID), job)
}

// command is a button of the command bar.
type command struct {
	verb
	Off string // why it can't be used; empty = it can
	New bool   // first of its group
}

// drill is the proof of the last test failover, from the item's report.
type drill struct {
	OK         bool      `json:"ok"`
	Job        dr.JobID  `json:"job"`
	VM         string    `json:"vm"`
	Point      string    `json:"recoveryPoint"`
	BootSecs   float64   `json:"bootSeconds"`
	RTOSecs    float64   `json:"rtoSeconds"`
	Matched    string    `json:"matched"`
	Console    string    `json:"console"`
	Screenshot string    `json:"screenshot"`
	Reason     string    `json:"reason"`
	At         time.Time `json:"at"`
}

// Boot and RTO are the measured times.
func (d drill) Boot() time.Duration { return time.Duration(d.BootSecs * float64(time.Second)) }
func (d drill) RTO() time.Duration  { return time.Duration(d.RTOSecs * float64(time.Second)) }

type itemBody struct {
	itemRow
	Commands     []command
	Dialogs      []command // the ones that ask, and can be used
	Ask          string    // the dialog to open at once
	VM           dr.VM
	Facts        machine.Facts
	Policy       dr.Policy
	SourceHost   dr.Provider
	SourceOn     bool
	RecoveryHost dr.Provider
	Points       []vault.PointDetail // of the page of the table
	Choices      []vault.PointDetail // newest
	Chosen       vault.PointDetail   // of the address, else the newest
	Asked        string              // the point that the address names
	PointCount   int
	Latest       vault.PointDetail
	LatestApp    vault.PointDetail
	StoredBytes  int64
	Reasons      []*reason
	Drill        *drill
	Jobs         []dr.Job
	Current      *dr.Job
	Range        string
	Timeline     template.HTML
	LagChart     template.HTML
	ChurnChart   template.HTML
	RateChart    template.HTML
	Tiers        bool // points are thinned out with age
	Suspects     bool // some points look encrypted
	Flags        bool // some points are named or held
	Pages        estate.Pages
	Cloud        bool // the recovery site is in Azure
	Sizes        []dr.ComputeSize
	Cost         planner.WarmEstimate // of a warm replica, without prices
	replicationBody
}

// WarmLag is how far the warm replica is behind the newest point.
func (b itemBody) WarmLag() time.Duration {
	if w := b.Detail.Warm; w != nil && !w.Time.IsZero() {
		return max(b.Latest.Time.Sub(w.Time), 0)
	}
	return 0
}

// reason is a health error with its explanation.
type reason struct {
	*words.Problem
	Tone  string
	Since time.Time
}

// chartRanges are the spans of the charts.
func chartRanges() map[string]time.Duration {
	return map[string]time.Duration{"1h": time.Hour, "24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour}
}

func (p itemPages) show(w http.ResponseWriter, r *page.Request) error {
	ctx := r.Context()
	it, err := p.V.ItemByID(ctx, dr.ItemID(r.PathValue("id")))
	if err != nil {
		return err
	}
	e, err := estate.Load(ctx, p.V)
	if err != nil {
		return err
	}
	b := itemBody{Policy: e.Policy[it.Policy], SourceHost: e.Host[it.SourceAgent], RecoveryHost: e.Host[it.RecoveryAgent], Range: r.URL.Query().Get("range"), Ask: r.URL.Query().Get("ask")}
	if b.itemRow, err = p.row(ctx, e, it, nil); err != nil {
		return err
	}
	if b.VM, err = p.V.VM(ctx, it.Fabric, it.VM); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	if b.VM.ID != "" {
		if b.Facts, err = p.facts(ctx, b.Site, b.VM); err != nil {
			return err
		}
	}
	b.SourceOn = b.SourceHost.ID != "" && p.V.Connected(b.SourceHost)
	points, err := p.V.PointDetails(ctx, it.ID)
	if err != nil {
		return err
	}
	p.history(r, &b, points)
	if b.replicationBody, err = p.replication(ctx, b.itemRow, b.Policy, b.VM); err != nil {
		return err
	}
	if b.Jobs, err = p.V.Jobs(ctx, vault.JobFilter{Item: it.ID, Limit: 8}); err != nil {
		return err
	}
	if it.Job != "" {
		if j, err := p.V.Job(ctx, it.Job); err == nil {
			b.Current = &j
		}
	}
	for _, h := range it.HealthErrors {
		x := &reason{Problem: words.Explain(h.Code, h.Message, h.Cause, h.Remedy), Tone: words.Health(h.Severity).Tone, Since: h.Since}
		b.Reasons = append(b.Reasons, x)
	}
	if it.LastTestReport != "" {
		var d drill
		if err := json.Unmarshal([]byte(it.LastTestReport), &d); err == nil {
			b.Drill = &d
		}
	}
	if err := p.cloud(ctx, &b); err != nil {
		return err
	}
	ops, err := p.V.AllowedOperations(ctx, it.ID)
	if err != nil {
		return err
	}
	b.commands(r, ops)
	return p.Render(w, r, "item", page.View{Title: it.VMName, Kind: "Protected item", Section: "items", Icon: "vms",
		Crumbs: []page.Crumb{{Name: "Protected items", URL: "/portal/items"}}, URL: "/portal/items/" + string(it.ID) + estate.Query(r),
		Topics: "item/" + string(it.ID) + " job", Body: b})
}

// cloud fills what only an item that recovers in Azure has.
func (p itemPages) cloud(ctx context.Context, b *itemBody) (err error) {
	if b.Cloud = b.Recovery.Type == dr.AzureSite; !b.Cloud {
		return nil
	}
	var disks []int64
	for _, d := range b.VM.Disks {
		if len(b.ProtectedItem.Disks) == 0 || slices.ContainsFunc(b.ProtectedItem.Disks, func(id string) bool { return id == d.ID }) {
			disks = append(disks, d.Size)
		}
	}
	b.Cost = planner.WarmCost(disks, 0, b.Status.BacklogRate*86400, b.Policy.CopyFrequency, planner.WarmRates{})
	b.Sizes, err = p.V.ComputeSizes(ctx, b.ID)
	return err
}

// history fills what comes from the recovery points.
func (p itemPages) history(r *page.Request, b *itemBody, points []vault.PointDetail) {
	now := p.Now()
	b.PointCount = len(points)
	if len(points) > 0 {
		b.Latest, b.Chosen = points[0], points[0]
	}
	asked := cmp.Or(r.URL.Query().Get("point"), r.PostFormValue("point"))
	plain, marks := make([]dr.RecoveryPoint, len(points)), make([]chart.Point, len(points))
	for i, x := range points {
		plain[i] = x.RecoveryPoint
		marks[i] = chart.Point{RecoveryPoint: x.RecoveryPoint, Label: x.Label, Tier: x.Keep, Held: x.Held, Suspect: x.Suspect}
		b.Tiers, b.Suspects, b.Flags = b.Tiers || x.Keep == "hourly" || x.Keep == "daily", b.Suspects || x.Suspect, b.Flags || x.Held || x.Label != ""
		if x.Name() == asked {
			b.Chosen, b.Asked = x, asked
		}
		b.StoredBytes += x.StoredBytes
		if b.LatestApp.N == 0 && x.Consistency == dr.AppConsistent {
			b.LatestApp = x
		}
	}
	width, ok := chartRanges()[b.Range]
	if !ok {
		b.Range, width = "24h", 24*time.Hour
		if len(points) > 0 && now.Sub(points[len(points)-1].Time) < 2*time.Hour {
			b.Range, width = "1h", time.Hour
		}
	}
	if b.Active == dr.AtRecovery && len(points) > 0 {
		now = points[0].Time.Add(time.Second) // nothing comes any more; the charts show what was
	}
	b.Timeline = chart.Timeline(marks, now, b.FailedOverTo)
	b.LagChart = chart.Lag(plain, now.Add(-width), now, b.Target)
	b.ChurnChart = chart.Churn(plain, now.Add(-width), now)
	b.RateChart = chart.Rates(plain, now.Add(-width), now)
	b.Choices = points[:min(len(points), 25)]
	b.Points, b.Pages = estate.Paged(r, points, 10)
}

// commands makes the command bar: what the state and the role allow is on.
func (b *itemBody) commands(r *page.Request, allowed []string) {
	group := -1
	for _, v := range verbs(time.Now) {
		c := command{verb: v}
		switch {
		case v.Hidden && (v.Name == "point" && b.PointCount == 0 || v.Name == "acknowledge" && b.Detail.Anomaly == nil), v.Name == "retry" && (b.Paused || !b.Waits):
			continue
		case v.Name == "pause" && (b.Paused || b.Protection != dr.Protected && b.Protection != dr.InitialReplication || b.Active != dr.AtPrimary), v.Name == "resume" && !b.Paused:
			continue
		case !r.Who.Role.Includes(v.Role):
			c.Off = "Needs the role " + string(v.Role) + "; you are " + string(r.Who.Role)
		case v.Op != "" && !slices.Contains(allowed, v.Op):
			c.Off = b.why(v)
		}
		c.New = v.Group != group && group >= 0
		if v.Hidden {
			b.Offered = append(b.Offered, c)
		} else {
			group = v.Group
			b.Commands = append(b.Commands, c)
		}
		if c.Off == "" && v.Dialog {
			b.Dialogs = append(b.Dialogs, c)
		}
	}
}

// why says why a command is off in the item's state.
func (b *itemBody) why(v verb) string {
	switch {
	case b.Job != "":
		return "Another job of this item is running"
	case v.Name == "cleanup-test":
		return "There is no test failover to clean up"
	case v.Name == "commit" || v.Name == "change-point" || v.Name == "cancel-failover":
		return "There is no failover to act on"
	case b.PointCount == 0 && v.Name != "disable":
		return "There is no recovery point yet"
	case b.Active == dr.AtRecovery:
		return "The VM runs at the recovery site"
	case b.Test == dr.TestWaiting || b.Test == dr.TestFailed:
		return "Clean up the test failover first"
	}
	return "Not possible in the item's state"
}
