package pace

import (
	"math"
	"sync"
	"time"
)

// Verdict says where a backlog is going.
type Verdict string

// Verdicts; see Backlog.
const (
	Unknown       Verdict = "unknown"
	Idle          Verdict = "idle"
	Converging    Verdict = "converging"
	NotConverging Verdict = "notConverging"
)

const (
	backlogWindow = 8 // cycles that a verdict looks back
	backlogMost   = 6 // of them: so many have to agree to change it
	backlogFew    = 4 // cycles before the first verdict
	// backlogPeriods of backlogWindow cycles each show what single cycles do not.
	backlogPeriods = 3
)

// Sample is what happened since the previous sample.
type Sample struct {
	At time.Time
	// Dirty and Shipped count bytes of the source's disks, in the same unit (for
	// example: what the tracker reports, and how much of that is committed).
	Dirty, Shipped int64
	// Busy is the time in which something was being sent; 0 = all the time, if anything was shipped.
	Busy time.Duration
}

// Backlog estimates how far one machine is behind. It is safe for concurrent use.
//
// Samples are gathered to cycles (of half a copy frequency at least). A cycle
// was lost if more than two cycles' worth of changes are behind after it and
// the backlog grew in it, or nothing could be shipped; otherwise it was won. The verdict
//
//   - is unknown for four cycles, also after a silence of more than eight, and
//     then what most of these were;
//   - becomes notConverging when six of the newest eight cycles were lost, or
//     when the backlog grows in the longer run: by half a cycle's worth of
//     changes in each of the newest three times eight cycles (bursts that come
//     too often);
//   - becomes converging when the backlog does not grow in the longer run and
//     all of the newest eight cycles were won, or six of them and the backlog
//     is a fifth below its peak;
//   - becomes idle after four cycles without a change or a backlog, and
//     converging with the first change after that;
//   - otherwise stays.
//
// So a burst of up to five cycles changes nothing, however large, and an outage
// of eight does. Add a sample in each cycle, also when nothing could be sent.
type Backlog struct {
	mu      sync.Mutex
	cycle   time.Duration
	pending Sample // gathered for the next cycle
	last    time.Time
	bytes   int64
	dirty   ewma // bytes/s
	ship    ewma // bytes/s while shipping
	levels  []int64
	lost    []bool
	quiet   int   // cycles without a change or a backlog
	peak    int64 // greatest backlog since the verdict became notConverging
	verdict Verdict
}

// NewBacklog returns an estimator for a machine with this copy frequency.
func NewBacklog(frequency time.Duration) *Backlog {
	return &Backlog{cycle: max(frequency, time.Second), verdict: Unknown}
}

// ewma is an exponentially weighted mean over backlogWindow/2 cycles, without
// the bias of its beginning.
type ewma struct{ sum, weight float64 }

func (e *ewma) add(v, cycles float64) {
	keep := math.Exp(-cycles / (backlogWindow / 2))
	e.sum = e.sum*keep + v*(1-keep)
	e.weight = e.weight*keep + (1 - keep)
}

func (e *ewma) value() float64 {
	if e.weight == 0 {
		return 0
	}
	return e.sum / e.weight
}

// Add takes a sample. The first one, and the first after a silence, only sets
// the beginning, except for its bytes.
func (b *Backlog) Add(s Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes = max(0, b.bytes+max(0, s.Dirty)-max(0, s.Shipped))
	dt := s.At.Sub(b.last)
	if b.last.IsZero() || dt > backlogWindow*b.cycle || dt < -b.cycle {
		b.last, b.pending, b.verdict, b.quiet = s.At, Sample{}, Unknown, 0
		b.levels, b.lost = append(b.levels[:0], b.bytes), b.lost[:0]
		return
	}
	b.pending.Dirty += max(0, s.Dirty)
	b.pending.Shipped += max(0, s.Shipped)
	b.pending.Busy += max(0, s.Busy)
	if dt < b.cycle/2 {
		return
	}
	b.count(dt)
	b.judge()
	b.last, b.pending = s.At, Sample{}
}

