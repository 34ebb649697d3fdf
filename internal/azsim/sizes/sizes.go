// Package sizes is the table of VM sizes that the simulated region offers: a
// dozen real sizes with the capabilities that Azure's documentation of sizes
// states, in the shape of "Resource Skus - List" (Compute REST).
package sizes

import (
	"strconv"
	"strings"
)

// Size is a VM size.
type Size struct {
	Name, Family string
	VCPUs        int
	MemoryMB     int64
	DataDisks    int // most data disks
	NICs         int // most network interfaces
	Generations  string
	Premium      bool
	Zones        []string
	Restricted   string // "" or a reason code: the subscription may not use it here
}

var table = []Size{
	{"Standard_A2_v2", "standardAv2Family", 2, 4096, 4, 2, "V1", false, nil, ""},
	{"Standard_B1s", "standardBSFamily", 1, 1024, 2, 2, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_B2s", "standardBSFamily", 2, 4096, 4, 3, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_B2ms", "standardBSFamily", 2, 8192, 4, 3, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_D2s_v3", "standardDSv3Family", 2, 8192, 4, 2, "V1,V2", true, []string{"1", "2", "3"}, "NotAvailableForSubscription"},
	{"Standard_D2s_v5", "standardDSv5Family", 2, 8192, 4, 2, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_D4s_v5", "standardDSv5Family", 4, 16384, 8, 2, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_D8s_v5", "standardDSv5Family", 8, 32768, 16, 4, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_D16s_v5", "standardDSv5Family", 16, 65536, 32, 8, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_E2s_v5", "standardESv5Family", 2, 16384, 4, 2, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_E8s_v5", "standardESv5Family", 8, 65536, 16, 4, "V1,V2", true, []string{"1", "2", "3"}, ""},
	{"Standard_F4s_v2", "standardFSv2Family", 4, 8192, 8, 2, "V1,V2", true, []string{"1", "2"}, ""},
	{"Standard_M64s", "standardMSFamily", 64, 1024000, 64, 8, "V1,V2", true, []string{"1"}, ""},
	{"Standard_DC2s_v3", "standardDCSv3Family", 2, 16384, 4, 2, "V2", true, []string{"2"}, ""},
}

// All is a copy of the table.
func All() []Size { return append([]Size(nil), table...) }

// Find finds a size by its name, without regard to case.
func Find(name string) (Size, bool) {
	for _, s := range table {
		if strings.EqualFold(s.Name, name) {
			return s, true
		}
	}
	return Size{}, false
}

// Families are the size families, each once, in the table's order.
func Families() []string {
	var out []string
	seen := map[string]bool{}
	for _, s := range table {
		if !seen[s.Family] {
			seen[s.Family] = true
			out = append(out, s.Family)
		}
	}
	return out
}

// SKU is the size's entry of "Resource Skus - List" for a location. more names
// further restriction reasons, as NotAvailableForSubscription.
func (s Size) SKU(location string, more ...string) map[string]any {
	caps := [][2]string{
		{"MaxResourceVolumeMB", "0"}, {"OSVhdSizeMB", "1047552"}, {"vCPUs", strconv.Itoa(s.VCPUs)},
		{"HyperVGenerations", s.Generations}, {"MemoryGB", strconv.FormatFloat(float64(s.MemoryMB)/1024, 'f', -1, 64)},
		{"MaxDataDiskCount", strconv.Itoa(s.DataDisks)}, {"CpuArchitectureType", "x64"},
		{"PremiumIO", title(s.Premium)}, {"vCPUsAvailable", strconv.Itoa(s.VCPUs)},
		{"EncryptionAtHostSupported", "True"}, {"AcceleratedNetworkingEnabled", title(s.VCPUs > 1)},
		{"MaxNetworkInterfaces", strconv.Itoa(s.NICs)},
	}
	list := make([]any, len(caps))
	for i, c := range caps {
		list[i] = map[string]any{"name": c[0], "value": c[1]}
	}
	var zones []any
	for _, z := range s.Zones {
		zones = append(zones, z)
	}
	var limits []any
	reasons := more
	if s.Restricted != "" {
		reasons = append([]string{s.Restricted}, more...)
	}
	for _, reason := range reasons {
		limits = append(limits, map[string]any{
			"type": "Location", "values": []any{location}, "reasonCode": reason,
			"restrictionInfo": map[string]any{"locations": []any{location}},
		})
	}
	return map[string]any{
		"resourceType": "virtualMachines", "name": s.Name, "tier": "Standard",
		"size": strings.TrimPrefix(s.Name, "Standard_"), "family": s.Family, "locations": []any{location},
		"locationInfo": []any{map[string]any{"location": location, "zones": nonNil(zones), "zoneDetails": []any{}}},
		"capabilities": list, "restrictions": nonNil(limits),
	}
}

// Classic is the size's entry of "Virtual Machine Sizes - List".
func (s Size) Classic() map[string]any {
	return map[string]any{"name": s.Name, "numberOfCores": s.VCPUs, "osDiskSizeInMB": 1047552,
		"resourceDiskSizeInMB": 0, "memoryInMB": s.MemoryMB, "maxDataDiskCount": s.DataDisks}
}

func nonNil(l []any) []any {
	if l == nil {
		return []any{}
	}
	return l
}

func title(b bool) string {
	if b {
		return "True"
	}
	return "False"
}
