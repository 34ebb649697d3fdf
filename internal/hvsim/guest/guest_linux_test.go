package guest_test

import (
	"bytes"
	"context"
	"image/png"
	"os"
	"testing"
	"time"

	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/guest"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill puts a raw image into a disk of a VM that is off.
func fill(t *testing.T, d *hvsim.Disk, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	zero := make([]byte, 1<<20)
	for off := 0; off < len(raw); off += len(zero) {
		p := raw[off:min(off+len(zero), len(raw))]
		if !bytes.Equal(p, zero[:len(p)]) {
			must(t, d.EditOffline(int64(off), p))
		}
	}
}

// wait polls the guest's console until it says what is asked for.
func wait(t *testing.T, vm *hvsim.VM, what string, ok func(ledger.Console) bool) {
	t.Helper()
	for end := time.Now().Add(100 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		f, err := os.Open(vm.SerialFile())
		if err != nil {
			continue
		}
		c, err := ledger.ReadConsole(f)
		f.Close()
		if err == nil && ok(c) {
			return
		}
	}
	b, _ := os.ReadFile(vm.SerialFile())
	t.Fatalf("the guest does not come to: %s; its console ends:\n%s", what, b[max(0, len(b)-1500):])
}

func TestLedgerGuestRunsFromVHDX(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest under emulation")
	}
	cache, err := guestimage.DefaultCacheDir()
	must(t, err)
	img, err := guestimage.Build(t.Context(), guestimage.Config{CacheDir: cache})
	must(t, err)
	size := func(path string) int64 {
		fi, err := os.Stat(path)
		must(t, err)
		return fi.Size()
	}
	site, err := hvsim.New(hvsim.Config{Dir: t.TempDir(), Hosts: []hvsim.HostConfig{{Name: "HV1"}}, Runner: guest.New(guest.Config{})})
	must(t, err)
	must(t, site.Open(t.Context()))
	defer func() {
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	}()
	h := site.Host("HV1")
	vm, err := h.AddVM(t.Context(), hvsim.VMSpec{Name: "ledger", Generation: 1, MemoryMB: 128, CPUs: 1, Off: true, Disks: []hvsim.DiskSpec{{Size: size(img.Boot)}, {Size: size(img.Data)}}})
	must(t, err)
	disks := vm.State().Disks
	fill(t, vm.Disk(disks[0].ID), img.Boot)
	fill(t, vm.Disk(disks[1].ID), img.Data)
	must(t, vm.Start(t.Context()))
	var acked uint64
	wait(t, vm, "a running ledger", func(c ledger.Console) bool { acked = c.Acked; return c.Acked > 5 })
	shot, err := vm.Screenshot(t.Context())
	must(t, err)
	if _, err := png.Decode(bytes.NewReader(shot)); err != nil {
		t.Errorf("the screenshot is no PNG: %v", err)
	}
	// A checkpoint while the guest writes: it goes on in new files, and its writes are tracked.
	cp, err := vm.Checkpoint(t.Context(), model.NewCheckpoint{Recovery: true, Consistency: 2})
	must(t, err)
	wait(t, vm, "more records after the checkpoint", func(c ledger.Console) bool { return c.Acked > acked+10 })
	changed := false
	for _, d := range cp.Disks {
		leaf := vm.Disk(d.ID).State()
		list, _, err := vm.Disk(d.ID).Changes(leaf.Leaf, d.RCT, "", 0, leaf.Size, 1000)
		must(t, err)
		changed = changed || len(list) > 0
	}
	if !changed {
		t.Error("nothing that the guest wrote was tracked")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, vm.Shutdown(ctx))
	for vm.State().Power != model.Off {
		if ctx.Err() != nil {
			t.Fatal("the guest does not shut down")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestStartFailsCleanly(t *testing.T) {
	t.Parallel()
	_, err := guest.New(guest.Config{QEMU: "/nonexistent/qemu"}).Start(t.Context(), model.VMRun{ID: "12345678", Name: "x", Serial: t.TempDir() + "/serial"})
	if err == nil {
		t.Fatal("a program that is missing ran")
	}
	_, err = guest.New(guest.Config{Accel: "nonsense"}).Start(t.Context(), model.VMRun{ID: "12345678", Name: "x", Generation: 1, Serial: t.TempDir() + "/serial"})
	if err == nil {
		t.Fatal("a nonsensical accelerator ran")
	}
}
