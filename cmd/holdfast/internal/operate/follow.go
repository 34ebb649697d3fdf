package operate

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// waitFlag is --no-wait of commands that start a job.
type waitFlag bool

func (w *waitFlag) add(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar((*bool)(w), "no-wait", false, "start the job and return; follow it with 'holdfast job watch'")
	return c
}

// finish follows an operation to its end and prints its job.
func (a *app) finish(ctx context.Context, c *armclient.Client, op *armclient.Operation, noWait waitFlag) error {
	if op.JobID == "" { // done at once
		return a.Describe(jobView{State: "Succeeded"}, console.F("state", "Succeeded"))
	}
	if noWait {
		a.Say("Follow the job with 'holdfast job watch %s'.", op.JobID)
		return a.Describe(jobView{ID: op.JobID, State: "InProgress"}, console.F("job", op.JobID))
	}
	p := a.progress()
	if err := op.Wait(ctx, nil, p.update); err != nil {
		return goesOn(ctx, op.JobID, err)
	}
	return a.printJob(ctx, c, op.JobID, false)
}

// goesOn explains that a job is not ended by ending the command that follows it.
func goesOn(ctx context.Context, job string, err error) error {
	if ctx.Err() == nil {
		if e := dr.Errorf(dr.KindOf(err), "holdfast", "job %s: %w", job, err); dr.HintOf(err) == "" {
			return e.WithHint("See 'holdfast job show %s'.", job)
		}
		return err
	}
	return dr.Errorf(dr.KindCanceled, "holdfast", "no longer following the job; it goes on").
		WithHint("Follow it with 'holdfast job watch %s', or end it with 'holdfast job cancel %s'.", job, job)
}

// watch follows a job until it has ended or waits for a person.
func (a *app) watch(ctx context.Context, c *armclient.Client, id string) (armwire.Job, error) {
	p := a.progress()
	for down := false; ; {
		j, err := c.Jobs().Get(ctx, id)
		switch {
		case ctx.Err() != nil:
			return armwire.Job{}, goesOn(ctx, id, ctx.Err())
		case dr.KindOf(err) == dr.KindUnavailable && err != nil:
			if !down {
				a.Say("the vault does not answer; trying again")
			}
			down = true
		case err != nil:
			return armwire.Job{}, err
		default:
			down = false
			p.update(j.Properties)
			if ended(j.Properties) || j.Properties.State == "Suspended" {
				return j.Properties, jobError(id, j.Properties)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(a.Poll, time.Second)):
		}
	}
}

func ended(j armwire.Job) bool {
	return j.State == "Succeeded" || j.State == "Failed" || j.State == "Cancelled"
}

// jobError is the error that a job ended with.
func jobError(id string, j armwire.Job) error {
	switch j.State {
	case "Cancelled":
		return dr.Errorf(dr.KindCanceled, "holdfast", "%s was cancelled", j.FriendlyName).WithHint("See 'holdfast job show %s'.", id)
	case "Failed":
		e := dr.Errorf(dr.KindInternal, "holdfast", "%s failed", j.FriendlyName).WithHint("See 'holdfast job show %s'.", id)
		for _, x := range j.Errors {
			if d := x.ServiceErrorDetails; d != nil && d.Message != "" {
				e.Message, e.Code, e.Hint = j.FriendlyName+" failed: "+d.Message, dr.Code(d.Code), d.RecommendedAction
				if entry, ok := dr.Lookup(e.Code); ok {
					e.Kind = entry.Kind
				}
			}
		}
		return e
	}
	return nil
}

// progress shows how a job goes on: redrawn on a terminal, a line for each
// change otherwise.
type progress struct {
	w     io.Writer
	live  bool
	width int
	now   func() time.Time
	drawn int // lines on the terminal
	said  map[string]string
}

func (a *app) progress() *progress {
	return &progress{w: a.Err, live: a.Live && !a.JSON, width: a.Width, now: a.Now, said: map[string]string{}}
}

func (p *progress) update(j armwire.Job) {
	if p.live {
		var b strings.Builder
		if p.drawn > 0 {
			fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
		}
		lines := append([]string{p.headline(j)}, p.tasks(j)...)
		for _, l := range lines {
			b.WriteString("\x1b[2K" + runewidth.Truncate(l, p.width-1, "…") + "\n")
		}
		b.WriteString("\x1b[J")
		p.drawn = len(lines)
		_, _ = io.WriteString(p.w, b.String()) // only progress
		return
	}
	if !ended(j) {
		p.line("", j.State, p.headline(j))
	}
	for i, l := range p.tasks(j) {
		t := j.Tasks[i]
		if t.State != "NotStarted" {
			p.line(t.TaskID, fmt.Sprint(t.State, int(t.ProgressPercent)/10, t.Attempt, t.Note), l)
		}
	}
	if ended(j) {
		p.line("", j.State, p.headline(j))
	}
}

// line prints a line if what it is about has changed.
func (p *progress) line(key, state, text string) {
	if old, ok := p.said[key]; !ok || old != state {
		p.said[key] = state
		fmt.Fprintln(p.w, text)
	}
}

func (p *progress) headline(j armwire.Job) string {
	s := console.Clean(j.FriendlyName, false)
	if j.TargetObjectName != "" {
		s += " · " + console.Clean(j.TargetObjectName, false)
	}
	return fmt.Sprintf("%s · %s %.0f%%%s", s, j.State, j.ProgressPercent, p.took(j.StartTime, j.EndTime))
}

func (p *progress) tasks(j armwire.Job) (lines []string) {
	for _, t := range j.Tasks {
		l := fmt.Sprintf("  %-6s %s", taskMark(t), console.Clean(t.FriendlyName, false))
		if t.State != "NotStarted" {
			l += p.took(t.StartTime, t.EndTime)
		}
		if t.State == "InProgress" && t.ETASeconds > 0 {
			l += ", " + console.Short(console.Seconds(t.ETASeconds)) + " left"
		}
		if t.Attempt > 1 {
			l += fmt.Sprintf(", attempt %d", t.Attempt)
		}
		if t.Note != "" {
			l += " (" + console.Clean(t.Note, false) + ")"
		}
		lines = append(lines, l)
	}
	return lines
}

// taskMark is a task's state in at most six characters.
func taskMark(t armwire.Task) string {
	switch t.State {
	case "Succeeded":
		return "done"
	case "Failed":
		return "FAILED"
	case "Skipped":
		return "skip"
	case "Cancelled", "Cancelling":
		return "cancel"
	case "NotStarted":
		return ""
	case "Suspended":
		return "waits"
	}
	if t.ProgressPercent > 0 {
		return fmt.Sprintf("%.0f%%", t.ProgressPercent)
	}
	return "..."
}

func (p *progress) took(from, to *time.Time) string {
	if from == nil {
		return ""
	}
	end := p.now()
	if to != nil {
		end = *to
	}
	return ", " + console.Short(max(end.Sub(*from), 0))
}
