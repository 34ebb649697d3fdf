package portal

import (
	"encoding/json"
	"fmt"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// somePoints makes n points, newest first, with the churn of a working day.
func somePoints(now time.Time, every time.Duration, n int) []dr.RecoveryPoint {
	out := make([]dr.RecoveryPoint, 0, n)
	for i := range n {
		if n > 100 && i > 90 && i < 98 { // an outage
			continue
		}
		at := now.Add(-40*time.Second - time.Duration(i)*every)
		c := dr.CrashConsistent
		if i%3 == 1 {
			c = dr.FileSystemConsistent
		}
		if i%12 == 5 {
			c = dr.AppConsistent
		}
		hour := at.Hour()
		dirty := int64(12<<20 + (i*7919%23)<<20)
		if hour >= 8 && hour <= 18 {
			dirty += int64(i*104729%61) << 21
		}
		out = append(out, dr.RecoveryPoint{Machine: "m", Gen: 1, N: uint64(n - i), Time: at, Consistency: c, DirtyBytes: dirty, DataBytes: dirty * 9 / 10, StoredBytes: dirty * 4 / 10})
	}
	return out
}

const evil = `<img src=x onerror=alert(1)>"'&{{`

// sites gives the fake two sites, three hosts and VMs.
func (f *fake) sites() *fake {
	now := f.now()
	a := dr.Fabric{ID: "0c6b7a52-aaaa", Name: "berlin", Type: dr.KVMSite, Created: now.Add(-40 * 24 * time.Hour)}
	b := dr.Fabric{ID: "0c6b7a52-bbbb", Name: "hamburg", Type: dr.KVMSite, Created: now.Add(-39 * 24 * time.Hour)}
	f.fabrics = []dr.Fabric{a, b}
	seen := now.Add(3 * time.Hour) // connected for the length of a test
	host := func(id, name string, fab dr.FabricID, role dr.AgentRole, at time.Time) dr.Provider {
		return dr.Provider{ID: dr.AgentID(id), Fabric: fab, Host: name, Roles: []dr.AgentRole{role}, Version: "1.0.0", Hypervisor: "QEMU 7.2.22, libvirt 9.0.0", Registered: now.Add(-39 * 24 * time.Hour), LastSeen: at}
	}
	f.hosts = []dr.Provider{host("h1", "kvm-berlin-01", a.ID, dr.RoleSource, seen), host("h2", "kvm-berlin-02", a.ID, dr.RoleSource, now.Add(-22*time.Minute)), host("h3", "kvm-recovery-01", b.ID, dr.RoleRecovery, seen)}
	for i, name := range []string{"web01", "db01", "mail01", "build07", "files02"} {
		vm := dr.VM{ID: dr.VMID(fmt.Sprintf("3f2b8a10-%04d", i)), Name: name, Fabric: a.ID, Agent: "h1", Running: i != 3, Generation: 1 + i%2, CPUs: 2 + 2*(i%3), MemoryMB: 4096, OSType: "Linux", Seen: now,
			Disks: []dr.Disk{{ID: "vda", Path: "/var/lib/libvirt/images/" + name + ".qcow2", Format: "qcow2", Size: 40 << 30, Boot: true}},
			NICs:  []dr.NIC{{ID: "n", MAC: "52:54:00:00:00:01", Network: "default", Type: "network"}}}
		if i%2 == 1 {
			vm.Disks = append(vm.Disks, dr.Disk{ID: "vdb", Path: "/var/lib/libvirt/images/" + name + "-data.qcow2", Format: "qcow2", Size: 200 << 30})
		}
		if name == "files02" {
			vm.Disks[0].Format, vm.Disks[0].Unreplicatable = "raw", "raw disks have no persistent change tracking"
		}
		f.vms = append(f.vms, vm)
	}
	f.policies = []dr.Policy{{ID: "4be1-pol", Name: "gold-5min", CopyFrequency: 5 * time.Minute, Retention: 24 * time.Hour, AppFrequency: time.Hour, Created: now.Add(-30 * 24 * time.Hour)}}
	f.maps = []dr.ContainerMapping{{Name: "m1", Fabric: a.ID, Policy: "4be1-pol", TargetFabric: b.ID}}
	f.nets = []vault.Network{
		{Network: vmm.Network{ID: "lan", Name: "lan"}, Fabric: a.ID, Type: "NoIsolation", Hosts: []string{"kvm-berlin-01", "kvm-berlin-02"}},
		{Network: vmm.Network{ID: "default", Name: "default"}, Fabric: a.ID, Type: "NoIsolation"},
		{Network: vmm.Network{ID: "lab", Name: "lab"}, Fabric: b.ID, Type: "Isolated", Hosts: []string{"kvm-recovery-01"}},
	}
	f.netMaps = []vault.NetworkMapping{{Fabric: a.ID, Network: "lan", Name: "m", TargetFabric: b.ID, Target: "lab"}}
	f.keys = []vault.RegistrationKey{{ID: "9a7c11e0-key", Fabric: a.ID, Created: now.Add(-39 * 24 * time.Hour), Expires: now.Add(-34 * 24 * time.Hour), Uses: 2, CreatedBy: "admin"}}
	return f
}

// add protects a VM in a state that change makes.
func (f *fake) add(vm int, change func(it *dr.ProtectedItem, st *dr.ReplicationStatus)) *dr.ProtectedItem {
	v, now := f.vms[vm], f.now()
	it := &dr.ProtectedItem{ID: dr.ItemID(fmt.Sprintf("77f0c3de-item-%d", vm)), Name: string(v.ID), Fabric: v.Fabric, VM: v.ID, VMName: v.Name, Policy: "4be1-pol", Machine: "m", Gen: 1, SourceAgent: v.Agent,
		RecoveryFabric: f.fabrics[1].ID, RecoveryAgent: "h3", Disks: []string{"vda"}, Protection: dr.Protected, Failover: dr.FailoverNone, Test: dr.TestNone, Active: dr.AtPrimary, Health: dr.HealthNormal, Created: now.Add(-20 * 24 * time.Hour)}
	f.points[it.ID] = somePoints(now, 5*time.Minute, 288)
	st := &dr.ReplicationStatus{Phase: "delta", LastPoint: f.points[it.ID][0].Time, LastCut: now, BacklogBytes: 3 << 20, At: now.Add(-6 * time.Second)}
	f.status[it.ID] = st
	f.items = append(f.items, it)
	if change != nil {
		change(it, st)
	}
	return it
}

// replicating adds to busyDay what the pages of replication show: a resynchronization
// that waits, an alarm, thinned-out, named and held points, upkeep, a group.
func (f *fake) replicating() *fake {
	t := f.now()
	db, mail := dr.ItemID("77f0c3de-item-1"), dr.ItemID("77f0c3de-item-2")
	f.policies[0].RetainHourly, f.policies[0].RetainDaily, f.policies[0].Retention = 72*time.Hour, 30*24*time.Hour, 24*time.Hour
	f.policies[0].Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 50 << 20}}
	for i := range 48 {
		f.points[db] = append(f.points[db], dr.RecoveryPoint{Machine: "m", Gen: 1, N: uint64(100 - i), Time: t.Add(-25*time.Hour - time.Duration(i)*time.Hour), Consistency: dr.AppConsistent, DirtyBytes: 300 << 20, StoredBytes: 90 << 20})
	}
	for i := range 26 {
		f.points[db] = append(f.points[db], dr.RecoveryPoint{Machine: "m", Gen: 1, N: uint64(40 - i), Time: t.Add(-73*time.Hour - time.Duration(i)*24*time.Hour), Consistency: dr.AppConsistent, DirtyBytes: 2 << 30, StoredBytes: 700 << 20})
	}
	for i := range f.points[db] {
		f.points[db][i].N = uint64(len(f.points[db]) - i)
	}
	f.labels[string(db)+f.points[db][300].Name()] = vault.PointDetail{Label: "before the upgrade to 16", Held: true, By: "olaf"}
	f.labels[string(db)+f.points[db][7].Name()] = vault.PointDetail{Label: "month's end", By: "olaf"}
	st := f.status[db]
	st.Converging, st.BacklogRate, st.ShipRate, st.BacklogBytes, st.BacklogSeconds = dr.Converging, 1700<<10, 9<<20, 412<<20, 47*time.Second
	for _, it := range f.items {
		switch it.ID {
		case db:
			it.Resync = "the host crashed while the VM was running"
			f.upkeep[db] = vault.UpkeepStatus{Points: len(f.points[db]), StoredBytes: 60 << 30, Objects: 4182, Bytes: 71 << 30, Pending: 38, LastPass: t.Add(-12 * time.Minute), Expired: 11, FreedBytes: 830 << 20,
				LastScrub: t.Add(-2 * 24 * time.Hour), ScrubObjects: 4100, ScrubBytes: 70 << 30, NextScrub: t.Add(5 * 24 * time.Hour)}
		case mail:
			it.Disks = []string{"vda"}
			f.upkeep[mail] = vault.UpkeepStatus{Points: 288, Objects: 900, Bytes: 12 << 30, LastPass: t.Add(-20 * time.Minute), LastScrub: t.Add(-time.Hour), NextScrub: t.Add(7 * 24 * time.Hour),
				Damaged: []vault.Damage{{Point: f.points[mail][9].Name(), Time: f.points[mail][9].Time, Text: "part/00000001/000000000000010e-0003 does not verify"}}}
		}
	}
	*f.detailOf(db) = vault.Detail{ResyncCode: dr.CodeHostCrash, ResyncText: "the host crashed while the VM was running", NextResync: t.Add(4 * time.Hour), NewDisks: []string{"vdb"},
		Statistics: vault.Statistics{Start: t.Add(-9 * time.Hour), Success: 107, Miss: 2, Bytes: 4 << 30, MaxBytes: 210 << 20, Latency: 107 * 6 * time.Second, MaxLatency: 48 * time.Second, NetworkFailures: 3, Puts: 214}}
	*f.detailOf(mail) = vault.Detail{Anomaly: &vault.Anomaly{Since: f.points[mail][5].Name(), SinceTime: f.points[mail][5].Time, Good: f.points[mail][6].Name(), GoodTime: f.points[mail][6].Time,
		Why: "11.2 GiB in 6 cycles can't be compressed (97 %); usually it is 4 % of 40 MiB", Raised: t.Add(-25 * time.Minute)}}
	f.groups = []dr.ConsistencyGroup{{ID: "c0ffee00-group", Name: "web shop", Fabric: f.fabrics[0].ID, Items: []dr.ItemID{db, mail}}}
	f.happened(db, "resync", "", "db01: a resynchronization is necessary: the host crashed while the VM was running", t.Add(-50*time.Minute))
	f.happened(db, "pause", "olaf", "replication of db01 is paused until 2026-11-22 18:00 UTC: storage maintenance", t.Add(-40*time.Minute))
	f.happened(db, "pause", "olaf", "replication of db01 goes on", t.Add(-20*time.Minute))
	return f
}

