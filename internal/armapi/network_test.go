package armapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

const (
	vmmSite  = "/replicationFabrics/vmm01"
	cloudOne = "c1000000-0000-4000-8000-00000000000a"
	cloudTwo = "c1000000-0000-4000-8000-00000000000b"
	corpNet  = "e2267b5c-2650-49bd-ab3f-d66aae694c06"
	inCloud  = vmmSite + "/replicationProtectionContainers/cloud_" + cloudOne
	inOther  = vmmSite + "/replicationProtectionContainers/cloud_" + cloudTwo
	corp     = vmmSite + "/replicationNetworks/" + corpNet
	fast     = vmmSite + "/replicationStorageClassifications/8891569e-aaef-4a46-a4a0-78c14f2d7b09"
	vmGold   = "3f2b8a10-3333-4333-8333-000000000001"
)

func managed() vmm.Snapshot {
	return vmm.Snapshot{Version: 1, Server: vmm.Server{Name: "vmm01.corp.example", Product: "10.22.1287.0"},
		Clouds: []vmm.Cloud{{ID: cloudOne, Name: "Gold"}, {ID: cloudTwo, Name: "Silver"}},
		Hosts:  []vmm.Host{{ID: "h1", Name: "hv1.corp.example", Cluster: "clu1", OS: "Microsoft Windows Server 2022"}, {ID: "h2", Name: "hv2.corp.example"}},
		LogicalNetworks: []vmm.LogicalNetwork{{ID: "87ab394f-165f-4aa9-bd84-b018500b4509", Name: "corp"},
			{ID: "97ab394f-165f-4aa9-bd84-b018500b4509", Name: "tenants", Virtualized: true, Isolated: true}},
		VMNetworks: []vmm.VMNetwork{{ID: corpNet, Name: "corp", Isolation: "NoIsolation", Subnets: []vmm.Subnet{{Name: "web", CIDRs: []string{"192.0.2.0/24"}}, {Name: "app"}}},
			{ID: "93ce99d7-1219-4914-aa61-73fe5023988e", Name: "VSwitch_VLan", Isolation: "VLANNetwork"}},
		StorageClassifications: []vmm.StorageClassification{{ID: "8891569e-aaef-4a46-a4a0-78c14f2d7b09", Name: "fast"}},
		VMs:                    []vmm.VM{{ID: vmGold, Name: "gold01", Cloud: cloudOne}, {ID: "3f2b8a10-3333-4333-8333-000000000002", Name: "silver01", Cloud: cloudTwo}}}
}

// vmmRig is a rig with a VMM server beside the two sites.
func vmmRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	a := r.ok("PUT", vmmSite, `{"properties":{"customDetails":{"instanceType":"VMM"}}}`)
	if a.at("properties.customDetails.instanceType") != "VMM" || a.at("properties.customDetails.hyperVHosts") != nil {
		t.Fatalf("a VMM fabric: %s", a.Body)
	}
	r.fake.SetVMM("vmm01", managed(), "7d3a1c11-1111-4111-8111-000000000001")
	return r
}

func (r *rig) names(path string) []string {
	r.t.Helper()
	out := []string{}
	for _, x := range r.want(r.do("GET", path, ""), 200, path).json["value"].([]any) {
		out = append(out, fmt.Sprint(x.(map[string]any)["name"]))
	}
	return out
}

