// Package azuretool holds the commands of 'holdfast azure', for whoever stands
// before a subscription: doctor (can the recovery site work?), sizes (which VM
// sizes are there, and which would be taken?) and cleanup (remove what doctors and
// tests left behind).
//
// They need no vault. Doctor makes and removes one small blob and one small disk,
// and nothing at all with --read-only; sizes only reads; cleanup asks, and touches
// nothing without Holdfast's owner tag.
package azuretool

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/arm/doctor"
)

type app struct {
	*console.Console
	options arm.Options // tests make waits short
	config  string
}

// Command is 'holdfast azure'.
func Command(c *console.Console) *cobra.Command { return command(&app{Console: c}) }

func command(a *app) *cobra.Command {
	root := &cobra.Command{Use: "azure", Short: "Check and clean up an Azure recovery site",
		Long: "Look after the subscription that an Azure recovery site works in. The configuration file is the one\n" +
			"of the site's agent; docs/azure.md describes it."}
	root.PersistentFlags().StringVar(&a.config, "config", "", "configuration file of the Azure site")
	root.AddCommand(a.doctorCommand(), a.sizesCommand(), a.cleanupCommand())
	for _, c := range root.Commands() {
		console.Required(c, "config")
	}
	return root
}

// Limits of the commands.
const (
	doctorTime  = 30 * time.Minute
	sizesTime   = 5 * time.Minute
	cleanupTime = time.Hour
)

func (a *app) opts() arm.Options {
	o := a.options
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// open reads the configuration and signs in.
func (a *app) open(ctx context.Context) (*arm.Session, error) {
	cfg, err := arm.Load(a.config)
	if err != nil {
		return nil, err
	}
	return arm.Open(ctx, cfg, a.opts())
}

func (a *app) doctorCommand() *cobra.Command {
	readOnly := false
	c := &cobra.Command{
		Use: "doctor --config FILE", Short: "Find out what keeps an Azure recovery site from working", Args: cobra.NoArgs,
		Long: "Check step by step: the configuration, the way to each address, the clock, the sign-in, subscription, resource\n" +
			"providers, resource group, permissions, locks, network, VM sizes and quotas. Then write, read and delete one blob\n" +
			"(if a storage account is configured) and one managed disk of 20 MiB, and look that nothing is left. A step that fails\n" +
			"stops only those that need it. Do this once before the first test failover, and whenever Azure refuses something.",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), doctorTime)
			defer cancel()
			return a.doctor(ctx, readOnly)
		},
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "make nothing in Azure: leave out the round trips with a blob and a disk")
	return c
}

func (a *app) doctor(ctx context.Context, readOnly bool) error {
	var list []doctor.Finding
	cfg, err := arm.Load(a.config)
	if err != nil {
		list = []doctor.Finding{{Check: doctor.CheckConfiguration, Status: doctor.StatusFailed, Detail: err.Error(), Remedy: dr.HintOf(err), Code: dr.CodeOf(err)}}
	} else {
		list = doctor.Run(ctx, cfg, doctor.Options{Options: a.opts(), ReadOnly: readOnly})
	}
	perr := console.List(a.Console, list, "", console.Col("CHECK", func(f doctor.Finding) string { return f.Check }), console.Col("RESULT", func(f doctor.Finding) string { return f.Status }),
		console.Wide("DETAIL", func(f doctor.Finding) string { return f.Detail }), console.Wide("WHAT TO DO", func(f doctor.Finding) string { return console.Dash(f.Remedy) }))
	if perr != nil {
		return perr
	}
	if err := ctx.Err(); err != nil {
		return dr.Errorf(dr.KindOf(err), "azure.doctor", "the doctor was interrupted")
	}
	bad := 0
	for _, f := range list {
		if f.Status == doctor.StatusFailed {
			bad++
		}
	}
	if bad > 0 {
		return dr.Errorf(dr.KindPrecondition, "azure.doctor", "%d of %d checks failed", bad, len(list))
	}
	return nil
}

// row is one line of 'holdfast azure sizes'.
type row struct {
	arm.Size
	Fits   bool   `json:"fits"`
	Chosen bool   `json:"chosen"` // it would be taken
	Reason string `json:"reason,omitempty"`
}

func (a *app) sizesCommand() *cobra.Command {
	var need arm.Need
	var memory console.Size
	all := false
	c := &cobra.Command{
		Use: "sizes --config FILE", Short: "List the VM sizes of the region, and which one would be taken", Args: cobra.NoArgs,
		Long: "List the VM sizes that fit what the flags ask for. The one that Holdfast would take by itself is marked. With --all, those\n" +
			"that do not fit are listed too, each with the reason.",
		RunE: func(c *cobra.Command, _ []string) error {
			if need.VCPUs < 0 || need.Disks < 0 || need.NICs < 0 || need.Generation < 0 || need.Generation > 2 {
				return console.Usage("--cpus, --disks and --nics are counts, and --generation is 1 or 2")
			}
			ctx, cancel := context.WithTimeout(c.Context(), sizesTime)
			defer cancel()
			need.MemoryMB = (int64(memory) + 1<<20 - 1) >> 20
			return a.sizes(ctx, need, all)
		},
	}
	c.Flags().IntVar(&need.VCPUs, "cpus", 0, "virtual processors at least")
	c.Flags().Var(&memory, "memory", "memory at least, e.g. 8GiB")
	c.Flags().IntVar(&need.Disks, "disks", 0, "data disks at least, without the one that it boots from")
	c.Flags().IntVar(&need.NICs, "nics", 0, "network adapters at least")
	c.Flags().IntVar(&need.Generation, "generation", 0, "generation of the VM, 1 or 2")
	c.Flags().BoolVar(&need.Premium, "premium", false, "must take premium disks")
	c.Flags().StringVar(&need.Zone, "zone", "", "must be in this availability zone")
	c.Flags().BoolVar(&all, "all", false, "list those that do not fit, too")
	return c
}

func (a *app) sizes(ctx context.Context, need arm.Need, all bool) (err error) {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer console.Closing(&err, s.Close)
	sizes, err := s.Sizes(ctx)
	if err != nil {
		return err
	}
	best, _, ferr := arm.Fit(sizes, need)
	rows := []row{}
	for _, z := range sizes {
		r := row{Size: z, Reason: z.Unfit(need), Chosen: ferr == nil && z.Name == best.Name}
		r.Fits = r.Reason == ""
		if r.Fits || all {
			rows = append(rows, r)
		}
	}
	err = console.List(a.Console, rows, "No size of the region fits.",
		console.Col("SIZE", func(r row) string { return r.Name }),
		console.Col("CPUS", func(r row) string { return strconv.Itoa(r.VCPUs) }),
		console.Col("MEMORY", func(r row) string { return console.Bytes(r.MemoryMB << 20) }),
		console.Col("DISKS", func(r row) string { return strconv.Itoa(r.MaxDisks) }),
		console.Col("NICS", func(r row) string { return strconv.Itoa(r.MaxNICs) }),
		console.Col("GEN", func(r row) string { return strings.Trim(fmt.Sprint(r.Generation), "[]") }),
		console.Col("ZONES", func(r row) string { return console.Dash(strings.Join(r.Zones, " ")) }),
		console.Wide("FITS", func(r row) string {
			switch {
			case r.Chosen:
				return "would be taken"
			case r.Fits:
				return "yes"
			}
			return r.Reason
		}))
	if err != nil {
		return err
	}
	return ferr
}
