package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/authn"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
)

const (
	machineA = "00000000-0000-4000-8000-00000000000a"
	machineB = "00000000-0000-4000-8000-00000000000b"
)

func tlsServer(ca *authn.CA, cert *tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool(), MinVersion: tls.VersionTLS12}
}

func TestRegister(t *testing.T) {
	t.Parallel()
	conf := func(t *testing.T, v *fakeVault) RegisterConfig {
		return RegisterConfig{Key: v.key(), StateDir: t.TempDir(), HostName: "host", Roles: []dr.AgentRole{dr.RoleSource}}
	}
	t.Run("AndAgain", func(t *testing.T) {
		t.Parallel()
		v := newVault(t)
		c := conf(t, v)
		r, err := Register(t.Context(), c)
		if err != nil || r.AgentID != "agent-1" || r.FabricName != "site" || r.Host != "host" {
			t.Fatalf("%+v %v", r, err)
		}
		info, err := os.Stat(filepath.Join(c.StateDir, state.Identity))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("identity: %v %v", info.Mode(), err)
		}
		if _, err := os.Stat(filepath.Join(c.StateDir, state.Pending)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pending key stays: %v", err)
		}
		if id := v.enrolled[0].MachineID; id == "" {
			t.Error("no machine id was sent")
		}
		// The used key again, without the pending key: refused, and the identity stays.
		if _, err := Register(t.Context(), c); dr.CodeOf(err) != dr.CodeRegistrationKeyUsed {
			t.Errorf("a used one-time key: %v", err)
		}
		if _, err := channel.LoadRegistration(c.StateDir); err != nil {
			t.Error(err)
		}
	})
	t.Run("LostAnswer", func(t *testing.T) {
		t.Parallel()
		v := newVault(t)
		v.drop[agentapi.PathEnroll] = 4 // three attempts of the first call, one of the second
		c := conf(t, v)
		if _, err := Register(t.Context(), c); dr.CodeOf(err) != dr.CodeVaultUnreachable {
			t.Fatalf("first: %v", err)
		}
		if _, err := Register(t.Context(), c); err != nil {
			t.Fatalf("a one-time key whose answers were lost: %v", err)
		}
		if len(v.enrolled) != 5 {
			t.Errorf("%d requests", len(v.enrolled))
		}
	})
	t.Run("AnotherVault", func(t *testing.T) {
		t.Parallel()
		v := newVault(t)
		c := conf(t, v)
		c.Key.CAPin = strings.Repeat("ab", 32)
		_, err := Register(t.Context(), c)
		if dr.CodeOf(err) != dr.CodeVaultIdentity {
			t.Errorf("error %v", err)
		}
		if len(v.enrolled) != 0 {
			t.Error("the secret was sent to a server that is not the vault")
		}
	})
	t.Run("WrongSecret", func(t *testing.T) {
		t.Parallel()
		v := newVault(t)
		c := conf(t, v)
		c.Key.Secret = "hfk_other"
		_, err := Register(t.Context(), c)
		if dr.CodeOf(err) != dr.CodeRegistrationKeyInvalid || strings.Contains(err.Error(), "hfk_") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("WhileTheAgentRuns", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.start()
		if _, err := Register(t.Context(), RegisterConfig{Key: r.vault.key(), StateDir: r.dir, Roles: []dr.AgentRole{dr.RoleSource}}); dr.KindOf(err) != dr.KindConflict {
			t.Errorf("error %v", err)
		}
	})
	t.Run("Invalid", func(t *testing.T) {
		t.Parallel()
		for _, c := range []RegisterConfig{{}, {Key: RegistrationKey{VaultURL: "http://x"}}, {Key: RegistrationKey{VaultURL: "https://x", CAPin: "12"}}} {
			if _, err := Register(t.Context(), c); dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("%v: %v", c.Key, err)
			}
		}
		if s := fmt.Sprintf("%v %+v %#v", RegistrationKey{Secret: "geheim"}, RegistrationKey{Secret: "geheim"}, RegistrationKey{Secret: "geheim"}); strings.Contains(s, "geheim") {
			t.Errorf("the key shows its secret: %s", s)
		}
	})
}

