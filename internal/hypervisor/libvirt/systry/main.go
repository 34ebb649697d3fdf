package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt"
	"holdfast/internal/nbd"
)

type dev struct{}

func (dev) Size() int64 { return 4 << 20 }
func (dev) ReadAt(_ context.Context, p []byte, off int64) error {
	for i := range p {
		p[i] = byte(off>>12) + 1
	}
	return nil
}
func (dev) Extents(_ context.Context, off, n int64) ([]nbd.AllocationExtent, error) {
	return []nbd.AllocationExtent{{Off: off, Len: n}}, nil
}

func must(err error) {
	if err != nil {
		fmt.Printf("FAIL %v kind=%v code=%q\n", err, dr.KindOf(err), dr.CodeOf(err))
		os.Exit(1)
	}
}
func sh(s string) string {
	b, err := exec.Command("sh", "-c", s).CombinedOutput()
	fmt.Printf("$ %s\n%s", s, b)
	_ = err
	return strings.TrimSpace(string(b))
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	os.RemoveAll("/var/tmp/hfsys")
	must(os.MkdirAll("/var/tmp/hfsys/img", 0o755))
	h, err := libvirt.Open(ctx, libvirt.Config{Dir: "/var/tmp/hfsys/hf", ScratchReserve: 16 << 20, Accel: "tcg", Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	must(err)
	sh("qemu-img create -q -f qcow2 /var/tmp/hfsys/img/a.qcow2 4M")
	must(os.WriteFile("/var/tmp/hfsys/d.xml", []byte(`<domain type='qemu'><name>hfsys</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><cpu mode='maximum'/>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/tmp/hfsys/img/a.qcow2'/><target dev='vda' bus='virtio'/></disk><interface type='user'><mac address='52:54:00:00:00:09'/><model type='virtio'/></interface></devices></domain>`), 0o600))
	sh("virsh -c qemu:///system define /var/tmp/hfsys/d.xml; virsh -c qemu:///system start hfsys")
	id := dr.VMID(sh("virsh -c qemu:///system domuuid hfsys"))
	fmt.Println(h.Info(ctx))
	fmt.Println(h.Networks(ctx))
	c, err := h.BeginCut(ctx, hypervisor.CutRequest{VM: id, Disks: []string{"vda"}, Tag: "a"})
	must(err)
	sh("ls -laR /var/tmp/hfsys/hf")
	must(c.ReadAt(ctx, "vda", make([]byte, 4096), 0))
	must(c.End(ctx))
	c, err = h.BeginCut(ctx, hypervisor.CutRequest{VM: id, Disks: []string{"vda"}, Tag: "b", Base: c.Info().Token})
	must(err)
	must(c.Extents(ctx, "vda", 0, 4<<20, func(r hypervisor.Range) error { fmt.Printf("%+v\n", r); return nil }))
	must(c.Abort(ctx))
	cfg, err := h.Config(ctx, id)
	must(err)
	s, err := nbd.NewServer(nbd.ServerConfig{Exports: nbd.ExportMap{"a": dev{}}})
	must(err)
	ln, err := net.Listen("unix", "/var/tmp/hfsys/rp.sock")
	must(err)
	must(os.Chmod("/var/tmp/hfsys/rp.sock", 0o777))
	go s.Serve(ctx, ln)
	rid, err := h.Boot(ctx, hypervisor.BootSpec{Name: "hfsys-r", Owner: "o", Config: cfg, Network: hypervisor.IsolatedNetwork, Disks: []hypervisor.BootDisk{{ID: "vda", Size: 4 << 20, Socket: "/var/tmp/hfsys/rp.sock", Export: "a", Path: "/var/tmp/hfsys/local/a.qcow2"}}})
	must(err)
	sh("virsh -c qemu:///system net-list; virsh -c qemu:///system domiflist hfsys-r; ls -la /var/tmp/hfsys/hf/boot/*")
	fmt.Println(h.Networks(ctx))
	must(h.MakeLocal(ctx, rid, func(d, n int64) { fmt.Println("progress", d, n) }))
	p, err := h.Screenshot(ctx, rid)
	fmt.Println(len(p), err)
	fmt.Println(h.SerialLog(ctx, rid, 100))
	must(h.Remove(ctx, rid, "o"))
	sh("virsh -c qemu:///system net-list; virsh -c qemu:///system list --all; find /var/tmp/hfsys")
	must(h.Forget(ctx, id, nil))
	must(h.Destroy(ctx, id))
	sh("virsh -c qemu:///system undefine hfsys --checkpoints-metadata")
	must(h.Close())
	s.Close()
}
