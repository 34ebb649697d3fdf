// Package chart draws the portal's charts as SVG on the server: how far behind a
// replica was, what changed, which recovery points exist. It promises valid
// drawings of bounded size for any input, with colours left to the style sheet
// and numbers readable without a pointer's help.
package chart

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/words"
)

// Charts are SVG made here: numbers and texts of this package only, so no
// escaping is at stake but for the names of points, and colours come from the style sheet by class.

const (
	chartWidth, chartHeight = 520.0, 190.0
	chartLeft, chartRight   = 74.0, 8.0
	chartTop, chartBottom   = 12.0, 24.0
	chartColumns            = 120
)

// plot is the drawing area of one chart.
type plot struct {
	b        strings.Builder
	from, to time.Time
	top      float64 // value at the upper edge
}

func (p *plot) x(t time.Time) float64 {
	w := chartWidth - chartLeft - chartRight
	f := float64(t.Sub(p.from)) / float64(max(p.to.Sub(p.from), 1))
	return chartLeft + w*math.Min(math.Max(f, 0), 1)
}

func (p *plot) y(v float64) float64 {
	h := chartHeight - chartTop - chartBottom
	return chartHeight - chartBottom - h*math.Min(math.Max(v/p.top, 0), 1)
}

func (p *plot) add(format string, a ...any) { fmt.Fprintf(&p.b, format, a...) }

// begin opens the drawing with its grid, label makes the text of a value.
func (p *plot) begin(title string, label func(float64) string) {
	p.add(`<svg class="chart" viewBox="0 0 %g %g" role="img" aria-label="%s">`, chartWidth, chartHeight, template.HTMLEscapeString(title))
	for i := range 4 {
		v := p.top * float64(i) / 3
		p.add(`<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick end" x="%g" y="%.1f">%s</text>`,
			chartLeft, chartWidth-chartRight, p.y(v), p.y(v), chartLeft-6, p.y(v)+4, label(v))
	}
	p.times(chartHeight - 6)
}

// times writes the time axis at a height.
func (p *plot) times(y float64) {
	layout := "15:04"
	if p.to.Sub(p.from) > 36*time.Hour {
		layout = "Jan 2"
	} else if p.to.Sub(p.from) < 10*time.Minute {
		layout = "15:04:05"
	}
	for i := range 5 {
		t := p.from.Add(p.to.Sub(p.from) * time.Duration(i) / 4)
		anchor := [...]string{"start", "mid", "mid", "mid", "end"}[i]
		p.add(`<text class="tick %s" x="%.1f" y="%g">%s</text>`, anchor, p.x(t), y, t.UTC().Format(layout))
	}
}

func (p *plot) end() template.HTML {
	p.add(`</svg>`)
	return template.HTML(p.b.String())
}

// nice rounds an upper edge up so that thirds of it read well.
func nice(v float64, steps []float64) float64 {
	for _, s := range steps {
		if v <= s {
			return s
		}
	}
	return v
}

