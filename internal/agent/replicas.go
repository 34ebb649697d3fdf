package agent

import (
	"context"
	"encoding/hex"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/upload"
)

// replicator is what the agent needs of a *capture.Replicator.
type replicator interface {
	Assign(a capture.Assignment)
	Kick()
	Run(ctx context.Context) error
	Status() capture.Status
	AwaitInitial(ctx context.Context) (cut.Ref, time.Time, error)
	Drain(ctx context.Context) (cut.Ref, time.Time, error)
	Remove(ctx context.Context, vm dr.VMID) error
}

// vaultCommits takes commit notices; *channel.Client does.
type vaultCommits interface {
	Commit(ctx context.Context, r agentapi.CommitRequest) (agentapi.CommitResponse, error)
}

// assignmentsFile is assignments.json.
type assignmentsFile struct {
	state.Header
	Agent   string                `json:"agent"`   // whom the vault gave them to
	Known   string                `json:"known"`   // the vault's version of the list
	List    []agentapi.Assignment `json:"list"`    // as the vault last said
	VMs     map[string]string     `json:"vms"`     // machine → VM of every replica that has state here
	Stopped map[string]uint32     `json:"stopped"` // machine → generation up to which a command has ended it
}

// replicas runs one replicator for each assignment and keeps the list on disk.
type replicas struct {
	dir     string // of the agent's state
	make    func(capture.Config) (replicator, error)
	base    capture.Config // what all replicators share
	up      *upload.Uploader
	commits vaultCommits
	log     *slog.Logger
	restart time.Duration // before a replicator that failed is run again

	ctx context.Context // of the replicators; set by open
	wg  sync.WaitGroup

	mu      sync.Mutex
	file    assignmentsFile
	live    map[string]*replica
	ending  map[string]chan struct{} // closed when an ended replica has let go of its state
	changed chan struct{}            // closed and replaced whenever live changes
}

// replica is one assignment at work.
type replica struct {
	owner *replicas
	sink  *upload.Sink
	stop  context.CancelCauseFunc
	ctx   context.Context
	done  chan struct{}

	mu      sync.Mutex
	a       agentapi.Assignment
	rep     replicator // nil until it could be made
	err     error      // why there is none, or why it ended
	since   time.Time  // of err
	notices []cut.Ref
	notice  chan struct{}
}

// maxNotices bounds the notices that wait for the vault, which finds lost ones itself.
const maxNotices = 10_000

// open loads the list and starts what is on it.
func (r *replicas) open(ctx context.Context, agent string) error {
	r.ctx = ctx
	r.live, r.ending, r.changed = map[string]*replica{}, map[string]chan struct{}{}, make(chan struct{})
	err := state.Load(filepath.Join(r.dir, state.Assignments), &r.file)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		// The vault will say it again; what is in the replicas' directories stays.
		if dr.KindOf(err) != dr.KindCorrupt {
			return err
		}
		r.log.Error("the list of assignments can't be read: waiting for the vault", "err", err)
		r.file = assignmentsFile{}
	}
	if r.file.Agent != agent {
		r.file.Known, r.file.List, r.file.Stopped = "", nil, nil
	}
	r.file.Header, r.file.Agent = state.Current(), agent
	if r.file.VMs == nil {
		r.file.VMs = map[string]string{}
	}
	if r.file.Stopped == nil {
		r.file.Stopped = map[string]uint32{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.follow()
	return nil
}

// known is the version of the list that the agent has.
func (r *replicas) known() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Known
}

// apply takes over a complete list.
func (r *replicas) apply(version string, list []agentapi.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.Known, r.file.List = version, list
	listed := map[string]bool{}
	for _, a := range list {
		listed[a.Machine] = true
	}
	maps.DeleteFunc(r.file.Stopped, func(m string, _ uint32) bool { return !listed[m] })
	r.follow()
	r.save()
}

// save stores the list. A failure is no reason not to follow it: the vault is asked again after a restart.
func (r *replicas) save() {
	if err := state.Save(filepath.Join(r.dir, state.Assignments), &r.file); err != nil {
		r.log.Error("assignments are not stored", "err", err, "hint", dr.HintOf(err))
	}
}

