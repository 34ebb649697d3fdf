package operate

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/dr"
)

type siteView struct {
	Name   string   `json:"name"`
	ID     string   `json:"id"`
	Type   string   `json:"type"`
	Health string   `json:"health"`
	Hosts  []string `json:"hosts"`
}

func viewSite(f armclient.Fabric) siteView {
	v := siteView{Name: f.Name, ID: f.Properties.InternalIdentifier, Type: f.Properties.FabricType, Health: f.Properties.Health, Hosts: []string{}}
	for _, h := range f.Properties.CustomDetails.HyperVHosts {
		v.Hosts = append(v.Hosts, h.Name)
	}
	return v
}

func (a *app) siteCommand() *cobra.Command {
	c := &cobra.Command{Use: "site", Short: "Sites: groups of hosts"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List sites", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Fabrics(ctx)
		if err != nil {
			return err
		}
		var views []siteView
		for _, f := range all {
			views = append(views, viewSite(f))
		}
		return console.List(a.Console, views, "There are no sites. Create one with 'holdfast site create NAME'.",
			console.Wide("SITE", func(s siteView) string { return s.Name }), console.Col("TYPE", func(s siteView) string { return s.Type }),
			console.Col("HEALTH", func(s siteView) string { return s.Health }), console.Wide("HOSTS", func(s siteView) string { return console.Dash(strings.Join(s.Hosts, ", ")) }))
	})})
	var kind string
	var createWait, deleteWait waitFlag
	create := &cobra.Command{Use: "create NAME", Short: "Create a site", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		t := map[string]dr.FabricType{"kvm": dr.KVMSite, "hyperv": dr.HyperVSite, "vmm": dr.VMMSite, "azure": dr.AzureSite}[kind]
		if t == "" {
			return console.Usage("--type %q is none of kvm, hyperv, vmm and azure", kind)
		}
		if _, err := c.Fabric(ctx, args[0]); err == nil {
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "holdfast.site", "there is a site %q already", args[0])
		} else if dr.KindOf(err) != dr.KindNotFound {
			return err
		}
		op, err := c.CreateFabric(ctx, args[0], t)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, createWait)
	})}
	create.Flags().StringVar(&kind, "type", "kvm", "what runs the VMs: kvm or hyperv; vmm for a VMM server with its hosts; azure for a resource group to recover in")
	var purge bool
	remove := &cobra.Command{Use: "delete NAME", Short: "Delete a site that has no hosts and no protected items", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		f, err := c.Fabric(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.Confirm("The site %s will be deleted.", f.Name); err != nil {
			return err
		}
		op, err := c.Remove(ctx, f.ID, purge)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, deleteWait)
	})}
	remove.Flags().BoolVar(&purge, "purge", false, "also when its hosts can't be reached")
	c.AddCommand(createWait.add(create), a.ConfirmFlag(deleteWait.add(remove)), a.siteKeyCommand(), a.siteCheckCommand(), a.siteShowCommand())
	remove.ValidArgsFunction = a.completeSites()
	return c
}

func (a *app) completeSites() cobra.CompletionFunc {
	return a.complete(func(ctx context.Context, c *armclient.Client) (names []string, err error) {
		all, err := c.Fabrics(ctx)
		for _, f := range all {
			names = append(names, f.Name)
		}
		return names, err
	})
}

func (a *app) siteKeyCommand() *cobra.Command {
	var out string
	var oneTime bool
	var hours int
	c := &cobra.Command{
		Use: "key NAME", Short: "Issue a registration key file for a site's hosts", Args: cobra.ExactArgs(1),
		Long: "Issue a registration key and write its file. Whoever has the file can register a host: move it to\n" +
			"the host safely and delete it there. The key is good for five days at most and can be revoked in the portal.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			f, err := c.Fabric(ctx, args[0]) // before the key is issued
			if err != nil {
				return err
			}
			if out == "" {
				out = f.Name + ".VaultCredentials"
			}
			issue := func() ([]byte, error) { return c.RegistrationKey(ctx, f.Name, oneTime, hours) }
			if out == "-" {
				raw, err := issue()
				if err == nil {
					_, err = a.Out.Write(raw)
				}
				return err
			}
			if err := console.CreateFile(out, issue); err != nil {
				return err
			}
			a.Say("Register a host with 'holdfast agent register --key %s'.", out)
			return a.Describe(map[string]any{"site": f.Name, "file": out, "oneTime": oneTime}, console.F("site", f.Name), console.F("file", out))
		}),
	}
	c.Flags().StringVar(&out, "out", "", "new file for the key, - for standard output (default: NAME.VaultCredentials)")
	c.Flags().BoolVar(&oneTime, "one-time", false, "good for one host only")
	c.Flags().IntVar(&hours, "hours", 0, "good for so many hours (default: five days)")
	c.ValidArgsFunction = a.completeSites()
	return c
}

type providerView struct {
	ID         string     `json:"id"`
	Host       string     `json:"host"`
	Site       string     `json:"site"`
	Roles      []string   `json:"roles"`
	Version    string     `json:"version"`
	Hypervisor string     `json:"hypervisor,omitempty"`
	Connected  bool       `json:"connected"`
	LastSeen   *time.Time `json:"lastSeen,omitempty"`
	Items      int32      `json:"items"`
}

