package hvsim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/jobs"
	"holdfast/internal/hvsim/model"
)

type handler func(*call) cim.Out

// methods holds the handlers by class and name; those without class are of several classes.
var methods = lower(map[string]handler{
	"Msvm_VirtualSystemSnapshotService.CreateSnapshot":                        createSnapshot,
	"Msvm_VirtualSystemSnapshotService.DestroySnapshot":                       destroySnapshot,
	"Msvm_VirtualSystemSnapshotService.ApplySnapshot":                         applySnapshot,
	"Msvm_VirtualSystemSnapshotService.ConvertToReferencePoint":               convert,
	"Msvm_VirtualSystemReferencePointService.CreateReferencePoint":            createPoint,
	"Msvm_VirtualSystemReferencePointService.DestroyReferencePoint":           destroyPoint,
	"Msvm_VirtualSystemReferencePointService.ExportReferencePoint":            exportPoint,
	"Msvm_VirtualSystemReferencePointService.RemoveAssociatedData":            removeData,
	"Msvm_ImageManagementService.GetVirtualHardDiskSettingData":               diskSettings,
	"Msvm_ImageManagementService.GetVirtualHardDiskState":                     diskState,
	"Msvm_ImageManagementService.GetVirtualDiskChanges":                       diskChanges,
	"Msvm_ImageManagementService.CreateVirtualHardDisk":                       createDisk,
	"Msvm_ImageManagementService.ResizeVirtualHardDisk":                       resizeDisk,
	"Msvm_VirtualSystemManagementService.GetSummaryInformation":               summary,
	"Msvm_VirtualSystemManagementService.DefineSystem":                        defineSystem,
	"Msvm_VirtualSystemManagementService.DestroySystem":                       destroySystem,
	"Msvm_VirtualSystemManagementService.AddResourceSettings":                 addResources,
	"Msvm_VirtualSystemManagementService.ModifyResourceSettings":              modifyResources,
	"Msvm_VirtualSystemManagementService.RemoveResourceSettings":              removeResources,
	"Msvm_VirtualSystemManagementService.ModifySystemSettings":                modifySystem,
	"Msvm_VirtualSystemManagementService.AddFeatureSettings":                  addFeatures,
	"Msvm_VirtualSystemManagementService.ModifyFeatureSettings":               modifyFeatures,
	"Msvm_VirtualSystemManagementService.RemoveFeatureSettings":               removeFeatures,
	"Msvm_VirtualSystemManagementService.ModifyDiskMergeSettings":             mergeSettings,
	"Msvm_VirtualSystemManagementService.ImportSystemDefinition":              importSystem,
	"Msvm_VirtualSystemManagementService.ValidatePlannedSystem":               validatePlanned,
	"Msvm_VirtualSystemManagementService.RealizePlannedSystem":                realizePlanned,
	"Msvm_VirtualSystemManagementService.GetVirtualSystemThumbnailImage":      thumbnail,
	"Msvm_VirtualSystemManagementService.SetGuestNetworkAdapterConfiguration": setGuestNetwork,
	"Msvm_VirtualSystemMigrationService.MigrateVirtualSystemToHost":           migrate,
	"Msvm_ComputerSystem.RequestStateChange":                                  vmState,
	"Msvm_ComputerSystem.RequestReplicationStateChange":                       replicationState,
	"Msvm_ComputerSystem.RequestReplicationStateChangeEx":                     replicationState,
	"Msvm_ShutdownComponent.InitiateShutdown":                                 shutdown,
	"Msvm_ReplicationService.CreateReplicationRelationship":                   createReplication,
	"Msvm_ReplicationService.RemoveReplicationRelationship":                   removeReplication,
	"Msvm_ReplicationService.RemoveReplicationRelationshipEx":                 removeReplication,
	"Msvm_ReplicationService.StartReplication":                                startReplication,
	"Msvm_ReplicationService.Resynchronize":                                   resynchronize,
	"Msvm_ReplicationService.ModifyReplicationSettings":                       modifyReplication,
	"Msvm_ReplicationService.GetReplicationStatistics":                        replicationStatistics,
	"Msvm_ReplicationService.GetReplicationStatisticsEx":                      replicationStatistics,
	".GetError":           jobError,
	".GetErrorEx":         jobErrors,
	".RequestStateChange": jobState,
})

func lower(m map[string]handler) map[string]handler {
	out := make(map[string]handler, len(m))
	for k, h := range m {
		out[strings.ToLower(k)] = h
	}
	return out
}

// Snapshot types of CreateSnapshot. The reference calls 32768 and above vendor specific; backup products pass it for a recovery checkpoint.
const (
	fullSnapshot     = 2
	diskSnapshot     = 3
	recoverySnapshot = 32768
)