func TestNetworkGolden(t *testing.T) {
	t.Parallel()
	r := vmmRig(t)
	r.ok("PUT", corp+"/replicationNetworkMappings/corpe2amap", `{"properties":{"recoveryFabricName":"Microsoft Azure","recoveryNetworkId":"/subscriptions/c183865e-6077-46f2-a3b1-deb0f4f4650a/resourceGroups/siterecoveryProd1/providers/Microsoft.Network/virtualNetworks/vnetavrai","fabricSpecificDetails":{"instanceType":"VmmToAzure"}}}`)
	r.ok("PUT", siteA+"/replicationNetworks/default/replicationNetworkMappings/lan", fmt.Sprintf(`{"properties":{"recoveryNetworkId":%q,"fabricSpecificDetails":{"instanceType":"VmmToVmm"}}}`, r.vault()+"/replicationFabrics/SITE-B/replicationNetworks/lab"))
	r.ok("PUT", fast+"/replicationStorageClassificationMappings/testStorageMapping", fmt.Sprintf(`{"properties":{"targetStorageClassificationId":%q}}`, r.vault()+fast))
	for name, path := range map[string]string{
		"vmm-fabric": vmmSite, "vmm-container": inCloud, "vmm-protectable-item": inCloud + "/replicationProtectableItems/" + vmGold, "network": corp,
		"site-network": siteA + "/replicationNetworks/lab", "network-mapping": corp + "/replicationNetworkMappings/CORPE2AMAP",
		"site-network-mapping": siteA + "/replicationNetworks/default/replicationNetworkMappings/lan", "logical-network": vmmSite + "/replicationLogicalNetworks/97ab394f-165f-4aa9-bd84-b018500b4509",
		"storage-classification": fast, "storage-mapping": fast + "/replicationStorageClassificationMappings/testStorageMapping",
	} {
		t.Run(name, func(t *testing.T) {
			a := r.want(r.do("GET", path, ""), 200, path)
			var buf bytes.Buffer
			if err := json.Indent(&buf, a.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			buf.WriteByte('\n')
			file := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf.Bytes(), want) {
				t.Errorf("differs from %s (rewrite with -update and look at the difference):\n%s", file, buf.String())
			}
		})
	}
}

// TestNetworkFields holds the answers to the fields of the published
// specification (2025-01-01): none is missing, and what it does not know is ours.
func TestNetworkFields(t *testing.T) {
	t.Parallel()
	for file, fields := range map[string][]string{
		"network":                {"fabricType", "friendlyName", "networkType", "subnets"},
		"network-mapping":        {"fabricSpecificSettings", "primaryFabricFriendlyName", "primaryNetworkFriendlyName", "primaryNetworkId", "recoveryFabricArmId", "recoveryFabricFriendlyName", "recoveryNetworkFriendlyName", "recoveryNetworkId", "state"},
		"logical-network":        {"friendlyName", "logicalNetworkDefinitionsStatus", "logicalNetworkUsage", "networkVirtualizationStatus"},
		"storage-classification": {"friendlyName"},
		"storage-mapping":        {"targetStorageClassificationId"},
	} {
		b, err := os.ReadFile(filepath.Join("testdata", file+".golden.json"))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			ID, Name, Type string
			Properties     map[string]any
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		for _, f := range fields {
			if _, ok := got.Properties[f]; !ok {
				t.Errorf("%s lacks %s", file, f)
			}
		}
		for f := range got.Properties {
			if !slices.Contains(fields, f) && !strings.HasPrefix(f, "holdfast") {
				t.Errorf("%s has %s, which the specification does not know", file, f)
			}
		}
		if got.ID == "" || got.Name == "" || !strings.HasPrefix(got.Type, "Microsoft.RecoveryServices/vaults/replicationFabrics/") {
			t.Errorf("%s: id %q, name %q, type %q", file, got.ID, got.Name, got.Type)
		}
	}
}

