package arm

import (
	"strings"
	"testing"

	"holdfast/internal/dr"
)

func someSizes() []Size {
	z := func(name string, cpus int, gb int64, disks, nics int, gens ...int) Size {
		return Size{Name: name, Family: "f", VCPUs: cpus, Cores: cpus, MemoryMB: gb << 10, MaxDisks: disks, MaxNICs: nics, Generation: gens, Premium: true, Arch: "x64", Zones: []string{"1", "2", "3"}}
	}
	list := []Size{
		z("Standard_A1_v2", 1, 2, 2, 2, 1), z("Standard_B2s_v2", 2, 8, 4, 2, 1, 2), z("Standard_D2s_v3", 2, 8, 4, 2, 1, 2), z("Standard_D2s_v5", 2, 8, 4, 2, 1, 2),
		z("Standard_D4s_v5", 4, 16, 8, 2, 1, 2), z("Standard_D8s_v5", 8, 32, 16, 4, 1, 2), z("Standard_E4s_v5", 4, 32, 8, 2, 1, 2), z("Standard_E8-2s_v5", 8, 64, 16, 4, 1, 2),
		z("Standard_NV4as_v4", 4, 14, 8, 2, 1, 2), z("Standard_D4ps_v5", 4, 16, 8, 2, 2), z("Standard_DC4as_v5", 4, 16, 8, 2, 2), z("Standard_D48s_v6", 48, 192, 32, 8, 2), z("Standard_M8ms", 8, 218, 8, 4, 1, 2),
	}
	for i := range list {
		switch list[i].Name {
		case "Standard_E8-2s_v5":
			list[i].VCPUs = 2
		case "Standard_D4ps_v5":
			list[i].Arch = "Arm64"
		case "Standard_DC4as_v5":
			list[i].confidential = true
		case "Standard_D48s_v6":
			list[i].Restricted = "NotAvailableForSubscription"
		case "Standard_D8s_v5":
			list[i].RestrictedZones = []string{"2"}
		case "Standard_A1_v2":
			list[i].Premium = false
		}
	}
	return list
}

func TestFit(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		need Need
		want string
	}{
		{Need{VCPUs: 1, MemoryMB: 1024}, "Standard_D2s_v5"}, // current families before the smaller A1
		{Need{VCPUs: 2, MemoryMB: 8 << 10}, "Standard_D2s_v5"},
		{Need{VCPUs: 2, MemoryMB: 8<<10 + 1}, "Standard_D4s_v5"},
		{Need{VCPUs: 4, MemoryMB: 14 << 10}, "Standard_D4s_v5"}, // not the one with graphics
		{Need{VCPUs: 4, MemoryMB: 20 << 10}, "Standard_E4s_v5"},
		{Need{VCPUs: 2, Disks: 9}, "Standard_D8s_v5"}, // before the constrained E8-2s: as many cores, less memory
		{Need{NICs: 3}, "Standard_D8s_v5"},
		{Need{NICs: 3, Zone: "2"}, "Standard_E8-2s_v5"},
		{Need{MemoryMB: 200 << 10}, "Standard_M8ms"}, // if nothing else does
		{Need{Name: "standard_a1_v2", Generation: 1}, "Standard_A1_v2"},
		{Need{Names: []string{"Standard_D8s_v5", "Standard_D4s_v5"}}, "Standard_D4s_v5"},
	} {
		got, no, err := Fit(someSizes(), x.need)
		if err != nil || got.Name != x.want {
			t.Errorf("%s: %s %v", x.need, got.Name, err)
		}
		for _, r := range no {
			if r.Reason == "" || r.Size == got.Name {
				t.Errorf("%s: rejected %+v", x.need, r)
			}
		}
	}
	for _, x := range []struct {
		need Need
		text string
	}{
		{Need{Name: "Standard_D48s_v6"}, "NotAvailableForSubscription"}, {Need{Name: "Standard_X1"}, "does not offer"}, {Need{Name: "Standard_A1_v2", Generation: 2}, "generation 2"},
		{Need{Name: "Standard_A1_v2", Premium: true}, "premium"}, {Need{VCPUs: 1000}, "too few vCPUs"}, {Need{Name: "Standard_D4ps_v5"}, "Arm64"}, {Need{Name: "Standard_DC4as_v5"}, "confidential"},
		{Need{Name: "Standard_D2s_v5", Disks: 5}, "data disks"}, {Need{Name: "Standard_D2s_v5", NICs: 3}, "adapters"}, {Need{Name: "Standard_D8s_v5", Zone: "2"}, "zone 2"},
	} {
		_, _, err := Fit(someSizes(), x.need)
		if dr.CodeOf(err) != dr.CodeAzureSize || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: %v", x.need, err)
		}
	}
	if _, _, err := Fit(nil, Need{}); dr.CodeOf(err) != dr.CodeAzureSize {
		t.Errorf("no sizes: %v", err)
	}
}

func TestRoom(t *testing.T) {
	t.Parallel()
	z := Size{Name: "Standard_D4s_v5", Family: "standardDSv5Family", Cores: 4}
	list := []Usage{{"cores", "", 97, 100}, {"standardDSv5Family", "", 0, 10}, {"virtualMachines", "", 0, -1}}
	if err := Room(list, z, 1); dr.CodeOf(err) != dr.CodeAzureQuota || !strings.Contains(err.Error(), "cores has 3 of 100 left") {
		t.Error(err)
	}
	list[0].Used = 96
	if err := Room(list, z, 1); err != nil {
		t.Error(err)
	}
	list[1].Used = 7
	if err := Room(list, z, 1); dr.CodeOf(err) != dr.CodeAzureQuota {
		t.Error(err)
	}
}
