package booting

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/nbd"
)

const (
	fillChunk    = 1 << 20 // bytes of one read
	fillParallel = 4
)

// fill creates a disk file and copies the recovery point into it. The file holds
// every byte of the point, durable, when nil is returned.
func (h *Booter) fill(ctx context.Context, d bootDisk, progress func(done int64)) (err error) {
	const op = "Boot"
	disk, err := h.cfg.Disks.Create(ctx, d.host, d.spec)
	if errors.Is(err, fs.ErrExist) {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hyperv."+op, "the disk file %s exists: %w", d.host, err)
	}
	if err != nil {
		return port.Error(op, "create disk file "+d.host, err)
	}
	defer func() {
		if cerr := disk.Close(); err == nil {
			err = port.Error(op, "close disk file "+d.host, cerr)
		}
	}()
	if d.Socket == "" {
		return nil
	}
	c, err := dial(ctx, d.Socket, d.Export)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "connect disk %s to its recovery point at %s: %w", d.ID, d.Socket, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if c.Size() > d.Size {
		return dr.Errorf(dr.KindInvalid, "hyperv."+op, "disk %s has %d bytes but its recovery point has %d", d.ID, d.Size, c.Size())
	}
	if err := h.copyAll(ctx, c, disk, d, progress); err != nil {
		return err
	}
	return port.Error(op, "flush disk file "+d.host, disk.Flush(ctx))
}

// source is a connection to a recovery point.
type source struct {
	*nbd.Client
	zeroes bool // it tells what is zero
}

func dial(ctx context.Context, socket, export string) (source, error) {
	cfg := nbd.ClientConfig{Network: "unix", Address: socket, Export: export, Contexts: []string{nbd.ContextAllocation}, MaxInFlight: 2 * fillParallel}
	c, err := nbd.Dial(ctx, cfg)
	if errors.Is(err, nbd.ErrContextNotGranted) {
		cfg.Contexts = nil
		c, err = nbd.Dial(ctx, cfg)
		return source{c, false}, err
	}
	return source{c, true}, err
}

type piece struct{ off, n int64 }

// copyAll copies what is not zero with some reads under way at a time.
func (h *Booter) copyAll(ctx context.Context, c source, disk port.Disk, d bootDisk, progress func(int64)) error {
	const op = "Boot"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan piece)
	var done atomic.Int64
	var wg sync.WaitGroup
	for range fillParallel {
		wg.Go(func() {
			buf := make([]byte, fillChunk)
			zero := make([]byte, fillChunk)
			for p := range work {
				if ctx.Err() != nil {
					continue
				}
				b := buf[:p.n]
				if err := c.ReadAt(ctx, b, p.off); err != nil {
					cancel(dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read disk %s of the recovery point at %d: %w", d.ID, p.off, err))
					continue
				}
				if !bytes.Equal(b, zero[:p.n]) {
					if err := disk.WriteAt(ctx, b, p.off); err != nil {
						cancel(port.Error(op, "write disk file "+d.host, err))
						continue
					}
				}
				progress(done.Add(p.n))
			}
		})
	}
	err := h.pieces(ctx, c, func(p piece, zero bool) error {
		if zero {
			progress(done.Add(p.n))
			return nil
		}
		for ; p.n > 0; p = (piece{p.off + fillChunk, p.n - fillChunk}) {
			select {
			case work <- piece{p.off, min(p.n, fillChunk)}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	close(work)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		var known *dr.Error
		if !errors.As(cause, &known) {
			return port.Error(op, "copy the recovery point to "+d.host, cause)
		}
		return cause
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "ask for the extents of disk %s of the recovery point: %w", d.ID, err)
	}
	if n := done.Load(); n != c.Size() {
		return dr.Errorf(dr.KindInternal, "hyperv."+op, "%d of %d bytes of disk %s were copied", n, c.Size(), d.ID)
	}
	return nil
}

// pieces calls fn with all ranges of the recovery point, once each.
func (h *Booter) pieces(ctx context.Context, c source, fn func(p piece, zero bool) error) error {
	if !c.zeroes {
		return fn(piece{0, c.Size()}, false)
	}
	return c.Extents(ctx, 0, c.Size(), func(_ string, off, n int64, flags uint32) error {
		return fn(piece{off, n}, flags&nbd.StateZero != 0)
	})
}
