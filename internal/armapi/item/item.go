package item

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// noScenario is the start time that the API gives to "no current scenario".
var noScenario = time.Date(1753, 1, 1, 1, 1, 1, 0, time.UTC)

// item returns the fabric and protected item that the path names.
func item(c *route.Call) (dr.Fabric, dr.ProtectedItem, error) {
	f, err := c.Fabric()
	if err != nil {
		return f, dr.ProtectedItem{}, err
	}
	it, err := c.Svc().Item(c.Ctx(), f.ID, c.NameOf(route.TItems))
	return f, it, err
}

func listItems(c *route.Call) (route.Reply, error) {
	var id dr.FabricID
	if c.NameOf(route.TFabrics) != "" {
		f, err := c.Fabric()
		if err != nil {
			return route.Reply{}, err
		}
		id = f.ID
	}
	items, err := c.Svc().Items(c.Ctx(), id)
	if err != nil {
		return route.Reply{}, err
	}
	if c.NameOf(route.TContainers) != "" {
		f, err := c.Fabric()
		if err != nil {
			return route.Reply{}, err
		}
		items = slices.DeleteFunc(slices.Clone(items), func(it dr.ProtectedItem) bool { return !c.InContainer(f, it.VM) })
	}
	items, err = route.Filtered(c, items, map[string]func(dr.ProtectedItem) string{
		"friendlyname":      func(it dr.ProtectedItem) string { return it.VMName },
		"name":              func(it dr.ProtectedItem) string { return it.Name },
		"replicationhealth": func(it dr.ProtectedItem) string { return route.Health(it.Health) },
		"instancetype":      func(dr.ProtectedItem) string { return armwire.HyperVReplicaAzure },
		"protectionstate":   func(it dr.ProtectedItem) string { s, _ := protectionState(it.Protection, it.Failover); return s },
	})
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, items, func(it dr.ProtectedItem) string { return string(it.ID) }, itemResource)
}

func getItem(c *route.Call) (route.Reply, error) {
	_, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	r, err := itemResource(c, it)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(r)
}

// facts is what is known of an item beside its own record.
type facts struct {
	fabric  dr.Fabric
	cloud   string // name; empty without VMM
	policy  dr.Policy
	vm      dr.VM // zero if its host no longer knows it
	status  dr.ReplicationStatus
	detail  vault.Detail
	allowed []string
	job     dr.Job // the current one; zero if idle
}

func lookUp(c *route.Call, it dr.ProtectedItem) (x facts, err error) {
	if x.fabric, err = c.Dir.Fabric(it.Fabric); err != nil {
		return x, err
	}
	clouds, err := c.Dir.Clouds(x.fabric)
	if err != nil {
		return x, err
	}
	for _, cloud := range clouds {
		if x.fabric.ContainerOf(cloud.ID) == c.ContainerOf(x.fabric, it.VM) {
			x.cloud = cloud.Name
		}
	}
	if x.policy, err = c.Dir.Policy(it.Policy); err != nil {
		return x, err
	}
	if x.vm, err = c.Svc().VM(c.Ctx(), it.Fabric, it.VM); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return x, err
	}
	if x.status, err = c.Svc().Status(c.Ctx(), it.ID); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return x, err
	}
	if x.detail, err = c.Svc().Detail(c.Ctx(), it.ID); err != nil {
		return x, err
	}
	allowed, err := c.Svc().AllowedOperations(c.Ctx(), it.ID)
	if err != nil {
		return x, err
	}
	x.allowed = shownOperations(it, allowed)
	if it.Job != "" {
		if x.job, err = c.Svc().Job(c.Ctx(), it.Job); err != nil && dr.KindOf(err) != dr.KindNotFound {
			return x, err
		}
	}
	return x, nil
}

func itemResource(c *route.Call, it dr.ProtectedItem) (armwire.Resource[armwire.ProtectedItem], error) {
	var out armwire.Resource[armwire.ProtectedItem]
	x, err := lookUp(c, it)
	if err != nil {
		return out, err
	}
	recoveryFabric, recoveryContainer, recoveryName, err := c.Target(it.RecoveryFabric)
	if err != nil {
		return out, err
	}
	state, description := protectionState(it.Protection, it.Failover)
	test, testDescription := testFailoverState(it.Test)
	out = armwire.Resource[armwire.ProtectedItem]{
		ID: c.ItemID(x.fabric, it.VM, it.Name), Name: it.Name, Type: armwire.ResourceType(route.TFabrics, "", route.TContainers, "", route.TItems, ""),
		Properties: armwire.ProtectedItem{
			FriendlyName: it.VMName, ProtectedItemType: armwire.HyperVVirtualMachine, ProtectableItemID: c.VMID(x.fabric, it.VM),
			RecoveryServicesProviderID: c.ProviderID(x.fabric, it.SourceAgent),
			PrimaryFabricFriendlyName:  x.fabric.Name, PrimaryFabricProvider: "SingleHostHyperVFabric", PrimaryProtectionContainerFriendlyName: cmp.Or(x.cloud, x.fabric.Name),
			RecoveryFabricFriendlyName: recoveryName, RecoveryFabricID: recoveryFabric, RecoveryContainerID: recoveryContainer, RecoveryProtectionContainerFriendlyName: recoveryName,
			ProtectionState: state, ProtectionStateDescription: description, ActiveLocation: cmp.Or(string(it.Active), string(dr.AtPrimary)),
			TestFailoverState: test, TestFailoverStateDescription: testDescription, AllowedOperations: x.allowed,
			ReplicationHealth: route.Health(it.Health), FailoverHealth: string(dr.HealthNormal), HealthErrors: route.HealthErrors(it.HealthErrors, it.Name),
			PolicyID: c.PolicyID(x.policy), PolicyFriendlyName: x.policy.Name,
			LastSuccessfulFailoverTime: armwire.Time(it.LastFailover), LastSuccessfulTestFailoverTime: armwire.Time(it.LastTest),
			CurrentScenario: scenario(c, x.job), FailoverRecoveryPointID: failedOverTo(c, x.fabric, it), EventCorrelationID: string(it.ID),
			ProviderSpecificDetails: replicationDetails(c, it, x, state, description),
			ItemID:                  string(it.ID), Replication: replication(c, it, x.status, x.detail), ResyncReason: it.Resync, Paused: it.Paused,
			RecoveryVM: string(it.RecoveryVM), TestVM: string(it.TestVM), TestNetwork: it.TestNetwork, LastTestProof: report(it.LastTestReport),
			PauseReason: x.detail.PauseReason, ResumeAt: armwire.Time(x.detail.ResumeAt), Resync: resync(it, x.policy, x.status, x.detail), Anomaly: anomaly(x.detail.Anomaly), Disks: disks(x.vm, it, x.detail),
			Group: string(x.detail.Group), Seeded: x.detail.Seeded, Statistics: statistics(x.detail.Statistics),
			DiskType: it.Settings.Cloud.DiskType, PublicIP: it.Settings.Cloud.PublicIP, Repair: it.Settings.Cloud.Repair, Warm: warm(x.detail.Warm, x.status.LastPoint),
		},
	}
	return out, nil
}

