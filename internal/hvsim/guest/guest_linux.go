// Package guest runs the VMs of the Hyper-V simulator in QEMU: what a guest
// writes goes through the simulator's disks, so that it is tracked and lands in VHDX files.
//
// It promises: a guest that was started ends with Kill or by itself, and then
// its process, sockets and directory are gone; nothing of it outlives Kill. QEMU ends with
// this program however that ends; only its directory of sockets remains after a kill -9. The
// hardware is QEMU's, not Hyper-V's: SCSI controllers are virtio ones, so that
// a guest needs the drivers for those; IDE is the PIIX's. A VM of generation 2
// starts by UEFI without secure boot, and VMs have no network.
package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/hvsim/model"
	"holdfast/internal/nbd"
)

// Config says how guests run.
type Config struct {
	QEMU  string // program; "" = qemu-system-x86_64
	Accel string // kvm or tcg; "" = tcg, which is slow and runs everywhere
	Log   *slog.Logger
}

// Runner runs guests in QEMU. Safe for concurrent use.
type Runner struct{ cfg Config }

var _ model.Runner = (*Runner)(nil)

// startTimeout bounds how long QEMU may take until it answers.
const startTimeout = 30 * time.Second

// firmware images for UEFI guests, where Debian has them.
func firmware() []string {
	return []string{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd"}
}

// New returns a Runner; it does no I/O.
func New(cfg Config) *Runner {
	if cfg.QEMU == "" {
		cfg.QEMU = "qemu-system-x86_64"
	}
	if cfg.Accel == "" {
		cfg.Accel = "tcg"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{cfg: cfg}
}

// Start implements model.Runner.
func (r *Runner) Start(ctx context.Context, run model.VMRun) (model.Running, error) {
	g, err := r.start(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", run.Name, err)
	}
	return g, nil
}

func (r *Runner) start(ctx context.Context, run model.VMRun) (_ *guest, err error) {
	tool, err := exec.LookPath(r.cfg.QEMU)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(run.Serial), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hvg-") // short: holds sockets
	if err != nil {
		return nil, err
	}
	g := &guest{dir: dir, done: make(chan struct{})}
	args, err := r.arguments(dir, run)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	exports := nbd.ExportMap{}
	for i, d := range run.Disks {
		exports[export(i)] = d.Device
	}
	if g.server, err = nbd.NewServer(nbd.ServerConfig{Exports: exports, Log: r.cfg.Log}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "nbd"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	served := make(chan error, 1)
	go func() { served <- g.server.Serve(context.Background(), ln) }()
	g.cmd = exec.Command(tool, args...)
	g.cmd.Stderr = &g.complaints
	g.cmd.WaitDelay = 5 * time.Second
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes with the end of the thread that started QEMU, so this one is kept until QEMU has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := g.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		werr := g.cmd.Wait()
		g.err = errors.Join(werr, g.server.Close(), <-served, os.RemoveAll(dir))
		r.cfg.Log.Info("guest ended", "vm", run.Name, "result", werr)
		close(g.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, g.server.Close(), ln.Close(), <-served, os.RemoveAll(dir))
	}
	if err := g.connect(ctx); err != nil {
		_ = g.Kill() // the failure to start counts
		return nil, fmt.Errorf("QEMU does not answer: %s: %w", strings.TrimSpace(g.complaints.String()), err)
	}
	return g, nil
}

func export(i int) string { return fmt.Sprintf("disk%d", i) }

func (r *Runner) arguments(dir string, run model.VMRun) ([]string, error) {
	machine := "pc"
	if run.Generation == 2 {
		machine = "q35"
	}
	args := []string{"-name", "hvsim-" + strings.ToLower(run.ID), "-nodefaults", "-accel", r.cfg.Accel, "-machine", machine, "-smp", strconv.Itoa(max(1, run.CPUs)),
		"-m", strconv.FormatInt(max(64, run.MemoryMB), 10), "-display", "none", "-device", "VGA", "-device", "virtio-rng-pci", "-nic", "none",
		"-chardev", "file,id=serial,append=on,path=" + escape(run.Serial), "-serial", "chardev:serial", "-qmp", "unix:" + escape(filepath.Join(dir, "qmp")) + ",server=on,wait=off"}
	if run.Generation == 2 {
		i := slices.IndexFunc(firmware(), func(f string) bool { _, err := os.Stat(f); return err == nil })
		if i < 0 {
			return nil, errors.New("the VM starts by UEFI and no firmware image is installed (package ovmf)")
		}
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+firmware()[i])
	}
	order := make([]int, len(run.Disks))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := run.Disks[a], run.Disks[b]
		if c := strings.Compare(x.Controller, y.Controller); c != 0 { // IDE before SCSI
			return c
		}
		return (x.Number-y.Number)*1000 + x.Slot - y.Slot
	})
	made := map[int]bool{}
	for n, i := range order {
		d := run.Disks[i]
		args = append(args, "-blockdev", fmt.Sprintf("driver=nbd,node-name=d%d,discard=unmap,export=%s,server.type=unix,server.path=%s", i, export(i), escape(filepath.Join(dir, "nbd"))))
		if d.Controller == "IDE" {
			args = append(args, "-device", fmt.Sprintf("ide-hd,bus=ide.%d,unit=%d,drive=d%d,bootindex=%d", d.Number, d.Slot, i, n))
			continue
		}
		if !made[d.Number] {
			made[d.Number] = true
			args = append(args, "-device", fmt.Sprintf("virtio-scsi-pci,id=scsi%d", d.Number))
		}
		args = append(args, "-device", fmt.Sprintf("scsi-hd,bus=scsi%d.0,scsi-id=%d,drive=d%d,bootindex=%d", d.Number, d.Slot, i, n))
	}
	return args, nil
}

