package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/store"
)

// byNBD makes cuts read the disk from a qemu-nbd, as an agent reads from QEMU,
// so that the agent's share of that is measured. The returned function ends it.
func (b *runner) byNBD(ctx context.Context) (*server, func() error, error) {
	s, err := b.startQemuNBD(ctx, b.disk, "raw")
	if err != nil {
		return nil, nil, err
	}
	c, err := s.dial(ctx)
	if err != nil {
		s.stop()
		return nil, nil, err
	}
	b.src.ReadVia(c)
	return s, func() error {
		b.src.ReadVia(nil)
		c.Close()
		_, err := s.stop()
		return err
	}, nil
}

// delta measures one cycle after random small writes, the work that a tracker
// of 64 KiB makes much of.
func (b *runner) delta(ctx context.Context) error {
	places, err := b.scatter(b.Writes, rand.New(rand.NewPCG(b.Seed, 2)))
	if err != nil {
		return err
	}
	dirty := b.src.SinceLast()
	host, done, err := b.byNBD(ctx)
	if err != nil {
		return err
	}
	defer done()
	puts, shipped := b.r.Sink.Puts.Load(), b.r.Sink.Bytes.Load()
	hostCPU, err := meter.ProcessCPU(host.pid())
	if err != nil {
		return err
	}
	var c capture.Cycle
	u, err := meter.Self(func() error { c, err = b.r.Cycle(ctx); return err })
	if err != nil {
		return err
	}
	after, err := meter.ProcessCPU(host.pid())
	if err != nil {
		return err
	}
	puts, shipped = b.r.Sink.Puts.Load()-puts, b.r.Sink.Bytes.Load()-shipped
	if c.Shipped != shipped || c.Dirty != dirty {
		return fmt.Errorf("the agent counts %d bytes shipped of %d dirty, the sink %d and the source %d", c.Shipped, c.Dirty, shipped, dirty)
	}
	all := u
	all.CPU += after - hostCPU
	if b.next != nil {
		b.next[ours] = cost(all, shipped)
	}
	qcow, q, err := b.dirtyClusters(ctx, places)
	if err != nil {
		return err
	}
	const area = "delta"
	written := int64(b.Writes) * unit
	b.rep.Add(report.Figure{Area: area, Name: fmt.Sprintf("shipped for %d random 4 KiB writes", b.Writes), Value: report.MiB(shipped), Unit: "MiB", Goal: scaled(report.AtMost(17), b.Writes), Peers: report.Beside("written", report.MiB(written)).And("dirty 64 KiB clusters", report.MiB(dirty)).And("the clusters by qemu-img -c zstd", report.MiB(qcow))})
	b.rep.Add(report.Figure{Area: area, Name: "dirty clusters / shipped", Value: float64(dirty) / float64(shipped), Unit: "×"})
	b.rep.Add(report.Figure{Area: area, Name: "CPU of the agent", Value: u.CPU.Seconds(), Unit: "cpu-s", Goal: scaled(report.AtMost(0.2), b.Writes), Peers: report.Beside("qemu-nbd serving it", (after-hostCPU).Seconds()).And("qemu-img -c zstd of the clusters", q.CPU.Seconds()), Note: "reads every dirty cluster by NBD"})
	b.rep.Add(report.Figure{Area: area, Name: "PUTs", Value: float64(puts), Unit: "objects"})
	b.rep.Add(report.Figure{Area: area, Name: "time to commit", Value: u.Wall.Seconds(), Unit: "s", Goal: scaled(report.AtMost(0.5), b.Writes), Wall: true, Peers: report.Beside("qemu-img -c zstd of the clusters", q.Wall.Seconds())})
	b.rep.Add(report.Figure{Area: area, Name: "frozen image held", Value: c.Cut.Seconds(), Unit: "s", Wall: true})
	return nil
}

// scaled keeps a goal of the design for its own number of writes only.
func scaled(g *report.Goal, writes int) *report.Goal {
	if writes != defaults().Writes {
		return nil
	}
	return g
}

// places draws n distinct blocks.
func (b *runner) places(n int, rng *rand.Rand) (at []int64) {
	seen := map[int64]bool{}
	for len(at) < n {
		if off := rng.Int64N(b.Size/unit) * unit; !seen[off] {
			seen[off] = true
			at = append(at, off)
		}
	}
	return at
}

// scatter writes n blocks of noise at distinct places, which it returns.
func (b *runner) scatter(n int, rng *rand.Rand) ([]int64, error) {
	at := b.places(n, rng)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	noise := rand.NewChaCha8(seed)
	p := make([]byte, unit)
	for _, off := range at {
		noise.Read(p)
		if err := b.src.Write(p, off); err != nil {
			return nil, err
		}
	}
	return at, nil
}

