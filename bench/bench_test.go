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

	"holdfast/bench/internal/report"
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
	cfg := defaults().small()
	dir, err := os.MkdirTemp("/var/tmp", "holdfast-bench-") // t.TempDir is closed to the user that libvirt needs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg.Dir, cfg.Log = dir, t.Logf
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
			if !strings.Contains(f.Name, "beyond") && !strings.HasPrefix(f.Name, "CPU of the server") && f.Row != "vault" {
				t.Errorf("%s, %s: %v %q", f.Area, f.Name, f.Value, f.Unit)
			}
		}
		if (f.Goal == nil) != (f.Met == nil) {
			t.Errorf("%s, %s: goal %v, met %v", f.Area, f.Name, f.Goal, f.Met)
		}
	}
	want := []string{"initial replication", "others beside it: first copy", "delta", "others beside it: copy after 40 random writes of 4 KiB", "idle cycle", "ingest", "overlay by NBD", "hydrate", "resynchronization",
		"instant boot, until the first block", "resynchronization by the vault's digests", "open the newest of 40 cuts", "retention, 0.208 days of 5-minute cycles on a disk of 8 MiB", "extent map of 65536 extents", "memory",
		"guest writes while protected", "vault with 20 items at 5-minute cycles"}
	if !slices.Equal(areas, want) {
		t.Errorf("areas %q, want %q", areas, want)
	}
	raw, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var back report.Report
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	for _, f := range rep.Figures { // scripts/packages.sh bench installs them
		for _, p := range f.Peers {
			if p.NotAvailable != "" {
				t.Errorf("%s, %s: %s is not available: %s", f.Area, f.Name, p.Name, p.NotAvailable)
			}
		}
	}
	if len(back.Figures) != len(rep.Figures) || back.Format != report.Format || back.Host.CPU == "" || back.Host.Tools["qemu-img"] == "" {
		t.Errorf("read back: %+v", back)
	}
	var out bytes.Buffer
	if err := rep.Table(&out); err != nil || strings.Count(out.String(), "\n") < len(rep.Figures) {
		t.Errorf("table %v:\n%s", err, out.String())
	}
	left, err := filepath.Glob(filepath.Join(cfg.Dir, "*"))
	if err != nil || len(left) > 5 { // disk.raw, replica, its reinstalled agent, two qcow2 files
		t.Errorf("left behind: %q %v", left, err)
	}
}

// Rows bring what they need, in order, and nothing else.
func TestRows(t *testing.T) {
	t.Parallel()
	names := func(rows ...string) (out []string) {
		got, err := selected(rows)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range got {
			out = append(out, s.name)
		}
		return out
	}
	if got := names(); len(got) != len(stages) {
		t.Errorf("all rows: %q", got)
	}
	if got, want := names("delta"), []string{"make the disk", "initial replication", "delta cycle"}; !slices.Equal(got, want) {
		t.Errorf("delta: %q, want %q", got, want)
	}
	if got, want := names("map", "opening"), []string{"open among many cuts", "extent map"}; !slices.Equal(got, want) {
		t.Errorf("map and opening: %q, want %q", got, want)
	}
	if _, err := selected([]string{"nonsense"}); err == nil || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("nonsense: %v", err)
	}
	known := map[string]bool{}
	for _, s := range stages { // a need that stands behind would be forgotten
		for _, n := range s.needs {
			if !known[n] {
				t.Errorf("%s needs %q, which does not stand before it", s.name, n)
			}
		}
		known[s.name] = true
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