func TestStart(t *testing.T) {
	t.Parallel()
	t.Run("NotRegistered", func(t *testing.T) {
		t.Parallel()
		a, err := New(Config{StateDir: t.TempDir(), Host: sim.New(sim.Config{})})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Start(t.Context()); dr.KindOf(err) != dr.KindPrecondition {
			t.Errorf("start: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("Twice", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		a, stop := r.start()
		b, err := New(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(t.Context()); dr.KindOf(err) != dr.KindConflict {
			t.Errorf("second agent: %v", err)
		}
		stop()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		r.start() // the lock is free again
	})
	t.Run("LongRunDir", func(t *testing.T) {
		t.Parallel()
		long := "/" + strings.Repeat("x", 60)
		if _, err := New(Config{StateDir: long, Host: sim.New(sim.Config{}), Recovery: &fakeSite{}}); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("new: %v", err)
		}
		root, err := ServingRoot(long, "/run/holdfast")
		if err != nil || root != "/run/holdfast/servings" {
			t.Errorf("%q %v", root, err)
		}
	})
}

// withSite is a rig with a recovery site and fake replicators.
func withSite(t *testing.T) (*rig, *fakeSite, *fakeReplicators) {
	r := newRig(t)
	site, reps := &fakeSite{}, &fakeReplicators{initial: make(chan struct{})}
	r.cfg.Recovery, r.cfg.newReplicator, r.cfg.RunDir = site, reps.make, "/run/x"
	return r, site, reps
}

func TestCommands(t *testing.T) {
	t.Parallel()
	t.Run("AreDoneOnceAndAnsweredAgain", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		_, stop := r.start()
		r.vault.command("job/boot/1", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s1", VMName: "x"})
		var res agentapi.BootResult
		if f := r.vault.final("job/boot/1"); f.State != stateDone || json.Unmarshal(f.Result, &res) != nil || res.VM != "vm-of-s1" {
			t.Fatalf("report %+v", f)
		}
		again := func() {
			r.vault.change(func() { delete(r.vault.finals, "job/boot/1") })
			if f := r.vault.final("job/boot/1"); f.State != stateDone || !strings.Contains(string(f.Result), "vm-of-s1") {
				t.Fatalf("repeated: %+v", f)
			}
			if n := site.count("boot s1"); n != 1 {
				t.Fatalf("done %d times", n)
			}
		}
		again()
		stop()
		r.start()
		again()
	})
	t.Run("ReportLost", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		r.vault.drop[agentapi.PathReport] = 1
		r.start()
		r.vault.command("c", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s1"})
		r.vault.final("c")
		if n := site.count("boot s1"); n != 1 {
			t.Errorf("done %d times", n)
		}
	})
	t.Run("VaultDownMeanwhile", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		site.hang = make(chan struct{})
		r.start()
		r.vault.command("c", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s1"})
		eventually(t, "boot begins", func() bool { return site.count("boot s1") == 1 })
		r.vault.change(func() { r.vault.down = true })
		close(site.hang)
		time.Sleep(50 * time.Millisecond)
		r.vault.change(func() { r.vault.down = false })
		r.vault.final("c")
		if n := site.count("boot s1"); n != 1 {
			t.Errorf("done %d times", n)
		}
	})
	t.Run("Cancel", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		site.hang = make(chan struct{})
		r.start()
		r.vault.command("c", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s1"})
		eventually(t, "boot begins", func() bool { return site.count("boot s1") == 1 })
		r.vault.change(func() { r.vault.cancels["c"] = true })
		if f := r.vault.final("c"); f.State != stateCancelled || f.Error == nil || f.Error.Kind != "canceled" {
			t.Errorf("report %+v", f)
		}
		// One that this agent has never seen is answered and not started.
		r.vault.command("unseen", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s2"})
		r.vault.change(func() {})
		r.vault.change(func() { r.vault.commands["late"] = agentapi.Command{ID: "late"}; r.vault.cancels["late"] = true })
		if f := r.vault.final("late"); f.State != stateCancelled {
			t.Errorf("report %+v", f)
		}
		close(site.hang)
		r.vault.final("unseen")
	})
	t.Run("AgentStopsMeanwhile", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		site.hang = make(chan struct{})
		_, stop := r.start()
		r.vault.command("c", agentapi.CmdBootPoint, agentapi.BootPayload{Serving: "s1"})
		eventually(t, "boot begins", func() bool { return site.count("boot s1") == 1 })
		stop()
		r.vault.mu.Lock()
		if f, ok := r.vault.finals["c"]; ok {
			t.Errorf("a stopping agent reported %+v", f)
		}
		r.vault.mu.Unlock()
		close(site.hang)
		r.start()
		if f := r.vault.final("c"); f.State != stateDone || site.count("boot s1") != 2 {
			t.Errorf("report %+v after %d boots", f, site.count("boot s1"))
		}
	})
	t.Run("RecoverySite", func(t *testing.T) {
		t.Parallel()
		r, site, _ := withSite(t)
		r.start()
		for kind, payload := range map[agentapi.CommandKind]any{
			agentapi.CmdVerifyBoot: agentapi.VerifyPayload{VM: "x"}, agentapi.CmdMakeLocal: agentapi.VMPayload{VM: "x"},
			agentapi.CmdRemoveVM: agentapi.RemovePayload{Serving: "s"}, agentapi.CmdPowerState: agentapi.VMPayload{VM: "x"},
			agentapi.CmdRefreshInventory: struct{}{},
		} {
			r.vault.command(string(kind), kind, payload)
			if f := r.vault.final(string(kind)); f.State != stateDone {
				t.Errorf("%s: %+v", kind, f)
			}
		}
		for _, n := range []string{"verify", "makeLocal", "remove", "state"} {
			if site.count(n) != 1 {
				t.Errorf("%s was called %d times", n, site.count(n))
			}
		}
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		if got := r.vault.reports[string(agentapi.CmdMakeLocal)]; got[0].State != stateRunning || got[0].Percent != 25 {
			t.Errorf("reports of makeLocal: %+v", got)
		}
	})
	t.Run("Unknown", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.start()
		r.vault.command("c", "flyToTheMoon", struct{}{})
		r.vault.command("d", agentapi.CmdBootPoint, agentapi.BootPayload{})
		r.vault.command("e", agentapi.CmdStartVM, []int{1})
		for id, kind := range map[string]dr.Kind{"c": dr.KindUnsupported, "d": dr.KindUnsupported, "e": dr.KindInvalid} {
			if f := r.vault.final(id); f.State != stateFailed || f.Error.Kind != kind.String() {
				t.Errorf("%s: %+v", id, f)
			}
		}
	})
	t.Run("Power", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		vm := r.host.AddVM(sim.VMSpec{Name: "vm", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
		r.start()
		state := func(id string, of string) string {
			r.vault.command(id, agentapi.CmdPowerState, agentapi.VMPayload{VM: of})
			var p agentapi.PowerResult
			if err := json.Unmarshal(r.vault.final(id).Result, &p); err != nil {
				t.Fatal(err)
			}
			return p.State
		}
		got := []string{state("p1", string(vm.ID())), state("p2", "nobody")}
		r.vault.command("off", agentapi.CmdShutdownVM, agentapi.ShutdownPayload{VM: string(vm.ID()), TimeoutSeconds: 5})
		r.vault.final("off")
		got = append(got, state("p3", string(vm.ID())))
		r.vault.command("on", agentapi.CmdStartVM, agentapi.VMPayload{VM: string(vm.ID())})
		r.vault.final("on")
		got = append(got, state("p4", string(vm.ID())))
		vm.IgnoreShutdown(true)
		r.vault.command("deaf", agentapi.CmdShutdownVM, agentapi.ShutdownPayload{VM: string(vm.ID()), TimeoutSeconds: 1})
		if f := r.vault.final("deaf"); f.State != stateFailed || f.Error.Code != string(dr.CodeShutdownTimeout) {
			t.Errorf("shutdown of a deaf guest: %+v", f)
		}
		got = append(got, state("p5", string(vm.ID())))
		r.vault.command("force", agentapi.CmdShutdownVM, agentapi.ShutdownPayload{VM: string(vm.ID()), TimeoutSeconds: 1, Force: true})
		if f := r.vault.final("force"); f.State != stateDone {
			t.Errorf("forced: %+v", f)
		}
		got = append(got, state("p6", string(vm.ID())))
		if want := "on absent off on on off"; strings.Join(got, " ") != want {
			t.Errorf("states %v, want %s", got, want)
		}
	})
}

func TestAssignments(t *testing.T) {
	t.Parallel()
	t.Run("SurviveARestartWithoutTheVault", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		_, stop := r.start()
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
		got := reps.last().assigned()
		if len(got) != 1 || got[0].VM != "vm-1" || got[0].Gen != 1 || got[0].CopyFrequency != 5*time.Second || got[0].VaultKey.KeyID() != r.vault.private.KeyID() {
			t.Errorf("assigned %+v", got)
		}
		stop()
		if reps.count(machineA) != 0 {
			t.Error("it runs after Close")
		}
		r.vault.change(func() { r.vault.down = true })
		r.start()
		eventually(t, "replication without the vault", func() bool { return reps.count(machineA) == 1 })
	})
	t.Run("Follow", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		reps.slow = 30 * time.Millisecond
		a, _ := r.start()
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
		next := r.assignment(machineA, "vm-1", 2)
		next.Base = &agentapi.CutRef{Generation: 1, N: 7, Hash: fakeRef.Hash.String()}
		r.vault.assign(next)
		eventually(t, "the new generation", func() bool { return len(reps.last().assigned()) == 2 })
		if got := reps.last().assigned()[1]; got.Gen != 2 || got.Base != (cut.Ref{Gen: 1, N: 7, Hash: fakeRef.Hash}) {
			t.Errorf("assigned %+v", got)
		}
		// Gone and back at once: never two replicators on one state.
		for range 3 {
			r.vault.assign()
			eventually(t, "the end", func() bool { return len(a.Status()) == 0 })
			r.vault.assign(next)
			eventually(t, "it is back", func() bool { return len(a.Status()) == 1 })
		}
		eventually(t, "it runs", func() bool { return reps.count(machineA) == 1 })
		reps.mu.Lock()
		defer reps.mu.Unlock()
		if reps.most != 1 {
			t.Errorf("%d replicators of one machine ran at once", reps.most)
		}
	})
	t.Run("StopReplication", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		_, stop := r.start()
		r.vault.assign(r.assignment(machineA, "vm-1", 1), r.assignment(machineB, "vm-2", 1))
		eventually(t, "replication", func() bool { return reps.count(machineA) == 1 && reps.count(machineB) == 1 })
		for _, id := range []string{"s1", "s2"} { // the second one finds nothing to do
			r.vault.command(id, agentapi.CmdStopReplication, agentapi.MachinePayload{Machine: machineA, Generation: 1})
			if f := r.vault.final(id); f.State != stateDone {
				t.Fatalf("report %+v", f)
			}
		}
		reps.mu.Lock()
		if !slices.Equal(reps.removed, []dr.MachineID{machineA}) {
			t.Errorf("removed %v", reps.removed)
		}
		reps.mu.Unlock()
		// Still listed, also after a restart: it stays stopped.
		stop()
		r.start()
		eventually(t, "the other one", func() bool { return reps.count(machineB) == 1 })
		if reps.count(machineA) != 0 {
			t.Error("stopped replication began again")
		}
		r.vault.assign(r.assignment(machineA, "vm-1", 2), r.assignment(machineB, "vm-2", 1))
		eventually(t, "a new generation", func() bool { return reps.count(machineA) == 1 })
		// The id of a machine is a directory's name.
		r.vault.command("evil", agentapi.CmdStopReplication, agentapi.MachinePayload{Machine: "../.."})
		if f := r.vault.final("evil"); f.State != stateFailed {
			t.Errorf("report %+v", f)
		}
	})
	t.Run("ReplicatorFails", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		reps.runErr = dr.New(dr.KindExhausted, dr.CodeNoSpace, "test", "no space")
		a, _ := r.start()
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		eventually(t, "it runs again", func() bool { return reps.count(machineA) == 1 })
		eventually(t, "without an error", func() bool { s := a.Status(); return len(s) == 1 && s[0].Error == nil })
	})
	t.Run("BadKey", func(t *testing.T) {
		t.Parallel()
		r, _, _ := withSite(t)
		a, _ := r.start()
		bad := r.assignment(machineA, "vm-1", 1)
		bad.VaultPublicKey = "nonsense"
		r.vault.assign(bad)
		eventually(t, "an error", func() bool { s := a.Status(); return len(s) == 1 && s[0].Error != nil && s[0].Phase == "error" })
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		eventually(t, "no error", func() bool { s := a.Status(); return len(s) == 1 && s[0].Error == nil })
	})
	t.Run("FormerReplicaOfTheVM", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		a, _ := r.start()
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
		dir := a.replicas.replicaDir(machineA)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		r.vault.assign()
		eventually(t, "the end", func() bool { return reps.count(machineA) == 0 })
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("state of an unassigned replica is gone: %v", err)
		}
		r.vault.assign(r.assignment(machineB, "vm-1", 1))
		eventually(t, "the new one", func() bool { return reps.count(machineB) == 1 })
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state of the former replica: %v", err)
		}
	})
}

