package page

import (
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/internal/portal/words"
)

//go:embed templates
var templateFiles embed.FS

// pageNames are the pages; each is a template file beside the frame and the parts.
func pageNames() []string {
	return []string{"signin", "error", "overview", "sites", "site", "readiness", "networks", "vms", "enable", "items", "item", "policies", "policy", "groups", "group", "store", "events", "jobs", "job"}
}

func loadTemplates(a *assets, now func() time.Time) (map[string]*template.Template, error) {
	base, err := template.New("").Funcs(functions(a, now)).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html", "templates/replication.html", "templates/vm.html")
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
		"asset":   a.url,
		"icon":    iconOf(icons()),
		"bytes":   words.Bytes,
		"span":    words.Span,
		"percent": words.Percent,
		"clock":   words.Clock,
		"count":   words.Count,
		"when":    func(t time.Time) template.HTML { return words.When(t, now()) },
		"path":    url.PathEscape,
		"health":  words.Health,
		"jobpill": words.Job,
		"caller":  words.Caller,
		"pill": func(tone, text string) words.Pill {
			return words.Pill{Tone: tone, Icon: words.ToneIcon(tone), Text: text}
		},
		"diskname":   words.DiskName,
		"diskdetail": words.DiskDetail,
		"join":       strings.Join,
		"duration":   words.Duration(now),
		"args":       args,
		"list":       func(v ...string) []string { return v },
		"level":      words.Consistency,
		"short":      func(v any) string { s := fmt.Sprint(v); return s[:min(len(s), 8)] },
		"among":      func(v, list string) bool { return slices.Contains(strings.Fields(list), v) },
		"ranges":     func() []string { return []string{"1h", "24h", "7d"} },
		"jobpercent": words.JobPercentOf,
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

// icons are drawn on a 20×20 grid in strokes of the text's colour.
const iconPaths = `
overview|M3 3h6v6H3zM11 3h6v4h-6zM11 9h6v8h-6zM3 11h6v6H3z
items|M10 2.5l6.5 2.5v5c0 4-2.7 6.6-6.5 7.9C6.2 16.6 3.5 14 3.5 10V5zM7 9.8l2.2 2.2L13.2 8
vms|M2.5 4h15v9.5h-15zM7 17h6M10 13.5V17
jobs|M4 3h12v14H4zM7 7h6M7 10h6M7 13h4
sites|M3 17V6l6-3v14M9 8h8v9M3 17h15M5.5 8v.5M5.5 11v.5M12 11v.5M14.5 11v.5M12 14v.5M14.5 14v.5
policies|M10 2.5a7.5 7.5 0 100 15 7.5 7.5 0 000-15zM10 5.5V10l3 2
add|M10 4v12M4 10h12
test|M8 3h4M9 3v5l-4.5 7.5c-.5 1 0 1.5 1 1.5h9c1 0 1.5-.5 1-1.5L11 8V3M7 12.5h6
broom|M12 3l-2 7M6.5 10h7l1.5 7H5zM8.5 17v-3M11.5 17v-3
failover|M3 6h10l-3-3M13 6l-3 3M17 14H7l3-3M7 14l3 3
planned|M4 4.5h12V17H4zM4 8h12M7 2.5v3M13 2.5v3M8 12.5l1.5 1.5 3-3
history|M4 10a6 6 0 106-6c-2 0-3.7 1-4.8 2.5M4 3.5v3.5h3.5M10 7v3l2 1.5
commit|M4 10.5l4 4 8-9
undo|M7 4L3.5 7.5 7 11M3.5 7.5h8a4.5 4.5 0 010 9H8
resync|M16 8a6.2 6.2 0 00-11.5-1.5M4 3.5v3.5h3.5M4 12a6.2 6.2 0 0011.5 1.5M16 16.5V13h-3.5
delete|M4 5.5h12M8 5.5V3.5h4v2M5.5 5.5l.8 11.5h7.4l.8-11.5M8.5 8.5v5.5M11.5 8.5v5.5
pause|M7 4v12M13 4v12
play|M6 3.5l10 6.5-10 6.5z
settings|M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4
key|M7 9a3.5 3.5 0 100 4.5M9.8 11.3H17v2.5M14 11.3v2
refresh|M16 8a6.2 6.2 0 10.2 3.5M16.5 4v4h-4
check|M4 3h12v14H4zM7 10l2.2 2.2L13 8
cancel|M5 5l10 10M15 5L5 15
download|M10 3v9.5M6 9l4 4 4-4M4 16.5h12
copy|M7 7h9.5v9.5H7zM4 13H3.5V3.5H13V4
search|M9 3.5a5.5 5.5 0 100 11 5.5 5.5 0 000-11zM13 13l4 4
person|M10 3a3.5 3.5 0 100 7 3.5 3.5 0 000-7zM3.5 17c.5-3.5 3-5 6.5-5s6 1.5 6.5 5
signout|M8 3.5H4v13h4M12 6.5l3.5 3.5-3.5 3.5M15 10H7.5
ok|M10 2.5a7.5 7.5 0 100 15 7.5 7.5 0 000-15zM6.5 10.2l2.5 2.5 4.5-5
warning|M10 3L2.5 16.5h15zM10 8v4.5M10 14.4v.2
error|M10 2.5a7.5 7.5 0 100 15 7.5 7.5 0 000-15zM7.3 7.3l5.4 5.4M12.7 7.3l-5.4 5.4
info|M10 2.5a7.5 7.5 0 100 15 7.5 7.5 0 000-15zM10 9v5M10 6.3v.2
dot|M10 4.5a5.5 5.5 0 100 11 5.5 5.5 0 000-11z
sync|M16 8a6.2 6.2 0 00-11.5-1.5M4 3.5v3.5h3.5M4 12a6.2 6.2 0 0011.5 1.5M16 16.5V13h-3.5
skip|M5 5l5 5-5 5M11 5l5 5-5 5
screen|M2.5 4h15v9.5h-15zM6 8l2 1.5L6 11M9.5 11h3.5M7 17h6
chevron|M7.5 4.5L13 10l-5.5 5.5
host|M3 4h14v5H3zM3 11h14v5H3zM6 6.5h.3M6 13.5h.3
bolt|M11 2.5L4.5 11.5H9l-1 6 7-9.5h-4.5z
groups|M6.5 4a2.5 2.5 0 100 5 2.5 2.5 0 000-5zM13.5 4a2.5 2.5 0 100 5 2.5 2.5 0 000-5zM2.5 16c.3-3 1.8-4.5 4-4.5s3.7 1.500 4 4.5M12 11.700c.5-.2 1-.2 1.500-.2 2.200 0 3.700 1.500 4 4.500
store|M10 3c3.900 0 6.500 1 6.500 2.500S13.900 8 10 8 3.500 7 3.500 5.500 6.100 3 10 3zM3.500 5.500v9C3.500 16 6.100 17 10 17s6.500-1 6.500-2.500v-9M3.500 10c0 1.500 2.600 2.500 6.500 2.500s6.500-1 6.500-2.500
network|M10 3v4M4 17v-4h12v4M10 7v6M7.500 3h5v4h-5zM2 17h4M8 17h4M14 17h4M10 13v4
menu|M3 5.5h14M3 10h14M3 14.5h14
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
