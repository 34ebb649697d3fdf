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
				string(Timeline(points, now, "x")), string(Lag(points, now, now, 0)), string(Churn(points, now, now))} {
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
