// Package hydrate is the recovery read side: it serves a recovery point's
// disks over NBD for an instant boot, and restores them to files.
//
// What it promises:
//
//   - Bytes that are served or restored are the source at the cut, or the read
//     fails; a damaged object is named in the status and the log.
//   - While the store or the vault can't be asked for some minutes, reads wait
//     instead of failing: the guest stalls and goes on.
//   - The serving process (Serve, started by a Launcher) outlives the agent. It
//     holds keys in memory only and serves one recovery point until it is told
//     to stop. If it is killed before the VM is local, the guest's reads of what
//     was not yet copied fail; the VM has to be booted again from the point.
package hydrate

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/nbd"
	"holdfast/internal/store"
)

// Patience is how long a read waits for a store that does not answer.
const Patience = 10 * time.Minute

// Device is one disk of a recovery point as an NBD device. It is read-only and
// safe for concurrent use.
type Device struct {
	view     *store.View
	disk     store.DiskInfo
	patience time.Duration
	log      *slog.Logger
	onError  func(error) // every error that a guest sees or waits for

	mu   sync.Mutex
	down bool // the store did not answer the last read
}

var _ nbd.Device = (*Device)(nil)

// DeviceConfig of a Device.
type DeviceConfig struct {
	Patience time.Duration // 0 = Patience
	Log      *slog.Logger  // nil = discard
	OnError  func(error)   // may be nil; called concurrently
}

// NewDevice makes a device of a disk of view, which must outlive it.
func NewDevice(view *store.View, disk store.DiskInfo, cfg DeviceConfig) *Device {
	if cfg.Patience <= 0 {
		cfg.Patience = Patience
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	return &Device{view: view, disk: disk, patience: cfg.Patience, log: cfg.Log.With("disk", disk.ID), onError: cfg.OnError}
}

// Size implements nbd.Device.
func (d *Device) Size() int64 { return d.disk.Size }

// ReadAt implements nbd.Device. It waits for a store that can't be asked, and
// fails at once where the answer is known: damage, absence, a wrong key.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.patiently(ctx, func(ctx context.Context) error {
		return d.view.ReadAt(ctx, d.disk.ID, p, off)
	})
}

// Extents implements nbd.Device: ranges known to be zero are holes.
func (d *Device) Extents(ctx context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	var out []nbd.AllocationExtent
	err := d.patiently(ctx, func(ctx context.Context) error {
		out = out[:0]
		return d.view.Extents(ctx, d.disk.ID, off, min(length, d.disk.Size-off), func(off, length int64, zero bool) error {
			out = append(out, nbd.AllocationExtent{Off: off, Len: length, Hole: zero, Zero: zero})
			return nil
		})
	})
	return out, err
}

func (d *Device) patiently(ctx context.Context, read func(context.Context) error) error {
	start := time.Now()
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := read(ctx)
		if err == nil {
			d.note(nil)
			return nil
		}
		if ctx.Err() != nil || dr.KindOf(err) != dr.KindUnavailable || time.Since(start) > d.patience {
			if ctx.Err() == nil {
				d.log.Error("read of the recovery point failed", "err", err)
				d.onError(err)
			}
			return err
		}
		d.note(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// note logs the store's going away and coming back, once each.
func (d *Device) note(err error) {
	d.mu.Lock()
	changed := d.down != (err != nil)
	d.down = err != nil
	d.mu.Unlock()
	switch {
	case changed && err != nil:
		d.log.Warn("the store does not answer: reads wait", "err", err)
		d.onError(err)
	case changed:
		d.log.Info("the store answers again")
	}
}
