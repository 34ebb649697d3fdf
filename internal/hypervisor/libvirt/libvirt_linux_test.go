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
	"slices"
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
	gone bool // the test has ended the daemon: domains go with the directory
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
		if b.gone {
			return
		}
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

// kill ends the domain's QEMU as a power cut would.
func (d *domain) kill(t testing.TB) {
	t.Helper()
	d.b.must(t, syscall.Kill(d.pid(t), syscall.SIGKILL))
	d.waitState(t, "shut off")
}

// pid of the domain's QEMU, from the pid file of this session.
func (d *domain) pid(t testing.TB) (pid int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.b.inst.Dir, "r/libvirt/qemu/run", d.name+".pid"))
	d.b.must(t, err)
	_, err = fmt.Sscan(string(b), &pid)
	d.b.must(t, err)
	return pid
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

// tracking lists our checkpoints and bitmaps, also those that only QEMU knows of.
func (d *domain) tracking(t testing.TB) []string {
	t.Helper()
	var nodes struct {
		Return []struct {
			Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
		}
	}
	b := d.b.virsh(t, "qemu-monitor-command", d.name, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`)
	d.b.must(t, json.Unmarshal([]byte(b), &nodes))
	names := strings.Fields(d.b.virsh(t, "checkpoint-list", d.name, "--name"))
	for _, n := range nodes.Return {
		for _, m := range n.Bitmaps {
			names = append(names, m.Name)
		}
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "hf-") })
	slices.Sort(names)
	return slices.Compact(names)
}

// slow leaves a test of more than five seconds out of short runs.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("slow: runs virtual machines")
	}
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
		Shrink: func(t testing.TB, disk string, size int64) {
			b.virsh(t, "blockresize", d.name, disk, fmt.Sprintf("%dB", size))
		},
		AddDisk: func(t testing.TB, disk string, size int64) {
			b.qemuImg(t, "create", "-q", "-f", "qcow2", d.image(disk), fmt.Sprint(size))
			b.virsh(t, "attach-disk", d.name, d.image(disk), disk, "--subdriver", "qcow2", "--live", "--config")
		},
		RemoveDisk: func(t testing.TB, disk string) {
			b.virsh(t, "destroy", d.name, "--graceful")
			b.virsh(t, "detach-disk", d.name, disk, "--config")
			b.virsh(t, "start", d.name)
		},
		Replace: func(t testing.TB, disk string, size int64) {
			b.virsh(t, "destroy", d.name, "--graceful")
			b.must(t, os.Remove(d.image(disk)))
			b.qemuImg(t, "create", "-q", "-f", "qcow2", d.image(disk), fmt.Sprint(size))
			b.virsh(t, "start", d.name)
		},
		Tracking:   d.tracking,
		WriteOther: func(t testing.TB, off int64, p []byte) { other.write(t, "vda", off, p) },
		Pause:      func(t testing.TB) { b.virsh(t, "suspend", d.name) },
		Crash:      d.kill,
		PowerOff:   func(t testing.TB) { b.virsh(t, "destroy", d.name, "--graceful") },
		Successor:  func(t testing.TB) hypervisor.Host { return b.open(t, dir, nil) },
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
	slow(t)
	b := newBench(t)
	hypervisortest.Run(t, b.fixture)
}

// TestForeignJob: another product's job is neither used nor ended.
func TestForeignJob(t *testing.T) {
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	h := b.open(t, filepath.Join(d.dir, "hf"), nil)
	xml := filepath.Join(d.dir, "job.xml")
	b.must(t, os.WriteFile(xml, []byte(`<domainbackup mode='pull'><server transport='unix' socket='`+d.dir+`/other.sock'/><disks>
<disk name='vda' backup='yes' type='file'><scratch file='`+d.dir+`/other.scratch'/></disk><disk name='hdc' backup='no'/></disks></domainbackup>`), 0o600))
	b.virsh(t, "backup-begin", d.name, xml)
	req := hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "a"}
	_, err := h.BeginCut(t.Context(), req)
	if dr.CodeOf(err) != dr.CodeBackupJobBusy {
		t.Errorf("begin during another product's job: %v", err)
	}
	if err := h.Forget(t.Context(), d.id, nil); err != nil {
		t.Errorf("forget during another product's job: %v", err)
	}
	if out := b.virsh(t, "backup-dumpxml", d.name); !strings.Contains(out, "other.sock") {
		t.Error("another product's job has been ended")
	}
	b.virsh(t, "domjobabort", d.name)
	c, err := h.BeginCut(t.Context(), req)
	b.must(t, err)
	b.must(t, c.End(t.Context()))
}

// TestWatchdogEndsOldCuts: the VM is not held for ever by an agent that forgot its cut.
func TestWatchdogEndsOldCuts(t *testing.T) {
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	h := b.open(t, filepath.Join(d.dir, "hf"), func(c *libvirt.Config) { c.MaxCutAge = 300 * time.Millisecond })
	base, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "base"})
	b.must(t, err)
	b.must(t, base.End(t.Context()))
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "old"})
	b.must(t, err)
	for end := time.Now().Add(time.Minute); strings.Contains(b.virsh(t, "domjobinfo", d.name), "Backup") || strings.Contains(b.virsh(t, "checkpoint-list", d.name, "--name"), "hf-old"); {
		if time.Now().After(end) {
			t.Fatal("the watchdog did not end the cut")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := c.ReadAt(t.Context(), "vda", make([]byte, 512), 0); dr.CodeOf(err) != dr.CodeHypervisorTimeout {
		t.Errorf("a read after the watchdog: %v", err)
	}
	b.must(t, c.Abort(t.Context()))
	if names, err := filepath.Glob(filepath.Join(d.dir, "hf/cut/*")); err != nil || len(names) > 0 {
		t.Errorf("leftovers %v, %v", names, err)
	}
	next, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Base: base.Info().Token, Tag: "next"})
	b.must(t, err)
	b.must(t, next.End(t.Context()))
}

// TestDaemonRestart: libvirtd is killed while a cut is open. The cut can be
// read on, ended with the new daemon, and watchers are told.
func TestDaemonRestart(t *testing.T) {
	slow(t)
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	h := b.open(t, filepath.Join(d.dir, "hf"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	back := make(chan struct{}, 1)
	watched := make(chan error, 1)
	go func() {
		watched <- h.Watch(ctx, func(e hypervisor.Event) {
			if e.Kind == "reconnected" {
				select {
				case back <- struct{}{}:
				default:
				}
			}
		})
	}()
	d.write(t, "vda", 0, []byte(strings.Repeat("holdfast", 512)))
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "a"})
	b.must(t, err)

	b.gone = true
	b.must(t, syscall.Kill(b.daemonPID(t), syscall.SIGKILL))
	p := make([]byte, 4096)
	b.must(t, c.ReadAt(t.Context(), "vda", p, 0))
	if !strings.HasPrefix(string(p), "holdfastholdfast") {
		t.Errorf("read %q", p[:16])
	}
	for range 100 { // the kernel closes the old daemon's socket some time after the signal
		if _, err = h.State(t.Context(), d.id); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if dr.CodeOf(err) != dr.CodeHypervisorDown {
		t.Errorf("state without a daemon: %v (code %q)", err, dr.CodeOf(err))
	}
	if dr.KindOf(err) == dr.KindNotFound {
		t.Error("a daemon that is down looks like a VM that does not exist")
	}
	if err := c.End(t.Context()); err == nil {
		t.Error("a cut was ended without a daemon")
	}

	b.restartDaemon(t, h, d)
	b.must(t, c.End(t.Context()))
	select {
	case <-back:
	case <-time.After(time.Minute):
		t.Error("the watcher did not reconnect")
	}
	cancel()
	b.must(t, <-watched)
	next, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Base: c.Info().Token, Tag: "b"})
	b.must(t, err)
	b.must(t, next.End(t.Context()))
	b.must(t, h.Destroy(t.Context(), d.id))
}

// restartDaemon starts another libvirtd in place of one that was killed.
func (b *bench) restartDaemon(t testing.TB, h *libvirt.Host, d *domain) {
	t.Helper()
	cmd := exec.Command("/usr/sbin/libvirtd", "--config", filepath.Join(b.inst.Dir, "c/libvirt/libvirtd.conf"))
	cmd.Env = b.inst.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err := h.State(t.Context(), d.id)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no answer from the new daemon: %v", err)
		}
	}
}

// TestForgetOffline: protection of a VM that is off ends without starting it.
func TestForgetOffline(t *testing.T) {
	slow(t)
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	h := b.open(t, filepath.Join(d.dir, "hf"), nil)
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "a"})
	b.must(t, err)
	b.must(t, c.End(t.Context()))
	b.must(t, h.Destroy(t.Context(), d.id))
	b.must(t, h.Forget(t.Context(), d.id, []string{c.Info().Token}))
	if out := b.qemuImg(t, "info", d.image("vda")); !strings.Contains(out, "hf-a") {
		t.Errorf("the bitmap to be kept is gone:\n%s", out)
	}
	b.must(t, h.Forget(t.Context(), d.id, nil))
	if out := b.qemuImg(t, "info", d.image("vda")); strings.Contains(out, "hf-a") {
		t.Errorf("the bitmap is still there:\n%s", out)
	}
	if out := b.virsh(t, "checkpoint-list", d.name, "--name"); strings.Contains(out, "hf-a") {
		t.Errorf("checkpoints: %s", out)
	}
	b.must(t, h.Start(t.Context(), d.id))
}

// TestBootAfterCrash: Boot and Remove clear what a process left that died in the midst of Boot.
func TestBootAfterCrash(t *testing.T) {
	slow(t)
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	dir := filepath.Join(d.dir, "hf")
	h := b.open(t, dir, nil)
	cfg, err := h.Config(t.Context(), d.id)
	b.must(t, err)
	path := filepath.Join(d.dir, "r", "vda.qcow2")
	spec := hypervisor.BootSpec{Name: "replica", Owner: "o", Config: cfg, Disks: []hypervisor.BootDisk{{ID: "vda", Size: 4 << 20, Path: path}}}
	id, err := h.Boot(t.Context(), spec)
	b.must(t, err)
	// As if it had died before it defined the domain: record and image are there.
	b.must(t, h.Destroy(t.Context(), id))
	b.virsh(t, "undefine", "replica")
	other := spec
	other.Owner = "somebody"
	if _, err := h.Boot(t.Context(), other); dr.CodeOf(err) != dr.CodeAlreadyExists {
		t.Errorf("another owner's leftovers: %v", err)
	}
	again, err := h.Boot(t.Context(), spec)
	b.must(t, err)
	// As if it had died before it started the domain.
	b.must(t, h.Destroy(t.Context(), again))
	third, err := b.open(t, dir, nil).Boot(t.Context(), spec)
	b.must(t, err)
	if third != again {
		t.Errorf("Boot made %s of the VM %s", third, again)
	}
	if s, err := h.State(t.Context(), again); err != nil || s != hypervisor.PowerOn {
		t.Errorf("state %q, %v", s, err)
	}
	// As if a definition had come through after its call was given up and undone.
	late := b.virsh(t, "dumpxml", "--inactive", "replica")
	b.must(t, h.Remove(t.Context(), again, "o"))
	file := filepath.Join(d.dir, "late.xml")
	b.must(t, os.WriteFile(file, []byte(late), 0o600))
	b.virsh(t, "define", file)
	fourth, err := h.Boot(t.Context(), spec)
	b.must(t, err)
	b.must(t, h.Remove(t.Context(), fourth, "o"))
	b.virsh(t, "define", file)
	b.must(t, h.Remove(t.Context(), again, "o"))
	if out := b.virsh(t, "list", "--all", "--name"); strings.Contains(out, "replica") {
		t.Errorf("domains are left over: %s", out)
	}
	again, err = h.Boot(t.Context(), spec)
	b.must(t, err)
	// Undefined behind our back: Remove still finds the files.
	b.must(t, h.Destroy(t.Context(), again))
	b.virsh(t, "undefine", "replica")
	b.must(t, h.Remove(t.Context(), again, "o"))
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the image is left over: %v", err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "boot/*")); err != nil || len(names) > 0 {
		t.Errorf("leftovers %v, %v", names, err)
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]libvirt.Config{
		"no directory": {}, "relative": {Dir: "x"}, "root": {Dir: "/"}, "remote": {Dir: "/d", URI: "qemu+ssh://h/system"},
		"long":     {Dir: "/" + strings.Repeat("d", 80)},
		"negative": {Dir: "/d", MaxCutAge: -1}, "accelerator": {Dir: "/d", Accel: "hax"}, "comma": {Dir: "/a,b"},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (libvirt.Config{Dir: "/var/lib/holdfast"}).Validate(); err != nil {
		t.Error(err)
	}
	_, err := libvirt.Open(t.Context(), libvirt.Config{URI: "qemu:///session", Dir: t.TempDir(), Socket: "/nonexistent/sock"})
	if dr.CodeOf(err) != dr.CodeHypervisorDown && dr.KindOf(err) != dr.KindInvalid { // a temporary directory may be too long
		t.Errorf("open without a daemon: %v", err)
	}
}

// TestFirmwareVariables: where libvirt has chosen the firmware itself, the
// recovery VM gets the same one with the captured variables.
func TestFirmwareVariables(t *testing.T) {
	slow(t)
	b := newBench(t)
	dir := filepath.Join(b.inst.Dir, "e")
	b.must(t, os.Mkdir(dir, 0o755))
	b.qemuImg(t, "create", "-q", "-f", "qcow2", filepath.Join(dir, "a.qcow2"), "4M")
	xml := filepath.Join(dir, "e.xml")
	b.must(t, os.WriteFile(xml, []byte(`<domain type='qemu'><name>e</name><memory unit='MiB'>128</memory><vcpu>1</vcpu><os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
<features><acpi/></features><cpu mode='maximum'/><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='`+dir+`/a.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>`), 0o600))
	b.virsh(t, "define", xml)
	b.virsh(t, "start", "e")
	h := b.open(t, filepath.Join(b.inst.Dir, "hf"), nil)
	cfg, err := h.Config(t.Context(), dr.VMID(strings.TrimSpace(b.virsh(t, "domuuid", "e"))))
	b.must(t, err)
	vars := cfg.Native["nvram"]
	if cfg.VM.Generation != 2 || len(vars) < 64<<10 {
		t.Fatalf("generation %d, %d bytes of variables", cfg.VM.Generation, len(vars))
	}
	id, err := h.Boot(t.Context(), hypervisor.BootSpec{Name: "r", Owner: "o", Config: cfg, Disks: []hypervisor.BootDisk{{ID: "vda", Size: 4 << 20, Path: filepath.Join(dir, "r.qcow2")}}})
	b.must(t, err)
	live := func(name string) string {
		x := b.virsh(t, "dumpxml", name)
		i := strings.Index(x, "<loader")
		if i < 0 {
			t.Fatalf("%s has no firmware:\n%s", name, x)
		}
		return x[i : i+strings.Index(x[i:], "</loader>")]
	}
	if live("r") != live("e") {
		t.Errorf("firmware %s, want %s", live("r"), live("e"))
	}
	nv, err := filepath.Glob(filepath.Join(b.inst.Dir, "hf/boot/*/nvram.fd"))
	if err != nil || len(nv) != 1 {
		t.Fatalf("%v, %v", nv, err)
	}
	if st, err := os.Stat(nv[0]); err != nil || st.Size() != int64(len(vars)) {
		t.Errorf("the variables' file: %v, %v", st, err)
	}
	b.must(t, h.Remove(t.Context(), id, "o"))
	if _, err := os.Stat(nv[0]); !os.IsNotExist(err) {
		t.Errorf("the variables are left over: %v", err)
	}
}
