package vaultdb_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
	"holdfast/internal/vaultdb"
	"holdfast/internal/vmm"
)

func snapshot() vmm.Snapshot {
	return vmm.Snapshot{Version: 1, Server: vmm.Server{Name: "vmm01", Product: "10.22"}, Warnings: []string{"w"},
		Clouds: []vmm.Cloud{{ID: "ca", Name: "Gold", HostGroups: []string{`All Hosts\A`}}, {ID: "cb", Name: "Silver"}},
		Hosts:  []vmm.Host{{ID: "h1", Name: "hv1", Cluster: "c", OS: "o", HostGroup: `All Hosts\A`, Clouds: []string{"ca"}, Switches: []vmm.Switch{{Name: "s", LogicalNetworks: []string{"l1"}}}}},
		LogicalNetworks: []vmm.LogicalNetwork{{ID: "l1", Name: "corp", Description: "d", Virtualized: true, Isolated: true,
			Definitions: []vmm.Definition{{ID: "d1", Name: "corp_0", Subnets: []vmm.SubnetVLAN{{Subnet: "192.0.2.0/24", VLAN: 7}}, HostGroups: []string{"All Hosts"}}}}},
		VMNetworks:             []vmm.VMNetwork{{ID: "n1", Name: "corp", LogicalNetwork: "l1", Isolation: "NoIsolation", Subnets: []vmm.Subnet{{ID: "s1", Name: "web", CIDRs: []string{"192.0.2.0/24"}, VLAN: 3}}}},
		StorageClassifications: []vmm.StorageClassification{{ID: "st1", Name: "fast"}},
		VMs: []vmm.VM{{ID: "vm1", VMMID: "b1", Name: "web1", Cloud: "ca", Host: "hv1", Adapters: []vmm.NIC{{ID: "a", MAC: "00:15:5D:01:02:03", VMNetwork: "n1", VMSubnet: "web", VLAN: 3}}},
			{ID: "vm2", Name: "web2", Host: "hv1"}}}
}

func TestVMM(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		check(t, db.Tx(ctx, func(tx *sql.Tx) error {
			if s, err := vaultdb.VMM(ctx, tx, "f1"); err != nil || s.Version != 0 {
				t.Errorf("before any report: %+v, %v", s, err)
			}
			for i, want := range []bool{true, false} {
				changed, moved, err := vaultdb.SaveVMM(ctx, tx, "f1", snapshot())
				if err != nil || changed != want || len(moved) != 0 {
					t.Errorf("report %d: changed %v, moved %v, %v", i, changed, moved, err)
				}
			}
			got, err := vaultdb.VMM(ctx, tx, "f1")
			check(t, err)
			want := snapshot()
			want.VMs = nil
			same(t, "snapshot", got, want)
			places, err := vaultdb.Places(ctx, tx, "f1")
			check(t, err)
			same(t, "places", places, snapshot().VMs)
			byID, err := vaultdb.PlacesByID(ctx, tx, "f1")
			check(t, err)
			same(t, "clouds of VMs", byID, map[dr.VMID]string{"vm1": "ca", "vm2": ""})
			place, err := vaultdb.Place(ctx, tx, "f1", "VM1")
			check(t, err)
			same(t, "place", place, snapshot().VMs[0])
			_, err = vaultdb.Place(ctx, tx, "f2", "vm1")
			wantKind(t, "a VM of another fabric", err, dr.KindNotFound)

			// A VM of a host has the cloud that VMM knows, whatever its host says.
			for _, vm := range []dr.VM{{ID: "vm1", Name: "web1", Fabric: "f1", Agent: "a1", Seen: t0}, {ID: "vm1", Name: "web1", Fabric: "f2", Agent: "a2", Seen: t0, Facts: dr.VMFacts{Cloud: "own"}}} {
				check(t, vaultdb.SaveVM(ctx, tx, vm))
			}
			for f, cloud := range map[dr.FabricID]string{"f1": "ca", "f2": "own"} {
				if vm, err := vaultdb.VM(ctx, tx, f, "vm1"); err != nil || vm.Facts.Cloud != cloud {
					t.Errorf("VM of %s is in cloud %q, %v", f, vm.Facts.Cloud, err)
				}
			}
			s := snapshot()
			s.VMs = []vmm.VM{{ID: "vm1", Name: "web1", Cloud: "cb"}}
			s.Clouds = s.Clouds[1:]
			changed, moved, err := vaultdb.SaveVMM(ctx, tx, "f1", s)
			check(t, err)
			same(t, "moved", moved, map[dr.VMID][2]string{"vm1": {"ca", "cb"}})
			clouds, err := vaultdb.Clouds(ctx, tx, "f1")
			check(t, err)
			if vms, err := vaultdb.VMs(ctx, tx, "f1"); !changed || len(clouds) != 1 || err != nil || vms[0].Facts.Cloud != "cb" {
				t.Errorf("after the change: %v, %+v, %v", clouds, vms, err)
			}
			return nil
		}))
	})
}

