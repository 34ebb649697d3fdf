package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armapi"
	"holdfast/internal/armapi/armapitest"
	"holdfast/internal/dr"
)

var update = flag.Bool("update", false, "write golden files")

// asMain lets the test binary be the program itself.
const asMain = "HOLDFAST_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// result is what a command line did.
type result struct {
	code     int
	out, err string
}

// cli runs a command line in this process.
func cli(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code := run(ctx, &console.Console{In: strings.NewReader(""), Out: &out, Err: &errs, Now: time.Now, Width: console.MinWidth, Poll: 10 * time.Millisecond}, args)
	return result{code, out.String(), errs.String()}
}

// must is cli of a command line that has to succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := cli(t, args...)
	if r.code != 0 {
		t.Fatalf("holdfast %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// decode reads what --output json printed.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	return v
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and look at the difference):\n%s", path, got)
	}
}

func walk(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		walk(sub, fn)
	}
}

// TestHelpGolden keeps every word that scripts and manuals rely on.
func TestHelpGolden(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	root := newRoot(&console.Console{Now: time.Now})
	walk(root, func(c *cobra.Command) {
		b.WriteString("==== " + c.CommandPath() + "\n" + c.Short + "\n")
		if c.Long != "" {
			b.WriteString("\n" + c.Long + "\n")
		}
		b.WriteString("\n" + c.UseLine() + "\n" + c.LocalFlags().FlagUsages() + "\n")
	})
	golden(t, "help.golden", b.String())
}

func TestCommandRules(t *testing.T) {
	t.Parallel()
	secret := regexp.MustCompile(`(?i)password|secret|token|credential`)
	destructive := []string{"holdfast site delete", "holdfast provider remove", "holdfast policy delete", "holdfast item disable", "holdfast item failover", "holdfast item cancel", "holdfast item change-point", "holdfast store maintain", "holdfast network mapping delete", "holdfast agent cleanup", "holdfast azure cleanup"}
	asks := map[string]bool{}
	walk(newRoot(&console.Console{Now: time.Now}), func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no short help", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if secret.MatchString(f.Name) && !strings.HasSuffix(f.Name, "-file") { // the name of a file is no secret
				t.Errorf("%s takes a secret on the command line: --%s", c.CommandPath(), f.Name)
			}
			if f.Name == "yes" {
				asks[c.CommandPath()] = true
			}
		})
	})
	for _, path := range destructive {
		if !asks[path] {
			t.Errorf("%s does not ask", path)
		}
		delete(asks, path)
	}
	if len(asks) > 0 {
		t.Errorf("these ask and are not listed here: %v", asks)
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"stor", "item sho", "item show", "item show a b", "site list --bogus", "--output xml version", "vault serve", "vault init", "agent register", "agent serve-point x",
		"agent serve-point --state /tmp ../x", "store ls --store x", "mapping create --site a", "agent run --bandwidth fast", "agent run --log-level loud", "vault init --data /tmp/none --name a/b",
		"vault init --data /tmp/none --listen nowhere", "vault init --data /tmp/none --public-url http://x", "vault init --data /tmp/none --db postgres://u:p@h/d"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			r := cli(t, strings.Fields(args)...)
			if r.code != console.ExitCode(dr.KindInvalid) || !strings.HasPrefix(r.err, "error: ") || r.out != "" {
				t.Errorf("exit code %d, out %q, err %q", r.code, r.out, r.err)
			}
			if strings.Contains(r.err, "u:p") {
				t.Errorf("the password is shown: %s", r.err)
			}
		})
	}
	if r := cli(t, "item", "sho"); !strings.Contains(r.err, "show") {
		t.Errorf("no suggestion: %s", r.err)
	}
}

// fakeVault starts the in-memory API and points the environment to it.
func fakeVault(t *testing.T, role dr.Role) *armapitest.Fake {
	t.Helper()
	f := armapitest.New(armapitest.Config{Step: time.Millisecond})
	in := armapitest.NewServer(t, f, armapi.Config{PageSize: 2})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), in.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	id := f.Identity()
	raw, _ := json.Marshal(map[string]string{"url": in.URL, "caFile": "ca.pem", "tenantId": id.TenantID, "clientId": string(role), "clientSecret": armapitest.Secret,
		"subscriptionId": id.SubscriptionID, "resourceGroup": id.ResourceGroup, "vaultName": id.Name})
	file := filepath.Join(dir, "endpoint.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOLDFAST_ENDPOINT", file)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	return f
}

