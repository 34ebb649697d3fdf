package libvirt_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/guesttest"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt"
	"holdfast/internal/ledger/sessionvirt"
)

// TestGroupOfGuests cuts two writing guests at one instant, plainly and frozen.
// Then the process dies while they are held and frozen: both go on.
func TestGroupOfGuests(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	guests := []*guesttest.Guest{
		guesttest.StartGuest(t, b.inst, "one", sessionvirt.GuestConfig{Words: []string{"churn=20"}}),
		guesttest.StartGuest(t, b.inst, "two", sessionvirt.GuestConfig{Words: []string{"churn=20"}}),
	}
	dir := filepath.Join(b.inst.Dir, "hf")
	h := b.open(t, dir, nil)
	disks := []string{"vda", "vdb"}
	var im []images
	var bases []string
	var vms []dr.VMID
	for i, g := range guests {
		im = append(im, images{"vda": filepath.Join(b.inst.Dir, fmt.Sprintf("a%d", i)), "vdb": filepath.Join(b.inst.Dir, fmt.Sprintf("b%d", i))})
		vms, bases = append(vms, dr.VMID(g.UUID)), append(bases, "")
		g.Exec("/bin/busybox", "true") // the agent is up
	}
	for n := range 5 {
		quiesce := n%2 == 1
		var acked []uint64
		var reqs []hypervisor.CutRequest
		for i, g := range guests {
			acked = append(acked, g.WaitMore(10))
			reqs = append(reqs, hypervisor.CutRequest{VM: vms[i], Disks: disks, Base: bases[i], Tag: fmt.Sprintf("n%d", n), Quiesce: quiesce})
		}
		cuts, err := h.BeginGroup(t.Context(), reqs)
		b.must(t, err)
		for i, c := range cuts {
			info := c.Info()
			t.Logf("group %d, guest %d: held for %v, %s %s", n, i, info.Held, info.Consistency, info.Note)
			if !quiesce && (info.Held <= 0 || info.Held > 5*time.Second) {
				t.Errorf("the guests were held for %v", info.Held)
			}
			if want := map[bool]dr.Consistency{false: dr.CrashConsistent, true: dr.FileSystemConsistent}[quiesce]; info.Consistency != want {
				t.Errorf("the cut is %s, want %s: %s", info.Consistency, want, info.Note)
			}
			im[i].apply(t, c)
			b.must(t, c.End(t.Context()))
			bases[i] = info.Token
			v := im[i].verify(t)
			if err := v.Covers(acked[i]); err != nil {
				t.Errorf("group %d, guest %d: %v", n, i, err)
			}
			if quiesce && v.JournalReplayed {
				t.Errorf("group %d, guest %d: a frozen file system has a journal to replay", n, i)
			}
		}
	}
	b.must(t, h.Close())

	for _, stage := range []string{"frozen", "held"} {
		victim{dir: dir, stage: stage, vms: vms, disks: "vda,vdb", group: true, quiesce: true}.run(t, b)
		if marks, err := os.ReadDir(filepath.Join(dir, "freezing")); err != nil || len(marks) == 0 {
			t.Errorf("killed when %s: no freeze is written down, %v", stage, err)
		}
		var before []uint64
		for _, g := range guests {
			before = append(before, g.Acks())
		}
		time.Sleep(2 * time.Second)
		stood := false
		for i, g := range guests {
			stood = stood || g.Acks() <= before[i]+2 // a record that was under way
		}
		if !stood {
			t.Errorf("killed when %s: the fault did not strike, all guests write", stage)
		}
		h = b.open(t, dir, nil)
		began := time.Now()
		for i, g := range guests {
			g.WaitAck(g.Acks() + 20)
			if s := strings.TrimSpace(b.virsh(t, "domstate", g.Name)); s != "running" {
				t.Errorf("guest %d is %s", i, s)
			}
		}
		t.Logf("killed when %s: all write again %v after the restart", stage, time.Since(began))
		for _, id := range vms {
			gone(t, filepath.Join(dir, "freezing", string(id)), time.Minute)
		}
		b.must(t, h.Close())
	}
}

