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
)

func (a *app) itemCommand() *cobra.Command {
	c := &cobra.Command{Use: "item", Short: "Protected VMs: replication, drills and failovers",
		Long: "Protected VMs. ITEM is the VM's name, or the item's name or id where that is not unique."}
	c.AddCommand(a.itemListCommand(), a.itemShowCommand(), a.itemEnableCommand(), a.itemDisableCommand(), a.itemTestCommand(), a.itemFailoverCommand(), a.itemChangeCommand())
	c.AddCommand(a.steering()...)
	c.AddCommand(a.cloudCommands()...)
	const gone = "The VM that runs at the recovery site will be removed with all that it has written."
	for _, act := range []struct {
		verb, action, short, question string
	}{
		{"cleanup", "", "End a test failover: remove the test VM", ""},
		{"commit", "failoverCommit", "Commit a failover: the recovery point can't be changed any more", ""},
		{"cancel", "failoverCancel", "Cancel a failover: remove the recovery VM and replicate again", gone},
	} {
		var wait waitFlag
		var comments string
		sub := &cobra.Command{Use: act.verb + " ITEM", Short: act.short, Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if act.question != "" {
				if err := a.Confirm("%s: %s", s.VMName, act.question); err != nil {
					return err
				}
			}
			var op *armclient.Operation
			if act.action == "" {
				op, err = c.Items().CleanupTest(ctx, s.ResourceID, comments)
			} else {
				op, err = c.Items().Act(ctx, s.ResourceID, act.action)
			}
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, wait)
		})}
		if act.action == "" {
			sub.Flags().StringVar(&comments, "comments", "", "what the test showed; kept with the job")
		}
		if act.question != "" {
			a.ConfirmFlag(sub)
		}
		c.AddCommand(wait.add(sub))
	}
	for _, sub := range c.Commands() {
		if name := sub.Name(); name != "list" && name != "enable" {
			sub.ValidArgsFunction = a.completeItems()
		}
	}
	return c
}

func (a *app) completeItems() cobra.CompletionFunc {
	return a.complete(func(ctx context.Context, c *armclient.Client) (names []string, err error) {
		all, err := c.Items().Summaries(ctx)
		for _, s := range all {
			names = append(names, s.VMName)
		}
		return names, err
	})
}

func (a *app) itemListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List protected VMs", Args: cobra.NoArgs, RunE: a.withClient(func(ctx context.Context, c *armclient.Client, _ []string) error {
		all, err := c.Items().Summaries(ctx)
		if err != nil {
			return err
		}
		type row = armwire.ItemSummary
		return console.List(a.Console, all, "Nothing is protected. See 'holdfast vm list' and protect a VM with 'holdfast item enable VM'.",
			console.Wide("VM", func(s row) string { return s.VMName }), console.Wide("STATE", stateText),
			console.Col("HEALTH", func(s row) string { return s.Health }), console.Col("RPO LAG", lagText),
			console.Col("BACKLOG", func(s row) string { return console.Bytes(s.Replication.BacklogBytes) }),
			console.Col("POINTS", func(s row) string { return fmt.Sprint(s.Points) }), console.Col("RUNS AT", func(s row) string { return s.ActiveLocation }))
	})}
}

func lagText(s armwire.ItemSummary) string {
	if s.Replication.RPOLagSeconds == nil {
		return "-"
	}
	return console.Short(console.Seconds(*s.Replication.RPOLagSeconds))
}

// stateText is the state, with its progress while there is some.
func stateText(s armwire.ItemSummary) string {
	text := s.ProtectionState
	if p := s.Replication.Phase; p == "initialReplication" || p == "resync" {
		text += fmt.Sprintf(" %.0f%%", s.Replication.ProgressPercent)
		if eta := s.Replication.ETASeconds; eta > 0 {
			text += ", " + console.Short(console.Seconds(eta)) + " left"
		}
	}
	return text
}

func (a *app) itemShowCommand() *cobra.Command {
	return &cobra.Command{Use: "show ITEM", Short: "Show a protected VM", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		return a.showItem(ctx, c, args[0])
	})}
}