// fits checks that a table has at most 80 columns.
func fits(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if w := runewidth.StringWidth(strings.TrimRight(line, "\n")); w > console.MinWidth {
			t.Errorf("a line has %d columns: %q", w, line)
		}
	}
}

// TestStory goes through everything that an operator does, against the in-memory vault.
func TestStory(t *testing.T) {
	fakeVault(t, dr.RoleOwner)
	type job struct {
		ID, State, Scenario string
		Tasks               []struct{ Title, State string }
	}
	type item struct {
		VMName, ProtectionState, TestFailoverState string
		Points                                     int
	}
	show := func() item { return decode[item](t, must(t, "item", "show", "web01", "-o", "json")) }

	must(t, "policy", "create", "gold", "--every", "30s", "--keep", "2h")
	if r := cli(t, "policy", "create", "Gold"); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a second policy of the name: %+v", r)
	}
	policies := decode[[]struct {
		Name                 string
		CopyFrequencySeconds int
		RetentionSeconds     int
	}](t, must(t, "policy", "list", "-o", "json"))
	if len(policies) != 1 || policies[0].CopyFrequencySeconds != 30 || policies[0].RetentionSeconds != 7200 {
		t.Errorf("policies %+v", policies)
	}
	if r := cli(t, "item", "enable", "web01"); r.code != console.ExitCode(dr.KindPrecondition) || !strings.Contains(r.err, "mapping create") {
		t.Errorf("enable without a mapping: %+v", r)
	}
	must(t, "mapping", "create", "--site", "site-a", "--to", "site-b", "--policy", "gold")
	if r := cli(t, "mapping", "create", "--site", "site-a", "--to", "site-b", "--policy", "gold"); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a second mapping of the name: %+v", r)
	}
	vms := decode[[]struct {
		Name, Site string
		Protected  bool
		Disks      []struct{ SizeMiB int64 }
	}](t, must(t, "vm", "list", "-o", "json"))
	if len(vms) != 2 || vms[0].Site != "site-a" || vms[0].Protected || len(vms[0].Disks) != 2 || vms[0].Disks[0].SizeMiB != 8193 {
		t.Errorf("VMs %+v", vms)
	}

	if j := decode[job](t, must(t, "item", "enable", "web01", "-o", "json")); j.State != "Succeeded" || len(j.Tasks) == 0 {
		t.Errorf("enable ended as %+v", j)
	}
	if out := must(t, "item", "enable", "db01", "--until-protected"); !strings.Contains(out, "Protected") {
		t.Errorf("until protected: %s", out)
	}
	for deadline := time.Now().Add(10 * time.Second); show().Points == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no recovery point appeared")
		}
		time.Sleep(10 * time.Millisecond)
	}
	points := decode[[]struct{ Name, Consistency string }](t, must(t, "point", "list", "web01", "-o", "json"))
	if len(points) == 0 || points[0].Name == "" {
		t.Fatalf("points %+v", points)
	}
	oldest := points[len(points)-1].Name

	must(t, "item", "test-failover", "web01", "--point", oldest)
	if s := show(); s.TestFailoverState != "WaitingForCompletion" {
		t.Errorf("after the test: %+v", s)
	}
	if r := cli(t, "item", "test-failover", "web01"); r.code == 0 {
		t.Errorf("a second test was allowed: %+v", r)
	}
	must(t, "item", "cleanup", "web01", "--comments", "it came up")
	if r := cli(t, "item", "test-failover", "web01", "--point", "g00000009-c0000000000000009"); r.code != console.ExitCode(dr.KindNotFound) || !strings.Contains(r.err, "point list") {
		t.Errorf("an unknown point: %+v", r)
	}

	for _, args := range []string{"failover web01", "failover web01 --planned --unplanned", "failover web01 --planned --point latest", "failover web01 --unplanned", "cancel web01", "disable web01", "change-point web01 --point latest",
		"test-failover web01 --network x --disconnected"} {
		if r := cli(t, strings.Fields("item "+args)...); r.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("item %s: %+v", args, r)
		}
	}
	must(t, "item", "failover", "web01", "--unplanned", "--point", oldest, "--yes")
	must(t, "item", "change-point", "web01", "--point", points[0].Name, "--yes")
	must(t, "item", "cancel", "web01", "--yes")
	must(t, "item", "failover", "web01", "--planned", "--yes")
	must(t, "item", "commit", "web01")
	if s := show(); s.ProtectionState != "FailoverCommitted" {
		t.Errorf("after the commit: %+v", s)
	}
	must(t, "item", "resync", "db01")
	must(t, "item", "disable", "db01", "--yes")

	for _, args := range []string{"item list", "item show web01", "point list web01", "job list", "vm list", "site list", "provider list", "policy list", "mapping list"} {
		fits(t, must(t, strings.Fields(args)...))
		command := strings.TrimSuffix(args, " web01")
		if strings.HasPrefix(args, "job") {
			command = "job …"
		}
		documented(t, command, must(t, append(strings.Fields(args), "-o", "json")...))
	}
	jobs := decode[[]job](t, must(t, "job", "list", "--item", "web01", "-o", "json"))
	if len(jobs) == 0 {
		t.Fatal("no jobs")
	}
	fits(t, must(t, "job", "show", jobs[0].ID))
	documented(t, "job …", must(t, "job", "show", jobs[0].ID, "-o", "json"))
	documented(t, "version", must(t, "version", "-o", "json"))
	documented(t, "site key", must(t, "site", "key", "site-a", "--out", filepath.Join(t.TempDir(), "k"), "-o", "json"))
	must(t, "job", "watch", jobs[0].ID)
}

