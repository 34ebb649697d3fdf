package operate

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/planner"
)

// cloudCommands are the verbs about what a recovery VM gets, most of them in a cloud.
func (a *app) cloudCommands() []*cobra.Command {
	return []*cobra.Command{a.sizesCommand(), a.setCommand(), a.warmCommand(), a.checkGuestCommand()}
}

func (a *app) sizesCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{Use: "sizes ITEM", Short: "List the sizes that a VM can have in the cloud of its recovery site", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			list, err := c.Items().Sizes(ctx, s.ResourceID)
			if err != nil {
				return err
			}
			rows := []armwire.ComputeSize{}
			for _, x := range list {
				if all || len(x.Properties.Errors) == 0 {
					rows = append(rows, x.Properties)
				}
			}
			type row = armwire.ComputeSize
			cols := []console.Column[row]{console.Wide("SIZE", func(r row) string { return r.Name }), console.Col("CPUS", func(r row) string { return fmt.Sprint(r.Cores) }),
				console.Col("MEMORY", func(r row) string { return fmt.Sprintf("%g GiB", r.MemoryGB) }), console.Col("DISKS", func(r row) string { return fmt.Sprint(r.DataDisks) }),
				console.Col("NICS", func(r row) string { return fmt.Sprint(r.NICs) })}
			if all {
				cols = append(cols, console.Wide("CAN'T BE CHOSEN BECAUSE", func(r row) string {
					if len(r.Errors) == 0 {
						return ""
					}
					return r.Errors[0].Message
				}))
			}
			return console.List(a.Console, rows, "The recovery site offers no sizes: it is no cloud, or its agent has not reported yet. --all shows those that do not fit.", cols...)
		})}
	c.Flags().BoolVar(&all, "all", false, "also those that the VM can't have, with the reason")
	return c
}

// setCommand changes what the recovery VM of an item is to be.
func (a *app) setCommand() *cobra.Command {
	var wait waitFlag
	flags := map[string]*string{}
	var cpus, memory int
	var public, repair bool
	var tags, nics []string
	c := &cobra.Command{Use: "set ITEM", Short: "Change what the recovery VM is to be: name, size, networks", Args: cobra.ExactArgs(1),
		Long: "Change settings of the recovery VM; what is not named stays as it is, and an empty text takes a setting\nback. They count from the next failover on.",
	}
	for _, f := range []struct{ name, help string }{
		{"recovery-name", "name of the VM at the recovery site"}, {"network", "network for failovers: a name, or the id of a virtual network"},
		{"test-network", "network for tests (default: an isolated one)"}, {"size", "Azure: size of the VM; see 'holdfast item sizes'"},
		{"resource-group", "Azure: resource group, by name or id"}, {"availability-set", "Azure: availability set, by name or id"}, {"zone", "Azure: availability zone"},
		{"proximity-group", "Azure: proximity placement group, by id"}, {"disk-type", "Azure: type of the disks, such as StandardSSD_LRS"}, {"license", "Azure: licence that you bring, such as WindowsServer"},
		{"security-group", "Azure: network security group of the adapters, by id"}, {"primary-nic", "adapter of the source VM that becomes the primary one"},
	} {
		flags[f.name] = c.Flags().String(f.name, "", f.help)
	}
	f := c.Flags()
	f.IntVar(&cpus, "cpus", 0, "processors (0 = as the source; in Azure the least that the size must have)")
	f.IntVar(&memory, "memory", 0, "memory in MiB (0 = as the source)")
	f.BoolVar(&public, "public-ip", false, "Azure: the primary adapter gets a public address")
	f.BoolVar(&repair, "repair-guest", false, "Azure: repair on a side layer what would keep the guest from booting; see 'holdfast item check'")
	f.StringArrayVar(&tags, "tag", nil, "Azure: NAME=VALUE; all that are given replace all there were")
	f.StringArrayVar(&nics, "nic", nil, "adapter: ID=unused, or ID=subnet:NAME,ip:ADDRESS,test-subnet:NAME,test-ip:ADDRESS; may be repeated")
	c.RunE = a.withClient(func(ctx context.Context, cl *armclient.Client, args []string) error {
		text := func(name string) *string {
			if !c.Flags().Changed(name) {
				return nil
			}
			return flags[name]
		}
		in := armwire.UpdateInput{RecoveryAzureVMName: text("recovery-name"), RecoveryAzureVMSize: text("size"), SelectedRecoveryAzureNetworkID: text("network"),
			SelectedTFOAzureNetworkID: text("test-network"), SelectedSourceNICID: text("primary-nic"), LicenseType: text("license"), RecoveryAvailabilitySetID: text("availability-set")}
		d := armwire.UpdateDetails{RecoveryAzureV2ResourceGroup: text("resource-group"), TargetAvailabilityZone: text("zone"), TargetProximityPlacementGroup: text("proximity-group"),
			DiskType: text("disk-type"), SecurityGroup: text("security-group")}
		if c.Flags().Changed("cpus") {
			d.CPUs = &cpus
		}
		if c.Flags().Changed("memory") {
			d.MemoryMB = &memory
		}
		if c.Flags().Changed("public-ip") {
			d.PublicIP = &public
		}
		if c.Flags().Changed("repair-guest") {
			d.RepairGuest = &repair
		}
		if c.Flags().Changed("tag") {
			d.TargetVMTags = map[string]string{}
		}
		for _, t := range tags {
			k, v, ok := strings.Cut(t, "=")
			if !ok || k == "" {
				return console.Usage("--tag %q is not NAME=VALUE", t)
			}
			d.TargetVMTags[k] = v
		}
		for _, n := range nics {
			x, err := parseNIC(n)
			if err != nil {
				return err
			}
			in.VMNICs = append(in.VMNICs, x)
		}
		s, err := cl.Items().Summary(ctx, args[0])
		if err != nil {
			return err
		}
		op, err := cl.Items().Update(ctx, s.ResourceID, in, d)
		if err != nil {
			return err
		}
		return a.finish(ctx, cl, op, wait)
	})
	return wait.add(c)
}

