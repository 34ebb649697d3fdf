package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/internal/cut"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
)

// hydrate measures the restore of the newest point to a raw file, and proves that it is the disk.
func (b *runner) hydrate(ctx context.Context) error {
	out := filepath.Join(b.Dir, "restored.raw")
	u, err := meter.Self(func() error {
		v, err := b.r.open(ctx, b.r.bucket, b.r.tip())
		if err != nil {
			return err
		}
		defer v.Close()
		return hydrate.Restore(ctx, v, rawhost.DiskID, out, hydrate.RestoreOptions{})
	})
	if err != nil {
		return err
	}
	want, err := sumFile(b.disk)
	if err != nil {
		return err
	}
	got, err := sumFile(out)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the restored disk differs from the source")
	}
	if err := os.Remove(out); err != nil {
		return err
	}
	raw, err := b.rawToRaw(ctx)
	if err != nil {
		return err
	}
	z, err := meter.Command(ctx, b.tool.qemuImg, "convert", "-m", "8", "-W", "-t", "writeback", "-f", "qcow2", "-O", "raw", b.zstd, out)
	if err := errors.Join(err, os.Remove(out)); err != nil {
		return err
	}
	const area = "hydrate"
	peers := func(v func(meter.Usage) float64) []Peer {
		return []Peer{{"qemu-img raw→raw", v(raw)}, {"qemu-img qcow2 zstd→raw", v(z)}}
	}
	cpu := func(u meter.Usage) float64 { return perGiB(u.CPU, b.Size) }
	rate := func(u meter.Usage) float64 { return mbps(b.Size, u.Wall) }
	b.rep.add(Figure{Area: area, Name: "CPU", Value: cpu(u), Unit: "cpu-s/GiB", Peers: peers(cpu), Note: "opens, decrypts, verifies, writes, syncs"})
	b.rep.add(Figure{Area: area, Name: "throughput", Value: rate(u), Unit: "MB/s", Goal: atLeast(500), Wall: true, Peers: peers(rate)})
	b.rep.add(Figure{Area: area, Name: "time / qemu-img raw→raw", Value: u.Wall.Seconds() / raw.Wall.Seconds(), Unit: "×", Goal: atMost(1.5), Wall: true})
	return nil
}

func sumFile(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// opening is what it took until a guest could read its first block. The
// requests are those that the guest waits for; verification, which goes on
// beside it, takes its time but is not counted.
type opening struct {
	meter.Usage
	gets, lists, bytes int64
}

// openAndRead opens a point, serves it and reads its first block by NBD.
func openAndRead(ctx context.Context, m *vaultSide, b objstore.Reader, n uint64, delay time.Duration) (o opening, err error) {
	dir, err := os.MkdirTemp("/tmp", "hfbench")
	if err != nil {
		return o, err
	}
	defer os.RemoveAll(dir)
	counted := &counting{Reader: b, delay: delay}
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	o.Usage, err = meter.Self(func() error {
		v, err := m.open(ctx, counted, n)
		if err != nil {
			return err
		}
		gets, bytes := v.Reads()
		o.gets, o.lists, o.bytes = counted.gets.Load()-gets, counted.lists.Load(), counted.bytes.Load()-bytes
		s := &server{socket: filepath.Join(dir, hydrate.SocketName), export: rawhost.DiskID}
		go func() {
			err := hydrate.Serve(sctx, hydrate.ServeConfig{Dir: dir, View: v})
			served <- errors.Join(err, v.Close())
		}()
		c, err := s.dial(ctx)
		if err == nil {
			err = firstBlock(ctx, c)
		}
		gets, bytes = v.Reads()
		o.gets, o.bytes = o.gets+gets, o.bytes+bytes
		if err != nil {
			stop()
			err = errors.Join(err, <-served)
		}
		return err
	})
	if err != nil {
		return o, err
	}
	stop()
	return o, <-served
}

func firstBlock(ctx context.Context, c *nbd.Client) error {
	defer c.Close()
	return c.ReadAt(ctx, make([]byte, unit), 0)
}

// boot measures how soon a recovery point can be booted from, on disks that
// differ in their size only.
func (b *runner) boot(ctx context.Context) error {
	type point struct {
		name  string
		disk  int64
		tiles int
	}
	var got []opening
	points := []point{{"1 GiB", 1 << 30, 16}, {size(b.BigDisk), b.BigDisk, 16}, {size(b.BigDisk) + " with data in every tile", b.BigDisk, int(b.BigDisk / cut.TileSize)}}
	var slow opening
	for i, p := range points {
		bucket := mem.New()
		m, err := sparsePoint(ctx, bucket, p.disk, p.tiles)
		if err != nil {
			return err
		}
		o, err := openAndRead(ctx, m, bucket, 0, 0)
		if err != nil {
			return err
		}
		got = append(got, o)
		if i == 1 {
			if slow, err = openAndRead(ctx, m, bucket, 0, 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
	real, err := openAndRead(ctx, b.r.vaultSide, b.r.bucket, b.r.tip(), 0)
	if err != nil {
		return err
	}
	const area = "instant boot, until the first block"
	us := fmt.Sprintf("%s with %d cuts, directory", size(b.Size), b.r.cuts)
	small, big, full := points[0].name, points[1].name, points[2].name
	peers := func(v func(opening) float64) []Peer {
		return []Peer{{small, v(got[0])}, {full, v(got[2])}, {us, v(real)}}
	}
	gets := func(o opening) float64 { return float64(o.gets + o.lists) }
	kib := func(o opening) float64 { return float64(o.bytes) / 1024 }
	cpu := func(o opening) float64 { return o.CPU.Seconds() * 1000 }
	wall := func(o opening) float64 { return o.Wall.Seconds() * 1000 }
	like := func(v float64, floor float64) *Goal {
		return &Goal{Limit: max(3*v, floor), From: "three times " + small}
	}
	b.rep.add(Figure{Area: area, Name: "requests, sparse " + big, Value: gets(got[1]), Unit: "requests", Goal: like(gets(got[0]), 1), Peers: peers(gets)})
	b.rep.add(Figure{Area: area, Name: "read, sparse " + big, Value: kib(got[1]), Unit: "KiB", Goal: like(kib(got[0]), 64), Peers: peers(kib)})
	b.rep.add(Figure{Area: area, Name: "CPU, sparse " + big, Value: cpu(got[1]), Unit: "cpu-ms", Peers: peers(cpu)})
	b.rep.add(Figure{Area: area, Name: "time, sparse " + big, Value: wall(got[1]), Unit: "ms", Goal: like(wall(got[0]), 50), Wall: true, Peers: peers(wall)})
	b.rep.add(Figure{Area: area, Name: "time at 20 ms per request, sparse " + big, Value: wall(slow), Unit: "ms", Wall: true})
	return nil
}

// sparsePoint makes a recovery point of a disk with one block of data in each
// of so many tiles, spread evenly.
func sparsePoint(ctx context.Context, b objstore.Bucket, disk int64, tiles int) (*vaultSide, error) {
	t, err := newTileSet(ctx, b, disk, cut.CodecNone)
	if err != nil {
		return nil, err
	}
	block := bytes.Repeat([]byte("holdfast"), unit/8)
	var buf bytes.Buffer
	all := disk / cut.TileSize
	for i := range int64(tiles) {
		err := t.tile(ctx, uint32(i*all/int64(tiles)), &buf, func(w *cut.Writer, base int64) error {
			return w.Data(ctx, 0, base, block)
		})
		if err != nil {
			return nil, err
		}
	}
	return t.vaultSide, t.commit(ctx)
}
