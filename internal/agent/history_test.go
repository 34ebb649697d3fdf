package agent

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/store"
)

// history is a replica over its whole life: generations, hosts, and what every
// recovery point has to hold.
type history struct {
	*rig
	machine string
	vm      *sim.VM
	rnd     *rand.Rand
	a       agentapi.Assignment
	agent   string
	gen     uint32
	n       int // of commands
	want    map[cut.Ref]map[string][]byte
}

func newHistory(r *rig, machine, name string, size int64) *history {
	r.t.Helper()
	h := &history{rig: r, machine: machine, rnd: rand.New(rand.NewPCG(uint64(size), uint64(machine[len(machine)-1]))), agent: "agent-1", want: map[cut.Ref]map[string][]byte{}}
	h.vm = r.host.AddVM(sim.VMSpec{Name: name, Disks: []sim.DiskSpec{{ID: "vda", Size: size}}})
	h.a = r.assignment(machine, h.vm.ID(), 0)
	h.a.VMName = name
	h.a.Resync.Mode = string(dr.ResyncNow)
	return h
}

// noise writes incompressible bytes.
func (h *history) noise(disk string, off, n int64) {
	h.t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(h.rnd.Uint32())
	}
	if err := h.vm.Write(disk, off, p); err != nil {
		h.t.Fatal(err)
	}
}

// open begins the next generation, based on a cut, and gives it to an agent.
func (h *history) open(agent string, base cut.Ref, disks ...agentapi.BaseDisk) {
	h.t.Helper()
	h.gen++
	if err := store.WriteGeneration(h.t.Context(), h.vault.bucket, cut.GenInfo{Machine: dr.MachineID(h.machine), Gen: dr.Generation(h.gen), Base: base,
		Agent: dr.AgentID(agent), Reason: "test", Time: time.Now()}); err != nil {
		h.t.Fatal(err)
	}
	h.vault.change(func() { h.vault.writes[h.machine] = h.gen })
	h.a.Generation, h.a.VM, h.a.Base, h.a.BaseDisks = h.gen, string(h.vm.ID()), nil, disks
	if !base.IsZero() {
		h.a.Base = &agentapi.CutRef{Generation: uint32(base.Gen), N: base.N, Hash: base.Hash.String()}
	}
	h.agent = agent
}

func (h *history) assign() { h.vault.assignTo(h.agent, h.a) }

// command sends a command to the agent that has the replica.
func (h *history) command(kind agentapi.CommandKind) cut.Ref {
	h.t.Helper()
	h.n++
	id := fmt.Sprintf("%s-%s-%d", h.a.VMName, kind, h.n)
	h.vault.change(func() { h.vault.to[id] = h.agent })
	h.vault.command(id, kind, agentapi.MachinePayload{Machine: h.machine, Generation: h.gen})
	return pointOf(h.t, h.vault.final(id))
}

// drain makes a point of what the VM holds now.
func (h *history) drain() cut.Ref {
	h.t.Helper()
	ref := h.command(agentapi.CmdDrain)
	h.want[ref] = h.content()
	return ref
}

func (h *history) content() map[string][]byte {
	h.t.Helper()
	out := map[string][]byte{}
	for _, d := range h.a.Disks {
		b, err := h.vm.Content(d)
		if err != nil {
			h.t.Fatal(err)
		}
		out[d] = b
	}
	return out
}

