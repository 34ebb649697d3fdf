package portal

import (
	"math"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{-1: "–", 0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 - 1: "1.0 MiB", 40 << 30: "40 GiB", 123456789: "118 MiB", math.MaxInt64: "8 EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0 ms", 0: "0 ms", 900 * time.Millisecond: "900 ms", 4500 * time.Millisecond: "4.5 s", 59 * time.Second: "59 s", 60 * time.Second: "1 min", 3599 * time.Second: "59 min 59 s",
		2 * time.Hour: "2 h", 49*time.Hour + 59*time.Minute: "2 d 1 h", 3599*time.Second + 999*time.Millisecond: "1 h"} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{0: "just now", -time.Hour: "1 hour ago", -2 * time.Minute: "2 minutes ago", 3 * 24 * time.Hour: "in 3 days", -36 * time.Hour: "1 day ago"} {
		if got := relative(now.Add(d), now); got != want {
			t.Errorf("relative(%v) = %q, want %q", d, got, want)
		}
	}
	for p, want := range map[float64]string{0: "0 %", 0.04: "0.0 %", 3.14: "3.1 %", 99.9: "99 %", 100: "100 %", 140: "100 %", -1: "0 %", math.NaN(): "0 %"} {
		if got := percent(p); got != want {
			t.Errorf("percent(%v) = %q, want %q", p, got, want)
		}
	}
	for s, want := range map[string]string{"berlin.VaultCredentials": "berlin.VaultCredentials", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$(x)": "'$(x)'"} {
		if got := shellQuote(s); got != want {
			t.Errorf("shellQuote(%q) = %q, want %q", s, got, want)
		}
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
			for _, svg := range []string{string(lagChart(points, now.Add(-time.Hour), now, time.Minute)), string(lagChart(points, now.Add(-24*time.Hour), now, 0)), string(churnChart(points, now.Add(-time.Hour), now)),
				string(timeline(points, now, "x")), string(lagChart(points, now, now, 0)), string(churnChart(points, now, now))} {
				if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") || strings.Contains(svg, `="-`) || strings.Count(svg, "<svg") != strings.Count(svg, "</svg>") || len(svg) > 60<<10 {
					t.Errorf("bad drawing (%d bytes): %.300s", len(svg), svg)
				}
			}
		})
	}
	// The outage in the points shows: a lag of about 4 minutes at 30-second cycles.
	if svg := string(lagChart(many, now.Add(-time.Hour), now, 30*time.Second)); !strings.Contains(svg, ": 4 min") {
		t.Error("the gap does not show in the lag chart")
	}
}

func TestNext(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		it     dr.ProtectedItem
		tone   string
		state  string
		next   string
		dialog string
	}{
		{dr.ProtectedItem{Protection: dr.Protected}, "warn", "Protected", "Test failover", "test-failover"},
		{dr.ProtectedItem{Protection: dr.Protected}, "good", "Protected", "", ""},
		{dr.ProtectedItem{Protection: dr.InitialReplication}, "idle", "Initial replication 0 %", "", ""},
		{dr.ProtectedItem{Protection: dr.EnableFailed, Health: dr.HealthCritical}, "idle", "Enabling failed", "See why", ""},
		{dr.ProtectedItem{Protection: dr.Protected, Test: dr.TestWaiting}, "warn", "Test failover: clean-up pending", "Clean up test", "cleanup-test"},
		{dr.ProtectedItem{Protection: dr.Protected, Failover: dr.FailoverCommitPending, Active: dr.AtRecovery}, "warn", "Failed over, commit pending", "Commit or cancel", "commit"},
		{dr.ProtectedItem{Protection: dr.Protected, Job: "1", Test: dr.TestRunning}, "warn", "Test failover in progress", "", ""},
		{dr.ProtectedItem{Protection: dr.Protected, Resync: "host crash", Health: dr.HealthCritical, Active: dr.AtPrimary}, "good", "Resynchronization required", "See the problem", ""},
	} {
		next, dialog, _ := nextOf(c.it, itemRow{DrillTone: c.tone})
		if state := stateOf(c.it, dr.ReplicationStatus{}).Text; state != c.state || next != c.next || dialog != c.dialog {
			t.Errorf("%+v: %q %q %q", c.it.Protection, state, next, dialog)
		}
	}
}