// old reports whether a VM's configuration version is too old for change tracking.
func old(version string) bool {
	v, err := strconv.ParseFloat(version, 64)
	return err != nil || v < 6.2
}

func createSnapshot(c *call) cim.Out {
	vm := c.vm("AffectedSystem")
	set, ok := c.embedded("SnapshotSettings")
	kind, _ := c.in.Uint("SnapshotType")
	if vm == nil || !ok || set != nil && !strings.EqualFold(set.Class, "Msvm_VirtualSystemSnapshotSettingData") && !strings.EqualFold(set.Class, "CIM_VirtualSystemSettingData") && !strings.EqualFold(set.Class, "Msvm_VirtualSystemSettingData") {
		return c.invalid()
	}
	spec := model.NewCheckpoint{Recovery: kind == recoverySnapshot, Consistency: 2}
	if set != nil {
		level, _ := set.Uint("ConsistencyLevel")
		if level > 2 {
			return c.invalid()
		}
		spec.Name = set.Args.String("ElementName")
		spec.Consistency = uint8(level)
		spec.SkipUnfreezable, _ = set.Bool("IgnoreNonSnapshottableDisks")
	}
	st := vm.State()
	switch {
	case kind != fullSnapshot && kind != diskSnapshot && kind != recoverySnapshot:
		return c.invalid()
	case spec.Recovery && old(st.Version):
		return cim.Out{Return: c.family.unsupported}
	case st.UserSnapshotType == 2 && !spec.Recovery, st.Planned:
		return cim.Out{Return: c.family.state}
	}
	end, err := vm.Busy(model.Creating)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return c.guarded(end, 70, vm, func(ctx context.Context) (result, error) {
		cp, err := vm.Checkpoint(ctx, spec)
		if err != nil {
			return result{}, err
		}
		return result{name: "ResultingSnapshot", refs: []cim.Path{c.byID("Msvm_VirtualSystemSettingData", "Microsoft:"+cp.ID)}}, nil
	})
}

// guarded is work under an operational status, which ends with the job whatever becomes of it.
func (c *call) guarded(end func(), jobType uint16, vm *VM, do func(context.Context) (result, error)) cim.Out {
	out := c.work(jobType, vm, c.vmPath(vm.State()), func(ctx context.Context) (result, error) {
		defer end()
		return do(ctx)
	})
	if out.Return != cim.ReturnJobStarted {
		end()
		return out
	}
	// A job that is stopped before its work begins ends the status too.
	ref, _ := out.Ref("Job")
	c.jobs.OnEnd(ref.Key("InstanceID"), end)
	return out
}

func destroySnapshot(c *call) cim.Out {
	vm, id := c.checkpoint("AffectedSnapshot")
	if vm == nil {
		return c.invalid()
	}
	end, err := vm.Busy(model.Deleting)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return c.guarded(end, 72, vm, func(context.Context) (result, error) { return result{}, vm.DeleteCheckpoint(id) })
}

func applySnapshot(c *call) cim.Out {
	vm, id := c.checkpoint("Snapshot")
	if vm == nil {
		return c.invalid()
	}
	if p := vm.State().Power; p != model.Off && p != model.Saved {
		return cim.Out{Return: c.family.state}
	}
	end, err := vm.Busy(model.Applying)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return c.guarded(end, 71, vm, func(context.Context) (result, error) { return result{}, vm.ApplyCheckpoint(id) })
}

func convert(c *call) cim.Out {
	vm, id := c.checkpoint("AffectedSnapshot")
	set, ok := c.embedded("ReferencePointSettings")
	if vm == nil || !ok {
		return c.invalid()
	}
	st := vm.State()
	if cp, _ := st.Checkpoint(id); !cp.Recovery {
		return cim.Out{Return: c.family.state}
	}
	name := ""
	if set != nil {
		name = set.Args.String("ElementName")
	}
	end, err := vm.Busy(model.Deleting)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return c.guarded(end, 200, vm, func(context.Context) (result, error) {
		p, err := vm.Convert(id, name)
		if err != nil {
			return result{}, err
		}
		return result{name: "ResultingReferencePoint", refs: []cim.Path{c.byID("Msvm_VirtualSystemReferencePoint", "Microsoft:"+p.ID)}}, nil
	})
}

