package pace_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/pace"
)

func debt(d float64) func(time.Time) float64 { return func(time.Time) float64 { return d } }

func mustAcquire(t *testing.T, turns *pace.Turns, r pace.Request) func() {
	t.Helper()
	release, err := turns.Acquire(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// queue starts waiters one after the other; order receives their owners as they get their turns, which end at once.
func queue(t *testing.T, turns *pace.Turns, wg *sync.WaitGroup, order *[]string, list ...pace.Request) {
	t.Helper()
	var mu sync.Mutex
	for _, r := range list {
		wg.Go(func() {
			release, err := turns.Acquire(t.Context(), r)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			*order = append(*order, r.Owner)
			mu.Unlock()
			time.Sleep(time.Second)
			release()
		})
		synctest.Wait()
	}
}

func TestTurnsGoToTheGreatestDebt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turns pace.Turns
		if err := turns.SetSlots(pace.Transfer, 1); err != nil {
			t.Fatal(err)
		}
		release := mustAcquire(t, &turns, pace.Request{Kind: pace.Transfer, Owner: "first"})
		now := time.Now()
		// b's debt is the smallest now and the greatest when the turn becomes free.
		grows := func(now0 time.Time) func(time.Time) float64 {
			return func(now time.Time) float64 { return pace.RPODebt(now, now0, time.Second, 0) }
		}(now)
		var order []string
		var wg sync.WaitGroup
		queue(t, &turns, &wg, &order,
			pace.Request{Kind: pace.Transfer, Owner: "a", Debt: debt(5)},
			pace.Request{Kind: pace.Transfer, Owner: "b", Debt: grows},
			pace.Request{Kind: pace.Transfer, Owner: "nan", Debt: debt(math.NaN())},
			pace.Request{Kind: pace.Transfer, Owner: "c", Debt: debt(7)},
			pace.Request{Kind: pace.Transfer, Owner: "d", Debt: debt(7)},
			pace.Request{Kind: pace.Transfer, Owner: "nil"})
		time.Sleep(10 * time.Second)
		release()
		release() // again: must not free a second turn
		wg.Wait()
		if got := strings.Join(order, " "); got != "b c d a nan nil" {
			t.Errorf("order %s", got)
		}
		if d := time.Since(now); d != 16*time.Second {
			t.Errorf("six turns, one at a time, ended after %v", d)
		}
	})
}

func TestRPODebt(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		age, every time.Duration
		priority   float64
		want       float64
	}{{time.Minute, time.Minute, 0, 1}, {time.Minute, 30 * time.Second, 1, 3}, {-time.Hour, time.Minute, 0, 0}, {time.Second, 0, 0, 1}} {
		if got := pace.RPODebt(now, now.Add(-c.age), c.every, c.priority); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestTurnsSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turns pace.Turns
		for _, k := range []pace.Kind{pace.Cut, pace.Transfer, pace.Scan} {
			var now, most atomic.Int32
			limit := int32(pace.DefaultSlots(k))
			var wg sync.WaitGroup
			run := func(n int) {
				for range n {
					wg.Go(func() {
						release := mustAcquire(t, &turns, pace.Request{Kind: k})
						most.Store(max(most.Load(), now.Add(1)))
						time.Sleep(time.Second)
						now.Add(-1)
						release()
					})
				}
			}
			run(30)
			wg.Wait()
			if most.Load() != limit {
				t.Errorf("%v: %d at once, want %d", k, most.Load(), limit)
			}
			// Fewer while in use: holders stay; none: nobody; more: at once.
			run(30)
			synctest.Wait()
			if err := turns.SetSlots(k, 0); err != nil {
				t.Fatal(err)
			}
			if now.Load() != limit {
				t.Errorf("%v: %d hold after the change", k, now.Load())
			}
			time.Sleep(time.Minute)
			if now.Load() != 0 {
				t.Errorf("%v: %d hold without slots", k, now.Load())
			}
			if err := turns.SetSlots(k, 9); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if now.Load() != 9 {
				t.Errorf("%v: %d hold with nine slots", k, now.Load())
			}
			wg.Wait()
		}
		if turns.SetSlots(pace.Cut, -1) == nil || turns.SetSlots(17, 1) == nil {
			t.Error("nonsense was accepted")
		}
		if _, err := turns.Acquire(t.Context(), pace.Request{Kind: -1}); err == nil {
			t.Error("nonsense was accepted")
		}
		if left := turns.Snapshot(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

func TestTurnsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turns pace.Turns
		why := errors.New("why")
		release := mustAcquire(t, &turns, pace.Request{Kind: pace.Scan})
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := turns.Acquire(ctx, pace.Request{Kind: pace.Scan, Debt: debt(9)}); !errors.Is(err, why) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel(why)
		wg.Wait()
		if _, err := turns.Acquire(ctx, pace.Request{Kind: pace.Cut}); !errors.Is(err, why) {
			t.Errorf("a free turn after the end: %v", err)
		}
		release()
		mustAcquire(t, &turns, pace.Request{Kind: pace.Scan})()
		var none *pace.Turns
		mustAcquire(t, none, pace.Request{Kind: pace.Scan})()
		if none.Snapshot() != nil {
			t.Error("a snapshot of nothing")
		}
	})
}

