//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// buffer is written by a process while a test reads it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// vaultProcess is 'holdfast vault serve' as a process of its own.
type vaultProcess struct {
	cmd *exec.Cmd
	log *buffer
	end chan error
}

// program runs this test binary as the program itself.
func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMain+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

func serveVault(t *testing.T, data string, client *http.Client, base string) *vaultProcess {
	t.Helper()
	p := &vaultProcess{cmd: program("vault", "serve", "--data", data, "--log-level", "debug"), log: &buffer{}, end: make(chan error, 1)}
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.end <- p.cmd.Wait(); close(p.end) }() // ends with the process
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // may have ended already
		<-p.end
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := client.Get(base + "/healthz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p
			}
		}
		select {
		case err := <-p.end:
			t.Fatalf("the vault ended: %v\n%s", err, p.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the vault does not answer: %v\n%s", err, p.log)
		}
	}
}

// stop sends a signal and returns the exit code.
func (p *vaultProcess) stop(t *testing.T, sig os.Signal) int {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.end:
	case <-time.After(20 * time.Second):
		t.Fatalf("the vault does not stop\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

type initOutput struct {
	Portal, User, Password, Endpoint, KeyFile, KeyID, CAFile, Data, Store string
}

func TestVaultEndToEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	dir := t.TempDir()
	data, addr := filepath.Join(dir, "vault"), freeAddress(t)
	text := must(t, "vault", "init", "--data", data, "--listen", addr, "-o", "json")
	documented(t, "vault init", text)
	made := decode[initOutput](t, text)
	t.Setenv("HOLDFAST_ENDPOINT", made.Endpoint)
	t.Setenv("XDG_CONFIG_HOME", dir)
	for file, mode := range map[string]os.FileMode{"": 0o700, "vault.key": 0o600, "config.json": 0o600, "endpoint.json": 0o600, "ca.pem": 0o644, "store": 0o700} {
		info, err := os.Stat(filepath.Join(data, file))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q has mode %v, want %v (%v)", file, info.Mode().Perm(), mode, err)
		}
	}
	key, _ := os.ReadFile(made.KeyFile)
	if r := cli(t, "vault", "init", "--data", data); r.code != console.ExitCode(dr.KindConflict) || !strings.Contains(r.err, "vault serve") {
		t.Errorf("a second init: %+v", r)
	}
	if again, _ := os.ReadFile(made.KeyFile); !bytes.Equal(key, again) || len(key) == 0 {
		t.Error("the private key was changed")
	}

	base := "https://" + addr
	pool := x509.NewCertPool()
	pem, _ := os.ReadFile(made.CAFile)
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("ca.pem holds no certificate")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableKeepAlives: true}, Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if r := cli(t, "site", "list"); r.code != console.ExitCode(dr.KindUnavailable) {
		t.Errorf("a vault that is down: %+v", r)
	}
	vault := serveVault(t, data, client, base)
	secrets := []string{made.Password, readEndpoint(t, made.Endpoint).ClientSecret, strings.TrimSpace(string(key[bytes.LastIndexByte(bytes.TrimSpace(key), '\n')+1:]))}

	doors(t, client, base, made)
	must(t, "site", "create", "primary")
	if r := cli(t, "site", "create", "Primary"); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a second site of the name: %+v", r)
	}
	secrets = append(secrets, registration(t, dir)...)

	for _, args := range []string{"site list", "provider list", "vm list", "item list", "policy list", "mapping list", "job list"} {
		fits(t, must(t, strings.Fields(args)...))
		if !json.Valid([]byte(must(t, append(strings.Fields(args), "-o", "json")...))) {
			t.Errorf("%s -o json is not JSON", args)
		}
	}
	for what, args := range map[string][]string{"a second vault process": {"vault", "serve", "--data", data}, "a password reset beside a running vault": {"vault", "reset-password", "--data", data}} {
		if r := cli(t, args...); r.code != console.ExitCode(dr.KindUnavailable) {
			t.Errorf("%s: %+v", what, r)
		}
	}

	// What was acknowledged survives a crash.
	if code := vault.stop(t, syscall.SIGKILL); code != -1 {
		t.Errorf("killed, it has exit code %d", code)
	}
	logs := vault.log.String()
	vault = serveVault(t, data, client, base)
	sites := decode[[]struct{ Name string }](t, must(t, "site", "list", "-o", "json"))
	hosts := decode[[]struct{ Host string }](t, must(t, "provider", "list", "-o", "json"))
	if len(sites) != 1 || sites[0].Name != "primary" || len(hosts) != 1 || hosts[0].Host != "host-1" {
		t.Errorf("after a crash there are the sites %+v and the hosts %+v", sites, hosts)
	}
	must(t, "store", "ls", "--store", made.Store, "--key", made.KeyFile)

	stopsWithOpenStream(t, vault, client, base, made)
	logs += vault.log.String()
	for _, s := range secrets {
		if len(s) < 8 || strings.Contains(logs, s) {
			t.Errorf("a secret of %d characters is in the log", len(s))
		}
	}
	if p := must(t, "vault", "reset-password", "--data", data, "-o", "json"); strings.Contains(p, made.Password) || !strings.Contains(p, `"password"`) {
		t.Error("the password was not reset")
	}
	brokenVaults(t, data, made)
}

