// Package console is what all commands share of a terminal: tables and JSON,
// texts for times and sizes, questions, progress of jobs, errors and exit
// codes, and small files.
//
// It promises that data goes to Out and all else to Err, that texts which others
// have named can't steer the terminal, that tables fit MinWidth columns without
// losing anything, and that files appear whole or not at all.
package console

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// MinWidth is the width that every table fits, columns.
const MinWidth = 80

// Column is one column of a table of T.
type Column[T any] struct {
	head string
	cell func(T) string
	wide bool
}

// Col is a column that is never wrapped.
func Col[T any](head string, cell func(T) string) Column[T] { return Column[T]{head, cell, false} }

// Wide is a column that is wrapped where lines get too long.
func Wide[T any](head string, cell func(T) string) Column[T] { return Column[T]{head, cell, true} }

// List prints items as a JSON array or as a table; empty says in words that there are none.
func List[T any](c *Console, items []T, empty string, cols ...Column[T]) error {
	if c.JSON {
		if items == nil {
			items = []T{}
		}
		return c.PrintJSON(items)
	}
	if len(items) == 0 {
		c.Say("%s", empty)
		return nil
	}
	head, wide := make([]string, len(cols)), make([]bool, len(cols))
	for i, col := range cols {
		head[i], wide[i] = col.head, col.wide
	}
	rows := [][]string{head}
	for _, it := range items {
		row := make([]string, len(cols))
		for i, col := range cols {
			row[i] = Clean(col.cell(it), false)
		}
		rows = append(rows, row)
	}
	_, err := fmt.Fprint(c.Out, table(rows, wide, c.Width))
	return err
}

// table lays rows out in at most width columns. What does not fit in a wide
// column goes on in the next line: nothing is cut off.
func table(rows [][]string, wide []bool, width int) string {
	const gap = 2
	widths := make([]int, len(wide))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], runewidth.StringWidth(cell))
		}
	}
	total := gap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for total > width { // take from the widest one that may wrap
		widest := -1
		for i, w := range widths {
			if wide[i] && w > 8 && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
		total--
	}
	var b strings.Builder
	for _, row := range rows {
		parts, lines := make([][]string, len(row)), 1
		for i, cell := range row {
			parts[i] = wrap(cell, widths[i])
			lines = max(lines, len(parts[i]))
		}
		for n := range lines {
			var line strings.Builder
			for i := range row {
				text := ""
				if n < len(parts[i]) {
					text = parts[i][n]
				}
				line.WriteString(runewidth.FillRight(text, widths[i]+gap))
			}
			b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		}
	}
	return b.String()
}

// wrap breaks s at spaces, and inside words that are too long.
func wrap(s string, width int) []string {
	var lines []string
	for runewidth.StringWidth(s) > width {
		head := runewidth.Truncate(s, width, "")
		if head == "" { // one wide rune in a narrow column
			break
		}
		if i := strings.LastIndexByte(head, ' '); i > 0 && s[len(head)] != ' ' {
			head = head[:i]
		}
		lines = append(lines, head)
		s = strings.TrimLeft(s[len(head):], " ")
	}
	return append(lines, s)
}

// Wrap breaks a text of one line into lines of at most width columns.
func Wrap(text string, width int) string { return strings.Join(wrap(text, width), "\n") }

// Field is one line of a description.
type Field struct{ name, value string }

// F makes a Field.
func F(name, value string) Field { return Field{name, value} }

// Describe prints one object: v as JSON, or names and values. Empty values are left out.
func (c *Console) Describe(v any, fields ...Field) error {
	if c.JSON {
		return c.PrintJSON(v)
	}
	most := 0
	for _, f := range fields {
		if f.value != "" {
			most = max(most, len(f.name))
		}
	}
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		name := f.name
		for text := range strings.SplitSeq(strings.TrimSpace(Clean(f.value, true)), "\n") {
			for _, line := range wrap(text, c.Width-most-2) {
				if _, err := fmt.Fprintf(c.Out, "%-*s  %s\n", most, name, line); err != nil {
					return err
				}
				name = ""
			}
		}
	}
	return nil
}

// PrintJSON prints v as indented JSON.
func (c *Console) PrintJSON(v any) error {
	e := json.NewEncoder(c.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Say tells a person something that is not data. With JSON it is silent.
func (c *Console) Say(format string, args ...any) {
	if !c.JSON {
		fmt.Fprintf(c.Err, format+"\n", args...)
	}
}

// Clean takes what could steer a terminal out of texts that others have named.
func Clean(s string, lines bool) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && lines:
			return r
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.Is(unicode.Bidi_Control, r):
			return '?'
		}
		return r
	}, s)
}

