package sim_test

import (
	"os"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hypervisortest"
	"holdfast/internal/hypervisor/sim"
)

func TestConformance(t *testing.T) {
	hypervisortest.Run(t, fixture)
}

func fixture(t *testing.T) *hypervisortest.Fixture {
	h := sim.New(sim.Config{})
	t.Cleanup(func() { _ = h.Close() })
	v := h.AddVM(sim.VMSpec{Name: "web1", Disks: []sim.DiskSpec{
		{ID: "vda", Size: 8 << 20}, {ID: "vdb", Size: 5 << 20}, {ID: "vdc", Size: 5 << 20, Unreplicatable: "raw"}}, NICs: []dr.NIC{{ID: "n", MAC: "52:54:00:00:00:01", Network: "default"}}})
	v.IgnoreShutdown(true)
	other := h.AddVM(sim.VMSpec{Name: "web2", Disks: []sim.DiskSpec{{ID: "vda", Size: 4 << 20}}})
	must := func(t testing.TB, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "sim") // short: holds sockets
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return &hypervisortest.Fixture{
		Host: h, VM: v.ID(), Disks: []string{"vda", "vdb"}, Other: other.ID(), Dir: dir, Unreplicatable: "vdc",
		Write:      func(t testing.TB, disk string, off int64, p []byte) { must(t, v.Write(disk, off, p)) },
		Trim:       func(t testing.TB, disk string, off, n int64) { must(t, v.Trim(disk, off, n)) },
		Grow:       func(t testing.TB, disk string, size int64) { must(t, v.Grow(disk, size)) },
		Shrink:     func(t testing.TB, disk string, size int64) { must(t, v.Resize(disk, size)) },
		AddDisk:    func(t testing.TB, disk string, size int64) { must(t, v.AddDisk(sim.DiskSpec{ID: disk, Size: size})) },
		RemoveDisk: func(t testing.TB, disk string) { must(t, v.RemoveDisk(disk)) },
		Replace:    func(t testing.TB, disk string, size int64) { must(t, v.ReplaceDisk(disk, size)) },
		Tracking:   func(testing.TB) []string { return v.Tokens() },
		WriteOther: func(t testing.TB, off int64, p []byte) { must(t, other.Write("vda", off, p)) },
		Held:       true,
		Pause:      func(testing.TB) { v.Pause() },
		Crash:      func(testing.TB) { v.Crash() },
		PowerOff:   func(testing.TB) { v.PowerOff() },
		Successor:  func(testing.TB) hypervisor.Host { return h.Restart() },
		ForeignToken: func(testing.TB) func() bool {
			v.AddForeignToken("other-product")
			return func() bool {
				for _, n := range v.Tokens() {
					if n == "other-product" {
						return true
					}
				}
				return false
			}
		},
		Hang: func(t testing.TB) func() {
			var all []*sim.Injection
			for _, m := range []string{"Inventory", "State", "BeginCut", "Forget", "Destroy"} {
				all = append(all, h.Inject(sim.Fault{Method: m, Hang: true}))
			}
			return func() {
				for _, i := range all {
					if i.Fired() == 0 {
						t.Error("a hang did not fire")
					}
					i.Remove()
				}
			}
		},
		Content: func(t testing.TB, vm dr.VMID, disk, _ string) []byte {
			b, err := h.VM(vm).Content(disk)
			must(t, err)
			return b
		},
	}
}
