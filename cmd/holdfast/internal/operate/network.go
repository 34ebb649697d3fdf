package operate

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
)

type networkView struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Site    string   `json:"site"`
	Type    string   `json:"type"`
	Subnets []string `json:"subnets"`
	Hosts   []string `json:"hosts"`
}

// siteOf is the site's name in the id of something that lies in it.
func siteOf(id string) string {
	_, rest, _ := strings.Cut(id, "/replicationFabrics/")
	site, _, _ := strings.Cut(rest, "/")
	return site
}

func viewNetwork(n armclient.Network) networkView {
	v := networkView{ID: n.Name, Name: n.Properties.FriendlyName, Site: siteOf(n.ID), Type: n.Properties.NetworkType, Subnets: []string{}, Hosts: append([]string{}, n.Properties.Hosts...)}
	for _, s := range n.Properties.Subnets {
		v.Subnets = append(v.Subnets, s.Name)
	}
	return v
}

func (a *app) networkCommand() *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Networks of sites, and where they are mapped"}
	var site string
	ls := &cobra.Command{Use: "list", Short: "List the networks of a site, or of all", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Networks(ctx, site)
		if err != nil {
			return err
		}
		var views []networkView
		for _, n := range all {
			views = append(views, viewNetwork(n))
		}
		return console.List(a.Console, views, "No network is known. Hosts and VMM servers report theirs when their agents run.",
			console.Wide("NETWORK", func(n networkView) string { return n.Name }), console.Wide("SITE", func(n networkView) string { return n.Site }),
			console.Col("TYPE", func(n networkView) string { return n.Type }), console.Wide("SUBNETS", func(n networkView) string { return console.Dash(strings.Join(n.Subnets, ", ")) }),
			console.Wide("ID", func(n networkView) string { return n.ID }))
	})}
	ls.Flags().StringVar(&site, "site", "", "only networks of this site")
	_ = ls.RegisterFlagCompletionFunc("site", a.completeSites()) // fails only for a flag that is not there
	c.AddCommand(ls, a.networkMappingCommand())
	return c
}

type networkMappingView struct {
	Name          string `json:"name"`
	Site          string `json:"site"`
	Network       string `json:"network"`
	TargetSite    string `json:"targetSite"`
	TargetNetwork string `json:"targetNetwork"`
}

func viewNetworkMapping(m armclient.NetworkMapping) networkMappingView {
	p := m.Properties
	return networkMappingView{m.Name, p.PrimaryFabricFriendlyName, p.PrimaryNetworkFriendlyName, p.RecoveryFabricFriendlyName, p.RecoveryNetworkFriendlyName}
}

// network finds a network by SITE/NETWORK, where the network is a name or an id.
func network(ctx context.Context, c *armclient.Client, ref string) (armclient.Network, error) {
	site, name, ok := strings.Cut(ref, "/")
	if !ok || site == "" || name == "" {
		return armclient.Network{}, console.Usage("%q is not of the form SITE/NETWORK", ref)
	}
	all, err := c.Networks(ctx, site)
	if err != nil {
		return armclient.Network{}, err
	}
	return find(all, "network", ref, "holdfast network list", func(n armclient.Network) bool {
		return strings.EqualFold(n.Name, name) || n.Properties.FriendlyName == name
	})
}

