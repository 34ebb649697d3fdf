package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/ledger/sessionvirt"
)

// hyperV is a simulated Hyper-V host, whose VMs run in QEMU from VHDX files.
type hyperV struct {
	bin  string
	dir  string // drives, state and consoles
	logs string
	port int
	args []string // VMs of the simulator
	run  string   // short directory for sockets
	proc *process
	list struct {
		Hosts []struct{ URL, Files string }
	}
}

// newHyperV prepares a host; it does not run yet.
func newHyperV(bin, logs, name string) (*hyperV, error) {
	h := &hyperV{bin: bin, logs: logs, dir: filepath.Join(logs, "hyperv-"+name)}
	err := os.MkdirAll(h.dir, 0o755)
	if err == nil {
		err = os.WriteFile(h.passwordFile(), []byte("demo-"+name+"\n"), 0o600)
	}
	if err == nil {
		h.port, err = freePort()
	}
	if err == nil {
		h.run, err = os.MkdirTemp("/tmp", "hfr-")
	}
	return h, err
}

func (h *hyperV) passwordFile() string { return filepath.Join(h.dir, "password") }

// start runs the simulator and waits until it serves.
func (h *hyperV) start(ctx context.Context) error {
	args := append([]string{"--dir", h.dir, "--listen", fmt.Sprintf("127.0.0.1:%d", h.port), "--password-file", h.passwordFile(), "--json", "--run", "--merge-time", "200ms", "--job-time", "100ms"}, h.args...)
	if sessionvirt.KVMUsable(ctx) {
		args = append(args, "--accel", "kvm")
	}
	var err error
	// A killed simulator leaves its guests' sockets behind: they go with the directory.
	if h.proc, err = startWith([]string{"TMPDIR=" + h.run}, filepath.Base(h.dir), h.logs, h.bin, args...); err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err := h.proc.alive(); err != nil {
			return err
		}
		if h.serves() {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return errors.New("the Hyper-V simulator does not come up")
		}
	}
}

// serves reads the line that the simulator prints when it serves; the last one counts.
func (h *hyperV) serves() (found bool) {
	f, err := os.Open(h.proc.log)
	if err != nil {
		return false
	}
	defer f.Close()
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "{") && json.Unmarshal(sc.Bytes(), &h.list) == nil {
			n++
		}
	}
	return n > h.proc.before && len(h.list.Hosts) > 0
}

// kill ends the simulator and its guests as a power cut of the host would.
func (h *hyperV) kill() {
	_ = syscall.Kill(-h.proc.cmd.Process.Pid, syscall.SIGKILL) // the guests are in its group
	<-h.proc.done
}

func (*hyperV) kind() dr.FabricType { return dr.HyperVSite }

func (h *hyperV) flags() []string {
	return []string{"--hyperv", h.list.Hosts[0].URL, "--hyperv-user", "Administrator", "--hyperv-password-file", h.passwordFile(), "--hyperv-files", h.list.Hosts[0].Files,
		"--dir", filepath.Join(h.list.Hosts[0].Files, "C", "Holdfast"), "--run-dir", h.run}
}

func (h *hyperV) serial(_ context.Context, vm string) (string, error) {
	return filepath.Join(h.dir, "run", strings.ToLower(vm[:min(8, len(vm))]), "serial.log"), nil
}

func (h *hyperV) stop() error {
	if h.proc != nil {
		h.proc.stop()
		h.kill() // guests that did not end with it
	}
	return os.RemoveAll(h.run)
}

// hvMachine is the ledger VM of a simulated host, the only one there.
type hvMachine struct{ host *hyperV }

// newHVMachine makes the ledger's disks, which become VHDX files when the host starts.
func newHVMachine(ctx context.Context, h *hyperV, img guestimage.Image) (*hvMachine, error) {
	disks, err := guestimage.Instantiate(ctx, img, h.dir, vmName, guestimage.Raw, "churn=10")
	if err != nil {
		return nil, err
	}
	text := "name=" + vmName + ",gen=1,cpus=1,memory=192,os=Debian GNU/Linux"
	text += ",disk=" + disks.Boot + ",disk=" + disks.Data
	h.args = []string{"--vm", text}
	return &hvMachine{h}, nil
}

// Start starts the host, and waits until the guest has told what it found.
func (m *hvMachine) Start(ctx context.Context) error {
	before, err := m.Read()
	if err != nil {
		return err
	}
	if err := m.host.start(ctx); err != nil {
		return err
	}
	c, err := m.wait(ctx, "the guest to boot", func(c ledger.Console) bool { return c.Boots > before.Boots })
	if err == nil && (!c.Order || !c.Chain) {
		return errors.New("the guest booted with an unsound ledger")
	}
	return err
}

// Kill is a power cut of the host.
func (m *hvMachine) Kill(context.Context) error {
	m.host.kill()
	return nil
}

func (m *hvMachine) Acked() (uint64, error) {
	c, err := m.Read()
	return c.Acked, err
}

func (m *hvMachine) Read() (ledger.Console, error) {
	list, err := filepath.Glob(filepath.Join(m.host.dir, "run", "*", "serial.log"))
	if err != nil || len(list) == 0 {
		return ledger.Console{}, err
	}
	f, err := os.Open(list[0])
	if err != nil {
		return ledger.Console{}, err
	}
	defer f.Close()
	return ledger.ReadConsole(f)
}

func (m *hvMachine) WaitAck(ctx context.Context, n uint64) error {
	_, err := m.wait(ctx, fmt.Sprintf("record %d", n), func(c ledger.Console) bool { return c.Acked >= n })
	return err
}

func (m *hvMachine) wait(ctx context.Context, what string, ok func(ledger.Console) bool) (ledger.Console, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionvirt.BootLimit)
	defer cancel()
	for {
		c, err := m.Read()
		if err == nil && ok(c) {
			return c, nil
		}
		if perr := m.host.proc.alive(); perr != nil {
			return c, perr
		}
		select {
		case <-ctx.Done():
			return c, fmt.Errorf("wait for %s: %w (%v)", what, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