func TestReplicationCommands(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	r.start()
	p := agentapi.MachinePayload{Machine: machineA, Generation: 1}
	r.vault.command("early", agentapi.CmdDrain, p)
	if f := r.vault.final("early"); f.State != stateFailed || f.Error.Kind != "precondition" {
		t.Errorf("drain of an unassigned machine: %+v", f)
	}
	r.vault.command("start", agentapi.CmdStartReplication, p)
	r.vault.assign(r.assignment(machineA, "vm-1", 1))
	if f := r.vault.final("start"); f.State != stateDone {
		t.Errorf("start: %+v", f)
	}
	r.vault.command("await", agentapi.CmdAwaitInitial, p)
	eventually(t, "progress", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		got := r.vault.reports["await"]
		return len(got) > 0 && got[0].Percent == 10
	})
	close(reps.initial)
	var pt agentapi.PointResult
	if f := r.vault.final("await"); f.State != stateDone || json.Unmarshal(f.Result, &pt) != nil || pt.N != 3 || pt.Hash != fakeRef.Hash.String() {
		t.Errorf("await: %+v", f)
	}
	r.vault.command("drain", agentapi.CmdDrain, p)
	if f := r.vault.final("drain"); f.State != stateDone {
		t.Errorf("drain: %+v", f)
	}
	// A command about a replica that ends does not hang.
	reps.mu.Lock()
	reps.initial = make(chan struct{})
	reps.mu.Unlock()
	r.vault.command("await2", agentapi.CmdAwaitInitial, p)
	eventually(t, "progress", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		return len(r.vault.reports["await2"]) > 0
	})
	r.vault.assign()
	if f := r.vault.final("await2"); f.State != stateFailed || f.Error.Kind != "precondition" {
		t.Errorf("await of a replica that ended: %+v", f)
	}
}

func TestStartReplicationErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status capture.Status
		state  string
	}{
		"Off":      {capture.Status{Phase: capture.PhaseWaiting, Note: "the VM is off"}, stateDone},
		"Error":    {capture.Status{Phase: capture.PhaseError, Gen: 1, Err: dr.New(dr.KindUnsupported, dr.CodeDiskNotTrackable, "x", "raw")}, stateFailed},
		"Troubled": {capture.Status{Phase: capture.PhaseWaiting, Gen: 1, Err: dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "x", "busy"), Since: time.Now().Add(-time.Hour)}, stateFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _, reps := withSite(t)
			r.cfg.newReplicator = func(cfg capture.Config) (replicator, error) {
				x, err := reps.make(cfg)
				return &stuck{replicator: x, status: c.status}, err
			}
			r.start()
			r.vault.assign(r.assignment(machineA, "vm-1", 1))
			r.vault.command("c", agentapi.CmdStartReplication, agentapi.MachinePayload{Machine: machineA, Generation: 1})
			if f := r.vault.final("c"); f.State != c.state {
				t.Errorf("report %+v", f)
			}
		})
	}
}

// stuck shows one status for ever.
type stuck struct {
	replicator
	status capture.Status
}

func (s *stuck) Status() capture.Status { return s.status }

