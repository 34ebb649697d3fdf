package vmm_test

import (
	"encoding/binary"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	cloudA, cloudB = "c1000000-0000-4000-8000-000000000001", "c1000000-0000-4000-8000-000000000002"
	logicalA       = "10000000-0000-4000-8000-000000000001"
	netCorp        = "e2267b5c-2650-49bd-ab3f-d66aae694c06"
	netLab         = "93ce99d7-1219-4914-aa61-73fe5023988e"
)

// full is what all.json stands for.
func full() vmm.Snapshot {
	return vmm.Snapshot{
		Version: 1, Server: vmm.Server{Name: "vmm01.corp.example", Product: "10.22.1287.0"}, Taken: time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC),
		Clouds: []vmm.Cloud{{ID: cloudA, Name: "Gold", HostGroups: []string{`All Hosts\Berlin`}}, {ID: cloudB, Name: "Silver", HostGroups: []string{`All Hosts`, `Other`}}},
		Hosts: []vmm.Host{
			{ID: "a0000000-0000-4000-8000-000000000001", Name: "hv1.corp.example", Cluster: "clu1", OS: "Microsoft Windows Server 2022 Datacenter", HostGroup: `All Hosts\Berlin`,
				Clouds: []string{cloudA, cloudB}, Switches: []vmm.Switch{{Name: "SETswitch", LogicalNetworks: []string{logicalA}}}},
			{ID: "a0000000-0000-4000-8000-000000000002", Name: "hv2.corp.example", HostGroup: `All Hosts\Berlin2`, Clouds: []string{cloudB}},
		},
		LogicalNetworks: []vmm.LogicalNetwork{{ID: logicalA, Name: "corp", Description: "office", Virtualized: true, Isolated: false,
			Definitions: []vmm.Definition{{ID: "d0000000-0000-4000-8000-000000000001", Name: "corp_0", HostGroups: []string{"All Hosts"},
				Subnets: []vmm.SubnetVLAN{{Subnet: "192.0.2.0/24", VLAN: 7}, {VLAN: 8}}}}}},
		VMNetworks: []vmm.VMNetwork{
			{ID: netCorp, Name: "corp", LogicalNetwork: logicalA, Isolation: "WindowsNetworkVirtualization", Subnets: []vmm.Subnet{
				{ID: "50000000-0000-4000-8000-000000000002", Name: "app", CIDRs: []string{"198.51.100.0/24"}, VLAN: 10},
				{ID: "50000000-0000-4000-8000-000000000001", Name: "web", CIDRs: []string{"192.0.2.0/25", "192.0.2.128/25"}}}},
			{ID: netLab, Name: "Übung", LogicalNetwork: logicalA, Isolation: "NoIsolation"},
		},
		StorageClassifications: []vmm.StorageClassification{{ID: "8891569e-aaef-4a46-a4a0-78c14f2d7b09", Name: "Local Storage"}},
		VMs: []vmm.VM{
			{ID: "3f2b8a10-2222-4222-8222-000000000002", VMMID: "b0000000-0000-4000-8000-000000000002", Name: "db01", Host: "hv1.corp.example"},
			{ID: "3f2b8a10-2222-4222-8222-000000000001", VMMID: "b0000000-0000-4000-8000-000000000001", Name: "web01", Cloud: cloudA, Host: "hv1.corp.example",
				Adapters: []vmm.NIC{{ID: "f0000000-0000-4000-8000-000000000001", MAC: "00:15:5D:01:02:03", VMNetwork: netCorp, VMSubnet: "web", VLAN: 7},
					{ID: "f0000000-0000-4000-8000-000000000002", VMNetwork: netLab}}},
		},
		Warnings: []string{"switches of hv2: access denied"},
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	b := golden(t, "all.json")
	u := utf16.Encode([]rune(string(b)))
	wide := []byte{0xff, 0xfe}
	for _, c := range u {
		wide = binary.LittleEndian.AppendUint16(wide, c)
	}
	for name, in := range map[string][]byte{
		"as written":             b,
		"byte order mark":        append([]byte("\xef\xbb\xbf"), b...),
		"UTF-16":                 wide,
		"warnings before it":     append([]byte("WARNING: the module {x} is old\r\n{ not json }\r\n{\"a\":1}\r\n  "), b...),
		"text after it":          append(append([]byte{}, b...), "\r\nDone.\r\n"...),
		"lists as PowerShell 5":  golden(t, "unrolled.json"),
		"texts instead of types": golden(t, "texts.json"),
	} {
		got, err := vmm.Parse(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := full(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestParseEmpty(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		`{"version":1}`,
		`{"version":1,"server":null,"clouds":null,"hosts":{},"vms":[null,null],"warnings":"","later":{"x":[1]}}`,
		`{"version":"1","taken":"/Date(nonsense)/","vms":[{"name":"has no id"}],"clouds":{"value":[],"Count":0}}`,
	} {
		got, err := vmm.Parse([]byte(in))
		got.Warnings = nil
		if err != nil || got.Version != 1 || len(got.VMs)+len(got.Clouds)+len(got.Hosts) != 0 {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	got, err := vmm.Parse([]byte(`{"version":1,"taken":"\/Date(1790000000000+0100)\/"}`))
	if want := time.UnixMilli(1790000000000).UTC(); err != nil || !got.Taken.Equal(want) {
		t.Errorf("date of PowerShell 5: %v, %v", got.Taken, err)
	}
}

func TestParseRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		kind dr.Kind
		code dr.Code
		says string
	}{
		"nothing":           {"", dr.KindCorrupt, dr.CodeVMMOutput, "wrote nothing"},
		"no JSON":           {"The term 'Get-SCCloud' is not recognized", dr.KindCorrupt, dr.CodeVMMOutput, "Get-SCCloud"},
		"cut off":           {`{"version":1,"clouds":[{"id":"x"`, dr.KindCorrupt, dr.CodeVMMOutput, "cut off"},
		"another version":   {`{"version":2,"clouds":[]}`, dr.KindUnsupported, dr.CodeVMMOutput, "version 2"},
		"no version":        {`{"clouds":[]}`, dr.KindCorrupt, dr.CodeVMMOutput, "no JSON"},
		"a null version":    {`{"version":null}`, dr.KindUnsupported, dr.CodeVMMOutput, "version 0"},
		"an object as name": {`{"version":1,"clouds":[{"id":"x","name":{"a":1}}]}`, dr.KindCorrupt, dr.CodeVMMOutput, "expected"},
		"a VLAN that is no number": {`{"version":1,"vms":[{"id":"x","adapters":[{"vlan":"many"}]}]}`,
			dr.KindCorrupt, dr.CodeVMMOutput, "number"},
		"no module":         {string(golden(t, "no-module.json")), dr.KindPrecondition, dr.CodeVMMModuleMissing, "virtualmachinemanager"},
		"no server":         {`{"version":1,"error":{"stage":"connect","message":"You cannot contact the Virtual Machine Manager management server"}}`, dr.KindUnavailable, dr.CodeVMMUnreachable, "contact"},
		"denied in between": {`{"version":1,"error":{"stage":"VM networks","message":null}}`, dr.KindUnavailable, dr.CodeVMMUnreachable, "VM networks"},
	} {
		_, err := vmm.Parse([]byte(c.in))
		if dr.KindOf(err) != c.kind || dr.CodeOf(err) != c.code || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (kind %v, code %s)", name, err, dr.KindOf(err), dr.CodeOf(err))
		}
	}
}

func TestNormalMAC(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"00:15:5d:01:02:03": "00:15:5D:01:02:03", "00155D010203": "00:15:5D:01:02:03", "00-15-5D-01-02-03": "00:15:5D:01:02:03",
		"00:00:00:00:00:00": "", "": "", "nonsense": "", "00155D01020G": ""} {
		if got := vmm.NormalMAC(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"all.json", "unrolled.json", "texts.json", "no-module.json"} {
		f.Add(golden(f, name))
	}
	f.Add([]byte("\xff\xfe{\x00}\x00"))
	f.Add([]byte(`{"version":1,"vms":{"value":[{}],"Count":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := vmm.Parse(b)
		if err != nil {
			if dr.CodeOf(err) == "" {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		again, err := vmm.Parse(b)
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Error("the same output gives two snapshots")
		}
		ids := map[string]bool{}
		for _, n := range s.VMNetworks {
			if n.ID == "" || ids[n.ID] {
				t.Errorf("network id %q is empty or twice", n.ID)
			}
			ids[n.ID] = true
		}
	})
}
