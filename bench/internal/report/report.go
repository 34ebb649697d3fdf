// Package report collects the figures of a benchmark run beside the goals of
// the design and beside what other tools need for the same work, and prints them
// for people and as bench.json. It promises that a tool which could not be
// measured is printed with the reason, never left out.
package report

import (
	"fmt"
	"math"
	"time"
)

// Format is the version of bench.json. 2 (2026-11) added row, notAvailable and
// rows; everything of version 1 is still there.
const Format = 2

// Report is bench.json.
type Report struct {
	Format  int       `json:"format"`
	Version string    `json:"version"`
	Date    time.Time `json:"date"`
	Took    float64   `json:"tookSeconds"`
	Host    Host      `json:"host"`
	Disk    int64     `json:"diskBytes"` // of the disk with real data
	Rows    []string  `json:"rows"`      // that were asked for
	Figures []Figure  `json:"figures"`

	// Row is that of the figures which are added next.
	Row string `json:"-"`
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
	Row   string  `json:"row"` // one of those that -rows selects
	Area  string  `json:"area"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Goal  *Goal   `json:"goal,omitempty"`
	Met   *bool   `json:"met,omitempty"`       // where there is a goal
	Wall  bool    `json:"wallClock,omitempty"` // depends on what else the machine does: never decides
	Peers Peers   `json:"peers,omitempty"`
	Note  string  `json:"note,omitempty"`
	// NotAvailable says why there is no value.
	NotAvailable string `json:"notAvailable,omitempty"`
}

// Goal is a bound of a figure.
type Goal struct {
	AtLeast bool    `json:"atLeast,omitempty"` // else at most
	Limit   float64 `json:"limit"`
	From    string  `json:"from,omitempty"` // what the limit was derived from in this run; empty = fixed
}

// Peer is the same figure of another tool, or of another way.
type Peer struct {
	Name         string  `json:"name"`
	Value        float64 `json:"value"`
	NotAvailable string  `json:"notAvailable,omitempty"` // why there is no value
}

// Peers are what a figure is compared with.
type Peers []Peer

// Beside is a list of one peer.
func Beside(name string, v float64) Peers { return Peers(nil).And(name, v) }

// And appends a peer.
func (p Peers) And(name string, v float64) Peers { return append(p, Peer{Name: name, Value: v}) }

// Without appends a peer that could not be measured.
func (p Peers) Without(name, why string) Peers {
	return append(p, Peer{Name: name, NotAvailable: why})
}

// AtMost is the goal of a figure that should be small.
func AtMost(v float64) *Goal { return &Goal{Limit: v} }

// AtLeast is the goal of a figure that should be large.
func AtLeast(v float64) *Goal { return &Goal{AtLeast: true, Limit: v} }

func (g Goal) met(v float64) bool {
	if g.AtLeast {
		return v >= g.Limit
	}
	return v <= g.Limit
}

func (g Goal) String() string {
	if g.AtLeast {
		return "≥ " + Number(g.Limit)
	}
	return "≤ " + Number(g.Limit)
}

// Add files a figure under the current row and decides whether its goal is met.
func (r *Report) Add(f Figure) {
	f.Row = r.Row
	if f.Goal != nil {
		met := f.NotAvailable == "" && f.Goal.met(f.Value)
		f.Met = &met
	}
	r.Figures = append(r.Figures, f)
}

// Missed lists the figures that miss their goal; with wall, the wall-clock ones too.
func (r *Report) Missed(wall bool) []Figure {
	var out []Figure
	for _, f := range r.Figures {
		if f.Met != nil && !*f.Met && (wall || !f.Wall) {
			out = append(out, f)
		}
	}
	return out
}

// Number prints three significant digits, and whole numbers in full.
func Number(v float64) string {
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

// Size prints a number of bytes.
func Size(n int64) string {
	switch {
	case n >= 1<<40:
		return Number(float64(n)/(1<<40)) + " TiB"
	case n >= 1<<30:
		return Number(float64(n)/(1<<30)) + " GiB"
	}
	return Number(float64(n)/(1<<20)) + " MiB"
}

// MiB is n bytes in MiB.
func MiB(n int64) float64 { return float64(n) / (1 << 20) }

// PerGiB scales seconds of work on n bytes to one GiB.
func PerGiB(d time.Duration, n int64) float64 { return d.Seconds() / (float64(n) / (1 << 30)) }

// MBps is a throughput in 10^6 bytes per second.
func MBps(n int64, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }

// Micros is d in microseconds.
func Micros(d time.Duration) float64 { return float64(d) / 1e3 }
