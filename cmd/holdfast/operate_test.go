package main

import (
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
)

// protectedVMs protects both VMs of the in-memory vault.
func protectedVMs(t *testing.T) {
	t.Helper()
	fakeVault(t, dr.RoleOwner)
	must(t, "policy", "create", "gold", "--every", "30s", "--keep", "2h")
	must(t, "mapping", "create", "--site", "site-a", "--to", "site-b", "--policy", "gold")
	must(t, "item", "enable", "web01", "--until-protected")
	must(t, "item", "enable", "db01", "--until-protected")
}

type shownItem struct {
	Paused      bool
	PauseReason string
	ResumeAt    *time.Time
	NewestPoint string
	Disks       []struct {
		DiskID     string
		Replicated bool
	}
	Upkeep *struct{ Objects int }
}

// TestSteering drives everything that the CLI does with a running replication.
func TestSteering(t *testing.T) {
	protectedVMs(t)
	show := func() shownItem {
		text := must(t, "item", "show", "web01", "-o", "json")
		return decode[shownItem](t, text)
	}
	got := cli(t, "item", "pause", "web01", "--reason", "the cable is being moved", "--until", "2h")
	if s := show(); got.code != 0 || !s.Paused || s.PauseReason != "the cable is being moved" || s.ResumeAt == nil || time.Until(*s.ResumeAt) < 110*time.Minute {
		t.Errorf("paused: %+v %+v", got, s)
	}
	fits(t, must(t, "item", "show", "web01"))
	if r := cli(t, "item", "pause", "web01"); r.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("without a reason: %+v", r)
	}
	if r := cli(t, "item", "pause", "web01", "--reason", "x", "--until", "someday"); r.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("until someday: %+v", r)
	}
	must(t, "item", "resume", "web01")
	if show().Paused {
		t.Error("still paused")
	}
	must(t, "item", "retry", "web01")
	must(t, "item", "resync", "web01", "--full")
	must(t, "item", "acknowledge", "web01")
	must(t, "item", "scrub", "web01")
	if s := show(); s.Upkeep == nil || s.Upkeep.Objects == 0 || len(s.Disks) != 2 {
		t.Errorf("%+v", s)
	}
	plan := must(t, "item", "maintain", "web01", "--plan", "-o", "json")
	documented(t, "item maintain", plan)
	fits(t, must(t, "item", "maintain", "web01", "--plan"))
	must(t, "item", "maintain", "web01")

	disks := decode[[]struct {
		DiskID     string
		Replicated bool
	}](t, must(t, "item", "disks", "web01", "-o", "json"))
	if len(disks) != 2 {
		t.Fatalf("disks %+v", disks)
	}
	must(t, "item", "disks", "web01", "--add", disks[0].DiskID, "--add", disks[1].DiskID)
	text := must(t, "item", "disks", "web01", "--remove", disks[1].DiskID, "-o", "json")
	documented(t, "item disks", text)
	if !strings.Contains(text, `"replicated": false`) {
		t.Errorf("after --remove: %s", text)
	}
	if text := must(t, "item", "disks", "web01", "--add", disks[1].DiskID, "-o", "json"); strings.Contains(text, `"replicated": false`) {
		t.Errorf("after --add: %s", text)
	}
	fits(t, must(t, "item", "disks", "web01"))
	documented(t, "item events", must(t, "item", "events", "web01", "-o", "json"))
	fits(t, must(t, "item", "events", "web01"))

	point := show().NewestPoint
	named := must(t, "point", "name", "web01", "latest", "--name", "before the upgrade", "--hold", "-o", "json")
	documented(t, "point name", named)
	if !strings.Contains(named, point) || !strings.Contains(named, `"held": true`) {
		t.Errorf("named: %s", named)
	}
	list := must(t, "point", "list", "web01")
	if !strings.Contains(strings.Join(strings.Fields(list), " "), `"before the upgrade", held`) {
		t.Errorf("the list does not show the name: %s", list)
	}
	fits(t, list)
	documented(t, "point list", must(t, "point", "list", "web01", "-o", "json"))
	if r := cli(t, "point", "name", "web01", point); r.code != console.ExitCode(dr.KindInvalid) {
		t.Errorf("nothing to do: %+v", r)
	}
	if r := cli(t, "point", "name", "web01", "g00000009-c0000000000000009", "--hold"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("an unknown point: %+v", r)
	}
}

