package planner

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteJSON writes the plan with its version.
func (p Plan) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(p)
}

// WriteCSV writes a line per VM.
func (p Plan) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	batch := map[string]int{}
	for i, b := range p.Batches {
		for _, n := range b.VMs {
			batch[n] = i + 1
		}
	}
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	rows := [][]string{{"vm", "id", "host", "size", "used", "changed per day", "peak per interval", "p95 per interval", "samples", "errors", "batch"}}
	for _, v := range p.VMs {
		rows = append(rows, []string{plain(v.Name), string(v.ID), plain(v.Host), n(v.Size), n(v.Used), n(v.Changed), n(v.Peak), n(v.P95), strconv.Itoa(v.Samples), strconv.Itoa(v.Errors), strconv.Itoa(batch[v.Name])})
	}
	if err := c.WriteAll(rows); err != nil {
		return fmt.Errorf("planner: write CSV: %w", err)
	}
	return nil
}

// plain keeps a spreadsheet from taking a VM's name for a formula.
func plain(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// Bytes renders a size for people.
func Bytes(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1000 || unit == "TiB" {
			return fmt.Sprintf("%.3g %s", f, unit)
		}
		f /= 1024
	}
	return ""
}

// Rate renders a bandwidth as network people count it.
func Rate(n int64) string {
	f := float64(n) * 8
	for _, unit := range []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"} {
		if f < 1000 || unit == "Gbit/s" {
			return fmt.Sprintf("%.3g %s", f, unit)
		}
		f /= 1000
	}
	return ""
}

