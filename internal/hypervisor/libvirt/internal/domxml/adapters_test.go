package domxml

import (
	"testing"

	"holdfast/internal/hypervisor"
)

// A network mapping connects each adapter by itself.
func TestAdapters(t *testing.T) {
	t.Parallel()
	p := bootPlan(t)
	p.Network, p.Spec.Network = "prod-net", "prod"
	p.Spec.Adapters = []hypervisor.BootNIC{{MAC: "52:54:00:AA:BB:02", Network: "prod"}}
	p.Attach = map[string]string{"prod": "prod-net"}
	root, err := p.Domain()
	if err != nil {
		t.Fatal(err)
	}
	nics := root.At("devices").All("interface")
	if len(nics) != 2 {
		t.Fatalf("%d adapters", len(nics))
	}
	if n := nics[0]; n.At("source") != nil || n.At("link").Get("state") != "down" {
		t.Errorf("the adapter that is not mapped is connected: %+v", n)
	}
	if n := nics[1]; n.Get("type") != "network" || n.At("source").Get("network") != "prod-net" || n.At("link") != nil {
		t.Errorf("the mapped adapter: %+v", n)
	}
}