// plan makes the freeze hook of the guest, which its agent runs before it
// freezes, do what a line says, and waits until that is in place.
func plan(g *guesttest.Guest, script string) {
	g.Exec("/bin/busybox", "sh", "-c", "printf '%s\\n' '#!/bin/sh' 'test \"$1\" = freeze || exit 0' '"+script+"' > /etc/qemu/fsfreeze-hook")
}

// TestGuestAgent puts the agent of a real guest through everything that it can
// do wrong. The point says what was achieved, and the guest goes on writing.
func TestGuestAgent(t *testing.T) {
	slow(t)
	t.Parallel()
	b := newBench(t)
	g := guesttest.StartGuest(t, b.inst, "src", sessionvirt.GuestConfig{})
	// An agent that dies stays away for three seconds. libvirt 9.0 may lose one that is back within one.
	g.Exec("/bin/busybox", "sh", "-c", `busybox mkdir /qga; busybox mv /usr/sbin/qemu-ga /qga/qemu-ga; printf '%s\n' '#!/bin/sh' 'busybox sleep 2' 'exec /qga/qemu-ga "$@"' > /usr/sbin/qemu-ga; busybox chmod 755 /usr/sbin/qemu-ga`)
	vm := dr.VMID(g.UUID)
	dir := filepath.Join(b.inst.Dir, "hf")
	im := images{"vda": filepath.Join(b.inst.Dir, "vda.raw"), "vdb": filepath.Join(b.inst.Dir, "vdb.raw")}
	const later = "(busybox sleep 1; %s) >/dev/null 2>&1 </dev/null &"
	base := ""
	for i, c := range []struct {
		name, script string
		dawdle       time.Duration // between freeze and cut
		limit        time.Duration // FreezeLimit
		want         dr.Consistency
		note         string
	}{
		{"answers", "exit 0", 0, 0, dr.FileSystemConsistent, ""},
		{"hangs on freeze", "busybox sleep 6", 0, 0, dr.CrashConsistent, "did not freeze"},
		{"fails to freeze", "exit 1", 0, 0, dr.CrashConsistent, "did not freeze"},
		{"hangs on thaw", fmt.Sprintf(later, "P=$(busybox pidof qemu-ga); busybox kill -STOP $P; busybox sleep 6; busybox kill -CONT $P"), 2 * time.Second, 0, dr.CrashConsistent, "not confirmed"},
		{"dies before the freeze", "busybox kill -9 $(busybox pidof qemu-ga)", 0, 0, dr.CrashConsistent, "did not freeze"},
		{"dies frozen", fmt.Sprintf(later, "busybox kill -9 $(busybox pidof qemu-ga)"), 2500 * time.Millisecond, 0, "", ""},
		{"garbage", `busybox kill -9 $(busybox pidof qemu-ga); exec 3<>/dev/vport0p1; for i in 1 2 3 4 5 6; do echo "{\"return\": [\"garbage" >&3; busybox sleep 1; done`, 0, 0, dr.CrashConsistent, "did not freeze"},
		{"cut comes late", "exit 0", 2 * time.Second, time.Second, dr.CrashConsistent, "thawed before the cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan(g, c.script)
			h := b.open(t, dir, func(cfg *libvirt.Config) {
				cfg.AgentTimeout, cfg.FreezeLimit = time.Second, c.limit
				cfg.OnStage(func(s string) {
					if s == "frozen" {
						time.Sleep(c.dawdle)
					}
				})
			})
			acked := g.Acks()
			began := time.Now()
			cut, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: []string{"vda", "vdb"}, Base: base, Tag: fmt.Sprintf("a%d", i), Quiesce: true})
			b.must(t, err)
			info := cut.Info()
			t.Logf("%v: %s, held %v, %q", time.Since(began), info.Consistency, info.Held, info.Note)
			if c.want != "" && info.Consistency != c.want || !strings.Contains(info.Note, c.note) || (info.Note == "") != (info.Consistency == dr.FileSystemConsistent) {
				t.Errorf("the cut is %s, note %q; want %s, %q", info.Consistency, info.Note, c.want, c.note)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("the agent delayed the cut by %v", took)
			}
			im.apply(t, cut)
			b.must(t, cut.End(t.Context()))
			base = info.Token
			if v := im.verify(t); v.Covers(acked) != nil || (info.Consistency == dr.FileSystemConsistent && v.JournalReplayed) {
				t.Errorf("the cut has %v, acknowledged were %d", v, acked)
			}
			gone(t, filepath.Join(dir, "freezing", string(vm)), 90*time.Second)
			g.WaitMore(20) // it writes: it is not frozen
			g.Exec("/bin/busybox", "true")
			g.WaitMore(20) // and was not frozen later
		})
	}
}