func TestCommitNotices(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	r.start()
	r.vault.assign(r.assignment(machineA, "vm-1", 1))
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	r.vault.change(func() { r.vault.drop[agentapi.PathCommits] = 1 })
	for n := range uint64(20) {
		reps.last().cfg.Committed(cut.Ref{Gen: 1, N: n})
	}
	eventually(t, "all notices", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		return len(r.vault.commits) == 21
	})
	for i, c := range r.vault.commits[1:] { // the first one twice: its answer was lost
		if c.N != uint64(i) || c.Machine != machineA {
			t.Fatalf("notices out of order: %+v", r.vault.commits)
		}
	}
	// A refusal does not hold up the following.
	r.vault.change(func() {
		r.vault.refuse[agentapi.PathCommits] = dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	})
	reps.last().cfg.Committed(cut.Ref{Gen: 1, N: 20})
	eventually(t, "the refusal", func() bool { return strings.Contains(r.logs.String(), "does not list a committed cut") })
	r.vault.change(func() { delete(r.vault.refuse, agentapi.PathCommits) })
	reps.last().cfg.Committed(cut.Ref{Gen: 1, N: 21})
	eventually(t, "the next", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		return r.vault.commits[len(r.vault.commits)-1].N == 21
	})
}

func TestInventoryAndStatus(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	vm := r.host.AddVM(sim.VMSpec{Name: "one", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}, NICs: []dr.NIC{{MAC: "52:54:00:00:00:01"}}})
	r.start()
	inventory := func(what string, ok func(agentapi.InventoryRequest) bool) {
		t.Helper()
		eventually(t, what, func() bool {
			r.vault.mu.Lock()
			defer r.vault.mu.Unlock()
			n := len(r.vault.inventories)
			return n > 0 && ok(r.vault.inventories[n-1])
		})
	}
	inventory("the first inventory", func(i agentapi.InventoryRequest) bool {
		return len(i.VMs) == 1 && i.VMs[0].Running && i.VMs[0].Disks[0].Size == 1<<20 && len(i.VMs[0].NICs) == 1 && len(i.Networks) == 2 && i.Hypervisor != ""
	})
	r.host.AddVM(sim.VMSpec{Name: "two"})
	inventory("a new VM", func(i agentapi.InventoryRequest) bool { return len(i.VMs) == 2 })
	r.vault.assign(r.assignment(machineA, vm.ID(), 1))
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	vm.PowerOff()
	inventory("a stopped VM", func(i agentapi.InventoryRequest) bool { return !i.VMs[0].Running })
	eventually(t, "the replicator looks", func() bool {
		x := reps.last()
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.kicks > 0
	})
	reps.last().set(capture.Status{Phase: capture.PhaseResync, Percent: 42, Backlog: 7, Resync: "tracking lost", Err: dr.New(dr.KindExhausted, dr.CodeSpoolFull, "x", "full"), Since: time.Unix(1e9, 0)})
	eventually(t, "the status", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		n := len(r.vault.statuses)
		if n == 0 {
			return false
		}
		s := r.vault.statuses[n-1].Items[0]
		return s.Phase == "resync" && s.Percent == 42 && s.BacklogBytes == 7 && s.Resync == "tracking lost" && s.Error.Code == string(dr.CodeSpoolFull) && s.Error.Hint != ""
	})
	r.vault.change(func() { r.vault.inventories, r.vault.wantInv = nil, true })
	r.vault.assign(r.assignment(machineA, vm.ID(), 1)) // makes the poll return
	inventory("a wanted inventory", func(i agentapi.InventoryRequest) bool { return len(i.VMs) == 2 })
}

func TestCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.change(func() { r.vault.certLife, r.vault.keyHash = 5*24*time.Hour, "" })
	if _, err := Register(t.Context(), RegisterConfig{Key: r.vault.key(), StateDir: r.dir, Roles: []dr.AgentRole{dr.RoleSource}}); err != nil {
		t.Fatal(err)
	}
	before, err := channel.LoadRegistration(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	r.cfg.every.certificate = 20 * time.Millisecond
	r.vault.change(func() { r.vault.drop[agentapi.PathRenew] = 1 })
	r.start()
	eventually(t, "the renewal", func() bool {
		now, err := channel.LoadRegistration(r.dir)
		return err == nil && now.NotAfter.After(before.NotAfter.Add(24*time.Hour))
	})
	time.Sleep(100 * time.Millisecond)
	r.vault.mu.Lock()
	n := r.vault.renewals
	r.vault.mu.Unlock()
	if n != 2 {
		t.Errorf("%d renewals, want 2 (one answer was lost)", n)
	}
	r.vault.command("c", agentapi.CmdRefreshInventory, struct{}{})
	if f := r.vault.final("c"); f.State != stateDone {
		t.Errorf("with the new certificate: %+v", f)
	}
}

func TestFindings(t *testing.T) {
	t.Parallel()
	good := dr.Disk{ID: "vda", Path: "/a", Size: 1}
	vm := func(running bool, disks ...dr.Disk) []dr.VM {
		return []dr.VM{{ID: "v", Name: "vm", Running: running, Disks: disks}}
	}
	for name, c := range map[string]struct {
		vms  []dr.VM
		want string
		only []string
	}{
		"Good":      {vms: vm(true, good)},
		"Gone":      {want: "error VMNotFound v"},
		"Off":       {vms: vm(false, good), want: "warning VMNotRunning vm"},
		"NoDisks":   {vms: vm(true), want: "error NoReplicatableDisk vm"},
		"Raw":       {vms: vm(true, good, dr.Disk{ID: "vdb", Size: 1, Unreplicatable: "raw"}), want: "error DiskNotTrackable vdb"},
		"RawOut":    {vms: vm(true, good, dr.Disk{ID: "vdb", Size: 1, Unreplicatable: "raw"}), only: []string{"vda"}, want: "info  vdb"},
		"Shared":    {vms: vm(true, dr.Disk{ID: "vda", Size: 1, Shared: true}), want: "error DiskShared vda"},
		"PassThru":  {vms: vm(true, dr.Disk{ID: "vda", Size: 1, PassThru: true, Unreplicatable: "raw"}), want: "error DiskPassThrough vda"},
		"Unknown":   {vms: vm(true, good), only: []string{"vda", "vdz"}, want: "error ResourceNotFound vdz"},
		"NoneLeft":  {vms: vm(true, good), only: []string{"vdz"}, want: "info  vda|error ResourceNotFound vdz|error NoReplicatableDisk vm"},
		"ImageGone": {vms: vm(true, dr.Disk{ID: "vda"}), want: "error DiskNotTrackable vda"},
	} {
		var got []string
		for _, f := range findings(c.vms, agentapi.VMPayload{VM: "v", Disks: c.only}) {
			got = append(got, fmt.Sprintf("%s %s %s", f.Severity, f.Code, f.Object))
			if f.Message == "" || f.Severity == severityError && f.Hint == "" {
				t.Errorf("%s: finding without a text or a way out: %+v", name, f)
			}
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	r := newRig(t)
	v := r.host.AddVM(sim.VMSpec{Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20, Unreplicatable: "raw"}}})
	r.start()
	r.vault.command("c", agentapi.CmdCheckPrerequisites, agentapi.VMPayload{VM: string(v.ID())})
	if f := r.vault.final("c"); !strings.Contains(string(f.Result), "DiskNotTrackable") {
		t.Errorf("report %+v %s", f, f.Result)
	}
}