// check compares all recovery points that are known with what they have to hold.
func (h *history) check() {
	h.t.Helper()
	for ref, disks := range h.want {
		view, err := h.vault.store().OpenPoint(h.t.Context(), dr.MachineID(h.machine), ref.Gen, ref.N)
		if err != nil {
			h.t.Errorf("point %s: %v", dr.PointName(ref.Gen, ref.N), err)
			continue
		}
		if len(view.Disks()) != len(disks) {
			h.t.Errorf("point %s has %d disks, want %d", dr.PointName(ref.Gen, ref.N), len(view.Disks()), len(disks))
		}
		for id, want := range disks {
			got := make([]byte, len(want))
			if err := view.ReadAt(h.t.Context(), id, got, 0); err != nil || !bytes.Equal(got, want) {
				h.t.Errorf("point %s, disk %s: not what the VM had (%v)", dr.PointName(ref.Gen, ref.N), id, err)
			}
		}
		if err := view.Close(); err != nil {
			h.t.Error(err)
		}
	}
	rep, err := h.vault.store().Verify(h.t.Context(), dr.MachineID(h.machine), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if !rep.OK() {
		h.t.Errorf("the store: %+v", rep.Verdicts)
	}
}

// shipped is how many bytes URLs were given out for.
func (h *history) shipped() int64 {
	h.vault.mu.Lock()
	defer h.vault.mu.Unlock()
	return h.vault.granted
}

// second registers another host, with the agent "agent-of-<name>".
func (r *rig) second(name string) *rig {
	r.t.Helper()
	o := &rig{t: r.t, vault: r.vault, host: sim.New(sim.Config{Name: name, NoNBD: true}), dir: r.t.TempDir(), logs: r.logs}
	o.register(name)
	o.cfg = r.cfg
	o.cfg.StateDir, o.cfg.Host = o.dir, o.host
	return o
}

func (r *rig) register(name string) {
	r.t.Helper()
	r.vault.change(func() { r.vault.keyHash = "" })
	if _, err := Register(r.t.Context(), RegisterConfig{Key: r.vault.key(), StateDir: r.dir, HostName: name, Roles: []dr.AgentRole{dr.RoleSource}}); err != nil {
		r.t.Fatal(err)
	}
}

// The host is installed again: nothing of the agent's state is left. The history
// goes on, and only what changed meanwhile travels.
func TestReinstalled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 6<<20)
	h.noise("vda", 0, 5<<20)
	h.open("agent-1", cut.Ref{})
	_, stop := r.start()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	h.drain()
	h.noise("vda", 1<<20, 8<<10)
	base := h.drain()
	stop()
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	h.noise("vda", 2<<20, 4096)
	h.noise("vda", 4<<20+512<<10, 4096)
	r.register("host")
	// Orders of the former installation are not for this one.
	h.a.ResyncRequest, h.a.Full = "old", "old"
	h.open("agent-1", base, agentapi.BaseDisk{ID: "vda", Size: 6 << 20})
	before := h.shipped()
	r.start()
	h.assign()
	h.drain()
	if got := h.shipped() - before; got > 2*cut.Block+32<<10 {
		t.Errorf("%d bytes travelled for two changed blocks", got)
	}
	if len(h.vault.digests) == 0 {
		t.Error("nothing was asked for digests")
	}
	h.check()
}

// Tracking and filter are lost while the agent is down, its state is not.
func TestTrackingAndFilterLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 6<<20)
	h.noise("vda", 0, 5<<20)
	h.open("agent-1", cut.Ref{})
	a, stop := r.start()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	h.drain()
	filters := filepath.Join(a.replicas.replicaDir(machineA), "filter")
	stop()
	if _, err := os.Stat(filters); err != nil {
		t.Fatal(err) // the test has lost its object
	}
	if err := os.RemoveAll(filters); err != nil {
		t.Fatal(err)
	}
	h.vm.Crash()
	h.vm.PowerOn()
	h.noise("vda", 3<<20, 4096)
	before := h.shipped()
	r.start()
	h.drain()
	if got := h.shipped() - before; got > cut.Block+32<<10 {
		t.Errorf("%d bytes travelled for one changed block", got)
	}
	h.check()
}

// The VM moves to another host, whose agent takes over; what the first one has
// left is removed when it is certain, and never before.
func TestMovedToAnotherHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.every.sweep = 20 * time.Millisecond
	h := newHistory(r, machineA, "db", 6<<20)
	h.noise("vda", 0, 5<<20)
	h.open("agent-1", cut.Ref{})
	old, _ := r.start()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	base := h.drain()
	two := r.second("two")
	two.start()
	vm, err := h.vm.MoveTo(two.host)
	if err != nil {
		t.Fatal(err)
	}
	h.vm = vm
	h.noise("vda", 2<<20, 4096)
	h.open("agent-of-two", base, agentapi.BaseDisk{ID: "vda", Size: 6 << 20})
	before := h.shipped()
	r.vault.assign()
	h.assign()
	h.drain()
	if got := h.shipped() - before; got > cut.Block+32<<10 {
		t.Errorf("%d bytes travelled for one changed block", got)
	}
	dir := old.replicas.replicaDir(machineA)
	eventually(t, "the first host lets go", func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
	h.noise("vda", 3<<20, 4096)
	h.drain()
	h.check()
}