func readEndpoint(t *testing.T, path string) (ep struct{ TenantID, ClientID, ClientSecret string }) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &ep)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// doors knocks at each part of the vault's one address.
func doors(t *testing.T, client *http.Client, base string, made initOutput) {
	t.Helper()
	ask := func(path, token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for path, want := range map[string]int{"/healthz": 200, "/holdfast/v1/health": 200, "/": 303, "/portal": 303, "/portal/signin": 200, "/subscriptions?api-version=2025-01-01": 401, "/metrics": 401,
		"/agent/v1/poll": 400, "/store/v1/o/vault.json": 401, "/store/v1/l": 401, "/nothing": 404} {
		if code, body := ask(path, ""); code != want {
			t.Errorf("%s answers %d, want %d: %.200s", path, code, want, body)
		}
	}
	ep := readEndpoint(t, made.Endpoint)
	resp, err := client.PostForm(base+"/"+ep.TenantID+"/oauth2/v2.0/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {ep.ClientID}, "client_secret": {ep.ClientSecret}, "scope": {base + "/.default"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var tok struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tok); err != nil || tok.AccessToken == "" {
		t.Fatalf("no token: %v", err)
	}
	if code, body := ask("/metrics", tok.AccessToken); code != 200 || !strings.Contains(body, `holdfast_agents{connected="true"} 0`) {
		t.Errorf("/metrics answers %d: %.300s", code, body)
	}
}

// registration registers a host with a good key and tries bad ones. It returns the keys' secrets.
func registration(t *testing.T, dir string) (secrets []string) {
	t.Helper()
	file := filepath.Join(dir, "good.key")
	must(t, "site", "key", "primary", "--out", file, "--one-time")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	k, err := armwire.DecodeKeyFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, k.Credential.Secret)
	register := func(change func(*armwire.KeyFile)) result {
		bad := k
		change(&bad)
		b, err := bad.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "bad.key")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return cli(t, "agent", "register", "--key", path, "--state", filepath.Join(t.TempDir(), "state"), "--host-name", "intruder")
	}
	for what, change := range map[string]func(*armwire.KeyFile){
		"a wrong secret":    func(k *armwire.KeyFile) { k.Credential.Secret = "hfk_wrong-but-private-text" },
		"an unknown key id": func(k *armwire.KeyFile) { k.Credential.KeyID = "00000000-0000-4000-8000-000000000000" },
		"another vault":     func(k *armwire.KeyFile) { k.Credential.CAPin = strings.Repeat("ab", 32) },
		"an expired key":    func(k *armwire.KeyFile) { k.Credential.Expires = time.Now().Add(-48 * time.Hour) },
	} {
		r := register(change)
		if r.code != console.ExitCode(dr.KindUnauthenticated) || !strings.Contains(r.err, "do:") {
			t.Errorf("%s: %+v", what, r)
		}
		if strings.Contains(r.err, "wrong-but-private") || strings.Contains(r.err, k.Credential.Secret) {
			t.Errorf("%s: the secret is shown: %s", what, r.err)
		}
	}
	if r := cli(t, "agent", "register", "--key", os.Args[0], "--state", filepath.Join(dir, "none")); r.code != console.ExitCode(dr.KindUnauthenticated) {
		t.Errorf("a file that is no key: %+v", r)
	}
	state := filepath.Join(dir, "agent")
	if out := must(t, "agent", "register", "--key", file, "--state", state, "--role", "source,recovery", "--host-name", "host-1", "-o", "json"); !strings.Contains(out, `"site": "primary"`) {
		t.Errorf("register printed %s", out)
	}
	if r := register(func(*armwire.KeyFile) {}); r.code != console.ExitCode(dr.KindUnauthenticated) {
		t.Errorf("a one-time key was used twice: %+v", r)
	}
	short, err := os.MkdirTemp("/tmp", "hf") // unix sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) }) // the system cleans it up otherwise
	for what, tc := range map[string]struct {
		args []string
		kind dr.Kind
	}{
		"a host without a hypervisor":  {[]string{"agent", "run", "--state", state, "--libvirt", "qemu:///session", "--dir", short, "--libvirt-socket", filepath.Join(dir, "none")}, dr.KindUnavailable},
		"a hypervisor far away":        {[]string{"agent", "run", "--state", state, "--dir", short, "--libvirt", "qemu+ssh://host/system"}, dr.KindInvalid},
		"too long a run directory":     {[]string{"agent", "run", "--state", state, "--run-dir", "/" + strings.Repeat("long/", 20)}, dr.KindInvalid},
		"a serving nobody asked for":   {[]string{"agent", "serve-point", "--state", state, "--run-dir", short, "4d0f4d0c-0000-4000-8000-000000000000"}, dr.KindForbidden},
		"a state that is unregistered": {[]string{"agent", "serve-point", "--state", filepath.Join(dir, "no-state"), "--run-dir", short, "x"}, dr.KindPrecondition},
	} {
		if r := cli(t, tc.args...); r.code != console.ExitCode(tc.kind) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	return secrets
}

