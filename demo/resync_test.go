package main

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/ledger"
)

// On a real guest: kill -9 of QEMU breaks the dirty bitmap. A resynchronization
// ships the true differences only, every recovery point stays, and afterwards the
// store alone, without the vault, restores a disk and a ledger that holds.
func TestHostCrashResynchronizesAndStoreAloneRestores(t *testing.T) {
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
	before, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		t.Fatal(err)
	}
	initial := before[len(before)-1].Properties

	if err := d.guest.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.guest.Start(ctx); err != nil {
		t.Fatal(err)
	}
	op, err := d.api.Items().Act(ctx, d.item, "repairReplication")
	d.must(t, "resynchronize", op, err)
	var resync, next string
	var shipped, dirty int64
	err = d.until(ctx, 3*time.Minute, "a resynchronization and a cycle after it", func() (bool, error) {
		points, err := d.api.Items().Points(ctx, d.item)
		for i := len(points) - 1; i >= 0; i-- {
			p := points[i]
			switch {
			case p.Properties.Resync && resync == "":
				resync, shipped, dirty = p.Name, p.Properties.StoredBytes, p.Properties.DirtyBytes
			case resync != "" && !p.Properties.Resync:
				next = p.Name
			}
		}
		return next != "", err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the initial replication stored %d bytes, the resynchronization %d of %d that the tracker could not rule out", initial.StoredBytes, shipped, dirty)
	if shipped > initial.StoredBytes/4 {
		t.Errorf("the resynchronization shipped %d bytes, a quarter of the initial replication is %d", shipped, initial.StoredBytes/4)
	}
	after, err := d.api.Items().Points(ctx, d.item)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, p := range after {
		have[p.Name] = true
	}
	for _, p := range before {
		if !have[p.Name] {
			t.Errorf("recovery point %s is gone after the resynchronization", p.Name)
		}
	}
	acked, err := d.guest.Acked()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.oneMoreCycle(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.oneMoreCycle(ctx); err != nil { // begun after acked was read
		t.Fatal(err)
	}
	d.vault.kill()
	d.storeAlone(t, acked)
}

// storeAlone lists, verifies and restores with nothing but the store and the key.
func (d *demo) storeAlone(t *testing.T, acked uint64) {
	t.Helper()
	holdfast := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), d.bin, args...)
		var complaints strings.Builder
		cmd.Stderr = &complaints
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("holdfast %s: %v: %s", strings.Join(args, " "), err, complaints.String())
		}
		return out
	}
	data := filepath.Join(d.dir, "vault")
	where := []string{"--store", filepath.Join(d.dir, "store"), "--key", filepath.Join(data, "vault.key")}
	var machines []struct {
		Machine string            `json:"machine"`
		VM      string            `json:"vm"`
		Points  []json.RawMessage `json:"points"`
	}
	if err := json.Unmarshal(holdfast(append([]string{"recover", "-o", "json"}, where...)...), &machines); err != nil || len(machines) != 1 || machines[0].VM != vmName || len(machines[0].Points) < 5 {
		t.Fatalf("recover lists %+v, %v", machines, err)
	}
	holdfast(append([]string{"recover", "verify"}, where...)...)
	out := filepath.Join(t.TempDir(), "restored")
	holdfast(append([]string{"recover", "restore", vmName, "--out", out}, where...)...)
	boot, _ := filepath.Glob(filepath.Join(out, "*vda*"))
	second, _ := filepath.Glob(filepath.Join(out, "*vdb*"))
	if len(boot) != 1 || len(second) != 1 {
		t.Fatalf("restored %v and %v", boot, second)
	}
	v, err := ledger.VerifyImages(t.Context(), boot[0], second[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the restored ledger has %d records; %d were acknowledged before the last cut", v.LastA, acked)
	if !v.OrderOK || !v.ChainOK || v.LastA < acked {
		t.Errorf("the restored ledger: %+v, %d were acknowledged", v, acked)
	}
}
