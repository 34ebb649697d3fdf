package operate

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
)

// jobView is a job as --output json shows it.
type jobView struct {
	ID             string            `json:"id,omitempty"`
	Scenario       string            `json:"scenario,omitempty"`
	Title          string            `json:"title,omitempty"`
	State          string            `json:"state"`
	Percent        float64           `json:"percent"`
	Target         string            `json:"target,omitempty"`
	Item           string            `json:"item,omitempty"`
	RequestedBy    string            `json:"requestedBy,omitempty"`
	Started        *time.Time        `json:"started,omitempty"`
	Ended          *time.Time        `json:"ended,omitempty"`
	AllowedActions []string          `json:"allowedActions,omitempty"`
	Tasks          []taskView        `json:"tasks,omitempty"`
	Errors         []errorView       `json:"errors,omitempty"`
	Outcome        map[string]string `json:"outcome,omitempty"`
}

type taskView struct {
	Name       string     `json:"name"`
	Title      string     `json:"title"`
	State      string     `json:"state"`
	Percent    float64    `json:"percent"`
	ETASeconds int64      `json:"etaSeconds,omitempty"`
	Attempt    int        `json:"attempt,omitempty"`
	Note       string     `json:"note,omitempty"`
	Started    *time.Time `json:"started,omitempty"`
	Ended      *time.Time `json:"ended,omitempty"`
}