// stopsWithOpenStream tells the vault to stop while a browser listens to its changes.
func stopsWithOpenStream(t *testing.T, vault *vaultProcess, client *http.Client, base string, made initOutput) {
	t.Helper()
	form := url.Values{"user": {made.User}, "password": {made.Password}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/portal/signin", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if len(resp.Cookies()) == 0 {
		t.Fatalf("signing in with the printed password answers %d without a session", resp.StatusCode)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if req, err = http.NewRequestWithContext(ctx, http.MethodGet, base+"/portal/events", nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Cookies() {
		req.AddCookie(c)
	}
	streaming := *client
	streaming.Timeout = 0
	stream, err := streaming.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if stream.StatusCode != http.StatusOK {
		t.Fatalf("the stream answers %d", stream.StatusCode)
	}
	began := time.Now()
	if code := vault.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("told to stop, the vault has exit code %d\n%s", code, vault.log)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("an open stream held the vault up for %v", d)
	}
	if strings.Contains(vault.log.String(), "cut off") {
		t.Errorf("requests were cut off:\n%s", vault.log)
	}
}

// brokenVaults starts vaults that lack something.
func brokenVaults(t *testing.T, data string, made initOutput) {
	t.Helper()
	away := func(path string) func() {
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		return func() {
			_ = os.RemoveAll(path) // what took its place
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name, path, put string
		kind            dr.Kind
		hint            string
	}{
		{"no key", made.KeyFile, "", dr.KindNotFound, "private key"},
		{"a store that is not mounted", made.Store, "", dr.KindUnavailable, "mount"},
		{"a store that is a file", made.Store, "x", dr.KindUnavailable, ""},
		{"no configuration", filepath.Join(data, "config.json"), "", dr.KindNotFound, "vault init"},
		{"a broken configuration", filepath.Join(data, "config.json"), "{", dr.KindInvalid, ""},
		{"a configuration of the future", filepath.Join(data, "config.json"), `{"version":9}`, dr.KindUnsupported, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			back := away(tc.path)
			defer back()
			if tc.put != "" {
				if err := os.WriteFile(tc.path, []byte(tc.put), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := cli(t, "vault", "serve", "--data", data)
			if r.code != console.ExitCode(tc.kind) || !strings.Contains(r.err, tc.hint) {
				t.Errorf("exit code %d, want %d: %s", r.code, console.ExitCode(tc.kind), r.err)
			}
		})
	}
	t.Run("another vault's key", func(t *testing.T) {
		back := away(made.KeyFile)
		defer back()
		other := decode[initOutput](t, must(t, "vault", "init", "--data", filepath.Join(t.TempDir(), "other"), "--listen", "127.0.0.1:1", "-o", "json"))
		raw, err := os.ReadFile(other.KeyFile)
		if err == nil {
			err = os.WriteFile(made.KeyFile, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r := cli(t, "vault", "serve", "--data", data); r.code == 0 {
			t.Errorf("it started: %+v", r)
		}
	})
	t.Run("an address in use", func(t *testing.T) {
		ln, err := net.Listen("tcp", strings.TrimPrefix(strings.TrimSuffix(made.Portal, "/portal"), "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if r := cli(t, "vault", "serve", "--data", data); r.code != console.ExitCode(dr.KindUnavailable) || !strings.Contains(r.err, "listen") {
			t.Errorf("%+v", r)
		}
	})
}

// TestVaultInit tries what can go wrong when a vault is made.
func TestVaultInit(t *testing.T) {
	t.Parallel()
	initVault := func(t *testing.T, args ...string) initOutput {
		return decode[initOutput](t, must(t, append([]string{"vault", "init", "--listen", "127.0.0.1:8443", "-o", "json"}, args...)...))
	}
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		data := filepath.Join(t.TempDir(), "v")
		first := initVault(t, "--data", data)
		if err := os.Remove(filepath.Join(data, "config.json")); err != nil { // as if it had died before the last step
			t.Fatal(err)
		}
		second := initVault(t, "--data", data)
		if second.KeyID != first.KeyID || second.Password == first.Password || second.Password == "" {
			t.Errorf("first %+v, second %+v", first.KeyID, second.KeyID)
		}
	})
	t.Run("directory in use", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "diary"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if r := cli(t, "vault", "init", "--data", dir); r.code != console.ExitCode(dr.KindConflict) {
			t.Errorf("%+v", r)
		}
		if info, _ := os.Stat(dir); info.Mode().Perm() != 0o755 {
			t.Errorf("the directory's mode became %v", info.Mode())
		}
	})
	t.Run("store of another vault", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		first := initVault(t, "--data", filepath.Join(dir, "v1"))
		if r := cli(t, "vault", "init", "--data", filepath.Join(dir, "v2"), "--store", first.Store); r.code != console.ExitCode(dr.KindConflict) || !strings.Contains(r.err, "--key") {
			t.Errorf("%+v", r)
		}
		// With the key it is taken over, in the same directory.
		second := initVault(t, "--data", filepath.Join(dir, "v2"), "--store", first.Store, "--key", first.KeyFile)
		if second.KeyID != first.KeyID {
			t.Errorf("the new vault has the key %s, the store %s", second.KeyID, first.KeyID)
		}
	})
	t.Run("store is a file", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := cli(t, "vault", "init", "--data", filepath.Join(dir, "v"), "--store", file); r.code == 0 {
			t.Errorf("%+v", r)
		}
		if _, err := os.Stat(filepath.Join(dir, "v", "vault.key")); err == nil {
			t.Error("a key was made for a vault that can't be")
		}
	})
	t.Run("public URL", func(t *testing.T) {
		t.Parallel()
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		for args, want := range map[string]string{"--listen :9443": fmt.Sprintf("https://%s:9443/portal", host), "--listen 0.0.0.0:443": fmt.Sprintf("https://%s/portal", host),
			"--listen 127.0.0.1:9443": "https://127.0.0.1:9443/portal", "--listen :9443 --public-url https://dr.example.org/": "https://dr.example.org/portal", "--listen [::1]:443": "https://[::1]/portal"} {
			if got := initVault(t, append([]string{"--data", filepath.Join(t.TempDir(), "v")}, strings.Fields(args)...)...).Portal; got != want {
				t.Errorf("%s: portal %s, want %s", args, got, want)
			}
		}
	})
}