func (a *app) itemEnableCommand() *cobra.Command {
	var site, policy string
	var until bool
	var d armwire.EnableDetails
	var wait waitFlag
	c := &cobra.Command{
		Use: "enable VM", Short: "Protect a VM", Args: cobra.ExactArgs(1),
		Long: "Protect a VM, by its name or id. The job that is followed ends when replication has begun; the initial\n" +
			"replication goes on then. --until-protected follows that too, until the first recovery point exists.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			all, err := vms(ctx, c, site)
			if err != nil {
				return err
			}
			vm, err := find(all, "VM", args[0], "holdfast vm list", func(f foundVM) bool {
				return strings.EqualFold(f.vm.Name, args[0]) || f.vm.Properties.FriendlyName == args[0]
			})
			if err != nil {
				return err
			}
			if policy == "" {
				if policy, err = onlyPolicy(ctx, c, vm.site); err != nil {
					return err
				}
			}
			op, err := c.Items().Enable(ctx, vm.container, vm.vm, policy, d)
			if err != nil {
				return err
			}
			if !until {
				if err = a.finish(ctx, c, op, wait); err == nil && !bool(wait) {
					a.Say("The initial replication goes on; see 'holdfast item show %s'.", args[0])
				}
				return err
			}
			if err := op.Wait(ctx, nil, a.progress().update); err != nil {
				return goesOn(ctx, op.JobID, err)
			}
			return a.untilProtected(ctx, c, vm.container+"/replicationProtectedItems/"+vm.vm.Name)
		}),
	}
	f := c.Flags()
	f.StringVar(&site, "site", "", "site of the VM, if its name is not unique")
	f.StringVar(&policy, "policy", "", "replication policy (default: the one that the site is mapped with)")
	f.StringSliceVar(&d.DisksToInclude, "disk", nil, "only these disks (default: all)")
	f.StringVar(&d.TargetAzureVMName, "recovery-name", "", "name of the VM at the recovery site")
	f.StringVar(&d.TargetAzureNetworkID, "network", "", "network of the recovery site for failovers")
	f.StringVar(&d.TestNetwork, "test-network", "", "network of the recovery site for tests")
	f.StringVar(&d.Seed, "seed", "", "machine id that 'holdfast store seed' printed: begin with it and send what differs")
	f.StringVar(&d.TargetVMSize, "size", "", "Azure: size of the recovery VM (default: the smallest that fits; see 'holdfast item sizes')")
	f.StringVar(&d.DiskType, "disk-type", "", "Azure: type of its disks, such as StandardSSD_LRS")
	f.StringVar(&d.TargetAvailabilityZone, "zone", "", "Azure: availability zone")
	f.BoolVar(&d.WarmReplica, "warm", false, "Azure: keep the disks ready in page blobs; see 'holdfast item warm'")
	f.BoolVar(&until, "until-protected", false, "follow the initial replication to its end")
	return wait.add(c)
}

// onlyPolicy is the policy of a site's only mapping.
func onlyPolicy(ctx context.Context, c *armclient.Client, site string) (string, error) {
	all, err := c.Mappings(ctx)
	if err != nil {
		return "", err
	}
	names := map[string]bool{}
	policy := ""
	for _, m := range all {
		if strings.EqualFold(m.Properties.SourceFabricFriendlyName, site) {
			policy = m.Properties.PolicyFriendlyName
			names[policy] = true
		}
	}
	switch len(names) {
	case 0:
		return "", dr.Errorf(dr.KindPrecondition, "holdfast.item", "site %s is not mapped to a recovery site", site).WithHint("Run 'holdfast mapping create --site %s …' first.", site)
	case 1:
		return policy, nil
	}
	return "", console.Usage("site %s is mapped with several policies", site).WithHint("Choose one with --policy; see 'holdfast mapping list'.")
}

// untilProtected follows the jobs of an item until it has a recovery point.
func (a *app) untilProtected(ctx context.Context, c *armclient.Client, id string) error {
	for followed := ""; ; {
		it, err := c.Items().Get(ctx, id)
		if err != nil && dr.KindOf(err) != dr.KindUnavailable {
			return err
		}
		if err == nil {
			switch it.Properties.ProtectionState {
			case "Protected":
				s, err := c.Items().Summary(ctx, it.Properties.ItemID)
				if err != nil {
					return err
				}
				return a.Describe(s, console.F("vm", s.VMName), console.F("state", s.ProtectionState), console.F("points", fmt.Sprint(s.Points)), console.F("rpo lag", lagText(s)))
			case "EnablingFailed":
				return dr.Errorf(dr.KindPrecondition, "holdfast.item", "protection of %s could not be enabled", it.Properties.FriendlyName).WithHint("See 'holdfast job list --item %s'.", it.Properties.ItemID)
			}
			if job := it.Properties.CurrentScenario.JobID; job != "" && job != followed {
				followed = job[strings.LastIndexByte(job, '/')+1:]
				if _, err := a.watch(ctx, c, followed); err != nil {
					return err
				}
				followed = job
				continue
			}
		}
		select {
		case <-ctx.Done():
			return dr.Errorf(dr.KindCanceled, "holdfast.item", "no longer waiting; replication goes on")
		case <-time.After(cmp.Or(a.Poll, time.Second)):
		}
	}
}

