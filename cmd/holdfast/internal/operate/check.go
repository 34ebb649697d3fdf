package operate

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/readiness"
)

// siteCheckCommand is the dry run for a whole site.
func (a *app) siteCheckCommand() *cobra.Command {
	var target, format string
	c := &cobra.Command{
		Use: "check NAME", Short: "Check which VMs of a site can be protected, and its best practices", Args: cobra.ExactArgs(1),
		Long: "Check all VMs of a site against what a target takes, without protecting anything, and the site against the\n" +
			"best practices. Targets are azure, hyperv and kvm. A file for others is written with --format:\n" +
			"  holdfast site check berlin --target azure --format html > berlin.html",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			if _, err := readiness.ProfileByName(target); err != nil {
				return console.Usage("--target: %v", err)
			}
			if !slices.Contains([]string{"", "csv", "html", "json"}, format) {
				return console.Usage("--format %q is none of csv, html and json", format)
			}
			f, err := c.Fabric(ctx, args[0])
			if err != nil {
				return err
			}
			var r readiness.Report
			if err := c.Get(ctx, c.ID(armwire.Extension, "readiness", f.Name)+"?target="+url.QueryEscape(target), &r); err != nil {
				return err
			}
			switch format {
			case "csv":
				return r.WriteCSV(a.Out)
			case "html":
				return r.WriteHTML(a.Out)
			case "json":
				return r.WriteJSON(a.Out)
			}
			return a.showReadiness(r)
		}),
	}
	c.Flags().StringVar(&target, "target", "azure", "where the VMs are to be recovered: azure, hyperv or kvm")
	c.Flags().StringVar(&format, "format", "", "write the report as csv, html or json")
	c.ValidArgsFunction = a.completeSites()
	return c
}

// finding is a line of the report on a terminal.
type finding struct {
	VM       string             `json:"vm"`
	Severity readiness.Severity `json:"severity"`
	Reason   string             `json:"reason"`
	WayOut   string             `json:"wayOut"`
}

func (a *app) showReadiness(r readiness.Report) error {
	if a.JSON {
		return r.WriteJSON(a.Out)
	}
	var list []finding
	for _, v := range r.VMs {
		for _, f := range v.Findings {
			list = append(list, finding{v.Name, f.Severity, f.Reason, f.WayOut})
		}
	}
	fmt.Fprintf(a.Out, "%d of %d VMs are ready for %s, %d are blocked.\n\n", r.Ready, len(r.VMs), r.Target, r.Blocked)
	if len(list) > 0 {
		if err := console.List(a.Console, list, "", console.Wide("VM", func(f finding) string { return f.VM }), console.Col("SEVERITY", func(f finding) string { return string(f.Severity) }),
			console.Wide("REASON", func(f finding) string { return f.Reason }), console.Wide("WAY OUT", func(f finding) string { return f.WayOut })); err != nil {
			return err
		}
		fmt.Fprintln(a.Out)
	}
	var bad []readiness.Practice
	met := 0
	for _, p := range r.Practices {
		switch p.Status {
		case readiness.NotMet:
			bad = append(bad, p)
		case readiness.Met:
			met++
		}
	}
	fmt.Fprintf(a.Out, "Best practices: %d met, %d not met, %d not checked.\n", met, len(bad), len(r.Practices)-met-len(bad))
	if len(bad) == 0 {
		return nil
	}
	fmt.Fprintln(a.Out)
	return console.List(a.Console, bad, "", console.Wide("NOT MET", func(p readiness.Practice) string { return p.Title }),
		console.Wide("DETAIL", func(p readiness.Practice) string {
			return strings.TrimSpace(p.Detail + " " + some(p.Objects))
		}), console.Wide("REMEDY", func(p readiness.Practice) string { return p.Remedy }))
}

// some names the first objects of a list.
func some(names []string) string {
	const few = 5
	switch {
	case len(names) == 0:
		return ""
	case len(names) <= few:
		return "(" + strings.Join(names, ", ") + ")"
	}
	return fmt.Sprintf("(%s and %d more)", strings.Join(names[:few], ", "), len(names)-few)
}