// parseNIC reads ID=unused or ID=key:value,….
func parseNIC(s string) (armwire.NICInput, error) {
	id, rest, ok := strings.Cut(s, "=")
	n := armwire.NICInput{NICID: id, SelectionType: "SelectedByUser"}
	if !ok || id == "" || rest == "" {
		return n, console.Usage("--nic %q is not ID=unused or ID=subnet:NAME,ip:ADDRESS", s)
	}
	if rest == "unused" {
		n.SelectionType = "NotSelected"
		return n, nil
	}
	ip := armwire.IPConfigInput{IsPrimary: true, IsSelectedForFailover: true}
	for _, part := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(part, ":")
		to := map[string]*string{"subnet": &ip.RecoverySubnetName, "ip": &ip.RecoveryStaticIPAddress, "test-subnet": &ip.TFOSubnetName, "test-ip": &ip.TFOStaticIPAddress}[k]
		if to == nil || v == "" {
			return n, console.Usage("--nic %q: %q is none of subnet:NAME, ip:ADDRESS, test-subnet:NAME, test-ip:ADDRESS", s, part)
		}
		*to = v
	}
	n.IPConfigs = []armwire.IPConfigInput{ip}
	return n, nil
}

// warmView is what 'item warm' shows.
type warmView struct {
	VM          string               `json:"vm"`
	Warm        *armwire.WarmReplica `json:"warmReplica"` // null = the disks are not kept ready
	DiskBytes   int64                `json:"diskBytes"`
	KeptBytes   int64                `json:"keptBytes"`
	Writes      float64              `json:"writesPerDay"`
	Month       float64              `json:"costPerMonth"`
	ColdSeconds float64              `json:"coldCopySeconds"`
	Rates       planner.WarmRates    `json:"rates"`
}

func (a *app) warmCommand() *cobra.Command {
	var on, off bool
	var r planner.WarmRates
	c := &cobra.Command{Use: "warm ITEM", Short: "Show, begin or end keeping a VM's disks ready in Azure, with what it costs", Args: cobra.ExactArgs(1),
		Long: "A warm replica keeps the disks of the newest recovery point in page blobs, so that a failover does not copy\n" +
			"them. Without --on or --off this shows how far it is, and what it costs and saves. Prices change and differ\n" +
			"by region: give yours; without them only amounts are shown.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			if on && off {
				return console.Usage("--on and --off exclude each other")
			}
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if on || off {
				op, err := c.Items().Update(ctx, s.ResourceID, armwire.UpdateInput{}, armwire.UpdateDetails{WarmReplica: &on})
				if err != nil {
					return err
				}
				if err := op.Wait(ctx, nil, nil); err != nil {
					return err
				}
			}
			return a.showWarm(ctx, c, s, r)
		})}
	f := c.Flags()
	f.BoolVar(&on, "on", false, "keep the disks ready from now on")
	f.BoolVar(&off, "off", false, "no longer; the page blobs are removed")
	f.Float64Var(&r.PageGiBMonth, "price-gib", 0, "price of a GiB of page blobs a month")
	f.Float64Var(&r.Write10K, "price-writes", 0, "price of 10,000 writes to page blobs")
	return c
}

