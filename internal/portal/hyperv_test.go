package portal

import (
	"encoding/csv"
	"encoding/json"
	"html"
	"net/url"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/readiness"
)

// TestHyperVPages: what the estate of a Hyper-V shop looks like is on the pages, in words.
func TestHyperVPages(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed()).hyperv()).as("admin")
	const scvmm = "/portal/sites/vmm01.contoso.com"
	for path, want := range map[string][]string{
		"/portal/sites":        {"KVM site", "Hyper-V site", "VMM server", "KVM QEMU 7.2.22, libvirt 9.0.0", "Hyper-V Windows Server 2022 Datacenter 10.0.20348", "VMM Virtual Machine Manager 10.22.1287.0"},
		scvmm:                  {">Hyper-V<", ">VMM<", "Windows Server 2022 Datacenter 10.0.20348", "Gold", `All Hosts\Berlin`, "cloud_8d2c0000-0000-4000-8000-00000000c001", "SSD mirrored", "access is denied", "In no cloud", "--role vmm", "readiness", "/networks"},
		"/portal/sites/berlin": {">KVM<", "QEMU 7.2.22, libvirt 9.0.0"},
		"/portal/vms/vmm01.contoso.com/5d0a7c11-0000/enable": {"Windows Server 2022 Datacenter", "10.0.20348", "UEFI, secure boot on", "Configuration version", "Integration services", "Possible", "Clustered", "Gold", "dynamic memory", "dc01.vhdx",
			"SCSI, slot 0 · VHDX dynamic · 512-byte sectors · 41 GiB on the host", "00:15:5D:01:02:03", "110", "10.1.4.17"},
		"/portal/vms/vmm01.contoso.com/5d0a7c11-0001/enable": {"Degraded", "Not possible now", "no contact", "the replica has the current state", "chain of 3 files", "is shared with other VMs", "is a VHD", "Convert-VHD", "Way out:"},
		"/portal/vms/vmm01.contoso.com/5d0a7c11-0002/enable": {"BIOS", "Replicated by Hyper-V Replica", "In no cloud", "The configuration has version 5.0, change tracking needs 6.2", "Update-VMVersion"},
		"/portal/vms?all=1&site=vmm01.contoso.com":           {"Update-VMVersion", "already replicated by Hyper-V Replica", "is shared with other VMs", "Ready with notes", "Not ready"},
		"/portal/items/77f0c3de-item-1":                      {"The VM at the source", "Machine type", "not known", "Guest agent"},
		scvmm + "/networks":                                  {"corp", "Datacenter", "servers", "VLAN 110", "Prod switch", "dr-vnet", "Azure", "no longer there", "the same name as at the source", "Network virtualization"},
		"/portal/sites/munich/networks":                      {"Mapped to this site", "corp", "Prod switch"},
		"/portal/sites/berlin/networks":                      {"no host; VMs name it", "kvm-berlin-02", "lab", "only if none of a VM's networks is mapped"},
		scvmm + "/readiness?target=azure":                    {"Microsoft Azure", "Blocked", "Way out:", "Ready with warnings", "change tracking needs 6.2", "Best practices", "Not checked", "Met"},
		"/portal/sites/berlin/readiness?target=kvm":          {"The network after failover is chosen", "have never been tested"},
	} {
		resp := r.do("GET", path, nil)
		body := html.UnescapeString(r.text(resp))
		if resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s does not say %q", path, w)
			}
		}
	}
	// A site without VMM has no clouds, and no command to register a VMM server.
	if body := r.text(r.do("GET", "/portal/sites/munich", nil)); strings.Contains(body, "h-clouds") || strings.Contains(body, "--role vmm") || strings.Contains(body, "sudo") || !strings.Contains(body, "as administrator") {
		t.Error("a Hyper-V site is shown as a VMM server's")
	}
	// A reader sees mappings and can change none.
	if body := newRig(t, busyDay(fixed()).hyperv()).as("rita"); strings.Contains(body.text(body.do("GET", scvmm+"/networks", nil)), "dlg-") {
		t.Error("a reader is offered to change mappings")
	}
}

// TestReadinessDefault: the report is for where the VMs recover.
func TestReadinessDefault(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed()).hyperv()).as("rita")
	for site, want := range map[string]string{"berlin": "kvm", "vmm01.contoso.com": "hyperv", "munich": "azure"} {
		var rep readiness.Report
		if err := json.Unmarshal([]byte(r.text(r.do("GET", "/portal/sites/"+site+"/readiness/json", nil))), &rep); err != nil || rep.Target != want || rep.Site != site {
			t.Errorf("%s: %q %q %v, want %q", site, rep.Site, rep.Target, err, want)
		}
	}
	for path, want := range map[string]int{"/portal/sites/berlin/readiness?target=moon": 400, "/portal/sites/berlin/readiness/pdf": 404, "/portal/sites/none/readiness": 404, "/portal/sites/berlin/readiness?show=everything&page=99": 200} {
		if got := r.do("GET", path, nil).StatusCode; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	// Verdicts filter the list, not the figures.
	body := r.text(r.do("GET", "/portal/sites/vmm01.contoso.com/readiness?target=hyperv&show=blocked", nil))
	if strings.Contains(body, "<b>dc01</b>") || !strings.Contains(body, "<b>legacy03</b>") || !strings.Contains(body, "2 of 4") {
		t.Error("the verdict does not filter")
	}
}

