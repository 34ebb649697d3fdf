package vmm_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"holdfast/internal/dr"
	"holdfast/internal/vmm"
)

// fakeMode makes this test program play powershell.exe.
const fakeMode = "HOLDFAST_FAKE_POWERSHELL"

func TestMain(m *testing.M) {
	if mode := os.Getenv(fakeMode); mode != "" {
		os.Exit(fake(mode))
	}
	os.Exit(m.Run())
}

// decodeScript is what Windows PowerShell makes of -EncodedCommand.
func decodeScript(arg string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(arg)
	if err != nil || len(b)%2 != 0 {
		return "", errors.Join(err, errors.New("no UTF-16 in base64"))
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u)), nil
}

func fake(mode string) int {
	args := os.Args[1:]
	if len(args) != 6 || !slices.Equal(args[:5], []string{"-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-EncodedCommand"}) {
		fmt.Fprintf(os.Stderr, "wrong arguments: %q", args)
		return 64
	}
	s, err := decodeScript(args[5])
	if err != nil || !strings.Contains(s, "Get-SCVMMServer") {
		fmt.Fprintf(os.Stderr, "wrong script: %v", err)
		return 65
	}
	if got := os.Getenv("HOLDFAST_VMM_SERVER"); got != "vmm01.corp.example" {
		fmt.Fprintf(os.Stderr, "wrong server %q", got)
		return 66
	}
	say := func(name string) {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			fmt.Fprint(os.Stderr, err)
			os.Exit(67)
		}
		os.Stdout.Write(b)
	}
	switch mode {
	case "good":
		fmt.Println("WARNING: The names of some imported commands include unapproved verbs.")
		say("all.json")
	case "module":
		say("no-module.json")
		return 3
	case "crash":
		fmt.Fprintln(os.Stderr, "#< CLIXML out of memory")
		return 1
	case "good but failed":
		say("all.json")
		return 1
	case "flood":
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("x", 4096)); err != nil {
				return 1
			}
		}
	case "hang":
		time.Sleep(time.Minute)
	}
	return 0
}

