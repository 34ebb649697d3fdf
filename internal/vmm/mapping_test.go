package vmm_test

import (
	"reflect"
	"testing"

	"holdfast/internal/vmm"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	targets := []vmm.Network{
		{ID: "T1", Name: "prod", Subnets: []vmm.Subnet{{Name: "web", VLAN: 20}, {Name: "App", VLAN: 10}, {Name: "db", VLAN: 30}}},
		{ID: "t2", Name: "flat"},
	}
	mappings := map[string]string{"S1": "t1", "s2": "T2", "s3": "gone"}
	for name, c := range map[string]struct {
		in   vmm.Adapter
		want vmm.Connection
	}{
		"subnet of the same name, without case": {vmm.Adapter{ID: "a", MAC: "m", Network: "s1", Subnet: "WEB"},
			vmm.Connection{Adapter: "a", MAC: "m", Network: "T1", Name: "prod", Subnet: "web", VLAN: 20, Rule: vmm.SameSubnet}},
		"another subnet: the first by name":   {vmm.Adapter{ID: "a", Network: "S1", Subnet: "dmz"}, vmm.Connection{Adapter: "a", Network: "T1", Name: "prod", Subnet: "App", VLAN: 10, Rule: vmm.FirstSubnet}},
		"no subnet at the source: the first":  {vmm.Adapter{ID: "a", Network: "S1"}, vmm.Connection{Adapter: "a", Network: "T1", Name: "prod", Subnet: "App", VLAN: 10, Rule: vmm.FirstSubnet}},
		"a target without subnets":            {vmm.Adapter{ID: "a", Network: "S2", Subnet: "x"}, vmm.Connection{Adapter: "a", Network: "t2", Name: "flat", Rule: vmm.NoSubnets}},
		"not mapped":                          {vmm.Adapter{ID: "a", Network: "s9"}, vmm.Connection{Adapter: "a", Rule: vmm.NotMapped}},
		"not connected at the source":         {vmm.Adapter{ID: "a"}, vmm.Connection{Adapter: "a", Rule: vmm.NoSource}},
		"the target does not exist any more":  {vmm.Adapter{ID: "a", Network: "s3"}, vmm.Connection{Adapter: "a", Rule: vmm.TargetMissing}},
		"an empty network id is never mapped": {vmm.Adapter{ID: "a", Subnet: "web"}, vmm.Connection{Adapter: "a", Rule: vmm.NoSource}},
	} {
		got := vmm.Connect([]vmm.Adapter{c.in}, mappings, targets)
		if len(got) != 1 || got[0] != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
		}
		if got[0].Connected() != (c.want.Network != "") {
			t.Errorf("%s: connected %v", name, got[0].Connected())
		}
	}
	all := vmm.Connect([]vmm.Adapter{{ID: "1", Network: "s1"}, {ID: "2"}, {ID: "3", Network: "s2"}}, mappings, targets)
	if len(all) != 3 || all[0].Adapter != "1" || all[1].Adapter != "2" || all[2].Adapter != "3" {
		t.Errorf("the order of adapters: %+v", all)
	}
	if got := vmm.Connect(nil, mappings, targets); len(got) != 0 {
		t.Errorf("no adapters: %+v", got)
	}
	// The inputs stay as they were, and their order does not matter.
	back := []vmm.Network{targets[1], {ID: "T1", Name: "prod", Subnets: []vmm.Subnet{targets[0].Subnets[2], targets[0].Subnets[1], targets[0].Subnets[0]}}}
	if a, b := vmm.Connect([]vmm.Adapter{{Network: "s1"}}, mappings, targets), vmm.Connect([]vmm.Adapter{{Network: "s1"}}, mappings, back); !reflect.DeepEqual(a, b) {
		t.Errorf("another order of subnets gives another answer: %+v, %+v", a, b)
	}
}

func TestSwitchOf(t *testing.T) {
	t.Parallel()
	h := vmm.Host{Switches: []vmm.Switch{{Name: "zeta", LogicalNetworks: []string{"L1"}}, {Name: "alpha", LogicalNetworks: []string{"l1", "l2"}}, {Name: "vm-net"}}}
	for name, c := range map[string]struct {
		n    vmm.Network
		want string
		ok   bool
	}{
		"by logical network, the first by name": {vmm.Network{Name: "x", LogicalNetwork: "l1"}, "alpha", true},
		"by its own name":                       {vmm.Network{Name: "VM-Net", LogicalNetwork: "l9"}, "vm-net", true},
		"no logical network":                    {vmm.Network{Name: "vm-net"}, "vm-net", true},
		"none":                                  {vmm.Network{Name: "x", LogicalNetwork: "l9"}, "", false},
	} {
		if got, ok := vmm.SwitchOf(c.n, h); got != c.want || ok != c.ok {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
}

func TestHostNamed(t *testing.T) {
	t.Parallel()
	hosts := []vmm.Host{{ID: "1", Name: "hv1.a.example"}, {ID: "2", Name: "hv1.b.example"}, {ID: "3", Name: "hv2"}}
	for in, want := range map[string]string{"HV1.B.example": "2", "hv1": "1", "hv2.c.example": "3", "hv1.c.example": "", "hv9": ""} {
		if h, ok := vmm.HostNamed(hosts, in); h.ID != want || ok != (want != "") {
			t.Errorf("%s: host %q, %v", in, h.ID, ok)
		}
	}
}
