package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/internal/capture"
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
	puts, shipped := b.r.sink.puts.Load(), b.r.sink.bytes.Load()
	hostCPU, err := meter.ProcessCPU(host.pid())
	if err != nil {
		return err
	}
	var c capture.Cycle
	u, err := meter.Self(func() error { c, err = b.r.cycle(ctx); return err })
	if err != nil {
		return err
	}
	after, err := meter.ProcessCPU(host.pid())
	if err != nil {
		return err
	}
	puts, shipped = b.r.sink.puts.Load()-puts, b.r.sink.bytes.Load()-shipped
	if c.Shipped != shipped || c.Dirty != dirty {
		return fmt.Errorf("the agent counts %d bytes shipped of %d dirty, the sink %d and the source %d", c.Shipped, c.Dirty, shipped, dirty)
	}
	qcow, q, err := b.dirtyClusters(ctx, places)
	if err != nil {
		return err
	}
	const area = "delta"
	written := int64(b.Writes) * unit
	b.rep.add(Figure{Area: area, Name: fmt.Sprintf("shipped for %d random 4 KiB writes", b.Writes), Value: mib(shipped), Unit: "MiB", Goal: scaled(atMost(17), b.Writes), Peers: []Peer{{"written", mib(written)}, {"dirty 64 KiB clusters", mib(dirty)}, {"the clusters by qemu-img -c zstd", mib(qcow)}}})
	b.rep.add(Figure{Area: area, Name: "dirty clusters / shipped", Value: float64(dirty) / float64(shipped), Unit: "×"})
	b.rep.add(Figure{Area: area, Name: "CPU of the agent", Value: u.CPU.Seconds(), Unit: "cpu-s", Goal: scaled(atMost(0.2), b.Writes), Peers: []Peer{{"qemu-nbd serving it", (after - hostCPU).Seconds()}, {"qemu-img -c zstd of the clusters", q.CPU.Seconds()}}, Note: "reads every dirty cluster by NBD"})
	b.rep.add(Figure{Area: area, Name: "PUTs", Value: float64(puts), Unit: "objects"})
	b.rep.add(Figure{Area: area, Name: "time to commit", Value: u.Wall.Seconds(), Unit: "s", Goal: scaled(atMost(0.5), b.Writes), Wall: true, Peers: []Peer{{"qemu-img -c zstd of the clusters", q.Wall.Seconds()}}})
	b.rep.add(Figure{Area: area, Name: "frozen image held", Value: c.Cut.Seconds(), Unit: "s", Wall: true})
	return nil
}

// scaled keeps a goal of the design for its own number of writes only.
func scaled(g *Goal, writes int) *Goal {
	if writes != defaults().Writes {
		return nil
	}
	return g
}

// scatter writes n blocks of noise at distinct places, which it returns.
func (b *runner) scatter(n int, rng *rand.Rand) (places []int64, err error) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	noise := rand.NewChaCha8(seed)
	seen := map[int64]bool{}
	p := make([]byte, unit)
	for len(places) < n {
		off := rng.Int64N(b.Size/unit) * unit
		if seen[off] {
			continue
		}
		seen[off] = true
		places = append(places, off)
		noise.Read(p)
		if err := b.src.Write(p, off); err != nil {
			return nil, err
		}
	}
	return places, nil
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
	puts, bytes := b.r.sink.puts.Load(), b.r.sink.bytes.Load()
	u, err := meter.Self(func() error { _, err := b.r.cycle(ctx); return err })
	if err != nil {
		return err
	}
	const area = "idle cycle"
	b.rep.add(Figure{Area: area, Name: "PUTs", Value: float64(b.r.sink.puts.Load() - puts), Unit: "objects", Goal: atMost(1)})
	b.rep.add(Figure{Area: area, Name: "shipped", Value: float64(b.r.sink.bytes.Load()-bytes) / 1024, Unit: "KiB", Goal: atMost(16)})
	b.rep.add(Figure{Area: area, Name: "CPU", Value: u.CPU.Seconds() * 1000, Unit: "cpu-ms"})
	b.rep.add(Figure{Area: area, Name: "time to commit", Value: u.Wall.Seconds(), Unit: "s", Goal: atMost(0.1), Wall: true})
	return nil
}

// history adds cuts of ordinary writes, 4 to 64 KiB of the disk's own kind of
// data, until the recovery point has as many as the figures of reading are for.
func (b *runner) history(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(b.Seed, 3))
	p := make([]byte, 64<<10)
	for b.r.cuts < b.Cuts {
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
		if _, err := b.r.cycle(ctx); err != nil {
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
	shipped := b.r.sink.bytes.Load()
	var c capture.Cycle
	u, err := meter.Self(func() error { c, err = b.r.cycle(ctx); return err })
	if err != nil {
		return err
	}
	if !c.Resync {
		return fmt.Errorf("cut %d was not made by a resynchronization", c.Ref.N)
	}
	shipped = b.r.sink.bytes.Load() - shipped
	const area = "resynchronization"
	ratio := Figure{Area: area, Name: "shipped / true difference", Value: float64(shipped) / float64(n*unit), Unit: "×"}
	if b.Writes == defaults().Writes { // with fewer the cut's own overhead is all
		ratio.Goal = atMost(1.05)
	}
	b.rep.add(Figure{Area: area, Name: "scan, CPU per 4 GiB", Value: 4 * perGiB(u.CPU, b.Size), Unit: "cpu-s", Goal: atMost(1.5), Note: "by NBD, warm, 4 KiB digests of everything; nothing of the store is read"})
	b.rep.add(ratio)
	b.rep.add(Figure{Area: area, Name: "throughput", Value: mbps(b.Size, u.Wall), Unit: "MB/s", Wall: true})
	return nil
}