// busyDay is a vault with one item of each sort.
func busyDay(now func() time.Time) *fake {
	f := newFake(now).sites()
	t := now()
	db := f.add(1, func(it *dr.ProtectedItem, _ *dr.ReplicationStatus) { it.LastTest = t.Add(-9 * 24 * time.Hour) })
	f.jobs = append(f.jobs, &fakeJob{Job: dr.Job{ID: "018f-drill", Scenario: "TestFailover", Title: "Test failover", TargetName: "db01", Item: db.ID, State: dr.JobSucceeded, By: "olaf",
		Created: t.Add(-9 * 24 * time.Hour), Started: t.Add(-9 * 24 * time.Hour), Ended: t.Add(-9*24*time.Hour + 19400*time.Millisecond),
		Tasks:   []dr.Task{{Name: "VerifyBoot", Title: "Wait for a sign of life", State: dr.JobSucceeded, Attempt: 1, Started: t.Add(-9 * 24 * time.Hour), Ended: t.Add(-9*24*time.Hour + 11*time.Second)}},
		Outcome: map[string]string{"screenshot": "018f-drill", "console": consoleText, "rtoSeconds": "19.4", "bootVerified": "true"}}})
	b, _ := json.Marshal(drill{OK: true, Job: "018f-drill", Point: db.Name, BootSecs: 11.2, RTOSecs: 19.4, Matched: "login:", Console: consoleText, Screenshot: "018f-drill", At: t.Add(-9 * 24 * time.Hour)})
	db.LastTestReport = string(b)
	f.add(2, func(it *dr.ProtectedItem, st *dr.ReplicationStatus) {
		it.Health, st.LastPoint = dr.HealthCritical, t.Add(-95*time.Minute)
		it.HealthErrors = []dr.HealthError{{Code: dr.CodeSpoolFull, Severity: dr.HealthCritical, Message: "the spool of host kvm-berlin-01 is full (20 GiB)", Since: t.Add(-90 * time.Minute)}}
	})
	f.jobs = append(f.jobs, failedJob(t))
	return f
}