func TestNetworkMappings(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, db *sqldb.DB) {
		seed(t, ctx, db)
		m := vaultdb.NetworkMapping{Fabric: "f1", Network: "n1", Name: "Corp", TargetFabric: "f2", Target: "t1", Created: t0}
		cloud := vaultdb.NetworkMapping{Fabric: "f1", Network: "n1", Name: "cloud", Target: "/subscriptions/x", Created: t0.Add(time.Hour)}
		st := vaultdb.StorageMapping{Fabric: "f1", Classification: "st1", Name: "Fast", TargetFabric: "f2", Target: "st2", Created: t0}
		for _, x := range []vaultdb.NetworkMapping{m, cloud} {
			check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.InsertNetworkMapping(ctx, tx, x) }))
		}
		check(t, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.InsertStorageMapping(ctx, tx, st) }))
		for name, x := range map[string]vaultdb.NetworkMapping{"the same name": {Fabric: "f1", Network: "N1", Name: "CORP", TargetFabric: "f1", Target: "x"},
			"the same target site": {Fabric: "f1", Network: "n1", Name: "other", TargetFabric: "f2", Target: "x"}} {
			wantKind(t, name, db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.InsertNetworkMapping(ctx, tx, x) }), dr.KindConflict)
		}
		wantKind(t, "storage mapping of the same name", db.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.InsertStorageMapping(ctx, tx, st) }), dr.KindConflict)
		check(t, db.Tx(ctx, func(tx *sql.Tx) error {
			all, err := vaultdb.NetworkMappings(ctx, tx, "")
			check(t, err)
			same(t, "mappings", all, []vaultdb.NetworkMapping{cloud, m})
			labels, err := vaultdb.StorageMappings(ctx, tx, "f1")
			check(t, err)
			same(t, "storage mappings", labels, []vaultdb.StorageMapping{st})
			if none, err := vaultdb.NetworkMappings(ctx, tx, "f2"); err != nil || len(none) != 0 {
				t.Errorf("of the target: %v, %v", none, err)
			}
			m.Target = "t2"
			check(t, vaultdb.UpdateNetworkMapping(ctx, tx, m))
			all, err = vaultdb.NetworkMappings(ctx, tx, "f1")
			check(t, err)
			same(t, "changed", all[1], m)
			wantKind(t, "change of one that is not there", vaultdb.UpdateNetworkMapping(ctx, tx, vaultdb.NetworkMapping{Fabric: "f1", Network: "n1", Name: "no"}), dr.KindNotFound)
			check(t, vaultdb.DeleteNetworkMapping(ctx, tx, "f1", "N1", "corp"))
			wantKind(t, "removal twice", vaultdb.DeleteNetworkMapping(ctx, tx, "f1", "n1", "corp"), dr.KindNotFound)
			check(t, vaultdb.DeleteStorageMapping(ctx, tx, "f1", "st1", "fast"))
			wantKind(t, "removal twice", vaultdb.DeleteStorageMapping(ctx, tx, "f1", "st1", "fast"), dr.KindNotFound)

			// Container mappings remember their container; a fabric goes with all of it.
			cm := dr.ContainerMapping{Name: "map", Fabric: "f2", Policy: "p1", Target: "x", TargetFabric: "f1", Container: "cloud_ca", Created: t0}
			check(t, vaultdb.InsertMapping(ctx, tx, cm))
			back, err := vaultdb.Mapping(ctx, tx, "f2", "MAP")
			check(t, err)
			same(t, "container mapping", back, cm)
			check(t, vaultdb.DeleteMapping(ctx, tx, "f2", "map"))
			_, _, err = vaultdb.SaveVMM(ctx, tx, "f2", snapshot())
			check(t, err)
			check(t, vaultdb.InsertNetworkMapping(ctx, tx, m))
			check(t, vaultdb.DeleteFabric(ctx, tx, "f2"))
			left, err := vaultdb.NetworkMappings(ctx, tx, "")
			check(t, err)
			same(t, "what leads nowhere is gone", left, []vaultdb.NetworkMapping{cloud})
			return nil
		}))
	})
}
