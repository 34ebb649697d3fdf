// Package capture turns a running VM into a chain of committed cuts: initial
// replication, delta cycles, resynchronization, changes of the VM's disks, and
// the bounded local spool between the hypervisor and the store.
//
// What it promises:
//
//   - A cut that is committed, and is not flagged as a seed, holds all its disks at one instant and
//     every change since the cut before it; nothing is dropped because tracking, spool or filter were lost or torn.
//   - A disk that is added, removed, grown, replaced, or whose tracking is lost
//     never makes the others start again, and never costs a recovery point that exists.
//     After a loss true differences travel, found by the local filter or by digests of what the store has.
//   - A checkpoint of the hypervisor is held only while changes go into the
//     spool, or for HoldLimit while whole disks are read; never while deltas travel.
//   - Killed at any step, it goes on after a restart without sending again what
//     is committed, and with the retry schedule where it was.
//   - With the store or the vault away it goes on cutting until the spool is
//     full, then only tracks. It never stops the guest.
//   - Memory does not grow with the size of disks.
//
// How: cycle.go says what a cycle does, build.go makes cuts, scan.go compares,
// fill.go sends whole disks, resync.go decides when something has to be compared, ship.go
// sends. Subpackages: filter (what is known of the store's content), spool, fill (progress of whole
// disks), frozen (reading images), durable (small files).
//
// It knows neither the vault nor HTTP: a Sink takes sealed objects, Digests
// answers what the store has.
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
	"sync/atomic"
	"time"

	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/pace"
	"holdfast/internal/retry"
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
	// Codec of new segments where the assignment names none; cut.CodecDefault is zstd.
	Codec cut.Codec
	// Digests answers what the store has, for a resynchronization without a
	// local filter. nil: what the filter does not know is sent.
	Digests Digests
	// Turns says when this machine may do what costs the host or the network
	// much; nil = always.
	Turns *pace.Turns
	// Group, if set, is the consistency group that this machine's cuts belong to.
	Group *Group
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

// Digests answers what the store has, so that a resynchronization of a host
// that lost its filter sends true differences only. Every error is taken as
// "could not ask": it is asked again later, by the retry schedule.
type Digests interface {
	// Roots answers for the tiles [first, first+count) of a disk as of the cut
	// at, in order, one entry for each tile that begins inside the disk as that cut lists it.
	Roots(ctx context.Context, at cut.Ref, disk uint16, first, count uint32) ([]TileRoot, error)
	// Blocks answers the digests of the 1024 blocks of one tile (zeros for blocks
	// of zeros and beyond the end), and the key that made them.
	Blocks(ctx context.Context, at cut.Ref, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error)
}

// TileRoot is the first level of the comparison: one hash for a tile.
type TileRoot struct {
	Tile uint32
	Zero bool // the tile is all zero; Key and Root are not set
	Key  cut.DigestKey
	Root [32]byte // Key.Root of the tile's block digests
}

