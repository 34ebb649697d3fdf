// Package cutting makes cuts of libvirt domains: pull-mode backup jobs with
// checkpoints, read over NBD.
//
// It owns the checkpoints named "hf-…", the backup jobs whose socket is below
// its directory, and the directory's part "cut". A failed cut
// costs nothing, because every checkpoint's dirty bitmap goes on recording
// until it is deleted. Scratch files take the old content of blocks that the
// guest overwrites while a cut is open; QEMU pauses the guest if such a write
// fails, so they are allocated in advance and a watchdog ends the cut before
// space runs out; a guest that was paused nevertheless is resumed. A backup job
// that a call past its deadline may still begin is watched for and ended. How
// guests are frozen and held is package holding's.
//
// Not noticed: a disk that is shrunk and grown again to at least its old size
// between two cuts, of which QEMU's bitmaps show nothing.
package cutting

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/holding"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Config of a Cutter; all fields but Stage are needed. They mean what the fields of
// libvirt.Config of the same names say.
type Config struct {
	Dir            string
	ScratchReserve int64
	MaxCutAge      time.Duration
	CallTimeout    time.Duration
	AgentTimeout   time.Duration
	FreezeLimit    time.Duration
	GroupHold      time.Duration
	Log            *slog.Logger
	Stage          func(string) // called at the named stages of a cut, for tests that die or dawdle there; may be nil
}

const (
	cutsDir    = "cut"
	socketName = "nbd.sock"
)

// SampleSocket is as long as the longest socket path that a Cutter with the
// directory uses.
func SampleSocket(dir string) string {
	return filepath.Join(dir, cutsDir, "0123456789ab-0123456789ab", socketName)
}

// Dirs are the directories that must exist and be writable by QEMU.
func Dirs(dir string) []string {
	return append(holding.Dirs(dir), filepath.Join(dir, cutsDir))
}

// Cutter makes cuts on one host.
type Cutter struct {
	cfg  Config
	virt *virt.Client
	keep *holding.Keeper

	ctx    context.Context // ends with Close; for background work only
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	open   map[dr.VMID]*cut
	closed bool
}

// Open makes a Cutter and sees to guests that an earlier process may have left
// suspended, frozen (in the background), or with an open backup job (likewise).
func Open(client *virt.Client, cfg Config) (*Cutter, error) {
	if cfg.Stage == nil {
		cfg.Stage = func(string) {}
	}
	keep, err := holding.Open(client, holding.Config{Dir: cfg.Dir, AgentTimeout: cfg.AgentTimeout, FreezeLimit: cfg.FreezeLimit, GroupHold: cfg.GroupHold, Log: cfg.Log, Stage: cfg.Stage})
	if err != nil {
		return nil, err
	}
	h := &Cutter{cfg: cfg, virt: client, keep: keep, open: map[dr.VMID]*cut{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.background(h.endStaleJobs)
	return h, nil
}

// closeTimeout bounds what Close does about open cuts.
const closeTimeout = 15 * time.Second

// Close ends the backup jobs of open cuts, whose tokens stay, and background
// work. Idempotent.
func (h *Cutter) Close() error {
	h.mu.Lock()
	already := h.closed
	h.closed = true
	cuts := slices.Collect(maps.Values(h.open))
	h.mu.Unlock()
	var errs []error
	if !already {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		for _, c := range cuts {
			errs = append(errs, c.End(ctx))
		}
	}
	h.cancel()
	h.wg.Wait()
	h.keep.Close()
	return errors.Join(errs...)
}

// background runs fn until it returns; its context ends with Close. False if the Cutter is closed.
func (h *Cutter) background(fn func(context.Context)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		fn(h.ctx)
	}()
	return true
}

// enter makes Close wait for a call that may hold a guest: Close ends the
// returned context, and the call then releases the guest before it calls leave.
func (h *Cutter) enter(ctx context.Context, op string) (_ context.Context, leave func(), _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, virt.Wrap(op, "begin a cut", virt.ErrClosed)
	}
	h.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		h.wg.Done()
	}, nil
}

// StartsPaused says that a VM that is off is about to be started paused, for its last cut.
func (h *Cutter) StartsPaused(dom golibvirt.Domain) { h.keep.StartsPaused(dom) }

// mine returns this process's open cut of a VM.
func (h *Cutter) mine(id dr.VMID) *cut {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[id]
}
