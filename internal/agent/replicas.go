package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/agent/assignment"
	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/pace"
	"holdfast/internal/upload"
)

// replicator is what the agent needs of a *capture.Replicator.
type replicator interface {
	Assign(a capture.Assignment)
	Kick()
	RetryNow()
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
	state.AssignmentsHeader
	Agent   string                `json:"agent"`   // whom the vault gave them to
	Known   string                `json:"known"`   // the vault's version of the list
	List    []agentapi.Assignment `json:"list"`    // as the vault last said
	VMs     map[string]string     `json:"vms"`     // machine → VM of every replica that has state here
	Stopped map[string]uint32     `json:"stopped"` // machine → generation up to which a command has ended it

	Gens  map[string]uint32          `json:"gens"`  // machine → newest generation that was assigned here, as long as there is state
	Marks map[string]assignment.Mark `json:"marks"` // machine → its one-time orders
}

// replicas runs one replicator for each assignment and keeps the list on disk.
type replicas struct {
	dir     string // of the agent's state
	make    func(capture.Config) (replicator, error)
	base    capture.Config // what all replicators share
	up      *upload.Uploader
	limits  *assignment.Limits
	groups  *assignment.Groups
	commits vaultCommits
	digests channel.DigestSource
	log     *slog.Logger
	restart time.Duration // before a replicator that failed is run again

	ctx context.Context // of the replicators; set by open
	wg  sync.WaitGroup

	mu      sync.Mutex
	file    assignmentsFile
	live    map[string]*replica
	ending  map[string]chan struct{} // closed when an ended replica has let go of its state
	changed chan struct{}            // closed and replaced whenever live changes
	gone    map[string]bool          // machines whose VM the last sweep did not find at the host
}

// replica is one assignment at work.
type replica struct {
	owner *replicas
	sink  *upload.Sink
	stop  context.CancelCauseFunc
	ctx   context.Context
	done  chan struct{}

	sent atomic.Int64 // bytes that got stored

	orders sync.Mutex // held while an assignment is passed on; taken before mu

	mu      sync.Mutex
	a       agentapi.Assignment
	mark    assignment.Mark
	rep     replicator              // nil until it could be made
	again   context.CancelCauseFunc // ends the present replicator, so that another is made
	err     error                   // why there is none, or why it ended
	since   time.Time               // of err
	partial trouble
	notices []cut.Ref
	notice  chan struct{}
}

// trouble is what an item can't have while the rest of it goes on.
type trouble struct {
	group error // consistency points
	since time.Time
	shown string // what the status showed last of it
}

// maxNotices bounds the notices that wait for the vault, which finds lost ones itself.
const maxNotices = 10_000

