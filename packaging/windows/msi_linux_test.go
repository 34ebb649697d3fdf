// Package windows_test checks the installer of the Windows agent: its tables, its
// signature, and what it does under Wine. Debian packages: wixl, msitools, osslsigncode, wine64, gcc-mingw-w64-x86-64.
package windows_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"holdfast/internal/winetest"
)

// run runs a program of this machine; a missing one fails the test.
func run(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("this test needs %s: %v", name, err)
	}
	return string(out), err
}

func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := run(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, args, err, out)
	}
	return out
}

// build packs a program into an installer and signs both.
func build(t *testing.T, exe, version, dir string, env []string) string {
	t.Helper()
	must(t, append([]string{"EXE=" + exe}, env...), "./build.sh", version, dir)
	return filepath.Join(dir, "holdfast-"+version+".msi")
}

// certificate makes a certificate for signing code.
func certificate(t *testing.T, dir string) (env []string, cert string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Holdfast test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert = filepath.Join(dir, "cert.pem")
	keyFile := filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sign, err := filepath.Abs("sign.sh")
	if err != nil {
		t.Fatal(err)
	}
	return []string{"SIGN=" + sign, "CERT=" + cert, "KEY=" + keyFile, "PASSFILE=", "TIMESTAMP="}, cert
}

func TestInstaller(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel()
	p := winetest.New(t)
	dir := t.TempDir()
	exe := p.Build(t, "./testdata/agent", "agent.exe")
	env, cert := certificate(t, dir)
	first := build(t, exe, "1.2.3", dir, env)
	checkTables(t, first)
	checkResources(t, filepath.Join(dir, "holdfast.exe"))
	for _, file := range []string{first, filepath.Join(dir, "holdfast.exe")} {
		if out := must(t, nil, "osslsigncode", "verify", "-CAfile", cert, "-in", file); !strings.Contains(out, "Signature verification: ok") {
			t.Errorf("%s: %s", file, out)
		}
	}
	second := build(t, exe, "1.3.0", dir, env)

	installed := filepath.Join(p.Drive(), "Program Files", "Holdfast", "holdfast.exe")
	status := func() string { return strings.TrimSpace(p.Exec(t, exe, "status")) }
	p.Exec(t, "msiexec", "/i", first, "/qn")
	if _, err := os.Stat(installed); err != nil {
		t.Fatal(err)
	}
	if out := p.Exec(t, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\HoldfastAgent`); !strings.Contains(out, "EventCreate.exe") {
		t.Errorf("event source: %s", out)
	}
	_, _ = p.Start(t, "net", "start", "HoldfastAgent") // a new session of Wine may have started it already
	if b, err := os.ReadFile(filepath.Join(p.Drive(), "agent.txt")); err != nil || string(b) != "[agent run --service]" {
		t.Errorf("the service was started with %q, %v", b, err)
	}
	if out, err := p.Start(t, "reg", "query", `HKLM\SOFTWARE\Holdfast`); err == nil {
		t.Errorf("a first installation starts the service: %s", out)
	}
	// A newer version takes the older one's place.
	p.Exec(t, "msiexec", "/i", second, "/qn")
	if st := status(); st != "running <nil>" && st != "starting <nil>" {
		t.Errorf("after the upgrade the service is %s", st)
	}
	p.Exec(t, "msiexec", "/x", second, "/qn")
	if st := status(); st != "absent <nil>" {
		t.Errorf("after the removal the service is %s", st)
	}
	if _, err := os.Stat(installed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the removal the program is there: %v", err)
	}
}

func checkTables(t *testing.T, msi string) {
	t.Helper()
	for table, want := range map[string][]string{
		"Property":       {"ProductVersion\t1.2.3", "UpgradeCode\t{6B1D1C0A-5A0E-4E0B-9C55-2F6B4D6E7A11}", "ProductName\tHoldfast agent"},
		"ServiceInstall": {"HoldfastAgent", "agent run --service", "LocalSystem"},
		"ServiceControl": {"AgentControl", "AgentStart"}, "Component": {"WIX_UPGRADE_DETECTED"}, "Registry": {"EventMessageFile", `%SystemRoot%\System32\EventCreate.exe`},
		"Upgrade": {"{6B1D1C0A-5A0E-4E0B-9C55-2F6B4D6E7A11}"}, "File": {"holdfast.exe"},
	} {
		out := must(t, nil, "msiinfo", "export", msi, table)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("table %s lacks %q:\n%s", table, w, out)
			}
		}
	}
	if out := must(t, nil, "msiinfo", "suminfo", msi); !strings.Contains(out, "x64") {
		t.Errorf("the installer is not for x64:\n%s", out)
	}
}

// checkResources looks for the version resource's texts in the program.
func checkResources(t *testing.T, exe string) {
	t.Helper()
	f, err := pe.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := f.Section(".rsrc")
	if s == nil {
		t.Fatal("the program has no resources")
	}
	data, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"VS_VERSION_INFO", "ProductVersion", "1.2.3", "Holdfast: site recovery for virtual machines"} {
		var want []byte
		for _, u := range utf16.Encode([]rune(text)) {
			want = binary.LittleEndian.AppendUint16(want, u)
		}
		if !bytes.Contains(data, want) {
			t.Errorf("the version resource lacks %q", text)
		}
	}
	if !bytes.Contains(data, []byte("longPathAware")) {
		t.Error("the program has no manifest")
	}
}

func TestVersionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"", "1", "1.2", "1.2.3.4", "a.b.c", "1..2", "256.0.0", "1.256.0", "1.0.65536", "1.2.3-rc1"} {
		if out, err := run(t, []string{"EXE=/dev/null"}, "./build.sh", v, t.TempDir()); err == nil {
			t.Errorf("version %q was taken: %s", v, out)
		}
	}
}
