package hydrate

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// RestoreOptions of Restore.
type RestoreOptions struct {
	Workers  int                     // 0 = 4
	Progress func(done, total int64) // bytes of the disk, called concurrently
}

// restoreUnit is what one worker copies at a time.
const restoreUnit = 4 << 20

// Restore writes a disk of a recovery point to a new raw file at path; zero
// ranges become holes. The file is created exclusively, synced, and removed again on failure.
func Restore(ctx context.Context, view *store.View, diskID, path string, opts RestoreOptions) (err error) {
	var disk *store.DiskInfo
	for _, d := range view.Disks() {
		if d.ID == diskID {
			disk = &d
			break
		}
	}
	if disk == nil {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "hydrate.Restore", "the recovery point has no disk %q", diskID)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrExist) {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hydrate.Restore", "%s exists already", path)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.Restore", "create file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := f.Truncate(disk.Size); err != nil {
		return dr.Errorf(dr.KindExhausted, "hydrate.Restore", "size %s: %w", path, err)
	}
	if err := copyDisk(ctx, view, *disk, target{f, path, func(off, n int64) { startWriting(f, off, n) }}, opts); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, "hydrate.Restore", "sync %s: %w", path, err)
	}
	return nil
}

// target is what a disk is copied to; what is not written reads as zeroes.
type target struct {
	io.WriterAt
	name    string
	written func(off, n int64) // is told what is complete; may be nil
}

// copyDisk writes the data of a disk to a target, in parallel.
func copyDisk(ctx context.Context, view *store.View, disk store.DiskInfo, to target, opts RestoreOptions) error {
	if opts.Workers <= 0 {
		opts.Workers = 4
	}
	var done atomic.Int64
	buffers := sync.Pool{New: func() any { p := make([]byte, restorePiece); return &p }}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(opts.Workers)
	for off := int64(0); off < disk.Size && ctx.Err() == nil; off += restoreUnit {
		eg.Go(func() error {
			n := min(restoreUnit, disk.Size-off)
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			if err := restoreRange(ctx, view, disk.ID, to, off, n, *buf); err != nil {
				return err
			}
			if total := done.Add(n); opts.Progress != nil {
				opts.Progress(total, disk.Size)
			}
			return nil
		})
	}
	return eg.Wait()
}

// restorePiece bounds what is read, then written, at once. A worker's buffer stays
// in the processor's cache between the two.
const restorePiece = 1 << 20

// restoreRange copies [off, off+n) by way of buf, which holds restorePiece bytes.
func restoreRange(ctx context.Context, view *store.View, diskID string, to target, off, n int64, buf []byte) error {
	type run struct{ off, n int64 }
	var data []run
	err := view.Extents(ctx, diskID, off, n, func(off, n int64, zero bool) error {
		if !zero {
			data = append(data, run{off, n})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range data {
		for r.n > 0 {
			p := buf[:min(r.n, int64(len(buf)))]
			if err := view.ReadOnce(ctx, diskID, p, r.off); err != nil {
				return err
			}
			if _, err := to.WriteAt(p, r.off); err != nil {
				return dr.New(dr.KindExhausted, dr.CodeNoSpace, "hydrate.Restore", "write %s: %w", to.name, err)
			}
			r.off, r.n = r.off+int64(len(p)), r.n-int64(len(p))
		}
	}
	if to.written != nil {
		to.written(off, n)
	}
	return nil
}
