package portal

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// jobPages are the jobs.
type jobPages struct{ *core }

type jobsBody struct {
	Rows                  []dr.Job
	State, Scenario, Item string
	ItemName              string
	States                []choice
	Scenarios             []choice
	Filtered              bool
	Pages                 estate.Pages
}

type choice struct{ Value, Text string }

// jobStates are the states that the list can be filtered by.
func jobStates() []choice {
	return []choice{{"", "All states"}, {"open", "In progress"}, {string(dr.JobWaiting), "Waiting for input"}, {string(dr.JobFailed), "Failed"},
		{string(dr.JobSucceeded), "Successful"}, {string(dr.JobCancelled), "Cancelled"}}
}

func (p jobPages) list(w http.ResponseWriter, r *page.Request) error {
	q := r.URL.Query()
	b := jobsBody{State: q.Get("state"), Scenario: q.Get("scenario"), Item: q.Get("item"), States: jobStates()}
	b.Filtered = b.State != "" || b.Scenario != "" || b.Item != ""
	f := vault.JobFilter{Scenario: b.Scenario, Item: dr.ItemID(b.Item), Limit: 1000}
	switch b.State {
	case "":
	case "open":
		f.States = []dr.JobState{dr.JobNotStarted, dr.JobInProgress, dr.JobWaiting, dr.JobCancelling}
	default:
		f.States = []dr.JobState{dr.JobState(b.State)}
	}
	list, err := p.V.Jobs(r.Context(), f)
	if err != nil {
		return err
	}
	if b.Item != "" && len(list) > 0 {
		b.ItemName = list[0].TargetName
	}
	b.Scenarios = scenarios(list, b.Scenario)
	b.Rows, b.Pages = estate.Paged(r, list, estate.PageSize)
	for i, j := range b.Rows {
		if j.State.Final() || i >= 20 {
			continue
		}
		if full, err := p.V.Job(r.Context(), j.ID); err == nil { // for its progress
			b.Rows[i] = full
		}
	}
	return p.Render(w, r, "jobs", page.View{Title: "Jobs", Kind: "What the vault does and has done", Section: "jobs", Icon: "jobs", Topics: "job", Body: b})
}

// scenarios lists the kinds of jobs that can be chosen.
func scenarios(list []dr.Job, chosen string) []choice {
	seen := map[string]string{}
	for _, j := range list {
		seen[j.Scenario] = j.Title
	}
	if _, ok := seen[chosen]; !ok && chosen != "" {
		seen[chosen] = chosen
	}
	out := make([]choice, 0, len(seen))
	for k, t := range seen {
		out = append(out, choice{k, t})
	}
	slices.SortFunc(out, func(a, b choice) int { return cmp.Compare(a.Text, b.Text) })
	return out
}

// fact is a result of a job for people.
type fact struct {
	Name, Value string
	Since       time.Time
}

type jobBody struct {
	dr.Job
	Percent    float64
	Remaining  time.Duration
	Target     string // address of what the job is about
	Facts      []fact
	Console    string
	Screenshot bool
	Problems   []jobProblem
	Ask        string
	Doing      *dr.Task
}

type jobProblem struct {
	*words.Problem
	Task    string
	At      time.Time
	Attempt int // how often the same was reported in a row
}

