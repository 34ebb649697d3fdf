package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/objstore/file"
)

// serveRequest is what a serving child is told on its standard input, the key included.
type serveRequest struct {
	Bucket  string       `json:"bucket"`
	Machine dr.MachineID `json:"machine"`
	Key     string       `json:"key"`
	N       uint64       `json:"n"`
	Dir     string       `json:"dir"`
}

// serveChild serves a recovery point as the product does: every byte verified first.
func serveChild(ctx context.Context, q serveRequest) error {
	key, err := cut.ParseVaultPrivateKey(q.Key)
	if err != nil {
		return err
	}
	b, err := file.Open(ctx, file.Config{Dir: q.Bucket, ReadOnly: true})
	if err != nil {
		return err
	}
	defer b.Close()
	v, err := (&replica.Vault{Machine: q.Machine, Key: key}).Open(ctx, b, q.N)
	if err != nil {
		return err
	}
	defer v.Close()
	return hydrate.Serve(ctx, hydrate.ServeConfig{Dir: q.Dir, View: v, Check: time.Hour})
}

func (b *runner) startServe(ctx context.Context) (*server, error) {
	dir, err := os.MkdirTemp("/tmp", "hfbench")
	if err != nil {
		return nil, err
	}
	key, err := b.r.Key.Text()
	if err != nil {
		return nil, err
	}
	cmd, err := childCommand(ctx, "serve", serveRequest{Bucket: b.r.Dir, Machine: b.r.Machine, Key: key, N: b.r.Tip(), Dir: dir})
	if err != nil {
		return nil, err
	}
	return startServer(cmd, dir, filepath.Join(dir, hydrate.SocketName), rawhost.DiskID)
}

// childArg as the first argument makes this program a child of the benchmark.
const childArg = "benchmark-child"

func childCommand(ctx context.Context, what string, request any) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, childArg, what)
	cmd.Stdin = bytes.NewReader(raw)
	return cmd, nil
}

// reading is what one server reached.
type reading struct {
	missP50, missP99 time.Duration
	hitP50           time.Duration
	warmP50          time.Duration // not decoded, but in the page cache
	seq              time.Duration // wall
	seqCPU           time.Duration // of the server
}

// serve compares the overlay of the newest recovery point with qemu-nbd on the
// same content, all read by the same client in the same way.
func (b *runner) serve(ctx context.Context) error {
	kinds := []struct {
		name  string
		path  string // of what is stored
		start func() (*server, error)
	}{
		{"holdfast", b.r.Dir, func() (*server, error) { return b.startServe(ctx) }},
		{"qemu-nbd qcow2 zstd", b.zstd, func() (*server, error) { return b.startQemuNBD(ctx, b.zstd, "qcow2") }},
		{"qemu-nbd qcow2 plain", b.qcow, func() (*server, error) { return b.startQemuNBD(ctx, b.qcow, "qcow2") }},
	}
	places, err := b.readPlaces()
	if err != nil {
		return err
	}
	var got []reading
	for _, k := range kinds {
		s, err := k.start()
		if err != nil {
			return fmt.Errorf("serve by %s: %w", k.name, err)
		}
		r, err := b.read(ctx, s, k.path, places)
		if _, serr := s.stop(); err == nil {
			err = serr
		}
		if err != nil {
			return fmt.Errorf("read from %s: %w", k.name, err)
		}
		got = append(got, r)
	}
	peers := func(v func(reading) float64) (float64, report.Peers) {
		var ps report.Peers
		for i := range kinds[1:] {
			ps = ps.And(kinds[i+1].name, v(got[i+1]))
		}
		return v(got[0]), ps
	}
	add := func(name, unit string, goal *report.Goal, note string, v func(reading) float64) {
		value, ps := peers(v)
		b.rep.Add(report.Figure{Area: "overlay by NBD", Name: name, Value: value, Unit: unit, Goal: goal, Wall: name[0] != 'C', Peers: ps, Note: note})
	}
	miss := &report.Goal{Limit: report.Micros(got[1].missP50), From: "qemu-nbd qcow2 zstd, miss p50"}
	add("CPU of the server, sequential", "cpu-s/GiB", nil, "", func(r reading) float64 { return report.PerGiB(r.seqCPU, b.Size) })
	add("miss p50, 4 KiB", "µs", miss, "queue depth 1, nothing decoded, page cache dropped", func(r reading) float64 { return report.Micros(r.missP50) })
	add("miss p99, 4 KiB", "µs", nil, "", func(r reading) float64 { return report.Micros(r.missP99) })
	add("miss p50, page cache warm", "µs", nil, "nothing decoded: what is left without the disk", func(r reading) float64 { return report.Micros(r.warmP50) })
	add("hit p50, 4 KiB", "µs", report.AtMost(75), "span of "+report.Size(b.Hot)+" that was read before", func(r reading) float64 { return report.Micros(r.hitP50) })
	add("sequential", "MB/s", report.AtLeast(800), "nbdcopy to null, page cache warm", func(r reading) float64 { return report.MBps(b.Size, r.seq) })
	return nil
}

