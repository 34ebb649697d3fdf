package operate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// groupView is a consistency group.
type groupView struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Members []string `json:"members"` // VMs
}

func (a *app) groupCommand() *cobra.Command {
	c := &cobra.Command{Use: "group", Short: "Consistency groups: VMs that are also cut at one common instant",
		Long: "A consistency group is a set of protected VMs of one host that are cut at one instant, besides their own cycles:\n" +
			"for applications that are spread over several VMs."}
	c.AddCommand(a.groupListCommand(), a.groupPointsCommand())
	save := func(use, short string, create bool) *cobra.Command {
		return &cobra.Command{Use: use + " NAME ITEM...", Short: short, Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completeItems(), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			have, err := groupByName(ctx, c, args[0])
			switch {
			case create && err == nil:
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "holdfast.group", "there is a group %q already", have.Name).WithHint("Change it with 'holdfast group members %s ITEM...'.", have.Name)
			case create && dr.KindOf(err) != dr.KindNotFound, !create && err != nil:
				return err
			}
			var ids []string
			for _, ref := range args[1:] {
				s, err := c.Items().Summary(ctx, ref)
				if err != nil {
					return err
				}
				ids = append(ids, s.ResourceID)
			}
			g, err := c.Groups().Save(ctx, cmp.Or(have.Name, args[0]), ids)
			if err != nil {
				return err
			}
			names, err := itemNames(ctx, c)
			if err != nil {
				return err
			}
			v := viewGroup(g, names)
			return a.Describe(v, console.F("group", v.Name), console.F("members", strings.Join(v.Members, ", ")))
		})}
	}
	remove := &cobra.Command{Use: "delete NAME", Short: "Delete a group; its VMs stay protected", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		g, err := groupByName(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := c.Groups().Remove(ctx, g.Name); err != nil {
			return err
		}
		return a.Describe(jobView{State: "Succeeded"}, console.F("state", "Succeeded"))
	})}
	c.AddCommand(save("create", "Create a group", true), save("members", "Replace the members of a group", false), remove)
	return c
}

func groupByName(ctx context.Context, c *armclient.Client, name string) (armclient.Group, error) {
	all, err := c.Groups().List(ctx)
	if err != nil {
		return armclient.Group{}, err
	}
	return find(all, "group", name, "holdfast group list", func(g armclient.Group) bool { return strings.EqualFold(g.Name, name) })
}

// itemNames tells the VMs' names by the ids of their items.
func itemNames(ctx context.Context, c *armclient.Client) (map[string]string, error) {
	all, err := c.Items().Summaries(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, s := range all {
		names[s.ID], names[strings.ToLower(s.ResourceID)] = s.VMName, s.VMName
	}
	return names, nil
}

func viewGroup(g armclient.Group, names map[string]string) groupView {
	v := groupView{Name: g.Name, ID: g.Properties.GroupID, Members: []string{}}
	for _, id := range g.Properties.Items {
		v.Members = append(v.Members, cmp.Or(names[strings.ToLower(id)], id))
	}
	return v
}

func (a *app) groupListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List groups", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Groups().List(ctx)
		if err != nil {
			return err
		}
		names, err := itemNames(ctx, c)
		if err != nil {
			return err
		}
		var views []groupView
		for _, g := range all {
			views = append(views, viewGroup(g, names))
		}
		return console.List(a.Console, views, "There are no groups. Create one with 'holdfast group create NAME ITEM...'.",
			console.Wide("GROUP", func(g groupView) string { return g.Name }), console.Wide("MEMBERS", func(g groupView) string { return strings.Join(g.Members, ", ") }))
	})}
}

// instantView is an instant of a group.
type instantView struct {
	Seq         uint64       `json:"seq"`
	Time        *time.Time   `json:"time"`
	Consistency string       `json:"consistency"`
	Complete    bool         `json:"complete"`
	Points      []memberView `json:"points"`
	Missing     []string     `json:"missing"` // VMs
}