// TestTurnsCancelRace: whoever is granted and cancelled at once leaves no turn behind.
func TestTurnsCancelRace(t *testing.T) {
	t.Parallel()
	var turns pace.Turns
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			if release, err := turns.Acquire(ctx, pace.Request{Kind: pace.Kind(i % 3), Bulk: i%2 == 0, Debt: debt(float64(i))}); err == nil {
				release()
			}
		})
	}
	wg.Wait()
	if left := turns.Snapshot(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestNobodyStarves: a waiter that says it has no debt gets its turn beside others that always have more.
func TestNobodyStarves(t *testing.T) {
	t.Parallel()
	for _, k := range []pace.Kind{pace.Cut, pace.Transfer, pace.Scan} {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var turns pace.Turns
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						for {
							release, err := turns.Acquire(ctx, pace.Request{Kind: k, Debt: debt(1e9)})
							if err != nil {
								return
							}
							time.Sleep(time.Second)
							release()
						}
					})
				}
				time.Sleep(time.Minute)
				start := time.Now()
				mustAcquire(t, &turns, pace.Request{Kind: k, Debt: debt(0)})()
				if d := time.Since(start); d > 12*8*time.Second {
					t.Errorf("waited %v", d)
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// worker takes turns again and again, and counts the time that it held them.
func worker(ctx context.Context, wg *sync.WaitGroup, turns *pace.Turns, r pace.Request, hold, between time.Duration) (held, longest *atomic.Int64) {
	held, longest = new(atomic.Int64), new(atomic.Int64)
	wg.Go(func() {
		for ctx.Err() == nil {
			start := time.Now()
			release, err := turns.Acquire(ctx, r)
			if err != nil {
				return
			}
			longest.Store(max(longest.Load(), int64(time.Since(start))))
			time.Sleep(hold)
			held.Add(int64(hold))
			release()
			if between > 0 {
				time.Sleep(between)
			}
		}
	})
	return held, longest
}

func TestClasses(t *testing.T) {
	t.Parallel()
	t.Run("BulkLeavesOne", func(t *testing.T) {
		// Bulk uses all turns but one, so a delta starts at once; and bulk gets all that is left.
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var turns pace.Turns
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var wg sync.WaitGroup
			var bulk []*atomic.Int64
			for range 8 {
				h, _ := worker(ctx, &wg, &turns, pace.Request{Kind: pace.Transfer, Bulk: true, Debt: debt(100)}, 20*time.Second, 0)
				bulk = append(bulk, h)
			}
			_, longest := worker(ctx, &wg, &turns, pace.Request{Kind: pace.Transfer, Debt: debt(1)}, 2*time.Second, 28*time.Second)
			wg.Wait()
			if longest.Load() != 0 {
				t.Errorf("a delta that was due waited %v for bulk", time.Duration(longest.Load()))
			}
			var sum int64
			for _, h := range bulk {
				sum += h.Load()
			}
			near(t, "minutes of bulk", float64(sum)/6e10, 3*60, 0.01)
		})
	})
	for _, slots := range []int{1, 2, 4, 10} {
		for _, hold := range []time.Duration{time.Second, time.Minute} {
			t.Run(fmt.Sprintf("ShareOfBulk/%d/%v", slots, hold), func(t *testing.T) {
				// Deltas could use everything: bulk gets a tenth, not more.
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var turns pace.Turns
					if err := turns.SetSlots(pace.Transfer, slots); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
					defer cancel()
					var wg sync.WaitGroup
					for i := range slots * 3 {
						worker(ctx, &wg, &turns, pace.Request{Kind: pace.Transfer, Debt: debt(float64(i))}, 10*time.Second, 0)
					}
					var bulk []*atomic.Int64
					for range 2 {
						h, _ := worker(ctx, &wg, &turns, pace.Request{Kind: pace.Transfer, Bulk: true}, hold, 0)
						bulk = append(bulk, h)
					}
					wg.Wait()
					share := float64(bulk[0].Load()+bulk[1].Load()) / float64(slots) / float64(3*time.Hour)
					if share < 0.095 || share > 0.12 {
						t.Errorf("bulk had %.3f of the time", share)
					}
				})
			})
		}
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turns pace.Turns
		one := mustAcquire(t, &turns, pace.Request{Kind: pace.Scan, Owner: "one", Debt: debt(3), Bulk: true})
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, r := range []pace.Request{{Owner: "low", Debt: debt(1)}, {Owner: "high", Debt: debt(2)}} {
			r.Kind = pace.Scan
			wg.Go(func() { _, _ = turns.Acquire(ctx, r) })
		}
		time.Sleep(time.Second)
		two := mustAcquire(t, &turns, pace.Request{Kind: pace.Cut, Owner: "two", Bulk: true})
		want := []pace.Turn{
			{Kind: pace.Cut, Owner: "two", Bulk: true, Holds: true, Since: start.Add(time.Second)},
			{Kind: pace.Scan, Owner: "one", Holds: true, Since: start, Debt: 3},
			{Kind: pace.Scan, Owner: "high", Since: start, Debt: 2},
			{Kind: pace.Scan, Owner: "low", Since: start, Debt: 1},
		}
		if got := turns.Snapshot(); !slices.Equal(got, want) {
			t.Errorf("snapshot %+v", got)
		}
		cancel()
		wg.Wait()
		one()
		two()
	})
}
