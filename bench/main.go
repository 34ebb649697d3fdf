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
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
)

// config of one run; the sizes in bytes.
type config struct {
	Dir     string        // of everything written; removed at the end
	Size    int64         // of the disk with real data
	Writes  int           // random 4 KiB writes of the delta cycle
	Cuts    int           // of the recovery point that is read
	Reads   int           // random reads per latency figure
	Hot     int64         // span that is read again and again
	BigDisk int64         // opened; nearly all of it is holes
	MemDisk int64         // replicated by the process whose memory is measured
	MemData int64         // data on it
	Many    int           // cuts of the point that is opened among many
	Cycles  int           // of the modelled retention, one every five minutes
	Model   int64         // of the modelled disk
	Map     int64         // extents of the map whose memory is measured
	Guest   int           // writes of a guest per round
	Items   int           // of the vault
	Asking  time.Duration // how long its API is asked
	Boots   bool          // boot a real guest, which needs QEMU and minutes under emulation
	Rows    []string
	Seed    uint64

	Profiles string // directory for CPU profiles, "" = none
	Log      func(format string, args ...any)
}

func defaults() config {
	return config{
		Size: 1 << 30, Writes: 4096, Cuts: 12, Reads: 1000, Hot: 32 << 20,
		BigDisk: 1 << 40, MemDisk: 64 << 30, MemData: 256 << 20, Seed: 1,
		Many: 3000, Cycles: 6 * 288, Model: 128 << 20, Map: 16 << 20, Guest: 4000, Items: 10_000, Asking: 30 * time.Second, Boots: true,
		Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	}
}