func (p jobPages) show(w http.ResponseWriter, r *page.Request) error {
	j, err := p.V.Job(r.Context(), dr.JobID(r.PathValue("id")))
	if err != nil {
		return err
	}
	b := jobBody{Job: j, Percent: words.JobPercent(j), Ask: r.URL.Query().Get("ask"), Console: j.Outcome["console"], Screenshot: j.Outcome["screenshot"] != ""}
	for i, t := range j.Tasks {
		if !t.State.Final() && b.Doing == nil {
			b.Doing, b.Remaining = &j.Tasks[i], t.ETA
		}
	}
	b.Facts = facts(j)
	titles := map[string]string{}
	for _, t := range j.Tasks {
		titles[t.Name] = t.Title
	}
	for _, e := range j.Errors {
		if n := len(b.Problems); n > 0 && b.Problems[n-1].Code == e.Code && b.Problems[n-1].Message == words.Sentence(e.Message) {
			b.Problems[n-1].Attempt++
			b.Problems[n-1].At = e.At
			continue
		}
		title := titles[e.Task]
		if title == "" {
			title = e.Task
		}
		b.Problems = append(b.Problems, jobProblem{words.Explain(e.Code, e.Message, "", e.Hint), title, e.At, 1})
	}
	slices.Reverse(b.Problems)
	if j.Item != "" {
		if _, err := p.V.ItemByID(r.Context(), j.Item); err == nil {
			b.Target = "/portal/items/" + url.PathEscape(string(j.Item))
		}
	}
	return p.Render(w, r, "job", page.View{Title: j.Title, Kind: j.TargetName, Section: "jobs", Icon: "jobs", Crumbs: []page.Crumb{{Name: "Jobs", URL: "/portal/jobs"}},
		URL: "/portal/jobs/" + url.PathEscape(string(j.ID)), Topics: "job/" + string(j.ID), Body: b})
}

// facts are a job's results in an order that reads well, then whatever else there is.
func facts(j dr.Job) []fact {
	names := []choice{{"recoveryPoint", "Recovery point"}, {"recoveryPointTime", "Recovery point time"}, {"recoveryHost", "Recovery host"}, {"vm", "Recovery VM"},
		{"bootVerified", "Boot verified"}, {"matched", "Sign of life"}, {"bootProblem", "Boot problem"}, {"rtoSeconds", "Recovery time (RTO)"}, {"rpoSeconds", "Data age (RPO)"},
		{"prepareSeconds", "Preparation"}, {"startSeconds", "Start"}, {"bootSeconds", "Guest boot"}, {"bytes", "Data stored"}, {"items", "Items looked at"}, {"warnings", "Notes"}, {"store", "Store"}}
	var out []fact
	used := map[string]bool{"console": true, "screenshot": true}
	for _, n := range names {
		v, ok := j.Outcome[n.Value]
		used[n.Value] = true
		if !ok || v == "" {
			continue
		}
		f := fact{Name: n.Text, Value: v}
		switch {
		case strings.HasSuffix(n.Value, "Seconds"):
			if d, err := time.ParseDuration(v + "s"); err == nil {
				f.Value = words.Span(d)
			}
		case n.Value == "recoveryPointTime":
			f.Since, _ = time.Parse(time.RFC3339, v)
		case n.Value == "bytes":
			f.Value = words.BytesOf(v)
		case v == "true":
			f.Value = "Yes"
		case v == "false":
			f.Value = "No"
		}
		out = append(out, f)
	}
	var rest []string
	for k := range j.Outcome {
		if !used[k] {
			rest = append(rest, k)
		}
	}
	slices.Sort(rest)
	for _, k := range rest {
		out = append(out, fact{Name: k, Value: j.Outcome[k]})
	}
	return out
}

// screenshot serves the console picture that a job took.
func (p jobPages) screenshot(w http.ResponseWriter, r *page.Request) error {
	b, err := p.V.Screenshot(r.Context(), dr.JobID(r.PathValue("id")))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Cache-Control", "private, max-age=86400")
	_, _ = w.Write(b) // the browser has gone
	return nil
}

// act cancels, restarts or resumes a job.
func (p jobPages) act(w http.ResponseWriter, r *page.Request) error {
	id := dr.JobID(r.PathValue("id"))
	var err error
	switch r.PathValue("verb") {
	case "cancel":
		err = p.V.CancelJob(r.Context(), id, r.Who.Name)
	case "restart":
		err = p.V.RestartJob(r.Context(), id, r.Who.Name)
	case "resume":
		err = p.V.ResumeJob(r.Context(), id, strings.TrimSpace(r.PostFormValue("comments")), r.Who.Name)
	default:
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "there is no operation %q", r.PathValue("verb"))
	}
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/jobs/"+url.PathEscape(string(id)), "")
}