func TestPolicySettings(t *testing.T) {
	protectedVMs(t)
	type policy struct {
		Name                                               string
		CopyFrequencySeconds, RetentionSeconds             int64
		HourlySeconds, DailySeconds                        int64
		ResyncMode, ResyncWindow, InitialMode, Compression string
		ResyncThreshold                                    float64
		InitialPriority                                    int
		Bandwidth                                          []struct {
			Window         string
			BytesPerSecond int64
		}
	}
	get := func(name string) policy {
		text := must(t, "policy", "list", "-o", "json")
		documented(t, "policy list", text)
		for _, p := range decode[[]policy](t, text) {
			if p.Name == name {
				return p
			}
		}
		t.Fatalf("there is no policy %s", name)
		return policy{}
	}
	must(t, "policy", "create", "silver", "--keep", "1d", "--hourly", "72h", "--daily", "30d", "--resync-mode", "manual", "--resync-threshold", "40%", "--serial", "--priority", "3",
		"--bandwidth", "Mon-Fri 08:00-12:00, Mon-Fri 13:00-18:00=5M,20M", "--compression", "fast", "--resync-window", "Sat-Sun 00:00-24:00")
	p := get("silver")
	if p.RetentionSeconds != 86400 || p.HourlySeconds != 72*3600 || p.DailySeconds != 30*86400 || p.ResyncMode != "manual" || p.ResyncThreshold != 0.4 || p.InitialMode != "serial" ||
		p.InitialPriority != 3 || p.Compression != "fast" || len(p.Bandwidth) != 2 || p.Bandwidth[0].BytesPerSecond != 5<<20 || !strings.Contains(p.Bandwidth[0].Window, "13:00") ||
		p.Bandwidth[1].Window != "" || p.Bandwidth[1].BytesPerSecond != 20<<20 {
		t.Errorf("%+v", p)
	}
	// An update changes what is given and nothing else.
	must(t, "policy", "update", "silver", "--daily", "60d", "--bandwidth", "none", "--serial=false", "--resync-threshold", "off")
	q := get("silver")
	if q.DailySeconds != 60*86400 || len(q.Bandwidth) != 0 || q.InitialMode != "parallel" || q.ResyncThreshold != -1 || q.RetentionSeconds != p.RetentionSeconds || q.HourlySeconds != p.HourlySeconds ||
		q.CopyFrequencySeconds != p.CopyFrequencySeconds || q.ResyncMode != p.ResyncMode || q.ResyncWindow != p.ResyncWindow || q.Compression != p.Compression || q.InitialPriority != p.InitialPriority {
		t.Errorf("after the update %+v, before %+v", q, p)
	}
	fits(t, must(t, "policy", "list"))
	for _, args := range []string{"create x --hourly 1h", "create x --daily 2d --hourly 3d", "create x --resync-mode sometimes", "create x --resync-window never", "create x --priority 99",
		"create x --bandwidth fast", "create x --bandwidth 08:00-09:00", "create x --bandwidth 1K", "create x --compression lz4", "create x --resync-threshold 0", "create x --keep tomorrow",
		"create x --initial-start tonight", "update silver --resync-window 25:00-26:00"} {
		if r := cli(t, append([]string{"policy"}, strings.Fields(args)...)...); r.code != console.ExitCode(dr.KindInvalid) {
			t.Errorf("policy %s: %+v", args, r)
		}
	}
	if r := cli(t, "policy", "update", "platinum", "--keep", "1h"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("an unknown policy: %+v", r)
	}
}

func TestGroups(t *testing.T) {
	protectedVMs(t)
	text := must(t, "group", "create", "shop", "web01", "db01", "-o", "json")
	documented(t, "group create", text)
	type group struct {
		Name    string
		Members []string
	}
	if g := decode[group](t, text); g.Name != "shop" || strings.Join(g.Members, ",") != "web01,db01" {
		t.Errorf("%s", text)
	}
	if r := cli(t, "group", "create", "Shop", "web01"); r.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("a second group of the name: %+v", r)
	}
	if r := cli(t, "group", "create", "x", "nobody"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("an unknown member: %+v", r)
	}
	documented(t, "group points", must(t, "group", "points", "shop", "-o", "json"))
	fits(t, must(t, "group", "points", "shop"))
	must(t, "group", "members", "SHOP", "db01")
	if gs := decode[[]group](t, must(t, "group", "list", "-o", "json")); len(gs) != 1 || strings.Join(gs[0].Members, ",") != "db01" {
		t.Errorf("%+v", gs)
	}
	fits(t, must(t, "group", "list"))
	must(t, "group", "delete", "shop")
	if r := cli(t, "group", "delete", "shop"); r.code != console.ExitCode(dr.KindNotFound) {
		t.Errorf("deleted twice: %+v", r)
	}
}

// The catalogue needs no vault.
func TestErrorsOffline(t *testing.T) {
	t.Setenv("HOLDFAST_ENDPOINT", "/nowhere")
	documented(t, "errors", must(t, "errors", "-o", "json"))
	fits(t, must(t, "errors"))
	for _, e := range dr.Catalogue() {
		text := must(t, "errors", strings.ToLower(string(e.Code)))
		if !strings.Contains(text, string(e.Code)) || !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(e.Remedy), " ")) {
			t.Errorf("%s", text)
		}
		fits(t, text)
	}
	if r := cli(t, "errors", "encrypted"); r.code != console.ExitCode(dr.KindNotFound) || !strings.Contains(r.err, string(dr.CodeAnomaly)) {
		t.Errorf("a word: %+v", r)
	}
}
