package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/peers"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/cut"
)

// memoryRequest is what a measured agent is told on its standard input.
type memoryRequest struct {
	Disk   string `json:"disk"`
	Dir    string `json:"dir"`
	Writes int    `json:"writes"`
	Seed   uint64 `json:"seed"`
}

// memoryAnswer is what it says when it is done.
type memoryAnswer struct {
	Peak int64   `json:"peak"` // bytes resident, mapped files included
	Go   int64   `json:"go"`   // bytes that the Go runtime has taken from the system, at the end
	CPU  float64 `json:"cpu"`  // seconds, of all it did
}

// child is a process of the benchmark that is measured from outside.
func child(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("a child is told one thing to do")
	}
	if args[0] == "virtnbdbackup" {
		if done, err := dropRoot(ctx); done || err != nil {
			return err
		}
	}
	dec := json.NewDecoder(in)
	switch args[0] {
	case "virtnbdbackup":
		var q peers.MachineRequest
		if err := dec.Decode(&q); err != nil {
			return err
		}
		a, err := peers.Machine(ctx, q)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(a)
	case "serve":
		var q serveRequest
		if err := dec.Decode(&q); err != nil {
			return err
		}
		return serveChild(ctx, q)
	case "memory":
		var q memoryRequest
		if err := dec.Decode(&q); err != nil {
			return err
		}
		a, err := memoryChild(ctx, q)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(a)
	}
	return fmt.Errorf("a child can't do %q", args[0])
}

// memoryChild replicates a disk, then one delta cycle of random writes.
func memoryChild(ctx context.Context, q memoryRequest) (a memoryAnswer, err error) {
	src, err := rawhost.Open(q.Disk)
	if err != nil {
		return a, err
	}
	defer src.Close()
	r, err := replica.Start(ctx, q.Dir, src)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, r.Stop()) }()
	rng := rand.New(rand.NewPCG(q.Seed, 6))
	p := make([]byte, unit)
	for range q.Writes {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if err := src.Write(p, rng.Int64N(src.Size()/unit)*unit); err != nil {
			return a, err
		}
	}
	if _, err := r.Cycle(ctx); err != nil {
		return a, err
	}
	cpu, err := meter.SelfCPU()
	if err != nil {
		return a, err
	}
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	a.CPU, a.Go = cpu.Seconds(), int64(ms.Sys)
	a.Peak, err = meter.PeakRSS()
	return a, err
}

// memory measures an agent's peak of resident memory on a large and a small disk with the same data.
func (b *runner) memory(ctx context.Context) error {
	small := max(b.MemDisk/64, b.MemData)
	ps, err := b.peakOn(ctx, small)
	if err != nil {
		return err
	}
	pl, err := b.peakOn(ctx, b.MemDisk)
	if err != nil {
		return err
	}
	name := "disk of " + report.Size(small)
	b.rep.Add(report.Figure{Area: "memory", Name: "peak RSS, disk of " + report.Size(b.MemDisk), Value: report.MiB(pl.Peak), Unit: "MiB", Goal: report.AtMost(256), Peers: report.Beside(name, report.MiB(ps.Peak)).And("of it Go's own", report.MiB(pl.Go)), Note: "initial replication of " + report.Size(b.MemData) + " of data, then a delta cycle; mapped files count"})
	b.rep.Add(report.Figure{Area: "memory", Name: "CPU of that process", Value: pl.CPU, Unit: "cpu-s", Peers: report.Beside(name, ps.CPU)})
	return nil
}

func (b *runner) peakOn(ctx context.Context, disk int64) (a memoryAnswer, err error) {
	dir, err := os.MkdirTemp(b.Dir, "memory")
	if err != nil {
		return a, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk.raw")
	if err := b.spread(path, disk); err != nil {
		return a, err
	}
	cmd, err := childCommand(ctx, "memory", memoryRequest{Disk: path, Dir: filepath.Join(dir, "replica"), Writes: b.Writes, Seed: b.Seed})
	if err != nil {
		return a, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return a, fmt.Errorf("the measured agent failed: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return a, json.Unmarshal(stdout.Bytes(), &a)
}

// spread makes a sparse disk with MemData bytes of the real disk, in pieces of 1 MiB at even distances.
func (b *runner) spread(path string, disk int64) error {
	if err := rawhost.CreateSparse(path, disk); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece = 1 << 20
	p := make([]byte, piece)
	n := b.MemData / piece
	for i := range n {
		if _, err := b.src.File.ReadAt(p, i*piece%(b.Size-piece+1)&^(cut.Unit-1)); err != nil {
			return err
		}
		if _, err := f.WriteAt(p, i*(disk/n)&^(cut.Unit-1)); err != nil {
			return err
		}
	}
	return nil
}
