package wsmand_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wsmand"
)

// These tests use clients that others wrote: pywinrm (Debian package
// python3-winrm, so Debian's own Python) and curl.

const python = "/usr/bin/python3"

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), "no_proxy=*", "OPENSSL_CONF=testdata/openssl.cnf"}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return string(out), err
}

func TestPywinrm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, transport, encryption string
		tls                         bool
	}{
		{"basic over TLS", "ssl", "never", true},
		{"NTLM over TLS, bound to it", "ntlm", "never", true},
		{"NTLM, sealed", "ntlm", "always", false},
		{"NTLM, sealed, over TLS", "ntlm", "always", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSession()
			cfg := config(s)
			cfg.AllowUnencrypted = false
			scheme, ca := "http", ""
			if c.tls {
				scheme = "https"
				cfg.TLS, ca = certificate(t)
			}
			addr := listen(t, newServer(t, cfg))
			out, err := run(t, python, "testdata/client.py", scheme+"://"+addr+"/wsman", c.transport, c.encryption, ca, user, password, vmID, jobID)
			if err != nil {
				t.Fatalf("%v (is python3-winrm installed?)", err)
			}
			judge(t, out)
			in := s.last()
			if p, _ := in.in.Ref("AffectedSystem"); in.method != "CreateSnapshot" || !p.Same(vmPath()) {
				t.Errorf("invoked %+v", in)
			}
			if in, err := cim.DecodeEmbedded(in.in.String("SnapshotSettings")); err != nil || in.String("ConsistencyLevel") != "2" {
				t.Errorf("embedded instance: %v", err)
			}
		})
	}
}

func judge(t *testing.T, out string) {
	t.Helper()
	var got struct {
		Classes  []string
		Pulls    int
		VM       map[string][]any
		Many     int
		EPRs     [][]string
		Settings []string
		Output   []string
		Job      map[string][]any
		Faults   [][]any
		Shell    string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	equal := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	equal("classes", got.Classes, []string{"Msvm_ComputerSystem", "Msvm_ComputerSystem"})
	equal("pulls", got.Pulls, 2)
	equal("name", got.VM["ElementName"], []any{"web <01> & ü"})
	equal("array", got.VM["OperationalStatus"], []any{"2", "32772"})
	equal("null", got.VM["Caption"], []any{nil})
	equal("datetime", got.VM["TimeOfLastStateChange"], []any{[]any{"2026-01-02T03:04:05.25+01:00"}})
	equal("many", got.Many, 2500)
	equal("EPRs", got.EPRs, [][]string{{nsV2, "Msvm_ComputerSystem", "HVSIM"}, {nsV2, "Msvm_ComputerSystem", vmID}})
	equal("settings", got.Settings, []string{"Microsoft:" + vmID})
	equal("output", got.Output, []string{"CreateSnapshot_OUTPUT", "4096"})
	equal("job", got.Job["JobState"], []any{"7"})
	equal("interval", got.Job["TimeBeforeRemoval"], []any{[]any{"P0DT0H5M0S"}})
	equal("faults", got.Faults, [][]any{
		{500.0, "a:DestinationUnreachable", "2150858752"}, {500.0, "n:CannotProcessFilter", "2150858778"}, {500.0, "w:InvalidParameter", "2150858836"},
	})
	if !strings.Contains(got.Shell, "The action is not supported by the service") {
		t.Errorf("shell: %q", got.Shell)
	}
}

func TestPywinrmWrongPassword(t *testing.T) {
	t.Parallel()
	cfg := config(newSession())
	cfg.AllowUnencrypted = false
	addr := listen(t, newServer(t, cfg))
	_, err := run(t, python, "testdata/client.py", "http://"+addr+"/wsman", "ntlm", "always", "", user, "wrong", vmID, jobID)
	if err == nil || !strings.Contains(err.Error(), "InvalidCredentialsError") {
		t.Errorf("wrong password: %v", err)
	}
}

func TestCurl(t *testing.T) {
	t.Parallel()
	conf, ca := certificate(t)
	for _, c := range []struct {
		name  string
		tls   bool
		plain bool
		args  []string
		want  string
	}{
		{"basic over TLS", true, false, []string{"--basic", "-u", user + ":" + password}, "OS: 10.0.20348"},
		{"NTLM over TLS", true, false, []string{"--ntlm", "-u", "LAB\\" + user + ":" + password}, "OS: 10.0.20348"},
		{"NTLM, unencrypted allowed", false, true, []string{"--ntlm", "-u", user + ":" + password}, "OS: 10.0.20348"},
		{"NTLM, unencrypted", false, false, []string{"--ntlm", "-u", user + ":" + password}, "must be encrypted"},
		{"basic, unencrypted", false, false, []string{"--basic", "-u", user + ":" + password}, "401"},
		{"NTLM, wrong password", true, false, []string{"--ntlm", "-u", user + ":wrong"}, "401"},
		{"nobody", false, false, []string{"-H", "WSMANIDENTIFY: unauthenticated"}, "OS: 0.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(newSession())
			cfg.AllowUnencrypted = c.plain
			url := "http://"
			if c.tls {
				cfg.TLS, url = conf, "https://"
			}
			srv := wsmand.New(cfg)
			url += listen(t, srv) + "/wsman"
			args := append([]string{"-sS", "--cacert", ca, "-w", "%{http_code}", "-H", "Content-Type: application/soap+xml;charset=UTF-8", "-d", envelope("", "", "", identify)}, c.args...)
			out, err := run(t, "/usr/bin/curl", append(args, url)...)
			if err != nil || !strings.Contains(out, c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