type memberView struct {
	VM    string `json:"vm"`
	Point string `json:"point"`
}

func viewInstant(p armwire.GroupPoint, names map[string]string) instantView {
	v := instantView{Seq: p.Seq, Time: p.Time, Consistency: p.Consistency, Complete: p.Complete, Points: []memberView{}, Missing: []string{}}
	for id, point := range p.Points {
		v.Points = append(v.Points, memberView{cmp.Or(names[id], id), point})
	}
	slices.SortFunc(v.Points, func(a, b memberView) int { return strings.Compare(a.VM, b.VM) })
	for _, id := range p.Missing {
		v.Missing = append(v.Missing, cmp.Or(names[id], id))
	}
	return v
}

func (a *app) groupPointsCommand() *cobra.Command {
	return &cobra.Command{Use: "points NAME", Short: "List the common instants of a group, newest first", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		g, err := groupByName(ctx, c, args[0])
		if err != nil {
			return err
		}
		all, err := c.Groups().Points(ctx, g.Name)
		if err != nil {
			return err
		}
		names, err := itemNames(ctx, c)
		if err != nil {
			return err
		}
		var views []instantView
		for _, p := range all {
			views = append(views, viewInstant(p, names))
		}
		return console.List(a.Console, views, "The group has no common instant yet.", console.Col("INSTANT", func(p instantView) string { return fmt.Sprint(p.Seq) }),
			console.Wide("TIME", func(p instantView) string { return a.When(p.Time) }), console.Col("CONSISTENT", func(p instantView) string { return p.Consistency }),
			console.Wide("COMPLETE", func(p instantView) string {
				if p.Complete {
					return "yes"
				}
				return "no, without " + strings.Join(p.Missing, ", ")
			}))
	})}
}

// errorsCommand is the catalogue of errors, which needs no vault.
func (a *app) errorsCommand() *cobra.Command {
	c := &cobra.Command{Use: "errors [CODE]", Short: "What error codes mean and what to do, without a vault", Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		var all []armwire.ErrorEntry
		for _, g := range dr.Groups() {
			for _, e := range g.Entries {
				all = append(all, armwire.ErrorEntry{Code: string(e.Code), Chapter: g.Title, Kind: e.Kind.String(), Retry: e.Retry.String(), Severity: string(e.Severity),
					Title: e.Title, Cause: e.Cause, Evidence: e.Evidence, Remedy: e.Remedy})
			}
		}
		if len(args) == 0 {
			return console.List(a.Console, all, "", console.Col("CODE", func(e armwire.ErrorEntry) string { return e.Code }), console.Wide("MEANING", func(e armwire.ErrorEntry) string { return e.Title }))
		}
		var near []string
		for _, e := range all {
			if strings.EqualFold(e.Code, args[0]) {
				return a.Describe(e, console.F("code", e.Code), console.F("means", e.Title), console.F("cause", e.Cause), console.F("shows as", e.Evidence), console.F("do", e.Remedy),
					console.F("retried", e.Retry), console.F("severity", e.Severity), console.F("exit code", fmt.Sprintf("%d (%s)", console.ExitCode(kindNamed(e.Kind)), e.Kind)))
			}
			if strings.Contains(strings.ToLower(e.Code+" "+e.Title), strings.ToLower(args[0])) {
				near = append(near, e.Code)
			}
		}
		e := dr.New(dr.KindNotFound, dr.CodeNotFound, "holdfast.errors", "there is no error code %q", args[0]).WithHint("See 'holdfast errors'.")
		if len(near) > 0 {
			e.Hint = "Did you mean: " + strings.Join(near, ", ") + "?"
		}
		return e
	}}
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var codes []string
		for _, e := range dr.Catalogue() {
			codes = append(codes, string(e.Code))
		}
		return codes, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func kindNamed(name string) dr.Kind {
	for _, k := range dr.Kinds() {
		if k.String() == name {
			return k
		}
	}
	return dr.KindInternal
}
