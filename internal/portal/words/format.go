// Package words puts what the vault knows into words for people: sizes, times,
// states and errors, the same on every page. It promises that a state is never
// told by a colour alone, and that an error comes with its cause and the way out
// of the catalogue (package dr). Everything here is pure.
package words

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
)

// bytesText is a size for people: 512 B, 1.5 MiB, 2.0 TiB.
func Bytes(n int64) string {
	if n < 0 {
		return "–"
	}
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	x, units := float64(n), "KMGTPE"
	for i := range len(units) {
		x /= 1024
		if math.Round(x*10)/10 < 1024 || i == len(units)-1 {
			if x >= 100 || x == math.Trunc(x) {
				return fmt.Sprintf("%.0f %ciB", x, units[i])
			}
			return fmt.Sprintf("%.1f %ciB", x, units[i])
		}
	}
	return ""
}

// Span is a duration for people, by its two largest units: 45 s, 3 min 20 s, 2 d 4 h.
func Span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d < time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	if d < 10*time.Second && d%time.Second != 0 {
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	}
	s := int64(d.Round(time.Second) / time.Second)
	two := func(a int64, ua string, b int64, ub string) string {
		if b == 0 {
			return fmt.Sprintf("%d %s", a, ua)
		}
		return fmt.Sprintf("%d %s %d %s", a, ua, b, ub)
	}
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return two(s/60, "min", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "min")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

// Coarse is a duration by its largest unit only.
func Coarse(d time.Duration) string {
	plural := func(n int64, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch s := int64(d / time.Second); {
	case s < 60:
		return plural(max(s, 0), "second")
	case s < 3600:
		return plural(s/60, "minute")
	case s < 86400:
		return plural(s/3600, "hour")
	default:
		return plural(s/86400, "day")
	}
}

func Relative(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d < -5*time.Second:
		return "in " + Coarse(-d)
	case d < 5*time.Second:
		return "just now"
	default:
		return Coarse(d) + " ago"
	}
}

// Absolute is the layout of absolute times, which are UTC everywhere.
const Absolute = "2006-01-02 15:04:05 UTC"

// When shows a time relative to now, with the absolute time beside it.
func When(t, now time.Time) template.HTML {
	if t.IsZero() {
		return `<span class="none">–</span>`
	}
	u := t.UTC()
	// Only digits and letters of a time format go in.
	return template.HTML(`<time datetime="` + u.Format(time.RFC3339) + `" title="` + u.Format(Absolute) + `">` + Relative(t, now) +
		` <span class="abs">` + u.Format("2006-01-02 15:04") + `</span></time>`)
}

// Clock is the absolute time alone.
func Clock(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format(Absolute)
}

func Percent(p float64) string {
	if math.IsNaN(p) {
		return "0\u00a0%"
	}
	p = math.Min(math.Max(p, 0), 100)
	if p > 0 && p < 10 {
		return strconv.FormatFloat(p, 'f', 1, 64) + "\u00a0%"
	}
	return strconv.FormatFloat(math.Floor(p), 'f', 0, 64) + "\u00a0%"
}

func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func ShellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// BytesOf is bytesText of a number in a text; any other text stays as it is.
func BytesOf(s string) string {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return Bytes(n)
	}
	return s
}