// When shows a time on this machine's clock, and how far away it is.
func (c *Console) When(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04") + " (" + ago(c.Now().Sub(*t)) + ")"
}

func ago(d time.Duration) string {
	if d < 0 {
		return "in " + Short(-d)
	}
	return Short(d) + " ago"
}

// Short shows a duration in its greatest unit; below ten of it also the next one.
func Short(d time.Duration) string {
	units := []struct {
		n time.Duration
		s string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.n {
			continue
		}
		n := d / u.n
		if rest := d % u.n; n < 10 && i+1 < len(units) && rest >= units[i+1].n {
			return fmt.Sprintf("%d%s%d%s", n, u.s, rest/units[i+1].n, units[i+1].s)
		}
		return fmt.Sprintf("%d%s", n, u.s)
	}
	return "0s"
}

// Seconds is n as a duration.
func Seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// Bytes shows a size with three digits.
func Bytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "KMGTPE"
	for i, u := range units {
		f /= 1 << 10
		if f < 1000 || i == len(units)-1 {
			digits := 2
			if f >= 100 {
				digits = 0
			} else if f >= 10 {
				digits = 1
			}
			return fmt.Sprintf("%.*f %ciB", digits, f, u)
		}
	}
	return ""
}

// Size is a flag that takes bytes: 500000, 64K, 20M, 4GiB. The units are powers of 1024.
type Size int64

// String implements pflag.Value.
func (s *Size) String() string {
	if *s == 0 {
		return ""
	}
	return fmt.Sprint(int64(*s))
}

// Type implements pflag.Value.
func (*Size) Type() string { return "size" }

// Set implements pflag.Value.
func (s *Size) Set(text string) error {
	number, unit := text, ""
	if i := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		number, unit = text[:i], strings.ToUpper(strings.TrimSpace(text[i:]))
	}
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	var n int64
	if _, err := fmt.Sscanf(number, "%d", &n); err != nil {
		return fmt.Errorf("%q is not a size such as 64K, 20M or 4G", text)
	}
	shift := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	by, ok := shift[unit]
	if !ok || n > (1<<62)>>by {
		return fmt.Errorf("%q is not a size such as 64K, 20M or 4G", text)
	}
	*s = Size(n << by)
	return nil
}

// Dash stands for nothing in a table.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Duration is a flag that takes a time span: 90s, 24h, 30d, 2w, 1d12h.
type Duration time.Duration

// String implements pflag.Value.
func (d *Duration) String() string {
	if *d == 0 {
		return ""
	}
	return Short(time.Duration(*d))
}

// Type implements pflag.Value.
func (*Duration) Type() string { return "duration" }

// Set implements pflag.Value.
func (d *Duration) Set(text string) error {
	rest, total := text, time.Duration(0)
	for _, u := range []struct {
		suffix string
		n      time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		head, tail, ok := strings.Cut(rest, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(head, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a time span such as 90s, 24h or 30d", text)
		}
		total += time.Duration(n) * u.n
		rest = tail
	}
	if rest != "" {
		x, err := time.ParseDuration(rest)
		if err != nil || x < 0 || x > 1<<62 {
			return fmt.Errorf("%q is not a time span such as 90s, 24h or 30d", text)
		}
		total += x
	}
	if text == "" {
		return fmt.Errorf("a time span is missing, such as 24h or 30d")
	}
	*d = Duration(total)
	return nil
}

// ParseUntil reads when something ends: a time span from now, or a time as people
// write it on this machine's clock, the next one where the day is missing. An
// empty text is the zero time.
func ParseUntil(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var span Duration
	if span.Set(text) == nil {
		return now.Add(time.Duration(span)), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	if t, err := time.ParseInLocation("15:04", text, time.Local); err == nil {
		y, mo, d := now.Local().Date()
		at := time.Date(y, mo, d, t.Hour(), t.Minute(), 0, 0, time.Local)
		if !at.After(now) {
			at = at.AddDate(0, 0, 1)
		}
		return at, nil
	}
	return time.Time{}, Usage("%q is not a time", text).WithHint(`Use a time span such as 2h or 3d, "18:00", "2026-03-31 18:00", or RFC 3339 with a zone.`)
}
