package pace_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/pace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sender sends pieces through a limiter until ctx ends, and counts.
type sender struct {
	bytes   atomic.Int64
	longest atomic.Int64 // Wait, ns
}

func (s *sender) run(ctx context.Context, wg *sync.WaitGroup, l *pace.Limiter, piece int) *sender {
	wg.Go(func() {
		for {
			start := time.Now()
			if l.Wait(ctx, piece) != nil {
				return
			}
			s.longest.Store(max(s.longest.Load(), int64(time.Since(start))))
			s.bytes.Add(int64(piece))
		}
	})
	return s
}

func near(t *testing.T, what string, got, want, part float64) {
	t.Helper()
	if got < want*(1-part) || got > want*(1+part) {
		t.Errorf("%s: %.0f, want %.0f ± %g %%", what, got, want, part*100)
	}
}

func minute(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}

func TestRateIsExact(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{700, 4 << 10, 64 << 10, 1_000_003, 12_500_000} {
		for _, piece := range []int{100, 4 << 10, 64 << 10, 1 << 20} {
			if float64(piece) > float64(rate)*0.3 || rate > 1e6 && piece < 64<<10 {
				continue // few pieces count too coarsely, many take long
			}
			t.Run(fmt.Sprintf("%d/%d", rate, piece), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := pace.NewLimiter(pace.Constant(rate), nil)
					ctx, cancel := minute(t)
					defer cancel()
					var wg sync.WaitGroup
					var a, b sender
					a.run(ctx, &wg, l, piece)
					b.run(ctx, &wg, l, piece)
					wg.Wait()
					near(t, "bytes in a minute", float64(a.bytes.Load()+b.bytes.Load()), float64(rate)*60, 0.01)
					near(t, "share", float64(a.bytes.Load()), float64(rate)*30, 0.02)
				})
			})
		}
	}
}

// TestHierarchy: each limit holds, and what one item can't use the others get.
func TestHierarchy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const mb = 300_000
		agent := pace.NewLimiter(pace.Constant(10*mb), nil)
		gold, bronze := agent.Child(nil), agent.Child(pace.Constant(3*mb))
		slow := gold.Child(pace.Constant(mb / 2))
		fast := gold.Child(nil)
		b1, b2 := bronze.Child(nil), bronze.Child(pace.Constant(mb))
		ctx, cancel := minute(t)
		defer cancel()
		var wg sync.WaitGroup
		var s, f, x, y sender
		s.run(ctx, &wg, slow, 16<<10)
		for range 5 {
			f.run(ctx, &wg, fast, 32<<10)
		}
		x.run(ctx, &wg, b1, 64<<10)
		y.run(ctx, &wg, b2, 4<<10)
		wg.Wait()
		near(t, "slow item", float64(s.bytes.Load()), 30*mb, 0.01)
		near(t, "second item of the slow policy", float64(y.bytes.Load()), 60*mb, 0.01)
		near(t, "slow policy", float64(x.bytes.Load()+y.bytes.Load()), 180*mb, 0.01)
		near(t, "rest", float64(f.bytes.Load()), (600-180-30)*mb, 0.01)
		if r := slow.Rate(); r != mb/2 {
			t.Errorf("rate %d", r)
		}
	})
}

