package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
)

func TestPywinrm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, transport, encryption string
		args                        []string
	}{
		{"NTLM, sealed", "ntlm", "always", nil},
		{"basic over TLS", "ssl", "never", []string{"--tls", "--basic"}},
		{"NTLM over TLS, inline", "ntlm", "never", []string{"--tls", "--inline"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := start(t, dir, append([]string{"--vms", "3", "--write-every", "20ms"}, c.args...)...)
			ca := ""
			if s.Hosts[0].Pin != "" {
				ca = filepath.Join(dir, "certificate.pem")
			}
			if strings.Contains(c.name, "inline") { // what the script does waits for jobs
				got := s.drive("inventory,faults", "vm-0001", c.transport, c.encryption, ca)
				judgeInventory(t, got)
				return
			}
			got := s.drive("inventory,rct,power,define,faults", "vm-0001", c.transport, c.encryption, ca)
			judgeInventory(t, got)
			equal := func(what string, want any) {
				t.Helper()
				if !reflect.DeepEqual(got[what], want) {
					t.Errorf("%s: %v, want %v", what, got[what], want)
				}
			}
			equal("type", "Microsoft:Hyper-V:Snapshot:Recovery")
			equal("frozen", []any{`C:\VMs\vm-0001\Virtual Hard Disks\os.vhdx`, `C:\VMs\vm-0001\Virtual Hard Disks\data.vhdx`})
			equal("ids", []any{2.0, 2.0})
			equal("inside", true)
			equal("points", true)
			if n, _ := got["changes"].(float64); n < 1 {
				t.Errorf("a second of writing changed %v ranges", got["changes"])
			}
			for _, leaf := range got["leaf"].([]any) {
				if !strings.HasSuffix(leaf.(string), ".avhdx") {
					t.Errorf("a VM with a checkpoint writes %v", leaf)
				}
			}
			equal("power", []any{true, true, true, true})
			equal("again", 32775.0)
			equal("shutdown", 0.0)
			equal("made", []any{"made & ü", []any{"one", "two <2>"}, true, "3"})
			equal("gone", []any{500.0, "a:DestinationUnreachable", "2150858752"})
			equal("faults", map[string]any{
				"class": []any{500.0, "a:DestinationUnreachable", "2150858752"}, "query": []any{500.0, "n:CannotProcessFilter", "2150858778"},
				"selector": []any{500.0, "a:DestinationUnreachable", "2150858752"}, "key": []any{500.0, "w:InvalidSelectors", "2150858843"},
				"method": []any{500.0, "a:ActionNotSupported", "2150858753"}, "parameter": []any{500.0, "w:InvalidParameter", "2150858836"},
			})
			if len(got["jobs"].([]any)) < 15 {
				t.Errorf("jobs: %v", got["jobs"])
			}
			if code := s.end(syscall.SIGINT); code != 0 || s.err.String() != "" {
				t.Errorf("ended with %d: %s", code, s.err.String())
			}
		})
	}
}

func judgeInventory(t *testing.T, got map[string]any) {
	t.Helper()
	if !reflect.DeepEqual(got["vms"], []any{"vm-0001", "vm-0002", "vm-0003"}) || got["generation"] != "Microsoft:Hyper-V:SubType:1" || len(got["disks"].([]any)) != 2 ||
		!reflect.DeepEqual(got["summary"], []any{got["vm"], "vm-0001", "2"}) {
		t.Errorf("inventory: %v", got)
	}
}

func TestCurl(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"--basic", "--tls"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := start(t, t.TempDir(), mode)
			ask := func(password string) string {
				args := []string{"-sS", "--ntlm", "-u", "Administrator:" + password, "-H", "Content-Type: application/soap+xml", "-w", "%{http_code}",
					"-d", "@" + filepath.Join(s.dir, "identify.xml"), "--cacert", filepath.Join(s.dir, "certificate.pem"), s.Hosts[0].URL}
				if mode != "--tls" {
					args = append(args[:len(args)-3], s.Hosts[0].URL)
				}
				out, err := foreign(t, s.dir, "/usr/bin/curl", args...)
				must(t, err)
				return out
			}
			if out := ask(s.Password); !strings.Contains(out, "OS: 10.0.20348") || !strings.HasSuffix(out, "200") {
				t.Errorf("identify: %s", out)
			}
			if out := ask("wrong"); !strings.HasSuffix(out, "401") {
				t.Errorf("a wrong password: %s", out)
			}
		})
	}
}

