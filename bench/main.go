// Command bench measures Holdfast's data plane against the tools that people
// have instead, on the same data in the same run, and says which goals of the
// design are met.
//
// CPU seconds and bytes come first: they hold on a shared machine. Wall-clock
// figures are reported and never decide anything. What a figure means and how
// to reproduce it is written in docs/performance.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
)

// config of one run; the sizes in bytes.
type config struct {
	Dir     string // of everything written; removed at the end
	Size    int64  // of the disk with real data
	Writes  int    // random 4 KiB writes of the delta cycle
	Cuts    int    // of the recovery point that is read
	Reads   int    // random reads per latency figure
	Hot     int64  // span that is read again and again
	BigDisk int64  // opened; nearly all of it is holes
	MemDisk int64  // replicated by the process whose memory is measured
	MemData int64  // data on it
	Seed    uint64
	Log     func(format string, args ...any)
}

func defaults() config {
	return config{
		Size: 1 << 30, Writes: 4096, Cuts: 12, Reads: 1000, Hot: 32 << 20,
		BigDisk: 1 << 40, MemDisk: 64 << 30, MemData: 256 << 20, Seed: 1,
		Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	}
}

func main() {
	ctx, stop := interruptible()
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == childArg {
		if err := child(ctx, os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	met, err := mainErr(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if !met {
		os.Exit(2)
	}
}

// interruptible is the context of the program, or of a child.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// mainErr reports whether every goal that decides was met, or nobody asked.
func mainErr(ctx context.Context) (bool, error) {
	cfg := defaults()
	gib := flag.Float64("gib", float64(cfg.Size)/(1<<30), "size of the disk with real data, GiB (1 to 4)")
	out := flag.String("out", "bench.json", "where the figures are written")
	base := flag.String("dir", "/var/tmp", "where a working directory is made; needs about six times the disk's size")
	gate := flag.Bool("gate", false, "exit with 2 if a goal that is not wall-clock time is missed")
	flag.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "of everything random")
	flag.Parse()
	cfg.Size = int64(*gib*(1<<30)) &^ (1<<20 - 1)

	dir, err := os.MkdirTemp(*base, "holdfast-bench-")
	if err != nil {
		return false, fmt.Errorf("make working directory: %w", err)
	}
	defer os.RemoveAll(dir)
	cfg.Dir = dir
	rep, err := run(ctx, cfg)
	if err != nil {
		return false, err
	}
	if err := rep.table(os.Stdout); err != nil {
		return false, err
	}
	raw, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(*out, append(raw, '\n'), 0o644); err != nil {
		return false, err
	}
	fmt.Printf("\nwritten to %s\n", *out)
	return !*gate || len(rep.missed(false)) == 0, nil
}

// runner carries what one figure leaves to the next.
type runner struct {
	config
	rep  *Report
	tool tools
	disk string // the guest's disk, a raw file
	r    *replica
	src  *rawhost.Source
	zstd string // qcow2 files with the disk's content
	qcow string
}

// run measures everything, in an order in which later figures use what earlier ones made.
func run(ctx context.Context, cfg config) (*Report, error) {
	b := &runner{config: cfg}
	var err error
	if b.tool, err = findTools(); err != nil {
		return nil, err
	}
	if err := meter.EnoughSpace(cfg.Dir, 6*cfg.Size+cfg.MemData*2); err != nil {
		return nil, err
	}
	start := time.Now()
	b.rep = newReport(ctx, b)
	for _, s := range []struct {
		name string
		fn   func(context.Context) error
	}{
		{"make the disk", b.makeDisk},
		{"initial replication", b.initial},
		{"delta cycle", b.delta},
		{"idle cycle", b.idle},
		{"more cuts", b.history},
		{"ingest", b.ingest},
		{"serve by NBD", b.serve},
		{"hydrate", b.hydrate},
		{"resynchronization", b.resync},
		{"open for an instant boot", b.boot},
		{"memory", b.memory},
	} {
		began := time.Now()
		if err := s.fn(ctx); err != nil {
			b.closeReplica()
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		b.Log("%-26s %5.1f s", s.name, time.Since(began).Seconds())
	}
	if err := b.closeReplica(); err != nil {
		return nil, err
	}
	b.rep.Took = time.Since(start).Seconds()
	b.rep.Host.LoadAfter = meter.LoadAverage()
	return b.rep, nil
}

// version says what was measured, as far as the build knows.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v, dirty := info.Main.Version, ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			v = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return v + dirty
}