// Correct replaces the backlog by what is really pending, once that has been
// counted: overwrites make it less than the sum of all changes.
func (b *Backlog) Correct(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes = max(0, bytes)
}

// count ends a cycle that took dt.
func (b *Backlog) count(dt time.Duration) {
	p := b.pending
	cycles := float64(dt) / float64(b.cycle)
	b.dirty.add(float64(p.Dirty)/dt.Seconds(), cycles)
	// A cycle in which there was nothing to ship says nothing about the speed.
	if p.Shipped > 0 || b.bytes > p.Dirty {
		busy := dt
		if p.Busy > 0 && p.Shipped > 0 {
			busy = min(max(p.Busy, time.Millisecond), dt)
		}
		b.ship.add(float64(p.Shipped)/busy.Seconds(), cycles)
	}
	if b.quiet++; p.Dirty > 0 || b.bytes > 0 {
		b.quiet = 0
	}
	before := b.levels[len(b.levels)-1]
	b.lost = append(b.lost, b.behind() && (b.bytes > before || p.Shipped == 0))
	b.levels = append(b.levels, b.bytes)
	b.lost = b.lost[max(0, len(b.lost)-backlogWindow):]
	b.levels = b.levels[max(0, len(b.levels)-1-backlogPeriods*backlogWindow):]
}

// worth is how much changes in a cycle, bytes.
func (b *Backlog) worth() float64 { return b.dirty.value() * b.cycle.Seconds() }

func (b *Backlog) behind() bool { return float64(b.bytes) > 2*b.worth() }

// growing reports whether the backlog grows in the longer run.
func (b *Backlog) growing() bool {
	const span = backlogPeriods * backlogWindow
	if len(b.levels) <= span || !b.behind() {
		return false
	}
	for i := backlogWindow; i <= span; i += backlogWindow {
		if float64(b.levels[i]-b.levels[i-backlogWindow]) <= b.worth()/2 {
			return false
		}
	}
	return true
}

// judge applies the rule of Backlog.
func (b *Backlog) judge() {
	lost := 0
	for _, l := range b.lost {
		if l {
			lost++
		}
	}
	won, growing := len(b.lost)-lost, b.growing()
	b.peak = max(b.peak, b.bytes)
	drained := won == backlogWindow || won >= backlogMost && b.bytes <= b.peak/5*4
	switch {
	case b.quiet >= backlogFew:
		b.verdict = Idle
	case len(b.lost) < backlogFew:
	case lost >= backlogMost || growing:
		if b.verdict != NotConverging {
			b.peak = b.bytes
		}
		b.verdict = NotConverging
	case drained || b.verdict == Idle:
		b.verdict = Converging
	case b.verdict == Unknown && won > lost:
		b.verdict = Converging
	case b.verdict == Unknown && lost > won:
		b.verdict, b.peak = NotConverging, b.bytes
	}
}

// Never is the Drain of a backlog that does not drain.
const Never = time.Duration(math.MaxInt64)

// Progress is what a Backlog says.
type Progress struct {
	Bytes     int64
	DirtyRate float64 // bytes/s, mean of the last cycles
	ShipRate  float64 // bytes/s while shipping, mean of the last cycles in which there was something to ship
	// Drain is how long it takes until nothing is behind: against new changes
	// if more than two cycles' worth is behind, and of what is there otherwise.
	Drain   time.Duration
	Verdict Verdict
}

// Progress returns the present figures.
func (b *Backlog) Progress() Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := Progress{Bytes: b.bytes, DirtyRate: b.dirty.value(), ShipRate: b.ship.value(), Verdict: b.verdict}
	speed := p.ShipRate
	if b.behind() {
		speed -= p.DirtyRate
	}
	switch seconds := float64(p.Bytes) / speed; {
	case p.Bytes == 0:
	case speed <= 0 || seconds > Never.Seconds()/2:
		p.Drain = Never
	default:
		p.Drain = time.Duration(seconds * float64(time.Second))
	}
	return p
}
