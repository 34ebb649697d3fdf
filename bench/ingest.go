package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"

	"holdfast/bench/internal/image"
	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/peers"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/cut"
	"holdfast/internal/objstore/file"
)

// unit is what a guest writes at least.
const unit = 4 << 10

// makeDisk makes the guest's disk.
func (b *runner) makeDisk(ctx context.Context) error {
	b.disk = filepath.Join(b.Dir, "disk.raw")
	return image.Make(ctx, b.tool.mkfs, b.disk, b.Size, b.Seed)
}

// goalIngest is in CPU seconds per GiB.
const goalIngest = 5.0

// initial measures the initial replication, from the first look at the VM to
// the commit: reading, the 4 KiB filter, tile images, spool, bucket.
func (b *runner) initial(ctx context.Context) error {
	var err error
	if b.src, err = rawhost.Open(b.disk); err != nil {
		return err
	}
	u, err := meter.Self(func() error {
		b.r, err = replica.Start(ctx, filepath.Join(b.Dir, "replica"), b.src)
		return err
	})
	if err != nil {
		return err
	}
	b.first = peers.Results{ours: cost(u, b.r.Sink.Bytes.Load())}
	b.rep.Add(report.Figure{Area: "initial replication", Name: "CPU, all of it", Value: report.PerGiB(u.CPU, b.Size), Unit: "cpu-s/GiB", Goal: report.AtMost(goalIngest), Note: "capture.Replicator: filter, content hash, tile images, local file, bucket"})
	b.rep.Add(report.Figure{Area: "initial replication", Name: "stored", Value: float64(b.r.Sink.Bytes.Load()) / float64(b.Size), Unit: "of the disk"})
	b.rep.Add(report.Figure{Area: "initial replication", Name: "throughput", Value: report.MBps(b.Size, u.Wall), Unit: "MB/s", Wall: true})
	return nil
}