func newPowerShell(t *testing.T, mode string, change func(*vmm.PowerShellConfig)) *vmm.PowerShell {
	t.Helper()
	t.Setenv(fakeMode, mode)
	cfg := vmm.PowerShellConfig{Program: os.Args[0], Server: "vmm01.corp.example", Timeout: 30 * time.Second}
	if change != nil {
		change(&cfg)
	}
	p, err := vmm.NewPowerShell(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPowerShell(t *testing.T) {
	got, err := newPowerShell(t, "good", nil).Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := full(); !reflect.DeepEqual(got, want) {
		t.Errorf("snapshot %+v", got)
	}
}

func TestPowerShellFails(t *testing.T) {
	for mode, c := range map[string]struct {
		change func(*vmm.PowerShellConfig)
		kind   dr.Kind
		code   dr.Code
		says   string
	}{
		"module":          {nil, dr.KindPrecondition, dr.CodeVMMModuleMissing, "no valid module file"},
		"crash":           {nil, dr.KindUnavailable, dr.CodeVMMUnreachable, "out of memory"},
		"good but failed": {nil, dr.KindUnavailable, dr.CodeVMMUnreachable, "exit status 1"},
		"flood":           {func(c *vmm.PowerShellConfig) { c.Limit = 1 << 20 }, dr.KindCorrupt, dr.CodeVMMOutput, "1048576"},
		"hang":            {func(c *vmm.PowerShellConfig) { c.Timeout = 200 * time.Millisecond }, dr.KindUnavailable, dr.CodeVMMUnreachable, "200ms"},
		"missing":         {func(c *vmm.PowerShellConfig) { c.Program = "/nonexistent/powershell.exe" }, dr.KindPrecondition, dr.CodeVMMModuleMissing, "/nonexistent"},
		"good":            {func(c *vmm.PowerShellConfig) { c.Server = "other" }, dr.KindUnavailable, dr.CodeVMMUnreachable, "wrong server"},
	} {
		t.Run(mode, func(t *testing.T) {
			began := time.Now()
			_, err := newPowerShell(t, mode, c.change).Snapshot(t.Context())
			if dr.KindOf(err) != c.kind || dr.CodeOf(err) != c.code || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (kind %v, code %s)", err, dr.KindOf(err), dr.CodeOf(err))
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newPowerShell(t, "good", nil).Snapshot(ctx); dr.KindOf(err) != dr.KindCanceled {
		t.Errorf("a cancelled call: %v", err)
	}
}

func TestPowerShellConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []vmm.PowerShellConfig{{Server: "a'; Remove-Item x"}, {Server: "-x"}, {Server: "a b"}, {Timeout: -1}, {Limit: -1}} {
		if _, err := vmm.NewPowerShell(c); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := vmm.NewPowerShell(vmm.PowerShellConfig{}); err != nil {
		t.Error(err)
	}
}

// TestScriptOnlyReads holds the script to its promise: it calls nothing of VMM but
// what lists, and nothing of PowerShell but what works on values. The script can't
// be parsed here by PowerShell itself.
func TestScriptOnlyReads(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("collect.ps1")
	if err != nil {
		t.Fatal(err)
	}
	script := string(b)
	allowed := map[string]bool{"Import-Module": true, "New-Object": true, "Where-Object": true, "ForEach-Object": true, "Select-Object": true,
		"ConvertTo-Json": true, "Out-Null": true, "Get-Date": true}
	reads := regexp.MustCompile(`^Get-SC[A-Za-z]+$`)
	verbs := regexp.MustCompile(`(?m)(?:^|[\s({|;&=])([A-Za-z]+-[A-Za-z]+)\b`)
	n := 0
	for line := range strings.Lines(script) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, m := range verbs.FindAllStringSubmatch(line, -1) {
			switch {
			case reads.MatchString(m[1]):
				n++
			case !allowed[m[1]]:
				t.Errorf("the script calls %s: %s", m[1], line)
			}
		}
		// Other ways to run or change something.
		for _, bad := range []string{"Invoke", "iex", ".Delete", ".Save", "Start-Process", "[ScriptBlock]", "DownloadString", "Add-Type", "<#", "#>", "`", "@'", "@\""} {
			if strings.Contains(line, bad) {
				t.Errorf("the script has %q: %s", bad, line)
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands that list were found: the check looks at the wrong thing", n)
	}
	for i, c := range script {
		if c > 0x7e || c < ' ' && c != '\n' {
			t.Errorf("byte %d of the script is %q", i, c)
		}
	}
	// Brackets balance outside of texts and comments.
	var open []rune
	pair := map[rune]rune{')': '(', ']': '[', '}': '{'}
	for line := range strings.Lines(script) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		quote := false
		for _, c := range line {
			switch {
			case c == '\'':
				quote = !quote
			case quote:
			case strings.ContainsRune("([{", c):
				open = append(open, c)
			case pair[c] != 0:
				if len(open) == 0 || open[len(open)-1] != pair[c] {
					t.Fatalf("a bracket %q is not open: %s", c, line)
				}
				open = open[:len(open)-1]
			case c == '"':
				t.Errorf("a text that is expanded: %s", line)
			}
		}
		if quote {
			t.Errorf("a text spans lines, which compacting would change: %s", line)
		}
	}
	if len(open) != 0 {
		t.Errorf("%d brackets are not closed", len(open))
	}
	for _, want := range []string{"version = 1", "'module'", "'connect'", "HOLDFAST_VMM_SERVER", "clouds =", "hosts =", "logicalNetworks =", "vmNetworks =", "storageClassifications =", "vms =", "warnings ="} {
		if !strings.Contains(script, want) {
			t.Errorf("the script lacks %s", want)
		}
	}
}

// TestCommandLine: Windows bounds a command line.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	args := vmm.Arguments()
	n := len("C:\\Windows\\System32\\WindowsPowerShell\\v1.0\\powershell.exe")
	for _, a := range args {
		n += len(a) + 3
	}
	if n > vmm.MaxCommandLine {
		t.Errorf("the command line has %d characters, Windows takes %d", n, vmm.MaxCommandLine)
	}
	s, err := decodeScript(args[len(args)-1])
	if err != nil || !strings.Contains(s, "\nexit 0\n") || strings.Contains(s, "# Holdfast") {
		t.Errorf("the script on the command line: %v\n%s", err, s)
	}
}
