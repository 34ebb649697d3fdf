// Package cutting makes cuts of libvirt domains: pull-mode backup jobs with
// checkpoints, read over NBD.
//
// It owns the checkpoints named "hf-…", the backup jobs whose socket is below
// its directory, and the directory's parts "cut" and "freezing". A failed cut
// costs nothing, because every checkpoint's dirty bitmap goes on recording
// until it is deleted. Scratch files take the old content of blocks that the
// guest overwrites while a cut is open; QEMU pauses the guest if such a write
// fails, so they are allocated in advance and a watchdog ends the cut before
// space runs out. A backup job that a call past its deadline may still begin
// is watched for and ended. A freeze is recorded before it is asked for, and
// the guest asked to thaw until it confirms.
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

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Config of a Cutter; all fields are needed. They mean what the fields of
// libvirt.Config of the same names say.
type Config struct {
	Dir            string
	ScratchReserve int64
	MaxCutAge      time.Duration
	CallTimeout    time.Duration
	AgentTimeout   time.Duration
	FreezeLimit    time.Duration
	Log            *slog.Logger
}

const (
	cutsDir    = "cut"
	freezeDir  = "freezing"
	socketName = "nbd.sock"
)

// SampleSocket is as long as the longest socket path that a Cutter with the
// directory uses.
func SampleSocket(dir string) string {
	return filepath.Join(dir, cutsDir, "0123456789ab-0123456789ab", socketName)
}

// Dirs are the directories that must exist and be writable by QEMU.
func Dirs(dir string) []string {
	return []string{filepath.Join(dir, cutsDir), filepath.Join(dir, freezeDir)}
}

// Cutter makes cuts on one host.
type Cutter struct {
	cfg  Config
	virt *virt.Client

	ctx    context.Context // ends with Close; for background work only
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	open   map[dr.VMID]*cut
	thaws  map[dr.VMID]bool // a thaw loop runs
	closed bool
}

// Open makes a Cutter and sees to guests that an earlier process may have left
// frozen, in the background.
func Open(client *virt.Client, cfg Config) (*Cutter, error) {
	h := &Cutter{cfg: cfg, virt: client, open: map[dr.VMID]*cut{}, thaws: map[dr.VMID]bool{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.resumeThaws(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
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
	return errors.Join(errs...)
}

// background runs fn until it returns; its context ends with Close.
func (h *Cutter) background(fn func(context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		fn(h.ctx)
	}()
}

// mine returns this process's open cut of a VM.
func (h *Cutter) mine(id dr.VMID) *cut {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[id]
}
