package chart

import (
	"math"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

// somePoints makes n points, newest first, with the churn of a working day.
func somePoints(now time.Time, every time.Duration, n int) []dr.RecoveryPoint {
	out := make([]dr.RecoveryPoint, 0, n)
	for i := range n {
		if n > 100 && i > 90 && i < 98 { // an outage
			continue
		}
		at := now.Add(-40*time.Second - time.Duration(i)*every)
		c := dr.CrashConsistent
		if i%3 == 1 {
			c = dr.FileSystemConsistent
		}
		if i%12 == 5 {
			c = dr.AppConsistent
		}
		hour := at.Hour()
		dirty := int64(12<<20 + (i*7919%23)<<20)
		if hour >= 8 && hour <= 18 {
			dirty += int64(i*104729%61) << 21
		}
		out = append(out, dr.RecoveryPoint{Machine: "m", Gen: 1, N: uint64(n - i), Time: at, Consistency: c, DirtyBytes: dirty, DataBytes: dirty * 9 / 10, StoredBytes: dirty * 4 / 10})
	}
	return out
}

// marks are points of a timeline with tiers, names and flags.
func marks(points []dr.RecoveryPoint) []Point {
	out := make([]Point, len(points))
	for i, p := range points {
		out[i] = Point{RecoveryPoint: p, Tier: []string{"newest", "fine", "hourly", "daily", ""}[min(i, 4)], Held: i%5 == 0, Suspect: i%7 == 0}
		if i%11 == 0 {
			out[i].Label = `<b>"before" & after`
		}
	}
	return out
}

// TestRates: a cycle's bytes are spread over the time since the cycle before it.
func TestRates(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	points := []dr.RecoveryPoint{{Gen: 1, N: 2, Time: now, DirtyBytes: 3600 << 20, StoredBytes: 1800 << 20}, {Gen: 1, N: 1, Time: now.Add(-time.Hour)}}
	svg := string(Rates(points, now.Add(-time.Hour), now))
	if n := strings.Count(svg, ": 1 MiB/s changed, 512 KiB/s sent"); n != chartColumns {
		t.Errorf("%d columns show the rate: %.300s", n, svg)
	}
	if Rates(points[:1], now.Add(-time.Hour), now) != "" {
		t.Error("one point has a rate")
	}
}

// TestTimeline: names are escaped, tiers and flags are drawn, each mark once.
func TestTimeline(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	svg := string(Timeline(marks(somePoints(now, time.Hour, 90)), now, dr.PointName(1, 80)))
	for _, want := range []string{"tier fine", "tier hourly", "tier daily", `class="flag"`, "suspect", "marked", "looks encrypted", "&lt;b&gt;", "days ago"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in the timeline", want)
		}
	}
	if strings.Contains(svg, "<b>") {
		t.Error("a name is not escaped")
	}
}

func TestCharts(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	many := somePoints(now, 30*time.Second, 4000)
	for name, points := range map[string][]dr.RecoveryPoint{
		"none": nil, "one": somePoints(now, time.Minute, 1), "two": somePoints(now, time.Minute, 2), "many": many,
		"from the future": {{Gen: 1, N: 1, Time: now.Add(time.Hour), DirtyBytes: 1}}, "all at once": {{Gen: 1, N: 2, Time: now}, {Gen: 1, N: 1, Time: now}},
		"long ago": {{Gen: 1, N: 1, Time: now.Add(-100 * 24 * time.Hour), DirtyBytes: 1}}, "huge": {{Gen: 1, N: 1, Time: now.Add(-time.Minute), DirtyBytes: math.MaxInt64, StoredBytes: math.MaxInt64}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, svg := range []string{string(Lag(points, now.Add(-time.Hour), now, time.Minute)), string(Lag(points, now.Add(-24*time.Hour), now, 0)), string(Churn(points, now.Add(-time.Hour), now)),
				string(Timeline(marks(points), now, "x")), string(Rates(points, now.Add(-time.Hour), now)), string(Rates(points, now, now)), string(Lag(points, now, now, 0)), string(Churn(points, now, now))} {
				if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") || strings.Contains(svg, `="-`) || strings.Count(svg, "<svg") != strings.Count(svg, "</svg>") || len(svg) > 60<<10 {
					t.Errorf("bad drawing (%d bytes): %.300s", len(svg), svg)
				}
			}
		})
	}
	// The outage in the points shows: a lag of about 4 minutes at 30-second cycles.
	if svg := string(Lag(many, now.Add(-time.Hour), now, 30*time.Second)); !strings.Contains(svg, ": 4 min") {
		t.Error("the gap does not show in the lag chart")
	}
}