// What a host keeps of a replica that it does not write any more.
func TestSweep(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after func(r *rig, vm *sim.VM) // it was unassigned
		stays bool
	}{
		"TakenOver": {func(r *rig, vm *sim.VM) {
			r.host.RemoveVM(vm.ID())
			r.vault.change(func() { r.vault.writes[machineA] = 2 })
		}, false},
		"NotTakenOver": {func(r *rig, vm *sim.VM) { r.host.RemoveVM(vm.ID()) }, true},
		"VMStillHere":  {func(r *rig, vm *sim.VM) { r.vault.change(func() { r.vault.writes[machineA] = 2 }) }, true},
		"HostDoesNotSay": {func(r *rig, vm *sim.VM) {
			r.vault.change(func() { r.vault.writes[machineA] = 2 })
			r.host.Inject(sim.Fault{Method: "Config", Err: dr.New(dr.KindUnavailable, dr.CodeHypervisorDown, "x", "down")})
			r.host.RemoveVM(vm.ID())
		}, true},
		"VaultDoesNotSay": {func(r *rig, vm *sim.VM) {
			r.host.RemoveVM(vm.ID())
			r.vault.change(func() { r.vault.refuse[agentapi.PathUploads] = dr.Errorf(dr.KindUnavailable, "vault", "busy") })
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _, reps := withSite(t)
			r.cfg.every.sweep = 10 * time.Millisecond
			vm := r.host.AddVM(sim.VMSpec{Name: "vm", Disks: []sim.DiskSpec{{ID: "vda", Size: 1 << 20}}})
			a, _ := r.start()
			r.vault.assign(r.assignment(machineA, vm.ID(), 1))
			eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
			r.vault.assign()
			eventually(t, "the end", func() bool { return reps.count(machineA) == 0 })
			c.after(r, vm)
			removed := func() bool {
				reps.mu.Lock()
				defer reps.mu.Unlock()
				return slices.Contains(reps.removed, machineA)
			}
			if c.stays {
				time.Sleep(150 * time.Millisecond) // some 10 sweeps
				if removed() {
					t.Error("it was removed")
				}
				return
			}
			eventually(t, "it is removed", removed)
			eventually(t, "it is forgotten", func() bool {
				a.replicas.mu.Lock()
				defer a.replicas.mu.Unlock()
				return len(a.replicas.file.VMs)+len(a.replicas.file.Gens)+len(a.replicas.file.Marks) == 0
			})
		})
	}
}

// Disks come, go and grow while the history goes on.
func TestDisksChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 2<<20)
	h.noise("vda", 0, 1<<20)
	h.open("agent-1", cut.Ref{})
	a, stop := r.start()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	h.drain()
	retry := func(what string, do func() error) {
		t.Helper()
		eventually(t, what, func() bool { return do() == nil }) // not while a cut is open
	}
	shape := func(disks ...string) {
		t.Helper()
		h.a.Disks = disks
		h.assign()
		eventually(t, "points with "+strings.Join(disks, ","), func() bool {
			ref := h.command(agentapi.CmdDrain)
			c, err := h.vault.store().ReadCut(t.Context(), dr.MachineID(h.machine), ref.Gen, ref.N)
			if err != nil {
				t.Fatal(err)
			}
			return len(c.Commit.Disks) == len(disks)
		})
		h.drain()
	}
	retry("a disk is added", func() error { return h.vm.AddDisk(sim.DiskSpec{ID: "vdb", Size: 1 << 20}) })
	h.noise("vdb", 0, 256<<10)
	shape("vda", "vdb")
	retry("a disk grows", func() error { return h.vm.Grow("vdb", 3<<20) })
	h.noise("vdb", 2<<20, 4096)
	shape("vda", "vdb")
	retry("a disk is removed", func() error { return h.vm.RemoveDisk("vda") })
	shape("vdb")
	// A host without state goes on with the right numbers of the disks.
	base := h.drain()
	stop()
	if err := os.RemoveAll(a.replicas.replicaDir(machineA)); err != nil {
		t.Fatal(err)
	}
	h.noise("vdb", 1<<20, 4096)
	h.open("agent-1", base, agentapi.BaseDisk{ID: "vda", Index: 0}, agentapi.BaseDisk{ID: "vdb", Index: 1, Size: 3 << 20})
	before := h.shipped()
	r.start()
	h.assign()
	shape("vdb")
	if got := h.shipped() - before; got > cut.Block+64<<10 {
		t.Errorf("%d bytes travelled for one changed block", got)
	}
	h.check()
}

