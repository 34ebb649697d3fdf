package main

import (
	"encoding/json"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

func TestNetworks(t *testing.T) {
	f := fakeVault(t, dr.RoleOwner)
	must(t, "site", "create", "vmm01", "--type", "vmm")
	f.SetVMM("vmm01", vmm.Snapshot{Version: 1, Server: vmm.Server{Name: "vmm01.corp.example", Product: "10.22"}, Clouds: []vmm.Cloud{{ID: "ca", Name: "Gold"}, {ID: "cb", Name: "Silver"}},
		Hosts:      []vmm.Host{{ID: "h1", Name: "hv1.corp.example"}},
		VMNetworks: []vmm.VMNetwork{{ID: "e2267b5c-2650-49bd-ab3f-d66aae694c06", Name: "corp net", Isolation: "NoIsolation", Subnets: []vmm.Subnet{{Name: "web"}}}},
		VMs:        []vmm.VM{{ID: "3f2b8a10-3333-4333-8333-000000000001", Name: "gold01", Cloud: "ca"}}}, "7d3a1c11-1111-4111-8111-000000000001")
	if out := must(t, "site", "show", "vmm01"); !strings.Contains(out, "Gold, Silver") || !strings.Contains(out, "hv1.corp.example") || !strings.Contains(out, "vmm01.corp.example 10.22") {
		t.Errorf("site show:\n%s", out)
	}
	if out := must(t, "vm", "list"); !strings.Contains(out, "gold01") || !strings.Contains(out, "web01") {
		t.Errorf("vm list with a VMM server:\n%s", out)
	}
	var nets []struct{ ID, Name, Site string }
	if err := json.Unmarshal([]byte(must(t, "network", "list", "--site", "vmm01", "-o", "json")), &nets); err != nil || len(nets) != 1 || nets[0].Name != "corp net" || nets[0].Site != "vmm01" {
		t.Errorf("network list: %+v, %v", nets, err)
	}
	must(t, "network", "mapping", "create", "--from", "vmm01/corp net", "--to", "site-b/lab", "--name", "m1")
	if out := must(t, "network", "mapping", "list"); !strings.Contains(out, "vmm01/corp net") || !strings.Contains(out, "site-b/lab") {
		t.Errorf("network mapping list:\n%s", out)
	}
	for _, args := range [][]string{{"--from", "corp", "--to", "site-b/lab"}, {"--from", "vmm01/nope", "--to", "site-b/lab"}, {"--from", "vmm01/corp net", "--to", "site-b/default"}, {"--from", "vmm01/corp net"}} {
		if r := cli(t, append([]string{"network", "mapping", "create"}, args...)...); r.code == 0 {
			t.Errorf("%q went well:\n%s", args, r.out)
		}
	}
	must(t, "network", "mapping", "delete", "m1", "--yes")
	if out := must(t, "network", "mapping", "list", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("after delete: %s", out)
	}
	// A cloud is named where a site has several.
	must(t, "policy", "create", "gold")
	if r := cli(t, "mapping", "create", "--site", "vmm01", "--to", "site-b", "--policy", "gold"); r.code == 0 || !strings.Contains(r.err, "vmm01/Silver") {
		t.Errorf("a site with two clouds: %d %s", r.code, r.err)
	}
	must(t, "mapping", "create", "--site", "vmm01/Gold", "--to", "site-b", "--policy", "gold")
}
