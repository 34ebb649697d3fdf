package guesttest_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/internal/guesttest"
	"holdfast/internal/ledger/sessionvirt"
)

func TestMain(m *testing.M) { guesttest.Main(m) }

func TestRunsUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Fatal("still root")
	}
	if groups, err := os.Getgroups(); err != nil || len(groups) > 1 {
		t.Fatalf("groups %v, %v: want none of root's", groups, err)
	}
}

// A power cut must lose nothing that was acknowledged, and the next boot goes on.
func TestGuestSurvivesPowerCut(t *testing.T) {
	for _, c := range []struct {
		name string
		uefi bool
	}{{"bios", false}, {"uefi", true}} {
		t.Run(c.name, func(t *testing.T) {
			if c.uefi && testing.Short() {
				t.Skip("slow: second firmware")
			}
			start := time.Now()
			lap := func(what string) { t.Logf("%6.2fs %s", time.Since(start).Seconds(), what) }
			inst := guesttest.StartInstance(t)
			lap("libvirt session up")
			g := guesttest.StartGuest(t, inst, "g1", sessionvirt.GuestConfig{UEFI: c.uefi, Words: []string{"rate=40"}})
			lap("ledger running")
			g.WaitAck(60)
			g.Fill(500)
			lap("acks and fill")
			acked := g.WaitMore(20)
			g.Kill()
			lap("killed")
			v := g.Verify()
			lap("verified: " + v.String())
			if err := v.Covers(acked); err != nil {
				t.Fatal(err)
			}
			if !v.JournalReplayed {
				t.Error("file systems look cleanly unmounted after a power cut")
			}
			g.Start()
			r := g.Report()
			lap("booted again")
			if r.Boots != 2 || r.FoundA < acked || r.FoundB < acked {
				t.Fatalf("second boot found %+v, want everything up to %d", r, acked)
			}
			g.WaitAck(r.FoundA + 20)
			g.Shutdown()
			lap("shut down")
			v = g.Verify()
			if !v.OK() || v.JournalReplayed || v.Boot != 2 {
				t.Fatalf("after a clean shutdown: %s", v)
			}
		})
	}
}

func TestRequestsAndAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots guests")
	}
	inst := guesttest.StartInstance(t)
	g := guesttest.StartGuest(t, inst, "g1", sessionvirt.GuestConfig{Network: "user", Words: []string{"churn=20", "fill=64", "net=dhcp"}})
	if s := g.Request("status"); !strings.Contains(s, "rate=20 churn=20") {
		t.Errorf("status %q, want the words of the kernel command line", s)
	}
	g.Request("rate 100")
	g.WaitMore(100)
	if out := g.Exec("/ledger", "ctl", "fill", "10"); !strings.HasPrefix(out, "FILL-DONE blocks=10 ") {
		t.Errorf("fill by guest agent: %q", out)
	}
	if _, err := g.Guest.Exec(t.Context(), "/bin/false"); err == nil {
		t.Error("a failing program is not an error")
	}
	if _, err := g.Guest.Request(t.Context(), "nonsense 1"); err == nil {
		t.Error("an unknown request is not an error")
	}
	out := g.Exec("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do ip addr show eth0 | grep 'inet ' && break; sleep 1; done")
	if !strings.Contains(out, "10.0.2.15") {
		t.Errorf("network: %q", out)
	}
	if _, err := inst.Virsh(t.Context(), "domfsfreeze", "g1"); err != nil {
		t.Error(err)
	}
	if _, err := inst.Virsh(t.Context(), "domfsthaw", "g1"); err != nil {
		t.Error(err)
	}
	g.WaitMore(20)
	if r := g.Report(); r.Fills < 2 || r.Freezes != 1 {
		t.Errorf("console tells %+v, want 2 fills and 1 freeze", r)
	}
}

// Two instances with guests of one name do not see each other.
func TestTwoSites(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots guests")
	}
	a, b := guesttest.StartInstance(t), guesttest.StartInstance(t)
	ga := guesttest.StartGuest(t, a, "g1", sessionvirt.GuestConfig{})
	gb := guesttest.StartGuest(t, b, "g1", sessionvirt.GuestConfig{})
	ga.Kill()
	gb.WaitMore(20)
	if list, err := b.Virsh(t.Context(), "list", "--name"); err != nil || strings.TrimSpace(list) != "g1" {
		t.Fatalf("site b runs %q (%v), want g1", list, err)
	}
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.Dir); !os.IsNotExist(err) {
		t.Errorf("directory of a stopped instance: %v", err)
	}
	gb.WaitMore(20)
}

// The kernel word "verify" makes a boot that reports and changes nothing.
func TestVerifyBootPowersOff(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots guests")
	}
	g := guesttest.StartGuest(t, guesttest.StartInstance(t), "g1", sessionvirt.GuestConfig{Words: []string{"verify"}})
	if err := g.WaitOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := g.Report(); r.Stopped != "verified" || r.Acked != 0 {
		t.Errorf("console tells %+v", r)
	}
	if v := g.Verify(); !v.OK() || v.LastA != 0 || v.JournalReplayed {
		t.Errorf("disks afterwards: %s", v)
	}
}
