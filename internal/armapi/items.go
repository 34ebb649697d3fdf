package armapi

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// noScenario is the start time that the API gives to "no current scenario".
var noScenario = time.Date(1753, 1, 1, 1, 1, 1, 0, time.UTC)

// item returns the fabric and protected item that the path names.
func (c *call) item() (dr.Fabric, dr.ProtectedItem, error) {
	f, err := c.fabric()
	if err != nil {
		return f, dr.ProtectedItem{}, err
	}
	it, err := c.svc().Item(c.ctx(), f.ID, c.name(tItems))
	return f, it, err
}

func (c *call) itemID(f dr.Fabric, name string) string {
	return c.vaultID().ID(tFabrics, f.Name, tContainers, f.ContainerName(), tItems, name)
}

func listItems(c *call) (reply, error) {
	var id dr.FabricID
	if c.name(tFabrics) != "" {
		f, err := c.fabric()
		if err != nil {
			return reply{}, err
		}
		id = f.ID
	}
	items, err := c.svc().Items(c.ctx(), id)
	if err != nil {
		return reply{}, err
	}
	items, err = filtered(c, items, map[string]func(dr.ProtectedItem) string{
		"friendlyname":      func(it dr.ProtectedItem) string { return it.VMName },
		"name":              func(it dr.ProtectedItem) string { return it.Name },
		"replicationhealth": func(it dr.ProtectedItem) string { return health(it.Health) },
		"instancetype":      func(dr.ProtectedItem) string { return armwire.HyperVReplicaAzure },
		"protectionstate":   func(it dr.ProtectedItem) string { s, _ := protectionState(it.Protection, it.Failover); return s },
	})
	if err != nil {
		return reply{}, err
	}
	return page(c, items, func(it dr.ProtectedItem) string { return string(it.ID) }, c.itemResource)
}

func getItem(c *call) (reply, error) {
	_, it, err := c.item()
	if err != nil {
		return reply{}, err
	}
	r, err := c.itemResource(it)
	if err != nil {
		return reply{}, err
	}
	return ok(r)
}

// facts is what is known of an item beside its own record.
type facts struct {
	fabric  dr.Fabric
	policy  dr.Policy
	vm      dr.VM // zero if its host no longer knows it
	status  dr.ReplicationStatus
	allowed []string
	job     dr.Job // the current one; zero if idle
}

func (c *call) facts(it dr.ProtectedItem) (x facts, err error) {
	if x.fabric, err = c.dir.fabric(it.Fabric); err != nil {
		return x, err
	}
	if x.policy, err = c.dir.policy(it.Policy); err != nil {
		return x, err
	}
	if x.vm, err = c.svc().VM(c.ctx(), it.Fabric, it.VM); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return x, err
	}
	if x.status, err = c.svc().Status(c.ctx(), it.ID); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return x, err
	}
	allowed, err := c.svc().AllowedOperations(c.ctx(), it.ID)
	if err != nil {
		return x, err
	}
	x.allowed = shownOperations(it, allowed)
	if it.Job != "" {
		if x.job, err = c.svc().Job(c.ctx(), it.Job); err != nil && dr.KindOf(err) != dr.KindNotFound {
			return x, err
		}
	}
	return x, nil
}

