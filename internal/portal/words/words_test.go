package words

import (
	"math"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{-1: "–", 0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 - 1: "1.0 MiB", 40 << 30: "40 GiB", 123456789: "118 MiB", math.MaxInt64: "8 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0 ms", 0: "0 ms", 900 * time.Millisecond: "900 ms", 4500 * time.Millisecond: "4.5 s", 59 * time.Second: "59 s", 60 * time.Second: "1 min", 3599 * time.Second: "59 min 59 s",
		2 * time.Hour: "2 h", 49*time.Hour + 59*time.Minute: "2 d 1 h", 3599*time.Second + 999*time.Millisecond: "1 h"} {
		if got := Span(d); got != want {
			t.Errorf("Span(%v) = %q, want %q", d, got, want)
		}
	}
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{0: "just now", -time.Hour: "1 hour ago", -2 * time.Minute: "2 minutes ago", 3 * 24 * time.Hour: "in 3 days", -36 * time.Hour: "1 day ago"} {
		if got := Relative(now.Add(d), now); got != want {
			t.Errorf("Relative(%v) = %q, want %q", d, got, want)
		}
	}
	for p, want := range map[float64]string{0: "0\u00a0%", 0.04: "0.0\u00a0%", 3.14: "3.1\u00a0%", 99.9: "99\u00a0%", 100: "100\u00a0%", 140: "100\u00a0%", -1: "0\u00a0%", math.NaN(): "0\u00a0%"} {
		if got := Percent(p); got != want {
			t.Errorf("Percent(%v) = %q, want %q", p, got, want)
		}
	}
	for s, want := range map[string]string{"berlin.VaultCredentials": "berlin.VaultCredentials", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$(x)": "'$(x)'"} {
		if got := ShellQuote(s); got != want {
			t.Errorf("ShellQuote(%q) = %q, want %q", s, got, want)
		}
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	p := ProblemOf(dr.New(dr.KindConflict, dr.CodeJobInProgress, "x", "job 7 of db01 is running"))
	if p.Title != "Another job is running" || p.Message != "job 7 of db01 is running." || p.Cause == "" || p.Remedy != "Wait for the job or cancel it, then try again." {
		t.Errorf("%+v", p)
	}
	p = ProblemOf(dr.Errorf(dr.KindInvalid, "x", "no").WithHint("enter a name"))
	if p.Remedy != "Enter a name." || p.Title == "" {
		t.Errorf("%+v", p)
	}
	// What is stored with an error counts more than the catalogue.
	if p := Explain(dr.CodeSpoolFull, "db01: full", "", "raise it"); p.Message != "db01: full." || p.Cause == "" || p.Remedy != "Raise it." {
		t.Errorf("%+v", p)
	}
	for _, k := range dr.Kinds() {
		if s := StatusOf(dr.Errorf(k, "x", "y")); s < 400 || s > 599 {
			t.Errorf("kind %s has the status %d", k, s)
		}
		if ProblemOf(dr.Errorf(k, "x", "y")).Title == "" {
			t.Errorf("kind %s has no title", k)
		}
	}
}
