// Package capture turns a running VM into a chain of committed cuts: initial
// replication, delta cycles, resynchronization, and the bounded local spool
// between the hypervisor and the store.
//
// What it promises:
//
//   - A cut that is committed holds all disks at one instant and every change
//     since the cut before it; nothing is dropped because tracking, spool or filter were lost or torn.
//   - A checkpoint of the hypervisor is held only while the changes go into the
//     spool, never while they travel.
//   - Killed at any step, it goes on after a restart without sending again what is committed.
//   - With the store or the vault away it goes on cutting until the spool is
//     full, then only tracks. It never stops the guest.
//   - Memory does not grow with the size of disks.
//
// It knows neither the vault nor HTTP: a Sink takes sealed objects.
package capture

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Sink stores sealed objects, create-only. Put returns nil when the object is
// in the store with exactly these bytes, whoever put it there;
// dr.CodeObjectConflict when another one has its name; dr.CodeGenerationFenced
// when a newer generation has taken over. It may be called concurrently.
type Sink interface {
	Put(ctx context.Context, name string, body io.ReaderAt, size int64, sha256 [32]byte) error
}

// Source is what a Replicator needs of a host; hypervisor.Source has it.
type Source interface {
	BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error)
	Config(ctx context.Context, vm dr.VMID) (hypervisor.VMConfig, error)
	Forget(ctx context.Context, vm dr.VMID, keep []string) error
}

// Config of a Replicator.
type Config struct {
	Machine dr.MachineID
	Dir     string // state, spool, keys and filters of this replica; 0700
	Source  Source
	Sink    Sink
	// SpoolLimit bounds the bytes in the spool (default 4 GiB). One cut larger
	// than the limit still goes through when the spool is empty.
	SpoolLimit int64
	// PartSize is about how large an object gets, bytes (default 32 MiB).
	PartSize int64
	// HoldLimit bounds how long the initial replication holds one frozen image (default 10 min).
	HoldLimit time.Duration
	// Codec of new segments; cut.CodecDefault is zstd.
	Codec cut.Codec
	// Committed is told of each committed cut, in order, once per process; may be nil. It must not block.
	Committed func(ref cut.Ref)
	Log       *slog.Logger
	// Step is called at every labelled step of Steps; an error stops the
	// replicator there as a crash would. For tests; nil in production.
	Step func(label string) error
}

// Validate checks what must be set.
func (c Config) Validate() error {
	if c.Machine == "" || c.Dir == "" || c.Source == nil || c.Sink == nil {
		return dr.Errorf(dr.KindInvalid, "capture.New", "machine, directory, source and sink must be set")
	}
	return nil
}

// Assignment is what to replicate and how. It may change while a Replicator runs.
type Assignment struct {
	VM            dr.VMID
	Disks         []string // dr.Disk ids
	Gen           dr.Generation
	Base          cut.Ref // the chain goes on after this cut; zero = a fresh replica
	CopyFrequency time.Duration
	AppFrequency  time.Duration // 0 = no application-consistent points
	Paused        bool
	ResyncRequest string // a change asks for a resynchronization now
	VaultKey      cut.VaultPublicKey
}

// Phase says what a Replicator is doing.
type Phase string

// The phases.
const (
	PhaseWaiting Phase = "waiting" // nothing begun, or the VM is off
	PhaseInitial Phase = "initialReplication"
	PhaseDelta   Phase = "delta"
	PhaseResync  Phase = "resync"
	PhasePaused  Phase = "paused"
	PhaseError   Phase = "error" // a non-recoverable error: waits for another assignment
	PhaseStopped Phase = "stopped"
)

