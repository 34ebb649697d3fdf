// Package planning holds the deployment planner's commands: they measure a host
// and compute what protecting it takes, without a vault.
//
// It promises that nothing is protected, that a profile can be interrupted at
// any time and continued, and that VMs which an agent of this host replicates are left alone.
package planning

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/internal/agent"
	"holdfast/internal/dr"
	"holdfast/internal/planner"
)

type app struct{ *console.Console }

// PlanCommand is 'holdfast plan'.
func PlanCommand(c *console.Console) *cobra.Command {
	a := &app{c}
	cmd := &cobra.Command{Use: "plan", Short: "Measure hosts and plan bandwidth, batches, space and cost"}
	cmd.AddCommand(a.profileCommand(), a.reportCommand())
	return cmd
}

func (a *app) profileCommand() *cobra.Command {
	var host hosting.Flags
	var out, state string
	var only []string
	var interval, length console.Duration
	var logs console.LogFlags
	c := &cobra.Command{
		Use: "profile --out FILE", Short: "Measure how much the VMs of this host change", Args: cobra.NoArgs,
		Long: "Measure how much the VMs of this host change, by making the checkpoints that replication would make, without\n" +
			"reading or sending anything. The file is appended to, so a profile can be interrupted and continued. Measure\n" +
			"for a week at least; 31 days are best. VMs that this host's agent replicates are left alone.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			log, err := logs.Open(a.Err)
			if err != nil {
				return err
			}
			path, err := filepath.Abs(out)
			if err != nil {
				return console.Usage("--out: %v", err)
			}
			skip, err := agent.ReplicatedVMs(state)
			if err != nil {
				return err
			}
			dir, err := hosting.Workshop(state, host.Dir, "plan")
			if err != nil {
				return err
			}
			h, err := host.Open(c.Context(), dir, log)
			if err != nil {
				return err
			}
			defer console.Closing(&err, h.Close)
			a.Say("Measuring every %s. Ctrl-C ends it and keeps what was measured.", console.Short(time.Duration(interval)))
			err = planner.Run(c.Context(), planner.Config{Source: h, Path: path, Interval: time.Duration(interval), Length: time.Duration(length), Only: only, Skip: skip, Log: log,
				Progress: func(p planner.Progress) {
					left := ""
					if length > 0 {
						left = ", " + console.Short(max(time.Duration(length)-p.Elapsed, 0)) + " left"
					}
					a.Say("%s: %d intervals, %d VMs measured, %d not; %s changed so far%s", console.Short(p.Elapsed), p.Intervals, p.VMs, p.Failed, console.Bytes(p.Changed), left)
				}})
			if err == nil {
				a.Say("The profile is in %s. Next:\n  holdfast plan report %s", out, out)
			}
			return err
		},
	}
	interval, length = console.Duration(5*time.Minute), 0
	host.Add(c)
	f := c.Flags()
	f.StringVar(&out, "out", "", "profile file; an existing one is continued")
	f.StringVar(&state, "state", hosting.DefaultState(), "state directory of this host's agent, if there is one")
	f.StringSliceVar(&only, "vm", nil, "only these VMs, by name or id")
	f.Var(&interval, "interval", "copy frequency to plan for, such as 30s or 5m")
	f.Var(&length, "for", "how long, such as 12h or 7d (default: until Ctrl-C)")
	logs.Add(c)
	console.Required(c, "out")
	return c
}

func (a *app) reportCommand() *cobra.Command {
	var rpo, batch, retention console.Duration = console.Duration(15 * time.Minute), console.Duration(12 * time.Hour), console.Duration(24 * time.Hour)
	var growth, ratio, gib, puts float64
	var bandwidth console.Size
	var format string
	c := &cobra.Command{
		Use: "report PROFILE...", Short: "Compute bandwidth, batches, space and cost from profiles", Args: cobra.MinimumNArgs(1),
		Long: "Compute from the profiles of one or more hosts: the bandwidth that holds a recovery point objective always and\n" +
			"90 % of the time, what less would do, batches of initial replication, space on the hosts' volumes, stored bytes and their cost.\n\n" +
			"Prices have no default: give your provider's.",
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case !slices.Contains([]string{"", "csv", "html", "json"}, format):
				return console.Usage("--format %q is none of csv, html and json", format)
			case growth < 0 || ratio <= 0 || gib < 0 || puts < 0:
				return console.Usage("--growth and prices are not negative, and --ratio is above 0")
			}
			var profiles []planner.Profile
			for _, path := range args {
				p, err := read(path)
				if err != nil {
					return err
				}
				profiles = append(profiles, p)
			}
			o := planner.Options{RPO: time.Duration(rpo), Growth: growth / 100, Ratio: ratio, Bandwidth: int64(bandwidth), Batch: time.Duration(batch),
				Retention: time.Duration(retention), PerGiBMonth: gib, Per10kPuts: puts}
			if growth == 0 {
				o.Growth = -1
			}
			plan, err := planner.Make(profiles, o)
			if err != nil {
				return err
			}
			switch {
			case format == "json" || format == "" && a.JSON:
				return plan.WriteJSON(a.Out)
			case format == "csv":
				return plan.WriteCSV(a.Out)
			case format == "html":
				return plan.WriteHTML(a.Out)
			}
			return plan.WriteText(a.Out)
		},
	}
	f := c.Flags()
	f.Var(&rpo, "rpo", "recovery point objective")
	f.Float64Var(&growth, "growth", 30, "how much more the VMs will change than measured, percent")
	f.Float64Var(&ratio, "ratio", 0.5, "bytes sent per byte changed, after compression")
	f.Var(&bandwidth, "bandwidth", "bandwidth there is, bytes a second such as 20M (default: what the plan recommends)")
	f.Var(&batch, "batch", "how long the initial replication of a batch may take")
	f.Var(&retention, "retention", "how long recovery points are kept")
	f.Float64Var(&gib, "price-gib-month", 0, "price of storing a GiB for a month")
	f.Float64Var(&puts, "price-10k-writes", 0, "price of 10,000 write operations")
	f.StringVar(&format, "format", "", "write the report as csv, html or json")
	return c
}

func read(path string) (p planner.Profile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return p, console.ClassifyAs(err, "read the profile")
	}
	defer console.Closing(&err, f.Close)
	if p, err = planner.Read(f); err != nil {
		return p, dr.Errorf(dr.KindOf(err), "plan.report", "%s: %w", path, err)
	}
	return p, nil
}
