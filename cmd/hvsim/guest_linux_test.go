package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/guestimage"
)

func call(t *testing.T, s *sim, path, method string, in ...any) {
	t.Helper()
	p, err := cim.ParsePath(path)
	must(t, err)
	p.Namespace = space
	_, _, err = cim.Call(t.Context(), s.session(0), p, method, cim.Pairs(in...), nil)
	must(t, err)
}

// guests counts the QEMU processes of a process group.
func guests(t *testing.T, group int) int {
	t.Helper()
	n := 0
	for _, stat := range glob(t, "/proc", "[0-9]*/stat") {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest) // state, parent, group
		name, _ := os.ReadFile(strings.TrimSuffix(stat, "stat") + "comm")
		var pgrp int
		if len(f) > 2 && json.Unmarshal([]byte(f[2]), &pgrp) == nil && pgrp == group && f[0] != "Z" && strings.HasPrefix(string(name), "qemu") {
			n++
		}
	}
	return n
}

// TestRunWithoutGuests: VMs of --vms have no guests, also with --run: they write as --write-every says, and have power.
func TestRunWithoutGuests(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), "--run", "--vms", "2", "--write-every", "20ms")
	got := s.drive("rct,power", "vm-0001")
	if got["changes"].(float64) < 1 || got["shutdown"] != 0.0 {
		t.Errorf("%v", got)
	}
	if n := guests(t, s.cmd.Process.Pid); n != 0 {
		t.Errorf("%d guests run", n)
	}
	if code := s.end(syscall.SIGTERM); code != 0 || s.err.String() != "" {
		t.Errorf("ended with %d: %s", code, s.err.String())
	}
	s = start(t, s.dir, "--run", "--vms", "2")
	if n := guests(t, s.cmd.Process.Pid); n != 0 {
		t.Errorf("%d guests run after a restart", n)
	}
}

func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest under emulation, four times")
	}
	t.Parallel()
	cache, err := guestimage.DefaultCacheDir()
	must(t, err)
	img, err := guestimage.Build(t.Context(), guestimage.Config{CacheDir: cache})
	must(t, err)
	tmp := t.TempDir()
	disks, err := guestimage.Instantiate(t.Context(), img, tmp, "ledger", guestimage.Raw)
	must(t, err)
	dir := filepath.Join(tmp, "hv")
	args := []string{"--run", "--vms", "1", "--vm", "name=ledger,gen=1,memory=160,os=Debian GNU/Linux,disk=" + disks.Boot + ",disk=" + disks.Data}
	serial := func() ledger.Console {
		for _, f := range glob(t, dir, "run/*/serial.log") {
			r, err := os.Open(f)
			must(t, err)
			c, err := ledger.ReadConsole(r)
			r.Close()
			must(t, err)
			return c
		}
		return ledger.Console{}
	}
	booted := func(s *sim, boots int) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			c := serial()
			if c.Boots >= boots && c.BootAcked > 0 {
				if boots > 1 && (!c.Order || !c.Chain) {
					t.Errorf("the ledger is damaged: %+v", c)
				}
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the guest does not come up: %+v %s", c, s.err.String())
			}
		}
	}
	s := start(t, dir, args...)
	booted(s, 1)
	got := s.drive("guest", "ledger")
	if got["shutdown"] != 0.0 || got["at once"] != "2" || len(got["states"].([]any)) != 2 || got["states"].([]any)[0] != true || got["states"].([]any)[1] != true {
		t.Errorf("%v", got)
	}
	if n := guests(t, s.cmd.Process.Pid); n != 0 {
		t.Errorf("%d guests run after the shutdown", n)
	}
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Fatal(s.err.String())
	}
	must(t, os.Remove(disks.Boot)) // it has its copy
	// Ctrl-C reaches the guests as well; they run again afterwards.
	s = start(t, dir, args...)
	booted(s, 2)
	must(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT))
	if code := s.code(); code != 0 || guests(t, s.cmd.Process.Pid) != 0 {
		t.Errorf("ended with %d and %d guests: %s", code, guests(t, s.cmd.Process.Pid), s.err.String())
	}
	for _, f := range glob(t, dir, "state/*.json") {
		var st struct{ Name, Power string }
		raw, err := os.ReadFile(f)
		must(t, err)
		must(t, json.Unmarshal(raw, &st))
		if st.Power != "running" {
			t.Errorf("after Ctrl-C VM %s is %s", st.Name, st.Power)
		}
	}
	s = start(t, dir, "--run", "--vms", "1") // without --vm: the state says that it runs
	booted(s, 3)
	group := s.cmd.Process.Pid
	if n := guests(t, group); n != 1 {
		t.Errorf("%d guests run", n)
	}
	s.kill()
	if n := guests(t, group); n != 0 {
		t.Errorf("kill -9 of the group left %d guests", n)
	}
	s = start(t, dir, args...)
	booted(s, 4)
	s.end(syscall.SIGKILL) // of the program alone
	for end := time.Now().Add(10 * time.Second); guests(t, s.cmd.Process.Pid) != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("kill -9 of the program left its guests")
		}
	}
}
