package vault

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// ComputeSizes lists the sizes of VM that the cloud of an item's recovery site
// offers, the smallest first; Problem says why the item can't have one. A site of
// hosts offers none.
func (v items) ComputeSizes(ctx context.Context, id dr.ItemID) ([]dr.ComputeSize, error) {
	it, err := vaultdb.ItemByID(ctx, v.st.Q(), id)
	if err != nil {
		return nil, state.Outward(err)
	}
	at, err := site.RecoveryFabric(ctx, v.st.Q(), it.Fabric, it.VM, it.Policy, it.SourceAgent)
	if err != nil {
		return nil, state.Outward(err)
	}
	agents, err := vaultdb.Providers(ctx, v.st.Q(), at)
	if err != nil {
		return nil, state.Outward(err)
	}
	vm, err := vaultdb.VM(ctx, v.st.Q(), it.Fabric, it.VM)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return nil, state.Outward(err)
	}
	vm.CPUs, vm.MemoryMB = cmp.Or(it.Settings.CPUs, vm.CPUs), cmp.Or(it.Settings.MemoryMB, vm.MemoryMB)
	var out []dr.ComputeSize
	seen := map[string]bool{}
	for _, p := range agents {
		sizes, err := vaultdb.Sizes(ctx, v.st.Q(), p.ID)
		if err != nil {
			return nil, state.Outward(err)
		}
		for _, s := range sizes {
			if !seen[s.Name] {
				seen[s.Name] = true
				s.Problem = cmp.Or(s.Problem, misfit(s, vm, len(it.Disks)))
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b dr.ComputeSize) int {
		return cmp.Or(cmp.Compare(a.CPUs, b.CPUs), cmp.Compare(a.MemoryMB, b.MemoryMB), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// misfit says why a VM can't have a size; "" = it can.
func misfit(s dr.ComputeSize, vm dr.VM, disks int) string {
	switch {
	case s.CPUs < vm.CPUs:
		return fmt.Sprintf("it has %d processors, the VM has %d", s.CPUs, vm.CPUs)
	case s.MemoryMB < vm.MemoryMB:
		return fmt.Sprintf("it has %d MiB of memory, the VM has %d", s.MemoryMB, vm.MemoryMB)
	case s.DataDisks < disks-1:
		return fmt.Sprintf("it takes %d data disks, the VM has %d", s.DataDisks, disks-1)
	case s.NICs < len(vm.NICs):
		return fmt.Sprintf("it takes %d network adapters, the VM has %d", s.NICs, len(vm.NICs))
	case vm.Generation != 0 && len(s.Generations) > 0 && !slices.Contains(s.Generations, vm.Generation):
		return fmt.Sprintf("it does not run VMs of generation %d", vm.Generation)
	}
	return ""
}