// A resynchronization waits for its window, is seen waiting, and runs when the
// policy says so, or an operator.
func TestResyncWindow(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"Policy", "Operator", "Window"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := newHistory(r, machineA, "db", 2<<20)
			h.noise("vda", 0, 1<<20)
			h.open("agent-1", cut.Ref{})
			a, _ := r.start()
			h.a.Resync = agentapi.Resync{Mode: "window", Window: later(3)}
			h.assign()
			h.command(agentapi.CmdAwaitInitial)
			h.drain()
			eventually(t, "tracking is lost", func() bool { h.vm.LoseTracking(); return a.Status()[0].Resync != "" })
			eventually(t, "it waits", func() bool { s := a.Status()[0]; return !s.NextResync.IsZero() })
			s := a.Status()[0]
			if s.ResyncCode != string(dr.CodeTrackingLost) || s.Phase != "resync" || time.Until(s.NextResync) < time.Hour || time.Until(s.NextResync) > 4*time.Hour {
				t.Errorf("status %+v", s)
			}
			switch by {
			case "Policy":
				h.a.Resync.Mode = "now"
			case "Operator":
				h.a.ResyncRequest = "r1"
			case "Window":
				h.a.Resync.Window = later(-1)
			}
			h.assign()
			eventually(t, "it is done", func() bool { return a.Status()[0].Resync == "" })
			h.noise("vda", 0, 4096)
			h.drain()
			h.check()
		})
	}
}

// later is a window of two hours that opens so many hours from now.
func later(hours int) string {
	at := time.Now().UTC().Add(time.Duration(hours) * time.Hour)
	return at.Format("15:04") + "-" + at.Add(2*time.Hour).Format("15:04") + " UTC"
}

// The replica begins with a seed: it is compared, and the first cut is the first point.
func TestSeeded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 6<<20)
	h.noise("vda", 0, 5<<20)
	h.open("agent-1", cut.Ref{})
	a, stop := r.start()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	// The agent may begin with the list of the time before: what it then says of the
	// old generation is not the answer to a command of the new one.
	seed := h.drain() // stands for who loads the seed
	h.want = map[cut.Ref]map[string][]byte{}
	stop()
	if err := os.RemoveAll(a.replicas.replicaDir(machineA)); err != nil {
		t.Fatal(err)
	}
	h.vm.LoseTracking()
	h.noise("vda", 1<<20, 4096)
	h.a.Seeded = true
	h.open("agent-1", seed, agentapi.BaseDisk{ID: "vda", Size: 6 << 20})
	before := h.shipped()
	r.start()
	h.assign()
	if ref := h.command(agentapi.CmdAwaitInitial); ref == seed {
		t.Error("the seed counts as a recovery point")
	}
	if got := h.shipped() - before; got > cut.Block+32<<10 {
		t.Errorf("%d bytes travelled for one changed block", got)
	}
	h.drain()
	h.check()
}

