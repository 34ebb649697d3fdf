package replica

import (
	"context"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/store"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// Seed is a machine of the store whose only content was brought in offline, to
// begin the protection of a VM with.
type Seed struct {
	Machine dr.MachineID
	VMName  string // as it was read when the seed was made
	Disks   []dr.Disk
	Bytes   int64 // stored
}

// seedTip reads the newest element of a machine's history if that is a seed.
func (r *Replicas) seedTip(ctx context.Context, m dr.MachineID) (store.CutInfo, bool, error) {
	h, err := r.store.Names(ctx, m)
	if err != nil || len(h.Path) == 0 {
		return store.CutInfo{}, false, err
	}
	c, err := r.store.ReadElement(ctx, m, h.Path[len(h.Path)-1])
	return c, err == nil && c.Commit.Seed, err
}

// seedOf is the seed that a machine's first writer goes on from; nil if it has none, or has been written to.
func (r *Replicas) seedOf(ctx context.Context, m dr.MachineID) (*cut.Ref, error) {
	c, ok, err := r.seedTip(ctx, m)
	if err != nil || !ok {
		return nil, err
	}
	return &c.Ref, nil
}

// Seeds lists the machines of the store that hold a seed and are not protected.
// Machines that can't be read are left out.
func (r *Replicas) Seeds(ctx context.Context) ([]Seed, error) {
	items, err := vaultdb.Items(ctx, r.st.Q(), "")
	if err != nil {
		return nil, state.Outward(err)
	}
	used := map[dr.MachineID]bool{}
	for _, it := range items {
		used[it.Machine] = true
	}
	machines, err := r.store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	var out []Seed
	for _, m := range machines {
		if used[m] {
			continue
		}
		c, ok, err := r.seedTip(ctx, m)
		if err != nil && ctx.Err() != nil {
			return nil, err
		}
		if ok {
			out = append(out, toSeed(m, c))
		}
	}
	return out, nil
}

func toSeed(m dr.MachineID, c store.CutInfo) Seed {
	s := Seed{Machine: m, VMName: c.Commit.VM.Name, Bytes: c.Size + c.Commit.Stats.StoredBytes}
	for _, d := range c.Commit.Disks {
		s.Disks = append(s.Disks, dr.Disk{ID: d.ID, Size: d.Size})
	}
	return s
}

// CheckSeed refuses a seed that does not fit the disks that shall be
// replicated: dr.CodeSeedMismatch names the disk and both sizes.
func (r *Replicas) CheckSeed(ctx context.Context, m dr.MachineID, vm dr.VM, disks []string) error {
	const op = "vault.Enable"
	c, ok, err := r.seedTip(ctx, m)
	if err != nil {
		return err
	}
	if !ok {
		return dr.New(dr.KindInvalid, dr.CodeSeedMismatch, op, "machine %s of the store holds no seed that protection could begin with", m).
			WithHint("make one with 'holdfast store seed', or enable protection without a seed")
	}
	at := map[string]int64{}
	for _, d := range vm.Disks {
		at[d.ID] = d.Size
	}
	for _, d := range c.Commit.Disks {
		if size, ok := at[d.ID]; !ok || size < d.Size {
			return dr.New(dr.KindInvalid, dr.CodeSeedMismatch, op, "disk %q has %d bytes in the seed %s and %d bytes at %s", d.ID, d.Size, m, size, vm.Name)
		}
		delete(at, d.ID)
	}
	for _, id := range disks {
		if size, missing := at[id]; missing {
			r.st.Log.Info("disk is not in the seed and is sent whole", "vm", vm.Name, "machine", m, "disk", id, "bytes", size)
		}
	}
	return nil
}
