package libvirt_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt"
)

// victim is an adapter in a process of its own that is killed in the midst of a cut.
type victim struct {
	dir     string
	stage   string // where it kills itself; "open": when the cut is open
	after   time.Duration
	vms     []dr.VMID
	disks   string
	base    string
	offline bool
	quiesce bool
	group   bool
}

// run starts the process and waits until it has been killed.
func (v victim) run(t testing.TB, b *bench) {
	t.Helper()
	ids := make([]string, len(v.vms))
	for i, id := range v.vms {
		ids[i] = string(id)
	}
	flags := map[bool]string{true: "1"}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestVictim$", "-test.timeout=80s")
	cmd.Env = append(os.Environ(), "VICTIM_SOCKET="+b.inst.Socket, "VICTIM_DIR="+v.dir, "VICTIM_STAGE="+v.stage, "VICTIM_AFTER="+v.after.String(), "VICTIM_VMS="+strings.Join(ids, ","),
		"VICTIM_DISKS="+v.disks, "VICTIM_BASE="+v.base, "VICTIM_OFFLINE="+flags[v.offline], "VICTIM_QUIESCE="+flags[v.quiesce], "VICTIM_GROUP="+flags[v.group])
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL || ctx.Err() != nil {
		t.Fatalf("the victim was not killed at stage %s: %v\n%s", v.stage, err, out)
	}
}

// TestVictim is the body of a victim's process.
func TestVictim(t *testing.T) {
	dir := os.Getenv("VICTIM_DIR")
	if dir == "" {
		return // not started by victim.run
	}
	die := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	wanted := os.Getenv("VICTIM_STAGE")
	after, err := time.ParseDuration(os.Getenv("VICTIM_AFTER"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := libvirt.Config{URI: "qemu:///session", Socket: os.Getenv("VICTIM_SOCKET"), Dir: dir, ScratchReserve: 8 << 20, Accel: "tcg"}
	cfg.OnStage(func(s string) {
		switch {
		case s != wanted:
		case after > 0:
			time.AfterFunc(after, die) // in the midst of what comes next
		default:
			die()
		}
	})
	h, err := libvirt.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var reqs []hypervisor.CutRequest
	for _, id := range strings.Split(os.Getenv("VICTIM_VMS"), ",") {
		reqs = append(reqs, hypervisor.CutRequest{VM: dr.VMID(id), Disks: strings.Split(os.Getenv("VICTIM_DISKS"), ","), Base: os.Getenv("VICTIM_BASE"), Tag: fmt.Sprint("victim-", wanted, "-", os.Getpid()),
			Offline: os.Getenv("VICTIM_OFFLINE") != "", Quiesce: os.Getenv("VICTIM_QUIESCE") != ""})
	}
	if os.Getenv("VICTIM_GROUP") != "" {
		_, err = h.BeginGroup(t.Context(), reqs)
	} else {
		_, err = h.BeginCut(t.Context(), reqs[0])
	}
	if wanted == "open" && err == nil {
		die()
	}
	time.Sleep(2 * after)
	t.Fatalf("survived: %v", err)
}

func (d *domain) state(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(d.b.virsh(t, "domstate", d.name))
}

func gone(t testing.TB, path string, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", path)
		}
	}
}

// TestKilledWhileHeld: a process that dies while it holds the guests of a group
// leaves them paused, and the next one lets them go on at once. One that somebody else paused stays paused.
func TestKilledWhileHeld(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	one, two := b.domain(t, map[string]string{"vda": "4M"}, ""), b.domain(t, map[string]string{"vda": "4M"}, "")
	third := b.domain(t, map[string]string{"vda": "4M"}, "")
	b.virsh(t, "suspend", third.name)
	dir := filepath.Join(one.dir, "hf")
	ids := []dr.VMID{one.id, two.id, third.id}
	victim{dir: dir, stage: "held", vms: ids, disks: "vda", group: true}.run(t, b)
	for _, d := range []*domain{one, two} {
		if s := d.state(t); s != "paused" {
			t.Errorf("the fault did not strike: %s is %s", d.name, s)
		}
	}
	h := b.open(t, dir, nil)
	for d, want := range map[*domain]string{one: "running", two: "running", third: "paused"} {
		if s := d.state(t); s != want {
			t.Errorf("%s is %s after a restart, want %s", d.name, s, want)
		}
	}
	// The watch for late calls does not disturb the next group.
	cuts, err := h.BeginGroup(t.Context(), []hypervisor.CutRequest{{VM: one.id, Disks: []string{"vda"}, Tag: "n"}, {VM: two.id, Disks: []string{"vda"}, Tag: "n"}})
	b.must(t, err)
	for _, c := range cuts {
		b.must(t, c.End(t.Context()))
	}
	if s := one.state(t) + two.state(t); s != "runningrunning" {
		t.Errorf("after the next group: %s", s)
	}
	// A late suspension, of a call that the dead process had sent, is undone as long as it can come.
	b.virsh(t, "suspend", two.name)
	two.waitState(t, "running")
	// Nor does it resume one that is started paused for its last cut.
	b.must(t, h.Destroy(t.Context(), one.id))
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: one.id, Disks: []string{"vda"}, Tag: "last", Offline: true})
	b.must(t, err)
	time.Sleep(time.Second)
	if s := one.state(t); s != "paused" {
		t.Errorf("a VM that was started for its last cut is %s", s)
	}
	b.must(t, c.End(t.Context()))
	for _, d := range []*domain{one, two} {
		gone(t, filepath.Join(dir, "held", string(d.id)), time.Minute)
	}
	b.virsh(t, "suspend", two.name) // now it is the administrator's
	time.Sleep(time.Second)
	if s := two.state(t); s != "paused" {
		t.Errorf("%s is %s although somebody has paused it", two.name, s)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "cut/*")); err != nil || len(names) > 0 {
		t.Errorf("leftovers %v, %v", names, err)
	}
}