// within returns the points of a time range, oldest first; points are newest first.
func within(points []dr.RecoveryPoint, from time.Time) []dr.RecoveryPoint {
	var out []dr.RecoveryPoint
	for _, p := range points {
		if p.Time.Before(from) {
			break
		}
		out = append(out, p)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// Lag draws how old the newest recovery point has been over time: the
// worst of each column, and the copy frequency as the line to stay below.
func Lag(points []dr.RecoveryPoint, from, now time.Time, target time.Duration) template.HTML {
	p := &plot{from: from, to: now}
	worst := make([]float64, chartColumns)
	width := now.Sub(from) / chartColumns
	have := -1 // first column with a known lag
	list := within(points, from)
	if len(list) < len(points) { // the one before the range
		list = append([]dr.RecoveryPoint{points[len(list)]}, list...)
	}
	if len(list) == 0 || width <= 0 {
		return ""
	}
	next := 0
	var last time.Time
	for i := range worst {
		begin, end := from.Add(width*time.Duration(i)), from.Add(width*time.Duration(i+1))
		for next < len(list) && !list[next].Time.After(end) {
			if !last.IsZero() {
				worst[i] = math.Max(worst[i], list[next].Time.Sub(last).Seconds())
			}
			last = list[next].Time
			next++
		}
		if last.IsZero() {
			continue
		}
		if have < 0 {
			have = i
		}
		if last.Before(begin) || i == chartColumns-1 {
			worst[i] = math.Max(worst[i], end.Sub(last).Seconds())
		}
		p.top = math.Max(p.top, worst[i])
	}
	if have < 0 {
		return "" // clocks: the only points are of the future
	}
	p.top = nice(math.Max(p.top, target.Seconds()*1.2), []float64{15, 30, 60, 90, 180, 360, 540, 900, 1800, 3600, 5400, 10800, 21600, 43200, 86400, 259200})
	p.begin("RPO lag over time", func(v float64) string {
		if v == 0 {
			return "0"
		}
		return words.Span(time.Duration(v) * time.Second)
	})
	var line strings.Builder
	for i := have; i < chartColumns; i++ {
		fmt.Fprintf(&line, " %.1f,%.1f", p.x(from.Add(width*time.Duration(i)+width/2)), p.y(worst[i]))
	}
	left, right := p.x(from.Add(width*time.Duration(have)+width/2)), p.x(from.Add(width*(chartColumns-1)+width/2))
	p.add(`<polygon class="area" points="%.1f,%.1f%s %.1f,%.1f"/><polyline class="line" points="%s"/>`, left, p.y(0), line.String(), right, p.y(0), strings.TrimSpace(line.String()))
	if target > 0 {
		p.add(`<line class="target" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/>`, chartLeft, chartWidth-chartRight, p.y(target.Seconds()), p.y(target.Seconds()))
	}
	for i := have; i < chartColumns; i++ { // what the pointer reads
		t := from.Add(width * time.Duration(i))
		p.add(`<rect class="hit" x="%.1f" y="%g" width="%.1f" height="%g"><title>%s: %s</title></rect>`, p.x(t), chartTop,
			(chartWidth-chartLeft-chartRight)/chartColumns, chartHeight-chartTop-chartBottom, t.UTC().Format("15:04"), words.Span(time.Duration(worst[i])*time.Second))
	}
	return p.end()
}

// Churn draws what the guest changed per cycle and what of it was stored;
// cycles that share a column are added up.
func Churn(points []dr.RecoveryPoint, from, now time.Time) template.HTML {
	list := within(points, from)
	if len(list) == 0 || !now.After(from) {
		return ""
	}
	type column struct {
		dirty, stored int64
		cycles        int
		at            time.Time
	}
	cols := make([]column, chartColumns)
	width := now.Sub(from) / chartColumns
	p := &plot{from: from, to: now}
	for _, x := range list {
		i := min(max(int(x.Time.Sub(from)/max(width, 1)), 0), chartColumns-1)
		c := &cols[i]
		c.dirty, c.stored, c.cycles, c.at = c.dirty+x.DirtyBytes, c.stored+x.StoredBytes, c.cycles+1, x.Time
		p.top = math.Max(p.top, float64(max(c.dirty, c.stored)))
	}
	unit := math.Exp2(math.Floor(math.Log2(math.Max(p.top, 3<<10) / 3)))
	p.top = 3 * unit * math.Ceil(math.Max(p.top, 1)/(3*unit))
	p.begin("Changed and stored data per cycle", func(v float64) string { return words.Bytes(int64(v)) })
	w := (chartWidth - chartLeft - chartRight) / chartColumns
	for i, c := range cols {
		if c.cycles == 0 {
			continue
		}
		x := p.x(from.Add(width * time.Duration(i)))
		d, s := p.y(float64(c.dirty)), p.y(float64(c.stored))
		p.add(`<g class="bar"><rect class="hit" x="%.1f" y="%g" width="%.1f" height="%g"/><rect class="dirty" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/><rect class="stored" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`,
			x, chartTop, w, chartHeight-chartTop-chartBottom, x+.5, d, w-1, p.y(0)-d, x+.5, s, w-1, p.y(0)-s)
		p.add(`<title>%s, %s: %s changed, %s stored</title></g>`, c.at.UTC().Format("2006-01-02 15:04"), words.Count(c.cycles, "cycle", "cycles"), words.Bytes(c.dirty), words.Bytes(c.stored))
	}
	return p.end()
}

// Rates draws what the guest has changed and what has reached the store, in bytes
// a second: a cycle's bytes count evenly over the time since the cycle before it.
func Rates(points []dr.RecoveryPoint, from, now time.Time) template.HTML {
	list := within(points, from)
	if len(list) == 0 || !now.After(from) {
		return ""
	}
	if len(list) < len(points) { // the one before the range
		list = append([]dr.RecoveryPoint{points[len(list)]}, list...)
	}
	if len(list) < 2 {
		return ""
	}
	width := now.Sub(from) / chartColumns
	if width <= 0 {
		return ""
	}
	var changed, sent [chartColumns]float64 // bytes
	for i := 1; i < len(list); i++ {
		begin, end := list[i-1].Time, list[i].Time
		span := max(end.Sub(begin), time.Second)
		for c := max(int(begin.Sub(from)/width), 0); c < chartColumns; c++ {
			left, right := from.Add(width*time.Duration(c)), from.Add(width*time.Duration(c+1))
			if !left.Before(end) {
				break
			}
			part := max(width-max(right.Sub(end), 0)-max(begin.Sub(left), 0), 0) // of the cycle in this column
			share := min(float64(part)/float64(span), 1)
			changed[c] += share * float64(max(list[i].DirtyBytes, 0))
			sent[c] += share * float64(max(list[i].StoredBytes, 0))
		}
	}
	p := &plot{from: from, to: now}
	for c := range chartColumns {
		changed[c], sent[c] = changed[c]/width.Seconds(), sent[c]/width.Seconds()
		p.top = math.Max(p.top, math.Max(changed[c], sent[c]))
	}
	unit := math.Exp2(math.Floor(math.Log2(math.Max(p.top, 3<<10) / 3)))
	p.top = 3 * unit * math.Ceil(math.Max(p.top, 1)/(3*unit))
	p.begin("Rates of change and of sending", func(v float64) string { return words.Bytes(int64(v)) + "/s" })
	line := func(class string, values [chartColumns]float64) {
		var b strings.Builder
		for c, v := range values {
			fmt.Fprintf(&b, " %.1f,%.1f", p.x(from.Add(width*time.Duration(c)+width/2)), p.y(v))
		}
		p.add(`<polyline class="rate %s" points="%s"/>`, class, strings.TrimSpace(b.String()))
	}
	line("changed", changed)
	line("sent", sent)
	for c := range chartColumns { // what the pointer reads
		t := from.Add(width * time.Duration(c))
		p.add(`<rect class="hit" x="%.1f" y="%g" width="%.1f" height="%g"><title>%s: %s/s changed, %s/s sent</title></rect>`, p.x(t), chartTop,
			(chartWidth-chartLeft-chartRight)/chartColumns, chartHeight-chartTop-chartBottom, t.UTC().Format("15:04"), words.Bytes(int64(changed[c])), words.Bytes(int64(sent[c])))
	}
	return p.end()
}

// Point is a recovery point of a timeline.
type Point struct {
	dr.RecoveryPoint
	Label   string // what people call it
	Tier    string // why it is kept: newest, fine, hourly, daily; anything else is a reason of its own
	Held    bool
	Suspect bool // looks encrypted
}

// Timeline draws the recovery points over the retention, each mark as strong as
// the best point it stands for, with the tiers of retention below and flags
// on points that people have named or hold. Where there are tiers, young ages get
// more room than old ones.
func Timeline(points []Point, now time.Time, mark string) template.HTML {
	if len(points) == 0 {
		return ""
	}
	const columns, high, mid, wide = 200, 76.0, 34.0, 1060.0
	oldest := points[len(points)-1].Time
	span := max(now.Sub(oldest), time.Minute)
	tiers := false
	for _, q := range points {
		tiers = tiers || q.Tier == "hourly" || q.Tier == "daily"
	}
	const bend = 60.0 // how much more room young ages get
	x := func(t time.Time) float64 {
		age := math.Min(math.Max(float64(now.Sub(t))/float64(span), 0), 1)
		if tiers {
			age = math.Log1p(bend*age) / math.Log1p(bend)
		}
		return 12 + (wide-24)*(1-age)
	}
	at := func(share float64) time.Duration { // age at a share of the width from the right
		if tiers {
			share = math.Expm1(share*math.Log1p(bend)) / bend
		}
		return time.Duration(share * float64(span))
	}
	cols := make([]timeColumn, columns)
	w := (wide - 24) / columns
	for _, q := range points {
		cols[min(max(int((x(q.Time)-12)/w), 0), columns-1)].add(q, mark)
	}
	p := &plot{}
	p.add(`<svg class="timeline" viewBox="0 0 %g %g" role="img" aria-label="Recovery points over time"><line class="axis" x1="12" x2="%g" y1="%g" y2="%g"/>`, wide, high, wide-12, mid, mid)
	for i, c := range cols {
		if c.n == 0 {
			continue
		}
		h := 8.0 + 3*float64(c.rank)
		if c.marked {
			h = 20
		}
		left := 12 + w*float64(i)
		p.add(`<g><rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f" rx="1"/>`, c.class(), left+w*.15, mid-h, w*.7, 2*h)
		if c.flag {
			p.add(`<path class="flag" d="M%.2f %g h-5 l5 8 l5 -8 z"/>`, left+w/2, mid-33)
		}
		if c.tier != "" {
			p.add(`<rect class="tier %s" x="%.2f" y="%g" width="%.2f" height="3"/>`, c.tier, left, mid+23, w)
		}
		p.add(`<title>%s</title></g>`, template.HTMLEscapeString(c.text()))
	}
	for i, anchor := range []string{"end", "mid", "mid", "mid", "start"} {
		share := float64(i) / 4
		text := "now"
		if age := at(share); i > 0 {
			text = words.Coarse(age) + " ago"
		}
		p.add(`<text class="tick %s" x="%.1f" y="%g">%s</text>`, anchor, wide-12-(wide-24)*share, high-2, text)
	}
	return p.end()
}

// timeColumn is what one mark of a timeline stands for.
type timeColumn struct {
	n                             int
	best                          dr.Consistency
	rank                          int
	resync, marked, flag, suspect bool
	a, b                          time.Time
	tier                          string
	labels                        []string
}

func (c *timeColumn) add(q Point, mark string) {
	rank := map[dr.Consistency]int{dr.CrashConsistent: 1, dr.FileSystemConsistent: 2, dr.AppConsistent: 3}[q.Consistency]
	if c.n == 0 {
		c.b = q.Time
	}
	c.n, c.a, c.resync, c.marked = c.n+1, q.Time, c.resync || q.Resync, c.marked || q.Name() == mark
	c.flag, c.suspect = c.flag || q.Held || q.Label != "", c.suspect || q.Suspect
	if q.Label != "" && len(c.labels) < 3 {
		c.labels = append(c.labels, q.Label)
	}
	switch q.Tier {
	case "newest", "fine":
		c.tier = "fine"
	case "hourly", "daily":
		c.tier = q.Tier
	}
	if rank > c.rank {
		c.rank, c.best = rank, q.Consistency
	}
}

func (c *timeColumn) class() string {
	class := "point " + string(c.best)
	if c.suspect {
		class += " suspect"
	}
	if c.marked {
		class += " marked"
	}
	return class
}

// text is what the pointer reads.
func (c *timeColumn) text() string {
	text := words.Consistency(c.best) + " recovery point, " + c.b.UTC().Format(words.Absolute)
	if c.n > 1 {
		text = fmt.Sprintf("%d recovery points, %s to %s, best %s", c.n, c.a.UTC().Format("2006-01-02 15:04"), c.b.UTC().Format("2006-01-02 15:04"), strings.ToLower(words.Consistency(c.best)))
	}
	for _, add := range []struct {
		is   bool
		text string
	}{{c.resync, "by resynchronization"}, {c.suspect, "looks encrypted"}, {c.flag, "kept"}, {c.marked, "failed over to"}} {
		if add.is {
			text += ", " + add.text
		}
	}
	if len(c.labels) > 0 {
		text += ": " + strings.Join(c.labels, ", ")
	}
	return text
}

// Slice is one part of a ring.
type Slice struct {
	Tone  string
	Count int
}

// Ring draws shares as a ring with the total in its middle.
func Ring(parts []Slice, total int) template.HTML {
	var b strings.Builder
	const r, around = 42.0, 2 * math.Pi * 42.0
	b.WriteString(`<svg class="ring" viewBox="0 0 110 110" role="img" aria-hidden="true"><circle class="track" cx="55" cy="55" r="42"/>`)
	done := 0.0
	for _, s := range parts {
		if s.Count == 0 || total == 0 {
			continue
		}
		share := around * float64(s.Count) / float64(total)
		gap := 0.0
		if s.Count < total {
			gap = math.Min(2, share/3)
		}
		fmt.Fprintf(&b, `<circle class="part %s" cx="55" cy="55" r="%g" stroke-dasharray="%.2f %.2f" stroke-dashoffset="%.2f" transform="rotate(-90 55 55)"/>`, s.Tone, r, share-gap, around-share+gap, -done)
		done += share
	}
	fmt.Fprintf(&b, `<text class="total" x="55" y="62">%d</text></svg>`, total)
	return template.HTML(b.String())
}
