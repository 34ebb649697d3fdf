package pace_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"holdfast/internal/pace"
)

const mib = 1 << 20

// machine makes samples: what is dirty is shipped in the next cycles, at most capacity in each.
type machine struct {
	b       *pace.Backlog
	now     time.Time
	cycle   time.Duration
	pending int64
	changes int // of the verdict
	last    pace.Verdict
	history string
}

func newMachine(cycle time.Duration) *machine {
	m := &machine{b: pace.NewBacklog(cycle), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), cycle: cycle}
	m.b.Add(pace.Sample{At: m.now})
	m.last = m.b.Progress().Verdict
	return m
}

func (m *machine) step(dirty, capacity int64) pace.Progress {
	shipped := min(m.pending, capacity)
	m.pending += dirty - shipped
	m.now = m.now.Add(m.cycle)
	s := pace.Sample{At: m.now, Dirty: dirty, Shipped: shipped}
	if capacity > 0 {
		s.Busy = time.Duration(float64(m.cycle) * float64(shipped) / float64(capacity))
	}
	m.b.Add(s)
	p := m.b.Progress()
	if p.Verdict != m.last {
		m.changes++
		m.last = p.Verdict
	}
	m.history += string(p.Verdict[0])
	return p
}

func (m *machine) steps(n int, dirty, capacity int64) (p pace.Progress) {
	for range n {
		p = m.step(dirty, capacity)
	}
	return p
}

