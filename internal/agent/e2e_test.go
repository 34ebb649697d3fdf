package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/nbd"
	"holdfast/internal/store"
)

// The whole way: a simulated VM is replicated through the channel into a store,
// survives a restart of the agent with the vault away, is drained, and its
// recovery point is served over NBD by what a serving process does.
func TestReplicateAndServe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const size = 3 << 20
	vm := r.host.AddVM(sim.VMSpec{Name: "db", Disks: []sim.DiskSpec{{ID: "vda", Size: size}, {ID: "vdb", Size: 1 << 20}}})
	rnd := rand.New(rand.NewPCG(1, 2))
	write := func(n int) {
		t.Helper()
		for range n {
			p := make([]byte, 4096*(1+rnd.IntN(4)))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			if err := vm.Write("vda", 4096*rnd.Int64N((size-65536)/4096), p); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(50)
	m := dr.MachineID(machineA)
	if err := store.WriteGeneration(t.Context(), r.vault.bucket, cut.GenInfo{Machine: m, Gen: 1, Agent: "agent-1", Reason: "test", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	_, stop := r.start()
	a := r.assignment(machineA, vm.ID(), 1)
	a.Disks = []string{"vda", "vdb"}
	r.vault.assign(a)
	p := agentapi.MachinePayload{Machine: machineA, Generation: 1}
	r.vault.command("await", agentapi.CmdAwaitInitial, p)
	first := pointOf(t, r.vault.final("await"))
	eventually(t, "the commit notice", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		return len(r.vault.commits) > 0 && r.vault.commits[0].N == first.N
	})

	// The agent restarts while the vault and the store are away, and the guest goes on writing.
	stop()
	r.vault.change(func() { r.vault.down = true })
	write(50)
	again, _ := r.start()
	eventually(t, "replication goes on", func() bool { s := again.Status(); return len(s) == 1 && s[0].Phase != "stopped" })
	r.vault.change(func() { r.vault.down = false })

	write(20)
	want := map[string][]byte{}
	vm.PowerOff()
	r.vault.command("drain", agentapi.CmdDrain, p)
	last := pointOf(t, r.vault.final("drain"))
	if last.N <= first.N {
		t.Fatalf("drained to %d after %d", last.N, first.N)
	}
	for _, d := range a.Disks {
		c, err := vm.Content(d)
		if err != nil {
			t.Fatal(err)
		}
		want[d] = c
	}

	r.vault.serving("serving-1", m, last)
	pt, err := OpenPoint(t.Context(), r.dir, "serving-1")
	if err != nil {
		t.Fatal(err)
	}
	defer pt.Close()
	view, err := pt.Store().OpenPoint(t.Context(), pt.Machine, pt.Gen, pt.N)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for d, c := range want {
		got := make([]byte, len(c))
		if err := view.ReadAt(t.Context(), d, got, 0); err != nil || !bytes.Equal(got, c) {
			t.Errorf("disk %s of the point differs from the VM's: %v", d, err)
		}
	}
	if r.vault.asked < 2 {
		t.Errorf("the read ticket, which was too old, was asked for %d times", r.vault.asked)
	}
	if _, err := OpenPoint(t.Context(), r.dir, "nobody's"); dr.KindOf(err) != dr.KindForbidden {
		t.Errorf("a serving of nobody: %v", err)
	}
	serve(t, r.dir, want)
}

func serve(t *testing.T, stateDir string, want map[string][]byte) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hfs") // short: a unix socket's path is
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- ServePoint(ctx, stateDir, "serving-1", dir) }()
	for d, c := range want {
		var client *nbd.Client
		eventually(t, "export of "+d, func() bool {
			client, err = nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: filepath.Join(dir, hydrate.SocketName), Export: d})
			return err == nil
		})
		got := make([]byte, len(c))
		if err := client.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, c) {
			t.Errorf("disk %s over NBD differs: %v", d, err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	vm, _, err := hydrate.ReadVM(dir)
	if err != nil || vm.Name != "db" {
		t.Errorf("VM record %+v, %v", vm, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func pointOf(t *testing.T, f agentapi.ReportRequest) cut.Ref {
	t.Helper()
	var p agentapi.PointResult
	if err := json.Unmarshal(f.Result, &p); err != nil || f.State != stateDone {
		t.Fatalf("report %+v: %v", f, err)
	}
	h, err := hex.DecodeString(p.Hash)
	if err != nil || len(h) != len(cut.Hash{}) {
		t.Fatalf("hash %q", p.Hash)
	}
	return cut.Ref{Gen: dr.Generation(p.Generation), N: p.N, Hash: cut.Hash(h)}
}