func TestPollingAdapts(t *testing.T) {
	t.Parallel()
	ch := polling{wait: 25 * time.Second}
	ch.adapt(12*time.Second, true, 25*time.Second) // cut after 12 s
	if ch.wait != 8*time.Second {
		t.Errorf("wait %v after a cut at 12 s", ch.wait)
	}
	ch.adapt(0, true, 25*time.Second) // refused at once says nothing about silence
	ch.adapt(60*time.Second, true, 25*time.Second)
	if ch.wait != 8*time.Second {
		t.Errorf("wait %v", ch.wait)
	}
	for range 200 {
		ch.adapt(ch.wait, false, 25*time.Second)
	}
	if ch.wait != 25*time.Second {
		t.Errorf("wait %v after many quiet polls", ch.wait)
	}
	for range 20 {
		ch.adapt(3*time.Second, true, 25*time.Second)
	}
	if ch.wait != minPollWait {
		t.Errorf("wait %v, want the least", ch.wait)
	}
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id, err := channel.Load(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	call := func(change func(*channel.Identity)) error {
		x := *id
		change(&x)
		c, err := x.Open(x.Keypair, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Poll(t.Context(), agentapi.PollRequest{})
		return err
	}
	other := newVault(t)
	closed := newVault(t)
	closed.srv.Close()
	for name, c := range map[string]struct {
		change func(*channel.Identity)
		code   dr.Code
		kind   dr.Kind
	}{
		"Fine":        {func(*channel.Identity) {}, "", dr.KindInternal},
		"AnotherCA":   {func(x *channel.Identity) { x.CA = other.ca.PEM() }, dr.CodeVaultIdentity, dr.KindUnauthenticated},
		"AnotherHost": {func(x *channel.Identity) { x.VaultURL = strings.Replace(x.VaultURL, "127.0.0.1", "localhost", 1) }, dr.CodeVaultIdentity, dr.KindUnauthenticated},
		"NotThere":    {func(x *channel.Identity) { x.VaultURL = closed.srv.URL }, dr.CodeVaultUnreachable, dr.KindUnavailable},
		"DeadProxy": {func(x *channel.Identity) {
			x.Proxy = "http://user:geheim@" + strings.TrimPrefix(closed.srv.URL, "https://")
		}, dr.CodeVaultUnreachable, dr.KindUnavailable},
	} {
		err := call(c.change)
		if dr.CodeOf(err) != c.code || err != nil && dr.KindOf(err) != c.kind || (err == nil) != (c.code == "") {
			t.Errorf("%s: %v (%s)", name, err, dr.CodeOf(err))
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the error shows the proxy's password: %v", name, err)
		}
	}
	r.vault.change(func() { r.vault.down = true })
	if err := call(func(*channel.Identity) {}); dr.CodeOf(err) != dr.CodeVaultUnreachable || !strings.Contains(err.Error(), "503") {
		t.Errorf("a proxy's error page: %v", err)
	}
	r.vault.change(func() {
		r.vault.down = false
		r.vault.refuse[agentapi.PathPoll] = dr.New(dr.KindForbidden, dr.CodeAgentRevoked, "vault", "removed").WithHint("register again")
	})
	if err := call(func(*channel.Identity) {}); dr.CodeOf(err) != dr.CodeAgentRevoked || dr.KindOf(err) != dr.KindForbidden || dr.HintOf(err) != "register again" {
		t.Errorf("a refusal: %v", err)
	}
}

// A damaged state file never ends in guessing.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	t.Run("Assignments", func(t *testing.T) {
		t.Parallel()
		r, _, reps := withSite(t)
		if err := os.WriteFile(filepath.Join(r.dir, state.Assignments), []byte("{torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.vault.assign(r.assignment(machineA, "vm-1", 1))
		r.start()
		eventually(t, "the vault's word", func() bool { return reps.count(machineA) == 1 })
	})
	t.Run("NewerVersion", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		if err := os.WriteFile(filepath.Join(r.dir, state.Identity), []byte(`{"version":2}`), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := New(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Start(context.Background()); dr.CodeOf(err) != dr.CodeFormatUnsupported {
			t.Errorf("start: %v", err)
		}
	})
}

var _ http.Handler = (*fakeVault)(nil)
