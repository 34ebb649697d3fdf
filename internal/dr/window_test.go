package dr_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatalf("%v (install tzdata)", err)
	}
	return loc
}

func window(t testing.TB, text string) dr.Window {
	t.Helper()
	w, err := dr.ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWindowText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                    "",
		"  ":                                  "",
		"18:30-06:00":                         "18:30-06:00",
		" 8:00 - 9:05 ":                       "08:00-09:05",
		"18:30–06:00":                         "18:30-06:00",
		"00:00-24:00":                         "00:00-24:00",
		"22:00-00:00":                         "22:00-24:00",
		"mon-fri 08:00-18:00":                 "Mon-Fri 08:00-18:00",
		"Monday-Friday 08:00-18:00":           "Mon-Fri 08:00-18:00",
		"Sat-Sun 00:00-24:00":                 "Sat Sun 00:00-24:00",
		"Fri-Mon 01:00-02:00":                 "Mon Fri-Sun 01:00-02:00",
		"Mon Wed Fri 01:00-02:00":             "Mon Wed Fri 01:00-02:00",
		"Mon-Sun 01:00-02:00":                 "01:00-02:00",
		"Mon-Thu 19:00-05:00,Fri 19:00-24:00": "Mon-Thu 19:00-05:00, Fri 19:00-24:00",
		"22:00-04:00 Europe/Berlin":           "22:00-04:00 Europe/Berlin",
		"Sun 22:00-04:00, 05:00-06:00 UTC":    "Sun 22:00-04:00, 05:00-06:00 UTC",
		"22:00-04:00 Local":                   "22:00-04:00",
	} {
		w, err := dr.ParseWindow(in)
		if err != nil || w.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, w, err, want)
			continue
		}
		if again := window(t, w.String()); !again.Equal(w) || again.String() != want {
			t.Errorf("%q does not read back", want)
		}
	}
	for in, part := range map[string]string{
		"always":                                 "neither a time nor a day",
		"18:30":                                  "not a time from-to",
		"18:30-18:30":                            "no length",
		"24:00-06:00":                            "begins at 24:00",
		"18:30-24:01":                            "not a time of the day",
		"18:60-19:00":                            "not a time of the day",
		"18:5-19:00":                             "not a time of the day",
		"1830-1900":                              "not a time of the day",
		"18:30:00-19:00":                         "not a time of the day",
		"Mo 18:30-19:00":                         "neither a time nor a day",
		"Mon-Fry 18:30-19:00":                    "neither a time nor a day",
		"Mon":                                    "names no time",
		"18:30-19:00,":                           "names no time",
		"18:30-19:00 Mon, 9:00-10:00":            "after a time",
		"18:30-19:00 Europe/Berlin, 20:00-21:00": "after a time",
		"18:30-19:00 Europe/Atlantis":            `does not know the time zone "Europe/Atlantis"`,
		"18:30-19:00 ../../etc/passwd":           "does not know the time zone",
		"18:30-19:00 Europe/Berlin UTC":          "after a time",
		strings.Repeat("1:00-2:00,", 16) + "3:00-4:00": "more than 16",
		strings.Repeat("x", 501):                       "longer than",
		"18:30-19:00 Mon-Fri":                          "does not know the time zone",
		"-1:00-2:00":                                   "neither a time nor a day",
		"\xff\xfe 1:00-2:00":                           "neither a time nor a day",
	} {
		w, err := dr.ParseWindow(in)
		if dr.CodeOf(err) != dr.CodeWindowInvalid || dr.KindOf(err) != dr.KindInvalid || !strings.Contains(err.Error(), part) || dr.HintOf(err) == "" {
			t.Errorf("%q: %v; want an error with %q", in, err, part)
		}
		if !w.IsZero() {
			t.Errorf("%q: not the zero window with the error", in)
		}
	}
}