// escape doubles commas, which end a value on QEMU's command line.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// guest is a running QEMU.
type guest struct {
	dir        string
	cmd        *exec.Cmd
	server     *nbd.Server
	complaints syncBuffer
	done       chan struct{}
	err        error // after done

	mu   sync.Mutex // one command at a time
	conn net.Conn
	dec  *json.Decoder
}

// syncBuffer collects the end of what QEMU complains about.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.Len() < 16<<10 {
		s.b.Write(p)
	}
	return len(p), nil
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// connect waits until QEMU's monitor answers.
func (g *guest) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", filepath.Join(g.dir, "qmp"))
		if err == nil {
			g.conn, g.dec = conn, json.NewDecoder(conn)
			var greeting struct{ QMP json.RawMessage }
			deadline, _ := ctx.Deadline()
			if err := errors.Join(conn.SetDeadline(deadline), g.dec.Decode(&greeting)); err != nil {
				return err
			}
			return g.command(ctx, "qmp_capabilities", nil)
		}
		select {
		case <-g.done:
			return io.ErrUnexpectedEOF
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// command runs a command of QEMU's monitor and waits for its answer.
func (g *guest) command(ctx context.Context, name string, args map[string]any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := g.conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = g.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := map[string]any{"execute": name}
	if args != nil {
		req["arguments"] = args
	}
	if err := json.NewEncoder(g.conn).Encode(req); err != nil {
		return fmt.Errorf("QEMU command %s: %w", name, err)
	}
	for {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := g.dec.Decode(&answer); err != nil {
			return fmt.Errorf("QEMU command %s: %w", name, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("QEMU command %s: %s", name, answer.Error.Desc)
		case answer.Return != nil:
			return nil
		} // anything else is an event
	}
}

// Powerdown implements model.Running: it presses the power button.
func (g *guest) Powerdown(ctx context.Context) error { return g.command(ctx, "system_powerdown", nil) }

// Pause implements model.Running.
func (g *guest) Pause(ctx context.Context) error { return g.command(ctx, "stop", nil) }

// Resume implements model.Running.
func (g *guest) Resume(ctx context.Context) error { return g.command(ctx, "cont", nil) }

// Screenshot implements model.Running.
func (g *guest) Screenshot(ctx context.Context) ([]byte, error) {
	f, err := os.CreateTemp(g.dir, "screen-*.png")
	if err != nil {
		return nil, err
	}
	path := f.Name()
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := g.command(ctx, "screendump", map[string]any{"filename": path, "format": "png"}); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	b, err := os.ReadFile(path)
	return b, errors.Join(err, os.Remove(path))
}

// Done implements model.Running.
func (g *guest) Done() <-chan struct{} { return g.done }

// Kill implements model.Running. It is idempotent and waits until the guest's process and sockets are gone.
func (g *guest) Kill() error {
	if err := g.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	<-g.done
	if g.conn != nil {
		_ = g.conn.Close() // the other end is gone
	}
	var exit *exec.ExitError
	if g.err != nil && !errors.As(g.err, &exit) {
		return g.err
	}
	return nil
}