func (a *app) showWarm(ctx context.Context, c *armclient.Client, s armwire.ItemSummary, r planner.WarmRates) error {
	it, err := c.Items().Get(ctx, s.ResourceID)
	if err != nil {
		return err
	}
	cycle := 5 * time.Minute
	policies, err := c.Policies(ctx)
	if err != nil {
		return err
	}
	for _, p := range policies {
		if n := p.Properties.ProviderSpecificDetails.ReplicationInterval; p.Name == it.Properties.PolicyFriendlyName && n > 0 {
			cycle = time.Duration(n) * time.Second
		}
	}
	var disks []int64
	for _, d := range it.Properties.Disks {
		if d.Replicated {
			disks = append(disks, d.Bytes)
		}
	}
	e := planner.WarmCost(disks, 0, it.Properties.Replication.ChangeBytesPerSecond*86400, cycle, r)
	v := warmView{VM: s.VMName, Warm: it.Properties.Warm, DiskBytes: e.DiskBytes, KeptBytes: e.Bytes, Writes: e.WritesPerDay, Month: e.Month, ColdSeconds: e.Cold.Seconds(), Rates: r}
	state := "off: a failover copies the disks first"
	if w := v.Warm; w != nil {
		state = "on, no point is held yet"
		if w.Point != "" {
			state = "on, holds point " + w.Point
		}
		if w.LagSeconds != nil {
			state += ", " + console.Short(console.Seconds(*w.LagSeconds)) + " behind the newest"
		}
		if w.Busy {
			state += ", working"
		}
		if w.Problem != "" {
			state += "; " + w.Problem
		}
	}
	month := "give --price-gib and --price-writes"
	if r != (planner.WarmRates{}) {
		month = fmt.Sprintf("%.2f", e.Month)
	}
	return a.Describe(v, console.F("vm", v.VM), console.F("warm replica", state), console.F("disks", console.Bytes(e.DiskBytes)), console.F("kept", "up to "+console.Bytes(e.Bytes)),
		console.F("writes a day", fmt.Sprintf("%.0f", e.WritesPerDay)), console.F("cost a month", month),
		console.F("without it", "a failover copies the disks, about "+console.Short(e.Cold)+" at 60 MiB/s for each disk"))
}

// checkGuestCommand looks into the guest of a recovery point.
func (a *app) checkGuestCommand() *cobra.Command {
	var point, target string
	c := &cobra.Command{Use: "check ITEM", Short: "Look into a recovery point: what would keep its guest from booting elsewhere?", Args: cobra.ExactArgs(1),
		Long: "Look into the file systems of a recovery point and say what would keep the guest from booting, or from being\n" +
			"reached, at the recovery site: drivers, boot loader, device names, console, network. Nothing is changed. Code 8\n" +
			"if something stands in the way.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			r, err := c.Items().GuestCheck(ctx, s.ResourceID, point, target)
			if err != nil {
				return err
			}
			type row = armwire.GuestFinding
			if !a.JSON {
				a.Say("%s, point %s, for %s: %s", s.VMName, r.Point, r.Target, cmp.Or(r.OS, "the guest's system is not known"))
				for _, f := range r.Fixes {
					if f.Refused == "" {
						a.Say("Can be repaired at the failover ('holdfast item set %s --repair-guest'): %s, %s.", s.VMName, f.File, f.What)
					}
				}
				if err := console.List(a.Console, r.Findings, "Nothing stands in the way.", console.Col("SEVERITY", func(f row) string { return f.Severity }), console.Wide("WHAT", func(f row) string {
					return strings.TrimPrefix(f.Object+": ", ": ") + f.Reason
				}), console.Wide("WHAT TO DO", func(f row) string { return f.WayOut })); err != nil {
					return err
				}
			} else if err := a.Describe(r); err != nil {
				return err
			}
			for _, f := range r.Findings {
				if f.Severity == "error" {
					return dr.Errorf(dr.KindPrecondition, "holdfast.item", "the guest would not come up: %s", f.Reason)
				}
			}
			return nil
		})}
	c.Flags().StringVar(&point, "point", "", "recovery point (default: the latest)")
	c.Flags().StringVar(&target, "target", "", "azure, hyperv or kvm (default: what the recovery site is)")
	return c
}
