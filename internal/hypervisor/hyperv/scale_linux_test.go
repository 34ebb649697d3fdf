package hyperv_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
)

// counting counts round trips.
type counting struct {
	cim.Session
	n atomic.Int64
}

func (c *counting) Query(ctx context.Context, ns, wql string) ([]*cim.Instance, error) {
	c.n.Add(1)
	return c.Session.Query(ctx, ns, wql)
}

func (c *counting) Get(ctx context.Context, p cim.Path) (*cim.Instance, error) {
	c.n.Add(1)
	return c.Session.Get(ctx, p)
}

func (c *counting) Invoke(ctx context.Context, p cim.Path, method string, in cim.Args) (cim.Out, error) {
	c.n.Add(1)
	return c.Session.Invoke(ctx, p, method, in)
}

// TestInventoryRoundTrips: 200 VMs cost two calls for each disk that is seen for
// the first time, and no more than a fixed number of queries after that.
func TestInventoryRoundTrips(t *testing.T) {
	t.Parallel()
	const vms, fixed = 200, 30
	count := &counting{}
	r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
	for i := range vms {
		_, err := r.sim.AddVM(t.Context(), hvsim.VMSpec{Name: fmt.Sprintf("vm%d", i), Disks: []hvsim.DiskSpec{{Size: 4 << 20}}, NICs: []hvsim.NICSpec{{Switch: "External"}}, Off: true})
		must(t, err)
	}
	r.wrap = func(s cim.Session) cim.Session { count.Session = s; return count }
	h := r.open(t)
	count.n.Store(0)
	list, err := h.Inventory(t.Context())
	must(t, err)
	disks := 0
	for _, v := range list {
		disks += len(v.Disks)
	}
	if n := count.n.Load(); len(list) != vms+2 || n > int64(2*disks+fixed) {
		t.Errorf("%d VMs with %d disks took %d round trips", len(list), disks, n)
	}
	count.n.Store(0)
	_, err = h.Inventory(t.Context())
	must(t, err)
	if n := count.n.Load(); n > fixed {
		t.Errorf("the second inventory took %d round trips", n)
	}
	count.n.Store(0)
	_, err = h.State(t.Context(), r.id())
	must(t, err)
	if n := count.n.Load(); n != 1 {
		t.Errorf("asking for a state took %d round trips", n)
	}
}
