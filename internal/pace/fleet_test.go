package pace_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/pace"
)

// vm of the simulation. What it overwrites within a cycle travels once: of its
// working set, churn/set is touched in a second.
type vm struct {
	every      time.Duration
	churn, set float64 // bytes/s, bytes

	mu     sync.Mutex
	newest time.Time // committed point
	lags   []float64 // newest's age when the next one was committed, in copy frequencies; after the warm-up
}

func (v *vm) dirty(age time.Duration) float64 {
	return v.set * (1 - math.Exp(-v.churn*age.Seconds()/v.set))
}

func (v *vm) debt(now time.Time) float64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return pace.RPODebt(now, v.newest, v.every, 0)
}

// run makes a cycle every copy frequency, or as soon as the one before is committed.
func (v *vm) run(ctx context.Context, turns *pace.Turns, l *pace.Limiter, warm time.Time, debt func(time.Time) float64) {
	cut := v.newest
	for {
		if sleep(ctx, time.Until(cut.Add(v.every))) != nil {
			return
		}
		release, err := turns.Acquire(ctx, pace.Request{Kind: pace.Transfer, Debt: debt})
		if err != nil {
			return
		}
		// The image is frozen when the turn has come: what changed while waiting travels, too.
		before := cut
		cut = time.Now()
		if err := l.Wait(ctx, int(v.dirty(cut.Sub(before)))); err != nil {
			return
		}
		release()
		v.mu.Lock()
		if time.Now().After(warm) {
			v.lags = append(v.lags, float64(time.Since(v.newest))/float64(v.every))
		}
		v.newest = cut
		v.mu.Unlock()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(max(0, d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fleet runs 200 VMs on one link with this share of what they would need to
// keep their copy frequencies, and returns each VM's mean and greatest lag, sorted.
func fleet(t *testing.T, share float64, hours int, fair bool) (mean, worst []float64, bulk float64) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ctx, cancel := context.WithCancel(t.Context())
	start := time.Now()
	warm := start.Add(time.Hour)
	vms := make([]*vm, 200)
	var demand float64
	for i := range vms {
		v := &vm{every: []time.Duration{30 * time.Second, 5 * time.Minute, 15 * time.Minute}[i%3],
			churn: math.Exp(rnd.NormFloat64()*1.2) * 2e3}
		v.set = v.churn * (600 + rnd.Float64()*3000) // is written once in 10 to 60 minutes
		v.newest = start.Add(-time.Duration(rnd.Float64() * float64(v.every)))
		demand += v.dirty(v.every) / v.every.Seconds()
		vms[i] = v
	}
	var turns pace.Turns
	link := pace.NewLimiter(pace.Constant(int64(demand*share)), nil)
	var wg sync.WaitGroup
	for _, v := range vms {
		l := link.Child(nil)
		debt := v.debt
		if !fair {
			debt = nil
		}
		wg.Go(func() { v.run(ctx, &turns, l, warm, debt) })
	}
	// An initial replication goes on beside them, by tiles.
	initial := 0
	wg.Go(func() {
		l := link.Child(nil)
		for {
			release, err := turns.Acquire(ctx, pace.Request{Kind: pace.Transfer, Bulk: true})
			if err != nil || l.Wait(ctx, 1<<20) != nil {
				return
			}
			release()
			initial += 1 << 20
		}
	})
	time.Sleep(time.Duration(hours) * time.Hour)
	cancel()
	wg.Wait()
	for i, v := range vms {
		// One that never commits again must show, too.
		v.lags = append(v.lags, max(1, float64(time.Since(v.newest))/float64(v.every)))
		if len(v.lags) < 2 {
			t.Errorf("VM %d (%v) made %d points", i, v.every, len(v.lags)-1)
		}
		var sum float64
		for _, l := range v.lags {
			sum += l
		}
		mean = append(mean, sum/float64(len(v.lags)))
		worst = append(worst, slices.Max(v.lags))
	}
	slices.Sort(mean)
	slices.Sort(worst)
	return mean, worst, float64(initial) / (demand * share * float64(hours) * 3600)
}

func TestFleet(t *testing.T) {
	t.Parallel()
	for _, e := range []struct {
		share       float64
		ratio, lag  float64 // bounds: greatest / median of the mean lags, and of any lag
		minimumBulk float64
	}{{1.3, 1.6, 4, 0.1}, {0.7, 2, 40, 0.02}} {
		t.Run(fmt.Sprintf("Capacity%.0f%%", e.share*100), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mean, worst, bulk := fleet(t, e.share, 4, true)
				n := len(mean)
				ratio := mean[n-1] / mean[n/2]
				t.Logf("lag in copy frequencies: mean of the median VM %.2f, of the worst %.2f (ratio %.2f), greatest at all %.2f; initial replication got %.2f of the link",
					mean[n/2], mean[n-1], ratio, worst[n-1], bulk)
				if ratio > e.ratio {
					t.Errorf("the lag is not spread fairly: %.2f is more than %.2f", ratio, e.ratio)
				}
				if worst[n-1] > e.lag {
					t.Errorf("a point was %.1f copy frequencies old, more than %.1f", worst[n-1], e.lag)
				}
				if bulk < e.minimumBulk {
					t.Errorf("the initial replication got %.3f of the link", bulk)
				}
			})
		})
	}
}

// TestFleetUnfair shows that the figures of TestFleet can see unfairness: in the
// order of their coming, VMs with short copy frequencies fall behind far more than others.
func TestFleetUnfair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mean, _, _ := fleet(t, 0.7, 3, false)
		if ratio := mean[len(mean)-1] / mean[len(mean)/2]; ratio < 4 {
			t.Errorf("ratio %.2f without debts", ratio)
		} else {
			t.Logf("ratio %.2f without debts", ratio)
		}
	})
}