// report passes the stored report of a drill on, if it is JSON.
func report(s string) armwire.Variant {
	if !json.Valid([]byte(s)) {
		return armwire.Variant{}
	}
	return armwire.Variant{Raw: json.RawMessage(s)}
}

func scenario(c *route.Call, j dr.Job) armwire.CurrentScenario {
	if j.ID == "" || j.State.Final() {
		return armwire.CurrentScenario{ScenarioName: "None", JobID: c.JobID("None"), StartTime: &noScenario}
	}
	return armwire.CurrentScenario{ScenarioName: j.Scenario, JobID: c.JobID(j.ID), StartTime: armwire.Time(route.FirstTime(j.Started, j.Created))}
}

func failedOverTo(c *route.Call, f dr.Fabric, it dr.ProtectedItem) *string {
	if it.FailedOverTo == "" {
		return nil
	}
	id := c.ItemID(f, it.VM, it.Name) + "/" + route.TPoints + "/" + it.FailedOverTo
	return &id
}

func replicationDetails(c *route.Call, it dr.ProtectedItem, x facts, state, description string) armwire.ReplicationDetails {
	t := readSettings(it.Settings.Raw)
	disks := []armwire.RecoveryDisk{}
	for i, d := range site.Replicated(x.vm, it.Disks) {
		disks = append(disks, armwire.RecoveryDisk{VHDType: site.DiskType(d), VHDID: d.ID, DiskID: d.ID, VHDName: site.BaseName(d.Path),
			MaxSizeMB: strconv.FormatInt(site.MiB(d.Size), 10), LUNID: strconv.Itoa(i)})
	}
	percent := "0"
	switch {
	case it.Protection == dr.Protected:
		percent = "100"
	case it.Protection == dr.InitialReplication:
		percent = strconv.Itoa(int(min(max(x.status.Percent, 0), 99)))
	}
	d := armwire.ReplicationDetails{
		InstanceType: armwire.HyperVReplicaAzure, AzureVMDiskDetails: disks, RecoveryAzureVMName: cmp.Or(it.Settings.RecoveryVMName, it.VMName), RecoveryAzureVMSize: t.VMSize,
		RecoveryAzureStorageAccount: cmp.Or(t.StorageAccount, x.policy.Storage), RecoveryAzureLogStorageAccount: t.LogStorageAccount,
		LastReplicatedTime: armwire.Time(x.status.LastCut), LastRecoveryPointReceived: armwire.Time(x.status.LastPoint),
		VMID: string(it.VM), VMProtectionState: state, VMProtectionStateDescription: description,
		InitialReplicationDetails: armwire.InitialReplication{Type: "InitialReplication", Percentage: percent},
		VMNICs:                    nicDetails(x.vm, it.Settings, t), SelectedRecoveryAzureNetworkID: cmp.Or(t.NetworkID, it.Settings.Network), SelectedSourceNICID: t.SelectedNIC,
		Encryption: "Disabled", SourceVMRAMSizeInMB: int32(x.vm.MemoryMB), SourceVMCPUCount: int32(x.vm.CPUs), EnableRDPOnTargetOption: t.RDP,
		RecoveryAzureResourceGroupID: t.ResourceGroup, RecoveryAvailabilitySetID: t.AvailabilitySet, TargetAvailabilityZone: t.Zone, TargetProximityPlacementGroup: t.PlacementGroup,
		UseManagedDisks: t.ManagedDisks, LicenseType: t.License, LinuxLicenseType: t.LinuxLicense, SQLServerLicenseType: t.SQLLicense, TargetVMTags: t.Tags,
	}
	if os := site.OSDetails(x.vm); os.OSType != "" || t.OSType != "" {
		os.OSType = cmp.Or(os.OSType, t.OSType)
		d.OSDetails = &os
	}
	if lag := rpoLag(c, it, x.status); lag != nil {
		d.RPOInSeconds, d.LastRPOCalculatedTime = lag, armwire.Time(c.Now())
	}
	return d
}