// follow makes what runs equal to the list. The caller holds mu.
func (r *replicas) follow() {
	want := map[string]agentapi.Assignment{}
	for _, a := range r.file.List {
		if gen, stopped := r.file.Stopped[a.Machine]; !stopped || a.Generation > gen {
			want[a.Machine] = a
		}
	}
	for m, rep := range r.live {
		if _, ok := want[m]; !ok {
			r.log.Info("replication ends", "machine", m)
			r.end(m, rep)
		}
	}
	for m, a := range want {
		if m != filepath.Base(m) || m == "" || m[0] == '.' {
			r.log.Error("assignment of a machine without a usable id is ignored", "machine", m)
			continue
		}
		if rep := r.live[m]; rep != nil {
			rep.assign(a)
			continue
		}
		r.start(a)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// start runs a new replica once its predecessor has let go. The caller holds mu.
func (r *replicas) start(a agentapi.Assignment) {
	m := a.Machine
	r.log.Info("replication begins", "machine", m, "vm", a.VMName, "generation", a.Generation)
	// State of other replicas of the VM is of no use any more: their tracking goes with this one's first cut.
	var old []string
	var before []chan struct{}
	for other, vm := range r.file.VMs {
		if other != m && vm == a.VM && r.live[other] == nil && !r.listed(other) {
			old = append(old, other)
			delete(r.file.VMs, other)
			before = append(before, r.ending[other])
			delete(r.ending, other)
		}
	}
	r.file.VMs[m] = a.VM
	before = append(before, r.ending[m])
	delete(r.ending, m)
	rep := &replica{owner: r, a: a, sink: r.up.Sink(dr.MachineID(m), dr.Generation(a.Generation)), done: make(chan struct{}), notice: make(chan struct{}, 1)}
	rep.ctx, rep.stop = context.WithCancelCause(r.ctx)
	r.live[m] = rep
	r.wg.Go(func() {
		defer close(rep.done)
		for _, ch := range before {
			if ch != nil {
				<-ch
			}
		}
		for _, other := range old {
			if err := os.RemoveAll(r.replicaDir(other)); err != nil {
				r.log.Warn("state of a former replica stays", "machine", other, "err", err)
			}
		}
		rep.run()
	})
}

func (r *replicas) listed(machine string) bool {
	for _, a := range r.file.List {
		if a.Machine == machine {
			return true
		}
	}
	return false
}

// end stops a replica without waiting for it. The caller holds mu.
func (r *replicas) end(machine string, rep *replica) {
	rep.stop(errEnded)
	delete(r.live, machine)
	r.ending[machine] = rep.done
}

var errEnded = dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "agent.replica", "this host does not replicate the VM any more")

func (r *replicas) replicaDir(machine string) string {
	return filepath.Join(r.dir, state.Replicas, machine)
}

// config of a replicator.
func (r *replicas) config(machine string, sink capture.Sink) capture.Config {
	c := r.base
	c.Machine, c.Dir, c.Sink, c.Log = dr.MachineID(machine), r.replicaDir(machine), sink, r.log
	return c
}

// remove ends a replica and deletes its tokens at the hypervisor and its local
// state. Idempotent; after an error it can be repeated.
func (r *replicas) remove(ctx context.Context, machine string, gen uint32) error {
	if machine == "" || machine != filepath.Base(machine) || machine[0] == '.' {
		return dr.Errorf(dr.KindInvalid, "agent.stopReplication", "%q is not the id of a machine", machine)
	}
	r.mu.Lock()
	r.file.Stopped[machine] = max(gen, r.file.Stopped[machine])
	if rep := r.live[machine]; rep != nil {
		r.log.Info("replication ends for good", "machine", machine)
		r.end(machine, rep)
		close(r.changed)
		r.changed = make(chan struct{})
	}
	vm, known := r.file.VMs[machine]
	before := r.ending[machine]
	r.save()
	r.mu.Unlock()
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if !known {
		return nil // never begun here, or removed before
	}
	cfg := r.config(machine, r.up.Sink(dr.MachineID(machine), dr.Generation(gen)))
	rep, err := r.make(cfg)
	if err != nil {
		return err
	}
	if err := rep.Remove(ctx, dr.VMID(vm)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.file.VMs, machine)
	r.save()
	return nil
}

// wait returns the replica of a machine in a generation not older than gen,
// waiting for its assignment until ctx ends.
func (r *replicas) wait(ctx context.Context, machine string, gen uint32) (*replica, error) {
	for {
		r.mu.Lock()
		rep, changed := r.live[machine], r.changed
		r.mu.Unlock()
		if rep != nil && rep.assignment().Generation >= gen {
			return rep, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "agent.replica", "this host is not assigned generation %d of machine %s", gen, machine)
		}
	}
}

