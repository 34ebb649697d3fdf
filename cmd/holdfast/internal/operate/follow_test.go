package operate

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func at(s int) *time.Time { t := start.Add(time.Duration(s) * time.Second); return &t }

// drill is a job as the vault shows it, second by second.
func drill() []armwire.Job {
	job := func(state string, percent float64, tasks ...armwire.Task) armwire.Job {
		return armwire.Job{FriendlyName: "Test failover", TargetObjectName: "web01\x1b[2J", State: state, ProgressPercent: percent, StartTime: at(0), Tasks: tasks}
	}
	check := func(state string, end *time.Time) armwire.Task {
		return armwire.Task{TaskID: "Check", FriendlyName: "Check prerequisites", State: state, StartTime: at(0), EndTime: end}
	}
	boot := func(state string, percent float64, eta int64, attempt int, note string) armwire.Task {
		t := armwire.Task{TaskID: "Boot", FriendlyName: "Start test VM", State: state, ProgressPercent: percent, ETASeconds: eta, Attempt: attempt, Note: note}
		if state != "NotStarted" {
			t.StartTime = at(1)
		}
		if state == "Succeeded" {
			t.EndTime = at(6)
		}
		return t
	}
	end := job("Succeeded", 100, check("Succeeded", at(1)), boot("Succeeded", 100, 0, 2, ""))
	end.EndTime = at(6)
	return []armwire.Job{
		job("InProgress", 0, check("InProgress", nil), boot("NotStarted", 0, 0, 0, "")),
		job("InProgress", 50, check("Succeeded", at(1)), boot("InProgress", 12, 44, 1, "")),
		job("InProgress", 50, check("Succeeded", at(1)), boot("InProgress", 13, 43, 1, "")), // no news for a log
		job("InProgress", 60, check("Succeeded", at(1)), boot("InProgress", 42, 9, 2, "waiting for host-b")),
		end,
	}
}

func TestProgressPlain(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	clock := 0
	c := &console.Console{Err: &b, Now: func() time.Time { return *at(clock) }, Width: 80}
	p := (&app{c}).progress()
	for i, j := range drill() {
		clock = i
		p.update(j)
	}
	const want = `Test failover · web01?[2J · InProgress 0%, 0s
  ...    Check prerequisites, 0s
  done   Check prerequisites, 1s
  12%    Start test VM, 0s, 44s left
  42%    Start test VM, 2s, 9s left, attempt 2 (waiting for host-b)
  done   Start test VM, 5s, attempt 2
Test failover · web01?[2J · Succeeded 100%, 6s
`
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", &b, want)
	}
}

func TestProgressLive(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	c := &console.Console{Err: &b, Now: func() time.Time { return *at(3) }, Width: 40, Live: true}
	p := (&app{c}).progress()
	for _, j := range drill() {
		b.Reset()
		p.update(j)
	}
	text, ok := strings.CutPrefix(b.String(), "\x1b[3A") // over the three lines drawn before
	if !ok || strings.Count(text, "\n") != 3 {
		t.Errorf("drawn %q", b.String())
	}
	for line := range strings.Lines(text) {
		if w := runewidth.StringWidth(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "\x1b[2K")); w >= 40 {
			t.Errorf("a line of %d columns would wrap and break the next redraw: %q", w, line)
		}
	}
	c.JSON = true
	if (&app{c}).progress().live {
		t.Error("progress is redrawn although the output is JSON")
	}
}

func TestJobError(t *testing.T) {
	t.Parallel()
	failed := armwire.Job{State: "Failed", FriendlyName: "Test failover", Errors: []armwire.JobError{
		{ServiceErrorDetails: &armwire.ServiceError{Code: "Old", Message: "first attempt"}},
		{ServiceErrorDetails: &armwire.ServiceError{Code: string(dr.CodeBootNotVerified), Message: "no sign of life", RecommendedAction: "look at the picture"}},
	}}
	for _, tc := range []struct {
		name string
		job  armwire.Job
		kind dr.Kind
		text string
	}{
		{"failed with a known code", failed, dr.KindUnavailable, "Test failover failed: no sign of life"},
		{"failed without a reason", armwire.Job{State: "Failed", FriendlyName: "Commit"}, dr.KindInternal, "Commit failed"},
		{"cancelled", armwire.Job{State: "Cancelled", FriendlyName: "Commit"}, dr.KindCanceled, "Commit was cancelled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := jobError("j1", tc.job)
			if err == nil || dr.KindOf(err) != tc.kind || err.Error() != tc.text || dr.HintOf(err) == "" {
				t.Errorf("got %v (%s, hint %q)", err, dr.KindOf(err), dr.HintOf(err))
			}
		})
	}
	for _, state := range []string{"Succeeded", "Suspended", "InProgress"} {
		if err := jobError("j1", armwire.Job{State: state}); err != nil {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func TestGoesOn(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	if err := goesOn(ctx, "j1", dr.New(dr.KindConflict, dr.CodeJobInProgress, "x", "busy")); dr.KindOf(err) != dr.KindConflict || dr.HintOf(err) == "" {
		t.Errorf("an error of the job came out as %v", err)
	}
	cancel()
	err := goesOn(ctx, "j1", ctx.Err())
	if dr.KindOf(err) != dr.KindCanceled || !strings.Contains(dr.HintOf(err), "holdfast job watch j1") {
		t.Errorf("an interrupted command says %v, %q", err, dr.HintOf(err))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	all := []string{"web", "db", "db"}
	one := func(ref string) (string, error) {
		return find(all, "VM", ref, "holdfast vm list", func(s string) bool { return s == ref })
	}
	if s, err := one("web"); s != "web" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if _, err := one("db"); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("two of a name: %v", err)
	}
	var e *dr.Error
	if _, err := one("mail"); !errors.As(err, &e) || e.Kind != dr.KindNotFound || !strings.Contains(e.Hint, "vm list") {
		t.Errorf("none of a name: %v", err)
	}
}

func TestAbbreviation(t *testing.T) {
	t.Parallel()
	job := func(id string) armclient.Job { return armclient.Job{Name: id} }
	a, b := job("01a2044e-0485-7aaa-8000-000000000001"), job("01a2044e-0485-7bbb-8000-000000000002") // made in the same millisecond
	for _, tc := range []struct {
		jobs []armclient.Job
		want int
	}{{nil, shortID}, {[]armclient.Job{a}, shortID}, {[]armclient.Job{a, b}, len("01a2044e-0485-7a")}, {[]armclient.Job{a, a}, 36}} {
		if got := abbreviation(tc.jobs); got != tc.want {
			t.Errorf("%d jobs: %d characters, want %d", len(tc.jobs), got, tc.want)
		}
	}
}