// createPoint takes ReferencePointType as the method's reference has it: 0 = log based, 1 = change tracking.
func createPoint(c *call) cim.Out {
	vm := c.vm("AffectedSystem")
	set, ok := c.embedded("ReferencePointSettings")
	kind, given := c.in.Uint("ReferencePointType")
	if vm == nil || !ok || !given || kind > 1 {
		return c.invalid()
	}
	if old(vm.State().Version) {
		return cim.Out{Return: c.family.unsupported}
	}
	name, level := "", uint8(2)
	if set != nil {
		name = set.Args.String("ElementName")
		if l, ok := set.Uint("ConsistencyLevel"); ok && l == 1 {
			level = 1
		}
	}
	return c.work(201, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		p, err := vm.NewPoint(name, kind == 0, level)
		if err != nil {
			return result{}, err
		}
		return result{name: "ResultingReferencePoint", refs: []cim.Path{c.byID("Msvm_VirtualSystemReferencePoint", "Microsoft:"+p.ID)}}, nil
	})
}

func destroyPoint(c *call) cim.Out {
	vm, p := c.refPoint("AffectedReferencePoint")
	if vm == nil {
		return c.invalid()
	}
	return c.work(202, vm, c.vmPath(vm.State()), func(context.Context) (result, error) { return result{}, vm.DeletePoint(p.ID) })
}

func removeData(c *call) cim.Out {
	vm, p := c.refPoint("AffectedReferencePoint")
	if vm == nil {
		return c.invalid()
	}
	return c.work(204, vm, c.vmPath(vm.State()), func(context.Context) (result, error) { return result{}, vm.DropLogs(p.ID) })
}

func exportPoint(c *call) cim.Out {
	vm, p := c.refPoint("ReferencePoint")
	set, ok := c.embedded("ExportSettingData")
	dir := c.in.String("ExportDirectory")
	if vm == nil || !ok || dir == "" {
		return c.invalid()
	}
	if !p.Log {
		return cim.Out{Return: c.family.unsupported}
	}
	base, disks := "", []string(nil)
	if set != nil {
		disks = set.Strings("DisksToExport")
		if s := set.Args.String("BaseReferencePoint"); s != "" {
			path, err := cim.ParsePath(s)
			if err != nil {
				return c.invalid()
			}
			_, b := c.pointByID(path.Key("InstanceID"))
			if b.ID == "" {
				return c.invalid()
			}
			base = b.ID
		}
	}
	data := &jobData{target: c.vmPath(vm.State())}
	data.extra = []any{"ExportDirectory", dir, "VirtualMachineId", vm.ID(), "ReferencePointId", p.ID, "BaseReferencePointId", base}
	out := c.begin(jobs.Spec{Class: "Msvm_VirtualSystemReferencePointExportJob", Type: 203, Owner: vm.ID(), Time: c.site.Settings().JobTime, Work: func(context.Context) ([]any, error) {
		return nil, failedOrNil(vm.ExportPoint(p.ID, base, dir, disks))
	}}, data.target, append(data.extra, "ExportedLogFilePaths", list(vm.ExportPaths(p.ID, base, dir, disks)), "ExportedDisks", list(disks))...)
	return out
}

func failedOrNil(err error) error {
	if err == nil {
		return nil
	}
	return failure(err)
}

// Disks

// settingText renders embedded settings.
func settingText(in *cim.Instance) string {
	s, err := cim.EncodeEmbedded(in)
	if err != nil {
		panic(err) // a mistake of this package: the types are its own
	}
	return s
}

// file reads a disk file; out is the answer if that fails.
func (c *call) file(path string) (img model.Image, out cim.Out, ok bool) {
	if path == "" {
		return img, c.invalid(), false
	}
	if err := c.merging(path); err != nil {
		return img, c.failing(failure(err), 0), false
	}
	img, err := c.Image(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return img, cim.Out{Return: c.family.missing}, false
	case errors.Is(err, model.ErrInvalid):
		return img, c.invalid(), false
	case err != nil:
		return img, c.failing(failure(err), 0), false
	}
	return img, cim.Out{}, true
}

// merging fails for a file that is being merged, which nobody else can open then.
func (c *call) merging(path string) error {
	vm, ds := c.FindFile(path)
	if vm == nil {
		return nil
	}
	if vm.State().Status == model.Merging && len(ds.Files) > 1 {
		return fmt.Errorf("%s: %w", path, model.ErrInUse)
	}
	return nil
}

func diskSettings(c *call) cim.Out {
	path := c.in.String("Path")
	img, out, ok := c.file(path)
	if !ok {
		return out
	}
	in := cim.NewInstance("Msvm_VirtualHardDiskSettingData", "InstanceID", path, "Caption", "Virtual Hard Disk Setting Data", "ElementName", "Virtual Hard Disk Setting Data", "Type", uint16(3), "Format", uint16(3),
		"Path", path, "MaxInternalSize", uint64(img.Size), "BlockSize", uint32(img.BlockSize), "LogicalSectorSize", uint32(img.LogicalSector), "PhysicalSectorSize", uint32(img.PhysicalSector),
		"VirtualDiskId", img.ID, "DataAlignment", uint64(1<<20))
	switch img.Kind {
	case model.Fixed:
		in.Set("Type", uint16(2))
	case model.Child:
		in.Set("Type", uint16(4))
		in.Set("ParentPath", img.Parent)
		in.Set("ParentIdentifier", strings.ToUpper(img.ParentID))
	case model.VHD:
		in.Set("Type", uint16(2))
		in.Set("Format", uint16(2))
	case model.Shared:
		in.Set("Format", uint16(4))
	}
	out.Set("SettingData", settingText(in))
	return out
}