func TestBacklogTraces(t *testing.T) {
	t.Parallel()
	const c = 5 * time.Minute
	verdict := func(t *testing.T, m *machine, want pace.Verdict, changes int) {
		t.Helper()
		if p := m.b.Progress(); p.Verdict != want || m.changes != changes {
			t.Errorf("verdict %s after %d changes, want %s after %d: %s", p.Verdict, m.changes, want, changes, m.history)
		}
		m.changes = 0
	}
	t.Run("Steady", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(3, 300*mib, 600*mib)
		verdict(t, m, pace.Unknown, 0)
		p := m.steps(50, 300*mib, 600*mib)
		verdict(t, m, pace.Converging, 1)
		near(t, "dirty rate", p.DirtyRate, mib, 0.01)
		near(t, "ship rate", p.ShipRate, 2*mib, 0.01)
		near(t, "bytes", float64(p.Bytes), 300*mib, 0.01)
		near(t, "drain, s", p.Drain.Seconds(), 150, 0.01)
	})
	t.Run("LinkSlowerThanChurn", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(10, 300*mib, 600*mib)
		verdict(t, m, pace.Converging, 1)
		p := m.steps(20, 300*mib, 150*mib)
		verdict(t, m, pace.NotConverging, 1)
		if p.Drain != pace.Never || p.Bytes < 20*150*mib {
			t.Errorf("progress %+v", p)
		}
		m.steps(100, 300*mib, 150*mib)
		verdict(t, m, pace.NotConverging, 0)
		// A faster link: it turns with the first cycles and drains.
		p = m.steps(10, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
		if want := float64(p.Bytes) / (600 * mib) * c.Seconds(); p.Drain.Seconds() < want*0.7 || p.Drain.Seconds() > want*2 {
			t.Errorf("drains in %v, want %.0f s: %+v", p.Drain, want, p)
		}
		m.steps(100, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 0)
	})
	t.Run("LinkSlightlySlower", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(60, 300*mib, 270*mib)
		if m.last != pace.NotConverging || m.changes != 2 { // unknown → converging → not
			t.Errorf("verdict %s after %d changes: %s", m.last, m.changes, m.history)
		}
	})
	t.Run("SlowFromTheBeginning", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(12, 300*mib, 30*mib)
		if m.last != pace.NotConverging {
			t.Errorf("verdict %s: %s", m.last, m.history)
		}
	})
	for name, length := range map[string]int{"Burst": 1, "LongBurst": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(c)
			m.steps(20, 300*mib, 600*mib)
			verdict(t, m, pace.Converging, 1)
			for range 3 {
				m.steps(length, 15000*mib, 600*mib)
				m.steps(300, 300*mib, 600*mib)
			}
			verdict(t, m, pace.Converging, 0)
		})
	}
	t.Run("BurstsTooOften", func(t *testing.T) {
		// In seven of eight cycles the backlog falls, and still it grows for ever.
		t.Parallel()
		m := newMachine(c)
		m.steps(20, 100*mib, 600*mib)
		verdict(t, m, pace.Converging, 1)
		for range 6 {
			m.step(6000*mib, 600*mib)
			m.steps(7, 100*mib, 600*mib)
		}
		verdict(t, m, pace.NotConverging, 1)
	})
	t.Run("AnHourWithoutNetwork", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(20, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
		p := m.steps(12, 300*mib, 0)
		verdict(t, m, pace.NotConverging, 1)
		if p.Bytes != 13*300*mib || p.Drain != pace.Never {
			t.Errorf("progress %+v", p)
		}
		m.steps(40, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
	})
	t.Run("ShortOutage", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(20, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
		m.steps(4, 300*mib, 0)
		m.steps(40, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 0)
	})
	t.Run("StuckWithoutChanges", func(t *testing.T) {
		// The guest writes no more, and what it wrote can't be sent: nothing grows, but that is not converging.
		t.Parallel()
		m := newMachine(c)
		m.steps(20, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
		m.step(5000*mib, 900*mib)
		m.steps(12, 0, 0)
		verdict(t, m, pace.NotConverging, 1)
	})
	t.Run("Idle", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		p := m.steps(6, 0, 600*mib)
		verdict(t, m, pace.Idle, 1)
		if p.Drain != 0 || p.Bytes != 0 {
			t.Errorf("progress %+v", p)
		}
		m.step(mib, 600*mib)
		verdict(t, m, pace.Converging, 1)
		for range 20 { // writes now and then: no flapping
			m.steps(3, 0, 600*mib)
			m.step(mib, 600*mib)
		}
		verdict(t, m, pace.Converging, 0)
		m.steps(6, 0, 600*mib)
		verdict(t, m, pace.Idle, 1)
	})
	t.Run("Silence", func(t *testing.T) {
		t.Parallel()
		m := newMachine(c)
		m.steps(20, 300*mib, 900*mib)
		m.changes = 0
		m.now = m.now.Add(24 * time.Hour)
		m.step(300*mib, 900*mib)
		verdict(t, m, pace.Unknown, 1)
		m.steps(5, 300*mib, 900*mib)
		verdict(t, m, pace.Converging, 1)
		m.now = m.now.Add(-24 * time.Hour) // the clock was set back
		m.step(300*mib, 900*mib)
		verdict(t, m, pace.Unknown, 1)
	})
	t.Run("Noise", func(t *testing.T) {
		// Churn and link vary by a factor of ten and more; on average the link has
		// 40 % to spare, or lacks 30 %. Chance makes the opposite true for a while.
		t.Parallel()
		for seed := range uint64(20) {
			for _, e := range []struct {
				capacity float64
				want     pace.Verdict
			}{{1.4, pace.Converging}, {0.7, pace.NotConverging}} {
				rnd := rand.New(rand.NewPCG(seed, 7))
				m := newMachine(c)
				good := 0
				for i := range 400 {
					p := m.step(int64(rnd.ExpFloat64()*300*mib), int64(e.capacity*(0.5+rnd.Float64())*300*mib))
					if i >= 100 && p.Verdict == e.want {
						good++
					}
				}
				if good < 250 || m.changes > 12 {
					t.Errorf("seed %d, capacity %.1f: right in %d of 300 cycles, %d changes: %s", seed, e.capacity, good, m.changes, m.history)
				}
			}
		}
	})
}

func TestBacklogSamples(t *testing.T) {
	t.Parallel()
	b := pace.NewBacklog(time.Minute)
	start := time.Now()
	b.Add(pace.Sample{At: start, Dirty: 5})
	// Small steps make one cycle, however many: the verdict does not come earlier.
	for i := range 40 {
		b.Add(pace.Sample{At: start.Add(time.Duration(i+1) * 5 * time.Second), Dirty: 10, Shipped: 10})
	}
	if p := b.Progress(); p.Bytes != 5 || p.Verdict != pace.Converging {
		t.Errorf("progress %+v", p)
	}
	b.Correct(1)
	b.Add(pace.Sample{At: start.Add(4 * time.Minute), Dirty: -4, Shipped: -9})
	if p := b.Progress(); p.Bytes != 1 {
		t.Errorf("progress %+v", p)
	}
	b.Add(pace.Sample{At: start.Add(5 * time.Minute), Shipped: 99})
	if p := b.Progress(); p.Bytes != 0 {
		t.Errorf("progress %+v", p)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 100 {
				b.Add(pace.Sample{At: start.Add(time.Duration(6+i) * time.Minute), Dirty: 1})
				b.Progress()
				b.Correct(3)
			}
		})
	}
	wg.Wait()
}