// TestFairness: neither large requests nor many waiters of one item push others aside.
func TestFairness(t *testing.T) {
	t.Parallel()
	t.Run("LargeAndSmall", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := pace.NewLimiter(pace.Constant(1<<20), nil)
			ctx, cancel := minute(t)
			defer cancel()
			var wg sync.WaitGroup
			var large, small sender
			large.run(ctx, &wg, l, 32<<20)
			small.run(ctx, &wg, l, 4<<10)
			wg.Wait()
			near(t, "small requests beside large ones", float64(small.bytes.Load()), 30<<20, 0.02)
			if d := time.Duration(small.longest.Load()); d > 150*time.Millisecond {
				t.Errorf("4 KiB waited %v beside 32 MiB", d)
			}
		})
	})
	t.Run("ManyAndOne", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := pace.NewLimiter(pace.Constant(1<<20), nil)
			a, b := l.Child(nil), l.Child(nil)
			ctx, cancel := minute(t)
			defer cancel()
			var wg sync.WaitGroup
			var many, one sender
			for range 9 {
				many.run(ctx, &wg, a, 64<<10)
			}
			one.run(ctx, &wg, b, 8<<10)
			wg.Wait()
			near(t, "the item with one waiter", float64(one.bytes.Load()), 30<<20, 0.03)
		})
	})
	t.Run("AfterOwnLimit", func(t *testing.T) {
		// An item held back by its own limit must not make up for that at the others' cost.
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := pace.NewLimiter(pace.Constant(1<<20), nil)
			a, b := l.Child(pace.Constant(1000)), l.Child(nil)
			ctx, cancel := minute(t)
			defer cancel()
			var wg sync.WaitGroup
			var held, other sender
			for range 4 {
				held.run(ctx, &wg, a, 64<<10)
			}
			other.run(ctx, &wg, b, 64<<10)
			time.Sleep(30 * time.Second)
			before := other.bytes.Load()
			a.SetRule(nil)
			time.Sleep(10 * time.Second)
			near(t, "the other after the limit was lifted", float64(other.bytes.Load()-before), 5<<20, 0.05)
			cancel()
			wg.Wait()
		})
	})
}

func TestChanges(t *testing.T) {
	t.Parallel()
	t.Run("WaiterWakes", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := pace.NewLimiter(pace.Constant(10), nil)
			c := l.Child(nil)
			start := time.Now()
			done := make(chan time.Duration)
			go func() {
				_ = c.Wait(t.Context(), 1<<20)
				done <- time.Since(start)
			}()
			time.Sleep(10 * time.Second)
			l.SetRule(pace.Constant(1 << 20))
			if d := (<-done).Seconds(); d < 10.9 || d > 11.1 {
				t.Errorf("took %.2f s, want 10 + 1", d)
			}
			l.SetRule(pace.Constant(-1))
			go func() {
				_ = c.Wait(t.Context(), 1)
				done <- time.Since(start)
			}()
			time.Sleep(time.Hour)
			select {
			case <-done:
				t.Error("passed a closed limit")
			default:
			}
			l.SetRule(nil)
			<-done
		})
	})
	t.Run("Lowered", func(t *testing.T) {
		// What was granted at a high rate does not hold up those who come after it was lowered.
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := pace.NewLimiter(pace.Constant(100<<20), nil)
			_ = l.Wait(t.Context(), 64<<10)
			l.SetRule(pace.Constant(200))
			start := time.Now()
			_ = l.Wait(t.Context(), 1000)
			if d := time.Since(start).Seconds(); d > 5 {
				t.Errorf("took %.1f s", d)
			}
		})
	})
	t.Run("Window", func(t *testing.T) {
		// Half a minute at 1 MB/s, half at 4 MB/s, the change inside one request; the rule is asked rarely.
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int64
			evening := time.Now().Add(30 * time.Second)
			l := pace.NewLimiter(func(now time.Time) (int64, time.Time) {
				asked.Add(1)
				if now.Before(evening) {
					return 1_000_000, evening
				}
				return 4_000_000, evening.Add(24 * time.Hour)
			}, nil)
			start := time.Now()
			if err := l.Child(nil).Wait(t.Context(), 150_000_000); err != nil {
				t.Error(err)
			}
			near(t, "ms for 30 MB and 120 MB", float64(time.Since(start).Milliseconds()), 60_000, 0.01)
			if n := asked.Load(); n != 2 {
				t.Errorf("the rule was asked %d times", n)
			}
		})
	})
	t.Run("WindowOpens", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			l := pace.NewLimiter(func(now time.Time) (int64, time.Time) {
				if open := start.Add(90500 * time.Millisecond); now.Before(open) {
					return -1, open
				}
				return 0, time.Time{}
			}, nil)
			_ = l.Child(nil).Wait(t.Context(), 1)
			if d := time.Since(start); d < 90500*time.Millisecond || d > 90510*time.Millisecond {
				t.Errorf("passed after %v", d)
			}
		})
	})
	t.Run("Unlimited", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			evening := time.Now().Add(time.Hour)
			l := pace.NewLimiter(func(now time.Time) (int64, time.Time) {
				if now.Before(evening) {
					return 0, evening
				}
				return 1000, time.Time{}
			}, nil)
			start := time.Now()
			for range 1000 {
				_ = l.Wait(t.Context(), 1<<30)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("unlimited took %v", d)
			}
			time.Sleep(time.Hour)
			_ = l.Wait(t.Context(), 60_000)
			near(t, "ms at 1000 B/s", float64((time.Since(start) - time.Hour).Milliseconds()), 60_000, 0.01)
		})
	})
}