// places to read: blocks of data, not of zeroes, each in a digest block of its own.
type places struct{ miss, hit []int64 }

func (b *runner) readPlaces() (places, error) {
	rng := rand.New(rand.NewPCG(b.Seed, 5))
	var p places
	buf, zero := make([]byte, unit), make([]byte, unit)
	// pick appends up to n such offsets of [from, to).
	pick := func(n int, from, to int64, apart int64) (out []int64, err error) {
		seen := map[int64]bool{}
		for try := 0; len(out) < n && try < 20*n; try++ {
			off := from + rng.Int64N((to-from)/unit)*unit
			if apart > 0 && seen[off/apart] {
				continue
			}
			if _, err := b.src.File.ReadAt(buf, off); err != nil {
				return nil, err
			}
			if !bytes.Equal(buf, zero) {
				if apart > 0 {
					seen[off/apart] = true
				}
				out = append(out, off)
			}
		}
		if len(out) == 0 {
			err = errors.New("the disk has no data to read")
		}
		return out, err
	}
	var err error
	if p.miss, err = pick(b.Reads, 0, b.Size, cut.Block); err != nil {
		return p, err
	}
	start := (b.Size / 2) &^ (cut.Block - 1)
	p.hit, err = pick(2*b.Reads, start, min(start+b.Hot, b.Size), 0)
	return p, err
}

// read takes all figures from one server, whose files are below path.
func (b *runner) read(ctx context.Context, s *server, path string, at places) (r reading, err error) {
	c, err := s.dial(ctx)
	if err != nil {
		return r, err
	}
	defer c.Close()
	if err := meter.Chill(path); err != nil {
		return r, err
	}
	if r.missP50, r.missP99, err = b.latency(ctx, c, at.miss); err != nil {
		return r, err
	}
	start := (b.Size / 2) &^ (cut.Block - 1)
	warm := make([]byte, 1<<20)
	for off := start; off < min(start+b.Hot, b.Size); off += int64(len(warm)) {
		if err := c.ReadAt(ctx, warm[:min(int64(len(warm)), b.Size-off)], off); err != nil {
			return r, err
		}
	}
	if r.hitP50, _, err = b.latency(ctx, c, at.hit); err != nil {
		return r, err
	}
	// Once to warm the page cache for everybody, once measured.
	if _, err := meter.Command(ctx, b.tool.nbdcopy, s.uri(), "null:"); err != nil {
		return r, err
	}
	cpu, err := meter.ProcessCPU(s.pid())
	if err != nil {
		return r, err
	}
	u, err := meter.Command(ctx, b.tool.nbdcopy, s.uri(), "null:")
	if err != nil {
		return r, err
	}
	now, err := meter.ProcessCPU(s.pid())
	if err != nil {
		return r, err
	}
	r.seq, r.seqCPU = u.Wall, now-cpu
	// What was copied last is still decoded: a few places in a hundred.
	r.warmP50, _, err = b.latency(ctx, c, at.miss)
	return r, err
}

// latency reads 4 KiB at each place, one after the other, and checks what comes.
func (b *runner) latency(ctx context.Context, c *nbd.Client, at []int64) (p50, p99 time.Duration, err error) {
	got, want := make([]byte, unit), make([]byte, unit)
	took := make([]time.Duration, 0, len(at))
	for _, off := range at {
		start := time.Now()
		if err := c.ReadAt(ctx, got, off); err != nil {
			return 0, 0, err
		}
		took = append(took, time.Since(start))
		if _, err := b.src.File.ReadAt(want, off); err != nil {
			return 0, 0, err
		}
		if !bytes.Equal(got, want) {
			return 0, 0, fmt.Errorf("block at %d differs from the disk", off)
		}
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}