// TestReadinessFiles: the files are files, with names that any system takes.
func TestReadinessFiles(t *testing.T) {
	t.Parallel()
	f := hostile()
	r := newRig(t, f).as("rita")
	for format, kind := range map[string]string{"csv": "text/csv; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"} {
		resp := r.do("GET", "/portal/sites/"+url.PathEscape(f.fabrics[3].Name)+"/readiness/"+format+"?target=azure", nil)
		body := r.text(resp)
		name := resp.Header.Get("Content-Disposition")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != kind || !strings.HasPrefix(name, "attachment; filename=readiness-") || !strings.HasSuffix(name, "-azure-20261120-1403."+format) || strings.ContainsAny(name, `<>&"'`) {
			t.Errorf("%s: %d %v", format, resp.StatusCode, resp.Header)
		}
		switch format {
		case "csv":
			rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
			if err != nil || len(rows) < 4 || rows[1][0] != evil {
				t.Errorf("csv: %v, %d rows", err, len(rows))
			}
		case "json":
			var rep readiness.Report
			if err := json.Unmarshal([]byte(body), &rep); err != nil || rep.Version != 1 || len(rep.VMs) != 4 || len(rep.Practices) == 0 {
				t.Errorf("json: %v", err)
			}
		default:
			if strings.Contains(body, evil) || !strings.HasSuffix(strings.TrimSpace(body), "</html>") {
				t.Error("the page is not complete, or not escaped")
			}
		}
	}
	f.fail["Fabrics"] = dr.Errorf(dr.KindUnavailable, "fake", "the vault's database did not answer")
	if resp := r.do("GET", "/portal/sites/"+url.PathEscape(f.fabrics[3].Name)+"/readiness/csv", nil); resp.StatusCode != 503 || resp.Header.Get("Content-Disposition") != "" {
		t.Errorf("a report that could not be made: %d %s", resp.StatusCode, resp.Header.Get("Content-Disposition"))
	}
}

// TestNetworkMappings maps and unmaps.
func TestNetworkMappings(t *testing.T) {
	t.Parallel()
	const at, vnet = "/portal/sites/berlin/networks", "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/vnet 1"
	r := newRig(t, busyDay(fixed()).hyperv()).as("carla")
	for _, c := range []struct {
		form   url.Values
		status int
		want   string // a call, or what the page says
	}{
		{url.Values{"network": {"default"}, "where": {"cloud"}, "cloud": {" " + vnet + " "}}, 303, "CreateNetworkMapping default-to-vnet-1 0c6b7a52-aaaa default ->  " + vnet},
		{url.Values{"network": {"default"}, "where": {"site"}, "target": {"0c6b7a52-cccc/net-5f2b"}}, 303, "CreateNetworkMapping default-to-munich 0c6b7a52-aaaa default -> 0c6b7a52-cccc net-5f2b"},
		{url.Values{"network": {"default"}, "where": {"site"}}, 400, "no network to map to was chosen"},
		{url.Values{"network": {""}, "where": {"site"}, "target": {"0c6b7a52-cccc/net-5f2b"}}, 400, "no network of site berlin was chosen"},
		{url.Values{"network": {"default"}, "where": {"site"}, "target": {"gone/lan"}}, 400, "does not exist any more"},
		{url.Values{"network": {"default"}, "where": {"cloud"}}, 400, "no virtual network was named"},
		{url.Values{"network": {"default"}, "where": {"cloud"}, "cloud": {"vnet"}}, 400, `value="vnet"`}, // the vault refuses; what was entered stays
	} {
		resp := r.do("POST", at, c.form)
		body := html.UnescapeString(r.text(resp))
		switch {
		case resp.StatusCode != c.status:
			t.Errorf("%v: %d, want %d", c.form, resp.StatusCode, c.status)
		case c.status == 303 && (!r.f.called(c.want) || !strings.HasPrefix(resp.Header.Get("Location"), at+"?job=")):
			t.Errorf("%v: %q was not done: %v", c.form, c.want, r.f.calls)
		case c.status != 303 && (!strings.Contains(body, c.want) || !strings.Contains(body, `id="dlg-map" aria-labelledby="t-map" open`)):
			t.Errorf("%v: the page does not say %q with its dialog", c.form, c.want)
		}
	}
	if body := r.text(r.do("GET", at+"?ask=map&network=default", nil)); !strings.Contains(body, `<option value="default" selected>`) {
		t.Error("the network of the link is not chosen")
	}
	if resp := r.do("POST", at+"/remove", url.Values{"network": {"default"}, "mapping": {"default-to-munich"}}); resp.StatusCode != 303 {
		t.Errorf("remove: %d", resp.StatusCode)
	}
	if resp := r.do("POST", at+"/remove", url.Values{"network": {"default"}, "mapping": {"default-to-munich"}}); resp.StatusCode != 404 {
		t.Errorf("remove again: %d", resp.StatusCode)
	}
	if body := r.text(r.do("GET", at, nil)); strings.Contains(body, "Prod switch</b>") || !strings.Contains(body, "vnet 1") {
		t.Error("the page does not show the mappings as they are")
	}
}