// TestWelcome runs the two commands that are printed, as they are printed.
func TestWelcome(t *testing.T) {
	t.Parallel()
	for mode, answer := range map[string]string{"": "IdentifyResponse", "--basic": "vm-0002", "--tls": "vm-0002"} {
		t.Run("mode"+mode, func(t *testing.T) {
			t.Parallel()
			s := launch(t, filepath.Join(t.TempDir(), "with blanks & 'quotes'"), strings.Fields("--vms 30 --listen 127.0.0.1:0 "+mode)...)
			s.wait("Ctrl-C ends it.")
			parts := strings.Split(s.out.String(), "\n\n")
			if len(parts) != 4 {
				t.Fatalf("printed %q", s.out.String())
			}
			out, err := foreign(t, t.TempDir(), "/bin/sh", "-c", parts[1])
			if err != nil || !strings.Contains(out, answer) {
				t.Errorf("%s\n%v: %s", parts[1], err, out)
			}
			cmd := exec.Command("/bin/sh", "-c", parts[2]) // without an OPENSSL_CONF of ours
			cmd.Env = []string{"PATH=/usr/bin:/bin", "no_proxy=*"}
			b, err := cmd.CombinedOutput()
			if n := strings.Count(string(b), " runs\n"); err != nil || n != 30 {
				t.Errorf("%s\n%v: %s", parts[2], err, b)
			}
		})
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	args := []string{"--vms", "4", "--hosts", "2", "--tls", "--write-every", "5ms"}
	s := start(t, dir, args...)
	got := s.drive("power", "vm-0001", "ntlm", "never", filepath.Join(dir, "certificate.pem"))
	if got["again"] != 32775.0 {
		t.Errorf("%v", got)
	}
	off := func(s *sim, name string) {
		t.Helper()
		id, _, _ := strings.Cut(s.vms(0)[name], " ")
		call(t, s, fmt.Sprintf(`Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="%s"`, id), "RequestStateChange", "RequestedState", uint16(3))
	}
	off(s, "vm-0003")
	pin, password, before := s.Hosts[0].Pin, s.Password, s.vms(0)
	if !strings.HasSuffix(before["vm-0003"], " 3") || len(before) != 2 {
		t.Fatalf("before: %v", before)
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Fatalf("ended with %d: %s", code, s.err.String())
	}
	for i := range 3 {
		s = start(t, dir, args...)
		if s.Hosts[0].Pin != pin || s.Password != password {
			t.Error("a restart made another certificate or password")
		}
		if after := s.vms(0); !maps.Equal(after, before) {
			t.Fatalf("after restart %d: %v, before it %v", i, after, before)
		}
		if i == 2 {
			break
		}
		time.Sleep(100 * time.Millisecond) // it writes
		s.kill()
	}
	// Change tracking begins anew where a crash lost it, and works.
	got = s.drive("rct", "vm-0001", "ntlm", "never", filepath.Join(dir, "certificate.pem"))
	if got["points"] != true || got["changes"].(float64) < 1 {
		t.Errorf("after a crash: %v", got)
	}
}

// TestKilledWhileMaking: a VM that is half made is made anew.
func TestKilledWhileMaking(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	early := 0
	for kills := range 3 {
		s := launch(t, dir, "--listen", "127.0.0.1:0", "--vms", "120", "--json")
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if list, _ := filepath.Glob(filepath.Join(dir, "state", "*.json")); len(list) > 10*(kills+1) {
				break
			}
			if time.Now().After(end) {
				t.Fatal(s.err.String())
			}
		}
		s.kill()
		if !strings.Contains(s.out.String(), "{") {
			early++
		}
	}
	if early == 0 {
		t.Error("it was never killed while it made VMs")
	}
	s := start(t, dir, "--vms", "120")
	if n := len(s.vms(0)); n != 120 {
		t.Errorf("%d VMs", n)
	}
	h := open(t, s, 0)
	list, err := h.Inventory(t.Context())
	must(t, err)
	for _, vm := range list {
		want := 1
		if n := 0; strings.HasPrefix(vm.Name, "vm-") {
			fmt.Sscanf(vm.Name, "vm-%d", &n)
			if n%4 == 1 {
				want = 2
			}
		}
		if len(vm.Disks) != want {
			t.Errorf("VM %s has %d disks, want %d", vm.Name, len(vm.Disks), want)
		}
	}
	for _, f := range glob(t, dir, "state/*.json") {
		if raw, err := os.ReadFile(f); err != nil || strings.Contains(string(raw), unfinished) {
			t.Errorf("%s: %v: %s", f, err, raw)
		}
	}
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	must(t, err)
	return list
}