func (a *app) providerCommand() *cobra.Command {
	c := &cobra.Command{Use: "provider", Short: "Registered hosts and their agents"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List registered hosts", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Providers(ctx)
		if err != nil {
			return err
		}
		var views []providerView
		for _, p := range all {
			q := p.Properties
			views = append(views, providerView{ID: p.Name, Host: q.FriendlyName, Site: q.FabricFriendlyName, Roles: q.Roles, Version: q.ProviderVersion, Hypervisor: q.Hypervisor,
				Connected: q.ConnectionStatus == "Connected", LastSeen: q.LastHeartBeat, Items: q.ProtectedItemCount})
		}
		return console.List(a.Console, views, "No host is registered. Issue a key with 'holdfast site key NAME'.",
			console.Wide("HOST", func(p providerView) string { return p.Host }), console.Wide("SITE", func(p providerView) string { return p.Site }),
			console.Col("ROLES", func(p providerView) string { return strings.Join(p.Roles, ",") }),
			console.Col("ITEMS", func(p providerView) string { return fmt.Sprint(p.Items) }),
			console.Col("CONNECTED", func(p providerView) string { return yesNo(p.Connected) }), console.Wide("LAST SEEN", func(p providerView) string { return a.When(p.LastSeen) }))
	})})
	var purge bool
	var wait waitFlag
	remove := &cobra.Command{Use: "remove HOST", Short: "Remove a host, by its name or id; its agent is refused from then on", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		all, err := c.Providers(ctx)
		if err != nil {
			return err
		}
		p, err := find(all, "host", args[0], "holdfast provider list", func(p armclient.Provider) bool {
			return strings.EqualFold(p.Name, args[0]) || strings.EqualFold(p.Properties.FriendlyName, args[0])
		})
		if err != nil {
			return err
		}
		if err := a.Confirm("The host %s of site %s will be removed from the vault.", p.Properties.FriendlyName, p.Properties.FabricFriendlyName); err != nil {
			return err
		}
		op, err := c.Remove(ctx, p.ID, purge)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, wait)
	})}
	remove.Flags().BoolVar(&purge, "purge", false, "also if the host can't be reached")
	c.AddCommand(a.ConfirmFlag(wait.add(remove)))
	return c
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type vmView struct {
	Name      string     `json:"name"`
	ID        string     `json:"id"`
	Site      string     `json:"site"`
	Running   bool       `json:"running"`
	Protected bool       `json:"protected"`
	Disks     []diskView `json:"disks"`
	Problems  []string   `json:"problems,omitempty"`
}

type diskView struct {
	ID      string `json:"id"`
	SizeMiB int64  `json:"sizeMiB"`
	Format  string `json:"format,omitempty"`
	Boot    bool   `json:"boot"`
	Problem string `json:"problem,omitempty"`
}

func viewVM(site string, v armclient.ProtectableItem) vmView {
	p := v.Properties
	out := vmView{Name: p.FriendlyName, ID: v.Name, Site: site, Running: p.Running, Protected: p.ProtectionStatus == "Protected", Disks: []diskView{}, Problems: p.ProtectionReadinessErrors}
	for _, d := range p.CustomDetails.DiskDetails {
		out.Disks = append(out.Disks, diskView{d.VHDName, d.MaxSizeMB, d.Format, d.VHDType == "OperatingSystem", d.Unreplicatable})
	}
	return out
}

// foundVM is a discovered VM and where it is.
type foundVM struct {
	site, container string
	vm              armclient.ProtectableItem
}

// vms lists the VMs of a site, or of all sites.
func vms(ctx context.Context, c *armclient.Client, site string) ([]foundVM, error) {
	sites := []string{site}
	if site == "" {
		sites = nil
		all, err := c.Fabrics(ctx)
		if err != nil {
			return nil, err
		}
		for _, f := range all {
			sites = append(sites, f.Name)
		}
	}
	var found []foundVM
	for _, s := range sites {
		boxes, err := c.Containers(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, box := range boxes {
			items, err := c.ProtectableItems(ctx, box.ID)
			if err != nil {
				return nil, err
			}
			for _, it := range items {
				found = append(found, foundVM{s, box.ID, it})
			}
		}
	}
	return found, nil
}

func (a *app) vmCommand() *cobra.Command {
	c := &cobra.Command{Use: "vm", Short: "Discovered VMs"}
	var site string
	ls := &cobra.Command{Use: "list", Short: "List the VMs of a site, or of all", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		found, err := vms(ctx, c, site)
		if err != nil {
			return err
		}
		var views []vmView
		for _, f := range found {
			views = append(views, viewVM(f.site, f.vm))
		}
		return console.List(a.Console, views, "No VM has been discovered. Is an agent with the role source running? See 'holdfast provider list'.",
			console.Wide("VM", func(v vmView) string { return v.Name }), console.Wide("SITE", func(v vmView) string { return v.Site }),
			console.Col("RUNNING", func(v vmView) string { return yesNo(v.Running) }), console.Col("PROTECTED", func(v vmView) string { return yesNo(v.Protected) }),
			console.Col("DISKS", func(v vmView) string {
				var size int64
				for _, d := range v.Disks {
					size += d.SizeMiB << 20
				}
				return fmt.Sprintf("%d, %s", len(v.Disks), console.Bytes(size))
			}),
			console.Wide("PROBLEMS", func(v vmView) string { return console.Dash(strings.Join(v.Problems, "; ")) }))
	})}
	ls.Flags().StringVar(&site, "site", "", "only VMs of this site")
	_ = ls.RegisterFlagCompletionFunc("site", a.completeSites()) // fails only for a flag that is not there
	c.AddCommand(ls)
	return c
}
