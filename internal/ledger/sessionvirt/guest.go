package sessionvirt

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
)

// BootLimit is how long a guest may take from start to LEDGER-ORDER. An
// emulated boot takes 4 s on a quiet machine and more than 20 s on a busy one.
const BootLimit = 120 * time.Second

// GuestConfig describes a ledger guest. The zero value of every field has a meaning.
type GuestConfig struct {
	UEFI      bool
	KVM       bool              // set it from KVMUsable; false = emulation, which works everywhere
	MemoryMiB int               // 0 = 256
	Network   string            // "" = no network card; "user" = QEMU's user network; else an XML element <interface>…</interface>
	Words     []string          // words of the guest's kernel command line, e.g. "rate=50", "churn=20"
	Format    guestimage.Format // "" = qcow2
	UUID      string            // "" = random
	MAC       string            // of the user network's card; "" = random
}

// Guest is one ledger guest of an instance.
type Guest struct {
	Name    string
	UUID    string
	Disks   guestimage.Disks // vda is Disks.Boot, vdb is Disks.Data
	NVRAM   string           // UEFI variables, empty with BIOS
	Console string           // file with everything the guest printed, over all boots
	Control string           // socket that takes requests; the guest program's comment lists them
	XML     string           // the domain's definition

	inst *Instance
}

var guestName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

