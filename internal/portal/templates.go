package portal

import (
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

//go:embed templates
var templateFiles embed.FS

// pageNames are the pages; each is a template file beside the frame and the parts.
func pageNames() []string {
	return []string{"signin", "error", "overview", "sites", "site", "vms", "enable", "items", "item", "policies", "policy", "jobs", "job"}
}

func loadTemplates(a *assets, now func() time.Time) (map[string]*template.Template, error) {
	base, err := template.New("").Funcs(functions(a, now)).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return nil, fmt.Errorf("portal: parse templates: %w", err)
	}
	out := map[string]*template.Template{}
	for _, name := range pageNames() {
		t, err := base.Clone()
		if err == nil {
			t, err = t.ParseFS(templateFiles, "templates/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("portal: parse template %s: %w", name, err)
		}
		out[name] = t
	}
	return out, nil
}

func functions(a *assets, now func() time.Time) template.FuncMap {
	return template.FuncMap{
		"asset":      a.url,
		"icon":       iconOf(icons()),
		"bytes":      bytesText,
		"span":       span,
		"percent":    percent,
		"clock":      clock,
		"count":      count,
		"when":       func(t time.Time) template.HTML { return when(t, now()) },
		"ago":        func(t time.Time) string { return relative(t, now()) },
		"since":      func(t time.Time) time.Duration { return max(now().Sub(t), 0) },
		"path":       url.PathEscape,
		"health":     healthPill,
		"jobpill":    jobPill,
		"pill":       func(tone, text string) pill { return pill{tone, toneIcon(tone), text} },
		"explain":    explain,
		"join":       strings.Join,
		"lower":      strings.ToLower,
		"seconds":    func(d time.Duration) int64 { return int64(d / time.Second) },
		"duration":   jobDuration(now),
		"args":       args,
		"point":      func(p dr.RecoveryPoint) string { return p.Name() },
		"level":      consistencyText,
		"among":      func(v, words string) bool { return slices.Contains(strings.Fields(words), v) },
		"ranges":     func() []string { return []string{"1h", "24h", "7d"} },
		"jobpercent": jobPercentOf,
		"short":      func(v any) string { s := fmt.Sprint(v); return s[:min(len(s), 8)] },
	}
}

// args makes a map of name, value, … for a part.
func args(kv ...any) (map[string]any, error) {
	m := map[string]any{}
	if len(kv)%2 != 0 {
		return nil, errors.New("args wants pairs")
	}
	for i := 0; i < len(kv); i += 2 {
		k, ok := kv[i].(string)
		if !ok {
			return nil, errors.New("args wants names")
		}
		m[k] = kv[i+1]
	}
	return m, nil
}

// pill is a state with an icon: never by its colour alone.
type pill struct{ Tone, Icon, Text string }

func toneIcon(tone string) string {
	switch tone {
	case "good":
		return "ok"
	case "warn":
		return "warning"
	case "bad":
		return "error"
	case "busy":
		return "sync"
	case "wait":
		return "person"
	}
	return "dot"
}

func healthPill(h dr.Health) pill {
	tone, text := "idle", string(h)
	switch h {
	case dr.HealthNormal:
		tone, text = "good", "Healthy"
	case dr.HealthWarning:
		tone = "warn"
	case dr.HealthCritical:
		tone = "bad"
	case "":
		text = "Not assessed"
	}
	return pill{tone, toneIcon(tone), text}
}

func jobPill(s dr.JobState) pill {
	tone, text := "idle", string(s)
	switch s {
	case dr.JobSucceeded:
		tone, text = "good", "Successful"
	case dr.JobFailed:
		tone, text = "bad", "Failed"
	case dr.JobInProgress:
		tone, text = "busy", "In progress"
	case dr.JobCancelling:
		tone, text = "busy", "Cancelling"
	case dr.JobWaiting:
		tone, text = "wait", "Waiting for input"
	case dr.JobNotStarted:
		text = "Not started"
	case dr.JobCancelled:
		text = "Cancelled"
	case dr.JobSkipped:
		text = "Skipped"
	}
	return pill{tone, toneIcon(tone), text}
}

// jobPercentOf is jobPercent for a job or a pointer to one.
func jobPercentOf(j any) float64 {
	switch j := j.(type) {
	case dr.Job:
		return jobPercent(j)
	case *dr.Job:
		return jobPercent(*j)
	}
	return 0
}

// jobDuration says how long a job or task took or has taken so far.
func jobDuration(now func() time.Time) func(started, ended time.Time) string {
	return func(started, ended time.Time) string {
		switch {
		case started.IsZero():
			return "–"
		case ended.IsZero():
			ended = now()
		}
		return span(ended.Sub(started).Truncate(100 * time.Millisecond))
	}
}

func consistencyText(c dr.Consistency) string {
	switch c {
	case dr.AppConsistent:
		return "App-consistent"
	case dr.FileSystemConsistent:
		return "File-system-consistent"
	}
	return "Crash-consistent"
}

// icons are drawn on a 20×20 grid in strokes of the text's colour.
const iconPaths = `
overview|M3 3h6v6H3zM11 3h6v4h-6zM11 9h6v8h-6zM3 11h6v6H3z
items|M10 2.5l6.5 2.5v5c0 4-2.7 6.6-6.5 7.9C6.200 16.600 3.500 14 3.500 10V5zM7 9.800l2.200 2.200L13.200 8
vms|M2.500 4h15v9.500h-15zM7 17h6M10 13.500V17
jobs|M4 3h12v14H4zM7 7h6M7 10h6M7 13h4
sites|M3 17V6l6-3v14M9 8h8v9M3 17h15M5.500 8v.5M5.500 11v.5M12 11v.5M14.500 11v.5M12 14v.5M14.500 14v.5
policies|M10 2.500a7.500 7.500 0 100 15 7.500 7.500 0 000-15zM10 5.500V10l3 2
add|M10 4v12M4 10h12
test|M8 3h4M9 3v5l-4.500 7.500c-.5 1 0 1.500 1 1.500h9c1 0 1.500-.5 1-1.500L11 8V3M7 12.500h6
broom|M12 3l-2 7M6.500 10h7l1.500 7H5zM8.500 17v-3M11.500 17v-3
failover|M3 6h10l-3-3M13 6l-3 3M17 14H7l3-3M7 14l3 3
planned|M4 4.500h12V17H4zM4 8h12M7 2.500v3M13 2.500v3M8 12.500l1.500 1.500 3-3
history|M4 10a6 6 0 106-6c-2 0-3.700 1-4.800 2.500M4 3.500v3.500h3.500M10 7v3l2 1.500
commit|M4 10.500l4 4 8-9
undo|M7 4L3.500 7.500 7 11M3.500 7.500h8a4.500 4.500 0 010 9H8
resync|M16 8a6.200 6.200 0 00-11.500-1.500M4 3.500v3.500h3.500M4 12a6.200 6.200 0 0011.500 1.500M16 16.500V13h-3.500
delete|M4 5.500h12M8 5.500V3.500h4v2M5.500 5.500l.8 11.500h7.400l.8-11.500M8.500 8.500v5.500M11.500 8.500v5.500
pause|M7 4v12M13 4v12
play|M6 3.500l10 6.500-10 6.500z
settings|M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4
key|M7 9a3.500 3.500 0 100 4.500M9.800 11.300H17v2.500M14 11.300v2
refresh|M16 8a6.200 6.200 0 10.200 3.500M16.500 4v4h-4
check|M4 3h12v14H4zM7 10l2.200 2.200L13 8
cancel|M5 5l10 10M15 5L5 15
download|M10 3v9.500M6 9l4 4 4-4M4 16.500h12
copy|M7 7h9.500v9.500H7zM4 13H3.500V3.500H13V4
search|M9 3.500a5.500 5.500 0 100 11 5.500 5.500 0 000-11zM13 13l4 4
person|M10 3a3.500 3.500 0 100 7 3.500 3.500 0 000-7zM3.500 17c.5-3.500 3-5 6.500-5s6 1.500 6.500 5
signout|M8 3.500H4v13h4M12 6.500l3.500 3.500-3.500 3.500M15 10H7.500
ok|M10 2.500a7.500 7.500 0 100 15 7.500 7.500 0 000-15zM6.500 10.200l2.500 2.500 4.500-5
warning|M10 3L2.500 16.500h15zM10 8v4.500M10 14.400v.2
error|M10 2.500a7.500 7.500 0 100 15 7.500 7.500 0 000-15zM7.300 7.300l5.400 5.400M12.700 7.300l-5.400 5.400
info|M10 2.500a7.500 7.500 0 100 15 7.500 7.500 0 000-15zM10 9v5M10 6.300v.2
dot|M10 4.500a5.500 5.500 0 100 11 5.500 5.500 0 000-11z
sync|M16 8a6.200 6.200 0 00-11.500-1.500M4 3.500v3.500h3.500M4 12a6.200 6.200 0 0011.500 1.500M16 16.500V13h-3.500
skip|M5 5l5 5-5 5M11 5l5 5-5 5
screen|M2.500 4h15v9.500h-15zM6 8l2 1.500L6 11M9.500 11h3.500M7 17h6
chevron|M7.500 4.500L13 10l-5.500 5.500
host|M3 4h14v5H3zM3 11h14v5H3zM6 6.500h.3M6 13.500h.3
bolt|M11 2.500L4.500 11.500H9l-1 6 7-9.500h-4.500z
menu|M3 5.500h14M3 10h14M3 14.500h14
`

// icons returns the drawings by name.
func icons() map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(iconPaths) {
		if name, d, ok := strings.Cut(strings.TrimSpace(line), "|"); ok {
			m[name] = d
		}
	}
	return m
}

// iconOf makes the function that draws an icon. Icons are only decoration: the
// text beside them says the same.
func iconOf(drawn map[string]string) func(name string) (template.HTML, error) {
	return func(name string) (template.HTML, error) {
		d, ok := drawn[name]
		if !ok {
			return "", fmt.Errorf("no icon %q", name)
		}
		return template.HTML(`<svg class="icon i-` + name + `" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false"><path d="` + d + `"/></svg>`), nil
	}
}