func TestVMMContainers(t *testing.T) {
	t.Parallel()
	r := vmmRig(t)
	if got := r.names(vmmSite + "/replicationProtectionContainers"); !slices.Equal(got, []string{"cloud_" + cloudOne, "cloud_" + cloudTwo}) {
		t.Errorf("containers %v", got)
	}
	if got := r.names("/replicationProtectionContainers"); len(got) != 4 {
		t.Errorf("containers of all sites %v", got)
	}
	if got := r.names(inOther + "/replicationProtectableItems"); !slices.Equal(got, []string{"3f2b8a10-3333-4333-8333-000000000002"}) {
		t.Errorf("VMs of a cloud %v", got)
	}
	r.want(r.do("GET", vmmSite+"/replicationProtectionContainers/cloud_nope", ""), 404, "a cloud that does not exist")

	r.ok("PUT", "/replicationPolicies/gold", `{"properties":{"providerSpecificInput":{"instanceType":"HyperVReplicaAzure"}}}`)
	m := r.ok("PUT", inCloud+"/replicationProtectionContainerMappings/map", fmt.Sprintf(`{"properties":{"policyId":%q,"targetProtectionContainerId":%q,"providerSpecificInput":{}}}`, r.vault()+"/replicationPolicies/gold", r.vault()+contB))
	if id := m.at("id"); id != r.vault()+inCloud+"/replicationProtectionContainerMappings/map" {
		t.Errorf("id of the mapping %v", id)
	}
	r.want(r.do("GET", inOther+"/replicationProtectionContainerMappings/map", ""), 404, "the mapping of another cloud")
	if got := r.names(inOther + "/replicationProtectionContainerMappings"); len(got) != 0 {
		t.Errorf("mappings of another cloud %v", got)
	}
	if a, b := r.do("GET", inCloud, "").at("properties.pairingStatus"), r.do("GET", inOther, "").at("properties.pairingStatus"); a != "Paired" || b != "NotPaired" {
		t.Errorf("pairing %v, %v", a, b)
	}
	it := r.ok("PUT", inCloud+"/replicationProtectedItems/"+vmGold, fmt.Sprintf(`{"properties":{"policyId":%q,"protectableItemId":%q,"providerSpecificDetails":{"instanceType":"HyperVReplicaAzure"}}}`,
		r.vault()+"/replicationPolicies/gold", r.vault()+inCloud+"/replicationProtectableItems/"+vmGold))
	if it.at("id") != r.vault()+inCloud+"/replicationProtectedItems/"+vmGold || it.at("properties.primaryProtectionContainerFriendlyName") != "Gold" ||
		it.at("properties.protectableItemId") != r.vault()+inCloud+"/replicationProtectableItems/"+vmGold {
		t.Errorf("the item: %s", it.Body)
	}
	if a, b := r.names(inCloud+"/replicationProtectedItems"), r.names(inOther+"/replicationProtectedItems"); len(a) != 1 || len(b) != 0 {
		t.Errorf("items of the clouds %v, %v", a, b)
	}

	// The VM moves to the other cloud. Its id follows, and the former one is still understood.
	s := managed()
	s.VMs[0].Cloud = cloudTwo
	r.fake.SetVMM("vmm01", s, "")
	for _, path := range []string{inCloud, inOther} {
		if a := r.want(r.do("GET", path+"/replicationProtectedItems/"+vmGold, ""), 200, path); a.at("id") != r.vault()+inOther+"/replicationProtectedItems/"+vmGold {
			t.Errorf("after the move, asked by %s: %v", path, a.at("id"))
		}
	}
	if a, b := r.names(inCloud+"/replicationProtectedItems"), r.names(inOther+"/replicationProtectedItems"); len(a) != 0 || len(b) != 1 {
		t.Errorf("after the move: items of the clouds %v, %v", a, b)
	}
	if n := r.do("GET", inOther, "").at("properties.protectedItemCount"); n != float64(1) {
		t.Errorf("after the move the container counts %v items", n)
	}
	// And out of every cloud: into the server's own container, which shows up then.
	s.VMs[0].Cloud = ""
	f := r.fake.SetVMM("vmm01", s, "")
	if got := r.names(vmmSite + "/replicationProtectionContainers"); len(got) != 3 || got[2] != f.ContainerName() {
		t.Errorf("containers with a VM in no cloud %v", got)
	}
}

