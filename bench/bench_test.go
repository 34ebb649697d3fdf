package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain also is the children that the benchmark starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childArg {
		ctx, stop := interruptible()
		err := child(ctx, os.Args[2:], os.Stdin, os.Stdout)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	m.Run()
}

// Every figure is measured on a tiny disk, so that the benchmark can't rot.
func TestEveryFigure(t *testing.T) {
	if testing.Short() {
		t.Skip("takes many seconds on a busy machine")
	}
	cfg := defaults()
	cfg.Dir, cfg.Log = t.TempDir(), t.Logf
	cfg.Size, cfg.Writes, cfg.Cuts, cfg.Reads, cfg.Hot = 24<<20, 40, 4, 20, 2<<20
	cfg.BigDisk, cfg.MemDisk, cfg.MemData = 2<<30, 256<<20, 4<<20
	rep, err := run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var areas []string
	for _, f := range rep.Figures {
		if len(areas) == 0 || areas[len(areas)-1] != f.Area {
			areas = append(areas, f.Area)
		}
		if math.IsNaN(f.Value) || math.IsInf(f.Value, 0) || f.Value <= 0 || f.Unit == "" {
			// The one value that noise may make negative, and CPU time in ticks of 10 ms.
			if !strings.Contains(f.Name, "beyond") && !strings.HasPrefix(f.Name, "CPU of the server") {
				t.Errorf("%s, %s: %v %q", f.Area, f.Name, f.Value, f.Unit)
			}
		}
		if (f.Goal == nil) != (f.Met == nil) {
			t.Errorf("%s, %s: goal %v, met %v", f.Area, f.Name, f.Goal, f.Met)
		}
	}
	want := []string{"initial replication", "delta", "idle cycle", "ingest", "overlay by NBD", "hydrate", "resynchronization", "instant boot, until the first block", "memory"}
	if !slices.Equal(areas, want) {
		t.Errorf("areas %q, want %q", areas, want)
	}
	raw, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Figures) != len(rep.Figures) || back.Format != 1 || back.Host.CPU == "" || back.Host.Tools["qemu-img"] == "" {
		t.Errorf("read back: %+v", back)
	}
	var out bytes.Buffer
	if err := rep.table(&out); err != nil || strings.Count(out.String(), "\n") < len(rep.Figures) {
		t.Errorf("table %v:\n%s", err, out.String())
	}
	left, err := filepath.Glob(filepath.Join(cfg.Dir, "*"))
	if err != nil || len(left) > 4 { // disk.raw, replica, two qcow2 files
		t.Errorf("left behind: %q %v", left, err)
	}
}

func TestGoals(t *testing.T) {
	t.Parallel()
	r := &Report{}
	r.add(Figure{Name: "a", Value: 5, Goal: atMost(5)})
	r.add(Figure{Name: "b", Value: 5.1, Goal: atMost(5)})
	r.add(Figure{Name: "c", Value: 2, Goal: atLeast(2)})
	r.add(Figure{Name: "d", Value: 1.9, Goal: atLeast(2), Wall: true})
	r.add(Figure{Name: "e", Value: 1})
	names := func(fs []Figure) (s string) {
		for _, f := range fs {
			s += f.Name
		}
		return s
	}
	if got := names(r.missed(true)); got != "bd" {
		t.Errorf("missed %q", got)
	}
	// Wall-clock time never decides.
	if got := names(r.missed(false)); got != "b" {
		t.Errorf("missed and deciding %q", got)
	}
	for v, want := range map[float64]string{0: "0", 4: "4", 4.126: "4.13", 0.0123: "0.012", 0.25: "0.250", 42.26: "42.3", 1234.5: "1234"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestTooLittleSpaceIsSaidBefore(t *testing.T) {
	t.Parallel()
	cfg := defaults()
	cfg.Dir, cfg.Log, cfg.Size = t.TempDir(), t.Logf, 1<<55
	if _, err := run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "-dir") {
		t.Fatalf("got %v", err)
	}
}
