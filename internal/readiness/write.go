package readiness

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
)

// WriteJSON writes the report with its version.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteCSV writes a line per finding, and one for each VM without any.
func (r Report) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	rows := [][]string{{"vm", "id", "host", "disks", "bytes", "ready", "severity", "rule", "object", "reason", "way out"}}
	for _, v := range r.VMs {
		head := []string{plain(v.Name), string(v.ID), plain(v.Host), strconv.Itoa(v.Disks), strconv.FormatInt(v.Size, 10), strconv.FormatBool(v.Ready)}
		if len(v.Findings) == 0 {
			rows = append(rows, append(head, "", "", "", "", ""))
		}
		for _, f := range v.Findings {
			rows = append(rows, append(head[:6:6], string(f.Severity), f.Rule, plain(f.Object), plain(f.Reason), plain(f.WayOut)))
		}
	}
	if err := c.WriteAll(rows); err != nil {
		return fmt.Errorf("readiness: write CSV: %w", err)
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

// WriteHTML writes a page that needs nothing else.
func (r Report) WriteHTML(w io.Writer) error {
	t, err := template.New("report").Funcs(template.FuncMap{"size": size}).Parse(page)
	if err == nil {
		err = t.Execute(w, r)
	}
	if err != nil {
		return fmt.Errorf("readiness: write HTML: %w", err)
	}
	return nil
}

const page = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Readiness of {{.Site}}</title>
<style>
body{font:15px/1.45 "Segoe UI",system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1a19}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #e1dfdd;vertical-align:top}
th{background:#f3f2f1}.error{color:#a4262c}.warning{color:#8a4b00}.info{color:#605e5c}.met{color:#0b6a0b}.notMet{color:#a4262c}.notChecked{color:#605e5c}
small{color:#605e5c}ul{margin:0;padding-left:1.1rem}
</style></head><body>
<h1>Readiness of {{.Site}}</h1>
<p>For recovery at <b>{{.Target}}</b>, {{.Taken.Format "2 January 2006, 15:04 MST"}}. <b>{{.Ready}}</b> of {{len .VMs}} VMs are ready, <b>{{.Blocked}}</b> are blocked.</p>
<table><thead><tr><th>VM</th><th>Host</th><th>Disks</th><th>Verdict</th><th>Why, and the way out</th></tr></thead><tbody>
{{range .VMs}}<tr><td><b>{{.Name}}</b><br><small>{{.ID}}</small></td><td>{{.Host}}</td><td>{{.Disks}} · {{size .Size}}</td>
<td>{{if .Ready}}<span class="met">ready</span>{{else}}<span class="error">blocked</span>{{end}}</td>
<td>{{if .Findings}}<ul>{{range .Findings}}<li><span class="{{.Severity}}">{{.Severity}}</span>: {{.Reason}}. <small>{{.WayOut}}</small></li>{{end}}</ul>{{else}}nothing{{end}}</td></tr>
{{end}}</tbody></table>
{{if .Practices}}<h2>Best practices</h2>
<table><thead><tr><th>Rule</th><th>Status</th><th>Detail</th></tr></thead><tbody>
{{range .Practices}}<tr><td>{{.Title}}</td><td class="{{.Status}}">{{if eq .Status "met"}}met{{else if eq .Status "notMet"}}not met{{else}}not checked{{end}}</td><td>{{.Detail}}{{if .Objects}}<br>{{range $i, $o := .Objects}}{{if $i}}, {{end}}{{$o}}{{end}}{{end}}{{if .Remedy}}<br><small>{{.Remedy}}</small>{{end}}</td></tr>
{{end}}</tbody></table>{{end}}
</body></html>
`