// kick makes the replicators of a VM look now; vm "" means all.
func (r *replicas) kick(vm dr.VMID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rep := range r.live {
		if x := rep.current(); x != nil && (vm == "" || rep.assignment().VM == string(vm)) {
			x.Kick()
		}
	}
}

// status of all replicas, in the list's order.
func (r *replicas) status() []agentapi.ItemStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []agentapi.ItemStatus
	for _, a := range r.file.List {
		if rep := r.live[a.Machine]; rep != nil {
			out = append(out, rep.status())
		}
	}
	return out
}

func (rep *replica) assignment() agentapi.Assignment {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.a
}

func (rep *replica) current() replicator {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.rep
}

// assign passes a changed assignment on.
func (rep *replica) assign(a agentapi.Assignment) {
	rep.mu.Lock()
	same := reflect.DeepEqual(rep.a, a)
	rep.a = a
	x := rep.rep
	rep.mu.Unlock()
	if same || x == nil {
		return
	}
	rep.sink.SetGeneration(dr.Generation(a.Generation))
	ca, err := captureAssignment(a)
	if err != nil {
		rep.fail(err)
		return
	}
	rep.fail(nil)
	x.Assign(ca)
}

func (rep *replica) fail(err error) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if err != nil && rep.err == nil {
		rep.since = time.Now()
	}
	rep.err = err
}

// run runs replicators, one after the other if one fails, until the replica ends.
func (rep *replica) run() {
	var notices sync.WaitGroup
	notices.Go(rep.tell)
	defer notices.Wait()
	for rep.ctx.Err() == nil {
		err := rep.runOnce()
		if rep.ctx.Err() != nil {
			return
		}
		if err == nil {
			err = dr.Errorf(dr.KindInternal, "agent.replica", "the replicator ended by itself")
		}
		rep.fail(err)
		rep.owner.log.Error("replicator ended; it is started again", "machine", rep.assignment().Machine, "err", err, "hint", dr.HintOf(err), "in", rep.owner.restart)
		if sleep(rep.ctx, rep.owner.restart) != nil {
			return
		}
	}
}

func (rep *replica) runOnce() error {
	cfg := rep.owner.config(rep.assignment().Machine, rep.sink)
	cfg.Committed = rep.committed
	x, err := rep.owner.make(cfg)
	if err != nil {
		return err
	}
	rep.mu.Lock()
	a := rep.a
	ca, err := captureAssignment(a)
	if err == nil {
		// Under the lock, so that a later assignment comes later.
		rep.sink.SetGeneration(dr.Generation(a.Generation))
		x.Assign(ca)
		rep.err = nil
	}
	rep.rep = x
	rep.mu.Unlock()
	if err != nil {
		rep.fail(err)
		rep.owner.log.Error("assignment can't be used", "machine", a.Machine, "err", err)
	}
	return x.Run(rep.ctx)
}

// committed queues a notice; it does not block.
func (rep *replica) committed(ref cut.Ref) {
	rep.mu.Lock()
	rep.notices = append(rep.notices, ref)
	if n := len(rep.notices); n > maxNotices {
		rep.notices = rep.notices[n-maxNotices:]
	}
	rep.mu.Unlock()
	select {
	case rep.notice <- struct{}{}:
	default:
	}
}