func TestWindowJSON(t *testing.T) {
	t.Parallel()
	type doc struct {
		W dr.Window `json:"w,omitzero"`
	}
	text, err := json.Marshal(doc{W: window(t, "Mon-Fri 8:00-18:00 Europe/Berlin")})
	if err != nil || string(text) != `{"w":"Mon-Fri 08:00-18:00 Europe/Berlin"}` {
		t.Errorf("%s %v", text, err)
	}
	var back doc
	if err := json.Unmarshal(text, &back); err != nil || back.W.String() != "Mon-Fri 08:00-18:00 Europe/Berlin" {
		t.Errorf("%v %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"w":"soon"}`), &back); dr.CodeOf(err) != dr.CodeWindowInvalid || back.W.IsZero() {
		t.Errorf("a bad text: %v, %v", back, err)
	}
	if text, _ := json.Marshal(doc{}); string(text) != "{}" {
		t.Errorf("the zero window is %s", text)
	}
}

// TestWindowTimes: 2026-11-22 is a Sunday.
func TestWindowTimes(t *testing.T) {
	t.Parallel()
	const layout = "2006-01-02 15:04"
	berlin := zone(t, "Europe/Berlin")
	for _, c := range []struct {
		window, at   string
		next, closes string // next = at: open
	}{
		{"18:30-06:00", "2026-11-22 12:00", "2026-11-22 18:30", ""},
		{"18:30-06:00", "2026-11-22 18:29", "2026-11-22 18:30", ""},
		{"18:30-06:00", "2026-11-22 18:30", "2026-11-22 18:30", "2026-11-23 06:00"},
		{"18:30-06:00", "2026-11-23 05:59", "2026-11-23 05:59", "2026-11-23 06:00"},
		{"18:30-06:00", "2026-11-23 06:00", "2026-11-23 18:30", ""},
		{"Mon-Fri 08:00-18:00", "2026-11-22 12:00", "2026-11-23 08:00", ""},
		{"Mon-Fri 08:00-18:00", "2026-11-27 17:59", "2026-11-27 17:59", "2026-11-27 18:00"},
		{"Mon-Fri 08:00-18:00", "2026-11-27 18:00", "2026-11-30 08:00", ""},
		// The day names the opening: Friday night belongs to Friday.
		{"Fri 22:00-06:00", "2026-11-28 05:00", "2026-11-28 05:00", "2026-11-28 06:00"},
		{"Fri 22:00-06:00", "2026-11-27 05:00", "2026-11-27 22:00", ""},
		{"Sat 22:00-06:00", "2026-11-28 05:00", "2026-11-28 22:00", ""},
		// Openings that touch are one, in whatever order they are written.
		{"22:00-24:00, 08:00-09:00, 00:00-04:00", "2026-11-22 23:00", "2026-11-22 23:00", "2026-11-23 04:00"},
		{"22:00-24:00, 08:00-09:00, 00:00-04:00", "2026-11-22 08:30", "2026-11-22 08:30", "2026-11-22 09:00"},
		{"22:00-24:00, 08:00-09:00, 00:00-04:00", "2026-11-22 05:00", "2026-11-22 08:00", ""},
		{"Fri 19:00-24:00, Sat-Sun 00:00-24:00, Mon 00:00-06:00", "2026-11-21 12:00", "2026-11-21 12:00", "2026-11-23 06:00"},
		{"Sun 10:00-11:00", "2026-11-22 11:00", "2026-11-29 10:00", ""},
		// All the time, though not the zero window: it never closes.
		{"00:00-24:00", "2026-11-22 11:00", "2026-11-22 11:00", "never"},
		{"12:00-00:00, 00:00-12:00", "2026-11-22 11:00", "2026-11-22 11:00", "never"},
		{"", "2026-11-22 11:00", "2026-11-22 11:00", "never"},
	} {
		at, err := time.ParseInLocation(layout, c.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		w := window(t, c.window).In(berlin)
		next, closes := w.Next(at), w.Closes(at)
		if got := next.In(berlin).Format(layout); got != c.next {
			t.Errorf("%q at %s: next %s, want %s", c.window, c.at, got, c.next)
		}
		if w.Contains(at) != (c.next == c.at) {
			t.Errorf("%q at %s: contains %v", c.window, c.at, w.Contains(at))
		}
		switch {
		case c.closes == "" || c.closes == "never":
			if !closes.IsZero() {
				t.Errorf("%q at %s: closes %s, want %q", c.window, c.at, closes, c.closes)
			}
		case closes.In(berlin).Format(layout) != c.closes:
			t.Errorf("%q at %s: closes %s, want %s", c.window, c.at, closes.In(berlin), c.closes)
		}
	}
}

// TestWindowZone: the zone in the text wins over the place of evaluation; t's own zone does not matter.
func TestWindowZone(t *testing.T) {
	t.Parallel()
	tokyo, berlin := zone(t, "Asia/Tokyo"), zone(t, "Europe/Berlin")
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, berlin)
	w := window(t, "18:30-19:00 Europe/Berlin").In(tokyo)
	if !w.Contains(at) || !w.Contains(at.UTC()) || !w.Contains(at.In(tokyo)) {
		t.Error("the zone of the text does not win")
	}
	if v := window(t, "18:30-19:00").In(tokyo); v.Contains(at) || !v.Contains(time.Date(2026, 11, 22, 18, 30, 0, 0, tokyo).UTC()) {
		t.Error("In does not set the zone")
	}
	local := window(t, "18:30-19:00")
	if !local.Contains(time.Date(2026, 11, 22, 18, 45, 0, 0, time.Local).UTC()) {
		t.Error("without a zone the host's own holds")
	}
}

// TestWindowDaylightSaving: in Berlin clocks go from 02:00 to 03:00 on
// 2026-03-29 and from 03:00 back to 02:00 on 2026-10-25. Instants are written in UTC.
func TestWindowDaylightSaving(t *testing.T) {
	t.Parallel()
	const layout = "01-02 15:04"
	for _, c := range []struct{ name, window, from, opens, closes string }{
		{"night over the short night", "18:30-06:00", "03-28 12:00", "03-28 17:30", "03-29 04:00"},
		{"night over the long night", "18:30-06:00", "10-24 12:00", "10-24 16:30", "10-25 05:00"},
		{"opens in the missing hour", "02:30-06:00", "03-28 12:00", "03-29 01:00", "03-29 04:00"},
		{"closes in the missing hour", "22:00-02:30", "03-28 12:00", "03-28 21:00", "03-29 01:00"},
		{"lies in the missing hour", "02:15-02:45", "03-28 12:00", "03-30 00:15", "03-30 00:45"},
		{"opens in the double hour", "02:30-06:00", "10-24 12:00", "10-25 00:30", "10-25 05:00"},
		{"closes in the double hour", "22:00-02:30", "10-24 12:00", "10-24 20:00", "10-25 00:30"},
		{"lies in the double hour: once", "02:15-02:45", "10-24 12:00", "10-25 00:15", "10-25 00:45"},
		{"after it: not again", "02:15-02:45", "10-25 00:45", "10-26 01:15", "10-26 01:45"},
		{"touching in the double hour: no hole", "00:00-02:30, 02:30-05:00", "10-24 20:00", "10-24 22:00", "10-25 04:00"},
		{"touching in the missing hour: no hole", "00:00-02:30, 02:30-05:00", "03-28 20:00", "03-28 23:00", "03-29 03:00"},
		{"whole short day", "Sun 00:00-24:00", "03-28 12:00", "03-28 23:00", "03-29 22:00"},
		{"whole long day", "Sun 00:00-24:00", "10-24 12:00", "10-24 22:00", "10-25 23:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := window(t, c.window+" Europe/Berlin")
			from, err := time.Parse("2006-"+layout, "2026-"+c.from)
			if err != nil {
				t.Fatal(err)
			}
			opens := w.Next(from)
			closes := w.Closes(opens)
			if got := opens.UTC().Format(layout); got != c.opens {
				t.Errorf("opens %s, want %s", got, c.opens)
			}
			if got := closes.UTC().Format(layout); got != c.closes {
				t.Errorf("closes %s, want %s", got, c.closes)
			}
			if w.Contains(opens.Add(-time.Second)) || !w.Contains(opens) || !w.Contains(closes.Add(-time.Second)) || w.Contains(closes) {
				t.Error("Contains disagrees")
			}
		})
	}
}

