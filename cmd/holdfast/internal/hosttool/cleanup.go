package hosttool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/internal/agent"
	"holdfast/internal/dr"
)

// cleanupCommand removes checkpoints and tracking that Holdfast made and that nobody uses.
func (a *app) cleanupCommand() *cobra.Command {
	var host hosting.Flags
	var state string
	var names []string
	var all bool
	c := &cobra.Command{
		Use: "cleanup --vm NAME | --all", Short: "Remove checkpoints and tracking that replication left on this host", Args: cobra.NoArgs,
		Long: "Remove recovery checkpoints, reference points or bitmaps that Holdfast made and that nobody uses any more, for\n" +
			"example of a host that was removed from the vault while it was off. VMs that this host's agent\n" +
			"replicates are left alone, and so is everything that others made.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if all == (len(names) > 0) {
				return console.Usage("name either VMs with --vm, or --all")
			}
			ctx, cancel := context.WithTimeout(c.Context(), 30*time.Minute)
			defer cancel()
			replicated, err := agent.ReplicatedVMs(state)
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(state + ".vms")
			if host.Dir != "" {
				dir, err = filepath.Abs(host.Dir)
			}
			if err != nil {
				return console.Usage("--dir: %v", err)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return console.ClassifyAs(err, "make the product directory")
			}
			h, err := host.Open(ctx, dir, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			defer console.Closing(&err, h.Close)
			vms, err := h.Inventory(ctx)
			if err != nil {
				return err
			}
			chosen, err := choose(vms, names, all, replicated)
			if err != nil {
				return err
			}
			if len(chosen) == 0 {
				a.Say("There is no VM to clean up.")
				return nil
			}
			if err := a.Confirm("What Holdfast left on %d VMs will be removed.", len(chosen)); err != nil {
				return err
			}
			var failures []error
			for _, vm := range chosen {
				if err := h.Forget(ctx, vm.ID, nil); err != nil {
					failures = append(failures, fmt.Errorf("VM %s: %w", vm.Name, err))
					continue
				}
				a.Say("%s: clean", vm.Name)
			}
			return errors.Join(failures...)
		},
	}
	host.Add(c)
	c.Flags().StringVar(&state, "state", "/var/lib/holdfast/agent", "state directory of this host's agent")
	c.Flags().StringSliceVar(&names, "vm", nil, "VMs to clean up, by name or id")
	c.Flags().BoolVar(&all, "all", false, "all VMs that the agent does not replicate")
	return a.ConfirmFlag(c)
}

func choose(vms []dr.VM, names []string, all bool, replicated map[dr.VMID]bool) ([]dr.VM, error) {
	const op = "agent.cleanup"
	var out []dr.VM
	if all {
		for _, vm := range vms {
			if !replicated[vm.ID] {
				out = append(out, vm)
			}
		}
		return out, nil
	}
	for _, n := range names {
		i := slices.IndexFunc(vms, func(v dr.VM) bool { return v.Name == n || strings.EqualFold(string(v.ID), n) })
		if i < 0 {
			return nil, dr.New(dr.KindNotFound, dr.CodeVMNotFound, op, "the host has no VM %q", n)
		}
		if replicated[vms[i].ID] {
			return nil, dr.Errorf(dr.KindConflict, op, "VM %s is replicated by this host's agent: its tracking is in use", n).
				WithHint("Disable protection of the VM first; the agent then cleans up by itself.")
		}
		out = append(out, vms[i])
	}
	return out, nil
}