func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.3g days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.3g h", d.Hours())
	case d >= 2*time.Minute:
		return fmt.Sprintf("%.3g min", d.Minutes())
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// WriteText writes the plan for a terminal of 80 columns.
func (p Plan) WriteText(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d VMs on %s, %d intervals of %s\n", len(p.VMs), cut(strings.Join(p.Hosts, ", "), 40), p.Intervals, span(p.Interval))
	fmt.Fprintf(&b, "\nBandwidth for an RPO of %s (with %.0f %% growth, %.2g B sent per B changed)\n", span(p.RPO), p.Growth*100, p.Ratio)
	if p.Reachable {
		fmt.Fprintf(&b, "  always            %s\n  90 %% of the time  %s\n", Rate(p.Bandwidth), Rate(p.Bandwidth9))
	}
	fmt.Fprintf(&b, "  to keep up        %s\n  copy frequency    %s or less\n", Rate(p.Mean), span(p.Frequency))
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nWith\tRPO missed\tworst RPO\t90th percentile")
	for _, w := range p.WhatIf {
		fmt.Fprintf(t, "%s\t%.1f %%\t%s\t%s\n", Rate(w.Bandwidth), w.Violated*100, span(w.Worst), span(w.Percentile))
	}
	fmt.Fprintln(t, "\nVM\thost\tused\tper day\tpeak\tsamples")
	for _, v := range p.VMs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", cut(v.Name, 22), cut(v.Host, 12), Bytes(v.Used), Bytes(v.Changed), Bytes(v.Peak), v.Samples)
	}
	fmt.Fprintf(t, "\nInitial replication at %s\nbatch\tVMs\tsends\ttakes\t\n", Rate(p.Rate))
	for i, x := range p.Batches {
		over := ""
		if x.Over {
			over = "longer than a batch may"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", i+1, cut(strings.Join(x.VMs, ", "), 24), Bytes(x.Bytes), span(x.Takes), over)
	}
	if len(p.Volumes) > 0 {
		fmt.Fprintln(t, "\nVolume\thost\tfree\tneeded\t")
		for _, v := range p.Volumes {
			verdict := "enough"
			if !v.Enough {
				verdict = "NOT ENOUGH"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", cut(v.Path, 26), cut(v.Host, 12), Bytes(v.Free), Bytes(v.Needed), verdict)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nStored: %s, %d writes a month", Bytes(p.Stored), p.Puts)
	if p.Cost > 0 {
		fmt.Fprintf(&b, ", %.2f a month", p.Cost)
	}
	b.WriteByte('\n')
	for _, n := range p.Notes {
		b.WriteByte('\n')
		col := 0
		for _, word := range strings.Fields(n) {
			if col > 0 && col+1+len([]rune(word)) > 78 {
				b.WriteByte('\n')
				col = 0
			} else if col > 0 {
				b.WriteByte(' ')
				col++
			}
			b.WriteString(word)
			col += len([]rune(word))
		}
	}
	if len(p.Notes) > 0 {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, trimLines(b.String()))
	return err
}

// trimLines removes the blanks that columns leave at the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// WriteHTML writes a page that needs nothing else.
func (p Plan) WriteHTML(w io.Writer) error {
	t, err := template.New("plan").Funcs(template.FuncMap{"bytes": Bytes, "rate": Rate, "span": span,
		"percent": func(f float64) string { return fmt.Sprintf("%.1f %%", f*100) }, "join": strings.Join, "inc": func(i int) int { return i + 1 }}).Parse(page)
	if err == nil {
		err = t.Execute(w, p)
	}
	if err != nil {
		return fmt.Errorf("planner: write HTML: %w", err)
	}
	return nil
}

const page = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Deployment plan</title>
<style>
body{font:15px/1.45 "Segoe UI",system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1a19}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #e1dfdd}
th{background:#f3f2f1}.bad{color:#a4262c;font-weight:600}small{color:#605e5c}
</style></head><body>
<h1>Deployment plan</h1>
<p>{{len .VMs}} VMs on {{join .Hosts ", "}}; {{.Intervals}} intervals of {{span .Interval}}, {{.From.Format "2 January 2006, 15:04"}} to {{.To.Format "2 January 2006, 15:04 MST"}}.</p>
<h2>Bandwidth for a recovery point objective of {{span .RPO}}</h2>
<table><tr><th>objective met</th><th>bandwidth</th></tr>
{{if .Reachable}}<tr><td>always</td><td>{{rate .Bandwidth}}</td></tr><tr><td>90 % of the time</td><td>{{rate .Bandwidth9}}</td></tr>{{end}}
<tr><td>just keeping up</td><td>{{rate .Mean}}</td></tr></table>
<p><small>With {{percent .Growth}} growth and {{printf "%.2g" .Ratio}} bytes sent per byte changed. Recommended copy frequency: {{span .Frequency}} or less.</small></p>
<table><tr><th>with</th><th>objective missed</th><th>worst</th><th>90th percentile</th></tr>
{{range .WhatIf}}<tr><td>{{rate .Bandwidth}}</td><td>{{percent .Violated}}</td><td>{{span .Worst}}</td><td>{{span .Percentile}}</td></tr>{{end}}</table>
<h2>VMs</h2>
<table><tr><th>VM</th><th>host</th><th>used</th><th>changed per day</th><th>peak per interval</th><th>95th percentile</th><th>intervals</th></tr>
{{range .VMs}}<tr><td>{{.Name}}<br><small>{{.ID}}</small></td><td>{{.Host}}</td><td>{{bytes .Used}} of {{bytes .Size}}</td><td>{{bytes .Changed}}</td><td>{{bytes .Peak}}</td><td>{{bytes .P95}}</td><td>{{.Samples}}{{if .Errors}} <span class="bad">({{.Errors}} failed: {{.Error}})</span>{{end}}</td></tr>{{end}}</table>
<h2>Batches of initial replication at {{rate .Rate}}</h2>
<table><tr><th>batch</th><th>VMs</th><th>sends</th><th>takes</th></tr>
{{range $i, $b := .Batches}}<tr><td>{{inc $i}}</td><td>{{join $b.VMs ", "}}</td><td>{{bytes $b.Bytes}}</td><td>{{span $b.Takes}}{{if $b.Over}} <span class="bad">longer than a batch may</span>{{end}}</td></tr>{{end}}</table>
{{if .Volumes}}<h2>Space on the hosts' volumes</h2>
<table><tr><th>volume</th><th>host</th><th>free</th><th>needed</th><th></th></tr>
{{range .Volumes}}<tr><td>{{.Path}}</td><td>{{.Host}}</td><td>{{bytes .Free}}</td><td>{{bytes .Needed}}</td><td>{{if .Enough}}enough{{else}}<span class="bad">not enough</span>{{end}}</td></tr>{{end}}</table>{{end}}
<h2>Storage</h2><p>{{bytes .Stored}} stored, {{.Puts}} writes a month{{if .Cost}}, {{printf "%.2f" .Cost}} a month at the prices given{{end}}.</p>
{{range .Notes}}<p><small>{{.}}</small></p>{{end}}
</body></html>
`