// Status is a snapshot for people.
type Status struct {
	Phase      Phase
	Gen        dr.Generation
	Percent    float64 // of the initial replication or resynchronization
	BytesDone  int64
	BytesTotal int64
	ETA        time.Duration // 0 = unknown
	Backlog    int64         // dirty at the last look and not committed, bytes; estimate
	Spooled    int64         // bytes in the spool
	Committed  cut.Ref       // newest committed cut
	LastCut    time.Time     // its instant
	Cycles     int           // since the process started
	Missed     int
	Resync     string    // reason while a resynchronization is due or runs
	Note       string    // e.g. that the VM is off
	Err        error     // what stands in the way now
	Since      time.Time // of Err
	RetryAt    time.Time
	History    []Cycle // the last cycles, oldest first
}

// Cycle is what one committed cut amounted to.
type Cycle struct {
	Ref     cut.Ref
	Time    time.Time
	Dirty   int64         // as the tracker said, bytes
	Shipped int64         // stored bytes sent
	Took    time.Duration // from the freeze until it was committed
	Cut     time.Duration // from the freeze until the frozen image was released
	Resync  bool
}

// Replicator replicates one VM. New, then Assign and Run; Run returns when its
// context ends. All other methods are safe to call at any time.
type Replicator struct {
	cfg   Config
	spool *spool

	kick     chan struct{} // something changed: look again
	drains   chan drain
	ship     chan struct{} // the queue got an entry
	ended    chan struct{} // Run has returned
	reship   chan struct{} // try shipping again now
	shipping shipping
	cutting  sync.Mutex // held while a cut is open, and while tokens are forgotten
	tipAt    time.Time  // instant of the tip, of the loop only

	mu      sync.Mutex
	want    Assignment
	wanted  bool
	state   *state // nil until Run has loaded it
	status  Status
	trouble trouble         // of shipping; the loop's own is in status
	sealed  map[uint32]bool // epochs whose sealed key is in the store
	waiters []chan struct{} // woken at every commit and status change
}

type drain struct {
	done chan drainResult
}

type drainResult struct {
	ref cut.Ref
	at  time.Time
	err error
}

