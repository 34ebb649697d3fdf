package operate

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

type policyView struct {
	Name                string `json:"name"`
	CopyFrequencySecs   int64  `json:"copyFrequencySeconds"`
	RetentionSeconds    int64  `json:"retentionSeconds"`
	AppFrequencySeconds int64  `json:"appFrequencySeconds"`

	HourlySeconds   int64                   `json:"hourlySeconds"`
	DailySeconds    int64                   `json:"dailySeconds"`
	ResyncMode      string                  `json:"resyncMode"`
	ResyncWindow    string                  `json:"resyncWindow"`
	ResyncThreshold float64                 `json:"resyncThreshold"` // -1 = off
	InitialMode     string                  `json:"initialMode"`
	InitialWindow   string                  `json:"initialWindow"`
	InitialStart    string                  `json:"initialStart"`
	InitialPriority int                     `json:"initialPriority"`
	Compression     string                  `json:"compression"`
	Bandwidth       []armwire.BandwidthRule `json:"bandwidth"`
}

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Replication policies"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List policies", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		var views []policyView
		for _, p := range all {
			d := p.Properties.ProviderSpecificDetails
			v := policyView{Name: p.Name, CopyFrequencySecs: int64(d.ReplicationInterval), RetentionSeconds: d.RetentionSeconds, AppFrequencySeconds: d.AppFrequencySeconds,
				HourlySeconds: d.RetainHourlySeconds, DailySeconds: d.RetainDailySeconds, ResyncMode: d.ResyncMode, ResyncWindow: d.ResyncWindow, ResyncThreshold: d.ResyncThreshold,
				InitialMode: d.InitialMode, InitialWindow: d.InitialWindow, InitialStart: startText(d.OnlineReplicationStartTime), InitialPriority: d.InitialPriority, Compression: d.Compression, Bandwidth: d.Bandwidth}
			if v.Bandwidth == nil {
				v.Bandwidth = []armwire.BandwidthRule{}
			}
			views = append(views, v)
		}
		return console.List(a.Console, views, "There are no policies. Create one with 'holdfast policy create NAME'.",
			console.Wide("POLICY", func(p policyView) string { return p.Name }),
			console.Col("EVERY", func(p policyView) string { return console.Short(console.Seconds(p.CopyFrequencySecs)) }),
			console.Wide("KEPT FOR", keptText), console.Col("APP-CONSISTENT EVERY", func(p policyView) string { return orNone(p.AppFrequencySeconds, "never") }))
	})})
	var deleteWait waitFlag
	remove := &cobra.Command{Use: "delete NAME", Short: "Delete a policy that nothing uses", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		all, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		p, err := find(all, "policy", args[0], "holdfast policy list", func(p armclient.Policy) bool { return strings.EqualFold(p.Name, args[0]) })
		if err != nil {
			return err
		}
		if err := a.Confirm("The policy %s will be deleted.", p.Name); err != nil {
			return err
		}
		op, err := c.RemovePolicy(ctx, p.Name)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, deleteWait)
	})}
	c.AddCommand(a.policyChanges()...)
	c.AddCommand(a.ConfirmFlag(deleteWait.add(remove)))
	return c
}

func startText(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// keptText says how long points are kept, tier by tier.
func keptText(p policyView) string {
	text := orNone(p.RetentionSeconds, "latest only")
	if p.HourlySeconds > 0 {
		text += ", hourly " + console.Short(console.Seconds(p.HourlySeconds))
	}
	if p.DailySeconds > 0 {
		text += ", daily " + console.Short(console.Seconds(p.DailySeconds))
	}
	return text
}

func orNone(n int64, none string) string {
	if n == 0 {
		return none
	}
	return console.Short(console.Seconds(n))
}

type mappingView struct {
	Name   string `json:"name"`
	Site   string `json:"site"`
	Target string `json:"target"`
	Policy string `json:"policy"`
	Health string `json:"health"`
}

func (a *app) mappingCommand() *cobra.Command {
	c := &cobra.Command{Use: "mapping", Short: "Which site recovers the VMs of a site, and by which policy"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List mappings", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Mappings(ctx)
		if err != nil {
			return err
		}
		var views []mappingView
		for _, m := range all {
			p := m.Properties
			views = append(views, mappingView{m.Name, p.SourceFabricFriendlyName, p.TargetFabricFriendlyName, p.PolicyFriendlyName, p.Health})
		}
		return console.List(a.Console, views, "There are no mappings. Create one with 'holdfast mapping create'.",
			console.Wide("MAPPING", func(m mappingView) string { return m.Name }), console.Wide("SITE", func(m mappingView) string { return m.Site }),
			console.Wide("RECOVERED AT", func(m mappingView) string { return m.Target }), console.Wide("POLICY", func(m mappingView) string { return m.Policy }))
	})})
	var site, to, policy, name string
	var wait waitFlag
	create := &cobra.Command{Use: "create --site SITE --to SITE --policy POLICY", Short: "Let a site's VMs be recovered at another site", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
			box, err := c.Container(ctx, site)
			if err != nil {
				return err
			}
			target, err := c.Container(ctx, to)
			if err != nil {
				return err
			}
			if name == "" {
				name = strings.ToLower(strings.ReplaceAll(site+"-to-"+to, "/", "-"))
			}
			all, err := c.Mappings(ctx)
			if err != nil {
				return err
			}
			for _, m := range all {
				if strings.EqualFold(m.Name, name) && strings.EqualFold(m.Properties.SourceFabricFriendlyName, box.Properties.FabricFriendlyName) {
					return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "holdfast.mapping", "site %s has a mapping %q already", site, m.Name).WithHint("Give another --name.")
				}
			}
			op, err := c.CreateMapping(ctx, box.ID, name, policy, target.ID)
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, wait)
		})}
	f := create.Flags()
	f.StringVar(&site, "site", "", "site whose VMs are protected; SITE/CLOUD for a cloud of a VMM server")
	f.StringVar(&to, "to", "", "site that recovers them")
	f.StringVar(&policy, "policy", "", "replication policy")
	f.StringVar(&name, "name", "", "name of the mapping (default: SITE-to-SITE)")
	console.Required(create, "site", "to", "policy")
	c.AddCommand(wait.add(create))
	return c
}