// Assignment is what to replicate and how. It may change while a Replicator
// runs. The zero value of everything from Seeded on means "at once, always, together".
type Assignment struct {
	VM            dr.VMID
	Disks         []string // dr.Disk ids; a change is followed without starting again
	Gen           dr.Generation
	Base          cut.Ref // the chain goes on after this cut; zero = a fresh replica
	CopyFrequency time.Duration
	AppFrequency  time.Duration // 0 = no application-consistent points
	Paused        bool
	ResyncRequest string // a change asks for a resynchronization; see ResyncReason
	VaultKey      cut.VaultPublicKey

	// Seeded: Base is a seed cut. It is compared with the disks, and the first
	// cut after it is the first recovery point.
	Seeded bool
	// BaseDisks are all disks that a cut of the chain up to Base ever listed, with
	// their indexes; Size as Base lists it, 0 if it does not. It is needed by a host
	// that takes a replica over without local state; without it indexes count from 0 in the order of Disks.
	BaseDisks []cut.Disk
	// ResyncFull: the next ResyncRequest sends everything again instead of
	// comparing. Only an operator wants that, when digests can't be had.
	ResyncFull bool
	// ResyncReason says why ResyncRequest was made: empty for an operator, whose
	// request begins at once; else a code of the catalogue, as when the vault doubts the newest
	// cuts (dr.CodeLogSequence): that waits for the window, and what this host knows of the store is dropped.
	ResyncReason dr.Code

	InitialNotBefore time.Time // the initial replication does not begin earlier
	InitialWindow    dr.Window // and sends only while this is open
	InitialSerial    bool      // disks one by one in their order, else together
	InitialCancelled bool      // an initial replication that is not complete is given up and leaves nothing at the host
	Priority         int       // added to the debt with which turns are asked for; -10..10

	ResyncMode      dr.ResyncMode // "" = in the window
	ResyncWindow    dr.Window     // zero = always open
	ResyncThreshold float64       // share of the VM's disks that may be pending; 0 = dr.DefaultResyncThreshold, negative = off

	Codec cut.Codec // of new segments; cut.CodecDefault is Config's

	PauseReason string    // for people
	ResumeAt    time.Time // a pause ends by itself then; zero = it does not
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
	Committed  cut.Ref       // newest committed recovery point; in a takeover at first its base
	LastCut    time.Time     // its instant
	Cycles     int           // since the process started
	Missed     int
	Resync     string    // reason while a resynchronization is due or runs
	Note       string    // e.g. that the VM is off
	Err        error     // what stands in the way now
	Since      time.Time // of Err
	RetryAt    time.Time
	History    []Cycle // the last cycles, oldest first

	Attempt int    // failed attempts in a row of what Err names
	Class   string // of Err: recoverable or nonRecoverable

	BacklogSeconds time.Duration // until the backlog is drained at the present rates; 0 = unknown or nothing
	DirtyRate      int64         // bytes a second that the guest changes
	ShipRate       int64         // bytes a second that get stored while something is sent
	Converging     dr.Convergence

	ResyncReason dr.Code   // of Resync
	NextResync   time.Time // when it begins by itself; zero = it runs, or not by itself
	NextInitial  time.Time // when a waiting initial replication goes on; zero = it is not waiting for a time
	PauseReason  string
	ResumeAt     time.Time

	Problem         error          // what keeps a part from being replicated while the rest goes on, as a disk that shrank
	Consistency     dr.Consistency // of the newest cut
	ConsistencyNote string         // why it is less than asked for
	Epoch           uint32         // of the data key in use
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
	spool *spool.Spool

	kick       chan struct{} // something changed: look again
	drains     chan drain
	ship       chan struct{} // the queue got an entry
	ended      chan struct{} // Run has returned
	reship     chan struct{} // try shipping again now
	shipping   shipping
	retryNow   atomic.Bool
	forgetDue  atomic.Bool  // tokens are to be forgotten when no cut is open
	lookNow    atomic.Bool  // a kick is worth a look now
	pointAt    atomic.Int64 // instant of the newest committed point, unix nanoseconds; else when Run began
	cutting    sync.Mutex   // held while a cut is open, and while tokens are forgotten
	turn       bulkTurn     // to read whole disks
	background sync.WaitGroup

	// Of the loop only.
	tipAt  time.Time       // instant of the tip
	began  time.Time       // when Run began
	absent map[string]bool // assigned disks that the VM does not have

	mu         sync.Mutex
	want       Assignment
	wanted     bool
	state      *state // nil until Run has loaded it
	status     Status
	trouble    trouble         // of shipping; the loop's own is in status
	sealed     map[uint32]bool // epochs whose sealed key is in the store
	waiters    []chan struct{} // woken at every commit and status change
	missed     misses
	speed      speed
	backlog    *pace.Backlog
	backlogFor time.Duration // the copy frequency that backlog is for
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
		cfg: cfg, spool: spool.New(filepath.Join(cfg.Dir, "spool"), cfg.SpoolLimit),
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

// RetryNow ends every wait of the retry schedule and lets a non-recoverable
// error be tried again: an operator's act.
func (r *Replicator) RetryNow() {
	r.retryNow.Store(true)
	r.Kick()
	select {
	case r.reship <- struct{}{}:
	default:
	}
}

// Status returns a snapshot.
func (r *Replicator) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	if t := r.trouble; t.err != nil {
		s.Err, s.Since, s.RetryAt, s.Attempt, s.Class = t.err, t.since, t.next.At, t.next.Attempt, string(t.next.Class)
		if t.next.Class == retry.NonRecoverable {
			s.Phase, s.RetryAt = PhaseError, time.Time{}
		}
	}
	s.History = append([]Cycle(nil), s.History...)
	s.Spooled = r.spool.Size()
	return s
}

// trouble is what keeps spooled cuts from being committed.
type trouble struct {
	err   error
	since time.Time
	next  retry.Decision
}

// setTrouble publishes the shipper's trouble; nil clears it.
func (r *Replicator) setTrouble(err error, next retry.Decision) {
	r.set(func(*Status) {
		since := r.trouble.since
		if r.trouble.err == nil {
			since = time.Now()
		}
		r.trouble = trouble{err: err, since: since, next: next}
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
		if s.Phase == PhaseError && s.Err != nil { // without Err it is being left
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
	nudge := func() { // somebody waits: the retry schedule does not
		select {
		case r.reship <- struct{}{}:
		default:
		}
	}
	nudge()
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
	nudge()
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
		initial.begun initial.changes initial.tile-sealed initial.tile-put initial.tile-stored initial.tile-logged
		scan.tile cut.begun cut.read cut.ended spool.written spool.renamed tip.saved filter.applied
		ship.begun ship.key ship.part ship.cut ship.put ship.saved ship.forgot ship.removed`)
}