type errorView struct {
	Task    string     `json:"task,omitempty"`
	Code    string     `json:"code,omitempty"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
	At      *time.Time `json:"at,omitempty"`
}

func viewJob(id string, j armwire.Job) jobView {
	v := jobView{ID: id, Scenario: j.ScenarioName, Title: j.FriendlyName, State: j.State, Percent: j.ProgressPercent, Target: j.TargetObjectName, Item: j.ItemID,
		RequestedBy: j.RequestedBy, Started: j.StartTime, Ended: j.EndTime, AllowedActions: j.AllowedActions, Outcome: j.CustomDetails.Outcome}
	for _, t := range j.Tasks {
		v.Tasks = append(v.Tasks, taskView{t.Name, t.FriendlyName, t.State, t.ProgressPercent, t.ETASeconds, t.Attempt, t.Note, t.StartTime, t.EndTime})
	}
	for _, e := range j.Errors {
		if d := e.ServiceErrorDetails; d != nil {
			v.Errors = append(v.Errors, errorView{e.TaskID, d.Code, d.Message, d.RecommendedAction, e.CreationTime})
		}
	}
	return v
}

func (a *app) jobCommand() *cobra.Command {
	c := &cobra.Command{Use: "job", Short: "Follow and steer jobs"}
	var state, item string
	var limit int
	ls := &cobra.Command{Use: "list", Short: "List jobs, newest first", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		var terms []string
		if state != "" {
			terms = append(terms, "JobStatus eq '"+quote(state)+"'")
		}
		if item != "" {
			s, err := c.Items().Summary(ctx, item)
			if err != nil {
				return err
			}
			terms = append(terms, "ItemId eq '"+s.ID+"'")
		}
		jobs, err := c.Jobs().List(ctx, strings.Join(terms, " and "))
		if err != nil {
			return err
		}
		cut := abbreviation(jobs)
		var views []jobView
		for _, j := range jobs[:min(len(jobs), max(limit, 0))] {
			views = append(views, viewJob(j.Name, j.Properties))
		}
		return console.List(a.Console, views, "There are no jobs.",
			console.Col("JOB", func(j jobView) string { return j.ID[:min(len(j.ID), cut)] }), console.Wide("WHAT", func(j jobView) string { return j.Title + " " + j.Target }),
			console.Wide("STATE", func(j jobView) string { return j.State }), console.Wide("STARTED", func(j jobView) string { return a.When(j.Started) }))
	})}
	ls.Flags().StringVar(&state, "state", "", "only jobs of this state, such as InProgress or Failed")
	ls.Flags().StringVar(&item, "item", "", "only jobs of this protected item")
	ls.Flags().IntVar(&limit, "limit", 20, "at most so many")
	var shot string
	show := &cobra.Command{Use: "show JOB", Short: "Show a job with its tasks", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		id, err := jobID(ctx, c, args[0])
		if err != nil {
			return err
		}
		if shot != "" {
			if err := console.CreateFile(shot, func() ([]byte, error) { return c.Jobs().Screenshot(ctx, id) }); err != nil {
				return err
			}
			a.Say("The console screenshot is in %s.", shot)
		}
		return a.printJob(ctx, c, id, true)
	})}
	show.Flags().StringVar(&shot, "screenshot", "", "also save the console screenshot of a failover to this file (PNG)")
	watch := &cobra.Command{Use: "watch JOB", Short: "Follow a job to its end; the exit code tells how it ended", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		id, err := jobID(ctx, c, args[0])
		if err != nil {
			return err
		}
		if _, err := a.watch(ctx, c, id); err != nil {
			return err
		}
		return a.printJob(ctx, c, id, false)
	})}
	c.AddCommand(ls, show, watch)
	for _, act := range []struct{ verb, short string }{
		{"cancel", "Cancel a job; what it has half made is undone"}, {"restart", "Start a failed job again at the step that failed"}, {"resume", "Let a job go on that waits for a person"},
	} {
		sub := &cobra.Command{Use: act.verb + " JOB", Short: act.short, Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			id, err := jobID(ctx, c, args[0])
			if err != nil {
				return err
			}
			if _, err := c.Jobs().Do(ctx, id, act.verb, ""); err != nil {
				return err
			}
			return a.printJob(ctx, c, id, false)
		})}
		c.AddCommand(sub)
	}
	for _, sub := range c.Commands() {
		if sub != ls {
			sub.ValidArgsFunction = a.complete(func(ctx context.Context, c *armclient.Client) (names []string, err error) {
				jobs, err := c.Jobs().List(ctx, "")
				for _, j := range jobs {
					names = append(names, j.Name+"\t"+j.Properties.FriendlyName+" "+j.Properties.TargetObjectName)
				}
				return names, err
			})
		}
	}
	return c
}

// quote escapes a text of a $filter.
func quote(s string) string { return strings.ReplaceAll(s, "'", "''") }

// shortID is how far tables show a job's id at least: it begins with its time in milliseconds.
const shortID = 13

// abbreviation is the length to which the ids of jobs can be cut and still differ.
func abbreviation(jobs []armclient.Job) int {
	for n := shortID; ; n++ {
		seen := map[string]bool{}
		for _, j := range jobs {
			seen[j.Name[:min(n, len(j.Name))]] = true
		}
		if len(seen) == len(jobs) || n >= 36 {
			return n
		}
	}
}

// jobID completes an abbreviated id.
func jobID(ctx context.Context, c *armclient.Client, ref string) (string, error) {
	if len(ref) >= 36 {
		return ref, nil
	}
	all, err := c.Jobs().List(ctx, "")
	if err != nil {
		return "", err
	}
	j, err := find(all, "job", ref, "holdfast job list", func(j armclient.Job) bool { return ref != "" && strings.HasPrefix(j.Name, strings.ToLower(ref)) })
	return j.Name, err
}

// printJob prints a job as it is now, in table form with its tasks or in short.
func (a *app) printJob(ctx context.Context, c *armclient.Client, id string, tasks bool) error {
	j, err := c.Jobs().Get(ctx, id)
	if err != nil {
		return err
	}
	v := viewJob(id, j.Properties)
	took := ""
	if v.Started != nil && v.Ended != nil {
		took = console.Short(v.Ended.Sub(*v.Started))
	}
	fields := []console.Field{console.F("job", v.ID), console.F("what", strings.TrimSpace(v.Title+" "+v.Target)), console.F("state", v.State), console.F("took", took)}
	if tasks {
		fields = append(fields, console.F("started", a.When(v.Started)), console.F("by", v.RequestedBy), console.F("possible", strings.Join(v.AllowedActions, ", ")))
		name := "tasks"
		for _, l := range a.progress().tasks(j.Properties) {
			fields = append(fields, console.F(name, strings.TrimPrefix(l, "  ")))
			name = ""
		}
	}
	for _, e := range v.Errors {
		fields = append(fields, console.F("error", e.Message), console.F("  do", e.Hint))
	}
	for _, k := range slices.Sorted(maps.Keys(v.Outcome)) {
		fields = append(fields, console.F(k, v.Outcome[k]))
	}
	return a.Describe(v, fields...)
}