// dirtyClusters is what a tool with the tracker's granularity has to send for
// the last cycle, compressed as well as qemu-img does it.
func (b *runner) dirtyClusters(ctx context.Context, places []int64) (int64, meter.Usage, error) {
	sparse, out := filepath.Join(b.Dir, "clusters.raw"), filepath.Join(b.Dir, "clusters.qcow2")
	defer os.Remove(sparse)
	defer os.Remove(out)
	if err := rawhost.CreateSparse(sparse, b.Size); err != nil {
		return 0, meter.Usage{}, err
	}
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	if err != nil {
		return 0, meter.Usage{}, err
	}
	defer f.Close()
	p := make([]byte, rawhost.Grain)
	for _, off := range places {
		off = off / rawhost.Grain * rawhost.Grain
		n := min(rawhost.Grain, b.Size-off)
		if _, err := b.src.File.ReadAt(p[:n], off); err != nil {
			return 0, meter.Usage{}, err
		}
		if _, err := f.WriteAt(p[:n], off); err != nil {
			return 0, meter.Usage{}, err
		}
	}
	u, err := meter.Command(ctx, b.tool.qemuImg, "convert", "-c", "-m", "16", "-W", "-t", "writeback", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", sparse, out)
	if err != nil {
		return 0, u, err
	}
	n, err := fileSize(out)
	return n, u, err
}

// idle measures a cycle in which nothing changed.
func (b *runner) idle(ctx context.Context) error {
	puts, bytes := b.r.Sink.Puts.Load(), b.r.Sink.Bytes.Load()
	u, err := meter.Self(func() error { _, err := b.r.Cycle(ctx); return err })
	if err != nil {
		return err
	}
	const area = "idle cycle"
	b.rep.Add(report.Figure{Area: area, Name: "PUTs", Value: float64(b.r.Sink.Puts.Load() - puts), Unit: "objects", Goal: report.AtMost(1)})
	b.rep.Add(report.Figure{Area: area, Name: "shipped", Value: float64(b.r.Sink.Bytes.Load()-bytes) / 1024, Unit: "KiB", Goal: report.AtMost(16)})
	b.rep.Add(report.Figure{Area: area, Name: "CPU", Value: u.CPU.Seconds() * 1000, Unit: "cpu-ms"})
	b.rep.Add(report.Figure{Area: area, Name: "time to commit", Value: u.Wall.Seconds(), Unit: "s", Goal: report.AtMost(0.1), Wall: true})
	return nil
}

// history adds cuts of ordinary writes, 4 to 64 KiB of the disk's own kind of
// data, until the recovery point has as many as the figures of reading are for.
func (b *runner) history(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(b.Seed, 3))
	p := make([]byte, 64<<10)
	for b.r.Cuts < b.Cuts {
		for range max(1, int(b.Size>>20)/10) {
			n := (1 + rng.Int64N(16)) * unit
			from, to := rng.Int64N((b.Size-n)/unit)*unit, rng.Int64N((b.Size-n)/unit)*unit
			if _, err := b.src.File.ReadAt(p[:n], from); err != nil {
				return err
			}
			if err := b.src.Write(p[:n], to); err != nil {
				return err
			}
		}
		if _, err := b.r.Cycle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// resync measures what it takes to find the differences again after the
// tracking was lost.
func (b *runner) resync(ctx context.Context) error {
	n := max(1, b.Writes/4)
	if _, err := b.scatter(n, rand.New(rand.NewPCG(b.Seed, 4))); err != nil {
		return err
	}
	b.src.LoseTracking()
	_, done, err := b.byNBD(ctx)
	if err != nil {
		return err
	}
	defer done()
	shipped := b.r.Sink.Bytes.Load()
	var c capture.Cycle
	u, err := meter.Self(func() error { c, err = b.r.Cycle(ctx); return err })
	if err != nil {
		return err
	}
	if !c.Resync {
		return fmt.Errorf("cut %d was not made by a resynchronization", c.Ref.N)
	}
	shipped = b.r.Sink.Bytes.Load() - shipped
	const area = "resynchronization"
	ratio := report.Figure{Area: area, Name: "shipped / true difference", Value: float64(shipped) / float64(n*unit), Unit: "×"}
	if b.Writes == defaults().Writes { // with fewer the cut's own overhead is all
		ratio.Goal = report.AtMost(1.05)
	}
	b.rep.Add(report.Figure{Area: area, Name: "scan, CPU per 4 GiB", Value: 4 * report.PerGiB(u.CPU, b.Size), Unit: "cpu-s", Goal: report.AtMost(1.5), Note: "by NBD, warm, 4 KiB digests of everything; nothing of the store is read"})
	b.rep.Add(ratio)
	b.rep.Add(report.Figure{Area: area, Name: "throughput", Value: report.MBps(b.Size, u.Wall), Unit: "MB/s", Wall: true})
	return nil
}

// digests measures a resynchronization of an agent that lost everything, its
// filter included: the source is compared with the digests that the vault has.
func (b *runner) digests(ctx context.Context) error {
	n := max(1, b.Writes/4)
	places, err := b.scatter(n, rand.New(rand.NewPCG(b.Seed, 9)))
	if err != nil {
		return err
	}
	chain, err := b.r.Store(b.r.Bucket).Chain(ctx, b.r.Machine)
	if err != nil {
		return err
	}
	tip, ok := chain.Last()
	if !ok {
		return errors.New("there is no recovery point")
	}
	// The vault's side alone, first: its answers are the same later.
	counted := &replica.Counting{Reader: b.r.Bucket}
	var view *store.View
	vault, err := meter.Self(func() error {
		if view, err = b.r.Store(counted).OpenPoint(ctx, b.r.Machine, tip.Gen, tip.N); err != nil {
			return err
		}
		_, err := view.TileRoots(ctx, 0, 0, uint32((b.Size+cut.TileSize-1)/cut.TileSize))
		return err
	})
	if err != nil {
		return err
	}
	defer view.Close()
	b.src.LoseTracking()
	_, done, err := b.byNBD(ctx)
	if err != nil {
		return err
	}
	defer done()
	shipped := b.r.Sink.Bytes.Load()
	dir := filepath.Join(b.Dir, "reinstalled")
	var c capture.Cycle
	u, err := meter.Self(func() error {
		if err := b.r.Reinstall(ctx, dir, replica.Digests{View: view}); err != nil {
			return err
		}
		c, err = b.r.Cycle(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if !b.r.Resynchronized() { // c itself may be one more cut
		return fmt.Errorf("no cut up to %d was made by a resynchronization", c.Ref.N)
	}
	shipped = b.r.Sink.Bytes.Load() - shipped
	if err := b.sameAsDisk(ctx, c.Ref); err != nil {
		return err
	}
	blocks := map[int64]bool{}
	for _, off := range places {
		blocks[off/cut.Block] = true
	}
	const area = "resynchronization by the vault's digests"
	b.rep.Add(report.Figure{Area: area, Name: "scan, CPU of both per 4 GiB", Value: 4 * report.PerGiB(u.CPU, b.Size), Unit: "cpu-s", Goal: report.AtMost(1.5),
		Peers: report.Beside("the vault's part, alone", 4*report.PerGiB(vault.CPU, b.Size)), Note: "by NBD; the local filter is lost and filled again"})
	b.rep.Add(report.Figure{Area: area, Name: "shipped / differing 64 KiB blocks", Value: float64(shipped) / float64(int64(len(blocks))*cut.Block), Unit: "×", Goal: report.AtMost(1.05),
		Peers: report.Beside("shipped, MiB", report.MiB(shipped)).And("written, MiB", report.MiB(int64(n)*unit))})
	b.rep.Add(report.Figure{Area: area, Name: "read from the store by the vault / disk", Value: float64(counted.Bytes.Load()) / float64(b.Size), Unit: "×", Note: "digests are in the tails of tile images; data is read only where changes lie over them"})
	b.rep.Add(report.Figure{Area: area, Name: "throughput", Value: report.MBps(b.Size, u.Wall), Unit: "MB/s", Wall: true})
	return nil
}

// sameAsDisk compares a recovery point with the disk.
func (b *runner) sameAsDisk(ctx context.Context, ref cut.Ref) error {
	v, err := b.r.Store(b.r.Bucket).OpenPoint(ctx, b.r.Machine, ref.Gen, ref.N)
	if err != nil {
		return err
	}
	defer v.Close()
	got, want := make([]byte, 4<<20), make([]byte, 4<<20)
	for off := int64(0); off < b.Size; off += int64(len(got)) {
		n := min(int64(len(got)), b.Size-off)
		if err := v.ReadAt(ctx, rawhost.DiskID, got[:n], off); err != nil {
			return err
		}
		if _, err := b.src.File.ReadAt(want[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("cut %d differs from the disk near %d", ref.N, off)
		}
	}
	return nil
}