func diskState(c *call) cim.Out {
	path := c.in.String("Path")
	img, out, ok := c.file(path)
	if !ok {
		return out
	}
	vm, _ := c.FindFile(path)
	in := cim.NewInstance("Msvm_VirtualHardDiskState", "FileSize", uint64(img.FileSize), "InUse", vm != nil && vm.State().Power != model.Off, "MinInternalSize", uint64(img.Size),
		"PhysicalSectorSize", uint32(img.PhysicalSector), "Alignment", uint32(1), "FragmentationPercentage", uint32(0))
	out.Set("State", settingText(in))
	return out
}

// maxRanges is how many ranges one answer of GetVirtualDiskChanges holds at most; the caller goes on at the processed length.
const maxRanges = 4096

func diskChanges(c *call) cim.Out {
	path, limit := c.in.String("Path"), c.in.String("LimitId")
	off, ok1 := c.in.Uint("ByteOffset")
	n, ok2 := c.in.Uint("ByteLength")
	img, out, ok := c.file(path)
	if !ok {
		return out
	}
	size := uint64(img.Size)
	if !ok1 || !ok2 || n == 0 || off >= size || n > size-off || limit == "" || img.ID == "" {
		return c.invalid()
	}
	vm, ds := c.FindFile(path)
	if vm == nil {
		return c.failing(failure(fmt.Errorf("%s is a disk of no virtual machine: %w", path, model.ErrRCT)), 0)
	}
	list, processed, err := vm.Disk(ds.ID).Changes(path, limit, c.in.String("TargetSnapshotId"), int64(off), int64(n), maxRanges)
	if err != nil {
		return c.failing(failure(err), 0)
	}
	offs, lens := make([]uint64, len(list)), make([]uint64, len(list))
	for i, e := range list {
		offs[i], lens[i] = uint64(e.Off), uint64(e.Len)
	}
	out.Set("ProcessedByteLength", uint64(processed))
	out.Set("ChangedByteOffsets", offs)
	out.Set("ChangedByteLengths", lens)
	return out
}

func createDisk(c *call) cim.Out {
	set, ok := c.embedded("VirtualDiskSettingData")
	if !ok || set == nil {
		return c.invalid()
	}
	kind, _ := set.Uint("Type")
	format, given := set.Uint("Format")
	size, _ := set.Uint("MaxInternalSize")
	block, _ := set.Uint("BlockSize")
	sector, _ := set.Uint("LogicalSectorSize")
	spec := model.DiskSpec{Path: set.Args.String("Path"), Size: int64(size), BlockSize: int64(block), LogicalSector: int(sector), Parent: set.Args.String("ParentPath"), ID: strings.Trim(set.Args.String("VirtualDiskId"), "{}")}
	switch kind {
	case 2:
		spec.Kind = model.Fixed
	case 3:
		spec.Kind = model.Dynamic
	case 4:
		spec.Kind = model.Child
	default:
		return c.invalid()
	}
	if given && format == 2 {
		spec.Kind = model.VHD
	}
	if spec.Path == "" || spec.Size <= 0 && spec.Kind != model.Child || size%512 != 0 || size > 64<<40 {
		return c.invalid()
	}
	if _, err := c.Local(spec.Path); err != nil {
		return c.invalid()
	}
	return c.work(1, nil, cim.Path{}, func(context.Context) (result, error) { return result{}, c.CreateImage(spec) })
}

func resizeDisk(c *call) cim.Out {
	path := c.in.String("Path")
	size, ok := c.in.Uint("MaxInternalSize")
	_, out, found := c.file(path)
	if !found {
		return out
	}
	vm, ds := c.FindFile(path)
	if !ok || size == 0 || size%512 != 0 {
		return c.invalid()
	}
	if vm != nil && len(ds.Files) != 1 {
		return cim.Out{Return: c.family.state}
	}
	return c.work(4, vm, cim.Path{}, func(context.Context) (result, error) {
		if vm == nil {
			return result{}, c.ResizeImage(path, int64(size))
		}
		return result{}, vm.Disk(ds.ID).Resize(int64(size))
	})
}