// New returns a Replicator; it does no I/O.
func New(cfg Config) (*Replicator, error) {
	if cfg.SpoolLimit <= 0 {
		cfg.SpoolLimit = 4 << 30
	}
	if cfg.PartSize <= 0 {
		cfg.PartSize = 32 << 20
	}
	if cfg.HoldLimit <= 0 {
		cfg.HoldLimit = 10 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Step == nil {
		cfg.Step = func(string) error { return nil }
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Log = cfg.Log.With("machine", cfg.Machine)
	return &Replicator{
		cfg: cfg, spool: &spool{dir: filepath.Join(cfg.Dir, "spool"), limit: cfg.SpoolLimit},
		kick: make(chan struct{}, 1), ship: make(chan struct{}, 1), reship: make(chan struct{}, 1), ended: make(chan struct{}), drains: make(chan drain),
		sealed: map[uint32]bool{},
		status: Status{Phase: PhaseWaiting},
	}, nil
}

// Assign sets what to replicate from now on.
func (r *Replicator) Assign(a Assignment) {
	r.mu.Lock()
	r.want, r.wanted = a, true
	r.mu.Unlock()
	r.Kick()
}

// Kick makes the Replicator look at its VM now; a hint, e.g. that the VM was started.
func (r *Replicator) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Status returns a snapshot.
func (r *Replicator) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	if t := r.trouble; t.err != nil {
		s.Err, s.Since, s.RetryAt = t.err, t.since, t.retry
		if t.stop {
			s.Phase, s.RetryAt = PhaseError, time.Time{}
		}
	}
	s.History = append([]Cycle(nil), s.History...)
	s.Spooled = r.spool.size()
	return s
}

// trouble is what keeps spooled cuts from being committed.
type trouble struct {
	err   error
	since time.Time
	retry time.Time
	stop  bool // waits for an operator or another generation
}

// setTrouble publishes the shipper's trouble; nil clears it.
func (r *Replicator) setTrouble(err error, retry time.Time, stop bool) {
	r.set(func(*Status) {
		since := r.trouble.since
		if r.trouble.err == nil {
			since = time.Now()
		}
		r.trouble = trouble{err: err, since: since, retry: retry, stop: stop}
	})
}

// Changed returns a channel that is closed at the next change of the status.
func (r *Replicator) Changed() <-chan struct{} {
	ch := make(chan struct{})
	r.mu.Lock()
	r.waiters = append(r.waiters, ch)
	r.mu.Unlock()
	return ch
}

// set changes the status and wakes who waits for changes.
func (r *Replicator) set(fn func(*Status)) {
	r.mu.Lock()
	fn(&r.status)
	waiters := r.waiters
	r.waiters = nil
	r.mu.Unlock()
	for _, ch := range waiters {
		close(ch)
	}
}

// AwaitInitial waits until the first recovery point is committed.
func (r *Replicator) AwaitInitial(ctx context.Context) (cut.Ref, time.Time, error) {
	for {
		changed := r.Changed()
		s := r.Status()
		if !s.Committed.IsZero() {
			return s.Committed, s.LastCut, nil
		}
		if s.Phase == PhaseError {
			return cut.Ref{}, time.Time{}, s.Err
		}
		select {
		case <-ctx.Done():
			return cut.Ref{}, time.Time{}, context.Cause(ctx)
		case <-r.ended:
			return cut.Ref{}, time.Time{}, errEnded()
		case <-changed:
		}
	}
}

// Drain makes one more cut, of a VM that may be off, and waits until it and
// everything before it is committed.
func (r *Replicator) Drain(ctx context.Context) (cut.Ref, time.Time, error) {
	d := drain{done: make(chan drainResult, 1)}
	select {
	case r.drains <- d:
	case <-r.ended:
		return cut.Ref{}, time.Time{}, errEnded()
	case <-ctx.Done():
		return cut.Ref{}, time.Time{}, context.Cause(ctx)
	}
	var res drainResult
	select {
	case res = <-d.done:
	case <-r.ended:
		return cut.Ref{}, time.Time{}, errEnded()
	case <-ctx.Done():
		return cut.Ref{}, time.Time{}, context.Cause(ctx)
	}
	if res.err != nil {
		return cut.Ref{}, time.Time{}, res.err
	}
	for {
		changed := r.Changed()
		s := r.Status()
		if s.Committed.Gen == res.ref.Gen && s.Committed.N >= res.ref.N {
			return res.ref, res.at, nil
		}
		if s.Err != nil && s.Phase == PhaseError {
			return cut.Ref{}, time.Time{}, s.Err
		}
		select {
		case <-ctx.Done():
			return cut.Ref{}, time.Time{}, context.Cause(ctx)
		case <-r.ended:
			return cut.Ref{}, time.Time{}, errEnded()
		case <-changed:
		}
	}
}

func errEnded() error {
	return dr.Errorf(dr.KindUnavailable, "capture", "the replicator has been stopped")
}

// Remove deletes the replica's tokens at the hypervisor and its local state.
// Call it after Run has returned.
func (r *Replicator) Remove(ctx context.Context, vm dr.VMID) error {
	err := r.cfg.Source.Forget(ctx, vm, nil)
	if dr.CodeOf(err) == dr.CodeVMNotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(r.cfg.Dir); err != nil {
		return dr.Errorf(dr.KindUnavailable, "capture.Remove", "remove state: %w", err)
	}
	return nil
}

// errCrash marks an error of Step: everything stops as if the process had died.
var errCrash = errors.New("stopped at a labelled step")

func (r *Replicator) step(label string) error {
	if err := r.cfg.Step(label); err != nil {
		return errors.Join(errCrash, err)
	}
	return nil
}

// Steps lists every label that Config.Step is called with.
func Steps() []string {
	return strings.Fields(`
		initial.begun initial.tile-sealed initial.tile-put initial.tile-logged initial.sealed
		cut.begun cut.read cut.ended spool.written spool.renamed tip.saved filter.applied
		ship.key ship.part ship.cut ship.put ship.saved ship.forgot ship.removed`)
}