func TestJobs(t *testing.T) {
	f := fakeVault(t, dr.RoleOwner)
	must(t, "policy", "create", "gold")
	must(t, "mapping", "create", "--site", "site-a", "--to", "site-b", "--policy", "gold")
	must(t, "item", "enable", "web01", "--until-protected")
	f.FailNext("TestFailover", dr.CodeRecoveryAgentDown)
	r := cli(t, "item", "test-failover", "web01")
	entry, _ := dr.Lookup(dr.CodeRecoveryAgentDown)
	if r.code != console.ExitCode(entry.Kind) || !strings.Contains(r.err, "do:") {
		t.Errorf("a failed job: %+v", r)
	}
	type job struct {
		ID, State string
		Errors    []struct{ Code, Hint string }
	}
	jobs := decode[[]job](t, must(t, "job", "list", "--state", "Failed", "-o", "json"))
	if len(jobs) != 1 || len(jobs[0].Errors) == 0 || jobs[0].Errors[0].Code != string(dr.CodeRecoveryAgentDown) {
		t.Fatalf("failed jobs %+v", jobs)
	}
	if r := cli(t, "job", "watch", jobs[0].ID); r.code != console.ExitCode(entry.Kind) {
		t.Errorf("watching a failed job: %+v", r)
	}
	if r := cli(t, "job", "show", jobs[0].ID); r.code != 0 || !strings.Contains(r.out, "error") {
		t.Errorf("showing a failed job: %+v", r)
	}
	if r := cli(t, "job", "show", "no-such-job"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("an unknown job: %+v", r)
	}
	started := decode[job](t, must(t, "item", "resync", "web01", "--no-wait", "-o", "json"))
	if started.ID == "" || started.State != "InProgress" {
		t.Errorf("--no-wait printed %+v", started)
	}
	must(t, "job", "watch", started.ID)
}

