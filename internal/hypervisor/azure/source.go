package azure

import (
	"context"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/booting"
	"holdfast/internal/hypervisor/azure/internal/site"
	"holdfast/internal/hypervisor/azure/internal/source"
	"holdfast/internal/pageblob"
)

// BeginCut freezes the disks of a VM in Azure by a VM restore point; see
// hypervisor.Source and package source. A cut is never better than crash-consistent.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	return h.cutter.BeginCut(ctx, req)
}

// Forget deletes restore points of Holdfast's; see hypervisor.Source. It also does so for a VM that was deleted.
func (h *Host) Forget(ctx context.Context, vm dr.VMID, keep []string) error {
	return h.cutter.Forget(ctx, vm, keep)
}

// Estimate says how much a cut since base would report as changed, by a restore point that
// exists only meanwhile; see hypervisor.Estimator.
func (h *Host) Estimate(ctx context.Context, vm dr.VMID, base string) (int64, error) {
	return h.cutter.Estimate(ctx, vm, base)
}

func (h *Host) sourceConfig() source.Config {
	return source.Config{
		Session: h.s, Log: h.cfg.Log, Owner: h.cfg.Owner,
		Pages:            pageblob.Config{Transport: h.cfg.Transport, Timeout: h.cfg.CallTimeout, BaseDelay: h.cfg.RetryDelay, MaxDelay: 100 * h.cfg.RetryDelay},
		OperationTimeout: h.cfg.OperationTimeout, UndoTimeout: h.cfg.UndoTimeout, Access: h.cfg.Access, Parallel: h.cfg.Parallel, Now: h.cfg.Now,
		Find: h.sourceMachine,
		Groups: func(ctx context.Context) ([]string, error) {
			places, err := h.az.AllPlaces(ctx, arm.TagPurpose, arm.PurposeRecovery, arm.PurposeTest, arm.PurposeSource)
			if err != nil {
				return nil, h.az.Say("Forget", "look for restore points", err)
			}
			var out []string
			for _, p := range places {
				out = append(out, p.Group)
			}
			return out, nil
		},
	}
}

const onHost = "it is an ephemeral OS disk, which restore points leave out"

// sourceMachine describes a VM as far as cuts need it.
func (h *Host) sourceMachine(ctx context.Context, op string, id dr.VMID) (source.Machine, error) {
	m, code, err := h.powerOf(ctx, op, id)
	if err != nil {
		return source.Machine{}, err
	}
	out := source.Machine{ID: m.Key(), Name: m.Name, Group: m.Place.Group, Resource: m.Resource(), Running: on(code)}
	ephemeral, cached := hostCaches(m)
	for _, r := range diskRefs(m) {
		d := source.Disk{ID: r.name, Resource: r.id, WriteCache: cached[r.name]}
		var md armcompute.Disk
		found := false
		if r.id != "" {
			if found, err = h.az.Get(ctx, arm.TypeDisk, r.id, &md); err != nil {
				return out, h.az.Say(op, "look at the disks of VM "+m.Name, err)
			}
		}
		switch {
		case !found:
			d.Problem, d.Resource = "it is no managed disk", ""
		case ephemeral && r.lun < 0:
			d.Problem = onHost
		default:
			d.Problem = uncuttable(md)
		}
		if found {
			if id := site.Tag(md.Tags, booting.TagDisk); id != "" && site.Tag(md.Tags, arm.TagOwner) != "" {
				d.ID = id
			}
			if p := md.Properties; p != nil {
				d.Unique = site.Str(p.UniqueID)
				d.Shared = p.MaxShares != nil && *p.MaxShares > 1
			}
		}
		out.Disks = append(out.Disks, d)
	}
	return out, nil
}

// hostCaches tells which disks Azure's host may hold writes back of, and whether the OS disk is on the host itself.
func hostCaches(m site.Machine) (ephemeral bool, cached map[string]bool) {
	cached = map[string]bool{}
	sp := m.Properties.StorageProfile
	if sp == nil {
		return false, cached
	}
	waits := func(c *armcompute.CachingTypes, accelerator *bool) bool {
		return c != nil && *c == armcompute.CachingTypesReadWrite || accelerator != nil && *accelerator
	}
	if o := sp.OSDisk; o != nil {
		ephemeral = o.DiffDiskSettings != nil && o.DiffDiskSettings.Option != nil
		cached["os"] = waits(o.Caching, o.WriteAcceleratorEnabled)
	}
	for _, r := range diskRefs(m) {
		for _, d := range sp.DataDisks {
			if d != nil && d.Lun != nil && int(*d.Lun) == r.lun {
				cached[r.name] = waits(d.Caching, d.WriteAcceleratorEnabled)
			}
		}
	}
	return ephemeral, cached
}

// uncuttable says why a managed disk can't be in a crash-consistent restore point ("Support
// matrix for VM restore points"); "" = it can.
func uncuttable(d armcompute.Disk) string {
	if d.SKU == nil || d.SKU.Name == nil {
		return ""
	}
	switch name := string(*d.SKU.Name); {
	case strings.EqualFold(name, "UltraSSD_LRS"), strings.EqualFold(name, "PremiumV2_LRS"):
		return "crash-consistent restore points don't take disks of type " + name
	}
	return ""
}
