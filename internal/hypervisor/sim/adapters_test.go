package sim

import (
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

func TestAdapters(t *testing.T) {
	t.Parallel()
	w := New(Config{Name: "h"}).world
	spec := hypervisor.BootSpec{Network: "default", Config: hypervisor.VMConfig{VM: dr.VM{NICs: []dr.NIC{{MAC: "52:54:00:00:00:01", Network: "a"}, {MAC: "52:54:00:00:00:02", Network: "b"}}}},
		Adapters: []hypervisor.BootNIC{{MAC: "52:54:00:00:00:01", Network: "lab", VLAN: 5}}}
	nics, err := w.connectNICs(spec)
	if err != nil || nics[0].Network != "lab" || nics[0].VLAN != 5 || nics[1].Network != "" || nics[1].Type != "down" {
		t.Errorf("%+v, %v", nics, err)
	}
	spec.Adapters[0].Network = "nope"
	if _, err := w.connectNICs(spec); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a network that is not there: %v", err)
	}
}