// Two VMs of a consistency group are cut at one instant: what one wrote because
// of the other is never in a point without its cause.
func TestGroup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	web, db := newHistory(r, machineA, "web", 1<<20), newHistory(r, machineB, "db", 1<<20)
	web.open("agent-1", cut.Ref{})
	db.open("agent-1", cut.Ref{})
	_, stop := r.start()
	r.vault.assign(web.a, db.a)
	web.command(agentapi.CmdAwaitInitial)
	db.command(agentapi.CmdAwaitInitial)
	group := &agentapi.Group{ID: "g1", Members: []string{machineA, machineB}}
	web.a.Group, db.a.Group = group, group // while they run
	r.vault.assign(web.a, db.a)

	// The count in db follows the one in web.
	ctx, cancel := context.WithCancel(t.Context())
	wrote := make(chan error, 1)
	go func() {
		defer close(wrote)
		for n := byte(1); ctx.Err() == nil; n++ {
			p := bytes.Repeat([]byte{n}, 4096)
			if err := web.vm.Write("vda", 0, p); err != nil {
				wrote <- err
				return
			}
			if err := db.vm.Write("vda", 0, p); err != nil {
				wrote <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	instants := func() map[uint64][]store.CutInfo {
		out := map[uint64][]store.CutInfo{}
		for _, m := range []string{machineA, machineB} {
			chain, err := r.vault.store().Chain(t.Context(), dr.MachineID(m))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range chain.Points {
				if g := c.Commit.Group; g != nil && g.ID == "g1" {
					out[g.Seq] = append(out[g.Seq], c)
				}
			}
		}
		for seq, cuts := range out {
			if len(cuts) < 2 {
				delete(out, seq)
			}
		}
		return out
	}
	eventually(t, "points of the group", func() bool { return len(instants()) >= 2 })
	cancel()
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	stop()
	for seq, cuts := range instants() {
		var n [2]int
		for i, c := range cuts {
			m := []string{machineA, machineB}[i]
			view, err := r.vault.store().OpenPoint(t.Context(), dr.MachineID(m), c.Ref.Gen, c.Ref.N)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1)
			if err := view.ReadAt(t.Context(), "vda", b, 0); err != nil {
				t.Fatal(err)
			}
			n[i] = int(b[0])
			view.Close()
		}
		if d := byte(n[0] - n[1]); d > 1 {
			t.Errorf("instant %d: web had counted to %d, db to %d", seq, n[0], n[1])
		}
	}
}

// noGroups is a host that can't cut several VMs at one instant.
type noGroups struct{ hypervisor.Host }

func TestGroupWithoutTheHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 1<<20)
	h.open("agent-1", cut.Ref{})
	r.cfg.Host = noGroups{r.host}
	a, _ := r.start()
	h.a.Group = &agentapi.Group{ID: "g1", Members: []string{machineA, machineB}}
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	s := a.Status()[0]
	if s.Error == nil || s.Error.Code != string(dr.CodeGroupIncomplete) || s.Error.Hint == "" || s.Phase == "error" || s.Since.IsZero() {
		t.Errorf("status %+v %+v", s, s.Error)
	}
	h.noise("vda", 0, 4096)
	h.drain()
	h.check()
	h.a.Group = nil
	h.assign()
	eventually(t, "the error goes", func() bool { s := a.Status(); return len(s) == 1 && s[0].Error == nil && s[0].Phase == "delta" })
}

// A limit of the policy holds for its items together, and changes at once.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := newHistory(r, machineA, "db", 4<<20)
	h.noise("vda", 0, 2<<20)
	h.open("agent-1", cut.Ref{})
	r.cfg.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 100 << 20}}
	a, _ := r.start()
	h.a.Bandwidth = &agentapi.Bandwidth{Group: "gold", Rules: []agentapi.BandwidthRule{{Window: later(3), BytesPerSecond: 64 << 10}, {BytesPerSecond: 2 << 20}}}
	began := time.Now()
	h.assign()
	h.command(agentapi.CmdAwaitInitial)
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("2 MiB took %v at 2 MiB/s", took)
	}
	if got := a.replicas.limits.Rate(machineA); got != 2<<20 {
		t.Errorf("the rate is %d", got)
	}
	h.a.Bandwidth.Rules = h.a.Bandwidth.Rules[:1] // closed for hours: the agent's own limit is left
	h.assign()
	eventually(t, "the new rule", func() bool { return a.replicas.limits.Rate(machineA) == 100<<20 })
	h.drain()
	h.check()
	if s := a.Status()[0]; s.SentBytes < 2<<20 {
		t.Errorf("sent %d bytes", s.SentBytes)
	}
}