// ingest measures what the format costs, beside the same compressor alone and
// what qemu-img needs for the same bytes.
func (b *runner) ingest(ctx context.Context) error {
	alone, packed, err := b.codecAlone(ctx)
	if err != nil {
		return err
	}
	ours, stored, err := b.ingestTiles(ctx)
	if err != nil {
		return err
	}
	b.zstd, b.qcow = filepath.Join(b.Dir, "zstd.qcow2"), filepath.Join(b.Dir, "plain.qcow2")
	// -t writeback: the bucket is durable when it says so, so qemu-img has to flush too.
	z, err := meter.Command(ctx, b.tool.qemuImg, "convert", "-c", "-m", "16", "-W", "-t", "writeback", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", b.disk, b.zstd)
	if err != nil {
		return err
	}
	zsize, err := fileSize(b.zstd)
	if err != nil {
		return err
	}
	raw, err := b.rawToRaw(ctx)
	if err != nil {
		return err
	}
	const area = "ingest"
	qz, qr, kz := "qemu-img -c zstd", "qemu-img raw→raw", "the zstd encoder alone"
	gib := func(u meter.Usage) float64 { return report.PerGiB(u.CPU, b.Size) }
	b.rep.Add(report.Figure{Area: area, Name: "CPU", Value: gib(ours), Unit: "cpu-s/GiB", Goal: report.AtMost(goalIngest), Peers: report.Beside(kz, gib(alone)).And(qz, gib(z)).And(qr, gib(raw)), Note: "cut.Writer tile images (zstd, keyed BLAKE3, AES-256-GCM, SHA-256) into a directory"})
	b.rep.Add(report.Figure{Area: area, Name: "CPU of qemu-img -c zstd / ours", Value: z.CPU.Seconds() / ours.CPU.Seconds(), Unit: "×", Note: "ours also hashes and encrypts"})
	b.rep.Add(report.Figure{Area: area, Name: "CPU beyond the zstd encoder alone", Value: gib(ours) - gib(alone), Unit: "cpu-s/GiB", Note: "what is ours: reading, zero test, digests, encryption, object hashes, bucket"})
	of := func(n int64) float64 { return float64(n) / float64(b.Size) }
	b.rep.Add(report.Figure{Area: area, Name: "stored", Value: of(stored), Unit: "of the disk", Peers: report.Beside(kz, of(packed)).And(qz, of(zsize))})
	b.rep.Add(report.Figure{Area: area, Name: "throughput", Value: report.MBps(b.Size, ours.Wall), Unit: "MB/s", Wall: true, Peers: report.Beside(qz, report.MBps(b.Size, z.Wall)).And(qr, report.MBps(b.Size, raw.Wall))})
	b.rep.Add(report.Figure{Area: area, Name: "time of qemu-img -c zstd / ours", Value: z.Wall.Seconds() / ours.Wall.Seconds(), Unit: "×", Goal: report.AtLeast(2), Wall: true})
	_, err = meter.Command(ctx, b.tool.qemuImg, "convert", "-m", "8", "-W", "-f", "raw", "-O", "qcow2", b.disk, b.qcow)
	return err
}

// rawToRaw copies the disk as qemu-img does it and leaves nothing behind.
func (b *runner) rawToRaw(ctx context.Context) (meter.Usage, error) {
	out := filepath.Join(b.Dir, "copy.raw")
	u, err := meter.Command(ctx, b.tool.qemuImg, "convert", "-m", "8", "-W", "-t", "writeback", "-f", "raw", "-O", "raw", b.disk, out)
	return u, errors.Join(err, os.Remove(out))
}

// codecAlone compresses the disk's blocks with the encoder and the settings
// that tile images use, two at a time, and does nothing else with them.
func (b *runner) codecAlone(ctx context.Context) (meter.Usage, int64, error) {
	f, err := os.Open(b.disk)
	if err != nil {
		return meter.Usage{}, 0, err
	}
	defer f.Close()
	var packed [2]int64
	var errs [2]error
	u, err := meter.Self(func() error {
		var wg sync.WaitGroup
		for i := range packed {
			wg.Go(func() { packed[i], errs[i] = b.compress(ctx, f, int64(i), int64(len(packed))) })
		}
		wg.Wait()
		return errors.Join(errs[:]...)
	})
	return u, packed[0] + packed[1], err
}

// compress is one worker of n: it takes every n-th MiB.
func (b *runner) compress(ctx context.Context, f *os.File, worker, n int64) (int64, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(cut.Block))
	if err != nil {
		return 0, err
	}
	defer enc.Close()
	const piece = 1 << 20
	buf, dst, zero := make([]byte, piece), []byte(nil), make([]byte, cut.Block)
	var total int64
	for off := worker * piece; off < b.Size && ctx.Err() == nil; off += n * piece {
		k, err := f.ReadAt(buf[:min(piece, b.Size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for p := buf[:k]; len(p) > 0; {
			block := p[:min(cut.Block, len(p))]
			p = p[len(block):]
			if bytes.Equal(block, zero[:len(block)]) {
				continue // tile images leave these out
			}
			dst = enc.EncodeAll(block, dst[:0])
			total += int64(len(dst))
		}
	}
	return total, ctx.Err()
}

// ingestTiles stores the disk as tile images in a bucket of its own.
func (b *runner) ingestTiles(ctx context.Context) (u meter.Usage, stored int64, err error) {
	dir := filepath.Join(b.Dir, "ingest")
	defer os.RemoveAll(dir)
	bucket, err := file.Open(ctx, file.Config{Dir: dir, Create: true})
	if err != nil {
		return u, 0, err
	}
	defer bucket.Close()
	t, err := replica.NewWriter(ctx, bucket, cut.CodecDefault, b.Size)
	if err != nil {
		return u, 0, err
	}
	f, err := os.Open(b.disk)
	if err != nil {
		return u, 0, err
	}
	defer f.Close()
	u, err = meter.Self(func() error {
		var object bytes.Buffer
		object.Grow(cut.TileSize + 1<<20) // its growing is not the format's work
		piece := make([]byte, 1<<20)
		for off := int64(0); off < b.Size; off += cut.TileSize {
			err := t.Tile(ctx, 0, uint32(off/cut.TileSize), &object, func(w *cut.Writer, base int64) error {
				for at, end := base, min(base+cut.TileSize, b.Size); at < end; at += int64(len(piece)) {
					p := piece[:min(int64(len(piece)), end-at)]
					if _, err := f.ReadAt(p, at); err != nil {
						return err
					}
					if err := w.Data(ctx, 0, at, p); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return t.Cut(ctx, nil)
	})
	return u, t.Bytes, err
}