func TestNetworkMappingLife(t *testing.T) {
	t.Parallel()
	r := vmmRig(t)
	path := corp + "/replicationNetworkMappings/m1"
	toSite := fmt.Sprintf(`{"properties":{"recoveryFabricName":"site-b","recoveryNetworkId":%q,"fabricSpecificDetails":{"instanceType":"VmmToVmm"}}}`, r.vault()+"/replicationFabrics/site-b/replicationNetworks/default")
	a := r.ok("PUT", path, toSite)
	if a.at("properties.state") != "Paired" || a.at("properties.recoveryNetworkFriendlyName") != "default" || a.at("properties.recoveryFabricFriendlyName") != "site-b" || a.at("properties.primaryNetworkFriendlyName") != "corp" {
		t.Errorf("mapping %s", a.Body)
	}
	r.ok("PUT", path, toSite) // a lost answer
	r.want(r.do("PUT", corp+"/replicationNetworkMappings/m2", toSite), 409, "a second mapping to the site")
	if a = r.ok("PATCH", path, `{"properties":{"recoveryNetworkId":"lab"}}`); a.at("properties.recoveryNetworkFriendlyName") != "lab" || a.at("properties.recoveryFabricFriendlyName") != "site-b" {
		t.Errorf("changed %s", a.Body)
	}
	for list, want := range map[string]int{corp + "/replicationNetworkMappings": 1, "/replicationNetworkMappings": 1, siteA + "/replicationNetworks/default/replicationNetworkMappings": 0} {
		if got := r.names(list); len(got) != want {
			t.Errorf("%s: %v", list, got)
		}
	}
	if got := r.names("/replicationNetworks"); len(got) != 6 {
		t.Errorf("networks of all sites %v", got)
	}
	if got := r.names(vmmSite + "/replicationLogicalNetworks"); len(got) != 2 {
		t.Errorf("logical networks %v", got)
	}
	if got := r.names("/replicationStorageClassifications"); len(got) != 1 {
		t.Errorf("storage classifications %v", got)
	}
	if a := r.ok("DELETE", path, ""); a.Code != 204 {
		t.Errorf("result of DELETE: %d", a.Code)
	}
	r.want(r.do("DELETE", path, ""), 204, "DELETE of what is gone")
	r.want(r.do("GET", path, ""), 404, "a removed mapping")

	sm := fast + "/replicationStorageClassificationMappings/s1"
	r.ok("PUT", sm, fmt.Sprintf(`{"properties":{"targetStorageClassificationId":%q}}`, r.vault()+fast))
	if got := r.names("/replicationStorageClassificationMappings"); len(got) != 1 {
		t.Errorf("storage mappings %v", got)
	}
	r.ok("DELETE", sm, "")
	r.want(r.do("GET", sm, ""), 404, "a removed storage mapping")

	for _, c := range []struct {
		what, method, path, body string
		role                     dr.Role
		status                   int
	}{
		{"no target", "PUT", path, `{"properties":{"recoveryFabricName":"site-b"}}`, dr.RoleOwner, 400},
		{"a name without a site", "PUT", path, `{"properties":{"recoveryNetworkId":"lab"}}`, dr.RoleOwner, 400},
		{"another site than the id's", "PUT", path, strings.Replace(toSite, `"site-b"`, `"site-a"`, 1), dr.RoleOwner, 400},
		{"no such site", "PUT", path, `{"properties":{"recoveryFabricName":"nope","recoveryNetworkId":"lab"}}`, dr.RoleOwner, 400},
		{"no such network", "PUT", path, `{"properties":{"recoveryFabricName":"site-b","recoveryNetworkId":"nope"}}`, dr.RoleOwner, 400},
		{"another instance type", "PUT", path, `{"properties":{"recoveryFabricName":"site-b","recoveryNetworkId":"lab","fabricSpecificDetails":{"instanceType":"AzureToAzure"}}}`, dr.RoleOwner, 400},
		{"of a network that is not there", "PUT", vmmSite + "/replicationNetworks/nope/replicationNetworkMappings/x", toSite, dr.RoleOwner, 404},
		{"list of a network that is not there", "GET", vmmSite + "/replicationNetworks/nope/replicationNetworkMappings", "", dr.RoleReader, 404},
		{"by an operator", "PUT", path, toSite, dr.RoleOperator, 403},
		{"a storage target that is no id", "PUT", sm, `{"properties":{"targetStorageClassificationId":"fast"}}`, dr.RoleOwner, 400},
		{"no storage target", "PUT", sm, `{"properties":{}}`, dr.RoleOwner, 400},
		{"change of a mapping that is not there", "PATCH", path, `{"properties":{}}`, dr.RoleOwner, 404},
	} {
		if a := r.as(c.role, c.method, c.path, c.body); a.Code != c.status || a.at("error.message") == nil {
			t.Errorf("%s: %d %s, want %d", c.what, a.Code, a.Body, c.status)
		}
	}
}

func TestDiscoverProtectableItem(t *testing.T) {
	t.Parallel()
	r := vmmRig(t)
	for _, c := range []string{inCloud, contA} {
		a := r.ok("POST", c+"/discoverProtectableItem", `{"properties":{"friendlyName":"web01"}}`)
		if a.at("id") != r.vault()+c {
			t.Errorf("the result of discovering in %s: %s", c, a.Body)
		}
	}
	if a := r.do("POST", inCloud+"/discoverProtectableItem", `{"properties":{"friendlyName":"Test","ipAddress":"10.150.2.3","osType":"Windows"}}`); a.Code != 400 || a.at("error.code") != "NotSupported" {
		t.Errorf("a physical machine: %d %s", a.Code, a.Body)
	}
	r.want(r.do("POST", vmmSite+"/replicationProtectionContainers/cloud_x/discoverProtectableItem", ""), 404, "no such container")
	if a := r.as(dr.RoleReader, "POST", inCloud+"/discoverProtectableItem", "{}"); a.Code != 403 {
		t.Errorf("by a reader: %d", a.Code)
	}
}
