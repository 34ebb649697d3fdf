package portal

import (
	"html"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// TestReplicationPages: what an operator has to know at night is on the page, in words.
func TestReplicationPages(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed()).replicating()).as("admin")
	const db, mail = "/portal/items/77f0c3de-item-1", "/portal/items/77f0c3de-item-2"
	for path, want := range map[string][]string{
		db: {"Waits for its window", "the host crashed while the VM was running", "when its window opens", "Resynchronize now", "Catching up", "412 MiB", "47 s", "1.7 MiB/s", "9 MiB/s", "month's end", "held",
			"New: replicate or exclude it", "71 GiB", "38 objects", "3 points", "107 sent", "2 missed", "replication of db01 goes on", "All events", "Open the group", "One a day"},
		mail:                            {"mail01 looks encrypted since", "11.2 GiB in 6 cycles", "Test the last good point", "It is meant to be so", "looks encrypted", "Damage found", "does not verify", "How it shows", "What to do"},
		db + "/events":                  {"storage maintenance", "olaf"},
		"/portal/store":                 {"83 GiB", "1 replica with damage", "1 damaged point", "Whole"},
		"/portal/groups":                {"web shop", "db01", "kvm-berlin-01"},
		"/portal/groups/c0ffee00-group": {"29 complete points", "mail01 has no point of this instant"},
		"/portal/policies/gold-5min":    {"One an hour until", "always = 50M", "Wait for an operator", "Not before"},
		db + "?ask=point&point=" + r.f.points["77f0c3de-item-1"][300].Name(): {`value="before the upgrade to 16"`},
	} {
		resp := r.do("GET", path, nil)
		body := html.UnescapeString(r.text(resp))
		if resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s does not say %q", path, w)
			}
		}
	}
	r.f.items[0].Paused, r.f.detailOf("77f0c3de-item-1").PauseReason, r.f.detailOf("77f0c3de-item-1").ResumeAt = true, evil, r.f.now().Add(time.Hour)
	body := r.text(r.do("GET", db, nil))
	if !strings.Contains(body, "Replication is paused") || !strings.Contains(body, "It goes on by itself") || strings.Contains(body, evil) || strings.Contains(body, "Retry now") {
		t.Error("the pause is not shown as it is")
	}
	// A reader sees all of it and is offered none of it.
	reader := newRig(t, busyDay(fixed()).replicating()).as("rita")
	for _, path := range []string{db, mail} {
		body := reader.text(reader.do("GET", path, nil))
		for _, no := range []string{"dlg-point", "dlg-maintain", "dlg-disks", "/acknowledge", "Resynchronize now"} {
			if strings.Contains(body, no) {
				t.Errorf("a reader is offered %s", no)
			}
		}
	}
}

func TestResyncCard(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		what  string
		it    dr.ProtectedItem
		phase string
		mode  dr.ResyncMode
		next  time.Time
		want  string
	}{
		{"none", dr.ProtectedItem{}, "delta", "", time.Time{}, ""},
		{"runs", dr.ProtectedItem{Resync: "x"}, "resync", "", time.Time{}, "Running"},
		{"window", dr.ProtectedItem{Resync: "x"}, "delta", "", at, "Waits for its window"},
		{"manual", dr.ProtectedItem{Resync: "x"}, "delta", dr.ResyncManual, time.Time{}, "Waits for you"},
		{"paused", dr.ProtectedItem{Resync: "x", Paused: true}, "paused", "", at, "Waits until replication is resumed"},
		{"now", dr.ProtectedItem{Resync: "x"}, "delta", dr.ResyncNow, time.Time{}, "Begins with the next cycle"},
	} {
		got := ""
		if card := resyncOf(itemRow{ProtectedItem: c.it, Status: dr.ReplicationStatus{Phase: c.phase}}, dr.Policy{ResyncAuto: c.mode}, vault.Detail{NextResync: c.next}); card != nil {
			got = card.State.Text
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}
