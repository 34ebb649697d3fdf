package dr

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is when something may happen: times of the day, optionally on some
// days of the week, written as people write them:
//
//	18:30-06:00                          every evening until the next morning
//	Mon-Fri 08:00-18:00                  weekdays name the day on which it opens
//	Mon-Thu 19:00-05:00, Fri 19:00-24:00, Sat-Sun 00:00-24:00
//	22:00-04:00 Europe/Berlin            an IANA zone name at the end is for all
//	(empty)                              always
//
// Without a zone the times are those of the host that evaluates the window.
// The zero Window is always open. A Window is immutable and safe for concurrent
// use; compare with Equal.
//
// The clock on the wall decides, once: an opening is the first instant of its
// day at which the clock shows the opening time or later, and it lasts until
// the clock first shows the closing time or later. So where clocks go back an
// hour nothing opens twice, where they go forward an opening inside the missing
// hour is late, and one that lies in it entirely is left out that day.
type Window struct {
	spans []span
	zone  string
	loc   *time.Location // nil without zone
}

// span is one opening a day. Minutes count from midnight of the day on which it opens.
type span struct {
	days     uint8 // bit d: on time.Weekday d
	from, to int   // 0 <= from < 1440, from < to <= from+1440; to > 1440: on the next day
}

const (
	day          = 24 * 60 // minutes
	everyDay     = 1<<7 - 1
	maxSpans     = 16
	maxWindowLen = 500
)

var weekdays = [...]string{"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"}

// ParseWindow reads the text form. Texts that can't be understood and zones
// that this machine does not know are CodeWindowInvalid: a window in an unknown
// zone must not be taken for one in another, nor for "always". Zone names need
// the machine's zone database (package tzdata on Debian; Windows has none that
// Go reads); windows without a zone never do.
func ParseWindow(text string) (Window, error) {
	fail := func(hint, format string, args ...any) (Window, error) {
		return Window{}, New(KindInvalid, CodeWindowInvalid, "dr.ParseWindow", "window %q: %s", excerpt(text), fmt.Sprintf(format, args...)).WithHint("%s", hint)
	}
	const example = `Write windows like "18:30-06:00" or "Mon-Fri 19:00-05:00, Sat-Sun 00:00-24:00 Europe/Berlin".`
	if len(text) > maxWindowLen {
		return fail(example, "longer than %d characters", maxWindowLen)
	}
	s := strings.NewReplacer("–", "-", " - ", "-").Replace(strings.Join(strings.Fields(text), " "))
	if s == "" {
		return Window{}, nil
	}
	var w Window
	parts := strings.Split(s, ",")
	for i, part := range parts {
		sp := span{}
		done := false
		for _, word := range strings.Fields(part) {
			switch {
			case done && i == len(parts)-1 && w.zone == "":
				w.zone = word
			case done:
				return fail(example, "%q after a time", word)
			case word[0] >= '0' && word[0] <= '9':
				var err error
				if sp.from, sp.to, err = parseTimes(word); err != nil {
					return fail(example, "%v", err)
				}
				done = true
			default:
				mask, err := parseDays(word)
				if err != nil {
					return fail(example, "%v", err)
				}
				sp.days |= mask
			}
		}
		if !done {
			return fail(example, "%q names no time", strings.TrimSpace(part))
		}
		if sp.days == 0 {
			sp.days = everyDay
		}
		w.spans = append(w.spans, sp)
	}
	if len(w.spans) > maxSpans {
		return fail(example, "more than %d openings", maxSpans)
	}
	switch w.zone {
	case "":
	case "Local":
		w.zone = ""
	default:
		loc, err := time.LoadLocation(w.zone)
		if err != nil {
			return fail("Use the name of a time zone like Europe/Berlin and install the zone database (package tzdata), or leave the zone out for the host's own time.",
				"this machine does not know the time zone %q", excerpt(w.zone))
		}
		w.loc = loc
	}
	return w, nil
}

