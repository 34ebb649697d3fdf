// Package report is the portal's page of a site's readiness: which VMs can be
// protected and recovered at a target, why not and what to do, how the site
// stands to the best practices, and the same as files.
//
// It promises that page and files are made by the same rules at the time of the
// request, and that a file is complete or not sent at all.
package report

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/readiness"
	"holdfast/internal/vault/assess"
)

// Pages are the readiness reports of sites.
type Pages struct{ *page.Core }

// link is one choice of several; On is the one that is shown.
type link struct {
	Title, URL string
	On         bool
}

// row is a VM of the report.
type row struct {
	readiness.VMReport
	State    words.Pill
	Findings []finding
}

type finding struct {
	readiness.Finding
	State          words.Pill
	Reason, WayOut string // as sentences
}

type practice struct {
	readiness.Practice
	State words.Pill
}

type body struct {
	readiness.Report
	Title      string // of the target
	Targets    []link
	Shows      []link
	Rows       []row
	Practices  []practice
	Warned     int // ready VMs with warnings
	NotMet     int
	NotChecked int
	Files      []link
	Pages      estate.Pages
}

// report makes the report that the address asks for.
func (p Pages) report(r *page.Request) (dr.Fabric, readiness.Report, error) {
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return f, readiness.Report{}, err
	}
	target := r.URL.Query().Get("target")
	if target == "" {
		if target, err = p.target(r.Context(), f); err != nil {
			return f, readiness.Report{}, err
		}
	}
	rep, err := assess.Report(r.Context(), p.V, assess.Question{Site: f, Target: target, Connected: p.V.Connected, Now: p.Now()})
	return f, rep, err
}

// target is where the site's VMs recover by its container mappings; the default
// of all reports if there is none, or more than one.
func (p Pages) target(ctx context.Context, f dr.Fabric) (string, error) {
	maps, err := p.V.Mappings(ctx, f.ID)
	if err != nil {
		return "", err
	}
	all, err := p.V.Fabrics(ctx)
	if err != nil {
		return "", err
	}
	var found []string
	for _, m := range maps {
		i := slices.IndexFunc(all, func(x dr.Fabric) bool { return x.ID == m.TargetFabric })
		switch {
		case i < 0:
			found = append(found, assess.DefaultTarget)
		case all[i].Type == dr.KVMSite:
			found = append(found, "kvm")
		case all[i].Type == dr.AzureSite:
			found = append(found, "azure")
		default:
			found = append(found, "hyperv")
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) == 1 {
		return found[0], nil
	}
	return assess.DefaultTarget, nil
}

// Show is the page.
func (p Pages) Show(w http.ResponseWriter, r *page.Request) error {
	f, rep, err := p.report(r)
	if err != nil {
		return err
	}
	at := "/portal/sites/" + url.PathEscape(f.Name)
	b := body{Report: rep}
	show := r.URL.Query().Get("show")
	if show != "ready" && show != "blocked" {
		show = ""
	}
	address := func(target, show string) string {
		q := url.Values{"target": {target}}
		if show != "" {
			q.Set("show", show)
		}
		return at + "/readiness?" + q.Encode()
	}
	for _, t := range readiness.Profiles() {
		b.Targets = append(b.Targets, link{t.Title, address(t.Name, show), t.Name == rep.Target})
		if t.Name == rep.Target {
			b.Title = t.Title
		}
	}
	for _, s := range []link{{Title: "All"}, {Title: "Ready", URL: "ready"}, {Title: "Blocked", URL: "blocked"}} {
		b.Shows = append(b.Shows, link{s.Title, address(rep.Target, s.URL), s.URL == show})
	}
	for _, format := range []string{"csv", "json", "html"} {
		b.Files = append(b.Files, link{Title: strings.ToUpper(format), URL: at + "/readiness/" + format + "?target=" + url.QueryEscape(rep.Target)})
	}
	var rows []row
	for _, v := range rep.VMs {
		x := rowOf(v)
		if x.State.Tone == "warn" {
			b.Warned++
		}
		if show == "" || v.Ready == (show == "ready") {
			rows = append(rows, x)
		}
	}
	slices.SortStableFunc(rows, func(x, y row) int { return cmp.Compare(rank(x.State.Tone), rank(y.State.Tone)) })
	b.Rows, b.Pages = estate.Paged(r, rows, estate.PageSize)
	b.judge(rep.Practices)
	return p.Render(w, r, "readiness", page.View{Title: "Readiness of " + f.Name, Kind: words.SiteType(f.Type), Section: "sites", Icon: "check",
		Crumbs: []page.Crumb{{Name: "Sites", URL: "/portal/sites"}, {Name: f.Name, URL: at}}, Body: b})
}

// rank puts what needs work first.
func rank(tone string) int { return slices.Index([]string{"bad", "warn", "idle", "good"}, tone) }

func rowOf(v readiness.VMReport) row {
	out := row{VMReport: v, State: words.Pill{Tone: "good", Icon: "ok", Text: "Ready"}}
	for _, f := range v.Findings {
		x := finding{Finding: f, Reason: words.Advice(f.Reason), WayOut: words.Sentence(f.WayOut)}
		switch f.Severity {
		case readiness.Blocks:
			x.State = words.Pill{Tone: "bad", Icon: "error", Text: "Blocks"}
		case readiness.Warns:
			x.State = words.Pill{Tone: "warn", Icon: "warning", Text: "Warning"}
			out.State = words.Pill{Tone: "warn", Icon: "warning", Text: "Ready with warnings"}
		default:
			x.State = words.Pill{Tone: "idle", Icon: "info", Text: "Note"}
		}
		out.Findings = append(out.Findings, x)
	}
	if !v.Ready {
		out.State = words.Pill{Tone: "bad", Icon: "error", Text: "Blocked"}
	}
	return out
}

func (b *body) judge(list []readiness.Practice) {
	for _, p := range list {
		x := practice{Practice: p, State: words.Pill{Tone: "good", Icon: "ok", Text: "Met"}}
		switch p.Status {
		case readiness.NotMet:
			x.State = words.Pill{Tone: "warn", Icon: "warning", Text: "Not met"}
			b.NotMet++
		case readiness.NotChecked:
			x.State = words.Pill{Tone: "idle", Icon: "dot", Text: "Not checked"}
			b.NotChecked++
		}
		b.Practices = append(b.Practices, x)
	}
	slices.SortStableFunc(b.Practices, func(x, y practice) int { return cmp.Compare(rank(x.State.Tone), rank(y.State.Tone)) })
}

// Download sends the report as a file.
func (p Pages) Download(w http.ResponseWriter, r *page.Request) error {
	formats := map[string]struct {
		kind  string
		write func(readiness.Report, io.Writer) error
	}{
		"csv":  {"text/csv; charset=utf-8", readiness.Report.WriteCSV},
		"json": {"application/json", readiness.Report.WriteJSON},
		"html": {"text/html; charset=utf-8", readiness.Report.WriteHTML},
	}
	as, ok := formats[r.PathValue("format")]
	if !ok {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal.readiness", "there is no report in the format %q", r.PathValue("format")).WithHint("Choose csv, json or html.")
	}
	f, rep, err := p.report(r)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := as.write(rep, &b); err != nil {
		return dr.Errorf(dr.KindInternal, "portal.readiness", "write the report of site %s: %w", f.Name, err)
	}
	name := "readiness-" + words.FileName(f.Name) + "-" + rep.Target + "-" + rep.Taken.Format("20060102-1504") + "." + r.PathValue("format")
	w.Header().Set("Content-Type", as.kind)
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	_, _ = w.Write(b.Bytes()) // the browser has gone
	return nil
}
