package msvm

import (
	"context"
	"strings"

	"holdfast/internal/cim"
)

// SnapshotTypeRecovery is the type of a checkpoint that backups are made of. The
// reference calls 32768 and above "vendor specific"; Microsoft's published backup
// code passes it and gets VirtualSystemType Microsoft:Hyper-V:Snapshot:Recovery.
const SnapshotTypeRecovery uint16 = 32768

// Consistency levels of Msvm_VirtualSystemSnapshotSettingData.
const (
	ApplicationConsistent uint8 = 1
	CrashConsistent       uint8 = 2
)

// guestBackupCopy is GuestBackupType 2: the guest's applications are frozen, but don't truncate their
// logs, which belong to the owner's real backup.
const guestBackupCopy uint8 = 2

// CreateRecoveryCheckpoint makes a recovery checkpoint named name (method
// CreateSnapshot) and returns its settings' InstanceID. With an empty id and no
// error the host did not say which one it is. The name is asked for in the settings and,
// where the host does not take it from there, the caller sets it. warned: the job completed with warnings.
func (c *Client) CreateRecoveryCheckpoint(ctx context.Context, vm, name string, level uint8) (id string, warned bool, err error) {
	settings, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_VirtualSystemSnapshotSettingData",
		"ElementName", name, "ConsistencyLevel", level, "IgnoreNonSnapshottableDisks", true, "GuestBackupType", guestBackupCopy))
	if err != nil {
		return "", false, err
	}
	out, job, err := c.call(ctx, snapshotService, "CreateSnapshot", cim.Pairs(
		"AffectedSystem", systemPath(vm), "SnapshotSettings", settings, "SnapshotType", SnapshotTypeRecovery))
	if err != nil {
		return "", false, err
	}
	path, err := c.affected(ctx, out, job, "ResultingSnapshot", "Msvm_VirtualSystemSettingData")
	return path.Key("InstanceID"), job != nil && job.Warning, err
}

// RenameCheckpoint sets the name of a checkpoint (method ModifySystemSettings).
func (c *Client) RenameCheckpoint(ctx context.Context, id, name string) error {
	return c.ModifySettings(ctx, cim.NewInstance("Msvm_VirtualSystemSettingData", "InstanceID", id, "ElementName", name))
}

// ModifySettings changes properties of a VM's or checkpoint's settings (method ModifySystemSettings).
func (c *Client) ModifySettings(ctx context.Context, in *cim.Instance) error {
	text, err := cim.EncodeEmbedded(in)
	if err != nil {
		return err
	}
	_, _, err = c.call(ctx, managementService, "ModifySystemSettings", cim.Pairs("SystemSettings", text))
	return err
}

// DestroyCheckpoint removes a checkpoint and starts merging its disks (method
// DestroySnapshot). The reference points stay valid. Missing reports an error about one that is gone.
func (c *Client) DestroyCheckpoint(ctx context.Context, id string) error {
	_, _, err := c.call(ctx, snapshotService, "DestroySnapshot", cim.Pairs("AffectedSnapshot", SettingsPath(id)))
	return err
}

// Checkpoints lists the checkpoints of a VM, also those of backups. A VM that does not exist has none.
func (c *Client) Checkpoints(ctx context.Context, vm string) ([]*Settings, error) {
	list, err := c.query(ctx, "SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemIdentifier = "+cim.Quote(hostGUID(vm)))
	if err != nil {
		return nil, err
	}
	var out []*Settings
	for _, in := range list {
		if s := settingsOf(in); strings.HasPrefix(s.Type, "Microsoft:Hyper-V:Snapshot:") {
			out = append(out, s)
		}
	}
	return out, nil
}

// CheckpointExists asks for one checkpoint.
func (c *Client) CheckpointExists(ctx context.Context, id string) (bool, error) {
	_, err := c.s.Get(ctx, SettingsPath(id))
	if Missing(err) {
		return false, nil
	}
	return err == nil, err
}