// TestHoldOverrun: a hold that takes too long is given up: everything runs, nothing is lost.
func TestHoldOverrun(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	one, two := b.domain(t, map[string]string{"vda": "4M"}, ""), b.domain(t, map[string]string{"vda": "4M"}, "")
	late := true
	var while string
	h := b.open(t, filepath.Join(one.dir, "hf"), func(c *libvirt.Config) {
		c.GroupHold = time.Second
		c.OnStage(func(s string) {
			if s == "held" && late {
				time.Sleep(1500 * time.Millisecond)
				while = one.state(t) + two.state(t)
			}
		})
	})
	reqs := func(tag string, bases ...string) []hypervisor.CutRequest {
		r := []hypervisor.CutRequest{{VM: one.id, Disks: []string{"vda"}, Tag: tag}, {VM: two.id, Disks: []string{"vda"}, Tag: tag}}
		for i := range bases {
			r[i].Base = bases[i]
		}
		return r
	}
	late = false
	cuts, err := h.BeginGroup(t.Context(), reqs("base"))
	b.must(t, err)
	var bases []string
	for _, c := range cuts {
		b.must(t, c.End(t.Context()))
		bases = append(bases, c.Info().Token)
		t.Logf("held for %v", c.Info().Held)
	}
	one.write(t, "vda", 1<<20, bytes.Repeat([]byte{7}, 4096))
	late = true
	_, err = h.BeginGroup(t.Context(), reqs("late", bases...))
	if dr.CodeOf(err) != dr.CodeHypervisorTimeout {
		t.Errorf("a hold that takes too long: %v", err)
	}
	if while != "runningrunning" {
		t.Errorf("past the limit the VMs were %s", while)
	}
	late = false
	// Jobs that were begun too late end in the background.
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		cuts, err = h.BeginGroup(t.Context(), reqs("next", bases...))
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if n := changedBytes(t, cuts[0]); n != 64<<10 {
		t.Errorf("%d bytes changed, want 65536", n)
	}
	p := make([]byte, 4096)
	b.must(t, cuts[0].ReadAt(t.Context(), "vda", p, 1<<20))
	if p[0] != 7 {
		t.Error("a write is missing")
	}
	for _, c := range cuts {
		b.must(t, c.End(t.Context()))
	}
	if s := one.state(t) + two.state(t); s != "runningrunning" {
		t.Errorf("in the end: %s", s)
	}
}