// An assignment that can't be used is that item's error; others go on.
func TestUnusableAssignment(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	a, _ := r.start()
	bad := r.assignment(machineA, "vm-1", 1)
	bad.Resync.Window = "tomorrow"
	r.vault.assign(bad, r.assignment(machineB, "vm-2", 1))
	eventually(t, "the other one", func() bool { return reps.count(machineB) == 1 })
	eventually(t, "its error", func() bool {
		s := a.Status()
		return len(s) == 2 && s[0].Error != nil && s[0].Error.Code == string(dr.CodeWindowInvalid) && s[0].Phase == "error" && s[1].Error == nil
	})
	r.vault.command("start", agentapi.CmdStartReplication, agentapi.MachinePayload{Machine: machineA, Generation: 1})
	if f := r.vault.final("start"); f.State != stateFailed || f.Error.Code != string(dr.CodeWindowInvalid) || !strings.Contains(f.Error.Message, machineA) {
		t.Errorf("start: %+v %+v", f, f.Error)
	}
	bad.Resync.Window = ""
	r.vault.assign(bad, r.assignment(machineB, "vm-2", 1))
	eventually(t, "it is good", func() bool { s := a.Status(); return len(s) == 2 && s[0].Error == nil })
}

// One-time orders are carried out once, also over a restart.
func TestOneTimeOrders(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	_, stop := r.start()
	x := r.assignment(machineA, "vm-1", 1)
	r.vault.assign(x)
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	x.RetryNow = "t1"
	r.vault.assign(x)
	eventually(t, "the retry", func() bool {
		f := reps.last()
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.retries == 1
	})
	full := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprint("full ", want), func() bool {
			got := reps.last().assigned()
			return len(got) > 0 && got[len(got)-1].ResyncFull == want && got[len(got)-1].ResyncRequest != ""
		})
	}
	x.ResyncRequest = "r1"
	r.vault.assign(x)
	full(false)
	x.Full = "f1"
	r.vault.assign(x)
	full(true)
	first := reps.last()
	before := first.assigned()
	stop()
	r.start()
	eventually(t, "the next process", func() bool { return reps.last() != first })
	full(true) // capture knows that it has done this one
	if got := reps.last().assigned()[0]; got.ResyncRequest != before[len(before)-1].ResyncRequest {
		t.Errorf("another request after a restart: %q", got.ResyncRequest)
	}
	x.ResyncRequest = "r2"
	r.vault.assign(x)
	eventually(t, "the next request", func() bool { return len(reps.last().assigned()) == 2 })
	full(false)
}

// The list of version 1 is read, and what it says is followed.
func TestAssignmentsOfVersion1(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	key := r.vault.private.Public().Text()
	old := `{"version":1,"agent":"agent-1","known":"7","list":[{"item":"i","machine":"` + machineA + `","vm":"vm-1","vmName":"vm","disks":["vda"],"generation":3,
		"copyFrequencySeconds":300,"resyncRequest":"r1","vaultPublicKey":"` + key + `"}],"vms":{"` + machineA + `":"vm-1"},"stopped":{}}`
	if err := os.WriteFile(filepath.Join(r.dir, state.Assignments), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	r.vault.change(func() { r.vault.down = true })
	r.start()
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	got := reps.last().assigned()[0]
	if got.Gen != 3 || got.CopyFrequency != 5*time.Minute || got.ResyncRequest != "r1" || got.ResyncFull {
		t.Errorf("assigned %+v", got)
	}
	r.vault.change(func() { r.vault.down = false })
	r.vault.assign(r.assignment(machineA, "vm-1", 4))
	eventually(t, "it is written again", func() bool {
		b, err := os.ReadFile(filepath.Join(r.dir, state.Assignments))
		return err == nil && strings.Contains(string(b), `"version": 2`) && strings.Contains(string(b), `"gens"`)
	})
}
