package health

import (
	"testing"
	"time"

	"holdfast/internal/dr"
)

func TestIntervalLengths(t *testing.T) {
	t.Parallel()
	allowed := map[time.Duration]bool{}
	for _, h := range []time.Duration{1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 96, 120, 144, 168} {
		allowed[h*time.Hour] = true
	}
	for l := -time.Hour; l <= 200*time.Hour; l += 30 * time.Minute {
		err := Interval{Length: l, Start: 9 * time.Hour}.Validate()
		if (err == nil) != allowed[l] {
			t.Errorf("%v: %v", l, err)
		}
		if err != nil && (dr.KindOf(err) != dr.KindInvalid || dr.HintOf(err) == "") {
			t.Errorf("%v: %v", l, err)
		}
	}
	for start, ok := range map[time.Duration]bool{0: true, day - time.Minute: true, day: false, -time.Minute: false, time.Second: false} {
		if err := (Interval{Length: day, Start: start}).Validate(); (err == nil) != ok {
			t.Errorf("start %v: %v", start, err)
		}
	}
	if (Interval{}).Validate() != nil || Default().Validate() != nil {
		t.Error("the default is not valid")
	}
}

// TestIntervalBounds: 2026-11-22 is a Sunday. In Berlin clocks go forward on
// 2026-03-29 at 02:00 and back on 2026-10-25 at 03:00.
func TestIntervalBounds(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatalf("%v (install tzdata)", err)
	}
	const layout, h = "2006-01-02 15:04 -0700", time.Hour
	for _, c := range []struct {
		iv           Interval
		at, from, to string
	}{
		{Interval{}, "2026-11-22 12:00 +0100", "2026-11-22 09:00 +0100", "2026-11-22 21:00 +0100"},
		{Interval{}, "2026-11-22 09:00 +0100", "2026-11-22 09:00 +0100", "2026-11-22 21:00 +0100"},
		{Interval{}, "2026-11-22 08:59 +0100", "2026-11-21 21:00 +0100", "2026-11-22 09:00 +0100"},
		{Interval{}, "2026-11-22 23:00 +0100", "2026-11-22 21:00 +0100", "2026-11-23 09:00 +0100"},
		{Interval{h, 30 * time.Minute}, "2026-11-22 00:10 +0100", "2026-11-21 23:30 +0100", "2026-11-22 00:30 +0100"},
		{Interval{8 * h, 9 * h}, "2026-11-22 00:30 +0100", "2026-11-21 17:00 +0100", "2026-11-22 01:00 +0100"},
		{Interval{24 * h, 9 * h}, "2026-11-22 08:00 +0100", "2026-11-21 09:00 +0100", "2026-11-22 09:00 +0100"},
		{Interval{7 * day, 9 * h}, "2026-11-22 12:00 +0100", "2026-11-16 09:00 +0100", "2026-11-23 09:00 +0100"},
		{Interval{7 * day, 9 * h}, "2026-11-23 08:59 +0100", "2026-11-16 09:00 +0100", "2026-11-23 09:00 +0100"},
		{Interval{2 * day, 0}, "1970-01-06 12:00 +0100", "1970-01-05 00:00 +0100", "1970-01-07 00:00 +0100"},
		{Interval{2 * day, 0}, "1970-01-04 12:00 +0100", "1970-01-03 00:00 +0100", "1970-01-05 00:00 +0100"},
		// Clocks change: an hour less, an hour more, none in the missing hour.
		{Interval{}, "2026-03-29 01:00 +0100", "2026-03-28 21:00 +0100", "2026-03-29 09:00 +0200"},
		{Interval{}, "2026-10-25 01:00 +0200", "2026-10-24 21:00 +0200", "2026-10-25 09:00 +0100"},
		{Interval{h, 0}, "2026-03-29 01:30 +0100", "2026-03-29 01:00 +0100", "2026-03-29 03:00 +0200"},
		{Interval{h, 0}, "2026-03-29 03:10 +0200", "2026-03-29 03:00 +0200", "2026-03-29 04:00 +0200"},
		{Interval{h, 0}, "2026-10-25 02:30 +0200", "2026-10-25 02:00 +0200", "2026-10-25 03:00 +0100"},
		{Interval{h, 0}, "2026-10-25 02:30 +0100", "2026-10-25 02:00 +0200", "2026-10-25 03:00 +0100"},
		{Interval{h, 30 * time.Minute}, "2026-10-25 02:10 +0100", "2026-10-25 02:30 +0200", "2026-10-25 03:30 +0100"},
	} {
		at, err := time.Parse(layout, c.at)
		if err != nil {
			t.Fatal(err)
		}
		from, to := c.iv.Bounds(at.In(berlin))
		if from.In(berlin).Format(layout) != c.from || to.In(berlin).Format(layout) != c.to {
			t.Errorf("%v at %s: %s .. %s, want %s .. %s", c.iv, c.at, from.Format(layout), to.Format(layout), c.from, c.to)
		}
	}
}