// TestClock: setting the clock neither stops nor floods, but its windows hold; time without waiters is not saved up.
func TestClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var offset atomic.Int64
		base := time.Now().Round(0)
		day := func(now time.Time) (int64, time.Time) { // even hours 100 kB/s, odd ones 10 kB/s
			hour := now.Sub(base).Truncate(time.Hour)
			rate := int64(100_000)
			if int64(hour/time.Hour)%2 != 0 {
				rate = 10_000
			}
			return rate, base.Add(hour + time.Hour)
		}
		l := pace.NewLimiter(day, func() time.Time { return time.Now().Add(time.Duration(offset.Load())) })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var s sender
		s.run(ctx, &wg, l, 1000)
		phase := func(what string, want float64) {
			t.Helper()
			time.Sleep(time.Minute) // the limiter looks at the clock once a minute at least
			before := s.bytes.Load()
			time.Sleep(time.Minute)
			near(t, what, float64(s.bytes.Load()-before), want*60, 0.01)
		}
		phase("before", 100_000)
		offset.Store(int64(61 * time.Minute))
		phase("an hour ahead", 10_000)
		offset.Store(0)
		phase("and back", 100_000)
		offset.Store(int64(200 * time.Hour))
		phase("many windows ahead", 100_000)
		cancel()
		wg.Wait()

		time.Sleep(20 * time.Hour)
		ctx, cancel = minute(t)
		defer cancel()
		before := s.bytes.Load()
		s.run(ctx, &wg, l, 1000)
		wg.Wait()
		near(t, "after a pause", float64(s.bytes.Load()-before), 100_000*60, 0.01)
	})
}

// TestClockWakesWaiters: a waiter notices a change of the clock within a minute, with no call of another.
func TestClockWakesWaiters(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{11 * time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var offset atomic.Int64
			base := time.Now().Round(0)
			l := pace.NewLimiter(func(now time.Time) (int64, time.Time) {
				if now.Before(base) {
					return 0, base
				}
				if end := base.Add(10 * time.Hour); now.Before(end) {
					return -1, end
				}
				return 0, time.Time{}
			}, func() time.Time { return time.Now().Add(time.Duration(offset.Load())) })
			time.AfterFunc(time.Hour/2, func() { offset.Store(int64(jump)) })
			start := time.Now()
			_ = l.Child(nil).Wait(t.Context(), 1)
			if d := time.Since(start); d < time.Hour/2 || d > time.Hour/2+61*time.Second {
				t.Errorf("jump by %v: returned after %v", jump, d)
			}
		})
	}
}

// TestBadRule: a rule that says it ended before it began does not make anybody spin.
func TestBadRule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		l := pace.NewLimiter(func(now time.Time) (int64, time.Time) {
			asked++
			return 1000, now.Add(-time.Hour)
		}, nil)
		start := time.Now()
		_ = l.Wait(t.Context(), 10_000)
		near(t, "ms", float64(time.Since(start).Milliseconds()), 10_000, 0.01)
		if asked > 15 {
			t.Errorf("asked %d times in ten seconds", asked)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("why")
		l := pace.NewLimiter(pace.Constant(1000), nil)
		c := l.Child(nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := c.Wait(ctx, 1<<20); !errors.Is(err, why) {
					t.Errorf("wait: %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		start := time.Now()
		cancel(why)
		wg.Wait()
		if time.Since(start) != 0 {
			t.Error("waiters did not return at once")
		}
		if err := c.Wait(ctx, 1); !errors.Is(err, why) {
			t.Errorf("wait after the end: %v", err)
		}
		if err := c.Wait(t.Context(), 1000); err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("who comes after waits %v, %v", time.Since(start), err)
		}
		var none *pace.Limiter
		if err := none.Wait(t.Context(), 1<<30); err != nil || none.Rate() != 0 {
			t.Error(err)
		}
	})
}

func TestReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := make([]byte, 600_000)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		for _, rate := range []int64{0, 10_000} {
			l := pace.NewLimiter(pace.Constant(rate), nil)
			start, last, silent := time.Now(), time.Now(), time.Duration(0)
			r := l.Reader(t.Context(), bytes.NewReader(data))
			var got []byte
			for buf := make([]byte, 1<<20); ; {
				n, err := r.Read(buf)
				got = append(got, buf[:n]...)
				silent, last = max(silent, time.Since(last)), time.Now()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, data) {
				t.Error("other bytes")
			}
			if want := 60.0; rate > 0 {
				near(t, "ms", float64(time.Since(start).Milliseconds()), want*1000, 0.01)
				if silent > 200*time.Millisecond {
					t.Errorf("nothing came for %v", silent)
				}
			} else if time.Since(start) != 0 {
				t.Error("unlimited took time")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := io.ReadAll(pace.NewLimiter(pace.Constant(10), nil).Reader(ctx, bytes.NewReader(data))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
}

// TestRandomTrees: no limit of any tree is exceeded, and the root is used up if somebody could use it.
func TestRandomTrees(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				rate := func() int64 {
					if rnd.IntN(3) == 0 {
						return 0
					}
					return 5_000 + rnd.Int64N(100_000)
				}
				ctx, cancel := minute(t)
				defer cancel()
				var wg sync.WaitGroup
				rootRate := 5_000 + rnd.Int64N(100_000)
				root := pace.NewLimiter(pace.Constant(rootRate), nil)
				var all float64
				type node struct {
					rate  int64
					total func() float64
				}
				var nodes []node
				var senders []*sender
				var possible float64
				waiting := 0
				for range 1 + rnd.IntN(4) {
					gr := rate()
					g := root.Child(pace.Constant(gr))
					var mine []*sender
					var could float64
					for range 1 + rnd.IntN(4) {
						ir := rate()
						i := g.Child(pace.Constant(ir))
						s := new(sender)
						for range 1 + rnd.IntN(3) {
							s.run(ctx, &wg, i, 100+rnd.IntN(2000))
							waiting++
						}
						mine = append(mine, s)
						nodes = append(nodes, node{ir, func() float64 { return float64(s.bytes.Load()) }})
						if ir == 0 {
							ir = 1 << 40
						}
						could += float64(ir)
					}
					if gr > 0 {
						could = min(could, float64(gr))
					}
					possible += could
					senders = append(senders, mine...)
					nodes = append(nodes, node{gr, func() (n float64) {
						for _, s := range mine {
							n += float64(s.bytes.Load())
						}
						return n
					}})
				}
				wg.Wait()
				for _, n := range nodes {
					if got := n.total(); n.rate > 0 && got > float64(n.rate)*60*1.01+pace.Slice {
						t.Errorf("%.0f bytes passed a limit of %d a minute", got, n.rate*60)
					}
				}
				for _, s := range senders {
					all += float64(s.bytes.Load())
				}
				// What is granted of a piece that is not complete yet is not counted.
				if want := min(float64(rootRate), possible) * 60; all > want*1.01+pace.Slice || all < want*0.99-2100*float64(waiting) {
					t.Errorf("%.0f bytes, want %.0f", all, want)
				}
			})
		})
	}
}

func BenchmarkWaitUnlimited(b *testing.B) {
	l := pace.NewLimiter(nil, nil).Child(nil).Child(nil)
	for b.Loop() {
		_ = l.Wait(b.Context(), 64<<10)
	}
}

// BenchmarkWaitLimited has 200 waiting items; the limit is never the brake.
func BenchmarkWaitLimited(b *testing.B) {
	l := pace.NewLimiter(pace.Constant(1<<50), nil)
	closed := l.Child(pace.Constant(-1))
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for range 200 {
		c := closed.Child(nil)
		wg.Go(func() { _ = c.Wait(ctx, 1) })
	}
	time.Sleep(50 * time.Millisecond)
	c := l.Child(nil)
	for b.Loop() {
		_ = c.Wait(ctx, 64<<10)
	}
	cancel()
	wg.Wait()
}
