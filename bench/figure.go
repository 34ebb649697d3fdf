package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"holdfast/bench/internal/meter"
)

// Report is bench.json, version 1 of its format.
type Report struct {
	Format  int       `json:"format"` // 1
	Version string    `json:"version"`
	Date    time.Time `json:"date"`
	Took    float64   `json:"tookSeconds"`
	Host    Host      `json:"host"`
	Disk    int64     `json:"diskBytes"` // of the disk with real data
	Figures []Figure  `json:"figures"`
}

// Host is the machine that measured.
type Host struct {
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	MemoryMiB  int64             `json:"memoryMiB"`
	OS         string            `json:"os"`
	Go         string            `json:"go"`
	LoadBefore [3]float64        `json:"loadAverageBefore"`
	LoadAfter  [3]float64        `json:"loadAverageAfter"`
	Tools      map[string]string `json:"tools"`
}

// Figure is one measured value beside what others need for the same work.
type Figure struct {
	Area  string  `json:"area"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Goal  *Goal   `json:"goal,omitempty"`
	Met   *bool   `json:"met,omitempty"`       // where there is a goal
	Wall  bool    `json:"wallClock,omitempty"` // depends on what else the machine does: never decides
	Peers []Peer  `json:"peers,omitempty"`
	Note  string  `json:"note,omitempty"`
}

// Goal is a bound of a figure.
type Goal struct {
	AtLeast bool    `json:"atLeast,omitempty"` // else at most
	Limit   float64 `json:"limit"`
	From    string  `json:"from,omitempty"` // what the limit was derived from in this run; empty = fixed
}

// Peer is the same figure of another tool, or of another way.
type Peer struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

func atMost(v float64) *Goal  { return &Goal{Limit: v} }
func atLeast(v float64) *Goal { return &Goal{AtLeast: true, Limit: v} }

func (g Goal) met(v float64) bool {
	if g.AtLeast {
		return v >= g.Limit
	}
	return v <= g.Limit
}

func (g Goal) String() string {
	if g.AtLeast {
		return "≥ " + number(g.Limit)
	}
	return "≤ " + number(g.Limit)
}

func newReport(ctx context.Context, b *runner) *Report {
	var h Host
	h.CPU, h.MemoryMiB = meter.Machine()
	h.OS, h.Go, h.Cores, h.LoadBefore = runtime.GOOS+"/"+runtime.GOARCH, runtime.Version(), runtime.NumCPU(), meter.LoadAverage()
	h.Tools = map[string]string{}
	for name, path := range map[string]string{"qemu-img": b.tool.qemuImg, "nbdcopy": b.tool.nbdcopy} {
		if out, err := exec.CommandContext(ctx, path, "--version").Output(); err == nil {
			h.Tools[name], _, _ = strings.Cut(string(out), "\n")
		}
	}
	return &Report{Format: 1, Version: version(), Date: time.Now().UTC().Truncate(time.Second), Host: h, Disk: b.Size}
}

// add files a figure and decides whether its goal is met.
func (r *Report) add(f Figure) {
	if f.Goal != nil {
		met := f.Goal.met(f.Value)
		f.Met = &met
	}
	r.Figures = append(r.Figures, f)
}

// missed lists the figures that miss their goal; with wall, the wall-clock ones too.
func (r *Report) missed(wall bool) []Figure {
	var out []Figure
	for _, f := range r.Figures {
		if f.Met != nil && !*f.Met && (wall || !f.Wall) {
			out = append(out, f)
		}
	}
	return out
}

// table prints the figures for people.
func (r *Report) table(w io.Writer) error {
	fmt.Fprintf(w, "Holdfast %s, %s, %s, %d cores, load %.1f to %.1f, disk of %s, %.0f s\n\n", r.Version, r.Date.Format(time.RFC3339),
		r.Host.CPU, r.Host.Cores, r.Host.LoadBefore[0], r.Host.LoadAfter[0], size(r.Disk), r.Took)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "AREA\tFIGURE\tVALUE\tUNIT\tGOAL\tMET\tPEERS IN THE SAME RUN")
	for _, f := range r.Figures {
		goal, met := "-", "-"
		if f.Goal != nil {
			goal, met = f.Goal.String(), "NO"
			if *f.Met {
				met = "yes"
			}
		}
		if f.Wall {
			met += " (wall)"
		}
		var peers []string
		for _, p := range f.Peers {
			peers = append(peers, fmt.Sprintf("%s %s", p.Name, number(p.Value)))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Area, f.Name, number(f.Value), f.Unit, goal, met, strings.Join(peers, ", "))
	}
	return t.Flush()
}

// number prints three significant digits, and whole numbers in full.
func number(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) && a < 1e9:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

func size(n int64) string {
	switch {
	case n >= 1<<40:
		return number(float64(n)/(1<<40)) + " TiB"
	case n >= 1<<30:
		return number(float64(n)/(1<<30)) + " GiB"
	}
	return number(float64(n)/(1<<20)) + " MiB"
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// perGiB scales seconds of work on n bytes to one GiB.
func perGiB(d time.Duration, n int64) float64 { return d.Seconds() / (float64(n) / (1 << 30)) }

// mbps is a throughput in 10^6 bytes per second.
func mbps(n int64, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }

func micros(d time.Duration) float64 { return float64(d) / 1e3 }
