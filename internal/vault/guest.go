package vault

import (
	"context"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck"
	"holdfast/internal/store"
	"holdfast/internal/vault/site"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// GuestCheck looks into the guest of a recovery point and says what would keep it from
// booting, or from being reached, at a target: azure, hyperv or kvm; "" = that of the item's
// recovery site. It reads some megabytes of the store, and no more than MaxRead of guestcheck.
func (v items) GuestCheck(ctx context.Context, id dr.ItemID, point, target string) (r guestcheck.Report, p dr.RecoveryPoint, err error) {
	it, err := vaultdb.ItemByID(ctx, v.st.Q(), id)
	if err != nil {
		return r, p, state.Outward(err)
	}
	if target == "" {
		if target, err = v.target(ctx, it); err != nil {
			return r, p, err
		}
	}
	found, err := v.Resolve(ctx, v.st.Q(), it, point)
	if err != nil {
		return r, p, state.Outward(err)
	}
	p = found.RecoveryPoint
	view, err := v.Replicas.Reader().OpenPoint(ctx, it.Machine, p.Gen, p.N)
	if err != nil {
		return r, p, err
	}
	defer view.Close() // it was only read
	in := guestcheck.Input{Target: target, Generation: view.VM().Generation, OSType: view.VM().OSType}
	for _, d := range view.Disks() {
		in.Disks = append(in.Disks, guestcheck.Source{ID: d.ID, Disk: pointDisk{view, d}})
	}
	r, err = guestcheck.Check(ctx, in)
	return r, p, err
}

// target is the kind of the item's recovery site in the words of package guestcheck.
func (v items) target(ctx context.Context, it vaultdb.Item) (string, error) {
	at, err := site.RecoveryFabric(ctx, v.st.Q(), it.Fabric, it.VM, it.Policy, it.SourceAgent)
	if err != nil {
		return "", state.Outward(err)
	}
	f, err := vaultdb.Fabric(ctx, v.st.Q(), at)
	if err != nil {
		return "", state.Outward(err)
	}
	switch f.Type {
	case dr.AzureSite:
		return "azure", nil
	case dr.KVMSite:
		return "kvm", nil
	}
	return "hyperv", nil
}

// pointDisk is a disk of a view for those who only read.
type pointDisk struct {
	view *store.View
	disk store.DiskInfo
}

func (d pointDisk) Size() int64 { return d.disk.Size }

func (d pointDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.view.ReadAt(ctx, d.disk.ID, p, off)
}
