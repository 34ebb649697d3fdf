package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
)

// TestAgentVMM: the agent of a VMM server tells the vault what VMM manages, by a
// program that stands for PowerShell.
func TestAgentVMM(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	startVault(t)
	dir := t.TempDir()
	state, key := filepath.Join(dir, "agent"), filepath.Join(dir, "vmm.key")
	must(t, "site", "create", "scvmm", "--type", "vmm")
	must(t, "site", "key", "scvmm", "--out", key)
	must(t, "agent", "register", "--key", key, "--state", state, "--role", "vmm", "--host-name", "vmm01")
	answer, err := filepath.Abs("../../internal/vmm/testdata/all.json")
	if err != nil {
		t.Fatal(err)
	}
	shell := filepath.Join(dir, "powershell")
	if err := os.WriteFile(shell, []byte("#!/bin/sh\n[ \"$HOLDFAST_VMM_SERVER\" = vmm01.corp.example ] || exit 9\ncat '"+answer+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--state", state, "--vmm", "vmm01.corp.example", "--vmm-powershell", shell}

	// The doctor looks after VMM, and after no hypervisor.
	out := must(t, append([]string{"agent", "doctor", "-o", "json"}, flags...)...)
	if !strings.Contains(out, `"name": "vmm"`) || !strings.Contains(out, "clouds") || strings.Contains(out, `"hypervisor"`) {
		t.Errorf("doctor: %s", out)
	}

	agent := program(append([]string{"agent", "run"}, flags...)...)
	log := &buffer{}
	agent.Stderr = log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait(); close(ended) }() // ends with the process
	t.Cleanup(func() {
		_ = agent.Process.Kill() // has ended already, if all went well
		<-ended
	})
	until(t, "the vault knows the clouds", func() bool {
		return len(decode[struct{ Clouds []string }](t, must(t, "site", "show", "scvmm", "-o", "json")).Clouds) > 0
	})
	documented(t, "site show", must(t, "site", "show", "scvmm", "-o", "json"))
	nets := must(t, "network", "list", "--site", "scvmm", "-o", "json")
	documented(t, "network list", nets)
	if len(decode[[]struct{ ID string }](t, nets)) == 0 {
		t.Error("the vault knows no VM network")
	}
	fits(t, must(t, "network", "list"))
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("told to stop: %v\n%s", err, log)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not stop\n%s", log)
	}

	// VMM's flags are for agents with the role, and the role is for sites of the type.
	must(t, "site", "create", "kvm")
	must(t, "site", "key", "kvm", "--out", key+"2")
	if r := cli(t, "agent", "register", "--key", key+"2", "--state", filepath.Join(dir, "b"), "--role", "vmm"); r.code == 0 {
		t.Errorf("the role vmm in a site of KVM hosts: %+v", r)
	}
	must(t, "agent", "register", "--key", key+"2", "--state", filepath.Join(dir, "c"))
	for _, bad := range []struct {
		kind dr.Kind
		args []string
	}{{dr.KindPrecondition, []string{"--state", filepath.Join(dir, "c"), "--vmm", "vmm01"}}, {dr.KindInvalid, []string{"--state", state, "--vmm", "a b; rm"}}} {
		if r := cli(t, append([]string{"agent", "run"}, bad.args...)...); r.code != console.ExitCode(bad.kind) {
			t.Errorf("%v: %+v", bad.args, r)
		}
	}
	if r := cli(t, "agent", "register", "--key", key, "--role", "source,drain", "--state", state); r.code != console.ExitCode(dr.KindInvalid) || !strings.Contains(r.err, "drain") {
		t.Errorf("an unknown role: %+v", r)
	}
}

// TestProxy: a host that knows the vault's name by its proxy only.
func TestProxy(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	var tunnels atomic.Int32
	var vaultAt string
	proxy := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || !strings.HasPrefix(r.Host, "vault.holdfast.invalid:") {
			http.Error(w, "only to the vault", http.StatusForbidden)
			return
		}
		tunnels.Add(1)
		to, err := net.Dial("tcp", vaultAt)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer to.Close()
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer from.Close()
		_, _ = io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(to, from); _ = to.Close() }() // ends with either connection
		_, _ = io.Copy(from, to)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = proxy.Serve(ln) }() // ends with Close
	t.Cleanup(func() { _ = proxy.Close() })
	url := "http://" + ln.Addr().String()

	vaultAt = freeAddress(t)
	_, port, _ := net.SplitHostPort(vaultAt)
	dir := startVaultAt(t, vaultAt, "https://vault.holdfast.invalid:"+port)
	state := filepath.Join(dir, "agent")
	run := func(env []string, args ...string) result { // a process: Go reads the variables once
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		var out, errs bytes.Buffer
		p := program(args...)
		for _, v := range p.Env {
			if name, _, _ := strings.Cut(v, "="); !strings.HasSuffix(strings.ToLower(name), "_proxy") {
				env = append(env, v)
			}
		}
		p.Env, p.Stdout, p.Stderr = env, &out, &errs
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		defer context.AfterFunc(ctx, func() { _ = p.Process.Kill() })()
		_ = p.Wait() // the exit code tells
		return result{p.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	register := []string{"agent", "register", "--key", filepath.Join(dir, "key"), "--state", state}
	for what, c := range map[string]struct {
		env, args []string
	}{"no proxy": {nil, nil}, "switched off": {[]string{"HTTPS_PROXY=" + url}, []string{"--proxy", "none"}}, "excepted": {nil, []string{"--proxy", url, "--no-proxy", "holdfast.invalid"}}} {
		if r := run(c.env, append(register, c.args...)...); r.code != console.ExitCode(dr.KindUnavailable) || tunnels.Load() != 0 {
			t.Errorf("%s: %+v, %d tunnels", what, r, tunnels.Load())
		}
	}
	if r := run(nil, append(register, "--proxy", url)...); r.code != 0 || tunnels.Load() == 0 {
		t.Fatalf("by the proxy: %+v, %d tunnels", r, tunnels.Load())
	}
	for what, c := range map[string]struct {
		env, args []string
	}{"flag": {nil, []string{"--proxy", url}}, "environment": {[]string{"https_proxy=" + url}, nil}} {
		r := run(c.env, append([]string{"agent", "doctor", "--state", state, "--libvirt-socket", filepath.Join(dir, "none"), "-o", "json"}, c.args...)...)
		if !strings.Contains(r.out, "is reached by "+url) || !strings.Contains(r.out, " answers in ") {
			t.Errorf("doctor by %s: %+v", what, r)
		}
	}
	for _, bad := range []string{"proxy:3128", "http://user:geheim@proxy:3128", "socks5://proxy:1", "http://proxy/way"} {
		if r := run(nil, append(register, "--proxy", bad)...); r.code != console.ExitCode(dr.KindInvalid) || strings.Contains(r.err, "geheim") {
			t.Errorf("--proxy %s: %+v", bad, r)
		}
	}
}