// excerpt shortens a text that came from outside for use in a message.
func excerpt(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

func parseTimes(word string) (from, to int, err error) {
	a, b, ok := strings.Cut(word, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not a time from-to", word)
	}
	if from, err = parseTime(a); err != nil {
		return 0, 0, err
	}
	if to, err = parseTime(b); err != nil {
		return 0, 0, err
	}
	switch {
	case from == day:
		return 0, 0, fmt.Errorf("%q begins at 24:00: write 00:00 of the next day", word)
	case from == to:
		return 0, 0, fmt.Errorf("%q has no length: the whole day is 00:00-24:00", word)
	case to < from:
		to += day
	}
	return from, to, nil
}

func parseTime(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, ok1 := digits(h, 1)
	minute, ok2 := digits(m, 2)
	if !ok || !ok1 || !ok2 || hour > 24 || minute > 59 || hour == 24 && minute != 0 {
		return 0, fmt.Errorf("%q is not a time of the day from 00:00 to 24:00", s)
	}
	return hour*60 + minute, nil
}

// digits reads least to two decimal digits and nothing else.
func digits(s string, least int) (n int, ok bool) {
	if len(s) < least || len(s) > 2 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func parseDays(word string) (uint8, error) {
	a, b, isRange := strings.Cut(word, "-")
	first, ok1 := weekday(a)
	last, ok2 := first, true
	if isRange {
		last, ok2 = weekday(b)
	}
	if !ok1 || !ok2 {
		return 0, fmt.Errorf("%q is neither a time nor a day of the week", word)
	}
	var mask uint8
	for d := first; ; d = (d + 1) % 7 {
		if mask |= 1 << d; d == last {
			return mask, nil
		}
	}
}

func weekday(s string) (int, bool) {
	if len(s) < 3 {
		return 0, false
	}
	i := slices.IndexFunc(weekdays[:], func(d string) bool { return strings.HasPrefix(d, strings.ToLower(s)) })
	return i, i >= 0
}

// String returns the canonical text form, which ParseWindow reads back.
func (w Window) String() string {
	var b strings.Builder
	for i, sp := range w.spans {
		if i > 0 {
			b.WriteString(", ")
		}
		if sp.days != everyDay {
			b.WriteString(dayText(sp.days))
			b.WriteByte(' ')
		}
		to := sp.to
		if to > day {
			to -= day
		}
		fmt.Fprintf(&b, "%02d:%02d-%02d:%02d", sp.from/60, sp.from%60, to/60, to%60)
	}
	if w.zone != "" {
		b.WriteString(" " + w.zone)
	}
	return b.String()
}

// dayText writes the days of a mask from Monday on, runs of three and more as a range.
func dayText(mask uint8) string {
	short := func(d int) string { return strings.ToUpper(weekdays[d][:1]) + weekdays[d][1:3] }
	var out []string
	for i := 1; i <= 7; {
		n := 0
		for i+n <= 7 && mask&(1<<((i+n)%7)) != 0 {
			n++
		}
		switch first := short(i % 7); {
		case n > 2:
			out = append(out, first+"-"+short((i+n-1)%7))
		case n == 2:
			out = append(out, first, short((i+1)%7))
		case n == 1:
			out = append(out, first)
		}
		i += max(n, 1)
	}
	return strings.Join(out, " ")
}

// MarshalText implements encoding.TextMarshaler with the canonical text.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see ParseWindow for the errors.
func (w *Window) UnmarshalText(text []byte) error {
	got, err := ParseWindow(string(text))
	if err == nil {
		*w = got
	}
	return err
}

// IsZero reports whether the window is the empty text: always open.
func (w Window) IsZero() bool { return len(w.spans) == 0 }

// Equal reports whether two windows have the same canonical text.
func (w Window) Equal(o Window) bool { return w.String() == o.String() }

// In returns the window with times in loc, unless its text names a zone.
func (w Window) In(loc *time.Location) Window {
	if w.zone == "" && len(w.spans) > 0 {
		w.loc = loc
	}
	return w
}

// Contains reports whether the window is open at t. The opening instant is
// inside, the closing instant is not.
func (w Window) Contains(t time.Time) bool { return w.Next(t).Equal(t) }

// Next returns the first instant at or after t at which the window is open: t
// itself if it is open then. A window that never opens in the year after t (none
// that can be written does that in a zone in use) gives the zero Time.
func (w Window) Next(t time.Time) time.Time {
	if w.IsZero() {
		return t
	}
	var best time.Time
	w.openings(t, func(from, to time.Time) bool {
		switch {
		case !to.After(t):
		case !from.After(t):
			best = t
			return false
		case best.IsZero() || from.Before(best):
			best = from
		case from.After(best.AddDate(0, 0, 2)):
			return false // openings come in the order of their days
		}
		return true
	})
	return best
}

// Closes returns when the window that is open at t closes, openings that touch
// or overlap taken together. It is the zero Time if it is not open at t or never closes.
func (w Window) Closes(t time.Time) time.Time {
	if w.IsZero() {
		return time.Time{}
	}
	end := t
	for range 15 * len(w.spans) { // open for more than two weeks is for ever: every week is like the last
		later := end
		w.openings(end, func(from, to time.Time) bool {
			if !from.After(end) && to.After(later) {
				later = to
			}
			return from.Before(end.AddDate(0, 0, 2))
		})
		switch {
		case !later.Equal(end):
			end = later
		case end.Equal(t):
			return time.Time{}
		default:
			return end
		}
	}
	return time.Time{}
}

// openings calls visit with every opening [from, to) that can contain t or
// comes after it, ordered by the day on which it begins, for a year at most or
// until visit returns false.
func (w Window) openings(t time.Time, visit func(from, to time.Time) bool) {
	loc := w.loc
	if loc == nil {
		loc = time.Local
	}
	y, m, d := t.In(loc).Date()
	for i := -2; i < 366; i++ {
		date := time.Date(y, m, d+i, 0, 0, 0, 0, time.UTC)
		for _, sp := range w.spans {
			if sp.days&(1<<date.Weekday()) == 0 {
				continue
			}
			from, to := onWall(date, sp.from, loc), onWall(date, sp.to, loc)
			if from.Before(to) && !visit(from, to) {
				return
			}
		}
	}
}

func onWall(date time.Time, minutes int, loc *time.Location) time.Time {
	return OnWall(date, time.Duration(minutes)*time.Minute, loc)
}

// OnWall returns the first instant at which the clock on a wall in loc shows
// the given date (its calendar day is taken, whatever its zone) and time since
// midnight, or, where clocks jump over that, later.
func OnWall(date time.Time, sinceMidnight time.Duration, loc *time.Location) time.Time {
	y, m, d := date.Date()
	want := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Add(sinceMidnight) // the wall's figures, as if they were UTC
	// Offsets are within ±16 h, so the wall shows less than wanted at the start.
	for t := want.Add(-32 * time.Hour).In(loc); ; {
		_, offset := t.Zone()
		_, end := t.ZoneBounds()
		at := want.Add(-time.Duration(offset) * time.Second).In(loc)
		if at.Before(t) {
			at = t
		}
		if end.IsZero() || at.Before(end) {
			return at
		}
		t = end
	}
}
