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
	"holdfast/internal/agent/state"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// cleanupCommand removes checkpoints and tracking that Holdfast made and that nobody uses.
func (a *app) cleanupCommand() *cobra.Command {
	var host hosting.Flags
	var stateDir string
	var names []string
	var all bool
	c := &cobra.Command{
		Use: "cleanup --vm NAME | --all", Short: "Remove checkpoints and tracking that replication left on this host", Args: cobra.NoArgs,
		Long: "Remove recovery checkpoints, reference points or bitmaps that Holdfast made and that nobody uses any more, for\n" +
			"example of a host that was removed from the vault while it was off, or of a doctor that was killed. VMs that this host's\n" +
			"agent replicates are left alone, and so is everything that others made. The agent must be stopped meanwhile.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if all == (len(names) > 0) {
				return console.Usage("name either VMs with --vm, or --all")
			}
			ctx, cancel := context.WithTimeout(c.Context(), 30*time.Minute)
			defer cancel()
			if _, err := os.Stat(stateDir); err == nil { // no agent may begin to work meanwhile
				var unlock func() error
				if unlock, err = state.Lock(stateDir); err != nil {
					return err
				}
				defer console.Closing(&err, unlock)
			}
			k := cleaner{app: a, host: host, names: names, all: all}
			if k.replicated, err = agent.ReplicatedVMs(stateDir); err != nil {
				return err
			}
			dir, err := hosting.ProductDir(stateDir, host.Dir)
			if err != nil {
				return err
			}
			dirs := []string{dir}
			for _, w := range hosting.Workshops {
				if _, err := os.Stat(filepath.Join(dir, w)); err == nil {
					dirs = append(dirs, filepath.Join(dir, w))
				}
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return console.ClassifyAs(err, "make the product directory")
			}
			for _, d := range dirs {
				if err := k.clean(ctx, d); err != nil {
					return err
				}
			}
			return k.report()
		},
	}
	host.Add(c)
	c.Flags().StringVar(&stateDir, "state", hosting.DefaultState(), "state directory of this host's agent")
	c.Flags().StringSliceVar(&names, "vm", nil, "VMs to clean up, by name or id")
	c.Flags().BoolVar(&all, "all", false, "all VMs that the agent does not replicate")
	return a.ConfirmFlag(c)
}

// cleaner removes what was left on chosen VMs.
type cleaner struct {
	app        *app
	host       hosting.Flags
	names      []string
	all        bool
	replicated map[dr.VMID]bool

	chosen []dr.VM // nil before the first directory
	failed map[dr.VMID]error
}

// clean removes what the process that worked in a product directory has left. The first call asks.
func (k *cleaner) clean(ctx context.Context, dir string) (err error) {
	h, err := k.host.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer console.Closing(&err, h.Close)
	if k.chosen == nil {
		vms, err := h.Inventory(ctx)
		if err != nil {
			return err
		}
		if k.chosen, err = choose(vms, k.names, k.all, k.replicated); err != nil {
			return err
		}
		if len(k.chosen) > 0 {
			if err := k.app.Confirm("What Holdfast left on %d VMs will be removed.", len(k.chosen)); err != nil {
				return err
			}
		}
		k.failed = map[dr.VMID]error{}
	}
	for _, vm := range k.chosen {
		if err := clean(ctx, h, vm.ID); err != nil {
			k.failed[vm.ID] = errors.Join(k.failed[vm.ID], fmt.Errorf("VM %s: %w", vm.Name, err))
		}
	}
	return nil
}

// cleaned is how it went with a VM.
type cleaned struct {
	VM      string `json:"vm"`
	ID      string `json:"id"`
	Clean   bool   `json:"clean"`
	Problem string `json:"problem,omitempty"`
}

// report says how it went.
func (k *cleaner) report() error {
	var list []cleaned
	var failures []error
	for _, vm := range k.chosen {
		c := cleaned{VM: vm.Name, ID: string(vm.ID), Clean: true}
		if err := k.failed[vm.ID]; err != nil {
			c.Clean, c.Problem = false, err.Error()
			failures = append(failures, err)
		}
		list = append(list, c)
	}
	err := console.List(k.app.Console, list, "There is no VM to clean up.", console.Wide("VM", func(c cleaned) string { return c.VM }),
		console.Wide("RESULT", func(c cleaned) string {
			if c.Clean {
				return "clean"
			}
			return c.Problem
		}))
	return errors.Join(append(failures, err)...)
}

// choose finds the VMs to be cleaned; the result is never nil without an error.
func choose(vms []dr.VM, names []string, all bool, replicated map[dr.VMID]bool) ([]dr.VM, error) {
	const op = "agent.cleanup"
	out := []dr.VM{}
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

// clean removes what Holdfast left on a VM; where the adapter can tell whose it
// is, also what agents made whose state directories are lost.
func clean(ctx context.Context, h hypervisor.Host, vm dr.VMID) error {
	if p, ok := h.(interface {
		Purge(ctx context.Context, vm dr.VMID) error
	}); ok {
		return p.Purge(ctx, vm)
	}
	return h.Forget(ctx, vm, nil)
}