func changedBytes(t testing.TB, c hypervisor.Cut) (n int64) {
	t.Helper()
	for _, d := range c.Info().Disks {
		if err := c.Extents(t.Context(), d.ID, 0, d.Size, func(r hypervisor.Range) error {
			if r.Changed {
				n += r.Len
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestKilledOffline: a process that dies while a VM is started for its last
// delta leaves it paused, or even about to start. The next one cleans up, and the delta is still right.
func TestKilledOffline(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M"}, "")
	dir := filepath.Join(d.dir, "hf")
	h := b.open(t, dir, nil)
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Tag: "base"})
	b.must(t, err)
	b.must(t, c.End(t.Context()))
	base := c.Info().Token
	d.write(t, "vda", 1<<20, bytes.Repeat([]byte{9}, 4096))
	b.must(t, h.Destroy(t.Context(), d.id))
	b.must(t, h.Close())
	mark := filepath.Join(dir, "offline", string(d.id))
	victims := []victim{{stage: "started"}, {stage: "open"}}
	for ms := 30; ms <= 300; ms *= 3 { // before, while and after QEMU opens the disks
		victims = append(victims, victim{stage: "starting", after: time.Duration(ms) * time.Millisecond})
	}
	for _, v := range append(victims, victim{stage: "open"}) {
		v.dir, v.vms, v.disks, v.base, v.offline = dir, []dr.VMID{d.id}, "vda", base, true
		v.run(t, b)
		if _, err := os.Stat(mark); err != nil {
			t.Errorf("killed at %s: the VM is not marked: %v", v.stage, err)
		}
		if v.stage != "starting" && d.state(t) != "paused" {
			t.Errorf("the fault did not strike: the VM is %s", d.state(t))
		}
		h := b.open(t, dir, nil)
		if v.stage != "starting" {
			d.waitState(t, "shut off")
		}
		gone(t, mark, time.Minute)
		if s := d.state(t); s != "shut off" {
			t.Errorf("killed at %s: the VM is %s", v.stage, s)
		}
		b.must(t, h.Close())
	}
	h = b.open(t, dir, nil)
	c, err = h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: []string{"vda"}, Base: base, Tag: "last", Offline: true})
	b.must(t, err)
	if n := changedBytes(t, c); n != 64<<10 {
		t.Errorf("%d bytes changed, want 65536", n)
	}
	b.must(t, c.End(t.Context()))
	if s := d.state(t); s != "shut off" {
		t.Errorf("after the last delta the VM is %s", s)
	}
	// The last delta of a group.
	cuts, err := h.BeginGroup(t.Context(), []hypervisor.CutRequest{{VM: d.id, Disks: []string{"vda"}, Base: c.Info().Token, Tag: "group", Offline: true}})
	b.must(t, err)
	if n := changedBytes(t, cuts[0]); n != 0 {
		t.Errorf("%d bytes changed of a VM that was off", n)
	}
	b.must(t, cuts[0].End(t.Context()))
	if s := d.state(t); s != "shut off" {
		t.Errorf("after the group's last delta the VM is %s", s)
	}
}

// TestPowerCut: the host loses power in the midst of a cut, which ends libvirt,
// QEMU and the agent. Tracking is lost, and said to be; what follows is right and leaves nothing broken behind.
func TestPowerCut(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	d := b.domain(t, map[string]string{"vda": "4M", "vdb": "4M"}, "")
	dir := filepath.Join(d.dir, "hf")
	disks := []string{"vda", "vdb"}
	h := b.open(t, dir, nil)
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: disks, Tag: "base"})
	b.must(t, err)
	b.must(t, c.End(t.Context()))
	base := c.Info().Token
	d.write(t, "vda", 1<<20, bytes.Repeat([]byte{9}, 4096))
	d.io(t, "vda", "flush")
	victim{dir: dir, stage: "open", vms: []dr.VMID{d.id}, disks: "vda,vdb", base: base}.run(t, b)
	if !strings.Contains(b.virsh(t, "domjobinfo", d.name), "Backup") {
		t.Error("the fault did not strike: no cut is open")
	}
	b.gone = true
	pid := d.pid(t)
	b.must(t, syscall.Kill(b.daemonPID(t), syscall.SIGKILL))
	b.must(t, syscall.Kill(pid, syscall.SIGKILL))
	b.restartDaemon(t, h, d)
	next := b.open(t, dir, nil)
	d.waitState(t, "shut off")
	b.must(t, next.Start(t.Context(), d.id))
	_, err = next.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: disks, Base: base, Tag: "next"})
	if dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("a cut since a token from before the power cut: %v", err)
	}
	if _, err := next.Estimate(t.Context(), d.id, base); dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("an estimate since it: %v", err)
	}
	c, err = next.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: disks, Tag: "next"})
	b.must(t, err)
	p := make([]byte, 4096)
	b.must(t, c.ReadAt(t.Context(), "vda", p, 1<<20))
	if p[0] != 9 || p[4095] != 9 {
		t.Error("a durable write is missing")
	}
	b.must(t, c.End(t.Context()))
	b.must(t, next.Forget(t.Context(), d.id, []string{c.Info().Token}))
	if got := d.tracking(t); len(got) != 1 || got[0] != c.Info().Token {
		t.Errorf("tracking tokens %v are left", got)
	}
	d.write(t, "vdb", 1<<20, bytes.Repeat([]byte{8}, 4096))
	last, err := next.BeginCut(t.Context(), hypervisor.CutRequest{VM: d.id, Disks: disks, Base: c.Info().Token, Tag: "last"})
	b.must(t, err)
	if n := changedBytes(t, last); n != 64<<10 {
		t.Errorf("%d bytes changed, want 65536", n)
	}
	b.must(t, last.End(t.Context()))
	b.must(t, next.Destroy(t.Context(), d.id))
	for _, disk := range disks {
		if out := b.qemuImg(t, "info", d.image(disk)); strings.Contains(out, "in-use") || strings.Contains(out, "hf-base") || strings.Contains(out, "hf-victim") {
			t.Errorf("broken bitmaps are left on disk %s:\n%s", disk, out)
		}
		b.qemuImg(t, "check", "-q", d.image(disk))
	}
	if names, err := filepath.Glob(filepath.Join(dir, "cut/*")); err != nil || len(names) > 0 {
		t.Errorf("leftovers %v, %v", names, err)
	}
}