// CheckpointDrives lists the frozen disks of a checkpoint.
func (c *Client) CheckpointDrives(ctx context.Context, id string) ([]Drive, error) {
	var all []*cim.Instance
	for _, class := range []string{"Msvm_ResourceAllocationSettingData", "Msvm_StorageAllocationSettingData"} {
		list, err := c.query(ctx, cim.Associators(SettingsPath(id), "Msvm_VirtualSystemSettingDataComponent", class))
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return drivesOf(all), nil
}

// ReferencePoint is Msvm_VirtualSystemReferencePoint.
type ReferencePoint struct {
	ID    string
	Name  string // ElementName
	VM    string
	Disks []string // VirtualDiskIdentifiers as the host wrote them
	RCT   []string // ResilientChangeTrackingIdentifiers, in the order of Disks
	Log   bool     // log based
}

// RCTOf returns the tracking id of a disk. The reference calls the elements of
// VirtualDiskIdentifiers "WMI instance IDs", hosts write virtual disk ids: both
// are taken. ok is false if the disk is not in the reference point, or if the
// arrays have different lengths, which no cycle can be built on.
func (r ReferencePoint) RCTOf(diskID, instance string) (id string, ok bool) {
	if len(r.Disks) != len(r.RCT) {
		return "", false
	}
	found := -1
	for i, d := range r.Disks {
		if strings.EqualFold(strings.Trim(d, "{}"), diskID) || instance != "" && strings.EqualFold(d, instance) {
			if found >= 0 {
				return "", false // two disks with the same id
			}
			found = i
		}
	}
	if found < 0 || r.RCT[found] == "" {
		return "", false
	}
	return r.RCT[found], true
}

func referencePointOf(in *cim.Instance) ReferencePoint {
	return ReferencePoint{ID: in.String("InstanceID"), Name: in.String("ElementName"), VM: strings.ToLower(in.String("VirtualSystemIdentifier")),
		Disks: in.Strings("VirtualDiskIdentifiers"), RCT: in.Strings("ResilientChangeTrackingIdentifiers")}
}

// ReferencePoints lists the reference points of a VM; with vm empty those of all.
func (c *Client) ReferencePoints(ctx context.Context, vm string) ([]ReferencePoint, error) {
	wql := "SELECT * FROM Msvm_VirtualSystemReferencePoint"
	if vm != "" {
		wql += " WHERE VirtualSystemIdentifier = " + cim.Quote(hostGUID(vm))
	}
	list, err := c.query(ctx, wql)
	if err != nil {
		return nil, err
	}
	var out []ReferencePoint
	for _, in := range list {
		out = append(out, referencePointOf(in))
	}
	return out, nil
}

// ConvertToReferencePoint turns a recovery checkpoint into a reference point: the
// checkpoint is deleted by it and merging starts. The id is empty if the host did not name it.
func (c *Client) ConvertToReferencePoint(ctx context.Context, checkpoint, name string) (string, error) {
	settings, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_VirtualSystemReferencePointSettingData", "ElementName", name))
	if err != nil {
		return "", err
	}
	out, job, err := c.call(ctx, snapshotService, "ConvertToReferencePoint", cim.Pairs(
		"AffectedSnapshot", SettingsPath(checkpoint), "ReferencePointSettings", settings))
	if err != nil {
		return "", err
	}
	path, err := c.affected(ctx, out, job, "ResultingReferencePoint", "Msvm_VirtualSystemReferencePoint")
	return path.Key("InstanceID"), err
}

// DestroyReferencePoint deletes a reference point. Missing reports an error about one that is gone.
func (c *Client) DestroyReferencePoint(ctx context.Context, id string) error {
	_, _, err := c.call(ctx, referencePointService, "DestroyReferencePoint", cim.Pairs("AffectedReferencePoint", ReferencePointPath(id)))
	return err
}

// GUIDOf returns the first GUID in an InstanceID ("Microsoft:GUID…"), lower case, "" if there is none.
func GUIDOf(instanceID string) string { return owner(instanceID) }
