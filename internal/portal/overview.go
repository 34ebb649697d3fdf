package portal

import (
	"cmp"
	"context"
	"html/template"
	"net/http"
	"slices"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/chart"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// overviewPages is the first page.
type overviewPages struct{ *core }

// todo is a step on the way to a proven recovery.
type todo struct {
	Title, Text string
	URL, Action string
	Done        bool
	Current     bool // the first that is not done
	Role        string
}

// issue is something that needs a person.
type issue struct {
	*words.Problem
	Tone, Object, URL string
	Since             time.Time
}

type overviewBody struct {
	Todos                              []todo
	Done                               int
	Total                              int
	Normal, Warning, Critical          int
	Ring                               template.HTML
	Worst                              []itemRow
	WorstLag                           *itemRow
	WithLag                            int
	Tested, Untested, Failed           int // drills
	NoDrill                            int
	FailedOver, Pending                int
	DrillRing                          template.HTML
	Hosts, HostsOff                    int
	Running                            []dr.Job
	RunningCount, WaitCount, FailedDay int
	Recent                             []dr.Job
	Issues                             []issue
	MoreIssues                         int
}

const shownIssues = 6

func (p overviewPages) show(w http.ResponseWriter, r *page.Request) error {
	ctx := r.Context()
	e, err := estate.Load(ctx, p.V)
	if err != nil {
		return err
	}
	rows, err := p.rows(ctx, e, e.Items)
	if err != nil {
		return err
	}
	b := overviewBody{Total: len(rows)}
	for _, it := range rows {
		b.count(it, p.Now())
	}
	b.Ring = chart.Ring([]chart.Slice{{Tone: "good", Count: b.Normal}, {Tone: "warn", Count: b.Warning}, {Tone: "bad", Count: b.Critical}}, b.Total)
	b.DrillRing = chart.Ring([]chart.Slice{{Tone: "good", Count: b.Tested}, {Tone: "warn", Count: b.Untested}, {Tone: "bad", Count: b.Failed}}, b.Tested+b.Untested+b.Failed)
	b.lags(rows)
	for _, h := range e.Hosts {
		b.Hosts++
		if !p.V.Connected(h) {
			b.HostsOff++
			b.Issues = append(b.Issues, issue{Tone: "bad", Object: h.Host, URL: "/portal/sites/" + e.Fabric[h.Fabric].Name, Since: h.LastSeen,
				Problem: &words.Problem{Title: "Host not connected", Message: "The agent of the host has not been heard of.",
					Remedy: "Start the agent on the host; check the network from the host to the vault."}})
		}
	}
	b.issues(rows)
	if err := p.jobs(ctx, &b); err != nil {
		return err
	}
	if b.Todos, err = p.todos(ctx, e); err != nil {
		return err
	}
	for i := range b.Todos {
		if b.Todos[i].Done {
			b.Done++
		} else if !slices.ContainsFunc(b.Todos[:i], func(t todo) bool { return t.Current }) {
			b.Todos[i].Current = true
		}
	}
	return p.Render(w, r, "overview", page.View{Title: p.V.Identity().Name, Kind: "Recovery Services vault", Section: "overview", Icon: "items", Topics: "item job site", Body: b})
}

func (b *overviewBody) count(it itemRow, now time.Time) {
	switch it.Health {
	case dr.HealthCritical:
		b.Critical++
	case dr.HealthWarning:
		b.Warning++
	default:
		b.Normal++
	}
	if it.Active == dr.AtRecovery {
		b.FailedOver++
	}
	if it.Failover == dr.FailoverCommitPending {
		b.Pending++
	}
	switch {
	case it.Protection != dr.Protected:
		b.NoDrill++
	case it.Test == dr.TestFailed:
		b.Failed++
	case now.Sub(it.LastTest) <= drillEvery:
		b.Tested++
	default:
		b.Untested++
	}
}

// lags finds the items that are furthest behind, measured by their policies.
func (b *overviewBody) lags(rows []itemRow) {
	for _, it := range rows {
		if it.HasLag {
			b.Worst = append(b.Worst, it)
		}
	}
	b.WithLag = len(b.Worst)
	slices.SortStableFunc(b.Worst, func(x, y itemRow) int { return cmp.Compare(y.Lag, x.Lag) })
	b.Worst = b.Worst[:min(len(b.Worst), 4)]
	if len(b.Worst) > 0 {
		b.WorstLag = &b.Worst[0]
	}
}

func (b *overviewBody) issues(rows []itemRow) {
	for _, it := range rows {
		for _, h := range it.HealthErrors {
			b.Issues = append(b.Issues, issue{Problem: words.Explain(h.Code, h.Message, h.Cause, h.Remedy), Tone: words.Health(h.Severity).Tone,
				Object: it.VMName, URL: "/portal/items/" + string(it.ID), Since: h.Since})
		}
	}
	slices.SortStableFunc(b.Issues, func(x, y issue) int { return cmp.Compare(x.Tone, y.Tone) }) // "bad" before "warn"
	b.MoreIssues = max(len(b.Issues)-shownIssues, 0)
	b.Issues = b.Issues[:min(len(b.Issues), shownIssues)]
}

func (p overviewPages) jobs(ctx context.Context, b *overviewBody) error {
	list, err := p.V.Jobs(ctx, vault.JobFilter{Limit: 200})
	if err != nil {
		return err
	}
	for _, j := range list {
		switch {
		case j.State == dr.JobFailed && p.Now().Sub(j.Ended) < 24*time.Hour:
			b.FailedDay++
		case j.State == dr.JobWaiting:
			b.WaitCount++
		}
		if j.State.Final() {
			continue
		}
		if b.RunningCount++; len(b.Running) < 5 {
			if full, err := p.V.Job(ctx, j.ID); err == nil { // lists have no tasks
				j = full
			}
			b.Running = append(b.Running, j)
		}
	}
	b.Recent = list[:min(len(list), 6)]
	return nil
}

// todos are the steps from nothing to a recovery that is known to work.
func (p overviewPages) todos(ctx context.Context, e *estate.Estate) ([]todo, error) {
	var sources, targets bool
	for _, h := range e.Hosts {
		sources, targets = sources || h.HasRole(dr.RoleSource), targets || h.HasRole(dr.RoleRecovery)
	}
	vms := 0
	for _, f := range e.Fabrics {
		list, err := p.V.VMs(ctx, f.ID)
		if err != nil {
			return nil, err
		}
		vms += len(list)
	}
	siteURL := "/portal/sites"
	if len(e.Fabrics) > 0 {
		siteURL += "/" + e.Fabrics[0].Name
	}
	protected := slices.ContainsFunc(e.Items, func(it dr.ProtectedItem) bool { return it.Protection == dr.Protected })
	tested := slices.ContainsFunc(e.Items, func(it dr.ProtectedItem) bool { return !it.LastTest.IsZero() })
	drillURL := "/portal/items"
	for _, it := range e.Items {
		if it.Protection == dr.Protected && it.LastTest.IsZero() {
			drillURL = "/portal/items/" + string(it.ID) + "?ask=test-failover"
			if it.Test == dr.TestWaiting {
				drillURL = "/portal/items/" + string(it.ID) + "?ask=cleanup-test"
			}
			break
		}
	}
	return []todo{
		{Title: "Add a site", Text: "A site groups the hosts whose VMs are protected, or which take VMs over.", URL: "/portal/sites?ask=add", Action: "Add site", Done: len(e.Fabrics) > 0, Role: "Contributor"},
		{Title: "Register hosts", Text: "Install the agent on a source host and on a recovery host, and register them with the site's key.", URL: siteURL, Action: "Register hosts", Done: sources && targets, Role: "Contributor"},
		{Title: "Discover VMs", Text: "Registered hosts report their VMs by themselves, usually within a minute.", URL: "/portal/vms", Action: "See VMs", Done: vms > 0},
		{Title: "Create a replication policy", Text: "How often changes are copied and how long recovery points are kept.", URL: "/portal/policies?ask=create", Action: "Create policy", Done: len(e.Policies) > 0, Role: "Contributor"},
		{Title: "Enable replication", Text: "Choose a VM and its policy. The first copy is made while the VM runs.", URL: "/portal/vms", Action: "Enable replication", Done: protected, Role: "Contributor"},
		{Title: "Run a test failover", Text: "Proves on an isolated network that the replica boots. The VM goes on running and replicating.", URL: drillURL, Action: "Test failover", Done: tested, Role: "Operator"},
	}, nil
}