// tell announces committed cuts to the vault, in order. A notice that does not
// arrive costs nothing but time: the vault finds the cut in the store.
func (rep *replica) tell() {
	var pause backoff
	for {
		rep.mu.Lock()
		var next cut.Ref
		have := len(rep.notices) > 0
		if have {
			next = rep.notices[0]
		}
		machine := rep.a.Machine
		rep.mu.Unlock()
		if !have {
			select {
			case <-rep.notice:
			case <-rep.ctx.Done():
				return
			}
			continue
		}
		_, err := rep.owner.commits.Commit(rep.ctx, agentapi.CommitRequest{Machine: machine, Generation: uint32(next.Gen), N: next.N})
		if rep.ctx.Err() != nil {
			return
		}
		if err != nil && temporary(err) {
			if sleep(rep.ctx, pause.next()) != nil {
				return
			}
			continue
		}
		if err != nil {
			rep.owner.log.Warn("the vault does not list a committed cut", "machine", machine, "point", dr.PointName(next.Gen, next.N), "err", err)
		}
		pause = backoff{}
		rep.mu.Lock()
		if len(rep.notices) > 0 && rep.notices[0] == next {
			rep.notices = rep.notices[1:]
		}
		rep.mu.Unlock()
	}
}

// attached derives a context that also ends with the replica.
func (rep *replica) attached(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(rep.ctx, func() { cancel(context.Cause(rep.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// running returns the replicator, waiting until there is one.
func (rep *replica) running(ctx context.Context) (replicator, error) {
	for {
		rep.mu.Lock()
		x, err := rep.rep, rep.err
		rep.mu.Unlock()
		if x != nil {
			return x, nil
		}
		if serr := sleep(ctx, 50*time.Millisecond); serr != nil {
			if err != nil {
				return nil, err
			}
			return nil, serr
		}
	}
}

func (rep *replica) status() agentapi.ItemStatus {
	rep.mu.Lock()
	a, x, err, since := rep.a, rep.rep, rep.err, rep.since
	rep.mu.Unlock()
	out := agentapi.ItemStatus{Machine: a.Machine, Generation: a.Generation, Phase: string(capture.PhaseWaiting)}
	if x != nil {
		s := x.Status()
		out.Phase, out.Percent, out.BytesDone, out.BytesTotal, out.ETASeconds = string(s.Phase), s.Percent, s.BytesDone, s.BytesTotal, s.ETA.Seconds()
		out.BacklogBytes, out.SpooledBytes, out.LastCut, out.Cycles, out.Missed, out.Resync = s.Backlog, s.Spooled, s.LastCut, s.Cycles, s.Missed, s.Resync
		if s.Err != nil {
			out.Error, out.Since = channel.WireError(s.Err), s.Since
		}
	}
	if err != nil {
		out.Phase, out.Error, out.Since = string(capture.PhaseError), channel.WireError(err), since
	}
	return out
}

// captureAssignment translates the wire's form.
func captureAssignment(a agentapi.Assignment) (capture.Assignment, error) {
	const op = "agent.assignment"
	out := capture.Assignment{VM: dr.VMID(a.VM), Disks: a.Disks, Gen: dr.Generation(a.Generation), CopyFrequency: time.Duration(a.CopyFrequencySeconds) * time.Second,
		AppFrequency: time.Duration(a.AppFrequencySeconds) * time.Second, Paused: a.Paused, ResyncRequest: a.ResyncRequest}
	if out.CopyFrequency < dr.MinCopyFrequency {
		out.CopyFrequency = dr.MinCopyFrequency
	}
	if a.Base != nil {
		b, err := hex.DecodeString(a.Base.Hash)
		if err != nil || len(b) != len(out.Base.Hash) {
			return out, dr.Errorf(dr.KindInvalid, op, "the vault's base %s of machine %s has no valid hash", dr.PointName(dr.Generation(a.Base.Generation), a.Base.N), a.Machine)
		}
		out.Base = cut.Ref{Gen: dr.Generation(a.Base.Generation), N: a.Base.N, Hash: cut.Hash(b)}
	}
	var err error
	if out.VaultKey, err = cut.ParseVaultPublicKey(a.VaultPublicKey); err != nil {
		return out, err
	}
	return out, nil
}