func failedJob(t time.Time) *fakeJob {
	return &fakeJob{Job: dr.Job{ID: "018f-failed", Scenario: "EnableDr", Title: "Enable protection", TargetName: "files02", State: dr.JobFailed, By: "carla", Created: t.Add(-2 * time.Hour), Started: t.Add(-2 * time.Hour),
		Ended: t.Add(-2*time.Hour + 4*time.Second), CanRestart: true, Outcome: map[string]string{},
		Tasks: []dr.Task{{Name: "PrerequisitesCheck", Title: "Check prerequisites", State: dr.JobFailed, Attempt: 2, Started: t.Add(-2 * time.Hour), Ended: t.Add(-2*time.Hour + 4*time.Second)},
			{Name: "CreateReplicationRelationship", Title: "Create the replication relationship", State: dr.JobNotStarted}},
		Errors: []dr.JobError{{Task: "PrerequisitesCheck", Code: dr.CodeDiskNotTrackable, Message: "files02 can't be protected: vda: raw disks have no persistent change tracking", At: t.Add(-2 * time.Hour)},
			{Task: "PrerequisitesCheck", Code: dr.CodeDiskNotTrackable, Message: "files02 can't be protected: vda: raw disks have no persistent change tracking", At: t.Add(-2 * time.Hour)}}}}
}