func (a *app) itemDisableCommand() *cobra.Command {
	var purge bool
	var wait waitFlag
	c := &cobra.Command{Use: "disable ITEM", Short: "Stop protecting a VM", Args: cobra.ExactArgs(1),
		Long: "Stop protecting a VM. Its replica stays in the store and can be read with 'holdfast store', but the\n" +
			"vault no longer offers its recovery points.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if err := a.Confirm("%s will no longer be protected; its %d recovery points leave the vault.", s.VMName, s.Points); err != nil {
				return err
			}
			op, err := c.Remove(ctx, s.ResourceID, purge)
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, wait)
		})}
	c.Flags().BoolVar(&purge, "purge", false, "also if the host can't be reached")
	return a.ConfirmFlag(wait.add(c))
}

func (a *app) itemTestCommand() *cobra.Command {
	var point, network string
	var off bool
	var wait waitFlag
	c := &cobra.Command{Use: "test-failover ITEM", Short: "Prove that a VM comes up, without touching the original", Args: cobra.ExactArgs(1),
		Long: "Bring a copy of the VM up at the recovery site on an isolated network and see that it boots. The\n" +
			"original and its replication are not touched. End it with 'holdfast item cleanup'.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			if off && network != "" {
				return console.Usage("--network and --disconnected exclude each other")
			}
			s, id, err := itemPoint(ctx, c, args[0], point)
			if err != nil {
				return err
			}
			op, err := c.Items().TestFailover(ctx, s.ResourceID, id, network, off)
			if err != nil {
				return err
			}
			if err := a.finish(ctx, c, op, wait); err != nil {
				return err
			}
			a.Say("When the test is done: holdfast item cleanup %s", args[0])
			return nil
		})}
	c.Flags().StringVar(&point, "point", "", "recovery point (default: the latest)")
	c.Flags().StringVar(&network, "network", "", "network of the recovery site (default: an isolated one)")
	c.Flags().BoolVar(&off, "disconnected", false, "no network at all")
	return wait.add(c)
}

func (a *app) itemFailoverCommand() *cobra.Command {
	var planned, unplanned, source bool
	var point string
	var wait waitFlag
	c := &cobra.Command{Use: "failover ITEM --planned|--unplanned", Short: "Run a VM at the recovery site", Args: cobra.ExactArgs(1),
		Long: "Fail a VM over.\n\n" +
			"--planned shuts the source down, sends its last changes and starts the VM: nothing is lost.\n" +
			"--unplanned starts the VM from a recovery point, for when the source is lost.\n\n" +
			"Then commit it, change the recovery point, or cancel it.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			if planned == unplanned {
				return console.Usage("give one of --planned and --unplanned")
			}
			if planned && (point != "" || source) {
				return console.Usage("a planned failover always uses the source's last state").WithHint("Leave --point and --source-action away.")
			}
			s, id, err := itemPoint(ctx, c, args[0], point)
			if err != nil {
				return err
			}
			question := "%s will be started at the recovery site; what was written since the recovery point is lost."
			if planned {
				question = "%s will be shut down and started at the recovery site."
			}
			if err := a.Confirm(question, s.VMName); err != nil {
				return err
			}
			var op *armclient.Operation
			if planned {
				op, err = c.Items().PlannedFailover(ctx, s.ResourceID)
			} else {
				op, err = c.Items().UnplannedFailover(ctx, s.ResourceID, id, source)
			}
			if err != nil {
				return err
			}
			if err := a.finish(ctx, c, op, wait); err != nil {
				return err
			}
			a.Say("Next: holdfast item commit %[1]s, or change-point, or cancel", args[0])
			return nil
		})}
	f := c.Flags()
	f.BoolVar(&planned, "planned", false, "shut the source down first, lose nothing")
	f.BoolVar(&unplanned, "unplanned", false, "the source is lost")
	f.BoolVar(&source, "source-action", false, "unplanned: shut the source down and send its last changes if it can be reached")
	f.StringVar(&point, "point", "", "unplanned: recovery point (default: the latest)")
	return a.ConfirmFlag(wait.add(c))
}

