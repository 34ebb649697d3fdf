// Package anomaly finds out from the figures of a machine's cuts that its data
// is being encrypted. It is arithmetic: no I/O, no clock.
//
// Encryption makes data that does not compress, so what counts is how much of
// what a cycle carried is incompressible, compared with the machine's own past.
// Two rules, for fast and for slow attacks:
//
//   - Burst: cycles are hot when their incompressible share is well above the
//     usual one and their incompressible bytes are at least four times the usual
//     ones. Hot cycles with at most two cool ones between make a burst. An alarm
//     is raised when a burst of three or more hot cycles has at least 256 MiB and twice
//     the bytes of the largest burst that has been seen before: so a nightly
//     backup, a weekly report or an upgrade, once seen, stays quiet.
//   - Drift: cycles are high when their incompressible share is well above the
//     usual one, however few bytes they carry. An alarm is raised when, weighed
//     over twelve hours, more than half of the time was high.
//
// "Well above" is by 0.25 and by three times the usual deviation at least. What
// is usual is learned from the cycles that are not hot or high, with memory of
// about 200 cycles, and from all of them in the first 24 hours (and 50 cycles), in
// which nothing is raised and a cycle is hot when half of it is incompressible. The largest burst is forgotten by half every two weeks.
// Initial replications and resynchronizations do not count at all.
package anomaly

import (
	"fmt"
	"math"
	"time"
)

// The constants of the rules.
const (
	learnTime   = 24 * time.Hour
	learnCycles = 50
	memory      = 200.0 // cycles
	minData     = 256 << 10
	minHot      = 16 << 20
	minBurst    = 256 << 20
	hotCycles   = 3
	coolCycles  = 2
	aboveShare  = 0.25
	learnShare  = 0.5 // of a hot cycle while learning
	driftTime   = 12 * time.Hour
	driftShare  = 0.5
	forget      = 14 * 24 * time.Hour
)

// Sample is one committed cycle.
type Sample struct {
	Point          string // name of the recovery point
	N              uint64
	Time           time.Time
	Data           int64 // plaintext bytes carried
	Incompressible int64 // of Data, what compression did not shrink
}

// Mark is a point in a state.
type Mark struct {
	Point string    `json:"point,omitempty"`
	N     uint64    `json:"n,omitempty"`
	Time  time.Time `json:"time,omitzero"`
}

func (s Sample) mark() Mark { return Mark{s.Point, s.N, s.Time.UTC()} }

// State is what is known of one machine. It is a durable form; the zero State knows nothing.
type State struct {
	Last    Mark      `json:"last,omitzero"` // newest sample
	Began   time.Time `json:"began,omitzero"`
	Cycles  int       `json:"cycles,omitempty"`
	Share   float64   `json:"share,omitempty"` // usual incompressible share
	Spread  float64   `json:"spread,omitempty"`
	Bytes   float64   `json:"bytes,omitempty"` // usual incompressible bytes of a cycle
	Largest float64   `json:"largest,omitempty"`

	Burst     float64 `json:"burst,omitempty"` // incompressible bytes of the burst that goes on
	Hot       int     `json:"hot,omitempty"`   // its hot cycles
	Cool      int     `json:"cool,omitempty"`  // cool cycles since the last hot one
	BurstGood Mark    `json:"burstGood,omitzero"`
	BurstFrom Mark    `json:"burstFrom,omitzero"`
	Drift     float64 `json:"drift,omitempty"` // share of the time that was high
	DriftGood Mark    `json:"driftGood,omitzero"`
	DriftFrom Mark    `json:"driftFrom,omitzero"`
}

// Finding is an alarm.
type Finding struct {
	Since Mark   // first point that looks encrypted
	Good  Mark   // last point before it; empty if there is none
	Why   string // figures, for people
}

// Learning reports whether too little is known for an alarm.
func (s State) Learning() bool {
	return s.Cycles < learnCycles || s.Last.Time.Sub(s.Began) < learnTime
}