// TestIntervalsFollowOneAnother: in every zone and length the end of one is the beginning of the next.
func TestIntervalsFollowOneAnother(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"UTC", "Europe/Berlin", "Africa/Cairo", "Australia/Lord_Howe", "America/Los_Angeles"} {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Fatalf("%v (install tzdata)", err)
		}
		for _, hours := range []time.Duration{1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168} {
			iv := Interval{Length: hours * time.Hour, Start: 9*time.Hour + 30*time.Minute}
			at := time.Date(2026, 3, 1, 0, 0, 0, 0, loc)
			for range 2000 {
				from, to := iv.Bounds(at)
				if at.Before(from) || !at.Before(to) || to.Sub(from) > iv.Length+2*time.Hour {
					t.Fatalf("%s, %v: %s is not in %s .. %s", name, iv, at, from, to)
				}
				if f, e := iv.Bounds(to.Add(-time.Nanosecond)); !f.Equal(from) || !e.Equal(to) {
					t.Fatalf("%s, %v: the end of %s .. %s lies in %s .. %s", name, iv, from, to, f, e)
				}
				if f, _ := iv.Bounds(to); !f.Equal(to) {
					t.Fatalf("%s, %v: %s .. %s is followed by %s", name, iv, from, to, f)
				}
				at = to
				if at.Year() > 2027 {
					break
				}
			}
		}
	}
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	var s Statistics
	if s.AverageBytes() != 0 || s.AverageLatency() != 0 {
		t.Error("an average of nothing")
	}
	s = s.At(Default(), now)
	if want := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC); !s.Start.Equal(want) {
		t.Errorf("begin %s, want %s", s.Start, want)
	}
	s.Sent(100, 2*time.Minute)
	s.Sent(50, 4*time.Minute)
	s.Sent(0, -time.Second) // the clocks of two machines
	s.Miss++
	s.Failed(dr.CodeStoreUnreachable)
	s.Failed(dr.CodeVaultUnreachable)
	s.Failed(dr.CodeScratchFull)
	want := Statistics{Start: s.Start, Success: 3, Miss: 1, Bytes: 150, MaxBytes: 100, Latency: 6 * time.Minute, MaxLatency: 4 * time.Minute, NetworkFailures: 2, Failures: 1}
	if s != want || s.AverageBytes() != 50 || s.AverageLatency() != 2*time.Minute {
		t.Errorf("%+v", s)
	}
	if got := s.At(Default(), now.Add(9*time.Hour-time.Nanosecond)); got != want {
		t.Errorf("within the interval: %+v", got)
	}
	if got, want := s.At(Default(), now.Add(9*time.Hour)), (Statistics{Start: now.Add(9 * time.Hour)}); got != want {
		t.Errorf("at its end: %+v", got)
	}
	// A clock that was put back is in another interval: nothing of the future is counted on.
	if got := s.At(Default(), now.Add(-day)); got.Success != 0 {
		t.Errorf("a day back: %+v", got)
	}
	// Another length of the interval begins anew unless it begins at the same time.
	if got := s.At(Interval{Length: time.Hour}, now); got.Success != 0 || !got.Start.Equal(now) {
		t.Errorf("another interval: %+v", got)
	}
}

func TestGrown(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]int{{0, 0, 0}, {3, 5, 2}, {5, 5, 0}, {5, 2, 2}, {5, 0, 0}, {5, -1, 0}} {
		if got := Grown(c[0], c[1]); got != c[2] {
			t.Errorf("Grown(%d, %d) = %d, want %d", c[0], c[1], got, c[2])
		}
	}
}