// TestWindowAgreesWithTheClock: away from changes of the clock a window is
// what a person reads off the wall, in zones with odd offsets too.
func TestWindowAgreesWithTheClock(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"UTC", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago", "America/St_Johns"} {
		loc := zone(t, name)
		w := window(t, "Mon-Fri 18:30-06:15").In(loc)
		for at := time.Date(2026, 11, 20, 0, 7, 0, 0, loc); at.Day() != 2; at = at.Add(29 * time.Minute) {
			minute, day := at.Hour()*60+at.Minute(), at.Weekday()
			workday := func(d time.Weekday) bool { return d != time.Saturday && d != time.Sunday }
			want := minute >= 18*60+30 && workday(day) || minute < 6*60+15 && workday((day+6)%7)
			if w.Contains(at) != want {
				t.Fatalf("%s: Contains(%s) = %v", name, at, !want)
			}
			if next := w.Next(at); next.Before(at) || !w.Contains(next) || next.After(at) && w.Contains(next.Add(-time.Second)) {
				t.Fatalf("%s: Next(%s) = %s", name, at, next)
			}
		}
	}
}

func TestOnWall(t *testing.T) {
	t.Parallel()
	// Samoa left out the whole of 2011-12-30.
	apia := zone(t, "Pacific/Apia")
	got := dr.OnWall(time.Date(2011, 12, 30, 0, 0, 0, 0, time.UTC), 9*time.Hour, apia)
	if want := time.Date(2011, 12, 31, 0, 0, 0, 0, apia); !got.Equal(want) {
		t.Errorf("%s, want %s", got, want)
	}
	// Cairo's clocks go forward at midnight.
	cairo := zone(t, "Africa/Cairo")
	got = dr.OnWall(time.Date(2024, 4, 26, 0, 0, 0, 0, time.UTC), 0, cairo)
	if want := time.Date(2024, 4, 26, 1, 0, 0, 0, cairo); !got.Equal(want) {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzWindow(f *testing.F) {
	for _, s := range []string{"", "18:30-06:00", "Mon-Fri 08:00-18:00, Sat 9:00-10:00 Europe/Berlin", "Sun-Sat 00:00-24:00 UTC", "Mon", "1:00-2:00,,"} {
		f.Add(s, int64(1774742400))
	}
	f.Fuzz(func(t *testing.T, text string, unix int64) {
		w, err := dr.ParseWindow(text)
		if err != nil {
			if dr.CodeOf(err) != dr.CodeWindowInvalid {
				t.Fatal(err)
			}
			return
		}
		again, err := dr.ParseWindow(w.String())
		if err != nil || !again.Equal(w) || again.String() != w.String() {
			t.Fatalf("%q reads back as %q, %v", w, again, err)
		}
		at := time.Unix(unix%4e9, 0)
		next := w.Next(at)
		if next.IsZero() {
			t.Fatalf("%q never opens after %s", w, at)
		}
		if next.Before(at) || !w.Contains(next) || w.Contains(at) != next.Equal(at) {
			t.Fatalf("%q: next after %s is %s", w, at, next)
		}
		if end := w.Closes(next); !end.IsZero() && (!end.After(next) || w.Contains(end)) {
			t.Fatalf("%q: open at %s, closes %s", w, next, end)
		}
	})
}
