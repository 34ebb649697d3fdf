package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/armclient"
	"holdfast/internal/guesttest"
)

// TestMain builds the holdfast binary before root, if it is root, is dropped.
func TestMain(m *testing.M) {
	if os.Getenv(binEnv) == "" {
		// A fixed place, because guesttest.Main does not return: one file stays there.
		dir := fmt.Sprintf("/tmp/hfb-%d", os.Geteuid())
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			cmd := exec.Command("go", "build", "-o", dir+"/", "holdfast/cmd/holdfast", "holdfast/cmd/hvsim")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			var out []byte
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "build holdfast:", err)
			os.Exit(1)
		}
		os.Setenv(binEnv, filepath.Join(dir, "holdfast"))
	}
	guesttest.Main(m)
}

func newDemo(t *testing.T) *demo {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "screen"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d := &demo{bin: os.Getenv(binEnv), sim: filepath.Join(filepath.Dir(os.Getenv(binEnv)), "hvsim"), report: filepath.Join(t.TempDir(), "report.json"), once: true, out: newScreen(f)}
	if d.dir, err = os.MkdirTemp("/tmp", "hf-demo-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			raw, _ := os.ReadFile(f.Name())
			t.Logf("screen:\n%s", raw)
			for _, name := range []string{"vault", "agent-primary", "agent-recovery", "hyperv-primary", "hyperv-recovery"} {
				raw, _ := os.ReadFile(filepath.Join(d.dir, name+".log"))
				t.Logf("%s:\n%s", name, raw[max(0, len(raw)-4000):])
			}
		}
		d.result.OK = true // the logs were shown
		if err := d.cleanUp(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *demo) must(t *testing.T, what string, op *armclient.Operation, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if err := d.follow(ctx, op, err); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (d *demo) get(t *testing.T) armclient.ProtectedItem {
	t.Helper()
	it, err := d.api.Items().Get(t.Context(), d.item)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// On real guests: a planned failover loses nothing; cancelling it brings the
// source back and replication goes on; an unplanned one can change its
// recovery point until it is committed.
func TestPlannedCancelChangePoint(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots real guests for minutes")
	}
	d := newDemo(t)
	ctx := t.Context()
	for _, act := range []func(context.Context) error{d.build, d.bringUp, d.register, d.protect, d.replicate} {
		if err := act(ctx); err != nil {
			t.Fatal(err)
		}
	}

	op, err := d.api.Items().PlannedFailover(ctx, d.item)
	d.must(t, "planned failover", op, err)
	acked, err := d.guest.Acked()
	if err != nil {
		t.Fatal(err)
	}
	it := d.get(t)
	c, err := d.recoveredConsole(ctx, it.Properties.RecoveryVM)
	if err != nil {
		t.Fatal(err)
	}
	if c.FoundA < acked || !c.Order || !c.Chain {
		t.Fatalf("planned failover: %d acknowledged, recovered %d, order %v, chain %v", acked, c.FoundA, c.Order, c.Chain)
	}
	state, err := d.sites[0].virt.Virsh(ctx, "domstate", vmName)
	if err != nil || strings.TrimSpace(state) != "shut off" {
		t.Errorf("the source is %q (%v) after a planned failover", strings.TrimSpace(state), err)
	}

	op, err = d.api.Items().Act(ctx, d.item, "failoverCancel")
	d.must(t, "cancel", op, err)
	if list, err := d.sites[1].virt.Virsh(ctx, "list", "--all", "--name"); err != nil || strings.TrimSpace(list) != "" {
		t.Errorf("left at the recovery site after the cancel: %q (%v)", list, err)
	}
	state, err = d.sites[0].virt.Virsh(ctx, "domstate", vmName)
	if err != nil || strings.TrimSpace(state) != "running" {
		t.Fatalf("the source is %q (%v) after the cancel", strings.TrimSpace(state), err)
	}
	err = d.until(ctx, 2*time.Minute, "the source to boot again", func() (bool, error) {
		c, err := d.guest.Read()
		return c.Boots > 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.guest.WaitAck(ctx, acked+40); err != nil {
		t.Fatal(err)
	}
	if err := d.oneMoreCycle(ctx); err != nil {
		t.Fatalf("replication does not go on after the cancel: %v", err)
	}

	older, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.oneMoreCycle(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.guest.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	d.sites[0].agent.kill()
	op, err = d.api.Items().UnplannedFailover(ctx, d.item, "", false)
	d.must(t, "unplanned failover", op, err)
	newest, err := d.recoveredConsole(ctx, d.get(t).Properties.RecoveryVM)
	if err != nil {
		t.Fatal(err)
	}
	op, err = d.api.Items().ChangePoint(ctx, d.item, older[0].Name)
	d.must(t, "change recovery point", op, err)
	changed, err := d.recoveredConsole(ctx, d.get(t).Properties.RecoveryVM)
	if err != nil {
		t.Fatal(err)
	}
	if changed.FoundA >= newest.FoundA || changed.FoundA < acked || !changed.Order || !changed.Chain {
		t.Errorf("changed to an older point: recovered %d, the newest had %d, %d were acknowledged before the cancel", changed.FoundA, newest.FoundA, acked)
	}
	op, err = d.api.Items().Act(ctx, d.item, "failoverCommit")
	d.must(t, "commit", op, err)

	// The recovery VM becomes local by itself; then no serving process is left.
	err = d.until(ctx, 3*time.Minute, "the recovery VM to become local", func() (bool, error) {
		procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			raw, _ := os.ReadFile(p)
			if bytes.Contains(raw, []byte("serve-point")) && bytes.Contains(raw, []byte(d.dir)) {
				return false, err
			}
		}
		return true, err
	})
	if err != nil {
		t.Error(err)
	}
	after, err := d.recoveredConsole(ctx, d.get(t).Properties.RecoveryVM)
	if err != nil || after.BootAcked < changed.BootAcked {
		t.Errorf("the guest did not go on after it became local: %d, %v", after.BootAcked, err)
	}
}