// small are sizes that take seconds.
func (c config) small() config {
	c.Size, c.Writes, c.Cuts, c.Reads, c.Hot = 24<<20, 40, 4, 20, 2<<20
	c.BigDisk, c.MemDisk, c.MemData = 2<<30, 256<<20, 4<<20
	c.Many, c.Cycles, c.Model, c.Map, c.Guest, c.Items, c.Asking, c.Boots = 40, 60, 8<<20, 1<<16, 50, 20, time.Second, false
	return c
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
	base := flag.String("dir", "/var/tmp", "where a working directory is made; needs about ten times the disk's size")
	gate := flag.Bool("gate", false, "exit with 2 if a goal that is not wall-clock time is missed")
	rows := flag.String("rows", "", "measure these only, separated by commas, and what they need: "+strings.Join(rowNames(), ", "))
	small := flag.Bool("small", false, "a quick look with small sizes: proves that everything works, its figures say little")
	flag.StringVar(&cfg.Profiles, "profiles", "", "directory for a CPU profile of each stage (go tool pprof); costs a little time itself")
	flag.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "of everything random")
	flag.Parse()
	if flag.NArg() > 0 {
		return false, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if *small {
		cfg = cfg.small()
	} else {
		cfg.Size = int64(*gib*(1<<30)) &^ (1<<20 - 1)
	}
	if *rows != "" {
		cfg.Rows = strings.Split(*rows, ",")
	}
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
	if err := rep.Table(os.Stdout); err != nil {
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
	return !*gate || len(rep.Missed(false)) == 0, nil
}

// runner carries what one figure leaves to the next.
type runner struct {
	config
	rep  *report.Report
	tool tools
	disk string // the guest's disk, a raw file
	r    *replica.Replica
	src  *rawhost.Source
	zstd string // qcow2 files with the disk's content
	qcow string
	beside
}

// stage is one piece of the run. Stages without a row prepare others.
type stage struct {
	name  string
	row   string
	needs []string // names of stages before it
	fn    func(*runner, context.Context) error
}

// stages in an order in which later ones use what earlier ones made.
var stages = []stage{
	{"make the disk", "", nil, (*runner).makeDisk},
	{"initial replication", "ingest", []string{"make the disk"}, (*runner).initial},
	{"first copy by others", "peers", []string{"initial replication"}, (*runner).firstCopies},
	{"delta cycle", "delta", []string{"initial replication"}, (*runner).delta},
	{"incremental by others", "peers", []string{"first copy by others", "delta cycle"}, (*runner).increments},
	{"idle cycle", "idle", []string{"initial replication"}, (*runner).idle},
	{"more cuts", "", []string{"initial replication"}, (*runner).history},
	{"ingest", "ingest", []string{"initial replication"}, (*runner).ingest},
	{"serve by NBD", "overlay", []string{"more cuts", "ingest"}, (*runner).serve},
	{"hydrate", "hydrate", []string{"more cuts", "ingest"}, (*runner).hydrate},
	{"resynchronization", "resync", []string{"initial replication"}, (*runner).resync},
	{"open for an instant boot", "boot", []string{"more cuts"}, (*runner).boot},
	{"resync by digests", "digests", []string{"initial replication"}, (*runner).digests},
	{"boot a guest", "boot", nil, (*runner).bootGuest},
	{"open among many cuts", "opening", nil, (*runner).opening},
	{"retention", "retention", nil, (*runner).retention},
	{"extent map", "map", nil, (*runner).extentMap},
	{"memory", "agent", []string{"initial replication"}, (*runner).memory},
	{"guest writes", "guest", nil, (*runner).guestWrites},
	{"vault of many items", "vault", nil, (*runner).vault},
}

func rowNames() []string {
	var names []string
	for _, s := range stages {
		if s.row != "" && !slices.Contains(names, s.row) {
			names = append(names, s.row)
		}
	}
	return names
}

// selected are the stages of the rows and what they need, in order.
func selected(rows []string) ([]stage, error) {
	want := map[string]bool{}
	for _, r := range rows {
		if !slices.Contains(rowNames(), r) {
			return nil, fmt.Errorf("there is no row %q: the rows are %s", r, strings.Join(rowNames(), ", "))
		}
	}
	for _, s := range slices.Backward(stages) { // a need stands before
		if len(rows) == 0 || slices.Contains(rows, s.row) {
			want[s.name] = true
		}
		if want[s.name] {
			for _, n := range s.needs {
				want[n] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(stages), func(s stage) bool { return !want[s.name] }), nil
}

// run measures what was asked for.
func run(ctx context.Context, cfg config) (*report.Report, error) {
	b := &runner{config: cfg}
	todo, err := selected(cfg.Rows)
	if err != nil {
		return nil, err
	}
	if b.tool, err = findTools(); err != nil {
		return nil, err
	}
	if err := meter.EnoughSpace(cfg.Dir, 10*cfg.Size+cfg.MemData*2); err != nil {
		return nil, err
	}
	start := time.Now()
	b.rep = b.newReport(ctx)
	for _, s := range todo {
		began := time.Now()
		b.rep.Row = s.row
		if err := b.profiled(ctx, s); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", s.name, err), b.closeReplica())
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

// profiled runs a stage.
func (b *runner) profiled(ctx context.Context, s stage) (err error) {
	if b.Profiles == "" {
		return s.fn(b, ctx)
	}
	f, err := os.Create(filepath.Join(b.Profiles, strings.ReplaceAll(s.name, " ", "-")+".pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return s.fn(b, ctx)
}

func (b *runner) closeReplica() error {
	var err error
	if b.r != nil {
		err = b.r.Stop()
	}
	if b.src != nil {
		err = errors.Join(err, b.src.Close())
	}
	b.r, b.src = nil, nil
	return err
}

func (b *runner) newReport(ctx context.Context) *report.Report {
	var h report.Host
	h.CPU, h.MemoryMiB = meter.Machine()
	h.OS, h.Go, h.Cores, h.LoadBefore = runtime.GOOS+"/"+runtime.GOARCH, runtime.Version(), runtime.NumCPU(), meter.LoadAverage()
	h.Tools = map[string]string{}
	for name, path := range b.tool.all() {
		if out, err := exec.CommandContext(ctx, path, "--version").Output(); err == nil {
			h.Tools[name], _, _ = strings.Cut(string(out), "\n")
		}
	}
	rows := b.Rows
	if len(rows) == 0 {
		rows = rowNames()
	}
	return &report.Report{Format: report.Format, Version: version(), Date: time.Now().UTC().Truncate(time.Second), Host: h, Disk: b.Size, Rows: rows}
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
