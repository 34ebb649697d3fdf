package libvirt_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/dr"
	"holdfast/internal/guesttest"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hypervisortest"
	"holdfast/internal/hypervisor/libvirt"
	"holdfast/internal/ledger/sessionvirt"
)

func TestMain(m *testing.M) { guesttest.Main(m) }

// bench is one session daemon with the hosts and domains of a test.
type bench struct {
	t    testing.TB
	inst *sessionvirt.Instance
	n    int
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, inst: guesttest.StartInstance(t)}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs, _ := filepath.Glob(filepath.Join(b.inst.Dir, "k/libvirt/qemu/log/*.log")) // the pattern is right
		for _, l := range logs {
			p, err := os.ReadFile(l)
			t.Logf("%s (%v) ends:\n%s", filepath.Base(l), err, p[max(0, len(p)-1500):])
		}
	})
	return b
}

func (b *bench) must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) open(t testing.TB, dir string, change func(*libvirt.Config)) *libvirt.Host {
	t.Helper()
	cfg := libvirt.Config{URI: "qemu:///session", Socket: b.inst.Socket, Dir: dir, ScratchReserve: 64 << 20, Accel: "tcg",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	if change != nil {
		change(&cfg)
	}
	h, err := libvirt.Open(t.Context(), cfg)
	b.must(t, err)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *bench) virsh(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	out, err := b.inst.Virsh(ctx, args...)
	b.must(t, err)
	return out
}

func (b *bench) qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

// domain is a VM without an operating system: its firmware finds nothing to
// boot and waits. Its disks are written through QEMU's own monitor, which
// marks blocks as dirty like writes of a guest.
type domain struct {
	b    *bench
	name string
	id   dr.VMID
	dir  string
	tmp  int
}

func (b *bench) domain(t testing.TB, disks map[string]string, extra string) *domain {
	t.Helper()
	b.n++
	d := &domain{b: b, name: fmt.Sprintf("t%d", b.n), dir: filepath.Join(b.inst.Dir, fmt.Sprintf("t%d", b.n))}
	b.must(t, os.Mkdir(d.dir, 0o755))
	var x strings.Builder
	for _, dev := range []string{"vda", "vdb", "vdc"} {
		size, ok := disks[dev]
		if !ok {
			continue
		}
		format := "qcow2"
		if raw, ok := strings.CutPrefix(size, "raw:"); ok {
			format, size = "raw", raw
		}
		b.qemuImg(t, "create", "-q", "-f", format, d.image(dev), size)
		fmt.Fprintf(&x, "<disk type='file' device='disk'><driver name='qemu' type='%s' discard='unmap'/><source file='%s'/><target dev='%s' bus='virtio'/></disk>\n", format, d.image(dev), dev)
	}
	xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os><features><acpi/></features><cpu mode='maximum'/>
<devices>%s<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
<controller type='usb' model='none'/><memballoon model='none'/><interface type='user'><mac address='52:54:00:aa:00:%02x'/><model type='virtio'/></interface>
<serial type='file'><source path='%s/serial' append='on'/><target port='0'/></serial><video><model type='vga'/></video>%s</devices></domain>`, d.name, x.String(), b.n, d.dir, extra)
	file := filepath.Join(d.dir, "domain.xml")
	b.must(t, os.WriteFile(file, []byte(xml), 0o600))
	b.virsh(t, "define", file)
	b.virsh(t, "start", d.name)
	d.id = dr.VMID(strings.TrimSpace(b.virsh(t, "domuuid", d.name)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = b.inst.Virsh(ctx, "destroy", d.name) // may be off
		if _, err := b.inst.Virsh(ctx, "undefine", d.name, "--checkpoints-metadata"); err != nil {
			t.Errorf("undefine %s: %v", d.name, err)
		}
	})
	return d
}

func (d *domain) image(dev string) string { return filepath.Join(d.dir, dev+".img") }

// io runs a command of QEMU's built-in I/O tester on a disk.
func (d *domain) io(t testing.TB, dev, cmd string) {
	t.Helper()
	path := fmt.Sprintf("/machine/peripheral/virtio-disk%d/virtio-backend", dev[2]-'a')
	out := d.b.virsh(t, "qemu-monitor-command", d.name, "--hmp", fmt.Sprintf("qemu-io -d %s \"%s\"", path, cmd))
	if s := strings.TrimSpace(out); s != "" {
		t.Fatalf("qemu-io %s: %s", cmd, s)
	}
}

func (d *domain) write(t testing.TB, dev string, off int64, p []byte) {
	t.Helper()
	d.tmp++
	file := filepath.Join(d.dir, fmt.Sprintf("p%d", d.tmp))
	d.b.must(t, os.WriteFile(file, p, 0o600))
	d.io(t, dev, fmt.Sprintf("write -s %s %d %d", file, off, len(p)))
	d.b.must(t, os.Remove(file))
}

// pid finds the domain's QEMU by the pid file of this session.
func (d *domain) kill(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.b.inst.Dir, "r/libvirt/qemu/run", d.name+".pid"))
	d.b.must(t, err)
	var pid int
	_, err = fmt.Sscan(string(b), &pid)
	d.b.must(t, err)
	d.b.must(t, syscall.Kill(pid, syscall.SIGKILL))
	d.waitState(t, "shut off")
}

func (d *domain) waitState(t testing.TB, want string) {
	t.Helper()
	for range 600 {
		if strings.TrimSpace(d.b.virsh(t, "domstate", d.name)) == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not become %s", d.name, want)
}

// hang stops libvirtd; its sockets still accept.
func (b *bench) hang(t testing.TB) (release func()) {
	t.Helper()
	pid := b.daemonPID(t)
	b.must(t, syscall.Kill(pid, syscall.SIGSTOP))
	var once sync.Once
	release = func() { once.Do(func() { b.must(t, syscall.Kill(pid, syscall.SIGCONT)) }) }
	t.Cleanup(release)
	return release
}

// daemonPID asks the kernel who listens on the daemon's socket.
func (b *bench) daemonPID(t testing.TB) int {
	t.Helper()
	c, err := net.Dial("unix", b.inst.Socket)
	b.must(t, err)
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	b.must(t, err)
	var cred *unix.Ucred
	var cerr error
	b.must(t, raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }))
	b.must(t, cerr)
	return int(cred.Pid)
}

func (b *bench) fixture(t *testing.T) *hypervisortest.Fixture {
	d := b.domain(t, map[string]string{"vda": "8M", "vdb": "5M", "vdc": "raw:5M"}, "")
	other := b.domain(t, map[string]string{"vda": "4M"}, "")
	dir := filepath.Join(d.dir, "hf")
	h := b.open(t, dir, nil)
	return &hypervisortest.Fixture{
		Host: h, VM: d.id, Disks: []string{"vda", "vdb"}, Other: other.id, Dir: d.dir, Limit: 3 * time.Minute, Unreplicatable: "vdc",
		Write: d.write,
		Trim: func(t testing.TB, disk string, off, n int64) {
			d.io(t, disk, fmt.Sprintf("write -z -u %d %d", off, n))
		},
		Grow: func(t testing.TB, disk string, size int64) {
			b.virsh(t, "blockresize", d.name, disk, fmt.Sprintf("%dB", size))
		},
		Pause:     func(t testing.TB) { b.virsh(t, "suspend", d.name) },
		Crash:     d.kill,
		PowerOff:  func(t testing.TB) { b.virsh(t, "destroy", d.name, "--graceful") },
		Successor: func(t testing.TB) hypervisor.Host { return b.open(t, dir, nil) },
		ForeignToken: func(t testing.TB) func() bool {
			b.virsh(t, "checkpoint-create-as", d.name, "other-product", "--diskspec", "vda,checkpoint=bitmap", "--diskspec", "vdb,checkpoint=bitmap", "--diskspec", "vdc,checkpoint=no", "--diskspec", "hdc,checkpoint=no")
			return func() bool {
				return strings.Contains(b.virsh(t, "checkpoint-list", d.name, "--name"), "other-product")
			}
		},
		Hang: b.hang,
		Content: func(t testing.TB, _ dr.VMID, _, path string) []byte {
			raw := path + ".raw"
			b.qemuImg(t, "convert", "-O", "raw", path, raw)
			p, err := os.ReadFile(raw)
			b.must(t, err)
			b.must(t, os.Remove(raw))
			return p
		},
	}
}

func TestConformance(t *testing.T) {
	b := newBench(t)
	hypervisortest.Run(t, b.fixture)
}

// qemuInfo reads one field of qemu-img info.
func (b *bench) qemuInfo(t testing.TB, path string) map[string]any {
	t.Helper()
	var m map[string]any
	b.must(t, json.Unmarshal([]byte(b.qemuImg(t, "info", "-U", "--output=json", path)), &m))
	return m
}