func open(t *testing.T, s *sim, host int) *hyperv.Host {
	t.Helper()
	h, err := hyperv.Open(t.Context(), hyperv.Config{Session: s.session(host), Disks: vhdxfiles.New(vhdxfiles.Config{Root: s.Hosts[host].Files}), Dir: t.TempDir()})
	must(t, err)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestMany(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 200 VMs")
	}
	begin := time.Now()
	s := start(t, t.TempDir(), "--hosts", "3", "--vms", "200")
	up := time.Since(begin)
	h := open(t, s, 0)
	begin = time.Now()
	list, err := h.Inventory(t.Context())
	took := time.Since(begin)
	must(t, err)
	t.Logf("up after %v, inventory of %d VMs in %v", up, len(list), took)
	if len(list) != 67 || s.Hosts[2].VMs != 66 {
		t.Errorf("%d VMs, %+v", len(list), s.Hosts)
	}
	if up > 15*time.Second || took > 5*time.Second {
		t.Errorf("up after %v, inventory in %v", up, took)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := launch(t, dir, "--listen", "127.0.0.1:0", "--vms", "5000") // more than are made in a second
	s.wait(" of 5000 VMs made")
	if code := s.end(syscall.SIGTERM); code != 1 || !strings.Contains(s.err.String(), "the same command goes on") {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(program, "--help").CombinedOutput()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, word := range []string{"--dir", "--write-every", "SIGHUP", "docs/hvsim.md", "Ctrl-C"} {
		if !strings.Contains(string(out), word) {
			t.Errorf("the help does not mention %s", word)
		}
	}
}

func TestSecondProcess(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	again := launch(t, s.dir, "--listen", "127.0.0.1:0")
	if code := again.code(); code != 1 || !strings.Contains(again.err.String(), fmt.Sprintf("another hvsim works there (process %d)", s.cmd.Process.Pid)) {
		t.Errorf("ended with %d: %s", code, again.err.String())
	}
	dir := filepath.Join(t.TempDir(), "new")
	addr := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(s.Hosts[0].URL)
	taken := launch(t, dir, "--listen", addr, "--vms", "3")
	if code := taken.code(); code != 1 || !strings.Contains(taken.err.String(), addr) || !strings.Contains(taken.err.String(), "--listen") {
		t.Errorf("ended with %d: %s", code, taken.err.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("VMs were made though the port was taken")
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(tmp, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	raw, empty := file("raw", "0123456789"), file("empty", "")
	for want, args := range map[string][]string{
		"unknown flag":                     {"--colour"},
		"unknown command":                  {"serve"},
		"--hosts 0":                        {"--hosts", "0"},
		"--vms -1":                         {"--vms", "-1"},
		"--accel qemu":                     {"--accel", "qemu"},
		`--user`:                           {"--user", `LAB\admin`},
		"can't be negative":                {"--job-time", "-1s"},
		"an address and a port":            {"--listen", "localhost"},
		"can't have ports":                 {"--listen", "127.0.0.1:65535", "--hosts", "2"},
		"read the password":                {"--password-file", tmp + "/none"},
		empty + " is empty":                {"--password-file", empty},
		"read the plan of faults":          {"--faults", tmp + "/none"},
		"unexpected EOF":                   {"--faults", file("f1", "[{")},
		"something follows":                {"--faults", file("f0", "[] []")},
		"unknown field":                    {"--faults", file("f2", `[{"Methode":"x"}]`)},
		"no class has a method":            {"--faults", file("f3", `[{"Method":"CreateSnapshto","Return":5}]`)},
		"nothing goes wrong":               {"--faults", file("f4", `[{"Method":"CreateSnapshot"}]`)},
		"no host HV7":                      {"--faults", file("f5", `[{"Host":"HV7","Return":5}]`)},
		"Err can't be":                     {"--faults", file("f6", `[{"Method":"Get","Err":"boom"}]`)},
		"a name and 1 to 64 disks":         {"--vm", "name=x"},
		"number from 1 to 2":               {"--vm", "name=x,gen=3,disk=" + raw},
		"number from 32":                   {"--vm", "name=x,memory=1G,disk=" + raw},
		"the words are":                    {"--vm", "name=x,colour=red,disk=" + raw},
		"WORD=VALUE":                       {"--vm", "name=x,disk=" + raw + ",b.raw"},
		"said before":                      {"--vm", "name=x,name=y,disk=" + raw},
		"HV1 to HV2":                       {"--hosts", "2", "--vm", "name=x,host=HV3,disk=" + raw},
		"directory of Windows":             {"--vm", `name=..\x,disk=` + raw},
		"a second VM has the name":         {"--vm", "name=x,disk=" + raw, "--vm", "name=X,disk=" + raw},
		"no such file":                     {"--vm", "name=x,disk=" + tmp + "/none"},
		"is no file, or is empty":          {"--vm", "name=x,disk=" + empty},
		"qcow2 image: qemu-img convert -O": {"--vm", "name=x,disk=" + file("q", "QFI\xfb0123")},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "hv")
			s := launch(t, dir, append([]string{"--listen", "127.0.0.1:0"}, args...)...)
			if code := s.code(); code != 1 || !strings.Contains(s.err.String(), want) || !strings.HasPrefix(s.err.String(), "hvsim: ") || s.out.String() != "" {
				t.Errorf("ended with %d: %s%s", code, s.out.String(), s.err.String())
			}
			if list := glob(t, dir, "state/*.json"); len(list) != 0 {
				t.Errorf("made %v", list)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		t.Parallel()
		out, err := exec.Command(program).CombinedOutput()
		if err == nil || !strings.Contains(string(out), `"dir" not set`) {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, "--vms", "3")
	before := s.vms(0)
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Fatal(s.err.String())
	}
	files := glob(t, dir, "state/*.json")
	good, err := os.ReadFile(files[1])
	must(t, err)
	must(t, os.WriteFile(files[1], good[:len(good)/2], 0o644))
	s = launch(t, dir, "--listen", "127.0.0.1:0", "--vms", "3")
	if code := s.code(); code != 1 || !strings.Contains(s.err.String(), files[1]) || !strings.Contains(s.err.String(), "nothing of it was removed") {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
	if b, err := os.ReadFile(files[1]); err != nil || string(b) != string(good[:len(good)/2]) || len(glob(t, dir, "state/*.json")) != 3 {
		t.Errorf("the damaged file was changed (%v)", err)
	}
	must(t, os.WriteFile(files[1], good, 0o644))
	s = start(t, dir, "--vms", "3")
	if after := s.vms(0); !maps.Equal(before, after) {
		t.Errorf("after the repair: %v, before it %v", after, before)
	}
	s.end(syscall.SIGTERM)
	s = launch(t, dir, "--listen", "127.0.0.1:0", "--hosts", "1", "--vms", "3", "--seed", "9")
	s.wait("Ctrl-C ends it.")
}

func TestFaultsAreReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plan := filepath.Join(dir, "faults.json")
	must(t, os.WriteFile(plan, []byte("[]"), 0o644))
	s := start(t, dir, "--vms", "1", "--faults", plan)
	if got := s.drive("failing", "vm-0001"); got["error"] != "" {
		t.Fatalf("without a fault: %v", got)
	}
	must(t, os.WriteFile(plan, []byte(`[{"Name":"vss","Method":"CreateSnapshot","Object":"vm-0001","Count":1,"JobState":10,"JobText":"VSS failed"}]`), 0o644))
	must(t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.wait("1 faults are in force now")
	must(t, os.WriteFile(plan, []byte(`[{"Nonsense":1}]`), 0o644)) // keeps the old plan
	must(t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.wait("the plan of faults stays as it was")
	if got := s.drive("failing", "vm-0001"); !strings.Contains(got["error"].(string), "VSS failed") {
		t.Errorf("the fault did not fire: %v", got)
	}
	if code := s.end(syscall.SIGINT); code != 0 || !strings.Contains(s.err.String(), "fault vss was used 1 times") {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
}
