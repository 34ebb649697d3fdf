package winservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/winetest"
)

// TestUnderWine installs, starts, stops and removes a service, and has one fail.
func TestUnderWine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 seconds")
	}
	t.Parallel()
	p := winetest.New(t)
	p.Stay(t)
	exe := p.Build(t, "./testdata/service", "service.exe")
	run := func(want string, verbs ...string) {
		t.Helper()
		if out := strings.TrimSpace(strings.ReplaceAll(p.Exec(t, exe, verbs...), "\r", "")); out != want {
			t.Errorf("%s said %q, want %q", verbs, out, want)
		}
	}
	log := func() string {
		b, err := os.ReadFile(filepath.Join(p.Drive(), "service.txt"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	run(`status absent pid=false exit=0
status stopped pid=false exit=1077
status stopped pid=false exit=1077
status running pid=true exit=0
status running pid=true exit=0
status stopped pid=false exit=0
status stopped pid=false exit=1066
status absent pid=false exit=0
proxy ""
proxy "http://b:8080"`, // 1077 = never started
		"remove", "status", "install", "status", "install", "status", "start", "status", "start", "status", "stop", "stop", "status",
		// Installing again changes the arguments; a service that fails says so to Windows (1066 = its own code). All
		// in one session: a new one of Wine starts the service at the same time as the verbs.
		"install-failing", "try-start", "wait-failed", "status", "remove", "status", "remove",
		"proxy", "policy-proxy", "proxy")
	if got, want := log(), "began [\"install\" \"two words\"]\nended\nreturned <nil>\nbegan [\"install-failing\" \"two words\"]\nreturned wanted\n"; got != want {
		t.Errorf("the service wrote %q, want %q", got, want)
	}
	if out, err := p.Start(t, exe, "start"); err == nil || !strings.Contains(out, "there is no service") {
		t.Errorf("start without service: %q, %v", out, err)
	}
}

// TestOnlyOnWindows: cmd can import the package everywhere.
func TestOnlyOnWindows(t *testing.T) {
	t.Parallel()
	_, _, logErr := EventLog("x", nil)
	_, proxyErr := MachineProxy()
	_, queryErr := Query(t.Context(), "x")
	for _, err := range []error{Install(t.Context(), Config{}), Remove(t.Context(), "x"), Start(t.Context(), "x"), Stop(t.Context(), "x"),
		Run(RunConfig{}, nil), logErr, proxyErr, queryErr} {
		if dr.KindOf(err) != dr.KindUnsupported {
			t.Errorf("%v", err)
		}
	}
	if IsService() {
		t.Error("this is a service")
	}
}
