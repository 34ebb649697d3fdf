package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
	"holdfast/internal/winetest"
)

// startVault makes and runs a vault as a process, and points the environment to it.
func startVault(t *testing.T) {
	t.Helper()
	serveMade(t, freeAddress(t))
}

// serveMade makes a vault that listens on an address, and runs it. It returns a directory beside the vault's.
func serveMade(t *testing.T, addr string, flags ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	made := decode[initOutput](t, must(t, append([]string{"vault", "init", "--data", filepath.Join(dir, "vault"), "--listen", addr, "-o", "json"}, flags...)...))
	t.Setenv("HOLDFAST_ENDPOINT", made.Endpoint)
	t.Setenv("XDG_CONFIG_HOME", dir)
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(made.CAFile)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("ca.pem: %v", err)
	}
	conf := &tls.Config{RootCAs: pool}
	if len(flags) > 0 { // it has another name than its address
		conf.ServerName = "vault.holdfast.invalid"
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	serveVault(t, filepath.Join(dir, "vault"), client, "https://"+addr)
	return dir
}

// startVaultAt runs a vault that is called by another address than it listens on, and
// issues a registration key, the file "key" in the directory that is returned.
func startVaultAt(t *testing.T, addr, public string) (dir string) {
	t.Helper()
	dir = serveMade(t, addr, "--public-url", public)
	endpoint := os.Getenv("HOLDFAST_ENDPOINT")
	raw, err := os.ReadFile(endpoint)
	if err == nil {
		err = os.WriteFile(endpoint, bytes.ReplaceAll(raw, []byte(public), []byte("https://"+addr)), 0o600) // this test knows the way
	}
	if err != nil {
		t.Fatal(err)
	}
	must(t, "site", "create", "berlin")
	must(t, "site", "key", "berlin", "--out", filepath.Join(dir, "key"))
	return dir
}

// until waits for what other processes do.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// TestWindowsProgram runs the program that Windows hosts get under Wine: it
// registers with a vault over HTTPS, and is installed and run as a service. Debian packages: wine64, gcc-mingw-w64-x86-64.
func TestWindowsProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program for Windows")
	}
	p := winetest.New(t)
	p.Stay(t)
	exe := p.Build(t, ".", "holdfast.exe")
	if out := p.Exec(t, exe, "version"); !strings.HasPrefix(out, "holdfast ") || !strings.Contains(out, "windows/amd64") {
		t.Errorf("version: %s", out)
	}

	startVault(t)
	must(t, "site", "create", "berlin", "--type", "hyperv")
	must(t, "site", "key", "berlin", "--out", filepath.Join(p.Drive(), "berlin.key"))
	if out, err := p.Start(t, exe, "agent", "run"); err == nil || !strings.Contains(out, `C:\ProgramData\Holdfast\agent`) || !strings.Contains(out, "not registered") {
		t.Errorf("run before register: %v\n%s", err, out)
	}
	if out := p.Exec(t, exe, "agent", "register", "--key", `C:\berlin.key`, "--role", "source,recovery", "--host-name", "wine-1"); !strings.Contains(out, "berlin") {
		t.Errorf("register: %s", out)
	}
	if _, err := os.Stat(filepath.Join(p.Drive(), "ProgramData", "Holdfast", "agent", "identity", "identity.json")); err != nil {
		t.Errorf("the state is not where it belongs: %v", err)
	}
	hosts := decode[[]struct {
		Host, Site string
		Roles      []string
	}](t, must(t, "provider", "list", "-o", "json"))
	found := false
	for _, h := range hosts {
		found = found || h.Host == "wine-1" && h.Site == "berlin" && len(h.Roles) == 2
	}
	if !found {
		t.Errorf("the vault knows %+v", hosts)
	}

	// Wine has no Hyper-V: the doctor says so, and that the vault answers.
	out, err := p.Start(t, exe, "agent", "doctor", "-o", "json")
	if err == nil || !strings.Contains(out, `"vault"`) || !strings.Contains(out, " answers in ") {
		t.Errorf("doctor: %v\n%s", err, out)
	}

	service := func(want string, args ...string) {
		t.Helper()
		if out := p.Exec(t, exe, append([]string{"agent", "service"}, args...)...); !strings.Contains(out, want) {
			t.Errorf("agent service %v: no %q in\n%s", args, want, out)
		}
	}
	service("absent", "status")
	service("stopped", "install", "--log-level", "debug", "--bandwidth-hours", "Mon-Fri 08:00-18:00=5M", "--state", `ProgramData\Holdfast\agent`)
	service("stopped", "status")
	query := p.Exec(t, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\HoldfastAgent`, "/v", "ImagePath")
	for _, want := range []string{"holdfast.exe", "agent run --service", "--log-level=debug", `"--bandwidth-hours=Mon-Fri 08:00-18:00=5M"`, `--state=C:\ProgramData\Holdfast\agent`} {
		if !strings.Contains(query, want) {
			t.Errorf("the service's command line lacks %s:\n%s", want, query)
		}
	}
	service("HoldfastAgent", "install") // again: changes the flags
	if query := p.Exec(t, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\HoldfastAgent`, "/v", "ImagePath"); strings.Contains(query, "log-level") {
		t.Errorf("the flags were not changed:\n%s", query)
	}
	// It starts and fails, as there is no Hyper-V; whether that is seen by start is a matter of time.
	if out, err := p.Start(t, exe, "agent", "service", "start"); err != nil && !strings.Contains(out, "event log") {
		t.Errorf("start: %v\n%s", err, out)
	}
	// An agent that needs no Hyper-V runs as the service, and calls the vault.
	must(t, "site", "create", "scvmm", "--type", "vmm")
	must(t, "site", "key", "scvmm", "--out", filepath.Join(p.Drive(), "scvmm.key"))
	p.Exec(t, exe, "agent", "register", "--key", `C:\scvmm.key`, "--role", "vmm", "--host-name", "wine-vmm", "--state", `C:\vmm`)
	seen := func() time.Time { // when a call of the host came last
		for _, h := range decode[[]struct {
			Host     string
			LastSeen time.Time
		}](t, must(t, "provider", "list", "-o", "json")) {
			if h.Host == "wine-vmm" {
				return h.LastSeen
			}
		}
		t.Fatal("the vault does not know wine-vmm")
		return time.Time{}
	}
	registered := seen()
	service("HoldfastAgent", "install", "--state", `C:\vmm`)
	if !seen().Equal(registered) {
		t.Error("something else than the service calls the vault")
	}
	service("running", "start")
	until(t, "the service calls the vault", func() bool { return seen().After(registered) })
	service("stopped", "stop")
	service("absent", "remove")
	service("absent", "status")
	if out, err := p.Start(t, exe, "agent", "service", "start"); err == nil || !strings.Contains(out, "there is no service") {
		t.Errorf("start without service: %v\n%s", err, out)
	}
	if out, err := p.Start(t, exe, "agent", "run", "--service"); err == nil || !strings.Contains(out, "error:") {
		t.Errorf("run --service by hand: %v\n%s", err, out)
	}
}

// TestServiceElsewhere: there are no services of Windows here, and that is said.
func TestServiceElsewhere(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"service install", "service remove", "service start", "service stop", "service status", "run --service"} {
		if r := cli(t, strings.Fields("agent "+args)...); r.code != console.ExitCode(dr.KindUnsupported) || !strings.Contains(r.err, "only on Windows") || !strings.Contains(r.err, "systemd") {
			t.Errorf("agent %s: %+v", args, r)
		}
	}
}