func (a *app) itemChangeCommand() *cobra.Command {
	var point string
	var wait waitFlag
	c := &cobra.Command{Use: "change-point ITEM --point POINT", Short: "Start a failed-over VM again from another recovery point", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, id, err := itemPoint(ctx, c, args[0], point)
			if err != nil {
				return err
			}
			if err := a.Confirm("%s: the VM that runs at the recovery site will be replaced; what it has written is lost.", s.VMName); err != nil {
				return err
			}
			op, err := c.Items().ChangePoint(ctx, s.ResourceID, id)
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, wait)
		})}
	c.Flags().StringVar(&point, "point", "", "recovery point, or latest")
	console.Required(c, "point")
	return a.ConfirmFlag(wait.add(c))
}

// itemPoint finds an item and the id of one of its recovery points; "" is the latest.
func itemPoint(ctx context.Context, c *armclient.Client, item, point string) (armwire.ItemSummary, string, error) {
	s, err := c.Items().Summary(ctx, item)
	if err != nil || point == "" || strings.EqualFold(point, "latest") {
		return s, "", err
	}
	all, err := c.Items().Points(ctx, s.ResourceID)
	if err != nil {
		return s, "", err
	}
	p, err := find(all, "recovery point", point, "holdfast point list "+item, func(p armclient.RecoveryPoint) bool { return p.Name == point || p.ID == point })
	return s, p.ID, err
}

// PointView is a recovery point as --output json shows it.
type PointView struct {
	Name        string     `json:"name"`
	Time        *time.Time `json:"time"`
	Consistency string     `json:"consistency"` // crash, fs or app
	Resync      bool       `json:"resync"`
	DirtyBytes  int64      `json:"dirtyBytes"`
	StoredBytes int64      `json:"storedBytes"`
	Label       string     `json:"label,omitempty"`   // what people call it
	Held        bool       `json:"held,omitempty"`    // kept whatever its age
	Keep        string     `json:"keptBy,omitempty"`  // why it is kept
	Note        string     `json:"note,omitempty"`    // e.g. why it is only crash-consistent
	Suspect     bool       `json:"suspect,omitempty"` // looks encrypted
}

func (a *app) pointCommand() *cobra.Command {
	c := &cobra.Command{Use: "point", Short: "Recovery points"}
	ls := &cobra.Command{Use: "list ITEM", Short: "List the recovery points of a protected VM, newest first", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		s, err := c.Items().Summary(ctx, args[0])
		if err != nil {
			return err
		}
		all, err := c.Items().Points(ctx, s.ResourceID)
		if err != nil {
			return err
		}
		var views []PointView
		for _, p := range all {
			views = append(views, pointView(p))
		}
		return console.List(a.Console, views, "There are no recovery points yet.", PointColumns(a.Console)...)
	})}
	name := a.pointNameCommand()
	ls.ValidArgsFunction, name.ValidArgsFunction = a.completeItems(), a.completeItems()
	c.AddCommand(ls, name)
	return c
}

// PointColumns are the columns of a table of points.
func PointColumns(c *console.Console) []console.Column[PointView] {
	return []console.Column[PointView]{
		console.Col("POINT", func(p PointView) string { return p.Name }), console.Wide("TIME", func(p PointView) string { return c.When(p.Time) + pointMarks(p) }),
		console.Col("CONSISTENT", func(p PointView) string { return p.Consistency }), console.Col("STORED", func(p PointView) string { return console.Bytes(p.StoredBytes) }),
	}
}

// pointMarks says what is special about a point.
func pointMarks(p PointView) string {
	var marks []string
	if p.Label != "" {
		marks = append(marks, fmt.Sprintf("%q", p.Label))
	}
	if p.Held {
		marks = append(marks, "held")
	}
	if p.Suspect {
		marks = append(marks, "LOOKS ENCRYPTED")
	}
	if len(marks) == 0 {
		return ""
	}
	return " " + strings.Join(marks, ", ")
}
