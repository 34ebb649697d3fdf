package anomaly

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"holdfast/internal/dr"
)

// trace makes the cycles of a guest, five minutes apart.
type trace struct {
	r  *rand.Rand
	at time.Time
	n  uint64
	s  State
	f  *Finding
	by uint64 // cycle at which the alarm was raised
}

func newTrace() *trace {
	return &trace{r: rand.New(rand.NewPCG(1, 2)), at: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)}
}

func (t *trace) cycle(mib, share float64) {
	t.n++
	t.at = t.at.Add(5 * time.Minute)
	noise := 0.7 + 0.6*t.r.Float64()
	data := mib * noise * (1 << 20)
	var f *Finding
	t.s, f = t.s.Observe(Sample{Point: dr.PointName(1, t.n), N: t.n, Time: t.at, Data: int64(data), Incompressible: int64(data * min(share*noise, 1))})
	if f != nil && t.f == nil {
		t.f, t.by = f, t.n
	}
}

// day is 288 cycles of an office server with a backup at 01:00 of gib GiB.
func (t *trace) day(gib float64) {
	for i := range 288 {
		switch hour := i / 12; {
		case hour == 1 && gib > 0:
			t.cycle(gib*1024/12, 0.95)
		case hour >= 8 && hour < 18:
			t.cycle(40, 0.1)
		default:
			t.cycle(2, 0.05)
		}
	}
}

func TestTraces(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		run    func(t *trace)
		begins int // cycles before the attack; 0 = no alarm at all
		within int // cycles
	}{
		"a month with nightly backups": {run: func(t *trace) {
			for range 30 {
				t.day(20)
			}
		}},
		"backups grow slowly": {run: func(t *trace) {
			for i := range 30 {
				t.day(10 + float64(i))
			}
		}},
		"an upgrade, half of it packages": {run: func(t *trace) {
			for range 4 {
				t.day(20)
			}
			for range 10 {
				t.cycle(800, 0.5)
			}
			t.day(20)
		}},
		"one large file is copied": {run: func(t *trace) {
			for range 3 {
				t.day(0)
			}
			t.cycle(30000, 1)
			t.cycle(30000, 1)
			t.day(0)
		}},
		"a guest that is encrypted from the start": {run: func(t *trace) {
			for range 288 * 7 {
				t.cycle(50, 0.95)
			}
		}},
		"an idle guest": {run: func(t *trace) {
			for range 288 * 7 {
				t.cycle(0.1, 1)
			}
		}},
		"a fast attack": {run: func(t *trace) {
			for range 5 {
				t.day(20)
			}
			for range 24 {
				t.cycle(6000, 0.98)
			}
		}, begins: 5 * 288, within: 12},
		"a fast attack without backups": {run: func(t *trace) {
			for range 2 {
				t.day(0)
			}
			for range 24 {
				t.cycle(400, 0.98)
			}
		}, begins: 2 * 288, within: 3},
		"a slow attack": {run: func(t *trace) {
			for range 5 {
				t.day(20)
			}
			for range 288 {
				t.cycle(8, 0.95)
			}
		}, begins: 5 * 288, within: 140},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrace()
			c.run(tr)
			if c.begins == 0 {
				if tr.f != nil {
					t.Fatalf("false alarm at cycle %d: %+v", tr.by, tr.f)
				}
				return
			}
			if tr.f == nil {
				t.Fatalf("no alarm; state %+v", tr.s)
			}
			if d := int(tr.by) - c.begins; d < 1 || d > c.within {
				t.Errorf("alarm after %d cycles, want within %d", d, c.within)
			}
			if d := int(tr.f.Since.N) - c.begins; d < 1 || d > 3 {
				t.Errorf("looks encrypted since cycle %d of the attack", d)
			}
			if tr.f.Good.N >= tr.f.Since.N || int(tr.f.Good.N) > c.begins || tr.f.Good.Point == "" {
				t.Errorf("last good point %+v", tr.f.Good)
			}
			t.Log(tr.f.Why)
		})
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	tr := newTrace()
	for range 2 {
		tr.day(0)
	}
	for range 12 {
		tr.cycle(1000, 0.98)
	}
	if tr.f == nil {
		t.Fatal("no alarm")
	}
	tr.s, tr.f = tr.s.Accept(), nil
	for range 3 {
		tr.day(10)
	}
	if tr.f != nil {
		t.Errorf("what was accepted raises an alarm again: %+v", tr.f)
	}
}

func TestStateIsDurableAndOrdered(t *testing.T) {
	t.Parallel()
	tr := newTrace()
	tr.day(20)
	text, err := json.Marshal(tr.s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, tr.s) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, back, tr.s)
	}
	if s, f := back.Observe(Sample{N: 5, Time: tr.at.Add(time.Hour), Data: 1 << 40, Incompressible: 1 << 40}); f != nil || !reflect.DeepEqual(s, back) {
		t.Error("an old sample counts again")
	}
}