func (a *app) networkMappingCommand() *cobra.Command {
	c := &cobra.Command{Use: "mapping", Short: "Which network a VM is connected to after a failover"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List network mappings", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.NetworkMappings(ctx)
		if err != nil {
			return err
		}
		var views []networkMappingView
		for _, m := range all {
			views = append(views, viewNetworkMapping(m))
		}
		return console.List(a.Console, views, "There are no network mappings. Create one with 'holdfast network mapping create'.",
			console.Wide("MAPPING", func(m networkMappingView) string { return m.Name }), console.Wide("FROM", func(m networkMappingView) string { return m.Site + "/" + m.Network }),
			console.Wide("TO", func(m networkMappingView) string { return m.TargetSite + "/" + m.TargetNetwork }))
	})})
	var from, to, name string
	var createWait, deleteWait waitFlag
	create := &cobra.Command{Use: "create --from SITE/NETWORK --to SITE/NETWORK", Short: "Connect VMs of a network to another one after a failover", Args: cobra.NoArgs,
		Long: "Map a network of a site to one of a recovery site. After a failover the adapters of VMs that were in the first\n" +
			"are in the second, there in the subnet of the same name, else in the first one. A network that is chosen for an item counts more.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
			source, err := network(ctx, c, from)
			if err != nil {
				return err
			}
			target, err := network(ctx, c, to)
			if err != nil {
				return err
			}
			if name == "" {
				name = strings.ToLower(source.Name + "-to-" + siteOf(target.ID))
				name = name[:min(len(name), 63)]
			}
			op, err := c.CreateNetworkMapping(ctx, source.ID, name, target.ID)
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, createWait)
		})}
	create.Flags().StringVar(&from, "from", "", "network whose VMs are protected, SITE/NETWORK")
	create.Flags().StringVar(&to, "to", "", "network of the recovery site, SITE/NETWORK")
	create.Flags().StringVar(&name, "name", "", "name of the mapping (default: NETWORK-to-SITE)")
	for _, f := range []string{"from", "to"} {
		_ = create.MarkFlagRequired(f) // fails only for a flag that is not there
	}
	remove := &cobra.Command{Use: "delete NAME", Short: "Delete a network mapping", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		all, err := c.NetworkMappings(ctx)
		if err != nil {
			return err
		}
		m, err := find(all, "network mapping", args[0], "holdfast network mapping list", func(m armclient.NetworkMapping) bool { return strings.EqualFold(m.Name, args[0]) || m.ID == args[0] })
		if err != nil {
			return err
		}
		v := viewNetworkMapping(m)
		if err := a.Confirm("The mapping of network %s/%s to %s/%s will be deleted.", v.Site, v.Network, v.TargetSite, v.TargetNetwork); err != nil {
			return err
		}
		op, err := c.RemoveNetworkMapping(ctx, m.ID)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, deleteWait)
	})}
	c.AddCommand(createWait.add(create), a.ConfirmFlag(deleteWait.add(remove)))
	return c
}

type siteDetail struct {
	siteView
	VMM    string   `json:"vmm,omitempty"`
	Clouds []string `json:"clouds,omitempty"`
	// Unmanaged are hosts of the VMM server without an agent: their VMs can't be protected.
	Unmanaged []string `json:"hostsWithoutAgent,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
}

func (a *app) siteShowCommand() *cobra.Command {
	c := &cobra.Command{Use: "show NAME", Short: "Show a site, and what its VMM server manages", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		f, err := c.Fabric(ctx, args[0])
		if err != nil {
			return err
		}
		d := siteDetail{siteView: viewSite(f)}
		if v := f.Properties.VMM; v != nil {
			d.VMM, d.Clouds, d.Warnings = strings.TrimSpace(v.Server+" "+v.Product), v.Clouds, v.Warnings
			for _, h := range v.Hosts {
				if d.Hosts = append(d.Hosts, h.Name); h.AgentID == "" {
					d.Unmanaged = append(d.Unmanaged, h.Name)
				}
			}
		}
		list := func(s []string) string { return strings.Join(s, ", ") }
		return a.Describe(d, console.F("site", d.Name), console.F("type", d.Type), console.F("health", d.Health), console.F("VMM server", d.VMM), console.F("clouds", list(d.Clouds)),
			console.F("hosts", list(d.Hosts)), console.F("hosts without agent", list(d.Unmanaged)), console.F("not listed", list(d.Warnings)))
	})}
	c.ValidArgsFunction = a.completeSites()
	return c
}
