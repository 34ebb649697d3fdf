package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/armclient"
	"holdfast/internal/dr"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/sessionvirt"
)

// process is a program of the demo's, known by handle.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	before int // lines of JSON that earlier runs left in the log
	once   sync.Once
	done   chan struct{}
}

func start(name, dir, bin string, args ...string) (*process, error) {
	return startWith(nil, name, dir, bin, args...)
}

// startWith is start with more variables in the environment.
func startWith(env []string, name, dir, bin string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if old, err := os.ReadFile(p.log); err == nil {
		p.before = bytes.Count(append([]byte("\n"), old...), []byte("\n{"))
	}
	p.cmd = exec.Command(bin, args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir, p.cmd.Env = f, f, dir, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which then ends its programs in order
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends the program, by force after a while.
func (p *process) stop() {
	if p == nil {
		return
	}
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			p.kill()
		}
	})
}

// alive fails with the end of the log if the program has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		raw, _ := os.ReadFile(p.log)
		return fmt.Errorf("%s has ended: %s", p.name, strings.TrimSpace(string(raw[max(0, len(raw)-1500):])))
	default:
		return nil
	}
}

// site is one site: a hypervisor of its own and an agent.
type site struct {
	name  string
	role  string
	on    platform
	virt  *sessionvirt.Instance // of a KVM site
	agent *process
	state string
}

// platform is the hypervisor of a site.
type platform interface {
	kind() dr.FabricType
	flags() []string // of 'agent run', which say where it is
	// serial returns the file of a VM's serial console.
	serial(ctx context.Context, vm string) (string, error)
	stop() error
}

// machine is the source VM, as somebody sees it who can pull its plug.
type machine interface {
	Start(ctx context.Context) error
	Kill(ctx context.Context) error // as a power cut
	Acked() (uint64, error)         // the newest record that it has told as written
	Read() (ledger.Console, error)
	WaitAck(ctx context.Context, n uint64) error
}

// kvm is a libvirt session.
type kvm struct{ virt *sessionvirt.Instance }

func (kvm) kind() dr.FabricType { return dr.KVMSite }

func (k kvm) flags() []string {
	return []string{"--libvirt", "qemu:///session", "--libvirt-socket", k.virt.Socket, "--dir", filepath.Join(k.virt.Dir, "hf"), "--run-dir", filepath.Join(k.virt.Dir, "run")}
}

func (k kvm) serial(ctx context.Context, vm string) (string, error) {
	xml, err := k.virt.Virsh(ctx, "dumpxml", vm)
	if err != nil {
		return "", err
	}
	path := serialPath(xml)
	if path == "" {
		return "", errors.New("the recovery VM has no serial console")
	}
	return path, nil
}

func (k kvm) stop() error { return k.virt.Stop() }

// credentials are what 'holdfast vault init --output json' prints once.
type credentials struct {
	Portal   string `json:"portal"`
	User     string `json:"user"`
	Password string `json:"password"`
	Endpoint string `json:"endpoint"` // path of endpoint.json
}

// endpoint is endpoint.json: how programs reach the vault.
type endpoint struct {
	URL            string `json:"url"`
	CAFile         string `json:"caFile"`
	TenantID       string `json:"tenantId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroup"`
	VaultName      string `json:"vaultName"`
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// command runs the holdfast binary to its end.
func (d *demo) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.bin, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out, nil
}

// startVault makes a vault with a directory store and starts it.
func (d *demo) startVault(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	url := fmt.Sprintf("https://127.0.0.1:%d", port)
	data := filepath.Join(d.dir, "vault")
	out, err := d.command(ctx, "vault", "init", "--data", data, "--store", cmp.Or(d.store, filepath.Join(d.dir, "store")), "--name", "demo",
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--public-url", url, "--output", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &d.cred); err != nil {
		return fmt.Errorf("read what vault init printed: %w", err)
	}
	if d.vault, err = start("vault", d.dir, d.bin, "vault", "serve", "--data", data); err != nil {
		return err
	}
	raw, err := os.ReadFile(d.cred.Endpoint)
	if err != nil {
		return err
	}
	var ep endpoint
	if err := json.Unmarshal(raw, &ep); err != nil {
		return fmt.Errorf("read %s: %w", d.cred.Endpoint, err)
	}
	d.api, err = armclient.New(armclient.Config{
		URL: ep.URL, CAFile: ep.CAFile, TenantID: ep.TenantID, ClientID: ep.ClientID, ClientSecret: ep.ClientSecret,
		SubscriptionID: ep.SubscriptionID, ResourceGroup: ep.ResourceGroup, Vault: ep.VaultName, PollInterval: 200 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	return d.until(ctx, time.Minute, "the vault to answer", func() (bool, error) {
		if err := d.vault.alive(); err != nil {
			return false, err
		}
		_, err := d.api.Fabrics(ctx)
		return err == nil, nil
	})
}

// startAgent registers a site's host with a key file and starts its agent.
func (d *demo) startAgent(ctx context.Context, s *site) error {
	key, err := d.api.RegistrationKey(ctx, s.name, false, 0)
	if err != nil {
		return err
	}
	file := filepath.Join(d.dir, s.name+".VaultCredentials")
	if err := os.WriteFile(file, key, 0o600); err != nil {
		return err
	}
	s.state = filepath.Join(d.dir, "agent-"+s.name)
	if _, err := d.command(ctx, "agent", "register", "--key", file, "--state", s.state, "--role", s.role, "--host-name", s.name+"-host"); err != nil {
		return err
	}
	return d.runAgent(s)
}

func (d *demo) runAgent(s *site) (err error) {
	s.agent, err = start("agent-"+s.name, d.dir, d.bin, append([]string{"agent", "run", "--state", s.state}, s.on.flags()...)...)
	return err
}

// until polls for a condition that another process brings about.
func (d *demo) until(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		good, err := ok()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if good {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s in vain", limit, what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cleanUp ends every program that the demo started and removes its files.
func (d *demo) cleanUp() error {
	d.out.progress("cleaning up")
	d.watch.stop()
	for _, s := range d.sites {
		s.agent.stop()
	}
	d.vault.stop()
	var err error
	for _, s := range d.sites {
		if s.on != nil {
			err = errors.Join(err, s.on.stop())
		}
	}
	if d.dir == "" {
		return err
	}
	err = errors.Join(err, d.stopServings())
	if err == nil && (d.result.OK || !d.once) {
		return os.RemoveAll(d.dir)
	}
	d.out.line("The logs are kept in %s.", d.dir)
	return err
}

// stopServings ends the serving processes, which outlive their agent by design.
func (d *demo) stopServings() error {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, p := range procs {
		raw, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(raw, []byte(d.dir)) || !bytes.Contains(raw, []byte("serve-point")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/cmdline", &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	return nil
}
