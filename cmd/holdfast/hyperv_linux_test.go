package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/agent/state"
	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
)

// simHost is a simulated Hyper-V host that is reached as a real one is.
type simHost struct {
	site  *hvsim.Site
	host  *hvsim.Host
	vm    *hvsim.VM // web01
	state string    // of an agent that need not exist
	dir   string
	args  []string // that name the host
}

const simDisk = "AAAAAAAA-0000-4000-8000-000000000001"

func newSimHost(t *testing.T) *simHost {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	site, err := hvsim.New(hvsim.Config{Dir: filepath.Join(dir, "sim"), Seed: 1, Inline: true,
		Hosts: []hvsim.HostConfig{{Name: "BERLINHV7", Switches: []hvsim.Switch{{Name: "Contoso Production", Kind: "external"}}}}})
	check(err)
	check(site.Open(t.Context()))
	t.Cleanup(func() {
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &simHost{site: site, host: site.Hosts()[0], dir: dir, state: filepath.Join(dir, "agent")}
	s.vm, err = s.host.AddVM(t.Context(), hvsim.VMSpec{Name: "web01", OS: "Windows Server 2022 Datacenter", OSVersion: "10.0.20348", FQDN: "web01.corp.contoso.example", Notes: "call Anna, extension 4711",
		Disks: []hvsim.DiskSpec{{ID: simDisk, Name: "contoso-os", Size: 8 << 20, BlockSize: 1 << 20}},
		NICs:  []hvsim.NICSpec{{Switch: "Contoso Production", MAC: "00155DAB12CD", IPs: []string{"172.22.5.17", "fe80::215:5dff:feab:12cd"}, Subnets: []string{"255.255.255.0"}, Gateways: []string{"172.22.5.1"}, DNS: []string{"172.22.9.9"}}}})
	check(err)
	_, err = s.host.AddVM(t.Context(), hvsim.VMSpec{Name: "Disk", VSS: model.VSSAbsent, Disks: []hvsim.DiskSpec{{Size: 4 << 20}}}) // a name that is a word of the protocol, too
	check(err)
	password := filepath.Join(dir, "password")
	check(os.WriteFile(password, []byte("Pa55 w0rd\n"), 0o600))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := wsmand.New(wsmand.Config{Session: func(string) (cim.Session, error) { return s.host, nil }, Schema: wsmand.Tables(schema.Load()), Computer: "BERLINHV7",
		Password: func(user, _ string) (string, bool) { return "Pa55 w0rd", strings.EqualFold(user, "svc-holdfast") }})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }() // ends with Close
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	s.args = []string{"--hyperv", "http://" + ln.Addr().String() + "/wsman", "--hyperv-user", "svc-holdfast", "--hyperv-password-file", password, "--hyperv-files", s.host.Dir()}
	return s
}

// with is a command line on the host.
func (s *simHost) with(command string, args ...string) []string {
	return slices.Concat(strings.Fields(command), s.args, args)
}

// replicates writes down that this host's agent replicates a VM.
func (s *simHost) replicates(t *testing.T, vm *hvsim.VM) {
	t.Helper()
	err := state.Make(s.state)
	if err == nil {
		err = state.Save(filepath.Join(s.state, state.Assignments), struct {
			state.AssignmentsHeader
			VMs map[string]string `json:"vms"`
		}{state.CurrentAssignments(), map[string]string{"m1": strings.ToLower(vm.ID())}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// left counts what is on a VM of checkpoints and reference points with Holdfast's name.
func left(vm *hvsim.VM) (n int) {
	st := vm.State()
	for _, c := range st.Checkpoints {
		if strings.HasPrefix(c.Name, "hf-") {
			n++
		}
	}
	for _, p := range st.Points {
		if strings.HasPrefix(p.Name, "hf-") {
			n++
		}
	}
	return n
}

type doctorCheck struct{ Name, Status, Detail, Remedy string }

func TestDoctor(t *testing.T) {
	t.Parallel()
	doctor := func(t *testing.T, s *simHost, want dr.Kind, args ...string) map[string]doctorCheck {
		t.Helper()
		r := cli(t, s.with("agent doctor -o json --state "+s.state, args...)...)
		code := 0
		if want != 0 {
			code = console.ExitCode(want)
		}
		if r.code != code {
			t.Fatalf("exit code %d, want %d: %s%s", r.code, code, r.out, r.err)
		}
		documented(t, "agent doctor", r.out)
		out := map[string]doctorCheck{}
		for _, c := range decode[[]doctorCheck](t, r.out) {
			out[c.Name] = c
			if c.Status == "failed" && c.Remedy == "" {
				t.Errorf("%s failed without a remedy: %s", c.Name, c.Detail)
			}
		}
		return out
	}
	t.Run("all well", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		got := doctor(t, s, 0)
		for _, name := range []string{"management", "vmms", "rights", "hypervisor", "inventory", "disks"} {
			if got[name].Status != "ok" {
				t.Errorf("%s: %+v", name, got[name])
			}
		}
		// The second VM's guest can't do VSS: that is told, and no failure.
		if c := got["guest snapshots"]; c.Status != "warning" || !strings.Contains(c.Detail, "Disk") || strings.Contains(c.Detail, "web01") {
			t.Errorf("guest snapshots: %+v", c)
		}
		if got["checkpoint"].Status != "skipped" || got["vault"].Status != "skipped" {
			t.Errorf("%+v", got)
		}
		fits(t, must(t, s.with("agent doctor --state "+s.state)...))
	})
	t.Run("checkpoint of a VM", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		if c := doctor(t, s, 0, "--vm", "web01")["checkpoint"]; c.Status != "ok" || !strings.Contains(c.Detail, "1 disks read, removed") {
			t.Errorf("%+v", c)
		}
		if st := s.vm.State(); left(s.vm) != 0 || len(st.Checkpoints) != 0 || len(st.Points) != 0 {
			t.Errorf("the doctor left %+v and %+v", st.Checkpoints, st.Points)
		}
		if c := doctor(t, s, dr.KindPrecondition, "--vm", "nobody")["checkpoint"]; c.Status != "failed" {
			t.Errorf("a VM that is not there: %+v", c)
		}
		s.site.SetFaults(hvsim.Fault{Method: "CreateSnapshot", JobState: 10, JobText: "no room for a checkpoint"})
		if c := doctor(t, s, dr.KindPrecondition, "--vm", "web01")["checkpoint"]; c.Status != "failed" || !strings.Contains(c.Detail, "no room") || s.site.Fired()["CreateSnapshot"] == 0 {
			t.Errorf("checkpoints fail, fired %v: %+v", s.site.Fired(), c)
		}
	})
	t.Run("replicated VM", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		s.replicates(t, s.vm)
		_, before := s.vm.Version()
		if c := doctor(t, s, 0, "--vm", "web01")["checkpoint"]; c.Status != "skipped" || !strings.Contains(c.Detail, "is replicated") {
			t.Errorf("%+v", c)
		}
		if _, after := s.vm.Version(); after != before {
			t.Error("the VM was changed")
		}
	})
	t.Run("no vmms", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		s.site.SetFaults(hvsim.Fault{Method: "Query", Object: "Win32_Service", Err: cim.CodeAccessDenied})
		if c := doctor(t, s, dr.KindPrecondition)["vmms"]; c.Status != "failed" || s.site.Fired()["Query"] == 0 {
			t.Errorf("fired %v: %+v", s.site.Fired(), c)
		}
		s.site.SetFaults(hvsim.Fault{Method: "Query", Object: "Msvm_VirtualSystemManagementService", Err: cim.CodeAccessDenied})
		if c := doctor(t, s, dr.KindPrecondition)["rights"]; c.Status != "failed" || !strings.Contains(c.Remedy, "Hyper-V Administrators") {
			t.Errorf("no rights: %+v", c)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		if err := os.WriteFile(filepath.Join(s.dir, "password"), []byte("geheim-und-falsch"), 0o600); err != nil {
			t.Fatal(err)
		}
		got := doctor(t, s, dr.KindPrecondition)
		if got["management"].Status != "failed" || got["hypervisor"].Status != "failed" {
			t.Errorf("%+v", got)
		}
		for _, c := range got {
			if strings.Contains(c.Detail+c.Remedy, "geheim") {
				t.Errorf("the password is shown: %+v", c)
			}
		}
		if err := os.Chmod(filepath.Join(s.dir, "password"), 0o644); err != nil {
			t.Fatal(err)
		}
		if c := doctor(t, s, dr.KindPrecondition)["management"]; !strings.Contains(c.Remedy+c.Detail, "chmod 600") {
			t.Errorf("a password that everybody can read: %+v", c)
		}
	})
	t.Run("broken registration", func(t *testing.T) {
		t.Parallel()
		s := newSimHost(t)
		if err := os.MkdirAll(filepath.Join(s.state, "identity"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.state, state.Identity), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := doctor(t, s, dr.KindPrecondition)["vault"]; c.Status != "failed" {
			t.Errorf("%+v", c)
		}
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	s := newSimHost(t)
	_, before := s.vm.Version()
	file := filepath.Join(s.dir, "probe.jsonl")
	text := must(t, s.with("agent probe -o json", "--record", file)...)
	documented(t, "agent probe --record", text)
	if v := decode[struct{ Exchanges, VMs, Unanswered int }](t, text); v.VMs != 2 || v.Exchanges < 5 || v.Unanswered != 0 {
		t.Errorf("%s", text)
	}
	if _, after := s.vm.Version(); after != before {
		t.Error("the probe changed the VM")
	}
	if st := s.vm.State(); len(st.Checkpoints)+len(st.Points) != 0 {
		t.Error("the probe made something")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lower := bytes.ToLower(raw)
	for _, private := range []string{"BERLINHV7", "web01", "contoso", "anna", "4711", "172.22.", "feab:12cd", "00155DAB12CD", "corp.", "Pa55", "svc-holdfast", "127.0.0.1", `\\Disk\\`, ">Disk<", "Disk.vhdx"} {
		if i := bytes.Index(lower, bytes.ToLower([]byte(private))); i >= 0 {
			t.Errorf("the recording tells %q: …%s…", private, raw[max(0, i-120):min(len(raw), i+60)])
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	type vm struct {
		Generation, Disks int
		Version, OS, Name string
	}
	text = must(t, "agent", "probe", "--replay", file, "-o", "json")
	documented(t, "agent probe --replay", text)
	got := decode[[]vm](t, text)
	if len(got) != 2 {
		t.Fatalf("%s", text)
	}
	for _, v := range got {
		if v.Generation != 2 || v.Disks != 1 || v.Version != "10.0" || !strings.HasPrefix(v.Name, "vm-") {
			t.Errorf("replayed as %+v", v)
		}
	}
	if got[0].OS == "" == (got[1].OS == "") {
		t.Errorf("one guest tells its system: %+v", got)
	}
	fits(t, must(t, "agent", "probe", "--replay", file))

	if r := cli(t, s.with("agent probe --record "+file)...); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a file is replaced: %+v", r)
	}
	bad := filepath.Join(s.dir, "bad.jsonl")
	if err := os.WriteFile(bad, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		args []string
		kind dr.Kind
	}{
		"no recording":  {[]string{"--replay", bad}, dr.KindCorrupt},
		"no file":       {[]string{"--replay", bad + "x"}, dr.KindNotFound},
		"both":          {[]string{"--replay", bad, "--record", file}, dr.KindInvalid},
		"neither":       {nil, dr.KindInvalid},
		"by COM":        {[]string{"--hyperv", "local", "--record", bad + "y"}, dr.KindInvalid},
		"in the clear":  {[]string{"--hyperv", "http://127.0.0.1:1/wsman", "--hyperv-basic", "--record", bad + "y"}, dr.KindInvalid},
		"user in a URL": {[]string{"--hyperv", "http://u:geheim@127.0.0.1:1/wsman", "--record", bad + "y"}, dr.KindInvalid},
	} {
		if r := cli(t, append([]string{"agent", "probe"}, c.args...)...); r.code != console.ExitCode(c.kind) || strings.Contains(r.err, "geheim") {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	s := newSimHost(t)
	// A profile that was killed, stood for by one whose tokens could not be deleted.
	s.site.SetFaults(hvsim.Fault{Method: "DestroyReferencePoint", Return: 2}, hvsim.Fault{Method: "DestroySnapshot", Return: 2})
	profile(t, s, filepath.Join(s.dir, "p.profile"), 1)
	if left(s.vm) == 0 {
		t.Fatalf("nothing was left to clean up, fired %v", s.site.Fired())
	}
	s.site.SetFaults()
	_, exists, err := s.host.ForeignReferencePoint(s.vm)
	if err != nil {
		t.Fatal(err)
	}
	mine := func() int { return left(s.vm) }

	args := s.with("agent cleanup --state " + s.state)
	if r := cli(t, append(args, "--all")...); r.code != console.ExitCode(dr.KindInvalid) || !strings.Contains(r.err, "--yes") || mine() == 0 {
		t.Errorf("it does not ask: %+v", r)
	}
	for _, bad := range [][]string{{"--yes"}, {"--all", "--vm", "web01", "--yes"}} {
		if r := cli(t, append(slices.Clone(args), bad...)...); r.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("%v: %+v", bad, r)
		}
	}
	if r := cli(t, append(slices.Clone(args), "--vm", "nobody", "--yes")...); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("a VM that is not there: %+v", r)
	}
	s.replicates(t, s.vm)
	if r := cli(t, append(slices.Clone(args), "--vm", "web01", "--yes")...); r.code != console.ExitCode(dr.KindConflict) || mine() == 0 {
		t.Errorf("a VM that is replicated: %+v", r)
	}
	if out := must(t, append(slices.Clone(args), "--all", "--yes", "-o", "json")...); strings.Contains(out, "web01") || mine() == 0 {
		t.Errorf("--all takes a replicated VM: %s", out)
	}
	if err := os.Remove(filepath.Join(s.state, state.Assignments)); err != nil {
		t.Fatal(err)
	}
	// While an agent runs nothing is cleaned.
	unlock, err := state.Lock(s.state)
	if err != nil {
		t.Fatal(err)
	}
	if r := cli(t, append(slices.Clone(args), "--all", "--yes")...); r.code != console.ExitCode(dr.KindConflict) || mine() == 0 {
		t.Errorf("beside a running agent: %+v", r)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	out := must(t, append(slices.Clone(args), "--all", "--yes", "-o", "json")...)
	documented(t, "agent cleanup", out)
	if mine() != 0 || !strings.Contains(out, "web01") {
		t.Errorf("left: %+v\n%s", s.vm.State().Points, out)
	}
	if !exists() {
		t.Error("another product's reference point is gone")
	}
	fits(t, must(t, append(slices.Clone(args), "--vm", "web01", "--yes")...))
}

// profile runs 'plan profile' on web01 until it has measured n intervals, then ends it as Ctrl-C does.
func profile(t *testing.T, s *simHost, file string, n int) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out buffer
	errs := &watcher{want: "intervals, ", left: n, hit: cancel}
	code := run(ctx, &console.Console{In: strings.NewReader(""), Out: &out, Err: errs, Now: time.Now, Width: console.MinWidth},
		s.with("plan profile --interval 10s --vm web01 --log-level error --state "+s.state, "--out", file))
	return result{code, out.String(), errs.String()}
}

// watcher is a standard error that does something at a text's n-th time.
type watcher struct {
	buffer
	want string
	left int
	hit  func()
}

func (w *watcher) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.want) {
		if w.left--; w.left == 0 {
			w.hit()
		}
	}
	return w.buffer.Write(p)
}

func TestPlan(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for half a minute")
	}
	t.Parallel()
	s := newSimHost(t)
	file := filepath.Join(s.dir, "berlin.profile")
	writing, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{})
	go func() { // the guest; ends with stop
		defer close(done)
		for i := 0; writing.Err() == nil; i++ {
			_ = s.vm.Disk(simDisk).Write(int64(i%64)<<16, bytes.Repeat([]byte{byte(i)}, 4096)) // refused while the host merges
			time.Sleep(5 * time.Millisecond)
		}
	}()
	for i := range 2 { // interrupted, then continued
		if r := profile(t, s, file, 2); r.code != 0 || r.out != "" || !strings.Contains(r.err, "plan report") {
			t.Fatalf("profile %d: %+v", i+1, r)
		}
		if left(s.vm) != 0 {
			t.Errorf("the profile left %+v", s.vm.State().Points)
		}
	}
	stop()
	<-done
	s.replicates(t, s.vm)
	if r := profile(t, s, file, 1); r.code == 0 {
		t.Errorf("a VM that is replicated is profiled: %+v", r)
	}
	text := must(t, "plan", "report", file, "--price-gib-month", "0.02", "--price-10k-writes", "0.05")
	fits(t, text)
	type plan struct {
		Version, Intervals int
		Hosts              []string
		VMs                []struct{ Name string }
		Bandwidth100       int64
		CostPerMonth       float64
	}
	raw := must(t, "plan", "report", file, "--price-gib-month", "0.02", "-o", "json")
	p := decode[plan](t, raw)
	if p.Version != 1 || p.Intervals < 2 || len(p.Hosts) != 1 || !strings.EqualFold(p.Hosts[0], "berlinhv7") || len(p.VMs) != 1 || p.VMs[0].Name != "web01" || p.Bandwidth100 <= 0 || p.CostPerMonth <= 0 {
		t.Errorf("%+v\n%s", p, raw)
	}
	if same := must(t, "plan", "report", file, "--price-gib-month", "0.02", "--format", "json"); same != raw {
		t.Error("--format json differs from -o json")
	}
	if csv := must(t, "plan", "report", file, "--format", "csv"); !strings.Contains(csv, "web01") || strings.Count(csv, "\n") < 2 {
		t.Errorf("%s", csv)
	}
	if html := must(t, "plan", "report", file, "--format", "html"); !strings.HasPrefix(html, "<!doctype html>") || !strings.Contains(html, "web01") {
		t.Errorf("%.300s", html)
	}
	pages := 0
	for _, args := range commandsOf(t, "planner.md") {
		if args[1] != "report" {
			continue
		}
		args[2] = file
		pages++
		if text := must(t, args...); !slices.Contains(args, "--format") {
			fits(t, text)
		}
	}
	if pages < 4 {
		t.Errorf("docs/planner.md shows %d reports", pages)
	}
	// A profiler that was killed leaves half a line.
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"torn": whole[:len(whole)-3], "empty": nil, "none": []byte("PK\x03\x04"), "future": []byte(`{"kind":"header","version":99}` + "\n")} {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r := cli(t, "plan", "report", path)
		if (r.code == 0) != (name == "torn") || r.code != 0 && !strings.Contains(r.err, path) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestPlanFlags(t *testing.T) {
	t.Parallel()
	s := newSimHost(t)
	for _, args := range []string{"report x --format pdf", "report x --growth -1", "report x --ratio 0", "report x --price-gib-month -1", "report", "report x --rpo soon", "profile", "profile --out x --interval 1s"} {
		if r := cli(t, append(s.with("plan "+args), "--state", s.state)...); strings.Contains(args, "report") {
			if r = cli(t, strings.Fields("plan "+args)...); r.code != console.ExitCode(dr.KindInvalid) {
				t.Errorf("%s: %+v", args, r)
			}
		} else if r.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("%s: %+v", args, r)
		}
	}
	if r := cli(t, "plan", "report", filepath.Join(s.dir, "none")); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("no profile: %+v", r)
	}
}

// TestHyperVAgent: an agent on a simulated Hyper-V host and a real vault; what the
// site's VMs lack is told in every form.
func TestHyperVAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	s := newSimHost(t)
	if _, err := s.host.AddVM(t.Context(), hvsim.VMSpec{Name: "=old;vm <b>", Version: "5.0", Disks: []hvsim.DiskSpec{{Size: 4 << 20, Kind: model.VHD}}}); err != nil {
		t.Fatal(err)
	}
	startVault(t)
	key := filepath.Join(s.dir, "key")
	must(t, "site", "create", "berlin", "--type", "hyperv")
	must(t, "site", "key", "berlin", "--out", key)
	must(t, "agent", "register", "--key", key, "--state", s.state)
	agent := program(s.with("agent run --state " + s.state)...)
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
	until(t, "the vault knows the VMs", func() bool {
		return len(decode[[]struct{ ID string }](t, must(t, "vm", "list", "--site", "berlin", "-o", "json"))) == 3
	})
	if nets := must(t, "network", "list", "--site", "berlin"); !strings.Contains(nets, "Contoso") {
		t.Errorf("networks: %s", nets)
	}
	text := must(t, "site", "check", "berlin", "--target", "azure")
	fits(t, text)
	if !strings.Contains(text, "3 VMs are ready for") || !strings.Contains(text, "=old;vm") {
		t.Errorf("%s", text)
	}
	raw := must(t, "site", "check", "berlin", "-o", "json")
	documented(t, "site check", raw)
	if r := decode[struct {
		Version, Blocked int
		VMs              []struct {
			Name     string
			Findings []struct{ Reason, WayOut string }
		}
	}](t, raw); r.Version != 1 || r.Blocked < 1 || len(r.VMs) != 3 {
		t.Errorf("%s", raw)
	}
	if out := must(t, "site", "check", "berlin", "--format", "csv"); !strings.Contains(out, "'=old;vm") || strings.Contains(out, "\n=old") {
		t.Errorf("a spreadsheet would run this: %s", out)
	}
	if out := must(t, "site", "check", "berlin", "--format", "html", "--target", "kvm"); !strings.HasPrefix(out, "<!doctype html>") || strings.Contains(out, "<b>") && strings.Contains(out, "vm <b>") {
		t.Errorf("%.300s", out)
	}
	if out := must(t, "site", "check", "berlin", "--format", "json"); !strings.Contains(out, `"ready"`) {
		t.Errorf("%s", out)
	}
	for _, c := range []struct {
		kind dr.Kind
		args []string
	}{{dr.KindInvalid, []string{"berlin", "--target", "moon"}}, {dr.KindInvalid, []string{"berlin", "--format", "pdf"}}, {dr.KindNotFound, []string{"paris"}}} {
		if r := cli(t, append([]string{"site", "check"}, c.args...)...); r.code != console.ExitCode(c.kind) {
			t.Errorf("site check %v: %+v", c.args, r)
		}
	}
	// The doctor works beside the agent, cleanup does not.
	doctor := must(t, s.with("agent doctor --vm web01 -o json --state "+s.state)...)
	for _, want := range []string{" answers in ", `"clock"`, `"certificate"`, "removed"} {
		if !strings.Contains(doctor, want) {
			t.Errorf("the doctor does not tell %q: %s", want, doctor)
		}
	}
	if r := cli(t, s.with("agent cleanup --all --yes --state "+s.state)...); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("cleanup beside the agent: %+v", r)
	}
	if err := agent.Process.Signal(os.Interrupt); err != nil {
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
	if strings.Contains(log.String(), "Pa55") {
		t.Error("the password is in the log")
	}
}