// open loads the list and starts what is on it.
func (r *replicas) open(ctx context.Context, agent string) error {
	r.ctx = ctx
	r.live, r.ending, r.changed, r.gone = map[string]*replica{}, map[string]chan struct{}{}, make(chan struct{}), map[string]bool{}
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
	r.file.AssignmentsHeader, r.file.Agent = state.CurrentAssignments(), agent
	if r.file.VMs == nil {
		r.file.VMs = map[string]string{}
	}
	if r.file.Stopped == nil {
		r.file.Stopped = map[string]uint32{}
	}
	if r.file.Gens == nil {
		r.file.Gens = map[string]uint32{}
	}
	if r.file.Marks == nil { // version 1: what is listed has been carried out or is known to capture
		r.file.Marks = map[string]assignment.Mark{}
		for _, a := range r.file.List {
			r.file.Marks[a.Machine] = assignment.Mark{Full: a.Full}
		}
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
	groups, machines := map[string]bool{}, map[string]bool{}
	for m, a := range want {
		if m != filepath.Base(m) || m == "" || m[0] == '.' {
			r.log.Error("assignment of a machine without a usable id is ignored", "machine", m)
			continue
		}
		mark, known := r.file.Marks[m]
		if mark = mark.Next(a); !known {
			mark = assignment.First(a)
		}
		r.file.Marks[m], r.file.Gens[m] = mark, a.Generation
		groups[groupID(a)], machines[m] = true, true
		if rep := r.live[m]; rep != nil {
			rep.assign(a, mark)
			continue
		}
		r.start(a, mark)
	}
	r.groups.Keep(groups)
	r.limits.Keep(machines)
	close(r.changed)
	r.changed = make(chan struct{})
}

// start runs a new replica once its predecessor has let go. The caller holds mu.
func (r *replicas) start(a agentapi.Assignment, mark assignment.Mark) {
	m := a.Machine
	r.log.Info("replication begins", "machine", m, "vm", a.VMName, "generation", a.Generation)
	// State of other replicas of the VM is of no use any more: their tracking goes with this one's first cut.
	var old []string
	var before []chan struct{}
	for other, vm := range r.file.VMs {
		if other != m && vm == a.VM && r.live[other] == nil && !r.listed(other) {
			old = append(old, other)
			r.forget(other)
			before = append(before, r.ending[other])
			delete(r.ending, other)
		}
	}
	r.file.VMs[m] = a.VM
	before = append(before, r.ending[m])
	delete(r.ending, m)
	rep := &replica{owner: r, a: a, mark: mark, sink: r.up.Sink(dr.MachineID(m), dr.Generation(a.Generation)), done: make(chan struct{}), notice: make(chan struct{}, 1)}
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

// forget removes what the list remembers of a machine without state here. The caller holds mu.
func (r *replicas) forget(machine string) {
	delete(r.file.VMs, machine)
	delete(r.file.Gens, machine)
	delete(r.file.Marks, machine)
	delete(r.gone, machine)
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
	r.forget(machine)
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

// groupID of an assignment; "" = none.
func groupID(a agentapi.Assignment) string {
	if a.Group == nil {
		return ""
	}
	return a.Group.ID
}

// errAgain ends a replicator that has to be made again.
var errAgain = errors.New("the replicator is made again")

// assign passes a changed assignment on.
func (rep *replica) assign(a agentapi.Assignment, mark assignment.Mark) {
	rep.orders.Lock()
	defer rep.orders.Unlock()
	rep.mu.Lock()
	old := rep.a
	same := reflect.DeepEqual(old, a) && rep.mark == mark
	rep.a, rep.mark = a, mark
	x, again := rep.rep, rep.again
	if groupID(old) != groupID(a) && again != nil {
		rep.rep, rep.again = nil, nil // who waits for the replicator waits for the next one
	}
	rep.mu.Unlock()
	switch {
	case groupID(old) != groupID(a) && again != nil:
		again(errAgain)
		return
	case same || x == nil:
		return
	}
	if err := rep.order(x, a, mark); err != nil {
		return
	}
	if a.RetryNow != old.RetryNow && a.RetryNow != "" {
		x.RetryNow()
	}
}

// unusable is why the present assignment can't be used; nil if it can.
func (rep *replica) unusable() error {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if dr.KindOf(rep.err) == dr.KindInvalid {
		return rep.err
	}
	return nil
}

// order gives a replicator its assignment. One that can't be used is the item's
// error; the replicator goes on with what it had.
func (rep *replica) order(x replicator, a agentapi.Assignment, mark assignment.Mark) error {
	ca, err := assignment.Translate(a, mark)
	var limit *pace.Limiter
	if err == nil {
		limit, err = rep.owner.limits.Item(a)
	}
	rep.fail(err)
	if err != nil {
		rep.owner.log.Error("assignment can't be used", "machine", a.Machine, "err", err, "hint", dr.HintOf(err))
		return err
	}
	rep.sink.SetLimit(limit)
	rep.sink.SetGeneration(dr.Generation(a.Generation))
	x.Assign(ca)
	return nil
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
		if errors.Is(err, errAgain) {
			continue
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
	a := rep.assignment()
	cfg := rep.owner.config(a.Machine, counted{rep.sink, &rep.sent})
	cfg.Committed = rep.committed
	cfg.Digests = &channel.Digests{Source: rep.owner.digests, Machine: cfg.Machine, Generation: func() uint32 { return rep.assignment().Generation }}
	var grouped error
	if cfg.Group, grouped = rep.owner.groups.Of(a); grouped != nil {
		rep.owner.log.Error("the VM is not part of its consistency group's points", "machine", a.Machine, "err", grouped, "hint", dr.HintOf(grouped))
	}
	x, err := rep.owner.make(cfg)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(rep.ctx)
	defer stop(nil)
	rep.orders.Lock() // a later assignment comes later
	rep.mu.Lock()
	if groupID(rep.a) != groupID(a) {
		rep.mu.Unlock()
		rep.orders.Unlock()
		return errAgain
	}
	a, mark := rep.a, rep.mark
	rep.rep, rep.again, rep.partial.group = x, stop, grouped
	rep.mu.Unlock()
	_ = rep.order(x, a, mark) // the status has it
	rep.orders.Unlock()
	if err := x.Run(ctx); err != nil || context.Cause(ctx) != errAgain {
		return err
	}
	return errAgain
}

// counted counts the bytes that get stored.
type counted struct {
	capture.Sink
	n *atomic.Int64
}

func (c counted) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sha256 [32]byte) error {
	err := c.Sink.Put(ctx, name, body, size, sha256)
	if err == nil {
		c.n.Add(size)
	}
	return err
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
	defer rep.mu.Unlock()
	out := agentapi.ItemStatus{Machine: rep.a.Machine, Generation: rep.a.Generation, Phase: string(capture.PhaseWaiting), SentBytes: rep.sent.Load()}
	if rep.rep != nil {
		rep.show(&out, rep.rep.Status())
	}
	if rep.err != nil {
		out.Phase, out.Error, out.Since, out.Attempt, out.RetryAt = string(capture.PhaseError), channel.WireError(rep.err), rep.since, 0, time.Time{}
	}
	return out
}

// show fills in what the replicator says. The caller holds mu.
func (rep *replica) show(out *agentapi.ItemStatus, s capture.Status) {
	out.Phase, out.Percent, out.BytesDone, out.BytesTotal, out.ETASeconds = string(s.Phase), s.Percent, s.BytesDone, s.BytesTotal, s.ETA.Seconds()
	out.BacklogBytes, out.SpooledBytes, out.Cycles, out.Missed = s.Backlog, s.Spooled, s.Cycles, s.Missed
	out.LastCut, out.LastPoint = s.LastCut, s.LastCut
	out.DirtyRate, out.ShipRate, out.Verdict, out.BacklogSeconds = float64(s.DirtyRate), float64(s.ShipRate), string(s.Converging), s.BacklogSeconds.Seconds()
	out.Resync, out.ResyncCode, out.NextResync, out.NextInitial = s.Resync, string(s.ResyncReason), s.NextResync, s.NextInitial
	out.ConsistencyNote = s.ConsistencyNote
	// What stops the replication goes before what a part of it lacks.
	part := s.Problem
	if part == nil {
		part = rep.partial.group
	}
	text := ""
	if part != nil {
		text = part.Error()
	}
	if text != rep.partial.shown {
		rep.partial.shown, rep.partial.since = text, time.Now()
	}
	switch {
	case s.Err != nil:
		out.Error, out.Since, out.Attempt, out.RetryAt = channel.WireError(s.Err), s.Since, s.Attempt, s.RetryAt
	case part != nil:
		out.Error, out.Since = channel.WireError(part), rep.partial.since
	}
}
