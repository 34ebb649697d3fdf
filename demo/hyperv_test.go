package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/cim/wsman"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
	"holdfast/internal/ledger"
)

// The whole story with a simulated Hyper-V host as the primary site, whose ledger
// VM really runs from VHDX files: replicated by change tracking over WS-Man, tested,
// lost with its host, recovered and committed, at a KVM site and at another Hyper-V host.
func TestStoryFromHyperV(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots real guests for minutes")
	}
	for name, where := range map[string]string{"to KVM": "primary", "to Hyper-V": "both"} {
		t.Run(name, func(t *testing.T) {
			d := newDemo(t)
			d.hyperv = where
			for _, act := range []func(context.Context) error{d.build, d.bringUp, d.register, d.protect, d.replicate, d.drill, d.disaster, d.prove, d.commit} {
				if err := act(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if where == "primary" {
				d.writeBack(t)
			}
			t.Logf("RPO %.1f s, RTO %.1f s, ledger %+v", d.result.RPO, d.result.RTO, d.result.Ledger)
		})
	}
}

// writeBack brings a recovery point home: the blocks that differ are written into the
// lost host's own VHDX files while the VM is off, and its guest boots from them.
func (d *demo) writeBack(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "restored")
	_, err := d.command(ctx, "recover", "restore", vmName, "--out", out, "--store", filepath.Join(d.dir, "store"), "--key", filepath.Join(d.dir, "vault", "vault.key"))
	must(err)
	home := d.sites[0].on.(*hyperV)
	must(home.start(ctx)) // the host is repaired; its VM starts with what it had
	s, err := wsman.New(wsman.Config{URL: home.list.Hosts[0].URL, User: "Administrator", Password: func(context.Context) (string, error) { return "demo-primary", nil }})
	must(err)
	host, err := hyperv.Open(ctx, hyperv.Config{Session: s, Disks: vhdxfiles.New(vhdxfiles.Config{Root: home.list.Hosts[0].Files}), Dir: t.TempDir()})
	must(err)
	defer host.Close() // nothing is open any more
	vms, err := host.Inventory(ctx)
	must(err)
	if len(vms) != 1 {
		t.Fatalf("the host has %d VMs", len(vms))
	}
	vm := vms[0]
	if _, err := host.OpenDisk(ctx, vm.ID, vm.Disks[0].ID); dr.CodeOf(err) != dr.CodeVMNotOff {
		t.Errorf("a disk of a running VM was opened for writing: %v", err)
	}
	must(host.Destroy(ctx, vm.ID))
	var images []string
	for _, disk := range vm.Disks {
		list, err := filepath.Glob(filepath.Join(out, "*"+disk.ID+"*"))
		must(err)
		if len(list) != 1 {
			t.Fatalf("disk %s was restored as %v", disk.ID, list)
		}
		images = append(images, list[0])
		w, err := host.OpenDisk(ctx, vm.ID, disk.ID)
		must(err)
		written := patch(t, ctx, w, list[0])
		must(w.Flush(ctx))
		must(w.Close())
		t.Logf("disk %s: %d of %d bytes differed and were written", disk.ID, written, w.Size())
		if written == 0 || written > w.Size()/2 {
			t.Errorf("%d bytes of disk %s were written", written, disk.ID)
		}
	}
	want, err := ledger.VerifyImages(ctx, images[0], images[1])
	must(err)
	m := d.guest.(*hvMachine)
	before, err := m.Read()
	must(err)
	must(host.Start(ctx, vm.ID))
	c, err := m.wait(ctx, "the guest to boot from what was written back", func(c ledger.Console) bool { return c.Boots > before.Boots && c.BootAcked > c.FoundA })
	must(err)
	if !c.Order || !c.Chain || c.FoundA != want.LastA {
		t.Errorf("the ledger at home has %d records, order %v, chain %v; the point has %d", c.FoundA, c.Order, c.Chain, want.LastA)
	}
}

// patch writes the blocks of an image that a disk does not have.
func patch(t *testing.T, ctx context.Context, w interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
}, image string) (written int64) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < w.Size(); off += int64(len(want)) {
		n := min(int64(len(want)), w.Size()-off)
		if _, err := f.ReadAt(want[:n], off); err != nil {
			t.Fatal(err)
		}
		if err := w.ReadAt(ctx, have[:n], off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(have[:n], want[:n]) {
			continue
		}
		if err := w.WriteAt(ctx, want[:n], off); err != nil {
			t.Fatal(err)
		}
		written += n
	}
	return written
}