func TestRolesAndCredentials(t *testing.T) {
	fakeVault(t, dr.RoleReader)
	must(t, "site", "list")
	r := cli(t, "-o", "json", "site", "create", "x")
	if r.code != console.ExitCode(dr.KindForbidden) || r.out != "" {
		t.Errorf("a Reader created a site: %+v", r)
	}
	e := decode[struct {
		Error struct {
			Kind, Message string
			ExitCode      int
		}
	}](t, r.err[strings.LastIndex(strings.TrimSpace(r.err), "\n")+1:])
	if e.Error.Kind != "forbidden" || e.Error.ExitCode != r.code || e.Error.Message == "" {
		t.Errorf("JSON error %+v", e)
	}
	t.Setenv("HOLDFAST_ENDPOINT", "")
	if r := cli(t, "site", "list"); r.code != console.ExitCode(dr.KindUnauthenticated) || !strings.Contains(r.err, "holdfast login") {
		t.Errorf("not logged in: %+v", r)
	}
}

func TestLogin(t *testing.T) {
	fakeVault(t, dr.RoleOwner)
	file := os.Getenv("HOLDFAST_ENDPOINT")
	must(t, "login", "--endpoint", file)
	t.Setenv("HOLDFAST_ENDPOINT", "")
	must(t, "site", "list") // by what login remembered
	t.Setenv("HOLDFAST_ENDPOINT", filepath.Join(t.TempDir(), "none"))
	if r := cli(t, "site", "list"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("the environment does not win: %+v", r)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(filepath.Dir(file), "bad.json")
	if err := os.WriteFile(bad, bytes.Replace(raw, []byte(armapitest.Secret), []byte("hfs_wrong-and-private"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	r := cli(t, "login", "--endpoint", bad)
	if r.code != console.ExitCode(dr.KindUnauthenticated) || strings.Contains(r.out+r.err, "wrong-and-private") {
		t.Errorf("a wrong secret: %+v", r)
	}
	if !strings.Contains(r.err, "chmod 600") {
		t.Errorf("no warning about a readable secret: %s", r.err)
	}
}

func TestCompletion(t *testing.T) {
	fakeVault(t, dr.RoleOwner)
	out := must(t, cobra.ShellCompNoDescRequestCmd, "site", "delete", "SITE")
	if !slices.Contains(strings.Split(out, "\n"), "site-b") {
		t.Errorf("completion offers %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if must(t, "completion", shell) == "" {
			t.Errorf("no completion for %s", shell)
		}
	}
}

// TestDocs keeps docs/cli.md true where it can be checked.
func TestDocs(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	topic := strings.Fields(console.ExitCodesTopic().Long)
	for _, k := range dr.Kinds() {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| %d \| %s \| (.+) \|$`, console.ExitCode(k), k)).FindStringSubmatch(doc)
		if row == nil {
			t.Errorf("the table of exit codes lacks %s", k)
		} else if !strings.Contains(strings.Join(topic, " "), row[1]) {
			t.Errorf("the help says something else about %s than %q", k, row[1])
		}
	}
	walk(newRoot(&console.Console{Now: time.Now}), func(c *cobra.Command) {
		if c.HasSubCommands() || c.Hidden || c.Name() == "exit-codes" {
			return
		}
		if path := strings.TrimPrefix(c.CommandPath(), "holdfast "); !strings.Contains(doc, path) {
			t.Errorf("docs/cli.md does not mention %q", path)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" && !strings.Contains(doc, "--"+f.Name) {
				t.Errorf("docs/cli.md does not mention --%s of %s", f.Name, c.CommandPath())
			}
		})
	})
}

// documented checks that every field of a command's JSON is in the promise.
func documented(t *testing.T, command, text string) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(raw), "## JSON fields")
	known := map[string]bool{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 2 && strings.Contains(cells[1], command) {
			for _, w := range strings.FieldsFunc(cells[2], func(r rune) bool { return r == ' ' || r == '`' || r == ':' || r == ';' || r == ',' }) {
				known[w] = true
			}
		}
	}
	var free func(v any)
	free = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				free(x)
			}
		case map[string]any:
			for k, x := range v {
				if !known[k] {
					t.Errorf("%s prints the field %q, which docs/cli.md does not promise", command, k)
				}
				if k != "outcome" && k != "lastTestReport" { // have keys of their own
					free(x)
				}
			}
		}
	}
	free(decode[any](t, text))
}