// TestScratchFull: guests overwrite more than there is room for. Whether the
// watchdog is in time, or nobody is left to watch: the guest runs on, and the
// next cut has everything since the old base.
func TestScratchFull(t *testing.T) {
	slow(t)
	b := newBench(t)
	dir := filepath.Join(guesttest.SmallDir(t), "hf")
	g := guesttest.StartGuest(t, b.inst, "src", sessionvirt.GuestConfig{})
	vm, disks := dr.VMID(g.UUID), []string{"vda", "vdb"}
	reserve := func(c *libvirt.Config) { c.ScratchReserve = 8 << 20 }
	h := b.open(t, dir, reserve)
	im := images{"vda": filepath.Join(b.inst.Dir, "vda.raw"), "vdb": filepath.Join(b.inst.Dir, "vdb.raw")}
	g.Fill(3000) // the file exists: from now on blocks are overwritten
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: disks, Tag: "base"})
	b.must(t, err)
	im.apply(t, c)
	b.must(t, c.End(t.Context()))
	base := c.Info().Token

	c, err = h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: disks, Base: base, Tag: "full"})
	b.must(t, err)
	var stopped atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			if s, err := h.State(ctx, vm); err == nil && s == hypervisor.PowerPaused {
				stopped.Store(true)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	g.Fill(4000)
	cancel()
	<-watched
	t.Logf("the guest was paused meanwhile: %t", stopped.Load())
	if err := c.ReadAt(t.Context(), "vdb", make([]byte, 4096), 0); dr.CodeOf(err) != dr.CodeScratchFull {
		t.Errorf("read of a cut without scratch space: %v", err)
	}
	b.must(t, c.Abort(t.Context()))
	acked := g.WaitMore(20)
	next := func(tag string) {
		t.Helper()
		c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: disks, Base: base, Tag: tag})
		b.must(t, err)
		t.Logf("%d bytes changed", im.apply(t, c))
		b.must(t, c.End(t.Context()))
		base = c.Info().Token
		if err := im.verify(t).Covers(acked); err != nil {
			t.Error(err)
		}
	}
	next("after")
	b.must(t, h.Close())

	// The agent dies with a cut open: nobody watches the scratch space.
	victim{dir: dir, stage: "open", vms: []dr.VMID{vm}, disks: "vda,vdb", base: base}.run(t, b)
	filled := make(chan error, 1)
	go func() { filled <- g.Guest.Fill(t.Context(), 4000) }()
	state := ""
	for end := time.Now().Add(time.Minute); !strings.Contains(state, "I/O error"); time.Sleep(50 * time.Millisecond) {
		if state = b.virsh(t, "domstate", "--reason", g.Name); time.Now().After(end) {
			t.Fatalf("the fault did not strike: %s", state)
		}
	}
	h = b.open(t, dir, reserve)
	select {
	case err := <-filled:
		b.must(t, err)
	case <-time.After(time.Minute):
		t.Fatalf("the guest does not go on: %s", b.virsh(t, "domstate", "--reason", g.Name))
	}
	acked = g.WaitMore(20)
	next("restarted")
}
