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
	"holdfast/bench/internal/peers"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/cut"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
)

// hydrate measures the restore of the newest point to a raw file, and proves that it is the disk.
func (b *runner) hydrate(ctx context.Context) error {
	out := filepath.Join(b.Dir, "restored.raw")
	// The first to write a gigabyte may have to wait for memory that a hypervisor
	// gives to this machine: nobody who is measured shall be the first.
	if _, err := b.rawToRaw(ctx); err != nil {
		return err
	}
	u, err := meter.Self(func() error {
		v, err := b.r.Open(ctx, b.r.Bucket, b.r.Tip())
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
	with := func(v func(meter.Usage) float64) report.Peers {
		ps := report.Beside("qemu-img raw→raw", v(raw)).And("qemu-img qcow2 zstd→raw", v(z))
		for _, name := range []string{peers.Borg, peers.Virtnbd} { // of the same content but for some cuts
			if r, ok := b.restored[name]; ok && r.Err != nil {
				ps = ps.Without(name, r.Err.Error())
			} else if ok {
				ps = ps.And(name, v(r.Usage))
			}
		}
		return ps
	}
	cpu := func(u meter.Usage) float64 { return report.PerGiB(u.CPU, b.Size) }
	rate := func(u meter.Usage) float64 { return report.MBps(b.Size, u.Wall) }
	b.rep.Add(report.Figure{Area: area, Name: "CPU", Value: cpu(u), Unit: "cpu-s/GiB", Peers: with(cpu), Note: "opens, decrypts, verifies, writes, syncs"})
	b.rep.Add(report.Figure{Area: area, Name: "throughput", Value: rate(u), Unit: "MB/s", Goal: report.AtLeast(500), Wall: true, Peers: with(rate)})
	b.rep.Add(report.Figure{Area: area, Name: "time / qemu-img raw→raw", Value: u.Wall.Seconds() / raw.Wall.Seconds(), Unit: "×", Goal: report.AtMost(1.5), Wall: true})
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
func openAndRead(ctx context.Context, m *replica.Vault, b objstore.Reader, n uint64, delay time.Duration) (o opening, err error) {
	dir, err := os.MkdirTemp("/tmp", "hfbench")
	if err != nil {
		return o, err
	}
	defer os.RemoveAll(dir)
	counted := &replica.Counting{Reader: b, Delay: delay}
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	o.Usage, err = meter.Self(func() error {
		v, err := m.Open(ctx, counted, n)
		if err != nil {
			return err
		}
		gets, bytes := v.Reads()
		o.gets, o.lists, o.bytes = counted.Gets.Load()-gets, counted.Lists.Load(), counted.Bytes.Load()-bytes
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
	points := []point{{"1 GiB", 1 << 30, 16}, {report.Size(b.BigDisk), b.BigDisk, 16}, {report.Size(b.BigDisk) + " with data in every tile", b.BigDisk, int(b.BigDisk / cut.TileSize)}}
	var slow opening
	for i, p := range points {
		bucket := mem.New()
		m, err := sparsePoint(ctx, bucket, p.disk, p.tiles)
		if err != nil {
			return err
		}
		o, err := openAndRead(ctx, m.Vault, bucket, m.Tip(), 0)
		if err != nil {
			return err
		}
		got = append(got, o)
		if i == 1 {
			if slow, err = openAndRead(ctx, m.Vault, bucket, m.Tip(), 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
	real, err := openAndRead(ctx, b.r.Vault, b.r.Bucket, b.r.Tip(), 0)
	if err != nil {
		return err
	}
	const area = "instant boot, until the first block"
	us := fmt.Sprintf("%s with %d cuts, directory", report.Size(b.Size), b.r.Cuts)
	small, big, full := points[0].name, points[1].name, points[2].name
	with := func(v func(opening) float64) report.Peers {
		return report.Beside(small, v(got[0])).And(full, v(got[2])).And(us, v(real))
	}
	gets := func(o opening) float64 { return float64(o.gets + o.lists) }
	kib := func(o opening) float64 { return float64(o.bytes) / 1024 }
	cpu := func(o opening) float64 { return o.CPU.Seconds() * 1000 }
	wall := func(o opening) float64 { return o.Wall.Seconds() * 1000 }
	like := func(v float64, floor float64) *report.Goal {
		return &report.Goal{Limit: max(3*v, floor), From: "three times " + small}
	}
	b.rep.Add(report.Figure{Area: area, Name: "requests, sparse " + big, Value: gets(got[1]), Unit: "requests", Goal: like(gets(got[0]), 1), Peers: with(gets)})
	b.rep.Add(report.Figure{Area: area, Name: "read, sparse " + big, Value: kib(got[1]), Unit: "KiB", Goal: like(kib(got[0]), 64), Peers: with(kib)})
	b.rep.Add(report.Figure{Area: area, Name: "CPU, sparse " + big, Value: cpu(got[1]), Unit: "cpu-ms", Peers: with(cpu)})
	b.rep.Add(report.Figure{Area: area, Name: "time, sparse " + big, Value: wall(got[1]), Unit: "ms", Goal: like(wall(got[0]), 50), Wall: true, Peers: with(wall)})
	b.rep.Add(report.Figure{Area: area, Name: "time at 20 ms per request, sparse " + big, Value: wall(slow), Unit: "ms", Wall: true})
	return nil
}

// sparsePoint makes a recovery point of a disk with one block of data in each
// of so many tiles, spread evenly.
func sparsePoint(ctx context.Context, b objstore.Bucket, disk int64, tiles int) (*replica.Writer, error) {
	t, err := replica.NewWriter(ctx, b, cut.CodecNone, disk)
	if err != nil {
		return nil, err
	}
	block := bytes.Repeat([]byte("holdfast"), unit/8)
	var buf bytes.Buffer
	all := disk / cut.TileSize
	for i := range int64(tiles) {
		err := t.Tile(ctx, 0, uint32(i*all/int64(tiles)), &buf, func(w *cut.Writer, base int64) error {
			return w.Data(ctx, 0, base, block)
		})
		if err != nil {
			return nil, err
		}
	}
	return t, t.Cut(ctx, nil)
}