// NewGuest makes private disks of img below the instance's directory and
// defines the domain, without starting it. name is at most 16 lower-case letters, digits and dashes.
func NewGuest(ctx context.Context, i *Instance, img guestimage.Image, name string, cfg GuestConfig) (*Guest, error) {
	if !guestName.MatchString(name) {
		return nil, fmt.Errorf("define guest %q: the name does not match %s", name, guestName)
	}
	disks, err := guestimage.Instantiate(ctx, img, i.Dir, name, cfg.Format, cfg.Words...)
	if err != nil {
		return nil, err
	}
	g := &Guest{
		Name: name, UUID: cfg.UUID, Disks: disks, inst: i,
		Console: filepath.Join(i.Dir, name+".console"), Control: filepath.Join(i.Dir, name+".ctl"),
	}
	if g.UUID == "" {
		g.UUID = newUUID()
	}
	if cfg.UEFI {
		g.NVRAM = filepath.Join(i.Dir, name+".nvram")
	}
	if cfg.MAC == "" {
		var b [3]byte
		rand.Read(b[:])
		cfg.MAC = fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
	}
	if g.XML, err = DomainXML(g, cfg); err != nil {
		return nil, err
	}
	file := filepath.Join(i.Dir, name+".xml")
	if err := os.WriteFile(file, []byte(g.XML), 0o600); err != nil {
		return nil, fmt.Errorf("define guest %s: %w", name, err)
	}
	if _, err := i.Virsh(ctx, "define", file); err != nil {
		return nil, fmt.Errorf("define guest %s: %w", name, err)
	}
	return g, nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Start starts the guest and waits, at most BootLimit, until its ledger tells
// what it found and goes on. A guest that says its ledger is unsound is an error.
func (g *Guest) Start(ctx context.Context) error {
	before, err := g.Read()
	if err != nil {
		return err
	}
	if _, err := g.inst.Virsh(ctx, "start", g.Name); err != nil {
		return fmt.Errorf("start guest %s: %w", g.Name, err)
	}
	return g.WaitBoot(ctx, before.Boots+1)
}

// WaitBoot waits until the guest's console shows its n-th boot (1 = first).
func (g *Guest) WaitBoot(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	c, err := g.wait(ctx, fmt.Sprintf("boot %d", n), func(c ledger.Console) bool { return c.Boots >= n })
	if err == nil && (!c.Order || !c.Chain) {
		return fmt.Errorf("guest %s booted with an unsound ledger (A ends at %d, B at %d, order ok=%t, chain ok=%t)", g.Name, c.FoundA, c.FoundB, c.Order, c.Chain)
	}
	return err
}

// WaitAck waits, at most BootLimit, until record n is acknowledged.
func (g *Guest) WaitAck(ctx context.Context, n uint64) error {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	_, err := g.wait(ctx, fmt.Sprintf("record %d", n), func(c ledger.Console) bool { return c.Acked >= n })
	return err
}

func (g *Guest) wait(ctx context.Context, what string, ok func(ledger.Console) bool) (ledger.Console, error) {
	for {
		c, err := g.Read()
		if err != nil || ok(c) {
			return c, err
		}
		if c.Stopped != "" {
			return c, fmt.Errorf("wait for %s of guest %s: it stopped writing: %s", what, g.Name, c.Stopped)
		}
		select {
		case <-ctx.Done():
			return c, fmt.Errorf("wait for %s of guest %s: %w; its console ends: %s", what, g.Name, ctx.Err(), g.consoleEnd())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (g *Guest) consoleEnd() string {
	b, err := os.ReadFile(g.Console)
	if err != nil {
		return err.Error()
	}
	return strconv.Quote(string(b[max(0, len(b)-1500):]))
}

// Read reads the guest's console; before the first start it is empty.
func (g *Guest) Read() (ledger.Console, error) {
	f, err := os.Open(g.Console)
	if errors.Is(err, os.ErrNotExist) {
		return ledger.Console{}, nil
	}
	if err != nil {
		return ledger.Console{}, fmt.Errorf("read console of guest %s: %w", g.Name, err)
	}
	defer f.Close()
	return ledger.ReadConsole(f)
}

// Acked is the number of the last record that the outside saw acknowledged, 0
// if none. Every record up to it was durable on both disks when this was called.
func (g *Guest) Acked() (uint64, error) {
	c, err := g.Read()
	return c.Acked, err
}

// Kill ends the guest's QEMU as a power cut would (SIGKILL) and waits until it is gone and libvirt knows.
func (g *Guest) Kill(ctx context.Context) error {
	match := func(c string) bool { return isQEMU(c, g.inst.Dir) && strings.Contains(c, "guest="+g.Name+",") }
	if len(processes(match)) == 0 {
		return fmt.Errorf("kill guest %s: it does not run", g.Name)
	}
	if err := kill(match); err != nil {
		return fmt.Errorf("kill guest %s: %w", g.Name, err)
	}
	return g.WaitOff(ctx)
}

// Shutdown presses the power button and waits until the guest is off.
func (g *Guest) Shutdown(ctx context.Context) error {
	if _, err := g.inst.Virsh(ctx, "shutdown", "--mode", "acpi", g.Name); err != nil {
		return fmt.Errorf("shut down guest %s: %w", g.Name, err)
	}
	return g.WaitOff(ctx)
}

// WaitOff waits, at most BootLimit, until libvirt says that the guest is shut off.
func (g *Guest) WaitOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	for {
		state, err := g.inst.Virsh(ctx, "domstate", g.Name)
		if err != nil {
			return fmt.Errorf("wait for guest %s to be off: %w", g.Name, err)
		}
		if strings.TrimSpace(state) == "shut off" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for guest %s to be off: it is %s: %w", g.Name, strings.TrimSpace(state), ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Request sends one request to the guest program and returns its answer; the guest program's comment lists them.
func (g *Guest) Request(ctx context.Context, req string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", g.Control)
	if err != nil {
		return "", fmt.Errorf("request %q of guest %s: %w", req, g.Name, err)
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		c.SetDeadline(t)
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := fmt.Fprintln(c, req); err != nil {
		return "", fmt.Errorf("request %q of guest %s: %w", req, g.Name, err)
	}
	ans, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("request %q of guest %s: %w", req, g.Name, errors.Join(ctx.Err(), err))
	}
	if ans = strings.TrimSpace(ans); strings.HasPrefix(ans, "ERROR") {
		return ans, fmt.Errorf("request %q of guest %s: it answered %q", req, g.Name, ans)
	}
	return ans, nil
}

// Fill lets the guest write n random 4 KiB blocks to its data disk; they are durable when it returns.
func (g *Guest) Fill(ctx context.Context, n int) error {
	_, err := g.Request(ctx, "fill "+strconv.Itoa(n))
	return err
}

// Exec runs a program in the guest through the guest agent and returns its
// output, standard error after standard output. It waits for the agent, which is up a moment after the ledger.
func (g *Guest) Exec(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	out, err := g.exec(ctx, path, args)
	if err != nil {
		return out, fmt.Errorf("run %s in guest %s: %w", path, g.Name, err)
	}
	return out, nil
}

func (g *Guest) exec(ctx context.Context, path string, args []string) (string, error) {
	if err := g.waitAgent(ctx); err != nil {
		return "", err
	}
	var started struct{ PID int }
	if err := g.agent(ctx, "guest-exec", map[string]any{"path": path, "arg": args, "capture-output": true}, &started); err != nil {
		return "", err
	}
	for {
		var st struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      string `json:"out-data"`
			Err      string `json:"err-data"`
		}
		if err := g.agent(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &st); err != nil {
			return "", err
		}
		if !st.Exited {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		out, err := base64.StdEncoding.DecodeString(st.Out)
		if err != nil {
			return "", fmt.Errorf("decode output: %w", err)
		}
		errOut, err := base64.StdEncoding.DecodeString(st.Err)
		if err != nil {
			return "", fmt.Errorf("decode output: %w", err)
		}
		text := string(out) + string(errOut)
		if st.ExitCode != 0 || st.Signal != 0 {
			return text, fmt.Errorf("exit code %d, signal %d: %s", st.ExitCode, st.Signal, strings.TrimSpace(text))
		}
		return text, nil
	}
}

func (g *Guest) waitAgent(ctx context.Context) error {
	for {
		err := g.agent(ctx, "guest-ping", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest agent does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// agent sends one command to the guest agent.
func (g *Guest) agent(ctx context.Context, name string, args, result any) error {
	cmd := map[string]any{"execute": name}
	if args != nil {
		cmd["arguments"] = args
	}
	b, err := json.Marshal(cmd)
	if err != nil {
		return err
	}
	out, err := g.inst.Virsh(ctx, "qemu-agent-command", "--timeout", "10", g.Name, string(b))
	if err != nil || result == nil {
		return err
	}
	var ans struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal([]byte(out), &ans); err != nil {
		return fmt.Errorf("decode answer to %s: %w", name, err)
	}
	return json.Unmarshal(ans.Return, result)
}

// Verify checks the disks of a guest that is off, on private copies, without booting them.
func (g *Guest) Verify(ctx context.Context) (ledger.Verdict, error) {
	dir, err := os.MkdirTemp("", "ledger-raw-")
	if err != nil {
		return ledger.Verdict{}, fmt.Errorf("verify guest %s: %w", g.Name, err)
	}
	defer os.RemoveAll(dir)
	raw := map[string]string{g.Disks.Boot: filepath.Join(dir, "boot"), g.Disks.Data: filepath.Join(dir, "data")}
	for from, to := range raw {
		if out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-O", "raw", from, to).CombinedOutput(); err != nil {
			return ledger.Verdict{}, fmt.Errorf("verify guest %s: convert %s: %s: %w", g.Name, from, strings.TrimSpace(string(out)), err)
		}
	}
	v, err := ledger.VerifyImages(ctx, raw[g.Disks.Boot], raw[g.Disks.Data])
	if err != nil {
		return v, fmt.Errorf("verify guest %s: %w", g.Name, err)
	}
	return v, nil
}
