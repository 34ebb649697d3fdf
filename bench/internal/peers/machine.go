package peers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/bench/internal/meter"
	"holdfast/internal/ledger/sessionvirt"
)

// MachineRequest is what virtnbdbackup is measured with: a virtual machine of
// its own, in a libvirt session, which root can't have.
type MachineRequest struct {
	Dir    string  `json:"dir"`    // for copies; belongs to the user that measures
	Disk   string  `json:"disk"`   // readable by that user
	Places []int64 `json:"places"` // that get 4 KiB of new content before the second copy
}

// MachineAnswer is what it cost.
type MachineAnswer struct {
	First, Next, Idle, Restore Cost
}

// Cost is a Result in JSON.
type Cost struct {
	CPU   time.Duration `json:"cpu"`
	Wall  time.Duration `json:"wall"`
	Bytes int64         `json:"bytes"`
}

// Result of a Cost.
func (c Cost) Result() Result {
	return Result{Usage: meter.Usage{CPU: c.CPU, Wall: c.Wall}, Bytes: c.Bytes}
}

// The machine never runs guest code: only its disk is used, so it starts paused.
const machineXML = `<domain type='qemu'>
  <name>bench</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='%s'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
`

// Machine measures virtnbdbackup. The caller is not root.
func Machine(ctx context.Context, q MachineRequest) (a MachineAnswer, err error) {
	if err := installed("virtnbdbackup"); err != nil {
		return a, err
	}
	inst, err := sessionvirt.Start(ctx, "")
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, inst.Stop()) }()
	m := &machine{inst: inst, q: q, disk: filepath.Join(q.Dir, "vm.qcow2"), backup: filepath.Join(q.Dir, "backup")}
	if _, err := meter.Command(ctx, "qemu-img", "convert", "-m", "8", "-W", "-f", "raw", "-O", "qcow2", q.Disk, m.disk); err != nil {
		return a, err
	}
	xml := filepath.Join(q.Dir, "vm.xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, machineXML, m.disk), 0o600); err != nil {
		return a, err
	}
	if _, err := inst.Virsh(ctx, "define", xml); err != nil {
		return a, err
	}
	if _, err := inst.Virsh(ctx, "start", "--paused", "bench"); err != nil {
		return a, err
	}
	if m.pid, err = m.findQEMU(); err != nil {
		return a, err
	}
	if a.First, err = m.run(ctx, "full"); err != nil {
		return a, err
	}
	if err := m.write(ctx, q.Places); err != nil {
		return a, err
	}
	if a.Next, err = m.run(ctx, "inc"); err != nil {
		return a, err
	}
	if least := int64(len(q.Places)) * 4096; a.Next.Bytes < least {
		return a, fmt.Errorf("virtnbdbackup copied %d bytes after writes of %d", a.Next.Bytes, least)
	}
	if a.Idle, err = m.run(ctx, "inc"); err != nil {
		return a, err
	}
	if _, err := inst.Virsh(ctx, "destroy", "bench"); err != nil {
		return a, err
	}
	a.Restore, err = m.restore(ctx)
	return a, err
}

type machine struct {
	inst         *sessionvirt.Instance
	q            MachineRequest
	disk, backup string
	pid          int // of QEMU
}

// findQEMU looks for the only QEMU with the machine's disk.
func (m *machine) findQEMU() (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, l := range lines {
		raw, err := os.ReadFile(l)
		if err == nil && strings.Contains(string(raw), "qemu-system") && strings.Contains(string(raw), m.disk) {
			return strconv.Atoi(filepath.Base(filepath.Dir(l)))
		}
	}
	return 0, errors.New("the machine's QEMU is not among the processes")
}

func (m *machine) run(ctx context.Context, level string) (c Cost, err error) {
	before, err := m.size()
	if err != nil {
		return c, err
	}
	cpu, err := meter.ProcessCPU(m.pid)
	if err != nil {
		return c, err
	}
	start := time.Now()
	u, _, err := command(ctx, m.q.Dir, m.inst.Env, "virtnbdbackup", "-U", m.inst.URI, "-d", "bench", "-l", level, "-o", m.backup, "--noprogress",
		"--scratchdir", m.q.Dir, "-f", filepath.Join(m.inst.Dir, "vnb"))
	if err == nil {
		err = syncTree(m.backup)
	}
	if err != nil {
		return c, err
	}
	c.Wall = time.Since(start)
	now, err := meter.ProcessCPU(m.pid)
	if err != nil {
		return c, err
	}
	after, err := m.size()
	c.CPU, c.Bytes = u.CPU+now-cpu, after-before
	return c, err
}

func (m *machine) size() (int64, error) {
	n, err := treeSize(m.backup)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return n, err
}

// write changes the machine's disk as its guest would, through QEMU.
func (m *machine) write(ctx context.Context, places []int64) error {
	dev, err := m.inst.Virsh(ctx, "qemu-monitor-command", "bench", "--hmp", "info block")
	if err != nil {
		return err
	}
	// A line says: "    Attached to:      /machine/peripheral/virtio-disk0/virtio-backend".
	_, rest, ok := strings.Cut(dev, "Attached to:")
	if !ok {
		return fmt.Errorf("the machine's disk is not among its devices: %s", dev)
	}
	path := strings.Fields(rest)[0]
	file := filepath.Join(m.q.Dir, "content")
	p := make([]byte, 4<<10)
	var script strings.Builder
	for i, off := range places {
		fmt.Fprintf(&script, "qemu-monitor-command bench --hmp 'qemu-io -d %s \"write -s %s.%d %d 4096\"'\n", path, file, i%8, off)
	}
	for i := range 8 { // noise, not the same everywhere
		rand.Read(p)
		if err := os.WriteFile(file+"."+strconv.Itoa(i), p, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "virsh", "-q", "-c", m.inst.URI)
	cmd.Env, cmd.Stdin = m.inst.Env, strings.NewReader(script.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("write to the machine's disk: %w: %.400s", err, out)
	}
	return nil // QEMU prints the outcome elsewhere: the size of the next copy tells
}

// restore reads the newest copy back and compares it with the disk.
func (m *machine) restore(ctx context.Context) (c Cost, err error) {
	dir := filepath.Join(m.q.Dir, "restored")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return c, err
	}
	start := time.Now()
	u, _, err := command(ctx, m.q.Dir, m.inst.Env, "virtnbdrestore", "-U", m.inst.URI, "-i", m.backup, "-o", dir, "--noprogress", "-f", filepath.Join(m.inst.Dir, "vnr"))
	if err == nil {
		err = syncTree(dir)
	}
	if err != nil {
		return c, err
	}
	c.CPU, c.Wall = u.CPU, time.Since(start)
	_, err = meter.Command(ctx, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", m.disk, filepath.Join(dir, filepath.Base(m.disk)))
	return c, err
}