// Observe takes the next sample and returns the new state, and a finding if an
// alarm has to be raised. Samples that are not newer than the last one change nothing.
func (s State) Observe(x Sample) (State, *Finding) {
	if s.Cycles > 0 && (x.N <= s.Last.N || x.Time.Before(s.Last.Time)) {
		return s, nil
	}
	prev := s.Last
	s.Last = x.mark()
	if s.Began.IsZero() {
		s.Began = s.Last.Time
	}
	step := max(s.Last.Time.Sub(prev.Time), 0)
	if prev.Time.IsZero() {
		step = 0
	}
	s.Largest *= math.Exp2(-float64(step) / float64(forget))
	share := 0.0
	if x.Data >= minData {
		share = min(max(float64(x.Incompressible)/float64(x.Data), 0), 1)
	}
	inc := max(float64(x.Incompressible), 0)
	learning := s.Learning()
	above := x.Data >= minData && share >= s.Share+max(aboveShare, 3*s.Spread)
	hot := above && inc >= max(minHot, 4*s.Bytes)
	if learning { // nothing is usual yet, but large bursts are to be known later
		hot = share >= learnShare && inc >= minHot
	}
	var f *Finding
	if found := s.burst(prev, hot, inc); found && !learning {
		f = &Finding{Since: s.BurstFrom, Good: s.BurstGood, Why: fmt.Sprintf("%s that do not compress came in %d cycles; at most %s at a time are usual, and %.0f %% of what a cycle carries",
			size(s.Burst), s.Hot, size(s.Largest), 100*s.Share)}
	}
	if found := s.drift(prev, above && x.Data >= minData, x.Data >= minData, step); found && f == nil && !learning {
		f = &Finding{Since: s.DriftFrom, Good: s.DriftGood, Why: fmt.Sprintf("for hours %.0f %% and more of what cycles carry does not compress, where %.0f %% is usual", 100*(s.Share+aboveShare), 100*s.Share)}
	}
	if learning || !above {
		s.learn(share, inc, x.Data >= minData)
	}
	s.Cycles++
	return s, f
}

// burst follows the burst that goes on; true when it is too large.
func (s *State) burst(prev Mark, hot bool, inc float64) bool {
	if hot {
		if s.Hot == 0 {
			s.BurstGood, s.BurstFrom, s.Burst = prev, s.Last, 0
		}
		s.Hot, s.Cool = s.Hot+1, 0
		s.Burst += inc
		if s.Learning() {
			return false
		}
		return s.Hot >= hotCycles && s.Burst >= minBurst && s.Burst > 2*s.Largest
	}
	if s.Hot == 0 {
		return false
	}
	if s.Cool++; s.Cool > coolCycles {
		s.Largest = max(s.Largest, s.Burst)
		s.Hot, s.Cool, s.Burst = 0, 0, 0
	}
	return false
}

// drift follows how much of the time was high; true when it was too much.
func (s *State) drift(prev Mark, high, counts bool, step time.Duration) bool {
	if !counts {
		return false // an idle guest says nothing
	}
	if s.Drift < 0.02 && high {
		s.DriftGood, s.DriftFrom = prev, s.Last
	}
	w := 1 - math.Exp(-float64(min(step, driftTime/12))/float64(driftTime))
	target := 0.0
	if high {
		target = 1
	}
	s.Drift += w * (target - s.Drift)
	return high && s.Drift > driftShare
}

func (s *State) learn(share, inc float64, counts bool) {
	w := 1 / math.Min(float64(s.Cycles)+1, memory)
	s.Bytes += w * (inc - s.Bytes)
	if !counts {
		return
	}
	s.Spread += w * (math.Abs(share-s.Share) - s.Spread)
	s.Share += w * (share - s.Share)
}

// Accept is the state after somebody has said that what raised the alarm is
// all right: a burst of that size is usual from now on, and the share is learned anew.
func (s State) Accept() State {
	n := State{Last: s.Last, Largest: max(s.Largest, s.Burst), Bytes: s.Bytes}
	return n
}

// size is a number of bytes for people.
func size(n float64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%.0f bytes", n)
	}
	i := 0
	for n /= 1024; n >= 999.5 && i < len(units)-1; i++ {
		n /= 1024
	}
	return fmt.Sprintf("%.3g %ciB", n, units[i])
}