func (c *call) itemResource(it dr.ProtectedItem) (armwire.Resource[armwire.ProtectedItem], error) {
	var out armwire.Resource[armwire.ProtectedItem]
	x, err := c.facts(it)
	if err != nil {
		return out, err
	}
	recoveryFabric, recoveryContainer, recoveryName, err := c.target(it.RecoveryFabric)
	if err != nil {
		return out, err
	}
	state, description := protectionState(it.Protection, it.Failover)
	test, testDescription := testFailoverState(it.Test)
	out = armwire.Resource[armwire.ProtectedItem]{
		ID: c.itemID(x.fabric, it.Name), Name: it.Name, Type: armwire.ResourceType(tFabrics, "", tContainers, "", tItems, ""),
		Properties: armwire.ProtectedItem{
			FriendlyName: it.VMName, ProtectedItemType: armwire.HyperVVirtualMachine, ProtectableItemID: c.vmID(x.fabric, it.VM),
			RecoveryServicesProviderID: c.providerID(x.fabric, it.SourceAgent),
			PrimaryFabricFriendlyName:  x.fabric.Name, PrimaryFabricProvider: "SingleHostHyperVFabric", PrimaryProtectionContainerFriendlyName: x.fabric.Name,
			RecoveryFabricFriendlyName: recoveryName, RecoveryFabricID: recoveryFabric, RecoveryContainerID: recoveryContainer, RecoveryProtectionContainerFriendlyName: recoveryName,
			ProtectionState: state, ProtectionStateDescription: description, ActiveLocation: firstNonEmpty(string(it.Active), string(dr.AtPrimary)),
			TestFailoverState: test, TestFailoverStateDescription: testDescription, AllowedOperations: x.allowed,
			ReplicationHealth: health(it.Health), FailoverHealth: string(dr.HealthNormal), HealthErrors: healthErrors(it.HealthErrors, it.Name),
			PolicyID: c.policyID(x.policy), PolicyFriendlyName: x.policy.Name,
			LastSuccessfulFailoverTime: armwire.Time(it.LastFailover), LastSuccessfulTestFailoverTime: armwire.Time(it.LastTest),
			CurrentScenario: c.scenario(x.job), FailoverRecoveryPointID: c.failedOverTo(x.fabric, it), EventCorrelationID: string(it.ID),
			ProviderSpecificDetails: c.replicationDetails(it, x, state, description),
			ItemID:                  string(it.ID), Replication: c.replication(it, x.status), ResyncReason: it.Resync, Paused: it.Paused,
			RecoveryVM: string(it.RecoveryVM), TestVM: string(it.TestVM), TestNetwork: it.TestNetwork, LastTestProof: report(it.LastTestReport),
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

func (c *call) scenario(j dr.Job) armwire.CurrentScenario {
	if j.ID == "" || j.State.Final() {
		return armwire.CurrentScenario{ScenarioName: "None", JobID: c.jobID("None"), StartTime: &noScenario}
	}
	return armwire.CurrentScenario{ScenarioName: j.Scenario, JobID: c.jobID(j.ID), StartTime: armwire.Time(firstTime(j.Started, j.Created))}
}

func (c *call) failedOverTo(f dr.Fabric, it dr.ProtectedItem) *string {
	if it.FailedOverTo == "" {
		return nil
	}
	id := c.itemID(f, it.Name) + "/" + tPoints + "/" + it.FailedOverTo
	return &id
}

// rpoLag is the age of the newest recovery point that is complete in the store;
// nil where there is none, or where the VM runs at the recovery site.
func (c *call) rpoLag(it dr.ProtectedItem, s dr.ReplicationStatus) *int64 {
	if s.LastPoint.IsZero() || it.Active == dr.AtRecovery {
		return nil
	}
	lag := max(0, int64(c.now().Sub(s.LastPoint)/time.Second))
	return &lag
}

func (c *call) replication(it dr.ProtectedItem, s dr.ReplicationStatus) armwire.Replication {
	r := armwire.Replication{
		Phase: s.Phase, ProgressPercent: s.Percent, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal, ETASeconds: int64(math.Ceil(s.ETA.Seconds())),
		RPOLagSeconds: c.rpoLag(it, s), BacklogBytes: s.BacklogBytes, SpooledBytes: s.Spooled, MissedCycles: s.Missed, Cycles: s.Cycles,
		LastCut: armwire.Time(s.LastCut), LastPoint: armwire.Time(s.LastPoint), ReportedAt: armwire.Time(s.At),
	}
	if s.Err != nil {
		r.Error = s.Err.Message
	}
	return r
}

func (c *call) replicationDetails(it dr.ProtectedItem, x facts, state, description string) armwire.ReplicationDetails {
	t := readSettings(it.Settings.Raw)
	disks := []armwire.RecoveryDisk{}
	for i, d := range replicated(x.vm, it.Disks) {
		disks = append(disks, armwire.RecoveryDisk{VHDType: diskType(d), VHDID: d.ID, DiskID: d.ID, VHDName: baseName(d.Path),
			MaxSizeMB: strconv.FormatInt(mebibytes(d.Size), 10), LUNID: strconv.Itoa(i)})
	}
	percent := "0"
	switch {
	case it.Protection == dr.Protected:
		percent = "100"
	case it.Protection == dr.InitialReplication:
		percent = strconv.Itoa(int(min(max(x.status.Percent, 0), 99)))
	}
	d := armwire.ReplicationDetails{
		InstanceType: armwire.HyperVReplicaAzure, AzureVMDiskDetails: disks, RecoveryAzureVMName: firstNonEmpty(it.Settings.RecoveryVMName, it.VMName), RecoveryAzureVMSize: t.VMSize,
		RecoveryAzureStorageAccount: firstNonEmpty(t.StorageAccount, x.policy.Storage), RecoveryAzureLogStorageAccount: t.LogStorageAccount,
		LastReplicatedTime: armwire.Time(x.status.LastCut), LastRecoveryPointReceived: armwire.Time(x.status.LastPoint),
		VMID: string(it.VM), VMProtectionState: state, VMProtectionStateDescription: description,
		InitialReplicationDetails: armwire.InitialReplication{Type: "InitialReplication", Percentage: percent},
		VMNICs:                    nicDetails(x.vm, it.Settings, t), SelectedRecoveryAzureNetworkID: firstNonEmpty(t.NetworkID, it.Settings.Network), SelectedSourceNICID: t.SelectedNIC,
		Encryption: "Disabled", SourceVMRAMSizeInMB: int32(x.vm.MemoryMB), SourceVMCPUCount: int32(x.vm.CPUs), EnableRDPOnTargetOption: t.RDP,
		RecoveryAzureResourceGroupID: t.ResourceGroup, RecoveryAvailabilitySetID: t.AvailabilitySet, TargetAvailabilityZone: t.Zone, TargetProximityPlacementGroup: t.PlacementGroup,
		UseManagedDisks: t.ManagedDisks, LicenseType: t.License, LinuxLicenseType: t.LinuxLicense, SQLServerLicenseType: t.SQLLicense, TargetVMTags: t.Tags,
	}
	if os := osDetails(x.vm); os.OSType != "" || t.OSType != "" {
		os.OSType = firstNonEmpty(os.OSType, t.OSType)
		d.OSDetails = &os
	}
	if lag := c.rpoLag(it, x.status); lag != nil {
		d.RPOInSeconds, d.LastRPOCalculatedTime = lag, armwire.Time(c.now())
	}
	return d
}

// enableItem protects a VM. Asked again while the job runs, or when it is done,
// for the same VM and policy, it answers that job or the item.
func enableItem(c *call) (reply, error) {
	var in armwire.Input[armwire.EnableInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	p := in.Properties
	if err := instanceType(p.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return reply{}, err
	}
	var more armwire.EnableDetails
	if err := decodeVariant(p.ProviderSpecificDetails, &more); err != nil {
		return reply{}, err
	}
	if err := checkSize(more.CPUs, more.MemoryMB); err != nil {
		return reply{}, err
	}
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	policyName, err := c.nameIn("policyId", p.PolicyID, tPolicies)
	if err != nil {
		return reply{}, err
	}
	vm := more.HVHostVMID
	if p.ProtectableItemID != "" {
		if vm, err = c.nameIn("protectableItemId", p.ProtectableItemID, tVMs); err != nil {
			return reply{}, err
		}
		if id, err := armwire.ParseID(p.ProtectableItemID); err == nil && !strings.EqualFold(id.NameOf(tFabrics), f.Name) {
			return reply{}, dr.New(dr.KindInvalid, codeInvalidBody, "armapi.enable", "protectableItemId is of site %q, the path of site %q", id.NameOf(tFabrics), f.Name)
		}
	}
	r := vault.EnableRequest{Fabric: f.Name, Name: c.name(tItems), VM: dr.VMID(strings.ToLower(firstNonEmpty(vm, c.name(tItems)))), Policy: policyName,
		Disks: more.DisksToInclude, Settings: enableSettings(more), By: c.who.Name}
	for _, d := range more.DisksToIncludeForManagedDisks {
		r.Disks = append(r.Disks, d.DiskID)
	}
	policy, err := c.svc().Policy(c.ctx(), policyName)
	if err != nil {
		return reply{}, named(err, "policyId")
	}
	switch have, err := c.svc().Item(c.ctx(), f.ID, r.Name); {
	case err != nil && dr.KindOf(err) != dr.KindNotFound:
		return reply{}, err
	case err == nil && have.Protection != dr.EnableFailed && have.Protection != dr.Disabling && have.VM == r.VM && have.Policy == policy.ID:
		if have.Protection != dr.Protected && have.Job != "" {
			return started(have.Job, nil, c.itemID(f, have.Name))
		}
		return getItem(c)
	}
	job, err := c.svc().Enable(c.ctx(), r)
	return started(job, err, c.itemID(f, r.Name))
}

func updateItem(c *call) (reply, error) {
	var in armwire.Input[armwire.UpdateInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	if err := instanceType(in.Properties.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return reply{}, err
	}
	var more armwire.UpdateDetails
	if err := decodeVariant(in.Properties.ProviderSpecificDetails, &more); err != nil {
		return reply{}, err
	}
	f, it, err := c.item()
	if err != nil {
		return reply{}, err
	}
	size := it.Settings
	applyUpdate(&size, in.Properties, more)
	if err := checkSize(size.CPUs, size.MemoryMB); err != nil {
		return reply{}, err
	}
	job, err := c.svc().Update(c.ctx(), vault.UpdateRequest{Item: it.ID, By: c.who.Name,
		Settings: func(s *dr.ItemSettings) { applyUpdate(s, in.Properties, more) }})
	return started(job, err, c.itemID(f, it.Name))
}

// disableItem serves remove (POST) and purge (DELETE, also when the agent is gone).
func disableItem(c *call) (reply, error) {
	if c.r.Method == "POST" {
		var in armwire.Input[armwire.DisableInput]
		if err := c.body(&in); err != nil {
			return reply{}, err
		}
	}
	f, it, err := c.item()
	if err != nil {
		return c.removed("", err, "")
	}
	job, err := c.svc().Disable(c.ctx(), it.ID, c.r.Method == "DELETE", c.who.Name)
	return c.removed(job, err, c.itemID(f, it.Name))
}
