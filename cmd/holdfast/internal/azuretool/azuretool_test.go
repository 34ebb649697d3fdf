package azuretool

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/arm/armtest"
	"holdfast/internal/hypervisor/azure/arm/doctor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run executes 'holdfast azure …' for a world, and returns what is printed.
func run(t *testing.T, w *armtest.World, asJSON bool, args ...string) (out, errOut string, err error) {
	t.Helper()
	text, err := json.Marshal(w.Site)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	c := &console.Console{In: strings.NewReader(""), Out: &o, Err: &e, Now: time.Now, Width: console.MinWidth, JSON: asJSON}
	cmd := command(&app{Console: c, options: w.Options})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append(args, "--config", path))
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	err = cmd.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	w.Container(t)
	out, _, err := run(t, w, true, "doctor")
	var list []doctor.Finding
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) < 15 {
		t.Fatalf("%v\n%s", err, out)
	}
	out, _, err = run(t, w, false, "doctor", "--read-only")
	if err != nil || !strings.Contains(out, "would make a disk") {
		t.Errorf("%v\n%s", err, out)
	}
	w.Site.Size = "Standard_Z99"
	out, _, err = run(t, w, false, "doctor", "--read-only")
	if dr.KindOf(err) != dr.KindPrecondition || !strings.Contains(out, "Standard_Z99") || !strings.Contains(out, "failed") {
		t.Errorf("%v\n%s", err, out)
	}
	w.Site.Size, w.Site.Zone = "", "9" // refused by Load
	out, _, err = run(t, w, false, "doctor")
	if dr.KindOf(err) != dr.KindPrecondition || !strings.Contains(out, "zone") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	out, _, err := run(t, w, true, "sizes", "--cpus", "4", "--memory", "10GiB", "--generation", "2")
	var rows []row
	if err != nil || json.Unmarshal([]byte(out), &rows) != nil || len(rows) == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	chosen := 0
	for _, r := range rows {
		if !r.Fits || r.VCPUs < 4 || r.MemoryMB < 10<<10 {
			t.Errorf("%+v does not fit", r)
		}
		if r.Chosen {
			chosen++
		}
	}
	if chosen != 1 {
		t.Errorf("%d are chosen", chosen)
	}
	out, _, err = run(t, w, false, "sizes", "--cpus", "1000", "--all")
	if dr.CodeOf(err) != dr.CodeAzureSize || !strings.Contains(out, "too few vCPUs") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, args := range [][]string{{"sizes", "--generation", "3"}, {"sizes", "--cpus", "-1"}} {
		if _, _, err := run(t, w, false, args...); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	w.Container(t)
	s := w.Open(t)
	make := func(name, owner, purpose string, until time.Time) {
		tags := map[string]string{arm.TagOwner: owner, arm.TagPurpose: purpose}
		if !until.IsZero() {
			tags[arm.TagUntil] = until.UTC().Format(time.RFC3339)
		}
		body := map[string]any{"location": azsim.DefaultLocation, "tags": tags, "properties": map[string]any{"securityRules": []any{}}}
		if err := s.PutResource(t.Context(), w.Site.ID(arm.TypeSecurityGroup, name), arm.NetworkAPI, body, nil); err != nil {
			t.Fatal(err)
		}
	}
	here := func() (names string) {
		for _, r := range w.Resources() {
			if r.Type == arm.TypeSecurityGroup {
				names += r.Name + " "
			}
		}
		return names
	}
	out, said, err := run(t, w, false, "cleanup")
	if err != nil || !strings.Contains(out+said, "Nothing is left") {
		t.Fatalf("%v\n%s", err, out)
	}
	make("a-over", "doctor-1", arm.PurposeDoctor, time.Now().Add(-time.Hour))
	make("b-test", "site-1", arm.PurposeTest, time.Time{})
	make("c-real", "site-1", arm.PurposeRecovery, time.Now().Add(-time.Hour))
	out, _, err = run(t, w, false, "cleanup")
	if err != nil || !strings.Contains(out, "a-over") || strings.Contains(out, "c-real") || here() != "a-over b-test c-real " {
		t.Fatalf("%v\n%s\n%s", err, out, here())
	}
	out, _, err = run(t, w, true, "cleanup", "--yes")
	var rows []left
	if err != nil || json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 2 || rows[0].Result != removed || rows[1].Result != inUse || here() != "b-test c-real " {
		t.Fatalf("%v\n%s\n%s", err, out, here())
	}
	w.AddLock("/subscriptions/" + w.Site.Subscription + "/resourceGroups/dr")
	out, _, err = run(t, w, false, "cleanup", "--yes", "--owner", "site-1")
	if dr.CodeOf(err) != dr.CodeAzureLocked || !strings.Contains(out, "lock") || here() != "b-test c-real " {
		t.Fatalf("%v\n%s\n%s", err, out, here())
	}
	w.RemoveLock("/subscriptions/" + w.Site.Subscription + "/resourceGroups/dr")
	if out, _, err = run(t, w, false, "cleanup", "--yes", "--owner", "site-1"); err != nil || here() != "c-real " {
		t.Fatalf("%v\n%s\n%s", err, out, here())
	}
}

func TestNoConfig(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"doctor", "sizes", "cleanup"} {
		c := &console.Console{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Now: time.Now, Width: console.MinWidth}
		cmd := Command(c)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs([]string{verb})
		if err := cmd.ExecuteContext(t.Context()); dr.KindOf(err) != dr.KindInvalid || !strings.Contains(err.Error(), "--config") {
			t.Errorf("%s: %v", verb, err)
		}
	}
}
