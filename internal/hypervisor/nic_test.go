package hypervisor

import "testing"

func TestBootNIC(t *testing.T) {
	t.Parallel()
	one := BootSpec{Network: "lan"}
	if n := one.NIC("x"); n.Network != "lan" {
		t.Errorf("without adapters: %+v", n)
	}
	each := BootSpec{Network: "lan", Adapters: []BootNIC{{MAC: "00:15:5D:01:02:03", Network: "prod", VLAN: 7}, {MAC: "52:54:00:00:00:01"}}}
	for mac, want := range map[string]BootNIC{"00155d010203": each.Adapters[0], "52-54-00-00-00-01": each.Adapters[1], "52:54:00:00:00:09": {MAC: "52:54:00:00:00:09"}, "": {}} {
		if n := each.NIC(mac); n != want {
			t.Errorf("%q: %+v, want %+v", mac, n, want)
		}
	}
}
